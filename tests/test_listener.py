"""The bridge in this process, on a real Redis, where a test has to stand between the two."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

import pytest

from notifications import Topic
from notifications.history import get_store
from notifications.history.stamped import tail
from notifications.lease import Lease
from notifications.listener import Listener
from tests.waiting import await_for


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
        await await_for(lambda: not len(listener._backlog))
        live_redis.publish("user:1", '{"n":2}')
        await await_for(lambda: '{"n":2}' in layer.texts)

        assert layer.texts == ['{"n":1}', '{"n":2}']
    finally:
        live_redis.config_set("maxmemory", 0)
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


class Holder:
    """Another listener, as far as Redis can tell."""

    def __init__(self):
        self._lease = Lease()
        self._batches = 0

    async def lead(self):
        self._lease.subscribed()
        assert await self._lease.take()

    async def stamp(self, n):
        self._batches += 1
        batch = [(Topic("user", "1"), tail(b'{"n":%d}' % n))]
        await get_store().stamp_batch(self._lease.key, self._lease.token, self._batches, batch)

    async def stop(self):
        await self._lease.release()


@asynccontextmanager
async def a_stand_by(live_redis):
    """Start a listener beside a holder, and give it a message that the holder has not heard."""
    holder = Holder()
    await holder.lead()
    listener = Listener(layer := Layer())
    running = asyncio.create_task(listener.run())
    try:
        await await_for(lambda: listener.status.state == "stand-by")
        live_redis.publish("user:1", '{"n":1}')
        await await_for(lambda: len(listener._backlog) == 1)
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
        await await_for(lambda: listener._backlog.kept == 1)
        await await_for(lambda: listener.status.state == "stand-by")

        await holder.stamp(2)
        await await_for(lambda: not len(listener._backlog))
        await holder.stop()

        await await_for(lambda: listener.status.state == "holder", 10)
        assert not any('"n":1}' in text for text in layer.texts)
