"""
The bridge: what is published becomes messages to channel-layer groups.

One connection receives what is published on all topics, and hands each message to its shard,
see ``bridge/shard.py``. Any number of listeners may run: each shard is led by one of them.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import lru_cache
from typing import Any, Final

from ..address import Sort
from ..aio import Timeout
from ..broker.clients import FAILURES, SOCKET_TIMEOUT, async_client
from ..broker.reconnect import connect, keep_connected
from ..broker.wire import Subscription, confirmed, site_pool
from ..conf import settings
from ..exceptions import TopicError
from ..history.position import Position
from ..layers import direct
from ..logs import LogBudget, describe
from ..metrics import count, listening
from ..tasks import going_on
from ..topics import Topic, patterns
from . import status
from .agreement import RENEW_INTERVAL, Agreement
from .division import plan
from .duties import do_duties, registered
from .forwarder import Forwarder
from .replay import MAX_TOPICS
from .shard import Shard, Shared
from .state import REPORTS, State

logger = logging.getLogger(__name__)

CANCEL_INTERVAL: Final = 0.2
"""Seconds between two attempts to end a task."""
DRAIN_TIMEOUT: Final = 3.5
"""Seconds to finish what has been read when the process is stopped; below the 5 promised to the
supervisor."""
FRESH: Final = 2 * status.REPORT_INTERVAL
"""Seconds after which a listener that has not reported gets no more shards: it may be paused."""
OWN_FRAME: Final = b'{"_meta":{"topic":"'
"""The start of what ``publish_*`` sends on the topic's own channel; it is delivered, or also arrives stamped."""
_ID: Final = b'","id":"'
"""What comes before the id in such a frame, and cannot be part of a topic: quotation marks in it are escaped."""
_ID_BYTES: Final = 42
"""An id is two numbers of up to 20 digits. With the quotation mark."""
_CHANNEL_BYTES: Final = 2048
"""No topic has a longer name."""


class Listener:
    """
    Bridges until it is stopped. Any number may run.

    Attributes:
        shards: All of them: it leads some, and stands by for the others.
        status: What it reports.

    """

    def __init__(self, layer: Any) -> None:
        self._log = LogBudget(logger)
        self._forwarder = Forwarder(layer, self._log)
        self._own: OrderedDict[bytes, bytes] = OrderedDict()
        self.status = status.Status(REPORTS[State.CONNECTING], lambda: self._forwarder.forwarded)
        self.status.report.of = settings.SHARDS
        self._others: dict[str, list[int]] = {}
        """What other living listeners lead, by their ids."""
        self._stopping = asyncio.Event()
        self._waits = False
        """Whether the site's listeners have another number of shards."""
        self._topic = lru_cache(maxsize=10_000)(Topic.from_channel)
        self._shared = Shared(
            forwarder=self._forwarder,
            log=self._log,
            topic=self._topic,
            group=lru_cache(maxsize=10_000)(lambda topic: direct(layer, topic.group)),
            is_direct=direct(layer, "") is not None,
            me=self.status.report.id,
            agreement=Agreement(settings.SHARDS),
            moved=self._moved,
        )
        self.shards = [Shard(number, self._shared) for number in range(settings.SHARDS)]
        self._stamped = {shard.stamped_channel: shard for shard in self.shards}
        self._place = lru_cache(maxsize=10_000)(self._find_place)
        listening.waiting = lambda: sum(map(len, self.shards)) + len(self._forwarder)
        listening.shards = len(self.shards)

    def stop(self) -> None:
        """Stop reading, finish what has been read, give the leases back, and let ``run`` return."""
        self._stopping.set()

    async def run(self) -> None:
        """Bridge until ``stop``. Redis may come and go; nothing but cancellation ends this earlier."""
        jobs: list[Callable[[], Coroutine[Any, Any, None]]]
        jobs = [self._keep_subscribed, self._forwarder.run, self._forward_missed, self.status.keep_reported]
        jobs += [self._keep_agreed, lambda: do_duties(self.shards[0].machine, registered())]
        if len(self.shards) > 1:
            jobs += [self._divide]
        jobs += [job for shard in self.shards for job in shard.jobs()]
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(going_on("listener", job)) for job in jobs]
            await self._stopping.wait()
            await self._finish()
            while running:
                # More than once: on Python 3.11 a wait_for under redis-py can swallow a cancellation.
                for task in running:
                    task.cancel()
                running = list((await asyncio.wait(running, timeout=CANCEL_INTERVAL))[1])
        for shard in self.shards:
            shard.move(State.STOPPED)
        logger.info("stopped; forwarded %d messages", self._forwarder.forwarded)

    @property
    def _report(self) -> str:
        """What is reported to health checks and metrics: a subscription serves all shards or none."""
        reports = [shard.machine.report for shard in self.shards]
        holder, stand_by = REPORTS[State.HOLDER], REPORTS[State.STAND_BY]
        if holder in reports:
            return holder
        return next((report for report in reports if report != stand_by), stand_by)

    def _moved(self, shard: Shard) -> None:
        """Report what follows from the state of a shard."""
        if self.status.state != (report := self._report):
            self.status.now(report)
        if shard.machine.leads is not (shard.number in self.status.report.shards):
            self.status.report.shards = [each.number for each in self.shards if each.machine.leads]
            listening.leading = len(self.status.report.shards)
            self.status.changed()
        if shard.machine.state is State.SETTLING and shard is self.shards[0]:
            logger.info("listening on %s", " ".join(patterns()))

    async def _finish(self) -> None:
        self.status.report.of = 0  # others name it as a successor no more
        try:
            async with asyncio.timeout(DRAIN_TIMEOUT):
                for shard in self.shards:
                    shard.stop()
                if leading := [shard for shard in self.shards if shard.machine.leads]:
                    await self._drain(leading)
                await self._forwarder.wait_sent()
        except FAILURES as error:
            logger.warning("not everything was finished: %s", describe(error))
        if unfinished := len(self._forwarder) + sum(shard.unfinished for shard in self.shards):
            self._log.lost("not forwarded in time before the end", unfinished)
        # Those that are this listener's, or about to be.
        await asyncio.gather(*(shard.give_lease_back() for shard in self.shards if shard.lease.token))
        await self._end_agreement()

    async def _end_agreement(self) -> None:
        """Let listeners with another number of shards begin, if this is the last one with its number."""
        if self._shared.subscription is None:
            return  # it ends by itself
        try:
            async with Timeout(SOCKET_TIMEOUT):
                reports = await status.living(await async_client())
                if not any(report.of == len(self.shards) for report in reports if report.id != self.status.report.id):
                    await self._shared.agreement.end()
        except FAILURES as error:
            logger.debug("could not say that the last listener stops: %s", describe(error))

    async def _drain(self, leading: list[Shard]) -> None:
        """Stamp and receive back what has been read, and then release the leases."""
        # Before the subscription ends, which brings back what is to be forwarded.
        await asyncio.gather(*(shard.inlet.finished() for shard in leading))
        heirs: dict[int, str] = {}
        if (subscription := self._shared.subscription) is not None:
            with suppress(*FAILURES):  # if cut off, stamp what has been read all the same
                await confirmed(subscription.unsubscribe(*patterns(), are_patterns=True))
                # Whoever is to have a shard next need not find out that it is free. Before all is read, it may not
                # have heard what is missing here; then whoever has been subscribed longest leads.
                led = {shard.number for shard in leading}
                heirs = plan({other: set(shards) - led for other, shards in self._others.items()}, len(self.shards))
        await asyncio.gather(*(shard.drained(heirs.get(shard.number, "")) for shard in leading))

    async def _keep_agreed(self) -> None:
        while True:
            await self._agree()
            await asyncio.sleep(RENEW_INTERVAL)

    async def _agree(self) -> None:
        """Take no part in leading while the site's listeners have another number of shards."""
        agreement = self._shared.agreement
        await agreement.renew()
        if agreement.other and not self._waits:
            self._waits = True
            logger.warning(
                "waiting: other listeners have SHARDS %s, this one %d; it begins when they have stopped",
                agreement.other,
                len(self.shards),
            )
        elif self._waits and agreement.valid:
            self._waits = False
            logger.info("the number of shards is %d from now on", len(self.shards))
            for shard in self.shards:
                shard.forget()
        for shard in self.shards:
            shard.machine.stepped()

    async def _divide(self) -> None:
        """Hand over the shards of which this listener leads more than its share."""
        client = await async_client()
        while True:
            await asyncio.sleep(status.REPORT_INTERVAL)
            try:
                async with Timeout(SOCKET_TIMEOUT):
                    reports = await status.reports(client)
            except FAILURES as error:
                logger.debug("could not read the reports of other listeners: %s", describe(error))
                continue
            mine, me = self.status.report, self.status.report.id
            self._others = {
                report.id: [shard for shard in report.shards if shard not in mine.shards]
                for report, age in reports
                if report.id != me and report.healthy and report.of == len(self.shards) and age <= FRESH
            }
            whose = plan({**self._others, me: mine.shards}, len(self.shards))
            moving = [(self.shards[number], whose[number]) for number in mine.shards if whose[number] != me]
            await asyncio.gather(*(shard.pass_on(heir) for shard, heir in moving))

    async def _forward_missed(self) -> None:
        """Forward what was published while the listener was not connected, when it has come to lead."""
        while True:
            await self._shared.missed.wait()
            self._shared.missed.clear()
            for shard in self.shards:
                if shard.machine.leads:
                    await shard.forward_missed()

    # Reading.

    async def _keep_subscribed(self) -> None:
        # Listeners are few, and a disconnected one misses what is published: it reconnects as soon
        # as it can.
        await keep_connected(
            lambda: connect(Subscription(self._received), site_pool()),
            self._subscribe,
            self._disconnected,
            ended=self._unsubscribed,
            steady=0.0,
        )

    async def _subscribe(self, subscription: Subscription) -> None:
        waiting: list[asyncio.Future[None]] = []
        for shard in self.shards:
            shard.connected()
        if settings.address.sort is Sort.CLUSTER:
            await asyncio.gather(*(shard.lease.announce() for shard in self.shards))
        else:
            for shard in self.shards:
                waiting += subscription.before(*shard.lease.announcement())
        waiting += subscription.subscribe(*self._stamped)
        waiting += subscription.subscribe(*patterns(), are_patterns=True)
        await confirmed(waiting)
        self._shared.subscription = subscription
        await asyncio.gather(self._agree(), *(shard.subscribed() for shard in self.shards))

    async def _unsubscribed(self, _subscription: Subscription) -> None:
        self._shared.subscription = None

    async def _disconnected(self, reason: str, delay: float) -> None:
        await asyncio.gather(*(shard.disconnected(reason) for shard in self.shards))
        count("listener_gap")
        published = self._published()
        for shard in self.shards:
            shard.gap(published[shard.number])
        logger.warning("not connected to Redis (%s); trying again in %.1f s", reason, delay)

    def _received(self, channel: bytes, data: bytes) -> None:
        if (shard := self._stamped.get(channel)) is not None:
            shard.received_stamped(data)
        elif data.startswith(OWN_FRAME):
            self._received_own(channel, data)
        else:
            try:
                topic, shard = self._place(channel)
            except TopicError as error:
                count("refused", type(error).__name__)
                self._log.warning("refused a message on channel %r: %s", channel[:256], error)
            else:
                shard.received_raw(topic, channel, data)

    def _find_place(self, channel: bytes) -> tuple[Topic, Shard]:
        topic = self._topic(channel)
        return topic, self.shards[topic.shard]

    def _received_own(self, channel: bytes, data: bytes) -> None:
        """Remember the id of what ``publish_*`` have published, of which a gap shows the last."""
        if len(channel) > _CHANNEL_BYTES:
            return  # another program's
        begin = data.find(_ID) + len(_ID)
        self._own[channel] = data[begin : begin + _ID_BYTES]
        self._own.move_to_end(channel)
        if len(self._own) > MAX_TOPICS:
            self._own.popitem(last=False)

    def _published(self) -> list[list[tuple[str, Position]]]:
        """Return, for each shard, the last id of each topic that ``publish_*`` have published on."""
        found: list[list[tuple[str, Position]]] = [[] for _ in self.shards]
        while self._own:
            channel, id_ = self._own.popitem(last=False)
            with suppress(ValueError, TopicError):  # of a kind without a history, it has none
                position = Position.parse(id_.partition(b'"')[0].decode())
                topic, shard = self._find_place(channel)
                found[shard.number].append((str(topic), position))
        return found
