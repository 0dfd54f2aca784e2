"""Where the rows of notices are, which of them are alive, and how many are unread."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from datetime import datetime
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeVar

from django.apps import apps
from django.contrib.auth import get_user_model
from django.core.exceptions import ValidationError
from django.db import router
from django.db.models import Count, Model, Q, QuerySet
from django.utils import timezone

from ..exceptions import TopicError
from ..topics import Topic

if TYPE_CHECKING:
    from .models import KeptNotice

T = TypeVar("T")

MAX_UNREAD: Final = 100
"""Unread notices are counted up to here; a page shows this as "99+"."""

Change = Literal["seen", "read", "unread", "archived", "restored"]
"""What can happen to a notice once it is there."""


class State(NamedTuple):
    """Whether a notice has been seen, read and archived."""

    seen: bool
    read: bool
    archived: bool

    @classmethod
    def of(cls, row: KeptNotice) -> State:
        return cls(row.seen_at is not None, row.read_at is not None, row.archived_at is not None)

    @property
    def condition(self) -> Q:
        """What is true of rows in this state."""
        return Q(seen_at__isnull=not self.seen, read_at__isnull=not self.read, archived_at__isnull=not self.archived)


def model() -> type[KeptNotice]:
    """Return the class of the rows: looked up, because whoever calls ``notify`` may be imported before all models."""
    return apps.get_model("notifications_inbox", "KeptNotice")


def table(db: str) -> QuerySet[KeptNotice]:
    """Return all rows of a database, in no order."""
    return model().objects.using(db).order_by()


def database_for_writing(user: Any, using: str | None) -> str:
    return using or router.db_for_write(model(), **_hints(user))


def database_for_reading(user: Any, using: str | None) -> str:
    return using or router.db_for_read(model(), **_hints(user))


def _hints(user: Any) -> dict[str, Any]:
    return {"instance": user} if hasattr(user, "_state") else {}


def is_user(some: type[Model]) -> bool:
    """Return whether a model is that of the users, a proxy of it or derived from it."""
    users: Any = get_user_model()._meta.concrete_model
    return issubclass(some._meta.concrete_model or some, users)


def key_of(user: Any) -> Any:
    """
    Return the primary key of a user, given as an instance or a key.

    Raises:
        TopicError: The user is anonymous or unsaved, it is an instance of another model, or the key cannot be one of a
            user.

    """
    if isinstance(user, Model) and not is_user(user._meta.model):
        raise TopicError(f"a {user._meta.object_name} is no user")
    pk = user.pk if hasattr(user, "pk") else user
    if pk is None:
        raise TopicError("an anonymous or unsaved user has no notices")
    try:
        if isinstance(pk, bool | float):  # an integer field would take them
            raise ValidationError("not a key")
        return model()._meta.get_field("user").target_field.to_python(pk)
    except (ValidationError, ValueError, TypeError):
        raise TopicError(f"this {type(pk).__name__} is no primary key of a user") from None


def topic_of(key: Any) -> Topic:
    """Name the topic of the user with a primary key, in the current tenant; raises ``TopicError``."""
    return Topic("user", str(key))


def alive(now: datetime) -> Q:
    """Return what is true of rows that have not expired."""
    return Q(expires_at__isnull=True) | Q(expires_at__gt=now)


def is_alive(row: KeptNotice, now: datetime) -> bool:
    return row.expires_at is None or row.expires_at > now


def _unread(db: str) -> QuerySet[KeptNotice]:
    return table(db).filter(alive(timezone.now()), read_at__isnull=True, archived_at__isnull=True)


def count_unread(user: Any, db: str) -> int:
    """Return how many notices of a user are unread, ``MAX_UNREAD`` at most; ``user`` is a primary key."""
    return _unread(db).filter(user_id=user)[:MAX_UNREAD].count()


def count_all_unread(users: Collection[Any], db: str) -> dict[Any, int]:
    """Return the same for many users in one query."""
    if len(users) == 1:
        return {user: count_unread(user, db) for user in users}
    found = _unread(db).filter(user_id__in=users).values_list("user_id").annotate(number=Count("pk"))
    return dict.fromkeys(users, 0) | {user: min(number, MAX_UNREAD) for user, number in found}


def batches(values: Iterator[T], size: int) -> Iterator[list[T]]:
    """Yield the values in lists of at most ``size``."""
    while some := list(islice(values, size)):
        yield some
