"""``manage.py send_notification``: try the set-up by hand, like ``sendtestemail``."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.contrib.auth import get_user_model
from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError

from notifications import NotificationsError, publish_to_user
from notifications.logs import describe
from notifications.messages import Notice


class Command(BaseCommand):
    help = "Send a notice to all tabs of a user."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("user", help="Login name or primary key.")
        parser.add_argument("title")
        parser.add_argument("body", nargs="?", help="A second line.")
        parser.add_argument("--level", choices=["info", "success", "warning", "error"], default="info")
        parser.add_argument("--url", help="Where a click leads.")

    def handle(self, *, user: str, title: str, body: str | None, level: Any, url: str | None, **options: Any) -> None:
        found = _find_user(user)
        try:
            publish_to_user(found, Notice(title=title, body=body, level=level, url=url))
        except NotificationsError as error:
            raise CommandError(describe(error)) from error
        self.stdout.write(
            self.style.SUCCESS(f"Published on user:{found.pk}. A tab of {found.get_username()} shows it now,")
            + " if it is open; otherwise notifications_doctor says why not."
        )


def _find_user(name: str) -> Any:
    users = get_user_model()._default_manager
    try:
        return users.get_by_natural_key(name)
    except (get_user_model().DoesNotExist, ValueError):  # the latter for what no database can hold
        pass
    try:
        return users.get(pk=name)
    except (get_user_model().DoesNotExist, ValidationError, ValueError, TypeError) as error:
        raise CommandError(f"there is no user {name!r}") from error
