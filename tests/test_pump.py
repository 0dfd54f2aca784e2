"""The last step: texts leave in order whatever a server's ``send`` does, and nothing is left behind."""

import asyncio
import gc
from contextvars import ContextVar

import pytest

from notifications import pump
from notifications.pump import SLICE, Outbox
from tests.waiting import await_for

WHO = ContextVar("WHO", default="nobody")


class Server:
    """An ASGI ``send`` that can be told to wait, as uvicorn's does for a browser that does not read."""

    def __init__(self):
        self.taken = []
        self.ready = asyncio.Event()
        self.ready.set()
        self.error = None

    async def send(self, event):
        await self.ready.wait()
        if self.error is not None:
            raise self.error
        self.taken.append(event["text"])


@pytest.fixture
def server():
    return Server()


@pytest.fixture
def failures():
    return []


@pytest.fixture
async def outbox(server, failures):
    outbox = Outbox(server.send, lambda: failures.append("failed"))
    yield outbox
    outbox.close()
    await outbox.wait_closed()
    await await_for(lambda: not tasks_of_the_pump(), what="the end of all tasks")


def tasks_of_the_pump():
    return [task for task in asyncio.all_tasks() if pump.__file__ in repr(task)]


async def test_texts_leave_in_order(outbox, server):
    for number in range(3 * SLICE):
        outbox.put(str(number))
    await outbox.mark()

    assert server.taken == [str(number) for number in range(3 * SLICE)]


async def test_others_have_their_turn_during_a_burst(outbox, server):
    """A fan-out to thousands of sockets does not hold up what else the process does."""
    seen = []
    for number in range(10 * SLICE):
        outbox.put(str(number))
    while len(server.taken) < 10 * SLICE:
        seen.append(len(server.taken))
        await asyncio.sleep(0)

    assert len(set(seen)) >= 10


async def test_a_send_that_waits_goes_on_where_it_was(outbox, server):
    """What is put meanwhile follows it, in order."""
    server.ready.clear()
    for number in range(5):
        outbox.put(str(number))
    await asyncio.sleep(0.01)
    outbox.put("5")
    assert server.taken == []
    server.ready.set()
    await outbox.mark()
    outbox.put("6")
    await outbox.mark()

    assert server.taken == ["0", "1", "2", "3", "4", "5", "6"]


async def test_a_send_that_waits_again_and_again_loses_nothing(outbox, server):
    """A browser that reads now and then gets all of it once."""
    for number in range(200):
        outbox.put(str(number))
        if number % 7 == 0:
            server.ready.clear()
        elif number % 7 == 4:
            server.ready.set()
        if number % 3 == 0:
            await asyncio.sleep(0)
    server.ready.set()
    await outbox.mark()

    assert server.taken == [str(number) for number in range(200)]


async def test_one_browser_that_does_not_read_holds_up_nobody(outbox, server):
    other = Server()
    its_outbox = Outbox(other.send, lambda: None)
    server.ready.clear()
    outbox.put("for the slow one")
    its_outbox.put("for the other")
    await its_outbox.mark()
    its_outbox.close()

    assert other.taken == ["for the other"]
    assert server.taken == []


async def test_a_server_may_return_any_awaitable(failures):
    """ASGI asks for no coroutine; servers written in other languages return what they like."""
    taken = []

    def send(event):
        taken.append(event["text"])
        done = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(done.set_result, None)
        return done

    outbox = Outbox(send, lambda: failures.append("failed"))
    for number in range(5):
        outbox.put(str(number))
    await outbox.mark()
    outbox.close()

    assert taken == ["0", "1", "2", "3", "4"]
    assert failures == []


async def test_what_wraps_send_sees_the_context_of_its_socket(server):
    """Middlewares keep there who the user is, or which trace this belongs to; also after a wait."""
    seen = []

    async def send(event):
        token = WHO.set(WHO.get() + "'s frame")
        await server.send(event)
        seen.append(WHO.get())
        WHO.reset(token)

    WHO.set("ann")
    ann = Outbox(send, lambda: None)
    WHO.set("ben")
    ben = Outbox(send, lambda: None)
    for outbox in (ann, ben, ann):
        outbox.put("x")
        await outbox.mark()
    server.ready.clear()
    ben.put("x")
    await asyncio.sleep(0)
    server.ready.set()
    await ben.mark()
    ann.close()
    ben.close()

    assert seen == ["ann's frame", "ben's frame", "ann's frame", "ben's frame"]


async def test_a_time_out_around_a_send_may_be_used(server):
    """``asyncio.timeout`` needs a task, and it has one."""

    async def send(event):
        async with asyncio.timeout(10):
            await server.send(event)

    outbox = Outbox(send, lambda: None)
    outbox.put("x")
    await outbox.mark()
    outbox.close()

    assert server.taken == ["x"]


@pytest.mark.parametrize("waits", [False, True])
async def test_a_browser_that_has_gone_is_no_failure(outbox, server, failures, waits):
    """Nothing more is sent; the server says ``websocket.disconnect`` in its own time."""
    server.error = ConnectionResetError()
    if waits:
        server.ready.clear()
    outbox.put("1")
    outbox.put("2")
    await asyncio.sleep(0.01)
    server.ready.set()
    await outbox.mark()
    server.error = None
    outbox.put("3")
    await outbox.mark()

    assert server.taken == []
    assert failures == []


@pytest.mark.parametrize("waits", [False, True])
async def test_a_server_that_breaks_is_told(outbox, server, failures, caplog, waits):
    """Once, with the reason in the log."""
    server.error = ValueError("of the middleware")
    if waits:
        server.ready.clear()
    outbox.put("1")
    outbox.put("2")
    await asyncio.sleep(0.01)
    server.ready.set()
    await outbox.mark()

    assert failures == ["failed"]
    assert "of the middleware" in caplog.text


@pytest.mark.parametrize("waits", [False, True])
async def test_nothing_is_sent_after_a_close(outbox, server, waits):
    """Servers raise for what comes after a close; who waits is let go."""
    if waits:
        server.ready.clear()
    for number in range(3):
        outbox.put(str(number))
    if waits:
        await asyncio.sleep(0.01)
    waiting = outbox.mark()
    await asyncio.sleep(0)
    outbox.close()
    server.ready.set()
    await waiting
    outbox.put("3")
    await outbox.mark()

    assert server.taken == ([] if waits else ["0", "1", "2"])


async def test_the_pump_ends_with_its_last_outbox_and_begins_again(server):
    for number in range(3):
        outbox = Outbox(server.send, lambda: None)
        outbox.put(str(number))
        await outbox.mark()
        assert tasks_of_the_pump()
        outbox.close()
        await await_for(lambda: not tasks_of_the_pump(), what="the end of the pump")

    assert server.taken == ["0", "1", "2"]
    assert pump._pump()._outboxes == 0


def test_a_loop_that_has_ended_is_not_kept(server):
    """Nor is what hangs on it: ``async_to_sync`` makes a loop for each call."""

    async def use():
        outbox = Outbox(server.send, lambda: None)
        outbox.put("x")
        await outbox.mark()
        outbox.close()
        await await_for(lambda: not tasks_of_the_pump())

    before = len(pump._pump._made)
    for _ in range(3):
        asyncio.run(use())
    gc.collect()

    assert len(pump._pump._made) <= before
