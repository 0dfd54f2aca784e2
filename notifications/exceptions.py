"""
The exceptions of this app.

    NotificationsError
    ├── TopicError (also ValueError)      no such kind, or an id that is empty, too long or refused
    ├── MessageError (also ValueError)    not a JSON object, too large, or it uses a reserved name
    ├── PublishError                      Redis did not confirm the publish
    ├── Cancelled                         somebody has asked to cancel the job
    └── PositionError                     Redis did not return the position of a topic
"""

from __future__ import annotations


class NotificationsError(Exception):
    """Anything this app raises on purpose."""


class TopicError(NotificationsError, ValueError):
    """The kind is not configured, or the id is empty, too long or refused by the kind's ``CLEAN_ID``."""


class MessageError(NotificationsError, ValueError):
    """
    The message cannot be published.

    The error never quotes the message, because it goes to logs and to browsers.
    """


class PublishError(NotificationsError):
    """
    Redis did not confirm that it accepted the message, which may or may not have been published.

    Attributes:
        topic: Where the message should have gone, as ``"kind:id"``; of several, the first that is missing.
        reason: What Redis or the network said.
        missing: The indexes of those messages in the list of ``publish_many`` that are not known to be published. All
            others were published. For one message it is ``(0,)``.
        total: How many messages the list has.

    """

    def __init__(self, topic: str, reason: str, missing: tuple[int, ...] = (0,), total: int = 1) -> None:
        super().__init__(topic, reason, missing, total)
        self.topic = topic
        self.reason = reason
        self.missing = missing
        self.total = total

    def __str__(self) -> str:
        if self.total == 1:
            return f"not known to be published on {self.topic!r}: {self.reason}"
        which = f"{len(self.missing)} of {self.total} messages"
        return f"{which} are not known to be published, the first of them on {self.topic!r}: {self.reason}"


class Cancelled(NotificationsError):  # noqa: N818  it is no error, but a job's way to its end
    """Somebody has asked to cancel the job: let it pass, and its progress ends as ``cancelled``."""


class PositionError(NotificationsError):
    """
    Redis did not return the position of a topic.

    Attributes:
        topic: The topic, as ``"kind:id"``.
        reason: What Redis or the network said.

    """

    def __init__(self, topic: str, reason: str) -> None:
        super().__init__(topic, reason)
        self.topic = topic
        self.reason = reason

    def __str__(self) -> str:
        return f"the position of {self.topic!r} is not known: {self.reason}"
