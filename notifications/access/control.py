"""
Ending access: the functions that a site calls, and the control messages sent to every web process.

They are sent on a channel of their own, which programs that may only publish on ``user:*`` cannot reach, and are
signed: a program that does reach the channel, because Redis has no accounts, cannot disconnect anybody. They are sent
once and not kept; ``revocation.py`` looks up again what must not be missed.
"""

from __future__ import annotations

import hashlib
from typing import Any, Final, Literal, NamedTuple, get_args

from django.core import signing

from .. import sending, signed
from ..broker import clients, pipeline
from ..exceptions import NotificationsError, PublishError, TopicError
from ..history import get_store
from ..metrics import count
from ..topics import Topic, internal_name

SALT: Final = "notifications.control"
MAX_AGE: Final = 300
"""Seconds for which a signed control message is valid, so that a recorded one cannot be used later. The clocks of hosts
may differ by as much."""

ALL: Final = "all sessions"
"""Used instead of a session's key, which has no spaces. None would not do: it is the key of an unsaved session."""

Do = Literal["disconnect", "check", "revoke"]


class ControlError(NotificationsError):
    """A control message is forged, too old, or malformed."""


class Control(NamedTuple):
    """
    A control message, sent to every web process: a ``sending.Call``.

    Attributes:
        do: ``"disconnect"`` the sockets of a user, or of one of their sessions; ``"check"`` whether the user still
            has access; ``"revoke"`` a topic.
        user: The ``full_id`` of the user's own topic.
        what: The ``fingerprint`` of the session, empty for all; or the topic.

    """

    do: Do
    user: str
    what: str = ""

    def failure(self, reason: str) -> PublishError:
        return PublishError(channel(), reason)

    def send(self) -> None:
        if self.do == "revoke":  # first: whoever is told may ask again at once
            get_store().revoke_grants(self.user, Topic.checked_elsewhere(self.what))
        with clients.guarding():
            clients.tell(channel(), self.sign())
        count("control", self.do)

    async def asend(self) -> None:
        if self.do == "revoke":
            await get_store().arevoke_grants(self.user, Topic.checked_elsewhere(self.what))
        with clients.guarding():
            await pipeline.atell(channel(), self.sign())
        count("control", self.do)

    def sign(self) -> str:
        return signing.dumps(list(self), salt=SALT)

    @classmethod
    def read(cls, data: bytes) -> Control:
        """
        Check the signature of a control message and return it.

        Raises:
            ControlError: It was not signed by this site, is too old, or is malformed.

        """
        try:
            content = signed.load(data.decode(), SALT, MAX_AGE)
        except (signing.BadSignature, ValueError) as error:
            raise ControlError(f"it is not signed by this site, or too old ({type(error).__name__})") from error
        match content:
            case [str(do), str(user), str(what)] if do in get_args(Do):
                return cls(do, user, what)  # type: ignore[arg-type]  # one of ``Do``
        raise ControlError("it is of another version of this app")


def channel() -> str:
    """Return the name of the Redis channel."""
    return internal_name("control")


def fingerprint(session_key: str) -> str:
    """Return a name for a session that does not reveal its key."""
    return hashlib.sha256(session_key.encode()).hexdigest()


def disconnect_user(
    user: Any,
    *,
    session_key: str | None = ALL,
    on_commit: bool = False,
    using: str | None = None,
    fail_silently: bool = False,
) -> None:
    """
    Close all sockets of a user, with 4005: their browsers do not come back by themselves.

    It does not keep the user out: if they can log in or have a token, they can connect again. A web process whose
    connection to Redis is broken at that moment misses it.

    Args:
        user: A ``User`` instance or a primary key. An anonymous or unsaved user is a ``TopicError``.
        session_key: Close only the sockets of this session. Without it close all, by session and by token.
        on_commit: Do it when the transaction commits, and not at all if it is rolled back.
        using: With ``on_commit``: the alias of the database. The default one if None.
        fail_silently: Log and count a ``PublishError`` instead of raising it.

    Raises:
        TopicError: The user is anonymous or unsaved.
        ValueError: ``session_key`` is None or empty, as for a session that was never saved, which has no sockets.
        PublishError: Redis did not confirm; the sockets may or may not be closed.

    """
    sending.send(_disconnect(user, session_key), on_commit=on_commit, using=using, fail_silently=fail_silently)


async def adisconnect_user(
    user: Any,
    *,
    session_key: str | None = ALL,
    on_commit: bool = False,
    using: str | None = None,
    fail_silently: bool = False,
) -> None:
    """Close all sockets of a user without blocking the event loop; see ``disconnect_user``."""
    await sending.asend(_disconnect(user, session_key), on_commit=on_commit, using=using, fail_silently=fail_silently)


def revoke(
    topic: Topic | str,
    user: Any,
    *,
    on_commit: bool = False,
    using: str | None = None,
    fail_silently: bool = False,
) -> None:
    """
    End a user's subscriptions to a topic; their browsers are told ``unsubscribed``.

    Withdraw the permission first: for a page that subscribes again, ``AUTHORIZE`` decides. The grants that the user has
    for the topic do not count any more; one that is made in a later second does.

    Args:
        topic: A ``Topic``, or its text such as ``"order:7"``.
        user: A ``User`` instance or a primary key.
        on_commit: Do it when the transaction commits, and not at all if it is rolled back.
        using: With ``on_commit``: the alias of the database. The default one if None.
        fail_silently: Log and count a ``PublishError`` instead of raising it.

    Raises:
        TopicError: The topic is not valid, or is the user's own: use ``disconnect_user``.
        PublishError: Redis did not confirm; the subscriptions may or may not have ended.

    """
    sending.send(_revoke(topic, user), on_commit=on_commit, using=using, fail_silently=fail_silently)


async def arevoke(
    topic: Topic | str,
    user: Any,
    *,
    on_commit: bool = False,
    using: str | None = None,
    fail_silently: bool = False,
) -> None:
    """End a user's subscriptions to a topic without blocking the event loop; see ``revoke``."""
    await sending.asend(_revoke(topic, user), on_commit=on_commit, using=using, fail_silently=fail_silently)


def check_user(user: Any, *, using: str | None = None) -> None:
    """Make the web processes check, when the transaction commits, whether a user still has access; fails silently."""
    control = Control("check", Topic.for_user(user).full_id)
    sending.send(control, on_commit=True, using=using, fail_silently=True)


def _disconnect(user: Any, session_key: str | None) -> Control:
    if not session_key:
        raise ValueError("session_key names no session: an unsaved one has no sockets; leave it out to close all")
    what = "" if session_key == ALL else fingerprint(session_key)
    return Control("disconnect", Topic.for_user(user).full_id, what)


def _revoke(topic: Topic | str, user: Any) -> Control:
    topic = Topic.parse(topic) if isinstance(topic, str) else topic
    own = Topic.for_user(user)
    if topic == own:
        raise TopicError("a user's own topic cannot be revoked; use disconnect_user")
    return Control("revoke", own.full_id, str(topic))
