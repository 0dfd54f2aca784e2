"""
Compare, in interleaved rounds: each round runs every contestant once.

    python -m benchmarks                                about twelve minutes
    python -m benchmarks --full                         more rounds, all contestants
    python -m benchmarks --only ours node --rounds 1 --sockets 10 200 --seconds 0.3
    python -m benchmarks --only ours --rounds 1 --sockets 1000 --profile var/    what py-spy sees of server and listener

With 10 and 1,000 sockets all take part; with 10,000 ours, textbook Channels and Socket.IO on Node, which then also
hear nothing for a while.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Final

from benchmarks import contestants, rounds, scenarios, wakeup
from benchmarks.contestants import Contestant
from benchmarks.machine import allow_sockets
from benchmarks.scenarios import Plan, Step

SOCKETS: Final = (10, 1_000, 10_000)
MANY: Final = 5_000
"""So many sockets make a part of the round of their own, with an idle time."""


def main() -> None:
    arguments = _arguments()
    allowed = allow_sockets(max(arguments.sockets))
    if allowed < max(arguments.sockets):
        print(f"only {allowed} sockets: a process may open no more files (ulimit -n)")
    sockets = sorted({min(each, allowed) for each in arguments.sockets})
    few = tuple(Step(each, latency_seconds=_latency(each, arguments)) for each in sockets if each < MANY)
    many = tuple(Step(each, idle=True) for each in sockets if each >= MANY)
    chosen = [each for each in contestants.ALL if each.name in _names(arguments)]
    able = contestants.that_can_run(chosen)
    entries = [rounds.Entry("machine", "this machine", wakeup.run, seconds=3)]
    if few:
        entries += [_entry(each, Plan(few, arguments.seconds), each.roads, arguments.profile) for each in able]
    if many:
        entries += [
            _entry(each, Plan(many, arguments.seconds), ["published"], arguments.profile)
            for each in able
            if each.publisher and (arguments.only or each.name in contestants.WITH_MANY_SOCKETS)
        ]
    rounds.run(
        "delivery",
        entries,
        arguments.rounds or (5 if arguments.full else 3),
        {"sockets": sockets, "seconds": arguments.seconds, "latency seconds": arguments.latency_seconds},
        reference=contestants.REFERENCE,
        saved=not arguments.profile,
    )


def _entry(contestant: Contestant, plan: Plan, roads: list[str], profile: Path | None) -> rounds.Entry:
    run = partial(scenarios.run, contestant, plan, roads, profile)
    return rounds.Entry(contestant.name, contestant.title, run, scenarios.seconds(contestant, plan, roads))


def _names(arguments: argparse.Namespace) -> Iterable[str]:
    if arguments.only:
        return arguments.only
    return [each.name for each in contestants.ALL] if arguments.full else contestants.QUICK


def _latency(sockets: int, arguments: argparse.Namespace) -> float:
    return arguments.latency_seconds if sockets >= scenarios.RATE else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--only", nargs="+", choices=[each.name for each in contestants.ALL], metavar="NAME")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--sockets", type=int, nargs="+", default=SOCKETS)
    parser.add_argument("--seconds", type=float, default=0.8)
    parser.add_argument("--latency-seconds", type=float, default=3)
    parser.add_argument("--profile", type=Path, metavar="DIRECTORY")
    return parser.parse_args()


main()
