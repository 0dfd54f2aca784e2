"""``manage.py prune_notices``: delete kept notices that nobody needs any more."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError
from datetime import timedelta
from typing import Any, Final

from django.core.management.base import BaseCommand
from django.db import connections
from django.db.models import Q
from django.utils import timezone

from notifications.inbox.outbox import tables
from notifications.inbox.rows import table

DELETED_AT_ONCE: Final = 1000
"""Rows of one query: no lock is held for long."""
MOST_DAYS: Final = timedelta(days=100_000)


def days(text: str) -> timedelta:
    """Parse ``--days``."""
    try:
        value = timedelta(days=float(text))
    except (ValueError, OverflowError):
        value = timedelta.min
    if not timedelta() <= value <= MOST_DAYS:
        raise ArgumentTypeError(f"a number of days, from 0 to {MOST_DAYS.days}")
    return value


class Command(BaseCommand):
    help = "Delete kept notices that have expired, and those that were read or archived some time ago."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--days", type=days, default="90", help="Those read or archived before so many days (default: 90)."
        )
        parser.add_argument("--database", choices=tuple(connections), help="Only in the database of this alias.")

    def handle(self, *, days: timedelta, database: str | None, **options: Any) -> None:
        now = timezone.now()
        old = Q(expires_at__lte=now) | Q(read_at__lt=now - days) | Q(archived_at__lt=now - days)
        deleted = 0
        for db in tables(database):
            last = 0
            while ids := list(
                table(db).filter(old, pk__gt=last).order_by("pk").values_list("pk", flat=True)[:DELETED_AT_ONCE]
            ):
                # Once more with the condition: one may have been marked as unread meanwhile.
                deleted += table(db).filter(old, pk__in=ids).delete()[0]
                last = ids[-1]
        self.stdout.write(f"{deleted} deleted")
