"""Where no WebSocket gets through: a real Chromium, a real server, and a proxy in between that hinders it."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from urllib.parse import urlencode

import pytest
from playwright.sync_api import Browser, BrowserContext, Page

from tests.browser.conftest import Place
from tests.demo_browser import CHROMIUM, MILLISECONDS
from tests.faults import HttpProxy
from tests.processes import User

pytestmark = pytest.mark.skipif(
    CHROMIUM is None and "CI" not in os.environ, reason="no Chromium on PATH: tests/install_browsers says why"
)

RECORD = """
window.seen = [], window.states = [], window.gaps = 0;
window.connection = await notifications;
connection.onUser(({ n }) => seen.push(n));
connection.addEventListener("state", ({ detail }) => states.push(detail.state));
connection.addEventListener("gap", () => gaps++);
"""
"""What the page is told, from its own script on: an upload's messages are counted by the elements."""


@dataclass
class Tab:
    """A logged-in tab, and what it has fetched."""

    place: Place
    context: BrowserContext
    user: User
    page: Page
    fetched: list[str] = field(default_factory=list)
    sockets: list[str] = field(default_factory=list)
    roads: list[str] = field(default_factory=list)
    """Which of ``websocket`` and ``stream`` the page has tried since it was loaded, in order."""
    warnings: list[str] = field(default_factory=list)
    published: int = 0

    def log_in(self) -> None:
        name, _, value = self.user.cookie.partition("=")
        url = f"http://127.0.0.1:{self.place.road.port}"
        self.context.add_cookies([{"name": name, "value": value, "url": url}])

    def open(self, body: str = "", transport: str | None = None) -> None:
        template = f"{{% notifications %}}<script type=module nonce={{{{ request.csp_nonce }}}}>{RECORD}</script>{body}"
        self.page.goto(f"http://127.0.0.1:{self.place.road.port}/page/?" + urlencode({"template": template}))
        if transport:
            self.expect(transport)

    def expect(self, transport: str | None) -> None:
        """Wait until frames arrive in this way; None for none."""
        self.page.wait_for_function("(transport) => window.connection?.transport === transport", arg=transport)

    def publish(self) -> None:
        """Publish the next number for the user."""
        self.published += 1
        self.raw(f"user:{self.user.pk}", action="note", n=self.published)

    def raw(self, topic: str, **message: object) -> None:
        with self.place.site.client() as client:
            client.publish(topic, json.dumps(message))

    def expect_all(self, since: int = 0) -> None:
        """Wait for all numbers, and see that each came once, in order, and that nothing was said to be missing."""
        expected = list(range(since + 1, self.published + 1))
        self.page.wait_for_function("(n) => seen.includes(n)", arg=self.published)
        assert self.page.evaluate("seen") == expected
        assert self.page.evaluate("gaps") == 0

    def clear(self) -> None:
        """Forget what was fetched, and which states there were."""
        self.fetched.clear()
        self.sockets.clear()
        self.page.evaluate("states.length = 0")


@pytest.fixture
def tab(browser: Browser, place: Place) -> Iterator[Tab]:
    with browser.new_context() as context:
        context.set_default_timeout(MILLISECONDS)
        user = place.site.add_user()
        tab = Tab(place, context, user, context.new_page())
        tab.log_in()
        tab.page.add_init_script("Math.random = () => 0.1")  # no test waits for the longest of delays
        tab.page.on("request", lambda request: tab.fetched.append(request.url.rsplit("/", 1)[-1]))
        tab.page.on("websocket", lambda socket: tab.sockets.append(socket.url))
        tab.page.on("websocket", lambda socket: tab.roads.append("websocket"))
        tab.page.on("request", lambda request: request.url.endswith("/stream/") and tab.roads.append("stream"))
        tab.page.on("framenavigated", lambda frame: tab.roads.clear())
        tab.page.on("console", lambda line: line.type == "warning" and tab.warnings.append(line.text))
        yield tab


def test_page_with_a_websocket_fetches_no_fallback(tab: Tab):
    """Where a WebSocket works, the fallback costs nothing."""
    tab.open(transport="websocket")
    tab.publish()

    tab.expect_all()
    assert not [name for name in tab.fetched if name.startswith("fallback")]


@pytest.mark.parametrize("upgrades", [False, None], ids=["refused", "hanging"])
def test_blocked_websocket_is_replaced_by_a_stream(tab: Tab, upgrades: bool | None):
    """The page gets each message once, in order; a reload begins with the stream."""
    tab.place.road.upgrades = upgrades
    tab.open(transport="stream")
    for _ in range(20):
        tab.publish()
    tab.expect_all()

    before = tab.published
    tab.open()
    tab.publish()
    tab.expect("stream")

    tab.expect_all(before)
    assert tab.roads[0] == "stream"  # a WebSocket is tried beside it, a second later


def test_buffered_stream_is_replaced_by_polls(tab: Tab):
    """Behind a proxy that keeps a response until it has ended, the page polls."""
    tab.place.road.upgrades, tab.place.road.buffers = False, True
    tab.open(transport="poll")
    for _ in range(5):
        tab.publish()
        tab.page.wait_for_timeout(100)  # some meet a poll that waits, others the time between two

    tab.expect_all()
    before = tab.published
    tab.open()
    tab.publish()
    tab.expect("poll")
    tab.expect_all(before)


@pytest.mark.parametrize("buffers", [False, True], ids=["stream", "poll"])
def test_killed_server_loses_nothing(tab: Tab, buffers: bool):
    """A server that dies and comes back: the page says so meanwhile, and gets what was published."""
    tab.place.road.upgrades, tab.place.road.buffers = False, buffers
    tab.open(transport="poll" if buffers else "stream")
    tab.publish()
    tab.expect_all()

    tab.place.kill()
    tab.expect(None)
    tab.publish()
    tab.place.start()
    tab.page.evaluate("connection.retry()")
    tab.publish()

    tab.expect_all()


def test_offline_and_online(tab: Tab):
    """Without a network the page says so; with it, it comes back at once."""
    tab.place.road.upgrades = False
    tab.open(transport="stream")

    tab.context.set_offline(True)
    tab.expect(None)
    tab.publish()
    tab.context.set_offline(False)

    tab.expect("stream")
    tab.expect_all()


def test_stream_that_is_cut_again_and_again_is_one(tab: Tab):
    """A proxy that cuts each connection after a while is not noticed by the page."""
    with HttpProxy(tab.place.port, cuts_after=6) as road:  # a break within 5 s is told
        tab.place = replace(tab.place, road=road)
        tab.log_in()
        tab.open(transport="stream")
        tab.clear()
        while tab.fetched.count("") < 2:  # the address ends with a slash
            tab.publish()
            tab.page.wait_for_timeout(200)

        tab.expect_all()
        assert set(tab.page.evaluate("states")) <= {"open"}


@pytest.mark.parametrize("buffers", [False, True], ids=["stream", "poll"])
def test_websocket_that_works_again_takes_over(tab: Tab, buffers: bool):
    """Nothing is lost, nothing comes twice, and the page is open all the time."""
    tab.place.road.upgrades, tab.place.road.buffers = False, buffers
    tab.open(transport="poll" if buffers else "stream")
    tab.publish()
    tab.expect_all()
    tab.clear()

    tab.place.road.upgrades = True
    tab.page.evaluate("dispatchEvent(new Event('online'))")
    while tab.page.evaluate("connection.transport") != "websocket":
        tab.publish()
        tab.page.wait_for_timeout(20)  # a history keeps 100
    tab.publish()

    tab.expect_all()
    assert set(tab.page.evaluate("states")) == {"open"}
    tab.sockets.clear()
    tab.page.reload()
    tab.expect("websocket")
    assert len(tab.sockets) == 1


def test_hidden_tabs_leave_connections_for_the_site(tab: Tab):
    """A browser has six connections to a host over HTTP/1.1: tabs in the background do not take them all."""
    tab.place.road.upgrades = False
    tab.context.add_init_script("Math.random = () => 0.1")
    background = [replace(tab, page=tab.context.new_page()) for _ in range(7)]
    for each in background:
        each.page.add_init_script("Object.defineProperty(document, 'hidden', { get: () => true })")
        each.open(transport="stream")

    tab.open(transport="stream")
    tab.publish()

    tab.expect_all()


def test_three_hundred_bars(tab: Tab):
    """
    A page may have more bars than a connection has topics: each shows its end, also after a reconnect.

    From the reconnect on the client says 500 things, of which it says 150 in eight seconds at most: 24 s.
    """
    tab.place.road.upgrades = False
    uploads = [tab.user.new_upload() for _ in range(300)]
    tab.open("".join(f'<upload-progress upload="{upload}"></upload-progress>' for upload in uploads), "stream")
    for upload in uploads[:100]:
        payload = {"status": "analyzing", "stage": "indexing", "progress_percent": 7, "message": ""}
        tab.raw(f"upload:{upload}", action="upload_progress", payload=payload)
    shown = """([percent, count]) => count === [...document.querySelectorAll("upload-progress")].filter(
        ({ shadowRoot }) => shadowRoot.querySelector("[role=progressbar]").ariaValueNow === percent).length"""
    tab.page.wait_for_function(shown, arg=["7", 100])

    tab.place.road.cut()
    tab.expect("stream")
    for upload in uploads:
        tab.raw(f"upload:{upload}", action="upload_completed", description="A cat", audit_score=92)

    tab.page.wait_for_function(shown, arg=["100", 300], timeout=3 * MILLISECONDS)
    assert [text for text in tab.warnings if "WebSocket" not in text] == [
        "notifications: too_many_subscriptions, a socket has at most 100 (300 topics): docs/protocol.md#errors"
    ]
