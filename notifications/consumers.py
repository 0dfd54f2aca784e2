"""
The WebSocket consumer: one socket, one user, the topics it may read.

It stays a normal Channels consumer (a layer channel of its own, groups joined with ``group_add``), but it
pumps: one long-lived task takes layer events and sends the ready text. Channels' own dispatch closes old
database connections, in another thread, and makes two tasks for every single message.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

from channels.exceptions import StopConsumer
from channels.generic.websocket import AsyncWebsocketConsumer
from channels.layers import get_channel_layer
from django.core.exceptions import ImproperlyConfigured
from msgspec import UNSET

from . import auth, frames
from .conf import settings
from .exceptions import TopicError
from .frames import CloseCode, FrameError
from .limits import MAX_INVALID_FRAMES, MAX_REFUSED_FRAMES, MAX_SUBSCRIPTIONS, MAX_WAITING_FRAMES, TokenBucket
from .metrics import count
from .topics import Topic

logger = logging.getLogger(__name__)

LAYER_TIMEOUT: Final = 5.0
"""Seconds that joining or leaving a group may take."""


class NotificationConsumer(AsyncWebsocketConsumer):  # type: ignore[misc]  # Channels has no types
    """
    Carries published messages to one browser tab.

    The wire protocol is in the documentation; what a frame may be is in ``frames.py``.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.user: Any = None
        self._own: Topic | None = None
        self._topics: dict[str, Topic] = {}
        self._bucket = TokenBucket()
        self._invalid = 0
        self._refused = 0
        self._closing = False
        self._waiting: deque[frames.Auth | frames.Action | FrameError] = deque()
        self._worker: asyncio.Task[None] | None = None
        self._pump_task: asyncio.Task[None] | None = None
        self._beat_task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._pings = 0
        self._open_pings = 0
        self._silent_beats = 0
        self.channel_name: str | None = None

    async def __call__(
        self, scope: dict[str, Any], receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]
    ) -> None:
        self.scope = scope
        self.base_send = send
        self.channel_layer = get_channel_layer(self.channel_layer_alias)
        if self.channel_layer is None:
            raise ImproperlyConfigured("CHANNEL_LAYERS has no 'default' layer for sockets to join groups on")
        handlers = {
            "websocket.connect": self.websocket_connect,
            "websocket.receive": self.websocket_receive,
            "websocket.disconnect": self.websocket_disconnect,
        }
        try:
            while True:
                event = await receive()
                await handlers[event["type"]](event)
        except StopConsumer:
            pass
        finally:
            await self._end()

    # What the server tells us.

    async def websocket_connect(self, message: dict[str, Any]) -> None:
        if not auth.origin_allowed(self.scope):
            await self.close()  # before accept: HTTP 403
            return
        await self.accept()
        self._bound_auth()
        if (user := auth.session_user(self.scope)) is not None:
            self._start(partial(self._authenticated, user))

    async def websocket_receive(self, message: dict[str, Any]) -> None:
        if self._closing:
            return
        self._silent_beats = 0
        frame: frames.Auth | frames.Action | FrameError
        try:
            frame = frames.decode(message.get("text"))
        except FrameError as error:
            frame = error
        if self._nobody_yet() and not isinstance(frame, frames.Auth):
            await self._refuse(CloseCode.AUTH_REQUIRED, 'the first frame is {"type":"auth","token":…}')
        elif isinstance(frame, frames.Pong) and self._open_pings:
            self._open_pings -= 1
        elif not self._bucket.take():
            await self._hasty_frame()
        elif len(self._waiting) >= MAX_WAITING_FRAMES:
            await self._close(CloseCode.TOO_SLOW)
        else:
            self._waiting.append(frame)
            if self._worker is None:
                self._start()

    async def websocket_disconnect(self, message: dict[str, Any]) -> None:
        raise StopConsumer

    # Slow work, off the road of incoming frames: at most one task a socket, and none when there is nothing to do.

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
                await self._handle(self._waiting.popleft())
        except asyncio.CancelledError:
            raise
        except Exception:
            logger.exception("a socket of user %s failed", getattr(self.user, "pk", None))
            await self._close(CloseCode.INTERNAL_ERROR)
        finally:
            self._worker = None

    async def _handle(self, frame: frames.Auth | frames.Action | FrameError) -> None:
        if isinstance(frame, FrameError):
            await self._invalid_frame(frame)
        elif isinstance(frame, frames.Auth):
            await self._authenticate(frame)
        elif isinstance(frame, frames.Ping):
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
        self._timer = loop.call_later(settings.AUTH_TIMEOUT, self._auth_is_late)

    def _auth_is_late(self) -> None:
        if self._nobody_yet():
            message = f"no credentials within {settings.AUTH_TIMEOUT:g} s"
            self._start(partial(self._refuse, CloseCode.AUTH_TIMEOUT, message))

    async def _authenticate(self, frame: frames.Auth) -> None:
        try:
            user = await auth.token_user(frame.token)
        except auth.AuthUnavailableError:
            await self._close(CloseCode.TRY_AGAIN_LATER)
            return
        if user is None:
            await self._refuse(CloseCode.AUTH_FAILED, "the token is not valid, or has expired")
        elif self.user is None:
            await self._authenticated(user, frame.since)
        elif user.pk != self.user.pk:
            await self._refuse(CloseCode.AUTH_FAILED, "the token is another user's")
        else:
            self.user = user
            await self._say(frames.AuthSuccess(user_id=str(user.pk), id=None, recovered=None))

    async def _authenticated(self, user: Any, since: str | None = None) -> None:
        self._own = Topic.for_user(user)
        try:
            async with asyncio.timeout(LAYER_TIMEOUT):
                self.channel_name = await self.channel_layer.new_channel()
        except Exception as error:  # noqa: BLE001  a layer may raise anything
            await self._layer_failed(error)
            return
        self.user = user
        if not await self._join(self._own):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._beat_later()
        recovered = None if since is None else False
        await self._say(frames.AuthSuccess(user_id=str(user.pk), id=None, recovered=recovered))
        self._pump_task = asyncio.create_task(self._pump())

    # Subscriptions.

    async def _subscribe(self, topic: Topic, since: str | None, grant: str | None) -> None:
        name = str(topic)
        if name not in self._topics:
            if len(self._topics) > MAX_SUBSCRIPTIONS:  # the user's own is among them
                await self._error("too_many_subscriptions", f"a socket has at most {MAX_SUBSCRIPTIONS}", name)
                return
            if not await auth.may_subscribe(self.user, topic, grant):
                await self._error("forbidden", "no such topic, or it is not yours to read", name)
                return
            if not await self._join(topic):
                return
        recovered = None if since is None else False
        await self._say(frames.Subscribed(topic=name, recovered=recovered, id=None))

    async def _unsubscribe(self, topic: Topic) -> None:
        name = str(topic)
        if topic == self._own:
            await self._error("forbidden", "a socket always has its user's own topic", name)
            return
        if self._topics.pop(name, None) is not None:
            await self._leave([topic])
        await self._say(frames.Unsubscribed(topic=name))

    async def _join(self, topic: Topic) -> bool:
        try:
            async with asyncio.timeout(LAYER_TIMEOUT):
                await self.channel_layer.group_add(topic.group, self.channel_name)
        except Exception as error:  # noqa: BLE001  a layer may raise anything
            await self._layer_failed(error)
            return False
        self._topics[str(topic)] = topic
        return True

    async def _leave(self, topics: list[Topic]) -> None:
        try:
            async with asyncio.timeout(LAYER_TIMEOUT):
                for topic in topics:
                    await self.channel_layer.group_discard(topic.group, self.channel_name)
        except Exception as error:  # noqa: BLE001  a layer may raise anything; the socket does not depend on it
            logger.debug("could not leave a group: %s", type(error).__name__)

    async def _layer_failed(self, error: Exception) -> None:
        logger.warning("the channel layer failed (%s); the browser is told to come back", type(error).__name__)
        await self._close(CloseCode.TRY_AGAIN_LATER)

    # Delivery.

    async def _pump(self) -> None:
        receive, name, send, topics = self.channel_layer.receive, self.channel_name, self.base_send, self._topics
        try:
            while True:
                event = await receive(name)
                if (
                    event.get("topic") in topics
                ):  # not after ``unsubscribed``; not what somebody else sends to our channel
                    await send({"type": "websocket.send", "text": event["text"]})
        except OSError:
            self._closing = True

    def _beat_later(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(settings.HEARTBEAT_INTERVAL, self._beat)

    def _beat(self) -> None:
        """Ping. Two beats without any frame, or a ping still not sent at the next beat, is a dead browser."""
        self._beat_later()
        if self._silent_beats >= 2 or self._beat_task is not None:
            self._beat_task = asyncio.create_task(self._close(CloseCode.TOO_SLOW))
            return
        self._silent_beats += 1
        self._pings += 1
        self._open_pings += 1
        self._beat_task = asyncio.create_task(self._send_beat(frames.ServerPing(n=self._pings)))

    async def _send_beat(self, frame: frames.ServerPing) -> None:
        await self._say(frame)
        self._beat_task = None

    # Answers.

    async def send(self, text_data: str | None = None, bytes_data: bytes | None = None, close: bool = False) -> None:
        try:
            await super().send(text_data, bytes_data, close)
        except OSError:
            self._closing = True  # the browser has gone; the server says so with ``websocket.disconnect``

    async def _say(self, frame: frames.ServerFrame) -> None:
        if not self._closing:
            await self.send(text_data=frames.encode(frame))

    async def _error(self, code: str, message: str, topic: str | None = None) -> None:
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
        if not self._closing:
            self._closing = True
            count("closed", code.name)
            if self._pump_task is not None:
                self._pump_task.cancel()  # servers take nothing after a close
            await self.close(code)

    async def _end(self) -> None:
        self._closing = True
        if self._timer is not None:
            self._timer.cancel()
        if self.channel_name is not None and self._pump_task is None:
            # Layers forget a channel when its ``receive`` is cancelled, and only then.
            self._pump_task = asyncio.create_task(self._pump())
        await asyncio.sleep(0)  # a task that is cancelled before its first step never reaches ``receive``
        tasks = [task for task in (self._worker, self._beat_task, self._pump_task) if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        if self.channel_name is not None:
            await self._leave(list(self._topics.values()))
