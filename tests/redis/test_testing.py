"""The test kit beside a Redis: it answers as that does, and nothing reaches it."""

import pytest

from notifications import (
    Topic,
    publish,
)
from notifications.access import callbacks
from notifications.history import get_store
from notifications.testing import (
    captured,
)


@pytest.fixture(autouse=True)
def nothing_stands_in():
    """Each block gives Redis its place back."""
    site = get_store()
    yield
    assert get_store() is site
    assert callbacks.in_thread is None


def test_nothing_reaches_redis(live_redis):
    """What is captured is not published, and after the block publishing goes to Redis again."""
    with captured():
        publish("user:7", {})
    assert live_redis.dbsize() == 0

    publish("user:7", {})
    assert live_redis.exists(Topic("user", "7").history_key)
