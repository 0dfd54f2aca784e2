"""The browser client, in Node, against Redis, listener and web server as processes; its own tests are in tests/js."""

import json
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest

import notifications
from tests.conftest import SITE_SETTINGS, point_to
from tests.faults import restart_redis
from tests.processes import Process, Site, User, WebServer
from tests.waiting import wait_for

TAB = Path(__file__).parents[1] / "js" / "tab.js"
NODE = shutil.which("node")

pytestmark = pytest.mark.skipif(
    (NODE is None or not (TAB.parent / "node_modules").exists()) and "CI" not in os.environ,
    reason="Node.js or its packages are missing: tests/js/run says why",
)


class Tab(Process):
    """A page with the client; ``said`` is what it has printed."""

    @property
    def said(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.output.splitlines()]

    def has(self, **fields: Any) -> bool:
        return any(fields.items() <= line.items() for line in self.said)

    def wait_until(self, **fields: Any) -> None:
        """Wait until it has printed something with these fields."""
        wait_for(lambda: self.has(**fields), what=f"{fields} in {self.output}")

    def values(self, topic: str) -> list[Any]:
        """What it was shown of a topic."""
        return [line["value"] for line in self.said if line.get("topic") == topic and "value" in line]


def open_tab(site: Site, server: WebServer, *topics: str, **options: Any) -> Tab:
    assert NODE is not None, "CI is set and there is no Node.js"
    argument = json.dumps({"url": server.url, "topics": topics, **options})
    return site.start(NODE, TAB, argument, name="tab", process=Tab)


@contextmanager
def publishing(*topics: str) -> Iterator[None]:
    """Publish 1, 2, 3 … on each of these topics, and a last "end"."""
    stop = threading.Event()

    def publish() -> None:
        for value in count(1):
            for topic in topics:
                notifications.publish(topic, {"action": "note", "value": value})
            if stop.wait(0.05):  # a history holds what is published while a busy machine starts a server
                return

    thread = threading.Thread(target=publish)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    for topic in topics:
        notifications.publish(topic, {"action": "note", "value": "end"})


@pytest.fixture
def site(new_site: Site, settings: Any) -> Site:
    topics = {**settings.NOTIFICATIONS["TOPICS"], "team": {"JOIN": "tests.testsite.permissions.teams_of"}}
    ours = {**SITE_SETTINGS["NOTIFICATIONS"], "TOPICS": topics}
    new_site.settings = {**SITE_SETTINGS, "NOTIFICATIONS": ours}
    point_to(settings, new_site.redis.url)
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, **ours}
    return new_site


def topics_of(user: User) -> list[str]:
    return [f"user:{user.pk}", f"upload:{user.new_upload()}", f"order:{user.username}-A"]


def test_every_message_is_shown_once_while_the_server_is_killed_and_restarted(site: Site, server_kind: str) -> None:
    """kill -9 and SIGTERM of the web server lose and repeat nothing on four topics, one a state, one that is joined."""
    user = site.add_user()
    own, upload, order = topics_of(user)
    team = f"team:{user.username}"
    server, _ = site.start_all(server_kind)
    # CLEAN_ID of orders is lower(): the page spells it in its own way, and is answered in the other.
    tab = open_tab(site, server, upload, order, cookie=user.cookie, joined=[team])
    topics = (own, upload, order.lower(), team)
    for topic in topics:
        wait_for(lambda topic=topic: notifications.publish(topic, {"action": "note", "value": 0}) and tab.values(topic))
    with publishing(*topics):
        for end in ("kill", "terminate"):
            wait_for(lambda: tab.said[-1].get("value", 0) > 20)
            before = tab.mark()
            getattr(server, end)()
            tab.wait_for_line('"waiting"', after=before)
            server = site.start_server(server_kind, server.port)
            tab.wait_for_line('"open"', after=before)

    for topic in topics:
        tab.wait_until(topic=topic, value="end")
        shown = [value for value in tab.values(topic) if value != 0]
        assert shown.pop() == "end"
        if topic == upload:  # a state: what was replaced meanwhile need not be shown
            assert shown == sorted(set(shown))
        else:
            assert shown == [*range(1, len(shown) + 1)]
    assert [line for line in tab.said if "gap" in line or "error" in line] == []


def test_what_is_missing_is_told(site: Site) -> None:
    """When Redis has lost its data, the page is told of each topic that goes on."""
    user = site.add_user()
    own, upload, _ = topics_of(user)
    server, listener = site.start_all("uvicorn")
    tab = open_tab(site, server, upload, token=user.token)
    for topic in (own, upload):
        wait_for(lambda topic=topic: notifications.publish(topic, {"value": 1}) and tab.values(topic))
    before = listener.mark()
    restart_redis(site, keep_data=False)
    listener.wait_for_line("listening on", after=before)

    for topic in (own, upload):
        wait_for(lambda topic=topic: notifications.publish(topic, {"value": 2}) and 2 in tab.values(topic))
        tab.wait_until(gap=topic)


def test_refusals_are_final_or_told(site: Site) -> None:
    """A forged token is tried twice and no more; a topic of somebody else is an error on an open connection."""
    user, other = site.add_user(), site.add_user()
    server, _ = site.start_all("daphne")

    forger = open_tab(site, server, token="forged")
    assert forger.wait() == 0  # nothing is left to wait for
    assert [line["state"] for line in forger.said] == ["connecting", "waiting", "connecting", "closed"]
    assert forger.said[-1]["code"] == 4003
    assert "not valid" in forger.said[-1]["reason"]

    forbidden = f"upload:{other.new_upload()}"
    tab = open_tab(site, server, forbidden, token=user.token)
    tab.wait_until(error="forbidden", topic=forbidden)
    assert tab.said[-2] == {"state": "open", "transport": "websocket"}
