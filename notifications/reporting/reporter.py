"""
Publishing a job's progress beside the job, which never waits for Redis except at its end.

A job changes numbers and goes on. A thread of its own, or in an event loop a task, publishes the newest of them: the
first and the last message at once, between them ``PROGRESS_RATE`` a second, and only when something has changed. What
changes last before a pause is published as well, because the thread waits for its turn and not the job. In a long pause
the newest message is published again, three times in ``PROGRESS_STALE`` seconds: so whoever hears nothing for that
long knows that the process is gone. A job that nobody holds any more is not ended, but this stops.

If Redis is away, the newest message is tried once a second, by the thread. The end of a job waits for the last message,
``PATIENCE`` seconds at most: that is all that a dead Redis, or one that hangs, costs a job.

If the job is shared, the thread reports its share to the store, and publishes how the whole job stands if it is its
turn. The end of a share waits until it is noted. Publishing that may have to wait for others, and the job goes on: the
thread stays for it, for one more turn, and one thread of a process for all shares of a job that have ended there.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import random
import secrets
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from typing import Any, Final, NamedTuple, TypeVar
from weakref import WeakMethod

from django.db import connections

from .. import publisher
from ..broker import clients
from ..conf import settings
from ..history import get_store
from ..history.shares import Report, Share, Standing
from ..history.store import OvertakenError
from ..logs import describe, outages
from ..messages import JobProgress, Message, Notice
from ..publisher import Prepared
from ..tasks import new_task
from ..topics import Topic
from .sharing import report_of, whole

T = TypeVar("T")
Newest = Callable[[bool], JobProgress | None]
"""A method that returns the message of this moment; None: there is nothing to tell. The argument says that nothing has
changed since the last one."""

logger = logging.getLogger(__name__)

PATIENCE: Final = 1.0
"""Seconds that a job waits for Redis in all."""
RETRY: Final = 1.0
"""Seconds between two attempts to publish while Redis is away."""
LAST_RETRY: Final = 0.2
"""Seconds between two attempts to publish the last message."""
FIRST_LOOK: Final = 0.25
"""Seconds of its patience that a job waits for the first look: it is worth less than the last message."""
LOOK: Final = 1.0
"""Seconds between two looks at whether a job is to be cancelled."""
OVERDUE: Final = 0.01
"""Seconds between two turns that a job gives to what publishes for it, while a message is overdue."""
TURN: Final = 0.001
"""Seconds of such a turn, where threads are greenlets and a job that computes keeps all others from running. With 0 the
hub of gevent does not get to its sockets: the first message took a second (measured)."""


class Ending(NamedTuple):
    """
    What is told of the end of a job, or of a share.

    Attributes:
        message: The last one of the job; of the share alone, if there are others.
        key: Under which it is sent again if it is not known to have arrived.
        user: The topic of a user who gets a notice as well.
        title: Its title.

    """

    message: JobProgress
    key: str
    user: Topic | None = None
    title: str = ""

    def notice(self, told: JobProgress) -> Notice:
        """Return the notice of a job of which this was told last."""
        job = told.payload
        level: Any = {"succeeded": "success", "failed": "error"}.get(job.state, "warning")
        return Notice(title=self.title, level=level, body=job.error or job.message, url=job.url)


class Waiting:
    """
    The jobs of this process whose last report has still to be told, by a thread that is there for that alone.

    There is one thread for each job, however many of its shares have ended meanwhile.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: dict[Topic, int] = {}

    def add(self, topic: Topic, seen: int) -> bool:
        """Note what is to be told, and return whether the caller is to do it; otherwise another does already."""
        with self._lock:
            first = topic not in self._seen
            self._seen[topic] = max(seen, self._seen.get(topic, 0))
            return first

    def take(self, topic: Topic) -> int:
        """Return what is to be told; whoever comes after that needs a thread of their own."""
        with self._lock:
            return self._seen.pop(topic, 0)

    def forget(self) -> None:
        """Begin anew in a forked process, which has none of the threads."""
        self.__init__()  # type: ignore[misc]


waiting: Final = Waiting()


class Reporter:
    """
    What is due, and when. The subclasses do it.

    Attributes:
        cancelled: Whether somebody has asked to cancel the job, as far as is known.
        clock: Tells the time to the job as well, in seconds.
        patience: Seconds that the job still may wait for Redis.
        muted: This is a copy in a forked process: the job is the parent's.

    """

    def __init__(self, topic: Topic, share: Share | None, newest: Newest, clock: Callable[[], float]) -> None:
        """
        Prepare; nothing runs before ``start``.

        Args:
            topic: The job's.
            share: Of which this is told; None: of the whole job.
            newest: A bound method, called in the thread or task that publishes. What it is bound to is not kept alive:
                a job that was dropped and not ended must not tell for ever that it runs.
            clock: As above.

        """
        self.cancelled = self.muted = False
        self.patience = PATIENCE
        self._topic = topic
        self._share, self._attempt = share, secrets.token_hex(4)
        self._seen = 0
        self._untold = self._quiet = False
        self._newest = WeakMethod(newest)
        self.clock = clock
        self._interval = 1 / settings.PROGRESS_RATE
        self._silence = max(self._interval, settings.PROGRESS_STALE / 3)
        self._beat_at = clock() + self._silence
        self._changed = self._asked = self._reached = self._dropped = False
        self._publish_at = self._look_at = self._give_way_at = -math.inf
        self._last: Ending | None = None
        self._deadline = math.inf

    def change(self) -> None:
        """Note that there is something new; cheap, from any thread."""
        if not self._changed:
            self._changed = True
            self._wake()
        elif self.clock() > self._give_way_at:
            self._give_way_at = self.clock() + OVERDUE
            self._give_way()

    def ask(self) -> None:
        """Note that the job wants to know whether it is cancelled."""
        if not self._asked:
            self._asked = True
            self._wake()

    def _wake(self) -> None:
        raise NotImplementedError

    def _give_way(self) -> None:
        """Let others run, if the job would not: see ``OVERDUE``."""

    def _over(self) -> bool:
        """Return whether nothing is to be told but the end, if there is one."""
        return self._last is not None or self._dropped

    def _wait(self) -> float:
        """Return the seconds until something is due, unless something changes before."""
        if self._last is not None:
            return 0
        telling = (self._changed or self._untold) and not self._quiet
        due = [at for wanted, at in ((telling, self._publish_at), (self._asked, self._look_at)) if wanted]
        return max(0, min([self._beat_at, *due]) - self.clock())

    def _take(self) -> tuple[JobProgress | None, bool]:
        """Return the newest message if one is due, and whether it is news."""
        now = self.clock()
        due = (self._changed or self._untold) and not self._quiet and now >= self._publish_at
        if not due and now < self._beat_at:
            return None, False
        news = due and self._changed
        if news:
            self._changed = False  # first: what changes from now on is the next message's
        message = self._message(again=not news)
        return None if self._quiet else message, news

    def _message(self, *, again: bool) -> JobProgress | None:
        self._beat_at = self.clock() + self._silence
        newest = self._newest()
        if newest is None:
            self._dropped = True
            return None
        return newest(again)

    def _report(self, message: JobProgress, *, news: bool) -> Report:
        """Return what is reported of the share."""
        assert self._share is not None  # noqa: S101  asked by those who know
        times = {"interval": self._interval, "silence": self._silence}
        return report_of(self._share, message.payload, self._attempt, news=news, seen=self._seen, **times)

    def _noted(self, standing: Standing) -> None:
        """Go by how the job stands after the report."""
        now = self.clock()
        self._reached = True
        self.cancelled = self.cancelled or standing.cancelled
        self._seen = standing.seen
        self._untold = not standing.over and standing.told < standing.seen
        self._publish_at = now + (_wait_for_turn(standing, self._interval) if self._untold else self._interval)
        self._give_way_at = self._publish_at + OVERDUE
        if standing.over or standing.counts != "yes":
            self._quiet = self._changed = True  # what changes from now on is nothing to report
            self._give_way_at = math.inf
        if standing.counts == "many":
            logger.warning("%s has more shares than it says: one is not counted", self._topic)

    def _question(self, share: Share, message: JobProgress) -> Report:
        """Return a report that says nothing of the share, which another may do meanwhile, to ask for a turn."""
        asked = self._report(message, news=False)
        return asked._replace(share=share._replace(key="", needed=False), state="waiting", done=0, error="")

    def _notice_key(self, ending: Ending) -> str:
        """Return the key of a notice: for all who tell the end of one run the same."""
        if self._share is None:
            return f"progress-notice-{ending.key}"
        run = hashlib.sha256(f"{self._topic} {self._share.run}".encode()).hexdigest()
        return f"progress-notice-{run}"

    def _published(self, error: Exception | None) -> bool:
        """Note how publishing has ended."""
        now = self.clock()
        self._beat_at = now + self._silence
        self._give_way_at = now + self._interval + OVERDUE
        if error is None:
            self._reached, self._untold = True, False
            self._publish_at = now + self._interval
            return True
        self._changed = True
        self._publish_at = now + max(self._interval, RETRY)
        if times := outages.due("progress"):
            logger.warning("progress cannot be published (%s, %d time(s)); jobs go on", describe(error), times)
        return False

    def _prepare_last(self) -> None:
        """Ask a Redis once more that did not answer just now, if it did before: it may be back."""
        if self._reached:
            clients.breaker.try_again()

    def _gives_up(self) -> bool:
        """Return whether the last message is not tried again: no time is left, or Redis was away all the time."""
        return not self._reached or self.clock() + LAST_RETRY > self._deadline


class ThreadReporter(Reporter):
    """A reporter in a thread, or in a greenlet where threads are greenlets. The thread ends with the job."""

    def __init__(self, topic: Topic, share: Share | None, newest: Newest) -> None:
        super().__init__(topic, share, newest, time.monotonic)
        self._condition = threading.Condition()
        self._looked, self._free = threading.Event(), threading.Event()
        self._stays = False
        self._thread: threading.Thread | None = None
        self._greenlets = time.sleep.__module__ != "time"  # patched by gevent or eventlet

    def start(self) -> None:
        """Publish the first message, in the thread."""
        first = self._message(again=False)
        # Receivers of signals find the context of the job there, such as its tenant.
        thread = threading.Thread(target=copy_context().run, args=(self._run, first), name="progress", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # there are too many, or the process is ending
            logger.warning("progress of %s is not published: %s", self._topic, error)
        else:
            self._thread = thread

    def end(self, last: Ending) -> None:
        """Publish what ends the job, and wait for it, within its patience; of a share, until its end is noted."""
        if self._thread is None or self.muted:
            return
        with self._condition:
            self._last = last
            self._deadline = self.clock() + self.patience
            self._condition.notify()
        self._free.wait(max(0.0, self.patience))
        if not self._stays:
            self._thread.join(max(0.0, self._deadline - self.clock()))

    def wait_for_look(self) -> None:
        """Wait until it was looked for the first time whether the job is cancelled, within its patience."""
        if self._thread is None or self.muted or self._looked.is_set():
            return
        started = self.clock()
        if not self._looked.wait(FIRST_LOOK):
            self._looked.set()  # nobody waits again
        self.patience -= self.clock() - started

    def mute(self) -> None:
        """Say nothing in this process, which was forked: the thread is the parent's. Its locks may be held for ever."""
        self.muted = True
        self._condition = threading.Condition()

    def _wake(self) -> None:
        with self._condition:
            self._condition.notify()

    def _give_way(self) -> None:
        if self._greenlets:
            time.sleep(TURN)

    def _run(self, first: JobProgress | None) -> None:
        try:
            if first is not None:
                self._tell(first, news=True)
            while not self._over():
                with self._condition:
                    while (wait := self._wait()) != 0:
                        self._condition.wait(wait)
                if self._last is None:
                    self._turn()
            if self._last is not None:
                self._end(self._last)
        except Exception:
            logger.exception("progress of %s is no longer published", self._topic)
        finally:
            self._looked.set()
            self._free.set()
            connections.close_all()  # those that receivers of signals have opened in this thread

    def _turn(self) -> None:
        message, news = self._take()
        if message is not None:
            self._tell(message, news=news)
        if self._asked and self.clock() >= self._look_at:
            self._asked = False
            self._look()
            self._look_at = self.clock() + LOOK
            self._looked.set()

    def _look(self) -> None:
        if self._share is None:
            with suppress(Exception):  # a Redis that is away says nothing; publishing logs it
                self.cancelled = get_store().cancel_requested(self._topic)
        elif not self._quiet and (message := self._message(again=True)) is not None:
            self._tell(message, news=False)

    def _end(self, last: Ending) -> None:
        self._prepare_last()
        told: JobProgress | None = last.message
        if self._share is not None:
            told = self._end_share(self._share, last)
        elif not self._insist(partial(self._publish, self._topic, last.message, last.key)):
            return
        if told is None:
            return
        if last.user is not None:
            key = self._notice_key(last)
            if not self._insist(partial(self._publish, last.user, last.notice(told), key)):
                return
        if self._share is None:
            with suppress(Exception):
                get_store().drop_cancel(self._topic)

    def _end_share(self, share: Share, last: Ending) -> JobProgress | None:
        """Report the end of the share; return what was told last of the job, if it has ended with it."""
        standing = self._insist(partial(self._reported, self._report(last.message, news=True)))
        if standing is None or standing.counts != "yes":
            return None
        publish = partial(self._publish_standing, last.message, standing)
        if standing.over:
            told = whole(last.message.payload, standing)
            return told if standing.turn and self._insist(publish) else None
        self._stays = True
        self._free.set()
        if standing.turn:
            publish()
        elif self._untold and waiting.add(self._topic, self._seen):
            time.sleep(_wait_for_turn(standing, self._interval))
            self._seen = waiting.take(self._topic)
            standing = self._reported(self._question(share, last.message))
            if standing is not None and standing.turn:
                self._publish_standing(last.message, standing)
        return None

    def _insist(self, attempt: Callable[[], T]) -> T:
        """Try until it works, or the job has waited long enough."""
        while True:
            if (done := attempt()) or self._gives_up():
                return done
            time.sleep(LAST_RETRY)

    def _tell(self, message: JobProgress, *, news: bool) -> None:
        if self._share is None:
            self._publish(self._topic, message)
        elif (standing := self._reported(self._report(message, news=news))) is not None and standing.turn:
            self._publish_standing(message, standing)

    def _reported(self, report: Report) -> Standing | None:
        try:
            standing = get_store().report_share(self._topic, report)
        except Exception as error:  # noqa: BLE001  whatever it is, the job goes on
            self._published(error)
            return None
        self._noted(standing)
        return standing

    def _publish_standing(self, message: JobProgress, standing: Standing) -> bool:
        try:
            publisher.send(standing_message(self._topic, message, standing))
        except OvertakenError:
            pass  # by a message with all that this one tells
        except Exception as error:  # noqa: BLE001  whatever it is, the job goes on
            return self._published(error)
        return self._published(None)

    def _publish(self, topic: Topic, message: Message, key: str | None = None) -> bool:
        try:
            publisher.publish(topic, message, idempotency_key=key)
        except Exception as error:  # noqa: BLE001  whatever it is, the job goes on
            return self._published(error)
        return self._published(None)


class TaskReporter(Reporter):
    """A reporter in a task of the running event loop. The task ends with the job."""

    def __init__(self, topic: Topic, share: Share | None, newest: Newest) -> None:
        self._loop = asyncio.get_running_loop()
        super().__init__(topic, share, newest, self._loop.time)
        self._free: asyncio.Future[None] = self._loop.create_future()
        self._thread = threading.get_ident()
        self._woken = asyncio.Event()
        self._looked = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Publish the first message, in the task."""
        self._task = new_task(self._run(self._message(again=False)), name=f"notifications: progress of {self._topic}")

    def leave(self, last: Ending) -> None:
        """Publish what ends the job, without waiting for it."""
        self._deadline = self.clock() + self.patience
        self._last = last
        self._wake()

    async def end(self, last: Ending) -> None:
        """Publish what ends the job, and wait for it, within its patience; of a share, until its end is noted."""
        if self._task is None or self.muted:
            return
        self.leave(last)
        if self._task.done():  # it was cancelled together with the job, as all tasks are when a loop ends
            self._task = new_task(self._end(last))
        try:
            await asyncio.wait([self._task, self._free], timeout=self.patience, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not self._free.done():
                self._task.cancel()

    async def wait_for_look(self) -> None:
        """Wait until it was looked for the first time whether the job is cancelled, within its patience."""
        if self._looked.is_set() or self.muted:
            return
        started = self.clock()
        try:
            async with asyncio.timeout(FIRST_LOOK):
                await self._looked.wait()
        except TimeoutError:
            self._looked.set()  # nobody waits again
        self.patience -= self.clock() - started

    def mute(self) -> None:
        """Say nothing in this process, which was forked: the event loop is the parent's."""
        self.muted = True

    def _wake(self) -> None:
        if threading.get_ident() == self._thread:
            self._woken.set()
        elif not self.muted:
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._woken.set)

    async def _run(self, first: JobProgress | None) -> None:
        try:
            if first is not None:
                await self._tell(first, news=True)
            while not self._over():
                if (wait := self._wait()) != 0:
                    with suppress(TimeoutError):
                        async with asyncio.timeout(wait):
                            await self._woken.wait()
                    self._woken.clear()
                else:
                    await self._turn()
            if self._last is not None:
                await self._end(self._last)
        except asyncio.CancelledError:
            if self._last is not None and not self._free.done() and (left := self._deadline - self.clock()) > 0:
                with suppress(TimeoutError):
                    async with asyncio.timeout(left):
                        await self._end(self._last)
            raise
        except Exception:
            logger.exception("progress of %s is no longer published", self._topic)
        finally:
            self._looked.set()

    async def _turn(self) -> None:
        message, news = self._take()
        if message is not None:
            await self._tell(message, news=news)
        if self._asked and self.clock() >= self._look_at:
            self._asked = False
            await self._look()
            self._look_at = self.clock() + LOOK
            self._looked.set()

    async def _look(self) -> None:
        if self._share is None:
            with suppress(Exception):
                self.cancelled = await get_store().acancel_requested(self._topic)
        elif not self._quiet and (message := self._message(again=True)) is not None:
            await self._tell(message, news=False)

    async def _end(self, last: Ending) -> None:
        self._prepare_last()
        told: JobProgress | None = last.message
        if self._share is not None:
            told = await self._end_share(self._share, last)
        elif not await self._insist(partial(self._publish, self._topic, last.message, last.key)):
            return
        if told is None:
            return
        if last.user is not None:
            key = self._notice_key(last)
            if not await self._insist(partial(self._publish, last.user, last.notice(told), key)):
                return
        if self._share is None:
            with suppress(Exception):
                await get_store().adrop_cancel(self._topic)

    async def _end_share(self, share: Share, last: Ending) -> JobProgress | None:
        """Report the end of the share; return what was told last of the job, if it has ended with it."""
        standing = await self._insist(partial(self._reported, self._report(last.message, news=True)))
        if standing is None or standing.counts != "yes":
            return None
        publish = partial(self._publish_standing, last.message, standing)
        if standing.over:
            told = whole(last.message.payload, standing)
            return told if standing.turn and await self._insist(publish) else None
        self._free.set_result(None)
        if standing.turn:
            await publish()
        elif self._untold and waiting.add(self._topic, self._seen):
            try:
                await asyncio.sleep(_wait_for_turn(standing, self._interval))
            finally:
                self._seen = waiting.take(self._topic)
            standing = await self._reported(self._question(share, last.message))
            if standing is not None and standing.turn:
                await self._publish_standing(last.message, standing)
        return None

    async def _insist(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """Try until it works, or the job has waited long enough."""
        while True:
            if (done := await attempt()) or self._gives_up():
                return done
            await asyncio.sleep(LAST_RETRY)

    async def _tell(self, message: JobProgress, *, news: bool) -> None:
        if self._share is None:
            await self._publish(self._topic, message)
        elif (standing := await self._reported(self._report(message, news=news))) is not None and standing.turn:
            await self._publish_standing(message, standing)

    async def _reported(self, report: Report) -> Standing | None:
        try:
            standing = await get_store().areport_share(self._topic, report)
        except Exception as error:  # noqa: BLE001  whatever it is, the job goes on
            self._published(error)
            return None
        self._noted(standing)
        return standing

    async def _publish_standing(self, message: JobProgress, standing: Standing) -> bool:
        try:
            await publisher.asend(standing_message(self._topic, message, standing))
        except OvertakenError:
            pass  # by a message with all that this one tells
        except Exception as error:  # noqa: BLE001  whatever it is, the job goes on
            return self._published(error)
        return self._published(None)

    async def _publish(self, topic: Topic, message: Message, key: str | None = None) -> bool:
        try:
            await publisher.apublish(topic, message, idempotency_key=key)
        except Exception as error:  # noqa: BLE001  whatever it is, the job goes on
            return self._published(error)
        return self._published(None)


def standing_message(topic: Topic, own: JobProgress, standing: Standing) -> Prepared:
    """Prepare the message of how the job stands; it is refused by the store if a later one went out before."""
    return publisher.prepare(topic, whole(own.payload, standing))._replace(version=standing.version)


def _wait_for_turn(standing: Standing, interval: float) -> float:
    """Return the seconds until it is worth asking again. Not all at once: the first publishes for the others, too."""
    return standing.wait / 1000 + random.uniform(0, interval / 8)  # noqa: S311  no secret
