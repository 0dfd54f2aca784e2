"""
Raw messages that have been read but are not known to be stamped yet. Pure.

The holder of a shard keeps them here, and removes them when their batch is acknowledged on the
internal channel. So does every listener with what it read before a gap. See ``standby.py`` for the rest.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from ..topics import Topic

MAX_AGE: Final = 15.0
"""Seconds that a raw message waits for its stamp: five times the life of a lease."""
MAX_BYTES: Final = 64 * 1024 * 1024
"""Payload bytes that may wait. Pausing would only move the queue into Redis, which disconnects a
slow subscriber at 32 MB and drops all of it."""


ENTRY_BYTES: Final = 400
"""Approximate memory of a message besides its payload."""


class Entry:
    """
    One raw message.

    Attributes:
        tail: The rest of its frame, as ``stamped.tail`` writes it.
        at: When it was read.
        digest: As ``stamped.digest`` returns it.
        done: Whether it was acknowledged, or given up.
        stamped: Whether Redis has confirmed that it is stamped; it has yet to be acknowledged.
        kept: Whether it was read before the subscription had a gap, in which it may have been acknowledged.

    """

    __slots__ = ("at", "digest", "done", "kept", "stamped", "tail", "topic")

    def __init__(self, topic: Topic, tail: bytes, at: float, digest: int) -> None:
        self.topic = topic
        self.tail = tail
        self.at = at
        self.digest = digest
        self.done = self.stamped = self.kept = False


class Backlog:
    """Raw messages in the order of their arrival."""

    def __init__(self, share: int = 1) -> None:
        """Be empty; ``MAX_BYTES`` is divided by ``share``."""
        self._share = share
        self._clear()
        self.overtaken = 0
        """How many were given up because a later one of their topic was stamped; reset when they
        are logged."""

    def _clear(self) -> None:
        self._entries: deque[Entry] = deque()
        self._next: deque[Entry] = deque()
        self._by_topic: dict[str, deque[Entry]] = {}
        self._bytes = 0
        self._left = 0
        self.kept = 0
        """How many messages are kept from before a gap."""

    def __len__(self) -> int:
        return self._left

    def add(self, topic: Topic, tail: bytes, now: float, digest: int) -> bool:
        """Keep a message; return False if there is no room."""
        return self.put_back(Entry(topic, tail, now, digest))

    def put_back(self, entry: Entry) -> bool:
        """Keep a message that was kept before; return False if there is no room."""
        size = len(entry.tail) + ENTRY_BYTES
        if self._bytes + size > MAX_BYTES // self._share:
            return False
        self._entries.append(entry)
        self._next.append(entry)
        self._by_topic.setdefault(str(entry.topic), deque()).append(entry)
        self._bytes += size
        self._left += 1
        return True

    def withdraw(self) -> list[Entry]:
        """Return all messages in order, and forget them; none may be kept from before a gap."""
        left = [entry for entry in self._entries if not entry.done]
        self._clear()
        return left

    @property
    def all_stamped(self) -> bool:
        """Whether all are stamped: confirmed by Redis, or come back. They are stamped in order."""
        return next((entry.stamped for entry in reversed(self._entries) if not entry.done), True)

    def knows(self, topic: str) -> bool:
        """Whether a message of this topic waits."""
        return topic in self._by_topic

    def remove(self, topic: str, tail: bytes) -> Entry | None:
        """
        Remove the oldest message of a topic whose frame ends with ``tail``, and return it.

        Those of the topic that were read before it are given up, and counted as ``overtaken``: the
        holder has not received them, and later they would be out of order.
        """
        return self._remove_first(topic, lambda entry: entry.tail == tail)

    def acknowledge(self, topic: str, digest: int) -> Entry | None:
        """Remove the oldest message of a topic that has this digest; see ``remove``."""
        return self._remove_first(topic, lambda entry: entry.digest == digest)

    def finish(self, batch: list[Entry]) -> None:
        """Remove what ``take`` returned, as it is acknowledged."""
        for entry in batch:
            if not entry.done:
                self._remove(entry)

    def _remove_first(self, topic: str, wanted: Callable[[Entry], bool]) -> Entry | None:
        entries = self._by_topic.get(topic, ())
        for before, entry in enumerate(entries):
            if wanted(entry):
                if before:
                    for earlier in list(entries)[:before]:
                        self._remove(earlier)
                    self.overtaken += before
                self._remove(entry)
                return entry
        return None

    def take(self, messages: int, size: int) -> list[Entry]:
        """Take the next messages to submit: at most ``messages``, and at most ``size`` bytes."""
        batch: list[Entry] = []
        while self._next and len(batch) < messages:
            entry = self._next[0]
            if not entry.done:
                size -= len(entry.tail)
                if batch and size < 0:
                    break
                batch.append(entry)
            self._next.popleft()
        return batch

    def resubmit(self) -> None:
        """Let ``take`` return all that is left once more, because another had the lease."""
        self._next = deque(entry for entry in self._entries if not entry.done)

    def expire(self, now: float) -> int:
        """Give up what has waited for longer than ``MAX_AGE``; return how many messages."""
        expired = 0
        while self._entries and (self._entries[0].done or now - self._entries[0].at > MAX_AGE):
            entry = self._entries.popleft()
            if not entry.done:
                self._remove(entry)
                expired += 1
        return expired

    def confirm(self, batch: list[Entry]) -> None:
        """Record that Redis has stamped what ``take`` returned."""
        for entry in batch:
            entry.stamped = True
            if entry.kept and not entry.done:
                self._remove(entry)  # it came back in the gap

    def gap(self) -> None:
        """Record a gap, from now on; keep what is not known to be stamped."""
        for entry in list(self._entries):
            if entry.done:
                continue
            if entry.stamped:
                self._remove(entry)
            elif not entry.kept:
                entry.kept = True
                self.kept += 1

    def kept_topics(self) -> list[Topic]:
        """List the topics of what is kept from before a gap."""
        return list(dict.fromkeys(entry.topic for entry in self._entries if entry.kept and not entry.done))

    def give_up(self, topic: str | None = None) -> int:
        """Remove what is kept from before a gap, of one topic or of all; return how many."""
        entries = self._entries if topic is None else self._by_topic.get(topic, ())
        given_up = [entry for entry in entries if entry.kept and not entry.done]
        for entry in given_up:
            self._remove(entry)
        return len(given_up)

    def _remove(self, entry: Entry) -> None:
        entry.done = True
        self._bytes -= len(entry.tail) + ENTRY_BYTES
        entry.tail = b""
        self._left -= 1
        self.kept -= entry.kept
        name = str(entry.topic)
        entries = self._by_topic[name]
        entries.remove(entry)
        if not entries:
            del self._by_topic[name]
        for queue in (self._entries, self._next):
            while queue and queue[0].done:
                queue.popleft()
