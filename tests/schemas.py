"""The committed JSON Schemas of the protocol, as a foreign client has them: nothing here imports ``notifications``."""

import json
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

PATH = Path(__file__).resolve().parent.parent / "docs/protocol.schema.json"
DOCUMENT: dict[str, Any] = json.loads(PATH.read_text())
NAMES = {
    union: {each["$ref"].rpartition("/")[2] for each in DOCUMENT["$defs"][union]["anyOf"]}
    for union in ("ClientFrame", "ServerFrame", "TypedMessage")
}
"""What the unions are made of."""


@cache
def validator(name: str) -> Draft202012Validator:
    """Return what checks values against one definition."""
    return Draft202012Validator({"$ref": f"#/$defs/{name}", "$defs": DOCUMENT["$defs"]})


@cache
def tags(union: str) -> dict[str, str]:
    """Return the names of a union's definitions by the ``action`` that tells them apart, but ``Guest``."""
    found = {}
    for name in NAMES[union] - {"Guest"}:
        properties = DOCUMENT["$defs"][name]["properties"]
        (tag,) = properties.get("action", properties.get("type"))["enum"]
        found[tag] = name
    return found


def check(frame: dict[str, Any], union: str) -> str:
    """
    Check a frame and return the name of its definition.

    Raises:
        AssertionError: It has an unknown ``action``, or is not as its definition says.

    """
    tag = frame.get("type") if union == "ClientFrame" and "type" in frame else frame.get("action")
    assert tag in tags(union), f"no {union}: {frame}"
    name = "Guest" if tag == "auth" and "guest" in frame else tags(union)[tag]
    errors = [f"{error.json_path}: {error.message}" for error in validator(name).iter_errors(frame)]
    assert not errors, f"no {name}: {errors} in {frame}"
    return name


def check_server_frame(text: str) -> None:
    """Check a frame as it came from a socket, if it is the server's own: it has no ``_meta`` and says what it is."""
    frame = json.loads(text)
    if "_meta" in frame:
        assert not list(validator("Message").iter_errors(frame)), f"no Message: {frame}"
    elif frame.get("action") in tags("ServerFrame"):
        check(frame, "ServerFrame")
