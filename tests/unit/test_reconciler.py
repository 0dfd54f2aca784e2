"""The comparison of positions with the histories, when Redis does not answer."""

import asyncio

import redis

from notifications.delivery import reconciler
from notifications.delivery.cursor import Cursor
from notifications.delivery.reconciler import Reconciler
from notifications.history import get_store
from notifications.history.position import Position, Where
from notifications.topics import Topic
from tests.waiting import scaled


async def test_a_comparison_that_redis_did_not_answer_is_soon_tried_again(monkeypatch):
    """A message that nothing follows does not wait another interval because Redis was away for a moment."""
    monkeypatch.setattr(reconciler, "AFTER_JOIN", 0.0)
    monkeypatch.setattr(reconciler, "AFTER_FAILURE", 0.0)
    monkeypatch.setattr(reconciler, "TICK", 0.01)
    attempts = []

    async def look(topics):
        attempts.append(topics)
        if len(attempts) < 3:
            raise redis.ConnectionError("away")
        return [Where("run", 0, 0, Position(1, 1), Position(1, 1), 60.0, True)]

    monkeypatch.setattr(get_store(), "look", look)
    cursor = Cursor(Topic.parse("upload:1"), 60.0)
    cursor.go_live()
    told = asyncio.get_running_loop().create_future()
    comparing = Reconciler()
    comparing.add(cursor, lambda *behind: told.set_result(behind), interval=3600.0)
    try:
        async with asyncio.timeout(scaled()):
            assert await told == (cursor, True)
    finally:
        comparing.remove(cursor)
    assert len(attempts) == 4  # two that failed, and two that agree


async def test_those_who_join_at_once_share_a_question(monkeypatch):
    """Browsers that come back at once need two script calls: what is asked meanwhile waits for the next."""
    calls, answer = [], asyncio.Event()

    async def look(topics):
        calls.append(len(topics))
        await answer.wait()
        return [Where("run", 0, number, None, None, 0.0, False) for number, _ in enumerate(topics)]

    monkeypatch.setattr(get_store(), "look", look)
    reconciler = Reconciler()
    asking = [asyncio.create_task(reconciler.look(Topic("upload", 0)))]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    asking += [asyncio.create_task(reconciler.look(Topic("upload", n))) for n in range(1, 401)]
    await asyncio.sleep(0)
    asking[7].cancel()
    answer.set()

    found = await asyncio.gather(*asking, return_exceptions=True)

    assert calls == [1, 400]
    assert isinstance(found[7], asyncio.CancelledError)
    assert [where.now for n, where in enumerate(found) if n not in (0, 7)] == [n - 1 for n in range(1, 401) if n != 7]


async def test_a_question_that_nobody_waits_for_is_dropped_and_does_not_spoil_the_next(monkeypatch):
    """The socket that asked has gone; another that asks in the same moment gets its answer."""
    silent = asyncio.Event()

    async def look(topics):
        await silent.wait()
        return [Where("run", 0, 1, None, None, 0.0, False)] * len(topics)

    monkeypatch.setattr(get_store(), "look", look)
    reconciler = Reconciler()
    gone = asyncio.create_task(reconciler.look(Topic("upload", 1)))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.wait([gone])
    silent.set()

    async with asyncio.timeout(scaled()):
        assert (await reconciler.look(Topic("upload", 1))).now == 1
