"""
The history of a topic: stamping what is published, and reading what was missed.

An id is ``<epoch>-<n>``: within an epoch ``n`` counts without holes, so from two ids of one epoch anyone
can tell next, duplicate and hole. Another epoch means that the count began anew, and nothing more.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final, NamedTuple, Self

import msgspec
from django.core.signals import setting_changed
from msgspec import Struct

from . import connections, pipeline
from .conf import settings
from .connections import RUN, STARTED, Script
from .topics import Topic, internal_name, told

STAMPED: Final = "stamped"
"""The internal channel on which everything that has been stamped travels, whoever stamped it."""
IDEMPOTENCY_TTL: Final = 300
"""Seconds that an idempotency key is remembered."""
PAGE_BYTES: Final = 256 * 1024
"""Bytes of frames that one read brings at most, and one frame beyond."""

READ_TIMEOUT: Final = 3.0
"""Seconds that a read may take: a socket can wait longer than a web request."""

_PUBLISH: Final = Script("stamp", "publish")
_BATCH: Final = Script("stamp", "batch")
_LOOK: Final = Script("look")
_PAGE: Final = Script("page")


class Position(NamedTuple):
    """
    Where a reader is in a topic: the id of the last message it has had.

    ``n`` 0 is before the first message of an epoch. Pairs of integers: as text, 10 would come before 9.
    """

    epoch: int
    n: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``"<epoch>-<n>"``; ValueError if it is not that."""
        epoch, _, n = text.partition("-")
        return tuple.__new__(cls, (int(epoch), int(n)))  # as the class would, in half the time

    @classmethod
    def since(cls, text: str | None) -> Self | str | None:
        """Read a frame's ``since``: ``"last"`` and None stay what they are."""
        return text if text is None or text == "last" else cls.parse(text)

    def __str__(self) -> str:
        return f"{self.epoch}-{self.n}"


class Where(NamedTuple):
    """
    What a history holds.

    Attributes:
        run: Which Redis says so.
        started: When it was up at the latest, in ms.
        now: Redis's time in ms.
        first, last: The ids of its ends; None if it has no entry.
        ttl: Seconds until it is gone, if nothing more is published.
        whole: The last entry was written by this Redis, so that none after it can have been lost with another.

    """

    run: str
    started: int
    now: int
    first: Position | None
    last: Position | None
    ttl: float
    whole: bool

    @property
    def position(self) -> Position:
        """Where a reader is who has had everything."""
        return self.last or Position(self.now, 0)


class Frame(NamedTuple):
    """One kept message, as browsers receive it."""

    position: Position
    text: str


class Page(NamedTuple):
    """
    What follows a position.

    Attributes:
        run: Which Redis says so.
        now: Redis's time in ms.
        first, last: The ends of the history when it was read; None if it has no entry.
        whole: As in ``Where``.
        frames: In their order. Unless the last of them is ``last`` there is more to read.
        ttl: Seconds until the history is gone, if nothing more is published.

    """

    run: str
    now: int
    first: Position | None
    last: Position | None
    whole: bool
    frames: list[Frame]
    ttl: float = 0.0


class Stamped(Struct, frozen=True, gc=False):
    """
    What travels on the internal channel; a struct, because it is made for each message and C makes it.

    Attributes:
        road: ``"p"`` from ``publish_*``, ``"r"`` raw, ``"u"`` raw and not kept.
        topic: As text.
        position: None for ``"u"``.
        frame: What browsers receive.
        run: Which Redis stamped it; empty if that is not known.
        at: When it was published, in µs, if it is to be timed; otherwise 0.

    """

    road: str
    topic: str
    position: Position | None
    frame: bytes
    run: str = ""
    at: int = 0


def head(topic: str) -> bytes:
    """Write the beginning of a topic's frames, up to the id; ``topic`` is what browsers are told that it is."""
    return b'{"_meta":{"topic":' + msgspec.json.encode(topic) + b',"id":"'


def tail(data: bytes) -> bytes:
    """Write the rest of a frame, from the comma after ``_meta`` on; ``data`` is the message's JSON object."""
    rest = data[1:]
    return rest if rest.strip(b" \t\r\n") == b"}" else b"," + rest


def tail_of(stamped: Stamped) -> bytes:
    """Read back the ``tail`` that a frame on the internal channel was made with."""
    if stamped.position is None:
        return tail(stamped.frame)
    return stamped.frame[len(head(told(stamped.topic))) + len(str(stamped.position)) + 2 :]


@lru_cache(maxsize=10_000)
def _fixed(topic: Topic) -> tuple[str, int, int, str, bytes]:
    """Write what all messages of a topic have in common: key, size, age in ms, name, and beginning of the frame."""
    kind, name = settings.kinds[topic.kind], str(topic)
    return topic.history_key, kind.HISTORY_SIZE, kind.HISTORY_TTL * 1000, name, head(topic.told)


def publish_command(topic: Topic, data: bytes, idempotency_key: str | None) -> tuple[Script, list[str], list[Any]]:
    """
    Prepare the script call that keeps one message and tells it to everybody; its reply is the id.

    One more argument, ``timed``, may follow.
    """
    key, size, ttl, name, begin = _fixed(topic)
    keys = [key]
    if idempotency_key is not None:
        keys.append(internal_name(f"once:{len(name)}:{name}:{idempotency_key}"))
    arguments = [
        RUN,
        size,
        ttl,
        begin,
        tail(data) if size else data,
        internal_name(STAMPED),
        name,
        topic.channel,
        IDEMPOTENCY_TTL * 1000,
    ]
    return _PUBLISH, keys, arguments


def timed(at: int) -> str:
    """Write the argument that has a published message timed from ``at``, in µs."""
    return f"@{at}"


NOT_HOLDER: Final = -1
"""What ``stamp_batch`` says when somebody else has the lease."""


async def stamp_batch(lease: str, token: str, number: int, messages: list[tuple[Topic, bytes]]) -> tuple[int, str]:
    """
    Stamp raw messages, each a topic and the ``tail`` of its frame, in one step, if ``token`` has the lease.

    Returns:
        How many Redis has kept, and why it did not keep the others. -1 if somebody else has the lease,
        -2 if a batch of this number was done before.

    Raises:
        redis.RedisError, OSError, TimeoutError: Perhaps it was done, and a full Redis cannot note its number: look at
            what has come back before it is asked for again.

    """
    keys = [lease]
    arguments: list[Any] = [RUN, internal_name(STAMPED), token, number]
    for topic, rest in messages:
        key, size, ttl, name, begin = _fixed(topic)
        keys.append(key)
        arguments += (size, ttl, name, begin, rest)
    stamped, refusal = await pipeline.arun(_BATCH, keys, arguments)
    return int(stamped), refusal.decode()


def read_stamped(data: bytes) -> Stamped:
    """Read what the scripts publish on the internal channel; ValueError if it is something else."""
    size, id_, run, rest = data.split(b" ", 3)
    length = int(size[1:])
    position = None if id_ == b"-" else Position.parse(id_.decode())
    run, _, at = run.partition(b"@")
    run_id = "" if run == b"-" else run.decode()
    return Stamped(chr(size[0]), rest[:length].decode(), position, rest[length:], run_id, int(at or 0))


async def server() -> str:
    """Say which Redis answers: its ``run``."""
    reply = await pipeline.arun(_LOOK, [], [RUN, STARTED], READ_TIMEOUT, again=True)
    return str(reply[0].decode())


async def look(topics: list[Topic]) -> list[Where]:
    """Say where the histories of topics are; brings no frames, so it is cheap for many."""
    keys = [topic.history_key for topic in topics]
    return _where(await pipeline.arun(_LOOK, keys, [RUN, STARTED], READ_TIMEOUT, again=True))


def position(topic: Topic) -> Position:
    """
    Say where a reader of a topic is who has had everything; for web requests, which take it along in their page.

    Raises:
        redis.RedisError, OSError: As ``connections.FAILURES``; at once when Redis has just let another caller wait.

    """
    with connections.breaker.guarding():
        [where] = _where(connections.run(_LOOK, [topic.history_key], [RUN, STARTED], again=True))
    return where.position


def _where(reply: list[Any]) -> list[Where]:
    run, started, now, ends = reply[0].decode(), int(reply[1]), int(reply[2]), reply[3:]
    return [
        Where(run, started, now, _position(first), _position(last), int(ttl) / 1000, bool(whole))
        for first, last, ttl, whole in zip(*[iter(ends)] * 4, strict=True)
    ]


async def read(topic: Topic, after: Position) -> Page:
    """Read what follows a position, ``PAGE_BYTES`` at most."""
    reply = await pipeline.arun(_PAGE, [topic.history_key], [str(after), PAGE_BYTES, RUN], READ_TIMEOUT, again=True)
    frames = [Frame(Position.parse(reply[at].decode()), reply[at + 1].decode()) for at in range(6, len(reply), 2)]
    run, now, first, last, whole, ttl = reply[:6]
    return Page(run.decode(), int(now), _position(first), _position(last), bool(whole), frames, int(ttl) / 1000)


def _position(id_: bytes) -> Position | None:
    return Position.parse(id_.decode()) if id_ else None


def _forget(*, setting: str, **_: object) -> None:
    if setting == "NOTIFICATIONS":
        _fixed.cache_clear()


setting_changed.connect(_forget, dispatch_uid="notifications.history")
