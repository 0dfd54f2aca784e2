"""Jobs and a real Redis: one that hangs, dies and comes back; processes that fork; threads that are greenlets."""

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import redis

from notifications import Cancelled, Progress, Topic, acancel, cancel, track
from notifications.broker.clients import breaker
from notifications.history import get_store
from notifications.history.position import Position
from notifications.reporting import reporter
from project.local_redis import LocalRedis
from tests.conftest import point_to
from tests.faults import paused
from tests.redis.conftest import LONG_SECOND, ONE_WAIT
from tests.waiting import await_for, scaled, wait_for

ROOT = Path(__file__).resolve().parents[2]
JOB = "job:42"


@pytest.fixture
def server(redis_program, settings):
    with LocalRedis() as server:
        point_to(settings, server.url)
        breaker.worked()
        yield server
        breaker.worked()


def told(*names, topic=JOB):
    """Return what the history has of a job: a field of each message, or several."""
    page = asyncio.run(get_store().read(Topic.parse(topic), Position(0, 0)))
    payloads = [json.loads(frame.text)["payload"] for frame in page.frames]
    return [payload[names[0]] if len(names) == 1 else tuple(payload[name] for name in names) for payload in payloads]


def told_once(*names, topic=JOB):
    """Return the first and the last that is told; a job that a busy machine holds up tells between that it runs."""
    first, *_, last = told(*names, topic=topic)
    states = told("state", topic=topic)
    assert set(states[:-1]) == {"running"}, states
    return [first, last]


@pytest.mark.usefixtures("long_seconds")
def test_a_redis_that_hangs_costs_a_job_one_second(server):
    """Whatever it does while Redis answers nothing, it loses a second in all, and none of it before its end."""
    with paused(server.child):
        began = time.monotonic()
        with Progress(JOB, total=100) as p:
            for _ in range(100):
                p.advance()
                p.stage = "Reading"
            assert time.monotonic() - began < scaled(LONG_SECOND - 0.5)
        assert time.monotonic() - began < scaled(ONE_WAIT)

        began = time.monotonic()
        assert list(track(range(100), "job:43")) == list(range(100))
        assert time.monotonic() - began < scaled(ONE_WAIT)


@pytest.mark.usefixtures("long_seconds")
async def test_a_redis_that_hangs_costs_a_coroutine_one_second(server):
    """The event loop is not blocked meanwhile."""
    with paused(server.child):
        began = time.monotonic()
        assert [each async for each in track(range(100), JOB)] == list(range(100))
        assert time.monotonic() - began < scaled(ONE_WAIT)


@pytest.mark.parametrize("turns", range(3))
@pytest.mark.parametrize("connected", [True, False], ids=["connected", "not connected yet"])
def test_a_job_that_ends_while_the_event_loop_is_blocked_is_told(server, turns, connected):
    """Redis is well; another task of the site computes for longer than the job may wait."""

    async def compute():
        for _ in range(turns):
            await asyncio.sleep(0)
        time.sleep(reporter.PATIENCE + 0.3)  # noqa: ASYNC251  this is the fault

    async def work():
        async with Progress(JOB):
            with redis.Redis.from_url(server.url) as client:
                await await_for(lambda: not connected or client.exists(Topic.parse(JOB).history_key))
            computing = asyncio.create_task(compute())
        await computing

    asyncio.run(work())

    assert told("state")[-1] == "succeeded"


async def test_a_cancelled_job_stops_also_if_the_event_loop_is_blocked_when_it_begins(server):
    await acancel(JOB)

    async with Progress(JOB) as p:
        looking = asyncio.create_task(p.acheck())
        await asyncio.sleep(0)
        time.sleep(reporter.FIRST_LOOK + 0.1)  # noqa: ASYNC251  this is the fault
        with pytest.raises(Cancelled):
            await looking


def test_a_long_job_shows_again_when_redis_is_back(server):
    """What it is at then is told although it does not change any more; and that it has ended."""
    with Progress(JOB, total=100) as p:
        wait_for(lambda: told("state"))
        server.kill()
        p.advance(70)
        began = time.monotonic()
        for _ in range(1000):
            assert not p.cancelled
        assert time.monotonic() - began < scaled(3)
        server.restart()
        wait_for(lambda: told("done") == [70])

    assert told("state", "done") == [("running", 70), ("succeeded", 100)]


@pytest.mark.usefixtures("long_seconds")
def test_a_job_that_ends_when_redis_has_just_hung_is_told(server):
    """Others do not ask it again for three seconds; the last message does."""
    with Progress(JOB) as p:
        wait_for(lambda: told("state"))
        with paused(server.child):
            p.advance()
            wait_for(breaker.remaining)

    states = told("state")  # a second "running", if Redis has carried out what it was sent while it hung
    assert (states[-1], states.count("succeeded")) == ("succeeded", 1)


def test_a_job_that_ends_while_redis_restarts_is_told(server, monkeypatch):
    """The last message is tried for as long as the job may wait."""
    monkeypatch.setattr(reporter, "PATIENCE", scaled(10))  # on a busy machine a Redis takes longer to restart
    with Progress(JOB) as p:
        wait_for(lambda: told("state"))
        p.stage = "Reading"
        wait_for(lambda: len(told("state")) == 2)  # so the job has heard that the first was told: Redis was there
        server.kill()
        restarting = threading.Thread(target=server.restart)
        restarting.start()
    restarting.join()

    assert told("state") == ["succeeded"]


def test_a_job_is_cancelled_in_another_process(live_redis):
    """The request is a key that expires, and is gone with the job."""
    cancel(JOB)
    assert 3500 < live_redis.ttl("notifications:cancel:job:42") <= 3600
    with pytest.raises(Cancelled):
        list(track(range(10), JOB))

    assert live_redis.keys("*cancel*") == []
    assert told_once("state") == ["running", "cancelled"]


async def test_a_coroutine_is_cancelled(live_redis):
    """In an event loop it is the same key."""
    await acancel(JOB)
    assert live_redis.exists("notifications:cancel:job:42")
    with pytest.raises(Cancelled):
        assert [each async for each in track(range(10), JOB)]
    assert live_redis.keys("*cancel*") == []


# Processes of their own.

START = """
import os, sys, time, threading
import django
django.setup()
from notifications import Progress, track
"""


def run(code, url, **env):
    """Run a program with this Redis, and return what it says."""
    done = subprocess.run(
        [sys.executable, "-c", env.pop("before", "") + START + code],
        env=os.environ | {"DJANGO_SETTINGS_MODULE": "tests.settings", "REDIS_URL": url} | env,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=scaled(60),
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_copy_of_a_job_in_a_forked_process_says_nothing(live_redis, redis_server):
    """It ends with the parent; the child may have jobs of its own, on the same topic too."""
    said = run(
        """
with Progress("job:42", total=2) as p:
    p.advance()
    held = p._lock
    with held:  # by another thread, as far as the child knows
        child = os.fork()
    if not child:
        p.advance()
        p.stage = "of the child"
        assert not p.cancelled
        try:
            with Progress("job:43"):
                pass
            raise KeyboardInterrupt
        finally:
            p.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
            assert [thread.name for thread in threading.enumerate()] == ["MainThread"]
            sys.stdout.write("child ")
            sys.stdout.flush()
            os._exit(0)
    os.waitpid(child, 0)
sys.stdout.write(threading.enumerate()[-1].name)
""",
        redis_server.url,
    )

    assert said == "child MainThread"
    states, stages = told("state"), told("stage")
    assert (states[0], states[-1], states.count("succeeded")) == ("running", "succeeded", 1)
    assert set(stages) == {None}
    assert told("state", topic="job:43") == ["running", "succeeded"]


def test_jobs_of_forked_workers_are_told(live_redis, redis_server):
    """As in the workers of Celery and RQ: the parent has published before, and each child has its job."""
    run(
        """
import multiprocessing

def work(number):
    for _ in track(range(10), f"job:{number}"):
        pass

list(track(range(10), "job:0"))
with multiprocessing.get_context("fork").Pool(3) as pool:
    pool.map(work, range(1, 7))
""",
        redis_server.url,
    )

    for number in range(7):
        assert told_once("state", "done", topic=f"job:{number}") == [("running", 0), ("succeeded", 10)]


def test_greenlets_publish_while_a_job_computes(live_redis, redis_server):
    """With gevent's threads a job that never waits still lets its messages out, and leaves no greenlet."""
    pytest.importorskip("gevent")
    said = run(
        """
import gevent

def work(number):
    with Progress(f"job:{number}", total=10**9) as p:
        began, until = time.monotonic(), time.process_time() + 1.1  # so much work, however busy the machine is
        while time.process_time() < until:
            p.advance()
    sys.stdout.write(f"{time.monotonic() - began} ")

gevent.joinall([gevent.spawn(work, 1)], raise_error=True)
gevent.joinall([gevent.spawn(work, 2)], raise_error=True)
sys.stdout.write(" ".join(thread.name for thread in threading.enumerate()))
""",
        redis_server.url,
        before="from gevent import monkey; monkey.patch_all()\n",
    )

    assert "progress" not in said
    for number, seconds in zip((1, 2), map(float, said.split()[:2]), strict=True):
        states = told("state", topic=f"job:{number}")
        assert states[0] == "running"
        assert states[-1] == "succeeded"
        assert 4 <= len(states) <= 4 * seconds + 4


def test_a_program_that_ends_at_once_has_told_its_end(live_redis, redis_server):
    """The end of a job waits for its last message, also where it is the end of the program."""
    run("list(track(range(3), 'job:42'))\nos._exit(0)", redis_server.url)

    assert told_once("state") == ["running", "succeeded"]


def test_an_interrupted_command_is_cancelled(live_redis, redis_server):
    """Control-C in the middle of a job ends it as such."""
    with subprocess.Popen(
        [sys.executable, "-c", START + 'with Progress("job:42"):\n    time.sleep(60)'],
        env=os.environ | {"DJANGO_SETTINGS_MODULE": "tests.settings", "REDIS_URL": redis_server.url},
        cwd=ROOT,
        stderr=subprocess.DEVNULL,
    ) as command:
        wait_for(lambda: told("state"), 20)
        command.send_signal(2)
        assert command.wait(scaled(10)) != 0

    assert told("state") == ["running", "cancelled"]
