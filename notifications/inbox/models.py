"""The row of a kept notice. It is the truth; the messages about it only tell browsers what it says."""

from __future__ import annotations

from typing import Any, ClassVar

from django.conf import settings
from django.db import models
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from .indexes import PartialIndex


class Level(models.TextChoices):
    """The levels of the message ``notice``."""

    INFO = "info", _("information")
    SUCCESS = "success", _("success")
    WARNING = "warning", _("warning")
    ERROR = "error", _("error")


class KeptNotice(models.Model):
    """
    A notice that stays until it expires or is pruned.

    Rows are created with ``notify``, and changed with ``mark``: both tell the user's browsers. Whoever changes a row in
    another way sets ``pending_since`` as well, and then a listener tells them.
    """

    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.CASCADE, related_name="+", db_index=False, verbose_name=_("user")
    )
    tenant = models.CharField(max_length=200, blank=True, editable=False)
    """The tenant of the user's topic, for the process that publishes; empty on a site without tenants."""
    key = models.CharField(_("key"), max_length=200, null=True, blank=True)  # noqa: DJ001  unique for a user, or null
    """Makes ``notify`` idempotent: one user has one notice of a key."""
    group = models.CharField(_("group"), max_length=200, blank=True)
    """Notices of one group are shown as one, the newest, in the list."""
    level = models.CharField(_("level"), max_length=10, choices=Level.choices, default=Level.INFO)
    title = models.TextField(_("title"))
    body = models.TextField(_("text"), blank=True)
    url = models.TextField(_("link"), blank=True)
    actor = models.JSONField(_("actor"), null=True, blank=True)
    """Whoever did something, in the site's own form."""
    target = models.JSONField(_("target"), null=True, blank=True)
    """What it was done to, in the site's own form."""
    created_at = models.DateTimeField(_("created"), default=timezone.now)
    expires_at = models.DateTimeField(_("expires"), null=True, blank=True)
    seen_at = models.DateTimeField(_("seen"), null=True, blank=True)
    """When it was first shown in a list."""
    read_at = models.DateTimeField(_("read"), null=True, blank=True)
    archived_at = models.DateTimeField(_("archived"), null=True, blank=True)
    published_at = models.DateTimeField(_("published"), null=True, blank=True, editable=False)
    """When its message was published; null until it was."""
    pending_since = models.DateTimeField(null=True, blank=True, editable=False, default=timezone.now)
    """Since when browsers have yet to be told of the row, or of its latest change; null when they have been."""

    class Meta:
        verbose_name = _("notice")
        verbose_name_plural = _("notices")
        ordering: ClassVar = ["-id"]
        constraints: ClassVar[list[Any]] = [
            models.UniqueConstraint(fields=["user", "key"], name="notices_key"),
        ]
        indexes: ClassVar = [
            # The time of expiry comes last, so that what is counted or listed is found without looking at the rows.
            PartialIndex(
                name="notices_list",
                fields=["user", "-id", "expires_at"],
                only=models.Q(archived_at__isnull=True),
                instead=["user", "archived_at", "-id", "expires_at"],
            ),
            PartialIndex(
                name="notices_archive",
                fields=["user", "-id", "expires_at"],
                only=models.Q(archived_at__isnull=False),
                instead=["user", "-id", "archived_at", "expires_at"],
            ),
            PartialIndex(
                name="notices_unread",
                fields=["user", "-id", "expires_at"],
                only=models.Q(read_at__isnull=True, archived_at__isnull=True),
                instead=["user", "read_at", "archived_at", "-id", "expires_at"],
            ),
            PartialIndex(
                name="notices_pending",
                fields=["pending_since"],
                only=models.Q(pending_since__isnull=False),
                instead=["pending_since"],
            ),
        ]

    def __str__(self) -> str:
        return self.title
