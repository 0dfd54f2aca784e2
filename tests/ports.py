"""Ports for processes that have to be told one."""

import os
import socket
from contextlib import suppress
from random import SystemRandom

_BELOW_EPHEMERAL = range(10_100, 32_000)
"""
Linux gives out those from 32768 up by itself, so any connection or server might take one before the process listens, or
while it is stopped. Browsers open nothing at port 10080.
"""
_random = SystemRandom()  # pytest-randomly seeds the other alike in all workers, which would then choose alike
_given: set[int] = set()
"""A port that was given may not be bound yet, or not any more: its process is started later, or again."""
_worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))


def free_port(*, followed_by: int = 0, below: int = 0) -> int:
    """
    Return a port of this host that nobody uses at the moment, nor the next ones, nor the one so far above it.

    None of them was given to anybody else by this process, and each worker of pytest-xdist has a part of its own.
    """
    size = (len(_BELOW_EPHEMERAL) - below) // _workers
    first = _BELOW_EPHEMERAL.start + _worker * size
    while True:
        port = _random.choice(range(first, first + size - followed_by))
        wanted = {*range(port, port + followed_by + 1), port + below}
        if wanted & _given:
            continue
        with suppress(OSError):
            for each in wanted:
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", each))
            _given.update(wanted)
            return port
