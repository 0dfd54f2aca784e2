"""What the tests of the browser share: Chromium, a site, a server that a test may kill, and the road to it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

import notifications
from tests.demo_browser import FLAGS, HEADLESS
from tests.faults import HttpProxy
from tests.ports import free_port
from tests.processes import Site, WebServer


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    assert HEADLESS, "CI is set and there is no Chromium: tests/install_browsers says why"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=HEADLESS, args=FLAGS)
        yield browser
        browser.close()


@dataclass
class Place:
    """A site whose server a test may kill, and a road to it that a test may hinder or close."""

    site: Site
    port: int
    road: HttpProxy
    server: WebServer | None = None

    @property
    def url(self) -> str:
        """Of the site's first page, which has no connection."""
        return f"http://127.0.0.1:{self.road.port}/"

    def start(self) -> None:
        if self.server is None:
            self.server = self.site.start_server("uvicorn", self.port)

    def kill(self) -> None:
        if self.server is not None:
            self.server.kill()
            self.server = None

    @contextmanager
    def closed_road(self) -> Iterator[None]:
        """End all connections, and every new one at once."""
        self.road.lead_to(free_port())
        self.road.cut()
        try:
            yield
        finally:
            self.road.lead_to(self.port)

    def publish(self, topic: str, **message: object) -> None:
        with self.site.client() as client:
            client.publish(topic, json.dumps(message))


@pytest.fixture(scope="module")
def place_of_all(
    redis_program: None, migrated_database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Place]:
    port = free_port()
    settings = {"STATIC_ROOT": str(Path(notifications.__file__).parent / "static")}
    with Site(tmp_path_factory.mktemp("place"), migrated_database, settings=settings) as site, HttpProxy(port) as road:
        site.start_listener()
        yield Place(site, port, road)


@pytest.fixture
def place(place_of_all: Place) -> Place:
    """The site, with a running server and an open road: the test before may have left them otherwise."""
    place_of_all.start()
    place_of_all.road.upgrades, place_of_all.road.buffers = True, False
    return place_of_all
