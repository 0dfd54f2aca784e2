"""What there is one of for each event loop: asyncio's futures and tasks belong to theirs."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final, Generic, TypeVar, cast

logger = logging.getLogger(__name__)

T = TypeVar("T")

END_TIMEOUT: Final = 5.0
"""Seconds that the end of one thing that belongs to a loop may take, before the loop closes without it."""

_MADE: Final = "_notifications"


class PerLoop(Generic[T]):
    """
    Return the running event loop's instance, creating it on first use.

    The loop itself keeps it, and both go together. A dictionary with weak keys would keep both for good as soon as the
    instance knows its loop, as every lock and event does that somebody has waited for.
    """

    def __init__(self, make: Callable[[], T], end: Callable[[T], Awaitable[None]] | None = None) -> None:
        """
        Prepare; nothing is made before it is asked for.

        Args:
            make: Makes an instance, in its loop.
            end: Ends an instance that has a connection or a task, in its loop, before that closes.

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
                _before_close(loop, partial(self._end, found))
        return cast("T", found)

    def forget(self) -> None:
        """Make new instances from now on; those there are end with their loops."""
        self._key = object()


def _before_close(loop: asyncio.AbstractEventLoop, end: Callable[[], Awaitable[None]]) -> None:
    """
    Have ``end`` run before a loop is closed.

    Whoever is done with a loop closes it; not everybody has its asynchronous generators finalised or its tasks
    cancelled before, as ``asyncio.run`` does. So it is ``close`` that is wrapped, as in channels_redis.
    """
    close: Any = loop.close
    if not isinstance(close, _Closing):
        close = loop.close = _Closing(loop)  # type: ignore[method-assign]
    close.ends.append(end)


class _Closing:
    """Stands for the ``close`` of a loop; the loop alone holds it, so that both may go when nobody closes it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.ends: list[Callable[[], Awaitable[None]]] = []
        self._loop = loop
        self._close = loop.close

    def __call__(self) -> None:
        self._loop.close = self._close  # type: ignore[method-assign]
        if not self._loop.is_running() and not self._loop.is_closed() and not sys.is_finalizing():
            try:
                asyncio.get_running_loop()
            except RuntimeError:
                self._loop.run_until_complete(self._end_all())
            else:  # another loop runs in this thread, so this one cannot
                thread = threading.Thread(target=lambda: self._loop.run_until_complete(self._end_all()), daemon=True)
                thread.start()
                thread.join(END_TIMEOUT)
        self._close()

    async def _end_all(self) -> None:
        while self.ends:
            try:
                async with asyncio.timeout(END_TIMEOUT):
                    await self.ends.pop()()
            except Exception:  # the loop closes all the same
                logger.exception("what belongs to an event loop could not be ended")
        await asyncio.sleep(0)  # transports close their sockets in the next turn
