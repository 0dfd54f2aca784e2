"""
Redis clients with time-outs that a web request can bear.

One synchronous pool a process, one asynchronous pool an event loop. redis-py's defaults can hold a
request for 4 to 10 seconds on a dead Redis (measured), so its retries are off. What cannot have been done
is sent again here, once, within the second; what may have been done is sent again only if it may be done twice.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Final

import redis
import redis.asyncio
from django.core.signals import setting_changed
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, ReadOnlyError

from . import address
from .conf import settings
from .connecting import ASYNC_CLASSES, CLASSES, KEEPALIVE, Server, agreet, greet
from .connecting import CONNECT_TIMEOUT as CONNECT_TIMEOUT
from .connecting import SOCKET_TIMEOUT as SOCKET_TIMEOUT
from .loops import PerLoop

IDLE: Final = 1.0
"""Seconds after its last answer at which a connection has to prove that it lives before it carries a message: routers
and load balancers forget connections that are idle, some with a reset, some without a word."""
PROOF: Final = 0.25
"""Seconds that the proof may take; after that the connection is replaced, and nothing was sent on it."""
MAX_CONNECTIONS: Final = 64
"""Connections of one pool. When all are in use a caller waits ``SOCKET_TIMEOUT`` and then fails."""
MAX_ASYNC_CONNECTIONS: Final = 16
"""Connections of one event loop: with an answer in 0.1 ms it has no use for more."""
FAIL_FAST: Final = 3.0
"""Seconds that a Redis which did not answer in time is not asked again."""

FAILURES: Final = (redis.RedisError, OSError, TimeoutError)
"""What a call raises when Redis is not there, does not answer, or refuses."""

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
    # Callers bring their own time-out. redis-py's is a wait_for, which on Python 3.11 swallows a cancellation
    # that comes at the wrong moment: seen as a listener that did not end.
    "socket_timeout": None,
}


class Script:
    """
    A Lua script, made of one or more files of ``lua/``.

    It is one command: what it does happens at once or not at all.
    """

    def __init__(self, *names: str) -> None:
        folder = Path(__file__).parent / "lua"
        self.source = "\n".join((folder / f"{name}.lua").read_text() for name in names)
        self.sha = hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()

    def command(self, keys: Sequence[str], arguments: Sequence[Any], *, whole: bool) -> tuple[Any, ...]:
        """Write the command that runs it: by its hash, or ``whole`` for a server that does not know it."""
        name, text = ("EVAL", self.source) if whole else ("EVALSHA", self.sha)
        return (name, text, len(keys), *keys, *arguments)


RUN: Final = object()
"""Stands in a script's arguments for the server's ``run``."""
STARTED: Final = object()
"""Stands in a script's arguments for the server's ``started``."""


class StaleConnectionError(redis.TimeoutError):
    """The connection had died without a word; Redis answers on a new one."""


def run(script: Script, keys: Sequence[str], arguments: Sequence[Any], *, again: bool = False) -> Any:
    """
    Run a script and return its reply.

    Args:
        script: Which.
        keys: Redis keys.
        arguments: May contain ``RUN`` and ``STARTED``.
        again: It may be done twice. Without this, what may have been done is never sent again.

    Raises:
        redis.RedisError, OSError: As ``FAILURES``.

    """

    def words(server: Server, whole: bool) -> tuple[Any, ...]:
        return script.command(keys, filled_in(arguments, server), whole=whole)

    return _exchange(words, again)


def call(*words: Any, again: bool = False) -> Any:
    """Run a command and return its reply; see ``run``."""
    return _exchange(lambda _server, _whole: words, again)


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
                connection.disconnect()  # it was the primary; a new connection finds the one that is now
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
                # What could not be sent whole cannot have been done.
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
        if limited and connection.connected:  # also when Redis refused: whoever is next has all of their time
            connection.limit(SOCKET_TIMEOUT)
        pool.release(connection)


def _prove(connection: Any, until: float) -> bool:
    """
    Leave a connection of which it is known that it lives, with a new one in its place if it does not.

    Returns:
        Whether it was in doubt; its answers are limited to the time that is left then.

    """
    if connection.connected and connection.answered > max(time.monotonic() - IDLE, _doubted):
        return False
    if connection.connected:
        try:
            connection.limit(PROOF)
            connection.send_command("PING")
            connection.read_response()
        except redis.ResponseError:
            pass  # it cannot save, or the account may not ask; it answers
        except FAILURES:
            connection.disconnect()
    if not connection.connected:
        connection.deadline = until
        connection.connect()
    connection.limit(until - time.monotonic())
    return True


_doubted = 0.0
"""When a connection died without a word; others that have not answered since may have died with it."""


def _lives(connection: Any) -> bool:
    """Say, after a time-out, whether Redis itself answers, and leave the connection a new one then."""
    global _doubted
    _doubted = time.monotonic()
    if breaker.remaining():
        return False  # somebody else has just found out
    connection.deadline = _doubted + PROOF
    try:
        connection.connect()
    except FAILURES:
        return False
    return True


def from_replica(error: redis.ResponseError) -> bool:
    """Say whether a server refused because it is not the primary any more; of a script Redis 6.2 says so within."""
    return isinstance(error, ReadOnlyError) or "READONLY " in str(error)


def filled_in(arguments: Sequence[Any], server: Server) -> list[Any]:
    """Put what is known of the server where ``RUN`` and ``STARTED`` stand."""
    return [
        server.run if argument is RUN else server.started if argument is STARTED else argument for argument in arguments
    ]


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
    Write what a pool of redis-py's asyncio connections needs to connect to a URL.

    Raises:
        AddressError: It is no URL of a Redis.

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
    """Return the client of the running event loop. It waits for as long as it is let: use ``asyncio.timeout``."""
    return _async_client()


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

    @contextmanager
    def guarding(self) -> Iterator[None]:
        """Refuse a call of Redis that would wait for nothing, and take note of how one that was made went."""
        if seconds := self.remaining():
            raise redis.TimeoutError(f"Redis did not answer just now; not asked again for {seconds:.1f} s")
        started = time.monotonic()
        try:
            yield
        except StaleConnectionError:
            raise  # of one connection, not of Redis
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
