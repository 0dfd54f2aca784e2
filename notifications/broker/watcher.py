"""
The parent of an embedded Redis, which ends it when nobody uses it any more: see ``embedded.py``, which runs this file.

It is a process of its own, because whoever started the server may be gone long before the last who uses it, and
because ``kill -9`` leaves nobody time to clean up. It takes 8 MB and looks five times a second. If it is killed
itself, the server goes with it on Linux; elsewhere that server lives on alone.

Run as a script, it imports nothing but the standard library.
"""

import ctypes
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

SOCKET, USERS, LOG = "redis.sock", "users.lock", "redis.log"
"""As in ``embedded.py``; a test compares them."""
OPTIONS = (
    *("--port", "0", "--unixsocket", SOCKET, "--unixsocketperm", "700", "--daemonize", "no"),
    *("--save", "", "--appendonly", "no", "--loglevel", "warning"),
)
INTERVAL = 0.2
"""Seconds between two looks whether somebody still uses the server."""
GRACE = 3.0
"""Seconds between SIGTERM and SIGKILL: it has nothing to save."""


def watch(server: str, lock: int) -> None:
    """Run the server, in this directory, until nobody holds the lock of its users, or it ends."""
    users = os.open(USERS, os.O_RDWR | os.O_CREAT, 0o600)
    with suppress(FileNotFoundError):
        Path(SOCKET).unlink()  # of one that was killed
    # It keeps the lock that this process was given, so that there is never another one beside it.
    child = subprocess.Popen([server, *OPTIONS], pass_fds=[lock], preexec_fn=_end_with_parent())  # noqa: S603
    try:
        while child.poll() is None and _is_used(users):
            time.sleep(INTERVAL)
    finally:
        child.terminate()
        with suppress(subprocess.TimeoutExpired):
            child.wait(GRACE)
        child.kill()
        child.wait()
        with suppress(FileNotFoundError):
            Path(SOCKET).unlink()


def _is_used(users: int) -> bool:
    """Return whether a process holds the lock; otherwise nobody gets it before this process has ended."""
    try:
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def _end_with_parent() -> Callable[[], None] | None:
    """Return what makes a child end with this process, whatever ends it; None where the system cannot."""
    if sys.platform != "linux":
        return None
    parent, libc = os.getpid(), ctypes.CDLL(None)

    def ask_the_kernel() -> None:
        libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(1)

    return ask_the_kernel


def _stop(*_: object) -> NoReturn:
    sys.exit()


def main(directory: str, server: str, lock: str) -> None:
    """Leave the process that has started this one, and watch."""
    if os.fork():
        os._exit(0)  # so that nobody has to wait for the watcher's end
    os.setsid()  # Ctrl-C in a terminal is for those who use the server
    os.umask(0o077)
    os.chdir(directory)
    log = os.open(LOG, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    for standard in (1, 2):
        os.dup2(log, standard)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _stop)
    watch(server, int(lock))


if __name__ == "__main__":
    main(*sys.argv[1:])
