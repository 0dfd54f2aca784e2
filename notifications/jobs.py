"""Slow work of one socket, off the road of incoming frames: one job after the other."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from .tasks import ended

Job = Callable[[], Awaitable[None]]


class Jobs:
    """One task at most, and none when there is nothing to do."""

    __slots__ = ("_ended", "_failed", "_task", "_waiting")

    def __init__(self, failed: Callable[[Exception], Awaitable[None]]) -> None:
        """
        Prepare the queue.

        Args:
            failed: Called with what a job raised; the jobs behind it are forgotten.

        """
        self._failed = failed
        self._ended = False
        self._task: asyncio.Task[None] | None = None
        self._waiting: list[Job] = []  # an empty deque takes ten times as much, and most sockets have nothing to do

    def __len__(self) -> int:
        """Count the jobs that have not begun."""
        return len(self._waiting)

    @property
    def busy(self) -> bool:
        """Whether there is anything to do."""
        return self._task is not None

    def add(self, job: Job) -> None:
        """Do this after all others; nothing after ``end``."""
        if not self._ended:
            self._waiting.append(job)
            self._begin()

    def add_next(self, job: Job) -> None:
        """Do this after the one that runs now; nothing after ``end``."""
        if not self._ended:
            self._waiting.insert(0, job)
            self._begin()

    def clear(self) -> None:
        """Forget all that has not begun."""
        self._waiting.clear()

    async def end(self) -> None:
        """Cancel everything."""
        self._ended = True
        self.clear()
        if self._task is not None:
            await ended(self._task)

    def _begin(self) -> None:
        if self._task is None:
            self._task = asyncio.create_task(self._work())

    async def _work(self) -> None:
        try:
            while self._waiting:
                try:
                    await self._waiting.pop(0)()
                except Exception as error:  # noqa: BLE001  whatever it is, the owner says so
                    self.clear()
                    await self._failed(error)  # what is added meanwhile has its turn behind
        finally:
            self._task = None
