"""
The number of shards that all listeners of a site agree on.

Listeners with different ``SHARDS`` know different shards: a topic would have two holders, who would
both stamp what is published on it. So the number in use is a key in Redis, which living listeners
renew, and one with another number takes no lease before it has ended.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from ..broker import pipeline
from ..broker.clients import FAILURES
from ..broker.script import Script
from ..logs import describe
from ..topics import internal_name
from .lease import TTL as LEASE_TTL

logger = logging.getLogger(__name__)

RENEW_INTERVAL: Final = 1.0
"""Seconds between two renewals."""
TTL: Final = 8.0
"""Seconds after which the number of listeners that have died is no longer in use."""
VALID: Final = TTL - LEASE_TTL - 1.0
"""Seconds after a renewal in which a lease may be taken: it ends before the number does."""

_AGREE: Final = Script("agree")


class Agreement:
    """
    The number, as one listener sees it.

    Attributes:
        other: The number of the site's other listeners, if that is not this one's; otherwise empty.

    """

    def __init__(self, shards: int) -> None:
        self.other = ""
        self._shards = shards
        self._key = internal_name("shards")
        self._until = 0.0

    @property
    def valid(self) -> bool:
        """Whether a lease may be taken now."""
        return asyncio.get_running_loop().time() < self._until

    async def renew(self) -> None:
        """Ask for the number in use; without an answer it stays as it was, until it ends."""
        now = asyncio.get_running_loop().time()
        try:
            found = await self._ask(TTL)
        except FAILURES as error:
            logger.debug("could not ask for the number of shards: %s", describe(error))
            return
        if found == str(self._shards):
            self.other, self._until = "", now + VALID
        else:
            self.other, self._until = found, 0.0

    async def end(self) -> None:
        """Let listeners with another number begin at once; raises ``clients.FAILURES``."""
        self._until = 0.0
        await self._ask(0.0)

    async def _ask(self, ttl: float) -> str:
        reply: bytes = await pipeline.arun(_AGREE, [self._key], [self._shards, int(ttl * 1000)], again=True)
        return reply.decode()
