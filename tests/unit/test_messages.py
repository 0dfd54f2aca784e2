"""Published messages: the typed ones, how any of them is written, and what a raw one must be."""

import json
import math
from collections import OrderedDict, UserDict
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from types import MappingProxyType
from uuid import UUID

import pytest
from django.db.models import TextChoices
from django.http import QueryDict
from django.utils import translation
from django.utils.functional import SimpleLazyObject
from django.utils.html import format_html
from django.utils.safestring import mark_safe
from django.utils.translation import gettext_lazy, ngettext_lazy
from hypothesis import example, given
from hypothesis import strategies as st

from notifications import MessageError, messages
from notifications.messages import (
    BatchProgress,
    BatchProgressPayload,
    BatchStatus,
    FileProgress,
    FileProgressPayload,
    FileStatus,
    InboxChanged,
    JobProgress,
    JobProgressPayload,
    Notice,
    UploadCompleted,
    UploadFailed,
    UploadProgress,
    UploadProgressPayload,
    UploadStage,
    UploadStatus,
    check_raw,
    encode,
)
from tests.cases import cases

ROOM = 65536
WHEN = datetime(2026, 11, 23, 12, 30, 0, 250000, tzinfo=UTC)
ON_THE_WIRE = "2026-11-23T12:30:00.250000Z"
SECRET = "hunter2"

UPLOAD = {
    "upload_id": "7f3c",
    "status": "analyzing",
    "stage": "vision_analysis",
    "progress_percent": 40,
    "message": "looking",
}
BATCH = {
    "batch_id": "b1",
    "status": "pending",
    "total": 4,
    "processed": 3,
    "successful": 2,
    "failed": 1,
    "progress_percentage": 75.5,
}
JOB = {"id": "42", "state": "running"}
FILE = {
    "batch_id": "b1",
    "upload_id": "7f3c",
    "file_name": "a.png",
    "file_size": 1024,
    "progress_percentage": 40,
    "status": "processing",
}

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**100), 2**100)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=20,
)
json_objects = st.dictionaries(st.text().filter(lambda name: name != "_meta"), json_values, max_size=6)
white_space = st.text(" \t\r\n", max_size=5)


class Name(Enum):
    META = "_meta"


class Mood(TextChoices):
    GOOD = "good", "Good"


class Level(TextChoices):
    ERROR = "error", "Error"


def written(message):
    return json.loads(encode(message, ROOM))


@cases(
    ("message", "wire"),
    [
        (
            UploadProgress(payload=UploadProgressPayload(**UPLOAD), timestamp=WHEN),
            {
                "action": "upload_progress",
                "payload": {**UPLOAD, "error_message": None, "description_audit_score": None},
                "timestamp": ON_THE_WIRE,
            },
        ),
        (
            UploadCompleted(upload_id="7f3c", description="a cat", audit_score=97, timestamp=WHEN),
            {
                "action": "upload_completed",
                "upload_id": "7f3c",
                "description": "a cat",
                "audit_score": 97,
                "timestamp": ON_THE_WIRE,
            },
        ),
        (
            UploadFailed(upload_id="7f3c", error_message="no cat", timestamp=WHEN),
            {"action": "upload_failed", "upload_id": "7f3c", "error_message": "no cat", "timestamp": ON_THE_WIRE},
        ),
        (
            BatchProgress(payload=BatchProgressPayload(**BATCH), timestamp=WHEN),
            {"action": "batch_progress", "payload": BATCH, "timestamp": ON_THE_WIRE},
        ),
        (
            FileProgress(payload=FileProgressPayload(**FILE), timestamp=WHEN),
            {"action": "file_progress", "payload": FILE, "timestamp": ON_THE_WIRE},
        ),
        (
            JobProgress(
                payload={**JOB, "id": 42, "percent": 40.5, "done": 81, "total": 200, "eta": 3.5}, timestamp=WHEN
            ),
            {
                "action": "progress",
                "payload": {
                    "id": "42",
                    "state": "running",
                    "percent": 40.5,
                    "done": 81,
                    "total": 200,
                    **dict.fromkeys(("unit", "stage", "message", "error", "url")),
                    "eta": 3.5,
                },
                "timestamp": ON_THE_WIRE,
            },
        ),
        (
            Notice(level="error", title="No", body="Not today", url="/orders/7/", timestamp=WHEN),
            {
                "action": "notice",
                "level": "error",
                "title": "No",
                "body": "Not today",
                "url": "/orders/7/",
                "timestamp": ON_THE_WIRE,
            },
        ),
        (
            Notice(title="Yes", timestamp=WHEN),
            {"action": "notice", "level": "info", "title": "Yes", "body": None, "url": None, "timestamp": ON_THE_WIRE},
        ),
        (
            Notice(title="Yes", timestamp=WHEN, inbox={"id": 17, "unread": 3, "actor": {"name": "Eve"}}),
            {
                "action": "notice",
                "level": "info",
                "title": "Yes",
                "body": None,
                "url": None,
                "timestamp": ON_THE_WIRE,
                "inbox": {"id": "17", "unread": 3, "group": "", "actor": {"name": "Eve"}, "target": None},
            },
        ),
        (
            InboxChanged(payload={"unread": 2, "change": "read", "ids": ["17"]}, timestamp=WHEN),
            {
                "action": "inbox",
                "payload": {"unread": 2, "change": "read", "ids": ["17"], "until": None},
                "timestamp": ON_THE_WIRE,
            },
        ),
    ],
)
def test_each_typed_message_is_written_as_the_contract_says(message, wire):
    """A typed message has all fields of its type, also those that are null, under the names of the wire."""
    assert written(message) == wire


def test_the_values_of_optional_fields_are_written():
    """An error message and an audit score that are given arrive."""
    payload = UploadProgressPayload(**{**UPLOAD, "error_message": "hm", "description_audit_score": 3})

    assert written(UploadProgress(payload=payload))["payload"] == {
        **UPLOAD,
        "error_message": "hm",
        "description_audit_score": 3,
    }


@cases(
    ("type_", "values", "name", "words"),
    [
        (UploadProgressPayload, UPLOAD, "status", UploadStatus),
        (UploadProgressPayload, UPLOAD, "stage", UploadStage),
        (BatchProgressPayload, BATCH, "status", BatchStatus),
        (FileProgressPayload, FILE, "status", FileStatus),
    ],
)
def test_status_and_stage_are_any_words(type_, values, name, words):
    """Those of the replaced service have names, which are written as its words; a site may have its own."""
    for word in (*words, "paused", "Reading rows", Mood.GOOD, gettext_lazy("Saved")):
        payload = type_(**{**values, name: word})
        assert type(getattr(payload, name)) is str
        assert getattr(payload, name) == str(word)


def test_the_words_of_the_replaced_service_are_what_its_client_accepts():
    """Its client refuses others, so they must not change."""
    assert [*UploadStatus] == ["pending", "analyzing", "embedding", "completed", "failed"]
    assert [*UploadStage] == [
        *("queued", "extracting_frames", "vision_analysis", "description_audit", "embedding_generation", "indexing"),
        *("completed", "failed"),
    ]
    assert [*BatchStatus] == ["pending", "processing", "completed", "failed", "cancelled"]
    assert [*FileStatus] == ["processing", "completed", "failed"]


def test_what_only_the_replaced_service_has_may_be_left_out():
    """A site without an audit gives no score; what is written then is what the replaced service's client accepts."""
    assert written(UploadCompleted(upload_id=7, timestamp=WHEN)) == {
        "action": "upload_completed",
        "upload_id": "7",
        "description": "",
        "audit_score": 0,
        "timestamp": ON_THE_WIRE,
    }
    assert UploadProgressPayload(upload_id=7, status="x", stage="y", progress_percent=0).message == ""


WRONG = [
    (UploadProgressPayload, UPLOAD, "progress_percent", 101),
    (UploadProgressPayload, UPLOAD, "progress_percent", -1),
    (UploadProgressPayload, UPLOAD, "progress_percent", 40.5),
    (UploadProgressPayload, UPLOAD, "progress_percent", "40"),
    (UploadProgressPayload, UPLOAD, "progress_percent", True),
    (UploadProgressPayload, UPLOAD, "progress_percent", None),
    (UploadProgressPayload, UPLOAD, "description_audit_score", 101),
    (UploadProgressPayload, UPLOAD, "status", None),
    (UploadProgressPayload, UPLOAD, "stage", 7),
    (UploadProgressPayload, UPLOAD, "message", None),
    (UploadProgressPayload, UPLOAD, "upload_id", None),
    (UploadProgressPayload, UPLOAD, "upload_id", True),
    (UploadProgressPayload, UPLOAD, "upload_id", 1.5),
    (BatchProgressPayload, BATCH, "progress_percentage", math.nan),
    (BatchProgressPayload, BATCH, "progress_percentage", math.inf),
    (BatchProgressPayload, BATCH, "progress_percentage", 100.1),
    (BatchProgressPayload, BATCH, "progress_percentage", -0.1),
    (BatchProgressPayload, BATCH, "total", -1),
    (BatchProgressPayload, BATCH, "status", None),
    (BatchProgressPayload, BATCH, "status", 7),
    (BatchProgressPayload, BATCH, "failed", 0.5),
    (FileProgressPayload, FILE, "status", None),
    (JobProgressPayload, JOB, "state", "done"),
    (JobProgressPayload, JOB, "percent", 100.1),
    (JobProgressPayload, JOB, "percent", math.nan),
    (JobProgressPayload, JOB, "done", -1),
    (JobProgressPayload, JOB, "total", -0.5),
    (JobProgressPayload, JOB, "eta", -1),
    (JobProgressPayload, JOB, "id", None),
    (JobProgressPayload, JOB, "stage", 7),
    (FileProgressPayload, FILE, "file_size", -1),
    (FileProgressPayload, FILE, "progress_percentage", 0.5),
    (FileProgressPayload, FILE, "file_name", b"a.png"),
    (Notice, {"title": "x"}, "level", "fatal"),
    (Notice, {"title": "x"}, "title", None),
    (Notice, {"title": "x"}, "body", 7),
    (Notice, {"title": "x"}, "timestamp", datetime(2026, 11, 23)),  # noqa: DTZ001  naive is the point
    (Notice, {"title": "x"}, "timestamp", "yesterday"),
    (Notice, {"title": "x"}, "timestamp", None),
    (Notice, {"title": "x"}, "timestamp", datetime.max.replace(tzinfo=timezone(timedelta(hours=-1)))),
    (UploadCompleted, {"upload_id": "1", "description": "x", "audit_score": 1}, "audit_score", 101),
    (UploadProgress, {}, "payload", {"upload_id": "7f3c"}),
    (UploadProgress, {}, "payload", {**UPLOAD, "percent": 40}),
    (UploadProgress, {}, "payload", None),
]


def test_wrong_values_are_refused_where_the_message_is_made():
    """A value that the wire's type does not allow is a MessageError that names the field."""
    for type_, values, field, value in WRONG:
        said = f"{type_.__name__}: {field} {value!r} was not refused"
        with pytest.raises(MessageError, match=field):
            pytest.fail(f"{said}: {type_(**{**values, field: value})}")


def test_the_error_of_a_wrong_nested_value_names_the_nested_field():
    """A wrong value inside a payload given as a mapping is refused like one of the payload's type."""
    with pytest.raises(MessageError, match=r"UploadProgressPayload\.progress_percent"):
        UploadProgress(payload={**UPLOAD, "progress_percent": 101})


def test_a_missing_field_is_a_type_error_as_in_any_call():
    """A forgotten argument is Python's own error."""
    with pytest.raises(TypeError, match="error_message"):
        UploadFailed(upload_id="1")


def test_the_error_of_a_wrong_word_names_the_allowed_ones_and_not_the_wrong_one():
    """A MessageError says what the field takes and never quotes the message: it goes to logs."""
    with pytest.raises(MessageError, match="info, success, warning, error") as caught:
        Notice(title="x", level=SECRET)

    assert SECRET not in str(caught.value)


@cases("id_", [UUID("7f3c0000-0000-4000-8000-000000000001"), 42, "7f3c"])
def test_ids_may_be_uuids_and_integers(id_):
    """Fields that are ids take what a primary key is, and are text on the wire."""
    message = UploadFailed(upload_id=id_, error_message="x")

    assert written(message)["upload_id"] == str(id_)


def test_words_may_be_choices():
    """A status or a level may be given as a member of Django's TextChoices."""
    message = Notice(title="x", level=Level.ERROR)

    assert type(message.level) is str
    assert written(message)["level"] == "error"


def test_fields_take_members_of_any_enumeration():
    """As a mapping does: what counts is the value, be it a word, a count or an id."""
    mood = Enum("Mood", {"DONE": "completed", "FOUR": 4, "ID": UUID(int=7)})
    values = {"batch_id": mood.ID, "status": mood.DONE, "total": mood.FOUR}

    payload = written(BatchProgress(payload=BatchProgressPayload(**{**BATCH, **values})))["payload"]

    assert {name: payload[name] for name in values} == written(values)


def test_what_is_looked_up_late_is_written_like_what_is_found():
    """As an id of a topic, a text or a time may be lazy: in a mapping, as a key, and in a field."""
    text, when = SimpleLazyObject(lambda: "Saved"), SimpleLazyObject(lambda: WHEN)

    assert written({"a": text, "b": [when], text: 1}) == written({"a": "Saved", "b": [WHEN], "Saved": 1})
    assert written(Notice(title=text, timestamp=when)) == written(Notice(title="Saved", timestamp=WHEN))


def test_truths_of_numpy_are_truths():
    """What a comparison in a table returns is no subclass of ``bool``, nor of a number."""
    truth = type("bool", (), {"__module__": "numpy", "__bool__": lambda self: True})()

    assert written({"a": truth, "b": [truth]}) == {"a": True, "b": [True]}


def test_a_payload_may_be_a_mapping():
    """A nested payload given as a dict is checked and written like one of its type."""
    id_ = UUID(int=7)
    message = UploadProgress(payload={**UPLOAD, "upload_id": id_, "message": gettext_lazy("Saved")}, timestamp=WHEN)

    payload = UploadProgressPayload(**{**UPLOAD, "upload_id": str(id_), "message": "Saved"})
    assert message == UploadProgress(payload=payload, timestamp=WHEN)


@cases(
    "text",
    [
        gettext_lazy("Saved"),
        mark_safe("Saved"),
        format_html("{}", "Saved"),
        ngettext_lazy("Saved", "Saved all", 1),
        "Saved",
    ],
)
def test_texts_may_be_djangos(text):
    """A title that waits for its translation, or is marked safe, is written as the text it is."""
    assert written(Notice(title=text, body=text))["title"] == "Saved"
    assert written({"title": text}) == {"title": "Saved"}
    assert written({text: 1}) == {"Saved": 1}


def test_a_lazy_title_is_read_in_the_language_of_the_caller():
    """A typed message takes the translation when it is made, not when some worker sends it."""
    with translation.override("de"):
        notice = Notice(title=gettext_lazy("yes,no,maybe"))

    assert written(notice)["title"] != "yes,no,maybe"


def test_timestamps_are_utc_whatever_zone_they_were_given_in():
    """A time of another zone arrives as the same moment in UTC."""
    there = WHEN.astimezone(timezone(timedelta(hours=5, minutes=45)))

    assert written(Notice(title="x", timestamp=there))["timestamp"] == ON_THE_WIRE


def test_a_message_made_without_a_timestamp_has_that_of_now():
    """The default time is the moment of construction, in UTC."""
    before = datetime.now(UTC)
    first, second = Notice(title="x"), Notice(title="x")

    assert before <= first.timestamp <= second.timestamp <= datetime.now(UTC)
    assert written(first)["timestamp"].endswith("Z")


@cases(
    ("value", "wire"),
    [
        (WHEN, ON_THE_WIRE),
        (date(2026, 11, 23), "2026-11-23"),
        (Decimal("1.50"), "1.50"),
        (UUID(int=7), "00000000-0000-0000-0000-000000000007"),
        (Mood.GOOD, "good"),
        (math.nan, None),
        (math.inf, None),
        (-math.inf, None),
        ((1, 2), [1, 2]),
        ({"a": None}, {"a": None}),
        (MappingProxyType({"a": 1}), {"a": 1}),
        (UserDict(a=UserDict(b=1)), {"a": {"b": 1}}),
        (OrderedDict(a=1), {"a": 1}),
        ([gettext_lazy("Saved")], ["Saved"]),
        (2**70, 2**70),
        ("🙂\x00\u2028", "🙂\x00\u2028"),
    ],
)
def test_mappings_may_hold_djangos_types(value, wire):
    """A mapping may hold what Django's views have at hand; not-a-number becomes null."""
    assert written({"value": value}) == {"value": wire}


@cases("message", [{"a": 1}, OrderedDict(a=1), UserDict(a=1), MappingProxyType({"a": 1})])
def test_any_mapping_is_a_message(message):
    """A message is any mapping, not only a dict."""
    assert encode(message, ROOM) == b'{"a":1}'


def test_a_query_dict_is_a_message():
    """Django's QueryDict is a mapping like any other; each of its values is a list."""
    assert written(QueryDict("a=1&a=2")) == {"a": ["1", "2"]}


@given(message=json_objects)
def test_whatever_json_can_hold_is_written(message):
    """What is encoded reads back equal, and passes the check of raw messages."""
    data = encode(message, 10**7)

    assert json.loads(data) == message
    assert check_raw(data, 10**7).encode() == data


@cases("message", [None, "text", b"{}", 7, [], [("a", 1)], {1}, UploadProgressPayload(**UPLOAD), Mood])
def test_what_is_no_message_is_refused(message):
    """Only mappings and the typed messages are messages."""
    with pytest.raises(MessageError):
        encode(message, ROOM)


class Strange:
    def __repr__(self):
        return SECRET


def _circle():
    circle = {}
    circle["circle"] = circle
    return circle


def _deep():
    deep = []
    for _ in range(30_000):
        deep = [deep]
    return {"deep": deep}


@cases(
    "message",
    [
        {"a": Strange()},
        {"a": SimpleLazyObject(Strange)},
        {"a": lambda: SECRET},
        {("a", SECRET): 1},
        {Strange(): 1},
        {"a": ["\ud800", Strange()]},
        _circle(),
        {"\ud800": _circle()},
        {"a": 1j},
    ],
)
def test_what_json_cannot_hold_is_refused(message):
    """Foreign objects and circles are MessageErrors, which never quote the message."""
    with pytest.raises(MessageError) as caught:
        encode(message, ROOM)

    assert SECRET not in str(caught.value)
    assert "ud800" not in str(caught.value)


# Subclasses of what JSON holds.


class Whole(int):
    pass


class Share(float):
    pass


class Price(Decimal):
    pass


class Bytes(bytes):
    pass


class Buffer(bytearray):
    pass


class Day(date):
    pass


class Clock(time):
    pass


class Span(timedelta):
    @property
    def days(self):
        return 0  # as pendulum's, which has weeks beside


class Stamp(datetime):
    """As pandas', whose text has nanoseconds, which no browser reads."""

    def isoformat(self, *args):
        return "2026-11-23T12:30:00.250000123Z"

    def __str__(self):
        return "today"


class NotATime(Stamp):
    """As pandas' ``NaT``."""

    def __eq__(self, other):
        return False

    __hash__ = Stamp.__hash__


NEPAL = timezone(timedelta(hours=5, minutes=45))
SUBCLASSES = [
    (Whole(7), 7),
    (Share(0.5), 0.5),
    (Share(math.nan), None),
    (Price("1.50"), "1.50"),
    (Bytes(b"a"), "YQ=="),
    (Buffer(b"a"), "YQ=="),
    (Stamp(2026, 11, 23, 12, 30, 0, 250000, tzinfo=UTC), ON_THE_WIRE),
    (Stamp(2026, 11, 23, 12, 30), "2026-11-23T12:30:00"),
    (Stamp(2026, 11, 23, 12, 30, tzinfo=NEPAL), "2026-11-23T12:30:00+05:45"),
    (NotATime(1, 1, 1), None),
    (Day(2026, 11, 23), "2026-11-23"),
    (Clock(12, 30), "12:30:00"),
    (Span(days=2, seconds=3), "P2DT3S"),
    (Fraction(1, 4), 0.25),
]


@cases(("value", "wire"), SUBCLASSES)
def test_subclasses_are_written_as_what_they_are(value, wire):
    """Times of pendulum and pandas, numbers of numpy: what is a datetime or a float is written like one."""
    assert written({"value": value, "list": [value], "deep": {"er": (value,)}}) == {
        "value": wire,
        "list": [wire],
        "deep": {"er": [wire]},
    }


@cases("rest", [{}, {"cut": "\ud800"}])
def test_a_decimal_that_signals_is_refused(rest):
    """It raises at every comparison."""
    with pytest.raises(MessageError):
        encode({"a": Price("sNaN"), **rest}, ROOM)


def test_names_may_be_of_subclasses_too():
    """A key of a mapping is written like the value that it equals."""
    keys = [Whole(7), Share(0.5), Price("1.50"), Day(2026, 11, 23), Stamp(2026, 11, 23)]

    assert list(written(dict.fromkeys(keys))) == ["7", "0.5", "1.50", "2026-11-23", "2026-11-23T00:00:00"]


def test_fields_take_subclasses():
    """Counts, percentages and ids of typed messages take what numpy and pandas count with."""
    payload = BatchProgressPayload(
        **{**BATCH, "batch_id": Whole(7), "total": Whole(4), "progress_percentage": Share(75.5)}
    )

    assert written(BatchProgress(payload=payload))["payload"] == {**BATCH, "batch_id": "7"}


@cases("whole", [40.0, Decimal("40"), Decimal("4E+1"), Share(40), Price("40.00")])
def test_whole_numbers_may_be_floats_and_decimals(whole):
    """What was computed as a percentage is one; a fraction is refused, because the field has none."""
    payload = UploadProgressPayload(**{**UPLOAD, "progress_percent": whole})

    assert repr(payload.progress_percent) == "40"
    with pytest.raises(MessageError, match="progress_percent"):
        UploadProgressPayload(**{**UPLOAD, "progress_percent": whole + type(whole)("0.5")})


@cases(
    ("type_", "values", "field", "value"),
    [
        (UploadProgressPayload, UPLOAD, "progress_percent", Whole(101)),
        (UploadProgressPayload, UPLOAD, "progress_percent", Share(40.5)),
        (BatchProgressPayload, BATCH, "progress_percentage", Share(math.nan)),
        (Notice, {"title": "x"}, "timestamp", Stamp(2026, 11, 23)),
        (Notice, {"title": "x"}, "timestamp", NotATime(1, 1, 1)),
        *(
            (type_, values, field, value)
            for type_, values, field in (
                (UploadProgressPayload, UPLOAD, "progress_percent"),
                (BatchProgressPayload, BATCH, "progress_percentage"),
            )
            for value in (Price("sNaN"), Decimal("sNaN"), Decimal("NaN"), Decimal("Infinity"), math.inf)
        ),
    ],
)
def test_a_wrong_value_is_refused_in_a_subclass_too(type_, values, field, value):
    """What a field refuses it refuses of a subclass as well."""
    with pytest.raises(MessageError, match=field):
        type_(**{**values, field: value})


@pytest.fixture
def frozen(monkeypatch):
    """Do what freezegun does: in every module ``datetime`` and ``date`` are classes of its own, whose now is fixed."""

    class Is(type):
        def __instancecheck__(cls, instance):
            return isinstance(instance, cls.real)

    class Frozen(datetime, metaclass=Is):
        real = datetime

        @classmethod
        def now(cls, tz=None):
            return cls(2026, 11, 23, 12, 30, 0, 250000, tzinfo=tz)

    class FrozenDay(date, metaclass=Is):
        real = date

    monkeypatch.setattr(messages, "datetime", Frozen)
    monkeypatch.setattr(messages, "date", FrozenDay)
    return Frozen, FrozenDay


def test_messages_are_published_in_tests_that_freeze_the_time(frozen):
    """Under freezegun a notice has the frozen time, and so has a message of the site's own."""
    now, today = frozen[0].now(UTC), frozen[1](2026, 11, 23)

    assert written(Notice(title="x"))["timestamp"] == ON_THE_WIRE
    assert written({"at": now, "day": today, "real": WHEN}) == {
        "at": ON_THE_WIRE,
        "day": "2026-11-23",
        "real": ON_THE_WIRE,
    }


# Halves of characters.


@cases(
    ("text", "arrives"),
    [
        ("\ud83d", "\ufffd"),
        ("\ude00.", "\ufffd."),
        ("ready \ud83d!", "ready \ufffd!"),
        ("\ud83d\ude00", "\U0001f600"),
        ("\ude00\ud83d", "\ufffd\ufffd"),
        ("caf\udce9", "caf\ufffd"),
    ],
)
def test_half_a_character_arrives_as_the_replacement_character(text, arrives):
    """A text that was cut in the middle of an emoji, or came from a file name, does not cost the message."""
    assert written({"a": text, text: [1, (text,)]}) == {"a": arrives, arrives: [1, [arrives]]}
    assert written({mark_safe("a"): text, "b": {mark_safe(text): 1}}) == {"a": arrives, "b": {arrives: 1}}
    assert written(Notice(title=text, timestamp=WHEN)) == written(Notice(title=arrives, timestamp=WHEN))


def test_a_message_with_half_a_character_is_written_like_any_other():
    """All of Django's types are written as always beside it, not-a-number is null, and ``_meta`` is refused."""
    rest = {
        "when": WHEN,
        "id": UUID(int=7),
        "sum": Price("1.50"),
        "nan": math.nan,
        "lazy": gettext_lazy("Saved"),
        "bytes": b"a",
        "many": UserDict(a=(1, {2})),
        "deep": {"list": [Stamp(2026, 11, 23), None, True, 2**70]},
    }

    assert written({"cut": "\ud83d", **rest}) == {"cut": "\ufffd", **written(rest)}
    with pytest.raises(MessageError, match="_meta"):
        encode({"cut": "\ud83d", "_meta": 1}, ROOM)


@cases(
    ("data", "text"),
    [
        (rb'{"a":"\ud83d"}', r'{"a":"\ufffd"}'),
        (rb'{"a":"\uD83D \uDE00"}', r'{"a":"\ufffd \ufffd"}'),
        (rb'{"\ude00":["\ud83d\ud83d\ude00"]}', r'{"\ufffd":["\ufffd\ud83d\ude00"]}'),
        (rb'{"a":"\\ud83d","b":"\\\ud83d","c":"\"\ud83d"}', r'{"a":"\\ud83d","b":"\\\ufffd","c":"\"\ufffd"}'),
        (rb'{"a":"\ud83d\n\u0041\\"}', r'{"a":"\ufffd\n\u0041\\"}'),
        (b'{"a":"\xed\xa0\xbd"}', '{"a":"\ufffd"}'),
        (b'{"a":"\xed\xa0\xbd\xed\xb8\x80"}', '{"a":"\U0001f600"}'),
        (b' { "a" : "\xed\xb8\x80", "b" : 1.0 } ', '{ "a" : "\ufffd", "b" : 1.0 }'),
    ],
)
def test_half_a_character_does_not_cost_a_raw_message(data, text):
    """Escaped or as bytes, alone it becomes the replacement character, two halves one character; all else is kept."""
    assert check_raw(data, ROOM) == text


@given(before=st.text(), after=st.text(), half=st.integers(0xD800, 0xDFFF), escaped=st.booleans())
def test_a_raw_message_is_read_as_python_and_browsers_read_it(before, after, half, escaped):
    """What Python's JSON parser reads arrives, with U+FFFD for each half, whatever stands around it."""
    text = json.dumps({"a": before + chr(half) + after}, ensure_ascii=escaped)
    data = text.encode(errors="surrogatepass")

    assert json.loads(check_raw(data, ROOM)) == {"a": f"{before}\ufffd{after}"}


@cases(
    ("data", "reason"),
    [
        (rb'{"a":"\ud83d}', "not JSON"),
        (rb'{"a":"\ud83d"} trailing', "not JSON"),
        (rb'{"a":"\ud83"}', "not JSON"),
        (rb'["\ud83d"]', "not a JSON object"),
        (rb'{"_met\u0061":1,"a":"\ud83d"}', "'_meta' is reserved"),
        (b'{"a":"\xff\\ud83d"}', "not UTF-8"),
        (b'{"a":"\xed\xa0', "not UTF-8"),
    ],
)
def test_half_a_character_excuses_nothing_else(data, reason):
    """A message that breaks another rule beside is refused for that."""
    with pytest.raises(MessageError) as caught:
        check_raw(data, ROOM)

    assert str(caught.value) == reason


def test_endless_nesting_is_refused():
    """A message that is nested too deep for Python is a MessageError, not a RecursionError."""
    with pytest.raises(MessageError):
        encode(_deep(), 10**7)


@cases(
    "message",
    [
        {"_meta": {"id": "1-1"}},
        {"a": 1, "_meta": None},
        UserDict(_meta=1),
        {gettext_lazy("_meta"): 1},
        {mark_safe("_meta"): 1},
        {Name.META: 1},
    ],
)
def test_the_reserved_name_is_refused(message):
    """No message may bring its own _meta, however the name is spelt in Python."""
    with pytest.raises(MessageError, match="_meta"):
        encode(message, ROOM)


@cases("message", [{"a": {"_meta": 1}}, {"a": "_meta"}, {"_Meta": 1}, {" _meta": 1}])
def test_the_reserved_name_is_free_elsewhere(message):
    """Only the top level reserves _meta."""
    assert written(message) == message


@cases("text", ["x", "é", "🙂"])
def test_the_size_of_a_message_is_that_of_its_bytes(text):
    """A message of exactly the allowed bytes is written, one byte more is refused with both numbers."""
    size = len(f'{{"a":"{text * 10}"}}'.encode())

    assert len(encode({"a": text * 10}, size)) == size
    with pytest.raises(MessageError, match=rf"{size} bytes.*MAX_MESSAGE_SIZE.*{size - 1}"):
        encode({"a": text * 10}, size - 1)


# What some program published.


@given(value=json_objects, before=white_space, after=white_space, ascii_only=st.booleans(), spaced=st.booleans())
def test_a_raw_object_survives_verbatim(value, before, after, ascii_only, spaced):
    """check_raw returns the text as it was published, without the white space around it, and changes nothing else."""
    text = json.dumps(value, ensure_ascii=ascii_only, separators=(" , ", " : ") if spaced else (",", ":"))
    data = f"{before}{text}{after}".encode()

    assert check_raw(data, len(data)) == text


@cases(
    "text",
    [
        '{"a":1.0}',
        '{"a":1e2,"a":2}',
        '{"a":-0}',
        '{ "a" : [ 1 ] }',
        '{"a":"\\u00e9\\/"}',
        '{"type":"websocket.disconnect"}',
        "{}",
    ],
)
def test_the_spelling_of_a_raw_object_is_kept(text):
    """Numbers, escapes, spaces and repeated names stay as the publisher wrote them."""
    assert check_raw(text.encode(), ROOM) == text


@given(data=st.binary(max_size=200) | json_values.map(lambda value: json.dumps(value).encode()))
@example(data=b"")
@example(data=b"null")
@example(data=b"\xef\xbb\xbf{}")
@example(data=b'{"a":"\\ud800"}')
@example(data=b'{"a":"\xed\xa0\x80"}')
@example(data=b'{"a":NaN}')
@example(data=b'{"a":1}{}')
@example(data=b'{"a":1}\x00')
@example(data=b'\x0b{"a":1}')
@example(data=b'{"a":1,}')
@example(data=b"{'a':1}")
@example(data=b'{"a":' * 50_000)
@example(data=b"[" * 50_000)
@example(data=b'{"a":1' + b"0" * 20_000 + b"}")
def test_arbitrary_bytes_raise_nothing_but_message_error(data):
    """check_raw either returns an object's text, or raises MessageError; no publisher can raise anything else."""
    try:
        text = check_raw(data, ROOM * 10)
    except MessageError:
        return
    assert isinstance(json.loads(text), dict)


@cases(
    ("data", "reason"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"hello", "not JSON"),
        (b'{"a":1} trailing', "not JSON"),
        (b"\xef\xbb\xbf{}", "not JSON"),
        (b'{"a":' * 50_000, "not JSON"),
        (b'{"a":"\xff"}', "not UTF-8"),
        (b"[]", "not a JSON object"),
        (b'"text"', "not a JSON object"),
        (b"null", "not a JSON object"),
        (b"7", "not a JSON object"),
    ],
)
def test_the_reason_of_a_refusal_is_said(data, reason):
    """Whoever reads the log learns which rule the message broke."""
    with pytest.raises(MessageError) as caught:
        check_raw(data, ROOM * 10)

    assert str(caught.value) == reason


def spelt(draw_escape):
    return "".join(
        rf"\u{ord(letter):04x}" if escaped else letter for letter, escaped in zip("_meta", draw_escape, strict=True)
    )


@given(
    escapes=st.lists(st.booleans(), min_size=5, max_size=5),
    upper=st.booleans(),
    before=json_objects,
    after=json_objects,
    value=json_values,
)
def test_the_reserved_name_is_refused_however_escaped(escapes, upper, before, after, value):
    """A raw message with a top-level _meta is never forwarded: a forged id would mute a user."""
    name = spelt(escapes)
    if upper:
        name = name.replace("5f", "5F").replace("6d", "6D")
    inside = ",".join(
        part for part in (json.dumps(before)[1:-1], f'"{name}":{json.dumps(value)}', json.dumps(after)[1:-1]) if part
    )

    with pytest.raises(MessageError, match="_meta"):
        check_raw(f"{{{inside}}}".encode(), 10**7)


@cases("text", ['{"a":{"_meta":1}}', '{"a":"_meta"}', '{"meta":1}', '{"_META":1}'])
def test_a_raw_message_may_hold_the_reserved_name_elsewhere(text):
    """Only the top level reserves _meta."""
    assert check_raw(text.encode(), ROOM) == text


def test_the_size_of_a_raw_message_is_that_of_all_its_bytes():
    """The limit counts bytes, with the white space that will be stripped."""
    data = ' {"a":"é"} '.encode()

    assert check_raw(data, len(data)) == '{"a":"é"}'
    with pytest.raises(MessageError, match=rf"{len(data)} bytes.*MAX_MESSAGE_SIZE.*{len(data) - 1}"):
        check_raw(data, len(data) - 1)


@cases(
    "text",
    ['{"a":"%s"', '["%s"]', '"%s"', '{"_meta":"%s"}', '{"a":"%s\\ud800" ', '{"%s":1e999}', '{"a":"%s"} %s', "%s"],
)
def test_the_error_of_a_raw_message_never_quotes_it(text):
    """What is refused is not known to be harmless: no part of it reaches a log."""
    with pytest.raises(MessageError) as caught:
        check_raw(text.replace("%s", SECRET).encode(), ROOM)

    assert SECRET not in str(caught.value)


def test_the_error_of_bytes_that_are_no_text_never_quotes_them():
    """The reason of invalid UTF-8 is said without the bytes."""
    with pytest.raises(MessageError) as caught:
        check_raw(f'{{"a":"{SECRET}'.encode() + b'\xff"}', ROOM)

    assert str(caught.value) == "not UTF-8"
