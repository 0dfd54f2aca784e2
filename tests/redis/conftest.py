"""Fixtures of the tests that need Redis."""

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def listeners_have_no_duties() -> Iterator[None]:
    """
    Let listeners in this process do only their own work; those of ``Site`` have all duties.

    The inbox asks the database, which pytest-django keeps from tests without its mark.
    """
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("notifications.bridge.listener.registered", dict)
        yield
