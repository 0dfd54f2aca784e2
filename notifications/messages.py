"""
The published messages: the typed ones, how messages are serialised, and what a raw one must be.

A published message is any JSON object. The types here are the well-known ones of the protocol; they check
their values when they are created, so that a mistake shows up where it was made and not in a browser.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, StrEnum
from functools import cache
from numbers import Integral, Real
from typing import Annotated, Any, Final, Literal, get_args, get_origin, get_type_hints
from uuid import UUID

import msgspec
from django.utils.functional import LazyObject, Promise, empty
from msgspec import UNSET, Meta, Struct, UnsetType

from .exceptions import MessageError
from .protocol.surrogates import mend_json, mend_values

MAX_EXACT: Final = 2**53
"""Up to this, a float is as exact as an int."""
META: Final = "_meta"
"""The key that frames reserve for topic and id. No message may use it: a forged id would mute a user."""


class UploadStatus(StrEnum):
    """The words for the ``status`` of an upload that the replaced service used; a site may use others."""

    PENDING = "pending"
    ANALYZING = "analyzing"
    EMBEDDING = "embedding"
    COMPLETED = "completed"
    FAILED = "failed"


class UploadStage(StrEnum):
    """The words for the ``stage`` of an upload that the replaced service used; a site may use others."""

    QUEUED = "queued"
    EXTRACTING_FRAMES = "extracting_frames"
    VISION_ANALYSIS = "vision_analysis"
    DESCRIPTION_AUDIT = "description_audit"
    EMBEDDING_GENERATION = "embedding_generation"
    INDEXING = "indexing"
    COMPLETED = "completed"
    FAILED = "failed"


class BatchStatus(StrEnum):
    """The words for the ``status`` of a batch that the replaced service used; a site may use others."""

    PENDING = "pending"
    PROCESSING = "processing"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class FileStatus(StrEnum):
    """The words for the ``status`` of a file that the replaced service used; a site may use others."""

    PROCESSING = "processing"
    COMPLETED = "completed"
    FAILED = "failed"


PLAIN: Final = Meta(description="Plain text; a page must not read it as HTML.")
LINK: Final = Meta(description="Where a click leads: https:, http: or a path of the site.")
State = Literal["waiting", "running", "succeeded", "failed", "cancelled"]
Word = Annotated[str, Meta(description="Any word; the documentation lists those that the replaced service used.")]
Percent = Annotated[int, Meta(ge=0, le=100)]
Count = Annotated[int, Meta(ge=0)]
Amount = Annotated[int, Meta(ge=0)] | Annotated[float, Meta(ge=0)]
"""A number that may have a fraction; whole numbers are written without one."""
Unread = Annotated[
    int, Meta(ge=0, le=100, description="How many notices of the user are unread; 100: at least so many, shown as 99+.")
]
Timestamp = Annotated[datetime, Meta(tz=True, description="When this was the case: ISO 8601, with an offset.")]


def now() -> datetime:
    return datetime.now(UTC)


class Checked(Struct, kw_only=True):
    """
    A struct that refuses wrong values when it is created, not only when it is decoded.

    Ids may be given as ``UUID`` or ``int``, texts as lazy strings, and payloads as mappings.

    Raises:
        MessageError: A value is wrong. The error names the field and what it accepts.

    """

    def __post_init__(self) -> None:
        for name, annotation in _fields(type(self)).items():
            try:
                value = _check(name, getattr(self, name), annotation)
            except (msgspec.ValidationError, ArithmeticError, TypeError) as error:
                raise MessageError(f"{type(self).__name__}.{name}: {error}") from None
            setattr(self, name, value)


@cache
def _fields(struct: type[Checked]) -> dict[str, Any]:
    hints = get_type_hints(struct, include_extras=True)
    return {field.name: hints[field.name] for field in msgspec.structs.fields(struct)}


def _check(name: str, value: Any, annotation: Any) -> Any:
    value = _plain(value)
    if isinstance(value, Enum):
        value = _plain(value.value)
    if isinstance(value, Promise) or (
        (name == "id" or name.endswith("_id")) and isinstance(value, UUID | int) and not isinstance(value, bool)
    ):
        value = str(value)
    if get_origin(annotation) is Literal:  # msgspec would quote the value without saying which are valid
        words = get_args(annotation)
        if value not in words:
            raise TypeError(f"Expected one of {', '.join(map(str, words))}")
        return value
    if value is UNSET or annotation is Any:
        return value
    if isinstance(value, Mapping):
        for type_ in get_args(annotation) or (annotation,):
            if isinstance(type_, type) and issubclass(type_, Checked):
                return type_(**value)
    if isinstance(value, float | Decimal):
        value = _whole(value)
    value = msgspec.convert(value, annotation)
    return value.astimezone(UTC) if isinstance(value, datetime) else value


def _whole(number: float | Decimal) -> Any:
    try:
        return int(number) if -MAX_EXACT <= number <= MAX_EXACT and number == int(number) else number
    except ArithmeticError:  # a decimal that is no number
        return math.nan


class JobProgressPayload(Checked):
    """The payload of ``progress``."""

    id: Annotated[str, Meta(description="The job: the id of its topic.")]
    state: State
    percent: Annotated[Annotated[float, Meta(ge=0, le=100)] | None, Meta(description="Null: nobody knows.")] = None
    done: Amount | None = None
    total: Amount | None = None
    unit: Annotated[str | None, PLAIN] = None
    stage: Annotated[str | None, PLAIN] = None
    message: Annotated[str | None, PLAIN] = None
    eta: Annotated[
        Annotated[float, Meta(ge=0)] | None, Meta(description="Estimated seconds until the end; null: nobody knows.")
    ] = None
    error: Annotated[str | None, PLAIN] = None
    url: Annotated[str | None, LINK] = None


class JobProgress(Checked, tag="progress", tag_field="action"):
    """How far a job has progressed; ``notifications.Progress`` publishes it."""

    payload: JobProgressPayload
    timestamp: Timestamp = msgspec.field(default_factory=now)


class UploadProgressPayload(Checked):
    """The payload of ``upload_progress``."""

    upload_id: str
    status: Word
    stage: Word
    progress_percent: Percent
    message: str = ""
    error_message: str | None = None
    description_audit_score: Percent | None = None


class UploadProgress(Checked, tag="upload_progress", tag_field="action"):
    """How far the analysis of one upload has progressed."""

    payload: UploadProgressPayload
    timestamp: Timestamp = msgspec.field(default_factory=now)


class UploadCompleted(Checked, tag="upload_completed", tag_field="action"):
    """The analysis of one upload has succeeded."""

    upload_id: str
    description: str = ""
    audit_score: Percent = 0
    timestamp: Timestamp = msgspec.field(default_factory=now)


class UploadFailed(Checked, tag="upload_failed", tag_field="action"):
    """The analysis of one upload has failed."""

    upload_id: str
    error_message: str
    timestamp: Timestamp = msgspec.field(default_factory=now)


class BatchProgressPayload(Checked):
    """The payload of ``batch_progress``."""

    batch_id: str
    status: Word
    total: Count
    processed: Count
    successful: Count
    failed: Count
    progress_percentage: Annotated[float, Meta(ge=0, le=100)]


class BatchProgress(Checked, tag="batch_progress", tag_field="action"):
    """How far a batch of uploads has progressed; published to its user."""

    payload: BatchProgressPayload
    timestamp: Timestamp = msgspec.field(default_factory=now)


class FileProgressPayload(Checked):
    """The payload of ``file_progress``."""

    batch_id: str
    upload_id: str
    file_name: str
    file_size: Count
    progress_percentage: Percent
    status: Word


class FileProgress(Checked, tag="file_progress", tag_field="action"):
    """How far one file of a batch has progressed; published to its user."""

    payload: FileProgressPayload
    timestamp: Timestamp = msgspec.field(default_factory=now)


class NoticeInbox(Checked):
    """What a notice that is kept says beside its text: where it is in its user's inbox."""

    id: Annotated[str, Meta(description="The notice: in the list, and to mark it.")]
    unread: Unread
    group: Annotated[str, Meta(description="Of notices of one group a list shows the newest; empty: of none.")] = ""
    actor: Annotated[Any, Meta(description="Whoever did something, in the site's own form.")] = None
    target: Annotated[Any, Meta(description="What it was done to, in the site's own form.")] = None


class Notice(Checked, tag="notice", tag_field="action"):
    """A notice from the site to a user."""

    title: Annotated[str, PLAIN]
    level: Literal["info", "success", "warning", "error"] = "info"
    body: Annotated[str | None, PLAIN] = None
    url: Annotated[str | None, LINK] = None
    timestamp: Timestamp = msgspec.field(default_factory=now)
    inbox: NoticeInbox | UnsetType = UNSET
    """Set by ``notifications.inbox.notify``, and absent from a notice that is not kept."""


class InboxChangedPayload(Checked):
    """The payload of ``inbox``."""

    unread: Unread
    change: Annotated[
        Literal["seen", "read", "unread", "archived", "restored", None],
        Meta(description="What happened to the notices; null: only the number is corrected."),
    ] = None
    ids: Annotated[list[str] | None, Meta(description="The notices that have changed; null: see `until`.")] = None
    until: Annotated[
        str | None, Meta(description="If `ids` is null: all notices of the user up to this one have changed.")
    ] = None


class InboxChanged(Checked, tag="inbox", tag_field="action"):
    """Kept notices of a user have changed, or the number of those that are unread."""

    payload: InboxChangedPayload
    timestamp: Timestamp = msgspec.field(default_factory=now)


Message = (
    JobProgress
    | UploadProgress
    | UploadCompleted
    | UploadFailed
    | BatchProgress
    | FileProgress
    | Notice
    | InboxChanged
    | Mapping[str, Any]
)
"""What ``publish`` accepts: a typed message, or any mapping that can be written as JSON."""


def _encode_other(value: Any) -> Any:
    if isinstance(value, Promise):
        return str(value)
    if isinstance(value, Mapping):
        return dict(value)
    plain = _plain(value)
    if plain is value:
        raise TypeError(f"a {_name(type(value))} cannot be written as JSON")
    return plain


def _name(type_: type) -> str:
    return type_.__qualname__ if type_.__module__ == "builtins" else f"{type_.__module__}.{type_.__qualname__}"


# Bound to the real classes now: freezegun replaces ``datetime`` and ``date`` in every module.
_combine, _from_ordinal = datetime.combine, date.fromordinal

_PLAIN: Final[Sequence[tuple[type[Any], Callable[[Any], Any]]]] = (
    (str, str.__str__),
    (Integral, int),
    (Real, float),
    (Decimal, Decimal),
    (bytes, bytes),
    (bytearray, bytes),
    (datetime, lambda value: _combine(value, datetime.timetz(value))),
    (date, lambda value: _from_ordinal(date.toordinal(value))),
    (time, lambda value: time.fromisoformat(time.isoformat(value))),
    (timedelta, timedelta.__pos__),
)
"""The types that can be written as JSON, and how to turn a subclass instance into one of each. Decimals become text."""
_PLAIN_TYPES: Final = frozenset({str, bool, int, float, Decimal, bytes, bytearray, datetime, date, time, timedelta})


def _plain(value: Any) -> Any:
    """
    Turn an instance of a subclass into one of the class itself, the only kind that msgspec reads and writes.

    Examples are Django's ``SafeString``, the times of pendulum, pandas and freezegun, and the numbers of numpy. Of a
    ``SimpleLazyObject`` it is what that stands for.
    """
    if type(value) in _PLAIN_TYPES:
        return value
    if isinstance(value, LazyObject):
        if value._wrapped is empty:
            value._setup()
        return _plain(value._wrapped)
    if isinstance(value, Enum):
        return value
    for base, plain in _PLAIN:
        if isinstance(value, base):
            return plain(value) if value == value else None  # pandas' "not a time" becomes null, as NaN does
    if type(value).__module__ == "numpy" and type(value).__name__ in ("bool", "bool_"):
        return bool(value)
    return value


_encode = msgspec.json.Encoder(enc_hook=_encode_other).encode
_decode = msgspec.json.Decoder().decode


def encode(message: Message, max_size: int) -> bytes:
    """
    Serialise a message as one JSON object; it may contain lazy strings, ``datetime``, ``Decimal`` and ``UUID``.

    Not-a-number and the infinities become ``null``, as in JavaScript's ``JSON.stringify``. A lone surrogate, which is
    half a character, becomes U+FFFD.

    Args:
        message: A typed message or a mapping.
        max_size: Maximum size of the result, in bytes.

    Raises:
        MessageError: The message is neither, cannot be written as JSON, uses ``_meta`` or is too large.

    """
    if isinstance(message, Mapping):
        message = dict(message)
    elif not isinstance(message, Checked) or message.__struct_config__.tag is None:  # a payload alone has no action
        raise MessageError(f"a message is a mapping or one of notifications.messages, not a {type(message).__name__}")
    try:
        try:
            data = _encode(message)
        except UnicodeEncodeError:  # a lone surrogate
            data = _encode(mend_values(msgspec.to_builtins(message, enc_hook=_encode_other)))
        # Search the output, because a key may be a lazy string or an Enum. msgspec escapes none of these letters.
        reserved = b'"_meta":' in data and META in _decode(data)
    except (TypeError, ValueError, ArithmeticError, RecursionError) as error:
        raise MessageError(f"the message cannot be written as JSON: {error}") from error
    if reserved:
        raise MessageError(f"{META!r} is reserved: the publisher sets it")
    if len(data) > max_size:
        raise MessageError(f"the message has {len(data)} bytes; NOTIFICATIONS['MAX_MESSAGE_SIZE'] allows {max_size}")
    return data


def check_raw(data: bytes, max_size: int) -> str:
    """
    Check a raw message: it must be a JSON object in UTF-8 of at most ``max_size`` bytes.

    Returns:
        Its text, without surrounding white space, and with U+FFFD for each lone surrogate.

    Raises:
        MessageError: It is something else, or the object uses ``_meta``.

    """
    if len(data) > max_size:
        raise MessageError(f"{len(data)} bytes; NOTIFICATIONS['MAX_MESSAGE_SIZE'] allows {max_size}")
    try:
        value = _decode(data)
        text = data.decode()
    except (ValueError, RecursionError):
        text, value = _read_mended(data)
    if type(value) is not dict:
        raise MessageError("not a JSON object")
    if META in value:
        raise MessageError(f"{META!r} is reserved")
    return text.strip(" \t\r\n")


def _read_mended(data: bytes) -> tuple[str, Any]:
    """Parse once more what was not JSON, with its lone surrogates replaced."""
    try:
        text = data.decode(errors="surrogatepass")
        mended = mend_json(text)
        if mended == text:
            raise MessageError("not JSON")
        return mended, _decode(mended)
    except UnicodeDecodeError as error:
        raise MessageError("not UTF-8") from error
    except (msgspec.DecodeError, RecursionError) as error:
        raise MessageError("not JSON") from error
