"""
Ids, and what a history answers in terms of them. Pure.

An id is ``<epoch>-<n>``: within an epoch ``n`` counts without gaps, so two ids of one epoch show
whether the second is the next, a duplicate or behind a gap. Another epoch means that counting has
started anew, and nothing more.
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
        """Parse ``"<epoch>-<n>"``; raise ValueError for anything else."""
        epoch, _, n = text.partition("-")
        return tuple.__new__(cls, (int(epoch), int(n)))  # as the class would, in half the time

    @classmethod
    def since(cls, text: str | None) -> Self | str | None:
        """Parse a frame's ``since``; ``"last"`` and None are returned as they are."""
        return text if text is None or text == "last" else cls.parse(text)

    def __str__(self) -> str:
        return f"{self.epoch}-{self.n}"


class Where(NamedTuple):
    """
    What a history holds.

    Attributes:
        run: Identifies the server that answered; it changes at each start, which may have lost
            something.
        started: The latest time by which that server was up, in ms.
        now: The server's time in ms.
        first, last: The first and last ids of the history; None if it has no entry.
        ttl: Seconds until it expires, if nothing more is published.
        whole: Whether this server wrote the last entry, so that none after it was lost with
            another.

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
        """The position of a reader that has received everything."""
        return self.last or Position(self.now, 0)


class Frame(NamedTuple):
    """One kept message, as browsers receive it."""

    position: Position
    text: str


class Page(NamedTuple):
    """
    What follows a position.

    Attributes:
        run: Identifies the server that answered.
        now: The server's time in ms.
        first, last: The first and last ids of the history when it was read; None if it has no
            entry.
        whole: As in ``Where``.
        frames: In order. Unless the last of them is ``last``, there is more to read.
        ttl: Seconds until the history expires, if nothing more is published.

    """

    run: str
    now: int
    first: Position | None
    last: Position | None
    whole: bool
    frames: list[Frame]
    ttl: float = 0.0
