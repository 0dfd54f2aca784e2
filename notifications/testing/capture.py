"""
The replacement of the site's history store while a block of the test kit is open.

Everything that publishes, and everything that reads histories for sockets and pages, uses ``history.get_store()``.
It returns a store in memory then; everything before that is the real code, with its checks and its errors.

Like Django's ``mail.outbox``, it applies to the whole process: what threads publish, such as those of a live server,
is captured as well.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple, NoReturn

import msgspec
import redis
from asgiref.sync import sync_to_async

from .. import history, sending
from ..access import callbacks
from ..history.memory import MemoryStore
from ..history.stamped import Stamped
from ..history.store import Store
from ..messages import META


class Published(NamedTuple):
    """
    One message that would have been published.

    Attributes:
        topic: The topic as text: ``"user:42"``, and ``"user:acme/42"`` on a site with tenants.
        message: The message as browsers receive it, decoded from JSON, without ``_meta``.
        id: The id that ``publish`` returned; None where ``HISTORY_SIZE`` is 0.

    """

    topic: str
    message: dict[str, Any]
    id: str | None


class Outage:
    """A ``Store`` that fails as if Redis refused connections."""

    def publish(self, *_: object, **__: object) -> NoReturn:
        raise redis.ConnectionError("connection refused, because redis_outage() is open")

    async def apublish(self, *_: object, **__: object) -> NoReturn:
        self.publish()

    position = publish_many = publish
    request_cancel = cancel_requested = drop_cancel = revoke_grants = grants_revoked_at = report_share = publish
    aposition = apublish_many = stamp_batch = read_inlet = publish_inlet = apublish
    look = changes = read = server = apublish
    arequest_cancel = acancel_requested = adrop_cancel = arevoke_grants = agrants_revoked_at = apublish
    areport_share = apublish


class Blocks:
    """
    The open blocks, and what is replaced because of them.

    Attributes:
        captures: The messages of each open ``captured`` block, the innermost last.
        hearers: Callbacks for each message, called in the thread that publishes.

    """

    def __init__(self) -> None:
        self.captures: dict[object, list[Published]] = {}
        self.hearers: dict[object, Callable[[Stamped], object]] = {}
        self._lock = threading.Lock()
        self._memory: MemoryStore | None = None
        self._remembering = self._failing = 0

    @contextmanager
    def remembering(self) -> Iterator[None]:
        """Keep histories in memory. Blocks may overlap; the histories are dropped when the last one ends."""
        with self._lock:
            self._remembering += 1
            self._put_in_place()
        try:
            yield
        finally:
            with self._lock:
                self._remembering -= 1
                self._put_in_place()

    @contextmanager
    def failing(self) -> Iterator[None]:
        """Make every call of the store fail."""
        with self._lock:
            self._failing += 1
            self._put_in_place()
        try:
            yield
        finally:
            with self._lock:
                self._failing -= 1
                self._put_in_place()

    def _put_in_place(self) -> None:
        if not self._remembering:
            self._memory = None
        elif self._memory is None:
            self._memory = MemoryStore(self._hear)
        store: Store | None = Outage() if self._failing else self._memory
        history.put_in_place(store)
        callbacks.in_thread = sync_to_async if self._remembering else None

    def _hear(self, stamped: Stamped) -> None:
        message = msgspec.json.decode(stamped.frame)
        message.pop(META, None)
        id_ = None if stamped.position is None else str(stamped.position)
        for capture in list(self.captures.values()):
            capture.append(Published(stamped.topic, message, id_))
        for hear in list(self.hearers.values()):
            hear(stamped)


blocks: Final = Blocks()


@contextmanager
def captured() -> Iterator[list[Published]]:
    """
    Capture what is published in this process, instead of publishing it.

    Everything up to the call of Redis is the real code: bad topics and messages raise what they always raise,
    ``on_commit`` waits for the commit, ids are returned and idempotency keys work. Nested blocks each capture
    what is published while they are open.

    Yields:
        A list that grows by one ``Published`` for each message, in order.

    """
    block, sent = object(), list[Published]()
    with blocks.remembering():
        blocks.captures[block] = sent
        try:
            yield sent
        finally:
            del blocks.captures[block]


@contextmanager
def redis_outage() -> Iterator[None]:
    """
    Make every publish of this process fail as it does when Redis refuses connections.

    ``publish`` and the like raise ``PublishError``, or with ``fail_silently`` log it and return None. Pages and
    sockets cannot read histories, so new sockets are told to come back (4101). Calls fail at once; a Redis that
    does not answer would cost a request about a second.
    """
    sending.log_anew()
    with blocks.failing():
        yield
