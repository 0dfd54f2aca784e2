"""Users of whatever model this process has."""

from typing import Any

from django.contrib.auth import get_user_model

from notifications.inbox.models import KeptNotice


def new_user(name: str, **fields: Any) -> Any:
    """Create a user of a name; the models of the test site call it differently."""
    model = get_user_model()
    return model.objects.create(**{model.USERNAME_FIELD: name}, **fields)


class Replica:
    """A router that reads notices from a database that there is not: whoever does so fails."""

    def db_for_read(self, model: type, **hints: Any) -> str | None:
        return "replica" if model is KeptNotice else None
