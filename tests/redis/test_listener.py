"""The bridge in this process, on a real Redis, where a test has to stand between the two."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from math import inf

import pytest

from notifications import Topic, tasks
from notifications.bridge import shard
from notifications.bridge.lease import POLL_INTERVAL, TTL, Lease
from notifications.bridge.listener import Listener
from notifications.broker import pipeline
from notifications.history import get_store
from notifications.history.stamped import digest, tail
from notifications.history.store import Raw
from notifications.metrics import counts
from tests.faults import kill_type
from tests.waiting import await_for, scaled


class Layer:
    """Takes down what the listener forwards."""

    def __init__(self):
        self.texts = []

    async def group_send(self, group, message):
        self.texts.append(message["text"])


async def test_what_was_published_without_an_id_is_not_published_again(live_redis, monkeypatch):
    """A full Redis cannot note which batch was done: when its answer is lost, what came back has been done."""
    stamp_batch, answers = get_store().stamp_batch, []

    async def lose_the_first_answer(*arguments):
        answers.append(await stamp_batch(*arguments))
        if len(answers) == 1:
            raise ConnectionError("closed by Redis")
        return answers[-1]

    monkeypatch.setattr(get_store(), "stamp_batch", lose_the_first_answer)
    listener = Listener(layer := Layer())
    running = asyncio.create_task(listener.run())
    try:
        await await_for(lambda: listener.status.state == "holder")
        live_redis.config_set("maxmemory", 1)
        live_redis.publish("user:1", '{"n":1}')
        await await_for(lambda: layer.texts)
        await await_for(lambda: not len(listener.shards[0].backlog))
        live_redis.publish("user:1", '{"n":2}')
        await await_for(lambda: '{"n":2}' in layer.texts)

        assert layer.texts == ['{"n":1}', '{"n":2}']
    finally:
        live_redis.config_set("maxmemory", 0)
        listener.stop()
        await running


async def test_nothing_is_stamped_before_what_has_no_id_has_reached_its_group(live_redis):
    """A history has a stamped message at once: sockets that read it there would get it before those without ids."""
    go_on, layer = asyncio.Event(), Layer()
    group_send = layer.group_send

    async def be_slow(group, message):
        await go_on.wait()
        await group_send(group, message)

    layer.group_send = be_slow
    listener = Listener(layer)
    running = asyncio.create_task(listener.run())
    try:
        await await_for(lambda: listener.status.state == "holder")
        live_redis.config_set("maxmemory", 1)
        live_redis.publish("user:1", '{"n":1}')
        await await_for(lambda: len(listener._forwarder))
        live_redis.config_set("maxmemory", 0)
        live_redis.publish("user:1", '{"n":2}')
        await await_for(lambda: len(listener.shards[0].backlog) or len(listener._forwarder) > 1)
        for _ in range(20):
            await asyncio.sleep(0)
            [where] = await get_store().look([Topic("user", "1")])
            assert where.last is None

        go_on.set()
        await await_for(lambda: len(layer.texts) == 2)
        assert [text.rpartition(",")[2].lstrip("{") for text in layer.texts] == ['"n":1}', '"n":2}']
        assert '"id"' in layer.texts[1]
    finally:
        live_redis.config_set("maxmemory", 0)
        go_on.set()
        listener.stop()
        await running


async def test_a_layer_that_takes_nothing_does_not_keep_later_messages_from_being_stamped(live_redis, monkeypatch):
    """The wait is bounded: in time, raw messages would be given up."""
    monkeypatch.setattr(shard, "UNSTAMPED_TIMEOUT", 0.1)
    layer, stuck = Layer(), asyncio.Event()
    layer.group_send = lambda group, message: stuck.wait()
    listener = Listener(layer)
    running = asyncio.create_task(listener.run())
    try:
        await await_for(lambda: listener.status.state == "holder")
        live_redis.config_set("maxmemory", 1)
        live_redis.publish("user:1", '{"n":1}')
        await await_for(lambda: len(listener._forwarder))
        live_redis.config_set("maxmemory", 0)
        live_redis.publish("user:1", '{"n":2}')

        await await_for(lambda: len(listener._forwarder) == 2)
    finally:
        live_redis.config_set("maxmemory", 0)
        stuck.set()
        listener.stop()
        await running


async def test_a_batch_is_stamped_though_what_it_waited_for_was_cancelled(live_redis, monkeypatch):
    """And not the listener itself: whether it was done is not known, so it is asked for again, and done once."""
    stamp_batch, answers = get_store().stamp_batch, []

    async def be_cancelled_after_the_first(*arguments):
        answers.append(await stamp_batch(*arguments))
        if len(answers) == 1:
            raise asyncio.CancelledError
        return answers[-1]

    async def be_cancelled_before_the_second(*arguments):
        if len(answers) == 2:
            answers.append(None)
            raise asyncio.CancelledError
        return await be_cancelled_after_the_first(*arguments)

    monkeypatch.setattr(get_store(), "stamp_batch", be_cancelled_before_the_second)
    listener = Listener(layer := Layer())
    running = asyncio.create_task(listener.run())
    try:
        await await_for(lambda: listener.status.state == "holder")
        for n in range(1, 4):
            live_redis.publish("user:1", f'{{"n":{n}}}')
            await await_for(lambda n=n: len(layer.texts) == n)

        assert [text[-8:] for text in layer.texts] == ['},"n":1}', '},"n":2}', '},"n":3}']
    finally:
        listener.stop()
        await running


# What was read before a gap. Each test begins with a stand-by that has read ``{"n":1}``, and a holder that has not.


@asynccontextmanager
async def renewed(client):
    """Renew whoever's lease, as a holder does: on a busy machine a test may take longer than a lease lasts."""

    async def renew():
        while True:
            client.pexpire("notifications:lease", int(TTL * 1000))
            await asyncio.sleep(POLL_INTERVAL)

    renewing = asyncio.create_task(renew())
    try:
        yield
    finally:
        renewing.cancel()


class Holder:
    """Another listener, as far as Redis can tell."""

    def __init__(self):
        self._lease = Lease()
        self._batches = 0

    async def lead(self):
        self._lease.subscribed()
        assert await self._lease.take()
        self._lease._until = inf  # it is renewed

    async def stamp(self, n):
        self._batches += 1
        data = b'{"n":%d}' % n
        batch = [Raw(Topic("user", "1"), tail(data), digest=digest(b"user:1", data))]
        await get_store().stamp_batch(self._lease.key, self._lease.token, self._batches, batch)

    async def stop(self):
        await self._lease.release()


def waiting(listener):
    """Return how many raw messages the listener has read of which it does not know that they are stamped."""
    [shard] = listener.shards
    shard.standby.settle(asyncio.get_running_loop().time())
    return len(shard)


@asynccontextmanager
async def a_stand_by(live_redis):
    """Start a listener beside a holder, and give it a message that the holder has not heard."""
    holder = Holder()
    await holder.lead()
    listener = Listener(layer := Layer())
    running = asyncio.create_task(listener.run())
    try:
        async with renewed(live_redis):
            await await_for(lambda: listener.status.state == "stand-by")
            live_redis.publish("user:1", '{"n":1}')
            await await_for(lambda: waiting(listener) == 1)
            yield listener, layer, holder
    finally:
        listener.stop()
        await running


def meanwhile(doing):
    """Do something while this event loop stands still, and the listener in it notices nothing."""
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, doing).result()


async def numbers_after_a_gap(live_redis, in_the_gap):
    """Return the numbers that the stand-by forwards when it leads at last, up to 9, which is published then."""
    async with a_stand_by(live_redis) as (listener, layer, holder):
        live_redis.client_kill_filter(_type="pubsub")
        meanwhile(in_the_gap(holder))

        await await_for(lambda: listener.status.state == "holder", 10)
        live_redis.publish("user:1", '{"n":9}')
        await await_for(lambda: any('"n":9}' in text for text in layer.texts))
        return [int(text.rpartition(":")[2].rstrip("}")) for text in layer.texts]


async def test_what_a_dead_holder_left_is_stamped_after_a_gap(live_redis):
    """Nobody else has it."""

    async def dies(holder):
        await holder.stop()

    assert await numbers_after_a_gap(live_redis, dies) == [1, 9]


async def test_a_message_does_not_come_behind_what_another_holder_stamped_in_a_gap(live_redis):
    """Whoever led meanwhile had not heard it, and stamped later ones: better lost than out of order."""

    async def is_followed(holder):
        await holder.stop()
        live_redis.delete("notifications:candidates")  # the stand-by has not asked for a while: it was paused
        heir = Holder()
        await heir.lead()
        await heir.stamp(2)
        await heir.stop()

    assert 1 not in await numbers_after_a_gap(live_redis, is_followed)


@pytest.mark.parametrize("n", [1, 2])
async def test_what_went_out_without_an_id_in_a_gap_brings_nothing_again_or_out_of_order(live_redis, n):
    """The holder stays, but Redis is full for a while: no history shows what was forwarded."""

    async def goes_on_without_ids(holder):
        live_redis.config_set("maxmemory", 1)
        await holder.stamp(n)
        live_redis.config_set("maxmemory", 0)
        await holder.lead()
        await holder.stop()

    assert 1 not in await numbers_after_a_gap(live_redis, goes_on_without_ids)


async def test_what_was_published_in_a_gap_overtakes_what_was_read_before_it(live_redis):
    """The holder stamps it when the stand-by listens again."""
    async with a_stand_by(live_redis) as (listener, layer, holder):
        live_redis.client_kill_filter(_type="pubsub")
        await await_for(lambda: listener.shards[0].backlog.kept == 1)
        await await_for(lambda: listener.status.state == "stand-by")

        await holder.stamp(2)
        await await_for(lambda: not waiting(listener))
        await holder.stop()

        await await_for(lambda: listener.status.state == "holder", 10)
        assert not any('"n":1}' in text for text in layer.texts)


# States, on a real Redis.


def recorded(listener):
    """List the states that a listener goes through, from now on."""
    states, move = [], listener.shards[0].machine.move

    def record(to, reason=""):
        move(to, reason)
        states.append(to.name)

    listener.shards[0].machine.move = record
    return states


async def test_a_listener_goes_from_state_to_state_and_to_the_end(live_redis, monkeypatch):
    """It begins, leads, is cut off, comes back, leads again, and stops; each word of its report follows from that."""
    listener = Listener(Layer())
    states, reports = recorded(listener), []
    monkeypatch.setattr(
        listener.status, "now", lambda state, now=listener.status.now: (reports.append(state), now(state))
    )
    running = asyncio.create_task(listener.run())
    await await_for(lambda: states[-1:] == ["HOLDER"])
    assert states == ["SETTLING", "STAND_BY", "TAKING_OVER", "HOLDER"]

    kill_type(live_redis, "pubsub")
    await await_for(lambda: states[-1] == "HOLDER" and len(states) > 4)
    listener.stop()
    await running

    assert states[4:10] == ["HANDING_OVER", "DISCONNECTED", "SETTLING", "STAND_BY", "TAKING_OVER", "HOLDER"]
    assert states[10:] == ["DRAINING", "STOPPING", "STOPPED"]
    assert [report.partition(":")[0] for report in reports] == [
        "stand-by",
        "holder",
        "disconnected",
        "stand-by",
        "holder",
    ]
    assert live_redis.hgetall("notifications:listeners") == {}


@contextmanager
def held_up(monkeypatch, owner, name, word=None):
    """Hold up an asynchronous function, or its calls with a first word; yields the calls, and what lets them go on."""
    call, waiting, go_on = getattr(owner, name), [], asyncio.Event()

    async def wait_and_call(*arguments, **options):
        if word is None or arguments[0] == word:
            waiting.append(arguments)
            await go_on.wait()
        return await call(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, wait_and_call)
        yield waiting, go_on
        go_on.set()


async def test_a_listener_that_stops_while_it_takes_over_leaves_no_lease_behind(live_redis, monkeypatch):
    """A stand-by need not wait for the end of a lease that nobody ever used."""
    listener = Listener(Layer())
    states = recorded(listener)
    with held_up(monkeypatch, pipeline, "acall", "PUBLISH") as (waiting, _):
        running = asyncio.create_task(listener.run())
        await await_for(lambda: waiting)
        assert states[-1] == "TAKING_OVER"
        assert live_redis.exists("notifications:lease")
        listener.stop()
        await running

    assert states[-2:] == ["STOPPING", "STOPPED"]
    assert not live_redis.exists("notifications:lease")


async def test_a_listener_that_is_cut_off_while_it_takes_over_comes_back_as_a_stand_by(live_redis, monkeypatch, caplog):
    """Its marker can no longer reach it: it gives the lease back, and takes over when it is subscribed again."""
    listener = Listener(Layer())
    states = recorded(listener)
    running = asyncio.create_task(listener.run())
    with held_up(monkeypatch, pipeline, "acall", "PUBLISH") as (waiting, go_on):
        await await_for(lambda: waiting)
        kill_type(live_redis, "pubsub")
        await await_for(lambda: "DISCONNECTED" in states)
        go_on.set()
        await await_for(lambda: states[-1] == "HOLDER")
    listener.stop()
    await running

    assert "TAKING_OVER DISCONNECTED SETTLING STAND_BY TAKING_OVER HOLDER" in " ".join(states)
    assert "could not take over: cut off while taking over" in caplog.text


async def test_a_take_over_under_which_something_was_cancelled_is_tried_again(live_redis, monkeypatch):
    """It must not wait for ever for a marker that it has not sent."""
    monkeypatch.setattr(tasks, "RESTART_DELAY", 0.01)
    acall, cancelled = pipeline.acall, []

    async def be_cancelled(*words, **options):
        if words[0] == "PUBLISH" and not cancelled:
            cancelled.append(None)
            raise asyncio.CancelledError
        return await acall(*words, **options)

    monkeypatch.setattr(pipeline, "acall", be_cancelled)
    listener = Listener(Layer())
    states = recorded(listener)
    running = asyncio.create_task(listener.run())
    await await_for(lambda: states[-1:] == ["HOLDER"])
    listener.stop()
    await running

    assert states[1:6] == ["STAND_BY", "TAKING_OVER", "STAND_BY", "TAKING_OVER", "HOLDER"]


async def test_a_holder_that_is_cut_off_and_told_to_stop_stamps_what_it_has_read(live_redis, monkeypatch):
    """Nobody else may have read it. Then the lease is free, and nothing is said to be lost."""
    listener = Listener(Layer())
    states = recorded(listener)
    running = asyncio.create_task(listener.run())
    await await_for(lambda: states[-1:] == ["HOLDER"])
    lost = counts["dropped", "not forwarded in time before the end"]
    with held_up(monkeypatch, get_store(), "stamp_batch") as (waiting, go_on):
        live_redis.publish("user:1", '{"n":1}')
        await await_for(lambda: waiting)
        kill_type(live_redis, "pubsub")
        await await_for(lambda: states[-1] == "HANDING_OVER")
        listener.stop()
        await await_for(lambda: states[-1] == "DRAINING")
        go_on.set()
        await running

    assert states[-3:] == ["DRAINING", "STOPPING", "STOPPED"]
    [where] = await get_store().look([Topic.for_user(1)])
    assert where.last.n == 1
    assert not live_redis.exists("notifications:lease")
    assert counts["dropped", "not forwarded in time before the end"] == lost


async def test_a_listener_without_redis_stops_at_once(live_redis, settings):
    """It has nothing to finish."""
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "REDIS_URL": "redis://127.0.0.1:1/0"}
    listener = Listener(Layer())
    states = recorded(listener)
    running = asyncio.create_task(listener.run())
    await await_for(lambda: states)
    listener.stop()
    async with asyncio.timeout(scaled()):
        await running

    assert set(states[:-2]) == {"DISCONNECTED"}
    assert states[-2:] == ["STOPPING", "STOPPED"]


async def test_a_listener_that_stops_while_it_asks_for_the_lease_leaves_none_behind(live_redis, monkeypatch):
    """What Redis has answered is not known yet, and may be that the lease is its."""
    arun, answered, go_on = pipeline.arun, [], asyncio.Event()

    async def answer_late(script, keys, arguments, *rest, **options):
        answer = await arun(script, keys, arguments, *rest, **options)
        if "notifications:lease" in keys and not answered:
            answered.append(answer)
            await go_on.wait()
        return answer

    monkeypatch.setattr(pipeline, "arun", answer_late)
    listener = Listener(Layer())
    states = recorded(listener)
    running = asyncio.create_task(listener.run())
    await await_for(lambda: answered)
    assert live_redis.exists("notifications:lease")
    listener.stop()
    await await_for(lambda: states[-1] == "STOPPING")
    asyncio.get_running_loop().call_later(0.05, go_on.set)
    await running

    assert not live_redis.exists("notifications:lease")


async def test_a_holder_that_is_told_to_stop_and_then_cut_off_stamps_what_it_has_read(live_redis, monkeypatch):
    """Whether Redis has confirmed that it hears nothing more does not matter: it hears nothing more."""
    listener = Listener(Layer())
    states = recorded(listener)
    running = asyncio.create_task(listener.run())
    await await_for(lambda: states[-1:] == ["HOLDER"])
    lost = counts["dropped", "not forwarded in time before the end"]
    with held_up(monkeypatch, get_store(), "stamp_batch") as (waiting, go_on):
        live_redis.publish("user:1", '{"n":1}')
        await await_for(lambda: waiting)
        unsubscribe = listener._shared.subscription.unsubscribe

        def be_cut_off(*names, **options):
            kill_type(live_redis, "pubsub")
            return unsubscribe(*names, **options)

        monkeypatch.setattr(listener._shared.subscription, "unsubscribe", be_cut_off)
        listener.stop()
        await await_for(lambda: listener._shared.subscription is None)
        go_on.set()
        await running

    assert states[-3:] == ["DRAINING", "STOPPING", "STOPPED"]
    [where] = await get_store().look([Topic.for_user(1)])
    assert where.last is not None
    assert not live_redis.exists("notifications:lease")
    assert counts["dropped", "not forwarded in time before the end"] == lost


async def test_a_history_that_nobody_can_read_does_not_end_a_listener(live_redis, caplog):
    """Somebody has written into it by hand; what was missed in a gap is looked for in it."""
    listener = Listener(layer := Layer())
    states = recorded(listener)
    running = asyncio.create_task(listener.run())
    await await_for(lambda: states[-1:] == ["HOLDER"])
    live_redis.publish("user:1", '{"n":1}')
    await await_for(lambda: layer.texts)

    live_redis.xadd(Topic.for_user(1).history_key, {"by hand": b"\xff"})
    kill_type(live_redis, "pubsub")
    await await_for(lambda: running.done() or "could not look for what was missed" in caplog.text)
    assert not running.done()
    await await_for(lambda: states[-1] == "HOLDER")
    live_redis.publish("user:2", '{"n":2}')
    await await_for(lambda: any('"n":2}' in text for text in layer.texts))

    listener.stop()
    await running


async def test_a_lease_granted_before_a_gap_and_heard_of_after_it_is_given_back(live_redis, monkeypatch):
    """Another stand-by has heard what was published in the gap; whoever has not would let it be lost."""
    arun, granted, go_on = pipeline.arun, [], asyncio.Event()

    async def grant_late(script, keys, arguments, *rest, **options):
        answer = await arun(script, keys, arguments, *rest, **options)
        if "notifications:lease" in keys and answer[0] == 1 and not granted:
            granted.append(answer)
            await go_on.wait()
        return answer

    holder = Holder()
    await holder.lead()
    cut_off, other = Listener(layer := Layer()), Listener(layer)
    states = recorded(cut_off)
    running = [asyncio.create_task(cut_off.run())]
    async with renewed(live_redis):
        await await_for(lambda: states[-1:] == ["STAND_BY"])
        running.append(asyncio.create_task(other.run()))
        await await_for(lambda: other.status.state == "stand-by")

        monkeypatch.setattr(pipeline, "arun", grant_late)
        await holder.stop()
    await await_for(lambda: granted)
    cut_off._shared.subscription.close("cut off")
    await await_for(lambda: "DISCONNECTED" in states)
    live_redis.publish("user:1", '{"n":1}')
    await await_for(lambda: states[-1] == "STAND_BY")
    go_on.set()
    await await_for(lambda: "holder" in (cut_off.status.state, other.status.state))
    live_redis.publish("user:1", '{"n":2}')
    await await_for(lambda: any('"n":2}' in text for text in layer.texts))
    for listener in (cut_off, other):
        listener.stop()
    await asyncio.gather(*running)

    assert [text[-8:] for text in layer.texts] == ['},"n":1}', '},"n":2}']
