"""Listeners that divide the shards of a site, as processes, while programs publish: nothing lost, nothing twice."""

import json
import re
import signal
import threading
import time
from collections import defaultdict
from itertools import chain, count

import pytest

from tests.faults import paused
from tests.processes import LAYERS, Site
from tests.waiting import scaled, wait_for

pytestmark = pytest.mark.faults

TOPICS = [f"user:{n}" for n in range(40)]
DELIVERED = re.compile(rb'"topic":"(user:\d+)"[^}]*},"n":(\d+)}')


class Stream:
    """Raw messages on all topics, from a thread, and what their groups are sent."""

    def __init__(self, site: Site) -> None:
        self._client = site.client()
        self._groups = site.client().pubsub()
        self._groups.psubscribe("asgi/group/user.*")
        self._groups.get_message(timeout=scaled())
        self._end = threading.Event()
        self._threads = [threading.Thread(target=target) for target in (self._publish, self._listen)]
        self.sent = 0
        self.received = 0
        self.by_topic = defaultdict(list)

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._end.set()
        for thread in self._threads:
            thread.join()

    def _publish(self):
        numbers = count()
        while not self._end.is_set():
            with self._client.pipeline(transaction=False) as pipeline:
                for topic in TOPICS:
                    pipeline.publish(topic, f'{{"n":{next(numbers)}}}')
                pipeline.execute()
            self.sent += len(TOPICS)
            time.sleep(0.05)

    def _listen(self):
        """Listen until nothing more has come for two seconds after the last was published."""
        quiet_since = None
        while quiet_since is None or time.monotonic() - quiet_since < scaled(2):
            message = self._groups.get_message(timeout=0.2)
            if message is None:
                if self._end.is_set() and quiet_since is None:
                    quiet_since = time.monotonic()
                continue
            quiet_since = None
            topic, number = DELIVERED.search(message["data"]).groups()
            self.by_topic[topic.decode()].append(int(number))
            self.received += 1

    def expect_each_once_in_order(self):
        assert self.by_topic == {topic: list(range(at, self.sent, len(TOPICS))) for at, topic in enumerate(TOPICS)}

    def expect_nothing_twice_or_out_of_order(self):
        for numbers in self.by_topic.values():
            assert numbers == sorted(set(numbers))


@pytest.fixture
def site(redis_program, migrated_database, tmp_path):
    notifications = {"SHARDS": 4}
    settings = {"NOTIFICATIONS": notifications, "CHANNEL_LAYER_BACKEND": LAYERS["ours"]}
    with Site(tmp_path, migrated_database, settings=settings) as site:
        yield site


def wait_until_divided(site: Site, *listeners, shards: int = 4) -> None:
    """Wait until these processes lead all shards, and as many as each other."""
    client, pids = site.client(), {listener.pid for listener in listeners}

    def divided():
        reports = [json.loads(report) for report in client.hgetall("notifications:listeners").values()]
        led = [report["shards"] for report in reports if report["pid"] in pids and report["state"] == "holder"]
        sizes = [len(each) for each in led]
        return len(led) == len(pids) and sorted(chain(*led)) == list(range(shards)) and max(sizes) - min(sizes) <= 1

    wait_for(divided, 20, "the shards are divided")


def test_listeners_come_stop_die_and_hang_and_each_message_arrives_once_in_order(site):
    """Each time the others lead what was its, and the shards are divided fairly again."""
    first, second = site.start_listener(), site.start_listener()
    wait_until_divided(site, first, second)
    with Stream(site) as stream:
        wait_for(lambda: stream.received)
        third = site.start_listener()
        wait_until_divided(site, first, second, third)

        first.send_signal(signal.SIGTERM)
        wait_until_divided(site, second, third)

        second.kill()
        wait_until_divided(site, third)
        fourth = site.start_listener()
        wait_until_divided(site, third, fourth)

        with paused(third):
            wait_until_divided(site, fourth)
        wait_until_divided(site, third, fourth)
        at = stream.received
        wait_for(lambda: stream.received > at + len(TOPICS))

    stream.expect_each_once_in_order()
    assert site.run("run_listener", "--check").stdout.count("holder of shards") == 2


def test_listeners_of_two_numbers_of_shards_never_lead_at_once(site):
    """The later one waits until the others have stopped, or hang for long; who wakes up is refused."""
    old = site.start_listener()
    wait_until_divided(site, old)
    site.settings["NOTIFICATIONS"] = {"SHARDS": 2}
    with Stream(site) as stream:
        wait_for(lambda: stream.received)
        new = site.start_listener()
        new.wait_for_line("waiting: other listeners have SHARDS 4, this one 2")
        client = site.client()
        wait_for(lambda: b'"stand-by"' in b"".join(client.hvals("notifications:listeners")))  # after the line
        assert "stand-by" in site.run("run_listener", "--check").stdout
        at = stream.received
        wait_for(lambda: stream.received > at + len(TOPICS))

        with paused(old):
            wait_until_divided(site, new, shards=2)
            at = stream.received
            wait_for(lambda: stream.received > at + len(TOPICS))
        old.wait_for_line("waiting: other listeners have SHARDS 2, this one 4", 20)

        new.send_signal(signal.SIGTERM)
        wait_until_divided(site, old)
        at = stream.received
        wait_for(lambda: stream.received > at + len(TOPICS))

    stream.expect_nothing_twice_or_out_of_order()
