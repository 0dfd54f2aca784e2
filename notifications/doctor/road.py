"""The path of a message: published, stamped, forwarded, delivered; and of one that a foreign program would publish."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any, Final

import msgspec
from channels.layers import get_channel_layer
from channels.routing import get_default_application

from .. import messages
from ..access import control
from ..aio import Timeout
from ..bridge import status
from ..bridge.listener import OWN_FRAME
from ..broker.clients import FAILURES, SOCKET_TIMEOUT, async_client
from ..broker.wire import Subscription, confirmed, site_pool
from ..conf import settings
from ..exceptions import MessageError, PublishError, TopicError
from ..history.stamped import ACKNOWLEDGED, STAMPED
from ..layers import RedisPubSubLayer, direct
from ..logs import describe
from ..mount import PATH, socket_path
from ..publisher import apublish
from ..topics import Topic, internal_name, patterns
from .findings import ACCOUNT, Finding, Level, explain, missing_right
from .inlet import examine_inlet
from .listeners import examine_listeners
from .server import describe_answer
from .socket import ProbeSocket, ProbeUser, end, host_of, writes_sessions
from .stream import ProbeStream, ask_application
from .surroundings import describe_layer, name_of, stream_paths

ARRIVAL: Final = 6.0
"""Seconds in which a message arrives even if a listener has just died: a takeover takes five."""
FROM_HISTORY: Final = 3.0
"""Seconds in which a socket that has just opened finds in the history what it was not sent."""
LAYER_TIMEOUT: Final = 5.0
EAVESDROP: Final = 1.0
"""Seconds for which the doctor listens to what others publish on the app's channels."""
ACTION: Final = "notifications_doctor"
PUBLISHED: Final = "published"
RAW: Final = "raw"


class Road:
    """
    The path of two messages, and where they were seen.

    Args:
        path: The path of the WebSocket; None for the one to which the site's pages connect.
        site: The address whose host the socket requests; None for one of ALLOWED_HOSTS.

    Raises:
        ImproperlyConfigured: The settings cannot be read.

    """

    def __init__(self, path: str | None, site: str | None = None) -> None:
        self.user = ProbeUser.new()
        self.topic = Topic.for_user(self.user)
        self._path = path or socket_path()
        self._host = host_of(site)
        self._tag = self.topic.id
        self._channel = self.topic.channel.encode()
        self._stamped_channel = internal_name(STAMPED, self.topic.shard).encode()
        self._own_channels = [self._stamped_channel, control.channel().encode()]
        self._direct = False
        self._echoed = self._stamped = False
        self._layered: set[str] = set()
        self._foreign: list[str] = []
        self._heard = 0
        self._news = asyncio.Event()
        self._socket: ProbeSocket | None = None
        self._stream: ProbeStream | None = None
        self._welcome = False
        self._found: list[Finding] = []

    def _say(self, check: str, level: Level, text: str, hint: str = "") -> None:
        self._found.append(Finding(check, level, text, hint))

    def _failed(self, check: str) -> bool:
        return any(finding.check == check and finding.level is Level.ERROR for finding in self._found)

    async def examine(self) -> list[Finding]:
        """Send the messages and report how far they get."""
        began = asyncio.get_running_loop().time()
        subscription = Subscription(self._received)
        listening = False
        reader: asyncio.Task[None] | None = None
        try:
            listening = await self._subscribe(subscription)
            reader = await self._join_layer()
            await self._open_socket()
            await self._open_stream()
            if listening and await self._publish():
                await self._follow(began)
        finally:
            if reader is not None:
                await end(reader)
            if self._socket is not None:
                await self._socket.close()
            if self._stream is not None:
                await self._stream.close()
            subscription.close()
            with suppress(*FAILURES):
                async with Timeout(SOCKET_TIMEOUT):
                    await (await async_client()).delete(self.topic.history_key)
        return self._found

    # Before the message.

    async def _subscribe(self, subscription: Subscription) -> bool:
        """Subscribe as listeners do, and as web processes do for control messages."""
        own = [name.decode() for name in self._own_channels]
        for names, are_patterns in ((own, False), (patterns(), True)):
            try:
                if not are_patterns:
                    await subscription.connect(site_pool())
                await confirmed(subscription.subscribe(*names, are_patterns=are_patterns))
            except FAILURES as error:
                text, hint = explain(error)
                if "NOPERM" in text:
                    hint = f"ACL SETUSER … {missing_right(text, names)}; {ACCOUNT}."
                self._say("rights", Level.ERROR, f"the account may not subscribe to {' '.join(names)}: {text}", hint)
                return False
        return True

    def _received(self, channel: bytes, data: bytes) -> None:
        if self._tag.encode() in channel or self._tag.encode() in data:
            self._echoed = self._echoed or (channel == self._channel and data.startswith(OWN_FRAME))
            self._stamped = self._stamped or (channel == self._stamped_channel and data.startswith(ACKNOWLEDGED))
            self._news.set()
        elif channel not in self._own_channels and not data.startswith(b'{"_meta":'):
            self._heard += 1
            try:
                Topic.from_channel(channel)
                messages.check_raw(data, settings.MAX_MESSAGE_SIZE)
            except (TopicError, MessageError) as error:
                name = channel.decode(errors="replace")[:60]
                self._foreign.append(f"{name}: {type(error).__name__}")

    async def _join_layer(self) -> asyncio.Task[None] | None:
        """Send a message through the layer and back, and then read what listeners forward."""
        try:
            layer = get_channel_layer()
        except Exception as error:  # noqa: BLE001  a layer may raise anything while it is created
            text = f"it cannot be created: {describe(error, named=True)}"
            self._say("layer", Level.ERROR, text, "See CHANNEL_LAYERS.")
            return None
        if layer is None:
            hint = "Set one, the same in all processes: without it a listener has to forward what this one publishes."
            self._say("layer", Level.ERROR, "CHANNEL_LAYERS has no 'default' layer", hint)
            return None
        self._found += describe_layer(layer)
        self._direct = direct(layer, self.topic.group) is not None
        began = asyncio.get_running_loop().time()
        try:
            async with Timeout(LAYER_TIMEOUT):
                channel = await layer.new_channel()
                await layer.group_add(self.topic.group, channel)
                await layer.group_send(self.topic.group, {"type": ACTION, "text": ""})
                while (await layer.receive(channel)).get("type") != ACTION:
                    pass
        except Exception as error:  # noqa: BLE001  a layer may raise anything
            text = describe(error)
            self._say(
                "layer",
                Level.ERROR,
                f"{name_of(layer)} does not carry a message to a group and back: {text}",
                "Is the Redis of CHANNEL_LAYERS there, and may its account use channels that begin with asgi?",
            )
            return None
        if not self._failed("layer"):
            took = 1000 * (asyncio.get_running_loop().time() - began)
            how = "needs no listener" if self._direct else f"needs a listener{_why(layer)}"
            text = f"{name_of(layer)}; to a group and back in {took:.0f} ms; what publish_* send {how}"
            self._say("layer", Level.OK, text)
        return asyncio.create_task(self._read_layer(layer, channel))

    async def _read_layer(self, layer: Any, channel: str) -> None:
        while True:
            text = (await layer.receive(channel)).get("text", "")
            self._layered |= {sort for sort in (PUBLISHED, RAW) if f'"{sort}"' in text}
            self._news.set()

    async def _open_socket(self) -> None:
        mount = "Mount notifications.routing.websocket_urlpatterns in asgi.py; --path says where, if it is elsewhere."
        if self._failed("layer"):
            return
        try:
            application = get_default_application()
        except Exception as error:  # noqa: BLE001  it is the site's module
            text = f"ASGI_APPLICATION cannot be imported: {describe(error, named=True)}"
            self._say("socket", Level.ERROR, text, "It is the dotted path of the application in asgi.py.")
            return
        try:
            socket = await self._knock(application, self._path)
        except Exception as error:  # noqa: BLE001  the site's application may raise anything
            text = f"the application raised at {self._path}: {describe(error, named=True)}"
            socket_below = await self._knock_where_a_stripping_proxy_does(application)
            if socket_below is None:
                self._say("socket", Level.ERROR, text, mount)
                return
            socket = socket_below
            hint = "Mount websocket_urlpatterns, which has both, or let the proxy strip the prefix."
            self._say("socket", Level.WARNING, f"{text}; it answers at /{PATH} only", hint)
        first = socket.frames[0] if socket.frames else {}
        if first.get("action") == "auth_success":
            self._welcome = True
            if not self.user.asked_for:
                self._say(
                    "socket",
                    Level.WARNING,
                    "no middleware in front of the WebSocket sets a user: pages with a session are asked for a token",
                    "Wrap the routes in notifications.middleware.SessionAuthMiddlewareStack in asgi.py, unless all "
                    "sockets send tokens.",
                )
            elif writes_sessions(application):
                self._say(
                    "socket",
                    Level.WARNING,
                    "Channels' AuthMiddlewareStack is in front of the WebSocket: after a change of SECRET_KEY it logs "
                    "users out of the whole site, and without a database each handshake is a stack trace in the log",
                    "Replace it by notifications.middleware.SessionAuthMiddlewareStack in asgi.py.",
                )
            return
        if first.get("action") == "auth_error":
            self._say(
                "socket",
                Level.WARNING,
                "it asks for a token: a middleware of the site replaced the doctor's user, so this hop is not proven",
                "Log in with a browser and check whether messages arrive.",
            )
        elif not socket.accepted:
            text = f"the application refuses a page of its own host {socket.host!r}"
            hint = "See ALLOWED_HOSTS, and the middleware in front of the WebSocket; the log may say more."
            self._say("socket", Level.ERROR, text, hint)
        else:
            end = f" and closed with {socket.close_code}" if socket.close_code is not None else ""
            text = f"what answers at {self._path} did not say auth_success{end}"
            self._say("socket", Level.ERROR, text, mount if not end else "The log says why.")

    async def _knock(self, application: Any, path: str) -> ProbeSocket:
        """Open a socket and wait for its first frame; raise whatever the application raises."""
        socket = self._socket = ProbeSocket(application, path, self.user, self._host)
        await socket.open()
        if socket.accepted and not socket.frames and socket.close_code is None:
            socket.say({"action": "ping"})  # this app's consumer refuses it before authentication
            await socket.wait(lambda: bool(socket.frames))
        return socket

    async def _knock_where_a_stripping_proxy_does(self, application: Any) -> ProbeSocket | None:
        """Try without the script prefix, if pages have one; return None if that fails, too."""
        if self._path != socket_path() or self._path == f"/{PATH}":
            return None
        if self._socket is not None:
            await self._socket.close()
        try:
            return await self._knock(application, f"/{PATH}")
        except Exception:  # noqa: BLE001  the site's application may raise anything; the first error is reported
            return None

    async def _open_stream(self) -> None:
        if (paths := stream_paths()) is None:
            text = "the HTTP stream is not mounted: a page receives nothing where its WebSocket is blocked"
            what = 'Add path("notifications/", include("notifications.urls")) to the site\'s URLs.'
            self._say("stream", Level.SKIPPED, text, what)
            return
        if self._failed("layer"):
            return
        with suppress(Exception):  # the socket has said so
            await self._ask_as_a_stranger(get_default_application(), paths[0])
        stream = ProbeStream(get_channel_layer(), self.user)
        try:
            await stream.open()
        except Exception as error:  # noqa: BLE001  whatever it is, it is reported
            text = f"the HTTP transport raised: {describe(error, named=True)}"
            self._say("stream", Level.ERROR, text, "The log of this command says why; please report it.")
            return
        finally:
            self._stream = stream

    async def _ask_as_a_stranger(self, application: Any, path: str) -> None:
        """Ask the whole application, whose middleware may answer in the place of the view."""
        try:
            head, said = await ask_application(application, path, self._host)
        except Exception as error:  # noqa: BLE001  the site's application may raise anything
            text = f"the application raised at {path}: {describe(error, named=True)}"
            what = "Pass http to get_asgi_application() in asgi.py, unless another server has the site's pages."
            self._say("stream", Level.WARNING, text, what)
            return
        if (wrong := describe_answer(head, said)) is not None:
            text = f"a stranger who posts to {path} is not answered by the stream's view: {wrong}"
            what = "Which middleware of the site answers instead? It must let this address through."
            self._say("stream", Level.WARNING, text, what)

    # The message.

    async def _publish(self) -> bool:
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            id_ = await apublish(self.topic, self._message(PUBLISHED), idempotency_key=self._tag)
        except PublishError as error:
            self._say("publish", Level.ERROR, *explain(error.__cause__ or error.reason))
            return False
        took = 1000 * (loop.time() - began)
        if id_ is not None and not await self._wait(lambda: self._echoed, SOCKET_TIMEOUT):
            text = f"Redis accepted the message, but does not publish it on {self.topic.channel}"
            self._say("publish", Level.ERROR, text, "Does REDIS_URL lead to one server, without a proxy in between?")
            return False
        kept = "" if id_ is not None else "; HISTORY_SIZE of users is 0: nothing is kept"
        self._say("publish", Level.OK, f"Redis accepted the message in {took:.0f} ms and published it{kept}")
        return True

    def _message(self, sort: str) -> dict[str, str]:
        return {"action": ACTION, "doctor": self._tag, "sort": sort}

    async def _follow(self, began: float) -> None:
        client = await async_client()
        loop = asyncio.get_running_loop()
        start = loop.time()
        try:
            async with Timeout(SOCKET_TIMEOUT):
                await client.publish(self.topic.channel, msgspec.json.encode(self._message(RAW)))
                anybody = any(report.healthy for report in await status.living(client))
        except FAILURES as error:
            self._say("rights", Level.ERROR, *explain(error))
            return
        await self._wait(self._arrived, ARRIVAL if anybody else FROM_HISTORY)
        took = f"{1000 * (loop.time() - start):.0f} ms"
        listeners = await examine_listeners(client, direct=self._direct)
        self._found += listeners
        nobody = any(finding.level is Level.ERROR for finding in listeners)
        if self._stamped:
            self._say("listener", Level.OK, "a listener stamped a raw message")
            self._judge_forwarding()
        elif not nobody:
            text = f"a raw message was not stamped within {ARRIVAL:g} s, although listeners report"
            self._say("listener", Level.ERROR, text, "The log of run_listener says why; restart it.")
        self._judge_socket(took)
        self._judge_stream(took)
        self._found += await examine_inlet(client)
        await self._judge_neighbours(client, began)

    def _arrived(self) -> bool:
        wanted = {RAW, PUBLISHED}
        delivered = self._delivered() if self._expects_delivery() else wanted
        streamed = self._streamed() if self._stream is not None else wanted
        layered = self._layered if not self._failed("layer") else wanted
        return wanted <= delivered and wanted <= streamed and wanted <= layered and self._stamped

    def _expects_delivery(self) -> bool:
        return self._welcome

    def _delivered(self) -> set[str]:
        return self._sorts(self._socket)

    def _streamed(self) -> set[str]:
        return self._sorts(self._stream)

    def _sorts(self, end: ProbeSocket | ProbeStream | None) -> set[str]:
        frames = end.frames if end is not None else []
        return {frame["sort"] for frame in frames if frame.get("doctor") == self._tag}

    def _judge_forwarding(self) -> None:
        if self._failed("layer"):
            return
        missing = {RAW, PUBLISHED} - self._layered
        if not missing:
            self._say("forward", Level.OK, "the listener's channel layer is the one that sockets read")
        else:
            self._say(
                "forward",
                Level.ERROR,
                "what the listener forwards does not arrive on the channel layer of this process",
                "Do both have the same CHANNEL_LAYERS: backend, hosts and prefix? Restart listeners and web servers "
                "after a change.",
            )

    def _judge_socket(self, took: str) -> None:
        if not self._expects_delivery():
            return
        missing = {RAW, PUBLISHED} - self._delivered()
        if any(self._failed(check) for check in ("listeners", "listener", "forward")):
            how = "nothing arrived"
            if PUBLISHED not in missing:
                how = f"what publish_* send {'arrives' if self._direct else 'comes from the history, late'}"
            self._say("socket", Level.SKIPPED, f"a socket of the site's application opened; {how}")
        elif not missing:
            self._say("socket", Level.OK, f"both messages reached a socket of the site's application within {took}")
        else:
            text = f"the channel layer has the messages, but the socket did not receive: {', '.join(sorted(missing))}"
            hint = "The log of this command says why; please report it."
            if self.topic.tenant:
                hint = (
                    f"Does {self._host!r} belong to the tenant {self.topic.tenant!r} in asgi.py, too, as TENANT says "
                    "here? --site sets the host."
                )
            self._say("socket", Level.ERROR, text, hint)

    def _judge_stream(self, took: str) -> None:
        if self._stream is None or self._failed("stream"):
            return
        missing = {RAW, PUBLISHED} - self._streamed()
        if any(self._failed(check) for check in ("listeners", "listener", "forward")):
            how = "nothing arrived" if PUBLISHED in missing else "what publish_* send arrives"
            self._say("stream", Level.SKIPPED, f"an HTTP stream opened; {how}")
        elif missing:
            text = f"the channel layer has the messages, but a stream did not receive: {', '.join(sorted(missing))}"
            self._say("stream", Level.ERROR, text, "The log of this command says why; please report it.")
        else:
            self._say("stream", Level.OK, f"both messages reached an HTTP stream within {took}")

    async def _judge_neighbours(self, client: Any, began: float) -> None:
        """Look for other programs that use the app's channels for something else."""
        await asyncio.sleep(max(0.0, began + EAVESDROP - asyncio.get_running_loop().time()))
        hint = "Set NOTIFICATIONS['PREFIX'] (and publish with it), or give the other program another Redis."
        if self._foreign:
            text = f"another program publishes something else on this app's channels, such as on {self._foreign[0]}"
            self._say("neighbours", Level.WARNING, text, hint)
        subscribed: list[bytes] = []
        with suppress(*FAILURES):  # restricted accounts may not ask
            async with Timeout(SOCKET_TIMEOUT):
                for pattern in patterns():
                    subscribed += await client.pubsub_channels(pattern)
        if subscribed:
            text = f"somebody else subscribes to {min(subscribed).decode(errors='replace')!r}"
            more = f" and {len(subscribed) - 1} more channels" if len(subscribed) > 1 else ""
            self._say("neighbours", Level.WARNING, f"{text}{more}: another program uses these names", hint)
        if not self._foreign and not subscribed:
            where = " ".join(patterns())
            text = f"other programs publish messages on {where}, {self._heard} meanwhile, all of them well-formed"
            self._say("neighbours", Level.OK, text if self._heard else f"nobody else was seen on {where}")

    async def _wait(self, condition: Any, seconds: float) -> bool:
        with suppress(TimeoutError):
            async with Timeout(seconds):
                while not condition():
                    self._news.clear()
                    with suppress(TimeoutError):
                        async with asyncio.timeout(0.05):  # the socket sets a different event
                            await self._news.wait()
        return bool(condition())


def _why(layer: Any) -> str:
    """Return why scripts do not deliver to a layer that they could deliver to."""
    same = "server and account of CHANNEL_LAYERS are not written as in REDIS_URL"
    return f", because {same}" if isinstance(layer, RedisPubSubLayer) else ""
