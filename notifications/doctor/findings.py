"""The findings of the doctor."""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import StrEnum
from typing import Final, NamedTuple

import redis

from ..broker.clients import SOCKET_TIMEOUT
from ..logs import describe
from ..topics import internal_name

ROAD: Final = {
    "settings": "",
    "redis": "",
    "rights": "",
    "layer": "the channel layer",
    "publish": "publisher → Redis",
    "listeners": "",
    "listener": "Redis → listener",
    "forward": "listener → channel layer",
    "socket": "channel layer → socket",
    "stream": "channel layer → HTTP stream",
    "server": "the running site",
}
"""The checks that a message depends on, in order, and the hop that each stands for."""


class Level(StrEnum):
    OK = "ok"
    WARNING = "warning"
    """It works, but messages may be lost one day."""
    ERROR = "error"
    """Messages do not arrive, or not as promised."""
    SKIPPED = "skipped"


class Finding(NamedTuple):
    """
    One result of one check.

    Attributes:
        check: The name of the check.
        text: What was found; never contains a secret.
        hint: What to do.

    """

    check: str
    level: Level
    text: str
    hint: str = ""


def broken(found: list[Finding]) -> str | None:
    """Return the first check on the path of a message that found an error, or None."""
    errors = {finding.check for finding in found if finding.level is Level.ERROR}
    return next((check for check in ROAD if check in errors), None)


ACCOUNT: Final = 'docs/operations.md, "Redis accounts", has the line for the site\'s account'
_CLUSTER: Final = "It is a node of a Redis Cluster: write redis+cluster:// and some of its nodes in REDIS_URL."
_DOWN: Final = "The cluster has lost a primary without a replica: CLUSTER NODES; cluster-require-full-coverage no."
PRIMARY: Final = (
    "Give the address of the primary, one that follows it, or that of its Sentinels: redis+sentinel://…/mymaster."
)
_FULL: Final = "Redis is full: raise maxmemory, or make room; maxmemory-policy stays noeviction."
_REFUSALS: Final = {
    "OOM": _FULL,
    "used memory >": _FULL,  # redis-py cuts off the first word
    "MISCONF": "Redis cannot save and refuses writes: look at its log, its disk and rdb_last_bgsave_status.",
    "READONLY": PRIMARY,
    "read only replica": PRIMARY,
    "knows no service": "Look at the name behind the hosts in REDIS_URL; SENTINEL MASTERS lists those that exist.",
    "Authentication required": "REDIS_URL needs a password; that of Sentinels is its option sentinel_password.",
    "is a replica: no primary": "A failover is not finished, or the Sentinels name the wrong server; ask again.",
    "maxclients)": "Raise maxclients, or look at who holds connections: CLIENT LIST.",
    "LOADING": "Redis is loading its data; wait, and ask again.",
    "CLUSTERDOWN": _DOWN,
    "CROSSSLOT": _CLUSTER,
    "MOVED": _CLUSTER,
}


def missing_right(refusal: str, channels: Iterable[str]) -> str:
    """
    Return the right that an account lacks, in the syntax of ``ACL SETUSER``.

    Args:
        refusal: The error from Redis.
        channels: The channels that were requested, because Redis only names commands.

    """
    if command := re.search(r"run the '([^' ]+)'", refusal):
        return f"+{command[1]}"
    if "channel" in refusal:
        return " ".join(f"&{channel}" for channel in channels)
    return f"~{internal_name('*')}"


def explain(error: BaseException | str) -> tuple[str, str]:
    """Return what an error from Redis means, and what to do."""
    text = describe(error)
    if isinstance(error, redis.AuthenticationError):
        return f"Redis refuses the account: {text}", "Look at the user and the password in REDIS_URL."
    if "NOPERM" in text or "no permissions" in text.lower():
        command = re.search(r"run the '([^' ]+)'", text)
        what = f"ACL SETUSER … +{command[1]}; " if command else ""
        return f"Redis refuses: {text}", f"{what}{ACCOUNT}."
    for sign, hint in _REFUSALS.items():
        if sign in text:
            return f"Redis refuses: {text}", hint
    if isinstance(error, TimeoutError | redis.TimeoutError):
        return (
            f"Redis does not answer within {SOCKET_TIMEOUT:g} s",
            "Does it hang, or does a firewall swallow packets? redis-cli --latency, SLOWLOG GET.",
        )
    return text, "Is Redis running, and is this its address?"
