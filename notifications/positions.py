"""Where a topic is now, for a page that shows its state and is told what follows."""

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
    Return the position of a topic: a page that subscribes with it as ``since`` gets all that is published from now on.

    Ask before you read the state that the page shows. What is published in between then reaches the page as well,
    where otherwise it would be in neither.

    Takes about a second at most when Redis does not answer, and nothing in the seconds after that.

    Args:
        topic: A ``Topic``, or its text such as ``"order:7"``.

    Returns:
        ``"<epoch>-<n>"``, the id of the latest message or, where there is none, what comes before the first. None where
        ``HISTORY_SIZE`` is 0.

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
