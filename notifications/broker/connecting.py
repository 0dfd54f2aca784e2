"""
How connections to Redis are made.

redis-py connects (URL, TLS, accounts, Sentinel, handshake). This module adds a time-out for name
lookups, TCP keepalive, one time-out for everything until a new connection is ready, and the
``run_id`` of the connection's server: scripts get the id of the server they run on, and after a
restart or a failover no connection can name the wrong one.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any, Final, NamedTuple

import redis
import redis.asyncio

from ..address import EMBEDDED
from ..aio import Timeout
from . import embedded, resolver

CONNECT_TIMEOUT: Final = 0.5
"""Seconds; a Redis server that takes longer to be found and to accept is not in this data centre."""
SOCKET_TIMEOUT: Final = 1.0
"""Seconds that one answer, a handshake, or the wait for a free connection may take."""
MOMENT: Final = 0.05
"""Minimum time-out in seconds for a step that begins late."""
FAILURES: Final = (redis.RedisError, OSError, TimeoutError)
"""The errors of a call when Redis is not reachable, does not answer, or refuses."""

KEEPALIVE: Final[dict[int, int]] = {
    getattr(socket, name): seconds
    for name, seconds in {"TCP_KEEPIDLE": 15, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}.items()
    if hasattr(socket, name)
}
"""TCP keepalive options, in seconds and probes: they keep routers from forgetting an idle connection, and end one whose
peer has gone. Not every system has all three."""


class GroupChannel(str):
    """
    The Redis channel of a channel-layer group on a cluster: one of sharded pub/sub.

    Attributes:
        classic: The channel where the servers have no sharded pub/sub.

    """

    __slots__ = ("classic",)

    classic: str

    def __new__(cls, sharded: str, classic: str) -> GroupChannel:
        channel = super().__new__(cls, sharded)
        channel.classic = classic
        return channel


class Server(NamedTuple):
    """
    What a connection knows about its server.

    Attributes:
        run: The first 12 of the 40 digits of its ``run_id``, which two servers of one site will not share, and behind
            Sentinels the failover in which it became the primary. In a cluster those of its replication.
        started: The latest time at which it may have started, in ms of its clock. It has no data from before.
        channel_of: In a cluster, which channel of a group its scripts publish on; it returns an empty text for none.
        evicts: 1 if it may throw keys away when it is full, otherwise 0.

    """

    run: str
    started: int
    channel_of: Callable[[GroupChannel], str] | None = None
    evicts: int = 0


UNNAMED: Final = "0" * 12
"""The ``run`` of servers that do not say which they are, as those of some services. Then it is not noticed if one takes
over from another without the latest messages of a history; that a history is gone as a whole is, as ever."""


def server_of(info: bytes, time: Sequence[bytes], term: str | None = "") -> Server:
    """
    Judge a server by what it says of itself, of which services may leave out anything.

    Args:
        info: Its answers to ``INFO``.
        time: Its answer to ``TIME``.
        term: Behind Sentinels, the failover in which it became the primary; None for a node of a cluster.

    """
    facts = dict(line.split(b":", 1) for line in info.splitlines() if b":" in line)
    seconds, microseconds = time
    # Of the same answer as the uptime, if it is there: on a busy host another is asked for noticeably later.
    started = int(facts.get(b"server_time_usec", int(seconds) * 1_000_000 + int(microseconds))) // 1000
    if b"master_replid2" in facts and not facts[b"master_replid2"].strip(b"0"):
        # The uptime is rounded down, so the server may be up to a second older, which is on the safe side.
        started -= int(facts.get(b"uptime_in_seconds", 0)) * 1000
    # Otherwise it was promoted at an unknown time; before, it only had what had been replicated to it.
    names = (facts.get(b"run_id", b""), facts.get(b"master_replid", b""))
    name = next((each[:12].decode() for each in names if each.strip(b"0")), UNNAMED)
    run = (run_of(info) or name) if term is None else name + term
    return Server(run, started, evicts=int(facts.get(b"maxmemory_policy") != b"noeviction"))


def run_of(replication: bytes) -> str:
    """
    Return the ``run`` of a node of a cluster, given what ``INFO replication`` says; empty if it does not tell.

    A promotion begins a new one, also that of a node which was the primary before: it has lost by then what had not
    been replicated, and must not count on from there.
    """
    return replication.partition(b"master_replid:")[2][:12].decode()


_QUESTIONS: Final = (("INFO", "server"), ("INFO", "replication"), ("INFO", "memory"), ("TIME",))


def _judge(answers: list[Any], term: str | None) -> Server:
    *sections, time = answers
    for answer in answers:
        # A service may not know INFO; an account that may not use it has to be told, as it can be given the right.
        if isinstance(answer, redis.exceptions.NoPermissionError) or (answer is time and isinstance(time, Exception)):
            raise answer
    return server_of(b"\n".join(each for each in sections if isinstance(each, bytes)), time, term)


class _Timed:
    """
    A synchronous connection, and what is known about it.

    Attributes:
        server: The server that answers.
        answered: When it last answered (``time.monotonic``).
        fresh: Nothing has been sent on it since it was connected.
        term: Tells apart the times in which a server was the primary, where Sentinels count them; None in a cluster,
            whose nodes do so themselves.
        deadline: When the next attempt to connect must be done; if that is past, after ``SOCKET_TIMEOUT``.

    """

    server: Server
    answered = 0.0
    fresh = True
    term: str | None = ""
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

    def probe(self) -> None:
        """Find out whether it is alive, and in a cluster whether its server still is what it was."""
        connection: Any = self
        if self.term is None:
            connection.send_command("INFO", "replication")
            self.server = self.server._replace(run=run_of(connection.read_response()) or self.server.run)
        else:
            connection.send_command("PING")
            connection.read_response()

    def limit(self, seconds: float) -> None:
        """Set the time-out of each answer from now on, in seconds."""
        self._sock.settimeout(max(MOMENT, seconds))


def greet(connection: Any) -> None:
    """Log in on a connection, and note what its server says of itself."""
    connection.limit(connection._until - time.monotonic())
    connection.on_connect()
    for question in _QUESTIONS:
        connection.send_command(*question)
    answers: list[Any] = []
    for _ in _QUESTIONS:
        try:
            answers.append(connection.read_response())
        except redis.ResponseError as error:
            answers.append(error)
    connection.server = _judge(answers, connection.term)
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


class _Embedded(_Unix):
    """Connects to the checkout's own server, which it starts if necessary; one that is dying may still accept."""

    def connect(self) -> None:
        self.path = embedded.ready()
        try:
            super().connect()
        except redis.ConnectionError:
            self.path = embedded.ready()
            super().connect()


CLASSES: Final[dict[str, type]] = {"redis": _Tcp, "rediss": _Tls, "unix": _Unix, EMBEDDED: _Embedded}
"""The classes of synchronous connections, by scheme."""


class _Asynchronous:
    """
    An asyncio connection that, once it is lost, says so to whoever writes, and is made also if the event loop was
    blocked meanwhile.

    redis-py has one time-out for connecting and closing; only closing is left to it here.

    A transport that was closed raises RuntimeError on uvloop, and AttributeError on asyncio in Python 3.12, which
    nobody takes for the loss of a connection. redis-py writes in the first of these methods, or with a time-out in the
    second, which may run a moment later.
    """

    socket_connect_timeout: float | None
    _writer: Any

    @property
    def _connect_timeout(self) -> float:
        return self.socket_connect_timeout or CONNECT_TIMEOUT

    async def _connect(self) -> None:
        seconds, closing = self._connect_timeout, self.socket_connect_timeout
        self.socket_connect_timeout = None
        try:
            async with Timeout(seconds):
                await super()._connect()  # type: ignore[misc]  # of redis-py's class behind this one
        finally:
            self.socket_connect_timeout = closing

    async def send_packed_command(self, *arguments: Any, **options: Any) -> None:
        """Send a command; raises the errors of redis-py."""
        if self._is_lost:
            await self.disconnect(nowait=True)  # type: ignore[attr-defined]  # of redis-py's class behind this one
            raise redis.ConnectionError("closed by Redis")
        await super().send_packed_command(*arguments, **options)  # type: ignore[misc]  # as above

    async def _send_packed_command(self, command: Any) -> None:
        if self._is_lost:
            raise redis.ConnectionError("closed by Redis")
        await super()._send_packed_command(command)  # type: ignore[misc]  # as above

    @property
    def _is_lost(self) -> bool:
        return self._writer is not None and bool(self._writer.transport.is_closing())


class _Named(_Asynchronous):
    """An asyncio connection whose host name is looked up with a time-out."""

    host: str
    _at = ""

    async def _connect(self) -> None:
        error: Exception = OSError(f"{self.host} has no address")
        for found in await resolver.aaddresses(self.host, self._connect_timeout):
            self._at = found
            try:
                await super()._connect()
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


class _AsyncUnix(_Asynchronous, redis.asyncio.UnixDomainSocketConnection):
    @property
    def _connect_timeout(self) -> float:
        return super()._connect_timeout + SOCKET_TIMEOUT  # redis-py logs in meanwhile


class _AsyncEmbedded(_AsyncUnix):
    """Connects to the checkout's own server as ``_Embedded`` does; while that starts, the event loop runs on."""

    async def connect(self) -> None:
        try:
            await super().connect()  # type: ignore[no-untyped-call]  # it has no types
        except redis.ConnectionError as error:
            if isinstance(error.__cause__, embedded.StartError):
                raise
            await super().connect()  # type: ignore[no-untyped-call]  # as above

    async def _connect(self) -> None:
        self.path = await asyncio.to_thread(embedded.ready)
        await super()._connect()


ASYNC_CLASSES: Final[dict[str, type]] = {
    "redis": named(redis.asyncio.Connection),
    "rediss": named(redis.asyncio.SSLConnection),
    "unix": _AsyncUnix,
    EMBEDDED: _AsyncEmbedded,
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
    its = connection._writer.get_extra_info("socket")  # a transport that is closed by now may have none
    with suppress(OSError):  # Windows duplicates no sockets this way
        handle = None if its is None else os.dup(its.fileno())
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
    for question in _QUESTIONS:
        await connection.send_command(*question)
    answers: list[Any] = []
    for _ in _QUESTIONS:
        try:
            answers.append(await connection.read_response())
        except redis.ResponseError as error:
            answers.append(error)
    connection.server = _judge(answers, getattr(connection, "term", ""))


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
