"""What a site calls: notices are kept, marked and counted."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple, get_args

import msgspec
from asgiref.sync import sync_to_async
from django.conf import settings as django_settings
from django.db import IntegrityError, transaction
from django.db.models import Case, F, Q, QuerySet, Value, When
from django.db.models.functions import Coalesce
from django.db.models.query import ModelIterable
from django.utils import timezone
from msgspec import UNSET

from .. import publisher
from ..exceptions import MessageError
from ..messages import Notice, NoticeInbox
from ..metrics import count
from .publishing import LATEST, UPDATED_AT_ONCE, Marked, Recipient, publish_change, publish_created, stored
from .rows import (
    MAX_UNREAD,
    Change,
    alive,
    batches,
    count_unread,
    database_for_reading,
    database_for_writing,
    is_user,
    key_of,
    model,
    table,
    topic_of,
)

if TYPE_CHECKING:
    from .models import KeptNotice

MAX_NAME_LENGTH: Final = 200
"""Characters of a key or group."""
CREATED_AT_ONCE: Final = 1000
"""Rows of one query, and of one transaction where the caller has none."""
MARKED_AT_ONCE: Final = 500
"""Ids of one message."""
LARGEST_ID: Final = 2**63 - 1
_NUL: Final = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")


def notify(
    user: Any,
    notice: Notice,
    *,
    key: str | None = None,
    group: str = "",
    actor: Any = None,
    target: Any = None,
    expires: datetime | timedelta | None = None,
    using: str | None = None,
) -> KeptNotice:
    """
    Keep a notice for a user, and tell all of the user's browsers.

    The row is written now, in the caller's transaction if there is one; a rollback takes it away. When it is committed,
    the message is published. Redis may be away then: the call does not fail, and a listener publishes it when Redis is
    back.

    Args:
        user: A ``User`` instance or a primary key.
        notice: What to say.
        key: Makes the call idempotent: if the user has a notice with this key, nothing happens. 1 to 200 characters.
        group: Of notices of one group a list shows the newest. 200 characters at most.
        actor: Whoever did something: anything that can be written as JSON, for the site's own pages.
        target: What it was done to: likewise.
        expires: When the notice disappears, or after how long. Without it, it stays until it is pruned.
        using: The alias of the database. By default the router says.

    Returns:
        The row; with a ``key`` that was there already, the existing one.

    Raises:
        TopicError: The user is anonymous or unsaved, or nobody knows the current tenant.
        MessageError: The notice, the key or the group is wrong or too long.
        ValueError: ``expires`` has no time zone, or is not in the future.

    """
    kept = _Kept.of(user, notice, key, group, actor, target, expires)
    db = database_for_writing(user, using)
    row, created = kept.save(db)
    if created:
        count("inbox_kept")
        transaction.on_commit(lambda: publish_created([row.pk], db), using=db, robust=True)
    return row


async def anotify(
    user: Any,
    notice: Notice,
    *,
    key: str | None = None,
    group: str = "",
    actor: Any = None,
    target: Any = None,
    expires: datetime | timedelta | None = None,
    using: str | None = None,
) -> KeptNotice:
    """Keep a notice for a user without blocking the event loop; see ``notify``."""
    return await sync_to_async(notify)(
        user, notice, key=key, group=group, actor=actor, target=target, expires=expires, using=using
    )


def notify_many(
    users: Iterable[Any],
    notice: Notice,
    *,
    key: str | None = None,
    group: str = "",
    actor: Any = None,
    target: Any = None,
    expires: datetime | timedelta | None = None,
    using: str | None = None,
) -> int:
    """
    Keep a notice for each of many users, and tell their browsers; see ``notify``.

    A thousand rows at a time are written in one query and published together. Without a transaction of the caller, each
    thousand is committed by itself: if the call fails half-way, call it again with the same ``key``.

    Args:
        users: A queryset of users, or ``User`` instances or primary keys, also as a queryset such as
            ``Membership.objects.values_list("user")``. All keys are read first. Who is there twice is told once.
        notice: As for ``notify``.
        key: As for ``notify``: users who have a notice with this key are left out.
        group: As for ``notify``.
        actor: As for ``notify``.
        target: As for ``notify``.
        expires: As for ``notify``.
        using: The alias of the database for all of them. By default that of the queryset, or what the router says.

    Returns:
        How many rows were created.

    Raises:
        TopicError: One of them cannot be a user; nothing is written. For other mistakes see ``notify``.
        IntegrityError: One of the keys is that of no user, or the user was deleted meanwhile: none of that thousand is
            kept. PostgreSQL and SQLite find it at the end of the transaction. MySQL and MariaDB leave such users out
            where there is a ``key``.

    """
    # In one order: two calls with the same key wait for each other's rows, and would do so for good in two orders.
    pks = sorted(set(map(key_of, _each(users))))
    if not pks:
        return 0
    kept = _Kept.of(pks[0], notice, key, group, actor, target, expires)
    db = database_for_writing(pks[0], using or getattr(users, "_db", None))
    return sum(kept.save_many(some, db) for some in batches(iter(pks), CREATED_AT_ONCE))


async def anotify_many(
    users: Iterable[Any],
    notice: Notice,
    *,
    key: str | None = None,
    group: str = "",
    actor: Any = None,
    target: Any = None,
    expires: datetime | timedelta | None = None,
    using: str | None = None,
) -> int:
    """Keep a notice for each of many users without blocking the event loop; see ``notify_many``."""
    return await sync_to_async(notify_many)(
        users, notice, key=key, group=group, actor=actor, target=target, expires=expires, using=using
    )


def mark(
    user: Any,
    change: Change,
    *,
    ids: Iterable[int | str] | None = None,
    until: int | str | None = None,
    using: str | None = None,
) -> int:
    """
    Mark notices of a user, and tell all of the user's browsers.

    Like ``notify`` it writes in the caller's transaction, publishes after the commit, and never fails because of Redis.

    Args:
        user: A ``User`` instance or a primary key. Notices of others are never changed.
        change: ``"seen"``, ``"read"`` (which includes seen), ``"unread"``, ``"archived"`` or ``"restored"``.
        ids: Which notices: a list, or anything else that yields ids. Those that the user does not have are ignored.
        until: Instead of ``ids``: all of the user's notices up to this id, so not those that came after it.
        using: The alias of the database. By default the router says.

    Returns:
        How many notices were changed: not those that were so before, nor those that have expired.

    Raises:
        TopicError: The user is anonymous or unsaved, or nobody knows the current tenant.
        ValueError: The change is none of these, or it does not say which notices.
        TypeError: ``ids`` is a text, of which each digit would be an id.

    """
    if change not in get_args(Change):
        raise ValueError(f"a change is one of {', '.join(get_args(Change))}")
    if (ids is None) == (until is None):
        raise ValueError("give either ids or until")
    if isinstance(ids, str | bytes):
        raise TypeError("ids are many: give a list")
    pk = key_of(user)
    recipient = Recipient(topic_of(pk).tenant, pk)
    db = database_for_writing(user, using)
    if until is not None:
        return _mark(recipient, change, None, _id(until), db)
    wanted = iter(dict.fromkeys(map(_id, ids or ())))
    return sum(_mark(recipient, change, some, None, db) for some in batches(wanted, MARKED_AT_ONCE))


async def amark(
    user: Any,
    change: Change,
    *,
    ids: Iterable[int | str] | None = None,
    until: int | str | None = None,
    using: str | None = None,
) -> int:
    """Mark notices of a user without blocking the event loop; see ``mark``."""
    return await sync_to_async(mark)(user, change, ids=ids, until=until, using=using)


def unread(user: Any, *, using: str | None = None) -> int:
    """
    Return how many notices of a user are unread: neither read nor archived nor expired.

    Args:
        user: A ``User`` instance or a primary key.
        using: The alias of the database. By default the router says.

    Returns:
        At most 100, which pages show as "99+".

    Raises:
        TopicError: The user is anonymous or unsaved.

    """
    return count_unread(key_of(user), database_for_reading(user, using))


async def aunread(user: Any, *, using: str | None = None) -> int:
    """Return how many notices of a user are unread without blocking the event loop; see ``unread``."""
    return await sync_to_async(unread)(user, using=using)


class _Kept(NamedTuple):
    """What is to be kept, checked."""

    recipient: Recipient
    fields: dict[str, Any]

    @classmethod
    def of(
        cls,
        user: Any,
        notice: Notice,
        key: str | None,
        group: str,
        actor: Any,
        target: Any,
        expires: datetime | timedelta | None,
    ) -> _Kept:
        if not isinstance(notice, Notice):
            raise MessageError(f"a {type(notice).__name__} cannot be kept: give a notifications.messages.Notice")
        if notice.inbox is not UNSET:
            raise MessageError("Notice.inbox is set by notify")
        _check_name("key", key, 1)
        _check_name("group", group, 0)
        pk = key_of(user)
        topic = topic_of(pk)
        # As long as it can become: published later, it must not turn out to be too long.
        place = NoticeInbox(id=str(LARGEST_ID), unread=MAX_UNREAD, group=group, actor=actor, target=target)
        longest = msgspec.structs.replace(notice, inbox=place)
        data = publisher.prepare(topic, longest).data
        if _NUL.search(data):
            raise MessageError("a notice that is kept has no character U+0000, which databases refuse")
        plain = msgspec.json.decode(data)
        fields = {
            "tenant": topic.tenant,
            "key": key,
            "group": plain["inbox"]["group"],
            "level": plain["level"],
            "title": plain["title"],
            "body": plain["body"] or "",
            "url": plain["url"] or "",
            "actor": plain["inbox"]["actor"],
            "target": plain["inbox"]["target"],
            "created_at": stored(notice.timestamp),
            "expires_at": _expiry(expires),
        }
        return cls(Recipient(topic.tenant, pk), fields)

    def save(self, db: str) -> tuple[KeptNotice, bool]:
        """Write one row; return it, and whether it is new."""
        fields = self.fields | {"pending_since": timezone.now()}
        manager = model().objects.using(db)
        if (key := fields.pop("key")) is None:
            return manager.create(user_id=self.recipient.user, **fields), True
        try:
            return manager.get_or_create(user_id=self.recipient.user, key=key, defaults=fields)
        except IntegrityError:
            # The caller's transaction may be older than the row, and not see it unless it asks for the newest.
            with transaction.atomic(using=db):
                row = manager.select_for_update().filter(user_id=self.recipient.user, key=key).first()
            if row is None:
                raise
            return row, False

    def save_many(self, users: list[Any], db: str) -> int:
        """Write a row for each user, have them published, and return how many are new."""
        at = timezone.now()
        rows = [model()(user_id=user, pending_since=at, **self.fields) for user in users]
        with_key = self.fields["key"] is not None
        mine = table(db).filter(pending_since=at, user_id__in=users, key=self.fields["key"])
        with transaction.atomic(using=db):
            rows = model().objects.using(db).bulk_create(rows, ignore_conflicts=with_key)
            ids = [row.pk for row in rows]
            if None in ids:  # no database says which it has ignored, and MySQL says nothing
                ids = list(mine.values_list("pk", flat=True))
            if ids:
                transaction.on_commit(lambda: publish_created(ids, db), using=db, robust=True)
        count("inbox_kept", amount=len(ids))
        return len(ids)


def _each(users: Iterable[Any]) -> Iterable[Any]:
    """Return users or keys; of a queryset of users no more than their keys are read."""
    if isinstance(users, str | bytes):
        raise TypeError("notify_many takes many users")
    # A queryset may also be of keys: Membership.objects.values_list("user"), whose own keys are no users.
    if isinstance(users, QuerySet) and issubclass(users._iterable_class, ModelIterable) and is_user(users.model):
        return users.values_list("pk", flat=True)
    return users


def _check_name(what: str, value: str | None, shortest: int) -> None:
    if value is None and what == "key":
        return
    if not isinstance(value, str) or not shortest <= len(value) <= MAX_NAME_LENGTH:
        raise MessageError(f"a {what} has {shortest} to {MAX_NAME_LENGTH} characters")
    if "\0" in value or not value.isprintable():
        raise MessageError(f"a {what} has printable characters only")


def _expiry(expires: datetime | timedelta | None) -> datetime | None:
    if expires is None:
        return None
    if isinstance(expires, timedelta):
        if expires <= timedelta():
            raise ValueError("expires is no time in the future")
        try:
            return timezone.now() + expires
        except OverflowError:
            return stored(LATEST)
    if timezone.is_naive(expires) and django_settings.USE_TZ:
        raise ValueError("expires has no time zone")
    return stored(expires) if timezone.is_aware(expires) else expires


def _id(value: int | str) -> int:
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError):
        number = -1
    if isinstance(value, bool | float) or not 0 <= number <= LARGEST_ID:
        raise ValueError("the id of a notice is a whole number")
    return number


def _mark(recipient: Recipient, change: Change, ids: list[int] | None, until: int | None, db: str) -> int:
    now = timezone.now()
    field, on = {
        "seen": ("seen_at", True),
        "read": ("read_at", True),
        "unread": ("read_at", False),
        "archived": ("archived_at", True),
        "restored": ("archived_at", False),
    }[change]
    already = Q(**{f"{field}__isnull": not on})
    marked = Marked(recipient, change, ids, until, now, 0, already)
    # What was pending becomes so at another time: telling this change must not settle one that was not told.
    since = Case(When(pending_since__isnull=True, then=Value(now)), default=Value(now + timedelta(microseconds=1)))
    changes: dict[str, Any] = {field: now if on else None, "pending_since": since}
    if change == "read":
        changes["seen_at"] = Coalesce(F("seen_at"), now)
    found = table(db).filter(marked.selection & ~already, alive(now)).order_by("pk").values_list("pk", flat=True)
    # By their ids, and so in the order of these: two devices that find the same rows by different indexes would lock
    # them in different orders, and one of them would fail.
    updates = batches(iter(found), UPDATED_AT_ONCE)
    rows = sum(table(db).filter(~already, pk__in=some).update(**changes) for some in updates)
    if rows:
        marked = marked._replace(rows=rows)
        transaction.on_commit(lambda: publish_change(marked, db), using=db, robust=True)
    return rows
