"""
The practical limit in Python: Redis to socket in one process, and nothing else.

No layer, no listener, no history, no permissions, no reconnect, no bounds. Nobody should use this.
"""

import asyncio
import os
from urllib.parse import parse_qs, urlsplit

import hiredis
import uvloop
from picows import WSFrame, WSListener, WSMsgType, WSTransport, WSUpgradeRequest, ws_create_server

from benchmarks.peers import collect

members: dict[bytes, set[WSTransport]] = {}


class Redis(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.reader = hiredis.Reader()
        transport.write(hiredis.pack_command(("PSUBSCRIBE", "user:*", "upload:*")))

    def data_received(self, data: bytes) -> None:
        self.reader.feed(data)
        while (reply := self.reader.gets()) is not False:
            if reply[0] == b"pmessage":
                for transport in members.get(reply[2], ()):
                    transport.send(WSMsgType.TEXT, reply[3])


class Client(WSListener):
    def __init__(self, request: WSUpgradeRequest) -> None:
        query = parse_qs(urlsplit(request.path.decode()).query)
        self.topics = [f"{kind}:{query[kind][0]}".encode() for kind in ("user", "upload")]

    def on_ws_connected(self, transport: WSTransport) -> None:
        for topic in self.topics:
            members.setdefault(topic, set()).add(transport)
        transport.send(WSMsgType.TEXT, b'{"action":"joined"}')

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        for topic in self.topics:
            members[topic].discard(transport)

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type == WSMsgType.CLOSE:
            transport.disconnect()


async def main() -> None:
    collect.on_signal()
    redis = urlsplit(os.environ["REDIS_URL"])
    await asyncio.get_running_loop().create_connection(Redis, redis.hostname, redis.port)
    server = await ws_create_server(Client, "127.0.0.1", 0)
    print(f"serving on {server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


uvloop.run(main())
