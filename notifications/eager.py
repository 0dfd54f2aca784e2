"""
Runs somebody else's coroutines in a task of their own, and makes their first steps at once.

Most coroutines on the road of a message end in their first step: a server takes a frame, a channel layer takes a
message. That step needs no task to be woken. It does need a task to be *in*: a time-out or a cancel scope of a site's
middleware cancels the task that it finds itself in, and nobody else may depend on that one. asyncio's eager tasks, from
Python 3.12 on, are a new task for each coroutine; this is one for all coroutines of a socket.
"""

from __future__ import annotations

import asyncio

# Public, for whoever writes a task of their own: https://docs.python.org/3/library/asyncio-extending.html
from asyncio.tasks import _enter_task, _leave_task
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextvars import copy_context
from inspect import iscoroutinefunction
from typing import Any, Final

from .tasks import ended

_NOTHING: Final = object()


class CutShortError(RuntimeError):
    """A coroutine was cancelled, and not by us."""


def coroutine_function(function: Callable[..., Awaitable[Any]]) -> Callable[..., Coroutine[Any, Any, Any]]:
    """Make one of a function that returns any other awaitable, as servers written in other languages do."""
    if iscoroutinefunction(function):
        return function

    async def call(*arguments: Any) -> Any:
        return await function(*arguments)

    return call


class Runner:
    """
    Runs one coroutine after the other, in one context and one task, for as long as nobody cancels that task.

    Whatever a coroutine does to its task, such as cancelling it from a timer that was forgotten, ends that coroutine at
    most; the next one gets a new task.
    """

    __slots__ = ("_context", "_steps", "_task")

    def __init__(self) -> None:
        """Prepare to run coroutines in a copy of the present context; ``end`` must follow."""
        self._context = copy_context()
        self._steps: _Steps
        self._task: asyncio.Task[None] | None = None

    def begin(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Future[None] | None:
        """
        Make the first step of a coroutine, when the one before has ended.

        Returns:
            None if that step was all, or what is done when the coroutine has ended. What it returned is lost: this is
            for what returns nothing.

        Raises:
            CutShortError: It was cancelled; what is returned may be done with this, too.
            BaseException: Whatever else the step raised.

        """
        task = self._task
        if task is None or task.cancelling() or task.done():
            task = self._new_task()
        loop = task.get_loop()
        if (caller := asyncio.current_task(loop)) is not None:
            _leave_task(loop, caller)
        _enter_task(loop, task)
        try:
            waits_for = self._context.run(coroutine.send, None)
        except StopIteration:
            return None  # how a coroutine says that it is done
        except asyncio.CancelledError as error:
            raise CutShortError from error  # the caller was not cancelled
        finally:
            _leave_task(loop, task)
            if caller is not None:
                _enter_task(loop, caller)
        return self._steps.go_on(coroutine, waits_for)

    def _new_task(self) -> asyncio.Task[None]:
        self.end()
        loop = asyncio.get_running_loop()
        self._steps = _Steps(loop)
        run = _run(self._steps)
        # Begun here: a task that is cancelled before its first step throws into what has no ``try`` yet.
        run.send(None)
        self._task = asyncio.Task(run, loop=loop, context=self._context, name="notifications: a socket's sends")
        return self._task

    def end(self) -> None:
        """Cancel what runs, and begin nothing more; may be called by what runs."""
        if (task := self._task) is not None:
            running: object = asyncio.current_task()
            if task is running:
                task.get_loop().call_soon(task.cancel)
            else:
                task.cancel()

    async def wait_ended(self) -> None:
        """Wait until what ran has ended."""
        if self._task is not None:
            await ended(self._task)


async def _run(steps: _Steps) -> None:
    await steps


class _Steps:
    """What the task of a ``Runner`` awaits: nothing, then the rest of a coroutine, then nothing again."""

    __slots__ = ("_coroutine", "_idle", "_loop", "_rest", "_waits_for")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._idle: asyncio.Future[None] = loop.create_future()
        self._coroutine: Coroutine[Any, Any, Any] | None = None
        self._waits_for: Any = _NOTHING
        self._rest: asyncio.Future[None]

    def go_on(self, coroutine: Coroutine[Any, Any, Any], waits_for: Any) -> asyncio.Future[None]:
        """Have the task go on with a coroutine, which waits for what its first step brought."""
        self._coroutine, self._waits_for = coroutine, waits_for
        self._rest = self._loop.create_future()
        if not self._idle.done():  # otherwise it was cancelled, and the coroutine is told so next
            self._idle.set_result(None)
        return self._rest

    # What ``await`` uses of a generator.

    def __await__(self) -> Generator[Any, Any, None]:
        return self

    def __iter__(self) -> Any:
        return self

    def __next__(self) -> Any:
        return self.send(None)

    def send(self, value: Any) -> Any:
        if self._coroutine is None:
            return self._nothing_to_do()
        if self._waits_for is not _NOTHING:
            waits_for, self._waits_for = self._waits_for, _NOTHING
            return waits_for
        return self._step(self._coroutine.send, value)

    def throw(self, *error: Any) -> Any:
        if self._coroutine is None:
            raise error[-1] if len(error) == 1 else error[1] or error[0]
        if isinstance(self._waits_for, asyncio.Future):
            self._waits_for.cancel()  # as a task does with what it awaits
        self._waits_for = _NOTHING
        return self._step(self._coroutine.throw, *error)

    def close(self) -> None:
        if self._coroutine is not None:
            self._coroutine.close()

    def _step(self, step: Any, *arguments: Any) -> Any:
        try:
            return step(*arguments)
        except StopIteration:
            self._coroutine = None
            if not self._rest.done():
                self._rest.set_result(None)
        except Exception as error:  # noqa: BLE001  it is for whoever waits for the coroutine
            self._coroutine = None
            if not self._rest.done():
                self._rest.set_exception(error)
        except BaseException as error:  # and so the task ends
            self._coroutine = None
            if not self._rest.done():
                self._rest.set_exception(CutShortError(type(error).__name__))
            raise
        return self._nothing_to_do()

    def _nothing_to_do(self) -> Any:
        if self._idle.done():
            self._idle = self._loop.create_future()
        self._idle._asyncio_future_blocking = True  # how ``await`` says to a task that it may wait for this
        return self._idle
