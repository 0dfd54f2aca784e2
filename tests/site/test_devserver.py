"""A listener beside ``manage.py runserver``: which runserver, how many, how long."""

import os
import re
import signal
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.newcomer import HOLDING, LISTENING, STARTED, Newcomer
from tests.repository.test_readme import marked
from tests.waiting import wait_for

DAPHNE, STATIC = '"daphne", ', '    "django.contrib.staticfiles",\n'.replace('"', "'")

TESTS = """
from django.contrib.auth.models import User
from django.test import TestCase
from notifications import publish_to_user

class Publishing(TestCase):
    def test_a_message_gets_its_id(self):
        self.assertTrue(publish_to_user(User.objects.create_user("ada"), {"n": 1}).endswith("-1"))
"""


@pytest.fixture(scope="module")
def site() -> Iterator[Newcomer]:
    """A fresh project with the README's settings; tests change them at the end of the file."""
    with tempfile.TemporaryDirectory(prefix="site-") as name:
        site = Newcomer(Path(name))
        site.append("mysite/settings.py", marked("step: settings"))
        site.migrate()
        yield site


@pytest.fixture
def settings_file(site: Newcomer) -> Iterator[Path]:
    """The settings, which are as before afterwards."""
    file = site.directory / "mysite/settings.py"
    before = file.read_text()
    yield file
    file.write_text(before)
    site.check_left()


def states(site: Newcomer) -> list[str]:
    """Return what the health check says of each listener; nothing while none has reported to be connected."""
    with suppress(AssertionError):
        return re.findall(r": ([a-z-]+)", site.run("python manage.py run_listener --check"))
    return []


@pytest.mark.parametrize("command", ["daphne", "staticfiles", "django"])
@pytest.mark.parametrize("options", [(), ("--noreload",)], ids=["reload", "noreload"])
def test_every_runserver_has_one_listener(
    site: Newcomer, settings_file: Path, command: str, options: tuple[str, ...]
) -> None:
    """Daphne's, that of staticfiles and Django's own; its lines are among the server's, and it is the one in charge."""
    text = settings_file.read_text()
    if command != "daphne":
        text = text.replace(DAPHNE, "")
    if command == "django":
        assert STATIC in text
        text = text.replace(STATIC, "")
    settings_file.write_text(text)
    with site.serving(*options) as (_url, server):
        server.wait_for_line(HOLDING)
        assert (" ASGI/Daphne " in server.output) == (command == "daphne")
        wait_for(lambda: states(site) == ["holder"], 20)
        assert [line for line in server.lines if STARTED in line] != []
    assert server.output.count("listening on") == 1
    assert server.find_line("stopped; forwarded"), "it did not hand over"


def test_a_reload_restarts_the_listener_and_keeps_the_server(site: Newcomer, settings_file: Path) -> None:
    """The lease is handed over, so the next one holds it at once; what was published before is still there."""
    with site.serving() as (_url, server):
        server.wait_for_line(HOLDING)
        site.run(marked("step: send"))
        mark = server.mark()
        (site.directory / "mysite/urls.py").touch()

        server.wait_for_line(LISTENING, seconds=20, after=mark)
        server.wait_for_line(HOLDING, after=mark)
        said = site.run(
            "python manage.py shell -v 0 -c "
            "\"from notifications.positions import position; print(position('user:1').partition('-')[2])\""
        )
    assert said.strip() == "1"
    assert sum(STARTED in line for line in server.lines) == 1


def test_a_killed_runserver_leaves_nothing(site: Newcomer, settings_file: Path) -> None:
    """Neither a listener nor a Redis: the first is part of it, and the other's watcher sees that its lock is free."""
    with site.serving() as (_url, server):
        server.wait_for_line(HOLDING)
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
    site.check_left()


def test_a_sites_own_tests_have_the_same_redis(site: Newcomer, settings_file: Path) -> None:
    """Although DEBUG is off in them; and it ends with them."""
    site.append("mysite/tests.py", TESTS)

    assert "OK" in site.run("python manage.py test mysite")
    site.check_left()


@pytest.mark.parametrize("changed", ['NOTIFICATIONS["DEV_LISTENER"] = False', 'DEBUG = False; ALLOWED_HOSTS = ["*"]'])
def test_where_it_is_not_wanted_there_is_none(site: Newcomer, settings_file: Path, changed: str) -> None:
    """Switched off, or without DEBUG, ``runserver`` is as it always was."""
    settings_file.write_text(f"{settings_file.read_text()}\n{changed}\n")
    if "DEBUG" in changed:
        site.append("mysite/settings.py", 'NOTIFICATIONS["REDIS_URL"] = "redis://127.0.0.1:1"\n')
    with site.serving("--noreload") as (_url, server):
        pass
    assert "listening on" not in server.output
