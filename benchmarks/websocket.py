"""As much of the WebSocket protocol (RFC 6455) as a client needs that counts messages, and no more. Pure."""

from __future__ import annotations

from typing import Any, Final

TEXT: Final = 0x81
CLOSE: Final = 0x88
PING: Final = 0x89
PONG: Final = 0x8A
COMPRESSED: Final = 0x40
DEFLATE_TAIL: Final = b"\0\0\xff\xff"
"""What a sender leaves out of each message (RFC 7692, 7.2.1)."""
KEY: Final = "x3JJHMbDL1EzLkh9GBhXDw=="


def request(host: str, path: str, cookie: str, *, deflate: bool = False) -> bytes:
    """Write the handshake; ``deflate`` offers compression in the words of Chromium and Firefox."""
    extensions = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n" if deflate else ""
    return (
        f"GET {path} HTTP/1.1\r\nHost: {host}\r\nOrigin: http://{host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\nCookie: {cookie}\r\n{extensions}\r\n"
    ).encode()


def frame(payload: bytes, opcode: int = TEXT) -> bytes:
    """Write a client's frame. It has to be masked, but nobody says that the mask cannot be zeros."""
    size = len(payload)
    length = bytes([0x80 | size]) if size < 126 else bytes([0x80 | 126]) + size.to_bytes(2)
    return bytes([opcode]) + length + b"\0\0\0\0" + payload


def next_frame(data: bytes, at: int) -> tuple[int, int] | None:
    """
    Find the frame of a server that begins at ``at``.

    Returns:
        Where its payload begins and ends; None if it has not arrived completely.

    """
    have = len(data) - at
    if have < 2:
        return None
    size, begin = data[at + 1], at + 2
    if size == 126:
        if have < 4:
            return None
        size, begin = int.from_bytes(data[at + 2 : at + 4]), at + 4
    elif size == 127:
        if have < 10:
            return None
        size, begin = int.from_bytes(data[at + 2 : at + 10]), at + 10
    end = begin + size
    return (begin, end) if end <= len(data) else None


def inflated(data: bytes, inflate: Any) -> bytes:
    """
    Write a server's compressed frames as plain ones.

    Args:
        data: Frames; an incomplete one at the end stays as it is, to be given again with its rest.
        inflate: The connection's ``zlib.decompressobj``.

    """
    at, plain = 0, []
    while (found := next_frame(data, at)) is not None:
        begin, end = found
        if data[at] & COMPRESSED:
            text = inflate.decompress(data[begin:end] + DEFLATE_TAIL)
            size = len(text)
            length = bytes([size]) if size < 126 else b"\x7e" + size.to_bytes(2)
            plain.append(bytes([TEXT]) + length + text)
        else:
            plain.append(data[at:end])
        at = end
    return b"".join(plain) + data[at:]
