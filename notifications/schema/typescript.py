"""The frames and messages as TypeScript types, made from their JSON Schemas."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Final

from msgspec import Struct

from .json_schema import CLIENT_FRAMES, MESSAGE, SERVER_FRAMES, TYPED_MESSAGES, Schema, definitions, tag_of

HEAD: Final = """\
// The wire protocol of notifications. Made by `manage.py notifications_schema typescript`; do not edit.
"""
WORDS: Final = {"integer": "number", "number": "number", "string": "string", "boolean": "boolean", "null": "null"}


def typescript() -> str:
    """Write the declarations: an interface each frame and message, and unions to tell them apart by ``action``."""
    parts = [HEAD, *(_interface(name, schema) for name, schema in definitions("{name}").items())]
    parts += [
        _union("ClientFrame", "What a client may say.", CLIENT_FRAMES),
        _union("ServerFrame", "What the server says itself.", SERVER_FRAMES),
        _message_map(),
        _comment("A typed message; `action` tells which.")
        + "export type TypedMessage = MessageMap[keyof MessageMap];\n",
    ]
    return "\n".join(parts)


def _interface(name: str, schema: Schema) -> str:
    lines = [_comment(schema["description"]), f"export interface {name} {{\n"]
    for field, value in schema["properties"].items():
        optional = "" if field in schema.get("required", ()) else "?"
        lines += [_comment(value.get("description", ""), "  "), f"  readonly {field}{optional}: {_type_of(value)};\n"]
    if name == MESSAGE:
        lines.append("  readonly [field: string]: unknown;\n")
    return "".join([*lines, "}\n"])


def _message_map() -> str:
    text = (
        "The typed messages by `action`. A site adds its own: "
        '`declare module "…/protocol.js" { interface MessageMap { order_shipped: OrderShipped } }`'
    )
    lines = "".join(f"  {tag_of(each)}: {each.__name__};\n" for each in TYPED_MESSAGES)
    return f"{_comment(text)}export interface MessageMap {{\n{lines}}}\n"


def _union(name: str, description: str, structs: Iterable[type[Struct]]) -> str:
    lines = "".join(f"\n  | {each.__name__}" for each in structs)
    return f"{_comment(description)}export type {name} ={lines};\n"


def _type_of(schema: Schema) -> str:
    return " | ".join(dict.fromkeys(_alternatives(schema)))


def _alternatives(schema: Schema) -> Iterator[str]:
    if "$ref" in schema:
        yield schema["$ref"]
    elif "enum" in schema:
        yield from (json.dumps(value) for value in schema["enum"])
    elif "anyOf" in schema:
        for each in schema["anyOf"]:
            yield from _alternatives(each)
    elif schema.get("type") == "array":
        yield f"readonly {_type_of(schema['items'])}[]"
    elif "type" not in schema:
        yield "unknown"
    else:
        types = schema["type"]
        yield from (WORDS[each] for each in ([types] if isinstance(types, str) else types))


def _comment(text: str, indent: str = "") -> str:
    if not text:
        return ""
    if "\n" not in text:
        return f"{indent}/** {text} */\n"
    lines = "".join(f"{indent} * {line}".rstrip() + "\n" for line in text.splitlines())
    return f"{indent}/**\n{lines}{indent} */\n"
