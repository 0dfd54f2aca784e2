"""
The benchmarks, kept working: one tiny round of each, and what counts and writes tables.

No figure is compared with a limit: how fast a machine is, is no property of the code.
"""

import json
import random
import zlib
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest

from benchmarks import (
    accounts,
    contestants,
    day,
    events,
    idle,
    publishing,
    report,
    restart,
    rounds,
    scenarios,
    servers,
    shards,
    wakeup,
    websocket,
)
from benchmarks.load import Client, Load
from benchmarks.stage import Stage
from benchmarks.tally import Reader, Tally
from tests.waiting import scaled

pytestmark = pytest.mark.usefixtures("redis_program")

ALL = (*scenarios.BURSTS, scenarios.LATENCY)
TINY = scenarios.Plan(
    (scenarios.Step(6, {contestants.RAW: ALL, contestants.PUBLISHED: ALL}),), seconds=0.1, latency_seconds=0.1
)
OURS = replace(contestants.ALL[0], period=0.5)


@pytest.fixture(scope="module", autouse=True)
def database_ends() -> Iterator[None]:
    """End the database of the accounts with this module; a run of the benchmarks keeps it to its end."""
    yield
    accounts.end()


def faults(figures: scenarios.Figures) -> list[int]:
    return [figures[name] for name in report.FAULTS]


# Rounds


@pytest.fixture(params=["ours", "ours-stream", "textbook", "socketio", "node", "picows"])
def contestant(request: pytest.FixtureRequest) -> contestants.Contestant:
    found = contestants.named(request.param)
    if lacking := contestants.missing(found):
        pytest.skip(f"{lacking} is not here")
    return found


def test_round_delivers_everything(contestant: contestants.Contestant) -> None:
    """A round has figures for all scenarios and roads, and all messages arrived once and in order."""
    found = dict(scenarios.run(contestant, TINY))

    bursts = {scenarios.named(each, 6, road) for each in scenarios.BURSTS for road in contestant.roads}
    latencies = {scenarios.named(scenarios.LATENCY, 6, road) for road in contestant.roads}
    assert set(found) == bursts | latencies | {"connect, 6 sockets"}
    assert [found[name]["lost"] for name in latencies] == [0] * len(latencies)
    for name in bursts:
        assert faults(found[name]) == [0, 0, 0]
        assert found[name]["deliveries"] >= 6
        assert found[name]["server µs"] > 0


def test_all_contestants_carry_the_same_message(contestant: contestants.Contestant) -> None:
    """What a client gets is the same JSON, whoever carries it and however it got in."""
    expected = json.loads(publishing.message(1)) | {"at": None}
    with Stage(contestant) as stage, closing(Load(stage.ports, contestant.login)) as load:
        load.connect(1)
        for road in contestant.roads:
            with closing(scenarios.start_publisher(stage, road)) as publisher:
                publisher.send([("user:1", 1)])
                message = carried(load.clients[0], over_http=bool(contestant.login.body))
                assert message | {"at": None} == expected


def carried(client: Client, *, over_http: bool) -> dict[str, Any]:
    """Return the next message that a client is sent, without what is around it."""
    client.socket.settimeout(scaled())
    data = rest = b""
    while True:
        come = client.socket.recv(65536)
        if over_http:
            come, rest = events.framed(rest + come)
        data += come
        while (found := websocket.next_frame(data, 0)) is not None:
            text, data = data[slice(*found)].decode(), data[found[1] :]
            if '"seq"' in text:
                message = json.loads(text.removeprefix("42"))  # of Socket.IO: its types, and the name of an event
                message = message[1] if isinstance(message, list) else message
                message.pop("_meta", None)
                return message


def test_sockets_of_a_round_grow_and_may_rest() -> None:
    """A second step asks the same again with more sockets; those of an idle one hear nothing first."""
    asked = {contestants.PUBLISHED: (scenarios.UNICAST,)}
    steps = (scenarios.Step(2, asked), scenarios.Step(5, asked, idle=True))

    found = dict(scenarios.run(OURS, scenarios.Plan(steps, seconds=0.05)))

    assert list(found) == [
        "connect, 2 sockets",
        "unicast, published, 2 sockets",
        "connect, 5 sockets",
        "idle, 5 sockets",
        "unicast, published, 5 sockets",
    ]
    assert found["unicast, published, 5 sockets"]["deliveries"] % 5 == 0


def test_waking_a_reader_is_measured() -> None:
    """A write has a price for each way in which its reader may wait."""
    [(_, figures)] = wakeup.run()

    assert min(figures.values()) > 0


def test_contestant_that_fails_loses_only_what_it_had_not_yet_measured(tmp_path, monkeypatch) -> None:
    """What it measured before is kept, the others go on, and the results are written after each of them."""
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    saved = []

    def failing() -> Iterator[tuple[str, scenarios.Figures]]:
        yield "connect", {"connections/s": 1, "server µs": 5, "KiB a connection": 2}
        raise ValueError("no more")

    def watching() -> Iterator[tuple[str, scenarios.Figures]]:
        saved.extend(report.load(path) for path in tmp_path.iterdir())
        yield "connect", {"connections/s": 3, "server µs": 6, "KiB a connection": 4}

    entries = [rounds.Entry("a", "A", failing), rounds.Entry("b", "B", watching)]
    rounds.run("delivery", entries, 2, {}, reference="a")

    [path] = tmp_path.iterdir()
    result = report.load(path)
    assert result.scenarios["connect"] == {
        "a": {"round": [1, 2], "connections/s": [1, 1], "server µs": [5, 5], "KiB a connection": [2, 2]},
        "b": {"round": [1, 2], "connections/s": [3, 3], "server µs": [6, 6], "KiB a connection": [4, 4]},
    }
    assert result.failures == ["round 1, A: ValueError: no more", "round 2, A: ValueError: no more"]
    assert [each.failures for each in saved] == [result.failures[:1], result.failures]


def test_idle_sockets_are_back_after_a_restart_with_what_they_missed() -> None:
    """All clients are closed with 1012 when the server stops, come back, and have what was said meanwhile."""
    found = dict(idle.run(OURS, idle.Plan(sockets=8, seconds=0.5)))

    assert found["idle"]["server ms/min"] >= 0
    assert found["restart"]["close codes"] == {1012: 8}
    assert (found["restart"]["had it"], found["restart"]["repeated"]) == (8, 0)


@pytest.mark.skipif(not accounts.postgresql(), reason="PostgreSQL or psycopg is not here")
@pytest.mark.parametrize("contestant", restart.ALL, ids=lambda contestant: contestant.name)
def test_tabs_come_back_and_what_they_asked_is_counted(contestant: contestants.Contestant) -> None:
    """Nobody is refused; lookups for many take fewer queries than there are tabs."""
    ((scenario, figures),) = restart.run(contestant, restart.Plan(sockets=40))

    assert (scenario, figures["refused"]) == ("come back", 0)
    assert (figures["queries"] < 40) == (contestant.name == contestants.REFERENCE)


def test_day_loses_and_repeats_nothing() -> None:
    """Users who come and go have each message of their uploads once and in order."""
    plan = day.Plan(
        users=6, uploads=12, messages=8, seconds=3, upload_seconds=1.5, open_seconds=(0.3, 0.8), away_seconds=(0.1, 0.4)
    )

    figures = dict(day.run(OURS, plan))["day"]

    assert [figures[name] for name in (*report.FAULTS, "told", "closed")] == [0, 0, 0, 0, 0]
    assert figures["messages"] == plan.uploads * (plan.messages + 1)
    assert figures["recovered"] > 0


@pytest.mark.parametrize("name", ["uvicorn-deflate", "granian", "hypercorn"])
def test_servers_and_numbers_of_web_processes_can_be_compared(name: str) -> None:
    """On another server, on one that compresses, and on two web processes everything arrives once and in order."""
    contestant = servers.contestant(name, OURS)
    if lacking := contestants.missing(contestant):
        pytest.skip(f"{lacking} is not here")

    found = dict(scenarios.run(contestant, TINY, web_processes=2))

    for name in scenarios.BURSTS:
        assert faults(found[scenarios.named(name, 6, "raw")]) == [0, 0, 0]


@pytest.mark.parametrize("site", [shards.Site(1, 1, 2), shards.Site(3, 8, 2)], ids=lambda site: site.title)
def test_listeners_and_primaries_can_be_compared(site: shards.Site) -> None:
    """Each message comes once and in order through listeners that take turns on a core."""
    ((_, figures),) = shards.run_bridge(site, 4000)

    assert (figures["lost"], figures["out of order"]) == (0, 0)
    assert 0 < figures["listeners µs"] * figures["a listener carries/s"] < len(shards.BRIDGES) * 1e6


def test_contestant_that_cannot_run_is_left_out_and_named(capsys) -> None:
    """A peer whose package is missing is left out with a line that says which."""
    able = contestants.that_can_run([OURS, replace(OURS, title="A peer", needs=("no_such_package",))])

    assert able == [OURS]
    assert "A peer is left out: no_such_package" in capsys.readouterr().out


# Counting


@pytest.mark.parametrize(
    ("arrived", "received", "lost", "repeated", "out_of_order"),
    [
        ([1, 2, 3, 4], 4, 0, 0, 0),
        ([], 0, 4, 0, 0),
        ([1, 2], 2, 2, 0, 0),
        ([1, 4], 2, 2, 0, 0),
        ([3, 4], 2, 2, 0, 0),
        ([1, 2, 2, 3, 4], 4, 0, 1, 0),
        ([1, 2, 3, 4, 1, 2], 4, 0, 2, 0),
        ([1, 3, 2, 4], 4, 0, 0, 1),
        ([4, 3, 2, 1], 4, 0, 0, 3),
        ([1, 3, 2, 2, 4], 4, 0, 1, 1),
    ],
)
def test_tally_finds_what_is_wrong(
    arrived: list[int], received: int, lost: int, repeated: int, out_of_order: int
) -> None:
    """Of four messages each lost, repeated and late one is counted, whatever came before it."""
    reader, tally = Reader(), Tally()
    for seq in arrived:
        tally.take(reader, seq)
    tally.finish([reader], 4)

    assert (tally.received, tally.lost, tally.repeated, tally.late) == (received, lost, repeated, out_of_order)


def test_tally_adds_up_over_readers() -> None:
    """Readers are counted each by itself and added up; one that begins again waits for number 1."""
    readers, tally = [Reader(), Reader()], Tally()
    tally.take(readers[0], 1)
    tally.take(readers[1], 2)
    tally.finish(readers, 2)
    readers[0].begin()
    tally.take(readers[0], 1)

    assert (tally.received, tally.lost, tally.repeated) == (3, 2, 0)


def test_compressed_frames_are_read_however_they_are_cut() -> None:
    """Compressed frames, plain ones between them, come out as they went in, wherever the packets end."""
    texts = [b'{"n":%d,"text":"%s"}' % (n, b"abc" * n * n) for n in range(40)]
    deflate, stream = zlib.compressobj(wbits=-12), b""
    for n, text in enumerate(texts):
        payload = text
        if n % 3:
            payload = (deflate.compress(text) + deflate.flush(zlib.Z_SYNC_FLUSH)).removesuffix(websocket.DEFLATE_TAIL)
        size = len(payload)
        length = bytes([size]) if size < 126 else b"\x7e" + size.to_bytes(2)
        stream += bytes([websocket.TEXT | (websocket.COMPRESSED if n % 3 else 0)]) + length + payload

    inflate, rest, found = zlib.decompressobj(-zlib.MAX_WBITS), b"", []
    while stream:
        cut = random.randint(1, 700)
        plain, stream = websocket.inflated(rest + stream[:cut], inflate), stream[cut:]
        at = 0
        while (frame := websocket.next_frame(plain, at)) is not None:
            found.append(plain[slice(*frame)])
            at = frame[1]
        rest = plain[at:]

    assert found == texts
