"""
A channel layer on Redis pub/sub, for any Channels project.

    CHANNEL_LAYERS = {"default": {
        "BACKEND": "notifications.layers.RedisPubSubLayer",
        "CONFIG": {"hosts": ["redis://127.0.0.1:6379/0"]},
    }}

Each event loop has one connection for reading and one for writing. Incoming data is parsed in bulk and decoded
once for all consumers of the process; what is sent in one iteration of the loop leaves in one packet. Every wait
and every queue is bounded, dead connections are detected, and consumers can be told of gaps.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from typing import Any, Final

from channels.layers import BaseChannelLayer
from channels_redis.utils import create_pool, decode_hosts
from django.conf import settings as django_settings
from django.core.exceptions import ImproperlyConfigured

from .address import Address, AddressError, Sort, read
from .aio import PerLoop
from .broker.clients import async_options
from .broker.nodes import nodes_of
from .broker.primary import Service, leading
from .broker.wire import POOL_OPTIONS
from .channel_layer.cluster_layer import ClusterLayer, cluster_group_key
from .channel_layer.loop_layer import LoopLayer, group_key
from .conf import settings

CAPACITY: Final = 1000
"""Messages that may wait for one consumer: about as many small ones as one read from the socket returns."""


_OF_SENTINELS: Final = ("sentinels", "master_name", "sentinel_kwargs")


def _hosts_of_the_site() -> list[Any] | None:
    """Return ``REDIS_URL`` as the only host; None in a project that has this layer, but not the app's settings."""
    own = getattr(django_settings, "NOTIFICATIONS", None)
    return [own["REDIS_URL"]] if isinstance(own, Mapping) and own.get("REDIS_URL") else None


def _connecting(host: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a host's connections; redis-py's errors about a malformed URL may show its password."""
    rest = {name: value for name, value in host.items() if name not in {"address", *_OF_SENTINELS}}
    if "sentinels" in host:
        own = dict(host.get("sentinel_kwargs") or {})
        scheme, scheme_of_sentinels = ("rediss" if options.pop("ssl", False) else "redis" for options in (rest, own))
        return {**rest, **leading(Service(host["master_name"], host["sentinels"], scheme_of_sentinels, own), scheme)}
    try:
        return {**rest, **async_options(host["address"])} if "address" in host else rest
    except AddressError as error:
        raise ImproperlyConfigured(f"the host in CHANNEL_LAYERS is not the URL of a Redis server: {error}") from None


def _cluster_of(host: dict[str, Any]) -> str:
    """Return the URL of a host if it is that of a cluster, otherwise an empty text."""
    url = host.get("address", "")
    return url if url and read(url).sort is Sort.CLUSTER else ""


def _account(where: Address) -> str:
    return where.options.get("username") or "default"


def _server(options: dict[str, Any]) -> tuple[Any, ...]:
    """Return what tells servers and accounts apart. Databases share all channels."""
    account = options.get("username") or "default"
    if "service" in options:
        return account, options["service"].name, frozenset(options["service"].sentinels)
    if "path" in options:
        return account, options["path"]
    return account, options.get("host", "localhost"), int(options.get("port", 6379))


class RedisPubSubLayer(BaseChannelLayer):  # type: ignore[misc]  # Channels has no types
    """
    Channels' contract for a layer, with the ``groups`` and ``flush`` extensions, on Redis pub/sub.

    Messages are delivered at most once, because Redis keeps nothing. Other layers do not report what they lose;
    this one does, through ``on_resync``.

    What one task sends to a group arrives in the order of sending; what it sends to several groups does so, too,
    unless they are on different nodes of a cluster.

    ``group_add`` returns when Redis has confirmed. A channel holds ``capacity`` messages and 16 MiB; beyond that the
    newest are dropped and counted. Everybody who waits on a channel without ``!`` in its name receives its messages,
    as in ``channels_redis.pubsub``. A channel is forgotten when its ``receive`` is cancelled.
    """

    extensions = ("groups", "flush")
    # Channels' own patterns accept a trailing line break and digits of all scripts.
    channel_name_regex = re.compile(r"[a-zA-Z0-9._-]+(![a-zA-Z0-9._-]*)?\Z")
    group_name_regex = re.compile(r"[a-zA-Z0-9._-]+\Z")

    def __init__(
        self,
        hosts: list[Any] | None = None,
        prefix: str = "asgi",
        capacity: int = CAPACITY,
        channel_capacity: dict[str, int] | None = None,
        expiry: int = 60,
    ) -> None:
        """
        Configure the layer; nothing connects before it is used.

        Args:
            hosts: One entry, as for channels_redis: a URL, a ``(host, port)`` pair, or a dict with ``address`` or
                with ``sentinels`` and ``master_name``, and redis-py's connection options. By default ``REDIS_URL``.
            prefix: Prefix of every Redis channel; sites on one Redis server need different ones.
            capacity: Messages that may wait for one channel.
            channel_capacity: Different capacities, by glob pattern of channel names.
            expiry: Accepted for compatibility; pub/sub keeps nothing that could expire.

        Raises:
            ImproperlyConfigured: There are several hosts (one Redis server carries more than a listener can send), or
                a URL cannot be parsed.

        """
        super().__init__(expiry=expiry, capacity=capacity)
        self.channel_capacity = self.compile_capacities(channel_capacity or {})
        self.prefix = prefix
        decoded = decode_hosts(hosts or _hosts_of_the_site())
        if len(decoded) != 1:
            raise ImproperlyConfigured("notifications.layers takes one host in CHANNEL_LAYERS, not several")
        self._host = {**POOL_OPTIONS, **_connecting(decoded[0])}
        self._cluster = _cluster_of(decoded[0])
        self._here = PerLoop(self._make, LoopLayer.flush)

    def _make(self) -> LoopLayer:
        if self._cluster:
            return ClusterLayer(self.prefix, nodes_of(self._cluster), self._host, self.get_capacity)
        return LoopLayer(self.prefix, partial(create_pool, self._host), self.get_capacity)

    async def send(self, channel: str, message: dict[str, Any]) -> None:
        """
        Send to one channel, in any process.

        Raises:
            TimeoutError: Redis is not reachable or accepts nothing; nothing was sent.

        """
        self.require_valid_channel_name(channel)
        await self._here().send(channel, message)

    async def receive(self, channel: str) -> dict[str, Any]:
        """
        Wait for the next message of a channel.

        Raises:
            RuntimeError: The channel was created by ``new_channel`` in another process or event loop.
            TimeoutError: The channel was not created by ``new_channel``, and Redis is not reachable.

        """
        here = self._here()
        if not here.knows(channel):
            self.require_valid_channel_name(channel)
        return await here.receive(channel)

    async def new_channel(self, prefix: str = "specific") -> str:
        """
        Return the name of a new channel of this process, once Redis has confirmed that it can receive.

        Raises:
            TimeoutError: Redis is not reachable.

        """
        return await self._here().new_channel(prefix)

    def on_message(self, channel: str, callback: Callable[[dict[str, Any]], None]) -> None:
        """
        Call a callback with each message to this channel, at once, instead of keeping the messages for ``receive``.

        Args:
            channel: A channel created by ``new_channel`` in this process and event loop.
            callback: Must not block, and must not change the message: others are given the same object.

        """
        self._here().on_message(channel, callback)

    def forget(self, channel: str) -> None:
        """Remove a channel of this process and event loop from all its groups; no error if it is gone."""
        self._here().forget(channel)

    def on_resync(self, channel: str, callback: Callable[[], None]) -> None:
        """
        Call a callback whenever messages to this channel may have been lost.

        That is after the connection was replaced, and, if the channel was full, when its consumer has read what was
        waiting. Messages that Redis itself loses, as in a failover, go unnoticed.
        """
        self._here().on_resync(channel, callback)

    async def group_add(self, group: str, channel: str) -> None:
        """
        Add a channel of this process to a group, and return when Redis has confirmed.

        Raises:
            RuntimeError: The channel does not belong to this process, or no longer exists.
            TimeoutError: Redis is not reachable; the channel is not in the group.

        """
        self.require_valid_group_name(group)
        self.require_valid_channel_name(channel)
        await self._here().group_add(group, channel)

    async def group_discard(self, group: str, channel: str) -> None:
        """Remove a channel from a group; no error if it is not in it."""
        self.require_valid_group_name(group)
        self.require_valid_channel_name(channel)
        self._here().group_discard(group, channel)

    async def group_send(self, group: str, message: dict[str, Any]) -> None:
        """
        Send to all channels of a group, in any process.

        Raises:
            TimeoutError: Redis is not reachable or accepts nothing; nothing was sent.

        """
        self.require_valid_group_name(group)
        await self._here().group_send(group, message)

    def direct(self, group: str) -> str | None:
        """
        Return the Redis channel of a group, on which a script may publish what ``channel_layer.serializer`` writes.

        None if scripts cannot reach it: they run on the server of ``REDIS_URL``, with its account. A subclass that
        sends or encodes otherwise must return None; a listener then calls its ``group_send``.
        """
        if self._cluster:
            return cluster_group_key(self.prefix, group) if self._is_on_the_sites_cluster else None
        return group_key(self.prefix, group) if self._is_on_the_sites_redis else None

    @cached_property
    def _is_on_the_sites_redis(self) -> bool:
        where = read(settings.REDIS_URL)
        return where.sort is not Sort.CLUSTER and _server(self._host) == _server(async_options(settings.REDIS_URL))

    @cached_property
    def _is_on_the_sites_cluster(self) -> bool:
        ours, sites = read(self._cluster), read(settings.REDIS_URL)
        if sites.sort is not Sort.CLUSTER or _account(ours) != _account(sites):
            return False
        # Otherwise it is another cluster, or one of which the two URLs name different nodes.
        return not set(ours.hosts).isdisjoint(sites.hosts)

    async def flush(self) -> None:
        """Forget all channels and groups of this event loop and close its connections."""
        await self._here().flush()


def direct(layer: Any, group: str) -> str | None:
    """Return the Redis channel on which a script may publish to a group of a layer; None if it says none."""
    return layer.direct(group) if isinstance(layer, RedisPubSubLayer) else None
