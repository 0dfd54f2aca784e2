"""Addresses of a Redis: what is read of a URL, what is refused, and that nothing shows its credentials."""

import io
import json
import logging
from contextlib import suppress
from itertools import product

import pytest
import redis
from django.core.checks import run_checks
from django.core.exceptions import ImproperlyConfigured
from django.core.management import CommandError, call_command

from notifications import PublishError, publish_to_user
from notifications.address import AddressError, read, secrets, shown
from notifications.history import get_store
from notifications.layers import RedisPubSubLayer
from notifications.logs import LONGEST, describe
from tests.conftest import point_to

GOOD = {
    "redis://redis.example": {"host": "redis.example", "port": 6379},
    "redis://127.0.0.1:1/2": {"host": "127.0.0.1", "port": 1, "db": 2},
    "redis://:hush@h:1/0": {"host": "h", "port": 1, "db": 0, "password": "hush"},
    "redis://site:a@b:c@h": {"host": "h", "port": 6379, "username": "site", "password": "a@b:c"},
    "rediss://site:a%2Fb%23c%3Fd%25@h/": {"host": "h", "port": 6379, "username": "site", "password": "a/b#c?d%"},
    "rediss://h?ssl_cert_reqs=none&ssl_check_hostname=false": {
        "host": "h",
        "port": 6379,
        "ssl_cert_reqs": "none",
        "ssl_check_hostname": False,
    },
    "redis://[fe80::1]:6380/0?client_name=a%40b": {"host": "fe80::1", "port": 6380, "db": 0, "client_name": "a@b"},
    "unix://me:hush@/run/redis.sock?db=3": {
        "path": "/run/redis.sock",
        "db": 3,
        "username": "me",
        "password": "hush",
    },
}


@pytest.mark.parametrize(("url", "options"), GOOD.items())
def test_a_url_is_read_as_redis_py_reads_it(url, options):
    """What a site's URL says today it says tomorrow."""
    pool = redis.ConnectionPool.from_url(url).connection_kwargs
    if "ssl_cert_reqs" not in url:
        assert options.items() <= {"port": 6379, **pool}.items()
    assert read(url).options == options


PARTS = ["Secret", "2024/Secret", "20#Secret", "20?Secret", "a@Secret", "/Secret", "#Secret", "?Secret=1", "%Secret"]
PLACES = [
    "redis://{}@127.0.0.1:1/0",
    "redis://:{}@127.0.0.1:1/0",
    "redis://site:{}@127.0.0.1:1/0",
    "rediss://site:{}@127.0.0.1:1",
    "unix://site:{}@/tmp/nowhere.sock",
    "redis://site:{}@",
    "redis://site:{}@:1/0",
    "redis://site:{}@127.0.0.1:port/0",
    "redis://site:{}@127.0.0.1:1,127.0.0.2:1/0",
    "redis://site:{}@127.0.0.1:1/0?decode_responses=True",
    "redis://127.0.0.1:1/0?password={}",
    "http://site:{}@127.0.0.1",
]
URLS = [place.format(part) for place, part in product(PLACES, PARTS)]


@pytest.mark.parametrize("url", URLS)
def test_no_url_is_shown_with_its_credentials(url):
    """However a password that was not quoted makes it parse: neither in an address nor in what is said of it."""
    said = [shown(url)]
    try:
        said += [str(read(url)), repr(read(url))]
    except AddressError as error:
        said.append(str(error))

    assert "Secret" not in " ".join(said)
    assert "site" not in " ".join(said)
    assert "2024" not in " ".join(said)


@pytest.mark.parametrize("url", URLS)
def test_texts_of_libraries_lose_the_credentials(settings, url):
    """Whatever an error quotes of the site's URL, a log line, an exception or a finding of it does not."""
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "REDIS_URL": url}

    for said in (url, "Port could not be cast to integer value as 'Secret'", "connecting to Secret:6379"):
        assert "Secret" not in describe(ValueError(said))


@pytest.mark.parametrize(
    "hosts",
    [
        ["redis://:Secret@h"],
        [{"address": "redis://site:Secret@h"}],
        [{"host": "h", "password": "Secret"}],
        [{"sentinels": [("h", 1)], "master_name": "m", "sentinel_kwargs": {"password": "Secret"}}],
        ["redis://h", "redis://:20/Secret@h"],
        "redis://:Secret@h",
        [("h", 6379), {"address": "redis://:2#Secret@h", "username": "site"}],
    ],
    ids=str,
)
def test_credentials_of_the_channel_layer_are_not_shown_either(settings, hosts):
    settings.CHANNEL_LAYERS = {"default": {"BACKEND": "x", "CONFIG": {"hosts": hosts}}}

    assert describe(OSError("cannot use Secret here")) == "cannot use *** here"


def test_a_password_of_two_characters_does_not_blacken_every_text():
    assert secrets("redis://:ab@h") == set()


@pytest.mark.parametrize("url", [url for url in URLS if "password=Secret" not in url and "http" not in url])
def test_nothing_that_a_site_runs_shows_credentials(settings, caplog, url):
    """Checks, the doctor in both forms, what publishing raises and what is logged."""
    caplog.set_level(logging.DEBUG)
    point_to(settings, url)
    settings.CHANNEL_LAYERS = {"default": {"BACKEND": "notifications.layers.RedisPubSubLayer"}}
    said = io.StringIO()
    for message in run_checks(tags=["notifications"]):
        said.write(f"{message}\n")
    with suppress(CommandError):
        call_command("notifications_doctor", "--json", stdout=said, stderr=said)
    assert json.loads(said.getvalue()[said.getvalue().index("{\n") :])["healthy"] is False
    with suppress(ImproperlyConfigured):
        publish_to_user(1, {"action": "x"}, fail_silently=True)
    with pytest.raises((PublishError, ImproperlyConfigured)) as caught:
        publish_to_user(1, {"action": "x"})
    with suppress(ImproperlyConfigured):
        RedisPubSubLayer(hosts=[{"address": url}])
    said.write(str(caught.value) + caplog.text)

    assert "Secret" not in said.getvalue()


WRONG = ["redis://h:0", "redis://h:65536", "redis://h/db", "redis://h/0?db=x", "redis://h?max_connections=0"]
WRONG += ["rediss://h?ssl_cert_reqs=maybe", "rediss://h?ssl_min_version=1", "redis://h/0#", "redis://", "redis://h?a"]


@pytest.mark.parametrize("url", [url for url in WRONG if url != "redis://"])
def test_what_cannot_be_used_is_an_error_of_the_settings(settings, url):
    """Not a stack trace of the first publish."""
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "REDIS_URL": url}

    assert "notifications.E004" in [message.id for message in run_checks(tags=["notifications"])]
    with pytest.raises(ImproperlyConfigured, match="REDIS_URL"):
        publish_to_user(1, {"action": "x"})


OPTIONS = [
    "decode_responses=True",
    "encoding=latin-1",
    "protocol=3",
    "retry_on_timeout=True",
    "socket_timeout=60",
    "socket_connect_timeout=60",
    "health_check_interval=1",
    "single_connection_client=True",
    "ssl_cert_reqs=none",
    "no_such_option=1",
]


@pytest.mark.parametrize("option", OPTIONS)
async def test_options_that_are_not_ours_are_named_and_left_out(live_redis, redis_server, settings, option):
    """What another library needs in its URL breaks nothing here, and whoever wrote it learns that it has no effect."""
    point_to(settings, f"{redis_server.url}?{option}&client_name=ours")
    settings.CHANNEL_LAYERS["default"]["BACKEND"] = "notifications.layers.RedisPubSubLayer"

    warnings = [message for message in run_checks(tags=["notifications"]) if message.id == "notifications.W007"]

    assert len(warnings) == 2
    assert all(option.partition("=")[0] in message.msg for message in warnings)
    assert "client_name" not in warnings[0].msg
    await use_everything()


async def use_everything():
    from asgiref.sync import sync_to_async

    from notifications import Topic, apublish_to_user, disconnect_user
    from notifications.connections import async_client

    assert await sync_to_async(publish_to_user)(1, {"n": 1}, fail_silently=True)
    assert await apublish_to_user(1, {"n": 2}, fail_silently=True)
    await sync_to_async(disconnect_user)(1)
    [where] = await get_store().look([Topic.for_user(1)])
    assert where.last is not None
    assert await (await async_client()).ping()
    from channels.layers import get_channel_layer

    layer = get_channel_layer()
    channel = await layer.new_channel()
    await layer.send(channel, {"type": "x"})
    assert await layer.receive(channel) == {"type": "x"}
    await layer.flush()


HOSTS = [
    "redis://127.0.0.1:1",
    ["redis://:20/24@127.0.0.1:1"],
    [{"address": "redis://:20#24@127.0.0.1:1"}],
    ["redis://127.0.0.1:1", "redis://127.0.0.1:2"],
]


@pytest.mark.parametrize("hosts", HOSTS, ids=str)
def test_hosts_that_cannot_be_used_are_found(settings, hosts):
    """A check names the mistake in CHANNEL_LAYERS before a socket finds it."""
    backend = "notifications.layers.RedisPubSubLayer"
    settings.CHANNEL_LAYERS = {"default": {"BACKEND": backend, "CONFIG": {"hosts": hosts}}}

    found = [message for message in run_checks(tags=["notifications"]) if message.id == "notifications.E015"]

    assert len(found) == 1
    assert found[0].hint
    assert "24" not in str(found[0]).replace("%24", "")
    if not isinstance(hosts, str):
        with pytest.raises(ImproperlyConfigured):
            RedisPubSubLayer(hosts=hosts)


def test_an_error_is_one_line_of_bounded_length():
    """A server may say anything, and at length."""
    assert describe(OSError("a\nb  \r\n c")) == "a b c"
    assert len(describe("x" * 10_000)) == LONGEST
    assert describe(TimeoutError()) == "TimeoutError"
    assert describe(KeyError("zone"), named=True) == "KeyError: 'zone'"
    assert describe(TimeoutError(), named=True) == "TimeoutError"
    assert "maxclients" in describe(redis.ConnectionError("max number of clients reached"))
