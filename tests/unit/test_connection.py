"""The protocol, without a server, without ASGI and without Redis: all that a second transport has to carry."""

import asyncio
import json
import time
from contextvars import ContextVar
from types import SimpleNamespace

import pytest

from notifications.access import authorization
from notifications.access import revocation as access_module
from notifications.access.control import Control, fingerprint
from notifications.access.revocation import access
from notifications.connection import closing, limits
from notifications.connection import connection as module
from notifications.connection.limits import (
    BURST,
    MAX_INVALID_FRAMES,
    MAX_REFUSED_FRAMES,
    MAX_WAITING_FRAMES,
    addresses,
)
from notifications.delivery import flow_control
from notifications.history import get_store
from notifications.metrics import tally
from notifications.protocol.frames import CloseCode
from notifications.testing import redis_outage
from notifications.tokens import make_grant
from notifications.topics import Topic
from tests.cases import cases
from tests.frame_list import FrameList, opened, user_of
from tests.waiting import await_for

pytestmark = pytest.mark.usefixtures("memory_store")
ALICE, BOB = user_of(1), user_of(2)


async def who(token):
    """Tokens are the ids of users."""
    if token == "away":
        raise ConnectionError
    return SimpleNamespace(pk=int(token), is_active=True) if token.isdecimal() else None


class Permissions:
    """What ``AUTHORIZE`` of the kind "order" says: those that begin with "1-" may be watched."""

    def __init__(self):
        self.asked = []
        self.allowed = "1-"
        self.is_away = False
        self.gate = asyncio.Event()
        self.gate.set()

    async def may_watch(self, user, order_id):
        self.asked.append(order_id)
        await self.gate.wait()
        if self.is_away:
            raise ConnectionError
        return order_id.startswith(self.allowed)


@pytest.fixture(autouse=True)
def permissions(settings):
    permissions = Permissions()
    settings.NOTIFICATIONS = {
        **settings.NOTIFICATIONS,
        "HISTORY_SIZE": 0,  # without a history nobody asks Redis
        "AUTHENTICATE_TOKEN": who,
        "TOPICS": {"order": {"AUTHORIZE": permissions.may_watch}, "closed": {}},
    }
    return permissions


@pytest.fixture
def set_limits(settings):
    def change(**values):
        settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, **values}

    return change


@pytest.fixture(autouse=True)
async def nothing_left(permissions):
    """Whatever a test does, its connections leave nothing behind in the process."""
    await asyncio.sleep(0)
    before = tally.connections, tally.subscriptions, tally.unanswered, dict(addresses._open)
    yield
    assert (tally.connections, tally.subscriptions, tally.unanswered, dict(addresses._open)) == before
    assert access()._sockets == {}
    assert module.strangers()._waiting == {}


async def forward(client, topic, text):
    """Do what a listener does."""
    await client.layer.group_send(topic.group, {"type": "notifications.message", "topic": str(topic), "text": text})


# Who it is.


async def test_a_session_opens_a_connection():
    """Whoever shows a session is told who they are, and has their own topic."""
    async with opened(ALICE) as client:
        await forward(client, Topic.for_user(ALICE), '{"n":1}')

        assert await client.next() == {"n": 1}


async def test_a_token_opens_a_connection():
    """The first frame says who it is; what was said behind it waits for the answer."""
    async with opened() as client:
        await client.say(type="auth", token="1")
        await client.say(action="subscribe", topic="order:1-7")
        await client.say(action="ping")

        await client.expect("auth_success", user_id="1", id=None, recovered=None)
        await client.expect("subscribed", topic="order:1-7")
        await client.expect("pong")


@cases(
    ("frame", "code"),
    [
        ('{"action":"ping"}', CloseCode.AUTH_REQUIRED),
        ('{"action":"subscribe_upload","upload_id":"x"}', CloseCode.AUTH_REQUIRED),
        ('{"type":"auth"}', CloseCode.AUTH_REQUIRED),
        ('{"type":"auth","token":7}', CloseCode.AUTH_REQUIRED),
        ('"auth"', CloseCode.AUTH_REQUIRED),
        ("[1]", CloseCode.AUTH_REQUIRED),
        ('{"action":"ping","title":"\\ud83d"}', CloseCode.AUTH_REQUIRED),
        ("nonsense", CloseCode.INVALID_MESSAGES),
        ("", CloseCode.INVALID_MESSAGES),
        ("[1", CloseCode.INVALID_MESSAGES),
        ('{"type":"auth","token":"x"', CloseCode.INVALID_MESSAGES),
        (None, CloseCode.INVALID_MESSAGES),
    ],
)
async def test_a_first_frame_that_is_no_auth_frame_ends_it(frame, code):
    """It is answered with ``auth_error`` and the end; what comes behind it is not read."""
    async with opened() as client:
        await client.say(frame)
        await client.say(type="auth", token="1")

        (answer,) = await client.expect_closed(code)
        assert answer["action"] == "auth_error"


@cases("token", ["", "nobody", "-1", "x" * 16_000])
async def test_a_token_of_nobody_is_refused(token):
    async with opened() as client:
        await client.say(type="auth", token=token)

        (answer,) = await client.expect_closed(CloseCode.AUTH_FAILED)
        assert answer["action"] == "auth_error"


async def test_nobody_is_turned_away_for_good_while_tokens_cannot_be_looked_up():
    """Whoever cannot be asked is away, and the client comes back."""
    async with opened() as client:
        await client.say(type="auth", token="away")

        assert await client.expect_closed(CloseCode.TRY_AGAIN) == []


async def test_no_credentials_in_time_end_it(set_limits):
    set_limits(AUTH_TIMEOUT=0.01)
    async with opened() as client:
        (answer,) = await client.expect_closed(CloseCode.AUTH_TIMEOUT)

        assert answer["action"] == "auth_error"


async def test_a_session_that_is_being_replaced_may_come_back(set_limits):
    """The transport says, at the end of the time, whether the session was one of these."""
    set_limits(AUTH_TIMEOUT=0.01)
    async with opened(is_in_doubt=lambda: True) as client:
        assert await client.expect_closed(CloseCode.TRY_AGAIN) == []


async def test_a_session_that_nobody_could_read_may_come_back():
    async with opened(is_known=False) as client:
        assert await client.expect_closed(CloseCode.TRY_AGAIN) == []


async def test_whoever_has_authenticated_leaves_their_place_to_others(set_limits):
    """The places of those who have not are few, and an address has a half of them."""
    set_limits(MAX_UNAUTHENTICATED=2)
    async with opened() as first:
        await first.say(type="auth", token="1")
        await first.expect("auth_success")
        async with opened() as second:
            assert (first.code, second.code) == (None, None)


async def test_a_second_token_of_the_same_user_is_confirmed():
    async with opened(ALICE) as client:
        await client.say(type="auth", token="1")

        await client.expect("auth_success", user_id="1")
        await client.is_served()


async def test_another_users_token_ends_it():
    async with opened(ALICE) as client:
        await client.say(type="auth", token="2")

        (answer,) = await client.expect_closed(CloseCode.AUTH_FAILED)
        assert answer["action"] == "auth_error"


@pytest.mark.parametrize("way", ["session", "token"])
async def test_a_malformed_position_costs_no_connection(way):
    """A client with a broken memory is still who it is, and is told."""
    client = FrameList()
    await client.open(*([ALICE] if way == "session" else []), since="yesterday" if way == "session" else None)
    if way == "token":
        await client.say(type="auth", token="1", since="yesterday")

    said = [await client.next() for _ in range(2)]

    assert {frame["action"] for frame in said} == {"auth_success", "error"}
    await client.is_served()
    await client.connection.end()


async def test_a_layer_that_cannot_be_joined_lets_it_come_back():
    client = FrameList(layer=SimpleNamespace())
    await client.open(ALICE)

    assert await client.expect_closed(CloseCode.TRY_AGAIN) == []
    await client.connection.end()


# What it subscribes to.


async def test_a_topic_is_delivered_from_its_subscription_to_its_end():
    """Nothing of it comes after ``unsubscribed``; leaving it again is no error."""
    topic = Topic("order", "1-7")
    async with opened(ALICE) as client:
        await forward(client, topic, '{"n":1}')
        await client.subscribe(topic)
        await forward(client, topic, '{"n":2}')
        assert await client.next() == {"n": 2}

        for _ in range(2):
            await client.say(action="unsubscribe", topic=str(topic))
            await client.expect("unsubscribed", topic=str(topic))
        assert client.connection.authorized == {}
        await forward(client, topic, '{"n":3}')
        await forward(client, Topic.for_user(ALICE), '{"n":4}')

        assert await client.next() == {"n": 4}


async def test_whoever_has_been_told_that_they_are_subscribed_misses_nothing():
    """A client may act on the answer, and have something published, before the server's ``send`` has returned."""
    client, topic = FrameList(), Topic("order", "1-7")
    client.returning.clear()
    try:
        assert await client.open(ALICE)
        await client.expect("auth_success")
        await forward(client, Topic.for_user(ALICE), '{"n":1}')
        await is_taken(client)
        client.returning.set()
        assert await client.next() == {"n": 1}

        client.returning.clear()
        await client.subscribe(topic)
        await forward(client, topic, '{"n":2}')
        await is_taken(client)
        client.returning.set()
        assert await client.next() == {"n": 2}
    finally:
        client.returning.set()
        await client.connection.end()


async def is_taken(client):
    """Wait until the connection has taken from its channel what was sent before."""
    (channel,) = client.layer.channels.values()
    await await_for(lambda: channel.empty())
    await asyncio.sleep(0)


async def test_a_second_subscription_doubles_nothing(permissions):
    """It is confirmed, and nobody is asked again."""
    topic = Topic("order", "1-7")
    async with opened(ALICE) as client:
        await client.subscribe(topic)
        await client.subscribe(topic)
        await client.subscribe("user:1")
        await forward(client, topic, '{"n":1}')

        assert await client.next() == {"n": 1}
        await client.is_served()
    assert permissions.asked == ["1-7"]


@pytest.mark.parametrize("topic", ["order:2-7", "closed:7", "user:2"])
async def test_what_is_not_allowed_is_forbidden(topic):
    async with opened(ALICE) as client:
        await client.say(action="subscribe", topic=topic)

        await client.expect("error", code="forbidden", topic=topic)
        await client.is_served()


async def test_a_grant_opens_its_topic_to_its_user_only():
    topic = Topic("closed", "7")
    async with opened(ALICE) as alice, opened(BOB) as bob:
        await alice.subscribe(topic, grant=make_grant(ALICE, topic))
        await bob.say(action="subscribe", topic="closed:7", grant=make_grant(ALICE, topic))

        await bob.expect("error", code="forbidden")


async def test_a_page_that_comes_back_shows_its_grant_again_until_it_is_revoked(monkeypatch):
    """A grant outlives a page; what was made before a ``revoke`` opens nothing any more, what is made later does."""
    topic, now = Topic("closed", "7"), time.time()
    grant = make_grant(ALICE, topic)
    monkeypatch.setattr(time, "time", lambda: now + 3600)
    async with opened(ALICE) as client:
        await client.subscribe(topic, grant=grant)
    await get_store().arevoke_grants(Topic.for_user(ALICE).full_id, topic)
    async with opened(ALICE) as client:
        await client.say(action="subscribe", topic=str(topic), grant=grant)
        await client.expect("error", code="forbidden", topic=str(topic))
        monkeypatch.setattr(time, "time", lambda: now + 3602)
        await client.subscribe(topic, grant=make_grant(ALICE, topic))


async def test_a_grant_of_which_it_is_not_known_whether_it_was_revoked_opens_nothing_and_ends_nothing():
    """The client is told to come back."""
    topic = Topic("closed", "7")
    async with opened(ALICE) as client:
        with redis_outage():
            await client.say(action="subscribe", topic=str(topic), grant=make_grant(ALICE, topic))
            await client.expect_closed(CloseCode.TRY_AGAIN)


async def test_the_own_topic_cannot_be_left():
    async with opened(ALICE) as client:
        await client.say(action="unsubscribe", topic="user:1")

        await client.expect("error", code="forbidden", topic="user:1")


async def test_there_is_a_bound_of_subscriptions(set_limits):
    """Beside the user's own; leaving one makes room."""
    set_limits(MAX_SUBSCRIPTIONS=2)
    async with opened(ALICE) as client:
        for number in range(2):
            await client.subscribe(f"order:1-{number}")
        await client.say(action="subscribe", topic="order:1-2")
        await client.expect("error", code="too_many_subscriptions", topic="order:1-2")
        await client.say(action="unsubscribe", topic="order:1-0")
        await client.expect("unsubscribed")

        await client.subscribe("order:1-2")


async def test_what_nobody_could_say_is_answered_later(permissions, monkeypatch):
    """``unavailable`` first; then ``subscribed``, of which it is known that it is no answer."""
    monkeypatch.setattr(access_module, "ASK_LATER_FIRST", 0.01)
    permissions.is_away = True
    async with opened(ALICE) as client:
        await client.say(action="subscribe", topic="order:1-7")
        await client.expect("error", code="unavailable", topic="order:1-7")
        permissions.is_away = False

        await client.expect("subscribed", topic="order:1-7", recovered=False)
        assert client.connection.authorized.keys() == {"order:1-7"}


async def test_what_is_not_wanted_any_more_is_not_answered_later(permissions):
    permissions.is_away = True
    async with opened(ALICE) as client:
        await client.say(action="subscribe", topic="order:1-7")
        await client.expect("error", code="unavailable")
        await client.say(action="unsubscribe", topic="order:1-7")
        await client.expect("unsubscribed")

        client.connection.admit("order:1-7", 0.0)  # the caller could not know
        await client.is_served()


async def test_a_permission_is_asked_again(permissions, set_limits):
    """A no ends the subscription."""
    set_limits(REAUTHORIZE_INTERVAL=0.05)
    async with opened(ALICE) as client:
        await client.subscribe("order:1-7")
        permissions.allowed = "2-"

        await client.expect("unsubscribed", topic="order:1-7")


async def test_permissions_of_many_are_asked_again_together(permissions, set_limits):
    """However many are due, they are not asked one after the other; each no ends its subscription."""
    calls, allowed = [], ["1-"]

    async def may_watch(pairs):
        calls.append(len(pairs))
        return [id_.startswith(tuple(allowed)) for _, id_ in pairs]

    set_limits(REAUTHORIZE_INTERVAL=1, TOPICS={"order": {"AUTHORIZE_MANY": may_watch}})
    async with opened(ALICE) as client:
        for number in range(20):
            await client.subscribe(f"order:1-{number}")
        calls.clear()
        allowed[:] = ["1-1"]
        authorized = client.connection.authorized
        authorized.update(dict.fromkeys(authorized, -1.0))  # due, in the same moment

        ended = {(await client.expect("unsubscribed"))["topic"] for _ in range(9)}
        assert ended == {f"order:1-{number}" for number in (0, *range(2, 10))}
        assert max(calls) > access_module.MAX_QUESTIONS


async def test_ids_that_a_function_fails_for_keep_nobody_else_waiting(permissions, set_limits):
    """Whoever has a page full of what was deleted has no answer; that says nothing of what others ask about."""

    async def may_watch(pairs):
        return [{"1-7": 1}[id_] == user.pk for user, id_ in pairs]

    set_limits(TOPICS={"order": {"AUTHORIZE_MANY": may_watch}})
    async with opened(BOB) as bob, opened(ALICE) as alice:
        for number in range(2 * authorization.OUT_AFTER):
            await bob.say(action="subscribe", topic=f"order:deleted-{number}")
            await bob.expect("error", code="unavailable")
        await alice.say(action="subscribe", topic="order:1-7")

        await alice.expect("subscribed", topic="order:1-7")


async def test_a_permission_is_asked_in_the_context_of_the_handshake(permissions, settings):
    """There a middleware has noted whose request it is; frames may come in any other."""
    tenant = ContextVar("tenant")
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "TENANT": tenant.get}
    tenant.set("acme")
    async with opened(ALICE) as client:
        await await_for(lambda: not client.connection._work.busy, what="the end of what began in that context")
        tenant.set("globex")
        await client.say(action="subscribe", topic="order:1-7")
        await client.expect("subscribed")

        assert list(client.connection.authorized) == ["order:acme/1-7"]


async def test_a_ping_is_answered_while_a_permission_is_asked(permissions):
    """What the site takes long for holds up no sign of life."""
    permissions.gate.clear()
    async with opened(ALICE) as client:
        await client.say(action="subscribe", topic="order:1-7")
        await await_for(lambda: permissions.asked, what="the question")
        await client.is_served()
        permissions.gate.set()

        await client.expect("subscribed")


# What it says.


@cases(
    ("frame", "code"),
    [
        ("", "invalid_message"),
        ("[]", "invalid_message"),
        ('"ping"', "invalid_message"),
        ('{"action":"ping"', "invalid_message"),
        (None, "invalid_message"),
        ("{}", "invalid_message"),
        ('{"action":["ping"]}', "invalid_message"),
        ('{"action":"subscribe_upload"}', "invalid_message"),
        ('{"action":"subscribe_upload","upload_id":7}', "invalid_message"),
        ('{"action":"subscribe_upload","upload_id":""}', "invalid_message"),
        (json.dumps({"action": "subscribe_upload", "upload_id": "x" * 201}), "invalid_message"),
        ('{"action":"subscribe","topic":"order"}', "invalid_message"),
        ('{"action":"subscribe","topic":"nokind:7"}', "invalid_message"),
        ('{"action":"subscribe","topic":"order:1","since":"yesterday"}', "invalid_message"),
        ('{"action":"subscribe","topic":"order:\\ud800"}', "invalid_message"),
        ("[" * 4000, "invalid_message"),
        ('{"a":' * 800, "invalid_message"),
        (json.dumps({"action": "ping", "fill": "x" * 4096}), "invalid_message"),
        (json.dumps({"type": "auth", "token": "x" * 16_400}), "invalid_message"),
        ('{"action":"auth_success","user_id":"1"}', "unknown_action"),
    ],
)
async def test_a_frame_that_makes_no_sense_is_an_error_and_the_connection_lives(frame, code):
    async with opened(ALICE) as client:
        await client.say(frame)

        assert (await client.expect("error", code=code))["message"]
        await client.is_served()


async def test_repeated_nonsense_ends_it():
    """Ten in a row do; nine do not, however often."""
    async with opened(ALICE) as client:
        for _ in range(2):
            for _ in range(MAX_INVALID_FRAMES - 1):
                await client.say("nonsense")
                await client.expect("error", code="invalid_message")
            await client.is_served()
        for _ in range(MAX_INVALID_FRAMES):
            await client.say("nonsense")

        assert len(await client.expect_closed(CloseCode.INVALID_MESSAGES)) == MAX_INVALID_FRAMES


async def test_haste_is_told_once_and_then_ends_it(monkeypatch):
    monkeypatch.setattr(limits, "RATE", 0.0)
    async with opened(ALICE) as client:
        for _ in range(BURST):
            await client.is_served()
        for _ in range(MAX_REFUSED_FRAMES):
            await client.say(action="ping")

        (answer,) = await client.expect_closed(CloseCode.TOO_SLOW)
        assert answer["code"] == "rate_limited"


async def test_frames_that_wait_are_bounded(permissions):
    """What comes while a permission is asked waits, up to a bound."""
    permissions.gate.clear()
    async with opened(ALICE) as client:
        await client.say(action="subscribe", topic="order:1-7")
        await await_for(lambda: permissions.asked, what="the question")
        for number in range(MAX_WAITING_FRAMES):
            client.connection._pace = limits.Pace()
            await client.say(action="unsubscribe", topic=f"order:1-{number}")
            assert client.code is None
        client.connection._pace = limits.Pace()
        await client.say(action="unsubscribe", topic="order:1-8")

        assert await client.expect_closed(CloseCode.TOO_SLOW) == []


async def test_a_user_has_so_many_connections_and_no_more(set_limits):
    set_limits(MAX_CONNECTIONS_PER_USER=1)
    async with opened(ALICE), opened() as second:
        await second.say(type="auth", token="1")

        assert await second.expect_closed(CloseCode.TOO_MANY_CONNECTIONS) == []


async def test_an_address_has_so_many_connections_and_no_more(set_limits):
    """Others are not meant."""
    set_limits(MAX_CONNECTIONS_PER_ADDRESS=1)
    async with opened(ALICE), opened(address="192.0.2.2"), opened() as second:
        assert await second.expect_closed(CloseCode.TOO_MANY_CONNECTIONS) == []


async def test_those_who_say_nothing_give_way_to_others(set_limits):
    """The oldest goes; when as many are still on their way out, the next is not even let in."""
    set_limits(MAX_UNAUTHENTICATED=2)
    async with opened() as first, opened() as second:
        assert await first.expect_closed(CloseCode.TOO_MANY_CONNECTIONS) == []
        assert second.code is None

        refused = FrameList()
        assert not await refused.open()
        assert refused.frames == []
        await refused.connection.end()


# What ends it.


def told(do, user, what=""):
    access()._heard(b"", Control(do, Topic.for_user(user).full_id, what).sign().encode())


async def test_access_that_ends_ends_it():
    """Whatever it is busy with; other users stay."""
    async with opened(ALICE) as alice, opened(BOB) as bob:
        told("disconnect", ALICE)

        (answer,) = await alice.expect_closed(CloseCode.ACCESS_REVOKED)
        assert answer == {"action": "auth_error", "message": "access was revoked"}
        await bob.is_served()


async def test_the_end_of_a_session_ends_its_connections_only():
    async with opened(ALICE, session_key="one") as one, opened(ALICE, session_key=None) as other:
        told("disconnect", ALICE, fingerprint("one"))

        (answer,) = await one.expect_closed(CloseCode.ACCESS_REVOKED)
        assert answer["message"] == "logged out"
        await other.is_served()


async def test_a_client_that_may_come_back_is_told_nothing_that_sounds_final():
    """Where sessions cannot be told apart, each of the user's is to show itself again."""
    async with opened(ALICE) as client:
        client.connection.end_access(CloseCode.TRY_AGAIN, "a session of this user ended")

        assert await client.expect_closed(CloseCode.TRY_AGAIN) == []


async def test_nothing_is_begun_for_a_client_that_is_closed(permissions):
    """What it said before, and what waited, is forgotten."""
    permissions.gate.clear()
    async with opened(ALICE) as client:
        for number in range(3):
            await client.say(action="subscribe", topic=f"order:1-{number}")
        await await_for(lambda: permissions.asked, what="the question")
        told("disconnect", ALICE)
        await client.expect_closed(CloseCode.ACCESS_REVOKED)
        permissions.gate.set()
        await await_for(lambda: not client.connection._work.busy, what="the end of its work")

    assert permissions.asked == ["1-0"]


async def test_a_permission_that_is_withdrawn_ends_its_subscription():
    topic = Topic("order", "1-7")
    async with opened(ALICE) as client:
        await client.subscribe(topic)
        told("revoke", ALICE, str(topic))

        await client.expect("unsubscribed", topic=str(topic))
        await client.is_served()


async def test_a_permission_that_is_withdrawn_while_it_is_asked_for_is_not_given(permissions):
    """The answer may be older than the withdrawal: it is asked for again."""
    permissions.gate.clear()
    async with opened(ALICE) as client:
        await client.say(action="subscribe", topic="order:1-7")
        await await_for(lambda: permissions.asked, what="the question")
        told("revoke", ALICE, "order:1-7")
        permissions.gate.set()

        await client.expect("error", code="unavailable")


async def test_a_client_that_never_answers_is_given_up(set_limits):
    """After two pings that it did not answer."""
    set_limits(HEARTBEAT_INTERVAL=0.02)
    async with opened(ALICE) as client:
        pings = await client.expect_closed(CloseCode.TOO_SLOW)

        assert [ping["action"] for ping in pings] == ["ping", "ping"]


async def test_a_client_that_answers_is_kept(set_limits):
    set_limits(HEARTBEAT_INTERVAL=0.02)
    async with opened(ALICE) as client:
        numbers = []
        for _ in range(4):
            ping = await client.expect("ping")
            numbers.append(ping["n"])
            await client.say(action="pong", n=ping["n"])

        assert numbers == sorted(set(numbers))
        await client.is_served()


@pytest.fixture
def small_bound(monkeypatch):
    """Let any frame be more than a client may owe."""
    monkeypatch.setattr(flow_control, "BOUND", 10)


async def beat(client):
    """Have the heartbeat's turn come, and return the number of the ping; None if the client was given up."""
    heartbeat = client.connection._heartbeat
    if not heartbeat.beat():
        return None
    await heartbeat._ping
    return (await client.expect("ping"))["n"]


async def test_a_slow_client_that_confirms_is_kept(small_bound):
    """However long it stays behind, as long as it confirms something between two pings."""
    async with opened(ALICE) as client:
        client.connection.ping()
        number = (await client.expect("ping"))["n"]
        for _ in range(4):
            following = await beat(client)
            await client.say(action="pong", n=number)
            assert client.connection.paused
            number = following
        assert await beat(client)

        await client.say(action="unsubscribe", topic="order:1-7")  # which is a sign of life, and confirms nothing
        await client.expect("unsubscribed")
        assert await beat(client) is None


async def test_a_client_that_only_pings_is_kept(small_bound):
    """The replaced service's client answers no ping; its own say that it reads."""
    async with opened(ALICE) as client:
        await beat(client)
        await client.is_served()

        assert client.connection.paused
        assert await beat(client)


async def test_a_server_that_stops_says_so(monkeypatch):
    monkeypatch.setattr(closing, "RESTART_SPREAD", 0.01)
    monkeypatch.setattr(closing, "FLUSH", 0.01)
    async with opened(ALICE) as client:
        await client.connection.server_stops()

        assert await client.expect_closed(CloseCode.SERVICE_RESTART) == []


async def test_what_is_said_after_the_end_is_not_heard(permissions):
    async with opened(ALICE) as client:
        client.connection.end_access(CloseCode.TRY_AGAIN, "")
        await client.expect_closed(CloseCode.TRY_AGAIN)
        await client.say(action="subscribe", topic="order:1-7")
        await forward(client, Topic.for_user(ALICE), '{"n":1}')
        await asyncio.sleep(0.01)

        assert client.frames == []
        assert permissions.asked == []


# What a transport may do.


async def test_a_client_that_has_gone_is_told_nothing_more():
    """The transport ends the connection in its own time: nothing is closed before."""
    async with opened(ALICE) as client:
        client.error = ConnectionResetError()
        await forward(client, Topic.for_user(ALICE), '{"n":1}')
        await client.say(action="ping")
        client.error = None
        await forward(client, Topic.for_user(ALICE), '{"n":2}')
        await asyncio.sleep(0.01)

        assert client.frames == []
        assert client.code is None


async def test_a_transport_that_breaks_lets_the_client_come_back():
    async with opened(ALICE) as client:
        client.error = ValueError()
        await forward(client, Topic.for_user(ALICE), '{"n":1}')

        assert await client.expect_closed(CloseCode.TRY_AGAIN) == []


async def test_a_client_that_does_not_read_is_closed_all_the_same(monkeypatch):
    """The frame that says why has its time, and the close follows without it."""
    monkeypatch.setattr(closing, "LAST_WORDS", 0.01)
    async with opened(ALICE) as client:
        client.reading.clear()
        await forward(client, Topic.for_user(ALICE), '{"n":1}')
        told("disconnect", ALICE)

        assert await client.expect_closed(CloseCode.ACCESS_REVOKED) == []


class OddError(BaseException):
    """As ``FunctionTimedOut`` of func_timeout and ``Timeout`` of gevent are."""


@pytest.mark.parametrize("error", [ConnectionResetError, ValueError, OddError, asyncio.CancelledError])
async def test_a_client_that_cannot_be_told_why_is_closed_all_the_same(error):
    """Whatever a middleware raises for the frame that says why: access that has ended must not leave a socket open."""
    async with opened(ALICE) as client:
        client.error = error()
        told("disconnect", ALICE)

        assert await client.expect_closed(CloseCode.ACCESS_REVOKED) == []


async def test_a_client_that_does_not_read_gets_all_in_order_when_it_does():
    async with opened(ALICE) as client:
        client.reading.clear()
        for number in range(5):
            await forward(client, Topic.for_user(ALICE), f'{{"n":{number}}}')
        await asyncio.sleep(0)
        assert client.frames == []
        client.reading.set()

        assert [(await client.next())["n"] for _ in range(5)] == list(range(5))


async def test_a_message_costs_no_task():
    """The hot road: what a transport takes at once is sent without a task being made or woken for it."""
    async with opened(ALICE) as client:
        await client.is_served()
        tasks, made = asyncio.all_tasks(), []

        def making(loop, coroutine, **rest):
            made.append(coroutine)
            return asyncio.Task(coroutine, loop=loop, **rest)

        loop = asyncio.get_running_loop()
        loop.set_task_factory(making)
        try:
            for number in range(10):
                client.connection._delivery._take({"topic": "user:1", "text": f'{{"n":{number}}}'})
            assert [(await client.next())["n"] for _ in range(10)] == list(range(10))
        finally:
            loop.set_task_factory(None)

        assert made == []
        assert asyncio.all_tasks() <= tasks


async def test_an_end_that_is_cancelled_releases_everything(set_limits):
    """As by a server that stops while a function of the site takes its time to be cancelled."""
    asked, release = asyncio.Event(), asyncio.Event()

    async def linger(user, order_id):
        asked.set()
        try:
            await release.wait()
        except asyncio.CancelledError:
            await release.wait()
            raise

    set_limits(TOPICS={"order": {"AUTHORIZE": linger}})
    client = FrameList()
    assert await client.open(ALICE)
    await client.say(action="subscribe", topic="order:1-7")
    await asked.wait()

    ending = asyncio.create_task(client.connection.end())
    for _ in range(3):
        await asyncio.sleep(0)
    ending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await ending
    release.set()

    assert client.layer.groups == {}
