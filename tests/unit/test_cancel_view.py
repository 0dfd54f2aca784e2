"""The view by which a page cancels a job: who may, and what it answers."""

import json
from types import SimpleNamespace

import pytest
from django.contrib.auth.models import AnonymousUser
from django.core.exceptions import PermissionDenied
from django.db import OperationalError
from django.test import Client, RequestFactory
from django.urls import reverse

from notifications.history import get_store
from notifications.testing import captured, redis_outage
from notifications.tokens import make_grant
from notifications.topics import Topic
from notifications.views import cancel
from tests.cases import cases

USER = SimpleNamespace(pk=7, username="ada", is_authenticated=True)


@pytest.fixture(autouse=True)
def kinds(settings):
    """Kinds that say yes and no in each way that a site can."""

    async def later(user, id_):
        return id_.startswith(user.username)

    def raises(error):
        def authorize(user, id_):
            raise error

        return {"AUTHORIZE": authorize}

    settings.NOTIFICATIONS = {
        **settings.NOTIFICATIONS,
        "TOPICS": {
            "job": {"AUTHORIZE": "tests.testsite.permissions.may_watch"},
            "later": {"AUTHORIZE": later},
            "many": {"AUTHORIZE_MANY": lambda pairs: [id_.startswith(user.username) for user, id_ in pairs]},
            "everybody": {"PUBLIC": True},
            "nobody": {},
            "invalid": raises(ValueError("not a number")),
            "denied": raises(PermissionDenied()),
            "broken": raises(ZeroDivisionError()),
            "away": raises(OperationalError("the database is away")),
        },
    }
    with captured():
        yield


def post(topic, user=USER, **form):
    request = RequestFactory().post("/", {"topic": topic, **form})
    request.user = user
    request._dont_enforce_csrf_checks = True
    return cancel(request)


@cases("topic", ["job:ada-1", "later:ada-1", "many:ada-1", "user:7"])
def test_who_may_read_may_cancel(topic):
    """``AUTHORIZE`` says yes, in whatever form it has; and a user's own topic is theirs."""
    answer = post(topic)

    assert (answer.status_code, answer.content) == (204, b"")
    assert "no-store" in answer["Cache-Control"]
    assert get_store().cancel_requested(Topic.parse(topic))


@cases(
    "topic", ["job:bob-1", "later:bob-1", "many:bob-1", "user:8", "everybody:1", "nobody:1", "invalid:1", "denied:1"]
)
def test_others_may_not_cancel(topic):
    """Nothing is cancelled by default, nor what everybody may read."""
    answer = post(topic)

    assert answer.status_code == 403
    assert json.loads(answer.content) == {"error": "you may not cancel this job"}
    assert not get_store().cancel_requested(Topic.parse(topic))


def test_a_grant_lets_its_user_cancel():
    """A page that has checked gives one; it is for one user and one topic."""
    for topic in ("everybody:1", "nobody:1"):
        assert post(topic, grant=make_grant(USER, topic)).status_code == 204
    assert post("nobody:1", grant=make_grant(SimpleNamespace(pk=8), "nobody:1")).status_code == 403
    assert post("nobody:2", grant=make_grant(USER, "nobody:1")).status_code == 403
    assert post("nobody:2", grant="forged").status_code == 403


def test_a_grant_that_was_revoked_lets_nobody_cancel():
    topic = Topic("nobody", "1")
    grant = make_grant(USER, topic)
    get_store().revoke_grants(Topic.for_user(USER).full_id, topic)
    assert post(str(topic), grant=grant).status_code == 403
    with redis_outage():
        assert post(str(topic), grant=grant).status_code == 503


def test_what_is_no_request_is_refused():
    """Who is not logged in, what is no topic, and another method."""
    assert post("job:ada-1", user=AnonymousUser()).status_code == 403
    for topic in ("", "job", "nosuchkind:1", "job:" + "x" * 300):
        assert post(topic).status_code == 400
    assert cancel(RequestFactory().get("/")).status_code == 405


def test_a_function_that_fails_says_no(caplog):
    """Its error is logged."""
    assert post("broken:1").status_code == 403
    assert "AUTHORIZE of kind 'broken' failed" in caplog.text


def test_whoever_cannot_say_is_no_refusal(caplog):
    """A page may try again when the database or Redis is back."""
    assert post("away:1").status_code == 503
    assert "it is not known whether a user may cancel a job" in caplog.text
    with redis_outage():
        assert post("job:ada-1").status_code == 503


def test_it_needs_a_csrf_token():
    """Another site's page cannot cancel, whatever its visitor's session allows."""
    answer = Client(enforce_csrf_checks=True).post(reverse("notifications:cancel"), {"topic": "job:ada-1"})

    assert answer.status_code == 403
    assert b"not logged in" not in answer.content
