"""
The last step to the browsers: one queue an event loop, from which the texts of all its sockets go to the server.

A task a socket would have to be woken for each message, which costs more than the rest of the way. A server's
``send`` hardly ever waits, so its first step is made here, within the socket's own task (``eager.py``); that task is
woken only when ``send`` does wait. The queue itself is emptied by no task: nobody can cancel it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any, Final

from . import metrics
from .eager import CutShortError, Runner
from .logs import LogBudget
from .loops import PerLoop

logger = logging.getLogger(__name__)

SLICE: Final = 64
"""Texts handed over before others of the event loop have their turn: about a millisecond."""

Mark = asyncio.Future[bool]


class Pump:
    """Hands over what the outboxes of one event loop hold, in the order of ``put``."""

    def __init__(self) -> None:
        # An outbox, what it is to hand over, an outbox, …: flat, because a pair of each message and socket would be an
        # object for Python's garbage collector, which then looked at all sockets again and again (half of the time of
        # a fan-out to 5,000).
        self._queue: deque[Outbox | str | Mark] = deque()
        self._due = False
        self._context = Context()

    def put(self, outbox: Outbox, what: str | Mark) -> None:
        """Have ``outbox`` hand over what it was given, after all that was put before."""
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
        except Exception:  # a bug of ours: it costs one text of one socket, and not all that waits behind it
            metrics.count("task_restarted", "pump")
            logger.exception("what hands texts to the server failed; it goes on")
        finally:
            if queue and not self._due:
                self._come_back()


class Outbox:
    """
    One socket's way out: texts leave in order, one ``send`` at a time.

    It has no bound of its own: whoever puts something in counts what the browser has not confirmed.
    """

    __slots__ = ("_behind", "_failed", "_open", "_pump", "_runner", "_send")

    def __init__(self, send: Callable[[str], Coroutine[Any, Any, None]], failed: Callable[[], None]) -> None:
        """
        Prepare the way; ``close`` ends it.

        Args:
            send: Hands a text to the client's transport; see ``Transport.send_text``. It runs in a copy of the present
                context, and in a task in which nothing else runs: it may use time-outs and cancel scopes, and cancel
                itself.
            failed: Called when ``send`` did not do its work, and not because the browser has gone.

        """
        self._send = send
        self._failed = failed
        self._runner = Runner()
        self._behind: deque[str | Mark] | None = None
        """What waits behind a ``send`` that waits."""
        self._open = True
        self._pump = _pump()

    @property
    def is_open(self) -> bool:
        """Whether anything that is put in may still be sent."""
        return self._open

    def put(self, text: str) -> None:
        """Send a text after all that was put before; returns at once."""
        self._pump.put(self, text)

    def mark(self) -> Mark:
        """Return what is done when the server has taken all that was put so far, or (False) will be given no more."""
        taken: Mark = asyncio.get_running_loop().create_future()
        if self._open:
            self._pump.put(self, taken)
        else:
            taken.set_result(False)
        return taken

    def time(self, at: int) -> None:
        """Record what has passed since ``at``, in µs, when the server has taken all that was put so far."""
        self.mark().add_done_callback(lambda taken: metrics.sending.since(at) if taken.result() else None)

    def close(self) -> None:
        """Send nothing more: servers take nothing after a close."""
        if not self._open:
            return
        self._open = False
        self._runner.end()
        behind, self._behind = self._behind, None
        for what in behind or ():
            if not isinstance(what, str):
                _set(what, sent=False)

    async def wait_closed(self) -> None:
        """Wait until a ``send`` that had to wait has ended."""
        await self._runner.wait_ended()

    def hand_over(self, what: str | Mark) -> None:
        """Send a text, or mark that all before was sent; behind a ``send`` that waits, later. Does not raise."""
        if self._behind is not None:
            self._behind.append(what)
        elif (rest := self._hand_over(what)) is not None:
            self._behind = deque()
            rest.add_done_callback(self._taken)

    def _hand_over(self, what: str | Mark) -> asyncio.Future[None] | None:
        """Begin to send a text; returns what is done when ``send`` has ended, if that takes longer."""
        if not isinstance(what, str):
            _set(what, sent=self._open)
        elif self._open:
            try:
                return self._runner.begin(self._send(what))
            except Exception as error:  # noqa: BLE001  a server, or a middleware, may raise anything
                self._broke(error)
        return None

    def _taken(self, rest: asyncio.Future[None]) -> None:
        """Go on behind a ``send`` that had to wait."""
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
            return  # it was cancelled by ourselves
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
