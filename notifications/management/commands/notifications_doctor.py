"""``manage.py notifications_doctor``: where the path of a message is broken, and what to do."""

from __future__ import annotations

import asyncio
import json
from argparse import ArgumentParser, ArgumentTypeError
from contextlib import suppress
from contextvars import copy_context
from typing import Any, Final

from django.contrib.auth import get_user_model
from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError

from notifications import TopicError, tenants
from notifications.doctor import ROAD, Finding, Level, broken, examine

LONGEST_IDLE: Final = 120
"""Seconds: no proxy of the guides waits for longer by default, and the site ends a stream after five minutes."""


def idle_seconds(text: str) -> int:
    """Parse ``--idle``."""
    seconds = int(text)
    if not 1 <= seconds <= LONGEST_IDLE:
        raise ArgumentTypeError(f"between 1 and {LONGEST_IDLE} seconds")
    return seconds


class Command(BaseCommand):
    help = (
        "Follow a message from the publisher to a socket, name the hop that is broken, and say what to do. "
        "Exits 1 if something is broken, otherwise 0."
    )

    requires_system_checks: list[str] = []  # noqa: RUF012  the command reports them itself

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--json", action="store_true", help="Write the findings as one JSON object.")
        parser.add_argument(
            "--path", help="Path of the WebSocket, if it is not the one that {%% notifications %%} prints."
        )
        parser.add_argument(
            "--site",
            help="Address of the running site, such as https://example.com/: examine that, too, through its proxy.",
        )
        parser.add_argument(
            "--user",
            help="With --site: name of an active user, as whom a message is followed through the running site. The "
            "site is sent a token of theirs; nothing is published to them.",
        )
        parser.add_argument(
            "--idle",
            type=idle_seconds,
            default=0,
            metavar="SECONDS",
            help="With --user: hold the connections for so long, to see whether a proxy cuts them off.",
        )
        parser.add_argument(
            "--fail-level",
            choices=["ERROR", "WARNING"],
            default="ERROR",
            help="Exit 1 also for warnings, or only for errors (default).",
        )

    def handle(
        self, *, path: str | None, site: str | None, user: str | None, idle: int, fail_level: str, **options: Any
    ) -> None:
        if (user and not site) or (idle and not user):
            raise CommandError("--user needs --site, and --idle needs --user")
        whose = self._find(user) if user else None
        here = copy_context()
        with suppress(TopicError, ImproperlyConfigured):  # the doctor reports them
            here.run(tenants.remembered.set, tenants.current() or None)
        found = here.run(asyncio.run, examine(path, site, whose, idle))
        where = broken(found)
        if options["json"]:
            checks = [finding._asdict() for finding in found]
            self.stdout.write(json.dumps({"healthy": where is None, "broken": where, "checks": checks}, indent=2))
        else:
            for finding in found:
                self._show(finding)
        if where is not None:
            raise CommandError(f"broken: {where}" + (f" ({ROAD[where]})" if ROAD[where] else ""))
        if fail_level == "WARNING" and any(finding.level is Level.WARNING for finding in found):
            raise CommandError("there are warnings")

    def _find(self, name: str) -> Any:
        model = get_user_model()
        user = model._default_manager.filter(**{model.USERNAME_FIELD: name}).first()
        if user is None or not user.is_active:
            raise CommandError(f"there is no active user {name!r}")
        return user

    def _show(self, finding: Finding) -> None:
        style = {Level.OK: self.style.SUCCESS, Level.WARNING: self.style.WARNING, Level.ERROR: self.style.ERROR}
        level = style.get(finding.level, self.style.NOTICE)(f"{finding.level:8}")
        self.stdout.write(f"{level} {finding.check:11} {finding.text}")
        if finding.hint:
            self.stdout.write(f"{'':20} → {finding.hint}")
