"""
The guides of docs/how-to for pages, followed in a real Chromium, with the packages of npm that they are about.

``make guides`` installs those into ``tests/pages``.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlencode

import pytest
from playwright.sync_api import Browser, Page, Route, expect

from project.local_redis import LocalRedis
from tests.demo_browser import CHROMIUM, MILLISECONDS
from tests.guides import ROOT, environment, files_of, find_program, listens, start_project, write
from tests.ports import free_port
from tests.processes import Process, Site, User, WebServer
from tests.waiting import wait_for

PACKAGES = ROOT / "tests/pages/node_modules"

pytestmark = [
    pytest.mark.skipif(
        CHROMIUM is None and "CI" not in os.environ, reason="no Chromium on PATH: tests/install_browsers says why"
    ),
    pytest.mark.skipif(
        not PACKAGES.exists() and "CI" not in os.environ, reason="nothing in tests/pages: make guides, with npm"
    ),
]
expect.set_options(timeout=MILLISECONDS)


@pytest.fixture(scope="module")
def pages(
    redis_program: None, migrated_database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Site, WebServer]]:
    """A site with collected static files, a web server and a listener."""
    directory = tmp_path_factory.mktemp("pages")
    with Site(directory, migrated_database, settings={"STATIC_ROOT": str(directory / "static")}) as site:
        assert site.run("collectstatic", "--noinput").returncode == 0
        server = site.start_server("daphne")
        site.start_listener()
        yield site, server


@pytest.fixture
def user(pages: tuple[Site, WebServer]) -> User:
    return pages[0].add_user()


@pytest.fixture
def page(browser: Browser, user: User) -> Iterator[Page]:
    """A page of a browser that has logged in at 127.0.0.1."""
    name, _, value = user.cookie.partition("=")
    with browser.new_context() as context:
        context.add_cookies([{"name": name, "value": value, "domain": "127.0.0.1", "path": "/"}])
        context.set_default_timeout(MILLISECONDS)
        yield context.new_page()


def publish(site: Site, topic: str, **message: object) -> None:
    with site.client() as client:
        assert client.publish(topic, json.dumps(message)) > 0


APP = {
    "index.html": '<!doctype html><div id="root"></div><script type="module" src="/src/main.jsx"></script>',
    "src/main.jsx": """
import { StrictMode } from "react";
import { createRoot } from "react-dom/client";

import { Progress } from "./Progress.jsx";

const upload = new URLSearchParams(location.search).get("upload");
createRoot(document.getElementById("root")).render(<StrictMode><Progress upload={upload} /></StrictMode>);
""",
    "package.json": '{"type": "module"}',
}
"""The smallest app around the guide's component."""


def run_vite(directory: Path, *words: str) -> Process:
    vite = directory / "node_modules/vite/bin/vite.js"
    return Process([find_program("node"), vite, *words], env=os.environ, name="vite", cwd=directory)


@pytest.mark.parametrize("built", [False, True], ids=["development server", "built"])
def test_react_shows_progress(
    pages: tuple[Site, WebServer], page: Page, user: User, tmp_path: Path, built: bool
) -> None:
    """The component of the guide shows what is published, in Vite's development server and when it is built."""
    site, server = pages
    write("react", tmp_path)
    for name, text in APP.items():
        (tmp_path / name).write_text(text)
    config = tmp_path / "vite.config.js"
    config.write_text(config.read_text().replace("127.0.0.1:8000", server.address))
    shutil.copytree(PACKAGES, tmp_path / "node_modules", symlinks=True, copy_function=os.link)
    command = []
    if built:
        build = run_vite(tmp_path, "build")
        assert build.wait(60) == 0, build.output
        assert not re.search(r"warn|unresolved", build.output, re.IGNORECASE), build.output
        command = ["preview"]
    vite = run_vite(tmp_path, *command, "--host", "127.0.0.1", "--port", str(port := free_port()), "--strictPort")
    try:
        vite.wait_for_line(r"127\.0\.0\.1", 60)
        upload = user.new_upload()
        page.goto(f"http://127.0.0.1:{port}/?upload={upload}")
        bar = page.get_by_role("progressbar")
        for percent in (40, 70):
            payload = {"upload_id": upload, "progress_percent": percent}
            publish(site, f"upload:{upload}", action="upload_progress", payload=payload)
            expect(bar).to_have_js_property("value", percent)
    finally:
        vite.terminate(20)


@pytest.mark.parametrize("package", ["htmx.org", "htmx2"])
def test_htmx_loads_a_list_again(pages: tuple[Site, WebServer], page: Page, user: User, package: str) -> None:
    """The list of the guide is there when the page opens, and there again after each message on the user's topic."""
    site, server = pages
    files = files_of("htmx")
    order = f"{user.username}7"
    [asked] = [0]

    def orders(route: Route) -> None:
        nonlocal asked
        asked += 1
        route.fulfill(body=f"<li>{asked} times</li>", content_type="text/html")

    page.route("**/orders/", orders)
    page.route("**/htmx.js", lambda route: route.fulfill(path=PACKAGES / package / "dist/htmx.min.js"))
    assert "order:7" in files["orders.html"]
    template = '<body><script src="/htmx.js"></script>' + files["orders.html"].replace("order:7", f"order:{order}")
    query = {"template": template, "scripts": "script-src 'self' 'unsafe-inline'"}
    page.goto(f"http://{server.address}/page/?{urlencode(query)}")
    expect(page.locator("#orders li")).to_have_text("1 times")
    for times in (2, 3):  # the first perhaps before the page has subscribed
        publish(site, f"order:{order}", action="order_changed")
        expect(page.locator("#orders li")).to_have_text(f"{times} times")


def test_kind_of_the_htmx_guide_is_one(settings: object) -> None:
    """What the guide adds to the settings names the kind that its page asks for."""
    from notifications.topics import Topic

    given = {"NOTIFICATIONS": {**settings.NOTIFICATIONS, "TOPICS": {}}}
    exec(files_of("htmx")["kinds.py"], given)
    settings.NOTIFICATIONS = given["NOTIFICATIONS"]

    [topic] = re.findall(r'subscribe\("(order:7)"', files_of("htmx")["orders.html"])
    assert str(Topic.parse(topic)) == topic


def test_an_existing_site_shows_notices_in_the_admin(
    browser: Browser, redis_server: LocalRedis, tmp_path: Path
) -> None:
    """A site with a package of settings follows the guide; its admin, whose pages are not its own, has toasts."""
    site = start_project(tmp_path / "site")
    (site / "mysite/settings.py").rename(site / "base.py")
    (site / "mysite/settings").mkdir()
    base = (site / "base.py").rename(site / "mysite/settings/base.py")
    text = base.read_text().replace(
        '["daphne", *INSTALLED_APPS, "notifications"]', '[*INSTALLED_APPS, "notifications"]'
    )
    text = text.replace("resolve().parent.parent", "resolve().parent.parent.parent")
    text, found = re.subn(r"(.DIRS.): \[\]", r'\1: [BASE_DIR / "templates"]', text)
    assert found == 1
    base.write_text(text)
    write("existing-site", site)
    (site / "mysite/__init__.py").touch()
    env = environment(
        REDIS_URL=redis_server.url,
        DJANGO_SETTINGS_MODULE="mysite.settings.local",
        DJANGO_SUPERUSER_PASSWORD="secret",
        PYTHONUNBUFFERED="1",
    )

    def manage(*words: str) -> None:
        done = subprocess.run([sys.executable, "manage.py", *words], cwd=site, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr

    manage("migrate", "-v", "0")
    manage("createsuperuser", "--noinput", "--username", "admin", "--email", "a@example.com")
    port = free_port()
    with ExitStack() as stack:
        for words in (["runserver", str(port), "--noreload"], ["run_listener"]):
            process = Process([sys.executable, "manage.py", *words], env=env, name=words[0], cwd=site)
            stack.callback(process.close)
            process.wait_for_line("Quit the server|listening on user", 30)
        wait_for(lambda: listens(port), 30)
        page = stack.enter_context(browser.new_context()).new_page()
        page.set_default_timeout(MILLISECONDS)
        page.goto(f"http://127.0.0.1:{port}/admin/")
        page.get_by_label("Username").fill("admin")
        page.get_by_label("Password").fill("secret")
        page.get_by_role("button", name="Log in").click()
        expect(page.get_by_role("button", name="Log out")).to_be_visible()  # from here on nothing is missed
        manage("send_notification", "admin", "It works in the admin")
        expect(page.get_by_text("It works in the admin")).to_be_visible()
