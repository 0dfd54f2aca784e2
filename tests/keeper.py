"""
A process of a site that keeps notices and marks them, in several threads at once, as its work is described in JSON.

    python -m tests.keeper '{"users": [1, 2], "seed": 7, "threads": 2, "notices": 100}'

Everything it does is decided by its seed. Whoever started it reads in the database what it did.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import django

CHANGES = ("seen", "read", "read", "read", "unread", "archived", "restored")
ROLLED_BACK = "never committed"
"""The title of notices that nobody may ever be told of."""


class Work(NamedTuple):
    """
    What one process does.

    Attributes:
        users: Primary keys of those whom it tells.
        seed: Decides everything.
        name: Tells its notices from those of others.
        threads: How many do it at once.
        notices: How many to keep with ``notify``, all threads together.
        in_turn: Tell each user in turn, in each thread, beginning at this time of the clock: so all threads of all
            processes that do it tell the same user at about the same time.
        many: How many calls of ``notify_many`` for all users, beside those.
        seconds: Go on for so long instead, with marks, keys that are used twice, and transactions that are rolled back.
        pause: Seconds between two things that a thread does, on average.
        dies: ``"before"`` or ``"after"`` its first notice is published, just as if by ``kill -9``; otherwise ``""``.

    """

    users: list[int]
    seed: int = 1
    name: str = "keeper"
    threads: int = 1
    notices: int = 0
    in_turn: float = 0
    many: int = 0
    seconds: float = 0
    pause: float = 0
    dies: str = ""


def main(work: Work) -> None:
    if work.dies:
        die(work)
    with ThreadPoolExecutor(work.threads) as pool:
        say("begins")
        doing = [pool.submit(keep_busy if work.seconds else keep, work, number) for number in range(work.threads)]
    for each in doing:
        each.result()
    say("done")


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def insist(attempt: Callable[[], Any]) -> Any:
    """Call again for as long as the database is locked or away: nothing was committed."""
    from django.db import Error, connection

    while True:
        try:
            return attempt()
        except Error as error:
            say(f"again: {error}")
            connection.close()
            time.sleep(0.1)


def keep(work: Work, number: int) -> None:
    from notifications.inbox import notify, notify_many
    from notifications.messages import Notice

    chance = random.Random(f"{work.seed} {number}")
    share = range(number, work.notices, work.threads)
    of_many = set(chance.sample(list(share), min(len(share), len(range(number, work.many, work.threads)))))
    time.sleep(max(0, work.in_turn - time.time()))
    for turn, n in enumerate(share):
        notice = Notice(title=f"{work.name} {n}")
        user = work.users[turn % len(work.users)] if work.in_turn else chance.choice(work.users)
        insist(lambda user=user, notice=notice: notify(user, notice))
        if n in of_many:
            everyone = Notice(title=f"{work.name} {n}, everyone")
            # Half of it may have been committed when the database fails; the key leaves those out.
            insist(lambda notice=everyone, n=n: notify_many(work.users, notice, key=f"{work.name} {n}"))
        time.sleep(chance.uniform(0, 2 * work.pause))


def keep_busy(work: Work, number: int) -> None:
    from django.db import transaction

    from notifications.inbox import mark, notify, notify_many
    from notifications.inbox.models import KeptNotice
    from notifications.messages import Notice

    chance = random.Random(f"{work.seed} {number}")
    ends, n = time.monotonic() + work.seconds, 0
    while time.monotonic() < ends:
        n += 1
        user = chance.choice(work.users)
        notice = Notice(title=f"{work.name} {number} {n}")
        what = chance.random()

        def act(user: int = user, notice: Notice = notice, what: float = what, n: int = n) -> None:
            if what < 0.4:
                notify(user, notice)
            elif what < 0.5:
                for _ in range(2):
                    notify(user, notice, key=f"{work.name} {number} {n}")
            elif what < 0.55:
                notify_many(work.users[: 1 + n % len(work.users)], notice, key=f"{work.name} {number} {n}")
            elif what < 0.6:
                with transaction.atomic():
                    notify(user, Notice(title=ROLLED_BACK))
                    mark(user, "read", until=2**40)
                    transaction.set_rollback(True)
            else:
                newest = KeptNotice.objects.filter(user=user).order_by("-id")
                ids = list(newest.values_list("id", flat=True)[:20])
                change = chance.choice(CHANGES)
                if not ids:
                    return
                if chance.random() < 0.2:
                    mark(user, change, until=chance.choice(ids))
                else:
                    mark(user, change, ids=chance.sample(ids, min(len(ids), 3)))

        insist(act)
        time.sleep(chance.uniform(0, 2 * work.pause))


def die(work: Work) -> None:
    from django.db import transaction

    from notifications.inbox import notify
    from notifications.messages import Notice
    from notifications.signals import message_published

    def end(**_: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with transaction.atomic():
        if work.dies == "before":
            transaction.on_commit(end)  # the first of those that are called after the commit
        else:
            message_published.connect(end, weak=False)
        notify(work.users[0], Notice(title=work.name))


if __name__ == "__main__":
    django.setup()
    main(Work(**json.loads(sys.argv[1])))
