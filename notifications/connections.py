"""
Redis clients with time-outs that a web request can bear.

One synchronous client a process, one asynchronous client an event loop. redis-py's defaults can hold a
request for 4 to 10 seconds on a dead Redis (measured), so nothing here retries by itself.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator
from functools import cache
from typing import Any, Final
from weakref import WeakKeyDictionary

import redis
import redis.asyncio
from django.core.signals import setting_changed
from redis.backoff import NoBackoff

from .conf import settings

CONNECT_TIMEOUT: Final = 0.5
"""Seconds; a Redis that needs longer to accept is not in this data centre."""
SOCKET_TIMEOUT: Final = 1.0
"""Seconds that one answer, or the wait for a free connection, may take."""
MAX_CONNECTIONS: Final = 64
"""Connections of one client. When all are in use a caller waits ``SOCKET_TIMEOUT`` and then fails."""
FAIL_FAST: Final = 3.0
"""Seconds that a Redis which did not answer in time is not asked again."""

_OPTIONS: Final[dict[str, Any]] = {
    "socket_connect_timeout": CONNECT_TIMEOUT,
    "socket_timeout": SOCKET_TIMEOUT,
    "max_connections": MAX_CONNECTIONS,
    "timeout": SOCKET_TIMEOUT,
    "protocol": 2,
}


@cache
def client() -> redis.Redis:
    """Return this process's client, for any thread; a forked child gets connections of its own."""
    pool = redis.BlockingConnectionPool.from_url(
        settings.REDIS_URL, retry=redis.retry.Retry(NoBackoff(), 0), **_OPTIONS
    )
    return redis.Redis(connection_pool=pool)


async def _open_until_the_loop_ends() -> AsyncGenerator[redis.asyncio.Redis]:
    pool = redis.asyncio.BlockingConnectionPool.from_url(
        settings.REDIS_URL, retry=redis.asyncio.retry.Retry(NoBackoff(), 0), **_OPTIONS
    )
    async with redis.asyncio.Redis(connection_pool=pool) as opened:
        try:
            yield opened
        finally:
            await pool.disconnect()


_per_loop: WeakKeyDictionary[asyncio.AbstractEventLoop, tuple[AsyncGenerator[redis.asyncio.Redis], redis.asyncio.Redis]]
_per_loop = WeakKeyDictionary()
_per_loop_lock = threading.Lock()


async def async_client() -> redis.asyncio.Redis:
    """
    Return the client of the running event loop.

    ``asyncio.run`` and ``async_to_sync`` finalise a loop's asynchronous generators before they close it:
    one that holds the client closes its connections in time, also on the short-lived loops that
    ``async_to_sync`` makes for each call.
    """
    loop = asyncio.get_running_loop()
    if found := _per_loop.get(loop):
        return found[1]
    generator = _open_until_the_loop_ends()
    opened = await anext(generator)
    with _per_loop_lock:
        for other in [other for other in _per_loop if other.is_closed()]:
            del _per_loop[other]
        _per_loop[loop] = generator, opened
    return opened


class Breaker:
    """
    Spares callers the time-out of a Redis that has just let another caller wait for nothing.

    Refused connections answer at once and do not open it, so a restarted Redis is used again without delay.
    """

    def __init__(self) -> None:
        self._open_until = 0.0

    def remaining(self) -> float:
        """Seconds for which nobody should try; 0 when anybody may."""
        return max(0.0, self._open_until - time.monotonic())

    def failed(self, started: float) -> None:
        """Note a failed call that began at ``started`` (``time.monotonic``)."""
        ended = time.monotonic()
        if ended - started >= CONNECT_TIMEOUT / 2:
            self._open_until = ended + FAIL_FAST

    def worked(self) -> None:
        self._open_until = 0.0


breaker = Breaker()


def _forget(*, setting: str, **_: object) -> None:
    if setting == "NOTIFICATIONS":
        if client.cache_info().currsize:
            client().close()
            client().connection_pool.disconnect()
        client.cache_clear()
        _per_loop.clear()
        breaker.worked()


setting_changed.connect(_forget, dispatch_uid="notifications.connections")
