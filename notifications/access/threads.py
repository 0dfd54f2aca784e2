"""Threads for the site's functions, which do not keep a process from ending, as those of the standard library do."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from concurrent.futures import Executor, Future
from errno import EAGAIN
from functools import partial
from queue import SimpleQueue
from threading import Semaphore, Thread
from typing import Any, ParamSpec, TypeVar

T = TypeVar("T")
P = ParamSpec("P")

_Call = tuple[Future[Any], Callable[[], Any]]


class Threads(Executor):
    """
    As many threads as there are calls at once; whoever calls bounds them.

    The interpreter waits for the threads of ``ThreadPoolExecutor`` when it exits, so that a function that hangs would
    keep a server from ending until it is killed. They end with the executor.
    """

    def __init__(self, name: str) -> None:
        """
        Prepare; no thread starts before the first call.

        Args:
            name: Names the threads.

        """
        self._name = name
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        self._idle = Semaphore(0)
        weakref.finalize(self, self._calls.put, None)

    def submit(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """
        Have a function called in a thread.

        Raises:
            BlockingIOError: No thread can be started: there are too many in this process or container.

        """
        future: Future[T] = Future()
        self._calls.put((future, partial(function, *args, **kwargs)))
        if not self._idle.acquire(blocking=False):
            try:
                Thread(target=_work, args=(self._calls, self._idle), name=self._name, daemon=True).start()
            except RuntimeError as error:
                future.cancel()  # or the next thread would call it
                raise BlockingIOError(EAGAIN, str(error)) from error
        return future


def _work(calls: SimpleQueue[_Call | None], idle: Semaphore) -> None:
    while (call := calls.get()) is not None:
        tell = _outcome(*call)
        idle.release()  # first, or whoever is told and calls again would start another thread
        tell()
        del call, tell  # while it waits it keeps nothing alive
    calls.put(None)  # for the next one


def _outcome(future: Future[Any], function: Callable[[], Any]) -> Callable[[], None]:
    """Call a function, and return what tells whoever waits for it."""
    if not future.set_running_or_notify_cancel():
        return lambda: None
    try:
        return partial(future.set_result, function())
    except BaseException as error:  # noqa: BLE001  whoever waits raises it
        return partial(future.set_exception, error)
