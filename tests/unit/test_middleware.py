"""In front of the WebSocket: cookies, session and user are in the scope, and nothing is between messages and server."""

from types import SimpleNamespace

import pytest
from channels.auth import UserLazyObject
from django.contrib.auth.models import AnonymousUser

from notifications.access import authentication, sessions
from notifications.access.credentials import _session_store
from notifications.middleware import SessionAuthMiddlewareStack

ANN = SimpleNamespace(pk=7, is_authenticated=True)


@pytest.fixture(autouse=True)
def cookie(settings):
    """The cookie of a session that needs no store."""
    settings.SESSION_ENGINE = "django.contrib.sessions.backends.signed_cookies"
    session = _session_store()()
    session["theme"] = "dark"
    session.save()
    return f"sessionid={session.session_key}".encode()


@pytest.fixture(autouse=True)
def asked(monkeypatch):
    """The keys of sessions that were looked up; they are Ann's."""
    asked = []

    async def find(session_key, address=""):
        asked.append(session_key)
        return sessions.Found(ANN, session_key != "unreadable", False, 0.0)

    monkeypatch.setattr(sessions, "find", find)
    return asked


async def pass_through(*headers, **scope):
    """Open a socket, and return the scope and what the application is to send with."""
    given = []

    async def application(scope, receive, send):
        given.extend((scope, send))

    scope = {"type": "websocket", "path": "/", "headers": headers, "client": ["192.0.2.1", 1], **scope}
    before = dict(scope)
    await SessionAuthMiddlewareStack(application)(scope, None, take)
    assert scope == before, "what is above shares the scope"
    return given


async def take(message):
    """Be the server."""


async def test_the_scope_has_what_consumers_of_channels_expect(cookie):
    """As behind Channels' own stack; data of the session are read when a consumer asks for them."""
    scope, _ = await pass_through((b"cookie", b"a=1; " + cookie))

    assert scope["cookies"]["a"] == "1"
    assert scope["session"]["theme"] == "dark"
    assert scope["user"].pk == ANN.pk


async def test_messages_go_straight_to_the_server(cookie):
    """Channels' session middleware wraps ``send``, and runs code for each message of each socket."""
    _, send = await pass_through((b"cookie", cookie))

    assert send is take


async def test_cookies_may_come_in_several_headers(cookie):
    """HTTP/2 divides them."""
    scope, _ = await pass_through((b"cookie", b"a=1"), (b"host", b"example.org"), (b"cookie", cookie))

    assert scope["cookies"]["a"] == "1"
    assert scope["session"]["theme"] == "dark"


@pytest.mark.parametrize("headers", [(), ((b"cookie", b"sessionid=short"),)], ids=["none", "no key"])
async def test_without_a_session_there_is_an_empty_one(asked, headers):
    scope, _ = await pass_through(*headers)

    assert dict(scope["session"].items()) == {}
    assert asked == [None]


async def test_a_scope_needs_no_headers():
    """ASGI lets a server leave them out, and some tests do: it has no cookie, and comes from no page."""
    given = []

    async def application(scope, receive, send):
        given.append(scope)

    await SessionAuthMiddlewareStack(application)({"type": "websocket", "path": "/"}, None, take)

    assert given[0]["cookies"] == {}
    assert authentication.origin_allowed(given[0])
    assert not authentication.has_origin(given[0])


async def test_a_user_who_cannot_be_determined_is_not_anonymous():
    """Other consumers fail, rather than take the user for somebody else."""
    unreadable = SimpleNamespace(session_key="unreadable")
    scope, _ = await pass_through(session=unreadable)

    assert scope["session"] is unreadable
    with pytest.raises(ValueError, match="user"):
        scope["user"].pk  # noqa: B018  looking is what raises


async def test_what_a_middleware_above_has_set_stays(cookie, asked):
    """It may have a session of its own."""
    own, user = _session_store()("another-key"), UserLazyObject()
    scope, _ = await pass_through((b"cookie", cookie), session=own, cookies={"b": "2"}, user=user)

    assert (scope["session"], scope["cookies"], scope["user"]) == (own, {"b": "2"}, user)
    assert asked == ["another-key"]


async def test_a_session_of_nobody_is_anonymous(monkeypatch):
    async def find(session_key, address=""):
        return sessions.Found(None, True, False, 0.0)

    monkeypatch.setattr(sessions, "find", find)
    scope, _ = await pass_through()

    assert scope["user"] == AnonymousUser()


async def test_a_path_that_a_proxy_has_stripped_is_whole_again():
    scope, _ = await pass_through(path="/ws/notifications/", root_path="/site")

    assert scope["path"] == "/site/ws/notifications/"
