"""
The inlet under faults: real listeners, a real Redis, real sockets, and programs that go on appending.

Whatever dies, every entry is published once, and each topic's in order. What takes longer is marked ``faults_long``.
"""

import asyncio
import json
import random
import threading
import time
from contextlib import AsyncExitStack, contextmanager, suppress
from itertools import count

import pytest
import redis

from project.local_redis import LocalRedis
from tests.clients import open_tab
from tests.faults import Proxy, fail_over, kill_type, paused
from tests.processes import LAYERS, Site
from tests.waiting import scaled, wait_for

INLET = "notifications:inlet"
ENTRIES, TOPICS = 10_000, 10
END = 10**9
"""The number of the last message of the first topic; each next topic's is one more."""
ROUNDS_LONG = 8
"""How often the holder is killed in the long version."""

pytestmark = pytest.mark.faults


def site_of(directory, database, layer="ours", **options):
    settings = {"NOTIFICATIONS": {"HISTORY_SIZE": 50_000}, "CHANNEL_LAYER_BACKEND": LAYERS[layer]}
    return Site(directory, database, settings=settings, **options)


@pytest.fixture(params=LAYERS)
def each_layer(request, redis_program, migrated_database, tmp_path):
    """Return a site on each channel layer, with histories that keep all."""
    with site_of(tmp_path, migrated_database, request.param) as site:
        yield site


@pytest.fixture
def roomy_site(redis_program, migrated_database, tmp_path):
    """Return a site with histories that keep all."""
    with site_of(tmp_path, migrated_database) as site:
        yield site


@pytest.fixture
def lasting_site(redis_program, migrated_database, tmp_path):
    """Return a site whose Redis forgets nothing, whatever ends it."""
    options = ("--appendonly", "yes", "--appendfsync", "always")
    with site_of(tmp_path, migrated_database, redis_options=options) as site:
        yield site


def append(client, numbers, topics):
    """Append numbered messages to the inlet, each on the topic whose turn it is."""
    with client.pipeline(transaction=False) as pipeline:
        for number in numbers:
            data = json.dumps({"action": "numbered", "n": number})
            pipeline.xadd(INLET, {"topic": topics[number % len(topics)], "data": data})
        pipeline.execute()


def kept(client, topic):
    """Return the numbers that a topic's history has, in its order."""
    entries = client.xrange(f"notifications:history:{topic}")
    return [json.loads(frame)["n"] for _, fields in entries for frame in fields.values()]


def numbers_of(amount, topics, topic):
    """Return the numbers of the messages that were appended for a topic."""
    return list(range(topics.index(topic), amount, len(topics)))


def expect_each_once(client, amount, topics):
    """Check that each of so many messages was published once, and those of each topic in order."""
    for topic in topics:
        assert kept(client, topic) == numbers_of(amount, topics, topic), topic
    assert client.xlen(f"{INLET}:refused") == 0


def wait_until_empty(client, seconds=30):
    def empty():
        with suppress(redis.ConnectionError):
            return client.xlen(INLET) == 0

    wait_for(empty, seconds, "the inlet is empty")


def holder_of(listeners):
    """Return the living listener that took the lease last, and wait for one."""

    def find():
        living = [each for each in listeners if each.returncode is None]
        taken = [each for each in living if each.find_line("holding the lease") and not stepped_down(each)]
        return taken[-1] if taken else None

    return wait_for(find, 20, "somebody holds the lease")


def stepped_down(listener):
    lines = [line for line in listener.output.splitlines() if "holding the lease" in line or "stand-by:" in line]
    return "stand-by:" in lines[-1]


class Writer:
    """
    A program that goes on appending until it is stopped, and repeats itself if it gets no answer.

    Attributes:
        amount: Messages appended so far.

    """

    def __init__(self, url, topics, pause=0.002):
        self.amount = 0
        self._client = redis.Redis.from_url(url, socket_timeout=scaled(2))
        self._topics, self._pause = topics, pause
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stopping.set()
        self._thread.join(scaled(30))
        self._client.close()

    def _run(self):
        for number in count():
            data = json.dumps({"action": "numbered", "n": number})
            entry = {"topic": self._topics[number % len(self._topics)], "data": data, "idempotency_key": str(number)}
            while True:
                try:
                    self._client.xadd(INLET, entry)
                    break
                except (redis.ConnectionError, redis.TimeoutError, redis.exceptions.ReadOnlyError):
                    self._client.connection_pool.disconnect()
                    time.sleep(0.05)
            self.amount = number + 1
            if self._stopping.wait(self._pause):
                return


@contextmanager
def writing(site, topics):
    """Append in the background, and check at the end of the block that each message was published once."""
    with Writer(site.redis_url or site.redis.url, topics) as writer:
        wait_for(lambda: writer.amount > 20)
        yield writer
    client = site.client()
    wait_until_empty(client)
    expect_each_once(client, writer.amount, topics)


async def numbers_at(tab):
    """Return the numbers of the messages that a tab receives up to the last, whatever else it is told."""
    numbers = []
    while not numbers or numbers[-1] < END:
        frame = await tab.next_frame()
        if frame["action"] == "numbered":
            numbers.append(frame["n"])
    return numbers


async def test_ten_thousand_entries_arrive_once_though_the_holder_is_killed(each_layer):
    """
    Appended while no listener runs; then two start, and the one in charge is killed in the middle of it.

    Each open socket receives each message of its topic once, in order.
    """
    site, client = each_layer, each_layer.client()
    server = site.start_server("uvicorn")
    users = site.add_users(TOPICS)
    topics = [f"user:{user.pk}" for user in users]
    async with AsyncExitStack() as stack:
        tabs = [await stack.enter_async_context(open_tab(server, user)) for user in users]
        append(client, range(ENTRIES), topics)
        receiving = [asyncio.create_task(numbers_at(tab)) for tab in tabs]
        listeners = [site.start_listener(ready=None) for _ in range(2)]
        amount = await asyncio.to_thread(kill_in_the_middle, client, listeners, topics)
        await asyncio.to_thread(wait_until_empty, client)
        append(client, range(END, END + TOPICS), topics)  # nothing comes twice before them
        received = await asyncio.gather(*receiving)

    for number, (topic, numbers) in enumerate(zip(topics, received, strict=True)):
        assert numbers == kept(client, topic) == [*numbers_of(amount, topics, topic), END + number]
    assert client.xlen(f"{INLET}:refused") == 0


def kill_in_the_middle(client, listeners, topics):
    """Kill the listener that empties the inlet before it has; return how many messages have been appended then."""
    amount, holder = ENTRIES, holder_of(listeners)
    while True:
        wait_for(lambda: client.xlen(INLET) < ENTRIES * 0.8, 20)
        holder.pause()
        if client.xlen(INLET):
            holder.kill()
            return amount
        holder.resume()  # it was faster than this test
        append(client, range(amount, amount + ENTRIES), topics)
        amount += ENTRIES


def kill_holders(site, times):
    """Kill the listener in charge at random moments, with one other beside it each time."""
    chance = random.Random(times)
    listeners = [site.start_listener() for _ in range(2)]
    for _ in range(times):
        holder = holder_of(listeners)
        time.sleep(chance.uniform(0, 0.3))  # somewhere in a batch, or between two
        holder.kill()
        listeners = [each for each in listeners if each is not holder]
        listeners.append(site.start_listener())
    return holder_of(listeners)


@pytest.mark.slow
def test_holders_are_killed_while_a_program_goes_on_appending(roomy_site):
    """At random moments, twice, with a stand-by: each message is published once, in order."""
    with writing(roomy_site, ["user:1", "user:2", "upload:x"]):
        kill_holders(roomy_site, 2)


@pytest.mark.faults_long
@pytest.mark.timeout(300)
def test_many_holders_are_killed_while_a_program_goes_on_appending(each_layer):
    """The same, again and again, on both layers."""
    with writing(each_layer, ["user:1", "user:2", "upload:x"]):
        kill_holders(each_layer, ROUNDS_LONG)


@pytest.mark.slow
def test_a_holder_that_was_paused_publishes_nothing_when_it_wakes(roomy_site):
    """It sleeps beyond its lease, in the middle of its work; another takes over, and it does not interfere."""
    listeners = [roomy_site.start_listener() for _ in range(2)]
    holder = holder_of(listeners)
    [other] = [each for each in listeners if each is not holder]
    with writing(roomy_site, ["user:1", "user:2"]) as writer:
        with paused(holder):
            other.wait_for_line("holding the lease", 10)
        holder.wait_for_line("stand-by", 10)
        amount = writer.amount
        wait_for(lambda: writer.amount > amount + 20)


@pytest.mark.slow
def test_a_redis_that_is_killed_and_keeps_its_data_publishes_all_once(lasting_site):
    """``kill -9`` of Redis while it works, and a restart from its append-only file: the programs repeat themselves."""
    site = lasting_site
    append(site.client(), range(3000), topics := ["upload:a", "upload:b"])
    listener = site.start_listener(ready=None)
    with writing(site, ["user:1", "user:2"]):
        wait_for(lambda: site.client().xlen(INLET) < 2000)
        said = listener.mark()
        site.redis.kill()
        listener.wait_for_line("not connected", after=said)
        site.redis.start()
        listener.wait_for_line("holding the lease", 20, after=said)
    client = site.client()
    for topic in topics:
        assert kept(client, topic) == numbers_of(3000, topics, topic)


@pytest.mark.faults_long
@pytest.mark.timeout(120)
def test_a_failover_publishes_all_once(roomy_site):
    """A planned one, which loses no write, there and back: entries and what was published of them go along."""
    site = roomy_site
    with LocalRedis() as other, Proxy(site.redis.port) as proxy:
        site.redis_url = proxy.url
        first, servers = site.redis, [site.redis, other]
        listeners = [site.start_listener() for _ in range(2)]
        holder_of(listeners)
        with writing(site, ["user:1", "user:2"]) as writer:
            for _ in range(2):
                primary, replica = servers
                with redis.Redis.from_url(replica.url) as client:
                    client.replicaof("127.0.0.1", primary.port)
                fail_over(primary, replica)
                servers.reverse()
                site.redis = replica
                proxy.lead_to(replica.port)
                proxy.cut()
                amount = writer.amount
                wait_for(lambda before=amount: writer.amount > before + 20)
                wait_for(lambda: site.client().xlen(INLET) < 20, 20, "a listener publishes again")
        site.redis = first
        for listener in listeners:
            listener.kill()


def test_connections_are_killed_while_a_program_goes_on_appending(roomy_site):
    """CLIENT KILL of all connections, those that wait, publish and listen, again and again."""
    roomy_site.start_listener(ready="holding the lease")
    client = roomy_site.client()
    with writing(roomy_site, ["user:1", "user:2"]) as writer:
        for kind in ("normal", "pubsub", "normal"):
            amount = writer.amount
            kill_type(client, kind)
            wait_for(lambda before=amount: writer.amount > before + 20)


def test_an_old_snapshot_brings_back_what_was_published_after_it(roomy_site):
    """What Redis has forgotten to have published is published again, in a new epoch: browsers are told of that."""
    site, client = roomy_site, roomy_site.client()
    append(client, range(10), ["user:1"])
    client.save()
    listener = site.start_listener(ready="holding the lease")
    wait_until_empty(client)
    first = client.xrange("notifications:history:user:1")[-1][0]
    said = listener.mark()
    site.redis.kill()
    site.redis.start()
    listener.wait_for_line("holding the lease", 20, after=said)
    client = site.client()
    wait_until_empty(client)

    again = client.xrange("notifications:history:user:1")
    assert [json.loads(frame)["n"] for _, fields in again for frame in fields.values()] == list(range(10))
    assert int(again[0][0].split(b"-")[0]) > int(first.split(b"-")[0])
