"""
The history of a topic: stamping what is published, and reading what was missed.

Callers get what keeps the histories from ``get_store``, and know no store by name. ``store.py`` says what a store must
do, ``redis.py`` is the site's, ``memory.py`` the test kit's. ``position.py`` and ``stamped.py`` are pure. Another store
is a module beside these: choose it here, and add it to the fixture of ``tests/redis/test_store.py``.
"""

from __future__ import annotations

from typing import Final

from .redis import RedisStore
from .store import Store

_redis: Final = RedisStore()
_in_place: Store = _redis


def get_store() -> Store:
    """Return what keeps the histories of this site."""
    return _in_place


def put_in_place(store: Store | None) -> None:
    """Let another store answer in the whole process; None puts the site's own back. For ``testing`` only."""
    global _in_place
    _in_place = _redis if store is None else store
