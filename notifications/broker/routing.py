"""
The way of a call across a cluster: to which node it goes, and what follows when that one does not execute it.

What is decided here is the same with and without an event loop; ``cluster.py`` and ``lines.py`` wait and send.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from operator import attrgetter
from typing import Any, Final

import redis

from ..aio import Timeout
from .connecting import FAILURES, GroupChannel, Server
from .nodes import Nodes
from .slots import Node, Verdict, redirection

PAUSE: Final = 0.02
"""Seconds before a call is sent again whose keys are being moved, or whose node is away; they double."""
LONGEST_PAUSE: Final = 0.1
MAX_REDIRECTIONS: Final = 5
"""Redirections that are followed at once. Nodes that do not agree would send a call to and fro."""

ChannelOf = Callable[[GroupChannel], str]
Words = Callable[[Server, bool], tuple[Any, ...]]
"""Returns a command, given the server that will execute it, and whether it needs the whole script."""


def channel_of(nodes: Nodes, *, asking: bool) -> ChannelOf:
    """
    Return which channel of a group a node's scripts publish on.

    A node that is taking over a slot has none of the subscribers yet: a listener then forwards to them.
    """
    if asking:
        return lambda _channel: ""
    return str if nodes.is_sharded else attrgetter("classic")


class Route:
    """
    The way of one call.

    Attributes:
        node: Where it goes next; None if that is not known.
        asking: The node is to be told that it was asked for a slot that it is taking over.
        since: When it was last sent, or about to be.
        has_moved: The node that was asked last no longer has the slot. It may have been replaced, and be the primary
            again one day: connections from before must not be used then, as they know it by what it was.

    """

    def __init__(self, nodes: Nodes, slot: int, *, again: bool, within: float) -> None:
        """
        Prepare a call.

        Args:
            nodes: The cluster.
            slot: The slot of its keys.
            again: It may be executed twice.
            within: Seconds that it may take.

        """
        self._nodes = nodes
        self._slot = slot
        self._again = again
        self._least = within * Timeout.LAST_PART
        self._until = time.monotonic() + within
        self._pause = PAUSE
        self._redirections = 0
        self.asking = self.has_moved = False
        self.node = nodes.primary_of(slot)
        self.since = time.monotonic()
        self._is_old = self.node is None

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return max(0.0, self._until - time.monotonic())

    @property
    def left_to_read(self) -> float:
        """Seconds that the next step may take in an event loop, which may have been blocked since the last one."""
        return max(self._least, self.left)

    def server(self, server: Server) -> Server:
        """Return what scripts are told of the server of a connection."""
        return server._replace(channel_of=channel_of(self._nodes, asking=self.asking))

    def words(self, words: Words) -> Words:
        """Return the words of a call for the node to which it goes now."""
        into = channel_of(self._nodes, asking=self.asking)
        return lambda server, whole: words(server._replace(channel_of=into), whole)

    def learn(self) -> None:
        """Learn what has changed, if that is needed; raises the errors of ``Nodes.learn`` if no node is known."""
        if self._is_old:
            with self._unless_known():
                self._nodes.learn(self.since, self.left)

    async def alearn(self) -> None:
        """Learn without blocking the event loop; see ``learn``."""
        if self._is_old:
            with self._unless_known():
                await self._nodes.alearn(self.since, self.left_to_read)

    def _unless_known(self) -> AbstractContextManager[None]:
        # If nobody knows better, the node that was known is still the one to try.
        return suppress(*FAILURES) if self.node is not None else nullcontext()

    def at(self) -> Node:
        """
        Return the node to which it goes now.

        Raises:
            redis.exceptions.ClusterDownError: There is none.

        """
        self.since, self._is_old, self.has_moved = time.monotonic(), False, False
        if not self.asking:
            self.node = self._nodes.primary_of(self._slot)
        if self.node is None:
            raise redis.exceptions.ClusterDownError(f"no node of the cluster has slot {self._slot}")
        return self.node

    def failed(self, error: Exception, *, sent: bool) -> float:
        """
        Take note that it failed, and decide where it goes next.

        Args:
            error: Why.
            sent: Whether it may have been executed; what a node refuses was not.

        Returns:
            Seconds to wait before it is sent again.

        Raises:
            Exception: ``error``, if it must not be sent again, or if there is no time left.

        """
        asked, self.asking = self.node, False
        if isinstance(error, redis.ResponseError):
            pause = self._refused(error, asked)
        else:
            if asked is not None:
                self._nodes.doubt(asked)
                self._nodes.refresh()  # for the next call, if there is no time left for this one
            if sent and not self._again:
                raise error
            pause, self._is_old = self._next_pause(), True
        if pause >= self.left:
            raise error
        return pause

    def _refused(self, error: redis.ResponseError, asked: Node | None) -> float:
        told = redirection(error, asked or Node("", 0))
        if told is None:
            raise error
        if told.node is not None:
            if told.verdict is Verdict.MOVED:
                self._nodes.moved(told.slot, told.node)
                self.has_moved = True
            else:
                self.asking, self.node = True, told.node
            self._redirections += 1
            return 0.0 if self._redirections <= MAX_REDIRECTIONS else self._next_pause()
        self._is_old = told.verdict is Verdict.AWAY
        return self._next_pause()

    def _next_pause(self) -> float:
        pause, self._pause = self._pause, min(2 * self._pause, LONGEST_PAUSE)
        return pause
