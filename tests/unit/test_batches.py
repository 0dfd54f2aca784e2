"""Questions that are answered together: which, by whom, and what happens to the others when one fails."""

import asyncio
import threading

import pytest
from django.db import OperationalError

from notifications.access import batches
from notifications.access.batches import ALONE, AnswersError, Batches
from notifications.access.callbacks import BusyError, Callbacks
from tests.waiting import await_for, scaled

pytestmark = pytest.mark.django_db(transaction=True)
"""Synchronous functions run in threads, which look after their database connections."""


@pytest.fixture
async def make():
    """Make queues that end with the test."""
    made = []

    def new(*, at_once=1, most=100, longest_wait=None):
        calls = Callbacks("test", threads=4, longest_wait=scaled())
        made.append(
            Batches(calls, at_once=at_once, most=most, longest_wait=scaled() if longest_wait is None else longest_wait)
        )
        return made[-1]

    yield new
    for each in made:
        await each.end()


@pytest.fixture
def soon(monkeypatch):
    """Let nobody wait long for others."""
    monkeypatch.setattr(batches, "GATHERING", 0.01)


class Answers:
    """Answers with the questions themselves, and remembers what was asked together."""

    def __init__(self, *, is_open=True):
        self.calls = []
        self.gate = threading.Event()
        if is_open:
            self.gate.set()

    def __call__(self, questions):
        self.calls.append(questions)
        assert self.gate.wait(scaled())
        return list(questions)


def ask_all(asked, function, questions, whose="", group=""):
    return [asyncio.create_task(asked.ask(group, whose, scaled(), function, each)) for each in questions]


async def test_what_comes_in_the_same_moment_is_asked_together(make):
    """Thirty questions are one call, and each has its own answer."""
    function = Answers()

    answers = await asyncio.gather(*ask_all(make(), function, range(30)))

    assert answers == list(range(30))
    assert function.calls == [list(range(30))]


async def test_what_comes_turn_by_turn_is_asked_together(make):
    """As the event loop takes in the sockets of a server that has just started."""
    function, asked, tasks = Answers(), make(), []

    for number in range(30):
        tasks += ask_all(asked, function, [number])
        await asyncio.sleep(0)
    await asyncio.gather(*tasks)

    assert function.calls == [list(range(30))]


async def test_a_question_that_comes_alone_waits_for_no_other(make):
    """It is asked after a few turns of the loop, which has nothing else to do: not after a time."""
    function, asked = Answers(), make()
    (task,) = ask_all(asked, function, ["alone"])

    for _ in range(batches.QUIET_TURNS + 5):  # its own first step, and that of the call
        await asyncio.sleep(0)

    assert asked._groups[""].calls == 1
    assert await task == "alone"


async def test_a_loop_that_never_rests_still_asks(make, soon):
    """Others may come for as long as they like: nobody waits for all of them."""
    function, asked = Answers(), make(most=10**6)
    (first,) = ask_all(asked, function, ["first"])
    tasks = []

    async with asyncio.timeout(scaled()):
        while not first.done():
            tasks += ask_all(asked, function, ["more"])
            await asyncio.sleep(0)
    await asyncio.gather(*tasks)


async def test_what_comes_during_a_call_is_asked_in_the_next(make, soon):
    """No more calls than may run at once, and so no more connections, however many ask."""
    function, asked = Answers(is_open=False), make(at_once=2)
    tasks = []
    for number in range(2):
        tasks += ask_all(asked, function, [number])
        await await_for(lambda n=number: len(function.calls) == n + 1)
    for number in range(2, 20):
        tasks += ask_all(asked, function, [number])
        await asyncio.sleep(0.001)
    assert function.calls == [[0], [1]]

    function.gate.set()
    await asyncio.gather(*tasks)

    assert function.calls == [[0], [1], list(range(2, 20))]
    assert asked._groups == {}


async def test_a_call_that_takes_long_holds_up_the_next_for_a_moment_only(make, soon):
    """The end of a call lets the next begin; if it does not come soon, another begins beside it."""
    slow, fast, asked = Answers(is_open=False), Answers(), make(at_once=2)
    waiting = ask_all(asked, slow, [1])
    await await_for(lambda: slow.calls)

    answers = await asyncio.gather(*ask_all(asked, fast, [2, 3]))
    slow.gate.set()

    assert answers == [2, 3]
    assert fast.calls == [[2, 3]]
    assert await asyncio.gather(*waiting) == [1]


async def test_those_who_ask_take_turns(make):
    """The next call has a place for everybody who asks, however much somebody else asks."""
    function, asked = Answers(is_open=False), make(most=10)
    tasks = ask_all(asked, function, [f"flood {n}" for n in range(100)], whose="flood")
    await await_for(lambda: function.calls)
    for whose in ("a", "b"):
        tasks += ask_all(asked, function, [whose], whose=whose)
    await asyncio.sleep(0)
    function.gate.set()
    await asyncio.gather(*tasks)

    assert {"a", "b"} < set(function.calls[1])
    assert {len(call) for call in function.calls} <= {10, 2}


async def test_a_group_waits_for_no_other(make):
    """Of two tenants, one whose database does not answer holds up itself only."""
    slow, fast, asked = Answers(is_open=False), Answers(), make()
    waiting = ask_all(asked, slow, [1], group="slow")
    await await_for(lambda: slow.calls)

    assert await asked.ask("fast", "", scaled(), fast, 2) == 2
    slow.gate.set()
    assert await asyncio.gather(*waiting) == [1]


async def test_one_question_that_fails_fails_alone(make):
    """When a call for several raises an exception, each is asked alone; whoever asked what is wrong has the error."""
    calls = []

    async def function(questions):
        calls.append(questions)
        if 3 in questions:
            raise ValueError("three")
        return questions

    answers = await asyncio.gather(*ask_all(make(), function, range(6)), return_exceptions=True)

    assert [answer for answer in answers if not isinstance(answer, ValueError)] == [0, 1, 2, 4, 5]
    assert isinstance(answers[3], ValueError)
    assert calls == [list(range(6)), [0], [1], [2], [3], [4], [5]]


async def test_an_outage_is_asked_about_three_times_only(make):
    """When something does not answer, nor does it answer two who ask alone, all are told: a crowd asks no further."""
    calls = []

    async def function(questions):
        calls.append(questions)
        raise OperationalError("away")

    answers = await asyncio.gather(*ask_all(make(), function, range(50)), return_exceptions=True)

    assert {type(answer) for answer in answers} == {OperationalError}
    assert calls == [list(range(50)), [0], [49]]


@pytest.mark.parametrize("bad", range(4))
async def test_one_question_that_looks_like_an_outage_fails_alone(make, bad):
    """Some databases say so of a broken row: wherever it stands, the others are answered."""

    async def function(questions):
        if bad in questions:
            raise OperationalError("broken")
        return questions

    answers = await asyncio.gather(*ask_all(make(), function, range(4)), return_exceptions=True)

    assert [answer for answer in answers if not isinstance(answer, OperationalError)] == [
        n for n in range(4) if n != bad
    ]


async def test_what_is_to_be_asked_alone_is(make):
    """A function may leave out those that take long."""

    def function(questions):
        return (
            questions if len(questions) == 1 else [ALONE if each % 2 else f"{each} with others" for each in questions]
        )

    answers = await asyncio.gather(*ask_all(make(), function, range(4)))

    assert answers == ["0 with others", 1, "2 with others", 3]


async def test_a_call_that_takes_too_long_is_not_repeated_for_each(make):
    """All are told; asking each would take as long again, a hundred times."""
    function, asked = Answers(is_open=False), make()
    tasks = [asyncio.create_task(asked.ask("", "", 0.05, function, n)) for n in range(20)]
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    function.gate.set()

    assert {type(answer) for answer in answers} == {TimeoutError}
    assert len(function.calls) == 1


async def test_calls_that_do_not_return_leave_room_for_others(make):
    """A call that exceeds its time-out keeps its thread, and the next has another."""
    hung, asked = Answers(is_open=False), make()
    with pytest.raises(TimeoutError):
        await asked.ask("", "", 0.05, hung, 1)

    assert await asked.ask("", "", scaled(), Answers(), 2) == 2
    hung.gate.set()


@pytest.mark.parametrize("answers", [[], [1, 2], {0: True}, None, "x"], ids=str)
async def test_an_answer_to_something_else_is_none(make, answers):
    """A list of another length says nothing about anybody, and neither does what is no list."""
    with pytest.raises(AnswersError):
        await make().ask("", "", scaled(), lambda questions: answers, 1)


async def test_a_function_may_do_what_it_likes_with_its_questions(make):
    """If it drops some of its list, fewer answers are for nobody; whoever comes next is asked about all the same."""

    def drop(questions):
        questions[:] = [each for each in questions if each != "dropped"]
        return [True] * len(questions)

    asked = make()
    async with asyncio.timeout(scaled()):
        answers = await asyncio.gather(
            *ask_all(asked, drop, ["dropped", "kept"]), *ask_all(asked, drop, ["dropped"]), return_exceptions=True
        )

        assert [type(each) for each in answers] == [AnswersError, bool, AnswersError]
        assert await asked.ask("", "", scaled(), drop, "kept") is True


async def test_what_waits_is_bounded(make, monkeypatch):
    """One more than may wait is told so at once; it costs the others nothing."""
    monkeypatch.setattr(batches, "MAX_WAITING", 3)
    function, asked = Answers(is_open=False), make()
    first = ask_all(asked, function, [0])
    await await_for(lambda: function.calls)
    tasks = ask_all(asked, function, [1, 2, 3])
    await asyncio.sleep(0)

    with pytest.raises(BusyError):
        await asked.ask("", "", scaled(), function, 4)
    function.gate.set()
    assert await asyncio.gather(*first, *tasks) == [0, 1, 2, 3]


async def test_whoever_goes_away_leaves_nothing(make):
    """A socket that closes while it waits leaves the queue, and costs neither the others nor the next call."""
    function, asked = Answers(is_open=False), make()
    tasks = ask_all(asked, function, [0])
    await await_for(lambda: function.calls)
    gone = ask_all(asked, function, [1, 2])
    rest = ask_all(asked, function, [3])
    await asyncio.sleep(0)
    for task in (*tasks, *gone):
        task.cancel()
    await asyncio.wait([*tasks, *gone])
    function.gate.set()

    assert await asyncio.gather(*rest) == [3]
    assert function.calls == [[0], [3]]
    await await_for(lambda: not asked._groups and not asked._tasks)
    assert asked._waiting == 0


async def test_what_was_forgotten_forgets_nothing_else(make, monkeypatch):
    """Nobody waits any more for the call that was to begin soon; those who come next are bounded as all are."""
    monkeypatch.setattr(batches, "GATHERING", 0.02)
    asked, first, second = make(at_once=2), Answers(is_open=False), Answers(is_open=False)
    tasks = ask_all(asked, first, [0])
    await await_for(lambda: first.calls)
    (gone,) = ask_all(asked, first, [1])
    await asyncio.sleep(0)
    begins = asked._groups[""].timer.when()
    gone.cancel()
    await asyncio.wait([gone])
    first.gate.set()
    await asyncio.gather(*tasks)

    tasks = ask_all(asked, second, [2])
    await await_for(lambda: second.calls and asyncio.get_running_loop().time() > begins + batches.GATHERING)
    tasks += ask_all(asked, second, [3])
    await await_for(lambda: len(second.calls) == 2)
    tasks += ask_all(asked, second, [4])
    await asyncio.sleep(2 * batches.GATHERING)

    assert second.calls == [[2], [3]]
    second.gate.set()
    assert await asyncio.gather(*tasks) == [2, 3, 4]


async def test_a_question_waits_for_its_call_for_a_time_only(make):
    """Whoever has waited too long when a call is over is told so, and not asked about."""
    function, asked = Answers(is_open=False), make(longest_wait=0.02)
    (first,) = ask_all(asked, function, [0])
    await await_for(lambda: function.calls)
    (late,) = ask_all(asked, function, [1])
    await asyncio.sleep(0.03)
    function.gate.set()

    with pytest.raises(BusyError):
        await late
    assert await first == 0
    assert await asked.ask("", "", scaled(), function, 2) == 2
    assert function.calls == [[0], [2]]


async def test_an_end_answers_everybody(make):
    """What is under way when the event loop ends fails, and what waits for it; nothing begins any more."""

    async def hang(questions):
        await asyncio.Event().wait()

    asked = make()
    tasks = ask_all(asked, hang, range(3))
    await await_for(lambda: asked._tasks)
    tasks += ask_all(asked, hang, range(3))
    await asyncio.sleep(0)
    await asked.end()

    async with asyncio.timeout(scaled()):
        answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(each).__name__ for each in answers} == {"CutShortError"}
    assert asked._waiting == 0
    assert not asked._tasks
