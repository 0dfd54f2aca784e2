"""
Delivery from the channel layer to one browser: checking each message, and catching up from the
history.

What is to be sent goes into the socket's outbox (``outbox.py``). This path has no database, no
JSON, no thread and no task to be woken: Channels' own dispatch closes old database connections in
another thread and creates two tasks for every message.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import lru_cache
from typing import Any, Final

from ..aio import Timeout
from ..broker.clients import FAILURES
from ..conf import settings
from ..history.position import Page, Position
from ..layers import RedisPubSubLayer
from ..logs import LogBudget, describe, outages
from ..metrics import count, tally
from ..protocol.frames import ServerFrame, ServerPing, Subscribed, encode
from ..tasks import ended, new_task
from ..topics import Topic
from .buffer import Held
from .cursor import SEND, Cursor, Start, State, Verdict, start
from .flow_control import Credit
from .outbox import Outbox
from .reconciler import reconciler

logger = logging.getLogger(__name__)

LAYER_TIMEOUT: Final = 5.0
"""Seconds that joining or leaving a group may take."""
MARKER: Final = "notifications.marker"
"""The ``type`` of what a socket sends to itself, to see what had been sent to it before."""
FORGETTING: Final = 2.0
"""Seconds that a layer may take to forget a channel."""
INTERVAL_WITH_GAPS_TOLD: Final = 5.0
"""Seconds between two comparisons with the history on a layer that reports its gaps; it cannot know
what Redis lost or a listener did not forward. On other layers it is ``HEARTBEAT_INTERVAL``."""

_name: Final[Callable[[Topic], str]] = lru_cache(maxsize=10_000)(str)
"""One text for all sockets: there is less to look at for each of them. It is not interned: the first versions of Python
3.12 never free what is."""
_log: Final = LogBudget(logger, lines=10, period=60.0)


def subscribed(topic: Topic, recovered: bool | None, position: str | None, *, joined: bool = False) -> Subscribed:
    """Make the frame that confirms a subscription, and says of which sort the topic is."""
    state = settings.kinds[topic.kind].STATE
    return Subscribed(topic=topic.told, recovered=recovered, id=position, state=state, joined=joined)


class _NoLayer:
    """A channel layer on which nothing arrives: what is answered at once comes from the histories."""

    async def new_channel(self) -> str:
        return ""

    async def group_add(self, group: str, channel: str) -> None:
        pass

    async def group_discard(self, group: str, channel: str) -> None:
        pass

    async def send(self, channel: str, message: dict[str, Any]) -> None:
        raise ConnectionError("nothing is on its way")

    async def receive(self, channel: str) -> dict[str, Any]:
        return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return]  # it never returns


class Delivery:
    """
    Delivers the messages of some topics to one socket, each once and in order, or reports a loss.

    It sends no faster than the browser confirms: above the bound of ``Credit`` it skips what the
    layer brings, which leaves a gap, and fills that from the history when the browser has caught
    up.
    """

    __slots__ = (
        "_arrived",
        "_behind",
        "_catch_up_task",
        "_channel",
        "_failed",
        "_forgotten",
        "_held",
        "_is_own_layer",
        "_layer",
        "_markers",
        "_now",
        "_outbox",
        "_receive_task",
        "_resumed",
        "_under_way",
        "credit",
        "cursors",
    )

    def __init__(
        self,
        layer: Any,
        send: Callable[[str], Coroutine[Any, Any, None]],
        failed: Callable[[], None],
        write: Callable[[Sequence[str]], bool] | None = None,
        *,
        confirms: bool = True,
    ) -> None:
        """
        Prepare to deliver; ``end`` must follow.

        Args:
            layer: The channel layer; None to deliver from the histories alone.
            send: Passes a text to the client's transport; see ``Transport.send_text``.
            failed: Called when the layer has failed and nothing more will be delivered.
            write: Passes texts without a coroutine, if the transport can; see ``Transport.write_texts``.
            confirms: Whether the browser can confirm what it was sent; see ``Transport.can_answer``.

        """
        self.cursors: dict[str, Cursor] = {}
        self.credit = Credit(confirms=confirms)
        self._layer: Any = _NoLayer() if layer is None else layer
        self._is_own_layer = isinstance(layer, RedisPubSubLayer)
        self._outbox = Outbox(send, failed, write)
        self._failed = failed
        self._now = asyncio.get_running_loop().time
        self._channel: str | None = None
        self._receive_task: asyncio.Task[None] | None = None
        self._forgotten = False
        self._behind: list[Cursor] = []
        self._under_way = False
        self._markers = 0
        self._arrived = asyncio.Event()
        self._held = Held()
        self._catch_up_task: asyncio.Task[None] | None = None
        self._resumed: asyncio.Future[None] | None = None

    # Topics.

    async def open(self) -> None:
        """Create a channel on the layer; raises whatever the layer raises."""
        self._channel = await self._in_time(self._layer.new_channel())
        if self._is_own_layer:
            self._layer.on_resync(self._channel, self._resync)
            self._layer.on_message(self._channel, self._take)
        elif self._outbox.is_open:
            self._receive_task = asyncio.create_task(self._receive())

    async def join(self, topic: Topic, since: Position | str | None) -> tuple[bool | None, Position | None]:
        """
        Join a topic, and hold its messages back until ``release``.

        Nothing is lost between history and live: the group is joined first, then the history is
        read, and what arrives live meanwhile is skipped, because the history has it as well.

        Returns:
            Whether everything since ``since`` follows (None without one), and the position after which messages
            follow (None without a history).

        Raises:
            Exception: Whatever the layer raises, or one of ``clients.FAILURES``. The group may have
                been joined all the same; ``end`` leaves it.

        """
        kind = settings.kinds[topic.kind]
        name = _name(topic)
        cursor = self.cursors[name] = Cursor(topic, kind.HISTORY_TTL, latest_only=kind.STATE)
        tally.subscriptions += 1
        await self._in_time(self._layer.group_add(topic.group, self._channel))
        if not kind.HISTORY_SIZE:
            return (None if since is None else False), None
        begin = await self._find_start(cursor, since)
        if begin.recovered is not None:
            count("recovered", "true" if begin.recovered else "false")
        interval = INTERVAL_WITH_GAPS_TOLD if self._is_own_layer else settings.HEARTBEAT_INTERVAL
        reconciler().add(cursor, self.catch_up, interval)
        return begin.recovered, begin.position

    async def _in_time(self, call: Awaitable[Any]) -> Any:
        """Bound a call of the layer. Ours does that itself, and thousands of timers cost time."""
        if self._is_own_layer:
            return await call
        async with Timeout(LAYER_TIMEOUT):
            return await call

    async def _find_start(self, cursor: Cursor, since: Position | str | None) -> Start:
        where = await reconciler().look(cursor.topic)
        now = asyncio.get_running_loop().time()
        begin = start(where, since, cursor.ttl, state=cursor.latest_only)
        cursor.begin(begin.position, where, now)
        return begin

    def position(self, name: str) -> str | None:
        """Return the position of a joined topic; None without a history."""
        cursor = self.cursors[name]
        return str(cursor.position) if settings.kinds[cursor.topic.kind].HISTORY_SIZE else None

    def release(self, topic: Topic, frame: ServerFrame) -> asyncio.Future[bool]:
        """
        Tell the browser that it is subscribed to a joined topic, and send the topic's messages from then on.

        That is in one step. The browser may hear of it, and have something published, before the server's ``send`` has
        returned; of a topic without a history that message exists nowhere else.

        Args:
            topic: Which one.
            frame: What tells the browser.

        Returns:
            What ``mark`` returns.

        """
        said = self.say(frame)
        cursor = self.cursors[str(topic)]
        if cursor.missed:
            self.catch_up(cursor)
        else:
            cursor.go_live()
        return said

    async def leave(self, topic: Topic) -> None:
        """Leave a topic; nothing more of it is sent."""
        if (cursor := self.cursors.pop(str(topic), None)) is None:
            return
        cursor.leave()
        tally.subscriptions -= 1
        reconciler().remove(cursor)
        try:
            await self._in_time(self._layer.group_discard(topic.group, self._channel))
        except Exception as error:  # noqa: BLE001  a layer may raise anything; the socket does not depend on it
            logger.debug("could not leave a group: %s", describe(error))

    def stop(self) -> None:
        """Send nothing more and start nothing, because servers accept nothing after a close."""
        self._outbox.close()
        for cursor in self.cursors.values():
            cursor.leave()
        if self._catch_up_task is not None:
            self._catch_up_task.cancel()

    async def end(self) -> None:
        """Release everything; the socket is gone."""
        self.stop()
        await self._outbox.wait_closed()
        if self._catch_up_task is not None:
            await ended(self._catch_up_task)
        if self._channel is None:
            return
        for cursor in list(self.cursors.values()):
            await self.leave(cursor.topic)
        if self._is_own_layer:
            self._layer.forget(self._channel)
        else:
            await self._end_receiving()

    async def _end_receiving(self) -> None:
        """
        Cancel a ``receive``, because layers forget a channel only then.

        ``_receive`` may have ended elsewhere than in the layer.
        """
        if self._receive_task is not None:
            self._receive_task.cancel()  # once: cancelled again, a layer leaves its subscription behind
            await asyncio.wait([self._receive_task], timeout=FORGETTING)
            await ended(self._receive_task)
        while not self._forgotten:
            receiving = asyncio.ensure_future(self._layer.receive(self._channel))
            await asyncio.sleep(0)  # a task that is cancelled before its first step never reaches ``receive``
            if not receiving.done():
                await ended(receiving)
                return
            if receiving.cancelled() or receiving.exception() is not None:
                return

    # Live messages.

    async def _receive(self) -> None:
        """Receive from a layer without ``on_message``."""
        receive, channel = self._layer.receive, self._channel
        try:
            while True:
                self._take(await receive(channel))
        except asyncio.CancelledError as error:
            self._forgotten = True
            task = asyncio.current_task()
            if task is not None and not task.cancelling():  # something in the layer was; nothing else would log it
                self._layer_failed(error)
            raise
        except Exception as error:  # noqa: BLE001  a layer may raise anything
            self._layer_failed(error)

    def _layer_failed(self, error: BaseException) -> None:
        if times := outages.due(f"layer {type(error).__name__}"):
            # With a stack trace if it is not an outage but a bug in a layer.
            logger.error(
                "the channel layer failed (%s); %d socket(s) told to come back",
                describe(error),
                times,
                exc_info=None if isinstance(error, FAILURES) else error,
            )
        self._failed()

    def _take(self, event: dict[str, Any]) -> None:
        """Check a message of the layer, and put it into the outbox if it is the next one."""
        cursor = self.cursors.get(event.get("topic", ""))
        if cursor is None:
            if event.get("type") == MARKER and event["n"] == self._markers:
                self._arrived.set()
            return  # unsubscribed meanwhile, or not from a listener
        credit, epoch = self.credit, event.get("epoch")
        if credit.sent > credit.limit:
            if epoch is None:
                count("dropped", "slow browser, no history")
            else:
                cursor.let_go(epoch, event["n"])
            return
        if epoch is None:
            verdict = cursor.offer_without_id()
        else:
            verdict = cursor.offer(epoch, event["n"], event.get("run", ""), self._now())
        if verdict is SEND:
            self._put(event["text"])
            tally.delivered += 1
            if "at" in event:
                self._outbox.time(event["at"])
        elif verdict is Verdict.BEHIND:
            self.catch_up(cursor)
        elif verdict is Verdict.HOLD:
            self._held.keep(cursor, event["text"])

    def _deliver(self, text: str) -> None:
        self._put(text)
        tally.delivered += 1

    def _put(self, text: str) -> None:
        credit = self.credit
        credit.sent += len(text)
        self._outbox.put(text)
        if credit.sent >= credit.ask_at:
            self.ask()

    @property
    def paused(self) -> bool:
        """Whether the browser has to confirm more before anything is sent to it."""
        return self.credit.exhausted

    def pong(self, number: int | None) -> bool:
        """Count the browser's answer to a ping; return whether there was one to answer."""
        if answered := self.credit.pong(number, self._now()):
            self._resume()
        return answered

    def _resync(self) -> None:
        """Compare positions now, because the layer may have lost something."""
        for cursor in self.cursors.values():
            reconciler().hurry(cursor.topic)

    def asked(self) -> bool:
        """Count a ping from the browser; return whether that confirmed anything."""
        if confirmed := self.credit.asked(self._now()):
            self._resume()
        return confirmed

    def _resume(self) -> None:
        if self.paused:
            return
        if self._resumed is not None and not self._resumed.done():
            self._resumed.set_result(None)
        for cursor in self.cursors.values():
            if cursor.missed and cursor.state is State.LIVE:
                self.catch_up(cursor)

    def ask(self) -> None:
        """Send a ping, whose answer confirms what was sent before."""
        text = encode(ServerPing(n=self.credit.ping()))
        self.credit.sent += len(text)
        self._outbox.put(text)

    def mark(self) -> asyncio.Future[bool]:
        """Return a future: True once the server has accepted all sent so far, False if never."""
        return self._outbox.mark()

    def say(self, frame: ServerFrame) -> asyncio.Future[bool]:
        """Send a frame that is no message; return what ``mark`` returns."""
        text = encode(frame)
        self.credit.sent += len(text)
        self._outbox.put(text)
        return self.mark()

    # Catching up.

    async def is_level(self) -> None:
        """Wait until what is missing at present has been read, and the transport has accepted everything."""
        while self._catch_up_task is not None:
            await asyncio.wait([self._catch_up_task])
        await self._outbox.mark()

    def catch_up(self, cursor: Cursor, under_way: bool = False) -> None:
        """
        Queue a cursor that is behind: what it misses is read from the history and sent.

        Args:
            cursor: Which one.
            under_way: Whether what it misses may still be on its way, behind messages that no history has.

        """
        if cursor.has_left or not self._outbox.is_open:
            return
        cursor.catch_up()
        self._under_way = self._under_way or under_way
        self._behind.append(cursor)
        if self._catch_up_task is None:
            self._catch_up_task = new_task(self._catch_up_all())

    async def _catch_up_all(self) -> None:
        try:
            while self._behind:
                if self._under_way:
                    self._under_way = False
                    await self._until_arrived()
                cursor = self._behind.pop(0)
                try:
                    await self._catch_up(cursor)
                except FAILURES as error:
                    # Perhaps no later message reveals the gap again, and the next comparison may be
                    # far off.
                    logger.debug("could not read the history of %s: %s", cursor.topic, describe(error))
                    reconciler().hurry(cursor.topic)
                except Exception as error:  # noqa: BLE001  a bug; of this topic, and at this time only
                    _log.warning("could not bring a socket up to date on %s", cursor.topic, exc_info=error)
                finally:
                    self._end_catching_up(cursor)
        finally:
            self._catch_up_task = None
            while self._behind:  # cancelled: a comparison finds them again, if the socket still exists
                self._end_catching_up(self._behind.pop(0))

    async def _until_arrived(self) -> None:
        """
        Wait until everything that the layer was given for this socket up to now has arrived.

        What is read from a history may otherwise overtake messages without an id that were published before it, for as
        long as this process or its connection lags behind. Layers keep the order: a marker arrives after them.
        """
        self._markers += 1  # one that comes after its time must not count
        self._arrived.clear()
        try:
            async with Timeout(LAYER_TIMEOUT):
                await self._layer.send(self._channel, {"type": MARKER, "n": self._markers})
                await self._arrived.wait()
        except Exception as error:  # noqa: BLE001  a layer may raise anything; it brings nothing else either
            logger.debug("could not wait for what is on its way: %s", describe(error))

    def _end_catching_up(self, cursor: Cursor) -> None:
        cursor.go_live()
        for text in self._held.all(cursor):
            if cursor.state is State.LIVE:  # even if reading failed: what was held exists nowhere else
                self._deliver(text)

    async def _catch_up(self, cursor: Cursor) -> None:
        """Send page by page what follows a cursor, or the latest message, when the browser has confirmed enough."""
        while True:
            await self._until_confirmed()
            before = cursor.begin_reading()
            page = await reconciler().read(cursor.topic, cursor.read_after)
            if cursor.has_left:
                return  # nothing of it may be sent after the answer
            self._send(page, cursor)
            if not await self._outbox.mark() or cursor.has_left:
                return
            if cursor.has_all(page, before) and not (self.paused and self._held.has(cursor)):
                break
        cursor.compare(page, self._now())

    async def _until_confirmed(self) -> None:
        while self.paused:
            self._resumed = asyncio.get_running_loop().create_future()
            await self._resumed

    def _send(self, page: Page, cursor: Cursor) -> None:
        """Send a page, and between its messages those without an id, in their places."""
        now = self._now()
        incomplete, frames = cursor.follow(page, now)
        if incomplete:
            count("recovered", "false")
            self._put(encode(subscribed(cursor.topic, False, str(cursor.position))))
        heard = cursor.published_by(page, now)
        for frame in frames:
            for text in self._held.before(cursor, frame.position):
                self._deliver(text)
            cursor.move(frame.position, heard)
            self._deliver(frame.text)
        count("filled", amount=len(frames))
