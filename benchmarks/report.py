"""The figures of all rounds as tables for people and as JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any, Final

from benchmarks.contestants import REFERENCE, Contestant

RESULTS: Final = Path(__file__).resolve().parent / "results"
TOO_BUSY: Final = 85.0
"""Per cent of the load generator's core above which its clients, not the server, may have set the pace."""

Rounds = dict[str, dict[str, dict[str, list[float]]]]
"""scenario -> contestant -> measure -> one figure a round"""

COLUMNS: Final = {
    "connect": ("connections/s", "KiB a connection"),
    "latency": ("p50 ms", "p99 ms", "max ms", "lost"),
    "": ("server µs", "listener µs", "redis µs", "sum µs", "deliveries/s"),
}
FAULTS: Final = ("lost", "repeated", "out of order")


def collect(rounds: Rounds, contestant: str, found: dict[str, dict[str, float]]) -> None:
    """Add one round of one contestant."""
    for scenario, figures in found.items():
        for measure, figure in figures.items():
            rounds.setdefault(scenario, {}).setdefault(contestant, {}).setdefault(measure, []).append(figure)


def tables(rounds: Rounds, contestants: Iterable[Contestant]) -> str:
    """Write one table a scenario: median, range in brackets, ratio to the reference of the same run."""
    return "\n\n".join(_table(scenario, rounds[scenario], list(contestants)) for scenario in _in_order(rounds))


def _in_order(rounds: Rounds) -> list[str]:
    order = ["fan-out", "unicast", "latency", "connect"]
    return sorted(rounds, key=lambda scenario: (order.index(scenario.split()[0]), scenario))


def _table(scenario: str, rows: dict[str, dict[str, list[float]]], contestants: list[Contestant]) -> str:
    columns = next(names for prefix, names in COLUMNS.items() if scenario.startswith(prefix))
    has_sum = "sum µs" in columns
    header = [scenario, *columns, *(["× ours", "load busy", "lost/repeated/out of order"] if has_sum else [])]
    lines = [header]
    for contestant in contestants:
        measures = rows.get(contestant.name)
        if measures is None:
            continue
        line = [contestant.title, *(_spread(measures[column]) for column in columns)]
        if has_sum:
            line += [_ratio(measures, rows.get(REFERENCE)), _busy(measures), _faults(measures)]
        lines.append(line)
    return _aligned(lines)


def _spread(figures: list[float]) -> str:
    middle = _short(median(figures))
    return middle if len(figures) == 1 else f"{middle} ({_short(min(figures))}–{_short(max(figures))})"


def _short(figure: float) -> str:
    return f"{figure:.0f}" if figure >= 100 or figure == int(figure) else f"{figure:.3g}"


def _ratio(measures: dict[str, list[float]], reference: dict[str, list[float]] | None) -> str:
    if reference is None:
        return "–"
    return f"{median(measures['sum µs']) / median(reference['sum µs']):.2f}"


def _busy(measures: dict[str, list[float]]) -> str:
    core = max(measures["load core busy %"])
    flag = " !" if core > TOO_BUSY else ""
    return f"{max(measures['load busy %']):.0f} % of {core:.0f} %{flag}"


def _faults(measures: dict[str, list[float]]) -> str:
    return "/".join(f"{sum(measures[fault]):.0f}" for fault in FAULTS)


def _aligned(lines: list[list[str]]) -> str:
    widths = [max(len(line[at]) for line in lines) for at in range(len(lines[0]))]
    lines = [lines[0], ["-" * width for width in widths], *lines[1:]]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


LEGEND: Final = f"""\
CPU µs per delivery, median of the rounds (range). "× ours" compares the sums of server, listener and Redis.
"load busy": the load generator's share of its core, and that of all on this core (with Redis and the publisher).
"!": above {TOO_BUSY:.0f} %, so deliveries/s is what the load generator's core could do; the CPU figures stand."""


def save(rounds: Rounds, machine: dict[str, Any], plan: dict[str, Any], failures: list[str]) -> Path:
    """Write everything to ``results/<date>.json`` and return the path."""
    now = datetime.now(UTC)
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{now:%Y-%m-%dT%H%M%S}.json"
    content = {
        "date": now.isoformat(timespec="seconds"),
        "machine": machine,
        "plan": plan,
        "failures": failures,
        "scenarios": rounds,
    }
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    return path
