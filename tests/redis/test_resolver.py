"""Host names of a Redis that is there."""

import asyncio
import os
import threading
import time

import pytest
import redis

from notifications import PublishError, Topic, apublish, publish, sending
from notifications.broker import clients, resolver
from notifications.broker.clients import breaker
from notifications.layers import RedisPubSubLayer
from project.local_redis import LocalRedis
from tests.conftest import point_to
from tests.faults import silent_name_server
from tests.waiting import scaled, wait_for

NAME = "redis.internal"
TOPIC = Topic.for_user(1)
AT_MOST = 1.8
"""Seconds that a call may take, before scaling: one, and what a busy machine takes. Two would be two waits."""


@pytest.fixture(autouse=True)
def _nothing_asked():
    resolver._begin_anew()
    breaker.worked()
    sending.log_anew()
    yield
    resolver._begin_anew()
    breaker.worked()


@pytest.fixture
def server(redis_program, settings):
    with LocalRedis() as server:
        point_to(settings, f"redis://{NAME}:{server.port}/0")
        yield server


def looking_up():
    return [thread for thread in threading.enumerate() if thread.name.startswith("look up")]


@pytest.mark.parametrize("kind", ["sync", "async", "silently"])
def test_a_silent_name_server_costs_a_publish_about_a_second(server, caplog, kind):
    """And then nothing: the breaker spares whoever comes next."""
    with silent_name_server(NAME):
        for said in ("name server", "not asked again"):
            began = time.monotonic()
            if kind == "sync":
                with pytest.raises(PublishError, match=said):
                    publish(TOPIC, {"n": 1})
            elif kind == "async":
                with pytest.raises(PublishError, match=said):
                    asyncio.run(apublish(TOPIC, {"n": 1}))  # the end of the loop waits for nothing, either
            else:
                caplog.clear()
                assert publish(TOPIC, {"n": 1}, fail_silently=True) is None
                assert said in caplog.text
            assert time.monotonic() - began < scaled(AT_MOST)


def test_threads_do_not_pile_up(server):
    """All who ask for one name, in whatever way, wait for one thread."""
    layer = RedisPubSubLayer(hosts=[f"redis://{NAME}:{server.port}"])

    async def use():
        for _ in range(10):
            breaker.worked()
            with pytest.raises(PublishError):
                await apublish(TOPIC, {"n": 1})
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await layer.group_send("group", {"type": "x"})
        with pytest.raises(clients.FAILURES):
            async with asyncio.timeout(0.3):
                await (await clients.async_client()).ping()

    with silent_name_server(NAME):
        before = threading.active_count()
        asyncio.run(use())
        for _ in range(3):
            breaker.worked()
            with pytest.raises(PublishError):
                publish(TOPIC, {"n": 1})
        assert len(looking_up()) == 1
        assert threading.active_count() <= before + 1
    wait_for(lambda: not looking_up(), what="the end of the thread")


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_an_answer_that_comes_late_serves_the_next(server, kind):
    """A name server that needs a second is slow, and not a reason never to connect."""
    send = publish if kind == "sync" else lambda *arguments: asyncio.run(apublish(*arguments))
    with silent_name_server(NAME) as answering:
        with pytest.raises(PublishError):
            send(TOPIC, {"n": 1})
        answering.set()
        wait_for(lambda: not looking_up(), what="the answer")
        answering.clear()
        breaker.worked()

        assert send(TOPIC, {"n": 2})


def test_every_address_of_a_name_is_tried(server, monkeypatch):
    """As of localhost, which is often IPv6 first, where a Redis seldom listens."""
    monkeypatch.setattr(resolver, "addresses", lambda *_: ["::1", "127.0.0.2", "127.0.0.1"])

    async def all_of_them(*_):
        return ["::1", "127.0.0.2", "127.0.0.1"]

    monkeypatch.setattr(resolver, "aaddresses", all_of_them)

    assert publish(TOPIC, {"n": 1})
    assert asyncio.run(apublish(TOPIC, {"n": 2}))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_worker_waits_for_no_thread_of_its_parent(server):
    """Threads do not come along in a fork; the child asks anew."""
    with silent_name_server(NAME) as answering:
        with pytest.raises(PublishError):
            publish(TOPIC, {"n": 1})
        child = os.fork()
        if child == 0:
            answering.set()
            breaker.worked()
            try:
                publish(TOPIC, {"n": 2})
            except BaseException:
                os._exit(1)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
    with redis.Redis.from_url(server.url) as client:
        assert client.xlen(TOPIC.history_key) == 1


def test_the_name_is_what_a_certificate_must_be_for(server, monkeypatch):
    """The address is where to connect; what the other side has to prove is its name."""
    from notifications.broker.connecting import ASYNC_CLASSES

    connection = ASYNC_CLASSES["rediss"](host=NAME, port=1)
    connection._at = "127.0.0.1"

    assert connection._connection_arguments()["host"] == "127.0.0.1"
    assert connection._connection_arguments()["server_hostname"] == NAME
