"""The inlet: what waits in it, what was refused, and whether the account may empty it."""

from __future__ import annotations

import secrets
from typing import Any, Final, NamedTuple

import redis

from ..aio import Timeout
from ..broker.clients import FAILURES, SOCKET_TIMEOUT
from ..conf import settings
from ..history.inlet import INLET, REFUSED
from ..topics import internal_name
from .findings import ACCOUNT, Finding, Level, explain, missing_right

LATE: Final = 10.0
"""Seconds that no entry waits while a listener is in charge, nor while another takes over."""
NEARLY_FULL: Final = 0.9

_OLDEST: Final = """
local entry = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
local now = redis.call('TIME')
return entry and math.max(0, now[1] - string.match(entry[1], '^%d+') / 1000)
"""
"""Of the oldest entry only its age in seconds, or nil: its fields may be large."""


class _Seen(NamedTuple):
    """What was found in the inlet of one shard."""

    amount: int
    age: int
    refused: int
    reason: str


async def examine_inlet(client: Any) -> list[Finding]:
    """Look at both streams of every shard, and try the commands that only inlets need."""
    try:
        async with Timeout(SOCKET_TIMEOUT):
            ages = [await client.eval(_OLDEST, 1, internal_name(INLET, shard)) for shard in range(settings.SHARDS)]
            if missing := await _missing(client):
                return [_may_not(missing, Level.ERROR if any(age is not None for age in ages) else Level.WARNING)]
            seen = [await _look(client, shard, age or 0) for shard, age in enumerate(ages)]
    except redis.ResponseError as error:
        text, hint = explain(error)
        if "WRONGTYPE" in text:
            names = " or ".join(internal_name(name, 0) for name in (INLET, REFUSED))
            others = " of any shard" if settings.SHARDS > 1 else ""
            hint = f"DEL {names}{others}: no other program may use these keys."
        return [Finding("inlet", Level.ERROR, f"the inlet cannot be read: {text}", hint)]
    except FAILURES as error:
        return [Finding("inlet", Level.ERROR, *explain(error))]
    return [*_judge(seen), *await _forgotten(client)]


async def _look(client: Any, shard: int, age: int) -> _Seen:
    amount = await client.xlen(internal_name(INLET, shard))
    refused = await client.xlen(internal_name(REFUSED, shard))
    latest = await client.xrevrange(internal_name(REFUSED, shard), count=1) if refused else []
    [(_, fields)] = latest or [(b"", {})]
    return _Seen(amount, age, refused, fields.get(b"reason", b"?").decode(errors="replace"))


def _judge(seen: list[_Seen]) -> list[Finding]:
    found = []
    amount, age, refused = sum(each.amount for each in seen), max(each.age for each in seen), _most_refused(seen)
    waits = f"{amount} entries wait in the inlet, the oldest for {age} s"
    if max(each.amount for each in seen) > NEARLY_FULL * settings.INLET_SIZE:
        hint = f"Beyond INLET_SIZE, {settings.INLET_SIZE}, the oldest are dropped. Run two listeners, or raise it."
        found.append(Finding("inlet", Level.WARNING, waits, hint))
    elif age > LATE:
        hint = "Is a listener in charge? Its log says why it cannot empty the inlet."
        found.append(Finding("inlet", Level.WARNING, waits, hint))
    if refused is not None:
        total = sum(each.refused for each in seen)
        text = f"{total} entries of the inlet were refused, the latest because of {seen[refused].reason}"
        name = internal_name(REFUSED, refused)
        hint = f"XREVRANGE {name} + - COUNT 10 shows them; DEL it when the program is mended."
        found.append(Finding("inlet", Level.WARNING, text, hint))
    return found or [Finding("inlet", Level.OK, waits if amount else "nothing waits in the inlet")]


def _most_refused(seen: list[_Seen]) -> int | None:
    """Return the shard with the most refused entries, if there are any."""
    shard = max(range(len(seen)), key=lambda number: seen[number].refused)
    return shard if seen[shard].refused else None


async def _forgotten(client: Any) -> list[Finding]:
    """Find entries that a program appends under the name that the inlet has on a site that is not divided."""
    if not settings.is_divided:
        return []
    name = internal_name(INLET)
    try:
        async with Timeout(SOCKET_TIMEOUT):
            amount = await client.xlen(name)
    except FAILURES:
        return []  # the account may not look, or it is something else
    if not amount:
        return []
    text = f"{amount} entries wait in {name}, which nobody reads on a site that is divided into shards"
    hint = f"Let the program append to {internal_name(INLET, 0)}, whatever the topic, and the old entries again."
    return [Finding("inlet", Level.WARNING, text, hint)]


def _may_not(missing: list[str], level: Level) -> Finding:
    text = "the account may not empty the inlet, so what other programs append to it waits"
    return Finding("inlet", level, text, f"ACL SETUSER … {' '.join(missing)}; {ACCOUNT}.")


async def _missing(client: Any) -> list[str]:
    """Try what no other part of the app needs, on a key of the doctor's own; return the rights that are missing."""
    key = internal_name(f"doctor:{secrets.token_hex(4)}:inlet", 0)
    missing = []
    for command in (
        ("XLEN", key),
        ("XREAD", "COUNT", "1", "STREAMS", key, "0"),
        ("XDEL", key, "0-0"),
        ("XTRIM", key, "MAXLEN", "1"),
    ):
        try:
            await client.execute_command(*command)
        except redis.exceptions.NoPermissionError as error:
            missing.append(missing_right(str(error), []))
        except redis.ResponseError:
            continue  # such as a Redis that refuses to write: the command is allowed
    return missing
