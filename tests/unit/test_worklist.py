"""The slow work of a socket: in order, one at a time, and nothing left behind."""

import asyncio

import pytest

from notifications.connection.worklist import Worklist
from tests.eager_tasks import use_eager_tasks
from tests.waiting import await_for, scaled


@pytest.fixture
def failures():
    return []


@pytest.fixture
def jobs(failures):
    async def failed(error):
        failures.append(str(error))

    return Worklist(failed)


def job(done, name, *, waits_for=None):
    async def work():
        if waits_for is not None:
            await waits_for.wait()
        done.append(name)

    return work


async def test_jobs_are_done_in_order_and_one_may_go_first(jobs):
    """One after the other; ``add_next`` goes before what waits, not before what runs."""
    done, gate = [], asyncio.Event()
    jobs.add(job(done, "runs", waits_for=gate))
    await asyncio.sleep(0)
    jobs.add(job(done, "waits"))
    jobs.add_next(job(done, "next"))
    assert jobs.busy
    assert len(jobs) == 2

    gate.set()
    await await_for(lambda: not jobs.busy)

    assert done == ["runs", "next", "waits"]


async def test_jobs_that_never_wait_are_done_with_eager_tasks(jobs):
    """A site may set Python's eager task factory, which makes the first step of a task before anybody knows it."""
    use_eager_tasks()
    done = []
    for name in ("first", "second"):
        jobs.add(job(done, name))
        await await_for(lambda: not jobs.busy)

    assert done == ["first", "second"]


class OddError(BaseException):
    """As ``FunctionTimedOut`` of func_timeout and ``Timeout`` of gevent are."""


@pytest.mark.parametrize("error", [ValueError, OddError])
async def test_a_job_that_raises_is_told_and_the_rest_forgotten(jobs, failures, error):
    """The owner hears of it, whatever it is, and can begin again."""
    done = []

    async def fail():
        raise error("broken")

    jobs.add(fail)
    jobs.add(job(done, "behind"))
    await await_for(lambda: not jobs.busy)
    jobs.add(job(done, "later"))
    await await_for(lambda: not jobs.busy)

    assert failures == ["broken"]
    assert done == ["later"]


async def test_what_is_added_while_a_failure_is_told_is_done(failures):
    """Telling may take a while, and a browser goes on talking meanwhile."""
    done, told, gate = [], asyncio.Event(), asyncio.Event()

    async def failed(error):
        failures.append(str(error))
        told.set()
        await gate.wait()

    async def fail():
        raise KeyError("broken")

    jobs = Worklist(failed)
    jobs.add(fail)
    await asyncio.wait_for(told.wait(), scaled())
    jobs.add(job(done, "meanwhile"))
    jobs.add(fail)
    jobs.add(job(done, "behind the second failure"))
    gate.set()
    await await_for(lambda: not jobs.busy)

    assert done == ["meanwhile"]
    assert failures == ["'broken'"] * 2
    assert len(jobs) == 0


async def test_a_job_under_which_something_was_cancelled_is_told(jobs, failures):
    """Nobody has cancelled the jobs: what a browser says next is heard."""
    done = []

    async def wait_for_what_was_cancelled():
        other = asyncio.get_running_loop().create_future()
        other.cancel()
        await other

    jobs.add(wait_for_what_was_cancelled)
    await await_for(lambda: not jobs.busy)
    jobs.add(job(done, "later"))
    await await_for(lambda: not jobs.busy)

    assert failures == ["something that was waited for was cancelled"]
    assert done == ["later"]


async def test_the_end_cancels_and_nothing_begins_after_it(jobs, failures):
    """What runs is cancelled and waited for, what waits is forgotten, what comes is not taken."""
    done = []
    jobs.add(job(done, "runs", waits_for=asyncio.Event()))
    jobs.add(job(done, "waits"))
    await asyncio.sleep(0)

    await jobs.end()
    jobs.add(job(done, "late"))
    jobs.add_next(job(done, "later"))
    await asyncio.sleep(0.01)

    assert not jobs.busy
    assert done == failures == []


async def test_what_goes_next_is_done_while_a_job_waits_aside(jobs):
    """A job that waits for the site lets urgent ones pass, each at once, and nothing else."""
    done, gate = [], asyncio.Event()

    async def ask():
        await gate.wait()
        return "answer"

    async def question():
        done.append(await jobs.aside(ask()))

    jobs.add(question)
    jobs.add(job(done, "waits"))
    await await_for(lambda: jobs.is_aside)
    for name in ("one", "two"):
        jobs.add_next(job(done, name))
    await await_for(lambda: done == ["one", "two"])
    jobs.add_next(job(done, "three"))
    await await_for(lambda: done[-1] == "three")
    gate.set()
    await await_for(lambda: not jobs.busy)

    assert done == ["one", "two", "three", "answer", "waits"]
    assert not jobs.is_aside


async def test_the_end_cancels_what_is_waited_for_aside(jobs, failures):
    """Nothing goes on when the socket has gone."""
    cancelled = asyncio.Event()

    async def ask():
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async def question():
        await jobs.aside(ask())

    jobs.add(question)
    await await_for(lambda: jobs.is_aside)
    await jobs.end()

    assert cancelled.is_set()
    assert failures == []
