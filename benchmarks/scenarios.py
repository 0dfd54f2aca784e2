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


Figures = dict[str, Any]
"""Of one scenario in one round."""


def run(contestant: Contestant, plan: Plan, roads: list[str], profile: Path | None = None) -> dict[str, Figures]:
    """
    Run a round and return its figures by scenario, such as ``"fan-out raw"``.

    Args:
        contestant: Whom.
        plan: How much.
        roads: Of its roads those that messages take.
        profile: A directory for what py-spy sees; the figures are then worth little.

    """
    found: dict[str, Figures] = {}
    with Stage(contestant) as stage:
        with closing(Load(stage.port, contestant.login)) as warm_up:
            warm_up.connect(WARM_UP)
        time.sleep(0.3)
        before = stage.server_memory()
        with closing(Load(stage.port, contestant.login)) as load:
            seconds = load.connect(plan.sockets)
            stage.settle()
            found["connect"] = {
                "connections/s": plan.sockets / seconds,
                "KiB a connection": (stage.server_memory() - before) / 1024 / plan.sockets,
            }
            for road in roads:
                with closing(_publisher(stage, road)) as publisher:
                    uploads = [f"upload:{UPLOAD}"] * FAN_OUT_BURST
                    users = [f"user:{number}" for number in range(1, plan.sockets + 1)]
                    _warm_up(load, publisher)
                    for scenario, topics in (("fan-out", uploads), ("unicast", users)):
                        name = f"{scenario} {road}"
                        with profiled(stage, name, profile):
                            found[name] = _bursts(stage, load, publisher, topics, plan)
                    found[f"latency {road}"] = _latency(load, publisher, users, plan)
            if load.closed:
                raise RuntimeError(f"{contestant.name} closed {load.closed} sockets")
    return found


def _publisher(stage: Stage, road: str) -> Raw | Published:
    if road == "raw":
        return Raw(stage.redis.url)
    return Published(stage.contestant.publisher, stage.env)


def _warm_up(load: Load, publisher: Raw | Published) -> None:
    load.begin()
    publisher.send([(f"upload:{UPLOAD}", 1), ("user:1", 2)])
    load.receive(len(load.clients) + 1, PATIENCE)


def _bursts(stage: Stage, load: Load, publisher: Raw | Published, topics: list[str], plan: Plan) -> Figures:
    fan_out = len(set(topics)) == 1
    load.begin()
    rounds = published = wanted = 0
    with _measured(stage, publisher) as figures:
        began = time.monotonic()
        while time.monotonic() - began < plan.seconds:
            if fan_out:
                publisher.send([(topic, published + at) for at, topic in enumerate(topics, 1)])
                published += len(topics)
                wanted += len(topics) * len(load.clients)
            else:
                rounds += 1
                publisher.send([(topic, rounds) for topic in topics])
                published += 1
                wanted += len(topics)
            if not load.receive(wanted, PATIENCE):
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
    times = sorted(load.tally.latencies)
    cuts = quantiles(times, n=100) if len(times) > 1 else [float("nan")] * 99
    return {
        "p50 ms": cuts[49],
        "p99 ms": cuts[98],
        "max ms": times[-1] if times else float("nan"),
        "lost": total - len(times),
        "load busy %": 100 * busy / wall,
    }
