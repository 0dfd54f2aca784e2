"""Notices that stay, on a site of real processes: what is committed arrives, once, whatever dies in between."""

import json
import signal
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import pytest

from tests.faults import redis_down
from tests.processes import START_SECONDS, Site, make_database
from tests.waiting import wait_for

SETTINGS = {"NOTIFICATIONS": {"HISTORY_SIZE": 5000}}
KILLED = 128 + signal.SIGKILL
SET_UP = """
import os, signal, threading
import django
django.setup()
from django.contrib.auth import get_user_model
from django.db import connections, transaction
from notifications.inbox import mark, notify, notify_many, publishing, unread
from notifications.inbox.models import KeptNotice
from notifications.messages import Notice
made = []
def make(user): made.append(KeptNotice(user_id=user, title="-"))
"""


@pytest.fixture
def inbox(new_site: Site) -> Site:
    """Return a site without a listener, whose histories keep all that is published."""
    new_site.settings = SETTINGS
    return new_site


def start(site: Site, program: str):
    """Start a program that uses the inbox."""
    return site.start(sys.executable, "-c", SET_UP + program, name="program")


def run(site: Site, program: str, returncode: int = 0) -> str:
    """Run such a program to its end, and return what it printed."""
    process = start(site, program)
    assert process.wait(START_SECONDS) == returncode, process.output
    return process.output


def query(site: Site, sql: str) -> list[tuple]:
    with closing(sqlite3.connect(site.database, timeout=20)) as database:
        return database.execute(sql).fetchall()


PENDING = "SELECT count(*) FROM notifications_inbox_keptnotice WHERE pending_since IS NOT NULL"


def pending(site: Site) -> int:
    return query(site, PENDING)[0][0]


def told(site: Site, user: int) -> list[dict]:
    """Return all messages on a user's topic, in their order."""
    entries = site.client().xrange(f"notifications:history:user:{user}")
    return [json.loads(frame) for _, fields in entries for frame in fields.values()]


def notices(site: Site, user: int) -> list[str]:
    return [each["inbox"]["id"] for each in told(site, user) if each["action"] == "notice"]


def number(message: dict) -> int:
    return message["inbox"]["unread"] if message["action"] == "notice" else message["payload"]["unread"]


def test_what_was_committed_while_redis_was_away_arrives_once(inbox):
    """A hundred notices of an outage are each published once when Redis is back, and the last number is right."""
    users = [user.pk for user in inbox.add_users(2)]
    inbox.start_listener()

    with redis_down(inbox.redis):
        run(
            inbox,
            f"for number in range(100):\n"
            f"    notify({users}[number % 2], Notice(title=str(number)), key=str(number))\n"
            f"mark({users[0]}, 'read', until=20)\n",
        )
        assert pending(inbox) == 100

    wait_for(lambda: pending(inbox) == 0)
    for index, user in enumerate(users):
        assert notices(inbox, user) == [str(pk) for pk in range(1 + index, 101, 2)]
    assert [number(told(inbox, user)[-1]) for user in users] == [40, 50]
    changes = {each["payload"]["change"] for each in told(inbox, users[0]) if each["action"] == "inbox"}
    assert changes - {None} == {"read", "unread", "restored"}  # a second look may have corrected the number


def test_whoever_is_killed_before_noting_it_has_published_once(inbox):
    """Killed between Redis's answer and the note, a process leaves a row that is not published a second time."""
    user = inbox.add_user().pk
    kill = "publishing._settle = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"

    run(inbox, kill + f"notify({user}, Notice(title='-'))", KILLED)
    assert pending(inbox) == 1
    assert notices(inbox, user) == ["1"]

    inbox.start_listener()
    wait_for(lambda: pending(inbox) == 0)
    assert notices(inbox, user) == ["1"]
    assert number(told(inbox, user)[-1]) == 1


def test_whoever_is_killed_after_the_commit_leaves_it_to_a_listener(inbox):
    """Killed between the commit and publishing, a process leaves a row that a listener publishes."""
    user = inbox.add_user().pk
    kill = "publishing._publish = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)\n"

    run(inbox, kill + f"notify_many([{user}], Notice(title='-'))", KILLED)
    assert notices(inbox, user) == []

    inbox.start_listener()
    wait_for(lambda: pending(inbox) == 0)
    assert notices(inbox, user) == ["1"]


def test_several_outboxes_publish_each_row_once(inbox):
    """Two commands and a listener at the same time do each other no harm."""
    users = [user.pk for user in inbox.add_users(3)]
    with redis_down(inbox.redis):
        run(inbox, f"for user in {users} * 200: make(user)\nKeptNotice.objects.bulk_create(made)")

    outboxes = [inbox.start(sys.executable, "-m", "django", "publish_pending", name="outbox") for _ in range(2)]
    inbox.start_listener()
    assert [each.wait(START_SECONDS) for each in outboxes] == [0, 0]
    wait_for(lambda: pending(inbox) == 0)

    for user in users:
        found = notices(inbox, user)
        assert len(found) == len(set(found)) == 200
        assert sorted(found, key=int) == found
        assert number(told(inbox, user)[-1]) == 100


def test_the_last_number_is_right_whoever_races(inbox):
    """Notices and marks of several threads and processes end with the number that the database has."""
    users = [user.pk for user in inbox.add_users(2)]
    inbox.start_listener()
    program = f"""
def race(seed):
    for turn in range(15):
        user = {users}[turn % 2]
        row = notify(user, Notice(title="-"), key=f"{{seed}}-{{os.getpid()}}-{{turn}}")
        if turn % 3 == 0:
            mark(user, "read", ids=[row.pk])
        if turn % 5 == 0:
            mark(user, "archived", until=max(row.pk - 10, 0))
    connections.close_all()
threads = [threading.Thread(target=race, args=(seed,)) for seed in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
"""

    racing = [start(inbox, program) for _ in range(2)]
    assert [each.wait(3 * START_SECONDS) for each in racing] == [0, 0]
    assert [each.output for each in racing] == ["", ""]

    wait_for(lambda: pending(inbox) == 0)
    alive = "read_at IS NULL AND archived_at IS NULL"
    for user in users:
        sql = f"SELECT count(*) FROM notifications_inbox_keptnotice WHERE user_id = {user} AND {alive}"
        assert number(told(inbox, user)[-1]) == query(inbox, sql)[0][0]
        found = notices(inbox, user)
        assert len(found) == len(set(found))
    assert sum(len(notices(inbox, user)) for user in users) == 120


def test_a_listener_waits_for_the_table(inbox):
    """Before ``migrate`` a listener says what is missing, and does the rest of its work; afterwards it publishes."""
    inbox.settings = SETTINGS
    assert inbox.run("migrate", "notifications_inbox", "zero").returncode == 0
    listener = inbox.start_listener()
    listener.wait_for_line("has no table of kept notices: run migrate")
    assert "restarted" not in listener.output
    wait_for(lambda: inbox.run("run_listener", "--check").returncode == 0)

    assert inbox.run("migrate", "notifications_inbox").returncode == 0
    assert listener.terminate() == 0


def test_the_app_may_be_imported_before_others_are_ready(inbox):
    """A module that is imported before Django is set up, such as the settings, can import ``notify``."""
    program = "from notifications.inbox import notify, mark, unread, notify_many, signals; print(notify.__name__)"

    process = inbox.start(sys.executable, "-c", program, name="program")

    assert process.wait(START_SECONDS) == 0, process.output
    assert process.output.strip() == "notify"


def test_the_command_fails_while_redis_is_away(inbox):
    """It exits 1 and says how many are pending; afterwards it publishes them, without a listener."""
    user = inbox.add_user().pk
    with redis_down(inbox.redis):
        run(inbox, f"notify({user}, Notice(title='-'))")
        failed = inbox.run("publish_pending")
        assert failed.returncode == 1
        assert "Redis does not answer: 0 told, 1 or more are pending" in failed.stderr

    assert inbox.run("publish_pending").stdout == "1 told\n"
    assert notices(inbox, user) == ["1"]


def test_a_listener_stops_while_it_publishes(inbox):
    """A listener that is told to stop ends in time, and what it has not published another one publishes, once."""
    user = inbox.add_user().pk
    with redis_down(inbox.redis):
        run(inbox, f"for _ in range(3000): make({user})\nKeptNotice.objects.bulk_create(made)")
    listener = inbox.start_listener()
    wait_for(lambda: told(inbox, user))
    assert listener.terminate() == 0

    inbox.start_listener()
    wait_for(lambda: pending(inbox) == 0, 30)
    found = notices(inbox, user)
    assert len(found) == len(set(found)) == 3000


def test_a_listener_ends_although_a_database_does_not_answer(inbox):
    """Told to stop, it does not wait for an answer that may never come; a supervisor would have to kill it."""
    patient = {"ENGINE": "django.db.backends.sqlite3", "NAME": str(inbox.database), "OPTIONS": {"timeout": 600}}
    inbox.settings = {**SETTINGS, "DATABASES": {"default": patient}}
    user = inbox.add_user().pk
    with redis_down(inbox.redis):
        run(inbox, f"for _ in range(3000): make({user})\nKeptNotice.objects.bulk_create(made)")
    listener = inbox.start_listener()
    with closing(sqlite3.connect(inbox.database, timeout=20, isolation_level=None)) as database:
        wait_for(lambda: told(inbox, user))
        database.execute("BEGIN EXCLUSIVE")
        assert len(told(inbox, user)) < 3000
        assert listener.terminate() == 0


def test_users_may_have_keys_that_are_no_numbers(inbox, tmp_path):
    """With a user model whose key is a UUID, notices are kept, marked and published by a listener."""
    inbox.settings = SETTINGS | {"AUTH_USER_MODEL": "testsite.UuidUser"}
    inbox.database = tmp_path / "uuid.sqlite3"
    assert inbox.run("migrate", "--run-syncdb").returncode == 0
    inbox.start_listener()

    made = "user = get_user_model().objects.create(name='eve')\n"
    pk = run(inbox, made + "notify(user, Notice(title='1'))\nprint(user.pk)").strip()
    with redis_down(inbox.redis):
        run(inbox, f"notify('{pk}', Notice(title='2'))\nmark('{pk}', 'read', ids=['1'])")
    wait_for(lambda: pending(inbox) == 0)

    assert notices(inbox, pk)[-1] == "2"
    many = "notify_many(get_user_model().objects.all(), Notice(title='3'))"
    assert run(inbox, f"print(unread('{pk}'), {many})").strip() == "1 1"


def test_a_second_database_has_an_outbox_as_well(inbox, tmp_path):
    """The listener publishes what is pending in every database; those without the table are no obstacle."""
    paths = {name: str(tmp_path / f"{name}.sqlite3") for name in ("default", "second", "empty")}
    make_database(Path(paths["second"]))
    options = {"ENGINE": "django.db.backends.sqlite3", "OPTIONS": {"timeout": 20}}
    paths["default"] = str(inbox.database)
    inbox.settings = SETTINGS | {"DATABASES": {name: options | {"NAME": path} for name, path in paths.items()}}
    inbox.add_user()
    inbox.start_listener()

    with redis_down(inbox.redis):
        run(
            inbox,
            "user = get_user_model().objects.using('second').create(username='eve', pk=77)\n"
            "notify(user, Notice(title='1'))\nnotify(77, Notice(title='2'), using='second')\n"
            "assert unread(user) == unread(77, using='second') == 2\nnotify(1, Notice(title='3'))\n",
        )

    def all_settled() -> bool:  # after they were published
        with closing(sqlite3.connect(paths["second"], timeout=20)) as second:
            return second.execute(PENDING).fetchone()[0] == pending(inbox) == 0

    wait_for(all_settled)
    assert (len(notices(inbox, 77)), len(notices(inbox, 1))) == (2, 1)
    assert inbox.run("publish_pending").stdout == "0 told\n"
    assert number(told(inbox, 77)[-1]) == 2
