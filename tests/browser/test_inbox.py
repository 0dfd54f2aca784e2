"""The bell and the list of kept notices in a real Chromium, on pages of a site of real processes."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from playwright.sync_api import Browser, Locator, Page, Route, expect

from tests.axe import violations
from tests.browser.test_elements import (
    HOSTILE,
    TOASTS,
    Tab,
    hide,
    pages,
    port,
    pytestmark,
    shown,
    stop_clock,
    tab,
    tab_with_cache,
    wait_until,
)
from tests.demo_browser import SCREENSHOTS
from tests.processes import Site, WebServer
from tests.waiting import scaled, wait_for

__all__ = ["pages", "port", "pytestmark", "tab", "tab_with_cache"]  # as there


@dataclass
class Fake:
    """What a site says of a user's notices where a test wants it to say something rare."""

    tab: Tab
    notices: list[dict[str, Any]] = field(default_factory=list)
    asked: list[dict[str, list[str]]] = field(default_factory=list)
    marked: list[dict[str, list[str]]] = field(default_factory=list)
    status: int = 200
    hold: Callable[[], object] | None = None
    """Called once between the moment at which an answer is made and that at which it is sent."""
    ids: Iterator[int] = field(default_factory=lambda: count(1))

    def add(self, **more: Any) -> dict[str, Any]:
        notice = {
            "id": str(next(self.ids)), "level": "info", "title": "Title", "body": "", "url": "", "group": "",
            "actor": None, "target": None, "timestamp": "2026-01-01T00:00:00Z",
            "seen": False, "read": False, "archived": False, **more,
        }  # fmt: skip
        self.notices.insert(0, notice)
        return notice

    @property
    def unread(self) -> int:
        return min(100, sum(not notice["read"] and not notice["archived"] for notice in self.notices))

    def tell(self, notice: dict[str, Any]) -> None:
        kept = {"id": notice["id"], "unread": self.unread, "group": notice["group"], "actor": None, "target": None}
        message = {name: notice[name] for name in ("level", "title", "body", "url", "timestamp")}
        self.tab.notice(**message, inbox=kept)

    def change(self, change: str | None, ids: list[str] | None = None, until: str | None = None) -> None:
        for notice in self.notices:
            if (ids is not None and notice["id"] in ids) or (until and int(notice["id"]) <= int(until)):
                if change in ("read", "unread"):
                    notice["read"] = change == "read"
                notice["archived"] |= change == "archived"
                notice["seen"] = True
        payload = {"unread": self.unread, "change": change, "ids": ids, "until": until}
        self.tab.publish(f"user:{self.tab.user.pk}", action="inbox", payload=payload, timestamp="2026-01-01T00:00:00Z")

    def answer(self, route: Route) -> None:
        request = route.request
        if self.status != 200:
            return route.fulfill(status=self.status, json={"error": "no"})
        if request.method == "POST":
            form = parse_qs(request.post_data or "")
            self.marked.append(form)
            self.change(form["change"][0], form.get("id"), (form.get("until") or [None])[0])
            return route.fulfill(json={"unread": self.unread})
        query = parse_qs(urlsplit(request.url).query)
        self.asked.append(query)
        before, limit = int((query.get("before") or ["999"])[0]), int(query["limit"][0])
        there = [each for each in self.notices if int(each["id"]) < before and not each["archived"]]
        following = there[limit - 1]["id"] if len(there) > limit else None
        answer = {"notices": [dict(each) for each in there[:limit]], "unread": self.unread, "next": following}
        hold, self.hold = self.hold, None
        if hold:
            hold()
        return route.fulfill(json=answer)

    def tag(self, element: str, since: str | None = None, unread: object = None) -> str:
        """Return an element as the tag renders it, after the position of the page was taken."""
        since = "{{ t.since }}" if since is None else since
        return (
            f'<{element} src="/fake/notices/" mark-url="/fake/mark/" page-url="/fake/" csrf-token="token" '
            f'user="user:{self.tab.user.pk}" since="{since}" unread="{self.unread if unread is None else unread}">'
            f'<a href="/fake/">Notices</a></{element}>'
        )

    def open(
        self,
        element: str = "notification-bell",
        *,
        since: str | None = None,
        unread: object = None,
        head: str = "",
        more: str = "",
        **options: Any,
    ) -> Page:
        source = """src="{% static 'notifications/inbox.js' %}" nonce="{{ request.csp_nonce }}" """
        return self.tab.open(
            "{% load static %}{% topic 'user' request.user.pk as t %}"
            + head
            + self.tag(element, since, unread)
            + more
            + f'<script type="module" {source}></script>',
            before=lambda page: page.route("**/fake/*/**", self.answer),
            **options,
        )


@pytest.fixture
def fake(tab: Tab) -> Fake:
    return Fake(tab)


def bell(page: Page) -> Locator:
    return page.locator("notification-bell").get_by_role("button", name=re.compile("^Notices"))


def rows(page: Page) -> Locator:
    return shown(page, "notice")


def titles(page: Page) -> Locator:
    return page.locator("[part~=notice] [part=title]")


def dialog(page: Page) -> Locator:
    return page.get_by_role("dialog", name="Notices")


def open_list(page: Page) -> None:
    bell(page).click()
    expect(dialog(page)).to_be_focused()


# The number


def test_number_is_live(fake: Fake) -> None:
    """The bell has the number of the page, then that of each message, as a name that can be read out; 100 is "99+"."""
    fake.add()
    page = fake.open()
    expect(bell(page)).to_have_accessible_name("Notices, 1 unread")
    expect(shown(page, "number")).to_have_text("1")

    fake.tell(fake.add(read=True))
    fake.tell(fake.add())
    expect(shown(page, "number")).to_have_text("2")
    fake.notices = [fake.add() for _ in range(120)]
    fake.change(None)
    expect(bell(page)).to_have_accessible_name("Notices, 99+ unread")
    fake.change("read", until="999")

    expect(bell(page)).to_have_accessible_name("Notices")
    expect(shown(page, "number")).to_be_hidden()
    assert fake.asked == []  # nobody has opened the list, and nothing is in doubt


def test_messages_of_before_the_page_are_older_than_its_number(fake: Fake) -> None:
    """A tab that comes from another page is told what was published in between: the number of the page is newer."""
    page = fake.open()
    fake.tell(fake.add())
    expect(shown(page, "number")).to_have_text("1")

    fake.tab.open("elsewhere", tag="", live=False, page=page)
    fake.tell(fake.add())
    with fake.tab.site.client() as client:  # what is not kept yet would be newer than the next page
        wait_for(lambda: client.xlen(f"notifications:history:user:{fake.tab.user.pk}") == 2)
    told = fake.add()
    fake.notices = fake.notices[:1]
    fake.open(more=TOASTS, page=page)
    expect(shown(page, "toast")).to_have_count(2)  # also that of the first page, which could show none

    expect(shown(page, "number")).to_have_text("1")
    fake.notices.append(told)
    fake.tell(told)
    expect(shown(page, "number")).to_have_text("2")
    assert fake.asked == []


@pytest.mark.parametrize("since", ["1-5", ""])
def test_number_in_doubt_is_asked_for(fake: Fake, since: str) -> None:
    """A bell out of a cache, or one that was rendered while Redis was away, asks the site once for the number."""
    fake.add()
    page = fake.open(since=since, unread="7")

    expect(shown(page, "number")).to_have_text("1")
    assert fake.asked == [{"limit": ["1"]}]


def test_gap_is_filled_by_the_site(fake: Fake) -> None:
    """After messages were missed for good, the number is asked for; a tab in the background waits until it is seen."""
    page = fake.open()
    hide(page, True)

    lose_history(fake, page)
    fake.add()
    page.evaluate("new Promise((go) => setTimeout(go, 300))")
    assert fake.asked == []
    hide(page, False)

    expect(shown(page, "number")).to_have_text("1")
    fake.add()  # before it is missed: the page asks once, perhaps in the same moment
    lose_history(fake, page)
    expect(shown(page, "number")).to_have_text("2")


def test_several_bells_and_a_list_share_what_they_know(fake: Fake) -> None:
    """All elements of a page show the same number and list, and ask once."""
    fake.add(title="One")
    page = fake.open("notification-inbox", more=fake.tag("notification-bell") * 2)
    expect(shown(page, "number")).to_have_text(["1", "1"])
    expect(titles(page)).to_have_text(["One"])

    fake.tell(fake.add(title="Two"))
    expect(shown(page, "number")).to_have_text(["2", "2"])
    expect(titles(page)).to_have_text(["Two", "One"])
    page.get_by_role("button", name="Mark all as read").click()

    expect(shown(page, "number")).to_have_count(2)
    expect(page.get_by_role("button", name=re.compile("unread$"))).to_have_count(0)
    assert len(fake.asked) == 1


def test_number_is_announced_where_nothing_else_is(fake: Fake) -> None:
    """A screen reader hears the number when more have come, politely, unless it hears the notice itself."""
    page, silent = (fake.tab.context.new_page() for _ in range(2))
    for each, more in ((page, ""), (silent, TOASTS)):
        each.clock.install()
        fake.open(more=more, page=each)
        stop_clock(each)

    for _ in range(3):
        fake.tell(fake.add())

    for each in (page, silent):
        expect(shown(each, "number")).to_have_text("3")
        expect(each.locator("notification-bell").get_by_role("status")).to_have_text("")
        each.clock.run_for(2_500)
    expect(page.locator("notification-bell").get_by_role("status")).to_have_text("Notices, 3 unread")
    expect(shown(silent, "toast")).to_have_count(3)
    expect(silent.locator("notification-bell").get_by_role("status")).to_have_text("")


def test_many_notices_are_announced_as_one(fake: Fake) -> None:
    """Of what comes into an open list a screen reader hears the first, then the newest and how many more, once."""
    for n in range(21):
        fake.add(title=f"Old {n}", seen=True, read=True)
    page = fake.open()
    open_list(page)
    expect(titles(page)).to_have_count(20)
    page.evaluate(
        """globalThis.heard = [];
        const status = document.querySelector("notification-bell").shadowRoot.querySelector("[part~=status]");
        new MutationObserver(() => heard.push(status.textContent)).observe(status, { childList: true });"""
    )

    for n in range(1, 11):
        fake.tell(fake.add(title=f"New {n}"))
    wait_until(page, lambda: page.evaluate("heard.length") >= 2)
    heard = ["Information: New 1", "Information: New 10, and 8 more"]
    assert page.evaluate("heard") == heard
    wait_until(page, lambda: page.evaluate("heard.at(-1)") == "")
    page.get_by_role("button", name="Show older").click()

    expect(titles(page)).to_have_count(31)
    assert [text for text in page.evaluate("heard") if "New" in text] == heard


# The list


def test_bell_opens_the_list(fake: Fake) -> None:
    """The list has the focus, shows the newest first with level, text and time, and is told as seen once."""
    fake.add(title="Old", timestamp="2020-01-01T00:00:00Z", seen=True, read=True)
    fake.add(title="Import failed", level="error", body="Line 3", url="/page/")
    page = fake.open()

    open_list(page)

    expect(bell(page)).to_have_attribute("aria-expanded", "true")
    expect(titles(page)).to_have_text(["Import failed", "Old"])
    expect(rows(page).first).to_contain_text("Unread. Error: Import failedLine 3")
    expect(rows(page).last).not_to_contain_text("Unread")
    expect(titles(page).first).to_have_css("font-weight", "700")
    expect(titles(page).last).to_have_css("font-weight", "400")
    time = rows(page).last.get_by_role("time")
    expect(time).to_have_attribute("datetime", "2020-01-01T00:00:00.000Z")
    expect(time).to_have_text(re.compile("^[0-9]+ years ago$"))
    wait_until(page, lambda: len(fake.marked) == 1)
    page.keyboard.press("Escape")
    expect(dialog(page)).to_be_hidden()
    expect(bell(page)).to_be_focused()
    open_list(page)
    assert fake.marked == [{"change": ["seen"], "id": ["2"], "csrfmiddlewaretoken": ["token"]}]


def test_ways_out_of_the_list(fake: Fake) -> None:
    """A click elsewhere, another on the bell and the focus that leaves close the list."""
    page = fake.open(more="<button>Elsewhere</button>")
    elsewhere = page.get_by_role("button", name="Elsewhere")

    open_list(page)
    page.mouse.click(900, 600)
    expect(dialog(page)).to_be_hidden()
    open_list(page)
    bell(page).click()
    expect(dialog(page)).to_be_hidden()
    open_list(page)
    for _ in range(2):
        page.keyboard.press("Tab")
    expect(elsewhere).to_be_focused()
    expect(dialog(page)).to_be_hidden()
    expect(page.locator("notification-bell")).not_to_have_attribute("open", "")


@pytest.mark.parametrize("layered", [True, False])
def test_focus_returns_to_a_bell_in_a_shadow_tree(fake: Fake, layered: bool) -> None:
    """A header that is a web component holds the bell in its shadow tree, where the focus comes back to it as well."""
    without = "" if layered else "delete HTMLElement.prototype.popover;"
    page = fake.open(head=f'<script nonce="{{{{ request.csp_nonce }}}}">{without}</script><div id="header"></div>')
    page.evaluate(
        """document.querySelector("#header").attachShadow({ mode: "open" })
        .append(document.querySelector("notification-bell"))"""
    )
    open_list(page)
    page.keyboard.press("Tab")

    page.keyboard.press("Escape")

    expect(dialog(page)).to_be_hidden()
    expect(bell(page)).to_be_focused()


def test_times_in_a_shadow_tree_are_in_the_language_of_the_page(fake: Fake) -> None:
    """A bell in the shadow tree of a header tells times in the language of the page, as it does elsewhere."""
    fake.add()
    page = fake.open(head='<div id="header"></div>')
    page.evaluate(
        """document.documentElement.lang = "de";
        document.querySelector("#header").attachShadow({ mode: "open" })
        .append(document.querySelector("notification-bell"))"""
    )

    open_list(page)

    expect(rows(page).get_by_role("time")).to_have_text(re.compile("^vor "))


def test_keyboard(fake: Fake) -> None:
    """The arrow keys go from notice to notice; a notice that is archived passes the focus on to the next."""
    for n in range(3):
        fake.add(title=f"Notice {n}", url="/page/")
    page = fake.open()
    page.keyboard.press("Tab")
    expect(bell(page)).to_be_focused()
    page.keyboard.press("Enter")
    expect(titles(page)).to_have_count(3)

    page.keyboard.press("ArrowDown")
    expect(page.get_by_role("link", name="Notice 2")).to_be_focused()
    page.keyboard.press("End")
    expect(page.get_by_role("link", name="Notice 0")).to_be_focused()
    page.keyboard.press("ArrowUp")
    expect(page.get_by_role("link", name="Notice 1")).to_be_focused()
    for _ in range(2):
        page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Archive: Notice 1")).to_be_focused()
    page.keyboard.press("Enter")

    expect(titles(page)).to_have_text(["Notice 2", "Notice 0"])
    expect(page.get_by_role("link", name="Notice 0")).to_be_focused()


def test_notices_are_marked(fake: Fake) -> None:
    """One is marked as read, unread and archived, all of them up to the newest that is shown."""
    for n in range(3):
        fake.add(title=f"Notice {n}", seen=True)
    page = fake.open()
    open_list(page)

    page.get_by_role("button", name="Mark as read: Notice 1").click()
    expect(shown(page, "number")).to_have_text("2")
    page.get_by_role("button", name="Mark as unread: Notice 1").click()
    expect(shown(page, "number")).to_have_text("3")
    page.get_by_role("button", name="Archive: Notice 0").click()
    expect(titles(page)).to_have_text(["Notice 2", "Notice 1"])
    page.get_by_role("button", name="Mark all as read").click()

    expect(shown(page, "number")).to_be_hidden()
    expect(page.get_by_role("button", name="Mark all as read")).to_be_hidden()
    expect(dialog(page)).to_be_focused()
    made = [(form["change"], form.get("id"), form.get("until")) for form in fake.marked]
    assert made == [
        (["read"], ["2"], None),
        (["unread"], ["2"], None),
        (["archived"], ["1"], None),
        (["read"], None, ["3"]),
    ]


@pytest.mark.parametrize("status", [400, 503])
def test_change_that_is_not_made_is_taken_back(fake: Fake, status: int) -> None:
    """What the site refuses, or does not answer, is shown as it was, with words."""
    fake.add(title="One", seen=True)
    page = fake.open()
    open_list(page)
    expect(titles(page)).to_have_text(["One"])
    fake.status = status

    page.get_by_role("button", name="Archive: One").click()

    words = "The site refused: reload the page and try again" if status == 400 else "The site did not answer: try again"
    expect(dialog(page).get_by_role("status")).to_have_text(words)
    expect(titles(page)).to_have_text(["One"])
    expect(shown(page, "number")).to_have_text("1")
    expect_failures(fake)


def test_two_changes_that_are_not_made_are_both_taken_back(fake: Fake) -> None:
    """A notice that was marked as read and archived, and neither on the site, is unread again."""
    fake.add(title="One", seen=True)
    page = fake.open()
    open_list(page)
    expect(titles(page)).to_have_text(["One"])
    held = hold_marks(page)
    page.get_by_role("button", name="Mark as read: One").click()
    page.get_by_role("button", name="Archive: One").click()
    expect(titles(page)).to_have_count(0)

    for n in range(2):
        wait_until(page, lambda n=n: len(held) > n)
        held[n].fulfill(status=503, json={})

    expect(titles(page)).to_have_text(["One"])
    expect(page.get_by_role("button", name="Mark as read: One")).to_be_visible()
    expect_failures(fake)


def test_failure_is_told_until_the_user_goes_on(fake: Fake) -> None:
    """A notice that comes and is told to the site as seen takes no words away about what the user wanted to change."""
    fake.add(title="One", seen=True)
    page = fake.open()
    open_list(page)
    expect(titles(page)).to_have_text(["One"])
    fake.status = 503
    page.get_by_role("button", name="Archive: One").click()
    status = dialog(page).get_by_role("status")
    expect(status).to_have_text("The site did not answer: try again")
    fake.status = 200

    fake.tell(fake.add(title="Two"))

    wait_until(page, lambda: [each["change"] for each in fake.marked] == [["seen"]])
    expect(titles(page)).to_have_text(["Two", "One"])
    expect(status).to_have_text("The site did not answer: try again")
    page.get_by_role("button", name="Archive: One").click()
    expect(status).not_to_have_text("The site did not answer: try again")
    expect_failures(fake)


@pytest.mark.parametrize("how", ["click", "ctrl click", "middle click"])
def test_link_opens_and_marks_as_read(fake: Fake, how: str) -> None:
    """A link that is followed, here or in another tab, marks its notice as read, although the page is left."""
    fake.add(title="Import", url="/page/?template=followed", seen=True)
    page = fake.open()
    open_list(page)
    link = page.get_by_role("link", name="Import")
    with page.expect_request("**/fake/mark/") as request:
        if how == "click":
            link.click()
            expect(page.locator("body")).to_have_text("followed")
        else:
            with fake.tab.context.expect_page():
                link.click(**({"button": "middle"} if how == "middle click" else {"modifiers": ["Control"]}))

    assert parse_qs(request.value.post_data or "")["change"] == ["read"]
    assert parse_qs(request.value.post_data or "")["id"] == ["1"]


def test_group_is_one_until_it_is_opened(fake: Fake) -> None:
    """Notices of one group are shown as the newest of them, whose buttons are about all; opened, each is its own."""
    for n in range(3):
        fake.add(title=f"Import {n}", group="imports", seen=True)
        fake.add(title=f"Alone {n}", seen=True)
    page = fake.open()
    open_list(page)
    expect(titles(page)).to_have_text(["Alone 2", "Import 2", "Alone 1", "Alone 0"])

    more = page.get_by_role("button", name="and 2 more", exact=True)
    expect(more).to_have_attribute("aria-expanded", "false")
    more.click()
    expect(titles(page)).to_have_text(["Alone 2", "Import 2", "Import 1", "Import 0", "Alone 1", "Alone 0"])
    page.get_by_role("button", name="Mark as read: Import 1").click()
    wait_until(page, lambda: fake.unread == 5)
    page.get_by_role("button", name="Show fewer").click()
    page.get_by_role("button", name="Mark as read: Import 2, and 2 more").click()

    wait_until(page, lambda: fake.unread == 3)
    assert [form["id"] for form in fake.marked] == [["3"], ["5", "1"]]


def test_older_notices_are_loaded(fake: Fake) -> None:
    """The list begins with the newest twenty; those before them come on demand, and the first of them has the focus."""
    for n in range(45):
        fake.add(title=f"Notice {n}", url="/page/", seen=True)
    page = fake.open()
    open_list(page)
    expect(titles(page)).to_have_count(20)

    page.get_by_role("button", name="Show older").click()
    expect(titles(page)).to_have_count(40)
    expect(page.get_by_role("link", name="Notice 24")).to_be_focused()
    fake.tell(fake.add(title="New"))
    expect(titles(page)).to_have_count(41)
    page.get_by_role("button", name="Show older").click()

    expect(titles(page)).to_have_count(46)
    expect(titles(page).last).to_have_text("Notice 0")
    expect(page.get_by_role("button", name="Show older")).to_be_hidden()
    expect(page.get_by_role("link", name="All notices")).to_have_attribute("href", re.compile("/fake/$"))


def test_states_without_a_list(fake: Fake) -> None:
    """An empty list says so, and so does one that could not be loaded, which can be tried again."""
    page = fake.open()
    fake.status = 503

    open_list(page)
    expect(dialog(page).get_by_role("status")).to_have_text("The notices could not be loaded")
    fake.status = 200
    page.get_by_role("button", name="Try again").click()

    expect(dialog(page)).to_contain_text("No notices")
    expect(page.get_by_role("button", name="Try again")).to_be_hidden()
    expect_failures(fake)


def test_list_in_doubt_is_loaded_when_the_site_answers_again(fake: Fake) -> None:
    """A list that could not be brought up to date when it was opened is loaded as soon as the site answers."""
    fake.add(title="One", seen=True)
    page = fake.open()
    open_list(page)
    expect(titles(page)).to_have_text(["One"])
    page.keyboard.press("Escape")
    expect(dialog(page)).to_be_hidden()
    fake.status = 503
    restored = fake.add(title="Two", seen=True)
    fake.change("restored", [restored["id"]])
    expect(bell(page)).to_have_accessible_name("Notices, 2 unread")
    with page.expect_response("**/fake/notices/**"):
        open_list(page)
    expect(titles(page)).to_have_text(["One"])

    fake.status = 200

    expect(titles(page)).to_have_text(["Two", "One"])
    expect_failures(fake)


def test_session_that_has_ended(fake: Fake) -> None:
    """When nobody is logged in any more, notices and number are gone, and the page can be loaded again."""
    fake.add(title="Secret", seen=True)
    page = fake.open()
    open_list(page)
    expect(titles(page)).to_have_text(["Secret"])
    fake.status = 403

    page.get_by_role("button", name="Mark as read: Secret").click()

    expect(dialog(page).get_by_role("status")).to_have_text("Your session has ended")
    expect(titles(page)).to_have_count(0)
    expect(bell(page)).to_have_accessible_name("Notices")
    expect(page.get_by_role("button", name="Reload the page")).to_be_visible()
    expect_failures(fake)


def test_changes_of_other_devices_are_shown(fake: Fake) -> None:
    """An open list shows what comes, once, and what is read or archived elsewhere."""
    one, two = fake.add(title="One", seen=True), fake.add(title="Two", seen=True)
    page = fake.open()
    open_list(page)
    expect(titles(page)).to_have_text(["Two", "One"])

    three = fake.add(title="Three")
    fake.tell(three)
    fake.tell(three)
    expect(titles(page)).to_have_text(["Three", "Two", "One"])
    fake.change("read", ids=[one["id"]])
    expect(page.get_by_role("button", name="Mark as unread: One")).to_be_visible()
    page.evaluate("Math.random = () => 0")  # a list in doubt would be asked for at once
    fake.change("restored", ids=[one["id"], three["id"]])  # told late, when nobody knew what the page shows
    fake.change("archived", ids=[two["id"]])
    expect(titles(page)).to_have_text(["Three", "One"])
    fake.change("read", until=three["id"])

    expect(page.get_by_role("button", name="Mark as unread: Three")).to_be_visible()
    expect(shown(page, "number")).to_be_hidden()
    assert len(fake.asked) == 1


def test_answer_that_a_message_has_overtaken(fake: Fake) -> None:
    """What is said while the list is loaded is newer than the list: its number stays, and what it says is done."""
    one = fake.add(title="One", seen=True)
    page = fake.open()

    def meanwhile() -> None:
        fake.tell(fake.add(title="Two", seen=True))
        fake.change("read", ids=[one["id"]])
        fake.tell(fake.add(title="Three", seen=True))
        expect(shown(page, "number")).to_have_text("2")

    page.evaluate(
        """() => {
            window.numbers = [];
            const number = document.querySelector("notification-bell").shadowRoot.querySelector("[part=number]");
            const note = () => window.numbers.push(number.textContent);
            new MutationObserver(note).observe(number, { childList: true });
        }"""
    )
    fake.hold = meanwhile
    bell(page).click()

    expect(titles(page)).to_have_text(["Three", "Two", "One"])
    expect(page.get_by_role("button", name="Mark as unread: One")).to_be_visible()
    wait_until(page, lambda: fake.marked)
    assert page.evaluate("window.numbers") == ["2", "1", "2"]
    assert len(fake.asked) == 1


def test_list_of_a_page_that_is_open_for_days(fake: Fake) -> None:
    """A list keeps the newest few hundred; those that it has dropped can be loaded again."""
    fake.notices = [fake.add(title=f"Notice {n}", seen=True, read=True) for n in range(20)][::-1]
    page = fake.open()
    open_list(page)
    expect(titles(page)).to_have_count(20)

    for n in range(20, 510):
        fake.tell(fake.add(title=f"Notice {n}", seen=True, read=True))
    expect(titles(page).first).to_have_text("Notice 509")
    expect(titles(page)).to_have_count(500)
    page.get_by_role("button", name="Show older").click()

    expect(titles(page)).to_have_count(510)
    expect(titles(page).last).to_have_text("Notice 0")


def test_texts_are_texts(fake: Fake) -> None:
    """Nothing in a notice becomes HTML or a script, in an answer or in a message."""
    fake.add(title=HOSTILE, body=HOSTILE, url="javascript:window.broken=1", level=HOSTILE, group=HOSTILE)
    page = fake.open()
    open_list(page)
    fake.tell(fake.add(title=HOSTILE, body=HOSTILE, url="javascript:window.broken=1", level=HOSTILE))

    expect(titles(page)).to_have_text([HOSTILE] * 2)
    assert page.evaluate("window.broken") is None
    assert rows(page).get_by_role("link").count() == 0


# With toasts


def test_toast_goes_when_its_notice_was_met_elsewhere(fake: Fake) -> None:
    """A toast of a notice that was read on another device goes, that of another notice stays; the list has both."""
    page = fake.open(more=TOASTS)
    one, two = fake.add(title="One", level="error"), fake.add(title="Two")
    fake.tell(one)
    fake.tell(two)
    expect(shown(page, "toast")).to_have_count(2)

    fake.change("read", ids=[one["id"]])
    expect(page.locator("[part~=toast] [part=title]")).to_have_text(["Two"])
    page.get_by_role("button", name="Close").click()
    expect(shown(page, "number")).to_have_text("1")
    open_list(page)

    expect(titles(page)).to_have_text(["Two", "One"])


def test_toast_of_a_kept_notice_on_the_next_page(fake: Fake) -> None:
    """A toast that came along from the previous page of the tab goes as well when its notice is read."""
    page = fake.open(more=TOASTS)
    fake.tell(fake.add(title="One"))
    expect(shown(page, "toast")).to_have_count(1)
    fake.open(more=TOASTS, page=page)
    expect(shown(page, "toast")).to_have_count(1)

    fake.change("read", until="1")

    expect(shown(page, "toast")).to_have_count(0)


def test_open_list_takes_the_place_of_toasts(fake: Fake) -> None:
    """Opening the list removes the toasts of what it shows; what comes then is in the list only."""
    page = fake.open(more=TOASTS)
    fake.tell(fake.add(title="One", level="error"))
    fake.tab.notice(title="Not kept")
    expect(shown(page, "toast")).to_have_count(2)

    open_list(page)
    expect(page.locator("[part~=toast] [part=title]")).to_have_text(["Not kept"])
    fake.tell(fake.add(title="Two"))
    expect(titles(page)).to_have_text(["Two", "One"])

    expect(page.locator("[part~=toast] [part=title]")).to_have_text(["Not kept"])
    expect(dialog(page).get_by_role("status")).to_have_text("Information: Two")


def test_toasts_are_in_front_of_the_list(fake: Fake) -> None:
    """A notice that is in no list is seen although the list covers the page."""
    for _ in range(20):
        fake.add(seen=True)
    page = fake.open(more=TOASTS)
    page.set_viewport_size({"width": 320, "height": 600})
    open_list(page)
    expect(titles(page)).to_have_count(20)

    fake.tab.notice(title="Not kept")

    close = page.get_by_role("button", name="Close").bounding_box()
    assert close is not None
    at = [close["x"] + 5, close["y"] + 5]
    assert page.evaluate("([x, y]) => document.elementFromPoint(x, y).localName", at) == "notification-toasts"
    panel = page.locator("[part~=panel]").bounding_box()
    assert panel is not None
    assert panel["y"] < at[1] < panel["y"] + panel["height"]


def test_link_of_a_toast_marks_as_read(fake: Fake) -> None:
    """Whoever follows the link of a toast has read its notice."""
    page = fake.open(more=TOASTS)
    fake.tell(fake.add(title="One", url="#there"))

    page.locator("[part~=toast]").get_by_role("link", name="One").click()

    wait_until(page, lambda: fake.unread == 0)
    expect(shown(page, "number")).to_be_hidden()


# With the site

BELL = "{% load notifications_inbox %}{% notification_bell %}"


def keep(tab: Tab, title: str = "Kept", **fields: str) -> None:
    """Have the site keep a notice for the user."""
    answer = tab.context.request.post(f"http://{tab.server.address}/keep/", form={"title": title, **fields})
    assert answer.ok


def test_read_on_one_device_is_read_on_all(tab: Tab, browser: Browser, pages: tuple[Site, WebServer]) -> None:
    """What is read in one browser of a user is read in the others at once, and on each page that follows."""
    with browser.new_context() as other:
        other.add_cookies(tab.context.cookies())
        device = Tab(*pages, other, tab.user)
        page, elsewhere = tab.open(BELL + TOASTS), device.open(BELL + TOASTS)
        keep(tab, "Import finished", url="/page/", level="success")
        keep(tab, "Export finished")
        for each in (page, elsewhere):
            expect(bell(each)).to_have_accessible_name("Notices, 2 unread")
            expect(shown(each, "toast")).to_have_count(2)
        open_list(page)
        expect(titles(page)).to_have_text(["Export finished", "Import finished"])
        expect(shown(elsewhere, "toast")).to_have_count(0)
        open_list(elsewhere)

        page.get_by_role("button", name="Mark as read: Export finished").click()
        expect(elsewhere.get_by_role("button", name="Mark as unread: Export finished")).to_be_visible()
        expect(bell(elsewhere)).to_have_accessible_name("Notices, 1 unread")
        page.evaluate(STAMP)
        elsewhere.evaluate(STAMP)
        page.get_by_role("button", name="Mark all as read").click()
        expect(bell(elsewhere)).to_have_accessible_name("Notices")

        began, ended = page.evaluate("window.stamps[0]"), elsewhere.evaluate("window.stamps.at(-1)")
        assert ended - began < scaled(3) * 1000  # milliseconds; a second is what a busy machine takes now and then
        following = tab.open(BELL)
        expect(bell(following)).to_have_accessible_name("Notices")
        open_list(following)
        expect(titles(following)).to_have_text(["Export finished", "Import finished"])


STAMP = """() => {
    window.stamps = [];
    const note = () => window.stamps.push(Date.now());
    addEventListener("click", note, { once: true, capture: true });
    new MutationObserver(note).observe(document.querySelector("notification-bell").shadowRoot, {
        subtree: true, attributes: true, childList: true, characterData: true, attributeFilter: ["aria-label"],
    });
}"""
"""Note when the button is pressed, and when the name of the bell changes."""


@pytest.mark.parametrize("order", ["notifications, bell", "bell, notifications"])
def test_notice_between_the_renderings_counts_once(tab: Tab, order: str) -> None:
    """A notice that is committed after one tag was rendered and before the other is counted once, and shown."""
    keep(tab, "Before")
    parts = {"notifications": "{% notifications %}", "bell": BELL}
    tag = "{{ keep }}".join(parts[name] for name in order.split(", "))
    asked: list[str] = []

    page = tab.open(
        TOASTS,
        tag=tag,
        before=lambda page: page.on("request", lambda request: "/inbox/" in request.url and asked.append(request.url)),
    )

    expect(shown(page, "toast")).to_have_count(1)
    expect(bell(page)).to_have_accessible_name("Notices, 2 unread")
    keep(tab, "After")
    expect(bell(page)).to_have_accessible_name("Notices, 3 unread")
    assert [url for url in asked if "notices" in url] == []


def test_link_without_javascript(browser: Browser, tab: Tab) -> None:
    """Without JavaScript the bell is a link with the number, to a page with the notices."""
    keep(tab, "Import finished")
    with browser.new_context(java_script_enabled=False) as context:
        context.add_cookies(tab.context.cookies())
        page = Tab(tab.site, tab.server, context, tab.user).open(BELL, live=False)

        page.get_by_role("link", name="Notices (1 unread)").click()

        expect(page.get_by_text("Import finished")).to_be_visible()


def test_changes_that_wait_are_made_when_the_page_is_left(tab: Tab) -> None:
    """Changes that wait for one that a slow site has yet to answer are not lost with their page."""
    for n in range(3):
        keep(tab, f"Notice {n}")
    page = tab.open(BELL, before=lambda page: page.add_init_script(SLOW))
    open_list(page)
    expect(titles(page)).to_have_count(3)
    for n in range(3):
        page.get_by_role("button", name=f"Archive: Notice {n}").click()
    expect(page.get_by_text("No notices")).to_be_visible()

    page.goto(f"http://{tab.server.address}/page/?template=left")

    following = tab.open(BELL)
    expect(bell(following)).to_have_accessible_name("Notices, 1 unread")
    open_list(following)
    expect(titles(following)).to_have_text(["Notice 0"])


SLOW = """
const ask = globalThis.fetch;
let slow = true;
globalThis.fetch = (url, options) => {
    if (!slow || options.body?.get("change") !== "archived") return ask(url, options);
    slow = false;
    return new Promise(() => {});
};
"""
"""The first notice that is archived gets no answer."""


def test_refused_token(tab: Tab) -> None:
    """A token that is not valid any more is not taken for the end of the session."""
    keep(tab, "One")
    page = tab.open(BELL)
    open_list(page)
    expect(titles(page)).to_have_text(["One"])
    page.evaluate("document.querySelector('notification-bell').setAttribute('csrf-token', 'x'.repeat(64))")

    page.get_by_role("button", name="Archive: One").click()

    words = "The site refused: reload the page and try again"
    expect(dialog(page).get_by_role("status")).to_have_text(words)
    expect(titles(page)).to_have_text(["One"])
    tab.expect_complaints("Failed to load resource")


# Pages


def test_back_button_brings_the_bell_up_to_date(tab_with_cache: Tab) -> None:
    """A page that the browser has kept shows the number of now."""
    fake = Fake(tab_with_cache)
    page = fake.open()
    page.goto(f"http://{fake.tab.server.address}/page/?template=elsewhere")
    fake.tell(fake.add())

    page.go_back(wait_until="commit")

    expect(shown(page, "number")).to_have_text("1")


def test_another_user_on_the_same_page(fake: Fake) -> None:
    """A page that becomes another user's without being loaded shows nothing that was the first one's."""
    fake.add(title="Secret", seen=True)
    page = fake.open(scripts="script-src 'self'")
    open_list(page)
    expect(titles(page)).to_have_text(["Secret"])

    become_another_users(page)

    expect(titles(page)).to_have_count(0)
    expect(bell(page)).to_have_accessible_name("Notices")


def test_changes_end_with_their_user(fake: Fake) -> None:
    """What the first user's change comes to is nothing to the next one, and what has not been sent of them never is."""
    fake.add(title="Secret", seen=True)
    fake.add(title="Other", seen=True)
    page = fake.open(scripts="script-src 'self'")
    open_list(page)
    expect(titles(page)).to_have_count(2)
    held = hold_marks(page)
    page.get_by_role("button", name="Archive: Secret").click()
    page.get_by_role("button", name="Mark all as read").click()
    wait_until(page, lambda: held)

    become_another_users(page)
    expect(bell(page)).to_have_accessible_name("Notices")
    with page.expect_response("**/fake/mark/"):
        held[0].fulfill(status=503, json={})

    page.evaluate("new Promise((go) => setTimeout(go, 100))")
    expect(titles(page)).to_have_count(0)
    assert len(held) == 1
    expect_failures(fake)


def test_group_that_is_larger_than_a_request(fake: Fake) -> None:
    """A button of a large group is about all of it, in requests of a hundred."""
    for n in range(130):
        fake.add(title=f"Notice {n}", group="imports", seen=True)
    page = fake.open()
    open_list(page)
    more = page.get_by_role("button", name=re.compile("^and [0-9]+ more$"))
    for loaded in range(20, 121, 20):
        expect(more).to_have_text(f"and {loaded - 1} more")
        page.get_by_role("button", name="Show older").click()
    expect(more).to_have_text("and 129 more")

    page.get_by_role("button", name=re.compile("^Archive: ")).click()

    expect(page.get_by_text("No notices")).to_be_visible()
    wait_until(page, lambda: [len(each["id"]) for each in fake.marked] == [100, 30])
    expect(bell(page)).to_have_accessible_name("Notices")


def test_page_that_is_not_connected_has_a_link(fake: Fake) -> None:
    """Without {% notifications %} the bell stays a link to the page of the list; the console says why, once."""
    page = fake.open(tag="", more=fake.tag("notification-bell"), live=False)

    expect(page.get_by_role("link", name="Notices")).to_have_count(2)
    wait_until(page, lambda: len(fake.tab.complaints) == 1)
    assert "docs/inbox.md" in fake.tab.complaints.pop()


@pytest.mark.parametrize("element", ["notification-bell", "notification-inbox"])
@pytest.mark.parametrize("width", [1100, 320])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("direction", ["ltr", "rtl"])
def test_looks(fake: Fake, scheme: Any, width: int, direction: str, element: str) -> None:
    """Bell and list break no rule of accessibility and stay within the window, light, dark, both ways, on a phone."""
    for n, level in enumerate(["info", "success", "warning", "error"] * 2):
        fake.add(
            title=f"The {level} " * 4, level=level, body="More about it " * n, url="/a" if n % 2 else "", read=n < 3
        )
    fake.add(title="long" * 30, group="g")
    fake.add(title="Import 7", group="g")
    page = fake.open(
        element,
        head="<meta name='viewport' content='width=device-width'><meta name='color-scheme' content='light dark'>",
        dir=direction,
    )
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    page.set_viewport_size({"width": width, "height": 700})
    page.evaluate("document.body.style.background = 'Canvas'")  # without one axe takes white
    if element == "notification-bell":
        open_list(page)
    expect(titles(page)).to_have_count(9)
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{element}-{scheme}-{width}-{direction}.png")

    panel = page.locator("[part~=panel]").bounding_box()

    assert panel is not None
    assert panel["x"] >= 0
    assert panel["x"] + panel["width"] <= width
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    icon, text = (rows(page).first.locator(f"[part={part}]").bounding_box() for part in ("icon", "text"))
    assert (icon["x"] < text["x"]) == (direction == "ltr")
    assert violations(page) == []


def test_forced_colours(fake: Fake) -> None:
    """Without colours the unread are told by a dot that is still there, and the number has a border."""
    fake.add(title="Read", read=True)
    fake.add(title="Unread")
    page = fake.open()
    page.emulate_media(forced_colors="active", reduced_motion="reduce")
    open_list(page)
    expect(titles(page)).to_have_count(2)
    page.screenshot(path=SCREENSHOTS / "notification-bell-forced.png")

    dots = page.locator("[part=dot]").all()

    assert [dot.evaluate("(dot) => getComputedStyle(dot).visibility") for dot in dots] == ["visible", "hidden"]
    colours = [
        shown(page, "number").evaluate(f"(number) => getComputedStyle(number).{name}")
        for name in ("backgroundColor", "borderTopColor", "color")
    ]
    assert colours[0] not in colours[1:]


def lose_history(fake: Fake, page: Page) -> None:
    """Have the tab lose its connection, and with it what the history had of its user."""
    page.evaluate(
        """async () => {
            const connection = await notifications;
            window.heard = new Promise((go) => connection.onUser(go));
            window.told = new Promise((go) => connection.addEventListener("gap", go, { once: true }));
        }"""
    )
    fake.tab.notice(title="Before")
    page.evaluate("window.heard.then(() => dispatchEvent(new Event('pagehide')))")
    fake.tab.notice(title="Lost")
    with fake.tab.site.client() as client:
        client.delete(f"notifications:history:user:{fake.tab.user.pk}")
    fake.tab.notice(title="The first of a new history")
    page.evaluate("dispatchEvent(Object.assign(new Event('pageshow'), { persisted: true }))")
    page.evaluate("window.told.then(() => true)")


def become_another_users(page: Page) -> None:
    page.evaluate(
        """() => {
            const block = Object.assign(document.createElement("script"), {
                id: "notifications-config", type: "application/json",
            });
            block.textContent = JSON.stringify({ since: null, user_topic: "user:0" });
            document.body.append(block);
        }"""
    )


def hold_marks(page: Page) -> list[Route]:
    """Answer no change any more; return those that have been asked for."""
    held: list[Route] = []
    page.route("**/fake/mark/", lambda route: held.append(route))
    return held


def expect_failures(fake: Fake) -> None:
    """Expect what a browser says itself about answers that are errors."""
    fake.tab.expect_complaints("Failed to load resource")
