"""
For the tests of sites: check what your code publishes, and receive it as a browser does, without a Redis.

    with captured() as sent:
        client.post("/orders/7/ship/")
        assert_notified(user, action="order_shipped")

``history/memory.py`` stands in for Redis; docs/testing.md says what tests with it do not prove.
"""

from .assertions import assert_notified, assert_published
from .capture import Published, captured, redis_outage
from .sockets import Socket, connect_as

__all__ = [
    "Published",
    "Socket",
    "assert_notified",
    "assert_published",
    "captured",
    "connect_as",
    "redis_outage",
]
