"""Ids, and what histories say in them."""

import pytest

from notifications.history.position import Page, Position, Where
from tests.cases import cases


@cases("text", ["", "1", "-", "1-", "-1", "a-1", "1-b", "1-1-1"])
def test_what_is_no_id_cannot_be_read(text):
    """An id is two numbers; anything else is a ValueError."""
    with pytest.raises(ValueError):
        Position.parse(text)


def test_an_id_is_read_and_written():
    """What was written is read back, as a position and not as any pair."""
    position = Position.parse("1764153600000-12")

    assert position == (1764153600000, 12)
    assert (position.epoch, position.n) == (1764153600000, 12)
    assert type(position) is Position
    assert str(position) == "1764153600000-12"


def test_ids_are_compared_as_numbers():
    """10 comes after 9, which text would not know, and a later epoch after anything of an earlier one."""
    in_order = ["5-0", "5-9", "5-10", "6-1", "10-0"]

    assert sorted(map(Position.parse, in_order)) == list(map(Position.parse, in_order))
    assert sorted(in_order) != in_order


@cases(("text", "since"), [(None, None), ("last", "last"), ("5-10", Position(5, 10))])
def test_since_may_be_an_id_the_last_message_or_nothing(text, since):
    """Only an id becomes a position."""
    assert Position.since(text) == since
    assert type(Position.since(text)) is type(since)


@cases("text", ["", "first", "Last", "5"])
def test_other_words_are_no_since(text):
    """They are a ValueError, which the reader of frames turns into an error of the protocol."""
    with pytest.raises(ValueError):
        Position.since(text)


def where(last):
    return Where("run", 1000, 2000, last and Position(1500, 1), last, 10.0 if last else 0.0, bool(last))


def test_whoever_has_had_everything_is_at_the_last_message():
    """The position of a history is its end."""
    assert where(Position(1500, 7)).position == Position(1500, 7)


def test_whoever_has_had_everything_of_an_empty_history_is_at_this_moment():
    """Before the first message of an epoch that begins now or later."""
    position = where(None).position

    assert position == Position(2000, 0)
    assert type(position) is Position


def test_a_page_without_a_history_has_no_time_to_live():
    """It is the default, which says that there is nothing to end."""
    assert Page("run", 2000, None, None, False, []).ttl == 0
