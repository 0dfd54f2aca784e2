"""The primary that Sentinels name: found in time, believed only if it is one, and left when it no longer is."""

import asyncio
import os
import socket
import ssl
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack

import pytest
import redis

from notifications import PublishError, Topic, apublish, publish
from notifications.address import read
from notifications.broker import pipeline, primary, sentinels
from notifications.broker.clients import SOCKET_TIMEOUT, async_client, breaker
from notifications.broker.primary import NotPrimaryError, Service, service_of
from notifications.broker.sentinels import ASK_TIMEOUT
from notifications.broker.wire import DOUBT, Subscription, confirmed, site_pool
from notifications.layers import RedisPubSubLayer
from project.local_redis import LocalRedis
from tests.conftest import point_to
from tests.faults import Proxy, no_more_threads, paused
from tests.sentinels import FakeSentinel, url_of
from tests.waiting import await_for, scaled, wait_for

TOPIC = Topic.for_user(1)


@pytest.fixture(autouse=True)
def _patience(monkeypatch):
    """Give a busy machine more than the third of a second of the code; tests of Sentinels that hang take that back."""
    monkeypatch.setattr(sentinels, "ASK_TIMEOUT", scaled(3))


@pytest.fixture
def three():
    """Three Sentinels that name the port 6379."""
    with FakeSentinel(6379) as one, FakeSentinel(6379) as two, FakeSentinel(6379) as another:
        yield one, two, another
        primary.forget()  # with the connections of services that only a test's traceback still holds


def service(*three, **options):
    return Service("main", [sentinel.host for sentinel in three], "redis", options)


def port(found):
    return found.primary(scaled(5)).port


# Asking.


def test_a_sentinel_that_hangs_costs_no_time(three, monkeypatch):
    """The others are asked at the same time, and are enough."""
    monkeypatch.setattr(sentinels, "ASK_TIMEOUT", scaled(30))
    three[0].hangs = True

    began = time.monotonic()
    assert port(service(*three)) == 6379
    assert time.monotonic() - began < scaled(5)


def test_the_latest_failover_of_which_a_sentinel_knows_is_believed(three, monkeypatch):
    """Whoever decided it knows first; the others may take two seconds to hear."""
    monkeypatch.setattr(primary, "GRACE", scaled(5))
    three[1].names = ("127.0.0.1", 6380, 7)

    assert port(service(*three)) == 6380


def test_a_few_sentinels_that_were_cut_off_lead_nobody_back(three, monkeypatch):
    """What was known of a later failover is not forgotten for the word of a minority."""
    monkeypatch.setattr(primary, "ANSWER_TTL", 0)
    monkeypatch.setattr(primary, "GRACE", scaled(5))
    found = service(*three)
    three[1].names = three[2].names = ("127.0.0.1", 6380, 7)
    assert port(found) == 6380
    monkeypatch.setattr(sentinels, "ASK_TIMEOUT", ASK_TIMEOUT)
    three[1].hangs = three[2].hangs = True

    assert port(found) == 6380


def test_a_late_answer_to_an_earlier_question_leads_nobody_back(three):
    """Whoever asks anew may be answered first."""
    found, earlier = service(*three), Future()
    asked = time.monotonic()
    for sentinel in three:
        sentinel.names = ("127.0.0.1", 6380, 1)
    assert port(found) == 6380
    for sentinel in three:
        sentinel.names = ("127.0.0.1", 6379, 0)
    found._find(earlier, asked)

    assert earlier.result(0).port == 6379
    assert found.failovers == 1


def test_sentinels_that_were_set_up_anew_are_believed(three, monkeypatch):
    """They count failovers from the beginning, and most of them say so."""
    monkeypatch.setattr(primary, "ANSWER_TTL", 0)
    monkeypatch.setattr(primary, "GRACE", scaled(5))
    found = service(*three)
    three[1].names = ("127.0.0.1", 6380, 7)
    assert port(found) == 6380
    three[1].names = ("127.0.0.1", 6379, 0)

    assert port(found) == 6379


def test_without_sentinels_the_last_primary_stays(three, monkeypatch):
    """They only watch: a site goes on without them."""
    monkeypatch.setattr(primary, "ANSWER_TTL", 0)
    found = service(*three)
    assert port(found) == 6379
    monkeypatch.setattr(sentinels, "ASK_TIMEOUT", scaled(1))
    three[0].hangs = True
    for sentinel in three[1:]:
        sentinel.end()

    began = time.monotonic()
    assert port(found) == 6379
    assert time.monotonic() - began < scaled(4)  # and not the five for which it would wait for an answer


def test_sentinels_that_others_named_are_asked_when_no_other_answers(three, monkeypatch):
    """A URL may name one that is replaced one day."""
    monkeypatch.setattr(primary, "ANSWER_TTL", 0)
    known, new = three[0], three[1]
    known.others = [new.host]
    found = service(known)
    assert port(found) == 6379
    known.end()
    new.names = ("127.0.0.1", 6380, 1)

    assert port(found) == 6380


@pytest.mark.parametrize("how", ["hang", "know no such service", "refuse the account", "are away"])
def test_why_no_primary_is_found_is_said(three, monkeypatch, how):
    """Within the time that a publish has: all are asked at once, and the others that they named after them."""
    assert 2 * ASK_TIMEOUT < SOCKET_TIMEOUT
    if how == "hang":
        monkeypatch.setattr(sentinels, "ASK_TIMEOUT", scaled(1))
    for sentinel in three:
        sentinel.hangs = how == "hang"
        sentinel.password = "word" if how == "refuse the account" else ""
        sentinel.names = None if how == "know no such service" else sentinel.names
        if how == "are away":
            sentinel.end()
    why = {
        "hang": "no Sentinel names",
        "know no such service": "no service main",
        "refuse the account": "Authentication required",
    }

    began = time.monotonic()
    with pytest.raises(redis.ConnectionError, match=why.get(how, "refused")):
        service(*three).primary(scaled(5))
    assert time.monotonic() - began < scaled(2.5)  # waiting for each that hangs, or for one that does not, takes three


def test_all_who_ask_at_the_same_moment_share_one_question(three, monkeypatch):
    """Threads and event loops; and whoever asks a moment later has its answer, too."""
    monkeypatch.setattr(primary, "ANSWER_TTL", scaled(5))
    monkeypatch.setattr(primary, "GRACE", scaled(5))  # until the last has answered, and counted
    found, all_are_there = service(*three), threading.Barrier(20)

    def ask(number):
        all_are_there.wait()
        return found.primary(scaled(5)) if number % 2 else asyncio.run(found.aprimary(scaled(5)))

    with ThreadPoolExecutor(20) as threads:
        assert {named.port for named in threads.map(ask, range(20))} == {6379}
    assert [sentinel.asked["GET-MASTER-ADDR-BY-NAME"] for sentinel in three] == [1, 1, 1]


def test_a_connection_to_a_sentinel_is_used_again(three, monkeypatch):
    """Until it ends, or has not been used for so long that a router may have forgotten it."""
    monkeypatch.setattr(primary, "ANSWER_TTL", 0)
    monkeypatch.setattr(primary, "GRACE", scaled(5))  # until the last has answered
    found = service(*three)
    for _ in range(3):
        ask_all(found)
    assert [sentinel.asked["connect"] for sentinel in three] == [1, 1, 1]
    for connection, _ in found._asking._kept.values():
        connection._sock.shutdown(socket.SHUT_RDWR)
    ask_all(found)
    monkeypatch.setattr(sentinels, "KEEP", 0)
    ask_all(found)

    assert [sentinel.asked["connect"] for sentinel in three] == [3, 3, 3]


def ask_all(found):
    """Ask, and wait for the last of the three Sentinels, too: the first answers are enough for the caller."""
    port(found)
    wait_for(lambda: len(found._asking._kept) == 3)


def test_who_asks_a_sentinel_at_the_same_time_leaves_one_connection(three):
    """Whether it is kept or not, a connection is ended by who made it, not by the garbage collector."""
    found = service(*three)
    new, made, barrier = found._asking._class, [], threading.Barrier(2)

    def connect(**options):
        barrier.wait(scaled(10))
        made.append(new(**options))
        return made[-1]

    found._asking._class = connect

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(found._asking._ask_one, [three[0].host] * 2))

    assert sorted(connection.connected for connection in made) == [False, True]


def test_connections_to_sentinels_end_with_the_settings_that_named_them(three, settings):
    """So a process whose settings change, as in a site's tests, leaves no connection behind."""
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "REDIS_URL": (url := url_of(*three))}
    found = service_of(read(url))
    ask_all(found)
    connections = [connection for connection, _ in found._asking._kept.values()]

    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "REDIS_URL": "redis://127.0.0.1:1"}

    assert not any(connection.connected for connection in connections)
    assert service_of(read(url)) is not found


@pytest.mark.parametrize("threads", [0, 1])
def test_where_no_thread_can_start_the_last_primary_stays(three, monkeypatch, threads):
    """As when the interpreter ends, or the account has too many; once one can, the Sentinels are asked again."""
    monkeypatch.setattr(primary, "ANSWER_TTL", 0)
    known, new = service(*three), service(*three)
    assert port(known) == 6379
    for sentinel in three:
        sentinel.names = ("127.0.0.1", 6380, 1)
    with no_more_threads(after=threads):
        assert port(known) == 6379
    with no_more_threads(after=threads), pytest.raises(redis.ConnectionError, match="can't start new thread"):
        port(new)

    assert port(known) == port(new) == 6380


async def test_a_caller_that_gives_up_takes_the_answer_from_nobody(three, monkeypatch):
    """The question goes on for the others."""
    monkeypatch.setattr(sentinels, "ASK_TIMEOUT", scaled(5))
    for sentinel in three:
        sentinel.hangs = True
    found = service(*three)
    asking = asyncio.create_task(found.aprimary(scaled(5)))
    with pytest.raises(redis.TimeoutError):
        await found.aprimary(0.01)
    for sentinel in three:
        sentinel.end()
    with pytest.raises(redis.ConnectionError):
        await asking


def test_a_sentinel_has_an_account_of_its_own(three):
    """The account of the URL is for the primary."""
    for sentinel in three:
        sentinel.password = "hush"
    query = "?sentinel_username=watch&sentinel_password=hush"

    found = service_of(read(url_of(*three, login="site:word@", query=query)))

    assert port(found) == 6379
    assert "hush" not in repr(found)


def test_a_fork_asks_for_itself(three, monkeypatch):
    """It has none of the threads of its parent, even if one of them was asking."""
    monkeypatch.setattr(sentinels, "ASK_TIMEOUT", scaled(5))
    for sentinel in three:
        sentinel.hangs = True
    found = service(*three)
    found.ask()
    for sentinel in three:
        sentinel.hangs = False
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if port(found) == 6379 else 1)
        except BaseException:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0


# Connections.


@pytest.fixture
def servers(redis_program):
    """Two servers; the second becomes the primary in a test that wants it."""
    with LocalRedis("--shutdown-timeout", "0") as one, LocalRedis("--shutdown-timeout", "0") as other:
        yield one, other


@pytest.fixture
def led(servers, three, settings):
    """This process's settings name Sentinels, which name the first server; return a function that fails over."""
    for sentinel in three:
        sentinel.names = ("127.0.0.1", servers[0].port, 0)
    point_to(settings, url_of(*three))
    breaker.worked()

    def fail_over(number, failover):
        for sentinel in three:
            sentinel.names = ("127.0.0.1", servers[number].port, failover)

    return fail_over


def history(server):
    with redis.Redis.from_url(server.url) as client:
        return client.xlen(TOPIC.history_key)


async def test_each_way_to_redis_leads_to_the_primary(led, servers):
    """Calls of threads and event loops, commands, subscriptions, and the channel layer."""
    publish(TOPIC, {"n": 1})
    await apublish(TOPIC, {"n": 2})
    assert (await (await async_client()).info("server"))["tcp_port"] == servers[0].port
    got = []
    subscription = Subscription(lambda _channel, data: got.append(data))
    await subscription.connect(site_pool())
    await confirmed(subscription.subscribe("news"))
    with redis.Redis.from_url(servers[0].url) as client:
        client.publish("news", "x")
    await await_for(lambda: got)
    subscription.close()

    assert history(servers[0]) == 2


async def test_what_says_that_it_is_a_replica_is_not_used(led, servers):
    """Sentinels may name it before it is promoted, or after it was demoted."""
    with redis.Redis.from_url(servers[0].url) as client:
        client.replicaof("127.0.0.1", servers[1].port)
    with pytest.raises(PublishError, match="is a replica"):
        publish(TOPIC, {"n": 1})
    breaker.worked()
    with pytest.raises(PublishError, match="is a replica"):
        await apublish(TOPIC, {"n": 1})
    with pytest.raises(NotPrimaryError):
        await Subscription(lambda *_: None).connect(site_pool())
    with pytest.raises(NotPrimaryError):
        await (await async_client()).ping()
    breaker.worked()
    led(1, 1)
    await asyncio.sleep(primary.ANSWER_TTL)

    publish(TOPIC, {"n": 1})
    assert history(servers[1]) == 1


async def test_a_call_that_meets_a_demoted_primary_goes_to_the_next(led, servers):
    """Once: it was refused, so nothing of it has been done."""
    publish(TOPIC, {"n": 1})
    await apublish(TOPIC, {"n": 2})
    led(1, 1)
    with redis.Redis.from_url(servers[0].url) as client:
        client.replicaof("127.0.0.1", servers[1].port)
    await asyncio.sleep(primary.ANSWER_TTL)

    publish(TOPIC, {"n": 3})
    await apublish(TOPIC, {"n": 4})

    assert history(servers[1]) == 2


async def test_a_primary_that_was_never_told_is_left(led, servers, settings, monkeypatch):
    """A zombie answers as before; what is published after a moment goes to its successor, and subscriptions follow."""
    monkeypatch.setattr(primary, "CHECK_INTERVAL", 0.1)
    monkeypatch.setattr(primary, "CHECK_WAIT", scaled(1))
    publish(TOPIC, {"n": 1})
    await apublish(TOPIC, {"n": 2})
    await (await async_client()).ping()
    layer = RedisPubSubLayer(hosts=[settings.REDIS_URL])
    told = []
    channel = await layer.new_channel()
    layer.on_resync(channel, lambda: told.append(1))
    await layer.group_add("group", channel)
    led(1, 1)

    await asyncio.sleep(0.15)
    publish(TOPIC, {"n": 3})
    assert history(servers[1]) == 1
    await await_for(lambda: pipeline._line()._caller.is_closed)
    await apublish(TOPIC, {"n": 4})
    await await_for(lambda: told)
    assert (await (await async_client()).info("server"))["tcp_port"] == servers[1].port
    await layer.group_send("group", {"type": "x"})
    async with asyncio.timeout(scaled(5)):
        assert await layer.receive(channel) == {"type": "x"}
    await layer.flush()
    assert (history(servers[0]), history(servers[1])) == (2, 2)


@pytest.mark.parametrize("replaced", [True, False])
async def test_what_a_server_says_after_a_silence_counts_only_if_it_was_not_replaced(led, servers, settings, replaced):
    """It executes then what callers have given up, and have sent to its successor meanwhile."""
    loop, heard = asyncio.get_running_loop(), []
    subscription = Subscription(lambda _channel, data: heard.append(data))
    await subscription.connect(site_pool())
    await confirmed(subscription.subscribe("news"))
    with paused(servers[0].child), socket.create_connection(("127.0.0.1", servers[0].port)) as late:
        late.sendall(b"PUBLISH news late\r\n")
        # By its own account: a process that slept does not count that as silence.
        await await_for(lambda: loop.time() - subscription._heard > DOUBT + 0.2)
        if replaced:
            led(1, 1)
    await await_for(lambda: subscription.is_closed if replaced else heard)

    assert heard == ([] if replaced else [b"late"])
    assert subscription.is_closed is replaced
    subscription.close()


async def test_whoever_subscribes_anew_asks_again_once_it_is_let_in(led, servers, monkeypatch):
    """Also if that was quick: a server that slept until it was replaced, a moment ago, executes what is late first."""
    go_to = primary._AsyncLed._go_to

    def go_to_it_and_fail_over(connection, named):
        go_to(connection, named)
        led(1, 1)

    monkeypatch.setattr(primary._AsyncLed, "_go_to", go_to_it_and_fail_over)

    with pytest.raises(NotPrimaryError):
        await Subscription(lambda *_: None).connect(site_pool())
    subscription = Subscription(lambda *_: None)
    await subscription.connect(site_pool())
    assert subscription._connection.port == servers[1].port
    subscription.close()


async def test_what_was_sent_to_a_primary_that_is_left_is_not_sent_again(led, servers):
    """It is executed there: the answer is waited for, and only what comes later goes to the successor."""
    await apublish(TOPIC, {"n": 1})
    caller = pipeline._line()._caller
    waiting = asyncio.create_task(pipeline.acall("BLPOP", "queue", "30", within=scaled(10), again=True))
    await await_for(lambda: len(caller._unanswered))
    led(1, 1)
    caller.leave()
    assert not caller.is_closed
    with redis.Redis.from_url(servers[0].url) as client:
        client.lpush("queue", "x")

    assert (await waiting)[1] == b"x"
    await asyncio.sleep(primary.ANSWER_TTL)
    await apublish(TOPIC, {"n": 2})
    assert history(servers[1]) == 1


def test_a_primary_that_becomes_one_again_begins_new_ids(led, servers, monkeypatch):
    """It may have lost what it had told, and would give out the same ids for other messages."""
    monkeypatch.setattr(primary, "CHECK_INTERVAL", 0.05)
    monkeypatch.setattr(primary, "CHECK_WAIT", scaled(1))
    first = publish(TOPIC, {"n": 1})
    assert publish(TOPIC, {"n": 2}).partition("-")[0] == first.partition("-")[0]
    led(0, 2)
    time.sleep(0.1)

    assert publish(TOPIC, {"n": 3}).partition("-")[0] != first.partition("-")[0]


@pytest.mark.usefixtures("slow_refusals")
def test_the_first_call_after_a_failover_finds_the_next_primary(led, servers):
    """A connection that was refused is remembered by nobody."""
    publish(TOPIC, {"n": 1})
    servers[0].kill()
    with pytest.raises(PublishError):
        publish(TOPIC, {"n": 2})
    led(1, 1)
    time.sleep(primary.ANSWER_TTL)

    publish(TOPIC, {"n": 3})
    assert history(servers[1]) == 1


async def test_tls_leads_to_the_sentinels_and_to_the_primary(three, servers, settings, certificate):
    """``rediss+sentinel://``, with the same authority for both."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    with ExitStack() as stack:
        to_redis = stack.enter_context(Proxy(servers[0].port, context))
        to_sentinels = [stack.enter_context(Proxy(sentinel.host[1], context)) for sentinel in three]
        for sentinel in three:
            sentinel.names = ("127.0.0.1", to_redis.port, 0)
        hosts = ",".join(f"127.0.0.1:{proxy.port}" for proxy in to_sentinels)
        point_to(settings, f"rediss+sentinel://{hosts}/main?ssl_ca_certs={certificate[0]}")
        publish(TOPIC, {"n": 1})
        await apublish(TOPIC, {"n": 2})
        await pipeline._line().close()

    assert history(servers[0]) == 2


async def test_the_way_of_channels_redis_to_name_sentinels_takes_the_same_road(led, servers, three):
    """A dict with ``sentinels`` and ``master_name``, as the one entry of ``hosts``."""
    host = {"sentinels": [sentinel.host for sentinel in three], "master_name": "main"}
    layer = RedisPubSubLayer(hosts=[host])
    channel, told = await layer.new_channel(), asyncio.Event()
    layer.on_resync(channel, told.set)
    await layer.group_add("group", channel)
    servers[0].kill()
    led(1, 1)
    async with asyncio.timeout(scaled(5)):
        await told.wait()
        await layer.group_send("group", {"type": "x"})
        assert await layer.receive(channel) == {"type": "x"}
    await layer.flush()
