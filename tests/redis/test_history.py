"""
Histories in Redis, beyond what every store must do (test_store.py): past the scripts, and where somebody disturbs them.
"""

import json
from contextlib import contextmanager

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from notifications import MessageError, PublishError, Topic, apublish, messages, publish
from notifications.bridge.lease import Lease
from notifications.history import get_store
from notifications.history.changes import SIZE, place_of
from notifications.history.position import Position
from notifications.history.stamped import ACKNOWLEDGED, STAMPED, Stamped, read_stamped, tail, tail_of
from notifications.history.store import NOT_HOLDER, Raw
from notifications.topics import internal_name
from project.local_redis import LocalRedis
from tests.clients import message_of
from tests.conftest import point_to
from tests.redis_groups import REPLICATED
from tests.strategies import ids, payloads
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
        told = [data for channel, data in self.heard() if channel == internal_name(STAMPED)]
        return [read_stamped(data) for data in told if not data.startswith(ACKNOWLEDGED)]


@pytest.fixture
def ear(live_redis):
    with live_redis.pubsub() as subscription:
        subscription.psubscribe("*")
        assert subscription.get_message(timeout=scaled())["type"] == "psubscribe"
        yield Ear(live_redis, subscription)


# Frames.


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(id_=ids, payload=payloads)
def test_the_frame_is_exact_for_any_topic_and_message(live_redis, ear, id_, payload):
    """Quotes, braces and any character arrive as they were given; the topic's own channel has the frame, too."""
    topic = Topic("closed", id_)
    message = messages.encode(payload, 100_000)

    position = publish(topic, payload)

    _, frame = kept(live_redis, topic)[-1]
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
    return [Raw(topic, tail(b'{"n":%d}' % number)) for number in numbers]


@pytest.mark.parametrize("holder", ["another", None])
async def test_who_has_no_lease_stamps_nothing(live_redis, lease, ear, holder):
    """A holder that was paused and wakes, with or without a successor, neither keeps nor announces anything."""
    live_redis.delete(lease)
    if holder:
        live_redis.hset(lease, "token", holder)

    assert await get_store().stamp_batch(lease, "mine", 1, raw(1)) == (NOT_HOLDER, "")

    assert ear.heard() == []
    assert kept(live_redis) == []
    assert live_redis.hget(lease, "token") == (holder and holder.encode())
    assert live_redis.exists(lease) == (holder is not None)


@pytest.mark.parametrize("leased", [True, False])
@pytest.mark.parametrize("refuse", [full, read_only])
async def test_what_redis_refuses_to_keep_goes_out_without_an_id(live_redis, lease, ear, refuse, leased):
    """Raw messages are forwarded as they are, in order, and the holder learns why; also when the lease has ended."""
    published()
    ear.heard()
    batch = [*raw(1), Raw(TOPIC, tail(b"{}")), Raw(TOPIC, tail(b'{ "n" : 2 }'))]
    if not leased:
        live_redis.delete(lease)

    with refuse(live_redis):
        stamped, refusal = await get_store().stamp_batch(lease, "mine", 1, batch)
        told = ear.stamped()

    assert stamped == 0
    assert ("OOM" if refuse is full else "READONLY") in refusal
    assert told == [Stamped("u", str(TOPIC), None, frame) for frame in (b'{"n":1}', b"{}", b'{ "n" : 2 }')]
    assert [tail_of(stamped) for stamped in told] == [each.tail for each in batch]
    assert len(kept(live_redis)) == 1


# Reading.


async def test_look_says_where_many_histories_are(live_redis, settings):
    """Ends, life-time and the server's clock of several topics come at once, also of those without a history."""
    configure(settings, HISTORY_SIZE=2, HISTORY_TTL=50)
    found = published(3)
    before, up = milliseconds(live_redis.time()), live_redis.info("server")["uptime_in_seconds"]

    here, nowhere = await get_store().look([TOPIC, Topic("closed", "nothing")])

    assert (here.first, here.last) == (found[1], found[2])
    assert 40 < here.ttl <= 50
    assert here.position == found[2]
    assert (nowhere.first, nowhere.last, nowhere.ttl) == (None, None, 0)
    assert nowhere.position == (nowhere.now, 0)
    assert before <= here.now <= milliseconds(live_redis.time())
    if str(live_redis.info("replication")["master_replid2"]).strip("0"):
        assert before - 1500 <= here.started <= here.now  # promoted by another test: it knows nothing of before
    else:
        after, up_after = milliseconds(live_redis.time()), live_redis.info("server")["uptime_in_seconds"]
        assert before - up_after * 1000 - 1500 <= here.started <= after - up * 1000 + 1500
    assert here.run == live_redis.info("server")["run_id"][:12]


# Marks of changes.

MARKS = internal_name("changes")
BUCKET = place_of(str(TOPIC)).bucket


@pytest.mark.parametrize("empty", [lambda client: client.delete(MARKS), lambda client: client.flushdb()])
async def test_marks_that_begin_anew_are_not_those_from_before(live_redis, empty):
    """After marks were deleted, or evicted, all topics are compared, whatever was published, and then none."""
    published(3)
    before = await get_store().changes()

    empty(live_redis)
    published(3)

    after = await get_store().changes()
    assert after.since(before) is None
    assert (await get_store().changes()).since(after) == set()


async def test_marks_that_are_gone_have_changed(live_redis):
    """What was published before they were deleted is looked for."""
    published(3)
    before = await get_store().changes()

    live_redis.delete(MARKS)

    assert (await get_store().changes()).since(before) is None


@pytest.mark.parametrize("value", ["text", "too long", "list"])
async def test_a_key_of_marks_that_is_something_else_stops_no_message(live_redis, value):
    """Nobody relies on what is there; with the next messages there are marks again."""
    make = {
        "text": lambda: live_redis.set(MARKS, "x"),
        "too long": lambda: live_redis.setrange(MARKS, SIZE, "x"),
        "list": lambda: live_redis.delete(MARKS) and live_redis.rpush(MARKS, "x"),
    }
    published()
    before = await get_store().changes()
    make[value]()
    tampered = await get_store().changes()
    assert tampered.since(before) is None or BUCKET in tampered.since(before)

    assert [position.n for position in published(2)] == [2, 3]

    after = await get_store().changes()
    assert after.since(tampered) is None or BUCKET in after.since(tampered)
    assert after.since(after) == set()


@pytest.fixture
def limited(live_redis, settings):
    """Return the URL for an account with the rights from before there were marks."""
    rights = "~* &* -@all +ping +info +time +eval +evalsha +get +set +pexpire +xadd +xrange +xrevrange +pttl +publish"
    live_redis.execute_command("ACL", "SETUSER", "limited", "reset", "on", ">secret", *rights.split())
    yield settings.REDIS_URL.replace("://", "://limited:secret@")
    live_redis.acl_deluser("limited")


async def test_an_account_that_may_not_write_marks_may_publish(limited, settings):
    """Rights that are from before there were marks cost time, not messages: it is not known what has changed."""
    point_to(settings, limited)
    before = await get_store().changes()
    assert [position.n for position in published(2)] == [1, 2]

    changes = await get_store().changes()
    assert changes.since(before) is None
    assert changes.since(changes) == set()


@pytest.mark.parametrize("then", [False, True])
async def test_the_marks_of_others_do_not_hide_that_an_account_may_not_write_any(limited, settings, then):
    """Workers may have an account of their own: what they publish must not look as if nothing had happened."""
    everything, other = settings.REDIS_URL, Topic("closed", "another")
    if then:
        point_to(settings, limited)
        published()
        point_to(settings, everything)
    publish(other, {})
    before = await get_store().changes()

    point_to(settings, limited)
    published()
    point_to(settings, everything)
    publish(other, {})

    assert (await get_store().changes()).since(before) is None


async def test_servers_that_know_nothing_of_each_other_write_other_marks(settings):
    """
    A primary that was demoted, and has from its successor other messages than it had, has other marks as well.

    Connections that were open stay open, and name the same server as before.
    """
    with LocalRedis(*REPLICATED) as old, LocalRedis(*REPLICATED, "--replicaof", "127.0.0.1", str(old.port)) as new:
        point_to(settings, old.url)
        published()
        with redis.Redis.from_url(old.url) as client, redis.Redis.from_url(new.url) as replica:
            wait_for(lambda: replica.exists(MARKS), what="a replica that has everything")
            replica.replicaof("NO", "ONE")
            published()  # what the new primary never gets
            before = await get_store().changes()

            point_to(settings, new.url)
            published()
            client.replicaof("127.0.0.1", new.port)
            wait_for(lambda: client.get(MARKS) == replica.get(MARKS), what="a demoted server that has everything")

            point_to(settings, old.url)
            after = await get_store().changes()

    assert after.run == before.run
    assert after.since(before) is None


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
