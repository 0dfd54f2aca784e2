"""
The progress of dramatiq's messages: that one waits, runs, is tried again, and how it has ended.

    broker.add_middleware(ProgressMiddleware())

    @dramatiq.actor
    @progress("job:{import_id}")
    def run_import(import_id): ...

``progress`` is that of ``notifications``: without the middleware it tells what it can see from within the actor.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

from dramatiq.broker import Broker, MessageProxy
from dramatiq.errors import Retry
from dramatiq.message import Message
from dramatiq.middleware import Middleware

from ..exceptions import Cancelled
from ..jobs import announce
from ..logs import describe
from ..progress import Progress, job_of, progress

__all__ = ["ProgressMiddleware", "progress"]

logger = logging.getLogger(__name__)


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
        if self._end(message.message_id, Retry()) or getattr(self._thread, "passes_on", False):
            return
        for job in self._jobs(broker, message):
            announce(job.topic)

    def before_process_message(self, broker: Broker, message: MessageProxy) -> None:
        """Begin the job, in which the actor goes on with it."""
        jobs = []
        for job in self._jobs(broker, message):
            job.__enter__()
            jobs.append(job)
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
        skipped = Cancelled("dramatiq has skipped it")
        if not self._end(message.message_id, skipped):
            for job in self._jobs(broker, message):
                announce(job.topic, state="cancelled")

    def before_nack(self, broker: Broker, message: MessageProxy) -> None:
        """End a job that has failed and is not tried again."""
        error = getattr(self._thread, "error", None)
        self._thread.error = None
        if isinstance(error, Retry):
            error = error.__cause__ or RetriesExceededError(*error.args)
        self._end(message.message_id, error or Cancelled("dramatiq has rejected it"))

    before_ack = before_nack  # without the middleware Retries, what has failed is done

    def _end(self, message_id: str, error: BaseException | None) -> bool:
        """End what this thread does for a message; return whether it did anything."""
        attempt: _Attempt | None = getattr(self._thread, "attempt", None)
        if attempt is None or attempt.message_id != message_id:
            return False
        self._thread.attempt = None
        for job in reversed(attempt.jobs):
            job.__exit__(None if error is None else type(error), error, None if error is None else error.__traceback__)
        return True

    def _jobs(self, broker: Broker, message: Message[Any] | MessageProxy) -> Iterator[Progress]:
        """Yield the jobs that a message is, not begun."""
        try:
            job = job_of(broker.get_actor(message.actor_name).fn, message.args, message.kwargs)
        except Exception as error:  # noqa: BLE001  the actor does not take these arguments, or is not there: it says so
            logger.warning("progress of a message is not told (%s): %s", message.actor_name, describe(error))
        else:
            if job is not None:
                yield job
