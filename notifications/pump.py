"""
The last step to the browsers: one task an event loop hands the texts of all its sockets to the server.

A task a socket would have to be woken for each message, which costs more than the rest of the way. A server's
``send`` hardly ever waits, so its first step is made here; only a ``send`` that does wait gets a task.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from contextvars import copy_context
from typing import Any, Final

from . import metrics
from .eager import begin
from .loops import PerLoop

logger = logging.getLogger(__name__)

SLICE: Final = 64
"""Texts handed over before others of the event loop have their turn: about a millisecond."""


class Pump:
    """Hands over what the outboxes of one event loop hold, in the order of ``put``; runs while there is any outbox."""

    def __init__(self) -> None:
        self._outboxes = 0
        # An outbox, what it is to hand over, an outbox, …: flat, because a pair of each message and socket would be an
        # object for Python's garbage collector, which then looked at all sockets again and again (half of the time of
        # a fan-out to 5,000).
        self._queue: deque[Outbox | str | asyncio.Future[None]] = deque()
        self._idle: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None

    def opened(self) -> None:
        self._outboxes += 1
        if self._task is None:
            self._task = asyncio.create_task(self._run())

    def closed(self) -> None:
        self._outboxes -= 1
        self._wake()

    def put(self, outbox: Outbox, what: str | asyncio.Future[None]) -> None:
        """Have ``outbox`` hand over what it was given, after all that was put before."""
        self._queue.append(outbox)
        self._queue.append(what)
        if self._idle is not None:
            self._wake()

    def _wake(self) -> None:
        if self._idle is not None and not self._idle.done():
            self._idle.set_result(None)
        self._idle = None

    async def _run(self) -> None:
        queue, loop = self._queue, asyncio.get_running_loop()
        try:
            while self._outboxes or queue:
                for _ in range(min(SLICE, len(queue) // 2)):
                    outbox: Outbox = queue.popleft()  # type: ignore[assignment]
                    outbox.hand_over(queue.popleft())  # type: ignore[arg-type]
                if queue:
                    await asyncio.sleep(0)
                elif self._outboxes:
                    self._idle = loop.create_future()
                    await self._idle
        finally:
            self._task = self._idle = None  # both know their loop, which must not live as long as we


class Outbox:
    """
    One socket's way out: texts leave in order, one ``send`` at a time.

    It has no bound of its own: whoever puts something in counts what the browser has not confirmed.
    """

    __slots__ = ("_behind", "_context", "_failed", "_open", "_pump", "_send", "_task")

    def __init__(self, send: Callable[[dict[str, Any]], Awaitable[None]], failed: Callable[[], None]) -> None:
        """
        Prepare the way; ``close`` ends it.

        Args:
            send: The ASGI ``send`` of the socket. It is called in a copy of the present context.
            failed: Called when ``send`` raises anything but ``OSError``, which says that the browser has gone.

        """
        self._send = send
        self._failed = failed
        self._context = copy_context()
        self._behind: deque[str | asyncio.Future[None]] | None = None
        self._task: asyncio.Task[None] | None = None
        self._open = True
        self._pump = _pump()
        self._pump.opened()

    def put(self, text: str) -> None:
        """Send a text after all that was put before; returns at once."""
        self._pump.put(self, text)

    def mark(self) -> asyncio.Future[None]:
        """Return what is done when the server has taken all that was put so far, or will be given nothing more."""
        taken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self._open:
            self._pump.put(self, taken)
        else:
            taken.set_result(None)
        return taken

    def time(self, at: int) -> None:
        """Record what has passed since ``at``, in µs, when the server has taken all that was put so far."""
        if self._open:
            self.mark().add_done_callback(lambda _: metrics.sending.since(at))

    def close(self) -> None:
        """Send nothing more: servers take nothing after a close."""
        if not self._open:
            return
        self._open = False
        if self._task is not None:
            self._task.cancel()
        behind, self._behind = self._behind, None
        for put in behind or ():
            if not isinstance(put, str):
                _set(put)
        self._pump.closed()

    async def wait_closed(self) -> None:
        """Wait until a ``send`` that had to wait has ended."""
        if self._task is not None:
            await asyncio.wait([self._task])

    def hand_over(self, what: str | asyncio.Future[None]) -> None:
        """Send a text, or mark that all before was sent; behind a ``send`` that waits, later. Does not raise."""
        if self._behind is not None:
            self._behind.append(what)
            return
        if not isinstance(what, str):
            _set(what)
            return
        if not self._open:
            return
        try:
            sending = begin(self._send({"type": "websocket.send", "text": what}), self._context)
        except (OSError, asyncio.CancelledError):
            self.close()  # the browser has gone; the server says so with ``websocket.disconnect``
        except Exception as error:  # noqa: BLE001  a server, or a middleware, may raise anything
            self._broke(error)
        else:
            if sending is not None:
                self._behind = deque()
                self._task = asyncio.get_running_loop().create_task(self._catch_up(sending), context=self._context)

    async def _catch_up(self, sending: Awaitable[None]) -> None:
        """Go on with a ``send`` that waits for the browser, then with what was put meanwhile."""
        try:
            await sending
            while self._behind:
                put = self._behind.popleft()
                if isinstance(put, str):
                    await self._send({"type": "websocket.send", "text": put})
                else:
                    _set(put)
            self._behind = self._task = None
        except OSError:
            self.close()
        except Exception as error:  # noqa: BLE001  a server, or a middleware, may raise anything
            self._broke(error)

    def _broke(self, error: Exception) -> None:
        logger.error("a socket could not be sent to", exc_info=error)
        self.close()
        self._failed()


def _set(done: asyncio.Future[None]) -> None:
    if not done.done():
        done.set_result(None)


_pump = PerLoop(Pump)
