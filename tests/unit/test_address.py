"""Addresses of a Redis: what is read of a URL, what is refused, and that nothing shows its credentials."""

import re
from itertools import product

import pytest
import redis
from django.core.checks import run_checks
from django.core.exceptions import ImproperlyConfigured
from django.test import override_settings

from notifications import publish_to_user
from notifications.address import AddressError, read, secrets, shown
from notifications.layers import RedisPubSubLayer
from notifications.logs import LONGEST, describe
from tests.cases import cases

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


@cases(("url", "options"), GOOD.items())
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


def said_of(url):
    """Return all that is said of a URL, whether or not it is one."""
    try:
        return f"{shown(url)} {read(url)} {read(url)!r}"
    except AddressError as error:
        return f"{shown(url)} {error}"


def test_no_url_is_shown_with_its_credentials():
    """However a password that was not quoted makes it parse: neither in an address nor in what is said of it."""
    said = {url: said_of(url) for url in URLS}

    assert {url: text for url, text in said.items() if re.search("Secret|site|2024", text)} == {}


def test_texts_of_libraries_lose_the_credentials():
    """Whatever an error quotes of the site's URL, a log line, an exception or a finding of it does not."""
    told = {}
    for url in URLS:
        with override_settings(NOTIFICATIONS={"REDIS_URL": url}):
            for text in (url, "Port could not be cast to integer value as 'Secret'", "connecting to Secret:6379"):
                told[url, text] = describe(ValueError(text))

    assert {case: text for case, text in told.items() if "Secret" in text} == {}


@cases(
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
)
def test_credentials_of_the_channel_layer_are_not_shown_either(settings, hosts):
    settings.CHANNEL_LAYERS = {"default": {"BACKEND": "x", "CONFIG": {"hosts": hosts}}}

    assert describe(OSError("cannot use Secret here")) == "cannot use *** here"


def test_a_password_of_two_characters_does_not_blacken_every_text():
    assert secrets("redis://:ab@h") == set()


WRONG = ["redis://h:0", "redis://h:65536", "redis://h/db", "redis://h/0?db=x", "redis://h?max_connections=0"]
WRONG += ["rediss://h?ssl_cert_reqs=maybe", "rediss://h?ssl_min_version=1", "redis://h/0#", "redis://h?a"]


def test_what_cannot_be_used_is_an_error_of_the_settings(settings):
    """Not a stack trace of the first publish."""
    for url in WRONG:
        settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "REDIS_URL": url}

        assert "notifications.E004" in [message.id for message in run_checks(tags=["notifications"])], url
        with pytest.raises(ImproperlyConfigured, match="REDIS_URL"):
            publish_to_user(1, {"action": "x"})


HOSTS = [
    "redis://127.0.0.1:1",
    ["redis://:20/24@127.0.0.1:1"],
    [{"address": "redis://:20#24@127.0.0.1:1"}],
    ["redis://127.0.0.1:1", "redis://127.0.0.1:2"],
]


@cases("hosts", HOSTS)
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
