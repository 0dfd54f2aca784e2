"""
Questions that are answered together: one call, and so one query, for all sockets that ask in the same moment.

A question that comes alone is asked at once. What comes while a call runs is in the next call. And while the event loop
is still taking in more of them, as when thousands of tabs come back, they are gathered first: the loop has no time for
their answers yet, and ten queries of a hundred cost the database less than a thousand of one.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from contextvars import Context, copy_context
from types import TracebackType
from typing import Any, Final, NamedTuple

from ..aio import CutShortError
from ..tasks import ended, new_task
from .callbacks import MAX_WAITING, BusyError, Callbacks, is_outage

QUIET_TURNS: Final = 3
"""Turns of the event loop without another question after which those that are there are asked. A handshake takes as
many from the connection to its question, so what is on its way comes along. An idle loop does them in 0.05 ms."""
GATHERING: Final = 0.2
"""Seconds after which they are asked although more come, or although the call before has not returned yet. Ten thousand
tabs that come back in ten seconds are fifty calls."""

ALONE: Final = object()
"""The answer to a question that has to be asked alone: it may take long, or fail, and that is not to be shared."""


class AnswersError(RuntimeError):
    """A function has not returned a list with an answer to each question."""


class Raised(NamedTuple):
    """The outcome of a question whose call raised an exception; whoever asked raises it, with this traceback."""

    error: BaseException
    traceback: TracebackType | None


class Question(NamedTuple):
    """What one socket asks, and how; a call is made as the first of its questions says."""

    value: Any
    function: Callable[[list[Any]], Any]
    seconds: float
    context: Context
    since: float
    """When it was asked, by the clock of the event loop."""


Batch = dict[asyncio.Future[Any], Question]


class Batches:
    """Questions of one sort, in one event loop: a few calls at once, in which those who ask take turns."""

    def __init__(self, calls: Callbacks, *, at_once: int, most: int, longest_wait: float) -> None:
        """
        Create the queues; ``end`` must follow.

        Args:
            calls: Makes the calls, and bounds them.
            at_once: Calls of a group under way; of those that exceed their time-out only ``calls`` limits the number.
            most: Questions in one call.
            longest_wait: Seconds that a question may wait for its call.

        """
        self._calls = calls
        self._at_once = at_once
        self._most = most
        self._longest_wait = longest_wait
        self._groups: dict[str, _Group] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._waiting = 0

    async def ask(
        self, group: str, whose: str, seconds: float, function: Callable[[list[Any]], Any], question: Any
    ) -> Any:
        """
        Return the answer to a question.

        If a call for several raises an exception, each question is asked alone; not if the call takes too long.

        Args:
            group: Only questions of one group are asked together. They have the same function, and any of them may
                lend its context to all: the tenant, and what is asked.
            whose: Who asks: when there are more than a call may have, they take turns.
            seconds: The time-out of a call, from its turn on.
            function: Sync or async; is given a list of questions, and returns a list with an answer to each. An answer
                may be ``ALONE`` if there are several.
            question: The question.

        Raises:
            BusyError: It did not get its turn.
            TimeoutError: There was no answer in time.
            AnswersError: The function has returned something else.
            CutShortError: The function, or something it was waiting for, was cancelled.
            Exception: Whatever it raises when it is asked this question alone.

        """
        if self._waiting >= MAX_WAITING:
            raise BusyError(f"{self._waiting} questions wait already")
        asked = self._groups.setdefault(group, _Group(group))
        loop = asyncio.get_running_loop()
        answer = loop.create_future()
        self._waiting += 1
        asked.add(whose, answer, Question(question, function, seconds, copy_context(), loop.time()))
        self._gather(asked)
        try:
            outcome = await answer  # all calls have a time-out, and the next one sends away who has waited too long
        finally:
            self._waiting -= asked.remove(whose, answer)
        if outcome is ALONE:
            return await self.ask_alone(group, whose, seconds, function, question)
        if isinstance(outcome, Raised):
            raise outcome.error.with_traceback(outcome.traceback)
        return outcome

    async def ask_alone(
        self, group: str, whose: str, seconds: float, function: Callable[[list[Any]], Any], question: Any
    ) -> Any:
        """Return the answer to a question that is not to be asked with others; as ``ask``."""
        (answer,) = await self._call(group, whose, seconds, function, [question])
        return answer

    async def end(self) -> None:
        """End all calls; their questions fail, and those that wait."""
        for asked in self._groups.values():
            waiting = asked.take(asked.size)
            self._waiting -= len(waiting)
            _hand_out(waiting, [_end()] * len(waiting))
        while self._tasks:
            await ended(next(iter(self._tasks)))

    def _gather(self, asked: _Group) -> None:
        """Begin the next call, or arrange for it."""
        if asked.calls >= self._at_once:
            return
        if asked.size >= self._most:
            self._begin(asked)
        elif asked.size and asked.calls:
            if asked.timer is None:  # the end of the call before leads here, too
                asked.timer = asyncio.get_running_loop().call_later(GATHERING, self._begin, asked)
        elif asked.size and not asked.is_watched:
            loop = asyncio.get_running_loop()
            asked.is_watched = True
            loop.call_soon(self._watch, asked, 0, asked.count, loop.time() + GATHERING)
        elif not asked.size and not asked.calls and self._groups.get(asked.name) is asked:  # not yet by its timer
            del self._groups[asked.name]

    def _watch(self, asked: _Group, quiet: int, before: int, latest: float) -> None:
        """Begin a call when the event loop has nothing more to add to it."""
        loop, more = asyncio.get_running_loop(), asked.count != before
        if asked.size and not asked.calls and (more or quiet < QUIET_TURNS) and loop.time() < latest:
            loop.call_soon(self._watch, asked, 0 if more else quiet + 1, asked.count, latest)
            return
        asked.is_watched = False
        if asked.calls:
            self._gather(asked)
        else:
            self._begin(asked)

    def _begin(self, asked: _Group) -> None:
        if asked.timer is not None:
            asked.timer.cancel()
            asked.timer = None
        earliest = asyncio.get_running_loop().time() - self._longest_wait
        batch: Batch = {}
        while not batch and asked.size:
            taken = asked.take(self._most)
            self._waiting -= len(taken)
            batch = {answer: question for answer, question in taken.items() if question.since >= earliest}
            late = taken.keys() - batch.keys()
            _hand_out(late, [Raised(BusyError(f"no turn within {self._longest_wait:g} s"), None)] * len(late))
        if batch:
            asked.calls += 1
            task = new_task(self._answer(asked, batch), context=next(iter(batch.values())).context)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        self._gather(asked)

    async def _answer(self, asked: _Group, batch: Batch) -> None:
        """Make one call, and hand out the answers."""
        outcomes: Sequence[Any] = [_end()] * len(batch)
        questions = list(batch.values())
        try:
            outcomes = await self._outcomes(asked.name, questions)
        except Exception as error:  # noqa: BLE001  each of those who asked raises it
            outcomes = [Raised(error, error.__traceback__)] * len(batch)
        finally:
            _hand_out(batch, outcomes)
            asked.calls -= 1
            self._gather(asked)

    async def _outcomes(self, name: str, questions: list[Question]) -> Sequence[Any]:
        """
        Ask several questions together.

        If that fails, each is to be asked alone: it may be one of them that fails. If something did not answer, two are
        asked first. If neither is answered, the others would only wait for nothing; and one of them alone fails nobody.
        """
        function, seconds = questions[0].function, questions[0].seconds
        try:
            return await self._call(name, name, seconds, function, [each.value for each in questions])
        except TimeoutError:
            raise  # asking each would take as long again
        except Exception as error:
            if len(questions) == 1:
                raise
            outcomes: list[Any] = [ALONE] * len(questions)
            if not is_outage(error):
                return outcomes
        for index in (0, -1):
            try:
                (outcomes[index],) = await self._call(name, name, seconds, function, [questions[index].value])
            except Exception as error:
                outcomes[index] = Raised(error, error.__traceback__)
                if not is_outage(error):
                    break
                if index == -1:
                    raise
            else:
                break
        return outcomes

    async def _call(
        self, group: str, whose: str, seconds: float, function: Callable[[list[Any]], Any], questions: list[Any]
    ) -> Sequence[Any]:
        theirs = list(questions)  # they may change it
        answers = await self._calls.call(whose, seconds, function, theirs, group=group)
        if not isinstance(answers, list | tuple):
            raise AnswersError(f"returned a {type(answers).__name__}, not a list")
        if len(answers) != len(questions):
            raise AnswersError(f"returned {len(answers)} answers to {len(questions)} questions")
        return answers


def _end() -> Raised:
    return Raised(CutShortError("the event loop ends"), None)


def _hand_out(answers: Collection[asyncio.Future[Any]], outcomes: Sequence[Any]) -> None:
    for answer, outcome in zip(answers, outcomes, strict=True):
        if not answer.done():
            answer.set_result(outcome)


class _Group:
    """
    Questions that may be asked together.

    Attributes:
        name: What the group is called.
        waiting: The questions of each who asks, by the future of the answer; in the order of their turns.
        size: How many wait.
        count: How many came so far.
        calls: Calls under way.
        is_watched: Whether a call begins as soon as no more questions come.
        timer: Begins a call beside another that takes long.

    """

    __slots__ = ("calls", "count", "is_watched", "name", "size", "timer", "waiting")

    def __init__(self, name: str) -> None:
        self.name = name
        self.waiting: OrderedDict[str, OrderedDict[asyncio.Future[Any], Question]] = OrderedDict()
        self.size = self.count = self.calls = 0
        self.is_watched = False
        self.timer: asyncio.TimerHandle | None = None

    def add(self, whose: str, answer: asyncio.Future[Any], question: Question) -> None:
        self.size += 1
        self.count += 1
        self.waiting.setdefault(whose, OrderedDict())[answer] = question

    def remove(self, whose: str, answer: asyncio.Future[Any]) -> bool:
        """Remove a question whose answer nobody needs any more; return False if it has been asked."""
        questions = self.waiting.get(whose)
        if questions is None or answer not in questions:
            return False
        del questions[answer]
        if not questions:
            del self.waiting[whose]
        self.size -= 1
        return True

    def take(self, most: int) -> Batch:
        """Remove and return the next questions: one of each who asks, before a second of anybody."""
        batch: Batch = {}
        while self.waiting and len(batch) < most:
            whose, questions = self.waiting.popitem(last=False)
            answer, question = questions.popitem(last=False)
            batch[answer] = question
            if questions:
                self.waiting[whose] = questions  # after all others
        self.size -= len(batch)
        return batch
