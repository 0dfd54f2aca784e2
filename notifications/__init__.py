"""Tell a browser something now: Redis publishes from any program to the browser tabs of a Django site."""

from .access.control import adisconnect_user, arevoke, disconnect_user, revoke
from .exceptions import Cancelled, MessageError, NotificationsError, PositionError, PublishError, TopicError
from .history.shares import Share
from .jobs import aannounce, acancel, announce, cancel
from .positions import aposition, position
from .progress import Part, Progress, progress
from .publisher import (
    apublish,
    apublish_many,
    apublish_progress,
    apublish_to_all,
    apublish_to_user,
    publish,
    publish_many,
    publish_progress,
    publish_to_all,
    publish_to_user,
)
from .topics import Topic
from .tracking import track

__all__ = [
    "Cancelled",
    "MessageError",
    "NotificationsError",
    "Part",
    "PositionError",
    "Progress",
    "PublishError",
    "Share",
    "Topic",
    "TopicError",
    "aannounce",
    "acancel",
    "adisconnect_user",
    "announce",
    "aposition",
    "apublish",
    "apublish_many",
    "apublish_progress",
    "apublish_to_all",
    "apublish_to_user",
    "arevoke",
    "cancel",
    "disconnect_user",
    "position",
    "progress",
    "publish",
    "publish_many",
    "publish_progress",
    "publish_to_all",
    "publish_to_user",
    "revoke",
    "track",
]
