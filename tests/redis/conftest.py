"""Fixtures of the tests that need Redis."""

from collections.abc import Iterator

import pytest

from tests.waiting import scaled


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
