"""
Channels as its tutorial writes it: an ordinary consumer, and an ordinary listener that sends to groups.

As an ASGI application it is the server; run as a program it is the listener.
"""

import asyncio
import json
from typing import Any
from urllib.parse import parse_qs

import django

django.setup()

import redis.asyncio  # noqa: E402
from channels.auth import AuthMiddlewareStack  # noqa: E402
from channels.generic.websocket import AsyncJsonWebsocketConsumer  # noqa: E402
from channels.layers import get_channel_layer  # noqa: E402
from channels.routing import ProtocolTypeRouter, URLRouter  # noqa: E402
from django.conf import settings  # noqa: E402
from django.urls import path  # noqa: E402

from benchmarks.peers import collect  # noqa: E402


class Consumer(AsyncJsonWebsocketConsumer):
    async def connect(self) -> None:
        user = self.scope["user"]
        if user.is_anonymous:
            await self.close()
            return
        query = parse_qs(self.scope["query_string"].decode())
        self.groups = [f"user_{user.pk}", f"upload_{query['upload'][0]}"]
        for group in self.groups:
            await self.channel_layer.group_add(group, self.channel_name)
        await self.accept()
        await self.send_json({"action": "joined"})

    async def notification(self, event: dict[str, Any]) -> None:
        await self.send_json(event["message"])


async def listen() -> None:
    layer = get_channel_layer()
    async with redis.asyncio.Redis.from_url(settings.REDIS_URL).pubsub() as pubsub:
        await pubsub.psubscribe("user:*", "upload:*")
        print("listening", flush=True)
        async for message in pubsub.listen():
            if message["type"] == "pmessage":
                group = message["channel"].decode().replace(":", "_")
                await layer.group_send(group, {"type": "notification", "message": json.loads(message["data"])})


collect.on_signal()
routes = URLRouter([path("ws/notifications/", Consumer.as_asgi())])
application = ProtocolTypeRouter({"websocket": AuthMiddlewareStack(routes)})

if __name__ == "__main__":
    asyncio.run(listen())
