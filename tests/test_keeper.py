"""The task of a connection of the channel layer ends when it is told to."""

import asyncio

from notifications import keeper
from notifications.keeper import Keeper
from tests.waiting import scaled


async def test_a_connection_that_swallows_its_cancellation_ends(monkeypatch):
    """On Python 3.11 what is under redis-py can swallow one; whoever stops the layer does not wait for ever."""
    monkeypatch.setattr(keeper, "FINISH", 0.01)
    connecting = asyncio.Event()
    swallowed = []

    async def connect_once():
        connecting.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if swallowed:
                raise
            swallowed.append(None)
        await asyncio.Event().wait()

    kept = Keeper(connect_once)
    kept.start()
    async with asyncio.timeout(scaled()):
        await connecting.wait()
        await kept.stop()

    assert swallowed
    assert len(asyncio.all_tasks()) == 1
