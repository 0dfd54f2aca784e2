"""django.tasks, and the backport for Django 5.2: the progress of a task, wherever it runs."""

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import wraps
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from django.db import transaction

from notifications import Cancelled, Progress, Topic, track
from notifications import progress as job_progress
from notifications.broker.clients import breaker
from notifications.history import get_store
from notifications.history.position import Position
from project.local_redis import LocalRedis
from tests.conftest import point_to
from tests.faults import paused
from tests.guides import command_of, environment, write
from tests.ports import free_port
from tests.processes import Process
from tests.queues.site import QueueSite, states
from tests.waiting import scaled, wait_for

LIBRARY = "django.tasks" if find_spec("django.tasks") else "django_tasks"
library = pytest.importorskip(LIBRARY)
pytest.importorskip("django_tasks_db")
pytest.importorskip("django_tasks_rq")

from notifications.contrib import tasks  # noqa: E402  which needs one of the libraries
from notifications.contrib.tasks import progress  # noqa: E402

JOB = "job:7"


@pytest.fixture
def immediate(live_redis: object, settings: object) -> None:
    """Tasks run where they are enqueued."""
    settings.TASKS = {"default": {"BACKEND": f"{LIBRARY}.backends.immediate.ImmediateBackend"}}


@pytest.fixture
def dummy(live_redis: object, settings: object) -> None:
    """Tasks are never run."""
    settings.TASKS = {"default": {"BACKEND": f"{LIBRARY}.backends.dummy.DummyBackend"}}


def told(*names: str, topic: str = JOB) -> list[Any]:
    """Return what the history has of a job: a field of each message, or several."""
    page = asyncio.run(get_store().read(Topic.parse(topic), Position(0, 0)))
    payloads = [json.loads(frame.text)["payload"] for frame in page.frames]
    return [payload[names[0]] if len(names) == 1 else tuple(payload[name] for name in names) for payload in payloads]


def refuse(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a function that is not called after all."""

    @wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        raise PermissionError("it has a secret")

    return call


def spoilt(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a function whose result cannot be kept."""

    @wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        function(*arguments, **named)
        return object()

    return call


@progress(JOB, total=3, unit="rows", stage="Reading")
def read(import_id: int) -> None:
    for _ in track(range(import_id), JOB):
        pass


@progress("job:{import_id}")
async def aread(import_id: int) -> None:
    async for _ in track(range(3), f"job:{import_id}"):
        pass


@progress("job:{context.task_result.id}")
def read_in_context(context: Any, import_id: int) -> None:
    Progress.current().message = f"attempt {context.attempt}"


@progress("job:{import_id}")
def fail(import_id: int) -> None:
    raise ValueError("it has a secret")


@progress("job:{import_id}")
def give_up(import_id: int) -> None:
    raise Cancelled


@refuse
@progress("job:{import_id}")
def refused(import_id: int) -> None:
    raise AssertionError


@spoilt
@progress("job:{import_id}")
def without_result(import_id: int) -> None:
    pass


@progress("job:{import_id}")
def outer(import_id: int) -> None:
    library.task(read).enqueue(3)
    raise ValueError


@job_progress("job:{import_id}")
def only_running(import_id: int) -> None:
    raise ValueError


def plain(import_id: int) -> None:
    raise ValueError


def test_a_task_waits_runs_and_ends(immediate: None) -> None:
    """Whoever looks sees it wait, with what is known before it begins, run and end, each once and in this order."""
    library.task(read).enqueue(3)

    assert told("state", "total", "unit", "stage")[0] == ("waiting", 3, "rows", None)
    assert told("state", "total", "unit", "stage")[-1] == ("succeeded", 3, "rows", "Reading")
    assert told("state") == ["waiting", "running", "succeeded"]


def test_coroutine_functions_are_tasks(immediate: None) -> None:
    """An ``async def`` task is a job as well, and so is one that was enqueued from a coroutine."""
    library.task(aread).enqueue(7)
    asyncio.run(library.task(aread).aenqueue(import_id=8))

    for topic in (JOB, "job:8"):
        assert told("state", "done", topic=topic)[-1] == ("succeeded", 3)
        assert told("state", topic=topic) == ["waiting", "running", "succeeded"]


def test_the_topic_may_be_the_id_of_the_task(immediate: None) -> None:
    """With ``takes_context`` the id that ``enqueue`` returns is the topic's, for jobs that have no other."""
    result = library.task(takes_context=True)(read_in_context).enqueue(7)

    assert told("state", "message", topic=f"job:{result.id}") == [
        ("waiting", None),
        ("running", None),
        ("succeeded", "attempt 1"),
    ]


@pytest.mark.parametrize(
    ("function", "end"),
    [
        (fail, ("failed", "ValueError")),
        (give_up, ("cancelled", None)),
        (without_result, ("succeeded", None)),
    ],
)
def test_a_task_tells_its_end_once(immediate: None, function: Callable[..., Any], end: tuple[str, str | None]) -> None:
    """What the function says of its end stands, whatever the backend makes of it."""
    result = library.task(function).enqueue(7)

    assert result.status == "FAILED"
    assert told("state", "error") == [("waiting", None), ("running", None), end]


def test_a_task_that_does_not_come_to_its_function_has_failed(immediate: None) -> None:
    """What raises before the function begins ends the job, too; nothing else would."""
    library.task(refused).enqueue(7)

    assert told("state", "error") == [("waiting", None), ("failed", "PermissionError")]


def test_a_task_within_a_task_is_one_of_its_own(immediate: None) -> None:
    """A task that enqueues another, which runs at once, still tells its own end, and only once."""
    library.task(outer).enqueue(8)

    assert told("state") == ["waiting", "running", "succeeded"]
    assert told("state", topic="job:8") == ["waiting", "running", "failed"]
    assert list(tasks._told) == []


@pytest.mark.django_db(transaction=True)
def test_a_task_waits_from_when_it_is_committed(dummy: None) -> None:
    """A task whose transaction is rolled back is not in the queue, and is not said to wait."""
    with transaction.atomic():
        library.task(read).enqueue(3)
        transaction.set_rollback(True)
    assert told("state") == []

    with transaction.atomic():
        library.task(read).enqueue(3)
        assert told("state") == []
    assert told("state") == ["waiting"]


@pytest.mark.django_db(transaction=True)
def test_a_worker_that_is_faster_is_not_overtaken(immediate: None) -> None:
    """A task that has run before whoever enqueued it can say that it waits does not seem to wait for ever."""
    with transaction.atomic():
        library.task(read).enqueue(3)  # it is run at once, and said to wait afterwards

    assert told("state") == ["waiting", "running", "succeeded"]


def test_nobody_needs_a_database_to_say_that_a_task_waits(dummy: None) -> None:
    """A test without Django's database, and a site whose queue is elsewhere, say it as well: nothing is asked there."""
    library.task(read).enqueue(3)

    assert told("state") == ["waiting"]


def test_other_tasks_tell_no_more_than_they_do(immediate: None, caplog: pytest.LogCaptureFixture) -> None:
    """A task without the decorator is no job, and one with that of ``notifications`` begins with its function."""
    library.task(refused).enqueue(7)
    library.task(plain).enqueue(7)
    library.task(only_running).enqueue(8)

    assert told("state") == ["waiting", "failed"]
    assert told("state", topic="job:8") == ["running", "failed"]
    assert [each for each in caplog.records if "is not told" in each.message] == []


def test_whatever_is_wrong_with_the_topic_enqueueing_goes_on(immediate: None, caplog: pytest.LogCaptureFixture) -> None:
    """A job of which nobody can say where it is told, and a call with wrong arguments, are the task's affair."""
    assert library.task(fail).enqueue("").status == "FAILED"
    assert library.task(fail).enqueue(7, 8).status == "FAILED"

    assert len([each for each in caplog.records if "is not told" in each.message]) == 3 + 3
    assert told("state") == []


def test_a_redis_that_hangs_costs_a_task_one_second(redis_program: None, immediate: None, settings: object) -> None:
    """Enqueueing and the task go on; both together, with all that they tell, lose a second."""
    took = []
    with LocalRedis() as server:
        point_to(settings, server.url)
        with paused(server.child):
            for _ in range(3):  # on a busy machine one of them may lose another second
                breaker.worked()
                began = time.monotonic()
                assert library.task(read).enqueue(3).status == "SUCCESSFUL"
                took.append(time.monotonic() - began)
        breaker.worked()
    assert min(took) < scaled(1.8)


@pytest.mark.django_db(transaction=True)
def test_a_redis_that_is_away_breaks_no_commit(dummy: None, settings: object) -> None:
    """What is said when a transaction is committed does not raise then, either."""
    point_to(settings, f"redis://127.0.0.1:{free_port()}")
    breaker.worked()
    with transaction.atomic():
        library.task(read).enqueue(3)
    breaker.worked()


# Workers in other processes.


@pytest.fixture
def guide(make_site: Callable[..., QueueSite], database: Path) -> QueueSite:
    """Return a site that has followed docs/how-to/django-tasks.md."""
    site = make_site({})
    write("django-tasks", site.directory)
    if LIBRARY == "django_tasks":
        with (site.directory / "mysite/settings.py").open("a") as settings:
            settings.write('\nINSTALLED_APPS += ["django_tasks"]\n')
        for name in ("tasks", "archives"):
            file = site.directory / f"uploads/{name}.py"
            file.write_text(file.read_text().replace("from django.tasks", "from django_tasks"))
    shutil.copy(database, site.directory)
    return site


def test_the_guide_shows_bars(guide: QueueSite) -> None:
    """Who has followed it sees a task wait, run and succeed, with a notice at the end, and several tasks as one."""
    page = guide.run(
        "from django.contrib.auth.models import User; from django.template.loader import render_to_string;"
        "from django.test import RequestFactory; request = RequestFactory().get('/'); request.user = User(pk=42);"
        "from uploads.views import create; create(request, '7');"
        "from uploads.archives import analyze_archive; analyze_archive(8, ['a', 'b', 'c']);"
        "print(render_to_string('uploads/upload.html', {'upload': {'pk': 7, 'name': 'CSV'}}, request))"
    )
    assert re.search(r'<task-progress topic="job:7" grant="[^"]+" label="CSV"', page)
    for topic in (JOB, "job:8"):
        assert states(guide.hear(topic, until=["waiting"])) == ["waiting"]

    with guide.working(*command_of("django-tasks"), "--no-reload", ready="Starting worker"):
        *_, last = heard = guide.hear(JOB)
        assert states(heard) == ["running", "succeeded"]
        assert (last["done"], last["total"], last["unit"], last["stage"]) == (50, 50, "pages", "Reading pages")
        [notice] = wait_for(lambda: guide.heard("user:42"))
        assert notice["title"] == "Your upload is analyzed"
        *_, last = heard = guide.hear("job:8")
        assert states(heard) == ["running", "succeeded"]
        assert (last["done"], last["total"], last["unit"]) == (3, 3, "files")


FILES = {
    "shop/tasks.py": f"""
import asyncio, os, sys, time
from {LIBRARY} import task
from notifications import track
from notifications.contrib.tasks import progress

@task
@progress("job:{{import_id}}", unit="rows")
def import_rows(import_id):
    for row in track(range(3), f"job:{{import_id}}"):
        pass

@task
@progress("job:{{import_id}}", unit="rows")
async def aimport_rows(import_id):
    async for row in track(range(3), f"job:{{import_id}}"):
        await asyncio.sleep(0)

@task(takes_context=True)
@progress("job:{{context.task_result.id}}")
def export(context):
    pass

@task
@progress("job:{{import_id}}")
def fail(import_id):
    raise ValueError("it has a secret")

@task
@progress("job:{{import_id}}", total=100)
def hang(import_id):
    print("hanging in", os.getpid(), file=sys.stderr, flush=True)
    for _ in range(1200):
        time.sleep(0.05)
        print("still there", flush=True)
"""
}
BACKPORT = '"django_tasks",' if LIBRARY == "django_tasks" else ""
SETTINGS = {
    "django_tasks_db": f"""
INSTALLED_APPS += [{BACKPORT} "django_tasks_db"]
TASKS = {{"default": {{"BACKEND": "django_tasks_db.DatabaseBackend"}}}}
""",
    "django_tasks_rq": """
INSTALLED_APPS += ["django_tasks", "django_rq"]
TASKS = {"default": {"BACKEND": "django_tasks_rq.RQBackend"}}
RQ_QUEUES = {"default": {"URL": REDIS_URL}}
RQ = {"JOB_CLASS": "django_tasks_rq.Job"}
""",
}
WORKERS = {
    "django_tasks_db": (
        ["manage.py", "db_worker", "--no-startup-delay", "--no-reload", "--interval", "0.05"],
        "Starting worker",
    ),
    "django_tasks_rq": (["manage.py", "rqworker", "--job-class", "django_tasks_rq.Job"], "Listening on default"),
}


@pytest.fixture(params=SETTINGS)
def backend(request: pytest.FixtureRequest) -> str:
    """Return the name of each package of a backend whose workers are processes."""
    return request.param


@pytest.fixture(scope="session")
def database(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a migrated database of the project with django-tasks-db, to be copied."""
    directory = Path(shutil.copytree(project, tmp_path_factory.mktemp("migrated") / "site"))
    with (directory / "mysite/settings.py").open("a") as settings:
        settings.write(SETTINGS["django_tasks_db"])
    subprocess.run([sys.executable, "manage.py", "migrate", "-v", "0"], cwd=directory, env=environment(), check=True)
    return directory / "db.sqlite3"


@pytest.fixture
def site(make_site: Callable[..., QueueSite], backend: str, database: Path) -> QueueSite:
    site = make_site(FILES, SETTINGS[backend])
    shutil.copy(database, site.directory)
    return site


@pytest.fixture
def worker(site: QueueSite, backend: str) -> Iterator[SimpleNamespace]:
    """Return what starts a worker, which is ended with the test."""
    arguments, ready = WORKERS[backend]
    started: list[Process] = []

    def start() -> Process:
        started.append(site.start(*arguments, ready=ready))
        return started[-1]

    yield SimpleNamespace(start=start)
    for process in started:
        if process.returncode is None:
            process.terminate(30)
        process.close()


def test_a_task_in_another_process_waits_runs_and_ends(site: QueueSite, worker: SimpleNamespace) -> None:
    """A task waits while no worker runs, and each kind of task tells the rest where it is done."""
    task = site.run(
        "from shop.tasks import *; import_rows.enqueue(1); aimport_rows.enqueue(import_id=2); fail.enqueue(3);"
        "print(export.enqueue().id)"
    ).split()[-1]
    for topic in ("job:1", "job:2", "job:3", f"job:{task}"):
        assert states(site.hear(topic, until=["waiting"])) == ["waiting"]
    worker.start()

    for topic in ("job:1", "job:2"):
        *_, last = heard = site.hear(topic)
        assert states(heard) == ["running", "succeeded"]
        assert (last["done"], last["total"], last["unit"]) == (3, 3, "rows")
    *_, last = heard = site.hear("job:3")
    assert (states(heard), last["error"]) == (["running", "failed"], "ValueError")
    assert states(site.hear(f"job:{task}")) == ["running", "succeeded"]
    assert not [topic for topic in ("job:1", "job:2", "job:3") if site.heard(topic)]


def hanging(site: QueueSite, worker: SimpleNamespace) -> tuple[Process, int]:
    """Start a worker whose task runs on; return it, and the id of the process that does the task."""
    site.run("from shop.tasks import hang; hang.enqueue(4)")
    process = worker.start()
    pid = int(process.wait_for_line("hanging in").rpartition(" ")[2])
    assert states(site.hear("job:4", until=["running"])) == ["waiting", "running"]
    return process, pid


@pytest.mark.parametrize("backend", ["django_tasks_db"], indirect=True)
def test_a_task_whose_worker_has_to_stop_is_cancelled(site: QueueSite, worker: SimpleNamespace) -> None:
    """A worker that is told twice to stop interrupts its task, and the job has one end."""
    process, pid = hanging(site, worker)
    os.kill(pid, signal.SIGTERM)
    process.wait_for_line("shutting down gracefully")
    process.wait_for_line("still there", after=process.mark())  # so it has dealt with the first
    os.kill(pid, signal.SIGTERM)
    process.wait(30)

    assert states(site.hear("job:4"))[-1] == "cancelled"
    assert site.heard("job:4") == []


@pytest.mark.parametrize("backend", ["django_tasks_rq"], indirect=True)
def test_a_task_that_a_backend_gives_up_has_failed(site: QueueSite, worker: SimpleNamespace) -> None:
    """When RQ finds that a worker is gone, which it does some minutes after, the job ends for whoever looks at it."""
    process, pid = hanging(site, worker)
    process.send_signal(signal.SIGKILL)
    os.kill(pid, signal.SIGKILL)
    process.wait(30)
    site.run(
        "import time, django_rq; from django_tasks_rq import Job; from rq.registry import StartedJobRegistry;"
        "queue = django_rq.get_queue('default', job_class=Job);"
        "StartedJobRegistry(queue=queue, job_class=Job).cleanup(time.time() + 3600)"
    )

    *_, last = site.hear("job:4")
    assert (last["state"], last["error"]) == ("failed", None)  # it does not say why
