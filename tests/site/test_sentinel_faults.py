"""
What is promised while Sentinels change the primary, on three real ones with a primary and its replicas.

The runs are those of ``test_faults.py``, with their account; a row of each is in docs/delivery.md.
"""

import asyncio
import time

import pytest

from tests.conftest import point_to
from tests.fault_run import NOTES, NOTIFICATIONS, Run
from tests.faults import listeners_connections
from tests.processes import LAYERS, START_SECONDS, Site
from tests.redis_groups import SERVERS, VALKEY, SentinelGroup
from tests.waiting import await_for, scaled

pytestmark = pytest.mark.faults

RECOVERED = 5.0
"""Seconds, before scaling, from the decision of the Sentinels until everything is level."""


class Rig:
    """A site whose ``REDIS_URL`` and channel layer are a group of Sentinels."""

    def __init__(self, site: Site, group: SentinelGroup, server: str) -> None:
        self.site = site
        self.server = server
        self.group = group
        self.decided = self.back = 0.0

    def run(self, *, messages: int = 2000, seconds: float = 4) -> Run:
        self.site.redis = self.group.primary
        listeners = [self.site.start_listener(ready=None) for _ in range(2)]
        server = self.site.start_server("uvicorn")
        for listener in listeners:
            listener.wait_for_line("listening on", START_SECONDS)
        return Run(self.site, [server], listeners, messages=messages, seconds=seconds)

    async def follow(self, old) -> None:
        """Wait until a Sentinel names another primary than ``old``, to which other programs publish from then on."""
        self.decided = await asyncio.to_thread(self.group.wait_for_switch, old)
        self.site.redis = self.group.primary

    async def through(self, name: str, run: Run, fault, *, at: float = 0.3):
        """Run it, and check that all was level in time."""
        result = await run.through(name, fault, at=at)
        level = run.ended + result.recovery if result.recovery else self.back
        NOTES.append(f"{name}: up to date {level - self.decided:.1f} s after the Sentinels had decided.")
        print(NOTES[-1])  # noqa: T201
        result.expect_nothing_wrong(told=True)
        assert level - self.decided < scaled(RECOVERED)

    async def are_back(self, run: Run) -> None:
        """Wait until the listeners and the web server are connected to the primary of now."""
        client = self.group.client(self.group.primary)
        await await_for(lambda: len(listeners_connections(client)) == len(run.listeners), 20, "the listeners are back")
        self.back = time.monotonic()


@pytest.fixture
def rig(redis_program, migrated_database, tmp_path, settings, request):
    server = getattr(request, "param", VALKEY)
    with SentinelGroup(server=server) as group, Site(tmp_path, migrated_database) as site:
        site.settings = {"NOTIFICATIONS": NOTIFICATIONS, "CHANNEL_LAYER_BACKEND": LAYERS["ours"]}
        site.redis_url = group.url
        settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, **NOTIFICATIONS}
        settings.CHANNEL_LAYERS = {"default": {**settings.CHANNEL_LAYERS["default"], "BACKEND": LAYERS["ours"]}}
        point_to(settings, group.url)
        yield Rig(site, group, server)


async def test_a_killed_primary(rig):
    """What it had not replicated is told; its replica carries on, with new ids."""

    async def kill(run: Run) -> None:
        old = rig.group.primary
        async with run.cutting_all_listeners():
            await asyncio.to_thread(rig.group.kill, old)
            await rig.follow(old)
            await rig.are_back(run)

    await rig.through("Sentinel: kill -9 the primary", rig.run(), kill)


async def test_a_primary_that_sleeps_and_wakes(rig):
    """It was replaced, does not know it, and still answers: a zombie, until a Sentinel reaches it."""

    async def sleep(run: Run) -> None:
        old = rig.group.primary
        async with run.cutting_all_listeners():
            await asyncio.to_thread(rig.group.pause, old)
            await rig.follow(old)
            await asyncio.to_thread(rig.group.resume, old)
            await rig.are_back(run)

    await rig.through("Sentinel: SIGSTOP of the primary, until it is replaced", rig.run(), sleep)


async def test_a_planned_failover_with_one_sentinel_gone_and_one_that_hangs(rig):
    """The one that is left says where the primary is."""

    async def fail_over(run: Run) -> None:
        old = rig.group.primary
        async with run.cutting_all_listeners():
            await asyncio.to_thread(rig.group.failover)
            await rig.follow(old)
            rig.group.kill(rig.group.sentinels[1])
            rig.group.pause(rig.group.sentinels[2])
            await rig.are_back(run)

    run = rig.run()
    try:
        await rig.through("Sentinel: planned failover, then one Sentinel gone and one that hangs", run, fail_over)
    finally:
        rig.group.resume(rig.group.sentinels[2])


# The long version.


def long_version(test):
    return pytest.mark.faults_long(pytest.mark.timeout(300)(test))


@long_version
@pytest.mark.parametrize("rig", SERVERS, indirect=True)
async def test_long_primaries_that_are_killed_one_after_the_other(rig):
    """Each comes back as a replica, without data, before its successor is killed."""

    async def kill_each(run: Run) -> None:
        for part in (0.1, 0.3, 0.5):
            await run.reached(part)
            old = rig.group.primary
            async with run.cutting_all_listeners():
                await asyncio.to_thread(rig.group.kill, old)
                await rig.follow(old)
                await rig.are_back(run)
            await asyncio.to_thread(rig.group.start, old)
            await asyncio.to_thread(rig.group.wait_until_ok)

    run = rig.run(messages=10_000, seconds=30)
    await rig.through(f"Sentinel, {rig.server}: kill -9 the primary, 3 times", run, kill_each, at=0.05)


@long_version
@pytest.mark.parametrize("rig", SERVERS, indirect=True)
async def test_long_planned_failovers_there_and_back(rig):
    """A server that was the primary before is one again, with the data that it had, and begins new ids."""

    async def fail_over(run: Run) -> None:
        for part in (0.1, 0.27, 0.44, 0.61):
            await run.reached(part)
            old = rig.group.primary
            async with run.cutting_all_listeners():
                await asyncio.to_thread(rig.group.failover)
                await rig.follow(old)
                await rig.are_back(run)
            await asyncio.to_thread(rig.group.wait_until_ok)

    run = rig.run(messages=10_000, seconds=30)
    await rig.through(f"Sentinel, {rig.server}: planned failover, 4 times", run, fail_over, at=0.05)
