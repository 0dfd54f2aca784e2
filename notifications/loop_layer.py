"""
The work of ``layers.py`` in one event loop: a connection that reads, one that writes, the channels and groups.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections import deque
from collections.abc import AsyncGenerator, Callable
from typing import Any, Final

import msgspec

from .connections import FAILURES
from .metrics import count
from .wire import Subscription, Wire, backoff, confirmed

logger = logging.getLogger(__name__)

WAIT: Final = 5.0
"""Seconds that a caller waits for Redis before ``ConnectionError`` or ``TimeoutError``."""

encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder().decode
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

    def __init__(self, prefix: str, pool: Callable[[], Any], capacity: Callable[[str], int]) -> None:
        """
        Prepare; nothing connects before it is used.

        Args:
            prefix: Of every Redis channel.
            pool: Makes a pool of redis-py, for its way to connect.
            capacity: Messages that may wait for a channel of this name.

        """
        self._prefix = prefix
        self._pool = pool
        self._capacity = capacity
        self._boxes: dict[str, Box] = {}
        self._members: dict[bytes, dict[str, Box]] = {}
        self._confirmations: dict[bytes, asyncio.Future[None]] = {}
        self._id = uuid.uuid4().hex
        self._own = f"{prefix}.{self._id}!".encode()
        self._subscription: Subscription | None = None
        self._publisher: Publisher | None = None
        self._connected = asyncio.Event()
        self._can_publish = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._life: AsyncGenerator[None] | None = None

    def key(self, sort: str, name: str) -> bytes:
        """Name the Redis channel of a group or of a channel."""
        return f"{self._prefix}.{sort}.{name}".encode()

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
            await subscription.connect(self._pool())
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
            await publisher.connect(self._pool())
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
                name, own_message = decode(data)
                if (box := self._boxes.get(name)) is not None:
                    box.put(own_message)
            elif (members := self._members.get(key)) is not None:
                message = decode(data)
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
        if isinstance(item, bytes):
            message: dict[str, Any] = decode(item)
            return message
        return item.copy()  # a consumer may change what it gets

    async def _new_box(self, channel: str) -> Box:
        await self._start()
        box = self._boxes[channel] = Box(self._capacity(channel))
        if "!" not in channel:
            key = self.key("channel", channel)
            self._members.setdefault(key, {})[channel] = box
            box.groups.add(key)
            await self._confirmed(key)
        return box

    async def new_channel(self, prefix: str) -> str:
        await self._start()
        channel = f"{prefix}.{self._id}!{uuid.uuid4().hex}"
        self._boxes[channel] = Box(self._capacity(channel))
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
