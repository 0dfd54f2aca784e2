"""A socket on the site's own ASGI application, in this process."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from contextvars import copy_context
from typing import Any, Final, Self
from urllib.parse import urlsplit

import msgspec
from channels.auth import AuthMiddleware
from django.conf import settings as django_settings

from ..aio import Timeout
from ..exceptions import TopicError
from ..tenants import remembered
from .permissions import unknown_ids

PATIENCE: Final = 5.0
"""Seconds that the application may take to accept, to answer and to end."""

CANCEL_INTERVAL: Final = 0.2
"""Seconds between two attempts to end a task."""


MAX_MIDDLEWARES: Final = 20
"""Nested applications that are examined."""


class ProbeUser:
    """A user who is in no database, in place of the one that AuthMiddleware would find in a session."""

    is_authenticated = is_active = True
    is_anonymous = is_staff = is_superuser = False

    def __init__(self, pk: str) -> None:
        self.pk = self.id = pk
        self.asked_for = False

    def _set_wrapped(self, user: Any) -> None:
        # AuthMiddleware sets the session's user here, and leaves an existing user as it is.
        self.asked_for = True

    _wrapped = property(None, _set_wrapped)

    @classmethod
    def new(cls) -> Self:
        """
        Create one with a primary key that no user has, of a type that the ``CLEAN_ID`` of users accepts.

        Raises:
            TopicError: ``CLEAN_ID`` accepts none.

        """
        keys = unknown_ids("user")
        if not keys:
            raise TopicError("CLEAN_ID of kind 'user' refuses every key that the doctor can make up")
        return cls(keys[0])


class ProbeSocket:
    """
    One connection, as a page of the site opens it.

    Attributes:
        frames: The decoded frames that it received, in order.
        host: The host that it requests.
        accepted, close_code: What the application has done with it.

    """

    def __init__(self, application: Any, path: str, user: ProbeUser, host: str) -> None:
        self.frames: list[dict[str, Any]] = []
        self.accepted = False
        self.close_code: int | None = None
        self._application = application
        self.host = host
        self._scope = _scope(path, user, host)
        self._in: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """
        Connect, and wait for the first frame, the end, or the time-out.

        Raises:
            Exception: Whatever the application raises.

        """
        self._in.put_nowait({"type": "websocket.connect"})
        as_from_outside = copy_context()
        as_from_outside.run(remembered.set, None)  # the middleware determines the tenant
        application = self._application(self._scope, self._in.get, self._send)
        self._task = asyncio.create_task(application, context=as_from_outside)
        await self.wait(lambda: bool(self.frames))

    def say(self, frame: dict[str, Any]) -> None:
        self._in.put_nowait({"type": "websocket.receive", "text": msgspec.json.encode(frame).decode()})

    async def wait(self, condition: Any, seconds: float = PATIENCE) -> bool:
        """Wait until the condition is true or the socket has ended; raise what the application raises."""
        assert self._task is not None  # noqa: S101  it was opened
        with suppress(TimeoutError):
            async with Timeout(seconds):
                while not condition() and self.close_code is None and not self._task.done():
                    self._news.clear()
                    news = asyncio.ensure_future(self._news.wait())
                    try:
                        await asyncio.wait([news, self._task], return_when=asyncio.FIRST_COMPLETED)
                    finally:
                        news.cancel()
        if self._task.done():
            self._task.result()
        return bool(condition())

    async def close(self) -> None:
        """Disconnect, as a browser does."""
        if self._task is None:
            return
        self._in.put_nowait({"type": "websocket.disconnect", "code": 1000})
        await asyncio.wait([self._task], timeout=PATIENCE)
        await end(self._task)
        if not self._task.cancelled():
            self._task.exception()  # it has been reported, or came too late to matter

    async def _send(self, event: dict[str, Any]) -> None:
        if event["type"] == "websocket.accept":
            self.accepted = True
        elif event["type"] == "websocket.close":
            self.close_code = event.get("code", 1000)
        elif event["type"] == "websocket.send" and event.get("text") is not None:
            with suppress(msgspec.DecodeError):
                self.frames.append(msgspec.json.decode(event["text"], type=dict))
        self._news.set()


def host_of(site: str | None) -> str:
    """Return a host that the site answers to: that of its address, if it was given."""
    with suppress(ValueError):  # not a URL, which is reported elsewhere
        if site and (name := urlsplit(site).hostname):
            return name
    for host in django_settings.ALLOWED_HOSTS:
        if host != "*":
            return str(host).lstrip(".")
    return "localhost"


def _scope(path: str, user: ProbeUser, host: str) -> dict[str, Any]:
    return {
        "type": "websocket",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "scheme": "ws",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(b"host", host.encode()), (b"origin", f"http://{host}".encode())],
        "subprotocols": [],
        "client": ("127.0.0.1", 0),
        "server": (host, 80),
        "user": user,
    }


def writes_sessions(application: Any) -> bool:
    """Return whether Channels' own middleware, which ends sessions, is in front of the WebSocket."""
    for _ in range(MAX_MIDDLEWARES):
        if type(application) is AuthMiddleware:
            return True
        routes = getattr(application, "application_mapping", None)
        inner = (getattr(application, name, None) for name in ("inner", "application", "app"))
        application = routes.get("websocket") if isinstance(routes, dict) else next(filter(None, inner), None)
    return False


async def end(task: asyncio.Task[Any]) -> None:
    """Cancel a task until it ends: on Python 3.11 a ``wait_for`` under redis-py can swallow a cancellation."""
    while not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=CANCEL_INTERVAL)
