"""
The other end of the HTTP transport: requests written by hand, and streams and polls that are read as they come.

Nothing here imports ``notifications``: what the outside world relies on is written out.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Self

from tests.processes import User, WebServer
from tests.schemas import check_server_frame
from tests.waiting import scaled

PATH = "/notifications/stream/"


class Answer:
    """
    The answer to one request, whose body is read on demand.

    Attributes:
        status: The HTTP status.
        headers: By their names in lower case.

    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self._reader = reader
        self.transport = writer.transport

    async def begin(self) -> Self:
        async with asyncio.timeout(scaled(40)):
            head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        self.status = int(head[0].split()[1])
        self.headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
        return self

    async def parts(self) -> AsyncIterator[bytes]:
        """
        Yield the body as it comes.

        Raises:
            OSError, IncompleteReadError: It is cut off.

        """
        if self.headers.get("transfer-encoding") == "chunked":
            while size := int((await self._reader.readuntil(b"\r\n")).split(b";")[0], 16):
                yield (await self._reader.readexactly(size + 2))[:-2]
        elif "content-length" in self.headers:
            yield await self._reader.readexactly(int(self.headers["content-length"]))
        else:
            while part := await self._reader.read(65536):
                yield part

    async def body(self) -> bytes:
        async with asyncio.timeout(scaled(60)):
            return b"".join([part async for part in self.parts()])

    async def json(self) -> Any:
        return json.loads(await self.body())

    async def lines(self) -> AsyncIterator[str]:
        """Yield the lines of a stream of events."""
        rest = b""
        async for part in self.parts():
            *lines, rest = (rest + part).split(b"\n")
            for line in lines:
                yield line.decode()
        assert rest == b""

    async def frames(self) -> AsyncIterator[dict[str, Any]]:
        """Yield the frames of a stream; that of the event ``close`` is the last."""
        assert self.headers["content-type"].startswith("text/event-stream"), self.headers
        event = ""
        async for line in self.lines():
            name, _, value = line.partition(":")
            if name == "event":
                event = value.strip()
            elif name == "data":
                check_server_frame(value)
                frame = json.loads(value)
                assert (event == "close") == (frame.get("action") == "close")
                yield frame


@asynccontextmanager
async def post(
    server: WebServer, body: Any, *, headers: dict[str, str] | None = None, method: str = "POST", path: str = PATH
) -> AsyncIterator[Answer]:
    """
    Send a request, and close its connection at the end of the block.

    Args:
        server: Where.
        body: As JSON, unless it is ``bytes``.
        headers: More headers, or others.
        method: The HTTP method.
        path: The address.

    """
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        sent = {
            "Host": server.address,
            "Content-Type": "application/json",
            "Content-Length": str(len(content)),
            "Connection": "close",
            **(headers or {}),
        }
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in sent.items()), "", ""]
        writer.write("\r\n".join(lines).encode() + content)
        yield await Answer(reader, writer).begin()
    finally:
        writer.transport.abort()


def session(server: WebServer, user: User) -> dict[str, str]:
    """Return the headers of a page in which a user is logged in."""
    return {"Origin": f"http://{server.address}", "Cookie": user.cookie}


class EventStream:
    """A stream that is read frame by frame."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self._frames = answer.frames()

    async def next(self) -> dict[str, Any]:
        async with asyncio.timeout(scaled()):
            return await anext(self._frames)

    async def expect(self, action: str, **fields: Any) -> dict[str, Any]:
        """Wait for the next frame, which must be this one, and return it."""
        frame = await self.next()
        wanted = {"action": action, **fields}
        assert wanted.items() <= frame.items(), f"wanted {wanted}, got {frame}"
        return frame

    async def expect_end(self) -> list[dict[str, Any]]:
        """Wait for the end of the response, and return the frames before it."""
        async with asyncio.timeout(scaled(60)):
            return [frame async for frame in self._frames]


@asynccontextmanager
async def open_stream(
    server: WebServer, user: User, *topics: str | dict[str, Any], headers: dict[str, str] | None = None, **fields: Any
) -> AsyncIterator[EventStream]:
    """Open a stream of a user's session, which has answered when the block begins."""
    body = {"mode": "stream", "topics": named(topics), **fields}
    async with post(server, body, headers={**session(server, user), **(headers or {})}) as answer:
        assert answer.status == 200, await answer.body()
        stream = EventStream(answer)
        await stream.expect("auth_success", user_id=str(user.pk))
        for topic in body["topics"]:
            await stream.expect("subscribed", topic=topic["topic"])
        yield stream


async def poll(server: WebServer, user: User, *topics: str | dict[str, Any], wait: float = 0, **fields: Any) -> Any:
    """Poll with a user's session, and return the frames."""
    body = {"mode": "poll", "wait": wait, "topics": named(topics), **fields}
    async with post(server, body, headers=session(server, user)) as answer:
        assert answer.status == 200, await answer.body()
        return await answer.json()


def named(topics: tuple[str | dict[str, Any], ...]) -> list[dict[str, Any]]:
    return [{"topic": topic} if isinstance(topic, str) else topic for topic in topics]
