"""The end of a socket, on servers that each do it in their own way."""

import asyncio

import pytest

from notifications.consumers import NotificationConsumer
from notifications.protocol.frames import CloseCode
from tests.virtual_time import in_virtual_time
from tests.waiting import await_for, scaled


class Granian:
    """A server that keeps a close back while somebody waits in ``receive``, as Granian does; its browser is silent."""

    def __init__(self):
        self.sent = []
        self.lock = asyncio.Lock()
        self.events = asyncio.Queue()
        self.events.put_nowait({"type": "websocket.connect"})
        self.waits = 0

    async def receive(self):
        async with self.lock:
            self.waits += 1
            return await self.events.get()

    async def send(self, event):
        if event["type"] == "websocket.close":
            async with self.lock:
                self.sent.append(event)
                self.events.put_nowait({"type": "websocket.disconnect", "code": 1005})
        else:
            self.sent.append(event)

    def serve(self):
        scope = {"type": "websocket", "path": "/", "headers": [], "query_string": b"", "client": ["192.0.2.1", 1]}
        return asyncio.create_task(NotificationConsumer.as_asgi()(scope, self.receive, self.send))


@pytest.fixture
def hasty(settings):
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "AUTH_TIMEOUT": 0.05}


@in_virtual_time
async def test_a_close_that_the_server_keeps_back_goes_out(hasty):
    """The browser is told at once, and not when it says something next: a silent one would stay open."""
    server = Granian()
    async with asyncio.timeout(scaled()):
        await server.serve()

    assert [event["type"].partition(".")[2] for event in server.sent] == ["accept", "send", "close"]
    assert server.sent[-1]["code"] == CloseCode.AUTH_TIMEOUT
    assert server.waits == 3  # for the connection, for the browser, and for the end


@in_virtual_time
async def test_a_server_that_stops_meanwhile_is_not_mistaken_for_it(hasty):
    """A cancellation that is not ours ends the application, also when ours comes with it."""
    server = Granian()
    application = server.serve()
    await await_for(lambda: len(server.sent) == 2, what="the frame before the close")
    application.cancel()

    async with asyncio.timeout(scaled()):
        await asyncio.wait([application])
    assert application.cancelled()
