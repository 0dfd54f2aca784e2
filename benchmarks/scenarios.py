"""One round of one contestant: connect, fan-out, unicast, latency."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
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
FAN_OUT_BURST: Final = 1
"""Messages that are published on the upload before the next is; with more, whoever collects what waits looks cheaper
than on a site, where progress comes message by message."""
RATE: Final = 200
"""Messages a second while latency is measured."""
PATIENCE: Final = 7.0
"""Seconds without a message after which the rest is lost. Holes are filled within 5."""


class Plan(NamedTuple):
    """How much of everything."""

    sockets: int
    seconds: float
    """That each scenario runs at least; it ends with a whole burst."""
    latency_seconds: float
    """0 leaves latencies out."""
    unicast_burst: int = 0
    """Messages of one burst; at least one to each user. Only for raw ones: workers say nothing of the order of more."""


Figures = dict[str, Any]
"""Of one scenario in one round."""


def run(
    contestant: Contestant, plan: Plan, roads: list[str], profile: Path | None = None, web_processes: int = 1
) -> dict[str, Figures]:
    """
    Run a round and return its figures by scenario, such as ``"fan-out raw"``.

    Args:
        contestant: Whom.
        plan: How much.
        roads: Of its roads those that messages take.
        profile: A directory for what py-spy sees; the figures are then worth little.
        web_processes: Among which the sockets are divided.

    """
    found: dict[str, Figures] = {}
    with Stage(contestant, web_processes) as stage:
        before = memory_before(stage)
        with closing(Load(stage.ports, contestant.login)) as load:
            found["connect"] = connect(stage, load, plan.sockets, before)
            for road in roads:
                with closing(_publisher(stage, road)) as publisher:
                    users = [f"user:{number}" for number in range(1, plan.sockets + 1)]
                    _warm_up(load, publisher)
                    for scenario, topics, turns in (
                        ("fan-out", [f"upload:{UPLOAD}"], FAN_OUT_BURST),
                        ("unicast", users, max(1, plan.unicast_burst // len(users))),
                    ):
                        name = f"{scenario} {road}"
                        with profiled(stage, name, profile):
                            found[name] = _bursts(stage, load, publisher, topics, turns, plan.seconds)
                    if plan.latency_seconds:
                        found[f"latency {road}"] = _latency(load, publisher, users, plan)
            if load.closed:
                raise RuntimeError(f"{contestant.name} closed {load.closed} sockets")
    return found


def memory_before(stage: Stage) -> int:
    """Return the memory of the web processes when each has had some sockets, and has none."""
    with closing(Load(stage.ports, stage.contestant.login)) as warm_up:
        warm_up.connect(WARM_UP)
    time.sleep(0.3)
    return stage.server_memory()


def connect(stage: Stage, load: Load, sockets: int, before: int, patience: float = 60) -> Figures:
    """Open the sockets; ``before`` is what ``memory_before`` returned."""
    seconds = load.connect(sockets, patience)
    stage.settle()
    return {
        "connections/s": sockets / seconds,
        "KiB a connection": (stage.server_memory() - before) / 1024 / sockets,
    }


def _publisher(stage: Stage, road: str) -> Raw | Published:
    if road == "raw":
        return Raw(stage.redis.url)
    return Published(stage.contestant.publisher, stage.env)


def _warm_up(load: Load, publisher: Raw | Published) -> None:
    load.begin()
    publisher.send([(f"upload:{UPLOAD}", 1), ("user:1", 2)])
    load.receive(len(load.clients) + 1, PATIENCE)


def _bursts(
    stage: Stage, load: Load, publisher: Raw | Published, topics: list[str], turns: int, seconds: float
) -> Figures:
    """Publish ``turns`` messages on each topic, and again when all have arrived; each turn is one for each client."""
    load.begin()
    published = 0
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
    for role in ("server", "listener", "redis"):
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
    figures |= {role: after[role] - cpu[role] for role in cpu}
    figures["load busy %"] = 100 * own / wall
    figures["load core busy %"] = 100 * (own + others + figures["redis"]) / wall


def _latency(load: Load, publisher: Raw | Published, users: list[str], plan: Plan) -> Figures:
    load.begin(timed=True)
    began, sent = time.monotonic(), 0
    own = time.process_time()
    total = int(plan.latency_seconds * RATE)
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
