"""The interface of transports: a WebSocket (``consumers.py``), HTTP (``http.py``), or a list of frames in tests."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol

from ..protocol.frames import CloseCode


class Transport(Protocol):
    """
    Carries frames to one client. It knows no topics, and a connection relies on nothing else of it.

    No method is called after ``close``, and ``send_text`` only while the client is connected.
    """

    can_answer: bool
    """
    Whether the client can send frames after its request, as over a WebSocket.

    A client that cannot is sent no pings, and what it has not read is not counted: the transport
    then bounds what it accepts, and finds clients that are dead or too slow.
    """

    @property
    def write_texts(self) -> Callable[[Sequence[str]], bool] | None:
        """
        Accept frames at once, all of them or none, and return whether it has; None if it never can.

        This costs neither a coroutine nor a step of a task. After False, and where it is None,
        ``send_text`` is called for each. It raises what ``send_text`` raises.
        """

    def send_text(self, text: str) -> Coroutine[Any, Any, None]:
        """
        Send one frame; done when the transport has accepted it, perhaps long before the client has.

        This is called for each message and client, so a transport that can accept the text at once
        should: the first step of the coroutine costs no task. Frames are sent one at a time and in
        order; only the frame with the reason for a close may be sent while another one still waits.

        Raises:
            OSError: The client has gone; the transport then ends the connection in its own time.
                Any other error means a broken transport, and the client is told to come back.

        """

    async def close(self, code: CloseCode) -> None:
        """
        Close with a code, which tells the client what to do next.

        Raises:
            OSError: The client has gone.

        """
