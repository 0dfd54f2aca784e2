"""What the tags of the inbox render: a link with the number, for the user of the page, and the script."""

from types import SimpleNamespace

import pytest
from django.contrib.auth.models import AnonymousUser
from django.template import Context, engines
from django.test.utils import CaptureQueriesContext

from notifications import publish_to_user
from notifications.inbox.models import KeptNotice
from notifications.templatetags.notifications import page_position
from notifications.topics import Topic
from tests.cases import cases
from tests.unit.test_templatetags import Elements, config_of, render
from tests.users import new_user

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("memory_store")]
BELL = "{% load notifications_inbox %}{% notification_bell %}"
LIST = "{% load notifications_inbox %}{% notification_inbox %}"


@pytest.fixture
def user():
    return new_user("ada")


def keep(user, n):
    KeptNotice.objects.bulk_create(KeptNotice(user=user, title=str(number), pending_since=None) for number in range(n))


def element_of(page):
    return next(attributes for tag, attributes, _ in Elements(page).found if tag.startswith("notification-"))


def link_of(page):
    return next("".join(text) for tag, _, text in Elements(page).found if tag == "a")


def test_bell_has_all_that_its_script_needs(user):
    """The element names the addresses, whose it is, from when on the page is told, and a token for its forms."""
    keep(user, 3)

    found = element_of(render(BELL, user=user))

    assert len(found.pop("csrf-token")) > 30
    assert found.pop("since")
    assert found == {
        "src": "/notifications/inbox/notices/",
        "mark-url": "/notifications/inbox/mark/",
        "page-url": "/notifications/inbox/",
        "user": f"user:{user.pk}",
        "unread": "3",
    }


@cases(
    ("more", "words"),
    [(0, "Notices"), (1, "Notices (1 unread)"), (98, "Notices (99 unread)"), (1, "Notices (99+ unread)")],
)
def test_link_says_the_number(user, more, words):
    """Without JavaScript there is a link with the number, which is "99+" from a hundred on."""
    keep(user, more)

    page = render(BELL, user=user)

    assert link_of(page) == words
    assert 'href="/notifications/inbox/"' in page


def test_list_is_rendered_likewise(user):
    """The list in the page has the same attributes, and the same link."""
    page = render(LIST, user=user)

    assert {tag for tag, _, _ in Elements(page).found} == {"notification-inbox", "a", "script"}
    assert element_of(page).keys() == element_of(render(BELL, user=user)).keys()


def test_nothing_is_rendered_for_nobody(user):
    """Anonymous users, and templates without a request, have no bell, and ask the database nothing."""
    from django.db import connection

    with CaptureQueriesContext(connection) as queries:
        assert render(BELL + LIST, user=AnonymousUser()) == ""
        assert engines["django"].from_string(BELL).template.render(Context()) == ""
    assert len(queries) == 0


def test_script_has_the_nonce_of_the_page(user):
    """The script runs under a policy with nonces; without one it has none."""
    (script,) = [
        found for tag, found, _ in Elements(render(BELL, user=user, csp_nonce="r4nd")).found if tag == "script"
    ]

    assert script["nonce"] == "r4nd"
    assert "nonce" not in render(BELL, user=user)


@cases("template", ["{% notifications %}" + BELL, BELL + "{% notifications %}"])
def test_position_of_a_page_is_taken_once_before_anything_is_counted(user, template):
    """Whichever tag comes first, both begin at one position, from before the number was counted."""
    since = publish_to_user(user, {"n": 0})
    middle = template.index("{% notifications %}") or len("{% notifications %}")
    page = render(
        "{% load notifications_inbox %}" + template[:middle] + "{{ publish }}" + template[middle:],
        user=user,
        context={"publish": lambda: publish_to_user(user, {"n": 1})},
    )

    assert config_of(page)["since"] == element_of(page)["since"] == since


def test_position_is_that_of_the_user_who_is_logged_in_now(user, settings):
    """A view that logs in another user renders a page that begins where that user's topic is."""
    context = Context()
    context.request = SimpleNamespace(user=user)
    first = page_position(context, Topic.for_user(user))
    publish_to_user(user, {"n": 1})

    assert page_position(context, Topic.for_user(user)) == first
    other = new_user("bob")
    publish_to_user(other, {"n": 1})
    assert page_position(context, Topic.for_user(other)) != first
