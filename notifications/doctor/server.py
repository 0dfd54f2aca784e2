"""The running site, examined from outside as a stranger: through its proxies, at the addresses its pages use."""

from __future__ import annotations

import ssl
import struct
from contextlib import suppress
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from ..aio import Timeout
from ..logs import describe
from ..mount import PATH, socket_path
from ..protocol.frames import MAX_AUTH_FRAME_SIZE
from .client import (
    CLOSE,
    GONE,
    PATIENCE,
    SWITCHING,
    TEXT,
    Head,
    OnlyHTTP2Error,
    Place,
    close_code,
    handshake_headers,
    post_headers,
    request,
    request_body,
)
from .findings import Finding, Level
from .proxies import Fault, hint, name_of

TOO_BIG: Final = 1009
"""Close code of a server that refuses a frame for its size (RFC 6455, 7.4.1)."""
LONGEST_LOCATION: Final = 100
"""Characters of an address that are shown."""

LIMIT: Final = (
    "Start the server with a limit: uvicorn --ws notifications.uvicorn:WebSocketProtocol or "
    f"--ws-max-size {MAX_AUTH_FRAME_SIZE}, or the largest frame of the site's other consumers; docs/security.md."
)
_STATUS: Final = {
    500: "Does asgi.py have the WebSocket at this address? The log of the web server says more.",
    502: "The proxy does not reach the web server.",
    503: "The proxy does not reach the web server, or limits connections.",
    504: "The proxy does not reach the web server.",
}


class Handshake(NamedTuple):
    """
    The answer to a handshake.

    Attributes:
        head: The head of the answer.
        code: The close code after the oversized frame; None if it did not close in time, or cut the connection.

    """

    head: Head
    code: int | None = None

    @property
    def is_open(self) -> bool:
        return self.head.status == SWITCHING

    @property
    def compresses(self) -> bool:
        """Whether the server inflates what browsers send."""
        return "permessage-deflate" in self.head.get("sec-websocket-extensions").lower()


class RunningSite:
    """
    The site as browsers find it.

    Args:
        site: Its address.
        path: The path of the WebSocket; None for the one to which the site's pages connect.
        stream: The path of the HTTP stream, with and without the script prefix; None where it is not mounted.

    Attributes:
        socket, http: Where its WebSocket and its stream are; None where that does not work, or is not mounted.

    Raises:
        ValueError: It is not the address of a site.

    """

    def __init__(self, site: str, path: str | None, stream: tuple[str, str] | None) -> None:
        self.socket: Place | None = Place.of(site, path) if path else Place.of(site, socket_path(), PATH)
        self.http: Place | None = Place.of(site, *stream) if stream else None

    async def examine(self) -> list[Finding]:
        """Open a socket as a stranger, send one frame that is slightly larger than allowed, and try HTTP."""
        assert self.socket is not None  # noqa: S101  it was not examined yet
        try:
            handshake = await _shake_hands(self.socket, self.socket.origin)
        except GONE as error:
            found = [Finding("server", Level.ERROR, *_unreachable(self.socket, error))]
            self.socket = self.http = None
            return found
        if handshake.is_open:
            found = [_judge_size(self.socket, handshake)]
        else:
            found = [Finding("server", Level.ERROR, *await _explain(self.socket, handshake.head))]
            self.socket = None
        if self.http is not None:
            found.append(await _examine_http(self.http))
            if found[-1].level is not Level.OK:
                self.http = None
        return found


def running_site(site: str | None, path: str | None, stream: tuple[str, str] | None) -> RunningSite | Finding:
    """Return the site at an address, or what there is to say of the address."""
    if site is None:
        text = "the running web server was not asked, nor how large a frame it takes: no address was given"
        return Finding("server", Level.SKIPPED, text, "Give one: --site https://example.com/")
    try:
        return RunningSite(site, path, stream)
    except ValueError:  # its text may hold half a password of the address
        text = "--site is no address of a site: it has to begin with http:// or https:// and a host"
        return Finding("server", Level.ERROR, text, "Such as --site https://example.com/")


def _unreachable(place: Place, error: BaseException) -> tuple[str, str]:
    """Return why nothing answered as a web server does, and what to do."""
    if isinstance(error, ssl.SSLCertVerificationError):
        text = f"{place.origin} has a certificate that is not trusted: {describe(error.verify_message)}"
        return text, "Browsers would refuse it, too. SSL_CERT_FILE names an authority of your own to this command."
    if isinstance(error, OnlyHTTP2Error):
        text = f"{place.origin} speaks HTTP/2 only, and browsers open WebSockets over HTTP/1.1"
        return text, "Let what answers there speak HTTP/1.1 as well."
    text = f"{place.url} does not answer: {describe(error)}"
    return text, "Does it run, and can it be reached from here?"


def _judge_size(place: Place, handshake: Handshake) -> Finding:
    size = f"a frame of {MAX_AUTH_FRAME_SIZE + 1} bytes"
    if handshake.code == TOO_BIG:
        return Finding("server", Level.OK, f"{place.url} opens a WebSocket, and the server refuses {size}")
    if not handshake.compresses:
        text = f"{place.url} opens a WebSocket; the server takes {size}, but inflates nothing"
        return Finding("server", Level.OK, text)
    text = (
        f"{place.url} opens a WebSocket, and the server takes {size} and inflates what is compressed, "
        "before anybody has logged in: a few sockets can take all memory"
    )
    return Finding("server", Level.WARNING, text, LIMIT)


async def _shake_hands(place: Place, origin: str | None) -> Handshake:
    """Open a WebSocket, and send it one frame that is too large."""
    async with request(place, "GET", handshake_headers(origin)) as answer:
        if answer.head.status != SWITCHING:
            return Handshake(answer.head)
        code = None
        with suppress(*GONE):  # cut off, or kept open: no code
            async with Timeout(PATIENCE):
                await answer.say(TEXT, b"x" * (MAX_AUTH_FRAME_SIZE + 1))
                while code is None:
                    opcode, payload = await answer.hear()
                    code = close_code(payload) if opcode == CLOSE else None
                await answer.say(CLOSE, struct.pack("!H", 1000))
        return Handshake(answer.head, code)


# Why there is no WebSocket.


async def _explain(place: Place, head: Head) -> tuple[str, str]:
    """Ask again, each time without one of the things that may be wrong, and say which hop it is."""
    text = f"{place.url} does not open a WebSocket: {head.status}{_by(head)}"
    if 300 <= head.status < 400:
        where, what = _redirect(place, head)
        return f"{text}, {where}", what
    if head.status == 403:
        return await _explain_refusal(place, head, text)
    if head.status in _STATUS and head.status != 500:
        return text, _STATUS[head.status]
    if await _status_of_a_page(place) == head.status:
        if head.status == 400:
            return f"{text}, as to any request", hint(head, Fault.HOST, Fault.UPGRADE) + "; is it in ALLOWED_HOSTS?"
        more = "or what answers there has no WebSockets: WSGI, or another server than that of asgi.py"
        return f"{text}, as to a request for a page: Upgrade did not arrive", f"{hint(head, Fault.UPGRADE)}; {more}."
    return text, _STATUS.get(head.status, "The log of the web server or of the proxy says why.")


async def _explain_refusal(place: Place, head: Head, text: str) -> tuple[str, str]:
    if not await _opens(place, None):
        return f"{text}, whatever the origin", "A rule of the proxy or of the site's own middleware: see their logs."
    if place.secure and await _opens(place, f"http://{place.authority}"):
        return f"{text}: the site expects http://{place.authority}", hint(head, Fault.SCHEME)
    text = f"{text}: {place.origin} is not the origin that the site expects; does a proxy rewrite Host or Origin?"
    return text, hint(head, Fault.HOST)


def _redirect(place: Place, head: Head) -> tuple[str, str]:
    """Return where an answer redirects to, without what may be secret in it, and what to do."""
    try:
        parts = urlsplit(head.get("location"))
        there = f"{parts.scheme}://{parts.hostname}{parts.path}" if parts.hostname else parts.path
    except ValueError:
        there, parts = "", urlsplit("")
    where = f"a redirect to {there[:LONGEST_LOCATION] or 'nowhere'}"
    if place.secure and there == f"https://{place.host}{place.path}":
        return f"{where}, the same address: the site believes that the request came over http", hint(head, Fault.SCHEME)
    if parts.path.rstrip("/") == place.path.rstrip("/"):
        return where, "It redirects: give the address that it redirects to."
    what = "It redirects, to a page for logging in? Whatever asks for a login there must leave this address out"
    return where, f"{what}; or Upgrade did not arrive, and Django answered as for a page. {hint(head, Fault.UPGRADE)}"


def _by(head: Head) -> str:
    name = name_of(head)
    return f" from {name}" if name else ""


async def _opens(place: Place, origin: str | None) -> bool:
    with suppress(*GONE):
        async with request(place, "GET", handshake_headers(origin)) as answer:
            return answer.head.status == SWITCHING
    return False


async def _status_of_a_page(place: Place) -> int | None:
    """Ask for the same address without ``Upgrade``, as for a page."""
    with suppress(*GONE):
        async with request(place, "GET", {"Origin": place.origin, "Connection": "close"}) as answer:
            return answer.head.status
    return None


# HTTP.


async def _examine_http(place: Place) -> Finding:
    """Ask for the stream as a stranger, who is refused in the protocol's own words."""
    body = request_body("stream")
    try:
        async with request(place, "POST", post_headers(place, body), body) as answer, Timeout(PATIENCE):
            said = (await answer.read()).decode(errors="replace")
    except GONE as error:
        text = f"{place.url} does not answer over HTTP: {describe(error)}"
        return Finding("server", Level.WARNING, text, hint(Head(0, {}), Fault.BUFFERING))
    return judge_http(place, answer.head, said)


def describe_answer(head: Head, said: str) -> str | None:
    """Return what is wrong with the answer to a stranger at the stream's address; None if nothing is."""
    if head.status != 200:
        where = head.get("location").partition("?")[0][:LONGEST_LOCATION]
        return f"{head.status}{f', a redirect to {where}' if where else ''}"
    if head.media_type == "application/json":
        return "polls, and no stream: the site runs under WSGI, or has no channel layer"
    if head.media_type != "text/event-stream" or '"auth_error"' not in said:
        return f"{head.media_type[:LONGEST_LOCATION] or 'something'}, which is no stream"
    return None


def judge_http(place: Place, head: Head, said: str) -> Finding:
    """Return the finding about the answer to a stranger at the stream's address."""
    if (wrong := describe_answer(head, said)) is None:
        return Finding("server", Level.OK, f"{place.url} answers over HTTP")
    text = f"{place.url} answers a stranger with {wrong}"
    what = {
        200: "Something else answers there: a page of a proxy, or for logging in?",
        400: f"{hint(head, Fault.HOST)}; is it in ALLOWED_HOSTS?",
        403: "A rule of the proxy or of the site's own middleware refuses a POST with a JSON body: see their logs.",
        404: 'Does the proxy send this address to Django, and has the site include("notifications.urls") there?',
        405: "Something else is at this address: does the proxy pass the method and the path on?",
        429: "Too many connections; ask again when there are fewer.",
    }.get(head.status, _STATUS.get(head.status, "The log of the web server or of the proxy says why."))
    if head.media_type == "application/json" and head.status == 200:
        what = "Run it on an ASGI server; docs/how-to/existing-site.md."
    if head.media_type == "application/json" and head.status == 403:
        text = f"{text}, by the origin rule"
        what = hint(head, Fault.HOST, *([Fault.SCHEME] if place.secure else []))
    if 300 <= head.status < 400:
        what = _redirect(place, head)[1]
    return Finding("server", Level.WARNING, f"{text}{_by(head)}", what)
