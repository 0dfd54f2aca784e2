"""
The one place that makes names: channels, groups and keys.

A topic is a kind and an id. Its Redis channel is ``<PREFIX><kind>:<id>``, its channel-layer group
``<PREFIX><kind>.<id>`` or, where Channels would not allow that, a hash. On a site with tenants ``<tenant>/<id>`` stands
in place of the id, in all names but those that browsers and the site's own code use: they belong to a tenant already.

Topics are divided into ``SHARDS`` shards. What belongs to one has ``{notifications:<shard>}`` in its name, which in a
cluster keeps it on one node: all keys that a script touches are of one shard.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Final, Self
from uuid import UUID

from . import tenants
from .conf import KIND_PATTERN, settings
from .exceptions import TopicError

MAX_ID_LENGTH: Final = 200
PLAIN_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
"""Ids that stand in a group name as they are. Channels allows these characters and fewer than 100 of
them; 64 leaves room for a prefix (16), a kind (15) and the layer's own additions."""


TopicId = str | int | UUID


@dataclass(frozen=True, slots=True, init=False)
class Topic:
    """
    Where messages are published: a kind and an id, ``user:42`` or ``upload:7f3c``.

    A topic that exists is valid: its kind is configured, its id has passed the kind's ``CLEAN_ID``
    and is 1 to 200 characters of any sort that UTF-8 can hold. Ids may be given as ``str``, ``int``
    or ``UUID``. On a site with tenants it is one of the current tenant.

    As text it is ``kind:id``, or ``kind:tenant/id``.

    Raises:
        TopicError: Otherwise, or if nobody knows the current tenant.

    """

    kind: str
    id: str
    tenant: str

    def __init__(self, kind: str, id: TopicId) -> None:  # noqa: A002  an id is called id
        options = settings.kinds.get(kind) if isinstance(kind, str) else None
        if options is None:
            raise _unknown(kind)
        object.__setattr__(self, "kind", kind)
        object.__setattr__(self, "id", _clean(kind, id, options.clean_id))
        object.__setattr__(self, "tenant", tenants.current())

    @classmethod
    def for_user(cls, user: Any) -> Self:
        """
        Name the topic of a user, given as a ``User`` instance or a primary key.

        Raises:
            TopicError: For an anonymous or unsaved user.

        """
        pk = user.pk if hasattr(user, "pk") else user
        if pk is None or (isinstance(pk, tuple) and None in pk):
            raise TopicError("an anonymous or unsaved user has no topic")
        if pk is not user or isinstance(pk, tuple):  # a model may have any sort of primary key, a composite one too
            pk = str(pk)
        return cls("user", pk)

    @classmethod
    def parse(cls, text: str) -> Self:
        """
        Read ``"kind:id"``, as browsers and the site write it; the id may contain colons. It names no tenant.

        Raises:
            TopicError: If there is no colon, or the topic is not valid.

        """
        kind, colon, id_ = text.partition(":")
        if not colon:
            raise TopicError("a topic is written kind:id, such as upload:7f3c")
        return cls(kind, id_)

    @classmethod
    def from_channel(cls, channel: bytes) -> Self:
        """
        Read the name of a Redis channel.

        Raises:
            TopicError: If it has another prefix, is not UTF-8, or the topic is not valid.

        """
        try:
            name = channel.decode()
        except UnicodeDecodeError as error:
            raise TopicError("the channel name is not UTF-8") from error
        if not name.startswith(settings.PREFIX):
            raise TopicError("the channel name has another prefix")
        topic = cls.checked_elsewhere(name.removeprefix(settings.PREFIX))
        if (options := settings.kinds.get(topic.kind)) is None:
            raise _unknown(topic.kind)
        object.__setattr__(topic, "id", _clean(topic.kind, topic.id, options.clean_id))
        return topic

    @classmethod
    def checked_elsewhere(cls, text: str) -> Self:
        """
        Read what another process of the site has published on; the kind need not be configured in this one.

        Raises:
            TopicError: It can be the name of no topic.

        """
        kind, tenant, id_ = _split(text)
        if not KIND_PATTERN.fullmatch(kind):
            raise TopicError("it is not the name of a topic")
        _check(kind, id_)
        if settings.TENANT is not None:
            tenants.check(tenant)
        topic = object.__new__(cls)
        object.__setattr__(topic, "kind", kind)
        object.__setattr__(topic, "id", id_)
        object.__setattr__(topic, "tenant", tenant)
        return topic

    def __str__(self) -> str:
        return f"{self.kind}:{self.tenant}{tenants.SEPARATOR}{self.id}" if self.tenant else f"{self.kind}:{self.id}"

    @property
    def full_id(self) -> str:
        """The id, prefixed with the tenant if there are tenants: unique among the topics of a kind."""
        return f"{self.tenant}{tenants.SEPARATOR}{self.id}" if self.tenant else self.id

    @property
    def told(self) -> str:
        """The topic as browsers see it: without the tenant, which is theirs."""
        return f"{self.kind}:{self.id}"

    @property
    def channel(self) -> str:
        """The Redis pub/sub channel."""
        return f"{settings.PREFIX}{self}"

    @property
    def shard(self) -> int:
        """The number of the shard that it belongs to."""
        return shard_of(self.group) if settings.SHARDS > 1 else 0

    @property
    def history_key(self) -> str:
        """The Redis key of the topic's history."""
        return internal_name(f"history:{self}", self.shard)

    @property
    def group(self) -> str:
        """
        The channel-layer group.

        A hashed id begins with a dot and has 65 characters, so no plain id can equal it.
        """
        id_ = self.full_id
        if not PLAIN_ID.fullmatch(id_):
            id_ = "." + hashlib.sha256(id_.encode()).hexdigest()
        return f"{settings.PREFIX.replace(':', '-')}{self.kind}.{id_}"


def told(name: str) -> str:
    """Return the text of a topic as browsers see it."""
    if settings.TENANT is None:
        return name
    kind, _, id_ = _split(name)
    return f"{kind}:{id_}"


def _split(name: str) -> tuple[str, str, str]:
    """Split the text of a topic into kind, tenant and id, without validating them."""
    kind, _, id_ = name.partition(":")
    if settings.TENANT is None:
        return kind, "", id_
    tenant, _, id_ = id_.partition(tenants.SEPARATOR)
    return kind, tenant, id_


def _unknown(kind: object) -> TopicError:
    return TopicError(f"unknown kind {str(kind)[:20]!r}; kinds are set in NOTIFICATIONS['TOPICS']")


def _clean(kind: str, id_: object, clean_id: Callable[[str], str] | None) -> str:
    if not isinstance(id_, str | UUID):
        if not isinstance(id_, Integral) or isinstance(id_, bool):
            raise TopicError(f"the id of a topic of kind {kind!r} is a {type(id_).__name__}, not a str, int or UUID")
        id_ = int(id_)  # one of numpy derives from none of these
    try:
        text = str(id_)
    except ValueError as error:  # an int of more digits than Python writes
        raise TopicError(f"the id of a topic of kind {kind!r} is too long") from error
    _check(kind, text)
    if clean_id is not None:
        try:
            text = clean_id(text)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # the site's code: whatever it raises, also SystemExit, refuses this id only
            raise TopicError(f"CLEAN_ID of kind {kind!r} refused the id ({type(error).__name__})") from error
        if not isinstance(text, str):
            raise TopicError(f"CLEAN_ID of kind {kind!r} returned a {type(text).__name__}, not a str")
        _check(kind, text)
    return text


def _check(kind: str, id_: str) -> None:
    if not 1 <= len(id_) <= MAX_ID_LENGTH:
        raise TopicError(f"the id of a topic of kind {kind!r} has {len(id_)} characters, not 1 to {MAX_ID_LENGTH}")
    try:
        id_.encode()
    except UnicodeEncodeError as error:
        raise TopicError(f"the id of a topic of kind {kind!r} cannot be written in UTF-8") from error


def patterns() -> list[str]:
    """List the Redis patterns that match the channels of every kind."""
    return [f"{settings.PREFIX}{kind}:*" for kind in settings.kinds]


def internal_name(name: str, shard: int | None = None) -> str:
    """
    Return the name of an internal key or channel, which no topic can reach.

    Args:
        name: What it is.
        shard: The shard that it belongs to; None for what the site has once.

    """
    if shard is None or not settings.is_divided:
        return f"{settings.PREFIX}notifications:{name}"
    return f"{settings.PREFIX}{{notifications:{shard}}}:{name}"


def shard_of(group: str) -> int:
    """Return the shard of a topic, given its channel-layer group: the layer knows no topics."""
    return zlib.crc32(group.encode()) % settings.SHARDS
