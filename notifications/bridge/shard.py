"""
A shard as one listener sees it: whether it leads there, and what of it is left to do.

    raw channel ──▶ backlog ──▶ (holder) stamping script ──▶ …:stamped ──▶ (holder) outgoing ──▶ group_send

All that is stamped here is acknowledged on the internal channel. On this app's own layer the script has
delivered it by then; on others it arrives there first and is forwarded, in that order, also what
``publish_*`` have stamped. Of several listeners, the one that holds the lease of the shard stamps and
forwards; the others put aside what they read (``standby.py``), and one of them takes over when the
lease ends, with what nobody has acknowledged.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from ..address import Sort
from ..aio import Timeout
from ..broker import clients, pipeline
from ..broker.clients import FAILURES
from ..broker.reconnect import backoff
from ..broker.wire import MAX_SILENCE, Subscription, confirmed
from ..conf import settings
from ..exceptions import MessageError, TopicError
from ..history import get_store
from ..history.position import Position
from ..history.stamped import ACKNOWLEDGED, STAMPED, Stamped, digest, read_acknowledgement, read_stamped, tail
from ..history.store import NOT_HOLDER, Raw
from ..logs import LogBudget, describe
from ..messages import check_raw
from ..metrics import Sampler, count, microseconds
from ..topics import Topic, internal_name
from .agreement import Agreement
from .backlog import Backlog, Entry
from .forwarder import Forwarder
from .inlet import Inlet
from .lease import POLL_INTERVAL, RENEW_INTERVAL, Lease
from .replay import Recent
from .settlement import Settlement
from .standby import EARLY, Left, Standby
from .state import ASKING, SETTLED, WITHOUT_LEASE, State, StateMachine

logger = logging.getLogger(__name__)

BATCH_MESSAGES: Final = 200
BATCH_BYTES: Final = 256 * 1024
"""What one script call stamps at most, which blocks Redis for about 1.5 ms."""
MARKER_TIMEOUT: Final = 2.0
"""Seconds in which our marker must come back on the internal channel; otherwise we receive
nothing."""
ECHO: Final = 0.05
"""Minimum seconds to wait before asking again: meanwhile, what Redis has published comes back."""
SETTLE_TIMEOUT: Final = 3.0
"""Seconds after which what was read before a gap is given up, if Redis has not said whether it was stamped."""
PASSING_TIMEOUT: Final = 2.0
"""Seconds that a shard's successor waits at most for what has been read of it."""
UNSTAMPED_TIMEOUT: Final = 5.0
"""Seconds that messages which went out without ids may take to their groups before later ones are stamped."""


@dataclass
class Shared:
    """
    What the shards of a listener have in common.

    Attributes:
        forwarder: Forwards, in one order.
        log: Warnings, of which there may be many.
        topic: Returns the topic of a raw channel; raises TopicError.
        group: Returns the Redis channel of a topic's group, if scripts can deliver to it.
        is_direct: Whether they can, on this layer.
        me: The id of the listener.
        agreement: On the number of shards.
        moved: Is called with each shard whose state has changed.
        subscription: The current one; None while there is none.
        missed: Is set when it should be looked for what was missed.

    """

    forwarder: Forwarder
    log: LogBudget
    topic: Callable[[bytes], Topic]
    group: Callable[[Topic], str | None]
    is_direct: bool
    me: str
    agreement: Agreement
    moved: Callable[[Shard], None]
    subscription: Subscription | None = None
    missed: asyncio.Event = field(default_factory=asyncio.Event)
    sampler: Sampler = field(default_factory=Sampler)
    refusals: LogBudget = field(default_factory=lambda: LogBudget(logger, lines=1, period=60.0))


class Shard:
    """
    A part of the topics, which one of the listeners leads.

    Its tasks are the listener's, see ``jobs``: one asks for the lease, one stamps, one empties the
    inlet. The state, see ``bridge/state.py``, decides what each may do.
    """

    def __init__(self, number: int, shared: Shared) -> None:
        self.number = number
        self._shared = shared
        self._log = shared.log
        self._forwarder = shared.forwarder
        self.stamped_channel = internal_name(STAMPED, number).encode()
        self.backlog = Backlog(settings.SHARDS)
        self.standby = Standby(early=EARLY if settings.address.sort is Sort.CLUSTER else 0.0, share=settings.SHARDS)
        self.recent = Recent()
        self.lease = Lease(number, shared.me)
        self.machine = StateMachine()
        self._stands_by = False
        """Whether what is read goes to ``standby``, not to the backlog."""
        self._batch = 0
        self._submitted: dict[int, tuple[list[Entry], int]] = {}
        """Batches that are to be acknowledged, and when the first message of each was read, if it is timed."""
        self._unstamped = self._is_heir = False
        self._handing_over_since = 0.0
        self._work = asyncio.Event()
        self._settlement: Settlement | None = None
        self._gap_at: float | None = None
        self._gap_term = ""
        self._run = ""
        self._max_size = settings.MAX_MESSAGE_SIZE
        self._time = asyncio.get_running_loop().time
        self.inlet = Inlet(self.machine, self.lease, self._forwarder, shared.topic, shared.group, number)

    def __len__(self) -> int:
        return len(self.backlog) + len(self.standby)

    def jobs(self) -> list[Callable[[], Coroutine[Any, Any, None]]]:
        """Return what has to go on while the listener runs."""
        return [self._lead, self._stamp, self.inlet.run]

    def move(self, to: State, reason: str = "") -> None:
        """Change the state, report and log it."""
        self.machine.move(to, reason)
        if to is State.STAND_BY:
            self._stand_by()
        self._shared.moved(self)
        if to is State.HOLDER:
            if settings.SHARDS > 1:
                logger.info("leading shard %d: stamping and forwarding", self.number)
            else:
                logger.info("holding the lease: stamping and forwarding")

    def _stand_by(self) -> None:
        """From now on put aside what is read, unless something is kept from before a gap."""
        if not self.backlog.kept:
            self._stands_by = True
            self._submitted.clear()
            if entries := self.backlog.withdraw():
                self.standby.put_back(entries, self._time())

    def _end_stand_by(self) -> None:
        """Move what nobody has acknowledged to the backlog."""
        if not self._stands_by:
            return
        self._stands_by, now = False, asyncio.get_running_loop().time()
        left = self.standby.take(now)
        self._log_given_up()
        for each in left:
            if isinstance(each.data, Entry):
                kept = self.backlog.put_back(each.data)
            elif (checked := self._check(each)) is not None:
                kept = self.backlog.add(*checked, each.at, each.digest)
            else:
                continue
            if not kept:
                self._log.lost("the backlog is full")

    def _check(self, left: Left) -> tuple[Topic, bytes] | None:
        """Return topic and tail of a message that was put aside; log if it is refused."""
        if isinstance(left.data, Entry):
            return left.data.topic, left.data.tail
        try:
            return self._shared.topic(left.channel), tail(check_raw(left.data, self._max_size).encode())
        except (MessageError, TopicError) as error:
            self._refused(left.channel, error)
            return None

    def _refused(self, channel: bytes, error: Exception) -> None:
        count("refused", type(error).__name__)
        self._log.warning("refused a message on channel %r: %s", channel[:256], error)

    def _log_given_up(self) -> None:
        """Log what the stand-by has given up: the holder has refused it as well, or it is lost."""
        if self.standby.refused:
            self._log.lost("the backlog is full", self.standby.refused)
            self.standby.refused = 0
        for given_up, why in (
            (self.standby.overtaken, "a later message of its topic was stamped first"),
            (self.standby.expired, "nobody stamped it in time"),
        ):
            if given_up:
                lost = sum(self._check(each) is not None for each in given_up)
                given_up.clear()
                if lost:
                    self._log.lost(why, lost)

    # The subscription.

    def connected(self) -> None:
        """Prepare for a subscription that is about to begin."""
        self._settlement = Settlement(self.backlog, self.recent.seen) if self.backlog.kept else None

    async def subscribed(self) -> None:
        """Find out what the last gap has left, as the listener is subscribed."""
        self._move_connection(State.SETTLING)
        self.lease.subscribed()
        await self._settle()

    async def disconnected(self, reason: str) -> None:
        """Finish what has been read if it leads."""
        if self.machine.state in (State.HOLDER, State.PASSING_ON):
            self.move(State.HANDING_OVER, reason)
        if self.machine.leads:
            await self._hand_over()
        else:
            self._move_connection(State.DISCONNECTED, reason)

    def forget(self) -> None:
        """Give up what was read while the listeners of another number of shards led: they may have stamped it."""
        if self._stands_by:
            self.standby.take(self._time())
        else:
            self.backlog.give_up()

    # Stopping.

    def stop(self) -> None:
        """Begin to finish what has been read."""
        if not self.machine.leads:
            self.move(State.STOPPING)
            return
        self.move(State.DRAINING)
        self._handing_over_since = self._time()
        self._end_stand_by()
        self._work.set()

    async def drained(self, heir: str = "") -> None:
        """Stamp and receive back what has been read, and then release the lease to its heir, if one is known."""
        await self.machine.until(lambda: not self.machine.leads or not self.backlog)
        if self.machine.leads:
            # From now on a stand-by stamps what is published; what is still to be forwarded was
            # stamped before.
            await self.give_lease_back(heir)

    async def pass_on(self, heir: str) -> None:
        """
        Finish what has been read by now, and have another listener lead; this one stands by.

        The heir has not heard what was published before it subscribed, so all of that has to be stamped here first:
        also what is still on its way to this listener, if that is slow.
        """

        def passing() -> bool:
            return self.machine.state is State.PASSING_ON

        subscription, since = self._shared.subscription, self._time()
        if self.machine.state is not State.HOLDER or subscription is None:
            return
        try:
            await confirmed(subscription.subscribe(self.stamped_channel))  # comes after all of it
        except FAILURES as error:
            logger.debug("shard %d is not passed on: %s", self.number, describe(error))
            return
        if self.machine.state is not State.HOLDER or self.backlog.kept:
            return  # what is kept from before a gap cannot be put aside, where acknowledgements would strike it off
        self.move(State.PASSING_ON)
        self._stands_by, self._handing_over_since = True, since
        try:
            async with asyncio.timeout(PASSING_TIMEOUT):
                await self.inlet.finished()
                await self.machine.until(lambda: not passing() or not self.backlog)
                await self._forwarder.wait_sent()
        except TimeoutError:
            logger.debug("shard %d is passed on before all of it is done", self.number)
        if not passing():
            return
        if self.backlog:  # the heir may not have heard what is left: whoever has been subscribed longest has
            heir = ""
        else:
            logger.info("passing shard %d on to another listener", self.number)
        await self.give_lease_back(heir)

    @property
    def unfinished(self) -> int:
        """How many messages nobody will forward if the listener ends now."""
        return len(self.backlog) if self.machine.leads else self.backlog.kept

    def _move_connection(self, to: State, reason: str = "") -> None:
        """Change the state because the connection came or went; not once the listener stops."""
        if self.machine.state not in (State.DRAINING, State.STOPPING):
            self.move(to, reason)

    async def _hand_over(self) -> None:
        """Finish what has been read, which nobody else has stamped; then release the lease."""
        with suppress(TimeoutError):
            async with asyncio.timeout(clients.SOCKET_TIMEOUT):
                await self.machine.until(lambda: not self.machine.leads or self.backlog.all_stamped)
        if self.machine.leads:
            await self.give_lease_back()

    def gap(self, published: Iterable[tuple[str, Position]]) -> None:
        """Record that the subscription misses messages from now on; ``published`` are last ids of ``publish_*``."""
        self._end_stand_by()
        self._submitted.clear()
        self.backlog.gap()
        self.recent.gap(asyncio.get_running_loop().time(), [*published, *self.standby.ids])
        if self._gap_at is None:  # otherwise it has not been subscribed since
            self._gap_at = asyncio.get_running_loop().time() - MAX_SILENCE  # it may have been dead for that long
            self._gap_term = self.lease.term

    async def _settle(self) -> None:
        """
        Find out which of the messages that were read before the gap are still to be stamped.

        If the holder has died, this listener may be the only one that has them.
        """
        settlement, before, self._run, told, term = self._settlement, self._run, "", False, ""
        with suppress(TimeoutError):
            async with Timeout(SETTLE_TIMEOUT):
                for delay in backoff():
                    try:
                        self._run = await get_store().server(self.number)
                        term = await self.lease.read_term()
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
            given_up += self.backlog.give_up()
            self._settlement = None
        elif term != self._gap_term or not term:
            # Another listener has led meanwhile, perhaps without having received these messages, or
            # some went out without ids. What is left would be sent twice, or after later messages
            # of its topic.
            given_up += self.backlog.give_up()
        self._gap_at = None
        self._move_connection(State.STAND_BY)
        self._give_up(given_up)
        self._stand_by_if_nothing_is_kept()

    def _give_up(self, given_up: int = 0) -> None:
        """
        Give up what is kept from before a gap, if it must not be stamped any more.

        A holder stamps in the order in which all listeners read: as soon as a later message comes
        back stamped, the holder has dealt with those before it.
        """
        if self._settlement is not None and self._settlement.overtaken and self.machine.state in SETTLED:
            given_up += self.backlog.give_up()
        if given_up:
            self._log.lost("read before a gap, and not known to be stamped", given_up)
        if overtaken := self.backlog.overtaken:
            self.backlog.overtaken = 0
            self._log.lost("a later message of its topic was stamped first", overtaken)

    def received_raw(self, topic: Topic, channel: bytes, data: bytes) -> None:
        """Keep a raw message until it is stamped."""
        now = self._time()
        if self._stands_by:
            self.standby.add(channel, data, now)
            return
        try:
            text = check_raw(data, self._max_size)
        except MessageError as error:
            self._refused(channel, error)
            return
        number = digest(channel, data)
        if self.standby.early.take(number, now):
            return
        if expired := self.backlog.expire(now):
            self._log.lost("nobody stamped it in time", expired)
        if self.backlog.add(topic, tail(text.encode()), now, number):
            self._work.set()
        else:
            self._log.lost("the backlog is full")

    def received_stamped(self, data: bytes) -> None:
        """Take note of what came on the internal channel."""
        if data.startswith(ACKNOWLEDGED):
            self._acknowledged(data)
            return
        try:
            stamped = read_stamped(data)
        except ValueError:  # a marker, of this or of another listener
            if self.machine.state is State.TAKING_OVER and data == self._marker and self._shared.agreement.valid:
                self._begin_to_lead()
            elif data == _call_for(self._shared.me):
                self._is_heir = True
                self.machine.stepped()
            return
        self.recent.add(stamped, self._time())
        if self._leads_still:
            self._forwarder.add(stamped)

    @property
    def _leads_still(self) -> bool:
        if self.machine.leads and not self.lease.held:
            self._step_down("the lease ran out")  # after a pause, its successor has forwarded this
        return self.machine.leads

    def _acknowledged(self, data: bytes) -> None:
        """Strike off what was stamped."""
        leads = self._leads_still  # if it leads no more, what it was to stamp is put aside before it is struck off
        if self._stands_by and not self._submitted:
            self.standby.acknowledge(data, self._time())
            return
        try:
            acknowledged = read_acknowledgement(data)
            if acknowledged.token == self.lease.token and acknowledged.number in self._submitted:
                batch, at = self._submitted.pop(acknowledged.number)
                self.backlog.finish(batch)
                self._forwarder.delivered(acknowledged.delivered, at if acknowledged.delivered else 0)
            elif self._stands_by:
                self.standby.acknowledge(data, self._time())
            else:
                for topic, id_, number in zip(acknowledged.topics, acknowledged.ids, acknowledged.digests, strict=True):
                    self._strike(topic, Position.parse(id_) if id_ else None, number)
            self.standby.ids.note(acknowledged)
        except ValueError:  # somebody else's
            return
        if leads:
            if self._unstamped or self.machine.state is not State.HOLDER:
                self.machine.stepped()
        else:
            self._stand_by_if_nothing_is_kept()

    def _stand_by_if_nothing_is_kept(self) -> None:
        if self.machine.state is State.STAND_BY:
            self._stand_by()

    def _strike(self, topic: str, position: Position | None, number: int) -> None:
        """Remove a message that was stamped for another listener, or before a gap."""
        if self.backlog.knows(topic):
            if self._settlement is not None and not self._settlement.arrived(Stamped("r", topic, position, b"")):
                return
            entry = self.backlog.acknowledge(topic, number)
            if entry is None and self.backlog.kept:
                # It was published in the gap, after all messages that are kept of its topic.
                self._give_up(self.backlog.give_up(topic))
            if self.backlog.kept and entry is not None and not entry.kept:
                if self._settlement is not None:
                    self._settlement.overtaken = True
                self._give_up()
            elif self.backlog.overtaken:
                self._give_up()
            if entry is not None:
                return
        self.standby.early.add(number, self._time())

    async def _lead(self) -> None:
        """Ask for the lease once the listener is subscribed, and renew it while it is held."""
        machine, agreement = self.machine, self._shared.agreement
        while True:
            await machine.until(lambda: machine.state in ASKING and (machine.leads or agreement.valid))
            if machine.leads and not self.lease.held:
                self._step_down("the lease ran out")
            if machine.leads and agreement.other:
                self._step_down(f"other listeners have SHARDS {agreement.other}")
            if machine.state in ASKING and (machine.leads or agreement.valid):
                await self._ask_for_lease()
            if self._stands_by:
                self.standby.settle(self._time())
                self._log_given_up()
            with suppress(TimeoutError):
                async with asyncio.timeout(RENEW_INTERVAL if (led := machine.leads) else POLL_INTERVAL):
                    # Once it leads no more, it is no candidate for the lease before it has asked for it.
                    await machine.until(
                        lambda: machine.state not in ASKING or self._is_heir or led is not machine.leads
                    )
            self._is_heir = False

    async def _ask_for_lease(self) -> None:
        subscription, state = self._shared.subscription, self.machine.state
        try:
            mine = await self.lease.take()
        except FAILURES as error:
            logger.debug("could not ask for the lease: %s", describe(error))
            mine = self.lease.held
        if self.machine.leads:
            if not mine:
                self._step_down("the lease is another's")
        elif mine:
            if state is self.machine.state is State.STAND_BY and self._shared.subscription is subscription:
                await self._take_over()
            else:
                await self.give_lease_back()  # cut off, stopped or passed on while asking

    @property
    def _marker(self) -> bytes:
        """What is published on the internal channel when this listener takes over."""
        return b"m" + self.lease.token.encode()

    async def _take_over(self) -> None:
        """
        Start to lead where the predecessor ended.

        This listener's marker on the internal channel comes back after everything that was stamped
        before it had the lease: then it knows what is left to be stamped. When cut off, it does not
        wait for the marker: that would keep the lease from a stand-by that is still subscribed.
        """
        self.move(State.TAKING_OVER)
        machine, agreement = self.machine, self._shared.agreement
        try:
            async with asyncio.timeout(MARKER_TIMEOUT):
                await agreement.renew()  # the lease must not outlive it
                await pipeline.atell(self.stamped_channel, self._marker)
                await machine.until(lambda: machine.state is not State.TAKING_OVER)
            reason = "cut off while taking over"
        except FAILURES as error:
            reason = describe(error)
        finally:
            if machine.state is State.TAKING_OVER:
                self.move(State.STAND_BY)
        if not machine.leads:
            if machine.state is not State.STOPPING:
                logger.warning("could not take over: %s", reason)
            await self.give_lease_back()

    def _begin_to_lead(self) -> None:
        """Lead, as the marker is here: stamp what is left, and forward what may not have been."""
        self._batch = 0
        self._end_stand_by()
        if expired := self.backlog.expire(asyncio.get_running_loop().time()):
            self._log.lost("nobody stamped it in time", expired)
        self.backlog.resubmit()
        self._work.set()
        for stamped in self.recent.frames(asyncio.get_running_loop().time()):
            self._forwarder.add(stamped)  # perhaps the predecessor did not; sockets drop duplicates
        if not self._shared.is_direct:
            self._shared.missed.set()
        self.move(State.HOLDER)

    async def forward_missed(self) -> None:
        """Forward what was published on remembered topics while the listener was not connected."""
        seen = self.recent.before_gap(asyncio.get_running_loop().time())
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
        if not self.machine.leads:
            return  # another task has noticed first
        self.lease.lost()
        self.move(WITHOUT_LEASE[self.machine.state])
        if settings.SHARDS > 1:
            logger.warning("stand-by for shard %d: %s", self.number, reason)
        else:
            logger.warning("stand-by: %s", reason)

    async def give_lease_back(self, heir: str = "") -> None:
        """Release the lease; an ``heir`` is called at once."""
        if self.machine.state in WITHOUT_LEASE:
            self.move(WITHOUT_LEASE[self.machine.state])
        try:
            stands_by = self.machine.state is State.STAND_BY
            handing_over = self._time() - self._handing_over_since if heir else 0.0
            await self.lease.release(heir, handing_over, stands_by=stands_by)
            if heir:
                await pipeline.atell(self.stamped_channel, _call_for(heir))
        except FAILURES as error:
            logger.debug("could not give the lease back: %s", describe(error))  # it expires

    async def _stamp(self) -> None:
        self._work.set()
        while True:
            await self._work.wait()
            self._work.clear()
            while self.machine.leads and (batch := self.backlog.take(BATCH_MESSAGES, BATCH_BYTES)):
                await self._stamp_batch(batch)
                if self.machine.state is not State.HOLDER:
                    self.machine.stepped()

    async def _stamp_batch(self, batch: list[Entry]) -> None:
        self._batch += 1
        delays = backoff()
        number, token = self._batch, self.lease.token
        at = microseconds(ago=asyncio.get_running_loop().time() - batch[0].at) if self._shared.sampler.due() else 0
        while self.machine.leads and self.lease.token == token:
            # What has come back has been published, though a full Redis cannot record the number of
            # the batch.
            messages = [
                Raw(entry.topic, entry.tail, self._shared.group(entry.topic), entry.digest)
                for entry in batch
                if not entry.done
            ]
            if not messages:
                return
            self._submitted[number] = batch, at
            try:
                stamped, refusal = await get_store().stamp_batch(
                    self.lease.key, token, number, messages, at, self.number
                )
            except (*FAILURES, asyncio.CancelledError) as error:
                if isinstance(error, asyncio.CancelledError) and (
                    (task := asyncio.current_task()) is None or task.cancelling()
                ):
                    raise
                # It is not known whether it was stamped: by the number Redis recognises the same
                # batch.
                if not self.lease.held:
                    self._step_down(f"Redis does not answer: {describe(error)}")
                    return
                self._log.warning("stamping failed (%s); trying again", describe(error))
                await asyncio.sleep(max(ECHO, next(delays)))
                continue
            if stamped == NOT_HOLDER:
                if self.lease.token == token:
                    self._step_down("the lease is another's")
                return
            self.backlog.confirm(batch)
            if refusal:
                count("unstamped", amount=len(messages) - stamped)
                self._shared.refusals.warning("Redis keeps no history (%s); messages go out without ids", refusal)
                await self._until_forwarded(batch)
            return

    async def _until_forwarded(self, batch: list[Entry]) -> None:
        """
        Wait until messages that went out without ids have reached their groups.

        When Redis has room again, later ones get ids and are in a history at once, from which a socket may read them
        at any moment: before those that are still on their way, and cannot be put in order by an id.
        """
        machine, self._unstamped = self.machine, True
        try:
            async with asyncio.timeout(UNSTAMPED_TIMEOUT):
                await machine.until(lambda: machine.state is not State.HOLDER or all(entry.done for entry in batch))
                if machine.state is State.HOLDER:
                    await self._forwarder.wait_sent()
        except TimeoutError:
            logger.debug("messages without ids have not reached their groups yet")
        finally:
            self._unstamped = False


def _call_for(heir: str) -> bytes:
    """Return what is published on the internal channel when a listener may take the lease."""
    return b"h" + heir.encode()
