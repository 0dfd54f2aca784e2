"""
Publishing a job's progress beside the job, which never waits for Redis except at its end.

A job changes numbers and goes on. A thread of its own, or in an event loop a task, publishes the newest of them: the
first and the last message at once, between them ``PROGRESS_RATE`` a second, and only when something has changed. What
changes last before a pause is published as well, because the thread waits for its turn and not the job. In a long pause
the newest message is published again, three times in ``PROGRESS_STALE`` seconds: so whoever hears nothing for that
long knows that the process is gone. A job that nobody holds any more is not ended, but this stops.

If Redis is away, the newest message is tried once a second, by the thread. The end of a job waits for the last message,
``PATIENCE`` seconds at most: that is all that a dead Redis, or one that hangs, costs a job.

If the job is shared, the thread reports its share to the store, and publishes how the whole job stands if it is its
turn. The end of a share waits until it is noted. Publishing that may have to wait for others, and the job goes on: the
thread stays for it, for one more turn, and one thread of a process for all shares of a job that have ended there.
"""

from __future__ import annotations

import hashlib
import logging
import math
import random
import secrets
import threading
from collections.abc import Callable
from typing import Any, Final, NamedTuple, TypeVar
from weakref import WeakMethod

from .. import publisher
from ..broker import clients
from ..conf import settings
from ..history import get_store
from ..history.shares import Report, Share, Standing
from ..logs import describe, outages
from ..messages import JobProgress, Notice
from ..publisher import Prepared
from ..topics import Topic
from .sharing import report_of, whole

T = TypeVar("T")
Newest = Callable[[bool], JobProgress | None]
"""A method that returns the message of this moment; None: there is nothing to tell. The argument says that nothing has
changed since the last one."""

logger = logging.getLogger(__name__)

PATIENCE: Final = 1.0
"""Seconds that a job waits for Redis in all."""
RETRY: Final = 1.0
"""Seconds between two attempts to publish while Redis is away."""
LAST_RETRY: Final = 0.2
"""Seconds between two attempts to publish the last message."""
FIRST_LOOK: Final = 0.25
"""Seconds of its patience that a job waits for the first look: it is worth less than the last message."""
LOOK: Final = 1.0
"""Seconds between two looks at whether a job is to be cancelled."""
OVERDUE: Final = 0.01
"""Seconds between two turns that a job gives to what publishes for it, while a message is overdue."""


class Ending(NamedTuple):
    """
    What is told of the end of a job, or of a share.

    Attributes:
        message: The last one of the job; of the share alone, if there are others.
        key: Under which it is sent again if it is not known to have arrived.
        user: The topic of a user who gets a notice as well.
        title: Its title.

    """

    message: JobProgress
    key: str
    user: Topic | None = None
    title: str = ""

    def notice(self, told: JobProgress) -> Notice:
        """Return the notice of a job of which this was told last."""
        job = told.payload
        level: Any = {"succeeded": "success", "failed": "error"}.get(job.state, "warning")
        return Notice(title=self.title, level=level, body=job.error or job.message, url=job.url)


class Waiting:
    """
    The jobs of this process whose last report has still to be told, by a thread that is there for that alone.

    There is one thread for each job, however many of its shares have ended meanwhile.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: dict[Topic, int] = {}

    def add(self, topic: Topic, seen: int) -> bool:
        """Note what is to be told, and return whether the caller is to do it; otherwise another does already."""
        with self._lock:
            first = topic not in self._seen
            self._seen[topic] = max(seen, self._seen.get(topic, 0))
            return first

    def take(self, topic: Topic) -> int:
        """Return what is to be told; whoever comes after that needs a thread of their own."""
        with self._lock:
            return self._seen.pop(topic, 0)

    def forget(self) -> None:
        """Begin anew in a forked process, which has none of the threads."""
        self.__init__()  # type: ignore[misc]


waiting: Final = Waiting()


class Reporter:
    """
    What is due, and when. The subclasses do it.

    Attributes:
        cancelled: Whether somebody has asked to cancel the job, as far as is known.
        clock: Tells the time to the job as well, in seconds.
        patience: Seconds that the job still may wait for Redis.
        muted: This is a copy in a forked process: the job is the parent's.

    """

    def __init__(self, topic: Topic, share: Share | None, newest: Newest, clock: Callable[[], float]) -> None:
        """
        Prepare; nothing runs before ``start``.

        Args:
            topic: The job's.
            share: Of which this is told; None: of the whole job.
            newest: A bound method, called in the thread or task that publishes. What it is bound to is not kept alive:
                a job that was dropped and not ended must not tell for ever that it runs.
            clock: As above.

        """
        self.cancelled = self.muted = False
        self.patience = PATIENCE
        self._topic = topic
        self._share, self._attempt = share, secrets.token_hex(4)
        self._seen = 0
        self._untold = self._quiet = False
        self._store = get_store()
        self._newest = WeakMethod(newest)
        self.clock = clock
        self._interval = 1 / settings.PROGRESS_RATE
        self._silence = max(self._interval, settings.PROGRESS_STALE / 3)
        self._beat_at = clock() + self._silence
        self._changed = self._asked = self._reached = self._dropped = False
        self._publish_at = self._look_at = self._give_way_at = -math.inf
        self._last: Ending | None = None
        self._deadline = math.inf

    def change(self) -> None:
        """Note that there is something new; cheap, from any thread."""
        if not self._changed:
            self._changed = True
            self._wake()
        elif self.clock() > self._give_way_at:
            self._give_way_at = self.clock() + OVERDUE
            self._give_way()

    def ask(self) -> None:
        """Note that the job wants to know whether it is cancelled."""
        if not self._asked:
            self._asked = True
            self._wake()

    def _wake(self) -> None:
        raise NotImplementedError

    def _give_way(self) -> None:
        """Let others run, if the job would not: see ``OVERDUE``."""

    def _over(self) -> bool:
        """Return whether nothing is to be told but the end, if there is one."""
        return self._last is not None or self._dropped

    def _wait(self) -> float:
        """Return the seconds until something is due, unless something changes before."""
        if self._over():
            return 0
        telling = (self._changed or self._untold) and not self._quiet
        due = [at for wanted, at in ((telling, self._publish_at), (self._asked, self._look_at)) if wanted]
        return max(0, min([self._beat_at, *due]) - self.clock())

    def _take(self) -> tuple[JobProgress | None, bool]:
        """Return the newest message if one is due, and whether it is news."""
        now = self.clock()
        due = (self._changed or self._untold) and not self._quiet and now >= self._publish_at
        if not due and now < self._beat_at:
            return None, False
        news = due and self._changed
        if news:
            self._changed = False  # first: what changes from now on is the next message's
        message = self._message(again=not news)
        return None if self._quiet else message, news

    def _message(self, *, again: bool) -> JobProgress | None:
        self._beat_at = self.clock() + self._silence
        newest = self._newest()
        if newest is None:
            self._dropped = True
            return None
        return newest(again)

    def _report(self, message: JobProgress, *, news: bool) -> Report:
        """Return what is reported of the share."""
        assert self._share is not None  # noqa: S101  asked by those who know
        times = {"interval": self._interval, "silence": self._silence}
        return report_of(self._share, message.payload, self._attempt, news=news, seen=self._seen, **times)

    def _noted(self, standing: Standing) -> None:
        """Go by how the job stands after the report."""
        now = self.clock()
        self._reached = True
        self.cancelled = self.cancelled or standing.cancelled
        self._seen = standing.seen
        self._untold = not standing.over and standing.told < standing.seen
        self._publish_at = now + (wait_for_turn(standing, self._interval) if self._untold else self._interval)
        self._give_way_at = self._publish_at + OVERDUE
        if standing.over or standing.counts != "yes":
            self._quiet = self._changed = True  # what changes from now on is nothing to report
            self._give_way_at = math.inf
        if standing.counts == "many":
            logger.warning("%s has more shares than it says: one is not counted", self._topic)

    def _question(self, share: Share, message: JobProgress) -> Report | None:
        """
        Return a report that asks for a turn for all that waits for it; None in another test than the job's.

        It says nothing of the share, which another may do meanwhile.
        """
        self._seen = waiting.take(self._topic)
        if get_store() is not self._store:
            return None
        asked = self._report(message, news=False)
        return asked._replace(share=share._replace(key="", needed=False), state="waiting", done=0, error="")

    def _notice_key(self, ending: Ending) -> str:
        """Return the key of a notice: for all who tell the end of one run the same."""
        if self._share is None:
            return f"progress-notice-{ending.key}"
        run = hashlib.sha256(f"{self._topic} {self._share.run}".encode()).hexdigest()
        return f"progress-notice-{run}"

    def _published(self, error: Exception | None) -> bool:
        """Note how publishing has ended."""
        now = self.clock()
        self._beat_at = now + self._silence
        self._give_way_at = now + self._interval + OVERDUE
        if error is None:
            self._reached, self._untold = True, False
            self._publish_at = now + self._interval
            return True
        self._changed = True
        self._publish_at = now + max(self._interval, RETRY)
        if times := outages.due("progress"):
            logger.warning("progress cannot be published (%s, %d time(s)); jobs go on", describe(error), times)
        return False

    def _prepare_last(self) -> None:
        """Ask a Redis once more that did not answer just now, if it did before: it may be back."""
        if self._reached:
            clients.try_again()

    def _gives_up(self) -> bool:
        """Return whether the last message is not tried again: no time is left, or Redis was away all the time."""
        return not self._reached or self.clock() + LAST_RETRY > self._deadline


def standing_message(topic: Topic, own: JobProgress, standing: Standing) -> Prepared:
    """Prepare the message of how the job stands; it is refused by the store if a later one went out before."""
    return publisher.prepare(topic, whole(own.payload, standing))._replace(version=standing.version)


def wait_for_turn(standing: Standing, interval: float) -> float:
    """Return the seconds until it is worth asking again. Not all at once: the first publishes for the others, too."""
    return standing.wait / 1000 + random.uniform(0, interval / 8)  # noqa: S311  no secret
