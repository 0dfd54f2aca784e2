"""What a process reports of its share of a job, and the message that tells how the whole job stands. Pure."""

from __future__ import annotations

from typing import Final

from ..history.shares import WHOLE, Report, Share, Standing
from ..messages import JobProgress, JobProgressPayload
from .counts import FIRST_ESTIMATE, rounded

ALMOST: Final = 99.99
"""The most percent of a job that has not succeeded."""


def report_of(
    share: Share, own: JobProgressPayload, attempt: str, *, news: bool, seen: int, interval: float, silence: float
) -> Report:
    """
    Return the report of a share, from what it would tell if it were a job of its own.

    Args:
        share: Which one.
        own: As said.
        attempt: As in ``Report``, as are ``news`` and ``seen``.
        news: As said.
        seen: As said.
        interval: In seconds here.
        silence: In seconds here.

    """
    done = round((own.percent or 0) * WHOLE / 100)
    times = round(interval * 1000), round(silence * 1000)
    return Report(share, attempt, own.state, done, own.error or "", news, seen, *times)


def whole(own: JobProgressPayload, standing: Standing) -> JobProgress:
    """Return the message of how the job stands: the texts are those of whoever tells it, the numbers are of all."""
    percent: float = standing.done * 10_000 // (standing.of * WHOLE) / 100
    return JobProgress(
        payload=JobProgressPayload(
            id=own.id,
            state=standing.state,
            percent=100 if standing.state == "succeeded" else min(percent, ALMOST),
            done=standing.ended,
            total=standing.of,
            unit=own.unit,
            stage=own.stage,
            message=own.message,
            eta=_eta(standing),
            error=standing.error or None if standing.state == "failed" else None,
            url=own.url,
        )
    )


def _eta(standing: Standing) -> float | None:
    """Return the seconds that the rest takes at the rate so far; None if it is too early to tell."""
    left, elapsed = standing.of * WHOLE - standing.done - standing.lost, standing.elapsed / 1000
    if standing.state != "running" or not standing.done or left <= 0 or elapsed < FIRST_ESTIMATE:
        return None
    return rounded(elapsed * left / standing.done)
