"""
Which node of a cluster has which key, and what a node answers that does not have it.

Redis divides all keys into 16,384 slots, by what is in braces in their names. Each slot is at one primary; all keys of
a script, and the channels of sharded pub/sub that it publishes on, have to be in one slot.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from enum import Enum
from typing import Any, Final, NamedTuple

from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot
from redis.exceptions import (
    AskError,
    BusyLoadingError,
    ClusterDownError,
    MasterDownError,
    MovedError,
    ReadOnlyError,
    TryAgainError,
)

SLOTS: Final = REDIS_CLUSTER_HASH_SLOTS


class Node(NamedTuple):
    """A server of a cluster, as clients reach it."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"


class Range(NamedTuple):
    """Slots that are at one primary, the last one included."""

    first: int
    last: int
    primary: Node
    replicas: tuple[Node, ...] = ()


class SlotMap:
    """
    Where all slots were when it was read.

    Attributes:
        ranges: In the order of slots; some may be nowhere.
        primaries: The nodes that have slots.
        replicas: The nodes that are ready to replace one.

    """

    def __init__(self, ranges: Sequence[Range]) -> None:
        self.ranges = sorted(ranges)
        self.primaries = tuple(dict.fromkeys(each.primary for each in self.ranges))
        self.replicas = tuple(dict.fromkeys(node for each in self.ranges for node in each.replicas))
        self._firsts = [each.first for each in self.ranges]

    def primary_of(self, slot: int) -> Node | None:
        """Return the primary of a slot; None if none has it."""
        at = bisect_right(self._firsts, slot) - 1
        return self.ranges[at].primary if at >= 0 and slot <= self.ranges[at].last else None

    def moved(self, slot: int, node: Node) -> SlotMap:
        """Return the map that results when a node says that another one has a slot."""
        ranges = []
        for each in self.ranges:
            if each.first <= slot <= each.last:
                ranges += [each._replace(last=slot - 1), each._replace(first=slot + 1)]
            else:
                ranges.append(each)
        ranges.append(Range(slot, slot, node))
        return SlotMap([each for each in ranges if each.first <= each.last])

    @property
    def covered(self) -> int:
        """How many slots some primary has; all of them, or the cluster refuses keys."""
        return sum(each.last - each.first + 1 for each in self.ranges)


def slot_of(key: str | bytes) -> int:
    """Return the slot of a key, or of a channel of sharded pub/sub."""
    return key_slot(key.encode() if isinstance(key, str) else key)


def read_slots(reply: Sequence[Any], asked: Node) -> SlotMap:
    """
    Read the answer to ``CLUSTER SLOTS``.

    Args:
        reply: For each range: first and last slot, then its primary and replicas: address, port, id and more.
        asked: Who answered. A node that knows no address or name of itself means this one's.

    Raises:
        ValueError: It is none.

    """
    try:
        return SlotMap(
            [
                Range(first, last, _node(nodes[0], asked), tuple(_node(each, asked) for each in nodes[1:]))
                for first, last, *nodes in reply
            ]
        )
    except (IndexError, TypeError, AttributeError, ValueError) as error:
        raise ValueError("it is not an answer to CLUSTER SLOTS") from error


def _node(words: Sequence[Any], asked: Node) -> Node:
    """Read the address that a node prefers: an IP address, or its name if it has ``cluster-announce-hostname``."""
    host = (words[0] or b"").decode()
    return Node(asked.host if host in ("", "?") else host, int(words[1]))


class Verdict(Enum):
    """What the error of a node of a cluster means; none of these calls was executed."""

    MOVED = "another node has the slot"
    ASK = "another node takes over the slot, and has the keys already"
    TRY_AGAIN = "some of the keys are at the node that takes over the slot"
    AWAY = "the slot has no primary that takes writes, or this is no longer it"


class Redirection(NamedTuple):
    """An error that says where, or when, a call is to be sent."""

    verdict: Verdict
    slot: int = -1
    node: Node | None = None


_ELSEWHERE: Final = re.compile(r"(MOVED|ASK) (\d{1,5}) (\S*):(\d{1,5})")
_CLASSES: Final[dict[type[Exception], str]] = {MovedError: "MOVED ", AskError: "ASK "}


def redirection(error: Exception, asked: Node) -> Redirection | None:
    """
    Return what a node's error asks for; None if it is about the call itself.

    Args:
        error: A ``redis.ResponseError``. redis-py's own classes have lost the first word of their text.
        asked: Who answered; a node that does not know its host means the host of this one.

    """
    text = _CLASSES.get(type(error), "") + str(error)
    if found := _ELSEWHERE.match(text):
        host = found[3].strip("[]")
        node = Node(asked.host if host in ("", "?") else host, int(found[4]))
        return Redirection(Verdict[found[1]], int(found[2]), node)
    if isinstance(error, TryAgainError) or text.startswith("TRYAGAIN"):
        return Redirection(Verdict.TRY_AGAIN)
    away = (ClusterDownError, MasterDownError, ReadOnlyError, BusyLoadingError)
    if isinstance(error, away) or text.startswith(("CLUSTERDOWN", "MASTERDOWN", "LOADING")) or "READONLY " in text:
        return Redirection(Verdict.AWAY)
    return None
