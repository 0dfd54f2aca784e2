"""
Compare, in interleaved rounds: each round runs every contestant once.

    python -m benchmarks                                about twenty minutes
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
from benchmarks.contestants import PUBLISHED, RAW, Contestant
from benchmarks.machine import allow_sockets
from benchmarks.scenarios import BURSTS, LATENCY, RATE, UNICAST, Plan, Step

SOCKETS: Final = (10, 1_000, 10_000)
MANY: Final = 5_000
"""So many sockets make a part of the round of their own, with an idle time."""


def main() -> None:
    arguments = _arguments()
    allowed = allow_sockets(max(arguments.sockets))
    if allowed < max(arguments.sockets):
        print(f"only {allowed} sockets: a process may open no more files (ulimit -n)")
    sockets = sorted({min(each, allowed) for each in arguments.sockets})
    few = tuple(Step(each, _scenarios(each, full=arguments.full)) for each in sockets if each < MANY)
    many = tuple(Step(each, {PUBLISHED: BURSTS}, idle=True) for each in sockets if each >= MANY)
    chosen = [each for each in contestants.ALL if each.name in _names(arguments)]
    able = contestants.that_can_run(chosen)
    entries = [rounds.Entry("machine", "this machine", wakeup.run, seconds=3)]
    if few:
        entries += [_entry(each, few, arguments) for each in able]
    if many:
        entries += [
            _entry(each, many, arguments)
            for each in able
            if arguments.only or each.name in contestants.WITH_MANY_SOCKETS
        ]
    rounds.run(
        "delivery",
        entries,
        arguments.rounds or (5 if arguments.full else 3),
        {"sockets": sockets, "seconds": arguments.seconds, "latency seconds": arguments.latency_seconds},
        reference=contestants.REFERENCE,
        saved=not arguments.profile,
    )


def _entry(contestant: Contestant, steps: tuple[Step, ...], arguments: argparse.Namespace) -> rounds.Entry:
    plan = Plan(steps, arguments.seconds, arguments.latency_seconds)
    run = partial(scenarios.run, contestant, plan, arguments.profile)
    return rounds.Entry(contestant.name, contestant.title, run, scenarios.seconds(contestant, plan))


def _names(arguments: argparse.Namespace) -> Iterable[str]:
    if arguments.only:
        return arguments.only
    return [each.name for each in contestants.ALL] if arguments.full else contestants.QUICK


def _scenarios(sockets: int, *, full: bool) -> dict[str, tuple[str, ...]]:
    """Raw messages, that only some contestants take, and few sockets get less of the time."""
    if full:
        return dict.fromkeys((PUBLISHED, RAW), (*BURSTS, LATENCY))
    return {PUBLISHED: BURSTS} if sockets < RATE else {PUBLISHED: (*BURSTS, LATENCY), RAW: (UNICAST,)}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--only", nargs="+", choices=[each.name for each in contestants.ALL], metavar="NAME")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--sockets", type=int, nargs="+", default=SOCKETS)
    parser.add_argument("--seconds", type=float, default=0.6)
    parser.add_argument("--latency-seconds", type=float, default=3)
    parser.add_argument("--profile", type=Path, metavar="DIRECTORY")
    return parser.parse_args()


main()
