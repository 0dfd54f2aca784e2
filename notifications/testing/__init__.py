"""
For the tests of sites: see what your code publishes, and be a browser that receives it, without a Redis.

    with captured() as sent:
        client.post("/orders/7/ship/")
        assert_notified(user, action="order_shipped")

What stands in Redis's place is in ``stand_in.py``; docs/testing.md says what tests with it do not prove.
"""

from .assertions import assert_notified, assert_published
from .sockets import Socket, connect_as
from .stand_in import Published, captured, redis_outage

__all__ = [
    "Published",
    "Socket",
    "assert_notified",
    "assert_published",
    "captured",
    "connect_as",
    "redis_outage",
]
