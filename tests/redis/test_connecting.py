"""How connections come about: what a server says when it lets nobody in, and what of redis-py this stands on."""

import asyncio
import logging
import re
import sys
import time
import tomllib
from contextlib import closing, suppress
from importlib import metadata
from pathlib import Path

import pytest
import redis
import redis.asyncio
import uvloop

from notifications import PublishError, Topic, apublish, publish
from notifications.broker.clients import async_client, async_options
from notifications.broker.connecting import ASYNC_CLASSES, CLASSES, CONNECT_TIMEOUT, agreet, named
from notifications.broker.primary import Service, leading
from notifications.broker.wire import Wire, make_pool, site_pool
from notifications.layers import RedisPubSubLayer
from project.local_redis import LocalRedis
from tests.conftest import point_to
from tests.faults import paused, port_that_does_not_answer
from tests.waiting import await_for, scaled

TOPIC = Topic.for_user(1)


@pytest.fixture
def full(redis_program, settings):
    """Return a Redis that has all the clients it may have."""
    with LocalRedis() as server, redis.Redis.from_url(server.url) as client:
        client.config_set("maxclients", 1)
        point_to(settings, server.url)
        yield server
        client.config_set("maxclients", 100)


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("login", ["", "site:secret@"], ids=["without an account", "with an account"])
@pytest.mark.usefixtures("slow_refusals")
def test_a_server_without_room_is_said_to_have_none(full, settings, caplog, run, login):
    """Whatever connects: not that a socket could not be written to."""
    caplog.set_level(logging.WARNING)
    url = full.url.replace("redis://", f"redis://{login}")
    point_to(settings, url)
    settings.CHANNEL_LAYERS["default"]["BACKEND"] = "notifications.layers.RedisPubSubLayer"

    async def use():
        with pytest.raises(PublishError, match="maxclients"):
            await apublish(TOPIC, {"n": 1})
        layer = RedisPubSubLayer(hosts=[url])
        sending = asyncio.create_task(layer.group_send("group", {"type": "x"}))
        await await_for(lambda: "not connected (Redis takes no more connections (maxclients))" in caplog.text)
        sending.cancel()
        await asyncio.wait([sending])
        await layer.flush()

    for _ in range(3):  # who of both is faster differs
        with pytest.raises(PublishError, match="maxclients"):
            publish(TOPIC, {"n": 1})
    run(use())

    assert "UNKNOWN" not in caplog.text


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("time_out", [5, None])
def test_what_is_written_to_a_connection_that_was_lost_is_refused_as_such(live_redis, run, time_out):
    """Both loops say of a closed transport something that nobody takes for the loss of a connection."""

    async def use():
        connection = site_pool(socket_timeout=time_out).make_connection()
        await connection.connect()
        connection._writer.transport.abort()  # as when the other side resets it
        for _ in range(10):  # until it is closed, and has been told so
            await asyncio.sleep(0)
        with pytest.raises(redis.ConnectionError):  # as where it was lost after the call had begun
            await connection._send_packed_command([b"PING\r\n"])
        with pytest.raises(redis.ConnectionError):
            await connection.send_command("PING")

    run(use())


async def test_a_connection_that_is_refused_many_times_says_it_each_time(full):
    """A server closes when it likes: before the first command, between two, or while one is written."""
    for _ in range(30):
        wire = Wire()
        with pytest.raises(redis.ConnectionError, match="max number of clients"):
            await wire.connect(site_pool())
        wire.close()


@pytest.mark.parametrize("words", ["NOAUTH Authentication required.", "WRONGPASS invalid username-password pair"])
async def test_a_refused_account_is_told_from_a_server_that_is_not_there(words):
    """Also when a busy process goes on so late that Redis has refused the next command as well."""
    refused_twice = asyncio.Event()

    class Busy(redis.asyncio.Connection):
        async def on_connect(self):
            try:
                await super().on_connect()
            finally:
                await refused_twice.wait()

    async def refuse(reader, writer):
        with closing(writer), suppress(OSError):
            await reader.read(4096)
            for _ in range(2):
                writer.write(f"-{words}\r\n".encode())
                await asyncio.sleep(scaled(0.05))  # else redis-py reads both at once
            refused_twice.set()

    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
        address = {"host": "127.0.0.1", "port": server.sockets[0].getsockname()[1]}
        connection = Busy(**address, username="site", password="secret", redis_connect_func=agreet)
        with pytest.raises(redis.AuthenticationError, match=words):
            await connection.connect()
        await connection.disconnect()


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_the_client_of_commands_says_it_each_time(full, run):
    """Also when the server has hung up before anything of its refusal was read."""

    async def ask():
        with pytest.raises(redis.ConnectionError, match="max number of clients"):
            await (await async_client()).info()

    for _ in range(30):
        run(ask())


# What of redis-py is not part of its documentation, and is used all the same.


def test_the_upper_bound_is_a_version_that_was_tried():
    """The next major version of redis-py is let in when the tests below have run on it."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    [bound] = [re.search(r"<(\d+)", each) for each in project["dependencies"] if each.startswith("redis>")]

    assert int(metadata.version("redis").split(".")[0]) < int(bound[1])


def test_synchronous_connections_are_as_they_are_used():
    """They connect by ``_connect``, keep their socket as ``_sock`` and wait on it for as long as that says."""
    for kind in CLASSES.values():
        connection = kind()
        assert connection._sock is None
        assert not connection.connected
        assert callable(connection._connect)
        assert callable(connection.on_connect)
    assert redis.SSLConnection._connect is not redis.Connection._connect
    order = [each.__name__ for each in CLASSES["rediss"].__mro__]
    assert order.index("SSLConnection") < order.index("_Tcp") < order.index("Connection")


async def test_the_time_out_of_a_socket_is_the_time_out_of_an_answer(redis_server, settings):
    """A ``settimeout`` on it is what a read goes by, until the next."""
    connection = CLASSES["redis"](port=redis_server.port)
    connection.connect()
    connection.limit(0.05)
    connection.send_command("BLPOP", "nothing", 10)
    loop = asyncio.get_running_loop()
    began = loop.time()
    with pytest.raises(redis.TimeoutError):
        connection.read_response()
    assert loop.time() - began < scaled(2)
    connection.disconnect()
    assert connection._sock is None


async def test_asyncio_connections_are_as_they_are_used(redis_server):
    """They have a reader and a writer with a transport, and connect to what ``_connection_arguments`` say."""
    connection = ASYNC_CLASSES["redis"](host="127.0.0.1", port=redis_server.port)
    assert connection._reader is connection._writer is None
    await connection.connect()

    assert isinstance(connection._reader, asyncio.StreamReader)
    assert isinstance(connection._reader._buffer, bytearray)
    assert isinstance(connection._writer.transport, asyncio.Transport)
    assert connection._connection_arguments() == {"host": "127.0.0.1", "port": redis_server.port}
    connection._writer.transport.abort()
    connection._reader = connection._writer = None

    assert "ssl" in ASYNC_CLASSES["rediss"](host="h", port=1)._connection_arguments()


async def test_a_pool_makes_connections_of_its_class(redis_server):
    """Also one for a primary, whose connections are of a class of their own."""
    service = Service("main", [("127.0.0.1", 1)], "redis", {})
    for pool in (site_pool(), redis.asyncio.ConnectionPool(**leading(service, "redis"))):
        kind = named(pool.connection_class)
        pool.connection_class = kind
        assert named(kind) is kind
        assert type(pool.make_connection()) is kind


@pytest.mark.skipif(sys.platform != "linux", reason="a full queue refuses on other systems")
async def test_a_site_decides_how_long_its_channel_layer_waits_for_a_connection():
    """A Redis in another data centre takes longer to accept."""
    with port_that_does_not_answer() as port:
        host = {"address": f"redis://127.0.0.1:{port}/0", "socket_connect_timeout": 1.2}
        pool = redis.asyncio.ConnectionPool(**RedisPubSubLayer(hosts=[host])._host)

        began = time.monotonic()
        with pytest.raises(redis.TimeoutError):
            await Wire().connect(pool)

        assert time.monotonic() - began >= 1.2


async def test_a_busy_server_is_waited_for_as_long_on_a_unix_socket(redis_program, tmp_path):
    """redis-py logs in while it connects there, and only then."""
    path = tmp_path / "redis.sock"
    wire = Wire()
    with LocalRedis("--unixsocket", str(path)) as server:
        with paused(server.child):
            connecting = asyncio.create_task(wire.connect(make_pool(async_options(f"unix://{path}"))))
            await asyncio.sleep(CONNECT_TIMEOUT + 0.2)
            assert not connecting.done()
        await connecting
    wire.close()
