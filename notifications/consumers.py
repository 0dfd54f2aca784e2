"""The WebSocket transport, an ordinary Channels consumer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final

from channels.exceptions import StopConsumer
from channels.generic.websocket import AsyncWebsocketConsumer
from channels.layers import get_channel_layer
from django.core.exceptions import ImproperlyConfigured

from .access import authentication, sessions
from .aio import coroutine_function
from .connection.connection import Caller, Connection
from .protocol import frames
from .protocol.frames import CloseCode
from .tasks import carried_out

HELD_BACK: Final = 0.2
"""Seconds after which a close that the server has not sent is considered held back."""
END_WAIT: Final = 10.0
"""Seconds that an application waits for the end of its connection. A server that stops waits for the application."""

_HANDLERS: Final = {f"websocket.{name}": f"websocket_{name}" for name in ("connect", "receive", "disconnect")}


class NotificationConsumer(AsyncWebsocketConsumer):  # type: ignore[misc]  # Channels has no types
    """
    Delivers published messages to one browser tab, over a WebSocket.

    It does the handshake, applies the origin rule, and handles what differs between web servers.
    Everything else, from authentication to closing, is up to its ``Connection``, which is the same
    on any transport.
    """

    can_answer = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._connection: Connection
        self._task: asyncio.Task[Any] | None = None
        self._receiving = self._interrupted = False

    async def __call__(
        self, scope: dict[str, Any], receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]
    ) -> None:
        self.scope = scope
        self.base_send = send
        self.channel_layer = get_channel_layer(self.channel_layer_alias)
        if self.channel_layer is None:
            raise ImproperlyConfigured("CHANNEL_LAYERS has no 'default' layer for sockets to join groups on")
        self._send_event = coroutine_function(send)
        self._server = _server_of(send)
        self.write_texts = None if self._server is None else self._server.write_texts
        self._task = asyncio.current_task()
        self._connection = Connection(self, self.channel_layer)
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
                del event  # or it would be kept until the next one, and may be as large as a client likes
        except StopConsumer:
            pass
        except asyncio.CancelledError:
            await self._connection.server_stops()
            raise
        finally:
            # A task of its own, because this one may be cancelled again: a cancel scope of anyio does it at every wait.
            await carried_out(self._connection.end(), END_WAIT, "notifications: the end of a socket")

    def send_text(self, text: str) -> Coroutine[Any, Any, None]:
        """Pass a text to the server."""
        return self._send_event({"type": "websocket.send", "text": text})

    async def close(self, code: int | None = None, reason: str | None = None) -> None:
        """Close the WebSocket."""
        # Granian holds a close back while the application waits in ``receive``: until the browser sends something.
        timer = asyncio.get_running_loop().call_later(HELD_BACK, self._interrupt)
        try:
            await super().close(None if code is None else int(code), reason)
        except Exception:
            if code != CloseCode.SERVICE_RESTART:
                raise
            # Autobahn, and so Daphne, refuses registered codes; this one tells the browser to come back as well.
            await super().close(int(CloseCode.TRY_AGAIN), reason)
        finally:
            timer.cancel()

    def _interrupt(self) -> None:
        """Stop waiting for the next event; the application may wait again afterwards."""
        if self._receiving and not self._interrupted and self._task is not None:
            self._interrupted = True
            self._task.cancel()

    def _went_on(self) -> bool:
        """Return whether the cancellation was our own interruption, and nothing else cancelled the task as well."""
        interrupted, self._interrupted = self._interrupted, False
        return interrupted and self._task is not None and self._task.uncancel() == 0

    async def websocket_connect(self, message: dict[str, Any]) -> None:
        caller = _caller(self.scope) if authentication.origin_allowed(self.scope) else None
        if caller is None or not self._connection.may_open(caller):
            await self.close()  # before accept: HTTP 403
            return
        await self.accept()
        if self._server is not None:
            self._server.stop_keepalive()  # the heartbeat asks as well, and until it does ``AUTH_TIMEOUT`` is the bound
        await self._connection.open(caller)

    async def websocket_receive(self, message: dict[str, Any]) -> None:
        await self._connection.hear(message.get("text"))

    async def websocket_disconnect(self, message: dict[str, Any]) -> None:
        raise StopConsumer


def _server_of(send: Callable[[Any], Awaitable[None]]) -> Any:
    """
    Return the server's side of a connection if it takes texts without a coroutine, as ``notifications.uvicorn`` does.

    A middleware that wraps ``send`` has to see every message, so only the server's own method will do; otherwise None.
    """
    server: Any = getattr(send, "__self__", None)
    is_its_own = hasattr(type(server), "write_texts") and server.send == send
    return server if is_its_own else None


def _caller(scope: dict[str, Any]) -> Caller:
    """Describe the client that opens a WebSocket."""
    found: sessions.Found | None = scope.get(sessions.SCOPE_KEY)
    is_known, has_origin = found is None or found.is_known, authentication.has_origin(scope)
    user = authentication.session_user(scope) if is_known else None
    has_session = user is not None
    return Caller(
        address=authentication.client_address(scope),
        user=user,
        session_key=getattr(scope.get("session"), "session_key", None) if has_session else None,
        as_of=found.as_of if found is not None else None,
        is_known=is_known or not has_origin,
        is_in_doubt=lambda: has_origin and sessions.is_in_doubt(scope),
        since=frames.since_in_url(scope.get("query_string", b"")) if has_session else None,
    )
