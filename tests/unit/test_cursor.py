"""Where a socket begins, what it does with a live message, and what it makes of a page of history."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from notifications.delivery.cursor import Cursor, Start, State, Verdict, start
from notifications.history.position import Frame, Page, Position, Where
from notifications.metrics import tally
from notifications.topics import Topic
from tests.cases import cases

TTL = 100.0
STARTED = 500_000
NOW = 1_000_000
"""Redis's clock in ms; that of the event loop begins at 0."""
E = 950_000
P = Position


def where(first=None, last=None, *, run="a", started=STARTED, now=NOW, ttl=TTL, whole=True):
    return Where(run, started, now, first, last, ttl if last else 0.0, whole)


def page(*positions, first=None, last=None, run="a", now=NOW, whole=True, ttl=TTL):
    """A page of frames at these positions, which are all of the history but what ``first`` and ``last`` say."""
    frames = [Frame(position, str(position)) for position in positions]
    first, last = first or next(iter(positions), None), last or next(reversed(positions), None)
    return Page(run, now, first, last, whole, frames, ttl if last else 0.0)


def kept(epoch, first, last):
    return [P(epoch, n) for n in range(first, last + 1)]


def cursor_at(position, *, last=None, now=0.0, latest_only=False, **fields):
    """A cursor that is level at ``position``, or has everything up to it of a history that goes on to ``last``."""
    cursor = Cursor(Topic("closed", "7"), TTL, latest_only=latest_only)
    end = None if position.n == 0 and last is None else last or position
    cursor.begin(position, where(end and P(end.epoch, 1), end, **fields), now)
    cursor.go_live()
    return cursor


# Where a subscription begins.


BEGINNINGS = [
    # Without a position nothing of the past; its latest with "last", and where that is the whole truth.
    (where(P(E, 1), P(E, 5)), None, False, Start(None, P(E, 5))),
    (where(P(E, 1), P(E, 5)), None, True, Start(None, P(E, 4))),
    (where(), None, True, Start(None, P(NOW, 0))),
    (where(P(E, 1), P(E, 5)), "last", False, Start(None, P(E, 4))),
    (where(), "last", True, Start(None, P(NOW, 0))),
    # All that was missed is there.
    (where(P(E, 1), P(E, 5)), P(E, 2), False, Start(True, P(E, 2))),
    (where(P(E, 1), P(E, 5)), P(E, 5), False, Start(True, P(E, 5))),
    (where(P(E, 1), P(E, 5)), P(E, 0), False, Start(True, P(E, 0))),
    (where(P(E, 3), P(E, 5)), P(E, 2), False, Start(True, P(E, 2))),
    (where(P(E - 9, 7), P(E, 5)), P(E, 0), False, Start(True, P(E, 0))),
    # Trimmed, unknown, of another epoch.
    (where(P(E, 3), P(E, 5)), P(E, 1), False, Start(False, P(E, 5))),
    (where(P(E, 1), P(E, 5)), P(E, 6), False, Start(False, P(E, 5))),
    (where(P(E, 1), P(E, 5)), P(E - 1, 5), False, Start(False, P(E, 5))),
    (where(P(E, 1), P(E, 5)), P(10**18, 10**18), False, Start(False, P(E, 5))),
    (where(P(E, 1), P(E, 5)), P(E - 1, 5), True, Start(False, P(E, 4))),
    (where(P(E, 1), P(E, 5)), P(E, 6), True, Start(False, P(E, 4))),
    (where(), P(E, 5), True, Start(False, P(NOW, 0))),
    # Of a state the latest is all, whether or not what it has replaced is still kept.
    (where(P(E, 1), P(E, 5)), P(E, 2), True, Start(True, P(E, 4))),
    (where(P(E, 1), P(E, 5)), P(E, 4), True, Start(True, P(E, 4))),
    (where(P(E, 1), P(E, 5)), P(E, 5), True, Start(True, P(E, 5))),
    (where(P(E, 3), P(E, 5)), P(E, 1), True, Start(True, P(E, 4))),
    (where(P(E, 3), P(E, 5)), P(E - 7, 0), True, Start(True, P(E, 4))),
    (where(P(E, 1), P(E, 1)), P(E - 7, 0), True, Start(True, P(E, 0))),
    (where(), P(NOW, 0), True, Start(True, P(NOW, 0))),
    # Unless the browser may have had a later one that this Redis has lost.
    (where(P(E, 1), P(E, 5), whole=False), P(E, 3), True, Start(False, P(E, 4))),
    (where(P(E, 1), P(E, 5)), P(E + 7, 0), True, Start(False, P(E, 4))),
    # A Redis restarted from a snapshot does not know what it lost behind it.
    (where(P(E, 1), P(E, 5), whole=False), P(E, 5), False, Start(False, P(E, 5))),
    # The topic was empty, and nothing can have come and gone.
    (where(), P(NOW - 99_999, 0), False, Start(True, P(NOW, 0))),
    (where(), P(NOW, 0), False, Start(True, P(NOW, 0))),
    (where(started=NOW - 10), P(NOW - 10, 0), False, Start(True, P(NOW, 0))),
    (where(P(E, 1), P(E, 5)), P(E - 7, 0), False, Start(True, P(E, 0))),
    # It can have: expired meanwhile, lost in a restart, trimmed, from before the epoch, or of another's clock.
    (where(), P(NOW - 100_000, 0), False, Start(False, P(NOW, 0))),
    (where(started=NOW - 10), P(NOW - 11, 0), False, Start(False, P(NOW, 0))),
    (where(P(E, 2), P(E, 5)), P(E - 7, 0), False, Start(False, P(E, 5))),
    (where(P(E, 1), P(E, 5)), P(E + 7, 0), False, Start(False, P(E, 5))),
    (where(), P(NOW + 1, 0), False, Start(False, P(NOW, 0))),
    (where(P(E - 9, 1), P(E, 5)), P(E - 20, 0), False, Start(False, P(E, 5))),
]


def test_recovered_is_true_only_when_it_is_proven():
    """A subscription begins where nothing is missing, or the browser is told that something may be."""
    begun = [(found, since, state, start(found, since, TTL, state=state)) for found, since, state, _ in BEGINNINGS]

    assert begun == BEGINNINGS


# Live messages.


JOINING, LIVE, CATCHING_UP, LEFT = State


def cursor_in(state):
    """A cursor at 3 that is in some state."""
    cursor = Cursor(Topic("closed", "7"), TTL)
    cursor.begin(P(E, 3), where(P(E, 1), P(E, 3)), 0.0)
    {JOINING: lambda: None, LIVE: cursor.go_live, CATCHING_UP: cursor.catch_up, LEFT: cursor.leave}[state]()
    assert cursor.state is state
    return cursor


@pytest.mark.parametrize("state", [JOINING, CATCHING_UP])
def test_what_arrives_while_a_socket_is_brought_up_to_date_is_missed(state):
    """Live messages are dropped, because the history has them, and their number says how far it has to be read."""
    cursor = cursor_in(state)

    assert cursor.offer(E, 4, "", 1.0) is Verdict.DROP

    assert cursor.missed
    assert cursor.position == P(E, 3)
    assert cursor.latest == P(E, 4)


@cases(
    ("state", "verdict"),
    [(JOINING, Verdict.DROP), (LIVE, Verdict.SEND), (CATCHING_UP, Verdict.HOLD), (LEFT, Verdict.DROP)],
)
def test_what_has_no_id_waits_while_the_history_is_read(state, verdict):
    """No history has it: it keeps its place, unless the browser does not know the topic, or no more."""
    assert cursor_in(state).offer_without_id() is verdict


@cases(
    ("state", "after"),
    [
        (JOINING, {"go_live": LIVE, "catch_up": CATCHING_UP, "leave": LEFT}),
        (LIVE, {"go_live": LIVE, "catch_up": CATCHING_UP, "leave": LEFT}),
        (CATCHING_UP, {"go_live": LIVE, "catch_up": CATCHING_UP, "leave": LEFT}),
        (LEFT, {"go_live": LEFT, "catch_up": LEFT, "leave": LEFT}),
    ],
)
def test_one_state_follows_another(state, after):
    """As the diagram says; a topic that was left stays left, whatever was still under way for it."""
    for event, wanted in after.items():
        cursor = cursor_in(state)
        getattr(cursor, event)()

        assert cursor.state is wanted
        assert cursor.has_left is (wanted is LEFT)


numbers = st.integers(1, 12)


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("offer"), numbers),
            st.tuples(st.just("read"), numbers),
            st.tuples(st.sampled_from(["go_live", "catch_up", "leave"]), st.none()),
        ),
        max_size=40,
    )
)
def test_in_whatever_states_it_has_been_a_cursor_sends_all_in_order(steps):
    """Live and from the history each message is sent once, and behind the one before; after ``leave`` none."""
    cursor = cursor_at(P(E, 0))
    published, sent, left = 0, [], False
    for step, number in steps:
        if step == "offer":
            published = max(published, number)
            if cursor.offer(E, number, "a", 1.0) is Verdict.SEND:
                assert cursor.state is LIVE
                sent.append(number)
        elif step == "read" and cursor.state is CATCHING_UP:
            before = cursor.begin_reading()
            last = max(published, before.n)
            read = page(*kept(E, before.n + 1, last)[:3], first=P(E, 1), last=P(E, last)) if last else page()
            told, frames = cursor.follow(read, 1.0)
            assert not told
            for frame in frames:
                cursor.move(frame.position, 1.0)
                sent.append(frame.position.n)
            assert cursor.has_all(read, before) == (cursor.n == last)
        elif step not in ("offer", "read"):
            left = left or step == "leave"
            getattr(cursor, step)()
        assert cursor.has_left is left

    assert sent == list(range(1, len(sent) + 1))
    assert cursor.n == len(sent)


@cases(
    ("n", "verdict", "position"),
    [
        (1, Verdict.DROP, P(E, 3)),
        (3, Verdict.DROP, P(E, 3)),
        (4, Verdict.SEND, P(E, 4)),
        (5, Verdict.BEHIND, P(E, 3)),
    ],
)
def test_next_duplicate_and_hole_are_told_apart(n, verdict, position):
    """Only the next message is sent; what was had is dropped, and a hole is read from the history."""
    cursor = cursor_at(P(E, 3))

    assert cursor.offer(E, n, "", 1.0) is verdict
    assert cursor.position == position


@pytest.mark.parametrize("position", [P(E, 3), P(E, 0)])
@pytest.mark.parametrize("epoch", [E - 1, E + 1])
def test_another_epoch_is_looked_up(position, epoch):
    """That nothing was lost before a new count, also of a topic that was empty, only Redis can say."""
    assert cursor_at(position).offer(epoch, 1, "", 1.0) is Verdict.BEHIND


def test_what_a_socket_has_had_is_counted():
    """A duplicate, and nothing else."""
    cursor, before = cursor_at(P(E, 3)), tally.duplicates
    for n in (3, 4, 6, 2):
        cursor.offer(E, n, "a", 1.0)

    assert tally.duplicates == before + 2


@cases(
    ("position", "epoch", "n", "run", "verdict"),
    [
        (P(NOW, 0), NOW + 5000, 1, "a", Verdict.SEND),
        (P(NOW, 0), NOW + 99_999, 1, "a", Verdict.SEND),
        (P(NOW, 0), NOW + 100_000, 1, "a", Verdict.BEHIND),
        (P(NOW, 0), NOW + 5000, 1, "b", Verdict.BEHIND),
        (P(NOW, 0), NOW + 5000, 1, "", Verdict.BEHIND),
        (P(NOW, 0), NOW + 5000, 2, "a", Verdict.BEHIND),
        (P(NOW, 0), NOW - 5000, 1, "a", Verdict.BEHIND),
        (P(E, 1), NOW + 5000, 1, "a", Verdict.BEHIND),
        (P(E, 3), NOW + 5000, 1, "a", Verdict.BEHIND),
    ],
)
def test_the_first_message_of_an_empty_topic_is_sent_at_once(position, epoch, n, run, verdict):
    """Where nothing can have come and gone before it, nobody has to ask: the server is the same, and the time short."""
    cursor = cursor_at(position)

    assert cursor.offer(epoch, n, run, 5.0) is verdict

    assert cursor.position == (P(epoch, 1) if verdict is Verdict.SEND else position)
    assert cursor.heard == (5.0 if verdict is Verdict.SEND else 0.0)


def test_nothing_is_missed_when_the_history_brought_it():
    """What was skipped and then sent from the history is not missed any more."""
    cursor = cursor_at(P(E, 3))
    for n in (5, 7, 4):
        cursor.let_go(E, n)
    assert cursor.latest == P(E, 7)

    cursor.move(P(E, 5), 1.0)
    assert cursor.missed
    cursor.move(P(E, 8), 1.0)
    assert not cursor.missed
    assert cursor.latest == P(E, 8)


def test_a_topic_without_a_history_needs_no_position():
    """Nobody looks for where it begins; its messages have no id, and nothing of it is ever missed."""
    cursor = Cursor(Topic("closed", "7"), TTL)
    cursor.go_live()

    assert cursor.topic == Topic("closed", "7")
    assert cursor.position == cursor.latest == P(0, 0)
    assert not cursor.missed
    assert not cursor.lacks
    assert cursor.offer_without_id() is Verdict.SEND


# Pages.


def test_what_follows_is_sent():
    """The frames after the position are handed out; the caller confirms each, so an interruption repeats none."""
    cursor = cursor_at(P(E, 3))

    told, frames = cursor.follow(page(*kept(E, 4, 6), first=P(E, 1)), 1.0)

    assert not told
    assert [frame.position.n for frame in frames] == [4, 5, 6]
    assert cursor.position == P(E, 3)


@cases("found", [page(), page(last=P(E, 3)), page(last=P(E, 2))])
def test_a_history_without_news_changes_nothing(found):
    """An empty history, one at the socket's position, and one that the message overtook bring nothing."""
    cursor = cursor_at(P(E, 3))

    assert cursor.follow(found, 1.0) == (False, [])
    assert cursor.position == P(E, 3)


def test_what_was_trimmed_is_told_and_the_rest_follows():
    """The browser is told, and is set to before the first message that can still be had."""
    cursor = cursor_at(P(E, 3))

    assert cursor.follow(page(*kept(E, 7, 9)), 1.0) == (True, [])

    assert cursor.position == P(E, 6)
    assert cursor.heard == 1.0
    told, frames = cursor.follow(page(*kept(E, 7, 9)), 1.0)
    assert not told
    assert [frame.position.n for frame in frames] == [7, 8, 9]


def test_a_hole_in_a_history_is_told():
    """Entries that were deleted by hand end what can be sent; the hole is told when it is reached."""
    cursor = cursor_at(P(E, 3))
    found = page(P(E, 4), P(E, 6), first=P(E, 1))

    told, frames = cursor.follow(found, 1.0)
    assert (told, [frame.position.n for frame in frames]) == (False, [4])

    cursor.move(P(E, 4), 1.0)
    assert cursor.follow(page(P(E, 6), first=P(E, 1)), 1.0) == (True, [])
    assert cursor.position == P(E, 5)


NEXT = E + 500_000
LATER = TTL + 1
"""Seconds after which a history has ended by age."""


def aged(cursor):
    """Compare a cursor with its history until that has ended by age; return Redis's time."""
    assert not cursor.compare(where(P(E, 1), cursor.position, now=NOW + 50_000), 50.0)
    assert not cursor.compare(where(now=NOW + 101_000), LATER)
    return NOW + 101_000


def test_an_epoch_that_ended_by_age_is_followed_silently():
    """A socket that was level all the time misses nothing when the count begins anew after a long silence."""
    cursor = cursor_at(P(E, 3))
    now = aged(cursor)

    told, frames = cursor.follow(page(P(NEXT, 1), P(NEXT, 2), now=now + 50_000), LATER + 50)

    assert not told
    assert [frame.position for frame in frames] == [P(NEXT, 1), P(NEXT, 2)]


@cases(
    ("changes", "after"),
    [
        ({"run": "b"}, 50),
        ({"first": P(NEXT - 1, 7)}, 50),
        ({"now": NOW + 101_000 + 100_000}, 100),
    ],
)
def test_an_epoch_is_told_when_something_may_have_been_lost(changes, after):
    """Another server may have lost what it was told; what lives for a life-time can come and go in one."""
    cursor = cursor_at(P(E, 3))
    now = aged(cursor)

    told, _ = cursor.follow(page(P(NEXT, 1), **{"now": now + 50_000, **changes}), LATER + after)

    assert told
    assert cursor.position == P(NEXT, 0)


def test_what_comes_again_takes_no_proof_away():
    """The last message that was sent may arrive once more while a socket catches up: it has everything all the same."""
    cursor = cursor_at(P(E, 3))
    cursor.catch_up()
    assert cursor.offer(E, 3, "a", 1.0) is Verdict.DROP
    assert not cursor.missed
    cursor.go_live()

    assert not cursor.follow(page(P(NEXT, 1), now=NOW + 99_999), LATER)[0]


@pytest.mark.parametrize("vanishes", [True, False])
def test_a_history_lives_on_with_each_message(vanishes):
    """It ends a life-time after its last message, and not after the one with which a socket began."""
    cursor = cursor_at(P(E, 3))
    assert cursor.offer(E, 4, "a", 90.0) is Verdict.SEND
    assert not cursor.compare(where(P(E, 1), P(E, 4), now=NOW + 91_000), 91.0)
    if vanishes:
        assert not cursor.compare(where(now=NOW + 120_000), 120.0)

    assert cursor.follow(page(P(NEXT, 1), now=NOW + 150_000), 200.0 if vanishes else 150.0)[0]


def test_the_age_of_a_history_is_known_from_the_start():
    """One that will end in ten seconds had its last message long ago: that it is gone by then is no loss."""
    cursor = cursor_at(P(E, 3), ttl=10.0, now=1000.0)

    assert cursor.heard == 910.0
    assert cursor_at(P(NOW, 0), now=1000.0).heard == 1000.0
    assert not cursor.compare(where(now=NOW + 10_001), 1010.0)
    assert not cursor.follow(page(P(NEXT, 1), now=NOW + 20_000), 1020.0)[0]


def test_an_epoch_that_ended_too_early_is_told():
    """A history that is gone before its time was lost, and perhaps messages with it."""
    cursor = cursor_at(P(E, 3))

    assert cursor.follow(page(P(NEXT, 1), now=NOW + 50_000), 50.0)[0]


@cases(("late", "told"), [(-0.9, False), (-1.0, False), (-1.1, True)])
def test_two_clocks_may_disagree_by_a_moment_on_an_age(late, told):
    """By our clock a history may end up to ``EXPIRY_TOLERANCE`` before its time, and no earlier: it ended by age."""
    for found_before_the_next_message in (True, False):
        cursor = cursor_at(P(E, 3))
        assert not cursor.compare(where(P(E, 1), P(E, 3), now=NOW + 50_000), 50.0)
        if found_before_the_next_message:
            assert not cursor.compare(where(now=NOW + 100_001), TTL + late)
        now = TTL + (20 if found_before_the_next_message else late)

        assert cursor.follow(page(P(NEXT, 1), now=NOW + 120_000), now)[0] is told


@pytest.mark.parametrize("sent", [False, True])
def test_what_was_published_and_not_sent_is_no_proof_of_having_everything(sent):
    """A history may end by age, and with it a message that was let go: the next epoch is told, unless it was sent."""
    cursor = cursor_at(P(E, 3))
    cursor.let_go(E, 4)
    if sent:
        cursor.move(P(E, 4), 1.0)
        assert not cursor.compare(where(P(E, 1), P(E, 4), now=NOW + 1000), 1.0)
    cursor.let_go(NEXT, 1)

    told, _ = cursor.follow(page(P(NEXT, 1), P(NEXT, 2), now=NOW + 99_999), LATER)

    assert told is not sent


def test_a_history_that_vanished_is_remembered():
    """Also when the next message comes so late that the history could have ended by age."""
    cursor = cursor_at(P(E, 3))
    cursor.compare(where(now=NOW + 10_000), 10.0)
    for seconds in range(50, 200, 50):
        cursor.compare(where(now=NOW + seconds * 1000), float(seconds))

    assert cursor.follow(page(P(NEXT, 1), now=NOW + 160_000), 160.0)[0]


def test_a_snapshot_proves_nothing():
    """A restarted Redis whose history ends where the socket is may have had more, which is lost."""
    cursor = cursor_at(P(E, 3))
    cursor.compare(where(P(E, 1), P(E, 3), run="b", now=NOW + 50_000, whole=False), 50.0)
    cursor.compare(where(run="b", now=NOW + 101_000), LATER)

    assert cursor.follow(page(P(NEXT, 1), run="b", now=NOW + 110_000), LATER + 9)[0]


@pytest.mark.parametrize(("run", "told"), [("a", False), ("b", True)])
def test_the_first_message_of_an_empty_topic_is_followed_on_the_same_server_only(run, told):
    """A restarted server may have lost one before it."""
    cursor = cursor_at(P(NOW, 0))

    assert cursor.follow(page(P(NOW + 5000, 1), run=run, now=NOW + 5001), 5.0)[0] is told


def test_a_position_before_the_first_message_is_no_empty_topic():
    """A browser that had yet to be sent what was lost is told so."""
    cursor = cursor_at(P(E, 0), last=P(E, 2))

    assert cursor.follow(page(P(NEXT, 1), now=NOW + 1000), 1.0)[0]


def test_an_epoch_behind_a_later_one_is_read_again():
    """With the clock set back the new epoch is smaller, and the page after the old position cannot have it."""
    cursor = cursor_at(P(E, 3))
    now = aged(cursor)

    assert cursor.follow(page(first=P(E - 1, 1), last=P(E - 1, 2), now=now), LATER) == (False, [])

    assert cursor.position == P(E - 1, 0)
    assert len(cursor.follow(page(*kept(E - 1, 1, 2), now=now), LATER)[1]) == 2


def test_an_earlier_epoch_of_which_nothing_is_known_is_told():
    """With the clock set back, and no proof that nothing was missed, the latest message is what can still be had."""
    cursor = cursor_at(P(E, 3))

    assert cursor.follow(page(first=P(E - 1, 1), last=P(E - 1, 7)), 1.0) == (True, [])

    assert cursor.position == P(E - 1, 6)


def test_what_was_seen_after_a_page_was_read_is_not_lost():
    """A page that ends with the epoch before says nothing of a message of the next one."""
    cursor = cursor_at(P(E, 3))
    cursor.let_go(NEXT, 9)

    assert cursor.follow(page(first=P(E, 1), last=P(E, 3)), 1.0) == (False, [])

    assert cursor.position == P(E, 3)
    assert cursor.missed
    assert not cursor.compare(where(P(E, 1), P(E, 3)), 1.0), "there is nothing to be read yet"


@pytest.mark.parametrize("seen", [P(E, 5), P(NEXT, 1)])
def test_what_was_seen_and_is_in_no_history_is_told(seen):
    """A live message showed a hole, and then Redis lost it all: the browser does not wait for the next message."""
    cursor = cursor_at(P(E, 3))
    cursor.offer(*seen, "", 1.0)

    assert cursor.follow(page(), 1.0) == (True, [])

    assert cursor.position == seen
    assert cursor.heard == 1.0
    assert cursor.follow(page(), 1.0) == (False, [])


def test_what_an_older_snapshot_lacks_is_told():
    """A message of this epoch was seen behind the end of what a restarted Redis has."""
    cursor = cursor_at(P(E, 3))
    cursor.let_go(E, 6)
    assert cursor.lacks
    cursor.move(P(E, 4), 1.0)

    assert cursor.follow(page(first=P(E, 1), last=P(E, 4)), 1.0) == (True, [])
    assert cursor.position == P(E, 6)


@pytest.mark.parametrize("stale", [P(E, 2), P(E - 5, 9)])
def test_what_is_forwarded_again_is_no_evidence(stale):
    """After a takeover old frames come again, also of earlier epochs; they do not set a socket back."""
    cursor = cursor_at(P(E, 3))
    cursor.offer(*stale, "", 1.0)
    cursor.let_go(*stale)

    assert cursor.follow(page(), 1.0) == (False, [])
    assert cursor.position == P(E, 3)


@cases(
    ("found", "before", "has_all"),
    [
        (page(*kept(E, 2, 3), first=P(E, 1)), P(E, 1), True),
        (page(*kept(E, 2, 3), first=P(E, 1), last=P(E, 4)), P(E, 1), False),
        (page(first=P(E, 1), last=P(E, 2)), P(E, 3), True),
        (page(), P(E, 2), True),
        (page(), P(E, 3), True),
    ],
)
def test_reading_ends_at_the_end_of_the_history(found, before, has_all):
    """When a page brought the last message, or nothing; and what was let go meanwhile is read as well."""
    cursor = cursor_at(P(E, 3))
    assert cursor.has_all(found, before) is has_all

    cursor.catch_up()
    cursor.offer(E, 4, "a", 1.0)
    assert not cursor.has_all(found, before)
    assert cursor.begin_reading() == P(E, 3)
    assert not cursor.has_all(found, before), "it is known that there is one more"


# States.


def test_what_a_browser_that_comes_back_to_a_state_need_not_be_sent_is_counted():
    """The messages between its position and the latest; none if it gets all or is told that something is missing."""
    counted = []
    for since, state in [(P(E, 2), True), (P(E - 7, 0), True), (P(E, 5), True), (P(E, 2), False), (P(E - 7, 3), True)]:
        before = tally.replaced
        start(where(P(E, 1), P(E, 5)), since, TTL, state=state)
        counted.append(tally.replaced - before)

    assert counted == [2, 4, 0, 0, 0]


def test_a_state_goes_on_with_whatever_is_newer():
    """A live message need not follow the one before: what is between is counted, and not sent when it comes late."""
    cursor, before = cursor_at(P(E, 3), latest_only=True), tally.replaced

    verdicts = [cursor.offer(E, n, "a", 1.0) for n in (4, 7, 5, 7, 6, 8)]

    assert verdicts == [Verdict.SEND, Verdict.SEND, Verdict.DROP, Verdict.DROP, Verdict.DROP, Verdict.SEND]
    assert cursor.position == P(E, 8)
    assert cursor.heard == 1.0
    assert tally.replaced == before + 2

    assert cursor.offer(E, 12, "a", 2.0) is Verdict.SEND
    assert cursor.heard == 2.0


def test_a_topic_is_no_state_unless_its_kind_says_so():
    """Then each message counts, and what is missing is read before the next is sent."""
    assert cursor_in(LIVE).offer(E, 6, "a", 1.0) is Verdict.BEHIND


@pytest.mark.parametrize("seen", [P(E + 1, 1), P(E + 1, 4), P(E - 1, 9)])
def test_a_state_that_begins_anew_is_looked_up(seen):
    """A later message of another epoch proves nothing of what came before it."""
    assert cursor_at(P(E, 3), latest_only=True).offer(*seen, "b", 1.0) is Verdict.BEHIND


def test_of_a_state_the_latest_message_is_sent():
    """A socket that missed many is sent the last of them, though the history has lost what follows its position."""
    cursor, before = cursor_at(P(E, 3), latest_only=True), tally.replaced
    for n in (5, 30):
        cursor.let_go(E, n)
    begin = cursor.begin_reading()
    found = page(P(E, 40), first=P(E, 21))

    told, [frame] = cursor.follow(found, 1.0)
    cursor.move(frame.position, 1.0)

    assert not told
    assert cursor.position == P(E, 40)
    assert cursor.has_all(found, begin)
    assert tally.replaced == before + 36
    assert cursor.follow(found, 2.0) == (False, [])


def test_what_came_while_a_state_was_joined_is_sent():
    """A browser that has just subscribed has not fallen behind; only what the history has dropped meanwhile is left."""
    cursor, before = Cursor(Topic("closed", "7"), TTL, latest_only=True), tally.replaced
    cursor.begin(P(E, 4), where(P(E, 1), P(E, 5)), 0.0)
    cursor.offer(E, 6, "a", 1.0)
    cursor.catch_up()
    assert cursor.read_after == P(E, 4)

    sent = [frame.position.n for frame in cursor.follow(page(*kept(E, 5, 6), first=P(E, 1)), 1.0)[1]]
    assert (sent, tally.replaced) == ([5, 6], before)
    told, frames = cursor.follow(page(P(E, 9)), 1.0)
    assert (told, len(frames), tally.replaced) == (False, 1, before + 4)

    cursor.go_live()
    assert cursor.read_after is None
    assert cursor_at(P(E, 4)).read_after == P(E, 4)


def test_a_state_whose_latest_message_is_gone_is_told():
    """What was seen and is in no history would have been the whole truth."""
    cursor = cursor_at(P(E, 3), latest_only=True)
    cursor.let_go(E, 6)

    _, [frame] = cursor.follow(page(P(E, 5), first=P(E, 1)), 1.0)
    cursor.move(frame.position, 1.0)
    assert cursor.lacks

    assert cursor.follow(page(P(E, 5), first=P(E, 1)), 1.0) == (True, [])
    assert cursor.position == P(E, 6)


@pytest.mark.parametrize("aged_before", [True, False])
def test_a_state_of_another_epoch_begins_with_its_latest_message(aged_before):
    """It is told, unless the epoch before ended by age with the socket level; the latest message follows either way."""
    cursor = cursor_at(P(E, 3), latest_only=True)
    now = aged(cursor)
    found = page(P(NEXT, 5), first=P(NEXT, 1), now=now + 50_000, run="a" if aged_before else "b")

    told, frames = cursor.follow(found, LATER + 50)
    assert told is not aged_before
    if told:
        assert cursor.position == P(NEXT, 4)
        again, frames = cursor.follow(found, LATER + 50)
        assert not again

    assert [frame.position for frame in frames] == [P(NEXT, 5)]


# Comparing.


@cases(
    ("last", "behind"),
    [(None, False), (P(E, 3), False), (P(E, 2), False), (P(E, 4), True), (P(E + 1, 1), True), (P(E - 1, 9), True)],
)
def test_the_comparison_finds_what_the_socket_has_not(last, behind):
    """A larger number or another epoch is news; a smaller number was overtaken by the message."""
    found = where(last and P(last.epoch, 1), last)

    assert cursor_at(P(E, 3)).compare(found, 1.0) is behind


def test_the_comparison_finds_what_was_let_go_and_is_gone():
    """A message that was seen and that no history has is looked for, so that it is told."""
    cursor = cursor_at(P(E, 3))
    cursor.let_go(E, 4)

    assert cursor.compare(where(), 1.0)


def test_a_read_begins_with_nothing_skipped():
    """What was skipped until then will be in what is read; only what is skipped later is missed."""
    cursor = cursor_at(P(E, 1))
    cursor.let_go(E, 3)
    assert cursor.missed

    assert cursor.begin_reading() == P(E, 1)
    assert not cursor.missed

    cursor.let_go(E, 4)
    assert cursor.missed
