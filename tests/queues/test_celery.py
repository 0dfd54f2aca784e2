"""Celery: the progress of tasks, told by real workers on a real broker."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from inspect import cleandoc
from typing import Any

import pytest

from notifications import TopicError
from tests.processes import Process
from tests.queues.site import QueueSite, states

pytest.importorskip("celery")

TASKS = """
import os
import signal
import sys
import threading
import time
from pathlib import Path

from celery import Task, chain, chord, group, shared_task
from celery.exceptions import Ignore, Reject

from notifications import Progress, track
from notifications.contrib.celery import progress
from notifications.contrib.celery import track as track_canvas

HERE = Path(__file__).parent


def first_time(name):
    try:
        (HERE / f"done-{name}").touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def die():
    os.kill(os.getpid(), signal.SIGKILL)


@shared_task
@progress("job:{import_id}", unit="rows", stage="Reading rows")
def import_rows(import_id, rows=3):
    for row in track(range(rows), f"job:{import_id}"):
        pass


@shared_task(bind=True)
@progress("job:{self.request.id}")
def by_its_id(self):
    self.request.id


@shared_task
@progress("job:{number}")
def fail(number):
    raise LookupError("not for everybody")


@shared_task(bind=True)
@progress("job:{number}")
def retry(self, number):
    if not self.request.retries:
        raise self.retry(countdown=0.5)


@shared_task(bind=True)
@progress("job:{number}")
def retry_and_return(self, number):
    if not self.request.retries:
        self.retry(countdown=0, throw=False)


@shared_task(autoretry_for=(LookupError,), default_retry_delay=0, max_retries=1)
@progress("job:{number}")
def retried_once(number):
    raise LookupError


@shared_task(bind=True, autoretry_for=(LookupError,), default_retry_delay=0)
@progress("job:{number}")
def retried(self, number):
    if first_time(number):
        raise LookupError


@shared_task(autoretry_for=(Exception,), default_retry_delay=0)
@progress("job:{number}")
def patient(number):
    for _ in track(range(1_000_000), f"job:{number}"):
        time.sleep(0.01)


@shared_task
@progress("job:{number}")
def ignore(number):
    raise Ignore


@shared_task(bind=True)
@progress("job:{number}")
def replace(self, number):
    raise self.replace(import_rows.s(number))


@shared_task(bind=True)
@progress("job:{number}")
def replace_by_another(self, number):
    raise self.replace(import_rows.s(f"{number}-other"))


@shared_task
@progress("job:{number}")
def reject(number):
    raise Reject("because", requeue=False)


@shared_task(acks_late=True)
@progress("job:{number}")
def reject_once(number):
    if first_time(number):
        raise Reject("because", requeue=True)


@shared_task
@progress("job:{number}")
def killed(number):
    die()


@shared_task(acks_late=True)
@progress("job:{number}")
def killed_late(number):
    die()


@shared_task(acks_late=True, reject_on_worker_lost=True)
@progress("job:{number}")
def killed_once(number):
    if first_time(number):
        die()


@shared_task
@progress("job:{number}")
def leave(number):
    sys.exit()


@shared_task(time_limit=1)
@progress("job:{number}")
def too_long(number):
    threading.Event().wait()


@shared_task(time_limit=1, acks_late=True, acks_on_failure_or_timeout=False)
@progress("job:{number}")
def too_long_at_first(number):
    if first_time(number):
        threading.Event().wait()


@shared_task(soft_time_limit=1)
@progress("job:{number}")
def long(number):
    while True:
        time.sleep(0.01)


@shared_task
@progress("job:{number}")
def wait(number):
    Progress.current().stage = f"waits in {os.getpid()}"
    for _ in range(6000):
        time.sleep(0.01)


@shared_task
def square(number):
    time.sleep(0.01)
    return number**2


@shared_task
def add_up(numbers):
    return sum(numbers)


@shared_task
def goes_wrong(*_):
    raise LookupError


@shared_task(acks_late=True, reject_on_worker_lost=True)
def killed_at_first(name):
    if first_time(name):
        die()


@shared_task
def is_killed():
    die()


@shared_task(soft_time_limit=1)
def takes_long():
    while True:
        time.sleep(0.01)


@shared_task(bind=True)
def goes_wrong_once(self, *_):
    if not self.request.retries:
        raise self.retry(countdown=0)


@shared_task(bind=True)
def replaces(self):
    raise self.replace(goes_wrong.s())


@shared_task
def ignores():
    raise Ignore


@shared_task
@progress("job:{name}", unit="rows")
def half(name):
    job = Progress.current()
    job.total = 2
    job.advance()
    while not (HERE / "go").exists():
        time.sleep(0.01)


@shared_task
def looks():
    for _ in track(range(1_000_000), Progress.current()):
        time.sleep(0.01)


@shared_task(bind=True)
@progress("job:{name}")
def spread(self, name):
    raise self.replace(track_canvas(group(square.s(1), square.s(2)), f"job:{name}"))


@shared_task
@progress("job:{name}")
def hand_on(name):
    track_canvas(group(square.s(1), square.s(2)), f"job:{name}").delay()


class NeverBegins(Task):
    def before_start(self, *_):
        raise LookupError


@shared_task(base=NeverBegins)
@progress("job:{number}")
def never_begins(number):
    pass
"""
CELERY = """
import os

from celery import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mysite.settings")
app = Celery("mysite")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()
"""
FILES = {"mysite/celery.py": CELERY, "shop/tasks.py": TASKS}
SETTINGS = """
INSTALLED_APPS += ["shop"]
CELERY_BROKER_URL = CELERY_RESULT_BACKEND = REDIS_URL
CELERY_WORKER_HIJACK_ROOT_LOGGER = False
"""
WORKER = ("-m", "celery", "-A", "mysite", "worker", "-l", "INFO", "--without-gossip", "--without-mingle")


class CelerySite:
    """A site of Celery, which sends tasks and hears of them."""

    def __init__(self, site: QueueSite) -> None:
        self.site = site
        (site.directory / "mysite/__init__.py").write_text("from .celery import app as celery_app\n")

    @contextmanager
    def working(self, *options: str, **env: str) -> Iterator[Process]:
        with self.site.working(*WORKER, "-c", "2", *options, ready="ready", **env) as worker:
            yield worker

    def send(self, *calls: str) -> None:
        """Send tasks, such as ``"import_rows.delay(7)"``, from one process."""
        self.site.run("from shop.tasks import *\n" + "\n".join(calls))

    def tell(self, code: str) -> str:
        """Run code with the app as ``app``, and return what it prints."""
        return self.site.run(f"from mysite.celery import app\n{code}").strip()

    def states(self, topic: str) -> list[str]:
        """Return the states that the job of a topic goes through until it has ended."""
        return states(self.site.hear(topic))


@pytest.fixture
def celery(make_site: Callable[..., QueueSite]) -> CelerySite:
    return CelerySite(make_site(FILES, SETTINGS))


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo", "gevent"])
def test_a_task_is_told_from_its_sending_to_its_end(celery: CelerySite, pool: str) -> None:
    """Whatever runs a task, and however it ends, its job says so, once."""
    if pool == "gevent":
        pytest.importorskip("gevent")
    tasks = {
        "import_rows.delay('good')": ["waiting", "running", "succeeded"],
        "import_rows.apply_async(kwargs={'import_id': 'named', 'rows': 2})": ["waiting", "running", "succeeded"],
        "by_its_id.apply_async(task_id='own')": ["waiting", "running", "succeeded"],
        "fail.delay('bad')": ["waiting", "running", "failed"],
        "retry.delay('again')": ["waiting", "running", "waiting", "running", "succeeded"],
        "retry_and_return.delay('quietly')": ["waiting", "running", "waiting", "running", "succeeded"],
        "retried_once.delay('in-vain')": ["waiting", "running", "waiting", "running", "failed"],
        "retried.delay('by-itself')": ["waiting", "running", "waiting", "running", "succeeded"],
        "ignore.delay('ignored')": ["waiting", "running", "cancelled"],
        "replace.delay('replaced')": ["waiting", "running", "waiting", "running", "succeeded"],
        "replace_by_another.delay('handed-on')": ["waiting", "running", "succeeded"],
        "reject.delay('rejected')": ["waiting", "running", "failed"],
        "reject_once.delay('put-back')": ["waiting", "running", "waiting", "running", "succeeded"],
        "never_begins.delay('never')": ["waiting", "failed"],
    }
    topics = {call: "job:" + call.split("'")[-2] for call in tasks if "named" not in call} | {
        call: "job:named" for call in tasks if "named" in call
    }
    with celery.working("--pool", pool):
        celery.send(*tasks)
        assert {call: celery.states(topic) for call, topic in topics.items()} == tasks

    assert {topic: celery.site.heard(topic) for topic in topics.values()} == {topic: [] for topic in topics.values()}


@pytest.mark.slow
def test_a_killed_task_has_failed_unless_it_is_delivered_again(celery: CelerySite) -> None:
    """What kills a task in its process is told by the worker's main process, once, and no more is told afterwards."""
    ends = {
        "killed": ("failed", "WorkerLostError"),
        "killed_late": ("failed", "WorkerLostError"),
        "killed_once": ("succeeded", None),
        "leave": ("failed", "WorkerLostError"),
        "too_long": ("failed", "TimeLimitExceeded"),
        "too_long_at_first": ("succeeded", None),
        "long": ("cancelled", None),
    }
    with celery.working():
        celery.send(*(f"{name}.delay({name!r})" for name in ends))
        heard = {name: celery.site.hear(f"job:{name}") for name in ends}

    assert {name: (said[-1]["state"], said[-1]["error"]) for name, said in heard.items()} == ends
    assert {said[0]["state"] for said in heard.values()} == {"waiting"}
    assert {name: celery.site.heard(f"job:{name}") for name in ends} == {name: [] for name in ends}


@pytest.mark.parametrize("number", ["SIGTERM", "SIGKILL"])
def test_a_revoked_task_is_cancelled(celery: CelerySite, number: str) -> None:
    """Both a task that has not begun and one that is terminated are cancelled."""
    with celery.working("-c", "1"):
        celery.send("wait.apply_async(['first'], task_id='1')", "wait.apply_async(['second'], task_id='2')")
        celery.site.hear("job:first", until=["running"])
        assert "revoked" in celery.tell("print(app.control.revoke('2', reply=True))")
        celery.tell(f"app.control.revoke('1', terminate=True, signal={number!r})")

        assert celery.states("job:first")[-1] == "cancelled"
        assert celery.states("job:second") == ["waiting", "cancelled"]

    assert [celery.site.heard(f"job:{name}") for name in ("first", "second")] == [[], []]


def test_an_expired_task_is_cancelled(celery: CelerySite) -> None:
    """A task that no worker has begun in time does not wait for ever."""
    celery.send("import_rows.apply_async(['late'], expires=0.01)")
    with celery.working():
        assert celery.states("job:late") == ["waiting", "cancelled"]


def test_a_running_task_sees_that_it_is_cancelled(celery: CelerySite) -> None:
    """``cancel`` ends it as revoked: not even a task that retries whatever goes wrong begins again."""
    with celery.working():
        celery.send("patient.apply_async(['long'], task_id='1')")
        celery.site.hear("job:long", until=["running"])
        celery.tell("from notifications import cancel; cancel('job:long')")

        assert celery.states("job:long")[-1] == "cancelled"
        assert celery.tell("import time\nwhile app.AsyncResult('1').state == 'PENDING': time.sleep(0.01)") == ""
        assert celery.tell("print(app.AsyncResult('1').state)") == "REVOKED"

    assert celery.site.heard("job:long") == []


def test_a_worker_that_is_stopped_at_once_says_what_it_has_left(celery: CelerySite) -> None:
    """A cold shutdown ends running tasks, and their jobs do not run for ever."""
    with celery.working() as worker:
        celery.send("wait.delay('left')")
        celery.site.hear("job:left", until=["running"])
        worker.send_signal(signal.SIGQUIT)
        worker.wait(30)

        assert celery.states("job:left")[-1] == "cancelled"

    assert celery.site.heard("job:left") == []


def test_without_redis_tasks_go_on(celery: CelerySite) -> None:
    """If the Redis of notifications is away and the broker is not, tasks are sent and done."""
    with (celery.site.directory / "mysite/settings.py").open("a") as settings:
        settings.write("NOTIFICATIONS['REDIS_URL'] = 'redis://127.0.0.1:1/0'\n")
    with celery.working():
        code = """
            from shop.tasks import *
            canvas = track_canvas(chord([square.s(1), square.s(2)], add_up.s()), "job:3")
            results = [import_rows.delay(1), fail.delay(2), canvas.delay()]
            print([result.get(timeout=60, propagate=False) for result in results])
        """
        assert celery.tell(cleandoc(code)) == "[None, LookupError('not for everybody'), 5]"


def test_what_a_transaction_sends_waits_with_its_commit(celery: CelerySite) -> None:
    """``delay_on_commit`` says nothing before the commit, and nothing after a rollback."""
    celery.send(
        "from django.db import transaction",
        "from notifications import announce",
        "with transaction.atomic():",
        "    import_rows.delay_on_commit('good')",
        "    announce('job:good', state='cancelled')",
        "with transaction.atomic():",
        "    import_rows.delay_on_commit('bad')",
        "    transaction.set_rollback(True)",
    )

    assert states(message["payload"] for message in celery.site.heard("job:good")) == ["cancelled", "waiting"]
    assert celery.site.heard("job:bad") == []


def test_eager_tasks_are_told(celery: CelerySite) -> None:
    """With ``task_always_eager`` the job runs where it is sent."""
    celery.send("import_rows.app.conf.task_always_eager = True", "import_rows.delay(1)", "retry.delay(2)")

    assert celery.states("job:1") == ["running", "succeeded"]
    assert celery.states("job:2") == ["running", "waiting", "running", "succeeded"]


def test_what_cannot_be_told_stops_nothing(celery: CelerySite) -> None:
    """A task that is not known where it is sent, or whose topic is not valid, is sent all the same."""
    celery.tell("app.send_task('elsewhere.task', ['secret'])")
    said = celery.tell(
        "import logging; logging.basicConfig(format='%(message)s', stream=__import__('sys').stdout)\n"
        "from shop.tasks import fail; fail.delay('not a topic'); fail.delay(number='secret ' * 1000)"
    )

    assert "progress of a task is not told" in said
    assert "secret" not in said
    assert celery.tell("with app.connection() as c: print(c.default_channel.client.llen('celery'))") == "3"


# Several tasks, one job.


def numbers(message: dict[str, Any]) -> tuple[str, int, int]:
    payload = message["payload"]
    return payload["state"], payload["done"], payload["total"]


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo", "gevent"])
def test_a_chord_of_a_hundred_is_one_bar(celery: CelerySite, pool: str) -> None:
    """The tasks of two processes add up to one job, which ends once and says no more than one job may."""
    if pool == "gevent":
        pytest.importorskip("gevent")
    code = """
        from shop.tasks import *
        tasks = chord([square.s(number) for number in range(100)], add_up.s())
        print(track_canvas(tasks, "job:sum", unit="tasks").delay().get(timeout=60))
    """
    with celery.working("--pool", pool):
        assert celery.tell(cleandoc(code)) == "328350"

    messages = celery.site.heard("job:sum")
    counts = [numbers(message) for message in messages]
    took = datetime.fromisoformat(messages[-1]["timestamp"]) - datetime.fromisoformat(messages[0]["timestamp"])
    assert states([message["payload"] for message in messages]) == ["waiting", "running", "succeeded"]
    assert [state for state, _, _ in counts].count("succeeded") == 1
    assert counts[-1] == ("succeeded", 101, 101)
    assert counts == sorted(counts, key=lambda count: count[1])
    assert {message["payload"]["unit"] for message in messages} == {"tasks"}
    assert len(messages) <= 4 * took.total_seconds() + 3


@pytest.mark.slow
def test_a_canvas_ends_as_its_tasks_do(celery: CelerySite) -> None:
    """Each canvas is one job, which ends once, when its tasks have ended, or when there is nothing to wait for."""
    canvases = {
        "alone": ("square.si(1)", "succeeded", 1, None),
        "chain": ("chain(square.si(1), goes_wrong_once.si(), square.si(3))", "succeeded", 3, None),
        "nested": (
            "chain(square.s(2), group(square.si(3), chain(square.si(4), square.si(5))), add_up.s(), square.s())",
            "succeeded",
            6,
            None,
        ),
        "linked": ("square.s(2).set(link=square.s())", "succeeded", 2, None),
        "mapped": ("group(square.map([1, 2]), square.chunks([(1,), (2,)], 1).group())", "succeeded", 3, None),
        "header": ("chord([goes_wrong.s(), square.s(2)], add_up.s())", "failed", None, "LookupError"),
        "link": ("chain(goes_wrong.s(), square.s())", "failed", None, "LookupError"),
        "one-of-three": ("group(goes_wrong.s(), square.s(1), square.s(2))", "failed", 3, "LookupError"),
        "too-long": ("group(takes_long.s(), square.s(1))", "failed", 2, "SoftTimeLimitExceeded"),
        "killed": ("group(is_killed.s(), square.s(1))", "failed", 2, "WorkerLostError"),
        "killed-once": ("group(killed_at_first.s('share'), square.s(1))", "succeeded", 2, None),
        "killed-decorated": ("group(killed.s('killed-decorated'), square.s(1))", "failed", 2, "WorkerLostError"),
        "replaced": ("group(replaces.s(), square.s(1))", "failed", 2, "LookupError"),
        "ignored": ("group(ignores.s(), square.s(1))", "succeeded", 2, None),
        "ignored-link": ("chain(ignores.s(), square.s())", "cancelled", None, None),
    }
    with celery.working():
        celery.send(*(f"track_canvas({code}, 'job:{name}').delay()" for name, (code, *_) in canvases.items()))
        heard = {name: celery.site.hear(f"job:{name}") for name in canvases}
        celery.send("spread.delay('spread')", "hand_on.delay('handed-on')")
        spread = {name: celery.site.hear(f"job:{name}") for name in ("spread", "handed-on")}

    for name, (_, state, done, error) in canvases.items():
        last = heard[name][-1]
        assert (name, last["state"], last["error"]) == (name, state, error)
        assert done is None or (name, last["done"], last["total"]) == (name, done, done)
        assert heard[name][0]["state"] == "waiting"
    for said in spread.values():
        assert states(said)[:3] == ["waiting", "running", "waiting"]
        assert (said[-1]["state"], said[-1]["total"]) == ("succeeded", 2)
    assert {name: celery.site.heard(f"job:{name}") for name in (*canvases, *spread)} == {
        name: [] for name in (*canvases, *spread)
    }


def test_a_decorated_task_tells_how_far_its_share_is(celery: CelerySite) -> None:
    """Half of one of two tasks is a quarter of the job, which counts tasks and not what they count."""
    with celery.working():
        celery.send("track_canvas(group(half.s('quarter'), looks.s()), 'job:quarter', unit='tasks').delay()")
        said: list[dict[str, Any]] = []
        while not any(payload["percent"] == 25 for payload in said):
            said += celery.site.hear("job:quarter", until=["running"])
        assert {payload["unit"] for payload in said} == {"tasks"}

        (celery.site.directory / "shop/go").touch()
        celery.tell("from notifications import cancel; cancel('job:quarter')")
        assert celery.states("job:quarter")[-1] == "cancelled"

    assert celery.site.heard("job:quarter") == []


def test_a_revoked_share_cancels_the_job(celery: CelerySite) -> None:
    """A task that does not begin any more leaves no job that runs for ever."""
    celery.send("track_canvas(group(square.s(1).set(expires=0.01), square.s(2)), 'job:late').delay()")
    with celery.working():
        assert celery.states("job:late") == ["waiting", "cancelled"]


def test_an_eager_canvas_is_one_bar(celery: CelerySite) -> None:
    """With ``task_always_eager`` the tasks of a canvas are shares as well."""
    celery.send(
        "square.app.conf.task_always_eager = True",
        "track_canvas(chord([square.s(1), square.s(2)], add_up.s()), 'job:1').delay()",
    )
    said = celery.site.hear("job:1")

    assert states(said) == ["running", "succeeded"]
    assert (said[-1]["done"], said[-1]["total"]) == (3, 3)


def test_what_cannot_be_counted_is_refused() -> None:
    """The tasks of a canvas are known, or an exception says what to do; and what was given is not changed."""
    from celery import Celery, chord, group

    from notifications.contrib.celery import track

    def count(number: int = 0) -> int:
        return number

    task = Celery("counts", set_as_current=False).task(count, lazy=False)
    refused = [
        (task.chunks([(1,)], 1), "group"),
        (chord([task.s()]), "body"),
        (group(task.s(), task.s()).set(headers={"a": 1}), "headers"),
        (task, "no signature"),
        (group([]), "no job"),
    ]
    for canvas, why in refused:
        with pytest.raises((TypeError, ValueError), match=why):
            track(canvas, "job:1")
    with pytest.raises(TypeError, match="total"):
        track(task.s(), "job:1", total=3)
    with pytest.raises(TopicError):
        track(task.s(), "no topic")
    given = group(task.s(-1), task.s(-2))
    tracked = track(given, "job:1")
    assert [part.options for part in given.tasks] == [{}, {}]
    assert [part.options["headers"]["notifications_share"]["of"] for part in tracked.tasks] == [2, 2]
