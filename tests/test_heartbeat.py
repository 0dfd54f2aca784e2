"""The heartbeats of many sockets on one timer."""

import asyncio
import time
from collections import Counter

import pytest

from notifications.heartbeat import GROUPS, PATIENCE, Heartbeat
from notifications.metrics import counts
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


def crowded(times: list[float], interval: float) -> int:
    """Count the most that happened within a tenth of an interval."""
    return max(sum(begin <= time <= begin + interval / 10 for time in times) for begin in times)


async def first_pings(sockets: list[Socket]) -> list[float]:
    times = []
    for socket in sockets:
        times.append(await pinged(socket))
        socket.heartbeat.heard()
    return times


@pytest.fixture
def slow(settings):
    """An interval in which the turns of a burst can be told from one another."""
    interval = scaled(0.6)
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "HEARTBEAT_INTERVAL": interval}
    return interval


async def test_each_socket_is_pinged_within_an_interval_and_once_in_each(slow):
    """Also those that come while others are waiting for their turn: none waits for a turn of the others."""
    loop, sockets, began = asyncio.get_running_loop(), [], []
    for _ in range(5):
        sockets.append(Socket())
        began.append(loop.time())
        sockets[-1].heartbeat.begin()
        await asyncio.sleep(slow * 0.13)
    times = [[await pinged(socket) for _ in range(2)] for socket in sockets if socket.heartbeat.heard() is None]
    for socket in sockets:
        socket.heartbeat.end()

    late = slow * 1.3  # the machine may be busy; two intervals are what must not happen
    assert all(0 < first - begin < late for begin, (first, _) in zip(began, times, strict=True))
    assert all(slow / 2 < second - first < late for first, second in times)


async def test_a_burst_of_sockets_is_spread_over_the_interval(slow):
    """A thousand tabs that come back together are not pinged together for the rest of their lives."""
    sockets = [Socket() for _ in range(30)]
    for socket in sockets:
        socket.heartbeat.begin()

    first = await first_pings(sockets)
    second = await first_pings(sockets)
    for socket in sockets:
        socket.heartbeat.end()

    assert max(crowded(first, slow), crowded(second, slow)) <= 9
    assert max(first) - min(first) > slow / 2


async def test_an_event_loop_that_stood_still_does_not_ping_all_at_once(slow):
    """All are as late as the loop was, and still one after the other."""
    sockets = [Socket() for _ in range(30)]
    for socket in sockets:
        socket.heartbeat.begin()
    await first_pings(sockets)

    time.sleep(slow * 1.5)  # noqa: ASYNC251  what stands still is the loop
    went_on = asyncio.get_running_loop().time()
    times = await first_pings(sockets)
    for socket in sockets:
        socket.heartbeat.end()

    assert crowded(times, slow) <= 9
    assert max(times) - went_on < slow * 1.3


async def test_sockets_that_end_leave_room_for_those_that_come():
    """The groups stay even, whoever ends: with each of sixty pinged alone nobody waits behind another."""
    sockets = [Socket() for _ in range(4 * GROUPS)]
    for socket in sockets:
        socket.heartbeat.begin()
    for socket in sockets[::3]:
        socket.heartbeat.end()
    late = [Socket() for _ in range(len(sockets[::3]))]
    for socket in late:
        socket.heartbeat.begin()
    groups = Counter(socket.heartbeat.group for socket in sockets + late if socket.heartbeat.group is not None)
    for socket in sockets + late:
        socket.heartbeat.end()

    assert set(groups.values()) == {4}


async def test_a_socket_that_fails_stops_no_other(caplog):
    """It is logged and counted, and the others are pinged as before."""

    class Broken(Socket):
        def ping(self):
            raise ZeroDivisionError

    before = counts["task_restarted", "heartbeat"]
    broken, lively = Broken(), Socket()
    broken.heartbeat.begin()
    lively.heartbeat.begin()
    for _ in range(3):
        await pinged(lively)
        lively.heartbeat.heard()
    broken.heartbeat.end()
    lively.heartbeat.end()

    assert counts["task_restarted", "heartbeat"] > before
    assert "ZeroDivisionError" in caplog.text


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
