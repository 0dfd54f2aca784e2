"""The HTTP transport on real servers: streams, polls, refusals, limits, and what ends a response."""

import asyncio
import time

import pytest

from tests.clients import RawRedis
from tests.http_client import EventStream, open_stream, poll, post, session
from tests.waiting import scaled


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


async def test_a_poll_waits_for_a_message(site, server, raw):
    """It is answered when there is one, and has the answers as well."""
    user = site.add_user()
    upload = f"upload:{user.new_upload()}"
    polling = asyncio.create_task(poll(server, user, upload, wait=25))
    first = await poll(server, user, upload)
    assert actions(first) == ["auth_success", "subscribed"]
    await asyncio.sleep(0.3)
    began = time.monotonic()
    raw.publish(upload, '{"n":1}')

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
