"""
A browser's side of HTTP/1.1 and of a WebSocket, by hand: the doctor has to see when each piece of an answer arrives.

Libraries hide that, and who answered an ``Upgrade`` with what.
"""

from __future__ import annotations

import asyncio
import base64
import secrets
import ssl
import struct
import zlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from http import client as http_client
from io import BytesIO
from typing import Any, Final, NamedTuple, Self
from urllib.parse import SplitResult, quote, urlsplit

import msgspec

from ..aio import Timeout

PATIENCE: Final = 5.0
"""Seconds that the site may take to connect, and as many to answer."""
MAX_ANSWER: Final = 512 * 1024
"""Maximum number of bytes that are read of a head, a line, a piece of a body or a frame: a stream ends before it."""
SWITCHING: Final = 101
TEXT, CLOSE, PING, PONG = 0x1, 0x8, 0x9, 0xA
"""Opcodes of WebSocket frames (RFC 6455, 5.2)."""
NO_CODE: Final = 1005
"""A close frame without a code (RFC 6455, 7.4.1)."""
_HTTP2_SETTINGS: Final = b"\x04"
"""Type of the frame with which a server that speaks HTTP/2 begins (RFC 9113, 3.4)."""

GONE: Final = (OSError, TimeoutError, EOFError, asyncio.LimitOverrunError, zlib.error, ValueError)
"""What reading from whatever answers at an address may raise."""


class OnlyHTTP2Error(ValueError):
    """What answers speaks HTTP/2 and no HTTP/1.1, in which browsers open a WebSocket unless told otherwise."""


class Place(NamedTuple):
    """A running site, and one path on it."""

    secure: bool
    host: str
    port: int
    path: str
    authority: str

    @classmethod
    def of(cls, site: str, path: str, below: str | None = None) -> Self:
        """
        Parse the address of a site.

        Args:
            site: An ``http`` or ``https`` URL; its path, if any, is the site's script prefix.
            path: The path on the site, with the script prefix of this process.
            below: The same path without the prefix, for a site whose address has one; None to take ``path`` as it is.

        Raises:
            ValueError: It is not such a URL.

        """
        parts = urlsplit(site)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(site)
        prefix = parts.path.strip("/")
        return cls(
            parts.scheme == "https",
            parts.hostname,
            parts.port or (443 if parts.scheme == "https" else 80),
            quote(f"/{prefix}/{below.lstrip('/')}" if prefix and below is not None else path, safe="/%"),
            _authority(parts),
        )

    @property
    def origin(self) -> str:
        return f"{'https' if self.secure else 'http'}://{self.authority}"

    @property
    def url(self) -> str:
        return f"{self.origin}{self.path}"


def _authority(parts: SplitResult) -> str:
    """Return host and port as a browser sends them: without the scheme's own port, and without an account."""
    host = parts.netloc.rpartition("@")[2]
    return host.removesuffix({"http": ":80", "https": ":443"}[parts.scheme]).lower()


class Head(NamedTuple):
    """
    The beginning of an answer.

    Attributes:
        status: The HTTP status.
        headers: By their names in lower case; those of one name are joined by commas.

    """

    status: int
    headers: Mapping[str, str]

    def get(self, name: str) -> str:
        return self.headers.get(name, "")

    @property
    def media_type(self) -> str:
        return self.get("content-type").partition(";")[0].strip().lower()


class Event(NamedTuple):
    """A server-sent event; a comment has neither a name nor data."""

    name: str
    data: str


class EventReader:
    """Cuts the pieces of a body into events."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, piece: bytes) -> list[Event]:
        """Return the events that are complete; raise ``ValueError`` if one is too large."""
        *blocks, self._rest = (self._rest + piece).replace(b"\r\n", b"\n").split(b"\n\n")
        if len(self._rest) > MAX_ANSWER:
            raise ValueError("one event of the answer is too large")
        return [_read_event(block.decode(errors="replace")) for block in blocks]


def _read_event(block: str) -> Event:
    fields = [line.partition(":") for line in block.split("\n")]
    data = "\n".join(value.removeprefix(" ") for name, _, value in fields if name == "data")
    named = [value.strip() for name, _, value in fields if name == "event"]
    return Event(named[-1] if named else "message" if data else "", data)


class Answer:
    """An answer whose body, or whose frames after an upgrade, are read as they arrive."""

    def __init__(self, head: Head, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.head = head
        self._reader, self._writer = reader, writer

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yield the body as it arrives, inflated; the caller bounds the wait."""
        inflate = zlib.decompressobj(31) if self.head.get("content-encoding") == "gzip" else None
        async for piece in self._chunks() if self.head.get("transfer-encoding") == "chunked" else self._plain():
            yield inflate.decompress(piece, MAX_ANSWER) if inflate else piece

    async def _chunks(self) -> AsyncIterator[bytes]:
        while size := int((await self._reader.readline()).partition(b";")[0], 16):
            if size > MAX_ANSWER:
                raise ValueError("one piece of the answer is too large")
            yield (await self._reader.readexactly(size + 2))[:-2]

    async def _plain(self) -> AsyncIterator[bytes]:
        length = self.head.get("content-length")
        left = int(length) if length else None
        while left is None or left > 0:
            piece = await self._reader.read(MAX_ANSWER if left is None else min(left, MAX_ANSWER))
            if not piece:
                if left:
                    raise EOFError("the answer was cut off")
                return
            left = None if left is None else left - len(piece)
            yield piece

    async def read(self) -> bytes:
        """Read the whole body, up to ``MAX_ANSWER`` bytes."""
        body = b""
        async for piece in self.pieces():
            body += piece
            if len(body) > MAX_ANSWER:
                raise ValueError("the answer is too large")
        return body

    async def events(self) -> AsyncIterator[Event]:
        """Yield the server-sent events of the body, as they arrive."""
        reader = EventReader()
        async for piece in self.pieces():
            for event in reader.feed(piece):
                yield event

    async def say(self, opcode: int, payload: bytes) -> None:
        """Send one frame of an open WebSocket."""
        self._writer.write(_frame(opcode, payload))
        await self._writer.drain()

    async def hear(self) -> tuple[int, bytes]:
        """
        Receive one frame of an open WebSocket; the caller bounds the wait.

        Raises:
            EOFError: The connection was cut.
            ValueError: The frame is too large.

        """
        opcode, size = await self._reader.readexactly(2)
        size &= 0x7F
        if size >= 126:
            size = int.from_bytes(await self._reader.readexactly(2 if size == 126 else 8), "big")
        if size > MAX_ANSWER:
            raise ValueError("a frame of the answer is too large")
        return opcode & 0x0F, await self._reader.readexactly(size)

    async def messages(self) -> AsyncIterator[dict[str, Any]]:
        """
        Yield the protocol's frames until the server closes, and then ``{"action": "close", "code": …}``.

        The pings of WebSockets are answered.
        """
        while True:
            opcode, payload = await self.hear()
            if opcode == CLOSE:
                yield {"action": "close", "code": close_code(payload)}
                return
            if opcode == PING:
                await self.say(PONG, payload)
            elif opcode == TEXT:
                yield msgspec.json.decode(payload, type=dict)


def close_code(payload: bytes) -> int:
    """Return the code of a close frame."""
    return int.from_bytes(payload[:2], "big") if len(payload) > 1 else NO_CODE


@asynccontextmanager
async def request(
    place: Place, method: str, headers: Mapping[str, str], body: bytes = b"", patience: float = PATIENCE
) -> AsyncIterator[Answer]:
    """
    Send one request on a connection of its own, and read the head of the answer.

    Args:
        place: Where.
        method: Of HTTP.
        headers: Besides ``Host``.
        body: What ``Content-Length`` announces.
        patience: Seconds that the answer may take to begin.

    Raises:
        OSError, EOFError, ValueError: What answers there, if anything does, speaks no HTTP/1.1.

    """
    context = ssl.create_default_context() if place.secure else None
    if context is not None:
        context.set_alpn_protocols(["http/1.1"])
    try:
        async with Timeout(PATIENCE):
            reader, writer = await asyncio.open_connection(place.host, place.port, limit=MAX_ANSWER, ssl=context)
    except ssl.SSLError as error:
        if "NO_APPLICATION_PROTOCOL" in str(error.reason):
            raise OnlyHTTP2Error("it speaks no HTTP/1.1") from error
        raise
    try:
        async with Timeout(patience):
            writer.write(_head(place, method, headers) + body)
            head = await reader.readuntil(b"\r\n\r\n")
        yield Answer(read_head(head), reader, writer)
    except asyncio.IncompleteReadError as error:
        if error.partial[3:4] == _HTTP2_SETTINGS:
            raise OnlyHTTP2Error("it speaks no HTTP/1.1") from error
        raise
    finally:
        writer.close()
        with suppress(OSError, TimeoutError):
            async with Timeout(1):
                await writer.wait_closed()


def handshake_headers(origin: str | None, *, compressed: bool = True) -> dict[str, str]:
    """Return the headers with which a page of an origin opens a WebSocket, or a program if it is None."""
    offer = {"Sec-WebSocket-Extensions": "permessage-deflate; client_max_window_bits"}
    return {
        **({} if origin is None else {"Origin": origin}),
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": base64.b64encode(secrets.token_bytes(16)).decode(),
        "Sec-WebSocket-Version": "13",
        **(offer if compressed else {}),
    }


def post_headers(place: Place, body: bytes, *, encoding: str = "gzip") -> dict[str, str]:
    """Return the headers with which a page asks for the stream, or for a poll; browsers accept a compressed answer."""
    return {
        "Origin": place.origin,
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        "Accept": "text/event-stream, application/json",
        "Accept-Encoding": encoding,
        "Connection": "close",
    }


def request_body(
    mode: str, *, token: str | None = None, topics: list[dict[str, Any]] | None = None, wait: int = 0
) -> bytes:
    """Return the body of a request for the stream, or for a poll."""
    return msgspec.json.encode({"mode": mode, "token": token, "since": None, "topics": topics or [], "wait": wait})


def _head(place: Place, method: str, headers: Mapping[str, str]) -> bytes:
    lines = [f"{method} {place.path} HTTP/1.1", f"Host: {place.authority}", "User-Agent: notifications_doctor"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode("latin1")


def read_head(head: bytes) -> Head:
    """Parse the head of an answer; raise ``ValueError`` if it is none."""
    first, _, rest = head.partition(b"\r\n")
    protocol, status, *_ = first.decode("latin1").split(maxsplit=2)
    if not protocol.startswith("HTTP/"):
        raise ValueError("what answers there is no web server")
    try:
        parsed = http_client.parse_headers(BytesIO(rest))
    except http_client.HTTPException as error:
        raise ValueError("what answers there has no headers that can be read") from error
    names = {name.lower() for name in parsed}
    return Head(int(status), {name: ", ".join(parsed.get_all(name, [])) for name in names})


def _frame(opcode: int, payload: bytes) -> bytes:
    """Return one masked frame; a mask of zeros leaves the payload readable."""
    size = len(payload)
    head = bytes([0x80 | opcode]) + (bytes([0x80 | size]) if size < 126 else struct.pack("!BH", 0xFE, size))
    return head + bytes(4) + payload
