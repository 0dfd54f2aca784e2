"""The WebSocket class for uvicorn, in its HTTP server and with real clients; both classes keep the same promises."""

import asyncio
import contextlib
import fcntl
import socket
import ssl
import sys
import termios
import zlib

import pytest
import uvicorn
import uvloop
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode

from notifications.protocol.frames import MAX_AUTH_FRAME_SIZE
from notifications.uvicorn import MAX_UNCOMPRESSED, SLICE, WebSocketProtocol
from tests.waiting import await_for, scaled

KERNEL_BUFFER = 65536
LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.fixture(params=["uvicorn's own class", "ours"])
def protocol(request):
    """Return uvicorn's own class and ours."""
    return {"uvicorn's own class": WebSocketsSansIOProtocol, "ours": WebSocketProtocol}[request.param]


@pytest.fixture(autouse=True)
def short_lingering(monkeypatch):
    """Let a client that broke a rule read the close code, but not for a second in each test."""
    monkeypatch.setattr("notifications.uvicorn.LINGER", scaled(0.1))


@pytest.fixture(params=LOOPS)
def run(request):
    """Return what runs a coroutine function in an event loop of each kind, within a time-out."""

    def run(main):
        with asyncio.Runner(loop_factory=LOOPS[request.param]) as runner:
            runner.run(asyncio.wait_for(main(), scaled()))

    return run


@pytest.fixture(params=["open", "TLS"])
def encryption(request, certificate):
    """Return options of a server and of a client that speak in the open, and of others that speak TLS."""
    if request.param == "open":
        return {}, {}
    files = dict(zip(("ssl_certfile", "ssl_keyfile"), map(str, certificate), strict=True))
    return files, {"ssl": ssl.create_default_context(cafile=certificate[0])}


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
            lambda: config.http_protocol_class(config=config, server_state=state, app_state={}),
            sock=listening,
            ssl=config.ssl,
        )
        try:
            yield f"127.0.0.1:{listening.getsockname()[1]}", state
        except BaseException:
            server.close()
            raise
        else:
            server.close()
            await await_for(lambda: not state.connections and not state.tasks, what="the end of all connections")


async def connected(address):
    """Connect a socket that receives little before somebody reads it."""
    host, port = address.split(":")
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, KERNEL_BUFFER)
    connection.setblocking(False)
    await asyncio.get_running_loop().sock_connect(connection, (host, int(port)))
    return connection


async def deaf_client(address, **options):
    """Connect a client that reads little of what it is sent until it is asked for it."""
    return await connect(
        f"ws{'s' * len(options)}://{address}/",
        **options,
        sock=await connected(address),
        compression=None,
        max_queue=1,
        ping_interval=None,
        proxy=None,
    )


DEFLATE = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits"


def handshake(address, *headers):
    """Return the request that opens a WebSocket."""
    head = [
        "GET / HTTP/1.1",
        f"Host: {address}",
        *("Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13"),
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        *headers,
    ]
    return "".join(f"{line}\r\n" for line in [*head, ""]).encode()


@contextlib.asynccontextmanager
async def raw_client(address, *headers):
    """Open a WebSocket of which every byte is known; yield its reader and its writer."""
    reader, writer = await asyncio.open_connection(sock=await connected(address))
    writer.write(handshake(address, *headers))
    await reader.readuntil(b"\r\n\r\n")
    try:
        yield reader, writer
    finally:
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


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
def test_everything_arrives_in_the_order_in_which_it_was_sent(run, protocol, encryption, compression):
    """Texts of all sizes, bytes, and a close of the same turn, compressed or not."""
    files, secure = encryption
    sent = [each for number, each in enumerate(TEXTS * 2) for each in (each, f"{number}".encode(), each)]

    async def handle(receive, send):
        for each in sent:
            await send(text(each) if isinstance(each, str) else data(each))
        await send({"type": "websocket.close", "code": 4001, "reason": "so"})
        await gone(receive)

    async def main():
        async with (
            serving(application(handle), protocol, **files) as (address, _),
            connect(
                f"{'wss' if secure else 'ws'}://{address}/", compression=compression, proxy=None, **secure
            ) as client,
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


@pytest.mark.parametrize("quiet", [False, True])
def test_an_application_that_pings_may_keep_the_server_from_it(run, quiet):
    """As the consumer does; other applications of the same server are pinged."""
    first = []

    async def handle(receive, send):
        if quiet:
            send.__self__.stop_keepalive()
        await asyncio.sleep(0.2)
        await send(text("after several pings"))
        await gone(receive)

    async def main():
        async with (
            serving(application(handle), ws_ping_interval=0.02, ws_ping_timeout=scaled()) as (address, _),
            raw_client(address) as (reader, _),
        ):
            first.append((await frame(reader))[0])

    run(main)

    assert first == [0x81 if quiet else 0x89]


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


def test_a_client_that_does_not_read_keeps_send_waiting(run, protocol, encryption):
    """Little of what is sent waits on the server; when the client reads, it gets everything in order."""
    files, secure = encryption
    accepted, size, count = [], 20_000, 200

    async def handle(receive, send):
        for number in range(count):
            await send(text(f"{number} ".ljust(size, ".")))
            accepted.append(number)
        await gone(receive)

    async def main():
        async with serving(application(handle), protocol, **files) as (address, state):
            client = await deaf_client(address, **secure)
            (connection,) = state.connections
            await await_for(lambda: not connection.writable.is_set(), what="a full buffer")
            seen = [-1, len(accepted)]
            while seen[-1] != seen[-2]:
                await asyncio.sleep(0.05)
                seen.append(len(accepted))
            assert seen[-1] < count
            assert connection.transport.get_write_buffer_size() < 1_000_000  # of TLS, half a megabyte

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


def client_frame(content=b"", first=0x81):
    """Return a frame as a client masks it, here with zeros."""
    size = len(content)
    if size < 126:
        head = bytes((first, 0x80 | size))
    elif size < 65536:
        head = bytes((first, 0xFE)) + size.to_bytes(2)
    else:
        head = bytes((first, 0xFF)) + size.to_bytes(8)
    return head + bytes(4) + content


def deflated(content):
    """Return a text frame that a client has compressed."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, -12)
    return client_frame((compressor.compress(content) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4], 0xC1)


async def close_code(reader):
    """Read frames until the server closes; return the code."""
    while True:
        first, size = await reader.readexactly(2)
        size = int.from_bytes(await reader.readexactly(2)) if size == 126 else size
        content = await reader.readexactly(size)
        if first == 0x88:
            return int.from_bytes(content[:2])


PING, PONG, TEXT, CONTINUED = 0x89, 0x8A, 0x01, 0x00


def listen(heard):
    """Return a handler that puts what it hears into a list, text or bytes."""

    async def handle(receive, send):
        while (event := await receive())["type"] != "websocket.disconnect":
            heard.append(event["text"] if event.get("text") is not None else event["bytes"])

    return handle


@pytest.mark.parametrize("step", [1, 3, 100_000])
def test_frames_may_arrive_in_any_pieces(run, protocol, step):
    """Frames of all sizes, and fragments with a ping between them, whatever the network makes of them."""
    heard, texts = [], ["", "ä", "x" * 125, "x" * 126, "x" * 16_000]

    async def main():
        async with (
            serving(application(listen(heard)), protocol) as (address, _),
            raw_client(address) as (reader, writer),
        ):
            sent = b"".join(client_frame(each.encode()) for each in texts)
            sent += client_frame(b"fra", TEXT) + client_frame(b"gme", CONTINUED) + client_frame(b"now", PING)
            sent += client_frame(b"nt", 0x80) + client_frame(b"\0\1", 0x02) + client_frame(b"\2", 0x80)
            for at in range(0, len(sent), step):
                writer.write(sent[at : at + step])
                await writer.drain()
                await asyncio.sleep(0)
            assert await frame(reader) == (PONG, 3)
            await await_for(lambda: len(heard) == len(texts) + 2, what="all messages")

    run(main)

    assert heard == [*texts, "fragment", b"\0\1\2"]
    assert [type(each) for each in heard[-2:]] == [str, bytes]


def test_large_frames_arrive_if_the_server_takes_them(run, protocol):
    """As large as ``--ws-max-size`` says, also where that is more than this app would take."""
    heard, content = [], "ä" * 700_000

    async def main():
        async with serving(application(listen(heard)), protocol, ws_max_size=2_000_000) as (address, _):
            async with connect(f"ws://{address}/", compression="deflate", proxy=None, max_size=None) as client:
                await client.send(content)
            async with raw_client(address) as (reader, writer):
                writer.write(client_frame(b"x" * 2_000_001))
                assert await close_code(reader) == CloseCode.MESSAGE_TOO_BIG

    run(main)

    assert heard == [content]


@pytest.mark.parametrize("size", [MAX_AUTH_FRAME_SIZE + 1, 16 * 1024 * 1024 - 16])
def test_a_bomb_is_refused_while_it_is_inflated(run, size):
    """It is closed with 1009, and the application sees nothing of it: by default what is larger than our frames."""
    heard = []

    async def main():
        async with (
            serving(application(listen(heard))) as (address, _),
            raw_client(address, DEFLATE) as (reader, writer),
        ):
            writer.write(deflated(b"x" * MAX_AUTH_FRAME_SIZE) + deflated(b"x" * size) * 15)
            assert await close_code(reader) == CloseCode.MESSAGE_TOO_BIG

    run(main)

    assert heard == ["x" * MAX_AUTH_FRAME_SIZE]


def test_one_message_of_a_client_is_inflated_at_a_time(run):
    """Thousands of them fit into one read; they wait compressed until the application takes the one before."""
    heard, count = [], 2000
    go_on = asyncio.Event()

    async def handle(receive, send):
        await go_on.wait()
        await listen(heard)(receive, send)

    async def main():
        async with (
            serving(application(handle)) as (address, state),
            raw_client(address, DEFLATE) as (_, writer),
        ):
            await await_for(lambda: state.connections, what="the connection")
            (connection,) = state.connections
            writer.write(deflated(b"x" * MAX_AUTH_FRAME_SIZE) * count)
            await writer.drain()
            await await_for(lambda: not connection.queue.empty(), what="the first message")
            for _ in range(10):
                await asyncio.sleep(0)
            assert len(connection.queue._items) == 1
            go_on.set()
            await await_for(lambda: len(heard) == count, what="all messages")

    run(main)

    assert set(heard) == {"x" * MAX_AUTH_FRAME_SIZE}


@pytest.mark.parametrize(
    "flood",
    [client_frame(b"x" * 125, PING), client_frame(b"", PONG), client_frame(b"", CONTINUED)],
    ids=["pings", "pongs", "empty fragments"],
)
def test_a_flood_of_frames_that_no_application_sees_is_closed(run, flood):
    """With 1008, after as many as a client may send of any frames."""
    heard = []

    async def main():
        async with serving(application(listen(heard))) as (address, _), raw_client(address) as (reader, writer):
            writer.write(client_frame(b"a") + client_frame(b"b", TEXT) + flood * 3000)
            assert await close_code(reader) == CloseCode.POLICY_VIOLATION

    run(main)

    assert heard == ["a"]


def test_a_flood_gives_others_their_turn(run):
    """A read of thousands of frames is not worked off at once."""
    turns = []

    async def main():
        async with serving(application(gone_only)) as (address, state), raw_client(address) as (_, writer):
            await await_for(lambda: state.connections, what="the connection")
            (connection,) = state.connections
            connection.handle_ping = lambda: turns.append(asyncio.get_running_loop().time())
            took = []
            for _ in range(20):
                writer.write(client_frame(b"", PING) * 1000)
            while len(turns) < 20_000:
                before = len(turns)
                await asyncio.sleep(0)
                took.append(len(turns) - before)
            assert max(took) <= 3 * SLICE

    run(main)


async def gone_only(receive, send):
    await gone(receive)


def test_pings_wait_while_nobody_reads_the_answers(run):
    """They are not read, nor anything behind them, until the client reads; everything else still is."""
    heard = []

    async def main():
        async with (
            serving(application(listen(heard))) as (address, state),
            raw_client(address) as (reader, writer),
        ):
            await await_for(lambda: state.connections, what="the connection")
            (connection,) = state.connections
            connection.pause_writing()  # as the transport does when its buffer is full

            writer.write(client_frame(b"before") + client_frame(b"now", PING) * 100 + client_frame(b"behind"))
            await await_for(lambda: heard, what="what was said before the pings")
            for _ in range(10):
                await asyncio.sleep(0)
            assert heard == ["before"]
            assert connection.transport.get_write_buffer_size() == 0

            connection.resume_writing()
            assert [await frame(reader) for _ in range(100)] == [(PONG, 3)] * 100
            await await_for(lambda: len(heard) == 2, what="what was said behind the pings")

    run(main)

    assert heard == ["before", "behind"]


def test_nothing_is_read_before_the_application_has_accepted(run):
    """What a client sends too early waits, and no answer is written before that of the handshake."""
    heard, go_on = [], asyncio.Event()

    async def application(scope, receive, send):
        await receive()
        await go_on.wait()
        await send({"type": "websocket.accept"})
        await listen(heard)(receive, send)

    async def main():
        async with serving(application) as (address, state):
            reader, writer = await asyncio.open_connection(*address.split(":"))
            writer.write(handshake(address))
            await await_for(lambda: [each for each in state.connections if isinstance(each, WebSocketProtocol)])
            writer.write(client_frame(b"x" * 125, PING) + client_frame(b"early"))
            await writer.drain()
            await asyncio.sleep(0.05)
            go_on.set()
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
            assert await frame(reader) == (PONG, 125)
            await await_for(lambda: heard, what="the message")
            writer.close()

    run(main)

    assert heard == ["early"]


def test_a_client_that_leaves_before_it_is_accepted_is_missed(run, protocol):
    """The application that waits is told."""
    events = []

    async def application(scope, receive, send):
        events.append(await receive())
        events.append(await receive())

    async def main():
        async with serving(application, protocol) as (address, _):
            writer = (await asyncio.open_connection(*address.split(":")))[1]
            writer.write(handshake(address))
            await await_for(lambda: events, what="the application")
            writer.close()
            await await_for(lambda: len(events) == 2, what="the disconnect")

    run(main)

    assert [event["type"] for event in events] == ["websocket.connect", "websocket.disconnect"]


def test_fragments_of_one_byte_take_no_more_than_their_bytes(run):
    """They are joined as they come."""
    heard = []

    async def main():
        async with serving(application(listen(heard))) as (address, state), raw_client(address) as (_, writer):
            await await_for(lambda: state.connections, what="the connection")
            (connection,) = state.connections
            writer.write(client_frame(b"x", TEXT) + client_frame(b"x", CONTINUED) * 5000)
            await await_for(lambda: sum(map(len, connection.frames)) == 5001, what="all fragments")
            assert len(connection.frames) == 1
            writer.write(client_frame(b"x", 0x80))
            await await_for(lambda: heard, what="the message")

    run(main)

    assert heard == ["x" * 5002]


async def until_full(state):
    """Wait until a client that does not read keeps its connection waiting; return the connection."""
    await await_for(lambda: state.connections, what="the connection")
    (connection,) = state.connections
    await await_for(lambda: not connection.writable.is_set(), what="a full buffer")
    return connection


async def close_it(writer, connection, send):
    await send({"type": "websocket.close"})


async def half_close_it(writer, connection, send):
    writer.write_eof()


async def shut_it_down(writer, connection, send):
    connection.shutdown()


@pytest.mark.parametrize("end", [close_it, half_close_it, shut_it_down])
def test_who_does_not_read_the_end_is_cut_off(run, monkeypatch, end):
    """A close waits for a client only so long, also if there is more before it than the client reads."""
    monkeypatch.setattr("notifications.uvicorn.CLOSE_TIMEOUT", 0.2)
    sends = []

    async def handle(receive, send):
        sends.append(send)
        send.__self__.stop_keepalive()
        await send(text("x" * 2_000_000))
        await gone(receive)

    async def main():
        async with serving(application(handle)) as (address, state), raw_client(address) as (reader, writer):
            reader._transport.pause_reading()
            connection = await until_full(state)
            with contextlib.suppress(ClientDisconnected):
                await end(writer, connection, sends[0])
            await await_for(lambda: not state.connections and not state.tasks, what="the end of the connection")

    run(main)


def test_who_does_not_read_the_end_is_cut_off_with_tls(run, monkeypatch, certificate):
    """Also if all that waits has been encrypted, which a transport then does not count."""
    monkeypatch.setattr("notifications.uvicorn.CLOSE_TIMEOUT", 0.2)
    files = dict(zip(("ssl_certfile", "ssl_keyfile"), map(str, certificate), strict=True))
    full = asyncio.Event()

    def in_the_kernel(connection):
        number = connection.transport.get_extra_info("socket").fileno()
        return int.from_bytes(fcntl.ioctl(number, termios.TIOCOUTQ, bytes(4)), sys.byteorder)

    async def handle(receive, send):
        connection, before = send.__self__, -1
        while before != (before := in_the_kernel(connection)):
            await send(text("x" * 10_000))
            await asyncio.sleep(0.02)
        full.set()
        await gone(receive)

    def deaf(client, address):
        client.setblocking(True)
        client = ssl.create_default_context(cafile=certificate[0]).wrap_socket(client, server_hostname="127.0.0.1")
        client.sendall(handshake(address))
        client.recv(1)
        return client

    async def main():
        async with serving(application(handle), **files) as (address, state):
            with await asyncio.to_thread(deaf, await connected(address), address):
                (connection,) = state.connections
                assert connection.transport.get_write_buffer_size() == 0
                await full.wait()
                connection.shutdown()
                assert connection.transport.get_write_buffer_size() == 0
                await await_for(lambda: not state.connections, what="the end of the connection")

    run(main)


def test_a_client_that_is_leaving_does_not_disturb_a_shutdown(run):
    """It has closed, and has not read everything yet; uvicorn's own class raises, and the others would not be told."""

    async def handle(receive, send):
        await send(text("x" * 2_000_000))
        await gone(receive)

    async def main():
        async with serving(application(handle)) as (address, state), raw_client(address) as (reader, writer):
            reader._transport.pause_reading()
            connection = await until_full(state)
            writer.write(client_frame(b"\x03\xe8", 0x88))
            await await_for(connection.transport.is_closing, what="its close")
            connection.shutdown()

    run(main)
