"""Access that ends, on real servers with real sessions: logout, passwords, accounts, permissions, limits."""

import asyncio
import http.client
import json
import re
import sqlite3
import time
from contextlib import AsyncExitStack, closing
from types import SimpleNamespace
from urllib.parse import urlencode

import pytest
from websockets.exceptions import ConnectionClosed

import notifications
from notifications.access import control, revocation
from notifications.access.control import channel
from notifications.access.credentials import credentials_of, judge
from notifications.connection.limits import BURST
from tests.clients import RawRedis, open_tab
from tests.conftest import AUTH_TIMEOUT, SERVERS, point_to
from tests.faults import never_reading, redis_down
from tests.http_client import EventStream, post
from tests.processes import LAYERS, Site
from tests.site.test_http import METRICS_TOKEN, are_subscribed, until
from tests.waiting import await_for, scaled, wait_for

OFTEN, SELDOM = 1.5, 600
"""Seconds between two checks: where a check is awaited, and where it must not be what closes a socket."""
AT_ONCE = 5.0
"""Seconds in which what is told of at once has happened."""


def site_settings(check_interval, **notifications_settings):
    return {
        "SESSION_ENGINE": "django.contrib.sessions.backends.db",
        "CHANNEL_LAYER_BACKEND": LAYERS["ours"],
        "CHECK_INTERVAL": check_interval,
        "SESSION_DOUBT": 0,
        "NOTIFICATIONS": {
            "AUTH_TIMEOUT": AUTH_TIMEOUT,
            "METRICS_TOKEN": METRICS_TOKEN,
            "REAUTHORIZE_INTERVAL": 1,
            "TOPICS": {
                "upload": {"AUTHORIZE": "tests.testsite.permissions.may_watch"},
                "vault": {"AUTHORIZE": "tests.testsite.permissions.may_watch_vault"},
                "report": {"AUTHORIZE": "tests.testsite.permissions.may_watch_report"},
            },
            **notifications_settings,
        },
    }


@pytest.fixture(scope="module")
def site(redis_program, migrated_database, tmp_path_factory):
    """A site whose checks are seldom: what ends access here was told."""
    directory = tmp_path_factory.mktemp("access")
    with Site(directory, migrated_database, settings=site_settings(SELDOM)) as site:
        site.start_listener()
        yield site


@pytest.fixture(scope="module", params=SERVERS)
def server(request, site):
    return site.start_server(request.param)


@pytest.fixture
def here(site, settings):
    """Let this process tell the site's processes."""
    point_to(settings, site.redis.url)
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "TOPICS": site.settings["NOTIFICATIONS"]["TOPICS"]}


class Browser:
    """A browser with one session: posts forms, keeps its cookies, opens tabs."""

    def __init__(self, server, user=None):
        self.server = server
        self.user = user
        self.cookies = {}
        if user is not None:
            self.post("log_in", user=user.pk)

    def post(self, path, **fields):
        connection = http.client.HTTPConnection(self.server.address, timeout=scaled())
        with closing(connection):
            headers = {"Cookie": self.cookie, "Content-Type": "application/x-www-form-urlencoded"}
            connection.request("POST", f"/{path}/", urlencode(fields), headers)
            response = connection.getresponse()
            assert response.status == 200, response.read()
            for header in response.headers.get_all("Set-Cookie") or ():
                name, _, rest = header.partition("=")
                self.cookies[name] = rest.partition(";")[0].strip('"')

    @property
    def cookie(self):
        return "; ".join(f"{name}={value}" for name, value in self.cookies.items() if value)

    @property
    def session_key(self):
        return self.cookies["sessionid"]

    def tab(self):
        """Open a tab; it has yet to hear ``auth_success``."""
        return open_tab(self.server, headers={"Cookie": self.cookie})


async def browser_of(server, user):
    return await asyncio.to_thread(Browser, server, user)


def change(site, statement, *values):
    """Change the database as ``queryset.update`` does: nobody is told."""
    with closing(sqlite3.connect(site.database, timeout=scaled())) as database, database:
        return database.execute(statement, values).fetchall()


async def closed(tab, code, reason=None):
    """Expect a close with this code, and the frame that says why."""
    frames = [frame for frame in await tab.expect_closed(code) if frame["action"] != "subscribed"]
    if code == 4005:
        (frame,) = frames
        assert frame["action"] == "auth_error"
        assert reason is None or frame["message"] == reason
    else:
        assert frames == []


async def is_open(tab):
    """Prove that a socket is open and answered: nothing else was said to it."""
    await tab.send({"action": "ping"})
    await tab.expect("pong")


async def listening(site):
    """Wait until the one server that has sockets is subscribed; from then on it is told at once."""
    client = site.client()
    await await_for(lambda: client.pubsub_numsub(channel())[0][1] == 1, what="subscribed to the control channel")


# What Django signals.


async def test_logout_closes_the_sockets_of_that_session(site, server):
    """A logout closes each tab of its browser with 4005, and no tab of the user's other browser, nor of a token."""
    alice = site.add_user()
    browser, elsewhere = await browser_of(server, alice), await browser_of(server, alice)
    async with browser.tab() as one, browser.tab() as two, elsewhere.tab() as other, open_tab(server, alice) as app:
        for tab in (one, two, other):
            await tab.expect("auth_success", user_id=str(alice.pk))
        await listening(site)
        began = time.monotonic()

        await asyncio.to_thread(browser.post, "log_out")

        await closed(one, 4005, "logged out")
        await closed(two, 4005, "logged out")
        assert time.monotonic() - began < scaled(AT_ONCE)
        await is_open(other)
        await is_open(app)


async def test_a_password_change_ends_all_but_the_own_browser(site, server):
    """Tokens of before end with 4005, sessions with 4101; only the browser it was changed in gets in again."""
    alice, bob = site.add_user(), site.add_user()
    browser, elsewhere = await browser_of(server, alice), await browser_of(server, alice)
    async with (
        browser.tab() as own,
        elsewhere.tab() as other,
        open_tab(server, alice) as app,
        open_tab(server, bob) as stranger,
    ):
        await own.expect("auth_success")
        await other.expect("auth_success")
        await listening(site)

        await asyncio.to_thread(browser.post, "change_password")

        await closed(other, 4101)
        await closed(app, 4005, "the password was changed")
        await closed(own, 4101)
        await is_open(stranger)
    async with browser.tab() as again, elsewhere.tab() as refused:
        await again.expect("auth_success", user_id=str(alice.pk))
        await refused.expect_closed(4001)


async def test_a_deactivated_user_is_closed_at_once(site, server):
    """``is_active = False`` and ``save`` close every socket of the user, by session and by token, within seconds."""
    alice = site.add_user()
    browser = await browser_of(server, alice)
    code = f"from django.contrib.auth.models import User as U; u = U.objects.get(pk={alice.pk}); u.is_active = False;"
    async with browser.tab() as tab, open_tab(server, alice) as app:
        await tab.expect("auth_success")
        await listening(site)

        done = await asyncio.to_thread(site.run, "shell", "-v", "0", "-c", f"{code} u.save()")

        assert done.returncode == 0, done.stderr
        await closed(tab, 4005, "the account is not active")
        await closed(app, 4005, "the account is not active")


async def test_a_disabled_password_closes_at_once(site, server):
    """What Django's admin does for "password-based authentication: disabled" is a change of the password."""
    alice = site.add_user()
    code = f"from django.contrib.auth.models import User as U; u = U.objects.get(pk={alice.pk})"
    async with open_tab(server, alice) as app:
        await listening(site)
        await asyncio.sleep(2)  # the look after the first subscription is over
        code += "; u.set_unusable_password(); u.save()"
        done = await asyncio.to_thread(site.run, "shell", "-v", "0", "-c", code)

        assert done.returncode == 0, done.stderr
        await closed(app, 4005, "the password was changed")


async def test_a_deleted_user_is_closed_at_once(site, server):
    """The sockets of an account that is deleted are closed like those of one that is deactivated."""
    alice = site.add_user()
    code = f"from django.contrib.auth.models import User; User.objects.get(pk={alice.pk}).delete()"
    async with open_tab(server, alice) as app:
        await listening(site)
        done = await asyncio.to_thread(site.run, "shell", "-v", "0", "-c", code)

        assert done.returncode == 0, done.stderr
        await closed(app, 4005, "the account is not active")


# What a site calls.


async def test_disconnect_user_closes_all_sockets_of_a_user(site, server, here):
    """Every socket of the user ends with 4005, in both twins, and nobody else's."""
    alice, bob = site.add_user(), site.add_user()
    async with open_tab(server, bob) as stranger:
        await listening(site)
        for disconnect in (notifications.disconnect_user, notifications.adisconnect_user):
            async with open_tab(server, alice) as one, open_tab(server, bob) as theirs:
                if asyncio.iscoroutinefunction(disconnect):
                    await disconnect(alice.pk)
                else:
                    await asyncio.to_thread(disconnect, alice.pk)

                await closed(one, 4005, "access was revoked")
                await is_open(theirs)
        await is_open(stranger)


async def test_disconnect_user_closes_one_session(site, server, here):
    """With ``session_key`` the sockets of that session end and no others."""
    alice = site.add_user()
    browser, elsewhere = await browser_of(server, alice), await browser_of(server, alice)
    async with browser.tab() as tab, elsewhere.tab() as other:
        await tab.expect("auth_success")
        await other.expect("auth_success")
        await listening(site)

        await notifications.adisconnect_user(alice.pk, session_key=browser.session_key)

        await closed(tab, 4005)
        await is_open(other)


async def test_nothing_is_delivered_after_the_end_of_access(site, server, here):
    """A browser that does not read cannot keep its socket: it is gone, whatever it is sent afterwards."""
    alice = site.add_user()
    async with never_reading(server, alice) as tab:
        await listening(site)
        for _ in range(30):
            await notifications.apublish_to_user(alice.pk, {"action": "big", "text": "x" * 60_000})
        await notifications.adisconnect_user(alice.pk)
        await notifications.apublish_to_user(alice.pk, {"action": "secret"})

        tab.connection.transport.resume_reading()

        frames = await tab.expect_closed(4005, None)
    assert "secret" not in [frame["action"] for frame in frames]


async def test_revoke_ends_a_subscription(site, server, here):
    """The socket is told ``unsubscribed`` and hears nothing more of the topic; other topics and users go on."""
    alice, bob = site.add_user(), site.add_user()
    mine, other = alice.new_upload(), alice.new_upload()
    shared = f"all-{mine}"
    async with open_tab(server, alice) as tab, open_tab(server, bob) as stranger:
        for upload_id in (mine, other, shared):
            await tab.watch(upload_id)
        await stranger.watch(shared)
        await listening(site)

        await asyncio.to_thread(notifications.revoke, f"upload:{mine}", alice.pk)
        await tab.expect("unsubscribed", topic=f"upload:{mine}")
        await notifications.arevoke(f"upload:{shared}", alice.pk)
        await tab.expect("unsubscribed", topic=f"upload:{shared}")
        for upload_id in (mine, shared, other):
            await notifications.apublish_progress(upload_id, {"of": upload_id})

        await tab.expect_message(json.dumps({"of": other}, separators=(",", ":")))
        await stranger.expect_message(json.dumps({"of": shared}, separators=(",", ":")))


async def test_access_that_ends_shows_over_http_at_once(site, server, here):
    """A stream and a waiting poll are told of a permission that was revoked, and of the logout that ends them."""
    alice = site.add_user()
    browser, upload = await browser_of(server, alice), f"upload:{alice.new_upload()}"
    headers = {"Origin": f"http://{server.address}", "Cookie": browser.cookie}
    body = {"mode": "poll", "topics": [{"topic": upload}]}

    async def poll():
        async with post(server, body, headers=headers) as answer:
            return await answer.json()

    async with post(server, {**body, "mode": "stream"}, headers=headers) as answer:
        stream = EventStream(answer)
        await stream.expect("auth_success", user_id=str(alice.pk))
        await stream.expect("subscribed", topic=upload)
        await listening(site)

        async def while_a_poll_waits(happens, topics):
            """Let something happen when nobody has any topic but the stream so many, and the poll two."""
            await until(lambda: are_subscribed(server, topics))
            waiting = asyncio.create_task(poll())
            await until(lambda: are_subscribed(server, topics + 2))
            await happens
            return (await waiting)[2:]

        frames = await while_a_poll_waits(notifications.arevoke(upload, alice.pk), topics=2)
        assert [(frame["action"], frame["topic"]) for frame in frames] == [("unsubscribed", upload)]
        await stream.expect("unsubscribed", topic=upload)

        frames = await while_a_poll_waits(asyncio.to_thread(browser.post, "log_out"), topics=1)
        for end in (frames, await stream.expect_end()):
            assert [frame["action"] for frame in end] == ["auth_error", "close"]
            assert end[1]["code"] == 4005


async def test_revoke_ends_the_subscription_of_a_session_that_has_just_come(site, server, here):
    """Who came with a session is the lazy user of the handshake until the first look at their account."""
    alice = site.add_user()
    mine = alice.new_upload()
    browser = await browser_of(server, alice)
    async with open_tab(server, alice) as first:
        await listening(site)
        await asyncio.sleep(2)  # the look at those who came before we heard anything is over
        async with browser.tab() as tab, browser.tab() as other:
            for each in (tab, other):
                await each.expect("auth_success")
            for each in (tab, other, first):
                await each.watch(mine)

            await notifications.arevoke(f"upload:{mine}", alice.pk)

            for each in (tab, other, first):
                await each.expect("unsubscribed", topic=f"upload:{mine}")


async def test_what_was_revoked_is_not_remembered(site, server, here):
    """Who subscribes again at once is answered from what is true now: Django's users remember their permissions."""
    alice = site.add_user()
    allow(site, alice)
    async with open_tab(server, alice) as tab:
        await listening(site)
        await asyncio.sleep(2)  # the look after the first subscription is over, and brings no new account
        await tab.subscribe("vault:1")
        change(site, "DELETE FROM auth_user_user_permissions WHERE user_id = ?", alice.pk)

        await notifications.arevoke("vault:1", alice.pk)
        await tab.expect("unsubscribed", topic="vault:1")
        await tab.send({"action": "subscribe", "topic": "vault:1"})
        await tab.expect("error", code="forbidden")


async def test_a_permission_that_is_a_field_of_the_account_is_not_remembered(site, server, here):
    """Who subscribes again after ``revoke`` is asked for as the account is now, not as it was at the last look."""
    alice = site.add_user()
    change(site, "UPDATE auth_user SET is_staff = 1 WHERE id = ?", alice.pk)
    async with open_tab(server, alice) as tab:
        await listening(site)
        await asyncio.sleep(2)  # the look after the first subscription is over, and brings no new account
        await tab.subscribe("report:1")
        change(site, "UPDATE auth_user SET is_staff = 0 WHERE id = ?", alice.pk)

        await notifications.arevoke("report:1", alice.pk)
        await tab.expect("unsubscribed", topic="report:1")
        await tab.send({"action": "subscribe", "topic": "report:1"})
        await tab.expect("error", code="forbidden")


async def test_who_may_publish_on_control_without_the_key_ends_nothing(site, server):
    """What is not signed, or is signed for something else, is refused and logged; the sockets stay."""
    from django.core import signing

    alice, mark = site.add_user(), server.mark()
    forgeries = [
        "",
        "\xff",
        "[]",
        json.dumps(["disconnect", str(alice.pk), ""]),
        signing.dumps(["disconnect", str(alice.pk), ""], salt="other"),
        signing.dumps(["disconnect", str(alice.pk), ""], key="another secret", salt="notifications.control"),
        signing.dumps(["destroy", str(alice.pk), ""], salt="notifications.control"),
        signing.dumps("disconnect", salt="notifications.control"),
    ]
    async with open_tab(server, alice) as tab:
        await listening(site)
        with RawRedis(site.redis.port) as raw:
            raw.publish_all((channel(), forgery) for forgery in forgeries)

        await is_open(tab)
        await asyncio.to_thread(
            wait_for, lambda: server.output.count("refused a control message") >= len(forgeries), what="refusals"
        )
    assert "another secret" not in "".join(server.lines[mark:])


# Permissions.


def allow(site, user):
    [(permission,)] = change(site, "SELECT id FROM auth_permission WHERE codename = 'view_user'")
    change(site, "INSERT INTO auth_user_user_permissions (user_id, permission_id) VALUES (?, ?)", user.pk, permission)


async def test_a_withdrawn_permission_ends_the_subscription(site, server, here):
    """``AUTHORIZE`` is asked again with the user as they are now, and not for a user who has a grant."""
    alice, bob = site.add_user(), site.add_user()
    allow(site, alice)
    allow(site, bob)
    async with open_tab(server, alice) as tab, open_tab(server, bob) as other, open_tab(server, alice) as granted:
        await tab.subscribe("vault:1")
        await other.subscribe("vault:1")
        await granted.subscribe("vault:1", grant=alice.grant("vault:1"))
        await asyncio.sleep(3)  # asked again several times meanwhile: who is allowed keeps it
        await is_open(tab)

        change(site, "DELETE FROM auth_user_user_permissions WHERE user_id = ?", alice.pk)

        await tab.expect("unsubscribed", topic="vault:1")
        await tab.send({"action": "subscribe", "topic": "vault:1"})
        await tab.expect("error", code="forbidden")
        await notifications.apublish("vault:1", {"n": 1})
        await other.expect_message('{"n":1}')
        await granted.expect_message('{"n":1}')


# What is found by looking it up.


@pytest.fixture
def looking(new_site, settings):
    """Return a site of its own whose checks are often, with its web server: uvicorn, the layer of channels_redis."""
    new_site.settings = site_settings(OFTEN) | {"CHANNEL_LAYER_BACKEND": LAYERS["channels_redis"]}
    point_to(settings, new_site.redis.url)
    server, _ = new_site.start_all("uvicorn")
    return new_site, server


async def test_a_check_finds_what_no_signal_told(looking):
    """``queryset.update`` of accounts and passwords, expired sessions and deleted ones are found; others stay."""
    site, server = looking
    users = [site.add_user() for _ in range(5)]
    deactivated, changed, expired, gone, good = users
    async with AsyncExitStack() as tabs:
        browsers = {user: await browser_of(server, user) for user in users}
        opened = {user: await tabs.enter_async_context(browsers[user].tab()) for user in users}
        for tab in opened.values():
            await tab.expect("auth_success")

        change(site, "UPDATE auth_user SET is_active = 0 WHERE id = ?", deactivated.pk)
        change(site, "UPDATE auth_user SET password = 'md5$new$hash' WHERE id = ?", changed.pk)
        statement = "UPDATE django_session SET expire_date = '2020-01-01 00:00:00' WHERE session_key = ?"
        change(site, statement, browsers[expired].session_key)
        change(site, "DELETE FROM django_session WHERE session_key = ?", browsers[gone].session_key)

        await closed(opened[deactivated], 4005, "the account is not active")
        await closed(opened[changed], 4101)
        await closed(opened[expired], 4005, "the session has expired")
        await closed(opened[gone], 4101)
        await is_open(opened[good])
        async with browsers[gone].tab() as refused:
            await refused.expect_closed(4001)


async def test_a_logout_while_redis_is_down_succeeds_and_is_found_by_the_check(looking):
    """The page that logs out is served, the failure is logged, and the socket is closed by the next check."""
    site, server = looking
    alice = site.add_user()
    browser = await browser_of(server, alice)
    async with browser.tab() as tab:
        await tab.expect("auth_success")
        mark = server.mark()
        with redis_down(site.redis):
            await asyncio.to_thread(browser.post, "log_out")
            server.wait_for_line("not known to be published on 'notifications:control'", after=mark)

            await closed(tab, 4101)
    async with browser.tab() as refused:
        await refused.expect_closed(4001)


async def test_a_gap_of_the_control_channel_loses_no_end_of_access(new_site, settings, server_kind):
    """What was told while a process heard nothing is looked up as soon as it hears again."""
    new_site.settings = site_settings(SELDOM)
    point_to(settings, new_site.redis.url)
    server = await asyncio.to_thread(new_site.start_server, server_kind)
    alice, bob = new_site.add_user(), new_site.add_user()
    admin = new_site.client()
    async with open_tab(server, alice) as tab, open_tab(server, bob) as other:
        await listening(new_site)
        await asyncio.sleep(2)  # the look after the first subscription is over
        mark = server.mark()
        # Redis closes the connections that are subscribed to what they may not hear any more.
        admin.execute_command("ACL", "SETUSER", "default", "resetchannels", "&user:*", "&asgi*")
        await asyncio.to_thread(server.wait_for_line, "not connected to the control channel", after=mark)
        change(new_site, "UPDATE auth_user SET is_active = 0 WHERE id = ?", alice.pk)
        admin.execute_command("ACL", "SETUSER", "default", "allchannels")

        await closed(tab, 4005, "the account is not active")
        await is_open(other)


async def test_a_check_is_one_query_for_all_accounts_and_one_for_all_sessions(new_site):
    """Fifty sockets of ten users and as many sessions are looked up by two statements, each of which names all."""
    new_site.settings = site_settings(OFTEN) | {
        "DEBUG": True,
        "LOGGING": {
            "version": 1,
            "disable_existing_loggers": False,
            "handlers": {"console": {"class": "logging.StreamHandler"}},
            "loggers": {"django.db.backends": {"handlers": ["console"], "level": "DEBUG"}},
        },
    }
    server = await asyncio.to_thread(new_site.start_server, "uvicorn")
    users = [new_site.add_user() for _ in range(10)]
    async with AsyncExitStack() as tabs:
        for user in users:
            browser = await browser_of(server, user)
            for _ in range(5):
                tab = await tabs.enter_async_context(browser.tab())
                await tab.expect("auth_success")
        await listening(new_site)
        await asyncio.sleep(2 * OFTEN)  # the checks that saw fewer are over
        mark, began = server.mark(), time.monotonic()
        await asyncio.sleep(4 * OFTEN)
        lines, checks = server.lines[mark:], (time.monotonic() - began) / OFTEN / 0.8

    of_users = [line for line in lines if "auth_user" in line and " IN (" in line]
    of_sessions = [line for line in lines if "django_session" in line and " IN (" in line]
    assert 2 <= len(of_users) <= checks + 1
    assert abs(len(of_users) - len(of_sessions)) <= 1
    assert len([line for line in lines if "SELECT" in line]) == len(of_users) + len(of_sessions)
    for line in (*of_users, *of_sessions):
        (named,) = re.findall(r" IN \(([^)]*)\)", line)
        assert named.count(",") == len(users) - 1


async def test_checks_survive_a_database_that_does_not_answer(looking):
    """Nobody is closed because the database cannot be asked; when it can, the checks go on."""
    site, server = looking
    alice, bob = site.add_user(), site.add_user()
    async with open_tab(server, alice) as tab, open_tab(server, bob) as other:
        mark = server.mark()
        away = site.database.with_suffix(".away")
        site.database.rename(away)
        await asyncio.to_thread(server.wait_for_line, "could not look up who still has access", after=mark)
        await is_open(tab)
        site.database.unlink(missing_ok=True)  # SQLite makes an empty one
        away.rename(site.database)
        change(site, "UPDATE auth_user SET is_active = 0 WHERE id = ?", alice.pk)

        await closed(tab, 4005, "the account is not active")
        await is_open(other)


# Limits.


@pytest.mark.parametrize("whose", ["user", "address"])
async def test_connections_are_limited_for_each_user_and_address(new_site, server_kind, whose):
    """One too many is closed with 4102, which says "come back later"; when another has gone, the next is let in."""
    limits = {"MAX_CONNECTIONS_PER_USER": 2} if whose == "user" else {"MAX_CONNECTIONS_PER_ADDRESS": 2}
    new_site.settings = site_settings(SELDOM, **limits)
    server = await asyncio.to_thread(new_site.start_server, server_kind)
    alice, bob = new_site.add_user(), new_site.add_user()
    async with open_tab(server, alice):
        async with open_tab(server, alice):
            async with open_tab(server) as third:
                if whose == "user":
                    await third.send({"type": "auth", "token": alice.token})
                assert await third.expect_closed(4102) == []
            if whose == "user":
                async with open_tab(server, bob):
                    pass

        async def let_in():
            async with open_tab(server) as tab:
                await tab.send({"type": "auth", "token": alice.token})
                try:
                    await tab.expect("auth_success")
                except Exception:  # the server has not yet heard that the other one went
                    return False
            return True

        deadline = time.monotonic() + scaled()
        while not await let_in():
            assert time.monotonic() < deadline


async def test_sockets_that_say_nothing_make_room_for_those_that_do(new_site, server_kind):
    """The oldest go first, and whoever has a token gets in, however many there are that have none."""
    new_site.settings = site_settings(SELDOM, MAX_UNAUTHENTICATED=8, AUTH_TIMEOUT=600)
    server = await asyncio.to_thread(new_site.start_server, server_kind)
    alice = new_site.add_user()
    async with AsyncExitStack() as opened:
        silent = [await opened.enter_async_context(open_tab(server)) for _ in range(6)]
        async with open_tab(server, alice):
            for tab in silent[:3]:
                assert await tab.expect_closed(4102) == []
        async with (await browser_of(server, alice)).tab() as tab:
            await tab.expect("auth_success")
            await silent[-1].send({"type": "auth", "token": alice.token})
            await silent[-1].expect("auth_success")


async def test_frames_are_limited_for_a_user_over_all_their_sockets(new_site, server_kind):
    """Reconnecting gives a user no larger allowance than keeping the socket; others are not held up."""
    new_site.settings = site_settings(SELDOM, MAX_CONNECTIONS_PER_USER=1)
    server = await asyncio.to_thread(new_site.start_server, server_kind)
    alice, bob = new_site.add_user(), new_site.add_user()

    async def ping_often(tab):
        """Send almost what one socket may at once, and return the answers up to a refusal."""
        for _ in range(BURST - 5):
            await tab.send({"action": "ping"})
        answers = []
        while len(answers) < BURST - 5 and "error" not in answers:
            answers.append(json.loads(await tab.next_text())["action"])
        return answers

    async def come_back():
        async with open_tab(server) as tab:
            await tab.send({"type": "auth", "token": alice.token})
            try:
                await tab.expect("auth_success")
            except ConnectionClosed:  # the server has not yet heard that the other one went
                return None
            return await ping_often(tab)

    async with open_tab(server, alice) as tab:
        assert set(await ping_often(tab)) == {"pong"}
    while (answers := await come_back()) is None:
        pass

    assert answers[-1] == "error"
    async with open_tab(server, bob) as tab:
        assert set(await ping_often(tab)) == {"pong"}


async def test_credentials_that_are_renewed_during_a_look_are_looked_at_again(live_redis, monkeypatch):
    """Their account may have been read before what the look was for; nobody waits for the next one, in a minute."""
    ended = asyncio.Event()
    user = SimpleNamespace(pk=7, is_active=True)
    socket = SimpleNamespace(user=user, credentials=credentials_of(user), authorized={}, unanswered=(), joins={})
    socket.end_access = lambda code, reason: ended.set()
    looks = []

    async def judge_slowly(shown):
        verdicts = await judge(shown)
        looks.append(shown)
        if len(looks) == 2:
            socket.credentials = credentials_of(user)  # another token was shown meanwhile
        return verdicts

    monkeypatch.setattr(revocation, "judge", judge_slowly)
    sockets = revocation.Access()
    sockets.add("7", socket)
    try:
        await await_for(lambda: looks)  # at those who came before we heard anything
        user.is_active = False
        await control.Control("check", "7").asend()

        await asyncio.wait_for(ended.wait(), scaled())

        assert len(looks) == 3
    finally:
        sockets.remove("7", socket)
