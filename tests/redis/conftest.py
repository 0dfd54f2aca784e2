"""Fixtures of the tests that need Redis."""

from collections.abc import Iterator

import pytest

from tests.waiting import scaled

LONG_SECOND = 3.0
"""Seconds, before scaling, that a caller waits for Redis with ``long_seconds``, instead of one."""
ONE_WAIT = 5.2
"""Seconds, before scaling, that one such wait may take on a machine that is busy; two take six."""


@pytest.fixture(scope="session", autouse=True)
def listeners_have_no_duties() -> Iterator[None]:
    """
    Let listeners in this process do only their own work; those of ``Site`` have all duties.

    The inbox asks the database, which pytest-django keeps from tests without its mark.
    """
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("notifications.bridge.listener.registered", dict)
        yield


@pytest.fixture
def slow_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Let it take its time that a connection is refused, as on a busy machine: only after five seconds the breaker opens.

    Otherwise that tells a Redis that hangs from one that is not there by a quarter of a second.
    """
    monkeypatch.setattr("notifications.broker.breaker.CONNECT_TIMEOUT", scaled(10))


@pytest.fixture
def long_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Let all that waits for Redis for a second wait for longer: a machine that stops for one is no second wait.

    A Redis that has hung is left alone for longer than a job waits, as ever.
    """
    for module in ("connecting", "clients"):
        monkeypatch.setattr(f"notifications.broker.{module}.SOCKET_TIMEOUT", scaled(LONG_SECOND))
    for function in ("arun", "arun_together"):
        monkeypatch.setattr(f"notifications.broker.pipeline.{function}.__defaults__", (scaled(LONG_SECOND),))
    monkeypatch.setattr("notifications.reporting.reporter.PATIENCE", scaled(LONG_SECOND))
    monkeypatch.setattr("notifications.broker.breaker.FAIL_FAST", scaled(3 * LONG_SECOND))
