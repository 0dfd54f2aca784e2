"""
The progress of RQ's jobs: that one waits, runs, is tried again, and how it has ended.

    queue = Queue(connection=connection, job_class=Job)
    worker = Worker([queue], connection=connection, job_class=Job)

    @progress("job:{import_id}")
    def run_import(import_id): ...

    queue.enqueue_many(track([Queue.prepare_data(read, [name]) for name in names], "job:7"))

``progress`` is that of ``notifications``: with RQ's own ``Job`` it tells what it can see from within the function.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any, Final

from rq import job as rq
from rq.job import JobStatus
from rq.queue import EnqueueData

from ..exceptions import Cancelled
from ..jobs import announce
from ..logs import LogBudget, describe
from ..messages import State
from ..progress import Progress, end_job, job_of, progress
from ..topics import Topic
from .tracked import Marks, Tracked

__all__ = ["Job", "progress", "track"]

_log: Final = LogBudget(logging.getLogger(__name__))

META: Final = "notifications_progress"
"""Where a job's ``meta`` has its topic: whoever cancels it, or finds it killed, need not have its function."""
SHARE: Final = "notifications_share"
"""Where it has the share of a job that it is."""
KILLED: Final = "Work-horse terminated unexpectedly"
"""The error of a job whose process was killed, in RQ's words."""


class Job(rq.Job):  # type: ignore[misc]  # it is untyped for us
    """
    RQ's ``Job``, which tells its progress if ``progress`` decorates its function.

    RQ sets the status of a job wherever it changes: in the process that enqueues or cancels it, in its work-horse, and
    in the worker, if the work-horse was killed or stopped. This class tells it there, so it decides nothing: an attempt
    that RQ tries again ends as ``waiting``, and only the last as ``failed``. A job that has raised ``Cancelled`` is not
    tried again.

    Give it as ``job_class`` to each ``Queue`` and ``Worker``, and use it for ``Job.fetch(…).cancel()``. None of it
    raises, and a Redis that is away costs what it costs in ``announce`` and ``Progress``. If a worker is killed with
    its work-horse, nothing is told until another worker finds the job abandoned; RQ looks for those every ten minutes.

    Jobs that are enqueued by the path of their function, with ``unique=True`` or with a ``rate_limit``, or by
    ``enqueue_many`` before their dependencies are done, are told from the moment in which they run; of those by path,
    nobody is told that their process was killed.
    """

    _attempt: Sequence[Progress] = ()
    _error: BaseException | None = None
    _told: State | None = None

    @classmethod
    def create(
        cls,
        func: Any,
        args: Sequence[Any] | None = None,
        kwargs: dict[str, Any] | None = None,
        *more: Any,
        **options: Any,
    ) -> Job:
        """Create a job whose ``meta`` has its topic; see RQ's own."""
        job: Job = super().create(func, args, kwargs, *more, **options)
        if callable(func) and (found := _progress_of(func, args or (), kwargs or {})) is not None:
            job.meta = {**job.meta, META: str(found.topic)}
        return job

    def restore(self, raw_data: Any) -> Any:
        """Read what Redis has of a job; one that waits for others was told to wait by whoever has enqueued it."""
        read = super().restore(raw_data)
        if self._status in (JobStatus.DEFERRED, JobStatus.READY_TO_ENQUEUE):
            self._told = "waiting"
        return read

    @property
    def should_retry(self) -> bool:
        """Whether RQ is to try it again: never if somebody has cancelled it."""
        return bool(super().should_retry) and not isinstance(self._error, Cancelled)

    def perform(self) -> Any:
        """Run the function, which goes on with the progress that begins here."""
        self._begin()
        try:
            result = super().perform()
        except BaseException as error:
            self._error = error  # what is made of it shows in ``set_status``
            raise
        if not isinstance(result, rq.Retry):
            self._tell("succeeded")
        return result

    def set_status(self, status: JobStatus, pipeline: Any = None) -> None:
        """Set the status, and tell it before others can see it."""
        if status in (JobStatus.QUEUED, JobStatus.DEFERRED, JobStatus.SCHEDULED):
            self._tell("waiting")
        elif status == JobStatus.FAILED:
            self._tell("failed")
        elif status == JobStatus.STOPPED or (status == JobStatus.CANCELED and self._status not in NOT_CANCELLED):
            self._tell("cancelled")
        super().set_status(status, pipeline=pipeline)

    def _begin(self) -> None:
        self._error = None
        tracked = self._tracked()
        try:
            job = _progress_of(self.func, self.args, self.kwargs)
        except Exception:  # noqa: BLE001  it cannot be imported, which running it says as well
            return
        if tracked is not None and job is not None and job.topic == tracked.topic:
            job = None  # the function goes on with the share
        self._attempt = [each for each in (tracked and tracked.progress(), job) if each is not None]
        for each in self._attempt:
            each.__enter__()
            self._told = "running"

    def _tell(self, state: State) -> None:
        """Tell a state once: of the attempt, if this process has one that is open, otherwise beside it."""
        before, self._told = self._told, state
        if state == before:
            return
        if self._attempt:
            failed = state == "failed" and self._error is not None
            for each in reversed(self._attempt):
                end_job(each, self._error, None if failed else state)
            self._attempt = ()
            return
        error = KILLED if state == "failed" and before is None else None
        if state == "failed" and self._error is not None:
            error = type(self._error).__name__
        tracked, topic = self._tracked(), self.meta.get(META)
        if tracked is not None:
            if state == "waiting" and self.started_at is None:
                tracked.begin()
            else:
                tracked.announce(state, error)
        if topic is not None and (tracked is None or topic != str(tracked.topic)):
            try:
                announce(topic, state=state, error=error)
            except Exception as failure:  # noqa: BLE001  somebody has written nonsense there
                _log.warning("progress of a job is not told (%s): %s", self.id, describe(failure))

    def _tracked(self) -> Tracked | None:
        try:
            return None if (carried := self.meta.get(SHARE)) is None else Tracked.read(carried)
        except Exception as failure:  # noqa: BLE001  as above
            _log.warning("progress of a job is not told (%s): %s", self.id, describe(failure))
        return None


NOT_CANCELLED: Final = (JobStatus.STARTED, JobStatus.FINISHED, JobStatus.FAILED, JobStatus.STOPPED, JobStatus.CANCELED)
"""What ``Job.cancel`` does not end: a job that runs goes on, and one that has ended has been told."""


def _progress_of(function: Any, arguments: Sequence[Any], named: dict[str, Any]) -> Progress | None:
    """Return the progress of a call, not begun; None if it has none."""
    try:
        return job_of(function, arguments, named)
    except Exception as error:  # noqa: BLE001  the function does not take these arguments: it says so
        _log.warning("progress of a job is not told (%s): %s", function, describe(error))
    return None


def track(jobs: Iterable[EnqueueData], topic: Topic | str, **texts: Any) -> list[EnqueueData]:
    """
    Return what ``enqueue_many`` of a queue or ``rq.group.Group`` takes, all jobs of which are shares of one: one bar.

    The job waits from when they are enqueued. Its count is that of the jobs that are done, and it has succeeded when
    all are. It fails at once if a job fails on which another of them depends by its ``job_id``; otherwise it has failed
    in the end if one has. If one is stopped or cancelled, all are for the bar, but the others go on unless they look.

    All functions count, also those that ``progress`` does not decorate. A function that is decorated with the same
    topic, or that gives ``Progress.current()`` to ``notifications.track``, also tells how far it is itself. The queues
    and workers need ``Job`` as their ``job_class``.

    Call it once for each time that you enqueue them: each is a run of the job, and a later one replaces an earlier.

    Args:
        jobs: What ``Queue.prepare_data`` returns, for each.
        topic: Where to publish, such as ``"job:42"``.
        **texts: ``unit``, ``stage``, ``message`` and ``url`` of the job, as for ``notifications.Progress``.

    Raises:
        TopicError: The topic is not valid.
        TypeError: There is no such text.
        ValueError: There is no job, or there are more than a job can have shares.

    """
    marks, jobs = Marks(topic, texts), list(jobs)
    waited_for = {name for each in jobs if each.depends_on for name in _names_of(each.depends_on)}
    found = [
        each._replace(meta={**(each.meta or {}), SHARE: marks.mark(needed=each.job_id in waited_for)}) for each in jobs
    ]
    marks.close()
    return found


def _names_of(depends_on: Any) -> Iterable[str]:
    """Return the ids of the jobs on which one depends, that have to succeed."""
    if isinstance(depends_on, rq.Dependency):
        return () if depends_on.allow_failure else _names_of(depends_on.dependencies)
    if isinstance(depends_on, list | tuple):
        return [name for each in depends_on for name in _names_of(each)]
    return [depends_on.id if isinstance(depends_on, rq.Job) else str(depends_on)]
