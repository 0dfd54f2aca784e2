"""
A WebSocket class for uvicorn whose texts leave together.

    uvicorn --ws notifications.uvicorn:WebSocketProtocol mysite.asgi:application

A write to a socket is a system call and wakes its reader: 6 to 8 µs, most of what a delivery costs. Ten frames in one
write cost 1.2 µs each. So what one socket is given in one turn of the event loop leaves in one write, and a text that
goes to a thousand sockets is framed once. Everything else is uvicorn's: this is its own class on another transport.

It also bounds what clients cost before any application sees their frames: ``WebSocketProtocol`` says how.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from typing import TYPE_CHECKING, Any, Final, cast

import uvicorn
from uvicorn.protocols.utils import ClientDisconnected, is_ssl
from websockets.frames import CloseCode, Frame, Opcode
from websockets.protocol import State

from .aio import SmallEvent, SmallQueue
from .connection.limits import TokenBucket
from .logs import LogBudget
from .metrics import count
from .protocol.frames import MAX_AUTH_FRAME_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from uvicorn._types import ASGIReceiveEvent, ASGISendEvent
    from websockets.frames import Close


KNOWN: Final = ((0, 54), (0, 55))
"""The first version of uvicorn that this module was tried with, and the first that it was not. The class below it is
private to uvicorn: tests/unit/test_uvicorn.py notices when it changes."""

_version = tuple(int(part) for part in uvicorn.__version__.split(".")[:2])
if not KNOWN[0] <= _version < KNOWN[1]:
    _first, _next = (".".join(map(str, version)) for version in KNOWN)
    raise ImportError(
        f"notifications.uvicorn was made for uvicorn from {_first} and below {_next}, and not for "
        f"{uvicorn.__version__}: install django-realtime-notifications[uvicorn], or start uvicorn without --ws"
    )

from uvicorn.protocols.websockets.websockets_sansio_impl import (  # noqa: E402  only once the version is known to fit
    WebSocketsSansIOProtocol,
)

logger = logging.getLogger(__name__)

MAX_CORKED: Final = 64 * 1024
"""Bytes of one socket that may wait for the end of a turn: as many as a transport of asyncio buffers before it asks
for a pause."""
MAX_UNCOMPRESSED: Final = 1400
"""Characters of a text that is sent as it is although the client takes compressed ones, which RFC 7692 (6) leaves to
the sender: it fits into one packet anyway, and compressing it for each socket takes 25 µs (docs/performance.md)."""
MAX_REMEMBERED: Final = 256 * 1024
"""Bytes of frames that a process remembers; then it begins anew."""

UVICORNS_MAX_SIZE: Final = 16 * 1024 * 1024
"""``--ws-max-size`` of a site that did not set it. Then the largest frame of this app is the limit."""
SLICE: Final = 4
"""Frames of a client that are read before others get their turn: some 50 µs."""
LINGER: Final = 1.0
"""Seconds that a client which broke a rule may take to read the close code."""
CLOSE_TIMEOUT: Final = 10.0
"""Seconds that a client may take to read what is before a close, and to read the rest after it; as many as uvicorn
waits for its answer in between."""


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
_log: Final = LogBudget(logger, lines=10, period=60.0)


class _Corked(asyncio.Transport):
    """
    A transport that collects what is written in one turn of the event loop.

    uvicorn's class is given this one, so that everything it writes, also pings and closes, stays in order.

    Attributes:
        longest: Characters of a text that may be written without asking ``takes``; -1 after anything that may have
            changed its answer. With a thousand sockets nothing of a socket is in the processor's cache when a message
            comes, and asking looks at a dozen objects of it.

    """

    __slots__ = ("_loop", "_pieces", "_size", "_takes", "_transport", "longest")

    def __init__(
        self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop, takes: Callable[[int], bool]
    ) -> None:
        """
        Create a transport.

        Args:
            transport: The transport below.
            loop: The event loop.
            takes: Returns whether a text of so many characters can be written now, as it is for other sockets; sets
                ``longest`` if so.

        """
        super().__init__()
        self.longest = -1
        self._transport = transport
        self._loop = loop
        self._takes = takes
        self._pieces: list[bytes] = []
        self._size = 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Write something else than a text: a ping, or a close, after which nothing is written."""
        self.longest = -1
        self.collect(data)

    def collect(self, data: bytes | bytearray | memoryview) -> None:
        """Write at the end of the turn."""
        if not self._pieces:
            self._loop.call_soon(self.flush)
        self._pieces.append(data)  # type: ignore[arg-type]  # uvicorn's class writes bytes
        self._size += len(data)
        if self._size > MAX_CORKED:
            self.flush()

    def write_texts(self, texts: Sequence[str]) -> bool:
        """Write texts together and now, or behind what waits; return False if ``send`` has to be called for each."""
        size = len(texts[0]) if len(texts) == 1 else max(map(len, texts))
        if size > self.longest and not self._takes(size):
            return False
        data = _frames[texts[0]] if len(texts) == 1 else b"".join([_frames[text] for text in texts])
        if self._size:
            self.collect(data)
        elif not self._transport.is_closing():
            self._transport.write(data)
        return True

    def flush(self) -> None:
        """Write what was collected."""
        pieces = self._pieces
        if pieces:
            self._pieces, self._size = [], 0
            if not self._transport.is_closing():
                # ``writelines`` takes as long, and with TLS twice as long: each piece is encrypted by itself.
                self._transport.write(pieces[0] if len(pieces) == 1 else b"".join(pieces))

    def close(self) -> None:
        self.longest = -1
        self.flush()
        if not self._transport.is_closing():
            self._transport.close()
            # With TLS a transport does not count what it has encrypted.
            if self._transport.get_write_buffer_size() or is_ssl(self._transport):
                self._loop.call_later(CLOSE_TIMEOUT, self.abort)

    def abort(self) -> None:
        self._transport.abort()

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


class _Incoming(bytearray):
    """What a client has sent and nobody has read yet."""

    __slots__ = ("_rest",)

    def __init__(self) -> None:
        super().__init__()
        self._rest = 0
        """Bytes of the current frame that are still to come."""

    @property
    def begins_with_ping(self) -> bool:
        return not self._rest and bool(self) and self[0] & 0x0F == Opcode.PING

    def take(self) -> bytes:
        """Remove what there is of the current frame; nothing if not even its size has arrived."""
        if not self._rest:
            self._rest = self._size()
        piece = bytes(self[: self._rest])
        del self[: self._rest]
        self._rest -= len(piece)
        return piece

    def _size(self) -> int:
        """Return the size of the next frame with its head (RFC 6455, 5.2), or 0 if that is not known yet."""
        if len(self) < 2:
            return 0
        mask = 4 if self[1] & 0x80 else 0
        size = self[1] & 0x7F
        if size < 126:
            return 2 + mask + size
        end = 4 if size == 126 else 10
        return end + mask + int.from_bytes(self[2:end]) if len(self) >= end else 0


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """
    The class for ``uvicorn --ws``.

    Besides what is said above, it bounds what a client can cost that has not said who it is, which uvicorn's class does
    not: frames are read one at a time, the next when the application has taken the message before, so that at most one
    message of a client is inflated; pings are read only while the client reads the answers; and a client that sends
    more of what no application sees than ``connection.limits`` allows of frames is closed with 1008.
    """

    transport: _Corked

    def __init__(self, config: uvicorn.Config, *arguments: Any, **options: Any) -> None:
        super().__init__(config, *arguments, **options)
        if config.ws_max_size == UVICORNS_MAX_SIZE:
            self.conn.max_message_size = MAX_AUTH_FRAME_SIZE
        self._incoming = _Incoming()
        self._unseen = TokenBucket()
        self._has_failed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # A client that is sent nothing takes 7.5 KB less: 3.7 for these, and the rest for its handshake.
        self.queue = SmallQueue()  # type: ignore[assignment]  # it has what uvicorn calls
        self.writable = SmallEvent()  # type: ignore[assignment]  # so has this
        super().connection_made(_Corked(cast("asyncio.Transport", transport), self.loop, self._takes))

    def start_keepalive(self) -> None:
        """Forget the headers of the handshake, which is over; the application has a copy of its own."""
        self.request.headers.clear()
        self.response.headers.clear()
        super().start_keepalive()

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport.longest = -1
        super().connection_lost(exc)
        self._incoming.clear()

    def eof_received(self) -> None:
        """Close, as a transport then does by itself, but let the client read the rest only for so long."""
        self.transport.close()

    def shutdown(self) -> None:
        """Tell the client that the server stops. If it is leaving, uvicorn's class raises, and no others are told."""
        if not self.transport.is_closing():
            super().shutdown()

    def data_received(self, data: bytes) -> None:
        if self.handshake_initiated:
            self._incoming += data
            self._read()
        else:
            super().data_received(data)

    def pause_writing(self) -> None:
        self.transport.longest = -1
        super().pause_writing()

    def resume_writing(self) -> None:
        super().resume_writing()
        self.loop.call_soon(self._read)

    async def receive(self) -> ASGIReceiveEvent:
        event = await super().receive()
        if self._incoming:
            self._read()
        return event

    async def send(self, message: ASGISendEvent) -> None:
        if (
            message["type"] == "websocket.send"
            and (text := message.get("text")) is not None
            and message.get("bytes") is None
            and self._takes(len(text))
        ):
            self.transport.collect(_frames[text])
        else:
            if self._has_failed:
                raise ClientDisconnected
            if message["type"] == "websocket.close" and not self.writable.is_set():
                # uvicorn's class waits for the client to read what is before it, for ever if it has to.
                waiting = self.loop.call_later(CLOSE_TIMEOUT, self.transport.abort)
                try:
                    await super().send(message)
                finally:
                    waiting.cancel()
            else:
                await super().send(message)
            if self._incoming:
                self._read()

    @property
    def write_texts(self) -> Callable[[Sequence[str]], bool]:
        """
        A function that writes texts at once and together, or returns False: then ``send`` has to be called for each.

        ``NotificationConsumer`` calls it where no middleware wraps ``send``, whose coroutine needs a step of a task: a
        text takes 0.4 µs and not 2.3, and one of ten 0.1 µs and not 1.9, the system call aside. Whoever overrides
        ``send`` overrides this, too.
        """
        return self.transport.write_texts

    def _takes(self, size: int) -> bool:
        longest = MAX_UNCOMPRESSED if self.conn.extensions else sys.maxsize  # above it each compresses for itself
        if self.conn.state is not State.OPEN or self.disconnected or not self.writable.is_set() or size > longest:
            return False
        self.transport.longest = longest
        return True

    def handle_ping(self) -> None:
        super().handle_ping()
        self._count_unseen()

    def handle_pong(self, event: Frame) -> None:
        super().handle_pong(event)
        self._count_unseen()

    def handle_cont(self, event: Frame) -> None:
        """Join fragments at once: apart, a thousand of one byte would take a hundred times as much."""
        joined: Any = self.frames[0]
        if not isinstance(joined, bytearray):
            joined = bytearray(joined)
        joined += event.data
        self.frames = [bytes(joined) if event.fin else joined]
        if event.fin:
            self.send_receive_event_to_app()
        elif not event.data:
            self._count_unseen()

    def send_receive_event_to_app(self) -> None:
        if self.close_sent:
            self._count_unseen()
        super().send_receive_event_to_app()

    def handle_parser_exception(self) -> None:
        """End the connection, as uvicorn's class does, but let the client read why."""
        close = cast("Close", self.conn.close_sent)
        if close.code in (CloseCode.MESSAGE_TOO_BIG, CloseCode.POLICY_VIOLATION):
            count("closed", str(int(close.code)))
            _log.warning("closed a WebSocket with %d: %s", close.code, close.reason)
        self.queue.put_nowait({"type": "websocket.disconnect", "code": close.code, "reason": close.reason})
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = self._has_failed = True
        self.transport.pause_reading()
        # Closing now would reset the connection, because not all that the client has sent was read; a client that is
        # reset may drop what it has received.
        self.close_timer = self.loop.call_later(LINGER, self.transport.close)

    def _count_unseen(self) -> None:
        """Count a frame that no application sees, and close with 1008 if there are too many."""
        if not self._unseen.take(self.loop.time()):
            self.conn.fail(CloseCode.POLICY_VIOLATION, "too many control frames")
            self.handle_parser_exception()

    def _read(self) -> None:
        """Read what has arrived, a frame at a time, and receive no more while somebody has to be waited for."""
        for _ in range(SLICE):
            if self.transport.is_closing():
                self._incoming.clear()
                return
            if not self._may_read():
                break
            piece = self._incoming.take()
            if not piece:
                self.transport.resume_reading()
                return
            super().data_received(piece)
        else:
            self.loop.call_soon(self._read)
        if self._incoming:
            self.transport.pause_reading()

    def _may_read(self) -> bool:
        """Return whether the application has taken what was read, and the client what it was answered."""
        return (
            self.handshake_complete
            and not self._has_failed
            and not self.read_paused
            and (self.writable.is_set() or not self._incoming.begins_with_ping)
        )
