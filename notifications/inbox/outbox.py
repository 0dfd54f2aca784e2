"""
What is pending is published: by the listener in charge, all the time, and by ``manage.py publish_pending``.

Everything here blocks; the listener does it in a thread.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Final

from django.db import Error as DatabaseFailure
from django.db import connections, router
from django.db.models import Max, Q
from django.utils import timezone

from ..logs import LogBudget, describe
from .publishing import Outcome, publish_rows
from .rows import model, table

logger = logging.getLogger(__name__)

POLL_INTERVAL: Final = 1.0
"""Seconds between two looks for pending rows."""
GRACE: Final = timedelta(seconds=2)
"""How long whoever has committed a row may take to publish it."""
ROWS_AT_ONCE: Final = 500
CONNECTION_AGE: Final = 60.0
"""Seconds after which a connection to a database is replaced, so that none is held for good."""
FIRST_PAUSE: Final = 1.0
LONGEST_PAUSE: Final = 30.0
"""Seconds until a database that has failed is asked again; they double."""


def databases() -> list[str]:
    """
    Return the aliases of the databases that may have notices: those to which the routers let them migrate.

    A replica lags behind: what is published from it could be a number of the past, and it takes no note of that. Many
    sites' routers let everything migrate, so it is also known by ``TEST["MIRROR"]``.
    """
    return [
        alias
        for alias in connections
        if not connections[alias].settings_dict["TEST"]["MIRROR"] and router.allow_migrate_model(alias, model())
    ]


def has_table(db: str) -> bool:
    """Return whether a database has the table; raises the errors of the database."""
    return model()._meta.db_table in connections[db].introspection.table_names()


def tables(database: str | None) -> list[str]:
    """
    Return the aliases of the databases that have the table, for a command.

    Args:
        database: The only one to look at, whether it has the table or not.

    """
    return [database] if database else [db for db in databases() if has_table(db)]


def publish_pending(db: str, *, until: int | None = None, stopped: Callable[[], bool] = lambda: False) -> Outcome:
    """
    Publish all pending rows of a database once, in the order of their ids; raises the errors of the database.

    Args:
        db: Its alias.
        until: Only those up to this id.
        stopped: Asked after each batch whether to stop.

    Returns:
        What became of them. If nothing was told and something failed, Redis does not answer.

    """
    pending = table(db).filter(pending_since__isnull=False)
    if until is not None:
        pending = pending.filter(pk__lte=until)
    total, last = Outcome(), 0
    while not stopped():
        rows = list(pending.filter(pk__gt=last).order_by("pk")[:ROWS_AT_ONCE])
        if not rows:
            break
        outcome = publish_rows(rows, db)
        total = Outcome(*(one + other for one, other in zip(total, outcome, strict=True)))
        if outcome.failed and not outcome.told:
            break
        last = rows[-1].pk
    return total


class Outbox:
    """Looks for pending rows in all databases. Each of them may fail, and then is left alone for a while."""

    def __init__(self) -> None:
        self._stopped = threading.Event()
        self._pauses: dict[str, Iterator[float]] = {}
        self._not_before: dict[str, float] = {}
        self._without_table: set[str] = set()
        self._replace_at = 0.0
        self._log = LogBudget(logger, lines=1, period=60.0)

    def run(self) -> None:
        """Look until stopped; then close this thread's connections."""
        try:
            while not self._stopped.wait(POLL_INTERVAL):
                self.look()
        finally:
            connections.close_all()

    def stop(self) -> None:
        """Let ``run`` and ``look`` return after the current batch."""
        self._stopped.set()

    def look(self) -> None:
        """Publish once what is pending. Failures of databases are logged."""
        now = time.monotonic()
        if now >= self._replace_at:
            connections.close_all()
            self._replace_at = now + CONNECTION_AGE
        for db in databases():
            if self._stopped.is_set() or now < self._not_before.get(db, now):
                continue
            try:
                self._publish_overdue(db)
            except DatabaseFailure as error:
                self._failed(db, error)
            else:
                self._pauses.pop(db, None)

    def _publish_overdue(self, db: str) -> None:
        """Publish what should have been published by now, and what comes before it."""
        now = timezone.now()
        # A time of the future is one of a host whose clock is ahead or, without USE_TZ, of an hour that comes twice.
        overdue = table(db).filter(Q(pending_since__lte=now - GRACE) | Q(pending_since__gt=now + GRACE))
        # In the order of the index, and so by it: after an outage PostgreSQL may take many rows for pending, and would
        # look for the largest id among all rows, each second.
        if not overdue.order_by("pending_since").values_list("pk")[:1]:
            return
        if (last := overdue.aggregate(last=Max("pk"))["last"]) is not None:
            publish_pending(db, until=last, stopped=self._stopped.is_set)

    def _failed(self, db: str, error: DatabaseFailure) -> None:
        pause = next(self._pauses.setdefault(db, _pauses()))
        try:
            connections[db].close()
            is_missing = not has_table(db)
        except DatabaseFailure:
            is_missing = False
        if is_missing:
            pause = LONGEST_PAUSE
            if db not in self._without_table:
                logger.warning("database %r has no table of kept notices: run migrate, or see docs/inbox.md", db)
                self._without_table.add(db)
        else:
            self._log.warning("kept notices of database %r cannot be published: %s", db, describe(error, named=True))
        self._not_before[db] = time.monotonic() + pause


def _pauses() -> Iterator[float]:
    pause = FIRST_PAUSE
    while True:
        yield pause
        pause = min(2 * pause, LONGEST_PAUSE)


async def empty_outbox() -> None:
    """Publish what is pending until cancelled: a duty of the listener in charge."""
    outbox = Outbox()
    # A daemon: a listener that is told to stop must not wait for a database that does not answer.
    thread = threading.Thread(target=outbox.run, name="notifications-outbox", daemon=True)
    thread.start()
    try:
        while thread.is_alive():  # noqa: ASYNC110  if it fails, the duty begins anew
            await asyncio.sleep(POLL_INTERVAL)
    finally:
        outbox.stop()
