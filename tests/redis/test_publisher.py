"""Publishing: from everywhere, never hanging, on commit, and saying so when it failed."""

import asyncio
import contextlib
import gc
import logging
import os
import pickle
import signal
import sys
import threading
import time

import pytest
import redis
from asgiref.sync import async_to_sync
from django.contrib.auth.models import AnonymousUser, User
from django.db import connection, transaction
from django.db.utils import ConnectionDoesNotExist
from django.http import HttpResponse
from django.urls import path

from notifications import (
    MessageError,
    PublishError,
    Topic,
    TopicError,
    apublish,
    apublish_progress,
    apublish_to_user,
    publish,
    publish_progress,
    publish_to_user,
    sending,
)
from notifications.broker import clients
from notifications.history.position import Position
from notifications.history.stamped import STAMPED
from notifications.messages import UploadFailed
from notifications.metrics import counts
from notifications.topics import internal_name
from project.local_redis import LocalRedis
from tests.clients import message_of
from tests.conftest import point_to
from tests.faults import port_that_does_not_answer
from tests.ports import free_port
from tests.redis.conftest import ONE_WAIT
from tests.waiting import scaled, wait_for

SPARED = "not asked again"
"""What the error says of a Redis that is known to hang: it was not asked, so nobody has waited."""

TWINS = pytest.mark.parametrize("call", ["sync", "async"])


def sync_view(request):
    publish_to_user(7, {"from": "sync view"})
    return HttpResponse()


async def async_view(request):
    await apublish_to_user(7, {"from": "async view"})
    return HttpResponse()


urlpatterns = [path("sync/", sync_view), path("async/", async_view)]


class Ear:
    """Hears everything that is published on a Redis."""

    def __init__(self, subscription, client):
        self._subscription = subscription
        self._client = client

    def hear(self):
        """Return channel and message of the next publish, without the ``_meta`` that was put first."""
        channel, frame = self.hear_frame()
        return channel, message_of(frame)

    def hear_frame(self):
        """Return channel and text of the next publish; what is only for listeners is passed over."""
        while True:
            message = self._subscription.get_message(timeout=scaled())
            assert message is not None, "nothing was published"
            channel = message["channel"].decode()
            if channel != internal_name(STAMPED):
                return channel, message["data"].decode()

    def hear_all(self, amount):
        return [self.hear() for _ in range(amount)]

    def heard_nothing(self):
        """Return whether all that was published has been received: a marker arrives next."""
        self._client.publish("mark", "")
        return self.hear() == ("mark", "")


@contextlib.contextmanager
def listening(client):
    with client.pubsub() as subscription:
        subscription.psubscribe("*")
        assert subscription.get_message(timeout=scaled())["type"] == "psubscribe"
        yield Ear(subscription, client)


@pytest.fixture
def ear(live_redis):
    with listening(live_redis) as ear:
        yield ear


@pytest.fixture
def own_redis(redis_program, settings):
    """A Redis of this test alone, which it may stop, kill and freeze."""
    with LocalRedis() as server:
        point_to(settings, server.url)
        yield server


@contextlib.contextmanager
def frozen(server):
    """Hang a Redis: its port accepts, and nothing answers."""
    server.child.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        server.child.send_signal(signal.SIGCONT)


linux_only = pytest.mark.skipif(sys.platform != "linux", reason="a full queue refuses on other systems")


class Caller:
    """Publishes by the sync function, or by its twin on one event loop."""

    def __init__(self, runner):
        self._runner = runner

    def __call__(self, message, **options):
        if self._runner is None:
            return publish("user:7", message, **options)
        return self._runner.run(apublish("user:7", message, **options))

    def seconds_to_fail(self, message=None):
        started = time.monotonic()
        with pytest.raises(PublishError):
            self(message or {})
        return time.monotonic() - started

    def is_spared(self):
        """Return whether a call fails without asking Redis."""
        with pytest.raises(PublishError) as caught:
            self({})
        return SPARED in caught.value.reason

    def works(self):
        try:
            self({})
        except PublishError:
            return False
        return True


@pytest.fixture
def caller(call):
    """The sync or the async way to publish, by the test's ``call``."""
    if call == "sync":
        yield Caller(None)
    else:
        with asyncio.Runner() as runner:
            yield Caller(runner)


# What arrives, and where.

UPLOAD_FAILED = UploadFailed(upload_id="7f3c", error_message="no", timestamp="2026-11-23T12:00:00Z")
UPLOAD_FAILED_TEXT = (
    '{"action":"upload_failed","upload_id":"7f3c","error_message":"no","timestamp":"2026-11-23T12:00:00Z"}'
)
CASES = [
    (publish_to_user, apublish_to_user, 42, "user:42"),
    (publish_to_user, apublish_to_user, User(pk=42), "user:42"),
    (publish_progress, apublish_progress, "7f3c", "upload:7f3c"),
    (publish_progress, apublish_progress, "a b:ü", "upload:a b:ü"),
    (publish, apublish, "closed:1", "closed:1"),
    (publish, apublish, "order:ABC", "order:abc"),
    (publish, apublish, Topic("order", "ABC"), "order:abc"),
]


@pytest.mark.parametrize(
    ("message", "text"),
    [({"text": "ü", "n": [1, None]}, '{"text":"ü","n":[1,null]}'), (UPLOAD_FAILED, UPLOAD_FAILED_TEXT)],
    ids=["mapping", "typed"],
)
@pytest.mark.parametrize(("function", "twin", "target", "channel"), CASES)
async def test_a_message_arrives_on_the_channel_of_its_topic(ear, function, twin, target, channel, message, text):
    """Each function and its twin publish exactly the documented frame, once, and return the id that is in it."""
    first = function(target, message)
    assert ear.hear_frame() == (channel, frame(channel, first, text))

    second = await twin(target, message)
    assert ear.hear_frame() == (channel, frame(channel, second, text))
    assert ear.heard_nothing()
    assert [id_.partition("-")[2] for id_ in (first, second)] == ["1", "2"]


def frame(topic, id_, text):
    return f'{{"_meta":{{"topic":"{topic}","id":"{id_}"}},{text[1:]}'


@TWINS
def test_an_empty_message_has_no_comma_to_spare(ear, caller):
    """The frame of a message without a field is the ``_meta`` alone."""
    id_ = caller({})

    assert ear.hear_frame() == ("user:7", f'{{"_meta":{{"topic":"user:7","id":"{id_}"}}}}')


@TWINS
def test_without_a_history_the_message_is_all_there_is(ear, live_redis, settings, caller):
    """Where HISTORY_SIZE is 0 the plain message goes out once, with no ``_meta``, no id and no key."""
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "HISTORY_SIZE": 0}

    assert caller({"n": 1}) is None

    assert ear.hear_frame() == ("user:7", '{"n":1}')
    assert ear.heard_nothing()
    assert live_redis.keys() == []


def test_the_channel_has_the_prefix(ear, settings):
    """With a PREFIX everything is published under it."""
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "PREFIX": "shop:"}

    id_ = publish("closed:1", {"n": 1})

    assert ear.hear_frame() == ("shop:closed:1", frame("closed:1", id_, '{"n":1}'))


@TWINS
def test_messages_of_one_caller_keep_their_order(ear, caller):
    """What one caller publishes arrives in the order of the calls."""
    for n in range(50):
        caller({"n": n})

    assert ear.hear_all(50) == [("user:7", f'{{"n":{n}}}') for n in range(50)]


@TWINS
def test_a_success_is_counted(live_redis, caller):
    """Each message that Redis took counts as published."""
    before = counts["published", ""]

    caller({})

    assert counts["published", ""] == before + 1


@pytest.mark.parametrize("fail_silently", [True, False])
@pytest.mark.parametrize(
    ("target", "message", "error"),
    [
        ("user:7", {"_meta": 1}, MessageError),
        ("user:7", {"a": object()}, MessageError),
        ("user:7", "text", MessageError),
        ("user:7", {"a": "x" * 70000}, MessageError),
        ("nope:7", {}, TopicError),
        ("user:", {}, TopicError),
        ("user", {}, TopicError),
    ],
)
async def test_a_mistake_of_the_caller_is_raised_also_silently(target, message, error, fail_silently):
    """fail_silently hides a Redis that is away, never a wrong message or topic, which no Redis is needed to see."""
    with pytest.raises(error):
        publish(target, message, fail_silently=fail_silently)
    with pytest.raises(error):
        await apublish(target, message, fail_silently=fail_silently)


@pytest.mark.parametrize("user", [AnonymousUser(), User(), None])
async def test_nobody_has_no_channel(user):
    """Publishing to an anonymous or unsaved user is a mistake of the caller."""
    with pytest.raises(TopicError):
        publish_to_user(user, {})
    with pytest.raises(TopicError):
        await apublish_to_user(user, {})


def test_the_size_is_that_of_the_setting(ear, settings):
    """MAX_MESSAGE_SIZE limits what may be published, in bytes."""
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "MAX_MESSAGE_SIZE": 10}
    publish("user:7", {"a": "12"})

    with pytest.raises(MessageError, match="MAX_MESSAGE_SIZE"):
        publish("user:7", {"a": "123"})

    assert ear.hear() == ("user:7", '{"a":"12"}')
    assert ear.heard_nothing()


# From everywhere.


@pytest.mark.urls(__name__)
@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_views_publish(ear, client, async_client, kind):
    """A sync and an async view publish, under WSGI and under ASGI."""
    response = await async_client.get(f"/{kind}/")

    assert response.status_code == 200
    assert ear.hear() == ("user:7", f'{{"from":"{kind} view"}}')


@pytest.mark.urls(__name__)
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_views_publish_under_wsgi(ear, client, kind):
    """Under WSGI an async view runs on an event loop that lives as long as the request."""
    for _ in range(3):
        assert client.get(f"/{kind}/").status_code == 200
        assert ear.hear() == ("user:7", f'{{"from":"{kind} view"}}')


def test_threads_publish(ear):
    """Many threads publish at once over the process's one client; each one's messages keep their order."""

    def work(number):
        for n in range(20):
            publish(f"closed:{number}", {"n": n})

    threads = [threading.Thread(target=work, args=[number]) for number in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(scaled())

    heard = ear.hear_all(200)
    for number in range(10):
        assert [text for channel, text in heard if channel == f"closed:{number}"] == [f'{{"n":{n}}}' for n in range(20)]


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@TWINS
def test_forked_workers_publish(ear, call):
    """A child of os.fork, as prefork servers and Celery make, gets a connection of its own; the parent's stays good."""
    publish("closed:parent", {"n": 0})
    child = os.fork()
    if child == 0:
        status = 1
        with contextlib.suppress(BaseException):
            for n in range(20):
                if call == "sync":
                    publish("closed:child", {"n": n})
                else:
                    asyncio.run(apublish("closed:child", {"n": n}))
            status = 0
        os._exit(status)
    for n in range(1, 20):
        publish("closed:parent", {"n": n})
    _, status = os.waitpid(child, 0)

    heard = ear.hear_all(40)
    assert status == 0
    for name in ("parent", "child"):
        assert [text for channel, text in heard if channel == f"closed:{name}"] == [f'{{"n":{n}}}' for n in range(20)]


def connections(client):
    """Return the ids of the connections to Redis."""
    return {each["id"] for each in client.client_list()}


def expect_closed(client, before):
    """Wait until no connection is open that was not before."""

    def others():
        return [each for each in client.client_list() if each["id"] not in before]

    try:
        wait_for(lambda: not others())
    except AssertionError as error:
        raise AssertionError(f"still open: {others()}") from error


def test_async_to_sync_publishes_and_leaves_nothing_open(ear, live_redis):
    """Each call of async_to_sync has a loop of its own; its connection is closed with it, without a ResourceWarning."""
    before = connections(live_redis)  # one that another test has closed may be among them for a moment

    for n in range(10):
        async_to_sync(apublish)("user:7", {"n": n})

    gc.collect()
    assert ear.hear_all(10) == [("user:7", f'{{"n":{n}}}') for n in range(10)]
    expect_closed(live_redis, before)


def test_several_event_loops_publish_at_once(ear, live_redis):
    """Threads with a loop each do not share connections, and leave none open."""
    before = connections(live_redis)

    async def work(number):
        await asyncio.gather(*(apublish(f"closed:{number}", {"n": n}) for n in range(20)))

    threads = [threading.Thread(target=asyncio.run, args=[work(number)]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(scaled())

    gc.collect()
    assert sorted(ear.hear_all(80)) == sorted((f"closed:{i}", f'{{"n":{n}}}') for i in range(4) for n in range(20))
    expect_closed(live_redis, before)


async def test_a_crowd_on_one_loop_shares_a_connection(ear, live_redis):
    """However many publish at once, Redis sees one connection, and each of them gets the answer to its own call."""
    before = connections(live_redis)

    ids = await asyncio.gather(*(apublish(f"user:{n}", {"n": n}) for n in range(300)))
    again = await asyncio.gather(*(apublish(f"user:{n}", {"n": n}) for n in range(300)))

    assert len(connections(live_redis) - before) == 1
    assert {text for _, text in ear.hear_all(600)} == {f'{{"n":{n}}}' for n in range(300)}
    counted = [(Position.parse(first), Position.parse(second)) for first, second in zip(ids, again, strict=True)]
    assert all(second == (first.epoch, first.n + 1) for first, second in counted)


def test_one_process_keeps_its_connection(ear, live_redis):
    """Publishing again and again in one thread opens one connection."""
    before = connections(live_redis)

    for _ in range(20):
        publish("user:7", {})

    assert len(connections(live_redis) - before) == 1


@pytest.mark.parametrize("steps", [1, 2, 5, 20])
async def test_a_cancelled_call_spoils_nothing(own_redis, steps):
    """A task that is cancelled while Redis is silent leaves no half-read connection to the next caller."""
    await apublish("user:7", {})
    with frozen(own_redis):
        task = asyncio.create_task(apublish("user:7", {}))
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    positions = [Position.parse(await apublish("user:7", {})) for _ in range(3)]
    assert [position.n for position in positions] == list(range(positions[0].n, positions[0].n + 3))


# Redis is away.


@TWINS
def test_a_dead_redis_fails_at_once(settings, caller):
    """A refused connection is a PublishError that names the topic and the reason, not a wait."""
    point_to(settings, f"redis://:hunter2@127.0.0.1:{free_port()}/0")
    started = time.monotonic()

    with pytest.raises(PublishError) as caught:
        caller({"secret": "payload"})

    assert time.monotonic() - started < scaled(3)
    assert isinstance(caught.value.__cause__, redis.ConnectionError)  # refused, and not a time-out
    assert caught.value.topic == "user:7"
    assert "user:7" in str(caught.value)
    assert caught.value.reason in str(caught.value)
    assert "connect" in caught.value.reason.lower()
    assert "payload" not in str(caught.value)
    assert "hunter2" not in str(caught.value)


@pytest.mark.usefixtures("slow_refusals")
@TWINS
def test_a_refused_connection_does_not_open_the_breaker(own_redis, caller):
    """A Redis that is started again is used by the very next call."""
    own_redis.stop()
    caller.seconds_to_fail()
    own_redis.start()

    caller({})


@TWINS
async def test_a_redis_restarted_between_two_calls_is_not_noticed(own_redis, call):
    """The connection that the restart broke is replaced, and the message arrives, once."""

    async def say(message):
        if call == "sync":
            publish("user:7", message)
        else:
            await apublish("user:7", message)

    await say({"n": 1})
    await asyncio.to_thread(own_redis.restart)  # the loop runs on, as in a server

    with redis.Redis.from_url(own_redis.url) as client, listening(client) as ear:
        await say({"n": 2})

        assert ear.hear() == ("user:7", '{"n":2}')
        assert ear.heard_nothing()


@pytest.mark.usefixtures("long_seconds")
@TWINS
@pytest.mark.parametrize("pooled", [True, False], ids=["pooled connection", "new connection"])
def test_a_hung_redis_costs_one_wait_and_then_nothing(own_redis, caller, monkeypatch, pooled):
    """A Redis that accepts and does not answer costs one caller about a second, the next ones nothing, for a while."""
    monkeypatch.setattr("notifications.broker.breaker.FAIL_FAST", 30.0)
    if pooled:
        caller({})
    with frozen(own_redis):
        assert caller.seconds_to_fail() < scaled(ONE_WAIT)
        assert all(caller.is_spared() for _ in range(10))


@TWINS
def test_a_hung_redis_is_used_again_when_it_answers(own_redis, caller, monkeypatch):
    """After FAIL_FAST seconds Redis is asked again, and used as before."""
    monkeypatch.setattr("notifications.broker.breaker.FAIL_FAST", scaled(2))
    with frozen(own_redis):
        caller.seconds_to_fail()
    assert not caller.works()

    wait_for(caller.works)

    assert clients.breaker.remaining() == 0
    assert caller.works()


@linux_only
@TWINS
def test_a_network_that_swallows_packets_costs_half_a_second(settings, caller):
    """A connection that is neither accepted nor refused is given up after CONNECT_TIMEOUT."""
    with port_that_does_not_answer() as port:
        point_to(settings, f"redis://127.0.0.1:{port}/0")

        assert clients.CONNECT_TIMEOUT / 2 < caller.seconds_to_fail() < scaled(1.8)
        assert caller.is_spared()


@linux_only
def test_one_way_to_publish_spares_the_other(settings):
    """What a sync caller learnt of a hung Redis holds for async callers of the process, and other threads."""
    with port_that_does_not_answer() as port:
        point_to(settings, f"redis://127.0.0.1:{port}/0")
        Caller(None).seconds_to_fail()
        with asyncio.Runner() as runner:
            assert Caller(runner).is_spared()


@pytest.mark.usefixtures("slow_refusals")
@TWINS
def test_an_error_of_redis_is_a_publish_error(own_redis, settings, caller):
    """A Redis that answers with an error, as for a wrong password, is a PublishError with what it said."""
    point_to(settings, own_redis.url.replace("redis://", "redis://nobody:hunter2@"))

    with pytest.raises(PublishError) as caught:
        caller({})

    assert "hunter2" not in str(caught.value)
    assert clients.breaker.remaining() == 0


@TWINS
def test_a_silent_failure_is_logged_and_counted(settings, caller, caplog):
    """With fail_silently a Redis that is away is a warning with the topic, without the message, and a count."""
    point_to(settings, f"redis://127.0.0.1:{free_port()}/0")
    sending.log_anew()
    before = counts["publish_failed", "ConnectionError"]

    assert caller({"secret": "payload"}, fail_silently=True) is None

    (record,) = (record for record in caplog.records if record.name == "notifications.sending")
    assert record.levelno == logging.WARNING
    assert "user:7" in record.getMessage()
    assert "payload" not in caplog.text
    assert counts["publish_failed", "ConnectionError"] == before + 1


def test_a_publish_error_can_be_pickled():
    """Task queues carry exceptions from process to process."""
    error = pickle.loads(pickle.dumps(PublishError("user:7", "away")))

    assert (error.topic, error.reason) == ("user:7", "away")


# With the transaction.


@pytest.mark.django_db(transaction=True)
class TestOnCommit:
    def test_it_is_published_after_the_commit(self, ear):
        """Nobody hears of what is not yet there to read."""
        with transaction.atomic():
            assert publish("user:7", {}, on_commit=True) is None
            assert ear.heard_nothing()

        assert ear.hear() == ("user:7", "{}")

    def test_it_is_not_published_after_a_rollback(self, ear):
        """What was rolled back is never published."""
        with contextlib.suppress(ZeroDivisionError), transaction.atomic():
            publish("user:7", {}, on_commit=True)
            raise ZeroDivisionError

        assert ear.heard_nothing()

    def test_it_follows_its_savepoint(self, ear):
        """What an inner block rolled back is not published when the outer one commits."""
        with transaction.atomic():
            publish("user:7", {"n": 1}, on_commit=True)
            with contextlib.suppress(ZeroDivisionError), transaction.atomic():
                publish("user:7", {"n": 2}, on_commit=True)
                raise ZeroDivisionError

        assert ear.hear() == ("user:7", '{"n":1}')
        assert ear.heard_nothing()

    def test_it_is_written_at_the_call(self, ear):
        """What is done to the message after the call changes nothing."""
        message = {"items": [1]}
        with transaction.atomic():
            publish("user:7", message, on_commit=True)
            message["items"].append(2)
            message["more"] = True

        assert ear.hear() == ("user:7", '{"items":[1]}')

    @pytest.mark.parametrize(("target", "message"), [("user:7", {"a": object()}), ("nope:7", {})])
    async def test_it_is_checked_at_the_call(self, target, message):
        """A mistake is raised where it was made, inside the transaction."""
        with pytest.raises(ValueError):
            publish(target, message, on_commit=True)
        with pytest.raises(ValueError):
            await apublish(target, message, on_commit=True)

    def test_outside_a_transaction_it_is_published_at_once(self, ear):
        """In autocommit there is nothing to wait for."""
        publish("user:7", {}, on_commit=True)

        assert ear.hear() == ("user:7", "{}")

    @pytest.mark.parametrize("function", [publish_to_user, publish_progress])
    def test_it_works_with_every_function(self, ear, function):
        """publish_to_user and publish_progress take the same options."""
        with transaction.atomic():
            function(7, {}, on_commit=True)
            assert ear.heard_nothing()

        assert ear.hear()[1] == "{}"

    def test_it_follows_the_transaction_of_the_database_that_was_named(self, ear):
        """``using`` names the database whose commit is waited for."""
        with transaction.atomic(using="default"):
            publish("user:7", {}, on_commit=True, using="default")
            with pytest.raises(ConnectionDoesNotExist):
                publish("user:7", {}, on_commit=True, using="elsewhere")
            assert len(connection.run_on_commit) == 1

    def test_a_failure_leaves_the_transaction_committed(self, settings):
        """A Redis that is away is a PublishError from the end of the block, whose work is saved."""
        point_to(settings, f"redis://127.0.0.1:{free_port()}/0")

        def work():
            with transaction.atomic():
                User.objects.create(username="ann")
                publish("user:7", {}, on_commit=True)

        with pytest.raises(PublishError):
            work()

        assert User.objects.filter(username="ann").exists()

    def test_a_silent_failure_does_not_disturb_the_caller(self, settings):
        """With fail_silently the block ends as if Redis were there."""
        point_to(settings, f"redis://127.0.0.1:{free_port()}/0")
        before = counts["publish_failed", "ConnectionError"]

        with transaction.atomic():
            publish("user:7", {}, on_commit=True, fail_silently=True)

        assert counts["publish_failed", "ConnectionError"] == before + 1

    @pytest.mark.parametrize("commits", [True, False])
    def test_the_twin_follows_the_transaction_of_its_thread(self, ear, commits):
        """apublish inside a synchronous transaction waits for its end too."""
        with contextlib.suppress(ZeroDivisionError), transaction.atomic():
            async_to_sync(apublish)("user:7", {}, on_commit=True)
            assert ear.heard_nothing()
            if not commits:
                raise ZeroDivisionError

        if commits:
            assert ear.hear() == ("user:7", "{}")
        assert ear.heard_nothing()

    async def test_the_twin_publishes_at_once_outside_a_transaction(self, ear):
        """In an async view without a transaction nothing waits."""
        message = {"n": 1}

        assert await apublish("user:7", message, on_commit=True) is None

        assert ear.hear() == ("user:7", '{"n":1}')
