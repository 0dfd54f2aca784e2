"""
The health of the listeners: each writes its state to Redis every second, and health checks read it.

The hash ``<PREFIX>notifications:listeners`` has a field for each listener. Times are those of Redis, so the clocks of
hosts need not agree.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec

from .. import metrics
from ..aio import Timeout
from ..broker.clients import CONNECT_TIMEOUT, FAILURES, SOCKET_TIMEOUT, async_client
from ..logs import describe
from ..topics import internal_name
from .state import REPORTS, SETTLED

logger = logging.getLogger(__name__)

REPORT_INTERVAL: Final = 1.0
"""Seconds between two reports of a listener."""
MAX_AGE: Final = 5.0
"""Seconds after which a listener that has not reported is considered dead."""
FORGET_AFTER: Final = 60.0
"""Seconds after which the report of a dead listener is removed."""

CONNECTED: Final = frozenset(REPORTS[state] for state in SETTLED)
"""The reports of listeners that receive what is published."""

_KEY: Final = "listeners"
_TIME: Final = "return redis.call('TIME')"
"""Asks the server that has the key, which in a cluster is one of several, each with a clock of its own."""

_WRITE: Final = """
local time = redis.call('TIME')
local now = time[1] .. string.format('.%06d', time[2])
redis.call('HSET', KEYS[1], ARGV[1], string.sub(ARGV[2], 1, -2) .. ',"at":' .. now .. '}')
redis.call('EXPIRE', KEYS[1], ARGV[3])
return {now, redis.call('HGETALL', KEYS[1])}
"""
"""Writes a report with the time, and returns that and all reports: one command, as services may bill each."""


class Report(msgspec.Struct, kw_only=True):
    """
    What one listener reports.

    Attributes:
        host, pid: The process, for display. Containers may share both: each may be called "web" and be process 1.
        place: Where it runs, see ``this_place``.
        id: Random; the field of the hash.
        state: ``"holder"`` (stamps and forwards), ``"stand-by"`` (ready to take over), or why it receives nothing.
        forwarded: Messages handed to the channel layer since it started.
        shards: Those that it leads.
        of: How many shards it could lead; 0 once it stops.
        at: Redis time of the report, in seconds.

    """

    host: str
    pid: int
    state: str
    forwarded: int
    at: float = 0.0
    place: str = ""
    shards: list[int] = []
    of: int = 0
    id: str = msgspec.field(default_factory=partial(secrets.token_hex, 8))

    @property
    def name(self) -> str:
        return f"{self.host}:{self.pid}"

    @property
    def role(self) -> str:
        """The state for display, with the shards if there are several."""
        led = " ".join(map(str, self.shards)) if self.of > 1 else ""
        return f"{self.state} of shards {led}" if led else self.state

    @property
    def healthy(self) -> bool:
        return self.state in CONNECTED


def new_report(state: str) -> Report:
    """Create the report of a listener in this process."""
    return Report(host=socket.gethostname(), pid=os.getpid(), place=this_place(), state=state, forwarded=0)


def same_shard(one: Report, other: Report) -> bool:
    """Return whether two holders say that they lead the same shard; a report of an older version names none."""
    return not one.shards or not other.shards or not set(one.shards).isdisjoint(other.shards)


def this_place() -> str:
    """Identify the kernel and the PID namespace, which no two containers share; empty where Linux does not tell."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def nearby(reports: list[Report]) -> list[Report]:
    """Select the listeners that run in this container, or else those whose host has the same name."""
    host, place = socket.gethostname(), this_place()
    here = [report for report in reports if report.host == host]
    return [report for report in here if place and report.place == place] or here


class Status:
    """The state of this process's listener, and its report in Redis, which a task keeps fresh."""

    def __init__(self, state: str, forwarded: Callable[[], int]) -> None:
        self.report = new_report(state)
        self.state = metrics.listening.state = state
        self._forwarded = forwarded
        self._changed = asyncio.Event()

    def now(self, state: str) -> None:
        self.state = metrics.listening.state = state
        self.changed()

    def changed(self) -> None:
        """Report soon what has changed in ``report``."""
        self._changed.set()

    async def keep_reported(self) -> None:
        """Report every second and at every change, until cancelled; then sign off."""
        report = self.report
        client = await async_client()
        try:
            while True:
                self._changed.clear()
                report.state, report.forwarded = self.state, self._forwarded()
                try:
                    async with Timeout(SOCKET_TIMEOUT):
                        await write(client, report)
                except FAILURES as error:
                    logger.debug("could not report: %s", describe(error))
                with suppress(TimeoutError):
                    async with asyncio.timeout(REPORT_INTERVAL):
                        await self._changed.wait()
        finally:
            with suppress(*FAILURES):
                async with Timeout(CONNECT_TIMEOUT):
                    await remove(client, report)


async def write(client: Any, report: Report) -> None:
    """Write a report, and remove those of listeners that died long ago."""
    key = internal_name(_KEY)
    facts = {name: value for name, value in msgspec.to_builtins(report).items() if name != "at"}
    time, found = await client.eval(_WRITE, 1, key, report.id, msgspec.json.encode(facts), int(FORGET_AFTER))
    report.at = float(time)
    for field, other in _parse(dict(zip(found[::2], found[1::2], strict=True))):
        # A report from the future was written before Redis's clock was set back, or by another listener just now.
        if not -MAX_AGE <= report.at - other.at <= FORGET_AFTER:
            await client.hdel(key, field)


async def remove(client: Any, report: Report) -> None:
    await client.hdel(internal_name(_KEY), report.id)


async def living(client: Any) -> list[Report]:
    """List the listeners that have reported in the last ``MAX_AGE`` seconds."""
    return [report for report, age in await reports(client) if is_fresh(age)]


def is_fresh(age: float) -> bool:
    """Return whether a report is fresh; ``age`` is negative if the clock was set back since."""
    return 0 <= age <= MAX_AGE


async def reports(client: Any) -> list[tuple[Report, float]]:
    """List the last report of each listener and its age in seconds, including listeners that have died since."""
    found = await _read(client)
    now = await _now(client)  # afterwards, or a report written in between would be from the future
    return [(report, now - report.at) for _, report in found]


async def _now(client: Any) -> float:
    seconds, microseconds = await client.eval(_TIME, 1, internal_name(_KEY))
    return float(seconds) + float(microseconds) / 1e6


async def _read(client: Any) -> list[tuple[bytes, Report]]:
    """Read all fields and reports."""
    return _parse(await client.hgetall(internal_name(_KEY)))


def _parse(found: dict[bytes, bytes]) -> list[tuple[bytes, Report]]:
    """Return all fields and reports, in a stable order, which a Redis hash does not have."""
    reports = []
    for field, value in found.items():
        try:
            reports.append((field, msgspec.json.decode(value, type=Report)))
        except msgspec.DecodeError:  # written by another version
            continue
    return sorted(reports, key=lambda each: (each[1].host, each[1].pid, each[0]))
