"""
What every channel layer promises, from Channels' specification, on Channels' own layer, channels_redis's and ours.

https://channels.readthedocs.io/en/latest/channel_layer_spec.html. Where a layer does not promise something, the
test names those that do.
"""

import asyncio
import math
from contextlib import asynccontextmanager, suppress

import pytest
from channels.layers import InMemoryChannelLayer
from channels_redis.core import RedisChannelLayer
from channels_redis.pubsub import RedisPubSubChannelLayer

from notifications.layers import RedisPubSubLayer
from tests.redis_groups import RedisCluster
from tests.waiting import await_for, scaled

CAPACITY = 20


class ConfirmingPubSubChannelLayer(RedisPubSubChannelLayer):
    """Waits until Redis has confirmed, which the real one does not, so that its tests do not depend on luck."""

    def __init__(self, client, **config):
        super().__init__(**config)
        self.client = client

    async def new_channel(self):
        name = await self._get_layer().new_channel()
        await self.confirmed()
        return name

    async def group_add(self, group, channel):
        await self._get_layer().group_add(group, channel)
        await self.confirmed()

    async def confirmed(self):
        [shard] = self._get_layer()._shards
        await await_for(lambda: {name.encode() for name in shard._subscribed_to} <= set(self.client.pubsub_channels()))


def make_layer(kind, client, url, prefix="asgi"):
    if kind == "memory":
        return InMemoryChannelLayer(capacity=CAPACITY)
    if kind == "channels_redis.pubsub":
        return ConfirmingPubSubChannelLayer(client, hosts=[url], prefix=prefix)
    if kind == "channels_redis.core":
        # With redis-py's default of 5 s its blocking reads of 5 s fail.
        return RedisChannelLayer(hosts=[{"address": url, "socket_timeout": 30}], prefix=prefix, capacity=CAPACITY)
    return RedisPubSubLayer(hosts=[url], prefix=prefix, capacity=CAPACITY)


OURS = ("ours", "ours on a cluster")
KINDS = ("memory", "channels_redis.pubsub", "channels_redis.core", *OURS)


def on(*kinds):
    """Run a test on these layers only."""
    return pytest.mark.parametrize("kind", kinds)


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def cluster(redis_program):
    """Three primaries."""
    with RedisCluster(replicas=0, steady=True) as cluster:
        yield cluster


@pytest.fixture
def make(kind, live_redis, redis_server, request, settings):
    """Make layers of the kind; they are flushed after the test."""
    url = redis_server.url
    if kind == "ours on a cluster":
        url = request.getfixturevalue("cluster").url
        settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "SHARDS": 8}

    @asynccontextmanager
    async def make(prefix="asgi"):
        layer = make_layer(kind, live_redis, url, prefix)
        try:
            yield layer
        finally:
            await layer.flush()

    return make


@pytest.fixture
async def layer(make):
    async with make() as layer:
        yield layer


@pytest.fixture
def subscribed(kind, live_redis, request):
    """Return a function that returns the channels, of both sorts, that somebody listens on anywhere."""
    servers = [live_redis]
    if kind == "ours on a cluster":
        cluster = request.getfixturevalue("cluster")
        servers = [cluster.client(node) for node in cluster.nodes]

    def ask(server, command):
        return [each if isinstance(each, str) else each.decode() for each in server.execute_command("PUBSUB", command)]

    return lambda: {
        each for server in servers for command in ("CHANNELS", "SHARDCHANNELS") for each in ask(server, command)
    }


async def take(layer, channel):
    async with asyncio.timeout(scaled()):
        return await layer.receive(channel)


async def expect_nothing_more(layer, channel):
    """Nothing waits in the channel: what is sent now comes next. A cancelled ``receive`` would end the channel."""
    await layer.send(channel, {"type": "end"})
    assert await take(layer, channel) == {"type": "end"}


# Channels.


async def test_a_channel_gives_what_was_sent_in_the_order_of_sending(layer):
    """A channel is a first-in, first-out queue."""
    channel = await layer.new_channel()

    for n in range(CAPACITY):
        await layer.send(channel, {"type": "numbered", "n": n})

    assert [(await take(layer, channel))["n"] for _ in range(CAPACITY)] == list(range(CAPACITY))
    await expect_nothing_more(layer, channel)


async def test_receive_waits_for_what_is_sent_later(layer):
    """``receive`` that began on an empty channel returns what is sent afterwards."""
    channel = await layer.new_channel()
    receiving = asyncio.create_task(take(layer, channel))
    await asyncio.sleep(0)

    await layer.send(channel, {"type": "late"})

    assert await receiving == {"type": "late"}


async def test_each_message_goes_to_one_of_two_readers_of_a_channel(layer):
    """Two tasks that read one channel share its messages: each is given out once, and neither waits for ever."""
    channel = await layer.new_channel()
    readers = [asyncio.create_task(take(layer, channel)) for _ in range(2)]
    await asyncio.sleep(0.01)

    await layer.send(channel, {"type": "numbered", "n": 1})
    await layer.send(channel, {"type": "numbered", "n": 2})

    assert sorted(message["n"] for message in await asyncio.gather(*readers)) == [1, 2]


@on("memory", "channels_redis.core", *OURS)
async def test_new_channels_are_unique_and_belong_to_the_process(layer):
    """``new_channel`` never returns a name twice, and its names have the mark of process-specific ones."""
    names = [await layer.new_channel() for _ in range(100)]

    assert len(set(names)) == 100
    assert all("!" in name and layer.require_valid_channel_name(name) for name in names)


async def test_channels_do_not_get_each_others_messages(layer):
    """What is sent to one channel reaches no other."""
    first, second = await layer.new_channel(), await layer.new_channel()

    await layer.send(first, {"type": "first"})
    await layer.send(second, {"type": "second"})

    assert await take(layer, first) == {"type": "first"}
    assert await take(layer, second) == {"type": "second"}
    await expect_nothing_more(layer, first)


@on("memory", "channels_redis.pubsub", *OURS)
@pytest.mark.parametrize("name", ["worker", "a.worker-of_mine.7", "worker!", "worker!local"])
async def test_a_channel_may_have_a_name_of_ones_own(layer, name):
    """Whoever receives on a valid name of their own choice gets what is sent to it, as Channels' workers do."""
    receiving = asyncio.create_task(take(layer, name))
    await asyncio.sleep(0.01)
    while not receiving.done():  # pub/sub has nothing for who comes later, and this name is not confirmed
        await layer.send(name, {"type": "work"})
        await asyncio.sleep(0.01)

    assert await receiving == {"type": "work"}


VALID = ["a", "A.b-c_9", "x" * 99]
INVALID = ["", "a b", "a/b", "a:b", "größe", "a!b!c", "x" * 100, b"bytes", None, 7]
OURS_ONLY = ["a\n", "\u0663", "a!\u00e9", "a!b\n"]
"""Channels' regular expressions let these pass: ``$`` stands before a line break, ``\\d`` and ``\\w`` know Unicode."""


@on("memory", "channels_redis.core", *OURS)
@pytest.mark.parametrize("name", INVALID)
async def test_invalid_names_are_refused(layer, name):
    """Names are under 100 ASCII letters, digits, hyphens, underscores and periods; others are a TypeError."""
    await refuses(layer, name)


@on(*OURS)
@pytest.mark.parametrize("name", OURS_ONLY)
async def test_names_that_only_look_valid_are_refused(layer, name):
    """A line break at the end and characters beyond ASCII are as invalid as the specification says."""
    await refuses(layer, name)


async def refuses(layer, name):
    channel = await layer.new_channel()
    for call in (
        layer.send(name, {"type": "x"}),
        layer.group_add(name, channel),
        layer.group_discard(name, channel),
        layer.group_send(name, {"type": "x"}),
    ):
        with pytest.raises(TypeError):
            await call
    with pytest.raises(TypeError):
        await layer.group_add("group", name)


@pytest.mark.parametrize("name", VALID)
async def test_valid_names_are_taken(layer, name):
    """Every valid name may name a group."""
    channel = await layer.new_channel()
    await layer.group_add(name, channel)

    await layer.group_send(name, {"type": "x"})

    assert await take(layer, channel) == {"type": "x"}


# Messages.

MESSAGES = {
    "bytes": b"\x00\xff",
    "text": "Größe 😀 \u2028 \x00",
    "integers": [0, -1, 2**63 - 1, -(2**63)],
    "floats": [0.5, -0.0, 1e308, math.inf],
    "truth": [True, False, None],
    "empty": [{}, [], "", b""],
    "nested": {"a": [{"b": {"c": [1, [2, [b"3", None]]]}}]},
    "integral float": 1.0,
    "key like an option": {"__asgi_group__": 1, "type": 2},
}


@pytest.mark.parametrize("value", MESSAGES.values(), ids=MESSAGES.keys())
async def test_messages_keep_their_values_and_types(layer, value):
    """Bytes, text, 64-bit integers, floats, lists, dicts, booleans and None arrive as they were, nested too."""
    channel = await layer.new_channel()
    await layer.group_add("group", channel)

    await layer.send(channel, {"type": "x", "value": value})
    direct = await take(layer, channel)
    await layer.group_send("group", {"type": "x", "value": value})
    by_group = await take(layer, channel)

    assert repr(direct) == repr(by_group) == repr({"type": "x", "value": value})


async def test_a_message_of_a_megabyte_is_carried(layer):
    """Layers carry messages of at least 1 MB."""
    channel = await layer.new_channel()

    await layer.send(channel, {"type": "x", "text": "x" * 1_000_000})

    assert len((await take(layer, channel))["text"]) == 1_000_000


async def test_subclasses_are_carried_as_what_they_are(layer):
    """Safe strings of templates, and subclasses of numbers, dicts and lists, arrive as their plain types' values."""
    from collections import OrderedDict

    from django.utils.safestring import mark_safe

    number, real, raw = type("N", (int,), {}), type("F", (float,), {}), type("B", (bytes,), {})
    channel = await layer.new_channel()

    value = OrderedDict(html=mark_safe("<b>"), n=number(7), f=real(0.5), b=raw(b"x"), items=type("L", (list,), {})([1]))
    await layer.send(channel, {"type": "x", "value": value})

    assert (await take(layer, channel))["value"] == {"html": "<b>", "n": 7, "f": 0.5, "b": b"x", "items": [1]}


async def test_tuples_become_lists(make, kind):
    """Tuples are encoded as lists; the layer in memory encodes nothing and keeps them."""
    if kind == "memory":
        pytest.skip("encodes nothing")
    async with make() as layer:
        channel = await layer.new_channel()

        await layer.send(channel, {"type": "x", "value": (1, (2,))})

        assert (await take(layer, channel))["value"] == [1, [2]]


@on("memory", *OURS)
@pytest.mark.parametrize("message", ["text", ["list"], None])
async def test_what_is_no_dict_is_refused(layer, message):
    """Messages are dicts; anything else is an error for the sender."""
    channel = await layer.new_channel()

    with pytest.raises((TypeError, AssertionError)):
        await layer.send(channel, message)
    with pytest.raises((TypeError, AssertionError)):
        await layer.group_send("group", message)


@on("channels_redis.pubsub", "channels_redis.core", *OURS)
@pytest.mark.parametrize("value", [object(), 2**70], ids=["an object", "more than 64 bits"])
async def test_what_cannot_be_carried_is_the_senders_error(layer, value):
    """A value that no layer carries raises where it is sent, and the channel goes on."""
    channel = await layer.new_channel()

    with pytest.raises((TypeError, ValueError, OverflowError)):
        await layer.send(channel, {"type": "x", "value": value})

    await expect_nothing_more(layer, channel)


@on("memory", "channels_redis.pubsub", *OURS)  # the core layer gives the channels of one process the same dict
@pytest.mark.parametrize("value", ["flat", {"deep": [1, {"deeper": [2]}]}], ids=["flat", "nested"])
async def test_consumers_may_change_what_they_get(layer, value):
    """What one consumer does to its message, on the surface or deep inside, no other consumer sees."""
    channels = [await layer.new_channel() for _ in range(2)]
    for channel in channels:
        await layer.group_add("group", channel)
    sent = {"type": "x", "value": value}
    await layer.group_send("group", sent)

    first = await take(layer, channels[0])
    first["type"] = "changed"
    if isinstance(value, dict):
        first["value"]["deep"][1]["deeper"].append("changed")

    assert await take(layer, channels[1]) == {"type": "x", "value": value}
    assert sent == {"type": "x", "value": value}


# Groups.


async def test_a_group_reaches_all_its_channels_and_no_others(layer):
    """``group_send`` gives the message to each member once."""
    members = [await layer.new_channel() for _ in range(3)]
    stranger = await layer.new_channel()
    for channel in members:
        await layer.group_add("group", channel)
    await layer.group_add("other", stranger)

    await layer.group_send("group", {"type": "x"})

    for channel in members:
        assert await take(layer, channel) == {"type": "x"}
        await expect_nothing_more(layer, channel)
    await expect_nothing_more(layer, stranger)


async def test_who_is_added_twice_gets_a_message_once_and_leaves_at_once(layer):
    """``group_add`` of a member returns normally and changes nothing; one ``group_discard`` takes it out."""
    channel = await layer.new_channel()
    await layer.group_add("group", channel)
    await layer.group_add("group", channel)

    await layer.group_send("group", {"type": "x"})
    assert await take(layer, channel) == {"type": "x"}
    await layer.group_discard("group", channel)
    await layer.group_send("group", {"type": "y"})

    await expect_nothing_more(layer, channel)


async def test_a_channel_may_be_in_several_groups(layer):
    """A channel gets what is sent to each of its groups, and leaves each alone."""
    channel = await layer.new_channel()
    for group in ("a", "b", "c"):
        await layer.group_add(group, channel)
    await layer.group_discard("b", channel)

    for group in ("a", "b", "c"):
        await layer.group_send(group, {"type": group})

    assert {(await take(layer, channel))["type"] for _ in range(2)} == {"a", "c"}
    await expect_nothing_more(layer, channel)


async def test_who_leaves_and_comes_back_is_a_member(layer, subscribed):
    """A member that left gets nothing of what was sent meanwhile, and everything after it was added again."""
    channel = await layer.new_channel()
    await layer.group_add("group", channel)
    await layer.group_discard("group", channel)
    # Or Redis, if it was busy, would read on one connection that it left and came back before what was sent on another.
    await await_for(lambda: not [name for name in subscribed() if "group" in name])
    await layer.group_send("group", {"type": "missed"})

    await layer.group_add("group", channel)
    await layer.group_send("group", {"type": "x"})

    # With pub/sub what was sent before may still have been on its way to who comes next; here nobody was subscribed.
    assert await take(layer, channel) == {"type": "x"}


async def test_leaving_what_one_is_not_in_does_nothing(layer):
    """``group_discard`` of a stranger, of an unknown group or an unknown channel is no error, nor when repeated."""
    channel = await layer.new_channel()
    await layer.group_add("group", channel)

    await layer.group_discard("unknown", channel)
    await layer.group_discard("group", "unknown")
    await layer.group_discard("group", await layer.new_channel())
    await layer.group_send("group", {"type": "x"})
    assert await take(layer, channel) == {"type": "x"}

    await layer.group_discard("group", channel)
    await layer.group_discard("group", channel)


async def test_an_empty_group_takes_everything(layer):
    """``group_send`` to a group without members is no error."""
    await layer.group_send("nobody", {"type": "x"})


async def sent_to_groups_in_turn(layer):
    """Send numbers to four groups of one channel, one group after the other, and return them as they arrived."""
    channel = await layer.new_channel()
    for n in range(4):
        await layer.group_add(f"group{n}", channel)

    for n in range(CAPACITY):
        await layer.group_send(f"group{n % 4}", {"type": "x", "n": n})

    return [(await take(layer, channel))["n"] for _ in range(CAPACITY)]


async def test_messages_of_one_sender_keep_their_order_in_each_group(layer):
    """What one task sends to a group arrives in the order of sending, whatever it sends to other groups."""
    received = await sent_to_groups_in_turn(layer)

    assert [[n for n in received if n % 4 == group] for group in range(4)] == [
        list(range(group, CAPACITY, 4)) for group in range(4)
    ]


@on("memory", "channels_redis.pubsub", "channels_redis.core", "ours")
async def test_messages_of_one_sender_keep_their_order_across_groups(layer):
    """What one task sends to several groups of a channel arrives in the order of sending, except on a cluster."""
    assert await sent_to_groups_in_turn(layer) == list(range(CAPACITY))


async def test_layers_name_their_extensions(layer):
    """All of them have the extensions ``groups`` and ``flush``."""
    assert {"groups", "flush"} <= set(layer.extensions)


# Flush.


async def test_flush_forgets_groups_and_messages_and_the_layer_goes_on(layer):
    """After ``flush`` the layer is like new: nothing waits, nobody is in a group, and everything may begin again."""
    channel = await layer.new_channel()
    await layer.group_add("group", channel)
    await layer.group_send("group", {"type": "old"})

    await layer.flush()
    await layer.group_send("group", {"type": "nobody"})
    again = await layer.new_channel()
    await layer.group_add("new", again)
    await layer.group_send("new", {"type": "new"})

    assert await take(layer, again) == {"type": "new"}


async def test_flush_of_an_unused_layer_and_twice_is_no_error(layer):
    """``flush`` may be called at any time."""
    await layer.flush()
    await layer.flush()


# Capacity.


@on("memory", *OURS)  # the core layer counts per process
async def test_a_full_channel_keeps_the_oldest_and_groups_go_on(layer):
    """``group_send`` to a full channel drops the new message without an error; the other members get it."""
    full, emptied = await layer.new_channel(), await layer.new_channel()
    for channel in (full, emptied):
        await layer.group_add("group", channel)
    for n in range(CAPACITY):
        await layer.group_send("group", {"type": "x", "n": n})
    assert [(await take(layer, emptied))["n"] for _ in range(CAPACITY)] == list(range(CAPACITY))

    await layer.group_send("group", {"type": "x", "n": CAPACITY})

    assert (await take(layer, emptied))["n"] == CAPACITY
    assert [(await take(layer, full))["n"] for _ in range(CAPACITY)] == list(range(CAPACITY))
    await expect_nothing_more(layer, full)


# Prefix and cancellation, on Redis.


@on("channels_redis.pubsub", "channels_redis.core", *OURS)
@pytest.mark.parametrize("other", ["two", "one.group", "one/group"])
async def test_the_prefix_separates_two_sites(make, other):
    """Sites with different prefixes on one Redis do not hear each other, whatever they call their groups."""
    async with make("one") as here, make(other) as there:
        mine, theirs = await here.new_channel(), await there.new_channel()
        for group in ("group", "x", "group.x", "group.group.x"):
            await here.group_add(group, mine)
            await there.group_add(group, theirs)

        for group in ("group", "x", "group.x", "group.group.x"):
            await here.group_send(group, {"type": "here"})
            await there.group_send(group, {"type": "there"})

        assert [(await take(here, mine))["type"] for _ in range(4)] == ["here"] * 4
        assert [(await take(there, theirs))["type"] for _ in range(4)] == ["there"] * 4


@on("channels_redis.pubsub", *OURS)
async def test_a_cancelled_receive_forgets_the_channel(layer, kind, subscribed):
    """A consumer that goes leaves no subscription behind in Redis: not of its channel, not of its groups."""
    before = subscribed()
    channel = await layer.new_channel()
    receiving = asyncio.create_task(layer.receive(channel))
    if kind in OURS:  # channels_redis leaves the groups of a channel that is gone
        for n in range(5):
            await layer.group_add(f"group{n}", channel)
        await await_for(lambda: len([name for name in subscribed() if "/group" in name]) == 5)
    await asyncio.sleep(0)

    receiving.cancel()
    with suppress(asyncio.CancelledError):
        await receiving

    if kind in OURS:
        await layer.new_channel()  # the channels of an event loop share one; the next consumer has it again
        await await_for(lambda: not [name for name in subscribed() if "/group" in name])
        assert len(subscribed() - before) == 1
    else:  # what another test has ended may have been among them for a moment
        await await_for(lambda: subscribed() <= before)
