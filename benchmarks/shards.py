"""
What more listeners, more primaries and more web processes add.

    python -m benchmarks.shards [--rounds N] [--messages N]

Two cores cannot show four listeners at full speed, so what each can do is asked in two ways:

* **rate**: each listener has a quarter of the first core, in turn (``throttle.py``), so four together have what one
  has elsewhere. Redis, the producer and the reader that counts share the other core, which is not full then.
* **a busiest core carries**: messages, over the seconds of CPU of the listener, or the primary, that had most to do.
  It is what the part can carry with a core of its own, whatever the others do.

With web processes and sockets, CPU is all that is asked: all of them share the first core.
"""

from __future__ import annotations

import argparse
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any, Final, NamedTuple

from benchmarks import bridge, contestants, rounds, scenarios
from benchmarks.bridge import CHUNK
from benchmarks.contestants import PUBLISHED, RAW, REFERENCE
from benchmarks.publishing import Raw
from benchmarks.stage import Stage
from benchmarks.throttle import throttled

ROUNDS: Final = 3
MESSAGES: Final = 20_000
SHARE: Final = 0.25
"""Of a core, that each listener has while the rate is measured."""
SHARDS: Final = 8


class Site(NamedTuple):
    """How many of each part there are."""

    primaries: int
    shards: int
    listeners: int = 1
    web_processes: int = 1

    @property
    def name(self) -> str:
        return "-".join(map(str, self))

    @property
    def title(self) -> str:
        redis = "one Redis" if self.primaries == 1 else f"{self.primaries} primaries"
        parts = [f"{redis}, SHARDS {self.shards}", _counted(self.listeners, "listener")]
        return ", ".join([*parts, *([_counted(self.web_processes, "web process")] if self.web_processes > 1 else [])])


def _counted(number: int, word: str) -> str:
    return f"{number} {word}{('es' if word.endswith('s') else 's') * (number > 1)}"


BRIDGES: Final = (
    Site(1, 1),
    Site(1, 1, 2),
    *(Site(primaries, SHARDS, listeners) for primaries in (1, 3) for listeners in (1, 2, 4)),
)
DELIVERIES: Final = (
    Site(1, 1),
    Site(1, 1, web_processes=4),
    Site(1, SHARDS, 2),
    Site(1, SHARDS, 2, 4),
    Site(3, SHARDS),
    Site(3, SHARDS, 2, 4),
)
HEARERS: Final = (0, 1, 4)
"""Connections that hear a plain ``PUBLISH``, as listeners do."""
PUBLISHES: Final = 100_000
PLAN: Final = scenarios.Plan(
    (scenarios.Step(1000, {RAW: (scenarios.UNICAST,), PUBLISHED: scenarios.BURSTS}),),
    seconds=1.0,
)


def run_bridge(site: Site, messages: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Have listeners carry raw messages, and give what it took."""
    with ExitStack() as stack:
        stage = stack.enter_context(
            Stage(contestants.named(REFERENCE), listeners=site.listeners, primaries=site.primaries, shards=site.shards)
        )
        publisher = stack.enter_context(closing(Raw(stage.redis.url)))
        reader = stack.enter_context(closing(bridge.Reader(stage)))
        stack.enter_context(throttled([listener.pid for listener in stage.listeners], SHARE))
        carried = bridge.carry(stage, reader, publisher, messages)
    listeners, nodes = carried.cpu["listener"], carried.cpu["redis"]
    yield (
        "raw messages",
        {
            "rate/s": messages / carried.seconds,
            "of a core %": 100 * sum(listeners) / carried.seconds / site.listeners,
            "listeners µs": sum(listeners) * 1e6 / messages,
            "a listener carries/s": messages / max(listeners),
            "redis µs": sum(nodes) * 1e6 / messages,
            "a primary carries/s": messages / max(nodes),
            "other core busy %": 100 * (carried.own + sum(nodes)) / carried.seconds,
            "lost": carried.lost,
            "out of order": carried.out_of_order,
        },
    )


def run_publish(primaries: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Publish plainly while nobody, one and several connections hear it, and give what it costs each node."""
    silent = replace(contestants.named(REFERENCE), listener=None)
    for hearers in HEARERS:
        with ExitStack() as stack:
            stage = stack.enter_context(Stage(silent, web_processes=0, primaries=primaries))
            publisher = stack.enter_context(closing(Raw(stage.redis.url)))
            for _ in range(hearers):
                stack.enter_context(swallowing(stage.redis.port))
            commands = publisher.packed([("user:1", 1)] * CHUNK)
            publisher.write(commands)
            before = stage.cpu_of_each()["redis"]
            for _ in range(PUBLISHES // CHUNK):
                publisher.write(commands)
            used = [now - then for now, then in zip(stage.cpu_of_each()["redis"], before, strict=True)]
        costs = [each * 1e6 / PUBLISHES for each in used]
        yield f"PUBLISH, {hearers} hear it", {"node µs": costs[0], "another node µs": max(costs[1:], default=0.0)}


@contextmanager
def swallowing(port: int) -> Iterator[None]:
    """Hear what is published, and read it in another thread."""
    connection = socket.create_connection(("127.0.0.1", port))
    connection.sendall(b"PSUBSCRIBE user:*\r\n")
    connection.recv(1024)
    thread = threading.Thread(target=_swallow, args=[connection])
    thread.start()
    try:
        yield
    finally:
        connection.shutdown(socket.SHUT_RDWR)
        thread.join()
        connection.close()


def _swallow(connection: socket.socket) -> None:
    with suppress(ConnectionError):  # it ends while something is on its way
        while connection.recv(262_144):
            pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--messages", type=int, default=MESSAGES)
    arguments = parser.parse_args()
    ours = contestants.named(REFERENCE)
    entries = [
        rounds.Entry(site.name, site.title, partial(run_bridge, site, arguments.messages), seconds=10)
        for site in BRIDGES
    ]
    entries += [
        rounds.Entry(f"redis-{primaries}", title, partial(run_publish, primaries), seconds=10)
        for primaries, title in ((1, "one Redis"), (3, "3 primaries"))
    ]
    entries += [
        rounds.Entry(
            site.name, site.title, partial(scenarios.run, ours, PLAN, **site._asdict()), scenarios.seconds(ours, PLAN)
        )
        for site in DELIVERIES
    ]
    plan = {"messages": arguments.messages, "share": SHARE, "deliveries": PLAN._asdict()}
    rounds.run("shards", entries, arguments.rounds, plan, reference=BRIDGES[0].name, word="one of each")


if __name__ == "__main__":
    main()
