"""
The reconnect loop: connect, wait for the end of the connection, pause, connect again.

It is used by the listener, the control channel of web processes, and the two connections of the
channel layer. Each defines how its connection is made and made ready, and what to do when it has
ended. These are no asynchronous generators: ``loop.shutdown_asyncgens`` would end those in the
midst of their work, and what was being sent would be lost.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Final, NoReturn, TypeVar

import redis.asyncio

from ..logs import describe
from . import primary
from .clients import FAILURES
from .wire import Wire

logger = logging.getLogger(__name__)

W = TypeVar("W", bound=Wire)

STEADY: Final = 5.0
"""Seconds that a connection has to last before the pauses are short again: a Redis that accepts
connections and closes them at once must not be called ten times a second by all processes of a
site."""


LONGEST: Final = 3.0
"""Seconds that a pause lasts at most."""


def backoff(first: float = 0.2, longest: float = LONGEST) -> Iterator[float]:
    """Yield seconds to wait before each next try: exponential, with full jitter, so that clients spread out."""
    limit = first
    while True:
        yield random.uniform(0, limit)  # noqa: S311  jitter, not a secret
        limit = min(limit * 2, longest)


@asynccontextmanager
async def connected(wire: W, pool: redis.asyncio.ConnectionPool) -> AsyncIterator[W]:
    """Connect, and close at the end; raises the errors of ``Wire.connect``."""
    try:
        yield await connect(wire, pool)
    finally:
        wire.close()


async def connect(wire: W, pool: redis.asyncio.ConnectionPool) -> W:
    """Connect, and return the connection; raises the errors of ``Wire.connect``."""
    try:
        await wire.connect(pool)
    except BaseException:
        wire.close()
        raise
    return wire


async def keep_connected(
    connect: Callable[[], Awaitable[W]],
    ready: Callable[[W], Awaitable[None]],
    lost: Callable[[str, float], Awaitable[None]],
    *,
    ended: Callable[[W], Awaitable[None]] | None = None,
    steady: float = STEADY,
    longest: float = LONGEST,
) -> NoReturn:
    """
    Keep a connection until cancelled.

    Args:
        connect: Makes a connection, with a time-out.
        ready: Makes it ready, such as by subscribing, with a time-out.
        lost: Called after each connection that ended or could not be opened, with the reason and
            the seconds until the next attempt.
        ended: Called before a connection is closed, however it ended, also on cancellation, which an error of its own
            would hide.
        steady: Seconds that a connection has to last before the pauses are short again.
        longest: Seconds that a pause lasts at most.

    """
    loop, delays = asyncio.get_running_loop(), backoff(longest=longest)
    while True:
        since: float | None = None
        try:
            wire = await connect()
            try:
                await ready(wire)
                since = loop.time()
                reason = describe(await wire.wait_closed())
            finally:
                try:
                    if ended is not None:
                        await ended(wire)
                finally:
                    wire.close()
        except FAILURES as error:
            reason = describe(error)
        except asyncio.CancelledError:
            if (task := asyncio.current_task()) is None or task.cancelling():
                raise
            reason = "something that it waited for was cancelled"
        except Exception as error:  # such as an option that redis-py does not know: nothing else would log it
            logger.exception("a connection to Redis could not be opened or kept")
            reason = type(error).__name__
        if since is not None and loop.time() - since >= steady:
            delays = backoff(longest=longest)
        delay = next(delays)
        await lost(reason, delay)
        await primary.pause(delay)
