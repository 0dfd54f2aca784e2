"""Logging that one bad program cannot use to fill the disk."""

from __future__ import annotations

import logging
import time
from typing import Final

from .metrics import count

LINES: Final = 100
PERIOD: Final = 10.0
"""Lines in so many seconds, of one sort."""


class LogBudget:
    """Warns, at most ``lines`` times in ``period`` seconds; says how many lines it left out."""

    def __init__(self, logger: logging.Logger, lines: int = LINES, period: float = PERIOD) -> None:
        self._logger = logger
        self._limit = lines
        self._period = period
        self._period_ends = 0.0
        self._lines = 0

    def lost(self, reason: str, amount: int = 1) -> None:
        """Count messages that will not arrive this way, and warn."""
        count("dropped", reason, amount)
        self.warning("lost %d message(s): %s", amount, reason)

    def warning(self, text: str, *arguments: object) -> None:
        now = time.monotonic()
        if now >= self._period_ends:
            if (silent := self._lines - self._limit) > 0:
                self._logger.warning("… and %d more such lines left out", silent)
            self._period_ends = now + self._period
            self._lines = 0
        self._lines += 1
        if self._lines <= self._limit:
            self._logger.warning(text, *arguments)
