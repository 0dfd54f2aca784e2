"""Reporting from a thread beside a job that is no coroutine."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from typing import Final, TypeVar

from django.db import connections

from .. import publisher
from ..history import get_store
from ..history.shares import OVER, Report, Share, Standing
from ..history.store import OvertakenError
from ..messages import JobProgress, Message
from ..topics import Topic
from .reporter import FIRST_LOOK, LAST_RETRY, LOOK, Ending, Newest, Reporter, standing_message, wait_for_turn, waiting
from .sharing import whole

logger = logging.getLogger(__name__)

T = TypeVar("T")

TURN: Final = 0.001
"""Seconds of a turn that a job gives to its reporter, where threads are greenlets and a job that computes keeps all
others from running. With 0 the hub of gevent does not get to its sockets: the first message took a second
(measured)."""


class ThreadReporter(Reporter):
    """
    A reporter in a thread, or in a greenlet where threads are greenlets.

    The thread ends with the job, or after its next turn.
    """

    def __init__(self, topic: Topic, share: Share | None, newest: Newest) -> None:
        super().__init__(topic, share, newest, time.monotonic)
        self._condition = threading.Condition()
        self._looked, self._free = threading.Event(), threading.Event()
        self._stays = False
        self._thread: threading.Thread | None = None
        self._greenlets = time.sleep.__module__ != "time"  # patched by gevent or eventlet

    def start(self) -> None:
        """Publish the first message, in the thread."""
        first = self._message(again=False)
        # Receivers of signals find the context of the job there, such as its tenant.
        thread = threading.Thread(target=copy_context().run, args=(self._run, first), name="progress", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # there are too many, or the process is ending
            logger.warning("progress of %s is not published: %s", self._topic, error)
        else:
            self._thread = thread

    def end(self, last: Ending) -> None:
        """Publish what ends the job, and wait for it, within its patience; of a share, until its end is noted."""
        if self._thread is None or self.muted or sys.is_finalizing():  # then threads do not run any more
            return
        with self._condition:
            self._last = last
            self._deadline = self.clock() + self.patience
            self._condition.notify()
        self._free.wait(max(0.0, self.patience))
        if not self._stays:
            self._thread.join(max(0.0, self._deadline - self.clock()))

    def leave_to_others(self) -> None:
        """Say nothing more, and wait until what is being said now has been said, within its patience."""
        self.muted = True
        if self._thread is not None and not sys.is_finalizing():
            with self._condition:
                self._dropped = True
                self._condition.notify()
            self._thread.join(max(0.0, self.patience))

    def wait_for_look(self) -> None:
        """Wait until it was looked for the first time whether the job is cancelled, within its patience."""
        if self._thread is None or self.muted or self._looked.is_set():
            return
        started = self.clock()
        if not self._looked.wait(FIRST_LOOK):
            self._looked.set()  # nobody waits again
        self.patience -= self.clock() - started

    def mute(self) -> None:
        """Say nothing in this process, which was forked: the thread is the parent's. Its locks may be held for ever."""
        self.muted = True
        self._condition = threading.Condition()

    def _wake(self) -> None:
        with self._condition:
            self._condition.notify()

    def _give_way(self) -> None:
        if self._greenlets:
            time.sleep(TURN)

    def _run(self, first: JobProgress | None) -> None:
        try:
            if first is not None:
                self._tell(first, news=True)
            while not self._over():
                with self._condition:
                    while (wait := self._wait()) != 0:
                        self._condition.wait(wait)
                if not self._over():
                    self._turn()
            if self._last is not None:
                self._end(self._last)
        except Exception:
            logger.exception("progress of %s is no longer published", self._topic)
        finally:
            self._looked.set()
            self._free.set()
            connections.close_all()  # those that receivers of signals have opened in this thread

    def _turn(self) -> None:
        message, news = self._take()
        if message is not None:
            self._tell(message, news=news)
        if self._asked and self.clock() >= self._look_at:
            self._asked = False
            self._look()
            self._look_at = self.clock() + LOOK
            self._looked.set()

    def _look(self) -> None:
        if self._share is None:
            with suppress(Exception):  # a Redis that is away says nothing; publishing logs it
                self.cancelled = get_store().cancel_requested(self._topic)
        elif not self._quiet and (message := self._message(again=True)) is not None:
            self._tell(message, news=False)

    def _end(self, last: Ending) -> None:
        self._prepare_last()
        told: JobProgress | None = last.message
        if self._share is not None:
            told = self._end_share(self._share, last)
        elif not self._insist(partial(self._publish, self._topic, last.message, last.key)):
            return
        if told is None:
            return
        if last.user is not None:
            key = self._notice_key(last)
            if not self._insist(partial(self._publish, last.user, last.notice(told), key)):
                return
        if self._share is None and last.message.payload.state in OVER:
            with suppress(Exception):
                get_store().drop_cancel(self._topic)

    def _end_share(self, share: Share, last: Ending) -> JobProgress | None:
        """Report the end of the share; return what was told last of the job, if it has ended with it."""
        standing = self._insist(partial(self._reported, self._report(last.message, news=True)))
        if standing is None or standing.counts != "yes":
            return None
        publish = partial(self._publish_standing, last.message, standing)
        if standing.over:
            told = whole(last.message.payload, standing)
            return told if standing.turn and self._insist(publish) else None
        self._stays = True
        self._free.set()
        if standing.turn:
            publish()
        elif self._untold and waiting.add(self._topic, self._seen):
            try:
                time.sleep(wait_for_turn(standing, self._interval))
            finally:  # a greenlet may be killed here, and no later share would be told while this one is thought to be
                question = self._question(share, last.message)
            standing = None if question is None else self._reported(question)
            if standing is not None and standing.turn:
                self._publish_standing(last.message, standing)
        return None

    def _insist(self, attempt: Callable[[], T]) -> T:
        """Try until it works, or the job has waited long enough."""
        while True:
            if (done := attempt()) or self._gives_up():
                return done
            time.sleep(LAST_RETRY)

    def _tell(self, message: JobProgress, *, news: bool) -> None:
        if self._share is None:
            self._publish(self._topic, message)
        elif (standing := self._reported(self._report(message, news=news))) is not None and standing.turn:
            self._publish_standing(message, standing)

    def _reported(self, report: Report) -> Standing | None:
        try:
            standing = get_store().report_share(self._topic, report)
        except Exception as error:  # noqa: BLE001  whatever it is, the job goes on
            self._published(error)
            return None
        self._noted(standing)
        return standing

    def _publish_standing(self, message: JobProgress, standing: Standing) -> bool:
        try:
            publisher.send(standing_message(self._topic, message, standing))
        except OvertakenError:
            pass  # by a message with all that this one tells
        except Exception as error:  # noqa: BLE001  whatever it is, the job goes on
            return self._published(error)
        return self._published(None)

    def _publish(self, topic: Topic, message: Message, key: str | None = None) -> bool:
        try:
            publisher.publish(topic, message, idempotency_key=key)
        except Exception as error:  # noqa: BLE001  whatever it is, the job goes on
            return self._published(error)
        return self._published(None)
