"""Jobs that real processes share, with a real Redis between them."""

import asyncio
import json
import time

import pytest

from notifications import Cancelled, Progress, Share, Topic, announce, cancel, track
from notifications.broker.clients import FAILURES, breaker
from notifications.history import get_store
from notifications.history.position import Position
from notifications.history.shares import SHARES_TTL, WHOLE, Report
from tests.conftest import point_to
from tests.faults import paused
from tests.redis.conftest import ONE_WAIT
from tests.redis.test_progress import JOB, run, server, told
from tests.repository.test_readme import ROOT, marked
from tests.waiting import scaled, wait_for

__all__ = ["server"]  # a fixture

TOPIC = Topic.parse(JOB)


def notices(user):
    """Return the titles of what a user was told."""
    page = asyncio.run(get_store().read(Topic("user", user), Position(0, 0)))
    return [json.loads(frame.text)["title"] for frame in page.frames]


def test_processes_share_a_job_and_one_of_them_is_killed(live_redis, redis_server):
    """100 shares by 8 processes are one bar, at the rate of one; what the dead one was at is done again by another."""
    said = run(
        """
import multiprocessing, signal
from notifications import Share

def work(keys, dies):
    for number, key in enumerate(keys):
        for step in track(range(10), "job:42", share=Share(str(key), 100, "r1"), user=7, title="Import"):
            time.sleep(0.01)
            if dies and number == 2 and step == 5:
                os.kill(os.getpid(), signal.SIGKILL)

def started(*given):
    process = context.Process(target=work, args=given)
    process.start()
    return process

context = multiprocessing.get_context("fork")
began = time.monotonic()
processes = [started(range(first, 100, 8), first == 0) for first in range(8)]
processes[0].join()
assert processes[0].exitcode == -signal.SIGKILL
again = started([*range(16, 100, 8), 0], False)  # the one that it was at, those that wait, and one that was done
for process in [*processes[1:], again]:
    process.join()
    assert process.exitcode == 0
print(time.monotonic() - began)
""",
        redis_server.url,
    )

    states, dones, percents = told("state"), told("done"), told("percent")
    assert states == ["running"] * (len(states) - 1) + ["succeeded"]
    assert told("percent", "done", "total")[-1] == (100, 100, 100)
    assert dones == sorted(dones)
    assert percents == sorted(percents)
    assert len(states) <= 4 * float(said) + 2
    assert len(states) >= 3
    assert notices("7") == ["Import"]
    late = Progress(JOB, share=Share("1", 100, "r1"))
    with late:
        late.advance()
    assert len(told("state")) == len(states)
    assert SHARES_TTL - 600 < live_redis.ttl("notifications:progress:job:42") <= SHARES_TTL


@pytest.mark.usefixtures("long_seconds")
def test_a_redis_that_hangs_costs_a_share_one_second(server):
    """Each of them, whatever it does; and then nobody is asked for a while."""
    with paused(server.child):
        for key in "12":
            began = time.monotonic()
            with Progress(JOB, total=100, share=Share(key, 3)) as p:
                for _ in range(100):
                    p.advance()
                    p.stage = "Reading"
            assert time.monotonic() - began < scaled(ONE_WAIT)


@pytest.mark.usefixtures("long_seconds")
async def test_a_redis_that_hangs_costs_a_share_in_a_coroutine_one_second(server):
    """The event loop is not blocked meanwhile."""
    with paused(server.child):
        began = time.monotonic()
        assert [each async for each in track(range(100), JOB, share=Share("1", 3))] == list(range(100))
        assert time.monotonic() - began < scaled(ONE_WAIT)


@pytest.mark.usefixtures("long_seconds")
def test_a_share_that_ends_when_redis_has_just_hung_is_counted(server):
    """Its last report is made although others are not asked for three seconds; what it said late changes nothing."""
    with Progress(JOB, total=2, share=Share("1", 2)) as p:
        wait_for(lambda: told("state"))
        with paused(server.child):
            p.advance()
            wait_for(breaker.remaining)
    with Progress(JOB, share=Share("2", 2)):
        pass

    assert told("state", "done")[-1] == ("succeeded", 2)
    assert told("state").count("succeeded") == 1


def test_the_end_is_told_by_whoever_comes_late(live_redis):
    """A process that was killed between noting the end and telling it has a task that its queue delivers again."""
    announce(JOB, share=Share("", 1, "r"))
    store, share = get_store(), Share("1", 1, "r")
    store.report_share(TOPIC, Report(share, "dead", "succeeded", WHOLE, "", True, 0, 250, 20_000))
    assert told("state") == ["waiting"]
    for _ in range(2):
        for _ in track(range(3), JOB, share=share):
            pass

    assert told("state") == ["waiting", "succeeded"]


def test_a_job_is_cancelled_in_all_processes(live_redis, redis_server):
    """The request is forgotten with its end; shares that are still running stop all the same."""
    said = run(
        """
import multiprocessing
from notifications import Cancelled, Share, cancel

def work(key):
    try:
        for step in track(range(10_000), "job:42", share=Share(str(key), 9, "r1")):
            time.sleep(0.01)
            if (key, step) == (3, 20):
                cancel("job:42")
    except Cancelled:
        return "cancelled"

with multiprocessing.get_context("fork").Pool(4) as pool:
    print(*pool.map(work, range(9)))
""",
        redis_server.url,
    )

    assert said.split() == ["cancelled"] * 9
    assert told("state")[-1] == "cancelled"
    assert told("state").count("cancelled") == 1
    assert live_redis.keys("*cancel*") == []


def test_a_program_that_ends_at_once_has_its_share_counted(live_redis, redis_server):
    """The end of a share waits until it is noted; what the others do tells it."""
    end = "list(track('ab', 'job:42', share=Share('1', 2)))\nos._exit(0)"
    run(f"from notifications import Share\n{end}", redis_server.url)
    with Progress(JOB, share=Share("2", 2)):
        pass

    assert told("state", "done")[-1] == ("succeeded", 2)


def test_a_job_that_was_announced_is_counted_in_redis(live_redis, settings):
    """Redis says what memory says."""
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "PROGRESS_RATE": 0.1}  # what comes late is not told besides
    announce(JOB, share=Share("", 2, "r"), stage="Queued")
    announce(JOB, share=Share("1", 2, "r"), state="failed", error="killed")
    announce(JOB, share=Share("2", 2, "r"), state="succeeded")

    assert told("state", "done", "error", "percent") == [("waiting", 0, None, 0), ("failed", 2, "killed", 50)]


def test_a_report_that_is_refused_changes_nothing(live_redis):
    """A full Redis remembers all of a report or nothing of it; the caller tries again."""

    def report(key, state, done):
        return get_store().report_share(TOPIC, Report(Share(key, 3), key, state, done, "", True, 0, 250, 20_000))

    report("1", "running", 7)
    live_redis.config_set("maxmemory", 1)
    try:
        with pytest.raises(FAILURES):
            report("1", "succeeded", WHOLE)
    finally:
        live_redis.config_set("maxmemory", 0)

    standing = report("2", "running", 0)
    assert (standing.state, standing.ended, standing.done) == ("running", 0, 7)


def test_greenlets_share_a_job(live_redis, redis_server):
    """With gevent's threads the shares of several greenlets are one bar, and leave none behind."""
    pytest.importorskip("gevent")
    said = run(
        """
import gevent
from notifications import Share

def work(key):
    for _ in track(range(5), "job:42", share=Share(str(key), 6)):
        time.sleep(0.01)

gevent.joinall([gevent.spawn(work, key) for key in range(6)], raise_error=True)
until = time.monotonic() + 10
while any(thread.name == "progress" for thread in threading.enumerate()) and time.monotonic() < until:
    time.sleep(0.01)  # what is told late ends by itself
sys.stdout.write(" ".join(thread.name for thread in threading.enumerate()))
""",
        redis_server.url,
        before="from gevent import monkey; monkey.patch_all()\n",
    )

    assert "progress" not in said
    assert told("state", "done")[-1] == ("succeeded", 6)
    assert told("state").count("succeeded") == 1


def test_the_account_of_a_site_may_share_jobs(live_redis, redis_server, settings):
    """What docs/operations.md lets an account do is enough for all that progress does."""
    words = marked("example: acl site", ROOT / "docs/operations.md").split()
    live_redis.execute_command(*words)
    live_redis.acl_log_reset()
    try:
        point_to(settings, redis_server.url.replace("://", "://site:another-long-password@"))
        settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "TOPICS": {"upload": {}}}
        topic = "upload:42"
        announce(topic, share=Share("", 2))
        for key in "12":
            for _ in track(range(3), topic, share=Share(key, 2), user=7, title="Import"):
                pass
        announce(topic)  # the next job
        cancel(topic)
        with pytest.raises(Cancelled):
            list(track("ab", topic, share=Share("1", 2, "again")))
        announce(topic)
        cancel(topic)
        with pytest.raises(Cancelled):
            list(track("ab", topic))
        refused = [each["object"] for each in live_redis.acl_log() if each["username"] == "site"]
    finally:
        point_to(settings, redis_server.url)
        live_redis.acl_deluser("site")

    assert set(refused) <= {"client|setinfo", "client"}
    assert told("state", topic="upload:42")[-1] == "cancelled"
