"""
Redis clients with time-outs that a web request can tolerate.

There is one synchronous pool per process, and one asynchronous pool per event loop. redis-py's defaults can block
a request for 4 to 10 seconds on a dead Redis (measured), so its retries are off. A command that cannot have been
executed is sent again here, once, within the second; one that may have been, only if it may be executed twice.

On a cluster there is a pool for each node, and a call goes to the node that has its first key.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cache, partial
from typing import Any, Final

import redis
import redis.asyncio
from django.core.signals import setting_changed
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, ReadOnlyError

from .. import address
from ..aio import PerLoop
from ..conf import settings
from . import primary
from .breaker import Breaker
from .breaker import StaleConnectionError as StaleConnectionError
from .calls import TOGETHER_TIMEOUT, Calls
from .cluster import Attempt, Cluster
from .connecting import ASYNC_CLASSES, CLASSES, KEEPALIVE, Server, agreet, greet
from .connecting import CONNECT_TIMEOUT as CONNECT_TIMEOUT
from .connecting import FAILURES as FAILURES
from .connecting import SOCKET_TIMEOUT as SOCKET_TIMEOUT
from .node_client import NodeClient
from .nodes import SYNC, Nodes, nodes_of
from .script import Script, filled_in
from .slots import slot_of

IDLE: Final = 1.0
"""Seconds after its last answer at which a connection is probed before it carries a message: routers and load balancers
forget idle connections, some with a reset, some silently."""
PROOF: Final = 0.25
"""Seconds that the probe may take; after that the connection is replaced, and nothing was sent on it."""
MAX_CONNECTIONS: Final = 64
"""Connections of one pool. When all are in use a caller waits ``SOCKET_TIMEOUT`` and then fails."""
MAX_ASYNC_CONNECTIONS: Final = 16
"""Connections of one event loop: with answers within 0.1 ms it needs no more."""

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

    return _road()(keys[0] if keys else "", words, again)


def run_together(calls: Calls) -> None:
    """
    Send calls of a script at once, and take note of the answers, also if it fails; raises the errors of ``run``.

    On a cluster it raises none: those of one node fail, and those of others do not.
    """
    _road()("", lambda _server, _whole: (), calls.again, calls)


def call(*words: Any, again: bool = False) -> Any:
    """Run a command and return its reply; see ``run``. Its first argument is its key."""
    return _road()(words[1] if len(words) > 1 else "", lambda _server, _whole: words, again)


def tell(channel: str, data: str | bytes) -> None:
    """Publish on one of this app's channels. It may arrive twice; raises the errors of ``run``."""
    try:
        call("PUBLISH", channel, data, again=True)
    except FAILURES:
        if (cluster := _cluster()) is None:
            raise
        cluster.tell("PUBLISH", channel, data)


def guarding(key: str = "") -> AbstractContextManager[None]:
    """
    Refuse a call while the breaker of its server is open, and record how one that was made ended.

    Args:
        key: A key of the call, which on a cluster says which server that is. Without one all are tried.

    """
    if (known := nodes()) is None:
        return breaker.guarding()
    return (known.breaker(slot_of(key)) if key else Breaker()).guarding()


def try_again() -> None:
    """Let the next caller try any server, who has something to say that must not be lost and can wait a second."""
    breaker.try_again()
    if (known := nodes()) is not None:
        known.forget_breakers()


def _exchange(
    pool: Any,
    _key: str,
    words: Callable[[Server, bool], tuple[Any, ...]],
    again: bool,
    calls: Calls | None = None,
    attempt: Attempt | None = None,
) -> Any:
    until = time.monotonic() + SOCKET_TIMEOUT if attempt is None else attempt.until
    connection = pool.get_connection()
    whole = repeated = limited = sent = False
    try:
        while True:
            limited = _prove(connection, until) or limited
            fresh, connection.fresh, sent = connection.fresh, False, False
            asking = attempt is not None and attempt.asking
            try:
                if asking and calls is None:
                    connection.send_command("ASKING")
                    connection.read_response()
                if calls is None:
                    connection.send_command(*words(connection.server, whole))
                    sent = True
                    reply = connection.read_response()
                else:
                    sent = True  # the first may be executed although the last could not be sent
                    _exchange_together(connection, calls, asking=asking)
                    reply = None
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
        if attempt is not None:
            attempt.sent = sent
        if limited and connection.connected:  # also when Redis refused: the next caller has the full time-out
            connection.limit(SOCKET_TIMEOUT)
        pool.release(connection)


def _exchange_together(connection: Any, calls: Calls, *, asking: bool) -> None:
    """Send the calls that have no answer; raises the error of those that Redis would execute if it was asked again."""
    until = time.monotonic() + TOGETHER_TIMEOUT
    left = calls.left()
    commands = [calls.command(number, connection.server, whole=number == left[0]) for number in left]
    if asking:
        commands = [each for command in commands for each in (("ASKING",), command)]
    connection.send_packed_command([b"".join(connection.pack_commands(commands))])
    passing: redis.ResponseError | None = None
    for number in left:
        if time.monotonic() > until:
            raise redis.TimeoutError(f"not all was answered within {TOGETHER_TIMEOUT:g} s")
        try:
            if asking:
                connection.read_response()
            calls.answers[number] = connection.read_response()
        except redis.ResponseError as error:
            if isinstance(error, NoScriptError) or from_replica(error) or calls.is_redirected(error):
                passing = error
            else:
                calls.refused(number, error)
    if passing is not None:
        raise passing


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
            connection.probe()
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
def _road() -> Callable[..., Any]:
    """Return what sends a call, given its key, words and ``again``."""
    cluster = _cluster()
    return partial(_exchange, _pool()) if cluster is None else cluster.call


@cache
def _pool() -> redis.BlockingConnectionPool:
    where = address.read(settings.REDIS_URL)
    return _pool_of({} if "path" in where.options else _KEEPALIVE, _leading(where, CLASSES))


def _pool_of(*more: dict[str, Any]) -> redis.BlockingConnectionPool:
    options = {**_OPTIONS, "retry": redis.retry.Retry(NoBackoff(), 0), "redis_connect_func": greet}
    for each in more:
        options |= each
    pool: Any = redis.BlockingConnectionPool
    return pool(**options)  # type: ignore[no-any-return]  # it has no types


@cache
def nodes() -> Nodes | None:
    """Return the nodes of the site's cluster; None if it is on one server."""
    return nodes_of(settings.REDIS_URL) if settings.address.sort is address.Sort.CLUSTER else None


@cache
def _cluster() -> Cluster | None:
    if (known := nodes()) is None:
        return None
    return Cluster(
        known,
        _exchange,
        lambda node: _pool_of({"connection_class": SYNC[known.where.scheme]}, known.options_of(node)),
    )


def async_options(url: str) -> dict[str, Any]:
    """
    Return the options with which a pool of redis-py's asyncio connections connects to a URL.

    Raises:
        AddressError: It is not the URL of a Redis server.

    """
    where = address.read(url)
    keep = {} if "path" in where.options else _KEEPALIVE
    return {**keep, **_leading(where, ASYNC_CLASSES)}


def _leading(where: address.Address, classes: Mapping[str, type]) -> dict[str, Any]:
    """Return the options with which connections of these classes lead to a server, or to whichever is the primary."""
    if where.sort is address.Sort.SENTINEL:
        return primary.leading_to(where, asynchronously=classes is ASYNC_CLASSES)
    return {**where.options, "connection_class": classes[where.scheme]}


def _opened() -> redis.asyncio.Redis:
    if (known := nodes()) is not None:
        return NodeClient(known, _async_pool)
    return redis.asyncio.Redis(connection_pool=_async_pool(async_options(settings.REDIS_URL)))


def _async_pool(options: dict[str, Any]) -> redis.asyncio.ConnectionPool:
    own = {**_ASYNC_OPTIONS, "retry": redis.asyncio.retry.Retry(NoBackoff(), 0), "redis_connect_func": agreet}
    return redis.asyncio.BlockingConnectionPool(**{**own, **options})


async def _disconnect(client: redis.asyncio.Redis) -> None:
    if isinstance(client, NodeClient):
        await client.disconnect()
    else:
        await client.connection_pool.disconnect()


_async_client = PerLoop(_opened, _disconnect)


async def async_client() -> redis.asyncio.Redis:
    """
    Return the client of the running event loop. It has no time-out: use ``aio.Timeout``.

    On a cluster, commands must have one key, or several of one slot, and go to the node that has it; those that have
    none, such as ``INFO`` and ``TIME``, go to any node.
    """
    return _async_client()


breaker = Breaker()


def _forget(*, setting: str, **_: object) -> None:
    if setting == "NOTIFICATIONS":
        if _pool.cache_info().currsize:
            _pool().disconnect()
        if _cluster.cache_info().currsize and (cluster := _cluster()) is not None:
            cluster.disconnect()
        for each in (_road, _pool, _cluster, nodes, nodes_of):
            each.cache_clear()
        primary.forget()
        _async_client.forget()
        breaker.worked()


setting_changed.connect(_forget, dispatch_uid="notifications.connections")
