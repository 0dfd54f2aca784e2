"""The database of the benchmarks."""

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from benchmarks.postgres import Postgres, find_program
from tests.processes import ROOT
from tests.waiting import wait_for

pytestmark = pytest.mark.skipif(find_program("initdb") is None, reason="PostgreSQL is not installed")


def test_database_answers_this_machine_only_and_is_gone_afterwards():
    """It listens on no network address, and leaves neither a process nor a file."""
    with Postgres() as server:
        answer = server.run("SELECT 6 * 7")
        directory = Path(server.env["PGHOST"])
        process = psutil.Process(server.child.pid)
        listening = process.net_connections("inet")
        mode = directory.stat().st_mode & 0o777

    assert (answer, listening, mode) == ("42", [], 0o700)
    assert not process.is_running()
    assert not directory.exists()


def test_database_ends_with_a_parent_that_is_killed():
    """A benchmark that is killed leaves no server behind."""
    program = "import os; from benchmarks.postgres import Postgres as P; print(P().__enter__().child.pid); os.abort()"
    done = subprocess.run([sys.executable, "-uc", program], capture_output=True, text=True, cwd=ROOT, check=False)

    wait_for(lambda: not psutil.pid_exists(int(done.stdout)))
