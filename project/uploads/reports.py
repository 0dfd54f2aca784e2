"""
What is said about uploads, and to whom.

Nothing here may fail: an upload that was analysed and not announced is on the page after a reload.
``notifications`` logs what could not be published.
"""

from uuid import UUID

from django.contrib.auth.models import AbstractBaseUser
from django.db.models import Count, Q

from notifications import publish_progress, publish_to_user
from notifications.inbox import notify
from notifications.messages import (
    BatchProgress,
    BatchProgressPayload,
    FileProgress,
    FileProgressPayload,
    Notice,
    UploadCompleted,
    UploadFailed,
    UploadProgress,
    UploadProgressPayload,
)
from project.uploads.models import Upload


def report_created(uploads: list[Upload]) -> None:
    """Tell the owner's other tabs of new uploads, when the transaction commits."""
    for upload in uploads:
        report_file(upload, on_commit=True)


def report_cleared(owner: AbstractBaseUser) -> None:
    """Tell the owner's tabs that finished uploads were deleted; a custom message, because any mapping will do."""
    publish_to_user(owner, {"action": "uploads_cleared"}, fail_silently=True)


def report_killed(owner: AbstractBaseUser, pid: int) -> None:
    """Tell the owner that the listener was killed, while none runs: this is kept, and arrives with the next one."""
    notice = Notice(title=f"Listener {pid} was killed", body="This was published while no listener ran, and kept.")
    publish_to_user(owner, notice, fail_silently=True)


def report_file(upload: Upload, *, on_commit: bool = False) -> None:
    """Tell the owner how far a file is, as part of its batch."""
    status = upload.status if upload.finished else "processing"
    payload = FileProgressPayload(
        batch_id=str(upload.batch_id),
        upload_id=str(upload.pk),
        file_name=upload.name,
        file_size=upload.size,
        progress_percentage=upload.progress_percent,
        status=status,
    )
    message = FileProgress(payload=payload)
    publish_to_user(upload.owner_id, message, on_commit=on_commit, fail_silently=True)


def report_progress(upload: Upload) -> None:
    """Tell those who watch the upload how far it is."""
    payload = UploadProgressPayload(
        upload_id=str(upload.pk),
        status=upload.status,
        stage=upload.stage,
        progress_percent=upload.progress_percent,
        message=upload.message,
    )
    publish_progress(upload.pk, UploadProgress(payload=payload), fail_silently=True)


def report_finished(upload: Upload) -> None:
    """Tell the watchers the result and the owner the state of the batch, when the transaction commits."""
    result: UploadCompleted | UploadFailed
    if upload.status == Upload.Status.COMPLETED:
        result = UploadCompleted(
            upload_id=str(upload.pk), description=upload.description, audit_score=upload.name_score or 0
        )
    else:
        result = UploadFailed(upload_id=str(upload.pk), error_message=upload.error_message)
    publish_progress(upload.pk, result, on_commit=True, fail_silently=True)
    report_file(upload, on_commit=True)
    report_batch(upload.owner_id, upload.batch_id)


def report_batch(owner_id: int, batch_id: UUID) -> None:
    """
    Tell the owner how far a batch is, and by a notice when it is finished, which waits for those who are away.

    Call it in the transaction that finishes a file: the database lets one writer in at a time, so of two
    workers that finish the last two files of a batch exactly one sees that nothing is left.
    """
    finished = Q(status__in=[Upload.Status.COMPLETED, Upload.Status.FAILED])
    counts = Upload.objects.filter(batch_id=batch_id).aggregate(
        total=Count("pk"),
        processed=Count("pk", filter=finished),
        failed=Count("pk", filter=Q(status=Upload.Status.FAILED)),
    )
    total, processed, failed = counts["total"], counts["processed"], counts["failed"]
    status = "processing" if processed < total else "failed" if failed == total else "completed"
    payload = BatchProgressPayload(
        batch_id=str(batch_id),
        status=status,
        total=total,
        processed=processed,
        successful=processed - failed,
        failed=failed,
        progress_percentage=100.0 * processed / total,
    )
    publish_to_user(owner_id, BatchProgress(payload=payload), on_commit=True, fail_silently=True)
    if processed == total:
        notify(owner_id, _notice(total, failed), key=f"batch-{batch_id}", group="uploads")


def _notice(total: int, failed: int) -> Notice:
    files = "1 file" if total == 1 else f"{total} files"
    if not failed:
        return Notice(level="success", title=f"Finished: {files} analysed", body=None, url=None)
    if failed == total:
        return Notice(level="error", title=f"Finished: {files} could not be analysed", body=None, url=None)
    body = f"{failed} of {files} could not be analysed."
    return Notice(level="warning", title="Finished, with errors", body=body, url=None)
