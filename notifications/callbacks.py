"""
Calls the functions that a site gives us: so many at once, in turn, each in its time.

A site's function may be slow, and thousands of browsers may come back in one moment. So what it may take begins when
it is called, and not while others are served first. Who waits has a turn after each other user has had one; the wait
is bounded in number and in time. That nobody could say is an error of its own kind, and never a no.
"""

from __future__ import annotations

import asyncio
import inspect
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any, Final

from asgiref.sync import iscoroutinefunction
from channels.db import DatabaseSyncToAsync

from .eager import CutShortError
from .tasks import ended

MAX_WAITING: Final = 10_000
"""Calls of one sort that may wait for their turn; each takes about 1 KiB."""
MAX_COROUTINES: Final = 32
"""Calls of asynchronous functions at once, of one sort. More would wait as well, in a queue of the database or of the
event loop, but with their time running."""

in_thread: Callable[..., Any] | None = None
"""Makes a synchronous function awaitable in place of our threads: ``testing`` lets it run in the thread of the ORM,
where a test's data are."""


class BusyError(TimeoutError):
    """A call had no turn: too many wait already, or it waited for too long."""


class Turns:
    """So many at once; the others wait, one of each user after the other."""

    def __init__(self, at_once: int) -> None:
        self._free = at_once
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()
        self._length = 0

    async def take(self, whose: str, seconds: float) -> None:
        """
        Wait for a turn, which ends with ``give_back``.

        Raises:
            BusyError: It has not come within ``seconds``, or too many wait.

        """
        if self._free:
            self._free -= 1
            return
        if self._length >= MAX_WAITING:
            raise BusyError(f"{self._length} calls wait already")
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(whose, deque()).append(turn)
        self._length += 1
        try:
            async with asyncio.timeout(seconds):
                await turn
        except BaseException as error:
            self._forget(whose, turn)
            if isinstance(error, TimeoutError):
                raise BusyError(f"no turn within {seconds:g} s") from None
            raise

    def _forget(self, whose: str, turn: asyncio.Future[None]) -> None:
        if turn.done() and not turn.cancelled():
            self.give_back()  # it came in the very moment
            return
        turns = self._waiting.get(whose, deque())
        if turn in turns:
            turns.remove(turn)
            self._length -= 1
        if not turns:
            self._waiting.pop(whose, None)

    def give_back(self) -> None:
        """Let the next one begin."""
        while self._waiting:
            whose, turns = self._waiting.popitem(last=False)
            turn = turns.popleft()
            self._length -= 1
            if turns:
                self._waiting[whose] = turns  # behind all others
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1


class Callbacks:
    """
    The calls of one sort, of one event loop.

    A synchronous function has a thread of ours: in Django's one thread for synchronous code a single slow one would
    hold up every socket of the process. One that has not returned in its time keeps its thread until it does, and with
    it the turn.
    """

    def __init__(self, sort: str, threads: int, longest_wait: float) -> None:
        """
        Prepare the calls.

        Args:
            sort: Names the threads.
            threads: Synchronous functions at once.
            longest_wait: Seconds that a call may wait for its turn.

        """
        self._longest_wait = longest_wait
        self._threads = Turns(threads)
        self._coroutines = Turns(MAX_COROUTINES)
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix=f"notifications-{sort}")
        self._late: set[asyncio.Future[Any]] = set()

    async def call(self, whose: str, seconds: float, function: Callable[..., Any], *arguments: Any) -> Any:
        """
        Call a function, sync or async, when it is its turn.

        Args:
            whose: The user who waits for it, or the address where nobody knows who that is.
            seconds: What it may take, from its turn on.
            function: What to call.
            arguments: What to call it with.

        Raises:
            BusyError: It had no turn.
            TimeoutError: It has not returned in time.
            CutShortError: It was cancelled, or something that it waited for.
            Exception: Whatever it raises.

        """
        if is_async(function):
            await self._coroutines.take(whose, self._longest_wait)
            try:
                return await _in_a_task(function, arguments, seconds)
            finally:
                self._coroutines.give_back()
        await self._threads.take(whose, self._longest_wait)
        threaded = in_thread or partial(DatabaseSyncToAsync, thread_sensitive=False, executor=self._executor)
        running = asyncio.ensure_future(threaded(function)(*arguments))
        try:
            async with asyncio.timeout(seconds):
                result = await asyncio.shield(running)
                # A lambda or partial around a coroutine function looks synchronous, and a coroutine is true.
                return await result if inspect.isawaitable(result) else result
        finally:
            if running.done():
                self._threads.give_back()
            else:
                self._late.add(running)
                running.add_done_callback(self._came_late)

    def _came_late(self, running: asyncio.Future[Any]) -> None:
        self._late.discard(running)
        with suppress(asyncio.CancelledError):
            running.exception()  # nobody waits for it any more
        self._threads.give_back()


async def _in_a_task(function: Callable[..., Any], arguments: Sequence[Any], seconds: float) -> Any:
    """Await a function in a task of its own: it may cancel the one that it finds itself in."""
    running = asyncio.ensure_future(function(*arguments))
    try:
        await asyncio.wait([running], timeout=seconds)
        if not running.done():
            raise TimeoutError
        if running.cancelled():
            raise CutShortError
        return running.result()
    finally:
        if not running.done():
            await ended(running)


def is_async(function: Callable[..., Any]) -> bool:
    """Say whether calling a function makes something to be awaited, as far as one can tell before."""
    return iscoroutinefunction(function) or iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004
