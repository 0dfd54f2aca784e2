"""The Redis server: its kind, its configuration, and whether the account may do what the app needs."""

from __future__ import annotations

import asyncio
import secrets
from contextlib import suppress
from typing import Any, Final

import redis
from channels.layers import get_channel_layer

from ..address import Sort, shown
from ..aio import Timeout
from ..broker.clients import CONNECT_TIMEOUT, FAILURES, SOCKET_TIMEOUT, async_client
from ..broker.connecting import UNNAMED, GroupChannel, agreet_server
from ..broker.wire import site_pool
from ..conf import settings
from ..history.stamped import STAMPED
from ..layers import direct
from ..topics import internal_name
from .cluster import examine_cluster, info_of_primaries
from .findings import ACCOUNT, PRIMARY, Finding, Level, explain, missing_right
from .sentinels import examine_sentinels
from .services import GUIDE, policy_hint

FIRST_VERSION: Final = (6, 2)
"""The first version that can read a stream exclusively after an id."""
SLOW: Final = 0.05
"""Seconds per answer above which Redis is far away or busy."""
NEARLY_FULL: Final = 0.9
CONNECTIONS: Final = 3
"""Connections that are compared to see whether one server answers them all."""
PUBSUB_HARD: Final = 32 * 1024 * 1024
"""Bytes that Redis buffers for a slow subscriber by default; with less, a burst disconnects listeners and layers."""


async def _info(client: Any) -> dict[str, Any]:
    """Return what the server says of itself: nothing if it is of a service without ``INFO``."""
    try:
        return dict(await client.info())
    except redis.exceptions.NoPermissionError:
        raise
    except redis.ResponseError:
        return {}


async def examine_redis() -> list[Finding]:
    """Connect and examine the server; after an error it makes no sense to go on."""
    address = shown(settings.REDIS_URL)
    of_sentinels = await examine_sentinels()
    try:
        async with Timeout(CONNECT_TIMEOUT + SOCKET_TIMEOUT):
            client = await async_client()
            infos = await info_of_primaries(client) if _is_cluster() else {"": await _info(client)}
    except FAILURES as error:
        text, hint = explain(error)
        check = "rights" if isinstance(error, redis.exceptions.NoPermissionError) else "redis"
        return [*of_sentinels, Finding(check, Level.ERROR, f"{address}: {text}", hint)]
    found = []
    for node, info in infos.items():
        own = (_kind(info), _version(info), _role(info), *_memory(info), _clients(info)) if info or not node else ()
        found += [each._replace(text=f"{node}: {each.text}" if node else each.text) for each in own if each is not None]
    found += [each for each in (await _buffer(client), await _distance(client)) if each is not None]
    found += await _identity()
    if _is_cluster():
        found += await examine_cluster(client, infos)
    if not any(finding.level is Level.ERROR for finding in found):
        info = next(iter(infos.values()))
        name = info.get("server_name", "redis")
        version = info.get(f"{name}_version", info.get("redis_version", "of a version that it does not tell"))
        what = f", a cluster of {len(infos)} primaries" if _is_cluster() else ""
        found.append(Finding("redis", Level.OK, f"{name} {version} at {address}{what}"))
        found += await _rights(client)
    return [*of_sentinels, *found]


def _is_cluster() -> bool:
    return settings.address.sort is Sort.CLUSTER


def _kind(info: dict[str, Any]) -> Finding | None:
    if _is_cluster() or not info.get("cluster_enabled"):
        return None
    return Finding(
        "redis",
        Level.ERROR,
        "this is a node of a Redis Cluster, which has the keys of some topics only",
        "Write redis+cluster:// and some of its nodes in REDIS_URL.",
    )


def _version(info: dict[str, Any]) -> Finding | None:
    version = str(info.get("redis_version", ""))
    if not version or tuple(int(part) for part in version.split(".")[:2] if part.isdigit()) >= FIRST_VERSION:
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
        when = "when it is full" if limit else "as soon as there is a maxmemory and it is full"
        already = f"; it has evicted {count} keys since it started" if (count := info.get("evicted_keys", 0)) else ""
        text = f"maxmemory-policy is {policy}: {when}, Redis throws away {_evicted(policy)}{already}"
        found.append(Finding("redis", Level.WARNING, text, policy_hint()))
    if limit and used > NEARLY_FULL * limit:
        share = f"{100 * used / limit:.0f} % of maxmemory are in use"
        found.append(Finding("redis", Level.WARNING, share, "Raise maxmemory, or lower HISTORY_SIZE and HISTORY_TTL."))
    if info.get("rdb_last_bgsave_status", "ok") != "ok":
        text = "the last snapshot failed; with stop-writes-on-bgsave-error Redis refuses writes"
        found.append(Finding("redis", Level.WARNING, text, "Look at its log and its disk, or set save ''."))
    return found


def _evicted(policy: str) -> str:
    """Say what a policy may evict, and what comes of it."""
    lost = (
        "histories (browsers are told that something is missing), idempotency keys (a repeated publish goes out "
        "again) and revocations of grants (which count again)"
    )
    return f"entries of the inlet (which are lost), {lost}" if policy.startswith("allkeys") else lost


def _clients(info: dict[str, Any]) -> Finding | None:
    connected, most = info.get("connected_clients", 0), info.get("maxclients", 0)
    if not most or connected <= NEARLY_FULL * most:
        return None
    return Finding("redis", Level.WARNING, f"{connected} of {most} connections are in use", "Raise maxclients.")


async def _buffer(client: Any) -> Finding | None:
    try:
        async with Timeout(SOCKET_TIMEOUT):
            words = (await client.config_get("client-output-buffer-limit"))["client-output-buffer-limit"].split()
        hard = int(words[words.index("pubsub") + 1])
    except redis.exceptions.NoPermissionError:
        return None  # the account of a site needs no such right
    except (redis.ResponseError, KeyError, ValueError):
        text = "the server does not tell its client-output-buffer-limit, so that was not looked at"
        return Finding("redis", Level.SKIPPED, text, f"Nothing to do on a managed service: {GUIDE}.")
    except FAILURES:
        return None
    if not 0 < hard < PUBSUB_HARD:
        return None
    return Finding(
        "redis",
        Level.WARNING,
        f"Redis cuts a subscriber off at {hard} bytes: a burst ends the connections of listeners and channel layers",
        'CONFIG SET client-output-buffer-limit "pubsub 32mb 8mb 60", its default.',
    )


async def _identity() -> list[Finding]:
    """Connect a few times, and compare what the server calls itself, by which it is known whether it was replaced."""
    if settings.address.sort is Sort.CLUSTER:
        return []  # each node has its own
    pool, runs = site_pool(redis_connect_func=agreet_server), set()
    for _ in range(CONNECTIONS):
        connection: Any = pool.make_connection()  # type: ignore[no-untyped-call]  # it has no types
        try:
            async with Timeout(CONNECT_TIMEOUT + SOCKET_TIMEOUT):
                await connection.connect()
            runs.add(connection.server.run)
        except FAILURES as error:
            return [Finding("redis", Level.ERROR, *explain(error))]
        finally:
            await connection.disconnect(nowait=True)
    if runs == {UNNAMED}:
        text = "the server does not tell its run_id: if another takes over without the latest messages, nobody notices"
        return [
            Finding(
                "redis", Level.WARNING, text, f"Choose a service that confirms no write before it is safe: {GUIDE}."
            )
        ]
    if len(runs) > 1:
        text = "each connection is answered by another server (run_id), so that histories begin anew all the time"
        return [Finding("redis", Level.ERROR, text, f"Give the address of one primary, or redis+cluster://…: {GUIDE}.")]
    return []


async def _distance(client: Any) -> Finding | None:
    loop, best = asyncio.get_running_loop(), SOCKET_TIMEOUT
    for _ in range(5):
        began = loop.time()
        try:
            async with Timeout(SOCKET_TIMEOUT):
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
    hash_, stream, text = (internal_name(f"doctor:{tag}:{kind}", 0) for kind in ("hash", "stream", "text"))
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
        ("PUBLISH", internal_name(STAMPED, 0), b"m" + tag.encode()),  # listeners ignore an unknown type
        ("DEL", hash_, stream, text),
    ]
    if (group := _group_channel(f"doctor.{tag}")) is not None:
        commands.append(("SPUBLISH" if isinstance(group, GroupChannel) else "PUBLISH", group, b""))
    refused = []
    for command in commands:
        try:
            async with Timeout(SOCKET_TIMEOUT):
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
