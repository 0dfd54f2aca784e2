"""The processes of one contestant: its Redis, server and listener, started, pinned and watched."""

from __future__ import annotations

import os
import re
import signal
import time
from typing import Final, Self

import redis

from benchmarks.contestants import Contestant
from benchmarks.machine import cpu_seconds, memory, pin_load, pin_measured
from project.local_redis import LocalRedis
from tests.processes import Process

SERVING: Final = r"(?:Listening on TCP address 127\.0\.0\.1:|running on http://127\.0\.0\.1:|serving on )(\d+)"
START_SECONDS: Final = 30


class Stage:
    """What runs for one contestant, for one round."""

    def __init__(self, contestant: Contestant) -> None:
        self.contestant = contestant
        self.redis = LocalRedis()
        self._processes: list[Process] = []

    def __enter__(self) -> Self:
        pin_load(os.getpid())
        self.redis.start()
        try:
            pin_load(self.redis.child.pid)
            self.server = self._start(self.contestant.server)
            self.listener = self._start(self.contestant.listener) if self.contestant.listener else None
            ready = re.search(SERVING, self.server.wait_for_line(SERVING, START_SECONDS))
            self.port = int(ready[1])
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

    def _start(self, command: tuple[str, ...]) -> Process:
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
            "PYTHONUNBUFFERED": "1",
        }

    def cpu(self) -> dict[str, float]:
        """Seconds of CPU used so far, by role."""
        return {
            "server": cpu_seconds(self.server.pid),
            "listener": cpu_seconds(self.listener.pid) if self.listener is not None else 0.0,
            "redis": cpu_seconds(self.redis.child.pid),
        }

    def server_memory(self) -> int:
        """Resident bytes of the server when it has collected its garbage."""
        for _ in range(2):  # what one collection frees may hold more
            mark = self.server.mark()
            self.server.send_signal(signal.SIGUSR2)
            self.server.wait_for_line("collected", START_SECONDS, after=mark)
        return memory(self.server.pid)

    def redis_info(self) -> dict[str, object]:
        with redis.Redis.from_url(self.redis.url) as client:
            return client.info("server")

    def settle(self) -> None:
        """Let the processes finish what does not show on the sockets."""
        time.sleep(0.1)
