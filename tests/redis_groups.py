"""
Groups of Redis servers for tests: a primary that Sentinels watch, and a cluster.

    with SentinelGroup() as group:                 with RedisCluster() as cluster:
        old = group.primary                            node = cluster.node_of("key")
        group.kill(old)                                cluster.kill(node)
        decided = group.wait_for_switch(old)           decided = cluster.wait_for_promotion(node)
        group.start(old)                               cluster.start(node)
        group.wait_until_ok()                          cluster.wait_until_ok()

Each server is a ``LocalRedis`` on 127.0.0.1 with a port of its own, and ends with the tests, whatever ends them. A node
that was killed starts again on its port with the role that its configuration says, as in production, and without data.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from signal import SIGCONT, SIGSTOP
from typing import Any, Final, NamedTuple, Self

import pytest
import redis
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.retry import Retry

from project.local_redis import LocalRedis, RedisStartError, find_server
from tests.ports import free_port
from tests.waiting import scaled, wait_for

VALKEY: Final = "valkey"
REDIS: Final = "redis"
SERVERS: Final = (VALKEY, REDIS)
"""For ``parametrize``: the server that all other tests run on, and the ``redis-server`` of this machine."""
SERVICE: Final = "main"
"""What the Sentinels call the primary."""
DOWN_AFTER_MS: Final = int(scaled(2000))
"""Without an answer for so long, a server is down for one Sentinel. Two busy cores may stop a healthy one for a second,
and a failover nobody wanted may be one to a server that has just come back without data."""
FAILOVER_TIMEOUT_MS: Final = int(scaled(5000))
OFTEN: Final = ("info-period", "1000", "publish-period", "500")
"""ms between two looks of a Sentinel at the servers, and at the others; by itself it takes half a minute for what comes
after a failover, such as to tell the old primary whom to follow."""
NODE_TIMEOUT_MS: Final = int(scaled(1500))
"""Without an answer for so long, a node of a cluster has failed. Two busy cores may stop a healthy one for a second."""
STEADY_TIMEOUT_MS: Final = int(scaled(6000))
"""The same where none fails. After half of it a node cuts a link that is silent, and what was on it is lost: of classic
pub/sub a second without an answer would cost messages at ``NODE_TIMEOUT_MS``."""
SWITCH_SECONDS: Final = 30.0
"""A failover may take so long, before scaling; it usually takes three."""
SLOTS: Final = 16384
REPLICATED: Final = (
    *("--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1"),
    *("--rdb-del-sync-files", "yes"),  # or a replica would begin with what it was once sent
)
"""A replica that comes back follows at once."""


def program(server: str) -> Path | None:
    """
    Return the program of one of ``SERVERS``.

    Skips the test where it is not installed; in CI that is a failure, or nobody would notice.
    """
    if found := find_server() if server == VALKEY else shutil.which("redis-server"):
        return Path(found)
    message = f"{server} is not installed: tests/install_redis"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)


class _Group:
    """Servers that start, break and end together."""

    def __init__(self, server: str) -> None:
        self._program = program(server)
        self._directory = Path()
        self._members: list[LocalRedis] = []
        self._clients: dict[int, redis.Redis] = {}
        self._paused: set[int] = set()

    def __enter__(self) -> Self:
        self._directory = Path(tempfile.mkdtemp(prefix="redis-group-"))
        try:
            self._begin()
            self.wait_until_ok()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for client in self._clients.values():
            client.close()
        for member in self._members:
            if self.is_alive(member):
                member.kill()  # which a paused process obeys, and which waits for no replica
        shutil.rmtree(self._directory, ignore_errors=True)

    def _begin(self) -> None:
        raise NotImplementedError

    def wait_until_ok(self, seconds: float = SWITCH_SECONDS) -> None:
        """
        Wait until the group is whole as far as its members live, and all of them agree on that.

        Raises:
            AssertionError: If it is not within ``seconds``; with what was missing last.

        """
        _wait_until_none(self._missing, seconds)

    def _missing(self) -> Iterator[str]:
        """Give what is not as it should be, in words."""
        raise NotImplementedError

    def kill(self, node: LocalRedis) -> None:
        """End a server as ``kill -9`` does."""
        node.kill()
        self._paused.discard(node.port)

    def pause(self, node: LocalRedis) -> None:
        """Stop a server with SIGSTOP: it keeps its connections and answers nobody."""
        node.child.send_signal(SIGSTOP)
        self._paused.add(node.port)

    def resume(self, node: LocalRedis) -> None:
        node.child.send_signal(SIGCONT)
        self._paused.discard(node.port)

    def start(self, node: LocalRedis) -> None:
        """Start a server that was killed, on its port, without data."""
        node.start()

    def client(self, node: LocalRedis) -> redis.Redis:
        """Return a client of one server, which decodes, waits five seconds at most and tries nothing twice."""
        if node.port not in self._clients:
            # Two busy cores may stop a healthy server for a second; one that is paused is not asked.
            options = {"socket_timeout": scaled(5), "socket_connect_timeout": scaled(5), "decode_responses": True}
            self._clients[node.port] = redis.Redis.from_url(
                node.url, retry=Retry(NoBackoff(), 0), protocol=2, **options
            )
        return self._clients[node.port]

    def is_alive(self, node: LocalRedis) -> bool:
        try:
            return node.child.returncode is None
        except RedisStartError:  # it was never started
            return False

    def _able(self, members: Iterable[LocalRedis]) -> list[LocalRedis]:
        """Return those that can answer."""
        return [each for each in members if self.is_alive(each) and each.port not in self._paused]

    def _member(self, name: str, *options: str, config: str | None = None, port: int | None = None) -> LocalRedis:
        """Make a server with a directory of its own, and with a file of configuration that is its to rewrite."""
        directory = self._directory / name
        directory.mkdir()
        path = None
        if config is not None:
            path = directory / "server.conf"
            path.write_text(config)
        port = free_port() if port is None else port
        member = LocalRedis(*options, port=port, data_dir=directory, program=self._program, config=path)
        self._members.append(member)
        return member


class SentinelGroup(_Group):
    """A primary, its replicas, and the Sentinels that watch them; any of them may be killed, paused and started."""

    def __init__(
        self, *, replicas: int = 1, sentinels: int = 3, server: str = VALKEY, down_after_ms: int = DOWN_AFTER_MS
    ) -> None:
        """
        Prepare it; ``with`` starts it and returns when every Sentinel knows all others.

        Args:
            replicas: How many servers follow the primary at first.
            sentinels: How many watch; more than half of them have to agree.
            server: One of ``SERVERS``.
            down_after_ms: Without an answer for so long, a server is down for one Sentinel. It connects to a new
                primary once a second, so that with no more than that a healthy one may be taken for down.

        """
        super().__init__(server)
        self._down_after_ms = down_after_ms
        self._wanted = replicas, sentinels
        self.servers: list[LocalRedis] = []
        """The primary of the beginning first."""
        self.sentinels: list[LocalRedis] = []

    @property
    def url(self) -> str:
        """Return what ``REDIS_URL`` is for this group."""
        hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis+sentinel://{hosts}/{SERVICE}"

    @property
    def primary(self) -> LocalRedis:
        """The server that the Sentinels call the primary, by the latest decision that one of them knows of."""
        _, port = max(self._named())
        [primary] = [server for server in self.servers if server.port == port]
        return primary

    @property
    def replica(self) -> LocalRedis:
        """One of the others that can answer."""
        primary = self.primary
        first, *_ = [server for server in self._able(self.servers) if server is not primary]
        return first

    def failover(self) -> LocalRedis:
        """Have a Sentinel change the primary while all live, and return the new one when it is decided."""
        old = self.primary
        sentinel = self._able(self.sentinels)[0]
        # Soon after the last one, a Sentinel refuses another.
        wait_for(lambda: self._does(sentinel, "SENTINEL", "FAILOVER", SERVICE), SWITCH_SECONDS, "a failover begins")
        self.wait_for_switch(old)
        return self.primary

    def wait_for_switch(self, old: LocalRedis, seconds: float = SWITCH_SECONDS) -> float:
        """
        Wait until a Sentinel names another primary than ``old``.

        Returns:
            When that was seen first, of ``time.monotonic()``. The other Sentinels follow within two seconds.

        """
        wait_for(lambda: any(port != old.port for _, port in self._named()), seconds, "a Sentinel has decided")
        return time.monotonic()

    def _named(self) -> list[tuple[int, int]]:
        """Return the number of the last decision that each living Sentinel knows of, and the port that it names."""
        named = []
        for sentinel in self._able(self.sentinels):
            with suppress(redis.RedisError):
                ask = self.client(sentinel).execute_command
                _, port = ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)
                named.append((int(_pairs(ask("SENTINEL", "MASTER", SERVICE))["config-epoch"]), int(port)))
        return named

    def _does(self, node: LocalRedis, *words: str) -> bool:
        with suppress(redis.RedisError):
            self.client(node).execute_command(*words)
            return True
        return False

    def _begin(self) -> None:
        replicas, sentinels = self._wanted
        primary = self._member("primary", *REPLICATED, config="")
        self.servers = [primary]
        for number in range(replicas):
            config = f"replicaof 127.0.0.1 {primary.port}\n"
            self.servers.append(self._member(f"replica-{number}", *REPLICATED, config=config))
        # They know each other from the start; finding out would take them seconds.
        known = {f"{number:040x}": free_port() for number in range(1, sentinels + 1)}
        lines = [
            f"sentinel monitor {SERVICE} 127.0.0.1 {primary.port} {sentinels // 2 + 1}",
            f"sentinel down-after-milliseconds {SERVICE} {self._down_after_ms}",
            f"sentinel failover-timeout {SERVICE} {FAILOVER_TIMEOUT_MS}",
            *(f"sentinel known-replica {SERVICE} 127.0.0.1 {each.port}" for each in self.servers[1:]),
        ]
        for name, port in known.items():
            others = [
                f"sentinel known-sentinel {SERVICE} 127.0.0.1 {other} {each}"
                for each, other in known.items()
                if each != name
            ]
            config = "\n".join([f"sentinel myid {name}", *lines, *others, ""])
            self.sentinels.append(self._member(f"sentinel-{port}", "--sentinel", config=config, port=port))
        _at_once(LocalRedis.start, self.servers)
        _wait_until_none(self._missing_of_servers, SWITCH_SECONDS)
        _at_once(self.start, self.sentinels)

    def start(self, node: LocalRedis) -> None:
        super().start(node)
        if node in self.sentinels:
            self.client(node).execute_command("SENTINEL", "DEBUG", *OFTEN)

    def _missing(self) -> Iterator[str]:
        if len(named := {port for _, port in self._named()}) != 1:
            yield f"Sentinels name {named or 'nobody'}"
        yield from self._missing_of_servers()
        for sentinel in self._able(self.sentinels):
            ask = self.client(sentinel).execute_command
            facts = _pairs(ask("SENTINEL", "MASTER", SERVICE))
            if facts["flags"] != "master" or int(facts["num-other-sentinels"]) != len(self.sentinels) - 1:
                yield f"Sentinel {sentinel.port}: {facts['flags']}, knows {facts['num-other-sentinels']} others"
            able = {str(server.port) for server in self._able(self.servers)} - {facts["port"]}
            replicas = [_pairs(each) for each in ask("SENTINEL", "REPLICAS", SERVICE)]
            well = {
                each["port"] for each in replicas if each["flags"] == "slave" and each["master-link-status"] == "ok"
            }
            if able - well:
                yield f"Sentinel {sentinel.port}: replicas {able - well} are not in order"

    def _missing_of_servers(self) -> Iterator[str]:
        primary = self.primary if any(map(self.is_alive, self.sentinels)) else self.servers[0]
        for server in self._able(self.servers):
            if server is primary:
                if self.client(server).info("replication")["role"] != "master":
                    yield f"{server.port} is no primary"
            elif not _follows(self.client(server), primary):
                yield f"{server.port} does not follow {primary.port}"


class Line(NamedTuple):
    """A line of ``CLUSTER NODES``, read."""

    id: str
    port: int
    flags: frozenset[str]
    follows: str
    epoch: int
    connected: bool
    slots: tuple[range, ...]

    def has(self, slot: int) -> bool:
        return any(slot in each for each in self.slots)


class RedisCluster(_Group):
    """Primaries that divide the slots, and their replicas; any of them may be killed, paused and started."""

    def __init__(self, *, primaries: int = 3, replicas: int = 3, server: str = VALKEY, steady: bool = False) -> None:
        """
        Prepare it; ``with`` starts it and returns when all slots are covered and all replicas in sync.

        Args:
            primaries: How many nodes divide the slots; with fewer than three, none is promoted.
            replicas: How many nodes follow them, one after the other.
            server: One of ``SERVERS``.
            steady: No node is taken for failed, nor cut off, because a busy machine stops it for some seconds: for
                tests in which none fails, or which say when with ``failing``.

        """
        super().__init__(server)
        self._wanted = primaries, replicas
        self._steady = steady
        self.nodes: list[LocalRedis] = []
        """The primaries of the beginning first."""

    @property
    def url(self) -> str:
        """Return what ``REDIS_URL`` is for this cluster."""
        return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)

    def node_of(self, key: str | int) -> LocalRedis:
        """Return the primary that has a key, or a slot, by the latest promotion that one of the nodes knows of."""
        slot = key if isinstance(key, int) else key_slot(key.encode())
        lines = [line for view in self._views().values() for line in view if line.has(slot)]
        return self._node(max(lines, key=lambda line: line.epoch).port)

    def replica_of(self, node: LocalRedis) -> LocalRedis:
        """Return a replica of a primary, and wait for one: who was only just promoted has none yet."""

        def find() -> LocalRedis | None:
            view = self._views().get(node.port, [])
            ids = {line.id for line in view if line.port == node.port}
            return next((self._node(line.port) for line in view if line.follows in ids), None)

        return wait_for(find, SWITCH_SECONDS, f"{node.port} has a replica")

    def __enter__(self) -> Self:
        super().__enter__()
        if self._steady:
            self._be_patient(STEADY_TIMEOUT_MS)  # only now: a new cluster would take longer to become one
        return self

    @contextmanager
    def failing(self) -> Iterator[None]:
        """Have the nodes of a steady cluster notice soon that one fails; all of them live at the end of the block."""
        self._be_patient(NODE_TIMEOUT_MS)
        yield
        self._be_patient(STEADY_TIMEOUT_MS)

    def _be_patient(self, milliseconds: int) -> None:
        for node in self.nodes:
            self.client(node).config_set("cluster-node-timeout", milliseconds)

    def wait_for_promotion(self, node: LocalRedis, seconds: float = SWITCH_SECONDS) -> float:
        """
        Wait until the slots of a primary that was killed or paused belong to another node.

        Returns:
            When that was seen first, of ``time.monotonic()``. The other nodes follow within a second.

        """

        def promoted() -> bool:
            return any(
                line.port == node.port and not line.slots
                for port, view in self._views().items()
                for line in view
                if port != node.port
            )

        wait_for(promoted, seconds, f"a replica of {node.port} is promoted")
        return time.monotonic()

    def failover(self, node: LocalRedis) -> LocalRedis:
        """Exchange a primary for its replica while both live, without losing a write, and return the new primary."""
        self.wait_until_ok()  # a primary that was only just promoted has no replica yet
        replica = self.replica_of(node)
        self.client(replica).execute_command("CLUSTER", "FAILOVER")
        self.wait_for_promotion(node)
        return replica

    def migrate_slot(self, slot: int, to: LocalRedis, *, keys: bool = True, slowly: float = 0.0) -> None:
        """
        Move a slot to another primary while clients use it, in the steps of ``redis-cli --cluster reshard``.

        Args:
            slot: Its number.
            to: The primary that gets it.
            keys: Whether its keys go with it. Without them their node refuses to let go of a slot that has any.
            slowly: Seconds between two keys, in which clients are asked to follow: ``ASK``, ``TRYAGAIN``.

        """
        self.begin_migration(slot, to)
        while keys and self.move_keys(slot, to, limit=1 if slowly else 100):
            time.sleep(slowly)
        self.finish_migration(slot, to)

    def begin_migration(self, slot: int, to: LocalRedis) -> None:
        """Open a slot at both ends: keys that are not where they were are asked for at ``to``."""
        source = self.node_of(slot)
        self._setslot(to, slot, "IMPORTING", self._id(source))
        self._setslot(source, slot, "MIGRATING", self._id(to))

    def move_keys(self, slot: int, to: LocalRedis, *, limit: int = 1) -> int:
        """Move up to ``limit`` keys of an open slot, and return how many."""
        source = self.client(self.node_of(slot))
        keys = source.execute_command("CLUSTER", "GETKEYSINSLOT", slot, limit)
        if keys:
            timeout_ms = int(scaled(5) * 1000)
            source.execute_command("MIGRATE", "127.0.0.1", to.port, "", 0, timeout_ms, "REPLACE", "KEYS", *keys)
        return len(keys)

    def finish_migration(self, slot: int, to: LocalRedis) -> None:
        """Give an open slot, whose keys have all been moved, to ``to``, and wait until every node knows."""
        source, receiver = self.node_of(slot), self._id(to)
        self._setslot(to, slot, "NODE", receiver)
        self._setslot(source, slot, "NODE", receiver)
        wait_for(lambda: all(owner == to.port for owner in self._owners(slot)), what=f"all know who has slot {slot}")

    def cancel_migration(self, slot: int, to: LocalRedis) -> None:
        """Close an open slot whose keys are where they were."""
        self._setslot(self.node_of(slot), slot, "STABLE")
        self._setslot(to, slot, "STABLE")

    def _setslot(self, node: LocalRedis, slot: int, *words: str) -> None:
        self.client(node).execute_command("CLUSTER", "SETSLOT", slot, *words)

    def _id(self, node: LocalRedis) -> str:
        return str(self.client(node).execute_command("CLUSTER", "MYID"))

    def _owners(self, slot: int) -> list[int]:
        return [next((line.port for line in view if line.has(slot)), 0) for view in self._views().values()]

    def _node(self, port: int) -> LocalRedis:
        [node] = [node for node in self.nodes if node.port == port]
        return node

    def _views(self) -> dict[int, list[Line]]:
        """Return what each living node says of all, by its port."""
        views = {}
        for node in self._able(self.nodes):
            with suppress(redis.RedisError):
                lines = self.client(node).execute_command("CLUSTER", "NODES").splitlines()
                views[node.port] = [_read_node(line) for line in lines]
        return views

    def _begin(self) -> None:
        primaries, replicas = self._wanted
        for number in range(primaries + replicas):
            options = [
                *("--cluster-enabled", "yes", "--cluster-port", str(free_port())),
                *("--cluster-node-timeout", str(NODE_TIMEOUT_MS), "--cluster-announce-ip", "127.0.0.1"),
                *("--cluster-replica-validity-factor", "0"),  # however long it was cut off, it may be promoted
                *("--cluster-allow-replica-migration", "no"),  # replicas stay where the test expects them
            ]
            self.nodes.append(self._member(f"node-{number}", *options, *REPLICATED))
        _at_once(LocalRedis.start, self.nodes)
        bounds = [SLOTS * number // primaries for number in range(primaries + 1)]
        for number, node in enumerate(self.nodes):
            ask = self.client(node).execute_command
            ask("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            if number < primaries:
                ask("CLUSTER", "ADDSLOTSRANGE", bounds[number], bounds[number + 1] - 1)
            for other in self.nodes[:number]:
                ask("CLUSTER", "MEET", "127.0.0.1", other.port, _bus_port(self.client(other)))
        wait_for(
            lambda: all(len(_sure(view)) == len(self.nodes) for view in self._views().values()),
            SWITCH_SECONDS,
            "the nodes know each other",
        )
        for number, node in enumerate(self.nodes[primaries:]):
            self.client(node).execute_command("CLUSTER", "REPLICATE", self._id(self.nodes[number % primaries]))

    def _missing(self) -> Iterator[str]:
        able = {node.port for node in self._able(self.nodes)}
        views = self._views()
        if views.keys() != able:
            yield f"no answer from {able - views.keys()}"
        for port, view in views.items():
            if len(_sure(view)) != len(self.nodes):
                yield f"{port} knows {len(_sure(view))} nodes"
            if (covered := sum(len(each) for line in view for each in line.slots)) != SLOTS:
                yield f"{port} knows who has {covered} slots"
            for line in view:
                if line.port in able and (line.flags & {"fail", "fail?", "handshake"} or not line.connected):
                    yield f"{port} has no connection to {line.port}"
                if line.slots and line.port not in able:
                    yield f"{port} believes slots to be with {line.port}, which does not answer"
            client = self.client(self._node(port))
            if "cluster_state:ok" not in client.execute_command("CLUSTER", "INFO"):
                yield f"{port} says that the cluster is not ok"
            if any(line.port == port and line.follows for line in view) and not _follows(client):
                yield f"replica {port} is not in sync"
        if len({frozenset((line.id, line.follows, line.slots) for line in view) for view in views.values()}) > 1:
            yield "the nodes do not agree"


def _at_once(call: Callable[[LocalRedis], None], members: list[LocalRedis]) -> None:
    with ThreadPoolExecutor(len(members)) as threads:
        list(threads.map(call, members))


def _wait_until_none(missing: Callable[[], Iterator[str]], seconds: float) -> None:
    """Wait until nothing is missing; a server that does not answer is."""
    last: list[str] = []

    def nothing_is() -> bool:
        try:
            last[:] = [next(missing(), "")]
        except (redis.RedisError, ValueError) as error:
            last[:] = [repr(error)]
        return last == [""]

    try:
        wait_for(nothing_is, seconds)
    except AssertionError:
        raise AssertionError(f"not within {scaled(seconds):g} s: {last[0]}") from None


def _follows(client: redis.Redis, primary: LocalRedis | None = None) -> bool:
    found = client.info("replication")
    if primary is not None and found.get("master_port") != primary.port:
        return False
    return found["role"] == "slave" and found["master_link_status"] == "up" and not found["master_sync_in_progress"]


def _pairs(flat: list[Any]) -> dict[str, str]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _bus_port(client: redis.Redis) -> int:
    [_, port] = client.execute_command("CONFIG", "GET", "cluster-port")
    return int(port)


def _sure(view: list[Line]) -> list[Line]:
    return [line for line in view if not line.flags & {"handshake", "noaddr"}]


def _read_node(line: str) -> Line:
    name, address, flags, follows, _, _, epoch, link, *ranges = line.split()
    slots = []
    for each in ranges:
        if not each.startswith("["):  # that would be a slot on its way
            first, _, last = each.partition("-")
            slots.append(range(int(first), int(last or first) + 1))
    return Line(
        name,
        int(address.partition("@")[0].rpartition(":")[2]),
        frozenset(flags.split(",")) - {"myself"},
        "" if follows == "-" else follows,
        int(epoch),
        link == "connected",
        tuple(slots),
    )
