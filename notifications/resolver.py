"""
Host names, without waiting for a name server that does not answer.

``getaddrinfo`` takes no time-out, and on a silent name server it waits for 5 to 30 seconds. So it runs in a thread of
its own, and whoever asks waits only for as long as they may; all who ask for the same name meanwhile wait for the same
thread, so there is at most one for each name. An answer that came too late for whoever asked is there for the next.
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

ANSWER_TTL: Final = 5.0
"""Seconds that an answer is used again: no longer than the addresses of hosted servers, which a failover changes."""

_Answer = Future[list[str]]
_lock = threading.Lock()
_asked: dict[str, tuple[_Answer, float]] = {}
"""By name: the answer, and when it came; 0 while it is awaited."""


def addresses(host: str, within: float) -> list[str]:
    """
    Return the IP addresses of a host, at least one.

    Args:
        host: A name, or an address, which is its own.
        within: Seconds that the answer may take.

    Raises:
        redis.TimeoutError: The name server does not answer.
        OSError: There is no such host.

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
        async with asyncio.timeout(within):
            return await asyncio.wrap_future(_ask(host))
    except TimeoutError:
        raise _silent(host, within) from None


def _silent(host: str, within: float) -> redis.TimeoutError:
    return redis.TimeoutError(f"no name server said within {within:.1f} s where {host} is")


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
            answer.set_running_or_notify_cancel()  # whoever gives up waiting does not end it for others
            _asked[host] = answer, 0.0
            threading.Thread(target=_look_up, args=(host, answer), name=f"look up {host}", daemon=True).start()
        return answer


def _look_up(host: str, answer: _Answer) -> None:
    try:
        found = [str(each[4][0]) for each in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]
    except BaseException as error:  # noqa: BLE001  whoever waits gets it
        with _lock:
            _forget(host, answer)
        # Of a label that is empty or too long the codec for names says so, and nobody expects that of a network.
        answer.set_exception(OSError(f"{host} is no host name") if isinstance(error, UnicodeError) else error)
    else:
        with _lock:
            if _asked.get(host, (None, 0.0))[0] is answer:
                _asked[host] = answer, time.monotonic()
        answer.set_result(list(dict.fromkeys(found)))


def forget(host: str) -> None:
    """Ask again next time: nothing was there at what was answered."""
    with _lock:
        answer, came = _asked.get(host, (None, 0.0))
        if answer is not None and came:
            _forget(host, answer)


def _forget(host: str, answer: _Answer) -> None:
    if _asked.get(host, (None, 0.0))[0] is answer:
        del _asked[host]


def _begin_anew() -> None:
    """In a child process the threads are gone, and perhaps one of them held the lock."""
    global _lock
    _lock = threading.Lock()
    _asked.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)
