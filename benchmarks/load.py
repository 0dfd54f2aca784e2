"""
The load generator: many WebSocket clients in one loop on epoll, and a connection that publishes.

It must not be what is measured, so it decodes no JSON: of a message it reads the number behind ``"seq":``, which
tells lost, repeated and late ones apart, and where latency is asked for the time behind ``"at":``. Everything
else that arrives is an answer to joining or a ping.
"""

from __future__ import annotations

import select
import socket
import time
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from benchmarks import websocket

IN_FLIGHT: Final = 100
"""Connections that are being made at the same time."""
READ: Final = 65536


class Login(NamedTuple):
    """
    How a client of a contestant joins the topics of a user and an upload.

    Attributes:
        path: Of the WebSocket; ``{user}`` is replaced.
        says: ``(what the server says, what the client answers)``, in this order; joined after the last.

    """

    path: str
    says: tuple[tuple[bytes, bytes | None], ...]


class Client:
    """One browser tab."""

    __slots__ = ("buffer", "last", "missing", "socket", "step", "upgraded")

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.buffer = b""
        self.upgraded = False
        self.step = 0
        self.last = 0
        self.missing: set[int] = set()


@dataclass
class Tally:
    """What arrived since ``Load.begin``."""

    received: int = 0
    repeated: int = 0
    late: int = 0
    """Arrived after one that was published later on the same topic."""
    lost: int = 0
    latencies: list[float] = field(default_factory=list)
    """Milliseconds."""


class Load:
    """Clients of one server."""

    def __init__(self, port: int, login: Login) -> None:
        self.clients: list[Client] = []
        self.tally = Tally()
        self.closed = 0
        self._host, self._port, self._login = f"127.0.0.1:{port}", port, login
        self._poll = select.epoll()
        self._by_fd: dict[int, Client] = {}
        self._joined = 0
        self._timed = False

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
        connection = socket.create_connection(("127.0.0.1", self._port))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setblocking(False)
        connection.send(websocket.request(self._host, self._login.path.format(user=user)))
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
        self.tally, self._timed = Tally(), timed
        for client in self.clients:
            client.last = 0
            client.missing.clear()

    def finish(self, published: int) -> Tally:
        """Count what of ``published`` messages to each client has not come."""
        self.tally.lost = sum(len(client.missing) + published - client.last for client in self.clients)
        return self.tally

    def receive(self, wanted: int, patience: float) -> bool:
        """Take what arrives until ``wanted`` messages are there, or none has come for ``patience`` seconds."""
        before, heard = -1, time.monotonic()
        while (received := self.tally.received) < wanted:
            if received != before:
                before, heard = received, time.monotonic()
            elif time.monotonic() - heard > patience:
                return False
            self.turn(0.05)
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
            if not head.startswith(b"HTTP/1.1 101"):
                raise RuntimeError(f"the server refused: {head[:200]!r}")
            client.upgraded, client.buffer = True, b""
            if rest:
                self._take(client, rest)

    def _take(self, client: Client, data: bytes) -> None:
        if client.buffer:
            data = client.buffer + data
        at, size, tally = 0, len(data), self.tally
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
                at = end
                continue
            seq = int(data[seq_at + 6 : data.index(b",", seq_at)])
            tally.received += 1
            if seq == client.last + 1:
                client.last = seq
            else:
                self._out_of_line(client, seq)
            if self._timed:
                sent = data.index(b'"at":', begin) + 5
                tally.latencies.append(time.monotonic() * 1e3 - int(data[sent : data.index(b",", sent)]) / 1e6)
            at = end
        client.buffer = data[at:] if at < size else b""

    def _out_of_line(self, client: Client, seq: int) -> None:
        if seq > client.last:
            client.missing.update(range(client.last + 1, seq))
            client.last = seq
        elif seq in client.missing:
            client.missing.discard(seq)
            self.tally.late += 1
        else:
            self.tally.repeated += 1
            self.tally.received -= 1

    def _answer(self, client: Client, opcode: int, payload: bytes) -> None:
        if opcode == websocket.PING:
            client.socket.send(websocket.frame(payload, websocket.PONG))
        elif opcode == websocket.CLOSE:
            raise RuntimeError(
                f"the server closed a socket with {int.from_bytes(payload[:2])}, {self._joined} had joined"
            )
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
