"""
Redis clients with time-outs that a web request can bear.

One synchronous pool a process, one asynchronous pool an event loop. redis-py's defaults can hold a
request for 4 to 10 seconds on a dead Redis (measured), so nothing here retries by itself.

Each connection remembers the ``run_id`` of its server, read when it connects: scripts are told which
server they run on, and after a restart or a failover no connection can say the wrong one.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple
from weakref import WeakKeyDictionary

import redis
import redis.asyncio
from django.core.signals import setting_changed
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, ReadOnlyError

from . import address
from .conf import settings
from .loops import PerLoop

CONNECT_TIMEOUT: Final = 0.5
"""Seconds; a Redis that needs longer to accept is not in this data centre."""
SOCKET_TIMEOUT: Final = 1.0
"""Seconds that one answer, or the wait for a free connection, may take."""
MAX_CONNECTIONS: Final = 64
"""Connections of one pool. When all are in use a caller waits ``SOCKET_TIMEOUT`` and then fails."""
MAX_ASYNC_CONNECTIONS: Final = 16
"""Connections of one event loop: with an answer in 0.1 ms it has no use for more."""
FAIL_FAST: Final = 3.0
"""Seconds that a Redis which did not answer in time is not asked again."""

FAILURES: Final = (redis.RedisError, OSError, TimeoutError)
"""What a call raises when Redis is not there, does not answer, or refuses."""

_OPTIONS: Final[dict[str, Any]] = {
    "socket_connect_timeout": CONNECT_TIMEOUT,
    "socket_timeout": SOCKET_TIMEOUT,
    "max_connections": MAX_CONNECTIONS,
    "timeout": SOCKET_TIMEOUT,
    "protocol": 2,
}
_CLASSES: Final = {"redis": redis.Connection, "rediss": redis.SSLConnection, "unix": redis.UnixDomainSocketConnection}


_ASYNC_OPTIONS: Final[dict[str, Any]] = {
    **_OPTIONS,
    "max_connections": MAX_ASYNC_CONNECTIONS,
    # Callers bring their own time-out. redis-py's is a wait_for, which on Python 3.11 swallows a cancellation
    # that comes at the wrong moment: seen as a listener that did not end.
    "socket_timeout": None,
}
_ASYNC_CLASSES: Final = {
    "redis": redis.asyncio.Connection,
    "rediss": redis.asyncio.SSLConnection,
    "unix": redis.asyncio.UnixDomainSocketConnection,
}


class Script:
    """
    A Lua script, made of one or more files of ``lua/``.

    It is one command: what it does happens at once or not at all.

    Attributes:
        name: Of the last file, which says what the script does.

    """

    def __init__(self, *names: str) -> None:
        self.name = names[-1]
        folder = Path(__file__).parent / "lua"
        self.source = "\n".join((folder / f"{name}.lua").read_text() for name in names)
        self.sha = hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()

    def command(self, keys: Sequence[str], arguments: Sequence[Any], *, whole: bool) -> tuple[Any, ...]:
        """Write the command that runs it: by its hash, or ``whole`` for a server that does not know it."""
        name, text = ("EVAL", self.source) if whole else ("EVALSHA", self.sha)
        return (name, text, len(keys), *keys, *arguments)


class Server(NamedTuple):
    """
    What a connection knows of its server.

    Attributes:
        run: The first 12 of the 40 digits of its ``run_id``: two servers of one site will not share them.
        started: When it was up at the latest, in ms of its clock. It knows nothing of before.

    """

    run: str
    started: int


RUN: Final = object()
"""Stands in a script's arguments for the server's ``run``."""
STARTED: Final = object()
"""Stands in a script's arguments for the server's ``started``."""


stand_in: Callable[[Script, Sequence[str], Sequence[Any]], Any] | None = None
"""Answers scripts in Redis's place while a test of a site wants that; ``testing`` sets it, and nobody else."""


def run(script: Script, keys: Sequence[str], arguments: Sequence[Any]) -> Any:
    """
    Run a script and return its reply.

    Raises:
        redis.RedisError, OSError: As ``FAILURES``.

    """
    if stand_in is not None:
        return stand_in(script, keys, arguments)
    pool: Any = _pool()
    connection = pool.get_connection()
    try:
        arguments = filled_in(arguments, _servers[connection])
        try:
            connection.send_command(*script.command(keys, arguments, whole=False))
            return connection.read_response()
        except NoScriptError:
            connection.send_command(*script.command(keys, arguments, whole=True))
            return connection.read_response()
    except redis.ResponseError as error:
        if from_replica(error):
            connection.disconnect()  # it was the primary; a new connection finds the one that is now
        raise
    except BaseException:
        connection.disconnect()  # an answer may still be on its way
        raise
    finally:
        pool.release(connection)


def from_replica(error: redis.ResponseError) -> bool:
    """Say whether a server refused because it is not the primary any more; of a script Redis 6.2 says so within."""
    return isinstance(error, ReadOnlyError) or "READONLY " in str(error)


_servers: WeakKeyDictionary[Any, Server] = WeakKeyDictionary()
"""By connection."""


def server_of(connection: Any) -> Server:
    """Return what a connection of ours knows of its server."""
    return _servers[connection]


def filled_in(arguments: Sequence[Any], server: Server) -> list[Any]:
    """Put what is known of the server where ``RUN`` and ``STARTED`` stand."""
    return [
        server.run if argument is RUN else server.started if argument is STARTED else argument for argument in arguments
    ]


def _connected(connection: Any) -> None:
    connection.on_connect()
    answers = []
    for section in ("server", "replication"):
        connection.send_command("INFO", section)
        answers.append(connection.read_response())
    _servers[connection] = _server(b"".join(answers))


async def aconnected(connection: Any) -> None:
    """Log in on a connection, and note what its server says of itself."""
    await connection.on_connect()
    answers = []
    for section in ("server", "replication"):
        await connection.send_command("INFO", section)
        answers.append(await connection.read_response())
    _servers[connection] = _server(b"".join(answers))


def _server(info: bytes) -> Server:
    facts = dict(line.split(b":", 1) for line in info.splitlines() if b":" in line)
    started = int(facts[b"server_time_usec"]) // 1000
    if not facts.get(b"master_replid2", b"").strip(b"0"):
        # The uptime is rounded down, so the server is up to a second older than this says: on the safe side.
        started -= int(facts[b"uptime_in_seconds"]) * 1000
    # Otherwise it was promoted, who knows when: until then it knew only what had reached it.
    return Server(facts[b"run_id"][:12].decode(), started)


@cache
def _pool() -> redis.BlockingConnectionPool:
    where = address.read(settings.REDIS_URL)
    options = {
        **_OPTIONS,
        **where.options,
        "retry": redis.retry.Retry(NoBackoff(), 0),
        "redis_connect_func": _connected,
    }
    pool: Any = redis.BlockingConnectionPool
    return pool(connection_class=_CLASSES[where.scheme], **options)  # type: ignore[no-any-return]  # it has no types


def client() -> redis.Redis:
    """Return a client of this process's pool, for any thread; a forked child gets connections of its own."""
    return redis.Redis(connection_pool=_pool())


def async_options(url: str) -> dict[str, Any]:
    """
    Write what a pool of redis-py's asyncio connections needs to connect to a URL.

    Raises:
        AddressError: It is no URL of a Redis.

    """
    where = address.read(url)
    return {"connection_class": _ASYNC_CLASSES[where.scheme], **where.options}


def _opened() -> redis.asyncio.Redis:
    options = {**_ASYNC_OPTIONS, "retry": redis.asyncio.retry.Retry(NoBackoff(), 0), "redis_connect_func": aconnected}
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
