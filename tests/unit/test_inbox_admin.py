"""Kept notices in Django's admin: found without a query for each, and marked and deleted so that browsers know."""

from collections.abc import Iterator
from typing import Any

import pytest
from django.conf import settings
from django.contrib import admin
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Permission, User
from django.contrib.contenttypes.models import ContentType
from django.core.checks import run_checks
from django.db import connection
from django.test import Client, override_settings
from django.test.utils import CaptureQueriesContext
from django.urls import clear_url_caches, path
from django.utils import timezone

from notifications.inbox.models import KeptNotice
from notifications.testing import captured
from tests.testsite import admin_site, urls
from tests.users import new_user

LIST = "/admin/notifications_inbox/keptnotice/"
pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def sent(db: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Give the site Django's own admin, and return what browsers are told."""
    with override_settings(**admin_site.SETTINGS), captured() as sent:
        monkeypatch.setattr(admin_site, "urlpatterns", [path("admin/", admin.site.urls), *urls.urlpatterns])
        clear_url_caches()
        yield sent
    monkeypatch.undo()
    clear_url_caches()


@pytest.fixture
def client() -> Client:
    powers = {"is_staff": True, "is_superuser": True} if get_user_model() is User else {}
    return log_in(new_user("root", **powers))


@pytest.fixture
def ada() -> Any:
    return new_user("ada")


def log_in(user: Any) -> Client:
    client = Client()
    client.force_login(user)
    return client


def keep(user: Any, title: str = "Import finished", **fields: Any) -> KeptNotice:
    """Make a row that browsers have been told of."""
    return KeptNotice.objects.create(user=user, title=title, **{"pending_since": None, **fields})


def run(client: Client, action: str, *notices: KeptNotice, **fields: str) -> Any:
    selected = [str(notice.pk) for notice in notices]
    return client.post(LIST, {"action": action, "index": "0", "_selected_action": selected, **fields}, follow=True)


def told(sent: list[Any]) -> list[tuple[str, str, list[str], int]]:
    payloads = [(str(topic), message["payload"]) for topic, message, _ in sent]
    return [(topic, payload["change"], payload["ids"], payload["unread"]) for topic, payload in payloads]


def test_list_costs_the_same_for_any_number_of_rows(client):
    """Users are read with their notices."""
    counts = []
    for size in (1, 30):
        for n in range(size):
            keep(new_user(f"user-{size}-{n}"))
        with CaptureQueriesContext(connection) as queries:
            assert client.get(LIST).status_code == 200
        counts.append(len(queries))

    assert counts[0] == counts[1]


def test_notices_are_found(client, ada):
    """By their texts, their user, and whether they were read."""
    keep(ada, "Import finished", read_at=timezone.now())
    keep(new_user("bob"), "Export failed", level="error", key="export-7")

    def found(query: str) -> list[str]:
        page = client.get(LIST + query).content.decode()
        return [title for title in ("Import finished", "Export failed") if title in page]

    assert found("") == ["Import finished", "Export failed"]
    assert found("?q=import") == ["Import finished"]
    assert found("?q=ada") == ["Import finished"]
    assert found("?q=export-7") == ["Export failed"]
    assert found("?read_at__isempty=1") == ["Export failed"]
    assert found("?level__exact=error") == ["Export failed"]


def test_rows_are_read_only(client, ada):
    """A page shows what is in a row; there is none to change it, because nobody would be told, and none to add one."""
    notice = keep(ada, target={"order": 7}, group="imports")
    page = client.get(f"{LIST}{notice.pk}/change/")

    assert page.status_code == 200
    assert all(text in page.content.decode() for text in ("Import finished", "imports", "order"))
    assert b'name="_save"' not in page.content
    assert client.post(f"{LIST}{notice.pk}/change/", {"title": "x"}).status_code == 403
    assert client.get(f"{LIST}add/").status_code == 403


def test_actions_tell_browsers(client, ada, sent, django_capture_on_commit_callbacks):
    """Each is a mark of each user's notices, with the number after it."""
    bob = new_user("bob")
    first, second, third = keep(ada), keep(ada), keep(bob)

    actions = {"mark_as_read": "read", "mark_as_unread": "unread", "archive": "archived", "restore": "restored"}
    for action, change in actions.items():
        sent.clear()
        with django_capture_on_commit_callbacks(execute=True):
            page = run(client, action, first, second, third)
        number = 0 if change in ("read", "archived") else 1
        assert sorted(told(sent)) == sorted(
            [
                (f"user:{ada.pk}", change, [str(first.pk), str(second.pk)], 2 * number),
                (f"user:{bob.pk}", change, [str(third.pk)], number),
            ]
        )
        assert "3 notices were changed." in page.content.decode()


def test_rows_are_read_where_they_are_written(client, ada, settings):
    """An action marks the rows of the database that has them, whatever a router says of reading."""
    settings.DATABASE_ROUTERS = ["tests.users.Replica"]
    notice = keep(ada)

    assert client.get(f"{LIST}?q=ada").status_code == 200
    assert client.get(f"{LIST}{notice.pk}/change/").status_code == 200
    assert run(client, "archive", notice).status_code == 200
    assert KeptNotice.objects.using("default").get().archived_at is not None


def test_deleting_tells_browsers(client, ada, sent, monkeypatch, django_capture_on_commit_callbacks):
    """Open tabs are told that the notices are archived, and the number without them."""
    monkeypatch.setattr(admin.ModelAdmin, "log_deletions", lambda *_: None)  # this database has not got the admin's log
    first, second, third = keep(ada), keep(ada), keep(ada)

    with django_capture_on_commit_callbacks(execute=True):
        run(client, "delete_selected", first, second, post="yes")
    assert told(sent) == [(f"user:{ada.pk}", "archived", [str(first.pk), str(second.pk)], 1)]
    with django_capture_on_commit_callbacks(execute=True):
        client.post(f"{LIST}{third.pk}/delete/", {"post": "yes"})
    assert told(sent)[-1] == (f"user:{ada.pk}", "archived", [str(third.pk)], 0)
    assert not KeptNotice.objects.exists()


@pytest.mark.skipif(settings.AUTH_USER_MODEL != "auth.User", reason="a user of this model may do everything")
def test_actions_need_the_permission(ada):
    """Whoever may only look sees the list, a row, and no actions."""
    looker = new_user("eve", is_staff=True)
    ContentType.objects.clear_cache()  # a test with transactions may have emptied the table
    content_type = ContentType.objects.get_for_model(KeptNotice)
    view, _ = Permission.objects.get_or_create(codename="view_keptnotice", content_type=content_type)
    looker.user_permissions.add(view)
    notice = keep(ada)
    client = log_in(looker)

    page = client.get(LIST)
    run(client, "mark_as_read", notice)
    notice.refresh_from_db()

    assert page.status_code == 200
    assert b"mark_as_read" not in page.content
    assert client.get(f"{LIST}{notice.pk}/change/").status_code == 200
    assert client.post(f"{LIST}{notice.pk}/delete/", {"post": "yes"}).status_code == 403
    assert notice.read_at is None


def test_admins_checks_find_nothing():
    """Fields, filters and actions exist."""
    assert [found for found in run_checks() if found.id.startswith("admin.")] == []
