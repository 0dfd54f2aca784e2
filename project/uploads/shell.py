"""The shell command on the help page that makes a notice appear."""

import json
import shlex

from django.conf import settings
from django.contrib.auth.models import AbstractBaseUser

from notifications import Topic
from notifications.address import shown
from project.local_redis import find_client

NOTICE = {"action": "notice", "level": "info", "title": "Hello from the shell"}


def publish_command(user: AbstractBaseUser) -> str:
    """Return the shell command that publishes a notice to ``user``; credentials in the URL are masked."""
    client = find_client() or "redis-cli"
    channel = Topic.for_user(user).channel
    notice = json.dumps(NOTICE, separators=(",", ":"))
    return shlex.join([str(client), "-u", shown(settings.REDIS_URL), "PUBLISH", channel, notice])
