"""Authentication, the origin rule and permissions. Nothing is allowed by default."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable, Callable
from functools import wraps
from io import BytesIO
from itertools import islice
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

from django.conf import settings as django_settings
from django.core.exceptions import DisallowedHost, ObjectDoesNotExist, PermissionDenied, ValidationError
from django.core.handlers.asgi import ASGIRequest
from django.db import DataError
from django.db import Error as DatabaseError
from django.http import Http404
from django.utils.http import is_same_domain
from redis.exceptions import RedisError

from ..aio import CutShortError, PerLoop
from ..conf import settings
from ..exceptions import NotificationsError, TopicError
from ..logs import LogBudget, describe, outages
from ..metrics import count, tally
from ..tenants import current
from ..tokens import check_grant
from ..topics import Topic
from .callbacks import Callbacks, is_async, within
from .client_address import address_of

logger = logging.getLogger(__name__)
T = TypeVar("T")

AUTHORIZE_TIMEOUT: Final = 5.0
"""Seconds that a call of a site's ``AUTHORIZE`` may take; after that the answer is unknown."""
AUTHORIZE_WAIT: Final = 60.0
"""Seconds that a call may wait for its turn. When a thousand tabs come back with ten uploads each, and each call takes
50 ms, the last of the calls that wait at the same time gets its turn after 6."""
TOKEN_WAIT: Final = 10.0
"""Seconds that a token may wait for its turn: a browser does not wait much longer."""
MAX_THREADS: Final = 8
"""Synchronous calls of ``AUTHORIZE`` at once."""
MAX_TOKEN_THREADS: Final = 4
"""Synchronous calls of ``AUTHENTICATE_TOKEN`` at once: neither of the two can starve the other."""

permissions = PerLoop(lambda: Callbacks("authorize", MAX_THREADS, AUTHORIZE_WAIT))
tokens = PerLoop(lambda: Callbacks("token", MAX_TOKEN_THREADS, TOKEN_WAIT))
_HTTP: Final = {"ws": "http", "wss": "https"}
"""The schemes of WebSockets, and the HTTP schemes that are equally safe."""
_refusals: Final = LogBudget(logger)


class AuthUnavailableError(NotificationsError):
    """The user could not be determined: the database or another service did not answer."""


def is_outage(error: BaseException) -> bool:
    """
    Return whether an error means that the answer is unknown, because something did not answer.

    Everything else that a site's function raises is a bug, or a denial. So is a missing file, and an HTTP status by
    which a service refuses, for which HTTP libraries raise an ``OSError``, too. Libraries such as httpx raise errors
    of their own when something did not answer, from the ``OSError`` that they got.
    """
    for _ in range(MAX_CAUSES):
        if isinstance(error, OUTAGES):
            break
        if isinstance(error, PermissionDenied | Http404) or error.__cause__ is None:
            return False
        error = error.__cause__
    if not isinstance(error, OUTAGES) or isinstance(error, PermissionError | DataError):
        return False
    if isinstance(error, FileNotFoundError):
        return error.filename is None  # a server's Unix socket, which errors do not name
    status = getattr(getattr(error, "response", error), "status_code", getattr(error, "code", None))
    return not isinstance(status, int) or status in COME_BACK or not 400 <= status < 500


MAX_CAUSES: Final = 10
"""Causes that are followed from the error that was raised; httpx has three."""

COME_BACK: Final = frozenset({408, 425, 429})
"""Client error statuses of HTTP that mean that there is no answer yet."""


OUTAGES: Final = (DatabaseError, OSError, TimeoutError, RedisError, CutShortError)
"""Errors that mean that the answer is unknown. Those of most HTTP libraries derive from ``OSError``."""


def origin_allowed(scope: dict[str, Any]) -> bool:
    """
    Return whether a page may open a socket, according to the ``Origin`` its browser sends.

    Allowed are the request's own scheme and host, as Django sees them (``ALLOWED_HOSTS``,
    ``SECURE_PROXY_SSL_HEADER``), and ``CSRF_TRUSTED_ORIGINS``. A request without ``Origin`` does not come from a
    browser: see ``has_origin``.
    """
    origin = _origin(scope)
    if origin is None:
        return True
    # The handshake is an ordinary GET; only the name of its scheme differs.
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
    return _origin(scope) is not None


def _origin(scope: dict[str, Any]) -> str | None:
    values = [value.decode("latin1") for name, value in scope["headers"] if name == b"origin"]
    return ",".join(values) if values else None


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
    """Return the user of Django's session, or None."""
    user = scope.get("user")
    return user if user is not None and user.is_authenticated and user.is_active and has_origin(scope) else None


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
        function = within(current(), settings.authenticate_token)
        user = await tokens().call(address, settings.AUTH_TIMEOUT, function, token)
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
    if user is None or not user.is_active or user.pk is None:
        count("auth_failed", "token")
        return None
    return user


def is_given(user: Any, topic: Topic, grant: str | None) -> bool:
    """Return whether a user may read a topic without a call: their own, a public one, or one they have a grant for."""
    if settings.kinds[topic.kind].PUBLIC or topic == Topic.for_user(user):
        return True
    return grant is not None and check_grant(grant, user, topic)


async def authorized(user: Any, topic: Topic) -> bool | None:
    """
    Ask the kind's ``AUTHORIZE`` whether a user may read a topic.

    Returns:
        None if the answer is unknown, because the database or another service did not answer; ask again later.

    """
    return await _said("AUTHORIZE", topic.kind, _authorized(user, topic), no=False)


async def _authorized(user: Any, topic: Topic) -> bool:
    try:
        if (authorize := settings.kinds[topic.kind].authorize) is None:
            return False
        whose, function = Topic.for_user(user).full_id, within(topic.tenant, authorize)
        return bool(await permissions().call(whose, AUTHORIZE_TIMEOUT, function, user, topic.id))
    except (ValueError, ValidationError, ObjectDoesNotExist, DataError):
        return False  # Django's errors for an invalid or unknown id: a browser may send anything


async def joined(user: Any, kind: str) -> list[Topic] | None:
    """
    Ask the kind's ``JOIN`` which topics every connection of a user has; in the context of the user's tenant.

    Returns:
        One more than ``MAX_SUBSCRIPTIONS`` at most. None when nobody could say, as for ``authorized``.

    """
    return await _said("JOIN", kind, _joined(user, kind), no=[])


async def _joined(user: Any, kind: str) -> list[Topic]:
    if (join := settings.kinds[kind].join) is None:
        return []
    whose, function = Topic.for_user(user).full_id, within(current(), _read_at_once(join))
    topics: dict[Topic, None] = {}
    for id_ in _some(await permissions().call(whose, AUTHORIZE_TIMEOUT, function, user)):
        try:
            topics[Topic(kind, id_)] = None
        except TopicError as error:
            _refusals.warning("JOIN named what is no topic: %s", error)
    return list(topics)


def _read_at_once(join: Callable[..., Any]) -> Callable[..., Any]:
    """Have a function that returns a queryset read it where it runs: the database may not be asked elsewhere."""
    if is_async(join):
        return join

    @wraps(join)
    def reading(user: Any) -> Any:
        ids = join(user)
        return ids if inspect.isawaitable(ids) else _some(ids)

    return reading


def _some(ids: Any) -> list[Any]:
    if isinstance(ids, str | bytes):
        raise TypeError(f"JOIN returned a {type(ids).__name__}, not several ids")
    return list(islice(ids, settings.MAX_SUBSCRIPTIONS + 1))


async def _said(option: str, kind: str, question: Awaitable[T], no: T) -> T | None:
    """Await what a site's function says; whatever it raises is a no, unless something did not answer: then None."""
    try:
        return await question
    except Exception as error:
        count("auth_failed", option.lower())
        if is_outage(error):
            if times := outages.due(f"{option} {kind}"):
                logger.error(
                    "%s of kind %r could not answer (%s, %d time(s)); %d subscription(s) wait for an answer",
                    option,
                    kind,
                    describe(error),
                    times,
                    max(tally.unanswered, 1),
                )
            return None
        if times := outages.due(f"{option} {kind} {type(error).__name__}"):
            logger.exception("%s of kind %r failed; the answer is no (%d time(s))", option, kind, times)
        return no
