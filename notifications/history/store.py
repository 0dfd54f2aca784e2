"""
What a history store must do: stamp, keep and tell messages, and say what was missed.

Everything above the store leans on these guarantees, and on nothing else of it:

* **Ids.** Within an epoch the ids of a topic count 1, 2, 3 … without holes, whoever stamps: many processes and both
  roads share one count. An id is never given out twice. Where the store cannot know every id that it gave out before,
  because the history expired, was tampered with or comes from another server, a later epoch begins, which is the time
  in ms or above.
* **One step.** A message is stamped, kept and told at once or not at all; listeners are told in the order of the ids.
* **Bounds.** The last ``HISTORY_SIZE`` messages of a topic are kept, until ``HISTORY_TTL`` seconds after the last of
  them. A kind of size 0 keeps nothing: its messages are told without an id.
* **No silent loss.** ``run`` and ``whole`` say when something may have been lost of which no entry tells.

A store that is not there, does not answer or refuses raises one of ``connections.FAILURES``, within seconds. After
that a message may or may not be out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

from ..topics import Topic
from .position import Page, Position, Where

IDEMPOTENCY_TTL: Final = 300
"""Seconds that an idempotency key is remembered."""
PAGE_BYTES: Final = 256 * 1024
"""Bytes of frames that one read brings at most, and one frame beyond."""
NOT_HOLDER: Final = -1
"""What ``stamp_batch`` says when somebody else has the lease."""
DONE_BEFORE: Final = -2
"""What ``stamp_batch`` says when a batch of this number was done before."""


def term_key(lease: str) -> str:
    """Name the key beside a lease that says whether the histories show all that was stamped; see ``Lease.term``."""
    return f"{lease}:term"


class Store(Protocol):
    """The histories of all topics. One serves all threads and event loops of a process."""

    def publish(self, topic: Topic, data: bytes, idempotency_key: str | None = None, at: int = 0) -> str | None:
        """
        Stamp one message, keep it, and tell it to everybody.

        Args:
            topic: Where.
            data: The message's JSON object.
            idempotency_key: For ``IDEMPOTENCY_TTL`` seconds nothing more is published on the topic under the same key.
                It is remembered together with the message, and not if that is refused.
            at: When it was published, in µs, for a message that is timed; otherwise 0.

        Returns:
            Its id, or the id of what was published under the same key; None where the kind keeps no history.

        """
        ...

    async def apublish(self, topic: Topic, data: bytes, idempotency_key: str | None = None, at: int = 0) -> str | None:
        """Stamp one message, keep it, and tell it to everybody; see ``publish``."""
        ...

    async def stamp_batch(
        self, lease: str, token: str, number: int, messages: Sequence[tuple[Topic, bytes]]
    ) -> tuple[int, str]:
        """
        Stamp raw messages in their order, in one step, if ``token`` has the lease.

        What cannot be kept is told without an id, in its place, and the term of the lease ends: no history shows what
        went out.

        Args:
            lease: Its name. It is kept where the histories are, so that nobody loses it between the look and the step.
            token: Of the holder.
            number: Counts the holder's batches upwards. Whoever does not know whether a batch was done asks with the
                same number again.
            messages: Each a topic and the ``tail`` of its frame.

        Returns:
            How many were kept, and why the others were not. ``NOT_HOLDER`` if somebody else has the lease,
            ``DONE_BEFORE`` if a batch of this number, or of a later one, was done before; nothing was done then.

        """
        ...

    async def look(self, topics: Sequence[Topic]) -> list[Where]:
        """Say where the histories of topics are; brings no frames, so it is cheap for many."""
        ...

    async def read(self, topic: Topic, after: Position) -> Page:
        """
        Read what follows a position, in order.

        A page has at least one frame if any follows, ends at the latest with the one that fills ``PAGE_BYTES``, and
        has all there are unless it is full.
        """
        ...

    def position(self, topic: Topic) -> Position:
        """Return the position of a reader who has received everything on a topic; for pages of web requests."""
        ...

    async def aposition(self, topic: Topic) -> Position:
        """Return the position of a reader who has received everything on a topic; see ``position``."""
        ...

    async def server(self) -> str:
        """Say which server answers: its ``run``. What was read under another ``run`` need not be there any more."""
        ...
