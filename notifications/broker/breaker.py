"""A circuit breaker for each server: what has just not answered is not asked again for a while."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import redis

from .connecting import CONNECT_TIMEOUT, FAILURES
from .slots import Node, Verdict, redirection

FAIL_FAST: Final = 3.0
"""Seconds for which a Redis server that did not answer in time is not tried again."""

_NOBODY: Final = Node("", 0)


class StaleConnectionError(redis.TimeoutError):
    """The connection had died silently; Redis answers on a new one."""


class Breaker:
    """
    A circuit breaker: spares callers the time-out of a Redis server that has just timed out for another caller.

    Connections that are refused fail at once and do not open it, so a restarted server is used again without delay. Nor
    does a server that refuses a call: it has answered, however late a busy process hears of it.
    """

    def __init__(self) -> None:
        self._open_until = 0.0

    def remaining(self) -> float:
        """Return the seconds for which nobody should try; 0 if anybody may."""
        return max(0.0, self._open_until - time.monotonic())

    def failed(self, started: float) -> None:
        """Note a failed call that began at ``started`` (``time.monotonic``)."""
        ended = time.monotonic()
        if ended - started >= CONNECT_TIMEOUT / 2:
            self._open_until = ended + FAIL_FAST

    def worked(self) -> None:
        self._open_until = 0.0

    def try_again(self) -> None:
        """Let the next caller try, who has something to say that must not be lost and can wait a second for it."""
        self._open_until = 0.0

    @contextmanager
    def guarding(self) -> Iterator[None]:
        """Refuse a call while the breaker is open, and record how one that was made ended."""
        if seconds := self.remaining():
            raise redis.TimeoutError(f"Redis did not answer just now; not asked again for {seconds:.1f} s")
        started = time.monotonic()
        try:
            yield
        except StaleConnectionError:
            raise  # the connection failed, not Redis
        except FAILURES as error:
            if not _has_answered(error):
                self.failed(started)
            raise
        self.worked()


def _has_answered(error: Exception) -> bool:
    """Return whether a server lives, and refuses no more than this call or this key: others may well be executed."""
    if not isinstance(error, redis.ResponseError):
        return False
    elsewhere = redirection(error, _NOBODY)
    return elsewhere is None or elsewhere.verdict is not Verdict.AWAY
