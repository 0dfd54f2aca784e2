"""
The accounts and sessions of the users whose sockets are measured, in a database: what a handshake asks for.

It is PostgreSQL where that and psycopg are installed. Elsewhere it is SQLite, which has no round trip and no
connections that could run out; then the results name no PostgreSQL.
"""

from __future__ import annotations

import atexit
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from datetime import timedelta
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from benchmarks.machine import pin_load
from benchmarks.postgres import Postgres, find_program

USERS: Final = 20_000
COOKIE: Final = "sessionid=benchmark{user:023d}"
"""Of the session of a user."""


def postgresql() -> bool:
    """Whether PostgreSQL can be started, and talked to."""
    return find_program("initdb") is not None and find_spec("psycopg") is not None


_running: Final = ExitStack()


@cache
def environment() -> Mapping[str, str]:
    """Start the database, once in a run; it ends with us. Return what tells ``benchmarks.peers.settings`` of it."""
    atexit.register(end)
    if postgresql():
        server = _running.enter_context(Postgres())
        pin_load(server.child.pid)
        env: Mapping[str, str] = server.env
    else:
        directory = _running.enter_context(TemporaryDirectory(prefix="notifications-benchmarks-"))
        env = {"BENCH_DATABASE": str(Path(directory) / "accounts.sqlite3")}
    settings = {"DJANGO_SETTINGS_MODULE": "benchmarks.peers.settings"}
    subprocess.run([sys.executable, "-m", "benchmarks.accounts"], env={**os.environ, **settings, **env}, check=True)
    return env


def end() -> None:
    """End the database, if there is one, before we end."""
    environment.cache_clear()
    _running.close()


def _fill() -> None:
    import django
    from django.core.management import call_command

    django.setup()
    from django.contrib import auth
    from django.contrib.auth.models import User
    from django.contrib.sessions.backends.db import SessionStore
    from django.contrib.sessions.models import Session
    from django.utils import timezone

    call_command("migrate", verbosity=0)
    users = [User(pk=number, username=str(number)) for number in range(1, USERS + 1)]
    User.objects.bulk_create(users)
    store, expires = SessionStore(), timezone.now() + timedelta(days=1)
    backend, known = "django.contrib.auth.backends.ModelBackend", users[0].get_session_auth_hash()  # of no password
    Session.objects.bulk_create(
        Session(
            session_key=COOKIE.format(user=user.pk).partition("=")[2],
            session_data=store.encode(
                {auth.SESSION_KEY: str(user.pk), auth.BACKEND_SESSION_KEY: backend, auth.HASH_SESSION_KEY: known}
            ),
            expire_date=expires,
        )
        for user in users
    )


if __name__ == "__main__":
    _fill()
