"""
Which web server: what a delivery, a connection and a browser that never reads cost on each of them.

    python -m benchmarks.servers [--only NAME…] [--rounds N]
    python -m benchmarks.servers --never-reads [--only NAME…]

Granian, Hypercorn and wsproto take part where they are installed; none of them is needed otherwise. "deflate" means
that the client offers permessage-deflate, as all browsers do, and the server takes the offer if it can. With
``--never-reads`` textbook Channels is asked, too: it shows what a server does by itself, where we count what we sent.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import Final, NamedTuple

import hiredis

from benchmarks import contestants, rounds, scenarios
from benchmarks.contestants import DAPHNE, OWN_CLASS, UPLOAD, UVICORN, Contestant
from benchmarks.load import Load
from benchmarks.publishing import Raw
from benchmarks.scenarios import PATIENCE, Figures
from benchmarks.stage import FREE_PORT, Stage

PLAN: Final = scenarios.Plan((scenarios.Step(500, {contestants.RAW: scenarios.BURSTS}),), seconds=0.8)
UNREAD: Final = 64 * 1024 * 1024
"""Bytes that are published to a browser that never reads."""
LARGE: Final = 60_000
"""Bytes of one such message."""


class Server(NamedTuple):
    """A server and how it is started."""

    title: str
    command: tuple[str, ...]
    needs: tuple[str, ...] = ()
    deflate: bool = False
    """Whether the client offers it."""


WSPROTO: Final = (*UVICORN, "--ws", "wsproto")
GRANIAN: Final = ("-m", "granian", "--interface", "asginl", "--ws", "--port", FREE_PORT)
HYPERCORN: Final = ("-m", "hypercorn", "--workers", "0", "--bind", "127.0.0.1:0")

SERVERS: Final = {
    "uvicorn": Server("uvicorn, websockets-sansio", (*UVICORN, "--ws", "websockets-sansio")),
    "uvicorn-ours": Server("uvicorn with this app's class", OWN_CLASS),
    "uvicorn-websockets": Server("uvicorn, websockets", (*UVICORN, "--ws", "websockets")),
    "uvicorn-wsproto": Server("uvicorn, wsproto", WSPROTO, needs=("wsproto",)),
    "daphne": Server("Daphne", DAPHNE),
    "granian": Server("Granian", GRANIAN, needs=("granian",)),
    "hypercorn": Server("Hypercorn", HYPERCORN, needs=("hypercorn",)),
    "hypercorn-uvloop": Server(
        "Hypercorn, uvloop", (*HYPERCORN, "--worker-class", "uvloop"), needs=("hypercorn", "uvloop")
    ),
    "uvicorn-deflate": Server(
        "uvicorn, websockets-sansio, deflate", (*UVICORN, "--ws", "websockets-sansio"), deflate=True
    ),
    "uvicorn-ours-deflate": Server("uvicorn with this app's class, deflate", OWN_CLASS, deflate=True),
    "uvicorn-websockets-deflate": Server(
        "uvicorn, websockets, deflate", (*UVICORN, "--ws", "websockets"), deflate=True
    ),
    "uvicorn-wsproto-deflate": Server("uvicorn, wsproto, deflate", WSPROTO, needs=("wsproto",), deflate=True),
    "uvicorn-deflate-refused": Server(
        "uvicorn, deflate offered, refused", (*UVICORN, "--ws-per-message-deflate", "false"), deflate=True
    ),
}
REFERENCE: Final = "uvicorn"


def contestant(name: str, base: Contestant) -> Contestant:
    """Return ``base`` on another server."""
    server = SERVERS[name]
    program, application = base.server[0], base.server[-1]
    login = base.login._replace(deflate=server.deflate)
    command = (program, *server.command, application)
    return replace(base, name=name, title=server.title, server=command, needs=server.needs, login=login)


def never_reads(contestant: Contestant, unread: int = UNREAD) -> Iterator[tuple[str, Figures]]:
    """Publish to a browser that takes nothing, and to another one that shows when all has been sent."""
    messages = unread // LARGE
    text = b'{"action":"upload_progress","seq":%d,"text":"' + b"x" * LARGE + b'"}'
    with (
        Stage(contestant) as stage,
        closing(Load(stage.ports, contestant.login)) as deaf,
        closing(Load(stage.ports, contestant.login)) as witness,
        closing(Raw(stage.redis.url)) as publisher,
    ):
        deaf.connect(1)
        witness.connect(2)  # user 1 is the deaf one's
        before = stage.server_memory()
        witness.begin()
        for seq in range(1, messages + 1):
            publisher.write([hiredis.pack_command(("PUBLISH", f"upload:{UPLOAD}", text % seq))])
            witness.receive(2 * (seq - 20), PATIENCE)
        if not witness.receive(2 * messages, PATIENCE):
            raise RuntimeError(f"{witness.tally.received} of {2 * messages} large messages came")
        time.sleep(0.5)
        more = stage.server_memory() - before
    mebi = 1024 * 1024
    yield "never reads", {"MiB more": more / mebi, "MiB published": messages * LARGE / mebi}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(SERVERS), default=list(SERVERS), metavar="NAME")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--never-reads", action="store_true")
    arguments = parser.parse_args()
    ours, textbook = contestants.named("ours"), contestants.named("textbook")
    chosen = contestants.that_can_run(contestant(name, ours) for name in arguments.only)
    if arguments.never_reads:
        entries = [rounds.Entry(each.name, each.title, partial(never_reads, each)) for each in chosen]
        for each in chosen:
            peer, title = contestant(each.name, textbook), f"textbook Channels, {each.title}"
            entries.append(rounds.Entry(f"textbook-{each.name}", title, partial(never_reads, peer)))
    else:
        entries = [
            rounds.Entry(
                each.name,
                each.title,
                partial(scenarios.run, each, PLAN),
                scenarios.seconds(each, PLAN),
            )
            for each in chosen
        ]
    rounds.run(
        "never-reads" if arguments.never_reads else "servers",
        entries,
        arguments.rounds,
        PLAN._asdict(),
        reference=REFERENCE,
        word="uvicorn",
    )


if __name__ == "__main__":
    main()
