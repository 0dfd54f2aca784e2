"""Sites with tenants: the same keys in each, and nobody reads, ends or is judged by what is another's."""

import asyncio
import sys
from contextlib import contextmanager
from contextvars import copy_context
from types import ModuleType, SimpleNamespace

import pytest
from django.contrib.auth import logout
from django.core.checks import run_checks
from django.db import DatabaseError, transaction
from django.http import HttpRequest
from django.template import engines
from django.test import Client

from notifications import (
    Topic,
    TopicError,
    checks,
    publish,
    publish_to_user,
)
from notifications.access import credentials
from notifications.access.authorization import OUT_AFTER
from notifications.access.credentials import NOBODY_KNOWS, Credentials, Verdict, judge
from notifications.access.revocation import Access
from notifications.history.position import Position
from notifications.history.stamped import Stamped, head, tail, tail_of
from notifications.tenants import Tenant
from notifications.testing import assert_notified, assert_published, captured, connect_as
from notifications.tokens import check_grant, check_token, make_grant, make_token
from notifications.topics import told
from tests.cases import cases
from tests.guides import files_of
from tests.testsite import tenancy

ACME, GLOBEX = "acme", "globex"
ONE = SimpleNamespace(pk=1)


@contextmanager
def in_tenant(name):
    token = tenancy.tenant.set(name)
    try:
        yield
    finally:
        tenancy.tenant.reset(token)


@pytest.fixture
def tenants(settings):
    """Give this process tenants."""
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "TENANT": "tests.testsite.tenancy.current"}
    return settings


def topics_of(make):
    """Make the same topic in each tenant."""
    found = []
    for name in (ACME, GLOBEX):
        with in_tenant(name):
            found.append(make())
    return found


# Names.


def test_the_tenant_is_part_of_all_names_but_those_that_browsers_see(tenants):
    """Channel, key, group and text have it; what browsers and the site call a topic has not."""
    acme, globex = topics_of(lambda: Topic("order", 42))

    assert (str(acme), acme.channel, acme.full_id) == ("order:acme/42", "order:acme/42", "acme/42")
    assert acme.history_key == "notifications:history:order:acme/42"
    assert acme.told == globex.told == told(str(acme)) == "order:42"
    for name in ("channel", "history_key", "group", "full_id"):
        assert getattr(acme, name) != getattr(globex, name)
    assert acme != globex
    with in_tenant(ACME):
        assert Topic.parse("order:42") == Topic.from_channel(b"order:acme/42") == Topic.checked_elsewhere(str(acme))
    assert Topic.from_channel(b"order:globex/42") == globex, "a channel names its tenant, wherever it is read"


def test_without_the_setting_names_are_as_they_were():
    """A slash in an id means nothing on a site without tenants."""
    topic = Topic("upload", "acme/42")

    assert (str(topic), topic.told, topic.full_id, topic.tenant) == ("upload:acme/42", "upload:acme/42", "acme/42", "")
    assert told("upload:acme/42") == "upload:acme/42"


@cases("id_", ["globex/1", "/1", "acme/1", "globex/../1", "globex:1"])
def test_nobody_reaches_another_tenant_by_naming_it(tenants, id_):
    """What stands in an id stays in it: the topic is one of the current tenant."""
    with in_tenant(ACME):
        topic = Topic.parse(f"order:{id_}")

    assert (topic.tenant, topic.id, topic.full_id) == (ACME, id_, f"acme/{id_}")
    assert Topic.from_channel(topic.channel.encode()) == topic


@cases("name", ["", "a/b", "x" * 64, "a\nb", None, 7, "\ud800"])
def test_a_name_that_is_none_is_refused(tenants, name):
    """A tenant without a name, or with one that would name another's topics, has none."""
    with in_tenant(name), pytest.raises(TopicError, match="a tenant has a name"):
        Topic("order", 42)


def test_what_is_of_no_tenant_has_no_topic(tenants):
    """Where the site does not know the tenant nothing is published to anybody."""
    with pytest.raises(TopicError, match=r"TENANT could not say whose topic it is \(KeyError\)"):
        publish("order:7", {})


@cases("error", [SystemExit, asyncio.CancelledError])
def test_a_tenant_that_cannot_be_named_ends_no_process(settings, error):
    """A function that a request, a socket and a listener all call."""

    def leave():
        raise error

    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "TENANT": leave}

    with pytest.raises(TopicError, match=error.__name__):
        publish("order:7", {})


@cases("channel", [b"order:42", b"order:/42", b"order:acme/", b"order:" + b"x" * 64 + b"/42"])
def test_a_raw_channel_without_a_tenant_is_refused(tenants, channel):
    """A program that publishes as if there were no tenants reaches nobody."""
    with pytest.raises(TopicError):
        Topic.from_channel(channel)


def test_a_frame_of_a_tenant_is_read_back(tenants):
    """What a listener compares with its backlog is the message, whatever the tenant's name takes in the frame."""
    rest = tail(b'{"a":1}')
    stamped = Stamped("r", "order:acme/42", Position(1, 2), head("order:42") + b'1-2"}' + rest)

    assert tail_of(stamped) == rest


# What the site calls.


def test_publishing_is_to_the_current_tenant(tenants):
    """The same call in another tenant is another topic, and the testing kit tells them apart."""
    with captured() as sent:
        for name in (ACME, GLOBEX):
            with in_tenant(name):
                publish_to_user(ONE, {"of": name})
                publish("order:7", {"of": name}, idempotency_key="once")
        with in_tenant(ACME):
            assert_notified(ONE, of=ACME)
            assert_published("order:7", of=ACME)
            with pytest.raises(AssertionError):
                assert_notified(ONE, of=GLOBEX)

    assert [each.topic for each in sent] == ["user:acme/1", "order:acme/7", "user:globex/1", "order:globex/7"]


@pytest.mark.django_db(transaction=True)
def test_what_waits_for_a_commit_keeps_its_tenant(tenants):
    """The tenant is that of the call, whatever is current when the transaction commits."""
    with captured() as sent, in_tenant(GLOBEX), transaction.atomic():
        with in_tenant(ACME):
            publish_to_user(ONE, {}, on_commit=True)
        assert sent == []

    assert [each.topic for each in sent] == ["user:acme/1"]


def test_a_grant_is_for_a_topic_of_one_tenant(tenants):
    """A grant of one tenant opens nothing in another, though user and topic have the same names there."""
    acme, globex = topics_of(lambda: make_grant(ONE, "order:7"))
    with in_tenant(ACME):
        topic = Topic.parse("order:7")

    assert check_grant(acme, ONE, topic)
    assert not check_grant(globex, ONE, topic)


@pytest.mark.django_db
def test_a_token_is_of_one_tenant(tenants, django_user_model):
    """A token opens no socket of another tenant, though the same key, and even the same password, is there."""
    user = django_user_model.objects.create_user("ann", password="x")
    acme, globex = topics_of(lambda: make_token(user))

    with in_tenant(ACME):
        assert check_token(acme) == user
        assert check_token(globex) is None
    tenants.NOTIFICATIONS = {**tenants.NOTIFICATIONS, "TENANT": None}
    assert check_token(acme) is None
    assert check_token(make_token(user)) == user


async def test_a_tenant_whose_database_is_away_keeps_no_other_waiting(tenants):
    """Nobody is asked at once where nobody answers: in that tenant, and in no other."""

    async def may_watch(user, id_):
        if tenancy.current() == ACME:
            raise DatabaseError("away")
        return True

    tenants.NOTIFICATIONS = {**tenants.NOTIFICATIONS, "TOPICS": {"order": {"AUTHORIZE": may_watch}}}
    access, socket = Access(), SimpleNamespace(user=SimpleNamespace(pk=1), is_account_old=False)

    async def ask(tenant):
        with in_tenant(tenant):
            return await access.ask(socket, Topic.parse("order:7"))

    assert [await ask(ACME) for _ in range(OUT_AFTER)] == [None] * OUT_AFTER
    assert await ask(GLOBEX) is True


@pytest.mark.django_db(transaction=True)
def test_what_is_done_in_no_tenant_does_not_fail_for_it(tenants, django_user_model, caplog):
    """A logout must end its session, and an account be saved and deleted, also where nobody knows whose it is."""
    user = django_user_model.objects.create_user("ann", password="x")
    client = Client()
    client.force_login(user)
    request = HttpRequest()
    request.session, request.user = client.session, user

    logout(request)
    user.set_password("y")
    user.save()
    user.delete()

    assert request.session.is_empty()
    assert not django_user_model.objects.exists()
    assert "TENANT could not say" in caplog.text


@pytest.mark.django_db
def test_a_page_names_no_tenant(tenants, django_user_model):
    """What the template tags tell the scripts is what browsers are told of a topic."""
    request = HttpRequest()
    request.user = django_user_model.objects.create_user("ann", password="x")
    template = engines["django"].from_string("{% load notifications %}{% notifications %}{% upload_progress 7 %}")
    with captured(), in_tenant(ACME):
        page = template.render({}, request)

    assert f'"user_topic": "user:{request.user.pk}"' in page
    assert ACME not in page


@pytest.mark.django_db(transaction=True)
async def test_the_testing_kit_has_tenants(tenants, django_user_model):
    """A socket of the kit belongs to the tenant in which it was opened, and sees nothing of others."""
    ann = await django_user_model.objects.acreate(username="ann")
    with in_tenant(ACME):
        async with connect_as(ann) as socket:
            await socket.subscribe(Topic("order", "ann-7"))
            with in_tenant(GLOBEX):
                publish_to_user(ann, {"of": GLOBEX})
            publish_to_user(ann, {"of": ACME})
            publish("order:ann-7", {"of": ACME})
            frames = [await socket.receive() for _ in range(2)]

    assert [(frame["_meta"]["topic"], frame["of"]) for frame in frames] == [
        (f"user:{ann.pk}", ACME),
        ("order:ann-7", ACME),
    ]


# The checks.


def found():
    return [each.id for each in run_checks(tags=["notifications"]) if each.id == "notifications.W008"]


@pytest.mark.parametrize("package", ["django_tenants", "tenant_schemas", "tenant_users.tenants"])
def test_a_package_for_tenants_without_the_setting_is_a_warning(settings, monkeypatch, package):
    """A site whose users have the same keys in each tenant is told before messages cross."""
    assert found() == []
    monkeypatch.setitem(vars(checks.django_settings), "INSTALLED_APPS", [*settings.INSTALLED_APPS, package])
    assert found() == ["notifications.W008"]
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "TENANT": "tests.testsite.tenancy.current"}
    assert found() == []


def test_a_package_for_tenants_that_is_installed_is_seen(tmp_path, monkeypatch):
    """A worker of the site may have it without listing it among its apps."""
    (tmp_path / "tenant_schemas_celery.py").touch()
    monkeypatch.syspath_prepend(tmp_path)

    assert found() == ["notifications.W008"]


@pytest.mark.parametrize("name", ["TENANT", "TENANT_CONTEXT"])
@cases(("value", "id_"), [("nowhere.at_all", "E010"), ("tests.testsite.tenancy.ACME", "E010"), (7, "E011")])
def test_what_is_no_function_is_an_error(settings, name, value, id_):
    """A setting that names nothing, or no function, is found before anything runs."""
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, name: value}

    messages = [each.msg for each in run_checks(tags=["notifications"]) if each.id == f"notifications.{id_}"]
    assert [message.startswith(f"NOTIFICATIONS: {name} ") for message in messages] == [True]


# The guide.


@pytest.fixture
def followed(monkeypatch):
    """Return what ``mysite/tenants.py`` of the guide defines; of django-tenants is there what it imports."""
    packages = {
        "django_tenants.middleware.main": {"TenantMainMiddleware": object},
        "django_tenants.utils": dict.fromkeys(
            ("get_public_schema_name", "get_tenant_domain_model", "schema_context"), lambda *_: None
        ),
    }
    for name in ("django_tenants", "django_tenants.middleware"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    for name, content in packages.items():
        monkeypatch.setitem(sys.modules, name, module := ModuleType(name))
        vars(module).update(content)
    namespace = {}
    exec(files_of("tenants")["mysite/tenants.py"], namespace)
    namespace["connection"] = SimpleNamespace(schema_name="of-the-thread")
    return namespace


def test_the_guide_knows_the_tenant_of_a_thread(followed):
    """A view, a task and AUTHORIZE run in threads, whose connection has the schema."""
    assert followed["current"]() == "of-the-thread"


async def test_the_guide_knows_the_tenant_of_a_coroutine(followed):
    """A socket has that of its host, and its threads that of their connections; without one it is nobody's."""
    said = []

    async def application(scope, receive, send):
        said.append((followed["current"](), await asyncio.to_thread(followed["current"])))

    async def find_schema(host):
        return {"acme.example.com": ACME}.get(host)

    async def send(event):
        said.append(event["type"])

    followed["find_schema"] = find_schema
    with pytest.raises(LookupError):
        followed["current"]()
    sockets = followed["TenantSockets"](application)
    for host in (b"ACME.example.com:8000", b"elsewhere.example.com"):
        await asyncio.create_task(sockets({"headers": [(b"host", host)]}, None, send))

    assert said == [(ACME, "of-the-thread"), "websocket.close"]


TENANTS = (ACME, GLOBEX)


async def test_one_tenant_whose_database_is_away_holds_up_no_other(monkeypatch):
    """The end of access in one tenant does not depend on the databases of the others."""

    def judge_them(some):
        if some[0].tenant.name == ACME:
            raise DatabaseError("no such schema")
        return [Verdict(None, each.user) for each in some]

    monkeypatch.setattr(credentials, "_judge", judge_them)
    acme, globex = (Credentials(ONE, None, None, Tenant(name, copy_context())) for name in TENANTS)

    assert await judge([acme, globex, acme]) == [NOBODY_KNOWS, Verdict(None, ONE), NOBODY_KNOWS]
    with pytest.raises(DatabaseError):
        await judge([acme])


async def test_a_tenant_that_next_does_not_find_is_an_error_and_no_endless_wait(tenants):
    """``StopIteration``, which Python 3.11 takes into no future: a ``TENANT_CONTEXT`` that looks its tenant up so."""

    def nowhere(name):
        return next(iter(()))

    tenants.NOTIFICATIONS = {**tenants.NOTIFICATIONS, "TENANT_CONTEXT": nowhere}

    with pytest.raises(RuntimeError, match="StopIteration"):
        await judge([Credentials(ONE, None, None, Tenant(ACME, copy_context()))])
