"""Topics that a connection has without asking for them: the option JOIN, through a transport that is a list."""

import asyncio
import json
from types import SimpleNamespace

import pytest
from channels.layers import InMemoryChannelLayer

from notifications.access import authorization
from notifications.access import revocation as access_module
from notifications.access.control import Control
from notifications.access.revocation import access
from notifications.connection import connection as module
from notifications.history import put_in_place
from notifications.history.memory import MemoryStore
from notifications.logs import LogBudget, Outages
from notifications.metrics import tally
from notifications.protocol.frames import CloseCode
from notifications.topics import Topic
from tests.frame_list import opened, user_of
from tests.waiting import await_for

ALICE = user_of(1)
TEAM_7, TEAM_8 = Topic("closed", "7"), Topic("closed", "8")


class Teams:
    """What ``JOIN`` of the kind "closed" says."""

    def __init__(self):
        self.ids = ["7", "8"]
        self.asked = 0
        self.error = None
        self.gate = asyncio.Event()
        self.gate.set()

    async def of(self, user):
        self.asked += 1
        ids = list(self.ids)
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        return ids

    async def asked_again(self):
        """Wait until it has been asked, and has answered, once more."""
        before = self.asked
        await await_for(lambda: self.asked > before + 1, what="another question")


@pytest.fixture
def teams():
    return Teams()


@pytest.fixture(autouse=True)
def configure(settings, teams, monkeypatch):
    """Return a function that changes the settings; to begin with, nothing is kept and nothing asked again."""

    def change(**values):
        settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, **values}

    change(HISTORY_SIZE=0, REAUTHORIZE_INTERVAL=0, TOPICS={"closed": {"JOIN": teams.of}, "order": {}})
    monkeypatch.setattr(access_module, "ASK_LATER_FIRST", 0.01)
    monkeypatch.setattr(access_module, "ASK_LATER_LONGEST", 0.02)
    monkeypatch.setattr(authorization, "outages", Outages())
    for each in (authorization, module):
        monkeypatch.setattr(each, "_refusals" if each is authorization else "_log", LogBudget(each.logger))
    return change


@pytest.fixture
def same_accounts(monkeypatch):
    """Nobody's account has changed; there is no database."""

    async def judge(credentials):
        return [SimpleNamespace(end=None, user=each.user) for each in credentials]

    monkeypatch.setattr(access_module, "judge", judge)


@pytest.fixture
def history():
    """A history in memory; what is published is not told to any connection, which finds it by itself."""
    put_in_place(store := MemoryStore(lambda stamped: None))
    yield store
    put_in_place(None)


@pytest.fixture(autouse=True)
async def nothing_left(configure):
    await asyncio.sleep(0)
    before = tally.connections, tally.subscriptions, tally.unanswered
    yield
    assert (tally.connections, tally.subscriptions, tally.unanswered) == before


async def forward(client, topic, text):
    await client.layer.group_send(topic.group, {"type": "notifications.message", "topic": str(topic), "text": text})


async def expect_joined(client, *topics):
    for topic in topics:
        await client.expect("subscribed", topic=str(topic), recovered=None, joined=True)


async def test_a_connection_has_the_topics_of_its_user_without_asking():
    """It is told so, and gets what is published on them."""
    async with opened(ALICE) as client:
        await expect_joined(client, TEAM_7, TEAM_8)
        await forward(client, TEAM_8, '{"n":1}')

        assert await client.next() == {"n": 1}
        await client.is_served()


async def test_a_token_has_them_as_well(configure):
    async def who(token):
        return user_of(int(token))

    configure(AUTHENTICATE_TOKEN=who)
    async with opened() as client:
        await client.say(type="auth", token="1")
        await client.say(action="ping")

        await client.expect("auth_success")
        frames = [await client.next() for _ in range(3)]  # a ping may be answered while the site takes its time
        assert sorted(frame["action"] for frame in frames) == ["pong", "subscribed", "subscribed"]


class Lazy:
    """As a queryset: it may be read in the thread of its function only."""

    def __iter__(self):
        with pytest.raises(RuntimeError):
            asyncio.get_running_loop()
        return iter([7, "8"])


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    "answer",
    [[7, 8], (each for each in ("7", "8")), {"7": 1, "8": 2}, ["7", "", "x" * 201, None, "7", 8], Lazy()],
    ids=["list", "generator", "keys", "with what is no id", "queryset"],
)
async def test_ids_are_whatever_can_be_listed(configure, answer):
    """What is no id is left out, and what comes twice is joined once; a queryset is read in the thread."""
    configure(TOPICS={"closed": {"JOIN": lambda user: answer}})
    async with opened(ALICE) as client:
        await expect_joined(client, TEAM_7, TEAM_8)
        await client.is_served()


@pytest.mark.parametrize("error", [KeyError("bug"), ValueError("bug"), "7", None, 7], ids=repr)
async def test_a_function_that_fails_has_said_none(configure, teams, caplog, error):
    """It is logged, and the connection lives."""

    async def failing(user):
        if isinstance(error, Exception):
            raise error
        return error

    configure(TOPICS={"closed": {"JOIN": failing}})
    async with opened(ALICE) as client:
        await client.is_served()
    assert "JOIN of kind 'closed' failed" in caplog.text


async def test_what_nobody_could_say_is_joined_later(teams):
    """A database that is away keeps nobody from the connection, and takes no topic from it for good."""
    teams.error = ConnectionError()
    async with opened(ALICE) as client:
        await client.is_served()
        teams.error = None

        await expect_joined(client, TEAM_7, TEAM_8)


async def test_whoever_asks_while_nobody_can_say_is_answered_later(teams):
    """What only JOIN opens is not forbidden before JOIN has said so."""
    teams.error = ConnectionError()
    async with opened(ALICE) as client:
        for topic in ("closed:7", "closed:9"):
            await client.say(action="subscribe", topic=topic)
            await client.expect("error", code="unavailable", topic=topic)
        teams.error = None

        await client.expect("unsubscribed", topic="closed:9")
        await client.expect("subscribed", topic="closed:7", recovered=False, joined=False)  # it is the answer
        await expect_joined(client, TEAM_8)
        await client.say(action="subscribe", topic="closed:9")
        await client.expect("error", code="forbidden")


async def test_whoever_asks_first_is_answered_although_others_have_no_room(teams, configure):
    """A topic that waits has its place, wherever JOIN names it."""
    configure(MAX_SUBSCRIPTIONS=2)
    teams.ids, teams.error = ["7", "8", "9"], ConnectionError()
    async with opened(ALICE) as client:
        await client.say(action="subscribe", topic="closed:9")
        await client.expect("error", code="unavailable", topic="closed:9")
        teams.error = None

        await expect_joined(client, TEAM_7)
        await client.expect("subscribed", topic="closed:9", recovered=False, joined=False)
        await client.is_served()


async def test_whom_authorize_refuses_waits_for_join(teams, configure, same_accounts):
    """While nobody can say what JOIN names, a no of AUTHORIZE, late as it comes, is not the answer."""
    refused = asyncio.Event()

    async def refuse(user, id_):
        if not refused.is_set():
            refused.set()
            raise ConnectionError
        refused.clear()
        return False

    configure(TOPICS={"closed": {"JOIN": teams.of, "AUTHORIZE": refuse}})
    teams.ids, teams.error = ["7"], ConnectionError()
    async with opened(ALICE) as client:
        await client.say(action="subscribe", topic="closed:7")
        await client.expect("error", code="unavailable", topic="closed:7")
        await await_for(lambda: not refused.is_set(), what="the refusal")
        await teams.asked_again()
        await client.is_served()
        teams.error = None

        await client.expect("subscribed", topic="closed:7", recovered=False, joined=False)
        await client.is_served()


async def test_a_public_topic_that_the_client_asked_for_stays(teams, configure, same_accounts):
    """Any user may have it; what only JOIN has given is withdrawn with JOIN."""
    configure(REAUTHORIZE_INTERVAL=0.02, TOPICS={"closed": {"JOIN": teams.of, "PUBLIC": True}})
    async with opened(ALICE) as client:
        await expect_joined(client, TEAM_7, TEAM_8)
        await client.subscribe(TEAM_7)
        teams.ids = []

        await client.expect("unsubscribed", topic="closed:8")
        await teams.asked_again()
        await forward(client, TEAM_7, '{"n":1}')
        assert await client.next() == {"n": 1}
        await client.say(action="unsubscribe", topic="closed:7")
        await client.expect("unsubscribed", topic="closed:7")


async def test_a_subscription_waits_for_the_answer(teams):
    """A client that subscribes at once is not refused because JOIN takes its time."""
    teams.gate.clear()
    async with opened(ALICE) as client:
        await client.say(action="subscribe", topic="closed:7")
        await await_for(lambda: teams.asked, what="the question")
        await client.is_served()
        teams.gate.set()

        await expect_joined(client, TEAM_7, TEAM_8)
        await client.expect("subscribed", topic="closed:7", recovered=None)


async def test_a_team_that_is_joined_or_left_is_found(teams, configure, same_accounts):
    """JOIN is asked again: what is new is joined, what is gone is withdrawn, the rest is left alone."""
    configure(REAUTHORIZE_INTERVAL=0.02)
    async with opened(ALICE) as client:
        await expect_joined(client, TEAM_7, TEAM_8)
        await teams.asked_again()
        await client.is_served()
        teams.ids = ["8", "9"]

        await client.expect("unsubscribed", topic="closed:7")
        await expect_joined(client, Topic("closed", "9"))
        await forward(client, TEAM_7, '{"n":1}')
        await forward(client, TEAM_8, '{"n":2}')
        assert await client.next() == {"n": 2}


async def test_nobody_loses_a_team_because_nobody_can_say(teams, configure, same_accounts):
    """While the database is away everything stays; afterwards the answer counts."""
    configure(REAUTHORIZE_INTERVAL=0.02)
    async with opened(ALICE) as client:
        await expect_joined(client, TEAM_7, TEAM_8)
        teams.error, teams.ids = ConnectionError(), []
        for _ in range(3):
            await teams.asked_again()
        await client.is_served()
        teams.error = None

        await client.expect("unsubscribed")
        await client.expect("unsubscribed")


async def test_one_question_serves_all_connections_of_a_user(teams, configure, same_accounts):
    configure(REAUTHORIZE_INTERVAL=1)
    async with opened(ALICE) as one, opened(ALICE) as other:
        for client in (one, other):
            await expect_joined(client, TEAM_7, TEAM_8)
        as_of = one.connection.joins["closed"] = other.connection.joins["closed"] = -1.0  # due, in the same moment
        teams.asked, teams.ids = 0, ["8"]
        for client in (one, other):
            await client.expect("unsubscribed", topic="closed:7")
        assert one.connection.joins == other.connection.joins != {"closed": as_of}
        assert teams.asked == 1


async def test_there_are_no_more_than_a_socket_may_have(teams, configure, caplog):
    """What is beyond the bound is left out, and logged; what the client asks for then has no room."""
    configure(MAX_SUBSCRIPTIONS=1)
    async with opened(ALICE) as client:
        await expect_joined(client, TEAM_7)
        await client.is_served()
    assert "names more topics than a socket may have" in caplog.text


async def test_what_the_site_has_joined_cannot_be_left():
    async with opened(ALICE) as client:
        await expect_joined(client, TEAM_7, TEAM_8)
        await client.say(action="unsubscribe", topic="closed:7")

        await client.expect("error", code="forbidden", topic="closed:7")
        await forward(client, TEAM_7, '{"n":1}')
        assert await client.next() == {"n": 1}


async def test_what_is_revoked_is_not_joined_by_an_older_answer(teams):
    """JOIN was asked before, and says what was true then."""
    teams.gate.clear()
    async with opened(ALICE) as client:
        await await_for(lambda: teams.asked, what="the question")
        access()._heard(b"", Control("revoke", "1", "closed:7").sign().encode())
        teams.gate.set()

        await expect_joined(client, TEAM_8)
        await client.is_served()


async def test_what_is_revoked_is_not_joined_by_an_answer_that_waits(teams, configure, same_accounts):
    """JOIN could not answer at first; its answer waits behind a slow permission, and the rest of it counts."""
    gate = asyncio.Event()

    async def slow(user, id_):
        return await gate.wait()

    configure(TOPICS={"closed": {"JOIN": teams.of}, "order": {"AUTHORIZE": slow}})
    teams.error = ConnectionError()
    async with opened(ALICE) as client:
        await client.is_served()
        await client.say(action="subscribe", topic="order:1")
        await await_for(lambda: client.connection._work.is_aside, what="the slow question")
        teams.error = None
        await await_for(lambda: len(client.connection._work), what="an answer that waits")
        access()._heard(b"", Control("revoke", "1", "closed:7").sign().encode())
        gate.set()

        await client.expect("subscribed", topic="order:1")
        await expect_joined(client, TEAM_8)
        await client.is_served()


async def test_what_was_revoked_is_joined_by_a_newer_answer(teams, configure, same_accounts):
    """A team that was left and joined again is heard again."""
    configure(REAUTHORIZE_INTERVAL=0.02)
    async with opened(ALICE) as client:
        await expect_joined(client, TEAM_7, TEAM_8)
        access()._heard(b"", Control("revoke", "1", "closed:7").sign().encode())

        await client.expect("unsubscribed", topic="closed:7")
        await expect_joined(client, TEAM_7)


async def test_a_connection_that_is_closed_joins_nothing_more(teams, configure):
    """A layer that is away is not asked a hundred times, nor the site for another kind."""
    layer = InMemoryChannelLayer()
    group_add, added = layer.group_add, []

    async def failing(group, channel):
        added.append(group)
        if len(added) == 2:
            raise ConnectionError
        await group_add(group, channel)

    layer.group_add = failing
    others = Teams()
    configure(TOPICS={"closed": {"JOIN": teams.of}, "order": {"JOIN": others.of}})
    async with opened(ALICE, layer=layer) as client:
        await client.expect_closed(CloseCode.TRY_AGAIN)
        await await_for(lambda: not client.connection._work.busy, what="the end of the work")
    assert (added, others.asked) == ([Topic.for_user(1).group, TEAM_7.group], 0)


async def test_what_is_revoked_ends(teams):
    async with opened(ALICE) as client:
        await expect_joined(client, TEAM_7, TEAM_8)
        access()._heard(b"", Control("revoke", "1", "closed:7").sign().encode())

        await client.expect("unsubscribed", topic="closed:7")


async def test_a_client_that_comes_back_gets_what_it_missed(configure, history):
    """It says where it was, and gets what came since, once and in order, behind the answer."""
    configure(HISTORY_SIZE=100)
    for number in range(1, 4):
        history.publish(TEAM_7, b'{"n":%d}' % number)
    since = (await history.aposition(TEAM_7))._replace(n=1)
    async with opened(ALICE) as client:
        assert (await client.expect("subscribed", joined=True))["id"] == str(since._replace(n=3))
        await expect_joined(client, TEAM_8)
        await client.say(action="subscribe", topic="closed:7", since=str(since))

        await client.expect("subscribed", topic="closed:7", recovered=True, id=str(since))
        assert [(await client.next())["n"] for _ in range(2)] == [2, 3]
        await client.say(action="subscribe", topic="closed:7", since=str(since))  # once
        await client.expect("subscribed", topic="closed:7", recovered=None, id=str(since._replace(n=3)))
        await client.is_served()


async def test_a_client_that_has_missed_nothing_is_told_so(configure, history):
    """Its position is the topic's: whether everything follows is the answer, once."""
    configure(HISTORY_SIZE=100)
    history.publish(TEAM_7, b'{"n":1}')
    since = str(await history.aposition(TEAM_7))
    async with opened(ALICE) as client:
        await expect_joined(client, TEAM_7, TEAM_8)
        for recovered in (True, None):
            await client.say(action="subscribe", topic="closed:7", since=since)
            await client.expect("subscribed", topic="closed:7", recovered=recovered, id=since)
        await client.is_served()


async def test_a_state_comes_first(configure, teams, history):
    """Of a state the latest message follows at once."""
    configure(HISTORY_SIZE=100, TOPICS={"closed": {"JOIN": teams.of, "STATE": True}})
    history.publish(TEAM_7, json.dumps({"n": 1}).encode())
    async with opened(ALICE) as client:
        await client.expect("subscribed", topic="closed:7", joined=True, state=True)
        frames = [await client.next(), await client.next()]

        assert [frame.get("n") for frame in frames if "_meta" in frame] == [1]


async def test_the_own_topic_is_not_joined_twice(configure):
    configure(TOPICS={"user": {"JOIN": lambda user: [user.pk, 2]}})
    async with opened(ALICE) as client:
        await expect_joined(client, Topic("user", "2"))
        await client.is_served()
