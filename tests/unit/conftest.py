"""Tests of this folder need nothing that runs, neither a Redis nor a process: ``make unit`` takes seconds."""

import gc
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from notifications.history import put_in_place
from notifications.history.memory import MemoryStore


@pytest.fixture(scope="package", autouse=True)
def no_process() -> Iterator[None]:
    """Refuse to start a process; such a test belongs in ``tests/site``."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a test in tests/unit starts a process: it belongs in tests/site")

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(subprocess, "Popen", refuse)
        monkeypatch.setattr(os, "fork", refuse)
        yield


@pytest.fixture(scope="package", autouse=True)
def few_collections() -> Iterator[None]:
    """Look for garbage less often: an eighth of the time that ``make unit`` takes. What is left is found at the end."""
    before = gc.get_threshold()
    gc.set_threshold(50_000, 20, 100)
    yield
    gc.set_threshold(*before)


@pytest.fixture(scope="session")
def redis_program() -> None:
    """Refuse to start a Redis; such a test belongs in ``tests/redis``."""
    pytest.fail("a test in tests/unit asks for a Redis: it belongs in tests/redis")


@pytest.fixture
def memory_store() -> Iterator[None]:
    """Keep in memory what is otherwise kept in Redis."""
    put_in_place(MemoryStore(lambda stamped: None))
    yield
    put_in_place(None)


@pytest.fixture(params=["db", "cached_db", "cache", "file", "signed_cookies"])
def session_backend(
    request: pytest.FixtureRequest, settings: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> str:
    """Use each backend of sessions that Django has in turn, with files and cache of their own."""
    from django.contrib.sessions.backends import file
    from django.core.cache import caches

    monkeypatch.setattr(file.SessionStore, "_storage_path", str(tmp_path), raising=False)
    settings.SESSION_ENGINE = f"django.contrib.sessions.backends.{request.param}"
    caches["default"].clear()
    return request.param
