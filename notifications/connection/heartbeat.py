"""The heartbeat: pings browsers at intervals, and finds those that are dead or too slow."""

from __future__ import annotations

import asyncio
import logging
from typing import Final, Protocol

from ..aio import PerLoop
from ..conf import settings
from ..metrics import count

logger = logging.getLogger(__name__)

PATIENCE: Final = 2
"""Beats in a row for which a browser may stay silent, or confirm nothing."""
GROUPS: Final = 60
"""Groups of sockets that are pinged together, one after the other, in one interval."""
STRIDE: Final = 37
"""Distance between the groups of two successive sockets: about the golden section of ``GROUPS``, and coprime to it."""


class Patient(Protocol):
    """What the heartbeat needs of a socket."""

    @property
    def paused(self) -> bool:
        """Whether nothing is sent to it until it has confirmed more."""

    def ping(self) -> asyncio.Future[bool]:
        """Send a numbered ping after everything queued; the future is done when the server has accepted it."""

    def give_up(self) -> None:
        """Close it: it is dead or too slow."""


class Heartbeat:
    """
    The heartbeat of one socket.

    A browser is given up when for two beats it has sent nothing at all, or has been paused because it confirms
    nothing, or when the server has not even accepted a ping by the time the next one is due.
    """

    __slots__ = ("_paused_beats", "_ping", "_silent_beats", "_socket", "group")

    def __init__(self, socket: Patient) -> None:
        self.group: int | None = None
        self._socket = socket
        self._ping: asyncio.Future[bool] | None = None
        self._silent_beats = 0
        self._paused_beats = 0

    def begin(self) -> None:
        _beats().add(self)

    def heard(self) -> None:
        """Note that the browser sent something."""
        self._silent_beats = 0

    def confirmed(self) -> None:
        """Note that the browser confirmed what it was sent."""
        self._paused_beats = 0

    def end(self) -> None:
        """Stop beating; no error if it never began."""
        _beats().remove(self)

    def beat(self) -> bool:
        """Ping, or give up the browser; return whether to continue."""
        self._paused_beats = self._paused_beats + 1 if self._socket.paused else 0
        stuck = self._ping is not None and not self._ping.done()
        if stuck or max(self._silent_beats, self._paused_beats) >= PATIENCE:
            self._socket.give_up()
            return False
        self._silent_beats += 1
        self._ping = self._socket.ping()
        return True


class Beats:
    """
    The heartbeats of one event loop, on one timer: groups of sockets that take turns.

    Whether sockets arrive in one burst or one by one, they are spread over the groups, and so over the interval. An
    event loop that was blocked continues with the group that was due next: each group is as late as the loop itself,
    and they are not pinged all together. A timer for each socket would take one and a half times as much memory as the
    rest of its heartbeat.
    """

    def __init__(self) -> None:
        self._groups: list[set[Heartbeat]] = [set() for _ in range(GROUPS)]
        self._next = 0
        """The group whose turn is next."""
        self._last = 0
        """The group into which the last socket was put."""
        self._alive = 0
        self._at = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def add(self, heartbeat: Heartbeat) -> None:
        """Have a heartbeat beat within one interval from now, and then once in each."""
        # Into the smallest group; of several, one far from the previous ones, so that even a few are spread evenly.
        order = ((self._last + STRIDE * step) % GROUPS for step in range(1, GROUPS + 1))
        smallest = min(map(len, self._groups))  # then usually the first in order: a third of the time of comparing all
        self._last = heartbeat.group = next(group for group in order if len(self._groups[group]) == smallest)
        self._groups[heartbeat.group].add(heartbeat)
        self._alive += 1
        if self._timer is None:
            self._at = asyncio.get_running_loop().time()
            self._wait()

    def remove(self, heartbeat: Heartbeat) -> None:
        """Forget a heartbeat; no error if it was not added."""
        if heartbeat.group is None:
            return
        self._groups[heartbeat.group].discard(heartbeat)
        heartbeat.group = None
        self._alive -= 1
        if not self._alive and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _wait(self) -> None:
        """Wait for the next turn. A turn that is late by less than a turn does not delay the next one."""
        loop = asyncio.get_running_loop()
        # One turn more than there are groups, so that nobody waits longer than the interval although timers run late.
        self._at = max(self._at + settings.HEARTBEAT_INTERVAL / (GROUPS + 1), loop.time())
        self._timer = loop.call_at(self._at, self._beat)

    def _beat(self) -> None:
        self._timer = None
        group = self._groups[self._next]
        self._next = (self._next + 1) % GROUPS
        for heartbeat in list(group):
            if heartbeat in group:
                try:
                    goes_on = heartbeat.beat()
                except Exception:  # one socket's; all others depend on this timer
                    count("task_restarted", "heartbeat")
                    logger.exception("the heartbeat of a socket failed")
                    continue
                if not goes_on:
                    self.remove(heartbeat)
        if self._alive and self._timer is None:
            self._wait()


_beats = PerLoop(Beats)
