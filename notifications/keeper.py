"""The task that keeps one connection of a channel layer, from the first need of it until it is stopped."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextvars import Context
from typing import Final

from . import tasks
from .connections import FAILURES
from .logs import describe
from .metrics import count
from .wire import HANDSHAKE_TIMEOUT, backoff

logger = logging.getLogger(__name__)

STEADY: Final = 5.0
"""Seconds that a connection has to last for the next attempt to come soon again."""


FINISH: Final = HANDSHAKE_TIMEOUT + 0.5
"""Seconds that a connection which is to end has, to hear what became of what it has sent."""


class Keeper:
    """
    Connects again and again, with pauses in between, and says so.

    Whatever ends its task but ``stop``, another one goes on: all channels of the event loop depend on it.
    """

    def __init__(self, connect_once: Callable[[], Awaitable[str]]) -> None:
        """
        Prepare; ``start`` begins.

        Args:
            connect_once: Connects, and returns when the connection has ended, and why; it may fail with ``FAILURES``.

        """
        self._connect_once = connect_once
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin, if nothing runs; returns at once."""
        # ``asyncio.run`` cancels all tasks first; one of them may still have something to send.
        if self._task is None or self._task.done():
            self._task = tasks.new_task(self._keep(), name="notifications: channel layer", context=Context())
            self._task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if task is self._task:
            # Later: an event loop that ends cancels everything, and is gone by then.
            task.get_loop().call_later(tasks.RESTART_DELAY, self._restart, task)

    def _restart(self, ended: asyncio.Task[None]) -> None:
        if ended is self._task:  # neither stopped nor started meanwhile
            tasks.restarted("channel layer", None if ended.cancelled() else ended.exception())
            self.start()

    async def stop(self) -> None:
        """End the connection; ``start`` may begin again."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task], timeout=FINISH)
            await tasks.ended(task)  # again, if it must be: what is under redis-py can swallow a cancellation

    async def _keep(self) -> None:
        loop, delays = asyncio.get_running_loop(), backoff()
        while True:
            began = loop.time()
            try:
                reason = await self._connect_once()
            except FAILURES as error:
                reason = describe(error)
            except Exception as error:  # such as an option that redis-py does not know; nobody else would say so
                logger.exception("the channel layer cannot connect")
                reason = type(error).__name__
            if loop.time() - began > STEADY:
                delays = backoff()
            delay = next(delays)
            count("layer_gap")
            logger.warning("the channel layer is not connected (%s); trying again in %.1f s", describe(reason), delay)
            await asyncio.sleep(delay)
