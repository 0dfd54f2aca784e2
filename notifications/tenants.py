"""
Tenants: several customers of one site, each with users, ids and sessions of its own, whose keys are the same numbers.

With the setting ``TENANT`` every topic belongs to a tenant: that of the request, socket or task in which it is named.
Without it there are none, and the name of the tenant is empty.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import Context, ContextVar, copy_context
from functools import wraps
from typing import Any, Final, NamedTuple

from asgiref.sync import iscoroutinefunction

from .conf import settings
from .exceptions import TopicError

MAX_LENGTH: Final = 63
"""Characters of a name: what a schema of PostgreSQL, or a label of a host, may have."""
SEPARATOR: Final = "/"
"""Stands between tenant and id in the names of channels and keys; an id may hold it, a tenant may not."""
remembered: ContextVar[str | None] = ContextVar("notifications.tenant", default=None)
"""The answer of ``TENANT`` in a command that goes on in an event loop, where nobody may know it."""


def current() -> str:
    """
    Ask ``TENANT`` whose request, socket or task this is; empty on a site without tenants.

    Raises:
        TopicError: It is nobody's, or ``TENANT`` does not know.

    """
    if (ask := settings.tenant) is None:
        return ""
    if (known := remembered.get()) is not None:
        return known
    try:
        name = ask()
    except Exception as error:  # the site's code: whatever it raises, nobody knows whose topic it would be
        raise TopicError(f"TENANT could not say whose topic it is ({type(error).__name__})") from error
    check(name)
    return str(name)


def check(name: object) -> None:
    """Raise ``TopicError`` if it cannot be the name of a tenant."""
    if not isinstance(name, str) or not 1 <= len(name) <= MAX_LENGTH or SEPARATOR in name or not name.isprintable():
        raise TopicError(f"a tenant has a name of 1 to {MAX_LENGTH} printable characters without {SEPARATOR!r}")


class Tenant(NamedTuple):
    """
    The tenant of a socket, and the context in which its handshake ran.

    What is done for the socket later, by tasks that serve those of all tenants, is done in that context.

    Attributes:
        name: Empty on a site without tenants.
        context: None on such a site.

    """

    name: str
    context: Context | None

    @classmethod
    def of_this_context(cls) -> Tenant:
        """Take note of whose socket this is; raises ``TopicError`` if nobody knows."""
        return cls(current(), copy_context()) if settings.tenant is not None else NO_TENANT

    def fresh_context(self) -> Context | None:
        """Return a copy: no context can be entered twice at the same time."""
        return None if self.context is None else self.context.copy()


NO_TENANT: Final = Tenant("", None)


def within(tenant: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Have a synchronous function enter ``TENANT_CONTEXT`` of a tenant in whatever thread it is called."""
    enter = settings.tenant_context
    if not tenant or enter is None or iscoroutinefunction(function):
        return function

    @wraps(function)
    def entering(*arguments: Any) -> Any:
        with enter(tenant):
            return function(*arguments)

    return entering
