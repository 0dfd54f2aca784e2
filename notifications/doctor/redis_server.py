"""The Redis server: its kind, its configuration, and whether the account may do what the app needs."""

from __future__ import annotations

import asyncio
import secrets
from contextlib import suppress
from typing import Any, Final

import redis
from channels.layers import get_channel_layer

from ..address import shown
from ..broker.clients import CONNECT_TIMEOUT, FAILURES, SOCKET_TIMEOUT, async_client
from ..conf import settings
from ..history.stamped import STAMPED
from ..layers import direct
from ..topics import internal_name
from .findings import ACCOUNT, PRIMARY, Finding, Level, explain, missing_right

FIRST_VERSION: Final = (6, 2)
"""The first version that can read a stream exclusively after an id."""
SLOW: Final = 0.05
"""Seconds per answer above which Redis is far away or busy."""
NEARLY_FULL: Final = 0.9
PUBSUB_HARD: Final = 32 * 1024 * 1024
"""Bytes that Redis buffers for a slow subscriber by default; with less, a burst disconnects listeners and layers."""


async def examine_redis() -> list[Finding]:
    """Connect and examine the server; after an error it makes no sense to go on."""
    address = shown(settings.REDIS_URL)
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT + SOCKET_TIMEOUT):
            client = await async_client()
            info = await client.info()
    except FAILURES as error:
        text, hint = explain(error)
        check = "rights" if isinstance(error, redis.exceptions.NoPermissionError) else "redis"
        return [Finding(check, Level.ERROR, f"{address}: {text}", hint)]
    found = [finding for finding in (_kind(info), _version(info), _role(info), *_memory(info)) if finding is not None]
    found += [each for each in (_clients(info), await _buffer(client), await _distance(client)) if each is not None]
    if not any(finding.level is Level.ERROR for finding in found):
        name = info.get("server_name", "redis")
        version = info.get(f"{name}_version", info.get("redis_version"))
        found.append(Finding("redis", Level.OK, f"{name} {version} at {address}"))
        found += await _rights(client)
    return found


def _kind(info: dict[str, Any]) -> Finding | None:
    if not info.get("cluster_enabled"):
        return None
    return Finding(
        "redis",
        Level.ERROR,
        "this is a Redis Cluster, which cannot be used: the scripts need keys of several slots",
        "Take one server, with cluster-enabled no.",
    )


def _version(info: dict[str, Any]) -> Finding | None:
    version = str(info.get("redis_version", "0"))
    if tuple(int(part) for part in version.split(".")[:2] if part.isdigit()) >= FIRST_VERSION:
        return None
    return Finding("redis", Level.ERROR, f"Redis {version} is too old", "Take 6.2 or newer, or Valkey.")


def _role(info: dict[str, Any]) -> Finding | None:
    if info.get("role", "master") == "master":
        return None
    return Finding("redis", Level.ERROR, "this Redis is a replica and takes no writes", PRIMARY)


def _memory(info: dict[str, Any]) -> list[Finding]:
    limit, used, policy = info.get("maxmemory", 0), info.get("used_memory", 0), info.get("maxmemory_policy", "")
    found = []
    if policy and policy != "noeviction":
        when = "" if limit else ", as soon as there is a maxmemory"
        found.append(
            Finding(
                "redis",
                Level.WARNING,
                f"maxmemory-policy is {policy}: Redis throws histories away{when}, and says nothing",
                "CONFIG SET maxmemory-policy noeviction, and in its configuration file.",
            )
        )
    if limit and used > NEARLY_FULL * limit:
        share = f"{100 * used / limit:.0f} % of maxmemory are in use"
        found.append(Finding("redis", Level.WARNING, share, "Raise maxmemory, or lower HISTORY_SIZE and HISTORY_TTL."))
    if info.get("rdb_last_bgsave_status", "ok") != "ok":
        text = "the last snapshot failed; with stop-writes-on-bgsave-error Redis refuses writes"
        found.append(Finding("redis", Level.WARNING, text, "Look at its log and its disk, or set save ''."))
    return found


def _clients(info: dict[str, Any]) -> Finding | None:
    connected, most = info.get("connected_clients", 0), info.get("maxclients", 0)
    if not most or connected <= NEARLY_FULL * most:
        return None
    return Finding("redis", Level.WARNING, f"{connected} of {most} connections are in use", "Raise maxclients.")


async def _buffer(client: Any) -> Finding | None:
    try:
        async with asyncio.timeout(SOCKET_TIMEOUT):
            words = (await client.config_get("client-output-buffer-limit"))["client-output-buffer-limit"].split()
        hard = int(words[words.index("pubsub") + 1])
    except (*FAILURES, KeyError, ValueError):  # hosted servers and restricted accounts may not allow it
        return None
    if not 0 < hard < PUBSUB_HARD:
        return None
    return Finding(
        "redis",
        Level.WARNING,
        f"Redis cuts a subscriber off at {hard} bytes: a burst ends the connections of listeners and channel layers",
        'CONFIG SET client-output-buffer-limit "pubsub 32mb 8mb 60", its default.',
    )


async def _distance(client: Any) -> Finding | None:
    loop, best = asyncio.get_running_loop(), SOCKET_TIMEOUT
    for _ in range(5):
        began = loop.time()
        try:
            async with asyncio.timeout(SOCKET_TIMEOUT):
                await client.time()
        except FAILURES:
            continue
        best = min(best, loop.time() - began)
    if best < SLOW:
        return None
    text = f"an answer of Redis takes {best * 1000:.0f} ms at best"
    return Finding("redis", Level.WARNING, text, "Is it busy (SLOWLOG GET), or in another data centre?")


def _group_channel(name: str) -> str | None:
    """Return the Redis channel of a group, if scripts publish to groups."""
    with suppress(Exception):  # the check of the layer says why there is none
        return direct(get_channel_layer(), name)
    return None


async def _rights(client: Any) -> list[Finding]:
    """Try every command that the app uses, on the doctor's own keys; other failures show when the message is sent."""
    tag = secrets.token_hex(4)
    hash_, stream, text = (internal_name(f"doctor:{tag}:{kind}") for kind in ("hash", "stream", "text"))
    commands: list[tuple[str | bytes, ...]] = [
        ("PING",),
        ("TIME",),
        ("HSET", hash_, "a", "b"),
        ("HGET", hash_, "a"),
        ("HGETALL", hash_),
        ("HDEL", hash_, "b"),
        ("EXPIRE", hash_, "60"),
        ("XADD", stream, "1-1", "a", "b"),
        ("XRANGE", stream, "-", "+"),
        ("XREVRANGE", stream, "+", "-"),
        ("PEXPIRE", stream, "60000"),
        ("PTTL", stream),
        ("SET", text, "a", "PX", "60000"),
        ("GET", text),
        ("SETRANGE", text, "0", "a"),
        ("EVAL", "return 1", "0"),
        ("EVALSHA", "0" * 40, "0"),
        ("PUBLISH", internal_name(STAMPED), b"m" + tag.encode()),  # listeners ignore an unknown type
        ("DEL", hash_, stream, text),
    ]
    if (group := _group_channel(f"doctor.{tag}")) is not None:
        commands.append(("PUBLISH", group, b""))
    refused = []
    for command in commands:
        try:
            async with asyncio.timeout(SOCKET_TIMEOUT):
                await client.execute_command(*command)
        except redis.exceptions.NoPermissionError as error:
            channels = group.partition("/")[0] + "*" if group and command[1] == group else internal_name("*")
            refused.append((f"{str(command[0]).lower()} on {channels}", missing_right(str(error), [channels])))
        except redis.ResponseError:
            continue  # such as a script that does not exist: the command is allowed
        except FAILURES as error:
            return [Finding("redis", Level.ERROR, *explain(error))]
    if not refused:
        return [Finding("rights", Level.OK, f"the account may run all {len(commands)} commands that were tried")]
    rights = " ".join(dict.fromkeys(right for _, right in refused))
    text = f"the account may not run {', '.join(name for name, _ in refused)}"
    return [Finding("rights", Level.ERROR, text, f"ACL SETUSER … {rights}; {ACCOUNT}.")]
