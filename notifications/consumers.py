"""
The WebSocket consumer: one socket, one user, the topics it may read.

It stays a normal Channels consumer, with a layer channel of its own and groups joined by ``group_add``. This
module is the protocol, what a browser says and what it is answered; ``delivery.py`` carries the messages.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any, Final

from channels.exceptions import StopConsumer
from channels.generic.websocket import AsyncWebsocketConsumer
from channels.layers import get_channel_layer
from django.core.exceptions import ImproperlyConfigured
from msgspec import UNSET

from . import auth, frames
from .conf import settings
from .cursor import Cursor
from .delivery import Delivery
from .exceptions import TopicError
from .frames import CloseCode, FrameError
from .heartbeat import Heartbeat
from .history import Position
from .limits import MAX_INVALID_FRAMES, MAX_REFUSED_FRAMES, MAX_SUBSCRIPTIONS, MAX_WAITING_FRAMES, TokenBucket
from .metrics import count, tally
from .topics import Topic

logger = logging.getLogger(__name__)

RESTART_SPREAD: Final = 0.5
"""Seconds over which the sockets of a process that stops are told so."""
FLUSH: Final = 0.1
"""Seconds for the last close frame to leave the process."""


class NotificationConsumer(AsyncWebsocketConsumer):  # type: ignore[misc]  # Channels has no types
    """
    Carries published messages to one browser tab.

    The wire protocol is in the documentation; what a frame may be is in ``frames.py``.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.user: Any = None
        self._own: Topic | None = None
        self._bucket = TokenBucket()
        self._invalid = 0
        self._refused = 0
        self._closing = False
        self._deaf = False
        self._waiting: list[frames.Auth | frames.Action | FrameError] = []
        self._worker: asyncio.Task[None] | None = None
        self._auth_timer: asyncio.TimerHandle | None = None
        self._heartbeat = Heartbeat(self._ping, partial(self._close, CloseCode.TOO_SLOW), lambda: self._delivery.paused)
        self._delivery: Delivery

    async def __call__(
        self, scope: dict[str, Any], receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]
    ) -> None:
        self.scope = scope
        self.base_send = send
        self.channel_layer = get_channel_layer(self.channel_layer_alias)
        if self.channel_layer is None:
            raise ImproperlyConfigured("CHANNEL_LAYERS has no 'default' layer for sockets to join groups on")
        self._delivery = Delivery(self.channel_layer, send, self._delivery_failed)
        names = ("connect", "receive", "disconnect")
        handlers = {f"websocket.{name}": getattr(self, f"websocket_{name}") for name in names}
        tally.connections += 1
        try:
            while True:
                event = await receive()
                await handlers[event["type"]](event)
        except StopConsumer:
            pass
        except asyncio.CancelledError:
            await self._server_stops()
            raise
        finally:
            tally.connections -= 1
            await self._end()

    async def websocket_connect(self, message: dict[str, Any]) -> None:
        if not auth.origin_allowed(self.scope):
            await self.close()  # before accept: HTTP 403
            return
        await self.accept()
        self._bound_auth()
        if (user := auth.session_user(self.scope)) is not None:
            self._start(partial(self._authenticated, user, self._since_in_url()))

    async def websocket_receive(self, message: dict[str, Any]) -> None:
        if self._closing:
            return
        self._heartbeat.heard()
        frame: frames.Auth | frames.Action | FrameError
        try:
            frame = frames.decode(message.get("text"))
        except FrameError as error:
            frame = error
        if self._nobody_yet() and not isinstance(frame, frames.Auth):
            await self._refuse(CloseCode.AUTH_REQUIRED, 'the first frame is {"type":"auth","token":…}')
        elif isinstance(frame, frames.Pong) and self._delivery.pong(frame.n):
            self._heartbeat.confirmed()
        elif not self._bucket.take():
            await self._hasty_frame()
        elif len(self._waiting) >= MAX_WAITING_FRAMES:
            await self._close(CloseCode.TOO_SLOW)
        else:
            if self._bucket.rested:
                self._refused = 0
            self._waiting.append(frame)
            if self._worker is None:
                self._start()

    async def websocket_disconnect(self, message: dict[str, Any]) -> None:
        raise StopConsumer

    # Slow work, off the road of incoming frames: one task a socket at most, none when there is nothing to do.

    def _nobody_yet(self) -> bool:
        """Nobody has authenticated, nor is about to."""
        return self.user is None and self._worker is None

    def _start(self, first: Callable[[], Awaitable[None]] | None = None) -> None:
        self._worker = asyncio.create_task(self._work(first))

    async def _work(self, first: Callable[[], Awaitable[None]] | None) -> None:
        try:
            if first is not None:
                await first()
            while self._waiting and not self._closing:
                await self._handle(self._waiting.pop(0))
            if self._deaf:
                await self._close(CloseCode.TRY_AGAIN)
        except asyncio.CancelledError:
            raise
        except Exception:
            logger.exception("a socket of user %s failed", getattr(self.user, "pk", None))
            await self._close(CloseCode.TRY_AGAIN)
        finally:
            self._worker = None

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

    def _auth_is_late(self) -> None:
        if self._nobody_yet():
            message = f"no credentials within {settings.AUTH_TIMEOUT:g} s"
            self._start(partial(self._refuse, CloseCode.AUTH_TIMEOUT, message))

    async def _authenticate(self, frame: frames.Auth) -> None:
        since = frame.since
        try:
            frames.check_since(since)
        except FrameError as error:
            since = None
            await self._invalid_frame(error)
        try:
            user = await auth.token_user(frame.token)
        except auth.AuthUnavailableError:
            await self._close(CloseCode.TRY_AGAIN)
            return
        if user is None:
            await self._refuse(CloseCode.AUTH_FAILED, "the token is not valid, or has expired")
        elif self.user is None:
            await self._authenticated(user, since)
        elif user.pk != self.user.pk:
            await self._refuse(CloseCode.AUTH_FAILED, "the token is another user's")
        else:
            self.user = user
            own = self._delivery.cursors[str(self._own)]
            await self._say(frames.AuthSuccess(user_id=str(user.pk), id=_here(own), recovered=None))

    async def _authenticated(self, user: Any, since: str | None = None) -> None:
        self._own = Topic.for_user(user)
        try:
            await self._delivery.open()
            recovered, position = await self._delivery.join(self._own, Position.since(since))
        except Exception as error:  # noqa: BLE001  a layer may raise anything
            await self._no_way_in(error)
            return
        self.user = user
        if self._auth_timer is not None:
            self._auth_timer.cancel()
        self._heartbeat.begin()
        await self._say(frames.AuthSuccess(user_id=str(user.pk), id=position and str(position), recovered=recovered))
        self._delivery.release(self._own)

    def _since_in_url(self) -> str | None:
        try:
            return frames.since_in_url(self.scope.get("query_string", b""))
        except FrameError as error:
            self._waiting.append(error)
            return None

    # Subscriptions.

    async def _subscribe(self, topic: Topic, since: str | None, grant: str | None) -> None:
        name = str(topic)
        if (cursor := self._delivery.cursors.get(name)) is not None:
            await self._say(frames.Subscribed(topic=name, recovered=None, id=_here(cursor)))
            return
        if len(self._delivery.cursors) > MAX_SUBSCRIPTIONS:  # the user's own is among them
            await self._error("too_many_subscriptions", f"a socket has at most {MAX_SUBSCRIPTIONS}", name)
            return
        if not await auth.may_subscribe(self.user, topic, grant):
            await self._error("forbidden", "no such topic, or it is not yours to read", name)
            return
        try:
            recovered, position = await self._delivery.join(topic, Position.since(since))
        except Exception as error:  # noqa: BLE001  a layer may raise anything
            await self._no_way_in(error)
            return
        await self._say(frames.Subscribed(topic=name, recovered=recovered, id=position and str(position)))
        self._delivery.release(topic)

    async def _unsubscribe(self, topic: Topic) -> None:
        if topic == self._own:
            await self._error("forbidden", "a socket always has its user's own topic", str(topic))
            return
        await self._delivery.leave(topic)
        await self._say(frames.Unsubscribed(topic=str(topic)))

    async def _no_way_in(self, error: Exception) -> None:
        logger.warning("a topic could not be joined (%s); the browser is told to come back", type(error).__name__)
        await self._close(CloseCode.TRY_AGAIN)

    def _delivery_failed(self) -> None:
        self._deaf = True
        if self._worker is None:
            self._start()

    async def _ping(self) -> None:
        await self._say(frames.ServerPing(n=self._delivery.credit.ping()))

    async def _say(self, frame: frames.ServerFrame) -> None:
        if self._closing:
            return
        try:
            await self._delivery.say(frame)
        except OSError:
            self._closing = True  # the browser has gone; the server says so with ``websocket.disconnect``

    async def _error(self, code: frames.ErrorCode, message: str, topic: str | None = None) -> None:
        count("frame_refused", code)
        await self._say(frames.Error(code=code, message=message, topic=topic if topic is not None else UNSET))

    async def _invalid_frame(self, error: FrameError) -> None:
        self._invalid += 1
        await self._error(error.code, str(error))
        if self._invalid >= MAX_INVALID_FRAMES:
            await self._close(CloseCode.INVALID_MESSAGES)

    async def _hasty_frame(self) -> None:
        self._refused += 1
        if self._refused == 1:  # once: answering each would double the haste
            await self._error("rate_limited", "too many frames; slow down")
        if self._refused >= MAX_REFUSED_FRAMES:
            await self._close(CloseCode.TOO_SLOW)

    async def _refuse(self, code: CloseCode, message: str) -> None:
        await self._say(frames.AuthError(message=message))
        await self._close(code)

    async def _close(self, code: CloseCode) -> None:
        if self._closing:
            return
        self._closing = True
        count("closed", str(int(code)))
        self._delivery.stop()
        with suppress(OSError):
            await self._close_socket(code)

    async def _server_stops(self) -> None:
        """
        Say that the server restarts: Daphne cancels its applications when it is told to stop.

        Without a code browsers would see 1006. They are told one after the other, so that they do not all come back
        at once; and all stay until the last has been told, because Daphne ends when the first of them does.
        """
        wait = random.uniform(0, RESTART_SPREAD)  # noqa: S311  not a secret
        await asyncio.sleep(wait)
        await self._close(CloseCode.SERVICE_RESTART)
        await asyncio.sleep(RESTART_SPREAD - wait + FLUSH)

    async def _close_socket(self, code: CloseCode) -> None:
        try:
            await self.close(int(code))
        except Exception:
            if code is not CloseCode.SERVICE_RESTART:
                raise
            # Autobahn, and so Daphne, sends no codes of the registry; this one also says "come back".
            await self.close(int(CloseCode.TRY_AGAIN))

    async def _end(self) -> None:
        self._closing = True
        if self._auth_timer is not None:
            self._auth_timer.cancel()
        await self._heartbeat.end()
        if self._worker is not None:
            self._worker.cancel()
            await asyncio.wait([self._worker])
        await self._delivery.end()


def _here(cursor: Cursor) -> str | None:
    return str(cursor.position) if settings.kinds[cursor.topic.kind].HISTORY_SIZE else None
