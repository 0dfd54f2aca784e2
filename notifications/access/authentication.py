"""Who opens a connection: the origin rule, sessions and tokens. Nobody is trusted by default."""

from __future__ import annotations

import logging
from io import BytesIO
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

from django.conf import settings as django_settings
from django.core.exceptions import DisallowedHost
from django.core.handlers.asgi import ASGIRequest
from django.http import HttpRequest
from django.utils.functional import LazyObject
from django.utils.http import is_same_domain

from ..aio import PerLoop
from ..conf import settings
from ..exceptions import NotificationsError
from ..logs import LogBudget, describe, outages
from ..metrics import count
from ..tenants import current
from .callbacks import Callbacks, is_outage, within
from .client_address import address_of

logger = logging.getLogger(__name__)
T = TypeVar("T")

TOKEN_WAIT: Final = 10.0
"""Seconds that a token may wait for its turn: a browser does not wait much longer."""
MAX_TOKEN_THREADS: Final = 4
"""Synchronous calls of ``AUTHENTICATE_TOKEN`` at once: they have threads of their own, so that neither they nor
``AUTHORIZE`` can starve the other."""

tokens = PerLoop(lambda: Callbacks("token", MAX_TOKEN_THREADS, TOKEN_WAIT))
_HTTP: Final = {"ws": "http", "wss": "https"}
"""The schemes of WebSockets, and the HTTP schemes that are equally safe."""
_refusals: Final = LogBudget(logger)


class Guest:
    """Whoever has not logged in. Without a primary key there is no topic, no grant and no token of theirs."""

    pk = None
    is_authenticated = is_active = False


GUEST: Final = Guest()


class AuthUnavailableError(NotificationsError):
    """The user could not be determined: the database or another service did not answer."""


def origin_allowed(scope: dict[str, Any]) -> bool:
    """
    Return whether a page may open a WebSocket, according to the ``Origin`` its browser sends.

    The same as ``request_allowed``: a handshake is an ordinary GET, only the name of its scheme differs.
    """
    if not has_origin(scope):
        return True
    scheme = _HTTP.get(scope.get("scheme", "ws"), "http")
    return request_allowed(ASGIRequest({**scope, "type": "http", "method": "GET", "scheme": scheme}, BytesIO()))


def request_allowed(request: HttpRequest) -> bool:
    """
    Return whether a page may send a request, according to the ``Origin`` its browser sends.

    Allowed are the request's own scheme and host, as Django sees them (``ALLOWED_HOSTS``,
    ``SECURE_PROXY_SSL_HEADER``), and ``CSRF_TRUSTED_ORIGINS``. A request without ``Origin`` does not come from a
    browser, or not from a page: a session that it sends proves nothing.
    """
    origin = request.META.get("HTTP_ORIGIN")
    if origin is None:
        return True
    told = _told_scheme(request)
    try:
        own = f"{'https' if request.is_secure() else 'http'}://{request.get_host()}"
    except DisallowedHost as error:
        own = f"({error})"
    if origin == own or any(_matches(origin, trusted) for trusted in django_settings.CSRF_TRUSTED_ORIGINS):
        return True
    count("auth_failed", "origin")
    _refusals.warning(
        "refused a connection from origin %.200r: this host is %.200s, %.300s; "
        "for pages of another host add their origin to CSRF_TRUSTED_ORIGINS.",
        origin,
        own,
        told,
    )
    return False


def _told_scheme(request: HttpRequest) -> str:
    """
    Accept ``wss`` from a proxy as ``https``, and describe for the log how the scheme was determined.

    Some proxies, such as Traefik, send ``X-Forwarded-Proto: wss`` with the handshake; Django only knows ``https``.
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
    """Return whether there is an ``Origin`` header. Without it a session cookie proves nothing."""
    return any(name == b"origin" for name, _ in scope.get("headers", ()))


def _matches(origin: str, trusted: str) -> bool:
    if "*" not in trusted:
        return origin == trusted
    try:
        wanted, given = urlsplit(trusted), urlsplit(origin)
    except ValueError:  # an unbalanced bracket
        return False
    return wanted.scheme == given.scheme and is_same_domain(given.netloc, wanted.netloc.lstrip("*"))


def client_address(scope: dict[str, Any]) -> str:
    """Return the address that a client counts under. Headers are not believed: anyone can write them."""
    host, *_ = scope.get("client") or ("",)
    return address_of(host)


def session_user(scope: dict[str, Any]) -> Any:
    """Return the user of a handshake's session, or None."""
    return trusted_user(scope.get("user")) if has_origin(scope) else None


def trusted_user(user: Any) -> Any:
    """Return the user that a session has, or None for an anonymous or inactive one."""
    if user is None or not user.is_authenticated or not user.is_active:
        return None
    return user._wrapped if isinstance(user, LazyObject) else user  # through it each attribute takes 2 µs more


async def token_user(token: str, address: str = "") -> Any:
    """
    Ask ``AUTHENTICATE_TOKEN`` whose token this is.

    Args:
        token: The token that a browser sent.
        address: The browser's address: addresses take turns, however many tokens one of them sends.

    Returns:
        An active user, or None.

    Raises:
        AuthUnavailableError: It could not be determined; the browser should try again.

    """
    try:
        tenant = current()
        function = within(tenant, settings.authenticate_token)
        user = await tokens().call(address, settings.AUTH_TIMEOUT, function, token, group=tenant)
        is_refused = user is None or not user.is_active or user.pk is None
    except Exception as error:
        if is_outage(error):
            count("auth_failed", "unavailable")
            if times := outages.due("AUTHENTICATE_TOKEN"):
                logger.error(
                    "AUTHENTICATE_TOKEN could not answer (%s); %d socket(s) told to come back", describe(error), times
                )
            raise AuthUnavailableError from error
        count("auth_failed", "error")
        if times := outages.due(f"AUTHENTICATE_TOKEN {type(error).__name__}"):
            logger.exception("AUTHENTICATE_TOKEN failed; the token is refused (%d time(s))", times)
        return None
    if is_refused:
        count("auth_failed", "token")
        return None
    return user
