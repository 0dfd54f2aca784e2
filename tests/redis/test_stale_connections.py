"""Connections that died without a word: no message is lost with one, none is sent twice, and nobody else waits."""

import asyncio
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis

from notifications import PublishError, Topic, adisconnect_user, apublish, disconnect_user, publish
from notifications.bridge.lease import Lease
from notifications.broker import clients, connecting, pipeline, wire
from notifications.broker.clients import IDLE, PROOF, SOCKET_TIMEOUT, breaker
from notifications.broker.wire import HANDSHAKE_TIMEOUT, Subscription, site_pool
from notifications.history import get_store
from notifications.history.redis import READ_TIMEOUT
from notifications.history.stamped import ACKNOWLEDGED, STAMPED
from notifications.history.store import Raw
from notifications.layers import RedisPubSubLayer
from notifications.topics import internal_name
from project.local_redis import LocalRedis
from tests.conftest import point_to
from tests.faults import Proxy, paused
from tests.waiting import await_for, scaled, wait_for

TOPIC = Topic.for_user(1)
SECOND = 3.0
"""Seconds that "within the same second" may take on a machine that is busy, before scaling."""


@pytest.fixture
def server(redis_program):
    with LocalRedis() as server:
        yield server


@pytest.fixture
def proxy(server, settings):
    with Proxy(server.port) as proxy:
        point_to(settings, proxy.url)
        breaker.worked()
        yield proxy
        breaker.worked()


@pytest.fixture(autouse=True)
def _patience(request, monkeypatch):
    """Give a busy machine more than the second of the code, except where that is what is shown."""
    if "in_use" in request.node.name or "patience" in request.node.name or "retired" in request.node.name:
        return
    for module in (connecting, clients):
        monkeypatch.setattr(module, "SOCKET_TIMEOUT", scaled(5))
    monkeypatch.setattr(connecting, "CONNECT_TIMEOUT", scaled(3))
    monkeypatch.setattr(pipeline.arun, "__defaults__", (scaled(5),))


@pytest.fixture
def never_idle(monkeypatch):
    """Let a connection that was used just now not be idle, on however busy a machine: it is not proven first."""
    for module in (clients, wire):
        monkeypatch.setattr(module, "IDLE", scaled(60))


@pytest.fixture
def redis_itself(server):
    with redis.Redis.from_url(server.url) as client:
        yield client


@pytest.fixture(params=["sync", "async"])
def send(request):
    """Return a function that publishes, from a thread or from an event loop that lives on."""
    if request.param == "sync":
        yield lambda n, **options: publish(TOPIC, {"n": n}, **options)
        return
    with asyncio.Runner() as runner:
        yield lambda n, **options: runner.run(apublish(TOPIC, {"n": n}, **options))


def published(client):
    return [int(entry[b"f"].rpartition(b'"n":')[2].rstrip(b"}")) for entry in entries(client)]


def entries(client):
    found = client.xrange(TOPIC.history_key)
    return [{b"f": fields[next(name for name in fields if b'"n":' in fields[name])]} for _, fields in found]


def told(watched):
    """Yield what was published, up to "end"."""
    while (data := wait_for(watched.get_message)["data"]) != b"end":
        yield data


@pytest.mark.parametrize("reset", [True, False], ids=["reset", "silence"])
def test_the_first_publish_after_an_idle_time_arrives(proxy, redis_itself, send, reset):
    """A router has forgotten the connection: it is replaced before it carries the message, within the same second."""
    send(1)
    time.sleep(IDLE * 1.2)
    proxy.forget(reset=reset)

    began = time.monotonic()
    send(2)

    assert time.monotonic() - began < scaled(SECOND)
    assert published(redis_itself) == [1, 2]
    assert breaker.remaining() == 0


@pytest.mark.parametrize("reset", [True, False], ids=["reset", "silence"])
def test_a_router_that_forgets_soon_loses_nothing(proxy, redis_itself, send, reset):
    """However often. A busy machine may stop for a second between a look at a connection and its use."""
    soon = IDLE + scaled(1)
    proxy.forget(reset=reset, after=soon)
    for n in range(3):
        send(n)
        time.sleep(soon + 0.2)

    assert published(redis_itself) == [0, 1, 2]


@pytest.mark.parametrize("reset", [True, False], ids=["reset", "silence"])
def test_all_connections_of_a_pool_may_be_stale(proxy, redis_itself, reset):
    """Each of them is proven before it carries something."""
    together = threading.Barrier(8)

    def work(n):
        together.wait(scaled())
        publish(TOPIC, {"n": n})

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(8)))
        time.sleep(IDLE * 1.2)
        proxy.forget(reset=reset)
        list(threads.map(work, range(8, 16)))

    assert sorted(published(redis_itself)) == list(range(16))
    assert breaker.remaining() == 0


@pytest.mark.usefixtures("never_idle")
def test_a_connection_that_dies_in_use_costs_its_own_message_only(proxy, redis_itself, send, monkeypatch):
    """Nobody knows whether that was done, so it is an error; the next one goes at once, and Redis is not blamed."""
    monkeypatch.setattr(clients, "PROOF", scaled(2))  # on a busy machine it takes longer to find that Redis lives
    send(1)
    proxy.forget(reset=False)

    with pytest.raises(PublishError):
        send(2)
    assert breaker.remaining() == 0
    began = time.monotonic()
    send(3)

    assert time.monotonic() - began < scaled(SECOND / 2)
    assert published(redis_itself) == [1, 3]


@pytest.mark.usefixtures("never_idle")
def test_what_may_have_been_done_is_not_sent_again(proxy, redis_itself, send):
    """Redis took the message, and the answer was lost with the connection: once it is, and an error."""
    send(1)
    proxy.lose_the_next_answer()

    with pytest.raises(PublishError):
        send(2)

    assert published(redis_itself) == [1, 2]
    send(3)
    assert published(redis_itself) == [1, 2, 3]


@pytest.mark.usefixtures("never_idle")
def test_with_an_idempotency_key_it_is_sent_again(proxy, redis_itself, send):
    """The script knows it then: it is there once, and the caller gets its id."""
    send(1)
    proxy.lose_the_next_answer()

    id_ = send(2, idempotency_key="two")

    assert published(redis_itself) == [1, 2]
    assert send(2, idempotency_key="two") == id_
    assert published(redis_itself) == [1, 2]


@pytest.mark.usefixtures("never_idle")
async def test_a_batch_whose_answer_is_lost_is_not_sent_again_within_the_call(proxy, redis_itself):
    """A full Redis cannot note its number: the listener first looks at what has come back."""
    lease = Lease()
    assert await lease.take()
    watched = redis_itself.pubsub(ignore_subscribe_messages=True)
    watched.subscribe(internal_name(STAMPED))
    wait_for(lambda: redis_itself.pubsub_numsub(internal_name(STAMPED))[0][1])
    redis_itself.config_set("maxmemory", 1)
    await get_store().stamp_batch(lease.key, lease.token, 1, [Raw(TOPIC, b',"n":1}')])
    proxy.lose_the_next_answer()

    with pytest.raises(ConnectionError):
        await get_store().stamp_batch(lease.key, lease.token, 2, [Raw(TOPIC, b',"n":2}')])

    redis_itself.publish(internal_name(STAMPED), "end")
    forwarded = [data for data in told(watched) if not data.startswith(ACKNOWLEDGED)]
    assert forwarded == [b'u6 - - user:1{"n":1}', b'u6 - - user:1{"n":2}']


def test_a_server_that_is_not_the_primary_any_more_is_left_within_the_call(server, redis_program, settings, send):
    """It refused, so nothing was done: the message goes to the server that the address leads to now."""
    with LocalRedis() as other, Proxy(server.port) as proxy, redis.Redis.from_url(server.url) as old:
        point_to(settings, proxy.url)
        send(1)
        old.replicaof("127.0.0.1", other.port)
        proxy.lead_to(other.port)

        send(2)

        with redis.Redis.from_url(other.url) as new:
            assert published(new)[-1] == 2
        old.replicaof("NO", "ONE")


@pytest.mark.parametrize("reset", [True, False], ids=["reset", "silence"])
async def test_the_first_message_of_a_layer_after_an_idle_time_arrives(proxy, server, reset):
    """A channel layer loses what it sends on a dead connection; so it looks first."""
    sender, receiver = RedisPubSubLayer(hosts=[proxy.url]), RedisPubSubLayer(hosts=[server.url])
    channel = await receiver.new_channel()
    await receiver.group_add("group", channel)
    await sender.group_send("group", {"type": "x", "n": 1})
    await asyncio.sleep(IDLE * 1.2)
    await asyncio.to_thread(proxy.forget, reset=reset)

    await sender.group_send("group", {"type": "x", "n": 2})

    async with asyncio.timeout(scaled()):
        assert [(await receiver.receive(channel))["n"] for _ in range(2)] == [1, 2]
    await sender.flush()
    await receiver.flush()


@pytest.mark.parametrize("reset", [True, False], ids=["reset", "silence"])
async def test_access_that_ends_is_told_after_an_idle_time(proxy, server, settings, reset):
    told = asyncio.Queue()
    point_to(settings, server.url)
    subscription = Subscription(lambda _channel, data: told.put_nowait(data))
    await subscription.connect(site_pool())
    await asyncio.gather(*subscription.subscribe("notifications:control"))
    point_to(settings, proxy.url)
    await asyncio.to_thread(disconnect_user, 1)
    await adisconnect_user(1)
    await asyncio.sleep(IDLE * 1.2)
    await asyncio.to_thread(proxy.forget, reset=reset)

    await asyncio.to_thread(disconnect_user, 1)
    await adisconnect_user(1)

    async with asyncio.timeout(scaled()):
        assert [type(await told.get()) for _ in range(4)] == [bytes] * 4
    subscription.close()


async def test_reads_on_a_connection_that_died_are_asked_again_on_a_new_one(proxy, redis_itself):
    """A read may be asked twice: whoever waits for it gets it in time."""
    await apublish(TOPIC, {"n": 1})
    await asyncio.to_thread(proxy.forget, reset=False)

    async with asyncio.timeout(scaled(2 * READ_TIMEOUT)):  # after one of these it would raise by itself
        [where] = await get_store().look([TOPIC])

    assert where.last is not None


async def test_a_publish_out_of_time_leaves_reads_their_patience(server, settings):
    """A Redis that stalls for longer than a publish waits answers the reads under way, which wait for longer."""
    point_to(settings, server.url)
    await get_store().look([TOPIC])
    with paused(server.child):
        reads = [asyncio.create_task(get_store().look([TOPIC])) for _ in range(20)]
        publishes = [asyncio.create_task(apublish(TOPIC, {"n": n})) for n in range(5)]
        refused = await asyncio.gather(*publishes, return_exceptions=True)
        assert [type(each) for each in refused] == [PublishError] * 5
        assert not any(read.done() for read in reads)

    async with asyncio.timeout(scaled()):
        assert len(await asyncio.gather(*reads)) == 20
    breaker.worked()


async def test_retired_connections_end(server, settings):
    """What was replaced during a stall is closed when it has answered what was asked of it."""
    point_to(settings, server.url)
    with redis.Redis.from_url(server.url) as client:
        for _ in range(3):
            await get_store().look([TOPIC])
            with paused(server.child):
                read = asyncio.create_task(get_store().look([TOPIC]))
                with pytest.raises(PublishError):
                    await apublish(TOPIC, {"n": 1})
            breaker.worked()
            await read
        await get_store().look([TOPIC])
        await await_for(lambda: len(client.client_list()) == 2, what="one connection of ours, and this one")


@pytest.mark.parametrize("answer", ["refusal", "unknown script"])
def test_a_proof_that_took_long_leaves_whoever_is_next_all_of_their_time(server, settings, monkeypatch, answer):
    """What is left of a second after a slow proof is the limit of one call, whatever Redis answers to that."""
    point_to(settings, server.url)
    publish(TOPIC, {"n": 1})
    prove = clients._prove
    with monkeypatch.context() as slow, redis.Redis.from_url(server.url) as client:
        slow.setattr(clients, "IDLE", 0.0)
        slow.setattr(clients, "_prove", lambda connection, until: prove(connection, until - scaled(1)))
        if answer == "refusal":
            with pytest.raises(redis.ResponseError):
                clients.call("NO", "SUCH", "COMMAND")
        else:
            client.script_flush()
            slow.setattr(clients, "IDLE", IDLE)
            monkeypatch.setattr(clients, "_doubted", time.monotonic())
            publish(TOPIC, {"n": 2})

    pooled = clients._pool().get_connection()
    limit = pooled._sock.gettimeout()
    clients._pool().release(pooled)
    assert limit == clients.SOCKET_TIMEOUT


async def test_the_kernel_asks_idle_peers(server, settings):
    """On every connection: synchronous, asynchronous, pipelined, of the layer and of subscriptions."""
    point_to(settings, server.url)
    layer = RedisPubSubLayer(hosts=[server.url])
    await layer.group_add("group", await layer.new_channel())
    await layer.group_send("group", {"type": "x"})
    await asyncio.to_thread(publish, TOPIC, {"n": 1})
    await apublish(TOPIC, {"n": 2})
    client = await clients.async_client()
    await client.ping()
    here = layer._here()
    pooled = clients._pool().get_connection()
    free = await client.connection_pool.get_connection()

    sockets = [
        pooled._sock,
        free._writer.get_extra_info("socket"),
        (await pipeline._line().caller())._transport.get_extra_info("socket"),
        here._publisher._transport.get_extra_info("socket"),
        here._feed.subscription._transport.get_extra_info("socket"),
    ]

    assert [each.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) for each in sockets] == [1] * 5
    if hasattr(socket, "TCP_KEEPIDLE"):
        assert [each.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) for each in sockets] == [15] * 5
    clients._pool().release(pooled)
    await client.connection_pool.release(free)
    await layer.flush()


@pytest.mark.parametrize(
    ("step", "times"),
    [*((step, 1) for step in (1, 2, 3, 4, 12, 14, 16, 18)), (2, 3), ("calling", 1)],
)
async def test_what_redis_answered_while_the_event_loop_was_blocked_counts(server, settings, monkeypatch, step, times):
    """
    Redis is well, and a site's code blocks the loop for longer than any time-out, in whichever step of connecting.

    The message is published once, and the next caller is not refused.
    """
    point_to(settings, server.url)
    breaker.worked()
    monkeypatch.setattr(pipeline.arun, "__defaults__", (SOCKET_TIMEOUT,))
    if step == "calling":
        await apublish(TOPIC, {"n": 0})
        step = 1

    publishing = asyncio.create_task(apublish(TOPIC, {"n": 1}))
    for _ in range(step):
        await asyncio.sleep(0)
    for _ in range(times):
        time.sleep(HANDSHAKE_TIMEOUT + 0.1)  # noqa: ASYNC251  this is the fault
        await asyncio.sleep(0.01)
    await publishing

    assert breaker.remaining() == 0
    with redis.Redis.from_url(server.url) as client:
        assert published(client)[-1:] == [1]


async def test_a_blocked_event_loop_costs_the_channel_layer_no_connection(server):
    """A connection that was idle is probed, and Redis answers while the loop is blocked."""
    layer = RedisPubSubLayer(hosts=[server.url])
    await layer.group_send("group", {"type": "x"})
    with redis.Redis.from_url(server.url) as client:
        before = {each["id"] for each in client.client_list()}
        await asyncio.sleep(IDLE * 1.2)

        sending = asyncio.create_task(layer.group_send("group", {"type": "x"}))
        await asyncio.sleep(0)
        time.sleep(PROOF + 0.1)  # noqa: ASYNC251  this is the fault
        await sending

        assert {each["id"] for each in client.client_list()} == before
    await layer.flush()
