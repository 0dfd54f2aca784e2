"""What of numbered messages arrived, and how: lost, repeated, out of order. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field


class Reader:
    """One who should get the messages 1, 2, 3 … of a topic, each once."""

    __slots__ = ("last", "missing")

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Wait for number 1 again."""
        self.last = 0
        self.missing: set[int] = set()

    def lost(self, published: int) -> int:
        """Count what of ``published`` messages has not come."""
        return len(self.missing) + published - self.last


@dataclass
class Tally:
    """What all readers together have had."""

    received: int = 0
    """Without what came again."""
    repeated: int = 0
    late: int = 0
    """Arrived after one that was published later on the same topic."""
    lost: int = 0
    latencies: list[float] = field(default_factory=list)
    """Milliseconds."""

    def take(self, reader: Reader, seq: int) -> None:
        """Count a message."""
        if seq > reader.last:
            reader.missing.update(range(reader.last + 1, seq))
            reader.last = seq
        elif seq in reader.missing:
            reader.missing.discard(seq)
            self.late += 1
        else:
            self.repeated += 1
            return
        self.received += 1

    def finish(self, readers: Iterable[Reader], published: int) -> None:
        """Count what of ``published`` messages to each reader has not come."""
        self.lost = sum(reader.lost(published) for reader in readers)
