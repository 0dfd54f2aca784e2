"""The import of a table: what a worker does, and the command ``import_csv``."""

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Literal

from django.conf import settings
from django.db import transaction
from django.forms import modelform_factory

from notifications import Cancelled, Progress, announce
from notifications.inbox import notify
from notifications.messages import Notice
from project.imports.models import Import, Place
from project.imports.tables import COLUMNS, Row, TableError, read_table
from project.queue import MAX_ATTEMPTS, ClaimLostError

logger = logging.getLogger(__name__)

STEPS = 40
"""Batches that a table is written in, as long as a batch has between ``MIN_BATCH`` and ``MAX_BATCH`` rows."""
MIN_BATCH = 5
MAX_BATCH = 500
MAX_REASONS = 100
"""Wrong rows whose reasons are kept; the others are counted."""

PlaceForm = modelform_factory(Place, fields=COLUMNS)
"""A row is validated as if somebody had typed it into a form."""


class ImportFailedError(Exception):
    """The import has ended without a result; the message gives the reason to its owner."""


def import_next(stop: threading.Event) -> bool:
    """Take one import from the queue and do it; return whether there was one. After ``stop`` it does not rest."""
    job = Import.claim_next()
    if job is None:
        return False
    try:
        run_import(job, rest=lambda: stop.wait(settings.DEMO_PACE))
    except (ImportFailedError, Cancelled) as error:
        logger.info("%s: import %s (%s)", job.status, job.pk, error)
    except ClaimLostError:
        logger.warning("lost: import %s was taken by another worker, or deleted", job.pk)
        _tell_end(job.pk)
    else:
        logger.info("%s: import %s, %s rows", job.status, job.pk, job.done)
    return True


def run_import(job: Import, *, rest: Callable[[], object], terminal: bool = False) -> None:
    """
    Import a table, and publish how far it is.

    Args:
        job: The import, which the caller has claimed.
        rest: Called after each batch: whoever looks at the demo shall see the bar move.
        terminal: Draw the bar on standard error, too.

    Raises:
        ImportFailedError: It has failed, for the reason in the message.
        Cancelled: Somebody has pressed the button on the page.
        ClaimLostError: It is no longer ours.

    """
    with Progress(
        job.topic,
        done=job.done,
        unit="rows",
        stage="Reading the file",
        show_errors=True,
        terminal=terminal,
    ) as progress:
        # All of it within the block: the database knows the end before the page is told.
        try:
            _import(job, progress, rest)
        except (Cancelled, KeyboardInterrupt):
            _finish(job, Import.Status.CANCELLED)
            raise
        except ClaimLostError:
            raise
        except Exception as error:
            reason = str(error)
            if not isinstance(error, TableError | ImportFailedError):
                logger.exception("import %s failed", job.pk)
                reason = "The import failed unexpectedly."
            _finish(job, Import.Status.FAILED, reason)
            raise ImportFailedError(reason) from error


def _import(job: Import, progress: Progress, rest: Callable[[], object]) -> None:
    if job.attempts > MAX_ATTEMPTS:
        raise ImportFailedError(f"{MAX_ATTEMPTS} workers died over this file.")
    with job.file.open("rb") as file:
        rows = read_table(file.read())
    size = min(max(len(rows) // STEPS, MIN_BATCH), MAX_BATCH)
    job.write(total=len(rows))
    progress.total, progress.stage = job.total, "Importing"
    for start in range(job.done, len(rows), size):
        progress.check()
        _import_batch(job, rows[start : start + size])
        progress.done = job.done
        progress.message = job.message
        rest()
    _finish(job, Import.Status.SUCCEEDED)
    progress.url = job.result_url


def _import_batch(job: Import, rows: Sequence[Row]) -> None:
    """Write the rows that are valid, and note the others. All at once: an attempt that follows goes on behind them."""
    places, reasons = [], []
    for line, cells in rows:
        form = PlaceForm(cells, instance=Place(source=job))
        if form.is_valid():
            places.append(form.instance)
        else:
            reasons.append([line, "; ".join(f"{name}: {' '.join(texts)}" for name, texts in form.errors.items())])
    with transaction.atomic():
        Place.objects.bulk_create(places)
        job.write(
            done=job.done + len(rows),
            refused=job.refused + len(reasons),
            reasons=(job.reasons + reasons)[:MAX_REASONS],
        )


def _tell_end(pk: object) -> None:
    """Say how the import has ended for the worker that took it: the last that this one has said is that it failed."""
    job = Import.objects.filter(pk=pk).first()
    if job is not None and job.finished:
        announce(job.topic, state=job.status, message=job.message, error=job.error or None, url=job.result_url)


def _finish(job: Import, status: Import.Status, error: str = "") -> None:
    """Record the end, and keep a notice of it for the owner. Without success nothing else is left in the database."""
    with transaction.atomic():
        job.write(status=status.value, error=error[: Import._meta.get_field("error").max_length])
        if status != Import.Status.SUCCEEDED:
            job.places.all().delete()
        notify(job.owner_id, _notice(job), key=f"import-{job.pk}", group="imports")


def _notice(job: Import) -> Notice:
    level: Literal["success", "error", "warning"] = "warning"
    if job.status != Import.Status.CANCELLED:
        level = "success" if job.status == Import.Status.SUCCEEDED else "error"
    return Notice(title=f"Import of {job.name}", level=level, body=job.error or job.message, url=job.result_url)
