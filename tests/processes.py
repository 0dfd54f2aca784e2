"""
A site of real processes: Redis, database file, listeners, web servers.

    with Site(directory, migrated_database) as site:
        listener = site.start_listener()
        server = site.start_server("daphne")
        user = site.add_user()

Every process is a ``Child``: it ends with the tests, whatever ends them.
"""

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple, Self
from uuid import uuid4

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from project.children import Child
from project.local_redis import LocalRedis
from tests.ports import free_port
from tests.waiting import PATIENCE, scaled

ROOT = Path(__file__).resolve().parent.parent
LAYERS = {
    "channels_redis": "channels_redis.pubsub.RedisPubSubChannelLayer",
    "ours": "notifications.layers.RedisPubSubLayer",
}
"""Channel layers by name; a site has one as ``settings={"CHANNEL_LAYER_BACKEND": …}``, the first by default."""
START_SECONDS = 20.0
"""A process may take this long to say that it is ready, before scaling; two cores start five of them at once."""


class Process:
    """A running process whose lines, of stdout and stderr together, can be read and waited for."""

    def __init__(
        self, arguments: Sequence[str | Path], *, env: Mapping[str, str], name: str = "", cwd: Path = ROOT
    ) -> None:
        self.name = name or str(arguments[-1])
        self.lines: list[str] = []
        self._said = threading.Condition()
        self._ended = False
        self._child = Child(arguments, env=env, cwd=cwd, output=subprocess.PIPE, grace=10)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with self._child.stdout as output:
            for line in output:
                with self._said:
                    self.lines.append(line.decode(errors="replace").rstrip())
                    self._said.notify_all()
        with self._said:
            self._ended = True
            self._said.notify_all()

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def returncode(self) -> int | None:
        """Exit code, 128 + number after a signal, None while it runs."""
        return self._child.returncode

    @property
    def output(self) -> str:
        with self._said:
            return "\n".join(self.lines)

    def find_line(self, pattern: str, after: int = 0) -> str | None:
        """Return the first line, of those from number ``after`` on, in which the regular expression is found."""
        with self._said:
            return next((line for line in self.lines[after:] if re.search(pattern, line)), None)

    def wait_for_line(self, pattern: str, seconds: float = PATIENCE, after: int = 0) -> str:
        """
        Wait until it says something that matches, and return that line.

        Args:
            pattern: A regular expression, searched in each line.
            seconds: How long to wait at most, before scaling.
            after: Lines to leave out; ``mark()`` before the fault, ``after=`` that afterwards.

        Raises:
            AssertionError: If it does not, or ends before; with all that it said.

        """
        deadline = time.monotonic() + scaled(seconds)
        with self._said:
            while (found := next((line for line in self.lines[after:] if re.search(pattern, line)), None)) is None:
                left = deadline - time.monotonic()
                if self._ended or left <= 0:
                    end = f"ended with {self._child.returncode}" if self._ended else f"{scaled(seconds):g} s went by"
                    raise AssertionError(f"{self.name}: {end} without {pattern!r}; it said:\n" + "\n".join(self.lines))
                self._said.wait(left)
        return found

    def mark(self) -> int:
        """Return the number of lines said so far."""
        with self._said:
            return len(self.lines)

    def send_signal(self, number: signal.Signals) -> None:
        self._child.send_signal(number)

    def pause(self) -> None:
        """Stop it as SIGSTOP does: it holds its connections and answers nothing."""
        self.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it as ``kill -9`` does."""
        self._child.kill()
        self._reader.join(scaled())

    def terminate(self, seconds: float = PATIENCE) -> int:
        """Send SIGTERM and return the exit code; see ``wait``."""
        self.send_signal(signal.SIGTERM)
        return self.wait(seconds)

    def wait(self, seconds: float = PATIENCE) -> int:
        """
        Wait for its end and for the last of its lines, and return the exit code.

        Raises:
            AssertionError: If it still runs after ``seconds``.

        """
        try:
            code = self._child.wait(scaled(seconds))
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} still runs after {scaled(seconds):g} s:\n{self.output}") from None
        self._reader.join(scaled())
        return code

    def close(self) -> None:
        """End it in whatever state it is, also paused, without grace: tests of the end use ``terminate``."""
        self._child.kill()
        self._child.stop()
        self._reader.join(scaled())


UVICORN = ("uvicorn", "--no-access-log", "--lifespan", "off", "--port")
OUR_CLASS = ("--ws", "notifications.uvicorn:WebSocketProtocol")


class WebServer(Process):
    """Daphne or uvicorn with the test site."""

    kind: str
    port: int

    def wait_until_serving(self) -> None:
        """Wait until it says its port, and take note of it."""
        ready = r"Listening on TCP address 127\.0\.0\.1:(\d+)|running on http://127\.0\.0\.1:(\d+)"
        found = re.search(ready, self.wait_for_line(ready, START_SECONDS))
        assert found is not None
        self.port = int(found[1] or found[2])

    @property
    def address(self) -> str:
        """Host and port, as in the ``Host`` header and an origin."""
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"ws://{self.address}/ws/notifications/"


class User(NamedTuple):
    """
    A user of a site of processes.

    The name is eight digits, and ``may_watch`` of the test site lets a user watch the ids that begin with
    it: integers, text, and the UUIDs of ``new_upload``.
    """

    pk: int
    username: str
    password: str = "md5$salt$hash"
    """As stored; the files hold no password that opens anything."""

    def new_upload(self) -> str:
        """Return the id of an upload that this user may watch, a valid version 4 UUID."""
        return self.username + str(uuid4())[8:]

    @property
    def channel(self) -> bytes:
        return f"user:{self.pk}".encode()

    @property
    def token(self) -> str:
        """A fresh token; made here, because the processes share our SECRET_KEY."""
        from notifications.tokens import make_token

        return make_token(self._model())

    def grant(self, topic: str) -> str:
        from notifications.tokens import make_grant

        return make_grant(self._model(), topic)

    @property
    def cookie(self) -> str:
        """The ``Cookie`` header of a logged-in session."""
        from django.conf import settings
        from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY
        from django.contrib.sessions.backends.signed_cookies import SessionStore

        session = SessionStore()
        session[SESSION_KEY] = str(self.pk)
        session[BACKEND_SESSION_KEY] = "django.contrib.auth.backends.ModelBackend"
        session[HASH_SESSION_KEY] = self.session_hash
        session.save()
        return f"{settings.SESSION_COOKIE_NAME}={session.session_key}"

    @property
    def session_hash(self) -> str:
        """What a session has to keep of the password."""
        return str(self._model().get_session_auth_hash())

    def _model(self) -> Any:
        from django.contrib.auth.models import User as Model

        return Model(pk=self.pk, username=self.username, password=self.password)


class Site:
    """One Redis, one database, and any number of listeners and web servers on them."""

    def __init__(
        self,
        directory: Path,
        database: str,
        *,
        settings: Mapping[str, Any] | None = None,
        redis_options: Sequence[str] = (),
        redis_env: Mapping[str, str] | None = None,
    ) -> None:
        """
        Prepare a site; ``with`` starts its Redis.

        Args:
            directory: Where its files are; removed by whoever made it.
            database: A migrated database file to copy.
            settings: Settings that replace those of ``tests/settings.py``; ``NOTIFICATIONS`` is merged.
                Given to every process started from now on, so a test may change ``site.settings`` between two.
            redis_options, redis_env: As for ``LocalRedis``.

        """
        self.settings: dict[str, Any] = dict(settings or {})
        self.database = directory / "site.sqlite3"
        shutil.copyfile(database, self.database)
        self.redis = LocalRedis(*redis_options, port=free_port(), data_dir=directory, env=redis_env)
        self.redis_url: str | None = None
        """Where the processes look for Redis; None for where it is. Set it to a proxy's address."""
        self._stack = ExitStack()
        self._names = count(1)

    def __enter__(self) -> Self:
        self._stack.enter_context(self.redis)
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    @property
    def environment(self) -> dict[str, str]:
        return os.environ | {
            "DJANGO_SETTINGS_MODULE": "tests.settings",
            "REDIS_URL": self.redis_url or self.redis.url,
            "DATABASE_PATH": str(self.database),
            "TEST_SETTINGS": json.dumps(self.settings),
            "PYTHONUNBUFFERED": "1",
        }

    @property
    def raw_port(self) -> int:
        """Where other programs publish."""
        return self.redis.port

    def listeners_of(self, receivers: int) -> int:
        """Return how many listeners may have heard a message, given what its ``PUBLISH`` was answered."""
        return receivers

    def client(self) -> redis.Redis:
        """Return a Redis client that retries nothing; it is closed with the site."""
        client = redis.Redis.from_url(self.redis.url, socket_timeout=scaled(5), retry=Retry(NoBackoff(), 0))
        self._stack.callback(client.close)
        return client

    def run(self, *arguments: str, seconds: float = START_SECONDS) -> subprocess.CompletedProcess[str]:
        """Run a management command to its end."""
        return subprocess.run(
            [sys.executable, "-m", "django", *arguments],
            env=self.environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=scaled(seconds),
            check=False,
        )

    def start(
        self,
        *arguments: str | Path,
        name: str = "",
        process: type[Process] = Process,
        env: Mapping[str, str] | None = None,
    ) -> Any:
        """Start a process of this site; it is ended with the site at the latest."""
        started = process(arguments, env=env or self.environment, name=name)
        self._stack.callback(started.close)
        return started

    def start_listener(
        self, *arguments: str, ready: str | None = "listening on", env: Mapping[str, str] | None = None
    ) -> Process:
        """Start ``run_listener`` and wait until it says ``ready``, if anything."""
        listener = self.start(sys.executable, "-m", "django", "run_listener", *arguments, name="run_listener", env=env)
        if ready:
            listener.wait_for_line(ready, START_SECONDS)
        return listener

    def start_server(self, kind: str, port: int = 0, *, options: Sequence[str] = ()) -> WebServer:
        """
        Start a web server, and wait until it serves.

        Args:
            kind: ``"daphne"``, ``"uvicorn"`` (on uvloop where that is installed, with this app's WebSocket class),
                ``"uvicorn on asyncio"``, or ``"uvicorn alone"``, which has its own class.
            port: 0 for a free one, which nobody else gets while the server is stopped.
            options: More options of its command.

        """
        server = self._launch_server(kind, port, options)
        server.wait_until_serving()
        return server

    def _launch_server(self, kind: str, port: int, more: Sequence[str] = ()) -> WebServer:
        port = port or free_port()
        options = {
            "daphne": ["daphne", "-v", "1", "-b", "127.0.0.1", "-p", str(port)],
            "uvicorn": [*UVICORN, str(port), *OUR_CLASS],
            "uvicorn on asyncio": [*UVICORN, str(port), *OUR_CLASS, "--loop", "asyncio"],
            "uvicorn alone": [*UVICORN, str(port)],
        }[kind]
        server = self.start(
            sys.executable, "-m", *options, *more, "tests.testsite.asgi:application", name=kind, process=WebServer
        )
        server.kind = kind
        return server

    def start_all(self, kind: str) -> tuple[WebServer, Process]:
        """Start a web server and a listener at once, which on two cores takes half the time."""
        server, listener = self._launch_server(kind, 0), self.start_listener(ready=None)
        server.wait_until_serving()
        listener.wait_for_line("listening on", START_SECONDS)
        return server, listener

    def add_user(self, *, is_active: bool = True) -> User:
        """Put a new user into the database file, without Django: this process's database is another."""
        (user,) = self.add_users(1, is_active=is_active)
        return user

    def add_users(self, count: int, *, is_active: bool = True) -> list[User]:
        """Put new users into the database file, in one transaction."""
        # Random digits would meet a prefix of another user's sooner or later; these never do.
        users = [User(0, f"{os.getpid() % 10000:04}{next(self._names):04}") for _ in range(count)]
        with closing(sqlite3.connect(self.database, timeout=scaled())) as database, database:
            for index, user in enumerate(users):
                cursor = database.execute(
                    "INSERT INTO auth_user (password, is_superuser, username, last_name, email, is_staff, is_active,"
                    " date_joined, first_name) VALUES (?, 0, ?, '', '', 0, ?, ?, '')",
                    (user.password, user.username, is_active, datetime.now(UTC).isoformat(" ")),
                )
                users[index] = user._replace(pk=cursor.lastrowid)
        return users


def make_database(path: Path) -> str:
    """Make a migrated database file and return its path."""
    subprocess.run(
        [sys.executable, "-m", "django", "migrate", "-v", "0"],
        env=os.environ | {"DJANGO_SETTINGS_MODULE": "tests.settings", "DATABASE_PATH": str(path)},
        cwd=ROOT,
        check=True,
        timeout=scaled(60),
    )
    return str(path)
