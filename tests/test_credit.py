"""How much a browser may have been sent that it has not confirmed."""

from notifications.credit import ANONYMOUS_PONGS, BOUND, Credit


def exhausted() -> tuple[Credit, int]:
    """A credit that is used up, and the number of its ping."""
    credit = Credit()
    credit.sent = BOUND
    number = credit.ping()
    credit.sent += 1
    assert credit.exhausted
    return credit, number


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
    """It answers the oldest ping, but not again until a while later: it may come from who reads nothing."""
    credit, _ = exhausted()
    credit.ping()

    assert credit.pong(None, now=0)
    assert not credit.pong(None, now=ANONYMOUS_PONGS - 0.1)
    assert credit.pong(None, now=ANONYMOUS_PONGS)


def test_a_pong_that_nothing_asked_for_counts_nothing():
    """Neither numbered nor not."""
    assert not Credit().pong(None, now=0)
    assert not Credit().pong(1, now=0)
