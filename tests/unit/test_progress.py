"""The progress of jobs: what is told, how often, and how every job ends."""

import _thread
import asyncio
import gc
import io
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from decimal import Decimal
from fractions import Fraction
from functools import partial, wraps
from itertools import pairwise
from queue import SimpleQueue
from types import GeneratorType

import pytest
from django.db import connections
from django.utils import translation
from django.utils.functional import lazystr
from hypothesis import given
from hypothesis import strategies as st

import notifications
from notifications import (
    Cancelled,
    MessageError,
    Progress,
    PublishError,
    Topic,
    TopicError,
    aannounce,
    acancel,
    announce,
    cancel,
    progress,
    track,
)
from notifications.history import get_store
from notifications.progress import job_of, leave_job
from notifications.reporting import terminal
from notifications.reporting.counts import MEMORY, Rate, percent
from notifications.reporting.reporter import RETRY
from notifications.signals import message_prepared, message_published
from notifications.testing import assert_notified, captured, redis_outage
from tests.cases import cases
from tests.repository.test_readme import ROOT, example
from tests.virtual_time import in_virtual_time
from tests.waiting import await_for, scaled, wait_for

JOB = "job:42"


@pytest.fixture
def sent(settings):
    """Return what is told, at a rate at which a machine that stops for a second is no reason to tell more."""
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "PROGRESS_RATE": 0.5}
    with captured() as messages:
        yield messages
        settle()


def told(sent, *names, topic=JOB):
    """Return what was told of a job, message by message: one field, or several."""
    payloads = [each.message["payload"] for each in sent if each.topic == topic]
    return [payload[names[0]] if len(names) == 1 else tuple(payload[name] for name in names) for payload in payloads]


def leaves(error, **options):
    """Expect an exception to leave a block, whose other statements are its job."""
    return pytest.raises(error, **options)


def reporters():
    return [thread for thread in threading.enumerate() if thread.name == "progress"]


def settle():
    """Wait until nothing is told any more: what ends a share may be told a moment later, and not in the next test."""
    wait_for(lambda: not reporters())


# The beginning and the end.


def test_a_loop_tells_its_beginning_and_its_end(sent):
    """The first message comes at once, with nothing done, and the last says that all is."""
    assert list(track(["a", "b", "c"], JOB, unit="rows", stage="Reading")) == ["a", "b", "c"]

    assert told(sent, "state", "done", "total", "percent") == [("running", 0, 3, 0), ("succeeded", 3, 3, 100)]
    assert sent[0].message["payload"] == {
        "id": "42",
        "state": "running",
        "percent": 0,
        "done": 0,
        "total": 3,
        "unit": "rows",
        "stage": "Reading",
        **dict.fromkeys(["message", "eta", "error", "url"]),
    }


def test_a_block_tells_its_beginning_and_its_end(sent):
    """What was set within the block is in the last message, together with the state."""
    with Progress(JOB) as p:
        p.total, p.unit, p.message, p.url = 8, "rows", "almost", "/imports/42/"
        p.advance(6)
        p.stage = "Indexing"
        assert p.state == "running"

    assert p.state == "succeeded"
    assert p._report(again=False) is None  # whoever comes late must not tell the end a second time
    assert told(sent, "state", "percent") == [("running", None), ("succeeded", 100)]
    assert told(sent, "done", "total", "unit", "stage", "message", "url")[-1] == (
        *(8, 8, "rows"),
        *("Indexing", "almost", "/imports/42/"),
    )


def test_a_count_without_a_total_is_indeterminate(sent):
    """Nobody knows the percentage until the end, which shows what was counted."""
    assert len(list(track((each for each in "abc"), JOB))) == 3

    assert told(sent, "percent", "done", "total") == [(None, 0, None), (100, 3, None)]


def test_more_than_the_total_is_not_more_than_everything(sent):
    """A total was an estimate: the end knows better."""
    with Progress(JOB, total=3) as p:
        p.advance(5)

    assert told(sent, "percent", "done", "total")[-1] == (100, 5, 5)


SoftTimeLimitExceeded = type("SoftTimeLimitExceeded", (Exception,), {"__module__": "billiard.exceptions"})


class OurLimit(SoftTimeLimitExceeded):
    pass


class Shutdown(type("Interrupt", (BaseException,), {"__module__": "dramatiq.middleware.threading"})):
    pass


Retry = type("Retry", (Exception,), {"__module__": "celery.exceptions"})
Killed = type("GreenletExit", (BaseException,), {"__module__": "greenlet"})


@cases(
    ("error", "state", "text"),
    [
        (ValueError("of a customer"), "failed", "ValueError"),
        (Exception(), "failed", "Exception"),
        (BaseException("of a library"), "failed", "BaseException"),
        (Cancelled(), "cancelled", None),
        (KeyboardInterrupt(), "cancelled", None),
        (SystemExit(1), "cancelled", None),
        (GeneratorExit(), "cancelled", None),
        (asyncio.CancelledError(), "cancelled", None),
        (SoftTimeLimitExceeded(), "cancelled", None),
        (OurLimit(), "cancelled", None),
        (Shutdown(), "cancelled", None),
        (Killed(), "cancelled", None),
        (Retry(), "waiting", None),
        (type("Retry", (Exception,), {})(), "failed", "Retry"),
    ],
)
def test_an_exception_ends_the_job_and_is_raised_on(sent, error, state, text):
    """The class of an exception is told and not its text; what stops a job from outside is no failure."""
    sent.clear()  # of the case before
    with leaves(type(error)) as caught, Progress(JOB, total=4) as p:
        p.advance()
        raise error

    assert caught.value is error
    assert told(sent, "state", "error", "done", "percent") == [("running", None, 0, 0), (state, text, 1, 25)]


def test_the_text_of_an_exception_is_told_if_the_site_says_so(sent):
    """Without a text the class is told."""
    for error in (ValueError("row 7 has no date"), ValueError()):
        with leaves(ValueError), Progress(JOB, show_errors=True):
            raise error

    assert told(sent, "error")[1::2] == ["row 7 has no date", "ValueError"]


def test_an_exception_without_a_text_is_told_by_its_class(sent):
    """Its ``__str__`` raises, which must not hide it from the site, nor leave its job running."""

    class BrokenError(Exception):
        def __str__(self):
            raise RuntimeError

    with leaves(BrokenError), Progress(JOB, show_errors=True):
        raise BrokenError

    assert told(sent, "state", "error")[-1] == ("failed", "BrokenError")


def test_a_repeated_job_begins_again(sent):
    """A retry on the same topic, and the same object, start from the beginning."""
    p = Progress(JOB, total=2)
    with leaves(ValueError), p:
        p.advance()
        raise ValueError
    with p:
        p.advance()

    assert told(sent, "state", "done", "error") == [
        ("running", 0, None),
        ("failed", 1, "ValueError"),
        ("running", 0, None),
        ("succeeded", 2, None),
    ]


def test_a_loop_that_was_left_says_nothing_about_the_next(sent):
    """A Progress that is used again ends as it is left then."""
    p = Progress(JOB)
    for _ in track("abc", p):
        break
    with pytest.raises(LookupError), p:
        raise LookupError

    assert told(sent, "state", "error")[1::2] == [("cancelled", None), ("failed", "LookupError")]


async def test_a_task_that_outlives_its_job_has_none(sent):
    """It was begun by a job, but what it does afterwards is another."""

    async def work():
        await over.wait()
        assert Progress.current() is None
        async with Progress(JOB):
            pass

    over = asyncio.Event()
    async with Progress(JOB):
        task = asyncio.create_task(work())
    over.set()
    await task

    assert told(sent, "state") == ["running", "succeeded"] * 2


def test_a_job_that_continues_another_says_what_was_done_before(sent):
    """``done`` is where the count begins."""
    with Progress(JOB, total=10, done=7):
        pass

    assert told(sent, "done", "percent")[0] == (7, 70)


def test_a_user_gets_a_notice_at_the_end(sent):
    """It has the job's end as its level."""
    with leaves(ValueError), Progress(JOB, user=7, title="Import", url="/imports/42/"):
        raise ValueError
    assert_notified(7, action="notice", title="Import", level="error", body="ValueError", url="/imports/42/")

    with Progress(JOB, user=7, title="Import", message="12 rows"):
        pass
    assert_notified(7, action="notice", title="Import", level="success", body="12 rows")
    assert [each.topic for each in sent].count("user:7") == 2


def test_mistakes_show_where_they_are_made():
    """A wrong topic, user or title is an error before anything begins."""
    for wrong in ("job", "nosuchkind:1", "job:"):
        with pytest.raises(TopicError):
            Progress(wrong)
    with pytest.raises(TypeError, match="both or neither"):
        Progress(JOB, user=7)
    with pytest.raises(TypeError, match="both or neither"):
        Progress(JOB, title="Import")
    with pytest.raises(TopicError):
        Progress(JOB, user=type("AnonymousUser", (), {"pk": None})(), title="Import")
    with Progress(JOB) as p, pytest.raises(RuntimeError, match="open already"), p:
        pass


def test_texts_are_the_sites_own(sent):
    """A lazy text is in the language of the job, a long one is cut off, and what is no text is written as one."""
    with translation.override("de"), Progress(JOB, stage=lazystr("Lesen")) as p:
        p.message = "x" * 5000
        p.unit = Decimal("1.50")

    stage, message, unit = told(sent, "stage", "message", "unit")[-1]
    assert (stage, unit) == ("Lesen", "1.50")
    assert len(message) == 1000
    assert message.endswith("x…")


def test_numbers_may_be_of_any_class(sent):
    """What is no int or float becomes one, where it is given; what is no number is refused there."""
    with Progress(JOB, total=Decimal(4)) as p:
        p.done = Fraction(1, 2)
        p.advance(1.25)
        with pytest.raises(TypeError):
            p.total = object()
        for value in (float("nan"), float("inf"), -5):
            p.done = value
            assert p._report(again=False).payload.done == 0
        p.done = 1.75

    assert told(sent, "done", "total")[-1] == (4, 4)
    assert told(sent, "done")[0] == 0


@pytest.mark.parametrize("total", [None, 100, 10**400], ids=["none", "hundred", "endless"])
@pytest.mark.parametrize("by", [10**400, -(10**400), 10**308, Decimal("1e400"), Fraction(10**400)], ids=range(5))
def test_numbers_that_no_float_holds_do_not_leave_a_job_running(sent, by, total):
    """A bug in what is counted is no reason that a page waits for ever: the job ends as the block does."""
    with Progress(JOB, total=total) as p:
        for _ in range(3):
            p.advance(by)
            p.advance(0.5)
        with p.part(0.5, total=by) as part:
            part.advance(by)
        p.done = by

    assert told(sent, "state")[-1] == "succeeded"


@pytest.mark.parametrize("number", [Decimal("0.5"), Fraction(1, 2)])
def test_steps_and_weights_may_be_of_any_class(sent, number):
    """A database counts in Decimal, which neither adds to a float nor divides by one: that must not fail a job."""
    with Progress(JOB, total=4) as p:
        p.advance(0.25)
        p.advance(number)
        with p.part(number, total=2) as part:
            part.advance(number)
            assert p._effective() == 0.875
    with Progress(JOB) as p:
        p.advance(number)
    with Progress(JOB, total=2.5) as p, p.part(number):
        pass

    assert told(sent, "state").count("succeeded") == 3


# A loop that is left.


def test_what_leaves_a_loop_ends_its_job(sent):
    """``break`` and ``return`` cancel it; an exception fails it, of which the loop knows no class."""

    def returns():
        for each in track([1, 2, 3], JOB):
            with threading.Lock():
                return each
        return None

    def fails():
        for each in track([1, 2, 3], JOB):
            try:
                assert each < 2
            finally:
                pass

    for each in track([1, 2, 3], JOB):
        if each == 2:
            break
    returns()
    with pytest.raises(AssertionError):
        fails()
    with pytest.raises(ZeroDivisionError):  # on Python 3.11 the traceback keeps the comprehension's iterator
        [1 / 0 for _ in track([1], JOB)]

    assert told(sent, "state", "error", "done")[1::2] == [
        ("cancelled", None, 1),
        ("cancelled", None, 0),
        ("failed", None, 1),
        ("failed", None, 0),
    ]


def test_a_loop_that_nobody_has_left_ends_its_job(sent):
    """No code of Python runs where its iterator is dropped, as at the end of the interpreter."""
    loop = iter(track("abc", JOB))
    assert next(loop) == "a"
    _thread.start_new_thread(loop.close, ())
    wait_for(lambda: told(sent, "state")[-1] != "running")

    assert told(sent, "state") == ["running", "failed"]


def test_items_may_refuse_to_tell_their_number(sent):
    """A stream may have a ``__len__`` and no length, and a range may be too long: the loop goes on without."""

    class Stream:
        def __len__(self):
            raise TypeError("a stream has no length")

        def __iter__(self):
            return iter("ab")

    assert list(track(Stream(), JOB)) == ["a", "b"]
    assert next(iter(track(range(10**20), JOB))) == 0

    assert told(sent, "total")[:3] == [None, None, None]


def test_an_exception_of_the_items_fails_the_job(sent):
    """It is raised within the loop's iterator, which knows its class."""

    def items():
        yield 1
        raise LookupError

    with pytest.raises(LookupError):
        list(track(items(), JOB))

    assert told(sent, "state", "error")[-1] == ("failed", "LookupError")


async def test_what_leaves_an_asynchronous_loop_ends_its_job(sent):
    """As for a synchronous one, at once, and a task that is cancelled has a job that is."""
    started = asyncio.Event()

    async def fails():
        async for _ in track([1, 2, 3], JOB):
            raise ValueError

    async def waits():
        async for _ in track([1, 2, 3], JOB):
            started.set()
            await asyncio.sleep(3600)

    async def ends():
        await await_for(lambda: len(sent) % 2 == 0)
        return told(sent, "state", "error")[-1]

    async with asyncio.timeout(scaled()):
        async for _ in track([1, 2, 3], JOB):
            break
        assert await ends() == ("cancelled", None)
        with pytest.raises(ValueError):
            await fails()
        assert await ends() == ("failed", None)
        task = asyncio.create_task(waits())
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        del task
        assert await ends() == ("cancelled", None)


def test_a_loop_that_is_left_tells_it_although_its_event_loop_ends(sent):
    """``asyncio.run`` cancels the task that publishes while it does."""

    async def main():
        async for _ in track([1, 2, 3], JOB):
            raise ValueError

    with pytest.raises(ValueError):
        asyncio.run(main())

    assert told(sent, "state") == ["running", "failed"]


def test_tasks_that_end_with_their_event_loop_tell_it(sent):
    """``asyncio.run`` cancels the job and the task that publishes in one go."""

    async def work():
        async with Progress(JOB):
            await asyncio.sleep(3600)

    async def main():
        asyncio.get_running_loop().job = asyncio.create_task(work())
        await asyncio.sleep(0.01)

    asyncio.run(main())

    assert told(sent, "state") == ["running", "cancelled"]


async def test_whoever_cancels_the_task_that_publishes_does_not_keep_the_end_back(sent):
    """It may be cancelled before its job is, when all tasks are; the end is told by another."""
    async with Progress(JOB):
        await await_for(lambda: sent)
        (task,) = [each for each in asyncio.all_tasks() if "progress" in each.get_name()]
        task.cancel()
        await asyncio.wait([task])

    assert told(sent, "state") == ["running", "succeeded"]


async def test_asynchronous_items_are_tracked(sent):
    """Their number is not asked for, but may be given; plain items have their length."""

    async def items():
        for each in range(3):
            yield each

    assert [each async for each in track(items(), JOB)] == [0, 1, 2]
    assert [each async for each in track(items(), JOB, total=3)] == [0, 1, 2]
    assert [each async for each in track("abc", JOB)] == ["a", "b", "c"]

    assert told(sent, "state", "total", "done")[1::2] == [("succeeded", None, 3), *[("succeeded", 3, 3)] * 2]


# How often.


@in_virtual_time
async def test_no_more_than_the_rate_is_published():
    """Between the first and the last, PROGRESS_RATE messages a second, each the newest of its moment."""
    with captured() as sent:
        began = asyncio.get_running_loop().time()
        times = []

        async def note(**_):
            times.append(asyncio.get_running_loop().time() - began)

        message_published.connect(note)
        async with Progress(JOB, total=1000) as p:
            for _ in range(500):
                await asyncio.sleep(0.01)
                p.advance()
        message_published.disconnect(note)

    assert told(sent, "state") == ["running"] * (len(sent) - 1) + ["succeeded"]
    assert 20 <= len(sent) <= 22
    assert all(after - before > 0.24 for before, after in pairwise(times[:-1]))
    assert all(abs(done - 100 * at) <= 1 for done, at in zip(told(sent, "done")[:-1], times[:-1], strict=True))


@in_virtual_time
async def test_a_pause_publishes_the_newest():
    """What changed last before a job does something else for long is not kept back, and nothing is repeated soon."""
    with captured() as sent:
        async with Progress(JOB, total=10) as p:
            await asyncio.sleep(1)
            for _ in range(5):
                p.advance()
                await asyncio.sleep(0.001)
            await asyncio.sleep(0.3)
            assert told(sent, "done") == [0, 1, 5]
            p.stage = "Indexing"
            await asyncio.sleep(19)
            assert told(sent, "done", "stage")[3:] == [(5, "Indexing")]


@in_virtual_time
async def test_a_job_that_is_slow_is_told_from_one_that_is_dead():
    """Three times in PROGRESS_STALE seconds the newest is told again though nothing changes, and not after the end."""
    with captured() as sent:
        async with Progress(JOB, total=100) as p:
            await asyncio.sleep(2)
            p.advance(10)
            await asyncio.sleep(8)
            before = len(sent)
            await asyncio.sleep(600)
            assert 29 <= len(sent) - before <= 30
            p.advance(10)
            await asyncio.sleep(1)
            assert told(sent, "done", "eta")[-1] == (20, pytest.approx(80 * 610 / 10, rel=0.1))
        ended = len(sent)
        await asyncio.sleep(600)

    assert len(sent) == ended
    assert set(told(sent, "state")[:-1]) == {"running"}
    assert told(sent, "done", "eta")[2] == (10, None)  # 8 s later: it should be at its next step, and is not


@in_virtual_time
async def test_nothing_is_told_again_while_much_is_told(settings):
    """A job that changes all the time has the messages of its changes only, and the rate bounds the others, too."""
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "PROGRESS_STALE": 0.001}
    with captured() as sent:
        async with Progress(JOB):
            await asyncio.sleep(10)
        assert 39 <= len(sent) <= 42
        settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "PROGRESS_STALE": 3}
        sent.clear()
        async with Progress(JOB) as p:
            for _ in range(100):
                await asyncio.sleep(0.1)
                p.advance()
        assert len(sent) <= 42


def test_a_thread_tells_again_what_it_told(sent, settings, monkeypatch):
    """A job that says nothing lives as long as its thread tells it; the bar in the terminal is not drawn again."""
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "PROGRESS_STALE": 0.06, "PROGRESS_RATE": 100}
    monkeypatch.setattr("sys.stderr", screen := Terminal())
    with Progress(JOB, total=9, terminal=True):
        wait_for(lambda: len(sent) >= 5)

    times = [each.message["timestamp"] for each in sent]
    assert len(set(times)) == len(times)
    assert screen.getvalue().count("\r") == 2
    assert reporters() == []


def test_a_job_that_was_dropped_is_not_told_for_ever(sent, settings):
    """Whoever calls ``__enter__`` and forgets the rest has a job like one whose process was killed."""
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "PROGRESS_STALE": 0.06, "PROGRESS_RATE": 100}
    Progress(JOB).__enter__()
    gc.collect()

    wait_for(lambda: not reporters())
    assert Progress.current() is None
    assert set(told(sent, "state")) <= {"running"}


async def test_a_job_that_was_dropped_leaves_no_task(sent, settings):
    """In an event loop it is the same."""
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "PROGRESS_STALE": 0.06, "PROGRESS_RATE": 100}
    before = asyncio.all_tasks()
    await Progress(JOB).__aenter__()
    gc.collect()

    await await_for(lambda: asyncio.all_tasks() == before)
    assert Progress.current() is None


def test_a_thread_publishes_the_newest_in_a_pause(sent, settings):
    """A job that waits in its own thread is told about by another, which ends with it."""
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "PROGRESS_RATE": 50}
    with Progress(JOB, total=1000) as p:
        for _ in range(3):
            for _ in range(100):
                p.advance()
            wait_for(lambda: told(sent, "done")[-1] == p.done)
        assert len(reporters()) == 1

    assert reporters() == []
    assert told(sent, "state").count("succeeded") == 1


def test_receivers_of_signals_run_in_the_context_of_the_job(sent):
    """In the thread that publishes they find what the job has set, and leave no connection of the database behind."""
    tenant, seen, closed = ContextVar("tenant", default="nobody's"), set(), []

    def receive(**_):
        seen.add(tenant.get())
        connections["default"].close = lambda: closed.append(threading.current_thread().name)

    message_published.connect(receive)
    tenant.set("acme")
    try:
        list(track("abc", JOB))
    finally:
        message_published.disconnect(receive)

    assert seen == {"acme"}
    assert closed == ["progress"]


def test_a_job_that_is_left_to_another_process_says_nothing_more(sent):
    """What was being said comes before what the other one says, and nothing follows it."""
    begun = threading.Event()

    def receive(**_):
        begun.set()
        time.sleep(0.1)

    message_prepared.connect(receive)
    try:
        job = Progress(JOB).__enter__()
        begun.wait(scaled())
        job.advance()
        leave_job(job)
        assert told(sent, "done") == [0]
        assert reporters() == []
        job.__exit__(None, None, None)
    finally:
        message_prepared.disconnect(receive)

    assert told(sent, "done") == [0]


def cost_of(call):
    """Return the seconds of CPU time that 10,000 calls take."""
    before = time.process_time()
    for _ in range(10_000):
        call()
    return time.process_time() - before


def cost_of_nothing():
    """Return what a call costs that only looks at the clock, under a lock: machines differ by a factor of three."""
    lock = threading.RLock()

    def look():
        with lock:
            time.monotonic()

    return min(cost_of(look) for _ in range(5))


def test_to_advance_costs_next_to_nothing(sent):
    """Some two looks at a clock, five at most; and a job that does nothing else is told at the rate."""

    def cost():
        with Progress(JOB, total=10_000) as p:
            return cost_of(p.advance)

    assert min(cost() for _ in range(5)) < 5 * cost_of_nothing()
    assert len(sent) <= 5 * 3


def test_a_short_job_waits_for_nothing(sent):
    """It has two messages, and does not wait for the time between them."""
    took = []
    for _ in range(5):
        began = time.monotonic()
        list(track("abc", JOB))
        took.append(time.monotonic() - began)

    assert min(took) < 0.25
    assert told(sent, "state") == ["running", "succeeded"] * 5


# How far, and how long.


@given(st.floats(0, 1e9), st.floats(0, 1e9))
def test_percent_is_between_0_and_100(done, total):
    """It is null without a total, and 100 only when all is done."""
    found = percent(done, total)

    if total == 0:
        assert found is None
    else:
        assert 0 <= found <= 100
        assert (found == 100) == (done >= total * (1 - 1e-9)) or done / total > 0.9999
        assert abs(found - min(100, 100 * done / total)) <= 0.0101


def test_percent_has_two_digits():
    """Hundredths are not cut to less by binary fractions, and nearly all is not all."""
    assert [percent(done, 100) for done in range(101)] == list(range(101))
    assert percent(99_999, 100_000) == 99.99
    assert percent(1, 3) == 33.33
    assert percent(1, None) is None


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=30), st.floats(0.1, 1e4))
def test_a_steady_job_knows_its_end(pauses, speed):
    """With a steady rate the estimate is right, however often samples are taken."""
    rate, now = Rate(0, 5.0), 5.0
    for pause in pauses:
        now += pause
        rate.sample((now - 5.0) * speed, now)

    estimate = rate.seconds_for(100 * speed, now)
    if now - 5.0 < 0.99:
        assert estimate is None
    elif now - 5.0 > 1.01:
        assert estimate == pytest.approx(100, rel=0.01)


def test_the_estimate_follows_a_change_of_speed():
    """Half of its weight is younger than 21 seconds; after some minutes the old speed is forgotten."""
    rate = Rate(0, 0.0)
    rate.sample(6000, 60.0)
    assert rate.seconds_for(1000, 60.0) == 10
    assert rate.seconds_for(1000, 64.0) == 6
    assert rate.seconds_for(1000, 70.0) is None
    for second in range(1, 301):
        rate.sample(6000 + second, 60.0 + second)

    assert rate.seconds_for(10, 360.0) == pytest.approx(10, abs=1)
    assert MEMORY == 30


def test_another_count_has_its_own_estimate():
    """A stage that counts from 0 again is not judged by the one before."""
    rate = Rate(0, 0.0)
    rate.sample(5000, 10.0)
    rate.sample(0, 10.5)
    assert rate.seconds_for(100, 10.5) is None
    rate.sample(20, 12.5)

    assert rate.seconds_for(100, 12.5) == 10


@in_virtual_time
async def test_a_job_tells_how_long_it_will_take():
    """The estimate is in seconds, and null before there is one and at the end."""
    with captured() as sent:
        async with Progress(JOB, total=100) as p:
            for _ in range(50):
                await asyncio.sleep(0.1)
                p.advance()

    estimates = told(sent, "eta")
    assert estimates[0] is estimates[-1] is None
    assert estimates[-2] == pytest.approx(5, abs=0.4)


# Parts.


def test_parts_add_up(sent):
    """Each counts as much as its weight says, by the share of it that is done; nested ones in their part."""
    with Progress(JOB, total=100) as p:
        with p.part(30, total=4, stage="Reading") as reading:
            reading.advance(2)
            assert p._effective() == 15
            with reading.part(2, total=10) as page:
                page.advance(5)
                assert p._effective() == 22.5
        assert (p.done, p.stage) == (30, "Reading")
        with p.part(20):
            assert p._effective() == 30
        assert p.done == 50
        with leaves(ValueError), p.part(40, total=2) as failing:
            failing.advance()
            raise ValueError
        assert p.done == 70
        for _ in track(range(5), p.part(30)):
            pass
        assert p.done == 100

    assert told(sent, "state", "percent", "done")[-1] == ("succeeded", 100, 100)


def test_a_part_that_is_open_at_the_end_counts_as_far_as_it_is(sent):
    """Its thread may go on for a while: that changes nothing any more."""
    with leaves(ValueError), Progress(JOB, total=4) as p:
        part = p.part(2, total=2).__enter__()
        part.advance()
        raise ValueError
    with Progress(JOB, total=4) as other:
        other.part(2, total=2).__enter__().advance()
    part.advance()
    part.__exit__(None, None, None)

    assert told(sent, "state", "done")[1::2] == [("failed", 1), ("succeeded", 4)]


def test_parts_of_threads_add_up(sent):
    """Several threads count in parts of one job, which is one job."""

    def work(p):
        for _ in track(range(1000), p.part()):
            pass

    with Progress(JOB, total=4) as p, ThreadPoolExecutor(4) as pool:
        for each in [pool.submit(work, p) for _ in range(4)]:
            each.result()
        assert p.done == 4

    assert told(sent, "state").count("succeeded") == 1


def test_no_step_of_any_thread_is_lost(sent):
    """To advance is one step, whatever other threads do."""
    with Progress(JOB) as p, ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: [p.advance() for _ in range(2000)], range(4)))
        assert p.done == 8000


def test_what_interrupts_a_job_may_report_as_well(sent):
    """A signal's handler, or what the garbage collector ends, runs wherever it likes, also where the count changes."""

    class Interrupted:
        def __float__(self):
            Progress.current().advance(2)
            return 1.0

    def job():
        with Progress(JOB) as p:
            p.done = Interrupted()
            p.advance(3)

    thread = threading.Thread(target=job, daemon=True)
    thread.start()
    wait_for(lambda: not thread.is_alive())

    assert told(sent, "done")[-1] == 4


async def test_parts_of_tasks_add_up(sent):
    """The asynchronous forms count the same."""
    async with Progress(JOB, total=2) as p:

        async def work():
            async with p.part(total=3) as part:
                part.advance(3)
            async for _ in track("abc", p.part()):
                pass

        await asyncio.gather(work())
        assert p.done == 2

    assert told(sent, "state") == ["running", "succeeded"]


def test_a_loop_may_be_the_count_of_an_open_job(sent):
    """``track`` on a Progress counts in it, and does not end it."""
    with Progress(JOB) as p:
        for _ in track("abc", p):
            pass
        assert (p.done, p.total, p.state) == (3, 3, "running")

    assert told(sent, "state") == ["running", "succeeded"]


def test_a_loop_over_a_part_takes_its_total_only():
    """Other options belong to the job."""
    p = Progress(JOB)
    with pytest.raises(TypeError, match="stage"):
        track([], p, stage="Reading")


# Functions that are jobs.


def test_functions_are_jobs(sent):
    """Each call is one, on the topic that its arguments say, and the function finds it."""

    class Order:
        pk = 7

        @progress("job:{self.pk}-{part}", stage="Packing")
        def pack(self, part="all", *, fail=False):
            """Pack it."""
            p = Progress.current()
            p.message = str(p.topic)
            if fail:
                raise LookupError
            return part

    assert Order().pack() == "all"
    assert Order.pack.__doc__ == "Pack it."
    with pytest.raises(LookupError):
        Order().pack("x", fail=True)

    assert Progress.current() is None
    assert told(sent, "state", "stage", "message", topic="job:7-all")[-1] == ("succeeded", "Packing", "job:7-all")
    assert told(sent, "state", "error", topic="job:7-x")[-1] == ("failed", "LookupError")


def test_names_that_the_function_does_not_have_are_refused():
    """A misspelled argument shows when the function is defined, and a wrong call is Python's own error."""
    for function in (lambda pk: None, partial(lambda pk: None, 1)):  # the second has no name
        with pytest.raises(TypeError, match="import_id"):
            progress("job:{import_id}")(function)
    with pytest.raises(TypeError, match="missing"):
        progress("job:{pk}")(lambda pk: None)()


@pytest.mark.parametrize("way", ["delay", "send", "enqueue"])
def test_what_a_queue_has_made_of_a_function_is_refused(way):
    """The decorators are in the wrong order: what the queue has would not be a job, and nothing would say so."""

    class Task:
        def __call__(self, import_id):
            pytest.fail("was called")

    task = Task()
    setattr(task, way, lambda import_id: None)
    for made in (task, wraps(task)(lambda import_id: None)):  # that of Celery wraps what it is given once more
        with pytest.raises(TypeError, match="below the decorator of the queue"):
            progress("job:{import_id}")(made)


def test_generator_functions_are_jobs(sent):
    """The job lasts as long as somebody reads, and its value is returned."""

    @progress("job:{pk}")
    def rows(pk):
        got = yield 1
        return got

    found = rows(42)
    assert isinstance(found, GeneratorType)
    assert sent == []
    assert next(found) == 1
    with pytest.raises(StopIteration) as stopped:
        found.send("value")
    assert stopped.value.value == "value"

    left = rows(42)
    next(left)
    left.close()
    assert told(sent, "state") == ["running", "succeeded", "running", "cancelled"]


async def test_an_asynchronous_generator_gets_what_is_sent_to_it(sent):
    """It is called like the function, so whoever reads may answer."""

    @progress(JOB)
    async def echo():
        said = None
        while said != "end":
            said = yield said

    steps = echo()
    assert [await anext(steps), await steps.asend("a"), await steps.asend("b")] == [None, "a", "b"]
    with pytest.raises(StopAsyncIteration):
        await steps.asend("end")

    assert told(sent, "state") == ["running", "succeeded"]


async def test_coroutine_functions_are_jobs(sent):
    """As synchronous functions are, and asynchronous generators."""

    @progress("job:{pk}")
    async def work(pk):
        await asyncio.sleep(0)
        return Progress.current().topic

    @progress("job:{pk}")
    async def rows(pk):
        yield 1
        raise LookupError

    assert await work(42) == Topic("job", 42)
    assert Progress.current() is None
    with pytest.raises(LookupError):
        assert [each async for each in rows(42)]
    assert told(sent, "state", "error") == [
        ("running", None),
        ("succeeded", None),
        ("running", None),
        ("failed", "LookupError"),
    ]


def test_the_job_of_a_call_is_known_before_the_call(sent):
    """Whoever queues a call may ask what job it is, and whoever runs it may begin that job: the call continues it."""

    @progress("job:{pk}", stage="Reading")
    def work(pk, *, days=1):
        return Progress.current().topic

    class Shop:
        def __init__(self, pk):
            self.pk = pk

        @progress("job:{self.pk}")
        def open(self): ...

    assert job_of(lambda pk: None, [42], {}) is None
    with pytest.raises(TypeError):
        job_of(work, [], {})
    assert job_of(Shop(42).open, [], {}).topic == Topic("job", 42)
    with job_of(work, [], {"pk": 42}, unit="rows"):
        assert work(42) == Topic("job", 42)
    assert told(sent, "state", "stage", "unit") == [("running", "Reading", "rows"), ("succeeded", "Reading", "rows")]


def test_a_job_within_itself_is_one_job(sent):
    """What a job calls may track on the same topic: it counts there, and the outermost says how it ends."""

    @progress("job:{pk}")
    def work(pk):
        for _ in track(range(3), "job:42", stage="Reading"):
            pass
        with Progress("job:42", stage="Indexing", total=5) as p:
            assert p is Progress.current()
            assert (p.done, p.total) == (0, 5)
            p.advance(4)
            with Progress("job:43"):
                assert Progress.current().topic == Topic("job", 43)
                for _ in track(range(2), "job:42"):
                    raise LookupError

    with pytest.raises(LookupError):
        work(42)

    assert told(sent, "state", "error", "stage", "done") == [
        ("running", None, None, 0),
        ("failed", "LookupError", "Indexing", 0),
    ]
    assert told(sent, "state", topic="job:43") == ["running", "failed"]


def test_the_names_of_module_and_decorator_do_not_collide():
    """``notifications.progress`` is the decorator; the module of that name can be imported from."""
    from notifications.progress import Progress as ByModule

    assert ByModule is Progress
    assert callable(notifications.progress)


# Cancelling.


def test_a_loop_ends_when_its_job_is_cancelled(sent, monkeypatch):
    """The loop raises Cancelled at its next step; a job that follows on the topic is not cancelled."""
    monkeypatch.setattr("notifications.reporting.thread_reporter.LOOK", 0.02)
    steps = []
    with leaves(Cancelled, match="job:42"):
        for each in track(range(10**9), JOB):
            if each == 0:
                cancel(JOB)
            steps.append(each)

    assert told(sent, "state", "error")[-1] == ("cancelled", None)
    with Progress(JOB) as p:
        assert not p.cancelled
        p.check()


def test_a_request_to_cancel_expires(sent, monkeypatch):
    """Nobody knows any more which job was meant."""
    monkeypatch.setattr("notifications.history.memory.CANCEL_TTL", 0)
    cancel(JOB)
    with Progress(JOB) as p:
        p.check()


def test_a_job_that_waits_can_be_cancelled(sent):
    """Whoever asks before it has begun is heard by its first look."""
    cancel(Topic("job", 42))
    with leaves(Cancelled), Progress(JOB) as p:
        p.check()
        pytest.fail("goes on")

    assert told(sent, "state") == ["running", "cancelled"]


async def test_a_job_that_is_tried_again_is_still_to_be_cancelled(sent):
    """A queue runs it again: the attempt has ended, and the job, which was to be cancelled, has not."""
    with leaves(Retry), Progress(JOB):
        cancel(JOB)
        raise Retry
    with leaves(Retry):
        async with Progress(JOB):
            raise Retry
    with leaves(Cancelled), Progress(JOB) as p:
        p.check()

    assert told(sent, "state")[-1] == "cancelled"
    with Progress(JOB) as p:
        p.check()


@in_virtual_time
async def test_an_asynchronous_job_can_be_cancelled():
    """``acheck`` waits for the first answer; later ones are a second old at most."""
    with captured() as sent:
        with leaves(Cancelled):
            async with Progress(JOB) as p:
                await p.acheck()
                await acancel(JOB)
                assert not p.cancelled
                await asyncio.sleep(1.1)
                assert p.cancelled
                await p.acheck()
        await aannounce(JOB)
        await acancel(JOB)
        with leaves(Cancelled):
            async for _ in track("abc", JOB):
                pytest.fail("goes on")

    assert told(sent, "state") == ["running", "cancelled", "waiting", "running", "cancelled"]


@in_virtual_time
async def test_nobody_looks_more_than_once_a_second(monkeypatch):
    """A job may ask as often as it likes."""
    from notifications.history.memory import MemoryStore

    looks = []
    asked = MemoryStore.acancel_requested
    monkeypatch.setattr(MemoryStore, "acancel_requested", lambda *given: looks.append(1) or asked(*given))
    with captured():
        async with Progress(JOB) as p:
            for _ in range(1000):
                assert not p.cancelled
                await asyncio.sleep(0.01)
    assert 9 <= len(looks) <= 11


def test_a_dead_redis_is_no_reason_to_stop(sent):
    """Nobody knows whether the job is cancelled, so it is not; who cancels is told."""
    with redis_outage():
        with pytest.raises(PublishError):
            cancel(JOB)
        with Progress(JOB) as p:
            assert not p.cancelled


# From beside the job.


async def test_a_job_is_announced_from_beside_it(sent):
    """What is not given is null; only a job that has succeeded is at 100 percent."""
    given = {"total": 8, "unit": "rows", "stage": lazystr("Queued"), "message": "m", "url": "/7/", "error": "x" * 2000}
    announce(JOB)
    await aannounce(Topic.parse(JOB))
    for state in ("waiting", "succeeded", "failed", "cancelled"):
        announce(JOB, state=state, **given)
        await aannounce(JOB, state=state, **given)

    nothing = dict.fromkeys(sent[0].message["payload"])
    assert sent[0].message["payload"] == sent[1].message["payload"] == {**nothing, "id": "42", "state": "waiting"}
    for each, again in pairwise(sent[2:]):
        assert each.message["payload"].keys() == again.message["payload"].keys()
    assert told(sent, "state")[2::2] == told(sent, "state")[3::2] == ["waiting", "succeeded", "failed", "cancelled"]
    assert told(sent, "percent")[2::2] == told(sent, "percent")[3::2] == [None, 100, None, None]
    assert set(told(sent, "total", "unit", "stage", "message", "url")[2:]) == {(8, "rows", "Queued", "m", "/7/")}
    assert {len(error) for error in told(sent, "error")[2:]} == {1000}


async def test_an_end_that_is_announced_forgets_the_request_to_cancel(sent, settings):
    """The next job of the topic must not be cancelled by it; one that waits still is. A history is not needed."""
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "HISTORY_SIZE": 0}
    for state, forgotten in (("waiting", False), ("cancelled", True), ("failed", True), ("succeeded", True)):
        cancel(JOB)
        announce(JOB, state=state)
        assert get_store().cancel_requested(Topic.parse(JOB)) != forgotten
        cancel(JOB)
        await aannounce(JOB, state=state)
        assert get_store().cancel_requested(Topic.parse(JOB)) != forgotten


async def test_an_announcement_never_raises_because_of_redis(sent, caplog):
    """It is logged; a mistake of the caller raises."""
    with redis_outage():
        announce(JOB, state="failed")
        await aannounce(JOB, state="failed")
    for wrong in ("job", "nosuchkind:1"):
        with pytest.raises(TopicError):
            announce(wrong)
        with pytest.raises(TopicError):
            await aannounce(wrong)
    with pytest.raises(MessageError, match="state"):
        announce(JOB, state="done")

    assert sent == []
    assert caplog.text.count("job:42") == 2


def test_announcements_that_redis_does_not_confirm_do_not_fill_the_log(sent, caplog):
    """As many jobs may be put into a queue while Redis is away."""
    with redis_outage():
        for number in range(100):
            announce(f"job:{number}")

    assert len(caplog.records) == 10


# Redis is away.


def test_a_dead_redis_costs_a_job_nothing(sent):
    """A job that never reached Redis does not wait for it at its end."""
    took = []
    with redis_outage():
        for _ in range(3):
            began = time.monotonic()
            assert list(track(range(100), JOB)) == list(range(100))
            took.append(time.monotonic() - began)

    assert min(took) < 0.5  # a busy machine may take a second, and each of them would take one
    assert sent == []
    assert reporters() == []


@in_virtual_time
async def test_a_long_job_shows_again_when_redis_is_back():
    """The newest is tried once a second, although the job does not change; what was missed is not sent late."""
    with captured() as sent:
        async with Progress(JOB, total=9) as p:
            await asyncio.sleep(1)
            with redis_outage():
                for _ in range(5):
                    p.advance()
                    await asyncio.sleep(1)
            assert told(sent, "done") == [0]
            await asyncio.sleep(RETRY + 0.1)
            assert told(sent, "done") == [0, 5]


@in_virtual_time
async def test_the_last_message_is_tried_for_a_second():
    """A Redis that restarts when a job ends gets it all the same; one that stays away costs one second."""
    loop = asyncio.get_running_loop()

    with captured() as sent:
        async with Progress(JOB):
            await asyncio.sleep(1)
            outage = redis_outage()
            outage.__enter__()
            loop.call_later(0.5, outage.__exit__, None, None, None)
        assert told(sent, "state") == ["running", "succeeded"]

        began = loop.time()
        async with Progress(JOB):
            await asyncio.sleep(1)
            outage = redis_outage()
            outage.__enter__()
        assert loop.time() - began <= 2.05
        outage.__exit__(None, None, None)
        assert told(sent, "state")[2:] == ["running"]


def test_no_thread_is_no_reason_to_stop(sent, monkeypatch, caplog):
    """Where no thread can be started, the job is done without telling."""

    def refuse(_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with Progress(JOB) as p:
        p.advance()
        assert not p.cancelled

    assert sent == []
    assert "can't start new thread" in caplog.text


# What the documentation shows.


class Row:
    def save(self):
        pass

    render = save


def test_the_examples_of_the_documentation_run(sent, settings):
    """Those of docs/progress.md do what they say."""
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "PROGRESS_RATE": 50}  # the gate opens often
    rows = [Row()] * 4
    shown("track")["import_rows"](42, rows)
    shown("block")["import_file"](7, 42, rows)
    shown("function")["run_import"](42, rows)
    shown("parts")["rebuild"](42, rows, rows)
    shown("command")["Command"]().handle()
    shown("test")["test_the_import_says_how_far_it_is"]()
    shown("waiting")["enqueue"](SimpleQueue(), 42)
    shared, queue = shown("share"), SimpleQueue()
    shared["begin"](queue, 43, ["a.csv", "b.csv"])
    while not queue.empty():
        import_id, _, *share = queue.get()
        shared["read_file"](import_id, rows, *share)

    assert_notified(7, level="success", title="Import")
    assert [(state, stage) for state, stage in told(sent, "state", "stage") if state == "succeeded"] == [
        ("succeeded", "Reading rows"),
        ("succeeded", "Indexing"),
        ("succeeded", "Indexing"),
        ("succeeded", "Rendering pages"),
        ("succeeded", None),
    ]
    assert told(sent, "state")[-1] == "waiting"
    assert told(sent, "state", topic="job:reindex")[-1] == "succeeded"
    assert told(sent, "state", "stage", topic="job:43")[0] == ("waiting", "In the queue")
    assert told(sent, "state", "done", "unit", topic="job:43")[-1] == ("succeeded", 2, "files")


def shown(mark):
    """Run an example and return what it defines."""
    return example(f"progress-{mark}", ROOT / "docs/progress.md")


# In a terminal.


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_bar_is_drawn_in_a_terminal(sent, monkeypatch):
    """Each message is drawn over the one before, and the last ends the line."""
    monkeypatch.setattr("sys.stderr", screen := Terminal())
    list(track(range(4), JOB, stage="Reading", unit="rows", terminal=True))

    lines = screen.getvalue().split("\r")
    assert lines[1].startswith("Reading    0 % [......")
    assert lines[-1].startswith(f"Reading  100 % [{'#' * 30}]  4/4 rows  succeeded")
    assert lines[-1].endswith("\n")
    assert screen.getvalue().count("\n") == 1


def test_nothing_is_drawn_elsewhere(sent, monkeypatch):
    """A log or a pipe is no terminal, some processes have no standard error, and a bar has to be asked for."""
    for stream, asked in ((io.StringIO(), True), (None, True), (Terminal(), False)):
        monkeypatch.setattr("sys.stderr", stream)
        list(track(range(4), JOB, terminal=asked))
        assert stream is None or stream.getvalue() == ""


def test_a_terminal_that_is_gone_disturbs_no_job(sent, monkeypatch):
    """What cannot be drawn is not."""
    monkeypatch.setattr("sys.stderr", screen := Terminal())
    with Progress(JOB, terminal=True):
        screen.close()

    assert told(sent, "state")[-1] == "succeeded"


def test_a_line_says_what_is_known():
    """Count, time left, error and message, without control characters."""
    job = notifications.messages.JobProgressPayload

    assert terminal.line(job(id=7, state="running")) == "7"
    assert (
        terminal.line(job(id=7, state="running", done=1234, unit="rows", eta=75, message="a\x1b[2Jb\n\tc"))
        == "7  1,234 rows  1:15 left  a [2Jb c"
    )
    assert (
        terminal.line(job(id=7, state="failed", percent=50.5, eta=3700, error="ValueError"))
        == f"7   50 % [{'#' * 15}{'.' * 15}]  1:01:40 left  failed  ValueError"
    )
