"""
Histories in Redis: a stream for each topic, and a script, which is atomic, for each operation.

The files in ``broker/lua/`` describe what each script takes, does and returns.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final

from django.core.signals import setting_changed

from ..address import Sort
from ..broker import clients, pipeline
from ..broker.calls import Calls
from ..broker.script import EVICTS, RUN, STARTED, Script
from ..channel_layer.serializer import lua_encoder
from ..conf import MAX_SHARDS, settings
from ..logs import LogBudget, describe
from ..topics import Topic, internal_name
from .changes import Changes, place_of
from .inlet import (
    INLET,
    MARGIN,
    MAX_BYTES,
    MAX_DROPPED,
    MAX_ENTRIES,
    MAX_KEPT_WORDS,
    MAX_REFUSED,
    NOTE_TTL,
    REFUSED,
    WORD_BYTES,
    Checked,
    Entry,
    Outcome,
    Waiting,
)
from .position import Frame, Page, Position, Where
from .shares import ENDED_TTL, OVER, SHARES_TTL, Report, Standing
from .stamped import STAMPED, Stamped, head, layer_message, meta, tail
from .store import CANCEL_TTL, IDEMPOTENCY_TTL, NOT_HOLDER, PAGE_BYTES, Answer, Outgoing, OvertakenError, Raw, term_key

logger = logging.getLogger(__name__)

READ_TIMEOUT: Final = 3.0
"""Seconds that a read may take; a socket can wait longer than a web request."""

_KEPT_OUT: Final = LogBudget(logger, lines=1, period=60.0)


def _event() -> str:
    """Return the Lua function that writes ``layer_message`` as this app's channel layer would, and a name."""
    variables = {"topic": "topic", "frame": "frame", "run": "run", 1: "epoch", 2: "n", 3: "at"}

    def written(position: Position | None, at: int) -> str:
        message = layer_message(Stamped("p", "topic", position, b"frame", "run", at))
        return f"return {lua_encoder(message, variables)}"

    id_ = Position(1, 2)
    return f"""
-- The channel on which listeners of the same shard hear what was stamped, given the key of its marks.
local function stamped_channel(marks)
  return string.sub(marks, 1, -#'changes' - 1) .. '{STAMPED}'
end
local function event(topic, frame, run, epoch, n, at)
  if at == '0' then
    if epoch then {written(id_, 0)} end
    {written(None, 0)}
  end
  if epoch then {written(id_, 3)} end
  {written(None, 3)}
end
"""


_PUBLISH: Final = Script("stamp", "publish", prelude=_event())
_BATCH: Final = Script("stamp", "batch", prelude=_event())
_INLET: Final = Script("stamp", "entry", "inlet", prelude=_event())
_PASS: Final = Script("stamp", "entry", "pass", prelude=_event())
_WAITING: Final = Script("waiting")
_SHARES: Final = Script("shares")
_CANCEL: Final = Script("cancel")
_LOOK: Final = Script("evicted", "look")
_PAGE: Final = Script("evicted", "page")
_CHANGES: Final = Script("changes")


class RedisStore:
    """
    The ``Store`` of a site.

    The calls for which web requests wait, ``publish`` and ``position``, fail at once when Redis has
    just failed to answer another caller.
    """

    def publish(
        self,
        topic: Topic,
        data: bytes,
        idempotency_key: str | None = None,
        at: int = 0,
        group: str | None = None,
        version: int = 0,
    ) -> str | None:
        keys, arguments = _publishing(topic, data, idempotency_key, at, group, version)
        again = idempotency_key is not None or bool(version)
        with clients.guarding(keys[0]):
            reply = clients.run(_PUBLISH, keys, arguments, again=again)
        return _published(reply)

    async def apublish(
        self,
        topic: Topic,
        data: bytes,
        idempotency_key: str | None = None,
        at: int = 0,
        group: str | None = None,
        version: int = 0,
    ) -> str | None:
        keys, arguments = _publishing(topic, data, idempotency_key, at, group, version)
        again = idempotency_key is not None or bool(version)
        with clients.guarding(keys[0]):
            reply = await pipeline.arun(_PUBLISH, keys, arguments, again=again)
        return _published(reply)

    def publish_many(self, messages: Sequence[Outgoing]) -> list[Answer]:
        calls = _publishing_many(messages)
        try:
            with clients.guarding():
                clients.run_together(calls)
        except clients.FAILURES as error:
            calls.fail(error)
        return _published_many(calls)

    async def apublish_many(self, messages: Sequence[Outgoing]) -> list[Answer]:
        calls = _publishing_many(messages)
        try:
            with clients.guarding():
                await pipeline.arun_together(calls)
        except clients.FAILURES as error:
            calls.fail(error)
        return _published_many(calls)

    async def stamp_batch(
        self, lease: str, token: str, number: int, messages: Sequence[Raw], at: int = 0, shard: int = 0
    ) -> tuple[int, str]:
        # A batch may have been stamped although the call failed, and a full Redis cannot record its
        # number: before calling again, the caller removes what has come back.
        keys = [lease, term_key(lease), _marks(shard)]
        arguments: list[Any] = [RUN, internal_name(STAMPED, shard), token, number, at]
        for topic, rest, group, digest in messages:
            key, _, size, ttl, name, begin, *mark = _fixed(topic)
            keys.append(key)
            arguments += (size, ttl, name, begin, rest, group or "", *mark, digest)
        stamped, refusal, kept_out = await pipeline.arun(_BATCH, keys, arguments)
        if kept_out:
            _warn(kept_out)
        return int(stamped), refusal.decode()

    async def read_inlet(self, lease: str, token: str, shard: int = 0) -> Waiting | None:
        arguments = [token, settings.INLET_SIZE, MAX_DROPPED, MAX_ENTRIES, MAX_BYTES, _entry_limit(), WORD_BYTES]
        dropped, *rest = await pipeline.arun(_WAITING, [lease, internal_name(INLET, shard)], arguments, READ_TIMEOUT)
        if dropped == NOT_HOLDER:
            return None
        amount, age, *found = rest
        entries = [
            Entry(id_.decode(), size, words or None) for id_, size, words in zip(*[iter(found)] * 3, strict=True)
        ]
        return Waiting(entries, amount, age / 1000, dropped)

    async def publish_inlet(self, lease: str, token: str, entries: Sequence[Checked], shard: int = 0) -> Outcome | None:
        passed, held_up = await self._pass_on(entries, shard)
        keys = [lease, internal_name(INLET, shard), internal_name(REFUSED, shard), _marks(shard)]
        arguments: list[Any] = [RUN, settings.PREFIX, IDEMPOTENCY_TTL * 1000, token, MAX_REFUSED]
        arguments += [_entry_limit(), MAX_KEPT_WORDS, WORD_BYTES]
        for entry in passed:  # first, as the script may not come to the end of the others
            arguments += [entry.id, "passed"]
        for entry in entries:
            if entry.topic is None:
                arguments += [entry.id, "refused", entry.refusal]
            elif entry.topic.shard == shard:
                _add_entry(entry, entry.topic, keys, arguments, entry.id, "published")
        published, *rest = await pipeline.arun(_INLET, keys, arguments)
        if published == NOT_HOLDER:
            return None
        refusal, kept_out, *refused = rest
        if kept_out:
            _warn(kept_out)
        if passed:
            await _shorten(passed, shard)
        return Outcome(published, [id_.decode() for id_ in refused], refusal.decode() or held_up)

    async def _pass_on(self, entries: Sequence[Checked], shard: int) -> tuple[list[Checked], str]:
        """Publish the entries whose topics are of other shards; return them, and why some could not be."""
        by_shard: dict[int, list[Checked]] = {}
        for entry in entries:
            if entry.topic is not None and entry.topic.shard != shard:
                by_shard.setdefault(entry.topic.shard, []).append(entry)
        passed, held_up = list[Checked](), ""
        answers = [self._pass_to(other, theirs, shard) for other, theirs in by_shard.items()]
        for theirs, answer in zip(by_shard.values(), await asyncio.gather(*answers), strict=True):
            published, refusal = answer
            passed += theirs[:published]
            held_up = refusal or held_up
        return passed, held_up

    async def _pass_to(self, other: int, entries: list[Checked], shard: int) -> tuple[int, str]:
        """Publish entries in their shard; return how many of them are published, and why the rest is not."""
        keys, arguments = [_marks(other)], [RUN, settings.PREFIX, IDEMPOTENCY_TTL * 1000, NOTE_TTL * 1000]
        for entry in entries:
            assert entry.topic is not None  # noqa: S101  what is refused has no shard
            keys.append(_note_key(entry, shard))
            _add_entry(entry, entry.topic, keys, arguments)
        try:
            published, refusal, kept_out = await pipeline.arun(_PASS, keys, arguments, again=True)
        except clients.FAILURES as error:  # if they are published all the same, the notes say so next time
            return 0, describe(error)
        if kept_out:
            _warn(kept_out)
        return published, refusal.decode()

    async def look(self, topics: Sequence[Topic]) -> list[Where]:
        if not topics:
            return []
        if settings.address.sort is not Sort.CLUSTER:
            return await self._look(topics)
        by_shard: dict[int, list[Topic]] = {}
        for topic in topics:
            by_shard.setdefault(topic.shard, []).append(topic)
        answers = await asyncio.gather(*map(self._look, by_shard.values()))
        found = {
            topic: where
            for asked, answer in zip(by_shard.values(), answers, strict=True)
            for topic, where in zip(asked, answer, strict=True)
        }
        return [found[topic] for topic in topics]

    async def _look(self, topics: Sequence[Topic]) -> list[Where]:
        """Look at topics whose keys a single script may have."""
        return _where(await pipeline.arun(_LOOK, *_looking(topics), READ_TIMEOUT, again=True))

    async def changes(self, shard: int = 0) -> Changes:
        run, marks = await pipeline.arun(_CHANGES, [_marks(shard)], [RUN], READ_TIMEOUT, again=True)
        return Changes(run.decode(), b"" if marks is None else marks or None)

    async def read(self, topic: Topic, after: Position | None) -> Page:
        arguments = ["" if after is None else str(after), PAGE_BYTES, RUN, EVICTS]
        keys = [topic.history_key, _evictions(topic.shard)]
        reply = await pipeline.arun(_PAGE, keys, arguments, READ_TIMEOUT, again=True)
        frames = [Frame(Position.parse(reply[at].decode()), reply[at + 1].decode()) for at in range(6, len(reply), 2)]
        run, now, first, last, whole, ttl = reply[:6]
        return Page(run.decode(), int(now), _position(first), _position(last), bool(whole), frames, int(ttl) / 1000)

    def position(self, topic: Topic) -> Position:
        with clients.guarding(topic.history_key):
            [where] = _where(clients.run(_LOOK, *_looking([topic]), again=True))
        return where.position

    async def aposition(self, topic: Topic) -> Position:
        with clients.guarding(topic.history_key):
            [where] = _where(await pipeline.arun(_LOOK, *_looking([topic]), again=True))
        return where.position

    async def server(self, shard: int = 0) -> str:
        reply = await pipeline.arun(_LOOK, [_evictions(shard)], [RUN, STARTED, EVICTS], READ_TIMEOUT, again=True)
        if not reply[0]:  # it does not say what it has evicted, but which it is
            reply = await pipeline.arun(_CHANGES, [_marks(shard)], [RUN], READ_TIMEOUT, again=True)
        return str(reply[0].decode())

    def revoke_grants(self, user: str, topic: Topic) -> None:
        with clients.guarding(topic.history_key):
            clients.call(*_revoking(user, topic), again=True)

    async def arevoke_grants(self, user: str, topic: Topic) -> None:
        with clients.guarding(topic.history_key):
            await pipeline.acall(*_revoking(user, topic), again=True)

    def grants_revoked_at(self, user: str, topic: Topic) -> float:
        with clients.guarding(topic.history_key):
            return float(clients.call("GET", _revoked_key(user, topic), again=True) or 0)

    async def agrants_revoked_at(self, user: str, topic: Topic) -> float:
        with clients.guarding(topic.history_key):
            return float(await pipeline.acall("GET", _revoked_key(user, topic), again=True) or 0)

    def request_cancel(self, topic: Topic) -> None:
        with clients.guarding(topic.history_key):
            clients.run(_CANCEL, *_cancelling(topic), again=True)

    async def arequest_cancel(self, topic: Topic) -> None:
        with clients.guarding(topic.history_key):
            await pipeline.arun(_CANCEL, *_cancelling(topic), again=True)

    def cancel_requested(self, topic: Topic) -> bool:
        with clients.guarding(topic.history_key):
            return clients.call("GET", _cancel_key(topic), again=True) is not None

    async def acancel_requested(self, topic: Topic) -> bool:
        with clients.guarding(topic.history_key):
            return await pipeline.acall("GET", _cancel_key(topic), again=True) is not None

    def drop_cancel(self, topic: Topic) -> None:
        with clients.guarding(topic.history_key):
            clients.call("DEL", _cancel_key(topic), again=True)

    async def adrop_cancel(self, topic: Topic) -> None:
        with clients.guarding(topic.history_key):
            await pipeline.acall("DEL", _cancel_key(topic), again=True)

    def report_share(self, topic: Topic, report: Report) -> Standing:
        keys, arguments = _reporting(topic, report)
        with clients.guarding(keys[0]):
            return _standing(clients.run(_SHARES, keys, arguments, again=True))

    async def areport_share(self, topic: Topic, report: Report) -> Standing:
        keys, arguments = _reporting(topic, report)
        with clients.guarding(keys[0]):
            return _standing(await pipeline.arun(_SHARES, keys, arguments, again=True))


def _job_key(topic: Topic) -> str:
    return internal_name(f"progress:{topic}", topic.shard)


def _reporting(topic: Topic, report: Report) -> tuple[list[str], list[Any]]:
    """Return the keys and arguments of ``shares.lua``."""
    share = report.share
    arguments = [share.run, share.of, share.key, int(share.needed), report.attempt, report.state, report.done]
    arguments += [report.error, int(report.news), report.seen, report.interval, report.silence]
    ended_ttl = SHARES_TTL if share.run else ENDED_TTL
    return [_job_key(topic), _cancel_key(topic)], [*arguments, SHARES_TTL * 1000, round(ended_ttl * 1000)]


def _standing(reply: list[Any]) -> Standing:
    """Return what ``shares.lua`` answers."""
    fields: list[Any] = [each.decode() if isinstance(each, bytes) else each for each in reply]
    standing = Standing(*fields)
    return standing._replace(cancelled=bool(standing.cancelled), turn=bool(standing.turn))


def _cancel_key(topic: Topic) -> str:
    return internal_name(f"cancel:{topic}", topic.shard)


def _cancelling(topic: Topic) -> tuple[list[str], list[Any]]:
    """Return the keys and arguments of ``cancel.lua``."""
    return [_cancel_key(topic), topic.history_key], [CANCEL_TTL, *OVER]


def _looking(topics: Sequence[Topic]) -> tuple[list[str], list[Any]]:
    """Return the keys and arguments of ``look.lua`` for topics of one server; there is at least one."""
    return [*(topic.history_key for topic in topics), _evictions(topics[0].shard)], [RUN, STARTED, EVICTS]


def _revoked_key(user: str, topic: Topic) -> str:
    return internal_name(f"revoked:{len(user)}:{user}:{topic}", topic.shard)  # the id of a user may have a colon, too


def _revoking(user: str, topic: Topic) -> tuple[Any, ...]:
    return "SET", _revoked_key(user, topic), time.time(), "EX", settings.GRANT_MAX_AGE


def _publishing(
    topic: Topic, data: bytes, idempotency_key: str | None, at: int, group: str | None, version: int
) -> tuple[list[str], list[Any]]:
    """Return the keys and arguments of ``publish.lua``."""
    key, marks, size, ttl, name, begin, *mark = _fixed(topic)
    keys = [key, marks]
    if idempotency_key is not None:
        keys.append(_once_key(topic, idempotency_key))
    arguments = [
        RUN,
        size,
        ttl,
        begin,
        tail(data),
        settings.PREFIX,
        name,
        group or "",
        *mark,
    ]
    if at or version or idempotency_key is not None:
        arguments += [at, IDEMPOTENCY_TTL * 1000]
    if version:
        keys.append(_job_key(topic))
        arguments.append(version)
    return keys, arguments


def _once_key(topic: Topic, idempotency_key: str) -> str:
    name = str(topic)
    return internal_name(f"once:{len(name)}:{name}:{idempotency_key}", topic.shard)


def _note_key(entry: Checked, shard: int) -> str:
    """Return the key of the note that an entry of a shard's inlet was published in its own shard."""
    return internal_name(f"{INLET}:passed:{shard}:{entry.id}", None if entry.topic is None else entry.topic.shard)


async def _shorten(passed: Sequence[Checked], shard: int) -> None:
    """Keep notes of entries that have left the inlet no longer than a call that was delayed may take."""
    calls = [pipeline.acall("PEXPIRE", _note_key(entry, shard), IDEMPOTENCY_TTL * 1000, again=True) for entry in passed]
    for answer in await asyncio.gather(*calls, return_exceptions=True):
        if isinstance(answer, clients.FAILURES):
            logger.debug("a note is kept for longer: %s", describe(answer))
        elif isinstance(answer, BaseException):
            raise answer


def _add_entry(entry: Checked, topic: Topic, keys: list[str], arguments: list[Any], *first: str) -> None:
    """Add an entry to the keys and arguments of a script that has ``entry.lua``."""
    key, _, size, ttl, name, begin, *mark = _fixed(topic)
    once = entry.idempotency_key
    keys += [key] if once is None else [key, _once_key(topic, once)]
    arguments += [*first, int(once is not None), size, ttl, begin, entry.tail, name, entry.group or "", *mark]


def _entry_limit() -> int:
    """Return the bytes of an entry of the inlet above which it is not read."""
    return settings.MAX_MESSAGE_SIZE + MARGIN


def _published(reply: Any) -> str | None:
    """Return the id that ``publish.lua`` answers."""
    if isinstance(reply, list):
        if not reply:
            raise OvertakenError
        reply, refusal = reply
        _warn(refusal)
    return reply.decode() or None


def _publishing_many(messages: Sequence[Outgoing]) -> Calls:
    calls = [_publishing(*message, version=0) for message in messages]
    return Calls(_PUBLISH, calls, again=all(message.idempotency_key is not None for message in messages))


def _published_many(calls: Calls) -> list[Answer]:
    return [answer if isinstance(answer, Exception) else _published(answer) for answer in calls.answers]


def _warn(refusal: bytes) -> None:
    _KEPT_OUT.warning(
        "Redis refuses to publish to the channel layer's groups (%s); a listener forwards instead: see the doctor",
        refusal.decode(),
    )


@lru_cache(maxsize=MAX_SHARDS)
def _marks(shard: int) -> str:
    """Return the key of the marks of a shard's buckets."""
    return internal_name("changes", shard)


@lru_cache(maxsize=MAX_SHARDS)
def _evictions(shard: int) -> str:
    """Return the key of what has been seen of evictions on a shard's server."""
    return internal_name("evictions", shard)


@lru_cache(maxsize=10_000)
def _fixed(topic: Topic) -> tuple[str, str, int, int, str, bytes, int, bytes]:
    """Return what a topic's messages share: keys of history and marks, size, age in ms, name, start of frame, mark."""
    kind, name = settings.kinds[topic.kind], str(topic)
    begin, ttl, place = head if kind.HISTORY_SIZE else meta, kind.HISTORY_TTL * 1000, place_of(name, settings.SHARDS)
    return (
        topic.history_key,
        _marks(topic.shard),
        kind.HISTORY_SIZE,
        ttl,
        name,
        begin(topic.told),
        place.offset,
        place.name,
    )


def _where(reply: list[Any]) -> list[Where]:
    run, started, now, ends = reply[0].decode(), int(reply[1]), int(reply[2]), reply[3:]
    return [
        Where(run, started, now, _position(first), _position(last), int(ttl) / 1000, bool(whole))
        for first, last, ttl, whole in zip(*[iter(ends)] * 4, strict=True)
    ]


def _position(id_: bytes) -> Position | None:
    return Position.parse(id_.decode()) if id_ else None


def _forget(*, setting: str, **_: object) -> None:
    if setting == "NOTIFICATIONS":
        _fixed.cache_clear()
        _marks.cache_clear()
        _evictions.cache_clear()


setting_changed.connect(_forget, dispatch_uid="notifications.history.redis")
