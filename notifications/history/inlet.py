"""
The inlet: a stream to which other programs append messages that must not be lost though no listener runs. Pure.

    XADD notifications:inlet MAXLEN '~' 100000 '*' topic user:42 data '{"action":"notice",…}'

An entry that is in the stream has not been published; publishing it and deleting it are one step. So no position has
to be kept of how far anybody has read: whoever holds the lease takes what is there, from the oldest on. If it is not
known whether a step was done, one looks again, and what was published is not there any more. What is late, because it
was paused or its packet was, names entries that are gone, or comes with the token of a lease that has ended, and does
nothing. Both sides of the step are kept by one server, so a restart from older data, or a failover to a replica that
lags behind, goes back before the step as a whole: the entry is there again, and is published again, in a new epoch.

Each shard has an inlet, and an entry may be for a topic of any. One of another shard, which may be on another server,
is published there first, in one step with a note of its id; then it is deleted here. Whoever finds it still here, after
any time, finds the note there as well, and only deletes it.

Entries are deleted from the oldest on, which gives their memory back block by block; the stream stays as a key of some
hundred bytes.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from ..exceptions import MessageError
from ..topics import Topic

INLET: Final = "inlet"
"""The internal name of the stream."""
REFUSED: Final = "inlet:refused"
"""The internal name of the stream of entries that cannot be published."""
MAX_REFUSED: Final = 1000
"""Entries kept there; the oldest are dropped."""
NOTE_TTL: Final = 7 * 24 * 3600
"""Seconds for which it is remembered that an entry was published in another shard, if nobody has deleted it since: no
listener may run for days. Once it is deleted, ``IDEMPOTENCY_TTL``."""
MAX_ENTRIES: Final = 200
MAX_BYTES: Final = 256 * 1024
"""What is read at once at most; the entry that exceeds the bytes is the last."""
MAX_DROPPED: Final = 10_000
"""Entries that are dropped in one step when there are more than ``INLET_SIZE``."""
MARGIN: Final = 4096
"""Bytes that an entry may have besides the largest message: topic, key and the names of its fields."""
WORD_BYTES: Final = 32
"""Bytes that each field, and each value, counts besides its own, so that many small ones are not few bytes."""
MAX_KEPT_WORDS: Final = 32
"""Fields and values of a refused entry that are kept with it; of one that has more, or is too large, none."""

_REQUIRED: Final = frozenset({b"topic", b"data"})
_ALLOWED: Final = _REQUIRED | {b"idempotency_key"}


class Entry(NamedTuple):
    """
    An entry as it was read.

    Attributes:
        id: Its id in the stream.
        size: Its bytes, see ``size_of``.
        words: Its fields and values in turn; None if it is too large to be read.

    """

    id: str
    size: int
    words: list[bytes] | None


class Waiting(NamedTuple):
    """
    What waits in the inlet.

    Attributes:
        entries: The oldest of them, in their order.
        amount: How many there are.
        age: Seconds for which the oldest has waited.
        dropped: How many were dropped just now, because there were too many; then ``entries`` is empty.

    """

    entries: list[Entry]
    amount: int = 0
    age: float = 0.0
    dropped: int = 0


class Checked(NamedTuple):
    """
    An entry, and what is to become of it.

    Attributes:
        id: Its id in the stream.
        topic: Where to publish it; None if it is refused.
        tail: The ``tail`` of its frame.
        group: As in ``Store.publish``.
        idempotency_key: As in ``Store.publish``.
        refusal: Why it is refused.

    """

    id: str
    topic: Topic | None
    tail: bytes = b""
    group: str | None = None
    idempotency_key: str | None = None
    refusal: str = ""


class Outcome(NamedTuple):
    """
    What became of a batch.

    Attributes:
        published: Entries that were published, or had been under the same idempotency key.
        refused: Ids of entries that were set aside.
        refusal: Why the rest is still in the inlet; empty if there is no rest.

    """

    published: int
    refused: list[str]
    refusal: str = ""


def size_of(words: list[bytes]) -> int:
    """Return the bytes of an entry."""
    return sum(len(word) + WORD_BYTES for word in words)


def fields_of(entry: Entry) -> dict[bytes, bytes]:
    """
    Return the fields of an entry: ``topic``, ``data`` and perhaps ``idempotency_key``.

    Raises:
        MessageError: It has others, or is too large.

    """
    if entry.words is None:
        raise MessageError(f"{entry.size} bytes are too many for an entry of the inlet")
    names = entry.words[::2]
    fields = dict(zip(names, entry.words[1::2], strict=True))
    if len(fields) < len(names) or not _REQUIRED <= fields.keys() <= _ALLOWED:
        raise MessageError("an entry of the inlet has the fields topic and data, and may have idempotency_key")
    return fields
