"""The demo site as processes, for tests that drive it from outside."""

import http.cookiejar
import io
import json
import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import urllib.error
import urllib.request
import uuid
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psutil
from PIL import Image, ImageDraw, ImageOps
from websockets.sync.client import ClientConnection, connect

from tests.ports import free_port
from tests.waiting import scaled, wait_for

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT = scaled(30)
"""Seconds within which whatever is waited for has long happened."""


def wait_until(condition: Callable[[], Any], what: str) -> Any:
    """Return the first true result of ``condition``; fail after ``TIMEOUT``, naming ``what``."""
    return wait_for(condition, 30, what)


def environment(directory: Path, **more: str) -> dict[str, str]:
    """Return the environment of a demo site that has ``directory`` for itself."""
    env = {name: value for name, value in os.environ.items() if name not in ("REDIS_URL", "DJANGO_SETTINGS_MODULE")}
    ours = {"DATABASE_PATH": str(directory / "demo.sqlite3"), "DEMO_PACE": "0", "PYTHONUNBUFFERED": "1"}
    return env | ours | more


def manage(env: dict[str, str], *arguments: str) -> None:
    """Run one of the site's management commands to its end."""
    subprocess.run([sys.executable, ROOT / "manage.py", *arguments], env=env, check=True, timeout=TIMEOUT)


def site_without_redis(directory: Path) -> dict[str, str]:
    """Make a site with a database, and return its environment: what cannot be published must not stop the work."""
    env = environment(directory, REDIS_URL="redis://127.0.0.1:1/0", CLAIM_LEASE="1")
    manage(env, "migrate", "-v", "0")
    return env


def start_worker(env: dict[str, str], **more: str) -> subprocess.Popen[str]:
    """Start a background worker of the site; ``end_worker`` ends it."""
    command = [sys.executable, ROOT / "manage.py", "run_worker"]
    return subprocess.Popen(command, env=env | more, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def end_worker(worker: subprocess.Popen[str]) -> str:
    """Stop a worker as a service manager does, and return what it said."""
    worker.terminate()
    output = worker.communicate(timeout=TIMEOUT)[0]
    assert worker.returncode == 0, output
    return output


def rows(env: dict[str, str], table: str, columns: str, condition: str = "1") -> list[tuple[Any, ...]]:
    """Return what is in a table of the site's database."""
    with closing(sqlite3.connect(env["DATABASE_PATH"], timeout=TIMEOUT)) as connection:
        return connection.execute(f"SELECT {columns} FROM {table} WHERE {condition}").fetchall()


class Demo:
    """``manage.py demo`` as a process, in a process group of its own, as a terminal starts it."""

    def __init__(self, directory: Path, **env: str) -> None:
        self.directory = directory
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "manage.py"), "demo"],
            cwd=directory,
            env=environment(directory, **({"PORT": str(free_port())} | env)),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def output(self) -> str:
        return "".join(self.lines)

    @property
    def url(self) -> str:
        return self.expect(r"open (http://\S+/) ")[1]

    @property
    def redis_url(self) -> str:
        return self.expect(r"Redis at (redis://\S+)")[1]

    def expect(self, pattern: str) -> re.Match[str]:
        """Wait until the output has ``pattern``."""

        def search() -> re.Match[str] | None:
            found = re.search(pattern, self.output)
            assert found or self.process.poll() is None, f"ended without {pattern!r}:\n{self.output}"
            return found

        return wait_until(search, f"{pattern!r} in the output")

    def family(self) -> list[psutil.Process]:
        """Return the process and all its descendants."""
        parent = psutil.Process(self.process.pid)
        return [parent, *parent.children(recursive=True)]

    def child(self, word: str) -> psutil.Process:
        """Return the process, not its guard, with ``word`` in its command line."""
        return next(process for process in reversed(self.family()) if word in process.cmdline())

    def interrupt(self) -> None:
        """Press Ctrl-C: the terminal sends SIGINT to the whole process group."""
        os.killpg(self.process.pid, signal.SIGINT)

    def wait(self) -> int:
        code = self.process.wait(TIMEOUT)
        self._reader.join(TIMEOUT)
        return code

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
        self.wait()
        self.process.stdout.close()

    def _read(self) -> None:
        for line in self.process.stdout:
            self.lines.append(line)


@contextmanager
def running_demo(directory: Path, **env: str) -> Iterator[Demo]:
    demo = Demo(directory, **env)
    try:
        yield demo
    finally:
        demo.stop()


class Visitor:
    """A browser without a screen: cookies, the login, and posting files."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._cookies = http.cookiejar.CookieJar()
        self._opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(self._cookies))

    def get(self, path: str) -> tuple[int, bytes]:
        return self._open(urllib.request.Request(self.url + path))

    def log_in(self, username: str = "demo", password: str = "demo") -> None:
        self.get("login/")
        body = f"username={username}&password={password}".encode()
        status, page = self.post("login/", body)
        assert (status, b"Choose files" in page) == (200, True)

    def upload(self, *files: tuple[str, bytes]) -> tuple[int, dict[str, Any]]:
        status, answer = self.post_files(*files)
        return status, json.loads(answer)

    def post_files(
        self, *files: tuple[str, bytes], token: str | None = None, path: str = "uploads/", field: str = "files"
    ) -> tuple[int, bytes]:
        boundary = uuid.uuid4().hex
        body = b""
        for name, content in files:
            head = f'--{boundary}\r\nContent-Disposition: form-data; name="{field}"; filename="{name}"\r\n\r\n'
            body += head.encode() + content + b"\r\n"
        body += f"--{boundary}--\r\n".encode()
        return self.post(path, body, f"multipart/form-data; boundary={boundary}", token)

    def states(self) -> dict[str, dict[str, Any]]:
        """Return the uploads by name."""
        return {upload["label"]: upload for upload in json.loads(self.get("uploads/state/")[1])["uploads"]}

    def finished(self, *names: str) -> dict[str, dict[str, Any]]:
        """Wait until the named uploads are analysed, and return them."""

        def look() -> dict[str, dict[str, Any]] | None:
            found = self.states()
            done = all(found[name]["status"] in ("completed", "failed") for name in names)
            return found if done else None

        return wait_until(look, f"{names} analysed")

    def cookie(self, name: str) -> str:
        return next(cookie.value for cookie in self._cookies if cookie.name == name)

    def post(
        self,
        path: str,
        body: bytes = b"",
        content_type: str = "application/x-www-form-urlencoded",
        token: str | None = None,
    ) -> tuple[int, bytes]:
        headers = {"Content-Type": content_type, "X-CSRFToken": token or self.cookie("csrftoken")}
        return self._open(urllib.request.Request(self.url + path, body, headers))

    def _open(self, request: urllib.request.Request) -> tuple[int, bytes]:
        try:
            with self._opener.open(request, timeout=TIMEOUT) as response:
                return response.status, response.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()


def socket_of(visitor: Visitor) -> ClientConnection:
    cookies = f"sessionid={visitor.cookie('sessionid')}"
    url = visitor.url.replace("http", "ws") + "ws/notifications/"
    return connect(url, origin=visitor.url.rstrip("/"), additional_headers={"Cookie": cookies})


def receive(socket: ClientConnection, *actions: str) -> dict[str, object]:
    """Return the next frame with one of the actions."""
    while True:
        frame = json.loads(socket.recv(timeout=TIMEOUT))
        if frame["action"] in actions:
            return frame


def png(width: int = 320, height: int = 200, color: str = "teal") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), color).save(file, "PNG")
    return file.getvalue()


def broken_png() -> bytes:
    """Return a PNG whose checksums are right and whose pixels are not."""
    whole = png()
    start = whole.index(b"IDAT")
    data = b"IDAT" + b"\x00" * 40
    return whole[: start - 4] + (40).to_bytes(4) + data + zlib.crc32(data).to_bytes(4) + whole[-12:]


def picture(seed: int) -> bytes:
    """Return a JPEG that is pleasant to look at: some bubbles over a gradient."""
    chance = random.Random(seed)
    image = Image.linear_gradient("L").resize((900, 600))
    image = ImageOps.colorize(image, *[tuple(chance.randrange(40, 220) for _ in range(3)) for _ in range(2)])
    draw = ImageDraw.Draw(image)
    for _ in range(9):
        x, y, size = chance.randrange(900), chance.randrange(600), chance.randrange(60, 260)
        draw.ellipse((x, y, x + size, y + size), fill=tuple(chance.randrange(60, 250) for _ in range(3)))
    file = io.BytesIO()
    image.save(file, "JPEG")
    return file.getvalue()
