"""The running site, examined from outside: through its proxies, at the address to which its pages connect."""

from __future__ import annotations

import asyncio
import base64
import secrets
import ssl
import struct
from contextlib import suppress
from typing import Final, NamedTuple, Self
from urllib.parse import SplitResult, quote, urlsplit

from ..logs import describe
from ..mount import PATH, socket_path
from ..protocol.frames import MAX_AUTH_FRAME_SIZE
from .findings import Finding, Level

PATIENCE: Final = 5.0
"""Seconds that the site may take to connect, and as many to answer."""
MAX_ANSWER: Final = 64 * 1024
"""Maximum number of characters that are read of the answer to the handshake."""
TOO_BIG: Final = 1009
"""Close code of a server that refuses a frame for its size (RFC 6455, 7.4.1)."""
_SWITCHING: Final = 101
_TEXT, _CLOSE = 0x1, 0x8

LIMIT: Final = (
    "Start the server with a limit: uvicorn --ws notifications.uvicorn:WebSocketProtocol or "
    f"--ws-max-size {MAX_AUTH_FRAME_SIZE}, or the largest frame of the site's other consumers; docs/security.md."
)
_STATUS: Final = {
    301: "It redirects: give the address that it redirects to.",
    302: "It redirects: give the address that it redirects to.",
    400: "Is this host in ALLOWED_HOSTS? Does the proxy pass Upgrade and Connection on?",
    403: "It refuses a page of its own host: does the proxy pass Host on, and is SECURE_PROXY_SSL_HEADER set?",
    404: "Does an ASGI server run there, and do the proxy and asgi.py have the WebSocket at this address?",
    426: "Does the proxy pass Upgrade and Connection on?",
    500: "Does asgi.py have the WebSocket at this address? The log of the web server says more.",
    502: "The proxy does not reach the web server.",
    503: "The proxy does not reach the web server.",
    504: "The proxy does not reach the web server.",
}


class Answer(NamedTuple):
    """
    The answer of the site.

    Attributes:
        status: The HTTP status of the handshake.
        compresses: Whether the server inflates what browsers send.
        code: The close code after the oversized frame; None if it did not close in time, or cut the connection.

    """

    status: int
    compresses: bool = False
    code: int | None = None


class Place(NamedTuple):
    """Where to connect."""

    secure: bool
    host: str
    port: int
    path: str
    authority: str

    @classmethod
    def of(cls, site: str, path: str | None) -> Self:
        """
        Parse the address of a site.

        Args:
            site: An ``http`` or ``https`` URL; its path, if any, is the site's script prefix.
            path: The path of the WebSocket; None for the one to which pages connect.

        Raises:
            ValueError: It is not such a URL.

        """
        parts = urlsplit(site)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(site)
        below = parts.path.strip("/")
        return cls(
            parts.scheme == "https",
            parts.hostname,
            parts.port or (443 if parts.scheme == "https" else 80),
            quote(path or (f"/{below}/{PATH}" if below else socket_path()), safe="/%"),
            _authority(parts),
        )

    @property
    def origin(self) -> str:
        return f"{'https' if self.secure else 'http'}://{self.authority}"


def _authority(parts: SplitResult) -> str:
    """Return host and port as a browser sends them: without the scheme's own port, and without an account."""
    host = parts.netloc.rpartition("@")[2]
    return host.removesuffix({"http": ":80", "https": ":443"}[parts.scheme]).lower()


async def examine_server(site: str | None, path: str | None) -> list[Finding]:
    """
    Open an anonymous socket on the running site, and send one frame that is slightly larger than allowed.

    Args:
        site: The site's address; None if it was not given.
        path: The path of the WebSocket; None for the one to which the site's pages connect.

    """
    if site is None:
        text = "the running web server was not asked, nor how large a frame it takes: no address was given"
        return [Finding("server", Level.SKIPPED, text, "Give one: --site https://example.com/")]
    try:
        place = Place.of(site, path)
    except ValueError:  # its text may hold half a password of the address
        text = "--site is no address of a site: it has to begin with http:// or https:// and a host"
        return [Finding("server", Level.ERROR, text, "Such as --site https://example.com/")]
    where = f"{place.origin}{place.path}"
    try:
        answer = await _ask(place)
    except (OSError, TimeoutError, EOFError, asyncio.LimitOverrunError, ValueError) as error:
        text = f"{where} does not answer: {describe(error)}"
        return [Finding("server", Level.ERROR, text, "Does it run, and can it be reached from here?")]
    if answer.status != _SWITCHING:
        hint = _STATUS.get(answer.status, "The log of the web server or of the proxy says why.")
        return [Finding("server", Level.ERROR, f"{where} does not open a WebSocket: {answer.status}", hint)]
    return [_judge(where, answer)]


def _judge(where: str, answer: Answer) -> Finding:
    size = f"a frame of {MAX_AUTH_FRAME_SIZE + 1} bytes"
    if answer.code == TOO_BIG:
        return Finding("server", Level.OK, f"{where} opens a WebSocket, and the server refuses {size}")
    if not answer.compresses:
        text = f"{where} opens a WebSocket; the server takes {size}, but inflates nothing"
        return Finding("server", Level.OK, text)
    text = (
        f"{where} opens a WebSocket, and the server takes {size} and inflates what is compressed, "
        "before anybody has logged in: a few sockets can take all memory"
    )
    return Finding("server", Level.WARNING, text, LIMIT)


async def _ask(place: Place) -> Answer:
    async with asyncio.timeout(PATIENCE):
        reader, writer = await asyncio.open_connection(
            place.host, place.port, limit=MAX_ANSWER, ssl=ssl.create_default_context() if place.secure else None
        )
    try:
        async with asyncio.timeout(PATIENCE):
            writer.write(_handshake(place))
            head = await reader.readuntil(b"\r\n\r\n")
        answer = _read_head(head.decode("latin1"))
        if answer.status != _SWITCHING:
            return answer
        with suppress(OSError, TimeoutError, EOFError):  # cut off, or kept open: no code
            async with asyncio.timeout(PATIENCE):
                writer.write(_frame(_TEXT, b"x" * (MAX_AUTH_FRAME_SIZE + 1)))
                answer = answer._replace(code=await _close_code(reader))
                writer.write(_frame(_CLOSE, struct.pack("!H", 1000)))
                await writer.drain()
        return answer
    finally:
        writer.close()
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(1):
                await writer.wait_closed()


def _handshake(place: Place) -> bytes:
    lines = [
        f"GET {place.path} HTTP/1.1",
        f"Host: {place.authority}",
        f"Origin: {place.origin}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Key: {base64.b64encode(secrets.token_bytes(16)).decode()}",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits",
    ]
    return "\r\n".join([*lines, "", ""]).encode("latin1")


def _read_head(head: str) -> Answer:
    """Parse the answer to a handshake; raise ``ValueError`` if it is none."""
    first, *lines = head.split("\r\n")
    protocol, status, *_ = first.split(maxsplit=2)
    if not protocol.startswith("HTTP/"):
        raise ValueError("what answers there is no web server")
    headers = [line.lower() for line in lines]
    extensions = [line for line in headers if line.startswith("sec-websocket-extensions:")]
    return Answer(int(status), compresses=any("permessage-deflate" in line for line in extensions))


def _frame(opcode: int, payload: bytes) -> bytes:
    """Return one masked frame; a mask of zeros leaves the payload readable."""
    size = len(payload)
    head = bytes([0x80 | opcode]) + (bytes([0x80 | size]) if size < 126 else struct.pack("!BH", 0xFE, size))
    return head + bytes(4) + payload


async def _close_code(reader: asyncio.StreamReader) -> int | None:
    """Read frames until the server closes, and return the close code."""
    while True:
        opcode, size = await reader.readexactly(2)
        size &= 0x7F
        if size >= 126:
            size = int.from_bytes(await reader.readexactly(2 if size == 126 else 8), "big")
        if size > MAX_ANSWER:
            return None
        payload = await reader.readexactly(size)
        if opcode & 0x0F == _CLOSE:
            return int.from_bytes(payload[:2], "big") if len(payload) > 1 else 1005
