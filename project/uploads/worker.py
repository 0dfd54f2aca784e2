"""
The background worker: takes pending uploads from the database and analyses them, one at a time.

Any number may run. An upload is taken by one UPDATE that draws a new claim, and every later write names that
claim: a worker that was believed dead, and is not, finds its claim gone and lets go.
"""

import logging
import threading
import uuid
from datetime import datetime, timedelta

from django.conf import settings
from django.core.files.base import ContentFile
from django.db import transaction
from django.db.models import F, Q
from django.template.defaultfilters import filesizeformat
from django.utils import timezone

from project.uploads.analysis import AnalysisError, Content, draw, read
from project.uploads.filetypes import name_score
from project.uploads.models import Upload, thumbnail_path
from project.uploads.reports import report_file, report_finished, report_progress

logger = logging.getLogger(__name__)

POLL_INTERVAL = 0.3
"""Seconds between two queries of the database when there is nothing to do."""
MAX_ATTEMPTS = 3
"""A file on which this many workers died is not given to a fourth."""
READ_PERCENT = 85
"""How much of the bar is reading; the thumbnail and the comparison share the rest."""


class ClaimLostError(Exception):
    """Another worker has taken the upload, or its owner has deleted it."""


class StoppedError(Exception):
    """The worker was asked to stop."""


class Worker:
    def __init__(self) -> None:
        self._stop = threading.Event()

    def stop(self) -> None:
        """Stop soon: the current upload is released, and the next worker starts it anew."""
        self._stop.set()

    def run(self) -> None:
        """Work until ``stop()`` is called."""
        while not self._stop.is_set():
            if not self.run_once():
                self._stop.wait(POLL_INTERVAL)

    def run_once(self) -> bool:
        """Take one upload and analyse it; return whether there was one."""
        upload = claim_next()
        if upload is None:
            return False
        try:
            try:
                self._analyze(upload)
            except AnalysisError as error:
                finish(upload, Upload.Status.FAILED, error_message=str(error))
            except (ClaimLostError, StoppedError):
                raise
            except Exception:
                # Whatever a file does to us, the next one gets its turn.
                logger.exception("upload %s broke the analysis", upload.pk)
                finish(upload, Upload.Status.FAILED, error_message="The analysis failed unexpectedly.")
            logger.info("%s: %s, %s", upload.status, upload.pk, filesizeformat(upload.size))
        except ClaimLostError:
            logger.warning("lost: %s was taken by another worker, or deleted", upload.pk)
        except StoppedError:
            release(upload)
            logger.info("given back: %s", upload.pk)
        return True

    def _analyze(self, upload: Upload) -> None:
        if upload.attempts > MAX_ATTEMPTS:
            raise AnalysisError(f"{MAX_ATTEMPTS} workers died over this file.")
        content = self._read(upload)
        self._rest()
        advance(upload, Upload.Stage.VISION_ANALYSIS, READ_PERCENT + 5)
        with upload.file.open("rb") as file:
            picture = draw(file, content.content_type)
        found: dict[str, object] = {"sha256": content.sha256, "content_type": content.content_type}
        if picture is not None:
            path = thumbnail_path(upload)
            upload.thumbnail.storage.delete(path)  # from an attempt that was cut short
            upload.thumbnail.storage.save(path, ContentFile(picture.thumbnail))
            found |= {"width": picture.width, "height": picture.height, "thumbnail": path}
        self._rest()
        advance(upload, Upload.Stage.DESCRIPTION_AUDIT, READ_PERCENT + 10)
        found["name_score"] = name_score(upload.name, content.content_type)
        self._rest()
        finish(upload, Upload.Status.COMPLETED, **found)

    def _read(self, upload: Upload) -> Content:
        total = filesizeformat(upload.size)
        advance(upload, Upload.Stage.EXTRACTING_FRAMES, 0, total)
        with upload.file.open("rb") as file:
            for result in read(file, upload.size):
                if isinstance(result, Content):
                    return result
                message = f"{filesizeformat(result)} of {total}"
                advance(upload, Upload.Stage.EXTRACTING_FRAMES, READ_PERCENT * result // upload.size, message)
                self._rest()
        raise AssertionError("read() ends with the content")

    def _rest(self) -> None:
        if self._stop.wait(settings.DEMO_PACE):
            raise StoppedError


def claim_next() -> Upload | None:
    """Take the oldest upload that nobody works on; two workers never take the same."""
    now = timezone.now()
    # A claim from the future is from before the clock was set back: no live worker would wait so long to renew it.
    ended = Q(claimed_until__lt=now) | Q(claimed_until__gt=_lease() + timedelta(seconds=settings.UPLOAD_LEASE))
    free = Q(status=Upload.Status.PENDING) | (Q(status=Upload.Status.ANALYZING) & ended)
    waiting = Upload.objects.filter(free).order_by("created_at", "name")
    for pk in waiting.values_list("pk", flat=True)[:10]:
        claim = uuid.uuid4()
        taken = Upload.objects.filter(free, pk=pk).update(
            status=Upload.Status.ANALYZING, claim=claim, claimed_until=_lease(), attempts=F("attempts") + 1
        )
        if taken:
            return Upload.objects.filter(pk=pk, claim=claim).first()
    return None


def release(upload: Upload) -> None:
    """Release an upload, as if it had not been claimed."""
    Upload.objects.filter(pk=upload.pk, claim=upload.claim).update(
        status=Upload.Status.PENDING, claim=None, claimed_until=None, attempts=F("attempts") - 1
    )


def advance(upload: Upload, stage: Upload.Stage, percent: int, message: str = "") -> None:
    """Record how far the analysis is and report it; the percentage of a second attempt never goes back."""
    percent = max(percent, upload.progress_percent)
    _write(upload, stage=stage.value, progress_percent=percent, message=message)
    report_progress(upload)
    report_file(upload)


def finish(upload: Upload, status: Upload.Status, **found: object) -> None:
    """Record the end of the analysis and report it, together with the state of the batch."""
    percent = 100 if status == Upload.Status.COMPLETED else upload.progress_percent
    with transaction.atomic():
        # Both ends have the same name as status and as stage.
        _write(upload, status=status.value, stage=status.value, progress_percent=percent, message="", **found)
        report_finished(upload)


def _write(upload: Upload, **fields: object) -> None:
    """
    Write fields of a claimed upload and renew the claim.

    Raises:
        ClaimLostError: If the upload is no longer ours.

    """
    mine = Upload.objects.filter(pk=upload.pk, claim=upload.claim)
    if not mine.update(claimed_until=_lease(), **fields):
        raise ClaimLostError
    for name, value in fields.items():
        setattr(upload, name, value)


def _lease() -> datetime:
    return timezone.now() + timedelta(seconds=settings.UPLOAD_LEASE)
