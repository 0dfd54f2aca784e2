"""Permissions as sites should not write them."""

import time
from pathlib import Path
from uuid import UUID

from django.conf import settings
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


def ask_what_may_be_away(user, id_: str) -> bool:
    """Say yes to ids that begin with the user's name; not while the file ``AWAY`` is there."""
    if Path(settings.AWAY).exists():
        raise OperationalError("the database is away")
    return id_.startswith(user.username)


def wait_at_gate(user, id_: str) -> bool:
    """Say yes, unless the id has been refused since; but not before the file of that name is there."""
    gate = Path(settings.AWAY).with_name(id_)
    no = gate.with_suffix(".no").exists()
    gate.with_suffix(".asked").touch()
    while not gate.exists():
        time.sleep(0.01)
    return not no


def take_a_while(user, id_: str) -> bool:
    time.sleep(0.2)
    return id_.startswith(user.username)


def find_user(token: str):
    """Find the user named by a token; the one of ``gate`` waits at it."""
    name, _, gate = token.partition("@")
    if gate:
        wait_at_gate(None, gate)
    return User.objects.get(pk=int(name))


def refuse(user, refused_id: str) -> bool:
    """Ask as most sites do: what is no number is a ValueError, what is not there DoesNotExist."""
    return User.objects.none().get(pk=int(refused_id)) is not None


def clean_uuid(user_id: str) -> str:
    return str(UUID(user_id))


def clean_int(user_id: str) -> str:
    return str(int(user_id))


def forget_some(pairs):
    """Answer about each id once, as a dict would."""
    return [False]


def fail_for_many(pairs):
    raise RuntimeError("the permission server is down")
