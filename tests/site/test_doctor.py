"""``manage.py notifications_doctor`` on sites that are broken, each in its own way, with real processes."""

import json
import re
import socketserver
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import redis

from notifications.broker.clients import CONNECT_TIMEOUT, SOCKET_TIMEOUT, async_client
from notifications.doctor import ROAD, Finding, Level, broken, redis_server
from notifications.doctor.findings import explain
from notifications.doctor.inlet import examine_inlet
from notifications.doctor.listeners import examine_listeners
from notifications.doctor.redis_server import examine_redis
from project.local_redis import LocalRedis
from tests.clients import RawRedis
from tests.conftest import point_to
from tests.doctor import QUIET, SECRET, ask, start_listeners
from tests.faults import kill_connections, listeners_connections, paused, redis_down
from tests.ports import free_port
from tests.processes import LAYERS, ROOT, Site
from tests.redis_groups import RedisCluster, SentinelGroup
from tests.settings import MIDDLEWARE
from tests.waiting import scaled, wait_for


@pytest.fixture
def quiet_site(new_site: Site) -> Site:
    """A site of which nothing is to be said, without a listener yet."""
    # The default topics of the test settings have a kind that nobody may read.
    new_site.settings = {"NOTIFICATIONS": QUIET, "CHANNEL_LAYER_BACKEND": LAYERS["ours"]}
    return new_site


@pytest.fixture(scope="module")
def lasting_site(
    redis_program: None, migrated_database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    """A site with two listeners that all tests of this file share."""
    settings = {"NOTIFICATIONS": QUIET, "CHANNEL_LAYER_BACKEND": LAYERS["ours"]}
    with Site(tmp_path_factory.mktemp("doctor"), migrated_database, settings=settings) as site:
        start_listeners(site)
        yield site


CONFIG = ("maxmemory", "maxmemory-policy", "client-output-buffer-limit")


@pytest.fixture
def good_site(lasting_site: Site) -> Iterator[Site]:
    """A site of which nothing is to be said; a test may change its settings, its Redis and what it says."""
    client = lasting_site.client()
    settings = lasting_site.settings
    config = {name: client.config_get(name)[name] for name in CONFIG}
    yield lasting_site
    lasting_site.settings, lasting_site.redis_url = settings, None
    for name, value in config.items():
        client.config_set(name, value)
    client.acl_deluser("limited")


# Well.


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_a_site_that_is_well_is_said_to_be_well(quiet_site, settings, layer):
    """On both layers every check is ok, without a database, and nothing of the probe is left in Redis."""
    quiet_site.settings = {
        **quiet_site.settings,
        "CHANNEL_LAYER_BACKEND": layer,
        "INSTALLED_APPS": [app for app in settings.INSTALLED_APPS if app != "notifications.inbox"],
    }
    start_listeners(quiet_site)
    server = quiet_site.start_server("uvicorn", options=["--ws-max-size", "16384"])
    quiet_site.database.unlink()

    report = ask(quiet_site, "--fail-level", "WARNING", "--site", f"http://{server.address}/")

    assert report.levels("warning", "error", "skipped") == []
    assert (report.returncode, report.broken) == (0, None)
    assert "both messages reached a socket" in report.of("socket")
    assert "both messages reached an HTTP stream" in report.of("stream")
    assert f"http://{server.address}/notifications/stream/ answers over HTTP" in report.of("server")
    assert layer in report.of("layer")
    assert not quiet_site.database.exists()
    left = [key for key in quiet_site.client().keys("*") if b"doctor" in key and b":once:" not in key]
    assert left == []


def test_it_is_read_by_people_line_by_line(quiet_site):
    """Without --json there is a line for each finding, a hint below it, and the broken hop at the end."""
    quiet_site.settings = {**quiet_site.settings, "ASGI_APPLICATION": "tests.testsite.strange_asgi.without_websocket"}
    start_listeners(quiet_site)

    done = quiet_site.run("notifications_doctor", seconds=40)

    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert lines[0].startswith("ok       versions    Python 3")
    at = next(number for number, line in enumerate(lines) if line.startswith("error    socket "))
    assert "→ Mount notifications.routing.websocket_urlpatterns in asgi.py" in lines[at + 1]
    assert done.stderr.strip().endswith("CommandError: broken: socket (channel layer → socket)")


# Redis.


def test_redis_down(quiet_site):
    """A Redis that is not there is the Redis, with its address and without the password."""
    quiet_site.redis_url = quiet_site.redis.url.replace("//", f"//:{SECRET}@")
    with redis_down(quiet_site.redis):
        report = ask(quiet_site)

    assert (report.returncode, report.broken) == (1, "redis")
    assert "***@127.0.0.1" in report.of("redis")
    assert "Is Redis running" in report.of("redis")
    assert set(report.levels("skipped")) == set(ROAD) - {"settings", "redis"}


def test_redis_hangs(quiet_site):
    """A Redis that accepts and says nothing is told from one that is not there."""
    with paused(quiet_site.redis.child):
        report = ask(quiet_site)

    assert report.broken == "redis"
    assert "does not answer" in report.of("redis")


async def test_a_doctor_that_a_busy_machine_holds_up_does_not_blame_redis(live_redis, monkeypatch):
    """What it waits for has come while it did not run itself."""

    async def hear_late(client: redis.asyncio.Redis) -> dict[str, Any]:
        time.sleep(CONNECT_TIMEOUT + SOCKET_TIMEOUT + 0.2)  # noqa: ASYNC251  nothing runs meanwhile
        return await info(client)

    info = redis_server._info
    monkeypatch.setattr(redis_server, "_info", hear_late)

    assert broken(await examine_redis()) is None


def test_redis_has_all_the_clients_it_may_have(quiet_site):
    """That it takes no more connections is said as such each time, however early it hangs up."""
    quiet_site.client().config_set("maxclients", 1)
    reports = [ask(quiet_site) for _ in range(2)]

    for report in reports:
        assert report.broken == "redis"
        assert "takes no more connections (maxclients)" in report.of("redis")
        assert "Raise maxclients" in report.of("redis")


@pytest.mark.parametrize("user", ["", "nobody"])
def test_wrong_password(quiet_site, user):
    """A wrong password, or one that is missing, is named as such and not shown."""
    quiet_site.client().config_set("requirepass", "another")
    quiet_site.redis_url = quiet_site.redis.url.replace("//", f"//{user}:{SECRET}@")
    wrong = ask(quiet_site)
    quiet_site.redis_url = quiet_site.redis.url
    missing = ask(quiet_site)

    for report in (wrong, missing):
        assert report.broken == "redis"
        assert "Look at the user and the password in REDIS_URL" in report.of("redis")


@pytest.fixture
def account(good_site):
    """Return a function that lets the doctor use an account with all rights but some."""

    def limit(*rules: str) -> None:
        client = good_site.client()
        client.execute_command("ACL", "SETUSER", "limited", "reset", "on", f">{SECRET}", "~*", "&*", "+@all", *rules)
        good_site.redis_url = good_site.redis.url.replace("//", f"//limited:{SECRET}@")

    return limit


@pytest.mark.parametrize("command", ["publish", "evalsha", "xadd", "hset", "psubscribe", "subscribe", "info"])
def test_an_account_that_may_not(good_site, account, command):
    """A command that the account lacks is named, with what to add."""
    account(f"-{command}")

    report = ask(good_site)

    assert report.broken == "rights"
    assert f"+{command}" in report.of("rights")
    assert "Redis accounts" in report.of("rights")


@pytest.mark.parametrize(
    "rules",
    [
        ("resetkeys", "~other:*"),
        ("resetchannels", "&notifications:*", "&user:*", "&asgi*"),
        ("resetchannels", "&user:*", "&upload:*", "&asgi*"),
    ],
    ids=["keys", "a kind", "stamped"],
)
def test_an_account_that_may_not_reach(good_site, account, rules):
    """Rights on keys and channels that are missing are named, too."""
    account(*rules)

    report = ask(good_site)

    assert report.broken == "rights"
    assert "Redis accounts" in report.of("rights")


@pytest.mark.parametrize(
    ("channels", "missing"),
    [
        (["&user:*", "&upload:*", "&asgi*", "&notifications:control"], "&notifications:*"),
        (["&user:*", "&upload:*", "&asgi*", "&notifications:stamped"], "&notifications:control"),
        (["&user:*", "&notifications:*", "&asgi*"], "&user:* &upload:*"),
        (["&user:*", "&upload:*", "&notifications:*"], "&asgi*"),
    ],
    ids=["stamped", "control", "a kind", "groups"],
)
def test_the_channel_that_an_account_lacks_is_named(good_site, account, channels, missing):
    """Redis does not say which channel it refuses; the doctor says what to add, also to hear whose access ends."""
    account("resetchannels", *channels)

    report = ask(good_site)

    assert report.broken == "rights"
    assert f"{missing};" in report.of("rights")
    assert "+publish" not in report.of("rights")


def test_redis_evicts(good_site):
    """A policy that throws histories away is a warning: things work until memory is short."""
    client = good_site.client()
    client.config_set("maxmemory", "500mb")
    client.config_set("maxmemory-policy", "allkeys-lru")

    report = ask(good_site, "--fail-level", "WARNING")

    assert (report.returncode, report.broken) == (1, None)
    assert report.levels("warning") == ["redis"]
    assert "maxmemory-policy is allkeys-lru" in report.of("redis", "warning")


def test_redis_is_full(good_site):
    """A Redis that refuses writes for want of memory is named at the publisher."""
    good_site.client().config_set("maxmemory", 1)

    report = ask(good_site)

    assert report.broken == "publish"
    assert "Redis is full: raise maxmemory" in report.of("publish")


def test_a_node_of_a_cluster(redis_program, migrated_database, tmp_path):
    """One node has the keys of some topics only; how the cluster is named is told before anything is tried."""
    site = Site(tmp_path, migrated_database, redis_options=["--cluster-enabled", "yes"])
    # A cluster's servers speak to one another at a port 10,000 above; Redis 6.2 lets nobody choose another.
    site.redis.port = free_port(below=10_000)
    with site:
        report = ask(site)

    assert report.broken == "redis"
    assert "Write redis+cluster://" in report.of("redis")
    assert "publish" in report.levels("skipped")


def test_a_cluster(redis_program, migrated_database, tmp_path):
    """What is said of a server is said of each primary, and of all of them what only a cluster has."""
    settings = {"NOTIFICATIONS": QUIET, "CHANNEL_LAYER_BACKEND": LAYERS["ours"]}
    site = Site(tmp_path, migrated_database, settings=settings)
    with site, RedisCluster(replicas=1) as cluster:
        site.redis_url = cluster.url
        for _ in range(2):
            site.start_listener(ready="listening on")
        wait_for(lambda: ask(site).broken is None, 30)
        report = ask(site)

        assert "a cluster of 3 primaries" in report.of("redis", "ok")
        warnings = report.of("redis", "warning")
        assert "has no replica" in warnings
        assert "cluster-require-full-coverage is yes" in warnings
        assert "SHARDS is 1, so 1 of the cluster's 3 primaries are used → Set SHARDS to 64" in warnings
        assert report.of("rights", "ok")
        assert report.of("listener", "ok")

        site.settings = {**settings, "NOTIFICATIONS": {**QUIET, "SHARDS": 16}}
        warnings = ask(site).of("redis", "warning")
        assert "SHARDS is 16, of which 8 are at one of the cluster's 3 primaries → Set SHARDS to 64" in warnings

        site.settings = {**settings, "NOTIFICATIONS": {**QUIET, "SHARDS": 64}}
        for node in cluster.nodes:
            cluster.client(node).config_set("cluster-require-full-coverage", "no")
        cluster.client(cluster.nodes[0]).config_set("maxmemory-policy", "allkeys-lru")
        report = ask(site)
        warnings = report.of("redis", "warning")
        assert "SHARDS" not in warnings
        assert "full-coverage" not in warnings
        assert f"127.0.0.1:{cluster.nodes[0].port}: maxmemory-policy is allkeys-lru" in warnings

        victim = next(node for node in cluster.nodes[1:3])
        cluster.kill(victim)
        report = ask(site)
        assert report.broken == "redis"
        assert f"127.0.0.1:{victim.port} of the cluster's 3 primaries do not answer" in report.of("redis", "error")


def test_a_replica(quiet_site):
    """A replica takes no writes."""
    with LocalRedis() as primary:
        quiet_site.client().replicaof("127.0.0.1", primary.port)
        report = ask(quiet_site)

    assert report.broken == "redis"
    assert "replica" in report.of("redis", "error")


def test_sentinels(quiet_site):
    """Each is asked: all is well, then one is gone, then one names an address that it should not, then all are gone."""
    with SentinelGroup() as group:
        quiet_site.redis, quiet_site.redis_url = group.servers[0], group.url
        start_listeners(quiet_site)
        well = ask(quiet_site)
        group.kill(group.sentinels[0])
        one_gone = ask(quiet_site)
        for sentinel in group.sentinels[1:]:
            group.kill(sentinel)
        all_gone = ask(quiet_site)
        primary = group.servers[0]
        quiet_site.redis_url = f"redis+sentinel://127.0.0.1:{primary.port}/main"
        no_sentinel = ask(quiet_site)

    assert well.broken is None
    assert f"3 Sentinels agree that main is 127.0.0.1:{primary.port}; quorum 2, 1 replica(s)" in well.of("redis", "ok")
    assert well.of("listener", "ok")
    assert one_gone.broken is None
    assert f"Sentinel 127.0.0.1:{group.sentinels[0].port} does not help" in one_gone.of("redis", "warning")
    assert all_gone.broken == no_sentinel.broken == "redis"
    assert "unknown command" in no_sentinel.of("redis").lower()


def test_a_small_buffer_for_subscribers(good_site):
    """A burst would cut listeners off: a warning."""
    good_site.client().config_set("client-output-buffer-limit", "pubsub 1mb 1mb 60")

    report = ask(good_site)

    assert (report.returncode, report.broken) == (0, None)
    assert "cuts a subscriber off at 1048576 bytes" in report.of("redis", "warning")


# Listeners.


@pytest.mark.parametrize(("layer", "how"), [("ours", "arrives"), ("channels_redis", "comes from the history, late")])
def test_no_listener(quiet_site, layer, how):
    """Nobody listens: a raw message is lost; a published one arrives, or on other layers comes from the history."""
    quiet_site.settings = {**quiet_site.settings, "CHANNEL_LAYER_BACKEND": LAYERS[layer]}

    report = ask(quiet_site)

    assert report.broken == "listeners"
    assert "Run manage.py run_listener" in report.of("listeners")
    assert f"what other programs publish is lost, and what publish_* send {how}" in report.of("listeners")
    assert f"what publish_* send {how}" in report.of("socket")
    assert f"what publish_* send needs {'no' if layer == 'ours' else 'a'} listener" in report.of("layer", "ok")


def test_one_listener(quiet_site):
    """One is enough for today: a warning."""
    start_listeners(quiet_site, 1)

    report = ask(quiet_site)

    assert report.broken is None
    assert "only one listener" in report.of("listeners", "warning")


@pytest.mark.slow
def test_a_paused_listener(quiet_site):
    """A listener that hangs is named with its process, whether its last report is fresh or not."""
    [listener] = start_listeners(quiet_site, 1)
    with paused(listener):
        fresh = ask(quiet_site)
        stale = ask(quiet_site)

    for report in (fresh, stale):
        assert report.broken in ("listeners", "listener")
        assert f":{listener.pid} was holder and has said nothing for" in report.of("listeners")
    assert stale.broken == "listeners"


@pytest.mark.slow
def test_a_paused_holder_beside_another(quiet_site):
    """The other takes over while the doctor waits: nothing is broken, and the next time it is said who hangs."""
    start_listeners(quiet_site)
    client = quiet_site.client()
    states = {json.loads(state)["pid"]: json.loads(state)["state"] for state in client.hvals("notifications:listeners")}
    [holder] = [pid for pid, state in states.items() if state == "holder"]

    class Holder:
        pid = holder

    with paused(Holder()):
        ask(quiet_site)
        report = ask(quiet_site)

    assert report.broken is None
    assert f":{holder} was holder and has said nothing" in report.of("listeners", "warning")


@pytest.mark.parametrize(
    ("states", "hang"),
    [
        ({1: ("holder", 3.0), 2: ("holder", 0.1)}, [1]),
        ({1: ("holder", 0.2), 2: ("holder", 0.1)}, []),  # it gives the lease back, and is about to say so
        ({1: ("holder", 3.0), 2: ("stand-by", 0.1)}, []),
        ({1: ("stand-by", 3.0), 2: ("holder", 0.1)}, []),
        ({1: ("stand-by", 6.0), 2: ("holder", 0.1)}, [1]),
        ({1: ("holder", 9.0), 2: ("holder", 6.0)}, [1, 2]),
        ({1: ("holder", -3590.0), 2: ("holder", 0.1)}, [1]),  # Redis's clock was set back by an hour when it died
    ],
)
async def test_who_hangs_is_told_by_age_and_by_a_successor(live_redis, states, hang):
    """There is one holder: of two the one that has been silent for longer has lost the lease without knowing it."""
    seconds, microseconds = live_redis.time()
    for pid, (state, age) in states.items():
        report = {"host": "h", "pid": pid, "state": state, "forwarded": 0, "at": seconds + microseconds / 1e6 - age}
        live_redis.hset("notifications:listeners", f"h:{pid}", json.dumps(report))

    found = await examine_listeners(await async_client(), direct=True)

    silent = [finding.text for finding in found if "has said nothing" in finding.text]
    assert not any("-" in text.partition("has said nothing")[2] for text in silent)
    assert [text.partition(" was ")[0] for text in silent] == [f"h:{pid}" for pid in hang]
    assert not any(f"h:{pid} " in finding.text for finding in found if finding.level == Level.OK for pid in hang)


async def test_listeners_are_listed_in_one_order(live_redis):
    """By host and process, whatever order Redis has them in: two runs can be compared by eye."""
    names = [("a", 9), ("a", 10), ("a", 100), ("b", 1), ("b", 7), ("c", 2)]
    seconds, _ = live_redis.time()
    for host, pid in reversed(names):
        report = {"host": host, "pid": pid, "state": "stand-by", "forwarded": 0, "at": seconds}
        live_redis.hset("notifications:listeners", f"{host}:{pid}", json.dumps(report))

    [finding] = await examine_listeners(await async_client(), direct=True)

    assert re.findall(r"(\w):(\d+) stand-by", finding.text) == [(host, str(pid)) for host, pid in names]


async def look_at_the_inlet():
    return await examine_inlet(await async_client())


async def test_the_inlet_is_examined(live_redis, settings):
    """What waits too long or is nearly too much, and what was refused and why; a stream that is not used is well."""
    [finding] = await look_at_the_inlet()
    assert (finding.check, finding.level, finding.text) == ("inlet", Level.OK, "nothing waits in the inlet")

    live_redis.xadd("notifications:inlet", {"topic": "user:1", "data": "{}"})
    [finding] = await look_at_the_inlet()
    assert finding.level == Level.OK
    assert re.fullmatch(r"1 entries wait in the inlet, the oldest for \d s", finding.text)

    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "INLET_SIZE": 1}
    [finding] = await look_at_the_inlet()
    assert finding.level == Level.WARNING
    assert "INLET_SIZE" in finding.hint
    del settings.NOTIFICATIONS["INLET_SIZE"]

    live_redis.delete("notifications:inlet")
    seconds, _ = live_redis.time()
    live_redis.xadd("notifications:inlet", {"topic": SECRET, "data": SECRET}, id=f"{(seconds - 100) * 1000}-1")
    live_redis.xadd("notifications:inlet:refused", {"id": "1-1", "reason": "MessageError: not JSON", "data": SECRET})
    waits, refused = await look_at_the_inlet()
    assert (waits.level, refused.level) == (Level.WARNING, Level.WARNING)
    assert re.fullmatch(r"1 entries wait in the inlet, the oldest for 10\d s", waits.text)
    assert refused.text == "1 entries of the inlet were refused, the latest because of MessageError: not JSON"
    assert SECRET not in str([waits, refused])


async def test_the_inlets_of_all_shards_are_examined(live_redis, settings):
    """As one; and the inlet that the site had before, to which a program may still append."""
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "SHARDS": 4}
    seconds, _ = live_redis.time()
    for shard, age in ((0, 0), (3, 100)):
        live_redis.xadd(
            f"{{notifications:{shard}}}:inlet", {"topic": "user:1", "data": "{}"}, id=f"{seconds - age}000-1"
        )
    live_redis.xadd("{notifications:2}:inlet:refused", {"id": "1-1", "reason": "MessageError: not JSON"})
    live_redis.xadd("notifications:inlet", {"topic": "user:1", "data": "{}"})

    waits, refused, forgotten = await look_at_the_inlet()

    assert re.fullmatch(r"2 entries wait in the inlet, the oldest for 10\d s", waits.text)
    assert "XREVRANGE {notifications:2}:inlet:refused" in refused.hint
    assert forgotten.text.startswith("1 entries wait in notifications:inlet, which nobody reads")
    assert "{notifications:0}:inlet" in forgotten.hint


async def test_a_key_that_is_not_the_inlet_is_told(live_redis):
    """Somebody else uses it: nothing can be appended or read."""
    live_redis.set("notifications:inlet", "x")

    [finding] = await look_at_the_inlet()

    assert finding.level == Level.ERROR
    assert "DEL notifications:inlet" in finding.hint


@pytest.mark.parametrize("command", ["xread", "xdel", "xlen", "xtrim"])
async def test_the_right_to_empty_the_inlet_that_an_account_lacks_is_named(live_redis, settings, command):
    """As with the account of an earlier version: a warning for who does not use it, an error as soon as it does."""
    rules = ["reset", "on", f">{SECRET}", "~*", "&*", "+@all", f"-{command}"]
    live_redis.execute_command("ACL", "SETUSER", "limited", *rules)
    point_to(settings, settings.NOTIFICATIONS["REDIS_URL"].replace("//", f"//limited:{SECRET}@"))
    try:
        [finding] = await look_at_the_inlet()
        assert finding.level == Level.WARNING
        assert f"+{command};" in finding.hint
        live_redis.xadd("notifications:inlet", {"topic": "user:1", "data": "{}"})
        [finding] = await look_at_the_inlet()
        assert finding.level == Level.ERROR
    finally:
        live_redis.acl_deluser("limited")


def test_a_disconnected_listener(quiet_site):
    """A listener that runs and may not subscribe is said to be disconnected, and why."""
    [listener] = start_listeners(quiet_site, 1)
    client = quiet_site.client()
    client.execute_command("ACL", "SETUSER", "limited", "reset", "on", f">{SECRET}", "~*", "&*", "+@all")
    quiet_site.redis_url = quiet_site.redis.url.replace("//", f"//limited:{SECRET}@")
    client.execute_command("ACL", "SETUSER", "default", "-psubscribe")
    kill_connections(client, listeners_connections(client))
    wait_for(lambda: b'"disconnected' in b"".join(client.hvals("notifications:listeners")))

    report = ask(quiet_site)

    assert report.broken == "listeners"
    assert f":{listener.pid} is disconnected: " in report.of("listeners")
    assert "psubscribe" in report.of("listeners")


def test_listeners_of_another_prefix(quiet_site):
    """Listeners that run with another PREFIX are not ours; the doctor says that they are there."""
    quiet_site.settings = {**quiet_site.settings, "NOTIFICATIONS": {**QUIET, "PREFIX": "shop:"}}
    quiet_site.start_listener()
    quiet_site.settings = {**quiet_site.settings, "NOTIFICATIONS": QUIET}

    with quiet_site.client().pubsub() as more:  # Redis lists them in any order; the doctor names the first
        more.subscribe(*(f"shopz{n}:notifications:stamped" for n in range(10)))
        more.get_message(timeout=scaled())
        report = ask(quiet_site)

    assert report.broken == "listeners"
    assert "there is one with PREFIX 'shop:'" in report.of("listeners")


# The channel layer.


@contextmanager
def layer(site: Site, **config: Any) -> Iterator[None]:
    """Give the processes that are started meanwhile another layer than the site's."""
    before = site.settings
    layer = {"BACKEND": LAYERS["ours"], "CONFIG": {"hosts": [site.redis.url], **config}}
    site.settings = {**before, "CHANNEL_LAYERS": {"default": layer}}
    site.settings.pop("CHANNEL_LAYER_BACKEND", None)
    try:
        yield
    finally:
        site.settings = before


@pytest.mark.parametrize("how", ["another Redis", "another prefix"])
def test_the_listeners_layer_is_another(quiet_site, how):
    """Listeners that forward to where no socket looks are found out, and named as that hop."""
    with ExitStack() as stack:
        if how == "another Redis":
            stack.enter_context(layer(quiet_site, hosts=[stack.enter_context(LocalRedis()).url]))
        else:
            stack.enter_context(layer(quiet_site, prefix="other"))
        start_listeners(quiet_site)
        quiet_site.settings = {"NOTIFICATIONS": QUIET, "CHANNEL_LAYER_BACKEND": LAYERS["ours"]}
        report = ask(quiet_site)

    assert report.broken == "forward"
    assert "backend, hosts and prefix" in report.of("forward")
    assert "a listener stamped a raw message" in report.of("listener")


def test_the_layers_redis_is_down(quiet_site):
    """A layer on a Redis that is not there is the layer, and the rest of the road is still examined."""
    with layer(quiet_site, hosts=["redis://127.0.0.1:1/0"]):
        report = ask(quiet_site)

    assert report.broken == "layer"
    assert "does not carry a message" in report.of("layer")
    assert "Redis accepted the message" in report.of("publish", "ok")


def test_the_layer_in_memory(good_site):
    """A layer that exists in one process only carries the doctor's own message, and is an error nevertheless."""
    good_site.settings = {
        "NOTIFICATIONS": QUIET,
        "CHANNEL_LAYERS": {"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}},
    }

    report = ask(good_site)

    assert report.broken == "layer"
    assert "exists in one process only" in report.of("layer")


def test_the_core_layer(quiet_site):
    """The layer that drops silently is a warning."""
    host = {"address": quiet_site.redis.url, "socket_timeout": 15}
    core = {"BACKEND": "channels_redis.core.RedisChannelLayer", "CONFIG": {"hosts": [host]}}
    quiet_site.settings = {"NOTIFICATIONS": QUIET, "CHANNEL_LAYERS": {"default": core}}
    start_listeners(quiet_site)

    report = ask(quiet_site)

    assert report.broken is None
    assert "drops messages silently above 100" in report.of("layer", "warning")


# The application.


@pytest.mark.parametrize(
    ("application", "said"),
    [
        ("tests.testsite.strange_asgi.without_websocket", "No application configured for scope type 'websocket'"),
        ("tests.testsite.strange_asgi.elsewhere", "No route found for path"),
        ("tests.testsite.asgi.http", "Django can only handle ASGI/HTTP connections"),
        ("tests.testsite.strange_asgi.echo", "did not say auth_success"),
        ("tests.nowhere.application", "ASGI_APPLICATION cannot be imported"),
    ],
)
def test_an_application_without_our_websocket(good_site, application, said):
    """Whatever answers at our address instead is named as the application's fault."""
    good_site.settings = {**good_site.settings, "ASGI_APPLICATION": application}

    report = ask(good_site)

    assert report.broken == "socket"
    assert said in report.of("socket")
    assert "asgi.py" in report.of("socket")
    assert report.levels("error") == ["socket"]


def test_another_address(good_site):
    """With --path the doctor asks elsewhere."""
    report = ask(good_site, "--path", "/live/")

    assert report.broken == "socket"
    assert "raised at /live/" in report.of("socket")


def test_a_site_below_a_path(good_site):
    """The doctor asks the address that the tag prints, and both roads of a proxy lead to a socket."""
    good_site.settings = {**good_site.settings, "FORCE_SCRIPT_NAME": "/app"}

    report = ask(good_site)
    stripped = ask(good_site, "--path", "/ws/notifications/")

    for each in (report, stripped):
        assert each.levels("warning", "error") == []
        assert "both messages" in each.of("socket", "ok")


@pytest.mark.parametrize(
    ("application", "level", "said"),
    [
        ("below_no_path", "warning", "at /app/ws/notifications/: ValueError: No route found"),
        ("elsewhere", "error", "raised at /app/ws/notifications/"),
    ],
)
def test_a_site_below_a_path_of_which_its_routes_do_not_know(good_site, application, level, said):
    """A route that only a stripping proxy reaches is a warning, as it may be one; none at all is an error."""
    application = f"tests.testsite.strange_asgi.{application}"
    good_site.settings = {**good_site.settings, "FORCE_SCRIPT_NAME": "/app", "ASGI_APPLICATION": application}

    report = ask(good_site)

    assert said in report.of("socket", level)
    assert ("both messages" in report.of("socket")) == (level == "warning")


def test_a_site_that_answers_to_no_host(good_site):
    """ALLOWED_HOSTS that allow nothing refuse every page."""
    good_site.settings = {**good_site.settings, "ALLOWED_HOSTS": []}

    report = ask(good_site)

    assert report.broken == "socket"
    assert "See ALLOWED_HOSTS" in report.of("socket")


def test_a_site_that_knows_its_users_otherwise(good_site):
    """What the doctor cannot prove is a warning that says so."""
    good_site.settings = {**good_site.settings, "ASGI_APPLICATION": "tests.testsite.strange_asgi.own_users"}

    report = ask(good_site)

    assert report.broken is None
    assert "not proven" in report.of("socket", "warning")


def test_an_application_that_asks_no_session(good_site):
    """Without AuthMiddlewareStack only sockets with tokens get in: a warning, while the road itself is well."""
    good_site.settings = {**good_site.settings, "ASGI_APPLICATION": "tests.testsite.strange_asgi.without_sessions"}

    report = ask(good_site)

    assert report.broken is None
    assert "SessionAuthMiddlewareStack" in report.of("socket", "warning")
    assert "both messages" in report.of("socket", "ok")


def test_an_application_behind_channels_own_middleware(good_site):
    """It works, and may log users out: a warning that says what to put in its place."""
    good_site.settings = {**good_site.settings, "ASGI_APPLICATION": "tests.testsite.strange_asgi.channels_own"}

    report = ask(good_site)

    assert report.broken is None
    assert "SessionAuthMiddlewareStack" in report.of("socket", "warning")
    assert "both messages" in report.of("socket", "ok")


# The HTTP stream.


def test_a_stream_that_is_not_mounted(good_site):
    """It is a hint and nothing more: the WebSocket works without."""
    good_site.settings = {**good_site.settings, "ROOT_URLCONF": "tests.testsite.strange_urls"}

    report = ask(good_site, "--fail-level", "WARNING")

    assert (report.returncode, report.levels("skipped")) == (0, ["stream", "server"])
    assert 'Add path("notifications/", include("notifications.urls"))' in report.of("stream", "skipped")


@pytest.mark.parametrize(
    ("middleware", "said"),
    [
        ("django.contrib.auth.middleware.LoginRequiredMiddleware", ""),
        (
            "tests.testsite.strange_urls.to_the_login",
            "not answered by the stream's view: 302, a redirect to /login/",
        ),
    ],
)
def test_a_middleware_that_asks_everybody_to_log_in(good_site, middleware, said):
    """Django's own lets the stream through; one of the site's that does not is found before anybody needs it."""
    good_site.settings = {**good_site.settings, "MIDDLEWARE": [*MIDDLEWARE, middleware]}

    report = ask(good_site)

    assert report.broken is None
    assert said in report.of("stream", "warning")
    assert bool(report.of("stream", "warning")) == bool(said)
    assert "both messages reached an HTTP stream" in report.of("stream", "ok")


# The running site.


@pytest.mark.parametrize(
    ("kind", "options", "level", "said"),
    [
        ("uvicorn alone", [], "warning", "takes a frame of 16385 bytes and inflates what is compressed"),
        ("uvicorn alone", ["--ws-max-size", "16384"], "ok", "the server refuses a frame of 16385 bytes"),
        ("uvicorn", [], "ok", "the server refuses a frame of 16385 bytes"),
        ("daphne", [], "ok", "takes a frame of 16385 bytes, but inflates nothing"),
    ],
)
def test_how_large_a_frame_the_running_site_takes(good_site, kind, options, level, said):
    """One frame that is a little too large says whether anybody may fill the server's memory; the site bears it."""
    server = good_site.start_server(kind, options=options)
    try:
        report = ask(good_site, "--site", f"http://{server.address}")
    finally:
        server.terminate(20)

    assert report.broken is None
    assert f"http://{server.address}/ws/notifications/ opens a WebSocket" in report.of("server", level)
    assert said in report.of("server", level)
    assert ("--ws-max-size 16384" in report.of("server")) == (level == "warning")
    assert "Traceback" not in server.output


def test_without_an_address_the_running_site_is_not_asked(good_site):
    """Nobody guesses where the site runs; the doctor says that it has not asked."""
    report = ask(good_site)

    assert report.levels("skipped") == ["server"]
    assert "no address was given → Give one: --site" in report.of("server", "skipped")


def test_a_running_site_that_has_its_sockets_elsewhere(good_site):
    """What pages are told and what the running site has are compared: a status that opens nothing is the site's."""
    good_site.settings = {**good_site.settings, "FORCE_SCRIPT_NAME": "/app"}
    server = good_site.start_server("daphne")
    url = f"http://{server.address}"
    try:
        told, stripped, wrong = ask(good_site, "--site", url), ask(good_site, "--site", f"{url}/app/"), "/elsewhere"
        mistaken = ask(good_site, "--site", f"{url}{wrong}/")
        explicit = ask(good_site, "--site", f"{url}{wrong}/", "--path", "/ws/notifications/")
    finally:
        server.terminate(20)

    for report in (told, stripped):
        assert f"{url}/app/ws/notifications/ opens" in report.of("server", "ok")
    assert mistaken.broken == "server"
    assert f"{url}{wrong}/ws/notifications/ does not open a WebSocket: 500" in mistaken.of("server", "error")
    assert f"{url}/ws/notifications/ opens" in explicit.of("server", "ok")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"HTTP/1.1 502 Bad Gateway\r\n\r\n", "does not open a WebSocket: 502 → The proxy does not reach"),
        (
            b"HTTP/1.1 301 Moved\r\nLocation: https://x/ws/notifications/\r\n\r\n",
            "give the address that it redirects to",
        ),
        (b"HTTP/1.1 302 Found\r\nLocation: /login/?next=s3cret-of-nobody\r\n\r\n", "302, a redirect to /login/ → It"),
        (b"HTTP/1.1 400 Bad\r\n\r\n", "400, as to any request → Let the proxy pass Host on unchanged"),
        (b"HTTP/1.1 403 Forbidden\r\n\r\n", "403, whatever the origin → A rule of the proxy"),
        (
            b"HTTP/1.1 200 OK\r\nServer: cloudflare\r\n\r\n",
            "200 from Cloudflare, as to a request for a page: Upgrade did",
        ),
        (bytes.fromhex("00000c04000000000000"), "speaks HTTP/2 only"),
        (b"220 mail ready\r\n\r\n", "does not answer: what answers there is no web server"),
        (b"nonsense\r\n\r\n", "does not answer"),
        (b"x" * 100_000, "does not answer"),
        (b"", "does not answer"),
    ],
    ids=["502", "301", "login", "400", "403", "200", "HTTP/2", "mail", "nonsense", "endless", "nothing"],
)
def test_what_answers_instead_of_the_site(good_site, answer, said):
    """Whatever answers at the address, it is named as the running site's fault, without a stack trace."""
    with socketserver.TCPServer(("127.0.0.1", 0), answering(answer)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            report = ask(good_site, "--site", f"http://127.0.0.1:{server.server_address[1]}")
        finally:
            server.shutdown()
            thread.join()

    assert report.broken == "server"
    assert said in report.of("server", "error")


def answering(answer: bytes) -> type[socketserver.BaseRequestHandler]:
    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(4096)
            self.request.sendall(answer)

    return Handler


@pytest.mark.parametrize("address", ["example.com", "ftp://example.com", "http://", "http://[", f"http://h:{SECRET}"])
def test_an_address_that_is_none(good_site, address):
    """--site takes the address of a page; anything else is said to be none."""
    report = ask(good_site, "--site", address)

    assert report.broken == "server"
    assert "--site is no address of a site" in report.of("server", "error")


def test_a_running_site_that_is_not_there(good_site):
    """A site that does not run is named, with its address."""
    report = ask(good_site, "--site", f"http://127.0.0.1:{free_port()}")

    assert report.broken == "server"
    assert "does not answer" in report.of("server", "error")


# Settings.


def test_an_authorize_that_cannot_be_imported(good_site):
    """It is named with its kind; the road of other messages is still examined."""
    topics = {"upload": {"AUTHORIZE": "tests.testsite.permissions.nothing"}}
    good_site.settings = {**good_site.settings, "NOTIFICATIONS": {"TOPICS": topics}}

    report = ask(good_site)

    assert report.broken == "settings"
    assert "TOPICS['upload']['AUTHORIZE'] cannot be imported" in report.of("settings", "error")
    assert "both messages" in report.of("socket", "ok")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("fail", "raised for an id that nothing has, as any browser may send, which is a no: RuntimeError in strange_"),
        ("lose_the_database", "could not answer, so nobody may subscribe: OperationalError in strange_permissions.py"),
        ("answer_late", "could not answer, so nobody may subscribe: TimeoutError"),
    ],
)
def test_an_authorize_that_raises(good_site, function, said):
    """It is asked, as any browser may ask it, and named with its kind and its line, without its words."""
    topics = {"upload": {"AUTHORIZE": f"tests.testsite.strange_permissions.{function}"}}
    good_site.settings = {**good_site.settings, "NOTIFICATIONS": {"TOPICS": topics}}

    report = ask(good_site)

    assert report.broken is None
    assert f"AUTHORIZE of kind 'upload' {said}" in report.of("settings", "warning")


def test_an_authorize_that_refuses_what_is_no_id(good_site):
    """A function that raises what Django says of an id that is none, or that is not there, is well."""
    topics = {"upload": {"AUTHORIZE": "tests.testsite.strange_permissions.refuse"}}
    good_site.settings = {**good_site.settings, "NOTIFICATIONS": {"TOPICS": topics}}

    assert ask(good_site).levels("warning", "error") == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("forget_some", "did not return a list of True and False, one for each of 3 pair(s)"),
        ("fail_for_many", "raised for ids that nothing has, as any browser may send: RuntimeError in strange_permi"),
    ],
)
def test_an_authorize_many_that_answers_nothing(good_site, function, said):
    """It is asked about one pair and about several."""
    topics = {"upload": {"AUTHORIZE_MANY": f"tests.testsite.strange_permissions.{function}"}}
    good_site.settings = {**good_site.settings, "NOTIFICATIONS": {"TOPICS": topics}}

    assert f"AUTHORIZE_MANY of kind 'upload' {said}" in ask(good_site).of("settings", "warning")


def test_a_kind_without_authorize(good_site):
    """Nobody may read it, which is a warning: pages may come with grants."""
    good_site.settings = {**good_site.settings, "NOTIFICATIONS": {"TOPICS": {"upload": {}}}}

    assert "'upload': it has no AUTHORIZE" in ask(good_site).of("settings", "warning")


@pytest.mark.parametrize("value", [{"REDIS_URL": ""}, {"PREFIX": "x"}, {"AUTH_TIMEOUT": 0}])
def test_settings_that_cannot_be_read(quiet_site, value):
    """Nothing else is tried, and it is no traceback."""
    quiet_site.settings = {"NOTIFICATIONS": {**QUIET, **value}}

    report = ask(quiet_site)

    assert report.broken == "settings"
    assert set(report.levels("skipped")) == set(ROAD) - {"settings"}


def test_a_history_of_nothing(quiet_site):
    """A site that keeps nothing for users is well: the published message takes the raw road."""
    topics = {**QUIET["TOPICS"], "user": {"HISTORY_SIZE": 0}}
    quiet_site.settings = {**quiet_site.settings, "NOTIFICATIONS": {"TOPICS": topics}}
    start_listeners(quiet_site)

    report = ask(quiet_site)

    assert report.broken is None
    assert "nothing is kept" in report.of("publish")
    assert "both messages" in report.of("socket", "ok")


@pytest.mark.parametrize(
    "clean", ["tests.testsite.strange_permissions.clean_uuid", "tests.testsite.strange_permissions.clean_int"]
)
def test_users_with_other_keys(quiet_site, clean):
    """The doctor's user has a key of the sort that the site takes."""
    topics = {**QUIET["TOPICS"], "user": {"CLEAN_ID": clean}}
    quiet_site.settings = {**quiet_site.settings, "NOTIFICATIONS": {"TOPICS": topics}}
    start_listeners(quiet_site)

    assert ask(quiet_site).broken is None


# Neighbours.


@contextmanager
def publishing(site: Site, channel: str, payload: str) -> Iterator[None]:
    """Publish all the time."""
    stop = threading.Event()

    def run() -> None:
        with RawRedis(site.redis.port) as raw:
            while not stop.wait(0.02):
                raw.publish(channel, payload)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def test_somebody_publishes_something_else_on_our_channels(good_site):
    """Another program that uses user:* for something else is detected; its payloads are not shown."""
    with publishing(good_site, "user:session", SECRET):
        report = ask(good_site)

    assert report.broken is None
    assert "user:session: MessageError" in report.of("neighbours", "warning")
    assert "PREFIX" in report.of("neighbours", "warning")


def test_programs_that_publish_messages_are_what_we_are_for(good_site):
    """A worker that publishes JSON objects on user:* is no neighbour to warn of; that it does is said."""
    with publishing(good_site, "user:1", '{"n":1}'):
        report = ask(good_site)

    assert re.match(
        r"other programs publish messages on user:\* upload:\*, \d+ meanwhile", report.of("neighbours", "ok")
    )


def test_somebody_else_subscribes_to_our_channels(good_site):
    """A subscription to one user's channel is not how we listen: the service that was replaced may still run."""
    client = good_site.client()
    with client.pubsub() as other:
        other.subscribe(*(f"user:{n}" for n in range(10, 30)))
        other.get_message(timeout=scaled())
        report = ask(good_site)

    assert "somebody else subscribes to 'user:10' and 19 more channels" in report.of("neighbours", "warning")


# Words.


@pytest.mark.parametrize(
    ("error", "hint"),
    [
        (redis.ResponseError("MISCONF Errors writing to the AOF file"), "cannot save"),
        (redis.exceptions.OutOfMemoryError("command not allowed when used memory > 'maxmemory'."), "full"),
        (redis.exceptions.ReadOnlyError("You can't write against a read only replica."), "replica"),
        (redis.ConnectionError("max number of clients reached"), "Raise maxclients"),
        (redis.ResponseError("LOADING Redis is loading the dataset in memory"), "wait"),
        (redis.ResponseError("CLUSTERDOWN Hash slot not served"), "full-coverage"),
        (redis.ResponseError("ACL failure in script: User x has no permissions to run the 'xadd' command"), "+xadd"),
        (TimeoutError(), "hang"),
        (ConnectionRefusedError(111, "refused"), "running"),
    ],
    ids=str,
)
def test_every_refusal_has_its_hint(error, hint):
    """Whatever Redis says, the reader learns what to do."""
    assert hint in " ".join(explain(error))


def test_the_first_broken_hop_of_the_road_is_named():
    """Of several errors the first on the road is where to begin."""
    errors = [Finding(check, Level.ERROR, "") for check in ("socket", "listeners", "publish")]

    assert broken(errors) == "publish"
    assert broken([Finding("publish", Level.WARNING, "")]) is None


def test_the_checks_are_documented():
    """docs/operations.md lists every check, in the order in which they are said."""
    text = (ROOT / "docs/operations.md").read_text().partition("<!-- table: doctor -->")[2].partition("\n\n")[0]

    assert re.findall(r"^\| `(\w+)`", text, re.MULTILINE) == ["versions", *ROAD, "inlet", "inbox", "neighbours"]
