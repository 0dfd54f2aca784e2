"""
Waiting for events, with one unit of time for the whole suite.

A slow machine (a loaded CI runner, an emulator) sets ``TIMEOUT_SCALE=3`` and every time-out of every test is
three times as long. A time-out is never how a test passes: it is how a test that fails ends.
"""

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

TIMEOUT_SCALE = float(os.environ.get("TIMEOUT_SCALE", "1"))
PATIENCE = 10.0
"""Seconds, before scaling, that an event may take which normally takes milliseconds."""
SHORTEST_PAUSE, LONGEST_PAUSE = 0.001, 0.01
"""Seconds between two looks at a condition. They double: what happens at once is seen at once."""


def scaled(seconds: float = PATIENCE) -> float:
    """Return a time-out in seconds of this machine."""
    return seconds * TIMEOUT_SCALE


def wait_for(condition: Callable[[], Any], seconds: float = PATIENCE, what: str = "") -> Any:
    """
    Wait until ``condition()`` is true and return what it returned.

    Raises:
        AssertionError: If it is not within ``seconds``.

    """
    pauses = _pauses(seconds, what or condition)
    while True:
        if result := condition():
            return result
        time.sleep(next(pauses))


async def await_for(condition: Callable[[], Any], seconds: float = PATIENCE, what: str = "") -> Any:
    """Wait, without blocking the event loop, until ``condition()`` is true; see ``wait_for``."""
    pauses = _pauses(seconds, what or condition)
    while True:
        if result := condition():
            return result
        await asyncio.sleep(next(pauses))


def _pauses(seconds: float, what: object) -> Iterator[float]:
    """Yield the pauses between looks at a condition, until its time is over."""
    deadline, pause = time.monotonic() + scaled(seconds), SHORTEST_PAUSE
    while True:
        assert time.monotonic() < deadline, f"not within {scaled(seconds):g} s: {what}"
        yield pause
        pause = min(2 * pause, LONGEST_PAUSE)
