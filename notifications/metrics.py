"""
What happened in this process, in plain numbers.

They cost next to nothing and need no package; ``exporter.py`` shows them to Prometheus where prometheus-client is
installed. Every module that loses, refuses or carries something says so here.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Final

SAMPLE_INTERVAL: Final = 0.5
"""Seconds between two messages that are timed: on a thousand sockets that is a thousand durations."""

counts: Counter[tuple[str, str]] = Counter()
"""By name and reason: ``counts["refused", "MessageError"]``. Reasons are few: each stays in memory."""


def count(name: str, reason: str = "", amount: int = 1) -> None:
    counts[name, reason] += amount


class Tally:
    """
    What happens so often that ``count`` would be felt: a number that is added to takes 0.04 µs.

    Attributes:
        bridged: Messages that a listener has handed to the channel layer.
        delivered: Messages that were handed to the server for a browser.
        duplicates: Messages that were not sent because the socket has had them.
        connections, subscriptions: Open sockets, and the topics they have joined, now.
        unanswered: Subscriptions that wait because nobody could say whether they are allowed, now.

    """

    __slots__ = ("bridged", "connections", "delivered", "duplicates", "subscriptions", "unanswered")

    def __init__(self) -> None:
        self.bridged = self.delivered = self.duplicates = 0
        self.connections = self.subscriptions = self.unanswered = 0


tally = Tally()


def _ignore(seconds: float) -> None:
    pass


class Durations:
    """How long something took, of messages that are timed. Nobody keeps it unless it is shown to somebody."""

    def __init__(self) -> None:
        self.record: Callable[[float], None] = _ignore
        """Take one duration, in seconds."""

    def since(self, at: int) -> None:
        """Record what has passed since ``at``, a time of ``microseconds``, perhaps of another host."""
        self.record(max(0.0, time.time() - at / 1e6))


bridging = Durations()
"""From the reading of a raw message to the channel layer."""
sending = Durations()
"""From the call of ``publish_*``, or the reading of a raw message, to a browser's socket."""


def microseconds(ago: float = 0.0) -> int:
    """Say what time it was ``ago`` seconds ago, for ``Durations.since``."""
    return int((time.time() - ago) * 1e6)


class Sampler:
    """Chooses which messages are timed: one in ``SAMPLE_INTERVAL`` seconds at most."""

    __slots__ = ("_next",)

    def __init__(self) -> None:
        self._next = 0.0

    def due(self) -> bool:
        """Say whether this one is timed."""
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + SAMPLE_INTERVAL
        return True


class Listening:
    """
    How this process's listener is, if it is one.

    Attributes:
        state: As in ``health.Report``; empty in other processes.
        waiting: Says how many messages have been read and are not forwarded yet.

    """

    def __init__(self) -> None:
        self.state = ""
        self.waiting: Callable[[], int] = int


listening = Listening()
