"""Notices that stay: rows, what browsers are told of them, and what a number is worth when several race."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from django.apps import apps
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Group
from django.db import IntegrityError, connection, transaction
from django.utils import timezone
from django.utils.functional import SimpleLazyObject

from notifications import MessageError, TopicError
from notifications.inbox import (
    amark,
    anotify,
    anotify_many,
    aunread,
    mark,
    notify,
    notify_many,
    outbox,
    publishing,
    unread,
    writing,
)
from notifications.inbox.models import KeptNotice
from notifications.messages import Notice
from notifications.testing import captured, redis_outage

pytestmark = pytest.mark.django_db(transaction=True)
WHEN = datetime(2026, 11, 23, 12, 30, 0, 250000, tzinfo=UTC)


@pytest.fixture
def sent():
    with captured() as sent:
        yield sent


@pytest.fixture
def user():
    return get_user_model().objects.create(username="eve")


def told(sent):
    """Return what was published, as (topic, what happened, ids, unread)."""
    found = []
    for topic, message, _ in sent:
        if message["action"] == "notice":
            found.append((topic, "notice", [message["inbox"]["id"]], message["inbox"]["unread"]))
        else:
            payload = message["payload"]
            found.append((topic, payload["change"], payload["ids"] or payload["until"], payload["unread"]))
    return found


def test_a_notice_is_kept_and_published(user, sent):
    """The row holds what was said, browsers are told once, and the row is pending no longer."""
    notice = Notice(title="Ready", level="success", body="7 rows", url="/imports/7/", timestamp=WHEN)

    row = notify(user, notice, key="import-7", group="imports", actor={"name": "Eve"}, target=UUID(int=7))

    assert [each.message for each in sent] == [
        {
            "action": "notice",
            "title": "Ready",
            "level": "success",
            "body": "7 rows",
            "url": "/imports/7/",
            "timestamp": "2026-11-23T12:30:00.250000Z",
            "inbox": {
                "id": str(row.pk),
                "unread": 1,
                "group": "imports",
                "actor": {"name": "Eve"},
                "target": str(UUID(int=7)),
            },
        }
    ]
    row.refresh_from_db()
    assert (row.user, row.key, row.group, row.title, row.level) == (user, "import-7", "imports", "Ready", "success")
    assert (row.body, row.url, row.actor, row.created_at) == ("7 rows", "/imports/7/", {"name": "Eve"}, WHEN)
    assert row.pending_since is None
    assert row.published_at is not None


def test_what_is_rolled_back_is_neither_kept_nor_published(user, sent):
    """Row and message belong to the caller's transaction."""
    with transaction.atomic():
        notify(user, Notice(title="Yes"))
        with transaction.atomic():
            notify(user, Notice(title="No"))
            notify_many([user], Notice(title="No"))
            transaction.set_rollback(True)
        assert sent == []

    assert [each.message["title"] for each in sent] == ["Yes"]
    assert KeptNotice.objects.get().title == "Yes"


def test_the_row_is_published_as_it_is_after_the_commit(user, sent):
    """The transaction may change what it has kept, or delete it, and then browsers are told of nothing else."""
    with transaction.atomic():
        rows = [notify(user, Notice(title=title)) for title in ("first", "gone", "gone, too")]
        KeptNotice.objects.filter(pk=rows[0].pk).update(title="second")
        rows[1].delete()
        KeptNotice.objects.filter(pk=rows[2].pk).delete()
        rows[0].title = "never saved"

    assert [(each.message["title"], each.message["inbox"]["unread"]) for each in sent] == [("second", 1)]


def test_what_its_transaction_has_marked_is_told_with_a_notice(user, sent, monkeypatch):
    """A row is settled only when browsers know how it stands, also if the mark itself is never told."""
    monkeypatch.setattr(writing, "publish_change", lambda *_: None)
    with transaction.atomic():
        row = notify(user, Notice(title="-"))
        mark(user, "read", ids=[row.pk])

    assert told(sent) == [
        (f"user:{user.pk}", "notice", [str(row.pk)], 0),
        (f"user:{user.pk}", "read", [str(row.pk)], 0),
    ]


def test_a_key_makes_a_notice_idempotent_for_its_user(user, sent):
    """The second call with a key returns the first row and publishes nothing; other users have keys of their own."""
    other = get_user_model().objects.create(username="adam")

    first = notify(user, Notice(title="One"), key="k")
    again = notify(user, Notice(title="Two"), key="k")
    notify(other, Notice(title="Three"), key="k")

    assert (again.pk, again.title) == (first.pk, "One")
    assert [each.message["title"] for each in sent] == ["One", "Three"]
    assert notify_many([user, other], Notice(title="Four"), key="k") == 0
    assert len(sent) == 2


def test_many_users_are_told_once_each(user, sent):
    """A queryset, instances and keys will do; whoever is there twice has one notice."""
    others = [get_user_model().objects.create(username=f"user {number}") for number in range(3)]

    assert notify_many(get_user_model().objects.all(), Notice(title="To all")) == 4
    assert notify_many([*others, others[0], str(user.pk)], Notice(title="Again")) == 4

    assert sorted(told(sent)) == sorted(
        (f"user:{row.user_id}", "notice", [str(row.pk)], 1 if row.title == "To all" else 2)
        for row in KeptNotice.objects.all()
    )
    assert not KeptNotice.objects.filter(pending_since__isnull=False).exists()


def test_keys_of_users_may_come_from_another_table(user, sent):
    """A queryset that selects keys of users is read as it is, never by the keys of its own rows."""
    get_user_model().objects.create(username="adam")
    group = Group.objects.create(name="editors")
    user.groups.add(group)
    members = get_user_model().groups.through.objects
    members.update(id=user.pk + 1)  # which is Adam's key

    assert notify_many(members.values_list("user", flat=True), Notice(title="-")) == 1

    assert [each.topic for each in sent] == [f"user:{user.pk}"]


@pytest.mark.parametrize("how", ["instance", "instances", "queryset", "values"])
def test_only_users_are_told(user, sent, how):
    """An instance of another model is no user, although its key may be one of a user."""
    group = Group.objects.create(pk=user.pk, name="editors")
    many = {"instances": [group], "queryset": Group.objects.all(), "values": Group.objects.values("pk")}

    with pytest.raises(TopicError):
        notify(group, Notice(title="-")) if how == "instance" else notify_many(many[how], Notice(title="-"))

    assert not KeptNotice.objects.exists()


def test_users_may_be_lazy_or_of_a_proxy(user, sent):
    """As request.user is, and as an app's own view of the users."""

    class Person(get_user_model()):
        class Meta:
            proxy = True
            app_label = "testsite"

    try:
        lazy = SimpleLazyObject(lambda: user)
        assert notify(lazy, Notice(title="-")).user_id == user.pk
        assert notify(Person.objects.get(), Notice(title="-")).user_id == user.pk
        assert notify_many(Person.objects.all(), Notice(title="-")) == 1
    finally:
        del apps.all_models["testsite"]["person"]
        apps.clear_cache()


def test_a_mistake_among_many_users_leaves_nothing_behind(user, sent):
    """All users are read before the first row is written, so that the call can be repeated."""

    def users():
        yield user
        yield from [user.pk] * 3000
        yield None

    with pytest.raises(TopicError):
        notify_many(users(), Notice(title="-"))

    assert not KeptNotice.objects.exists()


def test_a_user_who_is_gone_is_an_error(user, sent):
    """Nothing is kept or published of the thousand in which the user is."""
    gone = get_user_model().objects.create(username="gone")
    keys = [user.pk, gone.pk]
    gone.delete()

    with pytest.raises(IntegrityError):
        notify_many(keys, Notice(title="-"))

    assert sent == []
    assert not KeptNotice.objects.exists()


def test_marks_are_told_with_the_number(user, sent):
    """Each change is told to the user with the number of unread notices that is right after it."""
    rows = [notify(user, Notice(title=f"{number}")) for number in range(4)]
    ids = [str(row.pk) for row in rows]
    sent.clear()

    assert mark(user, "read", ids=[ids[0], rows[1].pk]) == 2
    assert mark(user, "unread", ids=ids[:1]) == 1
    assert mark(user, "archived", ids=ids[2:3]) == 1
    assert mark(user, "restored", ids=ids[2:3]) == 1
    assert mark(user, "seen", until=ids[2]) == 1
    assert mark(user, "read", until=rows[2].pk) == 2

    topic = f"user:{user.pk}"
    assert told(sent) == [
        (topic, "read", ids[:2], 2),
        (topic, "unread", ids[:1], 3),
        (topic, "archived", ids[2:3], 2),
        (topic, "restored", ids[2:3], 3),
        (topic, "seen", ids[2], 3),
        (topic, "read", ids[2], 1),
    ]
    assert not KeptNotice.objects.filter(pending_since__isnull=False).exists()


def test_what_is_so_already_is_not_marked_again(user, sent):
    """Where nothing changes, nobody is told; notices of others and expired ones are never changed."""
    other = notify(get_user_model().objects.create(username="adam"), Notice(title="Other"))
    row = notify(user, Notice(title="Mine"))
    gone = notify(user, Notice(title="Gone"), expires=timedelta(hours=1))
    KeptNotice.objects.filter(pk=gone.pk).update(expires_at=timezone.now())
    mark(user, "read", ids=[row.pk])
    sent.clear()

    assert mark(user, "read", ids=[row.pk, other.pk, gone.pk, 12345]) == 0
    assert mark(user, "seen", until=gone.pk) == 0
    assert mark(user, "unread", ids=[]) == 0
    assert sent == []


def test_unread_notices_are_counted_to_a_hundred(user, sent):
    """What is read, archived or expired does not count, and a hundred stands for more."""
    ids = [notify(user, Notice(title="-")).pk for _ in range(3)]
    mark(user, "read", ids=ids[:1])
    mark(user, "archived", ids=ids[1:2])
    notify(user, Notice(title="past"), expires=timezone.now() - timedelta(seconds=1))

    assert unread(user) == unread(user.pk) == 1

    KeptNotice.objects.bulk_create(KeptNotice(user=user, title="-") for _ in range(120))
    assert unread(user) == 100
    notify(user, Notice(title="one more"))
    assert told(sent)[-1][3] == 100


def test_a_notice_costs_few_queries(user, sent, django_assert_num_queries):
    """One row, read again, two counts and one note that it was published; a mark costs no more, and many neither."""
    with django_assert_num_queries(5):
        row = notify(user, Notice(title="-"))
    with django_assert_num_queries(8):  # with a key it is looked for, and the row has a transaction of its own
        other = notify(user, Notice(title="-"), key="k")
    with django_assert_num_queries(5):
        mark(user, "read", ids=[row.pk])
    # It names rows that it may not have changed, which are looked at. Where rows can be locked, several are: in the
    # order of their ids, in a transaction.
    with django_assert_num_queries(9 if connection.features.has_select_for_update else 6):
        mark(user, "archived", until=other.pk)


def test_redis_being_away_is_no_error(user):
    """The row stays pending, and nothing is raised, in a transaction or without one."""
    with redis_outage():
        first = notify(user, Notice(title="One"))
        with transaction.atomic():
            notify(user, Notice(title="Two"))
            notify_many([user], Notice(title="Three"))
        mark(user, "read", ids=[first.pk])

    assert KeptNotice.objects.filter(pending_since__isnull=False, published_at=None).count() == 3


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"key": ""}, MessageError),
        ({"key": "k" * 201}, MessageError),
        ({"group": "g" * 201}, MessageError),
        ({"group": "a\nb"}, MessageError),
        ({"key": 7}, MessageError),
        ({"notice": {"title": "-"}}, MessageError),
        ({"notice": Notice(title="nul \0")}, MessageError),
        ({"notice": Notice(title="x" * 70_000)}, MessageError),
        ({"notice": Notice(title="-", inbox={"id": "1", "unread": 1})}, MessageError),
        ({"actor": object()}, MessageError),
        ({"expires": timedelta(0)}, ValueError),
        ({"expires": datetime(2036, 1, 1)}, ValueError),  # noqa: DTZ001  naive is the point
        ({"user": None}, TopicError),
        ({"user": True}, TopicError),
        ({"user": "nobody"}, TopicError),
    ],
)
def test_mistakes_are_found_where_they_are_made(user, sent, arguments, error):
    """Whatever is wrong is an error of the call, before anything is written."""
    arguments = {"user": user, "notice": Notice(title="-"), **arguments}

    with pytest.raises(error):
        notify(arguments.pop("user"), arguments.pop("notice"), **arguments)

    assert not KeptNotice.objects.exists()


@pytest.mark.parametrize(
    "arguments",
    [
        {"change": "eaten", "ids": [1]},
        {"change": "read"},
        {"change": "read", "ids": [1], "until": 1},
        {"change": "read", "ids": ["one"]},
        {"change": "read", "until": 2**63},
        {"change": "read", "ids": [True]},
    ],
)
def test_a_mark_says_what_and_which(user, arguments):
    """Another word, no notices or ids that are none are errors."""
    with pytest.raises(ValueError):
        mark(user, **arguments)


def test_a_text_is_no_list_of_ids(user):
    """Otherwise "12" would be the notices 1 and 2."""
    with pytest.raises(TypeError):
        mark(user, "read", ids="12")


def test_half_a_character_arrives_as_the_replacement_character(user, sent):
    """What no database can hold is mended as it is on the wire, also in what the site adds."""
    row = notify(user, Notice(title="half \ud83d"), actor={"\ud83d": ["\ud83d"]})

    row.refresh_from_db()
    assert (row.title, row.actor) == ("half \ufffd", {"\ufffd": ["\ufffd"]})
    assert sent[0].message["title"] == "half \ufffd"


@pytest.mark.parametrize("time_zone", ["America/New_York", "Asia/Tokyo"])
@pytest.mark.parametrize("zones", [True, False], ids=["zones", "naive"])
def test_times_at_the_ends_of_the_calendar_are_shown_in_any_time_zone(user, client, settings, time_zone, zones):
    """Go's zero time, and what stands for "never": they do not cost the user the page of the inbox."""
    settings.TIME_ZONE, settings.USE_TZ = time_zone, zones
    client.force_login(user)
    for when in ("0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z"):
        notify(user, Notice(title="x", timestamp=when), expires=datetime.max.replace(tzinfo=UTC))
    notify(user, Notice(title="x"), expires=timedelta.max)

    assert client.get("/notifications/inbox/").content.count(b"<time ") == 3
    times = [each["timestamp"][:4] for each in client.get("/notifications/inbox/notices/").json()["notices"]]
    assert times[1:] == ["9999", "0001"]
    assert all(timezone.localtime(at) for at in KeptNotice.objects.values_list("expires_at", flat=True) if zones)


def test_a_site_without_time_zones_has_notices_too(user, sent, settings):
    """Times are told with their zone, and the key of a notice is the same in every process."""
    settings.USE_TZ = False
    with redis_outage(), timezone.override("Asia/Tokyo"):  # as a middleware may have done
        row = notify(user, Notice(title="-", timestamp=WHEN), expires=datetime(2099, 1, 1))  # noqa: DTZ001  naive is the point
        notify(user, Notice(title="-"), expires=timedelta(hours=1))
    before = publishing._once(row)

    assert outbox.publish_pending("default").told == 2

    row.refresh_from_db()
    assert publishing._once(row) == before
    assert sent[0].message["timestamp"] == "2026-11-23T12:30:00.250000Z"
    assert unread(user) == 2


async def test_async_twins_do_the_same(sent):
    """Each twin does what its function does."""
    user = await get_user_model().objects.acreate(username="eve")

    row = await anotify(user, Notice(title="One"), key="k")
    assert await anotify_many([user], Notice(title="Two")) == 1
    assert await aunread(user) == 2
    assert await amark(user, "read", ids=[row.pk]) == 1
    assert await aunread(user) == 1
    assert [each[1] for each in told(sent)] == ["notice", "notice", "read"]
