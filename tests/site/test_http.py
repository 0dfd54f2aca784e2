"""The HTTP transport on real servers: streams, polls, refusals, limits, and what ends a response."""

import asyncio
import json
import sys
import time
from contextlib import AsyncExitStack
from datetime import timedelta

import psutil
import pytest
from django.contrib.sessions.models import Session
from django.utils import timezone

import notifications
from tests.clients import RawRedis
from tests.conftest import point_to
from tests.http_client import EventStream, open_stream, poll, post, session
from tests.ports import free_port
from tests.processes import LAYERS, START_SECONDS, Process, Site
from tests.waiting import scaled

KIBI = 1024
METRICS_TOKEN = "only-for-tests"


@pytest.fixture
def raw(site):
    with RawRedis(site.redis.port) as redis:
        yield redis


def actions(frames):
    return [frame.get("action") for frame in frames]


async def test_a_stream_carries_what_is_published(site, server, raw):
    """The first frame says who it is, each topic is answered in its order, and messages follow as they come."""
    user = site.add_user()
    upload = f"upload:{user.new_upload()}"
    body = {"mode": "stream", "topics": [{"topic": upload}, {"topic": "order:x"}, {"topic": f"user:{user.pk}"}]}

    async with post(server, body, headers=session(server, user)) as answer:
        stream = EventStream(answer)

        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-accel-buffering"] == "no"
        await stream.expect("auth_success", user_id=str(user.pk), recovered=None)
        await stream.expect("subscribed", topic=upload)
        await stream.expect("error", code="forbidden", topic="order:x")
        await stream.expect("subscribed", topic=f"user:{user.pk}")
        raw.publish(upload, '{"n":1}')
        assert (await stream.next())["n"] == 1
        raw.publish(user.channel, '{"pretty":\n[1,\r\n2]}')
        assert (await stream.next())["pretty"] == [1, 2]


async def test_a_stream_begins_with_a_comment(site, server):
    """So whoever asks knows at once that nothing on the way keeps it back."""
    async with post(server, {"mode": "stream", "token": site.add_user().token}) as answer:
        assert await anext(answer.lines()) == ":"


async def test_a_stream_continues_where_the_last_one_ended(site, server, raw):
    """What was published in between comes first, once, and the answer says that nothing is missing."""
    user = site.add_user()
    upload = f"upload:{user.new_upload()}"
    async with open_stream(server, user, upload) as stream:
        raw.publish(upload, '{"n":1}')
        last = (await stream.next())["_meta"]["id"]
    raw.publish(upload, '{"n":2}')
    raw.publish(user.channel, '{"n":3}')

    async with open_stream(server, user, {"topic": upload, "since": last}) as stream:
        assert (await stream.next())["n"] == 2
    frames = await poll(server, user, {"topic": upload, "since": "last"}, since="last")

    assert sorted(frame["n"] for frame in frames if "n" in frame) == [2, 3]


async def test_a_poll_has_the_latest_of_a_state_alone(site, server, raw):
    """Clients that poll slowly are not sent what has been replaced since, and are not told that it is missing."""
    user = site.add_user()
    upload = f"upload:{user.new_upload()}"
    raw.publish(upload, '{"n":0}')
    first = await poll(server, user, {"topic": upload, "since": "last"}, wait=25)
    raw.publish_all([(upload, f'{{"n":{n}}}') for n in range(1, 151)])
    raw.publish(user.channel, '{"n":"all are stamped"}')
    await poll(server, user, since=first[0]["id"], wait=25)

    frames = await poll(server, user, {"topic": upload, "since": first[-1]["_meta"]["id"]})

    assert [frame["n"] for frame in frames if "n" in frame] == [150]
    assert [frame["recovered"] for frame in frames if frame.get("topic") == upload] == [True]


async def test_a_poll_waits_for_a_message(limited_site, limited_server):
    """It is answered when there is one, and has the answers as well."""
    user = limited_site.add_user()
    upload = f"upload:{user.new_upload()}"
    await until(lambda: are_subscribed(limited_server, 0))
    polling = asyncio.create_task(poll(limited_server, user, upload, wait=25))
    await until(lambda: are_subscribed(limited_server, 2))
    first = await poll(limited_server, user, upload)
    assert actions(first) == ["auth_success", "subscribed"]
    began = time.monotonic()
    with limited_site.client() as client:
        client.publish(upload, '{"n":1}')

    frames = await polling

    assert actions(frames[:2]) == ["auth_success", "subscribed"]
    assert frames[2]["n"] == 1
    assert time.monotonic() - began < scaled(5)


async def test_a_poll_without_news_ends_when_its_time_is_up(site, server):
    """It has no more than the answers."""
    user = site.add_user()
    began = time.monotonic()

    frames = await poll(server, user, f"upload:{user.new_upload()}", wait=1)

    assert actions(frames) == ["auth_success", "subscribed"]
    assert 1 <= time.monotonic() - began < scaled(8)


async def test_a_token_opens_a_response_and_a_wrong_one_ends_it(site, server):
    """A program needs no ``Origin`` with it; the end says why, as the close of a WebSocket does."""
    user = site.add_user()
    async with post(server, {"mode": "poll", "wait": 0, "token": user.token}) as answer:
        assert actions(await answer.json()) == ["auth_success"]
    async with post(server, {"mode": "poll", "token": "wrong"}) as answer:
        assert [*actions(frames := await answer.json())] == ["auth_error", "close"]
        assert frames[1]["code"] == 4003
    async with post(server, {"mode": "stream", "token": "wrong"}) as answer:
        assert actions(await EventStream(answer).expect_end()) == ["auth_error", "close"]


async def test_a_session_counts_only_with_an_allowed_origin(site, server):
    """A page of another host is refused; a request without ``Origin`` has to have a token."""
    user = site.add_user()
    for origin in ("http://evil.example", "null", f"https://{server.address}"):
        async with post(server, {"mode": "poll"}, headers={"Origin": origin, "Cookie": user.cookie}) as answer:
            assert answer.status == 403
            assert "error" in await answer.json()
    async with post(server, {"mode": "poll"}, headers={"Cookie": user.cookie}) as answer:
        frames = await answer.json()
    assert actions(frames) == ["auth_error", "close"]
    assert frames[1]["code"] == 4001


# Bounds.


async def test_a_response_ends_when_it_is_full_and_the_next_one_goes_on(site, server, settings):
    """So megabytes of history come in several responses, each message once, in order."""
    point_to(settings, site.redis.url)
    user = site.add_user()
    order = f"order:{user.new_upload()}"  # no state, of which there would be the latest alone
    position = (await poll(server, user, order))[1]["id"]
    for n in range(20):
        await notifications.apublish(order, {"n": n, "fill": "x" * 60_000})
    arrived, sizes = [], []

    for mode in ("poll", "stream", "poll", "stream"):
        body = {"mode": mode, "topics": [{"topic": order, "since": position}]}
        async with post(server, body, headers=session(server, user)) as answer:
            frames = await answer.json() if mode == "poll" else await EventStream(answer).expect_end()
        messages = [frame for frame in frames if "_meta" in frame]
        arrived += [frame["n"] for frame in messages]
        position = messages[-1]["_meta"]["id"]
        sizes.append(sum(len(json.dumps(frame)) for frame in messages))

    assert arrived == list(range(20))
    assert all(250 * KIBI < size < 330 * KIBI for size in sizes)


async def test_a_client_that_does_not_read_costs_little_memory(site, server, raw):
    """What waits for it is bounded, however much is published to it; others are served meanwhile."""
    user, other = site.add_user(), site.add_user()
    process = psutil.Process(server.pid)
    async with open_stream(server, other) as reader, open_stream(server, user) as slow:
        slow.answer.transport.pause_reading()
        grown = []
        for n in range(4):  # the first round is for the buffers of the process
            for _ in range(10):
                await asyncio.to_thread(raw.publish_all, [(user.channel, json.dumps({"fill": "x" * 50_000}))] * 10)
            raw.publish(other.channel, json.dumps({"n": n}))
            assert (await reader.next())["n"] == n
            grown.append(process.memory_info().rss)

        assert grown[-1] - grown[0] < 4 * KIBI * KIBI


# The end.


@pytest.fixture(scope="module")
def limited_site(redis_program, migrated_database, tmp_path_factory):
    """A site that shows its metrics, and where a user may have two connections."""
    settings = {
        "CHANNEL_LAYER_BACKEND": LAYERS["ours"],
        "NOTIFICATIONS": {"METRICS_TOKEN": METRICS_TOKEN, "MAX_CONNECTIONS_PER_USER": 2},
    }
    with Site(tmp_path_factory.mktemp("http"), migrated_database, settings=settings) as site:
        site.start_listener()
        yield site


@pytest.fixture(scope="module", params=["daphne", "uvicorn"])
def limited_server(request, limited_site):
    return limited_site.start_server(request.param)


async def metric(server, name):
    authorization = {"Authorization": f"Bearer {METRICS_TOKEN}"}
    async with post(server, b"", method="GET", path="/notifications/metrics/", headers=authorization) as answer:
        lines = (await answer.body()).decode().splitlines()
    return next(float(line.split()[-1]) for line in lines if line.startswith(f"{name} "))


async def are_subscribed(server, number):
    """Return whether so many topics are open in all: who has them waits for messages."""
    return await metric(server, "notifications_subscriptions") == number


async def test_a_client_that_has_gone_leaves_nothing_behind(limited_site, limited_server):
    """Its connection ends with it, whether it was streaming or waiting for an answer."""
    user = limited_site.add_user()

    async def are(name, number):
        return await metric(limited_server, f"notifications_{name}") == number

    async with open_stream(limited_server, user):
        await until(lambda: are("responses", 1))  # the server may be about to hear of the end of others
        waiting = asyncio.create_task(poll(limited_server, user, wait=25))
        await until(lambda: are("responses", 2))
        waiting.cancel()
        await until(lambda: are("responses", 1))
    for name in ("responses", "connections", "subscriptions"):
        await until(lambda name=name: are(name, 0))


async def test_a_response_that_waits_holds_no_thread(limited_site, limited_server):
    """Django has one for each request that it answers; hundreds of them would keep a process from starting others."""
    process = psutil.Process(limited_server.pid)
    users = [limited_site.add_user() for _ in range(20)]
    await poll(limited_server, users[0])
    before = process.num_threads()
    async with AsyncExitStack() as stack:
        for user in users:
            await stack.enter_async_context(open_stream(limited_server, user))

        async def are_gone():
            return process.num_threads() < before + len(users) / 2

        await until(are_gone)


async def until(condition):
    """Wait for an asynchronous condition."""
    async with asyncio.timeout(scaled(15)):
        while not await condition():  # noqa: ASYNC110  what it asks is another process
            await asyncio.sleep(0.05)


async def test_a_user_has_no_more_connections_than_with_sockets(limited_site, limited_server):
    """One more is closed with 4102, in either mode."""
    user = limited_site.add_user()
    headers = session(limited_server, user)
    async with open_stream(limited_server, user), open_stream(limited_server, user):
        for mode in ("stream", "poll"):
            async with post(limited_server, {"mode": mode}, headers=headers) as answer:
                frames = await EventStream(answer).expect_end() if mode == "stream" else await answer.json()
                assert [frame["code"] for frame in frames] == [4102]


async def test_a_loop_of_requests_is_slowed_down(limited_site, limited_server):
    """A user's requests share the allowance of their sockets; a page with many topics is not refused by its size."""
    user = limited_site.add_user()
    topics = [f"upload:{user.new_upload()}" for _ in range(100)]
    codes = []
    for _ in range(20):
        frames = await poll(limited_server, user, *topics)
        codes.append(frames[-1].get("code"))
        if codes[-1] is not None:
            break
        assert actions(frames) == ["auth_success"] + ["subscribed"] * 100

    assert len(codes) > 3
    assert codes[-1] == 4100


@pytest.mark.parametrize("kind", ["uvicorn", "uvicorn alone"])
async def test_a_stopping_server_does_not_wait_for_its_responses(limited_site, kind):
    """uvicorn would wait for a stream as long as that lasts; the clients are told to come back."""
    server = limited_site.start_server(kind)
    user = limited_site.add_user()
    async with open_stream(server, user) as stream:
        waiting = asyncio.create_task(poll(server, user, wait=25))
        await until(lambda: are_subscribed(server, 2))  # each to the user's own topic
        began = time.monotonic()
        stopping = asyncio.to_thread(server.terminate)
        ended = asyncio.create_task(stopping)

        frames = await stream.expect_end()

        assert [frame["code"] for frame in frames] == [1012]
        assert (await waiting)[-1]["code"] == 1012
        await ended
        assert time.monotonic() - began < scaled(5)


# Without ASGI.


class WsgiServer(Process):
    """Django's own server, which is a WSGI server where Daphne is not installed as an app."""

    port = 0

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"


@pytest.fixture(scope="module")
def wsgi_server(limited_site):
    environment = limited_site.environment
    environment["TEST_SETTINGS"] = json.dumps(
        {**limited_site.settings, "WSGI_APPLICATION": "tests.testsite.wsgi.application"}
    )
    port = free_port()
    command = [sys.executable, "-m", "django", "runserver", "--noreload", f"127.0.0.1:{port}"]
    server = limited_site.start(*command, name="wsgi", process=WsgiServer, env=environment)
    server.port = port
    server.wait_for_line("Quit the server", START_SECONDS)
    return server


async def test_under_wsgi_polls_have_everything_once(limited_site, wsgi_server, settings):
    """Whatever the mode, the answer comes at once; with its positions the client misses nothing between two."""
    point_to(settings, limited_site.redis.url)
    user = limited_site.add_user()
    order = f"order:{user.new_upload()}"  # no state, of which there would be the latest alone
    arrived, position, own = [], None, None
    for n, mode in enumerate(("stream", "poll", "stream", "poll", "poll")):
        body = {"mode": mode, "wait": 25, "since": own, "topics": [{"topic": order, "since": position}]}
        async with post(wsgi_server, body, headers=session(wsgi_server, user)) as answer:
            assert answer.headers["content-type"] == "application/json"
            assert int(answer.headers["retry-after"]) > 0
            frames = await answer.json()
        assert actions(frames[:2]) == ["auth_success", "subscribed"]
        assert not any(frame.get("recovered") is False for frame in frames)
        own, position = frames[0]["id"], frames[1]["id"]
        for frame in frames[2:]:
            arrived.append(frame["n"])
            position = frame["_meta"]["id"]
        for part in range(3):
            await notifications.apublish(order, {"n": 3 * n + part})

    assert arrived == list(range(12))


async def test_under_wsgi_the_same_rules_apply(limited_site, wsgi_server):
    """Origins, tokens, permissions."""
    user = limited_site.add_user()
    async with post(wsgi_server, {"mode": "poll"}, headers={"Origin": "http://evil.example"}) as answer:
        assert answer.status == 403
    body = {"mode": "poll", "token": user.token, "topics": [{"topic": "order:x"}, {"topic": "nonsense"}]}
    async with post(wsgi_server, body) as answer:
        frames = await answer.json()
    assert actions(frames) == ["auth_success", "error", "error"]
    assert [frame["code"] for frame in frames[1:]] == ["forbidden", "invalid_message"]
    async with post(wsgi_server, {"mode": "poll", "token": "wrong"}) as answer:
        assert actions(await answer.json()) == ["auth_error", "close"]


def noting_the_time(get_response):
    """Note when a user was last active, as the middlewares do that log out whoever is not."""

    def middleware(request):
        request.session["last_active"] = time.time()
        return get_response(request)

    return middleware


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("status", [200, 400])
def test_a_request_is_no_activity_of_its_user(live_redis, client, settings, django_user_model, status):
    """A tab that polls keeps no session alive, as a WebSocket does not; a view of the site does."""
    settings.SESSION_ENGINE = "django.contrib.sessions.backends.db"
    settings.SESSION_SAVE_EVERY_REQUEST = True
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, f"{__name__}.noting_the_time"]
    client.force_login(django_user_model.objects.create_user("ann"))
    Session.objects.update(expire_date=timezone.now() + timedelta(hours=1))
    [before] = Session.objects.values()

    body = {"mode": "poll" if status == 200 else "none"}
    headers = {"Origin": "http://testserver"}
    answer = client.post("/notifications/stream/", body, content_type="application/json", headers=headers)

    assert answer.status_code == status
    assert not answer.cookies
    assert [before] == list(Session.objects.values())
    client.get("/notifications/live/")
    assert [before] != list(Session.objects.values())


def giving_another_key(get_response):
    """Change the session's key, as a middleware does that rotates it every so often."""

    def middleware(request):
        request.session.cycle_key()
        return get_response(request)

    return middleware


@pytest.mark.django_db(transaction=True)
def test_a_session_that_gets_another_key_is_kept(live_redis, client, settings, django_user_model):
    """The row with its old key is gone by then."""
    settings.SESSION_ENGINE = "django.contrib.sessions.backends.db"
    client.force_login(django_user_model.objects.create_user("ann"))
    before = client.session.session_key
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, f"{__name__}.giving_another_key"]

    client.post("/notifications/stream/", {"mode": "poll"}, content_type="application/json")

    [session] = Session.objects.all()
    assert client.cookies["sessionid"].value == session.session_key != before
    assert session.get_decoded()["_auth_user_id"]
