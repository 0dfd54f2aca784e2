"""System checks: what is wrong with the settings, found before anything runs. None connects to anything."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from typing import Any, Final

from django.apps.config import AppConfig
from django.conf import settings as django_settings
from django.core import checks
from django.core.checks import CheckMessage, Error, Tags, register
from django.utils.module_loading import import_string

from . import address
from .broker import embedded
from .conf import find_problems, load
from .logs import describe
from .mount import stream_path

OWN_LAYER: Final = "notifications.layers.RedisPubSubLayer"
CORE_LAYER: Final = "channels_redis.core.RedisChannelLayer"
REDIS_LAYERS: Final = {OWN_LAYER, CORE_LAYER, "channels_redis.pubsub.RedisPubSubChannelLayer"}
DECODES: Final = "has an entry with decode_responses, with which this layer receives nothing"
MEMORY_LAYER: Final = "channels.layers.InMemoryChannelLayer"
FIRST_SAFE_DAPHNE: Final = (4, 2, 3)
FIRST_REDIS_WITH_READ_TIMEOUT: Final = 8
TENANT_PACKAGES: Final = frozenset(
    {"django_tenants", "tenant_schemas", "tenant_schemas_celery", "django_pgschemas", "tenant_users"}
)
"""Packages that give each tenant of a site its own tables, and so the same primary keys."""
OUR_NAME: Final = "django-realtime-notifications"
"""The distribution that contains the package ``notifications``; others contain one of the same name."""


OPENED_BY_GRANTS = {"user", "job"}
"""Kinds that need no ``AUTHORIZE``: a user's own topic is theirs, and the tag that shows a job signs a grant."""


@register("notifications")
def check_settings(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    raw = getattr(django_settings, "NOTIFICATIONS", {})
    problems = [
        Error(problem.message, hint=problem.hint, id=f"notifications.{problem.id}") for problem in find_problems(raw)
    ]
    return [*problems, *_check_callables(raw)] if not problems else list(problems)


def _check_callables(raw: Any) -> list[CheckMessage]:
    settings = load(raw)
    found: list[CheckMessage] = []
    wanted: dict[str, object] = {"AUTHENTICATE_TOKEN": settings.AUTHENTICATE_TOKEN}
    wanted |= {"TENANT": settings.TENANT, "TENANT_CONTEXT": settings.TENANT_CONTEXT}
    for name, kind in settings.kinds.items():
        wanted[f"TOPICS[{name!r}]['AUTHORIZE']"] = kind.AUTHORIZE
        wanted[f"TOPICS[{name!r}]['AUTHORIZE_MANY']"] = kind.AUTHORIZE_MANY
        wanted[f"TOPICS[{name!r}]['CLEAN_ID']"] = kind.CLEAN_ID
        wanted[f"TOPICS[{name!r}]['JOIN']"] = kind.JOIN
        if isinstance(kind.JOIN, list | tuple) and all(isinstance(id_, str) for id_ in kind.JOIN):
            del wanted[f"TOPICS[{name!r}]['JOIN']"]  # ids for all users
        closed = kind.AUTHORIZE is kind.AUTHORIZE_MANY is kind.JOIN is None and not kind.PUBLIC
        if closed and name in raw.get("TOPICS", {}) and name not in OPENED_BY_GRANTS:
            found.append(
                checks.Warning(
                    f"Nobody may subscribe to topics of kind {name!r}: it has no AUTHORIZE.",
                    hint=f"Set NOTIFICATIONS['TOPICS'][{name!r}]['AUTHORIZE'] to a function (user, id) -> bool, or "
                    "PUBLIC to True if any authenticated user may; or silence this check if pages only use grants.",
                    id="notifications.W001",
                )
            )
    if settings.GUESTS and not any(kind.PUBLIC for kind in settings.kinds.values()):
        found.append(
            checks.Warning(
                "GUESTS is on, but there is nothing for guests to read: no kind is PUBLIC.",
                hint='Add "site": {} to TOPICS for publish_to_all, set PUBLIC of a kind, or leave GUESTS out.',
                id="notifications.W009",
            )
        )
    for key, value in wanted.items():
        try:
            target = import_string(value) if isinstance(value, str) else value
        except Exception as error:  # noqa: BLE001  the site's module may raise anything
            found.append(
                Error(
                    f"NOTIFICATIONS: {key} cannot be imported: {describe(error, named=True)}",
                    hint="It is the dotted path of a function.",
                    id="notifications.E010",
                )
            )
            continue
        optional = key != "AUTHENTICATE_TOKEN"
        if not callable(target) and not (optional and target is None):
            found.append(
                Error(
                    f"NOTIFICATIONS: {key} is not a function.",
                    hint="Give a function or its dotted path.",
                    id="notifications.E011",
                )
            )
    return found


@register("notifications")
def check_redis_urls(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    raw = getattr(django_settings, "NOTIFICATIONS", {})
    urls = {"NOTIFICATIONS['REDIS_URL']": raw.get("REDIS_URL")} if isinstance(raw, Mapping) else {}
    backend, config = _default_layer()
    where, hosts = "CHANNEL_LAYERS['default']['CONFIG']['hosts']", (config or {}).get("hosts") or []
    problems = _problems_of_hosts(hosts, backend == OWN_LAYER) if backend in REDIS_LAYERS else []
    if backend == OWN_LAYER and not problems and hosts:
        urls[where] = _url_of(hosts[0])
    found: list[CheckMessage] = [
        Error(f"{where} {problem}.", hint=f"Write [REDIS_URL]. {address.QUOTE}", id="notifications.E015")
        for problem in problems
    ]
    if address.EMBEDDED in urls.values():
        found += _check_embedded()
    for where, url in urls.items():
        with suppress(address.AddressError):
            if unused := address.read(url).unused:
                found.append(
                    checks.Warning(
                        f"{where} has options that are not used: {', '.join(sorted(set(unused)))}.",
                        hint="Leave them out of this URL: time-outs, retries and the protocol are the app's own; "
                        "options that begin with ssl_ need rediss://.",
                        id="notifications.W007",
                    )
                )
    return found


def _check_embedded() -> list[CheckMessage]:
    found: list[CheckMessage] = []
    if not embedded.is_allowed():
        found.append(
            Error(
                "An embedded Redis is for development, and DEBUG is off.",
                hint="Set REDIS_URL to the address of a Redis server that all processes of the site reach.",
                id="notifications.E023",
            )
        )
    if embedded.find_server() is None:
        found.append(Error("There is no Redis to embed.", hint=embedded.HINT, id="notifications.E024"))
    return found


def _problems_of_hosts(hosts: Any, only_one: bool) -> list[str]:
    if isinstance(hosts, str | bytes) or not isinstance(hosts, Sequence):
        return ["is not a list"]
    problems = ["has several hosts, and this layer takes one"] if only_one and len(hosts) > 1 else []
    if any(isinstance(host, Mapping) and "sentinels" in host and "master_name" not in host for host in hosts):
        problems.append("has an entry with sentinels and no master_name")
    if not only_one and any(isinstance(host, Mapping) and host.get("decode_responses") for host in hosts):
        problems.append(DECODES)
    for url in filter(None, map(_url_of, hosts)):
        try:
            found = address.read(url)
        except address.AddressError as error:
            problems.append(f"has an entry that is not the URL of a Redis server: {error}")
        else:
            if not only_one and found.sort is not address.Sort.SERVER:
                problems.append(f"names {found.sort.value}, which only {OWN_LAYER} understands")
            if not only_one and "decode_responses" in found.unused:
                problems.append(DECODES)
    return problems


def _default_layer() -> tuple[Any, Mapping[str, Any] | None]:
    """Return backend and options of the default channel layer, or None for those that Channels cannot read."""
    layers = getattr(django_settings, "CHANNEL_LAYERS", None)
    default = layers.get("default") if isinstance(layers, Mapping) else None
    if not isinstance(default, Mapping):
        return None, None
    config = default.get("CONFIG", {})
    return default.get("BACKEND"), config if isinstance(config, Mapping) else None


def _url_of(host: Any) -> Any:
    """Return the URL of an entry in ``hosts``, or None for a pair or a dict without one."""
    if isinstance(host, Mapping):
        return host.get("address")
    return None if isinstance(host, tuple | list) else host


@register("notifications")
def check_channel_layer(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    backend, config = _default_layer()
    if config is None:
        return [
            Error(
                "CHANNEL_LAYERS has no 'default' layer, or its CONFIG is not a dict.",
                hint='Set it to {"BACKEND": "notifications.layers.RedisPubSubLayer"}: sockets join their groups on it.',
                id="notifications.E012",
            )
        ]
    if backend == MEMORY_LAYER:
        return [
            checks.Warning(
                "The in-memory channel layer cannot carry what run_listener forwards: it exists in one process only.",
                hint="Use notifications.layers.RedisPubSubLayer, or channels_redis.pubsub.RedisPubSubChannelLayer.",
                id="notifications.W002",
            )
        ]
    if backend != CORE_LAYER:
        return []
    found: list[CheckMessage] = [
        checks.Warning(
            "channels_redis.core drops messages silently above its capacity, which all sockets of a process share.",
            hint="Use notifications.layers.RedisPubSubLayer, or channels_redis.pubsub.RedisPubSubChannelLayer.",
            id="notifications.W003",
        )
    ]
    hosts = config.get("hosts")
    if _version("redis")[:1] >= (FIRST_REDIS_WITH_READ_TIMEOUT,) and not all(
        isinstance(host, dict) and "socket_timeout" in host
        for host in (hosts if hosts and isinstance(hosts, Sequence) else [None])
    ):
        found.append(
            Error(
                "channels_redis.core breaks with redis-py 8: its reads block for 5 seconds, its default time-out.",
                hint='Write each host as {"address": "redis://…", "socket_timeout": 15}.',
                id="notifications.E013",
            )
        )
    return found


@register("notifications")
def check_metrics(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    raw = getattr(django_settings, "NOTIFICATIONS", {})
    if find_problems(raw) or not load(raw).METRICS_TOKEN or _version("prometheus-client"):
        return []
    return [
        checks.Warning(
            "NOTIFICATIONS has a METRICS_TOKEN, but there are no metrics: prometheus-client is not installed.",
            hint='Install "django-realtime-notifications[metrics]".',
            id="notifications.W006",
        )
    ]


@register("notifications")
def check_daphne(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    installed = _version("daphne")
    if not installed or installed >= FIRST_SAFE_DAPHNE:
        return []
    return [
        checks.Warning(
            "This version of Daphne has known vulnerabilities (CVE-2026-44545, CVE-2026-44546).",
            hint="Install daphne>=4.2.3.",
            id="notifications.W004",
        )
    ]


@cache  # it asks every installed distribution
def _owners(path: tuple[str, ...]) -> list[str]:
    """Name the distributions on a search path that have a package of our name."""
    return [each.metadata["Name"] for each in metadata.distributions() if _has_our_package(each) and _is_whole(each)]


def _is_whole(distribution: metadata.Distribution) -> bool:
    """Return whether it has a name; what an interrupted installation leaves has none."""
    return "\nName:" in (distribution.read_text("METADATA") or distribution.read_text("PKG-INFO") or "")


def _has_our_package(distribution: metadata.Distribution) -> bool:
    """Answer as ``metadata.packages_distributions`` does, which takes a tenth of a second of each command."""
    if top_level := (distribution.read_text("top_level.txt") or "").split():
        return "notifications" in top_level
    return bool(re.search(r"^notifications(/|\.py,)", distribution.read_text("RECORD") or "", re.MULTILINE))


@register("notifications")
def check_package(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """Report another project with a package of the same name: pip writes the files of both into one folder."""
    others = sorted({name for name in _owners(tuple(sys.path)) if re.sub(r"[-_.]+", "-", name).lower() != OUR_NAME})
    if not others:
        return []
    return [
        Error(
            f"The package 'notifications' also belongs to {', '.join(others)}, which is installed here, too.",
            hint="Only one of them works in an environment, and the one installed last may have overwritten the "
            f"other. Uninstall {' and '.join(others)}, and install {OUR_NAME} anew.",
            id="notifications.E016",
        )
    ]


@register("notifications", Tags.security)
def check_tenants(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    raw = getattr(django_settings, "NOTIFICATIONS", {})
    apps = {str(app).partition(".")[0] for app in django_settings.INSTALLED_APPS}
    packages = sorted(name for name in TENANT_PACKAGES if name in apps or _is_importable(name))
    if not packages or find_problems(raw) or load(raw).TENANT is not None:
        return []
    return [
        checks.Warning(
            f"This site has {', '.join(packages)}, but NOTIFICATIONS has no TENANT: users with the same primary key "
            "in two tenants share a topic, and messages cross.",
            hint="Set TENANT to a function () -> str that names the current tenant; docs/how-to/tenants.md. Silence "
            "this check if no two users have the same primary key.",
            id="notifications.W008",
        )
    ]


def _is_importable(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ValueError:  # it was imported in an unusual way
        return True


@register("notifications", Tags.security)
def check_hosts(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    if django_settings.DEBUG or "*" not in django_settings.ALLOWED_HOSTS:
        return []
    return [
        checks.Warning(
            "ALLOWED_HOSTS is ['*']: the origin rule of WebSockets trusts any host that a request names.",
            hint="List the hosts of the site in ALLOWED_HOSTS.",
            id="notifications.W005",
        )
    ]


@register("notifications", Tags.urls, deploy=True)
def check_stream(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    if not getattr(django_settings, "ROOT_URLCONF", None):
        return []  # a process without pages
    try:
        mounted = stream_path() is not None
    except Exception:  # noqa: BLE001  Django's own check reports what the site's URLs raise
        return []
    if mounted:
        return []
    return [
        checks.Info(
            "The URLs of this site do not include notifications.urls: where a WebSocket is blocked, a page receives "
            "nothing.",
            hint='Add path("notifications/", include("notifications.urls")), or silence this check if that is meant.',
            id="notifications.I001",
        )
    ]


def _version(package: str) -> tuple[int, ...]:
    try:
        text = metadata.version(package)
    except metadata.PackageNotFoundError:
        return ()
    return tuple(int(part) for part in (text or "").split(".")[:3] if part.isdigit())
