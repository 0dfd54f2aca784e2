"""
Publishing: the functions that Django views and workers call.

Everything is checked and serialised before anything is sent, by code that the sync and async functions share.
What remains is one call of the history store, which keeps and publishes the message in one step.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any, Final, NamedTuple

from channels.layers import get_channel_layer
from django.core.signals import setting_changed

from . import messages, sending
from .conf import EVERYBODY, settings
from .exceptions import MessageError, PublishError, TopicError
from .history import get_store
from .history.store import Answer, Outgoing
from .layers import direct
from .logs import LogBudget, describe
from .messages import Message
from .metrics import Sampler, count, microseconds
from .protocol.surrogates import mend_text
from .signals import atell, message_prepared, message_published, tell
from .topics import Topic, TopicId

logger = logging.getLogger(__name__)

MAX_IDEMPOTENCY_KEY_LENGTH: Final = 200

TOGETHER: Final = 250
"""Messages that are sent together: Redis takes about 5 ms for them, and others who publish may have to wait for that
long; more are no faster."""
TOGETHER_BYTES: Final = 256 * 1024
"""Bytes of messages that are sent together, for the same reason; or one larger message alone."""

_log: Final = LogBudget(logger, lines=1, period=60.0)
_sampler = Sampler()


class Prepared(NamedTuple):
    """
    A message that is ready to be sent, whatever happens to the objects it was made from: a ``sending.Call``.

    Attributes:
        topic: Where to publish it.
        data: The message's JSON object.
        idempotency_key: If set, it may be sent twice.
        sender: The class of the message, for receivers of the signals.
        version: As in ``Store.publish``.

    """

    topic: Topic
    data: bytes
    idempotency_key: str | None
    sender: type
    version: int = 0

    def failure(self, reason: str) -> PublishError:
        return PublishError(str(self.topic), reason)

    @property
    def facts(self) -> dict[str, Any]:
        """The arguments that receivers of both signals get."""
        return {"topic": self.topic, "data": self.data, "idempotency_key": self.idempotency_key}

    def send(self) -> str | None:
        given = self.topic, self.data, self.idempotency_key, _now(), _group(self.topic), self.version
        id_ = get_store().publish(*given)
        count("published")
        if message_published.receivers:
            tell(message_published, self.sender, id=id_, **self.facts)
        return id_

    async def asend(self) -> str | None:
        given = self.topic, self.data, self.idempotency_key, _now(), _group(self.topic), self.version
        id_ = await get_store().apublish(*given)
        count("published")
        if message_published.receivers:
            await atell(message_published, self.sender, id=id_, **self.facts)
        return id_


class Many:
    """
    Messages that are ready to be sent in their order, several at once: a ``sending.Call``.

    After the first ones that Redis does not confirm nothing more is sent.

    Attributes:
        ids: What ``publish`` would have returned, of those that are known to be published; None for the others.

    """

    def __init__(self, messages: list[Prepared]) -> None:
        self.ids: list[str | None] = [None] * len(messages)
        self._messages = messages
        self._missing = set(range(len(messages)))

    def failure(self, reason: str) -> PublishError:
        missing = tuple(sorted(self._missing))
        return PublishError(str(self._messages[missing[0]].topic), reason, missing, len(self._messages))

    def send(self) -> None:
        for part in self._parts():
            answers = get_store().publish_many(self._outgoing(part))
            failed = self._took(part, answers)
            if message_published.receivers:
                for number in part:
                    if number not in self._missing:
                        each = self._messages[number]
                        tell(message_published, each.sender, id=self.ids[number], **each.facts)
            if failed is not None:
                raise failed

    async def asend(self) -> None:
        for part in self._parts():
            answers = await get_store().apublish_many(self._outgoing(part))
            failed = self._took(part, answers)
            if message_published.receivers:
                for number in part:
                    if number not in self._missing:
                        each = self._messages[number]
                        await atell(message_published, each.sender, id=self.ids[number], **each.facts)
            if failed is not None:
                raise failed

    def _parts(self) -> Iterator[range]:
        """Yield the numbers of messages that are sent together."""
        first = size = 0
        for number, message in enumerate(self._messages):
            size += len(message.data)
            if number > first and (number - first == TOGETHER or size > TOGETHER_BYTES):
                yield range(first, number)
                first, size = number, len(message.data)
        if self._messages:
            yield range(first, len(self._messages))

    def _outgoing(self, part: range) -> list[Outgoing]:
        messages = self._messages[part.start : part.stop]
        return [Outgoing(each.topic, each.data, each.idempotency_key, _now(), _group(each.topic)) for each in messages]

    def _took(self, part: range, answers: list[Answer]) -> Exception | None:
        """Take note of the answers to a part, and return the first error."""
        failed = None
        for number, answer in zip(part, answers, strict=True):
            if isinstance(answer, Exception):
                failed = failed or answer
            else:
                self.ids[number] = answer
                self._missing.remove(number)
        count("published", amount=sum(not isinstance(answer, Exception) for answer in answers))
        return failed


def prepare(topic: Topic | str, message: Message, idempotency_key: str | None = None) -> Prepared:
    """Check and serialise a message; pure except for the settings."""
    if isinstance(topic, str):
        topic = Topic.parse(topic)
    if idempotency_key is not None and not isinstance(idempotency_key, str):
        raise MessageError(f"an idempotency key is a str, not a {type(idempotency_key).__name__}")
    if idempotency_key is not None and not 1 <= len(idempotency_key) <= MAX_IDEMPOTENCY_KEY_LENGTH:
        raise MessageError(f"an idempotency key has 1 to {MAX_IDEMPOTENCY_KEY_LENGTH} characters")
    if idempotency_key is not None and mend_text(idempotency_key) != idempotency_key:
        raise MessageError("an idempotency key has no lone surrogates: two keys could become one")
    data = messages.encode(message, settings.MAX_MESSAGE_SIZE)
    return Prepared(topic, data, idempotency_key, type(message))


def publish(
    topic: Topic | str,
    message: Message,
    *,
    on_commit: bool = False,
    using: str | None = None,
    fail_silently: bool = False,
    idempotency_key: str | None = None,
) -> str | None:
    """
    Publish a message on a topic, to every socket that is subscribed to it.

    If Redis does not answer, the call takes about a second, and calls in the next three seconds fail at once.
    When it returns, Redis has the message; it does not mean that anybody was connected.

    Args:
        topic: A ``Topic``, or its text such as ``"order:7"``.
        message: One of ``notifications.messages``, or any mapping that JSON can hold.
        on_commit: Publish when the transaction commits, and not at all if it is rolled back. The message
            is checked and written now. Outside a transaction it is published at once.
        using: With ``on_commit``: the alias of the database. The default one if None.
        fail_silently: Log and count a ``PublishError`` instead of raising it.
        idempotency_key: Up to 200 characters. For five minutes nothing more is published on the topic
            under the same key. Pass one when you retry after a ``PublishError``.

    Returns:
        The message's id, ``"<epoch>-<n>"``. None with ``on_commit``, after a silenced failure, and where
        ``HISTORY_SIZE`` is 0.

    Raises:
        TopicError: The topic is not valid.
        MessageError: The message is not valid, or larger than ``MAX_MESSAGE_SIZE``.
        PublishError: Redis did not confirm; the message may or may not have been published. With ``on_commit``
            it is raised at the end of the transaction, which is committed by then.

    """
    prepared = prepare(topic, message, idempotency_key)
    return send(prepared, on_commit=on_commit, using=using, fail_silently=fail_silently)


async def apublish(
    topic: Topic | str,
    message: Message,
    *,
    on_commit: bool = False,
    using: str | None = None,
    fail_silently: bool = False,
    idempotency_key: str | None = None,
) -> str | None:
    """
    Publish a message on a topic without blocking the event loop; see ``publish``.

    With ``on_commit`` the transaction is the one of the thread in which ``sync_to_async`` runs the ORM.
    """
    prepared = prepare(topic, message, idempotency_key)
    return await asend(prepared, on_commit=on_commit, using=using, fail_silently=fail_silently)


def send(
    prepared: Prepared, *, on_commit: bool = False, using: str | None = None, fail_silently: bool = False
) -> str | None:
    """Publish what was prepared, and tell receivers of the signals; see ``publish``."""
    if message_prepared.receivers:
        tell(message_prepared, prepared.sender, on_commit=on_commit, using=using, **prepared.facts)
    return sending.send(prepared, on_commit=on_commit, using=using, fail_silently=fail_silently)


async def asend(
    prepared: Prepared, *, on_commit: bool = False, using: str | None = None, fail_silently: bool = False
) -> str | None:
    """Publish what was prepared without blocking the event loop; see ``send``."""
    if message_prepared.receivers:
        await atell(message_prepared, prepared.sender, on_commit=on_commit, using=using, **prepared.facts)
    return await sending.asend(prepared, on_commit=on_commit, using=using, fail_silently=fail_silently)


Item = tuple[Topic | str, Message] | tuple[Topic | str, Message, str | None]


def publish_many(
    messages: Iterable[Item],
    *,
    idempotency_key: str | None = None,
    on_commit: bool = False,
    using: str | None = None,
    fail_silently: bool = False,
) -> list[str | None]:
    """
    Publish many messages: each as ``publish`` does, and several times as fast as one call for each.

    All are checked and serialised before the first is sent, so a mistake in one of them publishes none. They are sent
    in the order of the list, up to 250 at once. They are not published in one step: sockets, and other publishers,
    may receive some before the last is sent. After the first that Redis does not confirm, no more than the rest of
    those 250 is sent.

    Args:
        messages: A ``(topic, message)`` pair for each, as for ``publish``; or ``(topic, message, idempotency_key)``.
        idempotency_key: For those that have no key of their own: the first gets the key ``"<this>:0"``, the
            second ``"<this>:1"`` and so on. After a ``PublishError`` the same list may then be passed again.
        on_commit: As for ``publish``.
        using: As for ``publish``.
        fail_silently: Log and count a ``PublishError`` instead of raising it.

    Returns:
        What ``publish`` returns, for each message. All are None with ``on_commit``; after a silenced failure those
        are that are not known to be published.

    Raises:
        TopicError: A topic is not valid; nothing is published.
        MessageError: A message is not valid, or larger than ``MAX_MESSAGE_SIZE``; nothing is published.
        PublishError: Redis did not confirm all messages. Those in its ``missing`` may or may not have been published,
            all others were.

    """
    prepared = [_prepare_item(item, number, idempotency_key) for number, item in enumerate(messages)]
    return send_many(prepared, on_commit=on_commit, using=using, fail_silently=fail_silently)


def send_many(
    prepared: list[Prepared], *, on_commit: bool = False, using: str | None = None, fail_silently: bool = False
) -> list[str | None]:
    """Publish what was prepared, and tell receivers of the signals; see ``publish_many``."""
    if message_prepared.receivers:
        for each in prepared:
            tell(message_prepared, each.sender, on_commit=on_commit, using=using, **each.facts)
    many = Many(prepared)
    sending.send(many, on_commit=on_commit, using=using, fail_silently=fail_silently)
    return [None] * len(prepared) if on_commit else many.ids


async def apublish_many(
    messages: Iterable[Item],
    *,
    idempotency_key: str | None = None,
    on_commit: bool = False,
    using: str | None = None,
    fail_silently: bool = False,
) -> list[str | None]:
    """
    Publish many messages without blocking the event loop; see ``publish_many``.

    With ``on_commit`` the transaction is the one of the thread in which ``sync_to_async`` runs the ORM.
    """
    prepared = []
    for number, item in enumerate(messages):
        prepared.append(_prepare_item(item, number, idempotency_key))
        if number % TOGETHER == TOGETHER - 1:
            await asyncio.sleep(0)  # to serialise so many takes some milliseconds
    if message_prepared.receivers:
        for each in prepared:
            await atell(message_prepared, each.sender, on_commit=on_commit, using=using, **each.facts)
    many = Many(prepared)
    await sending.asend(many, on_commit=on_commit, using=using, fail_silently=fail_silently)
    return [None] * len(prepared) if on_commit else many.ids


def _prepare_item(item: Item, number: int, idempotency_key: str | None) -> Prepared:
    topic, message, key = item if len(item) == 3 else (*item, None)
    if key is None and idempotency_key is not None:
        key = f"{idempotency_key}:{number}"
    return prepare(topic, message, key)


def publish_to_user(user: Any, message: Message, **options: Any) -> str | None:
    """
    Publish a message to all tabs of a user.

    Args:
        user: A ``User`` instance or a primary key. An anonymous or unsaved user is a ``TopicError``.
        message: As for ``publish``.
        **options: As for ``publish``.

    """
    return publish(Topic.for_user(user), message, **options)


async def apublish_to_user(user: Any, message: Message, **options: Any) -> str | None:
    """Publish a message to all tabs of a user; see ``publish_to_user``."""
    return await apublish(Topic.for_user(user), message, **options)


def publish_progress(upload_id: TopicId, message: Message, **options: Any) -> str | None:
    """
    Publish a message to all who watch an upload.

    Args:
        upload_id: The id by which pages subscribe to the upload.
        message: As for ``publish``; ``UploadProgress``, ``UploadCompleted`` and ``UploadFailed`` are made for it.
        **options: As for ``publish``.

    """
    return publish(Topic("upload", upload_id), message, **options)


async def apublish_progress(upload_id: TopicId, message: Message, **options: Any) -> str | None:
    """Publish a message to all who watch an upload; see ``publish_progress``."""
    return await apublish(Topic("upload", upload_id), message, **options)


def publish_to_all(message: Message, **options: Any) -> str | None:
    """
    Publish a message to every open page of the site, on the topic ``site:all``.

    It needs the kind ``site`` in ``TOPICS``, which every connection then has without asking. On a site with tenants
    the message is for the pages of the current tenant.

    Args:
        message: As for ``publish``.
        **options: As for ``publish``.

    Raises:
        TopicError: The kind ``site`` is not set.

    """
    return publish(_everybody(), message, **options)


async def apublish_to_all(message: Message, **options: Any) -> str | None:
    """Publish a message to every open page of the site; see ``publish_to_all``."""
    return await apublish(_everybody(), message, **options)


def _everybody() -> Topic:
    kind, id_ = EVERYBODY
    if kind not in settings.kinds:
        raise TopicError('publish_to_all needs the kind "site": add "site": {} to NOTIFICATIONS["TOPICS"]')
    return Topic(kind, id_)


def _now() -> int:
    """Return the time for a message that belongs to the sample; otherwise 0."""
    return microseconds() if _sampler.due() else 0


def _group(topic: Topic) -> str | None:
    """Return the Redis channel of a topic's group; None if listeners have to forward what is published here."""
    try:
        return _channel(get_channel_layer(), topic)
    except Exception as error:  # noqa: BLE001  a layer that cannot be created may raise anything, and is not needed
        _log.warning("the channel layer cannot be used (%s): a listener forwards what is published", describe(error))
        return None


@lru_cache(maxsize=10_000)
def _channel(layer: Any, topic: Topic) -> str | None:
    return direct(layer, topic.group)


def _forget(*, setting: str, **_: object) -> None:
    if setting in ("CHANNEL_LAYERS", "NOTIFICATIONS"):
        _channel.cache_clear()


setting_changed.connect(_forget, dispatch_uid="notifications.publisher")
