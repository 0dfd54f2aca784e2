"""
The HTTP transport, for clients to which no WebSocket gets through: a stream of events, or polls.

One request names all topics of a page. Its answer carries the frames of the wire protocol, and ends after
``MAX_CHARACTERS``: the client comes back with its positions, and has the rest from the histories. So nothing
needs to be confirmed, and what waits for a client that reads slowly is bounded.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Container, Sequence
from contextlib import aclosing, suppress
from contextvars import Context, copy_context
from typing import Any, Final, TypeVar

import msgspec
from asgiref.sync import SyncToAsync, sync_to_async
from channels.layers import get_channel_layer
from django.conf import settings as django_settings
from django.contrib.auth.decorators import login_not_required
from django.contrib.sessions.backends.base import SessionBase
from django.db import connections
from django.db.transaction import non_atomic_requests
from django.http import HttpRequest, HttpResponse, HttpResponseBase, JsonResponse, StreamingHttpResponse
from django.views.decorators.csrf import csrf_exempt
from msgspec import Struct

from . import tenants
from .access import authentication, sessions
from .access.client_address import address_of
from .aio import LoopThread, PerLoop
from .conf import settings
from .connection.connection import Caller, Connection
from .exceptions import TopicError
from .metrics import count, tally
from .protocol.frames import (
    MAX_REQUEST_SIZE,
    Close,
    CloseCode,
    FrameError,
    Request,
    Subscribe,
    decode_request,
    encode,
)
from .tasks import carried_out, ended, in_context, new_task

MAX_CHARACTERS: Final = 256 * 1024
"""Characters of one response, which ends with the frame that reaches them. So much may wait for a slow client."""
LONGEST: Final = 300.0
"""Seconds after which a stream ends, so that nothing is kept for longer for a client that has silently gone."""
COMMENT_INTERVAL: Final = 15.0
"""Seconds between two comments of a stream. Proxies cut a response that is silent, some after 20 or 30 s."""
UNREAD: Final = 60.0
"""Seconds that a client may take to read what the server has already accepted."""
AT_ONCE: Final = 10.0
"""Seconds that the answers of a poll may take, such as those of ``AUTHORIZE``, beyond the time that it waits."""
END_WAIT: Final = 1.0
"""Seconds that a client waits for what its connection had on the channel layer to be given back."""
NEXT_POLL: Final = 3
"""Seconds until the next poll, where a poll cannot wait for news."""
RETRY: Final = 5
"""Seconds after which a client that was refused for now may come back."""
LOOK: Final = 0.5
"""Seconds between two looks whether the server is stopping."""
COMMENT: Final = b":\n\n"
_loop: Final = LoopThread("notifications-polls")
View = TypeVar("View", bound=Callable[..., Any])


def for_scripts(view: View) -> View:
    """
    Exempt a view from what Django does for pages: the CSRF token, the login page, and a transaction.

    With ``ATOMIC_REQUESTS`` Django refuses to run an asynchronous view that is not exempt.
    """
    for alias in connections:
        view = non_atomic_requests(using=alias)(view)
    return login_not_required(csrf_exempt(view))


@for_scripts
async def stream(request: HttpRequest) -> HttpResponseBase:
    """
    Answer the frames of the wire protocol, as they come or at once; ``docs/protocol.md`` describes it.

    It needs no CSRF token: a page of another origin cannot send JSON without asking first, and what it sends is
    refused by the rule that applies to WebSockets.
    """
    _keep_session(request)
    if request.method != "POST":
        return _refuse(405, "only POST", Allow="POST")
    if request.content_type != "application/json":
        return _refuse(415, "the body is application/json")
    if len(body := request.read(MAX_REQUEST_SIZE + 1)) > MAX_REQUEST_SIZE:
        return _refuse(413, f"the body has more than {MAX_REQUEST_SIZE} bytes")
    try:
        wanted = decode_request(body)
    except FrameError as error:
        return _refuse(400, str(error))
    if not authentication.request_allowed(request):
        return _refuse(403, "pages of this origin are not allowed")
    answer: HttpResponseBase = await in_context(await _tenants_context(), _here(request, wanted))
    return answer


def _keep_session(request: HttpRequest) -> None:
    """
    Have Django's middleware write neither the session nor its cookie, as nobody does for a WebSocket.

    A tab that asks again and again would count as somebody at work: with ``SESSION_SAVE_EVERY_REQUEST``, or a
    middleware that notes the time of each request, a session would never expire. And what it writes is what it has read
    before another request has changed the session.

    A session that a middleware has begun, or given another key, is written: its old row is gone by now.
    """
    session = getattr(request, "session", None)
    key = request.COOKIES.get(django_settings.SESSION_COOKIE_NAME)
    if isinstance(session, SessionBase) and key is not None and session.session_key == key:
        session.save = _save_nothing  # type: ignore[method-assign]  # of this instance
        with suppress(AttributeError):
            del session.accessed  # without it the middleware takes the session for none


def _save_nothing(*_: Any, **__: Any) -> None:
    """Replace the ``save`` of a session."""


async def _here(request: HttpRequest, wanted: Request) -> HttpResponseBase:
    """Answer in a loop whose connections to Redis last: under WSGI that of the request ends with it."""
    work = _answer(request, wanted)
    return await (work if hasattr(request, "scope") else _loop.run(work))


@for_scripts
def in_green_threads(request: HttpRequest) -> HttpResponse:
    """Answer 501 under gevent: to asyncio its greenlets are one thread, and a loop in one appears to run in all."""
    return _refuse(501, "gevent cannot run asyncio; use workers with threads, or an ASGI server")


def view() -> Callable[..., Any]:
    """Return the view that can run in this process."""
    gevent = sys.modules.get("gevent.monkey")
    is_green = gevent is not None and gevent.is_module_patched("threading")
    return in_green_threads if is_green else stream


async def _tenants_context() -> Context | None:
    """
    Return a context in which the request's tenant is known; None on a site without tenants.

    It is asked for in the thread of the request's middleware, which may have set it there.
    """
    if settings.tenant is None:
        return None
    context = copy_context()
    with suppress(TopicError):  # whoever asks again reports it
        context.run(tenants.remembered.set, await sync_to_async(tenants.current)())
    return context


def _has_tenant() -> bool:
    try:
        tenants.current()
    except TopicError:
        return False
    return True


async def _answer(request: HttpRequest, wanted: Request) -> HttpResponseBase:
    address = address_of(request.META.get("REMOTE_ADDR", ""))
    # Without an Origin a session proves nothing.
    cookie = request.COOKIES.get(django_settings.SESSION_COOKIE_NAME) if "HTTP_ORIGIN" in request.META else None
    found = await sessions.find(cookie, address)
    if not found.is_known:
        return _refuse(503, "the session could not be read", **{"Retry-After": str(RETRY)})
    user = authentication.trusted_user(found.user)
    caller = Caller(
        address=address,
        user=user,
        session_key=None if user is None else cookie,
        as_of=found.as_of,
        is_known=True,
        is_in_doubt=lambda: found.is_gone and sessions.may_be_replaced(cookie),
        since=None if user is None else wanted.since,
    )
    layer = get_channel_layer() if hasattr(request, "scope") else None  # under WSGI nothing can wait
    if layer is None:
        wanted = msgspec.structs.replace(wanted, mode="poll", wait=0)
    body = Response(layer).body(caller, wanted)
    if await anext(body, None) is None:
        if not _has_tenant():
            return _refuse(503, "it is not known whose request this is", **{"Retry-After": str(RETRY)})
        return _refuse(429, "too many connections have not authenticated", **{"Retry-After": str(RETRY)})
    headers = {"Cache-Control": "no-store"}
    if layer is None:
        headers["Retry-After"] = str(NEXT_POLL)
        parts = [part async for part in body]
        return HttpResponse(b"".join(parts), content_type="application/json", headers=headers)
    if wanted.mode == "poll":
        return Streamed(body, content_type="application/json", headers=headers)
    headers["X-Accel-Buffering"] = "no"
    request.META.pop("HTTP_ACCEPT_ENCODING", None)  # Django's GZipMiddleware keeps events until there are many
    return Streamed(body, content_type="text/event-stream; charset=utf-8", headers=headers)


class Streamed(StreamingHttpResponse):
    """
    A response whose body Django closes as soon as it has done with it.

    Django's own has two generators around the body, which leave that to Python's collector.
    """

    def __init__(self, body: AsyncGenerator[bytes], **options: Any) -> None:
        super().__init__(body, **options)
        self._body = body

    def __aiter__(self) -> AsyncIterator[bytes]:
        is_own: bool = self._iterator is self._body  # type: ignore[attr-defined]  # not in the types of Django
        return self._body if is_own else super().__aiter__()  # a middleware has wrapped it


def _refuse(status: int, error: str, **headers: str) -> HttpResponse:
    return JsonResponse({"error": error}, status=status, headers={"Cache-Control": "no-store", **headers})


async def _release_thread() -> None:
    """
    Give back the thread that Django has for a request, and the database connections that its middleware has opened.

    Both would last as long as the response. What needs a thread after that gets another one.
    """
    await sync_to_async(_release_database)()
    context = SyncToAsync.thread_sensitive_context.get(None)
    if context is None or getattr(context, "_executor", None) is not None:  # that one belongs to whoever has given it
        return
    if (executor := SyncToAsync.context_to_thread_executor.pop(context, None)) is not None:
        executor.shutdown(wait=False)


def _release_database() -> None:
    for each in connections.all(initialized_only=True):
        if not each.in_atomic_block:
            each.close()


class Response:
    """
    The transport of one response. It accepts frames until it is full, and its body has them as they come.

    Attributes:
        end: Why it ended, for the metrics.

    """

    can_answer = False

    def __init__(self, layer: Any) -> None:
        """
        Prepare a response; nothing happens before its ``body`` begins.

        Args:
            layer: The channel layer; None to answer from the histories alone.

        """
        self.end = "gone"
        self._layer = layer
        self._texts: list[str] = []
        self._left = MAX_CHARACTERS
        self._code: CloseCode | None = None
        self._news: asyncio.Future[None] | None = None
        self._connection: Connection
        self._answering: asyncio.Task[None] | None = None
        self._stop_task: asyncio.Task[None] | None = None

    # The interface of transports.

    def write_texts(self, texts: Sequence[str]) -> bool:
        """Accept frames for which there is room; otherwise they come one by one."""
        if (size := sum(map(len, texts))) >= self._left:
            return False
        self._left -= size
        self._texts += texts
        self._wake()
        return True

    async def send_text(self, text: str) -> None:
        """Accept a frame; the last one may be larger than what is left, or a large one would never come."""
        if self._left <= 0:
            raise ConnectionResetError("the response is full")
        self._left -= len(text)
        self._texts.append(text)
        self._wake()

    async def close(self, code: CloseCode) -> None:
        """End the response, with this code as its last word."""
        self._code = code
        if self._answering is not None:
            self._answering.cancel()
        self._wake()

    # The body.

    async def body(self, caller: Caller, wanted: Request) -> AsyncGenerator[bytes]:
        """
        Yield the body of the response, and before that an empty part; nothing if the client was not admitted.

        Once it has yielded that part it ends in any case, also if a middleware drops the response: an event loop
        closes what nobody holds any more.
        """
        self._connection = Connection(self, self._layer)
        tally.responses += 1
        try:
            if not self._connection.may_open(caller):
                self.end = "refused"
                return
            yield b""
            if self._layer is not None:
                await _release_thread()
            await self._connection.request(caller, wanted.auth, wanted.subscriptions)
            stopping().add(self)
            async with aclosing(self._events() if wanted.mode == "stream" else self._array(wanted)) as parts:
                async for part in parts:
                    unread = asyncio.get_running_loop().call_later(UNREAD, self._give_up, asyncio.current_task())
                    try:
                        yield part
                    finally:
                        unread.cancel()
        finally:
            stopping().remove(self)
            tally.responses -= 1
            count("response", self.end)
            # A task of its own, because this one may be cancelled again, and a client must not wait for a slow layer.
            await carried_out(self._end(), END_WAIT, "notifications: the end of a response")

    async def _end(self) -> None:
        try:
            if self._stop_task is not None:
                await ended(self._stop_task)
        finally:
            await self._connection.end()

    async def _events(self) -> AsyncGenerator[bytes]:
        """Yield server-sent events, as they come."""
        now = asyncio.get_running_loop().time
        ends_at, comment_at = now() + LONGEST, now() + COMMENT_INTERVAL
        yield COMMENT
        while True:
            await self._wait(min(ends_at, comment_at))
            part = "".join(map(_event, self._take()))
            if now() >= comment_at:
                part += COMMENT.decode()
                comment_at = now() + COMMENT_INTERVAL
            if self._code is not None:
                part += f"event: close\n{_event(encode(Close.of(self._code)))}"
            if part:
                yield part.encode()
            if self._is_over() or now() >= ends_at:
                self.end = self._reason("time")
                return

    async def _array(self, wanted: Request) -> AsyncGenerator[bytes]:
        """Yield one JSON array of frames: when there is news, or when the time is up."""
        loop = asyncio.get_running_loop()
        until = loop.time() + wanted.wait
        named = {each.topic for each in wanted.subscriptions if isinstance(each, Subscribe)}
        texts: list[str] = []
        has_news = False
        while True:
            await self._answers(max(until - loop.time(), 0) + AT_ONCE)
            texts += (more := self._take())
            has_news = any(_is_news(text, named) for text in more)
            if has_news or self._is_over() or loop.time() >= until:
                break
            await self._wait(until)
        if self._code is not None:
            texts.append(encode(Close.of(self._code)))
        yield f"[{','.join(texts)}]".encode()
        self.end = self._reason("answered")

    async def _answers(self, seconds: float) -> None:
        """Wait until everything has been answered, or the response is over; at most so many seconds."""
        self._answering = new_task(self._connection.has_answered())
        try:
            if not self._is_over():
                await asyncio.wait([self._answering], timeout=seconds)
        finally:
            answering, self._answering = self._answering, None
            await ended(answering)

    def _take(self) -> list[str]:
        texts, self._texts = self._texts, []
        return texts

    def _is_over(self) -> bool:
        return self._code is not None or self._left <= 0

    def _reason(self, otherwise: str) -> str:
        if self._code is not None:
            return "closed"
        return "full" if self._left <= 0 else otherwise

    async def _wait(self, until: float) -> None:
        """Wait until there is something to send, at the latest until a time of the event loop."""
        if self._texts or self._is_over():
            return
        loop = asyncio.get_running_loop()
        self._news = loop.create_future()
        timer = loop.call_at(until, self._wake)
        try:
            await self._news
        finally:
            self._news = None
            timer.cancel()

    def _wake(self) -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(None)

    def _give_up(self, task: asyncio.Task[Any] | None) -> None:
        """End a response that its client does not read: the server waits for it, and cannot be told otherwise."""
        self.end = "unread"
        if task is not None:
            task.cancel()

    def server_stops(self) -> None:
        """Tell the client that the server restarts."""
        if self._stop_task is None:
            self._stop_task = new_task(self._connection.server_stops())


def _event(text: str) -> str:
    # A line break ends a field. In a JSON text there are none but between its tokens, where a space will do.
    return f"data: {text.replace(chr(13), ' ').replace(chr(10), ' ')}\n\n"


def _is_news(text: str, named: Container[str]) -> bool:
    """
    Return whether a poll ends with this frame, because it says more than that the client has what it asked for.

    An answer that is not known yet is no news: a client that came back at once would only ask again.
    """
    try:
        frame = _known.decode(text)
    except (ValueError, RecursionError):  # nested more deeply than this stack allows; no frame of ours is
        return True
    if frame.action in ("auth_success", "subscribed"):
        return frame.recovered is False or (frame.joined and frame.topic not in named)
    return not (frame.action == "error" and frame.code == "unavailable")


class _Known(Struct):
    """What ``_is_news`` looks at; in a published message it may be anything."""

    action: Any = None
    recovered: Any = None
    joined: Any = False
    topic: Any = None
    code: Any = None


_known: Final = msgspec.json.Decoder(_Known)


class Stopping:
    """
    Ends the responses of one event loop when their server is told to stop.

    uvicorn waits for responses that are not complete, for any time, before it says that it stops. But it notes the
    signal in an attribute of the object that handles it. Daphne cancels all applications.
    """

    def __init__(self) -> None:
        self._responses: dict[Response, None] = {}
        self._timer: asyncio.TimerHandle | None = None

    def add(self, response: Response) -> None:
        """End a response when the server stops, until ``remove``."""
        self._responses[response] = None
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(LOOK, self._look)

    def remove(self, response: Response) -> None:
        """Forget a response; no error if it was not added."""
        self._responses.pop(response, None)
        if not self._responses and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(LOOK, self._look)
        handler = signal.getsignal(signal.SIGTERM)
        if getattr(getattr(handler, "__self__", None), "should_exit", False) is True:
            for response in self._responses:
                response.server_stops()


stopping: Final = PerLoop(Stopping)
