"""
Publishing a job's progress beside the job, which never waits for Redis except at its end.

A job changes numbers and goes on. A thread of its own, or in an event loop a task, publishes the newest of them: the
first and the last message at once, between them ``PROGRESS_RATE`` a second, and only when something has changed. What
changes last before a pause is published as well, because the thread waits for its turn and not the job. In a long pause
the newest message is published again, three times in ``PROGRESS_STALE`` seconds: so whoever hears nothing for that
long knows that the process is gone. A job that nobody holds any more is not ended, but this stops.

If Redis is away, the newest message is tried once a second, by the thread. The end of a job waits for the last message,
``PATIENCE`` seconds at most: that is all that a dead Redis, or one that hangs, costs a job.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from contextvars import copy_context
from typing import Final, NamedTuple
from weakref import WeakMethod

from django.db import connections

from .. import publisher
from ..broker import clients
from ..conf import settings
from ..history import get_store
from ..logs import describe, outages
from ..messages import Message
from ..tasks import new_task
from ..topics import Topic

Newest = Callable[[bool], Message | None]
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


class Last(NamedTuple):
    """A message that ends a job, and its key: it is sent again if it is not known to have arrived."""

    topic: Topic
    message: Message
    key: str


class Reporter:
    """
    What is due, and when. The subclasses do it.

    Attributes:
        cancelled: Whether somebody has asked to cancel the job, as far as is known.
        clock: Tells the time to the job as well, in seconds.
        patience: Seconds that the job still may wait for Redis.
        muted: This is a copy in a forked process: the job is the parent's.

    """

    def __init__(self, topic: Topic, newest: Newest, clock: Callable[[], float]) -> None:
        """
        Prepare; nothing runs before ``start``.

        Args:
            topic: The job's.
            newest: A bound method, called in the thread or task that publishes. What it is bound to is not kept alive:
                a job that was dropped and not ended must not tell for ever that it runs.
            clock: As above.

        """
        self.cancelled = self.muted = False
        self.patience = PATIENCE
        self._topic = topic
        self._newest = WeakMethod(newest)
        self.clock = clock
        self._interval = 1 / settings.PROGRESS_RATE
        self._silence = max(self._interval, settings.PROGRESS_STALE / 3)
        self._beat_at = clock() + self._silence
        self._changed = self._asked = self._reached = self._dropped = False
        self._publish_at = self._look_at = self._give_way_at = -math.inf
        self._last: Sequence[Last] | None = None
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
        due = [at for wanted, at in ((self._changed, self._publish_at), (self._asked, self._look_at)) if wanted]
        return max(0, min([self._beat_at, *due]) - self.clock())

    def _take(self) -> Message | None:
        """Return the newest message if one is due."""
        changed = self._changed and self.clock() >= self._publish_at
        if not changed and self.clock() < self._beat_at:
            return None
        if changed:
            self._changed = False  # first: what changes from now on is the next message's
        return self._message(again=not changed)

    def _message(self, *, again: bool) -> Message | None:
        self._beat_at = self.clock() + self._silence
        newest = self._newest()
        if newest is None:
            self._dropped = True
            return None
        return newest(again)

    def _published(self, error: Exception | None) -> bool:
        """Note how publishing has ended."""
        now = self.clock()
        self._beat_at = now + self._silence
        self._give_way_at = now + self._interval + OVERDUE
        if error is None:
            self._reached = True
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

    def __init__(self, topic: Topic, newest: Newest) -> None:
        super().__init__(topic, newest, time.monotonic)
        self._condition = threading.Condition()
        self._looked = threading.Event()
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

    def end(self, last: Sequence[Last]) -> None:
        """Publish what ends the job, and wait for it, within its patience."""
        if self._thread is None or self.muted:
            return
        with self._condition:
            self._last = last
            self._deadline = self.clock() + self.patience
            self._condition.notify()
        self._thread.join(max(0.0, self.patience))

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

    def _run(self, first: Message | None) -> None:
        try:
            if first is not None:
                self._publish(self._topic, first)
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
            connections.close_all()  # those that receivers of signals have opened in this thread

    def _turn(self) -> None:
        if (message := self._take()) is not None:
            self._publish(self._topic, message)
        if self._asked and self.clock() >= self._look_at:
            self._asked = False
            with suppress(Exception):  # a Redis that is away says nothing; publishing logs it
                self.cancelled = get_store().cancel_requested(self._topic)
            self._look_at = self.clock() + LOOK
            self._looked.set()

    def _end(self, last: Sequence[Last]) -> None:
        self._prepare_last()
        for topic, message, key in last:
            while not self._publish(topic, message, key):
                if self._gives_up():
                    return
                time.sleep(LAST_RETRY)
        with suppress(Exception):
            get_store().drop_cancel(self._topic)

    def _publish(self, topic: Topic, message: Message, key: str | None = None) -> bool:
        try:
            publisher.publish(topic, message, idempotency_key=key)
        except Exception as error:  # noqa: BLE001  whatever it is, the job goes on
            return self._published(error)
        return self._published(None)


class TaskReporter(Reporter):
    """A reporter in a task of the running event loop. The task ends with the job."""

    def __init__(self, topic: Topic, newest: Newest) -> None:
        self._loop = asyncio.get_running_loop()
        super().__init__(topic, newest, self._loop.time)
        self._thread = threading.get_ident()
        self._woken = asyncio.Event()
        self._looked = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Publish the first message, in the task."""
        self._task = new_task(self._run(self._message(again=False)), name=f"notifications: progress of {self._topic}")

    def leave(self, last: Sequence[Last]) -> None:
        """Publish what ends the job, without waiting for it."""
        self._deadline = self.clock() + self.patience
        self._last = last
        self._wake()

    async def end(self, last: Sequence[Last]) -> None:
        """Publish what ends the job, and wait for it, within its patience."""
        if self._task is None or self.muted:
            return
        self.leave(last)
        if self._task.done():  # it was cancelled together with the job, as all tasks are when a loop ends
            self._task = new_task(self._end(last))
        try:
            await asyncio.wait([self._task], timeout=self.patience)
        finally:
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

    async def _run(self, first: Message | None) -> None:
        try:
            if first is not None:
                await self._publish(self._topic, first)
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
            if self._last is not None and (left := self._deadline - self.clock()) > 0:
                with suppress(TimeoutError):
                    async with asyncio.timeout(left):
                        await self._end(self._last)
            raise
        except Exception:
            logger.exception("progress of %s is no longer published", self._topic)
        finally:
            self._looked.set()

    async def _turn(self) -> None:
        if (message := self._take()) is not None:
            await self._publish(self._topic, message)
        if self._asked and self.clock() >= self._look_at:
            self._asked = False
            with suppress(Exception):
                self.cancelled = await get_store().acancel_requested(self._topic)
            self._look_at = self.clock() + LOOK
            self._looked.set()

    async def _end(self, last: Sequence[Last]) -> None:
        self._prepare_last()
        for topic, message, key in last:
            while not await self._publish(topic, message, key):
                if self._gives_up():
                    return
                await asyncio.sleep(LAST_RETRY)
        with suppress(Exception):
            await get_store().adrop_cancel(self._topic)

    async def _publish(self, topic: Topic, message: Message, key: str | None = None) -> bool:
        try:
            await publisher.apublish(topic, message, idempotency_key=key)
        except Exception as error:  # noqa: BLE001  whatever it is, the job goes on
            return self._published(error)
        return self._published(None)
