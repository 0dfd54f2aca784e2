"""The simulation of a site that has more cores than this machine."""

from __future__ import annotations

import pytest

from benchmarks import report, simulation
from benchmarks.shards import SHARDS, Site
from benchmarks.simulation import ROOMY, TO_MANY, TO_ONE, TO_ONE_RAW, Costs

COSTS = Costs(
    redis_raw=1,
    redis_heard=0.5,
    redis_passed=1,
    redis_bus=2,
    redis_stamped=10,
    redis_published=12,
    redis_sent=1,
    listener_heard=20,
    listener_stamped=80,
    listener_own=2,
    web_one=10,
    web_many=100,
    web_socket=10,
)


@pytest.fixture(autouse=True)
def few_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulation, "MESSAGES", 500)


def test_a_site_carries_what_its_busiest_core_can_do() -> None:
    """100 µs of the only listener for each message are 10,000 messages a second."""
    found = simulation.capacity(Site(1, 1), COSTS, TO_ONE_RAW)

    assert found.part == "listener"
    assert found.rate == pytest.approx(10_000)


@pytest.mark.parametrize("listeners", [2, 4, 8])
def test_listeners_divide_what_they_stamp_and_all_hear(listeners: int) -> None:
    """The more listeners there are, the more of the work is hearing what another one stamps."""
    found = simulation.capacity(Site(1, ROOMY, listeners), COSTS, TO_ONE_RAW)

    assert found.part == "listener"
    assert found.rate == pytest.approx(1e6 / (20 + 80 / listeners), rel=0.15)  # shards are not equally large


def test_primaries_divide_the_shards() -> None:
    """Each has a third of the messages, and hears of those of the others, which come on the topics' own channels."""
    one, three = (simulation.capacity(Site(primaries, ROOMY, 1, 64), COSTS, TO_ONE) for primaries in (1, 3))

    assert (one.part, three.part) == ("Redis", "Redis")
    assert one.rate == pytest.approx(1e6 / 12)
    assert three.rate == pytest.approx(3e6 / (12 + 2 * 1 + 2 * 2), rel=0.15)  # shards are not equally large


def test_a_message_to_many_is_work_for_every_web_process() -> None:
    """More web processes have more sockets, and carry no more messages to all of them."""
    rates = [simulation.capacity(Site(1, 1, 1, web), COSTS, TO_MANY).rate for web in (1, 4)]

    assert rates == pytest.approx([1e6 / (100 + simulation.MANY * 10)] * 2)


def test_messages_wait_longer_where_there_is_more_to_do() -> None:
    """Near what a site carries they queue; far below it they take what each step takes."""
    site = Site(1, 1)

    calm, _ = simulation.latency(site, COSTS, TO_ONE_RAW, rate=10)
    _, busy = simulation.latency(site, COSTS, TO_ONE_RAW, rate=9_500)

    assert calm == pytest.approx(1e3 * (4 * simulation.HOP + 121.5e-6), rel=0.01)
    assert busy > 3 * calm


def test_costs_are_read_off_a_result_and_simulated_again() -> None:
    """What was measured of one and of four gives the costs, and those give what was measured."""
    found = simulation.costs_of(_result())

    assert found == pytest.approx(COSTS)
    assert "+0 %" in simulation.errors_table(_result(), found)


def test_the_same_costs_give_the_same_tables() -> None:
    """Nothing depends on chance or on the machine."""
    site = Site(1, ROOMY, 2, 4)

    assert simulation.latency(site, COSTS, TO_ONE_RAW, 1000) == simulation.latency(site, COSTS, TO_ONE_RAW, 1000)


def _result() -> report.Result:
    """Make the result of a machine that has exactly ``COSTS``."""
    one, plain, more = Site(1, SHARDS), Site(1, 1), Site(1, 1, web_processes=4)
    scenarios: report.Rounds = {}

    def add(scenario: str, row: str, **figures: float) -> None:
        written = {measure.replace("_", " ").replace(" us", " µs"): [figure] for measure, figure in figures.items()}
        scenarios.setdefault(scenario, {})[row] = written

    for listeners in (1, 4):
        site = one._replace(listeners=listeners)
        busiest = simulation._carried(site, COSTS, "listener")
        slow = simulation.capacity(site, COSTS, TO_ONE_RAW, listener_speed=simulation.shards.SHARE).rate
        primary = simulation._carried(site, COSTS, "Redis")
        add("raw messages", site.name, listeners_us=listeners * 20 + 80, redis_us=11 + listeners * 0.5)
        row = scenarios["raw messages"][site.name]
        row |= {
            "of a core %": [25],
            "rate/s": [slow],
            "a listener carries/s": [busiest],
            "a primary carries/s": [primary],
        }
    for hearers in (0, 1, 4):
        add(f"PUBLISH, {hearers} hear it", "redis-1", node_us=1 + hearers * 0.5, another_node_us=0)
        add(f"PUBLISH, {hearers} hear it", "redis-3", node_us=3 + hearers * 0.5, another_node_us=2)
    add("unicast, published, 1,000 sockets", plain.name, redis_us=12, server_us=10, listener_us=2)
    fan_out = "fan-out, one at a time, published, 1,000 sockets"
    add(fan_out, plain.name, server_us=10.1, redis_us=0.012)
    add(fan_out, more.name, server_us=10.4, redis_us=0.015)
    scenarios["unicast, raw, 1,000 sockets"] = {}
    return report.Result("shards", {}, {}, {}, reference="", scenarios=scenarios)
