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
import selectors
import socket
import time
import zlib
from collections.abc import Sequence
from contextlib import closing
from statistics import median
from typing import NamedTuple

import hiredis

from benchmarks.contestants import REFERENCE, named
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
    """A subscriber to everything that is sent to the groups of the topics, on every node that sends it."""

    def __init__(self, stage: Stage) -> None:
        self.received = self.out_of_order = 0
        self._last: dict[bytes, int] = {}
        self._selector = selectors.DefaultSelector()
        for port, commands in _subscriptions(stage).items():
            connection = socket.create_connection(("127.0.0.1", port), PATIENCE)
            connection.sendall(b"".join(map(hiredis.pack_command, commands)))
            _take(connection, parser := hiredis.Reader(), sum(len(command) - 1 for command in commands))
            self._selector.register(connection, selectors.EVENT_READ, parser)

    def close(self) -> None:
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()
        self._selector.close()

    def read_until(self, wanted: int) -> None:
        while self.received < wanted:
            if not (ready := self._selector.select(PATIENCE)):
                return
            for key, _ in ready:
                key.data.feed(key.fileobj.recv(262_144))
                while (reply := key.data.gets()) is not False:
                    *_, channel, data = reply
                    seq = int(SEQ.search(data)[1])
                    self.out_of_order += seq != self._last.get(channel, 0) + 1
                    self._last[channel] = seq
                    self.received += 1


def _subscriptions(stage: Stage) -> dict[int, list[tuple[str, ...]]]:
    """Return the commands that subscribe to the groups, by the port of the node that sends to them."""
    if stage.cluster is None:
        return {stage.redis.port: [("PSUBSCRIBE", "asgi?group?*")]}
    shards: dict[int, list[str]] = {}
    for topic in range(TOPICS):
        group = f"user.{topic}"
        shard = zlib.crc32(group.encode()) % stage.shards
        shards.setdefault(shard, []).append(f"asgi/{{notifications:{shard}}}/group/{group}")
    nodes: dict[int, list[tuple[str, ...]]] = {}
    for names in shards.values():
        nodes.setdefault(stage.cluster.node_of(names[0]).port, []).append(("SSUBSCRIBE", *names))
    return nodes


def _take(connection: socket.socket, parser: hiredis.Reader, answers: int) -> None:
    """
    Read the answers of a subscription.

    Raises:
        RuntimeError: One is an error.

    """
    while answers:
        parser.feed(connection.recv(65536))
        while answers and (reply := parser.gets()) is not False:
            if isinstance(reply, Exception):
                raise RuntimeError(f"Redis refuses a subscription: {reply}")
            answers -= 1


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
    with Stage(named(REFERENCE)) as stage, closing(Reader(stage)) as reader:
        carried = carry(stage, reader, _publisher(stage, road), MESSAGES)
    listener, redis = (sum(carried.cpu[role]) for role in ("listener", "redis"))
    return {
        "rate": MESSAGES / carried.seconds,
        "µs": listener * 1e6 / MESSAGES,
        "busy": 100 * listener / carried.seconds,
        "redis": 100 * redis / carried.seconds,
        "load": 100 * carried.own / carried.seconds,
        "lost": carried.lost,
        "disorder": carried.out_of_order,
    }


class Carried(NamedTuple):
    """
    What it took to carry messages.

    Attributes:
        seconds: From the first to the last.
        cpu: Seconds of CPU of each process, by role.
        own: Seconds of CPU of this process, which publishes and counts.
        lost: How many did not come.
        out_of_order: How many came after a later one of their topic, or again.

    """

    seconds: float
    cpu: dict[str, list[float]]
    own: float
    lost: int
    out_of_order: int


def carry(stage: Stage, reader: Reader, publisher: Raw, messages: int) -> Carried:
    """
    Have messages carried, as fast as listeners and Redis take them, and see that each comes once and in order.

    Raises:
        RuntimeError: Not even the first came through.

    """
    publisher.send([(f"user:{topic}", 1) for topic in range(TOPICS)])
    reader.read_until(TOPICS)
    if reader.received < TOPICS:
        raise RuntimeError(f"{reader.received} of {TOPICS} messages came through: has a name or the format changed?")
    chunks = [
        (first, publisher.packed([(f"user:{at % TOPICS}", at // TOPICS + 1) for at in range(first, first + CHUNK)]))
        for first in range(TOPICS, messages + TOPICS, CHUNK)
    ]
    before, own, began = stage.cpu_of_each(), time.process_time(), time.monotonic()
    for first, commands in chunks:
        publisher.write(commands)
        reader.read_until(first - CHUNK)
    reader.read_until(messages + TOPICS)
    seconds, own, after = time.monotonic() - began, time.process_time() - own, stage.cpu_of_each()
    cpu = {role: [now - then for now, then in zip(after[role], before[role], strict=True)] for role in after}
    return Carried(seconds, cpu, own, messages + TOPICS - reader.received, reader.out_of_order)


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
