"""Who a socket is, where it may come from, and what it may read."""

import asyncio
import logging
import threading
import time
from concurrent import futures
from email.message import Message
from errno import ENOENT
from functools import partial
from http.client import BadStatusLine, IncompleteRead
from threading import current_thread
from types import SimpleNamespace
from urllib.error import HTTPError

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth.models import AnonymousUser, User
from django.core.exceptions import ObjectDoesNotExist, PermissionDenied, ValidationError
from django.db import OperationalError
from django.http import Http404
from django.utils.functional import SimpleLazyObject

from notifications import Topic
from notifications.access import authentication, authorization
from notifications.access.authentication import (
    AuthUnavailableError,
    has_origin,
    origin_allowed,
    session_user,
    token_user,
)
from notifications.access.authorization import authorized, has_grant, is_open
from notifications.access.callbacks import BusyError
from notifications.logs import LINES, LogBudget, Outages
from notifications.metrics import counts
from notifications.tokens import make_grant, make_token
from tests.cases import cases
from tests.waiting import await_for, scaled

ANN = User(pk=1, username="ann")
ORDER = "order:ann-7"
pytestmark = [pytest.mark.usefixtures("memory_store"), pytest.mark.django_db(transaction=True)]
"""Synchronous functions of the site run in threads, which look after their database connections."""


@pytest.fixture(autouse=True)
def new_log_budget(monkeypatch):
    """Give each test all the lines there are."""
    outages = Outages()
    monkeypatch.setattr(authentication, "outages", outages)
    monkeypatch.setattr(authorization, "outages", outages)
    monkeypatch.setattr(authentication, "_refusals", LogBudget(authentication.logger))


def configure(settings, **values):
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, **values}


def authorize_with(settings, function):
    configure(settings, TOPICS={"order": {"AUTHORIZE": function}, "closed": {}})


async def may(text, grant=None, user=ANN):
    topic = Topic.parse(text)
    return is_open(user, topic) or await has_grant(user, topic, grant) or bool(await authorized(user, topic))


# Subscriptions.


def answered(status):
    """What urllib raises when a service has answered so."""
    return HTTPError("http://permissions.example/", status, "", Message(), None)


class RefusedError(OSError):
    """What requests raises then."""

    def __init__(self, status):
        super().__init__(f"{status} for url")
        self.response = SimpleNamespace(status_code=status)


class LibraryError(Exception):
    """What httpx raises for a service that is not there: none of the errors of Python."""


class NoJSONError(OSError, ValueError):
    """What requests raises for a service whose proxy answers with a page; and a wrong certificate is as much."""


class LibrarysStatusError(Exception):
    """What aiohttp and httpx raise when a service has answered so."""

    def __init__(self, status, *, inside=False):
        super().__init__(f"{status} for url")
        self.__dict__ = {"response": SimpleNamespace(status_code=status)} if inside else {"status": status}


def raised_from(error, cause):
    error.__cause__ = cause
    return error


def raised_during(error, other, *, hidden=False):
    """Return an error that was raised while another was handled, and is then raised ``from None`` as in httpcore."""
    try:
        try:
            raise other
        except type(other):
            raise error  # noqa: B904
    except type(error) as caught:
        if hidden:
            caught.__suppress_context__ = True
        return caught


@pytest.mark.parametrize(
    ("error", "answer"),
    [
        (OperationalError("away"), None),
        (LibraryError("all attempts failed"), False),
        (raised_from(LibraryError(), raised_from(LibraryError(), ConnectionRefusedError())), None),
        (raised_from(LibraryError(), KeyError()), False),
        (raised_from(LibraryError(), raised_during(LibraryError(), TimeoutError(), hidden=True)), None),
        (raised_during(LibraryError(), ConnectionRefusedError()), None),
        (raised_during(ObjectDoesNotExist(), ConnectionRefusedError()), False),  # only the cache was away
        (raised_during(KeyError(), ConnectionRefusedError()), False),
        (LibrarysStatusError(403), False),
        (raised_during(LibrarysStatusError(404, inside=True), ConnectionRefusedError()), False),
        (LibrarysStatusError(503), None),
        (LibrarysStatusError(500, inside=True), None),
        (LibrarysStatusError(429, inside=True), None),
        (BadStatusLine("SSH-2.0"), None),
        (IncompleteRead(b"half"), None),
        (MemoryError(), None),
        (futures.CancelledError(), None),
        (raised_from(PermissionDenied(), TimeoutError()), False),
        (raised_from(Http404(), OperationalError("away")), False),
        (ConnectionRefusedError(), None),
        (TimeoutError(), None),
        (NoJSONError("no JSON"), None),
        (raised_from(ValueError("no answer"), ConnectionRefusedError()), None),
        (PermissionError("no"), False),
        (FileNotFoundError(ENOENT, "No such file or directory", "upload"), False),
        (FileNotFoundError(ENOENT, "No such file or directory"), None),  # the Unix socket of a server
        (answered(403), False),
        (answered(404), False),
        (answered(429), None),
        (answered(503), None),
        (RefusedError(403), False),
        (RefusedError(502), None),
        (KeyError("bug"), False),
        (ObjectDoesNotExist(), False),
        (ValueError("no such id"), False),
    ],
    ids=repr,
)
async def test_who_could_not_say_has_not_said_no(settings, error, answer):
    """What is subscribed already does not end because the database is away; nobody new gets in."""

    def ask(user, id_):
        raise error

    authorize_with(settings, ask)

    assert await authorized(ANN, Topic.parse("order:7")) is answer
    assert not await may("order:7")


async def test_what_was_not_even_called_says_nothing_of_its_kind(settings, monkeypatch):
    """The calls of another user may hang; those of everybody else are made at once."""

    async def busy(*_, **__):
        raise BusyError("no turn")

    authorize_with(settings, lambda user, id_: True)
    topic = Topic.parse("order:7")
    with monkeypatch.context() as patch:
        patch.setattr(authorization.permissions(), "call", busy)
        assert {await authorized(ANN, topic) for _ in range(authorization.OUT_AFTER)} == {None}

    assert not authorization.is_out(topic)
    assert await authorized(ANN, topic)


class UnreadError(Exception):
    """As errors of HTTP libraries whose response was not set."""

    @property
    def response(self):
        raise RuntimeError("there is no response")


async def test_an_error_that_cannot_be_read_is_a_no(settings, caplog):
    authorize_with(settings, lambda user, id_: raise_(UnreadError()))

    assert await authorized(ANN, Topic.parse("order:7")) is False
    assert "UnreadError" in caplog.text


def raise_(error):
    raise error


async def test_a_bug_in_how_an_outage_is_handled_is_logged_with_its_trace(settings, caplog):
    """The answer is not known, and whoever reads the log finds the line."""

    def fall_back(user, id_):
        try:
            raise ConnectionRefusedError
        except OSError:
            return None.is_staff

    authorize_with(settings, fall_back)

    assert await authorized(ANN, Topic.parse("order:7")) is None
    assert caplog.records[0].exc_info
    assert "fall_back" in caplog.text


# Subscriptions that are decided together.


class Many:
    """An ``AUTHORIZE_MANY``: users may read what begins with their name; an id that is a number makes it fail."""

    def __init__(self):
        self.calls = []

    def __call__(self, pairs):
        self.calls.append(len(pairs))
        if any(id_.isdecimal() for _, id_ in pairs):
            raise ValueError("no such id")
        return [id_.startswith(user.username) for user, id_ in pairs]

    async def asynchronous(self, pairs):
        return self(pairs)


def authorize_many_with(settings, function):
    configure(settings, TOPICS={"order": {"AUTHORIZE_MANY": function}})


async def authorized_all(*asked):
    return await asyncio.gather(*(authorized(user, Topic.parse(f"order:{id_}")) for user, id_ in asked))


BEN = User(pk=2, username="ben")


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
async def test_what_is_asked_together_is_answered_together(settings, is_async):
    """One call for all pairs of all users, each with an answer of its own; and one for a pair that comes alone."""
    many = Many()
    authorize_many_with(settings, many.asynchronous if is_async else many)

    answers = await authorized_all((ANN, "ann-1"), (ANN, "ben-1"), (BEN, "ben-1"), (BEN, "ann-1"), (ANN, "ann-1"))

    assert answers == [True, False, True, False, True]
    assert await may("order:ann-7")
    assert not await may("order:ben-7")
    assert many.calls == [5, 1, 1]


async def test_calls_for_many_are_bounded(settings):
    """However many ask: no call is for more than 500 pairs."""
    many = Many()
    authorize_many_with(settings, many)

    answers = await authorized_all(*((ANN, f"ann-{n}") for n in range(1200)))

    assert set(answers) == {True}
    assert sum(many.calls) == 1200
    assert max(many.calls) == authorization.MOST_PAIRS


async def test_an_id_that_makes_the_call_fail_keeps_out_nobody_else(settings):
    """A browser may send anything: the others are asked alone, and so is that one, which is a no."""
    many = Many()
    authorize_many_with(settings, many)

    assert await authorized_all((ANN, "ann-1"), (BEN, "1"), (BEN, "ben-1")) == [True, False, True]
    assert many.calls == [3, 1, 1, 1]


async def test_a_service_that_is_away_refuses_nobody(settings):
    """Its error is that of an invalid id as well: the answer is unknown for all who ask, and for one."""

    def ask(pairs):
        raise NoJSONError("no JSON")

    authorize_many_with(settings, ask)

    assert await authorized_all((ANN, "ann-1"), (BEN, "ben-1")) == [None, None]
    assert await authorized(ANN, Topic.parse("order:ann-1")) is None


async def later(pairs):
    return [True] * len(pairs)


@pytest.mark.parametrize(
    "function",
    [
        lambda pairs: [],
        lambda pairs: [True] * (len(pairs) + 1),
        lambda pairs: True,
        lambda pairs: None,
        lambda pairs: dict.fromkeys(pairs, True),
        lambda pairs: (True for _ in pairs),
        lambda pairs: [1 for _ in pairs],
        lambda pairs: [later for _ in pairs],
        lambda pairs: [None for _ in pairs],
        lambda pairs: 1 / 0,
    ],
    ids=["none", "too many", "yes", "nothing", "dict", "generator", "numbers", "functions", "nones", "a bug"],
)
async def test_what_answers_nothing_is_neither_yes_nor_no(settings, caplog, function):
    """A function that is wrong refuses nobody for good, and lets nobody in; the log says what it did."""
    authorize_many_with(settings, function)

    assert await authorized_all((ANN, "ann-1"), (BEN, "ben-1")) == [None, None]
    assert await authorized(ANN, Topic.parse("order:ann-1")) is None
    assert "AUTHORIZE_MANY of kind 'order' failed; the answer is unknown" in caplog.text


async def test_the_own_topic_is_always_allowed():
    """Users read their own topics, though the kind user has no AUTHORIZE."""
    assert await may("user:1")


@cases("topic", ["user:2", "user:11", "user:01", "user:1 "])
async def test_the_topic_of_another_user_is_never_allowed(topic):
    """Nobody reads the topic of another user."""
    assert not await may(topic)


async def test_a_kind_without_authorize_is_closed():
    """Where nobody says yes the answer is no."""
    assert not await may("closed:1")


@cases(
    ("topic", "allowed"),
    [("upload:ann-1", True), ("upload:ben-1", False), ("order:ann-1", True), ("order:ben-1", False)],
)
async def test_sync_and_async_functions_decide(topic, allowed):
    """AUTHORIZE may be a function or a coroutine function, named by its path."""
    assert await may(topic) is allowed


async def _yes(user, id_):
    return True


class _Callable:
    async def __call__(self, user, id_):
        return id_ == "7"


@pytest.mark.parametrize(
    ("function", "allowed"),
    [
        (lambda user, id_: True, True),
        (lambda user, id_: False, False),
        (lambda user, id_: None, False),
        (lambda user, id_: 1, True),
        (lambda user, id_: [], False),
        (lambda user, id_: _yes(user, id_), True),
        (partial(_yes), True),
        (_Callable(), True),
        (lambda user, id_: _Callable()(user, "8"), False),
        (lambda user, id_: user is ANN and id_ == "7", True),
    ],
    ids=[
        "yes",
        "no",
        "none",
        "truth",
        "falsehood",
        "lambda of coroutine",
        "partial",
        "object",
        "coroutine no",
        "arguments",
    ],
)
async def test_whatever_authorize_answers_is_read_as_yes_or_no(settings, function, allowed):
    """The answer's truth decides, and a coroutine is waited for however it was made: it is never a yes by itself."""
    authorize_with(settings, function)

    assert await may("order:7") is allowed


async def _fail_later(user, id_):
    await asyncio.sleep(0)
    raise PermissionError("hunter2")


def _fail(user, id_):
    raise KeyError("hunter2")


class _NeitherNor:
    def __bool__(self):
        raise RuntimeError("hunter2")


@pytest.mark.parametrize(
    "function",
    [_fail, _fail_later, lambda: True, lambda user, id_: _NeitherNor()],
    ids=["sync", "async", "signature", "bool"],
)
async def test_an_exception_means_no(settings, caplog, function):
    """An AUTHORIZE that raises refuses, is logged with its traceback and counted."""
    authorize_with(settings, function)
    before = counts["auth_failed", "authorize"]

    assert not await may("order:7")

    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.exc_info
    assert counts["auth_failed", "authorize"] == before + 1


@pytest.mark.parametrize(
    "error",
    [ValueError("hunter2"), ValidationError("hunter2"), ObjectDoesNotExist("hunter2")],
    ids=lambda e: type(e).__name__,
)
async def test_an_id_that_is_none_means_no_without_a_word(settings, caplog, error):
    """What Django raises for an id that is malformed or not there is a no, not a fault: browsers may send anything."""

    def function(user, id_):
        raise error

    authorize_with(settings, function)
    before = counts["auth_failed", "authorize"]

    assert not await may("order:7")

    assert caplog.records == []
    assert counts["auth_failed", "authorize"] == before


async def test_a_slow_coroutine_means_no(settings, monkeypatch):
    """An AUTHORIZE that does not answer in time refuses, and is cancelled."""
    cancelled = asyncio.Event()

    async def wait_forever(user, id_):
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    monkeypatch.setattr(authorization, "AUTHORIZE_TIMEOUT", 0.05)
    authorize_with(settings, wait_forever)

    assert not await may("order:7")
    assert cancelled.is_set()


async def test_a_slow_function_means_no_at_once(settings, monkeypatch):
    """A synchronous AUTHORIZE that hangs refuses in time; the socket does not wait for its thread."""
    ended = threading.Event()
    monkeypatch.setattr(authorization, "AUTHORIZE_TIMEOUT", 0.05)
    authorize_with(settings, lambda user, id_: ended.wait(scaled()))
    started = time.monotonic()

    try:
        assert not await may("order:7")
        assert time.monotonic() - started < scaled() / 2
    finally:
        ended.set()


async def test_a_slow_function_holds_up_no_other(settings):
    """While one synchronous AUTHORIZE hangs, another user's is answered."""
    hanging, release = threading.Event(), threading.Event()

    def decide(user, id_):
        if id_ == "slow":
            hanging.set()
            release.wait(scaled())
        return True

    authorize_with(settings, decide)
    slow = asyncio.create_task(may("order:slow"))
    await await_for(hanging.is_set)
    try:
        async with asyncio.timeout(scaled() / 2):
            assert await may("order:quick")
        assert not slow.done()
    finally:
        release.set()
    assert await slow


async def test_a_function_may_ask_the_database(settings):
    """A synchronous AUTHORIZE uses the ORM as a view does."""
    ann = await User.objects.acreate(username="ann")
    authorize_with(settings, lambda user, id_: User.objects.filter(pk=user.pk, username=id_).exists())

    assert await may("order:ann", user=ann)
    assert not await may("order:ben", user=ann)


async def test_a_grant_opens_its_topic_without_authorize():
    """A grant is the alternative where a kind has no AUTHORIZE, or one that says no."""
    assert await may("closed:1", make_grant(ANN, "closed:1"))
    assert await may("order:ben-1", make_grant(ANN, "order:ben-1"))


@cases("grant", ["", "forged", "a:b:c", "é:é:é", "\ud800"])
async def test_a_forged_grant_opens_nothing(grant):
    """A grant that we did not sign is no grant."""
    assert not await may("closed:1", grant)


async def test_the_grant_of_another_user_or_topic_opens_nothing():
    """A grant is for one user and one topic."""
    assert not await may("closed:1", make_grant(User(pk=2), "closed:1"))
    assert not await may("closed:1", make_grant(ANN, "closed:2"))


async def test_a_useless_grant_forbids_nothing():
    """A user who has a permission keeps it when the grant has expired."""
    assert await may(ORDER, "expired")


# Tokens.


async def test_the_token_of_an_active_user_is_accepted():
    """token_user finds the user of a token of this app."""
    ann = await User.objects.acreate(username="ann")

    assert await token_user(make_token(ann)) == ann


async def test_the_token_of_an_inactive_user_is_refused():
    """A deactivated user cannot connect, whatever tokens they hold."""
    ann = await User.objects.acreate(username="ann", is_active=False)
    before = counts["auth_failed", "token"]

    assert await token_user(make_token(ann)) is None
    assert counts["auth_failed", "token"] == before + 1


async def _find_later(token):
    return ANN if token == "good" else None


@pytest.mark.parametrize(
    "function",
    [_find_later, lambda token: ANN if token == "good" else None, lambda token: _find_later(token)],
    ids=["async", "sync", "lambda"],
)
async def test_another_authenticator_can_be_plugged_in(settings, function):
    """AUTHENTICATE_TOKEN is any function from a token to a user or None, sync or async."""
    configure(settings, AUTHENTICATE_TOKEN=function)

    assert await token_user("good") is ANN
    assert await token_user("bad") is None


@pytest.mark.parametrize(
    "stranger",
    [AnonymousUser(), User(username="unsaved"), User(pk=1, is_active=False)],
    ids=["anonymous", "unsaved", "inactive"],
)
async def test_an_authenticator_cannot_let_in_who_is_nobody(settings, stranger):
    """Whatever a plugged-in authenticator returns, only an active user with a key comes in."""
    configure(settings, AUTHENTICATE_TOKEN=lambda token: stranger)

    assert await token_user("token") is None


async def test_a_user_may_be_lazy(settings):
    """As ``request.user``, which asks the database when it is looked at first: that is in a thread."""
    found = []
    configure(
        settings, AUTHENTICATE_TOKEN=lambda token: SimpleLazyObject(lambda: found.append(current_thread()) or ANN)
    )

    assert await token_user("good") == ANN
    assert found != [current_thread()]


async def test_an_authenticator_that_returns_no_user_refuses(settings, caplog):
    """Such as one that returns the user's key: that is said once, and not for each socket."""
    configure(settings, AUTHENTICATE_TOKEN=lambda token: 7)

    assert [await token_user("hunter2") for _ in range(3)] == [None] * 3

    assert len(caplog.records) == 1
    assert "is_active" in caplog.text


async def test_a_queryset_is_an_answer(settings):
    """It is evaluated where the database may be asked."""
    user = await sync_to_async(User.objects.create_user)("bea")
    authorize_with(settings, lambda user, id_: User.objects.filter(username=id_))

    assert await may(f"order:{user.username}")
    assert not await may("order:nobody")


async def test_an_authenticator_that_fails_refuses(settings, caplog):
    """An exception in the authenticator is a refusal, logged without the token."""
    configure(settings, AUTHENTICATE_TOKEN=lambda token: {}["missing"])

    assert await token_user("hunter2") is None

    assert caplog.records[0].exc_info
    assert "hunter2" not in caplog.text


async def _hang(token):
    await asyncio.Event().wait()


def _raise(error, token):
    raise error


@pytest.mark.parametrize(
    "function",
    [
        partial(_raise, OperationalError("away")),
        partial(_raise, ConnectionRefusedError()),
        partial(_raise, TimeoutError()),
        _hang,
    ],
    ids=["database", "network", "timeout", "hang"],
)
async def test_an_authenticator_that_cannot_answer_refuses_nobody(settings, function):
    """When the database is away nobody knows whether a token is good: the browser is told to come back."""
    configure(settings, AUTHENTICATE_TOKEN=function, AUTH_TIMEOUT=0.05)

    with pytest.raises(AuthUnavailableError):
        await token_user("token")


async def test_who_sends_many_tokens_keeps_others_waiting_for_one_turn_only(settings):
    """Made-up tokens cost time as good ones do: those of one address wait for each other."""
    gate, asked = threading.Event(), []

    def find(token):
        asked.append(token)
        gate.wait(scaled())

    configure(settings, AUTHENTICATE_TOKEN=find)
    flood = [
        asyncio.create_task(token_user("flood", "192.0.2.1")) for _ in range(10 * authentication.MAX_TOKEN_THREADS)
    ]
    await await_for(lambda: len(asked) == authentication.MAX_TOKEN_THREADS)
    one = asyncio.create_task(token_user("one", "192.0.2.2"))
    await asyncio.sleep(0)
    gate.set()
    await asyncio.gather(one, *flood)

    assert asked.index("one") < 3 * authentication.MAX_TOKEN_THREADS


# Origins.


def handshake(*, host="testserver", origin="http://testserver", scheme="ws", headers=()):
    """Make the scope of a WebSocket handshake as servers do; ``origin`` may be several, or None."""
    origins = [origin] if isinstance(origin, str) else origin or []
    return {
        "type": "websocket",
        "path": "/ws/notifications/",
        "raw_path": b"/ws/notifications/",
        "query_string": b"since=1-1",
        "scheme": scheme,
        "headers": [
            (b"host", host.encode()),
            *[(b"origin", each.encode("latin1")) for each in origins],
            *headers,
        ],
        "client": ["127.0.0.1", 40000],
        "server": ["127.0.0.1", 8000],
        "subprotocols": [],
    }


ORIGINS = [
    ("testserver", "http://testserver", "ws", True),
    ("testserver", "https://testserver", "wss", True),
    ("testserver:8000", "http://testserver:8000", "ws", True),
    ("testserver", "https://testserver", "ws", False),
    ("testserver", "http://testserver", "wss", False),
    ("testserver:8000", "http://testserver", "ws", False),
    ("testserver", "http://testserver:8000", "ws", False),
    ("testserver", "http://localhost", "ws", False),
    ("testserver", "http://sub.testserver", "ws", False),
    ("testserver", "http://testserver.evil.example", "ws", False),
    ("testserver", "http://testserver@evil.example", "ws", False),
    ("testserver", "http://testserver/", "ws", False),
    ("testserver", "null", "ws", False),
    ("testserver", "", "ws", False),
    ("testserver", "testserver", "ws", False),
    ("testserver", "file://", "ws", False),
    ("testserver", "http://[", "ws", False),
    ("testserver", "http://t\xe9stserver", "ws", False),
    ("evil.example", "http://evil.example", "ws", False),
    ("", "http://", "ws", False),
    ("bad host", "http://bad host", "ws", False),
    ("testserver", ["http://testserver", "http://testserver"], "ws", False),
    ("testserver", ["http://testserver", "http://evil.example"], "ws", False),
    ("testserver", ["http://evil.example", "http://testserver"], "ws", False),
]


def test_only_the_own_scheme_and_host_are_allowed():
    """A page of the same scheme, host and port may open a socket; ALLOWED_HOSTS says which hosts are ours."""
    answers = [
        (host, origin, scheme, origin_allowed(handshake(host=host, origin=origin, scheme=scheme)))
        for host, origin, scheme, _ in ORIGINS
    ]

    assert answers == ORIGINS


TRUSTED = [
    ("https://trusted.example", True),
    ("https://a.wild.example", True),
    ("https://a.b.wild.example", True),
    ("https://wild.example:8443", False),
    ("http://testserver", True),
    ("http://trusted.example", False),
    ("https://sub.trusted.example", False),
    ("https://trusted.example:8443", False),
    ("http://a.wild.example", False),
    ("https://evilwild.example", False),
    ("https://a.wild.example.evil.example", False),
    ("https://[", False),
    ("null", False),
]


def test_trusted_origins_are_allowed(settings):
    """CSRF_TRUSTED_ORIGINS lists further origins, with ``*`` for subdomains, as for Django's forms."""
    settings.CSRF_TRUSTED_ORIGINS = ["https://trusted.example", "https://*.wild.example"]

    assert [(origin, origin_allowed(handshake(origin=origin))) for origin, _ in TRUSTED] == TRUSTED


TOLD_BY_A_PROXY = [
    ("https", "https://testserver", True),
    ("https", "http://testserver", False),
    ("http", "https://testserver", False),
    ("wss", "https://testserver", True),
    ("WSS, http", "https://testserver", True),
    ("wss", "http://testserver", False),
    ("ws", "https://testserver", False),
    ("ws", "http://testserver", True),
    ("http, wss", "https://testserver", False),
    ("wsss", "https://testserver", False),
]


def test_a_proxy_that_ends_tls_is_believed_where_django_believes_it(settings):
    """With SECURE_PROXY_SSL_HEADER the scheme is the one that the proxy names, be it that of the WebSocket."""
    settings.SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
    answers = [
        (told, origin, origin_allowed(handshake(origin=origin, headers=[(b"x-forwarded-proto", told.encode())])))
        for told, origin, _ in TOLD_BY_A_PROXY
    ]

    assert answers == TOLD_BY_A_PROXY


def test_a_proxy_is_not_believed_unless_the_site_says_so():
    """Without SECURE_PROXY_SSL_HEADER anybody could send the header."""
    scope = handshake(origin="https://testserver", headers=[(b"x-forwarded-proto", b"https")])

    assert not origin_allowed(scope)


@pytest.mark.parametrize("believed", [True, False])
def test_a_forwarded_host_is_believed_where_django_believes_it(settings, believed):
    """With USE_X_FORWARDED_HOST the host is the one that the proxy names."""
    settings.USE_X_FORWARDED_HOST = believed
    scope = handshake(host="127.0.0.1", headers=[(b"x-forwarded-host", b"testserver")])

    assert origin_allowed(scope) is believed


def test_a_refusal_says_what_to_set(caplog):
    """The log names the origin and the settings that would allow it, and the refusal is counted."""
    before = counts["auth_failed", "origin"]

    origin_allowed(handshake(origin="https://shop.example"))

    assert "https://shop.example" in caplog.text
    assert "CSRF_TRUSTED_ORIGINS" in caplog.text
    assert "SECURE_PROXY_SSL_HEADER" in caplog.text
    assert counts["auth_failed", "origin"] == before + 1


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ([], "HTTP_X_FORWARDED_PROTO of SECURE_PROXY_SSL_HEADER was not sent"),
        ([(b"x-forwarded-proto", b"http")], "'http'"),
    ],
    ids=["missing", "http"],
)
def test_a_refusal_does_not_advise_what_is_set(settings, caplog, headers, said):
    """Where SECURE_PROXY_SSL_HEADER is set the log says what the proxy sent in that header."""
    settings.SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")

    assert not origin_allowed(handshake(origin="https://testserver", headers=headers))

    assert said in caplog.text
    assert "set SECURE_PROXY_SSL_HEADER" not in caplog.text


def test_a_header_of_another_sort_is_left_alone(settings):
    """A proxy may say "on" where Django waits for it; the names of schemes mean nothing there."""
    settings.SECURE_PROXY_SSL_HEADER = ("HTTP_X_SSL", "on")

    assert origin_allowed(handshake(origin="https://testserver", headers=[(b"x-ssl", b"on")]))
    assert not origin_allowed(handshake(origin="https://testserver", headers=[(b"x-ssl", b"wss")]))


def test_many_refusals_cannot_fill_the_log(caplog):
    """Pages of a foreign origin that try again and again leave so many lines in some seconds, and a count."""
    for _ in range(2 * LINES):
        origin_allowed(handshake(origin="https://shop.example"))

    assert len(caplog.records) <= LINES + 1


def test_an_origin_cannot_fill_the_log(caplog):
    """A huge or multi-line Origin leaves one short line."""
    origin_allowed(handshake(origin="http://a\nERROR forged\n" + "x" * 10000))

    assert len(caplog.records[0].getMessage()) < 700
    assert "\n" not in caplog.records[0].getMessage()


def signed_in(user, **options):
    return {**handshake(**options), "user": user}


def test_the_session_names_the_user_of_a_page():
    """A signed-in, active user is known by the session of a browser."""
    assert session_user(signed_in(ANN)) is ANN


def test_without_an_origin_a_session_proves_nothing():
    """A socket without Origin may be opened, but must authenticate by token."""
    scope = signed_in(ANN, origin=None)

    assert origin_allowed(scope)
    assert not has_origin(scope)
    assert session_user(scope) is None


@pytest.mark.parametrize(
    "user", [None, AnonymousUser(), User(pk=1, is_active=False)], ids=["none", "anonymous", "inactive"]
)
def test_the_session_of_nobody_names_nobody(user):
    """An anonymous or inactive user must authenticate, and is refused there."""
    assert session_user(signed_in(user)) is None


def test_a_site_without_sessions_has_no_session_user():
    """Where AuthMiddlewareStack is not installed every socket authenticates by token."""
    assert session_user(handshake()) is None
