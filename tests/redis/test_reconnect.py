"""The one loop that keeps connections: what it waits for, what it says, and how it ends."""

import asyncio
from itertools import islice

import pytest

from notifications.broker import reconnect
from notifications.broker.reconnect import backoff, connected, keep_connected
from notifications.broker.wire import Wire, site_pool
from tests.waiting import scaled


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Take the longest pause each time, and a hundredth of it."""
    monkeypatch.setattr(reconnect.random, "uniform", lambda low, high: high / 100)


class Kept:
    """A connection that opens as it is told to, one entry of ``plan`` after the other, and then stays."""

    def __init__(self, *plan, steady=0.0):
        self.plan = list(plan)
        self.step = None
        self.wires = []
        self.lost = []
        self.left = 0
        self.stays = asyncio.Event()
        self._steady = steady

    async def connect(self):
        self.step = self.plan.pop(0) if self.plan else None
        if isinstance(self.step, BaseException):
            raise self.step
        self.wires.append(wire := Wire())
        return wire

    async def ready(self, wire):
        if self.step is None:
            self.stays.set()
        else:
            wire.close(self.step)

    async def ended(self, wire):
        await asyncio.sleep(0)
        self.left += 1

    async def say(self, reason, delay):
        self.lost.append((reason, round(delay, 4)))

    async def run(self):
        async with asyncio.timeout(scaled()):
            kept = keep_connected(self.connect, self.ready, self.say, ended=self.ended, steady=self._steady)
            task = asyncio.create_task(kept)
            await self.stays.wait()
            task.cancel()
            await asyncio.wait([task])
        assert task.cancelled()
        assert all(wire.is_closed for wire in self.wires)


def test_pauses_double_up_to_a_bound():
    """And each is somewhere below its limit, so that clients spread out; the test's jitter takes the limit."""
    assert [round(each * 100, 1) for each in islice(backoff(), 7)] == [0.2, 0.4, 0.8, 1.6, 3.0, 3.0, 3.0]
    assert [round(each * 100, 1) for each in islice(backoff(1, 5), 4)] == [1, 2, 4, 5]


def test_pauses_have_full_jitter(monkeypatch):
    """From nothing to the limit."""
    asked = []
    monkeypatch.setattr(reconnect.random, "uniform", lambda low, high: asked.append((low, high)) or 0.0)
    list(islice(backoff(), 2))

    assert asked == [(0, 0.2), (0, 0.4)]


async def test_each_end_and_each_failure_is_told_and_followed_by_another_attempt():
    """Why it ended, in words, and how long the pause is; the last connection is left when the loop is cancelled."""
    kept = Kept(OSError("refused"), TimeoutError(), "nothing heard for 3.5 s", steady=10.0)
    await kept.run()

    assert kept.lost == [("refused", 0.002), ("TimeoutError", 0.004), ("nothing heard for 3.5 s", 0.008)]
    assert kept.left == 2


async def test_pauses_are_short_again_after_a_connection_that_lasted():
    """Only an attempt that was opened counts, and not one that took long to fail."""
    kept = Kept(OSError("refused"), OSError("refused"), "closed", OSError("refused"), steady=0.0)
    await kept.run()

    assert [delay for _, delay in kept.lost] == [0.002, 0.004, 0.002, 0.004]


async def test_a_connection_that_is_cut_off_at_once_does_not_make_the_pauses_short():
    """A Redis that accepts everybody and keeps nobody is not asked ten times a second."""
    kept = Kept("closed", "closed", "closed", "closed", steady=10.0)
    await kept.run()

    assert [delay for _, delay in kept.lost] == [0.002, 0.004, 0.008, 0.016]


async def test_a_mistake_is_logged_with_its_stack_trace_and_does_not_end_the_loop(caplog):
    """Such as an option that redis-py does not know: the next attempt may be after it was mended."""
    kept = Kept(TypeError("unexpected keyword argument 'colour'"), "closed")
    await kept.run()

    assert [reason for reason, _ in kept.lost] == ["TypeError", "closed"]
    assert "a connection to Redis could not be opened or kept" in caplog.text
    assert "unexpected keyword argument 'colour'" in caplog.text


async def test_what_was_cancelled_below_the_loop_does_not_end_it():
    """Nobody has cancelled the loop itself: whatever it is that was, the connection is lost, and is said to be."""
    kept = Kept(asyncio.CancelledError(), "closed")
    await kept.run()

    assert [reason for reason, _ in kept.lost] == ["something that it waited for was cancelled", "closed"]


async def test_what_is_told_is_without_credentials(settings):
    """The reason of an end goes into logs and reports."""
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "REDIS_URL": "redis://site:tr0ub4dor@127.0.0.1:1/0"}
    kept = Kept(OSError("cannot reach redis://site:tr0ub4dor@127.0.0.1:1/0"), "no tr0ub4dor here")
    await kept.run()

    assert len(kept.lost) == 2
    assert "tr0ub4dor" not in str(kept.lost)


async def test_a_connection_is_closed_when_what_is_done_with_it_fails(live_redis):
    """Such as a subscription that Redis does not confirm: whoever waits for its end hears of it."""
    wire = Wire()

    async def fail():
        async with connected(wire, site_pool()):
            assert not wire.is_closed
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()

    assert await wire.wait_closed() == "closed"
