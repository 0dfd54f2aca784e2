"""
The tables of docs/performance.md, written by the programs that measured them, between two comments:

    <!-- bench:targets -->
    …
    <!-- /bench -->

    python -m benchmarks.page [RUN…]     from the newest result of each run, or of those that are named

All that one program writes is from one run, and it writes all of it, whatever it says.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from textwrap import fill
from typing import Final, NamedTuple

from benchmarks import report, simulation
from benchmarks.contestants import PUBLISHED, RAW
from benchmarks.report import Result, Row, markdown, short, spread
from benchmarks.scenarios import DEPTHS, LATENCY, UNICAST, named

PAGE: Final = Path(__file__).resolve().parent.parent / "docs" / "performance.md"
MARKED: Final = re.compile(r"(<!-- bench:(?P<name>[a-z-]+) -->\n).*?(<!-- /bench -->)", re.DOTALL)
WIDTH: Final = 100
"""Characters of a line of text, as in all of docs/."""
ONE, TEN = DEPTHS


class Target(NamedTuple):
    """A row of the table of targets: what it is, and what its ratio to Node is wanted to be."""

    title: str
    scenario: str
    measures: tuple[str, ...]
    wanted: tuple[float, ...]
    """One for each measure."""
    road: str = PUBLISHED
    """Empty for what takes no messages. A peer that has no such road is compared by the one that it has."""
    sockets: int = 1_000
    at_least: bool = False
    """Whether more is better."""
    scale: float = 1


TARGETS: Final = (
    Target("fan-out, 10 messages under way: server, µs", TEN, ("server µs",), (0.8,)),
    Target("fan-out, one message at a time: server, µs", ONE, ("server µs",), (1.2,)),
    Target("unicast, `publish_*`: server + listener + Redis, µs", UNICAST, ("sum µs",), (1.3,)),
    Target("unicast, raw: server + listener + Redis, µs", UNICAST, ("sum µs",), (1.8,), RAW),
    Target("latency at 200 messages/s, p50 / p99, ms", LATENCY, ("p50 ms", "p99 ms"), (1.0, 1.0)),
    Target("connections a second, 64 at once", "connect", ("connections/s",), (0.8,), "", at_least=True),
    Target("KiB a connection", "connect", ("KiB a connection",), (1.2,), ""),
    Target(
        "10,000 idle sockets: server, s of CPU a minute", "idle", ("server ms/min",), (1.5,), "", 10_000, scale=1e-3
    ),
)
COMPARED: Final = {"ours": "this app", "textbook": "textbook Channels", "node": "Socket.IO on Node"}


def ratios(ours: Row, peer: Row, measure: str) -> list[float]:
    """Return how many times the peer's figure ours is, in each round that has both."""
    of_peer = dict(zip(peer["round"], peer[measure], strict=True))
    pairs = [
        (mine, of_peer[number]) for number, mine in zip(ours["round"], ours[measure], strict=True) if number in of_peer
    ]
    return [mine / other for mine, other in pairs if other]


def targets(result: Result) -> str:
    """Write the table of targets; a figure that was not measured is a dash."""
    head = ["", *COMPARED.values(), "ratio to Node", "target"]
    return markdown(head, [_target(result, target) for target in TARGETS])


def _target(result: Result, target: Target) -> list[str]:
    rows = {name: _row(result, target, name) for name in COMPARED}
    cells = [
        " / ".join(spread([figure * target.scale for figure in row[measure]]) for measure in target.measures)
        if row
        else "–"
        for row in rows.values()
    ]
    sign = "≥" if target.at_least else "≤"
    wanted = f"{sign} {' / '.join(map(str, target.wanted))}"
    ours, node = rows["ours"], rows["node"]
    if ours is None or node is None:
        return [target.title, *cells, "–", wanted]
    found = [ratios(ours, node, measure) for measure in target.measures]
    if not all(found):
        return [target.title, *cells, "–", wanted]
    met = all(
        round(median(each), 2) >= limit if target.at_least else round(median(each), 2) <= limit
        for each, limit in zip(found, target.wanted, strict=True)
    )
    return [target.title, *cells, " / ".join(map(_ratio, found)), f"{wanted}: {'met' if met else '**missed**'}"]


def _ratio(found: Sequence[float]) -> str:
    spans = f" ({min(found):.2f}–{max(found):.2f})" if len(found) > 1 else ""
    return f"**{median(found):.2f}**{spans}"


def _row(result: Result, target: Target, name: str) -> Row | None:
    roads = [target.road, PUBLISHED] if target.road else [""]
    for road in roads:
        if row := result.scenarios.get(named(target.scenario, target.sockets, road), {}).get(name):
            return row
    return None


def sizes(result: Result) -> str:
    """Write what a delivery costs the server with few and with many sockets."""
    scenarios = {TEN: "fan-out, 10", ONE: "fan-out, 1", UNICAST: "unicast"}
    counts = result.plan["sockets"]
    head = ["", *(f"{short_name}: {count:,}" for short_name in scenarios.values() for count in counts)]
    lines = []
    for name, title in result.titles.items():
        rows = [
            result.scenarios.get(named(scenario, count, PUBLISHED), {}).get(name)
            for scenario in scenarios
            for count in counts
        ]
        if any(rows):
            lines.append([title, *(short(median(row["server µs"])) if row else "–" for row in rows)])
    return markdown(head, lines)


def tables(*scenarios: str) -> Callable[[Result], str]:
    """Return a writer of the tables of the scenarios whose names begin like one of these, in the order of the run."""

    def write(result: Result) -> str:
        chosen = [name for start in scenarios for name in result.scenarios if name.startswith(start)]
        return "\n\n".join(f"*{name}*:\n\n{report.table(result, name)}" for name in chosen) or "Not measured."

    return write


def deliveries(result: Result) -> str:
    """Write the tables of all deliveries to a thousand sockets, and whether all were right."""
    names = [name for name in result.scenarios if name.startswith((TEN, ONE, UNICAST)) and ", 1,000 " in name]
    written = [f"*{name}*:\n\n{report.table(result, name)}" for name in names]
    return "\n\n".join([*written, _lines(report.LEGEND), faults(result)])


def faults(result: Result) -> str:
    """Say what was lost, repeated or out of order, of all messages of all rounds."""
    found = []
    for scenario, rows in result.scenarios.items():
        for name, row in rows.items():
            counts = {fault: sum(row.get(fault, ())) for fault in report.FAULTS}
            if any(counts.values()):
                told = ", ".join(f"{count} {fault}" for fault, count in counts.items() if count)
                found.append(f"{result.titles[name]}, {scenario}: {told}")
    return _lines(f"Faults: {'; '.join(found)}." if found else "Nothing was lost, repeated or out of order.")


def machine(result: Result) -> str:
    """Say when, where and with what the figures of a run were measured, and what failed."""
    facts = result.machine
    software = ", ".join(f"{name} {version}" for name, version in facts["software"].items())
    load = ", ".join(f"{each:g}" for each in facts["load average before"])
    rounds = max(
        (number for rows in result.scenarios.values() for row in rows.values() for number in row["round"]), default=0
    )
    told = (
        f"{result.date[:10]}, {rounds} round{'s' * (rounds > 1)}, {result.seconds / 60:.0f} minutes. "
        f"{facts['cores']} cores of {facts['cpu']}, {facts['kernel']}; load average before: {load}. {software}."
    )
    failed = "; ".join(failure.splitlines()[0] for failure in result.failures)
    return "\n\n".join(map(_lines, [told, f"**Failed and left out**: {failed}."] if failed else [told]))


def _lines(text: str) -> str:
    return fill(text, WIDTH, break_long_words=False, break_on_hyphens=False)


def with_machine(write: Callable[[Result], str]) -> Callable[[Result], str]:
    """Return a writer that also says when and where it was measured."""
    return lambda result: f"{write(result)}\n\n{machine(result)}"


BLOCKS: Final[Mapping[str, Mapping[str, Callable[[Result], str]]]] = {
    "delivery": {
        "machine": machine,
        "targets": targets,
        "sizes": sizes,
        "deliveries": deliveries,
        "latency": tables(LATENCY),
        "connections": tables("connect, 1,000", "connect, 10,000"),
        "idle": tables("idle"),
        "a-write": tables("a write"),
    },
    "growth": {"processes": with_machine(tables(""))},
    "idle": {"restart": with_machine(tables("restart"))},
    "restart": {"come-back": with_machine(tables("come back"))},
    "day": {"day": with_machine(tables("day"))},
    "shards": {
        "listeners": with_machine(tables("raw messages", "PUBLISH")),
        "shards": tables("unicast", "fan-out"),
        "simulated": simulation.told,
    },
    "servers": {"servers": with_machine(tables(""))},
    "never-reads": {"never-reads": with_machine(tables("never reads"))},
}
"""What is written of a run's result, by the names of run and marker."""


def written(text: str, result: Result) -> str:
    """
    Return the page with the figures of a result; the rest of it stays as it is.

    Raises:
        ValueError: The page has no place for some of them, or more than one.

    """
    blocks = BLOCKS[result.name]
    places = [found["name"] for found in MARKED.finditer(text)]
    if wrong := [name for name in blocks if places.count(name) != 1]:
        raise ValueError(f"not once in the page: {', '.join(f'<!-- bench:{name} -->' for name in wrong)}")

    def replaced(found: re.Match[str]) -> str:
        write = blocks.get(found["name"])
        return found[0] if write is None else f"{found[1]}\n{write(result)}\n\n{found[3]}"

    return MARKED.sub(replaced, text)


def main() -> None:
    text = PAGE.read_text()
    for path in report.newest(sys.argv[1:] or list(BLOCKS)):
        text = written(text, report.load(path))
        print(f"{PAGE.name} has the tables of {path}")
    PAGE.write_text(text)


if __name__ == "__main__":
    main()
