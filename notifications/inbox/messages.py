"""
The functions of ``django.contrib.messages``, for code that has a user but no request, such as a task.

    from notifications.inbox import messages

    messages.success(user, "The import has finished", url="/imports/7/")

For code that is shared with views there is a request, ``request_for(user)``, with which Django's own functions keep
notices. The app ``django.contrib.messages`` need not be installed.
"""

from __future__ import annotations

from html import unescape
from typing import Any, Final

from django.conf import settings
from django.contrib.messages import constants, utils
from django.contrib.messages.storage.base import BaseStorage, Message
from django.http import HttpRequest
from django.utils.html import strip_tags
from django.utils.safestring import SafeData

from ..messages import Notice
from . import anotify, notify
from .models import KeptNotice, Level

_LEVELS: Final = (
    (constants.ERROR, Level.ERROR),
    (constants.WARNING, Level.WARNING),
    (constants.SUCCESS, Level.SUCCESS),
)


def add_message(
    user: Any, level: int, message: Any, extra_tags: str = "", fail_silently: bool = False, **options: Any
) -> KeptNotice | None:
    """
    Keep a message as a notice of a user.

    Args:
        user: The user, instead of a request.
        level: One of ``django.contrib.messages``, or of the site's own: a level whose tag in ``MESSAGE_TAGS`` is a
            level of notices is that one, others are the nearest below.
        message: The title, which may be a lazy string. Of one that is marked as safe, so HTML, the text is taken.
        extra_tags: Means nothing here, as does ``fail_silently``: they are those of Django's function.
        fail_silently: See ``extra_tags``.
        **options: ``body`` and ``url`` of the notice, and what ``notify`` takes: ``key``, ``group``, ``expires`` ….

    Returns:
        The row; None for an empty message and below ``MESSAGE_LEVEL``, of which nothing is kept.

    Raises:
        MessageError: The title, or another value, is not valid.

    """
    kept = _kept(level, message, _lowest(), options)
    return None if kept is None else notify(user, kept, **options)


async def aadd_message(
    user: Any, level: int, message: Any, extra_tags: str = "", fail_silently: bool = False, **options: Any
) -> KeptNotice | None:
    """Keep a message as a notice of a user; see ``add_message``."""
    kept = _kept(level, message, _lowest(), options)
    return None if kept is None else await anotify(user, kept, **options)


def debug(
    user: Any, message: Any, extra_tags: str = "", fail_silently: bool = False, **options: Any
) -> KeptNotice | None:
    """Keep a message of level ``DEBUG``, which sites see only with a lower ``MESSAGE_LEVEL``; see ``add_message``."""
    return add_message(user, constants.DEBUG, message, **options)


def info(
    user: Any, message: Any, extra_tags: str = "", fail_silently: bool = False, **options: Any
) -> KeptNotice | None:
    """Keep a message of level ``INFO``; see ``add_message``."""
    return add_message(user, constants.INFO, message, **options)


def success(
    user: Any, message: Any, extra_tags: str = "", fail_silently: bool = False, **options: Any
) -> KeptNotice | None:
    """Keep a message of level ``SUCCESS``; see ``add_message``."""
    return add_message(user, constants.SUCCESS, message, **options)


def warning(
    user: Any, message: Any, extra_tags: str = "", fail_silently: bool = False, **options: Any
) -> KeptNotice | None:
    """Keep a message of level ``WARNING``; see ``add_message``."""
    return add_message(user, constants.WARNING, message, **options)


def error(
    user: Any, message: Any, extra_tags: str = "", fail_silently: bool = False, **options: Any
) -> KeptNotice | None:
    """Keep a message of level ``ERROR``; see ``add_message``."""
    return add_message(user, constants.ERROR, message, **options)


async def adebug(
    user: Any, message: Any, extra_tags: str = "", fail_silently: bool = False, **options: Any
) -> KeptNotice | None:
    """Keep a message of level ``DEBUG``; see ``debug``."""
    return await aadd_message(user, constants.DEBUG, message, **options)


async def ainfo(
    user: Any, message: Any, extra_tags: str = "", fail_silently: bool = False, **options: Any
) -> KeptNotice | None:
    """Keep a message of level ``INFO``; see ``add_message``."""
    return await aadd_message(user, constants.INFO, message, **options)


async def asuccess(
    user: Any, message: Any, extra_tags: str = "", fail_silently: bool = False, **options: Any
) -> KeptNotice | None:
    """Keep a message of level ``SUCCESS``; see ``add_message``."""
    return await aadd_message(user, constants.SUCCESS, message, **options)


async def awarning(
    user: Any, message: Any, extra_tags: str = "", fail_silently: bool = False, **options: Any
) -> KeptNotice | None:
    """Keep a message of level ``WARNING``; see ``add_message``."""
    return await aadd_message(user, constants.WARNING, message, **options)


async def aerror(
    user: Any, message: Any, extra_tags: str = "", fail_silently: bool = False, **options: Any
) -> KeptNotice | None:
    """Keep a message of level ``ERROR``; see ``add_message``."""
    return await aadd_message(user, constants.ERROR, message, **options)


def request_for(user: Any, **options: Any) -> HttpRequest:
    """
    Return a request of which messages become notices of a user, for code that is shared with views.

    Django's functions, such as ``messages.success(request, …)``, keep one notice each, at once; asynchronous code calls
    them in a thread. The request has a ``user`` and an empty ``session`` that nobody saves, but neither host nor path.

    Args:
        user: The user, who is also the request's.
        **options: As for ``notify``, for all of its messages: ``group``, ``expires`` ….

    """
    request = HttpRequest()
    request.user = user
    request.session = {}  # type: ignore[assignment]  # Django's get_level makes a storage that asks for one
    request._messages = _Notices(request, options)  # type: ignore[attr-defined]  # where Django looks for it
    return request


class _Notices(BaseStorage):
    """The messages of such a request: nothing waits in it for a response."""

    def __init__(self, request: HttpRequest, options: dict[str, Any]) -> None:
        super().__init__(request)
        self._options = options

    def add(self, level: int, message: Any, extra_tags: str | None = "") -> None:
        options = dict(self._options)
        if (kept := _kept(level, message, self.level, options)) is not None:
            notify(self.request.user, kept, **options)

    def _get(self, *args: Any, **kwargs: Any) -> tuple[list[Message], bool]:
        return [], True

    def _store(self, messages: Any, response: Any, *args: Any, **kwargs: Any) -> list[Message]:
        return []


def _lowest() -> int:
    return int(getattr(settings, "MESSAGE_LEVEL", constants.INFO))


def _kept(level: int, message: Any, lowest: int, options: dict[str, Any]) -> Notice | None:
    """Make the notice of a message, and take what belongs to it out of the options of ``notify``."""
    if not message or int(level) < lowest:
        return None
    text = str(message)
    title = unescape(strip_tags(text)) if isinstance(text, SafeData) else text
    own = {name: options.pop(name) for name in ("body", "url") if name in options}
    return Notice(title=title, level=_level(int(level)), **own)


def _level(level: int) -> Any:
    tag = utils.get_level_tags().get(level)
    if tag in Level.values:
        return tag
    return next((word.value for at_least, word in _LEVELS if level >= at_least), Level.INFO.value)
