"""
What is said of errors, and logging that one bad program cannot use to fill the disk.

Every text of an error that goes into a log, an exception of ours or a finding of the doctor is written by
``describe``: one line, bounded, and without the credentials of the site's URLs.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

from django.conf import settings as django_settings

from . import address
from .metrics import count

LINES: Final = 100
PERIOD: Final = 10.0
"""Lines in so many seconds, of one sort."""


LONGEST: Final = 300
"""Characters of an error's text: a server or a library may say anything."""
_MEANINGS: Final = {
    "max number of clients reached": "Redis takes no more connections (maxclients)",
}
"""What some words of a server or a library mean, where they do not say it."""


def describe(error: BaseException | str, *, named: bool = False) -> str:
    """
    Write an error for people: one line of at most ``LONGEST`` characters, without credentials.

    Args:
        error: What was raised, or what a server said.
        named: Begin with the class of the error. It says more than the text of some, such as ``KeyError``.

    """
    kind = "" if isinstance(error, str) else type(error).__name__
    text = str(error) or kind
    text = next((meaning for words, meaning in _MEANINGS.items() if words in text), text)
    if named and kind and text != kind:
        text = f"{kind}: {text}"
    for secret in sorted(_secrets(), key=len, reverse=True):
        text = text.replace(secret, "***")
    text = " ".join(text.split())
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def _secrets() -> set[str]:
    """Collect what may be part of credentials in the URLs of the settings, however they parse."""
    own = getattr(django_settings, "NOTIFICATIONS", None)
    urls: list[Any] = [own.get("REDIS_URL")] if isinstance(own, Mapping) else []
    words = set()
    for layer in getattr(django_settings, "CHANNEL_LAYERS", {}).values():
        hosts = (layer.get("CONFIG") or {}).get("hosts") or []
        for host in [hosts] if isinstance(hosts, str | Mapping) else hosts:
            if isinstance(host, Mapping):
                urls.append(host.get("address"))
                for options in (host, host.get("sentinel_kwargs") or {}):
                    words |= {str(options[name]) for name in ("username", "password") if options.get(name)}
            else:
                urls.append(host)
    return {word for word in words if len(word) >= address.SHORTEST_SECRET}.union(*map(address.secrets, urls))


OUTAGE_PERIOD: Final = 60.0
"""Seconds between two lines about something that does not answer."""


class Outages:
    """Says when something fails that thousands of sockets ask for: once, then once a minute, with how often."""

    def __init__(self) -> None:
        self._next: dict[str, float] = {}
        self._times: Counter[str] = Counter()

    def due(self, what: str) -> int:
        """Count a failure; returns how many there were since the last line, if a line is due, otherwise 0."""
        now = time.monotonic()
        self._times[what] += 1
        if now < self._next.get(what, 0.0):
            return 0
        self._next[what] = now + OUTAGE_PERIOD
        return self._times.pop(what)


outages: Final = Outages()


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

    def warning(self, text: str, *arguments: object, exc_info: BaseException | None = None) -> None:
        now = time.monotonic()
        if now >= self._period_ends:
            if (silent := self._lines - self._limit) > 0:
                self._logger.warning("… and %d more such lines left out", silent)
            self._period_ends = now + self._period
            self._lines = 0
        self._lines += 1
        if self._lines <= self._limit:
            self._logger.warning(text, *arguments, exc_info=exc_info)
