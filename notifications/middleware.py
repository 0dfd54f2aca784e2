"""The middleware that goes in front of the WebSocket in ``asgi.py``."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from channels.auth import UserLazyObject
from django.conf import settings as django_settings
from django.contrib.auth.models import AnonymousUser
from django.http import parse_cookie

from .access import authentication, sessions
from .mount import with_root_path


class SessionAuthMiddlewareStack:
    """
    Wrap an ASGI application so that its scope has ``cookies``, ``session`` and ``user``.

    It replaces Channels' ``AuthMiddlewareStack``, and accepts sessions from before ``SECRET_KEY`` was rotated, as
    Django does with ``SECRET_KEY_FALLBACKS``; Channels' own ends them, for the whole site. When sessions or accounts
    cannot be read, ``NotificationConsumer`` tells the browser to come back; for other consumers, accessing
    ``scope["user"]`` raises ``ValueError``. Routes also match a path from which a proxy has stripped the server's
    ``root_path``.

    It never writes a session, and does not wrap ``send``: that would run code of its own for every message. So what a
    consumer changes in ``scope["session"]`` is not saved and no cookie is set, even for HTTP, where Channels does that
    when the response starts. Put HTTP consumers that change sessions behind Channels' own. For WebSockets there is no
    difference: Channels does not save there either.
    """

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> Any:
        # One coroutine and one scope take 1.3 KB of a socket's memory; the three of Channels' own stack take 4.6 KB.
        scope = dict(with_root_path(scope))
        scope.setdefault("cookies", _cookies(scope))
        if "session" not in scope:
            store = import_module(django_settings.SESSION_ENGINE).SessionStore
            scope["session"] = store(scope["cookies"].get(django_settings.SESSION_COOKIE_NAME))
        found = await sessions.find(scope["session"].session_key, authentication.client_address(scope))
        scope[sessions.SCOPE_KEY] = found
        # Lazy only if there is nothing else to say: it takes 2 µs more for each attribute.
        user = (found.user or AnonymousUser()) if found.is_known else UserLazyObject()
        if "user" not in scope:
            scope["user"] = user
        elif found.is_known:
            scope["user"]._wrapped = user
        return await self.inner(scope, receive, send)


def _cookies(scope: dict[str, Any]) -> dict[str, str]:
    """Parse the cookies of a handshake; HTTP/2 allows several headers."""
    sent = b"; ".join(value for name, value in scope.get("headers", ()) if name == b"cookie")
    return parse_cookie(sent.decode("latin-1"))
