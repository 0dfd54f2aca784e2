"""The page, and the views that its script calls."""

import uuid

from django.conf import settings
from django.contrib.auth.decorators import login_required
from django.core.files.uploadedfile import UploadedFile
from django.db import transaction
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.template.defaultfilters import filesizeformat
from django.utils import timezone
from django.views.decorators.http import require_GET, require_POST

from notifications.address import shown
from project.killswitch import press
from project.uploads.models import Upload
from project.uploads.reports import report_cleared, report_created, report_killed
from project.uploads.shell import publish_command

LIST_LENGTH = 60
"""Number of uploads on the page, the newest ones. A socket may watch 100."""


def latest(request: HttpRequest) -> list[Upload]:
    return list(Upload.objects.filter(owner=request.user)[:LIST_LENGTH])


@login_required
@require_GET
def upload_list(request: HttpRequest) -> HttpResponse:
    context = {
        "uploads": latest(request),
        "labels": dict(Upload.Stage.choices),
        "debug": settings.DEBUG,
        "max_files": settings.UPLOAD_MAX_FILES,
        "max_size": settings.UPLOAD_MAX_SIZE,
        "publish_command": publish_command(request.user),
        "kill_switch": settings.KILL_SWITCH,
        "password_masked": "***" in shown(settings.REDIS_URL),
    }
    response = render(request, "uploads/upload_list.html", context)
    response.headers["Cache-Control"] = "no-store"  # "back" must not show bars of an hour ago
    return response


@login_required
@require_GET
def upload_state(request: HttpRequest) -> HttpResponse:
    """Answer the list as the database has it, for a page that may have missed something."""
    return JsonResponse({"uploads": [upload.state() for upload in latest(request)]})


@login_required
@require_GET
def upload_status(request: HttpRequest, pk: uuid.UUID) -> HttpResponse:
    """Answer the state of one upload, which its bar asks for while the page is offline."""
    return JsonResponse(get_object_or_404(Upload, pk=pk, owner=request.user).state())


@login_required
@require_POST
def upload_create(request: HttpRequest) -> HttpResponse:
    """Accept the files of one request as one batch, and report which were refused and why."""
    files = sorted(request.FILES.getlist("files"), key=lambda file: file.name)
    if not files:
        return JsonResponse({"error": "No file was sent."}, status=400)
    if len(files) > settings.UPLOAD_MAX_FILES:
        error = f"{len(files)} files are too many: send at most {settings.UPLOAD_MAX_FILES} at once."
        return JsonResponse({"error": error}, status=400)
    reasons = [reject_reason(file) for file in files]
    batch = {"owner": request.user, "batch_id": uuid.uuid4(), "created_at": timezone.now()}
    with transaction.atomic():
        uploads = [
            Upload.objects.create(file=file, name=file.name, size=file.size, **batch)
            for file, reason in zip(files, reasons, strict=True)
            if reason is None
        ]
        report_created(uploads)
    rejected = [{"name": file.name, "reason": reason} for file, reason in zip(files, reasons, strict=True) if reason]
    answer = {"uploads": [upload.state() for upload in uploads], "rejected": rejected}
    return JsonResponse(answer, status=201 if uploads else 400)


def reject_reason(file: UploadedFile) -> str | None:
    """Return why a file is refused, or ``None`` if it is accepted."""
    if not file.size:
        return "The file is empty."
    if file.size > settings.UPLOAD_MAX_SIZE:
        return f"{filesizeformat(file.size)} is more than {filesizeformat(settings.UPLOAD_MAX_SIZE)}."
    return None


@login_required
@require_POST
def upload_clear(request: HttpRequest) -> HttpResponse:
    """Delete the finished uploads and their files."""
    finished = [Upload.Status.COMPLETED, Upload.Status.FAILED]
    for upload in Upload.objects.filter(owner=request.user, status__in=finished):
        upload.delete()
        for file in (upload.file, upload.thumbnail):
            if file:
                file.delete(save=False)
    report_cleared(request.user)
    return redirect("uploads")


@login_required
@require_GET
def thumbnail(request: HttpRequest, pk: uuid.UUID) -> HttpResponse:
    upload = get_object_or_404(Upload, pk=pk, owner=request.user)
    if not upload.thumbnail:
        raise Http404
    with upload.thumbnail.open("rb") as file:
        # Read at once: it is small, and a response that streams from a file is not made for ASGI.
        response = HttpResponse(file.read(), content_type="image/png")
    response.headers["Cache-Control"] = "private, max-age=86400, immutable"
    return response


@login_required
@require_POST
def listener_kill(request: HttpRequest) -> HttpResponse:
    """Have ``manage.py demo`` kill the listener and start another, and notify the user in the meantime."""
    if not settings.KILL_SWITCH:  # set by that command only, and never without DEBUG
        raise Http404
    try:
        pid = press(settings.KILL_SWITCH)
    except OSError as error:
        return JsonResponse({"error": f"The demo command does not answer ({error})."}, status=503)
    report_killed(request.user, pid)
    return JsonResponse({"pid": pid})
