"""What a transport must do: a WebSocket today (``consumers.py``), a list of frames in a test."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, Protocol

from ..protocol.frames import CloseCode


class Transport(Protocol):
    """
    The way to one client. It knows no topics, and a connection knows nothing else of it.

    Neither method is called again once ``close`` was, and ``send_text`` only while the client is there.
    """

    def send_text(self, text: str) -> Coroutine[Any, Any, None]:
        """
        Hand over one frame. Done when the transport has taken it, which may be long before the client has it.

        This is called for each message and client, so a transport that can take the text at once should: the first
        step of the coroutine costs no task. Frames come one at a time and in order; only the frame that says why a
        connection is closed may come while another one still waits.

        Raises:
            OSError: The client has gone; the transport then ends the connection in its own time. Any other error is
                taken for a broken transport, and the client is told to come back.

        """

    async def close(self, code: CloseCode) -> None:
        """
        Tell the client that this is the end, and what to do next.

        Raises:
            OSError: The client has gone.

        """
