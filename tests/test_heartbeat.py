"""The heartbeats of many sockets on one timer."""

import asyncio

import pytest

from notifications.heartbeat import PATIENCE, Heartbeat
from tests.waiting import scaled

INTERVAL = 0.05


class Socket:
    """A socket that notes what is asked of it."""

    def __init__(self, *, takes: bool = True) -> None:
        self.paused = False
        self.pinged: asyncio.Queue[float] = asyncio.Queue()
        self.given_up: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.heartbeat = Heartbeat(self)
        self._takes = takes

    def ping(self) -> asyncio.Future[None]:
        loop = asyncio.get_running_loop()
        self.pinged.put_nowait(loop.time())
        taken = loop.create_future()
        if self._takes:
            taken.set_result(None)
        return taken

    def give_up(self) -> None:
        self.given_up.set_result(None)


@pytest.fixture(autouse=True)
def fast(settings):
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "HEARTBEAT_INTERVAL": INTERVAL}


async def pinged(socket: Socket) -> float:
    async with asyncio.timeout(scaled()):
        return await socket.pinged.get()


async def given_up(socket: Socket) -> None:
    async with asyncio.timeout(scaled()):
        await socket.given_up


async def test_each_socket_is_pinged_an_interval_after_it_began():
    """One timer serves them all, and none is asked early."""
    began = asyncio.get_running_loop().time()
    sockets = [Socket() for _ in range(3)]
    for socket in sockets:
        socket.heartbeat.begin()

    for socket in sockets:
        assert await pinged(socket) - began >= INTERVAL * 0.99
        socket.heartbeat.heard()
        assert await pinged(socket) - began >= INTERVAL * 2 * 0.99
        socket.heartbeat.end()


async def test_a_silent_browser_is_given_up_and_asked_no_more():
    """Two beats without a word are enough, and a socket that was given up does not beat."""
    silent, lively = Socket(), Socket()
    silent.heartbeat.begin()
    lively.heartbeat.begin()

    while not silent.given_up.done():
        lively.heartbeat.heard()
        await asyncio.sleep(INTERVAL / 10)
    before = lively.pinged.qsize()
    while lively.pinged.qsize() < before + PATIENCE:
        lively.heartbeat.heard()
        await asyncio.sleep(INTERVAL / 10)

    assert not lively.given_up.done()
    assert silent.pinged.qsize() == PATIENCE
    lively.heartbeat.end()


async def test_a_browser_that_only_talks_is_given_up_while_it_is_paused():
    """Who confirms nothing is too slow, whatever it says meanwhile."""
    socket = Socket()
    socket.paused = True
    socket.heartbeat.begin()

    while not socket.given_up.done():
        socket.heartbeat.heard()
        await asyncio.sleep(INTERVAL / 10)

    assert socket.pinged.qsize() < PATIENCE


async def test_a_ping_that_the_server_did_not_take_gives_the_browser_up():
    """A server whose ``send`` waits until the next beat has a browser that takes nothing."""
    socket = Socket(takes=False)
    socket.heartbeat.begin()

    await given_up(socket)

    assert socket.pinged.qsize() == 1


async def test_a_socket_that_ended_is_not_asked():
    """Nothing is left of it, not even a timer when it was the last; and a new one begins anew."""
    first, second = Socket(), Socket()
    first.heartbeat.begin()
    first.heartbeat.end()
    first.heartbeat.end()
    second.heartbeat.begin()

    await pinged(second)

    assert first.pinged.empty()
    second.heartbeat.end()
