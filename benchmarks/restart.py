"""
What does a database bear when all tabs come back at once?

    python -m benchmarks.restart [--sockets N] [--only NAME…] [--rounds N]

A server with 10,000 sockets, each of another account with a session of its own, is restarted, and all come back as fast
as it takes them. Each subscribes to a topic about which the site asks the database. A tab that is refused comes back a
second later. PostgreSQL counts its statements, those that open a connection among them, and its connections.
"""

from __future__ import annotations

import argparse
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

from benchmarks import accounts, contestants, rounds, websocket
from benchmarks.contestants import Contestant
from benchmarks.load import Client, Load
from benchmarks.machine import allow_sockets
from benchmarks.stage import Stage

AT_ONCE: Final = 1000
"""Tabs that are on their way in at the same time; uvicorn lets 2048 wait to be accepted."""
AGAIN: Final = 1.0
"""Seconds after which a tab that was refused comes again."""
SAMPLE: Final = 0.05
"""Seconds between two counts of the database's connections."""
NOT_COUNTING: Final = "query NOT LIKE '%pg_stat%'"
CLIENTS: Final = "backend_type = 'client backend' AND application_name <> 'counting'"

OURS: Final = next(each for each in contestants.ALL if each.name == contestants.REFERENCE)
ALL: Final = [
    replace(
        OURS,
        title="one lookup for many",
        env=OURS.env | {"BENCH_AUTHORIZE": "AUTHORIZE_MANY=ask_database_for_many"},
    ),
    replace(
        OURS,
        name="sessions",
        title="AUTHORIZE for each topic",
        env=OURS.env | {"BENCH_AUTHORIZE": "AUTHORIZE=ask_database"},
    ),
    replace(
        OURS,
        name="channels",
        title="Channels' AuthMiddlewareStack, AUTHORIZE for each topic",
        env=OURS.env | {"BENCH_AUTHORIZE": "AUTHORIZE=ask_database", "BENCH_STACK": "channels"},
    ),
]


class Plan(NamedTuple):
    """How much of everything."""

    sockets: int = 10_000
    patience: float = 240


class Tabs(Load):
    """Browser tabs, which come again when they are refused."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.refused = 0
        self._users: dict[Client, int] = {}
        self._again: deque[tuple[float, int]] = deque()

    def come(self, count: int, patience: float) -> float:
        """Come back until all have joined, and return how many seconds it took."""
        began, waiting = time.monotonic(), deque(range(1, count + 1))
        while self._joined < count:
            now = time.monotonic()
            while self._again and self._again[0][0] <= now:
                waiting.append(self._again.popleft()[1])
            while waiting and len(self._by_fd) - self._joined < AT_ONCE:
                self._open(user := waiting.popleft())
                self._users[self.clients[-1]] = user
            self.turn(0.05)
            if now - began > patience:
                raise RuntimeError(f"{self._joined} of {count} sockets joined, {self.refused} were refused")
        return time.monotonic() - began

    def _upgrade(self, client: Client, data: bytes) -> None:
        if (client.buffer + data).startswith(b"HTTP/1.1 101"[: len(client.buffer + data)]):
            super()._upgrade(client, data)
        else:
            self._lost_client(client, client.socket.fileno())

    def _answer(self, client: Client, opcode: int, payload: bytes) -> None:
        if opcode != websocket.CLOSE or self._closing:
            super()._answer(client, opcode, payload)

    def _lost_client(self, client: Client, fd: int) -> None:
        super()._lost_client(client, fd)
        if not self._closing:
            del self._by_fd[fd]
            self.refused += 1
            self._joined -= client.step == len(self._login.says)
            self._again.append((time.monotonic() + AGAIN, self._users.pop(client)))


class Database:
    """What the database is asked, and by how many connections, while this is entered."""

    def __init__(self) -> None:
        import psycopg

        env = accounts.environment()
        names = {"host": "PGHOST", "port": "PGPORT", "user": "PGUSER", "dbname": "PGDATABASE"}
        self._connection = psycopg.connect(
            **{name: env[variable] for name, variable in names.items()}, autocommit=True, application_name="counting"
        )
        self._done = threading.Event()
        self._sampler = threading.Thread(target=self._sample, daemon=True)
        self.queries = self.peak = self.opened = 0
        """Statements, the most connections at the same time, and how many were opened."""

    def __enter__(self) -> Self:
        self._ask("SELECT pg_stat_statements_reset()")
        self._before = self._sessions()
        self._sampler.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._done.set()
        self._sampler.join()
        self.queries = self._ask(f"SELECT coalesce(sum(calls), 0) FROM pg_stat_statements WHERE {NOT_COUNTING}")
        self.opened = self._sessions() - self._before
        self._connection.close()

    def _sample(self) -> None:
        while not self._done.wait(SAMPLE):
            self.peak = max(self.peak, self._ask(f"SELECT count(*) FROM pg_stat_activity WHERE {CLIENTS}"))

    def _sessions(self) -> int:
        return self._ask("SELECT sessions FROM pg_stat_database WHERE datname = current_database()")

    def _ask(self, sql: str) -> int:
        return int(self._connection.execute(sql).fetchone()[0] or 0)


def run(contestant: Contestant, plan: Plan) -> Iterator[tuple[str, dict[str, Any]]]:
    """Run a round, and give its figures."""
    accounts.environment()
    with Stage(contestant) as stage, closing(Tabs(stage.ports, contestant.login)) as tabs:
        tabs.come(plan.sockets, plan.patience)
        stage.servers[0].send_signal(signal.SIGTERM)
        tabs.wait_until_closed(plan.patience)
        stage.servers[0].wait(plan.patience)
        with Database() as database:
            stage.start_servers()
            before = stage.cpu()
            with closing(Tabs(stage.ports, contestant.login)) as back:
                seconds = back.come(plan.sockets, plan.patience)
            after = stage.cpu()
        yield (
            "come back",
            {
                "back s": seconds,
                "queries": database.queries,
                "connections, most": database.peak,
                "connections opened": database.opened,
                "refused": back.refused,
                "server s": after["server"] - before["server"],
            },
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[each.name for each in ALL], metavar="NAME")
    parser.add_argument("--sockets", type=int, default=Plan().sockets)
    parser.add_argument("--rounds", type=int, default=1)
    arguments = parser.parse_args()
    if not accounts.postgresql():
        parser.exit(1, "PostgreSQL and psycopg are needed to count what is asked\n")
    plan = Plan(allow_sockets(arguments.sockets))
    if plan.sockets < arguments.sockets:
        print(f"only {plan.sockets} sockets: a process may open no more files (ulimit -n)")
    entries = [
        rounds.Entry(each.name, each.title, partial(run, each, plan), seconds=plan.sockets / 50)
        for each in ALL
        if each.name in arguments.only
    ]
    rounds.run("restart", entries, arguments.rounds, plan._asdict(), reference=contestants.REFERENCE)


if __name__ == "__main__":
    main()
