"""What there is one of for each event loop: asyncio's futures and tasks belong to theirs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final, Generic, TypeVar, cast

T = TypeVar("T")

_MADE: Final = "_notifications"


class PerLoop(Generic[T]):
    """
    Return the running event loop's instance, creating it on first use.

    The loop itself keeps it, and both go together. A dictionary with weak keys would keep both for good as soon as the
    instance knows its loop, as every lock and event does that somebody has waited for.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make

    def __call__(self) -> T:
        made: dict[PerLoop[Any], Any] = vars(asyncio.get_running_loop()).setdefault(_MADE, {})
        if self not in made:
            made[self] = self._make()
        return cast("T", made[self])
