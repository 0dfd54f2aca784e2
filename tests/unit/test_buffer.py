"""What a socket holds back while it catches up: messages that no history has keep their place."""

import pytest

from notifications.delivery import buffer as module
from notifications.delivery.buffer import HELD_ENTRY, Held
from notifications.delivery.cursor import Cursor
from notifications.history.position import Position
from notifications.metrics import counts
from notifications.topics import Topic

E = 950_000


def cursor(name="a"):
    """A cursor at 3."""
    cursor = Cursor(Topic("closed", name), 60.0)
    cursor.move(Position(E, 3), 0.0)
    cursor.catch_up()
    return cursor


def test_each_message_comes_before_what_was_published_after_it():
    """Its place is behind the last message that is known to have been published when it arrived."""
    held, one = Held(), cursor()
    held.keep(one, "behind 3")
    one.let_go(E, 5)
    held.keep(one, "behind 5")
    held.keep(one, "behind it")

    assert list(held.before(one, Position(E, 3))) == []
    assert list(held.before(one, Position(E, 4))) == ["behind 3"]
    assert list(held.before(one, Position(E, 5))) == []
    assert held.has(one)
    assert list(held.before(one, Position(E, 6))) == ["behind 5", "behind it"]
    assert not held.has(one)


def test_what_is_left_is_given_back_once():
    """When there is nothing more to read the rest follows, in its order."""
    held, one = Held(), cursor()
    for text in ("1", "2", "3"):
        held.keep(one, text)

    assert list(held.all(one)) == ["1", "2", "3"]
    assert list(held.all(one)) == []
    assert list(held.before(one, Position(E, 9))) == []


def test_topics_wait_for_themselves():
    """What one topic has read says nothing about another."""
    held, one, other = Held(), cursor("a"), cursor("b")
    held.keep(one, "a")
    held.keep(other, "b")

    assert list(held.all(one)) == ["a"]
    assert not held.has(one)
    assert held.has(other)
    assert list(held.all(other)) == ["b"]


@pytest.mark.parametrize("give_back", [lambda held, one: held.all(one), lambda held, one: held.before(one, (E, 9))])
def test_memory_is_bounded_for_all_topics_together(monkeypatch, give_back):
    """What has no room is dropped and counted; what was given back makes room."""
    monkeypatch.setattr(module, "MAX_HELD", 2 * (10 + HELD_ENTRY))
    held, one, other = Held(), cursor("a"), cursor("b")
    dropped = counts["dropped", "catching up, no history"]
    for topic in (one, other, one, other):
        held.keep(topic, "0123456789")
    assert counts["dropped", "catching up, no history"] == dropped + 2
    assert held.size == 2 * (10 + HELD_ENTRY)

    assert len(list(give_back(held, one))) == 1
    held.keep(other, "0123456789")
    held.keep(other, "0123456789")

    assert counts["dropped", "catching up, no history"] == dropped + 3
    assert len(list(held.all(other))) == 2
    assert held.size == 0
