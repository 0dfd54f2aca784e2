"""The bar of a job in a terminal."""

from __future__ import annotations

import shutil
import sys
from typing import Final, TextIO

from ..messages import JobProgressPayload

BAR: Final = 30
"""Characters of the bar."""
TO_END_OF_LINE: Final = "\x1b[K"


def is_terminal() -> bool:
    """Return whether standard error is a terminal: in a pipe or a log a bar is noise."""
    return sys.stderr is not None and sys.stderr.isatty()


def draw(job: JobProgressPayload, *, last: bool = False, file: TextIO | None = None) -> None:
    """Write the bar over what stands in the line. Whatever becomes of the terminal is no concern of the job."""
    file = file or sys.stderr
    width = shutil.get_terminal_size().columns
    try:
        file.write(f"\r{line(job)[: width - 1]}{TO_END_OF_LINE}{chr(10) if last else ''}")
        file.flush()
    except (OSError, ValueError):  # it is gone, or closed
        pass


def line(job: JobProgressPayload) -> str:
    """Write a job in one line."""
    parts = [_clean(job.stage or job.id)]
    if job.percent is not None:
        full = int(job.percent * BAR / 100)
        parts.append(f"{int(job.percent):3} % [{'#' * full}{'.' * (BAR - full)}]")
    if job.done is not None:
        count = f"{job.done:,}" if job.total is None else f"{job.done:,}/{job.total:,}"
        parts.append(f"{count} {_clean(job.unit or '')}".rstrip())
    if job.eta is not None:
        minutes, seconds = divmod(round(job.eta), 60)
        hours, minutes = divmod(minutes, 60)
        parts.append(f"{hours}:{minutes:02}:{seconds:02} left" if hours else f"{minutes}:{seconds:02} left")
    if job.state != "running":
        parts.append(job.state)
    parts += [_clean(text) for text in (job.error, job.message) if text]
    return "  ".join(parts)


def _clean(text: str) -> str:
    """Leave out line breaks and control characters: a file's name must not move the cursor."""
    return " ".join("".join(each if each.isprintable() else " " for each in text).split())
