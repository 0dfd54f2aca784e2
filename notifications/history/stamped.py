"""
Stamped messages: how a message and its id become a frame, and how that reaches listeners and sockets. Pure.

    {"_meta":{"topic":"user:7","id":"1764153600000-3"},"action":"notice"}
    └───────────── head ────────────┘└──── id ─────┘  └────── tail ─────┘
"""

from __future__ import annotations

import zlib
from typing import Any, Final

import msgspec
from msgspec import Struct

from ..topics import told
from .position import Position

STAMPED: Final = "stamped"
"""The internal channel on which scripts tell listeners what was stamped."""
ACKNOWLEDGED: Final = b"a"
"""What an ``Acknowledgement`` on that channel begins with."""
LAYER_MESSAGE: Final = "notifications.message"
"""The ``type`` of messages to groups. Channels derives a method name from it, so it never comes from the payload."""


class Stamped(Struct, frozen=True, gc=False):
    """
    A message on the internal channel; a struct, created in C, because there is one per message.

    Attributes:
        road: How it was published: ``"p"`` by ``publish_*``, ``"r"`` raw, ``"u"`` not kept.
        topic: As text.
        position: None if it was not kept.
        frame: What browsers receive.
        run: The ``run`` of the server that stamped it; empty if not known.
        at: When it was published, in µs, if it is to be timed; otherwise 0.

    """

    road: str
    topic: str
    position: Position | None
    frame: bytes
    run: str = ""
    at: int = 0


class Acknowledgement(Struct, array_like=True, frozen=True, gc=False):
    """
    What a script tells all listeners of the raw messages that it has stamped in one step.

    Attributes:
        token: The lease of the listener that had them stamped.
        number: Of its batch.
        delivered: How many of them the script has delivered to their groups; the others follow as ``Stamped``.
        topics: Of each message, as text.
        ids: Of each message; empty if it was not kept.
        digests: Of each message, see ``digest``.

    """

    token: str
    number: int
    delivered: int
    topics: list[str]
    ids: list[str]
    digests: list[int]


_ACKNOWLEDGEMENTS: Final = msgspec.msgpack.Decoder(Acknowledgement)


def read_acknowledgement(data: bytes) -> Acknowledgement:
    """Parse what begins with ``ACKNOWLEDGED`` on the internal channel; raise ValueError for anything else."""
    told = _ACKNOWLEDGEMENTS.decode(memoryview(data)[len(ACKNOWLEDGED) :])
    if not len(told.topics) == len(told.ids) == len(told.digests):
        raise ValueError("an acknowledgement has a topic, an id and a digest of each message")
    return told


def digest(channel: bytes, data: bytes) -> int:
    """Return a number by which listeners recognise a raw message that all of them have read."""
    return zlib.crc32(data, zlib.crc32(channel))


def meta(topic: str) -> bytes:
    """Return the start of what ``publish_*`` sends on a topic's own channel; ``topic`` is its name for browsers."""
    return b'{"_meta":{"topic":' + msgspec.json.encode(topic)


def head(topic: str) -> bytes:
    """Return the start of a topic's frames, up to the id; ``topic`` is its name for browsers."""
    return meta(topic) + b',"id":"'


def tail(data: bytes) -> bytes:
    """Return the rest of a frame, from the comma after ``_meta``; ``data`` is a JSON object."""
    rest = data[1:]
    return rest if rest.strip(b" \t\r\n") == b"}" else b"," + rest


def tail_of(stamped: Stamped) -> bytes:
    """Return the ``tail`` from which a frame on the internal channel was made."""
    if stamped.position is None:
        return tail(stamped.frame)
    return stamped.frame[len(head(told(stamped.topic))) + len(str(stamped.position)) + 2 :]


def read_stamped(data: bytes) -> Stamped:
    """Parse what is published on the internal channel; raise ValueError for anything else."""
    size, id_, run, rest = data.split(b" ", 3)
    length = int(size[1:])
    position = None if id_ == b"-" else Position.parse(id_.decode())
    run, _, at = run.partition(b"@")
    run_id = "" if run == b"-" else run.decode()
    return Stamped(chr(size[0]), rest[:length].decode(), position, rest[length:], run_id, int(at or 0))


def layer_message(stamped: Stamped) -> dict[str, Any]:
    """Return what the channel-layer group of the topic is sent, by a listener or by a script."""
    message: dict[str, Any] = {"type": LAYER_MESSAGE, "topic": stamped.topic, "text": stamped.frame.decode()}
    if stamped.position is not None:
        message["epoch"], message["n"] = stamped.position
        message["run"] = stamped.run
    if stamped.at:
        message["at"] = stamped.at
    return message
