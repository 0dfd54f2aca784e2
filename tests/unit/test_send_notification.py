"""``manage.py send_notification``: a notice by hand, to a user by name or by key."""

import pytest
from django.contrib.auth import get_user_model
from django.core.management import CommandError, call_command

from notifications.testing import assert_notified, captured

pytestmark = pytest.mark.django_db


@pytest.fixture(params=["auth.User", "testsite.UuidUser", "testsite.CompositeUser"])
def ann(request, settings):
    """Return a user of each sort of primary key: a number, a UUID, two fields."""
    settings.AUTH_USER_MODEL = request.param
    name = get_user_model().USERNAME_FIELD
    number = {"number": 7} if request.param == "testsite.CompositeUser" else {}
    return get_user_model().objects.create(**{name: "ann", "password": "x", **number})


def test_a_user_is_found_by_login_name(ann, capsys):
    """The notice is published on the user's topic, and the command says which it is."""
    with captured():
        call_command("send_notification", "ann", "Hello", level="success")
        assert_notified(ann, action="notice", title="Hello", level="success")

    assert f"Published on user:{ann.pk}." in capsys.readouterr().out


@pytest.mark.parametrize("ann", ["auth.User", "testsite.UuidUser"], indirect=True)
def test_a_user_is_found_by_primary_key(ann):
    """Whoever has no login name at hand gives the key; one of several fields has no text."""
    with captured():
        call_command("send_notification", str(ann.pk), "Hello")
        assert_notified(ann, title="Hello")


def test_a_mistyped_name_is_one_sentence(ann):
    """Whatever is typed that names nobody, the answer says so, whatever the users' keys are."""
    with captured() as sent:
        for name in ("adda", "0", "1a5c0bb1-28e0-4b57-b24e-b4251eb1f5db", "9" * 40, ""):
            with pytest.raises(CommandError, match=f"^there is no user '{name}'$"):
                call_command("send_notification", name, "Hello")
        with pytest.raises(CommandError, match=r"^there is no user '\\udcff'$"):  # a byte that is no UTF-8
            call_command("send_notification", "\udcff", "Hello")

    assert sent == []
