"""Metrics for Prometheus: the numbers are true, only authorized clients read them, and processes are added up."""

import ast
import asyncio
import json
import os
import re
import signal
import socket
import sys
import urllib.error
import urllib.request
from collections import defaultdict
from contextlib import AsyncExitStack
from pathlib import Path

import psutil
import pytest
from django.test import RequestFactory
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from notifications import metrics
from notifications.monitoring import prometheus, views
from notifications.monitoring.prometheus import COUNTS, Exporter
from tests import source
from tests.clients import RawRedis, open_tab
from tests.ports import free_port
from tests.processes import START_SECONDS, WebServer
from tests.waiting import await_for, scaled, wait_for

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "only-for-tests"
WEB = {"NOTIFICATIONS": {"METRICS_TOKEN": TOKEN}}


class Scraped:
    """One answer to Prometheus: ``scraped["notifications_closes_total", "4003"]``, by name and label values."""

    def __init__(self, text: str) -> None:
        self._values: dict[tuple[str, ...], float] = defaultdict(float)
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                self._values[sample.name, *sample.labels.values()] += sample.value

    def __getitem__(self, key: str | tuple[str, ...]) -> float:
        return self._values[(key,) if isinstance(key, str) else key]

    def __contains__(self, name: str) -> bool:
        return any(key[0] == name for key in self._values)


def fetch(url: str, token: str | None = TOKEN) -> str:
    request = urllib.request.Request(url)
    if token is not None:
        request.add_header("Authorization", f"Bearer {token}")
    with urllib.request.urlopen(request, timeout=scaled()) as answer:
        return answer.read().decode()


def scrape(port: int, path: str = "/notifications/metrics/") -> Scraped:
    return Scraped(fetch(f"http://127.0.0.1:{port}{path}"))


# From processes.


@pytest.fixture
def watched_site(new_site):
    """A site with a web server and a listener that serves metrics; yields the site, the server and both ports."""
    new_site.settings = WEB
    port = free_port()
    new_site.start_listener("--metrics-port", str(port))
    return new_site, new_site.start_server("uvicorn"), port


async def test_what_happens_is_shown(watched_site):
    """Messages, browsers that come back, refusals and closes appear in the numbers of the process they happened in."""
    site, server, listener_port = watched_site
    user = site.add_user()
    await await_for(lambda: scrape(listener_port, "/")["notifications_listener_state", "holder"] == 1)

    with RawRedis(site.redis.port) as raw:
        async with open_tab(server, user) as tab:
            web = scrape(server.port)
            assert (web["notifications_connections"], web["notifications_subscriptions"]) == (1, 1)
            raw.publish(user.channel, '{"n":1}')
            await tab.expect_message('{"n":1}')
            raw.publish(user.channel, "nonsense")
            await asyncio.to_thread(site.run, "send_notification", user.username, "timed")
            await tab.expect("notice")
            await tab.subscribe(f"upload:{user.username}", since="1-1")
            await tab.send({"action": "subscribe", "topic": "closed:1"})
            await tab.expect("error", code="forbidden")
        async with open_tab(server) as stranger:
            await stranger.send({"type": "auth", "token": "forged"})
            await stranger.expect_closed(4003)

    listener = await await_for(lambda: (it := scrape(listener_port, "/"))["notifications_bridged_total"] == 2 and it)
    web = scrape(server.port)
    assert web["notifications_delivered_total"] == 2
    assert web["notifications_recovered_total", "false"] == 1
    assert web["notifications_frames_refused_total", "forbidden"] == 1
    assert web["notifications_auth_failures_total", "token"] == 1
    assert web["notifications_closes_total", "4003"] == 1
    assert web["notifications_closes_total", "4005"] == 0
    assert "notifications_listener_state" not in web
    assert listener["notifications_refused_total", "MessageError"] == 1
    assert listener["notifications_bridge_seconds_count"] == 1
    assert 0 < listener["notifications_bridge_seconds_sum"] < scaled(5)
    assert web["notifications_publish_to_send_seconds_count"] == 2  # the first raw and the first published one
    assert 0 < web["notifications_publish_to_send_seconds_sum"] < scaled(5)
    assert listener["notifications_listener_waiting"] == 0
    assert web["process_resident_memory_bytes"] > 0
    await await_for(lambda: scrape(server.port)["notifications_connections"] == 0)
    await await_for(lambda: scrape(server.port)["notifications_subscriptions"] == 0)  # left after that


async def test_shards_without_a_holder_are_what_the_listeners_do_not_lead(new_site):
    """Together they lead all shards, a half each; the alert compares the sum with the number of shards."""
    new_site.settings = {"NOTIFICATIONS": {**WEB["NOTIFICATIONS"], "SHARDS": 4}}
    ports = [free_port(), free_port()]
    for port in ports:
        new_site.start_listener("--metrics-port", str(port))

    def shown(name):
        return [scrape(port, "/")[f"notifications_listener_{name}"] for port in ports]

    await await_for(lambda: shown("leading") == [2, 2])
    assert shown("shards") == [4, 4]


async def test_a_message_from_the_history_is_delivered_and_filled(watched_site):
    """What a browser missed is counted as sent from the history, and its return as recovered."""
    site, server, listener_port = watched_site
    user = site.add_user()
    async with open_tab(server, user) as tab, AsyncExitStack() as stack:
        topic = f"upload:{user.username}"
        position = (await tab.subscribe(topic))["id"]
        with stack.enter_context(RawRedis(site.redis.port)) as raw:
            raw.publish(topic, '{"n":1}')
            await tab.expect_message('{"n":1}')
        await tab.send({"action": "unsubscribe", "topic": topic})
        await tab.expect("unsubscribed")
        before = scrape(server.port)
        await tab.subscribe(topic, since=position)
        await tab.expect_message('{"n":1}')

    after = await await_for(lambda: (it := scrape(server.port))["notifications_filled_total"] == 1 and it)
    assert before["notifications_filled_total"] == 0
    assert after["notifications_delivered_total"] == before["notifications_delivered_total"] + 1
    assert after["notifications_recovered_total", "true"] == 1
    assert listener_port


@pytest.mark.slow
async def test_processes_of_one_address_are_added_up(new_site, tmp_path):
    """With PROMETHEUS_MULTIPROC_DIR each of two workers shows the sum; one that was killed has no sockets any more."""
    directory = tmp_path / "metrics"
    directory.mkdir()
    new_site.settings = WEB
    new_site.start_listener()
    port = free_port()
    server = new_site.start(
        *(sys.executable, "-m", "uvicorn", "--no-access-log", "--port", str(port), "--lifespan", "off"),
        *("--workers", "2", "tests.testsite.asgi:application"),
        name="uvicorn",
        process=WebServer,
        env=new_site.environment | {"PROMETHEUS_MULTIPROC_DIR": str(directory)},
    )
    server.port = port

    def workers() -> set[int]:
        return {int(pid) for pid in re.findall(r"Started server process \[(\d+)\]", server.output)}

    wait_for(lambda: len(workers()) == 2, START_SECONDS)
    server.wait_until_serving()
    user = new_site.add_user()
    async with AsyncExitStack() as stack:
        tabs = [await stack.enter_async_context(open_tab(server, user)) for _ in range(12)]
        with RawRedis(new_site.redis.port) as raw:
            raw.publish(user.channel, '{"n":1}')
        for tab in tabs:
            await tab.expect_message('{"n":1}')
        await await_for(lambda: scrape(port)["notifications_delivered_total"] == 12)
        shares = {path.name: path for path in directory.glob("gauge_livesum_*.db")}
        assert len(shares) >= 2
        # Whichever worker answers says the same.
        assert {scrape(port)["notifications_connections"] for _ in range(10)} == {12}

        # The system decides which worker accepts a connection, and one of them may have none.
        victim = max(workers(), key=lambda pid: len(psutil.Process(pid).net_connections("tcp")))
        os.kill(victim, signal.SIGKILL)
        await await_for(lambda: len(workers()) == 3, START_SECONDS, "a new worker")
        left = await await_for(
            lambda: (it := scrape(port))["notifications_connections"] < 12 and it, START_SECONDS, "one is dead"
        )
        assert not (directory / f"gauge_livesum_{victim}.db").exists()
        assert left["notifications_delivered_total"] == 12  # what happened has happened
        assert "notifications_listener_state" not in left


def test_the_listener_refuses_to_share_its_numbers(new_site, tmp_path, monkeypatch):
    """In the directory of the web processes its numbers would be shown as theirs: it says so and does not start."""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))

    done = new_site.run("run_listener", "--metrics-port", str(free_port()))

    assert done.returncode == 1
    assert "unset PROMETHEUS_MULTIPROC_DIR" in done.stderr


def test_a_port_that_is_taken_is_said(new_site):
    """A listener that cannot serve its metrics does not start without them."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        done = new_site.run("run_listener", "--metrics-port", str(other.getsockname()[1]))

    assert done.returncode == 1
    assert "cannot serve metrics on 127.0.0.1" in done.stderr
    assert "Traceback" not in done.stderr


WITHOUT_CLIENT = """
import sys
sys.modules["prometheus_client"] = None
import importlib.util
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == "prometheus_client" else real(name, package)
import django
django.setup()
from django.core.management import call_command
from django.test import RequestFactory
from notifications import metrics
from notifications.monitoring import views
assert "notifications.monitoring.prometheus" not in sys.modules
metrics.count("published")
request = RequestFactory().get("/", headers={"Authorization": "Bearer only-for-tests"})
assert views.metrics(request).status_code == 404
try:
    call_command("run_listener", "--metrics-port", "1")
except Exception as error:
    print(type(error).__name__, error)
"""


def test_everything_works_without_prometheus_client(new_site):
    """Without the extra nothing is imported; a request for metrics is answered with what to install."""
    new_site.settings = WEB
    done = new_site.start(sys.executable, "-c", WITHOUT_CLIENT, name="without prometheus-client")

    assert done.wait(START_SECONDS) == 0, done.output
    assert 'CommandError --metrics-port needs prometheus-client: install "django-realtime' in done.output


# Who may read them.


@pytest.mark.parametrize(
    ("token", "header", "status"),
    [
        ("", None, 404),
        ("", "Bearer ", 404),
        (TOKEN, None, 401),
        (TOKEN, "Bearer wrong", 401),
        (TOKEN, f"bearer {TOKEN}", 401),
        (TOKEN, "Bearer \xe9", 401),
        (TOKEN, f"Bearer {TOKEN}", 200),
    ],
)
def test_only_clients_with_the_token_read_metrics(settings, token, header, status):
    """Nobody without METRICS_TOKEN, otherwise those who send it; no cache keeps the answer."""
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "METRICS_TOKEN": token}

    answer = views.metrics(RequestFactory().get("/", headers={"Authorization": header} if header else {}))

    assert answer.status_code == status
    assert "no-store" in answer.headers["Cache-Control"]
    assert (b"notifications_published_total" in answer.content) == (status == 200)


def test_a_server_refuses_without_the_token(watched_site):
    """Over HTTP, too."""
    _, server, _ = watched_site
    with pytest.raises(urllib.error.HTTPError) as refused:
        fetch(f"http://{server.address}/notifications/metrics/", token=None)

    with refused.value:
        assert refused.value.code == 401


# The exporter.


@pytest.fixture
def shown(monkeypatch):
    """Return a function that shows the numbers of this test, of an exporter of its own."""
    monkeypatch.setattr(metrics, "counts", type(metrics.counts)())
    monkeypatch.setattr(metrics, "tally", metrics.Tally())
    for durations in (metrics.bridging, metrics.sending):
        monkeypatch.setattr(durations, "record", durations.record)
    registry = CollectorRegistry()
    registry.register(Exporter())

    def show() -> Scraped:
        from prometheus_client import generate_latest

        return Scraped(generate_latest(registry).decode())

    return show


def test_numbers_are_not_added_twice(shown):
    """Two scrapes show the same; what came between them is added once."""
    metrics.count("published", amount=3)
    metrics.tally.delivered += 5

    assert [shown()["notifications_published_total"] for _ in range(2)] == [3, 3]
    metrics.count("published")
    assert shown()["notifications_published_total"] == 4
    assert shown()["notifications_delivered_total"] == 5


def test_the_details_of_a_reason_are_left_out(shown):
    """What Redis or a layer said makes no series of its own, whatever it said."""
    for n in range(3):
        metrics.count("dropped", f"Redis refused to publish: error {n}")

    assert shown()["notifications_dropped_total", "Redis refused to publish"] == 3


def test_durations_go_into_their_buckets(shown):
    """A message of another host whose clock is ahead counts as 0, not as negative."""
    metrics.sending.since(metrics.microseconds(ago=0.2))
    metrics.sending.since(metrics.microseconds(ago=-60))

    seen = shown()
    assert seen["notifications_publish_to_send_seconds_bucket", "0.001"] == 1
    assert seen["notifications_publish_to_send_seconds_count"] == 2
    assert 0.2 <= seen["notifications_publish_to_send_seconds_sum"] < scaled(10)


def test_a_sample_is_taken_from_time_to_time():
    """Of a thousand messages in a row one is timed."""
    sampler = metrics.Sampler()

    assert sampler.due()
    assert sum(sampler.due() for _ in range(1000)) <= 1


def test_everything_that_is_counted_is_shown():
    """Each name that the package counts has a metric, and each metric is counted somewhere."""
    tallied = {
        node.target.attr
        for node in source.nodes()
        if isinstance(node, ast.AugAssign)
        and isinstance(node.target, ast.Attribute)
        and getattr(node.target.value, "id", None) == "tally"
    }

    assert {source.text(call.args[0]) for call in source.calls("count")} == set(COUNTS)
    assert tallied == {*prometheus.TALLIES, *prometheus.LEVELS}


def test_every_reason_begins_at_0():
    """Reasons that the code names are shown before they happen: Prometheus sees no increase of what was not there."""
    for name in ("dropped", "auth_failed", "recovered"):
        told = [call.args[1] for call in source.calls("count") if call.args[1:] and source.text(call.args[0]) == name]
        if name == "dropped":
            told += [call.args[0] for call in source.calls("lost")]
        reasons = {source.text(reason).partition(":")[0] for reason in told} - {""}
        assert reasons <= set(COUNTS[name].reasons), name
        assert name == "recovered" or reasons == set(COUNTS[name].reasons), name


# What is built on them.


def names_of_metrics() -> set[str]:
    suffixes = {"counter": ["_total"], "gauge": [""], "histogram": ["_bucket", "_count", "_sum"]}
    return {family.name + suffix for family in Exporter().describe() for suffix in suffixes[family.type]}


DASHBOARD = json.loads((ROOT / "deploy/grafana/notifications.json").read_text())
RULES = (ROOT / "deploy/prometheus/notifications.rules.yml").read_text()
EXPRESSIONS = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]


@pytest.fixture(autouse=True)
def durations_stay_where_they_were(monkeypatch):
    """An ``Exporter`` of a test takes the durations; give them back."""
    for durations in (metrics.bridging, metrics.sending):
        monkeypatch.setattr(durations, "record", durations.record)


@pytest.mark.parametrize("text", [" ".join(EXPRESSIONS), RULES], ids=["dashboard", "rules"])
def test_dashboard_and_alerts_ask_for_metrics_that_exist(text):
    """Every metric that they name exists, and every label value is one that the code uses."""
    asked = set(re.findall(r"\bnotifications_\w+", text))

    assert asked
    assert asked - names_of_metrics() == set()
    assert set(re.findall(r'state=~?"([^"]+)"', text)) <= {*prometheus.STATES, "holder|stand-by"}
    assert set(re.findall(r'code="(\d+)"', text)) <= set(COUNTS["closed"].reasons)


def test_the_dashboard_shows_every_metric():
    """Nothing is exported that the dashboard leaves out."""
    asked = set(re.findall(r"\bnotifications_\w+", " ".join(EXPRESSIONS)))
    exported = {name for name in names_of_metrics() if not name.endswith(("_count", "_sum"))}

    assert exported - asked == set()


def test_the_alerts_are_documented():
    """docs/operations.md says of every alert what to do."""
    text = (ROOT / "docs/operations.md").read_text().partition("<!-- table: alerts -->")[2].partition("\n\n")[0]

    assert re.findall(r"^\| `(\w+)`", text, re.MULTILINE) == re.findall(r"alert: (\w+)", RULES)


def test_the_metrics_are_documented():
    """docs/operations.md lists every metric, and no other."""
    text = (ROOT / "docs/operations.md").read_text().partition("<!-- table: metrics -->")[2].partition("\n\n")[0]
    listed = set(re.findall(r"^\| `(\w+)", text, re.MULTILINE))

    assert listed == {re.sub("_(bucket|count|sum)$", "", name) for name in names_of_metrics()}
