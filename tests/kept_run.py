"""
Tabs that show kept notices, on a site in which something breaks, and the account of what they show.

    async with KeptRun(site, [server], listeners, users=20, tabs=50) as run:
        ...  # keep notices, and break something
        await run.expect_all_shown()

The rows are the truth: in the end each tab shows each notice of its user, as it is in the database, and the number that
it was told last is the number there.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import secrets
import sqlite3
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, AsyncExitStack, closing, contextmanager
from typing import Any, NamedTuple, Protocol, Self
from urllib.parse import urlencode

import pytest

from benchmarks.postgres import Postgres, find_program
from notifications import Topic
from notifications.history import get_store
from notifications.history.position import Position
from tests.fault_run import Browser, is_holder
from tests.http_client import post, session
from tests.keeper import ROLLED_BACK
from tests.processes import Process, Site, User, WebServer
from tests.waiting import await_for, scaled

LIST = "/notifications/inbox/notices/"
MARK = "/notifications/inbox/mark/"
MAX_UNREAD = 100
OURS = "tests"
"""The name by which connections of the tests' own are known to PostgreSQL."""
LOOK = 0.1
"""Seconds between two comparisons of everything."""
PATIENCE = 40.0
"""Seconds, before scaling, in which all tabs have to show everything after all is whole again."""


class Database(Protocol):
    """What a site has its rows in, for tests that look at them."""

    def settings(self) -> dict[str, Any]:
        """Return the setting ``DATABASES``."""

    def execute(self, query: str, *values: Any) -> list[Any]:
        """Run a statement with a connection of its own, commit it, and return its rows."""

    def locked(self) -> AbstractContextManager[None]:
        """Let nobody else write; a server that can do so ends the connections of all others first."""


class SqliteFile:
    """The file of a ``Site``, as a site has to configure it whose processes write it at once."""

    def __init__(self, site: Site, *, timeout: float = 20) -> None:
        self._path = str(site.database)
        self._timeout = timeout

    def settings(self) -> dict[str, Any]:
        options = {
            "timeout": self._timeout,
            "transaction_mode": "IMMEDIATE",
            "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL",
        }
        return {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": self._path, "OPTIONS": options}}

    def execute(self, query: str, *values: Any) -> list[Any]:
        with closing(sqlite3.connect(self._path, timeout=scaled())) as database, database:
            return database.execute(query, values).fetchall()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Let nobody write."""
        with closing(sqlite3.connect(self._path, timeout=scaled(), isolation_level=None)) as database:
            database.execute("BEGIN IMMEDIATE")
            try:
                yield
            finally:
                database.execute("ROLLBACK")


class PostgresServer:
    """A PostgreSQL of its own, migrated."""

    def __init__(self, server: Postgres, site: Site) -> None:
        self._server = server
        site.settings |= {"DATABASES": self.settings()}
        done = site.run("migrate", "-v", "0", seconds=60)
        assert done.returncode == 0, done.stderr

    def settings(self) -> dict[str, Any]:
        env = self._server.env
        names = {"HOST": "PGHOST", "PORT": "PGPORT", "USER": "PGUSER", "NAME": "PGDATABASE"}
        engine = "django.db.backends.postgresql"
        return {"default": {"ENGINE": engine, **{name: env[key] for name, key in names.items()}}}

    def execute(self, query: str, *values: Any) -> list[Any]:
        import psycopg

        with psycopg.connect(self._server.dsn, application_name=OURS) as connection:
            cursor = connection.execute(query.replace("?", "%s"), values)
            return cursor.fetchall() if cursor.description else []

    @contextmanager
    def locked(self) -> Iterator[None]:
        import psycopg

        with psycopg.connect(self._server.dsn, application_name=OURS) as connection:
            others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name <> %s"
            connection.execute(others, [OURS])
            connection.execute("LOCK TABLE notifications_inbox_keptnotice IN EXCLUSIVE MODE")
            yield


@contextmanager
def database_of(kind: str, site: Site) -> Iterator[Database]:
    """Give a site, before it starts, a database for several processes: ``"sqlite"`` or ``"postgresql"``."""
    if kind == "sqlite":
        database = SqliteFile(site)
        site.settings |= {"DATABASES": database.settings()}
        yield database
        return
    if find_program("initdb") is None or importlib.util.find_spec("psycopg") is None:
        pytest.skip("PostgreSQL or psycopg is not installed")
    with Postgres() as server:
        yield PostgresServer(server, site)


def add_users(database: Database, count: int) -> list[User]:
    """Put new users into a database."""
    users = [User(0, f"kept-{secrets.token_hex(6)}") for _ in range(count)]
    query = (
        "INSERT INTO auth_user (password, is_superuser, username, first_name, last_name, email, is_staff, is_active,"
        " date_joined) VALUES (?, false, ?, '', '', '', false, true, CURRENT_TIMESTAMP) RETURNING id"
    )
    return [user._replace(pk=database.execute(query, user.password, user.username)[0][0]) for user in users]


class Row(NamedTuple):
    """What a row of the database says."""

    id: str
    user: int
    title: str
    seen: bool
    read: bool
    archived: bool
    published: bool
    pending: bool

    @property
    def state(self) -> tuple[bool, bool, bool]:
        return self.seen, self.read, self.archived


class KeptTab(Browser):
    """
    A tab with a bell and a list, which does what a page has to do.

    It shows a notice when it is told of it, and fetches the list when it opens, when it is told of a gap, and when a
    notice is restored that it does not show: one that was restored while the two parts of the list were fetched is in
    neither. It takes numbers as they come, and never counts.
    """

    def __init__(self, server: WebServer, user: User) -> None:
        super().__init__(server, user, [])
        self.shown: dict[str, list[bool]] = {}
        """The notices that it shows, by id: whether seen, read and archived."""
        self.came: Counter[str] = Counter()
        """How often it was told of each notice since the last gap."""
        self.unread: int | None = None
        self.changes: list[tuple[float, dict[str, Any]]] = []
        self.fetched = 0
        """How often it fetched the list because it opened, or was told of a gap."""
        self._has_list = False

    async def _take(self, connection: Any, frame: dict[str, Any]) -> None:
        match frame:
            case {"action": "notice", "inbox": {"id": id_, "unread": unread}}:
                self.positions[self.own] = frame["_meta"]["id"]
                self.came[id_] += 1
                self.shown.setdefault(id_, [False, False, False])
                self.unread = unread
            case {"action": "inbox", "payload": payload}:
                self.positions[self.own] = frame["_meta"]["id"]
                self.changes.append((time.monotonic(), payload))
                self._change(payload)
                if payload["change"] == "restored" and not set(payload["ids"] or [None]) <= self.shown.keys():
                    await self._fetch()
            case {"action": "auth_success" | "subscribed", "recovered": recovered}:
                await super()._take(connection, frame)
                self._has_list = self._has_list and recovered is True
                if recovered is False:
                    self.came.clear()  # what was told before the gap may be told again
                if not self._has_list:
                    await self._fetch()
                    self.fetched += 1
            case _:
                await super()._take(connection, frame)

    def _change(self, payload: dict[str, Any]) -> None:
        self.unread = payload["unread"]
        if payload["change"] is None:
            return
        field, on = {
            "seen": (0, True),
            "read": (1, True),
            "unread": (1, False),
            "archived": (2, True),
            "restored": (2, False),
        }[payload["change"]]
        ids, until = payload["ids"], payload["until"]
        for id_ in self.shown if ids is None else self.shown.keys() & set(ids):
            if ids is not None or int(id_) <= int(until):
                self.shown[id_][field] = on
                if payload["change"] == "read":
                    self.shown[id_][0] = True

    async def _fetch(self) -> None:
        """Read the whole list, of which a page would show the beginning; the first answer has the number."""
        shown: dict[str, list[bool]] = {}
        unread = None
        for archived in ("", "&archived=1"):
            before: str | None = ""
            while before is not None:
                query = f"?limit=100{archived}" + (f"&before={before}" if before else "")
                async with post(
                    self.server, b"", method="GET", path=LIST + query, headers=session(self.server, self.user)
                ) as answer:
                    if answer.status != 200:
                        raise ConnectionError(answer.status)
                    found = await answer.json()
                unread = found["unread"] if unread is None else unread
                shown |= {each["id"]: [each["seen"], each["read"], each["archived"]] for each in found["notices"]}
                before = found["next"]
        self.shown, self.unread, self._has_list = shown, unread, True

    async def mark(self, change: str, **which: Any) -> int:
        """Post what a click on the page posts, and return the number that is answered."""
        secret = secrets.token_hex(16)
        headers = session(self.server, self.user)
        headers |= {
            "Cookie": f"{headers['Cookie']}; csrftoken={secret}",
            "X-CSRFToken": secret,
            "Accept": "application/json",
            "Content-Type": "application/x-www-form-urlencoded",
        }
        body = urlencode({"change": change, **which}, doseq=True).encode()
        async with post(self.server, body, path=MARK, headers=headers) as answer:
            text = await answer.body()
            assert answer.status == 200, (answer.status, text)
            return json.loads(text)["unread"]


class KeptRun:
    """Users with tabs, on a site with web servers and listeners."""

    def __init__(
        self,
        site: Site,
        database: Database,
        servers: list[WebServer],
        listeners: list[Process],
        *,
        users: int = 20,
        tabs: int = 50,
    ) -> None:
        self.site = site
        self.database = database
        self.servers = servers
        self.listeners = listeners
        self.users = add_users(database, users)
        self.browsers = [KeptTab(servers[n % len(servers)], self.users[n % users]) for n in range(tabs)]
        self.keepers: list[Process] = []
        self._before = 0
        self._before = self.count_rows()
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        tasks = await self._stack.enter_async_context(asyncio.TaskGroup())
        staying = [tasks.create_task(browser.stay()) for browser in self.browsers]
        self._stack.callback(lambda: [task.cancel() for task in staying])
        await self.all_ready()
        return self

    async def __aexit__(self, *exc: Any) -> None:
        await self._stack.__aexit__(*exc)

    async def all_ready(self) -> None:
        await await_for(lambda: all(tab.ready for tab in self.browsers), 30, "all tabs are connected")

    @property
    def holder(self) -> Process | None:
        return next((listener for listener in self.listeners if is_holder(listener)), None)

    async def find_holder(self) -> Process:
        return await await_for(lambda: self.holder, 20, "a listener holds the lease")

    def keep(self, **work: Any) -> Process:
        """Start a process that keeps notices for all users, unless it says for whom; see ``tests/keeper.py``."""
        work = {"users": [user.pk for user in self.users], "name": f"keeper {len(self.keepers)}", **work}
        keeper = self.site.start(sys.executable, "-m", "tests.keeper", json.dumps(work), name=work["name"])
        self.keepers.append(keeper)
        return keeper

    async def kept(self, seconds: float = 60) -> None:
        """Wait until all processes that keep notices have done it."""
        for keeper in self.keepers:
            await asyncio.to_thread(keeper.wait_for_line, "^done$", seconds)

    async def start(self, *order: str) -> None:
        """Start again what was stopped, one right after the other: ``"redis"``, ``"server"``, ``"listener"``."""
        for what in order:
            if what == "redis":
                await asyncio.to_thread(self.site.redis.start)
            elif what == "server":
                [server] = self.servers
                self.servers[:] = [await asyncio.to_thread(self.site.start_server, server.kind, server.port)]
            else:
                self.listeners[:] = [await asyncio.to_thread(self.site.start_listener, ready=None)]

    async def committed(self, rows: int) -> None:
        await await_for(lambda: self.count_rows() >= rows, 60, f"{rows} notices are committed")

    # The account.

    def rows(self) -> list[Row]:
        users = {user.pk for user in self.users}
        query = (
            "SELECT id, user_id, title, seen_at IS NOT NULL, read_at IS NOT NULL, archived_at IS NOT NULL,"
            " published_at IS NOT NULL, pending_since IS NOT NULL FROM notifications_inbox_keptnotice ORDER BY id"
        )
        found = self.database.execute(query)
        return [Row(str(row[0]), row[1], row[2], *map(bool, row[3:])) for row in found if row[1] in users]

    async def published(self) -> Counter[str]:
        """Count in the histories how often each notice was published; the histories are long enough."""
        found: Counter[str] = Counter()
        for user in self.users:
            topic = Topic.for_user(user.pk)
            first = (await get_store().read(topic, None)).first
            after = first and Position(first.epoch, first.n - 1)
            while first:
                page = await get_store().read(topic, after)
                for frame in page.frames:
                    message = json.loads(frame.text)
                    if message["action"] == "notice":
                        found[message["inbox"]["id"]] += 1
                    after = frame.position
                if not page.frames or page.frames[-1].position == page.last:
                    break
        return found

    def count_rows(self) -> int:
        """Count the rows, also of users who are not of this run: cheaper than ``rows``."""
        return self.database.execute("SELECT count(*) FROM notifications_inbox_keptnotice")[0][0] - self._before

    def wrong(self) -> list[str]:
        """Say what tabs show that the database does not, and the other way round."""
        rows = self.rows()
        found = [f"{sum(row.pending for row in rows)} rows are pending"] if any(row.pending for row in rows) else []
        of_users: dict[int, dict[str, Row]] = {user.pk: {} for user in self.users}
        for row in rows:
            of_users[row.user][row.id] = row
        numbers = {
            user: min(MAX_UNREAD, sum(not row.read and not row.archived for row in of_user.values()))
            for user, of_user in of_users.items()
        }
        for number, tab in enumerate(self.browsers):
            of_user, unread = of_users[tab.user.pk], numbers[tab.user.pk]
            both = of_user.keys() & tab.shown.keys()
            differ = [id_ for id_ in both if tuple(tab.shown[id_]) != of_user[id_].state]
            faults = {
                "missing": sorted(of_user.keys() - both, key=int),
                "strange": sorted(tab.shown.keys() - both, key=int),
                "number": [] if tab.unread == unread else [f"{tab.unread}, not {unread}"],
                "state": [f"{id_}: {tab.shown[id_]}, not {list(of_user[id_].state)}" for id_ in differ],
            }
            if any(faults.values()):
                said = ", ".join(f"{len(each)} {name} {each[:5]}" for name, each in faults.items() if each)
                found.append(f"tab {number} of {tab.own}, told of {len(tab.told)} gaps: {said}")
        return found

    def twice(self) -> list[str]:
        came = [(tab.own, *each) for tab in self.browsers for each in tab.came.items()]
        return [f"{user}: {id_} {times} times" for user, id_, times in came if times > 1]

    async def expect_all_shown(self, patience: float = PATIENCE) -> None:
        """Wait until every tab shows what the database says; and no tab may have been told of a notice twice."""
        for _ in range(int(scaled(patience) / LOOK)):
            if not (wrong := self.wrong()):
                break
            await asyncio.sleep(LOOK)
        said = [f"--- {each.name} {each.pid}\n" + "\n".join(each.lines[-15:]) for each in self._processes()]
        assert not wrong, "\n".join([*wrong, *said])
        assert not self.twice(), "\n".join([*self.twice(), *said])
        assert not [row for row in self.rows() if row.title == ROLLED_BACK]
        assert not [tab.wrong for tab in self.browsers if tab.wrong]

    async def expect_each_published_once(self) -> None:
        """Compare the histories with the rows."""
        rows, published = self.rows(), await self.published()
        assert all(row.published for row in rows), f"never published: {[row for row in rows if not row.published]}"
        wrong = [f"{row.id}: {published[row.id]} times" for row in rows if published[row.id] != 1]
        assert not wrong, f"in the histories {sum(published.values())} for {len(rows)} rows: {wrong[:10]}"

    def _processes(self) -> list[Process]:
        return [*self.listeners, *self.servers, *self.keepers]
