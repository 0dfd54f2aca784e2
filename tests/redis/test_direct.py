"""Scripts that deliver to groups of this app's layer themselves, and deployments in which not all of them do."""

import asyncio
from contextlib import asynccontextmanager, contextmanager

import pytest
from channels.layers import get_channel_layer

from notifications import PublishError, Topic, apublish, publish, publisher
from notifications.bridge.lease import Lease
from notifications.bridge.listener import Listener
from notifications.history import get_store
from notifications.history import redis as history
from notifications.history.position import Position
from notifications.history.stamped import (
    ACKNOWLEDGED,
    STAMPED,
    Stamped,
    digest,
    head,
    layer_message,
    read_stamped,
    tail,
)
from notifications.history.store import Raw
from notifications.layers import direct
from notifications.logs import LogBudget
from notifications.topics import internal_name
from tests.faults import kill_type
from tests.processes import LAYERS
from tests.redis.test_listener import renewed
from tests.waiting import await_for, scaled

TOPIC = Topic("user", "1")
NOT_KEPT = Topic("closed", "7")


@pytest.fixture
async def layer(live_redis, settings):
    """Make this app's layer the site's, on the site's Redis."""
    settings.NOTIFICATIONS = {
        **settings.NOTIFICATIONS,
        "TOPICS": {**settings.NOTIFICATIONS["TOPICS"], "closed": {"HISTORY_SIZE": 0}},
    }
    settings.CHANNEL_LAYERS = {"default": {**settings.CHANNEL_LAYERS["default"], "BACKEND": LAYERS["ours"]}}
    layer = get_channel_layer()
    yield layer
    await layer.flush()


class OtherLayer:
    """A layer that does not say how a script could reach its groups: takes down what a listener forwards."""

    def __init__(self):
        self.texts = []

    async def group_send(self, group, message):
        self.texts.append(message["text"])


async def member(layer, *topics):
    """Return the growing list of what the groups of topics are sent."""
    got, channel = [], await layer.new_channel()
    layer.on_message(channel, got.append)
    for topic in topics:
        await layer.group_add(topic.group, channel)
    return got


@asynccontextmanager
async def listening(layer, state="holder"):
    """Run a listener, which leads unless somebody else has the lease."""
    listener = Listener(layer)
    running = asyncio.create_task(listener.run())
    try:
        await await_for(lambda: listener.status.state == state)
        yield listener
    finally:
        listener.stop()
        await running


@pytest.fixture
def ear(live_redis):
    """Return a function that returns all that was published until it is called, by channel, but not to the layer."""
    with live_redis.pubsub() as subscription:
        subscription.psubscribe("*")
        assert subscription.get_message(timeout=scaled())["type"] == "psubscribe"

        def heard():
            live_redis.publish("mark", "")
            found = []
            while (message := subscription.get_message(timeout=scaled()))["channel"] != b"mark":
                if not message["channel"].startswith(b"asgi/"):
                    found.append((message["channel"].decode(), message["data"]))
            return found

        yield heard


def stamped_of(heard):
    told = [data for channel, data in heard if channel == internal_name(STAMPED)]
    return [read_stamped(data) for data in told if not data.startswith(ACKNOWLEDGED)]


def raw(layer, topic, data):
    return Raw(topic, tail(data), direct(layer, topic.group), digest(topic.channel.encode(), data))


def waiting(listener):
    """Return how many raw messages the listener has read of which it does not know that they are stamped."""
    [shard] = listener.shards
    shard.standby.settle(asyncio.get_running_loop().time())
    return len(shard)


def numbers(messages):
    return [int(message["text"].rpartition(":")[2].rstrip("}")) for message in messages]


async def settled(layer, got, topic=TOPIC):
    """Wait until a message that was sent to the group last has arrived, which is not counted."""
    await layer.group_send(topic.group, {"type": "end"})
    await await_for(lambda: got and got[-1]["type"] == "end")
    got.pop()


# Published.


async def test_what_is_published_arrives_without_a_listener(layer):
    """It is delivered in the same step in which it is kept; nobody else has to be there."""
    got = await member(layer, TOPIC)
    first, second = await apublish(TOPIC, {"n": 1}), publish(TOPIC, {"n": 2})

    await await_for(lambda: len(got) == 2)

    assert [f"{message['epoch']}-{message['n']}" for message in got] == [first, second]
    assert numbers(got) == [1, 2]


@pytest.mark.parametrize("at", [0, 1_795_703_150_003_123])
@pytest.mark.parametrize("size", [1, 200, 70_000])
@pytest.mark.parametrize("id_", ["1", 'ä"\\"{}'], ids=["plain", "quoted"])
async def test_a_script_writes_what_a_listener_would_send(layer, live_redis, at, size, id_):
    """The two roads have one format, for any topic and any length of text."""
    topic, data = Topic("user", id_), b'{"pad":"%s"}' % (b"x" * size)
    got = await member(layer, topic)
    for _ in range(2):
        await get_store().apublish(topic, data, None, at, direct(layer, topic.group))
    await await_for(lambda: len(got) == 2)

    run = await get_store().server()
    for n, message in enumerate(got, 1):
        position = Position(message["epoch"], n)
        frame = head(topic.told) + str(position).encode() + b'"}' + tail(data)
        assert message == layer_message(Stamped("p", str(topic), position, frame, run, at))
        assert {type(value) for value in message.values()} == {str, int}


async def test_listeners_are_told_nothing_of_what_was_delivered(layer, ear):
    """They have nothing to do with it; whoever watches the topic's own channel sees the frame, as ever."""
    id_ = await apublish(TOPIC, {"n": 1})

    assert ear() == [("user:1", b'{"_meta":{"topic":"user:1","id":"%s"},"n":1}' % id_.encode())]


async def test_what_is_not_kept_arrives_once_whether_a_listener_runs_or_not(layer, ear):
    """Nobody could drop a second copy of it. Its echo shows listeners that it is none of theirs."""
    got = await member(layer, NOT_KEPT)
    async with listening(layer):
        for n in range(3):
            assert await apublish(NOT_KEPT, {"n": n}) is None
        await settled(layer, got, NOT_KEPT)
    await apublish(NOT_KEPT, {"n": 3})
    await settled(layer, got, NOT_KEPT)

    assert [message["text"] for message in got] == [f'{{"n":{n}}}' for n in range(4)]
    assert all("epoch" not in message for message in got)
    echoes = [data for channel, data in ear() if channel == str(NOT_KEPT)]
    assert echoes == [b'{"_meta":{"topic":"closed:7"},"n":%d}' % n for n in range(4)]


async def test_what_was_published_under_a_key_is_delivered_once(layer):
    """A call that is repeated delivers nothing again."""
    got = await member(layer, TOPIC)
    for _ in range(3):
        await apublish(TOPIC, {"n": 1}, idempotency_key="once")
    await settled(layer, got)

    assert numbers(got) == [1]


async def test_what_cannot_be_remembered_under_a_key_is_not_delivered(layer, live_redis):
    """Otherwise each call again would deliver it again, as the error tells the caller to do."""
    got = await member(layer, NOT_KEPT)
    live_redis.config_set("maxmemory", 1)
    try:
        for _ in range(2):
            with pytest.raises(PublishError):
                await apublish(NOT_KEPT, {"n": 1}, idempotency_key="once")
    finally:
        live_redis.config_set("maxmemory", 0)
    for _ in range(2):
        await apublish(NOT_KEPT, {"n": 1}, idempotency_key="once")
    await settled(layer, got, NOT_KEPT)

    assert numbers(got) == [1]


# Raw.


async def test_raw_and_published_messages_arrive_in_the_order_of_their_ids(layer, live_redis):
    """One script stamps both and delivers both, so no id overtakes another."""
    got = await member(layer, TOPIC)
    async with listening(layer) as listener:
        for n in range(200):
            if n % 3:
                live_redis.publish("user:1", f'{{"n":{n}}}')
            else:
                await apublish(TOPIC, {"n": n})
        await await_for(lambda: len(got) == 200)
        await await_for(lambda: not len(listener.shards[0].backlog))
        await settled(layer, got)

    assert [message["n"] for message in got] == list(range(1, 201))
    assert sorted(numbers(got)) == list(range(200))
    assert listener._forwarder.forwarded == sum(n % 3 > 0 for n in range(200))


async def test_raw_messages_without_an_id_keep_their_place(layer, live_redis):
    """While Redis is full and afterwards: each arrives once, between the same messages as it was published."""
    got = await member(layer, TOPIC)
    async with listening(layer) as listener:
        for n in range(30):
            if n == 10:
                live_redis.config_set("maxmemory", 1)
            if n == 20:
                live_redis.config_set("maxmemory", 0)
            live_redis.publish("user:1", f'{{"n":{n}}}')
            if n % 10 == 9:
                await await_for(lambda n=n: len(got) == n + 1)
        await await_for(lambda: not len(listener.shards[0].backlog))
        await settled(layer, got)

    assert numbers(got) == list(range(30))
    assert ["epoch" in message for message in got] == [True] * 10 + [False] * 10 + [True] * 10


async def test_a_holder_that_dies_after_stamping_has_delivered(layer, live_redis):
    """Nothing is stamped and not delivered; whoever takes over delivers nothing of it again."""
    got = await member(layer, TOPIC, NOT_KEPT)
    lease = Lease()
    assert await lease.take()
    async with renewed(live_redis), listening(layer, "stand-by") as listener:
        for n, topic in enumerate((TOPIC, NOT_KEPT, TOPIC)):
            live_redis.publish(topic.channel, f'{{"n":{n}}}')
        await await_for(lambda: waiting(listener) == 3)

        batch = [raw(layer, topic, b'{"n":%d}' % n) for n, topic in ((0, TOPIC), (1, NOT_KEPT))]
        assert await get_store().stamp_batch(lease.key, lease.token, 1, batch) == (1, "")
        await await_for(lambda: len(got) == 2)
        await lease.release()  # as if it had died here

        await await_for(lambda: listener.status.state == "holder")
        await await_for(lambda: len(got) == 3)
        await apublish(TOPIC, {"n": 3})
        await await_for(lambda: len(got) == 4)
    assert numbers(got) == [0, 1, 2, 3]


async def test_what_was_delivered_does_not_hide_what_a_dead_holder_left(layer, live_redis, settings):
    """The listener knows the ids of what it was not told: a history that went on before its gap proves nothing."""
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "HISTORY_SIZE": 3}
    got = await member(layer, TOPIC)
    lease = Lease()
    assert await lease.take()
    async with renewed(live_redis), listening(layer, "stand-by") as listener:
        live_redis.publish("user:1", '{"n":0}')
        await await_for(lambda: waiting(listener) == 1)
        batch = [raw(layer, TOPIC, b'{"n":0}')]
        await get_store().stamp_batch(lease.key, lease.token, 1, batch)
        for n in range(1, 7):
            await apublish(TOPIC, {"n": n})
        live_redis.publish("user:1", '{"n":7}')
        await await_for(lambda: waiting(listener) == 1 and len(got) == 7)

        kill_type(live_redis, "pubsub")
        await await_for(lambda: listener.shards[0].backlog.kept)
        await await_for(lambda: listener.status.state == "stand-by")
        got = await member(layer, TOPIC)
        await lease.release()  # as if it had died, and had not received the last one

        await await_for(lambda: got)
    assert numbers(got) == [7]


async def test_what_only_begins_like_an_echo_takes_no_memory(layer):
    """Any program may publish on a topic's channel, and on others with a name that begins like one, what it likes."""
    listener, long = Listener(layer), b"1" * 1_000_000
    for channel in (b"user:1", b"user:" + long):
        listener._received(channel, b'{"_meta":{"topic":"user:1","id":"' + long + b'"}}')
        listener._received(channel, b'{"_meta":{"topic":"user:1","id":"' + long)

    assert sum(len(channel) + len(id_) for channel, id_ in listener._own.items()) < 1000
    assert listener._published() == [[]]


# Deployments in which not everybody delivers.


async def test_what_another_process_could_not_deliver_is_forwarded(layer, live_redis, settings):
    """A worker of the version before, or with another layer, tells listeners; one with this layer forwards for it."""
    got = await member(layer, TOPIC, NOT_KEPT)
    async with listening(layer):
        for n, topic in enumerate((TOPIC, NOT_KEPT, TOPIC)):
            await get_store().apublish(topic, b'{"n":%d}' % n)
        await await_for(lambda: len(got) == 3)

    assert sorted(numbers(got)) == [0, 1, 2]
    assert numbers([message for message in got if message["topic"] == str(TOPIC)]) == [0, 2]


async def test_what_was_delivered_is_not_forwarded_by_a_listener_with_another_layer(layer, live_redis):
    """It would come twice; sockets that it did not reach find it in the history."""
    lease, other = Lease(), OtherLayer()
    async with listening(other):
        for topic in (TOPIC, NOT_KEPT):
            await apublish(topic, {"n": 1})
        await get_store().apublish(TOPIC, b'{"n":2}')
        await await_for(lambda: other.texts)
        token = live_redis.hget(lease.key, "token").decode()
        batch = [Raw(topic, tail(b'{"n":3}'), direct(layer, topic.group)) for topic in (TOPIC, NOT_KEPT)]
        await get_store().stamp_batch(lease.key, token, 10, batch)
        await get_store().apublish(TOPIC, b'{"n":4}')
        await await_for(lambda: len(other.texts) > 1)

    assert [text[-6:] for text in other.texts] == ['"n":2}', '"n":4}']


async def test_what_was_to_be_forwarded_is_forwarded_by_whoever_takes_over(layer, live_redis):
    """Its holder may have died before; messages that were delivered since then do not hide it."""
    got = await member(layer, TOPIC, Topic("user", "2"))
    lease = Lease()
    assert await lease.take()
    async with listening(layer, "stand-by"):
        await get_store().apublish(TOPIC, b'{"n":1}')
        await apublish(Topic("user", "2"), {"n": 2})
        await lease.release()

        await await_for(lambda: len(got) == 2)
    assert sorted(numbers(got)) == [1, 2]


async def test_a_layer_that_cannot_be_created_keeps_nobody_from_publishing(
    live_redis, settings, ear, monkeypatch, caplog
):
    """A worker may lack what the layer needs: listeners forward for it, and the log says so."""
    monkeypatch.setattr(publisher, "_log", LogBudget(publisher.logger, lines=1))  # whatever was logged a moment ago
    settings.CHANNEL_LAYERS = {"default": {"BACKEND": "not.installed.Layer"}}

    await apublish(TOPIC, {"n": 1})

    assert [told.road for told in stamped_of(ear())] == ["p"]
    assert "the channel layer cannot be used" in caplog.text


@pytest.mark.parametrize(
    "configured", [{}, {"default": {"BACKEND": LAYERS["channels_redis"]}}], ids=["none", "another"]
)
async def test_without_this_layer_listeners_are_told(live_redis, settings, ear, configured):
    """Other layers do not say how their groups can be reached."""
    settings.CHANNEL_LAYERS = configured

    await apublish(TOPIC, {"n": 1})

    assert [told.road for told in stamped_of(ear())] == ["p"]


# Rights.


@contextmanager
def an_account_without_the_groups(client, settings, url):
    """Let this process use an account that may not publish to the layer's groups."""
    words = ["on", ">word", "resetchannels", "~*", "+@all", "&user:*", "&closed:*", "&notifications:*"]
    client.execute_command("ACL", "SETUSER", "narrow", "reset", *words)
    narrow = url.replace("//", "//narrow:word@")
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "REDIS_URL": narrow}
    layer = settings.CHANNEL_LAYERS["default"]
    settings.CHANNEL_LAYERS = {"default": {**layer, "CONFIG": {"hosts": [narrow]}}}
    try:
        yield
    finally:
        client.acl_deluser("narrow")


async def test_a_missing_right_is_said_and_loses_nothing(
    layer, live_redis, redis_server, settings, ear, monkeypatch, caplog
):
    """The message is kept and listeners are told, each once, as if there were no road but theirs."""
    monkeypatch.setattr(history, "_KEPT_OUT", LogBudget(history.logger, lines=1))  # whatever was logged a moment ago
    with an_account_without_the_groups(live_redis, settings, redis_server.url):
        group = direct(get_channel_layer(), TOPIC.group)
        assert group == f"asgi/group/{TOPIC.group}"
        id_ = await apublish(TOPIC, {"n": 1})
        assert await apublish(NOT_KEPT, {"n": 2}) is None
        lease = Lease()
        await lease.take()
        batch = [Raw(topic, tail(b'{"n":3}'), direct(get_channel_layer(), topic.group)) for topic in (TOPIC, NOT_KEPT)]
        assert await get_store().stamp_batch(lease.key, lease.token, 1, batch) == (1, "")

    heard = ear()
    assert [(told.road, told.topic) for told in stamped_of(heard)] == [
        ("p", "user:1"),
        ("r", "user:1"),
        ("u", "closed:7"),
    ]
    assert str(stamped_of(heard)[0].position) == id_
    assert ("closed:7", b'{"n":2}') in heard
    assert caplog.text.count("Redis refuses to publish to the channel layer's groups") == 1
    assert any(words in caplog.text for words in ("permission", "can't publish"))  # servers differ
