"""Stamping and history, on a real Redis: ids count without holes and never come twice, frames are exact."""

import asyncio
import json
import time
from contextlib import contextmanager

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from notifications import MessageError, PublishError, Topic, apublish, messages, publish
from notifications.history import get_store
from notifications.history.position import Position
from notifications.history.stamped import STAMPED, Stamped, head, read_stamped, tail, tail_of
from notifications.history.store import NOT_HOLDER, PAGE_BYTES
from notifications.lease import Lease
from notifications.topics import internal_name
from tests.clients import message_of
from tests.waiting import scaled, wait_for

TOPIC = Topic("closed", "7")
RUN = "elsewhere123"
"""As another Redis would write."""


def published(n=1, topic=TOPIC):
    """Publish ``n`` messages and return their positions."""
    return [Position.parse(publish(topic, {"n": number})) for number in range(n)]


def kept(client, topic=TOPIC):
    """Read positions and frames of what a history keeps, past the scripts."""
    entries = client.xrange(topic.history_key)
    return [(Position.parse(id_.decode()), next(iter(fields.values())).decode()) for id_, fields in entries]


def positions(client, topic=TOPIC):
    return [position for position, _ in kept(client, topic)]


def configure(settings, **kind):
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "TOPICS": {"closed": kind}}


@contextmanager
def full(client):
    """Let Redis refuse every write that needs memory."""
    client.config_set("maxmemory", 1)
    try:
        yield
    finally:
        client.config_set("maxmemory", 0)


@contextmanager
def read_only(client):
    """Make Redis a replica, as a failover does with the old master."""
    client.replicaof("127.0.0.1", 1)
    try:
        yield
    finally:
        client.replicaof("NO", "ONE")


class Ear:
    """Hears what is published on the internal channel and on the topics' own."""

    def __init__(self, client, subscription):
        self._client, self._subscription = client, subscription

    def heard(self):
        """Return all that was published until now, as channel and payload."""
        self._client.publish("mark", "")
        heard = []
        while True:
            message = self._subscription.get_message(timeout=scaled())
            assert message is not None
            if message["channel"] == b"mark":
                return heard
            heard.append((message["channel"].decode(), message["data"]))

    def stamped(self):
        """Return what was said on the internal channel."""
        return [read_stamped(data) for channel, data in self.heard() if channel == internal_name(STAMPED)]


@pytest.fixture
def ear(live_redis):
    with live_redis.pubsub() as subscription:
        subscription.psubscribe("*")
        assert subscription.get_message(timeout=scaled())["type"] == "psubscribe"
        yield Ear(live_redis, subscription)


# Ids.


def test_ids_count_without_holes_in_one_epoch(live_redis):
    """From two ids of one epoch anyone can tell next, duplicate and hole."""
    before = int(time.time() * 1000) - 1

    found = published(12)

    assert [position.n for position in found] == list(range(1, 13))
    assert len({position.epoch for position in found}) == 1
    assert before <= found[0].epoch <= time.time() * 1000 + 1
    assert positions(live_redis) == found


async def test_sync_and_async_callers_share_the_count(live_redis):
    """publish and apublish, and callers at the same time, stamp one topic without a hole and without a repeat."""
    at_once = asyncio.gather(*(apublish(TOPIC, {"n": n}) for n in range(50)))
    ids = [publish(TOPIC, {}), *await at_once, await asyncio.to_thread(publish, TOPIC, {})]

    assert sorted(Position.parse(id_) for id_ in ids) == positions(live_redis)
    assert [position.n for position in positions(live_redis)] == list(range(1, 53))


def test_topics_count_apart(live_redis):
    """Each topic has a history of its own."""
    published(3)

    assert published(1, Topic("closed", "8"))[0].n == 1
    assert published(1, Topic("user", "7"))[0].n == 1
    assert published(1)[0].n == 4


@pytest.mark.parametrize("size", [1, 3, 100])
def test_exactly_the_last_messages_are_kept(live_redis, settings, size):
    """A history has HISTORY_SIZE messages and not one more, and trimming does not disturb the count."""
    configure(settings, HISTORY_SIZE=size)

    found = published(size + 5)

    assert positions(live_redis) == found[-size:]
    assert [position.n for position in found] == list(range(1, size + 6))


def test_a_history_lives_its_time_after_the_last_message(live_redis, settings):
    """Each message gives the history HISTORY_TTL seconds more."""
    configure(settings, HISTORY_TTL=500)
    published()
    live_redis.pexpire(TOPIC.history_key, 100_000)

    published()

    assert 490_000 < live_redis.pttl(TOPIC.history_key) <= 500_000


@pytest.mark.parametrize(
    "payload", [{}, {"a": 1}, {"": ""}, {"text": '"}{"_meta":{'}, {"text": "ü\u2028\x00"}, {"_metal": {"_meta": 1}}]
)
@pytest.mark.parametrize("id_", ["7", '"', '{"_meta":{}}', "\\", "ü €", "a b\n", "%s %d", "\x00", "'" * 200])
def test_the_frame_is_the_message_with_meta_first(live_redis, ear, payload, id_):
    """What is kept, echoed on the channel and told to listeners is one and the same frame."""
    check_frame(live_redis, ear, id_, payload)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)
payloads = st.dictionaries(st.text().filter(lambda key: key != "_meta"), json_values, max_size=5)
ids = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(id_=ids, payload=payloads)
def test_the_frame_is_exact_for_any_topic_and_message(live_redis, ear, id_, payload):
    """Quotes, braces and any character in ids and messages arrive as they were given."""
    check_frame(live_redis, ear, id_, payload)


def check_frame(client, ear, id_, payload):
    topic = Topic("closed", id_)
    message = messages.encode(payload, 100_000)

    position = publish(topic, payload)

    _, frame = kept(client, topic)[-1]
    assert frame.startswith('{"_meta":{"topic":')
    assert message_of(frame).encode() == message
    assert json.loads(frame) == {"_meta": {"topic": str(topic), "id": position}, **payload}
    (internal, told), (channel, echoed) = ear.heard()
    assert (internal, channel) == (internal_name(STAMPED), topic.channel)
    assert echoed.decode() == frame
    stamped = read_stamped(told)
    assert replace(stamped, run="", at=0) == Stamped("p", str(topic), Position.parse(position), frame.encode())
    assert tail_of(stamped) == tail(message)


# New epochs.


def began_anew(client, last):
    """Publish, and expect the first message of an epoch that is later than that of ``last``."""
    (position,) = published()
    assert position.n == 1
    assert position.epoch > last.epoch
    assert positions(client)[-1] == position
    return position


def next_millisecond(client):
    """Wait until Redis's clock shows another millisecond: epochs are times."""
    now = client.time()
    wait_for(lambda: milliseconds(client.time()) > milliseconds(now))


def milliseconds(time_):
    return time_[0] * 1000 + time_[1] // 1000


def test_a_history_that_has_expired_begins_anew(live_redis):
    """What comes after the life-time of a history is another epoch."""
    *_, last = published(3)
    live_redis.pexpire(TOPIC.history_key, 1)
    wait_for(lambda: not live_redis.exists(TOPIC.history_key))

    began_anew(live_redis, last)


@pytest.mark.parametrize("ahead", [-1000, 0, 100_000_000])
def test_what_another_server_wrote_is_followed_by_another_epoch(live_redis, ahead):
    """A Redis that was restarted from a snapshot, or promoted, does not go on with a count that it may not know."""
    epoch = milliseconds(live_redis.time()) + ahead
    live_redis.xadd(TOPIC.history_key, {RUN: "{}"}, id=f"{epoch}-5")

    position = began_anew(live_redis, Position(epoch, 5))

    assert positions(live_redis) == [Position(epoch, 5), position]
    assert published() == [Position(position.epoch, 2)]


def test_deleted_entries_are_followed_by_another_epoch(live_redis):
    """An id that was taken back is not given out again."""
    *_, last = published(3)
    live_redis.xdel(TOPIC.history_key, str(last))

    began_anew(live_redis, last)

    assert len(positions(live_redis)) == 1


def test_a_history_emptied_by_hand_is_followed_by_another_epoch(live_redis):
    """An emptied stream remembers its last id, and we keep away from it."""
    *_, last = published(3)
    live_redis.xtrim(TOPIC.history_key, maxlen=0)

    began_anew(live_redis, last)


@pytest.mark.parametrize("later", [0, 1000, 10**16])
def test_an_entry_made_by_hand_is_counted_on(live_redis, later):
    """Who adds an entry with a larger id, as if we had, makes a hole, and no repeat."""
    *_, last = published(3)
    live_redis.xadd(TOPIC.history_key, own_field(live_redis), id=f"{last.epoch + later}-50")

    assert published(2) == [Position(last.epoch + later, 51), Position(last.epoch + later, 52)]


@pytest.mark.parametrize(
    ("id_", "ours"),
    [
        ("18446744073709551615-18446744073709551615", True),
        ("18446744073709551615-18446744073709551615", False),
        ("99999999999999999-1", False),
        ("{epoch}-9223372036854775808", True),
    ],
)
def test_an_absurd_id_made_by_hand_does_not_end_publishing(live_redis, id_, ours):
    """An id that nothing can follow, or that Lua's numbers cannot hold, costs the history and nothing else."""
    *_, last = published(3)
    next_millisecond(live_redis)
    field = own_field(live_redis) if ours else {RUN: "{}"}
    live_redis.xadd(TOPIC.history_key, field, id=id_.format(epoch=last.epoch))

    began_anew(live_redis, last)
    assert published()[0].n == 2


def own_field(client):
    """The field of an entry as this Redis's stamps write it."""
    return {next(iter(client.xrevrange(TOPIC.history_key, count=1)[0][1])): "{}"}


@pytest.mark.parametrize("value", ["text", "list", "hash"])
def test_a_key_of_another_type_is_replaced(live_redis, value):
    """Nobody but us has business under our keys; whatever is there does not stop a message."""
    make = {
        "text": lambda: live_redis.set(TOPIC.history_key, "x"),
        "list": lambda: live_redis.rpush(TOPIC.history_key, "x"),
        "hash": lambda: live_redis.hset(TOPIC.history_key, "a", "b"),
    }
    make[value]()

    assert published()[0].n == 1
    assert published()[0].n == 2


tamper = {
    "delete": lambda client, last: client.delete(TOPIC.history_key),
    "empty": lambda client, last: client.xtrim(TOPIC.history_key, maxlen=0),
    "xdel": lambda client, last: client.xdel(TOPIC.history_key, str(last)),
    "restart": lambda client, last: client.xadd(TOPIC.history_key, {RUN: "{}"}, id=f"{last.epoch}-{last.n + 1}"),
    "type": lambda client, last: (client.delete(TOPIC.history_key), client.set(TOPIC.history_key, "x")),
}


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.sampled_from([*tamper, "publish", "publish"]), max_size=12))
def test_no_id_is_given_out_twice(live_redis, steps):
    """Whatever is done to a history, but that its clock is set back: ids of a topic are all different, and grow."""
    live_redis.delete(TOPIC.history_key)
    next_millisecond(live_redis)
    given_out = published()
    for step in steps:
        if step in tamper:
            next_millisecond(live_redis)
            if live_redis.type(TOPIC.history_key) == b"stream" or step in ("delete", "type"):
                tamper[step](live_redis, given_out[-1])
        given_out += published()

    assert given_out == sorted(set(given_out))


# Idempotency.


async def test_the_same_idempotency_key_publishes_once(live_redis, ear):
    """A retry, sync or async, returns the first id, and nobody hears of it again."""
    first = publish(TOPIC, {"n": 1}, idempotency_key="once")
    ear.heard()

    assert publish(TOPIC, {"n": 2}, idempotency_key="once") == first
    assert await apublish(TOPIC, {"n": 3}, idempotency_key="once") == first

    assert ear.heard() == []
    assert len(kept(live_redis)) == 1
    (key,) = live_redis.keys("*once*")
    assert 290 < live_redis.ttl(key) <= 300


def test_a_key_is_remembered_no_longer_because_a_clock_was_set_back(live_redis):
    """Redis's clock was set back by an hour, so the key would live for that much longer; a retry gives it its time."""
    first = publish(TOPIC, {"n": 1}, idempotency_key="once")
    (key,) = live_redis.keys("*once*")
    live_redis.pexpire(key, 3_900_000)

    assert publish(TOPIC, {"n": 1}, idempotency_key="once") == first
    assert 290 < live_redis.ttl(key) <= 300


@pytest.mark.parametrize("key", ["", "x" * 201, "\ud83d", "order-\udce9"], ids=ascii)
async def test_a_key_that_is_none_is_refused_before_anything_is_sent(live_redis, key):
    """Whatever is wrong with a key is a MessageError, as what is wrong with a message; nothing is published."""
    with pytest.raises(MessageError, match="an idempotency key has"):
        publish(TOPIC, {}, idempotency_key=key)
    with pytest.raises(MessageError, match="an idempotency key has"):
        await apublish(TOPIC, {}, idempotency_key=key)

    assert live_redis.keys() == []


def test_idempotency_keys_are_of_a_topic(live_redis):
    """The same key on another topic, and another key on the same, are other messages."""
    publish(TOPIC, {}, idempotency_key="a")
    publish(TOPIC, {}, idempotency_key="b")
    publish(Topic("closed", "7:a"), {}, idempotency_key="a")

    assert len(kept(live_redis)) == 2
    assert len(kept(live_redis, Topic("closed", "7:a"))) == 1


def test_a_refused_message_may_be_sent_again_under_its_key(live_redis):
    """A key is remembered only when its message was kept."""
    with full(live_redis), pytest.raises(PublishError):
        publish(TOPIC, {"n": 1}, idempotency_key="once")

    publish(TOPIC, {"n": 1}, idempotency_key="once")

    assert len(kept(live_redis)) == 1


def test_idempotency_needs_no_history(live_redis, settings, ear):
    """Where HISTORY_SIZE is 0 a key still holds a repeat back."""
    configure(settings, HISTORY_SIZE=0)

    assert publish(TOPIC, {"n": 1}, idempotency_key="once") is None
    assert publish(TOPIC, {"n": 1}, idempotency_key="once") is None

    assert ear.heard() == [(TOPIC.channel, b'{"n":1}')]


# Redis refuses, or has forgotten the scripts.


@pytest.mark.parametrize("refuse", [full, read_only])
async def test_a_redis_that_refuses_writes_is_a_publish_error_and_nothing_is_out(live_redis, ear, refuse):
    """What could not be kept is not told to anybody either: the caller may send it again."""
    published(2)
    ear.heard()
    with refuse(live_redis):
        with pytest.raises(PublishError):
            publish(TOPIC, {"lost": True})
        with pytest.raises(PublishError):
            await apublish(TOPIC, {"lost": True})

        assert ear.heard() == []

    assert published()[0].n == 3


async def test_forgotten_scripts_are_brought_again(live_redis, ear):
    """SCRIPT FLUSH between two calls is noticed by nobody."""
    published()
    live_redis.script_flush()
    published()
    live_redis.script_flush()
    await apublish(TOPIC, {})
    live_redis.script_flush()
    await get_store().look([TOPIC])
    live_redis.script_flush()
    page = await get_store().read(TOPIC, Position(0, 0))

    assert [frame.position.n for frame in page.frames] == [1, 2, 3]
    assert len(ear.stamped()) == 3


# Batches of the lease holder.


@pytest.fixture
def lease(live_redis):
    """A lease that the token ``mine`` has."""
    key = Lease().key
    live_redis.hset(key, "token", "mine")
    return key


def raw(*numbers, topic=TOPIC):
    return [(topic, tail(b'{"n":%d}' % number)) for number in numbers]


async def test_a_batch_is_stamped_in_its_order(live_redis, lease, ear):
    """Raw messages of several topics are kept and told in the order in which the holder read them."""
    other = Topic("closed", 'o"ther')
    batch = [*raw(1), *raw(2, topic=other), *raw(3, 4), *raw(5, topic=other)]

    assert await get_store().stamp_batch(lease, "mine", 1, batch) == (5, "")

    told = ear.stamped()
    assert [(stamped.road, stamped.topic, stamped.position.n) for stamped in told] == [
        ("r", "closed:7", 1),
        ("r", 'closed:o"ther', 1),
        ("r", "closed:7", 2),
        ("r", "closed:7", 3),
        ("r", 'closed:o"ther', 2),
    ]
    assert [json.loads(stamped.frame)["n"] for stamped in told] == [1, 2, 3, 4, 5]
    assert [tail_of(stamped) for stamped in told] == [rest for _, rest in batch]
    assert [stamped.frame.decode() for stamped in told if stamped.topic == "closed:7"] == [
        frame for _, frame in kept(live_redis)
    ]


async def test_both_roads_share_one_count(live_redis, lease, ear):
    """Raw and published messages of a topic have one order."""
    published()
    await get_store().stamp_batch(lease, "mine", 1, raw(7))
    published()

    assert [(stamped.road, stamped.position.n) for stamped in ear.stamped()] == [("p", 1), ("r", 2), ("p", 3)]


@pytest.mark.parametrize("holder", ["another", None])
async def test_who_has_no_lease_stamps_nothing(live_redis, lease, ear, holder):
    """A holder that was paused and wakes, with or without a successor, neither keeps nor tells anything."""
    live_redis.delete(lease)
    if holder:
        live_redis.hset(lease, "token", holder)

    assert await get_store().stamp_batch(lease, "mine", 1, raw(1)) == (NOT_HOLDER, "")

    assert ear.heard() == []
    assert kept(live_redis) == []
    assert live_redis.hget(lease, "token") == (holder and holder.encode())
    assert live_redis.exists(lease) == (holder is not None)


async def test_a_batch_whose_reply_was_lost_is_not_stamped_again(live_redis, lease, ear):
    """The same number is the same batch: it is answered with -2, and nothing is kept or told twice."""
    await get_store().stamp_batch(lease, "mine", 1, raw(1, 2))
    ear.heard()

    assert await get_store().stamp_batch(lease, "mine", 1, raw(1, 2)) == (-2, "")
    assert ear.heard() == []

    assert await get_store().stamp_batch(lease, "mine", 2, raw(3)) == (1, "")
    assert [position.n for position in positions(live_redis)] == [1, 2, 3]


@pytest.mark.parametrize("leased", [True, False])
@pytest.mark.parametrize("refuse", [full, read_only])
async def test_what_redis_refuses_to_keep_goes_out_without_an_id(live_redis, lease, ear, refuse, leased):
    """Raw messages are forwarded as they are, in order, and the holder learns why; also when the lease has ended."""
    published()
    ear.heard()
    batch = [*raw(1), (TOPIC, tail(b"{}")), (TOPIC, tail(b'{ "n" : 2 }'))]
    if not leased:
        live_redis.delete(lease)

    with refuse(live_redis):
        stamped, refusal = await get_store().stamp_batch(lease, "mine", 1, batch)
        told = ear.stamped()

    assert stamped == 0
    assert ("OOM" if refuse is full else "READONLY") in refusal
    assert told == [Stamped("u", str(TOPIC), None, frame) for frame in (b'{"n":1}', b"{}", b'{ "n" : 2 }')]
    assert [tail_of(stamped) for stamped in told] == [rest for _, rest in batch]
    assert len(kept(live_redis)) == 1


async def test_kinds_without_a_history_go_out_without_an_id(live_redis, lease, ear, settings):
    """HISTORY_SIZE 0 is no refusal; other messages of the same batch are stamped."""
    configure(settings, HISTORY_SIZE=0)

    answer = await get_store().stamp_batch(lease, "mine", 1, [*raw(1), *raw(2, topic=Topic("user", "7"))])

    assert answer == (1, "")
    assert [(stamped.road, stamped.position and stamped.position.n) for stamped in ear.stamped()] == [
        ("u", None),
        ("r", 1),
    ]


@given(road=st.sampled_from("pr"), topic=ids, epoch=st.integers(0, 10**14), n=st.integers(0, 10**14), payload=payloads)
def test_what_listeners_are_told_can_be_read_back(road, topic, epoch, n, payload):
    """Topic, id, frame and the tail it was made with survive the way, with whatever characters."""
    position, data = Position(epoch, n), messages.encode(payload, 100_000)
    frame = head(topic) + str(position).encode() + b'"}' + tail(data)
    size = len(topic.encode())

    stamped = read_stamped(
        b"%s%d %s 0123456789ab %s%s" % (road.encode(), size, str(position).encode(), topic.encode(), frame)
    )

    assert stamped == Stamped(road, topic, position, frame, "0123456789ab")
    assert tail_of(stamped) == tail(data)
    assert json.loads(frame) == {"_meta": {"topic": topic, "id": str(position)}, **payload}


@pytest.mark.parametrize("data", [b"", b"m0123456789abcdef", b"p", b"p5", b"px 1-1 abc"])
def test_a_marker_is_no_stamped_message(data):
    """What is not ours, or another listener's marker, is a ValueError and nothing worse."""
    with pytest.raises(ValueError):
        read_stamped(data)


# Reading.


async def test_look_says_where_many_histories_are(live_redis, settings):
    """Ends, life-time and the server's clock of several topics come at once, also of those without a history."""
    configure(settings, HISTORY_SIZE=2, HISTORY_TTL=50)
    found = published(3)
    before = milliseconds(live_redis.time())

    here, nowhere = await get_store().look([TOPIC, Topic("closed", "nothing")])

    assert (here.first, here.last) == (found[1], found[2])
    assert 49 < here.ttl <= 50
    assert here.position == found[2]
    assert (nowhere.first, nowhere.last, nowhere.ttl) == (None, None, 0)
    assert nowhere.position == (nowhere.now, 0)
    assert before <= here.now <= milliseconds(live_redis.time())
    if str(live_redis.info("replication")["master_replid2"]).strip("0"):
        assert before - 1500 <= here.started <= here.now  # promoted by another test: it knows nothing of before
    else:
        started = before - live_redis.info("server")["uptime_in_seconds"] * 1000
        assert abs(here.started - started) <= 1500
    assert here.run == live_redis.info("server")["run_id"][:12]


async def test_several_pages_make_the_whole(live_redis):
    """Each page has a bounded number of bytes, and from page to page nothing is missing or doubled."""
    size = 40_000
    found = [Position.parse(publish(TOPIC, {"n": n, "text": "x" * size})) for n in range(20)]
    frames, pages, after = [], 0, Position(0, 0)
    while after != found[-1]:
        page = await get_store().read(TOPIC, after)
        assert sum(len(frame.text) for frame in page.frames) >= PAGE_BYTES or page.frames[-1].position == found[-1]
        assert sum(len(frame.text) for frame in page.frames) < PAGE_BYTES + size + 200
        assert (page.first, page.last) == (found[0], found[-1])
        frames += page.frames
        pages += 1
        after = page.frames[-1].position

    assert [frame.position for frame in frames] == found
    assert [tuple(frame) for frame in frames] == kept(live_redis)
    assert pages == 3


async def test_a_page_of_many_small_messages_is_complete(live_redis):
    """The script's own steps, 16 entries each, are not seen from outside."""
    for amount in (1, 15, 16, 17, 33):
        topic = Topic("closed", str(amount))
        found = published(amount, topic)

        page = await get_store().read(topic, Position(found[0].epoch, 0))

        assert [frame.position for frame in page.frames] == found


async def test_reading_begins_after_the_position(live_redis):
    """The message at the position itself does not come again; from the last position nothing comes."""
    found = published(3)

    assert [frame.position for frame in (await get_store().read(TOPIC, found[0])).frames] == found[1:]
    assert (await get_store().read(TOPIC, found[2])).frames == []
    assert (await get_store().read(TOPIC, Position(found[0].epoch + 1, 0))).frames == []
    empty = await get_store().read(Topic("closed", "nothing"), found[0])
    assert (empty.first, empty.last, empty.frames) == (None, None, [])


@pytest.mark.parametrize("text", ["", "1", "-", "1-", "-1", "a-1", "1-b", "1-1-1"])
def test_what_is_no_id_cannot_be_read(text):
    """An id is two numbers; anything else is a ValueError."""
    with pytest.raises(ValueError):
        Position.parse(text)


def test_ids_are_compared_as_numbers():
    """10 comes after 9, which text would not know."""
    assert Position.parse("5-10") > Position.parse("5-9")
    assert str(Position.parse("5-10")) == "5-10"


def test_redis_does_not_hold_what_it_refused(live_redis):
    """After a refusal there is no key: not even an empty one."""
    with full(live_redis), pytest.raises(PublishError):
        publish(TOPIC, {})

    assert live_redis.keys() == []


@pytest.mark.parametrize(("server", "whole"), [("this", True), ("another", False)])
async def test_it_is_said_whether_the_end_of_a_history_is_known(live_redis, server, whole):
    """After a restart from a snapshot the last entry is another server's, which may have written more."""
    published()
    field = own_field(live_redis) if server == "this" else {RUN: "{}"}
    live_redis.xadd(TOPIC.history_key, field, id="9" * 15 + "-1")

    [where] = await get_store().look([TOPIC])
    page = await get_store().read(TOPIC, Position(0, 0))

    assert (where.whole, page.whole) == (whole, whole)
    assert (page.run, page.now >= where.now) == (where.run, True)
