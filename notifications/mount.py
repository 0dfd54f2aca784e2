"""Where the WebSocket is: below the site's script prefix, as all that Django itself links to."""

from __future__ import annotations

import re
from typing import Final

from django.conf import settings as django_settings
from django.urls import URLPattern, get_script_prefix, path, re_path

PATH: Final = "ws/notifications/"


def socket_path() -> str:
    """Return the path to which the pages of this site connect, as ``{% notifications %}`` prints it."""
    return f"{get_script_prefix()}{PATH}"


def patterns(application: object) -> list[URLPattern]:
    """
    Route to the application, whether a proxy strips the prefix of ``FORCE_SCRIPT_NAME`` or keeps it.

    Django finds its pages either way. Channels knows the ``root_path`` of the server only.
    """
    found = [path(PATH, application)]  # type: ignore[call-overload]  # an ASGI application is no view
    if prefix := (django_settings.FORCE_SCRIPT_NAME or "").strip("/"):
        found.append(re_path(f"^{re.escape(prefix)}/{re.escape(PATH)}$", application))  # type: ignore[call-overload]
    return found
