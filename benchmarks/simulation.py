"""
Where each part of a site stops, beyond the two cores that can be measured: a simulation of its queues.

    python -m benchmarks.simulation [RESULT]     from the newest result of benchmarks.shards, or from this one

Each process is a core that does one thing after the other, and each message takes from it what was measured: ``Costs``.
Messages come at random times on topics that are divided into shards by the app's own function, the shards among the
primaries as Redis divides slots, and among the listeners as evenly as they go. So it is simulated how work divides and
queues, not what it costs. The seed is fixed: the same costs give the same tables.

A site carries what its busiest core can do. How long messages wait is asked at four fifths of that.

What is left out: the network, programs that publish, replicas, what the machines do beside, and that a batch of few
messages costs more for each than a full one: costs are those of busy processes.
"""

from __future__ import annotations

import random
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from statistics import median, quantiles
from typing import Any, Final, NamedTuple

import simpy
from redis.crc import key_slot

from benchmarks import report, scenarios, shards
from benchmarks.contestants import PUBLISHED, RAW
from benchmarks.shards import SHARDS, Site

SEED: Final = 16
TOPICS: Final = 5000
MESSAGES: Final = 10_000
LOAD: Final = 0.8
"""Of what a site carries, at which its latency is asked."""
HOP: Final = 50e-6
"""Seconds from one process to the next on the same host: two system calls and a wake-up."""
SLOTS: Final = 16384
MANY: Final = 1000
"""Sockets of each web process that have the topic, where a message goes to many."""


class Costs(NamedTuple):
    """
    CPU that a message takes, in µs.

    Attributes:
        redis_raw: Of a node: a plain ``PUBLISH``, without those that hear it.
        redis_heard: Of a node: each listener that hears it there.
        redis_passed: Of a node of a cluster: sending it to each other node.
        redis_bus: Of each of these: taking it.
        redis_stamped: Of a primary: stamping it in a listener's batch, and sending it to one web process.
        redis_published: Of a primary: the script of ``publish_*``, heard by one listener, and sending it likewise.
        redis_sent: Of a primary: each further web process that has the topic.
        listener_heard: Of each listener: a raw message.
        listener_stamped: Of the listener that leads its shard, beside that.
        listener_own: Of each listener: a message of ``publish_*``.
        web_one: Of a web process: a message to one socket.
        web_many: Of a web process: a message to many sockets, without them.
        web_socket: Of a web process: each of many sockets.

    """

    redis_raw: float
    redis_heard: float
    redis_passed: float
    redis_bus: float
    redis_stamped: float
    redis_published: float
    redis_sent: float
    listener_heard: float
    listener_stamped: float
    listener_own: float
    web_one: float
    web_many: float
    web_socket: float


class Traffic(NamedTuple):
    """How messages are published, and whether each goes to ``MANY`` sockets of every web process, or to one socket."""

    road: str
    is_to_many: bool = False


TO_ONE_RAW: Final = Traffic(RAW)
TO_ONE: Final = Traffic(PUBLISHED)
TO_MANY: Final = Traffic(PUBLISHED, is_to_many=True)


def costs_of(result: report.Result) -> Costs:
    """
    Read the costs off a result of ``benchmarks.shards``, by medians.

    What a listener, or a web process, costs more is the slope from one of them to four.
    """

    def figure(scenario: str, site: Site | str, measure: str) -> float:
        row = site if isinstance(site, str) else site.name
        return median(result.scenarios[scenario][row][measure])

    one, four = Site(1, SHARDS), Site(1, SHARDS, 4)
    _, unicast, fan_out = (_measured(*each) for each in _DELIVERIES)
    heard = (figure(_BRIDGE, four, "listeners µs") - figure(_BRIDGE, one, "listeners µs")) / 3
    nobody, several = (figure(f"PUBLISH, {each} hear it", "redis-1", "node µs") for each in (0, 4))
    plain, more = Site(1, 1), Site(1, 1, web_processes=4)
    sockets = 1000
    alone, spread = (figure(fan_out, each, "server µs") * sockets for each in (plain, more))
    redis_alone, redis_spread = (figure(fan_out, each, "redis µs") * sockets for each in (plain, more))
    per_process = max(0.0, (spread - alone) / 3)
    redis_heard = (several - nobody) / 4
    return Costs(
        redis_raw=nobody,
        redis_heard=redis_heard,
        redis_passed=max(0.0, (figure("PUBLISH, 0 hear it", "redis-3", "node µs") - nobody) / 2),
        redis_bus=figure("PUBLISH, 0 hear it", "redis-3", "another node µs"),
        redis_stamped=figure(_BRIDGE, one, "redis µs") - nobody - redis_heard,
        redis_published=figure(unicast, plain, "redis µs"),
        redis_sent=max(0.0, (redis_spread - redis_alone) / 3),
        listener_heard=heard,
        listener_stamped=figure(_BRIDGE, one, "listeners µs") - heard,
        listener_own=figure(unicast, plain, "listener µs"),
        web_one=figure(unicast, plain, "server µs"),
        web_many=per_process,
        web_socket=(alone - per_process) / sockets,
    )


def _measured(scenario: str, road: str) -> str:
    return scenarios.named(scenario, 1000, road)


_BRIDGE: Final = "raw messages"
_DELIVERIES: Final = (
    (scenarios.UNICAST, RAW),
    (scenarios.UNICAST, PUBLISHED),
    (next(iter(scenarios.DEPTHS)), PUBLISHED),
)


class Core:
    """Does what it is asked in the order in which it is asked."""

    def __init__(self, part: str, speed: float = 1.0) -> None:
        self.part = part
        self.busy = 0.0
        """Seconds."""
        self._free = 0.0
        self._speed = speed

    def work(self, env: simpy.Environment, microseconds: float) -> Any:
        """Return the event that it has done so much more."""
        seconds = microseconds * 1e-6 / self._speed
        self.busy += seconds
        self._free = max(self._free, env.now) + seconds
        return env.timeout(self._free - env.now)


class Model:
    """A site whose messages wait for cores."""

    def __init__(
        self, site: Site, costs: Costs, traffic: Traffic, *, listener_speed: float = 1.0, entrances: int = SLOTS
    ) -> None:
        """
        Prepare it; ``run`` lets messages in.

        Args:
            site: How many of each part there are.
            costs: What they take.
            traffic: What is published.
            listener_speed: Of a core, what listeners have.
            entrances: At how many nodes of a cluster programs publish plainly, at most.

        """
        self._entrances = min(entrances, site.primaries)
        self.costs, self.traffic, self._shards = costs, traffic, site.shards
        self.env = simpy.Environment()
        self.primaries = [Core("Redis") for _ in range(site.primaries)]
        self.listeners = [Core("listener", listener_speed) for _ in range(site.listeners)]
        self.web = [Core("web process") for _ in range(site.web_processes)]
        self.messages = MESSAGES // 10 if traffic.is_to_many else MESSAGES
        self.latencies: list[float] = []
        """Seconds until the last socket has a message."""

    @property
    def cores(self) -> list[Core]:
        return [*self.primaries, *self.listeners, *self.web]

    def run(self, rate: float) -> None:
        """Publish all messages, so many a second on average."""
        self.env.process(self._publish(random.Random(SEED), rate, self.messages))
        self.env.run()

    def carries(self, *parts: str) -> float:
        """Return how many messages a second the busiest core of these parts can do, as it was busy for them all."""
        return self.messages / max(core.busy for core in self.cores if core.part in parts)

    def _publish(self, chance: random.Random, rate: float, messages: int) -> Iterator[Any]:
        for _ in range(messages):
            topic, node = chance.randrange(TOPICS), chance.randrange(self._entrances)
            self.env.process(self._message(topic, node))
            yield self.env.timeout(chance.expovariate(rate))

    def _message(self, topic: int, node: int) -> Iterator[Any]:
        env, costs, began = self.env, self.costs, self.env.now
        shard = zlib.crc32(f"user.{topic}".encode()) % self._shards
        primary = self.primaries[key_slot(b"{notifications:%d}" % shard) * len(self.primaries) // SLOTS]
        readers = self.web if self.traffic.is_to_many else [self.web[topic % len(self.web)]]
        sent = (len(readers) - 1) * costs.redis_sent
        yield env.timeout(HOP)
        if self.traffic.road == RAW:
            yield env.all_of([self._hear(at, is_first=at == node) for at in range(len(self.primaries))])
            yield env.timeout(HOP)
            heard = [listener.work(env, costs.listener_heard) for listener in self.listeners]
            leader = shard % len(self.listeners)
            yield heard[leader]
            yield self.listeners[leader].work(env, costs.listener_stamped)
            yield env.timeout(HOP)
            yield primary.work(env, costs.redis_stamped + sent)
        else:
            # On the topic's own channel all listeners hear it; the plain PUBLISH and one of them are in its cost.
            for at, other in enumerate(self.primaries):
                self._hear(at, is_first=other is primary)
            in_both = costs.redis_raw + costs.redis_heard
            yield primary.work(env, costs.redis_published - in_both + sent)
            for listener in self.listeners:
                listener.work(env, costs.listener_own)
        yield env.timeout(HOP)
        cost = costs.web_many + MANY * costs.web_socket if self.traffic.is_to_many else costs.web_one
        yield env.all_of([reader.work(env, cost) for reader in readers])
        self.latencies.append(env.now - began)

    def _hear(self, node: int, *, is_first: bool) -> Any:
        """Have a node take a plain message, and send it to the listeners that are connected to it."""
        listening = len(range(node, len(self.listeners), len(self.primaries)))
        others = len(self.primaries) - 1
        cost = self.costs.redis_raw + others * self.costs.redis_passed if is_first else self.costs.redis_bus
        return self.primaries[node].work(self.env, cost + listening * self.costs.redis_heard)


class Capacity(NamedTuple):
    """How many messages a second a site carries, and the part that is full then."""

    rate: float
    part: str


def capacity(site: Site, costs: Costs, traffic: Traffic, **options: Any) -> Capacity:
    """Say what the busiest core of a site can do, after it has done its part of many messages."""
    model = Model(site, costs, traffic, **options)
    model.run(rate=100.0)
    part = max(model.cores, key=lambda core: core.busy).part
    return Capacity(model.carries(part), part)


def latency(site: Site, costs: Costs, traffic: Traffic, rate: float) -> tuple[float, float]:
    """Return median and 99th percentile of the milliseconds to the last socket, at so many messages a second."""
    model = Model(site, costs, traffic)
    model.run(rate)
    hundredths = quantiles(model.latencies[model.messages // 10 :], n=100)  # without the first, which meet nobody
    return hundredths[49] * 1e3, hundredths[98] * 1e3


# The tables.

PRIMARIES: Final = (1, 3)
LISTENERS: Final = (1, 2, 4, 8)
WEB_PROCESSES: Final = (4, 16, 64)
ROOMY: Final = 64
"""Shards of the sites that are simulated: with few, one primary or listener has many more of them than another."""


def raw_table(costs: Costs) -> str:
    """Write how many raw messages to one user each sites carry."""
    head = ["raw, to one socket", *(_counted(listeners, "listener") for listeners in LISTENERS)]
    return report.markdown(head, list(_raw_rows(costs)))


def _raw_rows(costs: Costs) -> Iterator[list[str]]:
    for primaries in PRIMARIES:
        for web in WEB_PROCESSES:
            sites = [Site(primaries, ROOMY, listeners, web) for listeners in LISTENERS]
            yield [_title(primaries, web), *(_cell(site, costs, TO_ONE_RAW) for site in sites)]


def published_table(costs: Costs) -> str:
    """Write how many messages of ``publish_*`` sites carry."""
    head = ["`publish_*`, two listeners", "to one socket", f"to {MANY:,} sockets of each process", "sockets/s"]
    lines = []
    for primaries in PRIMARIES:
        for web in WEB_PROCESSES:
            site = Site(primaries, ROOMY, 2, web)
            sockets = capacity(site, costs, TO_MANY).rate * MANY * web
            cells = [_cell(site, costs, traffic) for traffic in (TO_ONE, TO_MANY)]
            lines.append([_title(primaries, web), *cells, f"{sockets:,.0f}"])
    return report.markdown(head, lines)


def _title(primaries: int, web: int) -> str:
    return f"{'one Redis' if primaries == 1 else f'{primaries} primaries'}, {web} web processes"


def _counted(number: int, word: str) -> str:
    return f"{number} {word}{'s' * (number > 1)}"


def _cell(site: Site, costs: Costs, traffic: Traffic) -> str:
    found = capacity(site, costs, traffic)
    middle, late = latency(site, costs, traffic, LOAD * found.rate)
    return f"{_rounded(found.rate)}/s ({found.part}); {_two_figures(middle)} / {_two_figures(late)} ms"


def _two_figures(figure: float) -> str:
    return f"{float(f'{figure:.2g}'):g}"


def _rounded(rate: float) -> str:
    """Write two figures that count."""
    unit = 10 ** max(0, len(str(int(rate))) - 2)
    return f"{round(rate / unit) * unit:,}"


def costs_table(costs: Costs) -> str:
    """Write what the simulation begins with."""
    return report.markdown(["µs of CPU", ""], [[f"`{name}`", f"{cost:.2f}"] for name, cost in costs._asdict().items()])


def errors_table(result: report.Result, costs: Costs) -> str:
    """Compare what is simulated of small sites with what was measured of them, and did not go into the costs."""
    head = ["", "measured", "simulated", "error"]
    return report.markdown(head, [_compared(*each) for each in _checks(result, costs)])


def _checks(result: report.Result, costs: Costs) -> Iterator[tuple[str, float, float]]:
    bridges = result.scenarios[_BRIDGE]
    for site in shards.BRIDGES[2:]:
        if site.name not in bridges:
            continue
        row = {measure: median(figures) for measure, figures in bridges[site.name].items()}
        if row["of a core %"] > 85 * shards.SHARE:  # the machine was theirs
            slow = capacity(site, costs, TO_ONE_RAW, listener_speed=shards.SHARE, entrances=1)
            yield f"{site.title}, raw: messages/s, a quarter of a core each", row["rate/s"], slow.rate
        if site not in (Site(1, SHARDS), Site(1, SHARDS, 4)):
            yield f"{site.title}: a listener carries/s", row["a listener carries/s"], _carried(site, costs, "listener")
        yield f"{site.title}: a primary carries/s", row["a primary carries/s"], _carried(site, costs, "Redis")
    for scenario, road in _DELIVERIES[:2]:
        for site in shards.DELIVERIES[2:]:
            row = result.scenarios[_measured(scenario, road)].get(site.name)
            if row is not None:
                yield f"{site.title}, unicast, {road}: sum, µs", median(row["sum µs"]), _sum(site, costs, Traffic(road))


def _carried(site: Site, costs: Costs, part: str) -> float:
    model = Model(site, costs, TO_ONE_RAW, entrances=1)
    model.run(rate=100.0)
    return model.carries(part)


def _sum(site: Site, costs: Costs, traffic: Traffic) -> float:
    model = Model(site, costs, traffic, entrances=1)
    model.run(rate=100.0)
    return sum(core.busy for core in model.cores) * 1e6 / model.messages


def _compared(title: str, measured: float, simulated: float) -> list[str]:
    return [title, report.short(measured), report.short(simulated), f"{100 * (simulated / measured - 1):+.0f} %"]


def told(result: report.Result) -> str:
    """Write all tables, for a result of ``benchmarks.shards``."""
    try:
        costs = costs_of(result)
    except KeyError:
        return "Not measured."
    carried = f"{raw_table(costs)}\n\n{published_table(costs)}"
    return f"{carried}\n\nFrom these costs:\n\n{costs_table(costs)}\n\nErrors:\n\n{errors_table(result, costs)}"


def main() -> None:
    [path] = [Path(sys.argv[1])] if sys.argv[1:] else report.newest(["shards"])
    print(f"{told(report.load(path))}\n\nof {path.name}")


if __name__ == "__main__":
    main()
