"""
Waiting for events, with one unit of time for the whole suite.

A slow machine (a loaded CI runner, an emulator) sets ``TIMEOUT_SCALE=3`` and every time-out of every test is
three times as long. A time-out is never how a test passes: it is how a test that fails ends.
"""

import asyncio
import os
import time
from collections.abc import Callable
from typing import Any

TIMEOUT_SCALE = float(os.environ.get("TIMEOUT_SCALE", "1"))
PATIENCE = 10.0
"""Seconds, before scaling, that an event may take which normally takes milliseconds."""
POLL_INTERVAL = 0.01


def scaled(seconds: float = PATIENCE) -> float:
    """Return a time-out in seconds of this machine."""
    return seconds * TIMEOUT_SCALE


def wait_for(condition: Callable[[], Any], seconds: float = PATIENCE, what: str = "") -> Any:
    """
    Wait until ``condition()`` is true and return what it returned.

    Raises:
        AssertionError: If it is not within ``seconds``.

    """
    deadline = time.monotonic() + scaled(seconds)
    while not (result := condition()):
        assert time.monotonic() < deadline, f"not within {scaled(seconds):g} s: {what or condition}"
        time.sleep(POLL_INTERVAL)
    return result


async def await_for(condition: Callable[[], Any], seconds: float = PATIENCE, what: str = "") -> Any:
    """Wait, without blocking the event loop, until ``condition()`` is true; see ``wait_for``."""
    deadline = time.monotonic() + scaled(seconds)
    while not (result := condition()):
        assert time.monotonic() < deadline, f"not within {scaled(seconds):g} s: {what or condition}"
        await asyncio.sleep(POLL_INTERVAL)
    return result
