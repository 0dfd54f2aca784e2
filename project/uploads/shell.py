"""The line on the help page that makes a notice appear, for the shell of whoever reads it."""

import json
import re
import shlex

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
    """Replace the password of a Redis URL, before the host or as a parameter, by three stars."""
    url = re.sub(r"(?<=[?&]password=)[^&]*", "***", url)
    return re.sub(r"(?<=://)([^/:]*):.*@", r"\1:***@", url)
