"""The lease in Redis that decides which listener stamps and forwards."""

from __future__ import annotations

import asyncio
import secrets
import time
from contextlib import suppress
from typing import Final

import redis

from ..broker import pipeline
from ..broker.clients import FAILURES
from ..broker.script import Script
from ..history.store import term_key
from ..topics import internal_name

TTL: Final = 3.0
"""Seconds after which the lease of a holder that has died, hangs or is cut off becomes free."""
RENEW_INTERVAL: Final = 1.0
"""Seconds between renewals; two may fail."""
POLL_INTERVAL: Final = 0.5
"""Seconds between the attempts of a stand-by."""
HEIR_TTL: Final = 2.0
"""Seconds for which only the named successor may take a lease that was given back; four attempts."""
CANDIDATE_TTL: Final = 2.0
"""Seconds after its last attempt for which a stand-by keeps others from a free lease; four attempts."""
NEWCOMER: Final = 1.0
"""Seconds after it has subscribed in which a listener leaves a free lease to others that may only have been paused."""
REMEMBERED: Final = 60.0
"""Seconds after its last attempt or renewal for which a listener is one of them."""

_LEASE: Final = Script("lease")


class Lease:
    """
    The lease, as one listener sees it.

    Each time it is taken it gets a new token. Redis compares the token before it stamps, so a holder that was
    paused and wakes up, or a batch that was delayed in transit, changes nothing.

    Attributes:
        key: Its name in Redis.
        term: Names the period in which one listener has held the lease and every raw message was
            given an id, as Redis last reported it. Empty while messages go out without ids.

    """

    def __init__(self, shard: int = 0, me: str = "", *, ttl: float = TTL, candidate_ttl: float = CANDIDATE_TTL) -> None:
        self.token = self.term = ""
        self.key = internal_name("lease", shard)
        self._candidates = internal_name("candidates", shard)
        self._ttl = ttl
        self._candidate_ttl = candidate_ttl
        self._until = 0.0
        self._me = me or secrets.token_hex(8)
        self._fresh = True
        self._since = time.monotonic()
        self._asking = asyncio.Lock()

    @property
    def held(self) -> bool:
        """Whether this listener holds the lease, as far as it knows."""
        return asyncio.get_running_loop().time() < self._until

    def announcement(self) -> tuple[str, ...]:
        """
        Return the command that registers this listener as a candidate, to be sent before a connection subscribes.

        A listener that subscribes to the same server later then finds this one registered, and leaves the lease to it:
        otherwise messages that only this one has received would be lost.
        """
        command = _LEASE.command(*self._question("", -1, 1, 0), whole=True)
        return tuple(map(str, command))

    async def announce(self) -> None:
        """
        Register this listener as a candidate where the lease is at another server than its subscription.

        While that one is away, nobody gets the lease, and its replica knows no candidates.
        """
        with suppress(*FAILURES):
            await pipeline.arun(_LEASE, *self._question("", -1, 1, 0), again=True)

    def subscribed(self) -> None:
        """Record that this listener is subscribed from now on: a free lease goes to the stand-by subscribed longest."""
        self._fresh = True
        self._since = time.monotonic()

    async def take(self) -> bool:
        """
        Take or renew the lease.

        Returns:
            Whether this listener holds it.

        Raises:
            redis.RedisError, OSError, TimeoutError: Redis cannot be asked; the lease stays as it was until it
                expires.

        """
        async with self._asking:  # a renewal under way must not undo a release
            now = asyncio.get_running_loop().time()
            if not self.held:
                self.token = secrets.token_hex(8)
            try:
                taken, self.term = await self._ask(int(self._ttl * 1000))
            except redis.ResponseError:
                # Redis refuses to write. Then nobody else can take the lease either, and the holder continues.
                if not self.held:
                    raise
                taken = 1
            self._until = now + self._ttl if taken else 0.0
            return self.held

    async def read_term(self) -> str:
        """Read the current ``term``; raises the errors of ``take``."""
        term = await pipeline.acall("GET", term_key(self.key), again=True)
        self.term = term.decode() if term else ""
        return self.term

    def lost(self) -> None:
        """Record that another listener holds the lease, according to Redis."""
        self._until = 0.0

    async def release(self, heir: str = "", handing_over: float = 0.0, *, stands_by: bool = False) -> None:
        """
        Give back the lease at once, and wait for it no longer, so that a stand-by need not wait.

        Whoever asks at the moment gets their answer first. Raises the errors of ``take``.

        Args:
            heir: The id of the listener that is to have it next: for ``HEIR_TTL`` seconds nobody else gets it,
                unless that one has had a gap.
            handing_over: For how many seconds this listener has left what it read to others. An heir that has
                subscribed since may have missed some of it.
            stands_by: Whether it is still subscribed, and so a candidate from now on.

        """
        async with self._asking:
            self._until = 0.0
            await self._ask(0, heir, handing_over, stands_by=stands_by)

    async def _ask(
        self, ttl_ms: int, heir: str = "", handing_over: float = 0.0, *, stands_by: bool = True
    ) -> tuple[int, str]:
        fresh, self._fresh = self._fresh, False
        listened = self._listened() if stands_by else -1
        question = self._question(self.token, ttl_ms, int(fresh), listened, heir, handing_over)
        try:
            taken, term = await pipeline.arun(_LEASE, *question, again=True)
            return int(taken), term.decode()
        except BaseException:
            self._fresh = self._fresh or fresh
            raise

    def _listened(self) -> int:
        """
        Return for how many µs this listener has been subscribed.

        By the monotonic clock, which cannot be set. Redis may not know it; one that held the lease, and has received
        everything, must not count as a newcomer.
        """
        return int((time.monotonic() - self._since) * 1e6)

    def _question(
        self, token: str, ttl_ms: int, fresh: int, listened: int, heir: str = "", handing_over: float = 0.0
    ) -> tuple[list[str], list[str | int]]:
        """Return the script's keys and arguments."""
        keys = [self.key, self._candidates, term_key(self.key)]
        candidate_ttl, heir_ttl = int(self._candidate_ttl * 1000), int(HEIR_TTL * 1000)
        asks: list[str | int] = [token, ttl_ms, self._me, fresh, candidate_ttl, listened, secrets.token_hex(8)]
        asks += [heir, heir_ttl, int(handing_over * 1e6), int(NEWCOMER * 1000), int(REMEMBERED * 1000)]
        return keys, asks
