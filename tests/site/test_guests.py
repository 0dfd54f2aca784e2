"""Guests on real servers, over each transport, and one call that reaches everybody."""

import asyncio
from contextlib import AsyncExitStack

import pytest

import notifications
from tests.clients import Tab, expect_refused, open_tab
from tests.conftest import SERVERS, point_to
from tests.http_client import EventStream, post, session
from tests.processes import LAYERS, Site

TOPICS = {
    "site": {},
    "news": {"PUBLIC": True},
    "team": {"JOIN": "tests.testsite.permissions.teams_of"},
    "order": {"AUTHORIZE": "tests.testsite.permissions.may_watch_order"},
}
GUEST = {"type": "auth", "guest": True}
CROWD = 200


@pytest.fixture(scope="module")
def queries(tmp_path_factory):
    """Return a function that counts the queries that the servers have made."""
    path = tmp_path_factory.mktemp("queries") / "queries"
    path.touch()

    def count():
        return len(path.read_text().splitlines())

    count.path = str(path)
    return count


@pytest.fixture(scope="module")
def site(redis_program, migrated_database, tmp_path_factory, queries):
    settings = {
        "CHANNEL_LAYER_BACKEND": LAYERS["ours"],
        "NOTIFICATIONS": {"TOPICS": TOPICS, "GUESTS": True, "MAX_GUESTS": CROWD},
        "QUERIES": queries.path,
    }
    with Site(tmp_path_factory.mktemp("guests"), migrated_database, settings=settings) as site:
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


async def visit(tabs: AsyncExitStack, server, **options) -> Tab:
    """Open a guest's tab, which has what everybody has."""
    tab = await tabs.enter_async_context(open_tab(server, **options))
    await tab.send(GUEST)
    await tab.expect("auth_success", user_id=None, id=None, recovered=None)
    await tab.expect("subscribed", topic="site:all", joined=True)
    return tab


async def visit_over_http(server, mode, *topics, headers=None, **fields):
    """Ask as a guest, and return the frames: of a stream all answers, and a message that is published after them."""
    body = {"mode": mode, "guest": True, "topics": [{"topic": topic} for topic in topics], **fields}
    async with post(server, body, headers=headers) as answer:
        if mode == "poll":
            return await answer.json()
        stream, frames = EventStream(answer), []
        while not frames or "_meta" not in frames[-1]:
            frames.append(await stream.next())
            if len(frames) == len(topics) + 2:  # also who it is, and what everybody has
                await notifications.apublish_to_all({"n": "stream"})
        return frames


async def test_one_call_reaches_a_crowd(site, server, queries):
    """Guests and users, each once; a guest costs no query, and one more than MAX_GUESTS is told to come back."""
    async with AsyncExitStack() as tabs:
        user = await tabs.enter_async_context(open_tab(server, session_of=site.add_user()))
        await user.expect("subscribed", topic="site:all", joined=True)
        for _ in range(2):
            await user.expect("subscribed", joined=True)  # the teams
        before = queries()
        crowd = await asyncio.gather(*[visit(tabs, server) for _ in range(CROWD)])
        assert queries() - before < 3  # of the user, whose account is looked up

        await notifications.apublish_to_all({"n": 1})
        await notifications.apublish_to_all({"n": 2})

        for tab in (user, *crowd):
            await tab.expect_message('{"n":1}')
            await tab.expect_message('{"n":2}')
        late = await tabs.enter_async_context(open_tab(server))
        await late.send(GUEST)
        await late.expect_closed(4102)


async def test_a_guest_reads_what_is_public_and_nothing_else(site, server):
    user = site.add_user()
    async with AsyncExitStack() as tabs:
        tab = await visit(tabs, server)
        await tab.subscribe("news:today")
        for topic in (f"team:{user.username}", "team:all", f"order:{user.username}", f"user:{user.pk}", "user:None"):
            await tab.send({"action": "subscribe", "topic": topic})
            await tab.expect("error", code="forbidden", topic=topic)
        await notifications.apublish(f"user:{user.pk}", {"n": 1})
        await notifications.apublish("team:all", {"n": 2})
        await notifications.apublish("news:today", {"n": 3})

        await tab.expect_message('{"n":3}')


async def test_over_http_as_well(site, server):
    """A stream and a poll: whose it is, what everybody has, what is public, and what is refused."""
    for mode in ("stream", "poll"):
        frames = await visit_over_http(server, mode, "news:1", "user:1", wait=0)
        told = [(each.get("action"), each.get("topic")) for each in frames if "_meta" not in each]

        assert frames[0] == {"action": "auth_success", "user_id": None, "id": None, "recovered": None}
        assert sorted(told[1:]) == [("error", "user:1"), ("subscribed", "news:1"), ("subscribed", "site:all")]


async def test_a_guest_who_comes_back_has_what_was_missed(site, server):
    """By the position of the topic, over a WebSocket and in a poll."""
    async with AsyncExitStack() as tabs:
        tab = await visit(tabs, server)
        since = await notifications.apublish_to_all({"n": 1})
        await tab.expect_message('{"n":1}')
    await notifications.apublish_to_all({"n": 2})

    async with AsyncExitStack() as tabs:
        tab = await visit(tabs, server)
        assert (await tab.subscribe("site:all", since=since))["recovered"] is True
        await tab.expect_message('{"n":2}')
    body = {"mode": "poll", "guest": True, "wait": 0, "topics": [{"topic": "site:all", "since": since}]}
    async with post(server, body) as answer:
        frames = await answer.json()
    assert [each["n"] for each in frames if "n" in each] == [2]


async def test_a_session_counts_for_more(site, server):
    """A page from a cache that asks as a guest gets its user's connection, over each transport."""
    user = site.add_user()
    async with open_tab(server, session_of=user) as tab:
        await tab.send(GUEST)
        await tab.expect("subscribed", topic="site:all", joined=True)
        await notifications.apublish(f"user:{user.pk}", {"n": 1})
        while (frame := await tab.next_frame()).get("action") == "subscribed":
            pass
        assert frame["n"] == 1
    frames = await visit_over_http(server, "poll", headers=session(server, user), wait=0)
    assert frames[0]["user_id"] == str(user.pk)


async def test_pages_of_other_sites_have_no_guests(server):
    """The rule of the origin is the same."""
    await expect_refused(server, origin="https://evil.example")
    body = {"mode": "poll", "guest": True, "wait": 0}
    async with post(server, body, headers={"Origin": "https://evil.example"}) as answer:
        assert answer.status == 403


async def test_guests_are_told_that_the_server_stops(site, server):
    """And come back elsewhere."""
    leaving = site.start_server("uvicorn")
    async with AsyncExitStack() as tabs:
        tab = await visit(tabs, leaving)
        await asyncio.to_thread(leaving.terminate)

        await tab.expect_closed(1012)
