"""Which listener gets the lease."""

import pytest
import redis

from notifications.lease import Lease


@pytest.fixture
def lease_key(live_redis):
    return Lease().key


def listening() -> Lease:
    lease = Lease()
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


async def test_a_stand_by_that_died_keeps_nobody_from_the_lease_for_long(live_redis, lease_key, monkeypatch):
    """A stand-by counts only as long as it asks."""
    monkeypatch.setattr("notifications.lease.CANDIDATE_TTL", -0.001)
    holder, dead, living = listening(), listening(), listening()
    await holder.take()
    await dead.take()
    await living.take()

    await holder.release()

    assert await living.take()


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
