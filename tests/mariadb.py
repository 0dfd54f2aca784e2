"""A private MariaDB for tests: behind a Unix socket that only we can open, and gone with its parent."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Final, Self

from project.children import Child
from tests.waiting import scaled

START_SECONDS: Final = 30
"""Seconds that the server may take until it answers, before scaling."""
GRACE: Final = 3
"""Seconds between SIGTERM and SIGKILL; nothing in it is worth keeping."""
UNPRIVILEGED: Final = "mysql"
"""Who runs the server where we are root, as whom it refuses to run."""
FOR_SPEED: Final = ("--innodb-flush-log-at-trx-commit=0", "--innodb-doublewrite=0", "--skip-log-bin")
"""It need not survive a crash."""


class MariadbStartError(Exception):
    """The server could not be created, ended, or did not answer in time; the message contains what it said."""


def find_program(name: str) -> Path | None:
    """Return a program of MariaDB; Debian has the server in a folder that is not on everybody's PATH."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    return Path(found) if found else None


class Mariadb:
    """
    One server, without any database but its own.

        with Mariadb() as server:
            connect(unix_socket=server.socket)

    The socket lies in a directory that nobody else may enter, so there are no accounts and no passwords.
    """

    def __init__(self) -> None:
        self._directory: Path | None = None
        self.child: Child | None = None

    @property
    def socket(self) -> str:
        return f"{self._directory}/socket"

    def __enter__(self) -> Self:
        self._directory = Path(tempfile.mkdtemp(prefix="test-my-"))
        try:
            if os.geteuid() == 0:
                shutil.chown(self._directory, UNPRIVILEGED, UNPRIVILEGED)
            self._create()
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self.child is not None:
            self.child.send_signal(signal.SIGTERM)
            self.child.stop()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _create(self) -> None:
        arguments = ["--auth-root-authentication-method=normal", "--skip-test-db", "--skip-name-resolve"]
        command = _command("mariadb-install-db", "--no-defaults", f"--datadir={self._directory}/data", *arguments)
        created = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
        if created.returncode:
            raise MariadbStartError(f"mariadb-install-db failed: {(created.stdout + created.stderr).strip()[-500:]}")

    def _start(self) -> None:
        arguments = [
            "--no-defaults",
            f"--datadir={self._directory}/data",
            f"--socket={self.socket}",
            f"--pid-file={self._directory}/pid",
            "--skip-networking",
            "--skip-grant-tables",
            "--character-set-server=utf8mb4",
            *FOR_SPEED,
        ]
        with tempfile.TemporaryFile() as output:
            self.child = Child(
                _command("mariadbd", *arguments), cwd=Path("/"), output=output, grace=GRACE, remove=self._directory
            )
            if not self._answers():
                output.seek(0)
                said = output.read().decode(errors="replace").strip()[-500:]
                raise MariadbStartError(f"the server did not come up: {said}")

    def run(self, sql: str) -> str:
        """
        Run statements with the client ``mariadb``, and return the rows, a line each, columns separated by tabs.

        Raises:
            MariadbStartError: A statement failed.

        """
        done = self._client(sql)
        if done.returncode:
            raise MariadbStartError(done.stderr.strip())
        return done.stdout.strip()

    def _answers(self) -> bool:
        deadline = time.monotonic() + scaled(START_SECONDS)
        while self.child.returncode is None and time.monotonic() < deadline:
            if self._client("SELECT 1").returncode == 0:
                return True
            time.sleep(0.05)
        return False

    def _client(self, sql: str) -> subprocess.CompletedProcess[str]:
        arguments = [_program("mariadb"), "--no-defaults", f"--socket={self.socket}", "-BN", "-e", sql]
        return subprocess.run(arguments, capture_output=True, text=True, check=False)


def _program(name: str) -> str:
    if (found := find_program(name)) is None:
        raise MariadbStartError(f"no {name} found: install MariaDB (Debian: mariadb-server)")
    return str(found)


def _command(name: str, *arguments: str) -> list[str]:
    """Return a command that runs a program of the server, as somebody else than root."""
    command = [_program(name), *arguments]
    if os.geteuid() != 0:
        return command
    return ["setpriv", f"--reuid={UNPRIVILEGED}", f"--regid={UNPRIVILEGED}", "--clear-groups", "--", *command]
