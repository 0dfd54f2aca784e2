"""
Error texts, and logging that a misbehaving program cannot use to fill the disk.

Every error text that goes into a log, an exception of this app or a finding of the doctor comes from ``describe``: one
line of bounded length, without the credentials of the site's URLs.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Final

from django.conf import settings as django_settings

from . import address
from .metrics import count

LINES: Final = 100
PERIOD: Final = 10.0
"""At most ``LINES`` log lines of one kind in ``PERIOD`` seconds."""


LONGEST: Final = 300
"""Maximum length of an error's text, because a server or a library may say anything."""
_MEANINGS: Final = {
    "max number of clients reached": "Redis takes no more connections (maxclients)",
}
"""The meaning of some errors of servers and libraries whose text does not tell."""


def describe(error: BaseException | str, *, named: bool = False) -> str:
    """
    Describe an error in one line of at most ``LONGEST`` characters, without credentials.

    Args:
        error: The exception, or the error text of a server.
        named: Begin with the class of the error, which says more than its text for some, such as ``KeyError``.

    """
    kind = "" if isinstance(error, str) else type(error).__name__
    text = str(error) or kind
    if isinstance(error, UnicodeEncodeError | UnicodeDecodeError):
        text = f"{error.encoding}: {error.reason}"  # without the character, which may be one of a password
    text = next((meaning for words, meaning in _MEANINGS.items() if words in text), text)
    if named and kind and text != kind:
        text = f"{kind}: {text}"
    text = " ".join(address.hide(_secrets(), text).split())
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def _secrets() -> set[str]:
    """Collect everything that may be part of credentials in the URLs of the settings, whether or not they parse."""
    own = getattr(django_settings, "NOTIFICATIONS", None)
    urls: list[Any] = [own.get("REDIS_URL")] if isinstance(own, Mapping) else []
    words = set()
    layers = getattr(django_settings, "CHANNEL_LAYERS", None)
    for layer in layers.values() if isinstance(layers, Mapping) else ():
        config = layer.get("CONFIG") if isinstance(layer, Mapping) else None
        hosts = (config.get("hosts") if isinstance(config, Mapping) else None) or []
        is_one = isinstance(hosts, str | bytes | Mapping) or not isinstance(hosts, Iterable)
        for host in [hosts] if is_one else hosts:
            if isinstance(host, Mapping):
                urls.append(host.get("address"))
                for options in (host, host.get("sentinel_kwargs")):
                    if isinstance(options, Mapping):
                        words |= {str(options[name]) for name in ("username", "password") if options.get(name)}
            else:
                urls.append(host)
    return {word for word in words if len(word) >= address.SHORTEST_SECRET}.union(*map(address.secrets, urls))


OUTAGE_PERIOD: Final = 60.0
"""Seconds between two log lines about something that does not answer."""


class Outages:
    """Limits the log of a failure that affects thousands of sockets: one line at once, then one a minute."""

    def __init__(self) -> None:
        self._next: dict[str, float] = {}
        self._times: Counter[str] = Counter()

    def due(self, what: str) -> int:
        """Count a failure; return the number since the last line if a line is due, otherwise 0."""
        now = time.monotonic()
        self._times[what] += 1
        if now < self._next.get(what, 0.0):
            return 0
        self._next[what] = now + OUTAGE_PERIOD
        return self._times.pop(what)


outages: Final = Outages()


class LogBudget:
    """Logs at most ``lines`` warnings in ``period`` seconds, and the number of lines it left out."""

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
