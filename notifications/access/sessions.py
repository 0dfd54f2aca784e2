"""
The user of a session, found as Django finds it for a page, without ever writing a session.

Channels' own ``get_user`` flushes a session whose hash does not match: one that was signed with a key of
``SECRET_KEY_FALLBACKS``, and the user's own while a view that changes their password has not finished. That logs the
user out of the whole site.
"""

from __future__ import annotations

import asyncio
import logging
import pickle
import time
from collections import OrderedDict
from collections.abc import Collection, Sequence
from contextlib import suppress
from functools import cache
from importlib import import_module
from typing import Any, Final, NamedTuple

from django.conf import settings as django_settings
from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY, get_user_model, load_backend
from django.contrib.auth.backends import ModelBackend
from django.contrib.sessions.backends import cache as cache_backend
from django.contrib.sessions.backends import cached_db, db
from django.core.cache.backends.base import InvalidCacheKey
from django.core.exceptions import ValidationError
from django.utils import timezone
from django.utils.crypto import constant_time_compare
from django.utils.module_loading import import_string

from .. import tenants
from ..aio import PerLoop
from ..conf import settings
from ..exceptions import TopicError
from ..logs import describe, outages
from ..metrics import count
from .batches import ALONE, Batches
from .callbacks import Callbacks, is_outage, within
from .control import fingerprint

logger = logging.getLogger(__name__)

THREADS: Final = 4
"""Sessions that are read at the same time, where they have to be read one by one."""
LOOKUPS: Final = 2
"""Lookups at the same time, each of many sessions; each takes a connection to the database."""
MOST_TOGETHER: Final = 250
"""Sessions in one lookup. It takes a thread 20 ms of CPU to read so many, and databases limit the parameters."""
WAIT: Final = 10.0
"""Seconds that a session may wait for its turn: a browser does not wait much longer."""
DOUBT: Final = 30.0
"""Seconds for which a browser with a session that is not accepted may come back: perhaps a view is about to give it
another one, as the view in which a user changes their password does."""
MAX_DOUBTS: Final = 10_000
"""Such sessions that are remembered; the oldest are forgotten first."""

SCOPE_KEY: Final = "notifications.session"
"""The key of the ``Found`` in the scope."""

lookups = PerLoop(
    lambda: Batches(Callbacks("session", THREADS, WAIT), at_once=LOOKUPS, most=MOST_TOGETHER, longest_wait=WAIT),
    Batches.end,
)


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
        look_up = lookups().ask if is_read_together() else lookups().ask_alone
        user, is_gone = await look_up(tenant, address, settings.AUTH_TIMEOUT, within(tenant, users_of), session_key)
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


def is_read_together() -> bool:
    """
    Return whether many sessions and their accounts can be looked up with two queries.

    Not with an engine that keeps sessions elsewhere or loads them in its own way, nor if every backend does so with
    accounts: each of these calls may take long, so it gets a turn and a time-out of its own.
    """
    backends = django_settings.AUTHENTICATION_BACKENDS
    return _is_engine_of_tables(django_settings.SESSION_ENGINE) and any(map(_is_backend_of_the_model, backends))


@cache
def _is_engine_of_tables(engine: str) -> bool:
    store: Any = import_module(engine).SessionStore
    if store.load is cache_backend.SessionStore.load:
        return True
    is_plain = store.load in (db.SessionStore.load, cached_db.SessionStore.load)
    return is_plain and store._get_session_from_db is vars(db.SessionStore)["_get_session_from_db"]


@cache
def _is_backend_of_the_model(path: str) -> bool:
    return getattr(import_string(path), "get_user", None) is ModelBackend.get_user


def users_of(session_keys: Sequence[str]) -> list[Any]:
    """
    Find the users of several sessions, with one query for the sessions and one for the accounts.

    Returns:
        For each the user or None, and whether there is no such session, or the password has changed since. ``ALONE``
        if it cannot be found together with others: with a backend that has a ``get_user`` of its own, or after an
        exception that others shall not share.

    Raises:
        Exception: Whatever the session backend, the database or the authentication backend raises.

    """
    if len(session_keys) == 1:
        data = read(session_keys[0])
        claim = _claim(data)
        return [_checked(data, load_backend(claim[1]).get_user(claim[0])) if claim else (None, not data)]
    found = read_together(set(session_keys))
    claims = {}
    for key, data in found.items():
        with suppress(Exception):  # it is raised when this session is looked up alone
            claims[key] = _claim(data)
    pks = {claim[0] for claim in claims.values() if claim and _is_backend_of_the_model(claim[1])}
    users = {user.pk: user for user in get_user_model()._default_manager.filter(pk__in=pks)} if pks else {}
    given: set[Any] = set()
    return [_answer(found[key], claims[key], users, given) if key in claims else ALONE for key in session_keys]


def _answer(data: dict[str, Any], claim: tuple[Any, str] | None, users: dict[Any, Any], given: set[Any]) -> Any:
    if claim is None:
        return None, not data
    pk, path = claim
    if pk not in users or not _is_backend_of_the_model(path):
        return ALONE
    backend: Any = load_backend(path)
    try:
        user = _copy(users[pk]) if pk in given else users[pk]
        given.add(pk)
        return _checked(data, user if backend.user_can_authenticate(user) else None)
    except Exception:  # noqa: BLE001  it is raised when this session is looked up alone
        return ALONE


def _copy(user: Any) -> Any:
    """
    Return another instance, as each socket expects: what one changes, such as a value of a ``JSONField``, is its own.

    This keeps what a manager has prefetched, as ``deepcopy`` does not, and takes 24 µs, where that takes 32.
    """
    return pickle.loads(pickle.dumps(user))  # noqa: S301  nobody else has had it


def _claim(data: dict[str, Any]) -> tuple[Any, str] | None:
    """Return the primary key of the user that a session names, and the backend; None if it names nobody."""
    try:
        pk, path = get_user_model()._meta.pk.to_python(data[SESSION_KEY]), data[BACKEND_SESSION_KEY]
    except (KeyError, ValidationError):
        return None
    return (pk, path) if path in django_settings.AUTHENTICATION_BACKENDS else None


def _checked(data: dict[str, Any], user: Any) -> tuple[Any, bool]:
    if not hasattr(user, "get_session_auth_hash") or is_hash_of(user, data.get(HASH_SESSION_KEY) or ""):
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
    if not _is_valid(session):
        return {}
    for writer in ("create", "delete", "save"):
        setattr(session, writer, _write_nothing)
    if store.load is cache_backend.SessionStore.load:
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


def read_together(session_keys: Collection[str]) -> dict[str, dict[str, Any]]:
    """
    Read several sessions at once, as ``read`` reads one, with an engine for which ``is_read_together`` is true.

    Returns:
        The data of each, empty if it does not exist; one that cannot be decoded is missing.

    Raises:
        Exception: Whatever the database or the cache raises.

    """
    store = import_module(django_settings.SESSION_ENGINE).SessionStore
    valid = {key: session for key in session_keys if _is_valid(session := store(key))}
    found: dict[str, dict[str, Any]] = {key: {} for key in session_keys}
    if valid and store.load is not db.SessionStore.load:
        by_cache_key = {session.cache_key: key for key, session in valid.items()}
        try:
            cached = next(iter(valid.values()))._cache.get_many(list(by_cache_key))
        except Exception:
            if store.load is cache_backend.SessionStore.load:
                raise
            cached = {}  # as Django does: the database has them as well
        found |= {by_cache_key[name]: data or {} for name, data in cached.items()}
    if store.load is not cache_backend.SessionStore.load and (missing := [key for key in valid if not found[key]]):
        rows = store.get_model_class().objects.filter(session_key__in=missing, expire_date__gt=timezone.now())
        for key, encoded in rows.values_list("session_key", "session_data"):
            try:
                found[key] = valid[key].decode(encoded)
            except Exception:  # noqa: BLE001  it is raised when this session is looked up alone
                found.pop(key, None)
    return found


def _is_valid(session: Any) -> bool:
    """Return whether a key can be one of a session, and does not make databases fail."""
    return session.session_key is not None and session.session_key.isprintable()


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
    return is_gone and may_be_replaced(cookie)


def may_be_replaced(cookie: str | None) -> bool:
    """Return whether a browser with a session that is gone may come back: perhaps it is about to get another one."""
    if not cookie:
        return False
    now = time.monotonic()
    first = _doubts.setdefault(fingerprint(cookie), now)
    if len(_doubts) > MAX_DOUBTS:
        _doubts.popitem(last=False)
    return now - first < DOUBT
