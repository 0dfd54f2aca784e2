"""Clients that want to fill the memory of a web process, or to keep it busy, before they have said who they are."""

import base64
import os
import socket
import threading
import time
import urllib.request
import zlib
from contextlib import ExitStack, suppress

import psutil

from notifications.protocol.frames import MAX_AUTH_FRAME_SIZE
from tests.waiting import scaled, wait_for

MIB = 1 << 20
POLICY, TOO_BIG = 1008, 1009


def opened(server, *headers):
    """Open a WebSocket, and leave what else the server says unread."""
    client = socket.create_connection(("127.0.0.1", server.port), timeout=scaled())
    head = [
        "GET /ws/notifications/ HTTP/1.1",
        f"Host: {server.address}",
        *("Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13"),
        f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}",
        *headers,
    ]
    client.sendall("".join(f"{line}\r\n" for line in [*head, ""]).encode())
    answer = b""
    while not answer.endswith(b"\r\n\r\n"):
        answer += client.recv(1)
    assert answer.startswith(b"HTTP/1.1 101 ")
    return client


def compressed(size):
    """Return a text of this size, in the compressed frame of a client."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, -12)
    content = (compressor.compress(b"a" * size) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]
    length = bytes((0x80 | len(content),)) if len(content) < 126 else b"\xfe" + len(content).to_bytes(2)
    return b"\xc1" + length + bytes(4) + content


def inflating(size):
    """Return the seconds of CPU time that this machine takes for a bomb: machines differ by a factor of three."""
    decompressor, bomb = zlib.decompressobj(-12), compressed(size)
    began = time.process_time()
    assert len(decompressor.decompress(bomb[8:] + b"\x00\x00\xff\xff").decode()) == size
    return time.process_time() - began


def pressed(client, frames, seconds):
    """Send the same frames until the server has had enough, or the time is over."""
    ends = time.monotonic() + seconds
    with suppress(OSError):
        while time.monotonic() < ends:
            client.sendall(frames)


def close_code(client):
    """Read everything, and return the code of the close."""
    said = b""
    with suppress(OSError):
        while more := client.recv(65536):
            said += more
    end = said.rindex(b"\x88")
    return int.from_bytes(said[end + 2 : end + 4])


class Watch:
    """
    Measures a web process while requests are made to it.

    Attributes:
        held: The most seconds of CPU time that the process took during one request. On a machine that does other
            work the time on the clock would say how busy that is.
        peak: The most bytes that it had.

    """

    def __init__(self, server):
        self._process = psutil.Process(server.pid)
        self._url = f"http://{server.address}/notifications/live/"
        for _ in range(3):
            self._request()
        self.held = 0.0
        self.peak = self.before = self._process.memory_info().rss
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=work) for work in (self._ask, self._look)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _cpu(self):
        times = self._process.cpu_times()
        return times.user + times.system

    def _request(self):
        urllib.request.urlopen(self._url, timeout=scaled()).read()

    def _ask(self):
        while not self._stop.is_set():
            before = self._cpu()
            self._request()
            self.held = max(self.held, self._cpu() - before)

    def _look(self):
        while not self._stop.wait(0.005):
            self.peak = max(self.peak, self._process.memory_info().rss)


def test_bombs_and_floods_cost_little_and_hold_nobody(new_site):
    """
    Ten sockets that send bombs and twenty that flood cost 32 MiB at most, and no request waits long for them.

    The longest wait, in the server's CPU time, is that of inflating three bombs of 16 MiB; the bound is eight.

    Half of the bombs are too large, and the other half inflate to as much as a frame may have. Half of the floods are
    pings whose answers nobody reads.
    """
    server = new_site.start_server("uvicorn")
    deflate = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits"
    ping, pong = b"\x89\xfd" + bytes(4) + b"x" * 125, b"\x8a\x80" + bytes(4)
    attacks = [
        *[(deflate, compressed(16 * MIB - 16) * 15)] * 5,
        *[(deflate, compressed(MAX_AUTH_FRAME_SIZE) * 10_000)] * 5,
        *[("X-Flood: pings", ping * 2000)] * 10,
        *[("X-Flood: pongs", pong * 2000)] * 10,
    ]

    with ExitStack() as stack:
        clients = [stack.enter_context(opened(server, header)) for header, _ in attacks]
        watch = stack.enter_context(Watch(server))
        threads = [
            threading.Thread(target=pressed, args=(client, frames, scaled(5)))
            for client, (_, frames) in zip(clients, attacks, strict=True)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        codes = [close_code(client) for client in clients]

    assert codes[:5] == [TOO_BIG] * 5
    assert codes[10:] == [POLICY] * 20
    assert (watch.peak - watch.before) / MIB < 32
    assert watch.held < 8 * inflating(16 * MIB)
    assert "Traceback" not in server.output
    wait_for(lambda: "closed a WebSocket with 1008" in server.output, what="a line in the log")
