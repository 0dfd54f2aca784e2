"""The demo page as a person sees it: a Chromium, the page's elements, and a note of every message they were given."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import redis
from playwright.sync_api import BrowserContext, Locator, Page, expect

from project.children import Child
from project.management.commands.demo import answers
from tests.demo_site import ROOT, TIMEOUT, Demo, environment, wait_until
from tests.ports import free_port

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
HEADLESS = shutil.which("chromium-headless-shell") or CHROMIUM
"""
The same Chromium without what is around its pages, if it is there.

A page takes 0.1 s of a core instead of 0.4. It keeps no pages for the back button, and has no windows.
"""
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
MILLISECONDS = TIMEOUT * 1000
SCREENSHOTS = ROOT / "var" / "screenshots"

# Notes the id of every message that handlers are given: a list for each page that the tab has had.
RECORDER = """
document.addEventListener("DOMContentLoaded", async () => {
    const connection = await globalThis.notifications;
    if (!connection) return;
    const before = JSON.parse(sessionStorage.getItem("had") ?? "[]");
    const had = [];
    connection.onUser((message) => {
        if (!message._meta) return;
        had.push(message._meta.id);
        sessionStorage.setItem("had", JSON.stringify([...before, had]));
    });
});
"""


class Tab:
    """One tab with the demo page."""

    def __init__(self, context: BrowserContext, url: str) -> None:
        self.page: Page = context.new_page()
        self.page.add_init_script(RECORDER)
        self.url = url
        self.reload()

    def reload(self) -> None:
        """Go to the page, from wherever the tab is, and wait until it is live."""
        self.page.goto(self.url)
        self.expect_state("Live")

    def expect_state(self, text: str) -> None:
        expect(self.page.locator("#connection")).to_have_text(text)

    def network_returns(self) -> None:
        """Tell the page so, as browsers do: it tries at once, and does not wait out its delay."""
        self.page.evaluate("dispatchEvent(new Event('online'))")

    def upload(self, *files: Path) -> None:
        self.page.locator("#files").set_input_files(files)

    def row(self, name: str) -> Locator:
        return self.page.locator(".upload", has_text=name)

    def bar(self, name: str) -> Locator:
        return self.page.get_by_role("progressbar", name=name)

    def expect_completed(self, *names: str) -> None:
        for name in names:
            expect(self.bar(name)).to_have_attribute("aria-valuenow", "100")
            expect(self.row(name)).to_contain_text("SHA-256")

    def expect_begun(self, name: str) -> None:
        """Wait until a file is being read, and see that at once: in the end ``expect`` looks once a second."""
        self.page.wait_for_function(
            """(name) => [...document.querySelectorAll("upload-progress")].some(
                (each) => each.getAttribute("label") === name && each.state?.percent >= 1)""",
            arg=name,
        )

    def toast(self, text: str) -> Locator:
        return self.page.locator("notification-toasts [part~=toast]", has_text=text)

    def had(self) -> list[list[str]]:
        """Return the ids of the user's messages that each page of this tab was given so far."""
        return json.loads(self.page.evaluate("sessionStorage.getItem('had') ?? '[]'"))

    def open(self, title: str) -> None:
        """Open a part of the page that is closed at first; by keyboard, because a toast may lie over it."""
        self.page.locator("summary", has_text=title).press("Enter")

    def open_underneath(self) -> None:
        self.open("What happens underneath")

    def expect_nothing_missing(self) -> None:
        """See that the page counted no hole and no repetition in what its socket received."""
        assert self.page.locator("#missing").text_content() == "0"
        assert self.page.locator("#twice").text_content() == "0"

    def expect_everything(self, demo: Demo) -> None:
        """
        Wait until the tab has had every message of its user since its first: each page each once, in order.

        The first of a page may be the last of the page before: that one was still there while the new page was made,
        and the new page does not show yet what came after that.
        """

        def look() -> bool:
            had = self.had()
            return bool(had) and had[-1][-1] == last_id(demo)

        wait_until(look, "the last message in the tab")
        end = None
        for had in self.had():
            epoch, _, n = had[0].partition("-")
            first, last = int(n), int(n) + len(had) - 1
            assert had == [f"{epoch}-{n}" for n in range(first, last + 1)]  # ids of one epoch have no holes
            assert end is None or first <= end + 1
            end = last


def last_id(demo: Demo) -> str:
    """Return the id of what was last published to the demo's user."""
    with redis.Redis.from_url(demo.redis_url) as client:
        return client.xrevrange("notifications:history:user:1", count=1)[0][0].decode()


def publish(demo: Demo, **message: object) -> None:
    """Publish a notice as any foreign program does."""
    with redis.Redis.from_url(demo.redis_url) as client:
        client.publish("user:1", json.dumps({"action": "notice", **message}))


class OwnServer:
    """One more web server of a running demo, to be killed and started again on its port."""

    def __init__(self, demo: Demo) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}/"
        self._env = environment(demo.directory, REDIS_URL=demo.redis_url)
        daphne = [sys.executable, "-m", "daphne", "-v", "0", "-b", "127.0.0.1", "-p", str(port)]
        self._command = [*daphne, "project.asgi:application"]
        self._child: Child | None = None

    def start(self) -> None:
        """Start it, unless it runs."""
        if self._child is not None and self._child.returncode is None:
            return
        self._child = Child(self._command, env=self._env, cwd=ROOT)
        wait_until(lambda: answers(self.url), "an answer of the web server")

    def kill(self) -> None:
        """End it as ``kill -9`` does: its sockets break without a close."""
        if self._child is not None:
            self._child.kill()


def tokens(demo: Demo) -> list[str]:
    """Return two tokens of the demo's user: one that is good, one that has expired."""
    code = (
        "import time; from unittest.mock import patch; from notifications.tokens import make_token;"
        "from django.contrib.auth.models import User; user = User.objects.get(username='demo'); now = time.time();"
        "print(make_token(user))\n"
        "with patch('time.time', lambda: now - 3600): print(make_token(user))"
    )
    env = environment(demo.directory, REDIS_URL=demo.redis_url)
    command = [sys.executable, ROOT / "manage.py", "shell", "-v", "0", "-c", code]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=True, timeout=TIMEOUT).stdout.split()
