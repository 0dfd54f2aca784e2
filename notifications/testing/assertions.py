"""Assertions about the messages that were captured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec

from ..exceptions import MessageError
from ..messages import encode
from ..topics import Topic
from .capture import Published, blocks

SHOWN: Final = 20
"""Messages that a failed assertion lists, the latest ones."""
SHOWN_CHARACTERS: Final = 400
"""Characters shown of each."""


def assert_notified(user: Any, /, **fields: Any) -> dict[str, Any]:
    """
    Assert that a message was published to a user, as ``publish_to_user`` does; see ``assert_published``.

    Args:
        user: A ``User`` instance or a primary key.
        **fields: As for ``assert_published``.

    """
    __tracebackhide__ = True
    return assert_published(Topic.for_user(user), **fields)


def assert_published(topic: Topic | str, /, **fields: Any) -> dict[str, Any]:
    """
    Assert that a message was published on a topic while the innermost open ``captured`` block was open.

    Args:
        topic: A ``Topic``, or its text such as ``"order:7"``.
        **fields: Fields that the message has, such as ``action="notice"``; it may have more. In a mapping, too, only
            what is given is compared: ``payload={"progress_percent": 40}``. Values are compared as in JSON, so that
            a ``UUID`` equals its text.

    Returns:
        The first such message.

    Raises:
        AssertionError: There is none; the error lists what was published instead.
        RuntimeError: No ``captured`` block is open.

    """
    __tracebackhide__ = True
    if not blocks.captures:
        raise RuntimeError(
            "nothing is being captured: call this within `with captured():` of notifications.testing, "
            "or use the fixture notifications_sent"
        )
    topic = Topic.parse(topic) if isinstance(topic, str) else topic
    sent = list(blocks.captures.values())[-1]
    wanted = {name: _as_json(value) for name, value in fields.items()}
    for published in sent:
        if published.topic == str(topic) and not any(_differences(wanted, published.message)):
            return published.message
    raise AssertionError(_explain(topic, wanted, sent))


def _as_json(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _as_json(each) for name, each in value.items()}
    try:
        return msgspec.json.decode(encode({"value": value}, 1 << 30))["value"]
    except MessageError:  # such as unittest.mock.ANY, which has its own comparison
        return value


def _differences(wanted: Mapping[str, Any], found: Any, path: str = "") -> Iterator[str]:
    for name, value in wanted.items():
        if not isinstance(found, Mapping) or name not in found:
            yield f"{path}{name} is missing"
        elif isinstance(value, Mapping) and isinstance(found[name], Mapping):
            yield from _differences(value, found[name], f"{path}{name}.")
        elif found[name] != value:
            yield f"{path}{name} is {found[name]!r}"


def _explain(topic: Topic, wanted: Mapping[str, Any], sent: list[Published]) -> str:
    said = ", ".join(f"{name}={value!r}" for name, value in wanted.items())
    lines = [f"no message on {topic}" + (f" with {said}" if said else "")]
    if not sent:
        lines.append(
            "nothing was published; what waits for a commit (on_commit=True) is published in a TestCase when "
            "captureOnCommitCallbacks(execute=True) ends"
        )
        return "\n".join(lines)
    lines.append(f"published were {len(sent)}" + (f", the last {SHOWN} of them:" if len(sent) > SHOWN else ":"))
    for published in sent[-SHOWN:]:
        text = msgspec.json.encode(published.message).decode()
        if len(text) > SHOWN_CHARACTERS:
            text = text[:SHOWN_CHARACTERS] + "…"
        why = ", ".join(_differences(wanted, published.message)) if published.topic == str(topic) else ""
        lines.append(f"  {published.topic}  {text}" + (f"\n    {why}" if why else ""))
    return "\n".join(lines)
