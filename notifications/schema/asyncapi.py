"""The wire protocol as an AsyncAPI document: https://www.asyncapi.com/docs/reference/specification/v3.0.0."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from msgspec import Struct

from ..connection.limits import BURST, MAX_SUBSCRIPTIONS, RATE
from ..protocol import frames
from ..protocol.frames import MAX_AUTH_FRAME_SIZE, MAX_FRAME_SIZE, CloseCode
from .json_schema import CLIENT_FRAMES, MESSAGE, SERVER_FRAMES, TYPED_MESSAGES, Schema, definitions, tag_of, text_of

VERSION: Final = "0.1.0"
"""Of this package, to which the protocol belongs."""
CHANNEL: Final = "notifications"
REF: Final = "#/components/schemas/{name}"

OPENING: Final = """\
Frames are text and hold one JSON object each. Unknown keys and actions are to be ignored.

1. **Who.** A socket whose Django session names an active user gets `auth_success` at once. Any other sends `auth` as
   its first frame, in time, and need not wait for the answer: what follows is queued. A socket that is refused gets
   `auth_error` and is closed with a code that says why.
2. **What.** The socket has its user's own topic. It asks for others with `subscribe`; each is answered with
   `subscribed` or `error`, in the order of the questions, and messages of a topic follow its `subscribed`.
3. **Messages.** What begins with `_meta` was published. Those of one topic arrive in the order of their ids, each once.
   Keep the last id of each topic, from `_meta`, `auth_success` or `subscribed`.
4. **Coming back.** After a close whose code allows it, connect again after a random time that grows with each try, with
   a new token, and with the id kept of each topic as its `since`. `recovered` true: all that was missed follows. False:
   something may be missing for good, load the state from the site.
5. **Heartbeat.** Answer each `ping` with a `pong` and its number, in the order in which frames are read."""

LIMITS: Final = (
    f"A frame has at most {MAX_FRAME_SIZE} bytes, an `auth` frame {MAX_AUTH_FRAME_SIZE}; a socket has at most "
    f"{MAX_SUBSCRIPTIONS} topics beside its user's own, unless the site says otherwise, and sends at most {BURST} "
    f"frames at once and {RATE:g} a second."
)


def asyncapi() -> dict[str, Any]:
    """Return the document. Its operations are the server's: it receives what clients send."""
    schemas = definitions(REF)
    messages = _messages()
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Notifications",
            "version": VERSION,
            "description": "Carries published messages to browser tabs and other clients, each once and in order.",
        },
        "defaultContentType": "application/json",
        "servers": {
            "site": {
                "host": "{host}",
                "protocol": "wss",
                "description": "A Django site. A client that is no browser leaves out `Origin`, and then its session "
                "cookie counts for nothing.",
                "variables": {"host": {"default": "example.com"}},
            }
        },
        "channels": {
            CHANNEL: {
                "address": "/ws/notifications/",
                "title": "The socket",
                "description": f"{OPENING}\n\n{LIMITS}",
                "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in messages},
                "bindings": {"ws": {"method": "GET", "query": _query(schemas), "bindingVersion": "0.1.0"}},
                "x-close-codes": {
                    str(code.value): {"meaning": code.meaning, "retry": code.retry} for code in sorted(CloseCode)
                },
            }
        },
        "operations": _operations(),
        "components": {"messages": messages, "schemas": schemas},
    }


def _query(schemas: dict[str, Schema]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {"since": schemas[frames.Auth.__name__]["properties"]["since"]},
        "description": "Only for a socket with a session; others say `since` in their `auth` frame.",
    }


def _messages() -> dict[str, Any]:
    described = {
        each.__name__: {"name": tag_of(each), "summary": text_of(each).partition("\n")[0], **_payload(each.__name__)}
        for each in (*CLIENT_FRAMES, *SERVER_FRAMES, *TYPED_MESSAGES)
    }
    return described | {MESSAGE: {"summary": "Any other message.", **_payload(MESSAGE)}}


def _payload(name: str) -> dict[str, Any]:
    return {"title": name, "payload": {"$ref": REF.format(name=name)}}


def _operations() -> dict[str, Any]:
    return {
        "authenticate": _receive(
            "Who a client is.", [frames.Auth, frames.Guest], [frames.AuthSuccess, frames.AuthError]
        ),
        "subscribe": _receive(
            "Begin to receive a topic.",
            [frames.Subscribe, frames.SubscribeUpload],
            [frames.Subscribed, frames.Error],
        ),
        "unsubscribe": _receive(
            "Receive a topic no longer.",
            [frames.Unsubscribe, frames.UnsubscribeUpload],
            [frames.Unsubscribed, frames.Error],
        ),
        "ping": _receive("Ask whether the server is there.", [frames.Ping], [frames.ServerPong]),
        "heartbeat": _send(
            "Ask whether the client is there and has read what it was sent.", [frames.ServerPing], [frames.Pong]
        ),
        "greet": _send("Tell a socket with a session whose it is.", [frames.AuthSuccess]),
        "tellLoss": _send("Tell unasked, with `recovered` false, that messages are missing.", [frames.Subscribed]),
        "refuse": _send("Refuse a frame, or a socket, which is closed then.", [frames.Error, frames.AuthError]),
        "end": _send("End an answer over HTTP that ends for a reason, with the code of a close.", [frames.Close]),
        "deliver": _send("What was published.", TYPED_MESSAGES)
        | {"messages": _refs([*_names(TYPED_MESSAGES), MESSAGE])},
    }


def _receive(summary: str, asked: Iterable[type[Struct]], answers: Iterable[type[Struct]]) -> dict[str, Any]:
    return _operation("receive", summary, asked, answers)


def _send(summary: str, said: Iterable[type[Struct]], answers: Iterable[type[Struct]] = ()) -> dict[str, Any]:
    return _operation("send", summary, said, answers)


def _operation(
    action: str, summary: str, structs: Iterable[type[Struct]], answers: Iterable[type[Struct]]
) -> dict[str, Any]:
    channel = {"$ref": f"#/channels/{CHANNEL}"}
    operation = {"action": action, "summary": summary, "channel": channel, "messages": _refs(_names(structs))}
    if answers:
        operation["reply"] = {"channel": channel, "messages": _refs(_names(answers))}
    return operation


def _names(structs: Iterable[type[Struct]]) -> list[str]:
    return [each.__name__ for each in structs]


def _refs(names: Iterable[str]) -> list[dict[str, str]]:
    return [{"$ref": f"#/channels/{CHANNEL}/messages/{name}"} for name in names]
