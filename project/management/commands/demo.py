"""One command that runs everything: Redis, web server, listener and worker, as one tree of processes."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import IO, NoReturn

import redis
from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.management import CommandError, call_command
from django.core.management.base import BaseCommand
from redis.backoff import NoBackoff
from redis.retry import Retry

from notifications import address
from project.children import Child
from project.killswitch import KillSwitch
from project.local_redis import LocalRedis, RedisStartError

HOST = "127.0.0.1"
USERNAME = "demo"
PASSWORD = "demo"  # noqa: S105 - printed by this command, for a site that only this machine can reach
START_TIMEOUT = 60
"""Seconds until the page must answer."""
COLORS = {"demo": 1, "web": 34, "listener": 35, "worker": 32}
"""ANSI numbers: bold, blue, magenta, green."""


class Command(BaseCommand):
    help = "Run the demo: Redis, web server, listener and worker, until Ctrl-C."
    requires_system_checks = ()  # the children check the same settings, with the addresses of this run

    def handle(self, **options: object) -> None:
        if not settings.DEBUG:
            raise CommandError("the demo speaks plain HTTP and has a known password: run it with DEBUG=1")
        self._writing = threading.Lock()
        self._children: dict[str, Child] = {}
        self._copying: list[threading.Thread] = []
        self._interrupted = False
        # All three end the command in the same way, wherever it is; the stack ends what it has started.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._interrupt)
        with contextlib.suppress(KeyboardInterrupt), contextlib.ExitStack() as stack:
            stack.callback(self._say, "all stopped")
            try:
                self._run(stack)
            except Exception:
                if not self._interrupted:  # SQLite, for one, makes an error of what is raised in its functions
                    raise

    def _run(self, stack: contextlib.ExitStack) -> None:
        redis_url = self._find_redis(stack)
        port = self._find_port()
        call_command("migrate", verbosity=0)
        switch = KillSwitch()
        stack.callback(switch.close)
        stack.callback(self._stop_children)
        env = os.environ | {"REDIS_URL": redis_url, "PORT": str(port), "DEBUG": "1", "PYTHONUNBUFFERED": "1"}
        manage = [sys.executable, str(settings.BASE_DIR / "manage.py")]
        # -v 0: no line for each request
        daphne = [sys.executable, "-m", "daphne", "-v", "0", "-b", HOST, "-p", str(port)]
        # The web process outlives this one for a moment, whatever ends this one: its guard removes the socket then.
        web_env = env | {"KILL_SWITCH": str(switch.path)}
        self._start("web", [*daphne, "project.asgi:application"], web_env, remove=switch.directory)
        self._start("listener", [*manage, "run_listener"], env)
        self._start("worker", [*manage, "run_worker"], env)
        create_user()
        self._wait_until_answering(f"http://{HOST}:{port}/")
        while True:
            self._check_children()
            if switch.wait(0.2, self._kill_listener):
                self._start("listener", [*manage, "run_listener"], env)

    def _find_redis(self, stack: contextlib.ExitStack) -> str:
        url = os.environ.get("REDIS_URL")
        if url:
            reason = unreachable(url)
            if reason is None:
                self._say(f"using the Redis of REDIS_URL, {address.shown(url)}")
                return url
            self._say(f"no Redis at REDIS_URL, {address.shown(url)} ({reason}): starting one of our own")
        try:
            server = stack.enter_context(LocalRedis())
        except RedisStartError as error:
            raise CommandError(f"{error}; or set REDIS_URL to a server that runs") from error
        self._say(f"started Redis at {server.url}")
        self._children["redis"] = server.child
        return server.url

    def _find_port(self) -> int:
        for port in range(settings.PORT, min(settings.PORT + 100, 65536)):
            if not taken(port):
                if port != settings.PORT:
                    self._say(f"port {settings.PORT} is taken: using {port} (set PORT to choose another)")
                return port
        raise CommandError(f"port {settings.PORT} and the next ones are taken: set PORT to a free one")

    def _kill_listener(self) -> int:
        listener = self._children["listener"]
        listener.kill()
        self._say("the listener was killed by the button on the page; starting another")
        return listener.pid

    def _start(self, name: str, arguments: Sequence[str], env: dict[str, str], *, remove: Path | None = None) -> None:
        child = Child(arguments, env=env, cwd=settings.BASE_DIR, output=subprocess.PIPE, remove=remove)
        self._children[name] = child
        self._copying = [copying for copying in self._copying if copying.is_alive()]
        copying = threading.Thread(target=self._copy_output, args=(name, child.stdout), daemon=True)
        copying.start()
        self._copying.append(copying)

    def _copy_output(self, name: str, output: IO[bytes]) -> None:
        with output:
            for line in output:
                self._say(line.decode(errors="replace").rstrip(), name)

    def _say(self, line: str, name: str = "demo") -> None:
        label = f"{name:<8} |"
        if self.stdout.isatty() and "NO_COLOR" not in os.environ:
            label = f"\033[{COLORS[name]}m{label}\033[0m"
        # The reader may be gone (a closed terminal, `| head`); the children are stopped all the same.
        with self._writing, contextlib.suppress(OSError):
            self.stdout.write(f"{label} {line}")
            self.stdout.flush()

    def _wait_until_answering(self, page: str) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while not answers(page):
            self._check_children()
            if time.monotonic() > deadline:
                raise CommandError(f"{page} did not answer within {START_TIMEOUT} seconds")
            time.sleep(0.05)
        self._say(f"open {page} and log in as {USERNAME}, password {PASSWORD} (Ctrl-C stops everything)")

    def _interrupt(self, *_: object) -> NoReturn:
        # Noted as well as raised: Python drops what is raised while a destructor or a callback runs.
        self._interrupted = True
        raise KeyboardInterrupt

    def _check_children(self) -> None:
        if self._interrupted:
            raise KeyboardInterrupt
        for name, child in self._children.items():
            # It is not restarted: a demo that hides a crash would be dishonest. (The listener that
            # the button killed never gets here.)
            if child.returncode is not None:
                raise CommandError(f"{name} ended by itself, exit code {child.returncode}; everything is stopped")

    def _stop_children(self) -> None:
        # The second Ctrl-C of the impatient must not cut this short; it is bounded by the children's grace.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        self._children.pop("redis", None)  # it goes last
        for child in self._children.values():
            child.request_stop()
        for name, child in self._children.items():
            if child.stop() == 128 + signal.SIGKILL:
                self._say(f"{name} did not stop in time and was killed")
        for copying in self._copying:
            copying.join(timeout=1)


def create_user() -> None:
    model = get_user_model()
    user = model.objects.filter(username=USERNAME).first() or model(username=USERNAME)
    # Only when it differs: a new password logs out everybody who is still logged in from an earlier run.
    if user.pk is None or not user.check_password(PASSWORD):
        user.set_password(PASSWORD)
        user.save()


def unreachable(url: str) -> str | None:
    """Return why no Redis server answers at ``url``, or ``None`` if one does."""
    try:
        address.read(url)
        client = redis.Redis.from_url(url, socket_connect_timeout=1, socket_timeout=1, retry=Retry(NoBackoff(), 0))
        with client:
            client.ping()
    except (redis.RedisError, ValueError) as error:
        return type(error).__name__
    return None


def taken(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.5)
        if probe.connect_ex((HOST, port)) == 0:
            return True
    with socket.socket() as probe:
        # As servers do, so that the connections of a server that has just ended do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return True
    return False


def answers(page: str) -> bool:
    try:
        with urllib.request.urlopen(page, timeout=5) as response:  # noqa: S310 - our own http address
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False
