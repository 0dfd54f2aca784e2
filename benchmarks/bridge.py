"""
How many messages one listener bridges in a second on one core, raw and already stamped.

    python -m benchmarks.bridge

The listener has a core to itself; Redis, the producer and the reader that counts share the other. The reader is
subscribed to the groups of the channel layer, where the web processes would be, and checks that the messages of
each topic come in their order. It is asked at the end whether all have come.
"""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Sequence
from statistics import median
from urllib.parse import urlsplit

import hiredis

from benchmarks.contestants import REFERENCE, named
from benchmarks.machine import cpu_seconds
from benchmarks.publishing import Raw, message
from benchmarks.stage import Stage

TOPICS = 200
CHUNK = 2000
"""Messages that are written at once; at most three times as many are on their way."""
MESSAGES = 60_000
ROUNDS = 3
SEQ = re.compile(rb'"seq":(\d+)')
PATIENCE = 5.0


class Reader:
    """A subscriber to everything that the listener sends to groups."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._socket = socket.create_connection((parts.hostname, parts.port))
        self._parser = hiredis.Reader()
        self._socket.sendall(hiredis.pack_command(("PSUBSCRIBE", "asgi?group?*")))
        self._socket.settimeout(PATIENCE)
        self._socket.recv(1024)
        self.received = self.out_of_order = 0
        self._last: dict[bytes, int] = {}

    def read_until(self, wanted: int) -> None:
        while self.received < wanted:
            try:
                self._parser.feed(self._socket.recv(262_144))
            except TimeoutError:
                return
            while (reply := self._parser.gets()) is not False:
                seq = int(SEQ.search(reply[3])[1])
                self.out_of_order += seq != self._last.get(reply[2], 0) + 1
                self._last[reply[2]] = seq
                self.received += 1


def main() -> None:
    print(f"{MESSAGES} messages of {len(message(1))} bytes on {TOPICS} topics, {ROUNDS} rounds\n")
    found: dict[str, list[dict[str, float]]] = {}
    for _ in range(ROUNDS):
        for road in ("raw", "stamped"):
            found.setdefault(road, []).append(_bridge(road))
    for road, rounds in found.items():
        rates, costs, busy, redis, load = (
            [each[key] for each in rounds] for key in ("rate", "µs", "busy", "redis", "load")
        )
        print(
            f"{road:8} {median(rates):7.0f} messages/s ({min(rates):.0f}–{max(rates):.0f}), "
            f"{median(costs):.1f} µs of CPU each; busy: listener {median(busy):.0f} %, "
            f"on the other core Redis {median(redis):.0f} % and we {median(load):.0f} %; "
            f"{sum(each['lost'] for each in rounds):.0f} lost, "
            f"{sum(each['disorder'] for each in rounds):.0f} out of order"
        )


def _bridge(road: str) -> dict[str, float]:
    with Stage(named(REFERENCE)) as stage:
        reader, publisher = Reader(stage.redis.url), _publisher(stage, road)
        publisher.send([(f"user:{topic}", 1) for topic in range(TOPICS)])
        reader.read_until(TOPICS)
        if reader.received < TOPICS:
            raise SystemExit(f"{reader.received} of {TOPICS} messages came through: has a name or the format changed?")
        chunks = [
            (first, publisher.packed([(f"user:{at % TOPICS}", at // TOPICS + 1) for at in range(first, first + CHUNK)]))
            for first in range(TOPICS, MESSAGES + TOPICS, CHUNK)
        ]
        before, began = _cpu(stage), time.monotonic()
        for first, commands in chunks:
            publisher.write(commands)
            reader.read_until(first - CHUNK)
        reader.read_until(MESSAGES + TOPICS)
        seconds, after = time.monotonic() - began, _cpu(stage)
    listener, redis, own = (now - then for now, then in zip(after, before, strict=True))
    return {
        "rate": MESSAGES / seconds,
        "µs": listener * 1e6 / MESSAGES,
        "busy": 100 * listener / seconds,
        "redis": 100 * redis / seconds,
        "load": 100 * own / seconds,
        "lost": MESSAGES + TOPICS - reader.received,
        "disorder": reader.out_of_order,
    }


def _cpu(stage: Stage) -> tuple[float, float, float]:
    return cpu_seconds(stage.listener.pid), cpu_seconds(stage.redis.child.pid), time.process_time()


def _publisher(stage: Stage, road: str) -> Raw:
    return Raw(stage.redis.url) if road == "raw" else Stamped(stage.redis.url)


class Stamped(Raw):
    """Publishes on the internal channel what the scripts would, which costs Redis next to nothing."""

    def packed(self, messages: Sequence[tuple[str, int]]) -> list[bytes]:
        commands = []
        for topic, seq in messages:
            head = b'{"_meta":{"topic":"%s","id":"1-%d"},' % (topic.encode(), seq)
            stamped = b"p%d 1-%d 0123456789ab %s%s%s" % (len(topic), seq, topic.encode(), head, message(seq)[1:])
            commands.append(hiredis.pack_command(("PUBLISH", "notifications:stamped", stamped)))
        return commands


if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "benchmarks.peers.settings")
    main()
