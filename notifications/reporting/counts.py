"""How far a job is, and how long it will take. Pure: the caller tells the time."""

from __future__ import annotations

import math
from typing import Final

MEMORY: Final = 30.0
"""Seconds after which work counts 1/e as much as work that is done now: long enough to ignore some slow rows, short
enough to notice within a minute that all of them are."""
FIRST_ESTIMATE: Final = 1.0
"""Seconds of work before the first estimate: what starts a job says little about its rate."""


def percent(done: float, total: float | None) -> float | None:
    """
    Return ``done`` in percent of ``total``, from 0 to 100; None without a total.

    It is rounded down to two digits, so that 100 means that all is done.
    """
    if total is None or not total > 0:
        return None
    share = min(1.0, max(0.0, done / total))
    return math.floor(share * 10_000 + 1e-6) / 100  # 29 of 100 is 28.999… in binary


class Rate:
    """
    How much is done a second: an average in which older work counts less.

    The weight of what was done t seconds ago is exp(-t / MEMORY), as in the load averages of Unix. Between two samples
    the work counts as done evenly, so how often samples are taken changes nothing. While a job is younger than
    ``MEMORY`` it is about done / time.
    """

    def __init__(self, done: float, now: float) -> None:
        """Begin with what was done before, which is not counted."""
        self._work = self._time = 0.0
        self._done, self._at, self._began = done, now, now

    def sample(self, done: float, now: float) -> None:
        """Note how much is done now. Less than before means that another count has begun."""
        if done < self._done:
            self.__init__(done, now)  # type: ignore[misc]  # it begins again
            return
        passed = now - self._at
        if passed <= 0:
            return
        fade = math.exp(-passed / MEMORY)
        fresh = MEMORY * (1 - fade)
        self._work = self._work * fade + (done - self._done) / passed * fresh
        self._time = self._time * fade + fresh
        self._done, self._at = done, now

    def seconds_for(self, left: float, now: float) -> float | None:
        """
        Return the seconds that the rest takes at this rate; None if it is too early to tell, or should be over.

        Args:
            left: How much there was left to do at the last sample.
            now: The time, at or after the last sample.

        """
        if left <= 0 or self._work <= 0 or self._at - self._began < FIRST_ESTIMATE:
            return None
        seconds = left * self._time / self._work - (now - self._at)
        return rounded(seconds) if 0 < seconds < math.inf else None


def rounded(seconds: float) -> float:
    """Return seconds as exactly as an estimate deserves."""
    return round(seconds, 1 if seconds < 10 else None)
