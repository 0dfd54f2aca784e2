"""The queue of one channel of a channel layer, in this process."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, NamedTuple

from ..metrics import count

logger = logging.getLogger(__name__)

MAX_BYTES: Final = 16 * 1024 * 1024
"""Bytes that may wait for one channel, as received from Redis: a thousand of the largest messages would be 1 GB."""


class Item(NamedTuple):
    """One message. All queues of a group hold the same object, so it is never given to a consumer as it is."""

    content: dict[str, Any] | bytes
    """Decoded, or still encoded if it contains something mutable."""
    size: int


class Box:
    """
    A bounded queue. When it is full the newest message is dropped, so that the missing ones come after the queued ones.

    Attributes:
        groups: The Redis channels that feed it.
        readers: How many callers wait in ``receive``. When the last one has left, nobody owns the queue.
        items: The queued messages, oldest first.
        gap: Whether something was dropped that the consumer has not been told about.

    """

    __slots__ = ("_bytes", "_capacity", "_waiters", "gap", "groups", "items", "on_message", "on_resync", "readers")

    def __init__(self, capacity: int) -> None:
        self.groups: list[bytes] = []  # a hundred at most, and mostly two
        self.readers = 0
        self.on_resync: Callable[[], None] | None = None
        self.on_message: Callable[[dict[str, Any]], None] | None = None
        self.gap = False
        self._capacity = capacity
        self._bytes = 0
        # Created when needed: an empty deque takes 760 bytes, and there is a queue for each socket.
        self.items: deque[Item] | tuple[()] = ()
        self._waiters: list[asyncio.Future[None]] = []

    def put(self, item: Item) -> None:
        if len(self.items) >= self._capacity or self._bytes >= MAX_BYTES:
            self.gap = True
            count("dropped", "channel full")
            return
        if not isinstance(self.items, deque):
            self.items = deque()
        self.items.append(item)
        self._bytes += item.size
        if self._waiters:
            self._wake()

    def wait(self) -> asyncio.Future[None]:
        """Return a future that is done when there may be something to take."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        self.readers += 1
        return waiter

    def gave_up(self, waiter: asyncio.Future[None]) -> None:
        """Remove a reader that has stopped waiting, and wake another one if it may have been woken for a message."""
        self.readers -= 1
        with suppress(ValueError):
            self._waiters.remove(waiter)
        if self.items:
            self._wake()

    def take(self) -> dict[str, Any] | bytes:
        """Return the oldest message. Calls ``on_resync`` when a queue that was full has been emptied."""
        assert isinstance(self.items, deque)  # noqa: S101  there is a message
        content, size = self.items.popleft()
        self._bytes -= size
        if self.gap and not self.items:
            self.resync()
        return content

    def _wake(self) -> None:
        while self._waiters:
            waiter = self._waiters.pop(0)
            if not waiter.done():
                waiter.set_result(None)
                return

    def resync(self) -> None:
        """Tell the consumer that it may have missed something."""
        self.gap = False
        if self.on_resync is not None:
            try:
                self.on_resync()
            except Exception:  # the consumer's; the layer continues
                logger.exception("a callback of on_resync failed")
