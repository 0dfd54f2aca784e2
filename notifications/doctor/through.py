"""The doctor's message, followed through the running site and its proxies: by WebSocket, HTTP stream and HTTP poll."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any, ClassVar, Final

import msgspec

from ..aio import Timeout
from ..broker.clients import FAILURES, SOCKET_TIMEOUT, async_client
from ..conf import settings
from ..exceptions import PositionError, PublishError
from ..logs import describe
from ..positions import aposition
from ..publisher import apublish
from ..tokens import make_grant, make_token
from ..topics import Topic
from .client import (
    GONE,
    PATIENCE,
    SWITCHING,
    TEXT,
    Answer,
    Head,
    Place,
    handshake_headers,
    post_headers,
    request,
    request_body,
)
from .findings import Finding, Level
from .proxies import Fault, hint
from .server import RunningSite
from .socket import ProbeUser, end

FIRST_FRAME: Final = 3.0
"""Seconds after which a page takes a stream that has said nothing for one that a proxy holds back."""
ARRIVAL: Final = 6.0
"""Seconds in which a message arrives even if a listener has just died: a takeover takes five."""
POLL: Final = 25
"""Seconds for which the site may hold a poll back: the most that a page asks for."""
ACTION: Final = "notifications_doctor"
DEFAULT_CHECK: Final = "notifications.tokens.check_token"


class Probe:
    """A topic of nobody's, which one user may read by a grant, and the message that is published on it."""

    def __init__(self, user: Any) -> None:
        self.topic = Topic.for_user(ProbeUser.new())
        self.token = make_token(user)
        self.subscription = {"topic": self.topic.told, "since": None, "grant": make_grant(user, self.topic)}

    async def prepare(self) -> None:
        """Begin where the topic is now; raise ``PositionError`` if Redis does not answer."""
        self.subscription["since"] = await aposition(self.topic)

    async def publish(self) -> None:
        """Publish the message; raise ``PublishError`` if Redis does not accept it."""
        await apublish(self.topic, {"action": ACTION, "doctor": self.topic.id})

    async def forget(self) -> None:
        """Remove what the message left in Redis."""
        with suppress(*FAILURES):
            async with Timeout(SOCKET_TIMEOUT):
                await (await async_client()).delete(self.topic.history_key)


class _RefusedError(Exception):
    """The site's own words why it does not let the doctor in, or not any longer."""


class _Way(ABC):
    """
    One transport, from the request to the end of the examination.

    Attributes:
        head: The beginning of the last answer.
        is_in: Set when the site has answered the subscription.
        arrived: Set when the message has arrived.
        refused: The site's own words why it let nobody in.
        trouble: What ended it before its time, and the seconds in which nothing had come before.

    """

    name: ClassVar[str]

    def __init__(self, place: Place, probe: Probe) -> None:
        self.place = place
        self.probe = probe
        self.subscription = dict(probe.subscription)
        self.head = Head(0, {})
        self.is_in, self.arrived = asyncio.Event(), asyncio.Event()
        self.refused = ""
        self.trouble: tuple[str, float] | None = None

    @abstractmethod
    def frames(self) -> AsyncGenerator[Mapping[str, Any]]:
        """Yield what the site says, and ``{}`` for a sign of life."""

    async def run(self) -> None:
        """Follow it until it is cancelled, or cut off."""
        loop = asyncio.get_running_loop()
        heard = loop.time()
        try:
            async with aclosing(self.frames()) as frames:
                async for frame in frames:
                    heard = loop.time()
                    self._take(frame)
            self.trouble = "the connection was closed", loop.time() - heard
        except _RefusedError as refusal:
            self.refused = str(refusal)
        except (*GONE, msgspec.DecodeError) as error:
            self.trouble = describe(error), loop.time() - heard

    def _take(self, frame: Mapping[str, Any]) -> None:
        if "_meta" in frame:  # a message, also of the user's own, which may have any action
            if frame.get("doctor") == self.probe.topic.id:
                self.arrived.set()
            return
        match frame.get("action"):
            case "subscribed" if frame.get("topic") == self.probe.topic.told:
                self.is_in.set()
            case "auth_error":
                raise _RefusedError(describe(str(frame.get("message"))))
            case "error" if frame.get("topic") == self.probe.topic.told:
                raise _RefusedError(describe(str(frame.get("message"))))
            case "close":
                raise _RefusedError(f"closed with {frame.get('code')}")
            case _ if frame.get("doctor") == self.probe.topic.id:  # of a kind without a history
                self.arrived.set()


class _Socket(_Way):
    name = "WebSocket"

    async def frames(self) -> AsyncGenerator[Mapping[str, Any]]:
        async with request(self.place, "GET", handshake_headers(self.place.origin, compressed=False)) as answer:
            self.head = answer.head
            if answer.head.status != SWITCHING:
                raise EOFError(f"it was answered {answer.head.status}")
            await answer.say(TEXT, msgspec.json.encode({"type": "auth", "token": self.probe.token}))
            subscription = {"action": "subscribe", **self.subscription}
            await answer.say(TEXT, msgspec.json.encode(subscription))
            async for frame in answer.messages():
                if frame.get("action") == "ping":
                    await answer.say(TEXT, msgspec.json.encode({"action": "pong", "n": frame.get("n")}))
                yield frame


class _HTTP(_Way):
    media_type: ClassVar[str]
    encoding = "gzip"

    @asynccontextmanager
    async def asked(self, mode: str, wait: int = 0) -> AsyncIterator[Answer]:
        body = request_body(mode, token=self.probe.token, topics=[self.subscription], wait=wait)
        headers = post_headers(self.place, body, encoding=self.encoding)
        async with request(self.place, "POST", headers, body, patience=wait + PATIENCE) as answer:
            self.head = answer.head
            if (answer.head.status, answer.head.media_type) != (200, self.media_type):
                raise EOFError(f"it was answered {answer.head.status} {answer.head.media_type}")
            yield answer


class _Stream(_HTTP):
    name = "stream"
    media_type = "text/event-stream"

    async def frames(self) -> AsyncGenerator[Mapping[str, Any]]:
        async with self.asked("stream") as answer:
            async for name, data in answer.events():
                frame = msgspec.json.decode(data, type=dict[str, Any]) if data else {}
                yield {"action": "close", **frame} if name == "close" else frame


class _PlainStream(_Stream):
    """A stream that nothing may compress."""

    encoding = "identity"


class _Poll(_HTTP):
    name = "poll"
    media_type = "application/json"

    async def frames(self) -> AsyncGenerator[Mapping[str, Any]]:
        wait = 0
        while True:
            async with self.asked("poll", wait) as answer:
                said = msgspec.json.decode(await answer.read(), type=list[dict[str, Any]])
            for frame in [{}, *said]:
                if frame.get("doctor") == self.probe.topic.id:
                    self.subscription["since"] = frame["_meta"]["id"]
                yield frame
            if pause := self.head.get("retry-after"):  # under WSGI nothing is waited for
                await asyncio.sleep(min(max(float(pause), 0.1), POLL))
            wait = POLL


async def follow(site: RunningSite, user: Any, idle: int) -> list[Finding]:
    """
    Follow one message to this user's WebSocket, stream and poll, which may read its topic by a grant.

    Nothing is published on the user's own topic.

    Args:
        site: The site, examined; what does not work for a stranger is not tried again.
        user: An active user, whose token the site accepts.
        idle: Seconds for which the three are held, to see who cuts them off.

    """
    probe = Probe(user)
    try:
        await probe.prepare()
    except PositionError:
        return [Finding("server", Level.SKIPPED, "no message was sent through the running site: Redis did not answer")]
    ways: list[_Way] = [] if site.socket is None else [_Socket(site.socket, probe)]
    if site.http is not None:
        ways.append(_Stream(site.http, probe))
        if probe.subscription["since"] is not None:  # polls read the history, and there is none
            ways.append(_Poll(site.http, probe))
    if not ways:
        return []
    loop = asyncio.get_running_loop()
    began = loop.time()
    tasks = [asyncio.create_task(way.run()) for way in ways]
    try:
        await _each([(task, way.is_in) for task, way in zip(tasks, ways, strict=True)], FIRST_FRAME)
        in_time = [way for way in ways if way.is_in.is_set()]
        await probe.publish()
        awaited = [(task, way.arrived) for task, way in zip(tasks, ways, strict=True) if way in in_time]
        await _each(awaited, ARRIVAL)
        compressed = await _comes_uncompressed(ways, probe)
        if idle and in_time:
            await asyncio.wait(tasks, timeout=max(0.0, began + idle - loop.time()))
    except PublishError:
        return [Finding("server", Level.SKIPPED, "no message was sent through the running site: Redis refused it")]
    finally:
        for task in tasks:
            await end(task)
        await probe.forget()
    return _judge(ways, in_time, idle, compressed)


async def _comes_uncompressed(ways: list[_Way], probe: Probe) -> bool:
    """Return whether a stream that said nothing comes when it is asked for without compression."""
    silent = [way for way in ways if isinstance(way, _Stream) and not way.arrived.is_set()]
    if not silent or not any(way.arrived.is_set() for way in ways):
        return False
    plain = _PlainStream(silent[0].place, probe)
    task = asyncio.create_task(plain.run())
    try:
        await _each([(task, plain.is_in)], FIRST_FRAME)
    finally:
        await end(task)
    return plain.is_in.is_set()


async def _each(awaited: list[tuple[asyncio.Task[None], asyncio.Event]], seconds: float) -> None:
    """Wait until each task has ended or reached its event, for so many seconds at most."""
    reached = [asyncio.ensure_future(event.wait()) for _, event in awaited]
    with suppress(TimeoutError):
        try:
            async with Timeout(seconds):
                for (task, _), event in zip(awaited, reached, strict=True):
                    await asyncio.wait([task, event], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for event in reached:
                event.cancel()


def _judge(ways: list[_Way], in_time: list[_Way], idle: int, compressed: bool) -> list[Finding]:
    if refusals := {way.refused for way in ways if way.refused and not way.is_in.is_set()}:
        return [_judge_refusal(refusals)]
    found, fine = [], []
    for way in ways:
        level = Level.ERROR if isinstance(way, _Socket) else Level.WARNING
        if not way.arrived.is_set() or (isinstance(way, _Stream) and way not in in_time):
            found.append(Finding("server", level, *_judge_silence(way, ways, compressed)))
        elif way.trouble or way.refused:
            found.append(Finding("server", Level.WARNING, *_judge_end(way)))
        else:
            fine.append(way.name)
    if fine:
        held = f"; all stayed open for {idle} s" if idle else ""
        found.append(Finding("server", Level.OK, f"a message came through the running site by {', '.join(fine)}{held}"))
    return found


def _judge_refusal(refusals: set[str]) -> Finding:
    text = f"the running site refuses the user's token: {'; '.join(sorted(refusals))}"
    if settings.AUTHENTICATE_TOKEN != DEFAULT_CHECK:
        return Finding("server", Level.SKIPPED, f"{text}: AUTHENTICATE_TOKEN is the site's own, and knows others")
    what = "Do the web processes have the same SECRET_KEY and database as this command, and do the clocks agree?"
    return Finding("server", Level.ERROR, text, what)


def _judge_silence(way: _Way, ways: list[_Way], compressed: bool) -> tuple[str, str]:
    """Say why a message did not come, or nothing at all."""
    where = f"the {way.name} at {way.place.url}"
    if isinstance(way, _Stream) and any(other.arrived.is_set() for other in ways):
        how = "compressed" if compressed else "buffered"
        came = "its beginning came, and the message did not" if way.is_in.is_set() else "nothing came"
        text = f"{where} is {how} on its way, and held back: {came} within {FIRST_FRAME:g} s"
        return text, hint(way.head, Fault.BUFFERING)
    if way.trouble is not None:
        return f"{where} does not get through: {way.trouble[0]}", "See the log of the proxy and of the web server."
    return f"no message arrived by the {way.name} at {way.place.url}", "See the other checks, and the web server's log."


def _judge_end(way: _Way) -> tuple[str, str]:
    """Say who ended what had worked."""
    if way.refused:
        return f"the site ended the {way.name}: {way.refused}", "The log of the web server says why."
    assert way.trouble is not None  # noqa: S101  one of the two
    why, silence = way.trouble
    text = f"the {way.name} was cut off after {silence:.0f} s of silence: {why}"
    return text, f"{hint(way.head, Fault.IDLE)}; the server pings every {settings.HEARTBEAT_INTERVAL:g} s"
