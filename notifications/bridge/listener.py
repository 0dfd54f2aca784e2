"""
The bridge: what is published becomes messages to channel-layer groups.

    raw channel ──▶ backlog ──▶ (holder) stamping script ──▶ …:stamped ──▶ (holder) outgoing ──▶ group_send

All that is stamped here comes back on the internal channel. On this app's own layer the script has
delivered it by then; on others, what arrives there is forwarded, in that order, also what
``publish_*`` have stamped. Of several listeners, the one that holds the lease stamps and
forwards; the others remember what it has not finished, and one of them takes over when the lease
ends.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from functools import lru_cache
from typing import Any, Final

from ..broker import clients, pipeline
from ..broker.clients import FAILURES
from ..broker.reconnect import backoff, connected, keep_connected
from ..broker.wire import MAX_SILENCE, Subscription, confirmed, site_pool
from ..conf import settings
from ..exceptions import MessageError, TopicError
from ..history import get_store
from ..history.position import Position
from ..history.stamped import STAMPED, Stamped, read_stamped, tail, tail_of
from ..history.store import NOT_HOLDER, Raw
from ..layers import direct
from ..logs import LogBudget, describe
from ..messages import check_raw
from ..metrics import Sampler, count, listening, microseconds
from ..tasks import going_on
from ..topics import Topic, internal_name, patterns
from . import status
from .backlog import Backlog, Entry
from .forwarder import Forwarder
from .lease import POLL_INTERVAL, RENEW_INTERVAL, Lease
from .replay import MAX_TOPICS, Recent
from .settlement import Settlement
from .state import ASKING, SETTLED, WITHOUT_LEASE, State, StateMachine

logger = logging.getLogger(__name__)

BATCH_MESSAGES: Final = 200
BATCH_BYTES: Final = 256 * 1024
"""What one script call stamps at most, which blocks Redis for about 1.5 ms."""
MARKER_TIMEOUT: Final = 2.0
"""Seconds in which our marker must come back on the internal channel; otherwise we receive
nothing."""
CANCEL_INTERVAL: Final = 0.2
"""Seconds between two attempts to end a task."""
ECHO: Final = 0.05
"""Minimum seconds to wait before asking again: meanwhile, what Redis has published comes back."""
SETTLE_TIMEOUT: Final = 3.0
"""Seconds after which what was read before a gap is given up, if Redis has not said whether it was stamped."""
UNSTAMPED_TIMEOUT: Final = 5.0
"""Seconds that messages which went out without ids may take to their groups before later ones are stamped."""
DRAIN_TIMEOUT: Final = 3.5
"""Seconds to finish what has been read when the process is stopped; below the 5 promised to the
supervisor."""
OWN_FRAME: Final = b'{"_meta":{"topic":"'
"""The start of what ``publish_*`` sends on the topic's own channel; it is delivered, or also arrives stamped."""
_ID: Final = b'","id":"'
"""What comes before the id in such a frame, and cannot be part of a topic: quotation marks in it are escaped."""
_ID_BYTES: Final = 42
"""An id is two numbers of up to 20 digits. With the quotation mark."""
_CHANNEL_BYTES: Final = 2048
"""No topic has a longer name."""
_DRAINING: Final = State.DRAINING
"""Compared for each message: on Python 3.11, looking up a member of an Enum takes five times as
long."""


class Listener:
    """
    Bridges until it is stopped. Any number may run.

    Three tasks share the work: one keeps the subscription, one asks for the lease, one stamps. The
    state, see ``bridge/state.py``, decides what each may do.
    """

    def __init__(self, layer: Any) -> None:
        self._log = LogBudget(logger)
        self._sampler = Sampler()
        self._refusals = LogBudget(logger, lines=1, period=60.0)
        self._forwarder = Forwarder(layer, self._log)
        self._stamped_channel = internal_name(STAMPED).encode()
        self._backlog = Backlog()
        self._recent = Recent()
        self._own: OrderedDict[bytes, bytes] = OrderedDict()
        self._lease = Lease()
        self._machine = StateMachine()
        self._batch = 0
        self._unstamped = False
        self._work = asyncio.Event()
        self._missed_wake = asyncio.Event()
        self._subscription: Subscription | None = None
        self._settlement: Settlement | None = None
        self._gap_at: float | None = None
        self._gap_term = ""
        self._run = ""
        self._stopping = asyncio.Event()
        self._max_size = settings.MAX_MESSAGE_SIZE
        self._topic = lru_cache(maxsize=10_000)(Topic.from_channel)
        self._group = lru_cache(maxsize=10_000)(lambda topic: direct(layer, topic.group))
        self._is_direct = direct(layer, "") is not None
        self.status = status.Status(self._machine.report, lambda: self._forwarder.forwarded)
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
        self._move(State.STOPPED)

    def _move(self, to: State, reason: str = "") -> None:
        """Change the state, report and log it."""
        self._machine.move(to, reason)
        if self.status.state != self._machine.report:
            self.status.now(self._machine.report)
        if to is State.SETTLING:
            logger.info("listening on %s", " ".join(patterns()))
        elif to is State.HOLDER:
            logger.info("holding the lease: stamping and forwarding")
        elif to is State.STOPPED:
            logger.info("stopped; forwarded %d messages", self._forwarder.forwarded)

    def _move_connection(self, to: State, reason: str = "") -> None:
        """Change the state because the connection came or went; not once the listener stops."""
        if self._machine.state not in (State.DRAINING, State.STOPPING):
            self._move(to, reason)

    async def _finish(self) -> None:
        try:
            async with asyncio.timeout(DRAIN_TIMEOUT):
                if self._machine.leads:
                    self._move(State.DRAINING)
                    await self._drain()
                else:
                    self._move(State.STOPPING)
                await self._forwarder.wait_sent()
        except FAILURES as error:
            logger.warning("not everything was finished: %s", describe(error))
        if unfinished := len(self._forwarder) + (len(self._backlog) if self._machine.leads else self._backlog.kept):
            self._log.lost("not forwarded in time before the end", unfinished)
        if self._lease.token:  # it may be this listener's, or about to be
            await self._give_lease_back()

    async def _drain(self) -> None:
        """Stamp and receive back what has been read, and then release the lease."""
        if self._subscription is not None:
            with suppress(*FAILURES):  # if cut off, stamp what has been read all the same
                await confirmed(self._subscription.unsubscribe(*patterns(), are_patterns=True))
        await self._machine.until(lambda: not self._machine.leads or not self._backlog)
        if self._machine.leads:
            # From now on a stand-by stamps what is published; what is still to be forwarded was
            # stamped before.
            await self._give_lease_back()

    # Reading.

    async def _keep_subscribed(self) -> None:
        # Listeners are few, and a disconnected one misses what is published: it reconnects as soon
        # as it can.
        await keep_connected(self._subscribed, self._disconnected, steady=0.0)

    @asynccontextmanager
    async def _subscribed(self) -> AsyncIterator[Subscription]:
        async with connected(Subscription(self._received), site_pool()) as subscription:
            self._settlement = Settlement(self._backlog, self._recent.seen) if self._backlog.kept else None
            subscription.command(*self._lease.announcement())
            await confirmed(
                subscription.subscribe(self._stamped_channel) + subscription.subscribe(*patterns(), are_patterns=True)
            )
            self._subscription = subscription
            try:
                self._move_connection(State.SETTLING)
                self._lease.subscribed()
                await self._settle()
                yield subscription
            finally:
                self._subscription = None

    async def _disconnected(self, reason: str, delay: float) -> None:
        if self._machine.state is State.HOLDER:
            self._move(State.HANDING_OVER, reason)
        if self._machine.leads:
            await self._hand_over()
        else:
            self._move_connection(State.DISCONNECTED, reason)
        self._gap()
        logger.warning("not connected to Redis (%s); trying again in %.1f s", reason, delay)

    async def _hand_over(self) -> None:
        """Finish what has been read, which nobody else has stamped; then release the lease."""
        with suppress(TimeoutError):
            async with asyncio.timeout(clients.SOCKET_TIMEOUT):
                await self._machine.until(lambda: not self._machine.leads or self._backlog.all_stamped)
        if self._machine.leads:
            await self._give_lease_back()

    def _gap(self) -> None:
        """Record that the subscription misses messages from now on."""
        count("listener_gap")
        self._backlog.gap()
        self._recent.gap(asyncio.get_running_loop().time(), self._published())
        if self._gap_at is None:  # otherwise it has not been subscribed since
            self._gap_at = asyncio.get_running_loop().time() - MAX_SILENCE  # it may have been dead for that long
            self._gap_term = self._lease.term

    async def _settle(self) -> None:
        """
        Find out which of the messages that were read before the gap are still to be stamped.

        If the holder has died, this listener may be the only one that has them.
        """
        settlement, before, self._run, told, term = self._settlement, self._run, "", False, ""
        with suppress(TimeoutError):
            async with asyncio.timeout(SETTLE_TIMEOUT):
                for delay in backoff():
                    try:
                        self._run = await get_store().server()
                        term = await self._lease.read_term()
                        # Histories of another server do not show what this one has lost.
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
            # Another listener has led meanwhile, perhaps without having received these messages, or
            # some went out without ids. What is left would be sent twice, or after later messages
            # of its topic.
            given_up += self._backlog.give_up()
        self._gap_at = None
        self._move_connection(State.STAND_BY)
        self._give_up(given_up)

    def _give_up(self, given_up: int = 0) -> None:
        """
        Give up what is kept from before a gap, if it must not be stamped any more.

        A holder stamps in the order in which all listeners read: as soon as a later message comes
        back stamped, the holder has dealt with those before it.
        """
        if self._settlement is not None and self._settlement.overtaken and self._machine.state in SETTLED:
            given_up += self._backlog.give_up()
        if given_up:
            self._log.lost("read before a gap, and not known to be stamped", given_up)
        if overtaken := self._backlog.overtaken:
            self._backlog.overtaken = 0
            self._log.lost("a later message of its topic was stamped first", overtaken)

    def _received(self, channel: bytes, data: bytes) -> None:
        if channel == self._stamped_channel:
            self._received_stamped(data)
        elif data.startswith(OWN_FRAME):
            self._received_own(channel, data)
        else:
            self._received_raw(channel, data)

    def _received_own(self, channel: bytes, data: bytes) -> None:
        """Remember the id of what ``publish_*`` have published, of which a gap shows the last."""
        if len(channel) > _CHANNEL_BYTES:
            return  # another program's
        begin = data.find(_ID) + len(_ID)
        self._own[channel] = data[begin : begin + _ID_BYTES]
        self._own.move_to_end(channel)
        if len(self._own) > MAX_TOPICS:
            self._own.popitem(last=False)

    def _published(self) -> Iterator[tuple[str, Position]]:
        """Yield the last id of each topic that ``publish_*`` have published on."""
        while self._own:
            channel, id_ = self._own.popitem(last=False)
            with suppress(ValueError):  # of a kind without a history, it has none
                position = Position.parse(id_.partition(b'"')[0].decode())
                yield channel.decode().removeprefix(settings.PREFIX), position

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
        try:
            stamped = read_stamped(data)
        except ValueError:  # a marker, of this or of another listener
            if self._machine.state is State.TAKING_OVER and data == self._marker:
                self._begin_to_lead()
            return
        if self._backlog.knows(stamped.topic):
            new = self._settlement is None or self._settlement.arrived(stamped)
            if new and stamped.road != "p":
                entry = self._backlog.remove(stamped.topic, tail_of(stamped))
                if entry is None and self._backlog.kept:
                    # It was published in the gap, after all messages that are kept of its topic.
                    self._give_up(self._backlog.give_up(stamped.topic))
                if self._backlog.kept and entry is not None and not entry.kept:
                    if self._settlement is not None:
                        self._settlement.overtaken = True
                    self._give_up()
                elif self._backlog.overtaken:
                    self._give_up()
                if self._machine.state is _DRAINING or self._unstamped:
                    self._machine.stepped()
        self._recent.add(stamped, asyncio.get_running_loop().time())
        if self._machine.leads and not self._lease.held:
            self._step_down("the lease ran out")  # after a pause, its successor has forwarded this
        if self._machine.leads:
            self._forwarder.add(stamped)

    # Leading.

    async def _lead(self) -> None:
        """Ask for the lease once the listener is subscribed, and renew it while it is held."""
        machine = self._machine
        while True:
            await machine.until(lambda: machine.state in ASKING)
            if machine.leads and not self._lease.held:
                self._step_down("the lease ran out")
            if machine.state in ASKING:
                await self._ask_for_lease()
            with suppress(TimeoutError):
                async with asyncio.timeout(RENEW_INTERVAL if machine.leads else POLL_INTERVAL):
                    await machine.until(lambda: machine.state not in ASKING)

    async def _ask_for_lease(self) -> None:
        subscription = self._subscription
        try:
            mine = await self._lease.take()
        except FAILURES as error:
            logger.debug("could not ask for the lease: %s", describe(error))
            mine = self._lease.held
        if self._machine.leads:
            if not mine:
                self._step_down("the lease is another's")
        elif mine:
            if self._machine.state is State.STAND_BY and self._subscription is subscription:
                await self._take_over()
            else:
                await self._give_lease_back()  # cut off, or stopped, while asking

    @property
    def _marker(self) -> bytes:
        """What is published on the internal channel when this listener takes over."""
        return b"m" + self._lease.token.encode()

    async def _take_over(self) -> None:
        """
        Start to lead where the predecessor ended.

        This listener's marker on the internal channel comes back after everything that was stamped
        before it had the lease: then it knows what is left to be stamped. When cut off, it does not
        wait for the marker: that would keep the lease from a stand-by that is still subscribed.
        """
        self._move(State.TAKING_OVER)
        machine = self._machine
        try:
            async with asyncio.timeout(MARKER_TIMEOUT):
                await pipeline.atell(self._stamped_channel, self._marker)
                await machine.until(lambda: machine.state is not State.TAKING_OVER)
            reason = "cut off while taking over"
        except FAILURES as error:
            reason = describe(error)
        finally:
            if machine.state is State.TAKING_OVER:
                self._move(State.STAND_BY)
        if not machine.leads:
            if machine.state is not State.STOPPING:
                logger.warning("could not take over: %s", reason)
            await self._give_lease_back()

    def _begin_to_lead(self) -> None:
        """Lead, as the marker is here: stamp what is left, and forward what may not have been."""
        self._batch = 0
        if expired := self._backlog.expire(asyncio.get_running_loop().time()):
            self._log.lost("nobody stamped it in time", expired)
        self._backlog.resubmit()
        self._work.set()
        for stamped in self._recent.frames(asyncio.get_running_loop().time()):
            self._forwarder.add(stamped)  # perhaps the predecessor did not; sockets drop duplicates
        if not self._is_direct:
            self._missed_wake.set()
        self._move(State.HOLDER)

    async def _forward_missed(self) -> None:
        """Forward what was published on remembered topics while the listener was not connected."""
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
            except (*FAILURES, ValueError) as error:  # or somebody has written into a history by hand
                logger.warning("could not look for what was missed: %s", describe(error))  # sockets find it later

    def _step_down(self, reason: str) -> None:
        if not self._machine.leads:
            return  # another task has noticed first
        self._lease.lost()
        self._move(WITHOUT_LEASE[self._machine.state])
        logger.warning("stand-by: %s", reason)

    async def _give_lease_back(self) -> None:
        if self._machine.state in WITHOUT_LEASE:
            self._move(WITHOUT_LEASE[self._machine.state])
        try:
            await self._lease.release()
        except FAILURES as error:
            logger.debug("could not give the lease back: %s", describe(error))  # it expires

    async def _stamp(self) -> None:
        self._work.set()
        while True:
            await self._work.wait()
            self._work.clear()
            while self._machine.leads and (batch := self._backlog.take(BATCH_MESSAGES, BATCH_BYTES)):
                await self._stamp_batch(batch)
                if self._machine.state is not State.HOLDER:
                    self._machine.stepped()

    async def _stamp_batch(self, batch: list[Entry]) -> None:
        self._batch += 1
        delays = backoff()
        number, token = self._batch, self._lease.token
        at = microseconds(ago=asyncio.get_running_loop().time() - batch[0].at) if self._sampler.due() else 0
        while self._machine.leads and self._lease.token == token:
            # What has come back has been published, though a full Redis cannot record the number of
            # the batch.
            messages = [Raw(entry.topic, entry.tail, self._group(entry.topic)) for entry in batch if not entry.done]
            if not messages:
                return
            try:
                stamped, refusal = await get_store().stamp_batch(self._lease.key, token, number, messages, at)
            except (*FAILURES, asyncio.CancelledError) as error:
                if isinstance(error, asyncio.CancelledError) and (
                    (task := asyncio.current_task()) is None or task.cancelling()
                ):
                    raise
                # It is not known whether it was stamped: by the number Redis recognises the same
                # batch.
                if not self._lease.held:
                    self._step_down(f"Redis does not answer: {describe(error)}")
                    return
                self._log.warning("stamping failed (%s); trying again", describe(error))
                await asyncio.sleep(max(ECHO, next(delays)))
                continue
            if stamped == NOT_HOLDER:
                if self._lease.token == token:
                    self._step_down("the lease is another's")
                return
            self._backlog.confirm(batch)
            if refusal:
                count("unstamped", amount=len(messages) - stamped)
                self._refusals.warning("Redis keeps no history (%s); messages go out without ids", refusal)
                await self._until_forwarded(batch)
            return

    async def _until_forwarded(self, batch: list[Entry]) -> None:
        """
        Wait until messages that went out without ids have reached their groups.

        When Redis has room again, later ones get ids and are in a history at once, from which a socket may read them
        at any moment: before those that are still on their way, and cannot be put in order by an id.
        """
        machine, self._unstamped = self._machine, True
        try:
            async with asyncio.timeout(UNSTAMPED_TIMEOUT):
                await machine.until(lambda: machine.state is not State.HOLDER or all(entry.done for entry in batch))
                if machine.state is State.HOLDER:
                    await self._forwarder.wait_sent()
        except TimeoutError:
            logger.debug("messages without ids have not reached their groups yet")
        finally:
            self._unstamped = False
