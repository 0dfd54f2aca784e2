"""
Settling from the histories what a gap in a listener's subscription has left in doubt.

Messages that were read before the gap may have been stamped during it, by another listener.
Stamping them again would deliver them twice, and forgetting them would lose what a dead holder has
left. Everything that has been stamped is in a history.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from ..conf import settings
from ..history import get_store
from ..history.position import Position, Where
from ..history.stamped import Stamped, tail_of
from ..topics import Topic
from .backlog import Backlog

TOPICS_PER_LOOK: Final = 500
"""Topics that one script call reads."""


class Settlement:
    """
    One return after a gap: removes from the backlog what the histories have of it.

    Frames may arrive live while histories are read. Of equal messages each frame must remove one,
    once, whichever way it arrives.

    Attributes:
        given_up: How many messages were given up, because it cannot be determined whether they were
            stamped.
        overtaken: Whether a message that was read after the gap has been stamped.

    """

    def __init__(self, backlog: Backlog, seen: Mapping[str, Position]) -> None:
        """
        Prepare, before subscribing.

        Args:
            backlog: Holds what was read before the gap.
            seen: The last stamped id of each topic before the gap, as far as it is remembered.

        """
        self._backlog = backlog
        self._seen = dict(seen)
        self._live: dict[str, Position] = {}
        self._read: dict[str, Position] = {}
        self._over = self.overtaken = False
        self.given_up = 0

    def arrived(self, stamped: Stamped) -> bool:
        """Record a frame that arrives live; return whether it has yet to remove its message."""
        topic, position = stamped.topic, stamped.position
        if position is None:
            return True
        if not self._over:  # not needed later, and topics are many
            self._live.setdefault(topic, position)
        read = self._read.get(topic)
        return read is None or position.epoch != read.epoch or position.n > read.n

    async def settle(self, gap: float) -> None:
        """
        Remove what was stamped in the gap; may be called again after a failure.

        Args:
            gap: Its length in seconds.

        Raises:
            redis.RedisError, OSError, TimeoutError: Redis does not answer.

        """
        topics = self._backlog.kept_topics()
        for begin in range(0, len(topics), TOPICS_PER_LOOK):
            part = topics[begin : begin + TOPICS_PER_LOOK]
            for topic, where in zip(part, await get_store().look(part), strict=True):
                if not await self._settle_topic(topic, where, gap):
                    self.given_up += self._backlog.give_up(str(topic))
        self._over = True
        self._live.clear()

    async def _settle_topic(self, topic: Topic, where: Where, gap: float) -> bool:
        """Remove what was stamped on a topic; return False if its history is incomplete."""
        name, kind, last = str(topic), settings.kinds[topic.kind], where.last
        if not kind.HISTORY_SIZE or gap > kind.HISTORY_TTL:
            return False
        seen = self._seen.get(name)
        if last is None or last == seen:
            return True
        after = seen if seen is not None and seen.epoch == last.epoch else Position(last.epoch, 0)
        while True:
            try:
                page = await get_store().read(topic, after)
            except ValueError:  # somebody has written into it by hand
                return False
            follows = page.first is not None and page.first <= Position(after.epoch, after.n + 1)
            if not follows and name in self._seen:
                return False  # what followed has been trimmed, or has expired
            for position, text in page.frames:
                live = self._live.get(name)
                if live is not None and position.epoch == live.epoch and position.n >= live.n:
                    return True  # the rest arrives live
                frame = Stamped("r", name, position, text.encode())
                self._backlog.remove(name, tail_of(frame))
                self._seen[name] = self._read[name] = after = position
            if not page.frames or after == page.last:
                return True
