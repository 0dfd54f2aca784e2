"""The demo command, as a process that a person starts and stops."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from project.local_redis import LocalRedis
from tests.demo_site import (
    ROOT,
    TIMEOUT,
    Demo,
    Visitor,
    environment,
    receive,
    running_demo,
    socket_of,
    wait_until,
)
from tests.ports import free_port


def press_ctrl_c_twice(demo: Demo) -> None:
    demo.interrupt()
    demo.interrupt()


@pytest.mark.parametrize(
    "end",
    [Demo.interrupt, press_ctrl_c_twice, lambda demo: demo.process.terminate()],
    ids=["ctrl-c", "ctrl-c twice", "sigterm"],
)
def test_end_is_quiet_and_complete(end: Callable[[Demo], None], tmp_path: Path):
    """Ctrl-C and SIGTERM end every process of the demo, with exit code 0 and without a traceback."""
    with running_demo(tmp_path, PYTHONWARNINGS="error") as demo:
        assert Visitor(demo.url).get("")[0] == 200
        family = demo.family()
        assert len(family) == 1 + 2 * 4  # the command, and a guard and a process each for Redis and its three

        end(demo)

        assert demo.wait() == 0
        assert psutil.wait_procs(family, timeout=TIMEOUT)[1] == []
    assert demo.lines[-1] == "demo     | all stopped\n"
    for word in ("Traceback", "Error", "WARNING", "GET ", "killed"):
        assert word not in demo.output


def test_kill_leaves_nothing(tmp_path: Path):
    """Not even kill -9 of the command leaves a process behind."""
    with running_demo(tmp_path) as demo:
        demo.url  # noqa: B018 - waits until all of it runs
        family = demo.family()

        demo.process.kill()

        assert psutil.wait_procs(family[1:], timeout=TIMEOUT)[1] == []


def test_ctrl_c_before_the_page_is_up(tmp_path: Path):
    """An early Ctrl-C is as quiet and as complete as a late one."""
    with running_demo(tmp_path) as demo:
        demo.expect("started Redis")
        family = demo.family()

        demo.interrupt()

        assert demo.wait() == 0, demo.output
        assert psutil.wait_procs(family, timeout=TIMEOUT)[1] == []
    assert "Traceback" not in demo.output


def test_taken_port_is_passed_over(tmp_path: Path):
    """If somebody listens on PORT, the demo says so and takes the next free one."""
    port = free_port(followed_by=1)
    with socket.create_server(("127.0.0.1", port)), running_demo(tmp_path, PORT=str(port)) as demo:
        url = demo.url

        assert int(url.rstrip("/").rpartition(":")[2]) > port
        assert f"port {port} is taken: using " in demo.output


def test_lost_child_ends_the_demo(tmp_path: Path):
    """If a part dies, the demo says which and ends with an error, instead of showing half a site."""
    with running_demo(tmp_path) as demo:
        demo.expect("waiting for uploads and imports")
        family = demo.family()

        demo.child("run_worker").kill()

        assert demo.wait() == 1
        assert psutil.wait_procs(family, timeout=TIMEOUT)[1] == []
    assert "worker ended by itself, exit code 137" in demo.output


def test_given_redis_is_used(tmp_path: Path):
    """With REDIS_URL set to a server that answers, no other is started, and its password is not shown."""
    with LocalRedis(password="hush") as server, running_demo(tmp_path, REDIS_URL=server.url) as demo:
        visitor = Visitor(demo.url)
        visitor.log_in()
        page = visitor.get("")[1].decode()

        assert len(demo.family()) == 1 + 2 * 3
        assert f"redis://***@127.0.0.1:{server.port}/0" in page
        assert "hush" not in page + demo.output


def test_dead_redis_is_replaced(tmp_path: Path):
    """With REDIS_URL set to a server that does not answer, the demo says so and starts its own."""
    with running_demo(tmp_path, REDIS_URL=f"redis://:hush@127.0.0.1:{free_port()}/0") as demo:
        assert demo.redis_url.startswith("redis://127.0.0.1:")
        assert "no Redis at REDIS_URL, redis://***@127.0.0.1" in demo.output


def test_second_start_keeps_what_was_there(tmp_path: Path):
    """The user is made once, and uploads of an earlier run are still on the page."""
    with running_demo(tmp_path) as demo:
        visitor = Visitor(demo.url)
        visitor.log_in()
        visitor.upload(("kept.txt", b"words"))
        visitor.finished("kept.txt")
    with running_demo(tmp_path) as demo:
        visitor = Visitor(demo.url)
        visitor.log_in()
        assert visitor.states()["kept.txt"]["status"] == "completed"


def test_demo_refuses_to_be_production(tmp_path: Path):
    """With DEBUG off there would be no static files and a known password: the command says so."""
    env = environment(tmp_path, DEBUG="0", SECRET_KEY="x" * 60)

    result = subprocess.run(
        [sys.executable, ROOT / "manage.py", "demo"], env=env, capture_output=True, text=True, timeout=TIMEOUT
    )

    assert result.returncode == 1
    assert "run it with DEBUG=1" in result.stderr


def test_hangup_of_the_terminal_ends_the_demo(tmp_path: Path):
    """Closing the terminal's window ends the demo as Ctrl-C does."""
    with running_demo(tmp_path) as demo:
        demo.expect("started Redis")
        family = demo.family()

        os.killpg(demo.process.pid, signal.SIGHUP)

        assert demo.wait() == 0, demo.output
        assert psutil.wait_procs(family, timeout=TIMEOUT)[1] == []


INTERRUPTED = """
import os, signal, sqlite3
import django

django.setup()
from project.management.commands.demo import Command


def migrate(stack):
    with sqlite3.connect(":memory:") as database:
        database.create_function("end", 0, lambda: os.kill(os.getpid(), signal.SIGHUP))
        database.execute("SELECT end()")


command = Command()
command._run = migrate
command.handle()
"""


def test_an_end_that_a_library_takes_for_an_error_is_an_end(tmp_path: Path):
    """SQLite makes an error of whatever is raised in its functions, as while the demo migrates."""
    env = environment(tmp_path, DJANGO_SETTINGS_MODULE="project.settings")

    result = subprocess.run(
        [sys.executable, "-c", INTERRUPTED], cwd=ROOT, env=env, capture_output=True, text=True, timeout=TIMEOUT
    )

    assert (result.returncode, result.stderr) == (0, "")
    assert "all stopped" in result.stdout


def test_button_kills_and_restarts_the_listener(tmp_path: Path):
    """The page's button ends the listener as kill -9 does; another comes, and what was said between is not lost."""
    with running_demo(tmp_path) as demo:
        visitor = Visitor(demo.url)
        visitor.log_in()
        demo.expect("listening on")
        with socket_of(visitor) as socket:
            receive(socket, "auth_success")

            status, answer = visitor.post("listener/kill/")
            visitor.upload(("meanwhile.txt", b"words"))

            assert status == 200
            assert not psutil.pid_exists(json.loads(answer)["pid"])
            assert "was killed" in receive(socket, "notice")["title"]  # the very first one: none came before it
            assert receive(socket, "notice")["title"] == "Finished: 1 file analysed"
        wait_until(lambda: demo.output.count("listening on") == 2, "another listener")
        family = demo.family()
        assert len(family) == 1 + 2 * 4
        demo.interrupt()
        assert demo.wait() == 0
        assert psutil.wait_procs(family, timeout=TIMEOUT)[1] == []
    assert "Traceback" not in demo.output


def test_socket_of_the_button_goes_with_the_demo(tmp_path: Path):
    """The directory in which the command listens is for its user only, and gone after kill -9, too."""
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    with running_demo(tmp_path, TMPDIR=str(temporary)) as demo:
        demo.url  # noqa: B018 - waits until all of it runs
        (directory,) = temporary.glob("demo-*")
        family = demo.family()

        assert directory.stat().st_mode & 0o777 == 0o700
        demo.process.kill()

        psutil.wait_procs(family[1:], timeout=TIMEOUT)
        assert list(temporary.iterdir()) == []


def test_button_is_never_in_production(tmp_path: Path):
    """Without DEBUG the variable that brings the button means nothing."""
    env = environment(tmp_path, DEBUG="0", SECRET_KEY="x" * 60, KILL_SWITCH="/some/path")
    command = [sys.executable, ROOT / "manage.py", "shell", "-v", "0", "-c"]
    code = "from django.conf import settings; print([settings.KILL_SWITCH])"

    result = subprocess.run([*command, code], env=env, capture_output=True, text=True, timeout=TIMEOUT)

    assert result.stdout == "['']\n"
