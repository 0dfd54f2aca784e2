"""How tasks are ended, and how those that all sockets depend on are kept running."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any, Final, TypeVar

from .aio import PerLoop
from .metrics import count

logger = logging.getLogger(__name__)

T = TypeVar("T")

RESTART_DELAY: Final = 1.0
"""Seconds after which a supervised task that has ended is restarted."""
FINISH: Final = 3.0
"""Seconds that a supervised task may take to end with its event loop, before it is cancelled repeatedly."""
CANCEL_INTERVAL: Final = 0.2
"""Seconds between two attempts to end a task."""
CANCEL_ATTEMPTS: Final = 25
"""Attempts to end a task; one that swallows this many cancellations is left alone."""


def new_task(
    work: Coroutine[Any, Any, T], *, context: Context | None = None, name: str | None = None
) -> asyncio.Task[T]:
    """
    Create a task that begins in the next iteration of the event loop, when its owner has stored it.

    An eager task factory, which a site may set from Python 3.12 on, runs the first step within ``create_task``. A task
    that ended in that step would report its end before its owner stores it as the running one.
    """
    return asyncio.Task(work, loop=asyncio.get_running_loop(), context=context, name=name)


class Supervised:
    """
    A task that all sockets of an event loop depend on: whatever ends it, it is restarted, counted and logged.

    It runs in an empty context, because what a middleware has stored in the context of the first socket, such as a
    language or a tenant, does not apply to the others.
    """

    def __init__(self, name: str, job: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """
        Create the task's supervisor; ``start`` starts the task.

        Args:
            name: For the log and the metrics.
            job: Runs until it is cancelled, or has nothing left to do.

        """
        self._name = name
        self._job = job
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._all: set[Supervised] = set()
        """Those of the event loop in which it runs."""

    def start(self, *, now: bool = False) -> None:
        """
        Start the task if it is not running.

        Args:
            now: Do not wait for a restart that is already due. ``asyncio.run`` cancels all tasks at its end, and one of
                them may still have something to send.

        """
        if now and self._task is not None and self._task.done():
            self._task = None  # its callback has not run yet
        if self._task is None and (now or self._timer is None):
            self._cancel_restart()
            self._task = new_task(self._job(), name=f"notifications: {self._name}", context=Context())
            self._task.add_done_callback(self._ended)
            self._all = _running()
            self._all.add(self)

    def stop(self) -> None:
        """Stop the task; no error if it is not running."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
        self._cancel_restart()
        self._all.discard(self)

    async def end(self, within: float) -> None:
        """
        Stop the task, and wait for its end.

        Args:
            within: Seconds that it may take to finish, before it is cancelled repeatedly.

        """
        task = self._task
        self.stop()
        if task is not None:
            await asyncio.wait([task], timeout=within)
            await ended(task)  # again, if necessary: code under redis-py can swallow a cancellation

    def _cancel_restart(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _ended(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if task is not self._task:
            return  # it was stopped
        self._task = None
        if error is None and not task.cancelled():
            self._all.discard(self)
            return  # it has nothing left to do
        # Later, because an event loop that ends cancels everything, and is gone by then.
        self._timer = task.get_loop().call_later(RESTART_DELAY, self._restart, error)

    def _restart(self, error: BaseException | None) -> None:
        self._timer = None
        restarted(self._name, error)
        self.start()


async def _end_all(running: set[Supervised]) -> None:
    """End those of an event loop that closes: whoever started them may not have been told."""
    await asyncio.gather(*(each.end(FINISH) for each in tuple(running)))


_running: PerLoop[set[Supervised]] = PerLoop(set, _end_all)


async def going_on(name: str, job: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """
    Run a job, and run it again if something it waited for was cancelled while it was not: counted and logged.

    In a ``TaskGroup`` such a task would disappear silently. Errors are raised.
    """
    task = asyncio.current_task()
    while True:
        try:
            return await job()
        except asyncio.CancelledError:
            if task is None or task.cancelling():
                raise
            await asyncio.sleep(RESTART_DELAY)
            restarted(name, None)


def restarted(name: str, error: BaseException | None) -> None:
    """Count and log that a task was restarted after it failed, was cancelled or came to an end."""
    count("task_restarted", name)
    logger.error("a task that others depend on ended (%s); restarted", name, exc_info=error)


async def ended(task: asyncio.Task[Any]) -> None:
    """
    Cancel a task until it has ended, and retrieve its exception.

    One cancellation is not enough: on Python 3.11 a ``wait_for`` under redis-py can swallow it, and a site's code may
    swallow any.
    """
    for _ in range(CANCEL_ATTEMPTS):
        if task.done():
            break
        task.cancel()
        await asyncio.wait([task], timeout=CANCEL_INTERVAL)
    if not task.done():
        logger.error("a task does not end: %s", task.get_name())
    elif not task.cancelled():
        task.exception()  # otherwise asyncio would log that it was never retrieved


async def carried_out(work: Coroutine[Any, Any, None], within: float, name: str) -> None:
    """
    Run a coroutine in a task of its own, which goes on however often the caller is cancelled.

    The event loop owns the task, which ends before the loop is closed.

    Args:
        work: What has to be done.
        within: Seconds that the caller waits for it.
        name: Names the task.

    """
    task, under_way = new_task(work, name=name), _carried_out()
    under_way.add(task)
    task.add_done_callback(under_way.discard)
    await asyncio.wait([task], timeout=within)


async def _wait_for(under_way: set[asyncio.Task[None]]) -> None:
    if under_way:
        await asyncio.wait(under_way)


_carried_out: PerLoop[set[asyncio.Task[None]]] = PerLoop(set, _wait_for)


async def in_context(context: Context | None, work: Coroutine[Any, Any, Any]) -> Any:
    """Await a coroutine in the given context, or in the current one if it is None, and return its result."""
    if context is None:
        return await work
    return await new_task(work, context=context)
