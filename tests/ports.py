"""Ports for processes that have to be told one."""

import socket
from contextlib import suppress
from random import SystemRandom

_BELOW_EPHEMERAL = range(10_000, 32_000)
"""Linux gives out those from 32768 up by itself, so any connection might take one before the process listens."""
_random = SystemRandom()  # pytest-randomly seeds the other alike in all workers, which would then choose alike


def free_port(*, followed_by: int = 0, below: int = 0) -> int:
    """Return a port of this host that nobody uses at the moment, nor the next ones, nor the one so far above it."""
    while True:
        port = _random.choice(range(_BELOW_EPHEMERAL.start, _BELOW_EPHEMERAL.stop - below))
        with suppress(OSError):
            for each in (*range(port, port + followed_by + 1), port + below):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", each))
            return port
