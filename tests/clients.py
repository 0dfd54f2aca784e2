"""
The other ends: a foreign program that speaks Redis by hand, a browser tab, and a client of the replaced service.

Nothing here imports ``notifications``: what the outside world relies on is written out.
"""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from typing import Any, Self
from uuid import UUID, uuid4

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.processes import User, WebServer
from tests.schemas import check_server_frame
from tests.waiting import await_for, scaled


class RawRedis:
    """
    A program in some other language: RESP over a socket, without a library and without our conventions.

    https://redis.io/docs/latest/develop/reference/protocol-spec/
    """

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=scaled())
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._replies = self._socket.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._replies.close()
        self._socket.close()

    def publish(self, channel: bytes | str, payload: bytes | str) -> int:
        """Publish one message and return how many subscribers Redis counted."""
        return self.publish_all([(channel, payload)])[0]

    def publish_all(self, messages: Iterable[tuple[bytes | str, bytes | str]]) -> list[int]:
        """Publish many in one write, as a pipelining client does; their order is the order of Redis."""
        commands = [self._pack(b"PUBLISH", _bytes(channel), _bytes(payload)) for channel, payload in messages]
        self._socket.sendall(b"".join(commands))
        return [self._read_integer() for _ in commands]

    @staticmethod
    def _pack(*words: bytes) -> bytes:
        return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)

    def _read_integer(self) -> int:
        reply = self._replies.readline()
        assert reply[:1] == b":", f"not an integer reply: {reply!r}"
        return int(reply[1:])


def _bytes(value: bytes | str) -> bytes:
    return value.encode() if isinstance(value, str) else value


META_HEAD = '{"_meta":'


def message_of(frame: str) -> str:
    """Return the message in a frame as it was published: without the ``_meta`` that the site puts first."""
    if not frame.startswith(META_HEAD):
        return frame
    _, end = json.JSONDecoder().raw_decode(frame, len(META_HEAD))
    return "{" + frame[end:].removeprefix(",")


class Tab:
    """
    A browser tab: one WebSocket and the frames it got.

    It answers the server's pings as a browser client does and shows all other frames in their order. Whatever the
    server says in any test is compared with the committed schemas.
    """

    def __init__(self, connection: ClientConnection, *, answers_pings: bool = True) -> None:
        self.connection = connection
        self.pings: list[dict[str, Any]] = []
        self.told: list[str] = []
        """Topics of which the server has said, unasked, that messages may be missing."""
        self._answers_pings = answers_pings

    async def send(self, frame: dict[str, Any] | str | bytes) -> None:
        await self.connection.send(json.dumps(frame) if isinstance(frame, dict) else frame)

    async def next_text(self) -> str:
        """
        Wait for the next frame, whatever it says.

        Raises:
            AssertionError: If none comes.
            ConnectionClosed: If the server closes instead.

        """
        while True:
            try:
                async with asyncio.timeout(scaled()):
                    text = await self.connection.recv()
            except TimeoutError:
                raise AssertionError(f"no frame within {scaled():g} s") from None
            check_server_frame(text)
            if not text.startswith('{"action":"ping"'):
                return text
            self.pings.append(ping := json.loads(text))
            if self._answers_pings:
                with suppress(ConnectionClosed):  # what came before the close is still to be read
                    await self.send({"action": "pong", "n": ping["n"]})

    async def next_frame(self) -> dict[str, Any]:
        """Wait for the next frame; see ``next_text``."""
        frame: dict[str, Any] = json.loads(await self.next_text())
        return frame

    async def expect(self, action: str, **fields: Any) -> dict[str, Any]:
        """Wait for the next frame, which must be this one, and return it."""
        frame = json.loads(await self.next_text())
        wanted = {"action": action, **fields}
        assert wanted.items() <= frame.items(), f"wanted {wanted}, got {frame}"
        return frame

    async def expect_message(self, payload: bytes | str) -> None:
        """Wait for the next frame, which must be this published message, to the byte; ``told`` may grow before it."""
        while (text := await self.next_text()).startswith('{"action":"subscribed"'):
            frame = json.loads(text)
            assert frame["recovered"] is False, f"wanted {payload!r}, got {frame}"
            self.told.append(frame["topic"])
        got = message_of(text)
        assert got.encode() == _bytes(payload), f"wanted {payload!r}, got {got!r}"

    async def expect_nothing_but(self, redis: RawRedis, user: User) -> None:
        """
        Prove that nothing is on its way: a marker, published now to the tab's own user, is the next frame.

        The bridge and the channel layer keep the order of all that is published on one Redis, so that whatever
        was published before, and were to arrive, would arrive before it.
        """
        marker = json.dumps({"action": "marker", "n": uuid4().hex})
        assert redis.publish(user.channel, marker) > 0
        await self.expect_message(marker)

    async def expect_closed(self, *codes: int) -> list[dict[str, Any]]:
        """Wait until the server closes with one of ``codes`` and return the frames that came before."""
        frames = []
        try:
            while True:
                frames.append(json.loads(await self.next_text()))
        except ConnectionClosed as closed:
            got = closed.rcvd.code if closed.rcvd else None
            assert got in codes, f"wanted close code {codes}, got {got}; frames before it: {frames}"
        return frames

    async def authenticate(self, user: User) -> dict[str, Any]:
        await self.send({"type": "auth", "token": user.token})
        return await self.expect("auth_success", user_id=str(user.pk))

    async def subscribe(self, topic: str, **fields: Any) -> dict[str, Any]:
        await self.send({"action": "subscribe", "topic": topic, **fields})
        return await self.expect("subscribed", topic=topic)

    async def watch(self, upload_id: str) -> dict[str, Any]:
        """Subscribe to an upload with the old protocol's frame."""
        await self.send({"action": "subscribe_upload", "upload_id": upload_id})
        return await self.expect("subscribed", topic=f"upload:{upload_id}")


SAME_HOST = "same host"
RETRY_CODES = (1001, 1011, 1012, 1013, *range(4100, 4200))
"""Close codes on which a client comes back. Daphne cannot send those below 3000."""


@asynccontextmanager
async def open_tab(
    server: WebServer,
    token_of: User | None = None,
    *,
    session_of: User | None = None,
    origin: str | None = SAME_HOST,
    headers: dict[str, str] | None = None,
    answers_pings: bool = True,
) -> AsyncIterator[Tab]:
    """
    Open a tab, which is closed at the end.

    Args:
        server: Where.
        token_of: Authenticate by token, and return when that is done.
        session_of: Log in by session cookie instead, and return when the server has said so.
        origin: The ``Origin`` header; None leaves it out.
        headers: More headers.
        answers_pings: Whether it answers the server's pings.

    Raises:
        websockets.exceptions.InvalidStatus: The server refuses the handshake.

    """
    if session_of is not None:
        headers = {"Cookie": session_of.cookie, **(headers or {})}
    connection = connect(
        server.url,
        origin=f"http://{server.address}" if origin == SAME_HOST else origin,
        additional_headers=headers,
        open_timeout=scaled(),
        close_timeout=scaled(1),
        proxy=None,
    )
    async with connection as opened:
        tab = Tab(opened, answers_pings=answers_pings)
        if token_of is not None:
            await tab.authenticate(token_of)
        elif session_of is not None:
            await tab.expect("auth_success", user_id=str(session_of.pk))
        yield tab


async def expect_refused(server: WebServer, *statuses: int, **options: Any) -> None:
    """Expect the handshake to be refused, with 403 if no other status is given; options as for ``open_tab``."""
    with pytest.raises(InvalidStatus) as refusal:
        async with open_tab(server, **options):
            pass
    assert refusal.value.response.status_code in (statuses or (403,))


class OldClient:
    """
    The client of the replaced FastAPI service, by its rules, which nobody will change.

    It validates every frame and drops silently what fails, ignores unknown keys, sends ``subscribe_upload`` right
    behind its auth frame without waiting, pings by itself and does not answer pings, stays away after 1000 and
    4001 to 4004 and comes back after all else.
    """

    STAYS_AWAY = frozenset({1000, 4001, 4002, 4003, 4004})

    def __init__(
        self, server: WebServer, token: Callable[[], str], *upload_ids: str, ping_interval: float = 30
    ) -> None:
        self.accepted: list[dict[str, Any]] = []
        self.dropped: list[str] = []
        self.closes: list[int | None] = []
        self.gone = False
        """It has decided not to come back."""
        self._server = server
        self._token = token
        self._upload_ids = upload_ids
        self._ping_interval = ping_interval
        self._connection: ClientConnection | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task

    def seen(self, action: str) -> list[dict[str, Any]]:
        return [frame for frame in self.accepted if frame["action"] == action]

    async def wait_until_seen(self, action: str, times: int = 1) -> list[dict[str, Any]]:
        await await_for(lambda: len(self.seen(action)) >= times or self._task.done(), what=f"{times} {action}")
        if self._task.done():
            await self._task
        return self.seen(action)

    async def wait_until_gone(self) -> None:
        """Wait until it has decided to stay away for good."""
        await await_for(lambda: self.gone, what=f"the old client stays away; closes: {self.closes}")

    async def _run(self) -> None:
        while not self.gone:
            try:
                async with connect(
                    self._server.url, open_timeout=scaled(), close_timeout=0.1, proxy=None
                ) as connection:
                    await self._talk(connection)
            except (OSError, TimeoutError, InvalidStatus):
                pass
            await asyncio.sleep(0.05)

    async def _talk(self, connection: ClientConnection) -> None:
        pinging = asyncio.create_task(self._ping(connection))
        try:
            await connection.send(json.dumps({"type": "auth", "token": self._token()}))
            for upload_id in self._upload_ids:
                await connection.send(json.dumps({"action": "subscribe_upload", "upload_id": upload_id}))
            while True:
                self._take(await connection.recv())
        except ConnectionClosed as closed:
            code = closed.rcvd.code if closed.rcvd else None
            self.closes.append(code)
            self.gone = code in self.STAYS_AWAY
        finally:
            pinging.cancel()

    async def _ping(self, connection: ClientConnection) -> None:
        with suppress(ConnectionClosed):
            while True:
                await asyncio.sleep(self._ping_interval)
                await connection.send('{"action":"ping"}')

    def _take(self, text: str) -> None:
        try:
            frame = json.loads(text)
            valid = fits(frame, OLD_SCHEMAS[frame["action"]])
        except (ValueError, KeyError, TypeError):
            valid = False
        if valid:
            self.accepted.append(frame)
        else:
            self.dropped.append(text)


def fits(value: Any, schema: Any) -> bool:
    """Say whether a value has every field of a schema; more fields are ignored."""
    if isinstance(schema, dict):
        return isinstance(value, dict) and all(name in value and fits(value[name], schema[name]) for name in schema)
    return bool(schema(value))


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _text_or_null(value: Any) -> bool:
    return value is None or _text(value)


def _uuid(value: Any) -> bool:
    if not _text(value):
        return False
    try:
        uuid = UUID(value)
    except ValueError:
        return False
    return str(uuid) == value.lower() and uuid.variant == "specified in RFC 4122" and uuid.version in range(1, 9)


def _count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _percent(value: Any) -> bool:
    return type(value) is int and 0 <= value <= 100


def _percent_or_null(value: Any) -> bool:
    return value is None or _percent(value)


def _float_percent(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= 100


def _one_of(*values: str) -> Callable[[Any], bool]:
    return lambda value: value in values


_STATUS = _one_of("pending", "analyzing", "embedding", "completed", "failed")
_STAGE = _one_of(
    "queued",
    "extracting_frames",
    "vision_analysis",
    "description_audit",
    "embedding_generation",
    "indexing",
    "completed",
    "failed",
)

OLD_SCHEMAS: dict[str, Any] = {
    "auth_success": {"user_id": _text},
    "auth_error": {"message": _text},
    "pong": {},
    "upload_progress": {
        "payload": {
            "upload_id": _uuid,
            "status": _STATUS,
            "stage": _STAGE,
            "progress_percent": _percent,
            "message": _text,
            "error_message": _text_or_null,
            "description_audit_score": _percent_or_null,
        },
        "timestamp": _text,
    },
    "upload_completed": {"upload_id": _uuid, "description": _text, "audit_score": _percent, "timestamp": _text},
    "upload_failed": {"upload_id": _uuid, "error_message": _text, "timestamp": _text},
    "batch_progress": {
        "payload": {
            "batch_id": _uuid,
            "status": _text,
            "total": _count,
            "processed": _count,
            "successful": _count,
            "failed": _count,
            "progress_percentage": _float_percent,
        },
        "timestamp": _text,
    },
    "file_progress": {
        "payload": {
            "batch_id": _uuid,
            "upload_id": _uuid,
            "file_name": _text,
            "file_size": _count,
            "progress_percentage": _percent,
            "status": _one_of("processing", "completed", "failed"),
        },
        "timestamp": _text,
    },
}
"""What the old client demands of a frame, by action; what is not here it does not know and drops."""
