"""
What all sockets of an event loop share in order to miss nothing: reading histories and comparing
positions.

A socket notices by itself that a message is missing when a later one arrives. For a message that nothing
follows, the positions of all subscribed topics are compared with the histories at intervals.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from math import inf
from typing import Final

from ..aio import PerLoop
from ..broker.clients import FAILURES
from ..history import get_store
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
AFTER_FAILURE: Final = 2.0
"""Seconds after which a comparison that Redis did not answer is repeated."""
TOPICS_PER_LOOK: Final = 500
"""Topics compared by one script call, which blocks Redis for about 2 ms."""
MAX_READS: Final = 4
"""Concurrent reads of histories; each may return ``PAGE_BYTES``."""

Behind = Callable[[Cursor], None]


class Watched:
    """
    A topic that sockets have joined.

    Attributes:
        cursors: Their cursors, and what to call when one has fallen behind.
        interval: Seconds between two comparisons.
        joined: When the last one joined.
        due: When it is next compared.

    """

    __slots__ = ("cursors", "due", "interval", "joined")

    def __init__(self) -> None:
        self.cursors: dict[Cursor, Behind] = {}
        self.interval = self.joined = 0.0
        self.due = inf


class Reconciler:
    """
    Knows the cursors of all sockets of one event loop, and notifies those that have fallen behind.

    Its task runs while there are any.
    """

    def __init__(self) -> None:
        self._topics: dict[Topic, Watched] = {}
        self._stood: dict[Cursor, Position] = {}
        self._reads: dict[tuple[Topic, Position], asyncio.Task[Page]] = {}
        self._owned: set[asyncio.Task[Page]] = set()
        self._free = asyncio.Semaphore(MAX_READS)
        self._comparing = Supervised("reconciler", self._run)
        self._questions: list[tuple[Topic, asyncio.Future[Where]]] = []
        self._answering: asyncio.Task[None] | None = None
        self._waiting = 0

    def add(self, cursor: Cursor, behind: Behind, interval: float) -> None:
        """
        Compare this cursor, and call ``behind`` when the history has newer messages: within ``interval`` seconds.

        It is called when two comparisons, a tick apart, find the cursor behind and at the same position.
        """
        now = asyncio.get_running_loop().time()
        if (watched := self._topics.get(cursor.topic)) is None:
            watched = self._topics[cursor.topic] = Watched()
        watched.cursors[cursor] = behind
        # Well within the life of a history: what came and expired between two comparisons would go unnoticed.
        watched.interval = min(interval, cursor.ttl / COMPARISONS_IN_A_LIFE)
        watched.joined = now
        # Never later than before: others may join all the time.
        watched.due = min(watched.due, now + AFTER_JOIN)
        self._comparing.start()

    def remove(self, cursor: Cursor) -> None:
        self._stood.pop(cursor, None)
        if (watched := self._topics.get(cursor.topic)) is not None:
            watched.cursors.pop(cursor, None)
            if not watched.cursors:
                del self._topics[cursor.topic]
        if not self._topics:
            self._comparing.stop()

    def hurry(self, topic: Topic) -> None:
        """Compare a topic's cursors at the next tick, and at once consider lost what they do not have."""
        if (watched := self._topics.get(topic)) is not None:
            watched.due = 0.0

    async def look(self, topic: Topic) -> Where:
        """
        Return the position of a topic's history, read no earlier than this call.

        When a thousand browsers come back at once, their requests are batched instead of waiting for connections: those
        that arrive while an answer is pending go into the next query.
        """
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

    async def read(self, topic: Topic, after: Position) -> Page:
        """
        Read what follows a position.

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

    async def _read(self, key: tuple[Topic, Position]) -> Page:
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
            due = [topic for topic, watched in self._topics.items() if watched.due <= now]
            for begin in range(0, len(due), TOPICS_PER_LOOK):
                try:
                    await self._compare(due[begin : begin + TOPICS_PER_LOOK])
                except Exception:
                    logger.exception("the comparison of positions failed")  # and continue: all sockets depend on it

    async def _compare(self, topics: list[Topic]) -> None:
        now = asyncio.get_running_loop().time
        topics = [topic for topic in topics if topic in self._topics]
        hurried = {topic for topic in topics if not self._topics[topic].due}
        for watched in map(self._topics.__getitem__, topics):
            # Before the query: a comparison that is requested in the meantime must not be lost.
            joined = watched.joined + AFTER_JOIN
            again = now() + watched.interval - 2 * TICK  # a tick of lateness, and one to confirm
            watched.due = min(again, joined) if joined > now() else again
        try:
            found = await get_store().look(topics)
        except FAILURES as error:
            logger.debug("could not compare positions: %s", describe(error))
            for topic in topics:
                if topic in self._topics:
                    self._topics[topic].due = min(self._topics[topic].due, now() + AFTER_FAILURE)
            return
        for topic, where in zip(topics, found, strict=True):
            if topic not in self._topics:
                continue
            watched = self._topics[topic]
            for cursor in list(watched.cursors):  # not pairs: that many new objects would trigger Python's collector
                if not cursor.compare(where, now()) or cursor.state is not State.LIVE or cursor not in watched.cursors:
                    self._stood.pop(cursor, None)
                elif topic in hurried or self._stood.get(cursor) == cursor.position:
                    self._stood.pop(cursor, None)
                    count("reconciled")
                    watched.cursors[cursor](cursor)
                else:
                    # On a busy host it may still be on its way. Reading it now would overtake
                    # messages before it that have no id: those then came late and out of order
                    # (seen). So it has a tick to arrive.
                    self._stood[cursor] = cursor.position
                    watched.due = min(watched.due, now())


reconciler = PerLoop(Reconciler)
