"""The comparison of positions with the histories, when Redis does not answer."""

import asyncio

import redis

from notifications import history
from notifications.cursor import Cursor
from notifications.history import Position, Where
from notifications.reconciler import Reconciler
from notifications.topics import Topic
from tests.waiting import scaled


async def test_a_comparison_that_redis_did_not_answer_is_soon_tried_again(monkeypatch):
    """A message that nothing follows does not wait another interval because Redis was away for a moment."""
    monkeypatch.setattr("notifications.reconciler.AFTER_JOIN", 0.0)
    monkeypatch.setattr("notifications.reconciler.AFTER_FAILURE", 0.0)
    monkeypatch.setattr("notifications.reconciler.TICK", 0.01)
    attempts = []

    async def look(topics):
        attempts.append(topics)
        if len(attempts) < 3:
            raise redis.ConnectionError("away")
        return [Where("run", 0, 0, Position(1, 1), Position(1, 1), 60.0, True)]

    monkeypatch.setattr(history, "look", look)
    cursor = Cursor(Topic.parse("upload:1"), 60.0)
    cursor.busy = False
    told = asyncio.get_running_loop().create_future()
    reconciler = Reconciler()
    reconciler.add(cursor, told.set_result, interval=3600.0)
    try:
        async with asyncio.timeout(scaled()):
            assert await told is cursor
    finally:
        reconciler.remove(cursor)
    assert len(attempts) == 3
