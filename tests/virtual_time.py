"""
Tests of timers that do not wait: an event loop whose clock jumps to the next timer when there is nothing else to do.

    @in_virtual_time
    async def test_an_hour():
        await asyncio.sleep(3600)  # returns at once, and the loop's clock is an hour ahead

It is for code that reads no other clock than its event loop's, and talks to nobody.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import Any


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop that never waits."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 1000.0
        self._really_select = self._selector.select
        self._selector.select = self._select

    def time(self) -> float:
        return self._now

    @property
    def timers(self) -> int:
        """How many timers are set."""
        return sum(not timer.cancelled() for timer in self._scheduled)

    def stand_still(self, seconds: float) -> None:
        """Let time go by as if the process did nothing else meanwhile."""
        self._now += seconds

    def _select(self, timeout: float | None = None) -> Any:
        found = self._really_select(0)
        if not found:
            assert timeout is not None, "everything waits, and there is no timer"
            self._now += timeout
        return found


def in_virtual_time(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test in an event loop of its own that never waits."""

    @functools.wraps(test)
    def run(*arguments: Any, **fixtures: Any) -> None:
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            runner.run(test(*arguments, **fixtures))

    return run
