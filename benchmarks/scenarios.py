"""What a round of one contestant asks of it, with more and more sockets: connect, fan-out, unicast, latency, idle."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from statistics import quantiles
from typing import Any, Final, NamedTuple

from benchmarks.contestants import RAW, UPLOAD, Contestant
from benchmarks.load import Load
from benchmarks.profiling import profiled
from benchmarks.publishing import Published, Raw
from benchmarks.stage import Stage

WARM_UP: Final = 20
"""Sockets that come and go before anything is measured."""
WARM_UP_SECONDS: Final = 0.3
"""That a scenario runs before it is measured: Node's compiler needs them, and takes twice the CPU until then."""
DEPTHS: Final = {"fan-out, one at a time": 1, "fan-out, 10 under way": 10}
"""Messages that are published on the upload before all sockets have the first of them. The more there are, the cheaper
looks whoever hands over together what waits; alone, each costs a write to each socket, whoever sends it."""
UNICAST: Final = "unicast"
BURSTS: Final = (*DEPTHS, UNICAST)
LATENCY: Final = "latency"
RATE: Final = 200
"""Messages a second while latency is measured."""
PATIENCE: Final = 7.0
"""Seconds without a message after which the rest is lost. Holes are filled within 5."""
PER_SECOND: Final = 50
"""Sockets that a server has to connect, or close, in a second at least."""
DELIVERIES_PER_SECOND: Final = 1000
"""That a server has to make at least: some begin to send when they have gone through all sockets several times."""
LONGEST: Final = 15
"""Seconds that a burst may take, judged by one message to all; a longer one is left out."""
START_SECONDS: Final = 7
"""About what it takes to start the processes of a contestant, and to end them."""

Figures = dict[str, Any]
"""Of one scenario in one round."""


class Step(NamedTuple):
    """What is asked when there are so many sockets."""

    sockets: int
    scenarios: Mapping[str, Sequence[str]]
    """By the road that messages take."""
    idle: bool = False
    """Whether they then hear nothing, for as long as the contestant takes to do once all it does by itself."""


class Plan(NamedTuple):
    """How much of everything."""

    steps: tuple[Step, ...]
    """With more and more sockets."""
    seconds: float
    """That each scenario runs at least; it ends with a whole burst."""
    latency_seconds: float = 0
    """That latency is measured."""


def named(scenario: str, sockets: int, road: str = "") -> str:
    """Name a scenario in tables and results: ``"unicast, published, 1,000 sockets"``."""
    return ", ".join(part for part in (scenario, road, f"{sockets:,} sockets") if part)


def seconds(contestant: Contestant, plan: Plan) -> float:
    """Say about how long a round takes, where all is as fast as it is on two cores of our own."""
    took = START_SECONDS + plan.steps[-1].sockets / 700
    for step in plan.steps:
        took += contestant.period if step.idle else 0
        for road in contestant.roads:
            for scenario in step.scenarios.get(road, ()):
                took += plan.latency_seconds if scenario == LATENCY else WARM_UP_SECONDS + plan.seconds
    return took


def run(
    contestant: Contestant, plan: Plan, profile: Path | None = None, **processes: int
) -> Iterator[tuple[str, Figures]]:
    """
    Run a round, and give (scenario, figures) when each is over.

    Args:
        contestant: Whom.
        plan: How much.
        profile: A directory for what py-spy sees; the figures are then worth little.
        processes: How many of each, for ``Stage``.

    """
    roads = [road for road in contestant.roads if any(road in step.scenarios for step in plan.steps)]
    with ExitStack() as stack:
        stage = stack.enter_context(Stage(contestant, **processes))
        publishers = {road: stack.enter_context(closing(start_publisher(stage, road))) for road in roads}
        memory, connected = memory_before(stage), 0
        load = stack.enter_context(closing(Load(stage.ports, contestant.login)))
        for step in plan.steps:
            figures, memory = connect(stage, load, step.sockets - connected, memory)
            connected = step.sockets
            yield named("connect", connected), figures
            if step.idle:
                yield named("idle", connected), idle(stage, load, contestant.period)
            for road, publisher in publishers.items():
                expected = 0.0
                for scenario in step.scenarios.get(road, ()):
                    name = named(scenario, connected, road)
                    if scenario == LATENCY:
                        yield name, _latency(load, publisher, plan.latency_seconds)
                    elif DEPTHS.get(scenario, 1) * expected <= LONGEST:
                        with profiled(stage, name, profile):
                            figures = _bursts(stage, load, publisher, scenario, plan.seconds)
                        expected = connected / max(figures["deliveries/s"], 1)
                        yield name, figures
            if load.closed:
                raise RuntimeError(f"{contestant.name} closed {load.closed} sockets")


def memory_before(stage: Stage) -> int:
    """Return the memory of the web processes when each has had some sockets, and has none."""
    with closing(Load(stage.ports, stage.contestant.login)) as warm_up:
        warm_up.connect(WARM_UP)
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


def start_publisher(stage: Stage, road: str) -> Raw | Published:
    """Start what publishes on a road."""
    if road == RAW:
        return Raw(stage.redis.url)
    return Published(stage.contestant.publisher, stage.env)


def _bursts(stage: Stage, load: Load, publisher: Raw | Published, scenario: str, seconds: float) -> Figures:
    _publish(load, publisher, scenario, WARM_UP_SECONDS)
    with _measured(stage, publisher) as figures:
        began = time.monotonic()
        published = _publish(load, publisher, scenario, seconds)
        figures["seconds"] = time.monotonic() - began
    tally = load.finish(published)
    figures["deliveries"] = tally.received
    for role in ("server", "listener", "redis", "load"):
        figures[f"{role} µs"] = figures.pop(role) * 1e6 / max(tally.received, 1)
    figures["sum µs"] = sum(figures[f"{role} µs"] for role in ("server", "listener", "redis"))
    figures["deliveries/s"] = tally.received / figures["seconds"]
    figures |= {"lost": tally.lost, "repeated": tally.repeated, "out of order": tally.late}
    return figures


def _publish(load: Load, publisher: Raw | Published, scenario: str, seconds: float) -> int:
    """
    Publish one message, or several, for each client, and again when all have arrived.

    Returns:
        How many were published for each client.

    """
    topics = _users(load) if scenario == UNICAST else [f"upload:{UPLOAD}"]
    turns, published = DEPTHS.get(scenario, 1), 0
    slow = PATIENCE + turns * len(load.clients) / DELIVERIES_PER_SECOND
    load.begin()
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        publisher.send([(topic, published + turn) for turn in range(1, turns + 1) for topic in topics])
        published += turns
        if not load.receive(published * len(load.clients), slow):
            break
    return published


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
