"""The inbox over HTTP: who sees what, what is refused, what may be cached, and the page without JavaScript."""

import re
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest
from django.contrib.auth.middleware import LoginRequiredMiddleware
from django.db import connection
from django.test import Client, RequestFactory
from django.test.utils import CaptureQueriesContext
from django.utils import timezone, translation

from notifications.inbox import listing, urls
from notifications.inbox.models import KeptNotice
from tests.cases import cases
from tests.users import new_user

LIST, NOTICES, MARK = "/notifications/inbox/", "/notifications/inbox/notices/", "/notifications/inbox/mark/"
pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("memory_store")]
NOW = datetime(2026, 11, 27, 12, tzinfo=UTC)


@pytest.fixture
def user():
    return new_user("ada")


@pytest.fixture
def client(user):
    return log_in(user)


def log_in(user):
    client = Client()
    client.force_login(user)
    return client


def keep(user, title="Import finished", **fields):
    """Make a row that browsers have been told of."""
    return KeptNotice.objects.create(user=user, title=title, **{"pending_since": None, **fields})


def told(client, query="", **headers):
    answer = client.get(NOTICES + query, headers=headers)
    assert answer.status_code == 200, answer.content
    return answer.json()


def ids(answer):
    return [int(notice["id"]) for notice in answer["notices"]]


class Forms(HTMLParser):
    """The forms, links and texts of a page."""

    def __init__(self, page):
        super().__init__()
        self.forms, self.links, self.texts, self.inline = [], {}, [], []
        self._link = None
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.inline += [f"{tag} {name}" for name in attributes if name == "style" or name.startswith("on")]
        if tag in ("script", "style"):
            self.inline.append(tag)
        if tag == "form":
            self.forms.append(SimpleNamespace(action=attributes["action"], fields={}, buttons={}))
        elif tag == "input":
            self.forms[-1].fields[attributes["name"]] = attributes["value"]
        elif tag == "button":
            self._button = attributes
        self._link = attributes.get("href") if tag == "a" else self._link

    def handle_data(self, text):
        if not (text := text.strip()):
            return
        self.texts.append(text)
        if self.lasttag == "a":
            self.links[text] = self._link
        if self.lasttag == "button":
            self.forms[-1].buttons[text] = self._button


def page(client, query=""):
    answer = client.get(LIST + query)
    assert answer.status_code == 200
    return Forms(answer.content.decode())


def press(client, found, text, **headers):
    """Press the first button of a text, as a browser does."""
    form = next(form for form in found.forms if text in form.buttons)
    button = form.buttons[text]
    fields = {**form.fields, **({button["name"]: button["value"]} if "name" in button else {})}
    return client.post(form.action, fields, headers=headers)


# The list as JSON.


def test_list_says_all_that_a_row_says(client, user):
    """Each field is in the answer, in the form of the wire: ids are texts, and times have an offset."""
    notice = keep(
        user,
        level="error",
        body="Line 7",
        url="/imports/7/",
        group="imports",
        actor={"name": "Bob"},
        target=[7],
        created_at=NOW,
        seen_at=NOW,
    )

    assert told(client) == {
        "notices": [
            {
                "id": str(notice.pk),
                "level": "error",
                "title": "Import finished",
                "body": "Line 7",
                "url": "/imports/7/",
                "group": "imports",
                "actor": {"name": "Bob"},
                "target": [7],
                "timestamp": "2026-11-27T12:00:00Z",
                "seen": True,
                "read": False,
                "archived": False,
            }
        ],
        "unread": 1,
        "next": None,
    }


def test_times_have_an_offset_without_time_zones(client, user, settings):
    """A site without ``USE_TZ`` has naive times in its rows, which are those of ``TIME_ZONE``."""
    settings.USE_TZ = False
    settings.TIME_ZONE = "Asia/Tokyo"
    keep(user, created_at=datetime(2026, 11, 27, 21))  # noqa: DTZ001  as such a site has it

    assert told(client)["notices"][0]["timestamp"] == "2026-11-27T12:00:00Z"


def test_list_has_the_users_own_notices_only(client, user):
    """Nobody sees a notice of somebody else, nor how many there are."""
    keep(new_user("bob"))

    assert told(client) == {"notices": [], "unread": 0, "next": None}


def test_list_is_paged_by_id(client, user):
    """New notices shift no page: all are listed once, the newest first."""
    rows = [keep(user).pk for _ in range(5)]
    seen, before = [], ""
    while True:
        answer = told(client, f"?limit=2{before}")
        seen += ids(answer)
        keep(user)
        if answer["next"] is None:
            break
        before = f"&before={answer['next']}"

    assert seen == rows[::-1]


def test_page_that_is_just_full_is_the_last(client, user):
    """Nobody is sent to an empty page."""
    for _ in range(2):
        keep(user)

    assert told(client, "?limit=2")["next"] is None
    assert told(client, "?limit=1")["next"] is not None


def test_list_shows_twenty_unless_told_otherwise(client, user):
    """The page of the documentation, and no more than a hundred."""
    for _ in range(101):
        keep(user)

    assert len(told(client)["notices"]) == 20
    assert len(told(client, "?limit=100")["notices"]) == 100
    assert told(client)["unread"] == 100


def test_list_leaves_out_what_has_expired_or_is_elsewhere(client, user):
    """Expired notices are in no list; archived ones are in that of their own; read ones are left out if asked."""
    now = timezone.now()
    read, new = keep(user, read_at=now), keep(user, expires_at=now + timedelta(hours=1))
    archived = keep(user, archived_at=now, read_at=now)
    keep(user, expires_at=now - timedelta(seconds=1))
    keep(user, expires_at=now - timedelta(seconds=1), archived_at=now)

    assert ids(told(client)) == [new.pk, read.pk]
    assert ids(told(client, "?unread=1")) == [new.pk]
    assert ids(told(client, "?archived=1")) == [archived.pk]
    assert ids(told(client, "?unread=0&archived=0")) == [new.pk, read.pk]


@cases(
    "query",
    [
        "limit=0",
        "limit=101",
        "limit=x",
        "limit=-1",
        "limit=",
        "before=0",
        "before=x",
        f"before={2**63}",
        "unread=yes",
        "archived=2",
        "limit=٣",
        "before=" + "9" * 5000,
        "before=1.5",
        "before= 1",
    ],
)
def test_wrong_arguments_of_the_list_are_refused(client, query):
    """They are answered by 400, which says what would be right, and never by an error of the database."""
    answer = client.get(f"{NOTICES}?{query}")

    assert answer.status_code == 400
    assert query.partition("=")[0] in answer.json()["error"]
    if not query.startswith(("limit", "unread")):
        assert client.get(f"{LIST}?{query}").status_code == 400


def test_largest_id_is_an_argument(client, user):
    """What a row may have as its id may be asked for."""
    keep(user)

    assert len(told(client, f"?before={2**63 - 1}")["notices"]) == 1


def test_unchanged_list_is_not_sent_again(client, user):
    """A browser that has the list is told so with 304; after any change it gets the new one."""
    keep(user)
    first = client.get(NOTICES)
    same = client.get(NOTICES, headers={"if-none-match": first["ETag"]})
    KeptNotice.objects.update(read_at=timezone.now())
    changed = client.get(NOTICES, headers={"if-none-match": first["ETag"]})

    assert (same.status_code, same.content, same["ETag"]) == (304, b"", first["ETag"])
    assert changed.status_code == 200
    assert changed["ETag"] != first["ETag"]


def test_only_the_browser_may_keep_the_list(client, user):
    """It asks each time whether the list is still so; the page is not kept at all."""
    for headers in ({}, {"if-none-match": client.get(NOTICES)["ETag"]}):
        control = client.get(NOTICES, headers=headers)["Cache-Control"].split(", ")
        assert sorted(control) == ["no-cache", "private"]
    assert {"no-store", "private"} <= set(client.get(LIST)["Cache-Control"].split(", "))


def test_list_costs_three_queries(client, user, django_assert_num_queries):
    """One for the number, one for the ids and one for the rows, beside the one by which Django finds the user."""
    for n in range(30):
        keep(user, group=f"{n % 3}")

    with django_assert_num_queries(4):
        told(client)
    with django_assert_num_queries(4):
        page(client)


@pytest.mark.skipif(
    connection.vendor != "sqlite", reason="asks as SQLite does; tests/redis/test_databases.py the others"
)
@cases(
    ("wanted", "index"),
    [({}, "list"), ({"before": 9}, "list"), ({"unread": True}, "unread"), ({"archived": True}, "archive")],
)
def test_page_is_found_by_an_index(user, wanted, index):
    """SQLite looks at no row of another user or list, and sorts nothing."""
    with CaptureQueriesContext(connection) as queries:
        listing.read_page(user, **wanted)
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN QUERY PLAN {queries.captured_queries[0]['sql']}")
        plan = "; ".join(row[-1] for row in cursor.fetchall())

    assert f"INDEX notices_{index} (user_id=?" in plan
    assert "B-TREE" not in plan


def test_list_is_read_where_it_is_written(client, user, settings):
    """A replica may lag behind the number that a browser was told, and behind the user's own change."""
    settings.DATABASE_ROUTERS = ["tests.users.Replica"]
    notice = keep(user, url="/x/")

    assert (ids(told(client)), told(client)["unread"]) == ([notice.pk], 1)
    assert press(client, page(client), "Mark as read").status_code == 302
    assert press(client, page(client), "Mark as unread").status_code == 302
    assert press(client, page(client), "Import finished").url == "/x/"
    assert mark(client, change="unread", id=notice.pk).json() == {"unread": 1}


# Links.


@cases(
    "url",
    ["/exports/7/", "https://example.com/a?b#c", "http://127.0.0.1:8000/", "//cdn.example.com/x", "/a\\b", " /x "],
)
def test_links_that_browsers_are_given(url):
    """A notice may lead elsewhere: whoever writes it is the site."""
    assert listing.link_of(KeptNotice(url=url)) == url.strip()


@cases(
    "url",
    [
        "",
        "javascript:alert(1)",
        "JaVaScRiPt:alert(1)",
        "java\tscript:alert(1)",
        " \x01javascript:alert(1)",
        "data:,x",
        "exports/7/",
        "mailto:a@example.com",
        "///evil.example",
        "\\\\evil.example",
        "http:///x",
        "https://[::1",
        "ftp://x/",
        "http:javascript:alert(1)",
        "/\\evil.example",
        "https:\\\\evil.example",
        "vbscript://example.com/%0aalert(1)",
    ],
)
def test_links_that_browsers_are_not_given(url):
    """Nothing but http, https and a path of the site; a relative one would differ from page to page."""
    assert listing.link_of(KeptNotice(url=url)) is None


# Who may.


@cases("path", [NOTICES, MARK])
def test_scripts_are_told_that_nobody_is_logged_in(path):
    """A login page is of no use to a script."""
    method = Client().get if path == NOTICES else Client().post
    answer = method(path, headers={"accept": "application/json"})

    assert (answer.status_code, answer.json()) == (403, {"error": "not logged in"})


def test_pages_lead_to_the_login():
    """And from there back to the list: a form cannot be sent again."""
    for answer, back in [
        (Client().get(f"{LIST}?archived=1"), f"{LIST}%3Farchived%3D1"),
        (Client().post(MARK), LIST),
        (Client().post(f"{LIST}7/open/"), LIST),
    ]:
        assert (answer.status_code, answer.url) == (302, f"/accounts/login/?next={back}")


def test_views_answer_themselves_where_everybody_must_log_in():
    """Django's LoginRequiredMiddleware leaves the inbox alone."""
    middleware = LoginRequiredMiddleware(lambda request: None)
    request = RequestFactory().get("/")
    request.user = SimpleNamespace(is_authenticated=False)
    views = {pattern.name: pattern.callback for pattern in urls.urlpatterns}

    assert views.keys() == {"list", "notices", "mark", "open"}
    assert [name for name, view in views.items() if middleware.process_view(request, view, (), {}) is not None] == []


def test_forms_need_a_csrf_token(client, user):
    """Another site's page changes nothing; the page's own forms have the token."""
    notice = keep(user)
    strict = Client(enforce_csrf_checks=True)
    strict.cookies = client.cookies

    for path in (MARK, f"{LIST}{notice.pk}/open/"):
        assert strict.post(path, {"change": "read", "id": notice.pk}).status_code == 403
    assert KeptNotice.objects.get().read_at is None

    assert press(strict, page(strict), "Mark as read").status_code == 302
    assert KeptNotice.objects.get().read_at is not None


def test_changes_are_posted(client, user):
    """A link changes nothing: neither a prefetch nor the list of a page is a reading."""
    notice = keep(user)

    assert client.get(MARK, {"change": "read", "id": notice.pk}).status_code == 405
    assert client.get(f"{LIST}{notice.pk}/open/").status_code == 405
    told(client), page(client)
    notice.refresh_from_db()
    assert (notice.seen_at, notice.read_at) == (None, None)


# Marking.


def mark(client, **fields):
    return client.post(MARK, fields, headers={"accept": "application/json"})


def test_marking_answers_with_the_number(client, user):
    """Each change is one of ``mark``, and the answer says how many are unread after it."""
    first, second = keep(user), keep(user)

    assert mark(client, change="read", id=[first.pk]).json() == {"unread": 1}
    assert mark(client, change="unread", id=[first.pk, second.pk]).json() == {"unread": 2}
    assert mark(client, change="read", until=first.pk).json() == {"unread": 1}
    assert mark(client, change="archived", id=second.pk).json() == {"unread": 0}
    assert mark(client, change="restored", id=second.pk).json() == {"unread": 1}
    assert mark(client, change="seen", id=second.pk).json() == {"unread": 1}
    second.refresh_from_db()
    assert second.seen_at is not None
    assert "no-store" in mark(client, change="seen", id=second.pk)["Cache-Control"]


def test_marking_changes_the_users_own_notices_only(client, user):
    """The ids of somebody else's notices are as good as ids that do not exist."""
    other = keep(new_user("bob"))

    assert mark(client, change="read", id=[other.pk, other.pk + 1]).json() == {"unread": 0}
    assert client.post(f"{LIST}{other.pk}/open/").status_code == 404
    assert client.post(f"{LIST}{2**63}/open/").status_code == 404
    other.refresh_from_db()
    assert other.read_at is None


@cases(
    "fields",
    [
        {},
        {"change": "read"},
        {"id": 1},
        {"change": "deleted", "id": 1},
        {"change": "read", "id": 1, "until": 1},
        {"change": "read", "id": ["1", "x"]},
        {"change": "read", "until": "0"},
        {"change": "read", "id": 2**63},
        {"change": "read", "id": list(range(1, 102))},
        {"change": "read", "until": ""},
    ],
)
def test_wrong_arguments_of_a_change_are_refused(client, fields):
    """What is not understood as a whole changes nothing."""
    assert mark(client, **fields).status_code == 400
    assert mark(client, **fields).json().keys() == {"error"}
    assert client.post(MARK, fields)["Content-Type"] == "text/plain"


def test_hundred_ids_are_marked_at_once(client, user):
    """So many are in one page of the list."""
    rows = [keep(user).pk for _ in range(100)]

    assert mark(client, change="read", id=rows).json() == {"unread": 0}


@cases(
    ("wanted", "leads"),
    [
        ("/orders/?page=2", "/orders/?page=2"),
        ("http://testserver/x", "http://testserver/x"),
        ("", LIST),
        ("https://evil.example/", LIST),
        ("//evil.example", LIST),
        ("javascript:alert(1)", LIST),
        ("\\\\evil.example", LIST),
    ],
)
def test_form_leads_back_on_this_site_only(client, user, wanted, leads):
    """``next`` may name any page of the site, and no other."""
    form = {"change": "read", "id": keep(user).pk, "next": wanted}
    answer = client.post(MARK, form, headers={"accept": "text/html,application/xhtml+xml,*/*;q=0.8"})

    assert (answer.status_code, answer.url) == (302, leads)


def test_opening_marks_as_read_and_leads_on(client, user):
    """A link of a notice, wherever it leads; without one, or with a trick instead, back to the list."""
    for url, leads in [("/exports/7/", "/exports/7/"), ("http://testserver/x/", "http://testserver/x/"), ("", LIST)]:
        notice = keep(user, url=url)
        answer = client.post(f"{LIST}{notice.pk}/open/")
        notice.refresh_from_db()
        assert (answer.status_code, answer.url) == (302, leads)
        assert None not in (notice.read_at, notice.seen_at)
    assert client.post(f"{LIST}{keep(user, url='javascript:alert(1)').pk}/open/").url == LIST


def test_opening_leads_to_another_host_by_a_page(client, user):
    """A browser would not follow a redirect there under ``form-action 'self'``; the address is only text in it."""
    notice = keep(user, url='https://example.com/?a="b"&c=<d>')
    answer = client.post(f"{LIST}{notice.pk}/open/")
    notice.refresh_from_db()

    assert answer.status_code == 200
    assert b'content="0; url=https://example.com/?a=&quot;b&quot;&amp;c=&lt;d&gt;"' in answer.content
    assert notice.read_at is not None


# The page.


def test_page_shows_notices_as_text(client, user):
    """Whatever is in a notice is text, and no markup; the page has no script and no style of its own in it."""
    keep(user, "<b>bold</b>", body="a <i>b</i>\nc", url='/"><script>', group="<u>")

    found = page(client)

    assert {"<b>bold</b>", "a <i>b</i>", "c"} <= set(found.texts)
    assert found.inline == []


def test_notice_is_marked_by_buttons(client, user):
    """Read, unread, archived and restored: each button is one POST, which leads back to the same page."""
    notice = keep(user)

    def state():
        notice.refresh_from_db()
        return bool(notice.read_at), bool(notice.archived_at)

    assert press(client, page(client), "Mark as read").url == LIST
    assert state() == (True, False)
    press(client, page(client), "Mark as unread")
    assert state() == (False, False)
    press(client, page(client), "Archive")
    assert state() == (False, True)
    assert page(client).texts.count("There are no notices.") == 1
    assert press(client, page(client, "?archived=1"), "Restore").url == f"{LIST}?archived=1"
    assert state() == (False, False)
    assert "No notices have been archived." in page(client, "?archived=1").texts


def test_all_are_marked_as_read_up_to_what_was_shown(client, user):
    """What comes while somebody looks at the page stays unread."""
    for _ in range(25):
        keep(user)
    found = page(client)
    late = keep(user)

    press(client, found, "Mark all as read")

    assert [notice.pk for notice in KeptNotice.objects.filter(read_at=None)] == [late.pk]
    assert not any("Mark all as read" in form.buttons for form in page(client, "?archived=1").forms)


def test_unread_notice_is_opened_by_a_button_and_a_read_one_by_a_link(client, user):
    """So that the server learns that it was read, and a link stays a link."""
    notice = keep(user, "Export", url="/exports/7/")
    keep(user, "Trick", url="javascript:alert(1)")

    found = page(client)
    assert (press(client, found, "Export").url, found.links.get("Export")) == ("/exports/7/", None)
    found = page(client)
    assert found.links["Export"] == "/exports/7/"
    assert "Trick" not in found.links
    notice.refresh_from_db()
    assert notice.read_at is not None


def test_groups_are_collapsed(client, user):
    """The newest of a group is shown, the others of the page below it."""
    for n in range(4):
        keep(user, f"Import {n}", group="imports")
    keep(user, "Single")

    answer = client.get(LIST).content.decode()
    before, _, inside = answer.partition("<details>")

    assert [re.search(f"{title}\\b", before) is not None for title in ("Single", "Import 3", "Import 2")] == [
        True,
        True,
        False,
    ]
    assert "and 3 more" in inside
    assert all(f"Import {n}" in inside for n in range(3))
    assert len(page(client).forms) == 1 + 5


def test_page_leads_to_older_ones_and_back(client, user):
    """By links, which keep what is shown."""
    for _ in range(21):
        keep(user, archived_at=NOW)

    first = page(client, "?archived=1")
    older = page(client, first.links["Older"])

    assert "Newest" not in first.links
    assert "Older" not in older.links
    assert older.links["Newest"] == f"{LIST}?archived=1"
    assert len(older.forms) == 1


def test_page_says_how_many_are_unread(client, user):
    """In the words of the bell."""
    notice = keep(user)
    assert "1 unread" in page(client).texts
    for _ in range(99):
        keep(user)
    assert "99+ unread" in page(client).texts
    KeptNotice.objects.exclude(pk=notice.pk).update(read_at=NOW)
    KeptNotice.objects.filter(pk=notice.pk).update(archived_at=NOW)
    assert not any("unread" in text for text in page(client).texts if not text.startswith("Mark"))


def test_numbers_of_a_language_are_no_part_of_an_id(client, user, settings):
    """A site that separates thousands still posts the ids of rows."""
    settings.USE_THOUSAND_SEPARATOR = True
    keep(user, id=1234567, url="/x/")

    with translation.override("de"):
        press(client, page(client), "Import finished")
    assert KeptNotice.objects.get().read_at is not None


def test_page_says_its_language_and_direction(client, user, settings):
    """For screen readers, and for the side on which it begins."""
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, "django.middleware.locale.LocaleMiddleware"]

    with translation.override("en"):  # the middleware leaves the language of its request to the thread
        assert b'<html lang="ar" dir="rtl">' in client.get(LIST, headers={"accept-language": "ar"}).content
        assert b'<html lang="de" dir="ltr">' in client.get(LIST, headers={"accept-language": "de"}).content


def test_site_has_its_own_templates(client, user, settings, tmp_path):
    """Its base for all pages of the inbox."""
    (tmp_path / "notifications/inbox").mkdir(parents=True)
    (tmp_path / "notifications/inbox/base.html").write_text("<p>Of the site</p>{% block content %}{% endblock %}")
    settings.TEMPLATES = [{**settings.TEMPLATES[0], "DIRS": [str(tmp_path)]}]

    assert {"Of the site", "There are no notices."} <= set(page(client).texts)
