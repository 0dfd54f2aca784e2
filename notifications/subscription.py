"""
One pub/sub connection that notices when it is dead.

redis-py connects (URL, TLS, ACL, handshake); from then on the socket is ours and hiredis parses what
arrives in bulk. redis-py's own pub/sub notices neither a hung Redis nor a half-open connection and
reconnects without a word; here silence ends the connection and the owner is told.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator
from typing import Any, Final, Self

import hiredis
import redis.asyncio
from redis.backoff import NoBackoff

from .connections import CONNECT_TIMEOUT

PING_INTERVAL: Final = 1.0
"""Seconds between two pings of ours."""
MAX_SILENCE: Final = 5.0
"""Seconds without a byte, not even a pong, after which the connection is given up."""
HANDSHAKE_TIMEOUT: Final = 2.0
"""Seconds that connecting, authentication and the first confirmation may each take."""


class Subscription(asyncio.Protocol):
    """
    A connection to Redis that receives what is published.

    ``on_message`` is called with channel and payload, in the order of publishing, from the event loop's read
    callback: it must only take note of them. Redis cuts a slow reader off.
    """

    def __init__(self, on_message: Callable[[bytes, bytes], None]) -> None:
        self._on_message = on_message
        self._reader = hiredis.Reader()
        self._loop = asyncio.get_running_loop()
        self._closed: asyncio.Future[str] = self._loop.create_future()
        self._unconfirmed: set[bytes] = set()
        self._all_confirmed: asyncio.Future[None] | None = None
        self._heard = self._loop.time()
        self._ping: asyncio.TimerHandle | None = None
        self._connection: Any = None
        self._transport: asyncio.Transport

    @classmethod
    async def open(cls, url: str, on_message: Callable[[bytes, bytes], None]) -> Self:
        """
        Connect and begin to watch.

        Raises:
            redis.RedisError, OSError, TimeoutError: There is no Redis, or it does not let us in.

        """
        self = cls(on_message)
        pool = redis.asyncio.ConnectionPool.from_url(
            url,
            protocol=2,
            socket_connect_timeout=CONNECT_TIMEOUT,
            socket_timeout=HANDSHAKE_TIMEOUT,
            retry=redis.asyncio.retry.Retry(NoBackoff(), 0),
        )
        connection: Any = pool.make_connection()  # type: ignore[no-untyped-call]
        async with asyncio.timeout(HANDSHAKE_TIMEOUT):
            await connection.connect()
        self._connection = connection
        self._transport = connection._writer.transport  # the stream is idle: every reply has been read
        self._transport.set_protocol(self)
        self._heard = self._loop.time()
        self._ping = self._loop.call_later(PING_INTERVAL, self._watch)
        return self

    async def subscribe(self, *, channels: list[str], patterns: list[str]) -> None:
        """
        Subscribe, and return when Redis has confirmed each.

        Raises:
            TimeoutError: It did not confirm in time.
            ConnectionError: The connection ended, or Redis refused.

        """
        await self._confirmed(("SUBSCRIBE", channels), ("PSUBSCRIBE", patterns))

    async def punsubscribe(self, patterns: list[str]) -> None:
        """Give patterns up, and return when Redis has confirmed; raises as ``subscribe``."""
        await self._confirmed(("PUNSUBSCRIBE", patterns))

    async def _confirmed(self, *commands: tuple[str, list[str]]) -> None:
        self._all_confirmed = self._loop.create_future()
        for command, names in commands:
            self._unconfirmed.update(name.encode() for name in names)
            self._command(command, *names)
        async with asyncio.timeout(HANDSHAKE_TIMEOUT):
            await self._all_confirmed

    async def wait_closed(self) -> str:
        """Wait for the end of the connection, and return why it ended."""
        return await asyncio.shield(self._closed)

    def close(self, reason: str = "closed") -> None:
        """End the connection at once; what has been received has been handed on."""
        if self._ping is not None:
            self._ping.cancel()
        if not self._closed.done():
            self._closed.set_result(reason)
            self._transport.abort()
        if self._all_confirmed is not None and not self._all_confirmed.done():
            self._all_confirmed.set_exception(ConnectionError(reason))
        if self._connection is not None:
            # Only forgets the stream: its own wait for the end would wait for the protocol we replaced.
            self._connection._writer = self._connection._reader = None
            self._connection = None

    def _command(self, *words: str) -> None:
        self._transport.write(hiredis.pack_command(words))  # type: ignore[arg-type]  # its stub takes a 1-tuple

    def _watch(self) -> None:
        if self._loop.time() - self._heard > MAX_SILENCE:
            self.close(f"nothing heard for {MAX_SILENCE:.0f} s")
        else:
            self._command("PING")
            self._ping = self._loop.call_later(PING_INTERVAL, self._watch)

    def _confirmation(self, name: bytes) -> None:
        self._unconfirmed.discard(name)
        if not self._unconfirmed and self._all_confirmed is not None and not self._all_confirmed.done():
            self._all_confirmed.set_result(None)

    # asyncio.Protocol

    def data_received(self, data: bytes) -> None:
        self._heard = self._loop.time()
        self._reader.feed(data)
        next_reply = self._reader.gets
        try:
            while (reply := next_reply()) is not False:
                if type(reply) is list:
                    kind = reply[0]
                    if kind == b"pmessage":
                        self._on_message(reply[2], reply[3])
                    elif kind == b"message":
                        self._on_message(reply[1], reply[2])
                    else:
                        self._confirmation(reply[1])
                elif isinstance(reply, Exception):
                    self.close(f"Redis says: {reply}")
        except hiredis.ProtocolError as error:
            self.close(f"not the Redis protocol: {error}")

    def connection_lost(self, exc: Exception | None) -> None:
        self.close(str(exc) if exc else "closed by Redis")


def backoff(first: float = 0.2, longest: float = 3.0) -> Iterator[float]:
    """Yield seconds to wait before each next try: exponential, with full jitter, so that clients spread out."""
    limit = first
    while True:
        yield random.uniform(0, limit)  # noqa: S311  jitter, not a secret
        limit = min(limit * 2, longest)
