"""Pings one browser from time to time, and says when it is dead or too slow."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from .conf import settings

PATIENCE: Final = 2
"""Beats in a row that a browser may be silent, or owe confirmations."""


class Heartbeat:
    """
    One timer a socket, no task while it waits.

    A browser is given up when for two beats it has said nothing at all, or has been paused because it confirms
    nothing, or when a ping could not even be sent until the next one was due.
    """

    __slots__ = ("_give_up", "_paused", "_paused_beats", "_ping", "_silent_beats", "_task", "_timer")

    def __init__(
        self,
        ping: Callable[[], Awaitable[None]],
        give_up: Callable[[], Awaitable[None]],
        paused: Callable[[], bool],
    ) -> None:
        self._ping = ping
        self._give_up = give_up
        self._paused = paused
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._silent_beats = 0
        self._paused_beats = 0

    def begin(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(settings.HEARTBEAT_INTERVAL, self._beat)

    def heard(self) -> None:
        """Note that the browser said something."""
        self._silent_beats = 0

    def confirmed(self) -> None:
        """Note that the browser confirmed what it was sent."""
        self._paused_beats = 0

    async def end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def _beat(self) -> None:
        self._paused_beats = self._paused_beats + 1 if self._paused() else 0
        stuck = self._task is not None and not self._task.done()
        if stuck and self._task is not None:
            self._task.cancel()
        if stuck or max(self._silent_beats, self._paused_beats) >= PATIENCE:
            self._task = asyncio.create_task(_run(self._give_up))
            return
        self._silent_beats += 1
        self._task = asyncio.create_task(_run(self._ping))
        self.begin()


async def _run(job: Callable[[], Awaitable[None]]) -> None:
    await job()
