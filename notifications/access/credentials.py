"""
What a socket's access depends on (the account, its password, the session), and whether it is still valid.

The database is queried for many sockets at once: one query for all accounts and one for all sessions.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Sequence
from importlib import import_module
from typing import Any, Final, NamedTuple

from django.conf import settings as django_settings
from django.contrib.auth import get_user_model
from django.contrib.sessions.backends import cache, signed_cookies
from django.core.cache import caches
from django.utils import timezone

from ..aio import PerLoop
from ..logs import LogBudget, describe
from ..protocol.frames import CloseCode
from ..tasks import in_context
from ..tenants import NO_TENANT, Tenant
from . import sessions
from .callbacks import Callbacks, within
from .control import fingerprint

logger = logging.getLogger(__name__)

TIMEOUT: Final = 20.0
"""Seconds that the database may take."""
KEYS_A_QUERY: Final = 10_000
"""Accounts or sessions per query; databases limit the parameters of a query."""

lookups = PerLoop(lambda: Callbacks("access", threads=1, longest_wait=TIMEOUT))
"""They have a thread of their own, so that slow functions of the site cannot delay the end of access."""
_log: Final = LogBudget(logger, lines=10, period=60.0)


class Credentials(NamedTuple):
    """
    What a socket's access depends on.

    Attributes:
        user: Any object with a ``pk``; only instances of ``AUTH_USER_MODEL`` are looked up.
        session_key: None if the socket authenticated by token.
        auth_hash: Changes with the password; None if users of this kind have none.
        tenant: The tenant whose accounts and sessions apply.
        as_of: When they were last known to be valid, by the clock of the event loop; None if unknown.

    """

    user: Any
    session_key: str | None
    auth_hash: str | None
    tenant: Tenant = NO_TENANT
    as_of: float | None = None

    @property
    def fingerprint(self) -> str | None:
        """The name of the session in control messages; None without a session."""
        return None if self.session_key is None else fingerprint(self.session_key)

    @property
    def is_account(self) -> bool:
        """Whether there is an account to look up: a token may name users that are not in the database."""
        return isinstance(self.user, get_user_model())


def credentials_of(
    user: Any, session_key: str | None = None, tenant: Tenant = NO_TENANT, as_of: float | None = None
) -> Credentials:
    """Return the credentials of a socket's user."""
    return Credentials(user, session_key, _auth_hash(user), tenant, as_of)


class End(NamedTuple):
    """Why access ends, and with which close code."""

    code: CloseCode
    reason: str


class Verdict(NamedTuple):
    """
    What the database says about one socket's access.

    Attributes:
        end: None if access has not ended, or if that is unknown.
        user: The account as it is now; None if unknown.

    """

    end: End | None
    user: Any


NOBODY_KNOWS: Final = Verdict(None, None)


async def judge(credentials: Sequence[Credentials]) -> list[Verdict]:
    """
    Return for each whether access ends.

    A session that does not exist was logged out, or was given another key, like the one in which users change their own
    password. Until it has the new key, it looks like all the other sessions of that user: from before the change. So
    these browsers may come back, and the handshake decides.

    The accounts and sessions of each tenant are looked up separately. A tenant whose database does not answer does not
    hold up the others.

    Raises:
        TimeoutError: It takes too long.
        Exception: Whatever the database or the session backend raises.

    """
    by_tenant: dict[str, list[int]] = {}
    for index, each in enumerate(credentials):
        by_tenant.setdefault(each.tenant.name, []).append(index)
    verdicts, failures = [NOBODY_KNOWS] * len(credentials), []
    for name, indexes in by_tenant.items():
        some = [credentials[index] for index in indexes]
        try:
            found = await in_context(
                some[-1].tenant.fresh_context(),
                lookups().call(name, TIMEOUT, within(name, _judge), some, group=name),
            )
        except Exception as error:
            failures.append(error)
            if len(failures) == len(by_tenant):
                raise
            _log.warning("could not look up which users of tenant %r still have access (%s)", name, describe(error))
            continue
        for index, verdict in zip(indexes, found, strict=True):
            verdicts[index] = verdict
    return verdicts


def _judge(credentials: Sequence[Credentials]) -> list[Verdict]:
    """Do everything in the thread, because ten thousand verdicts would block the event loop."""
    users = _users({each.user.pk for each in credentials if each.is_account})
    found = _sessions({each.session_key for each in credentials if each.session_key is not None})
    verdicts = []
    for each in credentials:
        user, auth_hash = users.get(each.user.pk, (None, None)) if each.is_account else (each.user, each.auth_hash)
        good = True if each.session_key is None else found.get(each.session_key)
        verdicts.append(Verdict(_end(each, user, auth_hash, good), user))
    return verdicts


def _end(credentials: Credentials, user: Any, auth_hash: str | None, good: bool | None) -> End | None:
    if user is None or not user.is_active:
        return End(CloseCode.ACCESS_REVOKED, "the account is not active")
    if good is None:
        return End(CloseCode.TRY_AGAIN, "the session is not there any more")
    if not good:
        return End(CloseCode.ACCESS_REVOKED, "the session has expired")
    if auth_hash == credentials.auth_hash:
        return None
    by_token = credentials.session_key is None
    return End(CloseCode.ACCESS_REVOKED if by_token else CloseCode.TRY_AGAIN, "the password was changed")


def sessions_have_lasting_keys() -> bool:
    """Say whether a session can be told from others: one that is kept in a cookie has another key with each change."""
    return not issubclass(_session_store(), signed_cookies.SessionStore)


def _auth_hash(user: Any) -> str | None:
    method = getattr(user, "get_session_auth_hash", None)
    return None if method is None else str(method())


def _session_store() -> Any:
    return import_module(django_settings.SESSION_ENGINE).SessionStore


def _users(pks: set[Any]) -> dict[Any, tuple[Any, str | None]]:
    """Find accounts, and their ``auth_hash``, by primary key."""
    manager = get_user_model()._default_manager
    return {user.pk: (user, _auth_hash(user)) for some in _slices(pks) for user in manager.filter(pk__in=some)}


def _sessions(keys: set[str]) -> dict[str, bool]:
    """Return for each session whether it is still valid; one that was deleted, or has another key now, is missing."""
    store = _session_store()
    if hasattr(store, "get_model_class"):  # ``db``, ``cached_db`` and those derived from them
        manager, now = store.get_model_class()._default_manager, timezone.now()
        return {
            key: expires > now
            for some in _slices(keys)
            for key, expires in manager.filter(session_key__in=some).values_list("session_key", "expire_date")
        }
    if issubclass(store, cache.SessionStore):
        prefix = store.cache_key_prefix
        some = caches[django_settings.SESSION_CACHE_ALIAS].get_many([prefix + key for key in keys]) if keys else {}
        return dict.fromkeys((key.removeprefix(prefix) for key in some), True)
    return {key: True for key in keys if sessions.read(key)}


def _slices(values: Collection[Any]) -> Iterator[list[Any]]:
    listed = list(values)
    return (listed[begin : begin + KEYS_A_QUERY] for begin in range(0, len(listed), KEYS_A_QUERY))
