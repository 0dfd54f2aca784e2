"""Whom a session names: every backend that Django has, rotated keys, and nothing that is ever written."""

import asyncio
import threading

import pytest
from asgiref.sync import sync_to_async as in_orm
from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY, get_user_model
from django.contrib.sessions.models import Session
from django.core.cache import caches
from django.core.cache.backends.base import InvalidCacheKey, memcache_key_warnings
from django.core.cache.backends.locmem import LocMemCache
from django.db import OperationalError

from notifications import logs
from notifications.access import sessions
from notifications.access.credentials import _session_store
from notifications.access.sessions import Found, find, is_in_doubt
from tests.waiting import await_for, scaled

pytestmark = pytest.mark.django_db(transaction=True)

MODEL_BACKEND = "django.contrib.auth.backends.ModelBackend"


@pytest.fixture
def user():
    return get_user_model().objects.create_user("ann", password="secret")


@pytest.fixture(autouse=True)
def new_outages(monkeypatch):
    monkeypatch.setattr(sessions, "outages", logs.Outages())


@pytest.fixture(params=["db", "cached_db", "cache", "file", "signed_cookies"])
def backend(request, settings, tmp_path, monkeypatch):
    """Use each session backend in turn, with files and cache of their own."""
    from django.contrib.sessions.backends import file

    monkeypatch.setattr(file.SessionStore, "_storage_path", str(tmp_path), raising=False)
    settings.SESSION_ENGINE = f"django.contrib.sessions.backends.{request.param}"
    caches["default"].clear()
    return request.param


def log_in(user, **data):
    session = _session_store()()
    session.update(
        {
            SESSION_KEY: str(user.pk),
            BACKEND_SESSION_KEY: MODEL_BACKEND,
            HASH_SESSION_KEY: user.get_session_auth_hash(),
            **data,
        }
    )
    session.save()
    return session.session_key


def everything(tmp_path):
    """Return all that any backend keeps."""
    rows = sorted(Session.objects.values_list("session_key", "session_data", "expire_date"))
    files = sorted((path.name, path.read_bytes()) for path in tmp_path.iterdir())
    return rows, files, dict(caches["default"]._cache)


async def unchanged_after_find(key, tmp_path):
    """Ask whom a session names; nothing that is kept anywhere may change by that."""
    before = await in_orm(everything)(tmp_path)
    found = await find(key)
    assert await in_orm(everything)(tmp_path) == before
    return found


async def test_a_session_names_its_user(user, backend, tmp_path):
    """Whatever keeps the sessions, the user is found."""
    key = await in_orm(log_in)(user)

    found = await unchanged_after_find(key, tmp_path)

    assert (found.user, found.is_known, found.is_gone) == (user, True, False)


async def test_a_rotated_key_ends_no_session(user, backend, tmp_path, settings):
    """With the old key among SECRET_KEY_FALLBACKS sessions go on, as they do for pages, and stay what they were."""
    key = await in_orm(log_in)(user)
    settings.SECRET_KEY_FALLBACKS = [settings.SECRET_KEY]
    settings.SECRET_KEY = "a new key"

    assert (await unchanged_after_find(key, tmp_path)).user == user
    settings.SECRET_KEY_FALLBACKS = []
    found = await unchanged_after_find(key, tmp_path)
    assert (found.user, found.is_gone) == (None, True)


async def test_a_session_from_before_a_password_names_nobody(user, backend, tmp_path):
    """It is gone for us, and stays where it is: a page, or a view that is not done yet, decides what becomes of it."""
    key = await in_orm(log_in)(user)
    user.set_password("new")
    await user.asave()

    found = await unchanged_after_find(key, tmp_path)

    assert (found.user, found.is_known, found.is_gone) == (None, True, True)


@pytest.mark.parametrize("key", [None, "", "short", "../../etc/passwd", "x" * 32, "é:é:é", "nul\0" * 8])
async def test_what_is_no_session_names_nobody(user, backend, tmp_path, key):
    """A browser may send anything for a cookie; backends that make a session for it are kept from that."""
    found = await unchanged_after_find(key, tmp_path)

    assert (found.user, found.is_known) == (None, True)


class Strict(LocMemCache):
    """A cache that takes no key which memcached would not take, as Django's backends of memcached do."""

    def validate_key(self, key):
        for warning in memcache_key_warnings(key):
            raise InvalidCacheKey(warning)


@pytest.mark.parametrize("engine", ["cache", "cached_db"])
@pytest.mark.parametrize("key", ["with spaces in it", "x" * 300])
async def test_a_key_that_no_cache_takes_names_nobody(settings, monkeypatch, engine, key):
    """Told to come back, that browser would come for ever: it never gets another answer."""
    settings.SESSION_ENGINE = f"django.contrib.sessions.backends.{engine}"
    for module in ("cache", "cached_db"):
        monkeypatch.setattr(f"django.contrib.sessions.backends.{module}.caches", {"default": Strict("strict", {})})

    found = await find(key)

    assert (found.user, found.is_known, found.is_gone) == (None, True, True)


async def test_an_expired_session_names_nobody_and_is_left_alone(user, backend, tmp_path, settings, monkeypatch):
    """The backend of files would remove it, and make a new one in its place."""
    settings.SESSION_COOKIE_AGE = -10
    key = await in_orm(log_in)(user)
    caches["default"].clear()  # an entry of this cache that has expired goes when it is asked for

    assert (await unchanged_after_find(key, tmp_path)).user is None


async def test_an_anonymous_session_is_not_gone(backend, tmp_path):
    """A visitor's basket names nobody, and will not tomorrow: no reason to come back."""

    def shop():
        session = _session_store()()
        session["basket"] = 1
        session.save()
        return session.session_key

    found = await unchanged_after_find(await in_orm(shop)(), tmp_path)

    assert (found.user, found.is_known, found.is_gone) == (None, True, False)


async def test_a_backend_that_is_not_used_any_more_names_nobody(user, tmp_path, settings):
    """As for a page."""
    settings.SESSION_ENGINE = "django.contrib.sessions.backends.db"
    key = await in_orm(log_in)(user, **{BACKEND_SESSION_KEY: "some.other.Backend"})

    assert (await unchanged_after_find(key, tmp_path)).user is None


class Away:
    """A cache that does not answer."""

    def get(self, *arguments, **options):
        raise ConnectionRefusedError("the cache is away")


async def test_a_cache_that_is_away_ends_no_session(user, settings, monkeypatch, caplog):
    """Django's backend takes a cache that fails for one that is empty; with cached_db the database answers."""
    settings.SESSION_ENGINE = "django.contrib.sessions.backends.cached_db"
    in_both = await in_orm(log_in)(user)
    monkeypatch.setattr("django.contrib.sessions.backends.cached_db.caches", {"default": Away()})
    monkeypatch.setattr("django.contrib.sessions.backends.cache.caches", {"default": Away()})
    assert (await find(in_both)).user == user

    settings.SESSION_ENGINE = "django.contrib.sessions.backends.cache"
    assert not (await find("x" * 32)).is_known


async def test_whoever_shows_many_sessions_keeps_others_waiting_for_one_turn_only(monkeypatch):
    """Made-up cookies cost time as good ones do: those of one address wait for each other."""
    gate, asked = threading.Event(), []

    def look(key):
        asked.append(key)
        gate.wait(scaled())
        return None, True

    monkeypatch.setattr(sessions, "user_of", look)
    flood = [asyncio.create_task(find("flood", "192.0.2.1")) for _ in range(10 * sessions.THREADS)]
    await await_for(lambda: len(asked) == sessions.THREADS)
    one = asyncio.create_task(find("one", "192.0.2.2"))
    await asyncio.sleep(0)
    gate.set()
    await asyncio.gather(one, *flood)

    assert asked.index("one") < 3 * sessions.THREADS


async def test_a_database_that_is_away_ends_no_session(user, settings, caplog):
    """Nobody knows; the log has one line for all of them, and no stack trace."""
    settings.SESSION_ENGINE = "django.contrib.sessions.backends.db"
    key = await in_orm(log_in)(user)

    def fail(*arguments):
        raise OperationalError("the database is away")

    original = sessions.read
    sessions.read = fail
    try:
        found = [await find(key) for _ in range(20)]
    finally:
        sessions.read = original

    assert not any(each.is_known for each in found)
    assert [record.exc_info for record in caplog.records] == [None]
    assert "the database is away" in caplog.text


# Who may come back.


def scope_of(cookie, *, is_gone=True):
    return {"cookies": {"sessionid": cookie}, sessions.SCOPE_KEY: Found(None, True, is_gone, 0.0)}


def test_a_session_that_opens_nothing_is_in_doubt_for_a_while(monkeypatch):
    """Its browser may come back for half a minute, and not for ever."""
    now = 1000.0
    monkeypatch.setattr(sessions, "_doubts", type(sessions._doubts)())
    monkeypatch.setattr(sessions.time, "monotonic", lambda: now)

    assert is_in_doubt(scope_of("one"))
    now += sessions.DOUBT - 1
    assert is_in_doubt(scope_of("one"))
    assert is_in_doubt(scope_of("two"))
    now += 2
    assert not is_in_doubt(scope_of("one"))


def test_whoever_shows_no_session_is_in_no_doubt():
    """Without a cookie, and with an anonymous session, nothing will change."""
    assert not is_in_doubt({})
    assert not is_in_doubt(scope_of(""))
    assert not is_in_doubt(scope_of("basket", is_gone=False))


def test_doubts_are_bounded(monkeypatch):
    """Made-up cookies cannot fill the memory."""
    monkeypatch.setattr(sessions, "_doubts", type(sessions._doubts)())
    monkeypatch.setattr(sessions, "MAX_DOUBTS", 5)

    for n in range(20):
        is_in_doubt(scope_of(str(n)))

    assert len(sessions._doubts) == 5
