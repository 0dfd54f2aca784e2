"""
From the layer to one browser: each message once and in order, holes filled, slow browsers bounded, nothing left behind.

The layer is in memory and the test plays the listener, so that it can drop what it likes; the history is real.
"""

import asyncio
import json
import sys
from contextlib import asynccontextmanager

import pytest
import redis
from channels.layers import InMemoryChannelLayer

from notifications import Topic, apublish, tasks
from notifications.delivery import buffer, flow_control, reconciler, subscriber
from notifications.delivery.cursor import State
from notifications.delivery.subscriber import Delivery, subscribed
from notifications.history import get_store
from notifications.history.position import Position
from notifications.logs import LogBudget, Outages
from notifications.metrics import counts, tally
from tests.eager_tasks import use_eager_tasks
from tests.waiting import await_for, scaled

TOPIC = Topic("closed", "7")
UPLOAD = Topic("upload", "7")


class Socket:
    """What the consumer does with its ``Delivery``, and a browser that keeps what it is sent."""

    def __init__(self, layer):
        self.frames = []
        self.pings = []
        self.failed = self.gone = False
        self.sends = 0
        self.reading = asyncio.Event()
        self.reading.set()
        self.stuck_at = None
        self.delivery = Delivery(layer, self.send, self.fail)

    def fail(self):
        self.failed = True

    async def send(self, text):
        self.sends += 1
        if self.gone:
            raise OSError
        frame = json.loads(text)
        if self.stuck_at in (None, frame.get("action")):
            await self.reading.wait()
        if frame.get("action") == "ping":
            self.pings.append(frame["n"])
        else:
            self.frames.append(frame)

    async def join(self, topic=TOPIC, since=None):
        recovered, position = await self.delivery.join(topic, since)
        await self.delivery.release(topic, subscribed(topic, recovered, position and str(position)))
        return recovered, position

    @property
    def numbers(self):
        """The messages it got."""
        return [frame["n"] for frame in self.frames if "n" in frame]

    @property
    def told(self):
        """What it was told of where it is, but for the answer to its first subscription."""
        return [frame for frame in self.frames if frame.get("action") == "subscribed"][1:]

    async def has(self, *numbers):
        """Wait until it has got as many messages as these, which it must be."""
        await await_for(lambda: len(self.numbers) >= len(numbers), what=f"{len(numbers)} messages")
        assert self.numbers == list(numbers)


class Site:
    """A layer, sockets on it, and what a listener does."""

    def __init__(self):
        self.layer = InMemoryChannelLayer(capacity=100_000)
        self.run = ""
        """As if nobody knew which Redis stamps."""
        self.sockets = []

    async def open(self):
        socket = Socket(self.layer)
        self.sockets.append(socket)
        await socket.delivery.open()
        return socket

    async def joined(self, topic=TOPIC, since=None):
        socket = await self.open()
        await socket.join(topic, since)
        return socket

    def waiting(self, socket):
        """How many events the layer holds for a socket."""
        queue = self.layer.channels.get(socket.delivery._channel)
        return queue.qsize() if queue else 0

    async def say(self, *numbers, topic=TOPIC, size=0):
        """Publish and forward."""
        for number in numbers:
            position = await self.lose(number, topic=topic, size=size)
            await self.forward(number, position, topic=topic, size=size)
        return position

    async def lose(self, *numbers, topic=TOPIC, size=0):
        """Publish what the layer will drop."""
        for number in numbers:
            position = Position.parse(await apublish(topic, {"n": number, "text": "x" * size}))
        return position

    async def forward(self, number, position, topic=TOPIC, size=0):
        message = {"type": "notifications.message", "topic": str(topic)}
        message["text"] = json.dumps({"n": number, "text": "x" * size})
        if position is not None:
            message["epoch"], message["n"] = position
            message["run"] = self.run
        await self.layer.group_send(topic.group, message)


@asynccontextmanager
async def new_site():
    site = Site()
    yield site
    for socket in site.sockets:
        socket.reading.set()
        await socket.delivery.end()


@pytest.fixture
async def site(live_redis):
    async with new_site() as site:
        site.run = live_redis.info("server")["run_id"][:12]
        yield site


@pytest.fixture
def quick(monkeypatch):
    """Let comparisons and ticks come at once."""
    monkeypatch.setattr(reconciler, "TICK", 0.01)
    monkeypatch.setattr(reconciler, "AFTER_JOIN", 0.02)


@pytest.fixture
def small_bound(monkeypatch):
    """Let a socket pause after a few messages."""
    monkeypatch.setattr(flow_control, "BOUND", 10_000)


@pytest.fixture
def reads(monkeypatch):
    """Note each read of a history."""
    noted, read = [], get_store().read

    async def noting(topic, after):
        noted.append((topic, after))
        return await read(topic, after)

    monkeypatch.setattr(get_store(), "read", noting)
    return noted


# Joining.


async def test_joining_among_messages_loses_and_repeats_nothing(site):
    """Whenever a socket joins, it gets exactly what comes after the position that it was told."""

    async def talk():
        for number in range(1, 301):
            await site.say(number)

    await site.say(0)
    talking = asyncio.create_task(talk())
    joined = []
    for _ in range(30):
        socket = await site.open()
        joined.append((socket, (await socket.join())[1]))
    assert not talking.done()
    await talking

    for socket, position in joined:
        await socket.has(*range(position.n, 301))


async def test_coming_back_among_messages_loses_and_repeats_nothing(site):
    """Whenever a socket comes back with its last id, it goes on where it was."""
    published = [await site.say(0)]

    async def talk():
        for number in range(1, 301):
            position = await site.say(number)
            published.append(position)

    talking = asyncio.create_task(talk())
    back = []
    for n in range(30):
        socket, since = await site.open(), published[-1 - n % len(published)]
        back.append((socket, since))
        assert await socket.join(since=since) == (True, since)
    assert not talking.done()
    await talking

    for socket, since in back:
        await socket.has(*range(since.n, 301))


@pytest.mark.parametrize(
    ("since", "recovered", "numbers"),
    [(None, None, []), ("last", None, [5]), (Position(0, 2), True, [3, 4, 5]), (Position(0, 5), True, [])],
    ids=["none", "last", "id", "the last id"],
)
async def test_a_subscription_begins_where_it_is_asked_to(site, since, recovered, numbers):
    """Without a position nothing is replayed, "last" shows the latest message, an id all that came after it."""
    end = await site.lose(1, 2, 3, 4, 5)
    since = Position(end.epoch, since.n) if isinstance(since, Position) else since
    socket = await site.open()

    answer = await socket.join(since=since)

    assert answer == (recovered, Position(end.epoch, 5 - len(numbers)))
    await site.say(6)
    await socket.has(*numbers, 6)


@pytest.mark.parametrize("since", [Position(7, 3), Position(7, 0), "99"])
@pytest.mark.parametrize(("topic", "latest"), [(TOPIC, []), (UPLOAD, [3])])
async def test_a_position_that_the_history_does_not_know_is_told(site, since, topic, latest):
    """The browser of another epoch, or of the future, is told; of an upload it is shown the latest state."""
    end = await site.lose(1, 2, 3, topic=topic)
    socket = await site.open()

    answer = await socket.join(topic, Position(end.epoch, 99) if since == "99" else since)

    assert answer == (False, Position(end.epoch, 3 - len(latest)))
    await site.say(4, topic=topic)
    await socket.has(*latest, 4)


async def test_a_state_begins_with_its_latest_message(site, settings):
    """Whoever subscribes to a state without a position gets the latest message first, whatever its kind is called."""
    topics = {"closed": {"STATE": True}, "upload": {"STATE": False}}
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "TOPICS": topics}
    for topic, latest in ((TOPIC, [3]), (UPLOAD, [])):
        await site.lose(1, 2, 3, topic=topic)
        socket = await site.joined(topic)
        await site.say(4, topic=topic)
        await socket.has(*latest, 4)
        assert socket.frames[0]["state"] is bool(latest)


async def test_a_position_on_an_empty_topic_can_be_come_back_to(site):
    """The first message on an empty topic reaches a browser that was away meanwhile."""
    socket = await site.open()
    recovered, position = await socket.join()
    await socket.delivery.leave(TOPIC)
    await site.lose(1, 2)

    assert (recovered, position.n) == (None, 0)
    assert (await socket.join(since=position))[0] is True
    await site.say(3)
    await socket.has(1, 2, 3)


async def test_an_empty_topic_that_is_still_empty_has_lost_nothing(site):
    """Coming back to silence is recovered."""
    socket = await site.open()
    _, position = await socket.join()
    await socket.delivery.leave(TOPIC)

    assert (await socket.join(since=position))[0] is True


async def test_without_a_history_nothing_is_promised(site, settings):
    """Messages of a kind with HISTORY_SIZE 0 are delivered at most once; a browser that asks for others is told so."""
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "HISTORY_SIZE": 0}
    socket = await site.open()

    assert await socket.join(since=Position(1, 1)) == (False, None)
    await site.forward(1, None)
    await site.forward(2, None)
    await socket.has(1, 2)


# Holes.


async def test_a_hole_is_filled_before_what_came_after_it(site):
    """A later message shows that something is missing; it is sent first."""
    socket = await site.joined()
    await site.say(1)
    await site.lose(2, 3)
    await site.say(4)

    await socket.has(1, 2, 3, 4)
    assert socket.told == []


async def test_holes_are_filled_with_eager_tasks(site):
    """A site may set Python's eager task factory: what is read for many sockets is read as before."""
    use_eager_tasks()
    socket = await site.joined()
    for hole in (1, 4):
        await site.lose(hole, hole + 1)
        await site.say(hole + 2)
        await socket.has(*range(1, hole + 3))


async def test_doubled_and_late_messages_are_dropped(site):
    """What two listeners forward arrives once."""
    socket = await site.joined()
    positions = [await site.say(number) for number in (1, 2, 3)]
    for number, position in zip((1, 2, 3), positions, strict=True):
        await site.forward(number, position)
    await site.say(4)

    await socket.has(1, 2, 3, 4)


async def test_what_was_trimmed_is_told(site, settings):
    """The part of a hole that no history has any more is said to the browser, and the rest is sent."""
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "HISTORY_SIZE": 2}
    socket = await site.joined()
    await site.say(1)
    await socket.has(1)
    await site.lose(2, 3, 4)
    end = await site.say(5)

    await socket.has(1, 4, 5)
    assert socket.told == [
        {
            "action": "subscribed",
            "topic": "closed:7",
            "recovered": False,
            "id": f"{end.epoch}-{end.n - 2}",
            "state": False,
            "joined": False,
        }
    ]


async def test_the_last_message_is_found_though_nothing_follows_it(site, quick):
    """The comparison finds a lost message that no later one gives away."""
    socket = await site.joined()
    await site.say(1)
    await socket.has(1)
    await site.lose(2)
    reconciler.reconciler().hurry(TOPIC)

    await socket.has(1, 2)
    assert socket.told == []


async def test_the_first_message_of_a_topic_is_found_though_nothing_follows_it(site, quick, monkeypatch):
    """Also when the topic was empty, and without anybody's hurry."""
    monkeypatch.setattr(reconciler, "AFTER_JOIN", scaled(1))  # not before the message is lost, on whatever machine
    socket = await site.joined()
    await site.lose(1)

    await socket.has(1)
    assert socket.told == []


async def test_a_topic_that_is_joined_all_the_time_is_compared(site, monkeypatch):
    """Those who join do not put off the comparison for those who are there."""
    monkeypatch.setattr(reconciler, "TICK", 0.01)
    monkeypatch.setattr(reconciler, "AFTER_JOIN", scaled(1))
    socket = await site.joined()
    await site.lose(1)

    async with asyncio.timeout(scaled()):
        while not socket.numbers or len(site.sockets) <= 10:
            await site.joined(since="last")
            await asyncio.sleep(0.01)


async def test_a_comparison_that_failed_is_made_again_soon(site, quick, monkeypatch):
    """A Redis that is away just then does not cost a whole interval."""
    monkeypatch.setattr(reconciler, "AFTER_FAILURE", 0.02)
    socket = await site.joined()
    await site.lose(1)
    look, failures = get_store().look, []

    async def failing(topics):
        if len(failures) < 3:
            failures.append(topics)
            raise redis.ConnectionError
        return await look(topics)

    monkeypatch.setattr(get_store(), "look", failing)
    reconciler.reconciler().hurry(TOPIC)  # the comparison after joining may have been before

    await socket.has(1)
    assert len(failures) == 3


async def test_hurry_is_not_forgotten_during_a_comparison(site, quick, monkeypatch):
    """A gap that is told while the histories are being looked at is looked for afterwards."""
    socket = await site.joined()
    look, asked, answer = get_store().look, asyncio.Event(), asyncio.Event()

    async def slow(topics):
        found = await look(topics)
        asked.set()
        await answer.wait()
        return found

    monkeypatch.setattr(get_store(), "look", slow)
    reconciler.reconciler().hurry(TOPIC)  # the comparison after joining may have been before
    await asked.wait()
    await site.lose(1)
    reconciler.reconciler().hurry(TOPIC)
    answer.set()

    await socket.has(1)


@pytest.mark.parametrize(("seconds", "wanted"), [(3600, 30), (30, 10), (1, 1 / 3)])
async def test_histories_are_compared_well_within_their_life(site, settings, seconds, wanted):
    """A lost message of a short-lived history is found before it is gone."""
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "HISTORY_TTL": seconds}
    await site.joined()

    assert reconciler.reconciler()._topics[TOPIC].interval == wanted


async def test_a_thousand_sockets_share_one_read(site, reads):
    """The same hole of all sockets of a process is read from Redis once."""
    sockets = [await site.joined() for _ in range(1000)]
    await site.say(1)
    for socket in sockets:
        await socket.has(1)
    reads.clear()
    await site.lose(2)
    await site.say(3)

    for socket in sockets:
        await socket.has(1, 2, 3)
    assert len(reads) == 1


async def test_a_socket_that_goes_does_not_take_the_read_of_others_along(site, monkeypatch):
    """A shared read belongs to the process."""
    read, asked, answer = get_store().read, asyncio.Event(), asyncio.Event()

    async def slow(topic, after):
        asked.set()
        await answer.wait()
        return await read(topic, after)

    sockets = [await site.joined() for _ in range(3)]
    await site.say(1)
    for socket in sockets:
        await socket.has(1)
    monkeypatch.setattr(get_store(), "read", slow)
    await site.lose(2)
    await site.say(3)
    await asked.wait()
    await sockets[0].delivery.end()
    answer.set()

    await sockets[1].has(1, 2, 3)
    await sockets[2].has(1, 2, 3)


async def test_a_read_that_failed_is_made_again_with_the_next_message(site, monkeypatch):
    """Redis away at the wrong moment loses nothing."""
    socket = await site.joined()
    await site.say(1)
    await socket.has(1)
    read, failures = get_store().read, []

    async def failing(topic, after):
        if not failures:
            failures.append(after)
            raise redis.TimeoutError
        return await read(topic, after)

    monkeypatch.setattr(get_store(), "read", failing)
    await site.lose(2)
    await site.say(3)
    await await_for(lambda: failures)
    await site.say(4)

    await socket.has(1, 2, 3, 4)


async def test_sockets_share_the_names_of_topics_which_python_may_forget(site, live_redis):
    """The first Pythons 3.12 keep a text that is interned for ever, and there are ever new topics."""
    sockets = [await site.joined() for _ in range(2)]

    first, second = (name for socket in sockets for name in socket.delivery.cursors)
    assert first is second
    assert sys.intern("".join(list(first))) is not first


@pytest.mark.parametrize(("run", "amount"), [("", 1), (None, 0)], ids=["unknown", "the same"])
async def test_the_first_message_of_a_topic_needs_no_read_when_the_same_redis_stamped_it(
    site, live_redis, reads, run, amount
):
    """It is sent as it comes; if another Redis has stamped it, nobody knows what came before, and it is read."""
    socket = await site.joined()
    [cursor] = socket.delivery.cursors.values()
    await await_for(lambda: live_redis.time()[0] * 1000 + live_redis.time()[1] // 1000 > cursor.epoch)
    site.run = site.run if run is None else run

    await site.say(1)

    await socket.has(1)
    assert len(reads) == amount


async def test_what_redis_lost_is_told(site, live_redis):
    """After a loss of data the browser is told with the next message, and goes on."""
    socket = await site.joined()
    begin = await site.say(1, 2)
    await socket.has(1, 2)
    await await_for(lambda: live_redis.time() > (begin.epoch // 1000, begin.epoch % 1000 * 1000 + 999))  # its next ms
    live_redis.flushall()

    end = await site.say(3)

    await socket.has(1, 2, 3)
    assert [(frame["recovered"], frame["id"]) for frame in socket.told] == [(False, f"{end.epoch}-0")]


async def test_other_topics_do_not_wait_for_a_hole(site, monkeypatch):
    """While one topic is read from the history, the others of the socket go on."""
    answer, read = asyncio.Event(), get_store().read

    async def slow(topic, after):
        if topic == TOPIC:
            await answer.wait()
        return await read(topic, after)

    socket = await site.joined()
    await socket.join(UPLOAD)
    for topic, number in ((TOPIC, 1), (UPLOAD, 10)):
        await site.say(number, topic=topic)
        await await_for(lambda number=number: number in socket.numbers)
    monkeypatch.setattr(get_store(), "read", slow)
    await site.lose(2)
    await site.say(3)
    await site.say(11, topic=UPLOAD)
    await await_for(lambda: 11 in socket.numbers)
    answer.set()

    await socket.has(1, 10, 11, 2, 3)


# Unstamped, unknown, left.


async def test_messages_without_an_id_are_sent_as_they_come(site):
    """When Redis keeps nothing, messages arrive at most once, and do not disturb the count."""
    socket = await site.joined()
    await site.say(1)
    await socket.has(1)
    await site.forward(100, None)
    await site.say(2)

    await socket.has(1, 100, 2)
    assert socket.told == []


@pytest.fixture
def held_up(monkeypatch):
    """Let reads of the history wait until this is set; what they bring was read when they began."""
    go_on, read = asyncio.Event(), get_store().read
    go_on.began = asyncio.Event()

    async def waiting(topic, after):
        page = await read(topic, after)
        go_on.began.set()
        await go_on.wait()
        return page

    monkeypatch.setattr(get_store(), "read", waiting)
    return go_on


async def test_messages_without_an_id_wait_for_a_hole_to_be_filled(site, held_up):
    """No history has them: they come after what came before them, and before what came after."""
    socket = await site.joined()
    await site.lose(1)
    await site.say(2)
    await held_up.began.wait()
    await site.forward(100, None)
    await site.forward(101, None)
    await site.say(3)
    await site.forward(102, None)
    await await_for(lambda: not site.waiting(socket))
    held_up.set()
    await socket.has(1, 2, 100, 101, 3, 102)

    await site.forward(103, None)
    await site.say(4)

    await socket.has(1, 2, 100, 101, 3, 102, 103, 4)
    assert socket.delivery._held.size == 0


async def test_messages_without_an_id_that_wait_are_bounded(site, held_up, monkeypatch):
    """What has no room is dropped and counted; there is room again when the hole is filled."""
    monkeypatch.setattr(buffer, "MAX_HELD", 5 * (500 + buffer.HELD_ENTRY))
    dropped = counts["dropped", "catching up, no history"]
    socket = await site.joined()
    await site.lose(1)
    await site.say(2)
    await held_up.began.wait()
    for number in range(100, 110):
        await site.forward(number, None, size=500)
    await await_for(lambda: not site.waiting(socket))
    held_up.set()

    await socket.has(1, 2, *range(100, 105))
    assert counts["dropped", "catching up, no history"] == dropped + 5
    assert socket.delivery._held.size == 0


async def test_messages_without_an_id_that_wait_are_not_lost_with_the_read(site, monkeypatch):
    """A history that cannot be read takes nothing along that it never had."""
    began, fail = asyncio.Event(), asyncio.Event()

    async def failing(topic, after):
        began.set()
        await fail.wait()
        raise redis.TimeoutError

    monkeypatch.setattr(get_store(), "read", failing)
    socket = await site.joined()
    await site.lose(1)
    await site.say(2)
    await began.wait()
    await site.forward(100, None)
    await await_for(lambda: not site.waiting(socket))
    fail.set()

    await socket.has(100)


async def test_a_bug_in_one_read_strands_no_topic(site, monkeypatch, caplog):
    """Whatever is raised, the topics behind it are read at once, and the one that failed is with its next message."""
    monkeypatch.setattr(reconciler, "AFTER_JOIN", 600)
    monkeypatch.setattr(subscriber, "_log", LogBudget(subscriber.logger))
    read, failed, fail = get_store().read, [], asyncio.Event()

    async def failing(topic, after):
        if topic == TOPIC and not failed:
            failed.append(after)
            await fail.wait()
            raise ZeroDivisionError
        return await read(topic, after)

    monkeypatch.setattr(get_store(), "read", failing)
    socket = await site.joined()
    other = Topic("closed", "8")
    await socket.join(other)
    await site.lose(1)
    await site.say(2)
    await await_for(lambda: failed, what="a read that will fail")
    await site.lose(3, topic=other)
    await site.say(4, topic=other)
    await await_for(lambda: socket.delivery._behind, what="another topic behind it")
    fail.set()

    await await_for(lambda: socket.numbers == [3, 4], what="the messages of the other topic")
    await site.say(5)
    await await_for(lambda: socket.numbers == [3, 4, 1, 2, 5], what="all messages")
    assert {cursor.state for cursor in socket.delivery.cursors.values()} == {State.LIVE}
    assert "ZeroDivisionError" in caplog.text


async def test_messages_without_an_id_that_wait_go_with_their_topic(site, held_up):
    """A socket that has left gets none of them, and they take no room from others."""
    socket = await site.joined()
    await site.lose(1)
    await site.say(2)
    await held_up.began.wait()
    await site.forward(100, None)
    await await_for(lambda: not site.waiting(socket))
    await socket.delivery.leave(TOPIC)
    held_up.set()

    await await_for(lambda: not socket.delivery._held.size)
    assert socket.numbers == []


async def test_messages_without_an_id_are_not_sent_more_than_the_browser_confirms(site, held_up, small_bound):
    """A browser that has to catch up with what it was sent gets what was held when it has."""
    socket = await site.joined()
    await site.lose(1, size=20_000)
    await site.say(2)
    await held_up.began.wait()
    await site.forward(100, None)
    await await_for(lambda: not site.waiting(socket))
    held_up.set()
    await await_for(lambda: socket.delivery.paused)
    await await_for(lambda: socket.pings)
    await socket.has(1, 2)

    assert socket.delivery.pong(socket.pings[-1])

    await socket.has(1, 2, 100)


async def test_messages_without_an_id_before_the_answer_are_let_go(site):
    """The browser does not know yet that it is subscribed."""
    socket = await site.open()
    await socket.delivery.join(TOPIC, None)
    await site.forward(100, None)
    await await_for(lambda: not site.waiting(socket))
    await socket.delivery.release(TOPIC, subscribed(TOPIC, None, None))
    await site.say(1)

    await socket.has(1)


async def test_what_is_under_way_is_not_overtaken_by_a_comparison(site, reads, monkeypatch):
    """A comparison that finds a socket behind waits a moment: what comes late and has no id keeps its place."""
    monkeypatch.setattr(reconciler, "TICK", 600)  # no other comparisons than those of this test
    socket = await site.joined()
    await site.say(1)
    await socket.has(1)
    position = await site.lose(2)

    await reconciler.reconciler()._compare([TOPIC])
    await site.forward(100, None)
    await site.forward(2, position)
    await socket.has(1, 100, 2)
    await site.lose(3)
    await reconciler.reconciler()._compare([TOPIC])
    await socket.has(1, 100, 2)
    assert reads == []

    await reconciler.reconciler()._compare([TOPIC])

    await socket.has(1, 100, 2, 3)


@pytest.fixture
def lagging(site, monkeypatch):
    """Let nothing that the layer brings arrive before this is set, as in a process that is short of time."""
    go_on, receive = asyncio.Event(), site.layer.receive

    async def receive_late(channel):
        event = await receive(channel)
        await go_on.wait()
        return event

    monkeypatch.setattr(site.layer, "receive", receive_late)
    return go_on


@pytest.mark.parametrize("topic", [TOPIC, UPLOAD])
async def test_a_comparison_waits_for_what_is_under_way_however_long_that_takes(site, lagging, topic, monkeypatch):
    """What has no id and was published before a message is sent before it, though a history has the message already."""
    monkeypatch.setattr(reconciler, "AFTER_JOIN", 600)
    socket = await site.joined(topic)
    await site.forward(100, None, topic=topic)
    await site.say(1, topic=topic)
    await site.forward(101, None, topic=topic)
    await site.lose(2, topic=topic)

    for _ in range(2):
        await reconciler.reconciler()._compare([topic])
    await await_for(lambda: socket.numbers or site.waiting(socket) == 3, what="a marker behind what is under way")
    lagging.set()

    await await_for(lambda: socket.numbers[-1:] == [2], what="the message that was lost")
    assert socket.numbers in ([100, 1, 101, 2], [100, 101, 2])  # of a state, the latest


@pytest.mark.parametrize("fails", [False, True])
async def test_a_layer_that_does_not_bring_the_marker_is_not_waited_for(site, monkeypatch, fails):
    """Then it brings nothing else either: what the socket lacks is read from the history."""
    monkeypatch.setattr(subscriber, "LAYER_TIMEOUT", 0.05)

    async def send(channel, message):
        if fails:
            raise ZeroDivisionError

    monkeypatch.setattr(site.layer, "send", send)
    socket = await site.joined()
    await site.lose(1)

    for _ in range(2):
        await reconciler.reconciler()._compare([TOPIC])

    await socket.has(1)


async def test_topics_found_behind_together_share_a_marker(site, monkeypatch):
    """A layer that is slow delays a socket once, and not once for each of its topics."""
    send, sent = site.layer.send, []

    async def note(channel, message):
        sent.append(message)
        await send(channel, message)

    monkeypatch.setattr(reconciler, "AFTER_JOIN", 600)
    monkeypatch.setattr(site.layer, "send", note)
    topics = [Topic("closed", str(number)) for number in range(5)]
    socket = await site.open()
    for topic in topics:
        await socket.join(topic)
        await site.lose(int(topic.id), topic=topic)

    for _ in range(2):
        await reconciler.reconciler()._compare(topics)

    await await_for(lambda: sorted(socket.numbers) == [0, 1, 2, 3, 4], what="the messages of all topics")
    assert len(sent) == 1


async def test_nothing_of_a_topic_arrives_after_it_was_left(site):
    """What was already on its way is dropped too."""
    socket = await site.joined()
    await socket.join(UPLOAD)
    await site.say(1)
    await socket.has(1)
    await socket.delivery.leave(TOPIC)
    await site.layer.send(socket.delivery._channel, {"topic": str(TOPIC), "text": '{"n":2}', "epoch": 1, "n": 2})
    await site.say(3)
    await site.say(4, topic=UPLOAD)

    await socket.has(1, 4)


@pytest.mark.parametrize("error", [ValueError, asyncio.CancelledError])
async def test_a_layer_that_breaks_is_told(site, error):
    """The consumer learns that nothing will be delivered any more, also if something in the layer was cancelled."""

    async def broken(channel):
        raise error

    site.layer.receive = broken
    socket = await site.open()

    await await_for(lambda: socket.failed)


async def test_a_layer_that_breaks_for_many_is_logged_once_for_each_error(site, monkeypatch, caplog):
    """One line at once, and a minute later how many there were since; with a stack trace only if it may be a bug."""
    monkeypatch.setattr(subscriber, "outages", Outages())
    errors = []

    async def broken(channel):
        raise errors[0]

    async def fails_for(number, error):
        errors[:] = [error]
        sockets = [await site.open() for _ in range(number)]
        await await_for(lambda: all(socket.failed for socket in sockets), what="the end of the sockets")

    site.layer.receive = broken
    await fails_for(20, redis.ConnectionError("Connection refused"))
    await fails_for(20, ValueError("of the layer"))
    subscriber.outages._next.clear()  # a minute later
    await fails_for(1, redis.ConnectionError("Connection refused"))

    told = "the channel layer failed ({}); {} socket(s) told to come back".format
    assert [(record.getMessage(), bool(record.exc_info)) for record in caplog.records] == [
        (told("Connection refused", 1), False),
        (told("of the layer", 1), True),
        (told("Connection refused", 20), False),
    ]


async def test_a_layer_that_swallows_a_cancellation_is_cancelled_again(live_redis, monkeypatch):
    """On Python 3.11 a wait_for under redis-py does that now and then; its channel must not stay."""
    monkeypatch.setattr(tasks, "CANCEL_INTERVAL", 0.01)
    site, before = Site(), asyncio.all_tasks()
    receive, swallowed = site.layer.receive, []

    async def swallowing(channel):
        if not swallowed:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                swallowed.append(channel)
        return await receive(channel)

    site.layer.receive = swallowing
    socket = await site.open()
    await socket.join()

    async with asyncio.timeout(scaled()):
        await socket.delivery.end()

    assert swallowed
    await nothing_left(site, before)


# Slow browsers.


async def test_a_browser_that_does_not_confirm_is_not_sent_more(site, small_bound):
    """Above the bound the socket pauses, and takes from the layer all the same."""
    socket = await site.joined()
    await site.say(*range(100), size=500)
    await await_for(lambda: socket.delivery.cursors[str(TOPIC)].missed)
    await await_for(lambda: not site.waiting(socket))

    assert 15 <= len(socket.numbers) <= 21
    assert socket.delivery.paused


async def test_a_pong_resumes_and_fills_what_was_let_go(site, small_bound, settings):
    """Page by page, as fast as the browser confirms, all of it arrives in its order, without more than the bound."""
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "HISTORY_SIZE": 500}
    socket = await site.joined()
    await site.say(*range(200), size=500)
    async with asyncio.timeout(scaled()):
        while len(socket.numbers) < 200:
            await await_for(lambda: socket.pings)
            assert socket.delivery.pong(socket.pings.pop(0))

    await socket.has(*range(200))
    assert socket.told == []


async def test_a_paused_socket_that_missed_nothing_goes_on_live(site, small_bound):
    """After the pong what comes next is sent, without a read."""
    socket = await site.joined()
    await site.say(*range(20), size=500)
    await await_for(lambda: socket.delivery.paused)
    for ping in socket.pings:
        socket.delivery.pong(ping)
    await site.say(20)

    await socket.has(*range(21))


async def test_what_a_slow_browser_missed_for_too_long_is_told(site, small_bound, settings):
    """Beyond HISTORY_SIZE the rest is delivered, and the browser told that it is not all."""
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "HISTORY_SIZE": 5}
    socket = await site.joined()
    await site.say(*range(100), size=500)
    await await_for(lambda: not site.waiting(socket))
    had = len(socket.numbers)
    for ping in socket.pings:
        socket.delivery.pong(ping)

    await socket.has(*range(had), *range(95, 100))
    assert [frame["recovered"] for frame in socket.told] == [False]


async def test_a_program_that_pongs_by_a_timer_is_not_taken_for_one_that_reads(site, small_bound):
    """Pongs without a number resume a paused socket once, not as often as they come."""
    socket = await site.joined()
    await site.say(*range(100), size=500)
    await await_for(lambda: socket.delivery.paused)
    for _ in range(3):
        socket.delivery.credit.ping()

    assert [socket.delivery.pong(None) for _ in range(5)] == [True, False, False, False, False]


@pytest.mark.parametrize("stuck_at", [None, "ping"])
async def test_a_send_that_is_stuck_does_not_fill_the_memory(site, quick, small_bound, settings, stuck_at):
    """What the layer brings is taken, and above the bound let go; when the browser reads again it gets all of it."""
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "HISTORY_SIZE": 500}
    socket = await site.joined()
    socket.stuck_at = stuck_at
    socket.reading.clear()
    await site.say(*range(300), size=500)

    await await_for(lambda: not site.waiting(socket), what="an empty queue")
    assert len(socket.numbers) <= 21
    socket.reading.set()
    async with asyncio.timeout(scaled()):
        while len(socket.numbers) < 300:
            await asyncio.sleep(0)
            while socket.pings:
                socket.delivery.pong(socket.pings.pop())
    await site.say(300)

    await socket.has(*range(301))
    assert socket.told == []


async def test_a_stuck_send_holds_nothing_up_where_nothing_has_a_history(site, quick, settings):
    """What the layer brings is taken on a site that keeps nothing, too."""
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "HISTORY_SIZE": 0}
    socket = await site.joined()
    socket.reading.clear()
    for number in range(20):
        await site.forward(number, None)

    await await_for(lambda: not site.waiting(socket), what="an empty queue")


# States.


async def test_a_state_needs_no_read_where_a_message_is_missing(site, reads):
    """What comes later has replaced it: it is sent at once, and nothing older after it."""
    socket, before = await site.joined(UPLOAD), tally.replaced
    await site.say(1, topic=UPLOAD)
    late = await site.lose(2, topic=UPLOAD)
    await site.say(3, topic=UPLOAD)
    await site.forward(2, late, topic=UPLOAD)
    await site.say(4, topic=UPLOAD)

    await socket.has(1, 3, 4)
    assert reads == []
    assert tally.replaced == before + 1


async def test_the_last_message_of_a_state_is_found_though_nothing_follows_it(site, quick, reads):
    """Of all that the layer has lost, the comparison brings the latest, in one read."""
    socket = await site.joined(UPLOAD)
    await site.say(1, topic=UPLOAD)
    await socket.has(1)
    await site.lose(*range(2, 50), topic=UPLOAD)
    reconciler.reconciler().hurry(UPLOAD)

    await await_for(lambda: socket.numbers[-1] == 49, what="the latest message")
    assert socket.told == []
    assert {after for _, after in reads} == {None}


async def test_a_slow_browser_gets_the_latest_of_a_state_and_all_of_other_topics(site, small_bound, settings, reads):
    """It is sent no more than the bound, then what is newest, whatever the history of the state has dropped."""
    topics = {"closed": {"HISTORY_SIZE": 500}, "upload": {"HISTORY_SIZE": 5}}
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "TOPICS": topics}
    socket, before = await site.joined(), tally.replaced
    await socket.join(UPLOAD)
    for number in range(100):
        await site.say(*range(number * 10, number * 10 + 10), topic=UPLOAD, size=100)
        await site.say(1000 + number, size=100)
    await await_for(lambda: not site.waiting(socket))
    assert socket.delivery.paused
    paused_at = len(socket.numbers)

    async with asyncio.timeout(scaled()):
        while 1099 not in socket.numbers or 999 not in socket.numbers:
            while socket.pings:
                socket.delivery.pong(socket.pings.pop())
            await asyncio.sleep(0)

    of_the_state = [number for number in socket.numbers if number < 1000]
    assert [number for number in socket.numbers if number >= 1000] == list(range(1000, 1100))
    assert of_the_state == [*range(len(of_the_state) - 1), 999]
    assert len(of_the_state) <= paused_at <= 100
    assert tally.replaced == before + 1000 - len(of_the_state)
    assert sum(topic == UPLOAD for topic, _ in reads) == 1
    assert len(socket.told) == 1, "it was told more than that it is subscribed to the second topic"


async def test_a_browser_that_comes_back_to_a_state_gets_the_latest(site, settings):
    """Nothing is missing, though more was published than the history keeps; and the answer names where it is."""
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "HISTORY_SIZE": 5}
    since, before = await site.lose(1, topic=UPLOAD), tally.replaced
    end = await site.lose(*range(2, 50), topic=UPLOAD)
    socket = await site.open()

    assert await socket.join(UPLOAD, since) == (True, Position(end.epoch, end.n - 1))
    await socket.has(49)
    assert tally.replaced == before + 47
    await site.say(50, topic=UPLOAD)
    await socket.has(49, 50)


async def test_slow_browsers_of_a_state_share_one_read(site, small_bound, reads):
    """Wherever they are, the latest message is the same."""
    sockets = [await site.joined(UPLOAD) for _ in range(20)]
    for number, socket in enumerate(sockets):
        socket.delivery.credit.sent = 20_000 if number % 2 else 0
    await site.say(*range(10), topic=UPLOAD, size=5)
    for socket in sockets[::2]:
        socket.delivery.credit.sent = 20_000
    await site.say(*range(10, 20), topic=UPLOAD, size=5)
    await await_for(lambda: not any(map(site.waiting, sockets)))
    for socket in sockets:
        socket.delivery.ask()
        socket.delivery.pong(socket.delivery.credit._number)

    for socket in sockets:
        await await_for(lambda socket=socket: socket.numbers[-1:] == [19], what="the latest message")
    assert len(reads) == 1


# The end.


async def nothing_left(site, before):
    await await_for(lambda: asyncio.all_tasks() == before, what="the end of all tasks")
    assert site.layer.groups == {}
    assert site.layer.channels == {}
    assert reconciler.reconciler()._topics == {}


@pytest.mark.parametrize("state", ["nothing joined", "live", "catching up", "paused", "stuck"])
async def test_the_end_leaves_nothing_behind(live_redis, quick, monkeypatch, state):
    """In whatever state a socket is, its end leaves no task, no group and no channel."""
    monkeypatch.setattr(flow_control, "BOUND", 10_000)
    site, before = Site(), asyncio.all_tasks()
    socket = await site.open()
    if state != "nothing joined":
        await socket.join()
        await socket.join(UPLOAD)
    if state == "catching up":
        await site.say(1)
        await socket.has(1)
        monkeypatch.setattr(get_store(), "read", lambda *_: asyncio.Event().wait())
        await site.lose(2)
        await site.say(3)
        await await_for(lambda: socket.delivery._catch_up_task is not None)
    elif state == "paused":
        await site.say(*range(100), size=500)
        await await_for(lambda: socket.delivery.paused)
    elif state == "stuck":
        socket.reading.clear()
        await site.say(1, 2, 3)
        await await_for(lambda: socket.sends)

    await socket.delivery.end()
    for task in asyncio.all_tasks() - before:
        if "Reconciler._read" in repr(task):  # the process's own; here it would wait for ever
            task.cancel()

    await nothing_left(site, before)


@pytest.mark.parametrize("how", ["the browser is gone", "closed"])
async def test_a_socket_that_cannot_be_sent_to_leaves_no_channel_behind(live_redis, how):
    """Layers forget a channel when ``receive`` is cancelled: it has to be, also after a close or an error."""
    site, before = Site(), asyncio.all_tasks()
    socket = await site.open()
    await socket.join()
    if how == "closed":
        socket.reading.clear()
    else:
        socket.gone = True
    sends = socket.sends
    await site.say(*range(5))
    await await_for(lambda: socket.sends > sends)
    socket.delivery.stop()

    await socket.delivery.end()

    await nothing_left(site, before)


@pytest.mark.parametrize("how", ["closed", "the browser has gone"])
async def test_nothing_is_read_for_a_socket_that_takes_nothing_more(site, quick, reads, how):
    """A comparison that comes between the close, or the loss of the browser, and the end starts nothing."""
    socket = await site.joined()
    await site.say(1)
    await socket.has(1)
    if how == "closed":
        socket.delivery.stop()
    else:
        socket.gone = True
        socket.delivery.ask()
        assert not await socket.delivery.mark()
    reads.clear()
    other = await site.joined()
    await site.lose(2)
    reconciler.reconciler().hurry(TOPIC)  # the comparison after joining may have been before

    await other.has(2)  # the comparison has found both of them behind

    assert socket.numbers == [1]
    assert [cursor.n for cursor in socket.delivery.cursors.values()] == [1]
    assert socket.delivery._catch_up_task is None
    assert len(reads) == 1


@pytest.mark.parametrize("at", ["look", "group_add"])
async def test_a_join_that_failed_or_was_cancelled_leaves_nothing_behind(live_redis, monkeypatch, at):
    """The group may have been joined already when Redis fails, or the browser goes."""
    site, before = Site(), asyncio.all_tasks()
    socket = await site.open()
    entered, group_add = asyncio.Event(), site.layer.group_add

    async def hang(*arguments):
        if at == "group_add":
            await group_add(*arguments)
        entered.set()
        await asyncio.Event().wait()

    with monkeypatch.context() as patch:
        if at == "look":
            patch.setattr(get_store(), "look", hang)
        else:
            patch.setattr(site.layer, "group_add", hang)
        joining = asyncio.create_task(socket.join())
        await entered.wait()
        joining.cancel()
        await asyncio.wait([joining])
    await socket.delivery.end()

    await nothing_left(site, before)


async def test_a_join_that_redis_did_not_answer_leaves_nothing_behind(live_redis, monkeypatch):
    """Whatever the layer was asked for is taken back with the socket."""
    site, before = Site(), asyncio.all_tasks()
    socket = await site.open()

    async def fail(topics):
        raise redis.ConnectionError

    monkeypatch.setattr(get_store(), "look", fail)
    with pytest.raises(redis.ConnectionError):
        await socket.join()
    await socket.delivery.end()

    await nothing_left(site, before)


async def test_a_layer_that_does_not_answer_is_not_waited_for(live_redis, monkeypatch):
    """Joining ends with a time-out."""
    monkeypatch.setattr(subscriber, "LAYER_TIMEOUT", 0.05)
    site = Site()
    socket = await site.open()
    monkeypatch.setattr(site.layer, "group_add", lambda *_: asyncio.Event().wait())

    with pytest.raises(TimeoutError):
        await socket.join()
    await socket.delivery.end()
