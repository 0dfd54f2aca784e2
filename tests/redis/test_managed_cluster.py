"""What managed clusters allow, as far as a real cluster here can show it; ``test_managed.py`` says what that is not."""

import asyncio
import json

import pytest
import redis
from channels.layers import get_channel_layer

from notifications import adisconnect_user, apublish, apublish_many, publish, publish_many
from notifications.bridge import status
from notifications.broker.clients import async_client
from notifications.doctor import Level
from notifications.doctor.inlet import examine_inlet
from notifications.history import get_store
from tests.conftest import point_to
from tests.processes import LAYERS
from tests.redis.test_inlet_shards import append, kept, topic_of
from tests.redis.test_managed import PASSWORD, SERVICES, leading
from tests.redis_groups import RedisCluster
from tests.waiting import await_for

SHARDS = 4
CLUSTERS = {
    "ElastiCache": "",
    "ElastiCache serverless": "",
    "MemoryDB": "",
    "Azure Cache for Redis": "+cluster|slots +cluster|nodes +cluster|shards",
    "Azure Managed Redis and Redis Cloud": "+cluster|slots +cluster|nodes +cluster|shards",
    "Memorystore for Redis Cluster and Valkey": "",
}
"""Services that are clusters, or may be, and what they allow besides for that."""


@pytest.fixture(scope="module")
def cluster(redis_program):
    with RedisCluster(steady=True) as cluster:
        yield cluster


@pytest.fixture
def client(cluster):
    with redis.RedisCluster(host="127.0.0.1", port=cluster.nodes[0].port) as client:
        client.flushall(target_nodes=redis.RedisCluster.PRIMARIES)
        yield client
        client.execute_command("ACL", "DELUSER", "site", target_nodes=redis.RedisCluster.ALL_NODES)


@pytest.mark.parametrize("name", CLUSTERS)
async def test_all_works_with_what_a_cluster_allows(cluster, client, settings, name):
    """Publishing to every node, histories, a listener, the inlet, the layer and control."""
    rules = f"{SERVICES[name].rules} {CLUSTERS[name]}".split()
    account = "ACL", "SETUSER", "site", "reset", "on", f">{PASSWORD}", "~*", "&*", *rules
    client.execute_command(*account, target_nodes=redis.RedisCluster.ALL_NODES)
    url = cluster.url.replace("://", f"://site:{PASSWORD}@")
    point_to(settings, url)
    settings.CHANNEL_LAYERS = {"default": {"BACKEND": LAYERS["ours"], "CONFIG": {"hosts": [url]}}}
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "SHARDS": SHARDS}
    topics = [topic_of(shard) for shard in range(SHARDS)]
    layer, got = get_channel_layer(), []
    channel = await layer.new_channel()
    layer.on_message(channel, got.append)
    for topic in topics:
        await layer.group_add(topic.group, channel)
    try:
        async with leading(layer):
            for topic in topics:
                await asyncio.to_thread(publish, topic, {"n": 1}, idempotency_key="once")
                await apublish(topic, {"n": 1}, idempotency_key="once")
            await asyncio.to_thread(publish_many, [(topic, {"n": 2}) for topic in topics])
            await apublish_many([(topic, {"n": 3}) for topic in topics])
            append(client, *((topic, 4) for topic in topics))
            await await_for(lambda: len(got) == 4 * SHARDS)
            for topic in topics:
                client.publish(topic.channel, '{"n":5}')
            await await_for(lambda: len(got) == 5 * SHARDS)
            await adisconnect_user(1)
            found = await examine_inlet(await async_client())
            pages = [await get_store().read(topic, None) for topic in topics]
            reports = await status.living(await async_client())
    finally:
        await layer.flush()

    assert all(kept(client, topic) == [1, 2, 3, 4, 5] for topic in topics)
    assert [json.loads(page.frames[0].text)["n"] for page in pages] == [5] * SHARDS
    assert [report.state for report in reports] == ["holder"]
    assert [finding.level for finding in found] == [Level.OK]
