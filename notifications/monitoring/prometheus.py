"""
Exposes the numbers of ``metrics.py`` to Prometheus. Imported only if prometheus-client is installed.

If several processes share one address (``PROMETHEUS_MULTIPROC_DIR``), prometheus-client keeps the numbers in files that
all of them can read; a thread then writes this app's numbers there every second. Otherwise they are read on request.
"""

from __future__ import annotations

import atexit
import os
import re
import threading
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from .. import metrics
from ..bridge.state import REPORTS
from ..protocol.frames import CloseCode

WRITE_INTERVAL: Final = 1.0
"""Seconds between two writes of the numbers for other processes."""
BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Seconds: from a delivery on one idle machine to the 30 s in which a lost message is found."""
STATES: Final = tuple(dict.fromkeys(REPORTS.values()))
DIRECTORY: Final = "PROMETHEUS_MULTIPROC_DIR"


class Shown(NamedTuple):
    """
    How one name of ``metrics.counts`` is exposed.

    Attributes:
        name: The name of the Prometheus counter, without ``notifications_`` and ``_total``.
        label: The label of the reason; empty if there is none.
        reasons: Exposed as 0 from the start, because Prometheus does not see the first increase of a new counter.

    """

    name: str
    help: str
    label: str = ""
    reasons: tuple[str, ...] = ()


COUNTS: Final = {
    "published": Shown("published", "Messages that Redis accepted from publish_*."),
    "publish_failed": Shown(
        "publish_failures",
        "Calls of publish_* that Redis did not confirm.",
        "reason",
        ("ConnectionError", "TimeoutError", "OutOfMemoryError"),
    ),
    "position_failed": Shown(
        "position_failures",
        "Positions of topics for pages that Redis did not return.",
        "reason",
        ("ConnectionError", "TimeoutError"),
    ),
    "recovered": Shown(
        "recovered",
        "Browsers that asked for what they missed or lost something: whether they received all of it.",
        "result",
        ("true", "false"),
    ),
    "filled": Shown("filled", "Messages sent from the history: gaps, and what browsers missed while they were away."),
    "reconciled": Shown("reconciled", "Sockets that had fallen behind, found by comparing positions."),
    "dropped": Shown(
        "dropped",
        "Messages that will not arrive this way; those with an id are read from the history later.",
        "reason",
        (
            "channel full",
            "slow browser, no history",
            "catching up, no history",
            "the backlog is full",
            "nobody stamped it in time",
            "the channel layer is too slow",
            "the channel layer failed",
            "the connection ended before Redis confirmed",
            "Redis refused to publish",
            "read before a gap, and not known to be stamped",
            "a later message of its topic was stamped first",
            "not forwarded in time before the end",
            "the inlet is full",
        ),
    ),
    "refused": Shown(
        "refused",
        "Messages that could not be parsed: raw ones, and those of the channel layer.",
        "reason",
        ("MessageError", "TopicError", "layer message"),
    ),
    "unstamped": Shown("unstamped", "Raw messages delivered without an id, because Redis refused to keep them."),
    "inlet_published": Shown("inlet_published", "Entries of the inlet that were published."),
    "inlet_refused": Shown(
        "inlet_refused",
        "Entries of the inlet that could not be published, and were set aside.",
        "reason",
        ("MessageError", "TopicError"),
    ),
    "listener_gap": Shown("listener_gaps", "Times that a listener lost its subscription."),
    "layer_gap": Shown("layer_gaps", "Times that a connection of notifications.layers was lost or failed."),
    "closed": Shown(
        "closes", "Sockets that the server closed, by code.", "code", tuple(str(int(code)) for code in CloseCode)
    ),
    "response": Shown(
        "http_responses",
        "Responses of the HTTP transport, by why they ended.",
        "end",
        ("answered", "full", "time", "closed", "gone", "unread", "refused"),
    ),
    "auth_failed": Shown(
        "auth_failures",
        "Sockets and subscriptions refused because of their user or origin, and checks that failed.",
        "reason",
        ("origin", "token", "unavailable", "error", "authorize", "join"),
    ),
    "connection_refused": Shown(
        "connections_refused",
        "Sockets closed because there were too many.",
        "whose",
        ("user", "address", "unauthenticated", "guests"),
    ),
    "send_failed": Shown(
        "send_failures",
        "Sockets told to come back because the server's send, or that of a middleware, failed or was cancelled.",
        "reason",
        ("TimeoutError", "CutShortError"),
    ),
    "task_restarted": Shown(
        "task_restarts",
        "Times that a task which all sockets depend on was restarted after it failed or was cancelled.",
        "task",
        (
            "pump",
            "heartbeat",
            "channel layer",
            "reconciler",
            "control channel",
            "access checks",
            "permission checks",
            "unanswered permissions",
            "listener",
            "inlet",
        ),
    ),
    "withdrawn": Shown("withdrawn", "Subscriptions that ended because the user may not read the topic any more."),
    "control": Shown("control", "Control messages sent to every web process.", "do", ("disconnect", "check", "revoke")),
    "control_gap": Shown("control_gaps", "Times that a web process lost its subscription to control messages."),
    "access_check_failed": Shown("access_checks_failed", "Times that the database could not say who still has access."),
    "inbox_kept": Shown("inbox_kept", "Notices that were written to the database, committed or not."),
    "inbox_told": Shown(
        "inbox_told",
        "Kept notices, and changes of them, that were published: by whoever committed, or by a listener.",
        "when",
        ("at once", "later"),
    ),
    "inbox_refused": Shown(
        "inbox_refused", "Kept notices that cannot be published.", "reason", ("MessageError", "TopicError")
    ),
    "frame_refused": Shown("frames_refused", "Frames of browsers that were answered with an error.", "code"),
}
"""By the name in ``metrics.counts``."""
TALLIES: Final = {
    "bridged": "Messages that the listener has handed to the channel layer.",
    "delivered": "Messages handed to the server for browsers.",
    "duplicates": "Messages not sent because the socket had already received them.",
    "replaced": "Messages of states not sent because the socket was sent a later one.",
}
LEVELS: Final = {
    "connections": "Open sockets, and HTTP responses that have not ended.",
    "responses": "HTTP responses that have not ended: streams and polls, counted as connections as well.",
    "subscriptions": "Topics that open sockets have joined, including their users' own.",
    "unanswered": "Subscriptions that wait because it is not known yet whether they are allowed.",
}


class Exporter:
    """A collector for prometheus-client that updates its metrics when they are requested."""

    def __init__(self) -> None:
        self._counters = {
            name: Counter(
                f"notifications_{shown.name}", shown.help, [shown.label] if shown.label else [], registry=None
            )
            for name, shown in COUNTS.items()
        }
        for name, shown in COUNTS.items():
            for reason in shown.reasons:
                self._counters[name].labels(reason)
        self._tallies = {name: Counter(f"notifications_{name}", text, registry=None) for name, text in TALLIES.items()}
        # "live": of running processes.
        self._levels = {
            name: Gauge(f"notifications_{name}", text, registry=None, multiprocess_mode="livesum")
            for name, text in LEVELS.items()
        }
        bridging = Histogram(
            "notifications_bridge_seconds",
            "From the listener reading a raw message to handing it to the channel layer; a sample.",
            buckets=BUCKETS,
            registry=None,
        )
        sending = Histogram(
            "notifications_publish_to_send_seconds",
            "From publish_*, or the listener reading a raw message, to a browser's socket; a sample.",
            buckets=BUCKETS,
            registry=None,
        )
        metrics.bridging.record, metrics.sending.record = bridging.observe, sending.observe
        self._metrics = [*self._counters.values(), *self._tallies.values(), bridging, sending, *self._levels.values()]
        self._shown: dict[object, int] = {}
        self._lock = threading.Lock()

    def describe(self) -> Iterator[Metric]:
        for each in self._metrics:
            yield from each.describe()
        yield from _listener()

    def collect(self) -> Iterator[Metric]:
        self.write()
        for each in self._metrics:
            yield from each.collect()
        if metrics.listening.state:
            yield from _listener()

    def write(self) -> None:
        """Update prometheus-client's numbers."""
        with self._lock:
            for key, value in list(metrics.counts.items()):
                name, reason = key
                if name in self._counters and (more := self._more(key, value)):
                    counter = self._counters[name]
                    # The part after a colon varies, so it must not become a label.
                    (counter.labels(reason.partition(":")[0]) if COUNTS[name].label else counter).inc(more)
            for name, counter in self._tallies.items():
                counter.inc(self._more(name, getattr(metrics.tally, name)))
            for name, gauge in self._levels.items():
                gauge.set(getattr(metrics.tally, name))

    def _more(self, key: object, value: int) -> int:
        more = value - self._shown.get(key, 0)
        self._shown[key] = value
        return more


def _listener() -> Iterator[Metric]:
    """Yield the metrics of a listener, which shares its address with no other process."""
    states = GaugeMetricFamily(
        "notifications_listener_state", "1 for the state that this listener is in.", labels=["state"]
    )
    for state in STATES:
        states.add_metric([state], metrics.listening.state.startswith(state))
    yield states
    yield GaugeMetricFamily("notifications_listener_leading", "Shards that it leads.", metrics.listening.leading)
    yield GaugeMetricFamily(
        "notifications_listener_shards", "Shards of the site, that is SHARDS.", metrics.listening.shards
    )
    yield GaugeMetricFamily(
        "notifications_listener_waiting", "Messages read but not delivered yet.", metrics.listening.waiting()
    )
    amount, age = metrics.listening.inlet
    yield GaugeMetricFamily(
        "notifications_inlet_waiting", "Entries that wait in the inlet, as the listener in charge knows.", amount
    )
    yield GaugeMetricFamily(
        "notifications_inlet_oldest_seconds", "For how long the oldest entry had waited when it was last read.", age
    )


exporter = Exporter()


@cache  # Django gets apps ready once more when a site's test changes INSTALLED_APPS
def install() -> None:
    """Add this app's metrics to prometheus-client's registry, or begin to write them for the other processes."""
    REGISTRY.register(exporter)
    if DIRECTORY in os.environ:
        _begin_to_write()
        os.register_at_fork(after_in_child=_begin_to_write)
        atexit.register(exporter.write)


def _begin_to_write() -> None:
    threading.Thread(target=_keep_written, name="notifications-metrics", daemon=True).start()


def _keep_written() -> None:
    pause = threading.Event()
    while not pause.wait(WRITE_INTERVAL):
        exporter.write()


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        pass
    return True


def registry() -> CollectorRegistry:
    """Return the registry to expose: prometheus-client's own, or what the processes of this address have written."""
    if DIRECTORY not in os.environ:
        return REGISTRY
    exporter.write()
    directory = Path(os.environ[DIRECTORY])
    for path in directory.glob("gauge_live*.db"):
        # A dead process has no open sockets; only some servers have a hook for that.
        if (pid := re.search(r"_(\d+)\.db$", path.name)) and not _lives(int(pid[1])):
            with suppress(FileNotFoundError):  # two may look at once
                mark_process_dead(int(pid[1]), str(directory))  # type: ignore[no-untyped-call]  # it has no types
    together = CollectorRegistry()
    MultiProcessCollector(together, str(directory))  # type: ignore[no-untyped-call]  # nor has this
    return together
