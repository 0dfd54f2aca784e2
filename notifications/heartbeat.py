"""Pings browsers from time to time, and says which are dead or too slow."""

from __future__ import annotations

import asyncio
from typing import Final, Protocol

from .conf import settings
from .loops import PerLoop

PATIENCE: Final = 2
"""Beats in a row that a browser may be silent, or owe confirmations."""
GRAIN: Final = 0.05
"""Seconds that a beat may come late: sockets that are due within it share a wake-up."""


class Patient(Protocol):
    """What a socket can be asked, and asked to do."""

    @property
    def paused(self) -> bool:
        """Whether it is sent nothing until it has confirmed more."""

    def ping(self) -> asyncio.Future[None]:
        """Send a numbered ping after all that waits; the future is done when the server has taken it."""

    def give_up(self) -> None:
        """Close it: it is dead or too slow."""


class Heartbeat:
    """
    The beats of one socket.

    A browser is given up when for two beats it has said nothing at all, or has been paused because it confirms
    nothing, or when a ping could not even be handed to the server until the next one was due.
    """

    __slots__ = ("_paused_beats", "_ping", "_silent_beats", "_socket")

    def __init__(self, socket: Patient) -> None:
        self._socket = socket
        self._ping: asyncio.Future[None] | None = None
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
    The heartbeats of one event loop, on one timer.

    A timer for each socket would take as much memory as the rest of its heartbeat and half as much again.
    """

    def __init__(self) -> None:
        self._due: dict[Heartbeat, float] = {}
        """In their order: all have the same interval."""
        self._timer: asyncio.TimerHandle | None = None

    def add(self, heartbeat: Heartbeat) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time() + settings.HEARTBEAT_INTERVAL
        self._due[heartbeat] = due
        if self._timer is None:
            self._timer = loop.call_at(due, self._beat)

    def remove(self, heartbeat: Heartbeat) -> None:
        self._due.pop(heartbeat, None)
        if not self._due and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _beat(self) -> None:
        self._timer = None
        loop = asyncio.get_running_loop()
        now = loop.time() + GRAIN
        due = []
        for heartbeat, at in self._due.items():
            if at > now:
                break
            due.append(heartbeat)
        for heartbeat in due:
            if self._due.pop(heartbeat, None) is not None and heartbeat.beat():
                self.add(heartbeat)
        if self._due and self._timer is None:
            self._timer = loop.call_at(next(iter(self._due.values())), self._beat)


_beats = PerLoop(Beats)
