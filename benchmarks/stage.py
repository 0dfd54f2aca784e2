"""The processes of one contestant: its Redis, server and listener, started, pinned and watched."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import time
from functools import partial
from typing import Final, Self

import redis

from benchmarks import accounts
from benchmarks.contestants import Contestant
from benchmarks.machine import cpu_seconds, memory, pin_load, pin_measured, unpin, workers
from project.local_redis import LocalRedis
from tests.processes import Process
from tests.redis_groups import RedisCluster
from tests.waiting import wait_for

SERVING: Final = (
    r"(?:Listening on TCP address 127\.0\.0\.1:|(?:[Rr]unning on|Listening at:) http://127\.0\.0\.1:|serving on )(\d+)"
)
FREE_PORT: Final = "{free port}"
"""Stands in the command of a server that cannot take a free port by itself."""
STANDING_BY: Final = "listening on"
"""What our listener says before it leads, which not every one of several does."""
START_SECONDS: Final = 30


class Stage:
    """What runs for one contestant, for one round; we ourselves are on the load's core meanwhile."""

    def __init__(
        self, contestant: Contestant, *, web_processes: int = 1, listeners: int = 1, primaries: int = 1, shards: int = 1
    ) -> None:
        """
        Prepare it; ``with`` starts it.

        Args:
            contestant: Whose.
            web_processes: Among which sockets are divided.
            listeners: How many, of a contestant that has one.
            primaries: One for a plain Redis, several for a cluster of so many nodes.
            shards: Into which its topics are divided.

        """
        self.contestant = contestant
        self.redis = LocalRedis()
        """The server, or a node of the cluster."""
        self.nodes: list[LocalRedis] = [self.redis]
        self.servers: list[Process] = []
        self.ports: list[int] = []
        self.listeners: list[Process] = []
        self._wanted = web_processes, listeners
        self.shards = shards
        self.cluster = RedisCluster(primaries=primaries, replicas=0) if primaries > 1 else None
        self._processes: list[Process] = []

    def __enter__(self) -> Self:
        pin_load(os.getpid())
        try:
            if self.cluster is None:
                self.redis.start()
            else:
                self.cluster.__enter__()
                self.nodes = self.cluster.nodes
                self.redis = self.nodes[0]
            for node in self.nodes:
                pin_load(node.child.pid)
            if self.contestant.listener:
                self.listeners = [self._start(self.contestant.listener) for _ in range(self._wanted[1])]
            self.start_servers()
            leads_all = len(self.listeners) == 1 and self.shards == 1
            ready = self.contestant.listening if leads_all else STANDING_BY
            for listener in self.listeners:
                listener.wait_for_line(ready, START_SECONDS)
            if self.shards > 1:
                wait_for(self._is_divided, START_SECONDS, "each listener has its part of the shards")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.close()
        if self.cluster is not None:
            self.cluster.__exit__()
        else:
            self.redis.stop()
        unpin(os.getpid())

    def start_servers(self) -> None:
        """Start the web processes and wait until they serve, each on a port of its own."""
        self.servers = [self._start(self.contestant.server) for _ in range(self._wanted[0])]
        said = [server.wait_for_line(SERVING, START_SECONDS) for server in self.servers]
        self.ports = [int(re.search(SERVING, line)[1]) for line in said]
        for port in self.ports:
            wait_for(partial(_accepts, port), START_SECONDS)  # some say it before they do

    def _start(self, command: tuple[str, ...]) -> Process:
        command = tuple(_free_port() if part == FREE_PORT else part for part in command)
        process = Process(command, env=self.env, name=command[-1])
        self._processes.append(process)
        pin_measured(process.pid)
        return process

    @property
    def env(self) -> dict[str, str]:
        return {
            **os.environ,
            **self.contestant.env,
            "DJANGO_SETTINGS_MODULE": "benchmarks.peers.settings",
            "REDIS_URL": self.redis.url if self.cluster is None else self.cluster.url,
            "BENCH_SHARDS": str(self.shards),
            **accounts.environment(),
            "PYTHONUNBUFFERED": "1",
        }

    def cpu(self) -> dict[str, float]:
        """Seconds of CPU used so far, by role."""
        return {role: sum(each) for role, each in self.cpu_of_each().items()}

    def cpu_of_each(self) -> dict[str, list[float]]:
        """Seconds of CPU that each process has used so far, by role."""
        pids = {
            "server": [server.pid for server in self.servers],
            "listener": [listener.pid for listener in self.listeners],
            "redis": [node.child.pid for node in self.nodes],
        }
        return {role: [cpu_seconds(pid) for pid in each] for role, each in pids.items()}

    def server_memory(self) -> int:
        """Resident bytes of the web processes when they have collected their garbage."""
        for server in self.servers * 2:  # what one collection frees may hold more
            mark = server.mark()
            for worker in workers(server.pid):
                os.kill(worker, signal.SIGUSR2)
            server.wait_for_line("collected", START_SECONDS, after=mark)
        return sum(memory(server.pid) for server in self.servers)

    def _is_divided(self) -> bool:
        """Whether the listeners say that each leads its part of the shards."""
        key = "notifications:listeners"
        node = self.redis if self.cluster is None else self.cluster.node_of(key)
        with redis.Redis.from_url(node.url) as client:
            led = [len(json.loads(report).get("shards", ())) for report in client.hvals(key)]
        return len(led) == len(self.listeners) and sum(led) == self.shards and max(led) - min(led) <= 1

    def settle(self) -> None:
        """Let the processes finish what does not show on the sockets."""
        time.sleep(0.1)


def _accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])
