"""Bars above a change list of a real admin site, in a real Chromium, under a policy that forbids inline scripts."""

import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing

import pytest
from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect

from tests.axe import violations
from tests.browser.test_elements import UNANSWERED
from tests.demo_browser import CHROMIUM, MILLISECONDS, SCREENSHOTS
from tests.processes import Site, WebServer
from tests.testsite import admin_site

pytestmark = pytest.mark.skipif(
    CHROMIUM is None and "CI" not in os.environ, reason="no Chromium on PATH: tests/install_browsers says why"
)
expect.set_options(timeout=MILLISECONDS)


@pytest.fixture(scope="module")
def pages(
    redis_program: None, migrated_database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Site, WebServer]]:
    directory = tmp_path_factory.mktemp("admin")
    settings = {**admin_site.SETTINGS, "STATIC_ROOT": str(directory / "static")}
    with Site(directory, migrated_database, settings=settings) as site:
        assert site.run("collectstatic", "--noinput").returncode == 0
        server = site.start_server("daphne")
        site.start_listener()
        yield site, server


@pytest.fixture
def context(browser: Browser, pages: tuple[Site, WebServer]) -> Iterator[BrowserContext]:
    """A browser of a superuser; whatever its pages complain of fails the test."""
    site, server = pages
    user = site.add_user()
    change(site, "UPDATE auth_user SET is_staff = 1, is_superuser = 1 WHERE id = ?", user.pk)
    complaints: list[str] = []
    name, _, value = user.cookie.partition("=")
    with browser.new_context(base_url=f"http://{server.address}") as context:
        context.set_default_timeout(MILLISECONDS)
        context.add_cookies([{"name": name, "value": value, "url": f"http://{server.address}"}])
        context.on(
            "console",
            lambda line: line.type in ("error", "warning") and complaints.append(f"{line.text} {line.location['url']}"),
        )
        context.on("weberror", lambda error: complaints.append(str(error.error)))
        yield context
    assert [line for line in complaints if not line.endswith("/favicon.ico") and UNANSWERED not in line] == []


def change(site: Site, statement: str, *values: object) -> None:
    with closing(sqlite3.connect(site.database, timeout=20)) as database, database:
        database.execute(statement, values)


def run_action(page: Page, site: Site, group: int, name: str) -> None:
    """Make a group and start the job of it, as somebody does who works with the admin."""
    change(site, "INSERT INTO auth_group (id, name) VALUES (?, ?)", group, name)
    page.goto("/admin/auth/group/")
    page.locator(f"[name=_selected_action][value='{group}']").check()
    page.locator("select[name=action]").select_option("rebuild")
    page.get_by_role("button", name="Run").or_(page.get_by_role("button", name="Go")).click()


def tell(site: Site, group: int, **job: object) -> None:
    """Publish the progress of the job, as any program does."""
    payload = {"id": str(group), "state": "running", "total": 50, "unit": "members", **job}
    with site.client() as client:
        client.publish(f"job:{group}", json.dumps({"action": "progress", "payload": payload}))


def bar_of(page: Page, name: str) -> Locator:
    return page.get_by_role("progressbar", name=f"Rebuilding {name}")


def test_bar_moves_above_the_change_list(context: BrowserContext, pages: tuple[Site, WebServer]):
    """The bar of an action is there at once and moves, in another tab and after a reload, until it is closed."""
    site, _ = pages
    page, other = context.new_page(), context.new_page()
    run_action(page, site, 71, "Ushers")
    expect(bar_of(page, "Ushers")).to_be_visible()
    other.goto("/admin/auth/group/")

    tell(site, 71, percent=40, done=20, stage="Counting")
    for tab in (page, other):
        expect(bar_of(tab, "Ushers")).to_have_attribute("aria-valuenow", "40")
        expect(tab.locator("task-progress")).to_contain_text("Counting")
    page.reload()
    expect(bar_of(page, "Ushers")).to_have_attribute("aria-valuenow", "40")

    tell(site, 71, state="succeeded", percent=100, done=50)
    for tab in (page, other):
        expect(bar_of(tab, "Ushers")).to_have_attribute("aria-valuenow", "100")
    page.get_by_role("button", name="Close: Rebuilding Ushers").click()
    expect(page.locator("task-progress")).to_have_count(0)
    other.reload()
    expect(other.locator("task-progress")).to_have_count(0)


def test_button_of_the_bar_cancels(context: BrowserContext, pages: tuple[Site, WebServer]):
    """The job is asked to end, with the grant of the page."""
    site, _ = pages
    page = context.new_page()
    run_action(page, site, 72, "Tellers")
    tell(site, 72, percent=10, done=5)

    with page.expect_response("**/notifications/cancel/") as answer:
        page.get_by_role("button", name="Cancel").click()

    assert answer.value.status == 204


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1200, 320])
def test_change_list_looks_right(context: BrowserContext, pages: tuple[Site, WebServer], scheme: str, width: int):
    """The bars fit into the admin, in its colours, and axe finds nothing in them."""
    site, _ = pages
    page = context.new_page()
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 700})
    group = {"light": 80, "dark": 90}[scheme] + width // 1000
    run_action(page, site, group, f"Ushers {scheme} {width}")
    tell(site, group, percent=40, done=20, stage="Counting")
    expect(page.locator("task-progress")).to_contain_text("Counting")

    box = page.locator(".notifications-progress").bounding_box()
    page.screenshot(path=SCREENSHOTS / f"admin-{scheme}-{width}.png")

    tools = page.locator(".object-tools").bounding_box()
    assert tools["y"] >= box["y"] + box["height"]
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= width
    assert [found for found in violations(page) if "progress" in found] == []
    tell(site, group, state="succeeded", percent=100, done=50, url="/admin/")
    expect(page.get_by_role("link", name=f"Open: Rebuilding Ushers {scheme} {width}")).to_be_visible()
    assert [found for found in violations(page) if "progress" in found] == []
