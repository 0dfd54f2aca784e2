"""Tables that were sent to be imported, and what became of their rows."""

import uuid

from django.conf import settings
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.urls import reverse

from project.queue import Queued


def file_path(job: "Import", name: str) -> str:
    """Name the stored file by its id, so that the browser's name for it never becomes a path."""
    return f"imports/{job.pk}"


class Import(Queued):
    """One file; its progress is published on the topic ``job:<id>``, and ``status`` has the states of that."""

    class Status(models.TextChoices):
        WAITING = "waiting"
        RUNNING = "running"
        SUCCEEDED = "succeeded"
        FAILED = "failed"
        CANCELLED = "cancelled"

    WAITING, WORKING = Status.WAITING, Status.RUNNING

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    owner = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="imports")
    file = models.FileField(upload_to=file_path)
    name = models.CharField(max_length=255)
    status = models.CharField(max_length=10, choices=Status, default=Status.WAITING)
    error = models.CharField(max_length=255, blank=True)

    total = models.PositiveIntegerField(null=True)
    done = models.PositiveIntegerField(default=0)
    """Rows that were looked at: where the next worker goes on if one dies."""
    refused = models.PositiveIntegerField(default=0)
    """Rows that were wrong."""
    reasons = models.JSONField(default=list)
    """Line and reason of the first of them."""

    class Meta:
        ordering = ("-created_at", "name")

    def __str__(self) -> str:
        return self.name

    @property
    def topic(self) -> str:
        return f"job:{self.pk}"

    @property
    def finished(self) -> bool:
        return self.status not in (self.WAITING, self.WORKING)

    @property
    def message(self) -> str | None:
        """What is said beside the bar, now and after the history of the topic has expired."""
        return f"{self.refused:,} wrong" if self.refused else None

    @property
    def result_url(self) -> str | None:
        return self.get_absolute_url() if self.status == self.Status.SUCCEEDED else None

    def get_absolute_url(self) -> str:
        return reverse("import", args=[self.pk])


class Place(models.Model):
    """A row of a table."""

    source = models.ForeignKey(Import, on_delete=models.CASCADE, related_name="places")
    name = models.CharField(max_length=100)
    country = models.CharField(max_length=100)
    latitude = models.FloatField(validators=[MinValueValidator(-90), MaxValueValidator(90)])
    longitude = models.FloatField(validators=[MinValueValidator(-180), MaxValueValidator(180)])

    def __str__(self) -> str:
        return self.name
