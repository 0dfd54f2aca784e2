"""The optional app ``notifications.inbox``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.apps import AppConfig

if TYPE_CHECKING:
    from ..doctor import Finding


class InboxConfig(AppConfig):
    name = "notifications.inbox"
    label = "notifications_inbox"
    verbose_name = "Notices"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from ..bridge import duties
        from . import checks  # noqa: F401  it registers itself
        from .outbox import empty_outbox

        duties.register("inbox", empty_outbox)

    async def examine_notifications(self) -> list[Finding]:
        """Return what the doctor of notifications reports of this app."""
        from .examination import examine

        return await examine()
