"""Threads for the site's functions, which do not keep a process from ending, as those of the standard library do."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from concurrent.futures import Executor, Future
from errno import EAGAIN
from functools import partial
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any, ParamSpec, TypeVar

from django.db import connections

T = TypeVar("T")
P = ParamSpec("P")

_Call = tuple[Future[Any], Callable[[], Any]]


class Threads(Executor):
    """
    As many threads as there are calls at once; whoever calls bounds them.

    The interpreter waits for the threads of ``ThreadPoolExecutor`` when it exits, so that a function that hangs would
    keep a server from ending until it is killed. They end with the executor.
    """

    def __init__(self, name: str, kept: int) -> None:
        """
        Prepare; no thread starts before the first call.

        Args:
            name: Names the threads.
            kept: Threads that wait for the next call, with their connections to databases; others end after theirs.

        """
        self._name = name
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        self._idle = _Idle(kept)
        weakref.finalize(self, self._calls.put, None).atexit = False

    def submit(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """
        Have a function called in a thread.

        Raises:
            BlockingIOError: No thread can be started: there are too many in this process or container.

        """
        if not self._idle.take():
            try:
                Thread(target=_work, args=(self._calls, self._idle), name=self._name, daemon=True).start()
            except RuntimeError as error:
                raise BlockingIOError(EAGAIN, str(error)) from error
        future: Future[T] = Future()
        self._calls.put((future, partial(function, *args, **kwargs)))
        return future


class _Idle:
    """Counts the threads that wait for a call."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._count = 0
        self._lock = Lock()

    def take(self) -> bool:
        """Return whether there is one for a call that follows."""
        with self._lock:
            if not self._count:
                return False
            self._count -= 1
            return True

    def add(self) -> bool:
        """Count a thread that waits from now on; return False if it is one too many."""
        with self._lock:
            if self._count >= self._most:
                return False
            self._count += 1
            return True


def _work(calls: SimpleQueue[_Call | None], idle: _Idle) -> None:
    stays = True
    while stays and (call := calls.get()) is not None:
        tell = _outcome(*call)
        stays = idle.add()  # first, or whoever is told and calls again would start another thread
        tell()
        del call, tell  # while it waits it keeps nothing alive
    connections.close_all()
    if stays:
        calls.put(None)  # for the next one


def _outcome(future: Future[Any], function: Callable[[], Any]) -> Callable[[], None]:
    """Call a function, and return what tells whoever waits for it."""
    if not future.set_running_or_notify_cancel():
        return lambda: None
    try:
        return partial(future.set_result, function())
    except BaseException as error:  # noqa: BLE001  whoever waits raises it
        return partial(future.set_exception, error)
