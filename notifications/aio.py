"""
What asyncio lacks: one instance of something per event loop, coroutines started at once, a
time-out that a blocked event loop does not use up, and a queue and an event that take little memory.

asyncio's futures and tasks belong to an event loop, and so does whatever holds them, such as a
connection; ``PerLoop`` keeps it, and ends it with the loop.

Most coroutines on the path of a message end in their first step: a server accepts a frame, a
channel layer a message. That step needs no task to be woken. It does need to run *in* a task: a
time-out or a cancel scope of a site's middleware cancels the current task, and nothing else may
depend on that one. ``Runner`` provides it: from Python 3.12 on an eager task of asyncio for each
coroutine, on 3.11 one that many coroutines share.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
import types

# Public, for alternative implementations of tasks:
# https://docs.python.org/3/library/asyncio-extending.html
from asyncio.tasks import _enter_task, _leave_task
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextvars import Context, copy_context
from functools import partial
from inspect import iscoroutinefunction
from typing import Any, Final, Generic, TypeVar, cast

logger = logging.getLogger(__name__)

T = TypeVar("T")

END_TIMEOUT: Final = 5.0
"""Seconds that ending one instance may take before its loop closes without that."""
MAX_ENDS: Final = 100
"""Most instances ended when a loop closes: a task that was not cancelled may create new ones
forever."""

_MADE: Final = "_notifications"


class PerLoop(Generic[T]):
    """
    Return the running event loop's instance, creating it on first use.

    The loop itself holds it, and both are freed together. A dictionary with weak keys would keep
    both forever once the instance refers to its loop, as every lock and event does that was waited
    for.
    """

    def __init__(self, make: Callable[[], T], end: Callable[[T], Awaitable[None]] | None = None) -> None:
        """
        Prepare; nothing is created before the first use.

        Args:
            make: Creates an instance, in its loop.
            end: Ends an instance that has a connection or a task, in its loop, before that closes.
                A later call returns a new instance, which is ended, too.

        """
        self._make = make
        self._end = end
        self._key = object()

    def __call__(self) -> T:
        loop = asyncio.get_running_loop()
        made: dict[object, Any] | None = vars(loop).get(_MADE)
        if made is None:
            made = vars(loop)[_MADE] = {}
        found = made.get(self._key)
        if found is None:
            found = made[self._key] = self._make()
            if self._end is not None:
                _before_close(loop, partial(_end, self._end, made, self._key))
        return cast("T", found)

    def forget(self) -> None:
        """Create new instances from now on; existing ones end with their loops."""
        self._key = object()


async def _end(end: Callable[[Any], Awaitable[None]], made: dict[object, Any], key: object) -> None:
    await end(made.pop(key))


def _before_close(loop: asyncio.AbstractEventLoop, end: Callable[[], Awaitable[None]]) -> None:
    """
    Have ``end`` run before a loop is closed.

    Every loop is closed in the end, but not always after its asynchronous generators were finalised
    or its tasks cancelled, as by ``asyncio.run``. So ``close`` is wrapped, as in channels_redis.
    """
    close: Any = loop.close
    if not isinstance(close, _Closing):
        close = loop.close = _Closing(loop)  # type: ignore[method-assign]  # loops have no hook for it
    close.ends.append(end)


class _Closing:
    """Replaces the ``close`` of a loop. Only the loop holds it, so both are freed together."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.ends: list[Callable[[], Awaitable[None]]] = []
        self._loop = loop
        self._close = loop.close

    def __call__(self) -> None:
        try:
            if not self._loop.is_running() and not self._loop.is_closed() and not sys.is_finalizing():
                self._run_ends()
        finally:
            self._loop.close = self._close  # type: ignore[method-assign]  # as it was
            self._close()

    def _run_ends(self) -> None:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            self._loop.run_until_complete(self._end_all())
        else:  # another loop runs in this thread, so this one cannot
            thread = threading.Thread(target=lambda: self._loop.run_until_complete(self._end_all()), daemon=True)
            thread.start()
            thread.join(END_TIMEOUT)

    async def _end_all(self) -> None:
        """End all instances, and those created meanwhile by tasks that were not cancelled."""
        for _ in range(MAX_ENDS):
            if not self.ends:
                break
            try:
                async with asyncio.timeout(END_TIMEOUT):
                    await self.ends.pop()()
            except Exception:  # the loop closes all the same
                logger.exception("something that belongs to an event loop could not be ended")
            if not self.ends:
                await asyncio.sleep(0)  # transports close their sockets in the next iteration


class Timeout:
    """
    ``asyncio.timeout`` for a wait on a peer, which may have answered while the event loop was blocked.

    A site's code may block the loop for longer than any time-out. asyncio's own then expires in the iteration in which
    the loop goes on, also if the answer came long before and was read in the same iteration. Here the last part of the
    time is spent in small steps, each of which begins only when the loop runs: while it is blocked, however long, one
    step passes at most.

    It takes ``seconds`` in a loop that runs. In one that is blocked again and again it takes longer, by some three such
    times for each of the ``STEPS`` at most (measured). It must be entered once, and raises ``TimeoutError`` where
    ``asyncio.timeout`` does.
    """

    __slots__ = ("_left", "_limit", "_loop", "_seconds", "_timer")

    LAST_PART: Final = 0.25
    """Of the time; several round trips to a peer that answers at once take less than that of half a second."""
    STEPS: Final = 5
    """Of the last part: connecting takes some ten iterations of the loop, and other code may block between them."""

    def __init__(self, seconds: float) -> None:
        """
        Prepare; the time begins when the block is entered.

        Args:
            seconds: That the block may take.

        """
        self._seconds = seconds
        self._left = 0
        self._limit = asyncio.timeout(None)
        self._loop: asyncio.AbstractEventLoop
        self._timer: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> Timeout:
        self._loop = asyncio.get_running_loop()
        await self._limit.__aenter__()
        self._begin()
        return self

    async def __aexit__(self, *exception: Any) -> None:
        self._stop()
        await self._limit.__aexit__(*exception)

    def restart(self, seconds: float) -> None:
        """Allow the block so many seconds from now on."""
        self._stop()
        self._limit.reschedule(None)
        self._seconds = seconds
        self._begin()

    def _begin(self) -> None:
        self._left = self.STEPS
        if self._seconds > 0:
            self._timer = self._loop.call_later(self._seconds * (1 - self.LAST_PART), self._step)
        else:
            self._limit.reschedule(self._loop.time())

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _step(self) -> None:
        if self._left:
            self._left -= 1
            self._timer = self._loop.call_later(self._seconds * self.LAST_PART / self.STEPS, self._step)
        else:
            self._limit.reschedule(self._loop.time())


class LoopThread:
    """
    An event loop in a thread of its own, for synchronous code that calls asynchronous code again and again.

    ``async_to_sync`` creates a loop for each call, and with it everything that belongs to a loop: a request then
    connects to Redis and the database anew, which takes several times as long as what it asks for. The thread starts
    with the first call, in each process that calls, and ends with the process.
    """

    def __init__(self, name: str) -> None:
        """
        Prepare; nothing starts before the first call.

        Args:
            name: Names the thread.

        """
        self._name = name
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pid = 0

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Await a coroutine in that loop, from another one, and return its result or raise its exception."""
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._started()))

    def _started(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None or self._pid != os.getpid():  # a fork has no threads
                self._loop, self._pid = asyncio.new_event_loop(), os.getpid()
                threading.Thread(target=_run_on, args=(self._loop,), name=self._name, daemon=True).start()
            return self._loop


def _run_on(loop: asyncio.AbstractEventLoop) -> None:
    """Run a loop for ever, also after a ``SystemExit`` in it, which asyncio passes on to whoever runs the loop."""
    while True:
        try:
            return loop.run_forever()
        except (SystemExit, KeyboardInterrupt):
            logger.exception("a task ended in a way that ends a process; its event loop runs on")


class SmallQueue(Generic[T]):
    """
    The part of an ``asyncio.Queue`` without a limit that one reader needs; several may read as well.

    It takes 0.2 KB, and one of asyncio 3 KB: that has four deques, of 0.75 KB each even when they are empty.
    """

    __slots__ = ("_items", "_waiters")

    def __init__(self) -> None:
        self._items: list[T] = []
        self._waiters: list[asyncio.Future[None]] = []

    def empty(self) -> bool:
        return not self._items

    def put_nowait(self, item: T) -> None:
        self._items.append(item)
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:  # all: the one that is woken may have been cancelled meanwhile
            if not waiter.done():
                waiter.set_result(None)

    async def get(self) -> T:
        while not self._items:
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            try:
                await waiter
            finally:
                if waiter in self._waiters:
                    self._waiters.remove(waiter)
        return self._items.pop(0)


class SmallEvent:
    """
    An ``asyncio.Event`` that is mostly set: it has one of asyncio, of 0.9 KB, only while it is not.

    Unlike asyncio's it is set from the beginning.
    """

    __slots__ = ("_event",)

    def __init__(self) -> None:
        self._event: asyncio.Event | None = None

    def is_set(self) -> bool:
        return self._event is None

    def set(self) -> None:
        if self._event is not None:
            self._event.set()
            self._event = None

    def clear(self) -> None:
        if self._event is None:
            self._event = asyncio.Event()

    async def wait(self) -> None:
        """Wait until it is set; it may have been cleared again when this returns."""
        if self._event is not None:
            await self._event.wait()


class CutShortError(RuntimeError):
    """A coroutine was cancelled by something else than this app."""


def coroutine_function(function: Callable[..., Awaitable[Any]]) -> Callable[..., Coroutine[Any, Any, Any]]:
    """Wrap a function that returns another awaitable, as servers written in other languages do."""
    if iscoroutinefunction(function):
        return function

    async def call(*arguments: Any) -> Any:
        return await function(*arguments)

    return call


class Runner:
    """
    Runs foreign coroutines one after the other, in one context, in a task on which nothing depends.

    A coroutine may cancel its task, even later, from a forgotten timer: that ends at most this
    coroutine.

    Attributes:
        running: The task of the last coroutine that did not end in its first step. It may have
            ended since.

    """

    __slots__ = ("_context", "_is_ended", "_spare", "running")

    def __init__(self) -> None:
        """Prepare to run coroutines in a copy of the current context; ``end`` must follow."""
        self.running: asyncio.Task[Any] | None = None
        self._context = copy_context()
        self._is_ended = False
        self._spare: _Spare | None = None

    def begin(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Future[None] | None:
        """
        Run the first step of a coroutine; the previous coroutine must have ended.

        Returns:
            None if that step was all, otherwise a future that is done when the coroutine has ended.
            What the coroutine returns is dropped.

        Raises:
            CutShortError: It was cancelled; the future may have this exception, too.
            BaseException: Whatever else the step raised.

        """
        self._is_ended = False
        task = self._begin(coroutine)
        if task is None:
            return None
        self.running = task
        if self._is_ended:  # by that first step
            task.cancel()
        rest: asyncio.Future[None] = task.get_loop().create_future()
        task.add_done_callback(partial(_tell, rest))
        return rest

    if sys.version_info >= (3, 12):

        def _begin(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any] | None:
            loop = asyncio.get_running_loop()
            task = asyncio.Task(coroutine, loop=loop, name=NAME, context=self._context, eager_start=True)
            if not task.done():
                return task
            if task.cancelled():
                raise CutShortError
            task.result()
            return None

    else:

        def _begin(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any] | None:
            spare = self._spare
            if spare is None or spare.task.cancelling() or spare.task.done():
                spare = self._spare = _Spare(self._context)
            if spare.makes_first_step_of(coroutine, self._context):
                return None
            self._spare = None
            return spare.task

    def end(self) -> None:
        """Cancel what runs; may be called by the coroutine that runs."""
        self._is_ended = True
        if self.running is not None:
            self.running.cancel()
        if self._spare is not None:
            self._spare.task.cancel()
            self._spare = None


NAME: Final = "notifications: a send"


def _tell(rest: asyncio.Future[None], task: asyncio.Task[Any]) -> None:
    """Pass on how a task ended; its cancellation must not look like that of the waiting caller."""
    error = CutShortError("cancelled") if task.cancelled() else task.exception()
    if rest.done():
        return
    if error is None:
        rest.set_result(None)
    else:
        rest.set_exception(error)


class _Spare:
    """
    Replaces eager tasks on Python 3.11: one task, created in advance, for coroutines of one step.

    It is used up by the first coroutine that has to wait, which it then runs to its end.

    A coroutine of one step takes 1.0 µs in it, as in an eager task of Python 3.12; called directly it would take
    0.35 µs. In a plain task it would take 2 µs on uvloop and 5 µs on asyncio's own loop, and not start before
    the next iteration of the loop.
    """

    __slots__ = ("_begun", "_coroutine", "_loop", "_waits_for", "task")

    def __init__(self, context: Context) -> None:
        self._loop = asyncio.get_running_loop()
        self._begun = self._loop.create_future()
        self._coroutine: Coroutine[Any, Any, Any] | None = None
        self._waits_for: Any = None
        work = self._work()
        work.send(None)  # into its ``try``: a cancellation before the first step would be raised outside of it
        self.task = asyncio.Task(work, loop=self._loop, name=NAME, context=context)

    def makes_first_step_of(self, coroutine: Coroutine[Any, Any, Any], context: Context) -> bool:
        """Run the first step of a coroutine within the task; return whether that was all."""
        loop, task = self._loop, self.task
        if (caller := asyncio.current_task(loop)) is not None:
            _leave_task(loop, caller)
        _enter_task(loop, task)
        try:
            self._waits_for = context.run(coroutine.send, None)
        except StopIteration:
            return True  # the coroutine is done
        except asyncio.CancelledError as error:
            raise CutShortError from error  # the caller was not cancelled
        finally:
            _leave_task(loop, task)
            if caller is not None:
                _enter_task(loop, caller)
        self._coroutine = coroutine
        if not self._begun.done():  # otherwise it was cancelled, which the coroutine gets next
            self._begun.set_result(None)
        return False

    async def _work(self) -> None:
        try:
            await _what(None)
            await self._begun
        except BaseException as error:
            if self._coroutine is None:
                raise
            if isinstance(self._waits_for, asyncio.Future):
                self._waits_for.cancel()  # as a task does with what it awaits
            try:
                self._waits_for = self._coroutine.throw(error)
            except StopIteration:
                return
        await _rest_of(cast("Coroutine[Any, Any, Any]", self._coroutine), self._waits_for)


@types.coroutine
def _what(waits_for: Any) -> Generator[Any, Any, None]:
    """Await what a coroutine has yielded to its task."""
    yield waits_for


@types.coroutine
def _rest_of(coroutine: Coroutine[Any, Any, Any], waits_for: Any) -> Generator[Any, Any, None]:
    """Await the rest of a coroutine, which waits for something."""
    while True:
        try:
            yield waits_for
        except BaseException as error:  # noqa: BLE001  it is the coroutine's, which raises it again or does not
            try:
                waits_for = coroutine.throw(error)
            except StopIteration:
                return
        else:
            yield from coroutine
            return
