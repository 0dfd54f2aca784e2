"""
Redis clients with time-outs that a web request can tolerate.

There is one synchronous pool per process, and one asynchronous pool per event loop. redis-py's defaults can block
a request for 4 to 10 seconds on a dead Redis (measured), so its retries are off. A command that cannot have been
executed is sent again here, once, within the second; one that may have been, only if it may be executed twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, Final

import redis
import redis.asyncio
from django.core.signals import setting_changed
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, ReadOnlyError

from .. import address
from ..aio import PerLoop
from ..conf import settings
from .connecting import ASYNC_CLASSES, CLASSES, KEEPALIVE, Server, agreet, greet
from .connecting import CONNECT_TIMEOUT as CONNECT_TIMEOUT
from .connecting import SOCKET_TIMEOUT as SOCKET_TIMEOUT
from .script import Script, filled_in

IDLE: Final = 1.0
"""Seconds after its last answer at which a connection is probed before it carries a message: routers and load balancers
forget idle connections, some with a reset, some silently."""
PROOF: Final = 0.25
"""Seconds that the probe may take; after that the connection is replaced, and nothing was sent on it."""
MAX_CONNECTIONS: Final = 64
"""Connections of one pool. When all are in use a caller waits ``SOCKET_TIMEOUT`` and then fails."""
MAX_ASYNC_CONNECTIONS: Final = 16
"""Connections of one event loop: with answers within 0.1 ms it needs no more."""
FAIL_FAST: Final = 3.0
"""Seconds for which a Redis server that did not answer in time is not tried again."""

FAILURES: Final = (redis.RedisError, OSError, TimeoutError)
"""The errors of a call when Redis is not reachable, does not answer, or refuses."""

_KEEPALIVE: Final[dict[str, Any]] = {"socket_keepalive": True, "socket_keepalive_options": KEEPALIVE}
_OPTIONS: Final[dict[str, Any]] = {
    "socket_connect_timeout": CONNECT_TIMEOUT,
    "socket_timeout": SOCKET_TIMEOUT,
    "max_connections": MAX_CONNECTIONS,
    "timeout": SOCKET_TIMEOUT,
    "protocol": 2,
}
_ASYNC_OPTIONS: Final[dict[str, Any]] = {
    **_OPTIONS,
    "max_connections": MAX_ASYNC_CONNECTIONS,
    # Callers have their own time-out. redis-py's is a wait_for, which on Python 3.11 swallows a cancellation
    # that comes at the wrong moment: observed as a listener that did not end.
    "socket_timeout": None,
}


class StaleConnectionError(redis.TimeoutError):
    """The connection had died silently; Redis answers on a new one."""


def run(script: Script, keys: Sequence[str], arguments: Sequence[Any], *, again: bool = False) -> Any:
    """
    Run a script and return its reply.

    Args:
        script: The script.
        keys: Redis keys.
        arguments: May contain ``RUN`` and ``STARTED``.
        again: It may be executed twice. Without this, what may have been executed is never sent again.

    Raises:
        redis.RedisError, OSError: See ``FAILURES``.

    """

    def words(server: Server, whole: bool) -> tuple[Any, ...]:
        return script.command(keys, filled_in(arguments, server), whole=whole)

    return _exchange(words, again)


def call(*words: Any, again: bool = False) -> Any:
    """Run a command and return its reply; see ``run``."""
    return _exchange(lambda _server, _whole: words, again)


def tell(channel: str, data: str | bytes) -> None:
    """Publish on one of this app's channels. It may arrive twice; raises the errors of ``run``."""
    call("PUBLISH", channel, data, again=True)


def _exchange(words: Callable[[Server, bool], tuple[Any, ...]], again: bool) -> Any:
    pool: Any = _pool()
    until = time.monotonic() + SOCKET_TIMEOUT
    connection = pool.get_connection()
    whole = repeated = limited = False
    try:
        while True:
            limited = _prove(connection, until) or limited
            fresh, connection.fresh, sent = connection.fresh, False, False
            try:
                connection.send_command(*words(connection.server, whole))
                sent = True
                reply = connection.read_response()
            except NoScriptError:
                connection.answered = time.monotonic()
                if whole:
                    raise
                whole = True
            except redis.ResponseError as error:
                connection.answered = time.monotonic()
                if not from_replica(error):
                    raise
                connection.disconnect()  # no longer the primary; a new connection finds the current one
                if fresh or repeated:
                    raise
                repeated = True
            except redis.TimeoutError as error:
                connection.disconnect()  # an answer may still be on its way
                if not fresh and _lives(connection):
                    raise StaleConnectionError("the connection had died; Redis answers on a new one") from error
                raise
            except (redis.ConnectionError, OSError):
                connection.disconnect()
                # A command that could not be sent completely cannot have been executed.
                if fresh or repeated or (sent and not again):
                    raise
                repeated = True
            except BaseException:
                connection.disconnect()
                raise
            else:
                connection.answered = time.monotonic()
                return reply
    finally:
        if limited and connection.connected:  # also when Redis refused: the next caller has the full time-out
            connection.limit(SOCKET_TIMEOUT)
        pool.release(connection)


def _prove(connection: Any, until: float) -> bool:
    """
    Make sure that a connection is alive, and reconnect it if it is not.

    Returns:
        Whether it had to be probed; its time-out is then limited to the time that is left.

    """
    if connection.connected and connection.answered > max(time.monotonic() - IDLE, _doubted):
        return False
    if connection.connected:
        try:
            connection.limit(PROOF)
            connection.send_command("PING")
            connection.read_response()
        except redis.ResponseError:
            pass  # it cannot save, or the account may not ping; but it answers
        except FAILURES:
            connection.disconnect()
    if not connection.connected:
        connection.deadline = until
        connection.connect()
    connection.limit(until - time.monotonic())
    return True


_doubted = 0.0
"""When a connection last died silently; others that have not answered since may have died with it."""


def _lives(connection: Any) -> bool:
    """Return, after a time-out, whether Redis itself answers, and if so reconnect the connection."""
    global _doubted
    _doubted = time.monotonic()
    if breaker.remaining():
        return False  # another caller has just found out
    connection.deadline = _doubted + PROOF
    try:
        connection.connect()
    except FAILURES:
        return False
    return True


def from_replica(error: redis.ResponseError) -> bool:
    """Return whether a server refused because it is no longer the primary; Redis 6.2 wraps this error of a script."""
    return isinstance(error, ReadOnlyError) or "READONLY " in str(error)


@cache
def _pool() -> redis.BlockingConnectionPool:
    where = address.read(settings.REDIS_URL)
    options = {
        **_OPTIONS,
        **({} if where.scheme == "unix" else _KEEPALIVE),
        **where.options,
        "retry": redis.retry.Retry(NoBackoff(), 0),
        "redis_connect_func": greet,
    }
    pool: Any = redis.BlockingConnectionPool
    return pool(connection_class=CLASSES[where.scheme], **options)  # type: ignore[no-any-return]  # it has no types


def async_options(url: str) -> dict[str, Any]:
    """
    Return the options with which a pool of redis-py's asyncio connections connects to a URL.

    Raises:
        AddressError: It is not the URL of a Redis server.

    """
    where = address.read(url)
    keep = {} if where.scheme == "unix" else _KEEPALIVE
    return {"connection_class": ASYNC_CLASSES[where.scheme], **keep, **where.options}


def _opened() -> redis.asyncio.Redis:
    options = {**_ASYNC_OPTIONS, "retry": redis.asyncio.retry.Retry(NoBackoff(), 0), "redis_connect_func": agreet}
    pool = redis.asyncio.BlockingConnectionPool(**{**options, **async_options(settings.REDIS_URL)})
    return redis.asyncio.Redis(connection_pool=pool)


async def _disconnect(client: redis.asyncio.Redis) -> None:
    await client.connection_pool.disconnect()


_async_client = PerLoop(_opened, _disconnect)


async def async_client() -> redis.asyncio.Redis:
    """Return the client of the running event loop. It has no time-out: use ``asyncio.timeout``."""
    return _async_client()


class Breaker:
    """
    A circuit breaker: spares callers the time-out of a Redis server that has just timed out for another caller.

    Connections that are refused fail at once and do not open it, so a restarted server is used again without delay.
    """

    def __init__(self) -> None:
        self._open_until = 0.0

    def remaining(self) -> float:
        """Return the seconds for which nobody should try; 0 if anybody may."""
        return max(0.0, self._open_until - time.monotonic())

    def failed(self, started: float) -> None:
        """Note a failed call that began at ``started`` (``time.monotonic``)."""
        ended = time.monotonic()
        if ended - started >= CONNECT_TIMEOUT / 2:
            self._open_until = ended + FAIL_FAST

    def worked(self) -> None:
        self._open_until = 0.0

    def try_again(self) -> None:
        """Let the next caller try, who has something to say that must not be lost and can wait a second for it."""
        self._open_until = 0.0

    @contextmanager
    def guarding(self) -> Iterator[None]:
        """Refuse a call while the breaker is open, and record how one that was made ended."""
        if seconds := self.remaining():
            raise redis.TimeoutError(f"Redis did not answer just now; not asked again for {seconds:.1f} s")
        started = time.monotonic()
        try:
            yield
        except StaleConnectionError:
            raise  # the connection failed, not Redis
        except FAILURES:
            self.failed(started)
            raise
        self.worked()


breaker = Breaker()


def _forget(*, setting: str, **_: object) -> None:
    if setting == "NOTIFICATIONS":
        if _pool.cache_info().currsize:
            _pool().disconnect()
        _pool.cache_clear()
        _async_client.forget()
        breaker.worked()


setting_changed.connect(_forget, dispatch_uid="notifications.connections")
