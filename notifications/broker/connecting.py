"""
How connections to Redis are made.

redis-py connects (URL, TLS, accounts, Sentinel, handshake). This module adds a time-out for name
lookups, TCP keepalive, one time-out for everything until a new connection is ready, and the
``run_id`` of the connection's server: scripts get the id of the server they run on, and after a
restart or a failover no connection can name the wrong one.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any, Final, NamedTuple

import redis
import redis.asyncio

from . import resolver

CONNECT_TIMEOUT: Final = 0.5
"""Seconds; a Redis server that takes longer to be found and to accept is not in this data centre."""
SOCKET_TIMEOUT: Final = 1.0
"""Seconds that one answer, a handshake, or the wait for a free connection may take."""
MOMENT: Final = 0.05
"""Minimum time-out in seconds for a step that begins late."""

KEEPALIVE: Final[dict[int, int]] = {
    getattr(socket, name): seconds
    for name, seconds in {"TCP_KEEPIDLE": 15, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}.items()
    if hasattr(socket, name)
}
"""TCP keepalive options, in seconds and probes: they keep routers from forgetting an idle connection, and end one whose
peer has gone. Not every system has all three."""


class Server(NamedTuple):
    """
    What a connection knows about its server.

    Attributes:
        run: The first 12 of the 40 digits of its ``run_id``, which two servers of one site will not share.
        started: The latest time at which it may have started, in ms of its clock. It has no data from before.

    """

    run: str
    started: int


def _server(info: bytes) -> Server:
    facts = dict(line.split(b":", 1) for line in info.splitlines() if b":" in line)
    started = int(facts[b"server_time_usec"]) // 1000
    if not facts.get(b"master_replid2", b"").strip(b"0"):
        # The uptime is rounded down, so the server may be up to a second older, which is on the safe side.
        started -= int(facts[b"uptime_in_seconds"]) * 1000
    # Otherwise it was promoted at an unknown time; before, it only had what had been replicated to it.
    return Server(facts[b"run_id"][:12].decode(), started)


_SECTIONS: Final = ("server", "replication")


class _Timed:
    """
    A synchronous connection, and what is known about it.

    Attributes:
        server: The server that answers.
        answered: When it last answered (``time.monotonic``).
        fresh: Nothing has been sent on it since it was connected.
        deadline: When the next attempt to connect must be done; if that is past, after ``SOCKET_TIMEOUT``.

    """

    server: Server
    answered = 0.0
    fresh = True
    deadline = 0.0
    _until = 0.0
    _sock: Any

    @property
    def connected(self) -> bool:
        return self._sock is not None

    def connect(self) -> None:
        now = time.monotonic()
        self._until = self.deadline if self.deadline > now else now + SOCKET_TIMEOUT
        super().connect()  # type: ignore[misc]  # of redis-py's class behind this one

    def limit(self, seconds: float) -> None:
        """Set the time-out of each answer from now on, in seconds."""
        self._sock.settimeout(max(MOMENT, seconds))


def greet(connection: Any) -> None:
    """Log in on a connection, and note what its server says of itself."""
    connection.limit(connection._until - time.monotonic())
    connection.on_connect()
    for section in _SECTIONS:
        connection.send_command("INFO", section)
    connection.server = _server(b"".join([connection.read_response() for _ in _SECTIONS]))
    connection.answered, connection.fresh = time.monotonic(), True
    connection.limit(SOCKET_TIMEOUT)


class _Tcp(_Timed, redis.Connection):
    def _connect(self) -> Any:
        name, until = self.host, min(self._until, time.monotonic() + CONNECT_TIMEOUT)
        error: OSError = OSError(f"{name} has no address")
        try:
            for found in resolver.addresses(name, until - time.monotonic()):
                self.host = found
                self.socket_connect_timeout = max(MOMENT, until - time.monotonic())
                try:
                    return super()._connect()  # type: ignore[no-untyped-call]  # it has no types
                except OSError as failed:
                    error = failed
            resolver.forget(name)
            raise error
        finally:
            self.host = name  # which a certificate is for, and which errors say


class _Tls(redis.SSLConnection, _Tcp):
    """Wraps in TLS what ``_Tcp`` connects, which is next in the method resolution order."""


class _Unix(_Timed, redis.UnixDomainSocketConnection):
    pass


CLASSES: Final[dict[str, type]] = {"redis": _Tcp, "rediss": _Tls, "unix": _Unix}
"""The classes of synchronous connections, by scheme."""


class _Named:
    """An asyncio connection whose host name is looked up with a time-out."""

    host: str
    socket_connect_timeout: float | None
    _at = ""

    async def _connect(self) -> None:
        error: Exception = OSError(f"{self.host} has no address")
        for found in await resolver.aaddresses(self.host, self.socket_connect_timeout or CONNECT_TIMEOUT):
            self._at = found
            try:
                await super()._connect()  # type: ignore[misc]  # of redis-py's class behind this one
                return
            except (OSError, TimeoutError) as failed:
                error = failed
        resolver.forget(self.host)
        raise error

    def _connection_arguments(self) -> dict[str, Any]:
        arguments = {**super()._connection_arguments(), "host": self._at}  # type: ignore[misc]  # as above
        return {**arguments, "server_hostname": self.host} if arguments.get("ssl") else arguments


@cache
def named(kind: Any) -> Any:
    """Return a class of asyncio connections whose host name is looked up with a time-out."""
    if issubclass(kind, _Named) or not issubclass(kind, redis.asyncio.Connection):
        return kind
    return type(kind.__name__, (_Named, kind), {})


ASYNC_CLASSES: Final[dict[str, type]] = {
    "redis": named(redis.asyncio.Connection),
    "rediss": named(redis.asyncio.SSLConnection),
    "unix": redis.asyncio.UnixDomainSocketConnection,
}
"""The classes of asyncio connections, by scheme."""


async def agreet(connection: Any) -> None:
    """
    Log in on a connection.

    Raises:
        redis.ConnectionError: The message is the server's error before it closed the connection, if there was one.

    """
    reader = connection.reader_at_first = connection._reader
    with _second_handle(connection) as handle:
        try:
            await connection.on_connect()
        except redis.ConnectionError as error:
            if words := last_words(reader) or _refusal(_rest(handle)):
                raise refused(words) from error
            raise


@contextmanager
def _second_handle(connection: Any) -> Iterator[int | None]:
    """
    Duplicate the handle of a connection's socket; None if the system cannot.

    When a write fails, asyncio closes its own handle at once, and the server's error would be lost unread.
    """
    handle = None
    with suppress(OSError):  # Windows duplicates no sockets this way
        handle = os.dup(connection._writer.get_extra_info("socket").fileno())
    try:
        yield handle
    finally:
        if handle is not None:
            os.close(handle)


def _rest(handle: int | None) -> bytes:
    """Return what has arrived but has not been read."""
    with suppress(OSError):
        return b"" if handle is None else os.read(handle, 512)
    return b""


async def agreet_server(connection: Any) -> None:
    """Log in on a connection, and note what its server says of itself."""
    await agreet(connection)
    for section in _SECTIONS:
        await connection.send_command("INFO", section)
    connection.server = _server(b"".join([await connection.read_response() for _ in _SECTIONS]))


def last_words(reader: Any) -> str:
    """
    Return the error that a server sent before it closed the connection.

    It gives the reason, such as ``maxclients``, and closes. A caller that is writing at that moment only gets from
    asyncio that the connection is lost.
    """
    return _refusal(bytes(getattr(reader, "_buffer", b"")))


def refused(words: str) -> redis.ConnectionError:
    """Return the error that redis-py would have raised, had it read these last words of a server."""
    return (redis.AuthenticationError if words.startswith(("NOAUTH", "WRONGPASS")) else redis.ConnectionError)(words)


def _refusal(data: bytes) -> str:
    """Return the error at the beginning of a server's data; empty if there is none."""
    line, _, _ = data.partition(b"\r\n")
    return line[1:].decode(errors="replace") if line.startswith(b"-") else ""


def keep_alive(transport: Any) -> None:
    """Enable TCP keepalive on a transport."""
    sock = transport.get_extra_info("socket")
    if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in KEEPALIVE.items():
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
