"""The demo page in a real Chromium, with a real Redis, Daphne, listener and worker behind it."""

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, StorageState, expect, sync_playwright

from tests.axe import violations
from tests.browser.test_elements import UNANSWERED
from tests.demo_browser import CHROMIUM, FLAGS, MILLISECONDS, SCREENSHOTS, OwnServer, Tab, publish, tokens
from tests.demo_site import Demo, broken_png, picture, png, running_demo, wait_until
from tests.faults import paused

VIOLATION = "content security policy broken"

pytestmark = pytest.mark.skipif(
    CHROMIUM is None and "CI" not in os.environ, reason="no Chromium on PATH: tests/install_browsers says why"
)
expect.set_options(timeout=MILLISECONDS)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    with running_demo(tmp_path_factory.mktemp("demo"), DEMO_PACE="0.05") as demo:
        yield demo


@pytest.fixture(scope="module")
def own_server(demo: Demo) -> Iterator[OwnServer]:
    """A second web server of the demo: the demo command would end with its own."""
    server = OwnServer(demo)
    yield server
    server.kill()


@pytest.fixture
def server(own_server: OwnServer) -> OwnServer:
    """The second web server, running: the test before may have left it dead."""
    own_server.start()
    return own_server


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    assert CHROMIUM, "CI is set and there is no Chromium: tests/install_browsers says why"
    with sync_playwright() as playwright:
        # With scrollbars that take room, as on most desks; Playwright hides them.
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=FLAGS, ignore_default_args=["--hide-scrollbars"]
        )
        yield browser
        browser.close()


def log_in(context: BrowserContext, demo: Demo) -> None:
    page = context.new_page()
    page.set_default_timeout(MILLISECONDS)
    page.goto(demo.url)
    page.get_by_label("User name").fill("demo")
    page.get_by_label("Password").fill("demo")
    page.get_by_role("button", name="Log in").click()
    page.get_by_role("heading", name="Uploads").wait_for()
    page.close()


@pytest.fixture(scope="module")
def login(browser: Browser, demo: Demo) -> StorageState:
    """Log in by the form, once, and return the cookies."""
    with browser.new_context() as context:
        log_in(context, demo)
        return context.storage_state()


@pytest.fixture
def context(browser: Browser, login: StorageState, demo: Demo) -> Iterator[BrowserContext]:
    """A logged-in browser; anything its pages complain of, and any violation of the policy, fails the test."""
    complaints: list[str] = []
    with browser.new_context(storage_state=login) as context:
        context.set_default_timeout(MILLISECONDS)
        context.on(
            "console",
            lambda line: line.type in ("error", "warning") and complaints.append(f"{line.text} {line.location['url']}"),
        )
        context.on("weberror", lambda error: complaints.append(str(error.error)))
        yield context
    # A browser says so itself when it cannot reach a server that a test has killed, and asks for an icon of JSON.
    expected = re.compile(rf"net::ERR_|/favicon\.ico$|{UNANSWERED}")
    assert [line for line in complaints if not expected.search(line)] == []
    assert VIOLATION not in demo.output


@pytest.fixture
def tab(context: BrowserContext, demo: Demo) -> Tab:
    """The demo page, live."""
    return Tab(context, demo.url)


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, bytes], Path]:
    def write(name: str, content: bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content)
        return path

    return write


@pytest.fixture
def long_file(write: Callable[[str, bytes], Path]) -> Callable[[str], Path]:
    """Make a file by its name that takes about two seconds to analyse: time to break something meanwhile."""
    return lambda name: write(name, b"words\n" * 100_000)


def test_five_files_reach_the_end_in_both_tabs(tab: Tab, context: BrowserContext, demo: Demo, write: Callable):
    """Five bars go to 100 % before one's eyes, in a second tab as well, and a notice says that it is done."""
    second = Tab(context, demo.url)
    names = ["picture.png", "notes.txt", "words.txt", "numbers.csv", "list.txt"]

    tab.upload(write(names[0], png()), *[write(name, b"some words\n" * 2000) for name in names[1:]])

    for each in (tab, second):
        expect(each.toast("Finished: 5 files analysed")).to_be_visible()  # first: it stays for ten seconds
    for each in (tab, second):
        each.expect_completed(*names)
        expect(each.row("picture.png")).to_contain_text("320 × 200")
        expect(each.row("picture.png").locator("img")).to_have_js_property("naturalWidth", 160)
        each.expect_everything(demo)
        each.expect_nothing_missing()


def test_percentage_never_goes_back(tab: Tab, demo: Demo, long_file: Callable):
    """Whatever arrives in whatever order, a bar only moves forward."""
    tab.page.evaluate(
        """() => {
            window.seen = [];
            addEventListener("upload-change", ({ detail }) => window.seen.push(detail.percent));
        }"""
    )

    with paused(demo.child("run_worker")):  # until the bar is there: it begins with the latest percentage
        tab.upload(long_file("forward.txt"))
        expect(tab.bar("forward.txt")).to_be_visible()

    tab.expect_completed("forward.txt")
    seen = tab.page.evaluate("window.seen")
    assert seen == sorted(seen)
    assert len(set(seen)) > 5


def test_page_opened_late_shows_the_true_state(tab: Tab, context: BrowserContext, demo: Demo, write, long_file):
    """A tab that opens while a file is read shows where it is; one that opens afterwards shows the end."""
    worker = demo.child("run_worker")
    tab.upload(write("broken.png", broken_png()), long_file("middle.txt"))
    tab.expect_begun("middle.txt")
    with paused(worker):
        late = Tab(context, demo.url)
        expect(late.bar("middle.txt")).to_have_attribute("aria-valuenow", re.compile(r"^[1-9]\d?$"))
    late.expect_completed("middle.txt")

    after = Tab(context, demo.url)
    after.expect_completed("middle.txt")
    expect(after.row("broken.png")).to_contain_text("The PNG image is damaged.")
    assert after.toast("").count() == 0  # what is over is not announced again


def test_navigation_during_an_upload_loses_nothing(tab: Tab, demo: Demo, long_file: Callable):
    """A tab that goes to another page of the site and comes back gets what was said meanwhile."""
    tab.upload(long_file("journey.txt"))
    tab.expect_begun("journey.txt")

    tab.page.goto(demo.url + "uploads/state/")
    publish(demo, title="Said on the way")  # the file may be at its end by now
    tab.reload()
    tab.reload()

    tab.expect_completed("journey.txt")
    tab.expect_everything(demo)
    tab.expect_nothing_missing()
    assert len(tab.had()) > 1


def test_killed_web_server_loses_nothing(context: BrowserContext, demo: Demo, server: OwnServer, long_file: Callable):
    """A server that dies by kill -9 in the middle of an upload and comes back: every message once, in order."""
    tab = Tab(context, server.url)
    tab.upload(long_file("killed-a.txt"), long_file("killed-b.txt"))
    tab.expect_begun("killed-a.txt")

    server.kill()
    tab.expect_state("Offline")
    server.start()

    tab.expect_state("Live")  # by itself
    tab.expect_completed("killed-a.txt", "killed-b.txt")
    tab.expect_everything(demo)
    tab.expect_nothing_missing()


def test_offline_and_online_again(context: BrowserContext, demo: Demo, server: OwnServer, long_file: Callable):
    """A tab without a network says so, comes back at once with the network, and has missed nothing."""
    tab = Tab(context, server.url)
    tab.upload(long_file("tunnel.txt"))
    tab.expect_begun("tunnel.txt")

    server.kill()  # Chromium's switch alone lets open sockets live
    tab.expect_state("Offline")
    context.set_offline(True)
    server.start()
    publish(demo, title="Said in the tunnel")
    expect(tab.page.locator("connection-status").get_by_role("status")).to_have_text("Offline")
    expect(tab.toast("Said in the tunnel")).to_have_count(0)
    context.set_offline(False)

    tab.expect_state("Live")
    expect(tab.toast("Said in the tunnel")).to_be_visible()
    tab.expect_completed("tunnel.txt")
    tab.expect_everything(demo)
    tab.expect_nothing_missing()


def test_killed_listener_loses_nothing(tab: Tab, demo: Demo, long_file: Callable):
    """The page's button kills the listener in the middle of an upload: every message arrives, once, in order."""
    listeners = demo.output.count("listening on")
    tab.open_underneath()
    tab.upload(long_file("bridge.txt"))
    tab.expect_begun("bridge.txt")

    tab.page.get_by_role("button", name="Kill the listener").click()

    expect(tab.page.locator("#killed")).to_contain_text("Killed process")
    pid = re.search(r"\d+", tab.page.locator("#killed").text_content())[0]
    expect(tab.toast(f"Listener {pid} was killed")).to_be_visible()
    tab.expect_completed("bridge.txt")
    tab.expect_everything(demo)
    tab.expect_nothing_missing()
    wait_until(lambda: demo.output.count("listening on") > listeners, "another listener")  # for raw messages


def test_underneath_shows_the_frames(tab: Tab, demo: Demo):
    """The panel is closed at first, shows frames as they come, as text, and keeps a bounded number of them."""
    expect(tab.page.locator("#frames")).to_be_hidden()
    tab.open_underneath()

    publish(demo, title="<img src=x onerror=window.broken=1>")
    # Not just the newest: a ping may come at any time.
    notice = tab.page.locator("#frames li").filter(has_text="<img src=x onerror=window.broken=1>")
    expect(notice).to_contain_text("user:1")
    for number in range(110):
        publish(demo, action="something", number=number, long="x" * 5000)

    last = tab.page.locator("#frames li").filter(has_text='"number": 109')
    expect(last).to_have_count(1)
    assert tab.page.locator("#frames li").count() == 100
    assert int(tab.page.locator("#messages").text_content()) >= 111  # the demo may still say something of a file
    newest = tab.page.locator("#frames li").filter(has_text="something").first.text_content()
    assert '"number": 109' in newest
    assert len(newest) < 2200
    assert tab.page.evaluate("window.broken") is None


@pytest.mark.parametrize("away", [False, True], ids=["live", "away"])
def test_logout_ends_the_other_tab(browser: Browser, demo: Demo, server: OwnServer, away: bool):
    """A tab whose session has ended elsewhere says so at once, or when it comes back, and does not try for ever."""
    with browser.new_context() as context:
        context.set_default_timeout(MILLISECONDS)
        log_in(context, demo)
        tab, other = Tab(context, demo.url), Tab(context, server.url)
        if away:
            server.kill()
            other.expect_state("Offline")

        tab.page.get_by_role("button", name="Log out").click()
        tab.page.get_by_role("heading", name="Log in").wait_for()
        if away:
            server.start()
            other.network_returns()

        other.expect_state("Logged out")


@pytest.fixture
def token_page(browser: Browser, demo: Demo) -> Iterator[Callable[[str, Callable[[], str]], Page]]:
    """Return a function that opens a page without a session, which authenticates by the tokens it is given."""
    with browser.new_context() as context:
        context.set_default_timeout(MILLISECONDS)

        def open_page(url: str, token: Callable[[], str]) -> Page:
            page = context.new_page()
            page.expose_function("freshToken", token)
            page.goto(url + "login/")  # a page of the site's origin, which has no connection of its own
            page.evaluate(
                """async () => {
                    const { connect } = await import("/static/notifications/client.js");
                    window.connection = connect({ token: () => window.freshToken() });
                    connection.onUser(({ title }) => document.body.append(title));
                    connection.addEventListener("state", () => (document.title = connection.state));
                }"""
            )
            return page

        yield open_page


def test_token_is_renewed_on_reconnect(token_page: Callable, demo: Demo, server: OwnServer):
    """Each attempt asks for a token of its own, one more if that has expired; what was said in between arrives."""
    good, expired = tokens(demo)
    next_ones: list[str] = []
    given: list[str] = []

    def token() -> str:
        given.append(next_ones.pop(0) if next_ones else good)
        return given[-1]

    page = token_page(server.url, token)
    expect(page).to_have_title("open")

    server.kill()
    expect(page).to_have_title("waiting")
    publish(demo, title="Said in between")
    server.start()
    next_ones.append(expired)

    expect(page).to_have_title("open")
    expect(page.locator("body")).to_contain_text("Said in between")
    assert given[-2:] == [expired, good]


def test_expired_token_is_not_tried_for_ever(token_page: Callable, demo: Demo):
    """A page that gets nothing but expired tokens ends."""
    expired = tokens(demo)[1]

    page = token_page(demo.url, lambda: expired)

    expect(page).to_have_title("closed")


def test_raw_publish_makes_a_notice_appear(tab: Tab, context: BrowserContext, demo: Demo):
    """What any program publishes in Redis on user:1 is a notice in each of that user's tabs."""
    tabs = [tab, Tab(context, demo.url)]

    publish(demo, level="info", title="Hello from the shell", body="Nice to meet you", url="/somewhere")

    for each in tabs:
        expect(each.toast("Nice to meet you")).to_be_visible()
        expect(each.page.get_by_role("link", name="Hello from the shell")).to_have_attribute(
            "href", f"{demo.url}somewhere"
        )


def test_help_has_the_line_that_works(tab: Tab, demo: Demo):
    """The command on the page names the Redis of this very run."""
    tab.open("Send a notice from a shell")

    expect(tab.page.locator("#publish-command")).to_contain_text(f"-u {demo.redis_url} PUBLISH user:1 '{{")


def test_hostile_notices_are_only_text(tab: Tab, demo: Demo):
    """Markup in a notice is shown as it is written, and an address that is no web page is no link."""
    hostile = "<img src=x onerror='window.broken=1'><script>window.broken=1</script>"
    addresses = ["javascript:window.broken=1", "data:text/html,x", "  JaVaScRiPt:alert(1)", 7]

    for url in addresses:
        publish(demo, level="<b>", title=hostile, body=hostile, url=url)

    toasts = tab.toast("onerror")
    expect(toasts).to_have_count(len(addresses))
    for toast in toasts.all():
        expect(toast).to_contain_text(hostile)
    assert toasts.locator("a, img, script").count() == 0
    assert tab.page.evaluate("window.broken") is None


def test_rejected_file_says_why(tab: Tab, write: Callable):
    """A file that is not taken is named with the reason, in an alert."""
    with tab.page.expect_response("**/uploads/") as answer:
        tab.upload(write("nothing.txt", b""), write("something.txt", b"words"))

    assert answer.value.status == 201
    expect(tab.page.get_by_role("alert")).to_have_text("nothing.txt: The file is empty.")
    tab.expect_completed("something.txt")


def test_files_can_be_dropped_anywhere(tab: Tab):
    """Files that are dropped on the page, even beside the box, are uploaded, all of them."""
    files = tab.page.evaluate_handle(
        """() => {
            const transfer = new DataTransfer();
            for (const n of [1, 2, 3]) transfer.items.add(new File(["words"], `dropped-${n}.txt`));
            return transfer;
        }"""
    )

    tab.page.dispatch_event("h1", "dragover", {"dataTransfer": files})
    expect(tab.page.locator("#upload-form")).to_have_class("drop over")
    tab.page.dispatch_event("h1", "drop", {"dataTransfer": files})

    expect(tab.page.locator("#upload-form")).to_have_class("drop")
    tab.expect_completed("dropped-1.txt", "dropped-2.txt", "dropped-3.txt")


def test_files_can_be_chosen_by_keyboard(tab: Tab):
    """The tabulator reaches the file input, and the space bar opens the choice of files."""
    # Playwright tells the browser of it without waiting for the answer: a key that came first would open a real dialog.
    tab.page.on("filechooser", lambda _: None)
    way: list[str] = []
    while "files" not in way and len(way) < 5:
        tab.page.keyboard.press("Tab")
        way.append(tab.page.evaluate("document.activeElement.id || document.activeElement.outerHTML.slice(0, 80)"))
    assert way[-1] == "files", way

    with tab.page.expect_file_chooser() as chooser:
        tab.page.keyboard.press("Space")

    assert chooser.value.is_multiple()


def test_cleared_rows_go_in_both_tabs(tab: Tab, context: BrowserContext, demo: Demo, write: Callable):
    """What is cleared in one tab is gone in the other."""
    second = Tab(context, demo.url)
    tab.upload(write("gone.txt", b"words"))
    second.expect_completed("gone.txt")

    tab.page.get_by_role("button", name="Clear finished").click()

    for each in (tab, second):
        expect(each.row("gone.txt")).to_have_count(0)
        expect(each.page.get_by_text("Nothing here yet.")).to_be_visible()


def test_what_breaks_the_policy_is_reported(browser: Browser, login: StorageState, demo: Demo):
    """The other tests would see it, if a page of the demo broke its policy."""
    seen = demo.output.count(VIOLATION)
    with browser.new_context(storage_state=login) as context:
        tab = Tab(context, demo.url)
        tab.page.evaluate("document.body.append(Object.assign(document.createElement('img'), {src: 'data:,'}))")
        wait_until(lambda: demo.output.count(VIOLATION) > seen, "the report")
    demo.lines[:] = [line for line in demo.lines if VIOLATION not in line]  # ours, not the other tests'


SCHEMES = ["light", "dark"]
SIZES = {"wide": (1366, 768), "desktop": (1100, 900), "phone": (390, 844), "small": (320, 640)}
LONG = "minutes-of-the-meeting-of-the-harbour-authority-and-the-fishermen-2026-11-23-final-final-2.txt"


LAYOUT = """() => {
    const { clientWidth: room, scrollWidth: content } = document.documentElement;
    const edges = ["h1", ".logout", ".brand", "main"].map((css) => {
        const { left, right } = document.querySelector(css).getBoundingClientRect();
        return [css, { left, right }];
    });
    return { room, content, ...Object.fromEntries(edges) };
}"""
"""Where things are, at one moment: a row that grows may bring a scrollbar, and all of it moves."""


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_page_looks_right(
    context: BrowserContext, demo: Demo, write: Callable, long_file: Callable, scheme: str, size: str
):
    """Nothing sticks out, axe finds nothing, and pictures for the eye are in var/screenshots."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    tab = Tab(context, demo.url)
    tab.page.emulate_media(color_scheme=scheme, reduced_motion="reduce")  # axe looks at what is there at once
    width, height = SIZES[size]
    tab.page.set_viewport_size({"width": width, "height": height})

    def look(state: str) -> None:
        layout = tab.page.evaluate(LAYOUT)
        assert layout["content"] == layout["room"] <= width
        assert violations(tab.page) == []
        left, main = layout["h1"]["left"], layout["main"]
        assert layout[".brand"]["left"] == left
        assert main["right"] - layout[".logout"]["right"] == left - main["left"]
        tab.page.screenshot(  # last: a picture of the full page takes the scrollbar away for a moment
            path=SCREENSHOTS / f"{size}-{scheme}-{state}.png", full_page=state == "open", animations="disabled"
        )

    clear = tab.page.get_by_role("button", name="Clear finished")
    if clear.is_visible():
        clear.click()
    expect(tab.page.get_by_text("Nothing here yet.")).to_be_visible()
    tab.expect_state("Live")
    look("empty")
    files = [write("harbour-at-dusk.jpg", picture(1)), write("invoice.pdf", picture(2)), write(LONG, b"words")]
    tab.upload(*files, write("lost-scan.png", broken_png()), long_file("measurements.csv"))
    tab.expect_begun("measurements.csv")
    publish(demo, title="Hello from the shell", body="Published with redis-cli, shown in every tab of this user.")
    expect(tab.toast("Hello from the shell")).to_be_visible()
    look("working")
    expect(tab.page.locator("#underneath summary")).to_be_in_viewport()  # however many files there are below it
    cards = tab.page.locator(".looks details").evaluate_all(
        "(cards) => cards.map((card) => card.getBoundingClientRect())"
    )
    assert max(card["y"] for card in cards) - cards[0]["y"] <= cards[0]["height"] + 12  # nor do these push them apart
    tab.page.mouse.wheel(0, 9_000)
    expect(tab.page.locator("#connection")).to_be_in_viewport(ratio=1)
    tab.page.mouse.wheel(0, -9_000)
    tab.expect_completed("measurements.csv")
    publish(demo, level="error", title="The import failed", body="Line 7 has no date.", url="/")
    expect(tab.toast("The import failed")).to_be_visible()
    tab.open_underneath()
    tab.open("Send a notice from a shell")
    look("open")
    heading, box = tab.page.locator("h1").bounding_box(), tab.page.locator(".drop").bounding_box()
    assert box["y"] - heading["y"] < 60  # nor does what is open beside them push these apart
