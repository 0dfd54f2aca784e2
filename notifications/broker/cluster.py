"""Calls to a cluster without an event loop: a pool for each node, and the way of each call; see ``routing.py``."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from .calls import Calls, Part
from .connecting import FAILURES, SOCKET_TIMEOUT
from .nodes import Nodes
from .routing import Route, Words
from .slots import Node, slot_of


class Attempt:
    """
    One time that a call is sent to a node.

    Attributes:
        asking: The node is told that it was asked for a slot that it is taking over.
        until: When the call must have been answered (``time.monotonic``).
        sent: Whether it may have been executed.

    """

    __slots__ = ("asking", "sent", "until")

    def __init__(self, *, asking: bool, until: float) -> None:
        self.asking = asking
        self.until = until
        self.sent = False


Exchange = Callable[[Any, str, Words, bool, Calls | None, Attempt], Any]
"""Sends a call to the server of a pool: ``clients``' own."""


class Cluster:
    """The nodes of a cluster, as this process calls them without an event loop."""

    def __init__(self, nodes: Nodes, exchange: Exchange, pool: Callable[[Node], Any]) -> None:
        """
        Prepare; nothing connects before the first call.

        Args:
            nodes: The cluster.
            exchange: Sends a call to the server of a pool.
            pool: Makes the pool of a node.

        """
        self._nodes = nodes
        self._exchange = exchange
        self._make_pool = pool
        self._pools: dict[Node, Any] = {}
        self._lock = threading.Lock()

    def call(self, key: str, words: Words, again: bool, calls: Calls | None = None) -> Any:
        """Send a call to the node that has its key; those of ``calls`` each to its own."""
        if calls is not None:
            self._call_together(calls)
            return None
        return self._call(slot_of(key), words, again, None)

    def tell(self, *words: Any) -> Any:
        """Run a command that every node can execute, and that may be executed twice, on one that probably lives."""
        pool = self._pool(self._nodes.any())
        return self._exchange(pool, "", lambda _server, _whole: words, True, None, self._attempt(SOCKET_TIMEOUT))

    def disconnect(self) -> None:
        for pool in self._pools.values():
            pool.disconnect()

    def _call_together(self, calls: Calls) -> None:
        for slot, part in calls.by_slot().items():
            try:
                with self._nodes.breaker(slot).guarding():
                    self._call(slot, lambda _server, _whole: (), calls.again, part)
            except FAILURES as error:
                part.fail(error)  # and go on: the others are at other nodes

    def _call(self, slot: int, words: Words, again: bool, calls: Part | None) -> Any:
        route = Route(self._nodes, slot, again=again, within=SOCKET_TIMEOUT)
        while True:
            attempt = self._attempt(route.left)
            try:
                route.learn()
                pool = self._pool(route.at())
                attempt.asking = route.asking
                if calls is not None:
                    calls.server = route.server
                return self._exchange(pool, "", route.words(words), again, calls, attempt)
            except FAILURES as error:
                pause = route.failed(error, sent=attempt.sent)
                if route.has_moved:
                    pool.disconnect(inuse_connections=False)
            time.sleep(pause)

    @staticmethod
    def _attempt(within: float) -> Attempt:
        return Attempt(asking=False, until=time.monotonic() + within)

    def _pool(self, node: Node) -> Any:
        if (pool := self._pools.get(node)) is None:
            with self._lock:
                pool = self._pools.get(node) or self._make_pool(node)
                self._pools[node] = pool
        return pool
