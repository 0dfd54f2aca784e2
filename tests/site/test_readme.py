"""
Follow the README and the documents, and compare them with the code.

A newcomer builds the wheel, installs it into a fresh site by the README's steps, starts the README's
processes and sees their notice arrive. The steps, examples and tables are taken out of the documents themselves:
they are the code blocks and tables behind marks such as ``<!-- step: settings -->``.
"""

import contextlib
import dataclasses
import http.cookiejar
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import types
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from http.client import HTTPResponse
from pathlib import Path

import pytest
import redis
from django.contrib.auth import get_user_model
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from notifications import messages
from notifications.access import control
from notifications.history.inlet import Entry, fields_of
from project.children import Child
from project.local_redis import LocalRedis, find_client
from tests.ports import free_port
from tests.repository.test_readme import (
    example,
    marked,
    request_of,
)
from tests.waiting import scaled, wait_for

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
MESSAGES, OPERATIONS, PROGRESS, PROTOCOL, SECURITY = (
    ROOT / "docs" / name for name in ("messages.md", "operations.md", "progress.md", "protocol.md", "security.md")
)
TIMEOUT = scaled(30)
"""Seconds for what takes one or two on an idle machine."""

# No warning of anybody is let through: on the pinned versions there is none.
PYTHON = [sys.executable, "-W", "error"]


# Installing it


@dataclasses.dataclass
class Site:
    """A site that followed the README, on the disk."""

    directory: Path
    package: Path
    """Where the wheel was unpacked."""
    redis_url: str
    cookies: http.cookiejar.CookieJar = dataclasses.field(default_factory=http.cookiejar.CookieJar)

    @property
    def environment(self) -> dict[str, str]:
        own = {"PYTHONPATH": str(self.package), "REDIS_URL": self.redis_url, "PYTHONDONTWRITEBYTECODE": "1"}
        return {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ} | own

    def run(self, command: str, **environment: str) -> str:
        """Run a line of the README in the site's directory to its end, and return all it said."""
        done = subprocess.run(
            self.command(command),
            cwd=self.directory,
            env=self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIMEOUT,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    def command(self, command: str) -> list[str]:
        program, *arguments = shlex.split(command)
        if program == "python":
            return [*PYTHON, *arguments]
        return [*PYTHON, "-m", program, *arguments]

    @contextlib.contextmanager
    def running(self, command: str, *, until: Callable[[Path], bool]) -> Iterator[None]:
        """Keep a line of the README running; it must end well when it is told to stop."""
        with tempfile.TemporaryDirectory() as directory:
            log = Path(directory) / "log"
            with log.open("wb") as output:
                child = Child(self.command(command), env=self.environment, cwd=self.directory, output=output)
            try:
                deadline = time.monotonic() + TIMEOUT
                while not until(log):
                    assert child.returncode is None, log.read_text()
                    assert time.monotonic() < deadline, f"{command} is not ready: {log.read_text()}"
                    time.sleep(0.02)
                yield
            finally:
                child.stop()
            assert "Traceback" not in log.read_text(), log.read_text()
            assert "Warning" not in log.read_text(), log.read_text()

    @contextlib.contextmanager
    def serving(self, server: str) -> Iterator[str]:
        """Run a server and the listener as the README says; yield the address of the site."""
        port = free_port()
        server = {"runserver": f"python manage.py runserver {port} --noreload"}.get(server, f"{server} --port {port}")
        url = f"http://127.0.0.1:{port}"
        listener = marked("step: serve").splitlines()[1]
        with (
            self.running(server, until=lambda _: answers(f"{url}/admin/login/")),
            self.running(listener, until=lambda log: "listening on user:* upload:*" in log.read_text()),
        ):
            yield url

    def log_in(self, url: str) -> None:
        """Log the superuser in through the admin's form, as a browser does."""
        self.cookies.clear()
        opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(self.cookies))
        page = fetch(opener, f"{url}/admin/login/")
        (token,) = set(re.findall(r'name="csrfmiddlewaretoken" value="(\w+)"', page))
        form = {"csrfmiddlewaretoken": token, "username": "admin", "password": PASSWORD, "next": "/admin/"}
        request = urllib.request.Request(f"{url}/admin/login/", urllib.parse.urlencode(form).encode())
        request.add_header("Referer", f"{url}/admin/login/")
        assert "Log out" in fetch(opener, request)

    def open_socket(self, url: str, origin: str | None = None) -> ClientConnection:
        """Open a WebSocket as a page of ``origin`` does, by default one of the site."""
        cookies = "; ".join(f"{cookie.name}={cookie.value}" for cookie in self.cookies)
        return connect(
            f"{url.replace('http', 'ws', 1)}/ws/notifications/",
            origin=origin or url,
            additional_headers={"Cookie": cookies},
            open_timeout=TIMEOUT,
            proxy=None,
        )


PASSWORD = "correct horse battery staple"


def fetch(opener: urllib.request.OpenerDirector, request: str | urllib.request.Request) -> str:
    response: HTTPResponse
    with opener.open(request, timeout=TIMEOUT) as response:
        return response.read().decode()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def receive(socket_: ClientConnection) -> dict[str, object]:
    frame: dict[str, object] = json.loads(socket_.recv(timeout=TIMEOUT))
    return frame


@pytest.fixture(scope="module")
def sources() -> Iterator[Path]:
    """Copy the sources, so that nothing that is built is left in them."""
    with tempfile.TemporaryDirectory() as directory:
        copy = Path(directory) / "source"
        unwanted = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "var", "node_modules")
        shutil.copytree(ROOT, copy, ignore=unwanted)
        yield copy


@pytest.fixture(scope="module")
def wheel(sources: Path) -> Path:
    """Build the wheel, without a network."""
    return build_wheel(sources, sources.parent / "wheel")


@pytest.fixture(scope="module")
def sdist(sources: Path) -> Path:
    """Build the source distribution, as ``python -m build`` does, without a network."""
    code = f"from setuptools import build_meta; print(build_meta.build_sdist({str(sources.parent / 'sdist')!r}))"
    said = subprocess.run([*PYTHON, "-c", code], cwd=sources, capture_output=True, text=True, timeout=120, check=True)
    return sources.parent / "sdist" / said.stdout.split()[-1]


def build_wheel(source: Path, directory: Path) -> Path:
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(directory), str(source))
    (built,) = directory.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def redis_server() -> Iterator[LocalRedis]:
    with LocalRedis() as server:
        yield server


@pytest.fixture(scope="module")
def site(wheel: Path, redis_server: LocalRedis) -> Iterator[Site]:
    """Start a fresh project and apply all steps of the README to it, and the AUTHORIZE of docs/security.md."""
    with tempfile.TemporaryDirectory() as directory:
        package, project = Path(directory) / "package", Path(directory) / "project"
        assert marked("step: install").startswith("python -m pip install ")
        pip("install", "--no-deps", "--target", str(package), str(wheel))
        project.mkdir()
        site = Site(project, package, redis_server.url)
        site.run("django startproject mysite .")
        with (project / "mysite/settings.py").open("a") as settings:
            settings.write(marked("step: settings") + marked("step: topics", SECURITY))
        (project / "mysite/permissions.py").write_text(marked("step: authorize", SECURITY))
        (project / "mysite/asgi.py").write_text(marked("step: asgi"))
        (mount,) = re.findall(r"add `(path\(.*?\))` to `mysite/urls.py`", README)
        with (project / "mysite/urls.py").open("a") as urls:
            urls.write(f"\nfrom django.urls import include\nurlpatterns += [{mount}]\n")
        site.run(marked("step: run").splitlines()[0])
        site.run(
            "python manage.py createsuperuser --noinput --username admin --email a@example.com",
            DJANGO_SUPERUSER_PASSWORD=PASSWORD,
        )
        yield site


def pip(*arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments],
        env=os.environ | {"PIP_NO_INDEX": "1", "PIP_NO_CACHE_DIR": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout


def test_wheel_holds_the_app_and_nothing_else(wheel: Path) -> None:
    """The wheel has every module of notifications, py.typed and the plugin of pytest, and nothing of demo or tests."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = archive.read(next(name for name in names if name.endswith(".dist-info/METADATA"))).decode()

    sources = (path for path in (ROOT / "notifications").rglob("*") if path.is_file())
    wanted = {str(path.relative_to(ROOT)) for path in sources if path.suffix != ".pyc"} | {"notifications_pytest.py"}
    assert "notifications/py.typed" in wanted
    assert {name for name in names if ".dist-info/" not in name} == wanted
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert "# notifications\n" in metadata


def test_sdist_makes_the_same_wheel(sdist: Path, wheel: Path, tmp_path: Path) -> None:
    """What is built from the source distribution is, file for file, what is built from a clone."""
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    with zipfile.ZipFile(wheel) as clone, zipfile.ZipFile(build_wheel(sdist, tmp_path)) as again:
        assert {file.filename: file.CRC for file in again.infolist()} == {
            file.filename: file.CRC for file in clone.infolist()
        }

    assert {"LICENSE", "README.md", "CHANGELOG.md", "SECURITY.md", "docs/delivery.md"} <= names
    assert not {name for name in names if name.startswith(("project", "benchmarks", "."))}


def test_installed_site_uses_the_wheel(site: Site) -> None:
    """The site imports the app from where the wheel was unpacked, so that the other tests prove something."""
    said = site.run('python -c "import notifications; print(notifications.__file__)"')

    assert Path(said.strip()).is_relative_to(site.package)


def test_steps_pass_the_system_checks(site: Site) -> None:
    """manage.py check says nothing about the site, not even a warning."""
    assert "no issues (0 silenced)" in site.run("python manage.py check --fail-level WARNING")


@pytest.mark.parametrize(
    "server",
    [
        "runserver",
        "daphne mysite.asgi:application",
        "uvicorn mysite.asgi:application --ws notifications.uvicorn:WebSocketProtocol",
    ],
    ids=["runserver", "daphne", "uvicorn"],
)
def test_steps_carry_a_notice_to_the_browser(site: Site, server: str) -> None:
    """After the steps a logged-in user's socket receives what send_notification sends."""
    assert server in README
    with site.serving(server) as url:
        site.log_in(url)
        with site.open_socket(url) as tab:
            hello = receive(tab)
            assert hello["action"] == "auth_success"
            user = hello["user_id"]

            tab.send(json.dumps({"action": "subscribe_upload", "upload_id": f"{user}-spring.jpg"}))
            assert receive(tab)["action"] == "subscribed"
            tab.send(json.dumps({"action": "subscribe_upload", "upload_id": "another's"}))
            assert receive(tab)["code"] == "forbidden"

            said = site.run(marked("step: send"))
            notice = receive(tab)

    assert f"Published on user:{user}." in said
    assert {name: notice[name] for name in ("action", "title", "level")} == {
        "action": "notice",
        "title": "It works",
        "level": "success",
    }


def test_token_opens_a_socket_without_a_session(site: Site) -> None:
    """A token of make_token() in the first frame says who a socket is, also without any cookie."""
    script = (
        "from django.contrib.auth.models import User; from notifications.tokens import make_token;"
        " print(make_token(User.objects.get()))"
    )
    token = site.run(f'python manage.py shell -v 0 -c "{script}"').split()[-1]
    site.cookies.clear()
    with site.serving("daphne mysite.asgi:application") as url, site.open_socket(url) as phone:
        phone.send(json.dumps({"type": "auth", "token": token}))
        assert receive(phone)["action"] == "auth_success"
        site.run(marked("step: send"))
        assert receive(phone)["title"] == "It works"


def test_forged_token_is_refused(site: Site) -> None:
    """A token that nobody signed is answered with auth_error and close code 4003."""
    site.cookies.clear()
    with site.serving("daphne mysite.asgi:application") as url, site.open_socket(url) as phone:
        phone.send(json.dumps({"type": "auth", "token": "forged"}))
        assert receive(phone)["action"] == "auth_error"
        with pytest.raises(ConnectionClosed) as closed:
            phone.recv(timeout=TIMEOUT)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 4003


def test_application_that_is_written_out_is_that_of_the_package() -> None:
    """The asgi.py of docs/how-to/existing-site.md has the pages and the socket of notifications.asgi."""
    from notifications import asgi

    written = example("asgi", ROOT / "docs/how-to/existing-site.md")["application"]

    assert written.application_mapping.keys() == asgi.application.application_mapping.keys()
    for protocol, application in written.application_mapping.items():
        assert type(application) is type(asgi.application.application_mapping[protocol])


def test_health_check_tells_whether_a_listener_runs(site: Site) -> None:
    """run_listener --check exits 0 while a listener runs, and otherwise 1."""
    with pytest.raises(AssertionError, match="no listener on"):
        site.run("python manage.py run_listener --check")
    with site.serving("runserver"):
        wait_for_states(site, ["holder"])


def find_chromium() -> str | None:
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.skipif(find_chromium() is None and "CI" not in os.environ, reason="there is no Chromium")
def test_script_of_the_readme_works_in_a_browser(site: Site) -> None:
    """The README's script, pasted into the console of the admin, shows what is published."""
    from playwright.sync_api import expect, sync_playwright

    with (
        site.serving("runserver") as url,
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=find_chromium(), args=["--no-sandbox"]) as browser,
    ):
        page = browser.new_page()
        log_in_by_the_form(page, url)
        with page.expect_event("websocket") as opening:
            page.evaluate(f"(async () => {{ {marked('step: browser')} }})()")
        opening.value.wait_for_event("framereceived", lambda frame: "auth_success" in str(frame))
        site.run(marked("step: send"))
        expect(page.locator("notification-toasts")).to_contain_text("It works", timeout=TIMEOUT * 1000)


def log_in_by_the_form(page, url: str) -> None:
    page.goto(f"{url}/admin/")
    page.fill("[name=username]", "admin")
    page.fill("[name=password]", PASSWORD)
    page.click("[type=submit]")
    page.wait_for_load_state()  # with a file half sent, Django's runserver leaves it open, and says so


BAR = """
from django.http import HttpResponse
from django.template import engines
from django.urls import path

class Import:
    pk, name = 7, "places.csv"

def page(request):
    return HttpResponse(engines["django"].from_string({template!r}).render({{"import": Import}}, request))

urlpatterns += [path("import/", page)]
"""


@pytest.mark.skipif(find_chromium() is None and "CI" not in os.environ, reason="there is no Chromium")
def test_bar_of_the_readme_works_in_a_browser(site: Site, tmp_path: Path) -> None:
    """
    After the steps, and nothing else, the two lines of the README show the job of its other example.

    So does the page of docs/progress.md on which one can try it.
    """
    from playwright.sync_api import expect, sync_playwright

    bare = dataclasses.replace(site, directory=tmp_path / "project")
    shutil.copytree(site.directory, bare.directory)
    settings = bare.directory / "mysite/settings.py"
    settings.write_text(settings.read_text().replace(marked("step: topics", SECURITY), ""))
    (bare.directory / "mysite/permissions.py").unlink()
    with (bare.directory / "mysite/urls.py").open("a") as urls:
        urls.write(BAR.format(template="<!doctype html><title>Import</title>" + marked("example: template")))
        urls.write('from mysite import views\n\nurlpatterns += [path("try/", views.bar)]\n')
    (bare.directory / "mysite/views.py").write_text(marked("file: mysite/views.py", PROGRESS))
    (bare.directory / "mysite/imports.py").write_text(marked("example: job"))
    work = (
        "from types import SimpleNamespace; from mysite.imports import import_rows;"
        " import_rows(7, [SimpleNamespace(save=lambda: None)] * 420)"
    )
    with (
        bare.serving("runserver") as url,
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=find_chromium(), args=["--no-sandbox"]) as browser,
    ):
        page = browser.new_page()
        log_in_by_the_form(page, url)
        page.goto(f"{url}/import/")
        bar = page.get_by_role("progressbar", name="places.csv")
        expect(bar).not_to_have_attribute("aria-valuenow", "100", timeout=TIMEOUT * 1000)

        bare.run(f'python manage.py shell -v 0 -c "{work}"')

        expect(bar).to_have_attribute("aria-valuenow", "100", timeout=TIMEOUT * 1000)
        expect(page.locator("task-progress")).to_contain_text("420")

        page.goto(f"{url}/try/")
        job = marked("example: progress-try", PROGRESS).replace("0.1", "0.001")
        bare.run(f"python manage.py shell -v 0 -c {shlex.quote(job)}")

        expect(page.locator("task-progress")).to_contain_text("100 of 100 steps", timeout=TIMEOUT * 1000)
    assert "no issues (0 silenced)" in bare.run("python manage.py check --fail-level WARNING")


@pytest.mark.skipif(find_chromium() is None and "CI" not in os.environ, reason="there is no Chromium")
def test_script_without_the_client_recovers(site: Site) -> None:
    """The script of docs/protocol.md writes what is published to the console, also what came while it was away."""
    from playwright.sync_api import sync_playwright

    with (
        site.serving("runserver") as url,
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=find_chromium(), args=["--no-sandbox"]) as browser,
    ):
        page = browser.new_page()
        page.add_init_script(
            "window.sockets = [];"
            "window.WebSocket = class extends WebSocket { constructor(...a) { super(...a); sockets.push(this); } };"
            "const wait = setTimeout;"
            "window.setTimeout = (f, ms) => { if (ms >= 1000) window.comeBack = () => f(); else return wait(f, ms); };"
        )
        log_in_by_the_form(page, url)
        with page.expect_event("websocket") as opening:
            page.evaluate(marked("example: script", PROTOCOL))
        opening.value.wait_for_event("framereceived", lambda frame: "subscribed" in str(frame))
        lines: list[str] = []
        page.on("console", lambda line: lines.append(line.text))
        with page.expect_console_message(lambda line: "success It works" in line.text):
            site.run(marked("step: send"))
        page.evaluate("sockets.at(-1).close()")
        page.wait_for_function("!!window.comeBack")  # the page waits, until we say that the time is over
        site.run(marked("step: send"))
        assert page.evaluate("sockets.length") == 1
        with page.expect_event("websocket") as reopening:
            page.evaluate("comeBack()")
        assert "?since=" in reopening.value.url
        reopening.value.wait_for_event("framereceived", lambda frame: "subscribed" in str(frame))
        deadline = time.monotonic() + TIMEOUT
        while len(lines) < 2 and time.monotonic() < deadline:  # the frame comes first
            page.wait_for_timeout(20)
        page.wait_for_timeout(200)
    assert lines == ["success It works"] * 2


# Using it


@pytest.fixture
def published(redis_server: LocalRedis, settings: types.SimpleNamespace) -> Iterator[Callable[[], tuple[str, dict]]]:
    """Send what this process publishes to the local Redis; the messages it received are returned one by one."""
    settings.NOTIFICATIONS = {"REDIS_URL": redis_server.url, "TOPICS": {"upload": {}, "order": {}}}
    with redis.Redis.from_url(redis_server.url) as client, client.pubsub() as watch:
        watch.psubscribe("*")
        assert watch.get_message(timeout=TIMEOUT)["type"] == "psubscribe"

        def receive_one() -> tuple[str, dict]:
            heard = watch.get_message(timeout=TIMEOUT)
            assert heard is not None, "nothing was published"
            if heard["channel"] == b"notifications:stamped":
                return receive_one()
            message = json.loads(heard["data"])
            message.pop("_meta", None)
            return heard["channel"].decode(), message

        yield receive_one


@pytest.fixture
def user(transactional_db: None) -> object:
    return get_user_model().objects.create_user("ada")


def test_view_publishes(published, user) -> None:
    """The view of the README publishes its notice to its user."""
    assert example("view", ROOT / "README.md")["export"](request_of(user)).status_code == 204

    channel, message = published()
    assert (channel, message["title"], message["url"]) == (f"user:{user.pk}", "Your export is ready", "/exports/7/")


async def test_async_view_publishes(published, user) -> None:
    """The async view of docs/messages.md publishes a mapping to its user."""
    assert (await example("async-view")["greet"](request_of(user))).status_code == 204

    assert published() == (f"user:{user.pk}", {"action": "greeting", "text": "Hello"})


def test_view_with_a_transaction_publishes_when_it_commits(published, user) -> None:
    """The view with a transaction publishes its notice, and has changed the name."""
    example("transaction")["rename"](request_of(user))

    assert published()[1]["title"] == "Your name was changed"
    user.refresh_from_db()
    assert user.first_name == "Ada"


def test_celery_task_publishes(published, monkeypatch) -> None:
    """The task of docs/messages.md publishes ten times its progress and then the result, under Celery's decorator."""
    celery = types.ModuleType("celery")
    celery.shared_task = lambda function: function  # Celery itself is not needed to prove what the task says
    monkeypatch.setitem(sys.modules, "celery", celery)

    example("celery")["analyze"]("7f3c")

    percents = [published()[1]["payload"]["progress_percent"] for _ in range(10)]
    assert percents == list(range(0, 100, 10))
    channel, result = published()
    assert (channel, result["action"]) == ("upload:7f3c", "upload_completed")


def test_topic_of_ones_own_is_published(published) -> None:
    """publish() takes the text of a topic whose kind is in the settings."""
    example("topic")

    assert published() == ("order:7", {"action": "order_shipped", "parcel": "JD014600"})


def test_everybody_is_told_once(published, settings) -> None:
    """The function of docs/messages.md reaches everybody, and may be called again."""
    topics = {**settings.NOTIFICATIONS["TOPICS"], "site": {}}
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "TOPICS": topics}

    example("all")["announce_maintenance"]()
    example("all")["announce_maintenance"]()
    example("topic")

    channel, message = published()
    assert (channel, message["level"]) == ("site:all", "warning")
    assert published()[0] == "order:7"


def test_many_members_are_told_once(published) -> None:
    """The function of docs/messages.md tells each member of a team, and nobody twice."""
    members = types.SimpleNamespace(all=lambda: [1, 2])
    team = types.SimpleNamespace(name="Blue", plan=3, members=members, get_absolute_url=lambda: "/teams/7/")

    example("many")["tell_team"](team)
    example("many")["tell_team"](team)
    example("topic")

    assert [(channel, message["title"]) for channel, message in (published(), published())] == [
        ("user:1", "Blue has a new plan"),
        ("user:2", "Blue has a new plan"),
    ]
    assert published()[0] == "order:7"


def test_publishing_again_under_a_key_publishes_once(published) -> None:
    """The function of docs/messages.md may be called twice: one message is published, and both calls return its id."""
    order = types.SimpleNamespace(pk=7, parcel="JD014600")

    first, second = example("idempotency")["tell"](order), example("idempotency")["tell"](order)
    example("topic")

    assert first == second
    assert published() == published() == ("order:7", {"action": "order_shipped", "parcel": "JD014600"})


def test_access_is_ended_by_the_calls_of_the_documents(live_redis, user) -> None:
    """The functions of docs/security.md tell the web processes whom to disconnect, and from which topic."""
    order = types.SimpleNamespace(pk=7, watchers={user})
    with live_redis.pubsub(ignore_subscribe_messages=True) as watch:
        watch.subscribe(control.channel())
        watch.get_message(timeout=TIMEOUT)

        example("end-access", SECURITY)["suspend"](user)
        example("end-access", SECURITY)["unshare"](order, user)

        told = [control.Control.read(watch.get_message(timeout=TIMEOUT)["data"]) for _ in range(2)]
    assert told == [("disconnect", str(user.pk), ""), ("revoke", str(user.pk), "order:7")]
    assert order.watchers == set()


def test_line_for_the_shell_publishes(published, redis_server: LocalRedis) -> None:
    """The line for the shell publishes what can be decoded as a notice."""
    program, *arguments = shlex.split(marked("example: shell"))
    assert program == "redis-cli"

    subprocess.run([find_client(), "-p", str(redis_server.port), *arguments], check=True, stdout=subprocess.DEVNULL)

    channel, message = published()
    assert channel == "user:42"
    assert messages.encode(message, 1000) == json.dumps(message, separators=(",", ":")).encode()


def test_redis_account_may_publish_on_raw_channels_and_nothing_else(redis_server: LocalRedis) -> None:
    """The account of docs/operations.md publishes on raw channels; no other channel and no key."""
    with redis.Redis.from_url(redis_server.url) as admin:
        words = shlex.split(marked("example: acl", OPERATIONS))
        assert words[:3] == ["ACL", "SETUSER", "worker"]
        assert admin.execute_command(*words)
        try:
            with redis.Redis(port=redis_server.port, username="worker", password="a-long-password") as worker:
                worker.publish("user:42", "{}")
                worker.publish("upload:7f3c", "{}")
                for forbidden in (
                    ["PUBLISH", "notifications:control", "{}"],
                    ["PUBLISH", "asgi__group__user.42", "{}"],
                    ["PUBLISH", "order:7", "{}"],
                    ["PSUBSCRIBE", "user:*"],
                    ["SUBSCRIBE", "user:42"],
                    ["GET", "notifications:listeners"],
                    ["SET", "x", "y"],
                    ["EVAL", "return 1", "0"],
                    ["ACL", "LIST"],
                ):
                    with pytest.raises(redis.exceptions.NoPermissionError):
                        worker.execute_command(*forbidden)
        finally:
            admin.acl_deluser("worker")


def test_redis_account_may_append_to_the_inlet_and_nothing_else(redis_server: LocalRedis) -> None:
    """The account of docs/operations.md appends to the inlet; it reads nothing, publishes nothing, deletes no key."""
    with redis.Redis.from_url(redis_server.url) as admin:
        words = shlex.split(marked("example: acl inlet", OPERATIONS))
        assert words[:3] == ["ACL", "SETUSER", "shipper"]
        assert " ".join(words) in SECURITY.read_text()
        assert admin.execute_command(*words)
        try:
            with redis.Redis(port=redis_server.port, username="shipper", password="a-third-password") as shipper:
                assert shipper.xadd("notifications:inlet", {"topic": "user:42", "data": "{}"}, maxlen=100_000)
                for forbidden in (
                    ["PUBLISH", "user:42", "{}"],
                    ["XADD", "notifications:inlet:refused", "*", "a", "b"],
                    ["XADD", "notifications:history:user:42", "*", "a", "b"],
                    ["XRANGE", "notifications:inlet", "-", "+"],
                    ["XREAD", "STREAMS", "notifications:inlet", "0"],
                    ["XDEL", "notifications:inlet", "1-1"],
                    ["DEL", "notifications:inlet"],
                    ["EVAL", "return 1", "0"],
                ):
                    with pytest.raises(redis.exceptions.NoPermissionError):
                        shipper.execute_command(*forbidden)
        finally:
            admin.acl_deluser("shipper")
            admin.delete("notifications:inlet")


@pytest.mark.parametrize("language", ["shell", "python"])
def test_examples_append_to_the_inlet(language: str, redis_server: LocalRedis, monkeypatch) -> None:
    """What docs/messages.md shows for other programs appends an entry that can be published."""
    text = marked(f"example: inlet {language}", MESSAGES)
    with redis.Redis.from_url(redis_server.url) as admin:
        admin.delete("notifications:inlet")
        if language == "shell":
            program, *arguments = shlex.split(text)
            assert program == "redis-cli"
            command = [find_client(), "-p", str(redis_server.port), *arguments]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        else:
            monkeypatch.setenv("REDIS_URL", redis_server.url)
            exec(compile(text, MESSAGES, "exec"), {})
        [(id_, found)] = admin.xrange("notifications:inlet")
        admin.delete("notifications:inlet")

    words = [word for field in found.items() for word in field]
    fields = fields_of(Entry(id_.decode(), 0, words))
    assert fields[b"topic"] == b"user:42"
    assert json.loads(messages.check_raw(fields[b"data"], 1000))["action"] == "notice"


def test_tests_of_a_site_use_the_kit(site: Site, tmp_path: Path) -> None:
    """The tests of docs/testing.md pass on a site without a Redis, under manage.py test and under pytest."""
    document = ROOT / "docs/testing.md"
    tested = dataclasses.replace(site, directory=tmp_path / "project", redis_url="redis://127.0.0.1:1/0")
    shutil.copytree(site.directory, tested.directory)
    module = tested.directory / "mysite"
    (module / "views.py").write_text(marked("example: view", document))
    (module / "urls.py").write_text(
        "from django.urls import path\nfrom mysite import views\nurlpatterns = [path('export/', views.export)]\n"
    )
    (module / "tests.py").write_text(marked("example: test case", document) + marked("example: outage", document))
    (module / "test_more.py").write_text(marked("example: socket", document) + marked("example: fixtures", document))

    assert "Ran 2 tests" in tested.run("python manage.py test mysite.tests")
    options = "-p no:cacheprovider -o asyncio_mode=auto -o asyncio_default_fixture_loop_scope=function"
    said = tested.run(f"python -m pytest --ds mysite.settings {options} mysite/tests.py mysite/test_more.py")
    assert "4 passed" in said

    wrong = marked("example: test case", document).replace('level="success"', 'level="error"')
    (module / "tests.py").write_text(wrong)
    with pytest.raises(AssertionError) as failed:
        tested.run("python manage.py test mysite.tests")
    said, shown = (
        re.sub(r'"timestamp":"[^"]+"', "", " ".join(text.split()))
        for text in (str(failed.value), marked("example: failure", document))
    )
    assert shown in said


@pytest.mark.parametrize(
    "layer", ["channels_redis.pubsub.RedisPubSubChannelLayer", "notifications.layers.RedisPubSubLayer"]
)
def test_redis_account_of_the_site_is_enough(site: Site, redis_server: LocalRedis, tmp_path: Path, layer: str) -> None:
    """With the account of docs/operations.md server and listeners do all that they do without one, on both layers."""
    text = (ROOT / "docs/operations.md").read_text().partition("<!-- example: acl site -->\n```\n")[2]
    words = text.partition("\n")[0].split()
    url = f"redis://site:another-long-password@127.0.0.1:{redis_server.port}/0"
    limited = dataclasses.replace(site, directory=tmp_path / "project", redis_url=url)
    shutil.copytree(site.directory, limited.directory)
    config = '"CONFIG": {"hosts": [NOTIFICATIONS["REDIS_URL"]]}'
    with (limited.directory / "mysite/settings.py").open("a") as settings:
        settings.write(f'CHANNEL_LAYERS = {{"default": {{"BACKEND": "{layer}", {config}}}}}\n')
    publish_twice = (
        'python manage.py shell -v 0 -c "from notifications import publish;'
        " ids = {{publish('{topic}', {{'n': n}}, idempotency_key='k') for n in range(2)}}; assert len(ids) == 1\""
    )
    with redis.Redis.from_url(redis_server.url) as admin:
        admin.execute_command(*words)
        admin.acl_log_reset()
        try:
            with (
                limited.serving("daphne mysite.asgi:application") as address,
                limited.running(
                    marked("step: serve").splitlines()[1], until=lambda log: "listening" in log.read_text()
                ),
            ):
                wait_for_states(limited, ["holder", "stand-by"])
                limited.log_in(address)
                with limited.open_socket(address) as tab:
                    hello = receive(tab)
                    own, upload = f"user:{hello['user_id']}", f"upload:{hello['user_id']}-{layer}"
                    tab.send(json.dumps({"action": "subscribe", "topic": upload, "since": "last"}))
                    position = receive(tab)["id"]
                    limited.run(marked("step: send"))
                    assert receive(tab)["_meta"]["topic"] == own
                    admin.publish(upload, '{"raw":1}')
                    assert receive(tab)["raw"] == 1
                    admin.xadd("notifications:inlet", {"topic": own, "data": '{"inlet":1}', "idempotency_key": layer})
                    assert receive(tab)["inlet"] == 1
                    admin.xadd("notifications:inlet", {"topic": own, "data": "not JSON"})
                    wait_for(lambda: admin.delete("notifications:inlet:refused"))
                limited.run(publish_twice.format(topic=upload))
                with limited.open_socket(address) as tab:
                    receive(tab)
                    tab.send(json.dumps({"action": "subscribe", "topic": upload, "since": position}))
                    assert receive(tab)["recovered"] is True
                    assert receive(tab)["n"] == 0  # an upload is a state, whose latest message replaces the other
            refused = [
                entry
                for entry in admin.acl_log()
                if entry["username"] == "site" and entry["object"] not in ("client|setinfo", "client")  # Redis 6.2's
            ]
            assert refused == []
        finally:
            admin.acl_deluser("site")


def wait_for_states(site: Site, wanted: list[str]) -> None:
    """Wait until the health check says that the listeners are in these states."""
    said = [""]

    def are_in_them() -> bool:
        try:
            said[:] = [site.run("python manage.py run_listener --check")]
        except AssertionError as error:  # nobody has reported yet to be connected
            said[:] = [str(error)]
        return sorted(re.findall(r": ([a-z-]+)", said[0])) == wanted

    wait_for(are_in_them, 30, said)
