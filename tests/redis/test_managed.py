"""
What managed services allow and how they evict, as far as a server here can show it. None of the services was asked.

Each has an account that may do what the service says it allows, and no more. What only the service itself does, such as
its proxies, its failover and its cluster mode, is not shown.
"""

import asyncio
import json
import re
import statistics
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import redis
import redis.asyncio
from channels.layers import get_channel_layer
from django.core.signals import setting_changed

from notifications import Topic, adisconnect_user, apublish, apublish_many, disconnect_user, publish, publish_many
from notifications.access import control
from notifications.bridge import status
from notifications.bridge.listener import Listener
from notifications.broker import connecting
from notifications.broker.clients import async_client
from notifications.doctor import Level
from notifications.doctor.inlet import examine_inlet
from notifications.doctor.redis_server import examine_redis
from notifications.doctor.services import policy_hint
from notifications.history import get_store
from notifications.history.position import Position
from tests.conftest import point_to
from tests.processes import LAYERS
from tests.waiting import await_for, scaled

PASSWORD = "s3cret-of-nobody"


class Service(NamedTuple):
    """What a service allows, as rules of an account, and the page that says so."""

    rules: str
    source: str


AWS = "https://docs.aws.amazon.com"
GOOGLE = "https://docs.cloud.google.com/memorystore/docs"
UPSTASH = (
    "append decr get getdel getex getrange getset incr mget mset psetex set setex setnx setrange strlen hdel "
    "hexists hget hgetall hincrby hkeys hlen hmget hmset hscan hset hsetnx hstrlen hvals eval evalsha "
    "script|exists script|load script|flush subscribe psubscribe unsubscribe punsubscribe publish pubsub discard "
    "exec multi unwatch watch copy del exists expire expireat keys persist pexpire pexpireat pttl randomkey "
    "rename renamenx scan touch ttl type unlink auth hello echo ping quit reset select dbsize flushall flushdb "
    "time info xack xadd xautoclaim xclaim xdel xgroup xlen xpending xrange xread xreadgroup xrevrange xtrim"
)
SERVICES = {
    "ElastiCache": Service(
        "+@all -bgrewriteaof -bgsave -config -debug -migrate -replicaof -save -slaveof -shutdown -sync",
        f"{AWS}/AmazonElastiCache/latest/dg/ClientConfig.RestrictedCommands.html",
    ),
    "ElastiCache serverless": Service(
        # It restricts CLIENT LIST, https://github.com/rq/rq/issues/2125, and more of what only administrators need.
        "+@all -@admin -@dangerous -client -monitor +info",
        f"{AWS}/AmazonElastiCache/latest/dg/SupportedCommands.html",
    ),
    "MemoryDB": Service(
        "+@all -acl|deluser -acl|load -acl|save -acl|setuser -bgrewriteaof -bgsave -cluster|addslots -cluster|delslots "
        "-cluster|setslot -config -debug -migrate -module -psync -replicaof -save -shutdown -slaveof -sync",
        f"{AWS}/memorydb/latest/devguide/restrictedcommands.html",
    ),
    "Azure Cache for Redis": Service(
        "+@all -bgrewriteaof -bgsave -config -debug -migrate -save -shutdown -slaveof -replicaof -cluster",
        "https://learn.microsoft.com/azure/azure-cache-for-redis/cache-configure",
    ),
    "Azure Managed Redis and Redis Cloud": Service(
        "+@all -acl|deluser -acl|genpass -acl|load -acl|log -acl|save -acl|setuser -bgrewriteaof -bgsave "
        "-client|no-evict -client|pause -config|resetstat -debug -failover -lastsave -latency -memory|doctor "
        "-memory|stats -migrate -psync -replconf -replicaof -role -save -shutdown -slaveof -swapdb -sync -cluster",
        "https://redis.io/docs/latest/operate/rs/references/compatibility/commands/",
    ),
    "Memorystore for Redis": Service(
        "+@all -acl -bgrewriteaof -bgsave -client -cluster -command -config -debug -lastsave -migrate -monitor -object "
        "-shutdown -replicaof -slaveof -save",
        f"{GOOGLE}/redis/product-constraints",
    ),
    "Memorystore for Redis Cluster and Valkey": Service(
        "+@all -@admin -config -acl +client|id +client|info +client|setname +client|getname",
        f"{GOOGLE}/cluster/supported-commands",
    ),
    "Upstash": Service(
        "-@all " + " ".join(f"+{command}" for command in UPSTASH.split()),
        "https://upstash.com/docs/redis/overall/rediscompatibility",
    ),
}


@pytest.fixture
def account(live_redis, settings):
    """Return what points the site to an account of these rules."""

    def let(rules):
        live_redis.execute_command("ACL", "SETUSER", "site", "reset", "on", f">{PASSWORD}", "~*", "&*", *rules.split())
        port = live_redis.get_connection_kwargs()["port"]
        point_to(settings, f"redis://site:{PASSWORD}@127.0.0.1:{port}/0")

    yield let
    live_redis.acl_deluser("site")


@asynccontextmanager
async def leading(layer):
    """Run a listener that holds the lease and reports."""
    listener = Listener(layer)
    running = asyncio.create_task(listener.run())
    try:
        await await_for(lambda: listener.status.state == "holder")
        yield listener
    finally:
        listener.stop()
        await running


@pytest.mark.parametrize("name", SERVICES)
async def test_all_works_with_what_a_service_allows(live_redis, settings, account, name):
    """Publishing, the inlet, raw messages, the layer, histories, reports, control; the doctor is content."""
    account(SERVICES[name].rules)
    settings.CHANNEL_LAYERS = {"default": {**settings.CHANNEL_LAYERS["default"], "BACKEND": LAYERS["ours"]}}
    layer, topic, got = get_channel_layer(), Topic.for_user(1), []
    channel = await layer.new_channel()
    layer.on_message(channel, got.append)
    await layer.group_add(topic.group, channel)
    with live_redis.pubsub() as watching:
        watching.subscribe(control.channel())
        watching.get_message(timeout=scaled())
        try:
            async with leading(layer):
                await asyncio.to_thread(publish, topic, {"n": 1}, idempotency_key="once")
                await apublish(topic, {"n": 2})
                await asyncio.to_thread(publish_many, [(topic, {"n": 3})])
                await apublish_many([(topic, {"n": 4})])
                await apublish(topic, {"n": 1}, idempotency_key="once")
                await await_for(lambda: len(got) == 4)
                live_redis.publish("user:1", '{"n":5}')
                await await_for(lambda: len(got) == 5)
                live_redis.xadd("notifications:inlet", {"topic": "user:1", "data": '{"n":6}'})
                await await_for(lambda: len(got) == 6)
                reports = await status.living(await async_client())
                await adisconnect_user(1)
                await asyncio.to_thread(disconnect_user, 1)
                found = [*await examine_redis(), *await examine_inlet(await async_client())]
                page = await get_store().read(topic, None)
                position = await asyncio.to_thread(get_store().position, topic)
                commands = [watching.get_message(timeout=scaled()) for _ in range(2)]
        finally:
            await layer.flush()

    assert [json.loads(message["text"])["n"] for message in got] == [1, 2, 3, 4, 5, 6]
    assert page.last == position
    assert [report.state for report in reports] == ["holder"]
    assert None not in commands
    assert not [finding for finding in found if finding.level is Level.ERROR], found


@pytest.fixture
def without_info(live_redis, monkeypatch):
    """Let the server know neither INFO nor CONFIG, as far as this process asks it outside of scripts."""

    async def unknown(*_, **__):
        raise redis.ResponseError("unknown command 'INFO', with args beginning with: ")

    monkeypatch.setattr(connecting, "_QUESTIONS", (("NOSUCH", "server"), ("TIME",)))
    monkeypatch.setattr(redis.asyncio.Redis, "info", unknown)
    monkeypatch.setattr(redis.asyncio.Redis, "config_get", unknown)
    # What was connected before has asked.
    setting_changed.send(sender=None, setting="NOTIFICATIONS", value=None, enter=True)


async def test_a_service_without_info_is_used_and_told_of(without_info):
    """Nobody can tell one server from another: all works, and the doctor says what would not be noticed."""
    topic = Topic.for_user(1)
    first = await apublish(topic, {"n": 1})
    second = await asyncio.to_thread(publish, topic, {"n": 2})
    found = await examine_redis()

    assert Position.parse(second) == Position(Position.parse(first).epoch, 2)
    assert Level.ERROR not in {finding.level for finding in found}
    [told] = [finding for finding in found if "does not tell its run_id" in finding.text]
    assert "managed-redis" in told.hint
    assert [finding.level for finding in found if "client-output-buffer-limit" in finding.text] == [Level.SKIPPED]


async def test_connections_to_different_servers_are_an_error(live_redis, monkeypatch):
    """A proxy in front of several servers: what one has stamped another takes for a predecessor's."""
    runs = iter("abc")
    monkeypatch.setattr(connecting, "_judge", lambda *_: connecting.Server(next(runs, "d"), 0))

    found = await examine_redis()

    [told] = [finding for finding in found if "run_id" in finding.text]
    assert told.level is Level.ERROR


INFO = b"""# Server
run_id:0123456789abcdef0123456789abcdef01234567
uptime_in_seconds:10
# Replication
master_replid:fedcba98765432100123456789abcdef01234567
master_replid2:0000000000000000000000000000000000000000
# Memory
maxmemory_policy:noeviction
"""
TIME = b"1700000000", b"500000"


@pytest.mark.parametrize(
    ("missing", "server"),
    [
        (b"", ("0123456789ab", 1_699_999_990_500, 0)),
        (b"run_id", ("fedcba987654", 1_699_999_990_500, 0)),
        (b"uptime_in_seconds", ("0123456789ab", 1_700_000_000_500, 0)),
        (b"master_replid2", ("0123456789ab", 1_700_000_000_500, 0)),
        (b"maxmemory_policy", ("0123456789ab", 1_699_999_990_500, 1)),
        (b"(?!#)", (connecting.UNNAMED, 1_700_000_000_500, 1)),
    ],
    ids=["all", "run_id", "uptime", "replid2", "policy", "everything"],
)
def test_what_a_server_does_not_say_counts_as_the_worst(missing, server):
    """Without its start it has just started; without its policy it evicts; without its name it has none."""
    told = re.sub(b"(?m)^%b.*\n" % (missing or b"$a"), b"", INFO)

    found = connecting.server_of(told, TIME)

    assert (found.run, found.started, found.evicts) == server


def test_a_server_does_not_start_later_because_it_is_asked_slowly():
    """Its time comes with its uptime. By another answer, a tab that comes back early would be told of a loss."""
    told = INFO + b"server_time_usec:1699999999000000\n"

    assert connecting.server_of(told, TIME).started == 1_699_999_989_000


async def test_an_idle_listener_costs_seven_commands_a_second(live_redis):
    """Where each is billed, that is the price of a site on which nothing happens; the guide has the numbers."""
    seconds: list[list[str]] = []
    async with leading(SimpleNamespace(group_send=None)):
        with live_redis.monitor() as monitor:

            def watch():
                for line in monitor.listen():
                    command = line["command"].partition(" ")[0].upper()
                    if command == "XREAD":  # which takes a second
                        seconds.append([])
                    if len(seconds) > 6:
                        seconds.pop()
                        return
                    if seconds and line["client_type"] != "lua":
                        seconds[-1].append(command)

            await asyncio.to_thread(watch)

    # In the first it has just begun; and what a busy machine holds up is counted in the next, not in its own.
    assert 6 <= statistics.median(map(len, seconds[1:])) <= 8, seconds


@pytest.mark.parametrize(
    ("url", "where"),
    [
        ("rediss://my.abc.ng.0001.euw1.cache.amazonaws.com:6379", "parameter group"),
        ("rediss+cluster://my-abc.serverless.euw1.cache.amazonaws.com:6379", "keeps volatile-lru"),
        ("rediss+cluster://clustercfg.my.abc.memorydb.eu-west-1.amazonaws.com:6379", "parameter group"),
        ("rediss://name.redis.cache.windows.net:6380", "Advanced settings"),
        ("rediss://name.westeurope.redis.azure.net:10000", "NoEviction"),
        ("rediss://name.upstash.io:6379", "switch off Eviction"),
        ("rediss://redis-1.c1.eu-west-1-2.ec2.redns.redis-cloud.com:12345", "No eviction"),
        ("redis://10.0.0.3:6379", "CONFIG SET maxmemory-policy noeviction"),
    ],
)
def test_the_hint_says_where_a_service_has_its_policy(settings, url, where):
    """By the name of its host; of an address nobody can tell whose it is."""
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "REDIS_URL": url}

    assert where in policy_hint()
