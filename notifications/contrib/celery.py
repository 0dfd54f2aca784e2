"""
The progress of Celery tasks: one decorator, and nothing to configure.

    @shared_task
    @progress("job:{import_id}")
    def run_import(import_id): ...

A task tells itself that it runs, how far it is and how it ended, as any function with ``notifications.progress``. The
signals of Celery tell the rest: in the process that sends it, that it waits; in the main process of its worker, that it
was revoked, or killed together with its process. They are connected when this module is imported.

No receiver raises, and none waits for Redis longer than ``announce`` does.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any, Final, TypeVar
from weakref import WeakKeyDictionary, WeakValueDictionary

from billiard import current_process
from celery import Task, current_app, current_task, signals
from celery.app.task import Context
from celery.exceptions import Ignore, Reject, Retry, TimeLimitExceeded, WorkerLostError
from celery.states import FAILURE

from .. import progress as job_progress
from ..exceptions import Cancelled
from ..logs import describe
from ..messages import State
from ..progress import Progress, announce, job_of

logger = logging.getLogger(__name__)

F = TypeVar("F", bound=Callable[..., Any])

MARK: Final = "told_by_celery"
"""The attribute of a decorated function. Celery's own wrappers copy it."""


class Execution:
    """
    What this process knows of a task that it is doing.

    Attributes:
        job: The open progress of a decorated task.
        told: A decorated task has begun, so it tells its end itself.
        replaced: Another task does the rest, by ``Task.replace``.

    """

    def __init__(self) -> None:
        self.job: Progress | None = None
        self.told = self.replaced = False


_executions: Final[WeakKeyDictionary[Context, Execution]] = WeakKeyDictionary()
"""The executions in this process, by their requests."""
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
            execution = _current_execution() or Execution()
            execution.told = True
            execution.job = job = Progress.current()
            try:
                return function(*arguments, **named)
            except BaseException as error:
                if job is not None:
                    _leave(job, error, execution)
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


def _revoke(error: Cancelled) -> None:
    """Tell Celery that somebody has cancelled the running task; it would retry it if it retries any exception."""
    if _current_execution() is None:
        return
    request = current_task.request
    store = not (request.ignore_result or current_task.ignore_result)
    try:
        current_task.backend.mark_as_revoked(request.id, str(error), request=request, store_result=store)
    except Exception as failure:  # noqa: BLE001  whatever a backend raises: the task fails then
        logger.warning("task %s was cancelled, and its backend does not know: %s", request.id, describe(failure))
        return
    raise Ignore(str(error)) from error


def _leave(job: Progress, error: BaseException | None, execution: Execution) -> None:
    """End the progress of a task as the task ends for Celery."""
    if isinstance(error, Ignore):
        error = None if execution.replaced else Cancelled()
    elif isinstance(error, Reject) and error.requeue and current_task.acks_late:
        error = Retry()
    elif isinstance(error, Exception) and _is_retried(error):
        error = Retry()  # Celery's wrapper around this one raises it, when this one has ended
    elif isinstance(error, SystemExit | KeyboardInterrupt) and current_process().name != "MainProcess":
        _say_nothing(job)  # the process ends, and the main process of the worker says why
        return
    job.__exit__(None if error is None else type(error), error, None)


def _is_retried(error: Exception) -> bool:
    """Return whether Celery retries the running task by itself: ``autoretry_for``."""
    if _current_execution() is None or isinstance(error, Cancelled | Retry):
        return False
    task = current_task
    kinds, others = (tuple(getattr(task, name, ())) for name in ("autoretry_for", "dont_autoretry_for"))
    limit = getattr(task, "retry_kwargs", {}).get("max_retries", task.max_retries)
    limit = getattr(task, "override_max_retries", limit)
    left = limit is None or task.request.retries < limit
    return left and isinstance(error, kinds) and not isinstance(error, others)


def _say_nothing(job: Progress) -> None:
    if job._reporter is not None:
        job._reporter.mute()


def _current_execution() -> Execution | None:
    return _executions.get(current_task.request) if current_task else None


def _is_job(task: Task | None) -> bool:
    return getattr(getattr(task, "run", None), MARK, False)


def _job(task: Task, context: Context) -> Progress:
    """Return the progress of an execution of a task, which says its topic; raises whatever formatting that does."""
    bound = inspect.ismethod(inspect.unwrap(task.run, stop=inspect.ismethod))
    arguments = (task, *context.args) if bound else context.args
    task.request_stack.push(context)  # for the topic of a bound task
    try:
        job = job_of(task.run, arguments, context.kwargs)
    finally:
        task.request_stack.pop()
    assert job is not None  # noqa: S101  it is decorated
    return job


def _tell(task: Task, context: Context, state: State, error: str | None = None) -> None:
    """Tell the state of a task that does not run."""
    if _is_job(task):
        job = _job(task, context)
        announce(job.topic, state=state, error=error, total=job.total, unit=job.unit, message=job.message, url=job.url)


def _quietly(receiver: Callable[..., None]) -> Callable[..., None]:
    """Let a receiver not raise: Celery would write each time what a site cannot change."""

    @wraps(receiver)
    def call(*arguments: Any, **named: Any) -> None:
        try:
            receiver(*arguments, **named)
        except Exception as error:  # noqa: BLE001  whatever it is, the task goes on
            logger.warning("progress of a task is not told (%s): %s", receiver.__name__.strip("_"), describe(error))

    return call


def _context(id_: str, args: Sequence[Any] | None, kwargs: Mapping[str, Any] | None) -> Context:
    return Context(id=id_, args=args or (), kwargs=kwargs or {}, called_directly=False)


@_quietly
def _before_publish(
    sender: str | None = None, body: Any = None, headers: dict[str, Any] | None = None, **_: Any
) -> None:
    """Tell that a task waits, before a worker can have it."""
    first = isinstance(body, dict)  # protocol 1
    about = body if first else headers or {}
    task = current_app.tasks.get(sender)
    execution = _current_execution()
    goes_on = execution is not None and _is_continued(about)
    if execution is not None and goes_on:
        execution.replaced = True
    if not _is_job(task):
        return
    args, kwargs = (body["args"], body["kwargs"]) if first else body[:2]
    context = _context(about["id"], args, kwargs)
    running = execution.job if execution is not None else None
    if execution is None or running is None or running.topic != _job(task, context).topic:
        _tell(task, context, "waiting")
    elif goes_on and running.state == "running":
        _leave(running, Retry(), execution)  # now: another worker may begin before this one has ended
    elif running.state not in ("running", "waiting"):
        _tell(task, context, "waiting")


def _is_continued(about: Mapping[str, Any]) -> bool:
    """Return whether a task that is sent goes on with the running one: a retry, or one that replaces it."""
    running = current_task.request
    nesting = running.replaced_task_nesting or 0
    return bool(about.get("id") == running.id or about.get("replaced_task_nesting", 0) == nesting + 1)


@_quietly
def _prerun(task: Task, **_: Any) -> None:
    if _is_job(task):
        _executions[task.request] = Execution()


@_quietly
def _postrun(task: Task, task_id: str, retval: Any, state: str | None, **_: Any) -> None:
    """Tell the end of a task that could not even begin, or could not be retried."""
    execution = _executions.pop(task.request, None)
    _received.pop(task_id, None)
    if execution is None or state != FAILURE:
        return
    if not execution.told or (execution.job is not None and execution.job.state == "waiting"):
        _tell(task, task.request, "failed", type(retval).__name__)


@_quietly
def _task_received(request: Any, **_: Any) -> None:
    """Remember a request that may have to be told of: not all signals have it."""
    if _is_job(request.task):
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
    context = _context(task_id, request.args, request.kwargs)
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
