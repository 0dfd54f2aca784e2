"""
Loops that are jobs: ``track`` tells how far one is.

A loop does not tell its iterator how it was left, by ``break`` or by an exception. What Python was executing when it
dropped the iterator says it.
"""

from __future__ import annotations

import asyncio
import dis
import sys
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Sized
from contextlib import nullcontext, suppress
from types import CodeType, FrameType
from typing import Any, Final, Generic, Self, TypeVar

from .messages import State
from .progress import Part, Progress
from .topics import Topic

T = TypeVar("T")

LEFT: Final = {"POP_TOP", "POP_ITER"}
"""What Python executes when ``break`` or ``return`` leaves a loop: it drops the loop's iterator."""


class Track(Generic[T]):
    """What ``track`` returns: for ``for`` and ``async for``. Each loop over it is a job of its own."""

    def __init__(self, items: Any, to: Topic | str | Part, total: float | None, options: dict[str, Any]) -> None:
        self._items, self._to, self._total, self._options = items, to, total, options

    def __iter__(self) -> Iterator[T]:
        job = self._job()
        loop = sys._getframe(1).f_code
        with job as part:
            root = part._root
            for item in self._items:
                root.check()
                try:
                    yield item
                except GeneratorExit:
                    if root is job:
                        root._left_early = _state_left(sys._getframe().f_back, loop)
                    raise
                part.advance()

    def __aiter__(self) -> AsyncIterator[T]:
        return _Steps(self)

    def _job(self, *, sized: bool = True) -> Any:
        total = self._total
        if total is None and sized and isinstance(self._items, Sized):
            with suppress(TypeError, NotImplementedError, OverflowError):  # streams, and ranges that are too long
                total = len(self._items)
        if isinstance(self._to, Part):
            if total is not None:
                self._to.total = total
            return nullcontext(self._to) if self._to is self._to._root and self._to._root._is_open() else self._to
        return Progress(self._to, total=total, **self._options)


class _Steps(Generic[T]):
    """
    The steps of an ``async for``.

    It is no generator, because Python closes an asynchronous one some time after its loop was left, when nothing shows
    any more how.
    """

    def __init__(self, track: Track[T]) -> None:
        self._track = track
        self._source: Any = None
        self._job: Any = None
        self._part: Part | None = None
        self._loop: CodeType | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        if self._source is None:
            self._loop = sys._getframe(1).f_code
            await self._begin()
        elif self._part is not None:
            self._part.advance()
        if self._job is None or self._part is None:
            raise StopAsyncIteration
        try:
            await self._part._root.acheck()
            return await self._next()
        except BaseException as error:
            job, self._job = self._job, None
            over = isinstance(error, StopAsyncIteration)
            await job.__aexit__(*((None, None, None) if over else (type(error), error, error.__traceback__)))
            raise

    def __del__(self) -> None:
        job = self._job
        if job is not None and job is self._part and isinstance(job, Progress):
            job._leave("cancelled" if _is_cancelled() else _state_left(sys._getframe().f_back, self._loop))
        elif job is not None:
            job.__exit__(GeneratorExit, GeneratorExit(), None)

    async def _begin(self) -> None:
        items = self._track._items
        is_async = isinstance(items, AsyncIterable)
        self._source = aiter(items) if is_async else iter(items)
        job = self._track._job(sized=not is_async)  # the length of a queryset is a query, which would block the loop
        self._part = await job.__aenter__()
        self._job = job

    async def _next(self) -> T:
        if isinstance(self._source, AsyncIterator):
            return await anext(self._source)
        try:
            return next(self._source)  # type: ignore[no-any-return]  # an item
        except StopIteration:
            raise StopAsyncIteration from None


def track(
    items: Iterable[T] | AsyncIterable[T], to: Topic | str | Part, *, total: float | None = None, **options: Any
) -> Track[T]:
    """
    Return an iterable of the same items, for ``for`` or ``async for``, that tells how far its loop is.

    The loop is the job: it has succeeded when it has gone through all items, and is ``cancelled`` when ``break`` or
    ``return`` leaves it early. Python does not tell an iterator which exception has left its loop, so the job has
    ``failed`` then, without an ``error``, unless the loop is within a ``Progress`` of the same topic. If somebody
    cancels the job, the loop ends with ``Cancelled``.

    Args:
        items: What the loop goes through.
        to: The topic, or a ``Progress`` or ``Part`` whose count it is.
        total: How many items there are. Without it, their ``len``, if they have one; in ``async for`` only if they
            are not asynchronous themselves.
        **options: As for ``Progress``, if ``to`` is a topic.

    Raises:
        TopicError: The topic is not valid.
        Cancelled: In the loop: somebody has asked to cancel the job.

    """
    if isinstance(to, Part) and options:
        raise TypeError(f"{', '.join(options)}: give it to the Progress that this loop is a part of")
    return Track(items, to, total, options)


def _state_left(frame: FrameType | None, loop: CodeType | None) -> State:
    """
    Return how a job has ended whose loop was left early: on purpose, or by an exception.

    An exception drops the loop's iterator while its frame executes what has raised it.

    Args:
        frame: Where the iterator was dropped; None at the end of the interpreter.
        loop: The code in which the loop is; somewhere else nobody knows.

    """
    if frame is None:
        return "failed"
    code, at = frame.f_code.co_code, frame.f_lasti
    on_purpose = frame.f_code is loop and 0 <= at < len(code) and dis.opname[code[at]] in LEFT
    return "cancelled" if on_purpose else "failed"


def _is_cancelled() -> bool:
    """Return whether the running task is being cancelled."""
    try:
        task = asyncio.current_task()
    except RuntimeError:  # no event loop runs in this thread
        return False
    return task is not None and task.cancelling() > 0
