"""Redis, listener and web server as processes; what any program publishes reaches the right tabs and no others."""

import asyncio
import json
import subprocess
from contextlib import AsyncExitStack
from functools import partial
from uuid import uuid4

import pytest

import notifications
from notifications import messages
from project.local_redis import find_client
from tests.clients import RETRY_CODES, OldClient, RawRedis, message_of, open_tab
from tests.conftest import point_to
from tests.faults import (
    hostile_payloads,
    kill_type,
    never_reading,
    redis_down,
    restart_redis,
    wait_until_all_subscribed,
)
from tests.processes import Site
from tests.waiting import scaled, wait_for


@pytest.fixture
def raw(site):
    with RawRedis(site.redis.port) as redis:
        yield redis


NOW = "2026-07-01T12:00:00+00:00"


def typed_messages(upload_id: str) -> dict[str, dict]:
    """One valid message of each type, as the old client wants them."""
    batch_id = str(uuid4())
    return {
        "upload_progress": {
            "payload": {
                "upload_id": upload_id,
                "status": "analyzing",
                "stage": "vision_analysis",
                "progress_percent": 40,
                "message": "Frame 4 of 10 – läuft",
                "error_message": None,
                "description_audit_score": None,
            },
            "timestamp": NOW,
        },
        "upload_completed": {"upload_id": upload_id, "description": "A cat", "audit_score": 93, "timestamp": NOW},
        "upload_failed": {"upload_id": upload_id, "error_message": "no frames", "timestamp": NOW},
        "batch_progress": {
            "payload": {
                "batch_id": batch_id,
                "status": "analyzing",
                "total": 3,
                "processed": 2,
                "successful": 1,
                "failed": 1,
                "progress_percentage": 66.7,
            },
            "timestamp": NOW,
        },
        "file_progress": {
            "payload": {
                "batch_id": batch_id,
                "upload_id": upload_id,
                "file_name": "cat.jpg",
                "file_size": 123,
                "progress_percentage": 50,
                "status": "processing",
            },
            "timestamp": NOW,
        },
        "notice": {"level": "info", "title": "Hello", "body": None, "url": "/orders/7", "timestamp": NOW},
    }


def of_upload(action: str) -> bool:
    return action.startswith("upload_")


async def test_each_typed_message_reaches_exactly_the_right_tabs_verbatim(site, server, raw):
    """A raw publish of every message type reaches both tabs of its user or upload to the byte, and nobody else's."""
    alice, bob = site.add_user(), site.add_user()
    upload_id = alice.new_upload()
    async with (
        open_tab(server, alice) as first,
        open_tab(server, session_of=alice) as second,
        open_tab(server, alice) as elsewhere,
        open_tab(server, bob) as stranger,
    ):
        await first.watch(upload_id)
        await second.subscribe(f"upload:{upload_id}")

        for action, fields in typed_messages(upload_id).items():
            # Spacing and order of keys that no encoder of ours would choose.
            payload = json.dumps({**fields, "action": action}, indent=1, ensure_ascii=False)
            raw.publish(f"upload:{upload_id}" if of_upload(action) else alice.channel, payload)
            await first.expect_message(payload)
            await second.expect_message(payload)
            if not of_upload(action):
                await elsewhere.expect_message(payload)

        await elsewhere.expect_nothing_but(raw, alice)
        await stranger.expect_nothing_but(raw, bob)


async def test_a_user_who_may_not_see_an_upload_never_gets_a_byte_of_it(site, server, raw):
    """Whatever a stranger sends to get at an upload, the only answer is ``forbidden``, and no message comes."""
    alice, mallory = site.add_user(), site.add_user()
    upload_id = alice.new_upload()
    async with open_tab(server, alice) as owner, open_tab(server, mallory) as stranger:
        await owner.watch(upload_id)
        for frame in (
            {"action": "subscribe_upload", "upload_id": upload_id},
            {"action": "subscribe_upload", "upload_id": upload_id, "since": "last"},
            {"action": "subscribe", "topic": f"upload:{upload_id}"},
            {"action": "subscribe", "topic": f"upload:{upload_id}", "grant": "eyJ1c2VyIjoiMSJ9:1:forged"},
            {"action": "subscribe", "topic": f"upload:{upload_id}", "grant": alice.grant(f"upload:{upload_id}")},
            {"action": "subscribe", "topic": f"user:{alice.pk}"},
        ):
            await stranger.send(frame)
            topic = frame.get("topic", f"upload:{upload_id}")
            await stranger.expect("error", code="forbidden", topic=topic)

        for n in range(20):
            raw.publish(f"upload:{upload_id}", f'{{"n":{n}}}')
            raw.publish(alice.channel, f'{{"own":{n}}}')

        await stranger.expect_nothing_but(raw, mallory)
        await owner.expect_message('{"n":0}')


async def test_hostile_payloads_hurt_nobody(site, server, raw):
    """After 1,000 hostile publishes the good message arrives, and of them only the objects did, as opaque text."""
    alice = site.add_user()
    upload_id = alice.new_upload()
    hostile = hostile_payloads(1000)
    async with open_tab(server, alice) as tab:
        await tab.watch(upload_id)

        raw.publish_all((f"upload:{upload_id}", each.payload) for each in hostile)
        raw.publish(f"upload:{upload_id}", '{"good":true}')

        for each in hostile:
            if each.arrives is not None:
                await tab.expect_message(each.arrives)
        await tab.expect_message('{"good":true}')


async def test_hostile_channels_hurt_nobody(site, server, raw):
    """Channel names that are no topics are passed over, and the next good message arrives."""
    alice = site.add_user()
    async with open_tab(server, alice) as tab:
        for channel in (b"user:", b"upload:\xff\xfe", b"upload:" + b"x" * 201, b"upload:" + b"\n" * 300, b"order:bad"):
            assert raw.publish(channel, '{"n":0}') == 1  # the listener got it
        await tab.expect_nothing_but(raw, alice)


IDS = {
    "uuid": "{user}-1c7a-4f0e-9d2b-3f9c1a2b4c5d",
    "integer": "{user}42",
    "e-mail": "{user}@example.com",
    "unicode": "{user} Größe: 😀 日本 / ?#%",
    "colons": "{user}:a::b:",
    "quotes": "{user}\"'\\{{}}",
    "longest": "{user}" + "ж" * 192,
    "hash-alike": "{user}." + "a" * 64,
}


@pytest.mark.parametrize("template", IDS.values(), ids=IDS.keys())
async def test_ids_of_all_sorts_are_carried(site, server, raw, template):
    """An id of 1 to 200 characters of any sort names one topic, from the raw channel to the tab."""
    alice = site.add_user()
    topic = f"upload:{template.format(user=alice.username)}"
    async with open_tab(server, alice) as tab:
        await tab.subscribe(topic)

        raw.publish(topic, '{"n":1}')
        raw.publish(topic[:-1], '{"n":2}')  # its neighbour is another topic

        await tab.expect_message('{"n":1}')
        await tab.expect_nothing_but(raw, alice)


async def test_clean_id_makes_one_topic_of_all_spellings(site, server, raw):
    """``CLEAN_ID`` is applied to raw channels and subscriptions alike."""
    alice = site.add_user()
    async with open_tab(server, alice) as tab:
        await tab.send({"action": "subscribe", "topic": f"order:{alice.username}ABC"})
        await tab.expect("subscribed", topic=f"order:{alice.username}abc")

        raw.publish(f"order:{alice.username}AbC", '{"n":1}')

        await tab.expect_message('{"n":1}')


async def test_redis_cli_reaches_the_tab(site, server):
    """The line of the documentation, typed into the real ``redis-cli``, makes the message appear."""
    program = find_client()
    if program is None:
        pytest.skip("no redis-cli, no valkey-cli")
    alice = site.add_user()
    payload = '{"action":"notice","level":"info","title":"Grüße","body":null,"url":null,"timestamp":"now"}'
    async with open_tab(server, alice) as tab:
        command = [program, "-p", str(site.redis.port), "PUBLISH", alice.channel, payload]
        done = await asyncio.to_thread(
            subprocess.run, command, capture_output=True, text=True, timeout=scaled(), check=True
        )

        assert done.stdout.split()[-1] == "1", done
        await tab.expect_message(payload)


async def test_the_publish_functions_reach_the_tabs(site, server, settings):
    """``publish_to_user`` and ``publish_progress``, sync and async, with typed messages and mappings, reach the tab."""
    point_to(settings, site.redis.url)
    alice = site.add_user()
    upload_id = alice.new_upload()
    completed = messages.UploadCompleted(upload_id=upload_id, description="A cat", audit_score=93)
    async with open_tab(server, alice) as tab:
        await tab.watch(upload_id)

        await asyncio.to_thread(notifications.publish_to_user, alice, messages.Notice(title="Hi", url="/x"))
        await tab.expect("notice", title="Hi", level="info", body=None, url="/x")
        await notifications.apublish_to_user(alice.pk, {"action": "n", "n": 2})
        await tab.expect("n", n=2)
        await asyncio.to_thread(notifications.publish_progress, upload_id, completed)
        await tab.expect("upload_completed", upload_id=upload_id, audit_score=93, description="A cat")
        await notifications.apublish_progress(upload_id, {"action": "n", "n": 4})
        await tab.expect("n", n=4)
        await notifications.apublish(f"order:{alice.username}", {"action": "n", "n": 5})  # not subscribed
        await notifications.apublish(f"upload:{upload_id}", {"action": "n", "n": 6})
        await tab.expect("n", n=6)


async def test_the_order_of_every_topic_is_kept(site, server, raw):
    """Of 5,000 messages published in one burst on five topics, a tab gets each topic's in the order of publishing."""
    alice = site.add_user()
    orders = [f"order:{alice.username}-{n}" for n in range(5)]
    burst = [(orders[n % 5], f'{{"order":{n % 5},"n":{n}}}') for n in range(5000)]
    async with open_tab(server, alice) as tab:
        for order in orders:
            await tab.subscribe(order)

        raw.publish_all(burst)

        got: dict[int, list[int]] = {n: [] for n in range(5)}
        for _ in burst:
            frame = json.loads(await tab.next_text())
            got[frame["order"]].append(frame["n"])
        assert got == {start: list(range(start, 5000, 5)) for start in range(5)}


async def test_a_tab_that_never_reads_delays_no_other(site, server, raw):
    """While one tab reads nothing, more is published than its connection holds, and another tab gets all of it."""
    alice = site.add_user()
    payloads = [json.dumps({"n": n, "fill": "x" * 30_000}) for n in range(400)]  # 12 MB
    async with never_reading(server, alice), open_tab(server, alice) as tab:
        for payload in payloads:
            raw.publish(alice.channel, payload)
            await tab.expect_message(payload)


async def test_many_tabs_of_many_users_get_each_their_own(site, server, raw):
    """Thirty tabs of ten users: each gets what its user and its uploads were sent, once and in order."""
    users = [site.add_user() for _ in range(10)]
    uploads = {user: user.new_upload() for user in users}
    async with AsyncExitStack() as stack:
        tabs = [(user, await stack.enter_async_context(open_tab(server, user))) for user in users for _ in range(3)]
        for user, tab in tabs:
            await tab.watch(uploads[user])

        for n in range(20):
            raw.publish_all((user.channel, f'{{"user":{user.pk},"n":{n}}}') for user in users)
            raw.publish_all((f"upload:{uploads[user]}", f'{{"upload":{user.pk},"n":{n}}}') for user in users)

        for user, tab in tabs:
            got: dict[str, list[int]] = {"user": [], "upload": []}  # order is promised within a topic
            for _ in range(40):
                message = json.loads(message_of(await tab.next_text()))
                (kind,) = message.keys() - {"n"}
                assert message[kind] == user.pk
                got[kind].append(message["n"])
            assert got == {"user": list(range(20)), "upload": list(range(20))}
        for user in users:
            raw.publish(user.channel, '{"end":1}')
        for _, tab in tabs:
            await tab.expect_message('{"end":1}')


# The client of the replaced service.


async def test_the_old_client_works_unchanged(site, server, raw):
    """It sends ``subscribe_upload`` right behind its auth frame and accepts every message of the old protocol."""
    alice = site.add_user()
    upload_id = alice.new_upload()
    async with OldClient(server, lambda: alice.token, upload_id, ping_interval=0.05) as client:
        await client.wait_until_seen("auth_success")
        await client.wait_until_seen("pong")  # sent behind subscribe_upload, so that is done

        published = typed_messages(upload_id)
        del published["notice"]  # not of the old protocol
        for action, fields in published.items():
            raw.publish(
                f"upload:{upload_id}" if of_upload(action) else alice.channel, json.dumps({"action": action, **fields})
            )

        for action, fields in published.items():
            (frame,) = await client.wait_until_seen(action)
            assert {"action": action, **fields}.items() <= frame.items()
        assert client.seen("auth_success")[0]["user_id"] == str(alice.pk)
        assert client.closes == []


async def test_the_old_client_accepts_what_the_publish_functions_write(site, server, settings):
    """The typed messages pass the old client's schemas as they come out of ``messages.py``."""
    point_to(settings, site.redis.url)
    alice = site.add_user()
    upload_id = alice.new_upload()
    progress = messages.UploadProgressPayload(
        upload_id=upload_id, status="pending", stage="queued", progress_percent=0, message=""
    )
    batch = messages.BatchProgressPayload(
        batch_id=uuid4(), status="completed", total=3, processed=3, successful=3, failed=0, progress_percentage=100
    )
    file = messages.FileProgressPayload(
        batch_id=uuid4(), upload_id=upload_id, file_name="ä", file_size=0, progress_percentage=1, status="processing"
    )
    async with OldClient(server, lambda: alice.token, upload_id, ping_interval=0.05) as client:
        await client.wait_until_seen("pong")

        for message in (
            messages.UploadProgress(payload=progress),
            messages.UploadCompleted(upload_id=upload_id, description="", audit_score=0),
            messages.UploadFailed(upload_id=upload_id, error_message=""),
        ):
            await notifications.apublish_progress(upload_id, message)
        await notifications.apublish_to_user(alice.pk, messages.BatchProgress(payload=batch))
        await notifications.apublish_to_user(alice.pk, messages.FileProgress(payload=file))

        for action in ("upload_progress", "upload_completed", "upload_failed", "batch_progress", "file_progress"):
            assert len(await client.wait_until_seen(action)) == 1


async def test_the_old_client_stays_away_when_its_token_is_refused(site, server):
    """A refused token closes with 4003, after an ``auth_error`` that it understands; it does not come back."""
    async with OldClient(server, lambda: "expired") as client:
        await client.wait_until_seen("auth_error")
        await client.wait_until_gone()

        assert client.closes == [4003]


async def test_the_old_client_comes_back_when_the_server_restarts(new_site, server_kind):
    """However the web server ends, the old client reconnects and is served again."""
    own_server, _ = await asyncio.to_thread(new_site.start_all, server_kind)
    alice = new_site.add_user()
    upload_id = alice.new_upload()
    async with OldClient(own_server, lambda: alice.token, upload_id, ping_interval=0.05) as client:
        await client.wait_until_seen("pong")
        own_server.terminate()
        await asyncio.to_thread(new_site.start_server, server_kind, own_server.port)
        await client.wait_until_seen("auth_success", 2)
        pongs = len(client.seen("pong"))
        await client.wait_until_seen("pong", pongs + 2)

        with RawRedis(new_site.redis.port) as raw:
            raw.publish(
                f"upload:{upload_id}",
                json.dumps({"action": "upload_failed", **typed_messages(upload_id)["upload_failed"]}),
            )

        await client.wait_until_seen("upload_failed")
        assert not set(client.closes) & OldClient.STAYS_AWAY


# Redis fails under open sockets.


def cut_everybody_off(site: Site) -> None:
    client = site.client()
    assert kill_type(client, "pubsub") >= 2  # the listener's connection and the web server's
    kill_type(client, "normal")


async def test_open_sockets_survive_redis(new_site, server_kind):
    """
    Whenever Redis was restarted or cut everybody off, open tabs get what is published afterwards.

    After a restart they are first told that something may be missing, topic by topic: Redis may have lost the end of
    its history.
    """
    own_server, listener = await asyncio.to_thread(new_site.start_all, server_kind)
    alice, bob = new_site.add_user(), new_site.add_user()
    upload_id = alice.new_upload()
    groups = [f"user.{alice.pk}", f"user.{bob.pk}", f"upload.{upload_id}"]

    def publish(round_: str) -> None:
        with RawRedis(new_site.redis.port) as raw:
            raw.publish(alice.channel, f'{{"alice":"{round_}"}}')
            raw.publish(f"upload:{upload_id}", f'{{"upload":"{round_}"}}')
            raw.publish(bob.channel, f'{{"bob":"{round_}"}}')

    async with open_tab(own_server, alice) as first, open_tab(own_server, session_of=bob) as second:

        async def expect(round_: str, *, told: bool) -> None:
            for tab, wanted in (
                (first, {f"user:{alice.pk}": "alice", f"upload:{upload_id}": "upload"}),
                (second, {f"user:{bob.pk}": "bob"}),
            ):
                got: dict[str, list[str]] = {topic: [] for topic in wanted}  # order is promised within a topic only
                for _ in range(len(wanted) * (1 + told)):
                    text = await tab.next_text()
                    frame = json.loads(text)
                    topic = frame["_meta"]["topic"] if "_meta" in frame else frame["topic"]
                    got[topic].append(message_of(text) if "_meta" in frame else f"recovered {frame['recovered']}")
                assert got == {
                    topic: ["recovered False"] * told + [f'{{"{name}":"{round_}"}}'] for topic, name in wanted.items()
                }

        await first.watch(upload_id)
        publish("before")  # the listener has a connection to lose for sending, too
        await expect("before", told=False)
        for round_, break_redis in {
            "restarted with its data": partial(restart_redis, new_site, keep_data=True),
            "restarted empty": partial(restart_redis, new_site, keep_data=False),
            "cut": partial(cut_everybody_off, new_site),
        }.items():
            said = listener.mark()
            await asyncio.to_thread(break_redis)
            await asyncio.to_thread(listener.wait_for_line, "listening on", 20, said)
            await asyncio.to_thread(wait_until_all_subscribed, new_site.client(), *groups)

            publish(round_)

            await expect(round_, told=round_ != "cut")
            async with open_tab(own_server, alice) as newcomer:
                await newcomer.watch(upload_id)


async def test_a_socket_that_opens_while_redis_is_down_is_told_to_come_back(new_site, server_kind):
    """Without Redis no group can be joined: the socket is closed with a code for retrying, not kept open in vain."""
    own_server = new_site.start_server(server_kind)
    alice = new_site.add_user()
    with redis_down(new_site.redis):
        async with open_tab(own_server) as tab:
            await tab.send({"type": "auth", "token": alice.token})
            await tab.expect_closed(*RETRY_CODES)
    wait_for(lambda: new_site.client().ping())
    async with open_tab(own_server, alice):
        pass
