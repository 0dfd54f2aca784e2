"""Visitors who have not logged in, in a real Chromium: notices for everybody, and a login without a new page."""

from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Route, expect

from notifications import publish_to_all
from notifications.messages import Notice
from tests.browser.test_elements import pytestmark
from tests.browser.test_swapped_pages import LIBRARIES, Visitor
from tests.conftest import point_to
from tests.demo_browser import MILLISECONDS
from tests.processes import LAYERS, Site, WebServer

__all__ = ["pytestmark"]  # as there

KINDS = {"site": {}}
TITLES = '[part~="title"]'


@pytest.fixture(scope="module")
def pages(redis_program: None, migrated_database: str, tmp_path_factory) -> Iterator[tuple[Site, WebServer]]:
    """A site that admits guests, with collected static files and sessions that a logout ends."""
    directory = tmp_path_factory.mktemp("guests")
    settings = {
        "STATIC_ROOT": str(directory / "static"),
        "SESSION_ENGINE": "django.contrib.sessions.backends.db",
        "CHANNEL_LAYER_BACKEND": LAYERS["ours"],
        "NOTIFICATIONS": {"TOPICS": KINDS, "GUESTS": True},
    }
    with Site(directory, migrated_database, settings=settings) as site:
        assert site.run("collectstatic", "--noinput").returncode == 0
        server = site.start_server("uvicorn")
        site.start_listener()
        yield site, server


@pytest.fixture
def visitor(browser: Browser, pages: tuple[Site, WebServer], settings: Any) -> Iterator[Visitor]:
    site, server = pages
    point_to(settings, site.redis.url)
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "TOPICS": KINDS}
    with browser.new_context() as context:
        context.set_default_timeout(MILLISECONDS)
        yield Visitor(site, server, context, site.add_user(), site.add_user())


def shows(page: Page, *titles: str) -> None:
    expect(page.locator(TITLES)).to_have_text(list(titles))


def test_a_notice_for_everybody_falls_into_no_gap(visitor: Visitor) -> None:
    """A guest's page shows what comes while it loads and while it is open, and the next page goes on from there."""

    def hold(route: Route) -> None:
        publish_to_all(Notice(title="while it loads"))
        route.continue_()

    visitor.context.route("**/start*.js", hold, times=1)
    page = visitor.open("router")
    shows(page, "while it loads")
    publish_to_all(Notice(title="later"))
    shows(page, "while it loads", "later")

    page.goto("about:blank")
    publish_to_all(Notice(title="meanwhile"))
    page.go_back()
    expect(page.locator(TITLES).last).to_have_text("meanwhile")
    assert page.locator(TITLES).all_inner_texts().count("later") <= 1


@pytest.mark.parametrize(
    ("library", "where"), [*[(each, where) for each in LIBRARIES for where in ("head", "body")], ("router", "body")]
)
def test_a_visitor_who_logs_in_is_a_guest_no_longer(visitor: Visitor, library: str, where: str) -> None:
    """Without a reload: what is the user's arrives, and after the logout only what is everybody's."""
    page = visitor.open(library, where)
    visitor.wait_until(page, "open")
    visitor.notice(visitor.ada, "not for guests")
    publish_to_all(Notice(title="first"))
    shows(page, "first")

    visitor.press(page, "as ada", visitor.ada)
    visitor.wait_until(page, "open")
    visitor.notice(visitor.ada, "for ada")
    expect(page.locator(TITLES).last).to_have_text("for ada")
    publish_to_all(Notice(title="second"))
    expect(page.locator(TITLES).last).to_have_text("second")

    visitor.press(page, "out", None)
    visitor.wait_until(page, "open")
    visitor.notice(visitor.ada, "ada is away")
    publish_to_all(Notice(title="third"))
    expect(page.locator(TITLES).last).to_have_text("third")
    assert not {"ada is away", "for ada", "not for guests"} & set(page.locator(TITLES).all_inner_texts())
