"""
A Redis that throws keys away when it is full: what is lost with them is told, nothing comes twice.

Each test has a server of its own with an evicting policy, and real pressure: the tool writes until Redis has evicted
what it had before.
"""

import asyncio
import json
import re
from pathlib import Path

import pytest
import redis

from notifications import Topic, apublish
from notifications.bridge.lease import Lease
from notifications.broker import script
from notifications.delivery.cursor import Cursor, Verdict, start
from notifications.doctor.redis_server import examine_redis
from notifications.history import get_store
from notifications.history import redis as history_redis
from notifications.history.position import Position
from notifications.history.stamped import tail
from notifications.history.store import NOT_HOLDER, Raw
from project.local_redis import LocalRedis
from tests.conftest import point_to
from tests.faults import evict

TTL = 3600.0


@pytest.fixture(scope="module")
def evicting_server(redis_program):
    with LocalRedis("--maxmemory-policy", "volatile-lru", "--maxmemory-samples", "10") as server:
        yield server


@pytest.fixture
def evicting(evicting_server, settings):
    """Point the site to a Redis that evicts, and return a client of it, emptied and with room."""
    point_to(settings, evicting_server.url)
    with redis.Redis.from_url(evicting_server.url) as client:
        client.config_set("maxmemory", 0)
        client.config_resetstat()
        client.flushall()
        yield client


async def press(client, *keys):
    await asyncio.to_thread(evict, client, *keys)


async def test_an_evicted_history_begins_a_new_epoch(evicting):
    """Its ids are never given out again; a reader with an old one is told."""
    topic = Topic.for_user(1)
    last = Position.parse(await apublish(topic, {"n": 1}))
    await press(evicting, topic.history_key)

    [empty] = await get_store().look([topic])
    assert start(empty, last, TTL, state=False).recovered is False
    after = Position.parse(await apublish(topic, {"n": 2}))
    [where] = await get_store().look([topic])

    assert after.epoch > last.epoch
    assert start(where, last, TTL, state=False).recovered is False


@pytest.mark.parametrize("published_after", [False, True])
async def test_who_was_away_from_an_empty_topic_is_told_of_what_was_evicted(evicting, published_after):
    """An empty history proves nothing once Redis has evicted something, nor does one that begins with 1."""
    topic = Topic.for_user(1)
    [before] = await get_store().look([topic])
    assert start(before, before.position, TTL, state=False).recovered is True
    await apublish(topic, {"n": 1})
    await press(evicting, topic.history_key)
    if published_after:
        await apublish(topic, {"n": 2})

    [where] = await get_store().look([topic])

    assert start(where, before.position, TTL, state=False).recovered is False
    if not published_after:
        [later] = await get_store().look([topic])
        assert start(later, later.position, TTL, state=False).recovered is True, "nothing was evicted since"


async def test_a_socket_of_an_empty_topic_is_told_of_what_was_evicted(evicting):
    """The message that it missed is gone: the next one, the first of its epoch, does not pass as the first."""
    topic = Topic.for_user(1)
    now = asyncio.get_running_loop().time()
    [before] = await get_store().look([topic])
    cursor = Cursor(topic, TTL)
    cursor.begin(before.position, before, now)
    cursor.go_live()
    await apublish(topic, {"n": 1})  # which the channel layer loses
    await press(evicting, topic.history_key)
    after = Position.parse(await apublish(topic, {"n": 2}))
    [run] = {field.decode() for _, fields in evicting.xrange(topic.history_key) for field in fields}

    assert cursor.offer(*after, run, now) is Verdict.BEHIND
    is_told, frames = cursor.follow(await get_store().read(topic, cursor.position), now)
    assert (is_told, frames) == (True, [])


async def test_a_socket_of_an_empty_topic_is_sent_the_first_message(evicting):
    """While nothing is evicted it is told of nothing: the history shows that there was none before."""
    topic = Topic.for_user(1)
    now = asyncio.get_running_loop().time()
    [before] = await get_store().look([topic])
    cursor = Cursor(topic, TTL)
    cursor.begin(before.position, before, now)
    cursor.go_live()
    await apublish(topic, {"n": 1})

    is_told, frames = cursor.follow(await get_store().read(topic, cursor.position), now)
    if not frames:
        is_told, frames = cursor.follow(await get_store().read(topic, cursor.position), now)

    assert not is_told
    assert [json.loads(frame.text)["n"] for frame in frames] == [1]


async def test_a_quiet_topic_is_not_told_of_anything_while_nothing_is_evicted(evicting):
    """With the policy alone, as most services have it, and memory to spare: all is as without it."""
    topic = Topic.for_user(1)
    [where] = await get_store().look([topic])
    await apublish(topic, {"n": 1})
    evicting.delete(topic.history_key)  # as if it had expired

    [later] = await get_store().look([topic])

    assert (later.run, later.started) == (where.run, where.started)
    assert start(later, where.position, TTL, state=False).recovered is True


async def test_a_server_that_does_not_tell_what_it_evicts_proves_nothing(evicting, monkeypatch):
    """Redis Software answers no INFO in scripts: every reader of an empty history is told to load its state."""
    lua = (Path(script.__file__).parent / "lua/evicted.lua").read_text()
    silent = script.Script("look", prelude=lua.replace("INFO", "NOSUCH"))
    monkeypatch.setattr(history_redis, "_LOOK", silent)
    topic = Topic.for_user(1)
    [before] = await get_store().look([topic])
    await asyncio.sleep(0.002)

    [where] = await get_store().look([topic])

    assert start(where, before.position, TTL, state=False).recovered is False
    assert await get_store().server() == evicting.info("server")["run_id"][:12]
    last = Position.parse(await apublish(topic, {"n": 1}))
    [where] = await get_store().look([topic])
    assert start(where, last, TTL, state=False).recovered is True


async def test_marks_that_are_lost_make_everything_be_compared(evicting):
    """They have no time to live, but allkeys policies evict them, too: their successors name themselves."""
    topic = Topic.for_user(1)
    await get_store().changes()
    before = await get_store().changes()
    assert before.since(before) == frozenset()
    await apublish(topic, {"n": 1})
    evicting.delete("notifications:changes")

    lost = await get_store().changes()
    assert lost.since(before) is None
    assert (await get_store().changes()).since(lost) == frozenset()

    evicting.delete("notifications:changes")
    await apublish(topic, {"n": 2})
    assert (await get_store().changes()).since(lost) is None


async def test_an_evicted_lease_goes_to_another_and_the_old_token_is_refused(evicting):
    """Nobody stamps without a lease; the one who had it is not the holder when it stamps next."""
    old, new = Lease(candidate_ttl=0.001), Lease(candidate_ttl=0.001)
    assert await old.take()
    evicting.expire(old.key, 3000)  # as long-lived as what else there is, and idle
    await press(evicting, old.key)
    batch = [Raw(Topic.for_user(1), tail(b'{"n":1}'))]

    assert (await get_store().stamp_batch(old.key, old.token, 1, batch))[0] == NOT_HOLDER
    assert await new.take()
    assert (await get_store().stamp_batch(old.key, old.token, 1, batch))[0] == NOT_HOLDER
    assert (await get_store().stamp_batch(new.key, new.token, 1, batch))[0] == 1
    assert await get_store().publish_inlet(old.key, old.token, []) is None


async def test_an_evicted_idempotency_key_no_longer_keeps_a_repetition(evicting):
    """It is documented: the one promise that an eviction breaks without a word."""
    topic = Topic.for_user(1)
    first = await apublish(topic, {"n": 1}, idempotency_key="once")
    assert await apublish(topic, {"n": 1}, idempotency_key="once") == first
    [key] = evicting.keys("notifications:once:*")
    await press(evicting, key)

    assert await apublish(topic, {"n": 1}, idempotency_key="once") != first


async def test_the_doctor_says_what_a_policy_throws_away(evicting):
    """That it may, and how much it has; memory that is nearly full is a finding of its own."""
    evicting.config_set("maxmemory", "1gb")
    [may] = [finding.text for finding in await examine_redis() if "maxmemory-policy" in finding.text]
    await apublish(Topic.for_user(1), {"n": 1})
    await press(evicting, Topic.for_user(1).history_key)
    [has] = [finding.text for finding in await examine_redis() if "maxmemory-policy" in finding.text]

    assert "volatile-lru: when it is full, Redis throws away histories" in may
    assert "inlet" not in may
    assert re.search(r"it has evicted \d+ keys", has)
