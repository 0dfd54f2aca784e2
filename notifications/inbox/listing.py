"""What pages and the bell show: a user's notices, newest first, a page at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC
from typing import Any, Final
from urllib.parse import urlsplit

from django.db.models import QuerySet
from django.utils import timezone
from django.utils.http import url_has_allowed_host_and_scheme

from .models import KeptNotice
from .publishing import aware
from .rows import alive, database_for_writing, table

PAGE_SIZE: Final = 20
MAX_PAGE_SIZE: Final = 100


@dataclass
class Page:
    """
    Some of a user's notices.

    Attributes:
        notices: The newest first.
        next: Ask for what comes ``before`` this id; None if that is nothing.

    """

    notices: Sequence[KeptNotice]
    next: int | None


@dataclass
class Entry:
    """The newest notice of a group on a page, with the ``others``; or one that is in no group."""

    notice: KeptNotice
    others: list[KeptNotice] = field(default_factory=list)


def database(user: Any) -> str:
    """Name the database that is written: a replica may lag behind the number that a browser was told."""
    return database_for_writing(user, None)


def notices_of(user: Any) -> QuerySet[KeptNotice]:
    """Return all rows of a user, in no order."""
    return table(database(user)).filter(user_id=user.pk)


def read_page(
    user: Any, *, before: int | None = None, limit: int = PAGE_SIZE, unread: bool = False, archived: bool = False
) -> Page:
    """
    Read what is shown to a user: notices that have not expired.

    Args:
        user: Whose notices.
        before: Only notices with smaller ids, so that a new notice shifts no page.
        limit: How many at most.
        unread: Only notices that have not been read.
        archived: Notices that were archived, instead of those that were not.

    """
    found = notices_of(user).filter(alive(timezone.now()), archived_at__isnull=not archived)
    if unread:
        found = found.filter(read_at=None)
    if before is not None:
        found = found.filter(id__lt=before)
    # First the ids, by an index alone: PostgreSQL would look for whole rows in the table, from its end, if a user has
    # many of them, and so at all rows of the table if few of these are archived.
    ids = list(found.order_by("-id").values_list("id", flat=True)[: limit + 1])
    notices = list(notices_of(user).filter(id__in=ids[:limit]).order_by("-id")) if ids else []
    return Page(notices, ids[limit - 1] if len(ids) > limit else None)


def in_groups(notices: Sequence[KeptNotice]) -> list[Entry]:
    """Put each notice of a group, but for the newest, below that one."""
    entries: list[Entry] = []
    groups: dict[str, Entry] = {}
    for notice in notices:
        if notice.group and (entry := groups.get(notice.group)):
            entry.others.append(notice)
        else:
            entry = Entry(notice)
            entries.append(entry)
            groups[notice.group] = entry
    return entries


def link_of(notice: KeptNotice) -> str | None:
    """Return where a notice leads, if that is ``http:``, ``https:`` or a path of the site; otherwise None."""
    url = notice.url.strip()
    try:
        parts = urlsplit(url)
    except ValueError:
        return None
    if not (parts.netloc or parts.path.startswith("/")):
        return None
    # Any host will do, so only tricks are left to refuse: other schemes, backslashes, control characters.
    return url if url_has_allowed_host_and_scheme(url, {parts.netloc}) else None


def as_json(notice: KeptNotice) -> dict[str, Any]:
    """Return what a browser is told of a notice."""
    return {
        "id": str(notice.pk),
        "level": notice.level,
        "title": notice.title,
        "body": notice.body or None,
        "url": link_of(notice),
        "group": notice.group,
        "actor": notice.actor,
        "target": notice.target,
        "timestamp": aware(notice.created_at).astimezone(UTC),
        "seen": notice.seen_at is not None,
        "read": notice.read_at is not None,
        "archived": notice.archived_at is not None,
    }
