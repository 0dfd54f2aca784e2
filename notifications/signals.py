"""
Signals sent when a message is published, for apps such as an inbox, an audit trail or a counter.

``publish_*`` send them, in the thread or task that publishes; they are not sent for what other
programs publish on Redis. Receivers may be synchronous or asynchronous, as in Django. An exception
in one is logged, and neither loses the message nor prevents the others from being called. The
caller of ``publish`` waits for all of them.

Both have the message's class as ``sender``, such as ``Notice``, or ``dict``, and these arguments:

* ``topic``: the ``Topic``.
* ``data``: the message as browsers receive it, without ``_meta``: the ``bytes`` of a JSON object.
* ``idempotency_key``: the call's, or None.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from django.dispatch import Signal

from .aio import CutShortError

logger = logging.getLogger(__name__)

message_prepared: Final = Signal()
"""
Sent when a message has been checked and serialised, before anything is sent to Redis.

With ``on_commit`` that is during the call, within the transaction, which may still be rolled back. Further arguments
are ``on_commit`` and ``using``, as the caller gave them. It is also sent for a message that Redis does not accept.
"""

message_published: Final = Signal()
"""
Sent when Redis has confirmed a message; with ``on_commit`` that is after the commit, and never after a rollback.

The further argument ``id`` is what ``publish`` returns, None where ``HISTORY_SIZE`` is 0. When a publish is repeated
under its idempotency key, the signal is sent again, with the id of the first.
"""

CUT_SHORT: Final = "something that a receiver waited for was cancelled"


def tell(signal: Signal, sender: type, **facts: Any) -> None:
    """Call the receivers of a signal, whatever they raise."""
    with _harmless():
        try:
            signal.send_robust(sender, **facts)
        except asyncio.CancelledError as error:  # nothing cancels a thread
            raise CutShortError(CUT_SHORT) from error


async def atell(signal: Signal, sender: type, **facts: Any) -> None:
    """Call the receivers of a signal, whatever they raise, without blocking the event loop."""
    task = asyncio.current_task()
    with _harmless():
        try:
            await signal.asend_robust(sender, **facts)
        except asyncio.CancelledError as error:
            if task is None or task.cancelling():
                raise
            raise CutShortError(CUT_SHORT) from error


@contextmanager
def _harmless() -> Iterator[None]:
    """Log what Django does not catch, such as asynchronous receivers in an event loop's thread."""
    try:
        yield
    except Exception:
        logger.exception("not all receivers of a signal could be called; the message is not affected")
