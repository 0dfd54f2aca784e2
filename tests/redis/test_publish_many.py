"""Many messages in one call: each is published as if alone, and what went out is known when something fails."""

import asyncio
import contextlib
import time

import pytest
import redis
from django.db import transaction

from notifications import (
    MessageError,
    PublishError,
    Topic,
    TopicError,
    apublish,
    apublish_many,
    publish,
    publish_many,
    sending,
)
from notifications import publisher as module
from notifications.broker import calls, clients, connecting, pipeline
from notifications.broker.clients import IDLE, breaker
from notifications.messages import Notice
from notifications.metrics import counts
from notifications.signals import message_prepared, message_published
from notifications.testing import captured, redis_outage
from project.local_redis import LocalRedis
from tests.conftest import point_to
from tests.faults import Proxy
from tests.ports import free_port
from tests.redis.conftest import ONE_WAIT
from tests.redis.test_publisher import ear as ear
from tests.redis.test_publisher import frozen
from tests.redis.test_publisher import own_redis as own_redis
from tests.redis.test_stale_connections import never_idle as never_idle
from tests.waiting import scaled

pytestmark = pytest.mark.usefixtures("live_redis")


@pytest.fixture(params=["sync", "async"])
def say(request):
    """Return ``publish_many``, or its twin on an event loop that lives on."""
    if request.param == "sync":
        yield publish_many
        return
    with asyncio.Runner() as runner:
        yield lambda *args, **options: runner.run(apublish_many(*args, **options))


@pytest.fixture
def few_together(monkeypatch):
    """Three messages are sent at once."""
    monkeypatch.setattr(module, "TOGETHER", 3)


@pytest.fixture
def proxy(own_redis, settings, monkeypatch):
    """A way to a Redis of the test's own; a busy machine has more than the second of the code."""
    for each in (connecting, clients):
        monkeypatch.setattr(each, "SOCKET_TIMEOUT", scaled(5))
    monkeypatch.setattr(connecting, "CONNECT_TIMEOUT", scaled(3))
    for function in (pipeline.arun, pipeline.arun_together):
        monkeypatch.setattr(function, "__defaults__", (scaled(5),))
    with Proxy(own_redis.port) as proxy:
        point_to(settings, proxy.url)
        breaker.worked()
        yield proxy
        breaker.worked()


@pytest.fixture
def kept(own_redis):
    """Return a function that reads the numbers that the history of a topic has."""
    with redis.Redis.from_url(own_redis.url) as client:

        def read(topic="closed:1"):
            entries = client.xrange(Topic.parse(topic).history_key)
            texts = [next(text for text in fields.values() if b'"n":' in text) for _, fields in entries]
            return [int(text.rpartition(b'"n":')[2].rstrip(b"}")) for text in texts]

        yield read


def numbered(amount, topic="closed:1"):
    return [(topic, {"n": n}) for n in range(amount)]


@pytest.mark.usefixtures("few_together")
def test_each_arrives_as_if_published_alone(ear, say):
    """In the order of the list, over several round trips, with the id that is returned."""
    items = [(f"closed:{n % 2}", {"n": n}) for n in range(7)]

    ids = say(items)

    assert [id_.partition("-")[2] for id_ in ids] == ["1", "1", "2", "2", "3", "3", "4"]
    for (topic, message), id_ in zip(items, ids, strict=True):
        assert ear.hear_frame() == (topic, f'{{"_meta":{{"topic":"{topic}","id":"{id_}"}},"n":{message["n"]}}}')
    assert ear.heard_nothing()


def test_they_share_the_count_of_ids_with_publish(say):
    """Whichever function publishes, a topic's ids have no gap."""
    ids = [publish("closed:1", {}), *say(numbered(2)), publish("closed:1", {})]

    assert [id_.partition("-")[2] for id_ in ids] == ["1", "2", "3", "4"]


def test_a_thousand_topics(ear, say):
    """One notice for each of many users."""
    notice = Notice(title="Closed on Friday")

    ids = say((Topic.for_user(n), notice) for n in range(1, 1001))

    assert len(ids) == 1000
    assert None not in ids
    assert [channel for channel, _ in ear.hear_all(1000)] == [f"user:{n}" for n in range(1, 1001)]


def test_nothing_to_say(say):
    """An empty list needs no Redis."""
    with redis_outage():
        assert say([]) == []


@pytest.mark.parametrize(
    ("item", "options", "error"),
    [
        (("nope:1", {}), {}, TopicError),
        (("closed:1", {"_meta": 1}), {}, MessageError),
        (("closed:1", {"a": "x" * 70000}), {}, MessageError),
        (("closed:1", {}, ""), {}, MessageError),
        (("closed:1", {}), {"idempotency_key": "k" * 199}, MessageError),
        (("closed:1", {}, "key", "what?"), {}, ValueError),
    ],
)
def test_a_mistake_in_one_publishes_none(ear, say, item, options, error):
    """Everything is checked before anything is sent, also with ``fail_silently``."""
    with pytest.raises(error):
        say([*numbered(3), item], fail_silently=True, **options)

    assert ear.heard_nothing()


@pytest.mark.usefixtures("few_together")
def test_the_same_list_may_be_passed_again_under_its_key(ear, say):
    """Nothing is published twice, and the ids are the same; a message may have a key of its own."""
    items = [*numbered(4), ("closed:1", {"n": 4}, "own")]

    ids = say(items, idempotency_key="news")

    assert say(items, idempotency_key="news") == ids
    assert publish("closed:1", {"n": 4}, idempotency_key="own") == ids[4]
    assert publish("closed:1", {"n": 1}, idempotency_key="news:1") == ids[1]
    assert len(ear.hear_all(5)) == 5
    assert ear.heard_nothing()


def test_without_a_history_there_are_no_ids(ear, settings, say):
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "HISTORY_SIZE": 0}

    assert say(numbered(2)) == [None, None]
    assert ear.hear_all(2) == [("closed:1", '{"n":0}'), ("closed:1", '{"n":1}')]


@pytest.mark.usefixtures("few_together")
def test_what_is_sent_at_once_is_bounded(say, monkeypatch):
    """By number and by bytes; a message that is larger than the bound goes alone."""
    parts = []
    for name in ("run_together", "arun_together"):
        place = clients if name == "run_together" else pipeline
        real = getattr(place, name)
        monkeypatch.setattr(place, name, lambda some, real=real: (parts.append(len(some.answers)), real(some))[1])
    monkeypatch.setattr(module, "TOGETHER_BYTES", 100)

    say(
        [
            *numbered(4),
            ("closed:1", {"n": 4, "a": "x" * 60}),
            ("closed:1", {"n": 5, "a": "x" * 60}),
            ("closed:1", {"n": 6, "a": "x" * 200}),
            ("closed:1", {"n": 7}),
        ]
    )

    assert parts == [3, 2, 1, 1, 1]


def test_a_server_that_has_forgotten_the_script_is_told_it(live_redis, say, ear):
    """None is refused, and their order stays as it is."""
    say(numbered(1))
    live_redis.script_flush()

    say(numbered(50))

    assert ear.hear_all(51) == [("closed:1", '{"n":0}'), *[("closed:1", f'{{"n":{n}}}') for n in range(50)]]


# When something fails.


def refusals():
    return sum(amount for (name, _), amount in counts.items() if name == "publish_failed")


@pytest.mark.usefixtures("few_together")
def test_what_redis_refuses_is_named(own_redis, settings, say):
    """It keeps the others that were sent with it from nothing; of what follows those nothing is sent."""
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "TOPICS": {"closed": {}, "unkept": {"HISTORY_SIZE": 0}}}
    before = counts["published", ""], refusals()
    items = [("closed:1", {"n": 0}), ("unkept:1", {"n": 1}), ("closed:1", {"n": 2}), ("unkept:1", {"n": 3})]
    with redis.Redis.from_url(own_redis.url) as client:
        client.config_set("maxmemory", 1)

        with pytest.raises(PublishError) as caught:
            say(items)

    assert caught.value.missing == (0, 2, 3)
    assert caught.value.topic == "closed:1"
    assert str(caught.value).startswith(
        "3 of 4 messages are not known to be published, the first of them on 'closed:1'"
    )
    assert (counts["published", ""], refusals()) == (before[0] + 1, before[1] + 3)
    assert breaker.remaining() == 0


@pytest.mark.usefixtures("few_together")
def test_a_silenced_failure_leaves_the_ids_of_what_went_out(own_redis, say, caplog):
    """The others are None."""
    sending.log_anew()
    with redis.Redis.from_url(own_redis.url) as client:
        first = publish("closed:1", {"n": 0}, idempotency_key="x")
        client.config_set("maxmemory", 1)

        ids = say([("closed:1", {"n": 0}, "x"), ("closed:1", {"n": 1})], fail_silently=True)

    assert ids == [first, None]
    assert "1 of 2 messages" in caplog.text


def test_nobody_there(settings, say):
    """A Redis that is away: all are missing."""
    point_to(settings, f"redis://127.0.0.1:{free_port()}/0")

    with pytest.raises(PublishError) as caught:
        say(numbered(3))

    assert caught.value.missing == (0, 1, 2)


@pytest.mark.usefixtures("few_together", "long_seconds")
def test_a_hung_redis_costs_one_wait(own_redis, say):
    """However long the list is."""
    say(numbered(1))
    with frozen(own_redis):
        began = time.monotonic()
        with pytest.raises(PublishError) as caught:
            say(numbered(100))

        assert time.monotonic() - began < scaled(ONE_WAIT)
        assert len(caught.value.missing) == 100
        assert breaker.remaining() > 0
    breaker.worked()


def test_a_redis_that_answers_slowly_is_given_up(own_redis, say, monkeypatch):
    """Answers that go on coming do not hold the caller for ever."""
    for place in (clients, pipeline):
        monkeypatch.setattr(place, "TOGETHER_TIMEOUT", -1.0)

    with pytest.raises(PublishError):
        say(numbered(3))
    monkeypatch.setattr(clients, "TOGETHER_TIMEOUT", calls.TOGETHER_TIMEOUT)
    monkeypatch.setattr(pipeline, "TOGETHER_TIMEOUT", calls.TOGETHER_TIMEOUT)
    breaker.worked()

    assert len(say(numbered(3))) == 3


@pytest.mark.parametrize("reset", [True, False], ids=["reset", "silence"])
def test_a_connection_that_died_idle_is_replaced_first(proxy, kept, say, reset):
    say(numbered(2))
    time.sleep(IDLE * 1.2)
    proxy.forget(reset=reset)

    say(numbered(50))

    assert kept() == [0, 1, *range(50)]
    assert breaker.remaining() == 0


@pytest.mark.usefixtures("never_idle")
def test_what_may_have_been_published_is_not_sent_again(proxy, kept, say):
    """Redis took them, and the answers were lost with the connection: once they are, and an error."""
    say(numbered(1))
    proxy.lose_the_next_answer()

    with pytest.raises(PublishError) as caught:
        say(numbered(20))

    assert caught.value.missing == tuple(range(20))
    assert kept() == [0, *range(20)]


@pytest.mark.usefixtures("never_idle")
def test_with_keys_they_are_sent_again(proxy, kept, say):
    """The script knows them: they are there once, and the caller gets the ids."""
    say(numbered(1))
    proxy.lose_the_next_answer()

    ids = say(numbered(20), idempotency_key="k")

    assert kept() == [0, *range(20)]
    assert [id_.partition("-")[2] for id_ in ids] == [str(n) for n in range(2, 22)]


def test_a_server_that_is_not_the_primary_any_more_is_left_within_the_call(own_redis, settings, say):
    """It refused all of them, so nothing was done."""
    with LocalRedis() as other, Proxy(own_redis.port) as proxy, redis.Redis.from_url(own_redis.url) as old:
        point_to(settings, proxy.url)
        say(numbered(1))
        old.replicaof("127.0.0.1", other.port)
        proxy.lead_to(other.port)

        assert None not in say(numbered(5))

        with redis.Redis.from_url(other.url) as new:
            assert new.xlen(Topic.parse("closed:1").history_key) >= 5
        old.replicaof("NO", "ONE")


async def test_others_publish_meanwhile(live_redis):
    """A long list does not keep the event loop from a single message for long."""
    many = asyncio.create_task(apublish_many(numbered(3000)))
    await asyncio.sleep(0)

    await apublish("closed:2", {"n": 0})

    assert not many.done()
    assert len(await many) == 3000


async def test_a_caller_who_leaves_spoils_nothing_for_others(live_redis):
    """Cancelled in the middle, it raises that, and the connection serves the next."""
    many = asyncio.create_task(apublish_many(numbered(3000)))  # takes some 50 ms
    await asyncio.sleep(0.005)
    assert many.cancel()

    with pytest.raises(asyncio.CancelledError):
        await many

    assert await apublish("closed:2", {"n": 0}) is not None


# Around it.


def test_receivers_are_told_of_each(say):
    """Before anything is sent and after each was published, with its own facts."""
    told = []

    def receive(signal, sender, topic, idempotency_key, **facts):
        told.append((signal is message_published, str(topic), idempotency_key, facts.get("id")))

    for signal in (message_prepared, message_published):
        signal.connect(receive)
    try:
        first, second = say([("closed:1", {}), ("closed:2", {})], idempotency_key="k")
    finally:
        for signal in (message_prepared, message_published):
            signal.disconnect(receive)

    assert told == [
        (False, "closed:1", "k:0", None),
        (False, "closed:2", "k:1", None),
        (True, "closed:1", "k:0", first),
        (True, "closed:2", "k:1", second),
    ]


@pytest.mark.django_db(transaction=True)
def test_they_wait_for_the_commit(ear):
    """And are dropped with a rollback."""
    with contextlib.suppress(ZeroDivisionError), transaction.atomic():
        publish_many(numbered(2), on_commit=True)
        raise ZeroDivisionError
    with transaction.atomic():
        assert publish_many(numbered(2), on_commit=True) == [None, None]
        assert ear.heard_nothing()

    assert ear.hear_all(2) == [("closed:1", '{"n":0}'), ("closed:1", '{"n":1}')]


def test_tests_of_sites_see_them(say):
    """``captured`` has each, and an outage fails all."""
    with captured() as sent:
        ids = say(numbered(2))
    with redis_outage(), pytest.raises(PublishError) as caught:
        say(numbered(2))

    assert [(each.topic, each.message, each.id) for each in sent] == [
        ("closed:1", {"n": 0}, ids[0]),
        ("closed:1", {"n": 1}, ids[1]),
    ]
    assert caught.value.missing == (0, 1)
