"""Bars above a change list of Django's admin: whose they are, how many, for how long, and on whatever template."""

import html
import re
import sys
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace

import pytest
from django.contrib.admin import AdminSite
from django.contrib.auth.models import Group, Permission, User
from django.contrib.contenttypes.models import ContentType
from django.test import Client, override_settings
from django.urls import clear_url_caches, path

from notifications.contrib import admin
from notifications.exceptions import TopicError
from notifications.tokens import check_grant
from notifications.topics import Topic
from tests.repository.test_readme import ROOT, example
from tests.testsite import admin_site, urls

GROUPS, PERMISSIONS = "/admin/auth/group/", "/admin/auth/permission/"
pytestmark = pytest.mark.usefixtures("memory_store", "a_site_with_an_admin")


@pytest.fixture
def a_site_with_an_admin(db: None) -> Iterator[None]:
    with override_settings(**admin_site.SETTINGS):
        yield


@pytest.fixture
def client(a_site_with_an_admin: None) -> Client:
    return log_in(User.objects.create_superuser("ada"))


@pytest.fixture
def mount(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[list[object]], None]]:
    """Give the site other URLs, until the test has ended."""

    def mount(patterns: list[object]) -> None:
        monkeypatch.setattr(admin_site, "urlpatterns", patterns)
        clear_url_caches()

    yield mount
    monkeypatch.undo()
    clear_url_caches()


def log_in(user: User) -> Client:
    client = Client()
    client.force_login(user)
    return client


def start(client: Client, *names: str) -> None:
    """Run the action on new groups of these names."""
    for name in names:
        group = Group.objects.create(name=name)
        answer = client.post(GROUPS, {"action": "rebuild", "index": "0", "_selected_action": str(group.pk)})
        assert (answer.status_code, answer.url) == (302, GROUPS)


def bars(client: Client, page: str = GROUPS) -> dict[str, dict[str, str]]:
    """Return the attributes of the bars of a page by their label."""
    tags = re.findall(r"<task-progress ([^>]*)>", client.get(page).content.decode())
    found = [{name: html.unescape(value) for name, value in re.findall(r'([\w-]+)="([^"]*)"', tag)} for tag in tags]
    return {bar["label"]: bar for bar in found}


def test_bar_of_an_action_is_above_the_change_list(client):
    """Whoever ran the action sees the bar, with a grant of theirs and the way to cancel, and again after a reload."""
    start(client, "Ushers")

    for _ in range(2):
        bar = bars(client)["Rebuilding Ushers"]
        assert bar["topic"] == f"job:{Group.objects.get().pk}"
        assert bar["cancel-url"] == "/notifications/cancel/"
        assert check_grant(bar["grant"], User.objects.get(), Topic.parse(bar["topic"]))
    page = client.get(GROUPS).content.decode()
    assert page.index("<task-progress") < page.index('id="changelist"')
    assert re.search(r'<script type="module" src="\S+/start.js" nonce="of-this-page">', page)
    assert "Select group to change" in page


def test_page_without_bars_is_the_admins_own(client):
    """Nothing of this app is on a change list for which nobody has started a job."""
    page = client.get(GROUPS).content.decode()

    assert "task-progress" not in page
    assert "notifications" not in page


def test_bar_is_that_of_the_session(client):
    """Another user, and another session of the same user, see no bar: neither by chance nor on purpose."""
    start(client, "Ushers")

    assert bars(log_in(User.objects.get())) == {}
    assert bars(log_in(User.objects.create_superuser("bob"))) == {}


def test_bar_is_on_the_change_list_of_its_model(client):
    """The other change lists of the same session have bars of their own."""
    start(client, "Ushers")

    assert bars(client, PERMISSIONS) == {}


def test_bars_need_the_permission_for_the_change_list(client):
    """A user of the admin who may not see the change list can neither see its bars nor dismiss one."""
    start(client, "Ushers")
    session, topic = client.session, f"job:{Group.objects.get().pk}"
    User.objects.update(is_superuser=False, is_staff=True)

    assert client.get(GROUPS).status_code == 403
    assert client.post(GROUPS, {admin.DISMISS: topic}).status_code == 403
    assert client.session[admin.SESSION_KEY] == session[admin.SESSION_KEY]

    groups = ContentType.objects.get_for_model(Group)
    view, _ = Permission.objects.get_or_create(codename="view_group", content_type=groups)
    User.objects.get().user_permissions.add(view)
    assert list(bars(client)) == ["Rebuilding Ushers"]


def test_dismissed_bar_is_gone(client):
    """The button takes one bar away, and leads back to the same page of the list."""
    start(client, "Ushers", "Tellers")
    page = f"{GROUPS}?q=e"

    answer = client.post(page, {admin.DISMISS: bars(client)["Rebuilding Ushers"]["topic"]})

    assert (answer.status_code, answer.url) == (302, page)
    assert list(bars(client)) == ["Rebuilding Tellers"]


def test_bar_is_dismissed_by_its_page_only(client):
    """A form of another site dismisses nothing."""
    start(client, "Ushers")
    strict = Client(enforce_csrf_checks=True)
    strict.cookies = client.cookies

    assert strict.post(GROUPS, {admin.DISMISS: f"job:{Group.objects.get().pk}"}).status_code == 403
    assert len(bars(client)) == 1


def test_session_keeps_the_newest_bars_of_an_hour(client, monkeypatch):
    """A session does not grow with what somebody starts, and does not show tomorrow what ran today."""
    names = [f"Group {n}" for n in range(admin.MAX_BARS + 2)]
    start(client, *names)
    assert list(bars(client)) == [f"Rebuilding {name}" for name in reversed(names[2:])]

    now = admin.time.time()
    monkeypatch.setattr(admin.time, "time", lambda: now + admin.MAX_AGE)
    assert bars(client) == {}
    start(client, "New")
    assert len(client.session[admin.SESSION_KEY]) == 1


def test_job_that_begins_again_has_one_bar(client):
    """The same topic is one bar, and the newest."""
    start(client, "Ushers", "Tellers")
    ushers = Group.objects.get(name="Ushers")

    client.post(GROUPS, {"action": "rebuild", "index": "0", "_selected_action": str(ushers.pk)})

    assert list(bars(client)) == ["Rebuilding Ushers", "Rebuilding Tellers"]


def test_label_is_short_and_only_text(client):
    """A long or hostile label neither fills the session nor becomes markup."""
    start(client, "<b>" + "x" * 120)

    assert "<b>" not in client.get(GROUPS).content.decode()
    assert list(bars(client)) == [("Rebuilding <b>" + "x" * 120)[: admin.MAX_LABEL]]


def test_template_of_the_site_is_extended(client, settings, tmp_path):
    """Whatever template the change list has, by a theme, for the model or by its ModelAdmin, it stays."""
    theme = "{% extends 'admin/base_site.html' %}{% block content %}<p>Of the theme</p>{% endblock %}"
    for name in ("auth/group", "auth/permission"):
        (tmp_path / "admin" / name).mkdir(parents=True)
        (tmp_path / "admin" / name / "change_list.html").write_text(theme)
    start(client, "Ushers")
    settings.TEMPLATES = [{**settings.TEMPLATES[0], "DIRS": [str(tmp_path)]}]

    page = client.get(GROUPS).content.decode()

    assert page.index("<task-progress") < page.index("<p>Of the theme</p>")


def test_page_that_an_action_answers_with_is_its_own(client):
    """A confirmation, say, has no bars: it is no change list."""
    start(client, "Ushers")
    asked = {"action": "ask", "index": "0", "_selected_action": str(Group.objects.get().pk)}

    answer = client.post(GROUPS, asked)

    assert answer.status_code == 200
    assert "task-progress" not in answer.content.decode()


def test_topic_that_is_no_longer_one_is_left_out(client, settings):
    """After the site has changed its TOPICS the change list works as before."""
    start(client, "Ushers")
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "TOPICS": {"upload": {}}}

    assert bars(client) == {}


def test_topic_that_is_none_is_refused_at_once(client, rf):
    """A mistake in the action shows where it is made."""
    model_admin = admin_site.site.get_model_admin(Group)

    with pytest.raises(TopicError):
        model_admin.show_progress(rf.get("/"), "nothing:7")


def test_site_without_our_urls_has_no_button_to_cancel(client, mount):
    """The bar is shown all the same."""
    start(client, "Ushers")
    mount([path("admin/", admin_site.site.urls)])

    assert "cancel-url" not in bars(client)["Rebuilding Ushers"]


def test_example_of_the_documentation_starts_a_job_and_shows_it(client, monkeypatch, mount):
    """The ModelAdmin of docs/progress.md queues the selected rows under the id of the bar."""
    begun = []
    task = SimpleNamespace(delay=lambda *arguments: begun.append(arguments))
    monkeypatch.setitem(sys.modules, "shop", ModuleType("shop"))
    monkeypatch.setitem(sys.modules, "shop.tasks", SimpleNamespace(export_orders=task))
    group = Group.objects.create(name="Ushers")
    site = AdminSite()
    site.register(Group, example("progress-admin", ROOT / "docs/progress.md")["OrderAdmin"])
    mount([path("admin/", site.urls), *urls.urlpatterns])

    client.post(GROUPS, {"action": "export", "index": "0", "_selected_action": str(group.pk)})

    [(job, selected)] = begun
    assert selected == [group.pk]
    assert bars(client)["Export of orders"]["topic"] == f"job:{job}"
