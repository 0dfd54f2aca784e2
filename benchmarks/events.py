"""As much of HTTP/1.1 and of event streams as a client needs that counts messages, and no more. Pure."""

from __future__ import annotations

from benchmarks import websocket

DATA: bytes = b"data: "


def request(host: str, path: str, cookie: str, body: str) -> bytes:
    """Write the request for a stream."""
    return (
        f"POST {path} HTTP/1.1\r\nHost: {host}\r\nOrigin: http://{host}\r\nCookie: {cookie}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    ).encode()


def framed(data: bytes) -> tuple[bytes, bytes]:
    """
    Write the events of a chunked body as frames of a WebSocket.

    Args:
        data: Chunks, each of whole events.

    Returns:
        The frames, and the chunk that is not complete. An empty chunk, the end of the response, is a close frame.

    """
    frames, at = [], 0
    while (end := data.find(b"\r\n", at)) >= 0:
        begin = end + 2
        after = begin + (size := int(data[at:end], 16))
        if len(data) < after + 2:
            break
        if not size:
            frames.append(_frame(websocket.CLOSE, b"\0\0"))
        lines = data[begin:after].split(b"\n")
        frames += [_frame(websocket.TEXT, line[len(DATA) :]) for line in lines if line.startswith(DATA)]
        at = after + 2
    return b"".join(frames), data[at:]


def _frame(opcode: int, payload: bytes) -> bytes:
    size = len(payload)
    return bytes([opcode]) + (bytes([size]) if size < 126 else b"\x7e" + size.to_bytes(2)) + payload
