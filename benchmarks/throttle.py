"""
Gives processes a part of a core each, in turn: what several cores would do, on one, slower.

    python -m benchmarks.throttle SHARE PID…

With a share of 0.25 four processes take turns on a core, a quarter of the time each, and one alone has that quarter,
too. So the rate of one, two and four can be compared where there are no four cores.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Final

from benchmarks.machine import pin_load

PERIOD: Final = 0.02
"""Seconds in which each has its turn: far below every time-out of those that wait for it."""


@contextmanager
def throttled(pids: Sequence[int], share: float) -> Iterator[None]:
    """Give each of these processes this share of the time."""
    command = [sys.executable, "-m", "benchmarks.throttle", str(share), *map(str, pids)]
    throttle = subprocess.Popen(command)
    pin_load(throttle.pid)
    try:
        yield
    finally:
        throttle.kill()
        throttle.wait()
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def main() -> None:
    share, pids = float(sys.argv[1]), list(map(int, sys.argv[2:]))
    turn, rest = share * PERIOD, max(0.0, 1 - share * len(pids)) * PERIOD
    parent = os.getppid()
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    until = time.monotonic()
    while os.getppid() == parent:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
            until = _sleep_until(until + turn)
            os.kill(pid, signal.SIGSTOP)
        until = _sleep_until(until + rest)
    for pid in pids:  # whoever wanted it has gone
        os.kill(pid, signal.SIGCONT)


def _sleep_until(at: float) -> float:
    """Sleep, and return when that was meant to end, or now if it is long ago."""
    now = time.monotonic()
    if at > now:
        time.sleep(at - now)
        return at
    return at if now - at < PERIOD else now


if __name__ == "__main__":
    main()
