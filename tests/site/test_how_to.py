"""
The guides of docs/how-to, followed.

Each block behind ``<!-- file: name -->`` is written to that file of a small site, and run as the guide says, where what
it needs is installed: ``make guides`` installs the packages; systemd and Docker are the machine's.
The proxies are in ``test_proxies.py``.
"""

import asyncio
import json
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import groupby
from pathlib import Path

import pytest
import redis
from websockets.asyncio.client import connect as aconnect
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from notifications.protocol.frames import MAX_AUTH_FRAME_SIZE
from project.local_redis import LocalRedis
from tests.guides import ROOT, command_of, environment, files_of, start_project, write
from tests.ports import free_port
from tests.processes import Process, Site, WebServer
from tests.waiting import scaled

PROGRESS = [{"action": "upload_progress", "percent": percent} for percent in range(0, 100, 10)]
DONE = {"action": "notice", "title": "Your upload is analyzed"}


class Queue:
    """A site that has followed a guide, and whoever hears what it publishes."""

    def __init__(self, guide: str, directory: Path, url: str) -> None:
        self.directory = write(guide, start_project(directory / "site"))
        self._env = environment(REDIS_URL=url, PYTHONUNBUFFERED="1")
        self._subscription = redis.Redis.from_url(url).pubsub()
        self._subscription.psubscribe("user:*", "upload:*", "job:*")
        for _ in range(3):
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
        """Run code as a web process would."""
        code = f"import mysite.asgi; {code}"
        subprocess.run([sys.executable, "-c", code], env=self._env, cwd=self.directory, check=True, timeout=scaled(30))

    def hear(self) -> tuple[str, dict[str, object]]:
        """Return the topic and the gist of the next message."""
        heard = self._subscription.get_message(timeout=scaled(30))
        assert heard is not None, "nothing was published"
        message = json.loads(heard["data"])
        gist = {name: message[name] for name in ("action", "title") if name in message}
        if message["action"] == "progress":
            gist["state"] = message["payload"]["state"]
        elif "payload" in message:
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


def expect_jobs(queue: Queue, uploads: list[str]) -> None:
    """Expect that the job of each upload is told from its beginning in the queue to its end, and a notice for each."""
    heard: list[tuple[str, dict[str, object]]] = []
    while sum(topic == "user:42" for topic, _ in heard) < len(uploads) or sum(
        gist.get("state") == "succeeded" for _, gist in heard
    ) < len(uploads):
        heard.append(queue.hear())

    for upload in uploads:
        states = [gist["state"] for topic, gist in heard if topic == f"job:{upload}"]
        assert [state for state, _ in groupby(states)] == ["waiting", "running", "succeeded"]
    assert [gist for topic, gist in heard if topic == "user:42"] == [DONE] * len(uploads)


def expect_one_bar(queue: Queue) -> None:
    """Expect that several tasks are told of as one job."""
    heard = [queue.hear()]
    while heard[-1][1]["state"] != "succeeded":
        heard.append(queue.hear())
    assert {topic for topic, _ in heard} == {"job:whole"}


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
    with queue.working(*command_of("celery"), ready="ready"):
        assert queue.hear() == ("user:1", {"action": "from the parent"})
        queue.run(
            "from django.contrib.auth.models import User; from types import SimpleNamespace as Request;"
            f"from uploads.views import create; [create(Request(user=User(pk=42)), upload) for upload in {uploads}]"
        )
        expect_jobs(queue, uploads)
        queue.run("from uploads.tasks import analyze_in_parts; analyze_in_parts('whole')")
        expect_one_bar(queue)


@pytest.mark.parametrize("queue", ["dramatiq"], indirect=True)
def test_dramatiq_publishes_from_processes_and_threads(queue: Queue) -> None:
    """Two processes of two threads tell the progress of every job."""
    pytest.importorskip("dramatiq")
    uploads = [f"upload-{n}" for n in range(6)]
    with queue.working(*command_of("dramatiq"), "-p", "2", "-t", "2", ready="ready for action"):
        queue.run(f"from uploads.tasks import analyze; [analyze.send(u, 42) for u in {uploads}]")
        expect_jobs(queue, uploads)
        queue.run("from uploads.tasks import analyze_in_parts; analyze_in_parts('whole')")
        expect_one_bar(queue)


@pytest.mark.parametrize("queue", ["rq"], indirect=True)
def test_rq_publishes_from_forked_jobs(queue: Queue) -> None:
    """Each job is a process of its own."""
    pytest.importorskip("rq")
    uploads = ["upload-1", "upload-2"]
    with queue.working(*command_of("rq"), ready="Listening on default"):
        queue.run(f"from mysite.queue import enqueue; [enqueue(u, 42) for u in {uploads}]")
        expect_jobs(queue, uploads)
        queue.run("from mysite.queue import enqueue_pages; enqueue_pages('whole')")
        expect_one_bar(queue)


TOKENS = """
from datetime import timedelta
from django.contrib.auth.models import User
from rest_framework_simplejwt.tokens import AccessToken, RefreshToken
ada = User.objects.create(username="ada")
bob = User.objects.create(username="bob", is_active=False)
old = AccessToken.for_user(ada)
old.set_exp(lifetime=timedelta(seconds=-10))
print(ada.pk, AccessToken.for_user(ada), AccessToken.for_user(bob), RefreshToken.for_user(ada), old)
"""


def test_jwt_opens_a_socket(redis_server: LocalRedis, tmp_path: Path) -> None:
    """A good token is its user's; a bad one, an old one and an inactive user's are nobody's, and nothing is logged."""
    pytest.importorskip("rest_framework_simplejwt")
    site = write("drf-jwt", start_project(tmp_path / "site"))
    env = environment(REDIS_URL=redis_server.url, PYTHONUNBUFFERED="1")

    def manage(*words: str) -> str:
        done = subprocess.run([sys.executable, "manage.py", *words], cwd=site, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    manage("migrate", "-v", "0")
    pk, good, *bad = manage("shell", "-v", "0", "-c", TOKENS).split()
    words = ["daphne", "-b", "127.0.0.1", "-p", "0", "mysite.asgi:application"]
    server = WebServer([sys.executable, "-m", *words], env=env, name="daphne", cwd=site)
    try:
        server.wait_until_serving()

        async def answer(token: str) -> dict[str, object]:
            # Not the synchronous client: it loses the answer if the server has gone when it confirms the close.
            async with aconnect(server.url, proxy=None, open_timeout=scaled()) as tab, asyncio.timeout(scaled()):
                await tab.send(json.dumps({"type": "auth", "token": token}))
                frame: dict[str, object] = json.loads(await tab.recv())
                return frame

        assert asyncio.run(answer(good))["user_id"] == pk
        assert [asyncio.run(answer(token))["action"] for token in (*bad, "nonsense")] == ["auth_error"] * 4
        assert "Traceback" not in server.output
    finally:
        server.close()


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


# How a web server is started.


def commands_of_uvicorn() -> list[tuple[str, str]]:
    """Return each line of the documents and units in which uvicorn is started, with its file."""
    files = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "deploy").rglob("*.service"))]
    lines = [(str(file.relative_to(ROOT)), line) for file in files for line in file.read_text().splitlines()]
    started = re.compile(r"uvicorn\W+\w+\.asgi:application")
    return [(name, line) for name, line in lines if started.search(line)]


def test_every_command_of_uvicorn_bounds_frames() -> None:
    """Whoever copies a command from a document gets a server that inflates at most what a frame here may have."""
    found = commands_of_uvicorn()

    assert {"README.md", "docs/operations.md", "deploy/systemd/notifications-web@.service"} <= {
        name for name, _ in found
    }
    assert {"docs/how-to/compose.md", "docs/how-to/kubernetes.md"} <= {name for name, _ in found}
    limit = re.compile(rf"--ws-max-size\W+{MAX_AUTH_FRAME_SIZE}\b|--ws\W+notifications\.uvicorn:WebSocketProtocol\b")
    assert [name for name, line in found if not limit.search(line)] == []


def test_web_processes_have_a_limit_of_memory() -> None:
    """Whatever fills a web process costs that one process, under each supervisor that has a guide."""
    yaml = pytest.importorskip("yaml")
    compose = yaml.safe_load(files_of("compose")["compose.yaml"])["services"]["web"]
    documents = yaml.safe_load_all(files_of("kubernetes")["notifications.yaml"])
    [web] = [document["spec"] for document in documents if document["metadata"]["name"] == "mysite-web"]
    unit = (ROOT / "deploy/systemd/notifications-web@.service").read_text()

    assert compose["mem_limit"]
    assert all(container["resources"]["limits"]["memory"] for container in web["template"]["spec"]["containers"])
    assert re.search(r"^MemoryMax=\d+[MG]$", unit, re.MULTILINE)


def bomb() -> bytes:
    """Return a frame of 16 KiB that inflates to 16 MiB."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -12)
    payload = (deflate.compress(bytes(16 * 1024 * 1024 - 16)) + deflate.flush(zlib.Z_SYNC_FLUSH))[:-4]
    return b"\xc1\xfe" + struct.pack("!H", len(payload)) + bytes(4) + payload  # one compressed text, masked with zeros


def throw_bombs(server: WebServer) -> None:
    """Open a socket that compresses, send fifteen bombs, and wait until the server has closed it."""
    with socket.create_connection((server.address.split(":")[0], server.port), timeout=scaled(30)) as raw:
        raw.sendall(
            f"GET /ws/notifications/ HTTP/1.1\r\nHost: {server.address}\r\nUpgrade: websocket\r\n"
            "Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n\r\n".encode()
        )
        assert raw.recv(4096).startswith(b"HTTP/1.1 101")
        with suppress(ConnectionError):  # it may close before it has read all
            raw.sendall(15 * bomb())
            while raw.recv(65536):
                pass


def peak(process: Process) -> int:
    """Return how many MiB of memory a process has had at most."""
    [size] = re.findall(r"^VmHWM:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text(), re.MULTILINE)
    return int(size) // 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="there is no /proc to read memory from")
@pytest.mark.parametrize("kind", ["uvicorn alone", "daphne"])
def test_bombs_of_nobody_cost_a_server_little(new_site: Site, kind: str) -> None:
    """Twenty sockets without a user that send compressed bombs do not fill the memory of a server as we start it."""
    options = {"uvicorn alone": ["--ws-max-size", str(MAX_AUTH_FRAME_SIZE)], "daphne": []}[kind]
    server = new_site.start_server(kind, options=options)
    before = peak(server)

    with ThreadPoolExecutor(20) as threads:
        list(threads.map(throw_bombs, [server] * 20))

    assert peak(server) < before + 60


def code_of_the_end(tab: ClientConnection) -> int | None:
    """Wait until the server closes, whatever it says before, such as a ping, and return its code."""
    try:
        while True:
            tab.recv(scaled())
    except ConnectionClosed as closed:
        return closed.rcvd.code if closed.rcvd else None


def test_gunicorn_runs_the_site(new_site: Site, tmp_path: Path) -> None:
    """The guide's worker opens sockets, refuses a frame that is too large, and tells sockets to come back."""
    pytest.importorskip("gunicorn")
    pytest.importorskip("uvicorn_worker")
    write("gunicorn", tmp_path)
    (tmp_path / "mysite/__init__.py").touch()
    port = free_port()
    words = [
        word.replace("mysite.asgi", "tests.testsite.asgi").replace(":8000", f":{port}")
        for word in command_of("gunicorn")
    ]
    # It would leave a socket for gunicornc in the home directory.
    env = new_site.environment | {"PYTHONPATH": f"{tmp_path}:{ROOT}", "GUNICORN_CMD_ARGS": "--no-control-socket"}
    server = new_site.start(sys.executable, *words, name="gunicorn", env=env)
    for _ in range(2):
        server.wait_for_line("Application startup complete|ASGI 'lifespan' protocol appears unsupported", 30)
    user = new_site.add_user()

    def open_tab() -> ClientConnection:
        return connect(f"ws://127.0.0.1:{port}/ws/notifications/", proxy=None, open_timeout=scaled())

    with open_tab() as tab, open_tab() as large:
        tab.send(json.dumps({"type": "auth", "token": user.token}))
        assert json.loads(tab.recv(scaled()))["action"] == "auth_success"
        large.send("x" * (MAX_AUTH_FRAME_SIZE + 1))
        assert code_of_the_end(large) == 1009
        assert server.terminate(30) == 0
        assert code_of_the_end(tab) == 1012
