"""The inbox on each database server: what it does there, what counts the unread notices, and what lists them."""

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from io import StringIO
from pathlib import Path
from threading import Barrier, Event
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import psutil
import pytest
from django.core.management import call_command
from django.db import OperationalError, connections, transaction
from django.test.utils import CaptureQueriesContext
from pytest_django.plugin import DjangoDbBlocker

from notifications import publisher
from notifications.inbox import listing, mark, notify, notify_many, unread
from notifications.inbox.models import KeptNotice
from notifications.inbox.outbox import publish_pending
from notifications.inbox.rows import State
from notifications.messages import Notice
from notifications.testing import captured
from tests.databases import SERVERS, connected
from tests.mariadb import Mariadb, find_program
from tests.processes import ROOT
from tests.waiting import scaled, wait_for

pytestmark = pytest.mark.timeout(300)  # a busy machine takes its time to write a million rows

TESTS = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "tests").glob("*/test_inbox*.py"))
"""The tests of the inbox, which this process runs on SQLite."""
LEFT_OUT = ("browser", "site")
"""Folders whose tests start processes with databases of their own."""

ROWS = {"postgresql": 1_000_000, "mariadb": 100_000}
USERS = 1_000
BUSY, IDLE, ORDINARY = 1, 2, 501
"""
The first two have a tenth of all rows each: one has read all but the two oldest, one has read none, and neither has
archived any. The others have a thousandth, of which some are unread and a third is archived.
"""
ROUNDS = 15
DEADLOCK = 1213
"""The error of MariaDB for a transaction that is to be tried again."""
TURNS = {
    "seen": {"seen": True},
    "read": {"seen": True, "read": True},
    "unread": {"read": False},
    "archived": {"archived": True},
    "restored": {"archived": False},
}
"""What a change makes of the state of a notice that a page shows."""
MOST = 1.0
"""Milliseconds that PostgreSQL may take for a query."""
FILL = """
INSERT INTO notifications_inbox_keptnotice
  (tenant, {group}, level, title, body, url, created_at, read_at, archived_at, user_id)
SELECT '', '', 'info', 'Import finished', 'All rows were imported.', '/imports/7/', {now},
  CASE WHEN user_id = 2 OR (user_id = 1 AND n < 30) OR (user_id > 2 AND n % 20 = 1) THEN NULL ELSE {now} END,
  CASE WHEN user_id > 2 AND n % 3 = 0 THEN {now} END, user_id
FROM (
  SELECT n, CASE n % 10 WHEN 0 THEN 1 WHEN 9 THEN 2 ELSE 3 + {tens} * 7919 % ({users} - 2) END AS user_id FROM {numbers}
) AS numbered
"""
ADD_USERS = """
INSERT INTO auth_user
  (id, username, password, first_name, last_name, email, is_superuser, is_staff, is_active, date_joined)
SELECT n, n, '', '', '', '', false, false, true, {now} FROM {numbers}
"""


class Filled:
    """A database full of notices, and what its server says of the queries of the inbox."""

    def __init__(self, server: str) -> None:
        self.server = self.alias = server
        self._is_postgresql = server == "postgresql"

    def run(self, sql: str) -> list[Any]:
        with connections[self.alias].cursor() as cursor:
            cursor.execute(sql)
            return list(cursor.fetchall()) if cursor.description else []

    def fill(self) -> None:
        if self._is_postgresql:
            self.run("SET synchronous_commit = on")  # or VACUUM could come too early to see that nobody else writes
        now = "now()" if self._is_postgresql else "now(6)"
        self.run(ADD_USERS.format(now=now, numbers=self._numbers(USERS)))
        group = connections[self.alias].ops.quote_name("group")
        tens, numbers = "(n / 10)" if self._is_postgresql else "(n DIV 10)", self._numbers(ROWS[self.server])
        self.run(FILL.format(group=group, now=now, tens=tens, users=USERS, numbers=numbers))
        self.run("VACUUM ANALYZE" if self._is_postgresql else f"ANALYZE TABLE {KeptNotice._meta.db_table}")

    def _numbers(self, count: int) -> str:
        if self._is_postgresql:
            return f"generate_series(1, {count}) AS n"
        return f"(SELECT seq AS n FROM seq_1_to_{count}) AS numbers"

    def first_query(self, ask: Any) -> str:
        """Return the first query of a call, which is the one that counts or chooses."""
        with CaptureQueriesContext(connections[self.alias]) as queries:
            ask()
        return str(queries.captured_queries[0]["sql"])

    def plan(self, sql: str) -> tuple[list[dict[str, Any]], float]:
        """
        Return what PostgreSQL reads for a query, and the time that it takes in milliseconds.

        It is the shortest of several: a busy machine may stop any of them.
        """
        times = []
        for _ in range(ROUNDS):
            [[[said]]] = self.run(f"EXPLAIN (ANALYZE, FORMAT JSON) {sql}")
            times.append(said["Execution Time"])
        return [node for node in _nodes(said["Plan"]) if "Relation Name" in node], min(times)

    def read(self, sql: str) -> list[dict[str, Any]]:
        """Return what MariaDB has read for a query."""
        [[answer]] = self.run(f"ANALYZE FORMAT=JSON {sql}")
        return [table for table in _tables(json.loads(answer)) if table["table_name"] == KeptNotice._meta.db_table]


def _nodes(plan: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield plan
    for each in plan.get("Plans", []):
        yield from _nodes(each)


def _tables(said: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(said, list):
        for each in said:
            yield from _tables(each)
    elif isinstance(said, dict):
        if "table_name" in said:
            yield said
        for each in said.values():
            yield from _tables(each)


@pytest.fixture(scope="module", params=SERVERS)
def database(request: pytest.FixtureRequest) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Start each server in turn, and return its name and its entry of ``DATABASES``."""
    with SERVERS[request.param]() as settings:
        yield request.param, settings


@pytest.fixture(scope="module")
def filled(
    database: tuple[str, Mapping[str, Any]], django_db_setup: None, django_db_blocker: DjangoDbBlocker
) -> Iterator[Filled]:
    """
    Fill the table of the server, which is one more database of this process.

    The test database is there before: with the blocker open, a thread that serves other tests as well might connect to
    the default database, and would stay connected to one that has no tables.
    """
    alias, settings = database
    with django_db_blocker.unblock(), connected(alias, settings):
        call_command("migrate", database=alias, verbosity=0)
        filled = Filled(alias)
        filled.fill()
        yield filled


def test_inbox_does_the_same_on_each_server(redis_program, database):
    """The tests of the inbox pass there, all of them, with a database of the server in place of SQLite."""
    paths = [path for path in TESTS if Path(path).parts[1] not in LEFT_OUT]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--reuse-db", *paths]
    env = {**os.environ, "TEST_SETTINGS": json.dumps({"DATABASES": {"default": database[1]}})}

    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=scaled(280), check=False)

    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert len(paths) >= 2


def test_racing_calls_agree(filled):
    """
    Of threads that keep the same notices and mark them at once, none fails, and each notice is there once.

    InnoDB may end one of two that wait for each other, and says that it should try again. The last number that browsers
    are told is that of the rows, or a listener has yet to tell them.
    """
    user, threads, keys = USERS, 8, [f"key-{n}" for n in range(10)]
    rows = KeptNotice.objects.using(filled.alias).filter(user_id=user)
    rows.delete()

    def insist(call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        while True:
            try:
                return call(*arguments, using=filled.alias, **options)
            except OperationalError as error:
                if error.args[0] != DEADLOCK:
                    raise

    def keep_and_mark(number: int) -> None:
        try:
            for key in keys[number:] + keys[:number]:
                row = insist(notify, user, Notice(title=key), key=key)
                insist(mark, user, ("read", "unread", "seen")[number % 3], ids=[row.pk])
                insist(mark, user, "read" if number % 2 else "unread", until=row.pk)
        finally:
            connections[filled.alias].close()

    with captured() as sent, ThreadPoolExecutor(threads) as pool:
        list(pool.map(keep_and_mark, range(threads)))

    assert sorted(rows.values_list("key", flat=True)) == keys
    assert sorted(row.pk for row in rows) == sorted(
        int(each.message["inbox"]["id"]) for each in sent if each.message["action"] == "notice"
    )
    last = sent[-1].message
    told = last["inbox"]["unread"] if last["action"] == "notice" else last["payload"]["unread"]
    assert told == unread(user, using=filled.alias) or rows.filter(pending_since__isnull=False).exists()
    assert wrong(sent, rows) == []


def test_what_browsers_are_told_of_a_row_is_right_or_pending(filled):
    """One device marks all as read, also what was so, while another marks that as unread: in whichever order."""
    user, rows = USERS - 2, KeptNotice.objects.using(filled.alias).filter(user_id=USERS - 2)
    rows.delete()
    with captured() as sent:
        ids = [notify(user, Notice(title="-"), using=filled.alias).pk for _ in range(5)]
        together = Barrier(2)

        def mark_often(is_first: bool) -> None:
            change = "read" if is_first else "unread"
            try:
                for _ in range(60):
                    if is_first:
                        mark(user, "read", ids=ids[:1], using=filled.alias)
                        mark(user, "unread", ids=ids[1:2], using=filled.alias)
                    together.wait(scaled(20))
                    if not is_first:
                        time.sleep(random.uniform(0, 0.008))
                    mark(user, change, **({"until": ids[-1]} if is_first else {"ids": ids[:1]}), using=filled.alias)
                    together.wait(scaled(20))
                    if is_first:
                        faults.extend(wrong(sent, rows))
            finally:
                connections[filled.alias].close()

        faults: list[str] = []
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(mark_often, (True, False)))

    assert faults == []


def test_what_others_have_locked_is_told_at_once(filled):
    """They may settle a row without telling what was told wrongly, and too late: so nobody waits for them."""
    user, rows = USERS - 3, KeptNotice.objects.using(filled.alias).filter(user_id=USERS - 3)
    rows.delete()
    with captured() as sent:
        ids = [notify(user, Notice(title="-"), using=filled.alias).pk for _ in range(2)]
        send, locked, told = publisher.send_many, Event(), Event()

        def archive() -> None:
            try:
                with transaction.atomic(using=filled.alias):
                    mark(user, "archived", ids=ids, using=filled.alias)
                    locked.set()
                    told.wait(scaled(20))
            finally:
                connections[filled.alias].close()

        def send_late(some: list[Any]) -> Any:
            late.stop()
            publish_pending(filled.alias)
            mark(user, "unread", ids=ids, using=filled.alias)
            archiving = pool.submit(archive)
            assert locked.wait(scaled(20))
            return send(some), archiving

        late = patch.object(publisher, "send_many", send_late)
        with ThreadPoolExecutor(1) as pool:
            late.start()
            mark(user, "read", ids=ids, using=filled.alias)
            told.set()

    assert wrong(sent, rows) == []
    assert not rows.filter(read_at__isnull=False).exists()


def wrong(sent: Iterable[Any], rows: Any) -> list[str]:
    """Say of which rows a page shows something else than they say, although nobody is going to tell it."""
    shown: dict[int, State] = {}
    for each in list(sent):
        if each.message["action"] == "notice":
            shown.setdefault(int(each.message["inbox"]["id"]), State(seen=False, read=False, archived=False))
            continue
        change, ids, until = (each.message["payload"][name] for name in ("change", "ids", "until"))
        for pk, state in shown.items():
            if change is not None and (str(pk) in ids if until is None else pk <= int(until)):
                shown[pk] = state._replace(**TURNS[change])
    return [
        f"{row.pk} is shown as {shown[row.pk]}, and is {State.of(row)}"
        for row in rows.all()
        if row.pending_since is None and shown[row.pk] != State.of(row)
    ]


def test_marks_of_the_same_rows_do_not_lock_each_other_out(filled):
    """
    Some devices mark all, some a few in another order: there is no deadlock, which would fail one of them.

    InnoDB ends one now and then all the same, as docs/inbox.md says; whoever tries again gets through.
    """
    user, rows = USERS - 1, KeptNotice.objects.using(filled.alias)
    rows.filter(user_id=user).delete()
    rows.bulk_create(KeptNotice(user_id=user, title="-", pending_since=None) for _ in range(3000))
    ids = list(rows.filter(user_id=user).order_by("-pk").values_list("pk", flat=True))

    def mark_once(change: str, **which: object) -> int:
        """Return how often it was ended before it got through."""
        for ended in range(3):
            try:
                mark(user, change, **which, using=filled.alias)
            except OperationalError as error:
                if filled.server != "mariadb" or error.args[0] != DEADLOCK:
                    raise
            else:
                return ended
        raise AssertionError("ended three times in a row")

    def mark_often(number: int) -> int:
        change = "read" if number % 2 else "unread"
        try:
            return sum(
                mark_once(change, **({"until": ids[0]} if (number + turn) % 2 else {"ids": random.sample(ids, 100)}))
                for turn in range(20)
            )
        finally:
            connections[filled.alias].close()

    with captured(), ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(mark_often, range(6))) <= 6  # of 120 calls; seen: one in some 180 runs


def test_calls_for_the_same_users_do_not_lock_each_other_out(filled):
    """A task that runs twice at once, with users in another order each time, keeps one notice for each of them."""
    users, threads = range(100, 400), 4
    together = Barrier(threads)

    def keep_often(number: int) -> int:
        try:
            kept = 0
            for turn in range(8):
                together.wait(scaled(20))
                some = random.sample(users, len(users))
                kept += notify_many(some, Notice(title="-"), key=f"twice-{turn}", using=filled.alias)
            return kept
        finally:
            connections[filled.alias].close()

    with captured(), ThreadPoolExecutor(threads) as pool:
        assert sum(pool.map(keep_often, range(threads))) == 8 * len(users)


@pytest.mark.parametrize("isolation", ["read committed", "repeatable read"])
def test_a_key_that_an_older_transaction_does_not_see_is_found(database, filled, isolation):
    """On MariaDB the caller's transaction may be older than the notice: that is returned, and is no error."""
    server, settings = database
    if server != "mariadb":
        pytest.skip("PostgreSQL ends such a transaction, and the site repeats it")
    options = {**settings["OPTIONS"], "isolation_level": isolation}

    def keep(title: str) -> KeptNotice:
        with connected(isolation, {**settings, "OPTIONS": options}):
            return notify(ORDINARY, Notice(title=title), key=isolation, using=isolation)

    with connected("older", {**settings, "OPTIONS": options}), transaction.atomic(using="older"):
        KeptNotice.objects.using("older").count()
        with captured(), ThreadPoolExecutor(1) as pool:
            first = pool.submit(keep, "first").result()
        again = notify(ORDINARY, Notice(title="again"), key=isolation, using="older")

    assert (again.pk, again.title) == (first.pk, "first")


QUERIES = {
    "count": ("notices_unread", {}),
    "list": ("notices_list", {}),
    "later page": ("notices_list", {"before": 50_000}),
    "unread": ("notices_unread", {"unread": True}),
    "archive": ("notices_archive", {"archived": True}),
}


@pytest.mark.parametrize("user", [BUSY, IDLE, ORDINARY])
@pytest.mark.parametrize("name", QUERIES)
def test_query_is_answered_by_one_index(filled, monkeypatch, name, user):
    """
    The number and the ids of a page are found in one index alone, also if a user has a tenth of all notices.

    On PostgreSQL that takes less than a millisecond with 1,000,000 rows. MariaDB reads no more of its index than that
    user's part of it that counts, and of most of that no more than the page.
    """
    monkeypatch.setattr(listing, "database", lambda user: filled.alias)
    index, arguments = QUERIES[name]
    someone = SimpleNamespace(pk=user)

    def ask() -> None:
        if name == "count":
            unread(someone, using=filled.alias)
        else:
            listing.read_page(someone, **arguments)

    sql = filled.first_query(ask)

    if filled.server == "postgresql":
        [node], milliseconds = filled.plan(sql)
        assert (node["Node Type"], node["Index Name"]) == ("Index Only Scan", index)
        assert node.get("Rows Removed by Filter", 0) == 0
        assert milliseconds < MOST
    else:
        [table] = filled.read(sql)
        assert table["using_index"] is True
        assert table["r_rows"] <= 100


def test_number_is_right(filled):
    """What is counted in the index is what is in the rows."""
    rows = KeptNotice.objects.using(filled.alias).filter(read_at=None, archived_at=None)
    expected = {user: min(100, rows.filter(user_id=user).count()) for user in (BUSY, IDLE, ORDINARY)}

    assert {user: unread(SimpleNamespace(pk=user), using=filled.alias) for user in expected} == expected
    assert (expected[BUSY], expected[IDLE]) == (2, 100)
    assert 0 < expected[ORDINARY] < 100


def test_checks_have_nothing_to_say(filled):
    """Neither of indexes that the database has not, nor of keys that are too long, nor of a missing migration."""
    said = StringIO()

    call_command("check", databases=[filled.alias], stdout=said, stderr=said)
    call_command("makemigrations", "notifications_inbox", check_changes=True, dry_run=True, stdout=said, stderr=said)

    assert "models." not in said.getvalue()
    assert "mysql." not in said.getvalue()


@pytest.mark.skipif(find_program("mariadbd") is None, reason="MariaDB is not installed")
def test_mariadb_answers_this_machine_only_and_is_gone_afterwards():
    """It listens on no network address, and leaves neither a process nor a file."""
    with Mariadb() as server:
        answer = server.run("SELECT 6 * 7")
        directory = Path(server.socket).parent
        process = psutil.Process(server.child.pid)
        listening = process.net_connections("inet")
        mode = directory.stat().st_mode & 0o777

    assert (answer, listening, mode) == ("42", [], 0o700)
    assert not process.is_running()
    assert not directory.exists()


@pytest.mark.skipif(find_program("mariadbd") is None, reason="MariaDB is not installed")
def test_mariadb_ends_with_a_parent_that_is_killed():
    """A test that is killed leaves no server behind."""
    program = "import os; from tests.mariadb import Mariadb as M; print(M().__enter__().child.pid); os.abort()"
    done = subprocess.run([sys.executable, "-uc", program], capture_output=True, text=True, cwd=ROOT, check=False)

    wait_for(lambda: not psutil.pid_exists(int(done.stdout)))
