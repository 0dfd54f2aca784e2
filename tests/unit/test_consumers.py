"""The WebSocket as a transport, on servers that each do ASGI in their own way."""

import asyncio
import json
import weakref
from types import SimpleNamespace

import pytest
from channels.layers import get_channel_layer

from notifications import consumers
from notifications.consumers import NotificationConsumer
from notifications.metrics import tally
from tests.waiting import await_for, scaled


@pytest.fixture
def in_memory(settings):
    """A site whose tokens are ids of users, and that needs no Redis to deliver."""
    settings.CHANNEL_LAYERS = {"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}}
    settings.NOTIFICATIONS = {
        **settings.NOTIFICATIONS,
        "HISTORY_SIZE": 0,
        "AUTHENTICATE_TOKEN": lambda token: SimpleNamespace(pk=token, is_active=True),
    }


async def test_a_server_may_return_any_awaitable(in_memory):
    """ASGI asks for no coroutine; servers written in other languages return what they like."""
    taken, events = [], asyncio.Queue()
    events.put_nowait({"type": "websocket.connect"})
    for text in ('{"type":"auth","token":"7"}', *['{"action":"ping"}'] * 3, "nonsense"):
        events.put_nowait({"type": "websocket.receive", "text": text})

    def send(event):
        taken.append(event)
        if len(taken) == 6:
            events.put_nowait({"type": "websocket.disconnect", "code": 1001})
        done = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(done.set_result, None)
        return done

    scope = {"type": "websocket", "path": "/", "headers": [], "query_string": b"", "client": ["192.0.2.1", 1]}
    async with asyncio.timeout(scaled()):
        await NotificationConsumer.as_asgi()(scope, events.get, send)

    assert taken[0]["type"] == "websocket.accept"
    said = [json.loads(event["text"])["action"] for event in taken[1:]]
    assert said == ["auth_success", "pong", "pong", "pong", "error"]


class Server:
    """A server that takes texts at once, as our class for uvicorn does."""

    def __init__(self, *texts, stays=False):
        self.sent, self.written, self.events, self.stays = [], [], asyncio.Queue(), stays
        self.events.put_nowait({"type": "websocket.connect"})
        for text in texts:
            self.events.put_nowait({"type": "websocket.receive", "text": text})

    async def send(self, event):
        self.sent.append(event)
        self._took()

    def write_texts(self, texts):
        self.written += texts
        self._took()
        return True

    def stop_keepalive(self):
        self.quiet_after = [event["type"] for event in self.sent]

    def _took(self):
        if len(self.sent) + len(self.written) == 3 and not self.stays:
            self.leave()

    def leave(self):
        self.events.put_nowait({"type": "websocket.disconnect", "code": 1001})


class Middleware:
    """It passes everything through, and sees every message."""

    def __init__(self, server):
        self.server, self.seen = server, []

    async def send(self, event):
        self.seen.append(event["type"])
        await self.server.send(event)

    def __getattr__(self, name):
        return getattr(self.server, name)


class WatchingServer(Server):
    """It has a second method that sends, which sees every message."""

    async def watch(self, event):
        self.seen.append(event["type"])
        await self.send(event)


async def serve(server, send):
    scope = {"type": "websocket", "path": "/", "headers": [], "query_string": b"", "client": ["192.0.2.1", 1]}
    async with asyncio.timeout(scaled()):
        await NotificationConsumer.as_asgi()(scope, server.events.get, send)


async def test_a_server_may_take_texts_without_an_event_for_each(in_memory):
    server = Server('{"type":"auth","token":"7"}', '{"action":"ping"}')
    await serve(server, server.send)

    assert [event["type"] for event in server.sent] == ["websocket.accept"]
    assert [json.loads(text)["action"] for text in server.written] == ["auth_success", "pong"]


async def test_a_server_need_not_ping_whom_the_heartbeat_pings(in_memory):
    """Both would wake each idle browser more than twice as often."""
    server = Server('{"type":"auth","token":"7"}', '{"action":"ping"}')
    await serve(server, server.send)

    assert server.quiet_after == ["websocket.accept"]


@pytest.mark.parametrize("wrapped", ["by a function", "by an object"])
async def test_a_middleware_that_wraps_send_sees_every_message(in_memory, wrapped):
    """Nothing goes past it, although its server takes texts at once."""
    server = Server('{"type":"auth","token":"7"}', '{"action":"ping"}')
    middleware = Middleware(server)
    await serve(server, middleware.send if wrapped == "by an object" else lambda event: middleware.send(event))

    assert middleware.seen == ["websocket.accept", "websocket.send", "websocket.send"]
    assert server.written == []


async def test_a_method_beside_the_servers_own_sees_every_message(in_memory):
    """As where a site's subclass of a server hands another method to the application."""
    server = WatchingServer('{"type":"auth","token":"7"}', '{"action":"ping"}')
    server.seen = []
    await serve(server, server.watch)

    assert server.seen == ["websocket.accept", "websocket.send", "websocket.send"]
    assert server.written == []


class Event(dict):
    """An event that can be seen to be gone."""


async def test_a_message_is_not_kept_until_the_next_one(in_memory):
    """A client may send a large one and then say nothing for days."""
    server = Server('{"type":"auth","token":"7"}', stays=True)
    event = Event(type="websocket.receive", text='{"action":"ping"}')
    server.events.put_nowait(event)
    kept = weakref.ref(event)
    del event
    serving = asyncio.create_task(serve(server, server.send))
    await await_for(lambda: len(server.written) == 2, what="the answer")
    await asyncio.sleep(0)
    gone = kept() is None
    server.leave()
    await serving

    assert gone


def what_is_left():
    """Return what sockets have in the process and on the layer."""
    layer = get_channel_layer()
    return tally.connections, tally.subscriptions, len(layer.groups), len(layer.channels)


async def test_a_socket_that_is_cancelled_again_and_again_leaves_nothing_behind(in_memory):
    """A cancel scope of anyio cancels at every wait until the application has ended, and does not wait for more."""
    before, is_stuck = what_is_left(), asyncio.Event()
    server = Server('{"type":"auth","token":"7"}', stays=True)

    async def send(event):
        await server.send(event)
        if event["type"] == "websocket.send":
            is_stuck.set()
            await asyncio.Event().wait()

    serving = asyncio.create_task(serve(server, send))
    await asyncio.wait_for(is_stuck.wait(), scaled())
    held = what_is_left()
    while not serving.done():
        serving.cancel()
        await asyncio.sleep(0)

    assert serving.cancelled()
    assert all(now > then for now, then in zip(held, before, strict=True))
    await await_for(lambda: what_is_left() == before, what="the end of its connection")


async def test_a_layer_that_does_not_answer_keeps_no_application(in_memory, monkeypatch):
    """A server that stops waits for its applications; the connection ends when the layer goes on."""
    monkeypatch.setattr(consumers, "END_WAIT", 0.01)
    before, answers = what_is_left(), asyncio.Event()
    discard = get_channel_layer().group_discard

    async def discard_late(*arguments):
        await answers.wait()
        await discard(*arguments)

    monkeypatch.setattr(get_channel_layer(), "group_discard", discard_late)
    server = Server('{"type":"auth","token":"7"}', '{"action":"ping"}')
    await serve(server, server.send)
    meanwhile = what_is_left()
    answers.set()

    assert meanwhile != before
    await await_for(lambda: what_is_left() == before, what="the end of its connection")
