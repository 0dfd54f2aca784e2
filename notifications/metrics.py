"""
What happened in this process, as plain numbers.

They cost next to nothing and need no package; ``monitoring/prometheus.py`` exposes them to Prometheus if
prometheus-client is installed. Every module that loses, refuses or delivers something counts it here.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Final

SAMPLE_INTERVAL: Final = 0.5
"""Seconds between two messages that are timed: with a thousand sockets each yields a thousand durations."""

counts: Counter[tuple[str, str]] = Counter()
"""By name and reason: ``counts["refused", "MessageError"]``. Reasons must be few, because each stays in memory."""


def count(name: str, reason: str = "", amount: int = 1) -> None:
    counts[name, reason] += amount


class Tally:
    """
    Counters for what happens so often that ``count`` would be noticeable: adding to a number takes 0.04 µs.

    Attributes:
        bridged: Messages that a listener has handed to the channel layer.
        delivered: Messages that were handed to the server for a browser.
        duplicates: Messages that were not sent because the socket had already received them.
        replaced: Messages that were not sent because a later one of their topic, which is a state, is.
        connections, subscriptions: The current number of open connections, and of topics they have joined.
        responses: The current number of those that are HTTP responses.
        unanswered: The current number of subscriptions that wait because it is not known whether they are allowed.

    """

    __slots__ = (
        "bridged",
        "connections",
        "delivered",
        "duplicates",
        "replaced",
        "responses",
        "subscriptions",
        "unanswered",
    )

    def __init__(self) -> None:
        self.bridged = self.delivered = self.duplicates = self.replaced = 0
        self.connections = self.responses = self.subscriptions = self.unanswered = 0


tally = Tally()


def _ignore(seconds: float) -> None:
    pass


class Durations:
    """How long something took, for messages that are timed. It is only recorded if it is exported."""

    def __init__(self) -> None:
        self.record: Callable[[float], None] = _ignore
        """Record one duration, in seconds."""

    def since(self, at: int) -> None:
        """Record the time since ``at``, which comes from ``microseconds``, perhaps on another host."""
        self.record(max(0.0, time.time() - at / 1e6))


bridging = Durations()
"""From reading a raw message to handing it to the channel layer."""
sending = Durations()
"""From the call of ``publish_*``, or reading a raw message, to a browser's socket."""


def microseconds(ago: float = 0.0) -> int:
    """Return the time ``ago`` seconds ago, for ``Durations.since``."""
    return int((time.time() - ago) * 1e6)


class Sampler:
    """Selects the messages that are timed: one in ``SAMPLE_INTERVAL`` seconds at most."""

    __slots__ = ("_next",)

    def __init__(self) -> None:
        self._next = 0.0

    def due(self) -> bool:
        """Return whether the current message is timed."""
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + SAMPLE_INTERVAL
        return True


class Listening:
    """
    The state of this process's listener, if it is one.

    Attributes:
        state: As in ``health.Report``; empty in other processes.
        waiting: Returns how many messages have been read but not forwarded yet.
        leading, shards: How many shards it leads, and how many there are.
        inlets: For each shard whose inlet it empties: how many entries wait there, and for how many seconds the oldest
            has, when they were last read.

    """

    def __init__(self) -> None:
        self.state = ""
        self.waiting: Callable[[], int] = int
        self.leading, self.shards = 0, 1
        self.inlets: dict[int, tuple[int, float]] = {}

    @property
    def inlet(self) -> tuple[int, float]:
        """How many entries wait in all of them, and for how many seconds the oldest of all has."""
        amounts, ages = zip((0, 0.0), *tuple(self.inlets.values()), strict=True)
        return sum(amounts), max(ages)


listening = Listening()
