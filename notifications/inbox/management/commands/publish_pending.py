"""``manage.py publish_pending``: publish kept notices that browsers have not been told of."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import connections

from notifications.inbox.outbox import publish_pending, tables


class Command(BaseCommand):
    help = (
        "Publish the kept notices, and changes of them, that browsers have not been told of. The listener in charge "
        "does so all the time; this is for sites without one, and for tenants whose tables it does not see."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--database", choices=tuple(connections), help="Only in the database of this alias.")

    def handle(self, *, database: str | None, **options: Any) -> None:
        told = refused = 0
        for db in tables(database):
            while True:
                outcome = publish_pending(db)
                told += outcome.told
                refused += outcome.refused
                if outcome.failed and not outcome.told:
                    raise CommandError(f"Redis does not answer: {told} told, {outcome.failed} or more are pending")
                if not outcome.failed:
                    break
        self.stdout.write(f"{told} told" + (f", {refused} refused: see the log" if refused else ""))
