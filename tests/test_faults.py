"""
Nothing lost, nothing twice: what the documentation guarantees, while something breaks under load.

A few faults on one combination of servers belong to every test run; the rest, on both servers, with more
messages, are marked ``faults_long`` and run by ``make test-faults``. Both print what came of each.
"""

import asyncio
import random
from contextlib import AsyncExitStack

import psutil
import pytest

from tests.conftest import point_to
from tests.fault_run import NOTIFICATIONS, Run
from tests.faults import kill_connections, kill_type, listeners_connections
from tests.processes import Site
from tests.waiting import await_for, scaled, wait_for

pytestmark = pytest.mark.faults

TAKEOVER = 5.0
"""Seconds, before scaling, in which a stand-by has taken over and delivered what its predecessor left."""


class Rig:
    """A site for many runs: before each, the listeners that the last one killed are replaced."""

    def __init__(self, site: Site, servers: list[str]) -> None:
        self.site = site
        self.servers = [site.start_server(kind) for kind in servers]
        self.listeners = []

    def run(self, *, listeners: int = 2, messages: int, seconds: float) -> Run:
        """Prepare a run with so many living listeners."""
        living = [listener for listener in self.listeners if listener.returncode is None]
        for listener in living[listeners:]:
            listener.terminate()
        started = [self.site.start_listener() for _ in range(listeners - len(living))]
        self.listeners = [*living[:listeners], *started]
        return Run(self.site, self.servers, self.listeners, messages=messages, seconds=seconds)


@pytest.fixture(scope="module")
def rig(redis_program, migrated_database, tmp_path_factory):
    with Site(tmp_path_factory.mktemp("faults"), migrated_database, settings={"NOTIFICATIONS": NOTIFICATIONS}) as site:
        yield Rig(site, ["uvicorn"])


@pytest.fixture
def bounded(rig, settings):
    """Prepare the run of the bounded version."""
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, **NOTIFICATIONS}
    point_to(settings, rig.site.redis.url)
    return rig.run(messages=2000, seconds=4)


# a. The holder of the lease.


async def kill_the_holder(run: Run) -> None:
    (await run.find_holder()).kill()


async def test_kill_9_of_the_holder_loses_nothing_and_delays_five_seconds_at_most(bounded):
    """A stand-by takes over what the killed holder left: all arrives, once, in order, and not later than promised."""
    result = await bounded.through("kill -9 the holder, one stand-by", kill_the_holder)

    result.expect_nothing_wrong()
    assert result.nobody == 0
    assert result.latest < scaled(TAKEOVER)


# b. Subscriptions cut by Redis.


async def cut_the_holders_subscription(run: Run) -> None:
    """CLIENT KILL the pub/sub connection of the listener that holds the lease, and wait until it is back."""
    holder = await run.find_holder()
    ports = {connection.laddr.port for connection in psutil.Process(holder.pid).net_connections("tcp")}
    client = run.site.client()
    [found] = [
        connection
        for connection in listeners_connections(client)
        if int(connection["addr"].rpartition(":")[2]) in ports
    ]
    said = holder.mark()
    assert kill_connections(client, [found]) == 1
    await asyncio.to_thread(holder.wait_for_line, "listening on", 10, said)


async def cut_all_subscriptions(run: Run) -> None:
    """CLIENT KILL every pub/sub connection, of listeners and layers, and wait until a listener is back."""
    said = {listener: listener.mark() for listener in run.listeners if listener.returncode is None}
    async with run.cutting_all_listeners():
        assert kill_type(run.site.client(), "pubsub") > len(said)
        await await_for(lambda: any(listener.find_line("listening on", said[listener]) for listener in said))
    for listener in said:
        await asyncio.to_thread(listener.wait_for_line, "listening on", 10, said[listener])


async def cut_both(run: Run) -> None:
    await cut_the_holders_subscription(run)
    await cut_all_subscriptions(run)


async def test_cut_subscriptions_lose_nothing_that_a_listener_heard(bounded):
    """After CLIENT KILL of the holder's subscription, then of all, everything that was heard arrives once, in order."""
    result = await bounded.through("CLIENT KILL the holder's subscription, then all", cut_both)

    result.expect_nothing_wrong()


# g. Clients that drop.


def drops(times: int):
    async def drop_at_random(run: Run) -> None:
        """Every client loses its connection so many times, at random moments of the run."""

        async def drop(browser) -> None:
            moments = sorted(random.uniform(run.progress, 0.75) for _ in range(times))
            for moment in moments:
                await await_for(lambda moment=moment: run.progress >= moment, 60)
                connections = browser.connections
                await await_for(lambda: browser.ready, 20, "a browser is back")
                browser.drop()
                await await_for(lambda c=connections: browser.connections > c, 20, "a browser reconnects")

        async with asyncio.TaskGroup() as tasks:
            for browser in run.browsers:
                tasks.create_task(drop(browser))

    return drop_at_random


async def test_clients_that_drop_at_random_recover_everything(bounded):
    """Sockets that are cut again and again, and come back with their last ids, have everything once, in order."""
    result = await bounded.through("every client drops 4 times", drops(4), at=0.1)

    result.expect_nothing_wrong()
    assert result.reconnected >= 4 * len(bounded.browsers)


# i. Redis forgets the scripts; Redis is full.


async def flush_scripts(run: Run) -> None:
    client = run.site.client()
    for part in (0.4, 0.45, 0.5, 0.55, 0.6):
        await run.reached(part)
        client.script_flush()


async def test_script_flush_under_load_is_not_noticed(bounded):
    """Redis may forget the scripts at any time: nothing is lost, repeated or out of order."""
    result = await bounded.through("SCRIPT FLUSH, five times", flush_scripts)

    result.expect_nothing_wrong()


async def fill_redis(run: Run) -> None:
    """Let Redis refuse every write that needs memory, until some raw and some published messages have met that."""
    client = run.site.client()
    client.config_set("maxmemory", 1)  # noeviction is its default
    try:
        await await_for(lambda: run.refused >= 5, 20, "publish_* raise")
        await await_for(lambda: all(browser.unstamped >= 5 for browser in run.browsers), 20, "raw ones go out")
    finally:
        client.config_set("maxmemory", 0)


async def test_full_redis_forwards_raw_messages_and_publishing_says_so(bounded):
    """Without room for a history raw messages go out without ids and publish_* raise; afterwards the ids go on."""
    result = await bounded.through("Redis is full, then has room again", fill_redis)

    result.expect_nothing_wrong()
    assert bounded.refused >= 5
    for browser in bounded.browsers:
        for ids in browser.ids.values():
            assert len({epoch for epoch, _ in ids}) == 1, ids
            assert [n for _, n in ids] == list(range(ids[0][1], ids[0][1] + len(ids)))
