"""The signals of a message: when receivers are called, what they are told, and what they cannot spoil."""

import asyncio
import contextlib
import json

import django
import pytest
from asgiref.sync import async_to_sync
from django.db import transaction

from notifications import MessageError, PublishError, Topic, apublish, publish
from notifications.messages import Notice
from notifications.signals import message_prepared, message_published
from notifications.testing import captured
from tests.conftest import point_to
from tests.ports import free_port
from tests.redis.test_publisher import ear as ear
from tests.site.test_readme import ROOT, marked

TWINS = pytest.mark.parametrize("say", [publish, async_to_sync(apublish)], ids=["sync", "async"])
SIGNALS = {"prepared": message_prepared, "published": message_published}


class Receiver:
    """Notes what it is told; may raise it all the same."""

    def __init__(self, signal, sender=None):
        self.told = []
        self.error = None
        self.signal = signal
        signal.connect(self.receive, sender=sender)

    def receive(self, *, signal, sender, **facts):
        self.told.append((sender, facts))
        if self.error is not None:
            raise self.error


@pytest.fixture
def receiver():
    """Return a function that makes receivers for the time of the test."""
    made = []

    def make(signal, sender=None):
        made.append(Receiver(signal, sender))
        return made[-1]

    yield make
    for each in made:
        each.signal.disconnect(each.receive)
        each.signal.disconnect(each.receive, sender=Notice)


@pytest.fixture
def connect():
    """Return a function that connects any function to a signal for the time of the test."""
    connected = []

    def connect(signal, function):
        signal.connect(function)
        connected.append((signal, function))

    yield connect
    for signal, function in connected:
        signal.disconnect(function)


@TWINS
def test_receivers_are_told_before_and_after(ear, receiver, connect, say):
    """Prepared comes before anything is sent, published with the id that the call returns; both with the same facts."""
    sent_before = []
    connect(message_prepared, lambda **_: sent_before.append(not ear.heard_nothing()))
    prepared, published = receiver(message_prepared), receiver(message_published)

    id_ = say("user:7", {"n": 1}, idempotency_key="a")

    assert ear.hear() == ("user:7", '{"n":1}')
    assert sent_before == [False]
    facts = {"topic": Topic("user", "7"), "data": b'{"n":1}', "idempotency_key": "a"}
    assert prepared.told == [(dict, {**facts, "on_commit": False, "using": None})]
    assert published.told == [(dict, {**facts, "id": id_})]


@TWINS
def test_receivers_may_choose_a_class_of_messages(ear, receiver, say):
    """The sender is the message's class; ``data`` is what browsers get of it."""
    published = receiver(message_published, Notice)

    say("user:7", {"n": 1})
    say("user:7", Notice(title="Ready"))

    [(sender, facts)] = published.told
    assert sender is Notice
    assert facts["data"].decode() == ear.hear_all(2)[1][1]
    assert json.loads(facts["data"])["title"] == "Ready"


@TWINS
@pytest.mark.parametrize("name", SIGNALS)
def test_a_receiver_that_raises_costs_nothing_but_itself(ear, receiver, caplog, say, name):
    """The message is published, the others are called, and the log has the error."""
    first, second = receiver(SIGNALS[name]), receiver(SIGNALS[name])
    first.error = ZeroDivisionError("of the site")

    assert say("user:7", {"n": 1}) is not None

    assert ear.hear() == ("user:7", '{"n":1}')
    assert len(second.told) == 1
    assert "of the site" in caplog.text


@TWINS
@pytest.mark.parametrize("name", SIGNALS)
def test_receivers_may_be_asynchronous(ear, connect, say, name):
    """Of both signals, in both ways to publish."""
    told = []

    async def receive(**facts):
        await asyncio.sleep(0)
        told.append(facts["data"])

    connect(SIGNALS[name], receive)
    say("user:7", {"n": 1})

    assert told == [b'{"n":1}']


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
async def test_an_asynchronous_receiver_that_cannot_be_called_costs_no_message(ear, receiver, connect, caplog):
    """Blocking an event loop with ``publish`` is logged; synchronous receivers are called all the same."""

    async def receive(**facts):
        pass

    connect(message_prepared, receive)
    prepared = receiver(message_prepared)

    publish("user:7", {"n": 1})

    assert ear.hear() == ("user:7", '{"n":1}')
    assert len(prepared.told) == 1
    assert "not all receivers of a signal could be called" in caplog.text


@TWINS
@pytest.mark.parametrize("name", SIGNALS)
def test_a_receiver_under_which_something_is_cancelled_cancels_no_publish(ear, connect, caplog, say, name):
    """Cancelling the publish itself does."""

    async def receive(**facts):
        other = asyncio.get_running_loop().create_future()
        other.cancel()
        await other

    connect(SIGNALS[name], receive)

    assert say("user:7", {"n": 1}) is not None

    assert ear.hear() == ("user:7", '{"n":1}')
    if django.VERSION < (6, 1):  # from there on only that receiver's task ends, and Django keeps it to itself
        assert "CancelledError" in caplog.text


async def test_a_publish_that_is_cancelled_during_its_receivers_is_cancelled(ear, connect):
    """Nothing is published when it had not been sent."""
    called = asyncio.Event()

    async def receive(**facts):
        called.set()
        await asyncio.Event().wait()

    connect(message_prepared, receive)
    publishing = asyncio.create_task(apublish("user:7", {"n": 1}))
    await called.wait()
    publishing.cancel()

    with pytest.raises(asyncio.CancelledError):
        await publishing
    assert ear.heard_nothing()


@TWINS
def test_what_redis_did_not_take_was_prepared_and_not_published(settings, receiver, say):
    """Silently or not: whoever keeps what was prepared knows that it is not known to be out."""
    point_to(settings, f"redis://127.0.0.1:{free_port()}/0")
    prepared, published = receiver(message_prepared), receiver(message_published)

    with pytest.raises(PublishError):
        say("user:7", {"n": 1})
    say("user:7", {"n": 2}, fail_silently=True)

    assert len(prepared.told) == 2
    assert published.told == []


@TWINS
def test_what_is_refused_is_told_to_nobody(receiver, say):
    prepared = receiver(message_prepared)

    with pytest.raises(MessageError):
        say("user:7", {"n": object()})

    assert prepared.told == []


@TWINS
def test_a_publish_that_is_repeated_is_told_with_the_id_of_the_first(ear, receiver, say):
    """Nothing more is published under the same key, and whoever waits for the confirmation has it."""
    published = receiver(message_published)

    ids = [say("user:7", {"n": 1}, idempotency_key="a") for _ in range(2)]

    assert [facts["id"] for _, facts in published.told] == ids
    assert ids[0] == ids[1]


@TWINS
def test_there_is_no_id_without_a_history(ear, settings, receiver, say):
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "HISTORY_SIZE": 0}
    published = receiver(message_published)

    say("user:7", {"n": 1})

    assert [facts["id"] for _, facts in published.told] == [None]


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("commits", [True, False])
@TWINS
def test_with_on_commit_it_is_prepared_at_the_call_and_published_after_the_commit(ear, receiver, say, commits):
    """What was rolled back was prepared, by a receiver whose rows are rolled back, too, and is never published."""
    prepared, published = receiver(message_prepared), receiver(message_published)
    message = {"n": 1}

    with contextlib.suppress(ZeroDivisionError), transaction.atomic():
        say("user:7", message, on_commit=True, using="default")
        message["n"] = 2
        assert [facts["on_commit"] for _, facts in prepared.told] == [True]
        assert [facts["using"] for _, facts in prepared.told] == ["default"]
        assert published.told == []
        if not commits:
            raise ZeroDivisionError

    assert [facts["data"] for _, facts in published.told] == ([b'{"n":1}'] if commits else [])
    assert all(facts["id"] for _, facts in published.told)
    if not commits:
        assert ear.heard_nothing()


@TWINS
def test_the_test_kit_calls_receivers(receiver, say):
    """Sites test their receivers without a Redis."""
    published = receiver(message_published)

    with captured() as sent:
        say("user:7", {"n": 1})

    assert [facts["id"] for _, facts in published.told] == [sent[0].id]


def test_the_example_of_the_documentation_hears_of_notices(ear, caplog):
    """It names its message by the id that the call returns."""
    caplog.set_level("INFO", logger="mysite.audit")
    names = {}
    exec(marked("example: signals", ROOT / "docs/messages.md"), names)
    try:
        publish("user:7", {"title": "no notice"})
        id_ = publish("user:7", Notice(title="Ready"))
    finally:
        message_published.disconnect(names["note"], sender=Notice)

    assert [record.getMessage() for record in caplog.records] == [f"{id_} on user:7: Ready"]
