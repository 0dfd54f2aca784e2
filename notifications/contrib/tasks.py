"""
The progress of tasks of ``django.tasks``, and of its backport ``django-tasks`` for Django 5.2.

    @task
    @progress("job:{import_id}")
    def run_import(import_id): ...

A task tells itself that it runs, how far it is and how it ended, as any function with ``notifications.progress``. The
signals of the library tell the rest: that it waits, and that it has failed before its function was called. They are
connected when this module is imported, those of both libraries if both are installed.

A backend says ``task_enqueued`` when the task is in its queue already, so a worker may have begun, and even ended it,
before *waiting* is published, which would then stay. So the worker publishes it as well, before it begins, and whoever
comes second publishes nothing: both do it under the same idempotency key.
"""

from __future__ import annotations

import inspect
import logging
from collections import deque
from collections.abc import Callable
from contextvars import ContextVar
from functools import wraps
from importlib import import_module
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any, Final, TypeVar

from django.db import transaction

from ..jobs import announce
from ..logs import LogBudget, describe
from ..messages import JobProgress, JobProgressPayload
from ..progress import Progress, job_of
from ..progress import progress as job_progress
from ..publisher import publish

F = TypeVar("F", bound=Callable[..., Any])

MARK: Final = "notifications_task"
"""The attribute of the functions that ``progress`` of this module has decorated, and of what wraps them."""

_log: Final = LogBudget(logging.getLogger(__name__))
_started: ContextVar[str | None] = ContextVar("notifications.contrib.tasks", default=None)
"""The id of the task that was started last, until its function is called."""
_told: Final[deque[str]] = deque(maxlen=1000)
"""Ids of tasks whose functions were called, so that they tell their ends. Those that a backend never ends drop out."""


def progress(topic: str, **options: Any) -> Callable[[F], F]:
    """
    Return a decorator for the function of a task: each task is a job, which waits from when it was enqueued.

    It stands below ``task``, and is ``notifications.progress`` otherwise: the function may be a coroutine function and
    may take the context. In a transaction the job waits from when that is committed.

    A worker that is killed says nothing. A task whose module a worker cannot import stays *waiting*: backends send no
    signal for it.

    Args:
        topic: The topic, in which the names of the task's arguments stand in braces: ``"job:{import_id}"``; with
            ``takes_context=True`` also ``"job:{context.task_result.id}"``.
        **options: As for ``notifications.Progress``.

    Raises:
        TypeError: The function has no such argument.
        TopicError: In the task: the topic is not valid.

    """

    def decorate(function: F) -> F:
        job = job_progress(topic, **options)(function)

        @wraps(job)
        def call(*arguments: Any, **named: Any) -> Any:
            _note()
            return job(*arguments, **named)

        @wraps(job)
        async def acall(*arguments: Any, **named: Any) -> Any:
            _note()
            return await job(*arguments, **named)

        found: Any = acall if inspect.iscoroutinefunction(function) else call
        setattr(found, MARK, True)
        return found  # type: ignore[no-any-return]  # it is called like the function

    return decorate


def _note() -> None:
    """Note that the task which was started has come to its function."""
    if (task := _started.get()) is not None:
        _started.set(None)
        _told.append(task)


def _enqueued(sender: Any, task_result: Any, **_: Any) -> None:
    _quietly(_wait, task_result, on_commit=True)


def _starts(sender: Any, task_result: Any, **_: Any) -> None:
    _started.set(task_result.id if _quietly(_wait, task_result, on_commit=False) else None)


def _finished(sender: Any, task_result: Any, **_: Any) -> None:
    try:
        _told.remove(task_result.id)
    except ValueError:
        if task_result.status == "FAILED":
            _quietly(_fail, task_result)


def _wait(job: Progress, task_result: Any, *, on_commit: bool) -> None:
    payload = JobProgressPayload(
        id=job.topic.id, state="waiting", total=job.total, unit=job.unit, message=job.message, url=job.url
    )
    publish(
        job.topic,
        JobProgress(payload=payload),
        # Outside a transaction it would ask the database whether it is, which a test may not.
        on_commit=on_commit and transaction.get_connection().in_atomic_block,
        fail_silently=True,
        idempotency_key=f"task-{task_result.id}",
    )


def _fail(job: Progress, task_result: Any) -> None:
    errors = [error.exception_class_path.rpartition(".")[2] for error in task_result.errors]
    announce(job.topic, state="failed", error=errors[-1] if errors else None)


def _quietly(tell: Callable[..., None], task_result: Any, **more: Any) -> bool:
    """Tell something of the job that a task is, without raising; return whether it is one."""
    try:
        task = task_result.task
        if not hasattr(task.func, MARK):
            return False
        arguments = list(task_result.args)
        if task.takes_context:
            arguments.insert(0, SimpleNamespace(task_result=task_result, attempt=task_result.attempts))
        job = job_of(task.func, arguments, task_result.kwargs)
        assert job is not None  # noqa: S101  it has the mark
        tell(job, task_result, **more)
    except Exception as error:  # noqa: BLE001  whatever it is, enqueueing and the task go on
        _log.warning("progress of a task is not told (%s): %s", task_result.id, describe(error))
        return False
    return True


def _connect() -> None:
    """Connect the signals of each library that is installed."""
    libraries = [name for name in ("django.tasks", "django_tasks") if find_spec(name)]
    if not libraries:
        raise ModuleNotFoundError("notifications.contrib.tasks needs Django 6 or the package django-tasks")
    for name in libraries:
        signals = import_module(f"{name}.signals")
        signals.task_enqueued.connect(_enqueued, dispatch_uid="notifications.contrib.tasks")
        signals.task_started.connect(_starts, dispatch_uid="notifications.contrib.tasks")
        signals.task_finished.connect(_finished, dispatch_uid="notifications.contrib.tasks")


_connect()
