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
  message is delivered to the group in the same step, and listeners do not get it. A store that
  cannot deliver, or may not, sends it to listeners as if no group had been named; it never does
  both.
* **Acknowledged.** Listeners are told of all raw messages that were stamped, which they must not
  stamp again: of those of one call together.
* **Bounds.** The last ``HISTORY_SIZE`` messages of a topic are kept, until ``HISTORY_TTL`` seconds
  after the last of them. A kind of size 0 keeps nothing: its messages are announced without an id.
* **No silent change.** Whatever is kept changes the mark of its topic's bucket (``changes.py``), in
  the same step, or the mark that belongs to none.
* **Inlet.** An entry is published, or set aside, and is no longer in the inlet: in one step, or not
  at all; if its topic is of another shard, in two, of which the first is not done twice. So each is
  published once, and those of a topic in the order in which they were appended.
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
from .inlet import Checked, Outcome, Waiting
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
        digest: From ``stamped.digest``; listeners are told it.

    """

    topic: Topic
    tail: bytes
    group: str | None = None
    digest: int = 0


class Outgoing(NamedTuple):
    """A message of ``Store.publish_many``: the arguments of ``Store.publish``."""

    topic: Topic
    data: bytes
    idempotency_key: str | None = None
    at: int = 0
    group: str | None = None


Answer = str | Exception | None
"""What ``publish`` returns, or the error for which a message of ``publish_many`` is not known to be published."""


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

    def publish_many(self, messages: Sequence[Outgoing]) -> list[Answer]:
        """
        Stamp messages in their order, each of them as ``publish`` does, with one question and answer.

        One that is refused does not keep the next from being published. Where not all have a key, those are not tried
        again that may have been published.

        Args:
            messages: At least one. Others wait behind them, so they should be few and small.

        """
        ...

    async def apublish_many(self, messages: Sequence[Outgoing]) -> list[Answer]:
        """Stamp messages in their order; see ``publish_many``."""
        ...

    async def stamp_batch(
        self, lease: str, token: str, number: int, messages: Sequence[Raw], at: int = 0, shard: int = 0
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
            shard: The shard of their topics, and of the lease.

        Returns:
            How many were kept, and why the others were not. ``NOT_HOLDER`` if another listener has
            the lease, ``DONE_BEFORE`` if a batch of this number, or of a later one, was stamped
            before: then nothing was done.

        """
        ...

    async def read_inlet(self, lease: str, token: str, shard: int = 0) -> Waiting | None:
        """
        Read the oldest entries of a shard's inlet, a batch at most, if ``token`` has the lease; otherwise return None.

        If there are more than ``INLET_SIZE``, the oldest are dropped and none is read.
        """
        ...

    async def publish_inlet(self, lease: str, token: str, entries: Sequence[Checked], shard: int = 0) -> Outcome | None:
        """
        Publish entries of the inlet in their order and take them out of it, in one step, if ``token`` has the lease.

        An entry that is not in the inlet any more is skipped: it is safe to call again. What is refused is set aside
        in place of being published. Nothing is announced without an id, except on kinds without a history.

        Entries of other shards are published there before the lease is looked at, at most once within
        ``IDEMPOTENCY_TTL`` seconds after they were taken out: the caller must believe that it has the lease.

        Args:
            lease: Its name; see ``stamp_batch``.
            token: The holder's.
            entries: As they were read, oldest first.
            shard: The shard of the inlet, and of the lease.

        Returns:
            What became of them; None if another listener has the lease: then nothing was taken out.

        """
        ...

    async def look(self, topics: Sequence[Topic]) -> list[Where]:
        """Return the ends of topics' histories; reads no frames, so it is cheap for many topics."""
        ...

    async def changes(self, shard: int = 0) -> Changes:
        """Return the marks of a shard's buckets; costs the same for any number of topics."""
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

    async def server(self, shard: int = 0) -> str:
        """Return the ``run`` of the server that answers for a shard; another one may have lost messages."""
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
