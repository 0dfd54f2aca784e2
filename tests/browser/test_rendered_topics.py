"""Topics in a real Chromium: from where a page was rendered, states of any name, and what the site joins."""

import json
import re
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from playwright.sync_api import Page, Route, expect

from notifications import publish
from tests.browser.test_elements import TOASTS, Tab, pytestmark, shown, tab
from tests.conftest import point_to
from tests.processes import Site, WebServer

__all__ = ["pytestmark", "tab"]  # as there

KINDS = {
    "closed": {},
    "lamp": {"PUBLIC": True, "STATE": True},
    "upload": {"PUBLIC": True, "STATE": False},
    "team": {"JOIN": "tests.testsite.permissions.teams_of"},
}
SCRIPT = """<script type="module" nonce="{{ request.csp_nonce }}">
  const connection = await notifications;
  const order = document.querySelector("#order");
  const show = ({ n }) => order.append(`, ${n}`);
  %s
</script>"""
ORDER = """<p id="order" {% topic "closed" request.GET.order %}>state of now</p>""" + SCRIPT % (
    "const { topic, since, grant } = order.dataset; connection.subscribe(topic, show, { since, grant });"
)
STATES = """<p id="order">now</p>""" + SCRIPT % (
    'for (const kind of ["lamp", "upload"]) connection.subscribe(`${kind}:7`, show);'
    'window.late = () => { for (const kind of ["lamp", "upload"]) connection.subscribe(`${kind}:7`, show); };'
)
TEAM = """<p id="order">team</p>""" + SCRIPT % (
    'connection.on("note", show); connection.addEventListener("frame", ({ detail }) => {'
    '  if (/"joined":true/.test(detail.text)) order.append("+");'
    "});"
)

REWIND = """(topic) => {
    const name = "notifications /ws/notifications/";
    const memory = JSON.parse(sessionStorage.getItem(name));
    memory.left[topic] = memory.left[topic].replace(/-.*/, "-0");
    sessionStorage.setItem(name, JSON.stringify(memory));
}"""
"""Have the tab forget what it has received of a topic, so that the server sends it once more."""


@pytest.fixture(scope="module")
def pages(redis_program: None, migrated_database: str, tmp_path_factory) -> Iterator[tuple[Site, WebServer]]:
    """A site with these kinds, collected static files, a web server and a listener."""
    directory = tmp_path_factory.mktemp("topics")
    settings = {"STATIC_ROOT": str(directory / "static"), "NOTIFICATIONS": {"TOPICS": KINDS}}
    with Site(directory, migrated_database, settings=settings) as site:
        assert site.run("collectstatic", "--noinput").returncode == 0
        server = site.start_server("daphne")
        site.start_listener()
        yield site, server


def shows(page: Page, text: str) -> None:
    expect(page.locator("#order")).to_have_text(text)


def test_nothing_falls_between_rendering_and_subscribing(tab: Tab, settings: SimpleNamespace) -> None:
    """What is published while the page loads its scripts is shown, of a kind that opens by the grant alone."""
    point_to(settings, tab.site.redis.url)
    topic = f"closed:{tab.user.username}-'\"&<7"
    publish(topic, {"n": 1})

    def hold(route: Route) -> None:
        tab.publish(topic, n=2)
        tab.publish(topic, n=3)
        route.continue_()

    page = tab.open(ORDER, order=topic.partition(":")[2], before=lambda page: page.route("**/start*.js", hold))
    shows(page, "state of now, 2, 3")
    tab.publish(topic, n=4)

    shows(page, "state of now, 2, 3, 4")
    assert json.loads(page.evaluate("JSON.stringify(document.querySelector('#order').dataset)"))["topic"] == topic


def test_a_state_is_known_by_what_the_server_says(tab: Tab, settings: SimpleNamespace) -> None:
    """A page, a late handler and the next page begin with its latest message, whatever its kind is called."""
    point_to(settings, tab.site.redis.url)
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "TOPICS": KINDS}
    for n in (1, 2):
        publish("lamp:7", {"n": n})
        publish("upload:7", {"n": n + 10})
    page = tab.open(STATES)
    shows(page, "now, 2")
    page.evaluate("late()")
    shows(page, "now, 2, 2")

    tab.open("elsewhere", tag="", live=False, page=page)
    tab.publish("lamp:7", n=3)
    tab.publish("upload:7", n=13)
    tab.open(STATES, page=page)
    expect(page.locator("#order")).to_contain_text(", 13")
    expect(page.locator("#order")).to_contain_text(", 3")


def test_a_team_is_heard_from_page_to_page(tab: Tab) -> None:
    """What the site has joined is heard without a subscription, and nothing is lost between two pages."""
    team = f"team:{tab.user.username}"
    page = tab.open(TEAM)
    shows(page, "team++")
    tab.publish(team, action="note", n=1)
    shows(page, "team++, 1")

    tab.open("elsewhere", tag="", live=False, page=page)
    tab.publish(team, action="note", n=2)
    tab.open(TEAM, page=page)
    expect(page.locator("#order")).to_contain_text(", 2")
    expect(page.locator("#order")).to_contain_text(re.compile(r"\+.*\+"))  # perhaps the other team after the message
    tab.publish(team, action="note", n=3)
    expect(page.locator("#order")).to_contain_text(re.compile(r", 2\+?, 3$"))
    assert ", 1" not in page.locator("#order").inner_text()


def test_notices_of_a_team_are_shown_once(tab: Tab) -> None:
    """A notice on a topic that the site has joined is shown as one of the user's own, on one page of the tab."""
    team = f"team:{tab.user.username}"
    page = tab.open(TEAM + TOASTS)
    shows(page, "team++")
    tab.publish(team, action="notice", title="For the team")
    expect(shown(page, "title")).to_have_text(["For the team"])  # among two topics there is no order
    tab.notice(title="For me")
    expect(shown(page, "title")).to_have_text(["For the team", "For me"])
    shown(page, "close").first.click()

    tab.open("elsewhere", tag="", live=False, page=page)
    tab.publish(team, action="notice", title="Meanwhile")
    tab.open(TEAM + TOASTS, page=page)

    expect(shown(page, "title")).to_have_text(["For me", "Meanwhile"])
    shown(page, "close").last.click()
    tab.open("elsewhere", tag="", live=False, page=page)
    page.evaluate(REWIND, team)
    tab.open(TEAM + TOASTS, page=page)
    tab.publish(team, action="notice", title="Last")
    expect(shown(page, "title")).to_have_text(["For me", "Last"])
