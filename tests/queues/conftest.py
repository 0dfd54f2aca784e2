"""Fixtures of the tests of queues: a newcomer's site in a directory of its own."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from itertools import count
from pathlib import Path

import pytest
import redis

from project.local_redis import LocalRedis
from tests.guides import start_project
from tests.queues.site import QueueSite


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of a site by the steps of the README, to be copied and not to be changed."""
    return start_project(tmp_path_factory.mktemp("project") / "site")


@pytest.fixture
def make_site(redis_server: LocalRedis, project: Path, tmp_path: Path) -> Iterator[Callable[..., QueueSite]]:
    """Return ``make_site(files, settings="")``: a site with these files besides, on the run's Redis, emptied."""
    with redis.Redis.from_url(redis_server.url) as client:
        client.flushall()
    numbers = count(1)
    with ExitStack() as stack:

        def make(files: dict[str, str], settings: str = "") -> QueueSite:
            directory = Path(shutil.copytree(project, tmp_path / f"site-{next(numbers)}"))
            return stack.enter_context(closing(QueueSite(directory, redis_server.url, files, settings)))

        yield make
