"""Bars of jobs in a real Chromium: ``{% progress %}`` and ``<task-progress>``."""

import re
from collections.abc import Iterator
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, Route, expect

from notifications import Cancelled, Progress, revoke
from tests.axe import violations
from tests.browser.test_elements import (
    CONNECTED,
    HOSTILE,
    TOASTS,
    Tab,
    bar,
    pytestmark,
    shown,
    stop_clock,
    tab,
    wait_until,
)
from tests.conftest import point_to
from tests.demo_browser import MILLISECONDS
from tests.processes import Site, WebServer
from tests.waiting import wait_for

__all__ = ["pytestmark", "tab"]  # as there
CANCEL = "cancel_url='/notifications/cancel/'"
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
]

EVENTS = """() => {
    window.told = [];
    for (const type of ["progress-change", "progress-gap"]) {
        const note = ({ detail }) => window.told.push([type, detail.before, detail.state, detail.percent]);
        document.addEventListener(type, note);
    }
}"""
ANSWERED = """async () => {
    const connection = await notifications;
    const answered = new Promise((go) => {
        connection.addEventListener("frame", function heard({ detail }) {
            if (!detail.text.includes("pong")) return;
            connection.removeEventListener("frame", heard);
            go();
        });
    });
    connection.retry();
    await answered;
}"""
"""Ask the server whether it is there, and wait for its answer."""


def new_job(tab: Tab) -> str:
    return f"job:{tab.user.new_upload()}"


def report(tab: Tab, topic: str, state: str = "running", **more: object) -> None:
    """Publish what a job says of itself; what is not given is not known."""
    names = ("percent", "done", "total", "unit", "stage", "message", "eta", "error", "url")
    payload = {"id": topic.partition(":")[2], "state": state, **dict.fromkeys(names), **more}
    tab.publish(topic, action="progress", payload=payload)


def task(topic: str, more: str = "") -> str:
    kind, _, id_ = topic.partition(":")
    return f"{{% progress '{kind}' '{id_}' {more} %}}"


@pytest.fixture(scope="module")
def pages(
    redis_program: None, migrated_database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Site, WebServer]]:
    """A site that checks CSRF tokens, and whose scripts cannot read their cookie."""
    directory = tmp_path_factory.mktemp("bars")
    settings = {"STATIC_ROOT": str(directory / "static"), "MIDDLEWARE": MIDDLEWARE, "CSRF_COOKIE_HTTPONLY": True}
    with Site(directory, migrated_database, settings=settings) as site:
        assert site.run("collectstatic", "--noinput").returncode == 0
        server = site.start_server("daphne")
        site.start_listener()
        yield site, server


def pass_time(page: Page, seconds: int) -> None:
    """Let time go by on a page whose clock stands still; its connection is heard from as often as it needs."""
    for _ in range(0, seconds, 5):
        page.clock.run_for(5_000)
        page.evaluate(ANSWERED)


# What a bar shows


def test_bar_follows_its_job(tab: Tab) -> None:
    """Percent, count, stage, time left and message are those of the newest message, also where they go back."""
    job = new_job(tab)
    page = tab.open(task(job, "label='Import'"))
    whole = page.get_by_role("progressbar", name="Import")
    expect(shown(page, "state")).to_have_text("Waiting")
    expect(whole).not_to_have_attribute("aria-valuenow", "0")

    report(tab, job, percent=40.5, done=8100, total=20_000, unit="rows", stage="Reading rows", message="a.csv", eta=170)

    expect(whole).to_have_attribute("aria-valuenow", "40")
    expect(whole).to_have_attribute("aria-valuetext", "40%, Reading rows")
    expect(shown(page, "percent")).to_have_text("40%")
    expect(shown(page, "count")).to_have_text("8,100 of 20,000 rows")
    expect(shown(page, "stage")).to_have_text("Reading rows")
    expect(shown(page, "state")).to_be_hidden()
    expect(shown(page, "message")).to_have_text("a.csv")
    expect(shown(page, "left")).to_have_text("about 3 min left")
    report(tab, job, percent=12, done=7)
    expect(whole).to_have_attribute("aria-valuenow", "12")
    expect(shown(page, "count")).to_have_text("7")
    expect(shown(page, "state")).to_have_text("Running")
    for part in ("stage", "message", "left"):
        expect(shown(page, part)).to_be_hidden()


def test_bar_has_a_state_before_it_is_on_the_page(tab: Tab) -> None:
    """A script may ask a bar that it has just made, of either sort, how its job is: nobody knows yet."""
    page = tab.open("")

    states = page.evaluate(
        """() => ["task-progress", "upload-progress"].map((tag) => document.createElement(tag).state)"""
    )

    assert states[0] == {
        "topic": None,
        "state": "waiting",
        "percent": None,
        "done": None,
        "total": None,
        "unit": "",
        "stage": "",
        "message": "",
        "error": "",
        "url": "",
        "eta": None,
        "stalled": False,
    }
    assert states[1] == {"upload": None, "status": "pending", "stage": "", "percent": None, "message": ""}


def test_indeterminate_bar_moves(tab: Tab) -> None:
    """A job that does not know how far it is has no value, and a bar that moves; it counts all the same."""
    job = new_job(tab)
    page = tab.open(task(job))

    report(tab, job, done=81, unit="rows")

    expect(bar(page)).to_have_attribute("aria-valuetext", "81 rows, Running")
    assert bar(page).get_attribute("aria-valuenow") is None
    expect(shown(page, "fill")).to_have_css("animation-name", "move")
    page.emulate_media(reduced_motion="reduce")
    expect(shown(page, "fill")).to_have_css("animation-name", "none")
    report(tab, job, percent=1)
    page.emulate_media(reduced_motion="no-preference")
    expect(bar(page)).to_have_attribute("aria-valuenow", "1")
    expect(shown(page, "fill")).to_have_css("animation-name", "none")


@pytest.mark.parametrize(
    ("state", "word", "colour"),
    [("succeeded", "Completed", "22, 121, 63"), ("failed", "Failed", "185, 44, 44"), ("cancelled", "Cancelled", "")],
)
def test_end_is_shown_and_announced_once(tab: Tab, state: str, word: str, colour: str) -> None:
    """The outcome is a word as well as a colour, with a link to the result, and is said aloud."""
    job = new_job(tab)
    page = tab.open(task(job, "label='Import'"))
    page.evaluate(EVENTS)
    report(tab, job, percent=40, stage="Reading rows")
    expect(bar(page)).to_have_attribute("aria-valuenow", "40")
    expect(page.get_by_role("status")).to_have_text("")

    for _ in range(2):
        report(tab, job, state, percent=60, error=HOSTILE, url="/imports/7/", stage="Indexing")

    expect(shown(page, "state")).to_have_text(word)
    expect(page.get_by_role("status")).to_have_text(f"Import – {word}")
    expect(page.get_by_role("link", name="Open: Import")).to_have_attribute(
        "href", f"http://{tab.server.address}/imports/7/"
    )
    expect(shown(page, "error")).to_have_text(HOSTILE)
    expect(bar(page)).to_have_attribute("aria-valuenow", "100" if state == "succeeded" else "60")
    if colour:
        expect(shown(page, "fill")).to_have_css("background-color", f"rgb({colour})")
    page.wait_for_function("() => told.length === 3")
    told = page.evaluate("told")
    percent = 100 if state == "succeeded" else 60
    expected = [["progress-change", None, "running", 40]]
    expected += [["progress-change", before, state, percent] for before in ("running", state)]
    assert told == expected


def test_end_that_others_tell_keeps_the_numbers(tab: Tab) -> None:
    """Whoever tells that a worker was killed does not know how far it was."""
    job = new_job(tab)
    page = tab.open(task(job))
    report(tab, job, percent=40, done=81, total=200, unit="rows", stage="Reading rows", message="a.csv")
    expect(bar(page)).to_have_attribute("aria-valuenow", "40")

    report(tab, job, "failed", error="The worker was killed")

    expect(shown(page, "state")).to_have_text("Failed")
    expect(shown(page, "stage")).to_have_text("Reading rows")
    expect(shown(page, "count")).to_have_text("81 of 200 rows")
    expect(bar(page)).to_have_attribute("aria-valuenow", "40")
    expect(shown(page, "message")).to_be_hidden()


def test_job_begins_again(tab: Tab) -> None:
    """After an end the bar still listens: it begins again with a job that is repeated."""
    job = new_job(tab)
    page = tab.open(task(job))
    for again in range(2):
        report(tab, job, "waiting")
        expect(shown(page, "state")).to_have_text("Waiting")
        assert bar(page).get_attribute("aria-valuenow") is None
        expect(page.get_by_role("status")).to_have_text("")
        report(tab, job, percent=30 + again)
        expect(bar(page)).to_have_attribute("aria-valuenow", str(30 + again))
        for state, word in (("failed", "Failed"), ("succeeded", "Completed")):
            report(tab, job, state, error="ValueError")
            expect(shown(page, "state")).to_have_text(word)


def test_page_shows_what_the_site_knew(tab: Tab) -> None:
    """Attributes are shown until something newer comes, and may be set later; the end in them is not announced."""
    job = new_job(tab)
    page = tab.open(
        task(job, "state='running' done=50 total=200 unit='rows' stage='Reading rows'")
        + task(new_job(tab), "state='succeeded' url='/a'")
        + task(new_job(tab), "state='failed' percent=30 error='ValueError'")
        + task(new_job(tab), "state='nonsense' percent='much' done=-1 url='javascript:alert(1)'")
    )

    expect(shown(page, "percent")).to_have_text(["25%", "100%", "30%", ""])
    expect(shown(page, "state")).to_have_text(["", "Completed", "Failed", "Waiting"])
    expect(shown(page, "error")).to_have_text(["", "", "ValueError", ""])
    expect(page.get_by_role("link")).to_have_count(1)
    expect(page.get_by_role("status")).to_have_text([""] * 4)
    page.evaluate("document.querySelector('task-progress').setAttribute('done', '100')")
    expect(bar(page).first).to_have_attribute("aria-valuenow", "50")
    report(tab, job, percent=20)
    expect(bar(page).first).to_have_attribute("aria-valuenow", "20")


def test_frameworks_set_the_state_as_a_property(tab: Tab) -> None:
    """React and Vue do so for each attribute of whose name the element has a property."""
    page = tab.open(task(new_job(tab)))
    set_state = """(state) => { "use strict"; document.querySelector("task-progress").state = state; }"""

    page.evaluate(set_state, "running")

    expect(shown(page, "state")).to_have_text("Running")
    assert page.evaluate("document.querySelector('task-progress').state.state") == "running"
    page.evaluate(set_state, None)
    assert not page.evaluate("document.querySelector('task-progress').hasAttribute('state')")


def test_job_is_in_the_language_of_the_page(tab: Tab) -> None:
    """Numbers and units of time are written as in the page's language."""
    job = new_job(tab)
    page = tab.open(task(job), lang="de")

    report(tab, job, percent=40.9, done=8100, total=20_000, unit="Zeilen", eta=7200)

    expect(shown(page, "percent")).to_have_text("40\N{NO-BREAK SPACE}%")
    expect(shown(page, "count")).to_have_text("8.100 of 20.000 Zeilen")
    expect(shown(page, "left")).to_have_text("about 2\N{NO-BREAK SPACE}Std. left")


def test_hostile_job_is_only_text(tab: Tab) -> None:
    """Markup in any field is shown as it is written; what is no text or number is not shown."""
    job = new_job(tab)
    page = tab.open(task(job))

    report(tab, job, stage=HOSTILE, message=HOSTILE, unit=HOSTILE, done=1, percent=1)
    for part in ("stage", "message"):
        expect(shown(page, part)).to_have_text(HOSTILE)
    expect(shown(page, "count")).to_have_text(f"1 {HOSTILE}")
    tab.publish(job, action="progress", payload=None)
    tab.publish(job, action="progress")
    report(tab, job, ["failed"], percent={"toString": 1}, done=[7], eta="soon", stage={"a": 1}, unit=7)
    report(tab, job, "constructor", percent=1e9, message="$&{done}")
    expect(shown(page, "message")).to_have_text("$&{done}")
    expect(bar(page)).to_have_attribute("aria-valuenow", "100")
    report(tab, job, "failed", url="javascript:window.broken=1", error=HOSTILE)

    expect(shown(page, "error")).to_have_text(HOSTILE)
    expect(page.get_by_role("link")).to_have_count(0)
    assert page.evaluate("window.broken") is None


# Who may watch


def test_numbers_beyond_counting_are_not_known(tab: Tab) -> None:
    """A double of 300 digits would be written out, and half a page of zeros told nobody anything."""
    job = new_job(tab)
    page = tab.open(task(job))

    report(tab, job, percent=12, done=1e300, total=1e308, eta=1e306)

    expect(shown(page, "percent")).to_have_text("12%")
    expect(shown(page, "count")).to_be_hidden()
    expect(shown(page, "left")).to_be_hidden()


def test_tag_opens_the_topic(tab: Tab) -> None:
    """The page has a grant for what its view has checked; without it AUTHORIZE is asked, which says no."""
    page = tab.open(task("job:somebody") + task("job:somebody-2", "grant=False") + task("closed:7"))

    for topic in ("job:somebody", "job:somebody-2", "closed:7"):
        report(tab, topic, percent=7)

    expect(bar(page).nth(0)).to_have_attribute("aria-valuenow", "7")
    expect(bar(page).nth(2)).to_have_attribute("aria-valuenow", "7")
    expect(shown(page, "stage").nth(1)).to_have_text("Not available")
    assert bar(page).nth(1).get_attribute("aria-valuenow") is None


def test_page_opened_late_shows_the_job(tab: Tab) -> None:
    """A bar begins with the latest message, whether its kind is a state or not."""
    topics = [new_job(tab), f"closed:{tab.user.new_upload()}"]
    tab.open("elsewhere")
    for topic in topics:
        report(tab, topic, percent=40)

    page = tab.open("".join(map(task, topics)))

    for each in (0, 1):
        expect(bar(page).nth(each)).to_have_attribute("aria-valuenow", "40")


# Time


def test_time_left_is_counted_down(tab: Tab) -> None:
    """Between two messages it becomes less, in steps, and a slightly different estimate changes nothing."""
    job = new_job(tab)
    page = tab.open(task(job), before=lambda page: page.clock.install())
    stop_clock(page)
    left = shown(page, "left")

    report(tab, job, percent=1, eta=185)
    expect(left).to_have_text("about 3 min left")
    report(tab, job, percent=2, eta=215)
    expect(bar(page)).to_have_attribute("aria-valuenow", "2")
    expect(left).to_have_text("about 3 min left")
    pass_time(page, 45)
    report(tab, job, percent=30, eta=170)
    expect(bar(page)).to_have_attribute("aria-valuenow", "30")
    expect(left).to_have_text("about 3 min left")
    pass_time(page, 40)
    expect(left).to_have_text("about 2 min left")
    report(tab, job, percent=80, eta=42)
    expect(left).to_have_text("about 40 sec left")
    pass_time(page, 50)
    expect(left).to_have_text("a few seconds left")
    report(tab, job, "succeeded")
    expect(left).to_be_hidden()


def test_job_of_which_nothing_is_heard_is_stalled(tab: Tab) -> None:
    """After PROGRESS_STALE seconds it is called so, and said aloud once; it leaves with the next message."""
    job, other = new_job(tab), new_job(tab)
    page = tab.open(
        task(job, "label='Import'") + task(other) + task(new_job(tab)), before=lambda page: page.clock.install()
    )
    stop_clock(page)
    page.evaluate(EVENTS)
    report(tab, job, percent=40, eta=300)
    report(tab, other, done=3)
    expect(shown(page, "count")).to_have_text(["", "3", ""])

    pass_time(page, 50)
    report(tab, other, done=4)
    expect(shown(page, "count").nth(1)).to_have_text("4")
    expect(shown(page, "state")).to_have_text(["Running", "Running", "Waiting"])
    pass_time(page, 15)

    expect(shown(page, "state")).to_have_text(["Stalled", "Running", "Waiting"])
    expect(bar(page).first).to_have_attribute("aria-valuetext", "40%, Stalled")
    expect(page.get_by_role("status").first).to_have_text("Import – Stalled")
    expect(shown(page, "left").first).to_be_hidden()
    assert page.evaluate("document.querySelector('task-progress').state.stalled")
    pass_time(page, 50)
    expect(shown(page, "state")).to_have_text(["Stalled", "Stalled", "Waiting"])
    page.evaluate("notifications.then((connection) => { connection.close(); connection.open(); })")
    page.evaluate(CONNECTED)
    page.evaluate(ANSWERED)  # for all that was asked before, too
    expect(shown(page, "state")).to_have_text(["Stalled", "Stalled", "Waiting"])
    expect(page.get_by_role("status").first).to_have_text("Import – Stalled")
    assert page.evaluate("told.length") == 5  # three messages, and that two have stalled
    report(tab, job, percent=41)
    expect(shown(page, "state")).to_have_text(["Running", "Stalled", "Waiting"])
    expect(page.get_by_role("status").first).to_have_text("")
    report(tab, other, "failed")
    expect(shown(page, "state")).to_have_text(["Running", "Failed", "Waiting"])


def test_site_is_asked_about_a_job_that_has_stalled(tab: Tab) -> None:
    """The site's database may know that its worker is gone."""
    job = new_job(tab)
    page = tab.open(task(job, "label='Import' status_url='/asked/'"), before=lambda page: page.clock.install())
    stop_clock(page)
    page.route("**/asked/", lambda route: route.fulfill(json={"state": "failed", "error": "The worker is gone"}))
    report(tab, job, percent=40)
    expect(shown(page, "state")).to_have_text("Running")

    pass_time(page, 65)
    pass_time(page, 5)

    expect(shown(page, "state")).to_have_text("Failed")
    expect(shown(page, "error")).to_have_text("The worker is gone")


def test_page_that_slept_is_not_stalled(tab: Tab) -> None:
    """Time in which the browser ran no timers does not count, because nothing could be heard in it."""
    job = new_job(tab)
    page = tab.open(task(job), before=lambda page: page.clock.install())
    stop_clock(page)
    report(tab, job, percent=40)
    expect(bar(page)).to_have_attribute("aria-valuenow", "40")
    pass_time(page, 50)

    page.clock.fast_forward(3600_000)
    page.evaluate(ANSWERED)  # it asks by itself, and time that goes by before the answer would be the server's silence

    expect(shown(page, "state")).to_have_text("Running")
    pass_time(page, 55)
    expect(shown(page, "state")).to_have_text("Running")
    pass_time(page, 15)
    expect(shown(page, "state")).to_have_text("Stalled")


def test_job_out_of_sight_is_not_stalled(tab: Tab, settings: SimpleNamespace) -> None:
    """Of a job that the page may not see any more nothing can be heard; seen again, it goes on."""
    point_to(settings, tab.site.redis.url)
    job = new_job(tab)
    page = tab.open(task(job), before=lambda page: page.clock.install())
    stop_clock(page)
    report(tab, job, percent=40, eta=300)
    expect(shown(page, "left")).to_have_text("about 5 min left")

    revoke(job, tab.user.pk)
    expect(shown(page, "stage")).to_have_text("Not available")
    expect(shown(page, "left")).to_be_hidden()
    pass_time(page, 70)
    assert not page.evaluate("document.querySelector('task-progress').state.stalled")
    expect(page.get_by_role("status")).to_have_text("")

    page.evaluate("notifications.then((connection) => { connection.close(); connection.open(); })")
    expect(shown(page, "state")).to_have_text("Running")
    expect(shown(page, "stage")).to_be_hidden()
    page.evaluate(CONNECTED)
    pass_time(page, 70)
    expect(shown(page, "state")).to_have_text("Stalled")


def test_bar_that_was_removed_follows_nothing(tab: Tab) -> None:
    """Whatever a framework does to an element that it has taken off the page, or a handler as soon as it is there."""
    first, second, third = (new_job(tab) for _ in range(3))
    page = tab.open(task(first))
    page.evaluate(
        """async (topics) => {
            const connection = await notifications;
            window.asked = new Set();
            connection.addEventListener("frame", ({ detail: { direction, text } }) => {
                const { action, topic } = JSON.parse(text);
                if (direction === "out" && action === "subscribe") asked.add(topic);
                if (direction === "out" && action === "unsubscribe") asked.delete(topic);
            });
            window.bar = document.querySelector("task-progress");
            bar.remove();
            bar.setAttribute("topic", topics[0]);
            bar.setAttribute("state", "running");
            document.addEventListener("progress-change", ({ target }) => target.remove(), { once: true });
            const other = document.createElement("task-progress");
            other.setAttribute("topic", topics[1]);
            document.body.append(other);
        }""",
        [second, third],
    )
    page.evaluate(ANSWERED)
    assert page.evaluate("[...asked]") == []

    page.evaluate("document.body.append(bar)")
    report(tab, second, percent=7)
    expect(shown(page, "percent")).to_have_text("7%")


def test_page_without_anything_to_count_has_no_timer(tab: Tab) -> None:
    """One timer serves all bars, and only as long as one of them runs."""
    jobs = [new_job(tab) for _ in range(3)]
    page = tab.open(
        "".join(map(task, jobs)),
        before=lambda page: page.add_init_script(
            """window.timers = new Set();
            const { setInterval: set, clearInterval: clear } = window;
            window.setInterval = (...given) => { const id = set(...given); timers.add(id); return id; };
            window.clearInterval = (id) => { timers.delete(id); clear(id); };"""
        ),
    )
    assert page.evaluate("timers.size") == 0
    for job in jobs:
        report(tab, job, percent=1)
    expect(shown(page, "percent")).to_have_text(["1%"] * 3)
    assert page.evaluate("timers.size") == 1
    report(tab, jobs[0], "failed")
    report(tab, jobs[1], "cancelled")
    page.evaluate("document.querySelectorAll('task-progress')[2].remove()")
    expect(shown(page, "state")).to_have_text(["Failed", "Cancelled"])

    assert page.evaluate("timers.size") == 0


# The button


def test_button_cancels_the_job(tab: Tab, settings: SimpleNamespace) -> None:
    """A press asks a real job to end; meanwhile the button says so, and the keyboard is not lost when it goes."""
    point_to(settings, tab.site.redis.url)
    job = new_job(tab)
    page = tab.open(task(job, f"label='Import' {CANCEL}") + "<button>Next</button>")
    button = page.get_by_role("button", name="Cancel: Import")

    with suppress(Cancelled), Progress(job, total=100, stage="Reading rows") as running:
        expect(shown(page, "stage")).to_have_text("Reading rows")
        button.focus()
        page.keyboard.press("Enter")
        expect(shown(page, "cancel")).to_have_text("Cancelling…")
        expect(shown(page, "cancel")).to_have_attribute("aria-disabled", "true")
        expect(shown(page, "cancel")).to_be_focused()
        wait_for(lambda: running.cancelled, what="the job sees it")
        running.check()

    expect(shown(page, "state")).to_have_text("Cancelled")
    expect(shown(page, "cancel")).to_be_hidden()
    expect(page.get_by_role("status").filter(has_text="Cancelled")).to_have_text("Import – Cancelled")
    expect(bar(page)).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Next")).to_be_focused()
    report(tab, job, percent=1)
    expect(button).to_be_visible()


@pytest.mark.parametrize("fault", ["refused", "login page", "broken", "unreachable"])
def test_button_says_that_it_did_not_cancel(tab: Tab, fault: str) -> None:
    """A refusal and a site that does not answer are told apart, and the button can be pressed again."""
    job = new_job(tab)
    page = tab.open(task(job, CANCEL))
    posted: list[str] = []

    def answer(route: Route) -> None:
        posted.append(route.request.post_data or "")
        if len(posted) > 1:
            route.continue_()
        elif fault == "unreachable":
            route.abort()
        elif fault == "login page":
            route.fulfill(status=302, headers={"Location": f"http://{tab.server.address}/"})
        else:
            route.fulfill(status=403 if fault == "refused" else 500)

    page.route("**/cancel/", answer)
    button = page.get_by_role("button", name="Cancel")
    button.click()

    refused = "The site refused: reload the page and try again"
    words = refused if fault in ("refused", "login page") else "The site did not answer: try again"
    expect(shown(page, "answer")).to_have_text(words)
    expect(page.get_by_role("status")).to_have_text(words)
    expect(shown(page, "cancel")).to_have_text("Cancel")
    button.click()
    expect(shown(page, "cancel")).to_have_text("Cancelling…")
    expect(shown(page, "answer")).to_be_hidden()
    wait_until(page, lambda: len(posted) == 2)
    assert [text.split("&")[0] for text in posted] == [f"topic={job.replace(':', '%3A')}"] * 2
    page.wait_for_timeout(200)
    expect(shown(page, "cancel")).to_have_text("Cancelling…")
    tab.expect_complaints("Failed to load resource")


def test_button_needs_an_address(tab: Tab) -> None:
    """Where the site has no view to cancel jobs there is no button: an empty address would be the page itself."""
    page = tab.open("{% url 'no:such' as cancel_url %}" + task(new_job(tab), "state='running' cancel_url=cancel_url"))
    expect(shown(page, "state")).to_have_text("Running")
    expect(page.get_by_role("button")).to_have_count(0)

    page.evaluate("document.querySelector('task-progress').setAttribute('cancel-url', '')")
    expect(page.get_by_role("button")).to_have_count(0)
    page.evaluate("document.querySelector('task-progress').setAttribute('cancel-url', '/a')")
    expect(page.get_by_role("button")).to_have_count(1)


def test_button_is_there_only_while_there_is_something_to_cancel(tab: Tab) -> None:
    """Not before the page may see the job, nor after its end."""
    jobs = [new_job(tab) for _ in range(3)]
    states = ("waiting", "running", "succeeded")
    page = tab.open("".join(task(job, f"state='{state}' {CANCEL}") for job, state in zip(jobs, states, strict=True)))

    expect(page.get_by_role("button")).to_have_count(2)
    page.emulate_media(media="print")
    expect(page.get_by_role("button")).to_have_count(0)
    page.emulate_media(media="screen")
    report(tab, jobs[0], "failed")
    expect(page.get_by_role("button")).to_have_count(1)


# <batch-progress>


def overall(page: Page) -> Locator:
    return page.get_by_role("progressbar", name="Imports")


def summary(page: Page) -> Locator:
    return page.locator("batch-progress").locator("[part~=state]").first


def test_batch_says_how_far_its_bars_are(tab: Tab) -> None:
    """Jobs and uploads are counted together; the bar is the mean of theirs; the end of all is announced, once."""
    jobs, upload = [new_job(tab) for _ in range(3)], tab.user.new_upload()
    page = tab.open(
        f"<batch-progress label='Imports'>{''.join(map(task, jobs))}"
        f"{{% upload_progress '{upload}' %}}{{% progress 'job' 'somebody' grant=False %}}</batch-progress>"
    )
    expect(shown(page, "stage").last).to_have_text("Not available")
    expect(summary(page)).to_have_text("0 of 4 finished")
    assert overall(page).get_attribute("aria-valuenow") is None

    report(tab, jobs[0], percent=50)
    report(tab, jobs[1], percent=10)
    expect(page.locator("task-progress").nth(1).locator("[part~=percent]")).to_have_text("10%")
    report(tab, jobs[1], "succeeded")
    expect(overall(page)).to_have_attribute("aria-valuetext", "37%, 1 of 4 finished")
    expect(page.locator("task-progress").nth(1).get_by_role("status")).to_have_text("")
    report(tab, jobs[0], "failed", percent=60)
    tab.complete(upload)
    expect(summary(page)).to_have_text("3 of 4 finished, 1 failed")
    expect(page.locator("task-progress").first.get_by_role("status")).to_have_text(re.compile("Failed"))
    expect(page.locator("batch-progress").get_by_role("status").first).to_have_text("")
    report(tab, jobs[2], "cancelled")

    expect(overall(page)).to_have_attribute("aria-valuetext", "100%, 4 of 4 finished, 1 failed, 1 cancelled")
    said = page.locator("batch-progress").locator("[role=status]").first
    expect(said).to_have_text("Imports – 4 of 4 finished, 1 failed, 1 cancelled")
    report(tab, jobs[2], percent=10)
    expect(said).to_have_text("")
    expect(summary(page)).to_have_text("3 of 4 finished, 1 failed")


def test_bars_of_a_batch_come_and_go(tab: Tab) -> None:
    """What is put in or taken out at any time counts from then on, wherever it was before."""
    first, second, third = (new_job(tab) for _ in range(3))
    page = tab.open(f"<batch-progress label='Imports'>{task(first)}</batch-progress>{task(second)}")
    report(tab, first, percent=10)
    expect(overall(page)).to_have_attribute("aria-valuenow", "10")
    report(tab, first, "succeeded")
    expect(summary(page)).to_have_text("1 of 1 finished")
    expect(page.locator("batch-progress").locator("[role=status]").first).to_have_text("Imports – 1 of 1 finished")

    page.evaluate("document.querySelector('batch-progress').append(document.querySelectorAll('task-progress')[1])")
    expect(summary(page)).to_have_text("1 of 2 finished")
    page.evaluate(
        """(topic) => {
            const bar = document.createElement("task-progress");
            bar.setAttribute("topic", topic);
            document.querySelector("batch-progress").append(document.createElement("p"));
            document.querySelector("batch-progress p").append(bar);
        }""",
        third,
    )
    expect(summary(page)).to_have_text("1 of 3 finished")
    page.evaluate("document.querySelector('batch-progress p').remove()")
    report(tab, second, percent=50)
    expect(overall(page)).to_have_attribute("aria-valuetext", "75%, 1 of 2 finished")
    page.evaluate("document.querySelectorAll('task-progress').forEach((bar) => bar.remove())")
    expect(summary(page)).to_have_text("Waiting")


def test_batch_that_had_ended_says_nothing(tab: Tab) -> None:
    """A page that is opened after the end shows it, and announces nothing, though its bars learn of it one by one."""
    jobs = [new_job(tab) for _ in range(5)]
    tab.open("elsewhere")
    for job in jobs:
        report(tab, job, "succeeded")

    page = tab.open(f"<batch-progress label='Imports'>{''.join(map(task, jobs))}</batch-progress>")

    expect(summary(page)).to_have_text("5 of 5 finished")
    expect(page.get_by_role("status")).to_have_text([""] * 6)


def test_batch_of_the_replaced_service(tab: Tab) -> None:
    """With its id the element shows what is said of that batch on the user's topic, and of no other."""
    page = tab.open("<batch-progress label='Imports' batch='7c9e'></batch-progress>")

    def tell(batch: str, **payload: object) -> None:
        counts = {"total": 8, "processed": 3, "successful": 2, "failed": 1, "progress_percentage": 37.5}
        tab.publish(
            f"user:{tab.user.pk}",
            action="batch_progress",
            payload={"batch_id": batch, "status": "processing", **counts, **payload},
        )

    tell("other", processed=7)
    tell("7c9e")
    expect(overall(page)).to_have_attribute("aria-valuetext", "37%, 3 of 8 finished, 1 failed")
    tab.publish(f"user:{tab.user.pk}", action="batch_progress", payload=None)
    tell("7c9e", status="completed", processed=8, failed=0, progress_percentage=100)

    expect(overall(page)).to_have_attribute("aria-valuetext", "100%, 8 of 8 finished")
    expect(page.get_by_role("status")).to_have_text("Imports – 8 of 8 finished")


# <upload-progress>


def test_upload_shows_messages_of_a_job(tab: Tab, settings: SimpleNamespace) -> None:
    """An upload may be tracked as any job: it has a count and a stage, its events are those of an upload."""
    point_to(settings, tab.site.redis.url)
    upload = tab.user.new_upload()
    page = tab.open(f"{{% upload_progress '{upload}' label='spring.jpg' %}}{TOASTS}")
    page.evaluate(
        "window.seen = []; document.addEventListener('upload-change',"
        " ({ detail }) => seen.push([detail.before, detail.status, detail.percent]))"
    )

    with Progress(f"upload:{upload}", total=200, unit="frames", stage="vision_analysis") as running:
        running.done = 80
        expect(shown(page, "count")).to_have_text("80 of 200 frames")
        expect(shown(page, "stage")).to_have_text("Analysing the images")
        expect(bar(page)).to_have_attribute("aria-valuenow", "40")

    expect(shown(page, "stage")).to_have_text("Completed")
    expect(shown(page, "title")).to_have_text("spring.jpg – Completed")
    assert page.evaluate("seen.at(-1)") == ["running", "completed", 100]
    expect(page.locator("upload-progress").get_by_role("status")).to_have_text("spring.jpg – Completed")
    report(tab, f"upload:{upload}", percent=2)  # somebody has it done again
    expect(bar(page)).to_have_attribute("aria-valuenow", "2")
    expect(page.locator("upload-progress").get_by_role("status")).to_have_text("")


# Looks


STATES = [
    f"label='Waiting' {CANCEL}",
    f"label='Running' state='running' done=8100 total=20000 unit='rows' stage='Reading rows' message='a.csv' {CANCEL}",
    f"label='{'name' * 30}' state='running' done=81 unit='{'unit' * 30}' stage='{'stage' * 30}' {CANCEL}",
    f"label='{'name ' * 30}' state='running' percent=7 message='{'message' * 30}' {CANCEL}",
    "label='Succeeded' state='succeeded' done=200 total=200 unit='rows' url='/a'",
    "label='Failed' state='failed' percent=30 stage='Reading rows' error='ValueError' url='/b'",
    "label='Cancelled' state='cancelled' percent=55",
]
STUCK_OUT = """() => {
    const room = document.documentElement.clientWidth;
    const bars = [...document.querySelectorAll("task-progress, upload-progress, batch-progress")];
    const parts = bars.flatMap(({ shadowRoot }) => [...shadowRoot.querySelectorAll("[part]")]);
    return parts
        .filter((part) => part.checkVisibility() && !/fill|outcome/.test(part.getAttribute("part")))
        .map((part) => [part.getAttribute("part"), part.getBoundingClientRect()])
        .filter(([, { left, right }]) => left < 0 || right > room)
        .map(([name, { left, right }]) => `${name}: ${left} to ${right} of ${room}`);
}"""
"""The parts of bars that do not fit into the window; what moves is cut off by its bar."""


@pytest.mark.parametrize(
    ("scheme", "direction", "width"),
    [("light", "ltr", 1100), ("dark", "rtl", 320), ("dark", "ltr", 320), ("light", "rtl", 160)],
    ids=["desk", "phone in the dark from right to left", "phone in the dark", "phone with a zoom of 200 %"],
)
def test_bars_in_every_state_can_be_seen_and_heard(tab: Tab, scheme: Any, direction: str, width: int) -> None:
    """They break no rule of accessibility and fit into the narrowest window, in both schemes and directions."""
    bars = "".join(task(new_job(tab), each) for each in STATES)
    page = tab.open(
        "<meta name='viewport' content='width=device-width'><meta name='color-scheme' content='light dark'>"
        f"<batch-progress label='All of them'>{bars}</batch-progress>",
        dir=direction,
    )
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    page.set_viewport_size({"width": width, "height": 700})
    page.evaluate("document.body.style.background = 'Canvas'")  # without one axe takes white
    expect(summary(page)).to_have_text("3 of 7 finished, 1 failed, 1 cancelled")

    assert violations(page) == []
    assert page.evaluate(STUCK_OUT) == []
    for button in page.get_by_role("button").all():
        button.click()
    expect(shown(page, "cancel").first).to_have_text("Cancelling…")
    assert page.evaluate(STUCK_OUT) == []
    assert all(label.bounding_box()["width"] >= 80 for label in shown(page, "label").all())
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_states_have_shapes_of_their_own(tab: Tab) -> None:
    """Without colours a word and a shape tell the states apart; and so they do on paper."""
    page = tab.open("".join(task(new_job(tab), each) for each in (STATES[0], *STATES[4:])))
    page.emulate_media(forced_colors="active")
    shape = "(state) => getComputedStyle(state, '::before').clipPath"

    shapes = [state.evaluate(shape) for state in shown(page, "state").all()]

    assert len(set(shapes)) == 4
    assert "none" not in shapes
    for state in shown(page, "state").all():
        colours = state.evaluate(
            "(state) => [getComputedStyle(state, '::before').backgroundColor, getComputedStyle(state).color]"
        )
        assert len(set(colours)) == 1
    page.emulate_media(media="print", forced_colors="none")
    for fill in shown(page, "fill").all():
        expect(fill).to_have_css("print-color-adjust", "exact")


# Many


def test_more_jobs_than_a_connection_has_topics(tab: Tab) -> None:
    """Each of more bars than a connection has topics is shown, also if none of them leaves by itself."""
    jobs = [new_job(tab) for _ in range(130)]
    for n, job in enumerate(jobs):
        report(tab, job, "failed" if n < 70 else "running", percent=30)

    page = tab.open("".join(map(task, jobs)))

    page.wait_for_function(
        "() => [...document.querySelectorAll('task-progress')].every(({ state }) => state.percent === 30)",
        timeout=3 * MILLISECONDS,
    )
    assert any("too_many_subscriptions" in text for text in tab.complaints)
    tab.expect_complaints("too_many_subscriptions")
    for job in jobs[70:]:
        report(tab, job, percent=31)
    page.wait_for_function(
        "() => [...document.querySelectorAll('task-progress')].slice(70).every(({ state }) => state.percent === 31)"
    )
