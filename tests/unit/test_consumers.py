"""The WebSocket as a transport, on servers that each do ASGI in their own way."""

import asyncio
import json
from types import SimpleNamespace

import pytest

from notifications.consumers import NotificationConsumer
from tests.waiting import scaled


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
