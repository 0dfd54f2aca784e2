"""redis-py's asyncio client, for the nodes of a cluster that ``nodes.py`` knows."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, Final

import redis
import redis.asyncio

from .connecting import FAILURES, SOCKET_TIMEOUT
from .nodes import Nodes, async_options_of
from .routing import Route
from .slots import Node, slot_of

WITHOUT_KEY: Final = frozenset({"ACL", "CLIENT", "CLUSTER", "COMMAND", "CONFIG", "INFO", "PING", "PUBSUB", "TIME"})
"""Commands of which the second word is no key."""
EVALUATES: Final = frozenset({"EVAL", "EVALSHA"})


class NodeClient(redis.asyncio.Redis):
    """
    A client that sends each command to the node that has its key, and those without a key to any node.

    It follows redirections. It has no time-out of its own while it waits for an answer, as on one server.
    """

    def __init__(self, nodes: Nodes, pool: Callable[[dict[str, Any]], redis.asyncio.ConnectionPool]) -> None:
        """
        Prepare a client; nothing connects before the first command.

        Args:
            nodes: The cluster.
            pool: Makes a pool of these options.

        """
        super().__init__(connection_pool=pool(async_options_of(nodes)))
        self._nodes = nodes
        self._make_pool = pool
        self._clients: dict[Node, redis.asyncio.Redis] = {}

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        key = self._key_of(args)
        if key is None:
            return await super().execute_command(*args, **options)  # type: ignore[no-untyped-call]  # it has no types
        route = Route(self._nodes, slot_of(key), again=False, within=SOCKET_TIMEOUT)
        while True:
            is_sent = False
            try:
                await route.alearn()
                client, is_sent = self._client(route.at()), True
                if route.asking:
                    return await _asking(client, *args, **options)
                return await client.execute_command(*args, **options)  # type: ignore[no-untyped-call]  # as above
            except redis.ResponseError as error:
                pause = route.failed(error, sent=False)
            except FAILURES as error:
                pause = route.failed(error, sent=is_sent)
            await asyncio.sleep(pause)

    async def primaries(self) -> dict[Node, redis.asyncio.Redis]:
        """Return a client of each primary, for what each is to be asked; raises the errors of ``Nodes.learn``."""
        await self._nodes.alearn(time.monotonic(), SOCKET_TIMEOUT)
        return {node: self._client(node) for node in self._nodes.slots.primaries}

    async def disconnect(self) -> None:
        """Close all connections."""
        for client in (self, *self._clients.values()):
            await client.connection_pool.disconnect()

    def _client(self, node: Node) -> redis.asyncio.Redis:
        if (client := self._clients.get(node)) is None:
            pool = self._make_pool(async_options_of(self._nodes, node))
            client = self._clients[node] = redis.asyncio.Redis(connection_pool=pool)
        return client

    @staticmethod
    def _key_of(words: tuple[Any, ...]) -> Any:
        name = str(words[0]).upper().partition(" ")[0]
        if name in EVALUATES and words[2] and int(words[2]):
            return words[3]
        return None if name in WITHOUT_KEY | EVALUATES or len(words) < 2 else words[1]


async def _asking(client: redis.asyncio.Redis, *args: Any, **options: Any) -> Any:
    """Run a command on a node that is taking over its slot."""
    pool = client.connection_pool
    connection: Any = await pool.get_connection()  # type: ignore[no-untyped-call]  # as above
    try:
        await connection.send_command("ASKING")
        await connection.read_response()
        await connection.send_command(*args)
        return await client.parse_response(connection, args[0], **options)
    except redis.ResponseError:
        raise
    except BaseException:
        await connection.disconnect(nowait=True)
        raise
    finally:
        await pool.release(connection)
