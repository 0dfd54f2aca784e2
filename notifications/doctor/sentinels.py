"""The Sentinels: whether they answer, agree, and could decide a failover."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Mapping
from contextlib import suppress
from typing import Final

from ..address import Sort
from ..broker.primary import service_of
from ..broker.sentinels import Answer, Host
from ..conf import settings
from ..logs import describe
from .findings import Finding, Level

ENOUGH: Final = 3
"""Sentinels of which one may be lost."""
_TO_ITSELF: Final = (
    "Give the Sentinels an address that every host can reach: SENTINEL MONITOR with it, replica-announce-ip on the "
    "servers and sentinel announce-ip on the Sentinels."
)


async def examine_sentinels() -> list[Finding]:
    """Ask each Sentinel of ``REDIS_URL``; if it names none, there is nothing to find."""
    if settings.address.sort is not Sort.SENTINEL:
        return []
    service = service_of(settings.address)
    return judge(service.name, await asyncio.to_thread(service.survey))


def judge(service: str, said: Mapping[Host, Answer | Exception]) -> list[Finding]:
    """Judge what each Sentinel has said, or why it has not."""
    answers = {sentinel: each for sentinel, each in said.items() if not isinstance(each, Exception)}
    found = [
        _warning(
            f"Sentinel {_shown(sentinel)} does not help: {describe(each)}", "Is it running, and is this its address?"
        )
        for sentinel, each in said.items()
        if isinstance(each, Exception)
    ]
    named = {sentinel: (each.primary.host, each.primary.port) for sentinel, each in answers.items()}
    for sentinel, primary in named.items():
        if _is_loopback(primary[0]) and not _is_loopback(sentinel[0]):
            text = f"Sentinel {_shown(sentinel)} names {_shown(primary)}, which leads every host to itself"
            found.append(Finding("redis", Level.ERROR, text, _TO_ITSELF))
    if len(set(named.values())) > 1:
        views = "; ".join(f"{_shown(sentinel)} names {_shown(primary)}" for sentinel, primary in named.items())
        found.append(_warning(f"the Sentinels do not agree: {views}", "A failover may be under way; ask again."))
    for each in answers.values():
        found += [one for one in _of_facts(service, each) if one not in found]
    if answers and not found:
        first = next(iter(answers.values()))
        text = f"{len(answers)} Sentinels agree that {service} is {_shown((first.primary.host, first.primary.port))}"
        if first.facts:
            text += f"; quorum {first.facts.get('quorum')}, {first.facts.get('num-slaves')} replica(s)"
        found.append(Finding("redis", Level.OK, text))
    return found


def _of_facts(service: str, answer: Answer) -> list[Finding]:
    """Judge what one Sentinel knows of the group, if its account may read that."""
    if not (facts := answer.facts):
        return []
    found = []
    flags = facts.get("flags", "master")
    if flags != "master":
        found.append(_warning(f"the Sentinels say of {service}: {flags}", "A failover may be under way; ask again."))
    known, quorum = int(facts.get("num-other-sentinels", 0)) + 1, int(facts.get("quorum", 1))
    if known < ENOUGH:
        text = f"there are {known} Sentinel(s): none of them may be lost, or there is no failover"
        found.append(_warning(text, "Run three, on different hosts."))
    if quorum > known:
        found.append(
            _warning(f"the quorum is {quorum} of {known} Sentinels: no failover", f"Set it to {known // 2 + 1}.")
        )
    if int(facts.get("num-slaves", 1)) == 0:
        found.append(_warning(f"{service} has no replica: there is nothing to fail over to", "Add a replica."))
    return found


def _warning(text: str, hint: str) -> Finding:
    return Finding("redis", Level.WARNING, text, hint)


def _is_loopback(host: str) -> bool:
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def _shown(host: Host) -> str:
    name, port = host
    return f"[{name}]:{port}" if ":" in name else f"{name}:{port}"
