"""A browser's socket in the process of the test, connected to the real consumer."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from typing import Any, Final

import msgspec
from channels.layers import InMemoryChannelLayer, channel_layers

from ..access import authentication
from ..bridge.forwarder import Forwarder
from ..consumers import NotificationConsumer
from ..logs import LogBudget
from ..topics import Topic
from .capture import blocks

logger = logging.getLogger(__name__)

TIMEOUT: Final = 3.0
"""Seconds to wait for a frame; the site's ``AUTHORIZE`` may have to be called first."""
QUIET: Final = 0.1
"""Seconds without a frame after which ``receive_nothing`` returns. Nothing here waits for a network."""
MAX_FRAMES: Final = 1000
"""Frames that may wait to be received; beyond that the consumer waits, as for a browser that does not read."""
CLOSE_TIMEOUT: Final = 5.0
"""Seconds within which the consumer must end when the page disconnects."""
NORMAL: Final = 1000
GOING_AWAY: Final = 1001
"""Close codes of RFC 6455, 7.4.1."""
FOREVER: Final = 10**9
"""Seconds after which the layer drops messages and groups; tests may move the clock."""

CAPACITY: Final = 10_000
"""Messages that the layer keeps for a socket, because a test may publish many before it receives any."""

_numbers = count()


class Socket:
    """
    A page's ``WebSocket``.

    It answers the server's pings, as pages do, and returns all other frames.

    Attributes:
        close_code: The code with which the server has closed the socket; None while it is open.

    """

    def __init__(self, consumer: NotificationConsumer, scope: dict[str, Any]) -> None:
        self.close_code: int | None = None
        self._incoming: asyncio.Queue[dict[str, Any]] = asyncio.Queue(MAX_FRAMES)
        self._outgoing: asyncio.Queue[dict[str, Any]] = asyncio.Queue(MAX_FRAMES)
        self._incoming.put_nowait({"type": "websocket.connect"})
        self._task = asyncio.create_task(consumer(scope, self._incoming.get, self._take))
        self._accepted = False

    async def send(self, frame: dict[str, Any]) -> None:
        """Send a frame of a page, such as ``{"action": "unsubscribe", "topic": "order:7"}``."""
        text = msgspec.json.encode(frame).decode()
        await self._incoming.put({"type": "websocket.receive", "text": text})

    async def receive(self, timeout: float = TIMEOUT) -> dict[str, Any]:
        """
        Wait for the next frame.

        Raises:
            AssertionError: None arrives within ``timeout`` seconds, or the server closes the socket.

        """
        __tracebackhide__ = True
        while True:
            event = await self._next(timeout)
            if event is None:
                raise AssertionError(f"no frame within {timeout:g} s")
            if event["type"] == "websocket.close":
                self.close_code = event.get("code") or NORMAL
                said = f"closed the socket with {self.close_code}" if self._accepted else "refused the socket"
                raise AssertionError(f"the server {said}")
            if event["type"] == "websocket.accept":
                self._accepted = True
                continue
            frame: dict[str, Any] = msgspec.json.decode(event["text"])
            if frame.get("action") != "ping" or "_meta" in frame:
                return frame
            await self.send({"action": "pong", "n": frame["n"]})

    async def expect(self, action: str, **fields: Any) -> dict[str, Any]:
        """Wait for the next frame, assert that it is this one, and return it."""
        __tracebackhide__ = True
        frame = await self.receive()
        wanted = {"action": action, **fields}
        assert wanted.items() <= frame.items(), f"wanted {wanted}, received {frame}"  # noqa: S101  for tests
        return frame

    async def receive_nothing(self) -> None:
        """Assert that no frame arrives."""
        __tracebackhide__ = True
        try:
            frame = await self.receive(QUIET)
        except AssertionError:
            if self.close_code is None:
                return
            raise
        raise AssertionError(f"wanted nothing, received {frame}")

    async def subscribe(self, topic: Topic | str, **fields: Any) -> dict[str, Any]:
        """
        Subscribe to a topic, which calls the kind's ``AUTHORIZE``, and return the answer.

        What ``JOIN`` of a kind has joined before is received on the way.

        Args:
            topic: A ``Topic`` or its text.
            **fields: ``since`` (``"last"`` or an id) and ``grant``.

        Raises:
            AssertionError: The user may not read it, or it is not a topic.

        """
        __tracebackhide__ = True
        told = topic.told if isinstance(topic, Topic) else topic
        await self.send({"action": "subscribe", "topic": told, **fields})
        while (frame := await self.receive()).get("joined"):
            pass  # what the site joins without a request
        wanted = {"action": "subscribed", "topic": told}
        assert wanted.items() <= frame.items(), f"wanted {wanted}, received {frame}"  # noqa: S101  for tests
        return frame

    async def _next(self, timeout: float) -> dict[str, Any] | None:
        """Return the consumer's next event, or None if there is none. Raise its exception if it has failed."""
        getting = asyncio.ensure_future(self._outgoing.get())
        try:
            await asyncio.wait({getting, self._task}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            if not getting.done() and self._task.done():
                self._task.result()
            return getting.result() if getting.done() else None
        finally:
            getting.cancel()

    async def _take(self, event: dict[str, Any]) -> None:
        """Be the server that the consumer sends to."""
        await self._outgoing.put(event)
        if event["type"] == "websocket.close":
            await self._hang_up(event.get("code"))

    async def _hang_up(self, code: int | None) -> None:
        await self._incoming.put({"type": "websocket.disconnect", "code": code})

    async def _end(self) -> None:
        async with asyncio.timeout(CLOSE_TIMEOUT):
            await self._hang_up(GOING_AWAY)
            await self._task


@asynccontextmanager
async def connect_as(user: Any) -> AsyncIterator[Socket]:
    """
    Open a socket for a user, as a page does when they are logged in, and receive what is published to it.

    The consumer is the real one, and so are its frames, the kind's ``AUTHORIZE`` and the recovery from histories. In
    Redis's place stands what stands there within ``captured``, in the place of the channel layer that of Channels in
    memory. Synchronous ``AUTHORIZE`` functions run in the thread of the ORM, where the data of the test are.

    Args:
        user: A saved, active user. As with Django's ``force_login``, no session is needed.

    Yields:
        The socket, after ``auth_success``.

    Raises:
        AssertionError: The socket was refused.

    """
    __tracebackhide__ = True
    scope = _scope(user)
    assert authentication.session_user(scope) is not None, f"{user!r} is anonymous or not active"  # noqa: S101  for tests
    alias, layer = f"notifications.testing.{next(_numbers)}", InMemoryChannelLayer(FOREVER, FOREVER, CAPACITY)
    consumer = NotificationConsumer()
    consumer.channel_layer_alias = alias
    forwarder = Forwarder(layer, LogBudget(logger))
    loop = asyncio.get_running_loop()
    with blocks.remembering():
        channel_layers.set(alias, layer)
        blocks.hearers[alias] = lambda stamped: loop.call_soon_threadsafe(forwarder.add, stamped)
        forwarding = asyncio.create_task(forwarder.run())
        socket = Socket(consumer, scope)
        try:
            await socket.expect("auth_success", user_id=str(user.pk))
            yield socket
        finally:
            del blocks.hearers[alias]
            channel_layers.backends.pop(alias, None)
            forwarding.cancel()
            await socket._end()
            await asyncio.wait({forwarding})


def _scope(user: Any) -> dict[str, Any]:
    """Describe the handshake of a page of the site, behind the site's middleware."""
    return {
        "type": "websocket",
        "path": "/ws/notifications/",
        "scheme": "ws",
        "query_string": b"",
        "headers": [(b"host", b"testserver"), (b"origin", b"http://testserver")],
        "client": ("127.0.0.1", 0),
        "server": ("testserver", 80),
        "subprotocols": [],
        "user": user,
    }
