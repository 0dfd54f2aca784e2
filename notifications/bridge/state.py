"""
The states of a shard of a listener, and the transitions between them.

Everything that a listener does follows from its state: whether it asks for the lease, stamps and
forwards, and what it reports. There is no separate flag that could disagree.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from enum import Enum
from typing import Final


class State(Enum):
    """
    What a listener is doing.

    ============  ============================================  =================================================
    state         may be followed by                            meaning
    ============  ============================================  =================================================
    CONNECTING    SETTLING, DISCONNECTED, STOPPING              Has not been subscribed yet.
    SETTLING      STAND_BY, DISCONNECTED, STOPPING              Subscribed; determines what a gap left.
    STAND_BY      TAKING_OVER, DISCONNECTED, STOPPING           Ready to take over; asks for the lease.
    TAKING_OVER   HOLDER, STAND_BY, DISCONNECTED, STOPPING      Has the lease; waits for its marker.
    HOLDER        STAND_BY, PASSING_ON, HANDING_OVER, DRAINING  Stamps and forwards.
    PASSING_ON    STAND_BY, HANDING_OVER, DRAINING              A holder of too much; stamps what it had read.
    HANDING_OVER  DISCONNECTED, DRAINING                        A holder cut off; stamps what it has read.
    DISCONNECTED  SETTLING, DISCONNECTED, STOPPING              Receives nothing; reconnects.
    DRAINING      STOPPING                                      A holder that stops; finishes what it has read.
    STOPPING      STOPPED                                       Forwards what is queued, then ends.
    STOPPED                                                     ``run`` has returned.
    ============  ============================================  =================================================

    DISCONNECTED may follow itself, with another reason, after each attempt that failed.
    """

    CONNECTING = "connecting"
    SETTLING = "settling"
    STAND_BY = "stand-by"
    TAKING_OVER = "taking over"
    HOLDER = "holder"
    PASSING_ON = "passing on"
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
    State.HOLDER: frozenset({State.STAND_BY, State.PASSING_ON, State.HANDING_OVER, State.DRAINING}),
    State.PASSING_ON: frozenset({State.STAND_BY, State.HANDING_OVER, State.DRAINING}),
    State.HANDING_OVER: frozenset({State.DISCONNECTED, State.DRAINING}),
    State.DISCONNECTED: frozenset({State.SETTLING, State.DISCONNECTED, State.STOPPING}),
    State.DRAINING: frozenset({State.STOPPING}),
    State.STOPPING: frozenset({State.STOPPED}),
    State.STOPPED: frozenset(),
}
"""The table of ``State``; a test compares the two."""

WITHOUT_LEASE: Final = {
    State.HOLDER: State.STAND_BY,
    State.PASSING_ON: State.STAND_BY,
    State.HANDING_OVER: State.DISCONNECTED,
    State.DRAINING: State.STOPPING,
}
"""The state that follows each state in which a listener stamps when it loses the lease."""

LEADING: Final = frozenset({State.HOLDER, State.PASSING_ON, State.HANDING_OVER, State.DRAINING})
"""The states in which a listener stamps, and forwards what comes back."""
ASKING: Final = frozenset({State.STAND_BY, State.HOLDER, State.PASSING_ON, State.DRAINING})
"""The states in which it asks for the lease or renews it: subscribed, and certain of what it has
read."""
SETTLED: Final = ASKING | {State.TAKING_OVER}
"""The states in which it is subscribed, and has determined what its last gap left."""

REPORTS: Final = {
    State.CONNECTING: "connecting",
    State.STAND_BY: "stand-by",
    State.TAKING_OVER: "stand-by",
    State.HOLDER: "holder",
    State.PASSING_ON: "holder",
    State.DRAINING: "holder",
    State.HANDING_OVER: "disconnected",
    State.DISCONNECTED: "disconnected",
}
"""What is reported to health checks and metrics; the other states leave it unchanged."""


class IllegalTransitionError(RuntimeError):
    """A listener changed to a state that may not follow its current one: a bug."""


class StateMachine:
    """
    The state of one shard of a listener.

    Attributes:
        state: What it is doing now.
        leads: Whether it stamps and forwards now.
        report: What it reports: a word of ``REPORTS``, and if it receives nothing the reason.

    """

    def __init__(self) -> None:
        self.state = State.CONNECTING
        self.leads = False
        self.report = REPORTS[self.state]
        self._stepped = asyncio.Event()

    def move(self, to: State, reason: str = "") -> None:
        """
        Change to another state.

        Args:
            to: The next state.
            reason: Why it receives nothing, for a state in which it does not.

        Raises:
            IllegalTransitionError: ``TRANSITIONS`` does not allow it.

        """
        if to not in TRANSITIONS[self.state]:
            raise IllegalTransitionError(f"a listener that is {self.state.value} cannot become {to.value}")
        self.state = to
        self.leads = to in LEADING
        if to in REPORTS and (reason or not self.report.startswith(REPORTS[to])):
            self.report = f"{REPORTS[to]}: {reason}" if reason else REPORTS[to]
        self.stepped()

    def stepped(self) -> None:
        """Have all waiting calls of ``until`` check again."""
        self._stepped.set()

    async def until(self, done: Callable[[], bool]) -> None:
        """Wait until ``done()``, which is called after each ``move`` and each ``stepped``."""
        while not done():
            self._stepped.clear()
            await self._stepped.wait()
