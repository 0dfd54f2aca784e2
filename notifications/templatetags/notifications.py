"""
Template tags: what a page needs to be told something, where a topic is, and a bar for an upload.

Nothing here is inline script: what scripts need to know stands in a block of data, which every Content
Security Policy allows.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from django import template
from django.template.context import Context
from django.templatetags.static import static
from django.utils.html import escape, format_html, format_html_join, json_script
from django.utils.safestring import SafeString

from notifications.conf import settings
from notifications.exceptions import PositionError
from notifications.logs import LogBudget
from notifications.mount import socket_path
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
    Connect the page, and define the elements ``<upload-progress>`` and ``<notification-toasts>``.

    Nothing is rendered, and so nothing connects, for anonymous users and in templates without a request. The
    scripts carry the ``csp_nonce`` of the context or the request, if there is one.

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
    topic = Topic.for_user(user)
    config = {
        "client": static("notifications/client.js"),
        "elements": static("notifications/elements.js"),
        "url": url or socket_path(),
        "token_url": token_url,
        "user_topic": topic.told,
        "since": _position(topic),
        "labels": labels or {},
    }
    nonce = _attributes({"nonce": _nonce(context)})
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
    return format_html("<upload-progress{}></upload-progress>", _attributes(values))


class TopicAttributes(SafeString):
    """
    A topic as attributes of an HTML element: ``data-topic``, ``data-since`` and ``data-grant``.

    Attributes:
        topic: As it is subscribed to, such as ``order:7``.
        since: The position from which a page goes on; None if it is not known.
        grant: Lets the user of the page subscribe; None without one.

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
    Say where a topic is, and that the user of the page may read it: as attributes, or with ``as`` one by one.

    A script that subscribes with both gets all that is published after the page was rendered. **Only in a page whose
    view has checked that the user may read the topic**: the grant opens it, without a question to ``AUTHORIZE``.

    Args:
        context: The template's.
        kind: The topic's kind.
        id: Its id.
        since: The topic's ``position`` from before the page's state was read; the one of now if there is none.
        grant: Whether to sign that the user may read the topic; not needed where ``AUTHORIZE`` says so.

    Raises:
        TopicError: The topic is not valid.

    """
    rendered, user = Topic(kind, id), _user(context)
    is_public = settings.kinds[rendered.kind].PUBLIC
    values = {
        "topic": rendered.told,
        "since": since if user is None else since or _position(rendered),
        "grant": None if user is None or is_public or not grant else make_grant(user, rendered),
    }
    attributes = TopicAttributes(_attributes({f"data-{name}": value for name, value in values.items()}).lstrip())
    for name, value in values.items():
        setattr(attributes, name, value)
    return attributes


def _attributes(values: Mapping[str, Any]) -> SafeString:
    # Escaped whatever they are: what a filter has called safe may be HTML, and end an attribute.
    given = ((name, escape(value)) for name, value in values.items() if value is not None)
    return format_html_join("", ' {}="{}"', given)


def _user(context: Context) -> Any:
    """
    Return the user who asked for the page, or None.

    Not the template's variable ``user``: on the page of a ``DetailView`` that may be somebody else.
    """
    user = getattr(getattr(context, "request", None), "user", None)
    return user if getattr(user, "is_authenticated", False) else None


def _nonce(context: Context) -> str | None:
    """Return the nonce of the page's policy; Django 6 has it in the context, django-csp on the request."""
    nonce = context.get("csp_nonce")
    if nonce is None:
        nonce = getattr(getattr(context, "request", None), "csp_nonce", None)
    return None if nonce is None else str(nonce)  # lazy, and false until it is asked for


def _position(topic: Topic) -> str | None:
    """Say where a topic is now; None without a history, and when Redis does not say: the page comes first."""
    try:
        return position(topic)
    except PositionError as error:
        _log.warning("a page was rendered without a position: %s", error)
        return None
