"""
The address of a site's Redis: its URL, parsed strictly, and shown without credentials.

A password that was not quoted makes a URL that can be misread: from ``redis://site:20/24@host/0`` urllib gets the
host ``site``, the port 20 and the path ``/24@host/0``. So a URL that is not exactly of the form below is refused, and
no error quotes it. In a URL that is accepted, everything before the last ``@`` is credentials.

    redis://[user:password@]host[:port][/database][?option=value&…]     rediss:// is the same with TLS
    unix://[user:password@]/path/of/the.socket[?option=value&…]
    redis+sentinel://[user:password@]host[:port][,host[:port]…]/service[/database][?option=value&…]
    redis+cluster://[user:password@]host[:port][,host[:port]…][?option=value&…]
    embedded

The hosts of a Sentinel URL are Sentinels, which name the primary of the service; user and password are for that one.
Those of a cluster are some of its nodes, which name the others. Both have a form with TLS, too, ``rediss+…``.
``embedded`` is a server of the checkout's own, for development.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable
from enum import Enum
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qsl, unquote

EMBEDDED: Final = "embedded"
SCHEMES: Final = ("redis", "rediss", "unix", EMBEDDED)
"""How a connection reaches its server: plainly, with TLS, by a Unix socket, or by one that it finds itself."""
QUOTE: Final = (
    "In a user name, a password or an option write / as %2F, # as %23, ? as %3F, & as %26, @ as %40 and % as %25."
)

_TCP: Final = re.compile(
    r"(?P<scheme>rediss?)://(?:(?P<login>[^/?#]*)@)?(?P<host>\[[0-9A-Fa-f:.]+(?:%[\w.-]+)?\]|[\w.-]*)"
    r"(?::(?P<port>[0-9]{1,5}))?(?:/(?P<database>[0-9]*)/?)?(?:\?(?P<query>[^#@]*))?"
)
_HOST: Final = r"(\[[0-9A-Fa-f:.]+(?:%[\w.-]+)?\]|[\w.-]+)(?::([0-9]{1,5}))?"
_SEVERAL: Final = re.compile(
    rf"(?P<scheme>rediss?)\+(?P<sort>sentinel|cluster)://(?:(?P<login>[^/?#]*)@)?(?P<hosts>{_HOST}(?:,{_HOST})*)"
    r"(?:/(?P<service>[\w.-]*))?(?:/(?P<database>[0-9]*)/?)?(?:\?(?P<query>[^#@]*))?"
)
_UNIX: Final = re.compile(r"(?P<scheme>unix)://(?:(?P<login>[^/?#]*)@)?(?P<path>/[^?#@]+)(?:\?(?P<query>[^#@]*))?")
_OPTION: Final = re.compile(r"[a-z_]+=.*")
_BEGINNINGS: Final = tuple(
    f"{scheme}{sort}://" for scheme in ("redis", "rediss") for sort in ("", "+sentinel", "+cluster")
)
_SENTINEL_PORT: Final = 26379
SHORTEST_SECRET: Final = 3
"""Characters; anything shorter is found in any text, and hidden only where it is a word, of a URL that is misread."""
_SECRET: Final = ("username", "password", "ssl_password", "sentinel_username", "sentinel_password")
_SECRET_OPTION: Final = re.compile(rf"[?&](?:{'|'.join(_SECRET)})=([^&]*)")
_WORD: Final = re.compile(r"[^\s:/?#@&=%+,'\"\[\]]+")


class AddressError(ValueError):
    """The text is not the URL of a Redis server; the message says why and never quotes it."""


def _truth(value: str) -> bool:
    return value.upper() not in {"0", "F", "FALSE", "N", "NO"}


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


def _name(value: str) -> str:
    if not re.fullmatch("[!-~]+", value):  # Redis takes no others
        raise ValueError
    return value


def _version(value: str) -> ssl.TLSVersion:
    return ssl.TLSVersion(_number(value))


_USED: Final[dict[str, Callable[[str], Any]]] = {
    "db": _number,
    "username": str,
    "password": str,
    "client_name": _name,
    "max_connections": _some,
}
_USED_BY_SENTINELS: Final[dict[str, Callable[[str], Any]]] = {"sentinel_username": str, "sentinel_password": str}
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
_KNOWN: Final = frozenset({*_USED, *_USED_BY_SENTINELS, *_USED_WITH_TLS}).union(
    ("socket_timeout", "socket_connect_timeout", "socket_read_size", "socket_keepalive", "timeout"),
    ("retry_on_timeout", "health_check_interval", "encoding", "encoding_errors", "decode_responses", "protocol"),
    ("ssl_validate_ocsp", "ssl_validate_ocsp_stapled", "ssl_ocsp_expected_cert"),
)
"""Options that redis-py knows. What follows a password and is none of them is a part of it: its & was not quoted."""


class Sort(Enum):
    """What a URL names."""

    SERVER = "a server"
    SENTINEL = "a service of Sentinels"
    CLUSTER = "a cluster"
    EMBEDDED = "a server of the checkout's own"


class Address(NamedTuple):
    """
    A site's Redis, and how to connect to it.

    Attributes:
        scheme: One of ``SCHEMES``.
        options: Keyword arguments of redis-py's connections and pools. Where ``hosts`` are to be asked first, those
            that are the same for every server. An embedded one's connections find its path themselves.
        unused: Names of options in the URL that are not used.
        sort: What it is.
        hosts: Hosts and ports of the Sentinels, or of some nodes of the cluster.
        service: The name that the Sentinels have for the primary.

    """

    scheme: str
    options: dict[str, Any]
    unused: tuple[str, ...]
    sort: Sort = Sort.SERVER
    hosts: tuple[tuple[str, int], ...] = ()
    service: str = ""

    def __str__(self) -> str:
        """Return it for display, without credentials."""
        if self.sort is Sort.EMBEDDED:
            return EMBEDDED
        login = "***@" if {"username", "password"} & self.options.keys() else ""
        if self.hosts:
            hosts = ",".join(f"{f'[{host}]' if ':' in host else host}:{port}" for host, port in self.hosts)
            parts = [self.service, str(self.options["db"])] if "db" in self.options else [self.service]
            rest = "".join(f"/{part}" for part in parts) if self.service else ""
            return f"{self.scheme}+{self.sort.name.lower()}://{login}{hosts}{rest}"
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
    if url == EMBEDDED:
        return Address(EMBEDDED, {"path": EMBEDDED}, (), Sort.EMBEDDED)
    try:
        url.encode()
        unquote(url, errors="strict")
    except UnicodeError:
        raise AddressError("it has a character that is not UTF-8") from None
    if not url.startswith((*_BEGINNINGS, "unix://")):
        raise AddressError("it does not begin with redis://, rediss://, redis+sentinel://, redis+cluster:// or unix://")
    if "+" in url.partition(":")[0]:
        return _read_several(url)
    if (parts := (_UNIX if url.startswith("unix") else _TCP).fullmatch(url)) is None:
        raise AddressError(f"it is not of the form {_form(url)}, or has a character that must be quoted")
    options = _credentials(parts["login"])
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


def _read_several(url: str) -> Address:
    """Read a URL with the hosts of Sentinels, or of a cluster."""
    if (parts := _SEVERAL.fullmatch(url)) is None:
        raise AddressError(f"it is not of the form {_form(url)}, or has a character that must be quoted")
    sort = Sort[parts["sort"].upper()]
    if sort is Sort.SENTINEL and not parts["service"]:
        raise AddressError("it does not say which service the Sentinels are to be asked for: …/mymaster")
    if sort is Sort.CLUSTER and (parts["service"] or parts["database"]):
        raise AddressError("a cluster has no services and no databases: nothing may follow its hosts")
    options = _credentials(parts["login"])
    if parts["database"]:
        options["db"] = int(parts["database"])
    hosts = []
    for host, port in re.findall(_HOST, parts["hosts"]):
        number = int(port or (_SENTINEL_PORT if sort is Sort.SENTINEL else 6379))
        if not 0 < number < 65536:
            raise AddressError("there is no port of this number")
        hosts.append((host.strip("[]"), number))
    more, unused = _options(parts["query"] or "", parts["scheme"], sort)
    if sort is Sort.CLUSTER and "db" in more:
        raise AddressError("a cluster has no databases")
    return Address(parts["scheme"], options | more, unused, sort, tuple(hosts), parts["service"] or "")


def _credentials(login: str | None) -> dict[str, Any]:
    user, _, password = (login or "").partition(":")
    return {name: unquote(text) for name, text in (("username", user), ("password", password)) if text}


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
    rest = url.partition("://")[2] or url
    login = rest.rpartition("@")[0]
    texts = {login.lstrip(":"), *login.partition(":"), *_SECRET_OPTION.findall(rest)}
    shortest = 1
    try:
        options = read(url).options
    except AddressError:
        texts.add(rest)  # any part of it may be
    else:
        texts |= {str(options[name]) for name in _SECRET if name in options}
        if not set("[]") & set(login):  # urllib takes them for an IPv6 address
            shortest = SHORTEST_SECRET
    words = texts.union(*map(_WORD.findall, texts))
    words |= {unquote(word) for word in words}
    return {form for word in words for form in (word, word.lower(), repr(word)[1:-1]) if len(form) >= shortest}


def hide(words: set[str], text: str) -> str:
    """Return a text without the secrets, in letters of any case: urllib writes hosts in small ones."""
    if not words:
        return text
    longest_first = sorted(words, key=len, reverse=True)
    parts = (
        re.escape(word) if len(word) >= SHORTEST_SECRET else rf"(?<!\w){re.escape(word)}(?!\w)"
        for word in longest_first
    )
    return re.sub("|".join(parts), "***", text, flags=re.IGNORECASE)


def _form(url: str) -> str:
    if "+sentinel" in url.partition(":")[0]:
        return "redis+sentinel://user:password@host:26379,host:26379/mymaster/0"
    if "+cluster" in url.partition(":")[0]:
        return "redis+cluster://user:password@host:6379,host:6379"
    return "unix://user:password@/path" if url.startswith("unix") else "redis://user:password@host:6379/0"


def _options(query: str, scheme: str, sort: Sort = Sort.SERVER) -> tuple[dict[str, Any], tuple[str, ...]]:
    options: dict[str, Any] = {}
    unused = []
    if query and not all(_OPTION.fullmatch(part) for part in query.split("&")):
        raise AddressError("what follows the question mark is not option=value&option=value")
    is_behind_secret = False
    for name, text in parse_qsl(query, keep_blank_values=True):
        reader = _USED.get(name) or (_USED_WITH_TLS.get(name) if scheme == "rediss" else None)
        reader = reader or (_USED_BY_SENTINELS.get(name) if sort is Sort.SENTINEL else None)
        if reader is None:
            if is_behind_secret and name not in _KNOWN:
                raise AddressError("after its password there is something that is no option")
            unused.append(name)
        elif text:
            try:
                options[name] = reader(text)
            except ValueError:
                raise AddressError(f"its option {name!r} has a value that cannot be read") from None
        is_behind_secret |= name in _SECRET
    if "ssl_keyfile" in options and "ssl_certfile" not in options:
        raise AddressError("its option 'ssl_keyfile' needs 'ssl_certfile'")
    return options, tuple(unused)
