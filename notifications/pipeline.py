"""
Script calls from an event loop: one connection, on which the calls of all tasks follow one another at once.

Redis reads what many calls have written in one go and answers in one packet, which costs it about half of what
the same calls on connections of their own do.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Any, Final

import redis
import redis.asyncio
from django.core.signals import setting_changed

from . import connections
from .connections import SOCKET_TIMEOUT, Script
from .loops import PerLoop
from .wire import Wire, answers_ping, site_pool

NO_SCRIPT: Final = "NOSCRIPT"


async def arun(script: Script, keys: Sequence[str], arguments: Sequence[Any], within: float = SOCKET_TIMEOUT) -> Any:
    """
    Run a script and return its reply; ``connections.run`` for an event loop.

    Calls that wait at the same time are independent: nobody promises their order.

    Args:
        script: Which.
        keys: Redis keys.
        arguments: May contain ``connections.RUN`` and ``STARTED``.
        within: Seconds that it takes at most.

    Raises:
        redis.RedisError, OSError, TimeoutError: As ``connections.FAILURES``.

    """
    if connections.stand_in is not None:
        return connections.stand_in(script, keys, arguments)
    caller: Caller | None = None
    try:
        async with asyncio.timeout(within):
            caller = await _line().caller()
            arguments = connections.filled_in(arguments, caller.server)
            try:
                return await caller.call(*script.command(keys, arguments, whole=False))
            except redis.ResponseError as error:
                if not str(error).startswith(NO_SCRIPT):
                    raise
                return await caller.call(*script.command(keys, arguments, whole=True))
    except TimeoutError:
        if caller is not None:
            caller.suspect(SOCKET_TIMEOUT)
        raise
    except redis.ResponseError as error:
        if caller is not None and connections.from_replica(error):
            caller.close("not the primary any more")  # a new connection finds the one that is now
        raise


class Caller(Wire):
    """
    A connection for calls, each answered in its turn.

    Attributes:
        server: Who answers.

    """

    server: connections.Server

    def __init__(self) -> None:
        super().__init__()
        self._unanswered: deque[asyncio.Future[Any] | None] = deque()

    async def connect(self, pool: redis.asyncio.ConnectionPool) -> None:
        await super().connect(pool)
        self.server = connections.server_of(self._connection)

    async def call(self, *words: Any) -> Any:
        """
        Send a command and return its reply.

        Raises:
            redis.ResponseError: Redis refuses.
            ConnectionError: The connection ended; nobody knows whether it was done.

        """
        if self.is_closed:
            raise ConnectionError(self._closed.result())
        answer: asyncio.Future[Any] = self._loop.create_future()
        self.command(*words)
        self._unanswered.append(answer)
        return await answer

    def suspect(self, silence: float) -> None:
        """End the connection if nothing has been heard for so many seconds: the next call gets a new one."""
        if self._loop.time() - self._heard >= silence:
            self.close("no answer in time")

    def ping(self) -> None:
        super().ping()
        self._unanswered.append(None)

    def got(self, reply: Any) -> None:
        answer = self._unanswered.popleft()
        if answer is None:
            if isinstance(reply, Exception) and not answers_ping(reply):
                self.close(f"Redis says: {reply}")
        elif not answer.done():  # who asked may have gone
            if isinstance(reply, Exception):
                answer.set_exception(redis.ResponseError(str(reply)))
            else:
                answer.set_result(reply)

    def close(self, reason: str = "closed") -> None:
        super().close(reason)
        while self._unanswered:
            answer = self._unanswered.popleft()
            if answer is not None and not answer.done():
                answer.set_exception(ConnectionError(self._closed.result()))


class Line:
    """An event loop's connection for calls, made when it is needed."""

    def __init__(self) -> None:
        self._pool = site_pool(redis_connect_func=connections.aconnected)
        self._caller: Caller | None = None
        self._connecting: asyncio.Task[None] | None = None

    async def caller(self) -> Caller:
        """Return a connection that can take a call; all who need a new one wait for the same."""
        while True:
            caller = self._caller
            if caller is None or caller.is_closed:
                if self._connecting is None:
                    self._connecting = asyncio.create_task(self._connect())
                    self._connecting.add_done_callback(self._connected)
                await asyncio.shield(self._connecting)
            elif caller.ready:
                return caller
            else:
                await caller.room()

    async def _connect(self) -> None:
        caller = Caller()
        try:
            await caller.connect(self._pool)
        except BaseException:
            caller.close()
            raise
        self._caller = caller

    def _connected(self, task: asyncio.Task[None]) -> None:
        self._connecting = None
        if not task.cancelled():
            task.exception()  # whoever still waits gets it

    async def close(self) -> None:
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.wait([self._connecting])
        if self._caller is not None:
            self._caller.close()


_line = PerLoop(Line, Line.close)


def _forget(*, setting: str, **_: object) -> None:
    if setting == "NOTIFICATIONS":
        _line.forget()


setting_changed.connect(_forget, dispatch_uid="notifications.pipeline")
