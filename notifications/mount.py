"""The paths to which pages connect: below the site's script prefix, like everything that Django itself links to."""

from __future__ import annotations

import re
from typing import Any, Final

from django.conf import settings as django_settings
from django.urls import NoReverseMatch, URLPattern, get_script_prefix, path, re_path, reverse

PATH: Final = "ws/notifications/"


def socket_path() -> str:
    """Return the path to which the pages of this site connect, as ``{% notifications %}`` prints it."""
    return f"{get_script_prefix()}{PATH}"


def stream_path() -> str | None:
    """Return the path of the HTTP transport; None if the site does not include ``notifications.urls``."""
    try:
        return reverse("notifications:stream")
    except NoReverseMatch:
        return None


def with_root_path(scope: dict[str, Any]) -> dict[str, Any]:
    """
    Restore the server's ``root_path`` in a path from which a proxy has stripped it, as ASGI requires.

    Daphne leaves the path as it received it. Django still finds its pages, but Channels finds no route.
    """
    root_path = scope.get("root_path") or ""
    return scope if scope["path"].startswith(root_path) else {**scope, "path": root_path + scope["path"]}


def patterns(application: object) -> list[URLPattern]:
    """
    Return routes to the application, whether a proxy strips the prefix of ``FORCE_SCRIPT_NAME`` or keeps it.

    Django finds its pages either way. Channels only knows the ``root_path`` of the server.
    """
    found = [path(PATH, application)]  # type: ignore[call-overload]  # an ASGI application is no view
    if prefix := (django_settings.FORCE_SCRIPT_NAME or "").strip("/"):
        kept = f"^{re.escape(prefix)}/{re.escape(PATH)}$"
        found.append(re_path(kept, application))  # type: ignore[call-overload]  # as above
    return found
