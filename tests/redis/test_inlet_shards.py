"""Inlets of a site that is divided into shards, on a real Redis: entries for topics of other shards."""

import asyncio
import json
from contextlib import asynccontextmanager, suppress
from types import SimpleNamespace

import pytest

from notifications import Topic
from notifications.bridge import inlet as bridge_inlet
from notifications.bridge.forwarder import Forwarder
from notifications.bridge.inlet import STEP, Inlet
from notifications.bridge.listener import Listener
from notifications.bridge.state import State, StateMachine
from notifications.history import get_store
from notifications.history.inlet import INLET, NOTE_TTL
from notifications.history.redis import _INLET
from notifications.history.store import IDEMPOTENCY_TTL
from notifications.logs import LogBudget
from notifications.metrics import counts, listening
from notifications.topics import internal_name
from tests.conftest import point_to
from tests.faults import Proxy, held_up
from tests.redis.test_inlet import Layer
from tests.waiting import await_for, scaled

SECRET = "s3cret-of-nobody"


@pytest.fixture(autouse=True)
def divided(live_redis, settings):
    """Divide the topics into two shards, whose histories keep everything."""
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "SHARDS": 2, "HISTORY_SIZE": 100_000}


class Holder:
    """Stands in for the lease of a shard: as long as nobody else writes a token, this one has it."""

    held = True

    def __init__(self, client, shard, token):
        self.key = internal_name("lease", shard)
        self.token = token
        client.hset(self.key, "token", token)


@asynccontextmanager
async def emptying(client, shard=0, token="one"):
    """Empty the inlet of a shard, without a listener; yields what can be told to do otherwise."""
    machine, log = StateMachine(), LogBudget(bridge_inlet.logger)
    machine.state = State.HOLDER
    forwarder = Forwarder(SimpleNamespace(group_send=None), log)
    inlet = Inlet(machine, Holder(client, shard, token), forwarder, Topic.from_channel, lambda topic: None, shard)
    running = asyncio.create_task(inlet.run())
    try:
        yield running
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


def topic_of(shard, number=0):
    """Return a topic of a shard; another for each number."""
    return [topic for topic in (Topic("user", id_) for id_ in range(100)) if topic.shard == shard][number]


def append(client, *entries, shard=0, **fields):
    """Append ``(topic, number)`` entries to the inlet of a shard, in one write."""
    with client.pipeline(transaction=False) as pipeline:
        for topic, number in entries:
            data = json.dumps({"n": number})
            pipeline.xadd(internal_name(INLET, shard), {"topic": str(topic), "data": data, **fields})
        return pipeline.execute()


def kept(client, topic):
    """Return the numbers that a topic's history has, in its order."""
    return [json.loads(frame)["n"] for _, fields in client.xrange(topic.history_key) for frame in fields.values()]


def notes(client):
    """Return the seconds for which each note of an entry that was passed on is kept."""
    return [client.ttl(key) for key in client.keys("*:inlet:passed:*")]


async def await_empty(client, shard=0, seconds=10):
    await await_for(lambda: not client.xlen(internal_name(INLET, shard)), seconds, "the inlet is empty")


@pytest.mark.parametrize("shard", [0, 1])
async def test_an_inlet_takes_entries_of_every_shard(live_redis, shard):
    """Each is kept, and announced, where its topic belongs, in the order of its topic; the metric sums them up."""
    topics = [topic_of(0), topic_of(1), topic_of(1, 1)]
    numbers = range(3 * STEP)
    append(live_redis, *((topics[number % 3], number) for number in numbers), shard=shard)
    published = counts["inlet_published", ""]
    with live_redis.pubsub() as watching:
        watching.psubscribe("*:stamped")
        watching.get_message(timeout=scaled())
        async with emptying(live_redis, shard):
            await await_empty(live_redis, shard)
            await await_for(lambda: counts["inlet_published", ""] == published + len(numbers))
            await await_for(lambda: listening.inlet == (0, 0.0))
            await await_for(lambda: all(ttl <= IDEMPOTENCY_TTL for ttl in notes(live_redis)))
        told = [watching.get_message(timeout=scaled()) for _ in numbers]

    for number, topic in enumerate(topics):
        assert kept(live_redis, topic) == [each for each in numbers if each % 3 == number]
    channels = [message["channel"].decode() for message in told]
    assert channels.count(internal_name("stamped", 0)) == STEP
    assert channels.count(internal_name("stamped", 1)) == 2 * STEP


@pytest.mark.parametrize("key", [None, "its own"])
@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["own first", "other first"])
async def test_a_holder_that_dies_between_publishing_and_removal_publishes_nothing_twice(live_redis, order, key):
    """However long nobody takes over: what it has noted outlives every idempotency key."""
    fields = {} if key is None else {"idempotency_key": key}
    append(live_redis, *((topic_of(shard), 1) for shard in order), **fields)
    async with held_up(_INLET) as reached, emptying(live_redis) as running:
        await asyncio.wait_for(reached.wait(), scaled())
        running.cancel()
    assert kept(live_redis, topic_of(1)) == [1]
    assert live_redis.xlen(internal_name(INLET, 0)) == 2
    assert all(ttl > NOTE_TTL - 100 for ttl in notes(live_redis))
    for forgotten in live_redis.keys("*:once:*"):
        live_redis.delete(forgotten)  # as after five minutes

    append(live_redis, *((topic_of(shard), 2) for shard in order))
    async with emptying(live_redis, token="two"):
        await await_empty(live_redis)

    assert [kept(live_redis, topic_of(shard)) for shard in (0, 1)] == [[1, 2], [1, 2]]


async def test_a_holder_that_is_late_changes_nothing(live_redis):
    """It was held up before the removal; its successor published the rest, and its own removal finds another token."""
    append(live_redis, *((topic_of(number % 2), number) for number in range(STEP)))
    async with held_up(_INLET) as reached, emptying(live_redis):
        await asyncio.wait_for(reached.wait(), scaled())
        reached.let_others_pass()
        async with emptying(live_redis, token="two"):
            append(live_redis, *((topic_of(number % 2), number) for number in range(STEP, 2 * STEP)))
            await await_empty(live_redis)
            reached.go_on.set()
            append(live_redis, (topic_of(1), 2 * STEP))
            await await_for(lambda: 2 * STEP in kept(live_redis, topic_of(1)))

    assert kept(live_redis, topic_of(0)) == list(range(0, 2 * STEP, 2))
    assert kept(live_redis, topic_of(1)) == [*range(1, 2 * STEP, 2), 2 * STEP]


async def test_the_same_idempotency_key_is_published_once_from_several_inlets(live_redis):
    """Programs that repeat themselves, to whichever inlet, and ``publish_*``: it is the key of the topic."""
    topic = topic_of(1)
    get_store().publish(topic, b'{"n":1}', "again")
    append(live_redis, (topic, 2), shard=0, idempotency_key="again")
    append(live_redis, (topic, 3), shard=1, idempotency_key="again")
    append(live_redis, (topic, 4), (topic, 5), shard=0, idempotency_key="new")
    append(live_redis, (topic, 6), shard=1)
    async with emptying(live_redis, 0), emptying(live_redis, 1):
        await await_empty(live_redis, 0)
        await await_empty(live_redis, 1)

    assert sorted(kept(live_redis, topic)) == [1, 4, 6]


async def test_answers_that_are_lost_publish_nothing_twice(live_redis, settings, monkeypatch):
    """The network loses those of the other shard, and of the removal: the next attempt finds what was done."""
    numbers = range(10 * STEP)
    append(live_redis, *((topic_of(number % 2), number) for number in numbers))
    with Proxy(live_redis.get_connection_kwargs()["port"]) as proxy:
        point_to(settings, proxy.url)
        settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "SHARDS": 2, "HISTORY_SIZE": 100_000}
        publish_inlet, lost = get_store().publish_inlet, []

        async def lose_an_answer(*arguments):
            if len(lost) < 5:
                lost.append(None)
                proxy.lose_the_next_answer()
            return await publish_inlet(*arguments)

        monkeypatch.setattr(get_store(), "publish_inlet", lose_an_answer)
        async with emptying(live_redis):
            await await_empty(live_redis, seconds=30)

    assert len(lost) == 5
    for shard in (0, 1):
        assert kept(live_redis, topic_of(shard)) == list(range(shard, len(numbers), 2))


async def test_a_shard_that_refuses_holds_up_its_own_entries(live_redis, settings, caplog, monkeypatch):
    """Others that were read with them go out, and its own afterwards, in their order."""
    monkeypatch.setattr(bridge_inlet, "LONGEST_PAUSE", 0.2)
    account = "ACL", "SETUSER", "narrow", "reset", "on", f">{SECRET}", "&*", "+@all"
    live_redis.execute_command(*account, "~{notifications:0}:*")
    port = live_redis.get_connection_kwargs()["port"]
    try:
        point_to(settings, f"redis://narrow:{SECRET}@127.0.0.1:{port}/0")
        settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "SHARDS": 2}
        append(live_redis, *((topic_of(number % 2), number) for number in range(4)))
        async with emptying(live_redis):
            await await_for(lambda: kept(live_redis, topic_of(0)) == [0, 2])
            await await_for(lambda: "the inlet cannot be emptied" in caplog.text)
            assert live_redis.xlen(internal_name(INLET, 0)) == 2
            assert kept(live_redis, topic_of(1)) == []
            live_redis.execute_command(*account, "~*")
            await await_empty(live_redis)
    finally:
        live_redis.acl_deluser("narrow")

    assert kept(live_redis, topic_of(1)) == [1, 3]
    assert SECRET not in caplog.text


async def test_listeners_that_divide_the_shards_forward_each_entry_once(live_redis):
    """Whoever has the shard of the inlet publishes for both shards, and each forwards what belongs to its own."""
    layers = [Layer(), Layer()]
    listeners = [Listener(layer) for layer in layers]
    running = [asyncio.create_task(listener.run()) for listener in listeners]
    numbers = range(4 * STEP)
    try:
        # Whoever begins to lead a shard forwards only the last frame of each topic; sockets read the others themselves.
        await await_for(
            lambda: [[shard.machine.leads for shard in each.shards].count(True) for each in listeners] == [1, 1]
        )
        append(live_redis, *((topic_of(number % 2), number) for number in numbers))
        await await_empty(live_redis)
        await await_for(lambda: sum(len(layer.texts) for layer in layers) >= len(numbers))
        append(live_redis, (topic_of(1), len(numbers)))
        await await_for(lambda: any(len(numbers) in layer.numbers for layer in layers))
    finally:
        for listener in listeners:
            listener.stop()
        await asyncio.gather(*running)

    forwarded = [number for layer in layers for number in layer.numbers]
    assert sorted(forwarded) == [*numbers, len(numbers)]
    for layer in layers:
        for shard in (0, 1):
            of_shard = [number for number in layer.numbers if number % 2 == shard]
            assert of_shard == sorted(of_shard)
