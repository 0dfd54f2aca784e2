"""The outbox of kept notices, in this process: what stays pending, and what is told later."""

import re
from contextlib import ExitStack, contextmanager, nullcontext
from datetime import timedelta
from io import StringIO
from unittest.mock import patch

import pytest
from django.apps import apps
from django.contrib.auth import get_user_model
from django.core.management import CommandError, call_command
from django.db import OperationalError, connection, transaction
from django.utils import timezone

from notifications import PublishError, publisher
from notifications.doctor import Level
from notifications.inbox import anotify, examination, mark, notify, notify_many, outbox, publishing, unread, writing
from notifications.inbox.checks import check_apps
from notifications.inbox.models import KeptNotice
from notifications.inbox.outbox import Outbox, publish_pending
from notifications.inbox.publishing import publish_created
from notifications.inbox.signals import notice_created, notices_changed
from notifications.messages import Notice
from notifications.metrics import counts
from notifications.testing import captured, redis_outage
from tests.databases import connected
from tests.redis.test_inbox import told

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def sent():
    with captured() as sent:
        yield sent


@pytest.fixture
def user():
    return get_user_model().objects.create(username="eve")


def pending():
    return set(KeptNotice.objects.filter(pending_since__isnull=False).values_list("pk", flat=True))


@contextmanager
def in_the_middle(do, *, before=False):
    """Call something once: before the next messages are published, or when they are and nothing was noted of it."""
    send, calls = publisher.send_many, []

    def and_then(*arguments, **options):
        is_first = not calls
        calls.append(None)
        if is_first and before:
            do()
        ids = send(*arguments, **options)
        if is_first and not before:
            do()
        return ids

    with patch.object(publisher, "send_many", and_then):
        yield
    assert calls


@contextmanager
def table_elsewhere():
    """Rename the table, as if the site had not migrated."""
    with connection.schema_editor() as editor:
        editor.alter_db_table(KeptNotice, "notifications_inbox_keptnotice", "elsewhere")
    try:
        yield
    finally:
        with connection.schema_editor() as editor:
            editor.alter_db_table(KeptNotice, "elsewhere", "notifications_inbox_keptnotice")


def test_what_redis_missed_is_published_once(user, sent):
    """Notices and marks of an outage are told when Redis is back, in the order of their ids, with the number."""
    with redis_outage():
        ids = [str(notify(user, Notice(title=f"{number}")).pk) for number in range(3)]
        mark(user, "read", ids=ids[:1])
        mark(user, "archived", ids=ids[1:2])

    outcome = publish_pending("default")

    topic = f"user:{user.pk}"
    assert told(sent) == [
        *((topic, "notice", [each], 1) for each in ids),
        (topic, "read", ids[:1], 1),
        (topic, "restored", [ids[0], ids[2]], 1),
        (topic, "unread", ids[1:], 1),
        (topic, "archived", ids[1:2], 1),
    ]
    assert outcome == (3, 0, 0)
    assert pending() == set()
    assert publish_pending("default") == (0, 0, 0)


@pytest.mark.parametrize(("change", "back"), [("read", "unread"), ("archived", "restored")])
def test_what_was_taken_back_before_it_was_told_is_told_as_well(user, sent, change, back):
    """A page has read the list in between: it shows what is no longer so, and knows the notice when that comes."""
    with redis_outage():
        row = notify(user, Notice(title="-"))
        mark(user, change, ids=[row.pk])
        mark(user, back, ids=[row.pk])

    publish_pending("default")

    assert (f"user:{user.pk}", back, [str(row.pk)], 1) in told(sent)


def test_a_change_of_a_published_notice_is_told_in_full(user, sent):
    """Nobody knows what browsers were told last, so they are told how the notice stands."""
    rows = [notify(user, Notice(title="-")) for _ in range(3)]
    mark(user, "read", until=rows[2].pk)
    sent.clear()
    with redis_outage():
        mark(user, "unread", ids=[rows[0].pk])
        mark(user, "archived", ids=[rows[1].pk])

    publish_pending("default")

    topic, ids = f"user:{user.pk}", [str(row.pk) for row in rows]
    assert told(sent) == [
        (topic, "seen", ids[:1], 1),
        (topic, "unread", ids[:1], 1),
        (topic, "restored", ids[:1], 1),
        (topic, "read", ids[1:2], 1),
        (topic, "archived", ids[1:2], 1),
    ]
    assert pending() == set()


def test_a_change_that_was_told_does_not_settle_an_earlier_one_that_was_not(user, sent):
    """Redis was away for the one and back for the other: the row stays pending, and browsers are told both."""
    row = notify(user, Notice(title="-"))
    with redis_outage():
        mark(user, "archived", ids=[row.pk])
    mark(user, "read", ids=[row.pk])
    assert pending() == {row.pk}
    sent.clear()

    publish_pending("default")

    topic, ids = f"user:{user.pk}", [str(row.pk)]
    assert told(sent) == [(topic, "read", ids, 0), (topic, "archived", ids, 0)]
    assert pending() == set()


def test_who_was_killed_before_noting_it_has_published_once(user, sent):
    """The outbox repeats the notice under its key, so it is not published again; but how it stands is told."""
    with patch.object(publishing, "_settle", lambda *_: None):
        row = notify(user, Notice(title="-"))
    assert pending() == {row.pk}

    publish_pending("default")

    changes = ["notice", "unread", "restored"]
    assert told(sent) == [(f"user:{user.pk}", change, [str(row.pk)], 1) for change in changes]
    assert pending() == set()


@pytest.mark.parametrize("later", [False, True])
def test_a_mark_while_a_notice_is_published_is_told_after_it(user, sent, later):
    """The mark may have been told before the notice: so the row is pending again, and the outbox tells it."""
    if later:
        with redis_outage():
            row = notify(user, Notice(title="-"))
        with in_the_middle(lambda: KeptNotice.objects.update(read_at=timezone.now(), pending_since=timezone.now())):
            publish_pending("default")
    else:
        with in_the_middle(lambda: mark(user, "read", until=2**40)):
            row = notify(user, Notice(title="-"))

    row.refresh_from_db()
    assert row.published_at is not None
    assert pending() == {row.pk}
    publish_pending("default")
    assert [each for each in told(sent) if each[1]][-2:] == [
        (f"user:{user.pk}", "read", [str(row.pk)], 0),
        (f"user:{user.pk}", "restored", [str(row.pk)], 0),
    ]
    assert [each[1] for each in told(sent)].count("notice") == 1
    assert pending() == set()


def test_of_two_marks_at_once_the_row_decides(user, sent):
    """A mark that was overtaken while it was published leaves the row pending, and how it stands is told last."""
    row = notify(user, Notice(title="-"))

    with in_the_middle(lambda: mark(user, "unread", ids=[row.pk])):
        mark(user, "read", ids=[row.pk])
    assert pending() == {row.pk}
    publish_pending("default")

    assert [each[1] for each in told(sent)][-3:] == ["seen", "unread", "restored"]
    assert told(sent)[-1][3] == unread(user) == 1
    assert pending() == set()


def expect_told_anew(sent, row):
    """Expect a row to be pending, and the outbox to tell that it is unread."""
    assert pending() == {row.pk}
    publish_pending("default")
    assert [each[1] for each in told(sent)][-3:] == ["seen", "unread", "restored"]
    assert told(sent)[-1][3] == 1
    assert pending() == set()


@pytest.mark.parametrize("late", ["outbox", "mark"])
def test_what_is_told_too_late_is_told_anew(user, sent, late):
    """Whoever finds that a row has changed, and was settled by another, since it was read has it told once more."""
    row = notify(user, Notice(title="-"))

    def meanwhile():
        mark(user, "unread", ids=[row.pk])
        publish_pending("default")

    if late == "outbox":
        with redis_outage():
            mark(user, "read", ids=[row.pk])
        with in_the_middle(meanwhile, before=True):
            publish_pending("default")
    else:
        with in_the_middle(meanwhile, before=True):
            mark(user, "read", ids=[row.pk])

    expect_told_anew(sent, row)


@pytest.mark.parametrize("unknown", ["answer", "number"])
@pytest.mark.parametrize("late", ["outbox", "mark", "mark until"])
def test_what_may_have_been_told_too_late_is_told_anew(user, sent, late, unknown):
    """
    Others have told and settled a row, and changed it again, before a change of it is told at last.

    Redis did not say whether it took that, or others change the number faster than it can be told.
    """
    row = notify(user, Notice(title="-"))
    send, patches = publisher.send_many, ExitStack()

    def send_late(some):
        patches.close()
        publish_pending("default")
        mark(user, "unread", ids=[row.pk])
        publish_pending("default")
        assert pending() == set()
        ids = send(some)
        if unknown == "answer":
            raise PublishError(f"user:{user.pk}", "Redis did not answer", tuple(range(len(ids))), len(ids))
        patches.enter_context(patch.object(publishing, "_correct", lambda said, _: set(said)))
        return ids

    if late == "outbox":
        with redis_outage():
            mark(user, "read", ids=[row.pk])
    patches.enter_context(patch.object(publisher, "send_many", send_late))
    with patches:
        if late == "outbox":
            publish_pending("default")
        else:
            mark(user, "read", **({"ids": [row.pk]} if late == "mark" else {"until": row.pk}))

    expect_told_anew(sent, row)


@pytest.mark.parametrize("how", ["ids", "until"])
def test_a_mark_that_names_more_than_it_changes_is_told_anew_if_these_have_changed(user, sent, how):
    """Browsers take it for all that it names, also for what another device has changed meanwhile."""
    one, two = notify(user, Notice(title="one")), notify(user, Notice(title="two"))
    mark(user, "read", ids=[one.pk])

    with in_the_middle(lambda: mark(user, "unread", ids=[one.pk]), before=True):
        mark(user, "read", **({"ids": [one.pk, two.pk]} if how == "ids" else {"until": two.pk}))

    assert pending() == {one.pk}
    publish_pending("default")
    assert (f"user:{user.pk}", "unread", [str(one.pk)], 1) in told(sent)[-3:]
    assert pending() == set()


def test_a_notice_that_others_have_told_is_not_told_again_by_a_late_process(user, sent):
    """It has changed since, and may change again before the late message comes."""
    with patch.object(writing, "publish_created") as late:
        row = notify(user, Notice(title="-"))
    publish_pending("default")
    mark(user, "read", ids=[row.pk])
    sent.clear()

    publish_created(*late.call_args.args)

    assert sent == []


def test_an_outage_makes_nothing_pending_that_has_expired(user, sent):
    rows = [notify(user, Notice(title="-")) for _ in range(3)]
    KeptNotice.objects.update(expires_at=timezone.now())
    last = notify(user, Notice(title="-"))

    with redis_outage():
        mark(user, "read", until=last.pk)

    assert rows
    assert pending() == {last.pk}


def test_a_number_that_may_be_wrong_is_told_with_a_row_that_can_be_told(user, sent):
    """Not with one that has expired before it was ever published."""
    row = notify(user, Notice(title="-"))
    with redis_outage():
        gone = notify(user, Notice(title="-"), expires=timedelta(minutes=1))
    KeptNotice.objects.filter(pk=gone.pk).update(expires_at=timezone.now())
    publish_pending("default")

    def give_up(said, _):
        patches.close()
        publish_pending("default")
        return set(said)

    with ExitStack() as patches:
        patches.enter_context(patch.object(publishing, "_correct", give_up))
        mark(user, "read", until=gone.pk)

    assert pending() == {row.pk}


@pytest.mark.parametrize("in_a_transaction", [False, True])
def test_a_bug_after_the_commit_does_not_look_like_one_of_the_commit(user, caplog, in_a_transaction):
    """It is logged; the row is kept."""
    with (
        patch.object(writing, "publish_created", side_effect=RuntimeError("a bug")),
        transaction.atomic() if in_a_transaction else nullcontext(),
    ):
        row = notify(user, Notice(title="-"))

    assert pending() == {row.pk}
    assert "a bug" in caplog.text


def test_a_number_that_may_be_wrong_is_told_anew(user, sent):
    """Of a row that others have settled meanwhile, and that says what browsers were told."""
    row = notify(user, Notice(title="-"))

    def give_up(said, _):
        patches.close()
        publish_pending("default")
        return set(said)

    with ExitStack() as patches:
        patches.enter_context(patch.object(publishing, "_correct", give_up))
        mark(user, "read", ids=[row.pk])

    assert pending() == {row.pk}


def test_the_number_is_corrected_until_it_is_right(user, sent):
    """Whoever finds another number after publishing publishes that one."""
    with in_the_middle(lambda: KeptNotice.objects.create(user=user, title="meanwhile")):
        notify(user, Notice(title="-"))

    assert told(sent)[-1] == (f"user:{user.pk}", None, None, 2)


def test_corrections_end(user, sent, monkeypatch):
    """If others change the number faster than it can be told, the outbox tells it."""
    numbers = iter(range(100))
    monkeypatch.setattr(publishing, "count_all_unread", lambda users, db: dict.fromkeys(users, next(numbers)))

    row = notify(user, Notice(title="-"))

    assert len(sent) == 1 + publishing.CORRECTIONS
    assert pending() == {row.pk}


def test_what_has_expired_is_not_published(user, sent):
    """A notice that has expired before Redis was back is gone."""
    with redis_outage():
        row = notify(user, Notice(title="-"), expires=timedelta(minutes=1))
    KeptNotice.objects.update(expires_at=timezone.now())

    assert publish_pending("default") == (0, 0, 0)

    row.refresh_from_db()
    assert sent == []
    assert (row.pending_since, row.published_at) == (None, None)


def test_what_cannot_be_published_holds_up_nothing(user, sent, caplog):
    """A row that no message can be made of is logged, counted and left; the others are published."""
    before = counts["inbox_refused", "MessageError"]
    with redis_outage():
        bad = notify(user, Notice(title="-"))
        good = notify(user, Notice(title="-"))
    KeptNotice.objects.filter(pk=bad.pk).update(level="loud")

    assert publish_pending("default") == (1, 0, 1)

    assert [each[2] for each in told(sent) if each[1] == "notice"] == [[str(good.pk)]]
    assert pending() == set()
    assert counts["inbox_refused", "MessageError"] == before + 1
    assert f"the kept notice {bad.pk} cannot be published" in caplog.text


def test_a_topic_that_redis_refuses_holds_up_no_other(live_redis, user):
    """Notices of other users are published; that of this one stays pending."""
    other = get_user_model().objects.create(username="adam")
    live_redis.config_set("maxmemory", 1)
    try:
        rows = [notify(each, Notice(title="-")) for each in (user, other)]
    finally:
        live_redis.config_set("maxmemory", 0)
    live_redis.hset(f"notifications:once:{len(f'user:{user.pk}')}:user:{user.pk}:{publishing._once(rows[0])}", "a", "b")

    assert publish_pending("default") == (1, 1, 0)

    assert pending() == {rows[0].pk}
    assert live_redis.xlen(f"notifications:history:user:{other.pk}") == 3


def test_the_outbox_leaves_what_was_just_committed_to_whoever_committed_it(user, sent, monkeypatch):
    """Within the grace a row is not touched; after it, it is published."""
    with redis_outage():
        notify(user, Notice(title="-"))

    Outbox().look()
    assert sent == []

    monkeypatch.setattr(outbox, "GRACE", timedelta(0))
    Outbox().look()
    assert [each[1] for each in told(sent)] == ["notice", "unread", "restored"]


def test_a_clock_that_is_ahead_delays_nothing(user, sent):
    """A row that has been pending since a time to come is published at once: nobody knows since when it really is."""
    with redis_outage():
        row = notify(user, Notice(title="-"))
    KeptNotice.objects.update(pending_since=timezone.now() + timedelta(hours=1))

    Outbox().look()

    assert told(sent)[0] == (f"user:{user.pk}", "notice", [str(row.pk)], 1)
    assert pending() == set()


def test_a_database_that_is_away_is_left_alone_for_a_while(user, sent, monkeypatch, caplog):
    """It is logged once, asked again after a pause, and what is pending is published then."""
    monkeypatch.setattr(outbox, "GRACE", timedelta(0))
    with redis_outage():
        notify(user, Notice(title="-"))
    asked = []

    def fail(*_, **__):
        asked.append(None)
        raise OperationalError("the server closed the connection unexpectedly")

    worker = Outbox()
    with patch.object(outbox, "publish_rows", fail):
        worker.look()
        worker.look()
    assert len(asked) == 1
    assert len(re.findall("kept notices of database 'default' cannot be published", caplog.text)) == 1

    worker._not_before.clear()
    worker.look()
    assert pending() == set()


def test_a_table_that_is_not_there_is_a_line_in_the_log(caplog):
    """A site that has not migrated yet is told so."""
    with table_elsewhere():
        Outbox().look()

    assert "database 'default' has no table of kept notices" in caplog.text


def test_a_tenants_notice_is_published_where_there_is_no_tenant(user, sent, settings):
    """The row names the tenant of its topic, so a listener, which has none, can publish it."""
    tenant = ["acme"]
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "TENANT": lambda: tenant[0]}
    with redis_outage():
        row = notify(user, Notice(title="-"))
    tenant.clear()

    publish_pending("default")

    assert row.tenant == "acme"
    assert told(sent)[0] == (f"user:acme/{user.pk}", "notice", [str(row.pk)], 1)


def test_receivers_are_told_after_the_commit(user, sent):
    """Signals tell of each new row and of each mark, once it is committed."""
    heard = []

    def created(sender, notice, using, **_):
        heard.append((sender, notice.title, using))

    def changed(user, change, ids, until, **_):
        heard.append((user, change, ids, until))

    notice_created.connect(created)
    notices_changed.connect(changed)
    try:
        row = notify(user, Notice(title="One"), key="k")
        notify(user, Notice(title="One"), key="k")
        with transaction.atomic():
            notify_many([user], Notice(title="Many"), key="m")
            KeptNotice.objects.update(pending_since=timezone.now())  # as by a mark
        mark(user, "seen", ids=[row.pk])
        mark(user, "read", until=row.pk)
    finally:
        notice_created.disconnect(created)
        notices_changed.disconnect(changed)

    assert heard == [
        (KeptNotice, "One", "default"),
        (KeptNotice, "Many", "default"),
        (user.pk, "seen", [row.pk], None),
        (user.pk, "read", None, row.pk),
    ]


def said_by(*command):
    output = StringIO()
    call_command(*command, stdout=output)
    return output.getvalue().strip()


def test_the_command_publishes_what_is_pending(user, sent):
    """It says how many, and fails if Redis does not answer."""
    with redis_outage():
        notify_many([user], Notice(title="-"))
        notify(user, Notice(title="-"))
        with pytest.raises(CommandError, match="Redis does not answer: 0 told, 2 or more are pending"):
            call_command("publish_pending")

    assert said_by("publish_pending") == "2 told"
    assert said_by("publish_pending", "--database", "default") == "0 told"


def test_old_notices_are_pruned(user, sent):
    """What has expired goes, and what was read or archived before so many days; what is unread stays."""
    now = timezone.now()
    kept = [
        KeptNotice.objects.create(user=user, title="unread", created_at=now - timedelta(days=400)),
        KeptNotice.objects.create(user=user, title="read", read_at=now - timedelta(days=89)),
    ]
    KeptNotice.objects.create(user=user, title="expired", expires_at=now)
    KeptNotice.objects.create(user=user, title="read", read_at=now - timedelta(days=91))
    KeptNotice.objects.create(user=user, title="archived", archived_at=now - timedelta(days=91))

    assert said_by("prune_notices") == "3 deleted"
    assert set(KeptNotice.objects.all()) == set(kept)
    assert said_by("prune_notices", "--days", "30") == "1 deleted"
    assert said_by("prune_notices", "--days", "0", "--database", "default") == "0 deleted"


@pytest.mark.parametrize("arguments", [["--days", "-5"], ["--days", "nan"], ["--days", "1e6"], ["--database", "none"]])
def test_a_mistake_prunes_nothing(user, arguments):
    """Less than no days would be all that was read: such arguments are refused."""
    row = KeptNotice.objects.create(user=user, title="-", read_at=timezone.now())

    with pytest.raises(CommandError, match="argument"):
        call_command("prune_notices", *arguments)

    assert KeptNotice.objects.get() == row


def test_replicas_are_left_alone():
    """What mirrors another database in tests is a replica, whatever a router lets migrate."""
    entry = {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}
    with connected("replica", {**entry, "TEST": {"MIRROR": "default"}}), connected("other", entry):
        assert outbox.databases() == ["default", "other"]


async def test_the_doctor_finds_what_waits_for_long(sent):
    """Rows that should have been published are a warning; a moment ago is not long."""
    user = await get_user_model().objects.acreate(username="eve")
    with redis_outage():
        await anotify(user, Notice(title="-"))
    [well] = await apps.get_app_config("notifications_inbox").examine_notifications()
    await KeptNotice.objects.aupdate(pending_since=timezone.now() - timedelta(minutes=2))
    [waiting] = await apps.get_app_config("notifications_inbox").examine_notifications()

    assert (well.check, well.level) == ("inbox", Level.OK)
    assert waiting.level is Level.WARNING
    assert "1 kept notice(s) of database 'default' wait for more than 60 s" in waiting.text


def test_the_doctor_finds_that_there_is_no_table():
    """A site that has not migrated is told so."""
    with table_elsewhere():
        [finding] = examination._examine("default")

    assert finding.level is Level.WARNING
    assert "no table of kept notices" in finding.text


def test_the_app_needs_the_other_one(settings):
    """Without ``notifications`` there are no tags and no static files, which ``manage.py check`` says."""
    assert check_apps(None) == []

    settings.INSTALLED_APPS = [app for app in settings.INSTALLED_APPS if app != "notifications"]
    assert [problem.id for problem in check_apps(None)] == ["notifications_inbox.E001"]
