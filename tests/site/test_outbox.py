"""The last step on a real server, whose ``send`` waits for browsers that do not read."""

import asyncio
import contextlib
import socket

import uvicorn
from websockets.asyncio.client import connect

from notifications.delivery.outbox import Outbox
from tests.waiting import await_for, scaled


async def test_browsers_that_do_not_read_silence_nobody():
    """With a time-out around each ``send``, as a middleware may have it, those that read get everything."""
    outboxes, failures, messages = [], [], 60

    async def read(reader):
        return [int((await reader.recv()).split()[0]) for _ in range(messages)]

    async def application(scope, receive, send):
        await receive()
        await send({"type": "websocket.accept"})

        async def send_text(text):
            async with asyncio.timeout(scaled(1)):  # long enough for a browser that reads on a busy machine
                await send({"type": "websocket.send", "text": text})

        outboxes.append(Outbox(send_text, lambda: failures.append("failed")))
        while (await receive())["type"] != "websocket.disconnect":
            pass

    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        listening.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{listening.getsockname()[1]}"
        server = uvicorn.Server(uvicorn.Config(application, lifespan="off", log_level="critical"))
        serving = asyncio.create_task(server.serve(sockets=[listening]))
        await await_for(lambda: server.started, what="the server")
        async with contextlib.AsyncExitStack() as opened:
            for _ in range(3):
                deaf = opened.enter_context(socket.create_connection(host.split(":")))
                deaf.sendall(
                    f"GET / HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
                )
            await await_for(lambda: len(outboxes) == 3, what="browsers that do not read")
            readers = [await opened.enter_async_context(connect(f"ws://{host}/", proxy=None)) for _ in range(3)]
            await await_for(lambda: len(outboxes) == 6, what="browsers that do")

            reading = asyncio.gather(*map(read, readers))
            for number in range(messages):
                for outbox in outboxes:
                    outbox.put(f"{number} {'x' * 20_000}")
                await asyncio.sleep(0)
            got = await asyncio.wait_for(reading, scaled())
            await await_for(lambda: len(failures) == 3, what="the end of those that do not read")
        for outbox in outboxes:
            outbox.close()
            await outbox.wait_closed()
        server.should_exit = server.force_exit = True
        await serving

    assert got == [list(range(messages))] * 3
