"""
Ids, and what histories say in them. Pure.

An id is ``<epoch>-<n>``: within an epoch ``n`` counts without holes, so from two ids of one epoch anyone
can tell next, duplicate and hole. Another epoch means that the count began anew, and nothing more.
"""

from __future__ import annotations

from typing import NamedTuple, Self


class Position(NamedTuple):
    """
    Where a reader is in a topic: the id of the last message it has had.

    ``n`` 0 is before the first message of an epoch. Pairs of integers: as text, 10 would come before 9.
    """

    epoch: int
    n: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``"<epoch>-<n>"``; ValueError if it is not that."""
        epoch, _, n = text.partition("-")
        return tuple.__new__(cls, (int(epoch), int(n)))  # as the class would, in half the time

    @classmethod
    def since(cls, text: str | None) -> Self | str | None:
        """Read a frame's ``since``: ``"last"`` and None stay what they are."""
        return text if text is None or text == "last" else cls.parse(text)

    def __str__(self) -> str:
        return f"{self.epoch}-{self.n}"


class Where(NamedTuple):
    """
    What a history holds.

    Attributes:
        run: Which server says so; it changes when a server starts again, for it may have lost something.
        started: When that was up at the latest, in ms.
        now: The server's time in ms.
        first, last: The ids of the history's ends; None if it has no entry.
        ttl: Seconds until it is gone, if nothing more is published.
        whole: The last entry was written by this server, so that none after it can have been lost with another.

    """

    run: str
    started: int
    now: int
    first: Position | None
    last: Position | None
    ttl: float
    whole: bool

    @property
    def position(self) -> Position:
        """The position of a reader who has received everything."""
        return self.last or Position(self.now, 0)


class Frame(NamedTuple):
    """One kept message, as browsers receive it."""

    position: Position
    text: str


class Page(NamedTuple):
    """
    What follows a position.

    Attributes:
        run: Which server says so.
        now: The server's time in ms.
        first, last: The ends of the history when it was read; None if it has no entry.
        whole: As in ``Where``.
        frames: In their order. Unless the last of them is ``last`` there is more to read.
        ttl: Seconds until the history is gone, if nothing more is published.

    """

    run: str
    now: int
    first: Position | None
    last: Position | None
    whole: bool
    frames: list[Frame]
    ttl: float = 0.0
