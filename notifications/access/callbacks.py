"""
Calls to the site's functions: a limited number at once, in turn, each with a time-out.

A site's function may be slow, and thousands of browsers may come back at the same moment. So the time-out begins when
the function is called, and not while others are served first. Users take turns; the number of waiting calls and the
time that they wait are bounded. A call that got no answer is a separate kind of error, and never a denial.

A function may also hang: a service without a time-out, or a database to which a connection is dead. Nothing ends its
thread, so another one takes its place; and what hangs again and again is called less and less often.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Sequence
from concurrent import futures
from contextlib import suppress
from functools import partial, wraps
from http.client import BadStatusLine, IncompleteRead
from typing import Any, Final

from asgiref.sync import async_to_sync, iscoroutinefunction
from channels.db import DatabaseSyncToAsync
from django.core.exceptions import ObjectDoesNotExist, PermissionDenied, ValidationError
from django.db import DataError
from django.db import Error as DatabaseError
from django.http import Http404
from redis.exceptions import RedisError

from ..aio import CutShortError, Timeout
from ..conf import settings
from ..tasks import ended
from .threads import Threads

MAX_WAITING: Final = 10_000
"""Calls of one kind that may wait for their turn; each takes about 1 KiB."""
MAX_COROUTINES: Final = 32
"""Calls of asynchronous functions of one kind that run at once. More would only wait in a queue of the database or the
event loop, with their time-out running."""

MAX_STUCK: Final = 64
"""Calls of one kind that have not returned although their time is over. Each has a thread, and perhaps a connection to
the database."""
MAX_STUCK_TOGETHER: Final = 32
"""Such calls of one group. As their pauses grow, these are an hour and a half; the kernel has given up on a connection
with something to send after half an hour (``tcp(7)``, ``tcp_retries2``). From then on one of them has to return."""
FIRST_PAUSE: Final = 5.0
"""Seconds in which a group is not called after as many of its calls have hung as there are threads. Then one call
tries; if that hangs as well, they double. If all were calls for one user, only that one is not served."""
LONGEST_PAUSE: Final = 300.0
"""Seconds that they become at most."""

MAX_CAUSES: Final = 10
"""Causes that are followed from the error that was raised; httpx has three."""
COME_BACK: Final = frozenset({408, 425, 429})
"""Client error statuses of HTTP that mean that there is no answer yet."""
OUTAGES: Final = (
    *(DatabaseError, OSError, TimeoutError, MemoryError, RedisError, CutShortError),
    *(futures.CancelledError, BadStatusLine, IncompleteRead),
)
"""Errors that mean that the answer is unknown. Those of most HTTP libraries derive from ``OSError``."""
OUTAGES_OF_LIBRARIES: Final = (
    ("httpx", "TransportError"),
    ("aiohttp", "ClientConnectionError"),
    ("aiohttp", "ClientPayloadError"),
)
"""Errors of others, by module and name. Not all of them say which ``OSError`` they come from, and some have none."""
NO_SUCH: Final = (ObjectDoesNotExist, ValidationError, LookupError, ValueError)
"""Errors for an id that nothing has. They remain that where a function looks elsewhere because something is away."""

in_thread: Callable[..., Any] | None = None
"""Makes a synchronous function awaitable, instead of this module's threads: ``testing`` runs it in the thread of the
ORM, which sees the test's data."""


class BusyError(TimeoutError):
    """A call did not get its turn: too many were waiting already or have hung, or it waited too long."""


def is_outage(error: BaseException, *, also_during: bool = True) -> bool:
    """
    Return whether an error means that the answer is unknown, because something did not answer.

    Everything else that a site's function raises is a bug, or a denial. So is a missing file, and an HTTP status by
    which a service refuses. Of an error that is none of these, what counts is the one from which it was raised, or the
    one that was being handled: ``from None`` hides it from people, as httpcore does, but does not make it a denial.
    """
    each: BaseException | None = error
    for _ in range(MAX_CAUSES):
        if each is None or isinstance(each, PermissionDenied | Http404 | PermissionError | DataError):
            return False
        status = _status(each)
        if isinstance(each, OUTAGES) or _is_of_a_library(each):
            if isinstance(each, FileNotFoundError):
                return each.filename is None  # a server's Unix socket, which errors do not name
            return status is None or status in COME_BACK or not 400 <= status < 500
        if status is not None and 400 <= status < 600:
            return status in COME_BACK or status >= 500
        handled = each.__context__ if also_during and not isinstance(each, NO_SUCH) else None
        each = each.__cause__ or handled
    return False


def _status(error: BaseException) -> int | None:
    """Return the HTTP status that an error, or the response in it, tells; None if it is about something else."""
    names = ("status_code", "status", "code") if isinstance(error, OSError) else ("status_code", "status")
    with suppress(Exception):  # a property may raise anything
        for each in (getattr(error, "response", None), error):
            for name in names:
                if isinstance(value := getattr(each, name, None), int):
                    return value
    return None


def _is_of_a_library(error: BaseException) -> bool:
    """Return whether it is one of ``OUTAGES_OF_LIBRARIES``; a library that is not imported has raised nothing."""
    classes = (getattr(sys.modules.get(module), name, None) for module, name in OUTAGES_OF_LIBRARIES)
    return any(isinstance(each, type) and isinstance(error, each) for each in classes)


class Turns:
    """A semaphore whose waiters take turns by user."""

    def __init__(self, at_once: int) -> None:
        self._free = at_once
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()
        self._length = 0

    async def take(self, whose: str, seconds: float) -> None:
        """
        Wait for a turn, which ends with ``give_back``.

        Raises:
            BusyError: The turn did not come within ``seconds``, or too many calls are waiting.

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
            async with Timeout(seconds):
                await turn
        except BaseException as error:
            self._forget(whose, turn)
            if isinstance(error, TimeoutError):
                raise BusyError(f"no turn within {seconds:g} s") from None
            raise

    def _forget(self, whose: str, turn: asyncio.Future[None]) -> None:
        if turn.done() and not turn.cancelled():
            self.give_back()  # it came at that very moment
            return
        turns = self._waiting.get(whose, deque())
        if turn in turns:
            turns.remove(turn)
            self._length -= 1
        if not turns:
            self._waiting.pop(whose, None)

    def give_back(self) -> None:
        """Let the next call begin."""
        while self._waiting:
            whose, turns = self._waiting.popitem(last=False)
            turn = turns.popleft()
            self._length -= 1
            if turns:
                self._waiting[whose] = turns  # after all others
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1


class _Group:
    """
    Calls that hang together.

    Attributes:
        silent: How many did not return in time, one after the other.
        stuck: How many have not returned yet.
        whose: For whom the silent ones were made.
        pause: Seconds from the last of them to the next that is made; it counts once there are as many as threads.
        pause_ends: When that is, by the clock of the event loop.

    """

    __slots__ = ("pause", "pause_ends", "silent", "stuck", "whose")

    def __init__(self) -> None:
        self.silent = self.stuck = 0
        self.whose: set[str] = set()
        self.pause = self.pause_ends = 0.0


class Callbacks:
    """
    The calls of one kind, in one event loop.

    A synchronous function runs in a thread of this class: in Django's single thread for synchronous code, one slow
    function would hold up every socket of the process. A function that exceeds its time-out keeps its thread until it
    returns, but not its turn.
    """

    def __init__(self, sort: str, threads: int, longest_wait: float) -> None:
        """
        Create the threads and queues.

        Args:
            sort: Names the threads.
            threads: Synchronous functions that run at once, besides those whose time is over.
            longest_wait: Seconds that a call may wait for its turn.

        """
        self._longest_wait = longest_wait
        self._at_once = threads
        self._threads = Turns(threads)
        self._coroutines = Turns(MAX_COROUTINES)
        self._executor = Threads(f"notifications-{sort}", threads)
        self._groups: dict[str, _Group] = {}
        self._late: set[asyncio.Future[Any]] = set()

    async def call(
        self, whose: str, seconds: float, function: Callable[..., Any], *arguments: Any, group: str = ""
    ) -> Any:
        """
        Call a function, sync or async, when it is its turn.

        Args:
            whose: The user on whose behalf it is called, or the address if the user is not known.
            seconds: The time-out, from its turn on.
            function: The function to call.
            arguments: Its arguments.
            group: What hangs together, such as the function and the tenant. When as many of its synchronous calls
                have hung in a row as there are threads, the next one follows after a pause.

        Raises:
            BusyError: It did not get its turn.
            TimeoutError: It has not returned in time.
            CutShortError: It, or something it was waiting for, was cancelled, or ended in a way that would end the
                process.
            Exception: Whatever it raises.

        """
        if is_async(function):
            await self._coroutines.take(whose, self._longest_wait)
            try:
                return await _in_a_task(function, arguments, seconds)
            finally:
                self._coroutines.give_back()
        self._expect_return(group, whose)
        await self._threads.take(whose, self._longest_wait)
        try:
            pause = self._expect_return(group, whose)
            running = self._begun(group, seconds, function, arguments)
        except BaseException:
            self._threads.give_back()
            raise
        try:
            async with Timeout(seconds):
                await asyncio.wait([running])  # awaiting it would look like our own cancellation if it is cancelled
                if running.cancelled():
                    raise CutShortError
                result = running.result()
                # A lambda or partial around a coroutine function looks synchronous, and a coroutine is true.
                return await _in_a_task(lambda: result, (), seconds) if inspect.isawaitable(result) else result
        except TimeoutError:
            self._hangs(group, whose, pause, running)
            raise
        except asyncio.CancelledError:  # nobody waits for it any more; it has its turn all the same
            asyncio.get_running_loop().call_later(seconds, self._hangs, group, whose, pause, running)
            raise

    def _expect_return(self, group: str, whose: str) -> float:
        """
        Return the pause that follows if the next call hangs, too: as long again as the one before it, if there was one.

        Raises:
            BusyError: Too many calls have not returned.

        """
        if len(self._late) >= MAX_STUCK:
            raise BusyError(f"{len(self._late)} calls have not returned")
        if (known := self._groups.get(group)) is None:
            return FIRST_PAUSE
        if known.stuck >= MAX_STUCK_TOGETHER:
            raise BusyError(f"{known.stuck} calls of this kind have not returned")
        concerns_all = len(known.whose) > 1
        if known.silent < self._at_once or not (concerns_all or whose in known.whose):
            return FIRST_PAUSE
        left = known.pause_ends - asyncio.get_running_loop().time()
        if left > 0:
            raise BusyError(f"{known.silent} calls did not return in time; the next follows in {left:.0f} s")
        return min(2 * known.pause, LONGEST_PAUSE)

    def _begun(
        self, group: str, seconds: float, function: Callable[..., Any], arguments: Sequence[Any]
    ) -> asyncio.Future[Any]:
        if (known := self._groups.get(group)) is not None:
            known.pause_ends = asyncio.get_running_loop().time() + seconds  # one tries whether it returns
        threaded = in_thread or partial(DatabaseSyncToAsync, thread_sensitive=False, executor=self._executor)
        running: asyncio.Future[Any] = asyncio.ensure_future(threaded(_called)(function, *arguments))
        running.add_done_callback(partial(self._ended, group))
        return running

    def _hangs(self, group: str, whose: str, pause: float, running: asyncio.Future[Any]) -> None:
        """Give the turn of a call to others; its time is over."""
        if running.done() or running in self._late:
            return
        self._late.add(running)
        known = self._groups.setdefault(group, _Group())
        known.silent += 1
        known.stuck += 1
        known.whose.add(whose)
        known.pause = max(pause, known.pause)
        known.pause_ends = asyncio.get_running_loop().time() + known.pause
        self._threads.give_back()

    def _ended(self, group: str, running: asyncio.Future[Any]) -> None:
        if not running.cancelled():
            running.exception()  # perhaps nobody is waiting for it any more
        known = self._groups.get(group)
        if running in self._late:
            self._late.remove(running)
            self._groups[group].stuck -= 1
        else:
            self._threads.give_back()
        if known is not None:
            known.silent = 0
            known.whose.clear()
            known.pause = 0.0
            if not known.stuck:
                del self._groups[group]


def _called(function: Callable[..., Any], *arguments: Any) -> Any:
    """
    Call a function in a thread.

    A ``StopIteration``, which ``next`` raises if it finds nothing, becomes a ``RuntimeError``, as in coroutines: on
    Python 3.11 no future takes it, so that the call would never end. ``SystemExit``, which would end the server, and
    what else is no ``Exception``, such as the time-outs of gevent and func_timeout, become a ``CutShortError``.
    """
    try:
        result = function(*arguments)
        inspect.isawaitable(result)  # evaluates what is lazy, here where the database may be asked
    except StopIteration as error:
        raise RuntimeError("the function raised StopIteration") from error
    except (Exception, asyncio.CancelledError):
        raise
    except BaseException as error:
        raise _cut_short(error) from error
    return result


async def _awaited(function: Callable[..., Any], arguments: Sequence[Any]) -> Any:
    """Await a function; see ``_called``. A ``KeyboardInterrupt`` is one: it comes in the thread of an event loop."""
    try:
        return await function(*arguments)
    except (Exception, asyncio.CancelledError, KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:
        raise _cut_short(error) from error


def _cut_short(error: BaseException) -> CutShortError:
    return CutShortError(f"the function raised {type(error).__name__}")


async def _in_a_task(function: Callable[..., Any], arguments: Sequence[Any], seconds: float) -> Any:
    """Await a function in a separate task, because it may cancel the task it runs in."""
    running = asyncio.ensure_future(_awaited(function, arguments))
    try:
        with suppress(TimeoutError):
            async with Timeout(seconds):
                await asyncio.wait([running])
        if not running.done():
            raise TimeoutError
        if running.cancelled():
            raise CutShortError
        return running.result()
    finally:
        if not running.done():
            await ended(running)


def is_async(function: Callable[..., Any]) -> bool:
    """Return whether a function returns an awaitable, as far as can be told without calling it."""
    return iscoroutinefunction(function) or iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004


def within(tenant: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """
    Make a function enter a tenant's ``TENANT_CONTEXT`` in the thread in which it is called.

    An asynchronous function is made synchronous: its queries through the ORM then run in the thread that waits for it.
    In the thread that all asynchronous code shares for these, each function would see the context of another.
    """
    if not tenant or (enter := settings.tenant_context) is None:
        return function

    @wraps(function, updated=())  # without the mark of an asynchronous function
    def entering(*arguments: Any) -> Any:
        with enter(tenant):
            result = function(*arguments)
            return async_to_sync(_uncut)(result) if inspect.isawaitable(result) else result

    return entering


async def _uncut(result: Awaitable[Any]) -> Any:
    """Await a result; its cancellation must not look like one of whoever waits for the thread."""
    try:
        return await result
    except asyncio.CancelledError as error:
        raise CutShortError from error
