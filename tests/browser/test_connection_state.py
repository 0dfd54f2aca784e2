"""What elements say of the connection, in a real Chromium that loses its way to a real server."""

import json
import re
from collections.abc import Iterator
from types import SimpleNamespace
from urllib.parse import quote

import pytest
from playwright.sync_api import Browser, Locator, Page, Route, expect

from tests.axe import violations
from tests.browser.test_elements import (
    HOSTILE,
    TOASTS,
    Tab,
    bar,
    open_tab,
    pages,
    port,
    pytestmark,
    shown,
    stop_clock,
    tab,
)
from tests.faults import Proxy
from tests.ports import free_port
from tests.processes import Site, WebServer
from tests.waiting import scaled

__all__ = ["pages", "port", "pytestmark", "tab"]  # as there

STATUS = "<connection-status></connection-status>"
STATE = "async (state) => (await notifications).state === state"
SUBSCRIBED = """async (topic) => {
    const connection = await notifications;
    await new Promise((subscribed) => connection.subscribe(topic, () => {}, { subscribed }));
}"""
"""Wait for the answer to a subscription, which comes after those to the page's own."""
LISTEN = """() => {
    window.said = [];
    for (const element of document.querySelectorAll("upload-progress, notification-toasts, connection-status")) {
        for (const live of element.shadowRoot.querySelectorAll("[role=status], [aria-live]")) {
            const note = () => live.textContent && window.said.push(`${element.localName}: ${live.textContent}`);
            new MutationObserver(note).observe(live, { childList: true, subtree: true, characterData: true });
        }
    }
}"""
"""Note what a screen reader is told to say, and by which element."""


class Line:
    """The way from the browser to the server, and the clock of a page."""

    def __init__(self, tab: Tab, proxy: Proxy, server: WebServer) -> None:
        self.tab = tab
        self._proxy = proxy
        self.server = server
        self._nowhere = free_port()

    def open(self, body: str, **query: str) -> Page:
        """Open a page whose clock stands still, and whose delays are no accident."""

        def prepare(page: Page) -> None:
            page.add_init_script("Math.random = () => 0.3")
            page.clock.install()

        page = self.tab.open(body, before=prepare, **query)
        page.evaluate(SUBSCRIBED, f"upload:{self.tab.user.new_upload()}")
        stop_clock(page)
        page.evaluate(LISTEN)
        return page

    def cut(self, page: Page) -> None:
        """Stop the server, as far as the browser can see."""
        self._proxy.lead_to(self._nowhere)
        self._proxy.cut()
        page.wait_for_function(STATE, arg="waiting")

    def mend(self) -> None:
        self._proxy.lead_to(self.server.port)

    def pass_time(self, page: Page, milliseconds: int) -> None:
        """Let time go by on the page, not faster than its attempts to connect need."""
        for _ in range(0, milliseconds, 50):
            page.clock.run_for(50)
            for _ in range(int(scaled(200))):
                if not page.evaluate(STATE, "connecting"):
                    break
                page.wait_for_timeout(10)

    def pass_time_until(self, page: Page, said: list[str]) -> None:
        """Let as much time go by as it takes until the page has said this."""
        for _ in range(200):
            if page.evaluate("said") == said:
                return
            page.wait_for_timeout(10)
            self.pass_time(page, 50)
        raise AssertionError(f"the page has not said {said} in ten seconds, but {page.evaluate('said')}")

    def wait_until_open(self, page: Page) -> None:
        """Let as much time go by as the page needs."""
        for _ in range(200):
            if page.evaluate(STATE, "open"):
                return
            self.pass_time(page, 50)
        raise AssertionError("the page has not come back in ten seconds")


@pytest.fixture
def line(browser: Browser, pages: tuple[Site, WebServer]) -> Iterator[Line]:
    site, server = pages
    with (
        Proxy(server.port) as proxy,
        open_tab(browser, (site, SimpleNamespace(address=f"127.0.0.1:{proxy.port}"))) as tab,
    ):
        yield Line(tab, proxy, server)
        tab.expect_complaints("net::ERR_", "WebSocket connection to")


def state_url(**state: object) -> str:
    """A path of the site that answers this, as JSON."""
    return f"/state/?answer={quote(json.dumps(state))}"


def status(page: Page, part: str = "box") -> Locator:
    return page.locator(f"connection-status [part~={part}]")


def test_a_second_without_the_server_is_not_shown(line: Line) -> None:
    """Whoever is back within two seconds has seen and heard nothing, however often."""
    upload = line.tab.user.new_upload()
    page = line.open(f"{{% upload_progress '{upload}' percent=40 %}}{STATUS}{TOASTS}")

    for percent in (50, 60):
        line.cut(page)
        line.pass_time(page, 1_000)
        line.mend()
        line.wait_until_open(page)
        line.tab.progress(upload, percent)
        expect(bar(page)).to_have_attribute("aria-valuenow", str(percent))
        page.clock.run_for(11_000)  # then the delays are short again

    assert page.evaluate("said") == []
    expect(bar(page)).to_have_attribute("aria-valuetext", f"{percent}%, Analysing the images")
    expect(status(page)).to_have_attribute("part", "box live unseen")


def test_four_seconds_without_the_server_are_shown_and_said_once(line: Line) -> None:
    """A bar is offline, asks the site, catches up and goes on; one element says so aloud."""
    tab, upload = line.tab, line.tab.user.new_upload()
    there = state_url(status="analyzing", stage="indexing", percent=55, message=HOSTILE)
    asked: list[dict[str, str]] = []

    def answer(route: Route) -> None:
        asked.append(route.request.all_headers())
        route.fulfill(response=route.fetch(url=route.request.url.replace(tab.server.address, line.server.address)))

    page = line.open(
        f"{{% upload_progress '{upload}' percent=40 stage='Resting' status_url='{there}' %}}"
        f"{{% upload_progress '{tab.user.new_upload()}' %}}<button>Work</button>{STATUS}{TOASTS}"
    )
    page.route("**/state/**", answer)
    words, first = shown(page, "connection"), bar(page).first

    line.cut(page)
    line.pass_time(page, 1_900)
    expect(words.first).to_be_hidden()
    line.pass_time(page, 2_100)

    expect(words).to_have_text(["Offline", "Offline"])
    expect(first).to_have_attribute("part", "bar offline")
    expect(status(page, "text")).to_have_text("Offline")
    expect(status(page, "detail")).to_have_text(re.compile("Next attempt in [12] s"))
    expect(shown(page, "message").first).to_have_text(HOSTILE)
    expect(first).to_have_attribute("aria-valuetext", "55%, Indexing, Offline")
    assert page.evaluate("window.broken") is None
    assert [(headers["accept"], "cookie" in headers) for headers in asked] == [("application/json", True)]
    line.pass_time(page, 20_000)
    assert 2 <= len(asked) <= 4  # after 3, 3, 6 and 13 seconds

    tab.progress(upload, 70)
    line.mend()
    line.wait_until_open(page)
    expect(words).to_have_text(["Catching up", "Catching up"])
    expect(first).to_have_attribute("aria-valuenow", "70")
    so_far = len(asked)
    line.pass_time(page, 1_500)
    expect(words.first).to_be_hidden()
    line.pass_time(page, 20_000)
    expect(status(page)).to_have_attribute("part", "box live unseen")
    tab.progress(upload, 71)
    expect(first).to_have_attribute("aria-valuetext", "71%, Analysing the images")
    assert len(asked) == so_far
    assert page.evaluate("said") == [f"connection-status: {text}" for text in ("Offline", "Catching up", "Connected")]


def test_job_is_asked_of_the_site_while_the_page_is_offline(line: Line) -> None:
    """The answer changes what it names, also to an end, after which it is not asked again; the job may go on."""
    tab, job = line.tab, line.tab.user.new_upload()
    there = state_url(state="failed", error=HOSTILE, stage="Indexing")
    asked: list[str] = []

    def answer(route: Route) -> None:
        asked.append(route.request.url)
        route.fulfill(response=route.fetch(url=route.request.url.replace(tab.server.address, line.server.address)))

    page = line.open(f"{{% progress 'job' '{job}' state='running' percent=40 status_url='{there}' %}}")
    page.route("**/state/**", answer)

    line.cut(page)
    line.pass_time(page, 4_000)
    expect(shown(page, "error")).to_have_text(HOSTILE)
    expect(shown(page, "state")).to_have_text("Failed")
    expect(bar(page)).to_have_attribute("aria-valuetext", "40%, Failed, Indexing")
    expect(shown(page, "connection")).to_be_hidden()
    line.pass_time(page, 20_000)
    assert len(asked) == 1

    payload = {"id": job, "state": "running", "percent": 50}
    tab.publish(f"job:{job}", action="progress", payload=payload)
    line.mend()
    line.wait_until_open(page)
    expect(bar(page)).to_have_attribute("aria-valuenow", "50")
    expect(shown(page, "state")).to_have_text("Running")


@pytest.mark.parametrize(
    ("elements", "teller"),
    [(TOASTS, "notification-toasts"), ("", "upload-progress")],
    ids=["toasts", "bars"],
)
def test_one_element_says_aloud_that_the_page_is_offline(line: Line, elements: str, teller: str) -> None:
    """However many bars there are, a screen reader hears it once."""
    uploads = [line.tab.user.new_upload() for _ in range(3)]
    page = line.open("".join(f"{{% upload_progress '{upload}' %}}" for upload in uploads) + elements)

    line.cut(page)
    line.pass_time(page, 3_000)
    line.mend()
    line.wait_until_open(page)

    said = [f"{teller}: {text}" for text in ("Offline", "Catching up", "Connected")]
    line.pass_time_until(page, said)
    line.pass_time(page, 3_000)
    assert page.evaluate("said") == said


def test_line_that_comes_and_goes_is_not_said_each_time(line: Line) -> None:
    """Trouble that comes back soon has to last longer before it is told: nobody hears of it every few seconds."""
    page = line.open(STATUS)
    tell = "async (detail) => (await notifications).dispatchEvent(new CustomEvent('state', { detail }))"

    for lasts in (2_500, 2_500, 2_500, 5_000):
        page.evaluate(tell, {"state": "waiting", "seconds": 1})
        page.clock.run_for(lasts)
        page.evaluate(tell, {"state": "open"})
        page.clock.run_for(5_000)

    once = ["connection-status: Offline", "connection-status: Connected"]
    assert page.evaluate("said") == [*once, *once]


def test_button_tries_at_once(line: Line) -> None:
    """Who does not want to wait presses the button; the focus then goes back to where it was."""
    page = line.open(f"<button>Work</button>{STATUS}")
    work, button = page.get_by_role("button", name="Work"), page.get_by_role("button", name="Try now")
    line.cut(page)
    line.pass_time(page, 8_000)
    line.mend()
    work.focus()

    page.keyboard.press("Tab")
    expect(button).to_be_focused()
    page.keyboard.press("Enter")

    page.wait_for_function(STATE, arg="open")
    line.pass_time(page, 1_000)
    expect(button).to_be_hidden()
    expect(work).to_be_focused()


def test_end_of_the_session_is_said_in_words(line: Line) -> None:
    """A connection that is closed for good says why, and has a button that loads the page again."""
    upload = line.tab.user.new_upload()
    page = line.open(f"{{% upload_progress '{upload}' percent=40 %}}{STATUS}")

    page.evaluate("fetch('/log_out/', { method: 'POST' })")
    page.wait_for_function(STATE, arg="closed")
    line.pass_time(page, 3_000)

    expect(status(page)).to_have_attribute("part", "box closed")
    expect(page.get_by_role("status").last).to_have_text("Your session has ended")
    expect(shown(page, "connection")).to_have_text("Offline")
    with page.expect_navigation():
        page.get_by_role("button", name="Reload the page").click()


@pytest.mark.parametrize(
    ("elements", "direction", "width"),
    [(STATUS, "ltr", 1100), (STATUS, "rtl", 320), ("", "rtl", 1100), ("", "ltr", 320)],
)
def test_offline_page_is_accessible_and_fits(line: Line, elements: str, direction: str, width: int) -> None:
    """What is said of the connection breaks no rule, light and dark, and neither sticks out nor covers a notice."""
    uploads = [line.tab.user.new_upload() for _ in range(2)]
    page = line.open(
        "<meta name='color-scheme' content='light dark'>"
        + "".join(f"{{% upload_progress '{upload}' percent=40 label='spring.jpg' %}}" for upload in uploads)
        + elements
        + TOASTS,
        dir=direction,
    )
    page.set_viewport_size({"width": width, "height": 700})
    page.evaluate("document.body.style.background = 'Canvas'")  # without one axe takes white
    line.tab.notice(title="Hello")
    expect(shown(page, "toast")).to_have_count(1)
    line.cut(page)
    line.pass_time(page, 3_000)
    expect(shown(page, "connection").first).to_be_visible()

    page.evaluate("document.body.append(...document.querySelectorAll('connection-status, notification-toasts'))")
    page.clock.resume()  # axe waits
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        assert violations(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    if elements:
        assert not overlap(status(page), shown(page, "toast"))
        page.emulate_media(media="print")
        expect(status(page)).to_be_hidden()


def overlap(one: Locator, other: Locator) -> bool:
    a, b = one.bounding_box(), other.bounding_box()
    assert a
    assert b
    across = a["x"] < b["x"] + b["width"] and b["x"] < a["x"] + a["width"]
    return across and a["y"] < b["y"] + b["height"] and b["y"] < a["y"] + a["height"]


BLOCKED = "window.WebSocket = class { constructor() { throw new Error('blocked'); } }"


def test_transport_is_named(tab: Tab) -> None:
    """A page without WebSockets says that it is live over HTTP, and does not say so aloud."""
    page = tab.open(STATUS, before=lambda page: page.add_init_script(BLOCKED))

    expect(status(page, "detail")).to_have_text("Connected over HTTP")
    expect(status(page, "detail")).to_be_visible()
    expect(page.get_by_role("button")).to_have_count(0)
    expect(page.get_by_role("status")).to_have_text("")


def gap(tab: Tab, upload: str) -> None:
    """Lose messages of an upload for good."""
    with tab.site.client() as client:
        client.delete(f"notifications:history:upload:{upload}")
    tab.progress(upload, 12)


def test_site_is_asked_after_a_gap(tab: Tab) -> None:
    """When messages were missed for good, the site says how far it is; also that it has ended, which is announced."""
    upload = tab.user.new_upload()
    there = state_url(status="completed", stage="completed", percent=100, message="A cat on a sofa")
    page = tab.open(f"{{% upload_progress '{upload}' status_url='{there}' label='spring.jpg' %}}")
    tab.progress(upload, 10)
    tab.progress(upload, 11)
    expect(bar(page)).to_have_attribute("aria-valuenow", "11")

    gap(tab, upload)

    expect(shown(page, "message")).to_have_text("A cat on a sofa")
    expect(page.get_by_role("status")).to_have_text("spring.jpg \N{EN DASH} Completed")


def test_strange_answer_changes_nothing(tab: Tab) -> None:
    """Another host is not asked, whether the page or the site's redirect names it, and what is no JSON is no answer."""
    upload, asked = tab.user.new_upload(), []
    other = "http://other.example/state/"
    urls = (other, other.removeprefix("http:"), f"/state/?to={other}", "/state/?answer=<p>")
    tab.context.route(f"{other}**", lambda route: (asked.append(route.request.url), route.abort()))
    page = tab.open(
        "".join(f"{{% upload_progress '{upload}' status_url='{url}' %}}" for url in urls),
        before=lambda page: page.clock.install(),
        connect="http://other.example",
    )
    tab.progress(upload, 10)
    tab.progress(upload, 11)
    expect(bar(page).last).to_have_attribute("aria-valuenow", "11")
    page.evaluate("() => void (window.gap = new Promise((go) => document.addEventListener('upload-gap', go)))")
    gap(tab, upload)
    page.evaluate("gap.then(() => undefined)")

    page.clock.run_for(5_000)
    tab.progress(upload, 13)

    for each in bar(page).all():
        expect(each).to_have_attribute("aria-valuetext", "13%, Analysing the images")
    assert asked == []
    tab.expect_complaints("Failed to load resource", "Fetch API cannot load")  # these addresses
