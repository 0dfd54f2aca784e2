"""
Tenants: several customers of one site, whose users, ids and sessions are separate but share primary keys.

With the setting ``TENANT`` every topic belongs to a tenant: that of the request, socket or task in which it is named.
Without it there are no tenants, and the name of the tenant is empty.
"""

from __future__ import annotations

from contextvars import Context, ContextVar, copy_context
from typing import Final, NamedTuple

from .conf import settings
from .exceptions import TopicError

MAX_LENGTH: Final = 63
"""Characters of a name, as in a PostgreSQL schema or a label of a host name."""
SEPARATOR: Final = "/"
"""Separates tenant and id in the names of channels and keys; an id may contain it, a tenant may not."""
remembered: ContextVar[str | None] = ContextVar("notifications.tenant", default=None)
"""The answer of ``TENANT`` in a command that continues in an event loop, where it may be unknown."""


def current() -> str:
    """
    Return the tenant of the current request, socket or task, from ``TENANT``; empty on a site without tenants.

    Raises:
        TopicError: There is no current tenant, or ``TENANT`` failed.

    """
    if (ask := settings.tenant) is None:
        return ""
    if (known := remembered.get()) is not None:
        return known
    try:
        name = ask()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # the site's code: whatever it raises, also SystemExit, the tenant is unknown
        raise TopicError(f"TENANT could not say whose topic it is ({type(error).__name__})") from error
    check(name)
    return str(name)


def check(name: object) -> None:
    """Raise ``TopicError`` unless this can be the name of a tenant."""
    if not isinstance(name, str) or not 1 <= len(name) <= MAX_LENGTH or SEPARATOR in name or not name.isprintable():
        raise TopicError(f"a tenant has a name of 1 to {MAX_LENGTH} printable characters without {SEPARATOR!r}")


class Tenant(NamedTuple):
    """
    The tenant of a socket, and the context in which its handshake ran.

    Tasks that serve the sockets of all tenants run in that context what they do for this socket later.

    Attributes:
        name: Empty on a site without tenants.
        context: None on such a site.

    """

    name: str
    context: Context | None

    @classmethod
    def of_this_context(cls) -> Tenant:
        """Return the current tenant and context; raises ``TopicError`` if there is no tenant."""
        return cls(current(), copy_context()) if settings.tenant is not None else NO_TENANT

    def fresh_context(self) -> Context | None:
        """Return a copy, because a context cannot be entered twice at the same time."""
        return None if self.context is None else self.context.copy()


NO_TENANT: Final = Tenant("", None)
