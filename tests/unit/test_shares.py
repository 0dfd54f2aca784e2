"""Jobs that several processes do: what each report changes, and what is told of all. Redis is in tests/redis."""

import asyncio
import secrets
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from notifications import (
    Cancelled,
    MessageError,
    Progress,
    Share,
    Topic,
    aannounce,
    announce,
    cancel,
    progress,
    track,
)
from notifications.history import get_store
from notifications.history.memory import MemoryStore
from notifications.history.redis import RedisStore
from notifications.history.shares import MAX_SHARES, OVER, WHOLE, Job, Report, Standing
from notifications.messages import JobProgressPayload
from notifications.reporting.reporter import Ending, Waiting, wait_for_turn, waiting
from notifications.reporting.sharing import report_of, whole
from notifications.reporting.thread_reporter import ThreadReporter
from notifications.signals import message_published
from notifications.testing import captured, redis_outage
from tests.cases import cases
from tests.unit.test_progress import JOB, Retry, cost_of, cost_of_nothing, leaves, reporters, settle, told
from tests.virtual_time import in_virtual_time
from tests.waiting import scaled, wait_for

TOPIC = Topic.parse(JOB)


@pytest.fixture
def sent(settings):
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "PROGRESS_RATE": 50}  # the gate opens often
    with captured() as messages:
        yield messages
        settle()


# Any order of events.

KINDS = ["running"] * 6 + ["succeeded"] * 3 + ["waiting", "failed"]
events = st.lists(
    st.tuples(
        st.sampled_from("123"),
        st.sampled_from("abc"),
        st.sampled_from(KINDS),
        st.integers(0, WHOLE),
        st.integers(0, 200),
        st.integers(0, 3),
    ),
    max_size=40,
)


@given(events)
def test_whatever_happens_a_job_goes_forward_and_ends_once(events):
    """
    Reports may be repeated, late, and of several who do the same share; messages may be slow, and lost.

    What goes out is never older than what went out before. Less is done only after a retry. There is one end, nothing
    comes after it, and it says what became of the shares.
    """
    job, now, seen = Job("r", 3), 1_000_000, {}
    on_their_way, out, retries = [], [], set()
    ends: list[Standing] = []

    def deliver(standing):
        if job.told[0] < standing.version:  # as the store does
            job.told = standing.version, None
            out.append(standing)

    def take(key, attempt, state, done):
        share = Share(key, 3, "r")
        before, version = job._done, job.version
        standing = job.report(
            Report(share, attempt, state, done, "", True, seen.get(attempt, 0), 250, 20_000), now, cancelled=False
        )
        seen[attempt] = standing.seen
        if job._done < before:
            assert state in ("waiting", "running", "failed")
            retries.add(version + 1)
        if standing.over:
            ends.append(standing)
        if standing.turn:
            on_their_way.append(standing)

    for key, attempt, state, done, passed, arriving in events:
        now += passed
        take(key, attempt, state, done)
        if arriving == 1 and on_their_way:
            deliver(on_their_way.pop(0))
        elif arriving == 2 and on_their_way:
            deliver(on_their_way.pop())
        elif arriving == 3 and on_their_way:
            on_their_way.pop()  # whoever published it was killed
    for key in "123":
        take(key, "z", "succeeded", WHOLE)
    take("1", "late", "running", 0)
    if job.told[0] < job.version:
        assert on_their_way, "whoever reports late gets to tell the end"
    for standing in reversed(on_their_way):
        deliver(standing)
    take("1", "latest", "succeeded", WHOLE)

    assert {(each.state, each.version) for each in ends} == {(ends[0].state, ends[0].version)}
    assert [each.over for each in out] == [False] * (len(out) - 1) + [True]
    for earlier, later in pairwise(out):
        assert earlier.version < later.version
        if later.done < earlier.done:
            assert retries & set(range(earlier.version + 1, later.version + 1))
        percents = [whole(JobProgressPayload(id="1", state="running"), each).payload.percent for each in out]
        assert all(percent < 100 for percent in percents[:-1])
    assert 0 <= job._done <= 3 * WHOLE
    assert job._lost == sum(WHOLE - part.done for part in job._shares.values() if part.state == "failed")
    assert job._done == sum(part.done for part in job._shares.values())
    assert job._ended == sum(part.state in OVER for part in job._shares.values())


@given(st.lists(st.tuples(st.sampled_from("12345"), st.integers(0, 120)), min_size=2, max_size=60))
def test_the_gate_opens_at_the_rate(reports):
    """However many report, there is a message in a quarter of a second, and the first at once."""
    job, now, turns = Job("", 9), 5_000_000, []
    for key, passed in reports:
        now += passed
        standing = job.report(Report(Share(key, 9), key, "running", 0, "", True, 0, 250, 20_000), now, cancelled=False)
        assert standing.turn == (standing.wait == 0)
        if standing.turn:
            turns.append(now)
            job.told = standing.version, None

    assert turns[0] == 5_000_000 + reports[0][1]
    assert all(later - earlier >= 250 for earlier, later in pairwise(turns))


def test_a_clock_that_is_set_back_keeps_nobody_waiting():
    """A gate that would be closed for longer than it can have been closed is open."""
    job = Job("", 9)
    given = Report(Share("1", 9), "a", "running", 0, "", True, 0, 250, 20_000)
    job.report(given, 5_000_000, cancelled=False)
    standing = job.report(given, 1_000_000, cancelled=False)
    assert (standing.turn, standing.elapsed) == (True, 0)
    assert job.report(given, 1_000_100, cancelled=False).wait == 150


# The message.


def message(**standing):
    standing = {"of": 4, "state": "running", "turn": True, "version": 7, **standing}
    own = JobProgressPayload(id="1", state="running", percent=50, done=1, total=2, unit="files", stage="s", url="/1/")
    return whole(own, Standing("yes", cancelled=False, **standing)).payload


def test_the_message_has_the_numbers_of_all_and_the_texts_of_one():
    """Shares are counted that have ended; the percentage is rounded down, and 100 only when the job has succeeded."""
    found = message(done=WHOLE + 123_999, ended=1)
    assert (found.percent, found.done, found.total, found.state) == (28.09, 1, 4, "running")
    assert (found.unit, found.stage, found.url, found.message, found.error) == ("files", "s", "/1/", None, None)
    assert message(done=4 * WHOLE).percent == 99.99
    assert message(done=4 * WHOLE, ended=4, state="succeeded").percent == 100
    assert message(state="succeeded").percent == 100
    assert message(done=4 * WHOLE, state="failed", error="E").percent == 99.99
    assert [message(state=state, error="E").error for state in ("running", "failed")] == [None, "E"]


def test_the_estimate_is_of_all():
    """It is what all have done since the first began; what failed will not be done."""
    assert message(done=WHOLE, elapsed=999).eta is None
    assert message(done=WHOLE, elapsed=1000).eta == 3
    assert message(done=WHOLE, elapsed=100_000).eta == 300
    assert message(done=WHOLE, lost=WHOLE, elapsed=1000).eta == 2
    assert message(done=0, elapsed=1000).eta is None
    assert message(done=4 * WHOLE, elapsed=1000).eta is None
    assert message(done=WHOLE, elapsed=1000, state="failed").eta is None


def test_a_report_says_how_far_the_share_is():
    """In millionths, whatever the percentage is; without a total nothing is done before the end."""
    share = Share("1", 3)
    times = {"news": True, "seen": 3, "interval": 0.25, "silence": 20}
    for percent, done in ((None, 0), (0.01, 100), (33.33, 333_300), (100, WHOLE)):
        own = JobProgressPayload(id="1", state="running", percent=percent)
        assert report_of(share, own, "a", **times) == Report(share, "a", "running", done, "", True, 3, 250, 20_000)


@cases(
    "share",
    [
        Share("1", 0),
        Share("1", MAX_SHARES + 1),
        Share("1", 2.0),
        Share("1", True),
        Share(1, 2),
        Share("1", 2, 7),
        Share("1" * 201, 2),
        Share("1", 2, "r" * 201),
        Share("\ud800", 2),
    ],
)
def test_a_wrong_share_shows_where_it_is_made(share):
    """Whatever is out of bounds is an error before anything begins."""
    with pytest.raises(ValueError, match="share"):
        Progress(JOB, share=share)
    with pytest.raises(ValueError, match="share"):
        track([], JOB, share=share).__iter__().__next__()
    with pytest.raises(ValueError, match="share"):
        announce(JOB, share=share)


# What a job says.


def test_the_shares_of_a_job_are_one_bar(sent):
    """It begins with the first, and ends with the last: once, and then the user gets a notice."""
    for key in "123":
        with Progress(JOB, total=4, unit="files", share=Share(key, 3), user=7, title="Import") as p:
            p.advance(2)
            assert Progress.current() is p
        settle()

    assert told(sent, "state")[0] == "running"
    assert told(sent, "state", "percent", "done", "total", "unit")[-1] == ("succeeded", 100, 3, 3, "files")
    assert told(sent, "state").count("succeeded") == 1
    assert sent[-1].topic == "user:7"
    assert [each.topic for each in sent].count("user:7") == 1
    dones = told(sent, "done")
    assert dones == sorted(dones)


async def test_the_shares_of_coroutines_are_one_bar(sent):
    """Some at the same time, in tasks; the asynchronous forms are the same."""

    async def work(key):
        async for _ in track(range(4), JOB, share=Share(key, 3), user=7, title="Import"):
            await asyncio.sleep(0.001)

    await asyncio.gather(*map(work, "123"))

    assert told(sent, "state")[0] == "running"
    assert told(sent, "state", "percent", "done")[-1] == ("succeeded", 100, 3)
    assert told(sent, "state").count("succeeded") == 1
    assert [each.topic for each in sent].count("user:7") == 1


def test_many_shares_at_once_are_told_at_the_rate(sent, settings):
    """Four a second for all together; and no share waits for its turn."""
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "PROGRESS_RATE": 4}
    times = []
    note = lambda **_: times.append(time.monotonic())  # noqa: E731  held by its name

    def work(number):
        for _ in track(range(5), JOB, share=Share(str(number), 100)):
            pass

    message_published.connect(note)
    began = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(100)))
    lasted = time.monotonic() - began
    message_published.disconnect(note)

    assert lasted < scaled(5)
    assert len(times) <= 4 * lasted + 2
    assert told(sent, "state", "done")[-1] == ("succeeded", 100)


def test_what_a_share_did_last_is_told(sent):
    """Its end is not published with its turn, and the job goes on: one thread tells it when it has its turn."""
    with Progress(JOB, share=Share("1", 3)):
        pass
    for key in "12":
        with Progress(JOB, share=Share(key, 3)):
            pass

    wait_for(lambda: told(sent, "done")[-1:] == [2])
    settle()
    assert told(sent, "state")[-1] == "running"
    assert waiting._seen == {}


def test_a_greenlet_that_is_killed_before_its_turn_leaves_it_to_others(sent, monkeypatch):
    """Threads may be greenlets, which can be killed while they wait; the next share that ends is told all the same."""

    def killed(standing, interval):
        raise KilledError

    class KilledError(BaseException):
        pass

    monkeypatch.setattr("threading.excepthook", lambda _: None)
    monkeypatch.setattr("notifications.reporting.thread_reporter.wait_for_turn", killed)
    with Progress(JOB, share=Share("1", 3)):
        pass
    wait_for(lambda: not reporters())
    monkeypatch.undo()

    assert waiting._seen == {}


def set_clock(monkeypatch, now):
    """Give the store of histories another wall clock."""
    monkeypatch.setattr("notifications.history.memory.time", SimpleNamespace(time=now, monotonic=time.monotonic))


def test_no_share_waits_for_its_turn(sent, settings, monkeypatch):
    """It ends when its end is noted; what is then to be told, one thread tells for all when the gate opens."""
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "PROGRESS_RATE": 0.5}
    opened, waits, now = threading.Event(), [], [time.time()]
    set_clock(monkeypatch, lambda: now[0])

    def wait_until_opened(standing, interval):
        waits.append(wait_for_turn(standing, interval))
        assert opened.wait(scaled())
        return 0

    monkeypatch.setattr("notifications.reporting.thread_reporter.wait_for_turn", wait_until_opened)
    began = time.monotonic()
    for key in "12345":
        with Progress(JOB, share=Share(key, 9)):
            pass

    assert time.monotonic() - began < scaled() / 2
    wait_for(lambda: len(reporters()) <= 1)
    assert told(sent, "done") == [0]
    assert [wait > 1.9 for wait in waits] == [True]
    now[0] += waits[0]
    opened.set()
    wait_for(lambda: told(sent, "done")[-1:] == [5])
    assert told(sent, "done") == [0, 5]


@in_virtual_time
async def test_no_share_of_a_coroutine_waits_for_its_turn(sent, settings, monkeypatch):
    """The same in an event loop, where a task tells it."""
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "PROGRESS_RATE": 0.5}
    clock = asyncio.get_running_loop().time
    began, now = clock(), time.time()
    set_clock(monkeypatch, lambda: now + clock() - began)
    for key in "12345":
        async with Progress(JOB, share=Share(key, 9)):
            pass

    assert clock() == began
    assert told(sent, "done") == [0]
    await asyncio.sleep(3)
    assert told(sent, "done") == [0, 5]


def test_what_is_told_late_ends_with_the_block_that_captures(monkeypatch, settings):
    """Tests of sites have no Redis that could be asked."""
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "PROGRESS_RATE": 4}
    asked = []
    monkeypatch.setattr(RedisStore, "report_share", lambda *given: asked.append(given))
    with captured() as sent:
        for key in "12":
            with Progress(JOB, share=Share(key, 3)):
                pass
    settle()

    assert told(sent, "done") == [0]
    assert asked == []
    assert waiting._seen == {}


def test_one_thread_tells_what_all_did_last():
    """It tells the latest of them."""
    line = Waiting()
    assert line.add(TOPIC, 3)
    assert not line.add(TOPIC, 7)
    assert not line.add(TOPIC, 5)
    assert line.add(Topic("job", "43"), 1)
    assert line.take(TOPIC) == 7
    assert line.add(TOPIC, 8)
    line.forget()
    assert line.take(TOPIC) == 0


def test_a_share_is_told_again_in_a_pause(sent, settings):
    """One of those that say nothing tells it for all of them."""
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "PROGRESS_STALE": 0.12}

    def work(key):
        with Progress(JOB, share=Share(key, 4)):
            wait_for(lambda: len(told(sent, "state")) >= 6)

    began = time.monotonic()
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(work, "123"))

    assert time.monotonic() - began >= 0.11  # six messages: the first, the news of two, and three in pauses of 0.04 s


def test_what_is_said_in_a_share_is_told(sent):
    """Its stage and message, though no number changes."""
    with Progress(JOB, share=Share("1", 3)) as p:
        p.stage = "Reading"
        wait_for(lambda: told(sent, "stage")[-1:] == ["Reading"])
        p.message = "row 7"
        wait_for(lambda: told(sent, "message")[-1:] == ["row 7"])


# How a share ends.


def test_a_share_that_is_tried_again_counts_once(sent):
    """A retry begins from nothing; the job runs on."""
    with leaves(Retry), Progress(JOB, total=2, share=Share("1", 2)) as p:
        p.advance()
        raise Retry
    settle()
    assert told(sent, "state", "percent", "done")[-1] == ("running", 0, 0)
    for key in "1112":
        with Progress(JOB, share=Share(key, 2)):
            pass

    assert told(sent, "state", "done")[-1] == ("succeeded", 2)
    assert told(sent, "state").count("succeeded") == 1


def test_a_job_fails_at_its_end_if_a_share_did(sent):
    """With the error of the first; and at once if the others need it."""
    for key in "123":
        with leaves(ValueError if key < "3" else ZeroDivisionError), Progress(JOB, share=Share(key, 3)) as p:
            p.total = 2
            p.advance()
            raise ValueError if key < "3" else ZeroDivisionError
    assert told(sent, "state", "done", "percent", "error")[-1] == ("failed", 3, 50, "ValueError")
    assert told(sent, "state").count("failed") == 1

    with leaves(LookupError), Progress(JOB, share=Share("1", 3, "2", needed=True), user=7, title="Import"):
        raise LookupError
    assert told(sent, "state", "done", "error")[-1] == ("failed", 1, "LookupError")
    assert sent[-1].message["level"] == "error"
    count = len(sent)
    with Progress(JOB, share=Share("2", 3, "2")) as p:
        p.advance()
        assert not p.cancelled
    settle()
    assert len(sent) == count


def test_shares_that_are_still_running_see_that_the_job_was_cancelled(sent, monkeypatch):
    """The request is forgotten with the end of the job, and not with that of a share."""
    monkeypatch.setattr("notifications.reporting.thread_reporter.LOOK", 0.02)
    started, seen = threading.Barrier(2), []

    def other():
        with Progress(JOB, share=Share("2", 3)) as p:
            started.wait(scaled())
            wait_for(lambda: p.cancelled)
            seen.append(True)

    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(other)
        with Progress(JOB, share=Share("3", 3)):
            started.wait(scaled())
        cancel(JOB)
        with pytest.raises(Cancelled), Progress(JOB, share=Share("1", 3)) as p:
            p.check()
        done.result()
    with pytest.raises(Cancelled):
        list(track("abc", JOB, share=Share("4", 4)))

    assert seen == [True]
    assert told(sent, "state")[-1] == "cancelled"
    assert told(sent, "state").count("cancelled") == 1
    assert not get_store().cancel_requested(TOPIC)


def test_a_share_of_a_job_that_is_over_reports_nothing_more(sent, monkeypatch):
    """It may go on for hours: once it has heard of the end, nothing but its own end is reported."""
    reports, report_share = [], MemoryStore.report_share
    monkeypatch.setattr(MemoryStore, "report_share", lambda *given: reports.append(1) or report_share(*given))
    with Progress(JOB, share=Share("1", 2)) as p:
        announce(JOB, share=Share("", 2), state="failed")
        p.advance()
        wait_for(lambda: p._reporter._quiet)
        heard = len(reports)
        for _ in range(10):
            p.advance()
            assert not p.cancelled
            time.sleep(0.01)
        assert len(reports) == heard

    assert len(reports) == heard + 1
    assert told(sent, "state")[-1] == "failed"


def test_whoever_tells_the_end_sends_the_same_notice(sent):
    """Two may find that it is not known to be told; the user is told once."""

    def key(topic, run):
        p = Progress(topic, share=Share("1", 2, run), user=7, title="Import")
        return ThreadReporter(p.topic, p._share_of_job, p._report)._notice_key(Ending(None, secrets.token_hex(8)))

    keys = [key("job:42", "r"), key("job:42", "r"), key("job:42", "s"), key("job:43", "r")]
    assert len(set(keys)) == 3
    assert keys[0] == keys[1]


def test_another_run_begins_anew(sent):
    """The topic is used again; who comes late of the run before says nothing."""
    for run in ("2026-01", "2026-02"):
        for key in "12":
            with Progress(JOB, share=Share(key, 2, run)):
                pass
    with Progress(JOB, share=Share("1", 2, "2026-01")) as p:
        p.advance()
    settle()

    assert told(sent, "state").count("succeeded") == 2
    assert told(sent, "state", "done")[-1] == ("succeeded", 2)


def test_more_shares_than_there_are_is_logged(sent, caplog):
    """A mistake in ``of`` shows; the job goes on."""
    for key in "12":
        with leaves(Retry), Progress(JOB, share=Share(key, 1)) as p:
            p.advance()
            raise Retry
    settle()

    assert "job:42 has more shares than it says" in caplog.text
    assert set(told(sent, "total")) == {1}


def test_a_loop_within_a_share_continues_it(sent):
    """As in a job: what a task calls may track on the topic without knowing of shares, and count in its own unit."""

    @progress(JOB, share=Share("1", 2), unit="files")
    def work():
        for _ in track(range(4), JOB, stage="Reading", unit="rows"):
            pass
        assert Progress.current().total == 4

    work()
    with Progress(JOB, share=Share("2", 2), unit="files"):
        pass

    assert told(sent, "state", "done", "total")[-1] == ("succeeded", 2, 2)
    assert set(told(sent, "unit")) == {"files"}


def test_a_share_within_another_counts_by_itself(sent):
    """A queue may run a task in the midst of another, as Celery's does in tests."""
    with Progress(JOB, total=2, share=Share("1", 3)) as outer:
        with Progress(JOB, share=Share("2", 3)) as inner:
            assert inner is not outer
            with Progress(JOB, share=Share("2", 3)) as again:
                assert again is inner
            with Progress(JOB, share=Share("1", 3)) as again:
                assert again is outer
            assert Progress.current() is inner
        with Progress(JOB, share=Share("3", 3)):
            pass
        assert outer.state == "running"

    assert told(sent, "state", "done")[-1] == ("succeeded", 3)
    assert told(sent, "state").count("succeeded") == 1


def test_a_share_that_changes_costs_no_more_than_a_job(sent):
    """Some two looks at a clock, and five at most."""

    def cost(key):
        with Progress(JOB, total=10_000, share=Share(key, 10)) as p:
            return cost_of(p.advance)

    assert min(cost(key) for key in "12345") < 5 * cost_of_nothing()


def test_a_dead_redis_costs_a_share_nothing(sent):
    """As any job that never reached Redis."""
    took = []
    with redis_outage():
        for key in "123":
            began = time.monotonic()
            with Progress(JOB, share=Share(key, 3)) as p:
                p.advance()
            took.append(time.monotonic() - began)

    assert min(took) < 0.5  # a busy machine may take a second, and each of them would take one
    assert sent == []


# From beside it.


async def test_a_job_with_shares_is_announced(sent):
    """That it begins, that one of its shares has failed or waits, and that all of it is over."""
    announce(JOB, share=Share("", 4, "r"), stage="Queued")
    assert told(sent, "state", "done", "total", "percent", "stage")[-1] == ("waiting", 0, 4, 0, "Queued")
    await aannounce(JOB, share=Share("1", 4, "r"))
    await aannounce(JOB, share=Share("2", 4, "r"), state="failed", error="the worker was killed")
    announce(JOB, share=Share("3", 4, "r"), state="succeeded")
    with Progress(JOB, share=Share("1", 4, "r")):
        pass
    await aannounce(JOB, share=Share("4", 4, "r"), state="succeeded")
    assert told(sent, "state", "done", "error")[-1] == ("failed", 4, "the worker was killed")
    announce(JOB, share=Share("", 4, "r"), state="cancelled")
    announce(JOB, share=Share("", 4, "s"), state="cancelled")

    assert told(sent, "state")[-2:] == ["failed", "cancelled"]
    with pytest.raises(MessageError):
        announce(JOB, share=Share("", 4, "r"), state="done")


def test_an_announcement_of_a_share_never_raises_because_of_redis(sent, caplog):
    """It is logged."""
    with redis_outage():
        announce(JOB, share=Share("1", 2), state="failed")
    assert "job:42" in caplog.text
