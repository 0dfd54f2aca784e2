"""The wire protocol as documents, held against real sockets, programs and compilers."""

import asyncio
import json
import re
import shutil
import subprocess
from collections import defaultdict
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

import pytest
from websockets.exceptions import ConnectionClosed

import notifications
from notifications import messages
from tests.clients import RawRedis, Tab, open_tab
from tests.conftest import point_to
from tests.http_client import post
from tests.processes import User, WebServer
from tests.repository.test_protocol import (
    COMMITTED,
    node_module,
    progress,
)
from tests.schemas import NAMES, check, tags, validator
from tests.waiting import await_for, scaled

ROOT = Path(__file__).resolve().parents[2]
NODE_MODULES = ROOT / "tests/js/node_modules"


# The types.


def test_examples_in_typescript_compile(tmp_path: Path) -> None:
    """tsc accepts the TypeScript of docs/messages.md; what pages rely on is in tests/js/types."""
    compiler, node = node_module("typescript/bin/tsc"), shutil.which("node")
    assert node
    (tmp_path / "notifications").mkdir()
    shutil.copy(COMMITTED["typescript"], tmp_path / "notifications")
    (tmp_path / "package.json").write_text('{"type":"module"}')
    blocks = re.findall(r"^```ts\n(.*?)^```$", (ROOT / "docs/messages.md").read_text(), re.DOTALL | re.MULTILINE)
    files = [f"{number}.ts" for number in range(len(blocks))]
    for file, block in zip(files, blocks, strict=True):
        (tmp_path / file).write_text(block)
    project = json.loads((ROOT / "tests/js/types/tsconfig.json").read_text()) | {"files": files}
    (tmp_path / "tsconfig.json").write_text(json.dumps(project))

    done = subprocess.run(
        [node, compiler, "-p", tmp_path], capture_output=True, text=True, timeout=scaled(60), check=False
    )

    assert len(blocks) == 2
    assert done.returncode == 0, done.stdout


# Real sockets.


def typed_messages(upload_id: str) -> list[messages.Message]:
    """Return one message of each type."""
    return [
        messages.UploadProgress(payload=progress(upload_id=upload_id)["payload"]),
        messages.UploadCompleted(upload_id=upload_id, description="A cat", audit_score=92),
        messages.UploadFailed(upload_id=upload_id, error_message="no image"),
        messages.BatchProgress(
            payload=messages.BatchProgressPayload(
                batch_id=uuid4(),
                status="analyzing",
                total=8,
                processed=3,
                successful=2,
                failed=1,
                progress_percentage=37.5,
            )
        ),
        messages.FileProgress(
            payload=messages.FileProgressPayload(
                batch_id=uuid4(),
                upload_id=upload_id,
                file_name="cat.jpg",
                file_size=248113,
                progress_percentage=40,
                status="processing",
            )
        ),
        messages.Notice(title="Hello"),
        messages.InboxChanged(payload={"unread": 2, "change": "read", "until": "17"}),
        messages.JobProgress(payload={"id": upload_id, "state": "running", "percent": 40.5, "done": 81, "total": 200}),
    ]


async def test_every_frame_on_a_real_socket_is_as_described(site, server, settings) -> None:
    """All frames there are travel over real connections, and each is valid by the schema of its name."""
    point_to(settings, site.redis.url)
    user = site.add_user()
    upload_id = user.new_upload()
    heard: set[str] = set()
    said: set[str] = set()

    async with open_tab(server) as tab, open_tab(server) as refused, open_tab(server) as guest:

        async def say(frame: dict[str, Any], answer: str, socket: Tab = tab) -> dict[str, Any]:
            """Say something and return the answer of this name."""
            said.add(check(frame, "ClientFrame"))
            await socket.send(frame)
            return await hear(answer, socket)

        async def hear(name: str, socket: Tab = tab) -> dict[str, Any]:
            """Check all that is said until a frame of this name comes."""
            while True:
                async with asyncio.timeout(scaled()):
                    frame = json.loads(await socket.connection.recv())
                union = "TypedMessage" if frame.get("action") in tags("TypedMessage") else "ServerFrame"
                found = "Message" if "text" in frame else check(frame, union)
                assert ("_meta" in frame) == (union == "TypedMessage" or found == "Message")
                assert "_meta" not in frame or validator("Message").is_valid(frame)
                heard.add(found)
                if found == name:
                    return frame

        await say({"type": "auth", "token": "nonsense"}, "AuthError", refused)
        await say({"type": "auth", "guest": True}, "AuthError", guest)
        await say({"type": "auth", "token": user.token}, "AuthSuccess")
        at = (await say({"action": "subscribe_upload", "upload_id": upload_id, "since": "last"}, "Subscribed"))["id"]
        await say({"action": "unsubscribe_upload", "upload_id": upload_id}, "Unsubscribed")
        topic = f"upload:{upload_id}"
        await say({"action": "subscribe", "topic": topic, "since": at, "grant": user.grant(topic)}, "Subscribed")
        await say({"action": "subscribe", "topic": f"order:{uuid4()}"}, "Error")
        await say({"action": "ping"}, "ServerPong")
        for message in typed_messages(upload_id):
            name = type(message).__name__
            await notifications.apublish(topic if "upload" in name.lower() else f"user:{user.pk}", message)
            frame = await hear(name)
            assert frame["_meta"]["topic"].startswith("upload:" if "upload" in name.lower() else "user:")
        for _ in range(5):  # enough to be asked whether it was read
            await notifications.apublish(topic, {"text": "x" * 60_000})
        asked = await hear("ServerPing")
        said.add(check(pong := {"action": "pong", "n": asked["n"]}, "ClientFrame"))
        await tab.send(pong)
        await say({"action": "unsubscribe", "topic": topic}, "Unsubscribed")
    async with post(server, {"mode": "poll", "token": "nonsense", "topics": [], "wait": 0}) as answer:
        frames = await answer.json()
    heard.update(check(frame, "ServerFrame") for frame in frames)  # only over HTTP is a close one of them

    assert heard == NAMES["ServerFrame"] | NAMES["TypedMessage"] | {"Message"}
    assert said == NAMES["ClientFrame"]


# The client of docs/protocol.md.


def documented_client() -> Any:
    """Return the class that stands in docs/protocol.md."""
    text = (ROOT / "docs/protocol.md").read_text()
    (source,) = re.findall(r"<!-- example: client -->\n```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    namespace: dict[str, Any] = {}
    exec(compile(source, "docs/protocol.md", "exec"), namespace)
    return namespace["Client"]


class Reader:
    """Runs the documented client and keeps what it hands on."""

    def __init__(self, url: str, user: User, *topics: str, token: str | None = None) -> None:
        self.got: dict[str | None, list[int]] = defaultdict(list)
        self.losses: list[str] = []
        self._tokens = 0
        self._user, self._token = user, token
        self._client = documented_client()(url, self._fetch_token, topics, self._take, self.losses.append)

    @property
    def attempts(self) -> int:
        return self._tokens

    @property
    def positions(self) -> dict[str, str]:
        return self._client.last

    async def _fetch_token(self) -> str:
        self._tokens += 1
        return self._token or self._user.token

    def _take(self, topic: str | None, message: dict[str, Any]) -> None:
        self.got[topic].append(message["number"])

    async def __aenter__(self) -> Self:
        self.task = asyncio.create_task(self._client.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self.task.cancel()
        await asyncio.wait([self.task])


async def test_the_documented_client_loses_nothing_over_restarts(new_site, server_kind, settings) -> None:
    """While the web server is killed, stopped and started, the client of docs/protocol.md gets all, once, in order."""
    kinds = {**settings.NOTIFICATIONS["TOPICS"], "team": {"JOIN": "tests.testsite.permissions.teams_of"}}
    new_site.settings = {"NOTIFICATIONS": {"TOPICS": kinds}}
    point_to(settings, new_site.redis.url)
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "TOPICS": kinds}
    server, _ = await asyncio.to_thread(new_site.start_all, server_kind)
    user = new_site.add_user()
    # Its uptime is in whole seconds: that an empty topic has lost nothing since is proven once it is older than that.
    with new_site.client() as client:
        await await_for(lambda: client.info("server")["uptime_in_seconds"] >= 2)
    raw_topic, published_topic, team = f"user:{user.pk}", f"order:{user.username}", f"team:{user.username}"
    topics = (raw_topic, published_topic, team)  # the site joins the last
    sent = 0

    with RawRedis(new_site.redis.port) as raw:

        async def publish(amount: int) -> None:
            nonlocal sent
            for _ in range(amount):
                raw.publish(raw_topic, json.dumps({"number": sent}))
                for topic in (published_topic, team):
                    await notifications.apublish(topic, {"number": sent})
                sent += 1

        def all_there() -> bool:
            return all(len(reader.got[topic]) >= sent for topic in topics)

        async with Reader(server.url, user, published_topic) as reader:
            await await_for(lambda: set(topics) <= reader.positions.keys(), what="it has subscribed")
            await publish(20)
            await await_for(all_there, what="the first messages")
            for end in (WebServer.kill, WebServer.terminate):
                await publish(5)
                await asyncio.to_thread(end, server)
                await publish(20)  # to nobody
                server = await asyncio.to_thread(new_site.start_server, server_kind, server.port)
                await publish(5)
                await await_for(all_there, seconds=30, what=f"{sent} messages; {reader.got}")

            assert reader.got == {topic: list(range(sent)) for topic in topics}
            assert reader.losses == []


async def test_the_documented_client_does_not_come_back_in_vain(site, server) -> None:
    """A token that is refused ends it, with the close code."""
    async with Reader(server.url, site.add_user(), token="nonsense") as reader:
        with pytest.raises(ConnectionClosed) as closed:
            async with asyncio.timeout(scaled()):
                await reader.task

    assert closed.value.rcvd.code == 4003
    assert reader.attempts == 1
