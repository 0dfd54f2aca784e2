"""
Sending to Redis for the site's code: at once or on commit, and with failures raised or logged.

Publishing and ending access share this; each defines its own calls.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from functools import partial
from typing import Any, Final, Protocol, TypeVar

from asgiref.sync import sync_to_async
from django.db import transaction

from .broker.clients import FAILURES
from .exceptions import PublishError
from .logs import LogBudget, describe
from .metrics import count

logger = logging.getLogger(__name__)

T_co = TypeVar("T_co", covariant=True)

_logs: Final[defaultdict[tuple[str, type], LogBudget]] = defaultdict(partial(LogBudget, logger, lines=10, period=60.0))
"""By the kind of topic and the class of the error: what fails all the time hides nothing else."""


class Call(Protocol[T_co]):
    """A call to Redis, ready to be made whatever happens to the objects it was made from."""

    def failure(self, reason: str) -> PublishError:
        """Return the error that says what Redis did not confirm."""

    def send(self) -> T_co:
        """Make the call; raises ``clients.FAILURES``."""

    async def asend(self) -> T_co:
        """Make the call without blocking the event loop; raises ``clients.FAILURES``."""


def send(call: Call[T_co], *, on_commit: bool, using: str | None, fail_silently: bool) -> T_co | None:
    """
    Make a call now, or when the transaction commits.

    Args:
        call: What to send.
        on_commit: Wait for the commit, and do nothing after a rollback. Outside a transaction the
            call is made at once.
        using: With ``on_commit``: the alias of the database. The default one if None.
        fail_silently: Log and count a ``PublishError`` instead of raising it.

    Returns:
        What the call returns. None with ``on_commit``, and after a silenced failure.

    Raises:
        PublishError: Redis did not confirm; with ``on_commit`` it is raised at the end of the transaction.

    """
    if on_commit:
        transaction.on_commit(partial(_send, call, fail_silently), using=using)
        return None
    return _send(call, fail_silently)


async def asend(call: Call[T_co], *, on_commit: bool, using: str | None, fail_silently: bool) -> T_co | None:
    """Make a call without blocking the event loop; see ``send``."""
    if on_commit:
        await sync_to_async(transaction.on_commit)(partial(_send, call, fail_silently), using=using)
        return None
    try:
        return await call.asend()
    except FAILURES as error:
        _failed(call, error, fail_silently)
        return None


def _send(call: Call[T_co], fail_silently: bool) -> T_co | None:
    try:
        return call.send()
    except FAILURES as error:
        _failed(call, error, fail_silently)
        return None


def _failed(call: Call[Any], error: Exception, fail_silently: bool) -> None:
    failure = call.failure(describe(error))
    failure.__cause__ = error
    count("publish_failed", type(error).__name__, len(failure.missing))
    if not fail_silently:
        raise failure
    log(failure)


def log(failure: PublishError) -> None:
    """Log a failure that is not raised: of each kind of topic and class of error ten a minute at most."""
    kind, _, _ = failure.topic.partition(":")
    _logs[kind, type(failure.__cause__)].warning("%s", failure)


def log_anew() -> None:
    """Forget what was logged in this minute, for tests that read the log."""
    _logs.clear()
