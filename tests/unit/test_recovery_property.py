"""
Fault test k: whatever happens between a topic and its browsers, none misses or repeats a message unawares.

Hypothesis plays Redis, the listeners, the network and the browsers against the real ``Delivery``, ``Cursor`` and
``Reconciler``, in one process, on a clock of its own: messages are published, trimmed, expire and are lost with
their Redis; on the way to a socket they are dropped, doubled and put out of order; reads are slow or fail; browsers
stop reading, leave and come back with the last id they have.

Browsers believe what they are told. One that was told ``recovered`` true, or nothing, must get every message that was
published after its position, once and in order; only ``recovered`` false or null gives it another position. Of a state,
whose latest message is the whole truth, it may miss what a later message of the same epoch has replaced, and nothing
else.
"""

import asyncio
import json
from contextlib import ExitStack
from typing import NamedTuple
from unittest import mock

from django.test import override_settings
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from notifications.delivery import flow_control
from notifications.delivery.subscriber import Delivery, subscribed
from notifications.history import get_store
from notifications.history.changes import Changes, place_of
from notifications.history.position import Frame, Page, Position, Where
from notifications.topics import Topic

HEARTBEAT = 30


class Loop(asyncio.SelectorEventLoop):
    """An event loop whose clock stands still until it is told to go on."""

    def __init__(self):
        super().__init__()
        self.now = 1000.0

    def time(self):
        return self.now

    def settle(self):
        """Do everything that can be done now."""
        for _ in range(10_000):
            self.call_soon(self.stop)
            self.run_forever()
            if not self._ready:
                return
        raise AssertionError("it never comes to rest")


class Published(NamedTuple):
    position: Position
    text: str
    run: str


class Redis:
    """One topic's history, as the scripts in ``broker/lua/`` keep it, and the record of all that was ever published."""

    def __init__(self, loop, topic, size, ttl):
        self.loop, self.place, self.size, self.ttl = loop, place_of(str(topic)), size, ttl
        self.log: list[Published] = []
        self.entries: list[tuple[int, Published]] = []
        self.snapshot: list[tuple[int, Published]] = []
        self.expires = self.snapshot_expires = 0.0
        self.marks = self.snapshot_marks = b""
        self.run = 1
        self.skew = 1_700_000_000_000
        self.started = self.clock()
        self.empty_at: dict[Position, int] = {}
        """How many messages there were when a position of an empty topic was given out."""
        self.lost = frozenset()
        """The serial numbers of what no restart of this Redis has left."""
        self.lost_when_asked = self.lost
        """As it was when the last answer was given: a socket that learns its position knows none of these."""
        self.open = {"ask": asyncio.Event(), "answer": asyncio.Event()}
        for gate in self.open.values():
            gate.set()
        self.away = False

    def clock(self):
        self.skew += 1  # no two things happen in one millisecond
        return int(self.loop.now * 1000) + self.skew

    def expire(self):
        if self.loop.now >= self.expires:
            self.entries = []

    def publish(self):
        self.expire()
        now, last = self.clock(), self.entries[-1] if self.entries else None
        if last and last[0] == self.run:
            position = Position(last[1].position.epoch, last[1].position.n + 1)
        else:
            position = Position(max(now, last[1].position.epoch + 1 if last else 0), 1)
        meta = {"topic": "…", "id": str(position)}
        published = Published(position, json.dumps({"_meta": meta, "serial": len(self.log)}), str(self.run))
        self.log.append(published)
        self.entries = [*self.entries, (self.run, published)][-self.size :]
        self.expires = self.loop.now + self.ttl
        self.marks = bytes(self.place.offset) + self.place.mark(str(position))
        return published

    def save(self):
        self.expire()
        self.snapshot, self.snapshot_expires, self.snapshot_marks = self.entries, self.expires, self.marks

    def restart(self, keep):
        self.entries, self.expires = (self.snapshot, self.snapshot_expires) if keep else ([], 0.0)
        self.marks = self.snapshot_marks if keep else b""
        kept = {published for _, published in self.entries}
        self.lost = frozenset(serial for serial, published in enumerate(self.log) if published not in kept)
        self.run += 1
        self.started = self.clock()

    def ends(self):
        self.expire()
        found = [published.position for _, published in self.entries]
        return (found[0], found[-1]) if found else (None, None)

    @property
    def whole(self):
        return bool(self.entries) and self.entries[-1][0] == self.run

    async def asked(self):
        await self.open["ask"].wait()
        if self.away:
            raise OSError("Redis is away")

    async def answered(self):
        lost = self.lost
        await self.open["answer"].wait()
        self.lost_when_asked = lost

    async def look(self, topics):
        await self.asked()
        first, last = self.ends()
        ttl = self.expires - self.loop.now if last else 0.0
        where = Where(str(self.run), self.started, self.clock(), first, last, ttl, self.whole)
        self.empty_at[where.position] = len(self.log)
        await self.answered()
        return [where for _ in topics]

    async def changes(self, shard: int = 0):
        await self.asked()
        changes = Changes(str(self.run), self.marks)
        await self.answered()
        return changes

    async def read(self, topic, after):
        await self.asked()
        now, (first, last), whole = self.clock(), self.ends(), self.whole
        entries = self.entries[-1:] if after is None else [each for each in self.entries if each[1].position > after]
        frames = [Frame(each.position, each.text) for _, each in entries[:PAGE]]
        ttl = self.expires - self.loop.now if last else 0.0
        await self.answered()
        return Page(str(self.run), now, first, last, whole, frames, ttl)


PAGE = 3
"""Frames that a read brings at most."""


class Layer:
    """A channel layer that delivers what the test says."""

    def __init__(self):
        self.queue = asyncio.Queue()

    async def new_channel(self):
        return "channel"

    async def group_add(self, group, channel):
        pass

    async def group_discard(self, group, channel):
        pass

    async def send(self, channel, message):
        self.queue.put_nowait(message)

    async def receive(self, channel):
        return await self.queue.get()


class Browser:
    """Comes and goes, and checks what it gets against what was published."""

    def __init__(self, redis, topic):
        self.redis, self.topic = redis, topic
        self.delivery = None
        self.on_the_way: list[Published] = []
        self.position = None
        self.expected = None
        """The serial number of the message that must come next."""
        self.is_state = False
        """As it was told."""
        self.lost: frozenset[int] = frozenset()
        """The serial numbers of what was gone when it was told so."""
        self.had: set[int] = set()
        """The serial numbers it has been sent since it was last told that it missed something."""
        self.pings: list[int] = []
        self.complaints: list[AssertionError] = []

    async def connect(self, since):
        self.layer, self.on_the_way, self.pings = Layer(), [], []
        self.delivery = delivery = Delivery(self.layer, self.send, self.failed)
        await delivery.open()
        try:
            recovered, position = await delivery.join(self.topic, since)
        except OSError:
            await self.disconnect()
            return
        # As the consumer does.
        await delivery.release(self.topic, subscribed(self.topic, recovered, str(position)))

    async def disconnect(self):
        delivery, self.delivery = self.delivery, None
        await delivery.end()

    def confirm(self):
        pings, self.pings = self.pings, []
        for ping in pings:
            self.delivery.pong(ping)

    def failed(self):
        raise AssertionError("the delivery gave up")

    async def send(self, text):
        try:
            self.read(json.loads(text))
        except AssertionError as error:
            self.complaints.append(error)  # here it would only end a task of the delivery

    def read(self, frame):
        action = frame.get("action")
        if action == "ping":
            self.pings.append(frame["n"])
        elif action == "subscribed":
            self.is_state = frame["state"]
            self.told(frame["recovered"], Position.parse(frame["id"]))
        else:
            self.take(frame["serial"], Position.parse(frame["_meta"]["id"]))

    def told(self, recovered, position):
        log = self.redis.log
        if recovered:
            self.skip(self.serial_after(position), position)
            assert self.expected == self.serial_after(position), f"{position} is not where the browser was"
        else:
            self.expected = self.serial_after(position)
            self.lost = self.redis.lost_when_asked
            self.had = set()
        assert self.expected <= len(log)
        self.position = position

    def serial_after(self, position):
        for serial, published in enumerate(self.redis.log):
            if published.position == position:
                return serial + 1
            if position.n == 0 and published.position == (position.epoch, 1):
                return serial
        return self.redis.empty_at[position]

    def take(self, serial, position):
        while self.expected in self.lost and self.expected < serial:
            self.expected += 1
        self.skip(serial, position)
        assert serial not in self.had, f"message {serial} came twice"
        assert serial == self.expected, f"message {serial} came, {self.expected} was missing and nobody said so"
        self.had.add(serial)
        self.expected = serial + 1
        self.position = position

    def skip(self, serial, position):
        """Expect nothing of a state that was replaced before a message, as its id and that of the last one show."""
        while self.is_state and self.expected < serial and self.may_be_skipped(self.expected, position.epoch):
            self.expected += 1

    def may_be_skipped(self, serial, epoch):
        return serial in self.lost or self.redis.log[serial].position.epoch == epoch

    def receive(self, published):
        event = {"topic": str(self.topic), "text": published.text}
        epoch, n = published.position
        self.layer.queue.put_nowait({**event, "epoch": epoch, "n": n, "run": published.run})


browsers = st.integers(0, 2)


class Recovery(RuleBasedStateMachine):
    """The machine; what is asserted is in ``Browser``."""

    @initialize(
        kind=st.sampled_from(["order", "upload"]), size=st.sampled_from([1, 4, 50]), ttl=st.sampled_from([10, 45, 100])
    )
    def begin(self, kind, size, ttl):
        self.stack = ExitStack()
        self.loop = Loop()
        self.stack.callback(self.loop.close)
        kinds = {kind: {"HISTORY_SIZE": size, "HISTORY_TTL": ttl}}
        values = {"REDIS_URL": "redis://127.0.0.1:1/0", "TOPICS": kinds, "HEARTBEAT_INTERVAL": HEARTBEAT}
        self.stack.enter_context(override_settings(NOTIFICATIONS=values))
        topic = Topic(kind, "7")
        self.redis = Redis(self.loop, topic, size, ttl)
        for operation in ("look", "changes", "read"):
            self.stack.enter_context(mock.patch.object(get_store(), operation, getattr(self.redis, operation)))
        self.stack.enter_context(mock.patch.object(flow_control, "BOUND", 600))
        self.browsers = [Browser(self.redis, topic) for _ in range(3)]
        # Most rules do nothing without a browser.
        self.connecting = [self.loop.create_task(browser.connect(None)) for browser in self.browsers[:2]]

    def connected(self, number):
        browser = self.browsers[number]
        return browser if browser.delivery is not None else None

    # Redis.

    @rule(amount=st.integers(1, 5))
    def publish(self, amount):
        for _ in range(amount):
            published = self.redis.publish()
            for browser in self.browsers:
                if browser.delivery is not None:
                    browser.on_the_way.append(published)

    @rule()
    def save(self):
        self.redis.save()

    @rule(marks=st.sampled_from([b"", None]))
    def marks_are_deleted_or_cannot_be_read(self, marks):
        self.redis.marks = marks

    @rule(keep=st.booleans())
    def restart(self, keep):
        self.redis.restart(keep)

    @rule(seconds=st.sampled_from([0.1, 0.6, 2.1, 9.5, 31, 60, 101]))
    def wait(self, seconds):
        self.loop.now += seconds

    @rule(seconds=st.sampled_from([1, 20, 101]))
    def wait_in_small_steps(self, seconds):
        end = self.loop.now + seconds
        while self.loop.now < end:
            self.loop.now = min(self.loop.now + 0.5, end)
            self.loop.settle()

    @rule(gate=st.sampled_from(["ask", "answer"]))
    def reads_become_slow(self, gate):
        self.redis.open[gate].clear()

    @rule()
    def reads_go_on(self):
        for gate in self.redis.open.values():
            gate.set()

    @rule(away=st.booleans())
    def reads_fail(self, away):
        self.redis.away = away

    # The way.

    @rule(number=browsers, amount=st.integers(1, 10))
    def arrive(self, number, amount):
        if browser := self.connected(number):
            arriving, browser.on_the_way = browser.on_the_way[:amount], browser.on_the_way[amount:]
            for published in arriving:
                browser.receive(published)

    @rule(number=browsers, amount=st.integers(1, 3))
    def drop(self, number, amount):
        if browser := self.connected(number):
            del browser.on_the_way[:amount]

    @rule(number=browsers, order=st.randoms(use_true_random=False))
    def shuffle(self, number, order):
        if browser := self.connected(number):
            order.shuffle(browser.on_the_way)

    @rule(number=browsers, amount=st.integers(1, 5))
    def forward_again_after_a_takeover(self, number, amount):
        if browser := self.connected(number):
            browser.on_the_way = self.redis.log[-amount:] + browser.on_the_way

    @rule(amount=st.integers(1, 5), dropped=st.integers(0, 3), order=st.randoms(use_true_random=False))
    def publish_what_arrives_with_holes_and_in_any_order(self, amount, dropped, order):
        self.publish(amount=amount)
        for number in range(len(self.browsers)):
            self.shuffle(number=number, order=order)
            self.drop(number=number, amount=dropped)
            self.arrive(number=number, amount=10)

    # Browsers.

    @rule(number=browsers, since=st.sampled_from(["mine", "mine", "mine", "last", None]))
    def connect(self, number, since):
        browser = self.browsers[number]
        if browser.delivery is None:
            since = browser.position if since == "mine" else since
            self.connecting.append(self.loop.create_task(browser.connect(since)))

    @rule(number=browsers)
    def disconnect(self, number):
        if (browser := self.connected(number)) and self.is_done_connecting():
            self.loop.create_task(browser.disconnect())

    @rule(number=browsers)
    def confirm(self, number):
        if browser := self.connected(number):
            self.loop.call_soon(browser.confirm)

    def is_done_connecting(self):
        return all(task.done() for task in self.connecting)

    @invariant()
    def rest(self):
        if hasattr(self, "loop"):
            self.loop.settle()
            for task in self.connecting:
                if task.done():
                    task.result()
            for browser in self.browsers:
                for complaint in browser.complaints:
                    raise complaint

    # The end.

    def teardown(self):
        if not hasattr(self, "loop"):
            return
        try:
            self.reads_go_on()
            self.redis.away = False
            self.rest()
            last = self.redis.publish()
            for _ in range(HEARTBEAT + 3):
                self.everybody_catches_up()
            for browser in self.browsers:
                if browser.delivery is not None:
                    assert browser.position == last.position, "the message that nothing follows never came"
        finally:
            for browser in self.browsers:
                if browser.delivery is not None:
                    self.loop.create_task(browser.disconnect())
            self.loop.settle()
            self.stack.close()

    def everybody_catches_up(self):
        """Let the next comparison come, and browsers confirm whatever they are sent."""
        self.loop.now += 1
        self.rest()
        while any(browser.pings for browser in self.browsers if browser.delivery is not None):
            for browser in self.browsers:
                if browser.delivery is not None:
                    self.loop.call_soon(browser.confirm)
            self.rest()


Recovery.TestCase.settings = settings(
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestRecovery = Recovery.TestCase
