"""
A job that several processes do: what each of them reports, what that changes, and who publishes it. Pure.

Every process reports how far its share is. What all reports together say is the job's standing, which has a version:
each report that changes something has the next one. A message is published with the version of its numbers, and only if
no later one went out before, so that no process overtakes another. Who may publish is decided by a gate, which opens
``PROGRESS_RATE`` times a second for all processes together; the others find that what they reported was published by
somebody else, or report again when it opens. The end needs no gate.

``MemoryStore`` uses ``Job``; ``broker/lua/shares.lua`` does the same in Redis.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

from ..messages import State

WHOLE: Final = 1_000_000
"""How much of a share can be done, as a whole number, so that sums are exact."""
MAX_SHARES: Final = 100_000
"""Shares of one job."""
MAX_KEY: Final = 200
"""Characters of the key of a share, and of a run."""
SHARES_TTL: Final = 86_400
"""Seconds that the standing of a job is remembered after its last report."""
ENDED_TTL: Final = 3_600
"""Seconds that it is remembered that a job without a run has ended, before it may begin again on the same topic: a
share that was done twice may report later than that end. The end of a run is remembered for ``SHARES_TTL``: queues give
to another worker what was not acknowledged for an hour, and another run need not wait."""
OVER: Final = ("succeeded", "failed", "cancelled")
"""The states in which a job is over."""


class Share(NamedTuple):
    """
    What one of several processes does of a job, such as one task of a group.

    Attributes:
        key: Names the share, in up to ``MAX_KEY`` characters: the same each time it is tried, so that one that is
            retried, or delivered twice by its queue, counts once.
        of: How many shares the job has, up to ``MAX_SHARES``.
        run: Which run of the job, if its topic is used again, in up to ``MAX_KEY`` characters. Later runs sort after
            earlier ones, by their bytes in UTF-8. What is reported of an earlier one than the current is ignored, as
            is what is reported after the end of a run.
        needed: The others do not run, or make no sense, if it fails: then the job ends at once, as failed.

    """

    key: str
    of: int
    run: str = ""
    needed: bool = False

    def check(self) -> None:
        """
        Make sure that it is one.

        Raises:
            ValueError: A value is not as described above.

        """
        if isinstance(self.of, bool) or not isinstance(self.of, int) or not 1 <= self.of <= MAX_SHARES:
            raise ValueError(f"a job has 1 to {MAX_SHARES} shares, not {self.of!r}")
        for name, text in (("key", self.key), ("run", self.run)):
            if not isinstance(text, str) or len(text) > MAX_KEY:
                raise ValueError(f"the {name} of a share is a text of up to {MAX_KEY} characters")
            try:
                text.encode()
            except UnicodeEncodeError:
                raise ValueError(f"the {name} of a share cannot be written in UTF-8") from None


class Report(NamedTuple):
    """
    What one process says of its share.

    Attributes:
        share: Which one; without a key, the job itself.
        attempt: Tells those who do the same share from each other.
        state: Of the share. ``waiting``: it will be tried again, from the beginning.
        done: How much of it is done, from 0 to ``WHOLE``.
        error: Why it has failed; empty if nobody is to know.
        news: There is something new to tell besides ``state`` and ``done``.
        seen: The version from which on the caller's last report is told; 0 if there was none.
        interval: Milliseconds between two messages of the job.
        silence: Milliseconds without a message after which one is due though nothing has changed.

    """

    share: Share
    attempt: str
    state: State
    done: int
    error: str
    news: bool
    seen: int
    interval: int
    silence: int

    @property
    def asks(self) -> bool:
        """Whether it says nothing, and only asks how the job stands: it begins no run."""
        return not self.share.key and not self.news


class Standing(NamedTuple):
    """
    How a job stands after a report.

    Attributes:
        counts: ``yes``; ``old`` if another run has begun since, or none has and the caller only asks; ``many`` if the
            job has as many shares as it can have. Then the report has changed nothing, and the rest says nothing but
            ``cancelled``.
        cancelled: Whether the share is to be cancelled.
        turn: Whether the caller is to publish this.
        wait: Otherwise, milliseconds until it can have its turn.
        version: The version of this standing.
        seen: The version from which on what the caller has reported is told.
        told: The version that was published last; 0 if none was.
        state: Of the job.
        of: How many shares it has.
        ended: How many of them have ended.
        done: The sum of what is done of all, in parts of ``WHOLE``.
        lost: The sum of what is not done of those that have failed.
        elapsed: Milliseconds since the first of them began.
        error: Of the first that failed; empty if nobody is to know.

    """

    counts: Literal["yes", "old", "many"]
    cancelled: bool
    turn: bool = False
    wait: int = 0
    version: int = 0
    seen: int = 0
    told: int = 0
    state: State = "waiting"
    of: int = 0
    ended: int = 0
    done: int = 0
    lost: int = 0
    elapsed: int = 0
    error: str = ""

    @property
    def over(self) -> bool:
        """Whether the job has ended."""
        return self.state in OVER


class ShareState(NamedTuple):
    """What is remembered of a share."""

    done: int = 0
    state: str = ""
    attempt: str = ""


class Job:
    """
    All that was reported of one run.

    Attributes:
        run: Which one.
        version: Of its standing.
        told: The version that was published last, and the id of the message.

    """

    def __init__(self, run: str, of: int, version: int = 0, told: tuple[int, str | None] = (0, None)) -> None:
        """Begin a run; its versions follow those of the run before."""
        self.run, self.version, self.told = run, version, told
        self._of = of
        self._shares: dict[str, ShareState] = {}
        self._state: State = "waiting"
        self._began: int | None = None
        self._gate = self._ended = self._failed = self._done = self._lost = 0
        self._error = ""
        self._fresh = True

    @property
    def over(self) -> bool:
        return self._state in OVER

    def is_before(self, run: str) -> bool:
        """Return whether another run is later."""
        return self.run.encode() < run.encode()

    def report(self, report: Report, now: int, *, cancelled: bool) -> Standing:
        """
        Take a report and return how the job stands then.

        Args:
            report: Of this run.
            now: The time, in milliseconds.
            cancelled: Whether somebody has asked to cancel the job.

        """
        seen = report.seen
        self.version = max(
            self.version, self.told[0]
        )  # a store may have lost the job, and been told a version of before
        if not self.over:
            known = self._shares.get(report.share.key)
            if known is None and report.share.key and len(self._shares) == self._of:
                return Standing("many", cancelled)
            changed = self._count(report, known or ShareState(), now) or self._fresh
            self._fresh = False
            last = min(self._gate - report.interval, now)
            if changed or report.news or now - last >= report.silence:
                self.version += 1
                seen = self.version
        if self.over:
            turn, wait = self.told[0] < self.version, 0
            cancelled = self._state == "cancelled"
        else:
            is_open = now >= self._gate or self._gate > now + report.interval  # the clock may have been set back
            turn = is_open and self.told[0] < seen
            wait = 0 if is_open else self._gate - now
            if turn:
                self._gate = now + report.interval
        elapsed = 0 if self._began is None else max(0, now - self._began)
        counted = (self._of, self._ended, self._done, self._lost)
        return Standing(
            "yes", cancelled, turn, wait, self.version, seen, self.told[0], self._state, *counted, elapsed, self._error
        )

    def _count(self, report: Report, known: ShareState, now: int) -> bool:
        """Note what is reported of a share; return whether that changes anything."""
        state, done, key = report.state, report.done, report.share.key
        if known.state == "succeeded":
            return False  # done twice
        if state == "running" and known.state in ("waiting", "failed") and known.attempt == report.attempt:
            return False  # late: it was sent before its end
        began = state != "waiting" and self._began is None
        if began:
            self._began, self._state = now, "running"
        if state == "waiting":
            done = 0
        elif state == "succeeded":
            done = WHOLE
        elif known.state == "running" or (known.state == "failed" and state == "failed"):
            done = max(done, known.done)  # if two do it, the one that is further
        if key:
            self._ended += (state in ("succeeded", "failed")) - (known.state == "failed")
            self._lost += (WHOLE - done) * (state == "failed") - (WHOLE - known.done) * (known.state == "failed")
            self._done += done - known.done
            self._failed -= known.state == "failed"
            self._shares[key] = ShareState(done, state, report.attempt)
        if state == "failed":
            self._error = self._error if self._failed else report.error
            self._failed += 1
        elif not self._failed:
            self._error = ""
        if state == "cancelled" or (state in OVER and not key) or (state == "failed" and report.share.needed):
            self._state = state
        elif self._ended == self._of:
            self._state = "failed" if self._failed else "succeeded"
        return began or (bool(key) and (known.done, known.state) != (done, state)) or self.over
