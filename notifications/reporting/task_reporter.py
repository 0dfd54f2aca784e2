"""Reporting from a task of the event loop beside a job that is a coroutine."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import TypeVar

from .. import publisher
from ..aio import Timeout
from ..history import get_store
from ..history.shares import OVER, Report, Share, Standing
from ..history.store import OvertakenError
from ..messages import JobProgress, Message
from ..tasks import new_task
from ..topics import Topic
from .reporter import FIRST_LOOK, LAST_RETRY, LOOK, Ending, Newest, Reporter, standing_message, wait_for_turn, waiting
from .sharing import whole

logger = logging.getLogger(__name__)

T = TypeVar("T")


class TaskReporter(Reporter):
    """A reporter in a task of the running event loop. The task ends with the job, or after its next turn."""

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
            with suppress(TimeoutError):
                async with Timeout(self.patience):
                    await asyncio.wait([self._task, self._free], return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not self._free.done():
                self._task.cancel()

    async def wait_for_look(self) -> None:
        """Wait until it was looked for the first time whether the job is cancelled, within its patience."""
        if self._looked.is_set() or self.muted:
            return
        started = self.clock()
        try:
            async with Timeout(FIRST_LOOK):
                await self._looked.wait()
        except TimeoutError:
            self._looked.set()  # nobody waits again
        self.patience -= min(self.clock() - started, FIRST_LOOK)  # not the time for which the loop was blocked

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
        if self._share is None and last.message.payload.state in OVER:
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
                await asyncio.sleep(wait_for_turn(standing, self._interval))
            finally:
                question = self._question(share, last.message)
            standing = None if question is None else await self._reported(question)
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
