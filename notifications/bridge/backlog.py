"""
Raw messages that have been read and not yet been seen stamped. Pure.

Every listener keeps them, and strikes each when its stamp arrives on the internal channel. So whoever takes the
lease over knows what its predecessor left.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from ..topics import Topic

MAX_AGE: Final = 15.0
"""Seconds that a raw message waits for its stamp: five times the life of a lease."""
MAX_BYTES: Final = 64 * 1024 * 1024
"""Payload bytes that may wait. Pausing would only move the queue into Redis, which cuts us off at 32 MB and
loses all of it."""


ENTRY_BYTES: Final = 400
"""What a message takes beside its payload, about."""


class Entry:
    """
    One raw message.

    Attributes:
        tail: The rest of its frame, as ``stamped.tail`` writes it.
        at: When it was read.
        struck: Its stamp has been seen, or it was given up.
        stamped: Redis has told us that it is, and the stamp is on its way.
        kept: It was read before the subscription had a gap, in which its stamp may have been missed.

    """

    __slots__ = ("at", "kept", "stamped", "struck", "tail", "topic")

    def __init__(self, topic: Topic, tail: bytes, at: float) -> None:
        self.topic = topic
        self.tail = tail
        self.at = at
        self.struck = self.stamped = self.kept = False


class Backlog:
    """Raw messages in the order of their arrival."""

    def __init__(self) -> None:
        self._entries: deque[Entry] = deque()
        self._next: deque[Entry] = deque()
        self._by_topic: dict[str, deque[Entry]] = {}
        self._bytes = 0
        self._unstruck = 0
        self.kept = 0
        """How many messages are kept from before a gap."""
        self.overtaken = 0
        """How many were given up because a later one of their topic was stamped; whoever tells of them resets it."""

    def __len__(self) -> int:
        return self._unstruck

    def add(self, topic: Topic, tail: bytes, now: float) -> bool:
        """Keep a message; says no when there is no room."""
        if self._bytes + len(tail) + ENTRY_BYTES > MAX_BYTES:
            return False
        entry = Entry(topic, tail, now)
        self._entries.append(entry)
        self._next.append(entry)
        self._by_topic.setdefault(str(topic), deque()).append(entry)
        self._bytes += len(tail) + ENTRY_BYTES
        self._unstruck += 1
        return True

    @property
    def all_stamped(self) -> bool:
        """Whether Redis has told us that all of them are, or we have seen it; they are stamped in their order."""
        return next((entry.stamped for entry in reversed(self._entries) if not entry.struck), True)

    def knows(self, topic: str) -> bool:
        """Whether a message of this topic waits."""
        return topic in self._by_topic

    def strike(self, topic: str, tail: bytes) -> Entry | None:
        """
        Forget the oldest message of a topic whose frame ends with ``tail``, and return it.

        Those of the topic that were read before it are given up, and counted as ``overtaken``: whoever stamps has
        not heard them, and later they would be out of order.
        """
        entries = self._by_topic.get(topic, ())
        for before, entry in enumerate(entries):
            if entry.tail == tail:
                if before:
                    for earlier in list(entries)[:before]:
                        self._strike(earlier)
                    self.overtaken += before
                self._strike(entry)
                return entry
        return None

    def take(self, messages: int, size: int) -> list[Entry]:
        """Take the next messages that have not been submitted, at most so many and so many bytes."""
        batch: list[Entry] = []
        while self._next and len(batch) < messages:
            entry = self._next[0]
            if not entry.struck:
                size -= len(entry.tail)
                if batch and size < 0:
                    break
                batch.append(entry)
            self._next.popleft()
        return batch

    def resubmit(self) -> None:
        """Offer everything that has not been struck to ``take`` again: another had the lease meanwhile."""
        self._next = deque(entry for entry in self._entries if not entry.struck)

    def expire(self, now: float) -> int:
        """Give up what has waited for longer than ``MAX_AGE``; returns how many."""
        expired = 0
        while self._entries and (self._entries[0].struck or now - self._entries[0].at > MAX_AGE):
            entry = self._entries.popleft()
            if not entry.struck:
                self._strike(entry)
                expired += 1
        return expired

    def confirm(self, batch: list[Entry]) -> None:
        """Note that Redis has stamped what ``take`` gave."""
        for entry in batch:
            entry.stamped = True
            if entry.kept and not entry.struck:
                self._strike(entry)  # its stamp came in the gap

    def gap(self) -> None:
        """Note that stamps may have been missed from here on: keep what is not known to be stamped."""
        for entry in list(self._entries):
            if entry.struck:
                continue
            if entry.stamped:
                self._strike(entry)
            elif not entry.kept:
                entry.kept = True
                self.kept += 1

    def kept_topics(self) -> list[Topic]:
        """List the topics of what is kept from before a gap."""
        return list(dict.fromkeys(entry.topic for entry in self._entries if entry.kept and not entry.struck))

    def give_up(self, topic: str | None = None) -> int:
        """Forget what is kept from before a gap, or that of one topic; returns how many there were."""
        entries = self._entries if topic is None else self._by_topic.get(topic, ())
        given_up = [entry for entry in entries if entry.kept and not entry.struck]
        for entry in given_up:
            self._strike(entry)
        return len(given_up)

    def _strike(self, entry: Entry) -> None:
        entry.struck = True
        self._bytes -= len(entry.tail) + ENTRY_BYTES
        entry.tail = b""
        self._unstruck -= 1
        self.kept -= entry.kept
        name = str(entry.topic)
        entries = self._by_topic[name]
        entries.remove(entry)
        if not entries:
            del self._by_topic[name]
        for queue in (self._entries, self._next):
            while queue and queue[0].struck:
                queue.popleft()
