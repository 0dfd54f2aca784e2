"""The heartbeats of many sockets on one timer."""

import asyncio
from bisect import bisect_right
from collections import Counter
from itertools import pairwise

import pytest

from notifications.conf import settings
from notifications.connection.heartbeat import GROUPS, PATIENCE, Heartbeat
from notifications.metrics import counts
from tests.virtual_time import in_virtual_time


class Socket:
    """A socket that notes what is asked of it, and a browser that answers unless it is told not to."""

    def __init__(self, *, answers: bool = True, takes: bool = True) -> None:
        self.paused = False
        self.pings: list[float] = []
        self.given_up = 0
        self.heartbeat = Heartbeat(self)
        self._answers, self._takes = answers, takes

    def ping(self) -> asyncio.Future[bool]:
        loop = asyncio.get_running_loop()
        self.pings.append(loop.time())
        taken = loop.create_future()
        if self._takes:
            taken.set_result(True)
        if self._answers:
            self.heartbeat.heard()
        return taken

    def give_up(self) -> None:
        self.given_up += 1


@pytest.fixture
def interval() -> float:
    return settings.HEARTBEAT_INTERVAL


def now() -> float:
    return asyncio.get_running_loop().time()


def begun(amount: int) -> list[Socket]:
    """Return some sockets that came at once."""
    sockets = [Socket() for _ in range(amount)]
    for socket in sockets:
        socket.heartbeat.begin()
    return sockets


def crowded(times: list[float], interval: float) -> int:
    """Count the most that happened within a tenth of an interval."""
    times = sorted(times)
    return max(bisect_right(times, begin + interval / 10) - earlier for earlier, begin in enumerate(times))


@in_virtual_time
async def test_each_socket_is_pinged_within_an_interval_and_once_in_each(interval):
    """Also those that come while others are waiting for their turn: none waits for a turn of the others."""
    sockets, began = [], []
    for _ in range(5):
        sockets += begun(1)
        began.append(now())
        await asyncio.sleep(interval * 0.13)
    await asyncio.sleep(10 * interval)

    for begin, socket in zip(began, sockets, strict=True):
        times = [begin, *socket.pings]
        assert 0 < times[1] - begin <= interval
        for earlier, later in pairwise(times[1:]):
            assert interval * 0.98 < later - earlier <= interval


@in_virtual_time
async def test_a_burst_of_sockets_is_spread_over_the_interval(interval):
    """A thousand tabs that come back together are not pinged together for the rest of their lives."""
    began, sockets = now(), begun(1000)
    await asyncio.sleep(2 * interval)

    for turn in range(2):
        times = [socket.pings[turn] for socket in sockets]
        assert crowded(times, interval) <= 120
        assert min(times) - began < (turn + 0.1) * interval
        assert max(times) - began > (turn + 0.9) * interval


@in_virtual_time
async def test_a_few_sockets_are_spread_as_well(interval):
    """Those of a quiet site do not sit in one corner of the interval."""
    sockets = begun(4)
    await asyncio.sleep(2 * interval)
    times = sorted(socket.pings[1] for socket in sockets)

    assert min(later - earlier for earlier, later in pairwise(times)) > interval / 8


@in_virtual_time
async def test_an_event_loop_that_stood_still_does_not_ping_all_at_once(interval):
    """All are as late as the loop was, and still one after the other."""
    sockets = begun(300)
    await asyncio.sleep(interval)

    asyncio.get_running_loop().stand_still(1.5 * interval)
    went_on = now()
    await asyncio.sleep(interval)
    times = [next(time for time in socket.pings if time >= went_on) for socket in sockets]

    assert crowded(times, interval) <= 40
    assert max(times) - went_on <= interval


@in_virtual_time
async def test_a_turn_that_comes_late_delays_no_other(interval):
    """A busy event loop is late by a little all the time; beats do not become rarer by that."""
    [socket] = begun(1)
    for _ in range(20 * GROUPS):
        await asyncio.sleep(interval / GROUPS)
        asyncio.get_running_loop().stand_still(interval / GROUPS / 2)

    assert len(socket.pings) >= 28


@in_virtual_time
async def test_sockets_that_end_leave_room_for_those_that_come():
    """The groups stay even, whoever ends: with each of sixty pinged alone nobody waits behind another."""
    sockets = begun(4 * GROUPS)
    for socket in sockets[::3]:
        socket.heartbeat.end()
    late = begun(len(sockets[::3]))
    groups = Counter(socket.heartbeat.group for socket in sockets + late if socket.heartbeat.group is not None)

    assert set(groups.values()) == {4}


@in_virtual_time
async def test_a_socket_that_fails_stops_no_other(caplog, interval):
    """It is logged and counted, and the others are pinged as before."""

    class Broken(Socket):
        def ping(self):
            raise ZeroDivisionError

    before = counts["task_restarted", "heartbeat"]
    broken = Broken()
    broken.heartbeat.begin()
    [lively] = begun(1)
    await asyncio.sleep(2 * interval)

    assert counts["task_restarted", "heartbeat"] > before
    assert set(caplog.messages) == {"the heartbeat of a socket failed"}
    assert "ZeroDivisionError" in caplog.text
    assert len(lively.pings) == 2


@in_virtual_time
async def test_a_socket_that_fails_stops_no_other_of_the_same_turn(interval, caplog):
    """Whichever of those that have their turn together it is."""
    sockets = [socket for socket in begun(3 * GROUPS) if socket.heartbeat.group == 7]
    assert len(sockets) == 3
    for turn, broken in enumerate(sockets, start=1):
        ping, broken.ping = broken.ping, None
        await asyncio.sleep(interval)
        broken.ping = ping
        broken.heartbeat.heard()
        assert sum(len(socket.pings) for socket in sockets) == 2 * turn


@in_virtual_time
async def test_a_new_socket_goes_where_one_has_ended(interval):
    """Whichever of all groups has the fewest, it is found: with as many sockets as groups each has its own moment."""
    sockets = begun(GROUPS)
    for index in reversed(range(GROUPS)):
        sockets[index].heartbeat.end()
        [sockets[index]] = begun(1)

        assert {socket.heartbeat.group for socket in sockets} == set(range(GROUPS))


@in_virtual_time
async def test_those_that_stay_are_pinged_when_others_end(interval):
    """Only the last one takes the timer along."""
    sockets = begun(10)
    for socket in sockets[1:]:
        socket.heartbeat.end()
    await asyncio.sleep(interval)

    assert len(sockets[0].pings) == 1


@in_virtual_time
async def test_only_beats_in_a_row_count():
    """One word from a browser, and its patience begins anew."""
    socket = Socket(answers=False)
    beat, heard = socket.heartbeat.beat, socket.heartbeat.heard
    for _ in range(3):
        heard()
        assert [beat() for _ in range(PATIENCE)] == [True] * PATIENCE
    assert not beat()


@in_virtual_time
async def test_a_silent_browser_is_given_up_and_asked_no_more(interval):
    """Two beats without a word are enough, and a socket that was given up does not beat."""
    silent = Socket(answers=False)
    silent.heartbeat.begin()
    [lively] = begun(1)

    await asyncio.sleep(PATIENCE * interval)
    assert not silent.given_up
    await asyncio.sleep(3 * interval)

    assert silent.given_up == 1
    assert len(silent.pings) == PATIENCE
    assert not lively.given_up
    assert len(lively.pings) == PATIENCE + 3


@in_virtual_time
async def test_a_browser_that_only_talks_is_given_up_while_it_is_paused(interval):
    """Who confirms nothing is too slow, whatever it says meanwhile."""
    [socket] = begun(1)
    socket.paused = True
    await asyncio.sleep(PATIENCE * interval)

    assert socket.given_up
    assert len(socket.pings) == PATIENCE - 1


@in_virtual_time
async def test_a_slow_browser_that_confirms_is_kept(interval):
    """It may be paused at each beat: as long as it confirms something between two, it is slow and not dead."""
    [socket] = begun(1)
    socket.paused = True
    for _ in range(20):
        await asyncio.sleep(interval / 2)
        socket.heartbeat.confirmed()

    assert not socket.given_up
    assert len(socket.pings) >= 10


@in_virtual_time
async def test_a_browser_that_was_paused_for_a_moment_is_kept(interval):
    """What counts is to be paused at one beat after the other."""
    [socket] = begun(1)
    for _ in range(10):
        socket.paused = not socket.paused
        await asyncio.sleep(interval)

    assert not socket.given_up


@in_virtual_time
async def test_a_ping_that_the_server_did_not_take_gives_the_browser_up(interval):
    """A server whose ``send`` waits until the next beat has a browser that takes nothing."""
    socket = Socket(takes=False)
    socket.heartbeat.begin()
    await asyncio.sleep(2 * interval)

    assert socket.given_up == 1
    assert len(socket.pings) == 1
    assert asyncio.get_running_loop().timers == 0


@in_virtual_time
async def test_a_socket_that_ended_is_not_asked(interval):
    """Nothing is left of it, not even a timer when it was the last; and a new one begins anew."""
    [first] = begun(1)
    first.heartbeat.end()
    first.heartbeat.end()
    assert asyncio.get_running_loop().timers == 0

    [second] = begun(1)
    await asyncio.sleep(interval)

    assert first.pings == []
    assert len(second.pings) == 1


@in_virtual_time
async def test_a_socket_that_never_began_may_end():
    """It may be gone before it has authenticated."""
    [lively] = begun(1)
    Socket().heartbeat.end()
    await asyncio.sleep(settings.HEARTBEAT_INTERVAL)

    assert len(lively.pings) == 1


@in_virtual_time
async def test_a_beat_may_end_another_of_the_same_turn(interval):
    """A socket closed by the ping of another is not pinged itself, and the round continues."""
    sockets = begun(2 * GROUPS)
    first, second = (socket for socket in sockets if socket.heartbeat.group == 0)

    class Ending:
        paused = False

        def ping(self):
            for socket in (first, second):
                socket.heartbeat.end()
            return asyncio.get_running_loop().create_future()

    first.heartbeat._socket = second.heartbeat._socket = Ending()
    await asyncio.sleep(interval)

    assert sum(bool(socket.pings) for socket in sockets) == len(sockets) - 2
