"""
Fixtures for the tests of sites; pytest finds them when the app is installed.

A module outside the package, so that a test run that does not use them imports nothing of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from notifications.testing import Published


@pytest.fixture
def notifications_sent() -> Iterator[list[Published]]:
    """Capture what is published during the test, instead of publishing it; see ``notifications.testing.captured``."""
    from notifications.testing import captured

    with captured() as sent:
        yield sent


@pytest.fixture
def notifications_outage() -> Iterator[None]:
    """Make every publish of the test fail; see ``notifications.testing.redis_outage``."""
    from notifications.testing import redis_outage

    with redis_outage():
        yield
