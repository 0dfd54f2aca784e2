"""
What a history costs Redis: µs of its CPU per message, and bytes per message kept.

    python -m benchmarks.stamping

Published messages are one script call each; raw ones are stamped in batches, as the listener does. Both are delivered
to the groups of this app's layer, or announced to listeners that forward them. A plain ``PUBLISH`` of the same bytes,
which keeps nothing, is the measure of all. The figures are Redis's own
(``INFO commandstats``): its work inside the commands, without reading and answering.
"""

from __future__ import annotations

import asyncio
import os
from statistics import median
from typing import Any

from benchmarks.machine import pin_load, pin_measured
from project.local_redis import LocalRedis

MESSAGES = 10_000
TOPICS = 1000
ROUNDS = 3
BATCHES = (1, 10, 50, 200)
PIPELINE = 200
TOKEN = "benchmark"


def main() -> None:
    with LocalRedis() as server:
        os.environ |= {"REDIS_URL": server.url, "DJANGO_SETTINGS_MODULE": "benchmarks.peers.settings"}
        import django

        django.setup()
        pin_measured(server.child.pid)
        pin_load(os.getpid())
        asyncio.run(_measure())


async def _measure() -> None:
    from channels.layers import get_channel_layer

    from benchmarks.publishing import message
    from notifications.broker import clients
    from notifications.history import get_store
    from notifications.history.stamped import tail
    from notifications.history.store import Raw
    from notifications.layers import direct
    from notifications.topics import Topic

    client = await clients.async_client()
    topics = [Topic("user", str(number)) for number in range(TOPICS)]
    data = message(1)

    async def plain(number: int) -> None:
        await client.publish(topics[number % TOPICS].channel, data)

    groups = [direct(get_channel_layer(), topic.group) for topic in topics]
    assert all(groups)

    async def published(number: int) -> None:
        await get_store().apublish(topics[number % TOPICS], data, None, 0, groups[number % TOPICS])

    async def announced(number: int) -> None:
        await get_store().apublish(topics[number % TOPICS], data)

    def stamp(size: int) -> Any:
        async def call(number: int) -> None:
            places = [at % TOPICS for at in range(number * size, (number + 1) * size)]
            batch = [Raw(topics[place], tail(data), groups[place]) for place in places]
            stamped, refusal = await get_store().stamp_batch("lease", TOKEN, number, batch)
            assert stamped == size, (stamped, refusal)

        return call

    async def pipelined(number: int) -> None:
        await asyncio.gather(*(published(at) for at in range(number * PIPELINE, (number + 1) * PIPELINE)))

    roads = {"PUBLISH": (plain, 1), "published": (published, 1), "published, to be forwarded": (announced, 1)}
    roads |= {f"published, {PIPELINE} at once": (pipelined, PIPELINE)}
    roads |= {f"raw, batches of {size}": (stamp(size), size) for size in BATCHES}
    found: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        for name, (call, size) in roads.items():
            await _empty(client)
            await client.hset("lease", "token", TOKEN)
            await call(-1)  # the script is known from here on
            await client.config_resetstat()
            for number in range(MESSAGES // size):
                await call(number)
            stats = await client.info("commandstats")
            # What a script calls is part of its own time already.
            used = stats["cmdstat_evalsha" if "cmdstat_evalsha" in stats else "cmdstat_publish"]["usec"]
            found.setdefault(name, []).append(used / MESSAGES)
    print(f"{len(data)} bytes a message, {TOPICS} topics, {ROUNDS} rounds of {MESSAGES} messages\n")
    for name, figures in found.items():
        print(f"{name:26} {median(figures):6.2f} µs ({min(figures):.2f}–{max(figures):.2f})")
    print()
    for kept in (1, 10, 100):
        print(f"{kept:4} kept a topic: {await _bytes_kept(client, topics, data, kept):.0f} bytes of Redis a message")


async def _empty(client: Any) -> None:
    await client.execute_command("FLUSHALL", "SYNC")  # Valkey would free the memory some time later


async def _bytes_kept(client: Any, topics: list[Any], data: bytes, kept: int) -> float:
    from notifications.history import get_store

    await _empty(client)
    before = (await client.info("memory"))["used_memory"]
    for topic in topics:
        for _ in range(kept):
            await get_store().apublish(topic, data)
    return ((await client.info("memory"))["used_memory"] - before) / len(topics) / kept


if __name__ == "__main__":
    main()
