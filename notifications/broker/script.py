"""Lua scripts as Redis commands. Whatever must happen in one step is one of them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from .connecting import GroupChannel, Server


class Script:
    """
    A Lua script, composed of one or more files in ``lua/``.

    It is one command, so all of it happens in one step or not at all.
    """

    def __init__(self, *names: str, prelude: str = "") -> None:
        """
        Compose a script.

        Args:
            *names: The files, in order.
            prelude: Lua that comes before them.

        """
        folder = Path(__file__).parent / "lua"
        self.source = "\n".join([prelude, *((folder / f"{name}.lua").read_text() for name in names)])
        self.sha = hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()

    def command(self, keys: Sequence[str], arguments: Sequence[Any], *, whole: bool) -> tuple[Any, ...]:
        """Return the command that runs it: by its hash, or ``whole`` for a server that does not have it."""
        name, text = ("EVAL", self.source) if whole else ("EVALSHA", self.sha)
        return (name, text, len(keys), *keys, *arguments)


RUN: Final = object()
"""Placeholder for the server's ``run`` in a script's arguments."""
STARTED: Final = object()
"""Placeholder for the server's ``started`` in a script's arguments."""
EVICTS: Final = object()
"""Placeholder for 1 if the server may throw keys away, otherwise 0."""


def filled_in(arguments: Sequence[Any], server: Server) -> list[Any]:
    """Replace the placeholders by the values of the server, and each ``GroupChannel`` by what it has there."""
    filled: list[Any] = [
        server.run
        if argument is RUN
        else server.started
        if argument is STARTED
        else server.evicts
        if argument is EVICTS
        else argument
        for argument in arguments
    ]
    if (channel_of := server.channel_of) is not None:
        filled = [channel_of(each) if isinstance(each, GroupChannel) else each for each in filled]
    return filled
