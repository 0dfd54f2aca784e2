"""
Django's own signals that end access: logout, a changed password, an account that is deactivated or deleted.

They make access end at once. What sends no signal, such as ``queryset.update``, is found by the next check. The site's
action never fails because of a receiver here: Django deletes a session only after the receivers of its logout.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, Final

from django.apps import apps
from django.contrib.auth import get_user_model
from django.contrib.auth.signals import user_logged_out
from django.core.exceptions import ImproperlyConfigured
from django.db.models.signals import class_prepared, post_delete, post_save
from django.dispatch import receiver

from ..exceptions import TopicError
from ..logs import LogBudget
from .control import check_user, disconnect_user

_log = LogBudget(logging.getLogger(__name__))

_READ: Final = "_notifications_password_read"
"""The attribute of a user that remembers the password's hash as it was read; missing if it was not read."""


def _user_model() -> Any:
    try:
        return get_user_model()._meta.concrete_model  # a proxy's rows are those of its model
    except ImproperlyConfigured:
        return None  # a program that only publishes may have no users


def _model_of(column: str) -> Any:
    """Return the model whose table has a column of users: their own, or a parent of it."""
    return {field.name: field.model for field in _user._meta.concrete_fields}.get(column, _user)


_user: Final = _user_model()
_models: Final = () if _user is None else (_user, _model_of("password"), _model_of("is_active"))
"""The models whose rows say whether a user has access."""


@contextmanager
def _harmless() -> Iterator[None]:
    """Log a ``TopicError`` and continue: there is no current tenant, or the user's id is not valid."""
    try:
        yield
    except TopicError as error:
        _log.warning("could not announce that a user's access may end: %s", error)


@receiver(user_logged_out, dispatch_uid="notifications")
def _logged_out(*, request: Any, user: Any, **_: Any) -> None:
    session_key = getattr(getattr(request, "session", None), "session_key", None)
    if user is not None and session_key:  # otherwise nobody was logged in, or the session is not known
        with _harmless():
            disconnect_user(user, session_key=session_key, on_commit=True, fail_silently=True)


@receiver(post_save, dispatch_uid="notifications")  # no sender: users are saved as proxies, parents and children, too
def _saved(*, instance: Any, created: bool, update_fields: frozenset[str] | None, using: str, **_: Any) -> None:
    if not isinstance(instance, _models):
        return
    if created:
        _remember_password(instance)
        return
    # It is not remembered once it is saved: that may be rolled back and saved again, and to tell twice costs little.
    has_password_changed = vars(instance).get("password") != vars(instance).get(_READ)
    is_password_written = update_fields is None or "password" in update_fields
    is_inactive = "is_active" not in instance.get_deferred_fields() and not getattr(instance, "is_active", True)
    if (has_password_changed and is_password_written) or is_inactive:
        with _harmless():
            for key in _keys(instance, using):
                check_user(key, using=using)


def _keys(instance: Any, using: str) -> list[str]:
    """Return the keys of the users, one or none, whose row an instance has, or a part of it."""
    if isinstance(instance, _user):
        return [str(getattr(instance, _user._meta.pk.attname))]  # not its own ``pk``: a child may have another
    pk = next(model for model in _models if isinstance(instance, model))._meta.pk
    children = _user._base_manager.using(using).filter(**{pk.name: getattr(instance, pk.attname)})
    return [str(key) for key in children.values_list("pk", flat=True)]


def _remember_password(instance: Any) -> None:
    values = vars(instance)  # not the attribute: one that is deferred would be read
    values[_READ] = values.get("password")


def _remember_passwords(model: Any) -> None:
    """
    Let the users of a model remember the password's hash as they are read, so that a change shows when they are saved.

    Django documents ``from_db`` for this. It costs half a microsecond for each user; the signal ``post_init`` would
    cost twice that, and something for each row of any other model.
    """
    read = model.from_db.__func__

    @wraps(read)
    def from_db(cls: Any, *args: Any, **kwargs: Any) -> Any:
        instance = read(cls, *args, **kwargs)
        _remember_password(instance)
        return instance

    model.from_db = classmethod(from_db)


def _deleted(*, instance: Any, using: str, **_: Any) -> None:
    with _harmless():
        check_user(instance, using=using)


@receiver(class_prepared, dispatch_uid="notifications")
def _watch_deletions(*, sender: Any, **_: Any) -> None:
    """
    Connect to deletions of users, as themselves or as proxies; a parent or a child that is deleted takes them along.

    Each model has its own receiver: with one for all senders, Django could not delete any model of the site by a
    single statement, because it would have to load each row for the receiver.
    """
    if sender._meta.concrete_model is _user:
        post_delete.connect(_deleted, sender=sender, dispatch_uid="notifications")


for _model in apps.get_models():
    _watch_deletions(sender=_model)
if _user is not None:
    _remember_passwords(_model_of("password"))
