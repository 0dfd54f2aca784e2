"""Addresses of a Redis: what is read of a URL, what is refused, and that nothing shows its credentials."""

import re
import ssl
from itertools import product
from urllib.parse import quote, urlsplit

import pytest
import redis
from django.core.checks import run_checks
from django.core.exceptions import ImproperlyConfigured
from django.test import override_settings
from hypothesis import given
from hypothesis import strategies as st

from notifications import publish_to_user
from notifications.address import AddressError, Sort, read, secrets, shown
from notifications.layers import RedisPubSubLayer
from notifications.logs import LONGEST, describe
from tests.cases import cases

GOOD = {
    "redis://redis.example": {"host": "redis.example", "port": 6379},
    "redis:///2": {"host": "localhost", "port": 6379, "db": 2},
    "redis://127.0.0.1:1/2": {"host": "127.0.0.1", "port": 1, "db": 2},
    "redis://:hush@h:1/0": {"host": "h", "port": 1, "db": 0, "password": "hush"},
    "redis://site:a@b:c@h": {"host": "h", "port": 6379, "username": "site", "password": "a@b:c"},
    "redis://site:a+b:c@h:1": {"host": "h", "port": 1, "username": "site", "password": "a+b:c"},
    "rediss://site:a%2Fb%23c%3Fd%25@h/": {"host": "h", "port": 6379, "username": "site", "password": "a/b#c?d%"},
    "rediss://h?ssl_cert_reqs=none&ssl_check_hostname=false": {
        "host": "h",
        "port": 6379,
        "ssl_cert_reqs": "none",
        "ssl_check_hostname": False,
    },
    "rediss://h?ssl_cert_reqs=optional&ssl_min_version=771": {
        "host": "h",
        "port": 6379,
        "ssl_cert_reqs": "optional",
        "ssl_min_version": ssl.TLSVersion.TLSv1_2,
    },
    "rediss://h?ssl_cert_reqs=required": {"host": "h", "port": 6379, "ssl_cert_reqs": "required"},
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
        assert options.items() <= {"host": "localhost", "port": 6379, **pool}.items()
    assert read(url).options == options


@cases("word", ["0", "1", "f", "t", "n", "y", "no", "No", "yes", "false", "FALSE", "true"])
def test_yes_and_no_are_what_redis_py_takes_for_them(word):
    """Nobody's host names are checked, or left unchecked, because of another word."""
    url = f"rediss://h?ssl_check_hostname={word}"

    found = read(url).options["ssl_check_hostname"]

    assert found is redis.ConnectionPool.from_url(url).connection_kwargs["ssl_check_hostname"]


UNUSED = {
    "redis://h?socket_timeout=1&client_name=site&decode_responses=True": ("socket_timeout", "decode_responses"),
    "redis://h?ssl_ca_certs=/ca.pem&client_name=site": ("ssl_ca_certs",),
    "redis://h?password=hush&socket_timeout=1&client_name=site": ("socket_timeout",),
    "redis://h?timeuot=1&password=hush&client_name=site": ("timeuot",),
    "unix:///s?client_name=site&ssl_cert_reqs=maybe": ("ssl_cert_reqs",),
    "rediss://h?sentinel_username=site&client_name=site": ("sentinel_username",),
    "redis+cluster://h?sentinel_password=hush&client_name=site": ("sentinel_password",),
    "redis+sentinel://h/main?ssl_password=hush&client_name=site": ("ssl_password",),
}


@cases(("url", "unused"), UNUSED.items())
def test_options_that_are_not_used_are_named_and_the_others_are_used(url, unused):
    """Nobody believes for years that a time-out applies, or a certificate."""
    found = read(url)

    assert found.unused == unused
    assert not set(unused) & found.options.keys()
    assert found.options["client_name"] == "site"


SEVERAL = {
    "redis+sentinel://h/main": (Sort.SENTINEL, "redis", (("h", 26379),), "main", {}),
    "redis+sentinel://me:a%2Fb@h1:1,[fe80::1]:2,h3/my.main-1/4": (
        Sort.SENTINEL,
        "redis",
        (("h1", 1), ("fe80::1", 2), ("h3", 26379)),
        "my.main-1",
        {"username": "me", "password": "a/b", "db": 4},
    ),
    "rediss+sentinel://h/main?sentinel_password=hush&ssl_cert_reqs=none": (
        Sort.SENTINEL,
        "rediss",
        (("h", 26379),),
        "main",
        {"sentinel_password": "hush", "ssl_cert_reqs": "none"},
    ),
    "redis+cluster://:hush@h1:7000,h2": (Sort.CLUSTER, "redis", (("h1", 7000), ("h2", 6379)), "", {"password": "hush"}),
    "rediss+cluster://h?client_name=site": (Sort.CLUSTER, "rediss", (("h", 6379),), "", {"client_name": "site"}),
    "embedded": (Sort.EMBEDDED, "embedded", (), "", {"path": "embedded"}),
}


@cases(("url", "parts"), SEVERAL.items())
def test_a_url_says_whom_to_ask(url, parts):
    """Sentinels, nodes of a cluster, or nobody; and it is shown with them, but without credentials."""
    found = read(url)

    assert (found.sort, found.scheme, found.hosts, found.service, found.options) == parts
    assert found.unused == ()
    assert read(str(found).replace("***@", ""))[3:] == found[3:]
    assert not {"hush", "a/b", "a%2Fb"} & secrets(str(found))


SHOWN = {
    "redis://": "redis://localhost:6379",
    "redis://LINUX/": "redis://LINUX:6379",
    "redis://h:6380/0": "redis://h:6380/0",
    "redis://site@h": "redis://***@h:6379",
    "redis://:Secret@h/2": "redis://***@h:6379/2",
    "redis://h?db=2&password=Secret": "redis://***@h:6379/2",
    "rediss://site:Secret@[fe80::1]:6380/1?client_name=x": "rediss://***@[fe80::1]:6380/1",
    "unix:///run/redis.sock": "unix:///run/redis.sock",
    "unix://site:Secret@/run/redis.sock?db=1": "unix://***@/run/redis.sock",
    "redis+sentinel://UNIX,[::1]:2/main": "redis+sentinel://UNIX:26379,[::1]:2/main",
    "rediss+sentinel://site:Secret@h1:1,h2/main/0": "rediss+sentinel://***@h1:1,h2:26379/main/0",
    "redis+cluster://[::1],h2:7000": "redis+cluster://[::1]:6379,h2:7000",
    "rediss+cluster://:Secret@h": "rediss+cluster://***@h:6379",
    "embedded": "embedded",
    "redis://site:Secret@h:port": "an address that cannot be read",
    None: "an address that cannot be read",
}


@cases(("url", "text"), SHOWN.items())
def test_an_address_is_shown_whole_but_for_its_login(url, text):
    """Whoever reads it sees which server, port and database it is, and that there is a login."""
    assert shown(url) == text


FORM = "it is not of the form {}, or has a character that must be quoted"
ONE = FORM.format("redis://user:password@host:6379/0")
SOCKET = FORM.format("unix://user:password@/path")
SENTINELS = FORM.format("redis+sentinel://user:password@host:26379,host:26379/mymaster/0")
CLUSTER = FORM.format("redis+cluster://user:password@host:6379,host:6379")
BEGINNING = "it does not begin with redis://, rediss://, redis+sentinel://, redis+cluster:// or unix://"
SERVICE = "it does not say which service the Sentinels are to be asked for: …/mymaster"
NOTHING_FOLLOWS = "a cluster has no services and no databases: nothing may follow its hosts"
NO_PORT = "there is no port of this number"
OPTIONS = "what follows the question mark is not option=value&option=value"
UNKNOWN = "after its password there is something that is no option"
ENCODING = "it has a character that is not UTF-8"
VALUE = "its option {!r} has a value that cannot be read"
NO_ADDRESS = {
    None: "it is not a text",
    b"redis://h": "it is not a text",
    "": BEGINNING,
    "Redis://h": BEGINNING,
    "redis://h:port": ONE,
    "rediss://a+sentinel:b@h:port": ONE,
    "rediss://a+cluster:b@h:port": ONE,
    "unix://run/redis.sock": SOCKET,
    "redis://:1": "it has no host",
    "redis://site:Secret@": "it has no host",
    "redis://@:1": "it has no host",
    "redis://h:65536": NO_PORT,
    "redis+cluster://h1:1,h2:65536": NO_PORT,
    "redis://h?db": OPTIONS,
    "redis://h?db=1&client": OPTIONS,
    "redis://h?password=ab&secret=1": UNKNOWN,
    "redis+cluster://h?sentinel_password=ab&secret=": UNKNOWN,
    "redis://:Secr\udce4t@h": ENCODING,
    "redis://:Secr%E4t@h": ENCODING,
    "redis://h?password=Secr%E4t": ENCODING,
    "redis://h?client_name=my%20site": VALUE.format("client_name"),
    "redis://h?client_name=%C3%A9": VALUE.format("client_name"),
    "redis+sentinel://h/main?client_name=a%0Ab": VALUE.format("client_name"),
    "rediss://h?ssl_keyfile=/key.pem": "its option 'ssl_keyfile' needs 'ssl_certfile'",
    "redis://h?db=-1": VALUE.format("db"),
    "redis://h?max_connections=1_000": VALUE.format("max_connections"),
    "redis://h?max_connections=٣": VALUE.format("max_connections"),
    "rediss://h?ssl_min_version=1": VALUE.format("ssl_min_version"),
    "rediss://h?ssl_cert_reqs=None": VALUE.format("ssl_cert_reqs"),
    "redis+sentinel://h": SERVICE,
    "redis+sentinel:///main": SENTINELS,
    "redis+sentinel://h:0/main": NO_PORT,
    "redis+cluster://h/0": NOTHING_FOLLOWS,
    "redis+cluster://h?db=1": "a cluster has no databases",
    "redis+cluster://h,/": CLUSTER,
    "unix+sentinel:///s": BEGINNING,
    "redis+proxy://h": BEGINNING,
    "embedded://": BEGINNING,
}


@cases(("url", "why"), NO_ADDRESS.items())
def test_what_names_no_redis_is_refused_with_the_reason(url, why):
    """Nobody learns only at the first publish that a part is missing; the form that fits is shown."""
    with pytest.raises(AddressError) as refused:
        read(url)

    assert str(refused.value) == why


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
    "redis+sentinel://site:{}@127.0.0.1:1,127.0.0.2:1/main",
    "redis+sentinel://127.0.0.1:1/main?sentinel_password={}",
    "rediss+cluster://site:{}@127.0.0.1:1",
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
            for text in (url, "Port could not be cast to integer value as 'Secret'", "connecting to secret:6379"):
                told[url, text] = describe(ValueError(text))

    assert {case: text for case, text in told.items() if "secret" in text.lower()} == {}


MISREAD = {
    "redis://site:k9/Secret@127.0.0.1:1/0": ["k9"],
    "redis://Zq:6379/cret@127.0.0.1:1/0": ["zq"],
    "redis://site:[Xs]ecret@h/0": ["xs", "ecret"],
    "redis://site:ecr\x00et/x@h:x/0": ["ecr", "et"],
    "redis://site:Xs\xe4t#@h": ["xe4", "ä"],
    "redis://site:ec\u2100ret@h:x/0": ["ec", "ret"],
    "redis://h/0?max_connections=k9+k8&x=#": ["k9", "k8"],
}


@cases(("url", "parts"), MISREAD.items())
def test_no_part_of_a_url_that_is_misread_is_told(settings, url, parts):
    """However short a part is, and whatever urllib, the socket or redis-py makes of it."""
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "REDIS_URL": url}
    told = []

    for use in (
        lambda: urlsplit(url).port,
        lambda: redis.Redis.from_url(url, socket_connect_timeout=0.1, retry=None).ping(),
        lambda: int(url.partition("site:")[2].partition("/")[0]),
        lambda: url.encode("ascii"),
    ):
        try:
            use()
        except (ValueError, redis.RedisError) as error:
            told.append(describe(error))

    assert told
    assert [(part, text) for part in parts for text in told if part in text.lower()] == []


QUOTED = {
    "redis://:abc@h": ["abc"],
    "redis://X-ray:Secret@h": ["X-ray:Secret"],
    "redis://site:ab:cd@h?client_name=x://y": ["site:ab:cd", "ab:cd", "site"],
    "unix://site:X@Secret@/run/redis.sock": ["site:X@Secret", "X@Secret", "Secret"],
    "rediss://site:ab%2Fcd@h": ["site:ab%2Fcd", "site:ab/cd", "ab%2Fcd", "ab/cd"],
    "redis+sentinel://h/main?sentinel_password=ab%2Fcd": ["ab%2Fcd", "ab/cd"],
    "rediss://h?client_name=x&password=ab+cd&username=it%40us": ["ab+cd", "ab cd", "it%40us", "it@us"],
    "rediss://h?ssl_password=%C3%A4%2B%C3%B6": ["ä+ö", "%C3%A4%2B%C3%B6"],
    "redis://site:ab/cd@h:1/0": ["site:ab/cd@h:1/0", "ab/cd", "site"],
    "redis://a://b:Secret@h": ["a://b:Secret@h", "//b:Secret"],
    "Secret word": ["Secret word", "Secret", "word"],
}


@cases(("url", "texts"), QUOTED.items())
def test_credentials_that_are_quoted_leave_nothing_behind(settings, url, texts):
    """As the URL has them or as they are meant: not even their first characters are seen."""
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "REDIS_URL": url}

    assert [describe(f"cannot use {text} here") for text in texts] == ["cannot use *** here"] * len(texts)


HARMLESS = {
    "redis://site:Secret@redis.internal:6379/0": "redis.internal:6379 of redis:// is away",
    "redis+sentinel://site:Secret@sentinel.internal/main": "sentinel.internal:26379 knows no main",
    "redis://site:Secret@host:port": "redis is away",
    "redis://h?client_name=website": "website is away",
    "embedded": "embedded is away",
}


@cases(("url", "text"), HARMLESS.items())
def test_what_is_no_credential_can_be_read(settings, url, text):
    """An error that names no server helps nobody."""
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "REDIS_URL": url}

    assert describe(text) == text


PASSWORDS = st.text(st.characters(codec="utf-8", exclude_characters="*"), min_size=3, max_size=8).filter(str.strip)


@given(PASSWORDS, st.sampled_from(["redis://:{}@h", "unix://site:{}@/s", "redis+cluster://h?password={}"]))
def test_a_quoted_password_is_never_told(password, place):
    """Neither as it is written in the URL nor as it is meant, whatever its characters."""
    written = quote(password, safe="")
    found = secrets(place.format(written))

    assert {password, written} <= found


@cases(
    "hosts",
    [
        ["redis://:Secret@h"],
        [{"address": "redis://site:Secret@h"}],
        [{"host": "h", "password": "Secret"}],
        [{"sentinels": [("h", 1)], "master_name": "m", "sentinel_kwargs": {"password": "Secret"}}],
        ["redis://h", "redis://:20/Secret@h"],
        "redis://:Secret@h",
        {"redis://:Secret@h"},
        [("h", 6379), {"address": "redis://:2#Secret@h", "username": "site"}],
    ],
)
def test_credentials_of_the_channel_layer_are_not_shown_either(settings, hosts):
    settings.CHANNEL_LAYERS = {"default": {"BACKEND": "x", "CONFIG": {"hosts": hosts}}}

    assert describe(OSError("cannot use Secret here")) == "cannot use *** here"


def test_a_password_of_two_characters_does_not_blacken_every_text():
    assert secrets("redis://:ab@h") == set()


WRONG = ["redis://h:0", "redis://h:65536", "redis://h/db", "redis://h/0?db=x", "redis://h?max_connections=0"]
WRONG += ["redis://:\udce4@h", "redis://h?client_name=my%20site", "rediss://h?ssl_keyfile=/key.pem"]
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
