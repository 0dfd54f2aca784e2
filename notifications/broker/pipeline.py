"""
Script calls from an event loop: one connection, on which the calls of all tasks are pipelined.

Redis reads many calls at once and answers in one packet, which costs it about half as much as the same calls on
separate connections. On a cluster there is a connection to each node that is needed; see ``lines.py``.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final

import redis
import redis.asyncio
from django.core.signals import setting_changed

from ..aio import PerLoop, Timeout
from . import clients
from .breaker import StaleConnectionError
from .calls import TOGETHER_TIMEOUT, Calls
from .clients import PROOF, SOCKET_TIMEOUT
from .connecting import Server, agreet_server, run_of
from .lines import Lines
from .routing import Words
from .script import Script, filled_in
from .wire import Wire, answers_ping, make_pool, site_pool

NO_SCRIPT: Final = "NOSCRIPT"
_OK: Final = len("OK")
"""The answer to ASKING, which is shorter than any that tells something."""
MAX_TRIES: Final = 3
"""Maximum number of attempts for a call whose connections are lost."""
SILENCE: Final = 1.5
"""Seconds of silence, although it is pinged every second, after which a connection is replaced."""


async def arun(
    script: Script,
    keys: Sequence[str],
    arguments: Sequence[Any],
    within: float = SOCKET_TIMEOUT,
    *,
    again: bool = False,
) -> Any:
    """
    Run a script and return its reply; ``connections.run`` for an event loop.

    Concurrent calls are independent: their order is not guaranteed.

    Args:
        script: The script.
        keys: Redis keys.
        arguments: May contain ``script.RUN`` and ``STARTED``.
        within: Seconds that it takes at most; a little more if a connection has died silently.
        again: It may be executed twice. Without this, what may have been executed is never sent again.

    Raises:
        redis.RedisError, OSError, TimeoutError: See ``clients.FAILURES``.

    """

    def words(server: Server, whole: bool) -> tuple[Any, ...]:
        return script.command(keys, filled_in(arguments, server), whole=whole)

    return await _line().exchange(keys[0] if keys else "", words, within, again)


async def arun_together(calls: Calls, within: float = SOCKET_TIMEOUT) -> None:
    """
    Send calls of a script at once, and take note of the answers, also if it fails.

    On a cluster it raises nothing: those of one node fail, and those of others do not.

    Args:
        calls: The calls.
        within: Seconds that an answer takes at most.

    Raises:
        redis.RedisError, OSError, TimeoutError: See ``clients.FAILURES``.

    """
    await _line().exchange("", lambda _server, _whole: (), within, calls.again, calls)


async def acall(*words: Any, within: float = SOCKET_TIMEOUT, again: bool = False) -> Any:
    """Run a command and return its reply; see ``arun``. Its first argument is its key."""
    return await _line().exchange(words[1] if len(words) > 1 else "", lambda _server, _whole: words, within, again)


async def atell(channel: str | bytes, data: str | bytes) -> None:
    """Publish on one of this app's channels. It may arrive twice; raises the errors of ``arun``."""
    try:
        await acall("PUBLISH", channel, data, again=True)
    except clients.FAILURES:
        if not isinstance(line := _line(), Lines):
            raise
        await line.anywhere("PUBLISH", channel, data, again=True)


async def _exchange_together(caller: Caller, calls: Calls, within: float, limit: Timeout, *, asking: bool) -> None:
    """Send the calls that have no answer; raises the error of those that Redis would execute if it was asked again."""
    loop = asyncio.get_running_loop()
    until = loop.time() + TOGETHER_TIMEOUT
    left = calls.left()
    replies = [
        caller.call(*calls.command(number, caller.server, whole=number == left[0]), asking=asking) for number in left
    ]
    passing: redis.ResponseError | None = None
    lost: ConnectionError | None = None
    try:
        for number, reply in zip(left, replies, strict=True):
            if not reply.done():
                limit.restart(min(within, until - loop.time()))
            try:
                calls.answers[number] = await reply
            except redis.ResponseError as error:
                if str(error).startswith(NO_SCRIPT) or clients.from_replica(error) or calls.is_redirected(error):
                    passing = error
                else:
                    calls.refused(number, error)
            except ConnectionError as error:
                if lost is None or isinstance(lost, NotSentError):  # one that may have been executed decides
                    lost = error
    finally:
        for reply in replies:
            if not reply.cancel() and not reply.cancelled():
                reply.exception()  # it may have one that nobody has seen, because another took too long
    if lost is not None:
        raise lost
    if passing is not None:
        raise passing


class NotSentError(ConnectionError):
    """The connection ended before the call was sent: it cannot have been executed."""


class Caller(Wire):
    """
    A connection for calls, which are answered in order.

    Attributes:
        server: The server that answers.

    """

    server: Server

    def __init__(self, on_silence: Callable[[Caller], None]) -> None:
        """
        Create the connection; ``connect`` connects it.

        Args:
            on_silence: Called at intervals while nothing is received.

        """
        super().__init__()
        self._on_silence = on_silence
        self._unanswered: deque[asyncio.Future[Any] | None] = deque()
        self._unsent = 0
        self._is_node = False
        """Whether it is one to a node of a cluster, which may be replaced, and be the primary again later."""

    async def connect(self, pool: redis.asyncio.ConnectionPool) -> None:
        await super().connect(pool)
        self.server = self._connection.server
        self._is_node = getattr(self._connection, "term", "") is None

    def call(self, *words: Any, asking: bool = False) -> asyncio.Future[Any]:
        """
        Send a command and return a future for its reply.

        With ``asking`` a node of a cluster is told that it was asked for a slot that it is taking over. The future
        fails with ``redis.ResponseError`` if Redis refuses, with ``NotSentError`` if the connection ended before
        the command was sent, and with ``ConnectionError`` if it is not known whether it was executed.
        """
        if self.is_closed:
            raise NotSentError(self._closed.result())
        if asking:
            self.command("ASKING")
            self._unanswered.append(None)
            self._unsent += 1
        answer: asyncio.Future[Any] = self._loop.create_future()
        self.command(*words)
        self._unanswered.append(answer)
        self._unsent += 1
        return answer

    def silent_for(self, seconds: float) -> bool:
        """Return whether nothing has been received for this long."""
        return self._loop.time() - self._heard >= seconds

    @property
    def retired(self) -> bool:
        """Whether it accepts no more calls."""
        return self._retired or self.is_closed

    def leave(self) -> None:
        self.retire()  # what was sent is executed there: sent again to another server, it would come twice

    def retire(self) -> None:
        """Accept no more calls, and close when the pending ones are answered."""
        self._retired = True
        self._end_if_done()

    def end_if_silent(self, since: float) -> None:
        """Close if nothing has been received since."""
        if self._heard <= since:
            self.close("it had died")

    def ping(self) -> None:
        if self._is_node:
            self.command("INFO", "replication")
        else:
            super().ping()
        self._unanswered.append(None)
        self._unsent += 1

    def got(self, reply: Any) -> None:
        if not self._unanswered:
            return  # it has been closed in the meantime
        answer = self._unanswered.popleft()
        if answer is None:
            if isinstance(reply, Exception) and not answers_ping(reply):
                self.close(f"Redis says: {reply}")
            elif self._is_node and type(reply) is bytes and len(reply) > _OK:
                self.server = self.server._replace(run=run_of(reply) or self.server.run)
        else:
            self._worked = self._heard
            if not answer.done():  # the caller may have gone
                if isinstance(reply, Exception):
                    answer.set_exception(redis.ResponseError(str(reply)))
                else:
                    answer.set_result(reply)
        if self._retired:
            self._end_if_done()

    def close(self, reason: str = "closed") -> None:
        super().close(reason)
        sent = len(self._unanswered) - self._unsent
        for number, answer in enumerate(self._unanswered):
            if answer is not None and not answer.done():
                kind = ConnectionError if number < sent else NotSentError
                answer.set_exception(kind(self._closed.result()))
        self._unanswered.clear()

    def _end_turn(self) -> None:
        super()._end_turn()
        if not self.is_closed and not self._transport.is_closing():  # otherwise nothing was sent
            self._unsent = 0

    def _watch(self) -> None:
        super()._watch()
        if not self.is_closed and self.silent_for(SILENCE):
            self._on_silence(self)

    def _end_if_done(self) -> None:
        if all(answer is None or answer.done() for answer in self._unanswered):
            self.close("replaced")


class Line:
    """
    An event loop's connection for calls, created when it is needed.

    While one is silent, a new one is tried. Callers on the old one may have longer time-outs, so the old one is then
    retired: it closes when its pending calls are answered, or when the new one answers and it does not.
    """

    def __init__(self, pool: redis.asyncio.ConnectionPool) -> None:
        """
        Prepare a connection; it connects with the first call.

        Args:
            pool: Knows how to connect, and greets with ``agreet_server``.

        """
        self._pool = pool
        self._caller: Caller | None = None
        self._retired: set[Caller] = set()
        self._connecting: asyncio.Task[None] | None = None
        self._is_closed = False

    async def exchange(
        self,
        _key: str | bytes,
        words: Words,
        within: float,
        again: bool,
        calls: Calls | None = None,
        asking: bool = False,
    ) -> Any:
        """
        Send a call, or ``calls``, and return its reply.

        Args:
            words: Returns the command, given the server that will execute it, and whether it needs the whole script.
            within, again: As for ``arun``.
            calls: Sent instead.
            asking: As for ``Caller.call``.

        """
        caller: Caller | None = None
        whole = False
        tries = 0
        try:
            async with Timeout(within) as limit:
                while True:
                    caller = await self.caller()
                    try:
                        if calls is not None:
                            return await _exchange_together(caller, calls, within, limit, asking=asking)
                        return await caller.call(*words(caller.server, whole), asking=asking)
                    except redis.ResponseError as error:
                        if not whole and str(error).startswith(NO_SCRIPT):
                            whole = True
                            continue
                        if not clients.from_replica(error):
                            raise
                        caller.close("no longer the primary")  # a new connection finds the current one
                        if tries:
                            raise
                    except ConnectionError as error:
                        if tries >= MAX_TRIES - 1 or not (again or isinstance(error, NotSentError)):
                            raise
                    tries += 1
        except TimeoutError as error:
            if caller is not None and await self.died(caller, within):
                raise StaleConnectionError("the connection had died; Redis answers on a new one") from error
            raise

    async def caller(self) -> Caller:
        """Return a connection that can take a call; all callers who need a new one wait for the same one."""
        while True:
            caller = self._caller
            if caller is not None and caller.ready:
                return caller
            if caller is None or caller.retired:
                await asyncio.shield(self._connect())
            elif caller.proven:
                await caller.room()
            elif not await caller.prove():
                await self._renew(caller)

    def retire(self) -> None:
        """Have the next call connect anew."""
        if self._caller is not None:
            self._retired.add(self._caller)
            self._caller.retire()
            self._caller = None

    async def died(self, caller: Caller, within: float) -> bool:
        """
        Return, after a call that timed out, whether only the connection had died.

        Args:
            caller: The connection of the call.
            within: The call's time-out.

        """
        if caller.is_closed or not caller.silent_for(max(PROOF, within / 2)):
            return False
        with suppress(*clients.FAILURES):
            async with Timeout(PROOF):
                if not caller.is_closed:
                    await self._renew(caller)
                if caller.is_closed or not caller.proven:
                    await self.caller()
                    return True
        return False

    async def _renew(self, caller: Caller) -> None:
        """Wait for a new connection, or for data on the current one, which may only be slow."""
        connecting = self._connect()
        await asyncio.wait([connecting, caller.hear()], return_when=asyncio.FIRST_COMPLETED)
        if connecting.done() and not caller.proven:
            connecting.result()  # raises why there is none

    def _silence(self, caller: Caller) -> None:
        if caller is self._caller:
            self._connect()  # to find out whether Redis is silent, or only this connection

    def _connect(self) -> asyncio.Task[None]:
        if self._is_closed:
            raise NotSentError("the event loop closes")
        if self._connecting is None:
            self._connecting = asyncio.create_task(self._connect_once())
            self._connecting.add_done_callback(self._connected)
        return self._connecting

    async def _connect_once(self) -> None:
        caller = Caller(self._silence)
        try:
            await caller.connect(self._pool)
        except BaseException:
            caller.close()
            raise
        old, self._caller = self._caller, caller
        if old is not None and not old.is_closed:
            self._retired.add(old)
            old.retire()
            # Redis answers, so it has read what was sent on the old one: the answers are here, or in transit.
            loop = asyncio.get_running_loop()
            loop.call_later(PROOF, old.end_if_silent, loop.time())

    def _connected(self, task: asyncio.Task[None]) -> None:
        self._connecting = None
        self._retired = {retired for retired in self._retired if not retired.is_closed}
        if not task.cancelled():
            task.exception()  # callers that are still waiting get it

    async def close(self) -> None:
        self._is_closed = True
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.wait([self._connecting])
        for caller in (self._caller, *self._retired):
            if caller is not None:
                caller.close()


def _connected() -> Line | Lines:
    nodes = clients.nodes()
    if nodes is None:
        return Line(site_pool(redis_connect_func=agreet_server))
    return Lines(nodes, lambda options: Line(make_pool(options, redis_connect_func=agreet_server)))


async def _close(line: Line | Lines) -> None:
    await line.close()


_line = PerLoop(_connected, _close)


def _forget(*, setting: str, **_: object) -> None:
    if setting == "NOTIFICATIONS":
        _line.forget()


setting_changed.connect(_forget, dispatch_uid="notifications.pipeline")
