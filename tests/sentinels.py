"""Sentinels that say what a test wants, or nothing; real ones are in ``tests/redis_groups.py``."""

import socket
import socketserver
import threading
from collections import Counter
from contextlib import suppress
from typing import Self

import hiredis


class FakeSentinel:
    """
    A server that answers as a Sentinel does, on a free port.

    Attributes:
        names: Host, port and failover of the primary; None for a Sentinel that knows no service of that name.
        others: The other Sentinels that it knows.
        hangs: Whether it accepts connections and says nothing.
        password: What it wants, if anything.
        asked: How often each command came.

    """

    def __init__(self, port: int = 0, failover: int = 0, *, hangs: bool = False, password: str = "") -> None:
        """
        Prepare it; ``with`` starts it.

        Args:
            port: Of the primary that it names, on 127.0.0.1.
            failover: The number of the failover in which that became the primary.
            hangs, password: As the attributes.

        """
        self.names: tuple[str, int, int] | None = ("127.0.0.1", port, failover)
        self.others: list[tuple[str, int]] = []
        self.hangs = hangs
        self.password = password
        self.asked: Counter[str] = Counter()
        self._ended = threading.Event()
        self._links: set[socket.socket] = set()

    def __enter__(self) -> Self:
        answer = self._answer

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                answer(self.request)

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True
            request_queue_size = 128

        self._server = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if not self._ended.is_set():
            self.end()

    @property
    def host(self) -> tuple[str, int]:
        return "127.0.0.1", self._server.server_address[1]

    def end(self) -> None:
        """End it: its connections end, and new ones are refused."""
        self._ended.set()
        for link in list(self._links):
            with suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _answer(self, link: socket.socket) -> None:
        self.asked["connect"] += 1
        self._links.add(link)
        reader, known = hiredis.Reader(), not self.password
        link.settimeout(0.05)
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while not self._ended.is_set():
            try:
                data = link.recv(4096)
            except TimeoutError:
                continue
            except OSError:
                return
            if not data:
                return
            reader.feed(data)
            while (words := reader.gets()) is not False and not self.hangs:
                name, *rest = (
                    word.decode().upper() if not number else word.decode() for number, word in enumerate(words)
                )
                self.asked[rest[0] if name == "SENTINEL" else name] += 1
                known = known or (name == "AUTH" and rest[-1] == self.password)
                link.sendall(self._reply(name, rest) if known else b"-NOAUTH Authentication required.\r\n")

    def _reply(self, name: str, rest: list[str]) -> bytes:
        if name != "SENTINEL":
            return b"+OK\r\n"
        if self.names is None:
            return b"*-1\r\n" if rest[0].startswith("GET") else b"-ERR No such master with that name\r\n"
        host, port, failover = self.names
        if rest[0] == "GET-MASTER-ADDR-BY-NAME":
            return _array(host, port)
        if rest[0] == "MASTER":
            others = len(self.others)
            facts = {
                "config-epoch": failover,
                "num-other-sentinels": others,
                "quorum": 2,
                "num-slaves": 1,
                "flags": "master",
            }
            return _array(*(text for pair in facts.items() for text in pair))
        others = [_array("ip", ip, "port", number) for ip, number in self.others]
        return b"*%d\r\n%s" % (len(others), b"".join(others))


def _array(*texts: object) -> bytes:
    words = [str(text).encode() for text in texts]
    return b"*%d\r\n%s" % (len(words), b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words))


def url_of(*sentinels: FakeSentinel, service: str = "main", login: str = "", query: str = "") -> str:
    """Return the URL of a service of these Sentinels."""
    hosts = ",".join(f"{host}:{port}" for host, port in (sentinel.host for sentinel in sentinels))
    return f"redis+sentinel://{login}{hosts}/{service}{query}"
