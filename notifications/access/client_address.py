"""Which address a client counts under."""

from __future__ import annotations

import re
from collections.abc import Hashable
from functools import lru_cache
from ipaddress import IPv6Address, IPv6Network, ip_address
from typing import Final

UNREADABLE: Final = "unreadable"
"""What every address that cannot be parsed counts as."""
_WITH_PORT: Final = re.compile(r"(?:\[([^]]+)](?::\d+)?|([\d.]+):\d+)").fullmatch


@lru_cache(maxsize=1024)  # a handshake asks several times; parsing takes 10 µs
def address_of(host: Hashable) -> str:
    """
    Return the address under which a client is counted.

    An IPv6 address counts as its /64 network, because a client that has one address of it has them all. Anything that
    is not an address, such as one that a client made up, or none, as behind a Unix socket, counts as ``UNREADABLE``.

    Args:
        host: The client's host, as the web server reports it.

    """
    match = _WITH_PORT(str(host))  # some proxies forward the port with the address
    try:
        address = ip_address((match[1] or match[2]) if match else str(host))
    except ValueError:
        return UNREADABLE
    if isinstance(address, IPv6Address) and address.ipv4_mapped is None:
        return str(IPv6Network((int(address), 64), strict=False))
    return str(getattr(address, "ipv4_mapped", None) or address)
