"""
Messages without an id that arrive while a socket catches up from the history. Pure.

No history has them, so what is let go is lost; and sent at once they would come before what is being read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Final

from .cursor import Cursor
from .history.position import Position
from .metrics import count

MAX_HELD: Final = 256 * 1024
"""Characters that one socket holds back: as much as a page. What arrives beyond that is dropped and counted."""
HELD_ENTRY: Final = 200
"""What a message takes beside its text, about."""


class Held:
    """What one socket holds back, of all its topics; ``size`` says how much it takes."""

    def __init__(self) -> None:
        self.size = 0

    def begin(self, cursor: Cursor) -> None:
        """Hold back what arrives from now on."""
        cursor.held = deque()

    def keep(self, cursor: Cursor, text: str) -> None:
        """Keep a message behind what is known to have been published before it; what has no room is dropped."""
        if cursor.held is None:
            return  # the browser does not know yet that it is subscribed
        if self.size >= MAX_HELD:
            count("dropped", "catching up, no history")
            return
        self.size += len(text) + HELD_ENTRY
        cursor.held.append((cursor.latest, text))

    def take(self, cursor: Cursor, before: Position) -> Iterator[str]:
        """Give back what came before the message ``before``."""
        held = cursor.held
        while held and held[0][0] < before:
            yield self._next(held)

    def end(self, cursor: Cursor) -> Iterator[str]:
        """Give back all that is left, and hold nothing back any more."""
        held, cursor.held = cursor.held, None
        while held:
            yield self._next(held)

    def _next(self, held: deque[tuple[Position, str]]) -> str:
        text = held.popleft()[1]
        self.size -= len(text) + HELD_ENTRY
        return text
