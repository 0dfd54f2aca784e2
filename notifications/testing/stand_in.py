"""
What answers in Redis's place while a block of the kit is open.

Everything that publishes, and everything that reads histories for sockets and pages, calls
``connections.run`` or ``arun`` with a script. There the stand-in is put: what is before that call is the real
code, with its checks and its errors, and what is behind it is a dict.

As Django's ``mail.outbox`` it is one for the process: what threads publish, such as those of a live server, is
captured as well.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

import msgspec
import redis
from asgiref.sync import sync_to_async

from .. import callbacks, connections
from ..connections import Script
from ..history.position import Frame, Position
from ..history.stamped import Stamped
from ..messages import META

RUN: Final = "testing"
"""The ``run_id`` of the stand-in."""
FOREVER: Final = 1000.0
"""Seconds that a history is said to live still: here none ends by age."""


class Published(NamedTuple):
    """
    One message that would have been published.

    Attributes:
        topic: As text: ``"user:42"``, and ``"user:acme/42"`` on a site with tenants.
        message: What browsers receive, read back from its JSON, without ``_meta``.
        id: What ``publish`` returned; None where ``HISTORY_SIZE`` is 0.

    """

    topic: str
    message: dict[str, Any]
    id: str | None


class StandIn:
    """
    The histories of all topics, in memory, and who wants to hear what is published.

    Attributes:
        captures: What each open ``captured`` block has seen, the innermost last.
        hearers: Called with each message, in the thread that publishes.

    """

    def __init__(self) -> None:
        self.captures: dict[object, list[Published]] = {}
        self.hearers: dict[object, Callable[[Stamped], object]] = {}
        self._lock = threading.RLock()
        self._memories = 0
        self._outages = 0
        self._started = self._clock = 0
        self._frames: dict[str, deque[Frame]] = {}
        self._once: dict[str, bytes] = {}

    @contextmanager
    def remembering(self) -> Iterator[None]:
        """Stand in Redis's place. Blocks may overlap; the last to end forgets everything."""
        with self._lock:
            if not self._memories:
                self._started = self._now()
            self._memories += 1
            self._take_place()
        try:
            yield
        finally:
            with self._lock:
                self._memories -= 1
                if not self._memories:
                    self._frames.clear()
                    self._once.clear()
                self._take_place()

    @contextmanager
    def failing(self) -> Iterator[None]:
        """Be a Redis that refuses connections."""
        with self._lock:
            self._outages += 1
            self._take_place()
        try:
            yield
        finally:
            with self._lock:
                self._outages -= 1
                self._take_place()

    def _take_place(self) -> None:
        connections.stand_in = self if self._memories or self._outages else None
        callbacks.in_thread = sync_to_async if self._memories else None
        connections.breaker.worked()  # what it knows of the real Redis is not true of this one, nor the reverse

    def __call__(self, script: Script, keys: Sequence[str], arguments: Sequence[Any]) -> Any:
        """Answer a script as Redis does; its file in ``lua/`` says what it takes and returns."""
        answers = {"publish": self._publish, "look": self._look, "page": self._page}
        with self._lock:
            if self._outages:
                raise redis.ConnectionError("connection refused, because redis_outage() is open")
            if script.name not in answers:
                raise NotImplementedError(f"notifications.testing stands in for sites, not for {script.name}.lua")
            return answers[script.name](keys, arguments)

    def _publish(self, keys: Sequence[str], arguments: Sequence[Any]) -> bytes:
        _, size, _, head, tail, _, topic, *_ = arguments
        once = "".join(keys[1:])
        if once in self._once:
            return self._once[once]
        position, frame = None, tail
        if size:
            kept = deque(self._frames.get(keys[0], ()), maxlen=size)
            last = kept[-1].position if kept else Position(self._now(), 0)
            position = Position(last.epoch, last.n + 1)
            frame = head + str(position).encode() + b'"}' + tail
            kept.append(Frame(position, frame.decode()))
            self._frames[keys[0]] = kept
        id_ = "" if position is None else str(position)
        if once:
            self._once[once] = id_.encode()
        message = msgspec.json.decode(frame)
        message.pop(META, None)
        for capture in self.captures.values():
            capture.append(Published(topic, message, id_ or None))
        for hear in self.hearers.values():
            hear(Stamped("p", topic, position, frame, RUN))
        return id_.encode()

    def _look(self, keys: Sequence[str], arguments: Sequence[Any]) -> list[Any]:
        found: list[Any] = [RUN.encode(), self._started, self._now()]
        for key in keys:
            first, last, whole, ttl = self._ends(key)
            found += [first, last, ttl, whole]
        return found

    def _page(self, keys: Sequence[str], arguments: Sequence[Any]) -> list[Any]:
        after, left, _ = arguments
        found: list[Any] = [RUN.encode(), self._now(), *self._ends(keys[0])]
        for position, text in self._frames.get(keys[0], ()):
            if left > 0 and position > Position.parse(after):
                found += [str(position).encode(), text.encode()]
                left -= len(text)
        return found

    def _ends(self, key: str) -> tuple[bytes, bytes, int, int]:
        """Say of a history: first id, last id, whether this server wrote the last entry, time to live (ms)."""
        kept = self._frames.get(key)
        if not kept:
            return b"", b"", 0, 0
        first, last = kept[0].position, kept[-1].position
        return str(first).encode(), str(last).encode(), 1, int(FOREVER * 1000)

    def _now(self) -> int:
        """Milliseconds, never fewer than before: tests set the clock back."""
        self._clock = max(self._clock, int(time.time() * 1000))
        return self._clock


stand_in: Final = StandIn()


@contextmanager
def captured() -> Iterator[list[Published]]:
    """
    Capture what is published in this process, instead of publishing it.

    Everything up to the call of Redis is the real code: bad topics and messages raise what they always raise,
    ``on_commit`` waits for the commit, ids are returned and idempotency keys work. In blocks one within the
    other each captures what is published while it is open.

    Yields:
        A list that grows: one ``Published`` for each message, in their order.

    """
    block, sent = object(), list[Published]()
    with stand_in.remembering():
        stand_in.captures[block] = sent
        try:
            yield sent
        finally:
            del stand_in.captures[block]


@contextmanager
def redis_outage() -> Iterator[None]:
    """
    Let every publish of this process fail as it does when Redis refuses connections.

    ``publish`` and its sisters raise ``PublishError``, or log it and return None with ``fail_silently``; pages and
    sockets cannot read histories, so that new sockets are told to come back (4101). It comes at once: a Redis that
    does not answer costs a request about a second.
    """
    with stand_in.failing():
        yield
