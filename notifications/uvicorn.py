"""
A WebSocket class for uvicorn whose texts leave together.

    uvicorn --ws notifications.uvicorn:WebSocketProtocol --ws-max-size 16384 mysite.asgi:application

A write to a socket is a system call and wakes its reader: 6 to 8 µs, most of what a delivery costs. Ten frames in one
write cost 1.2 µs each. So what one socket is given in one turn of the event loop leaves in one write, and a text that
goes to a thousand sockets is framed once. Everything else is uvicorn's: this is its own class on another transport.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, cast

import uvicorn
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.protocol import State

from .aio import SmallEvent, SmallQueue

if TYPE_CHECKING:
    from collections.abc import Sequence

    from uvicorn._types import ASGISendEvent

KNOWN: Final = ((0, 54), (0, 55))
"""The first version of uvicorn that this module was tried with, and the first that it was not. The class below it is
private to uvicorn: tests/unit/test_uvicorn.py says what is used of it."""
MAX_CORKED: Final = 64 * 1024
"""Bytes of one socket that may wait for the end of a turn: as many as a transport of asyncio buffers before it asks
for a pause."""
MAX_UNCOMPRESSED: Final = 1400
"""Characters of a text that is sent as it is although the client takes compressed ones, which RFC 7692 (6) leaves to
the sender: it fits into one packet anyway, and compressing it for each socket takes 25 µs (docs/performance.md)."""
MAX_REMEMBERED: Final = 256 * 1024
"""Bytes of frames that a process remembers; then it begins anew."""

_version = tuple(int(part) for part in uvicorn.__version__.split(".")[:2])
if not KNOWN[0] <= _version < KNOWN[1]:
    _first, _next = (".".join(map(str, version)) for version in KNOWN)
    raise ImportError(
        f"notifications.uvicorn was made for uvicorn from {_first} and below {_next}, and not for "
        f"{uvicorn.__version__}: install django-realtime-notifications[uvicorn], or start uvicorn without --ws"
    )


class _Frames(dict[str, bytes]):
    """The WebSocket frames of texts. Looking one up takes 0.1 µs, making it 0.7 µs and more."""

    _size = 0

    def __missing__(self, text: str) -> bytes:
        data = text.encode()
        size = len(data)
        if size < 126:
            head = bytes((0x81, size))  # FIN and TEXT, not masked: RFC 6455, 5.2
        elif size < 65536:
            head = b"\x81\x7e" + size.to_bytes(2)
        else:
            head = b"\x81\x7f" + size.to_bytes(8)
        frame = head + data
        self._size += len(frame)
        if self._size > MAX_REMEMBERED:
            self.clear()
            self._size = len(frame)
        if self._size <= MAX_REMEMBERED:
            self[text] = frame
        return frame


_frames: Final = _Frames()


class _Corked(asyncio.Transport):
    """
    A transport that collects what is written in one turn of the event loop.

    uvicorn's class is given this one, so that everything it writes, also pings and closes, stays in order.
    """

    __slots__ = ("_loop", "_pieces", "_size", "_transport")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._transport = transport
        self._loop = loop
        self._pieces: list[bytes] = []
        self._size = 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not self._pieces:
            self._loop.call_soon(self.flush)
        self._pieces.append(data)  # type: ignore[arg-type]  # uvicorn's class writes bytes
        self._size += len(data)
        if self._size > MAX_CORKED:
            self.flush()

    def write_now(self, data: bytes) -> None:
        """Write without waiting for the end of the turn, unless something is before it."""
        if self._pieces:
            self.write(data)
        elif not self._transport.is_closing():
            self._transport.write(data)

    def flush(self) -> None:
        """Write what was collected."""
        pieces = self._pieces
        if pieces:
            self._pieces, self._size = [], 0
            if not self._transport.is_closing():
                self._transport.write(pieces[0] if len(pieces) == 1 else b"".join(pieces))

    def close(self) -> None:
        self.flush()
        self._transport.close()

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def get_write_buffer_size(self) -> int:
        return self._size + self._transport.get_write_buffer_size()

    def pause_reading(self) -> None:
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        self._transport.resume_reading()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._transport.get_extra_info(name, default)


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """What ``uvicorn --ws`` is given."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # A client that is sent nothing takes 7.5 KB less: 3.7 for these, and the rest for its handshake.
        self.queue = SmallQueue()  # type: ignore[assignment]
        self.writable = SmallEvent()  # type: ignore[assignment]
        super().connection_made(_Corked(cast("asyncio.Transport", transport), self.loop))

    transport: _Corked

    def start_keepalive(self) -> None:
        """Forget the headers of the handshake, which is over; the application has a copy of its own."""
        self.request.headers.clear()
        self.response.headers.clear()
        super().start_keepalive()

    async def send(self, message: ASGISendEvent) -> None:
        if (
            message["type"] == "websocket.send"
            and (text := message.get("text")) is not None
            and message.get("bytes") is None
            and self._takes((text,))
        ):
            self.transport.write(_frames[text])
        else:
            await super().send(message)

    def write_texts(self, texts: Sequence[str]) -> bool:
        """
        Write texts at once and together; return False if ``send`` has to be called for each.

        ``NotificationConsumer`` calls it where no middleware wraps ``send``, whose coroutine needs a step of a task: a
        text takes 0.4 µs and not 2.3, and one of ten 0.1 µs and not 1.9, the system call aside. Whoever overrides
        ``send`` overrides this, too.
        """
        if not self._takes(texts):
            return False
        self.transport.write_now(_frames[texts[0]] if len(texts) == 1 else b"".join([_frames[text] for text in texts]))
        return True

    def _takes(self, texts: Sequence[str]) -> bool:
        """Return whether texts can be written now, and as they are for other sockets."""
        return (
            self.conn.state is State.OPEN
            and not self.disconnected
            and self.writable.is_set()
            and not (self.conn.extensions and max(map(len, texts)) > MAX_UNCOMPRESSED)  # each compresses for itself
        )
