"""
A newcomer's own site: a wheel in a fresh virtual environment, a fresh project, and the three steps of the README.

The environment has no network: what the wheel needs is in that of the tests, which it can see.
"""

import os
import re
import shlex
import signal
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from notifications.broker import embedded
from project.management.commands.demo import answers
from tests.guides import environment
from tests.ports import free_port
from tests.processes import START_SECONDS, Process
from tests.repository.test_readme import marked
from tests.waiting import scaled, wait_for

PASSWORD = "correct horse battery staple"
CLONE = "/path/to/the/clone"
LEFT = {".gitignore", embedded.LOG, embedded.SERVER, embedded.USERS}
"""What an embedded Redis leaves behind, as docs/operations.md says."""
LISTENING, HOLDING, STARTED = r"listening on user:\* upload:\* job:\*", "holding the lease", "started an embedded Redis"


class Newcomer:
    """A project on the disk, and the Python that runs it."""

    def __init__(self, directory: Path, python: str = sys.executable, **variables: str) -> None:
        """
        Make a project with an account ``admin``.

        Args:
            directory: Where; its path should be short.
            python: The interpreter.
            variables: More of its environment.

        """
        self.directory = directory
        self.python = python
        self._environment = environment(PYTHONUNBUFFERED="1", **variables)
        directory.mkdir(exist_ok=True)
        self.run("django-admin startproject mysite .")

    def run(self, line: str, **variables: str) -> str:
        """Run a line of the README to its end, and return what it said."""
        done = subprocess.run(
            self.words(line),
            cwd=self.directory,
            env=self._environment | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=scaled(60),
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    def words(self, line: str) -> list[str]:
        program, *words = shlex.split(line)
        return [self.python, *words] if program == "python" else [self.python, "-m", "django", *words]

    def append(self, file: str, text: str) -> None:
        with (self.directory / file).open("a") as added_to:
            added_to.write(text)

    def mount(self) -> None:
        """Add to the URLs what the README says of production."""
        [mounted] = re.findall(r"add `(path\(.*?\))` to `mysite/urls.py`", Path("README.md").read_text())
        self.append("mysite/urls.py", f"\nfrom django.urls import include\nurlpatterns += [{mounted}]\n")

    def migrate(self) -> None:
        """Do what comes before ``runserver``, and create the account."""
        self.run(marked("step: run").splitlines()[0])
        self.run(
            "python manage.py createsuperuser --noinput --username admin --email a@example.com",
            DJANGO_SUPERUSER_PASSWORD=PASSWORD,
        )

    @contextmanager
    def serving(self, *options: str) -> Iterator[tuple[str, Process]]:
        """Run the README's ``runserver`` until Ctrl-C, which ends it well; yield the URL and the process."""
        port = free_port()
        words = [*self.words(marked("step: run").splitlines()[1]), f"127.0.0.1:{port}", *options]
        server = Process(words, env=self._environment, name="runserver", cwd=self.directory)
        try:
            server.wait_for_line(rf"server at http://127\.0\.0\.1:{port}/", START_SECONDS)
            # Before it answers, Ctrl-C may find Daphne without its handler.
            wait_for(lambda: answers(f"http://127.0.0.1:{port}/admin/login/"), START_SECONDS)
            yield f"http://127.0.0.1:{port}", server
            if server.returncode is None:
                os.killpg(server.pid, signal.SIGINT)
            server.wait()
        finally:
            server.close()
        assert "Traceback" not in server.output, server.output

    def processes(self) -> list[str]:
        """Return the command lines of everything that runs in the project's directory."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                if Path(process.cwd()).is_relative_to(self.directory.resolve()):
                    found.append(" ".join(process.cmdline()))
        return found

    def check_left(self) -> None:
        """Wait until nothing of it runs, and compare what is left of an embedded Redis, if there was one."""
        wait_for(lambda: not self.processes(), what="the end of all processes")
        directory = self.directory / embedded.DIRECTORY
        assert not directory.exists() or {path.name for path in directory.iterdir()} == LEFT


def make_environment(directory: Path) -> str:
    """Make a virtual environment that sees the packages of this one, as if they had just been downloaded."""
    venv.create(directory, symlinks=True)
    python = directory / "bin/python"
    [packages] = directory.glob("lib/python*/site-packages")
    (packages / "downloaded.pth").write_text(sysconfig.get_path("purelib"))
    return str(python)


def install(python: str, wheel: Path) -> None:
    """Run the README's first step, with a wheel in place of the clone."""
    line = marked("step: install")
    assert CLONE in line
    _, _, _, *words = shlex.split(line.replace(CLONE, str(wheel)))
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check", *words],
        env=os.environ | {"PIP_NO_INDEX": "1", "PIP_NO_CACHE_DIR": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=scaled(120),
    )
    assert done.returncode == 0, done.stdout
