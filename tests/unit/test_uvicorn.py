"""The WebSocket class for uvicorn, in its HTTP server and with real clients; both classes keep the same promises."""

import ast
import asyncio
import contextlib
import hashlib
import importlib.util
import inspect
import json
import socket

import pytest
import uvicorn
import uvloop
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from notifications.uvicorn import MAX_REMEMBERED, MAX_UNCOMPRESSED, WebSocketProtocol, _Corked, _Frames
from tests.waiting import await_for, scaled

DIGEST = "0bbcec98938432f71b93ca20eea63487298f4650159242db8526a6f664902997"
"""Of the source of uvicorn's class in 0.54.0."""
KERNEL_BUFFER = 65536
LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.fixture(params=["uvicorn's own class", "ours"])
def protocol(request):
    """Return uvicorn's own class and ours."""
    return {"uvicorn's own class": WebSocketsSansIOProtocol, "ours": WebSocketProtocol}[request.param]


@pytest.fixture(params=LOOPS)
def run(request):
    """Return what runs a coroutine function in an event loop of each kind, within a time-out."""

    def run(main):
        with asyncio.Runner(loop_factory=LOOPS[request.param]) as runner:
            runner.run(asyncio.wait_for(main(), scaled()))

    return run


@contextlib.asynccontextmanager
async def serving(application, protocol=WebSocketProtocol, **options):
    """Serve an application as uvicorn does, with small buffers in the kernel; yield the address and the protocols."""
    config = uvicorn.Config(application, ws=protocol, log_config=None, lifespan="off", **options)
    config.load()
    state = ServerState()
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, KERNEL_BUFFER)
        listening.bind(("127.0.0.1", 0))
        server = await asyncio.get_running_loop().create_server(
            lambda: config.http_protocol_class(config=config, server_state=state, app_state={}), sock=listening
        )
        try:
            yield f"127.0.0.1:{listening.getsockname()[1]}", state
        except BaseException:
            server.close()
            raise
        else:
            server.close()
            await await_for(lambda: not state.connections and not state.tasks, what="the end of all connections")


async def deaf_client(address):
    """Connect a client that reads little of what it is sent until it is asked for it."""
    host, port = address.split(":")
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, KERNEL_BUFFER)
    connection.setblocking(False)
    await asyncio.get_running_loop().sock_connect(connection, (host, int(port)))
    return await connect(
        f"ws://{address}/", sock=connection, compression=None, max_queue=1, ping_interval=None, proxy=None
    )


DEFLATE = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits"


@contextlib.asynccontextmanager
async def raw_client(address, *headers):
    """Open a WebSocket of which every byte is known; yield its reader and its writer."""
    host, port = address.split(":")
    reader, writer = await asyncio.open_connection(host, port)
    head = [
        "GET / HTTP/1.1",
        f"Host: {address}",
        *("Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13"),
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        *headers,
    ]
    writer.write("".join(f"{line}\r\n" for line in [*head, ""]).encode())
    await reader.readuntil(b"\r\n\r\n")
    yield reader, writer
    writer.close()


async def frame(reader):
    """Read a frame; return its first byte, and how many bytes follow its head."""
    first, size = await reader.readexactly(2)
    if size == 126:
        size = int.from_bytes(await reader.readexactly(2))
    await reader.readexactly(size)
    return first, size


def application(handle):
    """Return an application that accepts each WebSocket, and calls ``handle`` with its ``receive`` and ``send``."""

    async def application(scope, receive, send):
        await receive()
        await send({"type": "websocket.accept"})
        await handle(receive, send)

    return application


async def gone(receive):
    """Wait until the client has gone; return what the application is told."""
    while (event := await receive())["type"] != "websocket.disconnect":
        pass
    return event


async def received(client):
    """Return all messages until the close, and then its code and reason."""
    messages = []
    with contextlib.suppress(ConnectionClosed):
        while True:
            messages.append(await client.recv())
    return messages, client.close_code, client.close_reason


def text(content):
    return {"type": "websocket.send", "text": content}


def data(content):
    return {"type": "websocket.send", "bytes": content}


TEXTS = ["", "a", "ä€😀", *("x" * size for size in (124, 125, 126, 65535, 65536, 200_000))]


@pytest.mark.parametrize("compression", [None, "deflate"])
def test_everything_arrives_in_the_order_in_which_it_was_sent(run, protocol, compression):
    """Texts of all sizes, bytes, and a close of the same turn, compressed or not."""
    sent = [each for number, each in enumerate(TEXTS * 2) for each in (each, f"{number}".encode(), each)]

    async def handle(receive, send):
        for each in sent:
            await send(text(each) if isinstance(each, str) else data(each))
        await send({"type": "websocket.close", "code": 4001, "reason": "so"})
        await gone(receive)

    async def main():
        async with (
            serving(application(handle), protocol) as (address, _),
            connect(f"ws://{address}/", compression=compression, proxy=None) as client,
        ):
            assert await received(client) == (sent, 4001, "so")

    run(main)


def test_only_long_texts_are_compressed(run):
    """Where the client takes compressed ones; short ones cost each socket more than they save."""

    async def handle(receive, send):
        await send(text("x" * MAX_UNCOMPRESSED))
        await send(text("x" * 50_000))
        await gone(receive)

    async def main():
        async with serving(application(handle)) as (address, _), raw_client(address, DEFLATE) as (reader, _):
            assert await frame(reader) == (0x81, MAX_UNCOMPRESSED)
            first, size = await frame(reader)
            assert first == 0xC1
            assert size < 1000

    run(main)


def test_what_the_server_writes_itself_stays_in_order(run, protocol):
    """Pings are answered, and the server's own pings arrive, between the texts of a turn."""
    order = []

    async def handle(receive, send):
        while (event := await receive())["type"] != "websocket.disconnect":
            for number in range(3):
                await send(text(f"{event['text']}{number}"))

    async def main():
        async with (
            serving(application(handle), protocol, ws_ping_interval=0.02, ws_ping_timeout=scaled()) as (address, state),
            connect(f"ws://{address}/", proxy=None, ping_interval=None) as client,
        ):
            for name in "ab":
                pong = await client.ping(name)
                await client.send(name)
                order.extend([await client.recv() for _ in range(3)])
                await pong
            (connection,) = state.connections
            await await_for(lambda: connection.last_ping_rtt, what="a pong of the client")

    run(main)

    assert order == ["a0", "a1", "a2", "b0", "b1", "b2"]


def test_a_client_that_does_not_read_keeps_send_waiting(run, protocol):
    """Little of what is sent waits on the server; when the client reads, it gets everything in order."""
    accepted, size, count = [], 20_000, 200

    async def handle(receive, send):
        for number in range(count):
            await send(text(f"{number} ".ljust(size, ".")))
            accepted.append(number)
        await gone(receive)

    async def main():
        async with serving(application(handle), protocol) as (address, state):
            client = await deaf_client(address)
            (connection,) = state.connections
            await await_for(lambda: not connection.writable.is_set(), what="a full buffer")
            stopped = len(accepted)
            for _ in range(5):
                await asyncio.sleep(0)
            assert len(accepted) == stopped < count
            assert connection.transport.get_write_buffer_size() < 200_000

            assert [int((await client.recv()).split()[0]) for _ in range(count)] == list(range(count))
            await client.close()

    run(main)


@pytest.mark.parametrize("compression", [None, "deflate"])
def test_texts_are_written_together_among_what_is_sent(run, compression):
    """Everything arrives in order; a long text is compressed for each socket, which only ``send`` does."""
    long = "x" * (MAX_UNCOMPRESSED + 1)
    written = []

    async def handle(receive, send):
        server = send.__self__
        written.append(server.write_texts(["a", "ä€😀"]))
        await send(text("b"))
        written.append(server.write_texts(["c", "d"]))
        written.append(server.write_texts(["", long]))
        await send({"type": "websocket.close"})
        written.append(server.write_texts(["after the close"]))
        await gone(receive)

    async def main():
        async with serving(application(handle)) as (address, _):
            client = await connect(f"ws://{address}/", compression=compression, proxy=None)
            messages, code, _ = await received(client)
            rest = [] if compression else ["", long]
            assert messages == ["a", "ä€😀", "b", "c", "d", *rest]
            assert code == 1000
            assert written == [True, True, not compression, False]

    run(main)


def test_no_texts_are_written_for_a_client_that_does_not_read(run):
    """Then ``send`` has to wait for it; little waits on the server."""
    written = []

    async def handle(receive, send):
        texts = [f"{number} ".ljust(20_000, ".") for number in range(200)]
        while send.__self__.write_texts(texts[:2]):
            written.extend(texts[:2])
            del texts[:2]
        for each in texts:
            await send(text(each))
        await gone(receive)

    async def main():
        async with serving(application(handle)) as (address, state):
            client = await deaf_client(address)
            (connection,) = state.connections
            await await_for(lambda: not connection.writable.is_set(), what="a full buffer")
            assert connection.transport.get_write_buffer_size() < 200_000
            assert 0 < len(written) < 200

            assert [int((await client.recv()).split()[0]) for _ in range(200)] == list(range(200))
            await client.close()

    run(main)


def test_the_handshake_is_forgotten(run):
    """Its headers take 3.5 KB for each client; the application has them in its scope."""
    scopes = []

    async def accepting(scope, receive, send):
        scopes.append(scope)
        await application(lambda receive, send: gone(receive))(scope, receive, send)

    async def main():
        async with serving(accepting) as (address, state), connect(f"ws://{address}/", proxy=None):
            (connection,) = state.connections
            assert len(connection.request.headers) == len(connection.response.headers) == 0
            assert b"sec-websocket-key" in dict(scopes[0]["headers"])

    run(main)


def test_send_fails_when_the_client_has_gone(run, protocol):
    """As an ``OSError``, whether ``send`` waited for the client or came later."""
    raised = []

    async def handle(receive, send):
        for _ in range(2):
            try:
                while True:
                    await send(text("x" * 100_000))
                    await asyncio.sleep(0)
            except OSError as error:
                raised.append(type(error))

    async def main():
        async with serving(application(handle), protocol) as (address, state):
            client = await deaf_client(address)
            (connection,) = state.connections
            await await_for(lambda: not connection.writable.is_set(), what="a full buffer")
            client.transport.abort()
            await await_for(lambda: len(raised) == 2, what="errors")

    run(main)

    assert raised == [ClientDisconnected] * 2


def test_nothing_is_sent_after_a_close(run, protocol):
    """It is a mistake of the application."""
    raised = []

    async def handle(receive, send):
        await send({"type": "websocket.close"})
        try:
            await send(text("late"))
        except RuntimeError as error:
            raised.append(str(error))

    async def main():
        async with (
            serving(application(handle), protocol) as (address, _),
            connect(f"ws://{address}/", proxy=None) as client,
        ):
            assert await received(client) == ([], 1000, "")

    run(main)

    assert raised == ["Unexpected ASGI message 'websocket.send', after sending 'websocket.close'."]


def test_a_shutdown_comes_after_what_was_sent(run, protocol):
    """The texts of the turn arrive, and then 1012."""
    events = []

    async def main():
        async def handle(receive, send):
            await receive()
            await send(text("a"))
            await send(text("b"))
            for connection in list(state.connections):
                connection.shutdown()
            events.append(await gone(receive))

        async with (
            serving(application(handle), protocol) as (address, state),
            connect(f"ws://{address}/", proxy=None) as client,
        ):
            await client.send("now")
            assert await received(client) == (["a", "b"], 1012, "")

    run(main)

    assert [event["code"] for event in events] == [1012]


class Writes:
    """A transport that takes note of each write."""

    def __init__(self):
        self.taken = []

    def write(self, data):
        self.taken.append(bytes(data))

    def is_closing(self):
        return False

    def close(self):
        self.taken.append("close")


async def test_what_is_written_in_one_turn_leaves_in_one_write():
    """At the end of the turn, in order; the next turn has its own."""
    transport = Writes()
    corked = _Corked(transport, asyncio.get_running_loop())

    corked.write(b"a")
    corked.write(b"b")
    now = list(transport.taken)
    await asyncio.sleep(0)
    corked.write(b"c")
    await asyncio.sleep(0)
    corked.write(b"d")
    corked.close()
    await asyncio.sleep(0)

    assert now == []
    assert transport.taken == [b"ab", b"c", b"d", "close"]


async def test_what_is_written_now_is_still_behind_what_waits():
    transport = Writes()
    corked = _Corked(transport, asyncio.get_running_loop())

    corked.write_now(b"a")
    corked.write(b"b")
    corked.write_now(b"c")
    now = list(transport.taken)
    await asyncio.sleep(0)

    assert now == [b"a"]
    assert transport.taken == [b"a", b"bc"]


async def test_what_waits_in_one_turn_is_bounded():
    """A turn in which much is sent writes several times, so that a transport can ask for a pause."""
    transport = Writes()
    corked = _Corked(transport, asyncio.get_running_loop())

    for _ in range(10):
        corked.write(b"x" * 30_000)

    assert [len(write) for write in transport.taken] == [90_000, 90_000, 90_000]
    await asyncio.sleep(0)
    assert sum(map(len, transport.taken)) == 300_000


def test_a_text_is_framed_once():
    """Equal texts have one frame."""
    frames = _Frames()

    assert frames[json.dumps({"a": 1})] is frames[json.dumps({"a": 1})]


def test_remembered_frames_are_bounded():
    """Old ones are forgotten; one that is larger than all may be is made anew."""
    frames, size = _Frames(), MAX_REMEMBERED // 10
    for number in range(100):
        frames[f"{number}".ljust(size)]
        assert sum(map(len, frames.values())) <= MAX_REMEMBERED
    frames["x" * 2 * MAX_REMEMBERED]
    assert sum(map(len, frames.values())) <= MAX_REMEMBERED


@pytest.mark.parametrize("version", ["0.53.9", "0.55.0", "1.0.0b1"])
def test_an_unknown_uvicorn_is_refused(monkeypatch, version):
    """At start-up, with what to do; not with faults later."""
    monkeypatch.setattr(uvicorn, "__version__", version)
    spec = importlib.util.spec_from_file_location("notifications.again", inspect.getsourcefile(WebSocketProtocol))

    with pytest.raises(ImportError, match=rf"{version}: install django-realtime-notifications\[uvicorn\]"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


def test_uvicorns_class_is_the_one_that_ours_was_made_for():
    """
    It is private to uvicorn. If this fails, uvicorn has changed it: compare it with the one before, run uvicorn's own
    tests of WebSockets with ours, and then write down the new digest and the versions.
    """
    source = inspect.getsource(WebSocketsSansIOProtocol)
    called = {
        node.attr
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "self.transport"
    }

    assert {name for name in called if name not in vars(_Corked)} == set(), "our transport lacks what uvicorn calls"
    assert hashlib.sha256(source.encode()).hexdigest() == DIGEST, "uvicorn's class has changed"
