"""
Jobs from beside: what code does that is not the job itself.

It announces how a job stands that cannot say so, and asks one to end. ``progress.py`` is the job's own side.
"""

from __future__ import annotations

import secrets
from typing import Any, Final, NamedTuple, Self

from . import publisher, sending
from .conf import settings
from .exceptions import PublishError
from .history import get_store
from .history.shares import OVER, Report, Share, Standing
from .history.store import OvertakenError
from .messages import JobProgress, JobProgressPayload, State
from .reporting.reporter import standing_message
from .reporting.sharing import report_of
from .reporting.values import as_amount, as_number, as_text
from .topics import Topic

_NOW: Final[dict[str, Any]] = {"on_commit": False, "using": None, "fail_silently": False}
"""How everything here is sent."""


def announce(
    topic: Topic | str,
    *,
    state: State = "waiting",
    total: float | None = None,
    unit: str | None = None,
    stage: str | None = None,
    message: str | None = None,
    url: str | None = None,
    error: str | None = None,
    share: Share | None = None,
) -> None:
    """
    Tell the state of a job that does not tell it itself, from code beside it.

    Call it where a job is put into a queue, before that is done, so that its page shows that it waits; and where it is
    known how a job has ended that cannot say so: its worker was killed, or it was revoked before it began. What is not
    given is not known, and its place in the message is null.

    If Redis does not answer, that takes about a second and is logged.

    Args:
        topic: The job's.
        state: ``waiting``, or how the job has ended: ``succeeded``, ``failed`` or ``cancelled``. With an end, a request
            to cancel the job is forgotten.
        total: How much there is to do.
        unit: What is counted. This and the other texts are the site's own words, as for ``Progress``.
        stage: What the job is doing, or waiting for.
        message: A text beside it.
        url: Where the result is.
        error: Why it has failed. Users read it.
        share: The share of a job of which this is told. Without a ``key`` it is the whole job, which begins this run or
            ends at once. The rate of the job's messages is kept: what is not published now is told with the next one.

    Raises:
        TopicError: The topic is not valid.
        MessageError: There is no such state.
        ValueError: The ``share`` is not valid.

    """
    topic, said = _announcement(topic, state, total, unit, stage, message, url, error)
    key = f"announced-{secrets.token_hex(8)}"  # so that it may be sent again on another connection
    try:
        if share is not None:
            standing = sending.send(_Reporting.of(topic, share, said), **_NOW)
            if standing is not None and standing.turn:
                publisher.send(standing_message(topic, said, standing))
            return
        publisher.publish(topic, said, idempotency_key=key)
        if state in OVER:
            sending.send(_Cancelling(topic, over=True), **_NOW)
    except PublishError as failure:
        sending.log(failure)
    except OvertakenError:
        pass  # by a message with all that this one tells


async def aannounce(
    topic: Topic | str,
    *,
    state: State = "waiting",
    total: float | None = None,
    unit: str | None = None,
    stage: str | None = None,
    message: str | None = None,
    url: str | None = None,
    error: str | None = None,
    share: Share | None = None,
) -> None:
    """Tell the state of a job that does not tell it itself, without blocking the event loop; see ``announce``."""
    topic, said = _announcement(topic, state, total, unit, stage, message, url, error)
    key = f"announced-{secrets.token_hex(8)}"
    try:
        if share is not None:
            standing = await sending.asend(_Reporting.of(topic, share, said), **_NOW)
            if standing is not None and standing.turn:
                await publisher.asend(standing_message(topic, said, standing))
            return
        await publisher.apublish(topic, said, idempotency_key=key)
        if state in OVER:
            await sending.asend(_Cancelling(topic, over=True), **_NOW)
    except PublishError as failure:
        sending.log(failure)
    except OvertakenError:
        pass


def _announcement(
    topic: Topic | str, state: State, total: float | None, *texts: str | None
) -> tuple[Topic, JobProgress]:
    topic = Topic.parse(topic) if isinstance(topic, str) else topic
    unit, stage, message, url, error = texts
    total = as_number(total)
    payload = JobProgressPayload(
        id=topic.id,
        state=state,
        percent=100 if state == "succeeded" else None,
        total=None if total is None else as_amount(total),
        unit=as_text(unit),
        stage=as_text(stage),
        message=as_text(message),
        error=as_text(error),
        url=None if url is None else str(url),
    )
    return topic, JobProgress(payload=payload)


class _Reporting(NamedTuple):
    """A ``sending.Call`` that reports the state of a share."""

    topic: Topic
    report: Report

    @classmethod
    def of(cls, topic: Topic, share: Share, said: JobProgress) -> Self:
        share.check()
        interval, silence = 1 / settings.PROGRESS_RATE, settings.PROGRESS_STALE / 3
        return cls(topic, report_of(share, said.payload, "", news=True, seen=0, interval=interval, silence=silence))

    def failure(self, reason: str) -> PublishError:
        return PublishError(str(self.topic), reason)

    def send(self) -> Standing:
        return get_store().report_share(self.topic, self.report)

    async def asend(self) -> Standing:
        return await get_store().areport_share(self.topic, self.report)


class _Cancelling(NamedTuple):
    """A ``sending.Call`` that asks to cancel a job, or forgets the request because the job is over."""

    topic: Topic
    over: bool = False

    def failure(self, reason: str) -> PublishError:
        return PublishError(str(self.topic), reason)

    def send(self) -> None:
        store = get_store()
        (store.drop_cancel if self.over else store.request_cancel)(self.topic)

    async def asend(self) -> None:
        store = get_store()
        await (store.adrop_cancel if self.over else store.arequest_cancel)(self.topic)


def cancel(topic: Topic | str) -> None:
    """
    Ask the job of a topic to end. It does when it next looks, with ``check``, ``cancelled`` or in ``track``.

    The request is remembered for an hour, so that a job can see it that has not begun yet, and forgotten when the job
    ends. Where the topic's latest message says that its job is over, nothing is remembered: whoever asks too late does
    not mean the job that comes next.

    Raises:
        TopicError: The topic is not valid.
        PublishError: Redis did not confirm; the job may or may not see it.

    """
    sending.send(_cancelling(topic), **_NOW)


async def acancel(topic: Topic | str) -> None:
    """Ask the job of a topic to end, without blocking the event loop; see ``cancel``."""
    await sending.asend(_cancelling(topic), **_NOW)


def _cancelling(topic: Topic | str) -> _Cancelling:
    return _Cancelling(Topic.parse(topic) if isinstance(topic, str) else topic)
