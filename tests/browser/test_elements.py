"""
The elements and tags in a real Chromium, on pages of a site of real processes.

The site serves what collectstatic wrote under hashed names, and a Content Security Policy that allows next to
nothing; whatever a page complains of fails its test.
"""

import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

import pytest
from playwright.sync_api import (
    Browser,
    BrowserContext,
    Error,
    Locator,
    Page,
    Route,
    WebSocket,
    WebSocketRoute,
    expect,
)

from tests.axe import violations
from tests.demo_browser import CHROMIUM, FLAGS, MILLISECONDS
from tests.ports import free_port
from tests.processes import Site, User, WebServer

pytestmark = pytest.mark.skipif(
    CHROMIUM is None and "CI" not in os.environ, reason="no Chromium on PATH: tests/install_browsers says why"
)
expect.set_options(timeout=MILLISECONDS)

TOASTS = '<notification-toasts timeout="0" uploads></notification-toasts>'
"""They stay: on a busy machine ten seconds go by between two steps of a test."""
CONNECTED = """async () => {
    const connection = await notifications;
    while (connection.state !== "open") {
        await new Promise((go) => connection.addEventListener("state", go, { once: true }));
    }
}"""
HOSTILE = "<img src=x onerror='window.broken=1'><script>window.broken=1</script>"


@pytest.fixture(scope="module")
def port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def pages(
    redis_program: None, migrated_database: str, tmp_path_factory: pytest.TempPathFactory, port: int
) -> Iterator[tuple[Site, WebServer]]:
    """A site with collected static files, a web server and a listener."""
    directory = tmp_path_factory.mktemp("pages")
    manifest = "django.contrib.staticfiles.storage.ManifestStaticFilesStorage"
    settings = {
        "STATIC_ROOT": str(directory / "static"),
        "STORAGES": {"staticfiles": {"BACKEND": manifest}},
        "CSRF_TRUSTED_ORIGINS": [f"http://127.0.0.1:{port}"],
    }
    with Site(directory, migrated_database, settings=settings) as site:
        assert site.run("collectstatic", "--noinput").returncode == 0
        server = site.start_server("daphne", port)
        site.start_listener()
        yield site, server


@dataclass
class Tab:
    """A logged-in browser on the site, and a program that publishes as any other does."""

    site: Site
    server: WebServer
    context: BrowserContext
    user: User
    complaints: list[str] = field(default_factory=list)
    expected: list[str] = field(default_factory=list)

    def expect_complaints(self, *words: str) -> None:
        """
        Expect the browser to complain with these words.

        It may do so late: the test goes on when a page shows something, and what the page has logged comes after that.
        """
        self.expected.extend(words)

    @property
    def unexpected(self) -> list[str]:
        return [text for text in self.complaints if not any(words in text for words in (UNANSWERED, *self.expected))]

    def open(
        self,
        body: str,
        *,
        tag: str = "{% notifications %}",
        before: Callable[[Page], object] = lambda page: None,
        live: bool = True,
        page: Page | None = None,
        **query: str,
    ) -> Page:
        """Open a page with this template, in a new tab or in that of ``page``, and wait until it is connected."""
        page = page or self.context.new_page()
        before(page)
        url = f"http://{self.server.address}/page/?"
        page.goto(url + urlencode({"template": f"{tag}<main><h1>Uploads</h1>{body}</main>", **query}))
        if live:
            page.evaluate(CONNECTED)
        return page

    def publish(self, topic: str, **message: object) -> None:
        with self.site.client() as client:
            client.publish(topic, json.dumps(message))

    def offline(self) -> int:
        """Expect what a browser says about a server that it cannot reach, and return how often it did so far."""
        self.expect_complaints("net::ERR_")
        return sum("net::ERR_" in text for text in self.complaints)

    def notice(self, **message: object) -> None:
        self.publish(f"user:{self.user.pk}", **{"action": "notice", **message})

    def progress(self, upload: str, percent: object, message: object = "", **more: object) -> None:
        payload = {"status": "analyzing", "stage": "vision_analysis", "progress_percent": percent, "message": message}
        self.publish(f"upload:{upload}", action="upload_progress", payload=payload | more)

    def complete(self, upload: str, description: object = "A cat on a sofa") -> None:
        self.publish(f"upload:{upload}", action="upload_completed", description=description, audit_score=92)


@pytest.fixture
def tab(browser: Browser, pages: tuple[Site, WebServer]) -> Iterator[Tab]:
    with open_tab(browser, pages) as tab:
        yield tab


@pytest.fixture
def tab_with_cache(browser: Browser, pages: tuple[Site, WebServer]) -> Iterator[Tab]:
    """In a browser that keeps pages for its back button, as those of people do; Playwright turns that off."""
    with (
        browser.browser_type.launch(
            executable_path=CHROMIUM, args=FLAGS, ignore_default_args=["--disable-back-forward-cache"]
        ) as browser,
        open_tab(browser, pages) as tab,
    ):
        yield tab


@pytest.fixture
def tab_with_scrollbars(browser: Browser, pages: tuple[Site, WebServer]) -> Iterator[Tab]:
    """In a browser whose scrollbars take room, as on most desks; Playwright hides them."""
    with (
        browser.browser_type.launch(
            executable_path=CHROMIUM, args=FLAGS, ignore_default_args=["--hide-scrollbars"]
        ) as browser,
        open_tab(browser, pages) as tab,
    ):
        yield tab


UNANSWERED = "WebSocket is closed before the connection is established"
"""What Chromium complains of when a busy machine has not answered for 5 seconds, and the client tries again."""


@contextmanager
def open_tab(browser: Browser, pages: tuple[Site, WebServer]) -> Iterator[Tab]:
    site, server = pages
    user = site.add_user()
    name, _, value = user.cookie.partition("=")
    with browser.new_context() as context:
        context.set_default_timeout(MILLISECONDS)
        context.add_cookies([{"name": name, "value": value, "url": f"http://{server.address}"}])
        tab = Tab(site, server, context, user)
        context.on("console", lambda line: line.type in ("error", "warning") and tab.complaints.append(line.text))
        context.on("weberror", lambda error: tab.complaints.append(str(error.error)))
        context.add_init_script(
            "addEventListener('securitypolicyviolation', (e) => console.error('CSP', e.effectiveDirective, e.sample))"
        )
        yield tab
    assert tab.unexpected == []


def bar(page: Page) -> Locator:
    return page.get_by_role("progressbar")


def shown(page: Page, part: str) -> Locator:
    return page.locator(f'[part~="{part}"]')


def wait_until(page: Page, look: Callable[[], object]) -> None:
    """Wait until something holds that the page has an effect on, while its requests are answered."""
    for _ in range(round(MILLISECONDS) // 50):
        if look():
            return
        page.wait_for_timeout(50)
    raise AssertionError("that has not become true")


# Under a policy


@pytest.mark.parametrize(
    "policy", ["script-src 'self'", "script-src 'nonce-{nonce}'", "script-src 'nonce-{nonce}' 'strict-dynamic'"]
)
def test_policy_is_not_violated(tab: Tab, policy: str) -> None:
    """Under any strict policy the page connects, and bar and notice have their styles."""
    upload = tab.user.new_upload()
    policy += "; require-trusted-types-for 'script'"
    page = tab.open(f"{{% upload_progress '{upload}' %}}{TOASTS}", scripts=policy)

    tab.progress(upload, 40)
    tab.notice(title="Hello")

    expect(bar(page)).to_have_attribute("aria-valuenow", "40")
    expect(shown(page, "fill")).to_have_css("background-color", "rgb(51, 85, 221)")
    expect(shown(page, "toast")).to_have_css("border-radius", "8px")


def test_script_of_another_folder_is_not_loaded(tab: Tab) -> None:
    """Markup injected into the page before this app's cannot name a script of its own."""
    page = tab.open(
        "",
        tag='<script id="notifications-config" type="application/json">'
        '{"client": "/static/evil.js", "elements": "/static/evil.js"}</script>{% notifications %}',
        live=False,
    )

    refused = page.evaluate("notifications.catch((error) => error.message)")

    assert "evil.js is not in" in refused
    assert len(tab.complaints) == 1
    assert "evil.js is not in" in tab.complaints.pop()


def test_anonymous_page_opens_no_socket(tab: Tab) -> None:
    """For anonymous visitors nothing connects, and nothing fails."""
    tab.context.clear_cookies()
    sockets: list[object] = []

    page = tab.open(
        "{% upload_progress '7f3c' %}" + TOASTS,
        live=False,
        before=lambda page: page.on("websocket", lambda socket: sockets.append(socket)),
    )

    assert page.evaluate("'notifications' in window") is False
    assert sockets == []


# Where a page begins


def test_notice_between_rendering_and_connecting_is_shown(tab: Tab) -> None:
    """What is published while the page has been rendered and has not connected is shown when it has."""

    def publish_first(route: Route) -> None:
        tab.notice(title="While you were loading")
        route.continue_()

    page = tab.open(TOASTS, before=lambda page: page.route("**/start.*.js", publish_first))

    expect(shown(page, "title")).to_have_text("While you were loading")


def test_back_button_brings_a_page_back_to_life(tab_with_cache: Tab) -> None:
    """A page that the browser has kept connects again, and shows what it missed, once; it was not loaded again."""
    tab = tab_with_cache
    upload = tab.user.new_upload()
    page = tab.open(f"{{% upload_progress '{upload}' %}}{TOASTS}")
    tab.progress(upload, 10)
    tab.notice(title="Before")
    expect(bar(page)).to_have_attribute("aria-valuenow", "10")
    expect(shown(page, "title")).to_have_text(["Before"])
    page.evaluate("addEventListener('pageshow', ({ persisted }) => (window.kept = persisted))")

    page.goto(f"http://{tab.server.address}/page/?template=elsewhere")
    tab.notice(title="Meanwhile")
    tab.progress(upload, 70)
    page.go_back(wait_until="commit")  # nothing is loaded

    expect(shown(page, "title")).to_have_text(["Before", "Meanwhile"])
    expect(bar(page)).to_have_attribute("aria-valuenow", "70")
    assert page.evaluate("window.kept")


def test_notices_before_the_rendering_are_not_shown(tab: Tab) -> None:
    """A new page does not repeat what the user has been told before."""
    tab.open(TOASTS)
    tab.notice(title="Old")
    expect(shown(tab.context.pages[0], "title")).to_have_text("Old")

    page = tab.open(TOASTS)
    tab.notice(title="New")

    expect(shown(page, "title")).to_have_text("New")


CACHED = "{% load cache %}{% cache 600 head request.user.pk %}{% notifications %}{% endcache %}"


def test_notices_do_not_come_again_out_of_a_cached_fragment(tab: Tab) -> None:
    """A tag that is rendered once for many pages repeats nothing on the next page of the tab."""
    page = tab.open(TOASTS, tag=CACHED, scripts="script-src 'self'")
    for title in ("One", "Two", "Three"):
        tab.notice(title=title)
        expect(shown(page, "title")).to_have_text([title])
        page.get_by_role("button", name="Close").click()
        expect(shown(page, "title")).to_have_count(0)
        page = tab.open(TOASTS, tag=CACHED, page=page, scripts="script-src 'self'")


def test_cached_fragment_in_a_new_tab_repeats_what_nobody_has_seen(tab: Tab) -> None:
    """A page at an old position shows what only tabs in the background have, and what is new, but nothing else."""
    page = tab.open(TOASTS, tag=CACHED, scripts="script-src 'self'")
    tab.notice(title="Seen")
    expect(shown(page, "title")).to_have_text(["Seen"])
    hide(page, True)
    tab.notice(title="Not seen")
    expect(shown(page, "title")).to_have_text(["Seen", "Not seen"])

    other = tab.open(TOASTS, tag=CACHED, scripts="script-src 'self'")
    tab.notice(title="New")

    expect(shown(other, "title")).to_have_text(["Not seen", "New"])
    expect(shown(page, "title")).to_have_text(["Seen", "Not seen", "New"])
    third = tab.open(TOASTS, tag=CACHED, scripts="script-src 'self'")
    tab.notice(title="Newer")
    expect(shown(third, "title")).to_have_text(["Newer"])


def test_notice_while_a_page_loads_is_shown_although_another_tab_shows_it(tab: Tab) -> None:
    """What another tab shows after this page was asked for is new in both."""
    page = tab.open(TOASTS)

    def publish_first(route: Route) -> None:
        tab.notice(title="While you were loading")
        expect(shown(page, "title")).to_have_text(["While you were loading"])
        route.continue_()

    other = tab.open(TOASTS, before=lambda page: page.route("**/start.*.js", publish_first))

    expect(shown(other, "title")).to_have_text(["While you were loading"])


@pytest.mark.parametrize("how", ["opened", "duplicated"])
def test_notices_do_not_come_again_in_another_tab(tab: Tab, how: str) -> None:
    """A window that a page opens, or a tab that is duplicated, begins with a copy of what the first tab remembers."""
    page = tab.open(TOASTS)
    page = tab.open(TOASTS, page=page)  # which wrote where it was when it was left
    for n in range(3):
        tab.notice(title=f"Notice {n}")
    expect(shown(page, "title").last).to_have_text("Notice 2")
    # As soon as somebody can have read it.
    page.wait_for_function("(id) => Object.values(sessionStorage).some((text) => text.includes(id))", arg=last_id(tab))
    page.evaluate("document.querySelectorAll('notification-toasts').forEach((toasts) => toasts.remove())")

    with tab.context.expect_page() as opened:
        page.evaluate("(how) => void window.open(how === 'opened' ? location.href + '&x' : location.href)", how)
    other = opened.value
    other.wait_for_function("() => Boolean(window.notifications)")  # a text would be evaluated, against the policy
    other.evaluate(CONNECTED)
    tab.notice(title="New")

    expect(shown(other, "title")).to_have_text(["New"])


def last_id(tab: Tab) -> str:
    """Return the id of what was last published to the user."""
    with tab.site.client() as client:
        return client.xrevrange(f"notifications:history:user:{tab.user.pk}", count=1)[0][0].decode()


def test_page_opened_late_shows_the_true_state(tab: Tab) -> None:
    """A bar that comes on the page in the middle of the work shows where it is, and follows."""
    upload = tab.user.new_upload()
    tab.progress(upload, 40, "Frame 40 of 100")

    page = tab.open(f"{{% upload_progress '{upload}' label='spring.jpg' %}}")

    expect(page.get_by_role("progressbar", name="spring.jpg")).to_have_attribute("aria-valuenow", "40")
    expect(bar(page)).to_have_attribute("aria-valuetext", "40%, Analysing the images")
    expect(shown(page, "message")).to_have_text("Frame 40 of 100")
    tab.complete(upload)
    expect(bar(page)).to_have_attribute("aria-valuenow", "100")


def test_page_opened_after_the_end_shows_it_and_says_nothing(tab: Tab) -> None:
    """What ended before is shown, but neither announced nor told as a notice."""
    upload = tab.user.new_upload()
    tab.progress(upload, 90)
    tab.complete(upload)

    page = tab.open(f"{{% upload_progress '{upload}' %}}{TOASTS}")

    expect(shown(page, "stage")).to_have_text("Completed")
    expect(shown(page, "message")).to_have_text("A cat on a sofa")
    expect(shown(page, "percent")).to_have_text("100%")
    tab.notice(title="Last")
    expect(shown(page, "title")).to_have_text("Last")
    expect(page.get_by_role("status")).to_have_text("")


def test_finished_upload_is_not_subscribed_to(tab: Tab) -> None:
    """A bar that the site rendered as finished asks for nothing: a socket has a limited number of topics."""
    done, open_ = tab.user.new_upload(), tab.user.new_upload()
    sent: list[str] = []

    def listen(page: Page) -> None:
        page.on("websocket", lambda socket: socket.on("framesent", lambda text: sent.append(str(text))))

    page = tab.open(
        f"{{% upload_progress '{done}' status='failed' percent=30 %}}{{% upload_progress '{open_}' %}}", before=listen
    )
    tab.progress(open_, 5)

    expect(bar(page).last).to_have_attribute("aria-valuenow", "5")
    expect(shown(page, "stage").first).to_have_text("Failed")
    expect(shown(page, "fill").first).to_have_css("background-color", "rgb(185, 44, 44)")
    assert any(open_ in text for text in sent)
    assert not any(done in text for text in sent)


def test_token_opens_a_socket_on_another_host(tab: Tab, port: int) -> None:
    """A page whose WebSocket gets no session cookie fetches tokens from the view and is its user there."""
    url = f"ws://localhost:{port}/ws/notifications/"

    page = tab.open(TOASTS, tag=f"{{% notifications url='{url}' token_url='/token/' %}}", connect=url)
    tab.notice(title="Hello")

    expect(shown(page, "title")).to_have_text("Hello")


# <upload-progress>


def test_percentage_never_goes_back(tab: Tab) -> None:
    """Whatever is published and wherever the element is moved, the bar only grows, and the words are the newest."""
    upload = tab.user.new_upload()
    page = tab.open(f"{{% upload_progress '{upload}' percent=20 %}}<section></section>")
    page.evaluate(
        """() => {
            window.seen = [];
            const bar = document.querySelector("upload-progress").shadowRoot.querySelector("[role=progressbar]");
            const look = () => window.seen.push(bar.ariaValueNow);
            new MutationObserver(look).observe(bar, { attributeFilter: ["aria-valuenow"] });
        }"""
    )
    tab.progress(upload, 21)
    expect(bar(page)).to_have_attribute("aria-valuenow", "21")

    for percent in (10, 60, 30, "70", -5, 1e9, None, {"toString": 1}, 0):
        tab.progress(upload, percent, f"at {percent}")
    expect(shown(page, "message")).to_have_text("at 0")
    page.evaluate("document.querySelector('section').append(document.querySelector('upload-progress'))")

    expect(bar(page)).to_have_attribute("aria-valuenow", "100")
    seen = [int(value) for value in page.evaluate("window.seen")]
    assert seen == sorted(seen)
    assert set(seen) >= {60, 70, 100}


def test_hostile_message_is_only_text(tab: Tab) -> None:
    """Markup in any field is shown as it is written, and what is no text is not shown."""
    upload = tab.user.new_upload()
    page = tab.open(f"{{% upload_progress '{upload}' %}}")

    tab.progress(upload, 1, HOSTILE, stage=HOSTILE, status=HOSTILE)
    expect(shown(page, "message")).to_have_text(HOSTILE)
    expect(shown(page, "stage")).to_have_text(HOSTILE)
    tab.publish(f"upload:{upload}", action="upload_progress", payload=None)
    tab.progress(upload, 2, {"toString": 1}, stage="constructor", status=["failed"])
    expect(bar(page)).to_have_attribute("aria-valuenow", "2")
    expect(shown(page, "stage")).to_have_text("constructor")
    tab.complete(upload, HOSTILE)

    expect(shown(page, "message")).to_have_text(HOSTILE)
    assert page.evaluate("window.broken") is None


def test_failure_is_shown_and_announced(tab: Tab) -> None:
    """A bar that fails before one's eyes keeps its percentage, says why, and is announced."""
    upload = tab.user.new_upload()
    page = tab.open(f"{{% upload_progress '{upload}' label='spring.jpg' %}}")

    tab.progress(upload, 40)
    expect(bar(page)).to_have_attribute("aria-valuenow", "40")
    tab.publish(f"upload:{upload}", action="upload_failed", error_message="The file is not an image.")

    expect(shown(page, "message")).to_have_text("The file is not an image.")
    expect(page.get_by_role("status")).to_have_text("spring.jpg – Failed")
    expect(bar(page)).to_have_attribute("aria-valuenow", "40")


def test_forbidden_upload_is_called_so(tab: Tab) -> None:
    """The id of somebody else's upload in a template opens nothing."""
    page = tab.open("{% upload_progress 'somebody' %}")

    expect(shown(page, "stage")).to_have_text("Not available")
    assert bar(page).get_attribute("aria-valuenow") is None


def test_refusal_that_nobody_shows_is_a_warning(tab: Tab) -> None:
    """A subscription of the page's own says in the console why nothing arrives; a bar beside it does not silence it."""
    page = tab.open("{% upload_progress 'somebody' %}")
    page.evaluate("notifications.then((connection) => void connection.subscribe('closed:1', () => {}))")
    expect(shown(page, "stage")).to_have_text("Not available")
    page.evaluate(
        "notifications.then((connection) =>"
        " new Promise((refused) => connection.subscribe('closed:2', () => {}, { error: refused })))"
    )

    (warning,) = tab.complaints
    assert "forbidden" in warning
    assert "closed:1" in warning
    tab.expect_complaints(warning)


def test_page_with_three_hundred_bars(browser: Browser, pages: tuple[Site, WebServer]) -> None:
    """Each of more bars than a socket may have topics comes to its end, in two tabs, while the server restarts."""
    site, _ = pages
    server = site.start_server("uvicorn")
    with open_tab(browser, (site, server)) as tab:
        uploads = [tab.user.new_upload() for _ in range(300)]
        said: list[str] = []
        sockets: list[WebSocket] = []

        def listen(page: Page) -> None:
            page.on("websocket", lambda socket: sockets.append(socket))  # a bound method cannot be one
            page.on("websocket", lambda socket: socket.on("framereceived", lambda text: said.append(str(text))))

        both = [tab.open("<section></section>", before=listen) for _ in range(2)]
        for page in both:
            page.evaluate(
                """(uploads) => {
                    for (const upload of uploads) {
                        const bar = document.createElement("upload-progress");
                        bar.setAttribute("upload", upload);
                        document.querySelector("section").append(bar);
                    }
                }""",
                uploads,
            )
        for upload in uploads[:150]:
            tab.complete(upload)
        for page in both:
            wait_until_completed(page, 50)
        server.terminate()
        server = site.start_server("uvicorn", server.port)
        for upload in uploads[150:]:
            tab.complete(upload)

        for page in both:
            wait_until_completed(page, 300)
            assert page.get_by_text("Not available").count() == 0
        assert len(sockets) <= 4 + tab.offline()  # one before the restart, one after it, and what could not connect
        assert not any("rate_limited" in text for text in said)
        assert any("too_many_subscriptions" in text for text in tab.complaints)  # what the limit is
        tab.expect_complaints("too_many_subscriptions")
    server.close()


def wait_until_completed(page: Page, number: int) -> None:
    """Wait until as many bars have come to their end: the client asks for 150 topics in 8 seconds, if all are left."""
    page.wait_for_function(
        "(number) => [...document.querySelectorAll('upload-progress')]"
        ".filter(({ state }) => state.status === 'completed').length >= number",
        arg=number,
        timeout=3 * MILLISECONDS,
    )


def test_grant_opens_an_upload(tab: Tab) -> None:
    """What the page signs for its user is not asked of AUTHORIZE."""
    page = tab.open("{% upload_progress 'somebody-2' grant=True %}")

    tab.progress("somebody-2", 7)

    expect(bar(page)).to_have_attribute("aria-valuenow", "7")


def test_gap_is_told_to_the_page(tab: Tab) -> None:
    """When messages were missed for good the element says so, and the site's state may be set by attributes."""
    upload = tab.user.new_upload()
    page = tab.open(f"{{% upload_progress '{upload}' %}}")
    tab.progress(upload, 10)
    tab.progress(upload, 11)
    expect(bar(page)).to_have_attribute("aria-valuenow", "11")
    page.evaluate(
        """() => document.addEventListener("upload-gap", ({ target }) => {
            target.setAttribute("percent", 50);
            target.setAttribute("message", "From the site");
        })"""
    )

    with tab.site.client() as client:
        client.delete(f"notifications:history:upload:{upload}")
    tab.progress(upload, 12, "After the gap")

    expect(bar(page)).to_have_attribute("aria-valuenow", "50")
    tab.progress(upload, 51)
    expect(bar(page)).to_have_attribute("aria-valuenow", "51")


def test_words_and_numbers_of_the_page(tab: Tab) -> None:
    """The percentage is written as in the language of the page, and its words may be replaced."""
    upload = tab.user.new_upload()
    page = tab.open(f"{{% upload_progress '{upload}' percent=40 %}}{TOASTS}", lang="de", live=False)

    expect(shown(page, "percent")).to_have_text("40\N{NO-BREAK SPACE}%")


# <notification-toasts>


@pytest.mark.parametrize(
    "url",
    [
        "javascript:window.broken=1",
        "data:text/html,x",
        "  JaVaScRiPt:alert(1)",
        "\tjava\nscript:window.broken=1",
        "blob:https://example.com/7f3c",
        "mailto:ada@example.com",
        "http://[",
        7,
    ],
)
def test_hostile_notice_is_only_text(tab: Tab, url: object) -> None:
    """Markup in a notice is shown as it is written, and an address that is no web page is no link."""
    page = tab.open(TOASTS)

    tab.notice(level="toString", title=HOSTILE, body=HOSTILE, url=url)

    expect(shown(page, "title")).to_have_text(HOSTILE)
    expect(shown(page, "body")).to_have_text(HOSTILE)
    assert page.locator("notification-toasts").locator("a, img, script").count() == 0
    assert page.evaluate("window.broken") is None


@pytest.mark.parametrize(
    ("url", "href"),
    [
        ("/a?b", "http://{}/a?b"),
        ("https://example.com/", "https://example.com/"),
        ("//example.com/a", "http://example.com/a"),
        ('https://example.com/"><script>', "https://example.com/%22%3E%3Cscript%3E"),
    ],
)
def test_address_becomes_a_link(tab: Tab, url: str, href: str) -> None:
    """A path of the site and a web page can be clicked."""
    page = tab.open(TOASTS)

    tab.notice(title="Ready", url=url)

    expect(page.get_by_role("link", name="Ready")).to_have_js_property("href", href.format(tab.server.address))


def test_what_is_no_text_breaks_nothing(tab: Tab) -> None:
    """A notice of strange values is shown as far as it is text, and the next one comes."""
    page = tab.open(TOASTS)

    tab.notice(title={"toString": 1}, level={"toString": 1}, body=["x"], url={})
    tab.notice(title="Next")

    expect(shown(page, "toast")).to_have_count(2)
    expect(shown(page, "title").last).to_have_text("Next")


def test_keyboard_dismisses(tab: Tab) -> None:
    """Escape takes a notice away; the focus goes to the next one, and in the end where it was."""
    page = tab.open(f"<button>Work</button>{TOASTS}")
    for title in ("One", "Two", "Three"):
        tab.notice(title=title)
    expect(shown(page, "toast")).to_have_count(3)
    page.get_by_role("button", name="Work").focus()

    page.keyboard.press("Tab")
    page.keyboard.press("Escape")
    expect(shown(page, "title")).to_have_text(["Two", "Three"])
    page.keyboard.press("Enter")
    expect(shown(page, "title")).to_have_text(["Three"])
    expect(page.get_by_role("button", name="Close")).to_be_focused()
    page.keyboard.press("Escape")

    expect(shown(page, "toast")).to_have_count(0)
    expect(page.get_by_role("button", name="Work")).to_be_focused()


def stop_clock(page: Page) -> None:
    """Let time pass on this page only when the test says so; its clock has been installed."""
    for _ in range(10):
        try:
            page.clock.pause_at(datetime.fromtimestamp(page.evaluate("Date.now()") / 1000 + 1, UTC))
        except Error as error:  # on a busy machine that second may be over before the page is told
            if "to the past" not in str(error):
                raise
        else:
            return
    raise AssertionError("this machine does not stop the clock of a page within a second")


def test_notice_leaves_by_itself_unless_it_is_an_error(tab: Tab) -> None:
    """After its time a notice is gone; an error stays until somebody takes it away."""
    page = tab.open("<notification-toasts></notification-toasts>", before=lambda page: page.clock.install())
    stop_clock(page)
    tab.notice(title="Fine", level="success")
    tab.notice(title="Broken", level="error")
    expect(shown(page, "title")).to_have_text(["Broken", "Fine"])

    page.clock.run_for(9_000)
    expect(shown(page, "toast")).to_have_count(2)
    page.clock.run_for(2_000)

    expect(shown(page, "title")).to_have_text(["Broken"])


def test_each_notice_has_its_own_time(tab: Tab) -> None:
    """However many come after it, a notice leaves when its own time is over."""
    page = tab.open(
        '<notification-toasts timeout="10"></notification-toasts>', before=lambda page: page.clock.install()
    )
    stop_clock(page)
    for title in ("One", "Two", "Three"):
        tab.notice(title=title)
        expect(shown(page, "title").last).to_have_text(title)
        page.clock.run_for(4_000)

    expect(shown(page, "title")).to_have_text(["Two", "Three"])
    page.clock.run_for(4_000)
    expect(shown(page, "title")).to_have_text(["Three"])


def hide(page: Page, hidden: bool) -> None:
    """Have the page think that its tab is in the background, or in front: without windows all tabs are in front."""
    page.evaluate(
        """(hidden) => {
            Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
            document.dispatchEvent(new Event("visibilitychange"));
        }""",
        hidden,
    )


@pytest.mark.parametrize("by", ["pointer", "focus", "finger", "hidden tab"])
def test_time_stands_still_while_somebody_reads(tab: Tab, by: str) -> None:
    """
    No notice leaves while one of them has the pointer, a finger or the focus, or while nobody sees the tab.

    Afterwards each has what was left of its time, and those who read one have a moment for the others.
    """
    page = tab.open(
        '<button>Work</button><notification-toasts timeout="10"></notification-toasts>',
        before=lambda page: page.clock.install(),
    )
    stop_clock(page)
    work = page.get_by_role("button", name="Work")
    fingers = tab.context.new_cdp_session(page)

    def begin(toast: Locator) -> None:
        if by == "pointer":
            toast.hover()
        elif by == "focus":
            toast.locator("[part=close]").focus()
        elif by == "hidden tab":
            hide(page, True)
        else:
            at = box(toast)
            point = {"x": at["x"] + 60, "y": at["y"] + 20}
            fingers.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [point]})

    def end() -> None:
        if by == "pointer":
            work.hover()
        elif by == "focus":
            work.focus()
        elif by == "hidden tab":
            hide(page, False)
        else:
            fingers.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})

    tab.notice(title="One")
    expect(shown(page, "title")).to_have_text(["One"])
    page.clock.run_for(3_000)
    tab.notice(title="Two")
    expect(shown(page, "title")).to_have_text(["One", "Two"])
    page.clock.run_for(3_000)  # 4 and 7 seconds are left

    begin(shown(page, "toast").first)
    page.clock.run_for(10_000)
    expect(shown(page, "title")).to_have_text(["One", "Two"])
    end()
    page.clock.run_for(3_500)
    expect(shown(page, "title")).to_have_text(["One", "Two"])
    page.clock.run_for(1_000)
    expect(shown(page, "title")).to_have_text(["Two"])

    page.clock.run_for(2_000)  # half a second is left
    begin(shown(page, "toast").first)
    page.clock.run_for(10_000)
    end()
    page.clock.run_for(1_500)
    expect(shown(page, "title")).to_have_text(["Two"])
    page.clock.run_for(1_000)
    expect(shown(page, "toast")).to_have_count(0)


def test_finger_that_has_tapped_holds_nothing(tab: Tab) -> None:
    """A tap leaves a hover behind, which ends only with the next tap: notices leave all the same."""
    page = tab.open('<notification-toasts timeout="5"></notification-toasts>', before=lambda page: page.clock.install())
    stop_clock(page)
    tab.notice(title="One", body="More about it")
    expect(shown(page, "toast")).to_have_count(1)
    fingers = tab.context.new_cdp_session(page)
    at = box(shown(page, "body"))
    point = {"x": at["x"] + 10, "y": at["y"] + 5}

    fingers.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [point]})
    fingers.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})

    page.wait_for_function(
        "document.querySelector('notification-toasts').shadowRoot.querySelector('[part=list]').matches(':hover')"
    )
    page.clock.run_for(6_000)
    expect(shown(page, "toast")).to_have_count(0)


def test_closing_one_by_mouse_lets_the_others_go(tab: Tab) -> None:
    """Neither the pointer, which is now over nothing, nor the focus, which is where it was, holds the other notices."""
    page = tab.open(
        '<button>Work</button><notification-toasts timeout="2"></notification-toasts>',
        before=lambda page: page.clock.install(),
    )
    stop_clock(page)
    work = page.get_by_role("button", name="Work")
    work.focus()
    for title in ("One", "Two", "Three"):
        tab.notice(title=title)
    expect(shown(page, "toast")).to_have_count(3)

    shown(page, "close").first.click()

    expect(shown(page, "title")).to_have_text(["Two", "Three"])
    expect(work).to_be_focused()
    page.clock.run_for(5_000)
    expect(shown(page, "toast")).to_have_count(0)


def test_notices_that_are_moved_still_leave(tab: Tab) -> None:
    """A page may put the element elsewhere while it shows something."""
    page = tab.open(
        '<notification-toasts timeout="2"></notification-toasts><footer></footer>',
        before=lambda page: page.clock.install(),
    )
    stop_clock(page)
    tab.notice(title="One")
    expect(shown(page, "toast")).to_have_count(1)

    page.evaluate("document.querySelector('footer').append(document.querySelector('notification-toasts'))")

    expect(shown(page, "toast")).to_have_count(1)
    page.clock.run_for(3_000)
    expect(shown(page, "toast")).to_have_count(0)


# From page to page


KEEPING = '<notification-toasts timeout="0"></notification-toasts>'
TIMED = '<notification-toasts timeout="10"></notification-toasts>'
FORM = """<form method="post" action="/post/">
    <input name="title" aria-label="Title"><input name="next" aria-label="Next"><button>Save</button>
</form>"""


def kept(page: Page) -> str:
    """Return what the tab has in its storage for the next page's notices."""
    return page.evaluate("sessionStorage.getItem('notifications toasts /ws/notifications/') ?? ''")


def test_notice_of_a_post_is_seen_after_the_redirect(tab: Tab) -> None:
    """A notice to the user who posted, from a view that redirects, is shown on the next page: 20 times out of 20."""
    page = tab.open(FORM + KEEPING)
    seen = []

    for n in range(20):
        page.get_by_label("Title").fill(f"Saved {n}")
        page.get_by_label("Next").fill(page.url)
        with page.expect_navigation():
            page.get_by_role("button", name="Save").click()
        expect(shown(page, "title").last).to_have_text(f"Saved {n}")
        seen.append(shown(page, "title").all_text_contents())
        shown(page, "close").last.click()
        expect(shown(page, "toast")).to_have_count(0)

    assert seen == [[f"Saved {n}"] for n in range(20)]


def test_notice_of_a_post_from_a_page_that_was_never_connected(tab: Tab) -> None:
    """The first page of a tab may be left before its socket has opened, or where it is blocked: nothing is lost."""
    blocked = True

    def hold(socket: WebSocketRoute) -> None:
        if not blocked:
            socket.connect_to_server()

    page = tab.open(FORM + KEEPING, before=lambda page: page.route_web_socket("**/ws/**", hold), live=False)
    page.evaluate("notifications")
    page.get_by_label("Title").fill("Saved")
    page.get_by_label("Next").fill(page.url)
    blocked = False
    with page.expect_navigation():
        page.get_by_role("button", name="Save").click()

    expect(shown(page, "title")).to_have_text(["Saved"])
    page.reload()
    tab.notice(title="New")
    expect(shown(page, "title")).to_have_text(["Saved", "New"])


def test_error_stays_until_it_is_dismissed(tab: Tab) -> None:
    """An error goes along from page to page, looks the same there, and is gone for good when somebody has closed it."""
    page = tab.open(TIMED)
    tab.notice(title="Broken", level="error", body="Line 7 has no date.", url="?template=7")
    expect(shown(page, "toast")).to_have_count(1)
    href = page.get_by_role("link", name="Broken").get_attribute("href")

    for _ in range(3):
        page.goto(f"http://{tab.server.address}/page/?template=elsewhere")
        page.goto(page_url(tab, TIMED))
        expect(shown(page, "title")).to_have_text(["Broken"])
        expect(shown(page, "body")).to_have_text("Line 7 has no date.")
        expect(page.locator("[aria-live=assertive] [part~=error]")).to_have_count(1)
        assert page.get_by_role("link", name="Broken").get_attribute("href") == href  # not relative to this page
        expect(shown(page, "toast")).to_have_css("animation-name", "none")
    shown(page, "close").click()
    page.reload()

    tab.notice(title="Next")
    expect(shown(page, "title")).to_have_text(["Next"])


def page_url(tab: Tab, body: str) -> str:
    template = f"{{% notifications %}}<main><h1>Uploads</h1>{body}</main>"
    return f"http://{tab.server.address}/page/?" + urlencode({"template": template})


@pytest.mark.parametrize("lost", [False, True], ids=["", "what is written at the end gets lost"])
def test_notice_has_on_the_next_page_what_is_left_of_its_time(tab: Tab, lost: bool) -> None:
    """A notice of ten seconds leaves ten seconds after it came, on whatever page, and then is on none."""
    lose = "addEventListener('pagehide', (event) => event.stopImmediatePropagation(), true)"

    def prepare(page: Page) -> None:
        page.clock.install()
        if lost:
            page.add_init_script(lose)

    page = tab.open(TIMED, before=prepare)
    stop_clock(page)
    tab.notice(title="One")
    expect(shown(page, "title")).to_have_text(["One"])
    page.clock.run_for(4_000)
    tab.notice(title="Two")
    expect(shown(page, "title")).to_have_text(["One", "Two"])
    page.clock.run_for(3_000)

    page.reload()

    expect(shown(page, "title")).to_have_text(["One", "Two"])
    page.clock.run_for(2_500)
    expect(shown(page, "title")).to_have_text(["One", "Two"])
    page.clock.run_for(1_000)
    expect(shown(page, "title")).to_have_text(["Two"])
    page.clock.run_for(4_000)
    expect(shown(page, "toast")).to_have_count(0)
    page.reload()
    tab.notice(title="Three")
    expect(shown(page, "title")).to_have_text(["Three"])


def test_notice_that_was_hardly_seen_waits_for_the_next_page(tab: Tab) -> None:
    """Shown for less than four seconds, it has the rest of its time on any later page; the time of others goes on."""
    page = tab.open(TIMED, before=lambda page: page.clock.install())
    stop_clock(page)
    tab.notice(title="Seen")
    expect(shown(page, "title")).to_have_text(["Seen"])
    page.clock.run_for(4_500)
    tab.notice(title="Hardly seen")
    expect(shown(page, "title")).to_have_text(["Seen", "Hardly seen"])
    page.clock.run_for(3_000)

    page.goto(f"http://{tab.server.address}/page/?template=elsewhere")
    page.clock.run_for(1_000)  # 1.5 seconds would be left of the first: it would only flash
    page.goto(page_url(tab, TIMED))

    expect(shown(page, "title")).to_have_text(["Hardly seen"])
    page.clock.run_for(6_500)
    expect(shown(page, "title")).to_have_text(["Hardly seen"])
    page.clock.run_for(1_000)
    expect(shown(page, "toast")).to_have_count(0)


def hear(tab: Tab, page: Page, **notice: object) -> None:
    """Send a notice to a page that shows none, and wait until it has heard it."""
    page.evaluate(
        """(notice) => {
            const same = (one, other) => JSON.stringify(one) === JSON.stringify(other);
            const isThis = (message) => Object.keys(notice).every((name) => same(notice[name], message[name]));
            window.heard = notifications.then(
                (all) => new Promise((go) => all.onUser((message) => isThis(message) && go())));
        }""",
        notice,  # another may come first, such as that of the form that led here
    )
    page.evaluate("notifications")
    tab.notice(**notice)
    page.evaluate("heard")


def test_notice_that_no_page_has_shown_waits_for_one_that_can(tab: Tab) -> None:
    """What comes to a page without the element, as before a redirect, is shown by the tab's next page with it, once."""
    page = tab.open(FORM)
    page.get_by_label("Title").fill("Saved")
    page.get_by_label("Next").fill(page_url(tab, "No element here, either"))
    with page.expect_navigation():
        page.get_by_role("button", name="Save").click()
    page.evaluate(CONNECTED)
    hear(tab, page, title="Broken", level="error", body="Line 7 has no date.", url="?template=7")
    page.clock.install()
    stop_clock(page)

    tab.open(TIMED, page=page)

    expect(shown(page, "title")).to_have_text(["Broken", "Saved"])  # as anywhere, errors are first
    expect(shown(page, "body")).to_have_text("Line 7 has no date.")
    expect(page.get_by_role("link", name="Broken")).to_have_attribute("href", re.compile("template=7"))
    page.clock.run_for(11_000)
    expect(shown(page, "title")).to_have_text(["Broken"])  # the other has had its time
    shown(page, "close").click()
    page.reload()
    tab.notice(title="New")
    expect(shown(page, "title")).to_have_text(["New"])


def test_notice_that_no_page_has_shown_is_not_kept_for_long(tab: Tab) -> None:
    """After a minute it is no longer of use to anybody, and the tab's storage does not have it, on whatever page."""
    page = tab.open("No element", before=lambda page: page.clock.install())
    hear(tab, page, title="Saved")
    assert "Saved" in kept(page)
    page.clock.run_for(40_000)
    tab.open("None here, either", page=page)
    assert "Saved" in kept(page)

    page.clock.run_for(62_000)

    assert "Saved" not in kept(page)


def test_notice_that_no_page_has_shown_is_shown_once_though_it_is_received_again(tab: Tab) -> None:
    """A page may be left before the tab has noted its position: the next one hears the notice, and has it already."""
    page = tab.open("No element", tag=CACHED, scripts="script-src 'self'")
    hear(tab, page, title="Saved")
    page.goto(f"http://{tab.server.address}/page/?template=elsewhere")
    page.evaluate("sessionStorage.removeItem('notifications /ws/notifications/')")

    tab.open(TOASTS, tag=CACHED, page=page, scripts="script-src 'self'")
    tab.notice(title="New")

    expect(shown(page, "title")).to_have_text(["Saved", "New"])


def test_page_of_the_back_button_keeps_nothing_that_was_shown(tab_with_cache: Tab) -> None:
    """A page without the element that comes back hears what another has shown meanwhile: that does not come again."""
    tab = tab_with_cache
    page = tab.open("No element")
    page.evaluate("() => void (window.heard = notifications.then((all) => new Promise((go) => all.onUser(go))))")
    tab.open(TOASTS, page=page)
    tab.notice(title="Shown")
    shown(page, "close").click()
    page.go_back(wait_until="commit")  # nothing is loaded
    page.evaluate("heard")

    page.evaluate("localStorage.clear()")  # what the browser has shown: the tab knows by itself
    tab.open(TOASTS, page=page)
    tab.notice(title="New")

    expect(shown(page, "title")).to_have_text(["New"])


def test_notice_that_no_page_has_shown_was_met_elsewhere(tab: Tab) -> None:
    """What the user has read in a list meanwhile, or seen in another tab, does not wait any longer."""
    page = tab.open("No element")
    hear(tab, page, title="Read", inbox={"id": "7", "unread": 1})
    other = tab.open(TOASTS)
    hear(tab, page, title="Seen")
    expect(shown(other, "title")).to_have_text(["Seen"])
    hear(tab, page, action="inbox", payload={"change": "read", "ids": ["7"], "unread": 0})
    other.close()

    tab.open(TOASTS, page=page)
    tab.notice(title="New")

    expect(shown(page, "title")).to_have_text(["New"])


def test_notices_are_not_for_another_user(tab: Tab) -> None:
    """Whoever logs in next in this tab is shown nothing of the user before, and finds nothing of it in the storage."""
    page = tab.open(KEEPING)
    tab.notice(title="For the first", level="error")
    expect(shown(page, "toast")).to_have_count(1)
    other = tab.site.add_user()
    name, _, value = other.cookie.partition("=")
    tab.context.add_cookies([{"name": name, "value": value, "url": f"http://{tab.server.address}"}])

    page.goto(page_url(tab, KEEPING))
    page.evaluate("notifications")
    tab.publish(f"user:{other.pk}", action="notice", title="For the second")

    expect(shown(page, "title")).to_have_text(["For the second"])
    assert "For the first" not in kept(page)


def test_nothing_is_kept_after_a_logout(tab: Tab) -> None:
    """When the session has ended, notices that are on the screen stay there, and go nowhere."""
    page = tab.open(KEEPING)
    tab.notice(title="Secret", level="error")
    expect(shown(page, "toast")).to_have_count(1)
    assert "Secret" in kept(page)

    page.evaluate(
        """async () => {
            const connection = await notifications;
            const closed = new Promise((go) => connection.addEventListener("state", ({ detail }) => {
                if (detail.state === "closed") go();
            }));
            await fetch("/log_out/", { method: "POST" });
            await closed;
        }"""
    )

    expect(shown(page, "title")).to_have_text(["Secret"])
    assert kept(page) == ""
    page.reload()
    assert kept(page) == ""


def test_page_of_the_back_button_shows_what_is_left(tab_with_cache: Tab) -> None:
    """A page that the browser has kept shows what the pages after it have left: nothing that was closed there."""
    tab = tab_with_cache
    page = tab.open(KEEPING)
    for title in ("One", "Two"):
        tab.notice(title=title)
    expect(shown(page, "title")).to_have_text(["One", "Two"])
    page.evaluate("addEventListener('pageshow', ({ persisted }) => (window.kept = persisted))")

    page.goto(page_url(tab, KEEPING) + "&another=entry")  # of the history: the same address again would be none
    expect(shown(page, "title")).to_have_text(["One", "Two"])
    shown(page, "close").first.click()
    tab.notice(title="Three")
    tab.notice(title="Four")
    expect(shown(page, "title")).to_have_text(["Two", "Three", "Four"])
    shown(page, "close").nth(1).click()
    expect(shown(page, "title")).to_have_text(["Two", "Four"])
    page.go_back(wait_until="commit")

    expect(shown(page, "title")).to_have_text(["Two", "Four"])
    tab.notice(title="Five")
    expect(shown(page, "title")).to_have_text(["Two", "Four", "Five"])
    assert page.evaluate("window.kept")


def test_window_that_a_page_opens_repeats_nothing(tab: Tab) -> None:
    """A new window begins with a copy of its opener's storage; the notices stay in the tab in which they are."""
    page = tab.open(KEEPING)
    tab.notice(title="One", level="error")
    expect(shown(page, "title")).to_have_text(["One"])

    with page.expect_popup() as popup:
        page.evaluate("url => void window.open(url)", page.url)
    opened = popup.value
    opened.wait_for_load_state()
    opened.evaluate("notifications")
    tab.notice(title="Two")

    expect(shown(opened, "title")).to_have_text(["Two"])
    expect(shown(page, "title")).to_have_text(["One", "Two"])
    opened.reload()
    page.reload()
    expect(shown(opened, "title")).to_have_text(["Two"])
    expect(shown(page, "title")).to_have_text(["One", "Two"])


def test_part_of_the_page_that_is_replaced_keeps_its_notices(tab: Tab) -> None:
    """Scripts that replace the page's body with another one, as htmx and Turbo do, lose no notice and repeat none."""
    page = tab.open(KEEPING)
    tab.notice(title="One")
    expect(shown(page, "title")).to_have_text(["One"])

    for _ in range(2):
        page.evaluate(
            """() => {
                const body = document.createElement("main");
                body.append(document.createElement("h1"), document.createElement("notification-toasts"));
                body.lastChild.setAttribute("timeout", 0);
                document.querySelector("main").replaceWith(body);
            }"""
        )
        expect(shown(page, "title")).to_have_text(["One"])
    shown(page, "close").click()
    tab.notice(title="Two")

    expect(shown(page, "title")).to_have_text(["Two"])


def test_page_that_repeats_itself_is_heard_once(tab: Tab) -> None:
    """What a page shows by itself each time it is opened does not pile up from page to page."""
    page = tab.open(KEEPING)
    say = "document.querySelector('notification-toasts').show({ level: 'error', title: 'Your trial has ended' })"
    page.evaluate(say)

    for _ in range(2):
        page.reload()
        expect(shown(page, "title")).to_have_text(["Your trial has ended"])
        page.evaluate(say)

    expect(shown(page, "title")).to_have_text(["Your trial has ended"])


def test_page_shows_messages_of_other_topics(tab: Tab) -> None:
    """What a page shows by itself is shown, also a message whose id says nothing of the user's topic."""
    page = tab.open(KEEPING)
    tab.notice(title="One")
    expect(shown(page, "title")).to_have_text(["One"])
    epoch = json.loads(kept(page))["last"][f"user:{tab.user.pk}"].partition("-")[0]

    page.evaluate(
        "(id) => document.querySelector('notification-toasts').show({ title: 'Order', _meta: { id } })",
        f"{epoch}-1",
    )
    tab.notice(title="Two")

    expect(shown(page, "title")).to_have_text(["One", "Order", "Two"])


def test_what_goes_along_is_bounded_and_only_text(tab: Tab) -> None:
    """The storage of a tab is small, and whatever stands in it is shown as text, or not at all."""
    page = tab.open('<notification-toasts timeout="0" max="99"></notification-toasts>')
    for n in range(25):
        tab.notice(title=f"{n} {HOSTILE}", body="x" * 50_000, level="error")
    expect(shown(page, "toast")).to_have_count(25)
    page.reload()
    expect(shown(page, "toast")).to_have_count(20)
    expect(shown(page, "title").last).to_have_text(f"24 {HOSTILE}")
    assert len(kept(page)) < 100_000

    page.evaluate(
        """() => {
            const name = "notifications toasts /ws/notifications/";
            const found = JSON.parse(sessionStorage.getItem(name));
            found.notices = [
                null, 7, { title: "Timeless" }, { title: ["no text"], left: null, level: "toString" },
                { title: "Bad address", left: null, level: "error", url: "javascript:window.broken=1" },
            ];
            window.addEventListener("pagehide", () => sessionStorage.setItem(name, JSON.stringify(found)));
        }"""
    )
    page.reload()

    expect(shown(page, "title")).to_have_text(["Bad address", ""])
    assert page.locator("notification-toasts").locator("a, img, script").count() == 0
    assert page.evaluate("window.broken") is None


@pytest.mark.parametrize("there", ["throw new Error('not allowed')", "return '{'", "return '{\"user\": 7}'"])
def test_storage_that_does_not_work_stops_nothing(tab: Tab, there: str) -> None:
    """Where the storage is forbidden, or holds nonsense, notices are shown on their page."""
    page = tab.open(
        KEEPING, before=lambda page: page.add_init_script(f"Storage.prototype.getItem = () => {{ {there} }}")
    )

    tab.notice(title="One")

    expect(shown(page, "title")).to_have_text(["One"])
    page.reload()
    tab.notice(title="Two")
    expect(shown(page, "title").last).to_have_text("Two")


# Dialogs

DIALOG = """<dialog id="dialog">
    <button id="ok">OK</button><dialog id="inner"><button>Inner</button></dialog>
</dialog>"""
OPEN = """id => {
    const dialog = document.getElementById(id);
    Object.assign(dialog.style, { width: "80vw", height: "80vh" });
    dialog.showModal();
}"""
SHADOW = """() => {
    const holder = document.getElementById("holder");
    holder.attachShadow({ mode: "open" });
    const dialog = document.createElement("dialog");
    dialog.append(document.createElement("button"), document.createElement("slot"));
    holder.shadowRoot.append(dialog);
    dialog.showModal();
}"""


def expect_usable(page: Page) -> None:
    """See that nothing lies over the notices or makes them inert: their button takes the focus and the pointer."""
    close = shown(page, "close").last
    close.focus()
    assert close.evaluate("(close) => close.getRootNode().activeElement === close")
    count = shown(page, "toast").count()
    close.click()  # fails where something else would get the click
    expect(shown(page, "toast")).to_have_count(count - 1)


@pytest.mark.parametrize("popover", [True, False], ids=["popover", "no popover"])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("dialogs", [["dialog"], ["dialog", "inner"]], ids=["one", "nested"])
def test_notice_can_be_used_while_a_modal_dialog_is_open(
    tab: Tab, dialogs: list[str], when: str, popover: bool
) -> None:
    """A modal dialog that was opened before or after the notice lies behind it, and does not keep it from anybody."""
    page = tab.open(DIALOG + TOASTS)
    if not popover:
        page.evaluate("delete HTMLElement.prototype.showPopover")
    else:  # such a dialog is the containing block of what is fixed in it, but not of what is in the top layer
        page.evaluate("document.getElementById('dialog').style.transform = 'scale(0.99)'")
    expect(page.locator("[popover]")).to_have_count(0)

    if when == "after":
        tab.notice(title="Before")
        expect(shown(page, "toast")).to_have_count(1)
    for dialog in dialogs:
        page.evaluate(OPEN, dialog)
    if when == "before":
        tab.notice(title="Meanwhile")

    expect(shown(page, "title")).to_have_text(["Before" if when == "after" else "Meanwhile"])
    at, size = box(shown(page, "toast")), page.viewport_size
    assert size
    assert at["x"] + at["width"] > size["width"] - 40  # the window's corner, not the dialog's
    assert at["y"] + at["height"] > size["height"] - 40
    expect_usable(page)
    assert page.evaluate("document.querySelector('notification-toasts').parentElement.localName") == "main"
    assert page.evaluate("document.getElementById('dialog').open")


def test_escape_takes_the_notice_and_not_the_dialog(tab: Tab) -> None:
    """Whoever has the focus in a notice over a dialog dismisses one after the other."""
    page = tab.open(DIALOG + TOASTS)
    page.evaluate(OPEN, "dialog")
    tab.notice(title="Meanwhile")
    shown(page, "close").focus()

    page.keyboard.press("Escape")

    expect(shown(page, "toast")).to_have_count(0)
    assert page.evaluate("document.getElementById('dialog').open")
    page.keyboard.press("Escape")
    assert not page.evaluate("document.getElementById('dialog').open")


@pytest.mark.parametrize("end", ["dialog.close()", "dialog.remove()", "dialog.replaceChildren()"])
def test_notice_outlives_its_dialog(tab: Tab, end: str) -> None:
    """When the dialog closes, or is thrown away with all that is in it, notices are where they were before it."""
    page = tab.open(f"<section>{TOASTS}</section>{DIALOG}")
    page.evaluate(OPEN, "dialog")
    tab.notice(title="One")
    expect(shown(page, "toast")).to_have_count(1)
    assert page.evaluate("document.querySelector('notification-toasts').parentElement.id") == "dialog"

    page.evaluate(f"const dialog = document.getElementById('dialog'); {end}; dialog.remove()")

    expect(page.locator("section > notification-toasts")).to_have_count(1)
    tab.notice(title="Two")
    expect(shown(page, "title")).to_have_text(["One", "Two"])
    assert page.evaluate("document.querySelector('section').childNodes.length") == 1
    expect_usable(page)


def test_dialog_that_is_displayed_after_it_was_opened(tab: Tab) -> None:
    """A script may display a dialog a frame after showModal, for a transition: it has the notices from then on."""
    page = tab.open(DIALOG + TOASTS)
    page.evaluate("document.getElementById('dialog').style.display = 'none'")
    tab.notice(title="One")
    tab.notice(title="Two")
    expect(shown(page, "toast")).to_have_count(2)

    for _ in range(2):  # when it is opened again, too
        page.evaluate(OPEN, "dialog")
        expect(page.locator("main > notification-toasts")).to_have_count(1)  # where they are seen meanwhile
        page.evaluate("document.getElementById('dialog').style.display = 'block'")
        expect(page.locator("#dialog > notification-toasts")).to_have_count(1)
        expect_usable(page)
        page.evaluate("const dialog = document.getElementById('dialog'); dialog.style.display = 'none'; dialog.close()")


def test_dialog_in_a_popover_that_is_hidden(tab: Tab) -> None:
    """A modal dialog that is hidden with the popover around it, and is still open, does not hide the notices."""
    page = tab.open(f'<div id="around" popover="manual">{DIALOG}</div>{TOASTS}')
    page.evaluate("document.getElementById('around').showPopover()")
    page.evaluate(OPEN, "dialog")
    tab.notice(title="Meanwhile")
    expect(page.locator("#dialog > notification-toasts")).to_have_count(1)

    page.evaluate("document.getElementById('around').hidePopover()")
    expect(shown(page, "toast")).to_be_visible()

    page.evaluate("document.getElementById('around').showPopover()")
    expect(page.locator("#dialog > notification-toasts")).to_have_count(1)
    expect_usable(page)


def test_dialog_in_a_shadow(tab: Tab) -> None:
    """The dialogs of web components are in their shadows; what is put into the component is slotted into the dialog."""
    page = tab.open(f'<div id="holder"></div>{TOASTS}')
    page.evaluate(SHADOW)

    tab.notice(title="Meanwhile")

    expect(shown(page, "toast")).to_have_count(1)
    expect_usable(page)
    assert page.evaluate("document.querySelector('notification-toasts').parentElement.localName") == "main"


def test_dialog_that_traps_the_focus(tab: Tab) -> None:
    """A dialog whose script brings the focus back when it leaves takes that of a notice for its own."""
    page = tab.open(DIALOG + TOASTS)
    page.evaluate(
        """() => document.addEventListener("focusin", ({ target }) => {
            if (!document.getElementById("dialog").contains(target)) document.getElementById("ok").focus();
        })"""
    )
    page.evaluate(OPEN, "dialog")
    tab.notice(title="One")
    tab.notice(title="Two")
    expect(shown(page, "toast")).to_have_count(2)

    page.get_by_role("button", name="OK").focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")

    expect(shown(page, "title")).to_have_text(["Two"])
    expect_usable(page)


POPOVERS = """<dialog id="popover" popover><button autofocus>OK</button></dialog>
<div id="manual" popover="manual"><button>OK</button></div>
<dialog id="modal"><button>OK</button><div id="menu" popover><button>OK</button></div></dialog>"""
COVERING = {"width": "100vw", "height": "100vh", "maxWidth": "none", "maxHeight": "none", "border": "0", "padding": "0"}


@pytest.mark.parametrize("opened", [["popover"], ["manual"], ["modal", "menu"]], ids=lambda opened: "-".join(opened))
def test_popover_does_not_hide_notices(tab: Tab, opened: list[str]) -> None:
    """What showPopover shows, alone or in a modal dialog, lies behind notices that came before or after it."""
    page = tab.open(POPOVERS + TOASTS)
    tab.notice(title="Before")
    expect(shown(page, "toast")).to_have_count(1)

    for name in opened:
        page.evaluate(
            """([name, style]) => {
                const element = document.getElementById(name);
                Object.assign(element.style, style);
                name === "modal" ? element.showModal() : element.showPopover();
            }""",
            [name, COVERING],
        )
    expect_usable(page)
    page.evaluate("(name) => document.getElementById(name).showPopover?.()", opened[-1])  # a click outside closes some
    tab.notice(title="Meanwhile")
    expect(shown(page, "title")).to_have_text(["Meanwhile"])
    expect_usable(page)

    page.evaluate("document.querySelectorAll('#popover, #manual, #menu').forEach((each) => each.hidePopover())")
    page.evaluate("document.getElementById('modal').close()")
    tab.notice(title="After")
    expect(shown(page, "title")).to_have_text(["After"])
    expect(page.locator("main > notification-toasts:not([popover])")).to_have_count(1)


@pytest.mark.parametrize("shown_full_screen", ["section", "video"])
def test_notice_while_something_is_full_screen(tab: Tab, shown_full_screen: str) -> None:
    """A part of the page that fills the screen does not hide notices; a film does, and they are there after it."""
    page = tab.open(f'<section id="film"><h2>Film</h2></section><video id="video"></video>{TOASTS}')
    tab.notice(title="Before")
    tab.notice(title="One more")
    expect(shown(page, "toast")).to_have_count(2)
    page.evaluate("name => document.querySelector(name).requestFullscreen()", shown_full_screen)
    page.wait_for_function("document.fullscreenElement !== null")

    if shown_full_screen == "section":
        expect_usable(page)
    page.evaluate("document.exitFullscreen()")
    page.wait_for_function("document.fullscreenElement === null")

    expect(page.locator("main > notification-toasts")).to_have_count(1)
    expect_usable(page)


@pytest.mark.parametrize("level", ["info", "error"])
@pytest.mark.parametrize("width", [600, 1100])
def test_newest_notice_is_seen_and_the_page_too(tab: Tab, width: int, level: str) -> None:
    """Long notices leave a third of the window free; the newest is in sight, and one can scroll to the others."""
    page = tab.open(TOASTS)
    page.set_viewport_size({"width": width, "height": 700})
    for other in ("info", "error", "info", "error"):
        tab.notice(level=other, title="word " * 99, body="word " * 99)
    expect(shown(page, "toast")).to_have_count(4)

    tab.notice(level=level, title="The newest", body="word " * 99)

    newest = shown(page, "toast").filter(has_text="The newest")
    expect(newest).to_be_in_viewport(ratio=1)
    toasts = page.locator("notification-toasts")
    assert toasts.bounding_box()["y"] > 700 / 3
    oldest = shown(page, "toast").first
    expect(oldest).not_to_be_in_viewport(ratio=0.5)
    newest.hover()
    page.mouse.wheel(0, -9_000)
    expect(oldest).to_be_in_viewport(ratio=1)
    assert page.evaluate("scrollX + scrollY") == 0


@pytest.mark.parametrize(
    "size", [(390, 844), (320, 640), (844, 390)], ids=["phone", "small phone", "phone on its side"]
)
def test_notices_leave_room_on_a_phone(tab: Tab, size: tuple[int, int]) -> None:
    """In a small window three notices are shown, or of more the newest two; a button brings the others."""
    page = tab.open(f"<button>Work</button>{KEEPING}")
    page.set_viewport_size({"width": size[0], "height": size[1]})
    more = shown(page, "more")
    titles = page.locator("[part~=title]:visible")
    for n in range(1, 4):
        tab.notice(title=f"Notice {n}", body="More about it", level="error" if n == 2 else "info")
    expect(titles).to_have_text(["Notice 2", "Notice 1", "Notice 3"])
    expect(more).to_be_hidden()

    for n in range(4, 6):
        tab.notice(title=f"Notice {n}", body="More about it")

    expect(titles).to_have_text(["Notice 4", "Notice 5"])
    expect(more).to_have_text("3 more")
    if size[0] < size[1]:
        assert box(titles.first)["y"] > size[1] / 2
    more.click()
    expect(titles).to_have_text(["Notice 2", "Notice 1", "Notice 3", "Notice 4", "Notice 5"])
    expect(more).to_have_text("Show fewer")
    expect(more).to_have_attribute("aria-expanded", "true")
    more.click()
    expect(titles).to_have_text(["Notice 4", "Notice 5"])
    page.get_by_role("button", name="Work").focus()
    shown(page, "close").last.focus()
    page.keyboard.press("Escape")
    expect(titles).to_have_text(["Notice 3", "Notice 4"])
    expect(shown(page, "close").last).to_be_focused()
    page.keyboard.press("Escape")
    expect(titles).to_have_text(["Notice 2", "Notice 1", "Notice 3"])
    expect(more).to_be_hidden()
    page.set_viewport_size({"width": 1100, "height": 900})
    tab.notice(title="Notice 6")
    expect(titles).to_have_text(["Notice 2", "Notice 1", "Notice 3", "Notice 6"])


def test_notice_that_is_folded_up_keeps_its_time(tab: Tab) -> None:
    """What waits behind the button on a phone does not run out unseen."""
    page = tab.open(TIMED, before=lambda page: page.clock.install())
    page.set_viewport_size({"width": 390, "height": 844})
    stop_clock(page)
    titles = page.locator("[part~=title]:visible")
    for n in range(1, 6):
        tab.notice(title=f"Notice {n}")
        expect(titles.last).to_have_text(f"Notice {n}")
    expect(titles).to_have_text(["Notice 4", "Notice 5"])

    page.clock.run_for(10_500)
    expect(titles).to_have_text(["Notice 1", "Notice 2", "Notice 3"])
    page.clock.run_for(8_500)
    expect(titles).to_have_text(["Notice 1", "Notice 2", "Notice 3"])
    page.clock.run_for(2_000)

    expect(titles).to_have_count(0)


def test_number_of_notices_is_bounded(tab: Tab) -> None:
    """The oldest goes when there are too many; an error goes only when there is nothing else."""
    page = tab.open('<notification-toasts max="3" timeout="0"></notification-toasts>')

    tab.notice(title="Broken", level="error")
    for n in range(9):
        tab.notice(title=f"Notice {n}")

    expect(shown(page, "title")).to_have_text(["Broken", "Notice 7", "Notice 8"])


def test_end_of_an_upload_is_told_if_wanted(tab: Tab) -> None:
    """With ``uploads`` the upload that ends on this page is a notice, once."""
    upload = tab.user.new_upload()
    page = tab.open(f"{{% upload_progress '{upload}' label='spring.jpg' %}}{TOASTS}")
    tab.progress(upload, 99)
    expect(bar(page)).to_have_attribute("aria-valuenow", "99")

    tab.progress(upload, 100, status="completed", stage="completed")
    tab.complete(upload, "A cat")

    expect(shown(page, "message")).to_have_text("A cat")
    expect(shown(page, "title")).to_have_text(["spring.jpg – Completed"])


def test_announcements(tab: Tab) -> None:
    """Errors are told at once, others when there is time."""
    page = tab.open(TOASTS)
    tab.notice(title="Fine")
    tab.notice(title="Broken", level="error")

    expect(page.locator("[aria-live=polite]")).to_contain_text("Information: Fine")
    expect(page.locator("[aria-live=assertive]")).to_contain_text("Error: Broken")
    expect(page.get_by_role("region", name="Notices")).to_be_visible()


# How it looks


TEXT_EDGE = """(element, edge) => {
    const range = document.createRange();
    range.selectNodeContents(element);
    return range.getBoundingClientRect()[edge];
}"""


def box(locator: Locator) -> dict[str, Any]:
    found = locator.bounding_box()
    assert found
    return dict(found)


@pytest.mark.parametrize("direction", ["ltr", "rtl"])
def test_direction_of_the_page(tab: Tab, direction: str) -> None:
    """The bar grows from where lines begin, and notices stand where they end."""
    page = tab.open(f"{{% upload_progress 'x' percent=40 status='failed' %}}{TOASTS}", dir=direction)
    tab.notice(title="Hello", body="All is well.")
    ground, fill, toast = box(bar(page)), box(shown(page, "fill")), box(shown(page, "toast"))
    middle = page.viewport_size["width"] / 2

    assert fill["width"] == pytest.approx(ground["width"] * 0.4, abs=2)
    at_left = fill["x"] == pytest.approx(ground["x"], abs=2)
    assert at_left == (direction == "ltr")
    assert (toast["x"] > middle) == (direction == "ltr")
    edge = "left" if direction == "ltr" else "right"
    title, body = (shown(page, part).evaluate(TEXT_EDGE, edge) for part in ("title", "body"))
    assert title == pytest.approx(body, abs=2)


@pytest.mark.parametrize("motion", ["reduce", "no-preference"])
def test_reduced_motion(tab: Tab, motion: Any) -> None:
    """Nothing moves for those who do not want that."""
    page = tab.open(f"{{% upload_progress 'x' percent=40 status='failed' %}}{TOASTS}")
    page.emulate_media(reduced_motion=motion)
    tab.notice(title="Hello")
    still = motion == "reduce"

    expect(shown(page, "fill")).to_have_css("transition-duration", "0s" if still else "0.25s")
    expect(shown(page, "toast")).to_have_css("animation-name", "none" if still else "arrive")


def test_colours_follow_the_page(tab: Tab) -> None:
    """In the dark scheme of a page that has one, the colours are the light ones."""
    page = tab.open(f"<meta name='color-scheme' content='light dark'>{{% upload_progress 'x' percent=40 %}}{TOASTS}")
    tab.notice(title="Hello")
    light = shown(page, "toast").evaluate("(toast) => getComputedStyle(toast).backgroundColor")

    page.emulate_media(color_scheme="dark")

    expect(shown(page, "fill")).to_have_css("background-color", "rgb(142, 166, 255)")
    assert shown(page, "toast").evaluate("(toast) => getComputedStyle(toast).backgroundColor") != light


def test_notices_are_not_printed(tab: Tab) -> None:
    """A notice would be on each sheet of what is printed, for whoever reads it."""
    page = tab.open(TOASTS + DIALOG)
    tab.notice(title="Your payslip is ready")
    expect(shown(page, "toast")).to_be_visible()

    for over in ("the page", "a dialog"):
        if over == "a dialog":
            page.evaluate(OPEN, "dialog")
            expect(page.locator("#dialog > notification-toasts")).to_have_count(1)
        page.emulate_media(media="print")
        expect(shown(page, "toast")).to_be_hidden()
        page.emulate_media(media="screen")
        expect(shown(page, "toast")).to_be_visible()


@pytest.mark.parametrize("width", [1100, 390, 320])
@pytest.mark.parametrize("direction", ["ltr", "rtl"])
def test_margins_are_equal(tab_with_scrollbars: Tab, width: int, direction: str) -> None:
    """Where scrollbars take room, a notice has its margin beside them, and on a phone the same on both sides."""
    tab = tab_with_scrollbars
    page = tab.open(KEEPING, dir=direction)
    page.set_viewport_size({"width": width, "height": 700})
    page.evaluate("document.querySelector('main').style.minHeight = '3000px'")
    for level in ("info", "success", "warning", "error", "error", "info"):
        tab.notice(title="word " * 9, body="word " * 40, level=level)
    expect(shown(page, "title")).to_have_count(5)
    room = page.evaluate("document.documentElement.clientWidth")
    assert room < width  # the scrollbar is there

    at = box(page.locator("[part~=toast]:visible").last)
    before, after = at["x"], room - at["x"] - at["width"]

    assert (before if direction == "rtl" else after) == pytest.approx(16, abs=1)
    if width < 500:
        assert before == pytest.approx(after, abs=1)
    assert page.evaluate("document.documentElement.scrollWidth") == room


def test_bars_in_a_row_do_not_touch(tab: Tab) -> None:
    """Between two bars one below the other there is room, and the page's own styles say how much."""
    page = tab.open("{% upload_progress 'a' status='failed' %}{% upload_progress 'b' status='failed' %}")
    first, second = (box(each) for each in page.locator("upload-progress").all())
    assert second["y"] - first["y"] - first["height"] >= 8

    page.evaluate("for (const each of document.querySelectorAll('upload-progress')) each.style.margin = 0")

    first, second = (box(each) for each in page.locator("upload-progress").all())
    assert second["y"] - first["y"] - first["height"] == pytest.approx(0, abs=0.5)


LEVELS = ["info", "success", "warning", "error"]
COLOURS = "(element) => [null, '::before'].map((of) => getComputedStyle(element, of).backgroundColor)"
SHAPES = "(element) => [null, '::before'].map((of) => getComputedStyle(element, of).clipPath).join()"


@pytest.mark.parametrize("colours", ["none", "active"])
def test_levels_have_shapes_of_their_own(tab: Tab, colours: Any) -> None:
    """The levels can be distinguished without colours: each icon has its own shape, also in forced colours."""
    page = tab.open(KEEPING)
    page.emulate_media(forced_colors=colours, reduced_motion="reduce")
    for level in LEVELS:
        tab.notice(title=f"The {level}", level=level)
    expect(shown(page, "toast")).to_have_count(4)

    icons = shown(page, "icon").all()

    assert len({icon.evaluate(SHAPES) for icon in icons}) == 4
    for icon in icons:
        ground, sign = icon.evaluate(COLOURS)
        assert ground != sign
        assert "none" not in icon.evaluate(SHAPES)
        assert icon.text_content() == ""
    # One width on all sides: a wide border tapers into the round corners.
    assert shown(page, "toast").first.evaluate("(toast) => getComputedStyle(toast).borderWidth") == "1px"


@pytest.mark.parametrize("width", [1100, 390, 320])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(tab: Tab, scheme: Any, width: int) -> None:
    """Bars in every state and notices of every level break no rule of accessibility, light and dark, on a phone too."""
    uploads = [
        "<meta name='color-scheme' content='light dark'>",
        "{% upload_progress 'a' percent=40 message='Frame 40' label='spring.jpg' %}",
        "{% upload_progress 'b' status='completed' message='A cat on a sofa' label='summer.jpg' %}",
        "{% upload_progress 'c' status='failed' percent=40 message='No image' %}",
        "{% upload_progress 'd' %}",
    ]
    page = tab.open("".join(uploads) + TOASTS)
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    page.set_viewport_size({"width": width, "height": 700})
    page.evaluate("document.body.style.background = 'Canvas'")  # without one axe takes white
    for level in ("info", "success", "warning", "error"):
        tab.notice(title=f"The {level}", level=level, body="More about it", url="/a")
    expect(shown(page, "toast")).to_have_count(4)

    assert violations(page) == []
