"""
The part of ``layers.py`` in one event loop: a connection for reading, one for writing, the channels and groups.

On Redis a group is the channel ``<prefix>/group/<name>``, a channel that any process may read is
``<prefix>/channel/<name>``, and all other channels of one event loop share ``<prefix>/<id of the loop>``. No name of
a group or channel contains a slash, so prefixes cannot collide.
"""

from __future__ import annotations

import asyncio
import logging
import re
import uuid
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import lru_cache
from typing import Any, Final

from ..aio import Timeout
from ..broker.reconnect import connect, keep_connected
from ..broker.wire import HANDSHAKE_TIMEOUT, Publisher, Subscription
from ..logs import LogBudget, describe
from ..metrics import count
from ..tasks import Supervised
from . import feed
from .feed import Feed
from .queue import Box, Item
from .serializer import decode, encode, encode_for, own, shareable

logger = logging.getLogger(__name__)

FINISH: Final = HANDSHAKE_TIMEOUT + 0.5
"""Seconds that a closing connection has to receive the replies to what it has sent."""

_ID: Final = re.compile(r"[0-9a-f]{32}").fullmatch


def group_key(prefix: str, group: str) -> str:
    """Return the Redis channel of a group."""
    return f"{prefix}/group/{group}"


def _hand_over(callback: Callable[[dict[str, Any]], None], message: dict[str, Any]) -> None:
    try:
        callback(message)
    except Exception:  # the consumer's; the layer continues
        logger.exception("a callback of on_message failed")


class LoopLayer:
    """The layer in one event loop."""

    def __init__(self, prefix: str, pool: Callable[[], Any], capacity: Callable[[str], int]) -> None:
        """
        Create the layer; nothing connects before it is used.

        Args:
            prefix: Prefix of every Redis channel.
            pool: Creates a pool of redis-py, which knows how to connect.
            capacity: Messages that may wait for a channel of this name.

        """
        self._prefix = prefix
        self._pool = pool
        self._capacity = capacity
        self._log = LogBudget(logger)
        self._boxes: dict[str, Box] = {}
        self._members: dict[bytes, dict[str, Box]] = {}
        self._id = uuid.uuid4().hex
        self._own = self._key(self._id)
        self._group: Callable[[str], bytes] = lru_cache(maxsize=10_000)(lambda name: group_key(prefix, name).encode())
        self._feed = Feed(self._new_subscription, self._wanted, lambda: self._resync(self._boxes.values()), self._lost)
        self._publisher: Publisher | None = None
        self._can_publish = asyncio.Event()
        self._publishing = Supervised("channel layer", self._keep_publishing)

    def _key(self, *parts: str) -> bytes:
        return "/".join((self._prefix, *parts)).encode()

    def knows(self, channel: str) -> bool:
        return channel in self._boxes

    def _owner(self, channel: str) -> str | None:
        """Return the id of the event loop for which ``new_channel`` created this channel, or None."""
        head, mark, _ = channel.partition("!")
        owner = head.rpartition(".")[2]
        return owner if mark and _ID(owner) else None

    async def flush(self) -> None:
        """Forget all channels and groups, and close the connections."""
        self._boxes.clear()
        self._members.clear()
        await self._feed.end(FINISH)
        await self._publishing.end(FINISH)

    # Connections.

    async def _lost(self, reason: str, delay: float) -> None:
        count("layer_gap")
        self._log.warning("the channel layer is not connected (%s); trying again in %.1f s", reason, delay)

    async def _new_subscription(self) -> Subscription:
        return await connect(Subscription(self._received), self._pool())

    def _wanted(self) -> list[bytes]:
        return [self._own, *self._members]

    def _feed_of(self, _key: bytes) -> Feed:
        """Return what is subscribed to a Redis channel."""
        return self._feed

    @staticmethod
    def _resync(boxes: Iterable[Box]) -> None:
        for box in list(boxes):
            box.resync()

    async def _keep_publishing(self) -> None:
        await keep_connected(self._new_publisher, self._publish_with, self._lost, ended=self._end_publishing)

    async def _new_publisher(self) -> Publisher:
        publisher = Publisher(lambda error: self._log.lost(f"Redis refused to publish: {describe(error)}"))
        return await connect(publisher, self._pool())

    async def _publish_with(self, publisher: Publisher) -> None:
        self._publisher = publisher
        self._can_publish.set()

    async def _end_publishing(self, publisher: Publisher) -> None:
        try:
            if (task := asyncio.current_task()) is not None and task.cancelling():
                await publisher.finish()  # closing now would lose what Redis has not read
        finally:
            self._can_publish.clear()
            self._publisher = None
            publisher.close()
            if publisher.unanswered:
                self._log.lost("the connection ended before Redis confirmed", publisher.unanswered)

    async def _confirmed(self, key: bytes) -> None:
        await self._feed_of(key).confirmed(key, lambda: key in self._members or key == self._own)

    # Receiving.

    def _received(self, key: bytes, data: bytes) -> None:
        try:
            if key == self._own:
                name, message = decode(data)
                box = self._boxes.get(name)
                if type(message) is not dict:
                    raise TypeError
                if box is not None:
                    if box.on_message is None:
                        box.put(Item(message, len(data)))
                    else:
                        _hand_over(box.on_message, message)
            elif (members := self._members.get(key)) is not None:
                message = decode(data)
                if type(message) is not dict:
                    raise TypeError
                item: Item | None = None
                for box in list(members.values()):
                    if (callback := box.on_message) is not None:
                        try:  # what ``_hand_over`` does, but for a call less for each socket
                            callback(message)
                        except Exception:
                            logger.exception("a callback of on_message failed")
                    else:
                        item = item or shareable(message, data)
                        box.put(item)
        except (ValueError, TypeError, RecursionError):
            count("refused", "layer message")
            self._log.warning("the channel layer received something that is not a channel-layer message")

    async def receive(self, channel: str) -> dict[str, Any]:
        box = self._boxes.get(channel)
        if box is None:
            box = await self._open(channel)
        while not box.items:
            waiter = box.wait()
            try:
                await waiter
            except BaseException:
                box.gave_up(waiter)
                if not box.readers and self._boxes.get(channel) is box:
                    self.forget(channel)  # the consumer has gone; the specification has no other way to tell
                raise
            box.readers -= 1
        return own(box.take())

    async def _open(self, channel: str) -> Box:
        box = self._new_box(channel)
        try:
            await self._confirmed(next(iter(box.groups), self._own))
        except BaseException:
            if not box.readers:
                self.forget(channel)
            raise
        return box

    def _new_box(self, channel: str) -> Box:
        owner = self._owner(channel)
        if owner is not None and owner != self._id:
            raise RuntimeError(f"{channel!r} is a channel of another process or event loop")
        box = self._boxes[channel] = Box(self._capacity(channel))
        if owner is None:
            key = self._key("channel", channel)
            self._members.setdefault(key, {})[channel] = box
            box.groups.append(key)
        return box

    async def new_channel(self, prefix: str) -> str:
        channel = f"{prefix}.{self._id}!{uuid.uuid4().hex}"
        await self._open(channel)
        return channel

    def on_message(self, channel: str, callback: Callable[[dict[str, Any]], None]) -> None:
        if (box := self._boxes.get(channel)) is not None:
            box.on_message = callback
            while box.items:
                _hand_over(callback, own(box.take()))

    def on_resync(self, channel: str, callback: Callable[[], None]) -> None:
        if (box := self._boxes.get(channel)) is not None:
            box.on_resync = callback

    def forget(self, channel: str) -> None:
        box = self._boxes.pop(channel, None)
        if box is not None:
            for key in box.groups:
                self._leave(key, channel)

    # Groups.

    async def group_add(self, group: str, channel: str) -> None:
        box = self._boxes.get(channel)
        if box is None:
            raise RuntimeError(f"{channel!r} is no channel of this process: add self.channel_name")
        key = self._group(group)
        members = self._members.setdefault(key, {})
        is_new = channel not in members
        members[channel] = box
        if key not in box.groups:
            box.groups.append(key)
        try:
            await self._confirmed(key)
        except BaseException:
            if is_new:
                self.group_discard(group, channel)
            raise

    def group_discard(self, group: str, channel: str) -> None:
        key = self._group(group)
        if (box := self._boxes.get(channel)) is not None:
            with suppress(ValueError):
                box.groups.remove(key)
        self._leave(key, channel)

    def _leave(self, key: bytes, channel: str) -> None:
        members = self._members.get(key)
        if members is not None and members.pop(channel, None) is not None and not members:
            del self._members[key]
            self._feed_of(key).leave(key)

    # Sending.

    async def send(self, channel: str, message: dict[str, Any]) -> None:
        owner = self._owner(channel)
        if owner is None:
            await self._publish(self._key("channel", channel), encode(message))
        else:
            await self._publish(self._key(owner), encode_for(channel, message))

    async def group_send(self, group: str, message: dict[str, Any]) -> None:
        await self._publish(self._group(group), encode(message))

    async def _publish(self, key: bytes, data: bytes) -> None:
        publisher = self._publisher
        if publisher is None or not publisher.ready:
            publisher = await self._ready_publisher()
        publisher.publish(key, data)

    async def _ready_publisher(self) -> Publisher:
        """Wait before anything is written, so that an error means that nothing was sent."""
        async with Timeout(feed.WAIT):
            while True:
                self._publishing.start(now=True)
                await self._can_publish.wait()
                publisher = self._publisher
                if publisher is None:
                    continue
                if not publisher.proven:
                    # Silent for a second: with replies pending it may just be slow, otherwise it is replaced.
                    if not await publisher.prove() and not publisher.unanswered:
                        publisher.close("it had died")
                elif publisher.ready:
                    return publisher
                else:
                    await publisher.room()
