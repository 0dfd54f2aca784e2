"""The template tags on a page that a Redis gives a position."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import redis
from django.contrib.auth.models import User

from notifications import publish_to_user
from notifications.history.position import Position
from notifications.metrics import counts
from notifications.tokens import check_grant
from notifications.topics import Topic
from project.local_redis import LocalRedis
from tests.conftest import point_to
from tests.faults import paused
from tests.unit.test_templatetags import (
    Elements,
    config_of,
    render,
)

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
USER = User(pk=42, username="ada", password="md5$salt$hash")
Rendered = Callable[..., str]


def test_user_is_the_visitor(live_redis: redis.Redis) -> None:
    """A page about another user, which calls them ``user`` as a DetailView does, still has the visitor's topic."""
    page = render("{% notifications %}", context={"user": User(pk=7, username="bob")})

    assert config_of(page)["user_topic"] == "user:42"


def test_position_of_the_user_is_that_of_the_rendering(live_redis: redis.Redis) -> None:
    """The page begins after the last message that was published before it was rendered."""
    assert Position.parse(config_of(render("{% notifications %}"))["since"]).n == 0
    id_ = publish_to_user(USER, {"n": 1})

    assert config_of(render("{% notifications %}"))["since"] == id_


def test_redis_that_hangs_is_waited_for_once(settings: SimpleNamespace, redis_program: None) -> None:
    """The second page does not wait for a Redis that has just let the first wait for nothing."""
    with LocalRedis() as server:
        point_to(settings, server.url)
        config_of(render("{% notifications %}"))
        before = counts["position_failed", "TimeoutError"]

        with paused(server.child):  # at a second for each page the test would run into its time-out
            since = [config_of(render("{% notifications %}"))["since"] for _ in range(200)]

    assert since == [None] * 200
    assert counts["position_failed", "TimeoutError"] == before + 200


# What the documents say


def test_template_of_the_readme(live_redis: redis.Redis) -> None:
    """The two lines of the README connect a page and show a job, with a grant for the user of the page."""
    text = README.partition("<!-- example: template -->\n```html\n")[2].partition("```")[0]
    assert len(text.splitlines()) == 2

    found = Elements(render(text, context={"import": SimpleNamespace(pk=7, name="places.csv")})).found

    shown = {tag: attributes for tag, attributes, _ in found}
    assert list(shown) == ["link", "script", "task-progress"]
    bar = shown["task-progress"]
    assert (bar["topic"], bar["label"]) == ("job:7", "places.csv")
    assert check_grant(bar["grant"], USER, Topic("job", "7"))


def test_template_of_the_messages(live_redis: redis.Redis) -> None:
    """The three lines of docs/messages.md connect a page and show an upload with its name."""
    text = (
        (ROOT / "docs/messages.md")
        .read_text()
        .partition("<!-- example: template -->\n```html\n")[2]
        .partition("```")[0]
    )
    assert len(text.splitlines()) == 3

    found = Elements(render(text, context={"upload": SimpleNamespace(pk="7f3c", name="spring.jpg")})).found

    shown = {tag: attributes for tag, attributes, _ in found}
    assert shown["upload-progress"] == {"upload": "7f3c", "label": "spring.jpg"}
    assert list(shown) == ["link", "script", "upload-progress", "notification-toasts"]
