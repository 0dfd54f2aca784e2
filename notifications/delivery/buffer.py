"""
Messages without an id that arrive while a socket catches up from the history. Pure.

No history has them, so dropping them would lose them, and sent at once they would overtake what is
being read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Final

from ..history.position import Position
from ..metrics import count
from .cursor import Cursor

MAX_HELD: Final = 256 * 1024
"""Characters that one socket holds back: as much as a page. What exceeds that is dropped and
counted."""
HELD_ENTRY: Final = 200
"""Approximate memory of a message besides its text."""


class Held:
    """What one socket holds back, of all its topics; ``size`` is how much it takes."""

    __slots__ = ("_texts", "size")

    def __init__(self) -> None:
        self.size = 0
        self._texts: dict[Cursor, deque[tuple[Position, str]]] = {}
        """By topic; each text with the last message known to have been published before it."""

    def keep(self, cursor: Cursor, text: str) -> None:
        """Keep a message, after all that is known to precede it; drop it if there is no room."""
        if self.size >= MAX_HELD:
            count("dropped", "catching up, no history")
            return
        self.size += len(text) + HELD_ENTRY
        self._texts.setdefault(cursor, deque()).append((cursor.latest, text))

    def has(self, cursor: Cursor) -> bool:
        """Return whether anything of a topic is held back."""
        return cursor in self._texts

    def before(self, cursor: Cursor, position: Position) -> Iterator[str]:
        """Yield, once, what came before the message at ``position``."""
        texts = self._texts.get(cursor)
        while texts and texts[0][0] < position:
            yield self._next(cursor, texts)

    def all(self, cursor: Cursor) -> Iterator[str]:
        """Yield, once, all that is left."""
        texts = self._texts.get(cursor)
        while texts:
            yield self._next(cursor, texts)

    def _next(self, cursor: Cursor, texts: deque[tuple[Position, str]]) -> str:
        text = texts.popleft()[1]
        self.size -= len(text) + HELD_ENTRY
        if not texts:
            del self._texts[cursor]
        return text
