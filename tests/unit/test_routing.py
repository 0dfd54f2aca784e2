"""The way of a call across a cluster: notifications/broker/routing.py."""

import pytest
import redis

from notifications.address import read
from notifications.broker.connecting import GroupChannel
from notifications.broker.nodes import Nodes
from notifications.broker.routing import MAX_REDIRECTIONS, Route, channel_of
from notifications.broker.slots import Node, Range, SlotMap

A, B = Node("127.0.0.1", 1), Node("127.0.0.1", 2)


@pytest.fixture
def nodes(monkeypatch):
    """Two nodes, of which everything is known, and nobody is asked."""
    nodes = Nodes(read("redis+cluster://127.0.0.1:1"))
    nodes._map = SlotMap([Range(0, 99, A), Range(100, 16383, B)])
    nodes.asked = 0

    def ask():
        nodes.asked += 1

    monkeypatch.setattr(nodes, "_ask", ask)
    return nodes


def route(nodes, slot=7, *, again=False, within=60.0):
    return Route(nodes, slot, again=again, within=within)


def refused(text):
    return redis.ResponseError(text)


def test_a_call_goes_to_the_primary_of_its_slot(nodes):
    """Which every caller sees at once when it has moved."""
    assert route(nodes).at() == A
    assert route(nodes, 100).at() == B


def test_a_move_is_followed_and_remembered(nodes):
    """The call is sent again at once, and the next one goes there in the first place."""
    first = route(nodes)
    first.at()

    assert first.failed(refused("MOVED 7 127.0.0.1:2"), sent=True) == 0
    assert first.at() == B
    assert route(nodes).at() == B
    assert route(nodes, 8).at() == A


def test_asking_is_for_one_call_only(nodes):
    """The slot has not moved yet: whatever comes next is sent to the node that has it."""
    first = route(nodes)
    first.at()

    assert first.failed(refused("ASK 7 127.0.0.1:2"), sent=True) == 0
    assert (first.at(), first.asking) == (B, True)
    assert route(nodes).at() == A
    first.failed(refused("TRYAGAIN Multiple keys request"), sent=True)
    assert (first.at(), first.asking) == (A, False)


def test_keys_that_are_being_moved_are_waited_for(nodes):
    """The pauses grow, and end with the time of the call."""
    first = route(nodes)
    first.at()
    pauses = [first.failed(refused("TRYAGAIN Multiple keys request"), sent=True) for _ in range(5)]

    assert 0 < pauses[0] < pauses[-1]
    with pytest.raises(redis.ResponseError, match="TRYAGAIN"):
        route(nodes, within=0.0).failed(refused("TRYAGAIN Multiple keys request"), sent=True)


def test_nodes_that_send_a_call_to_and_fro_are_asked_more_slowly(nodes):
    """They will agree in a moment, and until then each answer costs them time."""
    first = route(nodes)
    pauses = []
    for number in range(MAX_REDIRECTIONS + 1):
        first.at()
        pauses.append(first.failed(refused(f"MOVED 7 127.0.0.1:{1 + number % 2}"), sent=True))

    assert pauses[:-1] == [0] * MAX_REDIRECTIONS
    assert pauses[-1] > 0


@pytest.mark.parametrize(("again", "sent"), [(False, False), (True, False), (True, True)])
def test_a_call_that_was_not_executed_or_may_be_executed_twice_is_sent_again(nodes, again, sent):
    """After what is known of the cluster has been learned again."""
    first = route(nodes, again=again)
    first.at()

    assert first.failed(redis.ConnectionError("refused"), sent=sent) > 0
    assert nodes.is_doubted(A)


def test_a_call_that_may_have_been_executed_is_not_sent_again(nodes):
    """Its caller is told."""
    with pytest.raises(redis.ConnectionError, match="reset"):
        route(nodes).failed(redis.ConnectionError("reset"), sent=True)


def test_a_node_that_takes_all_the_time_of_a_call_is_asked_about_for_the_next(nodes):
    """Otherwise each would wait for a node that was replaced long ago."""
    with pytest.raises(redis.TimeoutError):
        route(nodes, within=0.0).failed(redis.TimeoutError("hangs"), sent=True)
    assert nodes.asked == 1

    breaker = nodes.breaker(7)
    assert nodes.asked == 1
    breaker._open_until = float("inf")
    assert nodes.breaker(7).remaining()
    assert nodes.asked == 2
    assert nodes.breaker(100).remaining() == 0


def test_an_error_of_the_call_itself_is_raised(nodes):
    """Another node would say the same."""
    with pytest.raises(redis.ResponseError, match="syntax"):
        route(nodes).failed(refused("ERR syntax error"), sent=True)


def test_a_slot_that_no_node_has_is_an_error(nodes):
    """It is told like Redis's own."""
    nodes._map = SlotMap([])
    with pytest.raises(redis.exceptions.ClusterDownError):
        route(nodes).at()


def test_any_node_is_one_that_answers(nodes):
    """One that has just not answered comes last, and all doubt ends when none does."""
    nodes.doubt(A)
    assert {nodes.any() for _ in range(50)} == {B}
    nodes.doubt(B)
    assert nodes.any() == A
    nodes.trust(B)
    assert nodes.any() == B


def test_scripts_publish_where_the_subscribers_of_a_group_are(nodes):
    """On a node that is taking over a slot there are none yet: a listener forwards to them."""
    group = GroupChannel("asgi/{notifications:0}/group/user.1", "asgi/group/user.1")

    assert channel_of(nodes, asking=False)(group) == group
    assert channel_of(nodes, asking=True)(group) == ""
    nodes.is_sharded = False
    assert channel_of(nodes, asking=False)(group) == "asgi/group/user.1"
