"""What one socket, one user and one address may ask of the server."""

from __future__ import annotations

import time
from collections import Counter
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Any, Final

from .conf import settings

MAX_SUBSCRIPTIONS: Final = 100
"""Topics of one socket beside its user's own."""
MAX_WAITING_FRAMES: Final = 200
"""Frames that may wait while an authorisation is under way."""
MAX_INVALID_FRAMES: Final = 10
"""Frames in a row that could not be read after which the socket is closed."""
MAX_REFUSED_FRAMES: Final = 200
"""Frames beyond the rate, before half of the burst has come back, after which the socket is closed."""
BURST: Final = 200
"""Frames that may come at once: a page that opens with 100 uploads subscribes to all of them."""
RATE: Final = 20.0
"""Frames a second in the long run."""
MAX_SENDERS: Final = 10_000
"""Users, or addresses, whose haste is remembered; the ones that have sent nothing for longest are forgotten."""


class TokenBucket:
    """Allows ``BURST`` frames at once and ``RATE`` a second in the long run, for each of some sockets."""

    __slots__ = ("_at", "_sockets", "_tokens")

    def __init__(self, sockets: int = 1) -> None:
        self._sockets = sockets
        self._tokens = float(BURST * sockets)
        self._at = time.monotonic()

    @property
    def rested(self) -> bool:
        """Whether the haste is over: half of the burst has come back."""
        return self._tokens >= BURST * self._sockets / 2

    def take(self) -> bool:
        """Say whether one more is allowed now, and count it if so."""
        now = time.monotonic()
        self._tokens = min(BURST * self._sockets, self._tokens + (now - self._at) * RATE * self._sockets)
        self._at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class Senders:
    """
    The frames of users, or of addresses, over all their sockets in this process.

    Each may send what as many sockets as it may have could send: who comes back with new sockets does not begin anew.
    """

    def __init__(self) -> None:
        self._buckets: dict[str, TokenBucket] = {}

    def take(self, name: str | None, sockets: int) -> bool:
        """Say whether one more frame is allowed, and count it if so; ``sockets`` is how many it may have, 0 any."""
        if name is None or not sockets:
            return True
        bucket = self._buckets.pop(name, None) or TokenBucket(sockets)
        self._buckets[name] = bucket  # behind all who have sent nothing since
        if len(self._buckets) > MAX_SENDERS:
            del self._buckets[next(iter(self._buckets))]
        return bucket.take()


class Pace:
    """
    How fast one socket sends, and with it its user and its address.

    Attributes:
        refused: Frames that were too many, since the haste was last over.

    """

    __slots__ = ("_bucket", "refused")

    def __init__(self) -> None:
        self._bucket = TokenBucket()
        self.refused = 0

    def take(self, user: str | None, address: str | None) -> bool:
        """Say whether one more frame is allowed now, and count it."""
        if (
            self._bucket.take()
            and users_frames.take(user, settings.MAX_CONNECTIONS_PER_USER)
            and addresses_frames.take(address, settings.MAX_CONNECTIONS_PER_ADDRESS)
        ):
            if self._bucket.rested:
                self.refused = 0
            return True
        self.refused += 1
        return False


users_frames: Final = Senders()
addresses_frames: Final = Senders()


class Addresses:
    """Counts the open sockets of this process by the address they come from."""

    def __init__(self) -> None:
        self._open: Counter[str] = Counter()

    def take(self, address: str | None, limit: int) -> bool:
        """Say whether one more is allowed, and count it if so, until ``give_back``; a limit of 0 is none."""
        if address is not None:
            if limit and self._open[address] >= limit:
                return False
            self._open[address] += 1
        return True

    def give_back(self, address: str | None) -> None:
        if address is not None:
            self._open[address] -= 1
            if not self._open[address]:
                del self._open[address]


addresses: Final = Addresses()


def address_of(scope: dict[str, Any]) -> str | None:
    """
    Name where a socket comes from, as the web server says.

    Of an IPv6 address it is the network of 64 bits: whoever has one has all of its addresses. None when the server
    does not know, as behind a Unix socket.
    """
    host, *_ = scope.get("client") or ("",)
    try:
        address = ip_address(host)
    except ValueError:
        return None
    if isinstance(address, IPv6Address) and address.ipv4_mapped is None:
        return str(ip_network((address, 64), strict=False))
    return str(getattr(address, "ipv4_mapped", None) or address)
