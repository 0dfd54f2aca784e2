"""Tests of this folder need nothing that runs, neither a Redis nor a process: ``make unit`` takes seconds."""

import os
import subprocess

import pytest


@pytest.fixture(autouse=True)
def no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse to start a process; such a test belongs in ``tests/site``."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a test in tests/unit starts a process: it belongs in tests/site")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    monkeypatch.setattr(os, "fork", refuse)


@pytest.fixture(scope="session")
def redis_program() -> None:
    """Refuse to start a Redis; such a test belongs in ``tests/redis``."""
    pytest.fail("a test in tests/unit asks for a Redis: it belongs in tests/redis")
