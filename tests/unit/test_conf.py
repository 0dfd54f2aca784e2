"""The settings: read late, with defaults, and refused with a hint when they are wrong."""

import math

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.test import override_settings

from notifications.conf import Settings, find_problems, load, settings
from tests.testsite import permissions

GOOD = {"REDIS_URL": "redis://127.0.0.1:6379/0"}


def test_only_the_address_has_no_default():
    """A site that sets REDIS_URL has the values of the documentation for all else."""
    assert load(GOOD) == Settings(
        REDIS_URL="redis://127.0.0.1:6379/0",
        TOPICS={"upload": {}, "job": {}},
        PREFIX="",
        AUTHENTICATE_TOKEN="notifications.tokens.check_token",
        AUTH_TIMEOUT=5.0,
        TOKEN_MAX_AGE=300,
        GRANT_MAX_AGE=43_200,
        HEARTBEAT_INTERVAL=30.0,
        REAUTHORIZE_INTERVAL=300.0,
        MAX_CONNECTIONS_PER_USER=100,
        MAX_CONNECTIONS_PER_ADDRESS=0,
        MAX_UNAUTHENTICATED=2000,
        MAX_SUBSCRIPTIONS=100,
        MAX_MESSAGE_SIZE=65536,
    )


CHANGES = [
    {},
    {"REDIS_URL": "rediss://user:secret@redis.example:6380/3"},
    {"REDIS_URL": "unix:///run/redis.sock?db=1"},
    {"REDIS_URL": "redis://[::1]:6379/0"},
    {"PREFIX": ""},
    {"PREFIX": "shop:"},
    {"PREFIX": "a_longer_prefi9:"},
    {"TOPICS": {}},
    {"TOPICS": {"order": {"AUTHORIZE": "a.b", "CLEAN_ID": str.lower}, "user": {}}},
    {"TOPICS": {"fifteen_letters": {}}},
    {"TOPICS": {"site": {"PUBLIC": True, "AUTHORIZE": None}, "order": {"PUBLIC": False, "AUTHORIZE": "a.b"}}},
    {"AUTH_TIMEOUT": 0.5, "HEARTBEAT_INTERVAL": 1, "TOKEN_MAX_AGE": 1, "GRANT_MAX_AGE": 1, "MAX_MESSAGE_SIZE": 1},
    {"AUTHENTICATE_TOKEN": str.lower},
    {"REAUTHORIZE_INTERVAL": 0, "MAX_CONNECTIONS_PER_USER": 0, "MAX_CONNECTIONS_PER_ADDRESS": 0},
    {"MAX_UNAUTHENTICATED": 0},
    {"REAUTHORIZE_INTERVAL": 0.5, "MAX_CONNECTIONS_PER_USER": 1, "MAX_CONNECTIONS_PER_ADDRESS": 1000},
]


def test_a_good_dict_has_no_problem():
    """Everything that the documentation allows is accepted."""
    problems = [(change, find_problems({**GOOD, **change})) for change in CHANGES]

    assert [(change, found) for change, found in problems if found] == []


def test_progress_is_a_state_unless_the_site_says_otherwise():
    """Uploads and jobs are states also where the site has set another option; other kinds if it says so."""
    assert {name: kind.STATE for name, kind in load(GOOD).kinds.items()} == {"user": False, "upload": True, "job": True}
    topics = {"upload": {"HISTORY_SIZE": 5}, "job": {"STATE": False}, "order": {}, "lamp": {"STATE": True}}
    kinds = load({**GOOD, "TOPICS": topics}).kinds
    assert [kinds[name].STATE for name in topics] == [True, False, False, True]


WRONG = [
    ("E001", None),
    ("E001", "redis://127.0.0.1:6379/0"),
    ("E001", []),
    ("E002", {**GOOD, "REDIS": 1}),
    ("E002", {**GOOD, "redis_url": "redis://x"}),
    ("E002", {**GOOD, 7: 1}),
    ("E003", {}),
    ("E003", {"REDIS_URL": ""}),
    ("E003", {"REDIS_URL": None}),
    ("E004", {"REDIS_URL": "http://127.0.0.1"}),
    ("E004", {"REDIS_URL": "127.0.0.1:6379"}),
    ("E004", {"REDIS_URL": 6379}),
    ("E004", {"REDIS_URL": "redis://[::1"}),
    ("E004", {"REDIS_URL": "redis://localhost:port/0"}),
    ("E005", {**GOOD, "PREFIX": "shop"}),
    ("E005", {**GOOD, "PREFIX": "Shop:"}),
    ("E005", {**GOOD, "PREFIX": ":"}),
    ("E005", {**GOOD, "PREFIX": "shop:\n"}),
    ("E005", {**GOOD, "PREFIX": "shop:eu:"}),
    ("E005", {**GOOD, "PREFIX": "sixteen_letters_:"}),
    ("E005", {**GOOD, "PREFIX": None}),
    ("E006", {**GOOD, "AUTH_TIMEOUT": 0}),
    ("E006", {**GOOD, "AUTH_TIMEOUT": "5"}),
    ("E006", {**GOOD, "AUTH_TIMEOUT": math.nan}),
    ("E006", {**GOOD, "TOKEN_MAX_AGE": -1}),
    ("E006", {**GOOD, "TOKEN_MAX_AGE": 1.5}),
    ("E006", {**GOOD, "GRANT_MAX_AGE": 0}),
    ("E006", {**GOOD, "HEARTBEAT_INTERVAL": None}),
    ("E006", {**GOOD, "HEARTBEAT_INTERVAL": True}),
    ("E006", {**GOOD, "MAX_MESSAGE_SIZE": 1e6}),
    ("E006", {**GOOD, "REAUTHORIZE_INTERVAL": -1}),
    ("E006", {**GOOD, "REAUTHORIZE_INTERVAL": None}),
    ("E006", {**GOOD, "MAX_CONNECTIONS_PER_USER": 1.5}),
    ("E006", {**GOOD, "MAX_CONNECTIONS_PER_USER": -1}),
    ("E006", {**GOOD, "MAX_CONNECTIONS_PER_ADDRESS": "10"}),
    ("E006", {**GOOD, "MAX_UNAUTHENTICATED": -1}),
    ("E007", {**GOOD, "TOPICS": ["upload"]}),
    ("E007", {**GOOD, "TOPICS": None}),
    ("E008", {**GOOD, "TOPICS": {"Order": {}}}),
    ("E008", {**GOOD, "TOPICS": {"": {}}}),
    ("E008", {**GOOD, "TOPICS": {"order\n": {}}}),
    ("E008", {**GOOD, "TOPICS": {"order-line": {}}}),
    ("E008", {**GOOD, "TOPICS": {"sixteen_letters_": {}}}),
    ("E008", {**GOOD, "TOPICS": {"notifications": {}}}),
    ("E008", {**GOOD, "TOPICS": {7: {}}}),
    ("E009", {**GOOD, "TOPICS": {"order": {"AUTHORISE": "a.b"}}}),
    ("E009", {**GOOD, "TOPICS": {"order": None}}),
    ("E009", {**GOOD, "TOPICS": {"order": "shop.may_watch"}}),
    ("E017", {**GOOD, "TOPICS": {"order": {"STATE": 1}}}),
    ("E017", {**GOOD, "TOPICS": {"upload": {"STATE": None}}}),
    ("E017", {**GOOD, "TOPICS": {"user": {"STATE": "yes"}}}),
    ("E018", {**GOOD, "TOPICS": {"user": {"STATE": True}}}),
    ("E017", {**GOOD, "TOPICS": {"site": {"PUBLIC": "yes"}}}),
    ("E018", {**GOOD, "TOPICS": {"user": {"PUBLIC": True}}}),
    ("E019", {**GOOD, "TOPICS": {"site": {"PUBLIC": True, "AUTHORIZE": "shop.may_watch"}}}),
]


def test_each_problem_is_found_under_its_own_id():
    """
    A wrong dict has exactly the problem that the documentation numbers, with a hint what to do.

    Code that runs without the checks gets ImproperlyConfigured with the same sentences.
    """
    found = [(find_problems(raw), raw) for _, raw in WRONG]

    assert [(*(problem.id for problem in problems), raw) for problems, raw in found] == WRONG
    for [problem], raw in found:
        with pytest.raises(ImproperlyConfigured) as caught:
            pytest.fail(f"loaded {load(raw)}")
        assert problem.message.endswith(".")
        assert len(problem.hint) > 10
        assert problem.message in str(caught.value)
        assert problem.hint in str(caught.value)


def test_all_problems_are_told_at_once():
    """Who repairs a dict need not start the site once a mistake."""
    raw = {"REDIS": 1, "PREFIX": "x", "AUTH_TIMEOUT": 0, "TOPICS": {"A": {"B": 1}}}

    assert [problem.id for problem in find_problems(raw)] == ["E002", "E003", "E005", "E006", "E008", "E009"]


@pytest.mark.parametrize("url", ["http://:hunter2@redis", "redis://:hunter2@[::1", "redis://:hunter2@redis:port"])
def test_a_problem_of_the_address_does_not_tell_its_password(url):
    """REDIS_URL may hold a password: no message or hint repeats it."""
    (problem,) = find_problems({"REDIS_URL": url})

    assert "hunter2" not in problem.message + problem.hint


def test_settings_are_read_late():
    """The value is that of now, also under override_settings, and the old one afterwards."""
    before = settings.PREFIX
    with override_settings(NOTIFICATIONS={**GOOD, "PREFIX": "one:"}):
        assert settings.PREFIX == "one:"
        with override_settings(NOTIFICATIONS={**GOOD, "PREFIX": "two:"}):
            assert settings.PREFIX == "two:"
        assert settings.PREFIX == "one:"

    assert before == settings.PREFIX


def test_a_wrong_dict_is_told_when_a_value_is_needed():
    """With a wrong NOTIFICATIONS nothing fails at import; the first use says what to set."""
    with override_settings(NOTIFICATIONS={}), pytest.raises(ImproperlyConfigured, match="REDIS_URL"):
        _ = settings.PREFIX


def test_user_is_always_a_kind():
    """The kind user exists whatever TOPICS lists, and may be given options."""
    assert list(load({**GOOD, "TOPICS": {}}).kinds) == ["user"]
    assert load({**GOOD, "TOPICS": {"user": {"CLEAN_ID": str.lower}}}).kinds["user"].clean_id is str.lower


def test_callables_may_be_named_or_given():
    """AUTHORIZE, CLEAN_ID and AUTHENTICATE_TOKEN take a function or its dotted path."""
    path = "tests.testsite.permissions.may_watch"
    named = load({**GOOD, "AUTHENTICATE_TOKEN": path, "TOPICS": {"order": {"AUTHORIZE": path, "CLEAN_ID": path}}})
    given = load({**GOOD, "TOPICS": {"order": {"AUTHORIZE": permissions.may_watch}}})

    assert named.authenticate_token is permissions.may_watch
    assert named.kinds["order"].authorize is permissions.may_watch
    assert named.kinds["order"].clean_id is permissions.may_watch
    assert given.kinds["order"].authorize is permissions.may_watch
    assert given.kinds["order"].clean_id is None
