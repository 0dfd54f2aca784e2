"""
The progress of Celery tasks: one decorator, one function for groups of them, and nothing to configure.

    @shared_task
    @progress("job:{import_id}")
    def run_import(import_id): ...

    track(group(read.s(name) for name in names), "job:7").delay()

A task tells itself that it runs, how far it is and how it ended, as any function with ``notifications.progress``. The
signals of Celery tell the rest: in the process that sends it, that it waits; in the main process of its worker, that it
was revoked, or killed together with its process. They are connected when this module is imported.

Of a canvas that was given to ``track``, each task has a header that says which share of the job it is. Celery keeps it
when the task is retried or delivered again.

No receiver raises, and none waits for Redis longer than ``announce`` does.
"""

from __future__ import annotations

import inspect
import logging
import sys
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, Final, TypeVar
from weakref import WeakKeyDictionary, WeakValueDictionary

from billiard import current_process
from celery import Task, current_app, current_task, signals
from celery.app.task import Context
from celery.canvas import Signature, maybe_signature
from celery.exceptions import Ignore, Reject, Retry, TimeLimitExceeded, WorkerLostError
from celery.states import FAILURE, SUCCESS
from celery.utils.functional import maybe_list

from ..exceptions import Cancelled
from ..jobs import announce
from ..logs import LogBudget, describe
from ..messages import State
from ..progress import Progress, end_job, job_of, leave_job
from ..progress import progress as job_progress
from ..topics import Topic
from .tracked import Marks, Tracked

__all__ = ["progress", "track"]

_log: Final = LogBudget(logging.getLogger(__name__))

F = TypeVar("F", bound=Callable[..., Any])

MARK: Final = "told_by_celery"
"""The attribute of a decorated function. Celery's own wrappers copy it."""
HEADER: Final = "notifications_share"
"""The header of a task that is a share of a job."""
CONTAINERS: Final = frozenset({"celery.chain", "celery.group", "celery.chord"})
"""The names of signatures that are no tasks, but of several."""


class Attempt:
    """
    What this process knows of a task that it is doing now.

    Attributes:
        tracked: Which share of a job it is.
        share: The open progress of that.
        job: The open progress of a decorated task; the same if its topic is.
        told: A decorated task has begun, so it tells its end itself.
        replaced: Another task does the rest, by ``Task.replace``.

    """

    def __init__(self, tracked: Tracked | None = None) -> None:
        self.tracked = tracked
        self.share: Progress | None = None
        self.job: Progress | None = None
        self.told = self.replaced = False

    def is_of(self, run: str) -> bool:
        """Return whether the task is a share of this run of a job."""
        return self.tracked is not None and self.tracked.share.run == run


_attempts: Final[WeakKeyDictionary[Context, Attempt]] = WeakKeyDictionary()
"""The attempts in this process, by their requests."""
_received: Final[WeakValueDictionary[str, Any]] = WeakValueDictionary()
"""In the main process of a worker: the requests by their ids, while it has them and nobody has told how they ended."""


def progress(topic: str, **options: Any) -> Callable[[F], F]:
    """
    Return a decorator for tasks: each is a job, from the moment in which it is sent. It stands below Celery's own.

    It is ``notifications.progress``, and besides the job is ``waiting`` while it is in a queue or is to be retried,
    ``cancelled`` when the task is revoked, has expired or is ignored, and ``failed`` when its process was killed, by
    ``time_limit`` or by anybody else, unless it is delivered again. A task that ends with ``Cancelled`` is revoked for
    Celery: it is not retried.

    A process that sends a task by its name without having it tells nothing. If the broker refuses a task, sending it
    raises, and the job stays ``waiting``. Functions that Celery itself does not run, such as coroutine functions, are
    only decorated.

    Args:
        topic: The topic, in which the names of the task's arguments stand in braces: ``"job:{import_id}"``; with
            ``bind=True`` also ``"job:{self.request.id}"``.
        **options: As for ``notifications.Progress``.

    Raises:
        TypeError: The function has no such argument.
        TopicError: In the task: the topic is not valid.

    """
    tells = job_progress(topic, **options)

    def decorate(function: F) -> F:
        if inspect.iscoroutinefunction(function):
            return tells(function)

        @wraps(function)
        def within(*arguments: Any, **named: Any) -> Any:
            attempt = _current_attempt() or Attempt()
            attempt.told = True
            attempt.job = job = Progress.current()
            if job is not None and job is attempt.share and attempt.tracked is not None:
                job.unit = attempt.tracked.texts.get("unit")  # what the whole job counts
            try:
                return function(*arguments, **named)
            except BaseException as error:
                if job is not None:
                    # Celery's wrapper around this one retries it, when this one has ended.
                    _leave(job, Retry() if _is_retried(error) else error, attempt)
                raise

        told = tells(within)

        @wraps(function)
        def call(*arguments: Any, **named: Any) -> Any:
            try:
                return told(*arguments, **named)
            except Cancelled as error:
                _revoke(error)
                raise

        setattr(call, MARK, True)
        call.progress_job = told.progress_job  # type: ignore[attr-defined]  # for ``job_of``
        return call  # type: ignore[return-value]  # it is called like the function

    return decorate


def track(canvas: Signature, topic: Topic | str, **texts: Any) -> Signature:
    """
    Return a copy of a canvas, all tasks of which are shares of one job: it has one bar.

    The job waits until the first task begins. Its count is that of the tasks that have ended, and it has succeeded when
    all have. It fails at once if a task fails for which others wait: an earlier one of a chain, or one of the header of
    a chord; otherwise it has failed in the end if one has. If one is revoked, or ends with ``Cancelled``, the job is
    cancelled.

    All tasks count, also those that are not decorated, and callbacks by ``link``; those by ``link_error`` do not. A
    task that is decorated with ``progress`` and the same topic, or that gives ``Progress.current()`` to
    ``notifications.track``, also tells how far it is itself. ``Task.map`` is one task, so it counts as one.

    Call it once for each time that you send a canvas: each is a run of the job, and a later one replaces an earlier.
    Do not give ``headers`` to ``apply_async`` of what it returns, which would replace those of the tasks.

    Args:
        canvas: A signature, chain, group or chord, nested as you like.
        topic: Where to publish, such as ``"job:42"``.
        **texts: ``unit``, ``stage``, ``message`` and ``url`` of the job, as for ``notifications.Progress``.

    Raises:
        TopicError: The topic is not valid.
        TypeError: It is no canvas, or one of which the tasks cannot be known: ``chunks``, for which
            ``track(task.chunks(…).group(), …)`` works; a chord without a body; a chain or group that has ``headers``.
        ValueError: It has no task, or more than a job can have shares.

    """
    marks = Marks(topic, texts)
    marked = _marked(canvas, marks, needed=False)
    marks.close()
    return marked


def _marked(given: Any, marks: Marks, *, needed: bool) -> Signature:
    if not isinstance(given, Mapping) or "task" not in given:
        raise TypeError(f"{given!r} is no signature")
    part = maybe_signature(given).clone()
    name = part.task
    if name == "celery.chunks":
        raise TypeError("the tasks of chunks are not known before it is sent: give track its group()")
    after = needed
    links = maybe_list(part.options.get("link")) or []
    needed = needed or bool(links)
    if name not in CONTAINERS:
        part.options["headers"] = {**(part.options.get("headers") or {}), HEADER: marks.mark(needed=needed)}
    elif "headers" in part.options:
        raise TypeError(f"the headers of this {name} would replace those of its tasks: give them to the tasks")
    elif name == "celery.group":
        part.tasks = [_marked(task, marks, needed=needed) for task in part.tasks]
    elif name == "celery.chain":
        last = len(part.tasks) - 1
        part.tasks = [_marked(task, marks, needed=needed or place < last) for place, task in enumerate(part.tasks)]
    elif part.body is None:
        raise TypeError("a chord needs its body before it is tracked")
    else:
        part.tasks = [_marked(task, marks, needed=True) for task in getattr(part.tasks, "tasks", part.tasks)]
        part.body = _marked(part.body, marks, needed=needed)
    if links:
        part.options["link"] = [_marked(link, marks, needed=after) for link in links]
    return part


def _tracked(headers: Mapping[str, Any] | None) -> Tracked | None:
    """Return which share of a job the headers of a task say that it is; None if it is none."""
    carried = (headers or {}).get(HEADER)
    return None if carried is None else Tracked.read(carried)


def _revoke(error: Cancelled) -> None:
    """Tell Celery that somebody has cancelled the running task; it would retry it if it retries any exception."""
    if _current_attempt() is None:
        return
    request = current_task.request
    store = not (request.ignore_result or current_task.ignore_result)
    try:
        current_task.backend.mark_as_revoked(request.id, str(error), request=request, store_result=store)
    except Exception as failure:  # noqa: BLE001  whatever a backend raises: the task fails then
        _log.warning("task %s was cancelled, and its backend does not know: %s", request.id, describe(failure))
        return
    raise Ignore(str(error)) from error


def _leave(job: Progress, error: BaseException | None, attempt: Attempt) -> None:
    """End the progress of a task as the task ends for Celery."""
    tracked = attempt.tracked if job is attempt.share else None
    if isinstance(error, Ignore) and isinstance(error.__cause__, Cancelled):
        error = error.__cause__
    elif isinstance(error, Ignore):  # without it, the others of a group go on, and those that wait for it never begin
        error = None if attempt.replaced or (tracked and not tracked.share.needed) else Cancelled()
    elif isinstance(error, Reject) and error.requeue and current_task.acks_late:
        error = Retry()
    elif isinstance(error, SystemExit | KeyboardInterrupt) and current_process().name != "MainProcess":
        leave_job(job)  # the process ends, and the main process of the worker says why, perhaps before that
        return
    end_job(job, error)


def _is_retried(error: BaseException) -> bool:
    """Return whether Celery retries the running task by itself: ``autoretry_for``."""
    if _current_attempt() is None or isinstance(error, Cancelled | Retry):
        return False
    task = current_task
    kinds, others = (tuple(getattr(task, name, ())) for name in ("autoretry_for", "dont_autoretry_for"))
    limit = getattr(task, "retry_kwargs", {}).get("max_retries", task.max_retries)
    limit = getattr(task, "override_max_retries", limit)
    left = limit is None or task.request.retries < limit
    return left and isinstance(error, kinds) and not isinstance(error, others)


def _current_attempt() -> Attempt | None:
    return _attempts.get(current_task.request) if current_task else None


def _is_job(task: Task | None) -> bool:
    return getattr(getattr(task, "run", None), MARK, False)


def _job(task: Task, context: Context) -> Progress:
    """Return the progress of an attempt at a task, which says its topic; raises whatever formatting that does."""
    # job_of gives its task to a method, but not to a function that wraps one, as autoretry_for does.
    wraps_method = not inspect.ismethod(task.run) and inspect.ismethod(inspect.unwrap(task.run, stop=inspect.ismethod))
    arguments = (task, *context.args) if wraps_method else context.args
    task.request_stack.push(context)  # for the topic of a bound task
    try:
        job = job_of(task.run, arguments, context.kwargs)
    finally:
        task.request_stack.pop()
    assert job is not None  # noqa: S101  it is decorated
    return job


def _tell(task: Task, context: Context, state: State, error: str | None = None) -> None:
    """Tell the state of a task that does not run."""
    tracked = _tracked(context.headers)
    if tracked is not None:
        tracked.announce(state, error)
    if _is_job(task) and ((job := _job(task, context)).topic != getattr(tracked, "topic", None)):
        _announce(job, state, error)


def _announce(job: Progress, state: State, error: str | None = None) -> None:
    announce(job.topic, state=state, error=error, total=job.total, unit=job.unit, message=job.message, url=job.url)


def _quietly(receiver: Callable[..., None]) -> Callable[..., None]:
    """Let a receiver not raise: Celery would write each time what a site cannot change."""

    @wraps(receiver)
    def call(*arguments: Any, **named: Any) -> None:
        try:
            receiver(*arguments, **named)
        except Exception as error:  # noqa: BLE001  whatever it is, the task goes on
            _log.warning("progress of a task is not told (%s): %s", receiver.__name__.strip("_"), describe(error))

    return call


def _context_of(request: Any) -> Context:
    """Return the context of a request in the main process of a worker."""
    return Context({**request.request_dict, "id": request.id, "args": request.args, "kwargs": request.kwargs})


@_quietly
def _before_publish(
    sender: str | None = None, body: Any = None, headers: dict[str, Any] | None = None, **_: Any
) -> None:
    """Tell that a task waits, before a worker can have it."""
    headers = {} if headers is None else headers
    first = isinstance(body, dict)  # protocol 1
    about = body if first else headers
    task = current_app.tasks.get(sender)
    attempt = _current_attempt()
    goes_on = attempt is not None and _is_continued(about)
    if attempt is not None and goes_on:
        attempt.replaced = True
        if attempt.tracked and about["id"] == current_task.request.id:
            headers.setdefault(HEADER, current_task.request.headers[HEADER])
    tracked, own = _tracked(headers), None
    if _is_job(task):
        args, kwargs = (body["args"], body["kwargs"]) if first else body[:2]
        own = _job(task, Context(id=about["id"], args=args or (), kwargs=kwargs or {}))
    topics = {each.topic for each in (tracked, own) if each is not None}
    begins = tracked is not None and (attempt is None or not attempt.is_of(tracked.share.run))
    running = [] if attempt is None else [job for job in (attempt.job, attempt.share) if job is not None]
    for job in running:
        handed_on = goes_on or (begins and attempt is not None and job is not attempt.share)
        if handed_on and job.topic in topics and job.state == "running":
            # Now: another worker may begin before this one has ended.
            end_job(job, None, "waiting")
    if own is not None and (tracked is None or own.topic != tracked.topic):
        states = [job.state for job in running if job.topic == own.topic]
        if not states or states[0] not in ("running", "waiting"):
            _announce(own, "waiting")
    if tracked is not None and begins:
        tracked.begin()


def _is_continued(about: Mapping[str, Any]) -> bool:
    """Return whether a task that is sent goes on with the running one: a retry, or one that replaces it."""
    running = current_task.request
    nesting = running.replaced_task_nesting or 0
    return bool(about.get("id") == running.id or about.get("replaced_task_nesting", 0) == nesting + 1)


@_quietly
def _prerun(task: Task, **_: Any) -> None:
    tracked = _tracked(task.request.headers)
    if tracked is None and not _is_job(task):
        return
    _attempts[task.request] = attempt = Attempt(tracked)
    if tracked is not None:
        share = tracked.progress()
        if share.__enter__() is share:  # else it goes on with the job of whoever runs it here
            attempt.share = share


@_quietly
def _postrun(task: Task, task_id: str, retval: Any, state: str | None, **_: Any) -> None:
    """Tell the end of a share; and that of a task that could not even begin, or not be retried."""
    attempt = _attempts.pop(task.request, None)
    _received.pop(task_id, None)
    if attempt is None:
        return
    job, share = attempt.job, attempt.share
    failure = type(retval).__name__ if state == FAILURE else None
    if share is not None and attempt.tracked is not None:
        if failure and share.state == "waiting":
            attempt.tracked.announce("failed", failure)
        else:
            error = retval if isinstance(retval, BaseException) and state != SUCCESS else sys.exc_info()[1]
            _leave(share, error, attempt)
    if failure and _is_job(task) and (not attempt.told or (job and job is not share and job.state == "waiting")):
        own = _job(task, task.request)
        if share is None or own.topic != share.topic:
            _announce(own, "failed", failure)


@_quietly
def _task_received(request: Any, **_: Any) -> None:
    """Remember a request that may have to be told of: not all signals have it."""
    if _is_job(request.task) or HEADER in request.request_dict:
        _received[request.id] = request


@_quietly
def _task_failure(sender: Task, task_id: str, exception: BaseException, **_: Any) -> None:
    """Tell, in the main process of a worker, that a task was killed. Celery sends some of these twice."""
    if not isinstance(exception, TimeLimitExceeded | WorkerLostError):
        return
    request = _received.pop(task_id, None)
    if request is None:
        return
    again = isinstance(exception, TimeLimitExceeded) and sender.acks_late and not sender.acks_on_timeout
    context = _context_of(request)
    if again:
        _tell(sender, context, "waiting")
    else:
        _tell(sender, context, "failed", type(exception).__name__)


@_quietly
def _task_revoked(sender: Task, request: Context, **_: Any) -> None:
    """Tell, in the main process of a worker, that a task does not begin, or was ended."""
    _received.pop(request.id, None)
    _tell(sender, request, "cancelled")


@_quietly
def _task_retry(sender: Task, request: Context, reason: Any = None, **_: Any) -> None:
    """Tell, in the main process of a worker, that it has stopped a task: Celery calls that a retry without a reason."""
    if reason is None and _received.pop(request.id, None) is not None:
        _tell(sender, request, "waiting" if sender.acks_late else "cancelled")


def _connect() -> None:
    for signal, receiver in (
        (signals.before_task_publish, _before_publish),
        (signals.task_prerun, _prerun),
        (signals.task_postrun, _postrun),
        (signals.task_received, _task_received),
        (signals.task_failure, _task_failure),
        (signals.task_retry, _task_retry),
        (signals.task_revoked, _task_revoked),
    ):
        signal.connect(receiver, weak=False, dispatch_uid=f"{__name__}.{receiver.__name__}")


_connect()
