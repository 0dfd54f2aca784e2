"""
Template tags that connect a page, give it the position of a topic, and show the progress of jobs and uploads.

They render no inline script: what scripts need to know is in a block of data, which every Content Security
Policy allows.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from django import template
from django.middleware.csrf import get_token
from django.template.context import Context
from django.templatetags.static import static
from django.utils.html import escape, format_html, format_html_join, json_script
from django.utils.safestring import SafeString

from notifications.conf import settings
from notifications.exceptions import PositionError
from notifications.logs import LogBudget
from notifications.mount import socket_path, stream_path
from notifications.positions import position
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
    Connect the page, and define the elements: bars, ``<notification-toasts>`` and ``<connection-status>``.

    Nothing is rendered, and so nothing connects, for anonymous users and in templates without a request. The
    scripts have the ``csp_nonce`` of the context or the request, if there is one.

    Args:
        context: The template's context.
        url: URL of the WebSocket, if the site mounts it elsewhere or on another host.
        token_url: URL of a view that answers ``{"token": …}``, such as ``notifications.views.token``, for a
            WebSocket to which the session cookie is not sent. Without it the session identifies the user.
        labels: Words of the elements in the language of the page; they may be lazy strings.

    """
    user = _user(context)
    if user is None:
        return SafeString("")
    topic = Topic.for_user(user)
    config = {
        "client": static("notifications/client.js"),
        "elements": static("notifications/elements.js"),
        "progress": static("notifications/progress.js"),
        "fallback": static("notifications/fallback.js"),
        "url": url or socket_path(),
        "stream_url": stream_path(),
        "token_url": token_url,
        "user_topic": topic.told,
        "since": _position(topic),
        "stale": settings.PROGRESS_STALE,
        "labels": labels or {},
    }
    nonce = _attributes({"nonce": _nonce(context)})
    # The modules are fetched in parallel with the script that imports them, not after it.
    return format_html(
        '<link rel="modulepreload" href="{}"{nonce}><link rel="modulepreload" href="{}"{nonce}>'
        '<link rel="modulepreload" href="{}"{nonce}>{}<script type="module" src="{}"{nonce}></script>',
        config["client"],
        config["elements"],
        config["progress"],
        json_script(config, "notifications-config"),
        static("notifications/start.js"),
        nonce=nonce,
    )


@register.simple_tag(takes_context=True)
def upload_progress(
    context: Context, upload_id: TopicId, *, grant: bool = False, status_url: str | None = None, **attributes: Any
) -> SafeString:
    """
    Show the progress of an upload.

    Args:
        context: The template's context.
        upload_id: The id that is given to ``publish_progress``.
        grant: Sign that this user may watch this upload, so that ``AUTHORIZE`` is not called: only in a page whose
            view has checked that. It expires after ``GRANT_MAX_AGE``.
        status_url: URL of the site that answers with ``status``, ``stage``, ``percent`` and ``message`` as JSON: it is
            asked while the page is offline, and after messages were missed. Its view has to check the permission.
        **attributes: Attributes of the element: ``label``, and the current ``status``, ``stage``, ``percent`` and
            ``message``, which is all there is to show once the history has expired. None leaves one out.

    Raises:
        TopicError: The id is not valid.

    """
    topic = Topic("upload", upload_id)
    values = {"upload": topic.id, "status-url": status_url, **attributes}
    if grant and (user := _user(context)) is not None:
        values["grant"] = make_grant(user, topic)
    return format_html("<upload-progress{}></upload-progress>", _attributes(values))


@register.simple_tag(takes_context=True)
def progress(
    context: Context,
    kind: str,
    id: TopicId,  # noqa: A002  an id is called id
    *,
    grant: bool = True,
    status_url: str | None = None,
    cancel_url: str | None = None,
    **attributes: Any,
) -> SafeString:
    """
    Show the progress of a job.

    **Use it only in a page whose view has checked that the user may read the topic**: a grant is rendered, which opens
    it without calling ``AUTHORIZE``.

    Args:
        context: The template's context.
        kind: The kind of the job's topic, such as ``job``.
        id: The topic's id.
        grant: Whether to sign that the user may read the topic; not needed if ``AUTHORIZE`` allows it. For a kind that
            is ``PUBLIC`` it is rendered with ``cancel_url`` only. It expires after ``GRANT_MAX_AGE``.
        status_url: URL of the site that answers with the job's state as JSON: it is asked while the page is offline,
            and after messages were missed. Its view has to check the permission.
        cancel_url: URL of ``notifications:cancel``, or of a view of the site's own, to which a button posts ``topic``,
            ``grant`` and the CSRF token. The token makes the page vary with the cookie.
        **attributes: Attributes of the element: ``label``, and what the site knows of the job, which is all there is to
            show once the history has expired: ``state``, ``percent``, ``done``, ``total``, ``unit``, ``stage``,
            ``message``, ``error`` and ``url``. None leaves one out.

    Raises:
        TopicError: The topic is not valid.

    """
    rendered, user = Topic(kind, id), _user(context)
    can_cancel = bool(cancel_url) and user is not None  # {% url … as cancel_url %} is empty where there is no view
    values = {
        "topic": rendered.told,
        "grant": _grant(user, rendered, even_public=can_cancel) if grant else None,
        "status-url": status_url,
        "cancel-url": cancel_url if can_cancel else None,
        "csrf-token": get_token(context.request) if can_cancel else None,  # type: ignore[attr-defined]
        **attributes,
    }
    return format_html("<task-progress{}></task-progress>", _attributes(values))


class TopicAttributes(SafeString):
    """
    A topic as attributes of an HTML element: ``data-topic``, ``data-since`` and ``data-grant``.

    Attributes:
        topic: The topic to subscribe to, such as ``order:7``.
        since: The position from which a page continues; None if it is not known.
        grant: A grant that lets the user of the page subscribe; None without one.

    """

    topic: str
    since: str | None
    grant: str | None


@register.simple_tag(takes_context=True)
def topic(
    context: Context,
    kind: str,
    id: TopicId,  # noqa: A002  an id is called id
    *,
    since: str | None = None,
    grant: bool = True,
) -> TopicAttributes:
    """
    Render a topic's position, and a grant for the user of the page: as attributes, or with ``as`` one by one.

    A script that subscribes with both receives everything published after the page was rendered. **Use it only in a
    page whose view has checked that the user may read the topic**: the grant opens it without calling ``AUTHORIZE``.

    Args:
        context: The template's context.
        kind: The topic's kind.
        id: The topic's id.
        since: The topic's ``position`` from before the page's state was read; by default the current one.
        grant: Whether to sign that the user may read the topic; not needed if ``AUTHORIZE`` allows it.

    Raises:
        TopicError: The topic is not valid.

    """
    rendered, user = Topic(kind, id), _user(context)
    values = {
        "topic": rendered.told,
        "since": since if user is None else since or _position(rendered),
        "grant": _grant(user, rendered) if grant else None,
    }
    attributes = TopicAttributes(_attributes({f"data-{name}": value for name, value in values.items()}).lstrip())
    for name, value in values.items():
        setattr(attributes, name, value)
    return attributes


def _attributes(values: Mapping[str, Any]) -> SafeString:
    # Always escaped: what a filter has marked as safe may be HTML, and end an attribute.
    given = ((name, escape(value)) for name, value in values.items() if value is not None)
    return format_html_join("", ' {}="{}"', given)


def _grant(user: Any, topic: Topic, *, even_public: bool = False) -> str | None:
    """Sign that the user may read the topic; None for nobody, and where everybody may."""
    if user is None or (settings.kinds[topic.kind].PUBLIC and not even_public):
        return None
    return make_grant(user, topic)


def _user(context: Context) -> Any:
    """
    Return the user of the request, or None.

    The template's variable ``user`` will not do: on the page of a ``DetailView`` it may be somebody else.
    """
    user = getattr(getattr(context, "request", None), "user", None)
    return user if getattr(user, "is_authenticated", False) else None


def _nonce(context: Context) -> str | None:
    """Return the nonce of the page's policy; Django 6 has it in the context, django-csp on the request."""
    nonce = context.get("csp_nonce")
    if nonce is None:
        nonce = getattr(getattr(context, "request", None), "csp_nonce", None)
    return None if nonce is None else str(nonce)  # lazy, and falsy until it is used


def _position(topic: Topic) -> str | None:
    """Return a topic's position; None without a history, or if Redis fails, because the page matters more."""
    try:
        return position(topic)
    except PositionError as error:
        _log.warning("a page was rendered without a position: %s", error)
        return None
