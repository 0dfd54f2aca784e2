"""Who a socket is, where it may come from, and what it may read. Nothing here says yes by default."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from io import BytesIO
from typing import Any, Final
from urllib.parse import urlsplit

from asgiref.sync import iscoroutinefunction
from channels.db import DatabaseSyncToAsync
from django.conf import settings as django_settings
from django.core.exceptions import DisallowedHost, ObjectDoesNotExist, ValidationError
from django.core.handlers.asgi import ASGIRequest
from django.db import Error as DatabaseError
from django.utils.http import is_same_domain

from .conf import settings
from .exceptions import NotificationsError
from .logs import LogBudget
from .metrics import count
from .tokens import check_grant
from .topics import Topic

logger = logging.getLogger(__name__)

AUTHORIZE_TIMEOUT: Final = 5.0
"""Seconds that a site's ``AUTHORIZE`` may take; after that the answer is no."""
MAX_THREADS: Final = 8
"""Synchronous checks of the site that run at once. They have threads of their own: in Django's one thread for
synchronous code a single slow check would hold up every socket of the process."""

_HTTP: Final = {"ws": "http", "wss": "https"}
"""The schemes of a WebSocket, and those of the requests that are as safe."""
_refusals: Final = LogBudget(logger)

in_thread: Callable[..., Any] = partial(
    DatabaseSyncToAsync,
    thread_sensitive=False,
    executor=ThreadPoolExecutor(MAX_THREADS, thread_name_prefix="notifications-auth"),
)
"""Makes a synchronous check awaitable. ``testing`` lets it run in the thread of the ORM, where a test's data are."""


class AuthUnavailableError(NotificationsError):
    """Nobody could say whose token it is: the database or another service did not answer."""


def origin_allowed(scope: dict[str, Any]) -> bool:
    """
    Say whether a page may open a socket, by the ``Origin`` its browser sends.

    Allowed are the request's own scheme and host, as Django sees them (``ALLOWED_HOSTS``,
    ``SECURE_PROXY_SSL_HEADER``), and ``CSRF_TRUSTED_ORIGINS``. No ``Origin`` at all is no browser: see
    ``has_origin``.
    """
    origin = _origin(scope)
    if origin is None:
        return True
    # The handshake is an ordinary GET; only its scheme has another name.
    scheme = _HTTP.get(scope.get("scheme", "ws"), "http")
    request = ASGIRequest({**scope, "type": "http", "method": "GET", "scheme": scheme}, body_file=BytesIO())
    told = _told_scheme(request)
    try:
        own = f"{'https' if request.is_secure() else 'http'}://{request.get_host()}"
    except DisallowedHost as error:
        own = f"({error})"
    if origin == own or any(_matches(origin, trusted) for trusted in django_settings.CSRF_TRUSTED_ORIGINS):
        return True
    count("auth_failed", "origin")
    _refusals.warning(
        "refused a socket from origin %.200r: this host is %.200s, %.300s; "
        "for pages of another host add their origin to CSRF_TRUSTED_ORIGINS.",
        origin,
        own,
        told,
    )
    return False


def _told_scheme(request: ASGIRequest) -> str:
    """
    Let a proxy name the scheme of a WebSocket as it likes; says what it named.

    Some, as Traefik does, send ``X-Forwarded-Proto: wss`` with the handshake, where Django only knows ``https``.
    """
    if not django_settings.SECURE_PROXY_SSL_HEADER:
        return "by the connection itself: behind a proxy that ends TLS set SECURE_PROXY_SSL_HEADER"
    header, secure = django_settings.SECURE_PROXY_SSL_HEADER
    if (value := request.META.get(header)) is None:
        return f"by the connection itself: {header} of SECURE_PROXY_SSL_HEADER was not sent; let the proxy set it"
    first, *rest = value.split(",")
    name = first.strip()
    if name != secure and secure in _HTTP.values():
        request.META[header] = ",".join([_HTTP.get(name.lower(), first), *rest])
    return f"as SECURE_PROXY_SSL_HEADER says: the proxy sent {value!r} in {header}"


def has_origin(scope: dict[str, Any]) -> bool:
    """Say whether the ``Origin`` header is there. Without it a session cookie proves nothing."""
    return _origin(scope) is not None


def _origin(scope: dict[str, Any]) -> str | None:
    values = [value.decode("latin1") for name, value in scope["headers"] if name == b"origin"]
    return ",".join(values) if values else None


def _matches(origin: str, trusted: str) -> bool:
    if "*" not in trusted:
        return origin == trusted
    try:
        wanted, given = urlsplit(trusted), urlsplit(origin)
    except ValueError:  # half a bracket
        return False
    return wanted.scheme == given.scheme and is_same_domain(given.netloc, wanted.netloc.lstrip("*"))


def session_user(scope: dict[str, Any]) -> Any:
    """Return the user whom Django's session names, or None."""
    user = scope.get("user")
    return user if user is not None and user.is_authenticated and user.is_active and has_origin(scope) else None


async def token_user(token: str) -> Any:
    """
    Ask ``AUTHENTICATE_TOKEN`` whose token this is.

    Returns:
        An active user, or None.

    Raises:
        AuthUnavailableError: Nobody could say; the browser should try again.

    """
    try:
        async with asyncio.timeout(settings.AUTH_TIMEOUT):
            user = await call(settings.authenticate_token, token)
    except (DatabaseError, OSError, TimeoutError) as error:
        count("auth_failed", "unavailable")
        logger.exception("AUTHENTICATE_TOKEN could not answer")
        raise AuthUnavailableError from error
    except Exception:
        count("auth_failed", "error")
        logger.exception("AUTHENTICATE_TOKEN failed; the token is refused")
        return None
    if user is None or not user.is_active or user.pk is None:
        count("auth_failed", "token")
        return None
    return user


def is_given(user: Any, topic: Topic, grant: str | None) -> bool:
    """Say whether a user may read a topic without a question: his own, or one he has a grant for."""
    return topic == Topic.for_user(user) or (grant is not None and check_grant(grant, user, topic))


async def authorized(user: Any, topic: Topic) -> bool | None:
    """
    Ask the kind's ``AUTHORIZE`` whether a user may read a topic.

    Returns:
        None when nobody could say: the database or another service did not answer. Who is not yet subscribed may not.

    """
    try:
        if (authorize := settings.kinds[topic.kind].authorize) is None:
            return False
        async with asyncio.timeout(AUTHORIZE_TIMEOUT):
            return bool(await call(authorize, user, topic.id))
    except (ValueError, ValidationError, ObjectDoesNotExist):
        return False  # what Django says of an id that is none, or that is not there: a browser may send anything
    except Exception as error:
        count("auth_failed", "authorize")
        if isinstance(error, DatabaseError | OSError | TimeoutError) and not isinstance(error, PermissionError):
            logger.exception("AUTHORIZE of kind %r could not answer; nobody new may subscribe", topic.kind)
            return None
        logger.exception("AUTHORIZE of kind %r failed; the answer is no", topic.kind)
        return False


async def call(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function of the site, sync or async; a sync one in a thread."""
    if iscoroutinefunction(function) or iscoroutinefunction(getattr(function, "__call__", None)):  # noqa: B004
        return await function(*arguments)
    result = await in_thread(function)(*arguments)
    # A lambda or partial around a coroutine function looks synchronous, and a coroutine is true.
    return await result if inspect.isawaitable(result) else result
