"""Calls to a cluster from an event loop: a ``pipeline.Line`` for each node, on the way of ``routing.py``."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, Protocol

import redis

from ..aio import Timeout
from .breaker import StaleConnectionError
from .calls import Calls, Part
from .connecting import FAILURES, SOCKET_TIMEOUT
from .nodes import Nodes, async_options_of
from .routing import PAUSE, Route, Words
from .slots import Node, slot_of


class Connection(Protocol):
    """What ``Lines`` needs of a ``pipeline.Line``."""

    async def exchange(
        self,
        key: str | bytes,
        words: Words,
        within: float,
        again: bool,
        calls: Calls | None = None,
        asking: bool = False,
        /,
    ) -> Any: ...

    def retire(self) -> None: ...

    async def close(self) -> None: ...


class Lines:
    """An event loop's connections for calls to the nodes of a cluster."""

    def __init__(self, nodes: Nodes, connect: Callable[[dict[str, Any]], Connection]) -> None:
        """
        Prepare; nothing connects before the first call.

        Args:
            nodes: The cluster.
            connect: Makes the connection to a node, given the options that say how to connect.

        """
        self._nodes = nodes
        self._connect = connect
        self._lines: dict[Node, Connection] = {}

    async def exchange(
        self, key: str | bytes, words: Words, within: float, again: bool, calls: Calls | None = None
    ) -> Any:
        """Send a call to the node that has its key; those of ``calls`` each to its own."""
        if calls is not None:
            await asyncio.gather(*(self._together(slot, within, part) for slot, part in calls.by_slot().items()))
            return None
        return await self._exchange(slot_of(key), words, within, again, None)

    async def publish(self, channel: bytes, data: bytes, within: float, *, is_sharded: bool) -> None:
        """Publish once, by sharded or classic pub/sub."""
        if is_sharded:
            words = ("SPUBLISH", channel, data)
            await self._exchange(slot_of(channel), lambda _server, _whole: words, within, again=False, calls=None)
        else:
            await self.anywhere("PUBLISH", channel, data, within=within)

    async def anywhere(self, *words: Any, within: float = SOCKET_TIMEOUT, again: bool = False) -> Any:
        """Run a command that every node can execute on one that probably lives."""
        until = time.monotonic() + within
        while True:
            node, left = self._nodes.any(), max(within * Timeout.LAST_PART, until - time.monotonic())
            try:
                return await self._line(node).exchange("", lambda _server, _whole: words, left, again)
            except FAILURES as error:
                self._nodes.doubt(node)
                if is_refusal(error) or (may_be_executed(error) and not again):
                    raise
                if time.monotonic() + PAUSE >= until:
                    raise
            await asyncio.sleep(PAUSE)

    async def close(self) -> None:
        lines = list(self._lines.values())
        self._lines.clear()
        for line in lines:
            await line.close()

    async def _together(self, slot: int, within: float, part: Part) -> None:
        try:
            with self._nodes.breaker(slot).guarding():
                await self._exchange(slot, lambda _server, _whole: (), within, part.again, part)
        except FAILURES as error:
            part.fail(error)

    async def _exchange(self, slot: int, words: Words, within: float, again: bool, calls: Part | None) -> Any:
        route = Route(self._nodes, slot, again=again, within=within)
        while True:
            try:
                await route.alearn()
                line = self._line(route.at())
                if calls is not None:
                    calls.server = route.server
                return await line.exchange("", route.words(words), route.left_to_read, again, calls, route.asking)
            except FAILURES as error:
                pause = route.failed(error, sent=may_be_executed(error))
                if route.has_moved:
                    line.retire()
            await asyncio.sleep(pause)

    def _line(self, node: Node) -> Connection:
        if (line := self._lines.get(node)) is None:
            line = self._lines[node] = self._connect(async_options_of(self._nodes, node))
        return line


def may_be_executed(error: Exception) -> bool:
    """Return whether a call may have been executed though it failed so; a connection that cannot be made has others."""
    return type(error) is ConnectionError or isinstance(error, TimeoutError | StaleConnectionError)


def is_refusal(error: Exception) -> bool:
    """Return whether Redis has answered a call, and did not execute it."""
    return isinstance(error, redis.ResponseError)
