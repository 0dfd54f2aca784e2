"""
The load generator: many WebSocket clients in one loop on epoll, and a connection that publishes.

It must not be what is measured, so it decodes no JSON: of a message it reads the number behind ``"seq":``, which
tells lost, repeated and late ones apart, and where latency is asked for the time behind ``"at":``. Everything
else that arrives is an answer to joining or a ping. And in a fan-out, where all sockets are sent the same, it looks
only once: what the next one has read is compared with what the last one had. Results say what it used.
"""

from __future__ import annotations

import select
import socket
import time
import zlib
from collections import Counter
from collections.abc import Sequence
from typing import Final, NamedTuple

from benchmarks import accounts, events, websocket
from benchmarks.tally import Reader, Tally

IN_FLIGHT: Final = 64
"""Connections that are being made at the same time."""
REST: Final = 0.0005
"""Seconds between two looks while messages are counted. What has come meanwhile is read together; and as nobody sleeps
in ``epoll_wait``, a server's ``send`` wakes nobody, as it does not where browsers are elsewhere: ``wakeup.py``."""
READ: Final = 16384
"""Bytes that one system call takes; of 64 KiB, making the room for them would cost as much as the call."""


class Login(NamedTuple):
    """
    How a client of a contestant joins the topics of a user and an upload.

    Attributes:
        path: Of the WebSocket; ``{user}`` is replaced.
        cookie: Of the session; ``{user}`` is replaced.
        says: ``(what the server says, what the client answers)``, in this order; joined after the last.
        deflate: Whether the client offers compression, as browsers do.
        body: Of the request for a stream of events over HTTP; empty for a WebSocket.

    """

    path: str
    says: tuple[tuple[bytes, bytes | None], ...]
    deflate: bool = False
    cookie: str = accounts.COOKIE
    body: str = ""

    def request(self, host: str, user: int) -> bytes:
        """Write what opens a client's connection."""
        path, cookie = self.path.format(user=user), self.cookie.format(user=user)
        if self.body:
            return events.request(host, path, cookie, self.body)
        return websocket.request(host, path, cookie, deflate=self.deflate)


class Client(Reader):
    """One browser tab."""

    __slots__ = ("buffer", "inflate", "socket", "step", "upgraded")

    def __init__(self, connection: socket.socket) -> None:
        super().__init__()
        self.socket = connection
        self.buffer = b""
        self.upgraded = False
        self.step = 0
        self.inflate = zlib.decompressobj(-zlib.MAX_WBITS)


class Load:
    """Clients of one site, spread evenly over the ports of its web processes."""

    def __init__(self, ports: Sequence[int], login: Login) -> None:
        self.clients: list[Client] = []
        self.tally = Tally()
        """What arrived since ``begin``."""
        self.closed = 0
        self.close_codes: Counter[int] = Counter()
        self._ports, self._login = ports, login
        self._closing = False
        self._poll = select.epoll()
        self._by_fd: dict[int, Client] = {}
        self._joined = 0
        self._timed = False
        self._same = (b"", 0, 0)
        """What the last client read in one go, the number it had before, and the number it had then."""

    def connect(self, count: int, patience: float = 60) -> float:
        """Open sockets until ``count`` have joined, and return how many seconds it took."""
        began = time.monotonic()
        while self._joined < count:
            while len(self.clients) < count and len(self.clients) - self._joined < IN_FLIGHT:
                self._open(len(self.clients) + 1)
            self.turn(1)
            if self.closed or time.monotonic() - began > patience:
                raise RuntimeError(f"{self._joined} of {count} sockets joined, {self.closed} were closed")
        return time.monotonic() - began

    def _open(self, user: int) -> None:
        port = self._ports[user % len(self._ports)]
        connection = socket.create_connection(("127.0.0.1", port))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setblocking(False)
        connection.send(self._login.request(f"127.0.0.1:{port}", user))
        client = Client(connection)
        self.clients.append(client)
        self._by_fd[connection.fileno()] = client
        self._poll.register(connection.fileno(), select.EPOLLIN)

    def close(self) -> None:
        for client in self.clients:
            client.socket.close()
        self._poll.close()

    def begin(self, *, timed: bool = False) -> None:
        """Begin to count anew: the next message of every topic has the number 1."""
        self._same = (b"", 0, 0)
        self.tally, self._timed = Tally(), timed
        for client in self.clients:
            client.begin()

    def finish(self, published: int) -> Tally:
        """Count what of ``published`` messages to each client has not come."""
        self.tally.finish(self.clients, published)
        return self.tally

    def wait_until_closed(self, patience: float) -> float:
        """Wait until the server has closed every socket, and return how many seconds it took."""
        self._closing, began = True, time.monotonic()
        while self.closed < len(self.clients):
            self.turn(0.05)
            if time.monotonic() - began > patience:
                raise RuntimeError(f"{self.closed} of {len(self.clients)} sockets were closed in {patience:g} s")
        return time.monotonic() - began

    def receive(self, wanted: int, patience: float) -> bool:
        """Take what arrives until ``wanted`` messages are there, or none has come for ``patience`` seconds."""
        before, heard = -1, time.monotonic()
        while (received := self.tally.received) < wanted:
            if received != before:
                before, heard = received, time.monotonic()
            elif time.monotonic() - heard > patience:
                return False
            self.turn(0.05)
            time.sleep(REST)
        return True

    def turn(self, seconds: float) -> None:
        """Take what has arrived, or wait for something."""
        for fd, _ in self._poll.poll(seconds):
            client = self._by_fd[fd]
            try:
                data = client.socket.recv(READ)
            except BlockingIOError:
                continue
            except ConnectionError:
                data = b""
            if not data:
                self._lost_client(client, fd)
            elif not client.upgraded:
                self._upgrade(client, data)
            else:
                self._take(client, data)

    def _lost_client(self, client: Client, fd: int) -> None:
        self.closed += 1
        self._poll.unregister(fd)
        client.socket.close()

    def _upgrade(self, client: Client, data: bytes) -> None:
        head, end, rest = (client.buffer + data).partition(b"\r\n\r\n")
        client.buffer = head + end
        if end:
            if not head.startswith(b"HTTP/1.1 200" if self._login.body else b"HTTP/1.1 101"):
                raise RuntimeError(f"the server refused: {head[:200]!r}")
            client.upgraded, client.buffer = True, b""
            if rest:
                self._take(client, rest)

    def _take(self, client: Client, data: bytes) -> None:
        same, before, last = self._same
        if data == same and client.last == before and not client.buffer:
            client.last = last
            self.tally.received += last - before
            return
        before, rest, come = client.last, b"", data
        if client.buffer:
            data = client.buffer + data
        is_whole = len(come) == len(data)
        if self._login.body:
            data, rest = events.framed(data)
        is_plain = self._read(client, data)
        client.buffer += rest
        if is_plain and is_whole and not rest and not self._timed:
            self._same = (come, before, client.last)

    def _read(self, client: Client, data: bytes) -> bool:
        """Count what is complete, keep the rest, and return whether it was nothing but whole messages in order."""
        if self._login.deflate:
            data = websocket.inflated(data, client.inflate)
        at, size, tally, plain = 0, len(data), self.tally, not self._login.deflate
        while at < size:
            # The usual frame, of 126 to 65535 bytes, is read here; anything else by ``next_frame``.
            if size - at > 4 and data[at + 1] == 126:
                begin = at + 4
                end = begin + (data[at + 2] << 8) + data[at + 3]
                if end > size:
                    break
            else:
                found = websocket.next_frame(data, at)
                if found is None:
                    break
                begin, end = found
            seq_at = data.find(b'"seq":', begin, end)
            if seq_at < 0:
                self._answer(client, data[at], data[begin:end])
                at, plain = end, False
                continue
            seq = int(data[seq_at + 6 : data.index(b",", seq_at)])
            if seq == client.last + 1:
                client.last = seq
                tally.received += 1
            else:
                tally.take(client, seq)
                plain = False
            if self._timed:
                sent = data.index(b'"at":', begin) + 5
                tally.latencies.append(time.monotonic() * 1e3 - int(data[sent : data.index(b",", sent)]) / 1e6)
            at = end
        client.buffer = data[at:] if at < size else b""
        return plain and not client.buffer

    def _answer(self, client: Client, opcode: int, payload: bytes) -> None:
        if opcode == websocket.PING:
            client.socket.send(websocket.frame(payload, websocket.PONG))
        elif opcode == websocket.CLOSE:
            code = int.from_bytes(payload[:2])
            if not self._closing:
                raise RuntimeError(f"the server closed a socket with {code}, {self._joined} had joined")
            self.close_codes[code] += 1
            client.socket.send(websocket.frame(payload, websocket.CLOSE))
        elif payload == b"2":  # Engine.IO's ping
            client.socket.send(websocket.frame(b"3"))
        elif payload.startswith(b'{"action":"ping"'):
            client.socket.send(websocket.frame(payload.replace(b"ping", b"pong", 1)))
        elif client.step < len(self._login.says):
            says, reply = self._login.says[client.step]
            if says in payload:
                client.step += 1
                if reply is not None:
                    client.socket.send(websocket.frame(reply))
                if client.step == len(self._login.says):
                    self._joined += 1
