"""Managed services that a host's name shows: where each has the settings that matter."""

from __future__ import annotations

from typing import Final

from ..conf import settings

GUIDE: Final = "docs/how-to/managed-redis.md"
_POLICY: Final = {
    ".memorydb.": "MemoryDB: set it in the cluster's parameter group",
    ".serverless.": "an ElastiCache serverless cache keeps volatile-lru: limit what else is in it, or take a node",
    ".cache.amazonaws.": "ElastiCache: set it in the cluster's parameter group",
    ".redis.cache.windows.net": "Azure Cache for Redis: Advanced settings, Maxmemory policy",
    ".redis.azure.net": "Azure Managed Redis: the database's eviction policy, NoEviction",
    ".upstash.io": "Upstash: switch off Eviction in the database's configuration",
    ".redis-cloud.com": "Redis Cloud: the database's data eviction policy, No eviction",
    ".redislabs.com": "Redis Cloud: the database's data eviction policy, No eviction",
}
"""By a part of the host's name, the first that fits: where the eviction policy is set. Google's services have none."""


def policy_hint() -> str:
    """Say where the site's Redis has its ``maxmemory-policy``."""
    address = settings.address
    hosts = [str(address.options.get("host", "")), *(host for host, _ in address.hosts)]
    for part, where in _POLICY.items():
        if any(part in host for host in hosts):
            return f"noeviction, if there is a choice ({where}); {GUIDE}."
    return "CONFIG SET maxmemory-policy noeviction, and in its configuration file."
