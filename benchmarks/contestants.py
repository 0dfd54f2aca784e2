"""Who takes part: how each is started, how a client joins, and how its workers publish."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from benchmarks.load import Login
from benchmarks.machine import NODE

NODE_MODULES: Final = NODE / "node_modules"
UPLOAD: Final = "7f3c0000-0000-4000-8000-000000000001"
"""The upload that every client watches."""

RAW: Final = "raw"
PUBLISHED: Final = "published"
OWN_LAYER: Final = "notifications.layers.RedisPubSubLayer"
PUBSUB: Final = "channels_redis.pubsub.RedisPubSubChannelLayer"
CORE: Final = "channels_redis.core.RedisChannelLayer"

DAPHNE: Final = ("-m", "daphne", "-v", "1", "-b", "127.0.0.1", "-p", "0")
UVICORN: Final = ("-m", "uvicorn", "--no-access-log", "--port", "0", "--lifespan", "off", "--log-level", "info")
OWN_CLASS: Final = (*UVICORN, "--ws", "notifications.uvicorn:WebSocketProtocol")


def _python(*arguments: str) -> tuple[str, ...]:
    return (sys.executable, *arguments)


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """One server and what belongs to it."""

    name: str
    title: str
    server: tuple[str, ...]
    login: Login
    listener: tuple[str, ...] | None = None
    listening: str = "listening"
    """What a listener says when it is ready."""
    publisher: tuple[str, ...] | None = None
    returning: Callable[[str], Login] | None = None
    """How clients come back that had everything up to a position, and want what they missed."""
    raw: bool = True
    """Whether a plain ``PUBLISH`` on a topic's channel reaches its clients."""
    env: Mapping[str, str] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    """Packages beside ours."""
    period: float = 20
    """Seconds in which it does once all that it does by itself for idle sockets: at least a ping to each."""

    @property
    def roads(self) -> list[str]:
        """List how messages get in."""
        return [PUBLISHED] * (self.publisher is not None) + [RAW] * self.raw


def _ours_login(url: str = "", frame: str = "") -> Login:
    subscribe = f'{{"action":"subscribe_upload","upload_id":"{UPLOAD}"{frame}}}'
    return Login(
        path=f"/ws/notifications/{url}",
        says=((b'"auth_success"', subscribe.encode()), (b'"subscribed"', None)),
    )


def _ours_returning(position: str) -> Login:
    return _ours_login(f"?since={position}", f',"since":"{position}"')


OVER_HTTP = Login(
    path="/stream/",
    says=((b'"auth_success"', None), (b'"subscribed"', None)),
    body=f'{{"mode":"stream","topics":[{{"topic":"upload:{UPLOAD}"}}]}}',
)
PLAIN = Login(path=f"/ws/notifications/?user={{user}}&upload={UPLOAD}", says=((b"joined", None),))
SOCKET_IO = Login(
    path=f"/socket.io/?EIO=4&transport=websocket&user={{user}}&upload={UPLOAD}",
    says=((b"0{", b"40"), (b"joined", None)),
)


def _ours(name: str, title: str, server: tuple[str, ...], layer: str) -> Contestant:
    return Contestant(
        name=name,
        title=title,
        server=_python(*server, "benchmarks.peers.ours:application"),
        login=_ours_login(),
        returning=_ours_returning,
        listener=_python("-m", "django", "run_listener"),
        listening="holding the lease",
        publisher=_python("-m", "benchmarks.peers.publisher", "ours"),
        env={"BENCH_LAYER": layer},
        period=60,  # two heartbeats, and accounts and sessions are looked at
    )


def _textbook(name: str, title: str, server: tuple[str, ...], layer: str) -> Contestant:
    return Contestant(
        name=name,
        title=title,
        server=_python(*server, "benchmarks.peers.textbook:application"),
        login=PLAIN,
        listener=_python("-m", "benchmarks.peers.textbook"),
        publisher=_python("-m", "benchmarks.peers.publisher", "textbook"),
        env={"BENCH_LAYER": layer},
    )


REFERENCE: Final = "ours"
"""The contestant that all ratios refer to."""
QUICK: Final = ("ours", "ours-uvicorn", "ours-stream", "textbook", "node")
"""Who takes part where there is no time for all."""
WITH_MANY_SOCKETS: Final = ("ours", "textbook", "node")
"""Who takes part where each round takes a minute."""

ALL: Final = [
    _ours("ours", "notifications, uvicorn with its class", OWN_CLASS, OWN_LAYER),
    _ours("ours-uvicorn", "notifications, uvicorn's own class", UVICORN, OWN_LAYER),
    _ours("ours-pubsub", "notifications on channels_redis.pubsub, uvicorn with its class", OWN_CLASS, PUBSUB),
    _ours("ours-daphne", "notifications, Daphne", DAPHNE, OWN_LAYER),
    replace(
        _ours("ours-stream", "notifications over HTTP, uvicorn", OWN_CLASS, OWN_LAYER),
        login=OVER_HTTP,
        returning=None,
    ),
    _textbook("textbook-daphne", "textbook Channels, pubsub, Daphne", DAPHNE, PUBSUB),
    _textbook("textbook", "textbook Channels, pubsub, uvicorn", UVICORN, PUBSUB),
    _textbook("textbook-core-daphne", "textbook Channels, core, Daphne", DAPHNE, CORE),
    _textbook("textbook-core", "textbook Channels, core, uvicorn", UVICORN, CORE),
    Contestant(
        name="socketio",
        title="python-socketio, Redis manager, uvicorn",
        server=_python(*UVICORN, "benchmarks.peers.socketio_server:application"),
        login=SOCKET_IO,
        publisher=_python("-m", "benchmarks.peers.publisher", "socketio"),
        needs=("socketio",),
        raw=False,
        period=25,
    ),
    Contestant(
        name="node",
        title="Socket.IO on Node, Redis adapter",
        server=("node", "--expose-gc", str(NODE / "server.js")),
        login=SOCKET_IO,
        publisher=("node", str(NODE / "publisher.js")),
        raw=False,
        period=25,
    ),
    Contestant(
        name="picows",
        title="practical limit: bare picows",
        server=_python("-m", "benchmarks.peers.picows_server"),
        login=PLAIN,
        needs=("picows", "uvloop"),
    ),
]


def named(name: str) -> Contestant:
    """Return the contestant of this name."""
    return next(each for each in ALL if each.name == name)


def missing(contestant: Contestant) -> str:
    """Name what a contestant needs and this machine does not have; empty if it can run."""
    lacking = [package for package in contestant.needs if importlib.util.find_spec(package) is None]
    if contestant.server[0] == "node":
        there = {"node": shutil.which("node"), "node_modules (npm ci)": NODE_MODULES.exists()}
        lacking += [name for name, found in there.items() if not found]
    return ", ".join(lacking)


def that_can_run(chosen: Iterable[Contestant]) -> list[Contestant]:
    """Leave out whom this machine cannot run, and say so."""
    able = []
    for contestant in chosen:
        if lacking := missing(contestant):
            print(f"{contestant.title} is left out: {lacking} is not here")
        else:
            able.append(contestant)
    return able
