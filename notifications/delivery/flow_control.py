"""
Flow control: how much a browser has not confirmed yet. Pure.

Servers do not report how much they buffer for a slow browser: Daphne's ``send`` never waits and
buffers without limit (188 MB were seen), others wait for as long as the browser takes. So a socket
counts what it sent, asks for confirmation with numbered pings, and pauses at a bound.
"""

from __future__ import annotations

import random
from math import inf
from typing import Final

BOUND: Final = 512 * 1024
"""Characters sent and not confirmed, above which a socket pauses. Enough for 4 MB/s at a round trip
of 125 ms."""
ANONYMOUS_PONGS: Final = 10.0
"""Minimum seconds between two pongs without a number that count: they may come from a program that
sends pongs by a timer and reads nothing. Daphne then buffers 26 KB/s, and closes it after 50 s,
because it does not answer WebSocket pings."""
MAX_STEP: Final = 1 << 20
"""Numbers of pings grow by up to this much at random, so that nobody can answer what they have not read. They stay
integers in JavaScript for 2^33 pings."""


class Credit:
    """
    Counts what one socket sent and what its browser has confirmed.

    Attributes:
        sent: Characters sent so far.
        limit: The value of ``sent`` above which nothing more should be sent for now.
        ask_at: The value of ``sent`` from which the next ping is due.

    """

    __slots__ = ("_anonymous_at", "_number", "_open", "ask_at", "limit", "sent")

    def __init__(self, *, confirms: bool = True) -> None:
        """
        Begin to count.

        Args:
            confirms: False for a browser that cannot confirm anything: then there is no bound.

        """
        bound = BOUND if confirms else inf
        self.sent = 0
        self.ask_at = bound / 2
        self.limit = bound
        self._number = 0
        self._open: list[tuple[int, int]] = []
        self._anonymous_at = float("-inf")

    @property
    def exhausted(self) -> bool:
        """Whether nothing more should be sent for now."""
        return self.sent > self.limit

    def ping(self) -> int:
        """Number a new ping; what was sent before it is confirmed by its pong."""
        self._number += random.randint(1, MAX_STEP)  # noqa: S311  one guess in a million may be right
        self._open.append((self._number, self.sent))
        self.ask_at = self.sent + BOUND // 2
        return self._number

    def asked(self, now: float) -> bool:
        """
        Count a browser's ping, which confirms everything, as often as an anonymous pong does.

        The client of the replaced service sends pings but answers none: only its pings show that it
        reads.
        """
        if not self._open or now - self._anonymous_at < ANONYMOUS_PONGS:
            return False
        self._anonymous_at = now
        return self.pong(self._open[-1][0], now)

    def pong(self, number: int | None, now: float) -> bool:
        """
        Count a pong.

        Args:
            number: The number of its ping; None answers the oldest open one, at most once in
                ``ANONYMOUS_PONGS``.
            now: Seconds of any clock.

        Returns:
            Whether it answered an open ping.

        """
        if not self._open:
            return False
        if number is None:
            if now - self._anonymous_at < ANONYMOUS_PONGS:
                return False
            self._anonymous_at = now
            number = self._open[0][0]
        elif all(number != asked for asked, _ in self._open):
            return False
        while self._open and self._open[0][0] <= number:
            self.limit = self._open.pop(0)[1] + BOUND
        return True
