"""Messages of code that has no request: what they become, and how Django's own functions keep them."""

import inspect

import pytest
from asgiref.sync import sync_to_async
from django.contrib import messages as djangos
from django.contrib.messages import constants
from django.test import override_settings
from django.utils.html import format_html
from django.utils.safestring import mark_safe
from django.utils.translation import gettext_lazy, override

from notifications import MessageError
from notifications.inbox import messages
from notifications.inbox.models import KeptNotice
from notifications.testing import captured
from tests.cases import cases
from tests.users import new_user

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("sent")]


@pytest.fixture
def sent():
    with captured() as sent:
        yield sent


@pytest.fixture
def user():
    return new_user("ada")


def kept():
    return list(KeptNotice.objects.order_by("id").values_list("level", "title"))


def test_message_becomes_a_notice(user, sent, django_capture_on_commit_callbacks):
    """It is kept and published, with whatever a notice has beside its title."""
    with django_capture_on_commit_callbacks(execute=True):
        row = messages.success(user, "Imported", body="7 rows", url="/imports/7/", key="import-7", group="imports")

    assert (row.user, row.level, row.title, row.body, row.url) == (user, "success", "Imported", "7 rows", "/imports/7/")
    assert (row.key, row.group) == ("import-7", "imports")
    assert [(str(topic), message["title"]) for topic, message, _ in sent] == [(f"user:{user.pk}", "Imported")]


def test_functions_are_those_of_django():
    """Code needs another import, and a user in place of the request, and nothing else; twins take the same."""
    for name in ("add_message", "debug", "info", "success", "warning", "error"):
        theirs, ours, twin = (getattr(*each) for each in ((djangos, name), (messages, name), (messages, f"a{name}")))
        parameters = [each.name for each in inspect.signature(ours).parameters.values()]

        assert parameters == ["user", *list(inspect.signature(theirs).parameters)[1:], "options"]
        assert inspect.signature(twin) == inspect.signature(ours)
        assert inspect.iscoroutinefunction(twin)


@override_settings(MESSAGE_LEVEL=constants.DEBUG)
def test_levels_become_the_nearest_of_a_notice(user):
    """Django has one more, and a site may have its own."""
    for name in ("debug", "info", "success", "warning", "error"):
        getattr(messages, name)(user, name)
    for level in (0, 24, 29, 35, 50):
        messages.add_message(user, level, str(level))

    assert kept() == [
        ("info", "debug"),
        ("info", "info"),
        ("success", "success"),
        ("warning", "warning"),
        ("error", "error"),
        ("info", "24"),
        ("success", "29"),
        ("warning", "35"),
        ("error", "50"),
    ]


def test_level_of_the_site_has_the_meaning_of_its_tag(user):
    """A tag that is a level of notices says more than the number; others are for CSS."""
    with override_settings(MESSAGE_TAGS={60: "warning", constants.ERROR: "danger"}):
        messages.add_message(user, 60, "own")
        messages.error(user, "error")

    assert kept() == [("warning", "own"), ("error", "error")]


def test_what_django_would_not_show_is_not_kept(user):
    """Below MESSAGE_LEVEL, and without a text."""
    assert messages.debug(user, "debug") is None
    assert messages.success(user, "") is None
    with override_settings(MESSAGE_LEVEL=constants.ERROR):
        assert messages.warning(user, "warning") is None
        assert messages.error(user, "error") is not None

    assert kept() == [("error", "error")]


@cases(
    ("message", "title"),
    [
        (gettext_lazy("Yes"), "Ja"),
        ("<b>a</b> & b", "<b>a</b> & b"),
        (mark_safe("<b>a</b> &amp; b"), "a & b"),
        (format_html('Deleted <a href="/x/">{}</a>.', "<i>"), "Deleted <i>."),
        (ValueError("wrong"), "wrong"),
        (7, "7"),
    ],
)
def test_title_is_the_text_of_a_message(user, message, title):
    """In the language of now; of HTML, which is what a safe string is, the text alone; an exception is its text."""
    with override("de"):
        assert messages.info(user, message).title == title


def test_arguments_of_django_are_accepted(user):
    """``extra_tags`` and ``fail_silently`` mean nothing, and no call has to be changed for that."""
    messages.success(user, "one", "extra", True)
    messages.add_message(user, constants.INFO, "two", extra_tags="safe", fail_silently=True)

    assert kept() == [("success", "one"), ("info", "two")]


def test_mistakes_are_raised(user):
    """An option that neither a notice nor ``notify`` has, and a value that is wrong."""
    with pytest.raises(TypeError):
        messages.success(user, "text", colour="red")
    with pytest.raises(MessageError):
        messages.success(user, "text", group="x" * 201)


@pytest.mark.django_db(transaction=True)
async def test_twins_do_the_same():
    """In a coroutine, which must not wait for a database."""
    user = await sync_to_async(new_user)("bob")

    for name in ("adebug", "ainfo", "asuccess", "awarning", "aerror"):
        await getattr(messages, name)(user, name, group="twins")

    found = KeptNotice.objects.filter(group="twins").order_by("id")
    assert [level async for level in found.values_list("level", flat=True)] == ["info", "success", "warning", "error"]


# Django's own functions, with a request that is none.


def test_djangos_functions_keep_notices(user):
    """Code that is shared with a view gets ``request_for(user)``, and cannot tell."""
    request = messages.request_for(user, group="imports")

    djangos.success(request, "Imported", extra_tags="safe")
    djangos.debug(request, "no")
    djangos.error(request, mark_safe("<b>3</b> lines were wrong"), fail_silently=True)

    assert kept() == [("success", "Imported"), ("error", "3 lines were wrong")]
    assert {notice.group for notice in KeptNotice.objects.all()} == {"imports"}
    assert request.user == user
    assert list(djangos.get_messages(request)) == []
    assert len(djangos.get_messages(request)) == 0


def test_level_of_such_a_request_can_be_set(user):
    """As that of any other: for this request alone."""
    request = messages.request_for(user)

    assert djangos.get_level(request) == constants.INFO
    djangos.set_level(request, constants.DEBUG)
    djangos.debug(request, "yes")
    djangos.debug(messages.request_for(user), "no")

    assert kept() == [("info", "yes")]


def test_such_a_request_leaves_nothing_for_a_response(user):
    """What middleware would do at the end does nothing."""
    request = messages.request_for(user)
    djangos.success(request, "one")

    assert request._messages.update(None) is None
    assert len(kept()) == 1


def test_djangos_messages_need_not_be_installed():
    """The test site has not got them."""
    from django.apps import apps

    assert not apps.is_installed("django.contrib.messages")
