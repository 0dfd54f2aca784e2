"""The listeners, according to their own reports."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Final

from ..aio import Timeout
from ..bridge import status
from ..broker.clients import FAILURES, SOCKET_TIMEOUT
from ..conf import settings
from ..history.stamped import STAMPED
from ..topics import internal_name
from .findings import Finding, Level, explain

SUCCEEDED_AFTER: Final = 2 * status.REPORT_INTERVAL
"""Seconds of silence after which a holder with a successor hangs; it loses the lease after at least two."""


async def examine_listeners(client: Any, *, direct: bool) -> list[Finding]:
    """Judge the reports; ``direct`` says whether scripts deliver what ``publish_*`` send."""
    try:
        async with Timeout(SOCKET_TIMEOUT):
            reports = await status.reports(client)
    except FAILURES as error:
        return [Finding("listeners", Level.ERROR, *explain(error))]
    hanging = [(report, age) for report, age in reports if _hangs(report, age, reports)]
    silent = [
        f"{report.name} was {report.role} and has said nothing {_since(age)}: it hangs, or was killed"
        for report, age in hanging
    ]
    restart = "Look at its process and its log; a supervisor should restart it."
    found = [Finding("listeners", Level.WARNING, text, restart) for text in silent]
    living = [report for report, age in reports if (report, age) not in hanging]
    found += [
        Finding("listeners", Level.WARNING, f"{report.name} is {report.state}", "It tries again by itself.")
        for report in living
        if not report.healthy
    ]
    healthy = [report for report in living if report.healthy]
    if not healthy:
        late = "arrives" if direct else "comes from the history, late"
        text = "no listener is alive and connected" + await _others(client)
        text += f": what other programs publish is lost, and what publish_* send {late}"
        hint = restart if silent else "" if living else "Run manage.py run_listener."
        return [Finding("listeners", Level.ERROR, text, hint), *found]
    names = ", ".join(f"{report.name} {report.role}" for report in healthy)
    led = {shard for report in healthy for shard in report.shards}
    if len(healthy) == 1:
        hint = "Run two: while none runs, what other programs publish is lost."
        found.append(Finding("listeners", Level.WARNING, f"only one listener: {names}", hint))
    elif all(report.state != "holder" for report in healthy):
        hint = "A takeover takes 3.5 s; ask again."
        found.append(Finding("listeners", Level.WARNING, f"nobody holds the lease: {names}", hint))
    elif nobodys := sorted(set(range(settings.SHARDS)) - led) if settings.SHARDS > 1 else []:
        text = f"nobody leads the shards {' '.join(map(str, nobodys))}: {names}"
        found.append(Finding("listeners", Level.WARNING, text, "A takeover takes 3.5 s; ask again."))
    else:
        found.append(Finding("listeners", Level.OK, names))
    return found


def _hangs(report: status.Report, age: float, reports: list[tuple[status.Report, float]]) -> bool:
    """
    Return whether a listener has failed to report.

    A former holder with a successor lost the lease because it did not renew it, which shows before its report is old.
    A holder that gives back the lease reports it, perhaps a moment after its successor does.
    """
    if not status.is_fresh(age):
        return True
    succeeded = report.state == "holder" and any(
        other.state == "holder" and at < age and status.same_shard(report, other) for other, at in reports
    )
    return succeeded and age > SUCCEEDED_AFTER


def _since(age: float) -> str:
    return f"for {age:.0f} s" if age >= 0 else "since Redis's clock was set back"


async def _others(client: Any) -> str:
    """Return a note if there are listeners with another prefix."""
    ours, others = internal_name(STAMPED), []
    with suppress(*FAILURES):  # narrow accounts may not ask
        async with Timeout(SOCKET_TIMEOUT):
            others = [
                name.decode(errors="replace") for name in await client.pubsub_channels(f"*notifications:{STAMPED}")
            ]
    prefixes = [name.removesuffix(f"notifications:{STAMPED}") for name in sorted(others) if name != ours]
    return f"; there is one with PREFIX {prefixes[0]!r}" if prefixes else ""
