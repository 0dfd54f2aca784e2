"""
The last step to the browsers: one queue per event loop, which passes the texts of all sockets to
the server.

With one task per socket, that task would have to be woken for each message, which costs more than everything else. A
server's ``send`` hardly ever waits, so its first step is run right here, in a task of its own (``aio.Runner``), which
is only woken when ``send`` does wait. The queue itself is not emptied by a task, so nobody can cancel it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any, Final

from .. import metrics
from ..aio import CutShortError, PerLoop, Runner
from ..logs import LogBudget
from ..tasks import ended

logger = logging.getLogger(__name__)

SLICE: Final = 64
"""Texts sent before other callbacks of the event loop get their turn: about a millisecond."""

Mark = asyncio.Future[bool]


class Pump:
    """Sends what is put into the outboxes of one event loop, in the order of ``put``."""

    def __init__(self) -> None:
        # An outbox, what it is to send, an outbox, …: flat, because a pair for each message and socket would be an
        # object for Python's garbage collector, which would then traverse all sockets again and again (half of the
        # time of a fan-out to 5,000).
        self._queue: deque[Outbox | str | Mark] = deque()
        self._due = False
        self._context = Context()

    def put(self, outbox: Outbox, what: str | Mark) -> None:
        """Have ``outbox`` send ``what`` after everything that was put before."""
        self._queue.append(outbox)
        self._queue.append(what)
        if not self._due:
            self._come_back()

    def _come_back(self) -> None:
        self._due = True
        asyncio.get_running_loop().call_soon(self._hand_over, context=self._context)

    def _hand_over(self) -> None:
        queue = self._queue
        self._due = False
        try:
            for _ in range(min(SLICE, len(queue) // 2)):
                outbox: Outbox = queue.popleft()  # type: ignore[assignment]
                outbox.hand_over(queue.popleft())  # type: ignore[arg-type]
        except Exception:  # a bug in this app: it must cost one text of one socket, not everything queued behind it
            metrics.count("task_restarted", "pump")
            logger.exception("sending a queued message failed; the others are sent")
        finally:
            if queue and not self._due:
                self._come_back()


class Outbox:
    """
    One socket's outgoing queue: texts are sent in order, one ``send`` at a time.

    It has no limit of its own: its user counts what the browser has not confirmed.
    """

    __slots__ = ("_behind", "_failed", "_open", "_pump", "_runner", "_send")

    def __init__(self, send: Callable[[str], Coroutine[Any, Any, None]], failed: Callable[[], None]) -> None:
        """
        Create an outbox; ``close`` ends it.

        Args:
            send: Passes a text to the client's transport; see ``Transport.send_text``. It runs in a copy of the current
                context, and in a task in which nothing else runs: it may use time-outs and cancel scopes, and cancel
                itself.
            failed: Called when ``send`` failed, other than because the browser has gone.

        """
        self._send = send
        self._failed = failed
        self._runner = Runner()
        self._behind: deque[str | Mark] | None = None
        """What is queued behind a pending ``send``."""
        self._open = True
        self._pump = _pump()

    @property
    def is_open(self) -> bool:
        """Whether anything that is put in may still be sent."""
        return self._open

    def put(self, text: str) -> None:
        """Send a text after everything that was put before; return at once."""
        self._pump.put(self, text)

    def mark(self) -> Mark:
        """Return a future: True when the server has accepted everything put so far, False if nothing more is sent."""
        taken: Mark = asyncio.get_running_loop().create_future()
        if self._open:
            self._pump.put(self, taken)
        else:
            taken.set_result(False)
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
        behind, self._behind = self._behind, None
        for what in behind or ():
            if not isinstance(what, str):
                _set(what, sent=False)

    async def wait_closed(self) -> None:
        """Wait until a pending ``send`` has ended."""
        if self._runner.running is not None:
            await ended(self._runner.running)

    def hand_over(self, what: str | Mark) -> None:
        """Send a text, or resolve a mark, now or after a pending ``send``. Does not raise."""
        if self._behind is not None:
            self._behind.append(what)
        elif (rest := self._hand_over(what)) is not None:
            self._behind = deque()
            rest.add_done_callback(self._taken)

    def _hand_over(self, what: str | Mark) -> asyncio.Future[None] | None:
        """Start to send a text. If ``send`` has to wait, return a future of its end."""
        if not isinstance(what, str):
            _set(what, sent=self._open)
        elif self._open:
            try:
                return self._runner.begin(self._send(what))
            except Exception as error:  # noqa: BLE001  a server, or a middleware, may raise anything
                self._broke(error)
        return None

    def _taken(self, rest: asyncio.Future[None]) -> None:
        """Continue after a pending ``send`` has ended."""
        if (error := rest.exception()) is not None:
            self._broke(error)
        else:
            self._catch_up()

    def _catch_up(self) -> None:
        behind = self._behind
        for _ in range(SLICE):
            if not behind or not self._open:
                self._behind = None
                return
            if (rest := self._hand_over(behind.popleft())) is not None:
                rest.add_done_callback(self._taken)
                return
        asyncio.get_running_loop().call_soon(self._catch_up)

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


def _set(mark: Mark, *, sent: bool) -> None:
    if not mark.done():
        mark.set_result(sent)


_log = LogBudget(logger, lines=10, period=60.0)
_pump = PerLoop(Pump)
