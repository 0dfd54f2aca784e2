"""What has to hold in Chromium, Firefox and WebKit, in one suite; the files beside it go deeper, in Chromium."""

import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from urllib.parse import urlencode

import pytest

from tests.browser.conftest import Place
from tests.browsers import BROWSERS, Browser, Tab
from tests.demo_browser import SCREENSHOTS
from tests.processes import User

TOASTS = '<notification-toasts timeout="0"></notification-toasts>'
"""They stay: on a busy machine ten seconds go by between two steps of a test."""
RECORD = """
window.seen = [];
const connection = await notifications;
connection.onUser(({ n }) => window.seen.push(n));
"""
TRANSPORT = "return (await window.notifications)?.transport === given[0];"
STATE = "return (await window.notifications)?.state === given[0];"
SEEN = "return JSON.stringify(window.seen) === given[0];"
TITLE, BAR = "[part~=title]", "[role=progressbar]"
LOOKS = """
const { documentElement: { clientWidth: room, scrollWidth: content } } = document;
const lines = document.createRange();
const edges = Object.fromEntries(["bar", "fill", "message", "toast", "title", "close"].map((part) => {
    const [element] = shown(`[part~=${part}]`);
    lines.selectNodeContents(element);
    const { left, right } = (part === "message" ? lines : element).getBoundingClientRect();
    return [part, { left, right }];
}));
const [fill, toast] = ["fill", "toast"].map((part) => getComputedStyle(shown(`[part~=${part}]`)[0]));
const light = (colour) => colour.match(/[\\d.]+/g).slice(0, 3).reduce((sum, each) => sum + Number(each), 0);
const [text, ground] = [toast.color, toast.backgroundColor].map(light);
return { window: innerWidth, room, content, ...edges, accent: fill.backgroundColor, text, ground };
"""
EXPECTED = re.compile(
    "favicon|net::ERR_|WebSocket connection to .* failed|establish a connection|interrupted while the page was loading"
)
"""
What browsers say themselves about a server that a test has killed, about a page that is left while it connects, and
about the icon that no page here has.
"""
NARROW = 320
"""The narrowest viewport in pixels: WCAG 2.2, 1.4.10."""


@pytest.fixture(scope="module")
def start_browser() -> Iterator[Callable[[type[Browser]], Browser]]:
    """Return a function that returns the running browser of a kind; each is started once, when a test asks for it."""
    running: dict[type[Browser], Browser] = {}
    with ExitStack() as stack:

        def start(kind: type[Browser]) -> Browser:
            if missing := kind.missing():
                message = f"no {missing}: tests/install_browsers says why"
                if os.environ.get("CI"):
                    pytest.fail(message)
                pytest.skip(message)
            if kind not in running:
                running[kind] = stack.enter_context(kind())
            return running[kind]

        yield start


@pytest.fixture(params=BROWSERS, ids=lambda kind: kind.name)
def browser(request: pytest.FixtureRequest, start_browser: Callable[[type[Browser]], Browser]) -> Browser:
    return start_browser(request.param)


@dataclass
class Visit:
    """A logged-in visitor's tab, and the site it is on."""

    browser: Browser
    tab: Tab
    place: Place
    user: User

    def open(self, body: str, *, head: str = "", live: bool = True, **query: str) -> None:
        """Open a page with this template, and wait until it is connected and notes what it is given."""
        template = f"{head}{{% notifications %}}<main><h1>Uploads</h1>{body}</main>"
        self.tab.go(f"{self.place.url}page/?" + urlencode({"template": template, **query}))
        self.tab.run(RECORD)
        if live:
            self.expect_state("open")

    def expect_state(self, state: str) -> None:
        self.tab.wait_until(STATE, state, seconds=40)  # between two attempts there are 20 at most

    def expect_transport(self, transport: str, seconds: float = 20) -> None:
        """Wait until frames arrive in this way: a stream is tried after two WebSockets, a poll after 3 seconds more."""
        self.tab.wait_until(TRANSPORT, transport, seconds=seconds)

    def expect_seen(self, *numbers: int) -> None:
        """Wait until the page's handler was given these notices, in this order, and nothing else."""
        self.tab.wait_until(SEEN, json.dumps(numbers, separators=(",", ":")))

    def network_returns(self) -> None:
        """Tell the page so, as browsers do: it tries at once, and does not wait out its delay."""
        self.tab.run("dispatchEvent(new Event('online'));")

    def notice(self, title: str, n: int = 0, **more: object) -> None:
        self.place.publish(f"user:{self.user.pk}", action="notice", title=title, n=n, **more)

    def progress(self, upload: str, percent: int) -> None:
        payload = {"status": "analyzing", "stage": "vision_analysis", "progress_percent": percent, "message": ""}
        self.place.publish(f"upload:{upload}", action="upload_progress", payload=payload)

    def expect_percent(self, percent: int) -> None:
        self.tab.wait_until("return shown(given[0])[0]?.ariaValueNow === given[1];", BAR, str(percent))


@pytest.fixture
def visit(browser: Browser, place: Place) -> Iterator[Visit]:
    user = place.site.add_user()
    with browser.tab() as tab:
        tab.go(place.url)
        tab.run("await fetch('/log_in/', { method: 'POST', body: new URLSearchParams({ user: given[0] }) });", user.pk)
        yield Visit(browser, tab, place, user)
    assert [line for line in tab.complaints if not EXPECTED.search(line)] == []


def test_page_is_live(visit: Visit) -> None:
    """Under a strict policy a page connects, its bar moves and a notice appears, each once."""
    upload = visit.user.new_upload()
    visit.open(f"{{% upload_progress '{upload}' %}}{TOASTS}")

    visit.progress(upload, 40)
    visit.notice("Hello", 1)

    visit.expect_percent(40)
    visit.tab.expect_texts(TITLE, "Hello")
    visit.expect_seen(1)


def test_bar_of_a_job(visit: Visit) -> None:
    """A job's bar moves, can be cancelled, ends and begins again; a batch says how far all of them are."""
    job = visit.user.new_upload()
    visit.open(
        f"<batch-progress>{{% progress 'job' '{job}' label='Import' cancel_url='/state/?answer=1' %}}"
        f"{{% progress 'job' '{visit.user.new_upload()}' state='succeeded' %}}</batch-progress>"
    )

    def report(state: str, **more: object) -> None:
        names = ("percent", "done", "total", "unit", "stage", "message", "eta", "error", "url")
        payload = {"id": job, "state": state, **dict.fromkeys(names), **more}
        visit.place.publish(f"job:{job}", action="progress", payload=payload)

    report("running", percent=40, done=8100, total=20_000, unit="rows", stage="Reading rows", eta=170)
    visit.tab.expect_texts("[part=count]", "8,100 of 20,000 rows")
    visit.tab.expect_texts("[part=left]", "about 3 min left")
    visit.tab.expect_texts("[part~=stage]", "Reading rows")
    visit.tab.click("[part~=cancel]")
    visit.tab.expect_texts("[part~=cancel]", "Cancelling…")
    report("failed", error="ValueError")
    visit.tab.expect_texts("[part~=error]", "ValueError")
    visit.tab.expect_texts("[part~=state]", "2 of 2 finished, 1 failed", "Failed", "Completed")
    report("running", done=3)
    visit.tab.expect_texts("[part~=state]", "1 of 2 finished", "Running", "Completed")
    moving = visit.tab.run("return getComputedStyle(shown('[part~=unknown][part~=fill]')[0]).animationName;")
    assert moving == "move"


def test_bell(visit: Visit) -> None:
    """The bell counts a notice that is kept, shows it in its list, and marks it as read by its button and its link."""
    visit.open(f"{{% load notifications_inbox %}}{{% notification_bell %}}{TOASTS}")
    for title in ("One", "Two"):
        visit.tab.run(
            "await fetch('/keep/', { method: 'POST', body: new URLSearchParams(given[0]) });", {"title": title}
        )
    visit.tab.expect_texts("[part=number]", "2")
    visit.tab.expect_texts(TITLE, "One", "Two")

    visit.tab.click("notification-bell")
    visit.tab.expect_texts(TITLE, "Two", "One")
    visit.tab.wait_until("return shown('[part~=popover]')[0].matches(':focus');")
    visit.tab.click("[part~=all]")
    visit.tab.expect_texts("[part=number]")
    visit.tab.expect_texts("[part~=mark]", "Mark as unread", "Mark as unread")
    visit.tab.click("h1")
    visit.tab.expect_texts("[part~=panel]")
    url = visit.place.url + "page/?template=followed"
    form = {"title": "Three", "url": url}
    visit.tab.run("await fetch('/keep/', { method: 'POST', body: new URLSearchParams(given[0]) });", form)
    visit.tab.expect_texts("[part=number]", "1")
    visit.tab.click("notification-bell")
    visit.tab.click("a[part=title]")

    visit.tab.wait_until("return document.body.textContent === 'followed';")
    visit.open("{% load notifications_inbox %}{% notification_bell %}")
    visit.tab.expect_texts("[part=number]")


@pytest.mark.parametrize("transport", ["websocket", "stream", "poll"])
def test_killed_server(visit: Visit, transport: str) -> None:
    """
    A page outlives its server: it shows what was published meanwhile, nothing is missing and nothing comes twice.

    So does one whose WebSocket does not get through, which has a stream, and where responses are kept back, polls.
    """
    upload = visit.user.new_upload()
    visit.place.road.upgrades, visit.place.road.buffers = transport == "websocket", transport == "poll"
    visit.open(f"{{% upload_progress '{upload}' %}}{TOASTS}")
    visit.expect_transport(transport)
    visit.notice("Before", 1)
    visit.expect_seen(1)

    visit.place.kill()
    visit.expect_state("waiting")
    visit.notice("Meanwhile", 2)
    visit.progress(upload, 70)
    visit.place.start()
    if transport != "websocket":
        visit.network_returns()  # it would come by itself, some seconds later
    visit.notice("After", 3)

    visit.expect_state("open")
    visit.expect_seen(1, 2, 3)
    visit.expect_percent(70)
    visit.tab.expect_texts(TITLE, "Before", "Meanwhile", "After")


def test_network_goes_and_comes_back(visit: Visit) -> None:
    """A page without a network waits, comes back with the network, and has missed nothing."""
    visit.open(TOASTS)
    visit.notice("Before", 1)
    visit.expect_seen(1)

    with visit.place.closed_road():
        visit.expect_state("waiting")
        switched = visit.tab.switch_network(on=False)
        visit.notice("In the tunnel", 2)
    if switched:
        visit.tab.switch_network(on=True)
    else:
        visit.network_returns()
    visit.notice("After", 3)

    visit.expect_seen(1, 2, 3)
    visit.tab.expect_texts(TITLE, "Before", "In the tunnel", "After")


def test_back_button(visit: Visit) -> None:
    """A page that the back button brings back shows what it missed, and nothing that it had shown comes again."""
    upload = visit.user.new_upload()
    visit.open(f"{{% upload_progress '{upload}' %}}{TOASTS}")
    visit.progress(upload, 10)
    visit.notice("Before", 1)
    visit.expect_percent(10)
    visit.expect_seen(1)

    visit.tab.go(visit.place.url)
    visit.notice("Meanwhile", 2)
    visit.progress(upload, 70)
    visit.tab.back()

    visit.expect_percent(70)
    visit.expect_state("open")
    visit.notice("After", 3)
    visit.tab.expect_texts(TITLE, "Before", "Meanwhile", "After")
    assert visit.tab.run("return window.seen;") == ([1, 2, 3] if visit.browser.keeps_pages else None)


def test_post_redirect_get(visit: Visit) -> None:
    """What a view says before it redirects is shown on the page that follows, once."""
    form = """<form method="post" action="/post/"><input type="hidden" name="title" value="Saved">
    <input type="hidden" name="next" value="{{ request.get_full_path }}"><button>Save</button></form>"""
    visit.open(form + TOASTS)
    visit.tab.run("window.before = true;")

    visit.tab.click("button")

    visit.tab.wait_until("return !window.before && shown(given[0]).length > 0;", TITLE)
    visit.tab.expect_texts(TITLE, "Saved")
    visit.expect_state("open")
    visit.notice("Next")
    visit.tab.expect_texts(TITLE, "Saved", "Next")


@pytest.mark.parametrize("direction", ["ltr", "rtl"])
def test_on_a_phone_in_the_dark(visit: Visit, direction: str) -> None:
    """On 320 pixels nothing sticks out; it reads in both directions, and the colours are those of the dark."""
    visit.tab.resize(NARROW)
    visit.open(
        f"{{% upload_progress 'a' percent=40 message='{'word ' * 30}' label='{'name ' * 12}' %}}{TOASTS}",
        head='<meta name="viewport" content="width=device-width"><meta name="color-scheme" content="dark">',
        dir=direction,
    )
    visit.notice("title " * 9, body="word " * 40, level="error", url="/elsewhere")
    visit.notice("long" * 30, body="x" * 100)
    visit.tab.wait_until("return shown(given[0]).length === 2;", TITLE)
    visit.tab.run("await Promise.all(shown('[part~=toast]').map((each) => each.getAnimations()[0]?.finished));")
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    visit.tab.save_screenshot(SCREENSHOTS / f"phone-{direction}-{visit.browser.name}.png")

    looks = visit.tab.run(LOOKS)

    assert looks["window"] == NARROW
    assert looks["content"] <= looks["room"]
    at_left = looks["fill"]["left"] == pytest.approx(looks["bar"]["left"], abs=2)
    assert at_left == (direction == "ltr")
    edge = "left" if direction == "ltr" else "right"
    assert looks["message"][edge] == pytest.approx(looks["bar"][edge], abs=2)
    assert (looks["close"]["left"] > looks["title"]["left"]) == (direction == "ltr")
    for edges in looks.values():
        if isinstance(edges, dict):
            assert edges["left"] >= 0
            assert edges["right"] <= looks["room"]
    assert looks["accent"] == "rgb(142, 166, 255)"
    assert looks["text"] > looks["ground"]
