"""
The bridge: raw Redis publishes become channel-layer group messages.

    Redis ──▶ Subscription ──▶ bounded queue ──▶ forwarding task ──▶ channel_layer.group_send

The reading side only reads. One task forwards, one message after the other, so that the order of Redis is
the order of every topic.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from contextlib import suppress
from typing import Any, Final

from . import connections, health
from .conf import settings
from .exceptions import MessageError, TopicError
from .messages import check_raw
from .metrics import count
from .subscription import FAILURES, Subscription, backoff
from .topics import Topic, patterns

logger = logging.getLogger(__name__)

LAYER_MESSAGE: Final = "notifications.message"
"""The ``type`` of what we send to groups. Channels makes a method name of it, so it is never the payload's."""

MAX_QUEUE_BYTES: Final = 64 * 1024 * 1024
"""Payload bytes that may wait to be forwarded. Beyond that new messages are dropped, counted and logged:
pausing would only move the queue into Redis, which cuts us off at 32 MB and loses all of it."""
GROUP_SEND_TIMEOUT: Final = 5.0
"""Seconds that the channel layer may take for one message."""
DRAIN_TIMEOUT: Final = 4.0
"""Seconds to forward what has been read when we are told to stop; below the 5 promised to the supervisor."""
LOG_LINES: Final = 100
"""Lines about refused or lost messages in ``LOG_PERIOD`` seconds; one bad program must not fill the disk."""
LOG_PERIOD: Final = 10.0


class Listener:
    """
    Forwards what is published on the channels of all kinds to their groups, until it is stopped.

    One at a time: two would forward everything twice.
    """

    def __init__(self, layer: Any) -> None:
        self._layer = layer
        self._queue: deque[tuple[bytes, bytes]] = deque()
        self._queued_bytes = 0
        self._wake = asyncio.Event()
        self._stopping = asyncio.Event()
        self._subscription: Subscription | None = None
        self._state = "connecting"
        self._state_changed = asyncio.Event()
        self._log = _LogBudget()
        self.forwarded = 0

    def stop(self) -> None:
        """Stop reading, forward what has been read, and let ``run`` return."""
        self._stopping.set()

    async def run(self) -> None:
        """Bridge until ``stop``. Redis may come and go; nothing but cancellation ends this earlier."""
        async with asyncio.TaskGroup() as tasks:
            reading = tasks.create_task(self._keep_subscribed())
            forwarding = tasks.create_task(self._forward())
            reporting = tasks.create_task(self._report())
            await self._stopping.wait()
            reading.cancel()
            await asyncio.wait([reading])
            self._wake.set()
            await asyncio.wait([forwarding], timeout=DRAIN_TIMEOUT)
            if self._queue:
                self._lost("not forwarded in time before the end", len(self._queue))
            forwarding.cancel()
            reporting.cancel()
        logger.info("stopped; forwarded %d messages", self.forwarded)

    async def _keep_subscribed(self) -> None:
        delays = backoff()
        while True:
            try:
                self._subscription = await Subscription.open(settings.REDIS_URL, self._received)
                try:
                    await self._subscription.psubscribe(*patterns())
                    self._now("listening")
                    logger.info("listening on %s", " ".join(patterns()))
                    delays = backoff()
                    reason = await self._subscription.wait_closed()
                finally:
                    self._subscription.close()
            except FAILURES as error:
                reason = str(error) or type(error).__name__
            self._now(f"not connected: {reason}")
            count("listener_gap")
            delay = next(delays)
            logger.warning("not connected to Redis (%s); trying again in %.1f s", reason, delay)
            await asyncio.sleep(delay)

    def _now(self, state: str) -> None:
        self._state = state
        self._state_changed.set()

    def _received(self, channel: bytes, data: bytes) -> None:
        if self._queued_bytes > MAX_QUEUE_BYTES:
            self._lost("the queue is full")
            return
        self._queue.append((channel, data))
        self._queued_bytes += len(data)
        self._wake.set()

    async def _forward(self) -> None:
        while not self._stopping.is_set():
            await self._wake.wait()
            self._wake.clear()
            while self._queue:
                channel, data = self._queue[0]
                await self._forward_one(channel, data)
                self._queue.popleft()
                self._queued_bytes -= len(data)

    async def _forward_one(self, channel: bytes, data: bytes) -> None:
        try:
            topic = Topic.from_channel(channel)
            text = check_raw(data, settings.MAX_MESSAGE_SIZE)
        except (TopicError, MessageError) as error:
            count("refused", str(error))
            self._log.warning("refused a message on channel %r: %s", channel[:256], error)
            return
        message = {"type": LAYER_MESSAGE, "topic": str(topic), "text": text}
        try:
            async with asyncio.timeout(GROUP_SEND_TIMEOUT):
                await self._layer.group_send(topic.group, message)
        except Exception as error:  # noqa: BLE001  a layer may raise anything; it must cost this message only
            self._lost(f"the channel layer failed: {type(error).__name__}")
        else:
            self.forwarded += 1

    def _lost(self, reason: str, amount: int = 1) -> None:
        count("dropped", reason, amount)
        self._log.warning("lost %d message(s): %s", amount, reason)

    async def _report(self) -> None:
        host, pid = health.this_process()
        client = await connections.async_client()
        report = health.Report(host=host, pid=pid, state=self._state, forwarded=0)
        try:
            while True:
                self._state_changed.clear()
                report.state, report.forwarded = self._state, self.forwarded
                try:
                    await health.write(client, report)
                except FAILURES as error:
                    logger.debug("could not report: %s", error)
                with suppress(TimeoutError):
                    async with asyncio.timeout(health.REPORT_INTERVAL):
                        await self._state_changed.wait()
        finally:
            try:
                async with asyncio.timeout(connections.CONNECT_TIMEOUT):
                    await health.remove(client, report)
            except FAILURES as error:
                logger.debug("could not sign off: %s", error)


class _LogBudget:
    """Warns, but not more often than ``LOG_LINES`` in ``LOG_PERIOD`` seconds; says how many it left out."""

    def __init__(self) -> None:
        self._period_ends = 0.0
        self._lines = 0

    def warning(self, text: str, *arguments: object) -> None:
        now = time.monotonic()
        if now >= self._period_ends:
            if (silent := self._lines - LOG_LINES) > 0:
                logger.warning("… and %d more such lines left out", silent)
            self._period_ends = now + LOG_PERIOD
            self._lines = 0
        self._lines += 1
        if self._lines <= LOG_LINES:
            logger.warning(text, *arguments)
