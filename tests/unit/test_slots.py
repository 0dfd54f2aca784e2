"""Where a cluster has its keys, and what its nodes answer: notifications/broker/slots.py."""

import pytest
import redis
from django.test import override_settings
from hypothesis import example, given
from hypothesis import strategies as st
from redis.crc import key_slot
from redis.exceptions import (
    AskError,
    BusyLoadingError,
    ClusterDownError,
    MasterDownError,
    MovedError,
    ReadOnlyError,
    TryAgainError,
)

from notifications.broker.slots import SLOTS, Node, Range, SlotMap, Verdict, read_slots, redirection, slot_of
from notifications.layers import cluster_group_key
from notifications.topics import Topic

A, B, C = (Node(f"10.0.0.{number}", 7000 + number) for number in range(3))
REPLY = [
    [0, 5460, [b"10.0.0.0", 7000, b"id", []], [b"10.0.0.3", 7010, b"id", []]],
    [5461, 10922, [b"10.0.0.1", 7001, b"id", []]],
    [10923, 16383, [b"10.0.0.2", 7002, b"id", []]],
]


def test_the_answer_to_cluster_slots_is_read():
    """Each slot has its primary; replicas are known as well."""
    found = read_slots(REPLY, A)

    assert [found.primary_of(slot) for slot in (0, 5460, 5461, 10922, 10923, 16383)] == [A, A, B, B, C, C]
    assert found.primaries == (A, B, C)
    assert found.replicas == (Node("10.0.0.3", 7010),)
    assert found.covered == SLOTS


@pytest.mark.parametrize(
    ("node", "text"),
    [
        (Node("10.0.0.1", 7000), "10.0.0.1:7000"),
        (Node("redis-1.internal", 7000), "redis-1.internal:7000"),
        (Node("fe80::1", 7000), "[fe80::1]:7000"),
    ],
)
def test_a_node_is_named_as_a_url_names_it(node, text):
    """In logs and by the doctor; nobody has to guess which colon is the port's."""
    assert str(node) == text


def test_a_slot_that_no_node_has_is_nowhere():
    """A cluster may be incomplete, and nothing may be known of it yet."""
    found = SlotMap([Range(10, 20, A)])

    assert [found.primary_of(slot) for slot in (9, 10, 20, 21)] == [None, A, A, None]
    assert SlotMap([]).primary_of(7) is None


@pytest.mark.parametrize("host", [b"", None, b"?"])
def test_a_node_that_does_not_know_its_host_is_the_one_that_was_asked(host):
    """So a node answers that nobody has told its address, or whose announced host name is not set."""
    found = read_slots([[0, 1, [host, 7000, b"id"], [host, 7010, b"id"]]], Node("redis.internal", 1))

    assert found.primaries == (Node("redis.internal", 7000),)
    assert found.replicas == (Node("redis.internal", 7010),)


@pytest.mark.parametrize("reply", [[[0]], [[0, 1, []]], [[0, 1, None]], 7, [[0, 1, [b"h"]]]])
def test_what_is_no_answer_is_refused(reply):
    """Whatever another server says to the command is a ValueError, which callers expect."""
    with pytest.raises(ValueError) as refused:
        read_slots(reply, A)

    assert str(refused.value) == "it is not an answer to CLUSTER SLOTS"


@given(st.lists(st.tuples(st.integers(0, SLOTS - 1), st.sampled_from([A, B, C])), max_size=20))
@example([(slot, C) for slot in (0, 2222, 5460, 5461, 7777, 10922, 10923, 16383)])
def test_a_map_follows_all_moves(moves):
    """After any number of redirections each slot is where the last one has put it, and no other has moved."""
    found, where = read_slots(REPLY, A), {}
    for slot, node in moves:
        found, where[slot] = found.moved(slot, node), node

    assert {slot: found.primary_of(slot) for slot in where} == where
    assert found.covered == SLOTS
    others = [slot for slot in range(0, SLOTS, 1111) if slot not in where]
    assert [found.primary_of(slot) for slot in others] == [read_slots(REPLY, A).primary_of(slot) for slot in others]


REDIRECTIONS = [
    ("MOVED 3999 10.0.0.1:7001", (Verdict.MOVED, 3999, B)),
    ("ASK 3999 10.0.0.1:7001", (Verdict.ASK, 3999, B)),
    ("MOVED 3999 :7001", (Verdict.MOVED, 3999, Node("10.0.0.0", 7001))),
    ("MOVED 3999 ?:7001", (Verdict.MOVED, 3999, Node("10.0.0.0", 7001))),
    ("MOVED 3999 LINUX:7001", (Verdict.MOVED, 3999, Node("LINUX", 7001))),
    ("MOVED 3999 redis-1.internal:7001", (Verdict.MOVED, 3999, Node("redis-1.internal", 7001))),
    ("MOVED 3999 ::1:7001", (Verdict.MOVED, 3999, Node("::1", 7001))),
    ("MOVED 3999 [::1]:7001", (Verdict.MOVED, 3999, Node("::1", 7001))),
    ("TRYAGAIN Multiple keys request during rehashing of slot", (Verdict.TRY_AGAIN, -1, None)),
    ("CLUSTERDOWN Hash slot not served", (Verdict.AWAY, -1, None)),
    ("MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.", (Verdict.AWAY, -1, None)),
    ("LOADING Redis is loading the dataset in memory", (Verdict.AWAY, -1, None)),
    ("READONLY You can't write against a read only replica.", (Verdict.AWAY, -1, None)),
]


@pytest.mark.parametrize(("text", "wanted"), REDIRECTIONS)
def test_a_redirection_is_understood(text, wanted):
    """As hiredis hands it over; the node that was asked stands in for a host that is missing."""
    assert redirection(redis.ResponseError(text), A) == wanted


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (MovedError("3999 10.0.0.1:7001"), Verdict.MOVED),
        (AskError("3999 10.0.0.1:7001"), Verdict.ASK),
        (TryAgainError("Multiple keys request during rehashing of slot"), Verdict.TRY_AGAIN),
        (ClusterDownError("The cluster is down"), Verdict.AWAY),
        (MasterDownError("Link with MASTER is down"), Verdict.AWAY),
        (BusyLoadingError("Redis is loading the dataset in memory"), Verdict.AWAY),
        (ReadOnlyError("You can't write against a read only replica."), Verdict.AWAY),
    ],
)
def test_redis_pys_own_errors_are_understood(error, verdict):
    """They have lost the first word of their text."""
    assert redirection(error, A).verdict is verdict


@pytest.mark.parametrize("text", ["ERR syntax error", "NOSCRIPT No matching script.", "WRONGTYPE x", "ERR MOVED 1 a:1"])
def test_another_error_is_no_redirection(text):
    """It is about the call, and no other node would say anything else."""
    assert redirection(redis.ResponseError(text), A) is None


@pytest.mark.parametrize(
    ("key", "slot"), [("123456789", 12739), ("{user}.7", 5474), ("{äö}.7", key_slot("äö".encode()))]
)
def test_a_key_is_in_the_slot_that_redis_says(key, slot):
    """Text or bytes; the first is the example of Redis's specification."""
    assert slot_of(key) == slot_of(key.encode()) == slot


@override_settings(NOTIFICATIONS={"REDIS_URL": "redis+cluster://a:1", "SHARDS": 16})
@given(st.text(min_size=1, max_size=30).filter(lambda text: text.strip()))
def test_all_names_of_a_topic_are_in_the_slot_of_its_shard(id_):
    """Its keys and the channel of its group: one script may touch them all."""
    topic = Topic("user", id_)
    tag = f"notifications:{topic.shard}"

    assert slot_of(topic.history_key) == key_slot(tag.encode())
    assert slot_of(cluster_group_key("asgi", topic.group)) == key_slot(tag.encode())
