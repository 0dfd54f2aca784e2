"""
A run under a fault: many sockets, thousands of numbered messages, one thing that breaks, and the account of it.

    run = Run(site, [server], listeners, messages=2000, seconds=5)
    result = await run.through("kill -9 the holder", fault)
    result.expect_nothing_wrong()

Half of the messages are raw and half are published, each numbered on its road and topic, so that what is lost,
comes twice or comes out of order can be told for every socket. Uploads are states: what did not come on one of them is
not lost if the ids that a socket got show that so many were replaced by later ones.
"""

import asyncio
import json
import os
import random
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import count, pairwise
from pathlib import Path
from typing import Any, NamedTuple

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

import notifications
from notifications.exceptions import PublishError
from tests.http_client import Answer, post
from tests.processes import Process, Site, User, WebServer
from tests.waiting import await_for, scaled

SOCKETS, USERS, UPLOADS = 50, 20, 10
UPLOADS_EACH = 2
"""Uploads that each socket watches beside its user's own topic."""
LEVEL = 0.5
"""Seconds from publish to arrival, before scaling, up to which a socket counts as level."""
WHILE_BROKEN = 0.75
"""The part of each publisher's messages that is sent before the fault is over."""
IN_FLIGHT = 1.0
"""
Seconds, before scaling, before a fault that cuts all listeners in which a raw message may still have been on its way to
them: two busy cores may stop them for so long.
"""
PATIENCE = 40.0
"""Seconds, before scaling, that all sockets have to become level after the last message."""
HISTORY_SIZE = 5000
HEARTBEAT_INTERVAL = 3
"""Seconds after which the reconciler finds what the layer lost and nothing follows; 30 by default."""
NOTIFICATIONS = {"HISTORY_SIZE": HISTORY_SIZE, "HEARTBEAT_INTERVAL": HEARTBEAT_INTERVAL}
"""What a site of a run has in its settings, beside the topics of ``tests/settings.py``."""


class Key(NamedTuple):
    """What names a message: the payload holds it."""

    road: str
    topic: str
    n: int


@dataclass
class Message:
    """
    One message and what its publisher knows of it.

    ``sent`` is when Redis confirmed it. ``receivers`` is what a raw ``PUBLISH`` was answered; None if the
    answer never came, so that nobody knows.
    """

    key: Key
    begun: float = 0.0
    sent: float | None = None
    receivers: int | None = None

    @property
    def payload(self) -> dict[str, Any]:
        return {"action": "numbered", **self.key._asdict()}


@dataclass
class Result:
    """What came of a run."""

    fault: str
    messages: int
    nobody: int
    """Raw messages that no listener heard: ``PUBLISH`` said 0 or nothing, or the fault cut all listeners under it."""
    lost: int
    twice: int
    out_of_order: int
    told: int
    """How often a socket was told ``recovered:false``."""
    latest: float
    """Seconds from publish to arrival, of the message that took longest after the fault began."""
    recovery: float
    """Seconds from the fault's end until every socket was level again."""
    reconnected: int
    details: list[str] = field(default_factory=list)

    HEADINGS = (
        "fault",
        "messages",
        "lost",
        "twice",
        "out of order",
        "told",
        "nobody was listening",
        "latest, s",
        "seconds to recovery",
    )

    @property
    def row(self) -> tuple[str, ...]:
        return (
            self.fault,
            f"{self.messages:,}",
            str(self.lost),
            str(self.twice),
            str(self.out_of_order),
            str(self.told),
            str(self.nobody),
            f"{self.latest:.1f}",
            f"{self.recovery:.1f}",
        )

    def expect_nothing_wrong(self, *, told: bool = False) -> None:
        """Fail if anything was lost, came twice or out of order, or (unless ``told``) a socket was told of a gap."""
        wrong = self.lost or self.twice or self.out_of_order or (self.told and not told)
        assert not wrong, "\n".join([str(self.row), *self.details])


TABLE: list[Result] = []
"""The results of this test session, in their order."""
NOTES: list[str] = []
"""What else was measured, a sentence each."""


def table() -> Iterator[str]:
    """Write the results as a Markdown table."""
    yield "| " + " | ".join(Result.HEADINGS) + " |"
    yield "|---" * len(Result.HEADINGS) + "|"
    for result in TABLE:
        yield "| " + " | ".join(result.row) + " |"
    for note in NOTES:
        yield f"\n{note}"


def write_table() -> None:
    """Write the table to the file that ``FAULT_TABLE`` names, if it does."""
    if TABLE and (path := os.environ.get("FAULT_TABLE")):
        Path(path).write_text("\n".join(table()) + "\n")


class Browser:
    """
    A tab that comes back: it remembers its positions, reconnects with backoff and asks for what it missed.

    Everything it gets is recorded; nothing is dropped as the real client would.
    """

    def __init__(self, server: WebServer, user: User, topics: list[str]) -> None:
        self.server = server
        self.user = user
        self.own = f"user:{user.pk}"
        self.topics = topics
        self.positions: dict[str, str] = {}
        self.states: set[str] = set()
        self.ids: dict[str, list[tuple[int, int]]] = defaultdict(list)
        self.arrived: dict[Key, float] = {}
        self.twice: list[Key] = []
        self.disordered: list[tuple[Key, int]] = []
        self.told: list[tuple[str, float]] = []
        self.unstamped = 0
        self.without_id: set[Key] = set()
        self.with_id: set[Key] = set()
        """Shared by all browsers of a run."""
        self.connections = 0
        self.closes: Counter[int | None] = Counter()
        self.wrong: list[str] = []
        self._last: dict[tuple[str, str], int] = defaultdict(int)
        self._last_without_id: dict[str, int] = defaultdict(int)
        self._joined: set[str] = set()
        self._connection: ClientConnection | Answer | None = None
        self._absences: list[list[float]] = [[0.0, float("inf")]]

    def was_there(self, begin: float, end: float) -> bool:
        """Whether it was connected, with all its topics, and read what it was sent, in all of this time."""
        return all(absent_to < begin or end < absent_from for absent_from, absent_to in self._absences)

    @property
    def ready(self) -> bool:
        """It is connected and has joined all its topics."""
        return self._joined >= {self.own, *self.topics}

    def replaced(self, topic: str) -> int:
        """Count the messages of a state that it was not sent because it was sent a later one, as the ids show."""
        jumped, before = 0, (0, 0)
        for epoch, n in self.ids[topic]:
            jumped += max(0, n - 1 - (before[1] if epoch == before[0] else 0))
            before = epoch, n
        return jumped

    def drop(self) -> None:
        """Lose the connection, as in a tunnel."""
        if self._connection is not None:
            self._connection.transport.abort()

    @asynccontextmanager
    async def frozen(self) -> AsyncIterator[None]:
        """Read nothing, not even from the kernel, as a tab that the system has put to sleep."""
        connection = self._connection
        if connection is None:
            yield
            return
        connection.transport.pause_reading()
        self._absences.append([time.monotonic(), float("inf")])
        absence = self._absences[-1]
        try:
            yield
        finally:
            absence[1] = time.monotonic()
            with suppress(RuntimeError):  # it was closed meanwhile
                connection.transport.resume_reading()

    async def stay(self) -> None:
        """Be there, and come back, until cancelled."""
        delay = 0.05
        while not self.wrong:
            before = self.connections
            with suppress(OSError, EOFError, TimeoutError, InvalidHandshake, ConnectionClosed):
                await self._visit()
            if self.connections > before:
                delay = 0.05
            if self.ready:
                self._absences.append([time.monotonic(), float("inf")])
            self._joined.clear()
            await asyncio.sleep(random.uniform(delay / 2, delay))
            delay = min(delay * 2, 1.0)

    async def _visit(self) -> None:
        """Be connected once."""
        connection = connect(self.server.url, open_timeout=scaled(), close_timeout=0.2, proxy=None, compression=None)
        async with connection as self._connection:
            self.connections += 1
            await self._talk(self._connection)

    async def _talk(self, connection: ClientConnection) -> None:
        try:
            await self._send(connection, {"type": "auth", "token": self.user.token, **self._since(self.own)})
            for topic in self.topics:
                await self._send(connection, {"action": "subscribe", "topic": topic, **self._since(topic)})
            async for text in connection:
                await self._take(connection, json.loads(text))
        finally:
            self._closed(connection.close_code)

    def _closed(self, code: int | None) -> None:
        self.closes[code] += 1
        if code is not None and (code == 1000 or 4000 <= code < 4100):
            self.wrong.append(f"closed with {code}")

    def _back(self) -> None:
        """Note that what is published from now on can reach it."""
        for absence in self._absences:
            absence[1] = min(absence[1], time.monotonic())

    def _since(self, topic: str) -> dict[str, str]:
        return {"since": self.positions[topic]} if topic in self.positions else {}

    async def _send(self, connection: ClientConnection, frame: dict[str, Any]) -> None:
        await connection.send(json.dumps(frame))

    async def _take(self, connection: Any, frame: dict[str, Any]) -> None:
        match frame:
            case {"action": "numbered", "road": road, "topic": topic, "n": n}:
                self._number(Key(road, topic, n), frame.get("_meta"))
            case {"action": "ping", "n": n}:
                await self._send(connection, {"action": "pong", "n": n})
            case {"action": "auth_success" | "subscribed", "recovered": recovered, "id": position}:
                topic = frame.get("topic", self.own)
                if not self.ready:
                    self._joined.add(topic)
                    if self.ready:
                        self._back()
                self.positions[topic] = position
                if frame.get("state"):
                    self.states.add(topic)
                if recovered is False:
                    self.told.append((topic, time.monotonic()))
            case _:
                self.wrong.append(f"unexpected {frame}")

    def _number(self, key: Key, meta: dict[str, str] | None) -> None:
        if meta is None:
            self.unstamped += 1
            self.without_id.add(key)
        elif meta["topic"] != key.topic:
            self.wrong.append(f"{key} came on {meta}")
        else:
            self.positions[key.topic] = meta["id"]
            epoch, _, n = meta["id"].partition("-")
            self.ids[key.topic].append((int(epoch), int(n)))
            self.with_id.add(key)
        if key in self.arrived:
            self.twice.append(key)
            return
        self.arrived[key] = time.monotonic()
        # A message without an id may overtake those that have one and that the socket does not know to be missing.
        last = self._last[key.road, key.topic]
        if meta is None:
            last = max(last, self._last_without_id[key.topic])
            self._last_without_id[key.topic] = max(last, key.n)
        else:
            self._last[key.road, key.topic] = max(last, key.n)
        if key.n < last:
            self.disordered.append((key, last))


class HttpBrowser(Browser):
    """A tab to which no WebSocket gets through: it has the same positions, and asks again with them."""

    mode: str

    async def _visit(self) -> None:
        topics = [{"topic": topic, **self._since(topic)} for topic in self.topics]
        body = {"mode": self.mode, "token": self.user.token, "topics": topics, **self._since(self.own)}
        body["wait"] = 25 if self.positions else 0
        async with post(self.server, body) as self._connection:
            if self._connection.status != 200:
                raise ConnectionError(self._connection.status)
            self.connections += 1
            async for frame in self._frames(self._connection):
                if frame["action"] == "close":
                    self._closed(frame["code"])
                else:
                    await self._take(None, frame)

    def _frames(self, answer: Answer) -> AsyncIterator[dict[str, Any]]:
        raise NotImplementedError


class StreamBrowser(HttpBrowser):
    """It reads a stream."""

    mode = "stream"

    def _frames(self, answer: Answer) -> AsyncIterator[dict[str, Any]]:
        return answer.frames()


class PollBrowser(HttpBrowser):
    """It polls: at first for its positions, and from then on it is as good as connected between two polls, too."""

    mode = "poll"

    @property
    def ready(self) -> bool:
        return self.positions.keys() >= {self.own, *self.topics}

    async def _frames(self, answer: Answer) -> AsyncIterator[dict[str, Any]]:
        for frame in await answer.json():
            yield frame


Fault = Callable[["Run"], Awaitable[None]]
_runs = count(1)


class Run:
    """One fault on one site under load."""

    def __init__(
        self,
        site: Site,
        servers: list[WebServer],
        listeners: list[Process],
        *,
        messages: int,
        seconds: float,
        sockets: int = SOCKETS,
        one_fault: bool = True,
        browser: type[Browser] = Browser,
    ) -> None:
        """
        Prepare a run.

        Args:
            site: Where; its settings hold ``NOTIFICATIONS``, and so do those of this process.
            servers: The sockets are spread over these web servers.
            listeners: Those of the site, living or not.
            messages: How many to publish, half of them raw.
            seconds: How long to take for it, where nothing hinders.
            sockets: How many browsers.
            one_fault: At a time, as far as the promise of raw messages goes. Otherwise a raw message has to arrive
                everywhere only if it was given an id.
            browser: What the browsers are.

        """
        self.site = site
        self._one_fault = one_fault
        self.servers = servers
        self.listeners = listeners
        self.began = self.ended = 0.0
        self.refused = 0
        """How often ``publish_*`` raised ``PublishError``."""
        self._cuts: list[tuple[float, float]] = []
        users = [site.add_user() for _ in range(USERS)]
        number = next(_runs)
        uploads = [f"upload:all-{os.getpid()}-{number}-{n}" for n in range(UPLOADS)]
        self.browsers = [
            browser(
                servers[n % len(servers)],
                users[n % USERS],
                [uploads[(n + step * 3) % UPLOADS] for step in range(UPLOADS_EACH)],
            )
            for n in range(sockets)
        ]
        self._seconds = seconds
        self._streams = self._number([f"user:{user.pk}" for user in users], uploads, messages)
        self.messages = [message for stream in self._streams.values() for message in stream]
        self._with_id: set[Key] = set()
        for browser in self.browsers:
            browser.with_id = self._with_id
        self._fault_over = asyncio.Event()
        self._sent = 0

    @staticmethod
    def _number(users: list[str], uploads: list[str], messages: int) -> dict[str, list[Message]]:
        """Deal numbered messages to publishers, each of which has topics of its own, so that their order is fixed."""
        streams: dict[str, list[Message]] = defaultdict(list)
        numbers: Counter[tuple[str, str]] = Counter()
        for n in range(messages):
            road = "raw" if n % 2 else "published"
            topics = users if n // 2 % 2 else uploads
            topic = topics[n // 4 % len(topics)]
            numbers[road, topic] += 1
            if road == "raw":
                publisher = "raw"
            elif topic in uploads:
                publisher = topic  # asynchronously
            else:
                publisher = f"thread {n // 4 % 4}"
            streams[publisher].append(Message(Key(road, topic, numbers[road, topic])))
        return streams

    # For faults.

    @property
    def progress(self) -> float:
        """The part of the messages that has been sent, from 0 to 1."""
        return self._sent / len(self.messages)

    async def reached(self, part: float) -> None:
        """Wait until so much of the messages has been sent, or all that are sent before the fault is over."""
        part = min(part, WHILE_BROKEN)
        await await_for(lambda: self.progress >= part, 60, f"{part:.0%} of the messages are sent")

    @property
    def holder(self) -> Process | None:
        """The listener that holds the lease, by its own words."""
        return next((listener for listener in self.listeners if is_holder(listener)), None)

    async def find_holder(self) -> Process:
        return await await_for(lambda: self.holder, 20, "a listener holds the lease")

    @asynccontextmanager
    async def cutting_all_listeners(self):
        """Say that no listener may hear what is published raw in the block, nor what is on its way when it begins."""
        began = time.monotonic()
        yield
        self._cuts.append((began - scaled(IN_FLIGHT), time.monotonic()))

    # The run.

    async def through(self, name: str, fault: Fault, *, at: float = 0.35, patience: float = PATIENCE) -> Result:
        """Publish, let the fault happen when ``at`` of it is sent, wait until all is level, and give the account."""
        async with asyncio.TaskGroup() as tasks:
            staying = [tasks.create_task(browser.stay()) for browser in self.browsers]
            try:
                await await_for(lambda: all(browser.ready for browser in self.browsers), 30, "all sockets are ready")
                publishing = [tasks.create_task(self._publish(*stream)) for stream in self._streams.items()]
                await self.reached(at)
                self.began = time.monotonic()
                await fault(self)
                self.ended = time.monotonic()
                self._fault_over.set()
                await asyncio.wait(publishing)
                with suppress(AssertionError):  # the account says it better
                    await await_for(lambda: not any(self._missing(browser) for browser in self.browsers), patience)
            finally:
                for task in staying:
                    task.cancel()
        result = self._account(name)
        TABLE.append(result)
        print("\n" + " | ".join(result.row))  # noqa: T201
        return result

    async def _publish(self, name: str, stream: list[Message]) -> None:
        publish = {"raw": self._publish_raw, "thread": self._publish_in_thread}.get(
            name.split()[0], self._publish_from_loop
        )
        interval = self._seconds / len(stream)
        next_at, begin = time.monotonic() + random.uniform(0, interval), 0
        while begin < len(stream):
            if begin / len(stream) >= WHILE_BROKEN:
                await self._fault_over.wait()  # a fault ends under load
            now = time.monotonic()
            if next_at > now:
                await asyncio.sleep(next_at - now)
            next_at = max(next_at, time.monotonic() - 0.5)  # a stall is not made up for at once
            due = stream[begin : begin + max(1, int((time.monotonic() - next_at) / interval))]
            await publish(due)
            begin += len(due)
            self._sent += len(due)
            next_at += interval * len(due)

    async def _publish_raw(self, due: list[Message]) -> None:
        """Pipeline ``PUBLISH`` by hand. What is not answered is not sent again: nobody knows whether it was heard."""
        answered = 0
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.site.raw_port)
        except OSError:
            for message in due:
                message.receivers = 0
            await asyncio.sleep(0.05)
            return
        try:
            now = time.monotonic()
            for message in due:
                words = [b"PUBLISH", message.key.topic.encode(), json.dumps(message.payload).encode()]
                message.begun = now
                writer.write(b"*3\r\n" + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words))
            for message in due:
                async with asyncio.timeout(scaled(30)):
                    line = await reader.readline()
                if not line.startswith(b":"):
                    break
                answered += 1
                message.receivers = self.site.listeners_of(int(line[1:]))
                message.sent = time.monotonic()
        except OSError:
            pass
        finally:
            writer.transport.abort()

    async def _publish_in_thread(self, due: list[Message]) -> None:
        def publish_all() -> None:
            for message in due:
                for _ in self._attempts(message):
                    with suppress(PublishError):
                        notifications.publish(
                            message.key.topic, message.payload, idempotency_key=f"{message.key.road}-{message.key.n}"
                        )
                        message.sent = time.monotonic()
                        break
                    self.refused += 1
                    time.sleep(0.05)

        await asyncio.to_thread(publish_all)

    async def _publish_from_loop(self, due: list[Message]) -> None:
        for message in due:
            for _ in self._attempts(message):
                with suppress(PublishError):
                    await notifications.apublish(
                        message.key.topic, message.payload, idempotency_key=f"{message.key.road}-{message.key.n}"
                    )
                    message.sent = time.monotonic()
                    break
                self.refused += 1
                await asyncio.sleep(0.05)

    @staticmethod
    def _attempts(message: Message) -> Iterator[None]:
        """Bound the retries of one message."""
        deadline = time.monotonic() + scaled(60)
        while time.monotonic() < deadline:
            message.begun = time.monotonic()
            yield

    # The account.

    def _heard(self, message: Message) -> bool:
        """Whether the message must arrive: Redis confirmed it, and a listener heard it if it is raw."""
        if message.sent is None:
            return False
        if message.key.road == "raw" and not self._one_fault:
            return message.key in self._with_id
        return message.key.road == "published" or bool(message.receivers)

    @property
    def heard_and_lost(self) -> int:
        """How many raw messages to users were heard by a listener, not under a cut of all, and arrived nowhere."""
        arrived = {key for browser in self.browsers for key in browser.arrived}
        return sum(
            message.key.road == "raw"
            and message.key.topic.startswith("user:")
            and bool(message.receivers)
            and message.key not in arrived
            and not self._cut_off(message)
            for message in self.messages
        )

    @property
    def raw_losses(self) -> dict[str, int]:
        """Say what became of raw messages that had no id, where more than one thing broke at a time."""
        raw = [message for message in self.messages if message.key.road == "raw"]
        arrived = {key for browser in self.browsers for key in browser.arrived}
        without_id = {key for browser in self.browsers for key in browser.without_id}
        missing = [
            browser.was_there(message.begun - LEVEL, message.begun + LEVEL)
            for browser in self.browsers
            for message in raw
            if message.key in without_id
            and message.key not in browser.arrived
            and message.key.topic in (browser.own, *browser.topics)
        ]
        return {
            "published": len(raw),
            "heard by no listener": sum(not message.receivers for message in raw),
            "heard, and arrived nowhere": sum(bool(m.receivers) and m.key not in arrived for m in raw),
            "arrived without an id": len(without_id),
            "deliveries of these missed by sockets that were away or frozen": missing.count(False),
            "missed by others": missing.count(True),
        }

    def _cut_off(self, message: Message) -> bool:
        """Whether a fault cut all listeners while this message was on its way to them, and nobody got it."""
        if message.key.road != "raw" or message.sent is None:
            return False
        cut = any(begun <= message.sent and message.begun <= ended for begun, ended in self._cuts)
        return cut and not any(message.key in browser.arrived for browser in self.browsers)

    def _missing(self, browser: Browser) -> set[Key]:
        told = dict(browser.told)  # the last time of each topic
        topics = {browser.own, *browser.topics}
        missing = {
            message.key
            for message in self.messages
            if message.key.topic in topics
            and message.key not in browser.arrived
            and self._heard(message)
            and message.begun > told.get(message.key.topic, 0.0)  # what was under way then may be part of the gap
            and not self._cut_off(message)
        }
        for topic in browser.states:
            of_topic = {key for key in missing if key.topic == topic}
            if len(of_topic) <= browser.replaced(topic):
                missing -= of_topic
        return missing

    def _account(self, name: str) -> Result:
        missing = [self._missing(browser) for browser in self.browsers]
        by_key = {message.key: message for message in self.messages}
        delays, behind_until = [0.0], self.ended
        for browser in self.browsers:
            for key, arrived in browser.arrived.items():
                sent = by_key[key].sent or by_key[key].begun
                if arrived >= self.began:
                    delays.append(arrived - sent)
                    if arrived - sent > scaled(LEVEL):
                        behind_until = max(behind_until, arrived)
        heard = [message for message in self.messages if self._heard(message)]
        result = Result(
            fault=name,
            messages=len(self.messages),
            nobody=sum(message.key.road == "raw" for message in self.messages)
            - sum(message.key.road == "raw" and not self._cut_off(message) for message in heard),
            lost=sum(map(len, missing)),
            twice=sum(len(browser.twice) for browser in self.browsers),
            out_of_order=sum(len(browser.disordered) for browser in self.browsers),
            told=sum(len(browser.told) for browser in self.browsers),
            latest=max(delays),
            recovery=behind_until - self.ended,
            reconnected=sum(browser.connections - 1 for browser in self.browsers),
        )
        for number, (browser, lost) in enumerate(zip(self.browsers, missing, strict=True)):
            if lost or browser.twice or browser.disordered or browser.wrong or browser.told:
                result.details.append(
                    f"socket {number} of {browser.own}, {browser.connections} connections, closes {browser.closes}: "
                    f"lost {self._ranges(lost)}, twice {self._ranges(browser.twice)}, "
                    f"disordered {browser.disordered[:5]}, "
                    f"told {[(topic, f'{at - self.began:.2f}') for topic, at in browser.told]}, wrong {browser.wrong}"
                )
        unsent = [message.key for message in self.messages if message.key.road == "published" and message.sent is None]
        if unsent:
            result.details.append(f"never published: {self._ranges(unsent)}")
            result.lost += len(unsent)
        wrong = [text for browser in self.browsers for text in browser.wrong]
        for process in [*self.listeners, *self.servers]:
            result.details.append(f"--- {process.name} {process.pid}\n" + "\n".join(process.lines[-15:]))
        assert not wrong, "\n".join(result.details)
        return result

    def _ranges(self, keys) -> list[str]:
        """Shorten keys, with the time at which each range was sent, from the fault's begin on."""
        by_topic = defaultdict(list)
        by_key = {message.key: message for message in self.messages}
        for key in sorted(keys):
            by_topic[key.road, key.topic].append(key)
        texts = []
        for (road, topic), found in by_topic.items():
            sent = [(by_key[key].sent or by_key[key].begun) - self.began for key in found]
            jumps = sum(after.n != before.n + 1 for before, after in pairwise(found))
            texts.append(
                f"{road} {topic} {found[0].n}…{found[-1].n} ({len(found)}, {jumps} jumps)"
                f" at {sent[0]:+.2f}…{sent[-1]:+.2f}"
            )
        return texts


def is_holder(listener: Process) -> bool:
    """Whether a listener is alive and the last it said of it is that it holds the lease."""
    if listener.returncode is not None:
        return False
    marks = ("holding the lease", "stand-by:", "not connected to Redis")
    last = next((line for line in reversed(listener.lines) if any(mark in line for mark in marks)), "")
    return marks[0] in last
