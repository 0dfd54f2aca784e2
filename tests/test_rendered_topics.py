"""A real Chromium goes on from where a page was rendered."""

import json
from types import SimpleNamespace

from playwright.sync_api import Route, expect

from notifications import publish
from tests.conftest import point_to
from tests.test_elements import Tab, browser, pages, port, pytestmark, tab

__all__ = ["browser", "pages", "port", "pytestmark", "tab"]  # as there

PAGE = """<p id="order" {% topic "closed" request.GET.order %}>state of now</p>
<script type="module" nonce="{{ request.csp_nonce }}">
  const connection = await notifications;
  const order = document.querySelector("#order");
  const { topic, since, grant } = order.dataset;
  connection.subscribe(topic, ({ n }) => order.append(`, ${n}`), { since, grant });
</script>"""


def test_nothing_falls_between_rendering_and_subscribing(tab: Tab, settings: SimpleNamespace) -> None:
    """What is published while the page loads its scripts is shown, of a kind that opens by the grant alone."""
    point_to(settings, tab.site.redis.url)
    topic = f"closed:{tab.user.username}-'\"&<7"
    publish(topic, {"n": 1})

    def hold(route: Route) -> None:
        tab.publish(topic, n=2)
        tab.publish(topic, n=3)
        route.continue_()

    page = tab.open(PAGE, order=topic.partition(":")[2], before=lambda page: page.route("**/start.*.js", hold))
    expect(page.locator("#order")).to_have_text("state of now, 2, 3")
    tab.publish(topic, n=4)

    expect(page.locator("#order")).to_have_text("state of now, 2, 3, 4")
    assert json.loads(page.evaluate("JSON.stringify(document.querySelector('#order').dataset)"))["topic"] == topic
