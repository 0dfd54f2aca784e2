"""As much of the WebSocket protocol (RFC 6455) as a client needs that counts messages, and no more. Pure."""

from __future__ import annotations

from typing import Final

TEXT: Final = 0x81
CLOSE: Final = 0x88
PING: Final = 0x89
PONG: Final = 0x8A
KEY: Final = "x3JJHMbDL1EzLkh9GBhXDw=="


def request(host: str, path: str) -> bytes:
    """Write the handshake; without extensions, so nothing is compressed."""
    return (
        f"GET {path} HTTP/1.1\r\nHost: {host}\r\nOrigin: http://{host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\n\r\n"
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
