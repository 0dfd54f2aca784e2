"""
What of a server's system call is the waking of whoever reads.

A client on the same machine that sleeps in ``epoll_wait`` is woken inside the server's ``send``, and the server pays;
the clients of a site are on other machines, where the network card takes over. The faster a benchmark's client is,
the more often it sleeps. So this measures one write of a message to a reader that is woken by each, and to one that
never sleeps.
"""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from statistics import median
from typing import Any, Final

from benchmarks.machine import pin_load, pin_measured, unpin
from benchmarks.publishing import message
from benchmarks.websocket import frame

WAITS: Final = {"asleep": -1, "awake": 0}
"""Readers, and how they wait: until they are woken, or not at all."""
WRITES: Final = 3000
PAUSE: Final = 60_000
"""Nanoseconds after a write in which its reader can take it, and go to sleep."""


def run() -> Iterator[tuple[str, dict[str, Any]]]:
    """Measure one write to each reader, in µs, on the core of the servers; the readers are on that of the load."""
    pin_measured(os.getpid())
    try:
        yield "a write", {f"reader {reader}: µs": _write(reader) for reader in WAITS}
    finally:
        unpin(os.getpid())


def _write(reader: str) -> float:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        command = [sys.executable, "-m", "benchmarks.wakeup", str(listener.getsockname()[1]), reader]
        with subprocess.Popen(command) as process:
            pin_load(process.pid)
            try:
                listener.settimeout(10)
                connection, _ = listener.accept()
                with connection:
                    return _timed(connection)
            finally:
                process.kill()


def _timed(connection: socket.socket) -> float:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.settimeout(10)
    data, clock, took = frame(message(1)), time.perf_counter_ns, []
    for _ in range(WRITES):
        began = clock()
        connection.send(data)
        ended = clock()
        took.append(ended - began)
        while clock() - ended < PAUSE:
            pass
    return median(took) / 1000


def _read(port: int, reader: str) -> None:
    with socket.create_connection(("127.0.0.1", port)) as connection, select.epoll() as poll:
        poll.register(connection.fileno(), select.EPOLLIN)
        while True:
            if poll.poll(WAITS[reader]) and not connection.recv(65536):
                return


if __name__ == "__main__":
    _read(int(sys.argv[1]), sys.argv[2])
