"""
Template tags that show the notices kept for the user of a page: a bell with their number, and the list of them.

What they render is a link to the page of the list, which is all there is without JavaScript, and the script that makes
more of it. There is no inline script.
"""

from __future__ import annotations

from typing import Any, Final

from django import template
from django.middleware.csrf import get_token
from django.template.context import Context
from django.templatetags.static import static
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext, ngettext

from notifications import inbox
from notifications.templatetags.notifications import attributes_of, nonce_of, page_position, user_of
from notifications.topics import Topic

register = template.Library()

MOST: Final = 99
"""The largest number that is shown; more are "99+"."""


@register.simple_tag(takes_context=True)
def notification_bell(context: Context) -> SafeString:
    """
    Render ``<notification-bell>``: how many notices are unread, and the list of them in a popover.

    Nothing is rendered for anonymous users, and in templates without a request. The element is live on a page with
    ``{% notifications %}``, before it or behind it; without that tag it stays a link to the page of the list. It has a
    CSRF token, so the page varies with the cookie.

    Raises:
        NoReverseMatch: ``notifications.inbox.urls`` are not mounted.

    """
    return _render(context, "notification-bell")


@register.simple_tag(takes_context=True)
def notification_inbox(context: Context) -> SafeString:
    """Render ``<notification-inbox>``: the same list in the page itself; see ``notification_bell``."""
    return _render(context, "notification-inbox")


def _render(context: Context, element: str) -> SafeString:
    user = user_of(context)
    if user is None:
        return SafeString("")
    topic = Topic.for_user(user)
    since = page_position(context, topic)  # first: what is published after it reaches the page, whatever was counted
    number = inbox.unread(user)
    page = reverse("notifications_inbox:list")
    values: dict[str, Any] = {
        "src": reverse("notifications_inbox:notices"),
        "mark-url": reverse("notifications_inbox:mark"),
        "page-url": page,
        "user": topic.told,
        "since": since,
        "unread": number,
        "csrf-token": get_token(context.request),  # type: ignore[attr-defined]  # a context with a user has one
    }
    return format_html(
        '<{}{}><a href="{}">{}</a></{}><script type="module" src="{}"{}></script>',
        element,
        attributes_of(values),
        page,
        _words(number),
        element,
        static("notifications/inbox.js"),
        attributes_of({"nonce": nonce_of(context)}),
    )


def _words(number: int) -> str:
    """Return what the link says without JavaScript: "Notices (3 unread)"."""
    notices = gettext("Notices")
    if not number:
        return notices
    shown = str(number) if number <= MOST else f"{MOST}+"
    count = ngettext("%(number)s unread", "%(number)s unread", number) % {"number": shown}
    return f"{notices} ({count})"
