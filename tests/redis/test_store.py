"""
What a history store must do, in Redis and in memory: one suite for all stores, and what callers lean on.

What only Redis can do, such as being restarted or tampered with, is in test_history.py.
"""

import asyncio
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from typing import Any, Protocol

import msgspec
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from notifications import Topic, messages
from notifications.broker.clients import FAILURES
from notifications.channel_layer.serializer import decode
from notifications.history import get_store, put_in_place
from notifications.history.changes import place_of
from notifications.history.inlet import (
    INLET,
    MAX_BYTES,
    MAX_DROPPED,
    MAX_ENTRIES,
    MAX_REFUSED,
    REFUSED,
    Checked,
    Outcome,
    Waiting,
)
from notifications.history.memory import MemoryStore
from notifications.history.position import Position
from notifications.history.redis import RedisStore
from notifications.history.shares import WHOLE, Report, Share, Standing
from notifications.history.stamped import ACKNOWLEDGED, STAMPED, Stamped, read_stamped, tail, tail_of
from notifications.history.store import (
    DONE_BEFORE,
    NOT_HOLDER,
    PAGE_BYTES,
    Outgoing,
    OvertakenError,
    Raw,
    Store,
    term_key,
)
from notifications.topics import internal_name
from tests.strategies import ids, payloads
from tests.waiting import await_for, scaled

TOPIC = Topic("closed", "7")
OTHER = Topic("closed", 'o"ther')
LEASE = "lease"


class Place(Protocol):
    """A store, and what its tests need that no caller does."""

    store: Store

    def heard(self) -> list[Stamped]:
        """Return what listeners have been told since this was asked last, in its order."""

    def give_lease(self, token: str | None) -> None:
        """Let this token have the lease; None: nobody."""

    def term(self) -> str:
        """Return the term of the lease; empty when it has ended."""

    def delivered(self, group: str) -> list[dict[str, Any]]:
        """Return what a group was sent until listeners were asked last."""

    def append(self, **fields: Any) -> str:
        """Append an entry to the inlet, as another program does, and return its id."""

    def refused(self) -> list[tuple[str, str]]:
        """Return the entries that were set aside: the id of each, and why."""

    def full(self) -> Any:
        """Return a context manager while whose block is open there is no room for anything new."""


class InRedis:
    """A store whose listeners are subscribed to everything, as the bridge is."""

    def __init__(self, client, subscription):
        self.store = RedisStore()
        self._client, self._subscription = client, subscription
        self._delivered = []

    def delivered(self, group):
        return [decode(message) for channel, message in self._delivered if channel == group]

    def heard(self):
        self._client.publish("mark", "")
        heard = []
        while True:
            message = self._subscription.get_message(timeout=scaled())
            assert message is not None
            channel, data = message["channel"].decode(), message["data"]
            if channel == "mark":
                return heard
            if channel.startswith("asgi/"):
                self._delivered.append((channel, data))
            elif channel == internal_name(STAMPED):
                if not data.startswith(ACKNOWLEDGED):
                    heard.append(read_stamped(data))
            elif not data.startswith(b'{"_meta"'):  # an echo for whoever watches the channel
                heard.append(Stamped("u", channel, None, data))

    def give_lease(self, token):
        self._client.delete(LEASE)
        if token is not None:
            self._client.hset(LEASE, "token", token)
            self._client.set(term_key(LEASE), f"term of {token}")

    def term(self):
        return (self._client.get(term_key(LEASE)) or b"").decode()

    def append(self, **fields):
        return self._client.xadd(internal_name(INLET), fields).decode()

    def refused(self):
        entries = self._client.xrange(internal_name(REFUSED))
        return [(fields[b"id"].decode(), fields[b"reason"].decode()) for _, fields in entries]

    @contextmanager
    def full(self):
        self._client.config_set("maxmemory", 1)
        try:
            yield
        finally:
            self._client.config_set("maxmemory", 0)


class InMemory:
    """A store whose listeners are a list."""

    def __init__(self):
        self._heard = []
        self.store = MemoryStore(self._heard.append)

    def delivered(self, group):
        return []

    def heard(self):
        heard = self._heard[:]
        self._heard.clear()
        return heard

    def give_lease(self, token):
        self.store.give_lease(LEASE, token or "")

    def term(self):
        return self.store.term(LEASE)

    def append(self, **fields):
        words = [word for field in fields.items() for word in field]
        return self.store.append(*(word if isinstance(word, bytes) else str(word).encode() for word in words))

    def refused(self):
        return self.store.refused()

    @contextmanager
    def full(self):
        allowed, self.store._max_bytes = self.store._max_bytes, 0
        try:
            yield
        finally:
            self.store._max_bytes = allowed


@pytest.fixture(params=["redis", "memory"])
def place(request) -> Iterator[Place]:
    """Each place that histories can be kept in; add one here, and it has to pass."""
    if request.param == "memory":
        yield InMemory()
        return
    client = request.getfixturevalue("live_redis")
    with client.pubsub() as subscription:
        subscription.psubscribe("*")
        assert subscription.get_message(timeout=scaled())["type"] == "psubscribe"
        yield InRedis(client, subscription)


@pytest.fixture
def store(place: Place) -> Store:
    return place.store


def configure(settings, **kind):
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "TOPICS": {"closed": kind}}


def data(number: int, size: int = 0) -> bytes:
    return messages.encode({"n": number, **({"pad": "x" * size} if size else {})}, 1 << 20)


def publish(store: Store, amount: int = 1, topic: Topic = TOPIC) -> list[Position]:
    """Publish so many messages and return their positions."""
    return [Position.parse(store.publish(topic, data(number))) for number in range(amount)]


def raw(*numbers: int, topic: Topic = TOPIC) -> list[Raw]:
    """Write raw messages as the bridge submits them."""
    return [Raw(topic, tail(data(number))) for number in numbers]


async def kept(store: Store, topic: Topic = TOPIC) -> list[Position]:
    """Say which messages a history has."""
    return [frame.position for frame in (await store.read(topic, Position(0, 0))).frames]


def numbers(stamped: Sequence[Stamped]) -> list[int]:
    """Read back which messages these are."""
    return [json.loads(each.frame)["n"] for each in stamped]


async def test_many_are_stamped_as_if_one_by_one(store, place, settings):
    """In their order, sharing counts and keys with what is published alone; one without a history has no id."""
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "TOPICS": {"closed": {}, "order": {"HISTORY_SIZE": 0}}}
    unkept = Topic("order", "7")
    (first,) = publish(store)
    outgoing = [
        Outgoing(TOPIC, data(1)),
        Outgoing(OTHER, data(2)),
        Outgoing(unkept, data(3)),
        Outgoing(TOPIC, data(4), "k"),
    ]

    ids = store.publish_many(outgoing)
    again = await store.apublish_many(outgoing[-1:])

    assert [ids[0], again] == [str(first._replace(n=2)), ids[-1:]]
    assert (ids[2], ids[3]) == (None, str(first._replace(n=3)))
    assert numbers(place.heard()) == [0, 1, 2, 3, 4]


async def test_of_many_one_that_is_refused_is_named(store, place):
    """And the others are told of: what is known under a key needs no room."""
    id_ = store.publish(TOPIC, data(0), "k")
    outgoing = [Outgoing(TOPIC, data(1)), Outgoing(TOPIC, data(0), "k"), Outgoing(OTHER, data(2))]
    with place.full():
        answers = [store.publish_many(outgoing), await store.apublish_many(outgoing)]

    for refused, known, other in answers:
        assert isinstance(refused, FAILURES)
        assert known == id_
        assert isinstance(other, FAILURES)
    assert await kept(store) == [Position.parse(id_)]


def test_no_store_lacks_an_operation():
    """Every operation of the protocol is there in each store, with the same arguments."""
    operations = {name for name in vars(Store) if not name.startswith("_")}

    assert {
        "publish",
        "apublish",
        "publish_many",
        "apublish_many",
        "stamp_batch",
        "look",
        "changes",
        "read",
        "position",
        "aposition",
        "server",
    } <= operations
    for kind in (RedisStore, MemoryStore):
        for name in operations:
            assert vars(kind)[name].__annotations__ == vars(Store)[name].__annotations__, name


def test_callers_get_the_store_that_is_in_place():
    """get_store is the one place to ask; the site's own is Redis."""
    site = get_store()
    memory = MemoryStore(lambda _: None)
    put_in_place(memory)
    try:
        assert get_store() is memory
    finally:
        put_in_place(None)

    assert get_store() is site
    assert isinstance(site, RedisStore)


# Ids.


async def test_ids_count_without_holes_in_one_epoch(store):
    """From two ids of one epoch anyone can tell next, duplicate and hole; an epoch is the time of its first message."""
    [before] = await store.look([TOPIC])
    found = publish(store, 12)
    [after] = await store.look([TOPIC])

    assert [position.n for position in found] == list(range(1, 13))
    assert len({position.epoch for position in found}) == 1
    assert before.now <= found[0].epoch <= after.now
    assert await kept(store) == found


@pytest.fixture
def eager_threads() -> Iterator[None]:
    """Let threads take turns at every opportunity: whatever is not one step shows it."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


async def test_all_callers_share_the_count(store, place, eager_threads):
    """Threads, event loops and tasks stamp one topic at the same time without a hole and without a repeat."""

    async def some() -> list[str | None]:
        return await asyncio.gather(*(store.apublish(TOPIC, data(n)) for n in range(20)))

    def many() -> list[str | None]:
        together.wait(scaled())
        return [store.publish(TOPIC, data(n)) for n in range(amount)]

    amount = 500 if isinstance(store, MemoryStore) else 50  # in memory fewer would be done before another thread starts
    together = threading.Barrier(4)
    with ThreadPoolExecutor(6) as threads:
        begun = [threads.submit(asyncio.run, some()) for _ in range(2)] + [threads.submit(many) for _ in range(4)]
        ids = await some()
        ids += [id_ for each in begun for id_ in await asyncio.wrap_future(each)]

    found = sorted(map(Position.parse, ids))
    assert [position.n for position in found] == list(range(1, 61 + 4 * amount))
    assert await kept(store) == found[-100:]
    assert [stamped.position for stamped in place.heard()] == found, "told in the order of the ids"


async def test_topics_count_apart(store):
    """Each topic has a history of its own; kinds and ids are both part of its name."""
    publish(store, 3)

    assert publish(store, 1, Topic("closed", "8"))[0].n == 1
    assert publish(store, 1, Topic("user", "7"))[0].n == 1
    assert publish(store, 1)[0].n == 4
    assert len(await kept(store)) == 4


@pytest.mark.parametrize("size", [1, 3, 100])
async def test_exactly_the_last_messages_are_kept(store, settings, size):
    """A history has HISTORY_SIZE messages and not one more, and trimming does not disturb the count."""
    configure(settings, HISTORY_SIZE=size)

    found = publish(store, size + 5)
    [where] = await store.look([TOPIC])

    assert await kept(store) == found[-size:]
    assert [position.n for position in found] == list(range(1, size + 6))
    assert (where.first, where.last) == (found[-size], found[-1])


async def test_a_smaller_size_holds_from_the_next_message_on(store, settings):
    """A site that keeps less from now on has the histories that it already has cut to it."""
    configure(settings, HISTORY_SIZE=10)
    found = publish(store, 8)
    configure(settings, HISTORY_SIZE=2)
    found += publish(store)

    assert await kept(store) == found[-2:]


async def test_each_message_gives_the_history_its_time_anew(store, settings):
    """A history lives HISTORY_TTL seconds after its last message, whatever it had left."""
    for ttl in (100, 1000, 10):
        configure(settings, HISTORY_TTL=ttl)
        publish(store)
        [where], page = await store.look([TOPIC]), await store.read(TOPIC, Position(0, 0))

        assert ttl / 2 < page.ttl <= where.ttl <= ttl

    assert len(await kept(store)) == 3


async def test_a_history_that_has_expired_begins_anew(store, settings):
    """After its time a history has no entry, and what comes then is the first message of a later epoch."""
    configure(settings, HISTORY_TTL=1)
    began = time.monotonic()
    *_, last = publish(store, 3)

    await await_for(lambda: store.position(TOPIC).n == 0)
    lived = time.monotonic() - began

    assert lived > 0.9
    empty = await store.read(TOPIC, Position(0, 0))
    assert (empty.first, empty.last, empty.frames, empty.ttl, empty.whole) == (None, None, [], 0, False)
    configure(settings, HISTORY_TTL=60)  # so that it is still there when it is read
    [anew] = publish(store)
    assert anew.n == 1
    assert anew.epoch > last.epoch
    assert await kept(store) == [anew]


# Frames, and what listeners are told.


@pytest.mark.parametrize(
    "payload", [{}, {"a": 1}, {"": ""}, {"text": '"}{"_meta":{'}, {"text": "ü\u2028\x00"}, {"_metal": {"_meta": 1}}]
)
@pytest.mark.parametrize("id_", ["7", '"', '{"_meta":{}}', "\\", "ü €", "a b\n", "%s %d", "\x00", "'" * 200])
async def test_the_frame_is_the_message_with_meta_first(place, id_, payload):
    """What is kept and what listeners receive is one and the same frame."""
    await check_frame(place, Topic("closed", id_), payload)


@hypothesis_settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(id_=ids, payload=payloads)
async def test_the_frame_is_exact_for_any_topic_and_message(place, id_, payload):
    """Quotes, braces and any character in ids and messages arrive as they were given."""
    await check_frame(place, Topic("closed", id_), payload)


async def check_frame(place: Place, topic: Topic, payload: dict[str, Any]) -> None:
    message = messages.encode(payload, 100_000)

    id_ = place.store.publish(topic, message)

    *_, frame = (await place.store.read(topic, Position(0, 0))).frames
    [told] = place.heard()
    assert json.loads(frame.text) == {"_meta": {"topic": str(topic), "id": id_}, **payload}
    assert frame.text.startswith('{"_meta":{"topic":')
    assert told == Stamped("p", str(topic), Position.parse(id_), frame.text.encode(), await place.store.server())
    assert tail_of(told) == tail(message)


async def test_a_timed_message_tells_when_it_was_published(place):
    """The listener measures from there; other messages carry no time."""
    place.store.publish(TOPIC, data(1), at=1_764_153_600_123_456)
    await place.store.apublish(TOPIC, data(2), at=1_764_153_600_123_457)
    place.store.publish(TOPIC, data(3))

    assert [told.at for told in place.heard()] == [1_764_153_600_123_456, 1_764_153_600_123_457, 0]


async def test_a_kind_without_a_history_keeps_nothing(place, settings):
    """With HISTORY_SIZE 0 a message has no id, and is told as it is."""
    configure(settings, HISTORY_SIZE=0)

    assert place.store.publish(TOPIC, b'{"n":1}') is None
    assert await place.store.apublish(TOPIC, b'{ "n" : 2 }') is None

    assert place.heard() == [Stamped("u", str(TOPIC), None, frame) for frame in (b'{"n":1}', b'{ "n" : 2 }')]
    assert await kept(place.store) == []
    assert (await place.store.look([TOPIC]))[0].last is None


# Idempotency.


async def test_the_same_idempotency_key_publishes_once(place):
    """A retry, sync or async, returns the first id, and nobody hears of it again."""
    store = place.store
    first = store.publish(TOPIC, data(1), "once")

    assert store.publish(TOPIC, data(2), "once") == first
    assert await store.apublish(TOPIC, data(3), "once") == first

    assert numbers(place.heard()) == [1]
    assert await kept(store) == [Position.parse(first)]
    assert publish(store)[0].n == 2


async def test_idempotency_keys_are_of_a_topic(store):
    """The same key on another topic, and another key on the same, are other messages."""
    store.publish(TOPIC, data(1), "a")
    store.publish(TOPIC, data(1), "b")
    store.publish(Topic("closed", "7:a"), data(1), "a")

    assert len(await kept(store)) == 2
    assert len(await kept(store, Topic("closed", "7:a"))) == 1


async def test_idempotency_needs_no_history(place, settings):
    """Where HISTORY_SIZE is 0 a key still holds a repeat back."""
    configure(settings, HISTORY_SIZE=0)

    assert place.store.publish(TOPIC, data(1), "once") is None
    assert place.store.publish(TOPIC, data(1), "once") is None

    assert numbers(place.heard()) == [1]


async def test_an_idempotency_key_is_forgotten_after_its_time(store, monkeypatch):
    """Then the same key is another message, though its topic's history still has the first."""
    monkeypatch.setattr(f"{type(store).__module__}.IDEMPOTENCY_TTL", 1)
    first = store.publish(TOPIC, data(1), "once")

    again = await await_for_another(lambda: store.publish(TOPIC, data(2), "once"), first)

    assert await kept(store) == [Position.parse(first), Position.parse(again)]


async def await_for_another(ask: Callable[[], Any], first: Any) -> Any:
    found = [first]

    def another() -> bool:
        found[0] = ask()
        return found[0] != first

    await await_for(another)
    return found[0]


# Batches of the lease holder.


async def test_a_batch_is_stamped_in_its_order(place):
    """Raw messages of several topics are kept and told in the order in which the holder read them."""
    place.give_lease("mine")
    batch = [*raw(1), *raw(2, topic=OTHER), *raw(3, 4), *raw(5, topic=OTHER)]

    assert await place.store.stamp_batch(LEASE, "mine", 1, batch) == (5, "")

    told, run = place.heard(), await place.store.server()
    assert [(each.road, each.topic, each.position.n, each.run) for each in told] == [
        ("r", "closed:7", 1, run),
        ("r", 'closed:o"ther', 1, run),
        ("r", "closed:7", 2, run),
        ("r", "closed:7", 3, run),
        ("r", 'closed:o"ther', 2, run),
    ]
    assert numbers(told) == [1, 2, 3, 4, 5]
    assert [tail_of(each) for each in told] == [each.tail for each in batch]
    frames = (await place.store.read(TOPIC, Position(0, 0))).frames
    assert [frame.text.encode() for frame in frames] == [each.frame for each in told if each.topic == "closed:7"]


async def test_both_roads_share_one_count(place):
    """Raw and published messages of a topic have one order."""
    place.give_lease("mine")
    publish(place.store)
    await place.store.stamp_batch(LEASE, "mine", 1, raw(7))
    publish(place.store)

    assert [(told.road, told.position.n) for told in place.heard()] == [("p", 1), ("r", 2), ("p", 3)]


@pytest.mark.parametrize("holder", ["another", None])
async def test_who_has_no_lease_stamps_nothing(place, holder):
    """A holder that was paused and wakes, with or without a successor, neither keeps nor announces anything."""
    place.give_lease("mine")
    await place.store.stamp_batch(LEASE, "mine", 1, raw(1))
    place.heard()
    place.give_lease(holder)

    assert await place.store.stamp_batch(LEASE, "mine", 2, raw(2)) == (NOT_HOLDER, "")

    assert place.heard() == []
    assert [position.n for position in await kept(place.store)] == [1]


async def test_a_batch_that_was_done_is_not_done_again(place):
    """Whoever lost the reply asks with the same number again: nothing is kept or told twice."""
    store = place.store
    place.give_lease("mine")
    await store.stamp_batch(LEASE, "mine", 1, raw(1))
    await store.stamp_batch(LEASE, "mine", 2, raw(2))
    place.heard()

    assert await store.stamp_batch(LEASE, "mine", 2, raw(2)) == (DONE_BEFORE, "")
    assert await store.stamp_batch(LEASE, "mine", 1, raw(1)) == (DONE_BEFORE, "")
    assert place.heard() == []

    assert await store.stamp_batch(LEASE, "mine", 3, raw(3)) == (1, "")
    assert numbers(place.heard()) == [3]


async def test_batches_of_a_new_tenure_are_counted_anew(place):
    """The number of a batch is compared with those of the same holder only."""
    for token in ("first", "second"):
        place.give_lease(token)
        assert await place.store.stamp_batch(LEASE, token, 1, raw(1)) == (1, "")

    assert [position.n for position in await kept(place.store)] == [1, 2]


async def test_an_empty_batch_is_done(place):
    """Nothing to stamp is no refusal."""
    place.give_lease("mine")

    assert await place.store.stamp_batch(LEASE, "mine", 1, []) == (0, "")
    assert place.heard() == []


async def test_kinds_without_a_history_go_out_without_an_id(place, settings):
    """HISTORY_SIZE 0 is no refusal; other messages of the same batch are stamped, each in its place."""
    configure(settings, HISTORY_SIZE=0)
    place.give_lease("mine")
    user = Topic("user", "7")

    answer = await place.store.stamp_batch(LEASE, "mine", 1, [*raw(1), *raw(2, topic=user), Raw(TOPIC, tail(b"{}"))])

    assert answer == (1, "")
    assert place.term()
    first, second, third = place.heard()
    assert (first, third) == (Stamped("u", str(TOPIC), None, b'{"n":1}'), Stamped("u", str(TOPIC), None, b"{}"))
    assert (second.road, second.topic, second.position.n) == ("r", str(user), 1)


# Direct delivery.


async def test_what_a_store_delivers_is_not_announced_for_delivery(place):
    """A message that went to the group named is not sent to listeners as well."""
    place.give_lease("mine")
    group = "asgi/group/closed.7"
    at = 1_795_703_150_003_123
    place.store.publish(TOPIC, data(0), None, at, group)
    batch = [each._replace(group=group) for each in raw(1, 2)]
    assert await place.store.stamp_batch(LEASE, "mine", 1, batch, at) == (2, "")

    told, delivered = place.heard(), place.delivered(group)

    assert [message["text"] for message in delivered] + [each.frame.decode() for each in told] == [
        frame.text for frame in (await place.store.read(TOPIC, Position(0, 0))).frames
    ]
    timed = [message.get("at", 0) for message in delivered] or [each.at for each in told]
    assert timed == [at, at, 0]


# Refusal.


async def test_what_is_refused_is_a_failure_and_nothing_is_out(place):
    """What could not be kept is not told to anybody either: the caller may send it again, under the same key."""
    store = place.store
    publish(store, 2)
    place.heard()
    with place.full():
        with pytest.raises(FAILURES):
            store.publish(TOPIC, data(1), "once")
        with pytest.raises(FAILURES):
            await store.apublish(OTHER, data(1))

        assert place.heard() == []
        assert [where.last and where.last.n for where in await store.look([TOPIC, OTHER])] == [2, None]

    assert Position.parse(store.publish(TOPIC, data(1), "once")).n == 3
    assert publish(store, 1, OTHER)[0].n == 1


async def test_a_batch_that_is_refused_goes_out_without_ids(place):
    """
    Raw messages are told as they are, in order, and the holder learns why; the count goes on behind them.

    The term of the lease ends: whoever did not hear them would look for them in the histories, for nothing.
    """
    store = place.store
    place.give_lease("mine")
    await store.stamp_batch(LEASE, "mine", 1, raw(0))
    place.heard()
    term = place.term()
    batch = [*raw(1), Raw(TOPIC, tail(b"{}")), Raw(OTHER, tail(b'{ "n" : 2 }'))]

    with place.full():
        stamped, refusal = await store.stamp_batch(LEASE, "mine", 2, batch)

    assert stamped == 0
    assert refusal
    assert (term != "", place.term()) == (True, "")
    assert place.heard() == [
        Stamped("u", str(TOPIC), None, b'{"n":1}'),
        Stamped("u", str(TOPIC), None, b"{}"),
        Stamped("u", str(OTHER), None, b'{ "n" : 2 }'),
    ]
    assert await store.stamp_batch(LEASE, "mine", 3, raw(3)) == (1, "")
    assert [told.position.n for told in place.heard()] == [2]


# The inlet.


def waiting(place: Place, *numbers: int, topic: Topic = TOPIC, key: str | None = None) -> list[Checked]:
    """Append messages to the inlet, and return them as the listener has checked them."""
    return [
        Checked(place.append(topic=str(topic), data=data(number)), topic, tail(data(number)), None, key)
        for number in numbers
    ]


async def amount(place: Place) -> int:
    """Return how many entries wait in the inlet."""
    read = await place.store.read_inlet(LEASE, "mine")
    assert read is not None
    return read.amount


async def test_the_oldest_entries_of_the_inlet_are_read_first(place):
    """In the order in which they were appended, with their fields, how many there are and since when."""
    place.give_lease("mine")
    assert await place.store.read_inlet(LEASE, "mine") == Waiting([])
    first = place.append(topic="user:1", data="{}")
    second = place.append(data=b"\xff", idempotency_key="k")

    read = await place.store.read_inlet(LEASE, "mine")

    assert [(entry.id, entry.words) for entry in read.entries] == [
        (first, [b"topic", b"user:1", b"data", b"{}"]),
        (second, [b"data", b"\xff", b"idempotency_key", b"k"]),
    ]
    assert (read.amount, read.dropped) == (2, 0)
    assert 0 <= read.age < scaled()


async def test_a_batch_of_the_inlet_is_bounded(place, settings):
    """By the number of entries and by their bytes; an entry that is larger than a message may be is not returned."""
    configure_site(settings, MAX_MESSAGE_SIZE=100_000)
    place.give_lease("mine")
    for _ in range(MAX_ENTRIES + 1):
        place.append(topic="user:1", data="{}")
    assert len((await place.store.read_inlet(LEASE, "mine")).entries) == MAX_ENTRIES

    await take_all(place)
    for size in (100_000, 100_000, 100_000, 100_000):
        place.append(topic="user:1", data="x" * size)
    assert len((await place.store.read_inlet(LEASE, "mine")).entries) == MAX_BYTES // 100_000 + 1

    await take_all(place)
    place.append(topic="user:1", data="x" * 200_000)
    place.append(**{f"f{number}": "" for number in range(2000)})
    entries = (await place.store.read_inlet(LEASE, "mine")).entries
    assert [entry.words for entry in entries] == [None, None]
    assert entries[0].size > 200_000


async def take_all(place: Place) -> None:
    """Refuse whatever is in the inlet."""
    while entries := (await place.store.read_inlet(LEASE, "mine")).entries:
        await place.store.publish_inlet(LEASE, "mine", [Checked(entry.id, None, refusal="none") for entry in entries])


def configure_site(settings, **options):
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, **options}


async def test_the_inlet_is_published_in_its_order_and_emptied(place):
    """Each entry is kept, told as what publish_* send, and taken out, in one step."""
    place.give_lease("mine")
    publish(place.store)
    place.heard()
    entries = [*waiting(place, 1, 2), *waiting(place, 3, topic=OTHER), *waiting(place, 4)]

    assert await place.store.publish_inlet(LEASE, "mine", entries) == Outcome(4, [])

    told = place.heard()
    assert [(each.road, each.topic, each.position.n) for each in told] == [
        ("p", "closed:7", 2),
        ("p", "closed:7", 3),
        ("p", 'closed:o"ther', 1),
        ("p", "closed:7", 4),
    ]
    assert numbers(told) == [1, 2, 3, 4]
    assert [position.n for position in await kept(place.store)] == [1, 2, 3, 4]
    assert await amount(place) == 0


@pytest.mark.parametrize("holder", ["another", None])
async def test_who_has_no_lease_does_nothing_with_the_inlet(place, holder):
    """A holder that was paused and wakes neither reads nor publishes; its successor finds everything."""
    entries = waiting(place, 1)
    place.give_lease(holder)

    assert await place.store.read_inlet(LEASE, "mine") is None
    assert await place.store.publish_inlet(LEASE, "mine", entries) is None

    assert place.heard() == []
    place.give_lease("mine")
    assert await amount(place) == 1


async def test_an_entry_of_the_inlet_is_published_once(place):
    """Whoever lost the reply calls again, perhaps with more: what was published is skipped, the rest follows."""
    place.give_lease("mine")
    entries = waiting(place, 1, 2)
    await place.store.publish_inlet(LEASE, "mine", entries)
    place.give_lease("successor")
    entries += [*waiting(place, 3), Checked(entries[0].id, None, refusal="too late")]

    assert await place.store.publish_inlet(LEASE, "successor", entries) == Outcome(1, [])

    assert numbers(place.heard()) == [1, 2, 3]
    assert [position.n for position in await kept(place.store)] == [1, 2, 3]
    assert place.refused() == []


async def test_what_is_refused_is_set_aside_and_holds_up_nobody(place):
    """With its id and the reason, in its place between others; only the last thousand are kept."""
    place.give_lease("mine")
    first, bad, last = waiting(place, 1, 2, 3)
    bad = bad._replace(topic=None, refusal="MessageError: not JSON")

    assert await place.store.publish_inlet(LEASE, "mine", [first, bad, last]) == Outcome(2, [bad.id])

    assert numbers(place.heard()) == [1, 3]
    assert place.refused() == [(bad.id, "MessageError: not JSON")]
    assert await amount(place) == 0
    for _ in range(MAX_REFUSED // 100 + 1):
        entries = [each._replace(topic=None, refusal="none") for each in waiting(place, *range(100))]
        await place.store.publish_inlet(LEASE, "mine", entries)
    assert len(place.refused()) == MAX_REFUSED


async def test_an_entry_with_an_idempotency_key_is_published_once(place):
    """The same key as that of publish_*, on the same topic: the program repeats itself, the page hears it once."""
    place.give_lease("mine")
    place.store.publish(TOPIC, data(0), "once")
    entries = [*waiting(place, 1, key="once"), *waiting(place, 2, 3, key="twice"), *waiting(place, 4)]

    assert await place.store.publish_inlet(LEASE, "mine", entries) == Outcome(4, [])

    assert numbers(place.heard()) == [0, 2, 4]
    assert place.store.publish(TOPIC, data(5), "twice") == str((await kept(place.store))[1])
    assert await amount(place) == 0


async def test_entries_of_kinds_without_a_history_are_published(place, settings):
    """Without an id, as what publish_* send of such a kind."""
    configure(settings, HISTORY_SIZE=0)
    place.give_lease("mine")

    assert await place.store.publish_inlet(LEASE, "mine", waiting(place, 1, key="k")) == Outcome(1, [])

    assert place.heard() == [Stamped("u", str(TOPIC), None, b'{"n":1}')]
    assert await amount(place) == 0


async def test_the_inlet_waits_for_a_full_store(place):
    """Nothing goes out without an id, nothing is lost, and what can be published before is."""
    place.give_lease("mine")
    await place.store.publish_inlet(LEASE, "mine", waiting(place, 0))
    entries = [*waiting(place, 1), waiting(place, 2)[0]._replace(topic=None, refusal="none"), *waiting(place, 3)]
    place.heard()
    with place.full():
        try:
            outcome = await place.store.publish_inlet(LEASE, "mine", entries)
        except FAILURES:
            outcome = Outcome(0, [], "refused")
        assert (outcome.published, outcome.refused, bool(outcome.refusal)) == (0, [], True)
        assert place.heard() == []
        assert await amount(place) == 3

    assert await place.store.publish_inlet(LEASE, "mine", entries) == Outcome(2, [entries[1].id])
    assert numbers(place.heard()) == [1, 3]


async def test_a_full_inlet_drops_its_oldest_entries(place, settings):
    """Beyond INLET_SIZE, no more than MAX_DROPPED in one step, and nothing is read until it fits."""
    configure_site(settings, INLET_SIZE=3)
    place.give_lease("mine")
    entries = waiting(place, *range(5))

    read = await place.store.read_inlet(LEASE, "mine")
    assert (read.entries, read.amount, read.dropped) == ([], 3, 2)
    read = await place.store.read_inlet(LEASE, "mine")
    assert [entry.id for entry in read.entries] == [entry.id for entry in entries[2:]]
    assert read.dropped == 0
    assert MAX_DROPPED > MAX_ENTRIES


# Looking and reading.


async def test_look_says_where_many_histories_are(store, settings):
    """Ends, life-time and the server's clock of several topics come at once, also of those without a history."""
    configure(settings, HISTORY_SIZE=2, HISTORY_TTL=50)
    [before] = await store.look([TOPIC])
    found = publish(store, 3)

    here, nowhere, again = await store.look([TOPIC, Topic("closed", "nothing"), TOPIC])

    assert (here.first, here.last, here.whole) == (found[1], found[2], True)
    assert 45 < here.ttl <= 50
    assert here.position == found[2]
    assert (nowhere.first, nowhere.last, nowhere.ttl, nowhere.whole) == (None, None, 0, False)
    assert nowhere.position == (nowhere.now, 0)
    assert again[:5] == here[:5]
    assert before.started <= before.now <= found[0].epoch <= here.now
    assert here.started == before.started
    assert await store.look([]) == []


async def test_what_is_kept_changes_the_mark_of_its_topic_and_no_other(place):
    """Where no mark has changed, nothing was published: neither by ``publish`` nor in a batch."""
    store = place.store
    place.give_lease("mine")

    async def changed_by(*calls):
        before = await store.changes()
        assert (await store.changes()).since(before) == set()
        for call in calls:
            await call()
        return (await store.changes()).since(before)

    async def publishing(topic, key=None):
        await store.apublish(topic, data(1), key)

    async def stamping(number, *topics):
        await store.stamp_batch(LEASE, "mine", number, [message for topic in topics for message in raw(1, topic=topic)])

    one, other, quiet = (place_of(str(topic)).bucket for topic in (TOPIC, OTHER, Topic("closed", "quiet")))
    assert len({one, other, quiet}) == 3
    assert await changed_by(partial(publishing, TOPIC)) == {one}
    assert await changed_by(partial(publishing, TOPIC), partial(publishing, OTHER)) == {one, other}
    assert await changed_by(partial(stamping, 1, TOPIC, TOPIC)) == {one}
    assert await changed_by(partial(stamping, 2, OTHER, TOPIC)) == {one, other}
    assert await changed_by(partial(publishing, TOPIC, "once")) == {one}


async def test_what_is_not_kept_changes_no_mark(place, settings):
    """Nothing is to be found in a history that has none, was not asked again, or had no room."""
    configure(settings, HISTORY_SIZE=0)
    store, user = place.store, Topic("user", "7")
    place.give_lease("mine")
    await store.apublish(user, data(1), "once")
    before = await store.changes()

    await store.apublish(TOPIC, data(1))
    await store.apublish(user, data(1), "once")
    await store.stamp_batch(LEASE, "mine", 1, raw(1))
    with place.full(), pytest.raises(FAILURES):
        await store.apublish(user, data(2))

    assert (await store.changes()).since(before) == set()


async def test_all_answers_name_the_same_server(place):
    """As long as a server lives, ``run`` is one and the same; it is what ``server`` says."""
    store = place.store
    publish(store)
    [where], page = await store.look([TOPIC]), await store.read(TOPIC, Position(0, 0))

    assert {where.run, page.run, place.heard()[0].run, await store.server()} == {where.run}
    assert (await store.changes()).run == where.run
    assert where.run
    assert where.now <= page.now
    assert (page.whole, page.ttl > 0) == (True, True)


async def test_several_pages_make_the_whole(store):
    """Each page has a bounded number of bytes, and from page to page nothing is missing or doubled."""
    size = 40_000
    found = [Position.parse(store.publish(TOPIC, data(n, size))) for n in range(20)]
    frames, pages, after = [], 0, Position(0, 0)
    while after != found[-1]:
        page = await store.read(TOPIC, after)
        held = [len(frame.text) for frame in page.frames]
        assert sum(held) >= PAGE_BYTES or page.frames[-1].position == found[-1]
        assert sum(held[:-1]) < PAGE_BYTES
        assert (page.first, page.last) == (found[0], found[-1])
        frames += page.frames
        pages += 1
        after = page.frames[-1].position

    assert [frame.position for frame in frames] == found
    assert [json.loads(frame.text)["n"] for frame in frames] == list(range(20))
    assert pages == 3


@pytest.mark.parametrize(("short", "read"), [(0, 2), (1, 3)])
async def test_a_page_is_full_at_its_bound_and_not_before(store, short, read):
    """The frame that brings a page to PAGE_BYTES is its last; with one byte less another follows."""
    store.publish(TOPIC, data(0, 1))
    [probe] = (await store.read(TOPIC, Position(0, 0))).frames
    half = PAGE_BYTES // 2 - len(probe.text) + 1
    for n, size in enumerate((half, half - short, 1, 1)):
        store.publish(TOPIC, data(n + 1, size))

    page = await store.read(TOPIC, probe.position)

    assert sum(len(frame.text) for frame in page.frames[:2]) == PAGE_BYTES - short
    assert len(page.frames) == read


async def test_the_bound_of_a_page_is_in_bytes(store):
    """A text of other letters takes more bytes than it has characters."""
    wide = messages.encode({"text": "€" * 20_000}, 1 << 20)
    for _ in range(10):
        store.publish(TOPIC, wide)

    page = await store.read(TOPIC, Position(0, 0))

    assert len(page.frames) == 5


async def test_a_message_above_the_bound_comes_alone(store):
    """One frame comes in any case, or a reader would not get behind it."""
    for n in range(3):
        store.publish(TOPIC, data(n, PAGE_BYTES + 1))

    page = await store.read(TOPIC, Position(0, 0))

    assert [json.loads(frame.text)["n"] for frame in page.frames] == [0]


@pytest.mark.parametrize("amount", [1, 15, 16, 17, 33])
async def test_a_page_of_many_small_messages_is_complete(store, amount):
    """Steps that a store reads in are not seen from outside."""
    found = publish(store, amount)

    assert await kept(store) == found


async def test_the_latest_message_is_read_alone(store):
    """Whatever its size, and however many are kept, with the same ends as any page."""
    found = [*publish(store, 5), Position.parse(store.publish(TOPIC, data(5, PAGE_BYTES + 1)))]

    whole, page = await store.read(TOPIC, Position(0, 0)), await store.read(TOPIC, None)

    assert [frame.position for frame in page.frames] == found[-1:]
    assert json.loads(page.frames[0].text)["n"] == 5
    assert (page.run, page.first, page.last, page.whole) == (whole.run, found[0], found[-1], True)
    empty = await store.read(Topic("closed", "nothing"), None)
    assert (empty.first, empty.last, empty.frames) == (None, None, [])


async def test_reading_begins_after_the_position(store):
    """The message at the position itself does not come again; from the last position nothing comes."""
    found = publish(store, 11)

    async def positions(after: Position) -> list[Position]:
        return [frame.position for frame in (await store.read(TOPIC, after)).frames]

    for at, position in enumerate(found):
        assert await positions(position) == found[at + 1 :]
    assert await positions(Position(found[0].epoch, 0)) == found
    assert await positions(Position(found[0].epoch - 1, 99)) == found
    assert await positions(Position(found[0].epoch, 99)) == []
    assert await positions(Position(found[0].epoch + 1, 0)) == []
    empty = await store.read(Topic("closed", "nothing"), found[0])
    assert (empty.first, empty.last, empty.frames) == (None, None, [])


async def test_the_position_of_an_empty_topic_is_a_time(store):
    """Whoever has had everything of nothing is before the first message, whose epoch is not earlier."""
    [before] = await store.look([TOPIC])
    positions = [store.position(TOPIC), await store.aposition(TOPIC)]
    [first] = publish(store)

    assert [position.n for position in positions] == [0, 0]
    for earlier, later in pairwise([Position(before.now, 0), *positions, first]):
        assert earlier <= later
    assert await kept(store) == [first]
    assert [frame.position for frame in (await store.read(TOPIC, positions[0])).frames] == [first]


async def test_the_position_of_a_topic_is_its_last_message(store):
    """Nothing follows it but what is published later."""
    *_, last = publish(store, 3)

    assert store.position(TOPIC) == await store.aposition(TOPIC) == last
    [later] = publish(store)
    assert [frame.position for frame in (await store.read(TOPIC, last)).frames] == [later]


# What memory alone can show.


def in_memory(**options: Any) -> MemoryStore:
    return MemoryStore(lambda _: None, **options)


async def test_a_clock_that_stands_still_gives_no_id_twice(settings, monkeypatch):
    """Tests freeze the wall clock: what follows an expired history has another epoch all the same."""
    configure(settings, HISTORY_TTL=1)
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "time", lambda: 1_764_153_600.0)
    store = in_memory()
    found = []
    for _ in range(3):
        found += publish(store, 2)
        now[0] += 1.5

    assert [position.n for position in found] == [1, 2, 1, 2, 1, 2]
    assert found == sorted(set(found))


async def test_a_clock_that_is_set_back_does_not_turn_ids_back(settings, monkeypatch):
    """An epoch is never earlier than what was said of the time before."""
    configure(settings, HISTORY_TTL=1)
    clock, now = [1_764_153_600.0], [1000.0]
    monkeypatch.setattr(time, "time", lambda: clock[0])
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    store = in_memory()
    [first], empty = publish(store), store.position(OTHER)
    clock[0] -= 3600
    assert store.position(OTHER) == empty
    now[0] += 2
    [second] = publish(store)

    assert second > first
    assert store.position(OTHER) >= empty


async def test_memory_is_bounded_by_what_is_still_kept(settings, monkeypatch):
    """What was trimmed or has expired makes room; beyond that a message is refused, and no other one is lost."""
    configure(settings, HISTORY_SIZE=3, HISTORY_TTL=10)
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    store = in_memory(max_bytes=30_000)

    for n in range(50):
        store.publish(TOPIC, data(n, 8000))
    with pytest.raises(OSError, match="full"):
        store.publish(OTHER, data(1, 8000))
    assert len(await kept(store)) == 3

    now[0] += 11
    store.publish(OTHER, data(1, 8000))
    assert await kept(store) == []
    assert len(await kept(store, OTHER)) == 1


async def test_two_stores_are_two_servers():
    """A new store knows nothing of an earlier one, and says so by its name."""
    assert await in_memory().server() != await in_memory().server()


async def test_a_request_to_cancel_is_remembered_until_it_is_dropped(place):
    """It belongs to one topic, may be made again, and both forms of each call do the same."""
    store = place.store
    for _ in range(2):
        await store.arequest_cancel(TOPIC)
    assert store.cancel_requested(TOPIC)
    assert await store.acancel_requested(TOPIC)
    assert not store.cancel_requested(OTHER)
    store.request_cancel(OTHER)
    store.drop_cancel(TOPIC)
    assert not await store.acancel_requested(TOPIC)
    assert await store.acancel_requested(OTHER)
    await store.adrop_cancel(OTHER)
    await store.adrop_cancel(OTHER)
    assert not store.cancel_requested(OTHER)


@pytest.mark.parametrize("state", ["succeeded", "failed", "cancelled"])
async def test_a_request_to_cancel_that_comes_too_late_is_not_for_the_next_job(place, state):
    """What ended and what did not is known from the topic's latest message."""
    store = place.store

    def tell(state):
        store.publish(TOPIC, msgspec.json.encode({"action": "progress", "payload": {"id": "7", "state": state}}))

    tell(state)
    store.request_cancel(TOPIC)
    await store.arequest_cancel(TOPIC)
    assert not store.cancel_requested(TOPIC)
    for again in ("waiting", "running"):
        tell(state)
        tell(again)
        store.request_cancel(TOPIC)
        assert store.cancel_requested(TOPIC)
        store.drop_cancel(TOPIC)
    tell(state)
    for other in (b"{}", b'{"action":"progress"}', b'{"action":"progress","payload":[1]}', b'{"action":[]}'):
        store.publish(TOPIC, other)
        await store.arequest_cancel(TOPIC)
        assert store.cancel_requested(TOPIC), "the latest message is no end"
        store.drop_cancel(TOPIC)


async def test_when_grants_were_revoked_is_remembered(place):
    """By user and topic; the last time counts, and both forms of each call do the same."""
    store, before = place.store, time.time()
    await store.arevoke_grants("7", TOPIC)
    first = store.grants_revoked_at("7", TOPIC)
    assert before <= first <= time.time()
    assert await store.agrants_revoked_at("7", OTHER) == store.grants_revoked_at("8", TOPIC) == 0
    store.revoke_grants("7", TOPIC)
    assert await store.agrants_revoked_at("7", TOPIC) >= first


# The shares of a job.

HOUR = 3_600_000


def report(key="1", of=3, state="running", done=0, **options) -> Report:
    """Write a report; the gate is always open unless ``interval`` says otherwise."""
    names = {name: options.pop(name) for name in ("run", "needed") if name in options}
    given = {"attempt": f"of {key}", "error": "", "news": False, "seen": 0, "interval": 0, "silence": HOUR, **options}
    return Report(Share(key, of, **names), state=state, done=done, **given)


def numbers_of(standing: Standing) -> tuple[Any, ...]:
    return standing.state, standing.ended, standing.of, standing.done


async def test_the_shares_of_a_job_add_up(store):
    """It runs from the first report on, and ends when all shares have: once, in the step of the last."""
    assert numbers_of(store.report_share(TOPIC, report("", news=True))) == ("running", 0, 3, 0)
    assert numbers_of(store.report_share(TOPIC, report("1", done=400_000))) == ("running", 0, 3, 400_000)
    assert numbers_of(await store.areport_share(TOPIC, report("2", done=1))) == ("running", 0, 3, 400_001)
    assert numbers_of(store.report_share(TOPIC, report("2", state="succeeded"))) == ("running", 1, 3, 1_400_000)
    store.report_share(TOPIC, report("1", state="succeeded"))
    last = store.report_share(TOPIC, report("3", state="succeeded"))

    assert numbers_of(last) == ("succeeded", 3, 3, 3 * WHOLE)
    assert (last.turn, last.over, last.counts) == (True, True, "yes")
    assert numbers_of(store.report_share(OTHER, report("1", of=2))) == ("running", 0, 2, 0)


async def test_a_job_that_waits_has_not_begun(store):
    """Shares in a queue are there, and its time counts from the first that is not."""
    assert store.report_share(TOPIC, report("", state="waiting", news=True))[2:6] == (True, 0, 1, 1)
    assert numbers_of(store.report_share(TOPIC, report("1", state="waiting"))) == ("waiting", 0, 3, 0)
    assert numbers_of(store.report_share(TOPIC, report("2"))) == ("running", 0, 3, 0)
    await asyncio.sleep(0.01)
    assert 5 < store.report_share(TOPIC, report("3")).elapsed < 10_000
    assert store.report_share(TOPIC, report("3")).elapsed >= 10


async def test_a_share_counts_once(store):
    """However often it is tried, and in whatever order its queue delivers it."""
    for _ in range(2):
        assert numbers_of(store.report_share(TOPIC, report(state="succeeded"))) == ("running", 1, 3, WHOLE)
        assert numbers_of(store.report_share(TOPIC, report(attempt="again"))) == ("running", 1, 3, WHOLE)
    store.report_share(TOPIC, report("2", done=600_000))
    store.report_share(TOPIC, report("2", done=200_000, attempt="again"))
    assert store.report_share(TOPIC, report("2", done=300_000)).done == 1_600_000, "the one that is further"
    assert store.report_share(TOPIC, report("2", state="waiting", done=600_000)).done == WHOLE
    assert store.report_share(TOPIC, report("2", done=700_000)).done == WHOLE, "late: before it was told to wait"
    assert store.report_share(TOPIC, report("2", done=100_000, attempt="third")).done == 1_100_000


async def test_a_job_fails_at_its_end(store):
    """One that has failed is tried again or not: the job has failed if it has when all have ended."""
    failed = report(state="failed", done=500_000, error="ValueError")
    standing = store.report_share(TOPIC, failed)
    assert numbers_of(standing) == ("running", 1, 3, 500_000)
    assert (standing.error, standing.lost) == ("ValueError", 500_000)
    assert numbers_of(store.report_share(TOPIC, failed)) == numbers_of(standing), "the same report may come twice"
    store.report_share(TOPIC, report("2", state="failed", error="LookupError"))
    standing = store.report_share(TOPIC, report(attempt="again"))
    assert numbers_of(standing) == ("running", 1, 3, 0)
    assert (standing.error, standing.lost) == ("ValueError", WHOLE)
    standing = store.report_share(TOPIC, report("2", attempt="again"))
    assert (numbers_of(standing), standing.error, standing.lost) == (("running", 0, 3, 0), "", 0)
    for key in "123":
        standing = store.report_share(TOPIC, report(key, state="failed" if key == "2" else "succeeded", error=key))
    assert (numbers_of(standing), standing.error) == (("failed", 3, 3, 2 * WHOLE), "2")


async def test_a_job_ends_at_once_if_it_makes_no_more_sense(store):
    """A share failed that the others need, one was cancelled, or somebody says so for the whole job."""
    for number, (last, state) in enumerate(
        [
            (report(state="failed", needed=True, error="E"), "failed"),
            (report(state="cancelled"), "cancelled"),
            (report("", state="failed", error="E"), "failed"),
            (report("", state="succeeded"), "succeeded"),
        ]
    ):
        topic = Topic("closed", f"at once {number}")
        store.report_share(topic, report("2"))
        standing = store.report_share(topic, last)
        assert (standing.state, standing.turn, standing.error) == (state, True, "E" if state == "failed" else "")


async def test_nothing_counts_after_the_end(place):
    """Whoever finds that the end is not known to be published gets to publish it; then nobody."""
    store = place.store
    store.report_share(TOPIC, report("2", done=5))
    ended = store.report_share(TOPIC, report(state="cancelled"))
    for key in "23":
        late = store.report_share(TOPIC, report(key, state="succeeded", news=True))
        assert (numbers_of(late), late.turn, late.version) == (numbers_of(ended), True, ended.version)
        assert late.cancelled
    store.publish(TOPIC, data(1), version=ended.version)
    assert not store.report_share(TOPIC, report("2", state="succeeded", news=True)).turn


async def test_a_later_run_begins_anew(store):
    """Runs are compared by their bytes; an earlier one is ignored, whatever it says."""
    runs = ["", "1", "10", "9", "A", "a", "a ", "b", "z", "ß", "ä", "€", "\U0001f600"]
    assert sorted(runs, key=str.encode) == runs
    version = 0
    for number, run in enumerate(runs):
        store.report_share(TOPIC, report("1", state="succeeded", run=run))
        standing = store.report_share(TOPIC, report("2", run=run))
        assert (numbers_of(standing), standing.counts) == (("running", 1, 3, WHOLE), "yes")
        assert standing.version > version
        version = standing.version
        for earlier in runs[:number]:
            assert store.report_share(TOPIC, report("3", run=earlier)) == Standing("old", cancelled=False)
    store.report_share(TOPIC, report("2", run=runs[-1], state="cancelled"))
    assert store.report_share(TOPIC, report("1", run="\U0001f601")).state == "running"


async def test_a_question_begins_nothing(store):
    """Who only wants to know whether it has its turn may come too late."""
    question = report("", state="waiting")
    assert store.report_share(TOPIC, question) == Standing("old", cancelled=False)
    first = store.report_share(TOPIC, report("1", run="1"))
    assert store.report_share(TOPIC, question).counts == "old"
    assert store.report_share(TOPIC, report("", state="waiting", run="2")).counts == "old"
    found = store.report_share(TOPIC, report("", state="waiting", run="1"))
    assert (found.counts, found.version, found.turn) == ("yes", first.version, False)
    assert store.report_share(TOPIC, report("", state="waiting", run="1", seen=first.seen)).turn


async def test_a_job_has_no_more_shares_than_it_says(store):
    """More than ``of`` keys are a mistake, and would never end."""
    for key in "123":
        store.report_share(TOPIC, report(key))
    assert store.report_share(TOPIC, report("4"))[:3] == ("many", False, False)
    assert store.report_share(TOPIC, report("4", state="cancelled"))[:3] == ("many", False, False)
    assert numbers_of(store.report_share(TOPIC, report("3", done=7))) == ("running", 0, 3, 7)


async def test_one_gate_for_all_processes(place):
    """Who comes first publishes; the others when it opens, unless what they reported was published by then."""
    store = place.store
    slow = partial(report, interval=2000)
    began = time.monotonic()
    first = store.report_share(TOPIC, slow("1"))
    second = store.report_share(TOPIC, slow("2", done=10))
    third = store.report_share(TOPIC, slow("3", done=10))
    assert [each.turn for each in (first, second, third)] == [True, False, False]
    assert first.wait == 0
    assert 0 < third.wait <= second.wait <= 2000
    store.publish(TOPIC, data(1), version=first.version)
    await await_for(lambda: store.report_share(TOPIC, slow("2", done=10, seen=second.seen)).turn)
    assert time.monotonic() - began > third.wait / 1000 - 0.1

    store.publish(TOPIC, data(2), version=third.version)
    for key, seen in (("2", second.seen), ("3", third.seen)):
        again = store.report_share(TOPIC, report(key, done=10, seen=seen))  # to whom it is open
        assert (again.turn, again.told, again.seen) == (False, third.version, seen)
    assert not store.report_share(TOPIC, slow("1", done=10)).turn
    assert store.report_share(TOPIC, slow("1", state="cancelled")).turn, "the end needs no gate"


async def test_a_pause_ends_with_a_message(store):
    """Nobody has anything new, and one of them says so after a while."""

    def has_its_turn():
        asked = time.monotonic()
        standing = store.report_share(TOPIC, report(interval=10, silence=100))
        if standing.turn:
            turns.append((asked, time.monotonic()))
            store.publish(TOPIC, data(1), version=standing.version)
        return standing.turn

    turns = []
    for _ in range(4):
        await await_for(has_its_turn)

    assert all(answered - asked >= 0.08 for (asked, _), (_, answered) in pairwise(turns))


async def test_no_message_overtakes_another(place):
    """A process that was slow to publish finds that a later one was faster; the same version goes out once."""
    store = place.store
    early = store.report_share(TOPIC, report("1")).version
    late = store.report_share(TOPIC, report("2")).version
    id_ = await store.apublish(TOPIC, data(2), version=late)
    for _ in range(2):
        with pytest.raises(OvertakenError):
            store.publish(TOPIC, data(1), version=early)
        with pytest.raises(OvertakenError):
            await store.apublish(TOPIC, data(1), version=early)
        assert store.publish(TOPIC, data(3), version=late) == id_
    end = store.report_share(TOPIC, report("1", state="cancelled")).version
    store.publish(TOPIC, data(4), "key", version=end)
    with pytest.raises(OvertakenError):
        store.publish(TOPIC, data(2), version=late)

    assert numbers(place.heard()) == [2, 4]
    assert store.publish(OTHER, data(1)), "other messages need no version"


async def test_a_redis_that_loses_its_data_silences_no_job(live_redis):
    """What was to be told goes out though Redis has lost the job, and whatever comes after that is told as well."""
    store = RedisStore()
    for done in range(9):
        version = store.report_share(TOPIC, report("1", of=2, done=done)).version
    live_redis.flushall()
    assert store.publish(TOPIC, data(1), version=version)
    assert not live_redis.keys("*:progress:*"), "which would never expire"

    store.report_share(TOPIC, report("1", of=2))
    assert store.publish(TOPIC, data(2), version=version)
    store.report_share(TOPIC, report("1", of=2, state="succeeded"))
    end = store.report_share(TOPIC, report("2", of=2, state="succeeded"))
    assert end.turn
    assert store.publish(TOPIC, data(3), version=end.version)


async def test_a_message_of_a_job_needs_no_history(place, settings):
    """Where HISTORY_SIZE is 0 the versions hold all the same."""
    configure(settings, HISTORY_SIZE=0)
    version = place.store.report_share(TOPIC, report()).version
    for _ in range(2):
        assert place.store.publish(TOPIC, data(1), version=version) is None

    assert numbers(place.heard()) == [1]


async def test_a_share_sees_that_it_is_cancelled(store):
    """The request is there until the job ends; after that, those see it that are still running."""
    assert not store.report_share(TOPIC, report("1")).cancelled
    store.request_cancel(TOPIC)
    assert store.report_share(TOPIC, report("2")).cancelled
    assert store.report_share(TOPIC, report("1", state="cancelled")).cancelled
    assert not store.cancel_requested(TOPIC)
    assert store.report_share(TOPIC, report("2", done=3)).cancelled
    assert not store.report_share(TOPIC, report("1", run="2")).cancelled


async def test_what_was_reported_is_forgotten(store, monkeypatch):
    """A day after the last report, and an hour after the end without a run; before that nothing begins anew."""
    module = type(store).__module__
    monkeypatch.setattr(f"{module}.SHARES_TTL", 1)
    monkeypatch.setattr(f"{module}.ENDED_TTL", 2)
    began = time.monotonic()
    store.report_share(TOPIC, report("1", of=1))
    store.report_share(OTHER, report("1", of=1, state="cancelled"))
    await await_for(lambda: store.report_share(TOPIC, report("2", of=2)).counts == "yes")
    first = time.monotonic() - began
    await await_for(lambda: store.report_share(OTHER, report("1", of=2)).of == 2)
    assert first > 0.9
    assert time.monotonic() - began > 1.9


async def test_the_end_of_a_run_is_remembered_for_a_day(store, monkeypatch):
    """A queue may deliver a share again after an hour, as Celery's does: that must not begin the run anew."""
    monkeypatch.setattr(f"{type(store).__module__}.ENDED_TTL", 0.1)
    for topic, run in ((TOPIC, "1"), (OTHER, "")):
        for key in ("1", "2"):
            store.report_share(topic, report(key, of=2, state="succeeded", run=run))
    await await_for(lambda: store.report_share(OTHER, report("1", of=2)).state == "running")

    assert numbers_of(store.report_share(TOPIC, report("1", of=2, run="1"))) == ("succeeded", 2, 2, 2 * WHOLE)
    assert numbers_of(store.report_share(TOPIC, report("1", of=2, run="2"))) == ("running", 0, 2, 0)


async def test_no_share_is_remembered_after_the_end(live_redis):
    """Nobody asks for them any more, and there may be 100,000 of them for another day."""
    store = RedisStore()
    for key in "123":
        end = store.report_share(TOPIC, report(key, state="succeeded"))
    (name,) = live_redis.keys("*:progress:*")
    assert set(live_redis.hkeys(name)) == {b"job", b"told"}

    assert end.turn
    assert store.publish(TOPIC, data(1), version=end.version)
    assert not store.report_share(TOPIC, report("1", state="succeeded")).turn


reports = st.builds(
    report,
    key=st.sampled_from(["", "1", "1", "2", "2", "3", "4", "ü b"]),
    state=st.sampled_from(["running"] * 6 + ["succeeded", "succeeded", "waiting", "failed", "cancelled"]),
    done=st.integers(0, WHOLE),
    attempt=st.sampled_from(["", "a", "b"]),
    error=st.sampled_from(["", "E 1", "F\n"]),
    needed=st.sampled_from([False, False, False, True]),
    news=st.booleans(),
    seen=st.integers(0, 20),
    run=st.sampled_from(["", "", "1", "1", "1", "2"]),
    of=st.sampled_from([2, 3, 3, 3]),
)


@hypothesis_settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.tuples(reports, st.booleans()), max_size=25))
def test_a_job_is_the_same_in_all_stores(live_redis, steps):
    """What Redis says after any reports is what the pure code says, which the properties are proven for."""
    live_redis.flushall()
    stores = [RedisStore(), MemoryStore(lambda _: None)]
    for each, published in steps:
        one, other = (store.report_share(TOPIC, each) for store in stores)
        assert one._replace(elapsed=0) == other._replace(elapsed=0)
        if published and one.version:
            for store in stores:
                store.publish(TOPIC, data(1), version=one.version)
