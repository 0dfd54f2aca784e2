"""
The progress of any job, from the code that does it, and whatever queue it runs in.

    with Progress("job:42", total=n, stage="Reading rows") as p:
        p.advance()

    @progress("job:{import_id}")
    def run_import(import_id): ...

A loop has it in one line, with ``track`` of ``tracking.py``. The job only changes numbers; ``reporting/`` publishes
them beside it, no faster than ``PROGRESS_RATE``. What is promised stands in docs/progress.md.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from contextvars import ContextVar
from functools import wraps
from string import Formatter
from types import TracebackType
from typing import Any, Final, Self, TypeVar
from weakref import WeakValueDictionary, ref

from .exceptions import Cancelled
from .history.shares import Share
from .messages import JobProgress, JobProgressPayload, State
from .reporting import terminal as in_terminal
from .reporting.counts import Rate, percent
from .reporting.reporter import Ending, waiting
from .reporting.task_reporter import TaskReporter
from .reporting.thread_reporter import ThreadReporter
from .reporting.values import LARGEST, as_amount, as_number, as_text
from .topics import Topic

logger = logging.getLogger(__name__)

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

QUEUES_OWN: Final[dict[tuple[str, str], State]] = {
    ("billiard", "SoftTimeLimitExceeded"): "cancelled",  # Celery's
    ("celery", "Retry"): "waiting",
    ("celery", "TaskRevokedError"): "cancelled",
    ("dramatiq", "Interrupt"): "cancelled",  # its time limit, and when its worker stops
    ("dramatiq", "Retry"): "waiting",
    ("greenlet", "GreenletExit"): "cancelled",  # somebody has killed its greenlet, such as a worker that is to stop
    ("rq", "BaseTimeoutException"): "cancelled",
}
"""What the exceptions mean by which a queue stops a job, by top-level module and name: none need be installed."""
QUEUES_WAYS: Final = ("delay", "send", "enqueue")
"""How a queue's decorator lets a task be sent, which would bypass one above it."""
_current: ContextVar[ref[Progress] | None] = ContextVar("notifications.progress", default=None)
_open: Final = WeakValueDictionary[int, "Progress"]()
"""Those that are open in this process, by their ``id``. Neither keeps one alive that was dropped and not ended."""


class Part:
    """
    A step of a job, with a count of its own: what ``Progress.part`` returns, and what ``Progress`` itself is.

    All methods may be called from any thread. None waits for Redis, and none raises because of it.
    """

    _root: Progress
    _parent: Part | None

    def __init__(self, weight: float, total: float | None, done: float, stage: str | None) -> None:
        self._weight = as_number(weight) or 0
        self._total = as_number(total)
        self._done = as_number(done) or 0
        self._stage = as_text(stage)
        self._parts: list[Part] = []

    def __enter__(self) -> Self:
        with self._root._lock:
            if self._parent is not None:
                self._parent._parts.append(self)
        if self._stage is not None:
            self._root.stage = self._stage
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        parent = self._parent
        with self._root._lock:
            if parent is not None and self in parent._parts:
                parent._parts.remove(self)
                parent._done += self._weight * (1 if error is None else self._fraction())
        self._root._change()

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, trace)

    def advance(self, by: float = 1) -> None:
        """Add to what is done; costs a microsecond or less."""
        root = self._root
        if type(by) is not int or not -LARGEST < by < LARGEST:
            by = as_number(by) or 0
        with root._lock:
            self._done += by
        root._change()

    @property
    def done(self) -> float:
        """How much is done; may be set, also to less."""
        return self._done

    @done.setter
    def done(self, done: float) -> None:
        with self._root._lock:
            self._done = as_number(done) or 0
        self._root._change()

    @property
    def total(self) -> float | None:
        """How much there is to do; None while nobody knows. May be set."""
        return self._total

    @total.setter
    def total(self, total: float | None) -> None:
        with self._root._lock:
            self._total = as_number(total)
        self._root._change()

    def part(self, weight: float = 1, *, total: float | None = None, stage: str | None = None) -> Part:
        """
        Return a context manager for a step of this job or part, with a count of its own.

        While it is open, ``weight`` times what is done of it counts as done here, and when it is left without
        an exception, all of ``weight``. So the weights of all parts should add up to the ``total`` of what they are
        parts of. Parts may be nested, and open in several threads at the same time.

        Args:
            weight: How much of this job's ``total`` it is.
            total: How much there is to do in it; without it, it counts when it is left.
            stage: The stage of the job from then on.

        """
        part = Part(weight, total, 0, stage)
        part._root, part._parent = self._root, self
        return part

    def _fraction(self) -> float:
        """Return how much of it is done, from 0 to 1."""
        if self._total is None or not self._total > 0:
            return 0.0
        return min(1.0, max(0.0, self._effective() / self._total))

    def _effective(self) -> float:
        """Return how much is done, open parts included."""
        return self._done + sum(part._weight * part._fraction() for part in self._parts)


class Progress(Part):
    """
    The progress of a job, for a ``with`` or ``async with`` block: it is running while the block does.

    The end of the block is the end of the job: ``succeeded``, or ``failed`` after an exception, which is raised on.
    ``Cancelled``, interruptions and time limits end it as ``cancelled``. A job that is repeated begins again.

    A ``Progress`` on a topic that the same job has open already, such as one in a function that a function decorated
    with ``progress`` calls, continues that one and does not end it, unless it is another share. So use what
    ``with … as`` gives.

    In a process that was forked while it was open, it says nothing.
    """

    def __init__(
        self,
        topic: Topic | str,
        *,
        total: float | None = None,
        done: float = 0,
        unit: str | None = None,
        stage: str | None = None,
        message: str | None = None,
        url: str | None = None,
        user: Any = None,
        title: str | None = None,
        show_errors: bool = False,
        terminal: bool = False,
        share: Share | None = None,
    ) -> None:
        """
        Describe the job; it begins with the block.

        Args:
            topic: Where to publish, such as ``"job:42"``; any kind will do.
            total: How much there is to do; it can be set later. Without it the bar is indeterminate.
            done: How much was done before, by a job that continues another.
            unit: What is counted, such as ``"rows"``. This and the other texts are the site's own words, of up to
                ``MAX_TEXT`` characters; lazy ones are in the language that is active when they are given.
            stage: What the job is doing.
            message: A text beside it.
            url: Where the result is.
            user: A user, or their primary key, who gets a notice when the job has ended.
            title: The title of that notice.
            show_errors: Tell the text of an exception as well as its class. It may contain anything.
            terminal: Draw a bar on standard error as well, if that is a terminal.
            share: Which share of a job this is that several processes do, such as one task of a group. The job has
                one bar, which counts the shares that have ended, so ``unit`` is what those are. ``total`` and ``done``
                are of the share. The job is running until all have ended; the notice is sent once.

        Raises:
            TopicError: The topic, or the user's, is not valid.
            ValueError: The ``share`` is not valid.
            TypeError: There is a ``user`` without a ``title``, or a ``title`` without a ``user``.

        """
        if (user is None) != (title is None):
            raise TypeError("user and title are for the notice at the end: give both or neither")
        if share is not None:
            share.check()
        super().__init__(0, total, done, None)
        self._share_of_job = share
        self._root, self._parent = self, None
        self._topic = Topic.parse(topic) if isinstance(topic, str) else topic
        self._lock = threading.RLock()  # what interrupts the job, such as a signal's handler, may report as well
        self._unit, self._stage, self._message = as_text(unit), as_text(stage), as_text(message)
        self._url = None if url is None else str(url)
        self._error: str | None = None
        self._state: State = "waiting"
        self._given = {"total": total, "unit": unit, "stage": stage, "message": message, "url": url}
        self._begin_with = self._done
        self._notice = None if user is None else (Topic.for_user(user), str(title))
        self._show_errors = show_errors
        self._terminal = terminal and in_terminal.is_terminal()
        self._left_early: State | None = None
        self._reporter: ThreadReporter | TaskReporter | None = None
        self._continues: Progress | None = None
        self._outer: Progress | None = None
        self._rate = Rate(0, 0)

    @classmethod
    def current(cls) -> Progress | None:
        """Return the job that this thread or task is doing, for code that is called by it; None if there is none."""
        found = _innermost()
        while found is not None and not found._is_open():
            found = found._outer
        return found

    def __enter__(self) -> Self:
        if (outer := self._continued()) is not None:
            return outer  # type: ignore[return-value]  # it is a Progress, too
        reporter = ThreadReporter(self._topic, self._share_of_job, self._report)
        self._begin(reporter)
        reporter.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if (reporter := self._ended(error)) is not None:
            assert isinstance(reporter, ThreadReporter)  # noqa: S101  begun by __enter__
            reporter.end(self._last())

    async def __aenter__(self) -> Self:
        if (outer := self._continued()) is not None:
            return outer  # type: ignore[return-value]  # it is a Progress, too
        reporter = TaskReporter(self._topic, self._share_of_job, self._report)
        self._begin(reporter)
        reporter.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if (reporter := self._ended(error)) is not None:
            assert isinstance(reporter, TaskReporter)  # noqa: S101  begun by __aenter__
            await reporter.end(self._last())

    @property
    def topic(self) -> Topic:
        """Where it is published."""
        return self._topic

    @property
    def state(self) -> State:
        """``waiting`` before the block, ``running`` within it, and then its end."""
        return self._state

    @property
    def stage(self) -> str | None:
        """What the job is doing; may be set."""
        return self._stage

    @stage.setter
    def stage(self, stage: str | None) -> None:
        self._stage = as_text(stage)
        self._change()

    @property
    def message(self) -> str | None:
        """A text beside the stage; may be set."""
        return self._message

    @message.setter
    def message(self, message: str | None) -> None:
        self._message = as_text(message)
        self._change()

    @property
    def unit(self) -> str | None:
        """What is counted; may be set."""
        return self._unit

    @unit.setter
    def unit(self, unit: str | None) -> None:
        self._unit = as_text(unit)
        self._change()

    @property
    def url(self) -> str | None:
        """Where the result is; may be set."""
        return self._url

    @url.setter
    def url(self, url: str | None) -> None:
        self._url = None if url is None else str(url)
        self._change()

    @property
    def cancelled(self) -> bool:
        """
        Whether somebody has asked to cancel the job, by ``cancel``.

        It is looked up beside the job, once a second while somebody asks, so that it may be asked as often as you like.
        The first time, the answer is waited for, except in an ``async with`` block. If Redis is away it is False.
        """
        reporter = self._reporter
        if reporter is None or reporter.cancelled:
            return reporter is not None
        reporter.ask()
        if isinstance(reporter, ThreadReporter):
            reporter.wait_for_look()
        return reporter.cancelled

    def check(self) -> None:
        """
        Return if the job may go on.

        Raises:
            Cancelled: Somebody has asked to cancel it.

        """
        if self.cancelled:
            raise Cancelled(f"{self._topic} was cancelled")

    async def acheck(self) -> None:
        """Return if the job may go on; see ``check``. The first time, the answer is waited for."""
        if isinstance(self._reporter, TaskReporter):
            self._reporter.ask()
            await self._reporter.wait_for_look()
        self.check()

    def _is_open(self) -> bool:
        return self._reporter is not None and not self._reporter.muted and self._state == "running"

    def _is_continued_by(self, other: Progress) -> bool:
        """Return whether another is the same job, or the same share of it."""
        return self._topic == other._topic and other._share_of_job in (None, self._share_of_job)

    def _continued(self) -> Progress | None:
        """Return the open job of the same topic, if there is one, with what was given for this one."""
        found = _innermost()
        while found is not None and not (found._is_open() and found._is_continued_by(self)):
            found = found._outer
        if found is None or found is self:
            if found is self:
                raise RuntimeError(f"the progress of {self._topic} is open already")
            return None
        self._continues = found
        shares = found._share_of_job is not None  # their job counts them, in whatever unit this one counts
        for name, value in self._given.items():
            if value is not None and not (shares and name == "unit"):
                setattr(found, name, value)
        if self._given["total"] is not None:
            found.done = self._begin_with
        return found

    def _begin(self, reporter: ThreadReporter | TaskReporter) -> None:
        self._done, self._parts, self._error, self._state = self._begin_with, [], None, "running"
        self._left_early = None
        self._clock = reporter.clock
        self._rate = Rate(self._done, self._clock())
        self._reporter = reporter
        self._outer = Progress.current()
        _current.set(ref(self))
        _open[id(self)] = self

    def _ended(self, error: BaseException | None, state: State | None = None) -> ThreadReporter | TaskReporter | None:
        """Note how the job has ended; return whoever has to tell it."""
        if self._continues is not None:
            self._continues = None
            return None
        if _innermost() is self:
            _current.set(None if self._outer is None else ref(self._outer))
        _open.pop(id(self), None)
        reporter = self._reporter
        if reporter is None or self._state != "running":
            return None
        with self._lock:
            self._done += sum(part._weight * part._fraction() for part in self._parts)
            self._parts = []
            if state is None:
                state = "succeeded" if error is None else self._left_early or _state_after(error)
            if state == "succeeded" and self._total is not None:
                self._done = self._total = max(self._done, self._total)
            if state == "failed" and error is not None and self._left_early is None:
                self._error = (self._text_of(error) if self._show_errors else None) or type(error).__name__
            self._state = state
        return None if reporter.muted else reporter

    def _text_of(self, error: BaseException) -> str | None:
        try:
            return as_text(error)
        except Exception:  # noqa: BLE001  its __str__ raises whatever it likes, and the job has to end
            return None

    def _leave(self, state: State) -> None:
        """End the job, without waiting for its last message: its loop in a coroutine was left early."""
        if isinstance(reporter := self._ended(None, state), TaskReporter):
            reporter.leave(self._last())

    def _change(self) -> None:
        if self._reporter is not None and not self._reporter.muted:
            self._reporter.change()

    def _report(self, again: bool) -> JobProgress | None:
        """
        Return the message of this moment; None if the job has ended, which is told by another.

        Args:
            again: Nothing has changed since the last one.

        """
        with self._lock:
            payload = self._payload(again=again) if self._state == "running" else None
        if payload is None:
            return None
        if self._terminal and not again:
            in_terminal.draw(payload)
        return JobProgress(payload=payload)

    def _payload(self, *, again: bool = False) -> JobProgressPayload:
        done, total, now = self._effective(), self._total, self._clock()
        if not again:  # a pause belongs to the work that ends it
            self._rate.sample(done, now)
        estimated = self._state == "running" and total is not None
        return JobProgressPayload(
            id=self._topic.id,
            state=self._state,
            percent=100 if self._state == "succeeded" else percent(done, total),
            done=as_amount(done),
            total=None if total is None else as_amount(total),
            unit=self._unit,
            stage=self._stage,
            message=self._message,
            eta=self._rate.seconds_for(total - done, now) if estimated and total is not None else None,
            error=self._error,
            url=self._url,
        )

    def _last(self) -> Ending:
        """Return what is told of the end."""
        payload = self._payload()
        if self._terminal:
            in_terminal.draw(payload, last=True)
        last = JobProgress(payload=payload)
        user, title = self._notice or (None, "")
        return Ending(last, f"progress-{secrets.token_hex(8)}", user, title)


def progress(topic: str, **options: Any) -> Callable[[F], F]:
    """
    Return a decorator for functions that are jobs: each call is one.

    Functions may be synchronous, coroutine functions, or generator functions of both sorts. ``Progress.current()``
    returns the job, and ``track`` and ``Progress`` on the same topic continue it.

    Args:
        topic: The topic, in which the names of the function's arguments stand in braces, as for ``str.format``:
            ``"job:{import_id}"``, ``"job:{order.pk}"``.
        **options: As for ``Progress``.

    Raises:
        TypeError: The function has no such argument, or is what the decorator of a queue has returned.
        TopicError: In a call: the topic is not valid.

    """
    names = {name.split(".")[0].split("[")[0] for _, name, _, _ in Formatter().parse(topic) if name is not None}

    def decorate(function: F) -> F:
        if _is_task(inspect.unwrap(function, stop=_is_task)):
            raise TypeError(f"{function!r} is a task: progress stands below the decorator of the queue")
        signature = inspect.signature(function)
        if unknown := names - signature.parameters.keys():
            name = getattr(function, "__qualname__", function)
            raise TypeError(f"{name} has no argument {', '.join(sorted(unknown))!r}")

        def job(arguments: Sequence[Any], named: Mapping[str, Any], **more: Any) -> Progress:
            given = signature.bind(*arguments, **named)
            given.apply_defaults()
            return Progress(topic.format(**given.arguments), **options, **more)

        @wraps(function)
        def call(*arguments: Any, **named: Any) -> Any:
            with job(arguments, named):
                return function(*arguments, **named)

        @wraps(function)
        async def acall(*arguments: Any, **named: Any) -> Any:
            async with job(arguments, named):
                return await function(*arguments, **named)

        @wraps(function)
        def steps(*arguments: Any, **named: Any) -> Any:
            with job(arguments, named):
                return (yield from function(*arguments, **named))

        @wraps(function)
        async def asteps(*arguments: Any, **named: Any) -> Any:
            async with job(arguments, named), aclosing(function(*arguments, **named)) as items:
                answer = None
                with suppress(StopAsyncIteration):
                    while True:
                        answer = yield await items.asend(answer)

        found: Any = call
        if inspect.isasyncgenfunction(function):
            found = asteps
        elif inspect.isgeneratorfunction(function):
            found = steps
        elif inspect.iscoroutinefunction(function):
            found = acall
        found.progress_job = job
        return found  # type: ignore[no-any-return]  # it is called like the function

    return decorate


def job_of(
    function: Callable[..., Any], arguments: Sequence[Any], named: Mapping[str, Any], **more: Any
) -> Progress | None:
    """
    Return the job that a call of a function is, for whoever queues or runs it; None if it is not one by ``progress``.

    The call continues it if it is open by then.

    Args:
        function: A function that ``progress`` has decorated, or what wraps one as ``functools.wraps`` does.
        arguments: Of the call.
        named: Of the call, by their names.
        **more: Options as for ``Progress``, besides those of the decorator.

    Raises:
        TypeError: The function cannot be called like this.
        TopicError: The topic is not valid.

    """
    job = getattr(function, "progress_job", None)
    if inspect.ismethod(function):
        arguments = (function.__self__, *arguments)
    return None if job is None else job(arguments, named, **more)


def end_job(job: Progress, error: BaseException | None, state: State | None = None) -> None:
    """
    End a job that ``__enter__`` has begun, for a queue, which knows better than an exception what comes of it.

    A share of a job that is interrupted, such as by a time limit, has failed: only ``Cancelled`` cancels the others.

    Args:
        job: The job. If it continues another, or has ended, nothing happens.
        error: What has left it; None if nothing has.
        state: How it has ended, if ``error`` does not say so.

    """
    interrupted = error is not None and not isinstance(error, Cancelled) and _state_after(error) == "cancelled"
    if state is None and interrupted and job._share_of_job is not None:
        state = "failed"
    if isinstance(reporter := job._ended(error, state), ThreadReporter):
        reporter.end(job._last())


def leave_job(job: Progress) -> None:
    """
    Let this process say nothing more of a job, because another one is about to tell its end.

    What is being said when it is called has been said when it returns, unless Redis takes longer than a job may wait.
    """
    if isinstance(job._reporter, ThreadReporter):
        job._reporter.leave_to_others()
    else:
        mute_job(job)


def mute_job(job: Progress) -> None:
    """Let this process say nothing of a job any more, because another one does."""
    if job._reporter is not None:
        job._reporter.mute()


def _is_task(function: Any) -> bool:
    return any(hasattr(function, way) for way in QUEUES_WAYS)


def _state_after(error: BaseException) -> State:
    """Return how a job has ended that an exception has left."""
    if isinstance(error, Cancelled | KeyboardInterrupt | SystemExit | GeneratorExit | asyncio.CancelledError):
        return "cancelled"
    for kind in type(error).__mro__:
        if (found := QUEUES_OWN.get((kind.__module__.split(".")[0], kind.__name__))) is not None:
            return found
    return "failed"


def _innermost() -> Progress | None:
    """Return the job that was begun last in this thread or task; None if there is none, or if it was dropped."""
    found = _current.get()
    return None if found is None else found()


def _mute() -> None:
    """Say nothing of the parent's jobs in a process that was just forked."""
    for job in list(_open.values()):
        job._lock = threading.RLock()  # another thread of the parent may have held it
        mute_job(job)
    _open.clear()
    waiting.forget()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_mute)
