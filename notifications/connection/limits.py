"""The limits of one connection, one user and one address."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Final, Protocol

from ..conf import Settings, settings

MAX_SUBSCRIPTIONS: Final = Settings.MAX_SUBSCRIPTIONS
"""Topics of one connection besides its user's own, unless the site sets another number."""
GUEST_SUBSCRIPTIONS: Final = 20
"""Topics of a guest's connection, or ``MAX_SUBSCRIPTIONS`` if that is less: nobody answers for a guest."""
MAX_WAITING_FRAMES: Final = 200
"""Frames that may wait while a permission is checked; this app's client leaves at most 150 unanswered."""
MAX_INVALID_FRAMES: Final = 10
"""Unreadable frames in a row after which a connection is closed."""
MAX_REFUSED_FRAMES: Final = 200
"""Frames above the rate after which a connection is closed, unless half of the burst has come back meanwhile."""
BURST: Final = 200
"""Frames that may arrive at once. This app's client sends at most 150, whatever the site's
``MAX_SUBSCRIPTIONS``, and keeps to the rate: only other programs exceed it."""
RATE: Final = 20.0
"""Frames a second in the long run."""
REQUEST: Final = 10
"""A request over HTTP counts as so many frames, besides one for each of its topics: it is a connection as well."""
MAX_SENDERS: Final = 10_000
"""Users, or addresses, whose rate is remembered; those that have been silent longest are forgotten first."""
SHARE_OF_AN_ADDRESS: Final = 2
"""One address may take half of the places for connections that have not authenticated."""


class TokenBucket:
    """Allows ``BURST`` frames at once and ``RATE`` a second in the long run, times a number of connections."""

    __slots__ = ("_at", "_sockets", "_tokens")

    def __init__(self, sockets: int = 1) -> None:
        self._sockets = sockets
        self._tokens = float(BURST * sockets)
        self._at = 0.0

    @property
    def rested(self) -> bool:
        """Whether half of the burst has come back."""
        return self._tokens >= BURST * self._sockets / 2

    def take(self, now: float, amount: int = 1) -> bool:
        """
        Return whether more is allowed, and count it if so.

        Args:
            now: Seconds of any clock.
            amount: How many. They are allowed together, even if that is more than is left: the next
                ones have to wait for longer.

        """
        self._tokens = min(BURST * self._sockets, self._tokens + (now - self._at) * RATE * self._sockets)
        self._at = now
        if self._tokens < 1:
            return False
        self._tokens -= amount
        return True


class Senders:
    """
    The frames of users, or of addresses, over all their connections in this process.

    Each has the allowance of as many connections as it may have; reconnecting does not reset it.
    """

    def __init__(self) -> None:
        self._buckets: dict[str, TokenBucket] = {}

    def take(self, name: str | None, sockets: int, now: float, amount: int = 1) -> bool:
        """
        Return whether more frames are allowed, and count them if so.

        Args:
            name: The user or the address; None is not limited.
            sockets: How many connections it may have; 0 for any number.
            now: Seconds of any clock.
            amount: How many frames; see ``TokenBucket.take``.

        """
        if name is None or not sockets:
            return True
        bucket = self._buckets.pop(name, None) or TokenBucket(sockets)
        self._buckets[name] = bucket  # at the end, as the most recently active
        if len(self._buckets) > MAX_SENDERS:
            del self._buckets[next(iter(self._buckets))]
        return bucket.take(now, amount)


class Pace:
    """
    How fast one connection sends, and with it its user and its address.

    Attributes:
        refused: Frames above the rate since half of the burst had last come back.

    """

    __slots__ = ("_bucket", "_clock", "refused")

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._bucket = TokenBucket()
        self._clock = clock
        self.refused = 0

    def take(self, user: str | None, address: str | None, *, guest: bool = False) -> bool:
        """Return whether one more frame is allowed now, and count it."""
        now = self._clock()
        if (
            self._bucket.take(now)
            and users_frames.take(user, settings.MAX_CONNECTIONS_PER_USER, now)
            and (not guest or guests_frames.take(address, settings.MAX_CONNECTIONS_PER_USER, now))
            and addresses_frames.take(address, settings.MAX_CONNECTIONS_PER_ADDRESS, now)
        ):
            if self._bucket.rested:
                self.refused = 0
            return True
        self.refused += 1
        return False

    def take_request(self, user: str | None, address: str | None, subscriptions: int, *, guest: bool = False) -> bool:
        """
        Return whether a request over HTTP is allowed now, and count it.

        The connection's own limit does not apply, because it hears nothing else.
        """
        now, amount = self._clock(), REQUEST + subscriptions
        return (
            users_frames.take(user, settings.MAX_CONNECTIONS_PER_USER, now, amount)
            and (not guest or guests_frames.take(address, settings.MAX_CONNECTIONS_PER_USER, now, amount))
            and addresses_frames.take(address, settings.MAX_CONNECTIONS_PER_ADDRESS, now, amount)
        )


users_frames: Final = Senders()
addresses_frames: Final = Senders()
guests_frames: Final = Senders()
"""By address: the guests of one have together what one user has."""


class Guests:
    """Counts the open connections of this process that are guests'."""

    def __init__(self) -> None:
        self.open = 0

    def take(self, limit: int) -> bool:
        """Return whether one more is allowed, and if so count it until ``give_back``; a limit of 0 is none."""
        if limit and self.open >= limit:
            return False
        self.open += 1
        return True

    def give_back(self) -> None:
        self.open -= 1


guests: Final = Guests()


class Addresses:
    """Counts the open connections of this process by the address they come from."""

    def __init__(self) -> None:
        self._open: Counter[str] = Counter()

    def take(self, address: str, limit: int) -> bool:
        """Return whether one more is allowed, and if so count it until ``give_back``; a limit of 0 is none."""
        if limit and self._open[address] >= limit:
            return False
        self._open[address] += 1
        return True

    def give_back(self, address: str | None) -> None:
        """Count one less; None was never counted."""
        if address is not None:
            self._open[address] -= 1
            if not self._open[address]:
                del self._open[address]


addresses: Final = Addresses()


class Stranger(Protocol):
    """A connection that has not authenticated."""

    @property
    def has_said_nothing(self) -> bool:
        """Whether it has not even begun to authenticate."""

    def give_way(self) -> None:
        """Close it, because others need its place."""


class Strangers:
    """
    The connections that have not authenticated, by address.

    When there is no room, the oldest silent one of the address that has the most is closed: a client that opens many
    pushes out its own, and not the only one of somebody else. Those whose token is being checked stay.
    """

    def __init__(self) -> None:
        self._waiting: dict[str, dict[Stranger, None]] = {}
        self._leaving: dict[Stranger, str] = {}
        """Closed, but still counted: a client need not answer a close, and servers wait for it."""
        self._leaving_of: Counter[str] = Counter()
        self._count = 0

    def is_crowded(self, address: str, limit: int) -> bool:
        """
        Return whether another full set of connections is on its way out, in which case nobody is let in.

        An address has a limited share of these as well, so that it keeps nobody else out.
        """
        if not limit:
            return False
        mine = len(self._waiting.get(address, ())) + self._leaving_of[address]
        return self._count + len(self._leaving) >= 2 * limit or mine >= 2 * max(1, limit // SHARE_OF_AN_ADDRESS)

    def add(self, address: str, stranger: Stranger, limit: int) -> bool:
        """
        Take a place until ``remove``, and return whether there was one.

        Args:
            address: The connection's address; each address has a share of the places.
            stranger: The connection.
            limit: How many places there are; 0 for any number.

        """
        mine = len(self._waiting.get(address, ()))
        if limit and mine >= max(1, limit // SHARE_OF_AN_ADDRESS):
            if not self._make_room(address):
                return False
        elif (
            limit
            and self._count >= limit
            and not self._make_room(max(self._waiting, key=lambda each: len(self._waiting[each])))
        ):
            return False
        self._waiting.setdefault(address, {})[stranger] = None
        self._count += 1
        return True

    def _make_room(self, address: str) -> bool:
        for stranger in self._waiting[address]:
            if stranger.has_said_nothing:
                self.remove(address, stranger)
                self._leaving[stranger] = address
                self._leaving_of[address] += 1
                stranger.give_way()
                return True
        return False

    def remove(self, address: str | None, stranger: Stranger) -> None:
        """Give back a place: the connection has authenticated, or has gone. No error if it had none."""
        if (left := self._leaving.pop(stranger, None)) is not None:
            self._leaving_of[left] -= 1
            if not self._leaving_of[left]:
                del self._leaving_of[left]
        if address is None or stranger not in (waiting := self._waiting.get(address, {})):
            return
        del waiting[stranger]
        self._count -= 1
        if not waiting:
            del self._waiting[address]
