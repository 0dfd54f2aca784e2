import time
from argparse import ArgumentParser
from pathlib import Path

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.files.base import ContentFile
from django.core.management.base import BaseCommand, CommandError

from notifications import Cancelled
from project.imports.jobs import ImportFailedError, run_import
from project.imports.models import Import

INTERRUPTED = 130
"""The exit code of a program that Ctrl-C has ended, as shells have it."""


class Command(BaseCommand):
    help = "Import a CSV file as a user's, here and now: the bar is in the terminal and on their page."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("file", type=Path)
        parser.add_argument("--user", default="demo", help="whose import it is (default: demo)")

    def handle(self, *, file: Path, user: str, verbosity: int, **options: object) -> None:
        model = get_user_model()
        try:
            owner = model.objects.get_by_natural_key(user)
            content = ContentFile(file.read_bytes(), name=file.name)
        except (model.DoesNotExist, OSError) as error:
            raise CommandError(str(error)) from error
        job = Import.create_claimed(owner=owner, file=content, name=file.name)
        try:
            run_import(job, rest=lambda: time.sleep(settings.DEMO_PACE), terminal=verbosity > 0)
        except ImportFailedError as error:
            raise CommandError(str(error)) from error
        except (Cancelled, KeyboardInterrupt) as error:
            raise CommandError("cancelled", returncode=INTERRUPTED) from error
        if verbosity > 0:
            self.stdout.write(f"{job.done - job.refused:,} places of {job.done:,} rows; {job.refused:,} were wrong")
        if verbosity > 1:
            for line, reason in job.reasons:
                self.stdout.write(f"line {line:,}: {reason}")
