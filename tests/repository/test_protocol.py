"""The protocol as documents for machines: current, valid by their own standards, and true on real sockets."""

import json
import os
import re
from io import StringIO
from pathlib import Path
from typing import Any, get_args

import pytest
from django.core.management import call_command
from hypothesis import assume, example, given
from jsonschema import Draft7Validator, Draft202012Validator, SchemaError
from msgspec import Struct

from notifications import messages
from notifications.protocol import frames
from notifications.schema import asyncapi, json_schema
from notifications.schema.asyncapi import VERSION
from tests.cases import cases
from tests.schemas import DOCUMENT, NAMES, validator
from tests.unit.test_frames import near_frames

ROOT = Path(__file__).resolve().parents[2]
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


@cases("name", COMMITTED)
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
    Draft202012Validator.check_schema(DOCUMENT)
    with pytest.raises(SchemaError):
        Draft202012Validator.check_schema({**DOCUMENT, "$defs": {"wrong": {"type": 7}}})


def test_every_frame_and_message_is_described() -> None:
    """What has a tag is in a union and has a sentence of its own: that is what readers of the documents see."""
    structs = {
        name: each
        for module in (frames, messages)
        for name, each in vars(module).items()
        if isinstance(each, type) and issubclass(each, Struct) and each.__struct_config__.tag is not None
    }

    assert structs.keys() == NAMES["ClientFrame"] | NAMES["ServerFrame"] | NAMES["TypedMessage"]
    for name, struct in structs.items():
        assert DOCUMENT["$defs"][name]["description"] == json_schema.text_of(struct)
        assert vars(struct).get("__doc__"), name


@given(frame=near_frames)
@example(frame={"action": "subscribe", "topic": "a", "since": "last", "grant": None})
@example(frame={"type": "auth", "token": "t", "since": "never"})
@example(frame={"action": "pong", "n": "7"})
def test_a_frame_is_valid_if_the_server_understands_it(frame: dict[str, Any]) -> None:
    """The schemas of clients' frames and the server's decoder agree on whatever looks like a frame."""
    assume(not {"type", "action"} <= frame.keys())  # the decoder looks at one of them, a schema at all its keys
    assume(not isinstance(frame.get("n"), int | float) or abs(frame["n"]) < 2**63)
    assume(not re.search(r"\b(Infinity|NaN)\b", json.dumps(frame)))  # what Python writes so is not JSON
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


@cases(
    "wrong",
    [{"progress_percent": 101}, {"progress_percent": 4.5}, {"status": None}, {"upload_id": None}, {"stage": 7}],
)
def test_what_a_typed_message_refuses_its_schema_refuses(wrong: dict[str, Any]) -> None:
    """A program that publishes by itself can check its messages by the schema instead."""
    assert validator("UploadProgress").is_valid(progress())
    assert not validator("UploadProgress").is_valid(progress(**wrong))
    with pytest.raises(messages.MessageError):
        messages.UploadProgressPayload(**progress(**wrong)["payload"])


def test_no_field_of_a_typed_message_is_left_out() -> None:
    """What has no value is ``null`` on the wire: all fields are required but ``_meta`` and those of kept notices."""
    for name in NAMES["TypedMessage"]:
        described = DOCUMENT["$defs"][name]
        assert set(described["required"]) == set(described["properties"]) - {"_meta", "inbox"}


def test_error_codes_are_all_described() -> None:
    """The codes of the error frame are those of the type that the server's code is checked by."""
    assert set(DOCUMENT["$defs"]["Error"]["properties"]["code"]["enum"]) == set(get_args(frames.ErrorCode))
    assert asyncapi.asyncapi() == ASYNCAPI
