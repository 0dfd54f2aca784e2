"""The HTTP transport without a server: what it refuses, when it is full, and what is news."""

import asyncio
import json
import sys
from contextlib import aclosing, suppress
from types import SimpleNamespace

import pytest
from channels.layers import InMemoryChannelLayer
from django.core.handlers.asgi import ASGIHandler
from django.db import connections
from django.test import AsyncRequestFactory
from hypothesis import given
from hypothesis import strategies as st

from notifications import http, tasks
from notifications.access.sessions import Found
from notifications.connection import limits
from notifications.history import put_in_place
from notifications.history.memory import MemoryStore
from notifications.metrics import tally
from notifications.monitoring import views as monitoring
from notifications.protocol.frames import (
    MAX_REQUEST_SIZE,
    MAX_TOPICS,
    CloseCode,
    FrameError,
    Request,
    decode_request,
)
from notifications.topics import Topic
from tests.cases import cases
from tests.frame_list import user_of
from tests.waiting import await_for, scaled

ALICE = user_of(1)


@pytest.fixture(autouse=True)
async def nothing_left():
    """Whatever a test does, no connection is left behind."""
    before = tally.connections, tally.responses, tally.subscriptions
    yield
    assert (tally.connections, tally.responses, tally.subscriptions) == before
    assert not tasks._carried_out()


async def who(token):
    """Tokens are the ids of users."""
    return SimpleNamespace(pk=int(token), is_active=True, is_authenticated=True) if token.isdecimal() else None


@pytest.fixture(autouse=True)
def layer(settings, monkeypatch):
    """A site without a history, so that nobody asks Redis."""
    layer = InMemoryChannelLayer()
    monkeypatch.setattr(http, "get_channel_layer", lambda: layer)
    settings.NOTIFICATIONS = {
        **settings.NOTIFICATIONS,
        "HISTORY_SIZE": 0,
        "AUTHENTICATE_TOKEN": who,
        "TOPICS": {"order": {"PUBLIC": True}, "closed": {}},
    }
    return layer


def request_of(body, *, method="post", content_type="application/json", **headers):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    send = getattr(AsyncRequestFactory(), method)
    return send("/notifications/stream/", content, content_type=content_type, headers=headers)


async def answer(body, **options):
    return await http.stream(request_of(body, **options))


async def frames_of(response):
    return json.loads(b"".join([part async for part in response]))


# What is refused.


@cases(
    ("body", "status"),
    [
        (b" ", 400),
        (b"[]", 400),
        (b"{}", 400),
        (b'{"mode":"socket"}', 400),
        (b'{"mode":"poll","wait":26}', 400),
        (b'{"mode":"poll","wait":-1}', 400),
        (b'{"mode":"poll","since":"yesterday"}', 400),
        (b'{"mode":"poll","token":7}', 400),
        (b'{"mode":"poll","topics":{"topic":"order:7"}}', 400),
        (b'{"mode":"poll","wait":NaN}', 400),
        (json.dumps({"mode": "poll", "topics": [{"topic": "a:b"}] * (MAX_TOPICS + 1)}).encode(), 400),
        (b'{"mode":"socket","token":"\\ud83d"}', 400),
        (b'["\\ud83d"]', 400),
        (b"[" * MAX_REQUEST_SIZE, 400),
        (b" " * (MAX_REQUEST_SIZE + 1), 413),
    ],
)
async def test_a_body_that_is_not_a_request_is_refused(body, status):
    """The answer is JSON and says what is wrong; it is never a page, nor an error of the server."""
    response = await answer(body)

    assert response.status_code == status
    assert json.loads(response.content)["error"]
    assert response["Cache-Control"] == "no-store"


async def test_only_a_post_of_json_is_read():
    """Nothing else: a form of another origin is sent without asking first."""
    wrong_method = await answer({"mode": "poll"}, method="put")
    wrong_type = await answer({"mode": "poll"}, content_type="text/plain")

    assert (wrong_method.status_code, wrong_method["Allow"]) == (405, "POST")
    assert wrong_type.status_code == 415


async def test_a_page_of_another_origin_is_refused():
    """As a WebSocket is, with a token as well."""
    response = await answer({"mode": "poll", "token": "1"}, origin="https://evil.example")

    assert response.status_code == 403


async def test_a_session_that_cannot_be_read_is_no_refusal_for_good(monkeypatch):
    """The client is told when to come back, before anything is answered."""

    async def find(*_):
        return Found(None, is_known=False, is_gone=False, as_of=0.0)

    monkeypatch.setattr(http.sessions, "find", find)

    response = await answer({"mode": "stream"}, origin="http://testserver")

    assert response.status_code == 503
    assert int(response["Retry-After"]) > 0


async def test_a_crowd_is_refused_before_anything_is_answered(monkeypatch):
    """Where a WebSocket would not be accepted, a request gets 429."""
    monkeypatch.setattr(limits.Strangers, "is_crowded", lambda *_: True)

    response = await answer({"mode": "stream", "token": "1"})

    assert response.status_code == 429
    assert int(response["Retry-After"]) > 0


async def test_a_request_without_a_tenant_may_come_back(settings):
    """Nobody is told that there are too many: what names the tenant may have failed for now."""

    def fail():
        raise OSError

    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "TENANT": fail}

    response = await answer({"mode": "stream", "token": "1"})

    assert response.status_code == 503
    assert int(response["Retry-After"]) > 0


@given(body=st.binary(max_size=50) | st.text(max_size=20).map(lambda text: f'{{"mode":"poll",{text}}}'.encode()))
def test_any_body_is_a_request_or_a_frame_error(body):
    """Nothing that anybody can send raises anything else."""
    with suppress(FrameError):
        assert isinstance(decode_request(body), Request)


@given(
    st.fixed_dictionaries(
        {"mode": st.sampled_from(["stream", "poll"])},
        optional={
            "token": st.none() | st.text(max_size=5),
            "since": st.none() | st.sampled_from(["last", "1-2"]),
            "wait": st.integers(0, 25) | st.floats(0, 25),
            "topics": st.lists(
                st.fixed_dictionaries(
                    {"topic": st.text(max_size=9)},
                    optional={"since": st.none() | st.just("last"), "grant": st.none() | st.text(max_size=5)},
                ),
                max_size=3,
            ),
            "later": st.text(max_size=5),
        },
    )
)
def test_every_request_of_the_form_is_understood(body):
    """What the documentation shows is accepted, with keys that are not known, and becomes the frames of a socket."""
    request = decode_request(json.dumps(body, ensure_ascii=False).encode(errors="replace"))

    assert len(request.subscriptions) == len(body.get("topics", []))
    assert (request.auth is None) == (body.get("token") is None)


# What is answered.


async def test_a_poll_is_an_array_of_frames():
    """Each topic is answered in its order; one that is refused is news."""
    response = await answer({"mode": "poll", "token": "1", "topics": [{"topic": "order:7"}, {"topic": "closed:7"}]})

    frames = await frames_of(response)

    assert [frame["action"] for frame in frames] == ["auth_success", "subscribed", "error"]
    assert response["Content-Type"] == "application/json"


@pytest.mark.parametrize(
    "entry",
    [
        r'{"topic":"order:\ud83d"}',
        '{"topic":"order:\ud83d"}',
        r'{"topic":"order:8","grant":"\ud83d"}',
        '{"topic":"order:8","grant":5}',
        '{"topic":"order:8","since":"1"}',
        '{"topic":7}',
        '"order:8"',
        "null",
    ],
    ids=ascii,
)
async def test_a_topic_that_cannot_be_read_costs_that_topic_alone(entry):
    """It is answered in its place, with the error that a WebSocket answers; a page would else repeat it for ever."""
    text = f'{{"mode":"poll","token":"1","topics":[{{"topic":"order:7"}},{entry},{{"topic":"order:9"}}]}}'

    response = await answer(text.encode(errors="surrogatepass"))

    assert response.status_code == 200
    _, first, wrong, last = await frames_of(response)
    assert (first["topic"], last["topic"]) == ("order:7", "order:9")
    assert (wrong["action"], wrong["code"]) == ("error", "invalid_message")
    assert wrong["message"]


async def test_half_a_character_beside_the_topics_does_not_cost_a_request():
    """It is read as U+FFFD, as in a frame of a WebSocket: a token that has it is wrong, and the rest works."""
    response = await answer(rb'{"mode":"poll","token":"\ud83d"}')
    _, close = await frames_of(response)
    assert close["code"] == CloseCode.AUTH_FAILED

    response = await answer(rb'{"mode":"poll","token":"1","wait":0,"title":"\ud83d","topics":[{"topic":"order:7"}]}')
    assert [frame["action"] for frame in await frames_of(response)] == ["auth_success", "subscribed"]


async def test_a_message_ends_a_poll(layer):
    """And comes behind the answers."""
    response = await answer({"mode": "poll", "token": "1", "topics": [{"topic": "order:7"}]})
    polling = asyncio.create_task(frames_of(response))
    topic = Topic("order", "7")
    await await_for(lambda: layer.groups.get(topic.group))
    await layer.group_send(topic.group, {"type": "notifications.message", "topic": str(topic), "text": '{"n":1}'})

    assert (await polling)[2:] == [{"n": 1}]


@pytest.fixture
def history(settings):
    """A history in memory."""
    put_in_place(store := MemoryStore(lambda stamped: None))
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "HISTORY_SIZE": 100}
    yield store
    put_in_place(None)


async def test_polls_with_their_positions_have_everything_once(history, settings):
    """Also of a topic that the site joins: it is news once, and named with its position from then on."""
    kinds = {"order": {"PUBLIC": True}, "closed": {"JOIN": lambda user: ["8"]}}
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "TOPICS": kinds}
    own, since, arrived, published = None, {"order:7": None}, [], 0
    for messages in (0, 3, 1, 5, 0):
        for _ in range(messages):
            topic = Topic("order", "7") if published % 2 else Topic("closed", "8")
            history.publish(topic, json.dumps({"n": published}).encode())
            published += 1
        topics = [{"topic": topic, "since": position} for topic, position in since.items()]
        wait = 0 if published and not messages else 25
        response = await answer({"mode": "poll", "token": "1", "since": own, "topics": topics, "wait": wait})
        for frame in await frames_of(response):
            assert frame.get("recovered") is not False
            if "_meta" in frame:
                since[frame["_meta"]["topic"]] = frame["_meta"]["id"]
                arrived.append(frame["n"])
            elif frame["action"] == "subscribed" and (not frame["joined"] or frame["topic"] not in since):
                since[frame["topic"]] = frame["id"]
            elif frame["action"] == "auth_success":
                own = frame["id"]

    assert since.keys() == {"order:7", "closed:8"}
    assert sorted(arrived) == list(range(published))


async def test_without_a_channel_layer_a_request_is_answered_at_once(monkeypatch):
    """Also a stream, as a poll, with the time of the next one."""
    monkeypatch.setattr(http, "get_channel_layer", lambda: None)

    response = await answer({"mode": "stream", "token": "1", "topics": [{"topic": "order:7"}]})

    assert [frame["action"] for frame in json.loads(response.content)] == ["auth_success", "subscribed"]
    assert int(response["Retry-After"]) > 0


async def test_a_response_that_nobody_reads_is_not_left_behind():
    """A middleware may answer something else: the connection ends with what it dropped."""
    response = await answer({"mode": "stream", "token": "1"})
    assert tally.responses == 1
    del response

    await await_for(lambda: not tally.responses)


# The transport.


async def test_a_full_response_accepts_nothing_more():
    """The frame that reaches the bound is the last one; then the client has to come back."""
    response = http.Response(None)
    text = "x" * 1000
    while response.write_texts([text]):
        pass
    await response.send_text(text)

    with pytest.raises(ConnectionResetError):
        await response.send_text(text)
    assert not response.write_texts([text])
    accepted = sum(map(len, response._take()))
    assert http.MAX_CHARACTERS <= accepted < http.MAX_CHARACTERS + len(text)


async def test_a_frame_that_is_larger_than_a_response_arrives():
    """It fills one: otherwise the client would ask for it for ever."""
    response = http.Response(None)
    large = "x" * (2 * http.MAX_CHARACTERS)

    assert not response.write_texts([large])
    await response.send_text(large)
    assert response._take() == [large]


@cases(
    ("text", "news"),
    [
        ('{"action":"auth_success","recovered":null}', False),
        ('{"action":"auth_success","recovered":true}', False),
        ('{"action":"auth_success","recovered":false}', True),
        ('{"action":"subscribed","topic":"order:7","recovered":true,"joined":false}', False),
        ('{"action":"subscribed","topic":"order:7","recovered":false,"joined":false}', True),
        ('{"action":"subscribed","topic":"order:7","recovered":null,"joined":true}', False),
        ('{"action":"subscribed","topic":"order:8","recovered":null,"joined":true}', True),
        ('{"action":"unsubscribed","topic":"order:7"}', True),
        ('{"action":"error","code":"forbidden"}', True),
        ('{"action":"error","code":"unavailable"}', False),
        ('{"_meta":{"topic":"order:7","id":"1-1"},"action":"notice"}', True),
        ('{"action":{"not":"a text"}}', True),
    ],
)
def test_what_is_news_ends_a_poll(text, news):
    """What only confirms what the client asked for is none, and an answer that is not known yet is waited for."""
    assert http._is_news(text, {"order:7"}) is news


async def test_a_message_that_cannot_be_looked_into_ends_a_poll():
    """As any message does: otherwise it would be in the way of everything behind it, for as long as it is kept."""
    nested = '{"a":' + "[" * 5000 + "]" * 5000 + "}"

    assert http._is_news(nested, {"order:7"})


async def test_a_line_break_between_tokens_does_not_end_an_event():
    """A raw message may have been written over several lines."""
    assert http._event('{"a":\r\n1}') == 'data: {"a":  1}\n\n'


async def test_a_stopping_server_ends_its_responses(monkeypatch):
    """uvicorn waits for each of them: the object that handles the signal knows."""
    server = SimpleNamespace(should_exit=False)
    monkeypatch.setattr(http, "LOOK", 0.01)
    monkeypatch.setattr(http.signal, "getsignal", lambda _: SimpleNamespace(__self__=server))
    response = await answer({"mode": "poll", "token": "1"})
    polling = asyncio.create_task(frames_of(response))
    await await_for(lambda: tally.subscriptions)
    server.should_exit = True

    assert (await polling)[-1]["code"] == CloseCode.SERVICE_RESTART


async def test_a_response_that_is_not_read_is_cut_off(monkeypatch):
    """The server waits for its client, so the task that serves it is cancelled; nothing is left."""
    monkeypatch.setattr(http, "UNREAD", 0.01)
    response = await answer({"mode": "stream", "token": "1"})

    async def send_to_nobody():
        async with aclosing(aiter(response)) as parts:  # as Django does
            async for _ in parts:
                await asyncio.get_running_loop().create_future()

    serving = asyncio.create_task(send_to_nobody())
    await asyncio.wait([serving])

    assert serving.cancelled()
    assert not tally.responses


async def test_a_stream_ends_when_its_time_is_up(monkeypatch):
    """Without a close: the client comes back at once."""
    monkeypatch.setattr(http, "LONGEST", 0.05)
    monkeypatch.setattr(http, "COMMENT_INTERVAL", 0.01)
    response = await answer({"mode": "stream", "token": "1"})

    parts = [part async for part in response]

    assert b"".join(parts).count(http.COMMENT) >= 2
    assert parts[-1] in (b"", http.COMMENT)


# Within Django.


class Synchronous:
    """A middleware of the old sort, as many sites have: Django adapts it with a thread."""

    sync_capable, async_capable = True, False

    def __init__(self, get_response):
        self.get_response = get_response

    def __call__(self, request):
        return self.get_response(request)


async def test_middleware_does_not_hold_events_back(settings):
    """Neither one that compresses, nor a synchronous one, nor a login page; and a client that goes ends it all."""
    settings.MIDDLEWARE = [
        "django.middleware.gzip.GZipMiddleware",
        f"{__name__}.Synchronous",
        *settings.MIDDLEWARE,
        "django.contrib.auth.middleware.LoginRequiredMiddleware",
    ]
    scope = request_of({}, **{"Accept-Encoding": "gzip"}).scope
    sent, has_gone = asyncio.Queue(), asyncio.Event()
    received = [{"type": "http.request", "body": b'{"mode":"stream","token":"1"}'}]

    async def receive():
        if received:
            return received.pop()
        await has_gone.wait()
        return {"type": "http.disconnect"}

    serving = asyncio.create_task(ASGIHandler()(scope, receive, sent.put))
    async with asyncio.timeout(scaled()):
        start = await sent.get()
        text = b""
        while text.count(b"\n\n") < 2:
            text += (await sent.get())["body"]
    has_gone.set()
    await serving

    assert b"content-encoding" not in {name.lower() for name, _ in start["headers"]}
    assert text.startswith(b':\n\ndata: {"action":"auth_success"')
    assert not tally.responses


@cases("view", [http.stream, monitoring.live, monitoring.ready, monitoring.metrics])
def test_a_site_with_atomic_requests_can_serve_it(view):
    """Django refuses an asynchronous view there, unless it needs no transaction on any database."""
    assert view._non_atomic_requests == set(connections)


def test_workers_of_gevent_say_that_they_cannot(monkeypatch, rf):
    """Nothing asynchronous begins there, because it would disturb the other requests."""
    patched = SimpleNamespace(is_module_patched=lambda name: name == "threading")
    monkeypatch.setitem(sys.modules, "gevent.monkey", patched)

    response = http.view()(rf.post("/notifications/stream/"))

    assert response.status_code == 501
    monkeypatch.setitem(sys.modules, "gevent.monkey", SimpleNamespace(is_module_patched=lambda _: False))
    assert http.view() is http.stream
