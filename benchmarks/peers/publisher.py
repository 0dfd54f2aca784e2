"""
A worker that publishes: reads jobs from standard input, one JSON a line, and does each as its contestant would.

    python -m benchmarks.peers.publisher ours|textbook|socketio
"""

import asyncio
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

Publish = Callable[[str, dict[str, Any]], Awaitable[Any]]

IN_FLIGHT: Final = 50
"""Topics on which it publishes at once, as the workers and views of a busy site do; the Node peer does the same."""


def ours() -> Publish:
    import django

    django.setup()
    from notifications import apublish

    return apublish


def textbook() -> Publish:
    import django

    django.setup()
    from channels.layers import get_channel_layer

    layer = get_channel_layer()
    return lambda topic, message: layer.group_send(
        topic.replace(":", "_"), {"type": "notification", "message": message}
    )


def socketio() -> Publish:
    from socketio import AsyncRedisManager

    manager = AsyncRedisManager(os.environ["REDIS_URL"], write_only=True)
    return lambda topic, message: manager.emit("message", message, room=topic)


async def work(publish: Publish, job: dict[str, Any]) -> None:
    """Publish what a job lists: on ``IN_FLIGHT`` topics at once, on each one message after the other."""
    topics: dict[str, list[int]] = {}
    for topic, seq in job["messages"]:
        topics.setdefault(topic, []).append(seq)

    async def one(topic: str) -> None:
        for seq in topics[topic]:
            at = time.monotonic_ns()
            await publish(topic, {"action": job["action"], "seq": seq, "at": at, "text": job["text"]})

    names = list(topics)
    for begin in range(0, len(names), IN_FLIGHT):
        await asyncio.gather(*(one(topic) for topic in names[begin : begin + IN_FLIGHT]))


def main() -> None:
    publish = {"ours": ours, "textbook": textbook, "socketio": socketio}[sys.argv[1]]()
    with asyncio.Runner() as runner:
        print("ready", flush=True)
        for line in sys.stdin:
            runner.run(work(publish, json.loads(line)))


main()
