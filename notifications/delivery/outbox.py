"""
The last step to the browsers: each socket's queue, and the pump that empties the queues of one
event loop.

With one task per socket, that task would have to be woken for each message, which costs more than everything else. A
server's ``send`` hardly ever waits, so its first step is run right here, in a task of its own (``aio.Runner``), which
is only woken when ``send`` does wait. The pump itself is no task, so nobody can cancel it.

It goes by socket: whatever waits for one is sent together, which a server can pass to the operating system at once.
A transport that can is given it without any coroutine (``Transport.write_texts``).
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from contextvars import Context
from typing import Any, Final

from .. import metrics
from ..aio import CutShortError, PerLoop, Runner
from ..logs import LogBudget
from ..tasks import ended

logger = logging.getLogger(__name__)

SLICE: Final = 64
"""Texts sent before other callbacks of the event loop get their turn: about a millisecond. As many of one socket are
sent before the next socket's, so a turn has at most twice as many."""

Mark = asyncio.Future[bool]


class Pump:
    """Has the outboxes of one event loop sent, one after the other, those with more than ``SLICE`` texts in turns."""

    def __init__(self) -> None:
        self._outboxes: deque[Outbox] = deque()
        self._is_due = False
        self._context = Context()

    def add(self, outbox: Outbox) -> None:
        """Have what waits in an outbox sent, after the outboxes that were added before."""
        self._outboxes.append(outbox)
        if not self._is_due:
            self._come_back()

    def _come_back(self) -> None:
        self._is_due = True
        asyncio.get_running_loop().call_soon(self._take_turn, context=self._context)

    def _take_turn(self) -> None:
        outboxes, sent = self._outboxes, 0
        try:
            while outboxes and sent < SLICE:
                sent += outboxes.popleft().send()
        except Exception:  # a bug in this app: it must cost one socket, not everything queued behind it
            metrics.count("task_restarted", "pump")
            logger.exception("sending a queued message failed; the others are sent")
        finally:
            self._is_due = False
            if outboxes:
                self._come_back()


class Outbox:
    """
    One socket's outgoing queue: texts are sent in order, one ``send`` at a time.

    It has no limit of its own: its user counts what the browser has not confirmed.
    """

    __slots__ = ("_failed", "_is_due", "_marks", "_open", "_pump", "_queue", "_runner", "_send", "_write")

    def __init__(
        self,
        send: Callable[[str], Coroutine[Any, Any, None]],
        failed: Callable[[], None],
        write: Callable[[Sequence[str]], bool] | None = None,
    ) -> None:
        """
        Create an outbox; ``close`` ends it.

        Args:
            send: Passes a text to the client's transport; see ``Transport.send_text``. It runs in a copy of the current
                context, and in a task in which nothing else runs: it may use time-outs and cancel scopes, and cancel
                itself.
            failed: Called when ``send`` failed, other than because the browser has gone.
            write: Passes texts without a coroutine, if the transport can; see ``Transport.write_texts``.

        """
        self._send = send
        self._write = write
        self._failed = failed
        self._runner = Runner()
        # A list for each socket, and none for each message: that would be an object for Python's garbage collector,
        # which would then traverse all sockets again and again (half of the time of a fan-out to 5,000).
        self._queue: list[str] = []
        """What the server has not accepted; of a pending ``send`` the text is the first."""
        self._marks: list[tuple[int, Mark]] | None = None
        """Each with how many of these texts are before it."""
        self._is_due = False
        """Whether the pump will come, or the end of a pending ``send``."""
        self._open = True
        self._pump = _pump()

    @property
    def is_open(self) -> bool:
        """Whether anything that is put in may still be sent."""
        return self._open

    def put(self, text: str) -> None:
        """Send a text after everything that was put before; return at once. Nothing happens after ``close``."""
        if self._open:
            self._queue.append(text)
            if not self._is_due:
                self._is_due = True
                self._pump.add(self)

    def mark(self) -> Mark:
        """Return a future: True when the server has accepted everything put so far, False if nothing more is sent."""
        taken: Mark = asyncio.get_running_loop().create_future()
        if self._queue:
            self._marks = self._marks or []
            self._marks.append((len(self._queue), taken))
        else:
            taken.set_result(self._open)
        return taken

    def time(self, at: int) -> None:
        """Record the time since ``at``, in µs, when the server has accepted everything put so far."""
        self.mark().add_done_callback(lambda taken: metrics.sending.since(at) if taken.result() else None)

    def close(self) -> None:
        """Send nothing more, because servers accept nothing after a close."""
        if not self._open:
            return
        self._open = False
        self._runner.end()
        self._queue = []
        marks, self._marks = self._marks, None
        for _, mark in marks or ():
            _set(mark, accepted=False)

    async def wait_closed(self) -> None:
        """Wait until a pending ``send`` has ended."""
        if self._runner.running is not None:
            await ended(self._runner.running)

    def send(self) -> int:
        """Send what waits, until ``send`` has to wait itself; return how many texts. For the pump."""
        texts = self._queue[:SLICE]
        pending: asyncio.Future[None] | None = None
        try:
            if self._write is not None and texts and self._write(texts):
                self._accept(len(texts))
            else:
                pending = self._begin(texts)
        except (KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        except BaseException as error:  # noqa: BLE001  a server, or a middleware, may raise anything
            self._broke(error)
        if pending is not None:
            pending.add_done_callback(self._ended)
        elif self._queue:
            self._pump.add(self)
        else:
            self._is_due = False
        return len(texts)

    def _begin(self, texts: list[str]) -> asyncio.Future[None] | None:
        """Send one by one. If ``send`` has to wait, return a future of its end."""
        accepted = 0
        try:
            for text in texts:
                if not self._open:  # closed by the ``send`` before
                    break
                if (pending := self._runner.begin(self._send(text))) is not None:
                    return pending
                accepted += 1
        finally:
            self._accept(accepted)
        return None

    def _accept(self, count: int) -> None:
        """Note that the server has accepted so many more texts."""
        del self._queue[:count]
        if self._marks is not None:
            for before, mark in self._marks:
                if before <= count:
                    _set(mark, accepted=True)
            self._marks = [(before - count, mark) for before, mark in self._marks if before > count] or None

    def _ended(self, pending: asyncio.Future[None]) -> None:
        """Continue after a pending ``send`` has ended."""
        if (error := pending.exception()) is not None:
            self._broke(error)
        else:
            self._accept(1)
            self._pump.add(self)

    def _broke(self, error: BaseException) -> None:
        if not self._open:
            return  # cancelled by ``close``
        self.close()
        if isinstance(error, OSError) and not isinstance(error, TimeoutError):
            return  # the browser has gone; its transport ends the connection in its own time
        reason = type(error).__name__
        metrics.count("send_failed", reason)
        _log.warning(
            "a socket could not be sent to (%s); the browser is told to come back",
            reason,
            exc_info=None if isinstance(error, TimeoutError | CutShortError) else error,
        )
        self._failed()


def _set(mark: Mark, *, accepted: bool) -> None:
    if not mark.done():
        mark.set_result(accepted)


_log = LogBudget(logger, lines=10, period=60.0)
_pump = PerLoop(Pump)
