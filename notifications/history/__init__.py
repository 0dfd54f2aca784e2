"""
The history of a topic: stamping what is published, and reading what was missed.

Callers get the store from ``get_store``, and know none by name. ``store.py`` says what a store must
do; ``redis.py`` is used by sites, ``memory.py`` by the test kit. ``changes.py``, ``position.py`` and
``stamped.py`` are pure. Another store is a module beside these: choose it here, and add it to the
fixture of ``tests/redis/test_store.py``.
"""

from __future__ import annotations

from typing import Final

from .redis import RedisStore
from .store import Store

_redis: Final = RedisStore()
_in_place: Store = _redis


def get_store() -> Store:
    """Return the store that keeps the histories of this site."""
    return _in_place


def put_in_place(store: Store | None) -> None:
    """Replace the store in the whole process; None restores the site's. For ``testing`` only."""
    global _in_place
    _in_place = _redis if store is None else store
