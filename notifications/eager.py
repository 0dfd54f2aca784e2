"""
Starts what hardly ever waits without a task of its own, as asyncio's eager tasks do from Python 3.12 on.

Most awaitables on the road of a message end in their first step: a server takes a frame, a connection takes a
command. What that step needs is no more than a call.
"""

from __future__ import annotations

from collections.abc import Awaitable, Coroutine, Generator
from contextvars import Context
from types import CoroutineType
from typing import Any


def begin(awaitable: Awaitable[Any], context: Context | None = None) -> Awaitable[Any] | None:
    """
    Make the first step of an awaitable, in the task that runs.

    Args:
        awaitable: What an ``async`` function returned; anything else is not begun.
        context: Where the step is made; the present one if None. A task that goes on with it must have the same.

    Returns:
        None if that step was all, or what is left to be awaited. Its result is lost: this is for what has none.

    Raises:
        BaseException: What the step raised.

    """
    if type(awaitable) is not CoroutineType:
        return awaitable
    step = awaitable.send
    try:
        return _Begun(awaitable, step(None) if context is None else context.run(step, None))
    except StopIteration:
        return None  # how a coroutine says that it is done


class _Begun:
    """Goes on with a coroutine that has made its first step and waits for what this brought."""

    def __init__(self, coroutine: Coroutine[Any, Any, None], waits_for: Any) -> None:
        self._coroutine = coroutine
        self._waits_for = [waits_for]

    def __await__(self) -> Generator[Any, Any, None]:
        return self  # it has all that ``await`` uses of a generator

    def __iter__(self) -> Any:
        return self

    def __next__(self) -> Any:
        return self.send(None)

    def send(self, value: Any) -> Any:
        return self._waits_for.pop() if self._waits_for else self._coroutine.send(value)

    def throw(self, *error: Any) -> Any:
        return self._coroutine.throw(*error)

    def close(self) -> None:
        self._coroutine.close()
