"""How our tasks end, and how those that all sockets depend on do not."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any, Final, TypeVar

from .metrics import count

logger = logging.getLogger(__name__)

T = TypeVar("T")

RESTART_DELAY: Final = 1.0
"""Seconds after which a supervised task that has ended is started again."""
CANCEL_INTERVAL: Final = 0.2
"""Seconds between two attempts to end a task."""
CANCEL_ATTEMPTS: Final = 25
"""Attempts to end a task; one that swallows as many is left alone."""


def new_task(
    work: Coroutine[Any, Any, T], *, context: Context | None = None, name: str | None = None
) -> asyncio.Task[T]:
    """
    Make a task that begins in the next turn of the event loop, when its owner knows it.

    An eager task factory, which a site may set from Python 3.12 on, makes the first step within ``create_task``: what
    is done in it would say that it has ended, and then be taken for what runs.
    """
    return asyncio.Task(work, loop=asyncio.get_running_loop(), context=context, name=name)


class Supervised:
    """
    A task that all sockets of an event loop depend on: whatever ends it, it is started again, counted and logged.

    It runs in an empty context: what a middleware has noted in that of the socket that came first, such as its language
    or its tenant, is nothing to the others.
    """

    def __init__(self, name: str, job: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """
        Prepare; ``start`` begins.

        Args:
            name: For the log and the metrics.
            job: Runs until it is cancelled, or has nothing to do any more.

        """
        self._name = name
        self._job = job
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def start(self, *, now: bool = False) -> None:
        """
        Begin, if it does not run.

        Args:
            now: Also if it has ended and is to be started again in a moment. ``asyncio.run`` cancels all tasks first,
                and one of them may still have something to send.

        """
        if now and self._task is not None and self._task.done():
            self._task = None  # nobody has told us yet
        if self._task is None and (now or self._timer is None):
            self._cancel_restart()
            self._task = new_task(self._job(), name=f"notifications: {self._name}", context=Context())
            self._task.add_done_callback(self._ended)

    def stop(self) -> None:
        """End it; no error if it does not run."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
        self._cancel_restart()

    async def end(self, within: float) -> None:
        """
        Stop it, and wait for its end.

        Args:
            within: Seconds that it may take to finish, before it is cancelled again and again.

        """
        task = self._task
        self.stop()
        if task is not None:
            await asyncio.wait([task], timeout=within)
            await ended(task)  # again, if it must be: what is under redis-py can swallow a cancellation

    def _cancel_restart(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _ended(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if task is not self._task:
            return  # we were told to stop
        self._task = None
        if error is None and not task.cancelled():
            return  # it has nothing to do any more
        # Later: an event loop that ends cancels everything, and is gone by then.
        self._timer = task.get_loop().call_later(RESTART_DELAY, self._restart, error)

    def _restart(self, error: BaseException | None) -> None:
        self._timer = None
        restarted(self._name, error)
        self.start()


async def going_on(name: str, job: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """
    Run a job, and run it again if something that it waited for was cancelled, and it was not: counted and logged.

    In a ``TaskGroup`` such a task would be gone without a word. Errors are raised.
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
    """Count and log that a task goes on after it had failed with an error, or was cancelled."""
    count("task_restarted", name)
    logger.error("a task ended that all sockets depend on (%s); started again", name, exc_info=error)


async def ended(task: asyncio.Task[Any]) -> None:
    """
    Cancel a task until it has ended, and take note of what it raised.

    More than once: on Python 3.11 a ``wait_for`` under redis-py can swallow a cancellation, and a site's code may
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
        task.exception()  # whoever wanted it has had it; otherwise asyncio would say that nobody did


async def in_context(context: Context | None, work: Coroutine[Any, Any, Any]) -> Any:
    """Do something in another context than ours, if one is given, and return what it returns."""
    if context is None:
        return await work
    return await new_task(work, context=context)
