"""
The interface of history stores: stamp, keep and announce messages, and return what was missed.

Everything above the store relies on these guarantees, and on nothing else of it:

* **Ids.** Within an epoch the ids of a topic count 1, 2, 3 … without gaps, whichever process
  stamps: raw messages and those of ``publish_*`` share one count. An id is never given out twice.
  Where the store cannot know every id that it gave out before, because the history expired, was
  tampered with or comes from another server, a later epoch begins, which is the time in ms or
  above.
* **Atomic.** A message is stamped, kept and announced in one step or not at all; listeners receive
  messages in the order of their ids.
* **Direct.** Where the caller names the Redis channel of the topic's channel-layer group, the
  message is delivered to the group in the same step. Listeners are then told of raw messages, which
  they must not stamp again, and of others not. A store that cannot deliver, or may not, tells
  listeners as if no group had been named; it never does both.
* **Bounds.** The last ``HISTORY_SIZE`` messages of a topic are kept, until ``HISTORY_TTL`` seconds
  after the last of them. A kind of size 0 keeps nothing: its messages are announced without an id.
* **No silent change.** Whatever is kept changes the mark of its topic's bucket (``changes.py``), in
  the same step, or the mark that belongs to none.
* **Shares.** What processes report of the shares of one job adds up in one step each, and the job
  ends once. Of the messages that tell how it stands none goes out after a later one.
* **No silent loss.** ``run`` and ``whole`` show when something may have been lost that no entry
  shows.

A store that cannot be reached, does not answer or refuses raises one of ``clients.FAILURES``,
within seconds. After that a message may or may not have been published.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol

from ..topics import Topic
from .changes import Changes
from .position import Page, Position, Where
from .shares import Report, Standing

IDEMPOTENCY_TTL: Final = 300
"""Seconds that an idempotency key is remembered."""
PAGE_BYTES: Final = 256 * 1024
"""Bytes of frames after which a read ends; the frame that exceeds them is the last."""
CANCEL_TTL: Final = 3600
"""Seconds that a request to cancel a job is remembered: a job may wait in its queue before it can see it."""
NOT_HOLDER: Final = -1
"""Returned by ``stamp_batch`` if another listener has the lease."""
DONE_BEFORE: Final = -2
"""Returned by ``stamp_batch`` if a batch of this number was stamped before."""


def term_key(lease: str) -> str:
    """Return the key that says whether histories show all that went out; see ``Lease.term``."""
    return f"{lease}:term"


class Raw(NamedTuple):
    """
    A raw message that is to be stamped.

    Attributes:
        topic: Where it was published.
        tail: The ``tail`` of its frame.
        group: As in ``Store.publish``.

    """

    topic: Topic
    tail: bytes
    group: str | None = None


class OvertakenError(Exception):
    """A message was not published, because one with a later ``version`` was before."""


class Store(Protocol):
    """The histories of all topics. One serves all threads and event loops of a process."""

    def publish(
        self,
        topic: Topic,
        data: bytes,
        idempotency_key: str | None = None,
        at: int = 0,
        group: str | None = None,
        version: int = 0,
    ) -> str | None:
        """
        Stamp one message, keep it, and announce it.

        Args:
            topic: Where to publish it.
            data: The message's JSON object.
            idempotency_key: For ``IDEMPOTENCY_TTL`` seconds nothing more is published on the topic
                under the same key. It is remembered together with the message, and not if that is
                refused.
            at: When it was published, in µs, for a message that is timed; otherwise 0.
            group: The Redis channel of the topic's group, from ``RedisPubSubLayer.direct``; None if
                listeners are to forward the message.
            version: Of the ``Standing`` that it tells; 0 for any other message. The same version is published
                once, as if it were an idempotency key.

        Returns:
            Its id, or the id of what was published under the same key; None where the kind keeps no history.

        Raises:
            OvertakenError: A later version was published before.

        """
        ...

    async def apublish(
        self,
        topic: Topic,
        data: bytes,
        idempotency_key: str | None = None,
        at: int = 0,
        group: str | None = None,
        version: int = 0,
    ) -> str | None:
        """Stamp one message, keep it, and announce it; see ``publish``."""
        ...

    async def stamp_batch(
        self, lease: str, token: str, number: int, messages: Sequence[Raw], at: int = 0
    ) -> tuple[int, str]:
        """
        Stamp raw messages in their order, in one step, if ``token`` has the lease.

        What cannot be kept is announced without an id, in its place, and the term of the lease
        ends, because no history shows what went out.

        Args:
            lease: Its name. It is kept where the histories are, so that it cannot be lost between
                being checked and stamping.
            token: The holder's.
            number: Counts the holder's batches. If it is not known whether a batch was stamped,
                call again with the same number.
            messages: In the order in which they were read.
            at: When the first of them was read, in µs, if it is timed; otherwise 0.

        Returns:
            How many were kept, and why the others were not. ``NOT_HOLDER`` if another listener has
            the lease, ``DONE_BEFORE`` if a batch of this number, or of a later one, was stamped
            before: then nothing was done.

        """
        ...

    async def look(self, topics: Sequence[Topic]) -> list[Where]:
        """Return the ends of topics' histories; reads no frames, so it is cheap for many topics."""
        ...

    async def changes(self) -> Changes:
        """Return the marks of all buckets; costs the same for any number of topics."""
        ...

    async def read(self, topic: Topic, after: Position | None) -> Page:
        """
        Read what follows a position, in order, or the latest message alone.

        Args:
            topic: Of which topic.
            after: The position; None for a page of the latest message.

        A page has at least one frame if any follows, ends at the latest with the frame that fills
        ``PAGE_BYTES``, and otherwise has all there are.
        """
        ...

    def position(self, topic: Topic) -> Position:
        """Return the position of a reader that has received everything; for rendering pages."""
        ...

    async def aposition(self, topic: Topic) -> Position:
        """Return the position of a reader that has received everything; see ``position``."""
        ...

    async def server(self) -> str:
        """Return the ``run`` of the server that answers; another one may have lost messages."""
        ...

    def revoke_grants(self, user: str, topic: Topic) -> None:
        """Remember for ``GRANT_MAX_AGE`` seconds that no grant counts that a user has for a topic by now."""
        ...

    async def arevoke_grants(self, user: str, topic: Topic) -> None:
        """Remember that a user's grants for a topic do not count; see ``revoke_grants``."""
        ...

    def grants_revoked_at(self, user: str, topic: Topic) -> float:
        """Return when that was last done, in seconds since the epoch by the clock of whoever did it; 0 if never."""
        ...

    async def agrants_revoked_at(self, user: str, topic: Topic) -> float:
        """Return when a user's grants for a topic were revoked; see ``grants_revoked_at``."""
        ...

    def request_cancel(self, topic: Topic) -> None:
        """
        Remember for ``CANCEL_TTL`` seconds that the job of a topic is to be cancelled.

        Nothing is remembered if the topic's latest message says that its job is over: who asks too late does not mean
        the job that comes next.
        """
        ...

    async def arequest_cancel(self, topic: Topic) -> None:
        """Remember that the job of a topic is to be cancelled; see ``request_cancel``."""
        ...

    def cancel_requested(self, topic: Topic) -> bool:
        """Return whether the job of a topic is to be cancelled."""
        ...

    async def acancel_requested(self, topic: Topic) -> bool:
        """Return whether the job of a topic is to be cancelled."""
        ...

    def drop_cancel(self, topic: Topic) -> None:
        """Forget the request, because the job has ended: another may follow on its topic."""
        ...

    async def adrop_cancel(self, topic: Topic) -> None:
        """Forget the request, because the job has ended; see ``drop_cancel``."""
        ...

    def report_share(self, topic: Topic, report: Report) -> Standing:
        """
        Note how far a share of the job of a topic is, and return how the job stands: ``Job.report``, in one step.

        The first report of a later run begins it. What is reported of an earlier one, or after the end, is ignored.
        It is remembered for ``SHARES_TTL`` seconds after the last report, and for ``ENDED_TTL`` after the end if it
        has no run. With the end, a request to cancel the job is forgotten. The same report may be repeated.
        """
        ...

    async def areport_share(self, topic: Topic, report: Report) -> Standing:
        """Note how far a share of the job of a topic is; see ``report_share``."""
        ...
