"""The rows in Django's admin: to look at, to mark and to delete. They are written with ``notify``."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from django.contrib import admin, messages
from django.contrib.auth import get_user_model
from django.db import router, transaction
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext

from . import mark
from .listing import MAX_PAGE_SIZE
from .models import KeptNotice
from .rows import Change

if TYPE_CHECKING:
    Base = admin.ModelAdmin[KeptNotice]
else:
    Base = admin.ModelAdmin


@admin.register(KeptNotice)
class KeptNoticeAdmin(Base):
    """
    A list to find notices in, and actions on them that browsers are told of.

    A notice can be neither added nor changed here: users would see another text than the one they were sent.
    """

    list_display = ("title", "user", "level", "group", "created_at", "was_read", "was_archived")
    list_filter = (
        "level",
        ("read_at", admin.EmptyFieldListFilter),
        ("archived_at", admin.EmptyFieldListFilter),
        "created_at",
    )
    list_select_related = ("user",)
    show_full_result_count = False  # each search would count all rows once more
    fields = (
        *("user", "level", "title", "body", "url", "group", "key", "actor", "target", "created_at", "expires_at"),
        *("seen_at", "read_at", "archived_at", "published_at", "pending_since"),
    )
    readonly_fields = ("published_at", "pending_since")
    actions = ("mark_as_read", "mark_as_unread", "archive", "restore")

    def get_queryset(self, request: HttpRequest) -> QuerySet[KeptNotice]:
        """Return the rows of the database that is written, as an action marks what was shown."""
        return super().get_queryset(request).using(router.db_for_write(KeptNotice))

    def get_search_fields(self, request: HttpRequest) -> list[str]:
        return ["title", "body", "key", "group", f"user__{get_user_model().USERNAME_FIELD}"]

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Allow the actions, which ask without an object, and not the form."""
        return obj is None and super().has_change_permission(request)

    @admin.display(description=_("read"), boolean=True, ordering="read_at")
    def was_read(self, notice: KeptNotice) -> bool:
        return notice.read_at is not None

    @admin.display(description=_("archived"), boolean=True, ordering="archived_at")
    def was_archived(self, notice: KeptNotice) -> bool:
        return notice.archived_at is not None

    @admin.action(description=_("Mark selected notices as read"), permissions=["change"])
    def mark_as_read(self, request: HttpRequest, queryset: QuerySet[KeptNotice]) -> None:
        self._mark(request, queryset, "read")

    @admin.action(description=_("Mark selected notices as unread"), permissions=["change"])
    def mark_as_unread(self, request: HttpRequest, queryset: QuerySet[KeptNotice]) -> None:
        self._mark(request, queryset, "unread")

    @admin.action(description=_("Archive selected notices"), permissions=["change"])
    def archive(self, request: HttpRequest, queryset: QuerySet[KeptNotice]) -> None:
        self._mark(request, queryset, "archived")

    @admin.action(description=_("Restore selected notices from the archive"), permissions=["change"])
    def restore(self, request: HttpRequest, queryset: QuerySet[KeptNotice]) -> None:
        self._mark(request, queryset, "restored")

    def delete_model(self, request: HttpRequest, obj: KeptNotice) -> None:
        self.delete_queryset(request, self.get_queryset(request).filter(pk=obj.pk))

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[KeptNotice]) -> None:
        """Delete notices; open tabs are told that they were archived, which takes them out of lists and numbers."""
        with transaction.atomic(using=queryset.db):
            _mark(queryset, "archived")
            super().delete_queryset(request, queryset)

    def _mark(self, request: HttpRequest, queryset: QuerySet[KeptNotice], change: Change) -> None:
        count = _mark(queryset, change)
        text = ngettext("%(count)d notice was changed.", "%(count)d notices were changed.", count)
        self.message_user(request, text % {"count": count}, messages.SUCCESS)


def _mark(queryset: QuerySet[KeptNotice], change: Change) -> int:
    """Change notices of any users, and return how many have changed."""
    owners = defaultdict(list)
    for owner, pk in queryset.order_by("id").values_list("user_id", "pk"):
        owners[owner].append(pk)
    return sum(
        mark(owner, change, ids=ids[start : start + MAX_PAGE_SIZE], using=queryset.db)
        for owner, ids in owners.items()
        for start in range(0, len(ids), MAX_PAGE_SIZE)
    )
