"""The promises of the end-to-end tests on our channel layer, and what only it can promise."""

import asyncio
import signal
import time

import pytest

import notifications
from tests.clients import open_tab
from tests.conftest import SITE_SETTINGS, point_to
from tests.faults import kill_connections, layers_connections
from tests.processes import LAYERS, Site
from tests.site import test_end_to_end as on_channels_redis
from tests.waiting import scaled

OURS = {**SITE_SETTINGS, "CHANNEL_LAYER_BACKEND": LAYERS["ours"]}
SERVERS = ("uvicorn", "uvicorn on asyncio", "uvicorn alone", "daphne")

test_messages = on_channels_redis.test_each_typed_message_reaches_exactly_the_right_tabs_verbatim
test_hostile_payloads = on_channels_redis.test_hostile_payloads_hurt_nobody
test_publish_functions = on_channels_redis.test_the_publish_functions_reach_the_tabs
test_order = on_channels_redis.test_the_order_of_every_topic_is_kept
test_never_reading = on_channels_redis.test_a_tab_that_never_reads_delays_no_other
test_many_tabs = on_channels_redis.test_many_tabs_of_many_users_get_each_their_own
test_faults_of_redis = on_channels_redis.test_open_sockets_survive_redis


@pytest.fixture(scope="module")
def site(redis_program, migrated_database, tmp_path_factory):
    with Site(tmp_path_factory.mktemp("ours"), migrated_database, settings=OURS) as site:
        site.start_listener()
        yield site


@pytest.fixture(scope="module", params=SERVERS)
def server(request, site):
    return site.start_server(request.param)


@pytest.fixture(params=["uvicorn"])
def server_kind(request):
    return request.param


@pytest.fixture
def new_site(new_site):
    new_site.settings = OURS
    return new_site


raw = on_channels_redis.raw


WITHIN = 8.0
"""
Seconds, before scaling, after which the last message has arrived, whoever lost it: a comparison every 5, a tick, and
its road, which on a busy machine may take a second or two. The next chance would be the heartbeat, after 30.
"""


@pytest.fixture
def alone(new_site, settings):
    """Return a site of its own with one web server and one listener."""
    server, listener = new_site.start_all("uvicorn")
    point_to(settings, new_site.redis.url)
    return new_site, server, listener


def cut_the_layer(site, server, listener):
    client = site.client()
    assert kill_connections(client, layers_connections(client)) >= 1


def kill_the_listener(site, server, listener):
    listener.kill()


@pytest.mark.slow
@pytest.mark.parametrize("lose", [cut_the_layer, kill_the_listener])
async def test_the_last_message_is_delivered_soon_whoever_lost_it(alone, lose):
    """A message that the layer or the listener lost, and that nothing follows, arrives after some six seconds."""
    site, server, listener = alone
    alice = site.add_user()
    async with open_tab(server, alice) as tab:
        await asyncio.sleep(3)  # the comparison after joining is over: it does not find what is lost now
        await asyncio.to_thread(lose, site, server, listener)
        began = time.monotonic()
        await notifications.apublish_to_user(alice.pk, {"action": "last"})

        await tab.expect("last")

        assert time.monotonic() - began < scaled(WITHIN)


async def test_what_is_published_arrives_live_without_a_listener(new_site, server_kind, settings):
    """The history keeps none of it, so no comparison can have found it."""
    new_site.settings = {**OURS, "NOTIFICATIONS": {**OURS["NOTIFICATIONS"], "HISTORY_SIZE": 0}}
    server = await asyncio.to_thread(new_site.start_server, server_kind)
    point_to(settings, new_site.redis.url)
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "HISTORY_SIZE": 0}
    settings.CHANNEL_LAYERS = {"default": {**settings.CHANNEL_LAYERS["default"], "BACKEND": LAYERS["ours"]}}
    alice = new_site.add_user()
    async with open_tab(server, alice) as tab:
        for n in range(3):
            assert await notifications.apublish_to_user(alice.pk, {"action": "now", "n": n}) is None
            await tab.expect("now", n=n)


async def test_the_end_of_a_burst_larger_than_a_channel_is_delivered(site, server, raw):
    """A server that sleeps through more than a channel holds delivers all of it in order when it wakes."""
    alice = site.add_user()
    order = f"order:{alice.username}"
    site.settings = {**OURS}
    async with open_tab(server, alice) as tab:
        await tab.subscribe(order)
        server.pause()
        try:
            await asyncio.to_thread(raw.publish_all, [(order, f'{{"n":{n}}}') for n in range(3000)])
        finally:
            server.resume()

        # The history keeps 100: what is older and was dropped is said to be lost, the rest follows.
        numbers = [int(message["n"]) async for message in numbered(tab, 2999)]

    assert numbers == sorted(set(numbers))
    assert len(numbers) >= 1000


async def numbered(tab, last):
    import json

    async with asyncio.timeout(scaled()):
        while True:
            frame = json.loads(await tab.next_text())
            if "n" in frame and frame.get("action") != "ping":
                yield frame
                if frame["n"] == last:
                    return


@pytest.mark.parametrize("kind", SERVERS)
async def test_a_server_ends_without_a_complaint(new_site, kind):
    """SIGTERM while sockets are open ends a web server with our layer in time and without a warning about tasks."""
    server = await asyncio.to_thread(new_site.start_server, kind)
    alice = new_site.add_user()
    async with open_tab(server, alice):
        server.send_signal(signal.SIGTERM)
        await asyncio.to_thread(server.wait)

    for complaint in ("was destroyed", "unclosed", "never retrieved", "Traceback", "ResourceWarning"):
        assert complaint not in server.output
