"""
Tokens and grants, signed by Django.

A token identifies the user of a socket where there is no session cookie (another host, a mobile app). A grant
says that one user may read one topic. Both are sent in frames, never in a URL, because URLs end up in logs.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Any, Final

from django.contrib.auth import get_user_model
from django.core import signing

from . import signed, tenants
from .conf import settings
from .topics import Topic

TOKEN_SALT: Final = "notifications.token"  # noqa: S105  a salt is no secret
GRANT_SALT: Final = "notifications.grant"
_FORGED: Final = (signing.BadSignature, UnicodeEncodeError)
"""What ``signed.load`` raises; the second is for text with a lone surrogate."""


def make_token(user: Any) -> str:
    """
    Make a token that proves for ``TOKEN_MAX_AGE`` seconds that a socket belongs to this user.

    A change of password invalidates it earlier, as it does sessions. On a site with tenants it is valid for sockets of
    the current one.
    """
    pk = [str(part) for part in user.pk] if isinstance(user.pk, tuple) else str(user.pk)
    whose = {"user": pk, "tenant": tenants.current()} if settings.TENANT is not None else {"user": pk}
    return signing.dumps({**whose, "auth": _fingerprint(user.get_session_auth_hash())}, salt=TOKEN_SALT)


def check_token(token: str) -> Any:
    """
    Find the user a token was made for.

    Returns:
        The user, active or not, or None if the token is forged, expired, from another tenant, or from before a change
        of password.

    """
    try:
        content = signed.load(token, TOKEN_SALT, settings.TOKEN_MAX_AGE)
    except _FORGED:
        return None
    if content.get("tenant", "") != tenants.current():
        return None
    user = get_user_model()._default_manager.filter(pk=content["user"]).first()
    if user is None:
        return None
    # Fallbacks: rotating SECRET_KEY ends no session, so it must not invalidate a token either.
    hashes = [user.get_session_auth_hash(), *user.get_session_auth_fallback_hash()]
    if any(hmac.compare_digest(content["auth"], _fingerprint(auth_hash)) for auth_hash in hashes):
        return user
    return None


def make_grant(user: Any, topic: Topic | str) -> str:
    """
    Make a grant that lets this user subscribe to this topic for ``GRANT_MAX_AGE`` seconds.

    For pages that checked the permission while they were rendered. A page shows it each time it connects, so it should
    outlive the page. ``revoke`` takes back all grants that were made before.

    Raises:
        TopicError: The topic is not valid.

    """
    topic = Topic.parse(topic) if isinstance(topic, str) else topic
    return signing.dumps([str(user.pk), str(topic)], salt=GRANT_SALT)


def check_grant(grant: str, user: Any, topic: Topic) -> bool:
    """Return whether a grant was made for this user and topic and has not expired. It may have been revoked."""
    return grant_made_at(grant, user, topic) is not None


def grant_made_at(grant: str, user: Any, topic: Topic) -> int | None:
    """Return when a grant was made, in seconds since the epoch; None if ``check_grant`` would return False."""
    try:
        content = signed.load(grant, GRANT_SALT, settings.GRANT_MAX_AGE)
    except _FORGED:
        return None
    return signed.signed_at(grant) if content == [str(user.pk), str(topic)] else None


def _fingerprint(auth_hash: str) -> str:
    # Tokens are readable, so they contain a hash of the session's hash, which cannot be derived from it. It has
    # no key, because after a rotation there would be no way to tell which key it was made with.
    return hashlib.sha256(f"{TOKEN_SALT}:{auth_hash}".encode()).hexdigest()[:32]
