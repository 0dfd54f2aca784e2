"""
What all sockets of an event loop share in order to miss nothing: reading histories and comparing
positions.

A socket notices by itself that a message is missing when a later one arrives. For a message that nothing
follows, positions are compared with the histories at intervals: those of topics that may have had a message since
(``history/changes.py``), those in doubt, and each now and then. So ten thousand quiet topics cost as little as one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Set
from math import inf
from typing import Final

from ..aio import PerLoop
from ..broker.clients import FAILURES
from ..conf import settings
from ..history import get_store
from ..history.changes import Changes, place_of
from ..history.position import Page, Position, Where
from ..logs import describe
from ..metrics import count
from ..tasks import Supervised, new_task
from ..topics import Topic
from .cursor import Cursor, State

logger = logging.getLogger(__name__)

TICK: Final = 0.5
"""Seconds between two checks of what is due."""
AFTER_JOIN: Final = 2.0
"""Seconds after joining at which a topic is compared: layers that do not wait for Redis may have missed what
was published meanwhile."""
COMPARISONS_IN_A_LIFE: Final = 3
"""Minimum number of comparisons within the time that a history outlives its last message."""
AT_LATEST: Final = 300.0
"""Seconds after which a topic is compared although nothing seems to have changed: a bound for what shows in no mark,
because somebody has written there by hand, or a process of an older version has stamped. At 10,000 topics this takes a
thousandth of a core."""
AFTER_FAILURE: Final = 2.0
"""Seconds after which a comparison that Redis did not answer is repeated."""
TOPICS_PER_LOOK: Final = 500
"""Topics compared by one script call, which blocks Redis for about 2 ms."""
MAX_READS: Final = 4
"""Concurrent reads of histories; each may return ``PAGE_BYTES``."""

Behind = Callable[[Cursor, bool], None]
"""What to call when a cursor has fallen behind, and whether what it lacks may still be on its way."""


class Watched:
    """
    A topic that sockets have joined.

    Attributes:
        shard: Its shard.
        bucket: Its bucket in ``history/changes.py``.
        cursors: Their cursors, and what to call when one has fallen behind.
        interval: Seconds within which a message that was lost has to be found.
        trusted: Seconds after a comparison for which nothing is in doubt as long as nothing changes.
        joined: When the last one joined.
        due: When it is next compared although nothing has changed.

    """

    __slots__ = ("bucket", "cursors", "due", "interval", "joined", "shard", "trusted")

    def __init__(self, topic: Topic) -> None:
        self.shard = topic.shard
        self.bucket = place_of(str(topic), settings.SHARDS).bucket
        self.cursors: dict[Cursor, Behind] = {}
        self.interval = self.trusted = self.joined = self.due = 0.0


class Looks:
    """
    Questions for the positions of one shard's topics.

    When a thousand browsers come back at once, their requests are batched instead of waiting for connections: those
    that arrive while an answer is pending go into the next query.
    """

    def __init__(self) -> None:
        self._questions: list[tuple[Topic, asyncio.Future[Where]]] = []
        self._answering: asyncio.Task[None] | None = None
        self._waiting = 0

    async def ask(self, topic: Topic) -> Where:
        answer: asyncio.Future[Where] = asyncio.get_running_loop().create_future()
        self._questions.append((topic, answer))
        if self._answering is None:
            self._answering = new_task(self._answer())
        self._waiting += 1
        try:
            return await answer
        finally:
            self._waiting -= 1
            if not self._waiting and self._answering is not None:
                self._answering.cancel()  # the callers have gone
                self._answering = None
                self._questions.clear()

    async def _answer(self) -> None:
        try:
            while self._questions:
                asked = self._questions[:TOPICS_PER_LOOK]
                del self._questions[:TOPICS_PER_LOOK]
                try:
                    found = await get_store().look([topic for topic, _ in asked])
                except Exception as error:  # noqa: BLE001  the callers get it
                    for _, answer in asked:
                        if not answer.done():
                            answer.set_exception(error)
                else:
                    for (_, answer), where in zip(asked, found, strict=True):
                        if not answer.done():
                            answer.set_result(where)
        finally:
            if self._answering is asyncio.current_task():
                self._answering = None


class Reconciler:
    """
    Knows the cursors of all sockets of one event loop, and notifies those that have fallen behind.

    Its task runs while there are any.
    """

    def __init__(self) -> None:
        self._topics: dict[Topic, Watched] = {}
        self._soon: dict[Topic, float] = {}
        """Which topics are compared before the next look for changes, and when."""
        self._seen: dict[int, Changes] = {}
        """By shard: all its topics are level with these, or due."""
        self._next = inf
        """When to look for changes next."""
        self._stood: dict[Cursor, Position] = {}
        self._reads: dict[tuple[Topic, Position | None], asyncio.Task[Page]] = {}
        self._owned: set[asyncio.Task[Page]] = set()
        self._free = asyncio.Semaphore(MAX_READS)
        self._comparing = Supervised("reconciler", self._run)
        self._looks: dict[int, Looks] = {}
        """By shard: each may be on a server of its own, which may be away."""

    def add(self, cursor: Cursor, behind: Behind, interval: float) -> None:
        """
        Compare this cursor, and call ``behind`` when the history has newer messages: within ``interval`` seconds.

        It is called when two comparisons, a tick apart, find the cursor behind and at the same position: then what it
        lacks may still be on its way, on a busy host. After ``hurry`` one comparison is enough, and nothing is.
        """
        now = asyncio.get_running_loop().time()
        if (watched := self._topics.get(cursor.topic)) is None:
            watched = self._topics[cursor.topic] = Watched(cursor.topic)
        watched.cursors[cursor] = behind
        # Well within the life of a history: what came and expired between two comparisons would go unnoticed.
        well_within = cursor.ttl / COMPARISONS_IN_A_LIFE
        watched.interval = min(interval, well_within)
        watched.trusted = min(AT_LATEST, well_within) - watched.interval
        watched.joined = now
        self._soon.setdefault(cursor.topic, now + AFTER_JOIN)  # others may join all the time and must not put it off
        self._next = min(self._next, _at_next(now, watched.interval))
        self._comparing.start()

    def remove(self, cursor: Cursor) -> None:
        self._stood.pop(cursor, None)
        if (watched := self._topics.get(cursor.topic)) is not None:
            watched.cursors.pop(cursor, None)
            if not watched.cursors:
                del self._topics[cursor.topic]
                self._soon.pop(cursor.topic, None)
        if not self._topics:
            self._comparing.stop()
            self._next = inf

    def hurry(self, topic: Topic) -> None:
        """Compare a topic's cursors at the next tick, and at once consider lost what they do not have."""
        if topic in self._topics:
            self._soon[topic] = 0.0

    async def look(self, topic: Topic) -> Where:
        """Return the position of a topic's history, read no earlier than this call."""
        looks = self._looks.get(topic.shard)
        if looks is None:
            looks = self._looks[topic.shard] = Looks()
        return await looks.ask(topic)

    async def read(self, topic: Topic, after: Position | None) -> Page:
        """
        Read what follows a position, or the latest message alone; see ``Store.read``.

        A thousand sockets that miss the same message share one read, as long as it has not been sent; it
        belongs to the process, so that none of them can cancel it for the others.
        """
        key = topic, after
        task = self._reads.get(key)
        if task is None:
            task = self._reads[key] = new_task(self._read(key))
            self._owned.add(task)
            task.add_done_callback(self._read_done)
        return await asyncio.shield(task)

    async def _read(self, key: tuple[Topic, Position | None]) -> Page:
        async with self._free:
            del self._reads[key]  # from here on it may be too old for a new caller
            return await get_store().read(*key)

    def _read_done(self, task: asyncio.Task[Page]) -> None:
        self._owned.discard(task)
        if not task.cancelled():
            task.exception()  # callers that still wait get it; it needs no log line

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(TICK)
            now = loop.time()
            due = {topic for topic, at in self._soon.items() if at <= now}
            if now >= self._next:
                due |= await self._find_changed(now)
            by_shard: dict[int, list[Topic]] = {}  # each may be on a server of its own, which may be away
            for topic in due:
                by_shard.setdefault(topic.shard, []).append(topic)
            await asyncio.gather(*map(self._compare_all, by_shard.values()))

    async def _compare_all(self, topics: list[Topic]) -> None:
        for begin in range(0, len(topics), TOPICS_PER_LOOK):
            try:
                await self._compare(topics[begin : begin + TOPICS_PER_LOOK])
            except Exception:
                logger.exception("the comparison of positions failed")  # and continue: all sockets depend on it

    async def _find_changed(self, now: float) -> set[Topic]:
        """Find the topics that may have had a message since the last time, and those that are in doubt."""
        self._next = now + AFTER_FAILURE
        moved: dict[int, Set[int] | None] = {}
        shards = {watched.shard for watched in self._topics.values()}

        async def look(shard: int) -> None:
            try:
                changes = await get_store().changes(shard)
            except FAILURES as error:
                logger.debug("could not look for changes: %s", describe(error))
            else:
                moved[shard] = changes.since(self._seen.get(shard))
                self._seen[shard] = changes

        await asyncio.gather(*map(look, shards))
        if moved.keys() == shards:
            self._next = _at_next(now, min((watched.interval for watched in self._topics.values()), default=inf))
        changed = set()
        for topic, watched in self._topics.items():
            if watched.shard in moved:
                buckets = moved[watched.shard]
                if buckets is None or watched.bucket in buckets:
                    watched.due = 0.0  # until it has been compared, whatever happens meanwhile
                if watched.due <= now:
                    changed.add(topic)
        return changed

    async def _compare(self, topics: list[Topic]) -> None:
        now = asyncio.get_running_loop().time
        topics = [topic for topic in topics if topic in self._topics]
        hurried = {topic for topic in topics if self._soon.pop(topic, inf) == 0}
        for topic in topics:
            # Before the query: a comparison that is requested in the meantime must not be lost.
            watched = self._topics[topic]
            watched.due = 0.0
            if (joined := watched.joined + AFTER_JOIN) > now():
                self._soon[topic] = joined
        try:
            found = await get_store().look(topics)
        except FAILURES as error:
            logger.debug("could not compare positions: %s", describe(error))
            again = now() + AFTER_FAILURE
            for topic in topics:
                if topic in self._topics:
                    self._soon[topic] = min(self._soon.get(topic, inf), again)
            return
        for topic, where in zip(topics, found, strict=True):
            if topic not in self._topics:
                continue
            watched, is_level = self._topics[topic], True
            for cursor in list(watched.cursors):  # not pairs: that many new objects would trigger Python's collector
                has_newer, is_live = cursor.compare(where, now()), cursor.state is State.LIVE
                is_level = is_level and is_live and not has_newer
                if not has_newer or not is_live or cursor not in watched.cursors:
                    self._stood.pop(cursor, None)
                elif topic in hurried or self._stood.get(cursor) == cursor.position:
                    self._stood.pop(cursor, None)
                    count("reconciled")
                    watched.cursors[cursor](cursor, topic not in hurried)
                else:
                    # Most that are behind are so because something is on its way: they have a tick before anything
                    # is done about it.
                    self._stood[cursor] = cursor.position
                    self._soon[topic] = min(self._soon.get(topic, inf), now())
            if is_level:
                watched.due = now() + watched.trusted


def _at_next(now: float, interval: float) -> float:
    """Return when to look for changes again: a tick early because ticks are late, and one more to confirm a find."""
    return now + interval - 2 * TICK


reconciler = PerLoop(Reconciler)
