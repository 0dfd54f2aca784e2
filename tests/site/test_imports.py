"""Tables that are imported: from the page, by workers that come and go, and by the command in a terminal."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from tests.demo_site import (
    ROOT,
    TIMEOUT,
    Demo,
    Visitor,
    end_worker,
    environment,
    manage,
    receive,
    rows,
    running_demo,
    site_without_redis,
    socket_of,
    start_worker,
    wait_until,
)
from tests.faults import paused

SAMPLE = ROOT / "project/static/project/places.csv"
HEAD = b"name,country,latitude,longitude\n"


def table(rows: int) -> bytes:
    return HEAD + b"".join(b"Place %d,Norway,59.9,10.7\n" % n for n in range(rows))


# On the page


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def demo(directory: Path) -> Iterator[Demo]:
    with running_demo(directory) as demo:
        demo.url  # noqa: B018 - waits until it answers
        code = "from django.contrib.auth.models import User; User.objects.create_user('stranger', password='stranger')"
        manage(environment(directory), "shell", "-v", "0", "-c", code)
        yield demo


@pytest.fixture
def owner(demo: Demo) -> Iterator[Visitor]:
    visitor = Visitor(demo.url)
    visitor.log_in()
    yield visitor
    visitor.post("imports/clear/")


@pytest.fixture(scope="module")
def stranger(demo: Demo) -> Visitor:
    visitor = Visitor(demo.url)
    visitor.log_in("stranger", "stranger")
    return visitor


def send(visitor: Visitor, name: str, content: bytes) -> tuple[int, str]:
    status, page = visitor.post_files((name, content), path="imports/", field="file")
    return status, page.decode()


def page_of(visitor: Visitor) -> str:
    return visitor.get("imports/")[1].decode()


def bars(page: str) -> list[dict[str, str]]:
    """Return the attributes of each bar on a page, as a browser reads them."""
    tags = re.findall(r"<task-progress ([^>]*)>", page)
    return [{name: unescape(value) for name, value in re.findall(r'([\w-]+)="([^"]*)"', tag)} for tag in tags]


def ended(visitor: Visitor, name: str) -> dict[str, str]:
    """Wait until the page says that an import has ended, and return what it says."""

    def look() -> dict[str, str] | None:
        bar = next(bar for bar in bars(page_of(visitor)) if bar["label"] == name)
        return bar if bar["state"] not in ("waiting", "running") else None

    return wait_until(look, f"the end of {name}")


def subscribe(socket: Any, bar: dict[str, str]) -> None:
    socket.send(json.dumps({"action": "subscribe", "topic": bar["topic"], "since": "last", "grant": bar["grant"]}))


def watch(socket: Any, bar: dict[str, str]) -> list[dict[str, Any]]:
    """Return all that is told of a job from its latest message on, until it ends."""
    subscribe(socket, bar)
    return rest_of(socket)


def rest_of(socket: Any) -> list[dict[str, Any]]:
    """Return all that is told of a job from now on, until it ends."""
    told: list[dict[str, Any]] = []
    while not told or told[-1]["state"] in ("waiting", "running"):
        told.append(receive(socket, "progress")["payload"])
    return told


def test_sample_is_imported_by_one_click(demo: Demo, owner: Visitor):
    """Every row of the sample is in the database but two, the bar says so step by step, and a notice at the end."""
    with socket_of(owner) as socket:
        receive(socket, "auth_success")
        with paused(demo.child("run_worker")):
            status, page = owner.post("imports/", b"sample=1")
            (bar,) = bars(page.decode())
            socket.send(json.dumps({"action": "subscribe", **{k: bar[k] for k in ("topic", "grant")}, "since": "last"}))
            first = receive(socket, "progress")["payload"]
        told, notices = [first], []
        while told[-1]["state"] in ("waiting", "running") or not notices:
            frame = receive(socket, "progress", "notice")
            if frame["action"] == "progress":
                told.append(frame["payload"])
            elif frame["url"] == f"/imports/{first['id']}/":  # that of the test before may come late
                notices.append(frame)
        (notice,) = notices

    assert (status, first["state"], first["done"]) == (200, "waiting", None)
    assert told[-1] | {"id": None} == {
        "id": None,
        "state": "succeeded",
        "percent": 100,
        "done": 420,
        "total": 420,
        "unit": "rows",
        "stage": "Importing",
        "message": "2 wrong",
        "eta": None,
        "error": None,
        "url": f"/imports/{told[-1]['id']}/",
    }
    assert (notice["title"], notice["level"], notice["url"]) == ("Import of places.csv", "success", told[-1]["url"])
    result = owner.get(told[-1]["url"].lstrip("/"))[1].decode()
    assert "418 places of 420 rows." in result
    assert "Line 99: country: This field is required." in result
    assert "Line 292: latitude: Ensure this value is greater than or equal to -90." in result
    assert "<td>Andorra</td><td>Andorra</td><td>42.5</td>" in result
    assert "These are the first 100." in result
    bar = ended(owner, "places.csv")
    assert (bar["done"], bar["message"], bar["url"]) == ("420", "2 wrong", told[-1]["url"])


def test_sample_is_what_the_page_gives_out(owner: Visitor):
    """The sample can be downloaded, and what was downloaded can be sent."""
    assert owner.get("static/project/places.csv") == (200, SAMPLE.read_bytes())

    assert send(owner, "mine.csv", SAMPLE.read_bytes())[0] == 200
    assert ended(owner, "mine.csv")["state"] == "succeeded"


def test_file_that_is_no_table_fails_and_says_why(owner: Visitor):
    """A picture with the name of a table is a failed import, with a reason on the page and in the log's words."""
    assert send(owner, "broken.csv", b"\x89PNG\r\n")[0] == 200

    bar = ended(owner, "broken.csv")
    assert bar["state"] == "failed"
    assert bar["error"].startswith("Line 1 is not text in UTF-8.")
    assert "url" not in bar


def test_files_are_validated(owner: Visitor):
    """No file, an empty one and a large one are refused before anything is stored, and the page says why."""
    for answer, reason in [
        (owner.post("imports/"), "This field is required."),
        (send(owner, "empty.csv", b""), "The submitted file is empty."),
        (send(owner, "large.csv", bytes(1024 * 1024 + 1)), "It is larger than 1.0\xa0MB."),
    ]:
        status, page = answer
        assert status == 400
        assert reason in (page if isinstance(page, str) else page.decode())
    assert "Nothing here yet." in page_of(owner)
    assert "large.csv" not in page_of(owner)


def test_name_of_a_file_is_only_text(owner: Visitor, directory: Path):
    """A hostile name is shown as it is, and never becomes a path."""
    send(owner, "../../<b>evil.csv", table(1))

    assert ended(owner, "<b>evil.csv")["state"] == "succeeded"
    assert "<b>evil" not in page_of(owner)
    assert not list(directory.rglob("*evil*"))


def test_only_the_owner_sees_an_import(demo: Demo, owner: Visitor, stranger: Visitor):
    """A stranger learns nothing of an import, cannot watch it with its owner's grant, and cannot cancel it."""
    with paused(demo.child("run_worker")):
        (bar,) = bars(send(owner, "secret.csv", table(3))[1])
        body = f"topic={bar['topic']}&grant={bar['grant']}".encode()

        assert "secret.csv" not in page_of(stranger)
        assert stranger.get(f"imports/{bar['topic'].partition(':')[2]}/")[0] == 404
        assert stranger.post("notifications/cancel/", body)[0] == 403
        assert owner.post("notifications/cancel/", f"topic={bar['topic']}".encode())[0] == 403
        for visitor, grant in [(stranger, bar["grant"]), (stranger, None), (owner, None)]:
            with socket_of(visitor) as socket:
                socket.send(json.dumps({"action": "subscribe", "topic": bar["topic"], "grant": grant}))
                assert receive(socket, "subscribed", "error")["code"] == "forbidden"
    assert ended(owner, "secret.csv")["state"] == "succeeded"


def test_cancelled_import_leaves_no_rows(demo: Demo, owner: Visitor, directory: Path):
    """The button works while the import still waits, and nothing of it is in the database."""
    with socket_of(owner) as socket, paused(demo.child("run_worker")):
        (bar,) = bars(send(owner, "unwanted.csv", table(50))[1])
        assert owner.post("notifications/cancel/", f"topic={bar['topic']}&grant={bar['grant']}".encode())[0] == 204
        os.kill(demo.child("run_worker").pid, signal.SIGCONT)
        told = watch(socket, bar)

    assert told[-1]["state"] == "cancelled"
    assert ended(owner, "unwanted.csv")["state"] == "cancelled"
    assert rows(environment(directory), "imports_place", "1", "name LIKE 'Place %'") == []


def test_clear_deletes_what_has_finished(demo: Demo, owner: Visitor, directory: Path):
    """Clearing leaves neither rows nor files of what has finished, and what waits alone."""
    send(owner, "gone.csv", table(3))
    ended(owner, "gone.csv")
    with paused(demo.child("run_worker")):
        send(owner, "kept.csv", table(4))

        page = owner.post("imports/clear/")[1].decode()

        assert "gone.csv" not in page
        assert "kept.csv" in page
        assert len(list((directory / "media/imports").iterdir())) == 1
    assert ended(owner, "kept.csv")["state"] == "succeeded"


def test_imports_are_for_users_only(demo: Demo, owner: Visitor):
    """Anonymous users and forms of other sites can import nothing."""
    nobody = Visitor(demo.url)
    nobody.get("login/")

    for answer in (nobody.get("imports/"), nobody.post("imports/", b"sample=1"), nobody.post("imports/clear/")):
        assert b"Log in" in answer[1]
    assert owner.post("imports/", b"sample=1", token="x" * 32)[0] == 403


# Workers


CREATE = """
from django.contrib.auth.models import User
from django.core.files.base import ContentFile
from project.imports.models import Import
owner = User.objects.create_user("demo")
Import.objects.create(owner=owner, name="t.csv", file=ContentFile({content!r}, "t.csv"), **{fields!r})
"""


@pytest.fixture
def site(tmp_path: Path) -> dict[str, str]:
    return site_without_redis(tmp_path)


def create(env: dict[str, str], content: bytes, **fields: object) -> None:
    manage(env, "shell", "-v", "0", "-c", CREATE.format(content=content, fields=fields))


def imports(env: dict[str, str], columns: str, condition: str = "1") -> list[tuple[Any, ...]]:
    return rows(env, "imports_import", columns, condition)


def test_import_of_a_killed_worker_goes_on(site: dict[str, str]):
    """After kill -9 of its worker another goes on behind the last batch: no row is missing, and none is there twice."""
    create(site, table(200))
    victim = start_worker(site, DEMO_PACE="0.05")
    wait_until(lambda: imports(site, "1", "done >= 20"), "some rows")
    victim.kill()
    victim.communicate()
    [(reached,)] = imports(site, "done")
    assert reached < 200

    heir = start_worker(site)
    wait_until(lambda: imports(site, "1", "status = 'succeeded'"), "the end")
    end_worker(heir)

    assert imports(site, "done, refused, attempts") == [(200, 0, 2)]
    names = rows(site, "imports_place", "name")
    assert names == [(f"Place {n}",) for n in range(200)]


def test_table_that_kills_its_workers_is_given_up(site: dict[str, str]):
    """An import over which three workers died fails, instead of killing a fourth."""
    create(site, table(3), attempts=3)
    worker = start_worker(site)

    wait_until(lambda: imports(site, "1", "status = 'failed'"), "the failure")
    end_worker(worker)

    assert imports(site, "error") == [("3 workers died over this file.",)]


def test_worker_that_is_stopped_ends_its_import(site: dict[str, str]):
    """A worker that is asked to stop does not leave an import in the middle: it stops resting."""
    create(site, table(200))
    worker = start_worker(site, DEMO_PACE="600")
    wait_until(lambda: imports(site, "1", "done > 0"), "some rows")

    output = end_worker(worker)

    assert imports(site, "status, done, attempts") == [("succeeded", 200, 1)]
    assert "succeeded: import " in output


def test_import_that_was_taken_by_another_is_left_alone(site: dict[str, str]):
    """A worker that was believed dead writes nothing more when it wakes up."""
    create(site, table(200))
    slow = start_worker(site, DEMO_PACE="0.05")
    wait_until(lambda: imports(site, "1", "done > 0"), "some rows")
    slow.send_signal(signal.SIGSTOP)
    heir = start_worker(site)
    wait_until(lambda: imports(site, "1", "status = 'succeeded'"), "the end")
    slow.send_signal(signal.SIGCONT)

    assert "lost: import " in end_worker(slow)
    end_worker(heir)
    assert imports(site, "status, done") == [("succeeded", 200)]
    assert len(rows(site, "imports_place", "1")) == 200


def test_bar_goes_on_where_its_worker_was_lost(tmp_path: Path):
    """
    After kill -9 of the worker the bar stays where it is, and another worker takes it from there to its end.

    So it is if the worker only hangs, and wakes up afterwards: the end of the other is what is shown.
    """
    with running_demo(tmp_path, CLAIM_LEASE="1", DEMO_PACE="0.05") as demo:
        visitor = Visitor(demo.url)
        visitor.log_in()
        env = environment(tmp_path, REDIS_URL=demo.redis_url, CLAIM_LEASE="1", DEMO_PACE="0.05")
        heir = demo.child("run_worker")
        for lost in (signal.SIGKILL, signal.SIGSTOP):
            with socket_of(visitor) as socket, paused(heir):
                worker = start_worker(env)
                (bar, *_) = bars(send(visitor, f"{lost.name}.csv", table(200))[1])
                subscribe(socket, bar)
                told = [receive(socket, "progress")["payload"]]
                while not told[-1]["done"]:
                    told.append(receive(socket, "progress")["payload"])
                worker.send_signal(lost)
                os.kill(heir.pid, signal.SIGCONT)
                told += rest_of(socket)
            if lost is signal.SIGKILL:
                worker.communicate()
            else:
                worker.send_signal(signal.SIGCONT)
                assert "lost: import " in end_worker(worker)
            numbers = [each["done"] for each in told if each["done"] is not None]
            assert numbers == sorted(numbers)
            assert (told[-1]["state"], told[-1]["done"]) == ("succeeded", 200)
            with socket_of(visitor) as socket:
                assert watch(socket, bar)[-1]["state"] == "succeeded"


# The command


class Terminal:
    """``manage.py import_csv`` in a terminal: standard input and error are one, as where somebody types it."""

    def __init__(self, env: dict[str, str], *arguments: str | Path) -> None:
        self._master, end = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, ROOT / "manage.py", "import_csv", *arguments],
            env=env | {"COLUMNS": "120"},
            stdin=end,
            stdout=subprocess.PIPE,
            stderr=end,
            text=True,
            start_new_session=True,
        )
        os.close(end)
        self.seen = ""

    def expect(self, pattern: str) -> None:
        """Read on until the terminal has shown ``pattern``."""
        while not re.search(pattern, self.seen):
            text = self._read()
            assert text, f"no {pattern!r} in {self.seen!r}"
            self.seen += text

    def end(self) -> tuple[int, str]:
        """Return the exit code, and what was written to standard output."""
        while text := self._read():
            self.seen += text
        output = self.process.communicate(timeout=TIMEOUT)[0]
        os.close(self._master)
        return self.process.returncode, output

    def _read(self) -> str:
        try:
            return os.read(self._master, 10_000).decode(errors="replace")
        except OSError:  # Linux says EIO when the other end is closed
            return ""


def test_command_shows_the_bar_in_the_terminal_and_on_the_page(demo: Demo, owner: Visitor, directory: Path):
    """One import, two places: the terminal has the bar, and whoever has the page open is told the same."""
    env = environment(directory, REDIS_URL=demo.redis_url)
    with socket_of(owner) as socket:
        receive(socket, "auth_success")
        code, output = (terminal := Terminal(env, SAMPLE)).end()
        url = ended(owner, "places.csv")["url"]
        while (notice := receive(socket, "notice"))["url"] != url:
            pass  # that of the test before came late

    assert (code, output) == (0, "418 places of 420 rows; 2 were wrong\n")
    assert re.search(r"Importing  100 % \[#{30}\]  420/420 rows  succeeded  2 wrong", terminal.seen)
    assert terminal.seen.endswith("\r\n")
    assert (notice["title"], notice["level"]) == ("Import of places.csv", "success")
    assert ended(owner, "places.csv")["state"] == "succeeded"


def test_command_in_a_pipe_shows_no_bar(demo: Demo, owner: Visitor, directory: Path):
    """Where nobody looks, there is no bar; what was wrong is told with more verbosity, and nothing with none."""
    env = environment(directory, REDIS_URL=demo.redis_url)

    def run(verbosity: str) -> tuple[str, str]:
        command = [sys.executable, ROOT / "manage.py", "import_csv", SAMPLE, "-v", verbosity]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=TIMEOUT, check=True)
        return done.stdout, done.stderr

    assert run("0") == ("", "")
    assert run("1") == ("418 places of 420 rows; 2 were wrong\n", "")
    assert "line 99: country: This field is required.\n" in run("2")[0]


def test_command_in_a_terminal_can_be_silent(demo: Demo, owner: Visitor, directory: Path):
    """With --verbosity 0 there is no bar in a terminal, either."""
    terminal = Terminal(environment(directory, REDIS_URL=demo.redis_url), SAMPLE, "--verbosity", "0")

    assert terminal.end() == (0, "")
    assert terminal.seen == ""


def test_ctrl_c_cancels_in_both_places(demo: Demo, owner: Visitor, directory: Path):
    """After Ctrl-C the terminal, the page and the database all say that the import was cancelled."""
    slow = environment(directory, REDIS_URL=demo.redis_url, DEMO_PACE="0.05")
    terminal = Terminal(slow, SAMPLE)
    terminal.expect(r"Importing +\d+ %")
    (bar,) = bars(page_of(owner))
    with socket_of(owner) as socket:
        os.killpg(terminal.process.pid, signal.SIGINT)
        told = watch(socket, bar)
    code, output = terminal.end()

    assert (code, output) == (130, "")
    assert told[-1]["state"] == "cancelled"
    assert "cancelled" in terminal.seen
    assert "Traceback" not in terminal.seen
    assert ended(owner, "places.csv")["state"] == "cancelled"
    assert rows(slow, "imports_place", "1") == []


def test_command_says_what_is_wrong(site: dict[str, str], tmp_path: Path):
    """A file that is not there, one that is no table, and a user who does not exist: one line each, no traceback."""
    create(site, table(1))
    (tmp_path / "list.txt").write_text("words\n")
    for arguments, reason in [
        ((tmp_path / "nothing.csv",), "No such file"),
        ((tmp_path / "list.txt",), "The first line has to name the columns"),
        ((SAMPLE, "--user", "nobody"), "matching query does not exist"),
    ]:
        command = [sys.executable, ROOT / "manage.py", "import_csv", *arguments]
        done = subprocess.run(command, env=site, capture_output=True, text=True, timeout=TIMEOUT)
        assert done.returncode == 1
        assert reason in done.stderr
        assert "Traceback" not in done.stderr
