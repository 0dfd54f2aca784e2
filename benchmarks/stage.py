"""The processes of one contestant: its Redis, server and listener, started, pinned and watched."""

from __future__ import annotations

import os
import re
import signal
import socket
import time
from functools import partial
from typing import Final, Self

from benchmarks import accounts
from benchmarks.contestants import Contestant
from benchmarks.machine import cpu_seconds, memory, pin_load, pin_measured, unpin, workers
from project.local_redis import LocalRedis
from tests.processes import Process
from tests.waiting import wait_for

SERVING: Final = (
    r"(?:Listening on TCP address 127\.0\.0\.1:|(?:[Rr]unning on|Listening at:) http://127\.0\.0\.1:|serving on )(\d+)"
)
FREE_PORT: Final = "{free port}"
"""Stands in the command of a server that cannot take a free port by itself."""
START_SECONDS: Final = 30


class Stage:
    """What runs for one contestant, for one round; we ourselves are on the load's core meanwhile."""

    def __init__(self, contestant: Contestant, web_processes: int = 1) -> None:
        self.contestant = contestant
        self.redis = LocalRedis()
        self.servers: list[Process] = []
        self.ports: list[int] = []
        self.listener: Process | None = None
        self._web_processes = web_processes
        self._processes: list[Process] = []

    def __enter__(self) -> Self:
        pin_load(os.getpid())
        try:
            self.redis.start()
            pin_load(self.redis.child.pid)
            if self.contestant.listener:
                self.listener = self._start(self.contestant.listener)
            self.start_servers()
            if self.listener is not None:
                self.listener.wait_for_line(self.contestant.listening, START_SECONDS)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.close()
        self.redis.stop()
        unpin(os.getpid())

    def start_servers(self) -> None:
        """Start the web processes and wait until they serve, each on a port of its own."""
        self.servers = [self._start(self.contestant.server) for _ in range(self._web_processes)]
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
            "REDIS_URL": self.redis.url,
            **accounts.environment(),
            "PYTHONUNBUFFERED": "1",
        }

    def cpu(self) -> dict[str, float]:
        """Seconds of CPU used so far, by role."""
        return {
            "server": sum(cpu_seconds(server.pid) for server in self.servers),
            "listener": cpu_seconds(self.listener.pid) if self.listener is not None else 0.0,
            "redis": cpu_seconds(self.redis.child.pid),
        }

    def server_memory(self) -> int:
        """Resident bytes of the web processes when they have collected their garbage."""
        for server in self.servers * 2:  # what one collection frees may hold more
            mark = server.mark()
            for worker in workers(server.pid):
                os.kill(worker, signal.SIGUSR2)
            server.wait_for_line("collected", START_SECONDS, after=mark)
        return sum(memory(server.pid) for server in self.servers)

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
