"""
What this process knows of a cluster: which node has which slot, and which nodes do not answer.

Any node says where all slots are. It is asked in a thread of its own, as for host names: all callers, with and without
an event loop, wait for the same answer, each for as long as it wants to. A node that does not answer delays nobody for
long: after a moment the next one is asked as well.
"""

from __future__ import annotations

import asyncio
import os
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import suppress
from functools import cache
from typing import Any, Final
from weakref import WeakSet

import redis
from redis.backoff import NoBackoff

from ..address import Address, read
from ..aio import Timeout
from .breaker import Breaker
from .connecting import ASYNC_CLASSES, CLASSES, CONNECT_TIMEOUT, FAILURES, KEEPALIVE, SOCKET_TIMEOUT
from .slots import Node, SlotMap, Verdict, read_slots, redirection, slot_of

STAGGER: Final = 0.1
"""Seconds after which the next node is asked where the slots are, while an answer is pending."""
INTERVAL: Final = 0.1
"""Minimum seconds between two times that a process asks; during a failover every caller wants to know."""
DOUBT: Final = 10.0
"""Seconds for which a node that did not answer comes last where any other would do as well."""
SHARDED_SINCE: Final = (7, 0)
"""The first version of Redis with sharded pub/sub; Valkey calls itself a later one."""


class Nodes:
    """
    The nodes of a cluster. May be used in all threads.

    Attributes:
        where: How to connect to them.
        is_sharded: Whether they have sharded pub/sub. It is decided once: who sends and who receives must agree.

    """

    def __init__(self, where: Address) -> None:
        self.where = where
        self.is_sharded = True
        self._hosts = tuple(Node(*host) for host in where.hosts)
        self._map = SlotMap([])
        self._read = float("-inf")
        """When the map was asked for."""
        self._pending: Future[None] | None = None
        self._pending_since = 0.0
        self._doubted: dict[Node, float] = {}
        self._breakers: dict[Node, Breaker] = {}
        self._lock = threading.Lock()
        _all.add(self)

    @property
    def slots(self) -> SlotMap:
        """Where the slots are, as far as is known."""
        return self._map

    def primary_of(self, slot: int) -> Node | None:
        """Return the primary of a slot; None if it is not known."""
        return self._map.primary_of(slot)

    def any(self) -> Node:
        """Return a node that probably lives, for what every node can do."""
        primaries = list(self._map.primaries)
        random.shuffle(primaries)
        return min([*primaries, *self._map.replicas, *self._hosts], key=self._doubt)

    def all(self) -> list[Node]:
        """Return all nodes that are known, those that probably live first."""
        known = list(dict.fromkeys([*self._map.primaries, *self._map.replicas, *self._hosts]))
        random.shuffle(known)
        return sorted(known, key=self._doubt)

    def doubt(self, node: Node) -> None:
        """Note that a node does not answer, or has not answered yet."""
        self._doubted[node] = time.monotonic()

    def is_doubted(self, node: Node) -> bool:
        """Return whether a node has not answered lately."""
        return self._doubt(node) > 0

    def trust(self, node: Node) -> None:
        """Note that a node answers."""
        self._doubted.pop(node, None)

    def breaker(self, slot: int) -> Breaker:
        """Return the circuit breaker of the primary of a slot."""
        if (node := self.primary_of(slot)) is None:
            return Breaker()
        breaker = self._breakers.setdefault(node, Breaker())
        if breaker.remaining():
            self.refresh()  # nobody asks that node meanwhile, so nobody would notice that it has been replaced
        return breaker

    def forget_breakers(self) -> None:
        self._breakers.clear()

    def moved(self, slot: int, node: Node) -> None:
        """Note that, according to a node, another one has a slot; and ask what else has changed."""
        with self._lock:
            self._map = self._map.moved(slot, node)
            self._ask()

    def refresh(self) -> None:
        """Ask where the slots are, without waiting for the answer."""
        with self._lock:
            self._ask()

    def told(self, error: Exception, by: Node) -> None:
        """Take note if an error says that another node has a slot."""
        told = redirection(error, by)
        if told is not None and told.verdict is Verdict.MOVED and told.node is not None:
            self.moved(told.slot, told.node)

    def learn(self, since: float, within: float) -> None:
        """
        Make sure that what is known was asked for no earlier than ``since`` (``time.monotonic``).

        Args:
            since: Usually when the call failed that shows that something has changed.
            within: Seconds to wait at most.

        Raises:
            redis.RedisError, OSError, TimeoutError: No node says so.

        """
        until = time.monotonic() + within
        for answer in self._answers(since):
            answer.result(max(0.0, until - time.monotonic()))

    async def alearn(self, since: float, within: float) -> None:
        """Wait without blocking the event loop; see ``learn``."""
        async with Timeout(within):
            for answer in self._answers(since):
                await asyncio.wrap_future(answer)

    def find(self, slot: int, within: float) -> Node:
        """
        Return the primary of a slot, asking for it if it is not known.

        Raises:
            redis.RedisError, OSError, TimeoutError: No node answers, or the slot has no primary.

        """
        if (node := self.primary_of(slot)) is None:
            self.learn(time.monotonic(), within)
            node = self.primary_of(slot)
        return _found(node, slot)

    async def afind(self, slot: int, within: float) -> Node:
        """Find without blocking the event loop; see ``find``."""
        if (node := self.primary_of(slot)) is None:
            await self.alearn(time.monotonic(), within)
            node = self.primary_of(slot)
        return _found(node, slot)

    def _doubt(self, node: Node) -> float:
        since = self._doubted.get(node, 0.0)
        return since if time.monotonic() - since < DOUBT else 0.0

    def _answers(self, since: float) -> Iterator[Future[None]]:
        """Yield answers to wait for until one was asked for late enough."""
        while self._read < since:
            with self._lock:
                answer = self._ask()
            yield answer

    def _ask(self) -> Future[None]:
        """Begin to ask, unless somebody does already; the caller has the lock."""
        if self._pending is None:
            self._pending = Future()
            self._pending.set_running_or_notify_cancel()  # one caller giving up must not cancel it for others
            threading.Thread(target=self._ask_all, args=(self._pending,), name="cluster slots", daemon=True).start()
        return self._pending

    def _ask_all(self, answer: Future[None]) -> None:
        """Ask one node after the other, and do not wait for one that takes its time."""
        time.sleep(max(0.0, self._pending_since + INTERVAL - time.monotonic()))
        self._pending_since = begun = time.monotonic()
        asking = []
        for node in self.all():
            thread = threading.Thread(target=self._ask_one, args=(node, begun, answer), daemon=True)
            thread.start()
            asking.append(thread)
            thread.join(STAGGER)
            if answer.done():
                return
        for thread in asking:
            thread.join()
        with self._lock:
            if answer is self._pending:
                self._pending = None
                answer.set_exception(self._error)

    _error: Exception = redis.ConnectionError("no node of the cluster answers")

    def _ask_one(self, node: Node, begun: float, answer: Future[None]) -> None:
        try:
            found, version = self._slots_of(node)
        except Exception as error:  # noqa: BLE001  the waiting callers get it
            self.doubt(node)
            self._error = error
            return
        self.trust(node)
        with self._lock:
            if answer is self._pending:
                if self._read == float("-inf"):
                    self.is_sharded = version >= SHARDED_SINCE
                self._map, self._read, self._pending = found, begun, None
                answer.set_result(None)

    def _slots_of(self, node: Node) -> tuple[SlotMap, tuple[int, ...]]:
        options = self.options_of(node) | {"socket_timeout": SOCKET_TIMEOUT, "socket_connect_timeout": CONNECT_TIMEOUT}
        connection: Any = CLASSES[self.where.scheme](**options, retry=redis.retry.Retry(NoBackoff(), 0), protocol=2)
        try:
            connection.connect()
            connection.limit(SOCKET_TIMEOUT)
            connection.send_command("INFO", "server")
            info = connection.read_response()
            connection.send_command("CLUSTER", "SLOTS")
            found = read_slots(connection.read_response(), node)
        finally:
            connection.disconnect()
        if not found.ranges:
            raise redis.ConnectionError(f"{node} knows of no slots: is it part of a cluster?")
        version = info.partition(b"redis_version:")[2].partition(b"\r\n")[0].split(b".")
        return found, tuple(int(part) for part in version[:2] if part.isdigit())

    def options_of(self, node: Node) -> dict[str, Any]:
        """Return the options with which redis-py connects to a node."""
        return {
            "socket_keepalive": True,
            "socket_keepalive_options": KEEPALIVE,
            **self.where.options,
            "host": node.host,
            "port": node.port,
        }

    def _begin_anew(self) -> None:
        self._lock = threading.Lock()
        self._pending = None


def _found(node: Node | None, slot: int) -> Node:
    if node is None:
        raise redis.exceptions.ClusterDownError(f"no node of the cluster has slot {slot}")
    return node


_all: WeakSet[Nodes] = WeakSet()


@cache
def nodes_of(url: str) -> Nodes:
    """Return what this process knows of the cluster of a URL."""
    return Nodes(read(url))


class _ToNode:
    """
    An asyncio connection to a node of a cluster: a given one, or the one that has a key when it connects, or any.

    It is a class, and not a choice before, because whoever reconnects has a pool and nothing else.
    """

    host: str
    port: int
    term: str | None = None

    def __init__(self, *, nodes: Nodes, node: Node | None = None, key: str | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.nodes, self._node, self._slot = nodes, node, None if key is None else slot_of(key)

    async def connect(self) -> None:
        self.host, self.port = node = self._node or await self._find()
        self.nodes.doubt(node)  # until it has answered, which a paused one never does
        await super().connect()  # type: ignore[misc]  # of redis-py's class behind this one
        self.nodes.trust(node)

    async def _find(self) -> Node:
        if self._slot is None:
            return self.nodes.any()
        if (known := self.nodes.primary_of(self._slot)) is None or self.nodes.is_doubted(known):
            # It may have been replaced since. If nobody knows better, it is still the one to try.
            with suppress(*FAILURES):
                await self.nodes.alearn(time.monotonic(), CONNECT_TIMEOUT)
        return await self.nodes.afind(self._slot, CONNECT_TIMEOUT)


_ASYNC: Final = {
    scheme: type(f"{kind.__name__}ToNode", (_ToNode, kind), {})
    for scheme, kind in ASYNC_CLASSES.items()
    if scheme != "unix"
}


SYNC: Final = {
    scheme: type(f"{CLASSES[scheme].__name__}OfNode", (CLASSES[scheme],), {"term": None}) for scheme in _ASYNC
}
"""The classes of synchronous connections to nodes of a cluster, by scheme."""


def async_options_of(nodes: Nodes, node: Node | None = None, key: str | None = None) -> dict[str, Any]:
    """
    Return the options with which a pool of redis-py's asyncio connections connects to a node.

    Args:
        nodes: The cluster.
        node: The node; None for one that is chosen whenever a connection is made.
        key: A key that it has then; None for any node.

    """
    options = nodes.options_of(node or Node("", 0))
    return {**options, "connection_class": _ASYNC[nodes.where.scheme], "nodes": nodes, "node": node, "key": key}


def _begin_anew() -> None:
    """Reset the state in a child process: the threads are gone, and one of them may have held a lock."""
    for nodes in _all:
        nodes._begin_anew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)
