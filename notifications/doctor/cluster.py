"""The nodes of a Redis Cluster: which have which slots, what follows them, and what happens when one is away."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any, Final

from ..aio import Timeout
from ..broker.clients import FAILURES, SOCKET_TIMEOUT, nodes
from ..broker.slots import SLOTS, SlotMap, slot_of
from ..conf import MAX_SHARDS, settings
from ..topics import internal_name
from .findings import Finding, Level

UNEVEN: Final = 1.25
"""Times its share of the shards that a primary may have. Three equal primaries exceed it with up to 32 shards."""


async def info_of_primaries(client: Any) -> dict[str, dict[str, Any]]:
    """
    Return what ``INFO`` says of each primary, by its host and port.

    Raises:
        redis.RedisError, OSError, TimeoutError: No node says where the slots are.

    """
    found: dict[str, dict[str, Any]] = {}

    async def ask(node: Any, of: Any) -> None:
        try:
            async with Timeout(SOCKET_TIMEOUT):
                found[str(node)] = await of.info()
        except FAILURES:
            found[str(node)] = {}

    clients = await client.primaries()
    await asyncio.gather(*(ask(node, of) for node, of in clients.items()))
    return dict(sorted(found.items()))


async def examine_cluster(client: Any, infos: dict[str, dict[str, Any]]) -> list[Finding]:
    """Judge the cluster as a whole; ``infos`` is what its primaries say."""
    known = nodes()
    assert known is not None  # noqa: S101  it is asked of a cluster only
    slots, found = known.slots, []
    silent = [name for name, info in infos.items() if not info]
    if silent:
        text = f"{_names(silent)} of the cluster's {len(infos)} primaries do not answer: their topics cannot be used"
        found.append(Finding("redis", Level.ERROR, text, "CLUSTER NODES says why no replica was promoted."))
    if missing := SLOTS - slots.covered:
        text = f"{missing} of the cluster's {SLOTS} slots are at no primary"
        found.append(Finding("redis", Level.ERROR, text, "redis-cli --cluster check, and fix."))
    alone = [name for name, info in infos.items() if info and not info.get("connected_slaves")]
    if alone:
        text = f"{_names(alone)} has no replica: while it is away, so are its topics"
        found.append(Finding("redis", Level.WARNING, text, "Give each primary a replica."))
    if await _wants_all(client):
        text = "cluster-require-full-coverage is yes: while one primary is away, no topic of any node can be used"
        found.append(Finding("redis", Level.WARNING, text, "Set it to no, on every node."))
    if settings.SHARDS < MAX_SHARDS and (text := _uneven(slots)):
        found.append(Finding("redis", Level.WARNING, text, f"Set SHARDS to {MAX_SHARDS}."))
    if not known.is_sharded:
        text = "the cluster has no sharded pub/sub: what is published at one node is sent to all"
        found.append(Finding("redis", Level.WARNING, text, "Take Redis 7 or newer, or Valkey."))
    return found


async def _wants_all(client: Any) -> bool:
    try:
        async with Timeout(SOCKET_TIMEOUT):
            said = await client.config_get("cluster-require-full-coverage")
    except FAILURES:  # hosted servers and restricted accounts may not allow it
        return False
    return bool(said.get("cluster-require-full-coverage") == "yes")


def _uneven(slots: SlotMap) -> str:
    """Say that some primary has far more shards than another; an empty text if none has."""
    shards, primaries = settings.SHARDS, len(slots.primaries)
    places = (slots.primary_of(slot_of(internal_name("", shard))) for shard in range(shards))
    used = Counter(place for place in places if place is not None)
    if len(used) < primaries:
        return f"SHARDS is {shards}, so {len(used)} of the cluster's {primaries} primaries are used"
    if (most := max(used.values(), default=0)) * primaries > UNEVEN * shards:
        return f"SHARDS is {shards}, of which {most} are at one of the cluster's {primaries} primaries"
    return ""


def _names(names: list[str]) -> str:
    return ", ".join(names)
