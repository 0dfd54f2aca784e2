"""
Django's own events that end access: logout, a changed password, an account that is deactivated or deleted.

They make access end at once. What raises no signal, such as ``queryset.update``, is found by the next check.
"""

from __future__ import annotations

from typing import Any

from django.apps import apps
from django.conf import settings as django_settings
from django.contrib.auth import get_user_model
from django.contrib.auth.signals import user_logged_out
from django.db.models.signals import class_prepared, post_delete, post_save
from django.dispatch import receiver

from .control import check_user, disconnect_user


@receiver(user_logged_out, dispatch_uid="notifications")
def _logged_out(*, request: Any, user: Any, **_: Any) -> None:
    session_key = getattr(getattr(request, "session", None), "session_key", None)
    if user is not None and session_key:  # otherwise nobody was logged in, or nobody knows where
        disconnect_user(user, session_key=session_key, on_commit=True, fail_silently=True)


@receiver(post_save, dispatch_uid="notifications")  # no sender: proxies of the user model are saved as themselves
def _saved(*, instance: Any, created: bool, using: str, **_: Any) -> None:
    if not isinstance(instance, get_user_model()) or created:
        return
    # ``set_password`` notes the new one here until ``save`` is over; so nobody has to know what the old one was.
    password_changed = getattr(instance, "_password", None) is not None
    inactive = "is_active" not in instance.get_deferred_fields() and not instance.is_active
    if password_changed or inactive:
        check_user(instance, using=using)


def _deleted(*, instance: Any, using: str, **_: Any) -> None:
    check_user(instance, using=using)


@receiver(class_prepared, dispatch_uid="notifications")
def _watch_deletions(*, sender: Any, **_: Any) -> None:
    """
    Hear of deleted users, also of those that are deleted through a proxy of their model.

    Each model has a receiver of its own: with one for all senders Django could delete no model of the site by a single
    statement, because it would have to read each row for us.
    """
    if sender._meta.concrete_model._meta.label_lower == django_settings.AUTH_USER_MODEL.lower():
        post_delete.connect(_deleted, sender=sender, dispatch_uid="notifications")


for _model in apps.get_models():
    _watch_deletions(sender=_model)
