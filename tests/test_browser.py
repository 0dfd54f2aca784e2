"""The demo page in a real Chromium, with a real Redis, Daphne, listener and worker behind it."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from playwright.sync_api import Browser, BrowserContext, Page, StorageState, expect, sync_playwright

from tests.demo_site import TIMEOUT, Demo, broken_png, png, running_demo

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
MILLISECONDS = TIMEOUT * 1000

pytestmark = pytest.mark.skipif(
    CHROMIUM is None and "CI" not in os.environ, reason="no Chromium on PATH: tests/install_chromium says why"
)
expect.set_options(timeout=MILLISECONDS)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    with running_demo(tmp_path_factory.mktemp("demo"), DEMO_PACE="0.02") as demo:
        yield demo


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    assert CHROMIUM, "CI is set and there is no Chromium: tests/install_chromium says why"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def login(browser: Browser, demo: Demo) -> StorageState:
    """Log in by the form, once, and return the cookies."""
    with browser.new_context() as context:
        page = context.new_page()
        page.set_default_timeout(MILLISECONDS)
        page.goto(demo.url)
        page.get_by_label("User name").fill("demo")
        page.get_by_label("Password").fill("demo")
        page.get_by_role("button", name="Log in").click()
        page.get_by_role("heading", name="Uploads").wait_for()
        return context.storage_state()


@pytest.fixture
def context(browser: Browser, login: StorageState) -> Iterator[BrowserContext]:
    """A logged-in browser; anything its pages complain of fails the test."""
    complaints: list[str] = []
    with browser.new_context(storage_state=login) as context:
        context.set_default_timeout(MILLISECONDS)
        context.on("console", lambda line: line.type in ("error", "warning") and complaints.append(line.text))
        context.on("weberror", lambda error: complaints.append(str(error.error)))
        yield context
    assert complaints == []


def live_page(context: BrowserContext, demo: Demo) -> Page:
    page = context.new_page()
    page.goto(demo.url)
    expect(page.locator("#connection")).to_have_text("Live")
    return page


def publish(demo: Demo, **message: object) -> None:
    """Publish a notice as any foreign program does."""
    with redis.Redis.from_url(demo.redis_url) as client:
        client.publish("user:1", json.dumps({"action": "notice", **message}))


def write(directory: Path, **files: bytes) -> list[Path]:
    paths = []
    for name, content in files.items():
        path = directory / name.replace("_", ".")
        path.write_bytes(content)
        paths.append(path)
    return paths


def test_bars_move_to_the_end_in_both_tabs(context: BrowserContext, demo: Demo, tmp_path: Path):
    """Uploaded files are analysed before one's eyes, in a second tab as well, and a notice says that it is done."""
    first, second = live_page(context, demo), live_page(context, demo)

    files = write(tmp_path, picture_png=png(), words_txt=b"some words\n" * 9000, broken_png=broken_png())
    first.locator("#files").set_input_files(files)

    for page in (first, second):
        for name in ("picture.png", "words.txt"):
            row = page.locator(".upload", has_text=name)
            expect(row).to_have_attribute("data-status", "completed")
            expect(row.get_by_role("progressbar", name=f"Analysis of {name}")).to_have_js_property("value", 100)
            expect(row).to_contain_text("SHA-256")
        expect(page.locator(".upload", has_text="picture.png")).to_contain_text("320 × 200")
        expect(page.locator(".upload", has_text="picture.png").locator("img")).to_have_js_property("naturalWidth", 160)
        expect(page.locator(".upload", has_text="broken.png")).to_contain_text("The PNG image is damaged.")
        page.locator(".notice", has_text="1 of 3 files could not be analysed.").wait_for()
    late = live_page(context, demo)
    expect(late.locator(".upload", has_text="words.txt")).to_have_attribute("data-status", "completed")


def test_percentage_never_goes_back(context: BrowserContext, demo: Demo, tmp_path: Path):
    """Whatever arrives in whatever order, a bar only moves forward."""
    page = live_page(context, demo)
    page.evaluate(
        """() => {
            window.seen = [];
            const look = () => {
                const bar = document.querySelector("#uploads .upload progress");
                if (bar) window.seen.push(bar.value);
                requestAnimationFrame(look);
            };
            look();
        }"""
    )

    page.locator("#files").set_input_files(write(tmp_path, forward_txt=b"x" * 300_000))

    expect(page.locator(".upload", has_text="forward.txt")).to_have_attribute("data-status", "completed")
    seen = page.evaluate("window.seen")
    start = seen.index(min(seen))  # rows of other tests may have stood at the top before
    assert seen[start:] == sorted(seen[start:])
    assert len(set(seen[start:])) > 3


def test_page_opened_in_the_middle_shows_the_true_state(context: BrowserContext, demo: Demo, tmp_path: Path):
    """A tab that opens while a file is read shows where it is, and then follows it to the end."""
    page = live_page(context, demo)
    page.locator("#files").set_input_files(write(tmp_path, middle_txt=b"x" * 400_000))
    expect(page.locator(".upload", has_text="middle.txt")).to_have_attribute("data-stage", "extracting_frames")

    late = live_page(context, demo)

    expect(late.locator(".upload", has_text="middle.txt")).to_have_attribute("data-status", "completed")


def test_raw_publish_makes_a_notice_appear(context: BrowserContext, demo: Demo):
    """What any program publishes in Redis on user:1 is a notice in each of that user's tabs."""
    pages = [live_page(context, demo), live_page(context, demo)]

    publish(demo, level="info", title="Hello from the shell", body="Nice to meet you", url="/somewhere")

    for page in pages:
        expect(page.get_by_role("status", name="Notices")).to_contain_text("Nice to meet you")
        expect(page.get_by_role("link", name="Hello from the shell")).to_have_attribute("href", f"{demo.url}somewhere")


def test_help_has_the_line_that_works(context: BrowserContext, demo: Demo):
    """The command on the page names the Redis of this very run."""
    page = live_page(context, demo)

    page.get_by_text("Make a notice appear from a shell").click()

    expect(page.locator("#publish-command")).to_contain_text(f"-u {demo.redis_url} PUBLISH user:1 '{{")


@pytest.mark.parametrize("url", ["javascript:window.broken=1", "data:text/html,x", "  JaVaScRiPt:alert(1)", 7])
def test_hostile_notice_is_only_text(context: BrowserContext, demo: Demo, url: object):
    """Markup in a notice is shown as it is written, and an address that is no web page is no link."""
    page = live_page(context, demo)
    hostile = "<img src=x onerror='window.broken=1'><script>window.broken=1</script>"

    publish(demo, level="<b>", title=hostile, body=hostile, url=url)

    notice = page.locator(".notice")
    expect(notice.locator("strong")).to_have_text(hostile)
    expect(notice.locator("p")).to_have_text(hostile)
    assert notice.locator("a, img, script").count() == 0
    assert page.evaluate("window.broken") is None


def test_rejected_file_says_why(context: BrowserContext, demo: Demo, tmp_path: Path):
    """A file that is not taken is named with the reason, in an alert."""
    page = live_page(context, demo)

    with page.expect_response("**/uploads/") as answer:
        page.locator("#files").set_input_files(write(tmp_path, nothing_txt=b"", something_txt=b"words"))

    assert answer.value.status == 201
    expect(page.get_by_role("alert")).to_have_text("nothing.txt: The file is empty.")
    expect(page.locator(".upload", has_text="something.txt")).to_have_attribute("data-status", "completed")


def test_files_can_be_dropped_anywhere(context: BrowserContext, demo: Demo):
    """Files that are dropped on the page, even beside the box, are uploaded."""
    page = live_page(context, demo)
    files = page.evaluate_handle(
        """() => {
            const transfer = new DataTransfer();
            transfer.items.add(new File(["words"], "dropped.txt", { type: "text/plain" }));
            return transfer;
        }"""
    )

    page.dispatch_event("h1", "dragover", {"dataTransfer": files})
    expect(page.locator("#upload-form")).to_have_class("drop over")
    page.dispatch_event("h1", "drop", {"dataTransfer": files})

    expect(page.locator("#upload-form")).to_have_class("drop")
    expect(page.locator(".upload", has_text="dropped.txt")).to_have_attribute("data-status", "completed")


def test_page_connects_again(context: BrowserContext, demo: Demo):
    """A tab that loses its connection says so and comes back by itself."""
    page = context.new_page()
    sockets = []
    page.route_web_socket("**/ws/notifications/", lambda route: sockets.append((route, route.connect_to_server())))
    page.goto(demo.url)
    expect(page.locator("#connection")).to_have_text("Live")
    page.evaluate(
        """() => {
            window.states = [];
            const indicator = document.getElementById("connection");
            new MutationObserver(() => window.states.push(indicator.dataset.state))
                .observe(indicator, { attributes: true });
        }"""
    )

    sockets[0][0].close(code=1012, reason="restart")

    page.wait_for_timeout(0)
    expect(page.locator("#connection")).to_have_text("Live")
    publish(demo, title="Still here")
    expect(page.locator(".notice")).to_contain_text("Still here")
    assert page.evaluate("window.states") == ["waiting", "connecting", "live"]


def test_page_fits_a_telephone(context: BrowserContext, demo: Demo, tmp_path: Path):
    """Nothing sticks out at a width of 360 pixels."""
    page = live_page(context, demo)
    page.set_viewport_size({"width": 360, "height": 740})
    page.locator("#files").set_input_files(write(tmp_path, **{"a_very_long_name_" * 8 + "txt": b"words"}))
    expect(page.locator(".upload").first).to_have_attribute("data-status", "completed")

    page.get_by_text("Make a notice appear from a shell").click()

    assert page.evaluate("document.documentElement.scrollWidth") == 360
