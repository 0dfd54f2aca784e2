"""Logins, logouts and links where a library puts new pages into the document: real htmx, real Turbo, real Chromium."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Route, WebSocket, expect

from notifications import disconnect_user
from tests.browser.test_elements import UNANSWERED, pytestmark, shown
from tests.conftest import point_to
from tests.demo_browser import MILLISECONDS
from tests.processes import LAYERS, Site, User, WebServer
from tests.site.test_protocol import node_module

__all__ = ["pytestmark"]  # as there

LIBRARIES = {
    "htmx 2": "htmx.org/dist/htmx.js",
    "htmx 4": "htmx-4/dist/htmx.js",
    "turbo": "@hotwired/turbo/dist/turbo.es2017-umd.js",
}
ROUTER = """
async function go(url, options, push = true) {
  const answer = await fetch(url, options);
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  if (push) history.pushState(null, "", answer.url);
  document.body.replaceWith(document.adoptNode(page.body));
}
addEventListener("click", (event) => {
  const link = event.target.closest("a");
  if (!link) return;
  event.preventDefault();
  go(link.href);
});
addEventListener("submit", (event) => {
  event.preventDefault();
  go(event.target.action, { method: "POST", body: new URLSearchParams(new FormData(event.target)) });
});
addEventListener("popstate", () => go(location.href, {}, false));
"""
"""What a site may do by itself that replaces its pages and calls ``history.pushState``."""
FORM = """<form method="post" action="/{action}/"><input type="hidden" name="user" value="{user}">
<input type="hidden" name="next" value="{{{{ request.get_full_path }}}}"><button>{label}</button></form>"""
HEAD = '<script src="/lib.js"></script>{tag}'
BODY = """<body hx-boost="true" hx-boost:inherited="true">{tag}<h1>{{% firstof request.user.pk 'nobody' %}}</h1>
<a href="{{{{ request.get_full_path }}}}&amp;again">next</a>{forms}
<notification-toasts timeout="0"></notification-toasts>"""
WITH_DIALOG = """<body hx-boost="true" hx-boost:inherited="true">{tag}<h1>{{% firstof request.user.pk 'nobody' %}}</h1>
<dialog><a href="{{{{ request.get_full_path }}}}&amp;again">next</a></dialog>
<section><notification-toasts timeout="0"></notification-toasts></section>{forms}"""
KEPT_IN_DIALOG = WITH_DIALOG.replace("-toasts timeout", '-toasts id="toasts" data-turbo-permanent hx-preserve timeout')
LASTING = """<body><main hx-boost="true" hx-boost:inherited="true" hx-target="main" hx-target:inherited="main"
hx-select="main" hx-select:inherited="main" hx-swap="outerHTML" hx-swap:inherited="outerHTML">{tag}
<h1>{{% firstof request.user.pk 'nobody' %}}</h1>{forms}</main>
<notification-toasts id="toasts" timeout="0" data-turbo-permanent></notification-toasts>"""
TAG = "{% notifications %}"
BELL = "{{% load notifications_inbox %}}{{% notification_bell %}}"


@pytest.fixture(scope="module")
def swapping(
    redis_program: None, migrated_database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Site, WebServer]]:
    """A site with sessions that a logout ends, and with collected static files."""
    directory = tmp_path_factory.mktemp("swapping")
    settings = {
        "STATIC_ROOT": str(directory / "static"),
        "SESSION_ENGINE": "django.contrib.sessions.backends.db",
        "CHANNEL_LAYER_BACKEND": LAYERS["ours"],
    }
    with Site(directory, migrated_database, settings=settings) as site:
        assert site.run("collectstatic", "--noinput").returncode == 0
        server = site.start_server("uvicorn")
        site.start_listener()
        yield site, server


@dataclass
class Visitor:
    """A browser on pages with a library, and two people who use it."""

    site: Site
    server: WebServer
    context: BrowserContext
    ada: User
    bob: User
    sockets: list[WebSocket] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def open(self, library: str, where: str = "head", body: str = BODY) -> Page:
        """Open a page with the tag in its head or body, as whoever is logged in."""
        page = self.context.new_page()
        page.on("websocket", lambda socket: self.sockets.append(socket))
        script = node_module(LIBRARIES[library]).read_text() if library in LIBRARIES else ROUTER
        page.route("**/lib.js", lambda route: route.fulfill(body=script, content_type="text/javascript"))
        forms = [("log_out", self.ada, "out"), ("log_in", self.ada, "as ada"), ("log_in", self.bob, "as bob")]
        template = HEAD.format(tag=TAG if where == "head" else "") + body.format(
            tag=TAG if where == "body" else "",
            forms="".join(FORM.format(action=action, user=user.pk, label=label) for action, user, label in forms),
        )
        query = {"template": template, "scripts": "script-src 'self'", "connect": "; style-src 'unsafe-inline'"}
        page.goto(f"http://{self.server.address}/page/?{urlencode(query)}")
        page.evaluate("window.loaded = 'once'")
        return page

    def press(self, page: Page, label: str, user: User | None) -> None:
        """Press a button, and wait until the new page is there: it was put into the document that was there."""
        page.get_by_role("button", name=label, exact=True).click()
        expect(page.locator("h1")).to_have_text(str(user.pk) if user else "nobody")
        assert page.evaluate("window.loaded") == "once"

    def follow_link(self, page: Page) -> None:
        """Follow the link, which is another one on each page, and wait until the new page is there."""
        link = page.get_by_role("link", name="next")
        before = link.get_attribute("href") or ""
        link.click()
        expect(link).not_to_have_attribute("href", before)
        assert page.evaluate("window.loaded") == "once"

    def wait_until(self, page: Page, state: str) -> None:
        page.wait_for_function("async (state) => (await window.notifications)?.state === state", arg=state)
        if state == "open" and not self.sockets:  # the browser tells of a socket, perhaps later than the page
            page.wait_for_event("websocket")

    def keep(self, user: User, title: str) -> None:
        """Have the site keep a notice for a user, whoever is logged in here."""
        form = {"title": title, "user": str(user.pk)}
        assert self.context.request.post(f"http://{self.server.address}/keep/", form=form).ok

    def notice(self, user: User, title: str) -> None:
        with self.site.client() as client:
            client.publish(f"user:{user.pk}", json.dumps({"action": "notice", "title": title}))


@pytest.fixture
def visitor(browser: Browser, swapping: tuple[Site, WebServer], settings: Any) -> Iterator[Visitor]:
    site, server = swapping
    point_to(settings, site.redis.url)
    with browser.new_context() as context:
        context.set_default_timeout(MILLISECONDS)
        visitor = Visitor(site, server, context, site.add_user(), site.add_user())
        context.on("console", lambda line: line.type in ("error", "warning") and visitor.complaints.append(line.text))
        context.on("weberror", lambda error: visitor.complaints.append(str(error.error)))
        yield visitor
    assert [text for text in visitor.complaints if UNANSWERED not in text] == []


def log_in(visitor: Visitor, user: User) -> None:
    visitor.context.request.post(f"http://{visitor.server.address}/log_in/", form={"user": str(user.pk)})


ALL = pytest.mark.parametrize(
    ("library", "where"), [(library, where) for library in LIBRARIES for where in ("head", "body")]
)
THREE = [("htmx 2", "head"), ("htmx 4", "body"), ("turbo", "head")]
SOME = pytest.mark.parametrize(("library", "where"), THREE)
OWN_TOO = pytest.mark.parametrize(("library", "where"), [*THREE, ("pushState", "body")])


@ALL
def test_login_after_a_logout(visitor: Visitor, library: str, where: str) -> None:
    """Notices stop with a logout and go on with the next login, without a new document, as often as one likes."""
    log_in(visitor, visitor.ada)
    page = visitor.open(library, where)
    visitor.wait_until(page, "open")

    for title in ("first", "second"):
        visitor.press(page, "out", None)
        visitor.wait_until(page, "closed")
        visitor.notice(visitor.ada, "not to be seen yet")
        sockets = len(visitor.sockets)
        visitor.press(page, "as ada", visitor.ada)
        visitor.wait_until(page, "open")
        assert len(visitor.sockets) <= sockets + 1  # none is opened in vain
        visitor.notice(visitor.ada, title)
        expect(shown(page, "title").last).to_have_text(title)


@OWN_TOO
def test_login_as_somebody_else(visitor: Visitor, library: str, where: str) -> None:
    """The page of the next user shows what is theirs, and nothing of the user before; also without a logout between."""
    log_in(visitor, visitor.ada)
    page = visitor.open(library, where)
    visitor.wait_until(page, "open")
    visitor.notice(visitor.ada, "for ada")
    expect(shown(page, "title")).to_have_text("for ada")

    visitor.press(page, "as bob", visitor.bob)
    visitor.wait_until(page, "open")
    visitor.notice(visitor.ada, "for ada, too late")
    visitor.notice(visitor.bob, "for bob")

    expect(shown(page, "title").last).to_have_text("for bob")
    expect(shown(page, "title")).to_have_text(["for bob"])


@SOME
def test_notices_that_no_page_replaces(visitor: Visitor, library: str, where: str) -> None:
    """Notices outside of what is replaced leave with the logout, and those of the next user go along."""
    log_in(visitor, visitor.ada)
    page = visitor.open(library, where, LASTING)
    visitor.wait_until(page, "open")
    visitor.notice(visitor.ada, "for ada")
    expect(shown(page, "title")).to_have_text("for ada")
    page.evaluate("window.toasts = document.querySelector('notification-toasts')")

    visitor.press(page, "out", None)
    visitor.wait_until(page, "closed")
    expect(shown(page, "toast")).to_have_count(0)
    visitor.press(page, "as bob", visitor.bob)
    visitor.wait_until(page, "open")
    visitor.notice(visitor.bob, "for bob")

    expect(shown(page, "title").last).to_have_text("for bob")
    expect(shown(page, "title")).to_have_text(["for bob"])
    assert page.evaluate("window.toasts === document.querySelector('notification-toasts')")
    page.reload()
    expect(shown(page, "title")).to_have_text(["for bob"])


@OWN_TOO
def test_bell_of_the_next_user(visitor: Visitor, library: str, where: str) -> None:
    """The bell of each page has the number of its user, and is live; nothing of the user before is in its list."""
    log_in(visitor, visitor.ada)
    page = visitor.open(library, where, BODY.replace("<h1>", BELL + "<h1>", 1))
    visitor.wait_until(page, "open")
    visitor.keep(visitor.ada, "for ada")
    expect(shown(page, "number")).to_have_text("1")
    page.locator("notification-bell").click()
    expect(page.locator("[part~=notice] [part=title]")).to_have_text(["for ada"])
    page.keyboard.press("Escape")

    visitor.follow_link(page)
    expect(shown(page, "number")).to_have_text("1")
    visitor.press(page, "as bob", visitor.bob)
    visitor.wait_until(page, "open")
    expect(shown(page, "number")).to_be_hidden()
    visitor.keep(visitor.bob, "for bob")
    visitor.keep(visitor.bob, "for bob, too")

    expect(shown(page, "number")).to_have_text("2")
    page.locator("notification-bell").click()
    expect(page.locator("[part~=notice] [part=title]")).to_have_text(["for bob, too", "for bob"])


@pytest.mark.parametrize(("library", "where"), [("htmx 2", "body"), ("htmx 4", "body"), ("turbo", "head")])
def test_first_login(visitor: Visitor, library: str, where: str) -> None:
    """A document that was opened by nobody, and so without the scripts, is told things after a login."""
    page = visitor.open(library, where)
    assert not visitor.sockets

    visitor.press(page, "as ada", visitor.ada)
    visitor.wait_until(page, "open")
    visitor.notice(visitor.ada, "welcome")

    expect(shown(page, "title")).to_have_text("welcome")


@OWN_TOO
def test_links_keep_the_connection(visitor: Visitor, library: str, where: str) -> None:
    """A page that is put in place of another of the same user goes on with the same socket."""
    log_in(visitor, visitor.ada)
    page = visitor.open(library, where)
    visitor.wait_until(page, "open")
    visitor.notice(visitor.ada, "before")
    expect(shown(page, "title")).to_have_text("before")
    before = len(visitor.sockets)  # on a busy machine the first one may not have been answered in time

    for n in range(3):
        visitor.follow_link(page)
        visitor.notice(visitor.ada, f"notice {n}")
        expect(shown(page, "title").last).to_have_text(f"notice {n}")

    assert len(visitor.sockets) == before


@OWN_TOO
def test_back_button_shows_each_notice_once(visitor: Visitor, library: str, where: str) -> None:
    """A page that the library puts back has the notices that are still shown, and so has the next one."""
    log_in(visitor, visitor.ada)
    page = visitor.open(library, where)
    visitor.wait_until(page, "open")
    first = page.url
    visitor.follow_link(page)
    visitor.notice(visitor.ada, "one")
    expect(shown(page, "title")).to_have_text(["one"])
    before = len(visitor.sockets)  # on a busy machine the first one may not have been answered in time

    page.go_back(wait_until="commit")
    page.wait_for_url(first)
    expect(shown(page, "title")).to_have_text(["one"])
    visitor.notice(visitor.ada, "two")
    expect(shown(page, "title")).to_have_text(["one", "two"])
    page.go_forward(wait_until="commit")

    expect(shown(page, "title")).to_have_text(["one", "two"])
    assert len(visitor.sockets) == before


MORPHED = BODY.replace("<notification", '<dialog id="dialog" data-turbo-permanent></dialog><notification')


@pytest.mark.parametrize("stays", ["", 'id="toasts" data-turbo-permanent'])
def test_refresh_by_morphing(visitor: Visitor, stays: str) -> None:
    """A page that Turbo morphs into its newer self keeps its notices and its connection, also if a dialog is open."""
    log_in(visitor, visitor.ada)
    meta = '<meta name="turbo-refresh-method" content="morph">'
    page = visitor.open("turbo", body=meta + MORPHED.replace(" timeout", f" {stays} timeout"))
    visitor.wait_until(page, "open")
    visitor.notice(visitor.ada, "one")
    expect(shown(page, "title")).to_have_text(["one"])
    before = len(visitor.sockets)  # on a busy machine the first one may not have been answered in time

    for dialog in (False, True):
        if dialog:
            page.evaluate("document.querySelector('dialog').showModal()")
            expect(page.locator("dialog > notification-toasts")).to_have_count(1)
        page.evaluate(
            """() => new Promise((go) => {
                addEventListener("turbo:load", go, { once: true });
                Turbo.visit(location.href, { action: "replace" });
            })"""
        )
        expect(page.locator("notification-toasts")).to_have_count(1)
        expect(shown(page, "title")).to_have_text(["one"])
    visitor.notice(visitor.ada, "two")
    expect(shown(page, "title")).to_have_text(["one", "two"])
    shown(page, "close").first.click()
    expect(shown(page, "title")).to_have_text(["two"])
    assert len(visitor.sockets) == before


def test_previews_and_prefetched_pages(visitor: Visitor) -> None:
    """What Turbo shows out of its cache, and what it fetches before a click, loses nothing and repeats nothing."""
    log_in(visitor, visitor.ada)
    page = visitor.open("turbo")
    visitor.wait_until(page, "open")
    first = page.url
    page.evaluate(
        """() => addEventListener("turbo:render", () =>
            document.documentElement.hasAttribute("data-turbo-preview") && (window.previewed = true))"""
    )
    with page.expect_response(lambda response: "&again" in response.url):
        page.get_by_role("link", name="next").hover()
    visitor.notice(visitor.ada, "one")
    expect(shown(page, "title")).to_have_text(["one"])
    before = len(visitor.sockets)  # on a busy machine the first one may not have been answered in time
    visitor.follow_link(page)
    visitor.notice(visitor.ada, "two")
    expect(shown(page, "title")).to_have_text(["one", "two"])

    with page.expect_event("request", lambda request: request.url == first):
        # Turbo shows no preview where the answer is there before the next frame: it is held until then.
        held: list[Route] = []
        page.route(lambda url: url == first, lambda route: held.append(route))
        page.evaluate("(url) => Turbo.visit(url)", first)
    page.wait_for_function("() => window.previewed")
    held[0].continue_()
    page.wait_for_function("() => !document.documentElement.hasAttribute('data-turbo-preview')")
    visitor.notice(visitor.ada, "three")

    expect(shown(page, "title")).to_have_text(["one", "two", "three"])
    assert len(visitor.sockets) == before


@pytest.mark.parametrize("body", [WITH_DIALOG, KEPT_IN_DIALOG], ids=["", "element stays"])
@pytest.mark.parametrize("library", LIBRARIES)
def test_page_with_an_open_dialog_is_replaced(visitor: Visitor, library: str, body: str) -> None:
    """Notices in a dialog go to the place that they have on the next page, and on this one when it is put back."""
    log_in(visitor, visitor.ada)
    page = visitor.open(library, "body", body)
    visitor.wait_until(page, "open")
    first = page.url
    page.evaluate("document.querySelector('dialog').showModal()")
    visitor.notice(visitor.ada, "one")
    expect(page.locator("dialog > notification-toasts")).to_have_count(1)

    page.get_by_role("link", name="next").click()
    page.wait_for_url(f"{first}&again")
    expect(page.locator("section > notification-toasts")).to_have_count(1)
    expect(shown(page, "title")).to_have_text(["one"])
    page.go_back(wait_until="commit")
    page.wait_for_url(first)

    expect(shown(page, "title")).to_have_text(["one"])
    expect(page.locator(":not(dialog) > notification-toasts")).to_have_count(1)
    visitor.notice(visitor.ada, "two")
    expect(shown(page, "title")).to_have_text(["one", "two"])
    shown(page, "close").last.click()
    expect(shown(page, "title")).to_have_text(["one"])


@SOME
def test_old_session_ends_after_the_new_page_has_come(visitor: Visitor, library: str, where: str) -> None:
    """A slow word of a logout closes the socket when the page of the next login is there: it opens again, once."""
    log_in(visitor, visitor.ada)
    page = visitor.open(library, where)
    visitor.wait_until(page, "open")
    visitor.follow_link(page)
    page.evaluate("notifications.then((connection) => (connection.closed = []))")
    page.evaluate(
        "notifications.then((connection) => connection.addEventListener('state', ({ detail }) =>"
        " detail.state === 'closed' && connection.closed.push(detail.code)))"
    )

    disconnect_user(visitor.ada.pk)  # from here: ten seconds after the page has come, it would be no old session's
    page.wait_for_function("async () => (await notifications).closed.length === 1")
    visitor.wait_until(page, "open")
    disconnect_user(visitor.ada.pk)
    page.wait_for_function("async () => (await notifications).closed.length === 2")

    visitor.wait_until(page, "closed")
