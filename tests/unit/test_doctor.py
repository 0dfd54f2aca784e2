"""The doctor's own side of HTTP and its hints, without a server."""

import asyncio
import gzip
from types import SimpleNamespace
from typing import Any

import pytest

from notifications import doctor
from notifications.doctor.client import Answer, Event, Head, Place, read_head
from notifications.doctor.findings import Finding, Level
from notifications.doctor.proxies import LINES, Fault, hint, name_of
from notifications.doctor.server import judge_http
from tests.guides import GUIDES, ROOT, table

EVENTS = b':\n\ndata: {"action":"auth_success"}\n\nevent: close\r\ndata: {"code":4101}\r\n\r\ndata: cut off'
READ = [("", ""), ("message", '{"action":"auth_success"}'), ("close", '{"code":4101}')]


def chunked(*pieces: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in (*pieces, b""))


async def events_of(head: dict[str, str], body: bytes) -> list[Event]:
    reader = asyncio.StreamReader()
    reader.feed_data(body)
    reader.feed_eof()
    answer = Answer(Head(200, head), reader, None)  # type: ignore[arg-type]  # nothing is written
    return [event async for event in answer.events()]


@pytest.mark.parametrize(
    ("head", "body"),
    [
        ({}, EVENTS),
        ({"content-length": str(len(EVENTS))}, EVENTS + b"more"),
        ({"transfer-encoding": "chunked"}, chunked(*(EVENTS[at : at + 7] for at in range(0, len(EVENTS), 7)))),
        ({"transfer-encoding": "chunked", "content-encoding": "gzip"}, chunked(gzip.compress(EVENTS))),
    ],
    ids=["until the end", "length", "chunked", "compressed"],
)
async def test_events_are_read_however_a_body_is_sent(head: dict[str, str], body: bytes) -> None:
    """Comments, messages and the close event; what was cut off is none."""
    assert await events_of(head, body) == READ


@pytest.mark.parametrize("body", [b"5\r\nab", b"nonsense\r\n", b"ffffffff\r\n"])
async def test_a_body_that_is_cut_off_or_broken_is_an_error(body: bytes) -> None:
    """A proxy that cuts a stream in the middle is not the stream's end."""
    with pytest.raises((EOFError, ValueError)):
        await events_of({"transfer-encoding": "chunked"}, body)


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ("nginx/1.22.1", "nginx"),
        ("openresty", "nginx"),
        ("Apache/2.4.62 (Debian)", "Apache"),
        ("Caddy, uvicorn", "Caddy"),
        ("cloudflare", "Cloudflare"),
        ("uvicorn", None),
        ("", None),
    ],
)
def test_the_proxy_that_answered_is_known_by_its_name(said: str, name: str | None) -> None:
    """Its own line is in the hint; any other proxy is told what it has to do, and where the lines are."""
    head = read_head(f"HTTP/1.1 404 Not Found\r\nServer: {said}".encode())

    assert name_of(head) == name
    assert "pass Upgrade and Connection on" in hint(head, Fault.UPGRADE)
    assert ("proxy_set_header Upgrade" in hint(head, Fault.UPGRADE)) == (name == "nginx")
    assert "docs/how-to/proxies.md" in hint(head, Fault.UPGRADE)


@pytest.mark.parametrize(
    ("head", "said", "text", "what"),
    [
        ("200 OK|Content-Type: text/event-stream", '{"action":"auth_error"}', "answers over HTTP", ""),
        ("200 OK|Content-Type: application/json", "[]", "polls, and no stream: the site runs under WSGI", "ASGI"),
        ("200 OK|Content-Type: text/html", "<form>", "with text/html, which is no stream", "Something else"),
        (
            "301 Moved|Location: https://x/stream/?a=s3cret",
            "",
            "301, a redirect to https://x/stream/",
            "scheme|Forwarded",
        ),
        ("302 Found|Location: /login/", "", "302, a redirect to /login/", "logging in"),
        ("400 Bad|Server: nginx", "", "400 from nginx", "proxy_set_header Host $http_host;"),
        ("403 No|Content-Type: application/json", "", "403, by the origin rule", "X-Forwarded-Proto"),
        ("403 No|Content-Type: text/html", "", "with 403", "their logs"),
        ("404 No", "", "with 404", 'include("notifications.urls")'),
        ("502 No", "", "with 502", "does not reach"),
    ],
)
def test_whatever_answers_in_the_place_of_the_stream_is_told(head: str, said: str, text: str, what: str) -> None:
    """By its head alone, each with what to do; nothing secret of it is shown."""
    place = Place.of("https://x/", "/stream/")
    lines = f"HTTP/1.1 {head}".replace("|", "\r\n")

    finding = judge_http(place, read_head(lines.encode()), said)

    assert text in finding.text
    assert any(word in finding.hint for word in what.split("|"))
    assert finding.level == ("ok" if not what else "warning")
    assert "s3cret" not in str(finding)


def test_the_lines_of_the_hints_are_those_of_the_guides() -> None:
    """The table of docs/how-to/proxies.md has each line, in its column, and the guide of the proxy, too."""
    rows: dict[str, Any] = {
        cells[0].partition("]")[0].strip("["): cells
        for cells in ([name, *rest] for name, rest in table(GUIDES / "proxies.md", "proxies").items())
    }
    for name, lines in LINES.items():
        guide = (GUIDES / f"{name.lower()}.md").read_text()
        for fault, line in lines.items():
            assert line in rows[name][1 + list(Fault).index(fault)]
            if fault is not Fault.BUFFERING and name != "Cloudflare":
                assert all(f"{part};" in guide for part in line.split(";") if part) or line in guide


def test_the_findings_of_the_table_are_what_the_doctor_says() -> None:
    """docs/operations.md quotes the words, so that whoever searches for a finding gets there."""
    folder = ROOT / "notifications/doctor"
    said = "".join(path.read_text() for path in folder.glob("*.py")).replace("{how}", "compressed")
    quoted = [words for cell in table(ROOT / "docs/operations.md", "hops") for words in cell.split("`")[::2]]
    words = [each.strip(", ") for each in quoted if " " in each.strip(", ") and "WebSocket" not in each]

    assert words
    assert [each for each in words if each.replace("buffered", "compressed") not in said] == []


def test_the_site_s_path_is_the_prefix_of_both_addresses() -> None:
    """With a path in --site the prefix of this process is replaced, and otherwise kept."""
    assert Place.of("https://example.com", "/app/x/", "x/").url == "https://example.com/app/x/"
    assert Place.of("https://example.com/other/", "/app/x/", "x/").url == "https://example.com/other/x/"
    assert Place.of("https://example.com/other/", "/x/").url == "https://example.com/x/"


async def test_an_app_that_fails_hides_no_finding_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an optional app raises while it is examined is a finding, and not the end of the report."""

    async def fail() -> list[Finding]:
        raise RuntimeError("no table")

    async def find() -> list[Finding]:
        return [Finding("mail", Level.OK, "all is sent")]

    configs = [
        SimpleNamespace(name="site.audit", label="audit", examine_notifications=fail),
        SimpleNamespace(name="site.shop", label="shop"),
        SimpleNamespace(name="site.mail", label="mail", examine_notifications=find),
    ]
    monkeypatch.setattr(doctor.apps, "get_app_configs", lambda: configs)

    failed, well = await doctor._examine_apps()

    assert (failed.check, failed.level) == ("audit", Level.WARNING)
    assert failed.text == "site.audit could not be examined: RuntimeError: no table"
    assert well.check == "mail"
