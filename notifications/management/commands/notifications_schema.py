"""``manage.py notifications_schema``: the wire protocol as a machine-readable document."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from collections.abc import Callable
from typing import Any, Final

from django.core.management.base import BaseCommand

from notifications.schema.asyncapi import asyncapi
from notifications.schema.json_schema import json_schema
from notifications.schema.typescript import typescript

FORMATS: Final[dict[str, Callable[[], Any]]] = {
    "asyncapi": asyncapi,
    "jsonschema": json_schema,
    "typescript": typescript,
}


class Command(BaseCommand):
    help = "Print the wire protocol, which is the same on every site."
    requires_system_checks = ()

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "format", choices=FORMATS, help="An AsyncAPI 3.0 document, JSON Schemas, or TypeScript declarations."
        )

    def handle(self, *, format: str, **options: Any) -> None:  # noqa: A002  as the argument is called
        document = FORMATS[format]()
        if not isinstance(document, str):
            document = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
        self.stdout.write(document, ending="")
