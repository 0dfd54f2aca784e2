"""
A day of a real site in small: users come and go while their uploads are analysed.

    python -m benchmarks.day

1,000 uploads of 500 users, with 20 progress messages each and a notice to the user at the end. A page watches its
uploads from before they begin; it is open for some seconds, away for some, and comes back with the ids it had last;
half of the times its connection was cut. Half of the users get raw messages, half published ones. Of every topic its
reader must have had each message once and in order. Clients are those of ``websockets``, on the load's core.

"told": ``recovered:false``; "closed": by the server; "comings": connections; "recovered": messages published before
their page had joined the topic again, which have no latency.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple
from uuid import UUID

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from benchmarks import accounts, contestants, rounds, scenarios
from benchmarks.contestants import Contestant
from benchmarks.publishing import Published, Raw
from benchmarks.scenarios import PATIENCE, Figures
from benchmarks.stage import Stage
from benchmarks.tally import Reader, Tally


class Plan(NamedTuple):
    """How much of everything, and the seconds that it is spread over."""

    users: int = 500
    uploads: int = 1000
    messages: int = 20
    """Of each upload."""
    seconds: float = 80
    upload_seconds: float = 6
    open_seconds: tuple[float, float] = (3, 12)
    away_seconds: tuple[float, float] = (0.2, 4)


@dataclass(eq=False)
class User:
    """A user with one page, which outlives its connections."""

    number: int
    positions: dict[str, str] = field(default_factory=dict)
    """The last id of each topic."""
    readers: dict[str, Reader] = field(default_factory=dict)
    watching: dict[str, asyncio.Event] = field(default_factory=dict)
    """Uploads that are not over, and whether the page has subscribed: then the worker may begin."""
    socket: ClientConnection | None = None

    @property
    def own(self) -> str:
        return f"user:{self.number}"


class Day:
    """All users, and what they have had."""

    def __init__(self, stage: Stage, plan: Plan, publishers: tuple[Raw, Published]) -> None:
        self.tally = Tally()
        self.comings = self.cut = self.recovered = self.told = 0
        self.published: dict[str, int] = {}
        self._stage, self._plan, self._publishers = stage, plan, publishers
        self._users = [User(number) for number in range(1, plan.users + 1)]
        self._random = random.Random(1)

    async def pass_by(self) -> None:
        """Live through the day, and count what is lost when everything has come, or nothing comes any more."""
        async with asyncio.TaskGroup() as pages:
            tasks = [pages.create_task(self._browse(user)) for user in self._users]
            async with asyncio.TaskGroup() as workers:
                pause = max(0.0, self._plan.seconds - self._plan.upload_seconds) / self._plan.uploads
                for number in range(self._plan.uploads):
                    workers.create_task(self._upload(number))
                    await asyncio.sleep(pause)
            await self._quiet()
            for task in tasks:
                task.cancel()
        readers = {topic: reader for user in self._users for topic, reader in user.readers.items()}
        self.tally.lost = sum(readers[topic].lost(count) for topic, count in self.published.items())

    async def _quiet(self) -> None:
        heard, before = time.monotonic(), -1
        while self.tally.received < sum(self.published.values()) and time.monotonic() - heard < PATIENCE:
            if self.tally.received != before:
                heard, before = time.monotonic(), self.tally.received
            await asyncio.sleep(0.1)

    async def _upload(self, number: int) -> None:
        user = self._users[number % len(self._users)]
        topic = f"upload:{UUID(int=number + 1, version=4)}"
        user.readers[topic], user.watching[topic] = Reader(), asyncio.Event()
        if user.socket is not None:
            with suppress(ConnectionClosed):  # the next connection subscribes
                await self._subscribe(user, user.socket, topic)
        await user.watching[topic].wait()
        for seq in range(1, self._plan.messages + 1):
            await asyncio.sleep(self._random.expovariate(self._plan.messages / self._plan.upload_seconds))
            self._publish(user, topic, seq)
        self._publish(user, user.own, self.published.get(user.own, 0) + 1)

    def _publish(self, user: User, topic: str, seq: int) -> None:
        self.published[topic] = seq
        self._publishers[user.number % 2].send([(topic, seq)])

    async def _browse(self, user: User) -> None:
        user.readers[user.own] = Reader()
        while True:
            since = f"?since={user.positions[user.own]}" if user.own in user.positions else ""
            port = self._stage.ports[user.number % len(self._stage.ports)]
            url = f"ws://127.0.0.1:{port}/ws/notifications/{since}"
            headers = {"Cookie": accounts.COOKIE.format(user=user.number)}
            origin = f"http://127.0.0.1:{port}"
            async with connect(url, compression=None, origin=origin, additional_headers=headers) as socket:
                self.comings += 1
                try:
                    async with asyncio.timeout(self._random.uniform(*self._plan.open_seconds)):
                        await self._listen(user, socket)
                except TimeoutError:
                    if self._random.random() < 0.5:
                        socket.transport.abort()
                except ConnectionClosed:
                    self.cut += 1
                finally:
                    user.socket = None
            await asyncio.sleep(self._random.uniform(*self._plan.away_seconds))

    async def _listen(self, user: User, socket: ClientConnection) -> None:
        joined: dict[str, int] = {}
        async for text in socket:
            frame = json.loads(text)
            action = frame["action"]
            if "_meta" in frame:
                topic = frame["_meta"]["topic"]
                self._take(user, topic, frame, joined[topic])
                if topic in user.watching and frame["seq"] == self._plan.messages:
                    del user.watching[topic]
                    await socket.send(json.dumps({"action": "unsubscribe", "topic": topic}))
            elif action == "auth_success":
                self._note(user, user.own, frame)
                joined[user.own] = time.monotonic_ns()
                user.socket = socket
                for topic in list(user.watching):
                    await self._subscribe(user, socket, topic)
            elif action == "subscribed":
                self._note(user, frame["topic"], frame)
                joined[frame["topic"]] = time.monotonic_ns()
                if frame["topic"] in user.watching:
                    user.watching[frame["topic"]].set()
            elif action == "ping":
                await socket.send(json.dumps({"action": "pong", "n": frame["n"]}))

    async def _subscribe(self, user: User, socket: ClientConnection, topic: str) -> None:
        await socket.send(json.dumps({"action": "subscribe", "topic": topic, "since": user.positions.get(topic)}))

    def _note(self, user: User, topic: str, answer: dict[str, Any]) -> None:
        user.positions[topic] = answer["id"]
        self.told += answer["recovered"] is False

    def _take(self, user: User, topic: str, message: dict[str, Any], joined: int) -> None:
        user.positions[topic] = message["_meta"]["id"]
        self.tally.take(user.readers[topic], message["seq"])
        if message["at"] < joined:
            self.recovered += 1
        else:
            self.tally.latencies.append((time.monotonic_ns() - message["at"]) / 1e6)


def run(contestant: Contestant, plan: Plan) -> Iterator[tuple[str, Figures]]:
    """Run one day, and give its figures."""
    with (
        Stage(contestant) as stage,
        closing(Raw(stage.redis.url)) as raw,
        closing(Published(contestant.publisher, stage.env)) as published,
    ):
        day = Day(stage, plan, (raw, published))
        before, own, began = stage.cpu(), time.process_time(), time.monotonic()
        asyncio.run(day.pass_by())
        wall, own = time.monotonic() - began, time.process_time() - own
        stage.settle()
        after = stage.cpu()
    tally = day.tally
    yield (
        "day",
        {
            **{f"{role} %": 100 * (after[role] - before[role]) / wall for role in after},
            **scenarios.cuts(tally.latencies),
            "messages": sum(day.published.values()),
            "lost": tally.lost,
            "repeated": tally.repeated,
            "out of order": tally.late,
            "told": day.told,
            "closed": day.cut,
            "comings": day.comings,
            "recovered": day.recovered,
            "load busy %": 100 * own / wall,
        },
    )


def main() -> None:
    plan = Plan()
    chosen = [each for each in contestants.ALL if each.name in ("ours", "ours-daphne")]
    entries = [rounds.Entry(each.name, each.title, partial(run, each, plan), plan.seconds + 10) for each in chosen]
    rounds.run("day", entries, 1, plan._asdict(), reference=contestants.REFERENCE)


if __name__ == "__main__":
    main()
