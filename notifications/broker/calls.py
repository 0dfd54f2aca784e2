"""Calls of one script that are sent together: what is sent, and what has been answered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import redis

from .connecting import Server
from .script import Script, filled_in
from .slots import Node, redirection, slot_of

NOT_ANSWERED: Final = object()
"""Stands in ``answers`` for a call of which it is not known whether it was executed."""
TOGETHER_TIMEOUT: Final = 5.0
"""Seconds that calls may take together, while Redis goes on answering them."""


class Calls:
    """
    Calls of one script, which Redis executes in their order, each by itself.

    Attributes:
        again: They may be executed twice.
        answers: The reply to each, or the error with which Redis refused it.
        numbers: Those of the calls, which are their places in ``answers``.

    """

    def __init__(self, script: Script, calls: Sequence[tuple[Sequence[str], Sequence[Any]]], *, again: bool) -> None:
        """
        Prepare the calls.

        Args:
            script: The script.
            calls: Keys and arguments, as for ``clients.run``.
            again: They may be executed twice.

        """
        self._script = script
        self._calls = calls
        self.again = again
        self.answers: list[Any] = [NOT_ANSWERED] * len(calls)
        self.numbers: Sequence[int] = range(len(calls))

    def by_slot(self) -> dict[int, Part]:
        """Return the calls of each slot of a cluster, in their order."""
        numbers: dict[int, list[int]] = {}
        for number, (keys, _) in enumerate(self._calls):
            numbers.setdefault(slot_of(keys[0]), []).append(number)
        return {slot: Part(self, each) for slot, each in numbers.items()}

    def left(self) -> list[int]:
        """Return the numbers of the calls that have no answer."""
        return [number for number in self.numbers if self.answers[number] is NOT_ANSWERED]

    def command(self, number: int, server: Server, *, whole: bool) -> tuple[Any, ...]:
        """
        Return the command of a call.

        The first that is sent is to be ``whole``: the server then has the script when it reads the next, and none is
        refused while a later one is executed.
        """
        keys, arguments = self._calls[number]
        return self._script.command(keys, filled_in(arguments, server), whole=whole)

    def is_redirected(self, _error: redis.ResponseError) -> bool:
        """Return whether another server has to be asked."""
        return False

    def refused(self, number: int, error: redis.ResponseError) -> None:
        """Take note that Redis did not execute a call and would not execute it the next time either."""
        self.answers[number] = error

    def fail(self, error: Exception) -> None:
        """Take note of why the calls that are left have no answer."""
        for number in self.left():
            self.answers[number] = error


class Part(Calls):
    """
    The calls of one slot of a cluster, all of which are at one node.

    Attributes:
        server: What scripts are told of the server of a connection; see ``routing.Route.server``.

    """

    server: Callable[[Server], Server]

    def __init__(self, whole: Calls, numbers: Sequence[int]) -> None:
        self._script, self._calls, self.again = whole._script, whole._calls, whole.again
        self.answers, self.numbers = whole.answers, numbers

    def command(self, number: int, server: Server, *, whole: bool) -> tuple[Any, ...]:
        return super().command(number, self.server(server), whole=whole)

    def is_redirected(self, error: redis.ResponseError) -> bool:
        return redirection(error, _NOWHERE) is not None


_NOWHERE: Final = Node("", 0)
