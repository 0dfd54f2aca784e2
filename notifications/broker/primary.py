"""
The primary of a service, as its Sentinels name it, and connections that lead there.

All Sentinels are asked at once, in threads, because one that hangs must not take the second that a publish has. All
callers who ask in the same moment wait for the same question, whether they are in a thread or in an event loop. What
the Sentinel with the latest configuration says is believed if the server says, too, that it is a primary.

A primary that was cut off, or slept, and was replaced meanwhile does not know: it goes on answering until a Sentinel
reaches it, seconds later. So the Sentinels are asked again while connections are used, and once they name the primary
of a later failover, connections from before are replaced.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, wait
from functools import cache
from typing import Any, Final
from weakref import WeakSet

import redis
import redis.asyncio

from ..address import Address
from ..aio import Timeout
from ..logs import describe
from .connecting import ASYNC_CLASSES, CLASSES, SOCKET_TIMEOUT
from .sentinels import Answer, Asking, Host, Primary

GRACE: Final = 0.1
"""Seconds after the first answer in which others may name the primary of a later failover."""
ANSWER_TTL: Final = 0.1
"""Seconds for which an answer serves new connections. It is so short that nothing needs to be forgotten when a
connection is refused, and yet all callers who notice the end of a primary cost its Sentinels ten questions a second."""
CHECK_INTERVAL: Final = 1.0
"""Seconds after which the Sentinels are asked again, while connections are used or waited for. It takes 1 ms."""
CHECK_WAIT: Final = 0.02
"""Seconds that a synchronous call waits for that answer: what it publishes on a connection that has been idle should
not go to a server that was replaced meanwhile."""
SLOW: Final = 0.25
"""Seconds after which a server that has let us in may have been replaced before it did."""
MAX_LEARNED: Final = 16
"""Sentinels that are remembered beside those of the URL, because these named them."""


class NotPrimaryError(redis.ConnectionError):
    """The server that the Sentinels named says that it is a replica: a failover is not finished."""


class Service:
    """One service of Sentinels, for all connections of this process that were told of it in the same way."""

    def __init__(self, name: str, sentinels: Sequence[Host], scheme: str, options: Mapping[str, Any]) -> None:
        """
        Prepare it; nobody is asked before the first call.

        Args:
            name: What the Sentinels call it.
            sentinels: Their hosts and ports.
            scheme: How they are reached, one of ``connecting.CLASSES``.
            options: Of redis-py's connections to them, such as an account.

        """
        self.name = name
        self.sentinels = [(host, int(port)) for host, port in sentinels]
        self._asking = Asking(name, scheme, options)
        self._learned: list[Host] = []
        self._last: Primary | None = None
        self._answered = self._asked = self._since = 0.0
        self._pending: Future[Primary] | None = None
        self._pid = 0
        with _lock:
            _services.add(self)

    def __repr__(self) -> str:
        hosts = ",".join(f"{host}:{port}" for host, port in self.sentinels)
        return f"<{self.name} of the Sentinels {hosts}>"

    def primary(self, within: float) -> Primary:
        """
        Return the server that the Sentinels name now, or named last if none of them answers.

        Args:
            within: Seconds to wait at most.

        Raises:
            redis.ConnectionError: None of them names any.
            redis.TimeoutError: There is no answer within that time.

        """
        if (known := self._known()) is not None:
            return known
        try:
            return self.ask().result(within)
        except TimeoutError:
            raise self._silent(within) from None

    async def aprimary(self, within: float) -> Primary:
        """Return the server that the Sentinels name without blocking the event loop; see ``primary``."""
        if (known := self._known()) is not None:
            return known
        try:
            async with Timeout(within):
                return await asyncio.wrap_future(self.ask())
        except TimeoutError:
            raise self._silent(within) from None

    def check(self, within: float = 0.0) -> int:
        """
        Return the number of the last failover, as far as is known, and ask the Sentinels again now and then.

        Args:
            within: Seconds to wait for their answer, if they are asked.

        """
        if time.monotonic() - self._asked > CHECK_INTERVAL:
            answer = self.ask()
            if within:
                wait([answer], within)
        return self.failovers

    @property
    def failovers(self) -> int:
        return self._last.failover if self._last is not None else 0

    def survey(self) -> dict[Host, Answer | Exception]:
        """Return what each Sentinel of the URL answers, for the doctor; it blocks for a moment."""
        silent: Exception = redis.TimeoutError("it does not answer")
        return {**dict.fromkeys(self.sentinels, silent), **dict(self._asking.answers(self.sentinels))}

    def disconnect(self) -> None:
        """End the connections to its Sentinels; a later question makes new ones."""
        self._asking.disconnect()

    def _known(self) -> Primary | None:
        return self._last if time.monotonic() - self._answered < ANSWER_TTL else None

    def _silent(self, within: float) -> redis.TimeoutError:
        return redis.TimeoutError(f"no Sentinel named a primary of {self.name} within {within:.1f} s")

    def ask(self, *, anew: bool = False) -> Future[Primary]:
        """
        Return what will hold the answer of the Sentinels.

        Args:
            anew: Whether the answer to a question that somebody is just asking is too old.

        """
        with _lock:
            if self._pending is None or anew or self._pid != os.getpid():  # a fork has no threads
                answer = Future[Primary]()
                answer.set_running_or_notify_cancel()  # one caller giving up must not cancel it for others
                if not anew and (known := self._known()) is not None:
                    answer.set_result(known)  # it came since the caller looked
                    return answer
                self._pending, self._pid, self._asked = answer, os.getpid(), time.monotonic()
                thread = threading.Thread(
                    target=self._find, args=(answer, self._asked), name=f"ask for {self.name}", daemon=True
                )
                try:
                    thread.start()
                except RuntimeError as error:  # the interpreter ends, or there are too many threads
                    self._pending = None
                    self._conclude(answer, self._last, error)
                    return answer
            return self._pending

    def _find(self, answer: Future[Primary], asked: float) -> None:
        error: BaseException = redis.ConnectionError(f"no Sentinel names a primary of {self.name}")
        found: Primary | None = None
        try:
            said = dict(self._asking.answers(self.sentinels, GRACE))
            if not _named(said):
                said |= dict(self._asking.answers(self._learned, GRACE))
            for (host, port), each in said.items():
                if isinstance(each, Exception):
                    error = redis.ConnectionError(f"Sentinel {host}:{port}: {describe(each)}")
            found = self._believed(_named(said))
        except BaseException as failed:  # noqa: BLE001  the waiting callers get it
            error = failed
        with _lock:
            if self._pending is answer:
                self._pending = None
            if found is not None and asked >= self._since:  # no later question has been answered already
                self._last, self._since, self._answered = found, asked, time.monotonic()
        self._conclude(answer, found, error)

    def _conclude(self, answer: Future[Primary], found: Primary | None, error: BaseException) -> None:
        if found is not None:
            answer.set_result(found)
        elif isinstance(error, RuntimeError):  # which no caller of a network expects
            answer.set_exception(redis.ConnectionError(f"the Sentinels of {self.name} cannot be asked: {error}"))
        else:
            answer.set_exception(error)

    def _believed(self, named: list[Answer]) -> Primary | None:
        """Return the primary of the latest failover of which anybody knows."""
        for each in named:
            new = [other for other in each.others if other not in self.sentinels and other not in self._learned]
            self._learned = [*self._learned, *new][-MAX_LEARNED:]
        found = max((each.primary for each in named), key=lambda primary: primary.failover, default=None)
        last = self._last
        # Without an answer the last one is asked itself, for Sentinels only watch: it may go on without them. And a few
        # Sentinels that do not know of it yet may be cut off; when most do not, somebody has set them up anew.
        if last is not None and (
            found is None or (found.failover < last.failover and 2 * len(named) <= len(self.sentinels))
        ):
            return last
        return found


_lock = threading.Lock()
_services: WeakSet[Service] = WeakSet()


def _named(said: Mapping[Host, Answer | Exception]) -> list[Answer]:
    return [each for each in said.values() if not isinstance(each, Exception)]


async def pause(seconds: float) -> None:
    """Sleep before a next attempt to connect, but no longer than until Sentinels tell of a failover."""
    loop = asyncio.get_running_loop()
    until = loop.time() + seconds
    with _lock:
        then = {service: service.failovers for service in _services}
    while (left := until - loop.time()) > 0:
        await asyncio.sleep(min(left, CHECK_INTERVAL / 4) if then else left)
        if any(service.check() > failovers for service, failovers in then.items()):
            return


class _Led:
    """What both kinds of connections know of the service and of the primary to which they lead."""

    host: str
    port: int

    def __init__(self, *, service: Service, **options: Any) -> None:
        super().__init__(**options)
        self.service = service
        self.primary: Primary | None = None
        self._named = 0.0

    @property
    def term(self) -> str:
        """Number the failovers: a primary that becomes one again has lost what it had not replicated before."""
        return "" if self.primary is None else f"/{self.primary.failover}"

    @property
    def outdated(self) -> bool:
        """Whether there was a failover since it was connected."""
        return self.primary is not None and self.service.check() > self.primary.failover

    def _go_to(self, primary: Primary) -> None:
        self.primary, self._named = primary, time.monotonic()
        self.host, self.port = primary.host, primary.port

    def _question(self) -> Future[Primary] | None:
        """Ask again if the server took so long to let us in that it may have been replaced meanwhile."""
        return self.service.ask(anew=True) if time.monotonic() - self._named > SLOW else None

    def _expect_no_failover(self) -> None:
        if self.primary is not None and self.service.failovers > self.primary.failover:
            raise NotPrimaryError(f"{self.host}:{self.port} is no longer the primary of {self.service.name}")

    def _check(self, replication: bytes) -> None:
        if b"role:master" not in replication:
            raise NotPrimaryError(f"{self.host}:{self.port} is a replica: no primary of {self.service.name} yet")


class _SyncLed(_Led):
    @property
    def outdated(self) -> bool:
        return self.primary is not None and self.service.check(CHECK_WAIT) > self.primary.failover

    @property
    def connected(self) -> bool:
        connected: bool = super().connected  # type: ignore[misc]  # of connecting's class behind this one
        if connected and self.outdated:
            self.disconnect()  # type: ignore[attr-defined]  # as above
            return False
        return connected

    def _connect(self) -> Any:
        self._go_to(self.service.primary(self._until - time.monotonic()))  # type: ignore[attr-defined]  # as above
        return super()._connect()  # type: ignore[misc]  # as above

    def on_connect(self) -> None:
        super().on_connect()  # type: ignore[misc]  # as above
        self.send_command("INFO", "replication")  # type: ignore[attr-defined]  # as above
        self._check(self.read_response())  # type: ignore[attr-defined]  # as above
        if (question := self._question()) is not None:
            wait([question], self._until - time.monotonic())  # type: ignore[attr-defined]  # as above
            self._expect_no_failover()


class _AsyncLed(_Led):
    async def connect(self) -> None:
        if self.outdated:
            await self.disconnect()  # type: ignore[attr-defined]  # of connecting's class behind this one
        await super().connect()  # type: ignore[misc]  # as above

    async def _connect(self) -> None:
        self._go_to(await self.service.aprimary(SOCKET_TIMEOUT))
        await super()._connect()  # type: ignore[misc]  # as above

    async def on_connect(self) -> None:
        await super().on_connect()  # type: ignore[misc]  # as above
        await self.send_command("INFO", "replication")  # type: ignore[attr-defined]  # as above
        self._check(await self.read_response())  # type: ignore[attr-defined]  # as above
        if (question := self._question()) is not None:
            await self._answered(question)

    async def confirm(self) -> None:
        """
        Make sure that it still leads to the primary.

        Raises:
            NotPrimaryError: There was a failover meanwhile.

        """
        await self._answered(self.service.ask(anew=True))

    async def _answered(self, question: Future[Primary]) -> None:
        await asyncio.wait([asyncio.wrap_future(question)])
        self._expect_no_failover()


def _led(kind: type, classes: Mapping[str, type]) -> dict[str, type]:
    return {
        scheme: type(f"Led{classes[scheme].__name__}", (kind, classes[scheme]), {}) for scheme in ("redis", "rediss")
    }


_CLASSES: Final = _led(_SyncLed, CLASSES)
_ASYNC_CLASSES: Final = _led(_AsyncLed, ASYNC_CLASSES)


def leading(service: Service, scheme: str) -> dict[str, Any]:
    """Return the options with which a pool of asyncio connections leads to the primary of a service."""
    return {"connection_class": _ASYNC_CLASSES[scheme], "service": service}


def leading_to(where: Address, *, asynchronously: bool) -> dict[str, Any]:
    """Return the options with which a pool of connections leads to the primary of the service that a URL names."""
    own = {name: value for name, value in where.options.items() if not name.startswith(_OF_SENTINELS)}
    classes = _ASYNC_CLASSES if asynchronously else _CLASSES
    return {**own, "connection_class": classes[where.scheme], "service": service_of(where)}


def service_of(where: Address) -> Service:
    """Return the service that a URL names; all that use the URL share it."""
    tls = {name: value for name, value in where.options.items() if name.startswith("ssl_")}
    login = {
        name.removeprefix(_OF_SENTINELS): value
        for name, value in where.options.items()
        if name.startswith(_OF_SENTINELS)
    }
    return _known(where.service, where.hosts, where.scheme, tuple(sorted({**tls, **login}.items())))


_OF_SENTINELS: Final = "sentinel_"


def forget() -> None:
    """Forget the services of all URLs, and end the connections to their Sentinels."""
    _known.cache_clear()
    with _lock:
        services = list(_services)
    for service in services:
        service.disconnect()


@cache
def _known(name: str, sentinels: tuple[Host, ...], scheme: str, options: tuple[tuple[str, Any], ...]) -> Service:
    """Return the only service of this name and these Sentinels."""
    return Service(name, sentinels, scheme, dict(options))


def _begin_anew() -> None:
    """Replace the lock in a child process: a thread that the child does not have may have held it."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)
