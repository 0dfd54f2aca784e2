"""The background worker: takes uploads and imports from the queue, one at a time. Any number of workers may run."""

import logging
import threading

from django.conf import settings
from django.core.files.base import ContentFile
from django.db import transaction
from django.template.defaultfilters import filesizeformat

from project.imports.jobs import import_next
from project.queue import MAX_ATTEMPTS, ClaimLostError
from project.uploads.analysis import AnalysisError, Content, draw, read
from project.uploads.filetypes import name_score
from project.uploads.models import Upload, thumbnail_path
from project.uploads.reports import report_file, report_finished, report_progress

logger = logging.getLogger(__name__)

POLL_INTERVAL = 0.3
"""Seconds between two queries of the database when there is nothing to do."""
READ_PERCENT = 85
"""How much of the bar is reading; the thumbnail and the comparison share the rest."""


class StoppedError(Exception):
    """The worker was asked to stop."""


class Worker:
    def __init__(self) -> None:
        self._stop = threading.Event()

    def stop(self) -> None:
        """Stop soon: the current upload is released, and the next worker starts it anew; an import ends, unpaced."""
        self._stop.set()

    def run(self) -> None:
        """Work until ``stop()`` is called."""
        while not self._stop.is_set():
            if not self.run_once():
                self._stop.wait(POLL_INTERVAL)

    def run_once(self) -> bool:
        """Do one job of each sort; return whether there was any."""
        return any([self._analyze_next(), import_next(self._stop)])

    def _analyze_next(self) -> bool:
        upload = Upload.claim_next()
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
            upload.release()
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


def advance(upload: Upload, stage: Upload.Stage, percent: int, message: str = "") -> None:
    """Record how far the analysis is and report it; the percentage of a second attempt never goes back."""
    percent = max(percent, upload.progress_percent)
    upload.write(stage=stage.value, progress_percent=percent, message=message)
    report_progress(upload)
    report_file(upload)


def finish(upload: Upload, status: Upload.Status, **found: object) -> None:
    """Record the end of the analysis and report it, together with the state of the batch."""
    percent = 100 if status == Upload.Status.COMPLETED else upload.progress_percent
    with transaction.atomic():
        # Both ends have the same name as status and as stage.
        upload.write(status=status.value, stage=status.value, progress_percent=percent, message="", **found)
        report_finished(upload)
