"""A private PostgreSQL for the benchmarks: behind a Unix socket that only we can open, and gone with its parent."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Self

from project.children import Child

START_SECONDS: Final = 30
"""Seconds that the server may take until it answers."""
GRACE: Final = 3
"""Seconds between SIGTERM and SIGKILL; nothing in it is worth keeping."""
UNPRIVILEGED: Final = "postgres"
"""Who runs the server where we are root, as whom it refuses to run."""
INSTALLED: Final = Path("/usr/lib/postgresql")
"""Where Debian and Ubuntu put the programs, by version."""
FOR_SPEED: Final = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "jit": "off"}
"""It need not survive a crash."""


class PostgresStartError(Exception):
    """The server could not be created, ended, or did not answer in time; the message contains what it said."""


def find_program(name: str) -> Path | None:
    """Return a program of PostgreSQL: from PATH, else of the newest version that Debian has installed."""
    if found := shutil.which(name):
        return Path(found)
    versions = sorted(INSTALLED.glob(f"*/bin/{name}"), key=lambda path: int(path.parts[-3].partition(".")[0]))
    return versions[-1] if versions else None


class Postgres:
    """
    One server with an empty database; it counts statements in ``pg_stat_statements``.

        with Postgres() as server:
            subprocess.run([…], env=os.environ | server.env)

    The socket lies in a directory that nobody else may enter, so there is no password.
    """

    def __init__(self) -> None:
        """Prepare a server; ``with`` creates and starts it."""
        self._directory: Path | None = None
        self._child: Child | None = None

    @property
    def env(self) -> dict[str, str]:
        """What tells libpq where the database is, and ``benchmarks.peers.settings`` that it is used."""
        return {
            "BENCH_DATABASE": "postgresql",
            "PGHOST": str(self._directory),
            "PGPORT": "5432",
            "PGUSER": "bench",
            "PGDATABASE": "postgres",
        }

    @property
    def dsn(self) -> str:
        """The same for ``psycopg.connect``."""
        return "host={PGHOST} port={PGPORT} user={PGUSER} dbname={PGDATABASE}".format(**self.env)

    @property
    def child(self) -> Child:
        """The server's first process, for its ``pid``."""
        if self._child is None:
            raise PostgresStartError("the server was never started")
        return self._child

    def __enter__(self) -> Self:
        self._directory = Path(tempfile.mkdtemp(prefix="bench-pg-"))
        try:
            if os.geteuid() == 0:
                shutil.chown(self._directory, UNPRIVILEGED, UNPRIVILEGED)
            self._create(self._directory / "data")
            self._start(self._directory / "data")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._child is not None:
            self._child.send_signal(signal.SIGINT)  # which disconnects its clients, as SIGTERM does not
            self._child.stop()
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)

    def _create(self, data: Path) -> None:
        arguments = [
            f"--pgdata={data}",
            f"--username={self.env['PGUSER']}",
            "--auth=trust",
            "--encoding=UTF8",
            "--no-locale",
            "--no-sync",
        ]
        created = subprocess.run(_command("initdb", *arguments), capture_output=True, text=True, check=False, cwd="/")
        if created.returncode:
            raise PostgresStartError(f"initdb failed: {created.stderr.strip()[-500:]}")

    def _start(self, data: Path) -> None:
        options = {
            "listen_addresses": "",
            "unix_socket_directories": str(data.parent),
            "port": self.env["PGPORT"],
            "shared_preload_libraries": "pg_stat_statements",
            "max_connections": "200",
            **FOR_SPEED,
        }
        arguments = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        with tempfile.TemporaryFile() as output:
            self._child = Child(
                _command("postgres", "-D", str(data), *arguments),
                cwd=Path("/"),
                output=output,
                grace=GRACE,
                remove=data.parent,
            )
            if not self._answers():
                output.seek(0)
                said = output.read().decode(errors="replace").strip()[-500:]
                raise PostgresStartError(f"the server did not come up: {said}")
        self.run("CREATE EXTENSION pg_stat_statements")

    def run(self, sql: str) -> str:
        """
        Run statements with ``psql``, and return the rows, a line each, columns separated by ``|``.

        Raises:
            PostgresStartError: A statement failed.

        """
        done = self._psql(sql)
        if done.returncode:
            raise PostgresStartError(done.stderr.strip())
        return done.stdout.strip()

    def _answers(self) -> bool:
        deadline = time.monotonic() + START_SECONDS
        while self.child.returncode is None and time.monotonic() < deadline:
            if self._psql("SELECT 1").returncode == 0:
                return True
            time.sleep(0.05)
        return False

    def _psql(self, sql: str) -> subprocess.CompletedProcess[str]:
        arguments = [_program("psql"), "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", sql]
        env = os.environ | self.env
        return subprocess.run(arguments, env=env, capture_output=True, text=True, check=False)


def _program(name: str) -> str:
    if (found := find_program(name)) is None:
        raise PostgresStartError(f"no {name} found: install PostgreSQL (Debian: postgresql)")
    return str(found)


def _command(name: str, *arguments: str) -> Sequence[str]:
    """Return a command that runs a program of the server, as somebody else than root."""
    command = [_program(name), *arguments]
    if os.geteuid() != 0:
        return command
    drop = ["setpriv", f"--reuid={UNPRIVILEGED}", f"--regid={UNPRIVILEGED}", "--clear-groups", "--"]
    return [*drop, *command]
