"""
The settings of this app: one dict, ``NOTIFICATIONS``, read late.

``conf.settings.REDIS_URL`` is the current value, also under ``override_settings``. Every key is described
under its field below; ``checks.py`` reports what is wrong with the dict before anything runs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache, cached_property
from typing import Any, Final, NamedTuple, cast

from django.conf import settings as django_settings
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed
from django.utils.module_loading import import_string

from . import address
from .logs import describe

KIND_PATTERN: Final = re.compile(r"[a-z][a-z0-9_]{0,14}")
PREFIX_PATTERN: Final = re.compile(r"([a-z][a-z0-9_]{0,14}:)?")
MAY_BE_NONE: Final = frozenset(
    {
        "HISTORY_SIZE",
        "REAUTHORIZE_INTERVAL",
        "MAX_CONNECTIONS_PER_USER",
        "MAX_CONNECTIONS_PER_ADDRESS",
        "MAX_UNAUTHENTICATED",
        "MAX_GUESTS",
    }
)
"""Numbers that may be 0, for none."""
MAX_SHARDS: Final = 64
RESERVED_KIND: Final = "notifications"
"""The app's own keys and channels begin with ``<PREFIX>notifications:``."""
OWN_DEFAULTS: Final[Mapping[str, Mapping[str, Any]]] = {"upload": {"STATE": True}, "job": {"STATE": True}}
"""Kinds whose options have different defaults."""
EVERYBODY: Final = ("site", "all")
"""Kind and id of the topic of ``publish_to_all``."""
FOR_EVERYBODY: Final[Mapping[str, Any]] = {"PUBLIC": True, "JOIN": (EVERYBODY[1],)}
"""Defaults of that kind. As soon as a site sets one of the options that say who may read it, all of them are the
site's: a topic that was not everybody's must not become so."""
WHO_MAY_READ: Final = ("AUTHORIZE", "AUTHORIZE_MANY", "PUBLIC", "JOIN")


class Problem(NamedTuple):
    """One thing that is wrong with the settings, as a system check reports it."""

    id: str
    message: str
    hint: str


@dataclass(frozen=True, kw_only=True)
class Kind:
    """The options of one kind of topic in ``TOPICS``."""

    AUTHORIZE: str | Callable[..., Any] | None = None
    """``(user, id) -> bool``, sync or async, or its dotted path: may this user read this topic?
    Without it only a grant that the server signed opens a topic of this kind."""

    AUTHORIZE_MANY: str | Callable[..., Any] | None = None
    """``(pairs) -> list[bool]``, sync or async, or its dotted path, in place of ``AUTHORIZE``: each pair is
    ``(user, id)``, and the answers are in the order of the pairs. It is asked about up to 500 pairs at once, those of
    all sockets that ask in the same moment."""

    CLEAN_ID: str | Callable[[str], str] | None = None
    """``(id) -> id``, or its dotted path: returns the canonical spelling of an id (``str.lower`` for UUIDs).
    It is applied to what is published, to raw channels and to what browsers subscribe to, and must be
    idempotent. It refuses an id by raising ``ValueError``."""

    HISTORY_SIZE: int = 100
    """Messages kept for browsers that come back; the oldest are dropped first. 0 keeps none: no ids, no
    recovery, each message at most once. Default: the site's ``HISTORY_SIZE``."""

    HISTORY_TTL: int = 3600
    """Seconds after its last message at which a history expires. Default: the site's ``HISTORY_TTL``."""

    STATE: bool = False
    """The latest message is the complete state, such as progress: a client that subscribes without a position, or
    after a gap, receives it first, and one that has fallen behind receives it instead of all that it missed. Default:
    true for ``upload`` and ``job``."""

    PUBLIC: bool = False
    """Any authenticated user may subscribe, and with ``GUESTS`` any visitor; ``AUTHORIZE`` is not called."""

    JOIN: str | Callable[..., Any] | Sequence[str] | None = None
    """``(user) -> ids``, sync or async, or its dotted path: the topics of this kind that each connection of the user
    has without asking for them. Asked again with ``REAUTHORIZE_INTERVAL``. Or a list of ids, for all users."""

    @cached_property
    def authorize(self) -> Callable[..., Any] | None:
        return _load(self.AUTHORIZE)

    @cached_property
    def authorize_many(self) -> Callable[..., Any] | None:
        return _load(self.AUTHORIZE_MANY)

    @cached_property
    def join(self) -> Callable[..., Any] | None:
        return None if isinstance(self.JOIN, list | tuple) else _load(self.JOIN)  # type: ignore[arg-type]  # no others

    @cached_property
    def joined_by_all(self) -> tuple[str, ...]:
        """The ids, where ``JOIN`` is a list of them."""
        return tuple(self.JOIN) if isinstance(self.JOIN, list | tuple) else ()

    @cached_property
    def clean_id(self) -> Callable[[str], str] | None:
        return _load(self.CLEAN_ID)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The dict ``NOTIFICATIONS``, with defaults."""

    REDIS_URL: str = ""
    """Where messages are published: ``redis://``, ``rediss://`` (TLS), ``unix://``, ``redis+sentinel://``,
    ``redis+cluster://``, or ``embedded``, a server of the checkout's own for development. Required."""

    SHARDS: int = 1
    """Into how many shards the topics are divided: a power of two, up to 64. Listeners divide the shards among them,
    and so the work; on a cluster each shard is on one of its nodes. All processes of a site must agree."""

    DEV_LISTENER: bool | None = None
    """Whether ``manage.py runserver`` runs a listener beside itself while ``DEBUG`` is on. None: with ``embedded``."""

    TOPICS: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: {kind: {} for kind in OWN_DEFAULTS})
    """Kinds of topics besides ``user``, each with the options of ``Kind``. ``user`` may be listed to set
    its options. Default: ``upload`` and ``job``, which nobody may read until they have an ``AUTHORIZE``."""

    PREFIX: str = ""
    """Prefix of every channel, key and group, such as ``"shop:"``. Two sites on one Redis server need one,
    because Redis pub/sub ignores database numbers."""

    TENANT: str | Callable[[], str] | None = None
    """``() -> str``, or its dotted path: the tenant of the current request, socket or task. Called where a topic is
    named. Only for sites where one primary key may be several users. Default: there are no tenants."""

    TENANT_CONTEXT: str | Callable[[str], Any] | None = None
    """``(tenant) -> context manager``, or its dotted path, such as ``django_tenants.utils.schema_context``: entered in
    the threads in which sockets are authenticated, authorized and checked. Not needed where ``TENANT`` and the database
    router read a context variable."""

    AUTHENTICATE_TOKEN: str | Callable[..., Any] = "notifications.tokens.check_token"  # noqa: S105
    """``(token) -> user | None``, sync or async, or its dotted path: whose token is this?"""

    AUTH_TIMEOUT: float = 5.0
    """Seconds that a socket without a session has to send its auth frame, and that checking it may take."""

    TOKEN_MAX_AGE: int = 300
    """Seconds that tokens stay valid. They are for connecting, not for keeping: a page fetches
    a new one each time it connects."""

    GRANT_MAX_AGE: int = 43_200
    """Seconds that grants stay valid, unless they are revoked: as long as a page may be open. A page
    shows its grants each time it connects, over HTTP every few minutes. By default half a day."""

    HEARTBEAT_INTERVAL: float = 30.0
    """Seconds between two pings to a browser. 30 is below the 60 s after which nginx and AWS load
    balancers cut an idle connection by default. A browser that has sent nothing for two intervals
    is considered gone."""

    REAUTHORIZE_INTERVAL: float = 300.0
    """Seconds within which ``AUTHORIZE`` is called again for what a socket is subscribed to: by then a withdrawn
    permission has ended the subscription. One call for each user and topic of a process, a few at once, or of
    ``AUTHORIZE_MANY`` for 500 of them. 0: never.
    ``JOIN`` is called again as well, once for each user and kind."""

    MAX_CONNECTIONS_PER_USER: int = 100
    """Sockets that one user may have in one web process; 0 for any number. Nobody opens that many tabs, but a page
    that forgets to close its sockets soon has more."""

    MAX_CONNECTIONS_PER_ADDRESS: int = 0
    """Sockets that one address may have in one web process, an IPv6 network of 64 bits being one; 0 for any number.
    Behind a proxy all sockets have the proxy's address, unless the web server is told to trust what it forwards."""

    MAX_UNAUTHENTICATED: int = 2000
    """Sockets of one web process that have not authenticated yet, half of them from one address; 0 for any number.
    Each has ``AUTH_TIMEOUT`` to do so and takes about 30 KiB. When there is no room, the oldest are closed first.
    Sockets with a session are not counted."""

    GUESTS: bool = False
    """Whether visitors who have not logged in may connect. They may read the topics of ``PUBLIC`` kinds, and nothing
    else."""

    MAX_GUESTS: int = 1000
    """Sockets of such visitors in one web process; 0 for any number. What is beyond is told to come back."""

    MAX_SUBSCRIPTIONS: int = 100
    """Topics that one socket may have besides its user's own. A page may want more: its client then requests the rest
    when it has left some. Each costs a call of ``AUTHORIZE``, and a place in a group of the channel layer."""

    HISTORY_SIZE: int = 100
    """Messages kept of each topic: enough for a tab whose train is in a tunnel. A message of 200 bytes
    takes 320 to 420 bytes of Redis memory, a topic with one message 4.4 KB (measured)."""

    HISTORY_TTL: int = 3600
    """Seconds after its last message at which a topic's history expires."""

    MAX_MESSAGE_SIZE: int = 65536
    """Maximum size of one published message, in bytes. Anything larger is a document: publish a link to it."""

    INLET_SIZE: int = 100_000
    """Entries that may wait in the inlet, to which other programs append what must not be lost though no listener runs.
    A listener drops the oldest beyond that. One with a message of 200 bytes takes 225 bytes of Redis memory."""

    PROGRESS_RATE: float = 4.0
    """Messages a second in which a job tells its progress, besides its first and its last. More is more than the eye
    needs, and each is kept in the history."""

    PROGRESS_STALE: float = 60.0
    """Seconds after which a running job that has told nothing is taken for dead: its process was killed, or Redis is
    away from it. One that is only slow tells its progress again three times in that time, though nothing changes."""

    METRICS_TOKEN: str = ""
    """What Prometheus has to send as ``Authorization: Bearer …`` to read the metrics of the web processes. Without
    it nobody can."""

    @cached_property
    def address(self) -> address.Address:
        """Where messages are published."""
        return address.read(self.REDIS_URL)

    @cached_property
    def is_divided(self) -> bool:
        """Whether the names of keys and channels say to which shard they belong."""
        return self.SHARDS > 1 or self.address.sort is address.Sort.CLUSTER

    @cached_property
    def kinds(self) -> Mapping[str, Kind]:
        """Every kind by its name."""
        defaults = {"HISTORY_SIZE": self.HISTORY_SIZE, "HISTORY_TTL": self.HISTORY_TTL}
        kinds: dict[str, Mapping[str, Any]] = {"user": {}, **self.TOPICS}
        return {
            name: Kind(**{**defaults, **_own_defaults(name, options), **options}) for name, options in kinds.items()
        }

    @cached_property
    def joining(self) -> tuple[str, ...]:
        """The kinds whose ``JOIN`` is asked for each user."""
        return tuple(name for name, kind in self.kinds.items() if kind.join is not None)

    @cached_property
    def joined_by_all(self) -> tuple[tuple[str, str], ...]:
        """Kind and id of each topic that every connection has."""
        return tuple((name, id_) for name, kind in self.kinds.items() for id_ in kind.joined_by_all)

    @cached_property
    def authenticate_token(self) -> Callable[..., Any]:
        return cast("Callable[..., Any]", _load(self.AUTHENTICATE_TOKEN))

    @cached_property
    def tenant(self) -> Callable[[], str] | None:
        return _load(self.TENANT)

    @cached_property
    def tenant_context(self) -> Callable[[str], Any] | None:
        return _load(self.TENANT_CONTEXT)


def _own_defaults(kind: str, options: Mapping[str, Any]) -> Mapping[str, Any]:
    if kind == EVERYBODY[0] and not any(name in options for name in WHO_MAY_READ):
        return FOR_EVERYBODY
    return OWN_DEFAULTS.get(kind, {})


def _load(value: str | Callable[..., Any] | None) -> Callable[..., Any] | None:
    if not isinstance(value, str):
        return value
    try:
        return cast("Callable[..., Any]", import_string(value))
    except Exception as error:  # the site's module may raise anything; a check names the setting
        text = f"NOTIFICATIONS names {value!r}, which cannot be imported: {describe(error, named=True)}"
        raise ImproperlyConfigured(text) from error


def find_problems(raw: Any) -> list[Problem]:
    """Return everything that is wrong with a ``NOTIFICATIONS`` dict, without importing or connecting to anything."""
    if not isinstance(raw, Mapping):
        return [Problem("E001", "NOTIFICATIONS is not a dict.", 'Set NOTIFICATIONS = {"REDIS_URL": "redis://…"}.')]
    known = {f.name: f for f in fields(Settings)}
    problems = [
        Problem("E002", f"NOTIFICATIONS has an unknown key {key!r}.", f"Known keys: {', '.join(known)}.")
        for key in raw
        if key not in known
    ]
    if not raw.get("REDIS_URL"):
        problems.append(
            Problem(
                "E003",
                "NOTIFICATIONS has no REDIS_URL.",
                'Add "REDIS_URL": "redis://127.0.0.1:6379/0", or the address of your Redis server; in development, '
                '"embedded" starts one.',
            )
        )
    elif problem := _problem_of_url(raw["REDIS_URL"]):
        problems.append(
            Problem(
                "E004",
                f"NOTIFICATIONS['REDIS_URL'] is not the URL of a Redis server: {problem}.",
                address.QUOTE,
            )
        )
    if not isinstance(prefix := raw.get("PREFIX", ""), str) or not PREFIX_PATTERN.fullmatch(prefix):
        problems.append(
            Problem(
                "E005",
                "NOTIFICATIONS['PREFIX'] is not valid.",
                'Up to 15 of a-z, 0-9 and "_", beginning with a letter, and a colon: "shop:".',
            )
        )
    if not isinstance(raw.get("METRICS_TOKEN", ""), str):
        problems.append(
            Problem("E014", "NOTIFICATIONS['METRICS_TOKEN'] is not a text.", "Set it to a long random text.")
        )
    problems += [
        Problem("E021", f"NOTIFICATIONS[{name!r}] is not valid.", f"Set {name} to True or False.")
        for name in ("GUESTS", "DEV_LISTENER")
        if not isinstance(raw.get(name, False), bool) and (name, raw[name]) != ("DEV_LISTENER", None)
    ]
    problems += _problems_of_numbers("NOTIFICATIONS", raw, Settings)
    if (shards := raw.get("SHARDS", 1)) not in [2**n for n in range(MAX_SHARDS.bit_length())]:
        problems.append(
            Problem("E022", f"NOTIFICATIONS['SHARDS'] is {shards!r}.", f"Set it to a power of two, up to {MAX_SHARDS}.")
        )
    problems += _problems_of_topics(raw.get("TOPICS", {}))
    return problems


def _problems_of_numbers(where: str, values: Mapping[Any, Any], of: type[Kind | Settings]) -> list[Problem]:
    problems = []
    for name, annotation in ((f.name, f.type) for f in fields(of) if f.type in ("int", "float")):
        value = values.get(name, 1)
        least = 0 if name in MAY_BE_NONE else 1
        sort = (int,) if annotation == "int" else (int, float)
        if isinstance(value, bool) or not isinstance(value, sort) or not (value >= least or 0 < value < 1 == least):
            wanted = "a whole number" if annotation == "int" else "a number"
            problems.append(
                Problem(
                    "E006",
                    f"{where}[{name!r}] is not valid.",
                    f"Set {name} to {wanted}{' above zero' if least else ', or 0 for none'}.",
                )
            )
    return problems


def _problem_of_url(url: Any) -> str:
    try:
        address.read(url)
    except address.AddressError as error:
        return str(error)
    return ""


def _problems_of_topics(topics: Any) -> list[Problem]:
    if not isinstance(topics, Mapping):
        return [Problem("E007", "NOTIFICATIONS['TOPICS'] is not a dict.", 'For example {"upload": {"AUTHORIZE": …}}.')]
    problems = []
    known = [f.name for f in fields(Kind)]
    for kind, options in topics.items():
        if not isinstance(kind, str) or not KIND_PATTERN.fullmatch(kind) or kind == RESERVED_KIND:
            problems.append(
                Problem(
                    "E008",
                    f"NOTIFICATIONS['TOPICS'] has an invalid kind {kind!r}.",
                    "A kind is up to 15 of a-z, 0-9 and '_', beginning with a letter, and not 'notifications'.",
                )
            )
        if not isinstance(options, Mapping) or not set(options) <= set(known):
            problems.append(
                Problem(
                    "E009",
                    f"NOTIFICATIONS['TOPICS'][{kind!r}] has unknown options.",
                    f"It is a dict; known options: {', '.join(known)}.",
                )
            )
        else:
            where = f"NOTIFICATIONS['TOPICS'][{kind!r}]"
            problems += _problems_of_numbers(where, options, Kind)
            problems += _problems_of_flags(where, kind, options)
    return problems


def _problems_of_flags(where: str, kind: Any, options: Mapping[str, Any]) -> list[Problem]:
    flags = [f.name for f in fields(Kind) if f.type == "bool"]
    problems = [
        Problem("E017", f"{where}[{name!r}] is not valid.", f"Set {name} to True or False.")
        for name in flags
        if not isinstance(options.get(name, False), bool)
    ]
    asked = [name for name in ("AUTHORIZE", "AUTHORIZE_MANY") if options.get(name) is not None]
    if options.get("PUBLIC") is True and asked:
        problems.append(
            Problem(
                "E019",
                f"{where} has PUBLIC and {asked[0]}.",
                f"Leave {asked[0]} out if any authenticated user may subscribe, otherwise PUBLIC.",
            )
        )
    elif len(asked) > 1:
        problems.append(
            Problem(
                "E020",
                f"{where} has AUTHORIZE and AUTHORIZE_MANY.",
                "Leave AUTHORIZE out: AUTHORIZE_MANY is asked for one pair as well.",
            )
        )
    if kind == "user":
        problems += [
            Problem(
                "E018",
                f"{where} has {name}, which a user's own topic cannot have.",
                "Publish on topics of another kind, and set it there.",
            )
            for name in flags
            if options.get(name) is True
        ]
    return problems


def load(raw: Any) -> Settings:
    """
    Create settings from a ``NOTIFICATIONS`` dict.

    Raises:
        ImproperlyConfigured: The dict has errors; the message lists all of them.

    """
    if problems := find_problems(raw):
        raise ImproperlyConfigured(" ".join(f"{problem.message} {problem.hint}" for problem in problems))
    return Settings(**raw)


@cache
def _current() -> Settings:
    return load(getattr(django_settings, "NOTIFICATIONS", {}))


class _LateSettings:
    """A proxy for the current ``Settings``, so that importing this module reads nothing."""

    def __getattr__(self, name: str) -> Any:
        return getattr(_current(), name)


settings = cast("Settings", _LateSettings())


def _forget(*, setting: str, **_: object) -> None:
    if setting == "NOTIFICATIONS":
        _current.cache_clear()


setting_changed.connect(_forget, dispatch_uid="notifications.conf")
