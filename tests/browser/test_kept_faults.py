"""Real pages with a bell and a list, while all that stands behind them is stopped and killed."""

from __future__ import annotations

import asyncio
import random
import re
import time
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlencode

import pytest
from playwright.async_api import Browser, Locator, Page, async_playwright, expect

import notifications
from tests import storm
from tests.conftest import point_to
from tests.demo_browser import FLAGS, HEADLESS, MILLISECONDS
from tests.kept_run import KeptRun, database_of
from tests.processes import LAYERS, User, WebServer
from tests.waiting import await_for, scaled

pytestmark = [pytest.mark.faults, pytest.mark.skipif(HEADLESS is None, reason="there is no Chromium")]

PAGE = "{% load notifications_inbox %}{% notifications %}{% notification_bell %}{% notification_inbox %}"
SHOWN = 20
"""Notices that a list shows at first."""


@pytest.mark.parametrize("seed", storm.seeds())
@pytest.mark.parametrize("size", [20, pytest.param(5000, marks=pytest.mark.faults_long)])
async def test_pages_show_what_was_committed_while_everything_was_away(new_site, settings, seed, size):
    """
    Their number and list are those of the database when all has come back, by themselves.

    With a history that is too short for what they missed, they ask the site.
    """
    chance = random.Random(seed)
    options = {"HISTORY_SIZE": size, "HEARTBEAT_INTERVAL": 3}
    new_site.settings = {
        "CHANNEL_LAYER_BACKEND": LAYERS["ours"],
        "NOTIFICATIONS": options,
        "STATIC_ROOT": str(Path(notifications.__file__).parent / "static"),
    }
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, **options}
    point_to(settings, new_site.redis.url)
    with database_of("sqlite", new_site) as database:
        server, listener = new_site.start_all("uvicorn")
        async with (
            async_playwright() as playwright,
            KeptRun(new_site, database, [server], [listener], users=2, tabs=4) as run,
        ):
            browser = await playwright.chromium.launch(executable_path=HEADLESS, args=FLAGS)
            pages = [await open_page(browser, server, user) for user in run.users]
            run.keep(notices=10)
            await run.kept()
            await expect_shown(run, pages)
            new_site.client().save()
            new_site.redis.kill()
            run.keep(seed=seed, notices=90, threads=2, many=5)
            await run.committed(10 + chance.randrange(50))
            for process in chance.sample([server, listener], 2):
                process.kill()
            await run.kept()
            assert len(run.rows()) == 10 + 100

            await run.start(*chance.sample(["redis", "server", "listener"], 3))
            await run.expect_all_shown()
            await expect_shown(run, pages)

            began = time.monotonic()
            await run.browsers[0].mark("read", until=max(map(int, run.browsers[0].shown)))
            await expect(bell(pages[0])).to_have_accessible_name("Notices")
            assert time.monotonic() - began < scaled(3)
            await pages[1].get_by_role("button", name="Mark all as read").click()
            await await_for(lambda: all(tab.unread == 0 for tab in run.browsers))
            await run.expect_all_shown()
            await expect_shown(run, pages)
            await browser.close()
        for process in (*run.servers, *run.listeners):
            process.kill()


async def open_page(browser: Browser, server: WebServer, user: User) -> Page:
    """Open a page of a user who is logged in."""
    context = await browser.new_context()
    context.set_default_timeout(MILLISECONDS)
    name, _, value = user.cookie.partition("=")
    await context.add_cookies([{"name": name, "value": value, "url": f"http://{server.address}"}])
    page = await context.new_page()
    await page.goto(f"http://{server.address}/page/?" + urlencode({"template": PAGE}))
    return page


def bell(page: Page) -> Locator:
    return page.locator("notification-bell").get_by_role("button", name=re.compile("^Notices"))


async def expect_shown(run: KeptRun, pages: list[Page]) -> None:
    """Wait until each page has the number of the database, and the newest notices, each of them once."""
    for page, user in zip(pages, run.users, strict=True):
        rows = [row for row in run.rows() if row.user == user.pk]
        unread = sum(not row.read for row in rows)
        name = f"Notices, {unread} unread" if unread else "Notices"
        await expect(bell(page)).to_have_accessible_name(name, timeout=3 * MILLISECONDS)
        titles = page.locator("notification-inbox [part~=notice] [part=title]")
        newest = [row.title for row in sorted(rows, key=lambda row: -int(row.id))]
        there: list[str] = []
        with suppress(TimeoutError):  # what comes live may be shown before the page has asked for what it missed
            async with asyncio.timeout(scaled(30)):
                while there != newest[: len(there)] or len(there) < min(len(rows), SHOWN):
                    await asyncio.sleep(0.05)
                    there = await titles.all_inner_texts()
        assert there == newest[: len(there)]
        assert len(there) >= min(len(rows), SHOWN)
