"""
Host name lookups that do not wait for a name server that does not answer.

``getaddrinfo`` has no time-out: with a silent name server it waits for 5 to 30 seconds. So it runs in its own thread,
and callers wait only as long as they want to. All callers for one name wait for the same thread, so there is at most
one for each name. An answer that arrives too late for its caller serves the next one.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
import threading
import time
from concurrent.futures import Future
from contextlib import suppress
from typing import Final

import redis

from ..aio import Timeout

ANSWER_TTL: Final = 5.0
"""Seconds that an answer is cached: no longer than the addresses of hosted servers, which change at a failover."""

_Answer = Future[list[str]]
_lock = threading.Lock()
_asked: dict[str, tuple[_Answer, float]] = {}
"""By name: the answer, and when it arrived; 0 while it is pending."""


def addresses(host: str, within: float) -> list[str]:
    """
    Return the IP addresses of a host, at least one.

    Args:
        host: A name, or an IP address, which is returned as it is.
        within: Seconds to wait for the answer.

    Raises:
        redis.TimeoutError: The name server does not answer.
        OSError: There is no such host, or no thread can be started to ask.

    """
    if _is_address(host):
        return [host]
    try:
        return _ask(host).result(within)
    except TimeoutError:
        raise _silent(host, within) from None


async def aaddresses(host: str, within: float) -> list[str]:
    """Return the IP addresses of a host without blocking the event loop; see ``addresses``."""
    if _is_address(host):
        return [host]
    try:
        async with Timeout(within):
            return await asyncio.wrap_future(_ask(host))
    except TimeoutError:
        raise _silent(host, within) from None


def _silent(host: str, within: float) -> redis.TimeoutError:
    return redis.TimeoutError(f"no name server answered within {within:.1f} s for {host}")


def _is_address(host: str) -> bool:
    with suppress(ValueError):
        ipaddress.ip_address(host)
        return True
    return False


def _ask(host: str) -> _Answer:
    with _lock:
        answer, came = _asked.get(host, (None, 0.0))
        if answer is None or (came and time.monotonic() - came > ANSWER_TTL):
            answer = Future()
            answer.set_running_or_notify_cancel()  # one caller giving up must not cancel it for others
            thread = threading.Thread(target=_look_up, args=(host, answer), name=f"look up {host}", daemon=True)
            _asked[host] = answer, 0.0
            try:
                thread.start()
            except RuntimeError as error:  # the interpreter ends, or there are too many threads
                del _asked[host]
                answer.set_exception(OSError(f"{host} cannot be looked up: {error}"))
        return answer


def _look_up(host: str, answer: _Answer) -> None:
    try:
        found = [str(each[4][0]) for each in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]
    except BaseException as error:  # noqa: BLE001  the waiting callers get it
        with _lock:
            _forget(host, answer)
        # A label that is empty or too long is a UnicodeError of the codec, which no caller of a network expects.
        answer.set_exception(OSError(f"{host} is not a host name") if isinstance(error, UnicodeError) else error)
    else:
        with _lock:
            if _asked.get(host, (None, 0.0))[0] is answer:
                _asked[host] = answer, time.monotonic()
        answer.set_result(list(dict.fromkeys(found)))


def forget(host: str) -> None:
    """Look up the name again next time, because nothing was reachable at its addresses."""
    with _lock:
        answer, came = _asked.get(host, (None, 0.0))
        if answer is not None and came:
            _forget(host, answer)


def _forget(host: str, answer: _Answer) -> None:
    if _asked.get(host, (None, 0.0))[0] is answer:
        del _asked[host]


def _begin_anew() -> None:
    """Reset the state in a child process: the threads are gone, and one of them may have held the lock."""
    global _lock
    _lock = threading.Lock()
    _asked.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)
