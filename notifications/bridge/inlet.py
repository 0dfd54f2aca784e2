"""
The way in for programs whose messages must not be lost though no listener runs: ``history/inlet.py``.

    XADD ──▶ notifications:inlet ──▶ (holder) one script: next id, history, PUBLISH, and out of the inlet

The listener that holds the lease reads what waits, checks it as it checks raw messages, and has the store publish it.
Each shard has an inlet, which whoever holds the shard's lease empties; what is appended there may be for any shard.
It does so in a task of its own beside stamping raw messages: each has at most one call under way, so neither waits
for more than one step of the other.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from ..broker.bell import Bell
from ..broker.clients import FAILURES
from ..broker.reconnect import backoff, connected
from ..broker.wire import site_pool
from ..conf import settings
from ..exceptions import MessageError, TopicError
from ..history import get_store
from ..history.inlet import INLET, Checked, Entry, fields_of
from ..history.stamped import tail
from ..logs import LogBudget, describe
from ..messages import check_raw
from ..metrics import count, listening
from ..publisher import MAX_IDEMPOTENCY_KEY_LENGTH
from ..tasks import restarted
from ..topics import Topic, internal_name
from .forwarder import Forwarder
from .lease import Lease
from .state import State, StateMachine

logger = logging.getLogger(__name__)

LONGEST_PAUSE: Final = 10.0
"""Longest pause in seconds before Redis is asked again that refuses, as when it is full; half of it on average."""
STEP: Final = 20
"""Entries published in one step. A raw message has to wait until Redis is done, and until those that are not delivered
directly are forwarded: with 200 it took four times as long, and with 20 the inlet is not emptied more slowly."""
_NO_LEASE: Final = "the lease has ended"
"""Another listener has it, or Redis does not let it be renewed: who leads is not decided here."""


class HeldUpError(Exception):
    """Something keeps entries from being published; they are still in the inlet."""


class Inlet:
    """Empties the inlet of a shard while its listener is in charge of it."""

    def __init__(
        self,
        machine: StateMachine,
        lease: Lease,
        forwarder: Forwarder,
        topic: Callable[[bytes], Topic],
        group: Callable[[Topic], str | None],
        shard: int = 0,
    ) -> None:
        """
        Belong to a listener.

        Args:
            machine, lease, forwarder: The listener's, of the shard.
            topic: Returns the topic of a raw channel; raises TopicError.
            group: Returns the Redis channel of a topic's group, as ``Store.publish`` takes it.
            shard: Whose inlet it is.

        """
        self._shard = shard
        self._machine = machine
        self._lease = lease
        self._forwarder = forwarder
        self._topic = topic
        self._group = group
        self._delays = backoff(longest=LONGEST_PAUSE)
        self._busy = asyncio.Lock()
        self._log = LogBudget(logger)
        self._failures = LogBudget(logger, lines=1, period=60.0)

    async def run(self) -> None:
        """Empty the inlet whenever the listener is in charge, until cancelled."""
        while True:
            await self._machine.until(lambda: self._in_charge)
            self._delays = backoff(longest=LONGEST_PAUSE)
            try:
                while self._in_charge:
                    try:
                        await self._serve()
                    except (*FAILURES, HeldUpError) as error:
                        if self._in_charge and self._lease.held:
                            self._failures.warning("the inlet cannot be emptied (%s); trying again", describe(error))
                        await asyncio.sleep(next(self._delays))
                    except Exception as error:  # noqa: BLE001  a mistake here must not end the bridge
                        restarted("inlet", error)
                        await asyncio.sleep(next(self._delays))
            finally:
                listening.inlets.pop(self._shard, None)

    async def finished(self) -> None:
        """Wait until the batch that is under way is done; none follows once the listener is not in charge."""
        async with self._busy:
            pass

    @property
    def _in_charge(self) -> bool:
        return self._machine.state is State.HOLDER

    async def _serve(self) -> None:
        name = internal_name(INLET, self._shard)
        async with connected(Bell(name), site_pool(name)) as bell:
            await self._empty()  # without it: Redis may close a connection rather than send it a huge entry
            while self._in_charge:
                if not await bell.rung():
                    self._delays = backoff(longest=LONGEST_PAUSE)  # it has lasted for a second
                    continue
                await self._empty()
                if bell.is_closed:
                    return  # a huge entry rings, and ends the connection

    async def _empty(self) -> None:
        """Publish what waits, from the oldest on."""
        more = True
        while more and self._in_charge:
            token = self._lease.token
            waiting = await get_store().read_inlet(self._lease.key, token, self._shard)
            if waiting is None:
                raise HeldUpError(_NO_LEASE)
            listening.inlets[self._shard] = waiting.amount, waiting.age
            if waiting.dropped:
                self._log.lost("the inlet is full", waiting.dropped)
                continue
            for begin in range(0, len(waiting.entries), STEP):
                entries = [self._check(entry) for entry in waiting.entries[begin : begin + STEP]]
                await self._forwarder.wait_sent()  # raw messages are forwarded in one order with these
                async with self._busy:
                    if not self._in_charge:
                        return
                    await self._publish(token, entries)
            more = waiting.amount > len(waiting.entries)
        listening.inlets.pop(self._shard, None)

    async def _publish(self, token: str, entries: list[Checked]) -> None:
        if not self._lease.held:  # it was paused: another may have published them long ago in their shards
            raise HeldUpError(_NO_LEASE)
        outcome = await get_store().publish_inlet(self._lease.key, token, entries, self._shard)
        if outcome is None:
            raise HeldUpError(_NO_LEASE)
        count("inlet_published", amount=outcome.published)
        self._tell_refused(entries, outcome.refused)
        if outcome.refusal:
            raise HeldUpError(outcome.refusal)
        self._delays = backoff(longest=LONGEST_PAUSE)

    def _check(self, entry: Entry) -> Checked:
        """Decide what is to become of an entry."""
        try:
            fields = fields_of(entry)
            topic = self._topic(settings.PREFIX.encode() + fields[b"topic"])
            text = check_raw(fields[b"data"], settings.MAX_MESSAGE_SIZE)
            key = _key(fields.get(b"idempotency_key"))
        except (MessageError, TopicError) as error:
            return Checked(entry.id, None, refusal=f"{type(error).__name__}: {error}")
        return Checked(entry.id, topic, tail(text.encode()), self._group(topic), key)

    def _tell_refused(self, entries: list[Checked], refused: list[str]) -> None:
        if refused:
            reasons = {entry.id: entry.refusal for entry in entries}
            for id_ in refused:
                count("inlet_refused", reasons[id_].partition(":")[0])
                self._log.warning("refused entry %s of the inlet: %s", id_, reasons[id_])


def _key(value: bytes | None) -> str | None:
    if value is None:
        return None
    try:
        key = value.decode()
    except UnicodeDecodeError as error:
        raise MessageError("the idempotency key is not UTF-8") from error
    if not 1 <= len(key) <= MAX_IDEMPOTENCY_KEY_LENGTH:
        raise MessageError(f"an idempotency key has 1 to {MAX_IDEMPOTENCY_KEY_LENGTH} characters")
    return key
