"""Tasks that others depend on go on, and tasks that are to end do."""

import asyncio
import contextlib
from contextvars import ContextVar

import pytest

from notifications import tasks
from notifications.metrics import counts
from notifications.tasks import Supervised, carried_out, ended, going_on
from tests.virtual_time import in_virtual_time
from tests.waiting import await_for, scaled

TENANT = ContextVar("TENANT", default="nobody's")


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(tasks, "RESTART_DELAY", 0.01)


def restarts():
    return counts["task_restarted", "a test"]


@in_virtual_time
async def test_a_supervised_task_that_is_cancelled_or_fails_is_started_again(caplog):
    """Whatever ended it, until it is told to stop; each time is counted and logged."""
    runs, before = [], restarts()

    async def job():
        runs.append(asyncio.current_task())
        if len(runs) == 2:
            raise ZeroDivisionError
        await asyncio.Event().wait()

    supervised = Supervised("a test", job)
    supervised.start()
    supervised.start()
    await await_for(lambda: runs)
    runs[0].cancel()
    await await_for(lambda: len(runs) == 3)
    supervised.stop()
    await await_for(lambda: runs[2].done())
    await asyncio.sleep(0.05)

    assert len(runs) == 3
    assert restarts() == before + 2
    assert "ZeroDivisionError" in caplog.text


@in_virtual_time
async def test_a_supervised_task_that_stops_between_two_runs_stays_stopped():
    """What is stopped while its next run is due does not run; and it may be started again later."""
    runs = []

    async def job():
        runs.append(None)
        if len(runs) == 1:
            raise ZeroDivisionError

    supervised = Supervised("a test", job)
    supervised.start()
    await asyncio.sleep(tasks.RESTART_DELAY / 2)
    supervised.stop()
    await asyncio.sleep(2 * tasks.RESTART_DELAY)
    assert len(runs) == 1

    supervised.start()
    await asyncio.sleep(2 * tasks.RESTART_DELAY)
    assert len(runs) == 2  # it had nothing to do any more


async def test_a_supervised_task_knows_nothing_of_the_socket_that_came_first():
    """A middleware keeps there whose request this is; the task works for all."""
    seen = []

    async def job():
        seen.append(TENANT.get())

    token = TENANT.set("the first socket's")
    Supervised("a test", job).start()
    await await_for(lambda: seen)
    TENANT.reset(token)

    assert seen == ["nobody's"]


async def test_a_job_of_a_group_goes_on_when_something_under_it_was_cancelled(caplog):
    """A group takes a cancelled task for one that it has cancelled itself, and goes on without it."""
    before, runs, gone_on = restarts(), [], asyncio.Event()

    async def job():
        runs.append(None)
        if len(runs) == 1:
            other = asyncio.get_running_loop().create_future()
            other.cancel()
            await other
        gone_on.set()
        await asyncio.Event().wait()

    async with asyncio.TaskGroup() as group:
        task = group.create_task(going_on("a test", job))
        await asyncio.wait_for(gone_on.wait(), scaled())
        task.cancel()

    assert task.cancelled()
    assert len(runs) == 2
    assert restarts() == before + 1
    assert "a task that others depend on ended" in caplog.text


async def test_a_task_that_swallows_a_cancellation_ends_all_the_same(monkeypatch):
    """On Python 3.11 a wait_for under redis-py does that now and then."""
    monkeypatch.setattr(tasks, "CANCEL_INTERVAL", 0.01)
    swallowed = []

    async def stubborn():
        while len(swallowed) < 3:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                swallowed.append(None)
        await asyncio.Event().wait()

    task = asyncio.create_task(stubborn())
    await asyncio.sleep(0)
    await ended(task)

    assert task.cancelled()


async def test_a_task_that_swallows_every_cancellation_is_left_alone(monkeypatch, caplog):
    """Nobody waits for it for ever; the log names it."""
    monkeypatch.setattr(tasks, "CANCEL_INTERVAL", 0.001)
    let_go = asyncio.Event()

    async def stubborn():
        while not let_go.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await let_go.wait()

    task = asyncio.create_task(stubborn(), name="stubborn")
    await asyncio.sleep(0)
    await ended(task)
    assert not task.done()
    assert "stubborn" in caplog.text

    let_go.set()
    await task


async def test_a_supervised_task_that_is_to_end_and_swallows_its_cancellation_ends():
    """Whoever stops it does not wait for ever, and nothing of it is left."""
    running, swallowed = asyncio.Event(), []

    async def job():
        running.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            swallowed.append(None)
        await asyncio.Event().wait()

    supervised = Supervised("a test", job)
    supervised.start()
    async with asyncio.timeout(scaled()):
        await running.wait()
        await supervised.end(0.01)
        await supervised.end(0.01)  # it does not run

    assert swallowed
    assert len(asyncio.all_tasks()) == 1


async def test_a_supervised_task_is_let_finish_when_it_ends():
    """What it does after its cancellation is waited for, for as long as it is given."""
    running, finished = asyncio.Event(), []

    async def job():
        try:
            running.set()
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.05)
            finished.append(None)

    supervised = Supervised("a test", job)
    supervised.start()
    await running.wait()
    await supervised.end(scaled())

    assert finished


@pytest.mark.parametrize(("now", "runs"), [(False, 1), (True, 2)])
async def test_a_supervised_task_that_was_cancelled_begins_at_once_for_its_callers(monkeypatch, now, runs):
    """The others wait for its restart: a task that fails each time is not run once for each caller."""
    monkeypatch.setattr(tasks, "RESTART_DELAY", scaled())
    begun = []

    async def job():
        begun.append(asyncio.current_task())
        await asyncio.Event().wait()

    supervised = Supervised("a test", job)
    supervised.start()
    await await_for(lambda: begun)
    begun[0].cancel()
    await asyncio.wait(begun)
    for _ in range(3):
        supervised.start(now=now)
        await asyncio.sleep(0)

    assert len(begun) == runs
    await supervised.end(0.01)


async def test_a_supervised_task_begins_at_once_where_its_end_is_not_known_yet():
    """It is started in the same turn of the event loop in which it ended."""
    begun = []

    async def job():
        begun.append(asyncio.current_task())
        await asyncio.Event().wait()

    supervised = Supervised("a test", job)
    supervised.start()
    await await_for(lambda: begun)
    begun[0].cancel()
    while not begun[0].done():
        supervised.start(now=True)
        await asyncio.sleep(0)
    supervised.start(now=True)
    await await_for(lambda: len(begun) == 2)
    supervised.start(now=True)
    await asyncio.sleep(0)

    assert len(begun) == 2
    await supervised.end(0.01)


def test_what_is_carried_out_ends_before_its_loop_is_closed():
    """Nobody else waits for it once its caller was cancelled."""
    done = []

    async def work():
        for _ in range(10):
            await asyncio.sleep(0)
        done.append("work")

    async def call():
        calling = asyncio.create_task(carried_out(work(), scaled(), "a test"))
        while not calling.done():
            await asyncio.sleep(0)
            calling.cancel()
        assert calling.cancelled()

    loop = asyncio.new_event_loop()
    loop.run_until_complete(call())
    before = list(done)
    loop.close()

    assert before == []
    assert done == ["work"]
