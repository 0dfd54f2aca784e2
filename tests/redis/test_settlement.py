"""What becomes of raw messages that were read before the subscription had a gap."""

import pytest

from notifications import Topic
from notifications.bridge.backlog import Backlog
from notifications.bridge.lease import Lease
from notifications.bridge.settlement import Settlement
from notifications.history import get_store, stamped
from notifications.history.position import Position
from notifications.history.stamped import Stamped
from notifications.history.store import Raw

A, B = Topic("closed", "a"), Topic("closed", "b")


class Bridge:
    """A holder that stamps, and what another listener makes of it."""

    def __init__(self):
        self._lease = Lease()
        self._batches = 0
        self.backlog = Backlog()
        self.seen = {}

    async def stamp(self, *messages):
        """Stamp raw messages, each a topic and its number, and return their positions."""
        self._lease.subscribed()
        assert await self._lease.take()
        self._batches += 1
        batch = [Raw(topic, tail(n)) for topic, n in messages]
        kept, _ = await get_store().stamp_batch(self._lease.key, self._lease.token, self._batches, batch)
        assert kept == len(batch)
        return [(await get_store().look([topic]))[0].last for topic, _ in messages]

    def read(self, *messages):
        """Read raw messages, as every listener does."""
        for topic, n in messages:
            assert self.backlog.add(topic, tail(n), 0.0, n)

    def gap(self):
        self.backlog.gap()
        return Settlement(self.backlog, self.seen)

    @property
    def left(self):
        self.backlog.resubmit()
        return [(entry.topic, entry.tail) for entry in self.backlog.take(1000, 10**9)]


def tail(n):
    return stamped.tail(b'{"n":%d}' % n)


@pytest.fixture
def bridge(live_redis):
    return Bridge()


async def test_what_was_stamped_in_the_gap_is_removed(bridge):
    """The histories have it; what a dead holder left unstamped stays."""
    [bridge.seen[str(A)]] = await bridge.stamp((A, 0))
    bridge.read((A, 1), (B, 1), (A, 2), (B, 2))
    settlement = bridge.gap()
    await bridge.stamp((A, 1), (B, 1))

    await settlement.settle(1.0)
    assert settlement.given_up == 0

    assert bridge.left == [(A, tail(2)), (B, tail(2))]


async def test_a_history_that_nobody_can_read_costs_the_messages_of_its_topic(bridge, live_redis):
    """Somebody has written into it by hand; it shows nothing, and the other topics are not affected."""
    [bridge.seen[str(A)]] = await bridge.stamp((A, 0))
    bridge.read((A, 1), (B, 1), (A, 2), (B, 2))
    settlement = bridge.gap()
    last, _ = await bridge.stamp((A, 1), (B, 1))
    live_redis.xadd(A.history_key, {"by hand": b"\xff"}, id=str(Position(last.epoch, last.n + 1)))

    await settlement.settle(1.0)

    assert settlement.given_up == 2
    assert bridge.left == [(B, tail(2))]


async def test_an_equal_message_of_before_the_gap_removes_nothing(bridge):
    """Two equal messages are two messages: the one that was seen stamped before the gap is not the one that waits."""
    [bridge.seen[str(A)]] = await bridge.stamp((A, 1))
    bridge.read((A, 1))
    settlement = bridge.gap()

    await settlement.settle(1.0)
    assert settlement.given_up == 0
    assert bridge.left == [(A, tail(1))]

    bridge.read((A, 1))
    await bridge.stamp((A, 1))
    await bridge.gap().settle(1.0)
    assert bridge.left == [(A, tail(1))]


async def test_topics_that_were_never_seen_stamped_are_read_from_their_begin(bridge):
    """There is no position to begin behind: nothing of it had been stamped since we listen."""
    bridge.read((A, 1), (A, 2))
    settlement = bridge.gap()
    await bridge.stamp((A, 1))

    await settlement.settle(1.0)
    assert settlement.given_up == 0
    assert bridge.left == [(A, tail(2))]


@pytest.mark.parametrize("first", ["live", "history"])
async def test_each_frame_removes_once_whichever_way_it_comes(bridge, first):
    """A frame that is in the history and arrives live, too, removes one of two equal messages, not both."""
    [bridge.seen[str(A)]] = await bridge.stamp((A, 0))
    bridge.read((A, 1), (A, 1), (A, 1))
    settlement = bridge.gap()
    await bridge.stamp((A, 1))  # in the gap
    [position] = await bridge.stamp((A, 1))  # we have subscribed again
    live = Stamped("r", str(A), position, b"")

    if first == "live":
        assert settlement.arrived(live)
        bridge.backlog.remove(str(A), tail(1))
    await settlement.settle(1.0)
    assert settlement.given_up == 0
    if first == "history":
        assert not settlement.arrived(live)

    assert bridge.left == [(A, tail(1))]
    [later] = await bridge.stamp((A, 1))
    assert settlement.arrived(Stamped("r", str(A), later, b""))
    assert settlement.arrived(Stamped("u", str(A), None, b""))


async def test_long_histories_are_read_page_by_page(bridge, monkeypatch):
    """However much was stamped in the gap."""
    monkeypatch.setattr("notifications.history.redis.PAGE_BYTES", 100)
    [bridge.seen[str(A)]] = await bridge.stamp((A, 0))
    bridge.read(*((A, n) for n in range(1, 51)))
    settlement = bridge.gap()
    await bridge.stamp(*((A, n) for n in range(1, 50)))

    await settlement.settle(1.0)
    assert settlement.given_up == 0
    assert bridge.left == [(A, tail(50))]


async def test_what_a_trimmed_history_may_have_had_is_given_up(bridge, settings):
    """More was stamped in the gap than is kept: it may be among that, and twice would be worse than lost."""
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "HISTORY_SIZE": 5}
    [bridge.seen[str(A)]] = await bridge.stamp((A, 0))
    bridge.read((A, 1), (A, 20), (B, 1))
    settlement = bridge.gap()
    await bridge.stamp(*((A, n) for n in range(1, 10)))

    await settlement.settle(1.0)
    assert settlement.given_up == 2
    assert bridge.left == [(B, tail(1))]


async def test_what_no_history_keeps_is_given_up(bridge, settings):
    """Of a kind without a history nobody can tell what was forwarded in the gap."""
    topics = {**settings.NOTIFICATIONS["TOPICS"], "closed": {"HISTORY_SIZE": 0}}
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "TOPICS": topics}
    bridge.read((A, 1))

    await (settlement := bridge.gap()).settle(1.0)
    assert settlement.given_up == 1
    assert bridge.left == []


async def test_after_a_gap_that_is_longer_than_histories_live_all_is_given_up(bridge, settings):
    """What was stamped may have come and gone."""
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "HISTORY_TTL": 10}
    bridge.read((A, 1))

    await (settlement := bridge.gap()).settle(11.0)
    assert settlement.given_up == 1


async def test_an_epoch_that_began_in_the_gap_is_read_whole(bridge, live_redis):
    """The history had ended by age, or somebody deleted it; the count begins anew."""
    bridge.seen[str(A)] = Position(5, 7)
    bridge.read((A, 1), (A, 2))
    settlement = bridge.gap()
    await bridge.stamp((A, 1))

    await settlement.settle(1.0)
    assert settlement.given_up == 0
    assert bridge.left == [(A, tail(2))]


async def test_it_remembers_nothing_of_what_arrives_when_it_is_over(bridge):
    """A listener runs for months after its last gap, and topics come and go."""
    settlement = bridge.gap()
    for n in range(10):
        assert settlement.arrived(Stamped("r", f"closed:{n}", Position(5, 1), b""))
    await settlement.settle(1.0)

    for n in range(1000):
        assert settlement.arrived(Stamped("r", f"closed:{n}", Position(5, 2), b""))

    assert len(settlement._live) == 0
