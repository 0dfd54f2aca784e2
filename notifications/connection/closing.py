"""The end of a connection: one close, with a code that tells the client what to do."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from ..logs import LogBudget
from ..metrics import count
from ..protocol.frames import AuthError, CloseCode, encode
from ..tasks import ended
from .transport import Transport

logger = logging.getLogger(__name__)

RESTART_SPREAD: Final = 0.5
"""Seconds over which the closes of a stopping process are spread."""
FLUSH: Final = 0.1
"""Seconds for the last close frame to leave the process."""
LAST_WORDS: Final = 2.0
"""Seconds that a client has to accept the frame with the reason."""
_log: Final = LogBudget(logger, lines=10, period=60.0)


class Closing:
    """Closes a connection once, for the first caller."""

    __slots__ = ("_stop", "_task", "_transport", "begun")

    def __init__(self, transport: Transport, stop: Callable[[], None]) -> None:
        """
        Prepare to close.

        Args:
            transport: The transport to close.
            stop: Stops everything that could still send.

        """
        self.begun = False  # nothing else may be sent then: transports accept nothing after a close
        self._transport = transport
        self._stop = stop
        self._task: asyncio.Task[None] | None = None

    async def close(self, code: CloseCode) -> None:
        if not self.begun:
            self.begun = True
            await self._finish(code)

    async def refuse(self, code: CloseCode, message: str) -> None:
        """Send the reason, and close."""
        if not self.begun:
            self.begun = True
            await self._finish(code, message)

    def at_once(self, code: CloseCode, message: str | None = None) -> None:
        """Close now, whatever the connection is busy with; send the reason first if there is a message."""
        if not self.begun:
            self.begun = True
            self._task = asyncio.create_task(self._finish(code, message))

    async def _finish(self, code: CloseCode, message: str | None = None) -> None:
        count("closed", str(int(code)))
        self._stop()
        if message is not None:
            await self._say_why(message)
        with suppress(OSError):
            await self._transport.close(code)

    async def _say_why(self, message: str) -> None:
        """Send the reason, if the client accepts it in time; whatever a middleware raises for it, the close follows."""
        task = asyncio.current_task()
        try:
            with suppress(OSError, TimeoutError):
                async with asyncio.timeout(LAST_WORDS):
                    await self._transport.send_text(encode(AuthError(message=message)))
        except (KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError) and (task is None or task.cancelling()):
                raise
            _log.warning("a socket was closed without the reason (%s)", type(error).__name__, exc_info=error)

    async def server_stops(self) -> None:
        """
        Close because the server restarts: Daphne cancels its applications when it is told to stop.

        Without a code, browsers would see 1006. The closes are spread, so that browsers do not all come back at once;
        and every connection waits for the last close, because Daphne ends as soon as the first application has.
        """
        wait = random.uniform(0, RESTART_SPREAD)  # noqa: S311  not a secret
        await asyncio.sleep(wait)
        await self.close(CloseCode.SERVICE_RESTART)
        await asyncio.sleep(RESTART_SPREAD - wait + FLUSH)

    async def end(self) -> None:
        """Send nothing more, because the client has gone."""
        self.begun = True
        if self._task is not None:
            await ended(self._task)
