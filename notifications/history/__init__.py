"""
The history of a topic: stamping what is published, and reading what was missed.

``get_store`` is the one place where callers get what keeps the histories. ``store.py`` says what a store must do,
``redis.py`` is the site's, ``memory.py`` that of the test kit. ``position.py`` and ``stamped.py`` are pure.
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
    """Let another store answer in this process, all threads of it, or the site's own again; ``testing`` does that."""
    global _in_place
    _in_place = _redis if store is None else store
