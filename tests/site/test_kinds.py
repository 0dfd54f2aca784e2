"""What the options of a kind change for browsers, on real servers."""

import asyncio
import json

import psutil
import pytest

import notifications
from tests.clients import Tab, message_of, open_tab
from tests.conftest import SERVERS, point_to
from tests.processes import LAYERS, Site

TOPICS = {
    "user": {"HISTORY_SIZE": 300},
    "upload": {"PUBLIC": True},
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


async def test_a_browser_that_reads_nothing_gets_the_newest_progress_and_every_notice(site, server):
    """Of 10,000 messages of an upload the last arrives, though the rest is neither kept nor held for it."""
    user = site.add_user()
    upload, progress, notices = f"upload:{user.new_upload()}", 10_000, 200
    async with open_tab(server, user) as tab, open_tab(server, user) as witness:
        for each in (tab, witness):
            await expect_teams(each, user)
            await each.subscribe(upload)
        reading = asyncio.create_task(read_until(witness, f'{{"n":{progress}', notices))
        tab.connection.transport.pause_reading()
        before = psutil.Process(server.pid).memory_info().rss
        for n in range(0, progress, 50):
            await notifications.apublish(f"user:{user.pk}", {"notice": n // 50})
            each = [{"n": n + step + 1, "text": "x" * 2000} for step in range(50)]
            await asyncio.gather(*[notifications.apublish(upload, message) for message in each])
        await reading
        grown = psutil.Process(server.pid).memory_info().rss - before
        tab.connection.transport.resume_reading()
        frames = await read_until(tab, f'{{"n":{progress}', notices)

    ids = [ids_of(frame) for frame in frames if '"n":' in frame]
    assert [json.loads(message_of(frame))["notice"] for frame in frames if '"notice":' in frame] == list(range(notices))
    assert ids == sorted(set(ids))
    assert len(ids) < 1000  # of 2,000 characters each; the socket may have sent 512 Ki before it paused
    assert tab.told == []
    assert grown < 10 << 20  # all of it would be 20 MB


async def read_until(tab: Tab, last: str, notices: int) -> list[str]:
    """Read until there are so many notices, and the message that begins like this."""
    frames, has_last = [], False
    while not has_last or sum('"notice":' in frame for frame in frames) < notices:
        frames.append(frame := await tab.next_text())
        if frame.startswith('{"action":"subscribed"'):
            tab.told.append(frame)
        has_last = has_last or message_of(frame).startswith(last)
    return frames


def ids_of(frame: str) -> tuple[int, int]:
    """Return the id of a message as integers."""
    epoch, _, n = json.loads(frame)["_meta"]["id"].partition("-")
    return int(epoch), int(n)


async def test_a_browser_that_comes_back_to_a_state_gets_what_is_newest(site, server):
    """More was published than is kept, and yet nothing is missing; of another topic it gets each message."""
    user = site.add_user()
    lamp, news = f"lamp:{user.username}", f"news:{user.username}"
    since = {topic: await notifications.apublish(topic, {"n": 0}) for topic in (lamp, news)}
    for n in range(1, 151):
        id_ = await notifications.apublish(lamp, {"n": n})
    for n in range(1, 51):
        await notifications.apublish(news, {"n": n})
    async with open_tab(server, user) as tab:
        await expect_teams(tab, user)
        answer = await tab.subscribe(lamp, since=since[lamp])
        assert (answer["recovered"], answer["state"]) == (True, True)
        assert answer["id"] == f"{id_.partition('-')[0]}-150"
        await tab.expect_message('{"n":150}')
        assert (await tab.subscribe(news, since=since[news]))["recovered"] is True
        for n in range(1, 51):
            await tab.expect_message(f'{{"n":{n}}}')
