"""``manage.py run_listener`` as a process: how it starts, what it survives, how it ends, what it logs."""

import asyncio
import json
import os
import re
import signal
import sys
import time
from collections import defaultdict
from contextlib import contextmanager
from itertools import count

import msgpack
import pytest
import redis
from django.core.management import call_command
from django.test import RequestFactory

from notifications import publish
from notifications.bridge import lease, status
from notifications.broker.clients import async_client
from notifications.monitoring import views
from project.local_redis import LocalRedis
from tests.clients import RawRedis, message_of
from tests.clock import Clock
from tests.conftest import point_to
from tests.faults import (
    Proxy,
    kill_connections,
    kill_type,
    listeners_connections,
    paused,
    redis_down,
    restart_redis,
)
from tests.processes import START_SECONDS, Process, Site
from tests.waiting import scaled, wait_for


class Group:
    """What the listener hands to a group, as the channel layer of a web server would see it."""

    def __init__(self, url: str, *groups: str) -> None:
        self._client = redis.Redis.from_url(url)
        self._pubsub = self._client.pubsub()
        self._pubsub.subscribe(*(f"asgi__group__{group}" for group in groups))
        for _ in groups:
            self._pubsub.get_message(timeout=scaled())

    def __enter__(self) -> "Group":
        return self

    def __exit__(self, *_: object) -> None:
        self._pubsub.close()
        self._client.close()

    def next(self, seconds: float = 10) -> str:
        """Return the next message, as it was published."""
        found = self._pubsub.get_message(timeout=scaled(seconds))
        assert found is not None, "nothing was forwarded"
        event = msgpack.unpackb(found["data"])
        assert event["type"] == "notifications.message"
        return message_of(event["text"])


@contextmanager
def raw_redis(site: Site):
    with RawRedis(site.redis.port) as raw:
        yield raw


def expect_forwarding(site: Site, text: str = '{"n":1}') -> None:
    """Publish a message and see it arrive at its group."""
    with Group(site.redis.url, "user.1") as group, raw_redis(site) as raw:
        assert raw.publish("user:1", text) >= 1
        assert group.next() == text


# Starting.


def test_it_says_what_it_listens_on(new_site):
    """The start-up line names the pattern of every kind."""
    listener = new_site.start_listener()

    line = listener.wait_for_line("listening on")
    assert re.search(r"listening on (\S+ )*user:\*", line)
    for pattern in ("user:*", "upload:*", "order:*", "closed:*"):
        assert pattern in line.split()


def test_it_is_a_candidate_for_the_lease_before_it_listens(new_site):
    """On the connection that subscribes: no other listener can take the lease unaware of one subscribed longer."""
    with new_site.client().monitor() as monitor:
        new_site.start_listener()
        said: dict[str, list[str]] = defaultdict(list)
        words = ""
        while not words.startswith("PSUBSCRIBE"):
            command = monitor.next_command()
            words = command["command"]
            said[command["client_port"]].append(words)

    [before] = [words for words in said.values() if words[-1].startswith("PSUBSCRIBE")]
    assert [words.split()[0] for words in before if words.startswith(("EVAL", "SUBSCRIBE"))] == ["EVAL", "SUBSCRIBE"]
    assert "notifications:candidates" in next(words for words in before if words.startswith("EVAL"))


def test_it_waits_for_a_redis_that_is_not_there_yet(new_site):
    """Started first, it says that it is not connected, goes on trying, and forwards once Redis is up."""
    with redis_down(new_site.redis):
        listener = new_site.start_listener(ready="not connected")
        assert listener.returncode is None
    listener.wait_for_line("listening on", 20)

    expect_forwarding(new_site)


def test_two_sites_with_prefixes_share_a_redis(new_site):
    """A prefix is part of every name: the listener of one site does not hear the other."""
    new_site.settings = {"NOTIFICATIONS": {"PREFIX": "shop:"}}
    new_site.start_listener()
    with Group(new_site.redis.url, "user.1", "shop-user.1") as group, raw_redis(new_site) as raw:
        assert raw.publish("user:1", '{"n":1}') == 0
        assert raw.publish("blog:user:1", '{"n":2}') == 0
        assert raw.publish("shop:user:1", '{"n":3}') == 1

        assert group.next() == '{"n":3}'


# Surviving.


def test_it_survives_restarts_of_redis(new_site):
    """Restarted with its data, without, and killed with ``kill -9`` while nobody answers: it says so and goes on."""
    listener = new_site.start_listener()
    for break_redis in (
        lambda: restart_redis(new_site, keep_data=True),
        lambda: restart_redis(new_site, keep_data=False),
    ):
        said = listener.mark()
        break_redis()
        listener.wait_for_line("not connected to Redis", after=said)
        listener.wait_for_line("listening on", 20, after=said)
        expect_forwarding(new_site)


def test_it_survives_client_kill(new_site):
    """CLIENT KILL of its subscription, and of every connection of every type, each time told and healed."""
    listener = new_site.start_listener()
    client = new_site.client()
    for _ in range(3):
        said = listener.mark()
        assert kill_connections(client, listeners_connections(client)) == 1
        listener.wait_for_line("listening on", after=said)
        expect_forwarding(new_site)
    wait_for(lambda: len(client.client_list(_type="pubsub")) == 1)  # those of expect_forwarding are gone
    said = listener.mark()
    assert kill_type(client, "pubsub") == 1
    kill_type(client, "normal")
    listener.wait_for_line("listening on", after=said)
    expect_forwarding(new_site)


@pytest.mark.slow
def test_it_notices_a_redis_that_hangs(new_site):
    """A Redis that holds its connections and says nothing is given up after 3.5 s, and used again when it wakes."""
    listener = new_site.start_listener()
    said = listener.mark()
    began = time.monotonic()
    with paused(new_site.redis.child):
        listener.wait_for_line("nothing heard for 3.5 s", 8, after=said)
        assert 1 < time.monotonic() - began < scaled(8)  # it may have heard nothing for some time before
        said = listener.mark()
    listener.wait_for_line("listening on", 15, after=said)

    expect_forwarding(new_site)


@pytest.mark.slow
def test_it_notices_a_half_open_connection(new_site):
    """A network that forwards nothing and closes nothing is given up after 5 s, and another connection is made."""
    with Proxy(new_site.redis.port) as proxy:
        new_site.redis_url = proxy.url
        listener = new_site.start_listener()
        said = listener.mark()
        with proxy.half_open():
            listener.wait_for_line("nothing heard for 3.5 s", 8, after=said)
        listener.wait_for_line("listening on", 15, after=said)
        new_site.redis_url = None

        expect_forwarding(new_site)
        listener.kill()


def test_it_survives_a_reset_of_its_connections(new_site):
    """Connections that the network cuts are made anew."""
    with Proxy(new_site.redis.port) as proxy:
        new_site.redis_url = proxy.url
        listener = new_site.start_listener()
        said = listener.mark()
        proxy.cut()
        listener.wait_for_line("listening on", after=said)
        new_site.redis_url = None

        expect_forwarding(new_site)
        listener.kill()


@pytest.fixture
def clock(tmp_path):
    return Clock(tmp_path)


@pytest.fixture
def set_site(redis_program, migrated_database, tmp_path, clock):
    """Return a site whose Redis has a clock that can be set."""
    with Site(tmp_path, migrated_database, redis_env=clock.env) as site:
        yield site


@pytest.mark.slow
def test_a_stand_by_takes_over_though_the_clock_of_redis_was_set_back(set_site, clock, settings):
    """An hour earlier, while the holder dies: the lease ends all the same, and nothing that was published is lost."""
    point_to(settings, set_site.redis.url)
    holder = set_site.start_listener(ready="holding the lease")
    stand_by = set_site.start_listener()
    client = set_site.client()
    wait_for(lambda: len(client.hvals("notifications:listeners")) == 2)
    before = client.time()[0]
    with Group(set_site.redis.url, "user.1") as group, raw_redis(set_site) as raw:
        holder.kill()
        clock.set_back(3600)
        assert client.time()[0] < before - 3000
        assert not is_ready()  # though the dead one has said so, in a time to come
        for n in range(50):
            assert raw.publish("user:1", f'{{"n":{n}}}') == 1
        stand_by.wait_for_line("holding the lease", 8)
        assert [group.next() for _ in range(50)] == [f'{{"n":{n}}}' for n in range(50)]

    wait_for(is_ready)
    assert len(client.hvals("notifications:listeners")) == 1  # nothing is left of the dead one


def is_ready() -> bool:
    """Whether a web process says that a listener holds the lease."""
    return asyncio.run(views.ready(RequestFactory().get("/"))).status_code == 200


def reported(client: redis.Redis) -> bytes:
    """Return what all listeners have reported; it comes after the line in the log, if by little."""
    return b"".join(client.hvals("notifications:listeners"))


def numbered(first: int, last: int) -> list[tuple[str, str]]:
    return [("user:1", f'{{"n":{n}}}') for n in range(first, last + 1)]


def kept(site: Site) -> list[str]:
    """List what the history of the messages' topic has, in its order."""
    entries = site.client().xrange("notifications:history:user:1")
    return [message_of(frame.decode()) for _, fields in entries for frame in fields.values()]


@pytest.mark.slow
def test_a_stand_by_keeps_over_a_gap_what_a_dead_holder_left(new_site):
    """Its subscription is cut after the holder was killed and before it has the lease: it stamps all it had read."""
    holder = new_site.start_listener(ready="holding the lease")
    stand_by = new_site.start_listener()
    client = new_site.client()
    wait_for(lambda: b'"stand-by"' in reported(client))
    with Group(new_site.redis.url, "user.1") as group, raw_redis(new_site) as raw:
        holder.kill()
        wait_for(lambda: len(listeners_connections(client)) == 1)
        raw.publish_all(numbered(1, 50))
        said = stand_by.mark()
        assert kill_connections(client, listeners_connections(client)) == 1
        stand_by.wait_for_line("listening on", after=said)
        raw.publish_all(numbered(51, 60))

        assert [group.next() for _ in range(60)] == [text for _, text in numbered(1, 60)]
    assert kept(new_site) == [text for _, text in numbered(1, 60)]
    assert not stand_by.find_line("lost")


@pytest.mark.slow
def test_a_stand_by_stamps_nothing_again_that_was_stamped_in_its_gap(new_site):
    """It has read messages, and was cut off when the holder stamped them: when it leads they do not come twice."""
    holder = new_site.start_listener(ready="holding the lease")
    with Proxy(new_site.redis.port) as proxy, raw_redis(new_site) as raw:
        new_site.redis_url = proxy.url
        stand_by = new_site.start_listener()
        new_site.redis_url = None
        wait_for(lambda: b'"stand-by"' in reported(new_site.client()))
        raw.publish_all(numbered(1, 10))
        with paused(holder):
            assert raw.publish("user:1", numbered(11, 11)[0][1]) == 2
            raw.publish_all(numbered(12, 30))
            wait_until_read(new_site, stand_by)
            said = stand_by.mark()
            with proxy.half_open(new_ones_too=True):
                proxy.cut()
                stand_by.wait_for_line("not connected", after=said)
                holder.resume()
                wait_for(lambda: len(kept(new_site)) == 30)
        stand_by.wait_for_line("listening on", 20, after=said)
        holder.kill()
        stand_by.wait_for_line("holding the lease", after=said)
        raw.publish_all(numbered(31, 31))
        wait_for(lambda: len(kept(new_site)) >= 31)

        assert kept(new_site) == [text for _, text in numbered(1, 31)]
        assert not stand_by.find_line("lost")
        stand_by.kill()


@pytest.mark.slow
def test_what_a_listener_had_read_before_redis_was_replaced_is_said_to_be_lost(new_site):
    """The histories of the new one do not tell what the old one had stamped: it is not stamped again, but counted."""
    holder = new_site.start_listener(ready="holding the lease")
    stand_by = new_site.start_listener()
    client = new_site.client()
    wait_for(lambda: b'"stand-by"' in reported(client))
    holder.kill()
    with raw_redis(new_site) as raw:
        raw.publish_all(numbered(1, 50))
        wait_until_read(new_site, stand_by)
    restart_redis(new_site, keep_data=True)

    stand_by.wait_for_line(r"lost 50 message\(s\): read before a gap, and not known to be stamped", 20)
    expect_forwarding(new_site)
    assert kept(new_site) == ['{"n":1}']


# Ending.


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_in_good_order(new_site, number):
    """SIGTERM and SIGINT: exit code 0 within 5 s, the number of forwarded messages said, its report signed off."""
    listener = new_site.start_listener()
    with Group(new_site.redis.url, "user.1") as group, raw_redis(new_site) as raw:
        raw.publish_all(("user:1", f'{{"n":{n}}}') for n in range(300))
        raw.publish_all(("user:1", "refused") for n in range(10))
        assert [group.next() for _ in range(300)] == [f'{{"n":{n}}}' for n in range(300)]

    began = time.monotonic()
    listener.send_signal(number)
    assert listener.wait() == 0

    assert time.monotonic() - began < scaled(5)
    assert "forwarded 300 messages" in listener.lines[-1]
    assert listeners_connections(new_site.client()) == []
    assert new_site.run("run_listener", "--check").returncode == 1


@pytest.fixture
def like_windows(new_site, tmp_path):
    """Return an environment whose event loops know no signals, as those of Windows; there is no uvloop there either."""
    module = tmp_path / "windows_settings.py"
    module.write_text(
        "import asyncio, sys\n"
        "from tests.settings import *\n"
        "sys.modules['uvloop'] = None\n"
        "asyncio.SelectorEventLoop.add_signal_handler = asyncio.AbstractEventLoop.add_signal_handler\n"
        "asyncio.SelectorEventLoop.remove_signal_handler = asyncio.AbstractEventLoop.remove_signal_handler\n"
    )
    return new_site.environment | {
        "DJANGO_SETTINGS_MODULE": "windows_settings",
        "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]),
    }


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_in_good_order_where_event_loops_know_no_signals(new_site, like_windows, number):
    """On Windows, Ctrl-C ends it as it does elsewhere: what has been read is forwarded, and its report signed off."""
    listener = new_site.start_listener(env=like_windows)
    expect_forwarding(new_site)

    listener.send_signal(number)

    assert listener.wait() == 0
    assert "forwarded 1 messages" in listener.lines[-1]
    assert new_site.client().hvals("notifications:listeners") == []


@pytest.fixture
def hung_layer(new_site):
    """A listener whose channel layer stands on a second Redis, which hangs: it reads and cannot forward."""
    with LocalRedis() as layers_redis:
        new_site.settings = {
            "CHANNEL_LAYERS": {
                "default": {
                    "BACKEND": "channels_redis.pubsub.RedisPubSubChannelLayer",
                    "CONFIG": {"hosts": [layers_redis.url]},
                }
            }
        }
        listener = new_site.start_listener()
        with Group(layers_redis.url, "user.1") as group, raw_redis(new_site) as raw:
            raw.publish("user:1", '{"n":0}')
            assert group.next() == '{"n":0}'
            with paused(layers_redis.child):
                raw.publish_all(("user:1", f'{{"n":{n}}}') for n in range(1, 501))
                wait_until_read(new_site, listener)
                yield listener, group, layers_redis


def wait_until_read(site: Site, listener: Process) -> None:
    """
    Wait for two more reports of the listener: between them its event loop has read all that had arrived.

    That takes up to two seconds, in which the lease of a holder that is gone does not run out.
    """
    client = site.client()

    def report() -> bytes:
        client.pexpire("notifications:lease", int(lease.TTL * 1000))
        return reported(client)

    for _ in range(2):
        before = report()
        wait_for(lambda before=before: report() != before)


def ask_to_stop(site: Site, listener: Process) -> None:
    """Send the first signal and wait until it has been taken: the subscription is gone, the rest is being drained."""
    listener.send_signal(signal.SIGTERM)
    client = site.client()
    wait_for(lambda: not listeners_connections(client))


def test_it_forwards_what_it_has_read_before_it_ends(new_site, hung_layer):
    """Told to stop in the middle of 500 messages it forwards all of them, in order, and says so."""
    listener, group, layers_redis = hung_layer
    ask_to_stop(new_site, listener)

    os.kill(layers_redis.child.pid, signal.SIGCONT)

    assert listener.wait() == 0
    assert [group.next() for _ in range(500)] == [f'{{"n":{n}}}' for n in range(1, 501)]
    assert "forwarded 501 messages" in listener.lines[-1]


def test_what_it_cannot_forward_in_time_is_said(new_site, hung_layer):
    """With a channel layer that hangs it still ends (in 4 s where nothing else runs), and says what it lost."""
    listener, _, _ = hung_layer
    ask_to_stop(new_site, listener)

    assert listener.wait() == 0
    lost = re.findall(r"lost (\d+) message", listener.output)
    assert sum(map(int, lost)) == 500
    assert "forwarded 1 messages" in listener.lines[-1]


def test_a_second_signal_ends_it_at_once(new_site, hung_layer):
    """While it drains, another signal ends it without any more waiting."""
    listener, _, _ = hung_layer
    ask_to_stop(new_site, listener)
    began = time.monotonic()
    listener.send_signal(signal.SIGINT)

    assert listener.wait() == 128 + signal.SIGINT
    assert time.monotonic() - began < scaled(3)  # of the 3.5 s that it would have drained


def test_it_ends_in_time_while_redis_hangs(new_site):
    """SIGTERM during a hang of Redis ends it within 5 s, with exit code 0; a busy machine has eight."""
    listener = new_site.start_listener()
    with paused(new_site.redis.child):
        began = time.monotonic()
        assert listener.terminate() == 0

        assert time.monotonic() - began < scaled(8)


def test_it_ends_at_once_while_it_waits_for_redis(new_site):
    """SIGTERM while there is no Redis ends it with exit code 0."""
    with redis_down(new_site.redis):
        listener = new_site.start_listener(ready="not connected")
        assert listener.terminate(3) == 0
        assert "forwarded 0 messages" in listener.lines[-1]


# Checking.


def test_check_says_0_while_a_listener_is_connected(new_site):
    """``--check`` exits 0 with a line about the living listener, and 1 before it starts and after it ended."""
    before = new_site.run("run_listener", "--check")
    assert (before.returncode, "Traceback" in before.stderr) == (1, False)

    listener = new_site.start_listener()
    client = new_site.client()
    wait_for(lambda: b'"holder"' in reported(client))
    during = new_site.run("run_listener", "--check")
    assert during.returncode == 0, during.stderr
    assert f"pid {listener.pid}: holder" in during.stdout

    listener.terminate()
    assert new_site.run("run_listener", "--check").returncode == 1


def test_a_check_that_a_busy_machine_holds_up_does_not_blame_redis(live_redis, monkeypatch, capsys):
    """It waits a second for Redis, in which it may itself not have run: a supervisor would restart a good listener."""

    async def report() -> None:
        await status.write(await async_client(), status.new_report("holder"))

    async def read_late(client: redis.asyncio.Redis) -> list[status.Report]:
        time.sleep(1.2)  # noqa: ASYNC251  nothing runs meanwhile
        return await living(client)

    living = status.living
    asyncio.run(report())
    monkeypatch.setattr(status, "living", read_late)

    call_command("run_listener", "--check")

    assert f"pid {os.getpid()}: holder" in capsys.readouterr().out


@pytest.mark.slow
def test_check_says_1_when_the_listener_was_killed(new_site):
    """A listener ended by ``kill -9`` signs off nowhere; five seconds later nobody takes it for alive."""
    listener = new_site.start_listener()
    client = new_site.client()
    wait_for(lambda: b'"holder"' in reported(client))
    listener.kill()
    killed = time.monotonic()

    assert b'"holder"' in reported(client)
    while new_site.run("run_listener", "--check").returncode == 0:
        assert time.monotonic() - killed < scaled(15)  # with the time that a check takes on a busy machine


def test_check_says_1_when_redis_hangs_or_is_gone(new_site):
    """The listener's state is not known: exit code 1 and a sentence after a second or two, not a traceback."""
    new_site.start_listener()
    with paused(new_site.redis.child):
        hung = new_site.run("run_listener", "--check")
    with redis_down(new_site.redis):
        gone = new_site.run("run_listener", "--check")

    for done in (hung, gone):
        assert done.returncode == 1
        assert "cannot ask Redis" in done.stderr
        assert "Traceback" not in done.stderr


def test_check_says_1_while_the_listener_is_disconnected(new_site):
    """A listener that is alive but may not subscribe is not healthy, and ``--check`` says why."""
    listener = new_site.start_listener()
    client = new_site.client()
    said = listener.mark()
    client.acl_setuser(
        "default", enabled=True, nopass=True, categories=["+@all"], commands=["-psubscribe"], channels=["*"], keys=["*"]
    )
    kill_connections(client, listeners_connections(client))
    listener.wait_for_line("not connected.*psubscribe", after=said)
    wait_for(lambda: b'"disconnected' in reported(client))

    cut_off = new_site.run("run_listener", "--check")
    assert cut_off.returncode == 1
    assert f"pid {listener.pid}: disconnected" in cut_off.stdout

    client.acl_setuser("default", commands=["+psubscribe"], enabled=True, nopass=True)
    listener.wait_for_line("listening on", 20, after=said)
    wait_for(lambda: b'"holder"' in reported(client))
    assert new_site.run("run_listener", "--check").returncode == 0


@pytest.fixture
def namesakes(new_site, tmp_path):
    """Return a function that starts listeners which all take themselves for process 1 of the host "web"."""
    module = tmp_path / "namesake_settings.py"
    module.write_text(
        "import os, socket\n"
        "from tests.settings import *\n"
        "os.getpid = lambda: 1\n"
        "socket.gethostname = lambda: 'web'\n"
        "if place := os.environ.get('PLACE'):\n"
        "    from notifications.bridge import status\n"
        "    status.this_place = lambda: place\n"
    )

    def environment(place: str) -> dict[str, str]:
        return new_site.environment | {
            "DJANGO_SETTINGS_MODULE": "namesake_settings",
            "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]),
            "PLACE": place,
        }

    return environment


def test_listeners_of_one_name_are_told_apart(new_site, namesakes):
    """Two containers may share a host name, and each be process 1: both are seen, and signing off is one's own."""
    holder = new_site.start_listener(env=namesakes("one"))
    holder.wait_for_line("holding the lease")
    stand_by = new_site.start_listener(env=namesakes("two"))
    client = new_site.client()

    def states() -> list[str]:
        return sorted(json.loads(report)["state"] for report in client.hvals("notifications:listeners"))

    def times() -> list[float]:
        return sorted(json.loads(report)["at"] for report in client.hvals("notifications:listeners"))

    wait_for(lambda: states() == ["holder", "stand-by"])
    for _ in range(3):  # each writes once a second
        before = times()
        wait_for(lambda before=before: min(times()) > max(before))
        assert states() == ["holder", "stand-by"]

    assert stand_by.terminate() == 0
    assert states() == ["holder"]


def test_check_asks_the_listener_of_its_own_container(new_site, namesakes):
    """Of listeners that share their name, the one that runs where --check does is judged; else those of that name."""
    new_site.start_listener(env=namesakes("one")).wait_for_line("holding the lease")
    cut_off = new_site.start_listener(
        env=namesakes("two") | {"REDIS_URL": cut_off_url(new_site)}, ready="not connected"
    )

    def check(place: str) -> int:
        command = [sys.executable, "-m", "django", "run_listener", "--check"]
        return new_site.start(*command, env=namesakes(place)).wait(START_SECONDS)

    wait_for(lambda: len(new_site.client().hvals("notifications:listeners")) == 2)
    assert (check("one"), check("two"), check("three")) == (0, 1, 0)
    cut_off.terminate()


def cut_off_url(site: Site) -> str:
    """Return the URL of an account that may do everything but listen."""
    site.client().execute_command("ACL", "SETUSER", "cut-off", "reset", "on", ">x", "~*", "&*", "+@all", "-psubscribe")
    return site.redis.url.replace("//", "//cut-off:x@")


# Forwarding and logging.


def test_the_order_of_every_topic_is_kept(new_site):
    """A burst of 5,000 messages on ten topics reaches the layer complete and in order."""
    new_site.start_listener()
    with Group(new_site.redis.url, *(f"user.{n}" for n in range(10))) as group, raw_redis(new_site) as raw:
        burst = [(f"user:{n % 10}", f'{{"user":{n % 10},"n":{n}}}') for n in range(5000)]
        raw.publish_all(burst)

        got = [group.next() for _ in burst]
        for user in range(10):
            of_user = f'{{"user":{user},'
            assert [text for text in got if text.startswith(of_user)] == [
                text for _, text in burst if text.startswith(of_user)
            ]


REFUSALS = {
    b"secret": "not JSON",
    b"": "not JSON",
    b'["secret"]': "not a JSON object",
    b'{"secret":"\xff"}': "not UTF-8",
    b'{"_meta":"secret"}': "'_meta' is reserved",
    rb'{"\u005fmeta":"secret"}': "'_meta' is reserved",
    b'{"a":' * 10_000: "not JSON",
    b'{"secret":"' + b"x" * 65536 + b'"}': "MAX_MESSAGE_SIZE",
}


def test_refused_messages_are_logged_with_channel_and_reason(new_site):
    """Each refusal is one line with the channel and the reason, and never a byte of the payload."""
    listener = new_site.start_listener()
    with raw_redis(new_site) as raw:
        for number, (payload, reason) in enumerate(REFUSALS.items()):
            raw.publish(f"upload:bad {number}", payload)
            line = listener.wait_for_line(f"refused a message on channel .*bad {number}'")
            assert reason in line
        raw.publish(b"user:\xff\n" + b"y" * 300, "secret")
        line = listener.wait_for_line(r"refused a message on channel .*user:\\xff\\n")
        assert len(line) < 500

    expect_forwarding(new_site)
    assert "secret" not in listener.output
    assert "xxx" not in listener.output
    assert not listener.find_line("Traceback")


def test_a_flood_of_refused_messages_does_not_fill_the_log(new_site):
    """Of 2,000 refusals about a hundred are logged, and the good message behind them is forwarded."""
    listener = new_site.start_listener()
    with Group(new_site.redis.url, "user.1") as group, raw_redis(new_site) as raw:
        raw.publish_all(("user:1", "nonsense") for _ in range(2000))
        raw.publish("user:1", '{"n":1}')
        assert group.next() == '{"n":1}'

    listener.terminate()
    assert 50 <= sum("refused" in line for line in listener.lines) <= 200
    assert listener.returncode == 0


def test_a_kind_that_only_web_processes_know_yet_is_forwarded(new_site, settings):
    """Web processes were deployed first: what they publish on a new kind arrives, and it is said whom to restart."""
    listener = new_site.start_listener(ready="holding the lease")
    point_to(settings, new_site.redis.url)
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "TOPICS": {"late": {}}}
    with Group(new_site.redis.url, "late.7") as group:
        for n in range(20):
            publish("late:7", {"n": n})
        assert [group.next() for _ in range(20)] == [f'{{"n":{n}}}' for n in range(20)]

        listener.wait_for_line("kind 'late' is not in this listener's TOPICS; restart it")
        assert not listener.find_line("lost|failed")

        said = listener.mark()
        client = new_site.client()
        kill_connections(client, listeners_connections(client))  # and after a gap it looks for what it missed
        publish("late:7", {"n": 20})
        listener.wait_for_line("holding the lease", after=said)
        assert group.next() == '{"n":20}'
    assert listener.terminate() == 0
    assert sum("kind 'late'" in line for line in listener.lines) == 1


def test_what_is_no_topic_among_stamped_messages_is_refused(new_site):
    """Some program publishes on our internal channel: it is said, and neither ends the listener nor its work."""
    listener = new_site.start_listener(ready="holding the lease")
    client = new_site.client()
    for name in (b"Late:7", b"late:", b"x" * 300, b"late:" + b"x" * 300):
        said = listener.mark()
        client.publish("notifications:stamped", b"p%d 1-1 - %s{}" % (len(name), name))
        listener.wait_for_line("refused a message on channel 'notifications:stamped'", after=said)
    said = listener.mark()
    kill_connections(client, listeners_connections(client))
    listener.wait_for_line("holding the lease", after=said)

    expect_forwarding(new_site)
    assert not listener.find_line("lost|failed")


# Development.


def test_autoreload_restarts_when_the_code_changes(new_site, tmp_path):
    """With ``--autoreload`` a changed file makes it start again and listen again."""
    module = tmp_path / "reloaded_settings.py"
    module.write_text("from tests.settings import *\n")
    environment = new_site.environment | {
        "DJANGO_SETTINGS_MODULE": "reloaded_settings",
        "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]),
    }
    listener = new_site.start_listener("--autoreload", env=environment)
    said = listener.mark()

    # The reloader may not have looked at the file yet, and compares with its first look.
    later = count(time.time() + 5)

    def changed_and_restarted() -> str | None:
        os.utime(module, (moment := next(later), moment))
        return listener.find_line("listening on", after=said)

    wait_for(changed_and_restarted, 20, listener.output)
    wait_for(lambda: len(listeners_connections(new_site.client())) == 1)
    expect_forwarding(new_site)
