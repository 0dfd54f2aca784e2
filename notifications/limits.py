"""What one socket may ask of the server."""

from __future__ import annotations

import time
from typing import Final

MAX_SUBSCRIPTIONS: Final = 100
"""Topics of one socket beside its user's own."""
MAX_WAITING_FRAMES: Final = 200
"""Frames that may wait while an authorisation is under way."""
MAX_INVALID_FRAMES: Final = 10
"""Frames in a row that could not be read after which the socket is closed."""
MAX_REFUSED_FRAMES: Final = 200
"""Frames beyond the rate, before half of the burst has come back, after which the socket is closed."""
BURST: Final = 200
"""Frames that may come at once: a page that opens with 100 uploads subscribes to all of them."""
RATE: Final = 20.0
"""Frames a second in the long run."""


class TokenBucket:
    """Allows ``BURST`` frames at once and ``RATE`` a second in the long run."""

    __slots__ = ("_at", "_tokens")

    def __init__(self) -> None:
        self._tokens = float(BURST)
        self._at = time.monotonic()

    @property
    def rested(self) -> bool:
        """Whether the haste is over: half of the burst has come back."""
        return self._tokens >= BURST / 2

    def take(self) -> bool:
        """Say whether one more is allowed now, and count it if so."""
        now = time.monotonic()
        self._tokens = min(BURST, self._tokens + (now - self._at) * RATE)
        self._at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True
