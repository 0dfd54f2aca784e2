"""What becomes of a failure that is not raised: it is counted and logged, however often it repeats."""

import logging
from typing import NamedTuple

import pytest
import redis

from notifications import PublishError, sending
from notifications.metrics import counts


@pytest.fixture(autouse=True)
def unsaid():
    """Let no test use up what the log may hold in a minute."""
    sending.log_anew()
    yield
    sending.log_anew()


class Away(NamedTuple):
    """A call that Redis does not confirm."""

    topic: str = "user:7"
    error: Exception = redis.ConnectionError("Connection refused")

    def failure(self, reason):
        return PublishError(self.topic, reason)

    def send(self):
        raise self.error

    async def asend(self):
        raise self.error


SILENTLY = {"on_commit": False, "using": None, "fail_silently": True}


@pytest.fixture
def said(caplog):
    caplog.set_level(logging.WARNING, "notifications")
    return lambda: [record.getMessage() for record in caplog.records]


async def test_a_failure_that_repeats_does_not_fill_the_log(said):
    """The first ones are logged, which name their topics, and all are counted."""
    before = counts["publish_failed", "ConnectionError"]
    for number in range(1000):
        sending.send(Away(f"user:{number}"), **SILENTLY)
        await sending.asend(Away(f"user:{number}"), **SILENTLY)

    assert said()[0] == "not known to be published on 'user:0': Connection refused"
    assert len(said()) == 10
    assert counts["publish_failed", "ConnectionError"] == before + 2000


@pytest.mark.parametrize(
    "other",
    [
        Away(error=redis.ResponseError("OOM command not allowed")),
        Away(error=TimeoutError("no answer")),
        Away(topic="notifications:control"),
    ],
    ids=["refused", "no answer", "control"],
)
def test_a_failure_of_another_sort_is_logged_among_many(said, other):
    """Neither another error nor another kind of topic, such as the control channel, is hidden by what repeats."""
    for _ in range(100):
        sending.send(Away(), **SILENTLY)
    sending.send(other, **SILENTLY)

    assert said()[-1] == str(other.failure(str(other.error)))
