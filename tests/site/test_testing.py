"""The test kit in a process of its own: it costs nothing until it is used."""

import subprocess
import sys
from pathlib import Path

import pytest

from notifications.access import callbacks
from notifications.history import get_store

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def nothing_stands_in():
    """Each block gives Redis its place back."""
    site = get_store()
    yield
    assert get_store() is site
    assert callbacks.in_thread is None


def test_plugin_costs_nothing_until_it_is_used():
    """A test run that does not use the fixtures imports neither the app nor anything it needs."""
    code = (
        "import pytest, sys; before = set(sys.modules); import notifications_pytest; print(set(sys.modules) - before)"
    )
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout

    assert said.strip() == "{'notifications_pytest'}"
