"""
What a task of a queue carries if it is a share of a job: ``track`` of a queue writes it, and its worker reads it.

It is plain JSON of some hundred bytes, so that any serializer of a queue takes it.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from typing import Any, Final, NamedTuple, Self

from ..history.shares import Share
from ..jobs import announce
from ..messages import State
from ..progress import Progress
from ..topics import Topic

TEXTS: Final = frozenset({"unit", "stage", "message", "url"})
"""What ``track`` may be given besides."""


class Tracked(NamedTuple):
    """Which share of a job a task is, and what is told of that job besides."""

    topic: Topic
    share: Share
    texts: Mapping[str, Any]

    @classmethod
    def read(cls, carried: Mapping[str, Any]) -> Self:
        """Read what a task carries; raises anything if that is nonsense."""
        share = Share(carried["key"], of=carried["of"], run=carried["run"], needed=carried["needed"])
        texts = {name: text for name, text in carried["texts"].items() if name in TEXTS}
        return cls(Topic.parse(carried["topic"]), share, texts)

    def progress(self) -> Progress:
        """Return the progress of the share, not begun."""
        return Progress(self.topic, share=self.share, **self.texts)

    def announce(self, state: State, error: str | None = None) -> None:
        """Tell how the share stands, from beside it."""
        announce(self.topic, state=state, error=error, share=self.share, **self.texts)

    def begin(self) -> None:
        """Tell that the job waits, if this is its first share; before it is put into a queue."""
        if self.share.key == "0":
            announce(self.topic, share=Share("", of=self.share.of, run=self.share.run), **self.texts)


class Marks:
    """The shares of one run of a job, while ``track`` goes through what is to be one."""

    def __init__(self, topic: Topic | str, texts: Mapping[str, Any]) -> None:
        """
        Begin with no share.

        Raises:
            TopicError: The topic is not valid.
            TypeError: There is no such text.

        """
        if unknown := texts.keys() - TEXTS:
            raise TypeError(f"track takes no {', '.join(sorted(unknown))}")
        self._run = f"{time.time_ns():020}-{secrets.token_hex(4)}"  # later ones sort after earlier ones
        said = {name: str(text) for name, text in texts.items() if text is not None}
        topic = Topic.parse(topic) if isinstance(topic, str) else topic
        self._same = {"topic": str(topic), "run": self._run, "texts": said}
        self._carried: list[dict[str, Any]] = []

    def mark(self, *, needed: bool) -> dict[str, Any]:
        """Return what the next share has to carry; it is complete after ``close``."""
        carried = {**self._same, "key": str(len(self._carried)), "needed": needed}
        self._carried.append(carried)
        return carried

    def close(self) -> None:
        """
        Tell all shares how many there are.

        Raises:
            ValueError: There are none, or too many.

        """
        of = len(self._carried)
        if not of:
            raise ValueError("there is no task to track, and so no job")
        Share("", of=of, run=self._run).check()
        for carried in self._carried:
            carried["of"] = of
