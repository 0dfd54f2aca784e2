"""
What only the listener in charge does, beside the bridge: each duty in a task of its own.

An app such as the inbox registers what has to be done by one process of the site, whichever that is. A duty begins
when its listener takes charge, and is cancelled when that no longer is; for a moment two listeners may do the same, so
a duty must not rely on being the only one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final

from ..tasks import RESTART_DELAY, ended, new_task, restarted
from .state import State, StateMachine

Duty = Callable[[], Coroutine[Any, Any, None]]
"""Runs until it is cancelled; it must not block the event loop."""

_registered: Final[dict[str, Duty]] = {}


def register(name: str, duty: Duty) -> None:
    """
    Have the listener in charge do something; call it when the app is ready.

    Args:
        name: For logs and metrics; it replaces a duty of the same name.
        duty: Is called whenever a listener of this process takes charge, and again a second after it has returned or
            raised an error.

    """
    _registered[name] = duty


def registered() -> Mapping[str, Duty]:
    """Return the duties of other apps, by their names."""
    return _registered


async def do_duties(machine: StateMachine, duties: Mapping[str, Duty]) -> None:
    """Do all duties whenever the listener is in charge, until cancelled."""
    while True:
        await machine.until(lambda: machine.state is State.HOLDER)
        tasks = [new_task(_keep_doing(name, duty), name=f"notifications: {name}") for name, duty in duties.items()]
        try:
            await machine.until(lambda: machine.state is not State.HOLDER)
        finally:
            await asyncio.shield(asyncio.gather(*map(ended, tasks)))


async def _keep_doing(name: str, duty: Duty) -> None:
    task = asyncio.current_task()
    while True:
        error: BaseException | None = None
        try:
            await duty()
        except asyncio.CancelledError:
            if task is None or task.cancelling():
                raise
        except Exception as failure:  # noqa: BLE001  a duty of another app may raise anything
            error = failure
        await asyncio.sleep(RESTART_DELAY)
        restarted(name, error)
