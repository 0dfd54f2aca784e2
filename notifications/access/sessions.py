"""
The user of a session, found as Django finds it for a page, without ever writing a session.

Channels' own ``get_user`` flushes a session whose hash does not match: one that was signed with a key of
``SECRET_KEY_FALLBACKS``, and the user's own while a view that changes their password has not finished. That logs the
user out of the whole site.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from contextlib import suppress
from importlib import import_module
from typing import Any, Final, NamedTuple

from django.conf import settings as django_settings
from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY, get_user_model, load_backend
from django.contrib.sessions.backends import cache, cached_db, db
from django.core.cache.backends.base import InvalidCacheKey
from django.core.exceptions import ValidationError
from django.utils.crypto import constant_time_compare

from .. import tenants
from ..aio import PerLoop
from ..conf import settings
from ..exceptions import TopicError
from ..logs import describe, outages
from ..metrics import count
from .callbacks import Callbacks, is_outage, within
from .control import fingerprint

logger = logging.getLogger(__name__)

THREADS: Final = 4
"""Sessions that are read at the same time."""
WAIT: Final = 10.0
"""Seconds that a session may wait for its turn: a browser does not wait much longer."""
DOUBT: Final = 30.0
"""Seconds for which a browser with a session that is not accepted may come back: perhaps a view is about to give it
another one, as the view in which a user changes their password does."""
MAX_DOUBTS: Final = 10_000
"""Such sessions that are remembered; the oldest are forgotten first."""

SCOPE_KEY: Final = "notifications.session"
"""The key of the ``Found`` in the scope."""

reads = PerLoop(lambda: Callbacks("session", THREADS, WAIT))


class Found(NamedTuple):
    """
    What is known of the session of one handshake.

    Attributes:
        user: Its user, or None.
        is_known: False if it could not be determined.
        is_gone: Whether there is no such session, or the password has changed since.
        as_of: When it was looked up, by the clock of the event loop.

    """

    user: Any
    is_known: bool
    is_gone: bool
    as_of: float


async def find(session_key: str | None, address: str = "") -> Found:
    """
    Find the user of a session. Logs and counts a lookup that fails.

    Args:
        session_key: The key that a browser sent.
        address: The browser's address: addresses take turns, however many sessions one of them sends.

    """
    as_of = asyncio.get_running_loop().time()
    if session_key is None:
        return Found(None, True, False, as_of)
    tenant = ""
    with suppress(TopicError):  # no tenant: the consumer reports it
        tenant = tenants.current()
    try:
        user, is_gone = await reads().call(address, settings.AUTH_TIMEOUT, within(tenant, user_of), session_key)
    except Exception as error:
        count("auth_failed", "unavailable")
        if times := outages.due(f"sessions {type(error).__name__}"):
            # With a stack trace if it is not an outage but a bug in a backend.
            logger.error(
                "sessions could not be read (%s); %d socket(s) told to come back",
                describe(error),
                times,
                exc_info=None if is_outage(error) else error,
            )
        return Found(None, False, False, as_of)
    return Found(user, True, is_gone, as_of)


def user_of(session_key: str) -> tuple[Any, bool]:
    """
    Find the user of a session.

    Returns:
        The user or None, and whether there is no such session, or the password has changed since.

    Raises:
        Exception: Whatever the session backend, the database or the authentication backend raises.

    """
    data = read(session_key)
    try:
        pk, path = get_user_model()._meta.pk.to_python(data[SESSION_KEY]), data[BACKEND_SESSION_KEY]
    except (KeyError, ValidationError):
        return None, not data
    if path not in django_settings.AUTHENTICATION_BACKENDS:
        return None, False
    user = load_backend(path).get_user(pk)
    if not hasattr(user, "get_session_auth_hash"):
        return user, False
    if is_hash_of(user, data.get(HASH_SESSION_KEY) or ""):
        return user, False
    return None, True


def is_hash_of(user: Any, session_hash: str) -> bool:
    """Return whether a session has the user's current password hash; rotating ``SECRET_KEY`` ends none."""
    if constant_time_compare(session_hash, user.get_session_auth_hash()):
        return True
    fallbacks = getattr(user, "get_session_auth_fallback_hash", tuple)
    return any(constant_time_compare(session_hash, fallback) for fallback in fallbacks())


def read(session_key: str) -> dict[str, Any]:
    """
    Read a session without changing anything. Backends otherwise create, delete or cache sessions when they load one.

    Returns:
        Its data; empty if it does not exist.

    Raises:
        Exception: Whatever the backend or its cache raises: a session that cannot be read has not ended.

    """
    store = import_module(django_settings.SESSION_ENGINE).SessionStore
    session = store(session_key)
    if session.session_key is None or not session.session_key.isprintable():
        return {}  # no valid key, or one that makes databases fail
    for writer in ("create", "delete", "save"):
        setattr(session, writer, _write_nothing)
    if store.load is cache.SessionStore.load:
        try:
            return session._cache.get(session.cache_key) or {}
        except InvalidCacheKey:
            return {}
    if store.load is cached_db.SessionStore.load:
        try:
            data = session._cache.get(session.cache_key)
        except Exception:  # noqa: BLE001  as Django does: the database has it as well
            data = None
        return data if data is not None else db.SessionStore.load(session)
    return session.load() or {}


def _write_nothing(*_: Any, **__: Any) -> None:
    """Replace a method that writes."""


_doubts: OrderedDict[str, float] = OrderedDict()


def is_in_doubt(scope: dict[str, Any]) -> bool:
    """
    Return whether a browser whose session was not accepted may come back.

    It may for ``DOUBT`` seconds after the session was first refused. Behind Channels' own middleware it is a session
    that did not exist, or that this middleware has just flushed.
    """
    cookie = scope.get("cookies", {}).get(django_settings.SESSION_COOKIE_NAME)
    found: Found | None = scope.get(SCOPE_KEY)
    is_gone = found.is_gone if found is not None else getattr(scope.get("session"), "session_key", "") is None
    if not cookie or not is_gone:
        return False
    now = time.monotonic()
    first = _doubts.setdefault(fingerprint(cookie), now)
    if len(_doubts) > MAX_DOUBTS:
        _doubts.popitem(last=False)
    return now - first < DOUBT
