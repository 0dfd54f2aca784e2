"""
The end of access, for all sockets of a process: who was disconnected, logged out, deactivated, or lost a permission.

The web processes are told of it on the control channel. What they were not told, or did not hear, they find when they
look: once a minute, and after each gap of that channel, one query asks for all accounts and one for all sessions.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Iterable
from contextlib import suppress
from typing import Any, Final, Protocol

from . import auth, control
from .conf import settings
from .control import Control, ControlError
from .credentials import Credentials, judge, sessions_have_lasting_keys
from .frames import CloseCode
from .logs import LogBudget, describe
from .loops import PerLoop
from .metrics import count
from .tasks import Supervised
from .topics import Topic
from .wire import Subscription, backoff, confirmed, site_pool

logger = logging.getLogger(__name__)

CHECK_INTERVAL: Final = 50.0
"""Seconds between two looks at all accounts and sessions, up to a fifth less: processes should not ask together, and
a session that expires is closed within a minute."""
CHECK_DELAY: Final = 1.0
"""Seconds between the first doubt about a user and the look at his account: others may follow, and a browser in which
the password was changed must have been given its new session."""
AFTER_FAILURE: Final = 5.0
"""Seconds after a look that the database did not answer at which it is tried again."""
MAX_QUESTIONS: Final = 4
"""``AUTHORIZE`` calls of the process under way at once when permissions are asked again: half of the threads there
are, so that who subscribes now need not wait for them."""
PAIRS_AT_ONCE: Final = 500
"""Permissions that are asked again with accounts that were read together."""
ASKED_EARLY: Final = 0.9
"""Part of ``REAUTHORIZE_INTERVAL`` after which a permission is asked again; what is left of it is for the asking."""


class Socket(Protocol):
    """
    What a socket shows.

    Attributes:
        user: Who it is; replaced by what the database says now, because Django's users remember their permissions.
        credentials: What its access rests on.
        authorized: The topics that ``AUTHORIZE`` has allowed, and when it was asked.

    """

    user: Any
    credentials: Credentials
    authorized: dict[str, float]

    def end_access(self, code: CloseCode, reason: str) -> None:
        """Deliver nothing more, and close."""

    def withdraw(self, topic: str) -> None:
        """Unsubscribe from a topic."""


class Access:
    """Knows the sockets of one event loop by user, and ends their access; its tasks run while there are any."""

    def __init__(self) -> None:
        self._sockets: dict[str, list[Socket]] = {}  # most users have one or two; a set takes three times as much
        self._tasks = (
            Supervised("control channel", self._listen),
            Supervised("access checks", self._check_on),
            Supervised("permission checks", self._ask_on),
        )
        self._log = LogBudget(logger)
        self._wake = asyncio.Event()
        self._doubted: set[str] = set()
        self._due = 0.0
        self._ask_everything = False

    def add(self, user: str, socket: Socket) -> bool:
        """Take care of a socket, until ``remove``; says no if the user has too many."""
        sockets = self._sockets.get(user, [])
        if settings.MAX_CONNECTIONS_PER_USER and len(sockets) >= settings.MAX_CONNECTIONS_PER_USER:
            return False
        if not self._sockets:
            self._due = asyncio.get_running_loop().time() + _spread()
            for task in self._tasks:
                task.start()
        self._sockets.setdefault(user, sockets).append(socket)
        return True

    def remove(self, user: str, socket: Socket) -> None:
        """Forget a socket; no error if it was not added."""
        sockets = self._sockets.get(user, [])
        with suppress(ValueError):
            sockets.remove(socket)
        if not sockets:
            self._sockets.pop(user, None)
        if not self._sockets:
            for task in self._tasks:
                task.stop()

    # What we are told.

    async def _listen(self) -> None:
        delays, had_gap = backoff(), False
        while True:
            subscription = Subscription(self._heard)
            try:
                await subscription.connect(site_pool())
                await confirmed(subscription.subscribe(control.channel()))
                delays = backoff()
                self._look_at_everybody()  # whoever came before we heard anything
                self._ask_everything = had_gap
                reason = await subscription.wait_closed()
            except Exception as error:  # noqa: BLE001  whatever it is, the next attempt may do better
                reason = describe(error)
            finally:
                subscription.close()
            had_gap = True
            count("control_gap")
            delay = next(delays)
            logger.warning("not told of access that ends (%s); trying again in %.1f s", describe(reason), delay)
            await asyncio.sleep(delay)

    def _heard(self, channel: bytes, data: bytes) -> None:
        try:
            told = Control.read(data)
        except ControlError as error:
            count("refused", "control")
            self._log.warning("refused a control message: %s", error)
            return
        if told.do == "check":
            self._look_at(told.user)
            return
        for socket in list(self._sockets.get(told.user, ())):
            if told.do == "revoke":
                socket.withdraw(told.what)
            elif not told.what or told.what == socket.credentials.fingerprint:
                socket.end_access(CloseCode.ACCESS_REVOKED, "logged out" if told.what else "access was revoked")
            elif socket.credentials.session_key is not None and not sessions_have_lasting_keys():
                socket.end_access(CloseCode.TRY_AGAIN, "a session of this user ended")  # perhaps this one: let it show

    # What we look up.

    def _look_at(self, user: str) -> None:
        if user in self._sockets:
            self._doubted.add(user)
            self._wake.set()

    def _look_at_everybody(self) -> None:
        self._due = 0.0
        self._wake.set()

    async def _check_on(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                async with asyncio.timeout_at(self._due):
                    await self._wake.wait()
            except TimeoutError:
                pass
            else:
                await asyncio.sleep(CHECK_DELAY)
            self._wake.clear()
            users, self._doubted = self._doubted, set()
            if loop.time() >= self._due:
                users, self._due = set(self._sockets), loop.time() + _spread()
            if not await _survives(self._check(users)):
                self._due = min(self._due, loop.time() + AFTER_FAILURE)

    async def _check(self, users: Iterable[str]) -> None:
        sockets = [socket for user in users for socket in self._sockets.get(user, ())]
        if not sockets:
            return
        shown = [socket.credentials for socket in sockets]
        for socket, credentials, verdict in zip(sockets, shown, await judge(shown), strict=True):
            if socket.credentials is not credentials:
                continue  # renewed meanwhile
            if verdict.end is not None:
                socket.end_access(*verdict.end)
            else:
                socket.user = verdict.user

    # What we ask again.

    async def _ask_on(self) -> None:
        loop = asyncio.get_running_loop()
        while interval := settings.REAUTHORIZE_INTERVAL:
            await asyncio.sleep(interval * (1 - ASKED_EARLY) / 2)
            before = loop.time() - (0 if self._ask_everything else interval * ASKED_EARLY)
            self._ask_everything = False
            due = {
                (user, topic): socket
                for user, sockets in self._sockets.items()
                for socket in sockets
                for topic, asked in socket.authorized.items()
                if asked <= before
            }
            pairs = list(due)
            for begin in range(0, len(pairs), PAIRS_AT_ONCE):
                some = {pair: due[pair].credentials for pair in pairs[begin : begin + PAIRS_AT_ONCE]}
                await _survives(self._ask_again(some))

    async def _ask_again(self, pairs: dict[tuple[str, str], Credentials]) -> None:
        verdicts = await judge([each._replace(session_key=None) for each in pairs.values()])
        questions = iter([(pair, verdict.user) for pair, verdict in zip(pairs, verdicts, strict=True)])

        async def ask() -> None:
            for (user, topic), account in questions:
                if account is not None:  # otherwise the next check closes the socket
                    self._answered(user, topic, await auth.authorized(account, Topic.parse(topic)))

        async with asyncio.TaskGroup() as tasks:
            for _ in range(MAX_QUESTIONS):
                tasks.create_task(ask())

    def _answered(self, user: str, topic: str, allowed: bool | None) -> None:
        """Act on an answer; when nobody could say, which is None, the question is due again."""
        now = asyncio.get_running_loop().time()
        for socket in list(self._sockets.get(user, ())):
            if topic in socket.authorized and allowed is not None:
                socket.authorized[topic] = now
                if not allowed:
                    socket.withdraw(topic)


async def _survives(job: Awaitable[None]) -> bool:
    """Say whether a job was done; all sockets lean on the task that does it, so it must go on."""
    try:
        await job
    except Exception:
        count("access_check_failed")
        logger.exception("could not look up who still has access; trying again")
        return False
    return True


def _spread() -> float:
    return CHECK_INTERVAL * random.uniform(0.8, 1)  # noqa: S311  not a secret


access = PerLoop(Access)
