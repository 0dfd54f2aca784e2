"""The line on the help page that makes a notice appear, for the shell of whoever reads it."""

import json
import shlex
from urllib.parse import urlsplit, urlunsplit

from django.conf import settings
from django.contrib.auth.models import AbstractBaseUser

from notifications import Topic
from project.local_redis import find_client

NOTICE = {"action": "notice", "level": "info", "title": "Hello from the shell"}


def publish_command(user: AbstractBaseUser) -> str:
    """Return the shell command that publishes a notice to ``user``; a password in the URL is masked."""
    client = find_client() or "redis-cli"
    channel = Topic.for_user(user).channel
    notice = json.dumps(NOTICE, separators=(",", ":"))
    return shlex.join([str(client), "-u", mask_password(settings.REDIS_URL), "PUBLISH", channel, notice])


def mask_password(url: str) -> str:
    parts = urlsplit(url)
    if parts.password is None:
        return url
    credentials, _, host = parts.netloc.rpartition("@")
    user = credentials.partition(":")[0]
    return urlunsplit(parts._replace(netloc=f"{user}:***@{host}"))
