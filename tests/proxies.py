"""The proxies of docs/how-to, each with the configuration of its guide, or with a fault in it."""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.guides import ROOT, files_of, find_program, listens
from tests.ports import free_port
from tests.processes import Process
from tests.waiting import wait_for


class Proxy(Process):
    """A running proxy with the configuration of its guide."""

    port: int

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"ws://{self.address}/ws/notifications/"


def put(text: str, places: dict[str, str], *backends: str) -> str:
    """Put what is there in a test into the configuration of a guide, for what the guide names."""
    places = places | dict(zip(("127.0.0.1:8000", "127.0.0.1:8001"), backends, strict=False))
    for written, there in places.items():
        assert text.count(written) == 1, written
        text = text.replace(written, there)
    return text


@contextmanager
def running(port: int, words: list[str | Path], env: dict[str, str], *, graceful: bool = True) -> Iterator[Proxy]:
    """Run a proxy until it listens, and then for the time of the block; it may end in its own time if ``graceful``."""
    process = Proxy(words, env=env, name=Path(words[0]).name)
    process.port = port
    try:
        wait_for(lambda: process.returncode is not None or listens(port), 30, what=process.name)
        assert process.returncode is None, process.output
        yield process
    finally:
        process.terminate() if graceful else process.close()


@contextmanager
def haproxy(directory: Path, *backends: str, changes: Mapping[str, str] | None = None) -> Iterator[Proxy]:
    """Run HAProxy as its guide says; ``changes`` as for ``nginx``."""
    program, port = find_program("haproxy"), free_port()
    text = put(files_of("haproxy")["haproxy.cfg"], dict(changes or {}))
    text = put(text, {"bind :80": f"bind 127.0.0.1:{port}"}, *backends)
    (directory / "haproxy.cfg").write_text(text)
    with running(port, [program, "-db", "-f", directory / "haproxy.cfg"], dict(os.environ)) as proxy:
        yield proxy


@contextmanager
def caddy(directory: Path, *backends: str) -> Iterator[Proxy]:
    """Run Caddy as its guide says, without TLS."""
    program, port = find_program("caddy"), free_port()
    text = files_of("caddy")["Caddyfile"]
    if len(backends) == 1:
        text = text.replace(" 127.0.0.1:8001", "")  # as the guide says
    text = put(text, {"example.com {": f"http://127.0.0.1:{port} {{"}, *backends)
    (directory / "Caddyfile").write_text(f"{{\n    admin off\n}}\n{text}")
    env = os.environ | {"XDG_DATA_HOME": str(directory), "XDG_CONFIG_HOME": str(directory)}
    words = [program, "run", "--config", directory / "Caddyfile", "--adapter", "caddyfile"]
    with running(port, words, env) as proxy:
        yield proxy


@contextmanager
def nginx(
    directory: Path, *backends: str, location: str = "", before: str = "", changes: Mapping[str, str] | None = None
) -> Iterator[Proxy]:
    """
    Run nginx as its guide says.

    Args:
        directory: For its files.
        backends: The addresses of the web servers, one or two.
        location: What is written instead of the first lines of the ``location``.
        before: What stands before all of it.
        changes: What is written instead of some words of the guide.

    """
    program = find_program("nginx")
    port = free_port()
    text = files_of("nginx")["nginx.conf"]
    if location:
        text, found = re.subn(r"( +location / \{\n +proxy_pass http://mysite;\n)", location, text)
        assert found == 1
    if len(backends) == 1:
        text = re.sub(r"\n *server 127\.0\.0\.1:8001[^\n]*", "", text)  # as the guide says
    text = put(text, dict(changes or {}))
    text = put(text, {"listen 80": f"listen 127.0.0.1:{port}"}, *backends)
    types = directory / "mime.types"
    types.write_text("types { text/html html; application/javascript js; }")  # as that of distributions
    text = text.replace("/srv/mysite/static/", f"{ROOT}/notifications/static/")
    folders = "".join(
        f"{name}_temp_path {directory};\n" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (directory / "nginx.conf").write_text(
        f"daemon off; pid {directory}/pid; error_log stderr notice;\nevents {{}}\n"
        f"http {{ access_log off; include {types};\n{folders}{before}\n{text} }}\n"
    )
    words = [program, "-e", "stderr", "-c", directory / "nginx.conf", "-p", directory]
    with running(port, words, dict(os.environ)) as proxy:
        yield proxy


APACHE_MODULES = (
    *("mpm_event", "authz_core", "alias", "mime", "setenvif", "headers", "deflate", "filter", "slotmem_shm"),
    *("proxy", "proxy_http", "proxy_balancer", "lbmethod_bybusyness"),
)
"""What the guide has enabled, and what Debian enables."""


@contextmanager
def apache(directory: Path, *backends: str) -> Iterator[Proxy]:
    """Run Apache as its guide says."""
    program, port = find_program("apache2"), free_port()
    text = files_of("apache")["mysite.conf"]
    if len(backends) == 1:
        text = re.sub(r"\n *BalancerMember \"http://127\.0\.0\.1:8001[^\n]*", "", text)
    text = put(text, {"<VirtualHost *:80>": f"<VirtualHost 127.0.0.1:{port}>"}, *backends)
    text = text.replace("/srv/mysite/static", f"{ROOT}/notifications/static")
    modules = "\n".join(f"LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so" for name in APACHE_MODULES)
    (directory / "apache.conf").write_text(
        f"ServerName localhost\nListen 127.0.0.1:{port}\nPidFile {directory}/pid\nErrorLog /dev/stderr\n"
        f"DefaultRuntimeDir {directory}\nServerLimit 2\nThreadsPerChild 50\nMaxRequestWorkers 100\n"
        f"StartServers 1\nGracefulShutdownTimeout 1\n{modules}\nTypesConfig /etc/mime.types\n{text}"
    )
    # In one process, which can be killed: Apache ends when the responses that it carries have.
    words = [program, "-X", "-f", directory / "apache.conf", "-d", directory]
    with running(port, words, dict(os.environ), graceful=False) as proxy:
        yield proxy


PROXIES = {"nginx": nginx, "haproxy": haproxy, "caddy": caddy, "apache2": apache}
