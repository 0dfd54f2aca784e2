"""How many sockets an address may have, and what an address is."""

import pytest

from notifications.access.authentication import client_address
from notifications.access.client_address import UNREADABLE
from notifications.connection import limits
from notifications.connection.limits import BURST, RATE, Addresses, Guests, Pace, Senders, Strangers, TokenBucket
from tests.cases import cases

CLIENTS = [
    (["192.0.2.1", 1234], "192.0.2.1"),
    (("192.0.2.1", 1234), "192.0.2.1"),
    (["::ffff:192.0.2.1", 1], "192.0.2.1"),
    (["2001:db8:1:2:3:4:5:6", 1], "2001:db8:1:2::/64"),
    (["2001:db8:1:2::9", 1, 0, 0], "2001:db8:1:2::/64"),
    (["fe80::1%eth0", 1], "fe80::/64"),
    (["192.0.2.1:443", 1], "192.0.2.1"),
    (["[2001:db8:1:2::9]:443", 1], "2001:db8:1:2::/64"),
    (["[2001:db8:1:2::9]", 1], "2001:db8:1:2::/64"),
    (["::1", 1], "::/64"),
    (None, UNREADABLE),
    ([], UNREADABLE),
    ("", UNREADABLE),
    (["testclient", 50000], UNREADABLE),
    (["x:443", 1], UNREADABLE),
    ([None, 1], UNREADABLE),
]


def test_the_address_is_what_the_server_says():
    """An IPv6 client is its network; all that a server does not know, or a client has made up, is one address."""
    assert [(client, client_address({"client": client})) for client, _ in CLIENTS] == CLIENTS


def test_no_header_is_believed():
    """Whoever connects may write what they like into X-Forwarded-For."""
    scope = {"client": ["192.0.2.1", 1], "headers": [(b"x-forwarded-for", b"198.51.100.7")]}

    assert client_address(scope) == "192.0.2.1"
    assert client_address({"headers": []}) == UNREADABLE


def test_places_are_taken_and_given_back():
    """The limit holds for each address; what was given back is free again, and nothing is remembered of it."""
    addresses = Addresses()

    assert [addresses.take("a", 2) for _ in range(3)] == [True, True, False]
    assert addresses.take("b", 2)
    addresses.give_back("a")
    assert addresses.take("a", 2)
    for each in ("a", "a", "b"):
        addresses.give_back(each)
    assert addresses._open == {}


def test_without_a_limit_everybody_is_let_in():
    """0 is any number; and what was not counted can be given back."""
    addresses = Addresses()

    assert all(addresses.take("a", 0) for _ in range(1000))
    addresses.give_back(None)


def test_guests_are_let_in_until_they_have_their_places():
    """All of them together, wherever they come from; 0 is any number."""
    guests = Guests()

    assert [guests.take(2) for _ in range(3)] == [True, True, False]
    for _ in range(2):
        guests.give_back()
    assert [guests.take(2) for _ in range(3)] == [True, True, False]
    assert all(guests.take(0) for _ in range(1000))
    assert guests.open == 1002


class Socket:
    """A socket that has not authenticated; ``leaves`` records those that are told to leave."""

    def __init__(self, name, leaves, *, speaks=False):
        self.name = name
        self.has_said_nothing = not speaks
        self._leaves = leaves

    def give_way(self):
        self._leaves.append(self.name)


def crowd(*names, limit, speaking=()):
    """Let sockets in; the first letter of a name is the address. Returns those refused and those that had to leave."""
    strangers, leaves, refused = Strangers(), [], []
    for name in names:
        socket = Socket(name, leaves, speaks=name in speaking)
        if not strangers.add(name[0], socket, limit):
            refused.append(name)
    return refused, leaves


def test_the_oldest_of_an_address_that_has_its_share_goes():
    """One address may have half of the places, and pushes out its own only."""
    assert crowd("a1", "a2", "a3", "a4", limit=4) == ([], ["a1", "a2"])
    assert crowd("b1", "a1", "a2", "a3", limit=4) == ([], ["a1"])
    assert crowd("a1", "a2", "a3", limit=5) == ([], ["a1"])
    assert crowd("a1", "b1", "a2", limit=3) == ([], ["a1"])
    assert crowd("a1", "a2", limit=1) == ([], ["a1"])


def test_without_room_the_oldest_of_the_address_with_the_most_goes():
    """Whoever opens many makes room for the one socket of somebody else."""
    assert crowd("b1", "a1", "a2", "c1", "d1", limit=4) == ([], ["a1"])
    assert crowd("b1", "a1", "a2", "c1", "d1", "e1", limit=4) == ([], ["a1", "b1"])


def test_who_has_said_something_is_not_pushed_out():
    """Their token is being looked at; when all places are theirs, a newcomer is refused."""
    assert crowd("a1", "a2", "a3", limit=4, speaking=["a1"]) == ([], ["a2"])
    assert crowd("a1", "a2", "a3", limit=4, speaking=["a1", "a2"]) == (["a3"], [])
    assert crowd("a1", "b1", "c1", "d1", "e1", limit=4, speaking=["a1", "b1", "c1", "d1"]) == (["e1"], [])


def test_a_place_that_was_given_back_is_free():
    """Nothing is remembered of sockets that have authenticated or gone, and giving back twice is no error."""
    strangers, leaves = Strangers(), []
    sockets = [Socket(str(number), leaves) for number in range(4)]
    for socket in sockets:
        assert strangers.add("a", socket, 8)
        strangers.remove("a", socket)
        strangers.remove("a", socket)
    strangers.remove(None, sockets[0])

    assert leaves == []
    assert (strangers._waiting, strangers._leaving, strangers._count) == ({}, {}, 0)


def test_those_that_do_not_leave_are_counted_until_they_have():
    """A program need not answer a close: with as many on their way out as there are places nobody more is let in."""
    strangers, leaves = Strangers(), []
    sockets = [Socket(str(number), leaves) for number in range(8)]
    for socket, address in zip(sockets, "aaaabbbb", strict=True):
        assert not strangers.is_crowded(address, 4)
        strangers.add(address, socket, 4)
    assert leaves == ["0", "1", "4", "5"]
    assert strangers.is_crowded("c", 4)
    assert not strangers.is_crowded("c", 0)

    strangers.remove("a", sockets[0])
    assert not strangers.is_crowded("c", 4)
    for socket, address in zip(sockets, "aaaabbbb", strict=True):
        strangers.remove(address, socket)
    assert (strangers._waiting, strangers._leaving, strangers._leaving_of, strangers._count) == ({}, {}, {}, 0)


@cases(("limit", "let_in"), [(1, 2), (3, 2), (4, 4), (7, 6)])
def test_one_address_whose_sockets_do_not_leave_keeps_nobody_else_out(limit, let_in):
    """Of those on their way out, too, one address may have half: then it is let in no more, and all others are."""
    strangers, leaves = Strangers(), []
    sockets = []
    for number in range(20):
        if not strangers.is_crowded("a", limit):
            sockets.append(Socket(str(number), leaves))
            assert strangers.add("a", sockets[-1], limit)
    assert len(sockets) == let_in
    assert strangers.is_crowded("b", limit) is (limit == 1)

    strangers.remove("a", sockets[0])
    assert not strangers.is_crowded("a", limit)


def test_an_address_is_let_in_when_enough_of_its_sockets_have_left():
    """Each that is gone is one less of those on their way out, and no more than one."""
    strangers, leaves = Strangers(), []
    sockets = [Socket(str(number), leaves) for number in range(5)]
    for socket in sockets:
        strangers.add("a", socket, 4)
    assert leaves == ["0", "1", "2"]

    strangers.remove("a", sockets[0])
    assert strangers.is_crowded("a", 4)
    strangers.remove("a", sockets[1])
    assert not strangers.is_crowded("a", 4)


def burst(senders, name, sockets, at):
    """Say how many frames of somebody are allowed at once, of very many."""
    return sum(senders.take(name, sockets, at) for _ in range(2 * BURST * sockets))


@pytest.mark.parametrize("sockets", [1, 3])
def test_frames_come_back_at_the_rate(sockets):
    """After a burst a sender goes on with ``RATE`` frames a second for each socket, and saves up a burst at most."""
    senders = Senders()

    assert burst(senders, "a", sockets, 1000) == BURST * sockets
    assert burst(senders, "a", sockets, 1000.5) == RATE / 2 * sockets
    assert burst(senders, "a", sockets, 1002.5) == 2 * RATE * sockets
    assert burst(senders, "a", sockets, 9000) == BURST * sockets


@pytest.mark.parametrize("sockets", [1, 3])
def test_haste_is_over_when_half_of_the_burst_has_come_back(sockets):
    """Of the burst of all sockets together."""
    bucket = TokenBucket(sockets)
    for frame in range(BURST * sockets):
        bucket.take(0)
        assert bucket.rested is (frame < BURST * sockets / 2)


def test_a_user_who_comes_back_does_not_begin_anew():
    """What a user has sent over one socket counts for the next, and nobody else's frames are fewer for it."""
    senders = Senders()

    assert burst(senders, "a", 2, 0) == 2 * BURST
    assert senders.take("b", 2, 0)


def test_a_request_is_allowed_whole_and_the_next_ones_wait_for_longer():
    """However many topics a page has: what it took beyond its allowance comes back before anything else is allowed."""
    bucket = TokenBucket()

    assert bucket.take(0.0, 3 * BURST)
    assert not bucket.take(2 * BURST / RATE)
    assert bucket.take((2 * BURST + 1) / RATE)


def test_requests_share_the_allowance_of_frames(monkeypatch, settings):
    """Of their user, and of their address if that has a limit; each counts as a connection and its topics."""
    settings.NOTIFICATIONS = {
        **settings.NOTIFICATIONS,
        "MAX_CONNECTIONS_PER_USER": 1,
        "MAX_CONNECTIONS_PER_ADDRESS": 2,
    }
    monkeypatch.setattr(limits, "users_frames", Senders())
    monkeypatch.setattr(limits, "addresses_frames", Senders())
    asks = [Pace(lambda: 0.0).take_request(user, "192.0.2.1", BURST - limits.REQUEST) for user in ("a", "a", "b", "c")]

    assert asks == [True, False, True, False]


def test_without_a_limit_or_a_name_frames_are_not_counted():
    """0 sockets are any number; before it has authenticated a socket has no user."""
    senders = Senders()

    assert all(senders.take("a", 0, 0) and senders.take(None, 1, 0) for _ in range(10 * BURST))
    assert senders._buckets == {}


def test_of_very_many_senders_the_quietest_are_forgotten(monkeypatch):
    """Memory is bounded, and active senders are still counted."""
    monkeypatch.setattr(limits, "MAX_SENDERS", 3)
    senders = Senders()
    burst(senders, "hasty", 1, 0)
    for n in range(10):
        senders.take(f"quiet {n}", 1, 0)
        assert not senders.take("hasty", 1, 0)

    assert len(senders._buckets) == 3


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def pace(clock, monkeypatch):
    """The pace of a socket, in a process that has seen no other."""
    for name in ("users_frames", "addresses_frames", "guests_frames"):
        monkeypatch.setattr(limits, name, Senders())
    return Pace(clock)


def send(pace, frames):
    """Send some frames at once; return how many were allowed."""
    return sum(pace.take("user", "192.0.2.1") for _ in range(frames))


def one_frame(pace, user, address, **guest):
    return pace.take(user, address, **guest)


def request(pace, user, address, **guest):
    return pace.take_request(user, address, 0, **guest)


@pytest.mark.parametrize(("ask", "allowed"), [(one_frame, BURST), (request, BURST / limits.REQUEST)])
def test_the_guests_of_an_address_may_send_together_what_a_user_may(pace, clock, ask, allowed, settings):
    """Whoever has no account opens many connections as easily as one; users and other addresses have their own."""
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "MAX_CONNECTIONS_PER_USER": 1, "MAX_CONNECTIONS_PER_ADDRESS": 0}

    def asked(address, user=None, **guest):
        socket = Pace(clock)
        return sum(ask(socket, user, address, **guest) for _ in range(BURST + 1))

    assert [asked("192.0.2.1", guest=True) for _ in range(2)] == [allowed, 0]
    assert asked("192.0.2.2", guest=True) == allowed
    assert asked("192.0.2.1", "user") == allowed

    clock.now += 1
    assert asked("192.0.2.1", guest=True) == RATE * allowed / BURST


def test_frames_beyond_the_rate_are_counted_until_the_haste_is_over(pace, clock):
    """Whoever pauses until half of the burst has come back was hasty once; whoever goes on at the rate still is."""
    assert send(pace, BURST) == BURST
    assert pace.refused == 0
    assert send(pace, 7) == 0
    assert pace.refused == 7

    clock.now += 1
    assert send(pace, int(RATE) + 3) == RATE
    assert pace.refused == 10

    clock.now += BURST / RATE / 2
    assert send(pace, 1) == 1  # which leaves less than half
    assert pace.refused == 10

    clock.now += 2.1 / RATE
    assert send(pace, 1) == 1
    assert pace.refused == 0


@pytest.mark.parametrize("setting", ["MAX_CONNECTIONS_PER_USER", "MAX_CONNECTIONS_PER_ADDRESS"])
def test_sockets_of_one_user_or_address_share_what_so_many_may_send(pace, clock, setting, settings):
    """Each new socket has a burst of its own, and all together have that of as many as there may be."""
    others = {"MAX_CONNECTIONS_PER_USER": 0, "MAX_CONNECTIONS_PER_ADDRESS": 0}
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, **others, setting: 2}

    assert [send(socket, BURST + 1) for socket in (pace, Pace(clock), Pace(clock))] == [BURST, BURST, 0]
