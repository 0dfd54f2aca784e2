"""What the options of a kind change for browsers, on real servers."""

import pytest

import notifications
from tests.clients import Tab, open_tab
from tests.conftest import SERVERS, point_to
from tests.processes import LAYERS, Site

TOPICS = {
    "news": {"PUBLIC": True},
    "lamp": {"PUBLIC": True, "STATE": True},
    "team": {"JOIN": "tests.testsite.permissions.teams_of"},
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


async def expect_teams(tab: Tab, user):
    for topic in (f"team:{user.username}", "team:all"):
        await tab.expect("subscribed", topic=topic, recovered=None, joined=True)


async def test_a_team_is_joined_and_come_back_to(site, server):
    """A connection has its team's topic without asking, and gets by its position what it missed while it was away."""
    alice, bob = site.add_user(), site.add_user()
    team = f"team:{alice.username}"
    async with open_tab(server, session_of=alice) as tab, open_tab(server, bob) as stranger:
        await expect_teams(tab, alice)
        await expect_teams(stranger, bob)
        id_ = await notifications.apublish(team, {"n": 1})
        await tab.expect_message('{"n":1}')
        await notifications.apublish("team:all", {"n": 2})
        for each in (tab, stranger):
            await each.expect_message('{"n":2}')
    await notifications.apublish(team, {"n": 3})
    async with open_tab(server, alice) as tab:
        await expect_teams(tab, alice)
        assert (await tab.subscribe(team, since=id_))["recovered"] is True
        await tab.expect_message('{"n":3}')


async def test_any_user_may_subscribe_to_a_public_kind(site, server):
    """Whoever has authenticated may read a public topic, and nobody before that."""
    alice, bob = site.add_user(), site.add_user()
    async with open_tab(server, alice) as one, open_tab(server, session_of=bob) as other:
        for tab, user in ((one, alice), (other, bob)):
            await expect_teams(tab, user)
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
        await expect_teams(tab, user)
        assert (await tab.subscribe(lamp))["state"] is True
        await tab.expect_message('{"n":2}')
        assert (await tab.subscribe(news))["state"] is False
        await notifications.apublish(news, {"n": 3})
        await tab.expect_message('{"n":3}')
