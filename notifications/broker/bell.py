"""
A connection that waits until a stream has an entry.

It is asked for with ``XREAD BLOCK``, which on an idle site is one command a second, as many as a connection takes that
is pinged. Its answer, at the latest after that second, shows that the connection is alive. Asking again and again as
fast would take a hundred commands a second.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

import redis

from .wire import Wire, answers_ping

BLOCK: Final = 1.0
"""Seconds after which Redis answers that there is nothing. Silence of ``MAX_SILENCE`` ends the connection."""
MAX_BYTES: Final = 256 * 1024
"""Bytes of an entry above which it is not received: that there is one is known by then, and the connection ends."""


class Bell(Wire):
    """The connection; ``broker.reconnect.connected`` connects and closes it."""

    def __init__(self, stream: str) -> None:
        """Prepare it for the stream of this key."""
        super().__init__()
        self._stream = stream
        self._answer: asyncio.Future[bool] | None = None
        self._bytes = 0

    async def rung(self) -> bool:
        """
        Wait until the stream has an entry, or for ``BLOCK`` seconds; return whether it has.

        Raises:
            redis.ResponseError: Redis refuses.
            ConnectionError: The connection has ended.

        """
        if self.is_closed:
            raise ConnectionError(self._closed.result())
        self._answer, self._bytes = self._loop.create_future(), 0
        # From the beginning of the stream: what is not in it any more has been dealt with.
        milliseconds = str(int(BLOCK * 1000))
        self.command("XREAD", "COUNT", "1", "BLOCK", milliseconds, "STREAMS", self._stream, "0")
        try:
            return await self._answer
        finally:
            self._answer = None

    def ping(self) -> None:
        if self._answer is None:  # Redis reads nothing more of a connection that it lets wait
            super().ping()

    def data_received(self, data: bytes) -> None:
        self._bytes += len(data)
        if self._answer is not None and self._bytes > MAX_BYTES:
            self._resolve(result=True)
            self.close("an entry is too large to be received")
        else:
            super().data_received(data)

    def got(self, reply: Any) -> None:
        if reply is None or type(reply) is list:
            self._resolve(result=reply is not None)
        elif not isinstance(reply, Exception) or answers_ping(reply):
            return
        elif self._answer is not None and not self._answer.done():
            error = redis.ResponseError(str(reply))
            self._answer.set_exception(error)
            self.note_move(error)

    def close(self, reason: str = "closed") -> None:
        super().close(reason)
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionError(reason))

    def _resolve(self, *, result: bool) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(result)
