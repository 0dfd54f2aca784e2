"""The figures of all rounds: as tables in Markdown for people, and as JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any, Final

RESULTS: Final = Path(__file__).resolve().parent / "results"
TOO_BUSY: Final = 85.0
"""Per cent of the load generator's core above which its clients, not the server, may have set the pace."""

Row = dict[str, list[Any]]
"""measure -> one figure a round; the measure "round" says which rounds they are"""
Rounds = dict[str, dict[str, Row]]
"""scenario -> contestant -> row"""

COLUMNS: Final = {
    "connect": ("connections/s", "server µs", "KiB a connection"),
    "latency": ("p50 ms", "p99 ms", "max ms", "lost"),
    "idle": ("server ms/min", "listener ms/min", "redis ms/min", "load busy %"),
    "come back": ("back s", "queries", "connections, most", "connections opened", "refused", "server s"),
    "restart": ("closed s", "serving s", "back s", "missed", "had it", "repeated"),
    "day": (
        *("server %", "listener %", "redis %", "load busy %", "p50 ms", "p99 ms", "max ms"),
        *("messages", "lost", "repeated", "out of order", "told", "closed", "comings", "recovered"),
    ),
    "never reads": ("MiB more", "MiB published"),
    "raw messages": (
        *("rate/s", "of a core %", "other core busy %"),
        *("listeners µs", "a listener carries/s", "redis µs", "a primary carries/s", "lost", "out of order"),
    ),
    "PUBLISH": ("node µs", "another node µs"),
    "a write": ("reader asleep: µs", "reader awake: µs"),
    "": ("server µs", "listener µs", "redis µs", "sum µs", "deliveries/s"),
}
"""What a table shows of a scenario, by the beginning of its name."""
LEGEND: Final = f"""\
CPU in µs for each delivery, median of the rounds (range). "× …" compares the sums of server, listener and Redis.
"load": µs of the clients for each delivery, and how busy that made their core, with Redis and the publisher.
"!": above {TOO_BUSY:.0f} %, so deliveries/s is what the load generator's core could do; the CPU figures stand."""
FAULTS: Final = ("lost", "repeated", "out of order")


@dataclass
class Result:
    """What one run has measured."""

    name: str
    machine: dict[str, Any]
    plan: Mapping[str, Any]
    titles: dict[str, str]
    """The rows in their order: name of a contestant, and what the tables call it."""
    reference: str
    """The contestant that ratios refer to."""
    word: str = "ours"
    """What the ratios' column calls it."""
    date: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    seconds: float = 0
    """How long it took."""
    scenarios: Rounds = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)


def collect(rounds: Rounds, number: int, contestant: str, scenario: str, figures: Mapping[str, Any]) -> None:
    """Add the figures of one scenario of one contestant in one round."""
    row = rounds.setdefault(scenario, {}).setdefault(contestant, {})
    for measure, figure in {"round": number, **figures}.items():
        row.setdefault(measure, []).append(figure)


def told(result: Result) -> str:
    """Write everything: the machine, a table a scenario, what failed."""
    facts = [f"{key}: {value}" for key, value in result.machine.items()]
    tables = [f"{scenario}:\n\n{table(result, scenario)}" for scenario in result.scenarios]
    failures = [f"FAILED and left out: {failure}" for failure in result.failures]
    return "\n\n".join(["\n".join([*facts, f"{result.plan}, {result.seconds:.0f} s"]), *tables, LEGEND, *failures])


def table(result: Result, scenario: str) -> str:
    """Write the table of a scenario: median, range in brackets, ratio to the reference of the same run."""
    rows = result.scenarios[scenario]
    columns = next(names for prefix, names in COLUMNS.items() if scenario.startswith(prefix))
    has_sum = "sum µs" in columns
    head = ["", *columns, *([f"× {result.word}", "load", "lost/repeated/out of order"] if has_sum else [])]
    lines = []
    for name, title in result.titles.items():
        if (row := rows.get(name)) is not None:
            line = [title, *(spread(row[column]) for column in columns)]
            if has_sum:
                line += [_times(row, rows.get(result.reference)), _load(row), _faults(row)]
            lines.append(line)
    return markdown(head, lines)


def spread(figures: Sequence[float]) -> str:
    """Write the median, and the range if there are several."""
    middle = short(median(figures))
    return middle if len(figures) == 1 else f"{middle} ({short(min(figures))}–{short(max(figures))})"


def short(figure: float) -> str:
    """Write three figures that count."""
    return f"{figure:,.0f}" if figure >= 100 or figure == int(figure) else f"{figure:.3g}"


def _times(row: Row, reference: Row | None) -> str:
    if reference is None:
        return "–"
    return f"{median(row['sum µs']) / median(reference['sum µs']):.2f}"


def _load(row: Row) -> str:
    core = max(row["load core busy %"])
    flag = " !" if core > TOO_BUSY else ""
    return f"{short(median(row['load µs']))} µs, {core:.0f} %{flag}"


def _faults(row: Row) -> str:
    return "/".join(f"{sum(row[fault]):.0f}" for fault in FAULTS)


def markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Write a table that reads well without being rendered, too."""
    widths = [max(3, *(len(line[at]) for line in [head, *lines])) for at in range(len(head))]
    written = [head, ["-" * width for width in widths], *lines]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
        for line in written
    )


def path(name: str) -> Path:
    """Return where the results of a run go that begins now."""
    return RESULTS / f"{datetime.now(UTC):%Y-%m-%dT%H%M%S}-{name}.json"


def save(path: Path, result: Result) -> None:
    """Write all figures so far."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(asdict(result), indent=1, ensure_ascii=False) + "\n")


def newest(runs: Sequence[str]) -> list[Path]:
    """Return the newest result of each of these runs that has one."""
    found = {path.stem.split("-", 3)[3]: path for path in sorted(RESULTS.glob("*.json"))}  # by their time
    return [path for name, path in found.items() if name in runs]


def load(path: Path) -> Result:
    """Read what ``save`` has written."""
    return Result(**json.loads(path.read_text()))
