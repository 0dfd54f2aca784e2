"""
Several faults at once, at random, and the same ones again with the same seed.

    storm = Storm(seed=7, seconds=150)
    result = await run.through("a storm", storm.blow, at=0.02)

The seed decides what breaks when, for how long and where; what the machine makes of it is its own.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from itertools import pairwise
from typing import Any, NamedTuple

import redis

from tests.fault_run import Run
from tests.faults import kill_connections, kill_type, listeners_connections, paused
from tests.waiting import scaled

PAUSE = 1.5
"""Seconds between two faults, on average; each lasts for up to its ``longest``."""


class Gust(NamedTuple):
    """
    One fault of a storm.

    Attributes:
        at: Seconds after the storm's begin.
        fault: Its name in ``FAULTS``.
        seconds: How long it lasts.
        choice: Decides whom it hits, from 0 to 1.

    """

    at: float
    fault: str
    seconds: float
    choice: float


Faults = dict[str, tuple[Callable[[Any, Gust], Awaitable[None]], int, float]]


class Storm:
    """A plan of gusts, and their coming."""

    def __init__(self, seed: int, seconds: float, faults: Faults | None = None) -> None:
        self.seed = seed
        self._faults = faults = FAULTS if faults is None else faults
        chance = random.Random(seed)
        self.gusts: list[Gust] = []
        at = 0.0
        while (at := at + chance.expovariate(1 / PAUSE)) < seconds:
            fault = chance.choices(list(faults), [weight for _, weight, _ in faults.values()])[0]
            longest = faults[fault][2]
            self.gusts.append(Gust(at, fault, chance.uniform(0.2, 1) * longest, chance.random()))

    @property
    def at_once(self) -> int:
        """How many gusts begin before the one before them is over."""
        return sum(after.at < before.at + before.seconds for before, after in pairwise(self.gusts))

    async def blow(self, run: Run) -> None:
        """Let it all happen, and return when everything is whole again."""
        async with asyncio.TaskGroup() as tasks:
            for gust in self.gusts:
                tasks.create_task(self._come(run, gust))
        await ask(run, lambda client: client.config_set("maxmemory", 0))
        await run.find_holder()

    async def _come(self, run: Run, gust: Gust) -> None:
        await asyncio.sleep(gust.at)
        await self._faults[gust.fault][0](run, gust)


async def ask(run: Run, command: Callable[[redis.Redis], Any]) -> Any:
    """Run a command of the tests' own: other faults hit its connection as well."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + scaled(30)
    while True:
        try:
            return await asyncio.to_thread(lambda: command(run.site.client()))
        except redis.RedisError:
            assert loop.time() < deadline
            await asyncio.sleep(0.1)


def chosen(candidates: list[Any], gust: Gust) -> Any:
    return candidates[int(gust.choice * len(candidates))]


async def kill_a_listener(run: Run, gust: Gust) -> None:
    """Kill it with ``kill -9``; a supervisor starts another."""
    living = [listener for listener in run.listeners if listener.returncode is None]
    if len(living) > 1:  # the other one would be a second before the supervisor
        victim = chosen(living, gust)
        run.listeners.remove(victim)
        await asyncio.to_thread(victim.kill)
        await asyncio.sleep(gust.seconds)
        run.listeners.append(await asyncio.to_thread(run.site.start_listener, ready=None))


async def kill_the_web_server(run: Run, gust: Gust) -> None:
    [server] = run.servers
    if server.returncode is None:
        await asyncio.to_thread(server.kill)
        run.servers[:] = [await asyncio.to_thread(run.site.start_server, server.kind, server.port)]
        for browser in run.browsers:
            browser.server = run.servers[0]


async def pause_a_listener(run: Run, gust: Gust) -> None:
    living = [listener for listener in run.listeners if listener.returncode is None]
    if living:
        await pause(chosen(living, gust), gust)


async def pause_the_web_server(run: Run, gust: Gust) -> None:
    if run.servers[0].returncode is None:
        await pause(run.servers[0], gust)


async def pause_redis(run: Run, gust: Gust) -> None:
    await pause(run.site.redis.child, gust)


async def pause(process: Any, gust: Gust) -> None:
    with suppress(ProcessLookupError), paused(process):
        await asyncio.sleep(gust.seconds)


async def cut_a_listener(run: Run, gust: Gust) -> None:
    """CLIENT KILL the subscription of one listener."""

    def cut(client: redis.Redis) -> None:
        if found := listeners_connections(client):
            kill_connections(client, [chosen(found, gust)])

    await ask(run, cut)


async def cut_subscriptions(run: Run, gust: Gust) -> None:
    """CLIENT KILL every subscription, of listeners and of channel layers."""
    await ask(run, lambda client: kill_type(client, "pubsub"))


async def cut_callers(run: Run, gust: Gust) -> None:
    """CLIENT KILL every other connection, also of whoever publishes."""
    await ask(run, lambda client: kill_type(client, "normal"))


async def fill_redis(run: Run, gust: Gust) -> None:
    await ask(run, lambda client: client.config_set("maxmemory", 1))
    await asyncio.sleep(gust.seconds)
    await ask(run, lambda client: client.config_set("maxmemory", 0))


async def forget_scripts(run: Run, gust: Gust) -> None:
    await ask(run, lambda client: client.script_flush())


async def freeze_browsers(run: Run, gust: Gust) -> None:
    """Let a tenth of the browsers read nothing."""
    begin = int(gust.choice * 10)
    async with AsyncExitStack() as stack:
        for browser in run.browsers[begin::10]:
            await stack.enter_async_context(browser.frozen())
        await asyncio.sleep(gust.seconds)


async def drop_browsers(run: Run, gust: Gust) -> None:
    for browser in run.browsers[int(gust.choice * 10) :: 10]:
        browser.drop()


FAULTS: Faults = {
    "kill a listener": (kill_a_listener, 3, 2.0),
    "kill the web server": (kill_the_web_server, 1, 0.0),
    "pause a listener": (pause_a_listener, 3, 6.0),
    "pause the web server": (pause_the_web_server, 2, 3.0),
    "pause Redis": (pause_redis, 2, 2.5),
    "cut a listener": (cut_a_listener, 4, 0.0),
    "cut subscriptions": (cut_subscriptions, 2, 0.0),
    "cut callers": (cut_callers, 2, 0.0),
    "fill Redis": (fill_redis, 4, 4.0),
    "forget scripts": (forget_scripts, 1, 0.0),
    "freeze browsers": (freeze_browsers, 4, 8.0),
    "drop browsers": (drop_browsers, 3, 0.0),
}
"""By name: what it does, how often beside the others, and how many seconds it lasts at most."""


def seeds() -> list[int]:
    """List the seeds of a run of the tests: those of ``FAULT_SEEDS``, such as ``3,4``, or one."""
    return [int(seed) for seed in os.environ.get("FAULT_SEEDS", "1").split(",")]


def says(run: Run, storm: Storm) -> str:
    """Say in a sentence what became of raw messages."""
    losses = ", ".join(f"{count:,} {what}" for what, count in run.raw_losses.items())
    return f"seed {storm.seed}, {len(storm.gusts)} faults, {storm.at_once} of them on top of another; raw: {losses}."
