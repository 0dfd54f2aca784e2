"""The middleware that goes in front of the WebSocket in ``asgi.py``."""

from __future__ import annotations

from typing import Any

from channels.auth import AuthMiddleware
from channels.sessions import CookieMiddleware, SessionMiddleware
from django.contrib.auth.models import AnonymousUser

from .access import authentication, sessions
from .mount import with_root_path


class SessionAuthMiddleware(AuthMiddleware):  # type: ignore[misc]  # Channels has no types
    """
    Find the user of Django's session, without ever writing a session.

    It replaces Channels' ``AuthMiddleware`` and sets the same ``scope["user"]``. It accepts sessions from before
    ``SECRET_KEY`` was rotated, as Django does with ``SECRET_KEY_FALLBACKS``; Channels' own ends them, for the whole
    site. When sessions or accounts cannot be read, ``NotificationConsumer`` tells the browser to come back; for other
    consumers, accessing ``scope["user"]`` raises ``ValueError``.
    """

    async def resolve_scope(self, scope: dict[str, Any]) -> None:
        found = await sessions.find(scope["session"].session_key, authentication.client_address(scope))
        scope[sessions.SCOPE_KEY] = found
        if found.is_known:
            scope["user"]._wrapped = found.user or AnonymousUser()


def SessionAuthMiddlewareStack(inner: Any) -> Any:  # noqa: N802  as Channels calls its own
    """
    Wrap an ASGI application so that its scope has ``cookies``, ``session`` and ``user``.

    Its routes also match a path from which a proxy has stripped the server's ``root_path``.
    """
    stack = CookieMiddleware(SessionMiddleware(SessionAuthMiddleware(inner)))

    async def application(scope: dict[str, Any], receive: Any, send: Any) -> Any:
        return await stack(with_root_path(scope), receive, send)

    return application
