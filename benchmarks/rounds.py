"""Interleaved rounds: each runs every entry once, so that what the machine does meanwhile meets them all."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import redis

from benchmarks import report
from benchmarks.machine import describe
from project.local_redis import LocalRedis


class Entry(NamedTuple):
    """A row of the tables: what it is called, and one round of it, which returns figures by scenario."""

    title: str
    run: Callable[[], dict[str, dict[str, Any]]]


def run(
    name: str,
    entries: Mapping[str, Entry],
    wanted: int,
    plan: Mapping[str, Any],
    *,
    reference: str,
    word: str = "ours",
    saved: bool = True,
) -> None:
    """
    Run the rounds, print the tables, and save the figures as ``results/<date>-<name>.json``.

    Args:
        name: What is measured.
        entries: Who takes part, in the order of the tables.
        wanted: How many rounds.
        plan: How much of everything, to be saved with the figures.
        reference: The entry that ratios refer to.
        word: What the tables call it.
        saved: Whether to save them.

    """
    rounds: report.Rounds = {}
    failures: list[str] = []
    began = time.monotonic()
    with LocalRedis() as server, redis.Redis.from_url(server.url) as client:
        machine = describe(client.info("server"), node="node" in entries)
    for number in range(1, wanted + 1):
        for key, entry in entries.items():
            print(f"[{time.monotonic() - began:4.0f} s] round {number} of {wanted}: {entry.title}", flush=True)
            try:
                found = entry.run()
            except (RuntimeError, AssertionError, OSError) as error:
                # The other rounds are still worth their figures; that this one has none is told with them.
                failures.append(f"round {number}, {entry.title}: {error}")
                print(f"         FAILED: {error}", flush=True)
            else:
                report.collect(rounds, key, found)
    print()
    for key, value in machine.items():
        print(f"{key}: {value}")
    print(f"{plan}, {wanted} rounds, {time.monotonic() - began:.0f} s\n")
    print(report.tables(rounds, {key: entry.title for key, entry in entries.items()}, reference, word))
    for failure in failures:
        print(f"FAILED and left out: {failure}")
    if saved:
        print(f"\nwritten to {report.save(name, machine, plan, failures=failures, scenarios=rounds)}")
