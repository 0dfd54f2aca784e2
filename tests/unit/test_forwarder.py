"""The bridge goes on, whatever a channel layer does to the task that it finds itself in."""

import asyncio
import logging

import pytest

from notifications import tasks
from notifications.bridge import forwarder
from notifications.bridge.forwarder import Forwarder
from notifications.history.position import Position
from notifications.history.stamped import Stamped
from notifications.logs import LogBudget
from notifications.metrics import tally
from notifications.tasks import going_on
from tests.virtual_time import in_virtual_time
from tests.waiting import await_for, scaled


class Layer:
    """A layer that a site has wrapped: ``wrap`` is called around each message that is not the first or the last."""

    def __init__(self, wrap):
        self.taken = []
        self._wrap = wrap

    async def group_send(self, group, message):
        if message["text"] == "wrapped":
            await self._wrap()
        self.taken.append(message["text"])


async def cancel_itself():
    asyncio.current_task().cancel()
    await asyncio.sleep(1)


async def cancel_itself_later():
    asyncio.get_running_loop().call_later(0.01, asyncio.current_task().cancel)


async def cancel_itself_while_it_waits():
    await cancel_itself_later()
    await asyncio.Event().wait()


async def await_what_was_cancelled():
    other = asyncio.get_running_loop().create_future()
    other.cancel()
    await other


async def never_answer():
    await asyncio.Event().wait()


@pytest.mark.parametrize(
    "wrap",
    [cancel_itself, cancel_itself_later, cancel_itself_while_it_waits, await_what_was_cancelled, never_answer],
)
@in_virtual_time
async def test_a_layer_that_cancels_its_task_costs_one_message(wrap, monkeypatch, caplog):
    """All sockets of all processes depend on the task that forwards; the layer's code does not run in it."""
    monkeypatch.setattr(forwarder, "GROUP_SEND_TIMEOUT", 0.1)
    layer = Layer(wrap)
    forwards = Forwarder(layer, LogBudget(logging.getLogger("notifications")))
    task = asyncio.create_task(forwards.run())
    for number, text in enumerate([b"first", b"wrapped", b"last"]):
        forwards.add(Stamped("p", "user:1", Position(1, number), text))
        await await_for(lambda: not len(forwards), what="the end of the queue")
        await asyncio.sleep(0.05)

    assert [text for text in layer.taken if text != "wrapped"] == ["first", "last"]
    assert not task.done()
    assert ("lost 1 message(s): the channel layer failed" in caplog.text) == ("wrapped" not in layer.taken)
    task.cancel()
    await asyncio.wait([task])
    await await_for(lambda: len(asyncio.all_tasks()) == 1, what="the end of all tasks")


@in_virtual_time
async def test_what_waits_when_the_bridge_is_started_again_is_forwarded(monkeypatch):
    """Something that it waited for was cancelled, and nothing new comes: the queue is not empty all the same."""
    monkeypatch.setattr(tasks, "RESTART_DELAY", 0.01)
    interrupted = asyncio.Event()

    def interrupt():
        running.cancel()
        running.uncancel()
        interrupted.set()

    async def interrupt_once():
        if not interrupted.is_set():
            asyncio.get_running_loop().call_soon(interrupt)
            await asyncio.Event().wait()

    layer = Layer(interrupt_once)
    forwards = Forwarder(layer, LogBudget(logging.getLogger("notifications")))
    running = asyncio.create_task(going_on("a test", forwards.run))
    forwards.add(Stamped("p", "user:1", Position(1, 1), b"wrapped"))
    forwards.add(Stamped("p", "user:1", Position(1, 2), b"behind"))
    try:
        await await_for(lambda: layer.taken == ["wrapped", "behind"])
        assert interrupted.is_set()
    finally:
        running.cancel()
        await asyncio.wait([running])


@in_virtual_time
async def test_whoever_waits_for_the_queue_is_told_when_the_layer_has_taken_all_of_it():
    """Also if it is empty from the beginning, and although more comes meanwhile."""
    bridge = Forwarder(layer := Layer(lambda: asyncio.sleep(0.05)), LogBudget(logging.getLogger(__name__)))
    running = asyncio.create_task(bridge.run())
    async with asyncio.timeout(scaled()):
        await bridge.wait_sent()
        for n in (1, 2):
            for text in (b"first", b"wrapped", b"last"):
                bridge.add(Stamped("p", "user:1", Position("e", n), text))
            waiting = asyncio.create_task(bridge.wait_sent())
            await asyncio.sleep(0)
            bridge.add(Stamped("p", "user:1", Position("e", n), b"wrapped"))  # which takes a while
            await waiting
            assert len(layer.taken) == 4 * n - 1
        running.cancel()


async def test_what_a_script_has_delivered_is_counted():
    """Nothing of it is sent: a second copy of a message without an id would reach the browser."""
    layer, before = Layer(never_answer), tally.bridged
    forwards = Forwarder(layer, LogBudget(logging.getLogger("notifications")))
    forwards.delivered(2, 0)

    assert (len(forwards), forwards.forwarded, tally.bridged - before) == (0, 2, 2)
