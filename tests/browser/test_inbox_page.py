"""The page of kept notices in a real Chromium without JavaScript, under a policy that allows no inline style."""

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from tests.axe import violations
from tests.demo_browser import CHROMIUM, MILLISECONDS, SCREENSHOTS
from tests.processes import Site, User, WebServer
from tests.testsite import admin_site

pytestmark = pytest.mark.skipif(
    CHROMIUM is None and "CI" not in os.environ, reason="no Chromium on PATH: tests/install_browsers says why"
)
expect.set_options(timeout=MILLISECONDS)
INBOX = "/notifications/inbox/"
LONG = "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft" * 2
HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def pages(
    redis_program: None, migrated_database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Site, WebServer]]:
    directory = tmp_path_factory.mktemp("inbox")
    middleware = [*admin_site.SETTINGS["MIDDLEWARE"], "django.middleware.locale.LocaleMiddleware"]
    settings = {**admin_site.SETTINGS, "MIDDLEWARE": middleware, "STATIC_ROOT": str(directory / "static")}
    with Site(directory, migrated_database, settings=settings) as site:
        assert site.run("collectstatic", "--noinput").returncode == 0
        yield site, site.start_server("daphne")


@pytest.fixture
def user(pages: tuple[Site, WebServer]) -> User:
    return pages[0].add_user()


@pytest.fixture
def open_page(browser: Browser, pages: tuple[Site, WebServer], user: User) -> Iterator[Callable[..., Page]]:
    """Open the user's inbox in a browser of its own; whatever a page complains of fails the test."""
    complaints: list[str] = []
    contexts: list[BrowserContext] = []
    address = f"http://{pages[1].address}"
    name, _, value = user.cookie.partition("=")

    def open_page(**options: object) -> Page:
        context = browser.new_context(base_url=address, **{"java_script_enabled": False, **options})
        contexts.append(context)
        context.set_default_timeout(MILLISECONDS)
        context.add_cookies([{"name": name, "value": value, "url": address}])
        context.on(
            "console",
            lambda line: line.type in ("error", "warning") and complaints.append(f"{line.text} {line.location['url']}"),
        )
        page = context.new_page()
        page.goto(INBOX)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert [line for line in complaints if not line.endswith("/favicon.ico")] == []


@pytest.fixture
def keep(pages: tuple[Site, WebServer], user: User) -> Callable[..., None]:
    """Write a row into the site's database, as ``notify`` does."""

    def keep(title: str, **fields: object) -> None:
        now = datetime.now(UTC).replace(tzinfo=None).isoformat(" ")
        row = {"title": title, "level": "info", "body": "", "url": "", "tenant": "", "group": "", "created_at": now}
        row |= {"user_id": user.pk, **fields}
        names = ", ".join(f'"{name}"' for name in row)
        with closing(sqlite3.connect(pages[0].database, timeout=20)) as database, database:
            database.execute(
                f"INSERT INTO notifications_inbox_keptnotice ({names}) VALUES ({', '.join('?' * len(row))})",
                list(row.values()),
            )

    return keep


@pytest.fixture
def many(keep: Callable[..., None]) -> None:
    """One of everything that the page can show."""
    keep("An old one, read", read_at="2026-11-01 12:00:00")
    for n in range(3):
        keep(f"Import {n} finished", group="imports", level="success", body=f"{n} rows", url=f"{INBOX}?archived=1")
    keep("Disk almost full", level="warning", body="Delete something.\n90 % are used.")
    keep("Export failed", level="error", url="https://example.com/a")
    keep(LONG, body=LONG)
    keep(HOSTILE, body="انتهى الاستيراد", url='/"><b>')


def test_notices_are_read_archived_and_opened_without_javascript(open_page, keep):
    """Each is one press of a button, and the page is where it was."""
    keep("First", url=f"{INBOX}?archived=1")
    keep("Second")
    page = open_page()
    expect(page.get_by_text("2 unread")).to_be_visible()

    page.get_by_role("article", name="Second").get_by_role("button", name="Mark as read").click()
    expect(page.get_by_text("1 unread")).to_be_visible()
    page.get_by_role("article", name="Second").get_by_role("button", name="Archive").click()
    expect(page.get_by_role("article")).to_have_count(1)
    page.get_by_role("button", name="First").click()
    page.wait_for_url("**/?archived=1")
    expect(page.get_by_role("article", name="Second")).to_be_visible()
    page.get_by_role("link", name="Notices").click()
    expect(page.get_by_role("link", name="First")).to_be_visible()
    expect(page.get_by_text("unread", exact=True)).to_have_count(0)


def test_link_to_another_host_is_opened_under_a_policy_for_forms(open_page, keep, pages):
    """A browser follows no redirect of a form to where ``form-action`` forbids; the notice leads there anyway."""
    elsewhere = f"http://localhost:{pages[1].port}/"
    keep("Elsewhere", url=elsewhere)
    page = open_page()

    page.get_by_role("button", name="Elsewhere").click()

    page.wait_for_url(elsewhere)
    page.goto(INBOX)
    expect(page.get_by_role("link", name="Elsewhere")).to_have_attribute("href", elsewhere)


def test_all_are_marked_as_read(open_page, keep):
    """One button for all that the page knows of."""
    for n in range(21):
        keep(f"Notice {n}")
    page = open_page()

    page.get_by_role("link", name="Older").click()
    expect(page.get_by_role("article")).to_have_count(1)
    page.get_by_role("link", name="Newest").click()
    page.get_by_role("button", name="Mark all as read").click()

    expect(page.get_by_role("button", name="Mark all as read")).to_have_count(0)
    expect(page.get_by_role("button", name="Mark as unread")).to_have_count(20)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_is_accessible(open_page, many, scheme):
    """axe finds nothing, in both schemes of colours, with all groups open, and what is hostile is text."""
    page = open_page(java_script_enabled=True, color_scheme=scheme, bypass_csp=True)
    page.get_by_text("and 2 more").click()

    assert violations(page) == []
    expect(page.get_by_text(HOSTILE)).to_be_visible()
    page.screenshot(path=SCREENSHOTS / f"inbox-page-{scheme}.png", full_page=True)


@pytest.mark.parametrize("language", ["en", "ar"])
def test_page_fits_a_narrow_screen(open_page, many, language):
    """With 320 pixels nothing is cut off, from left to right and from right to left."""
    page = open_page(java_script_enabled=True, bypass_csp=True, viewport={"width": 320, "height": 600}, locale=language)
    page.locator("summary").click()

    assert page.evaluate("document.documentElement.scrollWidth") <= 320
    assert page.evaluate("document.documentElement.dir") == ("rtl" if language == "ar" else "ltr")
    bar = page.locator("article.error").evaluate("element => getComputedStyle(element).borderLeftWidth")
    assert (bar == "0px") == (language == "ar")
    page.screenshot(path=SCREENSHOTS / f"inbox-page-narrow-{language}.png", full_page=True)


def test_page_is_printed_without_its_buttons(open_page, keep):
    """On paper there are the notices, those with a link too, and nothing to press."""
    keep("With a link", url="/x/")
    keep("Without")
    page = open_page()
    page.emulate_media(media="print")

    expect(page.get_by_text("With a link")).to_be_visible()
    expect(page.get_by_text("Without")).to_be_visible()
    assert page.get_by_role("button").all_inner_texts() == ["With a link"]


def test_page_is_used_with_the_keyboard(open_page, keep):
    """Each control has a visible focus, in the order of the page."""
    keep("First", url="/x/")
    page = open_page(java_script_enabled=True, bypass_csp=True)
    reached = []
    for _ in range(6):
        page.keyboard.press("Tab")
        focused = page.locator(":focus")
        reached.append(focused.inner_text())
        assert focused.evaluate("e => getComputedStyle(e).outlineStyle") != "none"

    assert reached == ["Notices", "Archive", "Mark all as read", "First", "Mark as read", "Archive"]
