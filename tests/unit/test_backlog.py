"""What listeners remember of raw messages that nobody has stamped yet."""

from zlib import crc32

import pytest

from notifications.bridge import backlog as module
from notifications.bridge.backlog import MAX_AGE, Backlog
from notifications.topics import Topic

A, B = Topic("closed", "a"), Topic("closed", "b")


def add(backlog, topic, tail, now):
    return backlog.add(topic, tail, now, crc32(tail))


def filled(*messages):
    backlog = Backlog()
    for topic, tail in messages:
        assert add(backlog, topic, tail, 0.0)
    return backlog


def left(backlog):
    backlog.resubmit()
    return [(entry.topic, entry.tail) for entry in backlog.take(1000, 10**9)]


def test_what_is_stamped_is_forgotten():
    """A confirmation removes its message, whatever others wait around it."""
    backlog = filled((B, b"1"), (A, b"1"), (A, b"2"))

    backlog.remove(str(A), b"1")

    assert len(backlog) == 2
    assert left(backlog) == [(B, b"1"), (A, b"2")]


def test_what_was_read_before_a_stamped_message_of_its_topic_is_given_up():
    """Whoever stamps has not heard it: later it would be out of order. Those of other topics wait."""
    backlog = filled((A, b"1"), (B, b"1"), (A, b"2"), (A, b"3"), (A, b"4"))

    backlog.remove(str(A), b"3")

    assert backlog.overtaken == 2
    assert left(backlog) == [(B, b"1"), (A, b"4")]

    add(backlog, A, b"5", 0.0)
    backlog.remove(str(A), b"5")
    assert backlog.overtaken == 3


def test_of_equal_messages_the_oldest_is_removed():
    """Two equal messages are two messages, and one confirmation is for one of them."""
    backlog = filled((A, b"1"), (A, b"2"), (A, b"1"))

    backlog.remove(str(A), b"1")

    assert left(backlog) == [(A, b"2"), (A, b"1")]


def test_what_is_acknowledged_is_known_by_its_digest():
    """Whoever has stamped it tells no more of it; the oldest of equal ones goes, and those before it are given up."""
    backlog = filled((A, b"1"), (B, b"2"), (A, b"2"), (A, b"2"))

    assert backlog.acknowledge(str(A), crc32(b"3")) is None
    assert backlog.acknowledge("closed:nobody", crc32(b"2")) is None
    assert len(backlog) == 4
    assert backlog.acknowledge(str(A), crc32(b"2")).topic == A
    assert backlog.overtaken == 1
    assert left(backlog) == [(B, b"2"), (A, b"2")]


def test_a_batch_that_is_acknowledged_is_finished():
    """What of it is gone already is no error, and nothing else goes with it."""
    backlog = filled((A, b"1"), (B, b"2"), (A, b"3"))
    batch = backlog.take(2, 1000)
    backlog.remove(str(A), b"1")

    backlog.finish(batch)

    assert len(backlog) == 1
    assert left(backlog) == [(A, b"3")]


@pytest.mark.parametrize(("topic", "tail"), [(A, b"3"), (B, b"1"), (Topic("closed", "c"), b"1")])
def test_a_confirmation_of_something_else_removes_nothing(topic, tail):
    """What another listener read and we did not has no message here."""
    backlog = filled((A, b"1"), (B, b"2"))

    backlog.remove(str(topic), tail)

    assert len(backlog) == 2


def test_it_knows_which_topics_wait():
    """The cheap question before a frame is taken apart."""
    backlog = filled((A, b"1"))
    assert backlog.knows(str(A))
    assert not backlog.knows(str(B))

    backlog.remove(str(A), b"1")

    assert not backlog.knows(str(A))


def test_batches_are_bounded_in_number_and_in_bytes():
    """A batch has at most so many messages and bytes, but at least one message, in the order of arrival."""
    backlog = filled(*[(A, b"%d" % n * 10) for n in range(6)])

    assert [entry.tail[:1] for entry in backlog.take(2, 1000)] == [b"0", b"1"]
    assert [entry.tail[:1] for entry in backlog.take(10, 20)] == [b"2", b"3"]
    assert [entry.tail[:1] for entry in backlog.take(10, 19)] == [b"4"]
    assert [entry.tail[:1] for entry in backlog.take(10, 1)] == [b"5"]


def test_all_is_stamped_when_redis_has_confirmed_the_last():
    """What is removed counts as well; what was only submitted does not."""
    backlog = filled((A, b"1"), (B, b"2"), (A, b"3"), (B, b"4"))
    assert not backlog.all_stamped

    backlog.confirm(backlog.take(2, 1000))
    batch = backlog.take(1, 1000)
    backlog.remove(str(B), b"4")
    assert not backlog.all_stamped
    backlog.confirm(batch)

    assert backlog.all_stamped
    assert Backlog().all_stamped


def test_what_was_submitted_and_not_removed_is_offered_again_to_a_new_holder():
    """Submitted is not stamped: after a takeover everything that is not confirmed is due, in its order."""
    backlog = filled((A, b"1"), (B, b"2"), (A, b"3"))
    backlog.take(2, 1000)
    backlog.remove(str(A), b"1")

    backlog.resubmit()

    assert [entry.tail for entry in backlog.take(10, 1000)] == [b"2", b"3"]
    assert backlog.take(10, 1000) == []


def test_removed_messages_are_not_submitted():
    """What another stamped meanwhile does not go out again."""
    backlog = filled((A, b"1"), (B, b"2"), (A, b"3"))
    backlog.remove(str(B), b"2")

    assert [entry.tail for entry in backlog.take(10, 1000)] == [b"1", b"3"]


def test_what_nobody_stamped_in_time_is_given_up():
    """Old messages are counted as lost and leave; younger ones stay."""
    backlog = filled((A, b"1"), (A, b"2"))
    backlog.remove(str(A), b"1")
    add(backlog, B, b"3", 10.0)

    assert backlog.expire(MAX_AGE) == 0
    add(backlog, B, b"4", 10.1)
    assert backlog.expire(MAX_AGE + 0.1) == 1
    assert left(backlog) == [(B, b"3"), (B, b"4")]
    assert backlog.expire(10.1 + MAX_AGE + 0.1) == 2
    assert left(backlog) == []


def test_memory_is_bounded(monkeypatch):
    """Beyond MAX_BYTES a message is refused; what is removed, expires or is given up makes room."""
    monkeypatch.setattr(module, "MAX_BYTES", 10 + 2 * module.ENTRY_BYTES)
    backlog = filled((A, b"12345"), (A, b"67890"))
    assert not add(backlog, A, b"x", 0.0)

    backlog.remove(str(A), b"12345")
    assert add(backlog, A, b"abcde", 20.0)
    assert not add(backlog, A, b"x", 20.0)

    assert backlog.expire(20.0) == 1
    assert add(backlog, A, b"x", 20.0)
    backlog.gap()
    assert backlog.give_up() == 2
    assert len(backlog) == 0
    assert add(backlog, A, b"0123456789", 20.0)
    assert not add(backlog, A, b"x", 20.0)


def test_what_was_read_before_a_gap_is_kept():
    """Its stamp may have been missed in the gap, or nobody has stamped it: it waits until that is known."""
    backlog = filled((A, b"1"), (B, b"2"), (A, b"3"))
    backlog.remove(str(A), b"1")

    backlog.gap()
    add(backlog, A, b"4", 0.0)

    add(backlog, Topic("closed", "later"), b"5", 0.0)

    assert backlog.kept == 2
    assert backlog.kept_topics() == [B, A]
    backlog.remove("closed:later", b"5")
    assert left(backlog) == [(B, b"2"), (A, b"3"), (A, b"4")]
    assert backlog.remove(str(A), b"3").kept
    assert not backlog.remove(str(A), b"4").kept
    assert backlog.kept == 1


def test_what_was_removed_is_not_kept_over_a_gap():
    """Wherever it stood: those behind it are kept."""
    backlog = filled((A, b"1"), (B, b"2"), (A, b"3"), (B, b"4"))
    backlog.remove(str(B), b"2")

    backlog.gap()

    assert backlog.kept == 3
    backlog.remove(str(B), b"4")
    assert backlog.kept_topics() == [A]
    assert backlog.give_up("closed:nobody") == 0
    assert backlog.give_up() == 2


def test_what_redis_has_confirmed_waits_for_its_stamp():
    """It is removed when the stamp arrives, and by nothing else but a gap; a stamp may be quicker than the answer."""
    backlog = filled((A, b"1"), (B, b"2"))
    batch = backlog.take(2, 1000)
    backlog.gap()
    add(backlog, A, b"3", 0.0)
    batch += backlog.take(1, 1000)
    backlog.remove(str(A), b"1")

    backlog.confirm(batch)

    assert left(backlog) == [(A, b"3")]
    assert len(backlog) == 1


def test_what_is_removed_holds_no_payload():
    """Entries are dropped from the front; one that is removed in the middle takes little room until then."""
    backlog = filled((A, b"1"), (B, b"2" * 1000))

    assert backlog.remove(str(B), b"2" * 1000).tail == b""


def test_what_redis_has_confirmed_is_not_kept_over_a_gap():
    """Its stamp came in the gap: to stamp it again would show it twice."""
    backlog = filled((A, b"1"), (B, b"2"), (A, b"3"))
    backlog.confirm(backlog.take(2, 1000))

    backlog.gap()

    assert left(backlog) == [(A, b"3")]


def test_what_redis_confirms_after_a_gap_is_kept_no_longer():
    """The answer to a batch may come when the subscription has gone."""
    backlog = filled((A, b"1"), (B, b"2"))
    batch = backlog.take(1, 1000)

    backlog.gap()
    backlog.confirm(batch)

    assert backlog.kept == 1
    assert left(backlog) == [(B, b"2")]


def test_what_is_kept_can_be_given_up():
    """That of one topic, or all of it; what came after the gap stays, and another gap keeps it as well."""
    backlog = filled((A, b"1"), (B, b"2"), (A, b"3"))
    backlog.gap()
    add(backlog, A, b"4", 0.0)

    assert backlog.give_up(str(A)) == 2
    assert left(backlog) == [(B, b"2"), (A, b"4")]
    assert backlog.give_up() == 1
    assert backlog.kept == 0
    assert left(backlog) == [(A, b"4")]

    backlog.gap()
    assert backlog.give_up() == 1
    assert len(backlog) == 0
    assert not backlog.knows(str(A))
