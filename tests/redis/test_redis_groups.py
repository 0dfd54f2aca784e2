"""The groups of servers that tests break: each does here what it is there for, on both servers."""

import pytest
import redis
from redis.crc import key_slot

from tests.redis_groups import DOWN_AFTER_MS, SERVERS, RedisCluster, SentinelGroup
from tests.waiting import wait_for


@pytest.mark.parametrize("server", SERVERS)
def test_sentinels_promote_the_replica_of_a_killed_primary(server: str) -> None:
    """The replica has what was written; the old primary comes back as its replica, and a failover brings it back."""
    # No second failover may be to the old primary while it has come back without data.
    with SentinelGroup(server=server, down_after_ms=2 * DOWN_AFTER_MS) as group:
        old, replica = group.primary, group.replica
        group.client(old).set("key", "value")
        wait_for(lambda: group.client(old).wait(1, 50) == 1, what="the replica has it")

        group.kill(old)
        group.wait_for_switch(old)

        assert group.primary is replica
        assert group.client(replica).get("key") == "value"

        group.start(old)
        group.wait_until_ok()

        assert group.client(old).get("key") == "value"
        assert group.failover() is old
        group.wait_until_ok()
        assert group.replica is replica


@pytest.mark.parametrize("server", SERVERS)
def test_a_cluster_promotes_the_replica_of_a_killed_primary(server: str) -> None:
    """The replica takes over the slots and what was written; the old primary comes back and follows it."""
    with RedisCluster(server=server) as cluster:
        old = cluster.node_of("key")
        replica = cluster.replica_of(old)
        cluster.client(old).set("key", "value")
        wait_for(lambda: cluster.client(old).wait(1, 50) == 1, what="the replica has it")

        cluster.kill(old)
        cluster.wait_for_promotion(old)

        assert cluster.node_of("key") is replica
        assert cluster.client(replica).get("key") == "value"

        cluster.start(old)
        cluster.wait_until_ok()

        assert cluster.replica_of(replica) is old


def test_a_paused_primary_is_replaced_and_comes_back_as_a_replica() -> None:
    """A primary that hangs loses its slots, and hears of it when it goes on."""
    with RedisCluster() as cluster:
        old = cluster.node_of("key")

        cluster.pause(old)
        cluster.wait_for_promotion(old)
        cluster.resume(old)
        cluster.wait_until_ok()

        assert cluster.replica_of(cluster.node_of("key")) is old


def test_a_slot_moves_step_by_step() -> None:
    """Between the steps the nodes redirect: ASK for what has left, MOVED when all has; no key is lost."""
    keys = [f"{{user}}{number}" for number in range(5)]
    slot = key_slot(b"user")
    with RedisCluster(replicas=0, steady=True) as cluster:
        source = cluster.node_of(slot)
        to = next(node for node in cluster.nodes if node is not source)
        for key in keys:
            cluster.client(source).set(key, key)

        cluster.begin_migration(slot, to)
        assert cluster.move_keys(slot, to, limit=2) == 2

        answers = _answers(cluster.client(source), keys)
        assert answers.count("ASK") == 2
        assert set(answers) <= {"ASK", *keys}
        while cluster.move_keys(slot, to):
            pass
        cluster.finish_migration(slot, to)

        assert _answers(cluster.client(source), keys) == ["MOVED"] * 5
        assert _answers(cluster.client(to), keys) == keys


def _answers(client: redis.Redis, keys: list[str]) -> list[str]:
    answers = []
    for key in keys:
        try:
            answers.append(client.get(key))
        except redis.exceptions.MovedError:  # for redis-py it is an AskError, too
            answers.append("MOVED")
        except redis.exceptions.AskError:
            answers.append("ASK")
    return answers
