"""Host names: a name server that does not answer costs nobody more than they can bear, and no threads without end."""

import asyncio

import pytest

from notifications import PublishError, Topic, apublish, publish
from notifications.broker import resolver
from notifications.broker.clients import breaker
from tests.conftest import point_to
from tests.faults import no_more_threads
from tests.waiting import scaled

TOPIC = Topic.for_user(1)


@pytest.fixture(autouse=True)
def _nothing_asked():
    resolver._begin_anew()
    breaker.worked()
    yield
    resolver._begin_anew()
    breaker.worked()


@pytest.mark.parametrize("host", ["a..b", "a" * 70 + ".internal"], ids=["empty label", "long label"])
def test_a_name_that_cannot_be_one_is_a_redis_that_is_not_there(settings, host):
    """Publishing fails as it does without a Redis, and silently where that was asked for."""
    point_to(settings, f"redis://{host}:6379/0")

    with pytest.raises(PublishError, match="not a host name"):
        publish(TOPIC, {"n": 1})
    with pytest.raises(PublishError, match="not a host name"):
        asyncio.run(apublish(TOPIC, {"n": 1}))
    assert publish(TOPIC, {"n": 1}, fail_silently=True) is None


def test_a_name_that_nobody_has_is_told_at_once(settings):
    """And asked for anew each time: it may come."""
    point_to(settings, "redis://nobody.invalid:1/0")
    for _ in range(2):
        with pytest.raises(PublishError, match=r"nobody\.invalid"):
            publish(TOPIC, {"n": 1})
        breaker.worked()
    assert "nobody.invalid" not in resolver._asked


def test_where_nothing_listens_is_not_remembered(monkeypatch, settings):
    """After a failover the name leads elsewhere: what did not answer is asked for again."""
    point_to(settings, "redis://localhost:1/0")
    for _ in range(2):
        with pytest.raises(PublishError):
            publish(TOPIC, {"n": 1})
    with pytest.raises(PublishError):
        asyncio.run(apublish(TOPIC, {"n": 1}))

    assert "localhost" not in resolver._asked


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "fe80::1"])
def test_an_address_is_asked_of_nobody(address):
    assert resolver.addresses(address, 0) == [address]
    assert asyncio.run(resolver.aaddresses(address, 0)) == [address]


def test_where_no_thread_can_start_publishing_fails_as_without_a_redis(settings):
    """As when the interpreter ends; once one can, the name is looked up again."""
    point_to(settings, "redis://localhost:1/0")
    with no_more_threads(), pytest.raises(PublishError, match="can't start new thread"):
        publish(TOPIC, {"n": 1})

    assert resolver.addresses("localhost", scaled(5))
