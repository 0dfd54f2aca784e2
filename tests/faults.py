"""
Named tools that break things: processes, connections, the network, the messages themselves.

Each is a context manager that heals what it broke, or a function where there is nothing to heal.
"""

import asyncio
import os
import random
import signal
import socket
import ssl
import struct
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from typing import Any, NamedTuple, Protocol, Self

import redis

from notifications.broker import pipeline
from notifications.broker.script import Script
from project.local_redis import LocalRedis
from tests.clients import Tab, open_tab
from tests.processes import Site, User, WebServer
from tests.waiting import scaled, wait_for


class HasPid(Protocol):
    @property
    def pid(self) -> int: ...


# Processes.


@contextmanager
def paused(process: HasPid) -> Iterator[None]:
    """Stop a process (``Process``, or ``redis.child``) with SIGSTOP: a hung peer that keeps its connections."""
    os.kill(process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGCONT)


@contextmanager
def no_more_threads(*, after: int = 0) -> Iterator[None]:
    """Let this process start so many threads, and no more: as when the interpreter ends, or there are too many."""
    start, left = threading.Thread.start, after

    def refuse(thread: threading.Thread) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise RuntimeError("can't start new thread")
        start(thread)

    threading.Thread.start = refuse  # type: ignore[method-assign]
    try:
        yield
    finally:
        threading.Thread.start = start  # type: ignore[method-assign]


@contextmanager
def redis_down(server: LocalRedis) -> Iterator[None]:
    """Kill Redis with ``kill -9``, refuse connections meanwhile, and start an empty one on the same port."""
    server.kill()
    yield
    server.start()


def fail_over(primary: LocalRedis, replica: LocalRedis) -> None:
    """Make the replica the primary, and the primary its replica, as a planned failover does: no write is lost."""
    options = {"socket_timeout": scaled(10)}
    with redis.Redis.from_url(primary.url, **options) as old, redis.Redis.from_url(replica.url, **options) as new:
        wait_for(lambda: new.info("replication").get("master_link_status") == "up", what="the replica follows")
        old.execute_command("FAILOVER", "TO", "127.0.0.1", replica.port, "TIMEOUT", 10_000)
        wait_for(lambda: new.info("replication")["role"] == "master", what="the replica was promoted")


def restart_redis(site: Site, *, keep_data: bool) -> None:
    """Restart Redis on its port: from a snapshot made now, or empty."""
    if keep_data:
        site.client().save()
    site.redis.kill()
    if not keep_data:
        (site.database.parent / "dump.rdb").unlink(missing_ok=True)
    site.redis.start()


def evict(client: redis.Redis, *keys: str | bytes) -> None:
    """
    Let a Redis with an evicting policy run out of memory until each of these keys was gone once, then give it room.

    The pressure is other keys that expire, which are newer. What else is old and expires goes as well.
    """
    deadline = time.monotonic() + scaled(20)
    client.config_set("maxmemory", client.info("memory")["used_memory"] + 512 * 1024)
    filler, left = b"x" * 4096, set(keys)
    try:
        while left := {key for key in left if client.exists(key)}:
            assert time.monotonic() < deadline, "Redis does not evict"
            with client.pipeline(transaction=False) as pipeline:
                for _ in range(50):
                    pipeline.set(f"filler:{random.getrandbits(64)}", filler, ex=3600)
                pipeline.execute(raise_on_error=False)
    finally:
        client.config_set("maxmemory", 0)


# Calls of scripts.


class HeldUp(asyncio.Event):
    """Set when a call is held up; ``go_on`` lets it, and ``let_others_pass`` those that come after the first."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = asyncio.Event()
        self.passes = False

    def let_others_pass(self) -> None:
        self.passes = True


@asynccontextmanager
async def held_up(script: Script) -> AsyncIterator[HeldUp]:
    """
    Hold up this process's calls of a script from an event loop before they are sent.

    What a listener has done by then is done: cancel it there, and it has died between two steps.
    """
    arun, held = pipeline.arun, HeldUp()

    async def arun_later(called: Script, *arguments: Any, **options: Any) -> Any:
        if called is script and not (held.passes and held.is_set()):
            held.set()
            await held.go_on.wait()
        return await arun(called, *arguments, **options)

    pipeline.arun = arun_later
    try:
        yield held
    finally:
        pipeline.arun = arun
        held.go_on.set()


# Connections, as Redis sees them.


def listeners_connections(client: redis.Redis) -> list[dict[str, str]]:
    """List the connections that are subscribed to patterns: those of listeners."""
    return [found for found in client.client_list() if int(found["psub"])]


def layers_connections(client: redis.Redis) -> list[dict[str, str]]:
    """List the connections that are subscribed to channels: those of web servers' channel layers."""
    return [found for found in client.client_list() if int(found["sub"])]


def kill_connections(client: redis.Redis, connections: list[dict[str, str]]) -> int:
    """CLIENT KILL these and return how many there were."""
    return sum(client.client_kill_filter(_id=found["id"]) for found in connections)


def kill_type(client: redis.Redis, kind: str) -> int:
    """CLIENT KILL TYPE ``kind``: ``normal`` or ``pubsub``; not the one that asks."""
    return client.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")


# Browsers.


@asynccontextmanager
async def never_reading(server: WebServer, user: User) -> AsyncIterator[Tab]:
    """Hold a tab open that has authenticated and reads nothing more, not even from the kernel."""
    async with open_tab(server, user) as tab:
        tab.connection.transport.pause_reading()
        try:
            yield tab
        finally:
            tab.connection.transport.abort()


# The network.


class Proxy:
    """
    A TCP proxy on a free port that can go half-open: forwards nothing, closes nothing.

    Connections that were caught by it stay dead for ever, as behind a router that has forgotten them.
    """

    def __init__(self, target: int, tls: ssl.SSLContext | None = None, *, cuts_after: float | None = None) -> None:
        """
        Prepare it; ``with`` starts it.

        Args:
            target: The port that it forwards to.
            tls: What clients have to speak to it; the target hears them in the clear.
            cuts_after: Seconds after which it ends each connection, used or not.

        """
        self.port = 0
        self._target = target
        self._tls = tls
        self._cuts_after = cuts_after
        self._links: set[_Link] = set()
        self._swallow_new = False
        self._forgets = 0.0, False
        self._loses_answer = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    @property
    def url(self) -> str:
        """For ``site.redis_url``."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def open_links(self) -> int:
        """Connections at present, dead ones too."""
        return len(self._links)

    def __enter__(self) -> Self:
        self._thread.start()
        self._server = self._call(asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls))
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def __exit__(self, *_: object) -> None:
        self._call(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(scaled())
        self._loop.close()

    @contextmanager
    def half_open(self, *, new_ones_too: bool = False) -> Iterator[None]:
        """Catch all connections there are, and for the time of the block those that are opened."""
        self._swallow_new = new_ones_too  # first, or one that is opened meanwhile is neither
        for link in list(self._links):
            link.dead = True
        try:
            yield
        finally:
            self._swallow_new = False

    def forget(self, *, reset: bool, after: float = 0.0) -> None:
        """
        Forget connections, as a router does of which nothing was heard for long: nothing shows before they are used.

        Args:
            reset: Answer the next byte with a reset. Otherwise swallow it and all that follow.
            after: Forget a connection when it has been idle for so many seconds, from now on; all at once if 0.

        """
        self._forgets = after, reset

        def mark() -> None:
            for link in self._links:
                link.forgotten = _Forgotten(reset)

        if not after:
            self._call_soon(mark)

    def remember(self) -> None:
        """Forget no connection any more."""
        self._forgets = 0.0, False

    def lose_the_next_answer(self) -> None:
        """Let the next command through to the target, and reset its connection instead of bringing the answer."""
        self._loses_answer = True

    def lead_to(self, target: int) -> None:
        """Lead new connections to another port; those there are stay where they are, as in a failover."""
        self._target = target

    def cut(self) -> None:
        """Reset all connections."""
        self._loop.call_soon_threadsafe(lambda: [link.abort() for link in list(self._links)])

    def _call_soon(self, function) -> None:
        async def call() -> None:
            function()

        self._call(call())

    def _call(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(scaled())

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = _Link(writer, dead=self._swallow_new)
        self._links.add(link)
        try:
            if link.dead:
                await link.ended.wait()
                return
            other_reader, link.other = await asyncio.open_connection("127.0.0.1", self._target)
            pumps = [
                asyncio.create_task(self._carry_request(link, reader)),
                asyncio.create_task(self._carry_answer(link, other_reader)),
            ]
            ended = asyncio.create_task(link.ended.wait())
            await asyncio.wait([*pumps, ended], timeout=self._cuts_after, return_when=asyncio.FIRST_COMPLETED)
            for task in [*pumps, ended]:
                task.cancel()
            await asyncio.wait([*pumps, ended])
        except OSError:
            pass
        finally:
            link.abort()
            self._links.discard(link)

    async def _carry_request(self, link: "_Link", reader: asyncio.StreamReader) -> None:
        await self._pump(link, reader, link.other)

    async def _carry_answer(self, link: "_Link", reader: asyncio.StreamReader) -> None:
        await self._pump(link, reader, link.writer, answers=True)

    async def _pump(
        self, link: "_Link", reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, answers: bool = False
    ) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                idle, link.last = self._loop.time() - link.last, self._loop.time()
                if self._forgets[0] and idle > self._forgets[0]:
                    link.forgotten = _Forgotten(self._forgets[1])
                if (link.forgotten and link.forgotten.reset) or (answers and self._loses_answer):
                    self._loses_answer = self._loses_answer and not answers
                    link.reset()
                    return
                if link.dead or link.forgotten:
                    link.dead = True
                    continue
                writer.write(data)
                await writer.drain()
        if link.dead:
            await link.ended.wait()  # closes nothing: the other side must not learn of the end

    async def _end(self) -> None:
        for listening in self._server.sockets:
            self._loop.remove_reader(listening)  # what has been accepted before needs the server until it is a link
        while others := asyncio.all_tasks() - {asyncio.current_task()}:
            for link in list(self._links):
                link.abort()
            for transport in list(self._loop._transports.values()):
                transport.abort()  # those in the middle of a TLS handshake, too: nobody has been told of them
            await asyncio.wait(others, timeout=0.05)
        self._server.close()
        await self._server.wait_closed()
        await asyncio.sleep(0)


class HttpProxy(Proxy):
    """
    A proxy that reads HTTP/1.1, one request a connection, and hinders what a page wants to keep open.

    Attributes:
        upgrades: Whether it lets WebSockets through; otherwise it answers them with 403, or if None not at all.
        buffers: Whether it keeps each response, except a WebSocket's, until that has ended.

    Both may be changed, and count for connections that are opened from then on.

    """

    def __init__(
        self, target: int, *, upgrades: bool | None = False, buffers: bool = False, cuts_after: float | None = None
    ) -> None:
        """
        Prepare it; ``with`` starts it.

        Args:
            target: The port that it forwards to.
            upgrades, buffers: As the attributes.
            cuts_after: As for ``Proxy``.

        """
        super().__init__(target, cuts_after=cuts_after)
        self.upgrades = upgrades
        self.buffers = buffers

    async def _carry_request(self, link: "_Link", reader: asyncio.StreamReader) -> None:
        try:
            first, *headers = (await reader.readuntil(b"\r\n\r\n")).rstrip().split(b"\r\n")
        except (OSError, asyncio.IncompleteReadError):
            return
        link.upgrades = any(header.lower().startswith(b"upgrade:") for header in headers)
        if link.upgrades and self.upgrades is None:
            await link.ended.wait()
        if link.upgrades and not self.upgrades:
            await self._finish(link, b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            return
        if not link.upgrades:  # so that the end of the answer is that of the connection
            headers = [header for header in headers if not header.lower().startswith(b"connection:")]
            headers.append(b"Connection: close")
        link.other.write(b"\r\n".join([first, *headers, b"", b""]))
        await self._pump(link, reader, link.other)

    async def _carry_answer(self, link: "_Link", reader: asyncio.StreamReader) -> None:
        with suppress(OSError):
            first = await reader.read(65536)  # not before the request was read: that says what it is
            if self.buffers and not link.upgrades:
                await self._finish(link, first + await reader.read())
                return
            link.writer.write(first)
        await self._pump(link, reader, link.writer, answers=True)

    async def _finish(self, link: "_Link", answer: bytes) -> None:
        with suppress(OSError):
            link.writer.write(answer)
            link.writer.close()
            await link.writer.wait_closed()


class _Forgotten(NamedTuple):
    reset: bool


class _Link:
    def __init__(self, writer: asyncio.StreamWriter, *, dead: bool) -> None:
        self.writer = writer
        self.other: asyncio.StreamWriter | None = None
        self.upgrades = False
        self.dead = dead
        self.forgotten: _Forgotten | None = None
        self.last = asyncio.get_running_loop().time()
        self.ended = asyncio.Event()

    def reset(self) -> None:
        """End it with a reset; an end alone would be told as a good one."""
        with suppress(OSError):
            sock = self.writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.abort()

    def abort(self) -> None:
        self.ended.set()
        for writer in (self.writer, self.other):
            if writer is not None:
                writer.transport.abort()


@contextmanager
def port_that_does_not_answer() -> Iterator[int]:
    """Give a port whose queue of connections is full, so that connecting hangs; other systems than Linux refuse."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(3):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


@contextmanager
def silent_name_server(*names: str) -> Iterator[threading.Event]:
    """
    Have ``getaddrinfo`` wait for ever for these names, as it does for many seconds on a name server that is silent.

    Yields:
        What has it answer, with 127.0.0.1.

    """
    real, answering = socket.getaddrinfo, threading.Event()

    def getaddrinfo(host, *arguments, **options):
        if host in names:
            answering.wait()
            host = "127.0.0.1"
        return real(host, *arguments, **options)

    socket.getaddrinfo = getaddrinfo
    try:
        yield answering
    finally:
        socket.getaddrinfo = real
        answering.set()


# Messages.


class Hostile(NamedTuple):
    """A payload that somebody publishes, and the message that sockets get of it; None if it is refused."""

    payload: bytes
    arrives: bytes | None = None


def _carried(payload: bytes) -> Hostile:
    return Hostile(payload, payload)


HOSTILE_PAYLOADS = [
    # Not JSON.
    Hostile(b""),
    Hostile(b" "),
    Hostile(b"\x00"),
    Hostile(b"hello"),
    Hostile(b"{"),
    Hostile(b'{"a":1,}'),
    Hostile(b"{'a':1}"),
    Hostile(b'{"a":1} {"b":2}'),
    Hostile(b'{"a":1}// comment'),
    Hostile(b'{"a":NaN}'),
    Hostile(b'{"a":"\n"}'),
    Hostile(b"PUBLISH user:1 {}\r\n"),
    Hostile(b"\x1f\x8b\x08\x00\x00\x00\x00\x00"),
    # JSON, but no object.
    Hostile(b"null"),
    Hostile(b"true"),
    Hostile(b"42"),
    Hostile(b'"text"'),
    Hostile(b"[]"),
    Hostile(b'[{"action":"notice"}]'),
    # Not UTF-8: a stray byte, a cut sequence, an overlong slash, UTF-16, a BOM.
    Hostile(b'{"a":"\xff"}'),
    Hostile(b'{"a":"\xc3"}'),
    Hostile(b'{"a":"\xc0\xaf"}'),
    Hostile('{"a":1}'.encode("utf-16")),
    Hostile(b'\xef\xbb\xbf{"a":1}'),
    # Lone surrogates, by escape and encoded: no UTF-8 can hold them.
    Hostile(rb'{"a":"\ud800"}', rb'{"a":"\ufffd"}'),
    Hostile(rb'{"\udc00":1}', rb'{"\ufffd":1}'),
    Hostile(b'{"a":"\xed\xa0\x80"}', '{"a":"\ufffd"}'.encode()),
    # Too deep, and too large.
    Hostile(b'{"a":' * 10_000 + b"1" + b"}" * 10_000),
    Hostile(b'{"a":' + b"[" * 30_000 + b"]" * 30_000 + b"}"),
    Hostile(b'{"a":"' + b"x" * 1024 * 1024 + b'"}'),
    # A forged id would mute a user.
    Hostile(b'{"_meta":{"topic":"user:1","id":"9999999999999-1"},"a":1}'),
    Hostile(b'{"a":1,"_meta":null}'),
    Hostile(rb'{"\u005fmeta":{"id":"9999999999999-1"}}'),
    Hostile(rb'{"\u005f\u006d\u0065\u0074\u0061":{}}'),
    Hostile(b'{"_meta":1,"_meta":2}'),
    # Objects like any other, whatever Channels, browsers or templates might make of them.
    _carried(b'{"type":"websocket.disconnect"}'),
    _carried(b'{"type":"websocket.close","code":4003}'),
    _carried(b'{"type":"websocket.send","text":"{}"}'),
    _carried(b'{"type":"notifications.message","topic":"user:1","text":"{}"}'),
    _carried(b'{"action":"auth_error","message":"go away"}'),
    _carried(b'{"a":{"_meta":{"id":"9999999999999-1"}}}'),
    _carried(b'{"__proto__":{"polluted":true}}'),
    _carried(b'{"a":"</script><script>alert(1)</script>"}'),
    _carried(rb'{"a":"\u0000\u2028\ud83d\ude00"}'),
    _carried('{"a":"\u2028é😀\U0010ffff"}'.encode()),
    _carried(b'{"a":1,"a":2}'),
    _carried(b"{}"),
    _carried(b'{"":""}'),
    Hostile(b' \t\r\n{"a": 1}\n', b'{"a": 1}'),
]
"""Payloads of all sorts of broken and wicked programs."""


def hostile_payloads(number: int, seed: int = 0) -> list[Hostile]:
    """Return so many, every sort among them, in a random order; only a few of the megabytes."""
    choice = random.Random(seed)
    cheap = [hostile for hostile in HOSTILE_PAYLOADS if len(hostile.payload) < 10_000]
    chosen = HOSTILE_PAYLOADS + choice.choices(cheap, k=number - len(HOSTILE_PAYLOADS))
    choice.shuffle(chosen)
    return chosen


def nobody_listens(port: int) -> bool:
    """Say whether a connection to the port is refused."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def wait_until_all_subscribed(client: redis.Redis, *groups: str) -> None:
    """Wait until the channel layer is subscribed to these groups: after a fault, the end of the layer's gap."""

    def all_there() -> bool:
        with suppress(redis.RedisError):
            there = client.pubsub_channels()
            names = [(f"asgi__group__{group}".encode(), f"asgi/group/{group}".encode()) for group in groups]
            return all(any(name in there for name in either) for either in names)
        return False

    wait_for(all_there, 20, f"the layer subscribes to {groups}")
