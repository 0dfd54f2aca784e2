"""This app, mounted as a site mounts it; with ``BENCH_STACK=channels`` behind the middleware of Channels."""

import os
import sys

import django

django.setup()

from channels.auth import AuthMiddlewareStack  # noqa: E402  models must be loaded first
from channels.routing import ProtocolTypeRouter, URLRouter  # noqa: E402
from django.contrib.auth.models import User  # noqa: E402
from django.core.asgi import get_asgi_application  # noqa: E402

from benchmarks.peers import collect  # noqa: E402
from notifications import http  # noqa: E402
from notifications.middleware import SessionAuthMiddlewareStack  # noqa: E402
from notifications.routing import websocket_urlpatterns  # noqa: E402

collect.on_signal()


async def may_watch(user: User, upload_id: str) -> bool:
    return True


def ask_database(user: User, upload_id: str) -> bool:
    """Allow it with one query, as a site does with a table of its own."""
    return User.objects.filter(pk=user.pk, is_active=True).exists()


def ask_database_for_many(pairs: list[tuple[User, str]]) -> list[bool]:
    active = User.objects.filter(pk__in={user.pk for user, _ in pairs}, is_active=True)
    allowed = set(active.values_list("pk", flat=True))
    return [user.pk in allowed for user, _ in pairs]


stack = AuthMiddlewareStack if os.environ.get("BENCH_STACK") == "channels" else SessionAuthMiddlewareStack
# Else a response ends after a thousand messages, and the clients here cannot come back.
http.MAX_CHARACTERS = sys.maxsize
application = ProtocolTypeRouter({"http": get_asgi_application(), "websocket": stack(URLRouter(websocket_urlpatterns))})
