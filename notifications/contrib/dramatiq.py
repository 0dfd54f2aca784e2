"""
The progress of dramatiq's messages: that one waits, runs, is tried again, and how it has ended.

    broker.add_middleware(ProgressMiddleware())

    @dramatiq.actor
    @progress("job:{import_id}")
    def run_import(import_id): ...

    track(group([read.message(name) for name in names]), "job:7").run()

``progress`` is that of ``notifications``: without the middleware it tells what it can see from within the actor.
"""

from __future__ import annotations

import logging
import threading
from typing import Any, Final, NamedTuple, TypeVar

from dramatiq.broker import Broker, MessageProxy
from dramatiq.composition import group, pipeline
from dramatiq.errors import Retry
from dramatiq.message import Message
from dramatiq.middleware import Middleware

from ..exceptions import Cancelled
from ..jobs import announce
from ..logs import LogBudget, describe
from ..progress import Progress, end_job, job_of, progress
from ..topics import Topic
from .tracked import Marks, Tracked

__all__ = ["ProgressMiddleware", "progress", "track"]

_log: Final = LogBudget(logging.getLogger(__name__))

Tasks = TypeVar("Tasks", Message[Any], pipeline, group)

OPTION: Final = "notifications_share"
"""The option of a message that is a share of a job."""


class RetriesExceededError(Exception):
    """The end of a job whose last attempt asked for another one, by ``dramatiq.Retry``."""


class _Attempt(NamedTuple):
    """What a worker thread is doing."""

    message_id: str
    jobs: list[Progress]


class ProgressMiddleware(Middleware):  # type: ignore[misc]  # it is untyped for us
    """
    Tells the progress of actors that ``progress`` decorates.

    Where a message is sent, it tells that the job waits. In the worker, it begins the job before the actor and ends it
    when dramatiq has decided: an attempt that is tried again ends as ``waiting``, and only the last as ``failed``. A
    message that is skipped, such as one that is too old, is ``cancelled``. What has raised ``Cancelled`` is not tried
    again.

    Add it to the broker behind all others, in the processes that send as well as in the workers. None of it raises, and
    a Redis that is away costs what it costs in ``announce`` and ``Progress``. A worker that is killed says nothing;
    when dramatiq gives its messages to another one, their jobs begin again.
    """

    def __init__(self) -> None:
        self._thread = threading.local()

    def after_declare_actor(self, broker: Broker, actor: Any) -> None:
        """Count ``Cancelled`` among what the actor ``throws``: it is not tried again."""
        throws = actor.options.get("throws")
        actor.options["throws"] = Cancelled if throws is None else (throws, Cancelled)

    def after_consumer_thread_boot(self, broker: Broker, thread: Any) -> None:
        """Note the threads that only pass on what has waited for its time, which was told when it was sent."""
        self._thread.passes_on = True

    def before_enqueue(self, broker: Broker, message: Message[Any], delay: int | None) -> None:
        """Tell that a job waits: before another process can tell that it runs."""
        if self._end(message.message_id, None, waits=True) or getattr(self._thread, "passes_on", False):
            return
        tracked, job = _jobs_of(broker, message)
        if tracked is not None:
            tracked.begin()
        if job is not None:
            announce(job.topic)

    def before_process_message(self, broker: Broker, message: MessageProxy) -> None:
        """Begin the job, in which the actor goes on with it."""
        tracked, job = _jobs_of(broker, message)
        jobs = [each for each in (tracked and tracked.progress(), job) if each is not None]
        for each in jobs:
            each.__enter__()
        self._thread.attempt, self._thread.error = _Attempt(message.message_id, jobs), None

    def after_process_message(
        self, broker: Broker, message: MessageProxy, *, result: Any = None, exception: BaseException | None = None
    ) -> None:
        """End the job if all is done; otherwise wait for what is made of the error."""
        if exception is None and not message.failed:
            self._end(message.message_id, None)
        self._thread.error = exception

    def after_skip_message(self, broker: Broker, message: MessageProxy) -> None:
        """End a job that is not done."""
        if self._end(message.message_id, Cancelled("dramatiq has skipped it")):
            return
        tracked, job = _jobs_of(broker, message)
        if tracked is not None:
            tracked.announce("cancelled")
        if job is not None:
            announce(job.topic, state="cancelled")

    def before_nack(self, broker: Broker, message: MessageProxy) -> None:
        """End a job that has failed and is not tried again."""
        error = getattr(self._thread, "error", None)
        self._thread.error = None
        if isinstance(error, Retry):
            error = error.__cause__ or RetriesExceededError(*error.args)
        self._end(message.message_id, error or Cancelled("dramatiq has rejected it"))

    before_ack = before_nack  # without the middleware Retries, what has failed is done

    def _end(self, message_id: str, error: BaseException | None, *, waits: bool = False) -> bool:
        """End what this thread does for a message; return whether it did anything."""
        attempt: _Attempt | None = getattr(self._thread, "attempt", None)
        if attempt is None or attempt.message_id != message_id:
            return False
        self._thread.attempt = None
        for job in reversed(attempt.jobs):
            end_job(job, error, "waiting" if waits else None)
        return True


def _jobs_of(broker: Broker, message: Message[Any] | MessageProxy) -> tuple[Tracked | None, Progress | None]:
    """Return the share of a job that a message is, and the job that it is by itself, not begun."""
    tracked, job = None, None
    try:
        if (carried := message.options.get(OPTION)) is not None:
            tracked = Tracked.read(carried)
        job = job_of(broker.get_actor(message.actor_name).fn, message.args, message.kwargs)
    except Exception as error:  # noqa: BLE001  the actor does not take these arguments, or is not there: it says so
        _log.warning("progress of a message is not told (%s): %s", message.actor_name, describe(error))
    if tracked is not None and job is not None and job.topic == tracked.topic:
        job = None  # the actor goes on with the share
    return tracked, job


def track(tasks: Tasks, topic: Topic | str, **texts: Any) -> Tasks:
    """
    Return a copy of a group or pipeline, all messages of which are shares of one job: it has one bar.

    The job waits from when it is run. Its count is that of the messages that are done, and it has succeeded when all
    are. It fails at once if a message fails for which others wait: an earlier one of a pipeline, or one of a group with
    completion callbacks, which count as well. Otherwise it has failed in the end if one has. If one is skipped or ends
    with ``Cancelled``, the job is cancelled.

    All actors count, also those that ``progress`` does not decorate. An actor that is decorated with the same topic, or
    that gives ``Progress.current()`` to ``notifications.track``, also tells how far it is itself. What actors send
    themselves, also by ``on_success``, does not count. The broker needs ``ProgressMiddleware``.

    Call it once for each time that you run a group: each is a run of the job, and a later one replaces an earlier.

    Args:
        tasks: A group, pipeline or message; groups may have groups and pipelines in them.
        topic: Where to publish, such as ``"job:42"``.
        **texts: ``unit``, ``stage``, ``message`` and ``url`` of the job, as for ``notifications.Progress``.

    Raises:
        TopicError: The topic is not valid.
        TypeError: It is none of these.
        ValueError: It has no message, or more than a job can have shares.

    """
    marks = Marks(topic, texts)
    marked: Tasks = _marked(tasks, marks, needed=False)
    marks.close()
    return marked


def _marked(part: Any, marks: Marks, *, needed: bool) -> Any:
    if isinstance(part, Message):
        return part.copy(options={OPTION: marks.mark(needed=needed)})
    if isinstance(part, pipeline):
        last = len(part.messages) - 1
        messages = [_marked(each, marks, needed=needed or place < last) for place, each in enumerate(part.messages)]
        return pipeline(messages, broker=part.broker)
    if isinstance(part, group):
        waited_for = needed or bool(part.completion_callbacks)
        found = group([_marked(each, marks, needed=waited_for) for each in part.children], broker=part.broker)
        for callback in part.completion_callbacks:
            found.add_completion_callback(_marked(Message(**callback), marks, needed=needed))
        return found
    raise TypeError(f"{part!r} is no message, pipeline or group")
