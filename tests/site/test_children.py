"""Children end with their parent."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from project import children
from project.children import Child
from tests.demo_site import ROOT, TIMEOUT, wait_until

SLEEP = [sys.executable, "-c", "import time; print('ready', flush=True); time.sleep(600)"]
STUBBORN = [
    sys.executable,
    "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(600)",
]
FAMILY = [
    sys.executable,
    "-c",
    "import subprocess, time; print(subprocess.Popen(['sleep', '600']).pid, flush=True); time.sleep(600)",
]


def start(arguments: list[str], **options: object) -> tuple[Child, str]:
    """Start a child and wait for the line it says."""
    child = Child(arguments, output=subprocess.PIPE, **options)
    return child, child.stdout.readline().decode().strip()


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_exit_code_is_the_childs():
    """The guard between is not seen: the exit code is the child's own."""
    child = Child([sys.executable, "-c", "raise SystemExit(7)"])

    assert child.wait(TIMEOUT) == 7


def test_signal_is_told_as_shells_tell_it():
    """A child that a signal ended has 128 and the signal's number as its exit code."""
    child, _ = start(SLEEP)

    child.kill()
    child.stdout.close()

    assert child.returncode == 128 + signal.SIGKILL


def test_missing_program_is_an_error_at_once():
    """A program that cannot be started raises, with its name."""
    with pytest.raises(OSError, match="/no/such/program: No such file"):
        Child(["/no/such/program"])


def test_stop_ends_what_the_child_started():
    """A grandchild that was left behind does not outlive the child."""
    child, grandchild = start(FAMILY)

    child.stop()
    child.stdout.close()

    wait_until(lambda: gone(int(grandchild)), "the grandchild's end")


def test_stubborn_child_is_killed_after_the_grace():
    """A child that ignores SIGTERM is given its grace and then no more."""
    child, _ = start(STUBBORN, grace=0.2)

    before = time.monotonic()
    assert child.stop() == 128 + signal.SIGKILL
    child.stdout.close()

    assert time.monotonic() - before >= 0.2


def test_directory_is_removed_with_the_child(tmp_path: Path):
    """The directory a child had for itself goes when the child does."""
    directory = tmp_path / "own"
    directory.mkdir()
    child, _ = start(SLEEP, remove=directory)

    child.kill()
    child.stdout.close()

    assert not directory.exists()


def test_parent_interrupted_while_starting_leaves_nothing():
    """A parent that no longer reads which pid its child has is a parent that ended."""
    read, write = os.pipe()
    os.close(read)
    guard = subprocess.Popen(
        [sys.executable, children.__file__, str(write), "5", "", *SLEEP],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=[write],
    )
    os.close(write)
    with guard:
        guard.stdout.readline()  # the child runs

        guard.stdin.close()

        assert guard.wait(TIMEOUT) == 128 + signal.SIGTERM


def test_killed_parent_leaves_nothing():
    """After kill -9 of the parent the child, its guard and its own children end."""
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, time; from project.children import Child; child = Child(sys.argv[1:]); time.sleep(600)",
            *FAMILY,
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
    )
    with parent:
        parent.stdout.readline()  # the grandchild runs
        family = psutil.Process(parent.pid).children(recursive=True)
        assert len(family) == 3  # guard, child, grandchild

        parent.kill()
        parent.wait()

        assert psutil.wait_procs(family, timeout=TIMEOUT)[1] == []
