"""What was uploaded, and what the worker found out about it."""

import uuid
from pathlib import PurePath

from django.conf import settings
from django.db import models
from django.template.defaultfilters import filesizeformat
from django.urls import reverse

from project.queue import Queued


def file_path(upload: "Upload", name: str) -> str:
    """Name the stored file by its id, so that the browser's name for it never becomes a path."""
    return f"uploads/{upload.pk}"


def thumbnail_path(upload: "Upload") -> str:
    return f"thumbnails/{upload.pk}.png"


class Upload(Queued):
    """One uploaded file; ``status`` and ``stage`` have the values of ``messages.UploadProgress``."""

    class Status(models.TextChoices):
        PENDING = "pending"
        ANALYZING = "analyzing"
        COMPLETED = "completed"
        FAILED = "failed"

    WAITING, WORKING = Status.PENDING, Status.ANALYZING

    class Stage(models.TextChoices):
        """The wire's stages that this worker passes through, with what it really does in each."""

        QUEUED = "queued", "Waiting for a worker"
        EXTRACTING_FRAMES = "extracting_frames", "Reading"
        VISION_ANALYSIS = "vision_analysis", "Looking for a picture"
        DESCRIPTION_AUDIT = "description_audit", "Comparing name and content"
        COMPLETED = "completed", "Done"
        FAILED = "failed", "Failed"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    owner = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="uploads")
    batch_id = models.UUIDField(db_index=True)
    file = models.FileField(upload_to=file_path)
    name = models.CharField(max_length=255)
    size = models.PositiveBigIntegerField()

    status = models.CharField(max_length=10, choices=Status, default=Status.PENDING)
    stage = models.CharField(max_length=20, choices=Stage, default=Stage.QUEUED)
    progress_percent = models.PositiveSmallIntegerField(default=0)
    message = models.CharField(max_length=255, blank=True)
    error_message = models.CharField(max_length=255, blank=True)

    sha256 = models.CharField(max_length=64, blank=True)
    content_type = models.CharField(max_length=100, blank=True)
    name_score = models.PositiveSmallIntegerField(null=True)
    """How well the name's extension agrees with the content, 0 to 100; see ``filetypes.name_score``."""
    width = models.PositiveIntegerField(null=True)
    height = models.PositiveIntegerField(null=True)
    thumbnail = models.FileField(blank=True)

    class Meta:
        ordering = ("-created_at", "name")

    def __str__(self) -> str:
        return self.name

    @property
    def finished(self) -> bool:
        return self.status in (self.Status.COMPLETED, self.Status.FAILED)

    @property
    def description(self) -> str:
        """The result of the analysis, in words for the user."""
        facts = [filesizeformat(self.size)]
        if self.content_type:
            facts.append(self.content_type)
        if self.width:
            facts.append(f"{self.width}\N{NO-BREAK SPACE}×\N{NO-BREAK SPACE}{self.height}")
        if self.sha256:
            facts.append(f"SHA-256 {self.sha256[:12]}…")
        if self.name_score == 0:
            facts.append("not what its name says")
        return " · ".join(facts)

    @property
    def suffix(self) -> str:
        """The extension of its name, short enough for the place of a thumbnail; empty if it has none."""
        suffix = PurePath(self.name).suffix[1:]
        return suffix.upper() if len(suffix) <= 4 else ""

    def state(self) -> dict[str, object]:
        """All that the page shows of it, as JSON: the element's attributes, and what the page adds."""
        return {
            "upload": str(self.pk),
            "label": self.name,
            "status": self.status,
            "stage": self.stage,
            "percent": self.progress_percent,
            "message": self.shown_message,
            "status-url": reverse("upload-status", args=[self.pk]),
            "suffix": self.suffix,
            "thumbnail": reverse("upload-thumbnail", args=[self.pk]) if self.thumbnail else None,
        }

    @property
    def shown_message(self) -> str:
        """What is said beside the stage: the same that the messages to the browser say."""
        if self.status == self.Status.COMPLETED:
            return self.description
        return self.error_message or self.message
