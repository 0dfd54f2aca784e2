"""The HTTP transport in this process: a stream of the doctor's user, and what the site answers to a stranger."""

from __future__ import annotations

import asyncio
from contextlib import aclosing, suppress
from contextvars import copy_context
from typing import Any, Final

import msgspec

from ..aio import Timeout
from ..connection.connection import Caller
from ..http import Response
from ..protocol.frames import Request
from ..tenants import remembered
from .client import EventReader, Head, request_body
from .socket import PATIENCE, ProbeUser, end

MAX_BODY: Final = 64 * 1024
"""Bytes that are kept of an answer to a stranger."""


class ProbeStream:
    """
    One response of the HTTP transport, as the view of the site begins it for a session.

    Attributes:
        frames: The decoded frames that it carried, in order.

    """

    def __init__(self, layer: Any, user: ProbeUser) -> None:
        self.frames: list[dict[str, Any]] = []
        self._response = Response(layer)
        self._caller = Caller(
            address="127.0.0.1",
            user=user,
            session_key=None,
            as_of=None,
            is_known=True,
            is_in_doubt=lambda: False,
            since=None,
        )
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Begin, and wait for the first frame, the end or the time-out; raise what the transport raises."""
        self._task = asyncio.create_task(self._read())
        with suppress(TimeoutError):
            async with Timeout(PATIENCE):
                await self._news.wait()
        if self._task.done():
            self._task.result()

    async def close(self) -> None:
        """Leave, as a browser does."""
        if self._task is not None:
            await end(self._task)
            if not self._task.cancelled():
                self._task.exception()  # it has been reported, or came too late to matter

    async def _read(self) -> None:
        events = EventReader()
        try:
            async with aclosing(self._response.body(self._caller, Request(mode="stream"))) as parts:
                async for part in parts:
                    for _, data in events.feed(part):
                        if data:
                            self.frames.append(msgspec.json.decode(data, type=dict))
                            self._news.set()
        finally:
            self._news.set()


async def ask_application(application: Any, path: str, host: str) -> tuple[Head, str]:
    """
    Post to the stream's address as a stranger, through the site's middleware.

    It is asked as over TLS, or a site that redirects to ``https`` would.

    Raises:
        Exception: Whatever the application raises.
        TimeoutError: It did not answer in time.

    """
    body = request_body("stream")
    sent = [{"type": "http.request", "body": body, "more_body": False}]
    began, said = Head(0, {}), b""
    is_over = asyncio.Event()

    async def receive() -> dict[str, Any]:
        if sent:
            return sent.pop()
        await is_over.wait()
        return {"type": "http.disconnect"}

    async def send(event: dict[str, Any]) -> None:
        nonlocal began, said
        if event["type"] == "http.response.start":
            headers = {
                bytes(name).decode("latin1").lower(): bytes(value).decode("latin1") for name, value in event["headers"]
            }
            began = Head(event["status"], headers)
        elif event["type"] == "http.response.body":
            said = (said + event.get("body", b""))[:MAX_BODY]
            if not event.get("more_body"):
                is_over.set()

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "https",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [
            (b"host", host.encode()),
            (b"origin", f"https://{host}".encode()),
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
        ],
        "client": ("127.0.0.1", 0),
        "server": (host, 443),
    }
    as_from_outside = copy_context()
    as_from_outside.run(remembered.set, None)  # the middleware determines the tenant
    task = asyncio.create_task(application(scope, receive, send), context=as_from_outside)
    try:
        async with Timeout(PATIENCE):
            await asyncio.shield(task)
    finally:
        await end(task)
    return began, said.decode(errors="replace")
