"""
What a history costs Redis: µs of its CPU per message, and bytes per message kept.

    python -m benchmarks.stamping

Published messages are one script call each; raw ones are stamped in batches, as the listener does. Both are delivered
to the groups of this app's layer, or announced to listeners that forward them. A plain ``PUBLISH`` of the same bytes,
which keeps nothing, is the measure of all. The figures are Redis's own
(``INFO commandstats``): its work inside the commands, without reading and answering.

What each step of the script costs is what the script takes less without it, by medians.
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
STEP_ROUNDS = 9
BATCHES = (1, 10, 50, 200)
PIPELINE = 200
TOKEN = "benchmark"
STEPS = {
    "look up the last id": (
        ("pcall_('XREVRANGE', key, '+', '-', 'COUNT', 1)", "{}"),
        ("size, id, run, frame)", "size, '*', run, frame)"),
    ),
    "keep the message": (("pcall_('XADD', key, 'MAXLEN', '=', size, id, run, frame)", "id"),),
    "let it expire": (("call('PEXPIRE', key, ttl)", ""),),
    "mark that something has changed": (("\n      mark(marks, offset, name, id)", ""),),
    "publish it to the layer's group": (("deliver(group, event(topic, frame, ARGV[1], epoch, n, at))", "nil"),),
    "publish it on its own channel": (("call('PUBLISH', ARGV[6] .. topic, frame)\nreturn", "return"),),
}
"""The steps of ``publish.lua``, and what to replace in it to leave each of them out."""


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
    steps: dict[str, list[float]] = {}
    for _ in range(STEP_ROUNDS):
        for name, taken in (await _steps(client, topics, data, groups)).items():
            steps.setdefault(name, []).append(taken)
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
    nothing, whole = (median(steps.pop(name)) for name in ("nothing", "whole"))
    print(f"\npublished, {PIPELINE} at once, step by step: {whole:.2f} µs")
    print(f"  {'a script that does nothing':32} {nothing:6.2f} µs")
    for name, figures in steps.items():
        print(f"  {name:32} {whole - median(figures):6.2f} µs")
    print()
    for kept in (1, 10, 100):
        print(f"{kept:4} kept a topic: {await _bytes_kept(client, topics, data, kept):.0f} bytes of Redis a message")


async def _steps(client: Any, topics: list[Any], data: bytes, groups: list[Any]) -> dict[str, float]:
    """Return the µs of the script that publishes a message: whole, without each of its steps, and of an empty one."""
    from notifications.broker.script import RUN
    from notifications.history import redis as store

    calls = [store._publishing(topic, data, None, 0, group, 0) for topic, group in zip(topics, groups, strict=True)]
    calls = [(keys, ["run" if each is RUN else each for each in arguments]) for keys, arguments in calls]

    async def taken(source: str) -> float:
        await _empty(client)
        sha = await client.script_load(source)
        await client.config_resetstat()
        for start in range(0, MESSAGES, PIPELINE):
            pipeline = client.pipeline(transaction=False)
            for number in range(start, start + PIPELINE):
                keys, arguments = calls[number % TOPICS]
                pipeline.evalsha(sha, len(keys), *keys, *arguments)
            await pipeline.execute()
        return float((await client.info("commandstats"))["cmdstat_evalsha"]["usec"]) / MESSAGES

    found = {"nothing": await taken("return ''"), "whole": await taken(store._PUBLISH.source)}
    for name, replacements in STEPS.items():
        source = store._PUBLISH.source
        for text, instead in replacements:
            assert text in source, f"publish.lua has changed: {text}"
            source = source.replace(text, instead)
        found[name] = await taken(source)
    return found


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
