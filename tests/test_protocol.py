"""The protocol as documents for machines: current, valid by their own standards, and true on real sockets."""

import asyncio
import json
import os
import re
import shutil
import subprocess
from collections import defaultdict
from io import StringIO
from pathlib import Path
from typing import Any, Self, get_args
from uuid import uuid4

import pytest
from django.core.management import call_command
from hypothesis import assume, example, given
from jsonschema import Draft7Validator, Draft202012Validator
from msgspec import Struct
from websockets.exceptions import ConnectionClosed

import notifications
from notifications import frames, messages
from notifications.protocol import asyncapi, schemas
from notifications.protocol.asyncapi import VERSION
from tests.clients import RawRedis, Tab, open_tab
from tests.conftest import point_to
from tests.processes import User, WebServer
from tests.schemas import DOCUMENT, NAMES, check, tags, validator
from tests.test_frames import near_frames
from tests.waiting import await_for, scaled

ROOT = Path(__file__).resolve().parent.parent
NODE_MODULES = ROOT / "tests/js/node_modules"
COMMITTED = {
    "asyncapi": ROOT / "docs/asyncapi.json",
    "jsonschema": ROOT / "docs/protocol.schema.json",
    "typescript": ROOT / "notifications/static/notifications/protocol.d.ts",
}
ASYNCAPI: dict[str, Any] = json.loads(COMMITTED["asyncapi"].read_text())


def node_module(path: str) -> Path:
    """Return a file of the test tools that npm installs; skip without them, but fail in CI, or nobody would notice."""
    found = NODE_MODULES / path
    if not found.exists():
        message = f"{path} is not installed: tests/js/run does that"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    return found


def printed(name: str) -> str:
    output = StringIO()
    call_command("notifications_schema", name, stdout=output)
    return output.getvalue()


# The documents.


@pytest.mark.parametrize("name", COMMITTED)
def test_committed_documents_are_current(name: str) -> None:
    """What the command prints is what is committed; ``make schema`` writes it."""
    assert printed(name) == COMMITTED[name].read_text()


def test_documents_are_the_same_on_every_site(settings) -> None:
    """No setting of a site changes them, so that the committed ones are everybody's; a wrong one is no obstacle."""
    settings.NOTIFICATIONS = {"PREFIX": "shop:", "TOPICS": {"order": {}}, "HISTORY_SIZE": 0, "nonsense": 1}

    for name, path in COMMITTED.items():
        assert printed(name) == path.read_text()


def test_asyncapi_document_is_valid() -> None:
    """It conforms to the official schema of AsyncAPI 3.0."""
    schema = json.loads(node_module("@asyncapi/specs/schemas/3.0.0.json").read_text())

    assert list(Draft7Validator(schema).iter_errors(ASYNCAPI)) == []
    assert list(Draft7Validator(schema).iter_errors(ASYNCAPI | {"channels": {"x": {"messages": []}}}))


def references(value: Any) -> list[str]:
    """Find all ``$ref`` in a document."""
    if isinstance(value, dict):
        own = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
        return own + [found for each in value.values() for found in references(each)]
    return [found for each in value for found in references(each)] if isinstance(value, list) else []


@pytest.mark.parametrize("document", [ASYNCAPI, DOCUMENT], ids=["asyncapi", "jsonschema"])
def test_references_lead_somewhere(document: dict[str, Any]) -> None:
    """Each ``$ref`` of a document finds a part of it."""
    assert len(references(document)) > 20
    for reference in references(document):
        place: Any = document
        for step in reference.removeprefix("#/").split("/"):
            place = place[step]


def test_operations_say_each_frame_in_its_direction() -> None:
    """The server receives or is answered all that clients may say, and sends or answers all that it may say."""
    heard, said = set(), set()
    for operation in ASYNCAPI["operations"].values():
        asked = {each["$ref"].rpartition("/")[2] for each in operation["messages"]}
        answers = {each["$ref"].rpartition("/")[2] for each in operation.get("reply", {}).get("messages", [])}
        heard |= asked if operation["action"] == "receive" else answers
        said |= asked if operation["action"] == "send" else answers

    assert heard == NAMES["ClientFrame"]
    assert said == NAMES["ServerFrame"] | NAMES["TypedMessage"] | {"Message"}
    assert set(ASYNCAPI["channels"]["notifications"]["messages"]) == heard | said


def test_close_codes_say_whether_to_come_back() -> None:
    """4000 to 4099 mean "do not retry", all others "retry"."""
    codes = ASYNCAPI["channels"]["notifications"]["x-close-codes"]

    assert {int(code) for code in codes} == set(frames.CloseCode)
    assert {int(code) for code, about in codes.items() if not about["retry"]} == {4001, 4002, 4003, 4004, 4005}


def test_version_is_the_packages() -> None:
    """The protocol has no version of its own."""
    assert f'\nversion = "{VERSION}"\n' in (ROOT / "pyproject.toml").read_text()


# The schemas.


def test_schemas_are_schemas() -> None:
    """Each definition is one of the draft that the document names."""
    assert DOCUMENT["$schema"] == Draft202012Validator.META_SCHEMA["$id"]
    for name in DOCUMENT["$defs"]:
        Draft202012Validator.check_schema(validator(name).schema)


@pytest.mark.parametrize(
    "struct",
    [each for each in vars(frames).values() if isinstance(each, type) and issubclass(each, Struct)]
    + [each for each in vars(messages).values() if isinstance(each, type) and issubclass(each, Struct)],
    ids=lambda struct: struct.__name__,
)
def test_every_frame_and_message_is_described(struct: type[Struct]) -> None:
    """What has a tag is in a union and has a sentence of its own: that is what readers of the documents see."""
    if struct.__struct_config__.tag is None:
        return

    assert struct.__name__ in NAMES["ClientFrame"] | NAMES["ServerFrame"] | NAMES["TypedMessage"]
    assert DOCUMENT["$defs"][struct.__name__]["description"] == schemas.text_of(struct)
    assert vars(struct).get("__doc__")


@given(frame=near_frames)
@example(frame={"action": "subscribe", "topic": "a", "since": "last", "grant": None})
@example(frame={"type": "auth", "token": "t", "since": "never"})
@example(frame={"action": "pong", "n": "7"})
def test_a_frame_is_valid_if_the_server_understands_it(frame: dict[str, Any]) -> None:
    """The schemas of clients' frames and the server's decoder agree on whatever looks like a frame."""
    assume(not {"type", "action"} <= frame.keys())  # the decoder looks at one of them, a schema at all its keys
    assume(not isinstance(frame.get("n"), int | float) or abs(frame["n"]) < 2**63)
    try:
        decoded = frames.decode(json.dumps(frame))
        frames.check_since(getattr(decoded, "since", None))
        understood = True
    except frames.FrameError:
        understood = False

    assert validator("ClientFrame").is_valid(frame) == understood


def progress(**changes: Any) -> dict[str, Any]:
    payload = {
        "upload_id": "7f3c",
        "status": "analyzing",
        "stage": "vision_analysis",
        "progress_percent": 40,
        "message": "Frame 40 of 100",
        "error_message": None,
        "description_audit_score": None,
    }
    return {"action": "upload_progress", "payload": {**payload, **changes}, "timestamp": "2026-11-23T18:04:36Z"}


@pytest.mark.parametrize(
    "wrong",
    [{"progress_percent": 101}, {"progress_percent": 4.5}, {"status": "done"}, {"upload_id": None}, {"stage": 7}],
    ids=repr,
)
def test_what_a_typed_message_refuses_its_schema_refuses(wrong: dict[str, Any]) -> None:
    """A program that publishes by itself can check its messages by the schema instead."""
    assert validator("UploadProgress").is_valid(progress())
    assert not validator("UploadProgress").is_valid(progress(**wrong))
    with pytest.raises(messages.MessageError):
        messages.UploadProgressPayload(**progress(**wrong)["payload"])


def test_no_field_of_a_typed_message_is_left_out() -> None:
    """What has no value is ``null`` on the wire, so the schemas and types ask for every field but ``_meta``."""
    for name in NAMES["TypedMessage"]:
        described = DOCUMENT["$defs"][name]
        assert set(described["required"]) == set(described["properties"]) - {"_meta"}


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
    ]


async def test_every_frame_on_a_real_socket_is_as_described(site, server, settings) -> None:
    """All frames there are travel over real sockets, and each is valid by the schema of its name."""
    point_to(settings, site.redis.url)
    user = site.add_user()
    upload_id = user.new_upload()
    heard: set[str] = set()
    said: set[str] = set()

    async with open_tab(server) as tab, open_tab(server) as refused:

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

    assert heard == NAMES["ServerFrame"] | NAMES["TypedMessage"] | {"Message"}
    assert said == NAMES["ClientFrame"]


def test_error_codes_are_all_described() -> None:
    """The codes of the error frame are those of the type that the server's code is checked by."""
    assert set(DOCUMENT["$defs"]["Error"]["properties"]["code"]["enum"]) == set(get_args(frames.ErrorCode))
    assert asyncapi.asyncapi() == ASYNCAPI


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
    kinds = {**settings.NOTIFICATIONS["TOPICS"], "team": {"JOIN": "tests.site.permissions.teams_of"}}
    new_site.settings = {"NOTIFICATIONS": {"TOPICS": kinds}}
    point_to(settings, new_site.redis.url)
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "TOPICS": kinds}
    server, _ = await asyncio.to_thread(new_site.start_all, server_kind)
    user = new_site.add_user()
    raw_topic, published_topic, team = f"user:{user.pk}", f"upload:{user.new_upload()}", f"team:{user.username}"
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
