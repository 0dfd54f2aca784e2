"""
What a listener remembers of recently stamped messages. Pure.

It is needed when the holder has died before it forwarded what it had stamped, and when this
listener's subscription had a gap. Of what a script has delivered there is nothing to forward: only
the ids are remembered.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

from ..history.position import Position
from ..history.stamped import Stamped

MAX_AGE: Final = 10.0
"""Seconds; a lease ends after 3, a stand-by asks every 0.5, and the holder may have been slow
before."""
MAX_BYTES: Final = 32 * 1024 * 1024
"""Bytes of frames; what exceeds that, sockets find themselves."""
GAP_AGE: Final = 60.0
"""Seconds after a gap after which sockets have found themselves what they miss."""
MAX_TOPICS: Final = 10_000
"""Topics whose last id is remembered."""


class Recent:
    """
    The last frame that was to be forwarded, and the last id, of each topic.

    The last frame is enough: a socket that misses earlier ones reads them from the history.
    Forwarding all frames of the last seconds again took longer than the takeover itself.

    Attributes:
        seen: The last ids that had been seen when the subscription had its last gap.

    """

    def __init__(self) -> None:
        self.seen: dict[str, Position] = {}
        self._before_gap: dict[str, Position] = {}
        self._gap_at = 0.0
        self._frames: OrderedDict[str, tuple[float, Stamped]] = OrderedDict()
        self._bytes = 0
        self._last: OrderedDict[str, Position] = OrderedDict()

    def add(self, stamped: Stamped, now: float) -> None:
        if stamped.position is None:
            return  # without an id no socket could recognise a duplicate
        frames, topic = self._frames, stamped.topic
        self._bytes += len(stamped.frame)
        if (earlier := frames.pop(topic, None)) is not None:
            self._bytes -= len(earlier[1].frame)
        frames[topic] = now, stamped
        while self._bytes > MAX_BYTES or now - next(iter(frames.values()))[0] > MAX_AGE:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        topic, (_, stamped) = self._frames.popitem(last=False)
        self._bytes -= len(stamped.frame)
        if stamped.position is not None:
            self._note(topic, stamped.position)

    def _note(self, topic: str, position: Position) -> None:
        self._last[topic] = position
        self._last.move_to_end(topic)
        if len(self._last) > MAX_TOPICS:
            self._last.popitem(last=False)

    def frames(self, now: float) -> list[Stamped]:
        """List the last frame of each topic that had one in the last ``MAX_AGE`` seconds, oldest first."""
        return [stamped for at, stamped in self._frames.values() if now - at <= MAX_AGE]

    def before_gap(self, now: float) -> dict[str, Position]:
        """Return, once, the last ids seen before the last gap, unless that was long ago."""
        seen, self._before_gap = self._before_gap, {}
        return seen if now - self._gap_at < GAP_AGE else {}

    def gap(self, now: float, published: Iterable[tuple[str, Position]] = ()) -> None:
        """Record that messages may be missed from now on; ``published`` are last ids that ``add`` was not told of."""
        while self._frames:
            self._drop_oldest()
        for topic, position in published:
            if self._last.get(topic, position) <= position:
                self._note(topic, position)
        self._before_gap = self.seen = dict(self._last)
        self._gap_at = now
