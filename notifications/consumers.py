"""
The WebSocket consumer: one socket, one user, the topics it may read.

It stays a normal Channels consumer, with a layer channel of its own and groups joined by ``group_add``. This
module is the protocol, what a browser says and what it is answered; ``delivery.py`` carries the messages.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, Final, NamedTuple

from channels.exceptions import StopConsumer
from channels.generic.websocket import AsyncWebsocketConsumer
from channels.layers import get_channel_layer
from django.core.exceptions import ImproperlyConfigured
from msgspec import UNSET

from . import auth, frames, sessions
from .access import access
from .closing import Closing
from .conf import settings
from .credentials import Credentials, credentials_of
from .delivery import Delivery, subscribed
from .eager import coroutine_function
from .exceptions import TopicError
from .frames import CloseCode, FrameError
from .heartbeat import Heartbeat
from .history.position import Position
from .jobs import Jobs
from .limits import (
    MAX_INVALID_FRAMES,
    MAX_REFUSED_FRAMES,
    MAX_WAITING_FRAMES,
    Pace,
    Strangers,
    address_of,
    addresses,
)
from .logs import LogBudget
from .loops import PerLoop
from .metrics import count, tally
from .tenants import NO_TENANT, Tenant
from .topics import Topic

logger = logging.getLogger(__name__)


class Unanswered(NamedTuple):
    """A subscription that waits because nobody could say whether it is allowed."""

    topic: Topic
    since: Position | str | None


HELD_BACK: Final = 0.2
"""Seconds after which a close that the server has not sent is taken for one that it keeps back."""

_crowd: Final = LogBudget(logger, lines=1, period=60.0)
_log: Final = LogBudget(logger, lines=10, period=60.0)
strangers = PerLoop(Strangers)
_HANDLERS: Final = {f"websocket.{name}": f"websocket_{name}" for name in ("connect", "receive", "disconnect")}


class NotificationConsumer(AsyncWebsocketConsumer):  # type: ignore[misc]  # Channels has no types
    """
    Carries published messages to one browser tab.

    The wire protocol is in the documentation; what a frame may be is in ``frames.py``.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.user: Any = None
        self.is_account_old = False
        self.credentials: Credentials
        self.authorized: dict[str, float] = {}
        self.unanswered: dict[str, Unanswered] = {}
        self._asking: str | None = None
        self._tenant = NO_TENANT
        self._own: Topic | None = None
        self._address: str | None = None
        self._pace = Pace()
        self._invalid = 0
        self._jobs = Jobs(self._failed)
        self._closing = Closing(self, self._stop)
        self._task: asyncio.Task[Any] | None = None
        self._receiving = self._interrupted = False
        self._auth_timer: asyncio.TimerHandle | None = None
        self._heartbeat = Heartbeat(self)
        self._delivery: Delivery

    async def __call__(
        self, scope: dict[str, Any], receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]
    ) -> None:
        self.scope = scope
        self.base_send = send
        self.channel_layer = get_channel_layer(self.channel_layer_alias)
        if self.channel_layer is None:
            raise ImproperlyConfigured("CHANNEL_LAYERS has no 'default' layer for sockets to join groups on")
        self._send_event = coroutine_function(send)
        self._delivery = Delivery(self.channel_layer, self.send_text, self._delivery_failed)
        self._task = asyncio.current_task()
        tally.connections += 1
        try:
            while True:
                self._receiving = True
                try:
                    event = await receive()
                except asyncio.CancelledError:
                    if self._went_on():
                        continue
                    raise
                finally:
                    self._receiving = False
                await getattr(self, _HANDLERS[event["type"]])(event)
        except StopConsumer:
            pass
        except asyncio.CancelledError:
            await self._closing.server_stops()
            raise
        finally:
            tally.connections -= 1
            await self._end()

    def send_text(self, text: str) -> Coroutine[Any, Any, None]:
        """Hand a text to the server, before what may wait to be sent."""
        return self._send_event({"type": "websocket.send", "text": text})

    async def close(self, code: int | None = None, reason: str | None = None) -> None:
        """Send the close."""
        # Granian keeps a close back for as long as somebody waits in ``receive``: until the browser says something.
        timer = asyncio.get_running_loop().call_later(HELD_BACK, self._interrupt)
        try:
            await super().close(None if code is None else int(code), reason)
        except Exception:
            if code != CloseCode.SERVICE_RESTART:
                raise
            # Autobahn, and so Daphne, sends no codes of the registry; this one also says "come back".
            await super().close(int(CloseCode.TRY_AGAIN), reason)
        finally:
            timer.cancel()

    def _interrupt(self) -> None:
        """End the wait for what the browser says; what comes next may be waited for again."""
        if self._receiving and not self._interrupted and self._task is not None:
            self._interrupted = True
            self._task.cancel()

    def _went_on(self) -> bool:
        """Say whether the cancellation was an interruption of our own, and no other came with it."""
        interrupted, self._interrupted = self._interrupted, False
        return interrupted and self._task is not None and self._task.uncancel() == 0

    async def websocket_connect(self, message: dict[str, Any]) -> None:
        if not auth.origin_allowed(self.scope):
            await self.close()  # before accept: HTTP 403
            return
        found: sessions.Found | None = self.scope.get(sessions.SCOPE_KEY)
        known = found is None or found.is_known
        user = auth.session_user(self.scope) if known else None
        address = address_of(self.scope)
        if user is None and strangers().is_crowded(address, settings.MAX_UNAUTHENTICATED):
            self._count_crowd()
            await self.close()  # before accept: those who were told to go need not, and a server waits for them
            return
        try:
            self._tenant = Tenant.of_this_context()
        except TopicError as unknown:
            _log.warning("refused a socket: %s", unknown)
            await self.close()
            return
        self._jobs.context = self._tenant.context
        await self.accept()
        if not addresses.take(address, settings.MAX_CONNECTIONS_PER_ADDRESS):
            await self._too_many("address")
            return
        self._address = address
        if not known and auth.has_origin(self.scope):
            await self._closing.close(CloseCode.TRY_AGAIN)
            return
        if user is None:
            if not strangers().add(address, self, settings.MAX_UNAUTHENTICATED):
                self._count_crowd()
                await self._closing.close(CloseCode.TOO_MANY_CONNECTIONS)
                return
            self._bound_auth()
        else:
            since, error = frames.since_in_url(self.scope.get("query_string", b""))
            key = getattr(self.scope.get("session"), "session_key", None)
            credentials = credentials_of(user, key, self._tenant, found.as_of if found is not None else None)
            self._jobs.add(partial(self._authenticated, credentials, since))
            if error is not None:
                self._jobs.add(partial(self._invalid_frame, error))

    async def websocket_receive(self, message: dict[str, Any]) -> None:
        if self._closing.begun:
            return
        self._heartbeat.heard()
        frame: frames.Auth | frames.Action | FrameError
        try:
            frame = frames.decode(message.get("text"))
        except FrameError as error:
            frame = error
        if self._nobody_yet() and not isinstance(frame, frames.Auth):
            no_json = isinstance(frame, frames.NotJSONError)
            code = CloseCode.INVALID_MESSAGES if no_json else CloseCode.AUTH_REQUIRED
            await self._closing.refuse(code, 'the first frame is {"type":"auth","token":…}')
        elif isinstance(frame, frames.Pong) and self._delivery.pong(frame.n):
            self._heartbeat.confirmed()
        elif not self._pace.take(self._own.full_id if self._own is not None else None, self._address):
            await self._hasty_frame()
        elif isinstance(frame, frames.Ping) and self._jobs.is_aside:
            self._jobs.add_next(partial(self._handle, frame))  # a browser asks whether we live; the site may take long
        elif len(self._jobs) >= MAX_WAITING_FRAMES:
            await self._closing.close(CloseCode.TOO_SLOW)
        else:
            self._jobs.add(partial(self._handle, frame))

    async def websocket_disconnect(self, message: dict[str, Any]) -> None:
        raise StopConsumer

    def _nobody_yet(self) -> bool:
        """Nobody has authenticated, nor is about to."""
        return self.user is None and not self._jobs.busy

    async def _failed(self, error: Exception) -> None:
        logger.error("a socket of user %s failed", getattr(self.user, "pk", None), exc_info=error)
        await self._closing.close(CloseCode.TRY_AGAIN)

    async def _handle(self, frame: frames.Auth | frames.Action | FrameError) -> None:
        if isinstance(frame, FrameError):
            await self._invalid_frame(frame)
            return
        self._invalid = 0
        if isinstance(frame, frames.Auth):
            await self._authenticate(frame)
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

    def _bound_auth(self) -> None:
        loop = asyncio.get_running_loop()
        self._auth_timer = loop.call_later(settings.AUTH_TIMEOUT, self._auth_is_late)

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
        """Close a socket that has not authenticated, because others want its place."""
        if not self._closing.begun:
            self._count_crowd()
            self._closing.at_once(CloseCode.TOO_MANY_CONNECTIONS)

    def _count_crowd(self) -> None:
        count("connection_refused", "unauthenticated")
        _crowd.warning("too many sockets have not authenticated, or too many of one address; the oldest are closed")

    def _auth_is_late(self) -> None:
        if not self._nobody_yet():
            return
        if auth.has_origin(self.scope) and sessions.is_in_doubt(self.scope):
            self._jobs.add(partial(self._closing.close, CloseCode.TRY_AGAIN))
        else:
            message = f"no credentials within {settings.AUTH_TIMEOUT:g} s"
            self._jobs.add(partial(self._closing.refuse, CloseCode.AUTH_TIMEOUT, message))

    async def _authenticate(self, frame: frames.Auth) -> None:
        since = frame.since
        try:
            frames.check_since(since)
        except FrameError as error:
            since = None
            await self._invalid_frame(error)
        as_of = asyncio.get_running_loop().time()
        try:
            user = await auth.token_user(frame.token, self._address or "")
        except auth.AuthUnavailableError:
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
        if not access().add(self._own.full_id, self):  # before anything is asked: the access may end meanwhile
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
        self._heartbeat.begin()
        await self._say(frames.AuthSuccess(user_id=str(user.pk), id=position and str(position), recovered=recovered))
        self._delivery.release(self._own)

    # Subscriptions.

    async def _subscribe(self, topic: Topic, since: str | None, grant: str | None) -> None:
        name = str(topic)
        if name in self._delivery.cursors:
            await self._say(subscribed(topic, None, self._delivery.position(name)))
            return
        most = settings.MAX_SUBSCRIPTIONS
        self._forget_unanswered(name)  # it has its place
        if len(self._delivery.cursors) + len(self.unanswered) > most:  # the user's own is among them
            await self._error("too_many_subscriptions", f"a socket has at most {most}", topic.told)
            return
        position = Position.since(since)
        if auth.is_given(self.user, topic, grant):
            await self._join(topic, position)
            return
        as_of = asyncio.get_running_loop().time()
        allowed = await self._may_read(topic)
        if allowed:
            self.authorized[name] = as_of
            await self._join(topic, position)
        elif allowed is None:
            self.unanswered[name] = Unanswered(topic, position)
            tally.unanswered += 1
            await self._error("unavailable", "nobody can say yet; the answer will follow", topic.told)
            access().ask_later(Topic.for_user(self.user).full_id, name)
        else:
            await self._error("forbidden", "no such topic, or it is not yours to read", topic.told)

    async def _may_read(self, topic: Topic) -> bool | None:
        """Ask ``AUTHORIZE``; None if nobody could say, or the topic was revoked meanwhile: the answer may be older."""
        self._asking = str(topic)
        allowed = await self._jobs.aside(access().ask(self, topic))
        if self._asking is None:
            allowed = allowed and None
        self._asking = None
        return allowed

    async def _join(self, topic: Topic, since: Position | str | None, *, unasked: bool = False) -> None:
        try:
            recovered, position = await self._delivery.join(topic, since)
        except Exception as error:  # noqa: BLE001  a layer may raise anything
            await self._no_way_in(error)
            return
        if unasked:
            recovered = False  # so clients know that it is no answer; and much may have happened meanwhile
        await self._say(subscribed(topic, recovered, position and str(position)))
        self._delivery.release(topic)

    def admit(self, topic: str, as_of: float) -> None:
        """Subscribe to what waits for an answer, and was asked then."""
        self._jobs.add(partial(self._admit, topic, as_of))

    async def _admit(self, topic: str, as_of: float) -> None:
        if (waiting := self._forget_unanswered(topic)) is not None:
            self.authorized[topic] = as_of
            await self._join(*waiting, unasked=True)

    def _forget_unanswered(self, topic: str) -> Unanswered | None:
        if (waiting := self.unanswered.pop(topic, None)) is not None:
            tally.unanswered -= 1
        return waiting

    async def _unsubscribe(self, topic: Topic) -> None:
        if topic == self._own:
            await self._error("forbidden", "a socket always has its user's own topic", topic.told)
            return
        self.authorized.pop(str(topic), None)
        self._forget_unanswered(str(topic))
        await self._delivery.leave(topic)
        await self._say(frames.Unsubscribed(topic=topic.told))

    # Access that ends.

    def end_access(self, code: CloseCode, reason: str) -> None:
        """Deliver nothing more, and close; whatever the socket is busy with."""
        self._closing.at_once(code, reason if code is CloseCode.ACCESS_REVOKED else None)

    def withdraw(self, topic: str) -> None:
        """Unsubscribe from a topic, or refuse what waits for an answer, before what the browser said and waits."""
        self._jobs.add_next(partial(self._withdraw, topic))

    async def _withdraw(self, topic: str) -> None:
        if self._asking == topic:
            self._asking = None
        if (held := self._delivery.cursors.get(topic) or self.unanswered.get(topic)) is not None:
            count("withdrawn")
            await self._unsubscribe(held.topic)

    async def _too_many(self, whose: str) -> None:
        count("connection_refused", whose)
        await self._closing.close(CloseCode.TOO_MANY_CONNECTIONS)

    async def _no_way_in(self, error: Exception) -> None:
        _log.warning("a topic could not be joined (%s); the browser is told to come back", type(error).__name__)
        await self._closing.close(CloseCode.TRY_AGAIN)

    def _delivery_failed(self) -> None:
        self._jobs.add(partial(self._closing.close, CloseCode.TRY_AGAIN))

    # The heartbeat.

    @property
    def paused(self) -> bool:
        """Whether the browser has to confirm more before it is sent anything."""
        return self._delivery.paused

    def ping(self) -> asyncio.Future[bool]:
        """Ask the browser for a sign of life; the future is done when the server has taken the question."""
        self._delivery.ask()
        return self._delivery.mark()

    def give_up(self) -> None:
        """Close a browser that is dead or too slow."""
        self._closing.at_once(CloseCode.TOO_SLOW)

    # What we say.

    async def _say(self, frame: frames.ServerFrame) -> None:
        if not self._closing.begun:
            await self._delivery.say(frame)

    async def _error(self, code: frames.ErrorCode, message: str, topic: str | None = None) -> None:
        count("frame_refused", code)
        await self._say(frames.Error(code=code, message=message, topic=topic if topic is not None else UNSET))

    async def _invalid_frame(self, error: FrameError) -> None:
        self._invalid += 1
        await self._error(error.code, str(error))
        if self._invalid >= MAX_INVALID_FRAMES:
            await self._closing.close(CloseCode.INVALID_MESSAGES)

    async def _hasty_frame(self) -> None:
        if self._pace.refused == 1:  # once: answering each would double the haste
            await self._error("rate_limited", "too many frames; slow down")
        if self._pace.refused >= MAX_REFUSED_FRAMES:
            await self._closing.close(CloseCode.TOO_SLOW)

    def _stop(self) -> None:
        """Send nothing more, and begin nothing."""
        self._jobs.clear()
        self._delivery.stop()

    async def _end(self) -> None:
        await self._closing.end()
        self._end_auth_timer()
        addresses.give_back(self._address)
        if self._own is not None:
            access().remove(self._own.full_id, self)
        self._heartbeat.end()
        await self._jobs.end()
        tally.unanswered -= len(self.unanswered)
        await self._delivery.end()
