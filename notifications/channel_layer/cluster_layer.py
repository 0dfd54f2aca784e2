"""
The layer in one event loop on a cluster: ``loop_layer.py``, but for the connections.

Groups have channels of sharded pub/sub, ``<prefix>/{notifications:<shard>}/group/<name>``, which are at the node that
has the keys of the shard: scripts reach them, and no other node has anything to do with them. There is a connection to
each node on which there is a shard with a group. All other channels, and those of groups where the servers have no
sharded pub/sub, are classic ones, which every node passes on to all others.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from itertools import chain
from typing import Any, Final

from ..broker.clients import FAILURES
from ..broker.connecting import CONNECT_TIMEOUT, GroupChannel, agreet_server
from ..broker.lines import Lines, is_refusal, may_be_executed
from ..broker.nodes import Nodes, async_options_of
from ..broker.pipeline import Line
from ..broker.sharded import ShardSubscription, Share
from ..broker.slots import Node, slot_of
from ..broker.wire import make_pool
from ..logs import describe
from ..tasks import ended, new_task
from ..topics import shard_of
from . import feed
from .feed import Feed
from .loop_layer import FINISH, LoopLayer, group_key
from .serializer import encode

RETRY: Final = 1.0
"""The longest pause in seconds before a shard looks again where it is: when a replica is promoted, it moves."""


def cluster_group_key(prefix: str, group: str) -> GroupChannel:
    """Return the Redis channel of a group on a cluster."""
    return GroupChannel(f"{_shard_key(prefix, shard_of(group))}/group/{group}", group_key(prefix, group))


def _shard_key(prefix: str, shard: int) -> str:
    return f"{prefix}/{{notifications:{shard}}}"


class ClusterLayer(LoopLayer):
    """The layer in one event loop."""

    def __init__(self, prefix: str, nodes: Nodes, options: dict[str, Any], capacity: Callable[[str], int]) -> None:
        """
        Create the layer; nothing connects before it is used.

        Args:
            prefix: Prefix of every Redis channel.
            nodes: The cluster.
            options: More options of redis-py's connections.
            capacity: Messages that may wait for a channel of this name.

        """
        super().__init__(prefix, lambda: self._pool_of(async_options_of(nodes)), capacity)
        self._nodes = nodes
        self._options = options
        self._lines = Lines(nodes, lambda where: Line(self._pool_of(where, redis_connect_func=agreet_server)))
        self._group = lru_cache(maxsize=10_000)(self._key_of_group)
        self._sharded = f"{prefix}/{{notifications:".encode()
        self._feeds: dict[int, Feed] = {}
        """By slot."""
        self._connections: dict[Node, ShardSubscription] = {}
        self._connecting: dict[Node, asyncio.Task[ShardSubscription]] = {}
        self._knows = False

    def _pool_of(self, where: dict[str, Any], **options: Any) -> Any:
        return make_pool(self._options | options | where)

    def _key_of_group(self, group: str) -> bytes:
        channel = cluster_group_key(self._prefix, group)
        return (channel if self._nodes.is_sharded else channel.classic).encode()

    async def _know(self) -> None:
        """Learn what the cluster is, once, because the names of channels depend on it."""
        if not self._knows:
            with suppress(*FAILURES):
                await self._nodes.afind(0, CONNECT_TIMEOUT)
            if not self._nodes.slots.ranges:
                raise TimeoutError("no node of the cluster answers")
            self._knows = True

    async def flush(self) -> None:
        await super().flush()
        feeds, self._feeds = self._feeds, {}
        await asyncio.gather(*(each.end(FINISH) for each in feeds.values()))
        for task in list(self._connecting.values()):
            await ended(task)
        for connection in self._connections.values():
            connection.close()
        self._connections.clear()
        await self._lines.close()

    # Connections.

    def _wanted(self) -> list[bytes]:
        return [self._own, *(key for key in self._members if not key.startswith(self._sharded))]

    def _feed_of(self, key: bytes) -> Feed:
        if not key.startswith(self._sharded):
            return self._feed
        slot = slot_of(key)
        if (found := self._feeds.get(slot)) is None:
            shard = key[: key.index(b"}") + 1] + b"/"

            def wanted() -> list[bytes]:
                return [each for each in self._members if each.startswith(shard)]

            def resync() -> None:
                boxes = chain.from_iterable(self._members[each].values() for each in wanted())
                self._resync({id(box): box for box in boxes}.values())

            found = self._feeds[slot] = Feed(lambda: self._shared(slot), wanted, resync, self._lost, RETRY)
        return found

    async def _shared(self, slot: int) -> Share:
        """Take part in the connection to the node that has a slot."""
        if (known := self._nodes.primary_of(slot)) is None or self._nodes.is_doubted(known):
            with suppress(*FAILURES):
                await self._nodes.alearn(time.monotonic(), CONNECT_TIMEOUT)
        return Share(await self._connection(await self._nodes.afind(slot, CONNECT_TIMEOUT)), slot)

    async def _connection(self, node: Node) -> ShardSubscription:
        """Return the connection to a node; all shards that need a new one wait for the same."""
        if (connection := self._connections.get(node)) is not None and not connection.is_closed:
            return connection
        if (task := self._connecting.get(node)) is None:
            task = self._connecting[node] = new_task(self._connect(node), name="notifications: channel layer")
            task.add_done_callback(lambda _: self._connecting.pop(node, None))
        return await asyncio.shield(task)

    async def _connect(self, node: Node) -> ShardSubscription:
        connection = ShardSubscription(self._nodes, node, self._received)
        try:
            await connection.connect(self._pool_of(async_options_of(self._nodes, node)))
        except BaseException:
            connection.close()
            raise
        self._connections[node] = connection
        return connection

    # Groups and sending.

    async def group_add(self, group: str, channel: str) -> None:
        await self._know()
        await super().group_add(group, channel)

    async def group_send(self, group: str, message: dict[str, Any]) -> None:
        data = encode(message)
        await self._know()
        await self._publish(self._group(group), data)

    async def _publish(self, key: bytes, data: bytes) -> None:
        try:
            await self._lines.publish(key, data, feed.WAIT, is_sharded=key.startswith(self._sharded))
        except FAILURES as error:
            if is_refusal(error):
                self._log.lost(f"Redis refused to publish: {describe(error)}")
            elif may_be_executed(error):
                self._log.lost("the connection ended before Redis confirmed")
            else:
                raise TimeoutError("Redis is not reachable") from error
