"""Several listeners that divide the shards among them, on a real Redis."""

import asyncio
import json
from contextlib import asynccontextmanager
from itertools import chain, count

import msgspec
import pytest
import redis

from notifications import Topic
from notifications.bridge import agreement, lease, shard
from notifications.bridge import listener as bridge
from notifications.bridge.agreement import Agreement
from notifications.bridge.listener import Listener
from notifications.bridge.state import State
from notifications.bridge.status import REPORT_INTERVAL, Report, living, write
from notifications.broker.clients import async_client
from notifications.doctor.listeners import examine_listeners
from notifications.history import get_store
from notifications.history.position import Position
from notifications.history.redis import _BATCH as BATCH
from notifications.history.stamped import digest
from notifications.topics import internal_name
from tests.conftest import point_to
from tests.faults import held_up
from tests.redis_groups import RedisCluster
from tests.waiting import await_for, scaled

SHARDS = 4
TOPICS = [Topic("user", str(n)) for n in range(12)]


class Layer:
    """Takes nothing down: the histories say what was stamped."""

    async def group_send(self, group, message):
        pass


@pytest.fixture(autouse=True)
def divided(settings, live_redis):
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "SHARDS": SHARDS, "HISTORY_SIZE": 100_000}


@pytest.fixture
def cluster(settings):
    """Point this process's site to a cluster, and return a client of one of its nodes."""
    with RedisCluster(steady=True) as cluster, redis.Redis.from_url(cluster.nodes[0].url) as client:
        point_to(settings, cluster.url)
        yield client


@pytest.fixture
async def listeners():
    """Return a function that starts a listener; all are stopped at the end."""
    running = []

    def start():
        listener = Listener(Layer())
        running.append((listener, asyncio.create_task(listener.run())))
        return listener

    yield start
    for listener, _ in running:
        listener.stop()
    await asyncio.gather(*(task for _, task in running))


def led(listener):
    return [shard.number for shard in listener.shards if shard.machine.state is State.HOLDER]


def are_divided(*listeners):
    """Return whether every shard is led by one of the listeners, and they lead as many as each other."""
    numbers = [led(listener) for listener in listeners]
    sizes = [len(each) for each in numbers]
    return sorted(chain(*numbers)) == list(range(SHARDS)) and max(sizes) - min(sizes) <= 1


@asynccontextmanager
async def a_stream(live_redis):
    """Publish raw messages on all topics all the time; at the end each was stamped once, in order."""
    going, numbers = True, count()

    async def publish():
        while going:
            for topic in TOPICS:
                live_redis.publish(topic.channel, f'{{"n":{next(numbers)}}}')
            await asyncio.sleep(0.002)

    publishing = asyncio.create_task(publish())
    try:
        yield
    finally:
        going = False
        await publishing
    sent = next(numbers)

    async def stamped():
        found = {}
        for topic in TOPICS:
            after, numbers = Position(0, 0), []
            while (page := await get_store().read(topic, after)).frames:
                numbers += [json.loads(frame.text)["n"] for frame in page.frames]
                after = page.frames[-1].position
            found[topic] = numbers
        return found

    expected = {topic: list(range(at, sent, len(TOPICS))) for at, topic in enumerate(TOPICS)}
    async with asyncio.timeout(scaled(20)):
        while sum(map(len, (found := await stamped()).values())) < sent:  # noqa: ASYNC110  Redis does not call
            await asyncio.sleep(0.05)
    assert found == expected


async def test_listeners_come_and_go_and_nothing_is_lost_or_stamped_twice(live_redis, listeners):
    """Each time the shards are divided anew; what is published meanwhile is stamped once, in order."""
    first = listeners()
    await await_for(lambda: are_divided(first))
    async with a_stream(live_redis):
        second = listeners()
        await await_for(lambda: are_divided(first, second))
        before = led(first), led(second)

        third = listeners()
        await await_for(lambda: are_divided(first, second, third))
        assert set(led(first)) <= set(before[0])
        assert set(led(second)) <= set(before[1])

        first.stop()
        await await_for(lambda: are_divided(second, third))
    expected = {listener.status.report.id: led(listener) for listener in (second, third)}
    async with asyncio.timeout(scaled()):
        while (await reported()) != expected:  # noqa: ASYNC110  they report a moment later
            await asyncio.sleep(0.02)


async def reported():
    """Return which shards each listener says that it leads."""
    return {report.id: report.shards for report in await living(await async_client()) if report.shards}


async def test_a_listener_that_is_cut_off_comes_back_and_nothing_is_lost_or_stamped_twice(live_redis, listeners):
    """Others lead what was its, until it has a share again."""
    first, second = listeners(), listeners()
    await await_for(lambda: are_divided(first, second))
    async with a_stream(live_redis):
        for listener in (first, second):
            listener._shared.subscription.close("cut off")
            await await_for(lambda listener=listener: not led(listener))
            await await_for(lambda: are_divided(first, second), 20)


async def test_a_shard_that_was_just_passed_on_is_led_by_who_heard_all_of_it(live_redis, listeners, monkeypatch):
    """Its new leader is cut off and back before the former one would ask by itself, and has missed some of it."""
    monkeypatch.setattr(shard, "RENEW_INTERVAL", 2.0)
    first = listeners()
    await await_for(lambda: are_divided(first))
    second = listeners()
    await await_for(lambda: are_divided(first, second))
    passed = led(second)
    async with a_stream(live_redis):
        second._shared.subscription.close("cut off")
        await await_for(lambda: not led(second))
        await await_for(lambda: set(passed) <= {*led(first), *led(second)}, 20)
        assert set(passed) <= set(led(first))


async def test_what_was_published_before_a_new_listener_came_is_stamped_before_it_leads(live_redis, listeners):
    """Also what the former holder, which is slow, has not read yet; the new one has not heard it."""
    first = listeners()
    await await_for(lambda: are_divided(first))
    async with a_stream(live_redis):
        reading = first._shared.subscription._transport
        reading.pause_reading()
        await asyncio.sleep(0.1)
        second = listeners()
        asyncio.get_running_loop().call_later(1.5, reading.resume_reading)
        await await_for(lambda: are_divided(first, second), 20)


async def test_a_shard_of_which_too_much_is_left_goes_to_who_heard_all_of_it(live_redis, listeners, monkeypatch):
    """Not to the new listener, which has not heard what the former holder could not stamp in time."""
    monkeypatch.setattr(shard, "PASSING_TIMEOUT", 0.1)
    first = listeners()
    await await_for(lambda: are_divided(first))
    async with a_stream(live_redis):
        async with held_up(BATCH) as batch:
            await batch.wait()
            second = listeners()
            await await_for(lambda: any(each.machine.state is State.PASSING_ON for each in first.shards))
            await await_for(lambda: not any(each.machine.state is State.PASSING_ON for each in first.shards))
        await await_for(lambda: are_divided(first, second), 20)


async def test_a_shard_is_not_passed_on_before_what_its_holder_read_before_a_gap_is_stamped(
    live_redis, listeners, monkeypatch
):
    """A stand-by would not notice who stamps it, and stamp it again when it leads the next time."""
    monkeypatch.setattr(shard, "PASSING_TIMEOUT", 0.1)
    listener, topic = listeners(), TOPICS[0]
    await await_for(lambda: are_divided(listener))
    passed = listener.shards[topic.shard]
    async with held_up(BATCH) as batch:
        live_redis.publish(topic.channel, "{}")
        await batch.wait()
        listener._shared.subscription.close("cut off")
        await await_for(lambda: not led(listener))
        await await_for(lambda: are_divided(listener))
        assert passed.backlog.kept

        await passed.pass_on("another")

        assert passed.machine.state is State.HOLDER
    await await_for(lambda: not passed.backlog)


async def test_who_stops_before_it_has_read_everything_leaves_its_shards_to_who_heard_it(live_redis, listeners):
    """Not to a new listener that has not."""
    oldest = listeners()
    await await_for(lambda: are_divided(oldest))
    slow = listeners()
    await await_for(lambda: are_divided(oldest, slow))
    slow._shared.subscription._transport.pause_reading()
    async with a_stream(live_redis):
        await asyncio.sleep(0.1)
        newcomer = listeners()
        await await_for(lambda: newcomer.status.report.id in slow._others)
        slow.stop()
        await await_for(lambda: are_divided(oldest, newcomer), 20)


async def test_who_loses_a_lease_asks_for_it_at_once(live_redis, listeners, monkeypatch):
    """Not when it would have renewed it: until it has asked, it is no candidate, though it hears everything."""
    monkeypatch.setattr(shard, "RENEW_INTERVAL", 60.0)
    listener = listeners()
    await await_for(lambda: are_divided(listener))
    led_by = listener.shards[TOPICS[0].shard]
    live_redis.hset(led_by.lease.key, mapping={"token": "another's", "by": "another"})

    live_redis.publish(TOPICS[0].channel, "{}")

    await await_for(lambda: live_redis.hexists(internal_name("candidates", led_by.number), listener.status.report.id))


async def test_shards_of_a_cluster_are_divided_and_handed_over(cluster, listeners):
    """Acknowledgements and messages come from different nodes, in any order; nothing is lost or stamped twice."""
    first = listeners()
    await await_for(lambda: are_divided(first), 20)
    async with a_stream(cluster):
        second = listeners()
        await await_for(lambda: are_divided(first, second), 20)
        first.stop()
        await await_for(lambda: are_divided(second), 20)


async def test_who_is_called_need_not_wait(live_redis, listeners, monkeypatch):
    """A shard that is handed over has a new holder at once, long before anybody would ask by itself."""
    monkeypatch.setattr(shard, "POLL_INTERVAL", 60.0)
    monkeypatch.setattr(lease, "HEIR_TTL", 60.0)
    first = listeners()
    await await_for(lambda: are_divided(first))
    second = listeners()
    await await_for(lambda: are_divided(first, second))


async def test_who_takes_long_to_stop_names_its_successors_all_the_same(live_redis, listeners, monkeypatch):
    """It has looked for them anew meanwhile, and says itself that it leads no shard any more."""
    monkeypatch.setattr(shard, "POLL_INTERVAL", 60.0)
    monkeypatch.setattr(lease, "HEIR_TTL", 60.0)
    first = listeners()
    await await_for(lambda: are_divided(first))
    second = listeners()
    await await_for(lambda: are_divided(first, second))
    reading = first._shared.subscription._transport

    reading.pause_reading()
    first.stop()
    asyncio.get_running_loop().call_later(1.2 * REPORT_INTERVAL, reading.resume_reading)

    await await_for(lambda: are_divided(second))


async def test_what_a_successor_has_stamped_of_a_shard_that_was_being_passed_on_is_not_left(live_redis, listeners):
    """The former holder slept over it and wakes up: should its successor die now, nothing is stamped again."""
    listener, topic = listeners(), TOPICS[0]
    await await_for(lambda: are_divided(listener))
    passed, data = listener.shards[topic.shard], b'{"n":1}'
    channel = topic.channel.encode()
    async with held_up(BATCH) as batch:
        live_redis.publish(channel, data)
        await batch.wait()
        passing = asyncio.create_task(passed.pass_on("another"))
        await await_for(lambda: passed.machine.state is State.PASSING_ON)
        passed.lease.lost()
        told = ["another's", 1, 1, [str(topic)], ["5-1"], [digest(channel, data)]]
        passed.received_stamped(b"a" + msgspec.msgpack.encode(told))
        left = passed.standby.take(asyncio.get_running_loop().time())
        await passing
    await await_for(lambda: passed.machine.state is State.STAND_BY)

    assert not left + passed.standby.take(asyncio.get_running_loop().time())
    assert not passed.backlog


async def test_duties_are_done_by_whoever_leads_the_first_shard(live_redis, listeners, monkeypatch):
    """There is one of them."""
    doing = []

    async def duty():
        doing.append(1)
        try:
            await asyncio.Event().wait()
        finally:
            doing.pop()

    monkeypatch.setattr(bridge, "registered", lambda: {"test": duty})
    first, second = listeners(), listeners()
    await await_for(lambda: are_divided(first, second))
    await await_for(lambda: doing == [1])


async def test_the_doctor_names_shards_that_nobody_leads(live_redis):
    """And takes no listener for one that hangs because another leads other shards."""
    client = await async_client()
    for host, its in (("a", [0, 1]), ("b", [3])):
        report = Report(host=host, pid=1, state="holder", forwarded=0, shards=its, of=SHARDS)
        await write(client, report)

    [finding] = await examine_listeners(client, direct=True)

    assert finding.text == "nobody leads the shards 2: a:1 holder of shards 0 1, b:1 holder of shards 3"


# Another number of shards.


async def test_the_number_of_listeners_that_were_killed_ends_by_itself(live_redis, monkeypatch):
    """Nobody renews it; until then nobody with another number takes a lease."""
    monkeypatch.setattr(agreement, "TTL", scaled(2))
    dead, other = Agreement(2), Agreement(4)
    await dead.renew()
    await other.renew()
    assert (dead.valid, other.valid, other.other) == (True, False, "2")

    async with asyncio.timeout(scaled()):
        while not other.valid:
            await asyncio.sleep(0.02)
            await other.renew()
    await dead.renew()

    assert (dead.valid, dead.other, other.other) == (False, "4", "")


async def test_the_last_listener_of_a_number_ends_it_at_once(live_redis):
    """And nobody ends another's."""
    first, second = Agreement(2), Agreement(4)
    await first.renew()
    await second.end()
    await second.renew()
    assert not second.valid

    await first.end()
    await second.renew()
    assert second.valid
    assert 4000 < live_redis.pttl("notifications:shards") <= 8000


async def test_an_agreement_of_a_later_time_ends_in_time(live_redis):
    """Redis's clock was set back: nobody waits for an hour for listeners that are gone."""
    await Agreement(2).renew()
    live_redis.pexpire("notifications:shards", 3_600_000)

    await (other := Agreement(4)).renew()

    assert not other.valid
    assert live_redis.pttl("notifications:shards") <= 8000
