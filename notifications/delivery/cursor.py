"""
The position of one socket in one topic, and what to do with each message. Pure: no socket, no
clock, no Redis.

Whatever goes wrong on the way looks the same here: a message does not follow the one before. What
is missing is then read from the history, which has everything in order, and the browser is told if
something cannot be recovered.
"""

from __future__ import annotations

from enum import Enum
from typing import Final, NamedTuple

from ..history.position import Frame, Page, Position, Where
from ..metrics import tally
from ..topics import Topic

EXPIRY_TOLERANCE: Final = 1.0
"""Seconds by which this host's clock and that of Redis may differ on the age of a message."""


class State(Enum):
    """What a socket does with the messages of a topic; ``Cursor`` shows how one state follows another."""

    JOINING = "the browser has not been told yet that it is subscribed"
    LIVE = "what follows is sent"
    CATCHING_UP = "what is missing is read from the history"
    LEFT = "nothing more is sent"


_LIVE: Final = State.LIVE
"""Compared for each message: looking up a member of an Enum takes longer than the comparison."""


class Verdict(Enum):
    """What to do with a message that arrived live."""

    SEND = "it follows"
    DROP = "the socket has had it, or the history has it"
    HOLD = "no history has it, and it comes behind what is being read"
    BEHIND = "something is missing before it, or the count began anew: read the history"


SEND: Final = Verdict.SEND
"""Compared for each message, like ``_LIVE``."""


class Start(NamedTuple):
    """
    Where a subscription begins.

    Attributes:
        recovered: Whether everything since the browser's position follows; None if it gave none.
        position: After which messages follow.

    """

    recovered: bool | None
    position: Position


def start(where: Where, since: Position | str | None, ttl: float, *, state: bool) -> Start:
    """
    Decide where a subscription begins.

    Args:
        where: What the history holds now.
        since: The browser's position; ``"last"`` to begin with the latest message; None for nothing
            from the past.
        ttl: Seconds that a history is kept after its last message.
        state: Whether the latest message is the whole state. Then it is sent first unless the
            browser is known to have it, and what came before it need not be.

    """
    latest = where.position if where.last is None else Position(where.last.epoch, where.last.n - 1)
    if since is None or isinstance(since, str):
        return Start(None, latest if since or state else where.position)
    position = _recover(where, since, ttl, state=state)
    if position is None:
        return Start(False, latest if state else where.position)
    if state and position < latest:
        tally.replaced += latest.n - position.n
        return Start(True, latest)
    return Start(True, position)


def _recover(where: Where, since: Position, ttl: float, *, state: bool) -> Position | None:
    """
    Find the position after which everything since ``since`` is kept; None if that cannot be proven.

    Of a state, everything is the latest message.
    """
    first, last = where.first, where.last
    if first is not None and last is not None and since.epoch == last.epoch:
        complete = state or first.epoch != last.epoch or first.n <= since.n + 1
        # After a restart from a snapshot, what was published after it is lost.
        return since if complete and where.whole and since.n <= last.n else None
    # A position in a topic that was empty then: its epoch is a time. Nothing has expired or been
    # lost since, if that was less than a lifetime ago on this very server.
    known = since.n == 0 and where.started <= since.epoch <= where.now and where.now - since.epoch < ttl * 1000
    if not known:
        return None
    if first is None or last is None:
        return where.position
    complete = state or (first.epoch == last.epoch and first.n == 1)
    return Position(last.epoch, 0) if complete and last.epoch >= since.epoch else None


class Cursor:
    """
    A socket's position in a topic, and what it does with the messages of that topic::

                 ┌───────── catch_up ──────────┐
                 │                             ▼
              JOINING ── go_live ──▶ LIVE ── catch_up ──▶ CATCHING_UP
                                       ▲                     │
                                       └────── go_live ──────┘
              any ── leave ──▶ LEFT, for good

    =========== ======================= ================== ==================================================
    state       a message with an id    one without        ends when
    =========== ======================= ================== ==================================================
    JOINING     is noted as missed      is dropped         the browser has been told that it is subscribed
    LIVE        is sent if it follows   is sent            something is missing, seen live or by a comparison
    CATCHING_UP is noted as missed      is held back       nothing is missing, or the history cannot be read
    LEFT        is dropped              is dropped         never
    =========== ======================= ================== ==================================================

    What is noted as missed need not be kept: the history has it as well.

    Of a topic whose latest message is the whole state, a message with an id follows all that are older: those in
    between are replaced by it, and counted.

    Attributes:
        latest_only: Whether it is such a topic.
        state: As above.
        epoch, n: The last message that was sent, or the position before the first.
        heard: The event loop's time at which that was published, at the latest.

    """

    __slots__ = (
        "_known",
        "_level_at",
        "_level_run",
        "_missed",
        "_was_live",
        "epoch",
        "heard",
        "latest_only",
        "n",
        "state",
        "topic",
        "ttl",
    )

    def __init__(self, topic: Topic, ttl: float, *, latest_only: bool = False) -> None:
        self.topic = topic
        self.ttl = ttl
        self.latest_only = latest_only
        self.state = State.JOINING
        self.epoch = self.n = 0
        self.heard = 0.0
        self._was_live = False
        self._missed: tuple[int, int] | None = None
        self._known: Position | None = None
        # Proof that the socket had everything that was published until some moment: one Redis, and its time in ms.
        # Not a pair: every comparison sets it, and new objects that stay wake Python's collector.
        self._level_run = ""
        self._level_at = 0

    def go_live(self) -> None:
        """Send what follows from now on."""
        if self.state is not State.LEFT:
            self.state = State.LIVE
            self._was_live = True

    def catch_up(self) -> None:
        """Send nothing live from now on, because the history will be read."""
        if self.state is not State.LEFT:
            self.state = State.CATCHING_UP

    def leave(self) -> None:
        """Send nothing more, for good."""
        self.state = State.LEFT

    @property
    def has_left(self) -> bool:
        """Whether nothing more is sent; check again after each wait."""
        return self.state is State.LEFT

    @property
    def position(self) -> Position:
        return Position(self.epoch, self.n)

    @property
    def latest(self) -> Position:
        """The last message that is known to have been published."""
        known = self._known
        return self.position if known is None or known < self.position else known

    @property
    def missed(self) -> bool:
        """Whether a message was skipped that is still to be sent."""
        return self._missed is not None and (self._missed[0] != self.epoch or self._missed[1] > self.n)

    @property
    def lacks(self) -> bool:
        """Whether a message of this epoch is known to have been published that has not been sent."""
        return self._known is not None and self._known.epoch == self.epoch and self._known.n > self.n

    def begin(self, position: Position, where: Where, now: float) -> None:
        """Start at the position that ``start`` found."""
        self.move(position, self.published_by(where, now))
        if where.last is None or position == where.last:
            self._prove(where)
        else:
            self.let_go(*where.last)

    def published_by(self, found: Where | Page, now: float) -> float:
        """Return when the last message of a history was published; ``now`` says by which clock."""
        return now if found.last is None else now - (self.ttl - found.ttl)

    def let_go(self, epoch: int, n: int) -> None:
        """Skip a message for now."""
        if self._missed is None or self._missed[0] != epoch or self._missed[1] < n:
            self._missed = epoch, n
        self._know(epoch, n)

    def _know(self, epoch: int, n: int) -> None:
        """Remember that a message was published, in case the history loses it before it is read."""
        known = self._known
        if (epoch, n) <= (self.epoch, self.n):
            return
        if epoch == self.epoch or (known is not None and known.epoch not in (epoch, self.epoch)):
            self._void()
        if known is None or (epoch, n) > known:
            self._known = Position(epoch, n)

    def begin_reading(self) -> Position:
        """Return where to read the history from; that will have all that was skipped so far."""
        self._missed = None
        return self.position

    @property
    def read_after(self) -> Position | None:
        """
        After which position to read; None for the latest message alone.

        What came while the browser was being told that it is subscribed is few, and it has not fallen behind.
        """
        return None if self.latest_only and self._was_live else self.position

    def move(self, position: Position, heard: float) -> None:
        """Record that all up to here was sent or reported missing, and when it was published."""
        self.epoch, self.n = position
        self.heard = heard

    def offer(self, epoch: int, n: int, run: str, now: float) -> Verdict:
        """Judge a live message that the Redis ``run`` has stamped, and move on if it is to be sent."""
        if self.state is not _LIVE:
            self.let_go(epoch, n)
            return Verdict.DROP
        if epoch == self.epoch:
            if n == self.n + 1:
                self.epoch, self.n = epoch, n  # equal, and from now on the same object for all sockets
                self.heard = now
                return SEND
            if n <= self.n:
                tally.duplicates += 1
                return Verdict.DROP
            if self.latest_only:
                self._replace(n)
                self.n = n
                self.heard = now
                return SEND
        elif n == 1 and self.n == 0 and epoch > self.epoch and self._was_level(run, epoch):
            self.epoch, self.n = epoch, 1  # the first message of a topic that was empty
            self.heard = now
            return Verdict.SEND
        self._know(epoch, n)
        return Verdict.BEHIND

    def _replace(self, n: int) -> None:
        """Count the messages that need not be sent because ``n`` is."""
        tally.replaced += n - self.n - 1

    def offer_without_id(self) -> Verdict:
        """Judge a live message that no history has."""
        if self.state is State.LIVE:
            return Verdict.SEND
        return Verdict.HOLD if self.state is State.CATCHING_UP else Verdict.DROP

    def compare(self, found: Where | Page, now: float) -> bool:
        """
        Return whether a history has what the socket lacks; if not, remember that for ``follow``.

        A smaller ``n`` of the same epoch is nothing new: the message overtook the query.
        """
        last = found.last
        if last is not None and (last.epoch != self.epoch or last.n > self.n):
            return True
        if self.lacks:
            return True
        if found.whole if last is not None else self._may_be_gone(found, now):
            self._prove(found)
        return False

    def _may_be_gone(self, found: Where | Page, now: float) -> bool:
        """Return whether an empty history proves that the socket has everything."""
        if self.n and now - self.heard < self.ttl - EXPIRY_TOLERANCE:
            self._void()  # it did not expire
        return self._was_level(found.run, found.now)

    def _prove(self, found: Where | Page) -> None:
        """Remember that the socket had everything when this was found."""
        self._level_run, self._level_at = found.run, found.now

    def _void(self) -> None:
        """Discard that proof, because something may have come and gone since."""
        self._level_run = ""

    def _was_level(self, run: str, at: int) -> bool:
        """
        Return whether nothing can have come and gone since the socket had everything.

        That is until ``at``, a time of the Redis ``run``. What is published lives for ``ttl``
        seconds, if its Redis does. The epoch of a topic that was empty is the time of its first
        message.
        """
        return bool(run) and self._level_run == run and at - self._level_at < self.ttl * 1000

    def follow(self, page: Page, now: float) -> tuple[bool, list[Frame]]:
        """
        Decide what to send of a page read from the history.

        Returns:
            Whether something is missing for good, in which case the cursor has been set to just
            before the first message that is still available, and the frames to send, each of which
            the caller confirms with ``move``. ``has_all`` then returns whether there is more to
            read.

        """
        last = page.last
        if last is None or (last.epoch == self.epoch and last.n <= self.n):
            return self._find_lost(last, now), []
        if last.epoch != self.epoch and self._began_anew(page, now):
            clock_was_set_back = self.epoch > last.epoch
            self.epoch, self.n = last.epoch, 0
            self._void()
            if clock_was_set_back:
                return False, []  # the page follows a later epoch, and so has nothing; read again
        if self.latest_only and last.epoch == self.epoch and page.frames:
            self._replace(page.frames[0].position.n)
            return False, page.frames
        frames: list[Frame] = []
        n = self.n
        for frame in page.frames:
            n += 1
            if frame.position != (self.epoch, n):
                break
            frames.append(frame)
        if frames:
            return False, frames
        following = next((frame.position for frame in page.frames if frame.position.epoch == last.epoch), last)
        self.move(Position(following.epoch, following.n - 1), now)
        self._void()
        return True, []

    def has_all(self, page: Page, before: Position) -> bool:
        """Return whether nothing is missing now that a page read after ``before`` was sent."""
        at_the_end = page.last is None or self.position in (before, page.last)
        return at_the_end and not self.lacks and not self.missed

    def _began_anew(self, page: Page, now: float) -> bool:
        """Return whether the old epoch expired with the socket level, and the new one is whole."""
        if page.last is None or page.first != (page.last.epoch, 1) or not self._was_level(page.run, page.now):
            return False
        return self.n == 0 or now - self.heard >= self.ttl - EXPIRY_TOLERANCE

    def _find_lost(self, last: Position | None, now: float) -> bool:
        """Return whether a message that was seen has left the history; if so, move past it."""
        known = self._known
        if known is None or known <= self.position or (last is not None and known.epoch != last.epoch):
            return False
        self.move(known, now)
        self._void()
        return True
