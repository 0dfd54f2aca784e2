"""A connection's slow work, done one item at a time while frames keep arriving."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import Context
from typing import Any, TypeVar

from ..aio import CutShortError
from ..tasks import ended, new_task

T = TypeVar("T")
Work = Callable[[], Awaitable[None]]


class Worklist:
    """
    A queue of work, with one task at most, and none when there is nothing to do.

    Attributes:
        context: The context in which all work runs, whoever adds it; None for the context of the first caller.

    """

    __slots__ = ("_ended", "_failed", "_news", "_task", "_urgent", "_waiting", "context")

    def __init__(self, failed: Callable[[BaseException], Awaitable[None]]) -> None:
        """
        Create an empty list.

        Args:
            failed: Called with the exception that an item raised; everything queued behind it is
                dropped.

        """
        self.context: Context | None = None
        self._failed = failed
        self._ended = False
        self._task: asyncio.Task[None] | None = None
        self._urgent: list[Work] | None = None  # only while something waits aside
        self._news: asyncio.Future[None] | None = None
        self._waiting: list[Work] = []  # an empty deque takes ten times as much, and most sockets have nothing to do

    def __len__(self) -> int:
        """Return how many items have not been started."""
        return len(self._waiting)

    @property
    def busy(self) -> bool:
        """Whether there is anything to do."""
        return self._task is not None

    def add(self, work: Work) -> None:
        """Add work after everything else; ignored after ``end``."""
        if not self._ended:
            self._waiting.append(work)
            self._begin()

    def add_next(self, work: Work) -> None:
        """Add work to do next, or now if the current item waits ``aside``; not after ``end``."""
        if self._ended:
            return
        if self._urgent is not None:
            self._urgent.append(work)
            if self._news is not None and not self._news.done():
                self._news.set_result(None)
        else:
            self._waiting.insert(0, work)
            self._begin()

    @property
    def is_aside(self) -> bool:
        """Whether the current item waits ``aside``."""
        return self._urgent is not None

    async def aside(self, question: Coroutine[Any, Any, T]) -> T:
        """Await something slow from within the list; work added by ``add_next`` in the meantime is done at once."""
        asked = asyncio.create_task(question)
        self._urgent = []
        try:
            while not asked.done():
                self._news = asyncio.get_running_loop().create_future()
                either: set[asyncio.Future[Any]] = {asked, self._news}
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
                while self._urgent:
                    await self._urgent.pop(0)()
            return asked.result()
        finally:
            self._waiting[:0] = self._urgent
            self._urgent = self._news = None
            if not asked.done():
                await ended(asked)

    async def is_done(self) -> None:
        """Wait until there is nothing to do."""
        while self._task is not None:
            await asyncio.wait([self._task])

    def clear(self) -> None:
        """Drop all work that has not been started."""
        self._waiting.clear()
        if self._urgent is not None:
            self._urgent.clear()

    async def end(self) -> None:
        """Cancel everything."""
        self._ended = True
        self.clear()
        if self._task is not None:
            await ended(self._task)

    def _begin(self) -> None:
        if self._task is None:
            self._task = new_task(self._work(), context=self.context)

    async def _work(self) -> None:
        task = asyncio.current_task()
        try:
            while self._waiting:
                try:
                    await self._waiting.pop(0)()
                except asyncio.CancelledError:
                    if task is None or task.cancelling():
                        raise
                    await self._fail(CutShortError("something that was waited for was cancelled"))
                except (KeyboardInterrupt, SystemExit, GeneratorExit):
                    raise
                except BaseException as error:  # noqa: BLE001  whatever it is, ``failed`` gets it
                    await self._fail(error)
        finally:
            self._task = None

    async def _fail(self, error: BaseException) -> None:
        self.clear()
        await self._failed(error)  # work added in the meantime comes after it
