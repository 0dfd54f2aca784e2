"""
A site with tenants: each has a database of its own, and so the same primary keys.

The tenant of a request or socket stands in a header. Where ``SCHEMAS`` is set the database of a query is that of the
thread, as with schemas of PostgreSQL; otherwise it is that of the context.
"""

import asyncio
import os
import threading
from contextlib import contextmanager
from contextvars import ContextVar

from django.conf import settings
from django.contrib.auth import get_user_model

tenant = ContextVar("tenant")
_thread = threading.local()


def current():
    try:
        return tenant.get()
    except LookupError:
        if asyncio._get_running_loop() is not None:
            raise  # what is known of a thread, as a connection and its schema are, is not known of its coroutines
        return os.environ["TENANT"]  # a command is run in the tenant of its environment


@contextmanager
def schema(name):
    before = getattr(_thread, "schema", None)
    _thread.schema = name
    try:
        yield
    finally:
        _thread.schema = before


class Router:
    def db_for_read(self, model, **hints):
        if settings.SCHEMAS:
            return getattr(_thread, "schema", None)
        return tenant.get(None)

    db_for_write = db_for_read

    def allow_relation(self, *_, **hints):
        return True


class Middleware:
    """Takes note of the tenant of whatever is asked."""

    def __init__(self, inner):
        self.inner = inner

    async def __call__(self, scope, receive, send):
        default = os.environ.get("TENANT", "").encode()
        if name := dict(scope["headers"]).get(b"x-tenant", default):
            tenant.set(name.decode())
        return await self.inner(scope, receive, send)


def may_watch(user, upload_id):
    """Ask the tenant's database: the upload is of the user of this name."""
    return get_user_model().objects.filter(username=upload_id).exists()
