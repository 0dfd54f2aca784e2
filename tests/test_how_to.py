"""
The guides of docs/how-to, followed.

Each block behind ``<!-- file: name -->`` is written to that file of a small site, and run as the guide says, where what
it needs is installed: ``nox -s how_to`` installs the task queues; systemd and Docker are the machine's.
The proxies are in ``test_proxies.py``.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
import redis
from django.contrib.auth.models import User

from notifications import auth
from project.local_redis import LocalRedis
from tests.guides import ROOT, files_of, write
from tests.processes import Process
from tests.waiting import scaled

PROGRESS = [{"action": "upload_progress", "percent": percent} for percent in range(0, 100, 10)]
DONE = {"action": "notice", "title": "Your upload is analyzed"}
SETTINGS = """
import os

SECRET_KEY = "only-for-tests"
USE_TZ = True
INSTALLED_APPS = ["django.contrib.auth", "django.contrib.contenttypes", "notifications"]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
REDIS_URL = CELERY_BROKER_URL = os.environ["REDIS_URL"]
CELERY_IMPORTS = ["uploads.tasks"]
NOTIFICATIONS = {"REDIS_URL": REDIS_URL}
"""


class Queue:
    """A site that has followed a guide, and whoever hears what it publishes."""

    def __init__(self, guide: str, directory: Path, url: str) -> None:
        self.directory = directory
        (directory / "mysite").mkdir()
        (directory / "mysite/__init__.py").touch()
        (directory / "mysite/settings.py").write_text(SETTINGS)
        write(guide, directory)
        self._env = os.environ | {
            "PYTHONPATH": f"{directory}:{ROOT}",
            "DJANGO_SETTINGS_MODULE": "mysite.settings",
            "REDIS_URL": url,
        }
        self._subscription = redis.Redis.from_url(url).pubsub()
        self._subscription.psubscribe("user:*", "upload:*")
        for _ in range(2):
            assert self._subscription.get_message(timeout=scaled())["type"] == "psubscribe"

    @contextmanager
    def working(self, *command: str, ready: str) -> Iterator[Process]:
        worker = Process([sys.executable, *command], env=self._env, name=command[0], cwd=self.directory)
        try:
            worker.wait_for_line(ready, 30)
            yield worker
        finally:
            worker.terminate(30)

    def run(self, code: str) -> None:
        code = f"import django; django.setup(); {code}"
        subprocess.run([sys.executable, "-c", code], env=self._env, cwd=self.directory, check=True, timeout=scaled(30))

    def hear(self) -> tuple[str, dict[str, object]]:
        """Return the topic and the gist of the next message."""
        heard = self._subscription.get_message(timeout=scaled(30))
        assert heard is not None, "nothing was published"
        message = json.loads(heard["data"])
        gist = {name: message[name] for name in ("action", "title") if name in message}
        if "payload" in message:
            gist["percent"] = message["payload"]["progress_percent"]
        return heard["channel"].decode(), gist


@pytest.fixture
def queue(request: pytest.FixtureRequest, redis_server: LocalRedis, tmp_path: Path) -> Queue:
    with redis.Redis.from_url(redis_server.url) as client:
        client.flushall()
    return Queue(request.param, tmp_path, redis_server.url)


def expect_all(queue: Queue, uploads: list[str]) -> None:
    """Expect the whole progress of each upload in its order, and a notice for each."""
    heard = [queue.hear() for _ in uploads for _ in range(len(PROGRESS) + 1)]

    for upload in uploads:
        assert [gist for topic, gist in heard if topic == f"upload:{upload}"] == PROGRESS
    assert [gist for topic, gist in heard if topic == "user:42"] == [DONE] * len(uploads)


@pytest.mark.parametrize("queue", ["celery"], indirect=True)
def test_celery_publishes_from_children_of_a_parent_that_has_published(queue: Queue) -> None:
    """A prefork worker publishes from its children, also if the parent had connections before it forked."""
    pytest.importorskip("celery")
    with (queue.directory / "mysite/celery.py").open("a") as file:
        file.write(
            "\n\nfrom celery.signals import worker_init\n\n\n@worker_init.connect\ndef publish_first(**_):\n"
            "    from notifications import publish\n    publish('user:1', {'action': 'from the parent'})\n"
        )
    uploads = [f"upload-{n}" for n in range(6)]
    with queue.working(
        "-m", "celery", "-A", "mysite", "worker", "--pool", "prefork", "-c", "2", "-l", "INFO", ready="ready"
    ):
        assert queue.hear() == ("user:1", {"action": "from the parent"})
        queue.run(f"from uploads.tasks import analyze; import mysite.celery; [analyze.delay(u, 42) for u in {uploads}]")
        expect_all(queue, uploads)


@pytest.mark.parametrize("queue", ["dramatiq"], indirect=True)
def test_dramatiq_publishes_from_processes_and_threads(queue: Queue) -> None:
    """Two processes of two threads publish everything."""
    pytest.importorskip("dramatiq")
    uploads = [f"upload-{n}" for n in range(6)]
    with queue.working("-m", "dramatiq", "mysite.worker", "-p", "2", "-t", "2", ready="ready for action"):
        queue.run(f"from uploads.tasks import analyze; [analyze.send(u, 42) for u in {uploads}]")
        expect_all(queue, uploads)


@pytest.mark.parametrize("queue", ["rq"], indirect=True)
def test_rq_publishes_from_forked_jobs(queue: Queue) -> None:
    """Each job is a process of its own."""
    pytest.importorskip("rq")
    uploads = ["upload-1", "upload-2"]
    with queue.working("worker.py", ready="Listening on default"):
        queue.run(f"from mysite.queue import enqueue; [enqueue(u, 42) for u in {uploads}]")
        expect_all(queue, uploads)


@pytest.mark.parametrize("queue", ["django-tasks"], indirect=True)
def test_tasks_of_django_publish(queue: Queue) -> None:
    """A task that is enqueued when the transaction commits publishes."""
    pytest.importorskip("django.tasks")
    queue.run(
        "from django.contrib.auth.models import User; from types import SimpleNamespace as Request;"
        "from uploads.views import create; assert create(Request(user=User(pk=42)), 'upload-1').status_code == 202"
    )
    expect_all(queue, ["upload-1"])


@pytest.mark.django_db(transaction=True)
async def test_jwt_opens_a_socket(settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A good token is its user's; a bad one, an old one and an inactive user's are nobody's, and nothing is logged."""
    pytest.importorskip("rest_framework_simplejwt")
    from rest_framework_simplejwt.tokens import AccessToken, RefreshToken

    namespace: dict[str, object] = {}
    exec(files_of("drf-jwt")["mysite/permissions.py"], namespace)
    settings.SECRET_KEY = "s" * 64
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "AUTHENTICATE_TOKEN": namespace["user_of_jwt"]}
    ada = await User.objects.acreate(username="ada")
    bob = await User.objects.acreate(username="bob", is_active=False)
    old = AccessToken.for_user(ada)
    old.set_exp(lifetime=timedelta(seconds=-10))

    assert await auth.token_user(str(AccessToken.for_user(ada))) == ada
    for bad in (AccessToken.for_user(bob), RefreshToken.for_user(ada), old, "nonsense", ""):
        assert await auth.token_user(str(bad)) is None


def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    """systemd-analyze verify says nothing of the units, with the paths of a site that is there."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    units = sorted((ROOT / "deploy/systemd").iterdir())
    for unit in units:
        text = unit.read_text().replace("/srv/mysite/.venv/bin/python", sys.executable).replace("/srv/mysite", "/tmp")
        (tmp_path / unit.name.replace("@", "@1")).write_text(text.replace("User=mysite", "User=root"))
    done = subprocess.run(
        ["systemd-analyze", "verify", *tmp_path.iterdir()], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )

    assert len(units) == 2
    assert not [line for line in done.stdout.splitlines() if "notifications-" in line], done.stdout
    assert done.returncode == 0, done.stdout


def test_compose_accepts_the_file(tmp_path: Path) -> None:
    """``docker compose config`` understands the file."""
    asked = shutil.which("docker") and subprocess.run(["docker", "compose", "version"], capture_output=True)
    if not asked or asked.returncode:
        pytest.skip("docker compose is not installed")
    write("compose", tmp_path)
    done = subprocess.run(
        ["docker", "compose", "config", "--quiet"],
        cwd=tmp_path,
        env=os.environ | {"SECRET_KEY": "x"},
        capture_output=True,
        text=True,
    )

    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(("guide", "file"), [("compose", "compose.yaml"), ("kubernetes", "notifications.yaml")])
def test_manifests_are_yaml(guide: str, file: str) -> None:
    """The manifests can be read, and run what the README runs."""
    yaml = pytest.importorskip("yaml")
    documents = list(yaml.safe_load_all(files_of(guide)[file]))

    assert all(isinstance(document, dict) for document in documents)
    assert "run_listener" in json.dumps(documents)
