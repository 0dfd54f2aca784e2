"""Interleaved rounds: each runs every entry once, so that what the machine does meanwhile meets them all."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

import redis

from benchmarks import report
from benchmarks.machine import describe
from project.local_redis import LocalRedis

LIMIT: Final = 300
"""Seconds after which an entry has failed, and the next one begins."""


class Entry(NamedTuple):
    """A row of the tables: its name, what the tables call it, and one round of it."""

    name: str
    title: str
    run: Callable[[], Iterable[tuple[str, dict[str, Any]]]]
    """Gives (scenario, figures), one after the other: what it gave before it failed is kept."""
    seconds: float = 0
    """About how long a round takes, to be told beforehand."""


def run(
    name: str,
    entries: Sequence[Entry],
    wanted: int,
    plan: Mapping[str, Any],
    *,
    reference: str,
    word: str = "ours",
    saved: bool = True,
) -> None:
    """
    Run the rounds, print the tables, and save the figures as ``results/<date>-<name>.json`` after each entry.

    Args:
        name: What is measured.
        entries: Who takes part, in the order of the tables; several may belong to the same row.
        wanted: How many rounds.
        plan: How much of everything, to be saved with the figures.
        reference: The row that ratios refer to.
        word: What the tables call it.
        saved: Whether to save them.

    """
    with LocalRedis() as server, redis.Redis.from_url(server.url) as client:
        machine = describe(client.info("server"), node=any(entry.name == "node" for entry in entries))
    titles = {entry.name: entry.title for entry in entries}
    if expected := sum(entry.seconds for entry in entries):
        print(f"{wanted} rounds, about {wanted * expected / 60:.0f} minutes", flush=True)
    result = report.Result(name, machine, plan, titles, reference, word)
    path = report.path(name) if saved else None
    began = time.monotonic()
    try:
        for number in range(1, wanted + 1):
            for entry in entries:
                print(f"[{result.seconds:4.0f} s] round {number} of {wanted}: {entry.title}", flush=True)
                _round(result, number, entry)
                result.seconds = time.monotonic() - began
                if path is not None:
                    report.save(path, result)
    finally:
        print(f"\n{report.told(result)}")
    if path is not None:
        print(f"\nwritten to {path}")


def _round(result: report.Result, number: int, entry: Entry) -> None:
    try:
        with _limited(LIMIT):
            for scenario, figures in entry.run():
                report.collect(result.scenarios, number, entry.name, scenario, figures)
    except Exception as error:  # noqa: BLE001  whatever fails here, the others are still worth their figures
        failure = f"round {number}, {entry.title}: {type(error).__name__}: {error}"
        result.failures.append(failure)
        print(f"         FAILED: {failure}", flush=True)


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    def end(*_: object) -> None:
        raise TimeoutError(f"not done after {seconds:g} s")

    handler = signal.signal(signal.SIGALRM, end)
    timer = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, *timer)
        signal.signal(signal.SIGALRM, handler)
