"""What there is one of for each event loop goes with it."""

import asyncio
import gc
import socket
import threading
import weakref
from typing import ClassVar

import pytest

from notifications.access import revocation
from notifications.aio import LoopThread, PerLoop, Timeout
from notifications.connection import heartbeat
from notifications.delivery import outbox as outbox_module
from notifications.delivery import reconciler
from notifications.delivery.cursor import Cursor
from notifications.delivery.reconciler import MAX_READS
from notifications.history import get_store
from notifications.history.position import Position
from notifications.topics import Topic
from tests.virtual_time import in_virtual_time
from tests.waiting import await_for, scaled


class Locked:
    """Holds its event loop as soon as somebody has waited for it, as asyncio's locks do."""

    def __init__(self):
        self.lock = asyncio.Lock()


locked = PerLoop(Locked)


async def wait_for_the_lock():
    lock = locked().lock
    await lock.acquire()
    waiting = asyncio.create_task(lock.acquire())
    await asyncio.sleep(0)
    lock.release()
    await waiting
    lock.release()


async def have_a_socket():
    class Socket:
        user = credentials = None
        authorized: ClassVar = {}

    socket = Socket()
    revocation.access().add("1", socket)
    await asyncio.sleep(0.01)
    revocation.access().remove("1", socket)


async def read_histories():
    topic = Topic("user", "1")
    cursor = Cursor(topic, 60)
    reconciler.reconciler().add(cursor, lambda cursor, under_way: None, 1.0)
    reads = [reconciler.reconciler().read(topic, Position(1, n)) for n in range(2 * MAX_READS)]
    await asyncio.gather(*reads, return_exceptions=True)
    reconciler.reconciler().remove(cursor)


async def send():
    async def take(text):
        await asyncio.sleep(0)

    outbox = outbox_module.Outbox(take, lambda: None)
    outbox.put("x")
    await outbox.mark()
    outbox.close()
    await outbox.wait_closed()


async def beat():
    class Socket:
        paused = False

    each = heartbeat.Heartbeat(Socket())
    each.begin()
    each.end()


async def die_with_everything_open():
    """As a loop does that is closed by whoever made it, without a word to those who use it."""

    async def take(text):
        await asyncio.Event().wait()

    outbox_module.Outbox(take, lambda: None).put("x")
    heartbeat.Heartbeat(None).begin()
    await asyncio.sleep(0)


@pytest.mark.parametrize(
    "use", [wait_for_the_lock, have_a_socket, read_histories, send, beat, die_with_everything_open]
)
def test_no_event_loop_is_kept_by_what_it_was_used_for(use, monkeypatch):
    """``async_to_sync`` makes a loop for each call, and a worker may live for months."""
    ended = []

    async def read(topic, position):  # connections to Redis are closed by other means, and replaced by the next loop's
        await asyncio.sleep(0)

    monkeypatch.setattr(get_store(), "read", read)

    async def main():
        ended.append(weakref.ref(asyncio.get_running_loop()))
        await use()

    gc.freeze()  # what there is already need not be looked through, which takes longer than all the rest
    try:
        for _ in range(3):
            asyncio.run(main())
        gc.collect()
        gc.collect()
    finally:
        gc.unfreeze()

    assert [each() for each in ended] == [None] * 3


async def test_each_event_loop_has_one_of_its_own():
    """The same for all who ask in one loop, another in another."""
    mine = locked()
    other = await asyncio.to_thread(asyncio.run, asyncio.wait_for(ask(), scaled()))

    assert locked() is mine
    assert other is not mine


async def ask():
    return locked()


async def test_a_loop_in_a_thread_outlives_what_would_end_a_process():
    """All polls of a process that serves by WSGI depend on it."""
    thread = LoopThread("of a test")

    def leave():
        raise SystemExit

    try:
        first = await thread.run(ask())
        thread._loop.call_soon_threadsafe(leave)
        async with asyncio.timeout(scaled()):
            assert await thread.run(ask()) is first
            assert await thread.run(ask()) is first
    finally:
        thread._loop.call_soon_threadsafe(thread._loop.stop)
        await await_for(lambda: not thread._loop.is_running())
        thread._loop.close()


async def test_a_loop_in_a_thread_is_the_same_for_all_calls():
    """What belongs to a loop, such as a connection to Redis, is there again; results and errors come back."""
    thread = LoopThread("of a test")

    async def ask(error=None):
        if error is not None:
            raise error
        return locked(), threading.current_thread().name

    try:
        (first, name), (second, _) = await thread.run(ask()), await thread.run(ask())
        with pytest.raises(ZeroDivisionError):
            await thread.run(ask(ZeroDivisionError()))
    finally:
        thread._loop.call_soon_threadsafe(thread._loop.stop)
        await await_for(lambda: not thread._loop.is_running())
        thread._loop.close()

    assert first is second
    assert first is not locked()
    assert name == "of a test"


@in_virtual_time
async def test_a_wait_on_a_peer_ends_in_time():
    """In an event loop that runs it is an ordinary time-out."""
    loop = asyncio.get_running_loop()
    began = loop.time()

    with pytest.raises(TimeoutError):
        async with Timeout(2):
            await loop.create_future()

    assert loop.time() - began == pytest.approx(2)
    assert loop.timers == 0


@in_virtual_time
async def test_an_answer_that_came_while_the_loop_was_blocked_is_read():
    """However long that was, and several times; asyncio's own time-out expires together with the reading."""
    loop = asyncio.get_running_loop()
    ours, peers = socket.socketpair()
    with ours, peers:
        ours.setblocking(False)

        async with Timeout(2):
            for _ in range(Timeout.STEPS):
                loop.call_soon(peers.send, b"an answer")
                loop.call_soon(loop.stand_still, 60)
                assert await loop.sock_recv(ours, 100) == b"an answer"

    assert loop.timers == 0


@in_virtual_time
async def test_a_peer_that_is_silent_gets_little_more_time_from_a_blocked_loop():
    loop = asyncio.get_running_loop()
    began = loop.time()
    loop.call_soon(loop.stand_still, 60)

    with pytest.raises(TimeoutError):
        async with Timeout(2):
            await loop.create_future()

    assert loop.time() - began == pytest.approx(60 + 2 * Timeout.LAST_PART)


@in_virtual_time
async def test_no_time_at_all_is_over_at_once():
    loop = asyncio.get_running_loop()
    began = loop.time()

    for seconds in (0, -1):
        with pytest.raises(TimeoutError):
            async with Timeout(seconds):
                await loop.create_future()

    assert loop.time() == began
    assert loop.timers == 0


@in_virtual_time
async def test_a_wait_that_is_begun_again_has_all_of_its_time():
    loop = asyncio.get_running_loop()
    began = loop.time()

    async def wait():
        async with Timeout(2) as limit:
            await asyncio.sleep(1.9)  # into the last part
            limit.restart(3)
            await loop.create_future()

    with pytest.raises(TimeoutError):
        await wait()

    assert loop.time() - began == pytest.approx(1.9 + 3)
    assert loop.timers == 0


@in_virtual_time
async def test_a_wait_that_is_begun_again_when_its_time_is_over_has_all_of_its_time():
    """The loop was blocked to the end, and what it read then begins the wait again."""
    loop = asyncio.get_running_loop()
    answer = loop.create_future()

    async def wait():
        async with Timeout(2) as limit:
            await answer
            limit.restart(3)
            await asyncio.sleep(2)

    loop.call_later(2, answer.set_result, None)  # in the iteration in which the time is over

    await wait()


@in_virtual_time
async def test_a_cancellation_during_a_wait_is_none_of_its_business():
    async def wait():
        async with Timeout(2):
            await asyncio.get_running_loop().create_future()

    waiting = asyncio.create_task(wait())
    await asyncio.sleep(1)
    waiting.cancel()

    with pytest.raises(asyncio.CancelledError):
        await waiting
