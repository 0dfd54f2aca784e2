"""Permissions as sites should not write them."""

import time
from uuid import UUID


def answer_late(user, slow_id: str) -> bool:
    """Say yes, but later than the consumer waits."""
    time.sleep(6)
    return True


def fail(user, broken_id: str) -> bool:
    raise RuntimeError("the permission server is down")


def clean_uuid(user_id: str) -> str:
    return str(UUID(user_id))


def clean_int(user_id: str) -> str:
    return str(int(user_id))
