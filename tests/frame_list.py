"""
A transport that is a list: no server, no ASGI, no socket.

What a connection says to it and hears from it is all that any transport has to do.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

from channels.layers import InMemoryChannelLayer

from notifications.connection.connection import Caller, Connection
from notifications.protocol.frames import CloseCode
from notifications.topics import Topic
from tests.schemas import check_server_frame
from tests.waiting import scaled

ADDRESS = "192.0.2.1"


class FrameList:
    """
    A client, and the way to it.

    It answers no pings unless a test does. Whatever the connection says is compared with the committed schemas.

    Attributes:
        frames: What the client was sent and has not looked at yet.
        code: The code with which the connection was closed.
        reading: While it is not set, a send waits, as for a client that does not read.
        returning: While it is not set, a send does not return though the client has the frame, as with a middleware
            that does something else afterwards.
        error: What a send raises instead.

    """

    def __init__(self, layer: Any = None, address: str = ADDRESS) -> None:
        self.frames: list[dict[str, Any]] = []
        self.code: CloseCode | None = None
        self.reading = asyncio.Event()
        self.reading.set()
        self.returning = asyncio.Event()
        self.returning.set()
        self.error: Exception | None = None
        self.layer = InMemoryChannelLayer() if layer is None else layer
        self.address = address
        self.connection = Connection(self, self.layer)
        self._news = asyncio.Event()

    # What a transport is.

    write_texts = None
    can_answer = True

    async def send_text(self, text: str) -> None:
        assert self.code is None, f"a frame after the close: {text}"
        await self.reading.wait()
        if self.error is not None:
            raise self.error
        check_server_frame(text)
        self.frames.append(json.loads(text))
        self._news.set()
        await self.returning.wait()

    async def close(self, code: CloseCode) -> None:
        assert self.code is None, "closed twice"
        self.code = code
        self._news.set()

    # What a client does.

    async def open(self, user: Any = None, **fields: Any) -> bool:
        """Show a session of a user, or none; says whether the client was let in."""
        known: dict[str, Any] = {
            "address": self.address,
            "user": user,
            "session_key": None,
            "as_of": asyncio.get_running_loop().time(),
            "is_known": True,
            "is_in_doubt": lambda: False,
            "since": None,
        }
        caller = Caller(**{**known, **fields})
        if not self.connection.may_open(caller):
            return False
        await self.connection.open(caller)
        return True

    async def say(self, frame: dict[str, Any] | str | None = None, **fields: Any) -> None:
        """Send a frame; None for a binary one."""
        if fields:
            frame = fields
        await self.connection.hear(json.dumps(frame) if isinstance(frame, dict) else frame)

    async def next(self) -> dict[str, Any]:
        """Wait for the next frame, and take it."""
        await self._wait(lambda: bool(self.frames))
        return self.frames.pop(0)

    async def expect(self, action: str, **fields: Any) -> dict[str, Any]:
        """Wait for the next frame, which must be this one, and take it."""
        frame = await self.next()
        wanted = {"action": action, **fields}
        assert wanted.items() <= frame.items(), f"wanted {wanted}, got {frame}"
        return frame

    async def expect_closed(self, code: CloseCode) -> list[dict[str, Any]]:
        """Wait for the end, which must be this one, and return the frames that came before."""
        await self._wait(lambda: self.code is not None)
        assert self.code == code, f"wanted {code}, got {self.code}; before it: {self.frames}"
        frames, self.frames = self.frames, []
        return frames

    async def subscribe(self, topic: Topic | str, **fields: Any) -> dict[str, Any]:
        await self.say({"action": "subscribe", "topic": str(topic), **fields})
        return await self.expect("subscribed", topic=str(topic))

    async def is_served(self) -> None:
        """Prove that the connection answers, and that it has said nothing else."""
        await self.say(action="ping")
        await self.expect("pong")

    async def _wait(self, condition: Any) -> None:
        async with asyncio.timeout(scaled()):
            while not condition():
                self._news.clear()
                await self._news.wait()


def user_of(pk: Any) -> Any:
    """Make a user who is in no database."""
    return SimpleNamespace(pk=pk, is_active=True)


@asynccontextmanager
async def opened(user: Any = None, **fields: Any) -> AsyncIterator[FrameList]:
    """Open a connection by session, or without one, that ends with the block."""
    client = FrameList(**{key: fields.pop(key) for key in ("layer", "address") if key in fields})
    try:
        assert await client.open(user, **fields)
        if user is not None:
            await client.expect("auth_success", user_id=str(user.pk))
        yield client
    finally:
        client.reading.set()
        client.returning.set()
        await client.connection.end()
