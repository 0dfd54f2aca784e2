"""What a user may read: ``AUTHORIZE``, alone or for many, ``JOIN``, ``PUBLIC`` and grants. By default nothing."""

from __future__ import annotations

import inspect
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import wraps
from itertools import islice
from typing import Any, Final, NamedTuple, TypeVar, cast

from asgiref.sync import async_to_sync
from django.core.exceptions import ObjectDoesNotExist, PermissionDenied, ValidationError
from django.db import DataError
from django.http import Http404

from ..aio import PerLoop
from ..conf import settings
from ..exceptions import TopicError
from ..history import get_store
from ..logs import LogBudget, describe, outages
from ..metrics import count, tally
from ..tenants import current
from ..tokens import grant_made_at
from ..topics import Topic
from .batches import AnswersError, Batches
from .callbacks import BusyError, Callbacks, is_async, is_outage, within

logger = logging.getLogger(__name__)
T = TypeVar("T")

AUTHORIZE_TIMEOUT: Final = 5.0
"""Seconds that a call of a site's ``AUTHORIZE`` may take; after that the answer is unknown."""
AUTHORIZE_WAIT: Final = 60.0
"""Seconds that a call may wait for its turn. When a thousand tabs come back with ten uploads each, and each call takes
50 ms, the last of the calls that wait at the same time gets its turn after 6."""
MAX_THREADS: Final = 8
"""Synchronous calls of ``AUTHORIZE`` at once."""

MOST_PAIRS: Final = 500
"""Pairs in one call of ``AUTHORIZE_MANY``: databases limit the parameters of a query, some to 1000."""
MANY_AT_ONCE: Final = 1
"""Calls of a kind's ``AUTHORIZE_MANY`` at once. What comes meanwhile is in the next one, so more of them would only
take more connections to the database."""

OUT_AFTER: Final = 8
"""Questions about one kind in a row that something did not answer, after which new subscriptions are not asked for at
once: each would hold a thread, and the frames behind it, for as long as a call may take."""

permissions = PerLoop(lambda: Callbacks("authorize", MAX_THREADS, AUTHORIZE_WAIT))
pairs = PerLoop(
    lambda: Batches(permissions(), at_once=MANY_AT_ONCE, most=MOST_PAIRS, longest_wait=AUTHORIZE_WAIT), Batches.end
)
INVALID_ID: Final = (ValueError, ValidationError, ObjectDoesNotExist, DataError)
"""Django's errors for an invalid or unknown id, which is a no: a browser may send anything. But some errors of HTTP
libraries are a ``ValueError`` as well, although something did not answer."""
_refusals: Final = LogBudget(logger)


class Joining(NamedTuple):
    """The question that ``JOIN`` of a kind answers, for a user of a tenant."""

    tenant: str
    kind: str


What = Topic | Joining
_silent: PerLoop[Counter[tuple[str, str]]] = PerLoop(Counter)


def who_answers(what: What) -> tuple[str, str]:
    """Name what is away together: the permissions of a kind, whose rows each tenant may have in another database."""
    return what.tenant, what.kind if isinstance(what, Topic) else f"JOIN {what.kind}"


def is_out(what: What) -> bool:
    """Return whether questions about a kind go unanswered in that tenant, so that it need not be asked now."""
    return _silent()[who_answers(what)] >= OUT_AFTER


def is_open(user: Any, topic: Topic) -> bool:
    """Return whether a user may read a topic because of its sort: their own, or a public one."""
    return settings.kinds[topic.kind].PUBLIC or topic == Topic.for_user(user)


async def has_grant(user: Any, topic: Topic, grant: str | None) -> bool:
    """
    Return whether a grant lets a user read a topic: it is valid, and was not revoked.

    Raises:
        redis.RedisError, OSError, TimeoutError: It is not known whether it was revoked.

    """
    if grant is None or (made_at := grant_made_at(grant, user, topic)) is None:
        return False
    return made_at > await get_store().agrants_revoked_at(Topic.for_user(user).full_id, topic)


def has_grant_here(user: Any, topic: Topic, grant: str | None) -> bool:
    """Return whether a grant lets a user read a topic, in the thread of a request; see ``has_grant``."""
    if grant is None or (made_at := grant_made_at(grant, user, topic)) is None:
        return False
    return made_at > get_store().grants_revoked_at(Topic.for_user(user).full_id, topic)


def is_asked_together(topic: Topic) -> bool:
    """Return whether the topics of this kind are asked about together, by ``AUTHORIZE_MANY``."""
    return settings.kinds[topic.kind].AUTHORIZE_MANY is not None


async def authorized(user: Any, topic: Topic) -> bool | None:
    """
    Ask the kind's ``AUTHORIZE`` or ``AUTHORIZE_MANY`` whether a user may read a topic.

    Returns:
        None if the answer is unknown, because the database or another service did not answer; ask again later.

    """
    if is_asked_together(topic):
        return await _said("AUTHORIZE_MANY", topic, _authorized_together(user, topic), no=None)
    return await _said("AUTHORIZE", topic, _authorized(user, topic), no=False)


async def _authorized(user: Any, topic: Topic) -> bool:
    try:
        if (authorize := settings.kinds[topic.kind].authorize) is None:
            return False
        whose, function = Topic.for_user(user).full_id, within(topic.tenant, _decided_at_once(authorize))
        call = permissions().call
        return bool(await call(whose, AUTHORIZE_TIMEOUT, function, user, topic.id, group=_group("AUTHORIZE", topic)))
    except INVALID_ID as error:
        if is_outage(error):
            raise
        return False


async def _authorized_together(user: Any, topic: Topic) -> bool:
    group, whose = _group("AUTHORIZE_MANY", topic), Topic.for_user(user).full_id
    function = within(topic.tenant, cast("Callable[..., Any]", settings.kinds[topic.kind].authorize_many))
    try:
        answer = await pairs().ask(group, whose, AUTHORIZE_TIMEOUT, function, (user, topic.id))
    except (*INVALID_ID, PermissionDenied, Http404) as error:
        if is_outage(error):
            raise
        return False  # it was asked about this pair alone
    if not isinstance(answer, bool):
        raise AnswersError(f"returned a {type(answer).__name__} for a pair, not True or False")  # a coroutine is true
    return answer


def authorized_here(user: Any, topic: Topic) -> bool | None:
    """
    Ask whether a user may read a topic, in the thread of a request and its context; see ``authorized``.

    It has no time-out: the request waits for its own site.
    """
    kind = settings.kinds[topic.kind]
    together = kind.authorize_many is not None
    if (function := kind.authorize_many or kind.authorize) is None:
        return False
    if is_async(function):
        function = async_to_sync(function)
    try:
        answer = function([(user, topic.id)])[0] if together else function(user, topic.id)
    except Exception as error:
        if is_outage(error):
            logger.warning("it is not known whether a user may cancel a job (%s)", describe(error))
            return None
        if not isinstance(error, (*INVALID_ID, PermissionDenied, Http404)):
            option = "AUTHORIZE_MANY" if together else "AUTHORIZE"
            logger.exception("%s of kind %r failed; the answer is %s (%d time(s))", option, topic.kind, "no", 1)
        return False
    return bool(answer)


async def joined(user: Any, what: Joining) -> list[Topic] | None:
    """
    Ask the kind's ``JOIN`` which topics every connection of a user has; in the context of the user's tenant.

    Returns:
        One more than ``MAX_SUBSCRIPTIONS`` at most. None when nobody could say, as for ``authorized``.

    """
    return await _said("JOIN", what, _joined(user, what), no=[])


async def _joined(user: Any, what: Joining) -> list[Topic]:
    if (join := settings.kinds[what.kind].join) is None:
        return []
    whose, function = Topic.for_user(user).full_id, within(current(), _read_at_once(join))
    topics: dict[Topic, None] = {}
    ids = await permissions().call(whose, AUTHORIZE_TIMEOUT, function, user, group=_group("JOIN", what))
    for id_ in _some(ids):
        try:
            topics[Topic(what.kind, id_)] = None
        except TopicError as error:
            _refusals.warning("JOIN returned something that is not a topic: %s", error)
    return list(topics)


def joined_by_all() -> list[Topic]:
    """Return the topics that every connection has, where ``JOIN`` is a list of ids."""
    topics = []
    for kind, id_ in settings.joined_by_all:
        try:
            topics.append(Topic(kind, id_))
        except TopicError as error:
            _refusals.warning("JOIN of kind %r names something that is not a topic: %s", kind, error)
    return topics


def _decided_at_once(authorize: Callable[..., Any]) -> Callable[..., Any]:
    """Have a function that returns a queryset, or what is lazy, decide where it runs; see ``_read_at_once``."""
    if is_async(authorize):
        return authorize

    @wraps(authorize)
    def deciding(user: Any, id_: str) -> Any:
        answer = authorize(user, id_)
        return answer if inspect.isawaitable(answer) else bool(answer)

    return deciding


def _read_at_once(join: Callable[..., Any]) -> Callable[..., Any]:
    """Have a function that returns a queryset read it where it runs: the database may not be asked elsewhere."""
    if is_async(join):
        return join

    @wraps(join)
    def reading(user: Any) -> Any:
        ids = join(user)
        return ids if inspect.isawaitable(ids) else _some(ids)

    return reading


def _some(ids: Any) -> list[Any]:
    if isinstance(ids, str | bytes):
        raise TypeError(f"JOIN returned a {type(ids).__name__}, not several ids")
    return list(islice(ids, settings.MAX_SUBSCRIPTIONS + 1))


def _group(option: str, what: What) -> str:
    """Name what hangs together: a function, whose rows each tenant may have in another database."""
    return f"{option} {what.tenant}/{what.kind}"


async def _said(option: str, what: What, question: Awaitable[T], no: T | None) -> T | None:
    """
    Await what a site's function says.

    If something did not answer, it is None, and if the function fails in any other way, it is ``no``.
    """
    kind, silent, who = what.kind, _silent(), who_answers(what)
    try:
        answer = await question
    except Exception as error:
        if option == "JOIN":
            count("auth_failed", "join")
        else:
            count("auth_failed", "authorize")
        if is_outage(error):
            if not isinstance(error, BusyError):  # perhaps the calls of another hang
                silent[who] += 1
            if times := outages.due(f"{option} {kind}"):
                logger.error(
                    "%s of kind %r could not answer (%s, %d time(s)); %d subscription(s) wait for an answer",
                    option,
                    kind,
                    describe(error),
                    times,
                    max(tally.unanswered, 1),
                    exc_info=None if is_outage(error, also_during=False) else error,
                )
            return None
        silent.pop(who, None)  # it fails for what it is asked about, perhaps, and does so at once
        if times := outages.due(f"{option} {kind} {type(error).__name__}"):
            said = "unknown" if no is None else "no"
            logger.exception("%s of kind %r failed; the answer is %s (%d time(s))", option, kind, said, times)
        return no
    silent.pop(who, None)
    return answer
