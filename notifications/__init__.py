"""Tell a browser something now: Redis publishes from any program to the browser tabs of a Django site."""

from .access.control import adisconnect_user, arevoke, disconnect_user, revoke
from .exceptions import MessageError, NotificationsError, PositionError, PublishError, TopicError
from .positions import aposition, position
from .publisher import (
    apublish,
    apublish_progress,
    apublish_to_user,
    publish,
    publish_progress,
    publish_to_user,
)
from .topics import Topic

__all__ = [
    "MessageError",
    "NotificationsError",
    "PositionError",
    "PublishError",
    "Topic",
    "TopicError",
    "adisconnect_user",
    "aposition",
    "apublish",
    "apublish_progress",
    "apublish_to_user",
    "arevoke",
    "disconnect_user",
    "position",
    "publish",
    "publish_progress",
    "publish_to_user",
    "revoke",
]
