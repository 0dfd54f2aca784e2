"""The inlet on a real cluster, whose shards are on several servers."""

import asyncio

import pytest
import redis

from notifications.bridge import inlet as bridge_inlet
from notifications.bridge.inlet import STEP
from notifications.history.inlet import INLET
from notifications.history.redis import _INLET
from notifications.topics import internal_name
from tests.conftest import point_to
from tests.faults import held_up
from tests.redis.test_inlet_shards import append, await_empty, emptying, kept, topic_of
from tests.redis_groups import RedisCluster
from tests.waiting import await_for, scaled

SHARDS = 4


@pytest.fixture(scope="module")
def cluster():
    with RedisCluster(steady=True) as cluster:
        yield cluster


@pytest.fixture
def client(cluster, settings):
    """Point this process's site to the cluster, and return a client of it."""
    point_to(settings, cluster.url)
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "SHARDS": SHARDS, "HISTORY_SIZE": 100_000}
    with redis.RedisCluster(host="127.0.0.1", port=cluster.nodes[0].port) as client:
        client.flushall(target_nodes=redis.RedisCluster.PRIMARIES)
        yield client


def spread(begin, end):
    """Return entries for all shards in turn."""
    return [(topic_of(number % SHARDS), number) for number in range(begin, end)]


def expect_each_once(client, amount):
    for shard in range(SHARDS):
        assert kept(client, topic_of(shard)) == list(range(shard, amount, SHARDS))


async def test_an_inlet_takes_entries_for_every_server(cluster, client):
    """And who dies between publishing on one and deleting on the other has published nothing twice."""
    assert len({cluster.node_of(topic_of(shard).history_key).port for shard in range(SHARDS)}) > 1
    append(client, *spread(0, 2 * STEP))
    async with held_up(_INLET) as reached, emptying(client) as running:
        await asyncio.wait_for(reached.wait(), scaled())
        running.cancel()
    append(client, *spread(2 * STEP, 4 * STEP))
    async with emptying(client, token="two"):
        await await_empty(client)

    expect_each_once(client, 4 * STEP)


async def test_an_inlet_follows_its_shards_to_other_servers(cluster, client, monkeypatch):
    """Each shard's primary is exchanged for its replica while entries come, that of the inlet as well."""
    monkeypatch.setattr(bridge_inlet, "LONGEST_PAUSE", 1.0)
    amount = 0
    async with emptying(client):
        for key in (topic_of(1).history_key, internal_name(INLET, 0)):
            append(client, *spread(amount, amount + 2 * STEP))
            await asyncio.to_thread(cluster.failover, cluster.node_of(key))
            await await_for(lambda: client.ping(target_nodes=redis.RedisCluster.PRIMARIES))
            client.nodes_manager.initialize()
            append(client, *spread(amount + 2 * STEP, amount + 4 * STEP))
            amount += 4 * STEP
            await await_empty(client, seconds=30)

    expect_each_once(client, amount)
