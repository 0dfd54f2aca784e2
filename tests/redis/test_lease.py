"""Which listener gets the lease."""

import asyncio
from typing import Any

import pytest
import redis

from notifications import Topic
from notifications.bridge.lease import NEWCOMER, Lease
from notifications.broker import pipeline
from notifications.history import get_store
from notifications.history.store import NOT_HOLDER, Raw
from tests.conftest import point_to
from tests.waiting import scaled


@pytest.fixture
def lease_key(live_redis):
    return Lease().key


def listening(**options: Any) -> Lease:
    lease = Lease(**options)
    lease.subscribed()
    return lease


async def test_one_listener_has_the_lease(live_redis):
    """While one has it, and renews it, no other gets it."""
    first, second = listening(), listening()

    assert await first.take()
    assert not await second.take()
    assert await first.take()
    assert first.held
    assert not second.held


async def test_a_holder_with_a_gap_leaves_the_lease_to_a_stand_by(live_redis):
    """A holder that gave the lease back because it missed something does not get it before who heard it all."""
    holder, stand_by = listening(), listening()
    await holder.take()
    await stand_by.take()

    await holder.release()
    holder.subscribed()

    assert not await holder.take()
    assert await stand_by.take()


async def test_whoever_has_not_heard_that_they_have_the_lease_gets_it_all_the_same(live_redis, monkeypatch):
    """Redis answered too late: nobody uses the token that it was taken with, and nobody has to wait for its end."""
    arun = pipeline.arun

    async def answer_too_late(*arguments, **options):
        await arun(*arguments, **options)
        raise TimeoutError

    lease, other = listening(), listening()
    lease._since -= scaled()  # it has listened longer, however long a call takes: that is what counts
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "arun", answer_too_late)
        with pytest.raises(TimeoutError):
            await lease.take()
    unheard = lease.token
    assert live_redis.exists(lease.key)

    assert not await other.take()
    assert await lease.take()
    assert lease.token != unheard
    assert await get_store().stamp_batch(lease.key, unheard, 1, []) == (NOT_HOLDER, "")


async def test_a_stand_by_that_has_stopped_keeps_nobody_from_a_free_lease(live_redis):
    """It has listened longest, and asked a moment ago; when the holder stops after it, the next one takes over."""
    holder, stopped = listening(), listening()
    await asyncio.sleep(0.02)  # between the two: the one subscribed longer counts
    stand_by = listening()
    await holder.take()
    assert not await stopped.take()
    assert not await stand_by.take()

    await stopped.release()
    await holder.release()

    assert await stand_by.take()


async def test_who_had_the_lease_and_heard_everything_since_is_no_newcomer(live_redis):
    """Of those who wait it has listened longest, so what it alone has heard is not lost."""
    first, second = listening(), listening()
    first._since -= scaled()  # it listened long before the newcomer, however slow the machine is
    await first.take()
    await second.take()
    await first.release()
    assert await second.take()
    newcomer = listening()
    await newcomer.take()
    await first.take()

    await second.release()

    assert not await newcomer.take()
    assert await first.take()


async def test_who_gives_the_lease_back_and_stands_by_goes_before_a_newcomer_at_once(live_redis):
    """It was passed on, and the next holder had a gap before the former one asked: only that one has heard all."""
    former, holder = listening(), listening()
    await former.take()
    await former.release(stands_by=True)
    live_redis.delete(former.key)
    await holder.take()
    await holder.release()
    holder.subscribed()

    assert not await holder.take()
    assert await former.take()


async def test_a_listener_that_starts_after_the_holder_died_leaves_the_lease_to_a_stand_by(live_redis, lease_key):
    """Whoever was restarted in place of a dead holder knows nothing of what it left, so the stand-by goes first."""
    holder, stand_by = listening(), listening()
    await holder.take()
    await stand_by.take()
    restarted = listening()
    await restarted.take()

    live_redis.delete(lease_key)  # its time is over

    assert not await restarted.take()
    assert await stand_by.take()


async def test_who_subscribed_first_gets_the_lease_though_another_asks_first(live_redis):
    """After a failover the new primary knows no candidate; each has announced itself there before it subscribed."""
    first = Lease()
    live_redis.execute_command(*first.announcement())
    first.subscribed()
    first._since -= scaled()  # long before the newcomer, however slow the machine is
    newcomer = listening()

    assert not await newcomer.take()
    assert await first.take()


async def test_who_was_announced_and_never_came_is_not_waited_for_long(live_redis):
    """Its connection may have ended before it could subscribe."""
    live_redis.execute_command(*Lease(candidate_ttl=0.2).announcement())
    other = listening(candidate_ttl=0.2)

    assert not await other.take()
    async with asyncio.timeout(scaled()):
        while not await other.take():  # noqa: ASYNC110  as a stand-by does: Redis does not call
            await asyncio.sleep(0.02)


async def test_an_announcement_takes_no_lease(live_redis, lease_key):
    """Who does not listen yet must not lead, and a full Redis must not keep it from listening."""
    coming = Lease()
    assert live_redis.execute_command(*coming.announcement()) == [0, b""]
    live_redis.config_set("maxmemory", 1)
    try:
        assert live_redis.execute_command(*coming.announcement()) == [0, b""]
    finally:
        live_redis.config_set("maxmemory", 0)

    assert not live_redis.exists(lease_key)


async def test_an_announcement_takes_no_lease_from_its_heir(live_redis):
    """A listener comes while a shard is handed over: it is announced as ever, and the named successor leads."""
    former, heir, coming = listening(), listening(me="heir"), Lease(me="coming")
    await former.take()
    await heir.take()
    await former.release("heir", stands_by=True)

    live_redis.execute_command(*coming.announcement())

    assert live_redis.hexists("notifications:candidates", "coming")
    assert not await former.take()
    assert await heir.take()


async def test_a_stand_by_that_died_keeps_nobody_from_the_lease_for_long(live_redis, lease_key):
    """A stand-by counts only as long as it asks, unless who asks has only just come."""
    holder, dead, living = (listening(candidate_ttl=-0.001) for _ in range(3))
    for each, newcomers_ago in ((dead, 3), (living, 2)):
        each._since -= newcomers_ago * NEWCOMER
    await holder.take()
    await dead.take()
    await living.take()

    await holder.release()

    assert await living.take()


async def test_a_holder_with_a_gap_leaves_the_lease_to_a_stand_by_that_was_paused(live_redis):
    """It has not asked for long and does not count; but it wakes up, reads what it has missed, and asks."""
    holder, paused = listening(candidate_ttl=0.01), listening(candidate_ttl=0.01)
    await holder.take()
    await paused.take()
    await asyncio.sleep(0.02)

    await holder.release()
    holder.subscribed()

    assert not await holder.take()
    assert await paused.take()


async def test_a_holder_with_a_gap_leaves_the_lease_to_its_predecessor_that_was_paused(live_redis, lease_key):
    """Which has lost it by being paused, and has not asked since."""
    holder, paused = listening(), listening()
    holder._since -= 2 * NEWCOMER
    await paused.take()
    await paused.take()
    live_redis.delete(lease_key)  # its time is over
    paused.lost()
    assert await holder.take()

    await holder.release()
    holder.subscribed()

    assert not await holder.take()
    assert await paused.take()


async def test_a_holder_with_a_gap_waits_only_for_a_moment_for_who_may_be_dead(live_redis, monkeypatch):
    """Nobody else asks; what is published meanwhile waits."""
    monkeypatch.setattr("notifications.bridge.lease.NEWCOMER", 0.05)
    holder, dead = listening(candidate_ttl=0.01), listening(candidate_ttl=0.01)
    await holder.take()
    await dead.take()
    await holder.release()
    holder.subscribed()

    async with asyncio.timeout(scaled()):
        while not await holder.take():  # noqa: ASYNC110  as a stand-by does: Redis does not call
            await asyncio.sleep(0.01)


async def test_the_only_listener_gets_the_lease_back_at_once(live_redis):
    """Where nobody else listens, a gap of the holder costs no waiting."""
    only = listening()
    await only.take()

    await only.release()
    only.subscribed()

    assert await only.take()


async def test_a_full_redis_leaves_the_lease_with_its_holder(live_redis):
    """A holder renews though Redis refuses writes, and nobody else gets the lease."""
    holder, stand_by = listening(), listening()
    await holder.take()
    live_redis.config_set("maxmemory", 1)
    try:
        assert await holder.take()
        assert not await stand_by.take()
        await holder.release()
        with pytest.raises(redis.ResponseError):
            await stand_by.take()
    finally:
        live_redis.config_set("maxmemory", 0)
    assert await stand_by.take()


async def test_a_lease_that_is_not_renewed_ends(live_redis):
    """The lease of a holder that died or hangs is free after its time, and the holder knows that by itself."""
    holder, stand_by = listening(ttl=scaled(1.5)), listening(ttl=scaled(1.5))
    await holder.take()
    assert not await stand_by.take()

    async with asyncio.timeout(scaled()):
        while not await stand_by.take():  # noqa: ASYNC110  as a stand-by does: Redis does not call
            await asyncio.sleep(0.02)

    assert not holder.held
    assert not await holder.take()


async def test_a_lease_that_outlives_a_lease_ends_when_its_holder_is_dead(live_redis, lease_key):
    """Redis's clock was set back by an hour, so the key would live for an hour longer: a stand-by sees to that."""
    dead, stand_by = listening(ttl=0.2), listening(ttl=0.2)
    await dead.take()
    live_redis.pexpire(lease_key, 3_600_200)

    async with asyncio.timeout(scaled()):
        while not await stand_by.take():  # noqa: ASYNC110  as a stand-by does: Redis does not call
            await asyncio.sleep(0.02)


async def test_a_lease_without_an_end_gets_one(live_redis, lease_key):
    """Whoever made it immortal: nobody would ever take over."""
    dead, stand_by = listening(ttl=0.2), listening(ttl=0.2)
    await dead.take()
    live_redis.persist(lease_key)

    async with asyncio.timeout(scaled()):
        while not await stand_by.take():  # noqa: ASYNC110  as a stand-by does: Redis does not call
            await asyncio.sleep(0.02)


async def test_a_clock_that_is_set_back_takes_the_lease_from_no_living_holder(live_redis, lease_key):
    """It has three seconds, as always, and renews it in the first."""
    holder, stand_by = listening(), listening()
    await holder.take()
    live_redis.pexpire(lease_key, 3_603_000)

    assert not await stand_by.take()
    assert 0 < live_redis.pttl(lease_key) <= 3000
    assert await holder.take()
    assert not await stand_by.take()


def set_back(live_redis, seconds):
    """Leave the candidates as they look when Redis's clock has been set back by so many seconds."""
    for name, row in live_redis.hgetall("notifications:candidates").items():
        later = [int(time) + int(seconds * 1e6) for time in row.split()]
        live_redis.hset("notifications:candidates", name, "{} {}".format(*later))


async def test_seniority_does_not_hang_on_the_clock_of_redis(live_redis, lease_key):
    """Who listened before the clock was set back has listened longer than who began after it."""
    holder, stand_by = listening(), listening()
    stand_by._since -= scaled()  # what a stand-by heard since it last asked does not count, however long that is here
    await holder.take()
    await stand_by.take()
    set_back(live_redis, 3600)
    newcomer = listening()

    live_redis.delete(lease_key)

    assert not await newcomer.take()
    assert await stand_by.take()


async def test_a_dead_stand_by_of_a_later_time_keeps_nobody_from_the_lease(live_redis, lease_key):
    """The clock was set back after it had asked for the last time: it counts for a moment, not for an hour."""
    holder, dead = listening(candidate_ttl=0.2), listening(candidate_ttl=0.2)
    dead._since -= scaled()  # it listened long before the other, however slow the machine is
    await holder.take()
    await dead.take()
    living = listening(candidate_ttl=0.2)
    set_back(live_redis, 3600)
    live_redis.delete(lease_key)

    assert not await living.take()
    async with asyncio.timeout(scaled()):
        while not await living.take():  # noqa: ASYNC110  as a stand-by does: Redis does not call
            await asyncio.sleep(0.02)


async def test_a_renewed_lease_goes_on(live_redis, lease_key):
    """Each renewal gives the holder the whole time again."""
    holder = listening()
    await holder.take()
    live_redis.pexpire(lease_key, 100)

    await holder.take()

    assert 100 < live_redis.pttl(lease_key) <= 3000


async def test_each_tenure_has_a_token_of_its_own(live_redis):
    """A token that was given back never stamps again; renewing keeps it."""
    holder = listening()
    tokens = []
    for _ in range(3):
        await holder.take()
        tokens.append(holder.token)
        await holder.take()
        assert holder.token == tokens[-1]
        await holder.release()

    assert len(set(tokens)) == 3


async def test_an_earlier_tenure_stamps_nothing(live_redis):
    """A batch that was delayed on its way until the same listener has the lease again is refused."""
    holder = listening()
    await holder.take()
    earlier = holder.token
    await holder.release()
    await holder.take()
    batch = [Raw(Topic("closed", "7"), b"}")]

    assert await get_store().stamp_batch(holder.key, earlier, 1, batch) == (NOT_HOLDER, "")
    assert await get_store().stamp_batch(holder.key, holder.token, 1, batch) == (1, "")


async def test_batches_of_a_new_tenure_are_counted_anew(live_redis):
    """The number of a batch is compared within one tenure only."""
    batch = [Raw(Topic("closed", "7"), b"}")]
    for _ in range(2):
        holder = listening()
        await holder.take()
        assert await get_store().stamp_batch(holder.key, holder.token, 1, batch) == (1, "")
        await holder.release()


async def test_who_is_named_gets_the_lease_next(live_redis):
    """Though another stand-by was subscribed before, and asks first."""
    holder, senior = listening(), listening()
    await asyncio.sleep(0.02)  # between the two: who has listened longer is what counts
    heir = Lease(me="heir")
    heir.subscribed()
    assert await holder.take()
    for lease in (senior, heir):
        assert not await lease.take()

    await holder.release("heir")

    assert not await senior.take()
    assert not await holder.take()
    assert await heir.take()
    assert not await senior.take()


async def test_who_is_named_and_has_had_a_gap_has_no_claim(live_redis):
    """It has missed what the others have heard."""
    holder, senior = listening(), listening()
    heir = Lease(me="heir")
    heir.subscribed()
    assert await holder.take()
    for lease in (senior, heir):
        assert not await lease.take()
    await holder.release("heir")

    live_redis.execute_command(*heir.announcement())
    heir.subscribed()

    assert not await heir.take()
    assert await senior.take()


async def test_who_is_named_and_has_had_a_gap_while_a_shard_was_handed_over_has_no_claim(live_redis):
    """What was published in that gap, the former holder has left to the others: it had begun before."""
    holder, senior, heir = listening(), listening(), Lease(me="heir")
    heir.subscribed()
    assert await holder.take()
    for lease in (senior, heir):
        assert not await lease.take()

    live_redis.execute_command(*heir.announcement())
    heir.subscribed()
    assert not await heir.take()
    await holder.release("heir", handing_over=scaled(5))

    assert not await heir.take()
    assert await senior.take()


async def test_who_is_named_and_does_not_come_is_not_waited_for_long(live_redis, lease_key, monkeypatch):
    """It may have died a moment ago."""
    monkeypatch.setattr("notifications.bridge.lease.HEIR_TTL", scaled(2))
    holder, other = listening(), listening()
    assert await holder.take()
    assert not await other.take()

    await holder.release("nobody")

    assert not await other.take()
    async with asyncio.timeout(scaled()):
        while not await other.take():  # noqa: ASYNC110  as a stand-by does: Redis does not call
            await asyncio.sleep(0.02)


async def test_only_the_holder_can_give_the_lease_back(live_redis, lease_key):
    """A listener that has lost the lease does not take it from its successor when it stops."""
    holder, late = listening(), listening()
    await late.take()
    live_redis.delete(lease_key)
    await holder.take()

    await late.release()

    assert await holder.take()
    assert not await late.take()


async def test_a_redis_that_is_away_changes_nothing(live_redis, settings):
    """When nobody can be asked the lease stays what it was until its time is over, and is not taken either."""
    holder, stand_by = listening(), listening()
    await holder.take()
    point_to(settings, "redis://127.0.0.1:1/0")

    for lease in (holder, stand_by):
        with pytest.raises(redis.ConnectionError):
            await lease.take()

    assert holder.held
    assert not stand_by.held


async def test_a_lease_that_redis_calls_another_s_is_lost(live_redis):
    """The listener need not wait for its end."""
    holder = listening()
    await holder.take()

    holder.lost()

    assert not holder.held
