"""Nothing lost, nothing twice, on a real cluster: what breaks here is a node, a slot or a connection to one."""

import asyncio
import random

import pytest
from redis.crc import key_slot

from tests.conftest import point_to
from tests.fault_run import NOTIFICATIONS, Run
from tests.processes import LAYERS, Site
from tests.redis_groups import REDIS, VALKEY, RedisCluster
from tests.waiting import scaled

pytestmark = pytest.mark.faults

SHARDS = 8
SETTINGS = {**NOTIFICATIONS, "SHARDS": SHARDS}
RECOVERED = 5.0
"""Seconds, before scaling, after the cluster has promoted a replica in which all sockets are level again."""


class ClusterSite(Site):
    """A site on a cluster."""

    def __init__(self, directory, database, server):
        settings = {"NOTIFICATIONS": SETTINGS, "CHANNEL_LAYER_BACKEND": LAYERS["ours"]}
        super().__init__(directory, database, settings=settings)
        self.cluster = RedisCluster(server=server)
        self.server = server
        self.broken = self.raw = None
        """The node that a fault breaks, and that at which other programs publish: all at one, or there is no order."""

    def __enter__(self):
        self._stack.enter_context(self.cluster)
        self.redis_url = self.cluster.url
        return self

    @property
    def raw_port(self):
        if self.raw is None:
            self.raw = random.choice(self.primaries())
        return self.raw.port

    def listeners_of(self, receivers):
        return 1  # a node counts the subscribers that are at itself

    def primaries(self):
        return list(dict.fromkeys(self.cluster.node_of(tag_slot(shard)) for shard in range(SHARDS)))

    def node_to_break(self):
        """Return a primary at which not all listeners are subscribed, so that one of them hears the raw messages."""
        for node in (node for node in self.primaries() if node is not self.raw):
            clients = self.cluster.client(node).client_list(_type="pubsub")
            if sum(int(client["psub"]) > 0 for client in clients) < 2:
                self.broken = node
                return node
        raise AssertionError("all listeners are subscribed everywhere")


def tag_slot(shard):
    return key_slot(f"notifications:{shard}".encode())


@pytest.fixture(scope="module", params=[VALKEY, pytest.param(REDIS, marks=pytest.mark.faults_long)])
def site(request, migrated_database, tmp_path_factory):
    with ClusterSite(tmp_path_factory.mktemp("cluster"), migrated_database, request.param) as site:
        site.servers = [site.start_server("uvicorn")]
        site.listeners = [site.start_listener() for _ in range(2)]
        yield site


@pytest.fixture
def run(site, settings):
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, **SETTINGS}
    point_to(settings, site.cluster.url)
    settings.CHANNEL_LAYERS = {"default": {"BACKEND": LAYERS["ours"], "CONFIG": {"hosts": [site.cluster.url]}}}
    site.broken = site.raw = None
    site.cluster.wait_until_ok()
    return Run(site, site.servers, site.listeners, messages=2000, seconds=4)


async def test_a_killed_primary_loses_nothing_that_was_replicated_and_tells_of_the_rest(site, run):
    """Its replica is promoted: its topics go on with a new epoch, and those of the other nodes as if nothing was."""
    promoted = []

    async def fault(run):
        node = await asyncio.to_thread(site.node_to_break)
        site.cluster.kill(node)
        promoted.append(await asyncio.to_thread(site.cluster.wait_for_promotion, node))

    result = await run.through(f"cluster: kill -9 a primary, its replica is promoted ({site.server})", fault)

    site.cluster.start(site.broken)
    result.expect_nothing_wrong(told=True)
    assert result.recovery < scaled(RECOVERED)


async def test_slots_that_move_under_load_lose_nothing(site, run):
    """Their keys go one after the other, as ``redis-cli --cluster reshard`` moves them."""

    async def fault(run):
        for shard in range(2):
            source = site.cluster.node_of(tag_slot(shard))
            target = next(node for node in site.primaries() if node is not source)
            await asyncio.to_thread(site.cluster.migrate_slot, tag_slot(shard), target, slowly=0.005)

    result = await run.through(f"cluster: two slots migrated with their keys ({site.server})", fault)

    result.expect_nothing_wrong(told=True)
    assert result.recovery < scaled(RECOVERED)


async def test_a_paused_primary_loses_nothing(site, run):
    """It holds its connections and answers nobody; the cluster replaces it, and it comes back as a replica."""

    async def fault(run):
        node = await asyncio.to_thread(site.node_to_break)
        site.cluster.pause(node)
        await asyncio.to_thread(site.cluster.wait_for_promotion, node)

    try:
        result = await run.through(f"cluster: SIGSTOP of a primary ({site.server})", fault)
    finally:
        site.cluster.resume(site.broken)

    result.expect_nothing_wrong(told=True)


async def test_a_planned_failover_loses_nothing(site, run):
    """``CLUSTER FAILOVER``, as before a node is upgraded."""

    async def fault(run):
        node = await asyncio.to_thread(site.node_to_break)
        await asyncio.to_thread(site.cluster.failover, node)

    result = await run.through(f"cluster: CLUSTER FAILOVER ({site.server})", fault)

    result.expect_nothing_wrong(told=True)
    assert result.recovery < scaled(RECOVERED)
