"""Tenants on real servers: nothing crosses from one to another."""

import asyncio
import json
import shutil
import sqlite3
import urllib.parse
import urllib.request
from contextlib import asynccontextmanager, closing

import pytest

from notifications import (
    adisconnect_user,
    apublish,
    apublish_to_user,
    arevoke,
)
from tests.clients import RawRedis, expect_refused, open_tab
from tests.conftest import point_to
from tests.http_client import post
from tests.processes import LAYERS, Site, User
from tests.unit.test_tenants import (
    in_tenant,
)
from tests.waiting import await_for, scaled

ACME, GLOBEX = "acme", "globex"


@pytest.fixture
def tenants(settings):
    """Give this process tenants."""
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "TENANT": "tests.testsite.tenancy.current"}
    return settings


# Real processes.


OFTEN = 1.0
"""Seconds between two looks at all accounts and sessions."""


@pytest.fixture(scope="module", params=["context", "schemas"])
def site(request, redis_program, migrated_database, tmp_path_factory):
    """
    A site of two tenants, of which each has a database with a user 1, and nothing in the default one.

    The database of a query is that of the context, or that of its thread, as with schemas of PostgreSQL.
    """
    directory = tmp_path_factory.mktemp("tenants")
    databases = {"default": directory / "public.sqlite3"} | {name: directory / f"{name}.sqlite3" for name in TENANTS}
    for name, path in databases.items():
        shutil.copyfile(migrated_database, path)
        if name != "default":
            change(path, INSERT, name)
    settings = {
        "SCHEMAS": request.param == "schemas",
        "DATABASES": {name: {"ENGINE": SQLITE, "NAME": str(path)} for name, path in databases.items()},
        "DATABASE_ROUTERS": ["tests.testsite.tenancy.Router"],
        "SESSION_ENGINE": "django.contrib.sessions.backends.db",
        "CHANNEL_LAYER_BACKEND": LAYERS["ours"],
        "CHECK_INTERVAL": OFTEN,
        "NOTIFICATIONS": {
            "TENANT": "tests.testsite.tenancy.current",
            "TENANT_CONTEXT": "tests.testsite.tenancy.schema" if request.param == "schemas" else None,
            "REAUTHORIZE_INTERVAL": 1,
            "TOPICS": {"upload": {"AUTHORIZE": "tests.testsite.tenancy.may_watch"}},
        },
    }
    with Site(directory, migrated_database, settings=settings) as site:
        site.databases = databases
        site.start_listener()
        site.server = site.start_server("daphne")
        yield site


TENANTS = (ACME, GLOBEX)
SQLITE = "django.db.backends.sqlite3"
INSERT = (
    "INSERT INTO auth_user (id, password, is_superuser, username, last_name, email, is_staff, is_active, date_joined,"
    " first_name) VALUES (1, 'md5$salt$hash', 0, ?, '', '', 0, 1, '2026-01-01', '')"
)
SAME_AGAIN = "UPDATE auth_user SET is_active = 1, username = ?"
USER = User(1, "somebody")


def change(path, statement, *values):
    with closing(sqlite3.connect(path, timeout=scaled())) as database, database:
        database.execute(statement, values)


@pytest.fixture
def here(site, settings):
    """Let this process publish to the site's tenants, and begin with both users as they were."""
    point_to(settings, site.redis.url)
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, **site.settings["NOTIFICATIONS"], "TENANT_CONTEXT": None}
    for name in TENANTS:
        change(site.databases[name], SAME_AGAIN, name)


def log_in(site, name):
    """Log the tenant's user 1 in, and return the ``Cookie`` header."""
    body = urllib.parse.urlencode({"user": 1}).encode()
    request = urllib.request.Request(f"http://{site.server.address}/log_in/", body, {"X-Tenant": name})
    with urllib.request.urlopen(request, timeout=scaled()) as response:
        return response.headers["Set-Cookie"].partition(";")[0]


@asynccontextmanager
async def tab_of(site, name):
    """Open a tab of a tenant's user 1: with a session where the handshake finds it, otherwise with a token."""
    headers = {"X-Tenant": name}
    if not site.settings["SCHEMAS"]:
        headers["Cookie"] = await asyncio.to_thread(log_in, site, name)
    async with open_tab(site.server, headers=headers) as tab:
        if site.settings["SCHEMAS"]:
            with in_tenant(name):
                await tab.send({"type": "auth", "token": USER.token})
        await tab.expect("auth_success", user_id="1")
        yield tab


@asynccontextmanager
async def both_tabs(site):
    client = site.client()
    async with tab_of(site, ACME) as acme, tab_of(site, GLOBEX) as globex:
        await await_for(
            lambda: client.pubsub_numsub("notifications:control")[0][1], what="the server hears what is told"
        )
        yield acme, globex


async def marked(site, tab, name):
    """Prove that a tab gets nothing but what its tenant publishes now."""
    await _publish(name, {"action": "marker"})
    assert json.loads(await tab.next_text())["action"] == "marker"


async def _publish(name, message, topic=None):
    with in_tenant(name):
        await (apublish(topic, message) if topic else apublish_to_user(1, message))


async def test_messages_do_not_cross(site, here):
    """User 1 of each tenant gets what is published to user 1 of that tenant, from Django and from other programs."""
    async with both_tabs(site) as (acme, globex):
        with RawRedis(site.redis.port) as raw:
            assert raw.publish("user:acme/1", '{"action":"raw"}') == 1
            raw.publish("user:1", '{"action":"nobody"}')
        assert json.loads(await acme.next_text())["_meta"]["topic"] == "user:1"
        await _publish(ACME, {"action": "salaries"})
        assert json.loads(await acme.next_text())["action"] == "salaries"
        await marked(site, globex, GLOBEX)
        await marked(site, acme, ACME)


async def test_topics_that_are_asked_for_are_of_the_own_tenant(site, here):
    """AUTHORIZE asks the tenant's database; no spelling of a topic reaches another tenant's."""
    async with both_tabs(site) as (acme, globex):
        await acme.watch(ACME)
        for topic in (f"upload:{ACME}", "upload:acme/acme", "upload:/acme", "user:acme/1"):
            await globex.send({"action": "subscribe", "topic": topic})
            await globex.expect("error", code="forbidden", topic=topic)
        await _publish(ACME, {"action": "secret"}, f"upload:{ACME}")

        assert json.loads(await acme.next_text())["_meta"]["topic"] == f"upload:{ACME}"
        await marked(site, globex, GLOBEX)


async def test_what_was_missed_is_read_from_the_own_history(site, here):
    """Whoever comes late gets the latest message of the own tenant, of a topic that both have."""
    for name in TENANTS:
        change(site.databases[name], SAME_AGAIN, "late")
        await _publish(name, {"action": name}, "upload:late")
    for name in TENANTS:
        async with tab_of(site, name) as tab:
            await tab.subscribe("upload:late", since="last")
            assert json.loads(await tab.next_text())["action"] == name


async def test_a_request_over_http_is_of_its_tenant(site, here):
    """As a socket is: its topics and its history are the tenant's."""
    for name in TENANTS:
        change(site.databases[name], SAME_AGAIN, "late")
        await _publish(name, {"action": name}, "upload:late")
    for name in TENANTS:
        with in_tenant(name):
            token = USER.token
        body = {"mode": "poll", "token": token, "topics": [{"topic": "upload:late", "since": "last"}]}
        async with post(site.server, body, headers={"X-Tenant": name}) as answer:
            frames = await answer.json()
        assert [frame["action"] for frame in frames] == ["auth_success", "subscribed", name]


async def test_each_is_judged_by_the_own_tenant(site, here):
    """After many looks both are open; the account that is deactivated in one tenant ends that tenant's sockets."""
    async with both_tabs(site) as (acme, globex):
        await asyncio.sleep(2.5 * OFTEN)  # what must not happen takes a look or two
        await marked(site, acme, ACME)
        await marked(site, globex, GLOBEX)
        change(site.databases[ACME], "UPDATE auth_user SET is_active = 0")
        await acme.expect_closed(4005)
        await marked(site, globex, GLOBEX)


async def test_permissions_are_asked_again_of_the_own_tenant(site, here):
    """A permission that one tenant withdraws ends there; the other's, which has the same name, stays."""
    for name in TENANTS:
        change(site.databases[name], SAME_AGAIN, "both")
    async with both_tabs(site) as (acme, globex):
        await acme.watch("both")
        await globex.watch("both")
        change(site.databases[ACME], SAME_AGAIN, "other")
        await acme.expect("unsubscribed", topic="upload:both")
        await asyncio.sleep(2)  # twice REAUTHORIZE_INTERVAL
        await marked(site, globex, GLOBEX)


async def test_access_is_ended_in_the_own_tenant(site, here):
    """``disconnect_user`` and ``revoke`` reach nobody in another tenant."""
    for name in TENANTS:
        change(site.databases[name], SAME_AGAIN, "both")
    async with both_tabs(site) as (acme, globex):
        await acme.watch("both")
        await globex.watch("both")
        with in_tenant(ACME):
            await arevoke("upload:both", 1)
            await acme.expect("unsubscribed", topic="upload:both")
            await adisconnect_user(1)
        await acme.expect_closed(4005)
        await marked(site, globex, GLOBEX)


async def test_a_token_opens_no_socket_of_another_tenant(site, here):
    """The signature is the site's; the token is the tenant's."""
    with in_tenant(ACME):
        token = USER.token
    async with open_tab(site.server, headers={"X-Tenant": GLOBEX}) as tab:
        await tab.send({"type": "auth", "token": token})
        await tab.expect_closed(4003)


async def test_a_socket_of_no_tenant_is_refused(site, here):
    """Nobody knows whose it would be, so it is not accepted."""
    await expect_refused(site.server)


def test_the_doctor_follows_a_message_of_a_tenant(site, here, monkeypatch):
    """Run in a tenant it finds the road whole; run in none it says that, and what to do."""
    answer = site.run("notifications_doctor", "--json")
    (finding,) = [each for each in json.loads(answer.stdout)["checks"] if each["level"] == "error"]
    assert "TENANT could not say whose topic it is" in finding["text"]
    assert "in a tenant" in finding["hint"]

    monkeypatch.setenv("TENANT", ACME)
    answer = site.run("notifications_doctor", "--json")
    assert json.loads(answer.stdout)["healthy"], answer.stdout
    assert [each for each in json.loads(answer.stdout)["checks"] if each["level"] == "error"] == []
