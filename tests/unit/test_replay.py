"""What listeners remember of what was stamped lately."""

import pytest

from notifications.bridge import replay as module
from notifications.bridge.replay import GAP_AGE, MAX_AGE, Recent
from notifications.history.position import Position
from notifications.history.stamped import Stamped


def stamped(topic, n, frame=b"frame"):
    return Stamped("p", topic, Position(5, n) if n else None, frame)


def test_the_last_frame_of_each_topic_is_remembered():
    """What a dead holder may not have forwarded: sockets that miss what came before it will see the hole."""
    recent = Recent()
    for topic, n in [("a:1", 1), ("b:1", 1), ("a:1", 2)]:
        recent.add(stamped(topic, n), 0.0)

    assert recent.frames(0.0) == [stamped("b:1", 1), stamped("a:1", 2)]


def test_old_frames_are_forgotten():
    """A takeover takes seconds: what is older has been forwarded."""
    recent = Recent()
    recent.add(stamped("a:1", 1), 0.0)
    recent.add(stamped("b:1", 1), MAX_AGE)
    assert len(recent.frames(MAX_AGE)) == 2

    recent.add(stamped("c:1", 1), MAX_AGE + 0.1)

    assert [each.topic for each in recent.frames(MAX_AGE + 0.1)] == ["b:1", "c:1"]
    assert recent.frames(3 * MAX_AGE) == []


def test_messages_without_an_id_are_not_forwarded_again():
    """No socket could tell that it has had one."""
    recent = Recent()
    recent.add(stamped("a:1", None), 0.0)

    assert recent.frames(0.0) == []
    recent.gap(0.0)
    assert recent.before_gap(0.0) == {}


def test_what_a_listener_was_not_told_of_is_known_by_its_last_id():
    """Of two ids of a topic the later one counts, whichever way it came."""
    recent = Recent()
    recent.add(stamped("a:1", 1), 0.0)
    recent.add(stamped("b:1", 9), 0.0)
    recent.gap(0.0, [("a:1", Position(5, 2)), ("b:1", Position(5, 2)), ("c:1", Position(6, 1))])

    assert recent.before_gap(0.0) == {"a:1": Position(5, 2), "b:1": Position(5, 9), "c:1": Position(6, 1)}


def test_memory_is_bounded(monkeypatch):
    """Neither bytes nor topics grow without end; the oldest go."""
    monkeypatch.setattr(module, "MAX_BYTES", 20)
    monkeypatch.setattr(module, "MAX_TOPICS", 3)
    recent = Recent()
    for n in range(1, 6):
        recent.add(stamped(f"a:{n}", n, b"1234567890"), 0.0)

    assert [each.topic for each in recent.frames(0.0)] == ["a:4", "a:5"]
    recent.gap(0.0)
    assert list(recent.before_gap(0.0)) == ["a:3", "a:4", "a:5"]


def test_the_topics_that_have_been_silent_for_longest_are_forgotten(monkeypatch):
    """A topic that goes on speaking is known, however long ago it spoke for the first time."""
    monkeypatch.setattr(module, "MAX_TOPICS", 3)
    recent = Recent()
    for n, topic in enumerate(["a:1", "a:2", "a:3", "a:1", "a:4"], start=1):
        recent.add(stamped(topic, n), n * 2 * MAX_AGE)

    recent.gap(12 * MAX_AGE)

    assert recent.seen == {"a:3": Position(5, 3), "a:1": Position(5, 4), "a:4": Position(5, 5)}


def test_replacing_a_frame_frees_its_bytes(monkeypatch):
    """A topic that speaks all the time takes the room of one frame."""
    monkeypatch.setattr(module, "MAX_BYTES", 20)
    recent = Recent()
    recent.add(stamped("b:1", 1, b"1234567890"), 0.0)
    for n in range(1, 50):
        recent.add(stamped("a:1", n, b"1234567890"), 0.0)
    assert len(recent.frames(0.0)) == 2

    recent.add(stamped("c:1", 1, b"1234567890"), 0.0)
    assert [each.topic for each in recent.frames(0.0)] == ["a:1", "c:1"]


def test_a_gap_is_looked_up_once():
    """After a gap the last ids before it say from where to read; the frames are of no use, and it is done once."""
    recent = Recent()
    recent.add(stamped("a:1", 7), 0.0)

    recent.gap(1.0)
    recent.add(stamped("a:1", 9), 1.5)

    assert recent.frames(1.5) == [stamped("a:1", 9)]
    assert recent.before_gap(2.0) == {"a:1": Position(5, 7)}
    assert recent.before_gap(2.0) == {}


@pytest.mark.parametrize(("seconds", "known"), [(GAP_AGE - 0.1, 1), (GAP_AGE, 0)])
def test_a_gap_of_long_ago_is_not_looked_up(seconds, known):
    """By then sockets have found out by themselves."""
    recent = Recent()
    recent.add(stamped("a:1", 7), 1000.0)
    recent.gap(1000.0)

    assert len(recent.before_gap(1000.0 + seconds)) == known


def test_without_a_gap_there_is_nothing_to_look_up():
    """A listener that has just started, and the first messages that it sees, ask for nothing."""
    recent = Recent()

    assert recent.seen == {}
    assert recent.before_gap(1.0) == {}
    recent.add(stamped("a:1", 7), 1.0)
    assert recent.before_gap(2.0) == {}
