"""The states of a listener, without Redis: which may follow which, and what each is said to be."""

import asyncio
import inspect
from itertools import pairwise

import pytest

from notifications.bridge.state import (
    ASKING,
    LEADING,
    REPORTS,
    SETTLED,
    TRANSITIONS,
    WITHOUT_LEASE,
    IllegalTransitionError,
    State,
    StateMachine,
)
from tests.cases import cases
from tests.waiting import scaled


def brought_to(state):
    """Bring a machine to a state by the shortest way there is."""
    ways = {State.CONNECTING: [State.CONNECTING]}
    while state not in ways:
        ways = {to: [*way, to] for way in ways.values() for to in TRANSITIONS[way[-1]] if to not in ways} | ways
    machine = StateMachine()
    for _, to in pairwise(ways[state]):
        machine.move(to)
    return machine


@cases("begin", State)
def test_a_listener_goes_only_where_the_table_lets_it(begin):
    """Each transition of the table is made, and each other is an error that changes nothing."""
    for to in TRANSITIONS[begin]:
        machine = brought_to(begin)
        machine.move(to)
        assert machine.state is to
        assert machine.leads == (to in LEADING)
    for to in set(State) - TRANSITIONS[begin]:
        machine = brought_to(begin)
        report = machine.report
        with pytest.raises(IllegalTransitionError, match=f"is {begin.value} cannot become {to.value}"):
            machine.move(to)
        assert machine.state is begin
        assert machine.leads == (begin in LEADING)
        assert machine.report == report


def test_the_table_that_people_read_is_the_one_that_is_enforced():
    """The docstring of State has a line for each state, with all that may follow it."""
    table = inspect.getdoc(State).split("=\n")[2]
    rows = [(row[:14].strip(), row[14:58].strip()) for row in table.splitlines()[:-1]]
    stated = {State[name]: {State[each] for each in following.split(", ") if each} for name, following in rows}

    assert stated == TRANSITIONS


def test_every_state_is_reached_and_every_one_but_the_last_is_left():
    """There is no state that nobody can come to, and none but STOPPED to be stuck in."""
    assert all(brought_to(state).state is state for state in State)
    assert [state for state, following in TRANSITIONS.items() if not following] == [State.STOPPED]


def test_a_listener_can_be_told_to_stop_in_every_state():
    """It stops at once where it has no lease, and else drains first; nothing comes back from there."""
    for state in State:
        if state in {State.DRAINING, State.STOPPING, State.STOPPED}:
            continue
        machine = brought_to(state)
        machine.move(State.DRAINING if machine.leads else State.STOPPING)
    assert brought_to(State.DRAINING).leads
    assert not brought_to(State.STOPPING).leads
    assert TRANSITIONS[State.DRAINING] | TRANSITIONS[State.STOPPING] == {State.STOPPING, State.STOPPED}


def test_whoever_has_the_lease_can_lose_it():
    """In each state in which a listener stamps it is said what it becomes, and the table lets it."""
    assert set(WITHOUT_LEASE) == LEADING
    for state, after in WITHOUT_LEASE.items():
        assert after in TRANSITIONS[state]
        assert after not in LEADING


def test_only_a_subscribed_listener_leads_or_asks():
    """It becomes the holder by its marker alone; cut off it asks for nothing, and only finishes what it has read."""
    assert [state for state, following in TRANSITIONS.items() if State.HOLDER in following] == [State.TAKING_OVER]
    assert [state for state, following in TRANSITIONS.items() if State.TAKING_OVER in following] == [State.STAND_BY]
    assert State.HANDING_OVER not in ASKING
    assert ASKING < SETTLED
    assert SETTLED.isdisjoint({State.CONNECTING, State.SETTLING, State.DISCONNECTED, State.HANDING_OVER})


def test_it_reports_what_its_state_says():
    """What health checks are told follows from the state; settling and stopping change nothing of it."""
    machine, reports = StateMachine(), []
    for to, reason in (
        (State.SETTLING, ""),
        (State.STAND_BY, ""),
        (State.TAKING_OVER, ""),
        (State.HOLDER, ""),
        (State.HANDING_OVER, "closed by Redis"),
        (State.DISCONNECTED, ""),
        (State.DISCONNECTED, "refused"),
        (State.SETTLING, ""),
        (State.STAND_BY, ""),
        (State.STOPPING, ""),
        (State.STOPPED, ""),
    ):
        machine.move(to, reason)
        reports.append(machine.report)

    assert reports == [
        "connecting",
        "stand-by",
        "stand-by",
        "holder",
        "disconnected: closed by Redis",
        "disconnected: closed by Redis",
        "disconnected: refused",
        "disconnected: refused",
        "stand-by",
        "stand-by",
        "stand-by",
    ]


def test_a_holder_that_is_told_to_stop_is_the_holder_until_it_has_finished():
    """Also one that is just handing over: the lease is still its own."""
    draining, cut_off = brought_to(State.HOLDER), brought_to(State.HANDING_OVER)
    draining.move(State.DRAINING)
    cut_off.move(State.DRAINING)

    assert draining.report == cut_off.report == "holder"


def test_the_words_of_reports_are_those_of_the_health_check():
    """A state that is subscribed and settled is healthy; all others are not."""
    assert {REPORTS[state] for state in SETTLED} == {"holder", "stand-by"}
    assert {REPORTS[state] for state in REPORTS.keys() - SETTLED} == {"connecting", "disconnected"}


async def test_whoever_waits_for_a_state_is_woken_by_the_move():
    """And by nothing else than a move or a step; nobody looks again and again."""
    machine, looked = brought_to(State.STAND_BY), []

    async def wait_for(*states):
        await machine.until(lambda: looked.append(None) or machine.state in states)

    async with asyncio.timeout(scaled()), asyncio.TaskGroup() as tasks:
        tasks.create_task(wait_for(State.HOLDER))
        tasks.create_task(wait_for(State.HOLDER, State.TAKING_OVER))
        for _ in range(5):
            await asyncio.sleep(0)
        assert len(looked) == 2
        machine.move(State.TAKING_OVER)
        for _ in range(5):
            await asyncio.sleep(0)
        assert len(looked) == 4
        machine.move(State.HOLDER)

    assert len(looked) == 5


async def test_a_step_makes_those_who_wait_look_again():
    """For what is no state, such as an empty backlog."""
    machine, left = StateMachine(), [1, 2]

    async def finish():
        while left:
            left.pop()
            machine.stepped()
            await asyncio.sleep(0)

    async with asyncio.timeout(scaled()), asyncio.TaskGroup() as tasks:
        tasks.create_task(machine.until(lambda: not left))
        tasks.create_task(finish())

    assert not left


async def test_what_is_so_already_is_not_waited_for():
    """Nobody needs to move."""
    async with asyncio.timeout(scaled()):
        await StateMachine().until(lambda: True)
