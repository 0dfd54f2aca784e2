"""The permission to watch an upload's progress."""

from uuid import UUID

from project.uploads.models import Upload


def may_watch(user: object, upload_id: str) -> bool:
    """Return whether ``user`` owns the upload; False for invalid ids and for uploads that do not exist."""
    try:
        pk = UUID(upload_id)
    except ValueError:
        return False
    # Another spelling of the same id is another topic, on which nothing is ever published.
    return str(pk) == upload_id and Upload.objects.filter(pk=pk, owner=user).exists()
