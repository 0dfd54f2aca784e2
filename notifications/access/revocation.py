"""
The end of access, for all sockets of a process: disconnected, logged-out and deactivated users, lost permissions.

The web processes are notified on the control channel. What sent no notification, or was missed, is found by a check:
once a minute, and after each gap of that channel, one query reads all accounts and one all sessions.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter, deque
from collections.abc import Awaitable, Container, Iterable, Sequence
from contextlib import suppress
from itertools import chain
from typing import Any, Final, NamedTuple, Protocol

from ..aio import PerLoop
from ..broker.reconnect import connect, keep_connected
from ..broker.wire import Subscription, confirmed, site_pool
from ..conf import settings
from ..logs import LogBudget, describe, outages
from ..metrics import count, tally
from ..protocol.frames import CloseCode
from ..tasks import Supervised, in_context
from ..tenants import Tenant
from ..topics import Topic
from . import authorization, control
from .authorization import Joining, What, who_answers
from .callbacks import is_outage
from .control import Control, ControlError
from .credentials import Credentials, judge, sessions_have_lasting_keys

logger = logging.getLogger(__name__)

CHECK_INTERVAL: Final = 50.0
"""Seconds between two looks at all accounts and sessions, up to a fifth less: processes should not ask together, and
a session that expires is closed within a minute."""
CHECK_DELAY: Final = 1.0
"""Seconds between the first doubt about a user and the check of their account: others may follow, and a browser in
which the password was changed must have been given its new session."""
AFTER_FAILURE: Final = 5.0
"""Seconds after which a check that the database did not answer is repeated."""
MAX_QUESTIONS: Final = 4
"""Concurrent ``AUTHORIZE`` calls of the process when permissions are checked again: half of the threads, so that new
subscriptions need not wait for them. ``AUTHORIZE_MANY`` is asked about them and new ones together."""
PAIRS_AT_ONCE: Final = 500
"""Permissions that are checked again with accounts that were read together."""
ASKED_EARLY: Final = 0.9
"""Fraction of ``REAUTHORIZE_INTERVAL`` after which a permission is checked again; the rest is for the checks."""
MAX_ENDINGS: Final = 1000
"""Ends of access that are remembered for sockets that are being opened."""
AFTERMATH: Final = 5.0
"""Seconds after an end of access for which new sockets of that user are checked once more: Django sends the signal of a
logout before it deletes the session."""
UNKNOWN_AGE: Final = 60.0
"""Maximum age of credentials, in seconds, where it is not known: behind Channels' own middleware."""
ASK_LATER_FIRST, ASK_LATER_LONGEST = 1.0, 15.0
"""Seconds after which an unanswered question is asked again; they double while nothing is answered."""

Pair = tuple[str, str]
"""A user, by the id of their own topic, and what is asked: of a topic ``AUTHORIZE``, of a kind ``JOIN``."""
NEVER: Final = float("-inf")
"""When a ``JOIN`` was asked that nobody has answered yet."""


class _Question(NamedTuple):
    """What is asked again about a pair, in its tenant, for the account as it is now."""

    pair: Pair
    what: What
    tenant: Tenant
    account: Any


class Socket(Protocol):
    """
    What a socket shows.

    Attributes:
        user: Who it is; replaced by what the database says now, because Django's users remember their permissions.
        is_account_old: Whether something was revoked since ``user`` was read.
        credentials: What its access rests on.
        authorized: The topics that ``AUTHORIZE`` has allowed, and when it was asked.
        unanswered: The topics of which nobody could say.
        joins: The kinds whose ``JOIN`` it is asked for, and when it was asked; ``NEVER`` if nobody could say yet.

    """

    user: Any
    is_account_old: bool
    credentials: Credentials
    authorized: dict[str, float]
    joins: dict[str, float]

    @property
    def unanswered(self) -> Container[str]: ...

    def end_access(self, code: CloseCode, reason: str) -> None:
        """Deliver nothing more, and close."""

    def admit(self, topic: str, as_of: float) -> None:
        """Subscribe to what was unanswered, and was asked then."""

    def withdraw(self, topic: str, *, is_revoked: bool = False) -> None:
        """Unsubscribe from a topic, or refuse what was unanswered; if it was revoked, whatever asked before says."""

    def take(self, kind: str, topics: Sequence[Topic], as_of: float) -> None:
        """Have these topics of a kind without asking, and no others; ``JOIN`` was asked then."""


_gaps: Final = LogBudget(logger, lines=10, period=60.0)
"""Of all event loops: the pauses between two attempts begin anew when the last socket goes and another comes."""


class Access:
    """Knows the sockets of one event loop by user, and ends their access; its tasks run while there are any."""

    def __init__(self) -> None:
        self._sockets: dict[str, list[Socket]] = {}  # most users have one or two; a set takes three times as much
        self._tasks = (
            Supervised("control channel", self._listen),
            Supervised("access checks", self._check_on),
            Supervised("permission checks", self._ask_on),
            Supervised("unanswered permissions", self._ask_later_on),
        )
        self._log = LogBudget(logger)
        self._wake = asyncio.Event()
        self._doubted: set[str] = set()
        self._due = 0.0
        self._heard_since = 0.0
        self._endings: deque[tuple[float, Control]] = deque(maxlen=MAX_ENDINGS)
        self._later: dict[Pair, None] = {}
        self._asked: dict[Pair, float] = {}
        """Since when each pair is being asked about that nobody has revoked meanwhile."""
        self._wanted = asyncio.Event()

    def add(self, user: str, socket: Socket) -> bool:
        """Watch over a socket until ``remove``; return False if the user has too many."""
        sockets = self._sockets.get(user, [])
        if settings.MAX_CONNECTIONS_PER_USER and len(sockets) >= settings.MAX_CONNECTIONS_PER_USER:
            return False
        if not self._sockets:
            self._due = asyncio.get_running_loop().time() + _spread()
            for task in self._tasks:
                task.start()
        self._sockets.setdefault(user, sockets).append(socket)
        self._end_what_was_told_meanwhile(user, socket)
        return True

    def remove(self, user: str, socket: Socket) -> None:
        """Remove a socket; no error if it was not added."""
        sockets = self._sockets.get(user, [])
        with suppress(ValueError):
            sockets.remove(socket)
        if not sockets:
            self._sockets.pop(user, None)
        if not self._sockets:
            for task in self._tasks:
                task.stop()
            self._later = {}

    # Control messages.

    async def _listen(self) -> None:
        await keep_connected(
            lambda: connect(Subscription(self._heard), site_pool()), self._subscribe, self._disconnected
        )

    async def _subscribe(self, subscription: Subscription) -> None:
        await confirmed(subscription.subscribe(control.channel()))
        self._look_at_everybody()  # whoever came before we heard anything
        self._heard_since = asyncio.get_running_loop().time()  # what was allowed before may be revoked since

    async def _disconnected(self, reason: str, delay: float) -> None:
        count("control_gap")
        _gaps.warning("not connected to the control channel (%s); trying again in %.1f s", reason, delay)

    def _heard(self, channel: bytes, data: bytes) -> None:
        try:
            told = Control.read(data)
        except ControlError as error:
            count("refused", "control")
            self._log.warning("refused a control message: %s", error)
            return
        self._endings.append((asyncio.get_running_loop().time(), told))
        self._asked.pop((told.user, told.what), None)
        self._asked.pop((told.user, told.what.partition(":")[0]), None)  # its kind's JOIN was asked before
        for socket in list(self._sockets.get(told.user, ())):
            self._obey(told, socket)

    def _obey(self, told: Control, socket: Socket) -> None:
        if told.do == "check":
            self._look_at(told.user)
        elif told.do == "revoke":
            socket.is_account_old = True
            socket.withdraw(told.what, is_revoked=True)
        elif not told.what or told.what == socket.credentials.fingerprint:
            socket.end_access(CloseCode.ACCESS_REVOKED, "logged out" if told.what else "access was revoked")
        elif socket.credentials.session_key is not None and not sessions_have_lasting_keys():
            socket.end_access(CloseCode.TRY_AGAIN, "a session of this user ended")  # perhaps this one: let it show

    def _end_what_was_told_meanwhile(self, user: str, socket: Socket) -> None:
        """
        End the access of a socket of which we were told while its credentials were being read.

        They may be from before. Where it is not known since when they were read, they are looked up once more; and
        where they were read soon after, because what we were told may not have been done by then.
        """
        if not self._endings:
            return
        as_of = socket.credentials.as_of
        begin = asyncio.get_running_loop().time() - UNKNOWN_AGE if as_of is None else as_of
        for at, told in reversed(self._endings):
            if at < begin - AFTERMATH:
                return
            if told.user == user:
                if as_of is None or at < begin:
                    self._look_at(user)
                else:
                    self._obey(told, socket)
        if len(self._endings) == MAX_ENDINGS:
            self._look_at(user)  # perhaps it is among those that were forgotten

    # Accounts and sessions.

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
            if not await _survives(self._check(users), tally.connections):
                self._due = min(self._due, loop.time() + AFTER_FAILURE)

    async def _check(self, users: Iterable[str]) -> None:
        sockets = [(user, socket) for user in users for socket in self._sockets.get(user, ())]
        if not sockets:
            return
        shown = [socket.credentials for _, socket in sockets]
        for (user, socket), credentials, verdict in zip(sockets, shown, await judge(shown), strict=True):
            if socket.credentials is not credentials:
                self._look_at(user)  # renewed meanwhile, perhaps with what was read before
            elif verdict.end is not None:
                socket.end_access(*verdict.end)
            elif verdict.user is not None:
                socket.user = verdict.user

    # Permissions.

    async def ask(self, socket: Socket, topic: Topic) -> bool | None:
        """
        Ask ``AUTHORIZE`` whether a socket's user may read a topic; None if there is no answer.

        If something was revoked since their account was read, it is read again: what a site asks may be one of its
        fields, or what Django's users remember.
        """
        if not await self._may_ask(socket, topic):
            return None
        return await authorization.authorized(socket.user, topic)

    async def ask_join(self, socket: Socket, kind: str) -> list[Topic] | None:
        """Ask ``JOIN`` which topics a socket's user has without asking; None if there is no answer."""
        what = Joining(socket.credentials.tenant.name, kind)
        if not await self._may_ask(socket, what):
            return None
        return await authorization.joined(socket.user, what)

    async def _may_ask(self, socket: Socket, what: What) -> bool:
        if authorization.is_out(what):
            return False
        return not socket.is_account_old or await _survives(self._renew(socket), 1)

    async def _renew(self, socket: Socket) -> None:
        socket.is_account_old = False  # first: what is revoked while it is read counts
        try:
            (verdict,) = await judge([socket.credentials._replace(session_key=None)])
        except BaseException:
            socket.is_account_old = True
            raise
        if verdict.user is not None:  # otherwise the next check closes it
            socket.user = verdict.user

    async def _ask_on(self) -> None:
        loop = asyncio.get_running_loop()
        while interval := settings.REAUTHORIZE_INTERVAL:
            await asyncio.sleep(interval * (1 - ASKED_EARLY) / 2)
            before = max(loop.time() - interval * ASKED_EARLY, self._heard_since)
            due = {
                (user, what): socket
                for user, sockets in self._sockets.items()
                for socket in sockets
                for what, asked in chain(socket.authorized.items(), socket.joins.items())
                if asked <= before
            }
            pairs = list(due)
            for begin in range(0, len(pairs), PAIRS_AT_ONCE):
                some = {pair: due[pair].credentials for pair in pairs[begin : begin + PAIRS_AT_ONCE]}
                await _survives(self._ask_again(some), len(some))

    async def _ask_again(self, pairs: dict[Pair, Credentials]) -> None:
        as_of = asyncio.get_running_loop().time()  # before the accounts are read
        self._asked |= dict.fromkeys(pairs, as_of)
        try:
            await self._ask_about(pairs, as_of)
        finally:
            for pair in pairs:
                if self._asked.get(pair) == as_of:
                    del self._asked[pair]

    async def _ask_about(self, pairs: dict[Pair, Credentials], as_of: float) -> None:
        verdicts = await judge([each._replace(session_key=None) for each in pairs.values()])
        questions = [
            _Question(pair, _what(pair, each.tenant), each.tenant, verdict.user)
            for (pair, each), verdict in zip(pairs.items(), verdicts, strict=True)
            if verdict.user is not None  # otherwise the next check closes the socket
        ]
        silent = Counter[tuple[str, str]]()  # a few calls that are not answered are enough to know

        async def ask(question: _Question) -> None:
            pair, what, tenant, account = question
            if silent[who_answers(what)] >= MAX_QUESTIONS:
                return  # it stays due
            answer = await in_context(tenant.fresh_context(), _answer(account, what))
            if answer is not None:
                silent.pop(who_answers(what), None)
                if not answer or self._asked.get(pair) == as_of:  # otherwise revoked meanwhile
                    self._answered(*pair, answer, as_of)
                return
            silent[who_answers(what)] += 1
            if pair in self._later:
                self._later[pair] = self._later.pop(pair)  # the others first, next time

        one_by_one = iter([each for each in questions if not _is_asked_together(each.what)])

        async def ask_in_turn() -> None:
            for each in one_by_one:
                await ask(each)

        async with asyncio.TaskGroup() as tasks:
            for each in questions:
                if _is_asked_together(each.what):
                    tasks.create_task(ask(each))
            for _ in range(MAX_QUESTIONS):
                tasks.create_task(ask_in_turn())

    def _answered(self, user: str, what: str, answer: bool | list[Topic], as_of: float) -> None:
        self._later.pop((user, what), None)
        for socket in list(self._sockets.get(user, ())):
            if isinstance(answer, list):
                if what in socket.joins:
                    socket.take(what, answer, as_of)
            elif what not in socket.authorized and what not in socket.unanswered:
                continue  # not subscribed, or by a grant
            elif not answer:
                socket.withdraw(what)
            elif what in socket.authorized:
                socket.authorized[what] = as_of
            else:
                socket.admit(what, as_of)

    # What nobody could answer.

    def ask_later(self, user: str, what: str) -> None:
        """Ask again about a topic or a kind until there is an answer; then notify the waiting sockets."""
        self._later[user, what] = None
        self._wanted.set()

    async def _ask_later_on(self) -> None:
        delay = ASK_LATER_FIRST
        while True:
            await self._wanted.wait()
            await asyncio.sleep(delay * random.uniform(0.5, 1))  # noqa: S311  not a secret
            waiting = {pair: self._waiting_for(*pair) for pair in self._later}
            pairs = [(pair, socket.credentials) for pair, socket in waiting.items() if socket is not None]
            self._later = dict.fromkeys(pair for pair, _ in pairs)
            for begin in range(0, len(pairs), PAIRS_AT_ONCE):
                if not await _survives(self._ask_again(dict(pairs[begin : begin + PAIRS_AT_ONCE])), len(pairs)):
                    break
            answered = len(self._later) < len(pairs) or not pairs
            delay = ASK_LATER_FIRST if answered else min(2 * delay, ASK_LATER_LONGEST)
            if not self._later:
                self._wanted.clear()

    def _waiting_for(self, user: str, what: str) -> Socket | None:
        for socket in self._sockets.get(user, ()):
            if what in socket.unanswered or socket.joins.get(what) == NEVER:
                return socket
        return None


async def _answer(account: Any, what: What) -> bool | list[Topic] | None:
    if isinstance(what, Topic):
        return await authorization.authorized(account, what)
    return await authorization.joined(account, what)


def _what(pair: Pair, tenant: Tenant) -> What:
    _, name = pair
    return Topic.checked_elsewhere(name) if ":" in name else Joining(tenant.name, name)


def _is_asked_together(what: What) -> bool:
    return isinstance(what, Topic) and authorization.is_asked_together(what)


async def _survives(job: Awaitable[None], waiting: int) -> bool:
    """Say whether a job was done; all sockets lean on the task that does it, so it must go on."""
    try:
        await job
    except Exception as error:
        count("access_check_failed")
        if times := outages.due(f"access {is_outage(error)}"):
            if not is_outage(error):
                logger.exception("could not look up who still has access; trying again (%d time(s))", times)
            else:
                logger.error(
                    "could not look up who still has access (%s, %d time(s)); %d socket(s) wait, and stay open",
                    describe(error),
                    times,
                    waiting,
                )
        return False
    return True


def _spread() -> float:
    return CHECK_INTERVAL * random.uniform(0.8, 1)  # noqa: S311  not a secret


access = PerLoop(Access)
