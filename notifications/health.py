"""
How the listeners are: each writes its state to Redis every second, health checks read them.

One hash, ``<PREFIX>notifications:listeners``, a field a process. The time is that of Redis, so hosts need
not agree on theirs.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

import msgspec

from . import metrics
from .connections import CONNECT_TIMEOUT, FAILURES, SOCKET_TIMEOUT, async_client
from .topics import internal_name

logger = logging.getLogger(__name__)

REPORT_INTERVAL: Final = 1.0
"""Seconds between two reports of a listener."""
MAX_AGE: Final = 5.0
"""Seconds after which a listener that has not reported is taken for dead."""
FORGET_AFTER: Final = 60.0
"""Seconds after which the report of a dead one is removed."""

CONNECTED: Final = frozenset({"holder", "stand-by"})
"""The states of a listener that hears what is published."""

_KEY: Final = "listeners"


class Report(msgspec.Struct, kw_only=True):
    """
    What one listener says of itself.

    Attributes:
        host, pid: The process.
        state: ``"holder"`` (stamps and forwards), ``"stand-by"`` (would take over), or why it hears nothing.
        forwarded: Messages handed to the channel layer since it started.
        at: Redis time of the report, in seconds.

    """

    host: str
    pid: int
    state: str
    forwarded: int
    at: float = 0.0

    @property
    def field(self) -> str:
        return f"{self.host}:{self.pid}"

    @property
    def healthy(self) -> bool:
        return self.state in CONNECTED


def this_process() -> tuple[str, int]:
    return socket.gethostname(), os.getpid()


class Status:
    """The state of this process's listener, and the task that keeps its report fresh."""

    def __init__(self, forwarded: Callable[[], int]) -> None:
        self.state = metrics.listening.state = "connecting"
        self._forwarded = forwarded
        self._changed = asyncio.Event()

    @property
    def connected(self) -> bool:
        return self.state in CONNECTED

    def now(self, state: str) -> None:
        self.state = metrics.listening.state = state
        self._changed.set()

    async def keep_reported(self) -> None:
        """Report every second and at every change, until cancelled; then sign off."""
        host, pid = this_process()
        report = Report(host=host, pid=pid, state=self.state, forwarded=0)
        client = await async_client()
        try:
            while True:
                self._changed.clear()
                report.state, report.forwarded = self.state, self._forwarded()
                try:
                    async with asyncio.timeout(SOCKET_TIMEOUT):
                        await write(client, report)
                except FAILURES as error:
                    logger.debug("could not report: %s", error)
                with suppress(TimeoutError):
                    async with asyncio.timeout(REPORT_INTERVAL):
                        await self._changed.wait()
        finally:
            with suppress(*FAILURES):
                async with asyncio.timeout(CONNECT_TIMEOUT):
                    await remove(client, report)


async def write(client: Any, report: Report) -> None:
    """Write a report, and forget those of listeners long dead."""
    key = internal_name(_KEY)
    report.at = await _now(client)
    await client.hset(key, report.field, msgspec.json.encode(report))
    await client.expire(key, int(FORGET_AFTER))
    for other in await _read(client):
        if report.at - other.at > FORGET_AFTER:
            await client.hdel(key, other.field)


async def remove(client: Any, report: Report) -> None:
    await client.hdel(internal_name(_KEY), report.field)


async def living(client: Any) -> list[Report]:
    """List the listeners that have reported in the last ``MAX_AGE`` seconds."""
    return [report for report, age in await reports(client) if age <= MAX_AGE]


async def reports(client: Any) -> list[tuple[Report, float]]:
    """List the last report of each listener and how many seconds old it is, also of those that have died since."""
    now = await _now(client)
    return [(report, now - report.at) for report in await _read(client)]


async def _now(client: Any) -> float:
    seconds, microseconds = await client.time()
    return float(seconds + microseconds / 1e6)


async def _read(client: Any) -> list[Report]:
    """Read all reports, in an order that people can rely on: a hash of Redis has none."""
    reports = []
    for value in (await client.hgetall(internal_name(_KEY))).values():
        try:
            reports.append(msgspec.json.decode(value, type=Report))
        except msgspec.DecodeError:  # written by another version
            continue
    return sorted(reports, key=lambda report: (report.host, report.pid))
