"""The last step: texts leave in order whatever a server's ``send`` does, and nothing is left behind."""

import asyncio
import contextlib
import gc
import weakref
from contextvars import ContextVar
from functools import partial
from types import SimpleNamespace

import pytest

from notifications import aio, metrics
from notifications.delivery import outbox as module
from notifications.delivery.outbox import SLICE, Outbox
from notifications.logs import LogBudget
from tests.waiting import await_for, scaled

WHO = ContextVar("WHO", default="nobody")


class Server:
    """A transport that can be told to wait, as uvicorn's ``send`` does for a browser that does not read."""

    def __init__(self):
        self.taken = []
        self.ready = asyncio.Event()
        self.ready.set()
        self.error = None

    async def send(self, text):
        await self.ready.wait()
        if self.error is not None:
            raise self.error
        self.taken.append(text)


@pytest.fixture(autouse=True)
def unsaid(monkeypatch):
    """Let no test use up what the log may hold in a minute."""
    monkeypatch.setattr(module, "_log", LogBudget(module.logger))


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
    return [task for task in asyncio.all_tasks() if task.get_name() == aio.NAME]


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


async def test_what_waits_for_a_socket_is_sent_together():
    """Then a server can pass it to the operating system at once, which costs less than one write for each message."""
    sent = []

    async def send(name, text):
        sent.append(name + text)

    outboxes = [Outbox(partial(send, name), lambda: None) for name in "ab"]
    for text in "123":
        for each in outboxes:
            each.put(text)
    await outboxes[1].mark()
    for each in outboxes:
        each.close()

    assert sent == ["a1", "a2", "a3", "b1", "b2", "b3"]


async def test_a_socket_for_which_much_waits_lets_others_have_their_turn(outbox, server):
    for number in range(10 * SLICE):
        outbox.put(str(number))
    other = Outbox(Server().send, lambda: None)
    other.put("x")
    await other.mark()
    other.close()

    assert len(server.taken) <= 2 * SLICE


@pytest.fixture
def small_heap():
    """Spare the garbage collector what there is already: looking through it takes longer than the test."""
    gc.freeze()
    yield
    gc.unfreeze()


async def test_what_waits_is_nothing_for_the_garbage_collector(outbox, server, small_heap):
    """An object for each message and socket would have it traverse all sockets again and again."""
    outboxes = [Outbox(server.send, lambda: None) for _ in range(10)]
    gc.collect()
    before = len(gc.get_objects())
    for number in range(100):
        for each in outboxes:
            each.put(str(number))
    more = len(gc.get_objects()) - before
    for each in outboxes:
        each.close()

    assert more < 100


class Writer(Server):
    """A transport that also accepts texts without a coroutine, unless it is full."""

    def __init__(self):
        super().__init__()
        self.writes = []
        self.is_full = False

    def write(self, texts):
        if self.error is not None:
            raise self.error
        if not self.is_full:
            self.writes.append(list(texts))
            self.taken += texts
        return not self.is_full


@pytest.fixture
async def writer(failures):
    writer = Writer()
    writer.outbox = Outbox(writer.send, lambda: failures.append("failed"), writer.write)
    yield writer
    writer.outbox.close()
    await writer.outbox.wait_closed()


async def test_a_transport_that_can_is_given_texts_together(writer):
    """There is no coroutine for any of them; a mark among them is no text."""
    for text in "12":
        writer.outbox.put(text)
    marks = [writer.outbox.mark()]
    writer.outbox.put("3")
    marks.append(writer.outbox.mark())

    assert await asyncio.gather(*marks) == [True, True]
    assert writer.writes == [["1", "2", "3"]]


async def test_what_a_transport_cannot_write_waits_in_order(writer):
    """While the browser does not read, ``send`` waits for it, and everything else behind that."""
    writer.outbox.put("1")
    await writer.outbox.mark()
    writer.is_full = True
    writer.ready.clear()
    for text in "23":
        writer.outbox.put(text)
    await asyncio.sleep(0)
    writer.is_full = False
    writer.outbox.put("4")
    await asyncio.sleep(0)
    assert writer.taken == ["1"]
    writer.ready.set()
    await writer.outbox.mark()

    assert writer.taken == ["1", "2", "3", "4"]


async def test_texts_stay_in_order_however_often_a_transport_is_full(writer):
    """Whether they are written together or wait one by one; a mark is set when all before it are accepted."""
    seen = []

    def accepted(before, mark):
        seen.append(mark.result() and len(writer.taken) >= before)

    for number in range(500):
        writer.outbox.put(str(number))
        if number % 5 == 0:
            writer.outbox.mark().add_done_callback(partial(accepted, number + 1))
        if number % 7 == 0:
            writer.is_full = not writer.is_full
        if number % 11 == 0:
            writer.ready.clear()
        elif number % 11 == 6:
            writer.ready.set()
        if number % 3 == 0:
            await asyncio.sleep(0)
    writer.ready.set()
    await writer.outbox.mark()
    await asyncio.sleep(0)

    assert writer.taken == [str(number) for number in range(500)]
    assert seen == [True] * 100
    assert len(writer.writes) > 10


@pytest.mark.parametrize(("error", "said"), [(ConnectionResetError(), []), (ValueError("of the server"), ["failed"])])
async def test_a_write_that_fails_is_as_a_send_that_fails(writer, failures, error, said):
    writer.error = error
    writer.outbox.put("1")

    assert await writer.outbox.mark() is False
    assert failures == said
    assert not writer.outbox.is_open


async def test_what_was_accepted_before_an_error_is_marked(outbox, server, failures):
    """A later text that fails makes nothing of it undone."""
    outbox.put("1")
    first = outbox.mark()
    outbox.put("2")
    second = outbox.mark()
    take = server.taken.append

    def take_one(text):
        take(text)
        server.error = ValueError()

    server.taken = SimpleNamespace(append=take_one)

    assert await asyncio.gather(first, second) == [True, False]
    assert failures == ["failed"]


async def test_a_mark_needs_no_turn_when_nothing_waits(outbox):
    assert outbox.mark().result() is True


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


async def test_what_wraps_send_sees_the_context_of_its_socket(server):
    """Middlewares keep there who the user is, or which trace this belongs to; also after a wait."""
    seen = []

    async def send(text):
        token = WHO.set(WHO.get() + "'s frame")
        await server.send(text)
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

    async def send(text):
        async with asyncio.timeout(scaled()):
            await server.send(text)

    outbox = Outbox(send, lambda: None)
    outbox.put("x")
    await outbox.mark()
    outbox.close()

    assert server.taken == ["x"]


async def time_out(send, text):
    async with asyncio.timeout(0.002):
        await send(text)


async def cancel_oneself(send, text):
    asyncio.current_task().cancel()
    await send(text)


async def cancel_oneself_later(send, text):
    asyncio.get_running_loop().call_later(0.002, asyncio.current_task().cancel)
    await send(text)


async def cancel_oneself_and_raise(send, text):
    asyncio.current_task().cancel()
    raise ValueError


async def fail_in_a_group(send, text):
    async def fail():
        raise ValueError

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(fail())
        await send(text)


async def be_told_that_something_else_was_cancelled(send, text):
    other = asyncio.get_running_loop().create_future()
    other.cancel()
    await other


@pytest.mark.parametrize(
    "middleware",
    [
        time_out,
        cancel_oneself,
        cancel_oneself_later,
        cancel_oneself_and_raise,
        fail_in_a_group,
        be_told_that_something_else_was_cancelled,
    ],
)
async def test_what_a_middleware_does_to_its_task_ends_its_own_socket_only(middleware, server, failures):
    """A time-out or a cancel scope around ``send`` reaches no other socket, and its own is told to come back."""
    server.ready.clear()
    others = [Server() for _ in range(3)]
    theirs = [Outbox(other.send, lambda: failures.append("another")) for other in others]
    outbox = Outbox(lambda text: middleware(server.send, text), lambda: failures.append("its own"))

    for number in range(5):
        outbox.put(str(number))
        for each in theirs:
            each.put(str(number))
    await await_for(lambda: failures, what="the end of the socket")
    for each in theirs:
        each.put("5")
        await each.mark()
        each.close()
    await outbox.mark()
    await outbox.wait_closed()

    assert failures == ["its own"]
    assert [other.taken for other in others] == [["0", "1", "2", "3", "4", "5"]] * 3
    await await_for(lambda: not tasks_of_the_pump(), what="the end of all tasks")


async def test_a_timer_that_a_middleware_forgot_ends_nothing(outbox, server):
    """It cancels a task that nobody needs any more; what is sent later gets another."""
    wrapped = Outbox(lambda text: cancel_oneself_later(server.send, text), lambda: None)
    for number in range(5):
        wrapped.put(str(number))
        await wrapped.mark()
        await asyncio.sleep(0.01)
    outbox.put("5")
    await outbox.mark()
    wrapped.close()
    await wrapped.wait_closed()

    assert server.taken == ["0", "1", "2", "3", "4", "5"]


async def test_a_middleware_that_swallows_its_time_out_goes_on(outbox, server, failures):
    """Then it is its own decision what becomes of the text; what follows is sent in order."""

    async def send(text):
        with contextlib.suppress(TimeoutError):
            await time_out(server.send, text)

    patient = Outbox(send, lambda: failures.append("failed"))
    server.ready.clear()
    patient.put("lost")
    patient.put("lost as well")
    await patient.mark()
    server.ready.set()
    patient.put("sent")
    await patient.mark()
    patient.close()
    await patient.wait_closed()

    assert server.taken == ["sent"]
    assert failures == []


async def test_a_socket_closed_from_within_its_send_leaves_no_task(server):
    """A middleware may find out there that the browser is to go."""
    closes = asyncio.Event()

    async def send(text):
        outbox.close()
        closes.set()

    outbox = Outbox(send, lambda: None)
    outbox.put("x")
    outbox.put("y")
    await asyncio.wait_for(closes.wait(), scaled())
    await outbox.wait_closed()

    assert await outbox.mark() is False
    assert not tasks_of_the_pump()


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


class OddError(BaseException):
    """As ``FunctionTimedOut`` of func_timeout and ``Timeout`` of gevent are."""


@pytest.mark.parametrize("error", [ValueError, OddError])
@pytest.mark.parametrize("waits", [False, True])
async def test_a_server_that_breaks_is_told(outbox, server, failures, caplog, waits, error):
    """Once, with the reason in the log, whatever a middleware raises."""
    server.error = error("of the middleware")
    if waits:
        server.ready.clear()
    outbox.put("1")
    outbox.put("2")
    await asyncio.sleep(0.01)
    server.ready.set()
    await asyncio.wait_for(outbox.mark(), scaled())

    assert failures == ["failed"]
    (record,) = caplog.records
    assert record.name == module.logger.name
    assert "of the middleware" in caplog.text


@pytest.mark.parametrize("waits", [False, True])
async def test_nothing_is_sent_after_a_close(outbox, server, waits):
    """Servers raise for frames after a close; waiting callers are released."""
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


async def test_the_end_is_waited_for(failures):
    """Nothing of a socket runs any more when ``wait_closed`` returns, however long a server takes to clean up."""
    began, ended = asyncio.Event(), []

    async def send(text):
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            for _ in range(10):
                await asyncio.sleep(0)
            ended.append("cleaned up")

    outbox = Outbox(send, lambda: failures.append("failed"))
    outbox.put("1")
    await began.wait()
    outbox.close()
    assert ended == []

    await outbox.wait_closed()

    assert ended == ["cleaned up"]
    assert tasks_of_the_pump() == []
    assert failures == []


async def test_what_was_never_sent_is_not_timed(server, monkeypatch):
    """A text that waits when its socket is closed took no time to arrive: it did not."""
    times = []
    monkeypatch.setattr(metrics.sending, "record", times.append)
    outbox = Outbox(server.send, lambda: None)
    outbox.put("x")
    outbox.time(metrics.microseconds())
    await outbox.mark()
    server.ready.clear()
    for text in "yz":
        outbox.put(text)
        outbox.time(metrics.microseconds())
    await asyncio.sleep(0)
    closed = outbox.mark()
    outbox.close()
    await outbox.wait_closed()

    assert await closed is False
    assert server.taken == ["x"]
    assert len(times) == 1


async def test_a_bug_does_not_cost_what_waits_behind_it(server, caplog):
    """It is logged and counted, and the queue goes on."""

    class Broken:
        def send(self):
            raise ZeroDivisionError

    before = metrics.counts["task_restarted", "pump"]
    outbox = Outbox(server.send, lambda: None)
    for _ in range(3):
        module._pump().add(Broken())
    for number in range(3):
        outbox.put(str(number))
    await outbox.mark()
    outbox.close()

    assert server.taken == ["0", "1", "2"]
    assert metrics.counts["task_restarted", "pump"] == before + 3
    assert "ZeroDivisionError" in caplog.text


def test_a_loop_that_has_ended_is_not_kept(server, small_heap):
    """Nor is what hangs on it: ``async_to_sync`` makes a loop for each call."""
    ended = []

    async def use():
        ended.append(weakref.ref(asyncio.get_running_loop()))
        outbox = Outbox(server.send, lambda: None)
        outbox.put("x")
        await outbox.mark()
        outbox.close()
        await outbox.wait_closed()

    for _ in range(3):
        asyncio.run(use())
    gc.collect()

    assert [each() for each in ended] == [None] * 3
