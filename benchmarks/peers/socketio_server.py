"""python-socketio with its Redis manager."""

import os
from typing import Any
from urllib.parse import parse_qs

import socketio

from benchmarks.peers import collect

collect.on_signal()
server = socketio.AsyncServer(
    async_mode="asgi",
    client_manager=socketio.AsyncRedisManager(os.environ["REDIS_URL"]),
    cors_allowed_origins="*",
)
application = socketio.ASGIApp(server)


@server.event
async def connect(sid: str, environ: dict[str, Any]) -> None:
    query = parse_qs(environ["QUERY_STRING"])
    await server.enter_room(sid, f"user:{query['user'][0]}")
    await server.enter_room(sid, f"upload:{query['upload'][0]}")
    await server.emit("joined", to=sid)
