"""The wire protocol on real sockets of Daphne and uvicorn: authentication, permissions, close codes."""

import asyncio
import json
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
from websockets.exceptions import ConnectionClosed

from notifications.connection.limits import BURST, RATE
from tests.clients import RawRedis, expect_refused, open_tab
from tests.conftest import AUTH_TIMEOUT, SERVERS
from tests.processes import WebServer
from tests.waiting import scaled, wait_for


@pytest.fixture
def raw(site):
    with RawRedis(site.redis.port) as redis:
        yield redis


# Tokens.


async def test_the_user_id_is_always_a_string(site, server):
    """``auth_success`` carries the user's id as text, with ``id`` and ``recovered`` present."""
    alice = site.add_user()
    async with open_tab(server) as tab:
        frame = await tab.authenticate(alice)

        assert frame.keys() == {"action", "user_id", "id", "recovered"}
        assert frame["recovered"] is None


@pytest.mark.parametrize("origin", [None, "http://evil.example:81"], ids=["no origin", "foreign origin"])
async def test_a_token_needs_an_allowed_origin_or_none(site, server, origin):
    """A program without an ``Origin`` authenticates by token; a page of another host is refused before that."""
    if origin is None:
        async with open_tab(server, site.add_user(), origin=None):
            pass
    else:
        await expect_refused(server, origin=origin)


async def test_no_credentials_in_time_is_4001(server):
    """A socket that says nothing is told why and closed after ``AUTH_TIMEOUT``."""
    began = time.monotonic()
    async with open_tab(server) as tab:
        (frame,) = await tab.expect_closed(4001)

        assert frame["action"] == "auth_error"
        assert time.monotonic() - began >= AUTH_TIMEOUT


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        ('{"action":"ping"}', 4002),
        ("nonsense", 4004),
        ("", 4004),
        (b"\x00", 4004),
    ],
    ids=repr,
)
async def test_a_first_frame_that_is_no_auth_frame_is_4002_and_no_json_4004(server, frame, code):
    """Whatever it is, it is answered with ``auth_error`` and the end; the codes are those of the replaced service."""
    async with open_tab(server) as tab:
        await tab.send(frame)
        (answer,) = await tab.expect_closed(code)

        assert answer["action"] == "auth_error"


def forged(token: str) -> str:
    return token[:-1] + ("A" if token[-1] != "A" else "B")


@pytest.mark.parametrize(
    "token",
    ["", "x", "\u0000", "é😀", "a:b:c", "x" * 16_000, "forged", "of inactive", "of nobody", "before a password change"],
    ids=str.__repr__,
)
async def test_invalid_credentials_are_4003(site, server, token):
    """A token that is forged, too old a password's, nobody's or an inactive user's opens nothing."""
    user = site.add_user(is_active=token != "of inactive")
    if token == "forged":
        token = forged(user.token)
    elif token == "of inactive":
        token = user.token
    elif token == "of nobody":
        token = user._replace(pk=10**9).token
    elif token == "before a password change":
        token = user._replace(password="md5$other$hash").token
    async with open_tab(server) as tab:
        await tab.send({"type": "auth", "token": token})
        (answer,) = await tab.expect_closed(4003)

        assert answer == {"action": "auth_error", "message": answer["message"]}


async def test_frames_behind_the_auth_frame_wait_for_it(site, server, raw):
    """
    Frames sent before ``auth_success`` are answered after it, in their order, and refused by nobody.

    Only the answer to a ping may come earlier than others: while the site works on one of them.
    """
    alice = site.add_user()
    uploads = [alice.new_upload() for _ in range(20)]
    async with open_tab(server) as tab:
        await tab.send({"type": "auth", "token": alice.token})
        for upload_id in uploads:
            await tab.send({"action": "subscribe_upload", "upload_id": upload_id})
        await tab.send({"action": "ping"})

        await tab.expect("auth_success")
        answers = [await tab.next_frame() for _ in range(len(uploads) + 1)]

    answers.remove({"action": "pong"})
    assert [(answer["action"], answer["topic"]) for answer in answers] == [
        ("subscribed", f"upload:{upload_id}") for upload_id in uploads
    ]


async def test_a_socket_renews_its_token(site, server, raw):
    """A second auth frame of the same user is confirmed and changes nothing else."""
    alice = site.add_user()
    upload_id = alice.new_upload()
    async with open_tab(server, alice) as tab:
        await tab.watch(upload_id)

        await tab.authenticate(alice)

        raw.publish(f"upload:{upload_id}", '{"n":1}')
        await tab.expect_message('{"n":1}')


@pytest.mark.parametrize("way", ["token", "session"])
async def test_a_socket_takes_no_other_users_token(site, server, way):
    """Another user's token, valid as it is, closes with 4003, on token and session sockets."""
    alice, bob = site.add_user(), site.add_user()
    who = {"token_of": alice} if way == "token" else {"session_of": alice}
    async with open_tab(server, **who) as tab:
        await tab.send({"type": "auth", "token": bob.token})
        (answer,) = await tab.expect_closed(4003)

        assert answer["action"] == "auth_error"


# Sessions and origins.


@pytest.mark.parametrize("origin", ["https://trusted.example", "https://a.wild.example", "https://a.b.wild.example"])
async def test_trusted_origins_may_use_the_session(site, server, origin):
    """``CSRF_TRUSTED_ORIGINS``, with and without a wildcard, opens session sockets to pages of other hosts."""
    async with open_tab(server, session_of=site.add_user(), origin=origin):
        pass


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "http://trusted.example",
        "https://trusted.example:444",
        "https://trusted.example.evil.example",
        "https://eviltrusted.example",
        "https://evilwild.example",
        "http://a.wild.example",
        "http://127.0.0.1",
        "https://127.0.0.1",
        "null",
        "nonsense",
        "http://",
    ],
)
async def test_other_origins_are_refused_before_accept(site, server, origin):
    """A cookie opens nothing to a page of another scheme, host or port, nor to ``null``."""
    # 400: Daphne's own answer to an Origin that is no URL.
    statuses = (400, 403) if origin in ("nonsense", "http://") else (403,)
    await expect_refused(server, *statuses, session_of=site.add_user(), origin=origin)


async def test_two_origins_are_refused(site, server):
    """A second ``Origin`` header smuggles nothing past the check."""
    headers = {"Origin": "https://evil.example"}
    await expect_refused(server, 400, 403, session_of=site.add_user(), headers=headers)  # 400: the servers' own answer


async def test_a_session_without_an_origin_needs_a_token(site, server):
    """Without ``Origin`` a cookie proves nothing: the socket waits for the auth frame like any other."""
    alice = site.add_user()
    async with open_tab(server, origin=None, headers={"Cookie": alice.cookie}) as tab:
        await tab.expect_closed(4001)
    async with open_tab(server, alice, origin=None, headers={"Cookie": alice.cookie}):
        pass


async def test_behind_a_proxy_the_own_origin_is_https(site, server):
    """With ``SECURE_PROXY_SSL_HEADER`` the proxy's word makes https the page's own scheme, and http a foreign one."""
    alice, behind = site.add_user(), {"X-Forwarded-Proto": "https"}
    async with open_tab(server, session_of=alice, origin=f"https://{server.address}", headers=behind):
        pass
    await expect_refused(server, session_of=alice, origin=f"http://{server.address}", headers=behind)


async def test_a_session_of_an_inactive_user_is_none(site, server):
    """A deactivated user's cookie leaves the socket anonymous: it waits for an auth frame and is closed."""
    mallory = site.add_user(is_active=False)
    async with open_tab(server, headers={"Cookie": mallory.cookie}) as tab:
        await tab.expect_closed(4001)


# Subscriptions.


async def test_subscribing_twice_delivers_once(site, server, raw):
    """Subscribing to what is joined is confirmed again and doubles nothing, however the frame is written."""
    alice = site.add_user()
    upload_id = alice.new_upload()
    async with open_tab(server, alice) as tab:
        await tab.watch(upload_id)
        await tab.watch(upload_id)
        await tab.subscribe(f"upload:{upload_id}")
        await tab.subscribe(f"user:{alice.pk}")

        raw.publish(f"upload:{upload_id}", '{"n":1}')
        raw.publish(alice.channel, '{"n":2}')

        await tab.expect_message('{"n":1}')
        await tab.expect_message('{"n":2}')
        await tab.expect_nothing_but(raw, alice)


async def test_unsubscribing_ends_delivery(site, server, raw):
    """After ``unsubscribed`` nothing of the topic comes; the other topics and other tabs are not touched."""
    alice = site.add_user()
    stopped, other = alice.new_upload(), alice.new_upload()
    async with open_tab(server, alice) as tab, open_tab(server, alice) as second:
        for upload_id in (stopped, other):
            await tab.watch(upload_id)
        await second.watch(stopped)

        await tab.send({"action": "unsubscribe_upload", "upload_id": stopped})
        await tab.expect("unsubscribed", topic=f"upload:{stopped}")
        await tab.send({"action": "unsubscribe", "topic": f"upload:{stopped}"})  # again: no error
        await tab.expect("unsubscribed", topic=f"upload:{stopped}")
        raw.publish(f"upload:{stopped}", '{"n":1}')
        raw.publish(f"upload:{other}", '{"n":2}')

        await tab.expect_message('{"n":2}')
        await second.expect_message('{"n":1}')
        await tab.watch(stopped)  # and back again, to what is true now
        await tab.expect_message('{"n":1}')
        raw.publish(f"upload:{stopped}", '{"n":3}')
        await tab.expect_message('{"n":3}')


async def test_a_socket_keeps_its_own_topic(site, server, raw):
    """The user's own topic cannot be left."""
    alice = site.add_user()
    async with open_tab(server, alice) as tab:
        await tab.send({"action": "unsubscribe", "topic": f"user:{alice.pk}"})
        await tab.expect("error", code="forbidden")

        await tab.expect_nothing_but(raw, alice)


@pytest.mark.parametrize("kind", ["upload", "order", "closed", "broken", "user"])
async def test_nobody_reads_what_they_may_not(site, server, raw, kind):
    """Refused by sync and async ``AUTHORIZE``, by none, by one that raises: the same answer, and never a message."""
    alice, mallory = site.add_user(), site.add_user()
    topic = f"{kind}:{alice.pk if kind == 'user' else alice.username}"
    async with open_tab(server, mallory) as tab:
        await tab.send({"action": "subscribe", "topic": topic})
        answer = await tab.expect("error", code="forbidden", topic=topic)

        assert answer["message"] == "no such topic, or it is not yours to read"
        raw.publish(topic, '{"n":1}')
        await tab.expect_nothing_but(raw, mallory)


async def test_an_async_authorize_lets_in(site, server, raw):
    """A coroutine function as ``AUTHORIZE`` is awaited."""
    alice = site.add_user()
    async with open_tab(server, alice) as tab:
        await tab.subscribe(f"order:{alice.username}7")

        raw.publish(f"order:{alice.username}7", '{"n":1}')

        await tab.expect_message('{"n":1}')


@pytest.mark.parametrize("kind", ["upload", "closed"])
async def test_a_grant_opens_its_topic_to_its_user(site, server, raw, kind):
    """What the server signed opens the topic whatever ``AUTHORIZE`` says; another user or topic gets nothing of it."""
    alice, mallory = site.add_user(), site.add_user()
    topic = f"{kind}:granted {mallory.username}"
    grant = alice.grant(topic)
    async with open_tab(server, alice) as tab, open_tab(server, mallory) as thief:
        await tab.subscribe(topic, grant=grant)
        await tab.send({"action": "subscribe", "topic": f"{topic}2", "grant": grant})
        await tab.expect("error", code="forbidden", topic=f"{topic}2")
        for stolen in (grant, forged(grant), ""):
            await thief.send({"action": "subscribe", "topic": f"closed:granted {alice.username}", "grant": stolen})
            await thief.expect("error", code="forbidden")

        raw.publish(topic, '{"n":1}')

        await tab.expect_message('{"n":1}')
        await thief.expect_nothing_but(raw, mallory)


@pytest.mark.slow
async def test_a_slow_authorize_delays_nobody_and_opens_nothing(site, shared_site, raw):
    """While ``AUTHORIZE`` keeps a socket waiting its messages and others' come; after five seconds nobody knows."""

    async def prove(server: WebServer) -> None:
        alice, bob = site.add_user(), site.add_user()
        async with open_tab(server, alice) as waiting, open_tab(server, bob) as other:
            began = time.monotonic()
            await waiting.send({"action": "subscribe", "topic": "slow:1"})
            for n in range(3):
                raw.publish(alice.channel, f'{{"n":{n}}}')
                raw.publish(bob.channel, f'{{"n":{n}}}')
                await waiting.expect_message(f'{{"n":{n}}}')
                await other.expect_message(f'{{"n":{n}}}')
            await other.watch(bob.new_upload())
            assert time.monotonic() - began < 4, "they waited for it"

            await waiting.expect("error", code="unavailable", topic="slow:1")
            raw.publish("slow:1", '{"n":9}')
            await waiting.expect_nothing_but(raw, alice)

    await asyncio.gather(*map(prove, shared_site[1].values()))


async def test_a_socket_has_at_most_a_hundred_subscriptions(site, server, raw):
    """The 101st is refused with ``too_many_subscriptions``; the others live on, and leaving one makes room."""
    alice = site.add_user()
    uploads = [alice.new_upload() for _ in range(101)]
    async with open_tab(server, alice) as tab:
        for upload_id in uploads[:100]:
            await tab.send({"action": "subscribe_upload", "upload_id": upload_id})
        for upload_id in uploads[:100]:
            await tab.expect("subscribed", topic=f"upload:{upload_id}")

        await tab.send({"action": "subscribe_upload", "upload_id": uploads[100]})
        await tab.expect("error", code="too_many_subscriptions", topic=f"upload:{uploads[100]}")
        await tab.watch(uploads[0])  # which is joined

        raw.publish(f"upload:{uploads[100]}", '{"n":1}')
        raw.publish(f"upload:{uploads[99]}", '{"n":2}')
        await tab.expect_message('{"n":2}')
        await tab.send({"action": "unsubscribe_upload", "upload_id": uploads[0]})
        await tab.expect("unsubscribed")
        await tab.watch(uploads[100])


async def test_a_site_says_how_many_subscriptions_a_socket_has(new_site):
    """``MAX_SUBSCRIPTIONS`` is the number of topics beside the user's own."""
    new_site.settings = {"NOTIFICATIONS": {"MAX_SUBSCRIPTIONS": 2}}
    server, alice = new_site.start_server("uvicorn"), new_site.add_user()
    async with open_tab(server, alice) as tab:
        for _ in range(2):
            await tab.watch(alice.new_upload())

        third = alice.new_upload()
        await tab.send({"action": "subscribe_upload", "upload_id": third})
        answer = await tab.expect("error", code="too_many_subscriptions", topic=f"upload:{third}")
        assert "at most 2" in answer["message"]


@pytest.mark.parametrize("ending", ["close", "cut"])
async def test_a_socket_that_ends_leaves_nothing_in_redis(site, server, raw, ending):
    """When the last tab goes, politely or not, its groups and its own channel are unsubscribed."""
    alice = site.add_user()
    upload_id = alice.new_upload()
    client = site.client()

    def subscribed() -> set[bytes]:
        return set(client.pubsub_channels("asgi*"))

    before = subscribed()
    async with open_tab(server, alice) as tab:
        await tab.watch(upload_id)
        assert {f"asgi__group__user.{alice.pk}".encode(), f"asgi__group__upload.{upload_id}".encode()} < subscribed()
        joined = subscribed() - before
        assert len(joined) == 3
        if ending == "cut":
            tab.connection.transport.abort()

    wait_for(lambda: not joined & subscribed(), what="the layer unsubscribes")


# Frames.


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        ("", "invalid_message"),
        (b'{"action":"ping"}', "invalid_message"),
        ('{"action":"subscribe","topic":"order:bad"}', "invalid_message"),
        ('{"action":"subscribe","topic":"upload:\\ud800"}', "invalid_message"),
        ("[" * 4000, "invalid_message"),
        (json.dumps({"action": "ping", "fill": "x" * 4096}), "invalid_message"),
        ("x" * 16_000, "invalid_message"),
        ('{"action":"websocket_disconnect"}', "unknown_action"),
    ],
    ids=lambda value: repr(value[:40]),
)
async def test_a_frame_that_makes_no_sense_is_an_error_and_the_socket_lives(site, server, raw, frame, code):
    """It is answered with an ``error`` frame of that code and a sentence; what comes next is served."""
    alice = site.add_user()
    async with open_tab(server, alice) as tab:
        await tab.send(frame)
        answer = await tab.expect("error", code=code)

        assert answer["message"]
        await tab.send({"action": "ping", "unknown": "keys are ignored"})
        await tab.expect("pong")
        await tab.expect_nothing_but(raw, alice)


async def test_a_jwt_with_many_claims_fits(site, server):
    """An auth frame may have up to 16 KiB: a long token is judged, not refused for its size."""
    async with open_tab(server) as tab:
        await tab.send({"type": "auth", "token": "x" * 16_000})
        await tab.expect_closed(4003)


async def test_repeated_nonsense_is_4004(site, server):
    """Ten frames in a row that make no sense end the socket; nine do not, however often."""
    async with open_tab(server, site.add_user()) as tab:
        for _ in range(2):
            for _ in range(9):
                await tab.send("nonsense")
                await tab.expect("error")
            await tab.send({"action": "ping"})
            await tab.expect("pong")
        for _ in range(9):
            await tab.send("nonsense")
            await tab.expect("error")
        await tab.send("nonsense")
        (answer,) = await tab.expect_closed(4004)

        assert answer["action"] == "error"


async def test_repeated_haste_is_4100(site, server, raw):
    """Beyond the bucket frames are refused, which is said once, and those who go on are closed with 4100."""
    alice = site.add_user()
    async with open_tab(server, alice) as tab, open_tab(server, alice) as other:
        reading, began = asyncio.create_task(tab.expect_closed(4100)), time.monotonic()
        with suppress(ConnectionClosed):
            while not reading.done():
                await tab.send({"action": "ping"})
                # Who has sent much more than the server reads, and does not read for a second, never sees the code.
                await asyncio.sleep(0.001)
        answers, took = await reading, time.monotonic() - began

        errors = [answer for answer in answers if answer["action"] == "error"]
        assert [error["code"] for error in errors] == ["rate_limited"]
        assert sum(answer["action"] == "pong" for answer in answers) <= BURST + RATE * took + 1
        await other.expect_nothing_but(raw, alice)


async def test_a_burst_of_a_page_that_opens_is_allowed(site, server):
    """A hundred subscriptions and some pings at once are no haste."""
    alice = site.add_user()
    async with open_tab(server, alice) as tab:
        for _ in range(150):
            await tab.send({"action": "ping"})
        for _ in range(150):
            await tab.expect("pong")


# Heartbeat, on servers of its own.


@pytest.fixture(scope="module")
def beating_servers(site):
    """
    Web servers of the same site with a quick heartbeat, by kind.

    Whoever says nothing for two beats is closed, and on a busy machine a test may not run for half a second.
    """
    before = site.settings
    site.settings = {**before, "NOTIFICATIONS": {**before["NOTIFICATIONS"], "HEARTBEAT_INTERVAL": scaled(0.6)}}
    with ThreadPoolExecutor() as threads:
        servers = {kind: threads.submit(site.start_server, kind) for kind in SERVERS}
    site.settings = before
    return {kind: server.result() for kind, server in servers.items()}


@pytest.fixture
def beating_server(server_kind, beating_servers) -> WebServer:
    return beating_servers[server_kind]


async def test_the_server_pings_and_keeps_sockets_that_answer(site, beating_server, raw):
    """A browser that answers the numbered pings stays connected."""
    alice = site.add_user()
    async with open_tab(beating_server, alice) as tab:
        while len(tab.pings) < 4:
            raw.publish(alice.channel, '{"n":1}')
            await tab.expect_message('{"n":1}')
            await asyncio.sleep(0.02)

        numbers = [ping["n"] for ping in tab.pings]
        assert numbers == sorted(set(numbers))


async def test_any_frame_is_a_sign_of_life(site, beating_server):
    """A client of the old protocol does not answer pings; its own pings keep it connected."""
    async with open_tab(beating_server, site.add_user(), answers_pings=False) as tab:
        while len(tab.pings) < 5:
            await tab.send({"action": "ping"})
            await tab.expect("pong")
            await asyncio.sleep(0.05)


async def test_a_browser_that_never_answers_is_closed(site, beating_server):
    """Pings that nobody answers end the socket with 4100, so that a live browser would come back."""
    async with open_tab(beating_server, site.add_user(), answers_pings=False) as tab:
        began = time.monotonic()
        assert await tab.expect_closed(4100) == []

        assert len(tab.pings) in (1, 2)
        assert time.monotonic() - began < scaled(5)
