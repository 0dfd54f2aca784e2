"""The inlet and the listener in this process, on a real Redis, where a test has to stand between the two."""

import asyncio
import json
import logging
import tracemalloc
from contextlib import asynccontextmanager
from unittest.mock import AsyncMock

import pytest
import redis

from notifications import Topic
from notifications.bridge import inlet as bridge_inlet
from notifications.bridge.inlet import STEP
from notifications.bridge.listener import Listener
from notifications.broker import bell as broker_bell
from notifications.broker.bell import Bell
from notifications.broker.clients import FAILURES
from notifications.broker.reconnect import connected
from notifications.broker.wire import site_pool
from notifications.history import get_store
from notifications.history.inlet import MAX_ENTRIES
from notifications.layers import RedisPubSubLayer
from notifications.metrics import counts, listening
from tests.clients import message_of
from tests.conftest import point_to
from tests.faults import Proxy, kill_type
from tests.waiting import await_for, scaled

INLET = "notifications:inlet"
REFUSED = "notifications:inlet:refused"
SECRET = "s3cret-of-nobody"
LARGEST = "18446744073709551615-18446744073709551615"


class Layer:
    """Takes down what the listener forwards."""

    def __init__(self):
        self.texts = []

    async def group_send(self, group, message):
        self.texts.append(message["text"])

    @property
    def numbers(self):
        return [json.loads(message_of(text))["n"] for text in self.texts]


@pytest.fixture(autouse=True)
def roomy(live_redis, settings):
    """Let histories keep everything, so that each test can count."""
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "HISTORY_SIZE": 100_000}


@asynccontextmanager
async def leading(layer=None):
    """Run a listener that holds the lease."""
    listener = Listener(Layer() if layer is None else layer)
    running = asyncio.create_task(listener.run())
    try:
        await await_for(lambda: listener.status.state == "holder")
        yield listener
    finally:
        listener.stop()
        await running


def append(client, *numbers, topic="user:1", **fields):
    """Append messages to the inlet, in one write, and return the ids of their entries."""
    with client.pipeline(transaction=False) as pipeline:
        for number in numbers:
            pipeline.xadd(INLET, {"topic": topic, "data": json.dumps({"n": number}), **fields})
        return pipeline.execute()


def kept(client, topic="user:1"):
    """Return the numbers that a topic's history has, in its order."""
    entries = client.xrange(f"notifications:history:{topic}")
    return [json.loads(frame)["n"] for _, fields in entries for frame in fields.values()]


async def await_empty(client, seconds=10):
    await await_for(lambda: not client.xlen(INLET), seconds, "the inlet is empty")


@pytest.fixture
def held(monkeypatch):
    """Hold up reading from the inlet; returns what lets it go on, once something is about to be read."""
    read_inlet, go_on = get_store().read_inlet, asyncio.Event()
    go_on.begun = asyncio.Event()

    async def read_later(*arguments):
        go_on.begun.set()
        await go_on.wait()
        return await read_inlet(*arguments)

    monkeypatch.setattr(get_store(), "read_inlet", read_later)
    return go_on


async def test_what_was_appended_while_no_listener_ran_is_published_in_order(live_redis):
    """More than one batch of it, on several topics, each once; and what comes later."""
    numbers = range(2 * MAX_ENTRIES + 50)
    for number in numbers:
        append(live_redis, number, topic=f"user:{number % 3}")
    async with leading(layer := Layer()):
        await await_empty(live_redis)
        await await_for(lambda: len(layer.texts) == len(numbers))
        append(live_redis, 1000, topic="user:0")
        await await_for(lambda: layer.numbers[-1] == 1000)

    assert layer.numbers[:-1] == list(numbers)
    for user in range(3):
        wanted = [number for number in numbers if number % 3 == user]
        assert kept(live_redis, f"user:{user}") == wanted + [1000] * (user == 0)


async def test_an_entry_is_delivered_directly(live_redis):
    """With this app's layer by the script itself, and on the topic's own channel with its ``_meta``."""
    layer = RedisPubSubLayer(hosts=[url_of(live_redis)])
    channel = await layer.new_channel()
    await layer.group_add(Topic.for_user(1).group, channel)
    with live_redis.pubsub() as watching:
        watching.subscribe("user:1")
        watching.get_message(timeout=scaled())
        async with leading(layer):
            append(live_redis, 7)
            async with asyncio.timeout(scaled()):
                message = await layer.receive(channel)
        echo = watching.get_message(timeout=scaled())

    assert (message["n"], json.loads(message["text"])["n"]) == (1, 7)
    assert json.loads(echo["data"])["_meta"]["topic"] == "user:1"


def port_of(client):
    return client.get_connection_kwargs()["port"]


def url_of(client):
    return f"redis://127.0.0.1:{port_of(client)}/0"


async def test_entries_get_ids_in_one_count_with_other_messages(live_redis):
    """Raw messages and those of the inlet share the ids of their topic."""
    async with leading() as listener:
        live_redis.publish("user:1", '{"n":1}')
        await await_for(lambda: kept(live_redis) == [1])
        append(live_redis, 2)
        await await_for(lambda: kept(live_redis) == [1, 2])
        live_redis.publish("user:1", '{"n":3}')
        await await_for(lambda: kept(live_redis) == [1, 2, 3])

    assert [id_.split(b"-")[1] for id_, _ in live_redis.xrange("notifications:history:user:1")] == [b"1", b"2", b"3"]
    assert listener._forwarder.forwarded == 3


async def test_entries_of_a_kind_without_a_history_are_forwarded(live_redis, settings, held):
    """Without an id, once; also those of the step under way when the listener is told to stop."""
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "HISTORY_SIZE": 0}
    append(live_redis, *range(STEP))
    async with leading(layer := Layer()) as listener:
        await held.begun.wait()
        publish_inlet = get_store().publish_inlet

        async def stop_first(*arguments):
            listener.stop()
            await await_for(lambda: listener.shards[0].machine.state.name == "DRAINING")
            return await publish_inlet(*arguments)

        get_store().publish_inlet = stop_first
        held.set()
        await await_empty(live_redis)
    del get_store().publish_inlet

    assert layer.texts == [f'{{"n": {number}}}' for number in range(STEP)]


async def test_entries_of_a_kind_without_a_history_are_delivered_once(live_redis, settings):
    """Directly: what the topic's own channel says of it is no raw message that a listener would deliver again."""
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "HISTORY_SIZE": 0}
    layer = RedisPubSubLayer(hosts=[url_of(live_redis)])
    channel = await layer.new_channel()
    await layer.group_add(Topic.for_user(1).group, channel)
    received = []
    async with leading(layer), asyncio.timeout(scaled()):
        append(live_redis, 1, 2)
        await await_empty(live_redis)
        live_redis.publish("user:1", '{"last":true}')  # behind whatever was published on the channel before
        while not received or "last" not in received[-1]:
            received.append((await layer.receive(channel))["text"])

    assert received == ['{"n": 1}', '{"n": 2}', '{"last":true}']


async def test_topics_of_the_inlet_name_a_tenant(live_redis, settings):
    """As raw channels do; browsers are not shown it."""
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "TENANT": lambda: "acme"}
    append(live_redis, 1, topic="user:globex/1")
    append(live_redis, 2, topic="user:1")
    async with leading(layer := Layer()):
        await await_empty(live_redis)
        await await_for(lambda: layer.texts)

    assert kept(live_redis, "user:globex/1") == [1]
    assert '"topic":"user:1"' in layer.texts[0]
    assert live_redis.xlen(REFUSED) == 1


async def test_the_inlet_has_the_prefix_and_its_topics_have_not(live_redis, settings):
    """Two sites on one Redis have two inlets."""
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "PREFIX": "shop:"}
    live_redis.xadd(f"shop:{INLET}", {"topic": "user:1", "data": '{"n":1}'})
    append(live_redis, 2)
    async with leading(layer := Layer()):
        await await_for(lambda: layer.numbers == [1])

    assert live_redis.xlen(INLET) == 1
    assert live_redis.exists("shop:notifications:history:user:1")


BAD = [
    ({"data": '{"n":1}'}, "MessageError"),
    ({"topic": "user:1"}, "MessageError"),
    ({"topic": "user:1", "data": '{"n":1}', "retain": "1"}, "MessageError"),
    ({"topic": "user:1", "data": SECRET}, "MessageError"),
    ({"topic": "user:1", "data": f'["{SECRET}"]'}, "MessageError"),
    ({"topic": "user:1", "data": b'{"n":"\xff"}'}, "MessageError"),
    ({"topic": "user:1", "data": '{"_meta":{},"n":1}'}, "MessageError"),
    ({"topic": "user:1", "data": json.dumps({"n": SECRET * 5000})}, "MessageError"),
    ({"topic": "user:1", "data": json.dumps({"n": SECRET * 10000})}, "MessageError"),
    ({"topic": "user:1", "data": '{"n":1}', "idempotency_key": ""}, "MessageError"),
    ({"topic": "user:1", "data": '{"n":1}', "idempotency_key": "x" * 201}, "MessageError"),
    ({"topic": "user:1", "data": '{"n":1}', "idempotency_key": b"\xff"}, "MessageError"),
    ({"topic": "nobody:1", "data": '{"n":1}'}, "TopicError"),
    ({"topic": "user:", "data": '{"n":1}'}, "TopicError"),
    ({"topic": "order:bad", "data": '{"n":1}'}, "TopicError"),
    ({"topic": b"user:\xff", "data": '{"n":1}'}, "TopicError"),
    ({"topic": "x" * 5000, "data": '{"n":1}'}, "TopicError"),
    ({f"f{number}": "" for number in range(1000)}, "MessageError"),
    ({f"f{number}": "" for number in range(10_000)}, "MessageError"),
]


@pytest.mark.parametrize(("fields", "reason"), BAD)
async def test_what_cannot_be_published_is_set_aside(live_redis, caplog, fields, reason):
    """With its id and the reason, counted and logged without its payload, and what is behind it goes out."""
    refused = counts["inlet_refused", reason]
    id_ = live_redis.xadd(INLET, fields)
    append(live_redis, 2)
    with caplog.at_level(logging.WARNING):
        async with leading():
            await await_for(lambda: kept(live_redis) == [2])
            await await_for(lambda: counts["inlet_refused", reason] == refused + 1)

    [(_, aside)] = live_redis.xrange(REFUSED)
    assert aside.pop(b"id") == id_
    assert aside.pop(b"reason").startswith(f"{reason}: ".encode())
    size = sum(len(word) for field in fields.items() for word in field)
    whole = {word if isinstance(word, bytes) else word.encode() for field in fields.items() for word in field}
    assert {word for field in aside.items() for word in field} == (
        whole if size < 70_000 and len(fields) < 10 else set()
    )
    assert not live_redis.xlen(INLET)
    [line] = [record.getMessage() for record in caplog.records if "of the inlet" in record.getMessage()]
    assert id_.decode() in line
    assert SECRET not in line


async def test_an_entry_with_the_largest_id_holds_up_nobody(live_redis):
    """Whoever may append may choose it; no program can append behind it until the key is deleted."""
    append(live_redis, 1)
    live_redis.xadd(INLET, {"topic": "user:1", "data": '{"n":2}'}, id=LARGEST)
    async with leading():
        await await_empty(live_redis)
        live_redis.delete(INLET)
        append(live_redis, 3)
        await await_for(lambda: kept(live_redis) == [1, 2, 3])


@pytest.mark.parametrize(
    "broken",
    [
        ("SET", REFUSED, "x"),
        ("XADD", REFUSED, LARGEST, "a", "b"),
        ("RPUSH", "notifications:once:6:user:1:again", "x"),
    ],
)
async def test_a_key_that_something_else_has_used_holds_up_nobody(live_redis, broken):
    """It is the app's: what is in it goes, rather than keep all entries waiting."""
    live_redis.execute_command(*broken)
    live_redis.xadd(INLET, {"topic": "user:1", "data": "no"})
    append(live_redis, 1, 1, idempotency_key="again")
    append(live_redis, 2)
    async with leading():
        await await_empty(live_redis)

    assert kept(live_redis) == [1, 2]
    assert live_redis.xlen(REFUSED) == 1


async def test_an_entry_with_the_same_field_twice_is_set_aside(live_redis):
    """Redis takes it; which of the two was meant nobody can tell."""
    live_redis.execute_command("XADD", INLET, "*", "topic", "user:1", "topic", "user:2", "data", '{"n":1}')
    async with leading():
        await await_for(lambda: live_redis.xlen(REFUSED) == 1)

    assert not live_redis.keys("notifications:history:*")


async def test_a_huge_entry_is_never_read(live_redis, caplog):
    """Neither when it is appended, as the listener waits, nor when it is there before: memory stays bounded."""
    huge = {"topic": "user:1", "data": b"x" * 30_000_000}
    live_redis.xadd(INLET, huge)
    tracemalloc.start()
    try:
        async with leading():
            await await_for(lambda: live_redis.xlen(REFUSED) == 1)
            await asyncio.to_thread(append, live_redis, 1)
            await await_for(lambda: kept(live_redis) == [1])
            tracemalloc.reset_peak()
            before, _ = tracemalloc.get_traced_memory()
            await asyncio.to_thread(send_huge, live_redis)
            await await_for(lambda: live_redis.xlen(REFUSED) == 2)
            _, peak = tracemalloc.get_traced_memory()
            append(live_redis, 2)
            await await_for(lambda: kept(live_redis) == [1, 2])
    finally:
        tracemalloc.stop()

    assert peak - before < 5_000_000
    assert "cannot be emptied" not in caplog.text
    assert all(set(fields) == {b"id", b"reason"} for _, fields in live_redis.xrange(REFUSED))


async def test_an_entry_that_redis_does_not_send_holds_up_nobody(live_redis):
    """It closes a connection for which it would have to keep more than the administrator allows."""
    live_redis.config_set("client-output-buffer-limit", "normal 1mb 1mb 1")
    try:
        async with leading():
            await await_for(lambda: live_redis.info("clients")["blocked_clients"])
            await asyncio.to_thread(send_huge, live_redis)
            append(live_redis, 1)
            await await_for(lambda: kept(live_redis) == [1], 15)
    finally:
        live_redis.config_set("client-output-buffer-limit", "normal 0 0 0")

    assert live_redis.xlen(REFUSED) == 1


def send_huge(client):
    """Let Redis make the entry itself: this process is the one that is measured."""
    client.eval("redis.call('XADD', KEYS[1], '*', 'topic', 'user:1', 'data', string.rep('x', 30000000))", 1, INLET)


async def test_an_answer_that_is_lost_publishes_nothing_twice(live_redis, monkeypatch):
    """The script was run, and nobody knows: the listener looks again, and what is gone was published."""
    publish_inlet, batches = get_store().publish_inlet, []

    async def lose_every_other_answer(*arguments):
        batches.append(arguments)
        answer = await publish_inlet(*arguments)
        if len(batches) % 2:
            raise ConnectionError("closed by Redis")
        return answer

    monkeypatch.setattr(get_store(), "publish_inlet", lose_every_other_answer)
    append(live_redis, *range(3 * STEP))
    async with leading(layer := Layer()):
        await await_empty(live_redis)
        await await_for(lambda: len(layer.texts) == 3 * STEP)

    assert len(batches) >= 3
    assert layer.numbers == kept(live_redis) == list(range(3 * STEP))


async def test_a_connection_that_is_cut_under_an_answer_publishes_nothing_twice(live_redis, settings, monkeypatch):
    """The network loses answers of Redis, again and again."""
    publish_inlet, lost = get_store().publish_inlet, []
    with Proxy(port_of(live_redis)) as proxy:

        async def lose_the_answer(*arguments):
            if len(lost) < 5:
                lost.append(None)
                proxy.lose_the_next_answer()
            return await publish_inlet(*arguments)

        monkeypatch.setattr(get_store(), "publish_inlet", lose_the_answer)
        point_to(settings, proxy.url)
        append(live_redis, *range(2000))
        async with leading():
            await await_empty(live_redis, 30)

    assert len(lost) == 5
    assert kept(live_redis) == list(range(2000))


async def test_connections_that_are_killed_hold_up_nothing_for_long(live_redis):
    """CLIENT KILL of all, while a program goes on appending: each message once, in order."""
    async with leading():
        for begin in range(0, 500, 100):
            append(live_redis, *range(begin, begin + 100))
            kill_type(live_redis, "normal")
            if begin % 200:
                kill_type(live_redis, "pubsub")
            await asyncio.sleep(0.05)
        await await_empty(live_redis, 20)

    assert kept(live_redis) == list(range(500))


async def test_pauses_are_short_again_after_a_quiet_second(live_redis, monkeypatch):
    """Connections that were lost now and then do not add up until what is appended after the next waits for long."""
    begun, backoff = [], bridge_inlet.backoff
    monkeypatch.setattr(bridge_inlet, "backoff", lambda **options: begun.append(options) or backoff(**options))
    async with leading():
        in_the_beginning = 2  # when the listener is made, and when it takes charge
        await await_for(lambda: len(begun) > in_the_beginning)


@pytest.mark.slow
async def test_a_connection_that_dies_in_silence_is_noticed(live_redis, settings):
    """A router has forgotten the connection that waits: what is appended arrives all the same, within seconds."""
    with Proxy(port_of(live_redis)) as proxy:
        point_to(settings, proxy.url)
        async with leading():
            append(live_redis, 1)
            await await_for(lambda: kept(live_redis) == [1])
            proxy.forget(reset=False)
            append(live_redis, 2)
            await await_for(lambda: kept(live_redis) == [1, 2], 15)


async def test_a_holder_that_is_late_publishes_nothing(live_redis, monkeypatch):
    """It was held up between reading and publishing while another took over: its call comes with an old token."""
    publish_inlet, held, go_on = get_store().publish_inlet, [], asyncio.Event()

    async def be_late_once(*arguments):
        if not held:
            held.append(arguments)
            await go_on.wait()
        return await publish_inlet(*arguments)

    monkeypatch.setattr(get_store(), "publish_inlet", be_late_once)
    append(live_redis, *range(50))
    async with leading() as first:
        await await_for(lambda: held)
        live_redis.delete("notifications:lease")
        monkeypatch.setattr(first.shards[0].lease, "take", AsyncMock(return_value=False))
        first.shards[0].lease.lost()
        first.shards[0]._step_down("paused for too long")
        async with leading():
            await await_empty(live_redis)
            append(live_redis, 50)
            await await_empty(live_redis)
            go_on.set()
            append(live_redis, 51)
            await await_empty(live_redis)

    assert kept(live_redis) == list(range(52))


async def test_a_full_redis_keeps_what_waits(live_redis, monkeypatch, caplog, held):
    """Nothing goes out without an id; it is tried again, and goes out when there is room, though the lease ended."""
    monkeypatch.setattr(bridge_inlet, "LONGEST_PAUSE", 0.2)
    append(live_redis, 1, 2)
    live_redis.xadd(INLET, {"topic": "user:1", "data": "no"})
    append(live_redis, 3)
    async with leading(layer := Layer()):
        await held.begun.wait()
        live_redis.config_set("maxmemory", 1)
        try:
            held.set()
            await await_for(lambda: "the inlet cannot be emptied" in caplog.text)
            assert live_redis.xlen(INLET) == 4
            assert layer.texts == []
        finally:
            live_redis.config_set("maxmemory", 0)
        await await_empty(live_redis)
        await await_for(lambda: len(layer.texts) == 3)

    assert layer.numbers == kept(live_redis) == [1, 2, 3]
    assert all("_meta" in text for text in layer.texts)
    assert live_redis.xlen(REFUSED) == 1


async def test_an_account_that_may_not_publish_any_more_keeps_nothing_twice(live_redis, settings, caplog):
    """Its rights were changed while the listener leads: what is in a history is not in the inlet any more."""
    account = "ACL", "SETUSER", "narrow", "reset", "on", f">{SECRET}", "~*", "&*", "+@all"
    live_redis.execute_command(*account)
    try:
        point_to(settings, url_of(live_redis).replace("//", f"//narrow:{SECRET}@"))
        async with leading():
            live_redis.execute_command(*account, "-publish")
            append(live_redis, 1)
            await await_for(lambda: "the inlet cannot be emptied" in caplog.text)
            append(live_redis, 2)
            await await_for(lambda: 2 in kept(live_redis), 15)
            live_redis.execute_command(*account)
            append(live_redis, 3)
            await await_for(lambda: 3 in kept(live_redis), 15)
    finally:
        live_redis.acl_deluser("narrow")

    assert kept(live_redis) == [1, 2, 3]


@pytest.mark.parametrize("command", ["xdel", "xlen"])
async def test_an_account_that_may_not_empty_the_inlet_publishes_nothing_of_it(live_redis, settings, caplog, command):
    """Otherwise what it cannot delete would be published again and again. The rest of the bridge goes on."""
    live_redis.execute_command(
        "ACL", "SETUSER", "narrow", "reset", "on", f">{SECRET}", "~*", "&*", "+@all", f"-{command}"
    )
    try:
        point_to(settings, url_of(live_redis).replace("//", f"//narrow:{SECRET}@"))
        append(live_redis, 1)
        async with leading():
            await await_for(lambda: "the inlet cannot be emptied" in caplog.text)
            live_redis.publish("user:1", '{"n":2}')
            await await_for(lambda: kept(live_redis) == [2])
    finally:
        live_redis.acl_deluser("narrow")

    assert live_redis.xlen(INLET) == 1
    assert caplog.text.count("the inlet cannot be emptied") == 1
    assert SECRET not in caplog.text


async def test_an_account_that_may_not_wait_for_entries_is_late_with_them(live_redis, settings, caplog):
    """It takes out what is there whenever it tries again, which is logged."""
    live_redis.execute_command("ACL", "SETUSER", "narrow", "reset", "on", f">{SECRET}", "~*", "&*", "+@all", "-xread")
    try:
        point_to(settings, url_of(live_redis).replace("//", f"//narrow:{SECRET}@"))
        async with leading():
            await await_for(lambda: "the inlet cannot be emptied" in caplog.text)
            append(live_redis, 1)
            await await_empty(live_redis, 15)
    finally:
        live_redis.acl_deluser("narrow")

    assert kept(live_redis) == [1]


async def test_a_key_of_another_type_holds_up_only_the_inlet(live_redis, caplog, monkeypatch):
    """Somebody uses its key for something else: that is logged, and raw messages go on."""
    monkeypatch.setattr(bridge_inlet, "LONGEST_PAUSE", 0.2)
    live_redis.set(INLET, "x")
    async with leading():
        await await_for(lambda: "the inlet cannot be emptied" in caplog.text)
        live_redis.publish("user:1", '{"n":1}')
        await await_for(lambda: kept(live_redis) == [1])
        live_redis.delete(INLET)
        append(live_redis, 2)
        await await_for(lambda: kept(live_redis) == [1, 2])


async def test_more_than_its_size_is_dropped_counted_and_logged(live_redis, settings, caplog):
    """The oldest; what is left is published."""
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "INLET_SIZE": 100}
    dropped = counts["dropped", "the inlet is full"]
    append(live_redis, *range(350))
    async with leading():
        await await_empty(live_redis)
        await await_for(lambda: kept(live_redis))

    assert kept(live_redis) == list(range(250, 350))
    assert counts["dropped", "the inlet is full"] == dropped + 250
    assert "lost 250 message(s): the inlet is full" in caplog.text


async def test_the_inlet_waits_for_a_layer_that_is_slow(live_redis):
    """What waits to be forwarded is bounded: raw messages would wait behind it."""
    go_on, layer = asyncio.Event(), Layer()
    group_send = layer.group_send

    async def be_slow(group, message):
        await go_on.wait()
        await group_send(group, message)

    layer.group_send = be_slow
    append(live_redis, *range(2000))
    async with leading(layer) as listener:
        await await_for(lambda: len(listener._forwarder) >= STEP)
        longest = 0
        for _ in range(20):
            await asyncio.sleep(0.01)
            longest = max(longest, len(listener._forwarder))
        assert longest <= 3 * STEP
        assert live_redis.xlen(INLET) >= 2000 - 3 * STEP
        go_on.set()
        await await_for(lambda: len(layer.texts) == 2000)

    assert layer.numbers == list(range(2000))


async def test_a_listener_that_stops_finishes_its_batch(live_redis, monkeypatch):
    """And begins no other: the rest waits for the next listener."""
    publish_inlet, begun, go_on = get_store().publish_inlet, asyncio.Event(), asyncio.Event()

    async def be_late(*arguments):
        begun.set()
        await go_on.wait()
        return await publish_inlet(*arguments)

    append(live_redis, *range(STEP + 10))
    with monkeypatch.context() as patch:
        patch.setattr(get_store(), "publish_inlet", be_late)
        async with leading(layer := Layer()) as listener:
            await begun.wait()
            listener.stop()
            await await_for(lambda: listener.shards[0].machine.state.name == "DRAINING")
            go_on.set()
    assert layer.numbers == list(range(STEP))
    assert live_redis.xlen(INLET) == 10

    async with leading(layer := Layer()):
        await await_for(lambda: len(layer.texts) == 10)

    assert kept(live_redis) == list(range(STEP + 10))


async def test_metrics_tell_what_waits(live_redis, held):
    """How many entries and for how long; and that nothing waits, when all are published."""
    published = counts["inlet_published", ""]
    append(live_redis, *range(MAX_ENTRIES + 1))
    seen = []
    async with leading():
        await held.begun.wait()
        publish_inlet = get_store().publish_inlet

        async def look_first(*arguments):
            seen.append(listening.inlet)
            return await publish_inlet(*arguments)

        get_store().publish_inlet = look_first
        try:
            held.set()
            await await_for(lambda: counts["inlet_published", ""] == published + MAX_ENTRIES + 1)
        finally:
            del get_store().publish_inlet

    assert {amount for amount, _ in seen} == {MAX_ENTRIES + 1, 1}
    assert all(0 <= age < scaled() for _, age in seen)
    assert listening.inlet == (0, 0.0)


async def test_an_idle_inlet_costs_one_command_a_second(live_redis):
    """A site that does not use it pays for one connection, which would be pinged as often."""

    def asked():
        return live_redis.info("commandstats").get("cmdstat_xread", {"calls": 0})["calls"]

    live_redis.config_resetstat()
    async with leading():
        await await_for(lambda: asked() >= 1)
        live_redis.config_resetstat()
        loop = asyncio.get_running_loop()
        began = loop.time()
        await await_for(lambda: asked() >= 2)
        assert loop.time() - began > 0.9
        calls = {name: stats["calls"] for name, stats in live_redis.info("commandstats").items()}

    assert not calls.keys() & {"cmdstat_xlen", "cmdstat_xdel", "cmdstat_xrange", "cmdstat_xadd"}


async def test_the_bell_rings_for_what_is_there_and_for_what_comes(live_redis, monkeypatch):
    """And tells after a second that there is nothing; it is not connected to a Redis that refuses."""
    async with connected(Bell(INLET), site_pool()) as bell:
        assert await bell.rung() is False
        monkeypatch.setattr(broker_bell, "BLOCK", scaled(3))  # so that it still waits when the test goes on
        waiting = asyncio.create_task(bell.rung())
        await await_for(lambda: live_redis.info("clients")["blocked_clients"])
        live_redis.xadd(INLET, {"a": "b"})
        assert await waiting is True
        assert await bell.rung() is True
        live_redis.set("text", "x")
        live_redis.xtrim(INLET, maxlen=0)
        waiting = asyncio.create_task(bell.rung())
        await await_for(lambda: live_redis.info("clients")["blocked_clients"])
        kill_type(live_redis, "normal")
        with pytest.raises(ConnectionError):
            await waiting
        with pytest.raises(ConnectionError):
            await bell.rung()
    async with connected(Bell("text"), site_pool()) as bell:
        with pytest.raises(redis.ResponseError):
            await bell.rung()
    assert redis.ResponseError in [each for kind in FAILURES for each in [kind, *kind.__subclasses__()]]
