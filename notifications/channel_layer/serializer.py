"""How channel-layer messages are serialised, and which consumers may share one object."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from .queue import Item

_SHAREABLE: Final = frozenset({str, int, float, bool, bytes, type(None)})


def _plain(value: Any) -> Any:
    """Turn a subclass instance, such as a template's safe string, into a plain value, as other layers do."""
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, bytes):
        return b"".join((value, b""))
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    raise TypeError(f"a channel layer does not carry {type(value).__name__} objects")


_encode = msgspec.msgpack.Encoder(enc_hook=_plain).encode
decode = msgspec.msgpack.Decoder().decode


def encode(message: dict[str, Any]) -> bytes:
    """
    Encode a message.

    Raises:
        TypeError, ValueError, OverflowError: It cannot be sent through a channel layer.

    """
    if not isinstance(message, dict):
        raise TypeError(f"a message is a dict, not {type(message).__name__}")
    return _encode(message)


def lua_encoder(message: dict[str, Any], variables: Mapping[Any, str]) -> str:
    """
    Return the Lua expression that encodes a message in a script of Redis.

    What all such messages share is encoded now. Joining it with the rest takes a third of what ``cmsgpack.pack`` takes
    for the whole.

    Args:
        message: A message of at most 15 entries, with placeholders for what only the script knows.
        variables: The Lua variable with the value, by placeholder: a text, or an integer below 2**53.

    """
    parts, form, numbers, fixed = list[str](), "", list[str](), bytes([0x80 | len(message)])

    def pack() -> None:
        nonlocal form
        if numbers:  # neighbours in one call
            parts.append(f"struct.pack('>{form}', {', '.join(numbers)})")
            form = ""
            numbers.clear()

    for key, value in message.items():
        fixed += _encode(key)
        if (variable := variables.get(value)) is None:
            fixed += _encode(value)
        elif isinstance(value, str):
            pack()
            parts += [_quoted(fixed + b"\xdb"), f"struct.pack('>I4', #{variable})", variable]
            fixed = b""
        else:
            form += f"c{len(fixed) + 1}I8"
            numbers += [_quoted(fixed + b"\xcf"), variable]
            fixed = b""
    pack()
    return " .. ".join([*parts, _quoted(fixed)] if fixed else parts)


def _quoted(data: bytes) -> str:
    """Return a Lua string."""
    return "'" + "".join(f"\\{byte:03}" for byte in data) + "'"


def encode_for(channel: str, message: dict[str, Any]) -> bytes:
    """Encode a message for a Redis channel that is shared by several channels of the layer."""
    return _encode([channel, msgspec.Raw(encode(message))])


def shareable(message: dict[str, Any], data: bytes) -> Item:
    """Return the item that the queues of a group share; if it is mutable, each consumer decodes its own copy."""
    return Item(message if all(type(value) in _SHAREABLE for value in message.values()) else data, len(data))


def own(content: dict[str, Any] | bytes) -> dict[str, Any]:
    """Return a message that its consumer may change."""
    if isinstance(content, bytes):
        message: dict[str, Any] = decode(content)
        return message
    return content.copy()
