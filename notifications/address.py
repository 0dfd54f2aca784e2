"""
The address of a Redis server: its URL, parsed strictly, and shown without credentials.

A password that was not quoted makes a URL that can be misread: from ``redis://site:20/24@host/0`` urllib gets the
host ``site``, the port 20 and the path ``/24@host/0``. So a URL that is not exactly of the form below is refused, and
no error quotes it. In a URL that is accepted, everything before the last ``@`` is credentials.

    redis://[user:password@]host[:port][/database][?option=value&…]     rediss:// is the same with TLS
    unix://[user:password@]/path/of/the.socket[?option=value&…]
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qsl, unquote

SCHEMES: Final = ("redis", "rediss", "unix")
QUOTE: Final = "In a user name, a password or an option write / as %2F, # as %23, ? as %3F, @ as %40 and % as %25."

_TCP: Final = re.compile(
    r"(?P<scheme>rediss?)://(?:(?P<login>[^/?#]*)@)?(?P<host>\[[0-9A-Fa-f:.]+(?:%[\w.-]+)?\]|[\w.-]*)"
    r"(?::(?P<port>[0-9]{1,5}))?(?:/(?P<database>[0-9]*)/?)?(?:\?(?P<query>[^#@]*))?"
)
_UNIX: Final = re.compile(r"(?P<scheme>unix)://(?:(?P<login>[^/?#]*)@)?(?P<path>/[^?#@]+)(?:\?(?P<query>[^#@]*))?")
_OPTION: Final = re.compile(r"[a-z_]+=.*")
SHORTEST_SECRET: Final = 3
"""Characters; anything shorter is found in any text."""
_WORD: Final = re.compile(r"[^\s:/?#@&=%,'\"]+")


class AddressError(ValueError):
    """The text is not the URL of a Redis server; the message says why and never quotes it."""


def _truth(value: str) -> bool:
    return value.upper() not in {"", "0", "F", "FALSE", "N", "NO"}


def _requirement(value: str) -> str:
    if value not in {"none", "optional", "required"}:
        raise ValueError
    return value


def _number(value: str) -> int:
    if not (value.isascii() and value.isdigit()):
        raise ValueError
    return int(value)


def _some(value: str) -> int:
    if not (number := _number(value)):
        raise ValueError
    return number


def _version(value: str) -> ssl.TLSVersion:
    return ssl.TLSVersion(_number(value))


_USED: Final[dict[str, Callable[[str], Any]]] = {
    "db": _number,
    "username": str,
    "password": str,
    "client_name": str,
    "max_connections": _some,
}
_USED_WITH_TLS: Final[dict[str, Callable[[str], Any]]] = {
    "ssl_keyfile": str,
    "ssl_certfile": str,
    "ssl_password": str,
    "ssl_cert_reqs": _requirement,
    "ssl_ca_certs": str,
    "ssl_ca_path": str,
    "ssl_ca_data": str,
    "ssl_check_hostname": _truth,
    "ssl_min_version": _version,
    "ssl_ciphers": str,
}
"""Options of a URL and how each is parsed. All others would change what the app relies on, such as time-outs, retries
and the type of replies, or do not exist: they are left out, and a system check names them."""


class Address(NamedTuple):
    """
    A Redis server, and how to connect to it.

    Attributes:
        scheme: One of ``SCHEMES``.
        options: Keyword arguments of redis-py's connections and pools.
        unused: Names of options in the URL that are not used.

    """

    scheme: str
    options: dict[str, Any]
    unused: tuple[str, ...]

    def __str__(self) -> str:
        """Return it for display, without credentials."""
        login = "***@" if {"username", "password"} & self.options.keys() else ""
        if self.scheme == "unix":
            return f"unix://{login}{self.options['path']}"
        host = self.options["host"]
        database = f"/{self.options['db']}" if "db" in self.options else ""
        return f"{self.scheme}://{login}{f'[{host}]' if ':' in host else host}:{self.options['port']}{database}"

    def __repr__(self) -> str:
        return f"<{self}>"


def read(url: Any) -> Address:
    """
    Read the URL of a Redis.

    Raises:
        AddressError: It is none.

    """
    if not isinstance(url, str):
        raise AddressError("it is not a text")
    if not url.startswith(tuple(f"{scheme}://" for scheme in SCHEMES)):
        raise AddressError("it does not begin with redis://, rediss:// or unix://")
    if (parts := (_UNIX if url.startswith("unix") else _TCP).fullmatch(url)) is None:
        raise AddressError(f"it is not of the form {_form(url)}, or has a character that must be quoted")
    options: dict[str, Any] = {}
    user, _, password = (parts["login"] or "").partition(":")
    options |= {name: unquote(text) for name, text in (("username", user), ("password", password)) if text}
    if parts["scheme"] == "unix":
        options["path"] = unquote(parts["path"])
    else:
        if not parts["host"] and (parts["login"] is not None or parts["port"]):
            raise AddressError("it has no host")
        options["host"] = parts["host"].strip("[]") or "localhost"
        options["port"] = int(parts["port"] or 6379)
        if not 0 < options["port"] < 65536:
            raise AddressError("there is no port of this number")
        if parts["database"]:
            options["db"] = int(parts["database"])
    more, unused = _options(parts["query"] or "", parts["scheme"])
    return Address(parts["scheme"], options | more, unused)


def shown(url: Any) -> str:
    """Return a URL for display. Nothing of one that cannot be parsed is shown, for any part of it may be secret."""
    try:
        return str(read(url))
    except AddressError:
        return "an address that cannot be read"


def secrets(url: Any) -> set[str]:
    """Return all words of a URL that may be part of credentials, which host and port are not."""
    if not isinstance(url, str):
        return set()
    try:
        options = read(url).options
    except AddressError:
        texts = [url.partition("://")[2] or url]  # any part of it may be
    else:
        texts = [str(options[name]) for name in ("username", "password", "ssl_password") if name in options]
        texts.append(url.partition("://")[2].rpartition("@")[0])
    words = {word for text in texts for word in (text.strip(":"), *_WORD.findall(text))}
    return {word for word in words | {unquote(word) for word in words} if len(word) >= SHORTEST_SECRET}


def _form(url: str) -> str:
    return "unix://user:password@/path" if url.startswith("unix") else "redis://user:password@host:6379/0"


def _options(query: str, scheme: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    options: dict[str, Any] = {}
    unused = []
    if query and not all(_OPTION.fullmatch(part) for part in query.split("&")):
        raise AddressError("what follows the question mark is not option=value&option=value")
    for name, text in parse_qsl(query):
        reader = _USED.get(name) or (_USED_WITH_TLS.get(name) if scheme == "rediss" else None)
        if reader is None:
            unused.append(name)
            continue
        try:
            options[name] = reader(text)
        except ValueError:
            raise AddressError(f"its option {name!r} has a value that cannot be read") from None
    return options, tuple(unused)
