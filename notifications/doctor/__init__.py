"""
Follow one message from ``publish_*`` to a socket, and report where its path is broken and what to do.

    settings ── redis ── rights ── publish ──▶ listeners, listener ──▶ forward ──▶ socket
                                                             layer ───────┴──▶ stream

The socket and the stream are opened in this process, on the site's own ASGI application and transport. What only the
real web processes have is not proven: their environment, session cookies and the database. If the address of the
running site is given, the doctor also checks whether the server and the proxies in front of it open a socket, how large
a frame they accept, and whether they answer over HTTP; and if a user is given, whether a message comes through by each
transport.
"""

from __future__ import annotations

from typing import Any, Final

from django.apps import apps
from django.core.exceptions import ImproperlyConfigured

from .. import tenants
from ..exceptions import TopicError
from ..logs import describe
from .findings import ROAD, Finding, Level, broken
from .permissions import examine_permissions
from .redis_server import examine_redis
from .road import Road
from .server import RunningSite, running_site
from .surroundings import examine_settings, examine_versions, stream_paths
from .through import follow

IN_A_TENANT: Final = (
    "Run this command in a tenant, as your package for tenants does, and give the tenant's address as --site; "
    "docs/how-to/tenants.md."
)
__all__ = ["ROAD", "Finding", "Level", "broken", "examine"]


async def examine(path: str | None = None, site: str | None = None, user: Any = None, idle: int = 0) -> list[Finding]:
    """
    Examine everything, in about a second; a broken road takes up to ten.

    Args:
        path: The path of the WebSocket; without it the one to which the site's pages connect.
        site: The address of the running site, to examine that, too; on a site with tenants, of the current one.
        user: An active user of the database, as whom a message is followed through the running site.
        idle: Seconds for which that user's connections are held, to see who cuts them off.

    Returns:
        One or more findings for each check, in the order in which a message passes them.

    """
    running = running_site(site, path, stream_paths())
    found = [*examine_versions(), *examine_settings()]
    found += [running] if isinstance(running, Finding) else await running.examine()
    try:
        tenants.current()
    except ImproperlyConfigured:
        pass  # the settings cannot even be read; the findings say so
    except TopicError as error:
        found.append(Finding("settings", Level.ERROR, describe(error), IN_A_TENANT))
        return _complete(found)
    try:
        road = Road(path, site if isinstance(running, RunningSite) else None)
    except ImproperlyConfigured:
        pass  # as above
    except TopicError as error:
        found.append(Finding("settings", Level.ERROR, describe(error), "Let it take text, a UUID or a number."))
    else:
        if broken(found) in (None, "server"):
            found += await examine_permissions()
        found += await examine_redis()
        if broken(found) in (None, "settings", "server"):
            found += await road.examine()
            if isinstance(running, RunningSite) and user is not None:
                found += await follow(running, user, idle)
    found += await _examine_apps()
    return _complete(found)


async def _examine_apps() -> list[Finding]:
    """Return what optional apps report: those whose ``AppConfig`` has a method for it."""
    found: list[Finding] = []
    for config in apps.get_app_configs():
        examine_app = getattr(config, "examine_notifications", None)
        if examine_app is None:
            continue
        try:
            found += await examine_app()
        except Exception as error:  # noqa: BLE001  an app may raise anything, and all other findings are wanted then
            text = f"{config.name} could not be examined: {describe(error, named=True)}"
            found.append(Finding(config.label, Level.WARNING, text))
    return found


def _complete(found: list[Finding]) -> list[Finding]:
    done = {finding.check for finding in found}
    found += [Finding(check, Level.SKIPPED, "not examined") for check in ROAD if check not in done]
    order = ["versions", *ROAD, "inlet"]
    order += [*sorted(done.difference(order, ["neighbours"])), "neighbours"]
    return sorted(found, key=lambda finding: order.index(finding.check))
