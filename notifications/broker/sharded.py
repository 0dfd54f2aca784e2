"""Sharded pub/sub of a cluster: channels that are at the node which has a key of their name."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

import redis

from .nodes import Nodes
from .slots import Node, redirection, slot_of
from .wire import Wire, answers_ping


class ShardSubscription(Wire):
    """A connection to one node that receives what is published on channels of sharded pub/sub."""

    def __init__(self, nodes: Nodes, node: Node, on_message: Callable[[bytes, bytes], None]) -> None:
        super().__init__()
        self._nodes = nodes
        self._node = node
        self._on_message = on_message
        self._unconfirmed: deque[tuple[bytes, bytes, asyncio.Future[None]]] = deque()
        self.shares: dict[int, Share] = {}
        """By slot."""

    def ask(self, name: bytes, channels: tuple[bytes, ...]) -> list[asyncio.Future[None]]:
        """Send ``SSUBSCRIBE`` or ``SUNSUBSCRIBE``, one for each channel, so that one that is refused is known."""
        futures = []
        for channel in channels:
            future: asyncio.Future[None] = self._loop.create_future()
            if self.is_closed:
                _fail(future, self._closed.result())
            else:
                self._unconfirmed.append((name.lower(), channel, future))
                self.command(name, channel)
            futures.append(future)
        return futures

    def got(self, reply: Any) -> None:
        if type(reply) is list:
            kind = reply[0]
            if kind == b"smessage":
                self._on_message(reply[1], reply[2])
            elif kind in (b"ssubscribe", b"sunsubscribe"):
                if self._unconfirmed and self._unconfirmed[0][:2] == (kind, reply[1]):
                    if not (future := self._unconfirmed.popleft()[2]).done():
                        future.set_result(None)
                else:
                    self._misplaced(reply[1], "the slot has moved to another node")
        elif isinstance(reply, Exception) and not answers_ping(reply):
            told = redirection(redis.ResponseError(str(reply)), self._node)
            if told is None or not self._unconfirmed:
                self.close(f"Redis says: {reply}")
                return
            if told.node is not None:
                self._nodes.moved(told.slot, told.node)
            _, channel, future = self._unconfirmed.popleft()
            _fail(future, str(reply))
            self._misplaced(channel, str(reply))

    def close(self, reason: str = "closed") -> None:
        super().close(reason)
        while self._unconfirmed:
            _fail(self._unconfirmed.popleft()[2], self._closed.result())
        for share in list(self.shares.values()):
            share.close(self._closed.result())

    def _misplaced(self, channel: bytes, reason: str) -> None:
        if (share := self.shares.get(slot_of(channel))) is not None:
            share.close(reason)


class Share:
    """What the groups of one shard have of the connection to their node; to a ``Feed`` it is a connection."""

    def __init__(self, connection: ShardSubscription, slot: int) -> None:
        self._connection = connection
        self._slot = slot
        self._closed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        connection.shares[slot] = self

    @property
    def is_closed(self) -> bool:
        return self._closed.done()

    async def wait_closed(self) -> str:
        return await asyncio.shield(self._closed)

    def subscribe(self, *channels: bytes) -> list[asyncio.Future[None]]:
        return self._connection.ask(b"SSUBSCRIBE", channels)

    def unsubscribe(self, *channels: bytes) -> list[asyncio.Future[None]]:
        return self._connection.ask(b"SUNSUBSCRIBE", channels)

    def close(self, reason: str = "closed") -> None:
        if not self._closed.done():
            self._closed.set_result(reason)
        if self._connection.shares.get(self._slot) is self:
            del self._connection.shares[self._slot]
            if not self._connection.shares:
                self._connection.close()


def _fail(future: asyncio.Future[None], reason: str) -> None:
    if not future.done():
        future.set_exception(ConnectionError(reason))
        future.exception()  # waiting callers get it; without any, it can be ignored
