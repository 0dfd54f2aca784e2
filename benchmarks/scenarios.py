"""What a round of one contestant asks of it, with more and more sockets: connect, fan-out, unicast, latency, idle."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from statistics import quantiles
from typing import Any, Final, NamedTuple

from benchmarks.contestants import UPLOAD, Contestant
from benchmarks.load import Load
from benchmarks.profiling import profiled
from benchmarks.publishing import Published, Raw
from benchmarks.stage import Stage

WARM_UP: Final = 20
"""Sockets that come and go before anything is measured."""
WARM_UP_SECONDS: Final = 0.2
"""That they hear something in, by each scenario: until then just-in-time compilers and caches are cold."""
DEPTHS: Final = {"fan-out, 10 under way": 10, "fan-out, one at a time": 1}
"""Messages that are published on the upload before all sockets have the first of them. The more there are, the cheaper
looks whoever hands over together what waits; alone, each costs a write to each socket, whoever sends it."""
UNICAST: Final = "unicast"
LATENCY: Final = "latency"
RATE: Final = 200
"""Messages a second while latency is measured."""
PATIENCE: Final = 7.0
"""Seconds without a message after which the rest is lost. Holes are filled within 5."""
PER_SECOND: Final = 50
"""Sockets that a server has to connect, or close, in a second at least."""
START_SECONDS: Final = 7
"""About what it takes to start the processes of a contestant, and to end them."""

Figures = dict[str, Any]
"""Of one scenario in one round."""


class Step(NamedTuple):
    """What is asked when there are so many sockets."""

    sockets: int
    scenarios: tuple[str, ...] = (*DEPTHS, UNICAST)
    latency_seconds: float = 0
    """0 leaves latencies out."""
    idle: bool = False
    """Whether they then hear nothing, for as long as the contestant takes to do once all it does by itself."""


class Plan(NamedTuple):
    """How much of everything."""

    steps: tuple[Step, ...]
    """With more and more sockets."""
    seconds: float
    """That each scenario runs at least; it ends with a whole burst."""


def named(scenario: str, sockets: int, road: str = "") -> str:
    """Name a scenario in tables and results: ``"unicast, published, 1,000 sockets"``."""
    return ", ".join(part for part in (scenario, road, f"{sockets:,} sockets") if part)


def seconds(contestant: Contestant, plan: Plan, roads: Sequence[str]) -> float:
    """Say about how long a round takes, where all is as fast as it is on two cores of our own."""
    each = sum(len(step.scenarios) * plan.seconds + step.latency_seconds + 1 for step in plan.steps)
    idle = sum(contestant.period for step in plan.steps if step.idle)
    return START_SECONDS + len(roads) * each + plan.steps[-1].sockets / 700 + idle


def run(
    contestant: Contestant, plan: Plan, roads: Sequence[str], profile: Path | None = None, web_processes: int = 1
) -> Iterator[tuple[str, Figures]]:
    """
    Run a round, and give (scenario, figures) when each is over.

    Args:
        contestant: Whom.
        plan: How much.
        roads: Of its roads those that messages take.
        profile: A directory for what py-spy sees; the figures are then worth little.
        web_processes: Among which the sockets are divided.

    """
    with ExitStack() as stack:
        stage = stack.enter_context(Stage(contestant, web_processes))
        publishers = {road: stack.enter_context(closing(_publisher(stage, road))) for road in roads}
        memory, connected = memory_before(stage, publishers.values()), 0
        load = stack.enter_context(closing(Load(stage.ports, contestant.login)))
        for step in plan.steps:
            figures, memory = connect(stage, load, step.sockets - connected, memory)
            connected = step.sockets
            yield named("connect", connected), figures
            if step.idle:
                yield named("idle", connected), idle(stage, load, contestant.period)
            for road, publisher in publishers.items():
                for scenario in step.scenarios:
                    name = named(scenario, connected, road)
                    with profiled(stage, name, profile):
                        figures = _bursts(stage, load, publisher, scenario, plan.seconds)
                    yield name, figures
                if step.latency_seconds:
                    yield named(LATENCY, connected, road), _latency(load, publisher, step.latency_seconds)
            if load.closed:
                raise RuntimeError(f"{contestant.name} closed {load.closed} sockets")


def memory_before(stage: Stage, publishers: Iterable[Raw | Published] = ()) -> int:
    """Return the memory of the web processes when each has had some sockets, and messages, and has no socket."""
    with closing(Load(stage.ports, stage.contestant.login)) as load:
        load.connect(WARM_UP)
        for publisher in publishers:
            for scenario in (*DEPTHS, UNICAST):
                _bursts(stage, load, publisher, scenario, WARM_UP_SECONDS)
    time.sleep(0.3)
    return stage.server_memory()


def connect(stage: Stage, load: Load, more: int, before: int) -> tuple[Figures, int]:
    """
    Open more sockets.

    Args:
        stage: Where.
        load: Whose.
        more: How many.
        before: The memory of the web processes without them.

    Returns:
        The figures, and the memory of the web processes with them.

    """
    cpu = stage.cpu()
    seconds = load.connect(len(load.clients) + more, patience(more))
    stage.settle()
    used = stage.cpu()["server"] - cpu["server"]
    after = stage.server_memory()
    return {
        "connections/s": more / seconds,
        "server µs": used * 1e6 / more,
        "KiB a connection": (after - before) / 1024 / more,
    }, after


def patience(sockets: int) -> float:
    """Return the seconds that connecting, or closing, may take."""
    return 30 + sockets / PER_SECOND


def idle(stage: Stage, load: Load, seconds: float) -> Figures:
    """Let the sockets hear nothing; the clients answer what the server asks."""
    before, own, began = stage.cpu(), time.process_time(), time.monotonic()
    while time.monotonic() - began < seconds:
        load.turn(0.5)
    after, own, wall = stage.cpu(), time.process_time() - own, time.monotonic() - began
    if load.closed:
        raise RuntimeError(f"{stage.contestant.name} closed {load.closed} sockets")
    figures = {f"{role} ms/min": (after[role] - before[role]) * 60_000 / wall for role in after}
    return figures | {"load busy %": 100 * own / wall}


def _publisher(stage: Stage, road: str) -> Raw | Published:
    if road == "raw":
        return Raw(stage.redis.url)
    return Published(stage.contestant.publisher, stage.env)


def _bursts(stage: Stage, load: Load, publisher: Raw | Published, scenario: str, seconds: float) -> Figures:
    """Publish one message, or several, for each client, and again when all have arrived."""
    topics = _users(load) if scenario == UNICAST else [f"upload:{UPLOAD}"]
    turns, published = DEPTHS.get(scenario, 1), 0
    load.begin()
    with _measured(stage, publisher) as figures:
        began = time.monotonic()
        while time.monotonic() - began < seconds:
            publisher.send([(topic, published + turn) for turn in range(1, turns + 1) for topic in topics])
            published += turns
            if not load.receive(published * len(load.clients), PATIENCE):
                break
        figures["seconds"] = time.monotonic() - began
    tally = load.finish(published)
    figures["deliveries"] = tally.received
    for role in ("server", "listener", "redis", "load"):
        figures[f"{role} µs"] = figures.pop(role) * 1e6 / max(tally.received, 1)
    figures["sum µs"] = sum(figures[f"{role} µs"] for role in ("server", "listener", "redis"))
    figures["deliveries/s"] = tally.received / figures["seconds"]
    figures |= {"lost": tally.lost, "repeated": tally.repeated, "out of order": tally.late}
    return figures


@contextmanager
def _measured(stage: Stage, publisher: Raw | Published) -> Iterator[Figures]:
    """Fill in what the processes used of their cores meanwhile, and how busy the load's core was."""
    figures: Figures = {}
    cpu, own, others = stage.cpu(), time.process_time(), publisher.cpu_seconds()
    began = time.monotonic()
    yield figures
    wall = time.monotonic() - began
    own, others = time.process_time() - own, publisher.cpu_seconds() - others
    stage.settle()
    after = stage.cpu()
    figures |= {role: after[role] - cpu[role] for role in cpu} | {"load": own}
    figures["load busy %"] = 100 * own / wall
    figures["load core busy %"] = 100 * (own + others + figures["redis"]) / wall


def _users(load: Load) -> list[str]:
    return [f"user:{number}" for number in range(1, len(load.clients) + 1)]


def _latency(load: Load, publisher: Raw | Published, seconds: float) -> Figures:
    users = _users(load)
    load.begin(timed=True)
    began, sent = time.monotonic(), 0
    own = time.process_time()
    total = int(seconds * RATE)
    while sent < total:
        if time.monotonic() >= began + sent / RATE:
            turn, user = divmod(sent, len(users))
            publisher.send([(users[user], turn + 1)])
            sent += 1
        load.turn(max(0.0, min(0.001, began + sent / RATE - time.monotonic())))
    busy = time.process_time() - own
    wall = time.monotonic() - began
    load.receive(total, PATIENCE)
    times = load.tally.latencies
    return cuts(times) | {"lost": total - len(times), "load busy %": 100 * busy / wall}


def cuts(times: list[float]) -> Figures:
    """Return median, 99th percentile and maximum of latencies."""
    hundredths = quantiles(times, n=100) if len(times) > 1 else [float("nan")] * 99
    return {"p50 ms": hundredths[49], "p99 ms": hundredths[98], "max ms": max(times, default=float("nan"))}
