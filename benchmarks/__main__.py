"""
Compare, in interleaved rounds: each round runs every contestant once.

    python -m benchmarks                 about five minutes
    python -m benchmarks --full          more rounds, every contestant on every road
    python -m benchmarks --only ours node --rounds 1
    python -m benchmarks --only ours --rounds 1 --profile var/    what py-spy sees of server and listener
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from benchmarks import contestants, rounds, scenarios
from benchmarks.contestants import Contestant

QUICK = scenarios.Plan(sockets=1000, seconds=0.8, latency_seconds=2.5)
FULL = scenarios.Plan(sockets=1000, seconds=4.0, latency_seconds=10)


def main() -> None:
    arguments = _arguments()
    plan = FULL if arguments.full else QUICK
    if arguments.sockets:
        plan = plan._replace(sockets=arguments.sockets)
    entries = {}
    for each in _chosen(arguments.only, full=arguments.full):
        roads = _roads(each, full=arguments.full)
        entries[each.name] = rounds.Entry(each.title, partial(scenarios.run, each, plan, roads, arguments.profile))
    rounds.run(
        "delivery",
        entries,
        arguments.rounds or (5 if arguments.full else 3),
        plan._asdict(),
        reference=contestants.REFERENCE,
        saved=not arguments.profile,
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--only", nargs="+", choices=[each.name for each in contestants.ALL], metavar="NAME")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--sockets", type=int)
    parser.add_argument("--profile", type=Path, metavar="DIRECTORY")
    return parser.parse_args()


def _chosen(only: list[str] | None, *, full: bool) -> list[Contestant]:
    chosen = [each for each in contestants.ALL if (each.name in only if only else full or not each.only_full)]
    return contestants.that_can_run(chosen)


def _roads(contestant: Contestant, *, full: bool) -> list[str]:
    """Textbook Channels by group_send from a worker is a peer of its own, for which only ``--full`` has the time."""
    if full or contestant.name.startswith("ours"):
        return contestant.roads
    return contestant.roads[:1]


main()
