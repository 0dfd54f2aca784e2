"""What the options of a kind change for browsers, on real servers."""

import pytest

import notifications
from tests.clients import open_tab
from tests.conftest import SERVERS, point_to
from tests.processes import LAYERS, Site

TOPICS = {
    "news": {"PUBLIC": True},
    "lamp": {"PUBLIC": True, "STATE": True},
}


@pytest.fixture(scope="module")
def site(redis_program, migrated_database, tmp_path_factory):
    settings = {"CHANNEL_LAYER_BACKEND": LAYERS["ours"], "NOTIFICATIONS": {"TOPICS": TOPICS}}
    with Site(tmp_path_factory.mktemp("kinds"), migrated_database, settings=settings) as site:
        site.start_listener()
        yield site


@pytest.fixture(scope="module", params=SERVERS)
def server(request, site):
    return site.start_server(request.param)


@pytest.fixture(autouse=True)
def _here(site, settings):
    """Let this process publish on the site's Redis."""
    point_to(settings, site.redis.url)
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "TOPICS": TOPICS}


async def test_any_user_may_subscribe_to_a_public_kind(site, server):
    """Whoever has authenticated may read a public topic, and nobody before that."""
    async with open_tab(server, site.add_user()) as one, open_tab(server, session_of=site.add_user()) as other:
        for tab in (one, other):
            await tab.subscribe("news:today")
        await notifications.apublish("news:today", {"n": 1})
        for tab in (one, other):
            await tab.expect_message('{"n":1}')
    async with open_tab(server) as nobody:
        await nobody.send({"action": "subscribe", "topic": "news:today"})
        await nobody.expect_closed(4002)


async def test_a_state_is_shown_to_whoever_comes(site, server):
    """A browser that subscribes to a state is told that it is one, and gets the latest message first."""
    user = site.add_user()
    lamp, news = f"lamp:{user.username}", f"news:{user.username}"
    for topic in (lamp, news):
        for n in (1, 2):
            await notifications.apublish(topic, {"n": n})
    async with open_tab(server, user) as tab:
        assert (await tab.subscribe(lamp))["state"] is True
        await tab.expect_message('{"n":2}')
        assert (await tab.subscribe(news))["state"] is False
        await notifications.apublish(news, {"n": 3})
        await tab.expect_message('{"n":3}')
