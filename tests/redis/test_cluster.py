"""Calls and the channel layer on a real cluster: ``broker/cluster.py``, ``lines.py``, ``cluster_layer.py``."""

import asyncio
import os
import threading
import time
from collections import Counter
from contextlib import asynccontextmanager, suppress
from itertools import islice

import pytest
import redis
from redis.crc import key_slot

from notifications import (
    PublishError,
    Topic,
    aposition,
    apublish,
    apublish_many,
    position,
    publish,
    publish_many,
)
from notifications.access import control
from notifications.bridge import status
from notifications.bridge.listener import Listener
from notifications.broker import clients, connecting, nodes, pipeline
from notifications.broker import cluster as calling
from notifications.broker.bell import Bell
from notifications.broker.reconnect import connected
from notifications.broker.wire import Subscription, confirmed, site_pool
from notifications.delivery.reconciler import Looks
from notifications.history import get_store
from notifications.layers import RedisPubSubLayer, direct
from notifications.progress import Progress, Share
from tests.conftest import point_to
from tests.processes import LAYERS, ROOT
from tests.redis_groups import SERVERS, RedisCluster
from tests.waiting import await_for, scaled

SHARDS = 8


@pytest.fixture(scope="module", params=SERVERS)
def cluster(request):
    """Three primaries and three replicas. Tests that break it say so, and put it in order again."""
    with RedisCluster(server=request.param, steady=True) as cluster:
        yield cluster


@pytest.fixture(autouse=True)
def site(cluster, settings):
    """Point this process's site to the cluster."""
    point_to(settings, cluster.url)
    settings.CHANNEL_LAYERS = {"default": {"BACKEND": LAYERS["ours"], "CONFIG": {"hosts": [cluster.url]}}}
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "SHARDS": SHARDS}


@pytest.fixture
def topics():
    """A topic of each shard, by its number."""
    found = {}
    for number in range(1000):
        topic = Topic("user", number)
        found.setdefault(topic.shard, topic)
    return [found[shard] for shard in range(SHARDS)]


@pytest.fixture(params=["sync", "async"])
def caller(request):
    """Publish as a thread does, and as an event loop does."""
    return publish if request.param == "sync" else lambda *args, **more: asyncio.run(apublish(*args, **more))


def topics_of(shard, amount=20):
    """Return topics of one shard."""
    topics = (Topic("user", f"{shard}-{number}") for number in range(1000))
    return list(islice((topic for topic in topics if topic.shard == shard), amount))


def slot_of(topic):
    return key_slot(f"notifications:{topic.shard}".encode())


def another(cluster, node):
    """Return a primary that is not this one."""
    others = (each for each in cluster.nodes if each is not node)
    return next(each for each in others if cluster.client(each).info("replication")["role"] == "master")


def shard_channels(cluster):
    """Return all channels of sharded pub/sub to which anybody is subscribed."""
    return {name for node in cluster.nodes for name in cluster.client(node).execute_command("PUBSUB", "SHARDCHANNELS")}


def test_messages_go_to_the_nodes_of_their_topics(cluster, topics, caller):
    """Each history is at one primary, together with its shard's marks, and several primaries have some."""
    ids = {topic: caller(topic, {"n": 1}) for topic in topics}

    for topic in topics:
        keys = cluster.client(cluster.node_of(topic.history_key))
        assert keys.xrevrange(topic.history_key)[0][0] == ids[topic]
    assert len({cluster.node_of(topic.history_key).port for topic in topics}) > 1


def test_many_messages_are_divided_among_the_nodes_in_order(topics):
    """Those of one topic keep theirs, and each has the id that it was given."""
    messages = [(topics[number % SHARDS], {"n": number}) for number in range(5 * SHARDS)]

    together = [publish_many(messages), asyncio.run(apublish_many(messages))]

    for ids in together:
        for shard in range(SHARDS):
            own = [tuple(map(int, id_.split("-"))) for id_ in ids[shard::SHARDS]]
            assert own == sorted(set(own))
            assert len(own) == 5


def test_an_idempotency_key_is_remembered_where_its_topic_is(topics, caller):
    """A second call with it publishes nothing, whichever node it is."""
    key = str(time.monotonic())
    first = [caller(topic, {"n": 1}, idempotency_key=key) for topic in topics]

    assert [caller(topic, {"n": 1}, idempotency_key=key) for topic in topics] == first


async def test_positions_of_all_shards_are_read(topics):
    """In both ways, and together."""
    ids = [await apublish(topic, {"n": 1}) for topic in topics]

    assert [str(await aposition(topic)) for topic in topics] == ids
    assert [str(await asyncio.to_thread(position, topic)) for topic in topics] == ids
    assert [str(where.last) for where in await get_store().look(topics)] == ids
    assert len({where.run for where in await get_store().look(topics)}) > 1


def test_a_forked_process_finds_the_nodes_by_itself(topics):
    """What another thread of its parent was about to learn does not come any more."""
    publish(topics[0], {"n": 1})
    nodes.nodes_of(clients.settings.REDIS_URL).learn(0.0, scaled())
    child = os.fork()
    if not child:
        try:
            clients.nodes()._map = nodes.SlotMap([])
            publish(topics[0], {"n": 2})
            os._exit(0)
        except BaseException:
            os._exit(1)

    assert os.waitpid(child, 0)[1] == 0


async def test_what_else_is_kept_of_a_topic_is_where_the_topic_is(topics):
    """Grants that were revoked, requests to cancel, and the shares of a job, in both ways."""
    store = get_store()
    for topic in topics:
        await store.arevoke_grants("7", topic)
        assert store.grants_revoked_at("7", topic) == await store.agrants_revoked_at("7", topic) > 0
        await store.arequest_cancel(topic)
        assert store.cancel_requested(topic)
        store.drop_cancel(topic)
        assert not await store.acancel_requested(topic)
        parts = [Progress(topic, total=2, share=Share(key, of=2)) for key in "ab"]
        for part in parts:
            with part:
                part.advance(2)
        [frame] = (await store.read(topic, None)).frames
        assert b'"succeeded"' in frame.text.encode()


async def test_listeners_report_to_the_node_that_has_their_reports():
    """Their age is by the clock of that node, whichever it is."""
    report = status.new_report("holder")
    client = await clients.async_client()
    await status.write(client, report)

    [(found, age)] = await status.reports(client)
    assert (found.id, 0 <= age < scaled()) == (report.id, True)
    await status.remove(client, report)


async def test_the_account_of_the_documentation_is_enough(cluster, topics, settings):
    """With it every node lets a site do all that it does without."""
    text = (ROOT / "docs/operations.md").read_text().partition("<!-- example: acl cluster -->\n```\n")[2]
    for node in cluster.nodes:
        cluster.client(node).execute_command(*text.partition("\n")[0].split())
        cluster.client(node).acl_log_reset()
    url = cluster.url.replace("://", "://site:another-long-password@")
    point_to(settings, url)
    settings.NOTIFICATIONS = {"REDIS_URL": url, "SHARDS": SHARDS}  # with the kinds of that line
    settings.CHANNEL_LAYERS = {"default": {"BACKEND": LAYERS["ours"], "CONFIG": {"hosts": [url]}}}
    shard = 6
    [topic] = topics_of(shard, 1)
    source = cluster.node_of(slot_of(topic))
    target = another(cluster, source)
    async with joined(cluster, [*topics, topic], url) as (layer, channel, received, _):
        listener = Listener(layer)
        running = asyncio.create_task(listener.run())
        await await_for(lambda: all(shard.machine.leads for shard in listener.shards))
        for each in topics:
            await apublish(each, {"n": 1})
            await asyncio.to_thread(publish, each, {"n": 1}, idempotency_key="x")
            await layer.group_send(each.group, {"type": "x"})
            await asyncio.to_thread(cluster.client(source).publish, each.channel, '{"raw":1}')
        await layer.send(channel, {"type": "x"})
        await asyncio.to_thread(clients.tell, control.channel(), b"x")
        await await_for(lambda: len(received) == 4 * len(topics) + 1)
        await status.living(await clients.async_client())
        await apublish(topic, {"n": 1})
        await asyncio.to_thread(cluster.begin_migration, slot_of(topic), target)
        while await asyncio.to_thread(cluster.move_keys, slot_of(topic), target, limit=100):
            pass
        await apublish(topic, {"n": 2})
        await asyncio.to_thread(publish, topic, {"n": 3})
        await asyncio.to_thread(cluster.finish_migration, slot_of(topic), target)
        listener.stop()
        await running
    refused = [
        (entry["object"], entry["context"])
        for node in cluster.nodes
        for entry in cluster.client(node).acl_log()
        if entry["object"] not in ("client|setinfo", "client")
    ]
    assert refused == []
    await asyncio.to_thread(cluster.migrate_slot, slot_of(topic), source)


async def test_a_message_on_any_node_is_heard_at_any_other(cluster, topics):
    """Classic pub/sub, as raw messages and control messages have it: one connection hears the whole cluster."""
    heard = Counter()
    async with connected(Subscription(lambda channel, data: heard.update([data])), site_pool()) as subscription:
        await confirmed(subscription.subscribe("user:7", control.channel()))
        async with asyncio.timeout(scaled()):  # what other tests have done to nodes may have cut the bus between two
            while len(heard) < len(cluster.nodes):
                for number, node in enumerate(cluster.nodes):
                    await asyncio.to_thread(cluster.client(node).publish, "user:7", f"before {number}")
                await asyncio.sleep(0.1)
        await asyncio.sleep(0.1)
        heard.clear()
        for number, node in enumerate(cluster.nodes):
            await asyncio.to_thread(cluster.client(node).publish, "user:7", f"m{number}")
        await pipeline.atell(control.channel(), b"async")
        await asyncio.to_thread(clients.tell, control.channel(), b"sync")

        wanted = {f"m{number}".encode() for number in range(len(cluster.nodes))} | {b"async", b"sync"}
        await await_for(lambda: wanted <= set(heard))
    assert {heard[each] for each in wanted} == {1}


@asynccontextmanager
async def joined(cluster, topics, url=None):
    """A channel of the layer that is in the groups of all topics, what it has received, and its resyncs."""
    layer = RedisPubSubLayer(hosts=[url or cluster.url])
    received, resyncs = [], []
    try:
        channel = await layer.new_channel()
        layer.on_message(channel, received.append)
        layer.on_resync(channel, lambda: resyncs.append(time.monotonic()))
        for topic in topics:
            await layer.group_add(topic.group, channel)
        yield layer, channel, received, resyncs
    finally:
        await layer.flush()


async def test_scripts_reach_the_groups_by_sharded_pub_sub(cluster, topics):
    """So does ``group_send``; and there are no more connections than primaries."""
    async with joined(cluster, topics) as (layer, channel, received, _):
        assert all(direct(layer, topic.group) for topic in topics)
        for topic in topics:
            await apublish(topic, {"n": 1})
        await await_for(lambda: len(received) == len(topics))
        for topic in topics:
            await layer.group_send(topic.group, {"type": "x"})
        await layer.send(channel, {"type": "y"})
        await await_for(lambda: len(received) == 2 * len(topics) + 1)

        assert 1 < len(layer._here()._connections) <= 3
        assert {layer.direct(topic.group) for topic in topics} <= shard_channels(cluster)
        for topic in topics:
            await layer.group_discard(topic.group, channel)
        await await_for(lambda: not shard_channels(cluster))


async def test_without_sharded_pub_sub_groups_have_classic_channels(cluster, topics, monkeypatch):
    """As on a cluster of Redis 6."""
    monkeypatch.setattr(nodes, "SHARDED_SINCE", (99, 0))
    nodes.nodes_of.cache_clear()
    clients.nodes.cache_clear()
    async with joined(cluster, topics) as (layer, _, received, _):
        for topic in topics:
            await apublish(topic, {"n": 1})
            await layer.group_send(topic.group, {"type": "x"})

        await await_for(lambda: len(received) == 2 * len(topics))
        await await_for(lambda: not shard_channels(cluster))  # those of other tests may only just have ended


def test_a_layer_elsewhere_is_not_reached_by_scripts(cluster, settings):
    """Then a listener forwards: another cluster, another account, one server."""
    group = Topic("user", 1).group
    host, port = cluster.nodes[0].url.removeprefix("redis://").split("/")[0].split(":")

    assert direct(RedisPubSubLayer(hosts=[f"redis+cluster://{host}:{port}"]), group)
    assert direct(RedisPubSubLayer(hosts=[f"redis+cluster://{host}:1"]), group) is None
    assert direct(RedisPubSubLayer(hosts=[f"redis+cluster://other:x@{host}:{port}"]), group) is None
    assert direct(RedisPubSubLayer(hosts=[f"redis://{host}:{port}"]), group) is None


async def test_a_slot_that_moves_under_load_loses_nothing(cluster, monkeypatch):
    """Its keys go one by one, which nodes answer with ASK or TRYAGAIN; each message arrives once, in order."""
    for module in (calling, clients, connecting):  # on a busy machine they take longer than a call may
        monkeypatch.setattr(module, "SOCKET_TIMEOUT", scaled(5))
    shard = 3
    topics = topics_of(shard)
    source = cluster.node_of(slot_of(topics[0]))
    target = another(cluster, source)
    seen, failed = Counter(), []
    async with joined(cluster, topics) as (_, _, _, resyncs):
        redirection = _count_redirections(seen)
        stop, sent = threading.Event(), {topic: [] for topic in topics}

        def load():
            number = 0
            while not stop.is_set():
                topic = topics[number % len(topics)]
                try:
                    sent[topic].append(publish(topic, {"n": number}))
                except PublishError as error:
                    failed.append(error)
                number += 1

        with redirection:
            thread = threading.Thread(target=load)
            thread.start()
            try:
                await await_for(lambda: all(map(len, sent.values())))
                await asyncio.to_thread(cluster.migrate_slot, slot_of(topics[0]), target, slowly=0.02)
                count = sum(map(len, sent.values()))
                await await_for(lambda: sum(map(len, sent.values())) > count + 50)
            finally:
                stop.set()
                await asyncio.to_thread(thread.join)

        assert failed == []
        # Then the map may be learnt from the channel layer, which is told of the move, before a call is redirected.
        assert seen["TRY_AGAIN"] or seen["ASK"] or seen["MOVED"]
        await await_for(lambda: resyncs)
    for topic, ids in sent.items():
        pairs = [tuple(map(int, id_.split("-"))) for id_ in ids]
        assert pairs == sorted(set(pairs))
        assert [id_ for id_, _ in cluster.client(target).xrange(topic.history_key)] == ids[-100:]
    await asyncio.to_thread(cluster.migrate_slot, slot_of(topics[0]), source)


def _count_redirections(seen):
    from notifications.broker import routing

    monkeypatch = pytest.MonkeyPatch()
    original = routing.redirection

    def redirection(error, asked):
        told = original(error, asked)
        if told is not None:
            seen[told.verdict.name] += 1
        return told

    monkeypatch.setattr(routing, "redirection", redirection)

    class Undo:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            monkeypatch.undo()

    return Undo()


async def test_what_is_published_while_a_slot_is_taken_over_reaches_a_listener(cluster):
    """The node that has its keys has none of the subscribers: a script there leaves the message to a listener."""
    [topic] = topics_of(5, 1)
    source = cluster.node_of(slot_of(topic))
    target = another(cluster, source)
    stamped = f"{{notifications:{topic.shard}}}:stamped"
    heard = []
    async with joined(cluster, [topic]) as (_, _, received, _):
        await apublish(topic, {"n": 0})
        await await_for(lambda: len(received) == 1)
        async with connected(Subscription(lambda _, data: heard.append(data)), site_pool()) as subscription:
            await confirmed(subscription.subscribe(stamped))
            cluster.begin_migration(slot_of(topic), target)
            while cluster.move_keys(slot_of(topic), target, limit=100):
                pass
            ids = [await apublish(topic, {"n": 1}), await asyncio.to_thread(publish, topic, {"n": 2})]
            ids += await asyncio.to_thread(publish_many, [(topic, {"n": 3})])
            ids += await apublish_many([(topic, {"n": 4})])
            await asyncio.to_thread(cluster.finish_migration, slot_of(topic), target)
            await await_for(lambda: len(heard) == 4)
        assert [data.split(b" ")[1].decode() for data in heard] == ids
    await asyncio.to_thread(cluster.migrate_slot, slot_of(topic), source)


@pytest.fixture
def failing(cluster):
    """Have the nodes notice soon that one fails."""
    with cluster.failing():
        yield


@pytest.fixture
def partly_covered(cluster):
    """Let the nodes go on while slots are nobody's: by default they refuse everything once they have noticed."""

    def require(word):
        for node in cluster.nodes:
            cluster.client(node).config_set("cluster-require-full-coverage", word)

    require("no")
    yield
    require("yes")


@pytest.mark.usefixtures("failing", "partly_covered")
async def test_a_dead_primary_fails_only_its_own_topics_until_its_replica_is_promoted(cluster, topics):
    """The others go on; what publishing answered is in the history, and the layer says where there was a gap."""
    for topic in topics:
        await apublish(topic, {"n": 0})
    dead = cluster.node_of(topics[0].history_key)
    his = [topic for topic in topics if cluster.node_of(topic.history_key) is dead]
    others = [topic for topic in topics if topic not in his]
    replica = cluster.client(cluster.replica_of(dead))
    async with joined(cluster, topics) as (layer, _, received, resyncs):
        replica.config_set("cluster-replica-no-failover", "yes")  # before all that is to fail has failed
        cluster.kill(dead)

        began = time.monotonic()
        ids = await asyncio.gather(
            *(get_store().look([topic]) for topic in others), *(apublish(topic, {"n": 1}) for topic in others)
        )
        assert len(ids) == 2 * len(others)
        assert time.monotonic() - began < scaled(2)
        looked = [asyncio.create_task(Looks().ask(topic)) for topic in others]
        await asyncio.wait_for(asyncio.gather(*looked), scaled(2))
        with pytest.raises(PublishError) as raised:
            await asyncio.to_thread(publish_many, [(topic, {"n": 2}) for topic in topics])
        assert len(raised.value.missing) == len(his)

        replica.config_set("cluster-replica-no-failover", "no")
        promoted = await asyncio.to_thread(cluster.wait_for_promotion, dead)
        await await_for(lambda: _works(his[0]), what="the topics of the dead primary are published on")
        assert time.monotonic() - promoted < scaled(5)
        await await_for(lambda: resyncs)
        await await_for(lambda: all(feed.subscription is not None for feed in layer._here()._feeds.values()))
        for topic in topics:
            await apublish(topic, {"n": 3})
        # Of what was published before, it may still hear something.
        await await_for(lambda: sum('"n":3' in message["text"] for message in received) == len(topics))
    cluster.start(dead)
    await asyncio.to_thread(cluster.wait_until_ok)


def _works(topic):
    try:
        publish(topic, {"n": "again"})
    except PublishError:
        return False
    return True


@pytest.mark.usefixtures("failing")
async def test_a_paused_primary_is_left_by_whoever_was_connected_to_it(cluster, topics):
    """Watched connections find another node, and calls find the promoted one."""
    paused = cluster.node_of(topics[0].history_key)
    heard = []
    async with joined(cluster, topics) as (_, _, _, resyncs):
        cluster.pause(paused)
        try:
            await asyncio.to_thread(cluster.wait_for_promotion, paused)
            await await_for(lambda: _works(topics[0]), 20)
            await await_for(lambda: resyncs, 20)
            async with connected(Subscription(lambda _, data: heard.append(data)), site_pool()) as subscription:
                await confirmed(subscription.subscribe("user:1"))
        finally:
            cluster.resume(paused)
    await asyncio.to_thread(cluster.wait_until_ok)


async def test_a_node_that_becomes_the_primary_again_begins_a_new_epoch(topics, settings, request):
    """What it gave out in its first time may not have reached its replica, so it must not count on from there."""
    # A cluster of its own: after other faults a node may go on to fail over by itself.
    with RedisCluster(server=request.node.callspec.params["cluster"], steady=True) as cluster:
        settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "REDIS_URL": cluster.url}
        topic, other = topics_of(topics[0].shard, 2)
        first = cluster.node_of(topic.history_key)
        ids = [await apublish(topic, {"n": 1}), await asyncio.to_thread(publish, topic, {"n": 2})]
        for node in (first, cluster.replica_of(first)):
            await asyncio.to_thread(cluster.failover, node)
            await asyncio.to_thread(cluster.wait_until_ok)
            # A node that was just asked to give way may keep its clients waiting for longer than a call may take.
            with suppress(PublishError):
                await apublish(other, {"n": 1})
            await await_for(lambda: _works(other))
            await apublish(other, {"n": 2})
        assert cluster.node_of(topic.history_key) is first
        await asyncio.sleep(clients.IDLE + 0.1)  # no two failovers are closer together than connections are looked at
        ids += [await apublish(topic, {"n": 3}), await asyncio.to_thread(publish, topic, {"n": 4})]

        epochs = [id_.partition("-")[0] for id_ in ids]
        assert epochs[0] == epochs[1] < epochs[2] == epochs[3]


async def _until_rung(bell, rung):
    while not await rung:
        rung = asyncio.create_task(bell.rung())


async def test_a_bell_finds_the_stream_that_has_moved(cluster):
    """It waits at the node that has the stream, is told that this is another one, and the next one waits there."""
    stream, shard = "{notifications:2}:bell", 2
    source = cluster.node_of(stream)
    target = another(cluster, source)
    async with connected(Bell(stream), site_pool(stream)) as bell:
        rung = asyncio.create_task(bell.rung())
        await asyncio.to_thread(cluster.migrate_slot, key_slot(f"notifications:{shard}".encode()), target)
        with pytest.raises(redis.ResponseError, match="MOVED"):
            await _until_rung(bell, rung)
    async with connected(Bell(stream), site_pool(stream)) as bell:
        rung = asyncio.create_task(bell.rung())
        await asyncio.to_thread(cluster.client(target).xadd, stream, {"a": "b"})
        assert await rung or await bell.rung()
    await asyncio.to_thread(cluster.migrate_slot, key_slot(f"notifications:{shard}".encode()), source)


@pytest.mark.parametrize("steps", [1, 3, 6])
async def test_a_blocked_event_loop_takes_no_time_from_the_nodes(topics, steps):
    """Also before anything is known of the cluster: that is asked for, and then the node, in a second together."""
    clients.breaker.worked()
    publishing = asyncio.create_task(apublish(topics[0], {"n": 1}))
    for _ in range(steps):
        await asyncio.sleep(0)
    time.sleep(clients.SOCKET_TIMEOUT + 0.1)  # noqa: ASYNC251  this is the fault

    assert await publishing
