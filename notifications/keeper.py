"""The task that keeps one connection of a channel layer, from the first need of it until it is stopped."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from .connections import FAILURES
from .logs import describe
from .metrics import count
from .wire import backoff

logger = logging.getLogger(__name__)

STEADY: Final = 5.0
"""Seconds that a connection has to last for the next attempt to come soon again."""


class Keeper:
    """Connects again and again, with pauses in between, and says so."""

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
            self._task = asyncio.create_task(self._keep())

    async def stop(self) -> None:
        """End the connection; ``start`` may begin again."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

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
