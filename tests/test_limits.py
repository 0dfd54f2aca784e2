"""How many sockets an address may have, and what an address is."""

import pytest

from notifications import limits
from notifications.limits import BURST, Addresses, Senders, address_of


@pytest.mark.parametrize(
    ("client", "address"),
    [
        (["192.0.2.1", 1234], "192.0.2.1"),
        (("192.0.2.1", 1234), "192.0.2.1"),
        (["::ffff:192.0.2.1", 1], "192.0.2.1"),
        (["2001:db8:1:2:3:4:5:6", 1], "2001:db8:1:2::/64"),
        (["2001:db8:1:2::9", 1, 0, 0], "2001:db8:1:2::/64"),
        (["fe80::1%eth0", 1], "fe80::/64"),
        (None, None),
        ([], None),
        ("", None),
        (["testclient", 50000], None),
        ([None, 1], None),
    ],
    ids=repr,
)
def test_the_address_is_what_the_server_says(client, address):
    """An IPv6 client is its network; a server that does not know, and a Unix socket, name nobody."""
    assert address_of({"client": client}) == address


def test_no_header_is_believed():
    """Whoever connects may write what he likes into X-Forwarded-For."""
    scope = {"client": ["192.0.2.1", 1], "headers": [(b"x-forwarded-for", b"198.51.100.7")]}

    assert address_of(scope) == "192.0.2.1"
    assert address_of({"headers": []}) is None


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


def test_no_limit_and_no_address_are_always_let_in():
    """0 is any number; who has no address is not counted."""
    addresses = Addresses()

    assert all(addresses.take("a", 0) for _ in range(1000))
    assert all(addresses.take(None, 1) for _ in range(3))
    addresses.give_back(None)


def test_a_user_who_comes_back_does_not_begin_anew():
    """What a user has sent over one socket counts for the next, and nobody else's frames are fewer for it."""
    senders = Senders()

    assert [senders.take("a", 2) for _ in range(2 * BURST + 1)] == [True] * 2 * BURST + [False]
    assert not senders.take("a", 2)
    assert senders.take("b", 2)


def test_without_a_limit_or_a_name_frames_are_not_counted():
    """0 sockets are any number; before it has authenticated a socket has no user."""
    senders = Senders()

    assert all(senders.take("a", 0) and senders.take(None, 1) for _ in range(10 * BURST))
    assert senders._buckets == {}


def test_of_very_many_senders_the_quietest_are_forgotten(monkeypatch):
    """Memory is bounded, and who sends goes on being counted."""
    monkeypatch.setattr(limits, "MAX_SENDERS", 3)
    senders = Senders()
    for _ in range(BURST):
        senders.take("hasty", 1)
    for n in range(10):
        senders.take(f"quiet {n}", 1)
        assert not senders.take("hasty", 1)

    assert len(senders._buckets) == 3
