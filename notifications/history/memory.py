"""
Histories in the memory of one process: for the tests of sites, and the shortest example of a store.

No other process receives what is published here, and nothing outlives the store. It delivers to no group: whoever
is told does. Epochs come from
the wall clock, which tests may set; ages from the clock of event loops, which sockets use as well.
"""

from __future__ import annotations

import errno
import secrets
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Final

import msgspec

from ..conf import settings
from ..topics import Topic
from .changes import SIZE, WIDTH, Changes, place_of
from .inlet import MARGIN, MAX_DROPPED, MAX_ENTRIES, MAX_REFUSED, Checked, Entry, Outcome, Waiting, size_of
from .inlet import MAX_BYTES as MAX_INLET_BYTES
from .position import Frame, Page, Position, Where
from .shares import ENDED_TTL, OVER, SHARES_TTL, Job, Report, Standing
from .stamped import Stamped, head, tail
from .store import (
    CANCEL_TTL,
    DONE_BEFORE,
    IDEMPOTENCY_TTL,
    NOT_HOLDER,
    PAGE_BYTES,
    Answer,
    Outgoing,
    OvertakenError,
    Raw,
)

MAX_BYTES: Final = 256 * 1024 * 1024
"""Bytes of frames that all histories keep together. What exceeds them is refused, as by a full
Redis."""
ENTRY_BYTES: Final = 400
"""Approximate memory of a message besides its frame."""


class History:
    """
    The last messages of one topic; never empty.

    Attributes:
        expires: When it expires, if nothing more is published.

    """

    __slots__ = ("expires", "frames")

    def __init__(self) -> None:
        self.frames: deque[Frame] = deque()
        self.expires = 0.0


class Tenure:
    """
    The state of a lease.

    Attributes:
        token: The holder's.
        batch: The number of the last batch that was stamped for the holder.
        term: Names the period in which every raw message was given an id; empty when that is over.

    """

    __slots__ = ("batch", "term", "token")

    def __init__(self, token: str) -> None:
        self.token = token
        self.batch: int | None = None
        self.term = secrets.token_hex(8)


class MemoryStore:
    """The ``Store`` of a process without a Redis."""

    def __init__(self, tell: Callable[[Stamped], object], max_bytes: int = MAX_BYTES) -> None:
        """
        Start without any history, like a server that has just been started.

        Args:
            tell: Called with each message, in the thread that publishes it; it must return at once.
            max_bytes: As ``MAX_BYTES``.

        """
        self._tell = tell
        self._max_bytes = max_bytes
        self._lock = threading.RLock()
        self._run = secrets.token_hex(6)
        self._clock = self._ended = 0
        self._started = self._now()
        self._histories: dict[Topic, History] = {}
        self._bytes = 0
        self._marks: defaultdict[int, bytearray] = defaultdict(lambda: bytearray(SIZE))
        self._once: dict[tuple[Topic, str], tuple[float, str | None]] = {}
        self._leases: dict[str, Tenure] = {}
        self._inlets: defaultdict[int, dict[str, tuple[float, list[bytes]]]] = defaultdict(dict)
        self._last_entry = Position(0, 0)
        self._refused: deque[tuple[str, str]] = deque(maxlen=MAX_REFUSED)
        self._cancels: dict[Topic, float] = {}
        self._jobs: dict[Topic, tuple[Job, float]] = {}
        self._revoked: dict[tuple[str, Topic], float] = {}

    def publish(
        self,
        topic: Topic,
        data: bytes,
        idempotency_key: str | None = None,
        at: int = 0,
        group: str | None = None,
        version: int = 0,
    ) -> str | None:
        with self._lock:
            job = self._job(topic) if version else None
            if job is not None and job.told[0] > version:
                raise OvertakenError
            if job is not None and job.told[0] == version:
                return job.told[1]
            once = None if idempotency_key is None else (topic, idempotency_key)
            if once is not None:
                self._forget_keys()
                if once in self._once:
                    return self._once[once][1]
            id_ = None
            if settings.kinds[topic.kind].HISTORY_SIZE:
                position, frame = self._stamp(topic, tail(data))
                id_ = str(position)
                told = Stamped("p", str(topic), position, frame, self._run, at)
            else:
                told = Stamped("u", str(topic), None, data)
            if once is not None:
                self._once[once] = time.monotonic() + IDEMPOTENCY_TTL, id_
            if job is not None:
                job.told = version, id_
            self._tell(told)
            return id_

    async def apublish(
        self,
        topic: Topic,
        data: bytes,
        idempotency_key: str | None = None,
        at: int = 0,
        group: str | None = None,
        version: int = 0,
    ) -> str | None:
        return self.publish(topic, data, idempotency_key, at, group, version)

    def publish_many(self, messages: Sequence[Outgoing]) -> list[Answer]:
        answers: list[Answer] = []
        for message in messages:
            try:
                answers.append(self.publish(*message))
            except OSError as error:
                answers.append(error)
        return answers

    async def apublish_many(self, messages: Sequence[Outgoing]) -> list[Answer]:
        return self.publish_many(messages)

    def give_lease(self, lease: str, token: str) -> None:
        """Make ``token`` the holder; the previous holder loses the lease."""
        with self._lock:
            self._leases[lease] = Tenure(token)

    def term(self, lease: str) -> str:
        """Return the term of a lease; empty if there is none."""
        with self._lock:
            return self._leases[lease].term if lease in self._leases else ""

    async def stamp_batch(
        self, lease: str, token: str, number: int, messages: Sequence[Raw], at: int = 0, shard: int = 0
    ) -> tuple[int, str]:
        with self._lock:
            tenure = self._leases.get(lease)
            if tenure is None or tenure.token != token:
                return NOT_HOLDER, ""
            if tenure.batch is not None and tenure.batch >= number:
                return DONE_BEFORE, ""
            kept, refusal = 0, ""
            for topic, rest, *_ in messages:
                told = Stamped("u", str(topic), None, b"{" + rest.removeprefix(b","), at=at)
                if settings.kinds[topic.kind].HISTORY_SIZE:
                    try:
                        position, frame = self._stamp(topic, rest)
                    except OSError as error:
                        refusal = str(error)
                    else:
                        told = Stamped("r", str(topic), position, frame, self._run, at)
                        kept += 1
                self._tell(told)
                at = 0
            tenure.batch = number
            if refusal:
                tenure.term = ""
            return kept, refusal

    def append(self, *words: bytes, shard: int = 0) -> str:
        """Append an entry to a shard's inlet, as ``XADD`` does: its fields and values in turn. Return its id."""
        with self._lock:
            last = self._last_entry
            self._last_entry = Position(max(self._now(), last.epoch), last.n + 1)
            id_ = str(self._last_entry)
            self._inlets[shard][id_] = time.monotonic(), list(words)
            return id_

    def refused(self) -> list[tuple[str, str]]:
        """List the entries that were set aside: the id of each, and why."""
        return list(self._refused)

    async def read_inlet(self, lease: str, token: str, shard: int = 0) -> Waiting | None:
        with self._lock:
            tenure = self._leases.get(lease)
            if tenure is None or tenure.token != token:
                return None
            inlet = self._inlets[shard]
            if (surplus := min(len(inlet) - settings.INLET_SIZE, MAX_DROPPED)) > 0:
                for id_ in list(islice(inlet, surplus)):
                    del inlet[id_]
                return Waiting([], len(inlet), 0.0, surplus)
            entries, left = list[Entry](), MAX_INLET_BYTES
            for id_, (_, words) in islice(inlet.items(), MAX_ENTRIES):
                size = size_of(words)
                entries.append(Entry(id_, size, words if size <= settings.MAX_MESSAGE_SIZE + MARGIN else None))
                left -= size
                if left <= 0:
                    break
            age = time.monotonic() - inlet[entries[0].id][0] if entries else 0.0
            return Waiting(entries, len(inlet), age)

    async def publish_inlet(self, lease: str, token: str, entries: Sequence[Checked], shard: int = 0) -> Outcome | None:
        with self._lock:
            tenure = self._leases.get(lease)
            if tenure is None or tenure.token != token:
                return None
            inlet, published, refused = self._inlets[shard], 0, list[str]()
            for entry in entries:
                if entry.id not in inlet:
                    continue
                if entry.topic is None:
                    self._refused.append((entry.id, entry.refusal))
                    refused.append(entry.id)
                else:
                    try:
                        self.publish(entry.topic, b"{" + entry.tail.removeprefix(b","), entry.idempotency_key)
                    except OSError as error:
                        return Outcome(published, refused, str(error))
                    published += 1
                del inlet[entry.id]
            return Outcome(published, refused)

    async def look(self, topics: Sequence[Topic]) -> list[Where]:
        with self._lock:
            return [self._where(topic) for topic in topics]

    async def changes(self, shard: int = 0) -> Changes:
        with self._lock:
            return Changes(self._run, bytes(self._marks[shard]))

    async def read(self, topic: Topic, after: Position | None) -> Page:
        with self._lock:
            where, frames, left = self._where(topic), list[Frame](), PAGE_BYTES
            if where.last is not None:
                after = Position(where.last.epoch, where.last.n - 1) if after is None else after
                for frame in self._histories[topic].frames:
                    if left > 0 and frame.position > after:
                        frames.append(frame)
                        left -= len(frame.text.encode())
            return Page(where.run, where.now, where.first, where.last, where.whole, frames, where.ttl)

    def position(self, topic: Topic) -> Position:
        with self._lock:
            return self._where(topic).position

    async def aposition(self, topic: Topic) -> Position:
        return self.position(topic)

    async def server(self, shard: int = 0) -> str:
        return self._run

    def revoke_grants(self, user: str, topic: Topic) -> None:
        with self._lock:
            self._revoked[user, topic] = time.time()

    async def arevoke_grants(self, user: str, topic: Topic) -> None:
        self.revoke_grants(user, topic)

    def grants_revoked_at(self, user: str, topic: Topic) -> float:
        return self._revoked.get((user, topic), 0.0)

    async def agrants_revoked_at(self, user: str, topic: Topic) -> float:
        return self.grants_revoked_at(user, topic)

    def request_cancel(self, topic: Topic) -> None:
        with self._lock:
            if self._tells_an_end(topic):
                return
            now = time.monotonic()
            self._cancels = {other: expires for other, expires in self._cancels.items() if expires > now}
            self._cancels[topic] = now + CANCEL_TTL

    async def arequest_cancel(self, topic: Topic) -> None:
        self.request_cancel(topic)

    def cancel_requested(self, topic: Topic) -> bool:
        with self._lock:
            return self._cancels.get(topic, 0.0) > time.monotonic()

    async def acancel_requested(self, topic: Topic) -> bool:
        return self.cancel_requested(topic)

    def drop_cancel(self, topic: Topic) -> None:
        with self._lock:
            self._cancels.pop(topic, None)

    async def adrop_cancel(self, topic: Topic) -> None:
        self.drop_cancel(topic)

    def report_share(self, topic: Topic, report: Report) -> Standing:
        run, of = report.share.run, report.share.of
        with self._lock:
            job = self._job(topic)
            if report.asks and (job is None or job.run != run):
                return Standing("old", cancelled=False)
            if job is None:
                self._jobs = {other: found for other, found in self._jobs.items() if self._job(other) is not None}
                job = Job(run, of)
            elif job.run != run:
                if not job.is_before(run):
                    return Standing("old", cancelled=False)
                job = Job(run, of, job.version, job.told)
            was_over = job.over
            standing = job.report(report, self._now(), cancelled=self.cancel_requested(topic))
            if standing.counts == "yes" and not was_over:
                self._jobs[topic] = job, time.monotonic() + (ENDED_TTL if job.over and not run else SHARES_TTL)
                if job.over:
                    self.drop_cancel(topic)
            return standing

    async def areport_share(self, topic: Topic, report: Report) -> Standing:
        return self.report_share(topic, report)

    def _tells_an_end(self, topic: Topic) -> bool:
        """Return whether the latest message of a topic says that its job is over."""
        if self._where(topic).last is None:
            return False
        message = msgspec.json.decode(self._histories[topic].frames[-1].text)
        payload = message.get("payload")
        return message.get("action") == "progress" and isinstance(payload, dict) and payload.get("state") in OVER

    def _job(self, topic: Topic) -> Job | None:
        """Return what was reported of the shares of a job; None if that is nothing, or has expired."""
        job, expires = self._jobs.get(topic, (None, 0.0))
        return job if expires > time.monotonic() else None

    def _stamp(self, topic: Topic, rest: bytes) -> tuple[Position, bytes]:
        """
        Give a message its id, and keep it.

        Raises:
            OSError: The histories are full.

        """
        kind, now = settings.kinds[topic.kind], time.monotonic()
        history = self._history(topic, now) or History()
        last = history.frames[-1].position if history.frames else Position(max(self._now(), self._ended + 1), 0)
        position = Position(last.epoch, last.n + 1)
        data = head(topic.told) + str(position).encode() + b'"}' + rest
        frame = Frame(position, data.decode())
        trimmed = max(0, len(history.frames) + 1 - kind.HISTORY_SIZE)
        more = _size(frame) - sum(map(_size, islice(history.frames, trimmed)))
        if self._bytes + more > self._max_bytes:
            for other in list(self._histories):
                self._history(other, now)
            if self._bytes + more > self._max_bytes:
                raise OSError(errno.ENOMEM, "the histories in memory are full")
        self._bytes += more
        history.frames.append(frame)
        for _ in range(trimmed):
            history.frames.popleft()
        history.expires = now + kind.HISTORY_TTL
        self._histories[topic] = history
        place = place_of(str(topic), settings.SHARDS)
        self._marks[topic.shard][place.offset : place.offset + WIDTH] = place.mark(str(position))
        return position, data

    def _history(self, topic: Topic, now: float) -> History | None:
        """Return a topic's history; None if there is none, or if it has just expired."""
        history = self._histories.get(topic)
        if history is None or now < history.expires:
            return history
        # The clock may stand still: the next history must have another epoch all the same.
        self._ended = max(self._ended, history.frames[-1].position.epoch)
        self._bytes -= sum(map(_size, history.frames))
        del self._histories[topic]
        return None

    def _where(self, topic: Topic) -> Where:
        age = time.monotonic()
        history, now = self._history(topic, age), self._now()
        if history is None:
            return Where(self._run, self._started, now, None, None, 0.0, whole=False)
        first, last = history.frames[0].position, history.frames[-1].position
        return Where(self._run, self._started, now, first, last, history.expires - age, whole=True)

    def _forget_keys(self) -> None:
        """Forget the idempotency keys that have expired; the oldest is the first."""
        now = time.monotonic()
        while self._once and (oldest := next(iter(self._once))) and self._once[oldest][0] <= now:
            del self._once[oldest]

    def _now(self) -> int:
        """Return the time in ms; never earlier than before, even when the clock is set back."""
        self._clock = max(self._clock, int(time.time() * 1000), self._ended)
        return self._clock


def _size(frame: Frame) -> int:
    return len(frame.text) + ENTRY_BYTES
