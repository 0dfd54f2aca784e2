"""Guests, and the topic of everybody: who is admitted, what they may read, and what bounds them."""

import asyncio
import json

import pytest
from django.test import Client

from notifications import Topic, TopicError, disconnect_user, publish_to_all, publisher
from notifications.access import authorization
from notifications.access.authentication import GUEST as GUEST_USER
from notifications.access.revocation import access
from notifications.conf import load
from notifications.connection import limits
from notifications.connection.limits import GUEST_SUBSCRIPTIONS, Senders, guests
from notifications.history import put_in_place
from notifications.history.memory import MemoryStore
from notifications.logs import LogBudget
from notifications.metrics import tally
from notifications.protocol import frames
from notifications.protocol.frames import CloseCode, decode, decode_request
from notifications.testing import captured
from notifications.tokens import make_grant
from tests.frame_list import FrameList, opened, user_of
from tests.testsite import tenancy

ALICE = user_of(1)
ALL = Topic.checked_elsewhere("site:all")
GUEST = {"type": "auth", "guest": True}


async def ask_nobody(*_):
    """Stand for the site's functions, which expect a user."""
    pytest.fail("a function of the site was called")


@pytest.fixture(autouse=True)
def configure(settings, monkeypatch):
    """Return a function that changes the settings; to begin with, guests are admitted and nothing is kept."""

    def change(**values):
        settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, **values}

    kinds = {
        "site": {},
        "news": {"PUBLIC": True},
        "team": {"JOIN": ask_nobody},
        "order": {"AUTHORIZE": ask_nobody},
        "closed": {"JOIN": ["all"]},
    }
    change(HISTORY_SIZE=0, GUESTS=True, TOPICS=kinds, AUTHENTICATE_TOKEN=ask_nobody)
    monkeypatch.setattr(limits, "guests_frames", Senders())
    return change


@pytest.fixture(autouse=True)
async def nothing_left(configure):
    await asyncio.sleep(0)
    before = tally.connections, tally.subscriptions, tally.unanswered, guests.open
    yield
    assert (tally.connections, tally.subscriptions, tally.unanswered, guests.open) == before


class Visit:
    """``async with Visit() as client``: a guest who has been welcomed, and has what everybody has."""

    def __init__(self, **fields):
        self._opened = opened(**fields)

    async def __aenter__(self) -> FrameList:
        client = await self._opened.__aenter__()
        await client.say(GUEST)
        await client.expect("auth_success", user_id=None, id=None, recovered=None)
        await client.expect("subscribed", topic="site:all", joined=True)
        return client

    async def __aexit__(self, *error):
        return await self._opened.__aexit__(*error)


async def forward(client, topic, text):
    event = {"type": "notifications.message", "topic": str(topic), "text": text}
    await client.layer.group_send(topic.group, event)


# Who is admitted.


async def test_a_guest_has_what_is_everybodys():
    """Without asking, and no topic of their own."""
    async with Visit() as client:
        await forward(client, ALL, '{"n":1}')

        assert await client.next() == {"n": 1}
        await client.is_served()


@pytest.mark.parametrize("guests", [False, None], ids=["off", "not set"])
async def test_without_the_setting_nobody_is_admitted(configure, settings, guests):
    """The client is told not to come back, and gets nothing."""
    configure(GUESTS=False)
    if guests is None:
        settings.NOTIFICATIONS = {key: value for key, value in settings.NOTIFICATIONS.items() if key != "GUESTS"}
    async with opened() as client:
        await client.say(GUEST)

        (said,) = await client.expect_closed(CloseCode.AUTH_FAILED)
        assert said["action"] == "auth_error"


@pytest.mark.parametrize(
    "frame",
    [
        {"type": "auth"},
        {"type": "auth", "guest": False},
        {"type": "auth", "guest": 1},
        {"type": "auth", "guest": "true"},
        {"action": "subscribe", "topic": "news:1"},
    ],
    ids=str,
)
async def test_nobody_becomes_a_guest_by_mistake(frame):
    """A client without a token has to say what it is."""
    async with opened() as client:
        await client.say(frame)
        await client.say(action="ping")

        said = await client.expect_closed(CloseCode.AUTH_REQUIRED)
        assert "auth_success" not in [each["action"] for each in said]


async def test_a_session_counts_for_more(configure):
    """Whoever is logged in is not made a guest by an old page that asks for it."""
    configure(TOPICS={"site": {}})
    async with opened(ALICE) as client:
        await client.expect("subscribed", topic="site:all", joined=True)
        await client.say(GUEST)

        await client.is_served()
        assert client.connection.user is ALICE
        assert not client.connection.is_guest


async def test_a_guest_does_not_become_a_user_on_the_same_connection(configure):
    """A page whose visitor logs in connects again."""

    async def who(token):
        return ALICE

    configure(AUTHENTICATE_TOKEN=who)
    async with Visit() as client:
        await client.say(type="auth", token="1")

        await client.expect_closed(CloseCode.AUTH_FAILED)


async def test_a_guest_who_says_so_twice_is_one():
    async with Visit() as client:
        await client.say(GUEST)

        await client.is_served()
        assert guests.open == 1


# What they may read.


async def test_a_guest_may_read_public_kinds_and_leave_them():
    news = Topic("news", "today")
    async with Visit() as client:
        await client.subscribe(news)
        await forward(client, news, '{"n":1}')
        assert await client.next() == {"n": 1}

        await client.say(action="unsubscribe", topic="news:today")
        await client.expect("unsubscribed", topic="news:today")


@pytest.mark.parametrize("topic", ["order:7", "team:7", "closed:all", "closed:1", "user:1", "user:None", "upload:7"])
async def test_a_guest_may_read_nothing_else(topic, configure, settings):
    """None of the site's functions is asked, whatever the topic and whatever grant comes with it."""
    configure(TOPICS={**settings.NOTIFICATIONS["TOPICS"], "upload": {}})
    grant = make_grant(ALICE, Topic.parse(topic))
    async with Visit() as client:
        for fields in ({}, {"grant": grant}, {"since": "last"}):
            await client.say(action="subscribe", topic=topic, **fields)
            await client.expect("error", code="forbidden", topic=topic)

        await forward(client, Topic.parse(topic), '{"n":1}')
        await client.is_served()
        assert client.connection.joins == {}


async def test_what_everybody_has_a_guest_cannot_leave():
    async with Visit() as client:
        await client.say(action="unsubscribe", topic="site:all")

        await client.expect("error", code="forbidden")


async def test_a_list_of_a_kind_that_is_not_public_is_for_users(configure):
    """``closed:all`` is joined by every user, and by no guest."""
    configure(TOPICS={"site": {}, "closed": {"JOIN": ["all"]}})
    async with opened(ALICE) as client:
        for topic in ("site:all", "closed:all"):
            await client.expect("subscribed", topic=topic, joined=True)
    async with Visit() as client:
        await client.is_served()


# What bounds them.


async def test_a_guest_has_fewer_topics():
    """GUEST_SUBSCRIPTIONS, with those that everybody has."""
    async with Visit() as client:
        for n in range(GUEST_SUBSCRIPTIONS - 1):
            await client.subscribe(f"news:{n}")

        await client.say(action="subscribe", topic="news:more")
        await client.expect("error", code="too_many_subscriptions")
        await client.say(action="subscribe", topic="order:7")
        await client.expect("error")
        await client.is_served()


async def test_what_everybody_has_is_bounded_as_well(configure, caplog):
    """What is beyond the bound is left out, and logged, for a guest and for a user."""
    configure(MAX_SUBSCRIPTIONS=30, TOPICS={"news": {"PUBLIC": True, "JOIN": [str(n) for n in range(35)]}})
    for user, frame, room in ((None, GUEST, 20), (ALICE, None, 30)):
        async with opened(user) as client:
            if frame:
                await client.say(frame)
                await client.expect("auth_success")
            for number in range(room):
                await client.expect("subscribed", topic=f"news:{number}", joined=True)
            await client.is_served()
            assert f"than a socket may have; {35 - room} left out" in caplog.text


async def test_guests_are_as_many_as_the_setting_says(configure):
    """What is beyond may come back; users are not counted, and whoever leaves makes room."""
    configure(MAX_GUESTS=1, TOPICS={"site": {}})
    async with Visit():
        async with opened() as second:
            await second.say(GUEST)
            await second.expect_closed(CloseCode.TOO_MANY_CONNECTIONS)
        async with opened(ALICE):
            pass
    async with Visit():
        pass


async def test_an_address_has_its_bound(configure):
    """MAX_CONNECTIONS_PER_ADDRESS is for guests as well."""
    configure(MAX_CONNECTIONS_PER_ADDRESS=1)
    async with Visit():
        client = FrameList()
        await client.open()
        await client.expect_closed(CloseCode.TOO_MANY_CONNECTIONS)
        await client.connection.end()


async def test_guests_of_one_address_share_a_pace(configure):
    """Reconnecting does not reset it, and other addresses are not held up."""
    configure(MAX_CONNECTIONS_PER_USER=1)
    async with Visit() as client:
        for _ in range(limits.BURST - 20):
            await client.say(action="ping")
            await client.expect("pong")
    async with Visit() as client:
        for _ in range(limits.BURST - 20):
            await client.say(action="ping")
        while (frame := await client.next())["action"] == "pong":
            pass
        assert frame["code"] == "rate_limited"
    async with Visit(address="192.0.2.2") as other:
        await other.is_served()


async def test_nothing_watches_over_a_guest():
    """There is no access that could end, no account to look up, and no permission to ask for again."""
    async with Visit():
        assert access()._sockets == {}
    for nobody in (None, user_of(None), GUEST_USER):
        with pytest.raises(TopicError):
            disconnect_user(nobody)


# The frames.


def test_the_frames_of_a_guest():
    assert decode(json.dumps(GUEST)) == frames.Guest(guest=True)
    assert decode(json.dumps({**GUEST, "token": None})) == frames.Guest(guest=True)
    assert decode_request(b'{"mode":"poll","guest":true}').auth == frames.Guest(guest=True)
    assert decode_request(b'{"mode":"poll","token":"t","guest":true}').auth == frames.Auth(token="t")
    assert decode_request(b'{"mode":"poll"}').auth is None


# The topic of everybody.


@pytest.fixture
def store():
    put_in_place(MemoryStore(lambda stamped: None))
    yield
    put_in_place(None)


async def test_one_call_for_all(configure):
    """It is published on ``site:all``, with the options of ``publish``."""
    with captured() as sent:
        publish_to_all({"n": 1}, idempotency_key="a")
        await publisher.apublish_to_all({"n": 1}, idempotency_key="a")

    assert [(each.topic, each.message) for each in sent] == [("site:all", {"n": 1})]


def test_with_tenants_it_is_for_the_current_one(configure):
    """What one tenant tells everybody is not for the pages of another."""
    configure(TENANT="tests.testsite.tenancy.current")
    with captured() as sent:
        for name in ("acme", "globex"):
            token = tenancy.tenant.set(name)
            publish_to_all({"n": name})
            tenancy.tenant.reset(token)

    assert [(each.topic, each.message["n"]) for each in sent] == [
        ("site:acme/all", "acme"),
        ("site:globex/all", "globex"),
    ]


def test_a_guest_is_answered_where_nothing_can_wait(configure):
    """Under WSGI a poll has what the histories have, and asks no database."""
    configure(HISTORY_SIZE=10)
    topics = [{"topic": topic, "since": "last"} for topic in ("site:all", "user:1")]
    with captured():
        publish_to_all({"n": 1})
        body = {"mode": "poll", "guest": True, "topics": topics}
        frames = Client().post("/notifications/stream/", body, content_type="application/json").json()
        configure(GUESTS=False)
        refused = Client().post("/notifications/stream/", body, content_type="application/json").json()

    assert frames[0] == {"action": "auth_success", "user_id": None, "id": None, "recovered": None}
    assert [each["n"] for each in frames if "n" in each] == [1]
    assert [each["topic"] for each in frames if each.get("action") == "error"] == ["user:1"]
    assert [each["action"] for each in refused] == ["auth_error", "close"]


def test_it_has_to_be_set(configure):
    """Without the kind nobody would receive it, and the error says what to do."""
    configure(TOPICS={})

    with pytest.raises(TopicError, match='add "site"'):
        publish_to_all({})


@pytest.mark.parametrize(
    ("options", "public", "joined"),
    [
        ({}, True, ("all",)),
        ({"HISTORY_SIZE": 5, "STATE": True}, True, ("all",)),
        ({"AUTHORIZE": ask_nobody}, False, ()),
        ({"AUTHORIZE_MANY": ask_nobody}, False, ()),
        ({"JOIN": ask_nobody}, False, ()),
        ({"PUBLIC": False}, False, ()),
        ({"PUBLIC": True}, True, ()),
        ({"JOIN": ["all"]}, False, ("all",)),
    ],
    ids=["nothing", "other options", "authorize", "authorize many", "join", "closed", "public", "list"],
)
def test_a_site_that_says_who_may_read_it_says_all(options, public, joined):
    """What was not everybody's does not become so by an update."""
    kind = load({"REDIS_URL": "redis://127.0.0.1:1/0", "TOPICS": {"site": options}}).kinds["site"]

    assert (kind.PUBLIC, kind.joined_by_all) == (public, joined)


async def test_what_is_no_topic_is_left_out(configure, caplog, monkeypatch):
    """An id that the kind refuses costs nobody the connection."""
    monkeypatch.setattr(authorization, "_refusals", LogBudget(authorization.logger))

    def refuse(id_):
        raise ValueError

    configure(TOPICS={"site": {"CLEAN_ID": refuse}})
    async with opened(ALICE) as client:
        await client.is_served()
    assert "JOIN of kind 'site' names something that is not a topic" in caplog.text


@pytest.mark.usefixtures("store")
async def test_a_page_that_comes_back_has_what_it_missed(configure):
    """By the position that it has kept, or was rendered with."""
    configure(HISTORY_SIZE=10)
    with_history = FrameList()
    first = publisher.publish(ALL, {"n": 1})
    publisher.publish(ALL, {"n": 2})
    try:
        await with_history.open()
        await with_history.say(GUEST)
        await with_history.expect("auth_success", user_id=None)
        await with_history.expect("subscribed", topic="site:all", joined=True, recovered=None)
        await with_history.say(action="subscribe", topic="site:all", since=first)

        await with_history.expect("subscribed", topic="site:all", recovered=True)
        assert (await with_history.next())["n"] == 2
    finally:
        await with_history.connection.end()
