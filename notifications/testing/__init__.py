"""
For the tests of sites: see what your code publishes, and be a browser that receives it, without a Redis.

    with captured() as sent:
        client.post("/orders/7/ship/")
        assert_notified(user, action="order_shipped")

In Redis's place stands ``history/memory.py``; docs/testing.md says what tests with it do not prove.
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
