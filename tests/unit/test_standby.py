"""What a listener remembers of a shard that another one leads."""

from collections import Counter
from itertools import count

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from notifications import Topic
from notifications.bridge import standby as module
from notifications.bridge.backlog import ENTRY_BYTES, MAX_AGE, Backlog, Entry
from notifications.bridge.standby import EARLY, Standby
from notifications.history.position import Position
from notifications.history.stamped import digest

A, B = b"closed:a", b"closed:b"


def acknowledgement(*messages, number=1, ids=None):
    """Return what the script tells of raw messages, each a channel and its data."""
    topics, digests = [channel.decode() for channel, _ in messages], [digest(*message) for message in messages]
    ids = ids or ["5-1"] * len(messages)
    return b"a" + msgspec.msgpack.encode(["token", number, len(messages), topics, ids, digests])


def entry_of(channel, data):
    return Entry(Topic.parse(channel.decode()), data, 0.0, digest(channel, data))


def read(standby, *messages):
    for each in messages:
        standby.add(*each, 0.0)


def acknowledge(standby, *messages):
    standby.acknowledge(acknowledgement(*messages), 0.0)


def messages_of(lefts):
    """Return channel and data of each, with the digest by which it will be recognised when it comes back."""
    assert [each.digest for each in lefts] == [digest(each.channel, each.data) for each in lefts]
    return [(each.channel, each.data) for each in lefts]


def left(standby, now=0.0):
    return messages_of(standby.take(now))


def test_what_nobody_has_acknowledged_is_left_in_its_order():
    """The listener that takes over stamps it."""
    standby = Standby()
    for message in [(A, b"1"), (B, b"1"), (A, b"2"), (B, b"2")]:
        standby.add(*message, 0.0)
    standby.acknowledge(acknowledgement((A, b"1"), (B, b"1")), 0.0)

    assert left(standby) == [(A, b"2"), (B, b"2")]
    assert left(standby) == []


def test_each_acknowledgement_strikes_one_of_equal_messages():
    """Two equal messages are two messages; one that came later was not meant."""
    standby = Standby()
    standby.acknowledge(acknowledgement((A, b"1")), 0.0)
    for _ in range(3):
        standby.add(A, b"1", 0.0)
    standby.acknowledge(acknowledgement((A, b"1")), 0.0)
    standby.settle(0.0)
    standby.acknowledge(acknowledgement((A, b"1")), 0.0)

    assert left(standby) == [(A, b"1")]


def test_in_a_cluster_an_acknowledgement_may_come_first():
    """It comes from another node; but it is meant for no message that comes much later."""
    standby = Standby(early=EARLY)
    for now in (0.0, 10.0):
        standby.acknowledge(acknowledgement((A, b"1")), now)
    for message in [(B, b"1"), (A, b"1"), (A, b"1")]:
        standby.add(*message, 10.0 + EARLY)

    assert left(standby, 11.0) == [(B, b"1"), (A, b"1")]


def test_in_a_cluster_each_acknowledgement_waits_for_one_message():
    """Whenever they are looked at: two equal messages were stamped twice, and a third one was not."""
    standby = Standby(early=EARLY)
    acknowledge(standby, (A, b"1"), (A, b"1"))
    standby.settle(0.0)
    for _ in range(3):
        standby.add(A, b"1", 0.0)
        standby.settle(0.0)

    assert left(standby) == [(A, b"1")]


def test_messages_before_an_acknowledged_one_of_their_topic_are_given_up():
    """The holder has not received them, and later they would be out of order."""
    standby = Standby()
    for message in [(B, b"1"), (A, b"1"), (A, b"2"), (A, b"3"), (A, b"4")]:
        standby.add(*message, 0.0)
    standby.acknowledge(acknowledgement((A, b"3"), (A, b"1")), 0.0)

    assert left(standby) == [(B, b"1"), (A, b"4")]
    assert messages_of(standby.overtaken) == [(A, b"2")]


def test_what_comes_in_its_order_is_struck_off_without_a_search(monkeypatch):
    """It is nearly always so: a listener that does not lead has little to do."""
    monkeypatch.delattr(Standby, "_settle_in_any_order")
    standby = Standby()
    for n in range(0, 6, 2):
        standby.add(A, b"%d" % n, 0.0)
        standby.add(B, b"%d" % n, 0.0)
        standby.acknowledge(acknowledgement((A, b"%d" % n), (B, b"%d" % n)), 0.0)
        standby.add(A, b"%d" % (n + 1), 0.0)
        standby.settle(0.0)
        standby.acknowledge(acknowledgement((A, b"%d" % (n + 1))), 0.0)

    assert left(standby) == []


def test_nothing_is_kept_for_ever():
    """What nobody has stamped in time is given up."""
    standby = Standby()
    for n in range(3):
        standby.add(A, b"%d" % n, float(n))

    standby.settle(MAX_AGE)
    assert standby.expired == []
    standby.settle(MAX_AGE + 0.1)
    standby.settle(MAX_AGE + 1.1)

    assert messages_of(standby.expired) == [(A, b"0"), (A, b"1")]
    assert left(standby, MAX_AGE + 1.1) == [(A, b"2")]


ONE, TWO = (A, b"1" * 100), (A, b"2" * 200)
EMPTY_AGAIN = {
    "new": lambda standby: None,
    "acknowledged": lambda standby: (read(standby, ONE, TWO), acknowledge(standby, ONE, TWO)),
    "in another order": lambda standby: (read(standby, ONE, TWO), acknowledge(standby, TWO, ONE)),
    "overtaken": lambda standby: (read(standby, ONE, TWO), acknowledge(standby, TWO)),
    "expired": lambda standby: (read(standby, ONE, TWO), standby.settle(MAX_AGE + 1)),
    "taken": lambda standby: (read(standby, ONE, TWO), standby.take(0.0)),
    "too large": lambda standby: read(standby, (A, b"1" * 3000)),
    "put back": lambda standby: (
        read(standby, TWO),
        standby.put_back([entry_of(*ONE)], 0.0),
        acknowledge(standby, ONE, TWO),
    ),
}


@pytest.mark.parametrize("how", EMPTY_AGAIN)
def test_memory_is_bounded_and_all_of_it_can_be_used_again(monkeypatch, how):
    """What does not fit is refused, and counted; what has gone, whichever way, has left its room."""
    monkeypatch.setattr(module, "MAX_BYTES", 4001)
    standby = Standby(share=2)
    EMPTY_AGAIN[how](standby)
    assert left(standby) == []
    standby.refused = 0

    messages = [(B, b"%0100d" % n) for n in range(6)]
    assert 4 * (100 + ENTRY_BYTES) == 2000
    for each in messages:
        standby.add(*each, 0.0)
        standby.settle(0.0)

    assert standby.refused == 2
    assert left(standby) == messages[:4]


def test_what_was_put_back_takes_its_room(monkeypatch):
    """As if it had been put aside."""
    monkeypatch.setattr(module, "MAX_BYTES", 2000)
    standby, messages = Standby(), [(B, b"%0100d" % n) for n in range(5)]
    standby.put_back([entry_of(*each) for each in messages[:3]], 0.0)
    read(standby, *messages[3:])

    standby.settle(0.0)

    assert (len(standby), standby.refused) == (4, 1)


def test_what_nobody_has_looked_at_is_bounded(monkeypatch):
    """Messages and what looks like acknowledgements count; the more is left, the rarer it is looked at again."""
    monkeypatch.setattr(module, "MAX_UNSETTLED", 1000)
    standby, message = Standby(), (A, b"1" * (500 - ENTRY_BYTES))
    read(standby, message, message)
    assert len(standby) == 0
    read(standby, message)
    assert len(standby) == 3

    read(standby, message, message)
    standby.acknowledge(b"x" * (3 * module.AGAIN), 0.0)
    assert len(standby) == 3
    standby.acknowledge(b"x", 0.0)
    assert len(standby) == 5


KNOWN = [digest(A, b"1")]


@pytest.mark.parametrize(
    "data",
    [
        b"a",
        b"a\xff",
        b"a\x91\x01",
        b"a" + msgspec.msgpack.encode(["t", 1, 0, ["closed:a"], [], KNOWN]),
        b"a" + msgspec.msgpack.encode(["t", 1, 0, ["closed:a", "closed:b"], ["5-1"], KNOWN]),
        b"a" + msgspec.msgpack.encode(["t", 1, 0, [], ["5-1"], KNOWN]),
        b"a" + msgspec.msgpack.encode(["t", 1, 0, ["closed:a"], ["5-1"], []]),
    ],
)
def test_what_only_begins_like_an_acknowledgement_says_nothing(data):
    """Any program may publish on the internal channel: nothing is struck off, and no id is known."""
    standby = Standby()
    standby.add(A, b"1", 0.0)
    standby.acknowledge(data, 0.0)

    assert left(standby) == [(A, b"1")]
    assert list(standby.ids) == []


def test_the_last_id_of_each_topic_is_known(monkeypatch):
    """After a gap it says where to begin to read; silent topics are forgotten some time."""
    monkeypatch.setattr(module, "MAX_TOPICS", 2)
    standby = Standby()
    standby.acknowledge(acknowledgement((A, b"1"), (B, b"1"), (A, b"2"), ids=["5-1", "", "5-2"]), 0.0)
    standby.settle(0.0)
    assert list(standby.ids) == [("closed:a", Position(5, 2))]

    for n in range(20):
        standby.acknowledge(acknowledgement((b"closed:%d" % n, b"1")), 0.0)
    standby.settle(0.0)
    assert 2 <= len(dict(standby.ids)) <= 5
    assert "closed:19" in dict(standby.ids)


def test_what_a_former_holder_has_left_comes_first():
    """It was read before; it needs no second check."""
    backlog, standby = Backlog(), Standby()
    for n in (1, 2):
        backlog.add(Topic("closed", "a"), b",%d" % n, 0.0, digest(A, b"%d" % n))
    standby.add(A, b"3", 0.0)
    standby.put_back(backlog.withdraw(), 0.0)
    standby.acknowledge(acknowledgement((A, b"1")), 0.0)

    first, second = standby.take(0.0)

    assert (len(backlog), backlog.take(10, 1000)) == (0, [])
    assert (first.data.tail, second.data) == (b",2", b"3")
    assert backlog.put_back(first.data)
    assert [entry.tail for entry in backlog.take(10, 1000)] == [b",2"]


MESSAGES = st.tuples(st.sampled_from([A, B]), st.sampled_from([b"1", b"2", b"3"]))
STEPS = st.lists(st.lists(MESSAGES | st.lists(MESSAGES, min_size=1, max_size=3), max_size=8), max_size=4)


@given(STEPS)
@example([[(A, b"1"), (B, b"1"), (A, b"2"), [(A, b"1")], [(A, b"2")]]])  # in the order of reading, and then not
@example([[(A, b"1"), [(A, b"1")], [(A, b"2")], (A, b"2")]])  # before it was read
@example([[(A, b"1"), [(B, b"1")], [(A, b"1")], (A, b"1"), [(A, b"1")]]])  # twice, each of another one
def test_whatever_is_acknowledged_when_it_is_as_if_looked_at_one_by_one(steps):
    """Each step, messages and lists of those that are acknowledged, is settled at once. A model is a list."""
    standby, wanted, overtaken = Standby(), [], []
    numbers = count()
    for step in steps:
        latest = dict.fromkeys([A, B], -1)
        for each in step:
            if isinstance(each, tuple):
                standby.add(*each, 0.0)
                wanted.append((next(numbers), each))
                continue
            standby.acknowledge(acknowledgement(*each), 0.0)
            for message in each:
                if found := next((item for item in wanted if item[1] == message), None):
                    wanted.remove(found)
                    latest[message[0]] = max(found[0], latest[message[0]])
        standby.settle(0.0)
        overtaken += [message for number, message in wanted if number < latest[message[0]]]
        wanted = [(number, message) for number, message in wanted if number > latest[message[0]]]

    assert left(standby) == [message for _, message in wanted]
    assert messages_of(standby.overtaken) == overtaken


@given(
    st.lists(MESSAGES, max_size=30),
    st.data(),
    st.booleans(),
)
def test_what_was_read_and_not_acknowledged_is_what_is_left(messages, data, cluster):
    """However messages and acknowledgements are mixed, and whenever they are looked at: a model is a counter."""
    stamped = data.draw(st.integers(0, len(messages)))
    standby = Standby(early=EARLY if cluster else 0.0)
    reads, acknowledged = list(messages), list(messages[:stamped])
    read = struck = 0
    while read < len(reads) or struck < len(acknowledged):
        may_strike = struck < len(acknowledged) and (cluster or struck < read)
        if may_strike and (read == len(reads) or data.draw(st.booleans())):
            upto = len(acknowledged) if cluster else min(read, len(acknowledged))
            end = data.draw(st.integers(struck + 1, upto))
            standby.acknowledge(acknowledgement(*acknowledged[struck:end]), 0.0)
            struck = end
        else:
            standby.add(*reads[read], 0.0)
            read += 1
        if data.draw(st.booleans()):
            standby.settle(0.0)

    found = left(standby)
    assert Counter(found) == Counter(messages) - Counter(messages[:stamped])
    if not cluster:
        assert found == messages[stamped:]
        assert not standby.overtaken
