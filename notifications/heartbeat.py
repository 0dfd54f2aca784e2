"""Pings browsers from time to time, and says which are dead or too slow."""

from __future__ import annotations

import asyncio
import logging
from typing import Final, Protocol

from .conf import settings
from .loops import PerLoop
from .metrics import count

logger = logging.getLogger(__name__)

PATIENCE: Final = 2
"""Beats in a row that a browser may be silent, or owe confirmations."""
GROUPS: Final = 60
"""Groups of sockets that are pinged together, one after the other, in one interval."""
STRIDE: Final = 37
"""From one socket's group to the next one's: about the golden section of ``GROUPS``, and no divisor in common."""


class Patient(Protocol):
    """What a socket can be asked, and asked to do."""

    @property
    def paused(self) -> bool:
        """Whether it is sent nothing until it has confirmed more."""

    def ping(self) -> asyncio.Future[bool]:
        """Send a numbered ping after all that waits; the future is done when the server has taken it."""

    def give_up(self) -> None:
        """Close it: it is dead or too slow."""


class Heartbeat:
    """
    The beats of one socket.

    A browser is given up when for two beats it has said nothing at all, or has been paused because it confirms
    nothing, or when a ping could not even be handed to the server until the next one was due.
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
        """Note that the browser said something."""
        self._silent_beats = 0

    def confirmed(self) -> None:
        """Note that the browser confirmed what it was sent."""
        self._paused_beats = 0

    def end(self) -> None:
        """Beat no more; no error if it never began."""
        _beats().remove(self)

    def beat(self) -> bool:
        """Ping, or give the browser up; says whether to go on."""
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
    The heartbeats of one event loop, on one timer: groups of sockets that have their turn one after the other.

    However sockets come, in one burst or one by one, they are spread over the groups, and so over the interval. An
    event loop that stood still goes on with the group that was due next: all are as late as it was itself, and none of
    them together. A timer for each socket would take as much memory as the rest of its heartbeat and half as much
    again.
    """

    def __init__(self) -> None:
        self._groups: list[set[Heartbeat]] = [set() for _ in range(GROUPS)]
        self._next = 0
        """The group that has its turn next."""
        self._last = 0
        """The group that a socket was put in last."""
        self._alive = 0
        self._at = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def add(self, heartbeat: Heartbeat) -> None:
        """Have a heartbeat beat within an interval from now, and then once in each."""
        # Into the smallest; of several the one that is far from those before: also a few are to be spread evenly.
        order = ((self._last + STRIDE * step) % GROUPS for step in range(1, GROUPS + 1))
        self._last = heartbeat.group = min(order, key=lambda group: len(self._groups[group]))
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
        """Wait for the next turn. A turn that came late by less than a turn does not make the next one late."""
        loop = asyncio.get_running_loop()
        # One turn more than there are groups: so nobody waits for longer than the interval, though timers are late.
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
                except Exception:  # of one socket; all others lean on this timer
                    count("task_restarted", "heartbeat")
                    logger.exception("the heartbeat of a socket failed")
                    continue
                if not goes_on:
                    self.remove(heartbeat)
        if self._alive and self._timer is None:
            self._wait()


_beats = PerLoop(Beats)
