"""Sockets that are opened while something happens to their session, on real servers."""

import asyncio
import secrets
import sqlite3
from contextlib import AsyncExitStack, closing
from types import SimpleNamespace

import pytest
from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY
from django.contrib.sessions.backends.db import SessionStore

import notifications
from notifications.access import control
from notifications.access.control import channel
from tests.clients import open_tab
from tests.conftest import SERVERS, point_to
from tests.processes import LAYERS, Site
from tests.site.test_revocation import browser_of, change, closed
from tests.waiting import await_for, scaled

DOUBT = 5
BACKEND = "django.contrib.auth.backends.ModelBackend"


def settings_with(files, **more):
    return {
        "SESSION_ENGINE": "django.contrib.sessions.backends.db",
        "CHANNEL_LAYER_BACKEND": LAYERS["ours"],
        "CHECK_INTERVAL": 600,
        "SESSION_DOUBT": DOUBT,
        "AWAY": str(files / "away"),
        "NOTIFICATIONS": {"AUTH_TIMEOUT": 2},
        **more,
    }


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return tmp_path_factory.mktemp("handshakes")


@pytest.fixture(scope="module")
def site(redis_program, migrated_database, tmp_path_factory, files):
    directory = tmp_path_factory.mktemp("handshake-site")
    with Site(directory, migrated_database, settings=settings_with(files)) as site:
        site.start_listener()
        yield site


@pytest.fixture(scope="module", params=SERVERS)
def server(request, site):
    return site.start_server(request.param)


@pytest.fixture(scope="module", params=["ours", "channels"])
def either(request, site, files):
    """A server with our middleware, and one with that of Channels."""
    before, site.settings = site.settings, settings_with(files, CHANNELS_OWN_STACK=request.param == "channels")
    try:
        return site.start_server("uvicorn")
    finally:
        site.settings = before


@pytest.fixture
def here(site, settings):
    point_to(settings, site.redis.url)


class Held:
    """Session and account of the next handshake are read, and then nothing goes on until the test lets it."""

    def __init__(self, files):
        self.files = files
        for name in ("held", "go on"):
            (files / name).unlink(missing_ok=True)
        (files / "hold").touch()

    async def wait(self):
        await await_for((self.files / "held").exists, what="a handshake is held")

    def go_on(self):
        (self.files / "go on").touch()


async def opening(stack, browser, files):
    """Begin to open a tab; returns when session and account were read, with what lets it go on and the tab to come."""
    held = Held(files)
    tab = asyncio.create_task(stack.enter_async_context(browser.tab()))
    await held.wait()
    return held, tab


async def listening(site):
    await await_for(lambda: site.client().pubsub_numsub(channel())[0][1] >= 1, what="subscribed to the control channel")
    await asyncio.sleep(2)  # the look after the first subscription is over


async def log_out(site, browser, user):
    await asyncio.to_thread(browser.post, "log_out")


async def disconnect(site, browser, user):
    await notifications.adisconnect_user(user.pk)


async def disconnect_session(site, browser, user):
    await notifications.adisconnect_user(user.pk, session_key=browser.session_key)


@pytest.mark.parametrize("end", [log_out, disconnect, disconnect_session])
async def test_a_socket_that_is_opened_meanwhile_ends_as_those_that_are_open(site, server, here, files, end):
    """Its session was read before the access ended and it is open after: it is closed and never told auth_success."""
    alice = site.add_user()
    browser = await browser_of(server, alice)
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(browser.tab())
        await first.expect("auth_success")
        await listening(site)
        held, opened = await opening(stack, browser, files)

        await end(site, browser, alice)
        await closed(first, 4005)
        held.go_on()

        frames = await (await opened).expect_closed(4005)
        assert [frame["action"] for frame in frames] == ["auth_error"]


async def test_who_comes_after_a_disconnect_stays(site, server, here):
    """``disconnect_user`` keeps nobody out: what was told before the session was read is not about this socket."""
    alice = site.add_user()
    browser = await browser_of(server, alice)
    async with browser.tab() as first:
        await first.expect("auth_success")
        await listening(site)
        await notifications.adisconnect_user(alice.pk)
        await closed(first, 4005)
    async with browser.tab() as again:
        await again.expect("auth_success")
        await asyncio.sleep(2.5)
        await again.send({"action": "ping"})
        await again.expect("pong")


async def test_a_socket_that_comes_between_the_word_of_a_logout_and_its_end_is_closed(site, server, here):
    """Django signals a logout before it deletes the session: until then the session opens sockets as before."""
    alice, bob = site.add_user(), site.add_user()
    browser, other = await browser_of(server, alice), await browser_of(server, bob)
    async with other.tab() as stranger, browser.tab() as first:
        await stranger.expect("auth_success")
        await first.expect("auth_success")
        await listening(site)
        await notifications.adisconnect_user(alice.pk, session_key=browser.session_key)
        await closed(first, 4005)
        async with browser.tab() as late:
            await late.expect("auth_success")

            change(site, "DELETE FROM django_session WHERE session_key = ?", browser.session_key)

            await closed(late, 4101)
            await stranger.send({"action": "ping"})
            await stranger.expect("pong")


async def test_a_deactivation_meanwhile_is_found_at_once(site, either, here, files):
    """What has to be looked up is looked up once more for a socket that was being opened, with either middleware."""
    alice, bob = site.add_user(), site.add_user()
    browser, other = await browser_of(either, alice), await browser_of(either, bob)
    async with AsyncExitStack() as stack:
        await (await stack.enter_async_context(other.tab())).expect("auth_success")
        await listening(site)
        held, opened = await opening(stack, browser, files)
        change(site, "UPDATE auth_user SET is_active = 0 WHERE id = ?", alice.pk)
        await control.Control("check", str(alice.pk)).asend()  # as ``save`` does
        held.go_on()

        frames = await (await opened).expect_closed(4005)
        assert frames[-1]["message"] == "the account is not active"


async def test_a_logout_meanwhile_is_found_at_once_behind_channels_own_middleware_too(site, either, here, files):
    """There the session is looked up once more: the browser is told to come back, and does not get in."""
    alice, bob = site.add_user(), site.add_user()
    browser, other = await browser_of(either, alice), await browser_of(either, bob)
    async with AsyncExitStack() as stack:
        await (await stack.enter_async_context(other.tab())).expect("auth_success")
        await listening(site)
        held, opened = await opening(stack, browser, files)
        await asyncio.to_thread(browser.post, "log_out")
        held.go_on()

        await (await opened).expect_closed(4005, 4101)


@pytest.mark.parametrize("order", ["late", "early"])
async def test_the_own_tabs_come_back_however_slow_the_view_is(site, either, files, order):
    """
    While the view that changes the password is not done, its browser's tabs are told to come back, again and again;
    when it is, they get in. Those of another browser are refused in the end, and not before.
    """
    (files / f"gate-{order}").unlink(missing_ok=True)
    alice = site.add_user()
    browser, elsewhere = await browser_of(either, alice), await browser_of(either, alice)
    async with browser.tab() as tab, elsewhere.tab() as other:
        await tab.expect("auth_success")
        await other.expect("auth_success")
        await listening(site)
        view = asyncio.create_task(asyncio.to_thread(browser.post, f"change_password/{order}"))
        await closed(tab, 4101)
        await closed(other, 4101)
    for each in (browser, elsewhere):
        async with each.tab() as early:
            assert await early.expect_closed(4101) == []

    (files / f"gate-{order}").touch()
    await view

    async with browser.tab() as again:
        await again.expect("auth_success", user_id=str(alice.pk))
    await asyncio.sleep(DOUBT)
    async with elsewhere.tab() as refused:
        await refused.expect_closed(4001)


@pytest.mark.parametrize("kind", SERVERS)
async def test_a_rotated_key_logs_nobody_out(site, kind):
    """A browser with a session from before a rotation gets in, and its session is what it was."""
    old = await asyncio.to_thread(site.start_server, kind)
    alice = site.add_user()
    browser = await browser_of(old, alice)
    before, site.settings = site.settings, {**site.settings, "SECRET_KEY": "new", "SECRET_KEY_FALLBACKS": [OLD_KEY]}
    try:
        browser.server = await asyncio.to_thread(site.start_server, kind)
    finally:
        site.settings = before
    kept = change(site, "SELECT * FROM django_session WHERE session_key = ?", browser.session_key)
    assert len(kept) == 1

    async with browser.tab() as tab:
        await tab.expect("auth_success", user_id=str(alice.pk))
        assert change(site, "SELECT * FROM django_session WHERE session_key = ?", browser.session_key) == kept


OLD_KEY = "only-for-tests-" + "x" * 50


async def test_a_database_that_is_away_refuses_nobody_for_good(new_site, files, server_kind):
    """Browsers with a session, and those with a token, are told to come back; the log has a line of each."""
    new_site.settings = settings_with(files)
    server = await asyncio.to_thread(new_site.start_server, server_kind)
    alice = new_site.add_user()
    browser = await browser_of(server, alice)
    away = new_site.database.with_suffix(".away")
    new_site.database.rename(away)
    mark = server.mark()

    for _ in range(10):
        async with browser.tab() as tab:
            assert await tab.expect_closed(4101) == []
        async with open_tab(server) as tab:
            await tab.send({"type": "auth", "token": alice.token})
            assert await tab.expect_closed(4101) == []
    lines = server.lines[mark:]
    new_site.database.unlink(missing_ok=True)
    away.rename(new_site.database)

    assert "Traceback" not in "\n".join(lines)
    assert len([line for line in lines if "could not be read" in line]) == 1
    assert len([line for line in lines if "AUTHENTICATE_TOKEN could not answer" in line]) == 1
    async with browser.tab() as tab:
        await tab.expect("auth_success", user_id=str(alice.pk))


# Many at once.

CROWD = 300


def log_in_all(site, users, **data):
    """Give each user a session, as rows: three hundred forms would take longer than the test."""
    store, rows, cookies = SessionStore(), [], []
    for user in users:
        named = {SESSION_KEY: str(user.pk), BACKEND_SESSION_KEY: BACKEND, HASH_SESSION_KEY: user.session_hash, **data}
        cookies.append(secrets.token_hex(16))
        rows.append((cookies[-1], store.encode(named), "2999-01-01 00:00:00"))
    with closing(sqlite3.connect(site.database, timeout=scaled())) as database, database:
        database.executemany("INSERT INTO django_session VALUES (?, ?, ?)", rows)
    return [f"sessionid={cookie}" for cookie in cookies]


async def come_together(stack, server, cookies):
    """Open a tab with each cookie, all in the same moment."""
    tabs = (open_tab(server, headers={"Cookie": cookie}) for cookie in cookies)
    return await asyncio.gather(*(stack.enter_async_context(tab) for tab in tabs))


@pytest.fixture
async def crowded(new_site, tmp_path, server_kind):
    """A site that writes down its queries, which are slow, and many users who have logged in."""
    new_site.settings = settings_with(
        tmp_path,
        QUERIES=str(tmp_path / "queries"),
        QUERY_SECONDS=0.1,
        NOTIFICATIONS={"AUTH_TIMEOUT": scaled(5)},
    )
    (tmp_path / "queries").touch()
    server = await asyncio.to_thread(new_site.start_server, server_kind)
    users = new_site.add_users(CROWD)
    return SimpleNamespace(
        server=server,
        users=users,
        cookies=log_in_all(new_site, users),
        queries=lambda: [line.split(" ", 1) for line in (tmp_path / "queries").read_text().splitlines()],
    )


async def test_a_crowd_comes_back_with_few_queries(crowded):
    """With a slow database three hundred tabs are in at once: a few queries in a few threads find all users."""
    async with AsyncExitStack() as stack:
        tabs = await come_together(stack, crowded.server, crowded.cookies)
        for tab, user in zip(tabs, crowded.users, strict=True):
            await tab.expect("auth_success", user_id=str(user.pk))
        queries = crowded.queries()

    assert len(queries) < CROWD / 5
    assert len({thread for thread, _ in queries}) <= 4


async def test_a_crowd_is_sent_back_while_the_database_is_away_and_gets_in_afterwards(new_site, crowded):
    """All are told to come back, none that it has no session; the log has a line."""
    mark = crowded.server.mark()
    away = new_site.database.with_suffix(".away")
    new_site.database.rename(away)
    async with AsyncExitStack() as stack:
        for tab in await come_together(stack, crowded.server, crowded.cookies):
            assert await tab.expect_closed(4101) == []
    lines = crowded.server.lines[mark:]
    new_site.database.unlink(missing_ok=True)
    away.rename(new_site.database)

    async with AsyncExitStack() as stack:
        for tab in await come_together(stack, crowded.server, crowded.cookies):
            await tab.expect("auth_success")
    assert "Traceback" not in "\n".join(lines)
    assert len([line for line in lines if "could not be read" in line]) == 1


async def test_one_session_that_no_query_takes_keeps_nobody_out(new_site, crowded):
    """An account number beyond all integers fails the query for many; everybody else gets in."""
    (odd,) = log_in_all(new_site, crowded.users[:1], **{SESSION_KEY: str(10**30)})
    some, users = crowded.cookies[:20], crowded.users[:20]
    async with AsyncExitStack() as stack:
        tabs = await come_together(stack, crowded.server, [*some, odd])
        for tab, user in zip(tabs, users, strict=False):
            await tab.expect("auth_success", user_id=str(user.pk))
