"""
Which topics may have had a message since: the comparison that comes before all others. Pure.

The topics of a shard are divided into buckets. Each bucket has a mark, which names the last message that was kept on
any of its topics. Where that is the same as before, nothing was published, so the histories need not be looked at.

The first mark belongs to no bucket. Who cannot write a mark in its place, as without the right to, writes that one over
all others: what was published meanwhile is then not known, whoever marks what afterwards.
"""

from __future__ import annotations

import hashlib
from collections.abc import Set
from typing import Final, NamedTuple

BUCKETS: Final = 4096
"""Buckets of a site, in all its shards. Where 200 topics have had a message since, 5 % of the marks have changed, and
so many of the quiet topics are looked at as well."""
_TOPIC_BYTES, _ID_BYTES = 4, 12
WIDTH: Final = _TOPIC_BYTES + _ID_BYTES
"""Bytes of a mark."""
SIZE: Final = (1 + BUCKETS) * WIDTH
"""Bytes of all marks of a site that is one shard, 64 KiB, which a process reads each time."""


class Place(NamedTuple):
    """
    Where the marks of a topic's messages are written, and how they begin.

    Attributes:
        bucket: Its bucket, from 1, which other topics share.
        name: Tells it from those.

    """

    bucket: int
    name: bytes

    @property
    def offset(self) -> int:
        """The offset of the bucket's mark, in bytes."""
        return self.bucket * WIDTH

    def mark(self, id_: str) -> bytes:
        """Return the mark of a message; ``stamp.lua`` makes the same."""
        return self.name + id_.encode()[-_ID_BYTES:].rjust(_ID_BYTES, b"0")


def place_of(topic: str, shards: int = 1) -> Place:
    """Return the place of a topic, given as text, among the marks of its shard; there are so many shards."""
    digest = hashlib.sha256(topic.encode()).digest()
    return Place(1 + int.from_bytes(digest[:2]) % (BUCKETS // shards), digest[2 : 2 + _TOPIC_BYTES])


class Changes(NamedTuple):
    """
    The marks of all buckets.

    Attributes:
        run: Identifies the server that answered; those of another one are not compared.
        marks: The one of no bucket, and those of the buckets in order; those at the end that nothing has changed may
            be missing. None if they are not known.

    """

    run: str
    marks: bytes | None

    def since(self, earlier: Changes | None) -> Set[int] | None:
        """Return the buckets whose marks have changed; None if that is not known."""
        if earlier is None or earlier.marks is None or self.marks is None or earlier.run != self.run:
            return None
        if self.marks == earlier.marks:
            return frozenset()
        now, before = self.marks.ljust(SIZE, b"\0"), earlier.marks.ljust(SIZE, b"\0")
        if len(now) > SIZE or len(before) > SIZE or now[:WIDTH] != before[:WIDTH]:
            return None  # somebody else has written there, or could not write in place
        return {at // WIDTH for at in range(0, SIZE, WIDTH) if now[at : at + WIDTH] != before[at : at + WIDTH]}
