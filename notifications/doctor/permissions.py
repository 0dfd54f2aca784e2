"""How the site's ``AUTHORIZE`` functions handle an id that any browser may send."""

from __future__ import annotations

import secrets
import traceback
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

from django.contrib.auth import get_user_model

from ..access import authorization
from ..access.callbacks import is_outage
from ..conf import settings
from ..exceptions import TopicError
from ..topics import Topic
from .findings import Finding, Level


def unknown_ids(kind: str) -> list[str]:
    """Return ids that do not exist, of each type that the kind's ``CLEAN_ID`` accepts: text, UUID, number."""
    ids = [f"notifications-doctor-{secrets.token_hex(8)}", str(uuid.uuid4()), str(10**18 + secrets.randbelow(10**18))]
    accepted = []
    for each in ids:
        with suppress(TopicError):
            Topic(kind, each)
            accepted.append(each)
    return accepted


async def examine_permissions() -> list[Finding]:
    """
    Call each ``AUTHORIZE`` with a user and ids that do not exist; whether it says yes or no does not matter.

    An ``AUTHORIZE_MANY`` is asked about each of them alone, and then about all.

    An exception is only a warning: the function may work for existing ids, and fail for what a browser makes up.
    """
    user = _nobody()
    found = []
    for name, kind in settings.kinds.items():
        ids = [Topic(name, each).id for each in unknown_ids(name)]
        problems = []
        if (authorize := kind.authorize) is not None:
            problems = [await _ask(f"AUTHORIZE of kind {name!r}", authorize, user, each) for each in ids]
        elif (many := kind.authorize_many) is not None:
            pairs = [(user, each) for each in ids]
            some = [*([pair] for pair in pairs), pairs]
            problems = [await _ask(f"AUTHORIZE_MANY of kind {name!r}", many, each) for each in some if each]
        if problems:
            found += [Finding("settings", Level.WARNING, *each) for each in problems if each is not None][:1]
    return found


def _nobody() -> Any:
    """Return a user that is in no database, of the class that ``AUTHORIZE`` expects."""
    model = get_user_model()
    user = model()
    for pk in (-1, uuid.uuid4()):
        with suppress(Exception):  # a key of another type; without one it is still a user
            user.pk = model._meta.pk.to_python(pk)
            return user
    return user


async def _ask(which: str, function: Any, *arguments: Any) -> tuple[str, str] | None:
    pairs = arguments[0]
    count = len(pairs) if isinstance(pairs, list) else 0  # before the function may change it
    try:
        said = await authorization.permissions().call("", authorization.AUTHORIZE_TIMEOUT, function, *arguments)
    except Exception as error:  # noqa: BLE001  it is the site's function
        if isinstance(error, authorization.INVALID_ID) and not is_outage(error):
            return None  # a no, as in authorization.authorized
        # Its message may contain anything, even a secret: only show where it was raised.
        what = f"{type(error).__name__} in {_place(function, error)}"
        if is_outage(error):
            text = f"{which} could not answer, so nobody may subscribe: {what}"
            return text, "Does the database, or what else it asks, answer from here? python manage.py dbshell."
        text = f"{which} raised for an id that nothing has, as any browser may send, which is a no: {what}"
        if count:
            text = f"{which} raised for ids that nothing has, as any browser may send: {what}"
        return text, "Let it return False; when a browser asks, the log has the stack trace."
    if count and not _are_answers(said, count):
        text = f"{which} did not return a list of True and False, one for each of {count} pair(s)"
        return text, "Return [… for user, id in pairs]: otherwise nobody may subscribe."
    return None


def _are_answers(said: Any, count: int) -> bool:
    return isinstance(said, list | tuple) and len(said) == count and all(isinstance(each, bool) for each in said)


def _place(authorize: Any, error: Exception) -> str:
    """Return the last line that was run in the function's own file, which says more than one in a library."""
    lines = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    file = getattr(getattr(authorize, "__code__", None), "co_filename", None)
    name, line = next((each for each in reversed(lines) if each[0] == file), lines[-1])
    return f"{Path(name).name}, line {line}"
