"""The last step of the bridge: sending stamped messages to channel-layer groups in order."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable
from functools import lru_cache
from typing import Any, Final

from ..aio import Runner, Timeout, coroutine_function
from ..broker.clients import FAILURES
from ..broker.reconnect import backoff
from ..conf import settings
from ..exceptions import TopicError
from ..history.stamped import STAMPED, Stamped, layer_message
from ..logs import LogBudget
from ..metrics import bridging, count, tally
from ..tasks import ended
from ..topics import Topic, internal_name

logger = logging.getLogger(__name__)

MAX_BYTES: Final = 64 * 1024 * 1024
"""Bytes that may wait for the channel layer. Messages dropped beyond that are read from the history by sockets."""
ENTRY_BYTES: Final = 400
"""Approximate memory of a message besides its frame."""
GROUP_SEND_TIMEOUT: Final = 5.0
"""Seconds that the channel layer may take for one message."""


class Forwarder:
    """
    A bounded queue and the task that empties it in order.

    The layer's own code runs in another task (``aio.Runner``): whatever it cancels there, this one continues.

    Attributes:
        forwarded: Messages that the layer has accepted, or a script has delivered for this listener.

    """

    def __init__(self, layer: Any, log: LogBudget) -> None:
        self.forwarded = 0
        self._group_send = coroutine_function(layer.group_send)
        self._runner = Runner()
        self._log = log
        self._queue: deque[Stamped] = deque()
        self._bytes = 0
        self._wake = asyncio.Event()
        self._taken = 0
        self._progress = asyncio.Event()
        self._group = lru_cache(maxsize=10_000)(self._find_group)
        self._unknown = LogBudget(logger, lines=1, period=60.0)

    def __len__(self) -> int:
        return len(self._queue)

    def add(self, stamped: Stamped) -> None:
        """Queue a message that its group has not had; when the queue is full it is dropped, counted and logged."""
        if self._bytes > MAX_BYTES:
            self._log.lost("the channel layer is too slow")
            return
        if not self._queue:
            self._wake.set()
        self._queue.append(stamped)
        self._bytes += len(stamped.frame) + ENTRY_BYTES

    def delivered(self, amount: int, at: int) -> None:
        """Count raw messages that a script has delivered; ``at`` as in ``Stamped``, of the first."""
        self.forwarded += amount
        tally.bridged += amount
        if at:
            bridging.since(at)

    async def wait_sent(self) -> None:
        """Wait until the layer has taken all that is queued now."""
        all_of_it = self._taken + len(self._queue)
        while self._taken < all_of_it:
            self._progress.clear()
            await self._progress.wait()

    async def run(self) -> None:
        """Forward until cancelled."""
        queue = self._queue
        self._wake.set()  # messages may be waiting from before a restart
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                while queue:
                    await self._forward(queue[0])
                    self._bytes -= len(queue.popleft().frame) + ENTRY_BYTES
                    self._taken += 1
                    self._progress.set()
        finally:
            self._runner.end()

    def _find_group(self, name: str) -> str:
        topic = Topic.checked_elsewhere(name)
        if topic.kind not in settings.kinds:
            # Web processes were deployed first. They know the kind, and only the group is needed here.
            self._unknown.warning("kind %r is not in this listener's TOPICS; restart it with the site's", topic.kind)
        return topic.group

    async def _forward(self, stamped: Stamped) -> None:
        try:
            group = self._group(stamped.topic)
        except TopicError as error:
            count("refused", type(error).__name__)
            self._log.warning("refused a message on channel %r: %s", internal_name(STAMPED), error)
            return
        message = layer_message(stamped)
        try:
            try:
                sending: Awaitable[None] | None = self._runner.begin(self._group_send(group, message))
            except FAILURES:
                if stamped.position is None:
                    raise
                sending = self._send_once(group, message)
            if sending is not None:
                await self._send(sending, group, message, again=stamped.position is not None)
        except Exception as error:  # noqa: BLE001  a layer may raise anything; it must cost this message only
            self._log.lost(f"the channel layer failed: {type(error).__name__}")
        else:
            self.delivered(1, 0 if stamped.road == "p" else stamped.at)

    async def _send(self, sending: Awaitable[None], group: str, message: dict[str, Any], *, again: bool) -> None:
        """Send; retry a stamped message (``again``) after a failure, because sockets drop duplicates."""
        try:
            async with Timeout(GROUP_SEND_TIMEOUT):
                for delay in backoff():
                    try:
                        await sending
                        return
                    except FAILURES:
                        if not again:
                            raise
                    await asyncio.sleep(delay)
                    sending = self._send_once(group, message)
        except TimeoutError:
            if self._runner.running is not None:
                await ended(self._runner.running)  # or it might arrive after the next message
            raise

    async def _send_once(self, group: str, message: dict[str, Any]) -> None:
        if (rest := self._runner.begin(self._group_send(group, message))) is not None:
            await rest
