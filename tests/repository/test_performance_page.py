"""The tables of docs/performance.md: who writes them, where, and whether their ratios are right."""

from __future__ import annotations

from statistics import median
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import page, report
from benchmarks.scenarios import named
from tests.cases import cases

MACHINE: dict[str, Any] = {
    "cpu": "A processor",
    "cores": 2,
    "kernel": "Linux",
    "load average before": [0.1, 0.2, 0.3],
    "software": {"django": "5.2"},
}


def result(scenarios: report.Rounds, name: str = "delivery", **titles: str) -> report.Result:
    titles = titles or {"ours": "Ours", "textbook": "Textbook", "node": "Node"}
    return report.Result(name, MACHINE, {"sockets": [10, 1000]}, titles, reference="ours", scenarios=scenarios)


def cells(table: str) -> dict[str, list[str]]:
    """Return the rows of a table by their first cell."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    return {row[0]: row[1:] for row in rows}


def connections(**figures: list[float]) -> report.Rounds:
    """Make the figures of connecting, one a round."""
    return {
        named("connect", 1000): {
            name: {"round": list(range(1, len(each) + 1)), "connections/s": each, "KiB a connection": each}
            for name, each in figures.items()
        }
    }


# Places


@cases("run", page.BLOCKS)
def test_page_has_one_place_for_each_table(run: str) -> None:
    """All that a program writes of its result has its place in docs/performance.md, and nothing around it changes."""
    before = page.PAGE.read_text()

    after = page.written(before, result({}, run))

    assert page.MARKED.sub(r"\1\3", after) == page.MARKED.sub(r"\1\3", before)
    assert page.written(after, result({}, run)) == after


def test_every_place_of_the_page_has_its_writer() -> None:
    """No comment of docs/performance.md names a table that no program writes."""
    places = [found["name"] for found in page.MARKED.finditer(page.PAGE.read_text())]

    assert sorted(places) == sorted(name for blocks in page.BLOCKS.values() for name in blocks)
    assert len(places) == page.PAGE.read_text().count("<!-- bench:")


@pytest.mark.parametrize("text", ["", "<!-- bench:day -->\n<!-- /bench -->\n" * 2], ids=["none", "two"])
def test_page_without_a_place_is_an_error(text: str) -> None:
    """A table that would be lost, or be there twice, is named."""
    with pytest.raises(ValueError, match="<!-- bench:day -->"):
        page.written(text, result({}, "day"))


# Ratios


@given(
    st.lists(
        st.tuples(st.one_of(st.none(), st.floats(0.1, 1e6)), st.one_of(st.none(), st.floats(0.1, 1e6))), max_size=6
    )
)
def test_ratios_are_those_of_rounds_that_have_both(rounds: list[tuple[float | None, float | None]]) -> None:
    """Each ratio is of two figures of the same round; a round that failed for one of the two has none."""
    ours: report.Row = {"round": [], "µs": []}
    node: report.Row = {"round": [], "µs": []}
    for number, figures in enumerate(rounds):
        for row, figure in zip((ours, node), figures, strict=True):
            if figure is not None:
                row["round"].append(number)
                row["µs"].append(figure)

    found = page.ratios(ours, node, "µs")

    assert found == [mine / other for mine, other in rounds if mine is not None and other is not None]


@cases(
    ("ours", "node", "ratio", "met"),
    [
        ([80.0, 90.0, 70.0], [100.0, 100.0, 100.0], "**0.80** (0.70–0.90)", True),
        ([79.0], [100.0], "**0.79**", False),
        ([100.0, 10.0, 30.0], [10.0, 100.0, 30.0], "**1.00** (0.10–10.00)", True),
    ],
)
def test_target_is_met_by_the_median_of_the_ratios(ours: list[float], node: list[float], ratio: str, met: bool) -> None:
    """A target's row has medians with their ranges, the median of the ratios, and whether that is enough."""
    rows = cells(page.targets(result(connections(ours=ours, node=node))))

    row = rows["connections a second, 64 at once"]
    assert row[0] == report.spread(ours)
    assert row[1:3] == ["–", report.spread(node)]
    assert row[3:] == [ratio, f"≥ 0.8: {'met' if met else '**missed**'}"]


def test_less_is_better_except_for_connections() -> None:
    """The same figures that are enough connections are too many KiB."""
    rows = cells(page.targets(result(connections(ours=[130.0], node=[100.0]))))

    assert rows["connections a second, 64 at once"][4] == "≥ 0.8: met"
    assert rows["KiB a connection"][4] == "≤ 1.2: **missed**"


def test_peer_without_a_raw_road_is_compared_by_what_it_publishes() -> None:
    """Socket.IO takes no plain PUBLISH, so raw messages are compared with those that it publishes."""
    scenarios: report.Rounds = {
        named("unicast", 1000, road): {name: {"round": [1], "sum µs": [figure]} for name, figure in figures.items()}
        for road, figures in {"raw": {"ours": 40.0}, "published": {"ours": 30.0, "node": 20.0}}.items()
    }

    rows = cells(page.targets(result(scenarios)))

    assert rows["unicast, raw: server + listener + Redis, µs"][3] == "**2.00**"
    assert rows["unicast, `publish_*`: server + listener + Redis, µs"][3] == "**1.50**"


def test_two_measures_share_a_row_and_both_have_to_be_enough() -> None:
    """Latency is missed when one of its two percentiles is."""
    scenarios: report.Rounds = {
        named("latency", 1000, "published"): {
            "ours": {"round": [1], "p50 ms": [1.0], "p99 ms": [3.0]},
            "node": {"round": [1], "p50 ms": [2.0], "p99 ms": [2.0]},
        }
    }

    row = cells(page.targets(result(scenarios)))["latency at 200 messages/s, p50 / p99, ms"]

    assert row == ["1 / 3", "–", "2 / 2", "**0.50** / **1.50**", "≤ 1.0 / 1.0: **missed**"]


def test_nothing_measured_is_a_dash() -> None:
    """A result of nothing still names every target."""
    rows = cells(page.targets(result({})))

    assert [row for title, row in rows.items() if title in {target.title for target in page.TARGETS}] == [
        ["–", "–", "–", "–", row[4]] for row in list(rows.values())[2:]
    ]
    assert len(rows) == 2 + len(page.TARGETS)


# Tables


def bursts(sum_: float, load: float) -> dict[str, float]:
    figures = dict.fromkeys(report.COLUMNS[""], sum_) | dict.fromkeys(report.FAULTS, 1)
    return figures | {"load µs": 2.0, "load core busy %": load}


def test_table_has_median_range_ratio_and_faults() -> None:
    """A row shows the median and range of its rounds, its ratio to the reference, and all faults of all rounds."""
    scenario, rounds = named("unicast", 1000, "raw"), {}
    for number, (own, peer) in enumerate(((10.0, 30.0), (20.0, 30.0), (12.0, 60.0)), 1):
        report.collect(rounds, number, "ours", scenario, bursts(own, load=50.0))
        report.collect(rounds, number, "peer", scenario, bursts(peer, load=90.0))
    found = result(rounds, ours="Ours", peer="The peer", absent="Absent")

    rows = cells(report.table(found, scenario))

    assert rows["Ours"][3:] == ["12 (10–20)", "12 (10–20)", "1.00", "2 µs, 50 %", "3/3/3"]
    assert rows["The peer"][5:] == ["2.50", "2 µs, 90 % !", "3/3/3"]
    assert "Absent" not in rows
    assert "Ours, unicast, raw, 1,000 sockets: 3 lost, 3 repeated, 3 out of order" in page.faults(found)


def test_sizes_are_side_by_side() -> None:
    """What a delivery costs with few and many sockets is in one row for each contestant."""
    scenarios: report.Rounds = {
        named("unicast", sockets, "published"): {"ours": {"round": [1, 2, 3], "server µs": [figure, 1.0, 100.0]}}
        for sockets, figure in ((10, 4.0), (1000, 5.0))
    }

    rows = cells(page.sizes(result(scenarios)))

    assert rows["Ours"] == ["–", "–", "–", "–", "4", "5"]
    assert "Node" not in rows


def test_failures_are_told_with_the_machine() -> None:
    """A contestant that failed is named in the page, by the first line of what it said."""
    found = result({})
    found.failures += ["round 1, Node: RuntimeError: no\nmore", f"round 2, Node: {'so many words ' * 20}"]

    told = page.machine(found)

    assert "**Failed and left out**: round 1, Node: RuntimeError: no; round 2, Node: so many" in told
    assert max(map(len, told.splitlines())) <= 100


@given(st.floats(0.001, 1e7))
def test_short_figures_keep_three_digits(figure: float) -> None:
    """What a table shows is within half a per cent of what was measured."""
    assert abs(float(report.short(figure).replace(",", "")) - figure) <= figure * 0.0051


def test_results_come_back_as_they_were(tmp_path) -> None:
    """The page can be written from a saved result."""
    found = result(connections(ours=[1.0, 2.0], node=[3.0, 4.0]))
    report.save(tmp_path / "result.json", found)

    assert report.load(tmp_path / "result.json") == found
    assert (
        median(
            page.ratios(*(found.scenarios[named("connect", 1000)][each] for each in ("ours", "node")), "connections/s")
        )
        == (1 / 3 + 0.5) / 2
    )


def test_newest_result_of_each_run_is_taken(tmp_path, monkeypatch) -> None:
    """A page that is written from some runs has the last of each, and nothing of the others."""
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    for name in ("2026-11-26T160000-delivery", "2026-11-26T150000-delivery", "2026-11-26T150000-never-reads"):
        (tmp_path / f"{name}.json").touch()

    assert [path.stem for path in report.newest(["delivery"])] == ["2026-11-26T160000-delivery"]
    assert len(report.newest(list(page.BLOCKS))) == 2
