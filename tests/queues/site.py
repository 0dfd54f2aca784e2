"""
A site with a queue: its files, its workers, and what its jobs say.

    site = make_site({"mysite/celery.py": …, "shop/tasks.py": …}, settings="CELERY_BROKER_URL = REDIS_URL")
    with site.working("-m", "celery", "-A", "mysite", "worker", ready="ready"):
        site.run("from shop.tasks import import_rows; import_rows.delay(7)")
        assert states(site.hear("job:7")) == ["waiting", "running", "succeeded"]

It is the site of the README; ``make_site`` is a fixture.
"""

import json
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

import redis

from tests.guides import environment
from tests.processes import Process
from tests.waiting import scaled

ENDS = ("succeeded", "failed", "cancelled")
"""States after which a job says no more."""


class QueueSite:
    """A site in a directory of its own, and whoever hears what it publishes."""

    def __init__(self, directory: Path, url: str, files: Mapping[str, str], settings: str) -> None:
        self.directory = directory
        self.environment = environment(REDIS_URL=url, PYTHONUNBUFFERED="1")
        for name, text in files.items():
            file = directory / name
            file.parent.mkdir(parents=True, exist_ok=True)
            (file.parent / "__init__.py").touch()
            file.write_text(text)
        with (directory / "mysite/settings.py").open("a") as file:
            file.write(f"\n{settings}\n")
        self._heard: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self._subscription = redis.Redis.from_url(url).pubsub()
        self._subscription.psubscribe("user:*", "job:*")
        for _ in range(2):
            assert self._subscription.get_message(timeout=scaled())["type"] == "psubscribe"

    def close(self) -> None:
        self._subscription.close()
        self._subscription.connection_pool.close()

    def start(self, *arguments: str, ready: str, **env: str) -> Process:
        """Start ``python …``, such as a worker, and wait until it says ``ready``; whoever starts it ends it."""
        process = Process(
            [sys.executable, *arguments], env=self.environment | env, name=" ".join(arguments), cwd=self.directory
        )
        try:
            process.wait_for_line(ready, 30)
        except BaseException:
            process.close()
            raise
        return process

    @contextmanager
    def working(self, *arguments: str, ready: str, **env: str) -> Iterator[Process]:
        """Run a worker, ``python …``, while the block runs; it is ready when it says ``ready``."""
        worker = self.start(*arguments, ready=ready, **env)
        try:
            yield worker
        finally:
            if worker.returncode is None:
                worker.terminate(30)
            worker.close()
            sys.stdout.write(worker.output)  # pytest shows it if the test fails

    def run(self, code: str, **env: str) -> str:
        """Run code as a web process of the site would, and return what it prints."""
        done = subprocess.run(
            [sys.executable, "-c", f"import mysite.asgi\n{code}"],
            env=self.environment | env,
            cwd=self.directory,
            capture_output=True,
            text=True,
            timeout=scaled(60),
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def hear(
        self, topic: str, *, until: Sequence[str] = ENDS, times: int = 1, seconds: float = 30
    ) -> list[dict[str, Any]]:
        """
        Return the payloads that were published on the topic of a job, in their order, as far as nobody has asked yet.

        Args:
            topic: The topic, such as ``"job:7"``. What is heard of others is kept for later.
            until: It waits until a message has one of these states.
            times: How many messages with one of these states to wait for.
            seconds: How long to wait at most, before scaling.

        Raises:
            AssertionError: If it did not come to that; with what was heard.

        """
        deadline = time.monotonic() + scaled(seconds)
        found: list[dict[str, Any]] = []
        while times:
            while self._heard[topic]:
                found.append(self._heard[topic].pop(0).get("payload", {}))
                times -= found[-1].get("state") in until
                if not times:
                    return found
            left = deadline - time.monotonic()
            assert left > 0, f"{topic} has not come to {until}: {found}; others: {dict(self._heard)}"
            self._read(left)
        return found

    def heard(self, topic: str) -> list[dict[str, Any]]:
        """Return the whole messages that have come on a topic since it was last asked for, without waiting."""
        while self._read(0):
            pass
        return self._heard.pop(topic, [])

    def _read(self, seconds: float) -> bool:
        """Read one message of any topic; return whether there was one."""
        message = self._subscription.get_message(timeout=min(seconds, 1))
        if message is not None:
            self._heard[message["channel"].decode()].append(json.loads(message["data"]))
        return message is not None


def states(payloads: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the states that a job went through, each once in a row."""
    return [state for state, _ in groupby(payload["state"] for payload in payloads)]
