"""
A channel layer on Redis pub/sub, for any Channels project.

    CHANNEL_LAYERS = {"default": {
        "BACKEND": "notifications.layers.RedisPubSubLayer",
        "CONFIG": {"hosts": ["redis://127.0.0.1:6379/0"]},
    }}

Each event loop has one connection that reads and one that writes. What arrives is parsed in bulk and decoded
once for all consumers of the process; what is sent in one turn of the loop leaves in one packet. Every wait
and every queue is bounded, both connections notice when they are dead, and consumers can be told of gaps.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, Final
from weakref import WeakKeyDictionary

from channels.layers import BaseChannelLayer
from channels_redis.utils import create_pool, decode_hosts
from django.core.exceptions import ImproperlyConfigured

from .loop_layer import LoopLayer, encode
from .wire import POOL_OPTIONS

CAPACITY: Final = 1000
"""Messages that may wait for one consumer: what one read from the socket brings of small messages."""


class RedisPubSubLayer(BaseChannelLayer):  # type: ignore[misc]  # Channels has no types
    """
    Channels' contract for a layer, with the ``groups`` and ``flush`` extensions, on Redis pub/sub.

    Messages are delivered at most once: Redis keeps nothing. Where other layers say nothing of what they lose,
    ``on_resync`` does.

    ``group_add`` returns when Redis has confirmed. A channel holds ``capacity`` messages; beyond that the newest
    are dropped and counted. A channel without ``!`` in its name is received by all who wait for it, as in
    ``channels_redis.pubsub``. A channel is forgotten when its ``receive`` is cancelled.
    """

    extensions = ("groups", "flush")

    def __init__(
        self,
        hosts: list[Any] | None = None,
        prefix: str = "asgi",
        capacity: int = CAPACITY,
        channel_capacity: dict[str, int] | None = None,
        expiry: int = 60,
    ) -> None:
        """
        Configure the layer; nothing connects before it is used.

        Args:
            hosts: One entry, as for channels_redis: a URL, a ``(host, port)`` pair, or a dict with ``address`` or
                with ``sentinels`` and ``master_name``, and redis-py's connection options.
            prefix: Put before every Redis channel; sites on one Redis server need different ones.
            capacity: Messages that may wait for one channel.
            channel_capacity: Other capacities, by glob pattern of channel names.
            expiry: Taken for compatibility; pub/sub keeps nothing that could expire.

        Raises:
            ImproperlyConfigured: For several hosts: one Redis server carries more than a listener can bring.

        """
        super().__init__(expiry=expiry, capacity=capacity)
        self.channel_capacity = self.compile_capacities(channel_capacity or {})
        self.prefix = prefix
        decoded = decode_hosts(hosts)
        if len(decoded) != 1:
            raise ImproperlyConfigured("notifications.layers takes one host in CHANNEL_LAYERS, not several")
        self._host = {**POOL_OPTIONS, **decoded[0]}
        self._loops: WeakKeyDictionary[asyncio.AbstractEventLoop, LoopLayer] = WeakKeyDictionary()

    def _here(self) -> LoopLayer:
        loop = asyncio.get_running_loop()
        here = self._loops.get(loop)
        if here is None:
            here = self._loops[loop] = LoopLayer(self.prefix, partial(create_pool, self._host), self.get_capacity)
        return here

    async def send(self, channel: str, message: dict[str, Any]) -> None:
        """Send to one channel; raises ``ConnectionError`` or ``TimeoutError`` without Redis."""
        self.require_valid_channel_name(channel)
        here = self._here()
        if "!" in channel:
            owner = channel.partition("!")[0].rpartition(".")[2]
            await here.publish(f"{self.prefix}.{owner}!".encode(), encode([channel, encode(message)]))
        else:
            await here.publish(here.key("channel", channel), encode(message))

    async def receive(self, channel: str) -> dict[str, Any]:
        """Wait for the next message of a channel."""
        return await self._here().receive(channel)

    async def new_channel(self, prefix: str = "specific") -> str:
        """Name a new channel of this process."""
        return await self._here().new_channel(prefix)

    def on_resync(self, channel: str, callback: Callable[[], None]) -> None:
        """
        Have a callback called whenever messages to this channel may have been lost.

        That is after the connection was replaced, and after the channel was full. Of messages that Redis itself
        lost, such as in a failover, nobody knows.
        """
        self._here().on_resync(channel, callback)

    async def group_add(self, group: str, channel: str) -> None:
        """Add a channel of this process to a group, and return when Redis has confirmed."""
        self.require_valid_group_name(group)
        self.require_valid_channel_name(channel)
        here = self._here()
        await here.group_add(here.key("group", group), channel)

    async def group_discard(self, group: str, channel: str) -> None:
        """Remove a channel from a group; no error if it is not in it."""
        self.require_valid_group_name(group)
        self.require_valid_channel_name(channel)
        here = self._here()
        here.group_discard(here.key("group", group), channel)

    async def group_send(self, group: str, message: dict[str, Any]) -> None:
        """Send to all channels of a group, in any process."""
        self.require_valid_group_name(group)
        here = self._here()
        await here.publish(here.key("group", group), encode(message))

    async def flush(self) -> None:
        """Forget all channels and groups of this event loop and close its connections."""
        loop = asyncio.get_running_loop()
        here = self._loops.pop(loop, None)
        if here is not None:
            await here.stop()
