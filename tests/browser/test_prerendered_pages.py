"""
A page that Chromium has prepared before its user goes there, by the site's speculation rules or from the address bar.

DevTools, and so Playwright, turn that off: this Chromium is a process whose pages say on its console what they see.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlencode

import pytest

from tests.browser.conftest import Place
from tests.demo_browser import CHROMIUM, FLAGS
from tests.processes import Process, User

pytestmark = pytest.mark.skipif(
    CHROMIUM is None and "CI" not in os.environ, reason="no Chromium on PATH: tests/install_browsers says why"
)

SECONDS = 30.0
"""For a line of a Chromium that has just been started, and opens two windows, on a busy machine."""
NEXT = """<script nonce="{{ request.csp_nonce }}">
    const note = (...what) => console.log("next:", ...what);
    const dialled = (how) => note("dials", how, "prerendering", document.prerendering);
    window.WebSocket = class extends WebSocket {
        constructor(...all) {
            super(...all);
            dialled("websocket");
        }
    };
    const { fetch } = window;
    window.fetch = (...all) => (dialled("http"), fetch(...all));
    document.addEventListener("prerenderingchange", () => note("activated"));
    // Each process of a browser has a copy of the storage, and hears later than others of what they have stored.
    addEventListener("storage", ({ key }) => {
        if (key.startsWith("notifications shown")) localStorage.setItem("next", "knows");
    });
</script>
{% notifications %}
<notification-toasts timeout="0"></notification-toasts>
<script type="module" nonce="{{ request.csp_nonce }}">
    const modules = [...document.querySelectorAll("link[rel=modulepreload]")].map(({ href }) => import(href));
    Promise.all(modules).then(() => setTimeout(() => {
        note("loaded", document.prerendering);
        localStorage.setItem("next", "loaded");
    }));
    const connection = await notifications;
    connection.addEventListener("state", ({ detail }) => note("state", detail.state, detail.transport));
    connection.onUser(({ title }) => note("hears", title));
    const { shadowRoot } = document.querySelector("notification-toasts");
    new MutationObserver(() => {
        note("shows", ...[...shadowRoot.querySelectorAll("[part=title]")].map(({ textContent }) => textContent));
    }).observe(shadowRoot, { childList: true, subtree: true });
</script>"""
RULES = """<script type="speculationrules" nonce="{{ request.csp_nonce }}">
    {"prerender": [{"source": "list", "urls": ["NEXT"], "eagerness": "immediate"}]}
</script>"""
PAGE = """{% notifications %}
<notification-toasts timeout="0"></notification-toasts>
<script type="module" nonce="{{ request.csp_nonce }}">
    const connection = await notifications;
    connection.addEventListener("state", ({ detail }) => console.log("NAME: state", detail.state));
"""
DISMISSING = (
    PAGE.replace("NAME", "first")
    + """    connection.on("notice", async ({ _meta }) => {
        document.querySelector("notification-toasts").shadowRoot.querySelector("[part=close]").click();
        const noted = () => sessionStorage.getItem("notifications /ws/notifications/").includes(_meta.id);
        while (!noted()) await new Promise((go) => setTimeout(go, 10));
        location.href = "NEXT";
    });
</script>"""
)
OTHER = PAGE.replace("NAME", "other") + "</script>"
OPENING = """<script nonce="{{ request.csp_nonce }}">
    addEventListener("storage", ({ key, newValue }) => {
        if (key === "next" && newValue === "loaded") open("OTHER", "_blank", "noopener,popup");
        if (key === "next" && newValue === "knows") location.href = "NEXT";
    });
</script>"""


def path_of(template: str) -> str:
    return "/page/?" + urlencode({"template": template})


@contextmanager
def chromium(place: Place, user: User, directory: Path, template: str) -> Iterator[Process]:
    """Run a Chromium in which a user logs in to the site, and comes to a page that has ``NEXT`` prerendered."""
    path = path_of(RULES.replace("NEXT", path_of(NEXT)) + template.replace("NEXT", path_of(NEXT)))
    login = directory / "login.html"
    login.write_text(
        f'<form method="post" action="{place.url}log_in/"><input name="user" value="{user.pk}">'
        f'<textarea name="next">{path}</textarea></form><script>document.forms[0].submit()</script>'
    )
    flags = [*FLAGS, "--headless=new", "--enable-logging=stderr", "--disable-popup-blocking"]
    profile = f"--user-data-dir={directory / 'profile'}"
    assert CHROMIUM
    process = place.site.start(CHROMIUM, *flags, profile, login.as_uri(), name="chromium")
    try:
        yield process
    finally:
        process.close()


def test_prerendered_page_begins_when_it_is_seen(place: Place, tmp_path: Path) -> None:
    """It dials nothing before; then it goes on where the tab is, and what was dismissed there does not come again."""
    user = place.site.add_user()
    with chromium(place, user, tmp_path, DISMISSING) as browser:
        browser.wait_for_line("next: loaded true", SECONDS)
        browser.wait_for_line("first: state open", SECONDS)
        place.publish(f"user:{user.pk}", action="notice", title="Dismissed", level="error")
        browser.wait_for_line("next: activated", SECONDS)
        place.publish(f"user:{user.pk}", action="notice", title="New")
        browser.wait_for_line("next: shows New", SECONDS)

    assert browser.find_line("prerendering true") is None
    assert browser.find_line("next: dials websocket prerendering false")
    assert browser.find_line("next: state open websocket")
    assert browser.find_line("next: hears New")
    assert browser.find_line("next: .*Dismissed") is None


def test_prerendered_page_does_not_show_what_another_tab_has_shown(place: Place, tmp_path: Path) -> None:
    """What was on the screen before somebody goes to the page is old there, though it came after the prerendering."""
    user = place.site.add_user()
    with chromium(place, user, tmp_path, OPENING.replace("OTHER", path_of(OTHER))) as browser:
        browser.wait_for_line("next: loaded true", SECONDS)
        browser.wait_for_line("other: state open", SECONDS)
        place.publish(f"user:{user.pk}", action="notice", title="Elsewhere")
        browser.wait_for_line("next: activated", SECONDS)
        place.publish(f"user:{user.pk}", action="notice", title="New")
        browser.wait_for_line("next: shows .*New", SECONDS)

    assert browser.find_line("next: hears Elsewhere")
    assert browser.find_line("next: shows .*Elsewhere") is None
