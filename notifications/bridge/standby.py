"""
What a listener remembers of a shard that another one leads. Pure.

Raw messages and acknowledgements are put aside as they come, and looked at many together: so a
shard that another listener leads costs a fraction of one that this listener leads. What no
acknowledgement has struck off is what the holder has left, should it die.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from typing import Final, NamedTuple
from zlib import crc32

from ..history.position import Position
from ..history.stamped import Acknowledgement, read_acknowledgement
from .backlog import ENTRY_BYTES, MAX_AGE, MAX_BYTES, Entry
from .replay import MAX_TOPICS

MAX_UNSETTLED: Final = 64 * 1024
"""Bytes after which what was put aside is looked at, while it is in the processor's cache."""
AGAIN: Final = ENTRY_BYTES // 4
"""Bytes by which that becomes more for each message that is left: it is looked at as well."""
EARLY: Final = 1.0
"""Seconds by which, in a cluster, an acknowledgement may come before its message: they come from different nodes."""


class Left(NamedTuple):
    """
    A raw message that nobody has acknowledged.

    Attributes:
        at: When it was read.
        size: Approximate memory in bytes.
        channel: Where.
        data: As it was read; or what the backlog had of it, if this listener was to stamp it before.
        digest: As ``stamped.digest`` returns it.

    """

    at: float
    size: int
    channel: bytes
    data: bytes | Entry
    digest: int


class Early:
    """Acknowledgements of messages that are still to come, where that can be."""

    def __init__(self, seconds: float) -> None:
        """
        Remember nothing yet.

        Args:
            seconds: For how long each is remembered; 0 where no message comes after its acknowledgement.

        """
        self._seconds = seconds
        self._order: deque[tuple[float, int]] = deque()
        self._counts: dict[int, int] = {}

    def __bool__(self) -> bool:
        return bool(self._counts)

    def add(self, digest: int, now: float) -> None:
        if self._seconds:
            self._expire(now)
            self._order.append((now, digest))
            self._counts[digest] = self._counts.get(digest, 0) + 1

    def take(self, digest: int, now: float) -> bool:
        """Return whether a message that comes now has been acknowledged; once for each acknowledgement."""
        if not self._counts:
            return False
        self._expire(now)
        if digest not in self._counts:
            return False
        self._order.remove(next(each for each in self._order if each[1] == digest))
        self._uncount(digest)
        return True

    def _expire(self, now: float) -> None:
        while self._order and self._order[0][0] < now - self._seconds:
            self._uncount(self._order.popleft()[1])

    def _uncount(self, digest: int) -> None:
        self._counts[digest] -= 1
        if not self._counts[digest]:
            del self._counts[digest]


class LastIds:
    """The last id of each topic of raw messages, of the last ``MAX_TOPICS`` at least."""

    def __init__(self) -> None:
        self._new: dict[str, str] = {}
        self._old: dict[str, str] = {}

    def note(self, acknowledged: Acknowledgement) -> None:
        self._new.update(zip(acknowledged.topics, acknowledged.ids, strict=True))
        if len(self._new) > MAX_TOPICS:
            self._old, self._new = self._new, {}

    def __iter__(self) -> Iterator[tuple[str, Position]]:
        for topic, id_ in {**self._old, **self._new}.items():
            with suppress(ValueError):  # it was not kept
                yield topic, Position.parse(id_)


class Standby:
    """
    Raw messages of a shard, and what was acknowledged of them.

    Attributes:
        ids: The last ids, also of what this listener had stamped itself.
        early: What was acknowledged before it was read.
        overtaken: Messages given up because a later one of their topic was acknowledged: the holder has not
            received them, or has refused them. Taken by whoever logs them.
        expired: Messages given up because nobody has acknowledged them in ``MAX_AGE`` seconds; likewise.
        refused: How many messages found no room; likewise.

    """

    def __init__(self, *, early: float = 0.0, share: int = 1) -> None:
        """
        Remember nothing yet.

        Args:
            early: Seconds by which acknowledgements may come before their messages.
            share: ``MAX_BYTES`` is divided by this.

        """
        self._share = share
        self.ids = LastIds()
        self.early = Early(early)
        self.overtaken: list[Left] = []
        self.expired: list[Left] = []
        self.refused = 0
        self._items: list[tuple[float, int, bytes, bytes | Entry]] = []
        self._digests: list[int] = []
        self._bytes = 0
        self._fresh: list[tuple[float, int, bytes, bytes]] = []
        self._fresh_bytes = 0
        self._limit = MAX_UNSETTLED
        self._acknowledged: list[tuple[int, float, bytes]] = []
        """Of each acknowledgement: how many fresh messages were read before it, when it came, and itself."""

    def __len__(self) -> int:
        """Return how many messages were not acknowledged when it was last settled."""
        return len(self._items)

    def add(self, channel: bytes, data: bytes, now: float) -> None:
        """Put a raw message aside."""
        size = len(data) + ENTRY_BYTES
        self._fresh.append((now, size, channel, data))
        self._fresh_bytes += size
        if self._fresh_bytes > self._limit:
            self.settle(now)

    def acknowledge(self, data: bytes, now: float) -> None:
        """Put an acknowledgement aside."""
        self._acknowledged.append((len(self._fresh), now, data))
        self._fresh_bytes += len(data)
        if self._fresh_bytes > self._limit:
            self.settle(now)

    def put_back(self, entries: list[Entry], now: float) -> None:
        """Remember what this listener was to stamp: it was read before all that is remembered."""
        self.settle(now)
        self._items[:0] = [
            (entry.at, len(entry.tail) + ENTRY_BYTES, entry.topic.channel.encode(), entry) for entry in entries
        ]
        self._digests[:0] = [entry.digest for entry in entries]
        self._bytes += sum([each[1] for each in self._items[: len(entries)]])

    def settle(self, now: float) -> None:
        """Look at what was put aside."""
        known, fresh = len(self._items), self._fresh
        items, digests = self._items, self._digests
        items += fresh
        digests += [crc32(data, crc32(channel)) for _, _, channel, data in fresh]
        self._bytes += sum([each[1] for each in fresh])
        acknowledged = []
        for number, at, data in self._acknowledged:
            with suppress(ValueError):  # somebody else's
                told = read_acknowledgement(data)
                self.ids.note(told)
                acknowledged.append((known + number, at, told.digests))
        self._fresh, self._acknowledged, self._fresh_bytes = [], [], 0
        # Nearly always the holder has read the same in the same order.
        done = struck = 0
        for read, _, told_digests in acknowledged:
            end = done + len(told_digests)
            if end > read or digests[done:end] != told_digests:
                break
            done, struck = end, struck + 1
        self._bytes -= sum([each[1] for each in items[:done]])
        del items[:done], digests[:done]
        if struck < len(acknowledged) or self.early:
            self._settle_in_any_order([(read - done, at, told) for read, at, told in acknowledged[struck:]])
        self._bound(now)
        self._limit = MAX_UNSETTLED + len(self._items) * AGAIN

    def _settle_in_any_order(self, acknowledged: list[tuple[int, float, list[int]]]) -> None:
        """Strike off each message that was acknowledged after it was read, and give up those that were overtaken."""
        items, digests = self._items, self._digests
        waiting: dict[int, deque[int]] = {}
        gone: set[int] = set()
        last: dict[bytes, int] = {}
        looked_at = 0
        for read, at, told in [*acknowledged, (len(items), 0.0, [])]:
            for number in range(looked_at, read):
                if self.early.take(digests[number], items[number][0]):
                    gone.add(number)
                else:
                    waiting.setdefault(digests[number], deque()).append(number)
            looked_at = max(looked_at, read)
            for each in told:
                if numbers := waiting.get(each):
                    number = numbers.popleft()
                    gone.add(number)
                    channel = items[number][2]
                    last[channel] = max(number, last.get(channel, 0))
                else:
                    self.early.add(each, at)
        left = []
        for number, item in enumerate(items):
            if number not in gone:
                if number < last.get(item[2], 0):
                    self.overtaken.append(Left(*item, digests[number]))
                else:
                    left.append(number)
        self._items = [items[number] for number in left]
        self._digests = [digests[number] for number in left]
        self._bytes = sum([each[1] for each in self._items])

    def _bound(self, now: float) -> None:
        """Give up what is too old, and what has no room."""
        items = self._items
        old = next((number for number, item in enumerate(items) if item[0] >= now - MAX_AGE), None)
        self.expired += self._take_first(old)
        while self._bytes > MAX_BYTES // self._share:
            self._bytes -= items.pop()[1]
            self._digests.pop()
            self.refused += 1

    def take(self, now: float) -> list[Left]:
        """Return what nobody has acknowledged, in the order in which it was read, and forget it."""
        self.settle(now)
        return self._take_first(None)

    def _take_first(self, number: int | None) -> list[Left]:
        """Return the first messages, or all, and forget them."""
        items, digests = self._items[:number], self._digests[:number]
        del self._items[:number], self._digests[:number]
        self._bytes -= sum([each[1] for each in items])
        return [Left(*item, digest) for item, digest in zip(items, digests, strict=True)]
