"""
Template tags: what a page needs to be told something, and a bar for an upload.

Nothing here is inline script: what scripts need to know stands in a block of data, which every Content
Security Policy allows.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from django import template
from django.forms.utils import flatatt
from django.template.context import Context
from django.templatetags.static import static
from django.urls import get_script_prefix
from django.utils.html import format_html, json_script
from django.utils.safestring import SafeString

from notifications import history
from notifications.conf import settings
from notifications.connections import FAILURES
from notifications.logs import LogBudget
from notifications.metrics import count
from notifications.tokens import make_grant
from notifications.topics import Topic, TopicId

logger = logging.getLogger(__name__)
register = template.Library()
_log = LogBudget(logger)


@register.simple_tag(takes_context=True)
def notifications(
    context: Context,
    *,
    url: str | None = None,
    token_url: str | None = None,
    labels: Mapping[str, Any] | None = None,
) -> SafeString:
    """
    Connect the page, and define the elements ``<upload-progress>`` and ``<notification-toasts>``.

    Nothing is rendered, and so nothing connects, for anonymous users and where the context has neither ``user``
    nor ``request``. The scripts carry ``csp_nonce`` of the context or the request, if there is one.

    Args:
        context: The template's.
        url: Of the WebSocket; where the site mounts it elsewhere or on another host.
        token_url: Of a view that answers ``{"token": …}``, such as ``notifications.views.token``; for a
            WebSocket to which the session cookie does not go. Without it the session says who the user is.
        labels: Words of the elements in the language of the page, lazy ones too.

    """
    user = _user(context)
    if user is None:
        return SafeString("")
    config = {
        "client": static("notifications/client.js"),
        "elements": static("notifications/elements.js"),
        "url": url or f"{get_script_prefix()}ws/notifications/",
        "token_url": token_url,
        "since": _position(user),
        "labels": labels or {},
    }
    nonce = flatatt({} if (value := _nonce(context)) is None else {"nonce": value})
    # The client and the elements are fetched beside the script that imports them, not after it.
    return format_html(
        '<link rel="modulepreload" href="{}"{nonce}><link rel="modulepreload" href="{}"{nonce}>'
        '{}<script type="module" src="{}"{nonce}></script>',
        config["client"],
        config["elements"],
        json_script(config, "notifications-config"),
        static("notifications/start.js"),
        nonce=nonce,
    )


@register.simple_tag(takes_context=True)
def upload_progress(context: Context, upload_id: TopicId, *, grant: bool = False, **attributes: Any) -> SafeString:
    """
    Show the progress of an upload.

    Args:
        context: The template's.
        upload_id: As given to ``publish_progress``.
        grant: Sign that this user may watch this upload, so that ``AUTHORIZE`` is not asked: only in a page whose
            view has checked that. It ends after ``TOKEN_MAX_AGE``.
        **attributes: Of the element: ``label``, and ``status``, ``stage``, ``percent`` and ``message`` as the site
            knows them now, which is all there is to show once the history has ended. None leaves one out.

    Raises:
        TopicError: The id is not valid.

    """
    topic = Topic("upload", upload_id)
    values = {"upload": topic.id, **attributes}
    if grant and (user := _user(context)) is not None:
        values["grant"] = make_grant(user, topic)
    given = {name.replace("_", "-"): str(value) for name, value in values.items() if value is not None}
    return format_html("<upload-progress{}></upload-progress>", flatatt(given))


def _user(context: Context) -> Any:
    """Return the user whose page this is, or None."""
    user = context.get("user") or getattr(context.get("request"), "user", None)
    return user if getattr(user, "is_authenticated", False) else None


def _nonce(context: Context) -> str | None:
    """Return the nonce of the page's policy; Django 6 has it in the context, django-csp on the request."""
    nonce = context.get("csp_nonce")
    if nonce is None:
        nonce = getattr(context.get("request"), "csp_nonce", None)
    return None if nonce is None else str(nonce)  # lazy, and false until it is asked for


def _position(user: Any) -> str | None:
    """Say where the user's topic is now; None without a history, and when Redis does not say: the page comes first."""
    if not settings.kinds["user"].HISTORY_SIZE:
        return None
    try:
        return str(history.position(Topic.for_user(user)))
    except FAILURES as error:
        count("position_failed", type(error).__name__)
        _log.warning("a page was rendered without its user's position: %s", error)
        return None
