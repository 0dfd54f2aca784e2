"""Circuit breakers: for which failures the next caller is spared."""

from types import SimpleNamespace

import pytest
import redis

from notifications.broker import breaker
from notifications.broker.breaker import Breaker, StaleConnectionError
from tests.cases import cases

LATE = 0.6
"""Seconds after which a call failed: more than a refusal takes, unless the process was busy."""
OOM = "OOM command not allowed when used memory > 'maxmemory'."


@pytest.fixture
def clock(monkeypatch):
    """Return a list with the time, which stands still."""
    now = [1000.0]
    monkeypatch.setattr(breaker, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


@cases(
    ("error", "after", "opens"),
    [
        (redis.TimeoutError("no answer"), LATE, True),
        (TimeoutError(), LATE, True),
        (redis.ConnectionError("closed by Redis"), LATE, True),
        (ConnectionRefusedError(), 0.01, False),
        (StaleConnectionError("the connection had died"), LATE, False),
        (redis.ResponseError(OOM), LATE, False),
        (redis.exceptions.OutOfMemoryError(OOM[4:]), LATE, False),
        (redis.exceptions.NoPermissionError("this user has no permissions"), LATE, False),
        (redis.exceptions.TryAgainError("TRYAGAIN Multiple keys request during rehashing of slot"), LATE, False),
        (redis.ResponseError("CLUSTERDOWN The cluster is down"), LATE, True),
        (redis.exceptions.ClusterDownError("no node of the cluster has slot 1"), LATE, True),
    ],
)
def test_only_a_server_that_kept_a_caller_waiting_is_left_alone(clock, error, after, opens):
    """One that refuses a call has answered, also if a busy process hears of it late: other calls may well do."""
    each = Breaker()

    def fail():
        clock[0] += after
        raise error

    with pytest.raises(type(error)), each.guarding():
        fail()

    assert bool(each.remaining()) is opens
