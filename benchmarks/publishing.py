"""
The two ways to publish.

``Raw`` is any program with a Redis connection: here the load generator itself, which writes commands that were
prepared before. ``Published`` is a worker that calls the contestant's own function, in a process of its own.
"""

from __future__ import annotations

import json
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from typing import Final
from urllib.parse import urlsplit

import hiredis

from benchmarks.machine import cpu_seconds, pin_load

TEXT: Final = "Analysing the frames of your video, and what is said about them. " * 2
"""With this a message has about 200 bytes, as a progress message has."""
ACTION: Final = "upload_progress"


def message(seq: int) -> bytes:
    """Write the message that all contestants carry."""
    at = time.monotonic_ns()
    return b'{"action":"%s","seq":%d,"at":%d,"text":"%s"}' % (ACTION.encode(), seq, at, TEXT.encode())


class Raw:
    """``PUBLISH`` on the topics' channels, pipelined."""

    def __init__(self, redis_url: str) -> None:
        url = urlsplit(redis_url)
        self._socket = socket.create_connection((url.hostname, url.port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._replies = hiredis.Reader()

    def send(self, messages: Sequence[tuple[str, int]]) -> None:
        """Publish (topic, number) pairs and wait until Redis has taken them."""
        self.write(self.packed(messages))

    def packed(self, messages: Sequence[tuple[str, int]]) -> list[bytes]:
        """Write the commands."""
        return [hiredis.pack_command(("PUBLISH", topic, message(seq))) for topic, seq in messages]

    def write(self, commands: list[bytes]) -> None:
        """Send commands that are packed already, and wait until Redis has answered all."""
        self._socket.sendall(b"".join(commands))
        answers = 0
        while answers < len(commands):
            self._replies.feed(self._socket.recv(65536))
            while self._replies.gets() is not False:
                answers += 1

    def cpu_seconds(self) -> float:
        """CPU time beyond the load generator's own."""
        return 0

    def close(self) -> None:
        self._socket.close()


class Published:
    """A worker process that publishes what it is told on its standard input."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        pin_load(self._process.pid)
        self._wait_for(b"ready")

    def _wait_for(self, word: bytes) -> None:
        if self._process.stdout.readline().strip() != word:
            raise RuntimeError("the publisher failed")

    def send(self, messages: Sequence[tuple[str, int]]) -> None:
        """Tell it to publish (topic, number) pairs, and do not wait."""
        job = {"action": ACTION, "text": TEXT, "messages": list(messages)}
        self._process.stdin.write(json.dumps(job).encode() + b"\n")
        self._process.stdin.flush()

    def cpu_seconds(self) -> float:
        return cpu_seconds(self._process.pid)

    def close(self) -> None:
        self._process.stdin.close()
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()
