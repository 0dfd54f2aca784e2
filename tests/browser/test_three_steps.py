"""Install, settings, runserver: a notice in the browser, with no Redis on the machine."""

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.demo_browser import CHROMIUM, MILLISECONDS
from tests.newcomer import PASSWORD, STARTED, Newcomer, install, make_environment
from tests.repository.test_readme import marked
from tests.site.test_readme import sources, wheel  # noqa: F401  fixtures
from tests.waiting import scaled

pytestmark = pytest.mark.skipif(
    CHROMIUM is None and "CI" not in os.environ, reason="no Chromium on PATH: tests/install_browsers says why"
)
LIMIT = 60.0
"""Seconds from the first step to the notice, before scaling, on a machine that does nothing else."""

PAGE = """
from django.contrib.admin.views.decorators import staff_member_required
from django.http import HttpResponse
from django.template import engines
from django.urls import path

@staff_member_required
def page(request):
    text = "<!doctype html>{% load notifications %}{% notifications %}<notification-toasts></notification-toasts>"
    return HttpResponse(engines["django"].from_string(text).render({}, request))

urlpatterns += [path("page/", page)]
"""


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="site-") as name:
        yield Path(name)


def log_in(page: Page, url: str, goes_to: str = "/admin/") -> None:
    page.goto(f"{url}/admin/login/?next={goes_to}")
    page.fill("[name=username]", "admin")
    page.fill("[name=password]", PASSWORD)
    page.click("[type=submit]")


def test_three_steps_show_a_notice(
    wheel: Path,  # noqa: F811  the fixture
    browser: Browser,
    directory: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """
    Below 60 s, with the lines of the README and nothing else.

    Ctrl-C then leaves no process and no socket.
    """
    began = time.monotonic()
    python = make_environment(directory / "venv")
    install(python, wheel)
    installed = time.monotonic()
    site = Newcomer(directory / "mysite", python, PYTHONPATH="")
    where = site.run('python -c "import notifications; print(notifications.__file__)"').strip()
    assert Path(where).is_relative_to(directory.resolve()), "not the wheel's"
    site.append("mysite/settings.py", marked("step: settings"))
    assert "E0" not in site.run("python manage.py check")
    site.migrate()
    assert site.processes() == [], "a command that publishes nothing has started something"
    with site.serving() as (url, server):
        page = browser.new_page()
        log_in(page, url)
        page.evaluate(f"(async () => {{ {marked('step: browser')} }})()")
        said = site.run(marked("step: send"))

        expect(page.locator("notification-toasts")).to_contain_text("It works", timeout=MILLISECONDS)
        shown = time.monotonic()
        page.close()
        assert "Published on user:" in said
        assert server.find_line(STARTED)
    site.check_left()
    with capsys.disabled():
        print(f"\n[install {installed - began:.1f} s, settings to notice {shown - installed:.1f} s]", end=" ")  # noqa: T201  for whoever runs it
    others = max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
    assert shown - began < scaled(LIMIT) * others


def test_without_daphne_pages_poll(browser: Browser, directory: Path) -> None:
    """Django's own runserver has no WebSockets: with the stream mounted, the notice comes over HTTP."""
    site = Newcomer(directory)
    site.append("mysite/settings.py", marked("step: settings").replace('"daphne", ', ""))
    site.mount()
    site.append("mysite/urls.py", PAGE)
    site.migrate()
    with site.serving() as (url, _server):
        page = browser.new_page()
        log_in(page, url, "/page/")
        site.run(marked("step: send"))

        expect(page.locator("notification-toasts")).to_contain_text("It works", timeout=MILLISECONDS)
        page.close()
    site.check_left()
