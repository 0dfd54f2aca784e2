"""The bridge in this process, on a real Redis, where a test has to stand between the two."""

import asyncio

from notifications.history import get_store
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
