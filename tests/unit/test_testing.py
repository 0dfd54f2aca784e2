"""The kit for the tests of sites: what it captures is what would be published, what it stands in for answers alike."""

import asyncio
import threading
import time
from decimal import Decimal
from unittest.mock import ANY
from uuid import UUID, uuid4

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.contrib.auth.models import AnonymousUser, User
from django.db import transaction
from django.test import TestCase, override_settings

from notifications import (
    MessageError,
    PublishError,
    Topic,
    TopicError,
    apublish,
    publish,
    publish_progress,
    publish_to_user,
)
from notifications.access import callbacks
from notifications.broker import clients
from notifications.connection.limits import MAX_INVALID_FRAMES
from notifications.history import get_store
from notifications.history.position import Position
from notifications.messages import Notice, UploadProgress, UploadProgressPayload
from notifications.metrics import counts
from notifications.testing import (
    Published,
    assert_notified,
    assert_published,
    captured,
    connect_as,
    redis_outage,
    sockets,
)
from tests.cases import cases


@pytest.fixture(autouse=True)
def short_quiet(monkeypatch):
    """What does not come does not come soon either."""
    monkeypatch.setattr(sockets, "QUIET", 0.01)


@pytest.fixture(autouse=True)
def nothing_stands_in():
    """Each block gives Redis its place back."""
    site = get_store()
    yield
    assert get_store() is site
    assert callbacks.in_thread is None


@pytest.fixture
def ada():
    return User(pk=7, username="ada")


# Capturing


def test_what_is_published_is_captured_as_browsers_would_get_it():
    """captured() yields topic, message and id of everything that is published, without a Redis."""
    upload = uuid4()
    payload = UploadProgressPayload(
        upload_id=upload, status="analyzing", stage="queued", progress_percent=40, message="…"
    )
    with captured() as sent:
        id_ = publish_to_user(7, {"action": "bought", "price": Decimal("1.50")})
        publish_progress(upload, UploadProgress(payload=payload))
        async_to_sync(apublish)("order:8", {})

    assert sent[0] == Published("user:7", {"action": "bought", "price": "1.50"}, id_)
    assert sent[1].topic == f"upload:{upload}"
    assert sent[1].message["payload"]["upload_id"] == str(upload)
    assert sent[2][:2] == ("order:8", {})


@cases(
    ("topic", "message", "error"),
    [
        ("nokind:1", {}, TopicError),
        ("user:", {}, TopicError),
        ("user:1", {"_meta": {}}, MessageError),
        ("user:1", {"x": object()}, MessageError),
        ("user:1", "text", MessageError),
        ("user:1", {"x": "y" * 70_000}, MessageError),
    ],
)
def test_what_cannot_be_published_is_refused_as_always(topic, message, error):
    """Bad topics and messages raise in a test what they raise on the site."""
    with captured() as sent, pytest.raises(error):
        publish(topic, message)

    assert sent == []


@cases("key", [5, b"key", UUID(int=5), ("a",), "", "x" * 201, "\ud83d"])
def test_an_idempotency_key_is_a_text(key):
    """Whatever else it is says so; a key that was made a text here would not be the same in another program."""
    with captured() as sent, pytest.raises(MessageError, match="idempotency key"):
        publish("user:7", {"n": 1}, idempotency_key=key)

    assert sent == []


def test_each_block_captures_what_is_published_while_it_is_open():
    """A block within another sees its own part; the outer one sees all of it."""
    with captured() as outer:
        publish("user:7", {"n": 1})
        with captured() as inner:
            publish("user:7", {"n": 2})
        publish("user:7", {"n": 3})

    assert [each.message["n"] for each in inner] == [2]
    assert [each.message["n"] for each in outer] == [1, 2, 3]


def test_threads_are_captured():
    """A thread that was there before the block, such as a live server's, is captured as well."""
    begin = threading.Event()

    def work():
        begin.wait(10)
        for n in range(100):
            publish("user:7", {"n": n})

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    with captured() as sent:
        begin.set()
        for thread in threads:
            thread.join()

    assert sorted(Position.parse(each.id).n for each in sent) == list(range(1, 401))


def test_ids_and_keys_work_as_on_redis(settings):
    """Ids count without holes, a repeated key publishes once, and without a history there is no id."""
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "TOPICS": {"brief": {"HISTORY_SIZE": 0}}}
    with captured() as sent:
        first = publish("user:7", {"n": 1}, idempotency_key="k")
        again = publish("user:7", {"n": 1}, idempotency_key="k")
        other = publish("user:8", {"n": 1}, idempotency_key="k")
        second = publish("user:7", {"n": 2})
        none = publish("brief:1", {"n": 3})

    assert first == again
    assert (Position.parse(second).epoch, Position.parse(second).n) == (Position.parse(first).epoch, 2)
    assert none is None
    assert [each.id for each in sent] == [first, other, second, None]
    with captured() as sent:
        publish("user:7", {"n": 1}, idempotency_key="k")
    assert len(sent) == 1, "the next block remembers nothing"


async def test_histories_end_by_age_as_on_redis(ada, settings, monkeypatch):
    """After HISTORY_TTL seconds nothing is left to recover, and a page that comes back is told so."""
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "HISTORY_TTL": 3600}
    now = time.monotonic
    with captured():
        id_ = await apublish("upload:ada-1", {"action": "progress", "n": 1})
        monkeypatch.setattr(time, "monotonic", lambda: now() + 1800)
        assert get_store().position(Topic("upload", "ada-1")).n == 1
        monkeypatch.setattr(time, "monotonic", lambda: now() + 3600)
        assert get_store().position(Topic("upload", "ada-1")).n == 0
        async with connect_as(ada) as socket:
            assert (await socket.subscribe("upload:ada-1", since=id_))["recovered"] is False
            await socket.receive_nothing()


# On commit


class TransactionTests(TestCase):
    """A site's TestCase, whose transaction never commits."""

    def test_on_commit_is_captured_when_the_test_commits(self):
        """What waits for the commit is captured when captureOnCommitCallbacks ends, and not before."""
        with captured() as sent:
            with self.captureOnCommitCallbacks(execute=True), transaction.atomic():
                publish("user:7", {"action": "saved"}, on_commit=True)
                assert sent == []
            assert_notified(7, action="saved")

    def test_failed_assertion_tells_of_on_commit(self):
        """Who forgot captureOnCommitCallbacks is told."""
        with captured():
            publish("user:7", {"action": "saved"}, on_commit=True)
            with pytest.raises(AssertionError, match="captureOnCommitCallbacks"):
                assert_notified(7, action="saved")

    async def test_async_test_of_a_test_case(self):
        """An asynchronous test: its user is in no other transaction, and AUTHORIZE sees them all the same."""
        user = await User.objects.acreate(username="ada")
        topics = {"order": {"AUTHORIZE": lambda user, _: User.objects.filter(pk=user.pk).exists()}}
        with override_settings(NOTIFICATIONS={"REDIS_URL": "redis://127.0.0.1:1", "TOPICS": topics}):
            async with connect_as(user) as socket:
                await socket.subscribe("order:7")
                await apublish("order:7", {"action": "shipped"})
                await socket.expect("shipped")


@pytest.mark.django_db
def test_sync_test_may_use_a_socket():
    """A synchronous test runs its asynchronous part with async_to_sync, in the same transaction."""
    user = User.objects.create(username="ada")

    async def page():
        async with connect_as(user) as socket:
            await socket.subscribe("upload:ada-1")
            await sync_to_async(publish)("upload:ada-1", {"action": "done"})
            return await socket.expect("done")

    assert async_to_sync(page)()["_meta"]["topic"] == "upload:ada-1"


# Assertions


def test_assertion_returns_the_message():
    """A message that says what is asked for, and more, is found and returned."""
    upload = uuid4()
    with captured():
        publish_to_user(7, {"action": "notice", "level": "error"})
        publish_to_user(7, Notice(title="Ready", level="success"))
        publish("upload:1", {"action": "x", "payload": {"id": upload, "deep": {"a": 1, "b": 2}}})

        assert assert_notified(User(pk=7), action="notice", level="success")["title"] == "Ready"
        assert_notified(7, title="Ready", timestamp=ANY)
        assert_published("upload:1", payload={"id": upload, "deep": {"b": 2}})
        assert_published(Topic("upload", 1))


@cases("fields", [{"action": "other"}, {"missing": None}, {"payload": {"a": 2}}, {"payload": {"b": 1}}, {"payload": 1}])
def test_assertion_fails_where_nothing_matches(fields):
    """One field that is missing or different is enough."""
    with captured():
        publish_to_user(7, {"action": "x", "payload": {"a": 1}})
        with pytest.raises(AssertionError):
            assert_notified(7, **fields)


def test_failed_assertion_lists_what_was_sent():
    """The text names what was wanted and all that was published, and what is different in the nearest."""
    with captured():
        publish_to_user(7, {"action": "notice", "level": "error", "body": "x" * 1000})
        publish_to_user(8, {"action": "notice", "level": "success"})
        with pytest.raises(AssertionError) as failure:
            assert_notified(7, action="notice", level="success", title="Ready")

    said = str(failure.value).splitlines()
    assert said[0] == "no message on user:7 with action='notice', level='success', title='Ready'"
    assert said[1] == "published were 2:"
    assert said[2].startswith('  user:7  {"action":"notice","level":"error"')
    assert len(said[2]) < 500
    assert said[3] == "    level is 'error', title is missing"
    assert said[4] == '  user:8  {"action":"notice","level":"success"}'


def test_assertion_outside_a_block_is_a_mistake():
    """Without a block there is nothing to look at, and the error says what to do."""
    with captured():
        publish_to_user(7, {})
    with pytest.raises(RuntimeError, match="with captured"):
        assert_notified(7)


# Outage


def test_outage_fails_as_an_outage_does(caplog):
    """publish raises PublishError, or logs it with fail_silently; both are counted."""
    before = counts["publish_failed", "ConnectionError"]
    with captured() as sent, redis_outage():
        with pytest.raises(PublishError, match="not known to be published on 'user:7'"):
            publish("user:7", {})
        assert publish("user:7", {}, fail_silently=True) is None
        with pytest.raises(TopicError):
            publish("nokind:7", {})

    assert sent == []
    assert "not known to be published" in caplog.text
    assert counts["publish_failed", "ConnectionError"] == before + 2


def test_each_outage_is_logged(caplog):
    """A test that reads the log finds its lines, however many tests before it had an outage in the same minute."""
    for _ in range(30):
        caplog.clear()
        with redis_outage():
            publish("user:7", {}, fail_silently=True)
        assert "not known to be published" in caplog.text


def test_outage_ends():
    """After the block everything works at once, with and without a block around it."""
    with redis_outage(), pytest.raises(PublishError):
        publish("user:7", {})
    with captured() as sent:
        with redis_outage(), pytest.raises(PublishError):
            publish("user:7", {})
        publish("user:7", {})
    assert len(sent) == 1


async def test_outage_keeps_everybody_from_the_histories():
    """Whatever a page, a socket or a listener asks of the store fails as it does without a Redis."""
    topic, start = Topic("user", 7), Position(0, 0)
    with redis_outage():
        store = get_store()
        asked = [
            store.apublish(topic, b"{}"),
            store.stamp_batch("lease", "token", 1, []),
            store.look([topic]),
            store.changes(),
            store.read(topic, start),
            store.aposition(topic),
            store.server(),
        ]
        for answer in asked:
            with pytest.raises(clients.FAILURES, match="redis_outage"):
                await answer
        for ask in (lambda: store.publish(topic, b"{}"), lambda: store.position(topic)):
            with pytest.raises(clients.FAILURES, match="redis_outage"):
                ask()


def test_real_redis_that_hung_does_not_disturb_the_next_test(monkeypatch):
    """What is remembered of a Redis that did not answer says nothing of what stands in its place."""
    monkeypatch.setattr(clients.breaker, "_open_until", float("inf"))
    with captured() as sent:
        publish("user:7", {})
    assert len(sent) == 1


# Sockets


async def test_socket_receives_what_is_published(ada):
    """A socket gets its user's messages, and those of what it subscribed to, once and in order."""
    async with connect_as(ada) as socket, connect_as(ada) as second:
        await socket.subscribe("upload:ada-1")
        ids = [await apublish("user:7", {"action": "a"}), await apublish("upload:ada-1", {"action": "b"})]
        await apublish("user:8", {"action": "another's"})

        first = await socket.expect("a", _meta={"topic": "user:7", "id": ids[0]})
        assert list(first) == ["_meta", "action"]
        await socket.expect("b", _meta={"topic": "upload:ada-1", "id": ids[1]})
        await socket.receive_nothing()
        await second.expect("a")
        await second.receive_nothing()


async def test_site_says_who_may_subscribe(ada):
    """AUTHORIZE is asked; a refusal is a failed assertion that shows the answer."""
    async with connect_as(ada) as socket:
        await socket.subscribe("order:ada-1")  # asynchronous
        with pytest.raises(AssertionError, match="'code': 'forbidden'"):
            await socket.subscribe("upload:bob-1")
        await socket.send({"action": "unsubscribe", "topic": "order:ada-1"})
        await socket.expect("unsubscribed")
        await apublish("order:ada-1", {})
        await socket.receive_nothing()


async def test_topics_that_the_site_joins_are_there(ada, settings):
    """What JOIN names is received without a subscription, and does not stand in the way of one."""
    topics = {**settings.NOTIFICATIONS["TOPICS"], "team": {"JOIN": "tests.testsite.permissions.teams_of"}}
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "TOPICS": topics}
    async with connect_as(ada) as socket:
        await socket.subscribe("order:ada-1")
        await apublish("team:all", {"action": "hello"})
        await socket.expect("hello")
    async with connect_as(ada) as socket:
        await socket.expect("subscribed", topic="team:ada", joined=True)


async def test_page_that_is_opened_late_sees_the_state(ada):
    """What was published earlier in the block is the history of the socket."""
    with captured():
        ids = [await apublish("upload:ada-1", {"action": "progress", "n": n}) for n in range(3)]
        ordered = [await apublish("order:ada-1", {"action": "progress", "n": n}) for n in range(3)]
        async with connect_as(ada) as socket:
            await socket.subscribe("upload:ada-1", since="last")
            await socket.expect("progress", n=2)
        async with connect_as(ada) as socket:
            assert (await socket.subscribe("upload:ada-1", since=ids[0]))["recovered"] is True
            await socket.expect("progress", n=2)
        async with connect_as(ada) as socket:
            assert (await socket.subscribe("order:ada-1", since=ordered[0]))["recovered"] is True
            await socket.expect("progress", n=1)
            await socket.expect("progress", n=2)


async def test_nothing_is_lost_when_much_is_published(ada, settings):
    """More bytes than may be under way to one browser arrive, in order, while the test receives."""
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "HISTORY_SIZE": 300}
    async with connect_as(ada) as socket:
        await sync_to_async(lambda: [publish("user:7", {"n": n, "pad": "x" * 9000}) for n in range(100)])()
        for _ in range(150):
            await apublish("user:7", {})
        received = [await socket.receive() for _ in range(250)]

    assert [Position.parse(frame["_meta"]["id"]).n for frame in received] == list(range(1, 251))


@pytest.mark.parametrize(
    "user", [AnonymousUser(), User(), User(pk=7, is_active=False)], ids=["anonymous", "unsaved", "inactive"]
)
async def test_nobody_has_no_socket(user):
    """A user who could not connect is refused before anything is tried."""
    with pytest.raises((AssertionError, TopicError)):
        async with connect_as(user):
            pass


async def test_close_of_the_server_is_told(ada):
    """A socket that the server closes fails the next receive, and has the code."""
    async with connect_as(ada) as socket:
        for _ in range(MAX_INVALID_FRAMES):
            await socket.send({"action": "nonsense"})
        for _ in range(MAX_INVALID_FRAMES):
            await socket.expect("error", code="unknown_action")
        with pytest.raises(AssertionError, match="closed the socket with 4004"):
            await socket.receive()
        assert socket.close_code == 4004


async def test_outage_refuses_sockets(ada):
    """While Redis is away a new socket is told to come back."""
    with redis_outage(), pytest.raises(AssertionError, match="4101"):
        async with connect_as(ada):
            pass


async def test_sockets_leave_nothing_behind(ada):
    """When a block ends its tasks have ended, also when the test failed."""
    before = asyncio.all_tasks()

    async def fail():
        async with connect_as(ada) as socket:
            await socket.subscribe("upload:ada-1")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()

    assert asyncio.all_tasks() == before


# pytest


def test_fixture_captures_the_whole_test(notifications_sent):
    """notifications_sent is captured() around the test."""
    publish_to_user(7, {"action": "x"})

    assert_notified(7, action="x")
    assert len(notifications_sent) == 1


def test_fixture_of_an_outage(notifications_outage):
    """notifications_outage is redis_outage() around the test."""
    with pytest.raises(PublishError):
        publish_to_user(7, {})
