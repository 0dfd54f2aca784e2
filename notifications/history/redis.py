"""
Histories in Redis: a stream for each topic, and a script, which is atomic, for each operation.

The files in ``broker/lua/`` describe what each script takes, does and returns.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final

from django.core.signals import setting_changed

from ..broker import clients, pipeline
from ..broker.script import RUN, STARTED, Script
from ..channel_layer.serializer import lua_encoder
from ..conf import settings
from ..logs import LogBudget
from ..topics import Topic, internal_name
from .changes import Changes, place_of
from .position import Frame, Page, Position, Where
from .shares import ENDED_TTL, OVER, SHARES_TTL, Report, Standing
from .stamped import STAMPED, Stamped, head, layer_message, meta, tail
from .store import CANCEL_TTL, IDEMPOTENCY_TTL, PAGE_BYTES, OvertakenError, Raw, term_key

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
local STAMPED = 'notifications:{STAMPED}'  -- behind PREFIX
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
_SHARES: Final = Script("shares")
_CANCEL: Final = Script("cancel")
_LOOK: Final = Script("look")
_PAGE: Final = Script("page")
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
        with clients.breaker.guarding():
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
        with clients.breaker.guarding():
            reply = await pipeline.arun(_PUBLISH, keys, arguments, again=again)
        return _published(reply)

    async def stamp_batch(
        self, lease: str, token: str, number: int, messages: Sequence[Raw], at: int = 0
    ) -> tuple[int, str]:
        # A batch may have been stamped although the call failed, and a full Redis cannot record its
        # number: before calling again, the caller removes what has come back.
        keys = [lease, term_key(lease), _marks()]
        arguments: list[Any] = [RUN, internal_name(STAMPED), token, number, at]
        for topic, rest, group in messages:
            key, size, ttl, name, begin, *mark = _fixed(topic)
            keys.append(key)
            arguments += (size, ttl, name, begin, rest, group or "", *mark)
        stamped, refusal, kept_out = await pipeline.arun(_BATCH, keys, arguments)
        if kept_out:
            _warn(kept_out)
        return int(stamped), refusal.decode()

    async def look(self, topics: Sequence[Topic]) -> list[Where]:
        keys = [topic.history_key for topic in topics]
        return _where(await pipeline.arun(_LOOK, keys, [RUN, STARTED], READ_TIMEOUT, again=True))

    async def changes(self) -> Changes:
        run, marks = await pipeline.arun(_CHANGES, [_marks()], [RUN], READ_TIMEOUT, again=True)
        return Changes(run.decode(), b"" if marks is None else marks or None)

    async def read(self, topic: Topic, after: Position | None) -> Page:
        arguments = ["" if after is None else str(after), PAGE_BYTES, RUN]
        reply = await pipeline.arun(_PAGE, [topic.history_key], arguments, READ_TIMEOUT, again=True)
        frames = [Frame(Position.parse(reply[at].decode()), reply[at + 1].decode()) for at in range(6, len(reply), 2)]
        run, now, first, last, whole, ttl = reply[:6]
        return Page(run.decode(), int(now), _position(first), _position(last), bool(whole), frames, int(ttl) / 1000)

    def position(self, topic: Topic) -> Position:
        with clients.breaker.guarding():
            [where] = _where(clients.run(_LOOK, [topic.history_key], [RUN, STARTED], again=True))
        return where.position

    async def aposition(self, topic: Topic) -> Position:
        with clients.breaker.guarding():
            [where] = _where(await pipeline.arun(_LOOK, [topic.history_key], [RUN, STARTED], again=True))
        return where.position

    async def server(self) -> str:
        reply = await pipeline.arun(_LOOK, [], [RUN, STARTED], READ_TIMEOUT, again=True)
        return str(reply[0].decode())

    def revoke_grants(self, user: str, topic: Topic) -> None:
        with clients.breaker.guarding():
            clients.call(*_revoking(user, topic), again=True)

    async def arevoke_grants(self, user: str, topic: Topic) -> None:
        with clients.breaker.guarding():
            await pipeline.acall(*_revoking(user, topic), again=True)

    def grants_revoked_at(self, user: str, topic: Topic) -> float:
        with clients.breaker.guarding():
            return float(clients.call("GET", _revoked_key(user, topic), again=True) or 0)

    async def agrants_revoked_at(self, user: str, topic: Topic) -> float:
        with clients.breaker.guarding():
            return float(await pipeline.acall("GET", _revoked_key(user, topic), again=True) or 0)

    def request_cancel(self, topic: Topic) -> None:
        with clients.breaker.guarding():
            clients.run(_CANCEL, *_cancelling(topic), again=True)

    async def arequest_cancel(self, topic: Topic) -> None:
        with clients.breaker.guarding():
            await pipeline.arun(_CANCEL, *_cancelling(topic), again=True)

    def cancel_requested(self, topic: Topic) -> bool:
        with clients.breaker.guarding():
            return clients.call("GET", _cancel_key(topic), again=True) is not None

    async def acancel_requested(self, topic: Topic) -> bool:
        with clients.breaker.guarding():
            return await pipeline.acall("GET", _cancel_key(topic), again=True) is not None

    def drop_cancel(self, topic: Topic) -> None:
        with clients.breaker.guarding():
            clients.call("DEL", _cancel_key(topic), again=True)

    async def adrop_cancel(self, topic: Topic) -> None:
        with clients.breaker.guarding():
            await pipeline.acall("DEL", _cancel_key(topic), again=True)

    def report_share(self, topic: Topic, report: Report) -> Standing:
        keys, arguments = _reporting(topic, report)
        with clients.breaker.guarding():
            return _standing(clients.run(_SHARES, keys, arguments, again=True))

    async def areport_share(self, topic: Topic, report: Report) -> Standing:
        keys, arguments = _reporting(topic, report)
        with clients.breaker.guarding():
            return _standing(await pipeline.arun(_SHARES, keys, arguments, again=True))


def _job_key(topic: Topic) -> str:
    return internal_name(f"progress:{topic}")


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
    return internal_name(f"cancel:{topic}")


def _cancelling(topic: Topic) -> tuple[list[str], list[Any]]:
    """Return the keys and arguments of ``cancel.lua``."""
    return [_cancel_key(topic), topic.history_key], [CANCEL_TTL, *OVER]


def _revoked_key(user: str, topic: Topic) -> str:
    return internal_name(f"revoked:{len(user)}:{user}:{topic}")  # the id of a user may have a colon, too


def _revoking(user: str, topic: Topic) -> tuple[Any, ...]:
    return "SET", _revoked_key(user, topic), time.time(), "EX", settings.GRANT_MAX_AGE


def _publishing(
    topic: Topic, data: bytes, idempotency_key: str | None, at: int, group: str | None, version: int
) -> tuple[list[str], list[Any]]:
    """Return the keys and arguments of ``publish.lua``."""
    key, size, ttl, name, begin, *mark = _fixed(topic)
    keys = [key, _marks()]
    if idempotency_key is not None:
        keys.append(internal_name(f"once:{len(name)}:{name}:{idempotency_key}"))
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


def _published(reply: Any) -> str | None:
    """Return the id that ``publish.lua`` answers."""
    if isinstance(reply, list):
        if not reply:
            raise OvertakenError
        reply, refusal = reply
        _warn(refusal)
    return reply.decode() or None


def _warn(refusal: bytes) -> None:
    _KEPT_OUT.warning(
        "Redis refuses to publish to the channel layer's groups (%s); a listener forwards instead: see the doctor",
        refusal.decode(),
    )


def _marks() -> str:
    """Return the key of the marks of all buckets."""
    return internal_name("changes")


@lru_cache(maxsize=10_000)
def _fixed(topic: Topic) -> tuple[str, int, int, str, bytes, int, bytes]:
    """Return what a topic's messages share: key, size, age in ms, name, start of frame, offset and start of mark."""
    kind, name = settings.kinds[topic.kind], str(topic)
    begin, ttl, place = head if kind.HISTORY_SIZE else meta, kind.HISTORY_TTL * 1000, place_of(name)
    return topic.history_key, kind.HISTORY_SIZE, ttl, name, begin(topic.told), place.offset, place.name


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


setting_changed.connect(_forget, dispatch_uid="notifications.history.redis")
