"""
What do many sockets cost that hear nothing, and how long does a restart of their server take?

    python -m benchmarks.idle [--sockets N] [--seconds N] [--only NAME…]

While nothing is published the server pings each browser, twice a minute, and compares positions with the histories.
Then it gets SIGTERM and is started again when it has ended; meanwhile one message is published for all. All clients
come back as fast as the server takes them: real ones wait a random time. "missed" says how many should have that
message, "had it" how many had: a server without a history has lost it.
"""

from __future__ import annotations

import argparse
import signal
import time
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from typing import NamedTuple

from benchmarks import contestants, rounds, scenarios
from benchmarks.contestants import UPLOAD, Contestant
from benchmarks.load import Load
from benchmarks.machine import allow_sockets
from benchmarks.publishing import Raw
from benchmarks.scenarios import Figures
from benchmarks.stage import Stage


class Plan(NamedTuple):
    """How much of everything."""

    sockets: int = 10_000
    seconds: float = 60
    """Two heartbeats of each socket."""


def run(contestant: Contestant, plan: Plan) -> Iterator[tuple[str, Figures]]:
    """Run a round, and give (scenario, figures) when each is over."""
    with Stage(contestant) as stage:
        before = scenarios.memory_before(stage)
        with closing(Load(stage.ports, contestant.login)) as load:
            yield "connect", scenarios.connect(stage, load, plan.sockets, before)[0]
            yield "idle", scenarios.idle(stage, load, plan.seconds)
            yield "restart", _restart(stage, load, scenarios.patience(plan.sockets))


def _restart(stage: Stage, load: Load, patience: float) -> Figures:
    position = f"{time.time_ns() // 1_000_000}-0"  # nothing was published: a position on every topic of an idle site
    returning = stage.contestant.returning
    login = returning(position) if returning else stage.contestant.login
    began = time.monotonic()
    stage.servers[0].send_signal(signal.SIGTERM)
    load.wait_until_closed(patience)
    closed = time.monotonic() - began
    if stage.contestant.raw:
        with closing(Raw(stage.redis.url)) as publisher:
            publisher.send([(f"upload:{UPLOAD}", 1)])
    stage.servers[0].wait(patience)
    stage.start_servers()
    serving = time.monotonic() - began
    with closing(Load(stage.ports, login)) as back:
        back.connect(len(load.clients), patience)
        seconds = time.monotonic() - began
        if returning:
            back.receive(len(back.clients), scenarios.PATIENCE)
        return {
            "closed s": closed,
            "serving s": serving,
            "back s": seconds,
            "missed": len(load.clients) if stage.contestant.raw else 0,
            "had it": back.tally.received,
            "repeated": back.tally.repeated,
            "close codes": dict(load.close_codes),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[contestants.REFERENCE], metavar="NAME")
    parser.add_argument("--sockets", type=int, default=Plan().sockets)
    parser.add_argument("--seconds", type=float, default=Plan().seconds)
    parser.add_argument("--rounds", type=int, default=1)
    arguments = parser.parse_args()
    plan = Plan(allow_sockets(arguments.sockets), arguments.seconds)
    if plan.sockets < arguments.sockets:
        print(f"only {plan.sockets} sockets: a process may open no more files (ulimit -n)")
    chosen = contestants.that_can_run(each for each in contestants.ALL if each.name in arguments.only)
    entries = [
        rounds.Entry(each.name, each.title, partial(run, each, plan), seconds=plan.seconds + plan.sockets / 300)
        for each in chosen
    ]
    rounds.run("idle", entries, arguments.rounds, plan._asdict(), reference=contestants.REFERENCE)


if __name__ == "__main__":
    main()
