"""Permissions as sites should not write them."""

import time
from uuid import UUID

from django.contrib.auth.models import User
from django.db import OperationalError


def answer_late(user, slow_id: str) -> bool:
    """Say yes, but later than the consumer waits."""
    time.sleep(6)
    return True


def fail(user, broken_id: str) -> bool:
    raise RuntimeError("the permission server is down")


def lose_the_database(user, lost_id: str) -> bool:
    raise OperationalError("s3cret-of-nobody is not the password")


def refuse(user, refused_id: str) -> bool:
    """Ask as most sites do: what is no number is a ValueError, what is not there DoesNotExist."""
    return User.objects.none().get(pk=int(refused_id)) is not None


def clean_uuid(user_id: str) -> str:
    return str(UUID(user_id))


def clean_int(user_id: str) -> str:
    return str(int(user_id))
