"""RQ: the progress of a job, from where it is enqueued to its end, whatever end that is."""

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

from notifications.testing import captured
from project.local_redis import LocalRedis
from tests.queues.site import QueueSite
from tests.waiting import wait_for

pytest.importorskip("rq")

FILES = {
    "shop/queue.py": """
import os
from django.conf import settings
from redis import Redis
from rq import Queue
from notifications.contrib.rq import Job

connection = Redis.from_url(settings.REDIS_URL)
queue = Queue(os.environ["QUEUE"], connection=connection, job_class=Job)
""",
    "shop/tasks.py": """
import asyncio, os, time
from datetime import timedelta
from rq import Callback, Queue, Retry
from rq.command import send_stop_job_command
from rq.registry import StartedJobRegistry
from notifications import Cancelled, Progress, track
from notifications.contrib.rq import Job, progress, track as track_all
from rq.group import Group
from rq.job import Dependency
from shop.queue import connection, queue

@progress("job:{pk}", unit="rows")
def import_rows(pk):
    for row in track(range(3), f"job:{pk}"):
        pass

@progress("job:{pk}")
async def sleep(pk):
    async for _ in track(range(3), f"job:{pk}"):
        await asyncio.sleep(0)

class Shop:
    def __init__(self, pk):
        self.pk = pk

    @progress("job:{self.pk}")
    def open(self):
        pass

@progress("job:{pk}")
def fail(pk, times):
    if connection.incr(f"tries:{pk}") <= times:
        raise LookupError

@progress("job:{pk}")
def ask_again(pk, times):
    if connection.incr(f"tries:{pk}") <= times:
        return Retry(max=2)

@progress("job:{pk}")
def be_cancelled(pk):
    raise Cancelled

@progress("job:{pk}")
def take_too_long(pk):
    while True:
        time.sleep(0.01)

def count(pk, times=0):
    if connection.incr(f"tries:{pk}") <= times:
        raise LookupError

@progress("job:{pk}", unit="rows")
def count_far(pk, part):
    for _ in track(range(4), f"job:{pk}"):
        pass

def data(*arguments, func=count, **options):
    return Queue.prepare_data(func, arguments, **options)

@progress("job:{pk}")
def be_watched(pk):
    connection.rpush(f"running:{pk}", os.getpid())
    for _ in range(60):  # redis-py gives up on an answer after 5 seconds
        if connection.blpop(f"go:{pk}", 1):
            break

def break_down(*arguments):
    raise LookupError
""",
    "worker.py": """
import os, sys
import django
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mysite.settings")
django.setup()
import rq
from notifications.contrib.rq import Job
from shop.queue import connection, queue
if __name__ == "__main__":
    worker = getattr(rq, sys.argv[1])([queue], connection=connection, job_class=Job)
    worker.work(with_scheduler=sys.argv[1] == "Worker" and queue.name == "told", logging_level="INFO")
""",
}
READY = r"Listening on"

SENT = {
    "simple": "queue.enqueue(import_rows, 'simple')",
    "coroutine": "queue.enqueue(sleep, 'coroutine')",
    "method": "queue.enqueue(Shop('method').open)",
    "by-path": "queue.enqueue('shop.tasks.import_rows', 'by-path')",
    "tried-again": "queue.enqueue(fail, 'tried-again', 2, retry=Retry(max=3))",
    "tried-later": "queue.enqueue(fail, 'tried-later', 1, retry=Retry(max=1, interval=1))",
    "out-of-retries": "queue.enqueue(fail, 'out-of-retries', 9, retry=Retry(max=1))",
    "asked": "queue.enqueue(ask_again, 'asked', 1)",
    "asked-in-vain": "queue.enqueue(ask_again, 'asked-in-vain', 9)",
    "cancelled": "queue.enqueue(be_cancelled, 'cancelled', retry=Retry(max=3))",
    "too-slow": "queue.enqueue(take_too_long, 'too-slow', job_timeout=1)",
    "scheduled": "queue.enqueue_in(timedelta(milliseconds=1), import_rows, 'scheduled')",
    "many": "queue.enqueue_many([Queue.prepare_data(import_rows, ['many'])])",
    "dependency": "first = queue.enqueue(import_rows, 'dependency')",
    "dependent": "queue.enqueue(import_rows, 'dependent', depends_on=first)",
    "callback": "queue.enqueue(import_rows, 'callback', on_success=Callback(break_down))",
    "unknown": "queue.enqueue('shop.missing.gone', 'unknown', meta={'notifications_progress': 'job:unknown'})",
}
"""What a web process enqueues, by the id of the job."""
TRACKED = {
    "many-of-one": "data('n-0'), data('n-1', 1, retry=Retry(max=1)), data('n-2')",
    "same-topic": "data('same-topic', 0, func=count_far), data('same-topic', 1, func=count_far)",
    "one-fails": "data('never', 9), data('ever')",
    "one-too-slow": "data('of-many', func=take_too_long, timeout=1)",
    "one-cancelled": "data('of-many-too', func=be_cancelled), data('more')",
    "needed": "data('never-1', 9, job_id='first'), data('never-2', depends_on='first')",
    "allowed": "data('never-3', 9, job_id='may-fail'),"
    " data('d-2', depends_on=Dependency('may-fail', allow_failure=True))",
}
"""Of which jobs there is one bar, by its id."""


@pytest.fixture(scope="module")
def site(redis_server: LocalRedis, project: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[QueueSite]:
    """Return a site whose jobs have queues or ids of their own in each test."""
    with redis.Redis.from_url(redis_server.url) as client:
        client.flushall()
    directory = Path(shutil.copytree(project, tmp_path_factory.mktemp("rq") / "site"))
    with closing(QueueSite(directory, redis_server.url, FILES, "")) as site:
        yield site


@pytest.fixture(scope="module")
def told(site: QueueSite) -> dict[str, list[dict[str, Any]]]:
    """Return all that was told of each of ``SENT``: the worker has done another job after them."""
    shares = [
        f"Group(connection).enqueue_many(queue, track_all([{datas}], 'job:{pk}', unit='parts'))"
        for pk, datas in TRACKED.items()
    ]
    code = "\n".join(["from shop.tasks import *", *SENT.values(), *shares, "queue.enqueue(fail, 'no-argument')"])
    with site.working("worker.py", "Worker", ready=READY, QUEUE="told"):
        site.run(code, QUEUE="told")
        heard = {pk: site.hear(f"job:{pk}") for pk in (*SENT, *TRACKED)}
        site.run("from shop.tasks import *; queue.enqueue(import_rows, 'the-last')", QUEUE="told")
        site.hear("job:the-last")
    assert site.heard("job:no-argument") == []
    return {pk: [*first, *(each["payload"] for each in site.heard(f"job:{pk}"))] for pk, first in heard.items()}


def gist(payloads: list[dict[str, Any]]) -> list[str]:
    """Return the states that were told; ``running``, which is told while a job runs, once in a row."""
    told = groupby(payload["state"] for payload in payloads)
    return [state for state, each in told for _ in (["once"] if state == "running" else each)]


@pytest.mark.parametrize("pk", ["simple", "coroutine", "method", "scheduled", "many", "dependency", "dependent"])
def test_each_state_is_told_once(told: dict[str, list[dict[str, Any]]], pk: str) -> None:
    """
    A job waits, runs and succeeds, in whatever way it is enqueued.

    That its time has come, or its dependency is done, is no news: it waits.
    """
    assert gist(told[pk]) == ["waiting", "running", "succeeded"]


def test_the_message_says_what_the_function_counted(told: dict[str, list[dict[str, Any]]]) -> None:
    """Within the function, ``track`` goes on with the progress that the work-horse has begun."""
    for pk in ("simple", "coroutine"):
        assert {name: told[pk][-1][name] for name in ("done", "total")} == {"done": 3, "total": 3}
    assert told["simple"][-1]["unit"] == "rows"


def test_a_job_that_is_enqueued_by_path_is_told_when_it_runs(told: dict[str, list[dict[str, Any]]]) -> None:
    """Whoever enqueues it need not have its function, nor its topic."""
    assert gist(told["by-path"]) == ["running", "succeeded"]


def test_an_attempt_that_is_tried_again_waits(told: dict[str, list[dict[str, Any]]]) -> None:
    """Only the last attempt ends the job; a function may also return ``Retry``."""
    attempt = ["waiting", "running"]
    assert gist(told["tried-again"]) == [*attempt, *attempt, *attempt, "succeeded"]
    assert gist(told["tried-later"]) == [*attempt, *attempt, "succeeded"]
    assert gist(told["asked"]) == [*attempt, *attempt, "succeeded"]
    assert gist(told["out-of-retries"]) == [*attempt, *attempt, "failed"]
    assert told["out-of-retries"][-1]["error"] == "LookupError"
    assert gist(told["asked-in-vain"]) == [*attempt, *attempt, *attempt, "failed"]


def test_a_job_that_is_cancelled_is_not_tried_again(told: dict[str, list[dict[str, Any]]]) -> None:
    """RQ has retries left, which it does not use."""
    assert gist(told["cancelled"]) == ["waiting", "running", "cancelled"]


def test_the_time_limit_cancels(told: dict[str, list[dict[str, Any]]]) -> None:
    """RQ interrupts the function."""
    assert gist(told["too-slow"]) == ["waiting", "running", "cancelled"]


def test_what_fails_around_the_function_is_told(told: dict[str, list[dict[str, Any]]]) -> None:
    """RQ counts a job as failed whose callback fails, or whose function is not there."""
    assert gist(told["callback"]) == ["waiting", "running", "succeeded", "failed"]
    assert gist(told["unknown"]) == ["waiting", "failed"]
    assert told["unknown"][-1]["error"] == "ValueError"


@pytest.mark.parametrize(("pk", "parts"), [("many-of-one", 3), ("same-topic", 2)])
def test_many_jobs_are_one_bar(told: dict[str, list[dict[str, Any]]], pk: str, parts: int) -> None:
    """It counts those that are done, each once; what is tried again is no news of the whole, which goes on."""
    assert gist(told[pk]) == ["waiting", "running", "succeeded"]
    assert (told[pk][-1]["done"], told[pk][-1]["total"]) == (parts, parts)
    assert {payload["unit"] for payload in told[pk]} == {"parts"}


def test_many_jobs_have_failed_when_all_have_ended(told: dict[str, list[dict[str, Any]]]) -> None:
    """One has failed, and the others are done; a time-out of one does not cancel all."""
    for pk, done, error in [("one-fails", 2, "LookupError"), ("allowed", 2, "LookupError")]:
        assert gist(told[pk]) == ["waiting", "running", "failed"]
        assert (told[pk][-1]["done"], told[pk][-1]["error"]) == (done, error)
    assert told["one-too-slow"][-1]["error"] == "JobTimeoutException"


def test_many_jobs_end_at_once_if_the_rest_will_not_run(told: dict[str, list[dict[str, Any]]]) -> None:
    """One has failed on which another depends, or somebody has cancelled one."""
    assert gist(told["needed"]) == ["waiting", "running", "failed"]
    assert gist(told["one-cancelled"]) == ["waiting", "running", "cancelled"]


def test_a_share_whose_process_was_killed_has_failed(site: QueueSite) -> None:
    """The worker tells it; the others go on."""
    with (
        redis.Redis.from_url(site.environment["REDIS_URL"]) as client,
        site.working("worker.py", "Worker", ready=READY, QUEUE="share"),
    ):
        datas = "data('share-1', func=be_watched, retry=Retry(max=1)), data('share-2')"
        site.run(f"from shop.tasks import *; queue.enqueue_many(track_all([{datas}], 'job:shares'))", QUEUE="share")
        heard = site.hear("job:shares", until=["running"])  # not told if all of it ends within a quarter of a second
        for _ in range(2):
            os.kill(horse_of(client, "share-1"), signal.SIGKILL)

        heard += site.hear("job:shares")
        assert gist(heard) == ["waiting", "running", "failed"]
        assert (heard[-1]["done"], heard[-1]["error"]) == (2, "Work-horse terminated unexpectedly")


@pytest.mark.parametrize("kind", ["SpawnWorker", "SimpleWorker"])
def test_every_worker_tells_it(site: QueueSite, kind: str) -> None:
    """Work-horses that are spawned are new interpreters; simple workers do their jobs themselves."""
    ids = [f"{kind}-{pk}" for pk in ("good", "bad")]
    with site.working("worker.py", kind, ready=READY, QUEUE=kind):
        site.run(
            "from shop.tasks import *\n"
            f"queue.enqueue(import_rows, '{ids[0]}'); queue.enqueue(fail, '{ids[1]}', 9, retry=Retry(max=1))",
            QUEUE=kind,
        )
        assert gist(site.hear(f"job:{ids[0]}")) == ["waiting", "running", "succeeded"]
        assert gist(site.hear(f"job:{ids[1]}")) == [*2 * ["waiting", "running"], "failed"]


def test_a_job_that_is_stopped_is_cancelled(site: QueueSite) -> None:
    """The worker tells it, which has killed the work-horse; it is not tried again."""
    with site.working("worker.py", "Worker", ready=READY, QUEUE="stop"):
        code = "from shop.tasks import *; print(queue.enqueue(be_watched, 'stopped', retry=Retry(max=3)).id)"
        pk = site.run(code, QUEUE="stop").strip()
        assert gist(site.hear("job:stopped", until=["running"])) == ["waiting", "running"]
        site.run(f"from shop.tasks import *; send_stop_job_command(connection, '{pk}')", QUEUE="stop")

        assert gist(site.hear("job:stopped")) == ["cancelled"]


@pytest.mark.parametrize("kind", ["Worker", "SpawnWorker"])
def test_a_job_whose_process_was_killed_is_told_by_the_worker(site: QueueSite, kind: str) -> None:
    """It waits if RQ tries it again, and has failed otherwise."""
    pk, queue = f"killed-{kind}", f"killed-{kind}"
    with (
        redis.Redis.from_url(site.environment["REDIS_URL"]) as client,
        site.working("worker.py", kind, ready=READY, QUEUE=queue),
    ):
        site.run(f"from shop.tasks import *; queue.enqueue(be_watched, '{pk}', retry=Retry(max=1))", QUEUE=queue)
        assert gist(site.hear(f"job:{pk}", until=["running"])) == ["waiting", "running"]
        os.kill(horse_of(client, pk), signal.SIGKILL)
        assert gist(site.hear(f"job:{pk}", until=["running"])) == ["waiting", "running"]
        os.kill(horse_of(client, pk), signal.SIGKILL)

        *_, last = site.hear(f"job:{pk}")
        assert (last["state"], last["error"]) == ("failed", "Work-horse terminated unexpectedly")


def test_a_job_whose_worker_was_killed_is_told_by_whoever_finds_it(site: QueueSite) -> None:
    """Nothing is told at first. RQ looks for abandoned jobs, and the one that finds this one tells it."""
    with (
        redis.Redis.from_url(site.environment["REDIS_URL"]) as client,
        site.working("worker.py", "Worker", ready=READY, QUEUE="abandoned") as worker,
    ):
        site.run("from shop.tasks import *; queue.enqueue(be_watched, 'abandoned')", QUEUE="abandoned")
        assert gist(site.hear("job:abandoned", until=["running"])) == ["waiting", "running"]
        horse = horse_of(client, "abandoned")
        worker.send_signal(signal.SIGKILL)
        os.kill(horse, signal.SIGKILL)
        worker.wait()
        code = "from shop.tasks import *; StartedJobRegistry(queue.name, connection, job_class=Job).cleanup(2**40)"
        site.run(code, QUEUE="abandoned")

        assert gist(site.hear("job:abandoned")) == ["failed"]


def test_a_job_that_is_cancelled_in_its_queue_says_so(site: QueueSite) -> None:
    """A job that is dropped from the queue will never run; one that was cancelled while it ran goes on."""
    site.run("from shop.tasks import *; queue.enqueue(import_rows, 'dropped').cancel()", QUEUE="nobody")
    assert gist(site.hear("job:dropped")) == ["waiting", "cancelled"]

    with (
        redis.Redis.from_url(site.environment["REDIS_URL"]) as client,
        site.working("worker.py", "Worker", ready=READY, QUEUE="cancel"),
    ):
        pk = site.run("from shop.tasks import *; print(queue.enqueue(be_watched, 'goes-on').id)", QUEUE="cancel")
        horse_of(client, "goes-on")
        site.run(f"from shop.tasks import *; Job.fetch('{pk.strip()}', connection).cancel()", QUEUE="cancel")
        client.rpush("go:goes-on", 1)
        assert gist(site.hear("job:goes-on")) == ["waiting", "running", "succeeded"]


def test_what_a_job_carries_fails_no_job(redis_server: LocalRedis) -> None:
    """A later version may write what this one does not know; and nobody gets a notice because a job says so."""
    from notifications.contrib.rq import SHARE, Job
    from notifications.contrib.tracked import Tracked

    texts = {"stage": "Reading", "later": 1, "user": 1, "title": "You have won"}
    carried = {"topic": "job:1", "key": "0", "of": 1, "run": "1", "needed": False, "texts": texts}
    assert Tracked.read(carried).texts == {"stage": "Reading"}

    with closing(redis.Redis.from_url(redis_server.url)) as connection, captured() as sent:
        for meta in (carried, {**carried, "run": "2", "texts": [1]}, {}):
            assert Job.create(abs, (-1,), connection=connection, meta={SHARE: meta}).perform() == 1
        assert [each.message["payload"]["state"] for each in sent] == ["running", "succeeded"]


def test_jobs_without_a_worker_are_told(site: QueueSite) -> None:
    """A queue that is not asynchronous runs its jobs where they are enqueued."""
    site.run(
        "from shop.tasks import *\nqueue = Queue('sync', connection=connection, is_async=False, job_class=Job)\n"
        "queue.enqueue(import_rows, 'sync'); queue.enqueue(fail, 'sync-fails', 9, retry=Retry(max=3))",
        QUEUE="sync",
    )
    assert gist(site.hear("job:sync")) == ["waiting", "running", "succeeded"]
    assert gist(site.hear("job:sync-fails")) == ["waiting", "running", "failed"]


def test_jobs_run_without_the_redis_of_this_app(redis_server: LocalRedis, project: Path, tmp_path: Path) -> None:
    """Enqueuing, the worker and its retries go on when nobody can be told."""
    directory = Path(shutil.copytree(project, tmp_path / "site"))
    settings = 'NOTIFICATIONS["REDIS_URL"] = "redis://127.0.0.1:1/0"'
    with (
        closing(QueueSite(directory, redis_server.url, FILES, settings)) as site,
        redis.Redis.from_url(redis_server.url) as client,
        site.working("worker.py", "Worker", ready=READY, QUEUE="away"),
    ):
        code = "queue.enqueue(fail, 'away', 1, retry=Retry(max=1)); queue.enqueue(be_watched, 'away')"
        site.run(f"from shop.tasks import *; {code}", QUEUE="away")
        horse_of(client, "away")
        client.rpush("go:away", 1)
        site.run("from shop.tasks import *; queue.enqueue(be_watched, 'away')", QUEUE="away")
        horse_of(client, "away")
        client.rpush("go:away", 1)
        assert client.getdel("tries:away") == b"2"


def horse_of(client: redis.Redis, pk: str) -> int:
    """Wait until a job is watched, and return the id of its process."""
    return int(wait_for(lambda: client.blpop(f"running:{pk}", 1), 60)[1])
