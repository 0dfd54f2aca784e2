"""The wire protocol beside the published messages: what browsers say, how we answer."""

import json
import string

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from msgspec import structs

from notifications.protocol import frames
from notifications.protocol.frames import (
    MAX_AUTH_FRAME_SIZE,
    MAX_FRAME_SIZE,
    CloseCode,
    FrameError,
    check_since,
    decode,
    encode,
)
from tests.cases import cases

ID = "1795452276480-3"

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["auth", "ping"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
names = st.sampled_from(["type", "action", "token", "since", "upload_id", "topic", "grant", "n"])
words = st.sampled_from(
    [
        "auth",
        "subscribe",
        "unsubscribe",
        "subscribe_upload",
        "unsubscribe_upload",
        "ping",
        "pong",
        "last",
        ID,
        "upload:1",
    ]
)
near_frames = st.dictionaries(names, words | json_values, max_size=8)
"""What looks much like a frame, and mostly is none."""


def refusal(text):
    with pytest.raises(FrameError) as caught:
        decode(text)
    return caught.value


def error_of(text):
    """Return the FrameError of a text, or None if it is a frame; let anything else through."""
    try:
        decode(text)
    except FrameError as error:
        return error
    return None


def padded(frame, size):
    """Write a frame with an unknown key that brings it to ``size`` bytes."""
    text = json.dumps({**frame, "padding": ""})
    return json.dumps({**frame, "padding": "x" * (size - len(text))})


@cases(
    ("frame", "decoded"),
    [
        ({"type": "auth", "token": "t"}, frames.Auth(token="t")),
        ({"type": "auth", "token": "t", "since": ID}, frames.Auth(token="t", since=ID)),
        ({"type": "auth", "token": "t", "since": "last"}, frames.Auth(token="t", since="last")),
        ({"type": "auth", "token": "t", "since": None}, frames.Auth(token="t")),
        ({"action": "subscribe_upload", "upload_id": "7f3c"}, frames.SubscribeUpload(upload_id="7f3c")),
        (
            {"action": "subscribe_upload", "upload_id": "7f3c", "since": "last", "grant": "g"},
            frames.SubscribeUpload(upload_id="7f3c", since="last", grant="g"),
        ),
        ({"action": "unsubscribe_upload", "upload_id": "7f3c"}, frames.UnsubscribeUpload(upload_id="7f3c")),
        ({"action": "subscribe", "topic": "order:7"}, frames.Subscribe(topic="order:7")),
        (
            {"action": "subscribe", "topic": "order:7", "since": "1-0", "grant": "g"},
            frames.Subscribe(topic="order:7", since="1-0", grant="g"),
        ),
        ({"action": "subscribe", "topic": "order:7", "since": None, "grant": None}, frames.Subscribe(topic="order:7")),
        ({"action": "unsubscribe", "topic": "order:7"}, frames.Unsubscribe(topic="order:7")),
        ({"action": "ping"}, frames.Ping()),
        ({"action": "pong"}, frames.Pong()),
        ({"action": "pong", "n": 7}, frames.Pong(n=7)),
    ],
)
def test_each_frame_of_the_contract_is_understood(frame, decoded):
    """Every frame a browser may send is decoded, whether or not it has keys that nobody knows."""
    assert decode(json.dumps(frame)) == decoded
    assert decode(json.dumps({"extra": [1, {"a": None}], **frame, "another": "key"})) == decoded


@pytest.mark.parametrize("action", ["subscribe_upload", "unsubscribe_upload"])
def test_upload_frames_name_the_topic_of_the_upload(action):
    """The old frames are subscriptions to upload:<id>, whatever the id holds."""
    assert decode(json.dumps({"action": action, "upload_id": "a:b c"})).topic == "upload:a:b c"


def test_an_auth_frame_is_known_by_its_type_whatever_else_it_says():
    """A frame of type auth is one also when it carries an action."""
    assert decode('{"action":"ping","type":"auth","token":"t"}') == frames.Auth(token="t")


@given(frame=near_frames | json_values)
@example(frame={"action": ["subscribe"]})
@example(frame={"action": {"a": 1}})
@example(frame={"type": ["auth"], "action": "ping"})
@example(frame={"type": "auth"})
@example(frame={"action": "pong", "n": float("nan")})
@example(frame={"action": "subscribe", "topic": "\ud800"})
def test_no_json_raises_anything_but_frame_error(frame):
    """Whatever JSON a browser sends is a frame or a FrameError with one of the codes of the contract."""
    for text in (json.dumps(frame), json.dumps(frame, ensure_ascii=False)):
        error = error_of(text)

        assert error is None or error.code in {"invalid_message", "unknown_action"}


@given(text=st.text() | st.text(string.punctuation + string.digits + '{}[]":,\\ud8'))
@example(text="\ud800")
@example(text='{"action":"\ud800"}')
@example(text='{"a":' * 800)
@example(text="[" * 4000)
@example(text='{"action":"pong","n":1e999}')
@example(text='{"action":"pong","n":' + "9" * 4000 + "}")
@example(text='{"action":"ping","action":"subscribe","topic":"order:1"}')
@example(text="\ufeff{}")
def test_no_text_raises_anything_but_frame_error(text):
    """Any text a server may hand on is a frame or a FrameError, whose sentence can be sent back."""
    if error := error_of(text):
        assert json.loads(encode(frames.Error(code=error.code, message=str(error))))["message"] == str(error)


@cases("text", ["[" * 16000, '{"a":' * 3000, '{"type":"auth","token":' + "[" * 16000])
def test_endless_nesting_is_an_invalid_message(text):
    """A frame that is nested too deep for Python is a FrameError, not a RecursionError."""
    assert refusal(text).code == "invalid_message"


WRONG = [
    (None, "invalid_message", "JSON text, not binary"),
    ("", "invalid_message", "truncated"),
    ("hello", "invalid_message", "malformed"),
    ("[]", "invalid_message", "object"),
    ("7", "invalid_message", "object"),
    ("{}", "invalid_message", '{"action"'),
    ('{"action":7}', "invalid_message", '{"action"'),
    ('{"type":"subscribe"}', "invalid_message", '{"action"'),
    ('{"action":"shout"}', "unknown_action", "subscribe_upload"),
    ('{"action":"auth","token":"t"}', "unknown_action", "subscribe_upload"),
    ('{"action":""}', "unknown_action", "ping"),
    ('{"type":"auth"}', "invalid_message", "token"),
    ('{"type":"auth","token":7}', "invalid_message", "token"),
    ('{"action":"subscribe"}', "invalid_message", "topic"),
    ('{"action":"subscribe","topic":7}', "invalid_message", "topic"),
    ('{"action":"subscribe_upload"}', "invalid_message", "upload_id"),
    ('{"action":"subscribe_upload","upload_id":42}', "invalid_message", "upload_id"),
    ('{"action":"subscribe_upload","upload_id":null}', "invalid_message", "upload_id"),
    ('{"action":"unsubscribe"}', "invalid_message", "topic"),
    ('{"action":"subscribe","topic":"order:7","grant":7}', "invalid_message", "grant"),
    ('{"action":"pong","n":"7"}', "invalid_message", "n"),
]


def test_the_error_of_a_wrong_frame_tells_what_is_wrong():
    """A browser developer reads in the error which field is wrong or what a frame looks like."""
    errors = [(text, code, says, refusal(text)) for text, code, says in WRONG]

    assert [(text, error.code) for text, _, _, error in errors] == [(text, code) for text, code, _ in WRONG]
    assert [(text, str(error)) for text, _, says, error in errors if says not in str(error)] == []


@pytest.mark.parametrize(
    ("text", "decoded"),
    [
        (r'{"action":"ping","title":"\ud83d"}', frames.Ping()),
        (r'{"type":"auth","token":"t\\","\ude00":1}', frames.Auth(token="t\\")),
    ],
)
def test_half_a_character_does_not_cost_a_frame(text, decoded):
    """``JSON.stringify`` writes what is left of an emoji that was cut; the frame is read as if it were U+FFFD."""
    assert decode(text) == decoded


@pytest.mark.parametrize("action", ["subscribe", "unsubscribe"])
@pytest.mark.parametrize("half", ["\ud83d", r"\ud83d"], ids=ascii)
def test_half_a_character_is_no_part_of_a_topic(action, half):
    """No topic has one, so the frame is refused, and nobody is subscribed to a topic that they did not name."""
    error = refusal(f'{{"action":"{action}","topic":"file:{half}.png"}}')

    assert error.code == "invalid_message"
    assert "half a character" in str(error)


@cases("text", [None, "", "hello", "[1", '{"action":"ping"', r'{"action":"\ud83d', '{"a":NaN}'])
def test_what_is_no_json_is_told_from_a_wrong_frame(text):
    """A first frame is answered with another code when it is no JSON at all."""
    assert type(refusal(text)) is frames.NotJSONError


@cases("text", ["[]", "7", "{}", '{"type":"auth"}', '{"action":"shout"}', r'{"type":"auth","a":"\ud83d"}'])
def test_a_wrong_frame_is_told_from_what_is_no_json(text):
    """What a JSON parser reads is a wrong frame."""
    assert type(refusal(text)) is FrameError


@cases(
    "since",
    [
        "",
        "Last",
        "last ",
        "1",
        "1-",
        "-1",
        "1-2-3",
        "1 - 2",
        "a-b",
        "1-2\n",
        "\u0661-\u0661",
        "9" * 20 + "-1",
        7,
        ["1-1"],
        True,
    ],
)
def test_a_malformed_since_is_an_invalid_message(since):
    """``since`` is "last" or an id; anything else is an error frame that names the field."""
    for frame in ({"action": "subscribe", "topic": "order:7"}, {"action": "subscribe_upload", "upload_id": "7"}):
        error = refusal(json.dumps({**frame, "since": since}))
        assert error.code == "invalid_message"
        assert "since" in str(error)
    # A browser with a broken memory is still who its token says: this one is found out after that.
    auth = decode(json.dumps({"type": "auth", "token": "t", "since": since}))
    with pytest.raises(FrameError, match="since"):
        check_since(auth.since)


@given(epoch=st.integers(0, 10**19 - 1), n=st.integers(0, 10**19 - 1))
def test_any_id_is_a_since(epoch, n):
    """Every pair of integers that Redis counts with is a valid position."""
    since = f"{epoch}-{n}"

    assert decode(json.dumps({"action": "subscribe", "topic": "a", "since": since})).since == since


@cases(
    ("frame", "limit"),
    [
        ({"action": "ping"}, 4096),
        ({"action": "subscribe", "topic": "a"}, 4096),
        ({"type": "auth", "token": "t"}, 16384),
    ],
)
def test_a_frame_may_have_so_many_bytes_and_no_more(frame, limit):
    """4 KiB a frame, 16 KiB the auth frame: at the limit it is read, one byte above it is refused with the numbers."""
    decode(padded(frame, limit))

    assert str(limit + 1) in str(refusal(padded(frame, limit + 1)))
    assert str(limit) in str(refusal(padded(frame, limit + 1)))


def test_the_size_of_a_frame_is_that_of_its_bytes():
    """Characters that UTF-8 writes in four bytes count four."""
    text = json.dumps({"action": "ping", "padding": "🙂" * 1020}, ensure_ascii=False)
    assert len(text) < MAX_FRAME_SIZE < len(text.encode())

    assert refusal(text).code == "invalid_message"


@given(size=st.integers(MAX_AUTH_FRAME_SIZE + 1, MAX_AUTH_FRAME_SIZE * 4))
def test_nothing_is_read_of_what_is_larger_than_any_frame(size):
    """A frame above 16 KiB is refused for its size, whatever it is."""
    assert "bytes" in str(refusal("[" * size))


@cases(
    ("frame", "wire"),
    [
        (
            frames.AuthSuccess(user_id="42", id=None, recovered=None),
            {"action": "auth_success", "user_id": "42", "id": None, "recovered": None},
        ),
        (
            frames.AuthSuccess(user_id="42", id=ID, recovered=True),
            {"action": "auth_success", "user_id": "42", "id": ID, "recovered": True},
        ),
        (frames.AuthError(message="no"), {"action": "auth_error", "message": "no"}),
        (
            frames.Subscribed(topic="order:7", recovered=False, id=None, state=True, joined=False),
            {
                "action": "subscribed",
                "topic": "order:7",
                "recovered": False,
                "id": None,
                "state": True,
                "joined": False,
            },
        ),
        (frames.Unsubscribed(topic="order:7"), {"action": "unsubscribed", "topic": "order:7"}),
        (
            frames.Error(code="forbidden", message="no", topic="order:7"),
            {"action": "error", "code": "forbidden", "message": "no", "topic": "order:7"},
        ),
        (
            frames.Error(code="rate_limited", message="slow down"),
            {"action": "error", "code": "rate_limited", "message": "slow down"},
        ),
        (frames.ServerPing(n=1), {"action": "ping", "n": 1}),
        (frames.ServerPong(), {"action": "pong"}),
    ],
)
def test_each_answer_is_written_as_the_contract_says(frame, wire):
    """The server's frames have exactly the fields of the contract; null is sent, an absent topic is not."""
    assert json.loads(encode(frame)) == wire


@given(message=st.text(st.characters(exclude_categories=["Cs"])))
def test_answers_are_one_json_text_whatever_they_quote(message):
    """A sentence with quotes, controls or line separators reads back as it was."""
    assume(message)

    assert json.loads(encode(frames.AuthError(message=message)))["message"] == message


@cases(
    ("name", "number"),
    [
        ("AUTH_TIMEOUT", 4001),
        ("AUTH_REQUIRED", 4002),
        ("AUTH_FAILED", 4003),
        ("INVALID_MESSAGES", 4004),
        ("ACCESS_REVOKED", 4005),
        ("TOO_SLOW", 4100),
        ("SERVICE_RESTART", 1012),
        ("TRY_AGAIN", 4101),
    ],
)
def test_close_codes_are_those_of_the_contract(name, number):
    """Deployed clients know the codes by number."""
    assert CloseCode[name] == number


def test_no_close_code_tells_a_client_to_stay_away_by_mistake():
    """1000 makes the old client stay away for good: we never send it."""
    assert 1000 not in set(CloseCode)


@cases("frame", [frames.Auth(token="t"), frames.Subscribe(topic="a"), frames.SubscribeUpload(upload_id="a")])
def test_what_a_client_may_leave_out_is_none(frame):
    """An absent ``since`` replays nothing, and an absent grant grants nothing."""
    values = structs.asdict(frame)

    assert {values[name] for name in ("since", "grant") if name in values} == {None}
