"""Telling the web processes whose access ends: what is said, by whom, when, and what happens without Redis."""

import logging
import time

import pytest
from django.contrib.auth import get_user_model
from django.contrib.auth.models import AnonymousUser, User
from django.core import signing

import notifications
from notifications import PublishError, TopicError, sending
from notifications.access.control import MAX_AGE, SALT, Control, ControlError
from tests.cases import cases
from tests.conftest import point_to

# The message.


@cases("message", [Control("disconnect", "42"), Control("revoke", "42", "order:é:7"), Control("check", "ü" * 200)])
def test_what_was_signed_is_read(message):
    """Any user and topic survive the road."""
    assert Control.read(message.sign().encode()) == message


@cases(
    "data",
    [
        b"",
        b"\xff",
        b'["disconnect","42",""]',
        signing.dumps(["disconnect", "42"], salt=SALT).encode(),
        signing.dumps(["disconnect", "42", "", ""], salt=SALT).encode(),
        signing.dumps(["close", "42", ""], salt=SALT).encode(),
        signing.dumps([["disconnect"], "42", ""], salt=SALT).encode(),
        signing.dumps(["disconnect", 42, ""], salt=SALT).encode(),
        signing.dumps(["disconnect", ["42"], {}], salt=SALT).encode(),
        signing.dumps({"do": "disconnect"}, salt=SALT).encode(),
        signing.dumps(7, salt=SALT).encode(),
        signing.dumps(["disconnect", "42", ""], salt="notifications.token").encode(),
        signing.dumps(["disconnect", "42", ""], salt=SALT, key="another").encode(),
    ],
)
def test_what_is_not_ours_is_refused(data):
    """Only what this site signed for this purpose, and what makes sense, is a control message."""
    with pytest.raises(ControlError):
        Control.read(data)


def test_an_old_message_is_refused(monkeypatch):
    """Who records a control message cannot use it later."""
    message = Control("disconnect", "42").sign().encode()
    later = time.time() + MAX_AGE + 2
    monkeypatch.setattr(time, "time", lambda: later)

    with pytest.raises(ControlError):
        Control.read(message)


@pytest.mark.parametrize(("ahead", "good"), [(MAX_AGE - 10, True), (MAX_AGE + 10, False)])
def test_a_message_of_a_time_to_come_is_refused(monkeypatch, ahead, good):
    """Hosts' clocks may differ by as much as a message may be old; no clock that was set back makes it young."""
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + ahead)
    message = Control("disconnect", "42").sign().encode()
    monkeypatch.setattr(time, "time", lambda: now)

    if good:
        assert Control.read(message) == Control("disconnect", "42")
    else:
        with pytest.raises(ControlError):
            Control.read(message)


@cases(
    "call",
    [
        lambda: notifications.disconnect_user(AnonymousUser()),
        lambda: notifications.disconnect_user(User()),
        lambda: notifications.revoke("order", 42),
        lambda: notifications.revoke("nosuch:7", 42),
        lambda: notifications.revoke("user:42", 42),
    ],
)
def test_nonsense_is_an_error(call):
    """Nobody believes to have ended an access that there is not."""
    with pytest.raises(TopicError):
        call()


@pytest.fixture
def no_redis(settings):
    point_to(settings, "redis://127.0.0.1:1/0")
    sending.log_anew()


async def test_a_redis_that_is_not_there_is_an_error_unless_silenced(no_redis, caplog):
    """The caller hears that nobody was told, or finds it in the log."""
    with pytest.raises(PublishError, match="notifications:control"):
        notifications.disconnect_user(42)
    with pytest.raises(PublishError):
        await notifications.arevoke("order:7", 42)
    with caplog.at_level(logging.WARNING, "notifications"):
        notifications.disconnect_user(42, fail_silently=True)
        await notifications.adisconnect_user(42, fail_silently=True)

    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]


# Django's signals.


@pytest.fixture
def user(transactional_db):
    return get_user_model().objects.create_user("ann", password="secret")


def test_django_goes_on_without_redis(no_redis, user, client, settings):
    """Neither a logout nor a save fails because nobody can be told."""
    settings.SESSION_ENGINE = "django.contrib.sessions.backends.db"
    client.force_login(user)

    assert client.post("/log_out/").status_code == 200
    user.is_active = False
    user.save()
    user.delete()
