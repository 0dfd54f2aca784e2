"""The end of one socket: one close, with a code that tells the browser what to do."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from .connection.transport import Transport
from .frames import AuthError, CloseCode, encode
from .metrics import count
from .tasks import ended

RESTART_SPREAD: Final = 0.5
"""Seconds over which the sockets of a process that stops are told so."""
FLUSH: Final = 0.1
"""Seconds for the last close frame to leave the process."""
LAST_WORDS: Final = 2.0
"""Seconds that a browser has to take the frame that says why it is closed."""


class Closing:
    """Closes a socket once, for whoever wants it first."""

    __slots__ = ("_stop", "_task", "_transport", "begun")

    def __init__(self, transport: Transport, stop: Callable[[], None]) -> None:
        """
        Prepare the end.

        Args:
            transport: What is closed.
            stop: Ends all that would still send something.

        """
        self.begun = False  # from here on nobody else may send: servers take nothing after a close
        self._transport = transport
        self._stop = stop
        self._task: asyncio.Task[None] | None = None

    async def close(self, code: CloseCode) -> None:
        if not self.begun:
            self.begun = True
            await self._finish(code)

    async def refuse(self, code: CloseCode, message: str) -> None:
        """Say why, and close."""
        if not self.begun:
            self.begun = True
            await self._finish(code, message)

    def at_once(self, code: CloseCode, message: str | None = None) -> None:
        """Deliver nothing more, say why, if there is something to say, and close; whatever the socket is busy with."""
        if not self.begun:
            self.begun = True
            self._task = asyncio.create_task(self._finish(code, message))

    async def _finish(self, code: CloseCode, message: str | None = None) -> None:
        count("closed", str(int(code)))
        self._stop()
        with suppress(OSError, TimeoutError):
            if message is not None:
                async with asyncio.timeout(LAST_WORDS):
                    await self._transport.send_text(encode(AuthError(message=message)))
        with suppress(OSError):
            await self._transport.close(code)

    async def server_stops(self) -> None:
        """
        Say that the server restarts: Daphne cancels its applications when it is told to stop.

        Without a code browsers would see 1006. They are told one after the other, so that they do not all come back
        at once; and all stay until the last has been told, because Daphne ends when the first of them does.
        """
        wait = random.uniform(0, RESTART_SPREAD)  # noqa: S311  not a secret
        await asyncio.sleep(wait)
        await self.close(CloseCode.SERVICE_RESTART)
        await asyncio.sleep(RESTART_SPREAD - wait + FLUSH)

    async def end(self) -> None:
        """Send nothing more; the socket is gone."""
        self.begun = True
        if self._task is not None:
            await ended(self._task)
