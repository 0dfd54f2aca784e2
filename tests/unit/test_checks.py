"""System checks: each mistake is found before anything runs, and nothing is asked over the network for it."""

import json
import re
import socket
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from django.core.checks import INFO, run_checks
from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command
from django.core.management.base import SystemCheckError

from notifications.doctor import Level, examine
from notifications.logs import describe
from notifications.topics import Topic
from tests import source
from tests.cases import cases

CORE = "channels_redis.core.RedisChannelLayer"
OURS = "notifications.layers.RedisPubSubLayer"
PUBSUB = "channels_redis.pubsub.RedisPubSubChannelLayer"
GOOD = {
    "REDIS_URL": "redis://127.0.0.1:1/0",
    "TOPICS": {
        "order": {
            "AUTHORIZE": "tests.testsite.permissions.may_watch_order",
            "CLEAN_ID": "tests.testsite.permissions.clean_order",
        }
    },
}
HOST = "redis://127.0.0.1:1/0"


@pytest.fixture(autouse=True)
def _good_site(settings):
    """Begin with a site that has nothing wrong."""
    settings.NOTIFICATIONS = GOOD
    settings.CHANNEL_LAYERS = {"default": {"BACKEND": PUBSUB, "CONFIG": {"hosts": [HOST]}}}
    settings.DEBUG = False
    settings.ALLOWED_HOSTS = ["example.com"]


@pytest.fixture
def install(monkeypatch):
    """Return a function that makes a package look as if a version of it were installed, or None."""

    def pretend(package, version):
        def answer(asked):
            if asked != package:
                return real(asked)
            if version is None:
                raise metadata.PackageNotFoundError(asked)
            return version

        monkeypatch.setattr("notifications.checks.metadata.version", answer)

    real = metadata.version
    return pretend


def found():
    return [message.id.removeprefix("notifications.") for message in run_checks(tags=["notifications"])]


def pretend_to_install(directory, name, says="top_level.txt"):
    """Write what pip writes about a project that brings a package of our name."""
    info = directory / f"{name}-1.8.3.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.8.3\n")
    record = "notifications/__init__.py,,\nnotifications/models.py,,\n"
    (directory / "notifications").mkdir(exist_ok=True)
    for module in ("__init__.py", "models.py"):  # from Python 3.12 on only files that are there count
        (directory / "notifications" / module).touch()
    (info / says).write_text("notifications\n" if says == "top_level.txt" else record)


def test_other_projects_of_the_same_package_are_found(tmp_path, monkeypatch):
    """What installs a package of our name besides is named, however it says what it brings."""
    pretend_to_install(tmp_path, "django-notifications-hq", "top_level.txt")
    pretend_to_install(tmp_path, "django_notifications_fork", "RECORD")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])

    (message,) = [each for each in run_checks(tags=["notifications"]) if each.id == "notifications.E016"]
    assert "django-notifications-hq, django_notifications_fork" in message.msg
    assert "Uninstall django-notifications-hq and django_notifications_fork" in message.hint


def test_what_is_left_of_a_project_is_no_project(tmp_path, monkeypatch):
    """A folder with RECORD alone, of an installation that was interrupted, has no name; nor a version."""
    for name in ("django_notifications_hq", "redis"):
        pretend_to_install(tmp_path, name, "RECORD")
        (tmp_path / f"{name}-1.8.3.dist-info" / "METADATA").unlink()
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])

    assert found() == []


def test_our_own_distribution_is_no_other_project(tmp_path, monkeypatch):
    """However its name is spelt, what brought us is us."""
    names = {"django-realtime-notifications", "Django_Realtime.Notifications"}
    for name in names:
        pretend_to_install(tmp_path, name)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    assert names <= set(metadata.packages_distributions()["notifications"])

    assert found() == []


def test_a_good_site_has_nothing_wrong():
    """All checks are silent on a site that follows the documentation."""
    assert found() == []


def change(settings, **values):
    settings.NOTIFICATIONS = {**GOOD, **values}


NOTIFICATIONS = [
    ("E001", "redis://"),
    ("E002", {**GOOD, "REDIS": 1}),
    ("E003", {}),
    ("E004", {"REDIS_URL": "http://x"}),
    ("E005", {**GOOD, "PREFIX": "shop"}),
    ("E006", {**GOOD, "AUTH_TIMEOUT": 0}),
    ("E007", {**GOOD, "TOPICS": []}),
    ("E008", {**GOOD, "TOPICS": {"A": {"AUTHORIZE": "tests.testsite.permissions.may_watch"}}}),
    ("E009", {**GOOD, "TOPICS": {"order": {"A": 1}}}),
    ("E010", {**GOOD, "AUTHENTICATE_TOKEN": "tests.nowhere.check"}),
    ("E010", {**GOOD, "AUTHENTICATE_TOKEN": "check"}),
    ("E010", {**GOOD, "TOPICS": {"order": {"AUTHORIZE": "tests.testsite.permissions.nothing"}}}),
    ("E010", {**GOOD, "TOPICS": {"user": {"CLEAN_ID": "tests.nowhere.clean"}}}),
    ("E010", {**GOOD, "TENANT": "tests.nowhere.current"}),
    ("E011", {**GOOD, "AUTHENTICATE_TOKEN": "tests.settings.SECRET_KEY"}),
    ("E011", {**GOOD, "AUTHENTICATE_TOKEN": None}),
    ("E011", {**GOOD, "TOPICS": {"order": {"AUTHORIZE": True}}}),
    ("E011", {**GOOD, "TOPICS": {"user": {"CLEAN_ID": 7}}}),
    ("E010", {**GOOD, "TOPICS": {"team": {"JOIN": "tests.nowhere.teams"}}}),
    ("E011", {**GOOD, "TOPICS": {"team": {"JOIN": [7]}}}),
    ("E014", {**GOOD, "METRICS_TOKEN": None}),
    ("W001", {**GOOD, "TOPICS": {"closed": {}}}),
    ("E017", {**GOOD, "TOPICS": {"order": {"STATE": "no"}}}),
    ("E018", {**GOOD, "TOPICS": {"user": {"STATE": True}}}),
    ("E019", {**GOOD, "TOPICS": {"site": {"PUBLIC": True, "AUTHORIZE": "tests.testsite.permissions.may_watch"}}}),
    ("E019", {**GOOD, "TOPICS": {"site": {"PUBLIC": True, "AUTHORIZE_MANY": "tests.testsite.permissions.may_watch"}}}),
    ("E021", {**GOOD, "GUESTS": 1}),
    ("E021", {**GOOD, "GUESTS": None}),
    ("E021", {**GOOD, "DEV_LISTENER": "no"}),
    ("E022", {**GOOD, "SHARDS": 3}),
    ("W009", {**GOOD, "GUESTS": True}),
    ("E020", {**GOOD, "TOPICS": {"order": {"AUTHORIZE": str, "AUTHORIZE_MANY": list}}}),
    ("E010", {**GOOD, "TOPICS": {"order": {"AUTHORIZE_MANY": "tests.nowhere.may_watch"}}}),
    ("E011", {**GOOD, "TOPICS": {"order": {"AUTHORIZE_MANY": 7}}}),
    ("W007", {**GOOD, "REDIS_URL": f"{HOST}?decode_responses=True"}),
]


@cases(("id_", "value"), NOTIFICATIONS)
def test_each_mistake_in_notifications_is_found(settings, id_, value):
    """A wrong NOTIFICATIONS dict shows as the check of its number, with a hint."""
    settings.NOTIFICATIONS = value

    (message,) = run_checks(tags=["notifications"])

    assert message.id == f"notifications.{id_}"
    assert message.hint


@pytest.mark.parametrize("name", ["broken.current", "nowhere.current", "tests.testsite.tenancy.nobody"])
@pytest.mark.parametrize("option", [{"TENANT": ...}, {"TOPICS": {"user": {"CLEAN_ID": ...}}}], ids=str)
async def test_a_function_that_cannot_be_imported_is_named(settings, tmp_path, monkeypatch, option, name):
    """By the check, and by the doctor, who names no topic without it; whatever its module raises."""
    (tmp_path / "broken.py").write_text("current = site")
    monkeypatch.syspath_prepend(tmp_path)
    put = json.loads(json.dumps(option, default=lambda _: name))
    change(settings, **put)

    assert found() == ["E010"]
    with pytest.raises(ImproperlyConfigured, match=name):
        Topic("user", "7")
    assert [each.check for each in await examine() if each.level is Level.ERROR] == ["settings"]


def test_a_public_kind_is_not_closed(settings):
    """Nobody is warned of a kind without AUTHORIZE that is open to every user."""
    change(settings, TOPICS={"site": {"PUBLIC": True}})

    assert found() == []


def test_a_kind_that_the_site_joins_is_not_closed(settings):
    """Nobody is warned of a kind without AUTHORIZE whose topics have readers."""
    change(settings, TOPICS={"team": {"JOIN": "tests.testsite.permissions.teams_of"}})

    assert found() == []


def test_kinds_that_nobody_configured_are_no_mistake(settings):
    """A site that has set no TOPICS is not warned of kinds that it may not even use."""
    settings.NOTIFICATIONS = {"REDIS_URL": HOST}

    assert found() == []


def test_jobs_are_opened_by_grants(settings):
    """Nobody is warned of jobs without AUTHORIZE: the tag that shows one signs a grant for the user of its page."""
    change(settings, TOPICS={"job": {}, "upload": {}})

    assert found() == ["W001"]  # of uploads


def test_a_site_without_the_setting_is_told(settings):
    """A site that installed the app and set nothing learns what to set."""
    del settings.NOTIFICATIONS

    assert found() == ["E003"]


def test_a_kind_without_permission_is_named(settings):
    """The warning about a missing AUTHORIZE names the kind and what to set."""
    change(settings, TOPICS={"invoice": {}})

    (message,) = run_checks(tags=["notifications"])

    assert "invoice" in message.msg
    assert "AUTHORIZE" in message.hint


LAYERS = [
    ("E012", {}),
    ("E012", {"other": {"BACKEND": PUBSUB}}),
    ("E012", None),
    ("E012", {"default": None}),
    ("E012", {"default": PUBSUB}),
    ("E012", {"default": {"BACKEND": CORE, "CONFIG": None}}),
    ("E012", {"default": {"BACKEND": OURS, "CONFIG": [HOST]}}),
    ("W002", {"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}}),
    ("E015", {"default": {"BACKEND": PUBSUB, "CONFIG": {"hosts": HOST}}}),
    ("E015", {"default": {"BACKEND": PUBSUB, "CONFIG": {"hosts": 7}}}),
    ("E015", {"default": {"BACKEND": PUBSUB, "CONFIG": {"hosts": ["redis://:pass/word@h"]}}}),
    ("E015", {"default": {"BACKEND": OURS, "CONFIG": {"hosts": [{"sentinels": [("h", 26379)]}]}}}),
    ("E015", {"default": {"BACKEND": PUBSUB, "CONFIG": {"hosts": ["embedded"]}}}),
    ("E015", {"default": {"BACKEND": PUBSUB, "CONFIG": {"hosts": [f"{HOST}?decode_responses=True"]}}}),
    ("E015", {"default": {"BACKEND": PUBSUB, "CONFIG": {"hosts": [{"address": HOST, "decode_responses": True}]}}}),
    ("W007", {"default": {"BACKEND": OURS, "CONFIG": {"hosts": [f"{HOST}?decode_responses=True"]}}}),
    ("W003", {"default": {"BACKEND": CORE, "CONFIG": {"hosts": [{"address": HOST, "socket_timeout": 15}]}}}),
]


@cases(("id_", "layers"), LAYERS)
def test_each_mistake_in_channel_layers_is_found(settings, id_, layers):
    """A channel layer that cannot carry the listener's messages shows, with a hint."""
    settings.CHANNEL_LAYERS = layers

    (message,) = run_checks(tags=["notifications"])

    assert message.id == f"notifications.{id_}"
    assert message.hint
    assert describe(OSError("Redis is away")) == "Redis is away"


@pytest.fixture
def _embedded(settings):
    """Let site and layer use a server of the checkout's own."""
    change(settings, REDIS_URL="embedded")
    settings.CHANNEL_LAYERS = {"default": {"BACKEND": OURS, "CONFIG": {"hosts": ["embedded"]}}}


@pytest.mark.usefixtures("_embedded")
def test_an_embedded_redis_is_for_development(settings, monkeypatch):
    """Without DEBUG it is an error, but not in a site's tests, for which DEBUG is always off."""
    assert found() == []

    monkeypatch.delattr("django.core.mail.outbox")
    assert found() == ["E023"]

    settings.DEBUG = True
    assert found() == []


@pytest.mark.usefixtures("_embedded")
def test_an_embedded_redis_needs_a_program(monkeypatch):
    """The package, or a server on PATH; and on Windows there is neither."""
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr("notifications.broker.embedded.find_spec", lambda _: None)
    assert found() == ["E024"]

    monkeypatch.undo()
    monkeypatch.setattr("notifications.broker.embedded.sys.platform", "win32")
    (message,) = run_checks(tags=["notifications"])
    assert message.id == "notifications.E024"
    assert "Windows" in message.hint
    extras = tomllib.loads(Path("pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert re.search(r"pip install ([\w-]+)", message.hint)[1] == re.split("[>=]", *extras["embedded"])[0]


@cases(("version", "breaks"), [("8.0.0", True), ("8.1", True), ("10.0.0b1", True), ("7.4.0", False)])
def test_the_core_layer_needs_a_socket_timeout_with_redis_8(settings, install, version, breaks):
    """channels_redis.core with redis-py 8 is an error unless each host has a socket_timeout; older ones only warn."""
    install("redis", version)
    for config in (
        {},
        {"hosts": [HOST]},
        {"hosts": [("127.0.0.1", 6379)]},
        {"hosts": [{"address": HOST}]},
        {"hosts": [{"address": HOST, "socket_timeout": 15}, HOST]},
    ):
        settings.CHANNEL_LAYERS = {"default": {"BACKEND": CORE, "CONFIG": config}}

        assert found() == (["W003", "E013"] if breaks else ["W003"]), config


@cases(
    ("version", "told"),
    [
        ("4.2.2", True),
        ("4.2", True),
        ("3.0.0", True),
        ("4.2.3", False),
        ("4.10.0", False),
        ("5.0", False),
        (None, False),
    ],
)
def test_a_daphne_with_known_holes_is_found(install, version, told):
    """Daphne below 4.2.3 is a warning; a site without Daphne has none."""
    install("daphne", version)

    assert found() == (["W004"] if told else [])


@cases(("debug", "hosts", "told"), [(False, ["*"], True), (True, ["*"], False), (False, [".example.com"], False)])
def test_any_host_outside_debug_is_found(settings, debug, hosts, told):
    """ALLOWED_HOSTS of ["*"] in production trusts any origin, which is a warning."""
    settings.DEBUG, settings.ALLOWED_HOSTS = debug, hosts

    assert found() == (["W005"] if told else [])


def test_a_token_for_metrics_that_nobody_can_show_is_found(settings, install):
    """A site that has a METRICS_TOKEN and no prometheus-client is told what to install."""
    change(settings, METRICS_TOKEN="long and random")
    assert found() == []
    install("prometheus-client", None)

    assert found() == ["W006"]


def test_a_site_that_has_not_mounted_the_stream_is_given_a_hint(settings):
    """It is no warning: the WebSocket works without. A site without pages, or with broken ones, is told nothing."""

    def hints():
        return [(found.id, found.level) for found in run_checks(tags=["notifications"], include_deployment_checks=True)]

    settings.ROOT_URLCONF = "tests.testsite.strange_urls"
    assert hints() == [("notifications.I001", INFO)]
    assert run_checks(tags=["notifications"]) == []  # no command of a developer begins with it

    settings.ROOT_URLCONF = "tests.nowhere"
    assert hints() == []

    del settings.ROOT_URLCONF
    assert hints() == []


def test_every_check_has_a_number_of_its_own_that_a_test_triggers():
    """No two mistakes share an id, and each id in the source stands in a test of this file."""
    ids = [found[1] for text in source.strings() if (found := re.fullmatch(r"(?:notifications\.)?([EIW]\d{3})", text))]
    tested = {id_ for id_, _ in [*NOTIFICATIONS, *LAYERS]} | {
        "E013",
        "E016",
        "E023",
        "E024",
        "W004",
        "W005",
        "W006",
        "W008",
        "I001",
    }

    assert len(ids) == len(set(ids))
    assert set(ids) == tested


def test_no_check_connects_to_anything(settings, monkeypatch):
    """A site whose Redis is away can be checked: no check opens a socket or looks a name up."""

    def refuse(*_):
        raise AssertionError("a check used the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    change(settings, REDIS_URL="redis://redis.invalid:6379/0")

    assert found() == []


def test_manage_check_fails_on_an_error_and_passes_on_a_warning(settings, capsys):
    """``manage.py check`` stops a deployment for an error of this app, and lets a warning pass."""
    change(settings, TOPICS={"closed": {}})
    call_command("check", tags=["notifications"])
    change(settings, PREFIX="x")

    with pytest.raises(SystemCheckError, match=r"notifications\.E005"):
        call_command("check", tags=["notifications"])

    assert "notifications.W001" in capsys.readouterr().err


def test_a_warning_can_be_silenced(settings):
    """A site that uses only grants silences the warning about AUTHORIZE as Django's own."""
    change(settings, TOPICS={"closed": {}})
    settings.SILENCED_SYSTEM_CHECKS = ["notifications.W001"]

    assert all(message.is_silenced() for message in run_checks(tags=["notifications"]))
