"""How much a browser may have been sent that it has not confirmed."""

from hypothesis import given
from hypothesis import strategies as st

from notifications.delivery.flow_control import ANONYMOUS_PONGS, BOUND, Credit


def exhausted() -> tuple[Credit, int]:
    """A credit that is used up, and the number of its ping."""
    credit = Credit()
    credit.sent = BOUND
    number = credit.ping()
    credit.sent += 1
    assert credit.exhausted
    return credit, number


def test_a_browser_that_cannot_confirm_anything_is_neither_asked_nor_paused():
    """It reads events over HTTP, and has no way to answer."""
    credit = Credit(confirms=False)
    credit.sent = 1000 * BOUND

    assert not credit.exhausted
    assert credit.ask_at > credit.sent


def test_the_pong_of_a_ping_confirms_what_was_sent_before_it():
    """A browser that returns the number has read what came before."""
    credit, number = exhausted()

    assert credit.pong(number, now=0)
    assert not credit.exhausted


def test_a_pong_confirms_all_pings_before_it():
    """Answering the last of some pings answers all."""
    credit, _ = exhausted()
    last = credit.ping()

    assert credit.pong(last, now=0)
    assert not credit.pong(None, 1e9)


def test_what_was_not_read_cannot_be_confirmed_by_counting():
    """A browser that reads nothing does not hit the numbers of its pings: memory stays bounded on every server."""
    credit = Credit()
    numbers = {credit.ping() for _ in range(100)}

    guesses = [credit.pong(number, now=0) for number in range(1, 1000) if number not in numbers]

    assert not any(guesses)
    assert max(numbers) > 1_000_000


def test_a_pong_without_a_number_counts_seldom():
    """It answers the oldest ping, but not again for a while: it may come from a program that reads nothing."""
    credit, _ = exhausted()
    credit.ping()

    assert credit.pong(None, now=0)
    assert not credit.pong(None, now=ANONYMOUS_PONGS - 0.1)
    assert credit.pong(None, now=ANONYMOUS_PONGS)


def test_a_pong_without_a_number_answers_the_oldest_ping_and_no_other():
    """Nothing had been sent before it, and what was sent after it is not confirmed."""
    credit = Credit()
    first, second = credit.ping(), credit.ping()

    assert credit.pong(None, now=0)

    assert not credit.pong(first, now=0)
    assert credit.pong(second, now=0)


def test_a_pong_that_nothing_asked_for_counts_nothing():
    """Neither numbered nor not."""
    assert not Credit().pong(None, now=0)
    assert not Credit().pong(1, now=0)


def test_a_ping_of_the_browsers_own_confirms_everything():
    """The replaced service's client answers no ping of the server; its own pings show that it reads."""
    credit, _ = exhausted()
    credit.ping()

    assert credit.asked(now=0)

    assert not credit.exhausted
    assert not credit.pong(None, now=1e9)


def test_pings_of_the_browsers_own_count_as_seldom_as_anonymous_pongs():
    """Both may come from a timer: one after the other they do not confirm more."""
    credit, _ = exhausted()
    assert not Credit().asked(now=0)
    assert credit.asked(now=0)
    credit.ping()

    assert not credit.asked(now=ANONYMOUS_PONGS - 0.1)
    assert not credit.pong(None, now=ANONYMOUS_PONGS - 0.1)
    assert credit.asked(now=ANONYMOUS_PONGS)


def test_a_socket_pauses_above_the_bound_and_not_before():
    """The bound itself may be used."""
    credit = Credit()
    credit.sent = BOUND
    assert not credit.exhausted

    credit.sent += 1
    assert credit.exhausted


def test_a_ping_is_due_at_half_the_bound():
    """Early enough for the answer to come back before the bound is reached; each ping puts off the next."""
    credit = Credit()
    assert credit.sent == 0
    assert credit.ask_at == BOUND // 2

    credit.sent = 1000
    credit.ping()

    assert credit.ask_at == 1000 + BOUND // 2


def test_a_pong_confirms_no_more_than_was_sent_before_its_ping():
    """What was sent after the ping may still be on its way."""
    credit = Credit()
    credit.sent = 1000
    first = credit.ping()
    credit.sent = 1000 + BOUND + 1

    assert credit.pong(first, now=0)

    assert credit.exhausted


def test_a_pong_counts_once():
    """Repeating a number confirms nothing more, nor does an earlier one."""
    credit = Credit()
    first, second = credit.ping(), credit.ping()

    assert credit.pong(second, now=0)
    assert not credit.pong(second, now=0)
    assert not credit.pong(first, now=0)


@given(st.lists(st.tuples(st.integers(0, 100_000), st.sampled_from(["send", "pong", "forge", "lose"])), max_size=60))
def test_a_browser_that_confirms_all_pings_is_never_paused_for_good(steps):
    """Whatever was sent, lost and forged: when the last ping is answered, everything before it is confirmed."""
    credit, last = Credit(), None
    for size, step in steps:
        if step == "send":
            credit.sent += size
            if credit.sent >= credit.ask_at:
                last = credit.ping()
        elif step == "pong" and last is not None:
            credit.pong(last, now=0)
        elif step == "forge":
            credit.pong(-size - 1, now=0)
    if credit.exhausted:
        assert credit.pong(last, now=0)
    assert not credit.exhausted
