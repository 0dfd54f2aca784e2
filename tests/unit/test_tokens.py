"""Tokens and grants: who a socket is, and what a page let it read."""

import time
import uuid
from types import SimpleNamespace

import pytest
from django.contrib.auth import get_user_model
from django.contrib.auth.models import User
from django.core import signing
from hypothesis import example, given
from hypothesis import strategies as st

from notifications import Topic, TopicError
from notifications.tokens import check_grant, check_token, make_grant, make_token

TOPIC = Topic("upload", "7f3c")


@pytest.fixture
def ann(db):
    return User.objects.create_user("ann", password="one")


@pytest.fixture
def ben(db):
    return User.objects.create_user("ben", password="two")


@pytest.fixture
def later(monkeypatch):
    """Return a function that lets seconds pass for what is signed."""

    def pass_seconds(seconds):
        now = time.time() + seconds
        monkeypatch.setattr(signing.time, "time", lambda: now)

    return pass_seconds


def short_lived(settings, seconds):
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "TOKEN_MAX_AGE": seconds, "GRANT_MAX_AGE": seconds}


def tampered(text):
    """Yield the text with each of its characters changed in turn."""
    for at, letter in enumerate(text):
        yield text[:at] + ("A" if letter != "A" else "B") + text[at + 1 :]


def test_a_token_names_its_user(ann, ben):
    """check_token finds the user the token was made for."""
    assert check_token(make_token(ann)) == ann
    assert check_token(make_token(ben)) == ben


@pytest.mark.parametrize(("seconds", "good"), [(290, True), (310, False), (3600, False)])
def test_what_was_signed_in_a_time_to_come_is_refused(ann, later, seconds, good):
    """A clock that was set back makes no token and no grant good for longer; those of hosts may differ a little."""
    later(seconds)
    token, grant = make_token(ann), make_grant(ann, "closed:7")
    later(-seconds)

    assert (check_token(token) == ann) is good
    assert check_grant(grant, ann, Topic("closed", "7")) is good


def test_a_token_of_a_user_with_a_uuid_works(db, settings):
    """AUTH_USER_MODEL may have any primary key."""
    settings.AUTH_USER_MODEL = "testsite.UuidUser"
    eve = get_user_model().objects.create(name="eve", password="x")

    assert check_token(make_token(eve)) == eve
    assert check_grant(make_grant(eve, TOPIC), eve, TOPIC)


def test_a_token_of_a_user_with_a_composite_key_works(db, settings):
    """A primary key may have several fields, of several types."""
    settings.AUTH_USER_MODEL = "testsite.CompositeUser"
    firm = uuid.uuid4()
    users = [get_user_model().objects.create(firm=firm, number=n, name=f"eve{n}", password="x") for n in (1, 2)]

    for user in users:
        assert check_token(make_token(user)) == user
        assert check_grant(make_grant(user, TOPIC), user, TOPIC)
    assert not check_grant(make_grant(users[0], TOPIC), users[1], TOPIC)
    users[0].delete()
    assert check_token(make_token(users[1])) == users[1]


@pytest.mark.parametrize(("age", "valid"), [(0, True), (59, True), (62, False), (10**6, False)])
def test_a_token_is_valid_for_token_max_age_seconds(ann, settings, later, age, valid):
    """A token ends with the setting's seconds, which are read when it is checked."""
    token = make_token(ann)
    short_lived(settings, 60)

    later(age)

    assert (check_token(token) == ann) is valid


def test_a_change_of_password_ends_a_token(ann):
    """Whoever changes the password ends tokens as sessions."""
    token = make_token(ann)

    ann.set_password("new")
    ann.save()

    assert check_token(token) is None
    assert check_token(make_token(ann)) == ann


def test_a_deleted_user_has_no_token(ann):
    """The token of a user who is gone names nobody."""
    token = make_token(ann)
    ann.delete()

    assert check_token(token) is None


def test_an_inactive_user_is_still_found(ann):
    """Whether inactive users may connect is decided by the caller, who logs it."""
    ann.is_active = False
    ann.save()

    assert check_token(make_token(ann)) == ann


def test_a_tampered_token_is_refused(ann):
    """A token with any one character changed names nobody."""
    token = make_token(ann)

    assert [changed for changed in tampered(token) if check_token(changed) is not None] == []


@given(token=st.text() | st.lists(st.text("abcXYZ019-_"), min_size=3, max_size=3).map(":".join))
@example(token="")
@example(token="::")
@example(token=".eJ:1:x")
@example(token="é:é:é")
@example(token="\ud800:\ud800:\ud800")
@example(token="a:b:" + "c" * 16000)
def test_no_text_is_a_token_by_chance(token):
    """Any text a browser may send is refused without an error and without asking the database."""
    assert check_token(token) is None
    assert check_grant(token, SimpleNamespace(pk=1), TOPIC) is False


def test_what_was_signed_elsewhere_is_no_token(ann):
    """A text that another part of the site signed, with the same key, is neither a token nor a grant."""
    content = {"user": str(ann.pk), "auth": "x"}

    assert check_token(signing.dumps(content)) is None
    assert check_token(signing.dumps(content, salt="another")) is None
    assert not check_grant(signing.dumps([str(ann.pk), str(TOPIC)]), ann, TOPIC)


def test_a_token_of_another_key_is_refused(ann, settings):
    """A token signed with another SECRET_KEY, which is no fallback, is forged."""
    token = make_token(ann)
    settings.SECRET_KEY = "another" * 10

    assert check_token(token) is None


def test_a_rotated_key_ends_no_token_and_no_grant(ann, settings):
    """A token and a grant made before SECRET_KEY became a fallback stay valid, as sessions do."""
    token, grant = make_token(ann), make_grant(ann, TOPIC)

    settings.SECRET_KEY_FALLBACKS = [settings.SECRET_KEY]
    settings.SECRET_KEY = "another" * 10

    assert check_token(token) == ann
    assert check_grant(grant, ann, TOPIC)


def test_a_change_of_password_ends_a_token_after_a_rotation_too(ann, settings):
    """A fallback key does not bring back a token from before a change of password."""
    token = make_token(ann)
    settings.SECRET_KEY_FALLBACKS = [settings.SECRET_KEY]
    settings.SECRET_KEY = "another" * 10

    ann.set_password("new")
    ann.save()

    assert check_token(token) is None


def test_a_token_does_not_show_the_session_hash(ann):
    """Tokens are readable: the hash that a session cookie is checked with is not in them."""
    content = signing.b64_decode(make_token(ann).split(":")[0].encode()).decode()

    assert str(ann.pk) in content
    assert ann.get_session_auth_hash() not in content


def test_a_token_fits_into_a_frame(ann):
    """A token is a few hundred bytes, far below an auth frame's 16 KiB."""
    assert len(make_token(ann)) < 300


# Grants.


def test_a_grant_opens_its_topic_to_its_user(ann):
    """check_grant says yes to the user and the topic it was made for."""
    assert check_grant(make_grant(ann, TOPIC), ann, TOPIC)
    assert check_grant(make_grant(ann, "upload:7f3c"), ann, TOPIC)


def test_a_grant_opens_nothing_else(ann, ben):
    """Another user, another id and another kind are refused."""
    grant = make_grant(ann, TOPIC)

    assert not check_grant(grant, ben, TOPIC)
    assert not check_grant(grant, ann, Topic("upload", "7f3d"))
    assert not check_grant(grant, ann, Topic("closed", "7f3c"))


def test_a_grant_follows_the_one_spelling_of_an_id(ann):
    """A grant for an id as the page wrote it opens the topic that CLEAN_ID made of it."""
    assert check_grant(make_grant(ann, "order:ABC"), ann, Topic("order", "abc"))


@pytest.mark.parametrize(("age", "valid"), [(0, True), (59, True), (62, False)])
def test_a_grant_is_valid_for_grant_max_age_seconds(ann, settings, later, age, valid):
    """A grant ends with the setting's seconds."""
    grant = make_grant(ann, TOPIC)
    short_lived(settings, 60)

    later(age)

    assert check_grant(grant, ann, TOPIC) is valid


def test_a_tampered_grant_is_refused(ann):
    """A grant with any one character changed opens nothing."""
    grant = make_grant(ann, TOPIC)

    assert [changed for changed in tampered(grant) if check_grant(changed, ann, TOPIC)] == []


def test_a_token_is_no_grant_and_a_grant_is_no_token(ann):
    """The two cannot be exchanged, though both are signed with the same key."""
    assert not check_grant(make_token(ann), ann, TOPIC)
    assert not check_grant(make_token(ann), ann, Topic.for_user(ann))
    assert check_token(make_grant(ann, TOPIC)) is None
    assert check_token(make_grant(ann, Topic.for_user(ann))) is None


@pytest.mark.parametrize("topic", ["upload", "nope:1", "upload:", "order:bad"])
def test_no_grant_is_made_for_what_is_no_topic(ann, topic):
    """make_grant raises TopicError where the page is rendered, not where a browser uses it."""
    with pytest.raises(TopicError):
        make_grant(ann, topic)
