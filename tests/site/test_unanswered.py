"""Subscriptions that cannot be decided yet, on real servers: AUTHORIZE is slow, or fails."""

import asyncio
from contextlib import AsyncExitStack
from types import SimpleNamespace

import pytest

import notifications
from notifications.access.authentication import MAX_TOKEN_THREADS
from notifications.access.authorization import MAX_THREADS
from notifications.access.control import channel
from notifications.access.credentials import credentials_of
from notifications.access.revocation import Access
from notifications.connection.limits import MAX_SUBSCRIPTIONS
from tests.clients import OldClient, open_tab
from tests.conftest import SERVERS, point_to
from tests.processes import LAYERS, Site
from tests.waiting import await_for, scaled

HERE = "tests.testsite.strange_permissions"
TOPICS = {
    "upload": {"AUTHORIZE": f"{HERE}.ask_what_may_be_away"},
    "gated": {"AUTHORIZE": f"{HERE}.wait_at_gate"},
    "dead": {"AUTHORIZE": f"{HERE}.wait_at_gate"},
    "slow": {"AUTHORIZE": f"{HERE}.take_a_while"},
    "order": {"AUTHORIZE": "tests.testsite.permissions.may_watch_order"},
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return tmp_path_factory.mktemp("gates")


@pytest.fixture(scope="module")
def site(redis_program, migrated_database, tmp_path_factory, files):
    settings = {
        "CHANNEL_LAYER_BACKEND": LAYERS["ours"],
        "AWAY": str(files / "away"),
        "AUTHORIZE_TIMEOUT": 1.0,
        "NOTIFICATIONS": {"TOPICS": TOPICS, "MAX_CONNECTIONS_PER_USER": 0},
    }
    with Site(tmp_path_factory.mktemp("unanswered"), migrated_database, settings=settings) as site:
        site.start_listener()
        yield site


@pytest.fixture(scope="module", params=SERVERS)
def server(request, site):
    return site.start_server(request.param)


@pytest.fixture
def away(files):
    """Let what AUTHORIZE of uploads asks be away, until the test calls ``back``."""
    file = files / "away"
    file.touch()
    yield file
    file.unlink(missing_ok=True)


@pytest.fixture
def here(site, settings):
    """Let this process tell the site's processes."""
    point_to(settings, site.redis.url)
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "TOPICS": TOPICS}


class Gate:
    """A file at which an AUTHORIZE waits."""

    def __init__(self, files, name):
        self.name = name
        self.file = files / name

    def was_asked(self):
        return self.file.with_suffix(".asked").exists()

    def refuse(self):
        self.file.with_suffix(".no").touch()

    def open(self):
        self.file.touch()


@pytest.fixture
def new_gate(files, request):
    gates = []

    def make():
        gates.append(Gate(files, f"{abs(hash(request.node.name))}-{len(gates)}"))
        return gates[-1]

    yield make
    for gate in gates:
        gate.open()


async def test_who_may_is_let_in_when_somebody_can_say(site, server, here, away):
    """
    The frame is answered at once with an error that is no no, and others go on; once AUTHORIZE can say, the socket is
    subscribed, or told that it is not, without having asked again.
    """
    alice = site.add_user()
    mine, theirs = alice.new_upload(), "of somebody else"
    mark = server.mark()
    async with open_tab(server, alice) as tab:
        for upload in (mine, theirs):
            await tab.send({"action": "subscribe_upload", "upload_id": upload, "since": "last"})
            await tab.expect("error", code="unavailable", topic=f"upload:{upload}")
        await tab.subscribe(f"order:{alice.username}-1")
        await notifications.apublish_progress(mine, {"n": 1})

        away.unlink()

        told = [await tab.next_frame() for _ in range(3)]
        await notifications.apublish_progress(mine, {"n": 2})
        await tab.expect_message('{"n":2}')
    states = {frame["topic"]: frame for frame in told if "action" in frame}
    assert states[f"upload:{mine}"]["action"] == "subscribed"
    assert states[f"upload:{mine}"]["recovered"] is False
    assert states[f"upload:{theirs}"]["action"] == "unsubscribed"
    assert [frame["n"] for frame in told if "n" in frame] == [1]
    said = "\n".join(server.lines[mark:])
    assert "Traceback" not in said
    assert said.count("AUTHORIZE of kind 'upload' could not answer") <= 1


async def test_the_replaced_client_is_served_when_somebody_can_say(site, server, here, away):
    """The client of the replaced service knows none of these frames, asks once, and gets what it asked for."""
    alice = site.add_user()
    upload = alice.new_upload()
    done = {"action": "upload_failed", "upload_id": upload, "error_message": "x", "timestamp": "now"}
    async with OldClient(server, lambda: alice.token, upload) as client:
        await client.wait_until_seen("auth_success")
        await asyncio.sleep(0.2)
        away.unlink()
        async with open_tab(server, alice) as tab:
            while not client.seen("upload_failed"):
                await notifications.apublish_progress(upload, done)
                await tab.send({"action": "ping"})
                await tab.expect("pong")
                await asyncio.sleep(0.1)
        assert client.closes == []


async def test_what_a_browser_gives_up_is_not_answered_later(site, server, here, away):
    """``unsubscribe`` ends the wait; a socket may have so many topics, those that wait among them."""
    alice = site.add_user()
    kept, left = alice.new_upload(), alice.new_upload()
    async with open_tab(server, alice) as tab:
        for upload in (left, kept):
            await tab.send({"action": "subscribe_upload", "upload_id": upload})
            await tab.expect("error", code="unavailable")
        await tab.send({"action": "unsubscribe_upload", "upload_id": left})
        await tab.expect("unsubscribed", topic=f"upload:{left}")

        away.unlink()

        await tab.expect("subscribed", topic=f"upload:{kept}", recovered=False)
        await notifications.apublish_progress(left, {"n": 1})
        await notifications.apublish_progress(kept, {"n": 2})
        await tab.expect_message('{"n":2}')


async def test_tabs_that_return_at_once_are_all_let_in(site, server):
    """
    A hundred tabs, each with two topics, ask at once what takes 0.2 s: the last is answered 5 s later, though a call
    may take one second. Nobody is refused.
    """
    users = [site.add_user() for _ in range(100)]

    async def tab_of(user, tabs):
        tab = await tabs.enter_async_context(open_tab(server, user))
        answers = []
        for n in range(2):
            await tab.send({"action": "subscribe", "topic": f"slow:{user.username}-{n}"})
        while answers.count("subscribed") < 2:
            frame = await tab.next_frame()
            answers.append(frame.get("code") or frame["action"])
        return answers

    async with AsyncExitStack() as tabs:
        answers = await asyncio.gather(*(tab_of(user, tabs) for user in users))

    assert {answer for each in answers for answer in each} <= {"subscribed", "unavailable"}


async def expect(tab, action, **fields):
    """Wait for the next frame, which must be this one, unless it says that AUTHORIZE has taken its second."""
    frame = await tab.next_frame()
    if frame.get("code") == "unavailable":
        frame = await tab.next_frame()
    wanted = {"action": action, **fields}
    assert wanted.items() <= frame.items(), f"wanted {wanted}, got {frame}"


async def test_a_socket_that_waits_for_the_site_is_answered_and_obeys(site, server, here, new_gate):
    """While AUTHORIZE takes its time a ping is answered, and a topic that is revoked ends at once."""
    alice = site.add_user()
    gate = new_gate()
    async with open_tab(server, alice) as tab:
        await tab.subscribe(f"order:{alice.username}-1")
        await await_for(lambda: site.client().pubsub_numsub(channel())[0][1] >= 1)
        await tab.send({"action": "subscribe", "topic": f"gated:{gate.name}"})
        await await_for(gate.was_asked)

        await tab.send({"action": "ping"})
        await expect(tab, "pong")
        await notifications.arevoke(f"order:{alice.username}-1", alice.pk)
        await expect(tab, "unsubscribed", topic=f"order:{alice.username}-1")
        gate.open()
        await expect(tab, "subscribed", topic=f"gated:{gate.name}")


async def test_an_answer_from_before_a_revoke_opens_nothing(site, server, here, new_gate):
    """The site had read that the user may before the permission was withdrawn: it is asked again."""
    alice = site.add_user()
    gate = new_gate()
    async with open_tab(server, alice) as tab, open_tab(server, alice) as other:
        await tab.subscribe(f"order:{alice.username}-1")
        await await_for(lambda: site.client().pubsub_numsub(channel())[0][1] >= 1)
        await tab.send({"action": "subscribe", "topic": f"gated:{gate.name}"})
        await await_for(gate.was_asked)
        gate.refuse()

        await notifications.arevoke(f"gated:{gate.name}", alice.pk)
        await notifications.arevoke(f"order:{alice.username}-1", alice.pk)
        told, order, gated = [], f"order:{alice.username}-1", f"gated:{gate.name}"
        while ("unsubscribed", order) not in told:  # the second of AUTHORIZE may be over before
            frame = await tab.next_frame()
            told.append((frame.get("code") or frame["action"], frame["topic"]))
        gate.open()
        while len(told) < 3:
            frame = await tab.next_frame()
            told.append((frame.get("code") or frame["action"], frame["topic"]))

        told.remove(("unsubscribed", order))
        assert told == [("unavailable", gated), ("unsubscribed", gated)]
        await tab.send({"action": "ping"})
        await tab.expect("pong")
        await other.send({"action": "ping"})
        await other.expect("pong")


@pytest.mark.parametrize("kind", SERVERS)
async def test_permissions_and_tokens_do_not_starve_each_other(site, kind, new_gate):
    """With each thread for the one held up, the other is answered."""
    tokens = {**site.settings["NOTIFICATIONS"], "AUTHENTICATE_TOKEN": f"{HERE}.find_user", "AUTH_TIMEOUT": 5}
    site.settings, before = {**site.settings, "AUTHORIZE_TIMEOUT": 5.0, "NOTIFICATIONS": tokens}, site.settings
    try:
        server = await asyncio.to_thread(site.start_server, kind)
    finally:
        site.settings = before
    alice = site.add_user()

    async def enter(tabs, token):
        tab = await tabs.enter_async_context(open_tab(server))
        await tab.send({"type": "auth", "token": token})
        return tab

    async with AsyncExitStack() as tabs:
        ours = await enter(tabs, str(alice.pk))
        await ours.expect("auth_success")
        gates = [new_gate() for _ in range(MAX_THREADS)]
        for gate in gates:
            tab = await enter(tabs, str(alice.pk))
            await tab.expect("auth_success")
            await tab.send({"action": "subscribe", "topic": f"gated:{gate.name}"})
            await await_for(gate.was_asked)
        late = await enter(tabs, str(alice.pk))
        await late.expect("auth_success")
        for gate in gates:
            gate.open()

        for gate in [new_gate() for _ in range(MAX_TOKEN_THREADS)]:
            await enter(tabs, f"{alice.pk}@{gate.name}")
            await await_for(gate.was_asked)
        await ours.send({"action": "subscribe", "topic": f"slow:{alice.username}-1"})
        await ours.expect("subscribed")


async def test_an_outage_leaves_one_line(site, server, here, away):
    """Many sockets that ask, again and again, write one line, with how many wait, and no stack trace."""
    mark = server.mark()
    async with AsyncExitStack() as tabs:
        for user in [site.add_user() for _ in range(20)]:
            tab = await tabs.enter_async_context(open_tab(server, user))
            await tab.send({"action": "subscribe_upload", "upload_id": user.new_upload()})
            await tab.expect("error", code="unavailable")
        await asyncio.sleep(3)
    lines = server.lines[mark:]

    assert len([line for line in lines if "AUTHORIZE" in line]) <= 1
    assert "Traceback" not in "\n".join(lines)


async def test_what_waits_may_be_asked_for_again(site, server, here, away):
    """A topic that waits has its place already: also the last that a socket may have can be asked for once more."""
    alice = site.add_user()
    uploads = [alice.new_upload() for _ in range(MAX_SUBSCRIPTIONS + 1)]
    async with open_tab(server, alice) as tab:
        for upload, code in zip(uploads, ["unavailable"] * MAX_SUBSCRIPTIONS + ["too_many_subscriptions"], strict=True):
            await tab.send({"action": "subscribe_upload", "upload_id": upload})
            await tab.expect("error", code=code)

        await tab.send({"action": "subscribe_upload", "upload_id": uploads[0]})

        await tab.expect("error", code="unavailable")


class Socket:
    """What is to be known of a socket whose topics nobody could answer."""

    def __init__(self, user):
        self.user = user
        self.is_account_old = False
        self.credentials = credentials_of(user)
        self.authorized = {}
        self.unanswered = set()
        self.joins = {}
        self.told = asyncio.Queue()

    def admit(self, topic, as_of=None):
        self.told.put_nowait(("admit", topic, as_of))

    def withdraw(self, topic, *, is_revoked=False):
        self.unanswered.discard(topic)
        self.told.put_nowait(("withdraw", topic))

    def end_access(self, code, reason):
        self.told.put_nowait(("end", reason))


async def test_an_answer_from_before_a_revoke_lets_nobody_in_who_asked_after_it(live_redis, settings):
    """What is being asked when a topic is revoked was perhaps allowed before; it is asked once more."""
    asked, answers = asyncio.Queue(), asyncio.Queue()

    async def may_watch(user, id_):
        asked.put_nowait(id_)
        return await answers.get()

    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "TOPICS": {"order": {"AUTHORIZE": may_watch}}}
    access, socket = Access(), Socket(SimpleNamespace(pk=7, is_active=True))
    access.add("7", socket)
    try:
        await await_for(lambda: live_redis.pubsub_numsub(channel())[0][1] == 1, what="subscribed")
        socket.unanswered.add("order:1")
        access.ask_later("7", "order:1")
        await asyncio.wait_for(asked.get(), scaled())

        await notifications.arevoke("order:1", 7)
        assert await asyncio.wait_for(socket.told.get(), scaled()) == ("withdraw", "order:1")
        socket.unanswered.add("order:1")  # the page subscribed once more, and nobody could answer
        access.ask_later("7", "order:1")
        answers.put_nowait(True)
        await asyncio.wait_for(asked.get(), scaled())
        answers.put_nowait(False)

        assert await asyncio.wait_for(socket.told.get(), scaled()) == ("withdraw", "order:1")
        assert socket.told.empty()
    finally:
        access.remove("7", socket)


async def test_a_permission_is_as_old_as_its_question(live_redis, settings):
    """What was withdrawn while ``AUTHORIZE`` was being asked, and not heard of, is asked again as what is older."""
    asked, answers = asyncio.Queue(), asyncio.Queue()

    async def may_watch(user, id_):
        asked.put_nowait(id_)
        return await answers.get()

    settings.NOTIFICATIONS = {
        **settings.NOTIFICATIONS,
        "TOPICS": {"order": {"AUTHORIZE": may_watch}},
        "REAUTHORIZE_INTERVAL": 1,
    }
    access, socket, loop = Access(), Socket(SimpleNamespace(pk=7, is_active=True)), asyncio.get_running_loop()
    socket.authorized["order:1"] = before = loop.time()
    access.add("7", socket)
    try:
        await asyncio.wait_for(asked.get(), scaled())
        begun = loop.time()
        await asyncio.sleep(0.01)
        answers.put_nowait(True)
        await await_for(lambda: socket.authorized["order:1"] > before)

        assert socket.authorized["order:1"] <= begun

        socket.authorized.clear()
        socket.unanswered.add("order:1")
        access.ask_later("7", "order:1")
        await asyncio.wait_for(asked.get(), scaled())
        begun = loop.time()
        await asyncio.sleep(0.01)
        answers.put_nowait(True)
        did, topic, as_of = await asyncio.wait_for(socket.told.get(), scaled())
        assert (did, topic) == ("admit", "order:1")
        assert as_of <= begun
    finally:
        access.remove("7", socket)


@pytest.mark.parametrize("kind", SERVERS)
async def test_a_server_ends_though_the_site_does_not_answer(site, new_gate, kind):
    """At SIGTERM, as at each deployment, and not when it is killed half a minute later."""
    server, alice, gate = site.start_server(kind), site.add_user(), new_gate()
    async with open_tab(server, alice) as tab:
        await tab.send({"action": "subscribe", "topic": f"gated:{gate.name}"})
        await await_for(gate.was_asked)

        await asyncio.to_thread(server.terminate)


async def test_one_kind_that_hangs_holds_up_no_other(site, server, new_gate):
    """More tabs ask for it than there are threads; the topics of others, and their own, are subscribed meanwhile."""
    gates = [new_gate() for _ in range(MAX_THREADS + 2)]
    async with AsyncExitStack() as tabs:
        for gate in gates:
            user = site.add_user()
            tab = await tabs.enter_async_context(open_tab(server, user))
            await tab.send({"action": "subscribe", "topic": f"dead:{gate.name}"})
            await tab.send({"action": "subscribe_upload", "upload_id": user.new_upload()})
            gate.tab = tab

        for gate in gates:
            await gate.tab.expect("error", code="unavailable", topic=f"dead:{gate.name}")
            while (await gate.tab.next_frame())["action"] != "subscribed":
                pass  # on a busy machine it may have been unavailable at first
