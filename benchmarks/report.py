"""The figures of all rounds as tables for people and as JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any, Final

RESULTS: Final = Path(__file__).resolve().parent / "results"
TOO_BUSY: Final = 85.0
"""Per cent of the load generator's core above which its clients, not the server, may have set the pace."""

Rounds = dict[str, dict[str, dict[str, list[float]]]]
"""scenario -> contestant -> measure -> one figure a round"""

COLUMNS: Final = {
    "connect": ("connections/s", "KiB a connection"),
    "latency": ("p50 ms", "p99 ms", "max ms", "lost"),
    "idle": ("server ms/min", "listener ms/min", "redis ms/min", "load busy %"),
    "restart": ("closed s", "serving s", "back s", "missed", "had it", "repeated"),
    "day": (
        *("server %", "listener %", "redis %", "load busy %", "p50 ms", "p99 ms", "max ms"),
        *("messages", "lost", "repeated", "out of order", "told", "closed", "comings", "recovered"),
    ),
    "never reads": ("MiB more", "MiB published"),
    "": ("server µs", "listener µs", "redis µs", "sum µs", "deliveries/s"),
}
ORDER: Final = ("fan-out", "unicast", "latency", "connect", "idle", "restart", "day", "never")
LEGEND: Final = f"""\
CPU µs per delivery, median of the rounds (range). "× …" compares the sums of server, listener and Redis.
"load busy": the load generator's share of its core, and that of all on this core (with Redis and the publisher).
"!": above {TOO_BUSY:.0f} %, so deliveries/s is what the load generator's core could do; the CPU figures stand."""
FAULTS: Final = ("lost", "repeated", "out of order")


def collect(rounds: Rounds, contestant: str, found: dict[str, dict[str, float]]) -> None:
    """Add one round of one contestant."""
    for scenario, figures in found.items():
        for measure, figure in figures.items():
            rounds.setdefault(scenario, {}).setdefault(contestant, {}).setdefault(measure, []).append(figure)


def tables(rounds: Rounds, titles: Mapping[str, str], reference: str, word: str = "ours") -> str:
    """
    Write one table a scenario: median, range in brackets, ratio to the reference of the same run.

    Args:
        rounds: What ``collect`` has made.
        titles: The rows in their order: name of a contestant, and what the table calls it.
        reference: The contestant that ratios refer to.
        word: What the ratios' column calls it.

    """
    if not rounds:
        return "no figures"
    scenarios = sorted(rounds, key=lambda scenario: (ORDER.index(scenario.split()[0]), scenario))
    written = [_table(scenario, rounds[scenario], titles, reference, word) for scenario in scenarios]
    return "\n\n".join([*written, LEGEND] if "fan-out" in scenarios[0] else written)


def _table(
    scenario: str, rows: dict[str, dict[str, list[float]]], titles: Mapping[str, str], reference: str, word: str
) -> str:
    columns = next(names for prefix, names in COLUMNS.items() if scenario.startswith(prefix))
    has_sum = "sum µs" in columns
    lines = [[scenario, *columns, *([f"× {word}", "load busy", "lost/repeated/out of order"] if has_sum else [])]]
    for name, title in titles.items():
        measures = rows.get(name)
        if measures is None:
            continue
        line = [title, *(_spread(measures[column]) for column in columns)]
        if has_sum:
            line += [_ratio(measures, rows.get(reference)), _busy(measures), _faults(measures)]
        lines.append(line)
    return aligned(lines)


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


def aligned(lines: list[list[str]]) -> str:
    """Write a table; the first line is its head."""
    widths = [max(len(line[at]) for line in lines) for at in range(len(lines[0]))]
    lines = [lines[0], ["-" * width for width in widths], *lines[1:]]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def save(name: str, machine: dict[str, Any], plan: Mapping[str, Any], **content: Any) -> Path:
    """Write everything to ``results/<date>-<name>.json`` and return the path."""
    now = datetime.now(UTC)
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{now:%Y-%m-%dT%H%M%S}-{name}.json"
    content = {"date": now.isoformat(timespec="seconds"), "machine": machine, "plan": plan, **content}
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    return path
