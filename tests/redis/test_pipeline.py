"""Script calls that share a connection: each gets its own answer, or an error in time."""

import asyncio
import hashlib
import time

import pytest
import redis

from notifications.broker import clients, pipeline, wire
from notifications.broker.pipeline import arun
from notifications.broker.script import RUN, Script
from project.local_redis import LocalRedis
from tests.faults import paused
from tests.redis.conftest import LONG_SECOND, ONE_WAIT
from tests.waiting import await_for, scaled, wait_for


class Text(Script):
    """A script that is in no file."""

    def __init__(self, source):
        self.source = source
        self.sha = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()


ECHO = Text("return ARGV[1]")
FAIL = Text("return redis.error_reply('BROKEN ' .. ARGV[1])")
SET = Text("return redis.call('SET', KEYS[1], ARGV[1])")


@pytest.fixture
def server(redis_program, settings):
    with LocalRedis() as server:
        settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "REDIS_URL": server.url}
        yield server


async def caller():
    return await pipeline._line().caller()


async def test_each_call_gets_its_own_answer(server):
    """Whatever the others are, and whoever of them does not want it any more."""

    async def call(number):
        if number % 5 == 0:
            with pytest.raises(redis.ResponseError, match=f"BROKEN {number}"):
                await arun(FAIL, [], [number])
        elif number % 5 == 1:
            task = asyncio.create_task(arun(ECHO, [], [number]))
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
        else:
            assert await arun(ECHO, [], [number]) == str(number).encode()

    await asyncio.gather(*(call(number) for number in range(500)))


async def test_the_watchdogs_pings_take_nobodys_answer(server, monkeypatch):
    monkeypatch.setattr(wire, "PING_INTERVAL", 0.001)
    for number in range(300):
        assert await arun(ECHO, [], [number]) == str(number).encode()
        await asyncio.sleep(0.0005)


async def test_a_server_that_forgot_the_scripts_is_told_them_again(server):
    assert await arun(ECHO, [], ["a"]) == b"a"
    with redis.Redis.from_url(server.url) as client:
        client.script_flush()

    assert await asyncio.gather(*(arun(ECHO, [], [n]) for n in range(20))) == [b"%d" % n for n in range(20)]


async def test_a_script_is_told_on_which_server_it_runs(server):
    with redis.Redis.from_url(server.url) as client:
        assert await arun(ECHO, [], [RUN]) == client.info("server")["run_id"][:12].encode()
    await asyncio.to_thread(server.restart)
    with redis.Redis.from_url(server.url) as client:
        assert await arun(ECHO, [], [RUN]) == client.info("server")["run_id"][:12].encode()


async def test_a_silent_redis_is_a_time_out_for_all_and_used_again_when_it_speaks(server):
    """Nobody waits longer than they asked for."""
    await arun(ECHO, [], ["a"])
    with paused(server.child):
        began = time.monotonic()
        calls = (arun(ECHO, [], [n], within=scaled(LONG_SECOND)) for n in range(20))
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert time.monotonic() - began < scaled(ONE_WAIT)
        assert all(isinstance(result, TimeoutError | ConnectionError) for result in results)

    assert await arun(ECHO, [], ["b"], within=scaled(5)) == b"b"


async def test_a_late_answer_to_one_does_not_end_the_connection_for_others(server, monkeypatch):
    """A short time-out is not a silent Redis."""
    monkeypatch.setattr(pipeline, "PROOF", scaled(5))  # nor is what a busy machine makes of it
    await arun(ECHO, [], ["a"])
    old = await caller()
    with paused(server.child), pytest.raises(TimeoutError):
        await arun(ECHO, [], ["a"], within=0.01)

    assert await arun(ECHO, [], ["b"]) == b"b"
    assert await caller() is old


async def test_who_waits_hears_of_the_end_of_the_connection_at_once(server):
    """Not after its time-out, which may be long."""
    await arun(ECHO, [], ["a"])
    with paused(server.child):
        waiting = asyncio.create_task(arun(ECHO, [], ["b"], within=scaled(60)))
        await asyncio.sleep(0.01)
        (await caller()).connection_lost(None)

        with pytest.raises(ConnectionError):
            await waiting


@pytest.mark.parametrize(
    ("error", "left"),
    [
        (redis.ResponseError("READONLY You can't write against a read only replica."), True),
        (redis.exceptions.ReadOnlyError("You can't write against a read only replica."), True),
        (redis.ResponseError("ERR Error running script (call to f_1): @user_script:1: -READONLY You can't"), True),
        (redis.ResponseError("OOM command not allowed when used memory > 'maxmemory'."), False),
    ],
    ids=["Redis 7", "redis-py", "a script on Redis 6.2", "another refusal"],
)
def test_a_replica_is_known_by_what_it_says(error, left):
    """However a server says that it is no primary, its connection is left; for no other refusal."""
    assert clients.from_replica(error) is left


async def test_a_replica_is_left_for_the_primary(server):
    """After a failover the connection is to a server that refuses to write; the next call looks for the new one."""
    await arun(SET, ["key"], ["a"])
    old = await caller()
    with redis.Redis.from_url(server.url) as client:
        client.replicaof("127.0.0.1", "1")
        with pytest.raises(redis.ResponseError, match="READONLY"):
            await arun(SET, ["key"], ["b"])
        client.replicaof("NO", "ONE")

    assert await arun(SET, ["key"], ["c"]) == b"OK"
    assert await caller() is not old


async def test_callers_wait_for_one_new_connection_together(server):
    with redis.Redis.from_url(server.url) as client:
        before = client.info("stats")["total_connections_received"]
        await asyncio.gather(*(arun(ECHO, [], [n]) for n in range(200)))
        assert client.info("stats")["total_connections_received"] == before + 1
        old = await caller()
        client.client_kill_filter(_type="normal", skipme=True)
        await await_for(lambda: old.is_closed, what="the end of the connection")
        await asyncio.gather(*(arun(ECHO, [], [n]) for n in range(200)))
        assert client.info("stats")["total_connections_received"] == before + 2


async def test_a_crowd_that_redis_does_not_read_from_waits_its_turn(server):
    """What is written is bounded by what Redis takes; nobody's answer is lost when it is slow."""
    text = "x" * 50_000
    results = await asyncio.gather(*(arun(ECHO, [], [f"{n}{text}"], within=scaled(20)) for n in range(400)))

    assert results == [f"{n}{text}".encode() for n in range(400)]


def test_a_loop_that_ends_leaves_no_connection(server):
    with redis.Redis.from_url(server.url) as client:
        for _ in range(3):
            assert asyncio.run(arun(ECHO, [], ["a"])) == b"a"
        wait_for(lambda: len(client.client_list()) == 1, what="the end of the connections")
