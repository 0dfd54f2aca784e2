"""A connection that is kept, what is subscribed to on it, and who waits until Redis has confirmed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final

from ..aio import Timeout
from ..broker.reconnect import LONGEST, keep_connected
from ..broker.wire import confirmed
from ..tasks import Supervised

WAIT: Final = 5.0
"""Seconds that a caller waits for Redis before ``TimeoutError``."""


class Feed:
    """
    The subscriptions of one connection, which is made when the first is wanted, and made again when it ends.

    Attributes:
        subscription: The connection: a ``Subscription``, or what takes part in one; None while there is none.

    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[Any]],
        wanted: Callable[[], list[bytes]],
        resync: Callable[[], None],
        lost: Callable[[str, float], Awaitable[None]],
        longest: float = LONGEST,
    ) -> None:
        """
        Prepare; nothing connects before something is wanted.

        Args:
            connect: Makes the connection.
            wanted: Lists the Redis channels to subscribe to.
            resync: Called when it is connected again: messages may have been lost.
            lost: Called when it ends, as by ``reconnect.keep_connected``.
            longest: The longest pause between two attempts to connect, in seconds.

        """
        self._connect = connect
        self._wanted = wanted
        self._resync = resync
        self._lost = lost
        self._longest = longest
        self.subscription: Any = None
        self._confirmations: dict[bytes, asyncio.Future[None] | None] = {}
        """By Redis channel; None when it has been confirmed."""
        self._connected = asyncio.Event()
        self._had_gap = False
        self._keeping = Supervised("channel layer", self._keep)

    async def confirmed(self, key: bytes, is_wanted: Callable[[], bool]) -> None:
        """
        Wait until Redis has confirmed the subscription, however often the connection breaks in the meantime.

        Also return when the subscription is no longer wanted, because then it would never be confirmed.

        Raises:
            TimeoutError: Redis has not, in ``WAIT`` seconds.

        """
        if self._confirmations.get(key, key) is None:
            return
        self._keeping.start(now=True)
        async with Timeout(WAIT):
            while is_wanted():
                subscription = self.subscription
                if subscription is None or subscription.is_closed:
                    self._connected.clear()  # the task that reconnects notices a moment later
                    await self._connected.wait()
                    continue
                if key not in self._confirmations:
                    [self._confirmations[key]] = subscription.subscribe(key)
                confirmation = self._confirmations[key]
                if confirmation is None:
                    return
                with suppress(ConnectionError):
                    await asyncio.shield(confirmation)
                    if self._confirmations.get(key) is confirmation:
                        self._confirmations[key] = None

    def leave(self, key: bytes) -> None:
        """End a subscription."""
        self._confirmations.pop(key, None)
        if self.subscription is not None:
            self.subscription.unsubscribe(key)

    async def end(self, within: float) -> None:
        """Close the connection; the next subscription makes a new one."""
        await self._keeping.end(within)
        self._had_gap = False

    async def _keep(self) -> None:
        await keep_connected(
            self._connect, self._subscribe, self._lost, ended=self._unsubscribed, longest=self._longest
        )

    async def _subscribe(self, subscription: Any) -> None:
        names = self._wanted()
        futures = subscription.subscribe(*names)
        self._confirmations = dict(zip(names, futures, strict=True))
        self.subscription = subscription
        self._connected.set()
        await confirmed(futures)
        if self._had_gap:
            self._had_gap = False
            self._resync()

    async def _unsubscribed(self, _subscription: Any) -> None:
        self._had_gap = True
        self._connected.clear()
        self.subscription = None
        self._confirmations = {}
