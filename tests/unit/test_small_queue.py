"""A queue and an event that take little memory, and otherwise do what asyncio's do."""

import asyncio

import pytest

from notifications.aio import SmallEvent, SmallQueue
from tests.waiting import scaled


@pytest.fixture(params=[asyncio.Queue, SmallQueue])
def queue(request):
    return request.param()


async def taken(queue, count):
    return [await asyncio.wait_for(queue.get(), scaled()) for _ in range(count)]


async def test_items_come_in_order_and_once(queue):
    reading = asyncio.create_task(taken(queue, 3))
    await asyncio.sleep(0)
    for item in "abc":
        queue.put_nowait(item)

    assert await reading == ["a", "b", "c"]
    assert queue.empty()


async def test_several_readers_share_the_items(queue):
    reading = [asyncio.create_task(taken(queue, 1)) for _ in range(3)]
    await asyncio.sleep(0)
    queue.put_nowait("a")
    queue.put_nowait("b")
    await asyncio.sleep(0)
    queue.put_nowait("c")

    assert sorted(item for [item] in await asyncio.gather(*reading)) == ["a", "b", "c"]


@pytest.mark.parametrize("cancelled", ["before the item", "after it"])
async def test_a_reader_that_is_cancelled_takes_nothing_with_it(queue, cancelled):
    """Also when it was woken for an item; another reader gets that."""
    gone = asyncio.create_task(queue.get())
    await asyncio.sleep(0)
    other = asyncio.create_task(taken(queue, 1))
    await asyncio.sleep(0)
    if cancelled == "before the item":
        gone.cancel()
    queue.put_nowait("a")
    gone.cancel()

    assert await other == ["a"]
    assert (await asyncio.gather(gone, return_exceptions=True))[0].__class__ is asyncio.CancelledError


async def test_readers_that_have_given_up_are_forgotten():
    """An application may look for messages with a time-out again and again, while its client says nothing."""
    queue = SmallQueue()
    for _ in range(3):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(queue.get(), 0.001)

    assert queue._waiters == []


async def test_an_event_lets_all_who_wait_go_on():
    """It is set from the beginning, and may be cleared again before they go on."""
    event = SmallEvent()
    await event.wait()
    event.set()
    event.clear()
    waiting = [asyncio.create_task(event.wait()) for _ in range(2)]
    await asyncio.sleep(0)
    event.clear()
    assert not any(task.done() for task in waiting)
    assert not event.is_set()
    event.set()
    event.clear()

    await asyncio.wait_for(asyncio.gather(*waiting), scaled())
    assert not event.is_set()
    event.set()
    assert event.is_set()
