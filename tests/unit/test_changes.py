"""Marks of buckets of topics: what they show, and when they show nothing."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from notifications.history.changes import BUCKETS, WIDTH, Changes, Place, place_of
from notifications.history.position import Position

marks = st.dictionaries(st.integers(1, BUCKETS), st.binary(min_size=WIDTH, max_size=WIDTH), max_size=20)
NONE = b"\0" * WIDTH


def written(values: dict[int, bytes], *, whole: bool = True) -> bytes:
    """Return marks as they are kept: of no bucket and of all, or up to the last that has one."""
    size = 1 + (BUCKETS if whole else max(values, default=-1))
    return b"".join(values.get(bucket, NONE) for bucket in range(size))


@given(before=marks, now=marks, whole_before=..., whole_now=...)
def test_exactly_the_buckets_that_changed_are_found(
    before: dict[int, bytes], now: dict[int, bytes], whole_before: bool, whole_now: bool
):
    """Whether the end is written, where there is no mark yet, makes no difference."""
    changed = Changes("run", written(now, whole=whole_now)).since(Changes("run", written(before, whole=whole_before)))

    assert changed == {bucket for bucket in before | now if before.get(bucket, NONE) != now.get(bucket, NONE)}


def test_the_ends_of_all_marks_and_of_each_are_found():
    """No byte is left out."""
    now = written({1: NONE[1:] + b"x", 2: b"x" + NONE[1:], BUCKETS: NONE[1:] + b"x"})

    assert Changes("run", now).since(Changes("run", b"")) == {1, 2, BUCKETS}
    assert Changes("run", b"").since(Changes("run", now)) == {1, 2, BUCKETS}


@pytest.mark.parametrize(
    ("earlier", "now"),
    [
        (None, Changes("run", b"")),
        (Changes("run", None), Changes("run", b"")),
        (Changes("run", b""), Changes("run", None)),
        (Changes("run", None), Changes("run", None)),
        (Changes("one", b""), Changes("another", b"")),
        (Changes("run", b""), Changes("run", written({}) + b"\0")),
        (Changes("run", written({}) + b"\0"), Changes("run", b"")),
        (Changes("run", b""), Changes("run", NONE[1:] + b"x")),
        (Changes("run", written({0: b"x" + NONE[1:]})), Changes("run", written({}))),
    ],
    ids=[
        "first",
        "unknown before",
        "unknown now",
        "unknown",
        "another server",
        "too long",
        "was too long",
        "not in place",
        "no longer there",
    ],
)
def test_what_cannot_be_compared_is_not_known(earlier: Changes | None, now: Changes):
    """Not to know is something else than that nothing has changed."""
    assert now.since(earlier) is None


def test_a_place_is_the_same_in_every_process():
    """Whoever stamps and whoever compares have only the name of a topic in common."""
    assert place_of("upload:7f3c") == Place(2405, b"\xefB\x14\x1f")
    assert place_of("user:ä/1") == Place(2605, b"\xfeD\xfc\x14")
    assert place_of("user:ä/1", 3) == Place(1242, b"\xfeD\xfc\x14")


def test_a_mark_names_topic_and_message():
    """Two topics of a bucket whose messages have the same id, and two messages of a topic, have different marks."""
    one, other = Place(7, b"abcd"), Place(7, b"abce")

    assert one.offset == other.offset == 7 * WIDTH
    assert one.mark("1795452276480-3") == b"abcd5452276480-3"
    assert other.mark("1795452276480-3") == b"abce5452276480-3"
    assert one.mark("5-3") == b"abcd0000000005-3"


@given(
    one=st.builds(Position, st.integers(1, 10**13), st.integers(1, 10**6)),
    step=st.integers(1, 10**4),
)
def test_a_mark_is_no_other_message_of_its_epoch(one: Position, step: int):
    """What follows in the same epoch is never taken for what was there."""
    place, other = place_of("user:1"), one._replace(n=one.n + step)

    assert len(place.mark(str(one))) == len(place.mark(str(other))) == WIDTH
    assert place.mark(str(one)) != place.mark(str(other))


def test_topics_are_spread_over_the_buckets():
    """Users who are counted through do not share a few buckets, nor names within one."""
    places = [place_of(f"user:{number}") for number in range(10 * BUCKETS)]
    found = Counter(place.bucket for place in places)

    assert 1 <= min(found) <= max(found) <= BUCKETS
    assert len(found) > 0.99 * BUCKETS
    assert max(found.values()) < 40
    assert len(set(places)) == len(places)
