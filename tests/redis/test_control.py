"""Ending access, as Redis passes it on: what Django's own events tell, and when."""

import json
import os
import subprocess
import sys
import time

import pytest
from django.apps import apps
from django.contrib.auth import get_user_model
from django.contrib.auth.hashers import make_password
from django.contrib.auth.models import Group, User
from django.contrib.sessions.models import Session
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

import notifications
from notifications.access import control
from notifications.access.control import Control, fingerprint
from notifications.history import get_store
from notifications.topics import Topic
from tests.change_users import MODELS
from tests.processes import ROOT
from tests.waiting import scaled


@pytest.fixture
def told(live_redis):
    """Return a function that reads what has been said on the control channel since it was last asked."""
    listening = live_redis.pubsub(ignore_subscribe_messages=True)
    listening.subscribe(control.channel())
    listening.get_message(timeout=scaled(1))

    def read():
        live_redis.publish(control.channel(), "end")
        said = []
        while True:
            message = listening.get_message(timeout=scaled(5))
            if message is not None and message["data"] == b"end":
                return said
            if message is not None:
                said.append(Control.read(message["data"]))

    yield read
    listening.close()


# The calls.


def test_disconnect_user_tells(told):
    """A user is named by instance or key, a session by a fingerprint, from which nobody gets the key."""
    notifications.disconnect_user(User(pk=42))
    notifications.disconnect_user("42", session_key="secret")

    assert told() == [Control("disconnect", "42"), Control("disconnect", "42", fingerprint("secret"))]
    assert "secret" not in fingerprint("secret")


async def test_async_twins_tell_the_same(told):
    """The twins say the same words."""
    await notifications.adisconnect_user(42)
    await notifications.arevoke("order:ABC", 42)

    assert told() == [Control("disconnect", "42"), Control("revoke", "42", "order:abc")]
    assert await get_store().agrants_revoked_at("42", Topic("order", "abc")) > 0


def test_a_revoke_takes_back_what_was_granted(told):
    """For as long as such a grant would have been valid, and from that user only."""
    before = time.time()
    notifications.revoke("order:ABC", 42)

    assert get_store().grants_revoked_at("42", Topic("order", "abc")) >= before
    assert get_store().grants_revoked_at("43", Topic("order", "abc")) == 0
    assert get_store().grants_revoked_at("42", Topic("order", "abd")) == 0


@pytest.mark.django_db(transaction=True)
def test_with_on_commit_nothing_is_told_before_the_end(told):
    """What is rolled back ends nobody's access."""
    with transaction.atomic():
        notifications.revoke("order:7", 42, on_commit=True)
        notifications.disconnect_user(42, on_commit=True)
        assert told() == []
    assert [each.do for each in told()] == ["revoke", "disconnect"]
    with transaction.atomic():
        notifications.disconnect_user(42, on_commit=True)
        transaction.set_rollback(True)

    assert told() == []


@pytest.mark.parametrize("key", [None, ""])
async def test_the_key_of_an_unsaved_session_closes_nothing(told, key):
    """None and "" are what an unsaved session has for a key: an error, and not "all" nor "those by token"."""
    with pytest.raises(ValueError, match="leave it out to close all"):
        notifications.disconnect_user(42, session_key=key)
    with pytest.raises(ValueError, match="leave it out to close all"):
        await notifications.adisconnect_user(42, session_key=key)

    assert told() == []


# Django's signals.


@pytest.fixture
def user(transactional_db):
    return get_user_model().objects.create_user("ann", password="secret")


def test_saves_that_change_nothing_of_the_access_tell_nothing(told, user):
    """A login, a new name, other models and new users cost no call to Redis."""
    for ann in (user, get_user_model().objects.get(pk=user.pk)):
        ann.first_name = "Ann"
        ann.save()
    user.save(update_fields=["last_login"])
    get_user_model().objects.only("first_name").get(pk=user.pk).save()
    get_user_model().objects.create_user("ben", password="x", is_active=False)
    Group.objects.create(name="x")

    assert told() == []


def test_a_new_password_and_a_deactivation_are_told(told, user, django_assert_num_queries):
    """``set_password`` and ``is_active = False`` have the processes look, without a query of this app."""
    user.set_password("new")
    with django_assert_num_queries(1):
        user.save()
    user.is_active = False
    with django_assert_num_queries(1):
        user.save(update_fields=["is_active"])

    assert told() == [Control("check", str(user.pk))] * 2


def test_a_password_that_changes_in_any_way_is_told(told, user, django_assert_num_queries):
    """Django's admin disables it without ``set_password``, and a site may copy its hash from elsewhere."""
    users = get_user_model().objects
    disabled, copied, named = (users.get(pk=user.pk) for _ in range(3))
    disabled.set_unusable_password()
    copied.password = make_password("new")
    named.password = make_password("other")

    with django_assert_num_queries(3):
        disabled.save()
        copied.save()
        named.save(update_fields=["password"])

    assert told() == [Control("check", str(user.pk))] * 3


def test_a_password_that_is_not_known_to_be_the_same_is_told(told, user):
    """As of users who are made anew with the key of one there is, such as by ``loaddata``, or read in parts."""
    made = get_user_model()(pk=user.pk, username="ann", password=make_password("new"))
    made.save()
    read = get_user_model().objects.defer("password").get(pk=user.pk)
    read.password = make_password("other")
    read.save()

    assert told() == [Control("check", str(user.pk))] * 2


def test_a_password_that_is_not_written_is_not_told(told, user):
    """What ``save`` leaves out ends nobody's access."""
    user.set_password("new")
    user.save(update_fields=["last_login"])

    assert told() == []


def test_a_new_password_is_told_when_a_rolled_back_save_is_repeated(told, user):
    """The first attempt has told nobody, so the instance must not remember it."""
    user.set_unusable_password()
    for is_rolled_back in (True, False):
        with transaction.atomic():
            user.save()
            transaction.set_rollback(is_rolled_back)

    assert told() == [Control("check", str(user.pk))]


@pytest.fixture
def models_of_its_own():
    """Forget the models that a test defines: they are in no migration, and no database could be migrated any more."""
    models = apps.all_models["testsite"]
    before = dict(models)
    yield
    models.clear()
    models.update(before)
    apps.clear_cache()


@pytest.mark.usefixtures("models_of_its_own")
def test_proxies_of_the_user_model_are_users(told, user):
    """A site may save its users through a proxy model."""

    class Staff(User):
        class Meta:
            proxy = True
            app_label = "testsite"

    proxy = Staff.objects.get(pk=user.pk)
    proxy.is_active = False
    proxy.save()

    assert told() == [Control("check", str(user.pk))]


@pytest.mark.usefixtures("models_of_its_own")
def test_a_user_deleted_through_a_proxy_is_told(told, user):
    """Nor need the site delete them as what they are, also where the proxy is made after the app is ready."""

    class Employee(User):
        class Meta:
            proxy = True
            app_label = "testsite"

    other = get_user_model().objects.create_user("ben")
    pks = user.pk, other.pk
    Employee.objects.get(pk=user.pk).delete()
    Employee.objects.filter(pk=other.pk).delete()

    assert told() == [Control("check", str(pk)) for pk in pks]


@pytest.mark.parametrize("model", MODELS)
def test_users_are_told_through_any_model_of_their_rows(told, redis_server, model):
    """A user model may be a proxy, or a parent or a child in multi-table inheritance; the user's own key is told."""
    env = {**os.environ, "DJANGO_SETTINGS_MODULE": "tests.settings", "REDIS_URL": redis_server.url}
    env["TEST_SETTINGS"] = json.dumps({"AUTH_USER_MODEL": f"testsite.{model}"})
    command = [sys.executable, "-m", "tests.change_users"]

    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=scaled(60), check=False)

    assert done.returncode == 0, done.stderr
    changes = [json.loads(line) for line in done.stdout.splitlines()]
    assert {name for name, *_ in changes} == set(MODELS)
    assert told() == [Control("check", pk) for _, _, pk in changes]


def test_a_program_without_users_saves_its_models():
    """One that only publishes need not have ``django.contrib.auth`` installed."""
    code = "import django; django.setup()\nfrom django.core.management import call_command as call; call('migrate')"
    env = {**os.environ, "DJANGO_SETTINGS_MODULE": "tests.settings"}  # each migration that was applied is a row
    env["TEST_SETTINGS"] = json.dumps({"INSTALLED_APPS": ["django.contrib.sessions", "channels", "notifications"]})

    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=scaled(60), check=False)

    assert done.returncode == 0, done.stderr


def test_other_models_are_deleted_as_fast_as_without_us(told, transactional_db):
    """A receiver for all models would have Django read each row of any table before it deletes it."""
    Session.objects.create(session_key="a", expire_date=timezone.now())

    with CaptureQueriesContext(connection) as asked:
        Session.objects.all().delete()

    assert [query["sql"] for query in asked if "SELECT" in query["sql"]] == []
    assert told() == []


def test_a_deleted_user_is_told(told, user):
    """The account is named, though it has no key any more when the transaction commits."""
    pk = user.pk
    with transaction.atomic():
        user.delete()

    assert told() == [Control("check", str(pk))]


def test_a_rolled_back_change_is_not_told(told, user):
    """The database decides."""
    with transaction.atomic():
        user.is_active = False
        user.save()
        transaction.set_rollback(True)

    assert told() == []


def test_a_logout_tells_its_session(told, user, client, settings):
    """The user and a fingerprint of the session are sent; an anonymous logout sends nothing."""
    settings.SESSION_ENGINE = "django.contrib.sessions.backends.db"
    client.force_login(user)
    key = client.session.session_key

    client.post("/log_out/")
    client.post("/log_out/")

    assert told() == [Control("disconnect", str(user.pk), fingerprint(key))]
