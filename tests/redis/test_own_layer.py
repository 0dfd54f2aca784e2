"""What our channel layer promises beyond the specification: confirmed joins, gaps that are told, bounds, many loops."""

import asyncio
import gc
import logging
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager

import msgspec
import psutil
import pytest
import redis
from asgiref.sync import async_to_sync
from django.core.exceptions import ImproperlyConfigured

from notifications import tasks
from notifications.broker import clients, wire
from notifications.channel_layer import queue
from notifications.delivery.subscriber import Delivery, subscribed
from notifications.layers import RedisPubSubLayer
from notifications.metrics import counts
from notifications.topics import Topic
from project.local_redis import LocalRedis
from tests.faults import Proxy, kill_connections, kill_type, layers_connections, paused, redis_down
from tests.redis.test_layers import make_layer
from tests.waiting import await_for, scaled, wait_for

encode = msgspec.msgpack.encode


@asynccontextmanager
async def opened(*hosts, **config):
    """Open a layer, and flush it."""
    layer = RedisPubSubLayer(hosts=list(hosts), **config)
    try:
        yield layer
    finally:
        await layer.flush()


@pytest.fixture
async def layer(live_redis, redis_server):
    async with opened(redis_server.url) as layer:
        yield layer


@pytest.fixture
def breakable(redis_program):
    """Return a Redis of the test's own."""
    with LocalRedis() as server:
        yield server


@contextmanager
def client_of(server):
    with redis.Redis.from_url(server.url) as client:
        yield client


@pytest.fixture
def hasty(monkeypatch):
    """Make the watchdog five times as quick as it is: 1 s of silence."""
    monkeypatch.setattr(wire, "PING_INTERVAL", scaled(0.2))
    monkeypatch.setattr(wire, "MAX_SILENCE", scaled(1))


async def take(layer, channel):
    async with asyncio.timeout(scaled()):
        return await layer.receive(channel)


async def take_numbers(layer, channel, number):
    return [(await take(layer, channel))["n"] for _ in range(number)]


# Joining.


@pytest.fixture
async def load(layer):
    """Keep the layer and Redis busy: 20 consumers, messages without end, somebody who comes and goes."""
    channels = [await layer.new_channel() for _ in range(20)]
    for channel in channels:
        await layer.group_add("load", channel)

    async def consume(channel):
        while True:
            await layer.receive(channel)

    async def produce():
        while True:
            for _ in range(20):
                await layer.group_send("load", {"type": "load", "text": "x" * 500})
            await asyncio.sleep(0)

    async def come_and_go():
        while True:
            channel = await layer.new_channel()
            await layer.group_add("coming and going".replace(" ", "."), channel)
            await layer.group_discard("coming.and.going", channel)

    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(job) for job in (produce(), come_and_go(), *map(consume, channels))]
        yield
        for task in running:
            task.cancel()


@pytest.mark.slow
async def test_what_is_published_after_group_add_arrives(layer, live_redis, load):
    """``group_add`` returns when Redis has confirmed: what another connection says right after it is not missed."""
    channel = await layer.new_channel()
    for n in range(500):
        await layer.group_add(f"group{n}", channel)
        assert live_redis.publish(f"asgi/group/group{n}", encode({"type": "x", "n": n})) == 1
        assert await take(layer, channel) == {"type": "x", "n": n}
        await layer.group_discard(f"group{n}", channel)


@pytest.mark.slow
async def test_who_shares_a_subscription_that_is_under_way_waits_for_it_as_well(layer, live_redis, load):
    """Of two that join a group at once the second also returns only when Redis has confirmed."""
    first, second = await layer.new_channel(), await layer.new_channel()
    for n in range(500):
        joining = asyncio.create_task(layer.group_add(f"group{n}", first))
        await asyncio.sleep(0)
        await layer.group_add(f"group{n}", second)
        assert live_redis.publish(f"asgi/group/group{n}", encode({"type": "x", "n": n})) == 1
        assert await take(layer, second) == {"type": "x", "n": n}
        await joining
        for channel in (first, second):
            await layer.group_discard(f"group{n}", channel)


async def test_what_is_sent_to_a_new_channel_at_once_arrives(redis_server, live_redis):
    """``new_channel`` returns when the channel can be sent to, also the first of an event loop, from anywhere."""
    for _ in range(20):
        async with opened(redis_server.url) as layer, opened(redis_server.url) as elsewhere:
            await elsewhere.group_send("nobody", {"type": "x"})  # it is connected
            channel = await layer.new_channel()
            await elsewhere.send(channel, {"type": "x"})
            assert await take(layer, channel) == {"type": "x"}


async def test_a_channel_of_another_process_cannot_be_used_here(layer, redis_server):
    """To receive on it, or to add it to a group, would wait for ever for nothing: an error says so."""
    async with opened(redis_server.url) as elsewhere:
        channel = await elsewhere.new_channel()

        with pytest.raises(RuntimeError):
            await layer.receive(channel)
        with pytest.raises(RuntimeError):
            await layer.group_add("group", channel)


@pytest.mark.parametrize("kill", [False, True], ids=["undisturbed", "connection killed"])
@pytest.mark.parametrize("seed", range(3))
async def test_members_and_subscriptions_agree_whatever_happens_at_once(layer, redis_server, live_redis, seed, kill):
    """After tasks join and leave at random, every member receives, and every subscription has a member."""
    choice = random.Random(seed)
    channels = [await layer.new_channel() for _ in range(8)]
    groups = [f"g{n}" for n in range(5)]
    model = set()

    async def wander(channel, seed):
        own = random.Random(seed)
        for _ in range(150):
            group = own.choice(groups)
            if own.random() < 0.5:
                model.add((group, channel))
                await layer.group_add(group, channel)
            else:
                model.discard((group, channel))
                await layer.group_discard(group, channel)
            if own.random() < 0.3:
                await asyncio.sleep(0)

    async with asyncio.TaskGroup() as tasks:
        for channel in channels:
            tasks.create_task(wander(channel, choice.random()))
        for _ in range(4 if kill else 0):
            await asyncio.sleep(0.02)
            kill_type(live_redis, "pubsub")

    with_members = {f"asgi/group/{group}".encode() for group, _ in model}
    await await_for(lambda: {c for c in live_redis.pubsub_channels() if b"/group/" in c} == with_members)
    for group in groups:
        await layer.group_send(group, {"type": group})
    for channel in channels:
        await layer.send(channel, {"type": "end"})
    for channel in channels:
        got = []
        while (message := await take(layer, channel))["type"] != "end":
            got.append(message["type"])
        assert got == [group for group in groups if (group, channel) in model]


async def test_a_join_that_was_cancelled_or_failed_leaves_nothing(layer, live_redis):
    """Who gives up joining is no member, and Redis forgets the subscription."""
    channel = await layer.new_channel()
    for n in range(100):
        joining = asyncio.create_task(layer.group_add(f"g{n}", channel))
        for _ in range(n % 4):
            await asyncio.sleep(0)
        joining.cancel()
        await asyncio.wait([joining])
        if not joining.cancelled():
            await layer.group_discard(f"g{n}", channel)

    await layer.group_add("last", channel)
    await await_for(lambda: [c for c in live_redis.pubsub_channels() if b"/group/" in c] == [b"asgi/group/last"])


# The connection that reads.


@contextmanager
def restarted(server):
    with redis_down(server):
        yield


@contextmanager
def killed(server):
    with client_of(server) as client:
        assert kill_connections(client, layers_connections(client)) == 1
    yield


@contextmanager
def hung(server):
    with paused(server.child):
        yield


@pytest.mark.parametrize("fault", [restarted, killed])
async def test_after_a_gap_everything_is_subscribed_again_and_told_once(breakable, hasty, caplog, fault):
    """Whatever ended the connection: a warning is logged, each consumer is told once and hears all its groups again."""
    async with opened(breakable.url) as layer, opened(breakable.url) as sender:
        told = await join_and_count(layer)

        with fault(breakable):
            await await_for(lambda: "the channel layer is not connected" in caplog.text)

        await everything_is_heard_again(layer, sender, told)


async def test_a_layer_whose_tasks_are_cancelled_goes_on(breakable, monkeypatch, caplog):
    """By whoever it was, such as code that cancels all tasks it finds: consumers hear all their groups again."""
    monkeypatch.setattr(tasks, "RESTART_DELAY", 0.01)
    async with opened(breakable.url) as sender, opened(breakable.url) as layer:
        before = asyncio.all_tasks()
        told = await join_and_count(layer)
        await layer.group_send("group", {"type": "x"})
        for task in asyncio.all_tasks() - before:
            task.cancel()

        await everything_is_heard_again(layer, sender, told)
        assert "a task that others depend on ended (channel layer)" in caplog.text


async def test_a_connection_that_has_silently_died_is_replaced(breakable, hasty, caplog):
    """Behind a router that forgot the connection nothing ends it but our watchdog."""
    with Proxy(breakable.port) as proxy:
        async with opened(proxy.url) as layer, opened(breakable.url) as sender:
            told = await join_and_count(layer)

            with proxy.half_open():
                await await_for(lambda: "nothing heard for" in caplog.text)

                await everything_is_heard_again(layer, sender, told)


async def join_and_count(layer):
    """Let 10 channels join 50 groups each, and count how often each channel is told of a gap."""
    told = {}
    for _ in range(10):
        channel = await layer.new_channel()
        told[channel] = 0

        def count(channel=channel):
            told[channel] += 1

        layer.on_resync(channel, count)
        for n in range(50):
            await layer.group_add(f"g{n}", channel)
    return told


async def everything_is_heard_again(layer, sender, told):
    await await_for(lambda: all(told.values()))
    for n in range(50):
        await send_until_taken(sender, f"g{n}", {"type": "x", "n": n})
    for channel in told:
        assert await take_numbers(layer, channel, 50) == list(range(50))
    await send_until_taken(layer, "g0", {"type": "x", "n": 50})  # its own publishing works too
    for channel in told:
        assert await take_numbers(layer, channel, 1) == [50]
    assert set(told.values()) == {1}


async def send_until_taken(layer, group, message):
    """Send, and again while Redis is not there: an error says that nothing was sent."""
    async with asyncio.timeout(scaled()):
        while True:
            try:
                return await layer.group_send(group, message)
            except TimeoutError:
                continue


async def sleep_too_long(layer, caplog):
    channel = await layer.new_channel()
    told = []
    layer.on_resync(channel, lambda: told.append(1))

    time.sleep(scaled(1.5))  # noqa: ASYNC251  that is the case
    await asyncio.sleep(scaled(0.5))  # two pings

    assert (told, caplog.text) == ([], "")


async def test_a_join_during_a_gap_waits_for_the_end_of_the_gap(breakable):
    """``group_add`` while Redis is away returns when it is back, and then misses nothing."""
    async with opened(breakable.url) as layer:
        channel = await layer.new_channel()
        with redis_down(breakable):
            joining = asyncio.create_task(layer.group_add("group", channel))
            await asyncio.sleep(0.05)
            assert not joining.done()
        await joining
        with client_of(breakable) as client:
            assert client.publish("asgi/group/group", encode({"type": "x"})) == 1
        assert await take(layer, channel) == {"type": "x"}


async def test_who_leaves_before_a_join_is_confirmed_is_not_subscribed(breakable):
    """A join that was given up while Redis was away leaves no subscription without a member when it is back."""
    async with opened(breakable.url) as layer:
        channel = await layer.new_channel()
        with redis_down(breakable):
            joining = asyncio.create_task(layer.group_add("group", channel))
            await asyncio.sleep(0.3)  # Redis's end has been noticed
            await layer.group_discard("group", channel)
        await joining
        await layer.group_add("last", channel)
        with client_of(breakable) as client:
            assert [name for name in client.pubsub_channels() if b"/group/" in name] == [b"asgi/group/last"]


async def test_a_callback_that_fails_hurts_nobody(layer, live_redis, caplog):
    """An error in one consumer's callback is logged; the layer and the other consumers go on."""
    broken, fine = await layer.new_channel(), await layer.new_channel()
    told = []
    layer.on_resync(broken, lambda: 1 // 0)
    layer.on_resync(fine, lambda: told.append(1))

    kill_type(live_redis, "pubsub")

    await await_for(lambda: told)
    assert "ZeroDivisionError" in caplog.text
    await layer.send(broken, {"type": "x"})
    assert await take(layer, broken) == {"type": "x"}


JUNK = [
    b"",
    b"hello",
    b"\xc1",
    b"\xc0",
    b"\x2a",
    b"\x90",
    b"\x92\x01\x02",
    b"\x92\x90\xc4\x00",
    b"\xa1\xff",
    b"\x91" * 5000,
]


async def test_junk_from_other_programs_is_refused(layer, live_redis, caplog):
    """What is no message is counted and dropped, whoever published it; consumers and the connection do not notice."""
    channel = await layer.new_channel()
    told = []
    layer.on_resync(channel, lambda: told.append(1))
    await layer.group_add("group", channel)
    own = next(name for name in live_redis.pubsub_channels() if b"/group/" not in name)
    for_nobody = [encode([channel, 7]), encode([channel, encode({})]), encode([7, {}]), encode([channel])]
    before = counts["refused", "layer message"]

    for junk in JUNK:
        live_redis.publish("asgi/group/group", junk)
    for junk in [*JUNK, *for_nobody]:
        live_redis.publish(own, junk)
    live_redis.publish("asgi/group/group", encode({"type": "good"}))

    assert await take(layer, channel) == {"type": "good"}
    assert (
        counts["refused", "layer message"] - before == 2 * len(JUNK) + len(for_nobody) - 1
    )  # [7, {}]: no such channel
    assert told == []


# Bounds.


async def test_a_full_channel_counts_and_tells_when_it_has_been_emptied(redis_server, live_redis):
    """What does not fit is dropped and counted; the consumer is told once, when it has taken what did fit."""
    async with opened(redis_server.url, capacity=10, channel_capacity={"small*": 3}) as layer:
        channel, small = await layer.new_channel(), await layer.new_channel("small")
        told = []
        layer.on_resync(channel, lambda: told.append(1))
        for member in (channel, small):
            await layer.group_add("group", member)
        before = counts["dropped", "channel full"]

        for n in range(15):
            await layer.group_send("group", {"type": "x", "n": n})
        await await_for(lambda: counts["dropped", "channel full"] - before == 5 + 12)

        assert await take_numbers(layer, channel, 9) == list(range(9))
        assert told == []
        assert await take_numbers(layer, channel, 1) == [9]
        assert told == [1]
        assert await take_numbers(layer, small, 3) == [0, 1, 2]
        await layer.group_send("group", {"type": "x", "n": 15})
        assert await take_numbers(layer, channel, 1) == await take_numbers(layer, small, 1) == [15]
        assert told == [1]


def memory():
    gc.collect()
    return psutil.Process().memory_info().rss


BURST, SIZE = 2000, 50_000  # 100 MB


def burst(server):
    """Publish 100 MB, 1 MB a packet, as fast as Redis takes it."""
    with client_of(server) as client:
        for begin in range(0, BURST, 20):
            pipeline = client.pipeline(transaction=False)
            for n in range(begin, begin + 20):
                pipeline.publish("asgi/group/group", encode({"type": "x", "n": n, "text": "x" * SIZE}))
            pipeline.execute()


async def test_a_burst_of_100_mb_keeps_its_order_and_memory_stays_bounded(layer, redis_server):
    """A consumer that reads gets all of it in order; one that does not holds 16 MB of it, and is told."""
    reader, sleeper = await layer.new_channel(), await layer.new_channel()
    told = []
    layer.on_resync(reader, lambda: told.append("reader"))
    layer.on_resync(sleeper, lambda: told.append("sleeper"))
    for channel in (reader, sleeper):
        await layer.group_add("group", channel)
    before = memory()

    publishing = asyncio.create_task(asyncio.to_thread(burst, redis_server))
    assert await take_numbers(layer, reader, BURST) == list(range(BURST))
    await publishing

    assert memory() - before < 2 * queue.MAX_BYTES + 16 * 2**20
    assert told == []
    waiting = queue.MAX_BYTES // SIZE
    assert await take_numbers(layer, sleeper, waiting) == list(range(waiting))
    while not told:
        await take(layer, sleeper)
    assert told == ["sleeper"]


# The connection that writes.


async def test_back_pressure_bounds_the_memory_and_keeps_the_order(breakable):
    """While Redis takes nothing a producer of 100 MB is held up; when it goes on all arrives, in order."""
    async with opened(breakable.url) as layer, opened(breakable.url) as receiver:
        channel = await receiver.new_channel()
        await receiver.group_add("group", channel)
        sent, sending = 0, asyncio.Event()

        async def produce():
            nonlocal sent
            for n in range(BURST):
                await send_until_taken(layer, "group", {"type": "x", "n": n, "text": "x" * SIZE})
                sent = n + 1
                sending.set()

        await layer.group_send("nobody", {"type": "x"})
        before = memory()
        producing = asyncio.create_task(produce())
        await sending.wait()  # on a connection that is known to be alive, however long all that took
        with paused(breakable.child):
            held_up_at = -1
            while held_up_at != sent:
                held_up_at = sent
                await asyncio.sleep(0.2)
            assert sent < BURST / 2
            assert memory() - before < 8 * 2**20
        assert await take_numbers(receiver, channel, BURST) == list(range(BURST))
        await producing


async def test_a_producer_without_a_pause_lets_others_run(layer):
    """``group_send`` after ``group_send`` without any other await neither starves other tasks nor piles up bytes."""
    turns = 0

    async def count_turns():
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    await layer.group_send("nobody", {"type": "x"})  # it is connected
    counting = asyncio.create_task(count_turns())
    for _ in range(2000):
        await layer.group_send("nobody", {"type": "x", "text": "x" * 1000})
    counting.cancel()

    assert turns >= 2000 * 1000 // wire.PACKET


async def send_for_ever(layer):
    while True:
        await layer.group_send("nobody", {"type": "x", "text": "x" * 100_000})


async def test_calls_on_a_hung_redis_end_in_time(breakable, monkeypatch):
    """Where Redis answers nothing, sending and joining fail after a bounded wait, and a failed join is none."""
    async with opened(breakable.url) as layer:
        channel = await layer.new_channel()
        await layer.group_send("nobody", {"type": "x"})
        monkeypatch.setattr("notifications.channel_layer.feed.WAIT", 0.5)
        with paused(breakable.child):
            began = time.monotonic()
            with pytest.raises(TimeoutError):
                await layer.group_add("group", channel)
            with pytest.raises(TimeoutError):
                await send_for_ever(layer)
            assert time.monotonic() - began < scaled(3)
        with client_of(breakable) as client:
            await await_for(lambda: b"asgi/group/group" not in client.pubsub_channels())


async def test_calls_without_redis_end_in_time_and_work_when_it_comes(breakable, monkeypatch, caplog):
    """A layer that finds no Redis says so, fails each call after a bounded wait, and connects when there is one."""
    monkeypatch.setattr("notifications.channel_layer.feed.WAIT", 0.3)
    async with opened(breakable.url) as layer:
        with redis_down(breakable):
            for call in (layer.new_channel, lambda: layer.group_send("group", {"type": "x"})):
                with pytest.raises(TimeoutError):
                    await call()
            with pytest.raises(TimeoutError):
                await layer.receive("worker")
        assert "the channel layer is not connected" in caplog.text
        monkeypatch.setattr("notifications.channel_layer.feed.WAIT", scaled())
        channel = await layer.new_channel()
        await layer.send(channel, {"type": "x"})
        assert await take(layer, channel) == {"type": "x"}


async def test_a_killed_publishing_connection_is_replaced(layer, live_redis, caplog):
    """After CLIENT KILL of the connection that writes, what is sent then arrives; readers have had no gap."""
    channel = await layer.new_channel()
    told = []
    layer.on_resync(channel, lambda: told.append(1))
    await layer.group_add("group", channel)
    for n in range(3):
        await layer.group_send("group", {"type": "x", "n": n})
        assert await take_numbers(layer, channel, 1) == [n]
        caplog.clear()
        kill_type(live_redis, "normal")
        await await_for(lambda: "the channel layer is not connected" in caplog.text)
    await layer.group_send("group", {"type": "x", "n": 5})

    assert await take_numbers(layer, channel, 1) == [5]
    assert told == []


async def test_what_redis_may_not_have_read_is_counted(breakable, hasty, monkeypatch, caplog):
    """Messages that a connection took with it are not sent twice, but said to be lost."""
    monkeypatch.setattr(wire, "IDLE", scaled(60))  # or a busy machine might have it proven first
    async with opened(breakable.url) as layer:
        await layer.group_send("nobody", {"type": "x"})
        reason = "dropped", "the connection ended before Redis confirmed"
        before = counts[reason]
        with client_of(breakable) as client:
            await await_for(lambda: "cmdstat_publish" in client.info("commandstats"))
        with paused(breakable.child):
            for _ in range(7):
                await layer.group_send("nobody", {"type": "x"})
            await await_for(lambda: counts[reason] - before >= 7)
        assert "lost 7 message(s)" in caplog.text


async def test_messages_that_redis_refuses_are_counted(breakable, caplog):
    """A user who may not publish there does not go unnoticed; the log is not flooded."""
    with client_of(breakable) as client:
        rights = ["on", "nopass", "~*", "resetchannels", "&asgi/other", "+@all"]  # Redis 6.2 begins with all channels
        client.execute_command("ACL", "SETUSER", "deaf", *rights)
    async with opened(breakable.url.replace("//", "//deaf:x@")) as layer:
        before = sum(amount for (name, _), amount in counts.items() if name == "dropped")
        for _ in range(300):
            await layer.group_send("group", {"type": "x"})
        await await_for(lambda: sum(a for (name, _), a in counts.items() if name == "dropped") - before == 300)
    assert 1 <= caplog.text.count("Redis refused to publish") <= 101


# Event loops.

try:
    import uvloop
except ImportError:
    uvloop = None

RUNNERS = {"asyncio": asyncio.run, "uvloop": uvloop and uvloop.run}


@pytest.fixture(params=RUNNERS)
def run(request):
    """Run a coroutine as each event loop's ``run`` does."""
    if RUNNERS[request.param] is None:
        pytest.skip("uvloop is not installed")
    return RUNNERS[request.param]


def connections(client):
    """Return the ids of those that Redis has, but for the one that asks."""
    with client.client() as asking:
        return {int(each["id"]) for each in asking.client_list()} - {asking.client_id()}


@pytest.fixture
def clean_ends(live_redis, caplog):
    """Check after the test that no connection, task or transport outlived its event loop."""

    gc.collect()  # what another test has forgotten
    before = connections(live_redis)  # one that another test has closed may be among them for a moment
    yield
    gc.collect()  # with warnings as errors this is where a forgotten transport speaks up
    wait_for(lambda: connections(live_redis) <= before)
    assert [record.getMessage() for record in caplog.records if record.name == "asyncio"] == []


def test_an_event_loop_that_ends_takes_everything_along(redis_server, clean_ends, run):
    """A loop that ends while consumers wait, without ``flush``, leaves no task, no connection and no warning."""
    layer = RedisPubSubLayer(hosts=[redis_server.url])

    async def use():
        channel = await layer.new_channel()
        await layer.group_add("group", channel)
        waiting = asyncio.create_task(layer.receive(await layer.new_channel()))
        await layer.group_send("group", {"type": "x"})
        assert await take(layer, channel) == {"type": "x"}
        return waiting

    for _ in range(5):
        run(use())


def test_an_event_loop_that_ends_while_connecting_leaves_nothing(breakable, clean_ends, run):
    """Also in the middle of a handshake that Redis does not answer, and between two attempts."""
    layer = RedisPubSubLayer(hosts=[breakable.url])

    async def begin(seconds):
        sending = asyncio.create_task(layer.group_send("group", {"type": "x"}))
        joining = asyncio.create_task(layer.new_channel())
        await asyncio.sleep(seconds)
        assert not sending.done()
        assert not joining.done()

    with paused(breakable.child):
        for seconds in (0, 0.001, 0.05):
            run(begin(seconds))
    breakable.kill()
    run(begin(0.05))


def test_what_was_sent_before_a_loop_ends_is_sent(redis_server, live_redis, clean_ends, run):
    """The end of the loop waits until Redis has read what was sent, also more than any buffer of the kernel holds."""
    layer = RedisPubSubLayer(hosts=[redis_server.url])

    async def send_much():
        for n in range(30):
            await layer.group_send("group", {"type": "x", "n": n, "text": "x" * 1_000_000})

    with live_redis.pubsub(ignore_subscribe_messages=True) as subscription:
        subscription.subscribe("asgi/group/group")
        subscription.get_message(timeout=scaled())
        with ThreadPoolExecutor(1) as threads:
            sending = threads.submit(run, send_much())
            got = []
            while len(got) < 30 and (message := subscription.get_message(timeout=scaled())):
                if message["type"] == "message":
                    got.append(msgspec.msgpack.decode(message["data"])["n"])
            sending.result()
    assert got == list(range(30))


def test_sending_from_synchronous_code_leaves_nothing(redis_server, live_redis, clean_ends):
    """``async_to_sync(group_send)`` has a loop of its own each time: every message is sent, nothing piles up."""
    layer = RedisPubSubLayer(hosts=[redis_server.url])
    with live_redis.pubsub(ignore_subscribe_messages=True) as subscription:
        subscription.subscribe("asgi/group/group")
        subscription.get_message(timeout=scaled())
        for n in range(30):
            async_to_sync(layer.group_send)("group", {"type": "x", "n": n})
        got = [subscription.get_message(timeout=scaled()) for _ in range(30)]
    assert [msgspec.msgpack.decode(message["data"])["n"] for message in got] == list(range(30))


def test_who_only_sends_has_one_connection(redis_server, live_redis, clean_ends):
    """A process that receives nothing, such as a listener, does not subscribe."""
    layer = RedisPubSubLayer(hosts=[redis_server.url])
    before = connections(live_redis)

    async def send():
        await layer.group_send("group", {"type": "x"})
        return await asyncio.to_thread(connections, live_redis)

    assert len(asyncio.run(send()) - before) == 1


def test_several_event_loops_share_a_layer(redis_server, clean_ends):
    """Threads with loops of their own have channels of their own and hear each other."""
    layer = RedisPubSubLayer(hosts=[redis_server.url])
    joined = threading.Barrier(4)

    async def use(n):
        channel = await layer.new_channel()
        await layer.group_add("group", channel)
        await asyncio.to_thread(joined.wait, scaled())
        await layer.group_send("group", {"type": "x", "n": n})
        return sorted(await take_numbers(layer, channel, 4))

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(lambda n: asyncio.run(use(n)), range(4))) == [[0, 1, 2, 3]] * 4


def test_uvloop_has_order_and_back_pressure(breakable, run):
    """On each event loop writes are held up while Redis takes nothing, and all arrives in order afterwards."""
    run(test_back_pressure_bounds_the_memory_and_keeps_the_order(breakable))


def test_each_event_loop_replaces_a_dead_connection(breakable, hasty, caplog, run):
    """On each event loop a gap is noticed, told once, and everything is subscribed again."""
    run(test_after_a_gap_everything_is_subscribed_again_and_told_once(breakable, hasty, caplog, hung))


def test_a_process_that_slept_does_not_take_redis_for_dead(redis_server, live_redis, hasty, caplog, run):
    """After it was blocked for longer than the watchdog waits nothing is reconnected; uvloop runs timers first."""

    async def sleep():
        async with opened(redis_server.url) as layer:
            await sleep_too_long(layer, caplog)

    run(sleep())


# Hosts.


@pytest.fixture
def socket_path(tmp_path):
    return f"{tmp_path}/redis.sock"


@pytest.fixture
def guarded(redis_program, socket_path):
    """Return a Redis with a password, an ACL user and a Unix socket."""
    with LocalRedis("--unixsocket", socket_path, password="p/a:s") as server:
        with client_of(server) as client:
            rights = ["on", ">w", "~*", "resetchannels", "&asgi/*", "+@all"]  # Redis 6.2 begins with all channels
            client.execute_command("ACL", "SETUSER", "site", *rights)
        yield server


HOSTS = {
    "URL": lambda port, path: f"redis://:p%2Fa%3As@127.0.0.1:{port}/0",
    "URL with a database": lambda port, path: f"redis://:p%2Fa%3As@127.0.0.1:{port}/3",
    "URL with an ACL user": lambda port, path: f"redis://site:w@127.0.0.1:{port}/0",
    "URL that wants RESP3": lambda port, path: f"redis://site:w@127.0.0.1:{port}/0?protocol=3",
    "address": lambda port, path: {"address": f"redis://127.0.0.1:{port}", "password": "p/a:s"},
    "options": lambda port, path: {"host": "127.0.0.1", "port": port, "username": "site", "password": "w"},
    "Unix socket": lambda port, path: f"unix://:p%2Fa%3As@{path}?db=1",
}


@pytest.mark.parametrize("host", HOSTS.values(), ids=HOSTS.keys())
async def test_hosts_are_given_as_for_channels_redis(guarded, socket_path, host):
    """URLs, databases, passwords, ACL users, Unix sockets and dicts of redis-py's options all connect."""
    async with opened(host(guarded.port, socket_path)) as layer:
        channel = await layer.new_channel()
        await layer.group_add("group", channel)
        await layer.group_send("group", {"type": "x"})
        assert await take(layer, channel) == {"type": "x"}


async def test_a_host_may_be_a_pair(redis_server, live_redis):
    """A host and a port are enough."""
    async with opened(("127.0.0.1", redis_server.port)) as layer:
        channel = await layer.new_channel()
        await layer.send(channel, {"type": "x"})
        assert await take(layer, channel) == {"type": "x"}


@pytest.mark.parametrize(
    ("user", "said"),
    [(":wrong", "invalid username-password pair"), ("", "Authentication required"), ("nobody:w", "invalid username")],
)
async def test_a_wrong_password_is_said_in_the_log(guarded, monkeypatch, caplog, user, said):
    """If logging in to Redis fails, the log has Redis's reason, without the password."""
    monkeypatch.setattr("notifications.channel_layer.feed.WAIT", 0.2)
    async with opened(f"redis://{user}@127.0.0.1:{guarded.port}/0") as layer:
        with pytest.raises(TimeoutError):
            await layer.group_send("group", {"type": "x"})
        with pytest.raises(TimeoutError):
            await layer.new_channel()
        await await_for(lambda: said.lower() in caplog.text.lower())
    assert "wrong" not in caplog.text


async def test_an_option_that_does_not_exist_is_said_in_the_log(redis_server, monkeypatch, caplog):
    """A mistake in the options does not go unnoticed because a background task met it."""
    monkeypatch.setattr("notifications.channel_layer.feed.WAIT", 0.1)
    async with opened({"host": "127.0.0.1", "port": redis_server.port, "pasword": "x"}) as layer:
        with pytest.raises(TimeoutError):
            await layer.group_send("group", {"type": "x"})
        await await_for(lambda: "pasword" in caplog.text)


def test_several_hosts_are_refused():
    """Several hosts are refused when the site starts: the layer uses one Redis."""
    with pytest.raises(ImproperlyConfigured):
        RedisPubSubLayer(hosts=["redis://a", "redis://b"])


# Sockets.


async def never():
    await asyncio.Event().wait()


async def taken():
    pass


async def gone():
    raise OSError("the browser has gone")


async def test_messages_are_handed_over_at_once(redis_server, live_redis):
    """``on_message`` gets what waited, then everything that comes, in order; ``receive`` gets none of it."""
    async with opened(redis_server.url) as layer:
        channel, got = await layer.new_channel(), []
        await layer.group_add("group", channel)
        await send_until_taken(layer, "group", {"type": "x", "n": 0})
        layer.on_message(channel, got.append)
        for number in range(1, 50):
            await layer.group_send("group", {"type": "x", "n": number})
            await layer.send(channel, {"type": "y", "n": number})
        await await_for(lambda: len(got) == 99)

        assert [message["n"] for message in got if message["type"] == "x"] == list(range(50))
        assert [message["n"] for message in got if message["type"] == "y"] == list(range(1, 50))


async def test_a_callback_that_fails_costs_nobody_else_a_message(redis_server, live_redis, caplog):
    """It is logged, and the layer goes on."""
    async with opened(redis_server.url) as layer:
        got = []
        for callback in (lambda _: 1 // 0, got.append):
            channel = await layer.new_channel()
            await layer.group_add("group", channel)
            layer.on_message(channel, callback)
        await layer.group_send("group", {"type": "x"})
        await await_for(lambda: got)

        assert "ZeroDivisionError" in caplog.text


async def test_a_channel_that_is_forgotten_gets_nothing_more(redis_server, live_redis):
    """Neither itself nor through its groups, which Redis hears of; forgetting twice is no error."""
    async with opened(redis_server.url) as layer:
        channel, got = await layer.new_channel(), []
        await layer.group_add("group", channel)
        layer.on_message(channel, got.append)
        await layer.group_send("group", {"type": "x"})
        await await_for(lambda: got)
        layer.forget(channel)
        layer.forget(channel)
        await layer.group_send("group", {"type": "x"})
        await layer.send(channel, {"type": "x"})
        await await_for(lambda: len(live_redis.pubsub_channels()) == 1)

        assert len(got) == 1
        assert not layer._here()._boxes


@pytest.mark.parametrize("kind", ["ours", "channels_redis.pubsub"])
@pytest.mark.parametrize("waiting", [0, 3])
@pytest.mark.parametrize("send", [taken, never, gone])
async def test_a_socket_that_ends_leaves_no_channel_behind(redis_server, live_redis, kind, waiting, send):
    """Wherever a socket ends, in the middle of a send or with its error, the layer forgets its channel."""
    layer = make_layer(kind, live_redis, redis_server.url)
    sends = 0

    async def count_and_send(_text):
        nonlocal sends
        sends += 1
        await send()

    delivery = Delivery(layer, count_and_send, lambda: None)
    await delivery.open()
    await delivery.join(Topic.for_user(1), None)
    delivery.release(Topic.for_user(1), subscribed(Topic.for_user(1), None, None))
    for _ in range(waiting):
        await send_until_taken(layer, "user.1", {"type": "x", "topic": "user:1", "text": "x"})
    await await_for(lambda: sends or not waiting)

    await delivery.end()

    here = layer._here() if kind == "ours" else layer._get_layer()
    assert not (here._boxes if kind == "ours" else here.channels)
    await await_for(lambda: len(live_redis.pubsub_channels()) == (kind == "ours"))
    await layer.flush()
    await (await clients.async_client()).aclose()


@pytest.fixture(autouse=True)
def say_warnings(caplog):
    caplog.set_level(logging.WARNING)
