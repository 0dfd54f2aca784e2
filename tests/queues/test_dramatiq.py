"""dramatiq: the progress of a message, from where it is sent to its end, whatever end that is."""

import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import closing
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import redis

from project.local_redis import LocalRedis
from tests.queues.site import QueueSite
from tests.waiting import wait_for

pytest.importorskip("dramatiq")

FILES = {
    "mysite/broker.py": """
import os

import dramatiq
from django.conf import settings
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import AsyncIO, GroupCallbacks
from dramatiq.rate_limits.backends import RedisBackend

from notifications.contrib.dramatiq import ProgressMiddleware

# a worker that is killed is missed after five seconds, not after a minute, and whoever fetches messages looks for it;
# after one second, on a busy machine, living ones were missed, too
namespace = os.environ.get("NAMESPACE", "dramatiq")
broker = RedisBroker(
    url=settings.BROKER_URL, namespace=namespace, heartbeat_timeout=5000, maintenance_chance=1_000_000
)
broker.add_middleware(AsyncIO())
broker.add_middleware(GroupCallbacks(RedisBackend(url=settings.BROKER_URL)))
broker.add_middleware(ProgressMiddleware())
dramatiq.set_broker(broker)
""",
    "mysite/worker.py": """
import os, django
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mysite.settings")
django.setup()
from shop import tasks
""",
    "shop/tasks.py": """
import mysite.broker
import asyncio, os, time
import dramatiq
from mysite.broker import broker
from notifications import Cancelled, Progress, track
from notifications.contrib.dramatiq import progress, track as track_all
from dramatiq import group, pipeline

def again(retries, error):
    return retries < 2

def fail_until(pk, times, error=LookupError):
    if broker.client.incr(f"tries:{pk}") <= times:
        raise error

@dramatiq.actor
@progress("job:{pk}", unit="rows")
def import_rows(pk):
    for row in track(range(3), f"job:{pk}"):
        pass

@dramatiq.actor(min_backoff=1, max_backoff=1, max_retries=2)
@progress("job:{pk}")
def fail(pk, times):
    fail_until(pk, times)

@dramatiq.actor(min_backoff=1, max_backoff=1, retry_when=again)
@progress("job:{pk}", show_errors=True)
def ask_again(pk, times):
    fail_until(pk, times, dramatiq.Retry("not yet", delay=1))

@dramatiq.actor(throws=LookupError)
@progress("job:{pk}")
def throw(pk):
    raise LookupError

@dramatiq.actor
@progress("job:{pk}")
def be_cancelled(pk):
    raise Cancelled

@dramatiq.actor(min_backoff=1, max_backoff=1, max_retries=1, time_limit=100)
@progress("job:{pk}")
def take_too_long(pk):
    while True:
        time.sleep(0.01)

@dramatiq.actor(min_backoff=1, max_backoff=1, notify_shutdown=True)
@progress("job:{pk}")
def work_long(pk):
    if broker.client.incr(f"tries:{pk}") == 1:
        while True:
            time.sleep(0.01)

@dramatiq.actor(max_age=1)
@progress("job:{pk}")
def grow_old(pk):
    pass

@dramatiq.actor(min_backoff=1, max_backoff=1, max_retries=1)
@progress("job:{pk}")
async def sleep(pk, error):
    async for _ in track(range(3), f"job:{pk}"):
        await asyncio.sleep(0)
    if error:
        raise LookupError

@dramatiq.actor(min_backoff=1, max_backoff=1, max_retries=2)
def count(pk, times=0):
    fail_until(pk, times)

@dramatiq.actor
@progress("job:{pk}", unit="rows")
def count_far(pk, part):
    for _ in track(range(4), f"job:{pk}"):
        pass

@dramatiq.actor
@progress("job:{pk}-{part}")
def count_both(pk, part):
    pass

def unpiped(*arguments):
    return count_far.message_with_options(args=arguments, pipe_ignore=True)

def with_callback(messages, callback):
    found = group(messages)
    found.add_completion_callback(callback)
    return found

@dramatiq.actor
@progress("job:{pk}")
def be_watched(pk):
    broker.client.rpush("running", os.getpid())
    for _ in range(60):  # redis-py gives up on an answer after 5 seconds
        if broker.client.blpop("go", 1):
            break
""",
}
SETTINGS = "BROKER_URL = REDIS_URL"
WORKER = ("-m", "dramatiq", "-p", "1", "-t", "1", "mysite.worker")
READY = "Worker process is ready for action"

SENT = {
    "simple": "import_rows.send('simple')",
    "delayed": "import_rows.send_with_options(args=('delayed',), delay=1)",
    "tried-three-times": "fail.send('tried-three-times', 2)",
    "out-of-retries": "fail.send('out-of-retries', 9)",
    "never-tried-again": "fail.send_with_options(args=('never-tried-again', 9), max_retries=0)",
    "asked-in-vain": "ask_again.send('asked-in-vain', 9)",
    "thrown": "throw.send('thrown')",
    "cancelled": "be_cancelled.send('cancelled')",
    "too-slow": "take_too_long.send('too-slow')",
    "too-old": "message = grow_old.message('too-old'); time.sleep(0.01); broker.enqueue(message)",
    "coroutine": "sleep.send('coroutine', False)",
    "coroutine-that-fails": "sleep.send('coroutine-that-fails', True)",
}
"""What a web process sends, by the id of the job."""
TRACKED = {
    "group": "group([count.message(f'group-{n}') for n in range(5)])",
    "group-tried-again": "group([count.message(f'tried-{n}', n) for n in range(3)])",
    "group-that-fails": "group([count.message('never', 9), count.message('ever')])",
    "group-cancelled": "group([be_cancelled.message('of-a-group'), count.message('more')])",
    "group-too-slow": "group([take_too_long.message('of-a-group-too')])",
    "group-of-both": "group([count_both.message('group-of-both', n) for n in range(2)])",
    "same-topic": "group([count_far.message('same-topic', n) for n in range(3)])",
    "pipeline": "pipeline([unpiped('of-pipeline', n) for n in range(3)])",
    "pipeline-that-fails": "pipeline([throw.message('of-pipeline-2'), count.message('not-reached')])",
    "nested": "group([count.message('n-0'), group([count.message('n-1')]),"
    " pipeline([count.message('n-2'), count.message_with_options(args=('n-3',), pipe_ignore=True)])])",
    "with-callback": "with_callback([count.message(f'c-{n}') for n in range(2)], count.message('c-2'))",
}
"""Of which groups and pipelines there is one bar, by the id of its job."""


@pytest.fixture(scope="module")
def site(redis_server: LocalRedis, project: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[QueueSite]:
    """Return a site whose jobs have ids of their own in each test."""
    with redis.Redis.from_url(redis_server.url) as client:
        client.flushall()
    directory = Path(shutil.copytree(project, tmp_path_factory.mktemp("dramatiq") / "site"))
    with closing(QueueSite(directory, redis_server.url, FILES, SETTINGS)) as site:
        yield site


@pytest.fixture(scope="module")
def told(site: QueueSite) -> dict[str, list[dict[str, Any]]]:
    """Return all that was told of each of ``SENT``: a worker of one thread has done another message after them."""
    shares = [f"found = track_all({code}, 'job:{pk}', unit='parts')\nfound.run()" for pk, code in TRACKED.items()]
    code = "\n".join(["from shop.tasks import *", *SENT.values(), *shares])
    with site.working(*WORKER, ready=READY, NAMESPACE="told"):
        site.run(f"{code}\nfail.send_with_options(args=('no-argument',), max_retries=0)", NAMESPACE="told")
        heard = {pk: site.hear(f"job:{pk}") for pk in (*SENT, *TRACKED)}
        site.run("from shop.tasks import *; import_rows.send('the-last')", NAMESPACE="told")
        site.hear("job:the-last")
    assert site.heard("job:no-argument") == []
    return {pk: [*first, *(each["payload"] for each in site.heard(f"job:{pk}"))] for pk, first in heard.items()}


def gist(payloads: list[dict[str, Any]]) -> list[str]:
    """Return the states that were told; ``running``, which is told while a job runs, once in a row."""
    told = groupby(payload["state"] for payload in payloads)
    return [state for state, each in told for _ in (["once"] if state == "running" else each)]


@pytest.mark.parametrize(
    ("pk", "end"),
    [("simple", "succeeded"), ("delayed", "succeeded"), ("coroutine", "succeeded"), ("thrown", "failed")],
)
def test_each_state_is_told_once(told: dict[str, list[dict[str, Any]]], pk: str, end: str) -> None:
    """
    A message waits, runs and ends.

    So does one that is delayed, which the worker puts into its queue again when its time has come; a coroutine, which
    runs in another thread; and one that dramatiq does not try again, because the actor ``throws`` the error.
    """
    assert gist(told[pk]) == ["waiting", "running", end]


def test_the_message_says_what_the_actor_counted(told: dict[str, list[dict[str, Any]]]) -> None:
    """Within the actor, ``track`` goes on with the job that the worker has begun."""
    for pk in ("simple", "coroutine"):
        assert {name: told[pk][-1][name] for name in ("done", "total")} == {"done": 3, "total": 3}
    assert told["simple"][-1]["unit"] == "rows"


def test_an_attempt_that_is_tried_again_waits(told: dict[str, list[dict[str, Any]]]) -> None:
    """Only the last attempt ends the job."""
    attempt = ["waiting", "running"]
    assert gist(told["tried-three-times"]) == [*attempt, *attempt, *attempt, "succeeded"]
    assert gist(told["out-of-retries"]) == [*attempt, *attempt, *attempt, "failed"]
    assert gist(told["never-tried-again"]) == [*attempt, "failed"]
    assert gist(told["coroutine-that-fails"]) == [*attempt, *attempt, "failed"]
    assert told["out-of-retries"][-1]["error"] == "LookupError"
    assert {payload["error"] for payload in told["out-of-retries"][:-1]} == {None}


def test_whoever_asks_for_another_attempt_in_vain_has_failed(told: dict[str, list[dict[str, Any]]]) -> None:
    """``Retry`` is no error unless it was the last attempt, and ``retry_when`` is what decides."""
    assert gist(told["asked-in-vain"]) == [*3 * ["waiting", "running"], "failed"]
    assert told["asked-in-vain"][-1]["error"] == "not yet"


def test_a_job_that_is_cancelled_is_not_tried_again(told: dict[str, list[dict[str, Any]]]) -> None:
    """To dramatiq, ``Cancelled`` is something that the actor throws."""
    assert gist(told["cancelled"]) == ["waiting", "running", "cancelled"]


def test_the_time_limit_cancels_the_last_attempt(told: dict[str, list[dict[str, Any]]]) -> None:
    """dramatiq tries again what has taken too long."""
    assert gist(told["too-slow"]) == [*2 * ["waiting", "running"], "cancelled"]


def test_a_message_that_is_too_old_is_cancelled(told: dict[str, list[dict[str, Any]]]) -> None:
    """It was never running."""
    assert gist(told["too-old"]) == ["waiting", "cancelled"]


@pytest.mark.parametrize(
    ("pk", "parts"),
    [
        *(("group", 5), ("group-tried-again", 3), ("group-of-both", 2), ("same-topic", 3), ("pipeline", 3)),
        *(("nested", 4), ("with-callback", 3)),
    ],
)
def test_a_group_is_one_bar(told: dict[str, list[dict[str, Any]]], pk: str, parts: int) -> None:
    """
    It counts the messages that are done, each once, in whatever way they are composed.

    What is tried again is no news of the job, which goes on.
    """
    assert gist(told[pk]) == ["waiting", "running", "succeeded"]
    assert (told[pk][-1]["done"], told[pk][-1]["total"]) == (parts, parts)
    assert {payload["unit"] for payload in told[pk]} == {"parts"}


def test_a_group_has_failed_when_all_have_ended(told: dict[str, list[dict[str, Any]]]) -> None:
    """One message has failed, and the others are done; a time limit of one does not cancel all."""
    assert gist(told["group-that-fails"]) == ["waiting", "running", "failed"]
    assert (told["group-that-fails"][-1]["done"], told["group-that-fails"][-1]["error"]) == (2, "LookupError")
    assert gist(told["group-too-slow"]) == ["waiting", "running", "failed"]
    assert told["group-too-slow"][-1]["error"] == "TimeLimitExceeded"


def test_a_job_ends_at_once_if_the_rest_will_not_run(told: dict[str, list[dict[str, Any]]]) -> None:
    """An earlier message of a pipeline has failed, or somebody has cancelled one of a group."""
    assert gist(told["pipeline-that-fails"]) == ["waiting", "running", "failed"]
    assert gist(told["group-cancelled"]) == ["waiting", "running", "cancelled"]


def test_a_worker_that_is_told_to_stop_tries_again_later(site: QueueSite) -> None:
    """An actor that is interrupted waits for the next worker."""
    site.run("from shop.tasks import *; work_long.send('stopped')", NAMESPACE="stopped")
    with site.working(*WORKER, ready=READY, NAMESPACE="stopped"):
        assert gist(site.hear("job:stopped", until=["running"])) == ["waiting", "running"]
    assert gist(site.hear("job:stopped", until=["waiting"])) == ["waiting"]

    with site.working(*WORKER, ready=READY, NAMESPACE="stopped"):
        assert gist(site.hear("job:stopped")) == ["running", "succeeded"]


def test_a_worker_that_was_killed_says_nothing(site: QueueSite) -> None:
    """Its message is given to another worker, where the job begins again."""
    site.run("from shop.tasks import *; be_watched.send('killed')", NAMESPACE="killed")
    with redis.Redis.from_url(site.environment["REDIS_URL"]) as client:
        with site.working(*WORKER, ready=READY, NAMESPACE="killed") as worker:
            pid = running(client)
            assert gist(site.hear("job:killed", until=["running"])) == ["waiting", "running"]
            os.kill(pid, signal.SIGKILL)
            worker.kill()
        with site.working(*WORKER, ready=READY, NAMESPACE="killed"):
            running(client)
            client.rpush("go", 1)
            assert gist(site.hear("job:killed")) == ["running", "succeeded"]


def running(client: redis.Redis) -> int:
    """Wait until a job is watched, and return the id of its process."""
    return int(wait_for(lambda: client.blpop("running", 1), 60)[1])  # redis-py gives up on an answer after 5 seconds


def test_jobs_run_without_the_redis_of_this_app(redis_server: LocalRedis, project: Path, tmp_path: Path) -> None:
    """Sending, the worker and its retries go on when nobody can be told."""
    directory = Path(shutil.copytree(project, tmp_path / "site"))
    settings = f'{SETTINGS}\nNOTIFICATIONS["REDIS_URL"] = "redis://127.0.0.1:1/0"'
    with closing(QueueSite(directory, redis_server.url, FILES, settings)) as site:
        site.run("from shop.tasks import *; fail.send('away', 1); be_watched.send('away')", NAMESPACE="away")
        with redis.Redis.from_url(redis_server.url) as client, site.working(*WORKER, ready=READY, NAMESPACE="away"):
            running(client)
            client.rpush("go", 1)
            site.run("from shop.tasks import *; be_watched.send('away')", NAMESPACE="away")
            running(client)
            client.rpush("go", 1)
            assert client.getdel("tries:away") == b"2"
