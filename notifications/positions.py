"""Positions of topics, for pages that show a state and then receive what follows."""

from __future__ import annotations

from .broker.clients import FAILURES
from .conf import settings
from .exceptions import PositionError
from .history import get_store
from .logs import describe
from .metrics import count
from .topics import Topic


def position(topic: Topic | str) -> str | None:
    """
    Return the position of a topic, to render into a page.

    A page that subscribes with it as ``since`` receives all that is published from now on. Call
    this before you read the state that the page shows: what is published in between then reaches
    the page as well, instead of being missing from both.

    When Redis does not answer, this takes about a second, and then fails at once for some seconds.

    Args:
        topic: A ``Topic``, or its text such as ``"order:7"``.

    Returns:
        ``"<epoch>-<n>"``, the id of the latest message or, if there is none, the position before
        the first. None where ``HISTORY_SIZE`` is 0.

    Raises:
        TopicError: The topic is not valid.
        PositionError: Redis did not answer.

    """
    if (asked := _with_history(topic)) is None:
        return None
    try:
        return str(get_store().position(asked))
    except FAILURES as error:
        raise _failed(asked, error) from error


async def aposition(topic: Topic | str) -> str | None:
    """Return the position of a topic without blocking the event loop; see ``position``."""
    if (asked := _with_history(topic)) is None:
        return None
    try:
        return str(await get_store().aposition(asked))
    except FAILURES as error:
        raise _failed(asked, error) from error


def _with_history(topic: Topic | str) -> Topic | None:
    topic = Topic.parse(topic) if isinstance(topic, str) else topic
    return topic if settings.kinds[topic.kind].HISTORY_SIZE else None


def _failed(topic: Topic, error: Exception) -> PositionError:
    count("position_failed", type(error).__name__)
    return PositionError(str(topic), describe(error))
