"""
The button that kills the listener, from the page to the demo command.

    browser ── POST ──▶ web process ── press() ──▶ Unix socket ──▶ demo command: kill -9, start another

The socket lies in a directory that only its user may enter, and a connection is the whole request: nothing is
read from it, so nothing can be said through it but "kill the listener".
"""

import contextlib
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path

TIMEOUT = 5
"""Seconds that the command may take to kill a process and confirm it."""


class KillSwitch:
    """The demo command's end of the kill switch."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="demo-"))  # mode 0700; short, as paths of sockets must be
        self.path = self.directory / "kill-listener"
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(self.path))
        self._server.listen(1)

    def wait(self, timeout: float, kill: Callable[[], int]) -> bool:
        """
        Wait until somebody presses, at most ``timeout`` seconds; then call ``kill`` and answer the pid it returns.

        Returns:
            Whether somebody pressed. It is answered when the process is dead, before another one is started: what
            is published on the answer is published while no listener runs.

        """
        self._server.settimeout(timeout)
        try:
            connection, _ = self._server.accept()
        except TimeoutError:
            return False
        with connection, contextlib.suppress(OSError):  # whoever pressed may be gone
            connection.settimeout(TIMEOUT)
            connection.sendall(str(kill()).encode())
        return True

    def close(self) -> None:
        self._server.close()
        with contextlib.suppress(OSError):
            self.path.unlink()
            self.directory.rmdir()


def press(path: str) -> int:
    """
    Have the listener killed, and return the pid it had.

    Raises:
        OSError: If no demo command answers at ``path``.

    """
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(TIMEOUT)
        connection.connect(path)
        answer = connection.recv(20)
    if not answer.isdigit():
        raise ConnectionError("the demo command ended without an answer")
    return int(answer)
