"""The doctor before the running site, with a proxy in between that is configured wrongly, each time in another way."""

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.doctor import QUIET, Report, ask, start_listeners
from tests.guides import find_program
from tests.processes import LAYERS, Site, User, WebServer
from tests.proxies import Proxy, haproxy, nginx

UPGRADE = "proxy_set_header Upgrade $http_upgrade;"
HOST = "proxy_set_header Host $http_host;"
SCHEME = "proxy_set_header X-Forwarded-Proto $scheme;"
TIMEOUT = "proxy_read_timeout 75s;"


@pytest.fixture(scope="module")
def running_site(
    redis_program: None, migrated_database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Site, WebServer, User]]:
    """A site with a web server, two listeners and a user, that all tests of this file share."""
    settings = {
        "NOTIFICATIONS": QUIET,
        "CHANNEL_LAYER_BACKEND": LAYERS["ours"],
        "SECURE_PROXY_SSL_HEADER": ["HTTP_X_FORWARDED_PROTO", "https"],
    }
    find_program("nginx")
    with Site(tmp_path_factory.mktemp("outside"), migrated_database, settings=settings) as site:
        start_listeners(site)
        yield site, site.start_server("uvicorn"), site.add_user()


def ask_through(
    running_site: tuple[Site, WebServer, User],
    directory: Path,
    changes: dict[str, str],
    *arguments: str,
    proxy: Callable[..., AbstractContextManager[Proxy]] = nginx,
) -> Report:
    """Run the doctor, as the site's user, before a proxy that is not quite that of its guide."""
    site, server, user = running_site
    scheme = "https" if any("ssl" in text for text in changes.values()) else "http"
    with proxy(directory, server.address, changes=changes) as running:
        return ask(site, "--site", f"{scheme}://{running.address}/", "--user", user.username, *arguments)


def test_a_proxy_that_is_right(running_site, tmp_path):
    """A message comes through by each transport, and nothing is cut off meanwhile."""
    report = ask_through(running_site, tmp_path, {}, "--idle", "4", "--fail-level", "WARNING")

    assert report.levels("warning", "error", "skipped") == []
    assert "a message came through the running site by WebSocket, stream, poll" in report.of("server", "ok")
    assert "stayed open for 4 s" in report.of("server", "ok")


def test_a_proxy_that_drops_upgrade(running_site, tmp_path):
    """The handshake arrives as a request for a page; the line for this proxy is named, and HTTP works."""
    report = ask_through(running_site, tmp_path, {UPGRADE: ""})

    assert report.broken == "server"
    assert "404 from nginx, as to a request for a page: Upgrade did not arrive" in report.of("server", "error")
    assert UPGRADE in report.of("server", "error")
    assert "a message came through the running site by stream, poll" in report.of("server", "ok")


def test_a_proxy_that_rewrites_host(running_site, tmp_path):
    """The site expects another host, and refuses its own pages."""
    report = ask_through(running_site, tmp_path, {HOST: "proxy_set_header Host localhost;"})

    assert report.broken == "server"
    assert "is not the origin that the site expects; does a proxy rewrite Host" in report.of("server", "error")
    assert HOST in report.of("server", "error")
    assert "the origin rule" in report.of("server", "warning")


@pytest.mark.parametrize("header", ["", SCHEME])
def test_a_proxy_that_hides_tls(running_site, tmp_path, certificate, monkeypatch, header):
    """Without X-Forwarded-Proto the site expects http, and refuses the pages of https; with it all is well."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    tls = f"listen 80 ssl; ssl_certificate {certificate[0]}; ssl_certificate_key {certificate[1]};"

    report = ask_through(running_site, tmp_path, {"listen 80;": tls, SCHEME: header})

    assert report.broken == (None if header else "server")
    assert ("the site expects http://127.0.0.1" in report.of("server", "error")) == (not header)
    assert (SCHEME in report.of("server", "error")) == (not header)


def test_a_certificate_that_nobody_trusts(running_site, tmp_path, certificate):
    """It is named as such, as browsers would refuse it."""
    tls = f"listen 80 ssl; ssl_certificate {certificate[0]}; ssl_certificate_key {certificate[1]};"

    report = ask_through(running_site, tmp_path, {"listen 80;": tls})

    assert "a certificate that is not trusted: self-signed certificate" in report.of("server", "error")


def test_a_proxy_that_compresses_a_stream(running_site, tmp_path):
    """It waits for more to compress: the stream comes when it may not be compressed, and otherwise does not."""
    report = ask_through(
        running_site,
        tmp_path,
        {TIMEOUT: "proxy_ignore_headers X-Accel-Buffering; gzip on; gzip_min_length 0; gzip_types text/event-stream;"},
    )

    assert report.broken is None
    assert "is compressed on its way, and held back: nothing came within 3 s" in report.of("server", "warning")
    assert "a message came through the running site by WebSocket, poll" in report.of("server", "ok")


def test_a_proxy_that_buffers(running_site, tmp_path):
    """What is held back until its end is told from what does not come: the poll and the WebSocket get through."""
    backend = {"balance leastconn": "http-response wait-for-body time 20s"}

    report = ask_through(running_site, tmp_path, backend, proxy=haproxy)

    assert report.broken is None
    assert "is buffered on its way, and held back: nothing came within 3 s" in report.of("server", "warning")
    assert "neither buffered nor compressed" in report.of("server", "warning")
    assert "a message came through the running site by WebSocket, poll" in report.of("server", "ok")


def test_a_proxy_that_cuts_what_is_silent(running_site, tmp_path):
    """Who is cut off after how long is said, of each transport, beside the interval of the pings."""
    report = ask_through(running_site, tmp_path, {TIMEOUT: "proxy_read_timeout 2s;"}, "--idle", "6")

    assert report.broken is None
    for name in ("WebSocket", "stream", "poll"):
        said = rf"the {name} was cut off after [2-4] s of silence"  # as it was heard, on a busy machine later
        assert re.search(said, report.of("server", "warning"))
    assert "proxy_read_timeout 75s;" in report.of("server", "warning")
    assert "the server pings every 30 s" in report.of("server", "warning")


def test_a_user_who_is_not_there_and_options_that_need_others(running_site):
    """The command says so before it does anything."""
    site, *_ = running_site
    for arguments, said in [
        (["--site", "http://127.0.0.1:1/", "--user", "nobody"], "there is no active user 'nobody'"),
        (["--user", "nobody"], "--user needs --site, and --idle needs --user"),
        (["--site", "http://127.0.0.1:1/", "--idle", "5"], "--user needs --site, and --idle needs --user"),
        (["--idle", "500"], "between 1 and 120 seconds"),
    ]:
        done = site.run("notifications_doctor", *arguments)
        assert (done.returncode, said in done.stderr) == (2 if "500" in arguments else 1, True)


def test_web_processes_with_another_key(running_site, tmp_path):
    """A token that the running site refuses is said to be that, by each transport in the site's own words."""
    site, *_ = running_site
    settings = site.settings
    site.settings = {**settings, "SECRET_KEY": "another-" + "x" * 50}
    try:
        report = ask_through(running_site, tmp_path, {})
    finally:
        site.settings = settings

    assert report.broken == "server"
    assert "refuses the user's token: the token is not valid, or has expired" in report.of("server", "error")
    assert "the same SECRET_KEY and database" in report.of("server", "error")
