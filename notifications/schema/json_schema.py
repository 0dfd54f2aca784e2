"""
JSON Schemas of every frame and of every typed message, as they are on the wire.

What the server and ``publish_*`` send has all of its fields, those without a value as ``null``; a client may leave
out what has a default. Unknown keys are allowed everywhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from inspect import getdoc
from typing import Any, Final, get_args, get_type_hints

import msgspec
from msgspec import UNSET, Struct

from .. import messages
from ..messages import META
from ..protocol import frames

Schema = dict[str, Any]


class MessageMeta(Struct):
    """What the site puts first in a published message. Who publishes must not write it."""

    topic: frames.TopicName
    id: frames.Position


CLIENT_FRAMES: Final[tuple[type[Struct], ...]] = (frames.Auth, frames.Guest, *get_args(frames.Action))
SERVER_FRAMES: Final[tuple[type[Struct], ...]] = get_args(frames.ServerFrame)
TYPED_MESSAGES: Final[tuple[type[Struct], ...]] = tuple(
    each
    for each in get_args(messages.Message)
    # ``Mapping[str, Any]`` is among them, which is no class: from Python 3.13 on issubclass raises for it.
    if isinstance(each, type) and issubclass(each, messages.Checked)
)
MESSAGE: Final = "Message"
"""Name of the schema of whatever is published: any object, of which only ``_meta`` is ours."""


def tag_of(struct: type[Struct]) -> str:
    """Return what a frame has as its ``action``, or as its ``type``."""
    return str(struct.__struct_config__.tag)


def text_of(documented: object) -> str:
    """Return a docstring as CommonMark."""
    return (getdoc(documented) or "").replace("``", "`")


def definitions(ref: str) -> dict[str, Schema]:
    """
    Describe every frame, every message and their parts, by the names of their classes.

    Args:
        ref: How one refers to another, such as ``"#/$defs/{name}"``.

    """
    structs: list[type[Struct]] = [*CLIENT_FRAMES, *SERVER_FRAMES, *TYPED_MESSAGES, MessageMeta]
    _, found = msgspec.json.schema_components(structs, ref_template=ref)
    for struct in _with_parts(structs):
        schema = found[struct.__name__]
        schema["description"] = text_of(struct)
        if struct not in CLIENT_FRAMES:
            _send_all_fields(struct, schema)
    meta = {META: {"$ref": ref.format(name=MessageMeta.__name__)}}
    for each in TYPED_MESSAGES:
        schema = found[each.__name__]
        schema["properties"] = meta | schema["properties"]
    found[MESSAGE] = {
        "title": MESSAGE,
        "description": "Anything published: an object that says by its `action` what it is, if whoever published it "
        f"gave it one. Without `{META}` it has no id and is not kept.",
        "type": "object",
        "properties": meta,
    }
    return {name: found[name] for name in sorted(found)}


def json_schema() -> Schema:
    """Return one document of all of them, with the unions ``ClientFrame``, ``ServerFrame`` and ``TypedMessage``."""
    ref = "#/$defs/{name}"

    def any_of(description: str, structs: Iterable[type[Struct]]) -> Schema:
        return {"description": description, "anyOf": [{"$ref": ref.format(name=each.__name__)} for each in structs]}

    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "The frames and messages of notifications",
        "$defs": definitions(ref)
        | {
            "ClientFrame": any_of("What a client may say.", CLIENT_FRAMES),
            "ServerFrame": any_of("What the server says itself.", SERVER_FRAMES),
            "TypedMessage": any_of(
                "The messages that have a type; Message is what all have in common.", TYPED_MESSAGES
            ),
        },
    }


def _with_parts(structs: Iterable[type[Struct]]) -> Iterator[type[Struct]]:
    for struct in structs:
        yield struct
        for hint in get_type_hints(struct).values():
            for part in get_args(hint) or (hint,):
                if isinstance(part, type) and issubclass(part, Struct):
                    yield part


def _send_all_fields(struct: type[Struct], schema: Schema) -> None:
    """A default is for whoever makes a message; on the wire only what is unset is left out."""
    absent = {field.encode_name for field in msgspec.structs.fields(struct) if field.default is UNSET}
    schema["required"] = [name for name in schema["properties"] if name not in absent]
    for field in schema["properties"].values():
        field.pop("default", None)
