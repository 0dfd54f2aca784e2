"""
A lost message that nothing follows is found, and topics on which nothing was published are not looked at.

How often a history was looked at is counted by Redis. Sockets are cursors here, whose messages all get lost.
"""

import asyncio
from itertools import count

import pytest
import redis

from notifications import Topic, apublish, publish
from notifications.delivery import reconciler
from notifications.delivery.cursor import Cursor, Verdict
from notifications.delivery.reconciler import Reconciler
from notifications.history import get_store
from notifications.history.changes import place_of
from notifications.history.position import Position
from notifications.topics import internal_name
from project.local_redis import LocalRedis
from tests.conftest import point_to
from tests.redis_groups import REPLICATED
from tests.waiting import await_for, scaled

TOPIC = Topic("closed", "7")
INTERVAL = 0.05
MARKS = internal_name("changes")


class Sockets:
    """Sockets that receive nothing live, and what they are told of."""

    def __init__(self):
        self.reconciler = Reconciler()
        self.cursors = []
        self.behind = []

    async def join(self, *topics, ttl=3600.0):
        for topic, where in zip(topics, await get_store().look(topics), strict=True):
            cursor = Cursor(topic, ttl)
            cursor.begin(where.position, where, asyncio.get_running_loop().time())
            cursor.go_live()
            self.cursors.append(cursor)
            self.reconciler.add(cursor, self.tell, INTERVAL)

    def leave(self):
        for cursor in self.cursors:
            self.reconciler.remove(cursor)
        self.cursors.clear()
        self.behind.clear()

    def tell(self, cursor, under_way):
        self.behind.append(cursor.topic)

    async def told(self, *topics):
        """Wait until the sockets have been told of these topics, and of no others."""
        await await_for(lambda: set(self.behind) >= set(topics), what=f"{topics} to be found")
        assert set(self.behind) == set(topics)


@pytest.fixture
async def sockets(monkeypatch):
    monkeypatch.setattr(reconciler, "TICK", 0.01)
    monkeypatch.setattr(reconciler, "AFTER_JOIN", 0.02)
    monkeypatch.setattr(reconciler, "AFTER_FAILURE", 0.02)
    sockets = Sockets()
    yield sockets
    sockets.leave()


def used(client, command):
    """How often a command was called, by scripts as well."""
    return client.info("commandstats").get(f"cmdstat_{command}", {"calls": 0})["calls"]


async def some_comparisons(client, amount=3):
    """Wait until it was asked so many times what has changed."""
    begin = used(client, "get")
    await await_for(lambda: used(client, "get") >= begin + amount, what="comparisons")


async def quiet(client):
    """Wait until nothing is in doubt any more, so that comparisons look at no history."""
    async with asyncio.timeout(scaled()):
        looks = None
        while looks != (looks := used(client, "xrevrange")):
            await some_comparisons(client)


async def test_topics_on_which_nothing_is_published_are_not_looked_at(live_redis, sockets):
    """Comparing costs by what was published: of a thousand quiet topics no history is looked at again."""
    await sockets.join(*(Topic("closed", number) for number in range(1000)))
    await quiet(live_redis)
    before = used(live_redis, "xrevrange")

    await some_comparisons(live_redis, 10)

    assert used(live_redis, "xrevrange") == before


async def test_of_topics_on_which_something_is_published_few_others_are_looked_at(live_redis, sockets):
    """A message costs its own topic, and those that share a mark with it."""
    topics = [Topic("closed", number) for number in range(1000)]
    await sockets.join(*topics)
    await quiet(live_redis)
    before = used(live_redis, "xrevrange")

    await apublish(topics[7], {})
    await sockets.told(topics[7])
    sockets.cursors[7].begin(*await ends(topics[7]))  # the socket has read what it missed
    await quiet(live_redis)

    looks = used(live_redis, "xrevrange") - before - 2  # of stamping, and of this test
    assert 2 <= looks <= 20


async def ends(topic):
    [where] = await get_store().look([topic])
    return where.position, where, asyncio.get_running_loop().time()


@pytest.mark.parametrize("amount", [1, 5])
async def test_a_lost_message_is_found_although_nothing_follows_it(live_redis, sockets, amount):
    """Also after many comparisons that found nothing."""
    others = [Topic("closed", number) for number in range(100)]
    await sockets.join(TOPIC, *others[10:])
    await quiet(live_redis)

    for _ in range(amount):
        publish(TOPIC, {})

    await sockets.told(TOPIC)


async def test_a_lost_message_is_found_although_its_mark_was_written_over(live_redis, sockets):
    """Topics share marks: one on which something is published next hides nothing."""
    bucket = place_of(str(TOPIC)).bucket
    neighbour = next(topic for n in count() if place_of(str(topic := Topic("closed", f"n{n}"))).bucket == bucket)
    await sockets.join(TOPIC)
    await quiet(live_redis)

    publish(TOPIC, {})
    publish(neighbour, {})

    await sockets.told(TOPIC)


@pytest.mark.parametrize(
    "disturb",
    [
        lambda client: client.delete(MARKS),
        lambda client: client.set(MARKS, "x"),
        lambda client: client.rename(MARKS, "elsewhere") and client.rpush(MARKS, "x"),
        lambda client: client.setrange(MARKS, 10**6, "x"),
        lambda client: client.config_set("maxmemory", 1),
    ],
    ids=["deleted", "text", "list", "too long", "full"],
)
@pytest.mark.parametrize("later", [False, True])
async def test_whatever_is_done_to_the_marks_a_lost_message_is_found(live_redis, sockets, disturb, later):
    """They are a short cut: who cannot rely on them looks at the histories."""
    publish(TOPIC, {})
    await sockets.join(TOPIC)
    await quiet(live_redis)
    publish(Topic("closed", "another"), {})  # there are marks
    if not later:
        publish(TOPIC, {})
    try:
        disturb(live_redis)
        if later:
            live_redis.config_set("maxmemory", 0)
            publish(TOPIC, {})

        await sockets.told(TOPIC)
    finally:
        live_redis.config_set("maxmemory", 0)


@pytest.mark.parametrize("others_may", [False, True])
async def test_what_an_account_without_the_right_to_write_marks_publishes_is_found(
    live_redis, sockets, settings, others_may
):
    """An account of a site that was upgraded lacks it until somebody grants it; nothing is lost meanwhile."""
    everything, another = settings.REDIS_URL, Topic("closed", "another")
    live_redis.execute_command("ACL", "SETUSER", "limited", "reset", "on", ">secret", "~*", "&*", "+@all", "-setrange")
    limited = everything.replace("://", "://limited:secret@")
    try:
        for _ in range(2):
            point_to(settings, limited)
            await sockets.join(TOPIC)
            publish(another, {})
            await quiet(live_redis)

            publish(TOPIC, {})
            if others_may:  # at once, so that no comparison comes in between
                point_to(settings, everything)
                publish(another, {})

            await sockets.told(TOPIC)
            sockets.leave()
    finally:
        live_redis.acl_deluser("limited")


async def test_another_server_is_not_trusted(sockets, settings, tmp_path):
    """After a restart from a snapshot the marks say nothing of what was seen before: everything is looked at."""
    with LocalRedis(data_dir=tmp_path) as server, redis.Redis.from_url(server.url) as client:
        point_to(settings, server.url)
        topics = [Topic("closed", number) for number in range(100)]
        await sockets.join(*topics)
        publish(topics[0], {})
        await sockets.told(topics[0])
        sockets.cursors[0].begin(*await ends(topics[0]))
        await quiet(client)

        client.save()
        await asyncio.to_thread(server.restart)

        await await_for(lambda: used(client, "xrevrange") >= len(topics), what="a look at everything")
        await quiet(client)
        publish(topics[1], {})
        await await_for(lambda: topics[1] in sockets.behind)


async def test_a_lost_message_is_found_after_a_failover(sockets, settings):
    """The promoted replica may have fewer messages than its primary had, and other ones since."""
    with LocalRedis(*REPLICATED) as old, LocalRedis(*REPLICATED, "--replicaof", "127.0.0.1", str(old.port)) as new:
        point_to(settings, old.url)
        with redis.Redis.from_url(old.url) as client, redis.Redis.from_url(new.url) as replica:
            await sockets.join(TOPIC)
            publish(Topic("closed", "another"), {})
            await quiet(client)
            await await_for(lambda: replica.exists(MARKS), what="a replica that has everything")
            replica.replicaof("NO", "ONE")

            point_to(settings, new.url)
            publish(TOPIC, {})

            await sockets.told(TOPIC)


async def test_a_lost_message_of_a_short_life_is_found_before_it_is_gone(live_redis, sockets, settings):
    """However rarely quiet topics are looked at: several times within the life of their histories."""
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "HISTORY_TTL": 2}
    await sockets.join(TOPIC, ttl=2.0)
    for _ in range(2):
        publish(TOPIC, {})
        await sockets.told(TOPIC)
        [cursor] = sockets.cursors
        cursor.begin(*await ends(TOPIC))
        sockets.behind.clear()  # only now: until it has begun anew it is told again
        await await_for(lambda: not live_redis.exists(TOPIC.history_key), what="the end of its history")
        assert sockets.behind == []


async def test_a_quiet_topic_is_known_to_be_empty_for_as_long_as_it_is(live_redis, sockets):
    """The first message after any time is sent at once, not looked for in case there was another one that is gone."""
    await sockets.join(TOPIC, ttl=1.5)
    [cursor] = sockets.cursors
    joined, clock = live_redis.time(), asyncio.get_running_loop().time
    await await_for(lambda: live_redis.time()[0] > joined[0] + 3, what="two lives of a history")

    position = Position.parse(await apublish(TOPIC, {}))

    assert cursor.offer(*position, (await get_store().changes()).run, clock()) is Verdict.SEND


async def test_a_quiet_topic_is_looked_at_now_and_then(live_redis, sockets, monkeypatch):
    """What a mark that somebody has changed may hide has a bound; and so has the age of what a socket is sure of."""
    monkeypatch.setattr(reconciler, "AT_LATEST", 4 * INTERVAL)
    await sockets.join(TOPIC)
    await quiet(live_redis)
    before = live_redis.get(MARKS)
    publish(TOPIC, {})
    live_redis.set(MARKS, before) if before else live_redis.delete(MARKS)

    await sockets.told(TOPIC)


async def test_a_look_for_changes_that_failed_is_repeated_soon(live_redis, sockets, monkeypatch):
    """A Redis that is away just then costs no interval, and nothing is taken for seen."""
    await sockets.join(TOPIC)
    await quiet(live_redis)
    changes, failures = get_store().changes, []

    async def failing(shard):
        if len(failures) < 3:
            failures.append(True)
            raise redis.ConnectionError
        return await changes(shard)

    monkeypatch.setattr(get_store(), "changes", failing)
    publish(TOPIC, {})

    await sockets.told(TOPIC)
    assert len(failures) == 3


async def test_a_topic_whose_comparison_failed_stays_in_doubt(live_redis, sockets, monkeypatch, caplog):
    """Whatever is raised, and although nothing more is published: it is compared again."""
    await sockets.join(TOPIC)
    await quiet(live_redis)
    look, failures = get_store().look, []

    async def failing(topics):
        if len(failures) < 2:
            failures.append(True)
            raise ZeroDivisionError
        return await look(topics)

    monkeypatch.setattr(get_store(), "look", failing)
    publish(TOPIC, {})

    await sockets.told(TOPIC)
    assert caplog.text.count("the comparison of positions failed") == 2


async def test_a_socket_that_stays_behind_is_told_again(live_redis, sockets):
    """If reading failed for a reason that nobody foresaw, the next comparison finds it again."""
    await sockets.join(TOPIC)
    await quiet(live_redis)
    publish(TOPIC, {})

    await await_for(lambda: len(sockets.behind) >= 3, what="the same topic three times")
    assert set(sockets.behind) == {TOPIC}
