"""
The server's side of one client: who it is, which topics it reads, its frames and how they are
answered, and how the connection ends.

``delivery/subscriber.py`` delivers the messages, and a ``Transport`` carries the frames. A
transport creates a ``Connection``, asks ``may_open``, calls ``open`` when the client is admitted,
``hear`` for each frame that the client sends, or ``request`` for all that it ever will, and ``end``
when it has gone.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

from msgspec import UNSET

from ..access import authentication, authorization
from ..access.credentials import Credentials, credentials_of
from ..access.revocation import NEVER, access
from ..aio import PerLoop
from ..broker.clients import FAILURES
from ..conf import settings
from ..delivery.subscriber import Delivery, subscribed
from ..exceptions import TopicError
from ..history.position import Position
from ..logs import LogBudget, describe
from ..metrics import count, tally
from ..protocol import frames
from ..protocol.frames import CloseCode, FrameError
from ..tenants import NO_TENANT, Tenant
from ..topics import Topic
from .closing import Closing
from .heartbeat import Heartbeat
from .limits import (
    GUEST_SUBSCRIPTIONS,
    MAX_INVALID_FRAMES,
    MAX_REFUSED_FRAMES,
    MAX_WAITING_FRAMES,
    Pace,
    Strangers,
    addresses,
    guests,
)
from .transport import Transport
from .worklist import Worklist

logger = logging.getLogger(__name__)


class Caller(NamedTuple):
    """
    What a transport knows about the client that opens a connection.

    Attributes:
        address: The client's address, as ``client_address.address_of`` returns it.
        user: The user of its session; None if it has no session, or one that may not be trusted.
        session_key: That session's key.
        as_of: When the session was read, in the event loop's time; None if not known.
        is_known: False if it sent a session that could not be read.
        is_in_doubt: Returns whether the session that it sent may be in the process of being
            replaced by another: then the client is told to come back.
        since: The client's position in its user's own topic, as the client sent it; only with a
            session.

    """

    address: str
    user: Any
    session_key: str | None
    as_of: float | None
    is_known: bool
    is_in_doubt: Callable[[], bool]
    since: str | None


class Unanswered(NamedTuple):
    """A subscription that waits because it is not known yet whether it is allowed."""

    topic: Topic
    since: Position | str | None
    is_refused: bool = False
    """``AUTHORIZE`` has said no; it waits for ``JOIN``."""


_crowd: Final = LogBudget(logger, lines=1, period=60.0)
_log: Final = LogBudget(logger, lines=10, period=60.0)
strangers = PerLoop(Strangers)


class Connection:
    """
    Delivers published messages to one client.

    ``docs/protocol.md`` describes the wire protocol, and ``protocol/frames.py`` defines the frames.

    Attributes:
        user: Its user; None until it has authenticated. Replaced when the account is read again. A guest's is
            ``authentication.GUEST``, about which none of the site's functions is asked.
        is_guest: Whether it has been admitted as a guest. Nobody watches over it, because it has no access that could
            end.
        is_account_old: Whether something was revoked since ``user`` was read.
        credentials: What its access depends on.
        authorized: The topics that ``AUTHORIZE`` has allowed, each with the time at which it was
            asked.
        unanswered: The topics for which it is not known yet.
        joins: The kinds that have a ``JOIN``, each with the time at which it was asked; ``NEVER``
            while there is no answer.

    """

    __slots__ = (
        "_address",
        "_asking",
        "_auth_timer",
        "_can_answer",
        "_closing",
        "_delivery",
        "_given",
        "_heartbeat",
        "_invalid",
        "_is_kept",
        "_own",
        "_pace",
        "_revoked",
        "_tenant",
        "_work",
        "authorized",
        "credentials",
        "is_account_old",
        "is_guest",
        "joins",
        "unanswered",
        "user",
    )

    def __init__(self, transport: Transport, layer: Any) -> None:
        """
        Create a connection; ``end`` must follow.

        Args:
            transport: Carries frames to the client.
            layer: The channel layer. None for a connection that ends as soon as it has answered: it
                is served from the histories, and not watched over, because it has gone before its
                access could end.

        """
        self.user: Any = None
        self.is_guest = False
        self.is_account_old = False
        self.credentials: Credentials
        self.authorized: dict[str, float] = {}
        self.unanswered: dict[str, Unanswered] = {}
        self.joins: dict[str, float] = {}
        self._given: dict[str, bool] = {}
        """The topics that ``JOIN`` has returned, and whether the client has subscribed to them as
        well."""
        self._asking: str | None = None
        self._revoked: dict[str, float] = {}
        """The topics of such kinds that were revoked, and when; an answer of ``JOIN`` may be older."""
        self._tenant = NO_TENANT
        self._own: Topic | None = None
        self._address: str | None = None
        self._pace = Pace()
        self._invalid = 0
        self._work = Worklist(self._failed)
        self._closing = Closing(transport, self._stop)
        self._auth_timer: asyncio.TimerHandle | None = None
        self._heartbeat = Heartbeat(self)
        self._is_kept = layer is not None
        self._can_answer = transport.can_answer
        self._delivery = Delivery(
            layer,
            transport.send_text,
            self._delivery_failed,
            transport.write_texts,
            confirms=transport.can_answer,
        )
        tally.connections += 1

    # What a transport calls.

    def may_open(self, caller: Caller) -> bool:
        """
        Return whether to admit a client; called in the context of its handshake, its tenant's.

        If not, the transport refuses the handshake, and sends nothing.
        """
        if caller.user is None and strangers().is_crowded(caller.address, settings.MAX_UNAUTHENTICATED):
            self._count_crowd()  # a client that is told to close need not, and a server waits for it
            return False
        try:
            self._tenant = Tenant.of_this_context()
        except TopicError as unknown:
            _log.warning("refused a socket: %s", unknown)
            return False
        self._work.context = self._tenant.context
        return True

    async def open(self, caller: Caller) -> None:
        """Start to serve a client that was admitted: it can be sent frames from now on."""
        address = caller.address
        if not addresses.take(address, settings.MAX_CONNECTIONS_PER_ADDRESS):
            await self._too_many("address")
            return
        self._address = address
        if not caller.is_known:
            await self._closing.close(CloseCode.TRY_AGAIN)
            return
        if caller.user is None:
            if not strangers().add(address, self, settings.MAX_UNAUTHENTICATED):
                self._count_crowd()
                await self._closing.close(CloseCode.TOO_MANY_CONNECTIONS)
                return
            self._bound_auth(caller.is_in_doubt)
        else:
            since, error = _checked(caller.since)
            credentials = credentials_of(caller.user, caller.session_key, self._tenant, caller.as_of)
            self._work.add(partial(self._authenticated, credentials, since))
            if error is not None:
                self._work.add(partial(self._invalid_frame, error))

    async def hear(self, text: str | None) -> None:
        """Handle a frame that the client sent; None for one that is not text."""
        if self._closing.begun:
            return
        self._heartbeat.heard()
        frame: frames.Auth | frames.Guest | frames.Action | FrameError
        try:
            frame = frames.decode(text)
        except FrameError as error:
            frame = error
        if self._nobody_yet() and not isinstance(frame, frames.Auth | frames.Guest):
            no_json = isinstance(frame, frames.NotJSONError)
            code = CloseCode.INVALID_MESSAGES if no_json else CloseCode.AUTH_REQUIRED
            await self._closing.refuse(code, 'the first frame is {"type":"auth","token":…}')
        elif isinstance(frame, frames.Pong) and self._delivery.pong(frame.n):
            self._heartbeat.confirmed()
        elif not self._pace.take(self._whose, self._address, guest=self.is_guest):
            await self._hasty_frame()
        elif isinstance(frame, frames.Ping) and self._work.is_aside:
            self._work.add_next(partial(self._handle, frame))  # the site may take long; the server is alive
        elif len(self._work) >= MAX_WAITING_FRAMES:
            await self._closing.close(CloseCode.TOO_SLOW)
        else:
            self._work.add(partial(self._handle, frame))

    async def request(
        self,
        caller: Caller,
        auth: frames.Auth | frames.Guest | None,
        subscriptions: Sequence[frames.Subscribe | frames.FrameError],
    ) -> None:
        """
        Serve a client that was admitted and sends everything at once: instead of ``open`` and ``hear``.

        Such a request is paced as a whole, because a page repeats all its topics whenever it comes
        back.
        """
        await self.open(caller)
        if self._closing.begun:
            return
        if auth is not None:
            self._work.add(partial(self._handle, auth))
        elif self._nobody_yet():
            self._end_without_auth(caller.is_in_doubt, "there is neither a session nor a token")
            return
        self._work.add(partial(self._pace_request, len(subscriptions)))
        for each in subscriptions:
            self._work.add(partial(self._handle, each))

    async def has_answered(self) -> None:
        """Wait until everything is answered, and all that the histories have was sent; at the latest the end."""
        while True:
            await self._work.is_done()
            await self._delivery.is_level()
            if not self._work.busy:
                return

    async def server_stops(self) -> None:
        """Tell the client that the server restarts; see ``Closing.server_stops``."""
        await self._closing.server_stops()

    async def end(self) -> None:
        """Release everything, also when this is cancelled: the client has gone."""
        tally.connections -= 1
        try:
            await self._closing.end()
        finally:
            self._end_auth_timer()
            addresses.give_back(self._address)
            if self.is_guest:
                guests.give_back()
            if self._own is not None and self._is_kept:
                access().remove(self._own.full_id, self)
            self._heartbeat.end()
            try:
                await self._work.end()
            finally:
                tally.unanswered -= len(self.unanswered)
                await self._delivery.end()

    # Frames from the client.

    @property
    def _whose(self) -> str | None:
        """Whose allowance counts, besides the address's; None without a user."""
        return self._own.full_id if self._own is not None else None

    def _nobody_yet(self) -> bool:
        """Return whether nobody has authenticated, and nobody is about to."""
        return self.user is None and not self._work.busy

    async def _failed(self, error: BaseException) -> None:
        logger.error("a socket of user %s failed", getattr(self.user, "pk", None), exc_info=error)
        await self._closing.close(CloseCode.TRY_AGAIN)

    async def _handle(self, frame: frames.Auth | frames.Guest | frames.Action | FrameError) -> None:
        if isinstance(frame, FrameError):
            await self._invalid_frame(frame)
            return
        self._invalid = 0
        if isinstance(frame, frames.Auth):
            await self._authenticate(frame)
        elif isinstance(frame, frames.Guest):
            await self._admit_guest()
        elif isinstance(frame, frames.Ping):
            if self._delivery.asked():
                self._heartbeat.confirmed()
            await self._say(frames.ServerPong())
        elif not isinstance(frame, frames.Pong):
            await self._change_subscription(frame)

    async def _change_subscription(
        self, frame: frames.Subscribe | frames.SubscribeUpload | frames.Unsubscribe | frames.UnsubscribeUpload
    ) -> None:
        try:
            topic = Topic.parse(frame.topic)
        except TopicError as error:
            await self._invalid_frame(FrameError("invalid_message", str(error)))
            return
        if isinstance(frame, frames.Subscribe | frames.SubscribeUpload):
            await self._subscribe(topic, frame.since, frame.grant)
        else:
            await self._unsubscribe(topic)

    # Authentication.

    def _bound_auth(self, is_in_doubt: Callable[[], bool]) -> None:
        loop = asyncio.get_running_loop()
        self._auth_timer = loop.call_later(settings.AUTH_TIMEOUT, self._auth_is_late, is_in_doubt)

    def _end_auth_timer(self) -> None:
        if self._auth_timer is not None:
            self._auth_timer.cancel()
            self._auth_timer = None
            strangers().remove(self._address, self)

    @property
    def has_said_nothing(self) -> bool:
        """Whether it has not even begun to authenticate."""
        return self._nobody_yet()

    def give_way(self) -> None:
        """Close a socket that has not authenticated, because others need its place."""
        if not self._closing.begun:
            self._count_crowd()
            self._closing.at_once(CloseCode.TOO_MANY_CONNECTIONS)

    def _count_crowd(self) -> None:
        count("connection_refused", "unauthenticated")
        _crowd.warning("too many sockets have not authenticated, or too many of one address; the oldest are closed")

    def _auth_is_late(self, is_in_doubt: Callable[[], bool]) -> None:
        if self._nobody_yet():
            self._end_without_auth(is_in_doubt, f"no credentials within {settings.AUTH_TIMEOUT:g} s")

    def _end_without_auth(self, is_in_doubt: Callable[[], bool], message: str) -> None:
        if is_in_doubt():
            self._work.add(partial(self._closing.close, CloseCode.TRY_AGAIN))
        else:
            self._work.add(partial(self._closing.refuse, CloseCode.AUTH_TIMEOUT, message))

    async def _authenticate(self, frame: frames.Auth) -> None:
        since, error = _checked(frame.since)
        if error is not None:
            await self._invalid_frame(error)
        as_of = asyncio.get_running_loop().time()
        try:
            user = await authentication.token_user(frame.token, self._address or "")
        except authentication.AuthUnavailableError:
            await self._closing.close(CloseCode.TRY_AGAIN)
            return
        if user is None:
            await self._closing.refuse(CloseCode.AUTH_FAILED, "the token is not valid, or has expired")
        elif self.user is None:
            await self._authenticated(credentials_of(user, None, self._tenant, as_of), since)
        elif user.pk != self.user.pk:
            await self._closing.refuse(CloseCode.AUTH_FAILED, "the token is another user's")
        else:
            self.user = user
            self.credentials = credentials_of(user, self.credentials.session_key, self._tenant)
            own = self._delivery.position(str(self._own))
            await self._say(frames.AuthSuccess(user_id=str(user.pk), id=own, recovered=None))

    async def _authenticated(self, credentials: Credentials, since: str | None) -> None:
        self.credentials, user = credentials, credentials.user
        self._own = Topic.for_user(user)
        if self._is_kept and not access().add(self._own.full_id, self):  # first of all: the access may end meanwhile
            await self._too_many("user")
            return
        if self._closing.begun:
            return
        try:
            await self._delivery.open()
            recovered, position = await self._delivery.join(self._own, Position.since(since))
        except Exception as error:  # noqa: BLE001  a layer may raise anything
            await self._no_way_in(error)
            return
        self.user = user
        self._end_auth_timer()
        if self._can_answer:
            self._heartbeat.begin()
        told = frames.AuthSuccess(user_id=str(user.pk), id=position and str(position), recovered=recovered)
        await self._begin(self._own, told)
        await self._give_what_all_have()
        for kind in settings.joining:
            if not self._closing.begun:
                await self._ask_join(kind)

    async def _admit_guest(self) -> None:
        """Serve whoever has no session: no topic of their own, no permissions, nothing to look up."""
        if self.user is not None:
            return  # the session has said who it is
        if not settings.GUESTS:
            await self._closing.refuse(CloseCode.AUTH_FAILED, "this site admits no guests")
            return
        if not guests.take(settings.MAX_GUESTS):
            _crowd.warning("there are as many guests as MAX_GUESTS allows; others are told to come back")
            await self._too_many("guests")
            return
        self.is_guest, self.user = True, authentication.GUEST
        self._end_auth_timer()
        try:
            await self._delivery.open()
        except Exception as error:  # noqa: BLE001  a layer may raise anything
            await self._no_way_in(error)
            return
        if self._can_answer:
            self._heartbeat.begin()
        await self._say(frames.AuthSuccess(user_id=None, id=None, recovered=None))
        await self._give_what_all_have()

    # Subscriptions.

    async def _subscribe(self, topic: Topic, since: str | None, grant: str | None) -> None:
        name = str(topic)
        if name in self._delivery.cursors:
            position = self._delivery.position(name)
            is_first = self._given.get(name) is False and since is not None
            if is_first and since != position:  # not known when JOIN gave the topic
                await self._delivery.leave(topic)
                await self._join(topic, Position.since(since))
            else:
                await self._say(subscribed(topic, True if is_first else None, position))
            if name in self._given:
                self._given[name] = True
            return
        self._forget_unanswered(name)  # it must not count against itself
        if not self._has_room():
            most = min(settings.MAX_SUBSCRIPTIONS, GUEST_SUBSCRIPTIONS) if self.is_guest else settings.MAX_SUBSCRIPTIONS
            await self._error("too_many_subscriptions", f"a socket has at most {most}", topic.told)
            return
        begin = Position.since(since)
        if self.is_guest:  # first, because none of what follows knows of guests
            if settings.kinds[topic.kind].PUBLIC:
                await self._join(topic, begin)
            else:
                await self._forbid(topic)
            return
        try:
            is_given = authorization.is_open(self.user, topic) or await authorization.has_grant(self.user, topic, grant)
        except FAILURES as error:
            await self._no_way_in(error)
            return
        if is_given:
            await self._join(topic, begin)
            return
        as_of = asyncio.get_running_loop().time()
        allowed = await self._may_read(topic)
        if allowed:
            self.authorized[name] = as_of
            await self._join(topic, begin)
        elif allowed is None or self.joins.get(topic.kind) == NEVER:
            self.unanswered[name] = Unanswered(topic, begin, is_refused=allowed is not None)
            tally.unanswered += 1
            await self._error("unavailable", "not known yet; the answer will follow", topic.told)
            if allowed is None:
                self._ask_later(name)
        else:
            await self._forbid(topic)

    def _has_room(self) -> bool:
        """Return whether there may be one more topic."""
        topics = len(self._delivery.cursors) + len(self.unanswered)
        if self.is_guest:
            return topics < min(settings.MAX_SUBSCRIPTIONS, GUEST_SUBSCRIPTIONS)
        return topics <= settings.MAX_SUBSCRIPTIONS  # the user's own is among them

    async def _forbid(self, topic: Topic) -> None:
        await self._error("forbidden", "no such topic, or it is not yours to read", topic.told)

    async def _may_read(self, topic: Topic) -> bool | None:
        """Ask ``AUTHORIZE``; None for no answer, or one that may be older than a revocation."""
        self._asking = str(topic)
        allowed = await self._work.aside(access().ask(self, topic))
        if self._asking is None:
            allowed = allowed and None
        self._asking = None
        return allowed

    def _ask_later(self, what: str) -> None:
        if self._is_kept:
            access().ask_later(Topic.for_user(self.user).full_id, what)

    async def _join(
        self, topic: Topic, since: Position | str | None, *, unasked: bool = False, joined: bool = False
    ) -> None:
        try:
            recovered, position = await self._delivery.join(topic, since)
        except Exception as error:  # noqa: BLE001  a layer may raise anything
            await self._no_way_in(error)
            return
        if unasked:
            recovered = False  # clients see that it answers no request; and much may have happened
        await self._begin(topic, subscribed(topic, recovered, position and str(position), joined=joined))

    def admit(self, topic: str, as_of: float) -> None:
        """Subscribe to a topic that waits for an answer; ``AUTHORIZE`` was asked at ``as_of``."""
        self._work.add(partial(self._admit, topic, as_of))

    async def _admit(self, topic: str, as_of: float) -> None:
        if (waiting := self._forget_unanswered(topic)) is not None:
            self.authorized[topic] = as_of
            await self._join(waiting.topic, waiting.since, unasked=True)

    def _forget_unanswered(self, topic: str) -> Unanswered | None:
        if (waiting := self.unanswered.pop(topic, None)) is not None:
            tally.unanswered -= 1
        return waiting

    async def _unsubscribe(self, topic: Topic) -> None:
        if topic == self._own or str(topic) in self._given:
            await self._error("forbidden", "a socket always has its user's own topic, and those of JOIN", topic.told)
        else:
            await self._leave(topic)

    async def _leave(self, topic: Topic) -> None:
        self._given.pop(str(topic), None)
        self.authorized.pop(str(topic), None)
        self._forget_unanswered(str(topic))
        await self._delivery.leave(topic)
        await self._say(frames.Unsubscribed(topic=topic.told))

    # Topics that the client has without subscribing.

    async def _give_what_all_have(self) -> None:
        left_out: Counter[str] = Counter()
        for topic in authorization.joined_by_all():
            may_read = not self.is_guest or settings.kinds[topic.kind].PUBLIC
            if may_read and not self._closing.begun and not await self._give(topic):
                left_out[topic.kind] += 1
        for kind, number in left_out.items():
            _log_left_out(kind, number)

    async def _ask_join(self, kind: str) -> None:
        as_of = asyncio.get_running_loop().time()
        self.joins[kind] = NEVER
        topics = await self._work.aside(access().ask_join(self, kind))
        if self._closing.begun:
            return
        if topics is None:
            self._ask_later(kind)
        else:
            await self._take(kind, topics, as_of)

    def take(self, kind: str, topics: Sequence[Topic], as_of: float) -> None:
        """Make these the topics of a kind that ``JOIN`` gives; it was asked at ``as_of``."""
        self._work.add(partial(self._take, kind, topics, as_of))

    async def _take(self, kind: str, topics: Sequence[Topic], as_of: float) -> None:
        if self._closing.begun or as_of < self.joins[kind]:
            return  # a later answer prevails
        self.joins[kind] = as_of
        self._revoked = {
            name: at for name, at in self._revoked.items() if at >= as_of or name.partition(":")[0] != kind
        }
        topics = [topic for topic in topics if str(topic) not in self._revoked]
        names = {str(topic) for topic in topics}
        waiting = {name: each.topic for name, each in self.unanswered.items() if each.is_refused}
        had = {name: self._delivery.cursors[name].topic for name in self._given}
        for name, topic in {**had, **waiting}.items():
            if topic.kind == kind and name not in names:
                if self._given.get(name) and settings.kinds[kind].PUBLIC:
                    del self._given[name]  # the client has asked for it as well, as any user may
                    continue
                count("withdrawn")
                await self._leave(topic)
        left_out = 0  # a later one may have its place already
        for topic in topics:
            if not self._closing.begun and not await self._give(topic):
                left_out += 1
        if left_out:
            _log_left_out(kind, left_out)

    async def _give(self, topic: Topic) -> bool:
        """Subscribe to a topic of ``JOIN``; return False if there is no room."""
        name = str(topic)
        if name in self._given or topic == self._own:
            return True
        if name in self._delivery.cursors:
            self._given[name] = True
        elif (waiting := self._forget_unanswered(name)) is not None:
            self._given[name] = True
            await self._join(topic, waiting.since, unasked=True)
        elif not self._has_room():
            return False
        else:
            self._given[name] = False
            await self._join(topic, None, joined=True)
        self.authorized.pop(name, None)
        return True

    # Access that ends.

    def end_access(self, code: CloseCode, reason: str) -> None:
        """Deliver nothing more and close, whatever the socket is busy with."""
        self._closing.at_once(code, reason if code is CloseCode.ACCESS_REVOKED else None)

    def withdraw(self, topic: str, *, is_revoked: bool = False) -> None:
        """Unsubscribe from a topic, or refuse one that waits, ahead of queued frames."""
        if is_revoked and topic.partition(":")[0] in self.joins:
            self._revoked[topic] = asyncio.get_running_loop().time()
        self._work.add_next(partial(self._withdraw, topic, is_revoked))

    async def _withdraw(self, topic: str, is_revoked: bool) -> None:
        if self._asking == topic:
            self._asking = None
        waiting = self.unanswered.get(topic)
        if waiting is not None and not is_revoked and self.joins.get(waiting.topic.kind) == NEVER:
            self.unanswered[topic] = waiting._replace(is_refused=True)
            return
        held = self._delivery.cursors.get(topic) or waiting
        if held is not None and held.topic != self._own:
            count("withdrawn")
            await self._leave(held.topic)

    async def _too_many(self, whose: str) -> None:
        count("connection_refused", whose)
        await self._closing.close(CloseCode.TOO_MANY_CONNECTIONS)

    async def _no_way_in(self, error: Exception) -> None:
        _log.warning("a topic could not be joined (%s); the browser is told to come back", describe(error))
        await self._closing.close(CloseCode.TRY_AGAIN)

    def _delivery_failed(self) -> None:
        self._work.add(partial(self._closing.close, CloseCode.TRY_AGAIN))

    # The heartbeat.

    @property
    def paused(self) -> bool:
        """Whether the browser has to confirm more before it is sent anything."""
        return self._delivery.paused

    def ping(self) -> asyncio.Future[bool]:
        """Send a ping; the future is done when the server has accepted it."""
        self._delivery.ask()
        return self._delivery.mark()

    def give_up(self) -> None:
        """Close a browser that is dead or too slow."""
        self._closing.at_once(CloseCode.TOO_SLOW)

    # Frames to the client.

    async def _say(self, frame: frames.ServerFrame) -> None:
        if not self._closing.begun:
            await self._delivery.say(frame)

    async def _begin(self, topic: Topic, frame: frames.ServerFrame) -> None:
        """Tell the client that it is subscribed, and send what follows."""
        if not self._closing.begun:
            await self._delivery.release(topic, frame)

    async def _error(self, code: frames.ErrorCode, message: str, topic: str | None = None) -> None:
        count("frame_refused", code)
        await self._say(frames.Error(code=code, message=message, topic=topic if topic is not None else UNSET))

    async def _invalid_frame(self, error: FrameError) -> None:
        self._invalid += 1
        await self._error(error.code, str(error))
        if self._invalid >= MAX_INVALID_FRAMES:
            await self._closing.close(CloseCode.INVALID_MESSAGES)

    async def _hasty_frame(self) -> None:
        if self._pace.refused == 1:  # once: answering each would double the traffic
            await self._error("rate_limited", "too many frames; slow down")
        if self._pace.refused >= MAX_REFUSED_FRAMES:
            await self._closing.close(CloseCode.TOO_SLOW)

    async def _pace_request(self, subscriptions: int) -> None:
        if not self._pace.take_request(self._whose, self._address, subscriptions, guest=self.is_guest):
            await self._closing.close(CloseCode.TOO_SLOW)

    def _stop(self) -> None:
        """Send nothing more, and start nothing."""
        self._work.clear()
        self._delivery.stop()


def _checked(since: Any) -> tuple[Any, FrameError | None]:
    """Return the position that a client sent, or None and the error in it."""
    try:
        frames.check_since(since)
    except FrameError as error:
        return None, error
    return since, None


def _log_left_out(kind: str, number: int) -> None:
    _log.warning("JOIN of kind %r names more topics than a socket may have; %d left out", kind, number)
