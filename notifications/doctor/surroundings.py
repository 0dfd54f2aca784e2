"""What can be examined without a connection: versions and settings."""

from __future__ import annotations

import platform
from importlib import metadata
from typing import Any, Final

from django.core import checks
from django.urls import get_script_prefix

from ..conf import settings
from ..mount import stream_path
from .findings import Finding, Level

PACKAGES: Final = ("django", "channels", "channels-redis", "redis", "hiredis", "msgspec", "daphne", "uvicorn")
LONGEST_HEARTBEAT: Final = 60.0
"""Seconds after which nginx and the load balancers of AWS cut an idle connection by default."""
SMALLEST_CAPACITY: Final = 100
"""Messages that should fit into a channel: the burst of one read."""


def examine_versions() -> list[Finding]:
    versions = [f"Python {platform.python_version()}"]
    for package in PACKAGES:
        try:
            versions.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            continue
    return [Finding("versions", Level.OK, ", ".join(versions))]


def examine_settings() -> list[Finding]:
    """Run the system checks of this app, which also import every function that the settings name."""
    found = [
        Finding(
            "settings",
            Level.ERROR if message.is_serious() else Level.WARNING,
            f"{message.msg} ({message.id})",
            message.hint or "",
        )
        for message in checks.run_checks(tags=["notifications"])
        if not message.is_silenced() and message.level >= checks.WARNING  # the road says the rest
    ]
    if not any(finding.level is Level.ERROR for finding in found):
        if settings.HEARTBEAT_INTERVAL >= LONGEST_HEARTBEAT:
            found.append(
                Finding(
                    "settings",
                    Level.WARNING,
                    f"HEARTBEAT_INTERVAL is {settings.HEARTBEAT_INTERVAL:g} s: proxies cut what is idle for 60.",
                    "Set it to 30, or raise the time-outs of your proxies above it.",
                )
            )
        kinds = ", ".join(settings.kinds)
        found.append(Finding("settings", Level.OK, f"topics: {kinds}; prefix {settings.PREFIX!r}"))
    return found


def stream_paths() -> tuple[str, str] | None:
    """
    Return the path of the HTTP stream, and the same without the script prefix; None if the site has not mounted it.

    What else may be wrong with the site's URLs is up to Django's own checks.
    """
    try:
        found = stream_path()
    except Exception:  # noqa: BLE001  the URLs are the site's modules
        return None
    return None if found is None else (found, found.removeprefix(get_script_prefix()))


def describe_layer(layer: Any) -> list[Finding]:
    """Return findings about the class and capacity of the layer."""
    if not getattr(layer, "extensions", None) or "groups" not in layer.extensions:
        return [Finding("layer", Level.ERROR, f"{name_of(layer)} has no groups", "Take a layer that has.")]
    if type(layer).__name__ == "InMemoryChannelLayer":
        return [
            Finding(
                "layer",
                Level.ERROR,
                "the in-memory layer exists in one process only: nothing that a listener forwards arrives anywhere",
                "Use notifications.layers.RedisPubSubLayer, or channels_redis.pubsub.RedisPubSubChannelLayer.",
            )
        ]
    capacity = getattr(layer, "capacity", None)
    if type(layer).__module__ == "channels_redis.core":
        return [
            Finding(
                "layer",
                Level.WARNING,
                f"{name_of(layer)} drops messages silently above {capacity}, which all sockets of a process share",
                "Use notifications.layers.RedisPubSubLayer, or channels_redis.pubsub.RedisPubSubChannelLayer.",
            )
        ]
    if isinstance(capacity, int) and capacity < SMALLEST_CAPACITY:
        return [
            Finding(
                "layer",
                Level.WARNING,
                f"only {capacity} messages may wait for a socket; a burst is then read from the history instead",
                "Leave capacity out of CHANNEL_LAYERS.",
            )
        ]
    return []


def name_of(layer: Any) -> str:
    return f"{type(layer).__module__}.{type(layer).__qualname__}"
