"""A Redis that is reached by TLS, as most hosted ones are. The embedded one speaks none, so a proxy does."""

import asyncio
import ssl
from contextlib import asynccontextmanager

import pytest
import uvloop

from notifications import apublish, publish
from notifications.history import get_store
from notifications.history.position import Position
from notifications.layers import RedisPubSubLayer
from notifications.topics import Topic
from tests.clients import open_tab
from tests.conftest import point_to
from tests.faults import Proxy
from tests.waiting import await_for, scaled

BURST = 2_000
PADDING = "x" * 2_000


@pytest.fixture
def tls(certificate):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    return context


def url_of(proxy, certificate):
    """Return the URL of a Redis behind a proxy that speaks TLS; its certificate is checked."""
    return f"rediss://127.0.0.1:{proxy.port}/0?ssl_ca_certs={certificate[0]}"


@asynccontextmanager
async def opened(url):
    layer = RedisPubSubLayer(hosts=[url], capacity=BURST)
    try:
        yield layer
    finally:
        await layer.flush()


async def take(layer, channel):
    async with asyncio.timeout(scaled()):
        return await layer.receive(channel)


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_the_layer_carries_megabytes_in_order_and_comes_back(live_redis, redis_server, certificate, tls, run):
    """Encrypted, a connection is read in bulk, held back, and replaced after a cut, as a plain one is."""

    async def use(proxy):
        async with opened(url_of(proxy, certificate)) as layer:
            channel, told = await layer.new_channel(), asyncio.Event()
            layer.on_resync(channel, told.set)
            await layer.group_add("group", channel)

            for n in range(BURST):
                await layer.group_send("group", {"type": "x", "n": n, "padding": PADDING})
            assert [(await take(layer, channel))["n"] for _ in range(BURST)] == list(range(BURST))

            proxy.cut()
            async with asyncio.timeout(scaled()):
                await told.wait()
            await layer.group_send("group", {"type": "again"})
            assert await take(layer, channel) == {"type": "again"}

    with Proxy(redis_server.port, tls) as proxy:
        run(use(proxy))


async def test_a_certificate_of_nobody_is_refused(live_redis, redis_server, tls, monkeypatch, caplog):
    """Who cannot prove to be the Redis that was meant gets nothing, and the log says why."""
    monkeypatch.setattr("notifications.channel_layer.feed.WAIT", 0.3)
    with Proxy(redis_server.port, tls) as proxy:
        async with opened(f"rediss://127.0.0.1:{proxy.port}/0") as layer:
            with pytest.raises(TimeoutError):
                await layer.group_send("group", {"type": "x"})
            await await_for(lambda: "certificate" in caplog.text.lower())


async def test_publishing_and_histories_work(live_redis, redis_server, settings, certificate, tls):
    """Both ways to call Redis, the synchronous and the pipelined one, take a TLS address."""
    topic = Topic.parse("upload:1")
    with Proxy(redis_server.port, tls) as proxy:
        point_to(settings, url_of(proxy, certificate))
        first = await asyncio.to_thread(publish, topic, {"n": 1})
        second = await apublish(topic, {"n": 2})

        [where] = await get_store().look([topic])
        page = await get_store().read(topic, Position.parse(first))

    assert str(where.last) == second
    assert [str(frame.position) for frame in page.frames] == [second]


async def test_a_site_works_and_recovers(new_site, server_kind, certificate, tls):
    """Listener and web server carry raw messages to a tab, also after all their connections were cut."""
    user = new_site.add_user()
    with Proxy(new_site.redis.port, tls) as proxy:
        new_site.redis_url = url_of(proxy, certificate)
        server, listener = await asyncio.to_thread(new_site.start_all, server_kind)
        client = new_site.client()
        async with open_tab(server, user) as tab:
            client.publish(user.channel, '{"n":1}')
            await tab.expect_message('{"n":1}')

            said = listener.mark()
            proxy.cut()
            await asyncio.to_thread(listener.wait_for_line, "listening on", 10, said)
            client.publish(user.channel, '{"n":2}')
            await tab.expect_message('{"n":2}')
