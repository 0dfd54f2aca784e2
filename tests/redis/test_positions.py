"""Where a topic is, for a page: ``position``, and the tag that renders it."""

from types import SimpleNamespace

import pytest
import redis
from django.contrib.auth.models import AnonymousUser

import notifications
from notifications import PositionError, Topic, TopicError, aposition, position, publish
from notifications.history.position import Position
from notifications.metrics import counts
from notifications.tokens import check_grant
from tests.redis.test_templatetags import (
    USER,
    Elements,
    render,
)
from tests.unit.test_templatetags import (
    no_redis,
)

__all__ = ["no_redis"]  # as there

HOSTILE = "\"'><script>alert(1)</script>&amp;"


def attributes_of(html: str) -> dict[str, str | None]:
    [(_, attributes, _)] = Elements(f"<p {html}>").found
    return attributes


# position()


async def test_position_is_before_what_is_published_next(live_redis: redis.Redis) -> None:
    """It is a position that browsers may send as since: of an empty topic, too, and the same from both twins."""
    assert Position.parse(position("closed:7")).n == 0
    id_ = publish("closed:7", {"n": 1})

    assert position("closed:7") == position(Topic("closed", "7")) == await aposition("closed:7") == id_


async def test_position_of_a_kind_without_history_is_none(settings: SimpleNamespace, no_redis: None) -> None:
    """Where nothing is kept there is no position, and Redis is not asked for one."""
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "TOPICS": {"closed": {"HISTORY_SIZE": 0}}}

    assert position("closed:7") is await aposition("closed:7") is None


async def test_position_says_so_when_redis_is_away(no_redis: None) -> None:
    """A Redis that cannot be reached raises an error of this app that names the topic, and is counted."""
    before = counts["position_failed", "ConnectionError"]

    with pytest.raises(PositionError, match="'closed:7'") as failed:
        position("closed:7")
    with pytest.raises(PositionError):
        await aposition("closed:7")

    assert isinstance(failed.value, notifications.NotificationsError)
    assert counts["position_failed", "ConnectionError"] == before + 2


async def test_position_of_what_is_no_topic(no_redis: None) -> None:
    """Something that is not a topic has no position."""
    for text in ("closed", "nothing:7", "closed:"):
        with pytest.raises(TopicError):
            position(text)
        with pytest.raises(TopicError):
            await aposition(text)


# {% topic %}


def test_topic_is_rendered_as_attributes(live_redis: redis.Redis) -> None:
    """An element is told its topic, where it is, and a grant for the user of the page."""
    id_ = publish("order:7", {"n": 1})
    found = attributes_of(render('{% topic "order" pk %}', context={"pk": 7}))

    assert (found["data-topic"], found["data-since"]) == ("order:7", id_)
    assert check_grant(str(found["data-grant"]), USER, Topic("order", "7"))
    assert list(found) == ["data-topic", "data-since", "data-grant"]


def test_topic_can_be_taken_apart(live_redis: redis.Redis) -> None:
    """With ``as`` a template puts each part where it likes; the whole are the attributes."""
    parts = '{% topic "order" "7" as t %}{{ t.topic }}|{{ t.since }}|{{ t.grant }}|{{ t }}'
    topic, since, grant, whole = render(parts).split("|")
    found = attributes_of(whole)

    assert found == {"data-topic": topic, "data-since": since, "data-grant": grant}
    assert topic == "order:7"
    assert render('{% autoescape off %}{% topic "order" "7" %}{% endautoescape %}').startswith('data-topic="order:7" ')


def test_topic_is_safe_in_html(live_redis: redis.Redis) -> None:
    """Whatever an id or a position is made of stays in its attribute, and an element gets back what was given."""
    html = render('{% topic "closed" hostile since=hostile %}', context={"hostile": HOSTILE})
    found = attributes_of(html)

    assert (found["data-topic"], found["data-since"]) == (f"closed:{HOSTILE}", HOSTILE)
    assert list(found) == ["data-topic", "data-since", "data-grant"]
    assert "<" not in html


def test_topic_goes_on_from_where_the_view_was(live_redis: redis.Redis) -> None:
    """A position that was taken before the state was read is the one that is rendered."""
    since = position("order:7")
    publish("order:7", {"n": 1})

    assert attributes_of(render('{% topic "order" 7 since=since %}', context={"since": since}))["data-since"] == since


@pytest.mark.parametrize(
    ("tag", "kind", "who"),
    [
        ('{% topic "closed" 7 grant=False %}', {}, USER),
        ('{% topic "closed" 7 %}', {"PUBLIC": True}, USER),
    ],
    ids=["not wanted", "public"],
)
def test_topic_without_a_grant(live_redis: redis.Redis, settings: SimpleNamespace, tag, kind, who) -> None:
    """Nothing is signed where the page does not want it, or anybody may read the topic."""
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "TOPICS": {"closed": kind}}

    assert list(attributes_of(render(tag, user=who))) == ["data-topic", "data-since"]


def test_topic_for_anonymous_users(no_redis: None) -> None:
    """A page that does not connect is told the name alone: nothing is signed, and Redis is not asked."""
    assert attributes_of(render('{% topic "order" 7 %}', user=AnonymousUser())) == {"data-topic": "order:7"}


def test_topic_is_rendered_while_redis_is_down(no_redis: None, caplog: pytest.LogCaptureFixture) -> None:
    """A Redis that is away costs the page the position, and nothing else."""
    assert list(attributes_of(render('{% topic "order" 7 %}'))) == ["data-topic", "data-grant"]
