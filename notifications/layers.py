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
import logging
import uuid
from collections import deque
from collections.abc import AsyncGenerator, Callable
from typing import Any, Final
from weakref import WeakKeyDictionary

import msgspec
from channels.layers import BaseChannelLayer
from channels_redis.utils import create_pool, decode_hosts
from django.core.exceptions import ImproperlyConfigured

from .connections import FAILURES
from .metrics import count
from .wire import POOL_OPTIONS, Subscription, Wire, backoff, confirmed

logger = logging.getLogger(__name__)

CAPACITY: Final = 1000
"""Messages that may wait for one consumer: what one read from the socket brings of small messages."""
WAIT: Final = 5.0
"""Seconds that a caller waits for Redis before ``ConnectionError`` or ``TimeoutError``."""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode
_SHAREABLE: Final = frozenset({str, int, float, bool, bytes, type(None)})


class Box:
    """
    What waits for one channel.

    When it is full the newest message is dropped: what a consumer has is then without holes up to the end, so
    that one reading of a history fills all that is missing.
    """

    __slots__ = ("capacity", "gap", "groups", "items", "on_resync", "waiter")

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.items: deque[dict[str, Any] | bytes] = deque()
        self.groups: set[bytes] = set()
        self.waiter: asyncio.Future[None] | None = None
        self.on_resync: Callable[[], None] | None = None
        self.gap = False

    def put(self, item: dict[str, Any] | bytes) -> None:
        if len(self.items) >= self.capacity:
            self.gap = True
            count("dropped", "channel full")
            return
        self.items.append(item)
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)

    def resync(self) -> None:
        """Tell the consumer that it may have missed something."""
        self.gap = False
        if self.on_resync is not None:
            self.on_resync()


class Publisher(Wire):
    """The connection that writes."""

    def got(self, reply: Any) -> None:
        if isinstance(reply, Exception):
            count("dropped", "Redis refused")
            logger.warning("Redis refused to publish: %s", reply)


class LoopLayer:
    """The layer in one event loop."""

    def __init__(self, layer: RedisPubSubLayer) -> None:
        self._layer = layer
        self._boxes: dict[str, Box] = {}
        self._members: dict[bytes, dict[str, Box]] = {}
        self._confirmations: dict[bytes, asyncio.Future[None]] = {}
        self._id = uuid.uuid4().hex
        self._own = f"{layer.prefix}.{self._id}!".encode()
        self._subscription: Subscription | None = None
        self._publisher: Publisher | None = None
        self._connected = asyncio.Event()
        self._can_publish = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._life: AsyncGenerator[None] | None = None

    # Connections.

    async def _start(self) -> None:
        if self._tasks:
            return
        self._tasks = [
            asyncio.create_task(self._keep(self._subscribe_once)),
            asyncio.create_task(self._keep(self._publish_once)),
        ]
        # Loops finalise their asynchronous generators before they close.
        self._life = self._until_the_loop_ends()
        await anext(self._life)

    async def _until_the_loop_ends(self) -> AsyncGenerator[None]:
        try:
            yield
        finally:
            await self.stop()

    async def stop(self) -> None:
        """Close the connections."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _keep(self, connect_once: Callable[[], Any]) -> None:
        delays = backoff()
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            try:
                reason = await connect_once()
            except FAILURES as error:
                reason = str(error) or type(error).__name__
            if loop.time() - began > WAIT:
                delays = backoff()
            delay = next(delays)
            count("layer_gap")
            logger.warning("the channel layer is not connected (%s); trying again in %.1f s", reason, delay)
            await asyncio.sleep(delay)

    async def _subscribe_once(self) -> str:
        subscription = Subscription(self._received)
        try:
            await subscription.connect(self._layer.pool())
            names = [self._own, *self._members]
            futures = subscription.subscribe(*names)
            self._confirmations = dict(zip(names, futures, strict=True))
            self._subscription = subscription
            self._connected.set()
            await confirmed(futures)
            for box in list(self._boxes.values()):
                box.resync()
            return await subscription.wait_closed()
        finally:
            self._connected.clear()
            self._subscription = None
            self._confirmations = {}
            subscription.close()

    async def _publish_once(self) -> str:
        publisher = Publisher()
        try:
            await publisher.connect(self._layer.pool())
            self._publisher = publisher
            self._can_publish.set()
            return await publisher.wait_closed()
        finally:
            self._can_publish.clear()
            self._publisher = None
            publisher.close()

    async def _confirmed(self, key: bytes) -> None:
        """Return when Redis has confirmed the subscription, however often the connection breaks meanwhile."""
        async with asyncio.timeout(WAIT):
            while True:
                await self._connected.wait()
                confirmation = self._confirmations.get(key)
                if confirmation is None:
                    assert self._subscription is not None  # noqa: S101  connected
                    [confirmation] = self._subscription.subscribe(key)
                    self._confirmations[key] = confirmation
                try:
                    return await asyncio.shield(confirmation)
                except ConnectionError:
                    await asyncio.sleep(0.01)

    def _unsubscribe(self, key: bytes) -> None:
        self._confirmations.pop(key, None)
        if self._subscription is not None:
            self._subscription.subscribe(key, command="UNSUBSCRIBE")

    # Receiving.

    def _received(self, key: bytes, data: bytes) -> None:
        try:
            if key == self._own:
                name, own_message = _decode(data)
                if (box := self._boxes.get(name)) is not None:
                    box.put(own_message)
            elif (members := self._members.get(key)) is not None:
                message: dict[str, Any] | bytes = _decode(data)
                if type(message) is not dict or not all(type(value) in _SHAREABLE for value in message.values()):
                    message = data  # something in it can be changed: each consumer decodes one of its own
                for box in members.values():
                    box.put(message)
        except (ValueError, TypeError):
            count("refused", "layer message")
            logger.warning("the channel layer received something that is no message of a channel layer")

    async def receive(self, channel: str) -> dict[str, Any]:
        box = self._boxes.get(channel)
        if box is None:
            box = await self._new_box(channel)
        while not box.items:
            box.waiter = asyncio.get_running_loop().create_future()
            try:
                await box.waiter
            except asyncio.CancelledError:
                self._forget(channel)  # the consumer is going; the specification has no other way to say so
                raise
            finally:
                box.waiter = None
        item = box.items.popleft()
        if box.gap and not box.items:
            box.resync()
        # A copy, because a consumer may change what it gets.
        return item.copy() if type(item) is dict else _decode(item)

    async def _new_box(self, channel: str) -> Box:
        await self._start()
        box = self._boxes[channel] = Box(self._layer.get_capacity(channel))
        if "!" not in channel:
            key = self._layer.key("channel", channel)
            self._members.setdefault(key, {})[channel] = box
            box.groups.add(key)
            await self._confirmed(key)
        return box

    async def new_channel(self, prefix: str) -> str:
        await self._start()
        channel = f"{prefix}.{self._id}!{uuid.uuid4().hex}"
        self._boxes[channel] = Box(self._layer.get_capacity(channel))
        return channel

    def on_resync(self, channel: str, callback: Callable[[], None]) -> None:
        if (box := self._boxes.get(channel)) is not None:
            box.on_resync = callback

    def _forget(self, channel: str) -> None:
        box = self._boxes.pop(channel, None)
        if box is not None:
            for key in box.groups:
                self._leave(key, channel)

    # Groups.

    async def group_add(self, key: bytes, channel: str) -> None:
        box = self._boxes.get(channel)
        if box is None:
            raise RuntimeError(f"{channel!r} is no channel of this process: add self.channel_name")
        self._members.setdefault(key, {})[channel] = box
        box.groups.add(key)
        await self._confirmed(key)

    def group_discard(self, key: bytes, channel: str) -> None:
        if (box := self._boxes.get(channel)) is not None:
            box.groups.discard(key)
        self._leave(key, channel)

    def _leave(self, key: bytes, channel: str) -> None:
        members = self._members.get(key)
        if members is not None and members.pop(channel, None) is not None and not members:
            del self._members[key]
            self._unsubscribe(key)

    # Sending.

    async def publish(self, key: bytes, data: bytes) -> None:
        if self._publisher is None:
            await self._start()
            async with asyncio.timeout(WAIT):
                await self._can_publish.wait()
        assert self._publisher is not None  # noqa: S101  it can publish
        self._publisher.command("PUBLISH", key, data)
        if self._publisher.paused:
            async with asyncio.timeout(WAIT):
                await self._publisher.writable()


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

    def pool(self) -> Any:
        """Make a pool of redis-py, for its way to connect."""
        return create_pool(self._host)

    def key(self, sort: str, name: str) -> bytes:
        return f"{self.prefix}.{sort}.{name}".encode()

    def _here(self) -> LoopLayer:
        loop = asyncio.get_running_loop()
        here = self._loops.get(loop)
        if here is None:
            here = self._loops[loop] = LoopLayer(self)
        return here

    async def send(self, channel: str, message: dict[str, Any]) -> None:
        """Send to one channel; raises ``ConnectionError`` or ``TimeoutError`` without Redis."""
        self.require_valid_channel_name(channel)
        if "!" in channel:
            owner = channel.partition("!")[0].rpartition(".")[2]
            await self._here().publish(f"{self.prefix}.{owner}!".encode(), _encode([channel, _encode(message)]))
        else:
            await self._here().publish(self.key("channel", channel), _encode(message))

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
        await self._here().group_add(self.key("group", group), channel)

    async def group_discard(self, group: str, channel: str) -> None:
        """Remove a channel from a group; no error if it is not in it."""
        self.require_valid_group_name(group)
        self.require_valid_channel_name(channel)
        self._here().group_discard(self.key("group", group), channel)

    async def group_send(self, group: str, message: dict[str, Any]) -> None:
        """Send to all channels of a group, in any process."""
        self.require_valid_group_name(group)
        await self._here().publish(self.key("group", group), _encode(message))

    async def flush(self) -> None:
        """Forget all channels and groups of this event loop and close its connections."""
        loop = asyncio.get_running_loop()
        here = self._loops.pop(loop, None)
        if here is not None:
            await here.stop()
