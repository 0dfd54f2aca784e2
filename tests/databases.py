"""Database servers for tests, each private and gone afterwards, and how Django reaches them."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
from django.db import connections

from benchmarks.postgres import Postgres
from benchmarks.postgres import find_program as find_postgres
from tests.mariadb import Mariadb
from tests.mariadb import find_program as find_mariadb

Settings = Mapping[str, Any]


@contextmanager
def postgresql() -> Iterator[Settings]:
    """Start a PostgreSQL, and yield an entry of ``DATABASES``."""
    _need("PostgreSQL", find_postgres("initdb"))
    with Postgres() as server:
        host, port = server.env["PGHOST"], server.env["PGPORT"]
        yield {
            "ENGINE": "django.db.backends.postgresql",
            "HOST": host,
            "PORT": port,
            "USER": server.env["PGUSER"],
            "NAME": server.env["PGDATABASE"],
        }


@contextmanager
def mariadb() -> Iterator[Settings]:
    """Start a MariaDB, and yield an entry of ``DATABASES``."""
    _need("MariaDB", find_mariadb("mariadbd"))
    import tests.mysqldb  # noqa: F401  Django's backend imports what it puts in place

    with Mariadb() as server:
        server.run("CREATE DATABASE site CHARACTER SET utf8mb4")
        yield {
            "ENGINE": "django.db.backends.mysql",
            "HOST": server.socket,
            "NAME": "site",
            "USER": "root",
            "OPTIONS": {"charset": "utf8mb4"},
            "TEST": {"CHARSET": "utf8mb4"},
        }


SERVERS: Mapping[str, Callable[[], Any]] = {"postgresql": postgresql, "mariadb": mariadb}


def _need(name: str, program: object) -> None:
    """Skip where a server is not installed; in CI that is a failure, or nobody would notice."""
    if program is None:
        message = f"{name} is not installed: tests/install_databases"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)


@contextmanager
def connected(alias: str, settings: Settings) -> Iterator[None]:
    """Give this process one more database."""
    whole = connections.configure_settings({"default": {}, alias: dict(settings)})
    connections.settings[alias] = whole[alias]
    try:
        yield
    finally:
        connections[alias].close()
        del connections[alias]
        del connections.settings[alias]
