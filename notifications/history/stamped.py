"""
Stamped messages: how a message and its id become a frame, and how that reaches the listeners. Pure.

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
"""The internal channel on which everything that was stamped is published, by whichever process."""


class Stamped(Struct, frozen=True, gc=False):
    """
    A message on the internal channel; a struct, created in C, because there is one per message.

    Attributes:
        road: How it was published: ``"p"`` by ``publish_*``, ``"r"`` raw, ``"u"`` not kept.
        topic: As text.
        position: None for ``"u"``.
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


def head(topic: str) -> bytes:
    """Return the start of a topic's frames, up to the id; ``topic`` is its name for browsers."""
    return b'{"_meta":{"topic":' + msgspec.json.encode(topic) + b',"id":"'


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
