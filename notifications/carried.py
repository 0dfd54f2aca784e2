"""What the messages of the channel layer are on their way: msgpack, and who may hold the same one."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from .box import Item

_SHAREABLE: Final = frozenset({str, int, float, bool, bytes, type(None)})


def _plain(value: Any) -> Any:
    """Make what other layers carry too out of a subclass, such as the safe strings of Django's templates."""
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
        TypeError, ValueError, OverflowError: It is no message of a channel layer.

    """
    if not isinstance(message, dict):
        raise TypeError(f"a message is a dict, not {type(message).__name__}")
    return _encode(message)


def encode_for(channel: str, message: dict[str, Any]) -> bytes:
    """Encode a message that shares its Redis channel with those to other channels."""
    return _encode([channel, msgspec.Raw(encode(message))])


def shareable(message: dict[str, Any], data: bytes) -> Item:
    """Make what the boxes of a group hold: if something in it can be changed, each consumer decodes its own."""
    return Item(message if all(type(value) in _SHAREABLE for value in message.values()) else data, len(data))


def own(content: dict[str, Any] | bytes) -> dict[str, Any]:
    """Make a message that its consumer may change."""
    if isinstance(content, bytes):
        message: dict[str, Any] = decode(content)
        return message
    return content.copy()
