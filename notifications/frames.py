"""The wire protocol beside the published messages: what browsers say, how we answer, why we close."""

from __future__ import annotations

import re
from enum import IntEnum
from typing import Any, Final
from urllib.parse import parse_qs

import msgspec
from msgspec import UNSET, Struct, UnsetType

from .exceptions import NotificationsError

MAX_FRAME_SIZE: Final = 4096
MAX_AUTH_FRAME_SIZE: Final = 16384
"""Bytes of a frame. A JWT with many claims needs more than 4 KiB; nothing else comes near."""


class CloseCode(IntEnum):
    """
    Why the server closes a socket. 4000 to 4099 say "do not retry", 4100 to 4199 "retry with backoff".

    Private codes begin at 4000 (RFC 6455, 7.4.2).
    """

    AUTH_TIMEOUT = 4001
    AUTH_REQUIRED = 4002
    AUTH_FAILED = 4003
    INVALID_MESSAGES = 4004
    ACCESS_REVOKED = 4005
    TOO_SLOW = 4100
    TRY_AGAIN = 4101
    TOO_MANY_CONNECTIONS = 4102
    SERVICE_RESTART = 1012


class FrameError(NotificationsError):
    """
    A browser's frame cannot be understood.

    Attributes:
        code: ``invalid_message`` or ``unknown_action``, as in the ``error`` frame.

    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


SINCE_IS: Final = '\'since\' is "last" or the id of a message, such as "1795452276480-3"'
SINCE: Final = re.compile(r"last|[0-9]{1,19}-[0-9]{1,19}", re.ASCII)


class Since(Struct, kw_only=True):
    since: str | None = None

    def __post_init__(self) -> None:
        if self.since is not None and not SINCE.fullmatch(self.since):
            raise ValueError(SINCE_IS)


def since_in_url(query_string: bytes) -> str | None:
    """
    Read ``?since=`` of a session socket's URL.

    Raises:
        FrameError: If it is malformed.

    """
    [since] = parse_qs(query_string.decode("latin1")).get("since", [""])[:1]
    check_since(since or None)
    return since or None


class Auth(Struct, tag="auth", tag_field="type"):
    token: str
    since: Any = None
    """Not checked here: a browser with a broken memory is still who its token says."""


def check_since(since: Any) -> None:
    """Raise ``FrameError`` if a ``since`` is malformed."""
    if since is not None and not (isinstance(since, str) and SINCE.fullmatch(since)):
        raise FrameError("invalid_message", SINCE_IS)


class SubscribeUpload(Since, tag="subscribe_upload", tag_field="action"):
    upload_id: str
    grant: str | None = None

    @property
    def topic(self) -> str:
        return f"upload:{self.upload_id}"


class UnsubscribeUpload(Struct, tag="unsubscribe_upload", tag_field="action"):
    upload_id: str

    @property
    def topic(self) -> str:
        return f"upload:{self.upload_id}"


class Subscribe(Since, tag="subscribe", tag_field="action"):
    topic: str
    grant: str | None = None


class Unsubscribe(Struct, tag="unsubscribe", tag_field="action"):
    topic: str


class Ping(Struct, tag="ping", tag_field="action"):
    pass


class Pong(Struct, tag="pong", tag_field="action"):
    n: int | None = None


Action = SubscribeUpload | UnsubscribeUpload | Subscribe | Unsubscribe | Ping | Pong


class _Head(Struct):
    type: Any = None
    action: Any = None


_head = msgspec.json.Decoder(_Head)
_auth = msgspec.json.Decoder(Auth)
_action: msgspec.json.Decoder[Action] = msgspec.json.Decoder(Action)
_ACTIONS: Final = frozenset(
    str(frame.__struct_config__.tag)
    for frame in (SubscribeUpload, UnsubscribeUpload, Subscribe, Unsubscribe, Ping, Pong)
)


def decode(text: str | None) -> Auth | Action:
    """
    Read a browser's frame.

    Args:
        text: The text of the frame; None for a binary one.

    Raises:
        FrameError: With a sentence for the developer of the page.

    """
    if text is None:
        raise FrameError("invalid_message", "frames are JSON text, not binary")
    size = len(text.encode(errors="surrogatepass"))
    _check_size(size, MAX_AUTH_FRAME_SIZE)
    try:
        head = _head.decode(text)
        if head.type == "auth":
            return _auth.decode(text)
        _check_size(size, MAX_FRAME_SIZE)
        if not isinstance(head.action, str):
            raise FrameError("invalid_message", 'a frame is {"type":"auth",…} or {"action":"…",…}')
        if head.action not in _ACTIONS:
            raise FrameError("unknown_action", f"the actions are {', '.join(sorted(_ACTIONS))}")
        return _action.decode(text)
    except (ValueError, RecursionError) as error:
        raise FrameError("invalid_message", f"{error}") from error


def _check_size(size: int, limit: int) -> None:
    if size > limit:
        raise FrameError("invalid_message", f"the frame has {size} bytes, more than {limit}")


class AuthSuccess(Struct, tag="auth_success", tag_field="action"):
    user_id: str
    id: str | None
    recovered: bool | None


class AuthError(Struct, tag="auth_error", tag_field="action"):
    message: str


class Subscribed(Struct, tag="subscribed", tag_field="action"):
    topic: str
    recovered: bool | None
    id: str | None


class Unsubscribed(Struct, tag="unsubscribed", tag_field="action"):
    topic: str


class Error(Struct, tag="error", tag_field="action"):
    code: str
    message: str
    topic: str | UnsetType = UNSET


class ServerPing(Struct, tag="ping", tag_field="action"):
    n: int


class ServerPong(Struct, tag="pong", tag_field="action"):
    pass


ServerFrame = AuthSuccess | AuthError | Subscribed | Unsubscribed | Error | ServerPing | ServerPong

_encoder = msgspec.json.Encoder()


def encode(frame: ServerFrame) -> str:
    """Write one of the server's own frames."""
    return _encoder.encode(frame).decode()
