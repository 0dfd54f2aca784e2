"""Event loops that come and go: what belongs to one ends with it, however whoever made it is done with it."""

import asyncio
import gc
import logging
import threading
import weakref

import psutil
import pytest
import redis
import uvloop

from notifications import PublishError, adisconnect_user, apublish
from notifications.aio import PerLoop
from notifications.broker.clients import async_client
from notifications.history import get_store
from notifications.layers import RedisPubSubLayer
from notifications.tasks import Supervised
from notifications.topics import Topic
from project.local_redis import LocalRedis
from tests.waiting import await_for, scaled, wait_for

ROUNDS = 20
PARTS = 20


@pytest.fixture(autouse=True)
def _nothing_of_other_tests():
    """What they have forgotten would be heard of when the tests here look whether they have left anything."""
    gc.collect()


@pytest.fixture
def server(redis_program, settings):
    with LocalRedis() as server:
        settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "REDIS_URL": server.url}
        yield server


@pytest.fixture
def layer(server):
    return RedisPubSubLayer(hosts=[server.url])


@pytest.fixture(params=[False, True], ids=["", "asyncgens"])
def finalises(request):
    """Whether a loop finalises asynchronous generators before it is closed, as an example in Python's documentation."""
    return request.param


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def use_and_close(request, finalises):
    """Return a function that runs a coroutine in a loop of its own and closes it, as old task queues do."""

    def use(coroutine):
        loop = request.param()
        try:
            return loop.run_until_complete(coroutine)
        finally:
            if finalises:
                loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()  # no task was cancelled

    return use


async def call_the_client(_layer):
    await (await async_client()).ping()


USES = {
    "layer": lambda layer: layer.group_send("group", {"type": "x"}),
    "layer's channel": lambda layer: layer.new_channel(),
    "publish": lambda _layer: apublish("user:1", {"n": 1}),
    "histories": lambda _layer: get_store().look([Topic.for_user(1)]),
    "control": lambda _layer: adisconnect_user(1),
    "client": call_the_client,
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_loops_that_are_only_closed_leave_nothing(server, layer, use_and_close, use, caplog):
    """No connection, no open file, no task and no word of asyncio, before the garbage collector comes."""
    caplog.set_level(logging.WARNING)
    process = psutil.Process()
    with redis.Redis.from_url(server.url) as client:
        client.ping()
        gc.collect()
        gc.disable()
        try:
            use_and_close(use(layer))
            before = process.num_fds()
            for _ in range(ROUNDS):
                use_and_close(use(layer))
            assert process.num_fds() <= before
        finally:
            gc.enable()
        wait_for(lambda: len(client.client_list()) == 1, what="the end of the connections")
    gc.collect()
    assert caplog.text == ""


def test_what_is_sent_from_loops_that_are_only_closed_arrives(server, layer, use_and_close, caplog):
    """Each message once, in order, also if the system takes them in several parts."""

    async def send(n):
        for part in range(PARTS):
            await layer.group_send("group", {"type": "x", "n": n * PARTS + part, "much": "x" * 50_000})

    with redis.Redis.from_url(server.url) as client, client.pubsub(ignore_subscribe_messages=True) as ear:
        ear.subscribe("asgi/group/group")
        ear.get_message(timeout=scaled())
        for n in range(ROUNDS):
            use_and_close(send(n))
        got = [layer_message(ear.get_message(timeout=scaled())) for _ in range(ROUNDS * PARTS)]
    assert got == list(range(ROUNDS * PARTS))
    assert caplog.text == ""


def layer_message(message):
    from notifications.channel_layer.serializer import decode

    return decode(message["data"])["n"]


def test_a_loop_that_redis_does_not_answer_closes_in_time(server, layer, use_and_close):
    """The end of a loop waits for what was sent, and not for ever."""
    from tests.faults import paused

    async def begin():
        await layer.group_send("group", {"type": "x"})

    async def send_to_the_silent():
        await layer.group_send("group", {"type": "x"})
        with paused(server.child):
            await layer.group_send("group", {"type": "x"})
            return asyncio.get_running_loop().time()

    use_and_close(begin())
    use_and_close(send_to_the_silent())


def test_a_loop_that_is_closed_while_another_runs_is_closed(server, layer):
    """In its own thread nothing can run in it then; it ends and closes all the same."""
    old = asyncio.new_event_loop()
    old.run_until_complete(layer.group_send("group", {"type": "x"}))

    async def close_it():
        old.close()

    asyncio.run(close_it())
    assert old.is_closed()
    with redis.Redis.from_url(server.url) as client:
        wait_for(lambda: len(client.client_list()) == 1, what="the end of the connections")


@pytest.mark.filterwarnings("ignore:unclosed event loop:ResourceWarning")
def test_a_loop_that_nobody_closes_may_go():
    """What has an end does not keep a loop that was only dropped, and is ended with it."""
    ended = []

    async def end(made):
        ended.append(made)

    own = PerLoop(object, end)
    loop = asyncio.new_event_loop()

    async def ask():
        return own() is own()

    assert loop.run_until_complete(ask())
    gone = weakref.ref(loop)
    del loop
    gc.collect()
    assert len(ended) == 1
    assert gone() is None


def test_every_instance_is_ended_once_though_forgotten_or_failing(caplog):
    """One end that fails does not keep the loop open; what was forgotten by a change of settings is ended, too."""
    ended = []

    async def end(made):
        ended.append(made)
        if len(ended) == 1:
            raise RuntimeError("cannot end")

    own, others = PerLoop(object, end), PerLoop(object, end)

    async def use():
        first = own()
        own.forget()
        return [first, own(), others()]

    loop = asyncio.new_event_loop()
    made = loop.run_until_complete(use())
    loop.close()

    assert sorted(map(id, ended)) == sorted(map(id, made))
    assert "could not be ended" in caplog.text


def test_threads_have_loops_of_their_own(server, layer):
    failed = []

    def work():
        try:
            for _ in range(5):
                loop = asyncio.new_event_loop()
                loop.run_until_complete(layer.group_send("group", {"type": "x"}))
                loop.run_until_complete(apublish("user:1", {"n": 1}))
                loop.close()
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(scaled(30))
    assert failed == []
    with redis.Redis.from_url(server.url) as client:
        wait_for(lambda: len(client.client_list()) == 1, what="the end of the connections")


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_what_is_used_while_a_loop_closes_ends_with_it(server, layer, use_and_close, use, finalises, caplog):
    """Also what had ended already, and is made anew: the end of one thing may use another."""
    if finalises and use is call_the_client:
        pytest.skip("redis-py's pools have asynchronous generators, which are begun too late then")
    used = []

    async def use_it_again(made):
        await use(layer)
        used.append(made)

    last = PerLoop(object, use_it_again)

    async def begin():
        last()  # the first is ended last
        await use(layer)

    with redis.Redis.from_url(server.url) as client:
        client.ping()
        use_and_close(begin())
        wait_for(lambda: len(client.client_list()) == 1, what="the end of the connections")
    gc.collect()
    assert len(used) == 1
    assert caplog.text == ""


@pytest.mark.parametrize("steps", [1, 2, 5, 20, 50])
def test_a_call_under_way_when_a_loop_closes_leaves_no_connection(server, layer, use_and_close, steps, caplog):
    """It fails with the connection it was made on, or is cancelled with its opening; it opens no other."""
    failed = []

    async def publish_on():
        try:
            while True:
                await apublish("user:1", {"n": 1})
        except PublishError as error:
            failed.append(error)

    async def begin():
        publishing = asyncio.create_task(publish_on())
        for _ in range(steps):
            await asyncio.sleep(0)
        return publishing

    with redis.Redis.from_url(server.url) as client:
        publishing = use_and_close(begin())
        wait_for(lambda: len(client.client_list()) == 1, what="the end of the connections")
    assert publishing.done()
    assert failed or publishing.cancelled()
    gc.collect()
    assert "pending" not in caplog.text


def test_supervised_tasks_end_with_a_loop_that_is_only_closed(use_and_close, caplog):
    """Also those that are started while it closes, and those that wait to be started again."""
    begun, ended = [], []

    class Job:
        def __init__(self, name, fails=False):
            self.name, self.fails = name, fails
            self.supervised = Supervised(name, self.run)
            self.supervised.start()

        async def run(self):
            begun.append(self.name)
            try:
                if self.fails:
                    raise ZeroDivisionError
                await asyncio.Event().wait()
            finally:
                ended.append(self.name)

    async def end(made):
        Job("late")
        await asyncio.sleep(0.01)

    closing = PerLoop(object, end)
    names = {"early", "failing", "late"}

    async def use():
        jobs = [Job("early"), Job("failing", fails=True)]
        closing()
        await await_for(lambda: {"early", "failing"} <= set(begun))
        return jobs

    jobs = use_and_close(use())

    assert set(begun) == set(ended) == names
    assert all(job.supervised._timer is None for job in jobs)
    gc.collect()
    assert "pending" not in caplog.text
