"""
The wire protocol besides the published messages: browsers' frames, the server's answers, and close codes.

The docstrings of the frames appear in the AsyncAPI document and in the TypeScript types, which are generated
from this module and ``messages.py``.
"""

from __future__ import annotations

import json
import re
from enum import IntEnum
from typing import Annotated, Any, Final, Literal, Self
from urllib.parse import parse_qs

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from ..exceptions import NotificationsError
from .surrogates import mend_json, mend_values

MAX_FRAME_SIZE: Final = 4096
MAX_AUTH_FRAME_SIZE: Final = 16384
"""Bytes of a frame. A JWT with many claims needs more than 4 KiB; nothing else comes close."""


MAX_REQUEST_SIZE: Final = 65536
"""Bytes of the body of a request over HTTP."""
MAX_TOPICS: Final = 1000
"""Topics of one request over HTTP: their answers must leave room for messages in the response."""
MAX_WAIT: Final = 25.0
"""Seconds that a poll may wait: proxies cut a request that is not answered, many after 30 or 60 s."""


class CloseCode(IntEnum):
    """
    Why the server closes a socket. 4000 to 4099 say "do not retry", 4100 to 4199 "retry with backoff".

    Private codes begin at 4000 (RFC 6455, 7.4.2).
    """

    meaning: str

    def __new__(cls, code: int, meaning: str) -> Self:
        self = int.__new__(cls, code)
        self._value_ = code
        self.meaning = meaning
        return self

    AUTH_TIMEOUT = 4001, "no auth frame in time"
    AUTH_REQUIRED = 4002, "the first frame was JSON, but not an auth frame"
    AUTH_FAILED = 4003, "the token is not valid, has expired, or belongs to an inactive or a different user"
    INVALID_MESSAGES = 4004, "the first frame was not JSON, or too many in a row could not be read"
    ACCESS_REVOKED = 4005, "access has ended: logged out, password changed, account not active, session expired"
    TOO_SLOW = 4100, "the client sent or confirmed nothing for too long, or sent far too many frames"
    TRY_AGAIN = 4101, "something the server needs did not answer, the session has another key, or the server restarts"
    TOO_MANY_CONNECTIONS = (
        4102,
        "the user or the address has as many sockets as allowed, or too many are guests or have not authenticated",
    )
    SERVICE_RESTART = 1012, "the server restarts"

    @property
    def retry(self) -> bool:
        """Whether a client should come back."""
        return not 4000 <= self < 4100


ErrorCode = Literal[
    "invalid_message", "unknown_action", "forbidden", "unavailable", "too_many_subscriptions", "rate_limited"
]


class FrameError(NotificationsError):
    """
    A browser's frame is not valid.

    Attributes:
        code: ``invalid_message`` or ``unknown_action``, as in the ``error`` frame.

    """

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code


class NotJSONError(FrameError):
    """A browser's frame is binary, or not JSON at all."""


SINCE_IS: Final = '\'since\' is "last" or the id of a message, such as "1795452276480-3"'
POSITION: Final = "[0-9]{1,19}-[0-9]{1,19}"
SINCE: Final = re.compile(f"last|{POSITION}", re.ASCII)

Position = Annotated[
    str,
    Meta(
        description="An id or a position, <epoch>-<n>: two integers. The message after it has n + 1.",
        extra_json_schema={"pattern": f"^{POSITION}$"},
    ),
]
TopicName = Annotated[str, Meta(description="A kind and an id, such as order:7.")]
Grant = Annotated[
    str | None, Meta(description="Signed by the site for this user and topic, in place of a permission check.")
]
_SINCE: Final = Meta(
    description='What the client has. Absent: nothing from the past follows; "last": the latest message first; the id '
    "of a message or a position: everything after it, or of a state the latest message.",
    extra_json_schema={"anyOf": [{"type": "string"}, {"type": "null"}], "pattern": f"^(last|{POSITION})$"},
)


class Since(Struct, kw_only=True):
    since: Annotated[str | None, _SINCE] = None

    def __post_init__(self) -> None:
        if self.since is not None and not SINCE.fullmatch(self.since):
            raise ValueError(SINCE_IS)


def since_in_url(query_string: bytes) -> str | None:
    """Return the ``?since=`` of a session socket's URL, unchecked; see ``check_since``."""
    return parse_qs(query_string.decode("latin1")).get("since", [""])[0] or None


class Auth(Struct, tag="auth", tag_field="type"):
    """
    The first frame of a socket without a session: the client's token, and its position in its user's own topic.

    It may be repeated later with a token of the same user.
    """

    token: str
    since: Annotated[Any, _SINCE] = None
    """Not checked here: a browser with a malformed position still authenticates by its token."""


class Guest(Struct, tag="auth", tag_field="type"):
    """
    The first frame of a socket of somebody who has not logged in, where the site admits guests.

    It has no topic of its own, and may read what everybody may. Where a session says who it is, that counts.
    """

    guest: Literal[True]


def check_since(since: Any) -> None:
    """Raise ``FrameError`` if a ``since`` is malformed."""
    if since is not None and not (isinstance(since, str) and SINCE.fullmatch(since)):
        raise FrameError("invalid_message", SINCE_IS)


class SubscribeUpload(Since, tag="subscribe_upload", tag_field="action"):
    """The same as ``subscribe`` to the topic ``upload:<upload_id>``."""

    upload_id: str
    grant: Grant = None

    @property
    def topic(self) -> str:
        return f"upload:{self.upload_id}"


class UnsubscribeUpload(Struct, tag="unsubscribe_upload", tag_field="action"):
    """The same as ``unsubscribe`` from the topic ``upload:<upload_id>``."""

    upload_id: str

    @property
    def topic(self) -> str:
        return f"upload:{self.upload_id}"


class Subscribe(Since, tag="subscribe", tag_field="action"):
    """Receive what is published on a topic. If repeated, it is answered with the current position and does nothing."""

    topic: TopicName
    grant: Grant = None


class Unsubscribe(Struct, tag="unsubscribe", tag_field="action"):
    """Stop receiving a topic. No message of the topic follows the answer."""

    topic: TopicName


class Ping(Struct, tag="ping", tag_field="action"):
    """Answered with ``pong``."""


class Pong(Struct, tag="pong", tag_field="action"):
    """The answer to the server's ``ping``, with its number. It confirms everything that was read before that ping."""

    n: int | None = None


Action = SubscribeUpload | UnsubscribeUpload | Subscribe | Unsubscribe | Ping | Pong


class Subscription(Since):
    """One topic of a request over HTTP."""

    topic: TopicName
    grant: Grant = None


class Request(Since):
    """
    The body of a request over HTTP: everything that a client would send over a WebSocket.

    Attributes:
        mode: How it is answered: ``"stream"`` or ``"poll"``.
        token: As in an ``auth`` frame; None if there is a session.
        topics: The topics of the page, each to be read as a ``Subscription``.
        wait: Seconds that a poll may wait for news.
        guest: As in the ``auth`` frame of a guest.

    """

    mode: Literal["stream", "poll"]
    token: str | None = None
    topics: Annotated[list[Any], Meta(max_length=MAX_TOPICS)] = []
    wait: Annotated[float, Meta(ge=0, le=MAX_WAIT)] = MAX_WAIT
    guest: bool = False

    @property
    def auth(self) -> Auth | Guest | None:
        """The frame that says who the client is, unless its session does."""
        if self.token is not None:
            return Auth(token=self.token, since=self.since)
        return Guest(guest=True) if self.guest else None

    @property
    def subscriptions(self) -> list[Subscribe | FrameError]:
        """The frames that subscribe to the topics; a ``FrameError`` for each topic that cannot be read."""
        return [_subscribe(each) for each in self.topics]


class _Head(Struct):
    type: Any = None
    action: Any = None
    guest: Any = None


_head = msgspec.json.Decoder(_Head)
_auth = msgspec.json.Decoder(Auth)
_guest = msgspec.json.Decoder(Guest)
_request = msgspec.json.Decoder(Request)
_action: msgspec.json.Decoder[Action] = msgspec.json.Decoder(Action)
_ACTIONS: Final = frozenset(
    str(frame.__struct_config__.tag)
    for frame in (SubscribeUpload, UnsubscribeUpload, Subscribe, Unsubscribe, Ping, Pong)
)

_HALF: Final = "the frame contains half a character (a lone surrogate), which no topic does"


def decode(text: str | None) -> Auth | Guest | Action:
    """
    Decode a browser's frame.

    Args:
        text: The text of the frame; None for a binary one.

    Raises:
        FrameError: It is not valid; the message is for the developer of the page.

    """
    if text is None:
        raise NotJSONError("invalid_message", "frames are JSON text, not binary")
    size = len(text.encode(errors="surrogatepass"))
    _check_size(size, MAX_AUTH_FRAME_SIZE)
    try:
        head = _head.decode(text)
        if head.type == "auth":
            return _guest.decode(text) if head.guest is True else _auth.decode(text)
        _check_size(size, MAX_FRAME_SIZE)
        if not isinstance(head.action, str):
            raise FrameError("invalid_message", 'a frame is {"type":"auth",…} or {"action":"…",…}')
        if head.action not in _ACTIONS:
            raise FrameError("unknown_action", f"the actions are {', '.join(sorted(_ACTIONS))}")
        return _action.decode(text)
    except (ValueError, RecursionError) as error:
        if (mended := mend_json(text)) != text:  # it has a lone surrogate, which is valid JSON for browsers
            return _without_topic(decode(mended))
        raise (FrameError if _is_json(text) else NotJSONError)("invalid_message", f"{error}") from error


def decode_request(body: bytes) -> Request:
    """
    Decode the body of a request over HTTP.

    Raises:
        FrameError: It is not valid; the message is for the developer of the page.

    """
    try:
        try:
            return _request.decode(body)
        except msgspec.ValidationError:
            raise
        except ValueError:
            return msgspec.convert(_with_halves(body), Request)
    except (ValueError, RecursionError) as error:
        raise FrameError("invalid_message", f"{error}") from error


def _with_halves(body: bytes) -> Any:
    """Parse a body that may have lone surrogates, and replace those outside its topics."""
    value = json.loads(body.decode(errors="surrogatepass"), parse_constant=_no_number)
    if not isinstance(value, dict):
        return value
    return {name: each if name == "topics" else mend_values(each) for name, each in value.items()}


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _subscribe(value: Any) -> Subscribe | FrameError:
    try:
        each = msgspec.convert(value, Subscription)
        f"{each.topic}{each.grant}".encode()
    except UnicodeEncodeError:
        return FrameError("invalid_message", _HALF)
    except ValueError as error:
        return FrameError("invalid_message", f"{error}")
    return Subscribe(topic=each.topic, since=each.since, grant=each.grant)


def _without_topic(frame: Auth | Guest | Action) -> Auth | Guest | Action:
    if isinstance(frame, Auth | Guest | Ping | Pong):
        return frame
    raise FrameError("invalid_message", _HALF)


def _is_json(text: str) -> bool:
    try:
        msgspec.json.decode(text)
    except (ValueError, RecursionError):
        return False
    return True


def _check_size(size: int, limit: int) -> None:
    if size > limit:
        raise FrameError("invalid_message", f"the frame has {size} bytes, more than {limit}")


Here = Annotated[
    Position | None,
    Meta(description="The topic's position before the messages that follow; null where no history is kept."),
]
Recovered = Annotated[
    bool | None,
    Meta(
        description="Whether everything after the client's position follows, or of a state the latest message. False: "
        "something may be missing for good, load the state from the site. Null: the client gave no position."
    ),
]


class AuthSuccess(Struct, tag="auth_success", tag_field="action"):
    """The socket is this user's, and has the user's own topic; or it is a guest's, who has neither."""

    user_id: Annotated[str | None, Meta(description="Null for a guest.")]
    id: Here
    recovered: Recovered


class AuthError(Struct, tag="auth_error", tag_field="action"):
    """The socket is refused, or its access has ended; a close follows."""

    message: str


class Subscribed(Struct, tag="subscribed", tag_field="action"):
    """
    The topic is subscribed.

    Also sent without a request: with ``joined``, and with ``recovered`` false when something is missing on an open
    socket, and some time after an ``unavailable``.
    """

    topic: TopicName
    recovered: Recovered
    id: Here
    state: Annotated[
        bool,
        Meta(
            description="Whether the latest message of the topic is the complete state, such as progress: then it "
            "follows unless the client has it, and messages that it has replaced need not arrive: ids may jump."
        ),
    ]
    joined: Annotated[
        bool,
        Meta(
            description="Whether the site has subscribed the client without a request. A client that has a position of "
            "the topic subscribes with it as since, and ignores messages until the answer: they follow again."
        ),
    ]


class Unsubscribed(Struct, tag="unsubscribed", tag_field="action"):
    """The topic is not, or no longer, subscribed; also sent unasked when permission is denied, even later."""

    topic: TopicName


class Error(Struct, tag="error", tag_field="action"):
    """A frame was refused; the socket stays open."""

    code: ErrorCode
    message: str
    topic: TopicName | UnsetType = UNSET


class ServerPing(Struct, tag="ping", tag_field="action"):
    """A ping to answer with ``pong`` and the same number."""

    n: int


class ServerPong(Struct, tag="pong", tag_field="action"):
    """The answer to the client's ``ping``."""


class Close(Struct, tag="close", tag_field="action"):
    """
    The last frame of a response over HTTP that ends for a reason: the code and reason of a close.

    A WebSocket's close frame has them. A response without it ended in the ordinary way.
    """

    code: int
    reason: str

    @classmethod
    def of(cls, code: CloseCode) -> Self:
        """Return the frame for a close code."""
        return cls(code=int(code), reason=code.meaning)


ServerFrame = AuthSuccess | AuthError | Subscribed | Unsubscribed | Error | ServerPing | ServerPong | Close

_encoder = msgspec.json.Encoder()


def encode(frame: ServerFrame) -> str:
    """Serialise one of the server's own frames."""
    return _encoder.encode(frame).decode()
