"""
Compare, in interleaved rounds: each round runs every contestant once.

    python -m benchmarks                 about five minutes
    python -m benchmarks --full          more rounds, every contestant on every road
    python -m benchmarks --only ours node --rounds 1
    python -m benchmarks --only ours --rounds 1 --profile var/    what py-spy sees of server and listener
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from benchmarks import contestants, report, scenarios
from benchmarks.contestants import Contestant
from benchmarks.machine import describe
from benchmarks.stage import Stage

QUICK = scenarios.Plan(sockets=1000, seconds=0.8, latency_seconds=2.5)
FULL = scenarios.Plan(sockets=1000, seconds=4.0, latency_seconds=10)


def main() -> None:
    arguments = _arguments()
    plan = FULL if arguments.full else QUICK
    if arguments.sockets:
        plan = plan._replace(sockets=arguments.sockets)
    rounds_wanted = arguments.rounds or (5 if arguments.full else 3)
    chosen = _chosen(arguments.only, full=arguments.full)
    rounds: report.Rounds = {}
    failures: list[str] = []
    began = time.monotonic()
    with Stage(contestants.ALL[-1]) as stage:
        machine = describe(stage.redis_info(), node=any(each.name == "node" for each in chosen))
    for number in range(1, rounds_wanted + 1):
        for contestant in chosen:
            print(
                f"[{time.monotonic() - began:4.0f} s] round {number} of {rounds_wanted}: {contestant.title}", flush=True
            )
            try:
                found = scenarios.run(contestant, plan, _roads(contestant, full=arguments.full), arguments.profile)
            except (RuntimeError, AssertionError, OSError) as error:
                # The other rounds are still worth their figures; that this one has none is told with them.
                failures.append(f"round {number}, {contestant.title}: {error}")
                print(f"         FAILED: {error}", flush=True)
            else:
                report.collect(rounds, contestant.name, found)
    print()
    for key, value in machine.items():
        print(f"{key}: {value}")
    print(f"{plan.sockets} sockets, {rounds_wanted} rounds, {time.monotonic() - began:.0f} s\n")
    print(report.tables(rounds, chosen))
    print(f"\n{report.LEGEND}")
    for failure in failures:
        print(f"FAILED and left out: {failure}")
    if not arguments.profile:
        print(f"\nwritten to {report.save(rounds, machine, plan._asdict(), failures)}")


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
    if not contestants.node_is_here() and any(each.name == "node" for each in chosen):
        print("Node, or benchmarks/node/node_modules, is not here: Socket.IO on Node is left out")
        chosen = [each for each in chosen if each.name != "node"]
    return chosen


def _roads(contestant: Contestant, *, full: bool) -> list[str]:
    """Textbook Channels by group_send from a worker is a peer of its own, for which only ``--full`` has the time."""
    if full or contestant.name.startswith("ours"):
        return contestant.roads
    return contestant.roads[:1]


main()
