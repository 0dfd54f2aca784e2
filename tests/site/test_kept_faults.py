"""
Faults while notices are kept and marked: what the database says is what every tab shows in the end, once.

Each row of the table in docs/delivery.md has a test here, which says so. A long storm is run by ``make test-faults``.
"""

import asyncio
import random
import time
from contextlib import ExitStack, contextmanager

import pytest
import redis

from notifications import Topic
from project.local_redis import LocalRedis
from tests import storm
from tests.conftest import point_to
from tests.faults import Proxy, fail_over, kill_type, paused, restart_redis
from tests.guides import table
from tests.kept_run import KeptRun, SqliteFile, database_of
from tests.processes import LAYERS, ROOT, Site
from tests.storm import FAULTS, Storm
from tests.waiting import await_for, scaled

pytestmark = pytest.mark.faults

NOTIFICATIONS = {"HISTORY_SIZE": 5000, "HEARTBEAT_INTERVAL": 3}
PROVEN: list[str] = []
"""The first cells of the table's rows that have a test."""


def proves(row):
    """Name the row of the table that a test proves."""

    def note(test):
        PROVEN.append(row)
        return test

    return note


class Rig:
    """A site for many runs: before each, the processes that the last one killed are replaced."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.database = SqliteFile(site)
        site.settings |= {"DATABASES": self.database.settings()}
        server, listener = site.start_all("uvicorn")
        self.servers, self.listeners = [server], [listener]

    def run(self, *, listeners: int = 2, users: int = 6, tabs: int = 15) -> KeptRun:
        living = [listener for listener in self.listeners if listener.returncode is None]
        for listener in living[listeners:]:
            listener.terminate()
        started = [self.site.start_listener() for _ in range(listeners - len(living))]
        self.listeners = [*living[:listeners], *started]
        return KeptRun(self.site, self.database, self.servers, self.listeners, users=users, tabs=tabs)

    @contextmanager
    def full_redis(self):
        """Let Redis refuse whatever is published."""
        client = self.site.client()
        client.config_set("maxmemory", 1)
        try:
            yield
        finally:
            client.config_set("maxmemory", 0)


@pytest.fixture(scope="module")
def module_rig(redis_program, migrated_database, tmp_path_factory):
    settings = {"CHANNEL_LAYER_BACKEND": LAYERS["ours"], "NOTIFICATIONS": NOTIFICATIONS}
    with Site(tmp_path_factory.mktemp("kept"), migrated_database, settings=settings) as site:
        yield Rig(site)


@pytest.fixture
def rig(module_rig, settings):
    """Return the rig, to whose Redis this process points, too."""
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, **NOTIFICATIONS}
    point_to(settings, module_rig.site.redis.url)
    return module_rig


def test_each_row_of_the_documentation_has_a_test():
    """What docs/delivery.md promises of kept notices is broken here."""
    assert set(table(ROOT / "docs/delivery.md", "kept notices")) == set(PROVEN)


# The rows of the table.


@proves("nothing")
async def test_each_tab_shows_each_notice_once(rig):
    """However many processes keep and mark notices at once, numbers and states are right in every tab."""
    async with rig.run() as run:
        for n in range(2):
            run.keep(seed=n, notices=50, threads=2, many=2)
            run.keep(seed=n, seconds=1, threads=2)
        await run.kept()
        await run.expect_all_shown()
        await run.expect_each_published_once()
        assert not any(tab.told for tab in run.browsers)


async def test_the_last_number_is_right_whoever_raced(rig):
    """Of several that tell the same user at the same time, none has the last word with a number that is too old."""
    async with rig.run(users=60, tabs=60) as run:
        begin = time.time() + scaled(2)
        for n in range(2):
            run.keep(seed=n, notices=180, threads=3, in_turn=begin)
        await run.kept()
        await await_for(lambda: all(tab.unread == 6 for tab in run.browsers), 10, "all numbers are right")
        await run.expect_all_shown()


@proves("a tab was away, and comes back with its last id")
async def test_a_tab_that_was_away_shows_what_it_missed(rig):
    """It is told all of it when it comes back, without the list."""
    async with rig.run() as run:
        run.keep(notices=100, threads=2, pause=0.02)
        for part in (20, 40, 60):
            await run.committed(part)
            for tab in run.browsers:
                tab.drop()
        await run.kept()
        await run.expect_all_shown()
        await run.expect_each_published_once()
        await await_for(lambda: all(tab.connections > 1 for tab in run.browsers), 20, "all tabs were away")
        await run.all_ready()
        assert all(tab.fetched == 1 for tab in run.browsers)


@proves("the channel layer dropped a message, or a web process was disconnected for a while")
async def test_a_web_process_that_was_disconnected_costs_nothing(rig):
    """Its tabs are told from the history."""
    async with rig.run() as run:
        run.keep(notices=100, threads=2, pause=0.02)
        for part in (20, 40, 60):
            await run.committed(part)
            kill_type(rig.site.client(), "pubsub")
        await run.kept()
        await run.expect_all_shown()
        await run.expect_each_published_once()


@proves("no listener was running")
async def test_without_a_listener_notices_wait_only_for_what_redis_refused(rig):
    """Whoever commits tells the tabs; what it could not tell is told when a listener runs again."""
    async with rig.run(listeners=0) as run:
        run.keep(notices=20)
        await run.kept()
        await run.expect_all_shown()
        with rig.full_redis():
            run.keep(notices=20)
            await run.kept()
        assert sum(row.pending for row in run.rows()) == 20
        await run.start("listener")
        await run.expect_all_shown()
        await run.expect_each_published_once()


@proves("the listener in charge is killed, paused, cut off from Redis or told to stop, while another is running")
@pytest.mark.parametrize("how", ["killed", "paused"])
async def test_another_listener_tells_what_the_one_in_charge_left(rig, how):
    """It takes over, and nothing is told twice."""
    async with rig.run() as run:
        holder = await run.find_holder()
        with rig.full_redis():
            run.keep(notices=40, threads=2)
            await run.kept()
        if how == "killed":
            holder.kill()
            await run.expect_all_shown()
        else:
            with paused(holder):
                await run.expect_all_shown()
        await run.find_holder()
        await run.expect_all_shown()
        await run.expect_each_published_once()


@proves("Redis restarts, fails over or loses data")
@pytest.mark.parametrize("keep_data", [True, False])
async def test_a_redis_that_has_lost_data_is_made_up_for_by_the_list(rig, keep_data):
    """Tabs are told of the gap, and fetch the list; nothing that is committed is lost with Redis."""
    async with rig.run() as run:
        run.keep(notices=100, threads=2, pause=0.02)
        run.keep(seconds=2, pause=0.02)
        await run.committed(40)
        await asyncio.to_thread(restart_redis, rig.site, keep_data=keep_data)
        await run.kept()
        run.keep(notices=1, many=1)  # a gap is told with the next message of each topic
        await run.kept()
        await run.expect_all_shown()
        assert all(tab.told and tab.fetched == 2 for tab in run.browsers)


@pytest.mark.faults_long
async def test_long_planned_failover(new_site, settings):
    """A replica that has everything takes over three times, and all connections are cut: the same is promised."""
    with LocalRedis() as other, Proxy(new_site.redis.port) as proxy:
        new_site.settings = {"CHANNEL_LAYER_BACKEND": LAYERS["ours"], "NOTIFICATIONS": NOTIFICATIONS}
        new_site.redis_url = proxy.url
        database = SqliteFile(new_site)
        new_site.settings |= {"DATABASES": database.settings()}
        point_to(settings, proxy.url)
        servers = [new_site.redis, other]
        listeners = [new_site.start_listener() for _ in range(2)]
        run = KeptRun(new_site, database, [new_site.start_server("uvicorn")], listeners)
        async with run:
            for n in range(2):
                run.keep(seed=n, seconds=12, threads=2, pause=0.02)
            for part in (50, 150, 250):
                await run.committed(part)
                primary, replica = servers
                with redis.Redis.from_url(replica.url) as client:
                    client.replicaof("127.0.0.1", primary.port)
                await asyncio.to_thread(fail_over, primary, replica)
                servers.reverse()
                proxy.lead_to(replica.port)
                proxy.cut()
            await run.kept()
            run.keep(notices=1, many=1)  # a gap is told with the next message of each topic
            await run.kept()
            await run.expect_all_shown()
            assert any(tab.told for tab in run.browsers)
        for process in (*run.servers, *run.listeners):
            process.kill()


@proves("Redis refuses or does not answer")
async def test_a_redis_that_refuses_is_no_error_of_the_caller(rig):
    """``notify`` and ``mark`` commit all the same, and the tabs are told when Redis accepts again."""
    async with rig.run() as run:
        run.keep(notices=10)
        await run.kept()
        with rig.full_redis():
            run.keep(notices=20, many=1)
            run.keep(seconds=1, threads=2)
            await run.kept()
            assert any(row.pending for row in run.rows())
        await run.expect_all_shown()
        await run.expect_each_published_once()


@proves("the process that committed is killed before it has published")
@pytest.mark.parametrize("dies", ["before", "after"])
async def test_a_notice_outlives_the_process_that_committed_it(rig, dies):
    """A listener publishes it; and not again if the process was killed right after it had published."""
    async with rig.run() as run:
        keeper = run.keep(dies=dies)
        await asyncio.to_thread(keeper.wait, 20)
        [row] = run.rows()
        assert (keeper.returncode, row.pending) == (137, True)
        await run.expect_all_shown()
        await run.expect_each_published_once()


@proves("the database does not answer the listeners")
async def test_a_database_that_is_locked_delays_and_loses_nothing(rig):
    """A listener goes on with its other work, and publishes when the database lets it."""
    async with rig.run() as run:
        with ExitStack() as locked:
            with rig.full_redis():
                run.keep(notices=20)
                await run.kept()
                locked.enter_context(rig.database.locked())
            holder = await run.find_holder()  # nobody can become that of a full Redis
            await asyncio.sleep(scaled(1))
            assert await run.find_holder() is holder
        await run.expect_all_shown()
        await run.expect_each_published_once()


@proves("the user has no tab open, for longer than the history reaches")
async def test_a_user_who_comes_back_after_a_week_has_it_all_in_the_list(rig):
    """The list and the number are those of the database, whatever Redis has forgotten; the number ends at "99+"."""
    run = rig.run(users=2, tabs=4)
    run.keep(notices=300, threads=2, many=1)
    await run.kept()
    rig.site.client().delete(*(Topic.for_user(user.pk).history_key for user in run.users))
    async with run:
        await run.expect_all_shown()
        assert [tab.unread for tab in run.browsers] == [100] * 4
        assert sum(len(tab.shown) for tab in run.browsers) == 2 * 302
        assert not any(tab.came for tab in run.browsers)


# All at once.


@pytest.mark.parametrize("seed", storm.seeds())
@pytest.mark.parametrize(("database", "size"), [("sqlite", 5000), ("postgresql", 20)])
async def test_a_thousand_notices_while_redis_is_stopped(new_site, settings, database, seed, size):
    """
    What is committed while Redis is away, and then everything else is killed, arrives once, and is counted right.

    A history that is too short for it is a gap of which each tab is told; then it shows what its list says.
    """
    chance = random.Random(seed)
    options = NOTIFICATIONS | {"HISTORY_SIZE": size}
    new_site.settings = {"CHANNEL_LAYER_BACKEND": LAYERS["ours"], "NOTIFICATIONS": options}
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, **options}
    point_to(settings, new_site.redis.url)
    with database_of(database, new_site) as rows_in:
        server, listener = new_site.start_all("uvicorn")
        async with KeptRun(new_site, rows_in, [server], [listener]) as run:
            run.keep(seed=seed, notices=40)
            await run.kept()
            await run.expect_all_shown()
            new_site.client().save()
            new_site.redis.kill()
            for n in range(4):
                run.keep(seed=seed + n, notices=225, threads=2, many=2 if n == 0 else 1)
            await run.committed(40 + chance.randrange(500))
            for process in chance.sample([server, listener], 2):
                process.kill()
            await run.kept()
            assert len(run.rows()) == 40 + 1000

            await run.start(*chance.sample(["redis", "server", "listener"], 3))
            await run.expect_all_shown()

            if size > 1000:
                await run.expect_each_published_once()
            else:
                assert all(tab.told and tab.fetched > 1 for tab in run.browsers)
            delays = []
            for tab in run.browsers[:3]:
                others = [other for other in run.browsers if other.user == tab.user and other is not tab]
                began = time.monotonic()
                assert await tab.mark("read", until=max(map(int, tab.shown))) == 0
                await await_for(lambda others=others: all(other.unread == 0 for other in others))
                delays.append(time.monotonic() - began)
            assert sorted(delays)[1] < scaled(3), delays
            await run.expect_all_shown()
        for process in (*run.servers, *run.listeners):
            process.kill()  # before their database


async def lock_the_database(run, gust):
    def lock():
        with run.database.locked():
            time.sleep(gust.seconds)

    await asyncio.to_thread(lock)


async def kill_a_keeper(run, gust):
    """Kill a process that keeps notices with ``kill -9``, and start another."""
    living = [keeper for keeper in run.keepers if keeper.returncode is None]
    if living:
        await asyncio.to_thread(storm.chosen(living, gust).kill)
        run.keepers = [keeper for keeper in run.keepers if keeper.returncode is None]
        run.keep(seed=int(gust.choice * 1000), seconds=5, threads=2, pause=0.02, name=f"after {gust.at}")


KEPT_FAULTS = {**FAULTS, "lock the database": (lock_the_database, 3, 4.0), "kill a keeper": (kill_a_keeper, 4, 0.0)}


async def stand_a_storm(run, storm, seconds):
    async with run:
        for n in range(2):
            run.keep(seed=storm.seed + n, seconds=seconds, threads=2, pause=0.02)
        await storm.blow(run)
        await run.kept()
        await run.expect_all_shown()
        await run.expect_each_published_once()


@pytest.mark.timeout(180)
async def test_several_faults_at_once(rig):
    """Whatever breaks on top of what else, nothing that is committed is lost or told twice, and numbers are right."""
    await stand_a_storm(rig.run(), Storm(1, 8, KEPT_FAULTS), 8)


@pytest.mark.faults_long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", storm.seeds())
@pytest.mark.parametrize(
    ("kind", "server", "layer"), [("sqlite", "uvicorn", "ours"), ("postgresql", "daphne", "channels_redis")]
)
async def test_long_several_faults_at_once(new_site, settings, kind, server, layer, seed):
    """The same for a minute, with many tabs, and a database that ends its connections where it has any."""
    new_site.settings = {"CHANNEL_LAYER_BACKEND": LAYERS[layer], "NOTIFICATIONS": NOTIFICATIONS}
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, **NOTIFICATIONS}
    point_to(settings, new_site.redis.url)
    with database_of(kind, new_site) as database:
        listeners = [new_site.start_listener() for _ in range(2)]
        run = KeptRun(new_site, database, [new_site.start_server(server)], listeners)
        await stand_a_storm(run, Storm(seed, 60, KEPT_FAULTS), 60)
        for process in (*run.servers, *run.listeners):
            process.kill()  # before their database
