"""
Stamped messages: how a frame is made of a message and its id, and how it travels to the listeners. Pure.

    {"_meta":{"topic":"user:7","id":"1764153600000-3"},"action":"notice"}
    └───────────── head ────────────┘└──── id ─────┘  └────── tail ─────┘
"""

from __future__ import annotations

from typing import Final

import msgspec
from msgspec import Struct

from ..topics import told
from .position import Position

STAMPED: Final = "stamped"
"""The internal channel on which everything that has been stamped travels, whoever stamped it."""


class Stamped(Struct, frozen=True, gc=False):
    """
    What travels on the internal channel; a struct, because it is made for each message and C makes it.

    Attributes:
        road: ``"p"`` from ``publish_*``, ``"r"`` raw, ``"u"`` not kept.
        topic: As text.
        position: None for ``"u"``.
        frame: What browsers receive.
        run: Which server stamped it; empty if that is not known.
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


def read_stamped(data: bytes) -> Stamped:
    """Read what is published on the internal channel; ValueError if it is something else."""
    size, id_, run, rest = data.split(b" ", 3)
    length = int(size[1:])
    position = None if id_ == b"-" else Position.parse(id_.decode())
    run, _, at = run.partition(b"@")
    run_id = "" if run == b"-" else run.decode()
    return Stamped(chr(size[0]), rest[:length].decode(), position, rest[length:], run_id, int(at or 0))
