"""Whom a session names: every backend that Django has, rotated keys, and nothing that is ever written."""

import asyncio
import re
import threading
from collections import Counter
from typing import ClassVar

import pytest
from asgiref.sync import sync_to_async as in_orm
from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY, get_user_model
from django.contrib.auth.backends import AllowAllUsersModelBackend, ModelBackend
from django.contrib.sessions.backends import cached_db, db
from django.contrib.sessions.models import Session
from django.core.cache import caches
from django.core.cache.backends.base import InvalidCacheKey, memcache_key_warnings
from django.core.cache.backends.locmem import LocMemCache
from django.db import OperationalError
from django.db.backends.utils import CursorWrapper

from notifications import logs
from notifications.access import batches, sessions
from notifications.access.credentials import _session_store
from notifications.access.sessions import Found, find, is_in_doubt
from tests.testsite import tenancy
from tests.waiting import await_for, scaled

pytestmark = pytest.mark.django_db(transaction=True)

MODEL_BACKEND = "django.contrib.auth.backends.ModelBackend"


@pytest.fixture
def user():
    return get_user_model().objects.create_user("ann", password="secret")


@pytest.fixture(autouse=True)
def new_outages(monkeypatch):
    monkeypatch.setattr(sessions, "outages", logs.Outages())


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


async def test_a_session_names_its_user(user, session_backend, tmp_path):
    """Whatever keeps the sessions, the user is found."""
    key = await in_orm(log_in)(user)

    found = await unchanged_after_find(key, tmp_path)

    assert (found.user, found.is_known, found.is_gone) == (user, True, False)


async def test_a_rotated_key_ends_no_session(user, session_backend, tmp_path, settings):
    """With the old key among SECRET_KEY_FALLBACKS sessions go on, as they do for pages, and stay what they were."""
    key = await in_orm(log_in)(user)
    settings.SECRET_KEY_FALLBACKS = [settings.SECRET_KEY]
    settings.SECRET_KEY = "a new key"

    assert (await unchanged_after_find(key, tmp_path)).user == user
    settings.SECRET_KEY_FALLBACKS = []
    found = await unchanged_after_find(key, tmp_path)
    assert (found.user, found.is_gone) == (None, True)


async def test_a_session_from_before_a_password_names_nobody(user, session_backend, tmp_path):
    """It is gone for us, and stays where it is: a page, or a view that is not done yet, decides what becomes of it."""
    key = await in_orm(log_in)(user)
    user.set_password("new")
    await user.asave()

    found = await unchanged_after_find(key, tmp_path)

    assert (found.user, found.is_known, found.is_gone) == (None, True, True)


async def test_what_is_no_session_names_nobody(user, session_backend, tmp_path):
    """A browser may send anything for a cookie; backends that make a session for it are kept from that."""
    for key in (None, "", "short", "../../etc/passwd", "x" * 32, "é:é:é", "nul\0" * 8):
        found = await unchanged_after_find(key, tmp_path)

        assert (found.user, found.is_known) == (None, True), key


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


async def test_an_expired_session_names_nobody_and_is_left_alone(user, session_backend, tmp_path, settings):
    """The backend of files would remove it, and make a new one in its place."""
    settings.SESSION_COOKIE_AGE = -10
    key = await in_orm(log_in)(user)
    caches["default"].clear()  # an entry of this cache that has expired goes when it is asked for

    assert (await unchanged_after_find(key, tmp_path)).user is None


async def test_an_anonymous_session_is_not_gone(session_backend, tmp_path):
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

    get_many = get


async def test_a_cache_that_is_away_ends_no_session(user, settings, monkeypatch, caplog):
    """Django's backend takes a cache that fails for one that is empty; with cached_db the database answers."""
    settings.SESSION_ENGINE = "django.contrib.sessions.backends.cached_db"
    in_both = await in_orm(log_in)(user)
    monkeypatch.setattr("django.contrib.sessions.backends.cached_db.caches", {"default": Away()})
    monkeypatch.setattr("django.contrib.sessions.backends.cache.caches", {"default": Away()})
    assert (await find(in_both)).user == user

    settings.SESSION_ENGINE = "django.contrib.sessions.backends.cache"
    assert not (await find("x" * 32)).is_known


# Many at once.


@pytest.fixture
def queries(monkeypatch):
    """What all threads ask the database from now on."""
    asked = []
    original = CursorWrapper.execute

    def execute(self, sql, params=None):
        asked.append(sql)
        return original(self, sql, params)

    monkeypatch.setattr(CursorWrapper, "execute", execute)
    return asked


def of_tables(queries):
    return Counter(re.search(r'FROM "(\w+)"', sql)[1] for sql in queries)


def log_in_many(count):
    users = [get_user_model().objects.create_user(f"user {n}") for n in range(count)]
    return {log_in(user): user for user in users}


async def find_all(keys, address=""):
    return dict(zip(keys, await asyncio.gather(*(find(key, address) for key in keys)), strict=True))


QUERIES = {
    "db": {"django_session": 1, "auth_user": 1},
    "cached_db": {"auth_user": 1},
    "cache": {"auth_user": 1},
    "file": {"auth_user": 30},
    "signed_cookies": {"auth_user": 30},
}


async def test_sessions_that_come_together_are_looked_up_together(session_backend, tmp_path, queries):
    """One query for all sessions and one for all accounts, where the engine has a form for many."""
    users = await in_orm(log_in_many)(30)
    before = await in_orm(everything)(tmp_path)
    queries.clear()

    found = await find_all(users)

    assert {key: each.user for key, each in found.items()} == users
    assert of_tables(queries) == QUERIES[session_backend]
    assert await in_orm(everything)(tmp_path) == before


async def test_what_a_cache_has_lost_is_read_from_the_database(settings, queries):
    """Half of the sessions are in the cache, all of them in the database; nothing is put back."""
    settings.SESSION_ENGINE = "django.contrib.sessions.backends.cached_db"
    caches["default"].clear()
    users = await in_orm(log_in_many)(10)
    for key in list(users)[::2]:
        caches["default"].delete(cached_db.KEY_PREFIX + key)
    queries.clear()

    found = await find_all(users)

    assert {key: each.user for key, each in found.items()} == users
    assert of_tables(queries) == {"django_session": 1, "auth_user": 1}
    assert len(caches["default"]._cache) == 5


async def test_a_cache_of_many_that_is_away_is_as_with_one(settings, monkeypatch, caplog):
    """With cached_db the database answers for all; with cache nobody knows."""
    settings.SESSION_ENGINE = "django.contrib.sessions.backends.cached_db"
    users = await in_orm(log_in_many)(5)
    for module in ("cache", "cached_db"):
        monkeypatch.setattr(f"django.contrib.sessions.backends.{module}.caches", {"default": Away()})

    assert {key: each.user for key, each in (await find_all(users)).items()} == users
    settings.SESSION_ENGINE = "django.contrib.sessions.backends.cache"
    assert {each.is_known for each in (await find_all(users)).values()} == {False}


async def test_each_of_many_is_as_it_would_be_alone(settings):
    """Good and bad sessions in one lookup: each has the answer that it would have by itself."""
    settings.SESSION_ENGINE = "django.contrib.sessions.backends.db"
    old_key = settings.SECRET_KEY

    def prepare():
        users = [get_user_model().objects.create_user(name) for name in ("good", "off", "new", "gone", "rotated")]
        good, off, new, gone, _ = users
        keys = {user.username: log_in(user) for user in users}
        keys["again"] = log_in(good)
        keys["other"] = log_in(good, **{BACKEND_SESSION_KEY: "some.other.Backend"})
        keys["nobody"] = log_in(good, **{SESSION_KEY: "no number"})
        keys |= {"none": "x" * 32, "short": "x", "empty": "", "nul": "nul\0" * 8}
        off.is_active = False
        off.save()
        new.set_password("other")
        new.save()
        gone.delete()
        return keys

    keys = await in_orm(prepare)()
    settings.SECRET_KEY, settings.SECRET_KEY_FALLBACKS = "a new key", [old_key]
    alone = {name: await find(key) for name, key in keys.items()}

    together = dict(zip(keys, (await find_all(keys.values())).values(), strict=True))

    assert {n: each._replace(as_of=0) for n, each in together.items()} == {
        n: each._replace(as_of=0) for n, each in alone.items()
    }
    assert (together["good"].user.username, together["rotated"].user.username) == ("good", "rotated")
    assert together["good"].user is not together["again"].user
    assert together["new"].is_gone


async def test_sockets_of_one_account_share_nothing(user, settings, monkeypatch):
    """What one tab changes in a value of its user, as of a JSONField, is not what another tab has."""
    settings.SESSION_ENGINE = "django.contrib.sessions.backends.db"
    keys = await in_orm(lambda: [log_in(user) for _ in range(3)])()
    from_db = get_user_model().from_db

    @classmethod
    def with_value(cls, *arguments, **options):
        found = from_db(*arguments, **options)
        found.preferences = {"themes": []}
        return found

    monkeypatch.setattr(get_user_model(), "from_db", with_value)

    found = [each.user for each in (await find_all(keys)).values()]

    assert found == [user] * 3
    assert len({id(each.preferences["themes"]) for each in found}) == 3


async def test_one_session_that_cannot_be_read_fails_alone(settings, caplog, monkeypatch):
    """Whatever a row holds, the others of its lookup get in."""
    settings.SESSION_ENGINE = "tests.unit.test_sessions"
    users = await in_orm(log_in_many)(10)
    bad = list(users)[3]
    monkeypatch.setattr(SessionStore, "bad", bad)

    found = await find_all(users)

    assert {key for key, each in found.items() if not each.is_known} == {bad}
    assert {key: each.user for key, each in found.items() if key != bad} == {k: u for k, u in users.items() if k != bad}


class SessionStore(db.SessionStore):
    """An engine in whose table one row is broken."""

    bad = None

    def decode(self, session_data):
        if self.session_key == self.bad:
            raise ValueError("broken")
        return super().decode(session_data)


async def test_a_lookup_that_fails_as_a_whole_is_done_one_by_one(user, settings, monkeypatch, caplog):
    """A query for many may fail where each by itself does not."""
    settings.SESSION_ENGINE = "django.contrib.sessions.backends.db"
    users = await in_orm(log_in_many)(10)

    def fail(keys):
        raise OperationalError("one of these rows is broken")

    monkeypatch.setattr(sessions, "read_together", fail)

    assert {key: each.user for key, each in (await find_all(users)).items()} == users


class Directory(ModelBackend):
    """A backend that has accounts elsewhere."""

    asked: ClassVar[list[int]] = []

    def get_user(self, user_id):
        self.asked.append(user_id)
        user = super().get_user(user_id)
        user.username = "from the directory"
        return user


class AllowAll(AllowAllUsersModelBackend):
    """A backend of the model with another rule."""


async def test_a_backend_with_its_own_get_user_is_asked_for_each(settings, monkeypatch, queries):
    """What it finds is what counts; the accounts of other backends are found together beside it."""
    settings.SESSION_ENGINE = "django.contrib.sessions.backends.db"
    own = f"{__name__}.Directory"
    settings.AUTHENTICATION_BACKENDS = [MODEL_BACKEND, own]
    monkeypatch.setattr(Directory, "asked", [])
    users = await in_orm(log_in_many)(10)
    theirs = await in_orm(lambda: [log_in(user, **{BACKEND_SESSION_KEY: own}) for user in users.values()])()
    queries.clear()

    found = await find_all([*users, *theirs])

    assert {key: found[key].user for key in users} == users
    assert {found[key].user.username for key in theirs} == {"from the directory"}
    assert sorted(Directory.asked) == sorted(user.pk for user in users.values())
    assert of_tables(queries) == {"django_session": 1 + len(theirs), "auth_user": 1 + len(theirs)}


async def test_the_rule_of_the_backend_says_who_gets_in(settings):
    """``user_can_authenticate`` of each session's own backend is asked, as for a page."""
    settings.SESSION_ENGINE = "django.contrib.sessions.backends.db"
    settings.AUTHENTICATION_BACKENDS = [MODEL_BACKEND, f"{__name__}.AllowAll"]

    def prepare():
        off = [get_user_model().objects.create_user(f"user {n}", is_active=False) for n in range(6)]
        return [log_in(user) for user in off], [
            log_in(user, **{BACKEND_SESSION_KEY: f"{__name__}.AllowAll"}) for user in off
        ]

    refused, allowed = await in_orm(prepare)()

    found = await find_all([*refused, *allowed])

    assert [found[key].user for key in refused] == [None] * 6
    assert all(found[key].user is not None for key in allowed)


async def test_sessions_of_each_tenant_are_looked_up_by_themselves(settings, monkeypatch):
    """In the context of one of its sockets, and within its ``TENANT_CONTEXT``: nobody is looked for elsewhere."""
    settings.SESSION_ENGINE = "django.contrib.sessions.backends.db"
    settings.SCHEMAS = True
    names = {"TENANT": "tests.testsite.tenancy.current", "TENANT_CONTEXT": "tests.testsite.tenancy.schema"}
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, **names}
    asked = []

    def look(keys):
        asked.append((tenancy.tenant.get(), tenancy._thread.schema, sorted(keys)))
        return [(None, True)] * len(keys)

    async def come(name, key):
        tenancy.tenant.set(name)
        return await find(key)

    monkeypatch.setattr(sessions, "users_of", look)

    await asyncio.gather(*(come(name, f"{name} {n}") for n in range(5) for name in ("acme", "globex")))

    assert sorted(asked) == [(name, name, [f"{name} {n}" for n in range(5)]) for name in ("acme", "globex")]


async def test_whoever_shows_many_sessions_keeps_others_waiting_for_one_lookup_only(settings, monkeypatch):
    """Made-up cookies cost time as good ones do: each lookup has a place for every address that waits."""
    settings.SESSION_ENGINE = "django.contrib.sessions.backends.db"
    gate, asked = threading.Event(), []

    def look(keys):
        asked.append(keys)
        gate.wait(scaled())
        return [(None, True)] * len(keys)

    monkeypatch.setattr(sessions, "users_of", look)
    monkeypatch.setattr(sessions, "MOST_TOGETHER", 10)
    flood = [asyncio.create_task(find(f"flood {n}", "192.0.2.1")) for n in range(100)]
    await await_for(lambda: len(asked) == sessions.LOOKUPS)
    one = asyncio.create_task(find("one", "192.0.2.2"))
    await asyncio.sleep(0)
    gate.set()
    await asyncio.gather(one, *flood)

    assert any("one" in keys for keys in asked[sessions.LOOKUPS : 2 * sessions.LOOKUPS])  # their threads race


async def test_sessions_that_are_read_one_by_one_take_turns_by_address(settings, monkeypatch):
    """With an engine of files or of one's own, those of one address wait for each other."""
    settings.SESSION_ENGINE = "django.contrib.sessions.backends.file"
    gate, asked = threading.Event(), []

    def look(keys):
        asked.extend(keys)
        gate.wait(scaled())
        return [(None, True)]

    monkeypatch.setattr(sessions, "users_of", look)
    flood = [asyncio.create_task(find("flood", "192.0.2.1")) for _ in range(10 * sessions.THREADS)]
    await await_for(lambda: len(asked) == sessions.THREADS)
    one = asyncio.create_task(find("one", "192.0.2.2"))
    await asyncio.sleep(0)
    gate.set()
    await asyncio.gather(one, *flood)

    assert asked.index("one") < 3 * sessions.THREADS


async def test_a_flood_is_sent_back_and_nobody_is_taken_for_a_stranger(monkeypatch, settings, caplog):
    """What is more than may wait, or waits too long, is not known: the browser comes back."""
    settings.SESSION_ENGINE = "django.contrib.sessions.backends.db"
    gate = threading.Event()

    def hang(keys):
        gate.wait(scaled())
        return [(None, True)] * len(keys)

    monkeypatch.setattr(sessions, "users_of", hang)
    monkeypatch.setattr(batches, "MAX_WAITING", 20)
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "AUTH_TIMEOUT": 0.05}
    try:
        found = await find_all([f"session {n}" for n in range(50)])
    finally:
        gate.set()

    assert {each.is_known for each in found.values()} == {False}


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
