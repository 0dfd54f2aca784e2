"""
The bridge: what is published becomes messages to channel-layer groups.

    raw channel ──▶ backlog ──▶ (holder) stamping script ──▶ …:stamped ──▶ (holder) outgoing ──▶ group_send

All that is stamped, whoever stamped it, comes back on the internal channel, and only what arrives there is
forwarded, in that order. Of several listeners the one that holds the lease stamps and forwards; the others
remember what it has not finished, and one of them takes over when the lease ends.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import lru_cache
from typing import Any, Final

from msgspec.structs import replace

from . import connections, health, pipeline
from .backlog import Backlog, Entry
from .broker.reconnect import backoff, connected, keep_connected
from .conf import settings
from .connections import FAILURES
from .exceptions import MessageError, TopicError
from .forwarder import Forwarder
from .history import get_store
from .history.stamped import STAMPED, Stamped, read_stamped, tail, tail_of
from .history.store import NOT_HOLDER
from .lease import POLL_INTERVAL, RENEW_INTERVAL, Lease
from .logs import LogBudget, describe
from .messages import check_raw
from .metrics import Sampler, count, listening, microseconds
from .recent import Recent
from .settlement import Settlement
from .tasks import going_on
from .topics import Topic, internal_name, patterns
from .wire import MAX_SILENCE, Subscription, confirmed, site_pool

logger = logging.getLogger(__name__)

BATCH_MESSAGES: Final = 200
BATCH_BYTES: Final = 256 * 1024
"""What one script call stamps at most: it holds Redis up for about 1.5 ms."""
MARKER_TIMEOUT: Final = 2.0
"""Seconds in which our own word must come back on the internal channel; otherwise we are deaf."""
CANCEL_INTERVAL: Final = 0.2
"""Seconds between two attempts to end a task."""
ECHO: Final = 0.05
"""Seconds in which what Redis has published comes back to us, at the least that we wait before we ask again."""
SETTLE_TIMEOUT: Final = 3.0
"""Seconds after which what was read before a gap is given up, if Redis has not said whether it was stamped."""
DRAIN_TIMEOUT: Final = 3.5
"""Seconds to finish what has been read when we are told to stop; below the 5 promised to the supervisor."""
OWN_FRAME: Final = b'{"_meta":{"topic":"'
"""How what ``publish_*`` says on the topic's own channel begins: it arrives stamped as well."""


class Listener:
    """Bridges until it is stopped. Any number may run."""

    def __init__(self, layer: Any) -> None:
        self._log = LogBudget(logger)
        self._sampler = Sampler()
        self._refusals = LogBudget(logger, lines=1, period=60.0)
        self._forwarder = Forwarder(layer, self._log)
        self._stamped_channel = internal_name(STAMPED).encode()
        self._backlog = Backlog()
        self._recent = Recent()
        self._lease = Lease()
        self._leading = False
        self._marker: tuple[bytes, asyncio.Future[None]] | None = None
        self._batch = 0
        self._stamping = False
        self._work = asyncio.Event()
        self._missed_wake = asyncio.Event()
        self._subscription: Subscription | None = None
        self._settlement: Settlement | None = None
        self._settled = self._overtaken = False
        self._gap_at: float | None = None
        self._gap_term = ""
        self._run = ""
        self._connected = asyncio.Event()
        self._stopping = asyncio.Event()
        self._max_size = settings.MAX_MESSAGE_SIZE
        self._topic = lru_cache(maxsize=10_000)(Topic.from_channel)
        self.status = health.Status(lambda: self._forwarder.forwarded)
        listening.waiting = lambda: len(self._backlog) + len(self._forwarder)

    def stop(self) -> None:
        """Stop reading, finish what has been read, give the lease back, and let ``run`` return."""
        self._stopping.set()

    async def run(self) -> None:
        """Bridge until ``stop``. Redis may come and go; nothing but cancellation ends this earlier."""
        async with asyncio.TaskGroup() as tasks:
            running = [
                tasks.create_task(going_on("listener", job))
                for job in (
                    self._keep_subscribed,
                    self._lead,
                    self._stamp,
                    self._forwarder.run,
                    self._forward_missed,
                    self.status.keep_reported,
                )
            ]
            await self._stopping.wait()
            await self._finish()
            while running:
                # More than once: on Python 3.11 a wait_for under redis-py can swallow a cancellation.
                for task in running:
                    task.cancel()
                running = list((await asyncio.wait(running, timeout=CANCEL_INTERVAL))[1])
        logger.info("stopped; forwarded %d messages", self._forwarder.forwarded)

    async def _finish(self) -> None:
        try:
            async with asyncio.timeout(DRAIN_TIMEOUT):
                if self._subscription is not None:
                    await confirmed(self._subscription.subscribe(*patterns(), command="PUNSUBSCRIBE"))
                await self._while(lambda: self._leading and bool(self._backlog))
                if self._leading and not self._backlog:
                    # A stand-by stamps at once what comes now; what is still to be forwarded was stamped before.
                    await self._give_lease_back()
                await self._while(lambda: bool(self._forwarder))
        except FAILURES as error:
            logger.warning("not everything was finished: %s", describe(error))
        if unfinished := len(self._forwarder) + (len(self._backlog) if self._leading else self._backlog.kept):
            self._log.lost("not forwarded in time before the end", unfinished)
        if self._leading:
            await self._give_lease_back()

    # Reading.

    async def _keep_subscribed(self) -> None:
        # Listeners are few, and one that is not connected misses what is published: it comes back as soon as it can.
        await keep_connected(self._subscribed, self._disconnected, steady=0.0)

    @asynccontextmanager
    async def _subscribed(self) -> AsyncIterator[Subscription]:
        async with connected(Subscription(self._received), site_pool()) as subscription:
            self._settled = self._overtaken = False
            self._settlement = Settlement(self._backlog, self._recent.seen) if self._backlog.kept else None
            subscription.command(*self._lease.announcement())
            await confirmed(
                subscription.subscribe(self._stamped_channel)
                + subscription.subscribe(*patterns(), command="PSUBSCRIBE")
            )
            self._subscription = subscription
            try:
                logger.info("listening on %s", " ".join(patterns()))
                self._lease.subscribed()
                await self._settle()
                self.status.now("stand-by")
                self._connected.set()
                yield subscription
            finally:
                self._subscription = None

    async def _disconnected(self, reason: str, delay: float) -> None:
        self.status.now(f"deaf: {reason}")
        await self._gap()
        logger.warning("not connected to Redis (%s); trying again in %.1f s", reason, delay)

    async def _gap(self) -> None:
        """
        Note that our subscription misses something from here on.

        A holder first finishes what it has read, which nobody else has stamped. Then others lead, who miss nothing.
        """
        count("listener_gap")
        if self._marker is not None and not self._marker[1].done():
            # Our marker can no longer reach us; waiting would keep the lease from a stand-by that is still subscribed.
            self._marker[1].set_exception(ConnectionError("cut off while taking over"))
        if self._leading:
            with suppress(TimeoutError):
                async with asyncio.timeout(connections.SOCKET_TIMEOUT):
                    await self._while(lambda: self._leading and bool(self._backlog.waiting or self._stamping))
            await self._give_lease_back()
        self._backlog.gap()
        self._recent.gap(asyncio.get_running_loop().time())
        if self._gap_at is None:  # otherwise we have not been subscribed since
            self._gap_at = asyncio.get_running_loop().time() - MAX_SILENCE  # it may have been dead for so long
            self._gap_term = self._lease.term

    async def _settle(self) -> None:
        """
        Find out which of the messages that were read before the gap are still to be stamped.

        If their holder is dead, we may be the only one that has them.
        """
        settlement, before, self._run, told, term = self._settlement, self._run, "", False, ""
        with suppress(TimeoutError):
            async with asyncio.timeout(SETTLE_TIMEOUT):
                for delay in backoff():
                    try:
                        self._run = await get_store().server()
                        term = await self._lease.read_term()
                        # Histories of another server do not tell what this one has lost.
                        if settlement is not None and self._gap_at is not None and self._run == before:
                            await settlement.settle(asyncio.get_running_loop().time() - self._gap_at)
                            told = True
                        break
                    except FAILURES as error:
                        logger.debug("could not look for what was stamped in a gap: %s", describe(error))
                        await asyncio.sleep(delay)
        given_up = settlement.given_up if settlement is not None else 0
        if not told:
            given_up += self._backlog.give_up()
            self._settlement = None
        elif term != self._gap_term or not term:
            # Another has led meanwhile, perhaps without having heard these messages, or some went out without ids.
            # What is left now would come again, or behind later messages of its topic.
            given_up += self._backlog.give_up()
        self._gap_at = None
        self._settled = True
        self._give_up(given_up)

    def _give_up(self, given_up: int = 0) -> None:
        """
        Forget what is kept from before a gap, if it is no longer ours to stamp.

        A holder stamps in the order in which all listeners read: as soon as a later message has its stamp, whoever
        leads has dealt with what was before it.
        """
        if self._overtaken and self._settled:
            given_up += self._backlog.give_up()
        if given_up:
            self._log.lost("read before a gap, and not known to be stamped", given_up)
        if overtaken := self._backlog.overtaken:
            self._backlog.overtaken = 0
            self._log.lost("a later message of its topic was stamped first", overtaken)

    async def _while(self, busy: Callable[[], bool]) -> None:
        while busy():  # noqa: ASYNC110  seldom and short: an event for each condition says less
            await asyncio.sleep(0.01)

    def _received(self, channel: bytes, data: bytes) -> None:
        if channel == self._stamped_channel:
            self._received_stamped(data)
        elif not data.startswith(OWN_FRAME):
            self._received_raw(channel, data)

    def _received_raw(self, channel: bytes, data: bytes) -> None:
        try:
            topic = self._topic(channel)
            text = check_raw(data, self._max_size)
        except (TopicError, MessageError) as error:
            count("refused", type(error).__name__)
            self._log.warning("refused a message on channel %r: %s", channel[:256], error)
            return
        now = asyncio.get_running_loop().time()
        if expired := self._backlog.expire(now):
            self._log.lost("nobody stamped it in time", expired)
        if self._backlog.add(topic, tail(text.encode()), now):
            self._work.set()
        else:
            self._log.lost("the backlog is full")

    def _received_stamped(self, data: bytes) -> None:
        if self._marker is not None and data == self._marker[0]:
            self._begin_to_lead()
            return
        try:
            stamped = read_stamped(data)
        except ValueError:
            return  # the marker of another listener
        if self._backlog.knows(stamped.topic):
            new = self._settlement is None or self._settlement.arrived(stamped)
            if new and stamped.road != "p":
                entry = self._backlog.strike(stamped.topic, tail_of(stamped))
                if entry is None and self._backlog.kept:
                    # It was published in the gap, after all that is kept of its topic.
                    self._give_up(self._backlog.give_up(stamped.topic))
                if entry is not None and self._leading and self._sampler.due():
                    stamped = replace(stamped, at=microseconds(ago=asyncio.get_running_loop().time() - entry.at))
                if self._backlog.kept and entry is not None and not entry.kept:
                    self._overtaken = True
                    self._give_up()
                elif self._backlog.overtaken:
                    self._give_up()
        self._recent.add(stamped, asyncio.get_running_loop().time())
        if self._leading and not self._lease.held:
            self._step_down("the lease ran out")  # who was paused wakes with seconds of what its heir has forwarded
        if self._leading:
            self._forwarder.add(stamped)

    # Leading.

    async def _lead(self) -> None:
        while True:
            if self._leading and not self._lease.held:
                self._step_down("the lease ran out")
            if self.status.connected and (self._leading or not self._stopping.is_set()):
                try:
                    mine = await self._lease.take()
                except FAILURES as error:
                    logger.debug("could not ask for the lease: %s", describe(error))
                    mine = self._lease.held
                if mine and not self._leading:
                    if self.status.connected and not self._stopping.is_set():
                        await self._take_over()
                    else:
                        await self._give_lease_back()  # we were cut off while we asked
                elif self._leading and not mine:
                    self._step_down("the lease is another's")
            self._connected.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(RENEW_INTERVAL if self._leading else POLL_INTERVAL):
                    await self._connected.wait()

    async def _take_over(self) -> None:
        """
        Begin to lead where our predecessor ended.

        Our own word on the internal channel comes back after everything that was stamped before we had the
        lease: then we know what is left to be stamped.
        """
        marker = b"m" + self._lease.token.encode()
        self._marker = marker, asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(MARKER_TIMEOUT):
                await pipeline.acall("PUBLISH", self._stamped_channel, marker, again=True)
                await self._marker[1]
        except FAILURES as error:
            logger.warning("could not take over: %s", describe(error))
            await self._give_lease_back()
            return
        finally:
            self._marker = None

    def _begin_to_lead(self) -> None:
        assert self._marker is not None  # noqa: S101  the caller has looked
        if not self._marker[1].done():
            self._marker[1].set_result(None)
        self._leading = True
        self._batch = 0
        if expired := self._backlog.expire(asyncio.get_running_loop().time()):
            self._log.lost("nobody stamped it in time", expired)
        self._backlog.resubmit()
        self._work.set()
        for stamped in self._recent.frames(asyncio.get_running_loop().time()):
            self._forwarder.add(stamped)  # perhaps our predecessor did not; sockets drop what they have had
        self._missed_wake.set()
        self.status.now("holder")
        logger.info("holding the lease: stamping and forwarding")

    async def _forward_missed(self) -> None:
        """Forward what was published on the topics we remember while we were not connected."""
        while True:
            await self._missed_wake.wait()
            self._missed_wake.clear()
            seen = self._recent.before_gap(asyncio.get_running_loop().time())
            topics = []
            for name in seen:
                with suppress(TopicError):
                    topics.append(Topic.checked_elsewhere(name))
            try:
                for begin in range(0, len(topics), BATCH_MESSAGES):
                    part = topics[begin : begin + BATCH_MESSAGES]
                    for topic, where in zip(part, await get_store().look(part), strict=True):
                        if where.last is not None and where.last != seen[str(topic)]:
                            page = await get_store().read(topic, seen[str(topic)])
                            for position, text in page.frames:
                                self._forwarder.add(Stamped("p", str(topic), position, text.encode()))
            except FAILURES as error:
                logger.warning("could not look for what was missed: %s", describe(error))  # sockets find it later

    def _step_down(self, reason: str) -> None:
        self._lease.lost()
        self._leading = False
        if self.status.connected:
            self.status.now("stand-by")
        logger.warning("stand-by: %s", reason)

    async def _give_lease_back(self) -> None:
        self._leading = False
        try:
            await self._lease.release()
        except FAILURES as error:
            logger.debug("could not give the lease back: %s", describe(error))  # it ends by itself

    async def _stamp(self) -> None:
        self._stamping = False
        self._work.set()
        while True:
            await self._work.wait()
            self._work.clear()
            while self._leading and (batch := self._backlog.take(BATCH_MESSAGES, BATCH_BYTES)):
                self._stamping = True
                await self._stamp_batch(batch)
                self._stamping = False

    async def _stamp_batch(self, batch: list[Entry]) -> None:
        self._batch += 1
        delays = backoff()
        number, token = self._batch, self._lease.token
        while self._leading and self._lease.token == token:
            # What has come back has been published: a full Redis cannot note the number of the batch.
            messages = [(entry.topic, entry.tail) for entry in batch if not entry.struck]
            if not messages:
                return
            try:
                stamped, refusal = await get_store().stamp_batch(self._lease.key, token, number, messages)
            except (*FAILURES, asyncio.CancelledError) as error:
                if isinstance(error, asyncio.CancelledError) and (
                    (task := asyncio.current_task()) is None or task.cancelling()
                ):
                    raise
                # Whether it was done is not known: the number tells Redis that it is the same batch.
                if not self._lease.held:
                    self._step_down(f"Redis does not answer: {describe(error)}")
                    return
                self._log.warning("stamping failed (%s); trying again", describe(error))
                await asyncio.sleep(max(ECHO, next(delays)))
                continue
            if stamped == NOT_HOLDER:
                self._step_down("the lease is another's")
                return
            self._backlog.confirm(batch)
            if refusal:
                count("unstamped", amount=len(messages) - stamped)
                self._refusals.warning("Redis keeps no history (%s); messages go out without ids", refusal)
            return
