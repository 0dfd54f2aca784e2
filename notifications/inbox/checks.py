"""System checks of this app."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.apps import apps
from django.apps.config import AppConfig
from django.core.checks import CheckMessage, Error, register


@register("notifications")
def check_apps(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    if apps.is_installed("notifications"):
        return []
    return [
        Error(
            "'notifications.inbox' is in INSTALLED_APPS, but 'notifications' is not.",
            hint="Add 'notifications', which has the template tags, the static files and the commands.",
            id="notifications_inbox.E001",
        )
    ]
