"""
Connections to Redis that notice when they are dead.

redis-py connects (URL, TLS, ACL, Sentinel, handshake); from then on the socket is ours and hiredis parses what
arrives in bulk. redis-py's own pub/sub notices neither a hung Redis nor a half-open connection and reconnects
without a word; here silence ends the connection and the owner is told.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, Final

import hiredis
import redis.asyncio
from redis.backoff import NoBackoff

from ..aio import Timeout
from ..conf import settings
from . import clients
from .clients import IDLE, PROOF, async_options
from .connecting import CONNECT_TIMEOUT, agreet, keep_alive, last_words, named, refused
from .nodes import async_options_of
from .primary import Service
from .slots import Node

PING_INTERVAL: Final = 1.0
"""Seconds between two pings."""
MAX_SILENCE: Final = 3.5
"""Seconds without a byte, not even a pong, after which the connection is given up: including the second that a holder
then has to finish, a stand-by takes over within five."""
HANDSHAKE_TIMEOUT: Final = 2.0
"""Seconds that connecting, authentication and the confirmation of subscriptions may each take."""
DOUBT: Final = 1.5
"""Seconds of silence after which a server that Sentinels may have replaced meanwhile is heard only if they have not."""
PACKET: Final = 64 * 1024
"""Bytes written in one iteration of the event loop after which a writer should let others run."""

POOL_OPTIONS: Final[dict[str, Any]] = {
    "protocol": 2,
    "socket_connect_timeout": CONNECT_TIMEOUT,
    "socket_timeout": None,  # ``connect`` has one for everything
    "redis_connect_func": agreet,
}


def site_pool(key: str | None = None, **options: Any) -> redis.asyncio.ConnectionPool:
    """
    Return a pool that knows how to connect to the site's Redis.

    Args:
        key: On a cluster, connect to the node that has this key at that moment; by default to any.
        options: More options of redis-py's connections.

    """
    nodes = clients.nodes()
    where = async_options(settings.REDIS_URL) if nodes is None else async_options_of(nodes, key=key)
    return make_pool(where, **options)


def make_pool(connecting: dict[str, Any], **options: Any) -> redis.asyncio.ConnectionPool:
    """Return a pool, given the options that say how to connect."""
    return redis.asyncio.ConnectionPool(**{**POOL_OPTIONS, **options, **connecting})


class Wire(asyncio.Protocol):
    """
    One connection. What is written in one turn of the event loop leaves in one packet.

    A subclass says what to do with a reply; it is called from the event loop's read callback, so it must only
    take note. Redis cuts off whoever reads slowly.
    """

    def __init__(self) -> None:
        self._parser = hiredis.Reader()
        self._loop = asyncio.get_running_loop()
        self._closed: asyncio.Future[str] = self._loop.create_future()
        self._heard = self._worked = self._loop.time()
        self._watching: asyncio.TimerHandle | None = None
        self._connection: Any = None
        self._transport: asyncio.Transport
        self._out: list[bytes] = []
        self._this_turn = 0
        self._writable: asyncio.Future[None] | None = None
        self._hearing: asyncio.Future[None] | None = None
        self._service: Service | None = None
        self._held: bytearray | None = None
        self._retired = False

    async def connect(self, pool: redis.asyncio.ConnectionPool) -> None:
        """
        Connect as a pool's connections do, and begin to watch.

        Raises:
            redis.RedisError, OSError, TimeoutError: There is no Redis, or it does not let us in.

        """
        kind: Any = pool.connection_class
        pool.connection_class = named(kind)
        connection: Any = pool.make_connection()  # type: ignore[no-untyped-call]  # it has no types
        connection.retry = redis.asyncio.retry.Retry(NoBackoff(), 0)
        connection.reader_at_first = None
        connection.protocol = 2  # whatever the URL says: ``got`` reads RESP2
        try:
            async with Timeout(HANDSHAKE_TIMEOUT):
                await connection.connect()
                # Before 7.2 Redis lets redis-py connect without the password that it wants, and refuses what follows.
                await connection.send_command("PING")
                with suppress(redis.ResponseError):  # it cannot save, or the account may not ping; but it accepts us
                    await connection.read_response()
                if (confirm := getattr(connection, "confirm", None)) is not None:
                    # Whoever subscribes reads the histories next. A primary that slept until it was replaced executes
                    # what callers have repeated on its successor: all of that would come twice.
                    await confirm()
            if connection._writer.transport.is_closing():
                raise redis.ConnectionError("closed by Redis")  # reported only to the protocol replaced here
        except BaseException as error:
            _abort(connection)
            if isinstance(error, redis.ConnectionError) and (words := last_words(connection.reader_at_first)):
                raise refused(words) from error
            raise
        self._connection = connection
        self._service = getattr(connection, "service", None)
        self._transport = connection._writer.transport  # the stream is idle: every reply has been read
        self._transport.set_protocol(self)
        keep_alive(self._transport)
        self._heard = self._worked = self._loop.time()
        self._watching = self._loop.call_later(PING_INTERVAL, self._watch)

    def command(self, *words: str | bytes) -> None:
        """Send a command at the end of this iteration of the event loop."""
        if not self._this_turn:
            self._loop.call_soon(self._end_turn)
        packed = hiredis.pack_command(words)  # type: ignore[arg-type]  # its stub takes a 1-tuple
        self._out.append(packed)
        self._this_turn += len(packed)

    @property
    def ready(self) -> bool:
        """Whether it can be written to at once: it is known to be alive, Redis keeps up, and others have run."""
        return (
            self._writable is None
            and self._this_turn < PACKET
            and not self._retired
            and not self._closed.done()
            and self._loop.time() - self._worked < IDLE
        )

    async def room(self) -> None:
        """Let others run, and wait until Redis has read enough of what was written before."""
        if self._writable is None:
            await asyncio.sleep(0)
        else:
            await asyncio.shield(self._writable)

    @property
    def proven(self) -> bool:
        """Whether something sent on it was answered so recently that it is known to be alive."""
        return self._loop.time() - self._worked < IDLE

    def hear(self) -> asyncio.Future[None]:
        """Probe the connection, and return a future that is done when anything is received, or when it ends."""
        if self._hearing is None:
            self._hearing = self._loop.create_future()
            if self._closed.done():
                self._hearing.set_result(None)
            else:
                self.ping()
        return self._hearing

    async def prove(self) -> bool:
        """Probe the connection; return False if nothing is received within ``PROOF``."""
        with suppress(TimeoutError):
            async with Timeout(PROOF):
                await asyncio.wait([self.hear()])  # others wait for it, too
        return self.proven and not self._closed.done()

    def got(self, reply: Any) -> None:
        """Handle one reply."""
        raise NotImplementedError

    @property
    def is_closed(self) -> bool:
        return self._closed.done()

    async def wait_closed(self) -> str:
        """Wait for the end of the connection, and return why it ended."""
        return await asyncio.shield(self._closed)

    def close(self, reason: str = "closed") -> None:
        """Close the connection at once; what has been received has already been passed on."""
        if self._watching is not None:
            self._watching.cancel()
        if not self._closed.done():
            self._closed.set_result(reason)
            if self._hearing is not None:
                self._hearing.set_result(None)
            if self._connection is not None:
                self._transport.abort()
        self.resume_writing()
        if self._connection is not None:
            # Only forgets the stream: its own wait for the end would wait for the protocol we replaced.
            self._connection._writer = self._connection._reader = None
            self._connection = None

    def leave(self) -> None:
        """Give up a server that is no longer the primary, though it answers."""
        self.close("there was a failover")

    def _end_turn(self) -> None:
        self._this_turn = 0
        if not self._closed.done():
            self._transport.write(b"".join(self._out))
        self._out.clear()

    def _watch(self) -> None:
        assert self._watching is not None  # noqa: S101  it calls this
        now = self._loop.time()
        if now - self._watching.when() > PING_INTERVAL:
            self._heard = now  # this process slept; what Redis sent in the meantime has not been read yet
        if now - self._heard > MAX_SILENCE:
            self.close(f"nothing heard for {MAX_SILENCE:g} s")
        elif self._service is not None and self._connection.outdated:
            self.leave()
        else:
            self.ping()
            self._watching = self._loop.call_later(PING_INTERVAL, self._watch)

    def note_move(self, error: Exception) -> None:
        """Take note if a node of a cluster says that another one has the slot of the key."""
        nodes = getattr(self._connection, "nodes", None)
        if nodes is not None:
            nodes.told(error, Node(self._connection.host, self._connection.port))

    def ping(self) -> None:
        """Make Redis send something."""
        self.command("PING")

    # asyncio.Protocol

    def data_received(self, data: bytes) -> None:
        if self._service is not None and self._hold(data, self._service):
            return
        self._heard = self._loop.time()
        if self._hearing is not None:
            self._worked = self._heard
            self._hearing.set_result(None)
            self._hearing = None
        self._parser.feed(data)
        next_reply, got = self._parser.gets, self.got
        try:
            while (reply := next_reply()) is not False:
                got(reply)
        except hiredis.ProtocolError as error:
            self.close(f"not the Redis protocol: {error}")

    def _hold(self, data: bytes, service: Service) -> bool:
        """
        Hold what a server says after a silence until the Sentinels have said whether it is still the primary.

        Otherwise it executes now what callers have given up and sent to its successor, and all of that comes twice.
        """
        if self._held is not None:
            self._held += data
        elif self._loop.time() - self._heard > DOUBT:
            self._held = bytearray(data)
            self._transport.pause_reading()
            service.ask(anew=True).add_done_callback(self._asked)
        return self._held is not None

    def _asked(self, _: object) -> None:
        with suppress(RuntimeError):  # the loop has been closed
            self._loop.call_soon_threadsafe(self._release)

    def _release(self) -> None:
        held, self._held = self._held, None
        if held is None or self._closed.done():
            return
        if self._connection.outdated:
            self.close("there was a failover")
            return
        self._heard = self._loop.time()
        self._transport.resume_reading()
        self.data_received(bytes(held))

    def pause_writing(self) -> None:
        if self._writable is None:
            self._writable = self._loop.create_future()

    def resume_writing(self) -> None:
        if self._writable is not None:
            self._writable.set_result(None)
            self._writable = None

    def connection_lost(self, exc: Exception | None) -> None:
        self.close(str(exc) if exc else "closed by Redis")


class Subscription(Wire):
    """A connection that receives what is published: ``on_message(channel, payload)``, in the order of Redis."""

    def __init__(self, on_message: Callable[[bytes, bytes], None]) -> None:
        super().__init__()
        self._on_message = on_message
        self._unconfirmed: deque[asyncio.Future[None]] = deque()

    def subscribe(self, *names: str | bytes, are_patterns: bool = False) -> list[asyncio.Future[None]]:
        """
        Subscribe to channels.

        Args:
            names: Channels, or patterns of their names.
            are_patterns: Whether they are patterns.

        Returns:
            For each name a future that is done when Redis has confirmed it, or fails with ``ConnectionError``.

        """
        return self._confirmed("PSUBSCRIBE" if are_patterns else "SUBSCRIBE", names)

    def unsubscribe(self, *names: str | bytes, are_patterns: bool = False) -> list[asyncio.Future[None]]:
        """End subscriptions; see ``subscribe``."""
        return self._confirmed("PUNSUBSCRIBE" if are_patterns else "UNSUBSCRIBE", names)

    def before(self, *words: str | bytes) -> list[asyncio.Future[None]]:
        """Send a command that Redis answers with an array, ahead of subscriptions; see ``subscribe``."""
        return self._confirmed(words[0], words[1:], answers=1)

    def _confirmed(
        self, command: str | bytes, names: Sequence[str | bytes], answers: int | None = None
    ) -> list[asyncio.Future[None]]:
        confirmed = [self._loop.create_future() for _ in range(len(names) if answers is None else answers)]
        if self.is_closed:
            self._fail(confirmed)
        elif names:
            self._unconfirmed.extend(confirmed)
            self.command(command, *names)
        return confirmed

    def got(self, reply: Any) -> None:
        if type(reply) is list:
            kind = reply[0]
            if kind == b"pmessage":
                self._on_message(reply[2], reply[3])
            elif kind == b"message":
                self._on_message(reply[1], reply[2])
            elif kind != b"pong" and self._unconfirmed:  # none waits behind a refusal, which has closed us
                # Confirmations come in the order of what they confirm, one for each name.
                confirmed = self._unconfirmed.popleft()
                if not confirmed.done():
                    confirmed.set_result(None)
        elif isinstance(reply, Exception) and not answers_ping(reply):
            self.close(f"Redis says: {reply}")

    def close(self, reason: str = "closed") -> None:
        super().close(reason)
        self._fail(self._unconfirmed)
        self._unconfirmed.clear()

    def _fail(self, futures: Iterable[asyncio.Future[None]]) -> None:
        for future in futures:
            if not future.done():
                future.set_exception(ConnectionError(self._closed.result()))
                future.exception()  # waiting callers get it; without any, it can be ignored


class Publisher(Wire):
    """A connection that publishes. At its end ``unanswered`` messages may or may not have reached Redis."""

    def __init__(self, on_refusal: Callable[[Exception], None]) -> None:
        super().__init__()
        self.unanswered = 0
        self._on_refusal = on_refusal

    def publish(self, name: bytes, payload: bytes) -> None:
        self.unanswered += 1
        self.command("PUBLISH", name, payload)

    def got(self, reply: Any) -> None:
        if type(reply) is int:
            self.unanswered -= 1
            self._worked = self._heard
        elif isinstance(reply, Exception) and not answers_ping(reply):
            self.unanswered = max(0, self.unanswered - 1)
            self._on_refusal(reply)

    async def finish(self) -> None:
        """Wait briefly until Redis has answered everything."""
        with suppress(TimeoutError):
            async with Timeout(HANDSHAKE_TIMEOUT):
                while self.unanswered and not self.is_closed:
                    await asyncio.shield(self.hear())


def _abort(connection: Any) -> None:
    if connection._writer is not None:  # redis-py leaves it open when it is cancelled
        connection._writer.transport.abort()
        connection._writer = connection._reader = None


def answers_ping(error: Exception) -> bool:
    """
    Whether this error is how a Redis that cannot save its data answers PING.

    It says so to PING and to what would write, and goes on to publish.
    """
    return str(error).startswith("MISCONF")


async def confirmed(futures: list[asyncio.Future[None]]) -> None:
    """
    Wait until Redis has confirmed.

    Raises:
        TimeoutError: It has not, in time.
        ConnectionError: The connection ended, or Redis refused.

    """
    async with Timeout(HANDSHAKE_TIMEOUT):
        for future in futures:
            await asyncio.shield(future)
