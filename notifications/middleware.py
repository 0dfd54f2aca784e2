"""What stands before the WebSocket in ``asgi.py``."""

from __future__ import annotations

from typing import Any

from channels.auth import AuthMiddleware
from channels.sessions import CookieMiddleware, SessionMiddleware
from django.contrib.auth.models import AnonymousUser

from . import sessions
from .limits import address_of
from .mount import with_root_path


class SessionAuthMiddleware(AuthMiddleware):  # type: ignore[misc]  # Channels has no types
    """
    Finds the user of Django's session, and never writes a session.

    In place of Channels' ``AuthMiddleware``, with the same ``scope["user"]``. It accepts sessions from before
    ``SECRET_KEY`` was rotated, as Django does with ``SECRET_KEY_FALLBACKS``, where Channels' own ends them, for the
    whole site. When sessions or accounts cannot be read, ``NotificationConsumer`` tells the browser to come back;
    for other consumers an access to ``scope["user"]`` is a ``ValueError``.
    """

    async def resolve_scope(self, scope: dict[str, Any]) -> None:
        found = await sessions.find(scope["session"].session_key, address_of(scope))
        scope[sessions.SCOPE_KEY] = found
        if found.is_known:
            scope["user"]._wrapped = found.user or AnonymousUser()


def SessionAuthMiddlewareStack(inner: Any) -> Any:  # noqa: N802  as Channels calls its own
    """
    Wrap an ASGI application so that its scope has ``cookies``, ``session`` and ``user``.

    A path that a proxy has stripped of the server's ``root_path`` is found by the application's routes as well.
    """
    stack = CookieMiddleware(SessionMiddleware(SessionAuthMiddleware(inner)))

    async def application(scope: dict[str, Any], receive: Any, send: Any) -> Any:
        return await stack(with_root_path(scope), receive, send)

    return application
