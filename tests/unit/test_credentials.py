"""What a socket's access rests on, asked of real accounts and of every session backend that Django has."""

from types import SimpleNamespace

import pytest
from asgiref.sync import sync_to_async as in_orm  # in one thread: others would leave connections open when they end
from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY, get_user_model
from django.contrib.sessions.models import Session
from django.utils import timezone

from notifications.access import credentials
from notifications.access.credentials import Verdict, credentials_of, judge
from notifications.protocol.frames import CloseCode

pytestmark = pytest.mark.django_db(transaction=True)

SERVER_SIDE = ("db", "cached_db", "cache", "file")


@pytest.fixture
def user():
    return get_user_model().objects.create_user("ann", password="secret")


def log_in(user, **data):
    session = credentials._session_store()()
    session.update({SESSION_KEY: str(user.pk), BACKEND_SESSION_KEY: "x", HASH_SESSION_KEY: "y", **data})
    session.save()
    return session


async def end_of(each):
    (verdict,) = await judge([each])
    return verdict.end and verdict.end.code


async def test_a_good_session_stays(user, session_backend):
    """Whatever keeps the sessions, one that is there is good, and asking changes nothing in it."""
    session = await in_orm(log_in)(user)
    mine = credentials_of(user, session.session_key)

    assert [await end_of(mine) for _ in range(2)] == [None, None]


async def test_a_session_that_was_logged_out_ends(user, session_backend):
    """A session that was flushed is not there any more; one that is kept in a cookie nobody can take back."""
    session = await in_orm(log_in)(user)
    mine = credentials_of(user, session.session_key)
    await in_orm(session.flush)()

    assert await end_of(mine) == (CloseCode.TRY_AGAIN if session_backend in SERVER_SIDE else None)


async def test_a_session_that_has_expired_ends(user, session_backend, settings, tmp_path):
    """An expired session ends, whether the backend still knows it or not, and nothing changes by asking."""
    settings.SESSION_COOKIE_AGE = -10
    session = await in_orm(log_in)(user)
    mine = credentials_of(user, session.session_key)
    before = list(tmp_path.iterdir())

    assert await end_of(mine) == (CloseCode.ACCESS_REVOKED if "db" in session_backend else CloseCode.TRY_AGAIN)
    assert list(tmp_path.iterdir()) == before


async def test_a_changed_password_ends_sessions(user, session_backend):
    """With the password the session's hash changes: its browser may come back, perhaps with a session from after it."""
    session = await in_orm(log_in)(user)
    mine = credentials_of(user, session.session_key)
    user.set_password("new")
    await user.asave()

    assert await end_of(mine) == CloseCode.TRY_AGAIN
    assert await end_of(credentials_of(user, session.session_key)) is None


async def test_the_own_session_of_a_password_change_may_come_back(user, settings):
    """``update_session_auth_hash`` gives the own session another key: its sockets are not refused for good."""
    settings.SESSION_ENGINE = "django.contrib.sessions.backends.db"
    session = await in_orm(log_in)(user)
    mine, token = credentials_of(user, session.session_key), credentials_of(user)
    user.set_password("new")
    await user.asave()
    await in_orm(session.cycle_key)()

    assert await end_of(mine) == CloseCode.TRY_AGAIN
    assert await end_of(token) == CloseCode.ACCESS_REVOKED


@pytest.mark.parametrize("change", ["deactivate", "delete"])
async def test_an_account_that_is_not_active_ends(user, change):
    """A deactivated or deleted account ends everything that rests on it."""
    mine = credentials_of(user)
    mine = mine._replace(user=get_user_model()(pk=user.pk))
    if change == "delete":
        await user.adelete()
    else:
        await get_user_model().objects.aupdate(is_active=False)

    assert await end_of(mine) == CloseCode.ACCESS_REVOKED


async def test_users_of_no_database_are_not_looked_up():
    """A token may name a user who is an object of the site's own: they stay until the site disconnects them."""
    user = SimpleNamespace(pk="far", is_active=True)

    assert await judge([credentials_of(user)]) == [Verdict(None, user)]


async def test_users_of_another_model_are_looked_up(settings, django_db_blocker):
    """``AUTH_USER_MODEL`` may have any primary key."""
    settings.AUTH_USER_MODEL = "testsite.UuidUser"
    user = await get_user_model().objects.acreate(name="ann", password="x")

    assert await end_of(credentials_of(user)) is None
    await get_user_model().objects.aupdate(is_active=False)
    assert await end_of(credentials_of(user)) == CloseCode.ACCESS_REVOKED


async def test_users_with_a_composite_key_are_looked_up(settings):
    """Of two accounts whose keys share a field each is judged for itself."""
    settings.AUTH_USER_MODEL = "testsite.CompositeUser"
    first = await get_user_model().objects.acreate(number=1, name="ann", password="x")
    second = await get_user_model().objects.acreate(firm=first.firm, number=2, name="ben", password="x")

    assert [await end_of(credentials_of(each)) for each in (first, second)] == [None, None]
    await get_user_model().objects.filter(name="ann").aupdate(is_active=False)
    assert [await end_of(credentials_of(each)) for each in (first, second)] == [CloseCode.ACCESS_REVOKED, None]


async def test_the_verdict_has_the_account_as_it_is_now(user):
    """Django's users remember their permissions: a verdict brings one who does not."""
    mine = credentials_of(user)
    await get_user_model().objects.aupdate(first_name="Ann")

    (verdict,) = await judge([mine])

    assert verdict.user is not user
    assert verdict.user.first_name == "Ann"


async def test_more_than_one_query_holds_are_asked_in_several(user, settings, monkeypatch):
    """No database is asked for more values than a query may have."""
    settings.SESSION_ENGINE = "django.contrib.sessions.backends.db"
    monkeypatch.setattr(credentials, "KEYS_A_QUERY", 2)
    expires = timezone.now() + timezone.timedelta(hours=1)
    keys = [f"key{n}" for n in range(5)]
    await Session.objects.abulk_create([Session(session_key=key, expire_date=expires) for key in keys])

    verdicts = await judge([credentials_of(user, key) for key in [*keys, "other"]])

    assert [verdict.end is None for verdict in verdicts] == [True] * 5 + [False]
