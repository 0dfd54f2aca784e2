"""The demo's imports in a real Chromium, with a real Redis, Daphne, listener and worker behind them."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext, Locator, Page, expect

from tests.axe import violations
from tests.browser.test_browser import LAYOUT, SCHEMES, SIZES, browser, context, login, pytestmark, write
from tests.demo_browser import SCREENSHOTS
from tests.demo_site import Demo, running_demo, wait_until

__all__ = ["browser", "context", "login", "pytestmark", "write"]  # as there

HEAD = b"name,country,latitude,longitude\n"


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """A demo whose worker takes six seconds for the sample, as one that somebody looks at."""
    with running_demo(tmp_path_factory.mktemp("demo"), DEMO_PACE="0.15") as demo:
        yield demo


def open_page(context: BrowserContext, demo: Demo) -> Page:
    page = context.new_page()
    page.goto(f"{demo.url}imports/")
    return page


@pytest.fixture
def page(context: BrowserContext, demo: Demo) -> Page:
    """The page, without what the test before has left."""
    page = open_page(context, demo)
    if (clear := page.get_by_role("button", name="Clear finished")).is_visible():
        clear.click()
    expect(page.get_by_text("Nothing here yet.")).to_be_visible()
    return page


def bar(page: Page, name: str = "places.csv") -> Locator:
    return page.get_by_role("progressbar", name=name)


def element(page: Page, name: str = "places.csv") -> Locator:
    return page.locator(f'task-progress[label="{name}"]')


def import_sample(page: Page) -> None:
    page.get_by_role("button", name="Import the sample").click()


def import_file(page: Page, file: Path) -> None:
    page.get_by_label("Choose a CSV file").set_input_files(file)
    page.get_by_role("button", name="Import", exact=True).click()


def expect_begun(page: Page) -> None:
    expect(bar(page)).to_have_attribute("aria-valuenow", re.compile(r"^[1-9]\d?$"))


def expect_done(page: Page) -> None:
    expect(bar(page)).to_have_attribute("aria-valuenow", "100")
    expect(element(page)).to_contain_text("420")
    expect(element(page)).to_contain_text("2 wrong")


def test_sample_goes_through_in_both_tabs(page: Page, context: BrowserContext, demo: Demo):
    """The bar moves to the end in two tabs, after a reload as well, with a notice, and leads to the rows."""
    import_sample(page)
    expect_begun(page)
    second = open_page(context, demo)
    expect_begun(second)
    page.reload()

    for tab in (page, second):  # before anything else: it stays for ten seconds
        expect(tab.locator("notification-toasts").get_by_text("Import of places.csv")).to_be_visible()
    for tab in (page, second):
        expect_done(tab)
    element(page).get_by_role("link").click()
    expect(page.get_by_text("418 places of 420 rows.")).to_be_visible()
    expect(page.get_by_text("Line 99: country: This field is required.")).to_be_visible()

    page.go_back()
    expect_done(page)


def test_owner_who_was_away_finds_the_end_behind_the_bell(page: Page, context: BrowserContext, demo: Demo):
    """An import that ends while no page is open is a notice behind the bell, whose link leads there and marks it."""
    ended = demo.output.count("succeeded: import")
    import_sample(page)
    expect_begun(page)
    before = unread(page)
    page.goto("about:blank")
    wait_until(lambda: demo.output.count("succeeded: import") > ended, "the end of the import")

    page = open_page(context, demo)
    wait_until(lambda: page.wait_for_timeout(50) or unread(page) == before + 1, "the number of now")
    page.locator("notification-bell").get_by_role("button", name="Notices").click()
    page.get_by_role("dialog", name="Notices").get_by_role("link", name="Import of places.csv").first.click()

    expect(page.get_by_text("418 places of 420 rows.")).to_be_visible()
    wait_until(lambda: page.wait_for_timeout(50) or unread(page) == before, "the number without it")


def unread(page: Page) -> int:
    return int(page.locator("notification-bell [part=number]").text_content() or 0)


def test_killed_listener_loses_nothing(page: Page, demo: Demo):
    """The bar goes on to its end although the listener ends as by kill -9 while it moves."""
    listeners = demo.output.count("listening on")
    import_sample(page)
    expect_begun(page)

    token = page.locator("[name=csrfmiddlewaretoken]").first.input_value()
    answer = page.request.post(f"{demo.url}listener/kill/", headers={"X-CSRFToken": token, "Referer": demo.url})

    assert answer.status == 200
    expect_done(page)
    wait_until(lambda: demo.output.count("listening on") > listeners, "another listener")


def test_button_cancels(page: Page):
    """The button of the bar ends the import, and the page says so, also when it is opened again."""
    import_sample(page)
    expect_begun(page)

    element(page).get_by_role("button", name="Cancel").click()

    expect(element(page)).to_contain_text("Cancelled")
    page.reload()
    expect(element(page)).to_contain_text("Cancelled")


def test_file_that_is_no_table_says_why(page: Page, write: Callable[[str, bytes], Path]):
    """A broken file is a bar that has failed, with words for whoever sent it."""
    import_file(page, write("broken.csv", HEAD + b'"Oslo,Norway\n'))

    expect(element(page, "broken.csv")).to_contain_text("is not CSV: unexpected end of data.")
    page.reload()
    expect(element(page, "broken.csv")).to_contain_text("is not CSV: unexpected end of data.")


@pytest.mark.parametrize("size", ["desktop", "small"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_pages_look_right(page: Page, demo: Demo, write: Callable[[str, bytes], Path], scheme: str, size: str):
    """Nothing sticks out, axe finds nothing, and pictures for the eye are in var/screenshots."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")  # axe looks at what is there at once
    width, height = SIZES[size]
    page.set_viewport_size({"width": width, "height": height})

    def look(state: str) -> None:
        page.screenshot(path=SCREENSHOTS / f"imports-{size}-{scheme}-{state}.png", animations="disabled")
        layout = page.evaluate(LAYOUT)
        assert layout["content"] == layout["room"] <= width
        assert violations(page) == []

    look("empty")
    long = "stations-of-the-harbour-authority-and-the-fishermen-2026-11-23-final-final-2.csv"
    import_file(page, write("first-draft.csv", b"name;country\nOslo;Norway\n"))
    expect(element(page, "first-draft.csv")).to_contain_text("lacks")
    import_file(page, write("capitals.csv", HEAD + b"Oslo,Norway,59.9,10.7\n" * 20))
    expect(bar(page, "capitals.csv")).to_have_attribute("aria-valuenow", "100")
    import_sample(page)
    import_file(page, write(long, HEAD + b"Oslo,Norway,59.9,10.7\n"))
    expect(bar(page)).to_have_attribute("aria-valuenow", re.compile(r"^[3-9]\d$"))
    look("working")
    expect_done(page)
    expect(bar(page, long)).to_have_attribute("aria-valuenow", "100")
    look("done")
    element(page).get_by_role("link").click()
    expect(page.get_by_text("418 places of 420 rows.")).to_be_visible()
    look("rows")
