"""
The states of a listener, and which may follow which.

Everything that a listener does follows from its state: whether it asks for the lease, stamps and forwards, and what it
reports. There is no flag beside it that could disagree.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from enum import Enum
from typing import Final


class State(Enum):
    """
    What a listener is doing.

    ============  ========================================  =================================================
    state         may be followed by                        meaning
    ============  ========================================  =================================================
    CONNECTING    SETTLING, DISCONNECTED, STOPPING          Has not been subscribed yet.
    SETTLING      STAND_BY, DISCONNECTED, STOPPING          Subscribed; finds out what a gap left.
    STAND_BY      TAKING_OVER, DISCONNECTED, STOPPING       Would take over; asks for the lease.
    TAKING_OVER   HOLDER, STAND_BY, DISCONNECTED, STOPPING  Has the lease; waits for its marker.
    HOLDER        STAND_BY, HANDING_OVER, DRAINING          Stamps and forwards.
    HANDING_OVER  DISCONNECTED, DRAINING                    A holder cut off: stamps what it has read.
    DISCONNECTED  SETTLING, DISCONNECTED, STOPPING          Hears nothing; connects again.
    DRAINING      STOPPING                                  A holder told to stop: finishes what it has read.
    STOPPING      STOPPED                                   Told to stop: forwards what is queued.
    STOPPED                                                 ``run`` has returned.
    ============  ========================================  =================================================

    DISCONNECTED follows itself after each attempt that failed, with another reason.
    """

    CONNECTING = "connecting"
    SETTLING = "settling"
    STAND_BY = "stand-by"
    TAKING_OVER = "taking over"
    HOLDER = "holder"
    HANDING_OVER = "handing over"
    DISCONNECTED = "disconnected"
    DRAINING = "draining"
    STOPPING = "stopping"
    STOPPED = "stopped"


TRANSITIONS: Final[dict[State, frozenset[State]]] = {
    State.CONNECTING: frozenset({State.SETTLING, State.DISCONNECTED, State.STOPPING}),
    State.SETTLING: frozenset({State.STAND_BY, State.DISCONNECTED, State.STOPPING}),
    State.STAND_BY: frozenset({State.TAKING_OVER, State.DISCONNECTED, State.STOPPING}),
    State.TAKING_OVER: frozenset({State.HOLDER, State.STAND_BY, State.DISCONNECTED, State.STOPPING}),
    State.HOLDER: frozenset({State.STAND_BY, State.HANDING_OVER, State.DRAINING}),
    State.HANDING_OVER: frozenset({State.DISCONNECTED, State.DRAINING}),
    State.DISCONNECTED: frozenset({State.SETTLING, State.DISCONNECTED, State.STOPPING}),
    State.DRAINING: frozenset({State.STOPPING}),
    State.STOPPING: frozenset({State.STOPPED}),
    State.STOPPED: frozenset(),
}
"""The table of ``State``, which a test compares with this."""

WITHOUT_LEASE: Final = {
    State.HOLDER: State.STAND_BY,
    State.HANDING_OVER: State.DISCONNECTED,
    State.DRAINING: State.STOPPING,
}
"""What becomes of a listener that stamps, in each state in which it does, when it has the lease no more."""

LEADING: Final = frozenset({State.HOLDER, State.HANDING_OVER, State.DRAINING})
"""The states in which it stamps, and forwards what comes back."""
ASKING: Final = frozenset({State.STAND_BY, State.HOLDER, State.DRAINING})
"""The states in which it asks for the lease or renews it: subscribed, and in no doubt about what it has read."""
SETTLED: Final = ASKING | {State.TAKING_OVER}
"""The states in which it is subscribed, and knows what its last gap has left."""

REPORTS: Final = {
    State.CONNECTING: "connecting",
    State.STAND_BY: "stand-by",
    State.TAKING_OVER: "stand-by",
    State.HOLDER: "holder",
    State.DRAINING: "holder",
    State.HANDING_OVER: "disconnected",
    State.DISCONNECTED: "disconnected",
}
"""What health checks and metrics are told; in the other states the same as before."""


class IllegalTransitionError(RuntimeError):
    """A listener went from one state to another that may not follow it: a bug."""


class StateMachine:
    """
    The state of one listener.

    Attributes:
        state: What it is doing now.
        leads: Whether it stamps and forwards now.
        report: What it says of itself: a word of ``REPORTS``, and why it hears nothing if it does not.

    """

    def __init__(self) -> None:
        self.state = State.CONNECTING
        self.leads = False
        self.report = REPORTS[self.state]
        self._stepped = asyncio.Event()

    def move(self, to: State, reason: str = "") -> None:
        """
        Go over to another state.

        Args:
            to: The state.
            reason: Why it hears nothing, for a state in which it does not.

        Raises:
            IllegalTransitionError: ``TRANSITIONS`` does not have it.

        """
        if to not in TRANSITIONS[self.state]:
            raise IllegalTransitionError(f"a listener that is {self.state.value} cannot become {to.value}")
        self.state = to
        self.leads = to in LEADING
        if to in REPORTS and (reason or not self.report.startswith(REPORTS[to])):
            self.report = f"{REPORTS[to]}: {reason}" if reason else REPORTS[to]
        self.stepped()

    def stepped(self) -> None:
        """Have all who wait with ``until`` look again."""
        self._stepped.set()

    async def until(self, done: Callable[[], bool]) -> None:
        """Wait until something is so; looked at again after each ``move``, and whenever ``stepped`` is called."""
        while not done():
            self._stepped.clear()
            await self._stepped.wait()
