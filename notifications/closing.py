"""The end of one socket: one close, with a code that tells the browser what to do."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from typing import Final, Protocol

from .frames import AuthError, CloseCode, encode
from .metrics import count
from .tasks import ended

RESTART_SPREAD: Final = 0.5
"""Seconds over which the sockets of a process that stops are told so."""
FLUSH: Final = 0.1
"""Seconds for the last close frame to leave the process."""
HELD_BACK: Final = 0.2
"""Seconds after which a close that the server has not sent is taken for one that it keeps back."""
LAST_WORDS: Final = 2.0
"""Seconds that a browser has to take the frame that says why it is closed."""


class Closable(Protocol):
    """What is done to a socket at its end."""

    async def close(self, code: int) -> None:
        """Send the close."""

    async def send(self, text: str) -> None:
        """Send a text at once, before what may wait to be sent."""

    def stop(self) -> None:
        """End all that would still send something."""

    def interrupt(self) -> None:
        """End the wait for what the browser says; what comes next may be waited for again."""


class Closing:
    """Closes a socket once, for whoever wants it first."""

    __slots__ = ("_socket", "_task", "begun")

    def __init__(self, socket: Closable) -> None:
        self.begun = False  # from here on nobody else may send: servers take nothing after a close
        self._socket = socket
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
        self._socket.stop()
        with suppress(OSError, TimeoutError):
            if message is not None:
                async with asyncio.timeout(LAST_WORDS):
                    await self._socket.send(encode(AuthError(message=message)))
        with suppress(OSError):
            await self._close(code)

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

    async def _close(self, code: CloseCode) -> None:
        # Granian keeps a close back for as long as somebody waits in ``receive``: until the browser says something.
        timer = asyncio.get_running_loop().call_later(HELD_BACK, self._socket.interrupt)
        try:
            await self._socket.close(int(code))
        except Exception:
            if code is not CloseCode.SERVICE_RESTART:
                raise
            # Autobahn, and so Daphne, sends no codes of the registry; this one also says "come back".
            await self._socket.close(int(CloseCode.TRY_AGAIN))
        finally:
            timer.cancel()
