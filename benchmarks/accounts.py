"""
The accounts of the users whose sockets are measured, in a database: what a site asks of it once a minute.

    BENCH_DATABASE=PATH python -m benchmarks.accounts
"""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

USERS: Final = 20_000
_directory: TemporaryDirectory[str] | None = None


@cache
def database() -> Path:
    """Make the database, once in a run; it is removed when we end."""
    global _directory
    _directory = TemporaryDirectory(prefix="notifications-benchmarks-")
    path = Path(_directory.name) / "accounts.sqlite3"
    env = {**os.environ, "DJANGO_SETTINGS_MODULE": "benchmarks.peers.settings", "BENCH_DATABASE": str(path)}
    subprocess.run([sys.executable, "-m", "benchmarks.accounts"], env=env, check=True)
    return path


def _fill() -> None:
    import django
    from django.core.management import call_command

    django.setup()
    from django.contrib.auth.models import User

    call_command("migrate", verbosity=0)
    User.objects.bulk_create(User(pk=number, username=str(number)) for number in range(1, USERS + 1))


if __name__ == "__main__":
    _fill()
