"""Sockets on a Redis that evicts, under real pressure: they are told what is gone, and get nothing twice."""

import asyncio

import pytest

from tests.conftest import point_to
from tests.fault_run import NOTIFICATIONS, Run
from tests.faults import evict
from tests.processes import Site

pytestmark = [pytest.mark.faults, pytest.mark.timeout(120)]


@pytest.fixture
def evicting_site(request, redis_program, migrated_database, tmp_path, settings):
    """Start a site whose Redis evicts by the policy that the test names."""
    options = ["--maxmemory-policy", request.param, "--maxmemory-samples", "10"]
    with Site(tmp_path, migrated_database, redis_options=options, settings={"NOTIFICATIONS": NOTIFICATIONS}) as site:
        settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, **NOTIFICATIONS}
        point_to(settings, site.redis.url)
        yield site


async def evict_histories(run: Run) -> None:
    """Let Redis throw away each history that there is, and half of the sockets drop."""
    client = run.site.client()
    await asyncio.to_thread(evict, client, *client.keys("notifications:history:*"))
    for browser in run.browsers[::2]:
        browser.drop()


async def four_times(run: Run) -> None:
    for part in (0.3, 0.4, 0.5, 0.6):
        await run.reached(part)
        await evict_histories(run)


async def when_idle(run: Run) -> None:
    """Redis throws away first what nobody has used for seconds; publishing goes on when the fault is over."""
    await run.reached(1)
    await asyncio.sleep(2)
    await evict_histories(run)


@pytest.mark.parametrize(
    ("evicting_site", "fault"),
    [("volatile-random", four_times), ("volatile-lru", when_idle)],
    indirect=["evicting_site"],
    ids=["at random", "least recently used"],
)
async def test_evictions_are_told_and_lose_nothing_else(evicting_site, fault):
    """Under load the lease, and what listeners report, go as well: a lease is taken anew, a history begins anew."""
    site = evicting_site
    run = Run(site, [site.start_server("uvicorn")], [site.start_listener() for _ in range(2)], messages=2000, seconds=5)
    policy = site.client().config_get("maxmemory-policy")["maxmemory-policy"]

    times = " 4 times" if fault is four_times else ""
    result = await run.through(f"{policy} evicts all histories{times}, half of the sockets drop", fault)

    result.expect_nothing_wrong(told=True)
    assert {topic for browser in run.browsers for topic, _ in browser.told} == {
        topic for browser in run.browsers for topic in (browser.own, *browser.topics)
    }
    for browser in run.browsers:
        for topic, ids in browser.ids.items():
            assert len(set(ids)) == len(ids), topic
