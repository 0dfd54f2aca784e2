"""Frames, and what travels to the listeners."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from notifications import messages
from notifications.history.position import Position
from notifications.history.stamped import Stamped, head, read_stamped, tail, tail_of
from tests.cases import cases
from tests.strategies import ids, payloads


@given(road=st.sampled_from("prR"), topic=ids, epoch=st.integers(0, 10**14), n=st.integers(0, 10**14), payload=payloads)
def test_what_listeners_are_told_can_be_read_back(road, topic, epoch, n, payload):
    """Topic, id, frame and the tail it was made with survive the way, with whatever characters."""
    position, data = Position(epoch, n), messages.encode(payload, 100_000)
    frame = head(topic) + str(position).encode() + b'"}' + tail(data)
    size = len(topic.encode())

    stamped = read_stamped(
        b"%s%d %s 0123456789ab %s%s" % (road.encode(), size, str(position).encode(), topic.encode(), frame)
    )

    assert stamped == Stamped(road, topic, position, frame, "0123456789ab")
    assert tail_of(stamped) == tail(data)
    assert json.loads(frame) == {"_meta": {"topic": topic, "id": str(position)}, **payload}


@cases("data", [b"", b"m0123456789abcdef", b"p", b"p5", b"px 1-1 abc"])
def test_a_marker_is_no_stamped_message(data):
    """What is not ours, or another listener's marker, is a ValueError and nothing worse."""
    with pytest.raises(ValueError):
        read_stamped(data)


@cases(
    ("data", "stamped"),
    [
        (b'p8 5-1 run closed:7{"a":1}', Stamped("p", "closed:7", Position(5, 1), b'{"a":1}', "run")),
        (b'p8 5-1 run@17 closed:7{"a":1}', Stamped("p", "closed:7", Position(5, 1), b'{"a":1}', "run", 17)),
        (b'u8 - - closed:7{"a":1}', Stamped("u", "closed:7", None, b'{"a":1}', "")),
        (b'U8 - -@17 closed:7{"a":1}', Stamped("U", "closed:7", None, b'{"a":1}', "", 17)),
        ("r10 5-1 run closed:üx{}".encode(), Stamped("r", "closed:üx", Position(5, 1), b"{}", "run")),
    ],
)
def test_each_form_on_the_internal_channel_is_read(data, stamped):
    """With and without a time, an id, and letters of more than one byte."""
    assert read_stamped(data) == stamped


@cases("empty", [b"{}", b"{ }", b"{\n\t\r }"])
def test_an_empty_message_makes_a_frame_of_meta_alone(empty):
    """No comma follows then, whatever space is between the braces."""
    frame = head("closed:7") + b'5-1"}' + tail(empty)

    assert json.loads(frame) == {"_meta": {"topic": "closed:7", "id": "5-1"}}


@cases("message", [b'{"n":1}', b'{ "n" : 1 }', b"{}"])
def test_the_tail_of_a_message_without_an_id_is_that_of_the_message(message):
    """So a listener finds what it has read by what comes back, kept or not."""
    assert tail_of(Stamped("u", "closed:7", None, message)) == tail(message)
