"""Tasks that all depend on, at a listener: it goes on when something under it was cancelled."""

import asyncio

import pytest
from channels.layers import InMemoryChannelLayer

from notifications import tasks
from notifications.bridge.listener import Listener
from notifications.metrics import listening
from tests.waiting import await_for


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(tasks, "RESTART_DELAY", 0.01)


async def test_a_listener_goes_on_when_something_under_it_was_cancelled(live_redis, monkeypatch):
    """Half of a listener would be worse than none: another takes over only from one that is gone."""
    for name in ("state", "waiting"):
        monkeypatch.setattr(listening, name, getattr(listening, name))  # of this process, which is no listener
    listener, cancelled = Listener(InMemoryChannelLayer()), []
    take = listener.shards[0].lease.take

    async def be_cancelled():
        if not cancelled:
            cancelled.append(None)
            other = asyncio.get_running_loop().create_future()
            other.cancel()
            await other
        return await take()

    monkeypatch.setattr(listener.shards[0].lease, "take", be_cancelled)
    running = asyncio.create_task(listener.run())
    await await_for(lambda: listener.status.state == "holder", what="a listener that leads")
    listener.stop()
    await running

    assert cancelled
