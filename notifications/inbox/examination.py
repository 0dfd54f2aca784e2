"""What the doctor reports of kept notices."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from channels.db import database_sync_to_async
from django.db import Error as DatabaseFailure
from django.utils import timezone

from ..doctor.findings import Finding, Level
from ..logs import describe
from .outbox import databases, has_table
from .rows import table

CHECK: Final = "inbox"
OVERDUE: Final = timedelta(seconds=60)
"""A listener publishes within seconds of Redis's return what is pending."""
SHOWN: Final = 1000
"""Pending rows are counted up to here."""


async def examine() -> list[Finding]:
    """Look in each database for notices that should have been published by now."""
    return [finding for db in databases() for finding in await database_sync_to_async(_examine)(db)]


def _examine(db: str) -> list[Finding]:
    try:
        if not has_table(db):
            text = f"database {db!r} has no table of kept notices"
            hint = "Run migrate. For tenants with tables of their own run this command, and publish_pending, in each."
            return [Finding(CHECK, Level.WARNING, text, hint)]
        overdue = table(db).filter(pending_since__lt=timezone.now() - OVERDUE)[: SHOWN + 1].count()
    except DatabaseFailure as error:
        return [Finding(CHECK, Level.WARNING, f"database {db!r} cannot be asked: {describe(error, named=True)}")]
    if not overdue:
        return [Finding(CHECK, Level.OK, f"all kept notices of database {db!r} are published")]
    number = f"{overdue}" if overdue <= SHOWN else f"more than {SHOWN}"
    text = f"{number} kept notice(s) of database {db!r} wait for more than {OVERDUE.seconds} s to be published"
    return [Finding(CHECK, Level.WARNING, text, "The listener in charge does that: look at its log, or restart it.")]
