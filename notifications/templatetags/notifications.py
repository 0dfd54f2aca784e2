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

from notifications.access.authorization import joined_by_all
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

    Nothing is rendered, and so nothing connects, in templates without a request, and for anonymous users unless the
    site admits ``GUESTS``. The scripts have the ``csp_nonce`` of the context or the request, if there is one.

    Args:
        context: The template's context.
        url: URL of the WebSocket, if the site mounts it elsewhere or on another host.
        token_url: URL of a view that answers ``{"token": …}``, such as ``notifications.views.token``, for a
            WebSocket to which the session cookie is not sent. Without it the session identifies the user.
        labels: Words of the elements in the language of the page; they may be lazy strings.

    """
    user = user_of(context)
    whose: dict[str, Any]
    if user is not None:
        topic = Topic.for_user(user)
        whose = {"user_topic": topic.told, "since": page_position(context, topic)}
    elif settings.GUESTS and getattr(context, "request", None) is not None:
        whose = {"guest": True}
    else:
        return SafeString("")
    config = {
        **whose,
        "client": static("notifications/client.js"),
        "elements": static("notifications/elements.js"),
        "progress": static("notifications/progress.js"),
        "fallback": static("notifications/fallback.js"),
        "url": url or socket_path(),
        "stream_url": stream_path(),
        "token_url": token_url,
        "positions": _positions_of_all(),
        "stale": settings.PROGRESS_STALE,
        "labels": labels or {},
    }
    nonce = attributes_of({"nonce": nonce_of(context)})
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
    if grant and (user := user_of(context)) is not None:
        values["grant"] = make_grant(user, topic)
    return format_html("<upload-progress{}></upload-progress>", attributes_of(values))


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
    rendered, user = Topic(kind, id), user_of(context)
    can_cancel = bool(cancel_url) and user is not None  # {% url … as cancel_url %} is empty where there is no view
    values = {
        "topic": rendered.told,
        "grant": _grant(user, rendered, even_public=can_cancel) if grant else None,
        "status-url": status_url,
        "cancel-url": cancel_url if can_cancel else None,
        "csrf-token": get_token(context.request) if can_cancel else None,  # type: ignore[attr-defined]
        **attributes,
    }
    return format_html("<task-progress{}></task-progress>", attributes_of(values))


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
    rendered, user = Topic(kind, id), user_of(context)
    values = {
        "topic": rendered.told,
        "since": since or _position(rendered) if user is not None or _is_for_guests(rendered) else since,
        "grant": _grant(user, rendered) if grant else None,
    }
    attributes = TopicAttributes(attributes_of({f"data-{name}": value for name, value in values.items()}).lstrip())
    for name, value in values.items():
        setattr(attributes, name, value)
    return attributes


def _is_for_guests(topic: Topic) -> bool:
    return settings.GUESTS and settings.kinds[topic.kind].PUBLIC


def attributes_of(values: Mapping[str, Any]) -> SafeString:
    # Always escaped: what a filter has marked as safe may be HTML, and end an attribute.
    given = ((name, escape(value)) for name, value in values.items() if value is not None)
    return format_html_join("", ' {}="{}"', given)


def _grant(user: Any, topic: Topic, *, even_public: bool = False) -> str | None:
    """Sign that the user may read the topic; None for nobody, and where everybody may."""
    if user is None or (settings.kinds[topic.kind].PUBLIC and not even_public):
        return None
    return make_grant(user, topic)


def user_of(context: Context) -> Any:
    """
    Return the user of the request, or None.

    The template's variable ``user`` will not do: on the page of a ``DetailView`` it may be somebody else.
    """
    user = getattr(getattr(context, "request", None), "user", None)
    return user if getattr(user, "is_authenticated", False) else None


def nonce_of(context: Context) -> str | None:
    """Return the nonce of the page's policy; Django 6 has it in the context, django-csp on the request."""
    nonce = context.get("csp_nonce")
    if nonce is None:
        nonce = getattr(getattr(context, "request", None), "csp_nonce", None)
    return None if nonce is None else str(nonce)  # lazy, and falsy until it is used


def _positions_of_all() -> dict[str, str]:
    """Return the positions of the topics that every connection has: nothing falls between rendering and joining."""
    found = ((topic.told, _position(topic)) for topic in joined_by_all())
    return {name: since for name, since in found if since is not None}


def page_position(context: Context, topic: Topic) -> str | None:
    """
    Return the position of the user's topic that a page begins at.

    It is the same for all tags of a page, and taken by the first of them: what one of them then reads from the database
    is not older, and what is published later reaches the page, whatever their order.
    """
    # On the request, because a template that is included, or extends another, has a context of its own.
    request: Any = getattr(context, "request", None)
    taken: dict[str, str | None] = request.__dict__.setdefault("_notifications_positions", {})
    if topic.told not in taken:
        taken[topic.told] = _position(topic)
    return taken[topic.told]


def _position(topic: Topic) -> str | None:
    """Return a topic's position; None without a history, or if Redis fails, because the page matters more."""
    try:
        return position(topic)
    except PositionError as error:
        _log.warning("a page was rendered without a position: %s", error)
        return None
