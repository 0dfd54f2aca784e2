"""Names: what is a topic, and which channels, groups and keys belong to it."""

import string
from asyncio import CancelledError
from contextlib import suppress
from numbers import Integral
from types import SimpleNamespace
from uuid import UUID

import pytest
from channels.layers import BaseChannelLayer
from django.contrib.auth.models import AnonymousUser, User
from django.test import override_settings
from django.utils.functional import SimpleLazyObject
from hypothesis import example, given
from hypothesis import strategies as st

from notifications import Topic, TopicError
from notifications.topics import internal_name, patterns
from tests.cases import cases

KINDS = ["user", "upload", "order", "closed"]
PREFIXES = ["", "shop:", "shop2:", "user:", "a_longer_prefix:"]
SETTINGS = {
    "REDIS_URL": "redis://127.0.0.1:1/0",
    "TOPICS": {"upload": {}, "order": {}, "closed": {}, "fifteen_letters": {}},
}

kinds = st.sampled_from(KINDS)
encodable = st.characters(exclude_categories=["Cs"])
"""Any character but the surrogates, which UTF-8 cannot hold."""
plain_ids = st.text(string.ascii_letters + string.digits + "._-", min_size=1, max_size=70)
ids = st.one_of(
    st.text(encodable, min_size=1, max_size=200),
    plain_ids,
    st.text(string.printable, min_size=1, max_size=200),
    st.uuids().map(str),
    st.emails().filter(lambda text: len(text) <= 200),
    st.text("0123456789abcdef", min_size=64, max_size=65).map(lambda digest: "." + digest[:64]),
)


@pytest.fixture(autouse=True)
def _kinds_without_options():
    """Give every kind the ids as they are; the tests of ``CLEAN_ID`` set their own."""
    with override_settings(NOTIFICATIONS=SETTINGS):
        yield


def with_prefix(prefix):
    return override_settings(NOTIFICATIONS={**SETTINGS, "PREFIX": prefix})


def taken(make, cases):
    """Return what of some cases makes a topic, and is not refused with a TopicError."""
    made = []
    for case in cases:
        with suppress(TopicError):
            made.append((case, make(case)))
    return made


def with_clean_id(clean_id):
    return override_settings(NOTIFICATIONS={**SETTINGS, "TOPICS": {"order": {"CLEAN_ID": clean_id}}})


@pytest.mark.parametrize(
    ("prefix", "channel", "group"),
    [("", "upload:7f3c", "upload.7f3c"), ("shop:", "shop:upload:7f3c", "shop-upload.7f3c")],
)
def test_names_are_those_of_the_contract(prefix, channel, group):
    """A topic's channel is <PREFIX><kind>:<id> and its group <PREFIX><kind>.<id>; a dash for the colon."""
    with with_prefix(prefix):
        topic = Topic("upload", "7f3c")

        assert (topic.channel, topic.group, str(topic)) == (channel, group, "upload:7f3c")


def test_an_id_that_channels_does_not_allow_is_hashed():
    """The group of any other id is <kind>..<64 hex of SHA-256>."""
    assert Topic("user", "a@b").group == "user..7508d8b5018ea640b85269861a101203f0c26900555268e930025dac844b0f35"


@pytest.mark.parametrize(("length", "hashed"), [(64, False), (65, True)])
def test_plain_ids_have_at_most_64_characters(length, hashed):
    """An id of 64 allowed characters stands in its group as it is, one of 65 is hashed."""
    id_ = "x" * length

    assert (Topic("upload", id_).group != f"upload.{id_}") is hashed


@given(kind=kinds, id_=ids, prefix=st.sampled_from(PREFIXES))
@example(kind="user", id_="42\n", prefix="")
@example(kind="user", id_="x" * 64 + "\n", prefix="")
@example(kind="user", id_="é", prefix="a_longer_prefix:")
def test_every_group_is_valid_for_channels(kind, id_, prefix):
    """Any valid topic's group has fewer than 100 of the characters that Channels allows."""
    with with_prefix(prefix):
        group = Topic(kind, id_).group

    assert len(group) < 100
    assert set(group) <= set(string.ascii_letters + string.digits + "._-")
    assert BaseChannelLayer().require_valid_group_name(group)


def test_the_longest_names_are_valid_for_channels():
    """A PREFIX and a kind of full length leave room for a hashed id."""
    with with_prefix("a_longer_prefix:"):
        group = Topic("fifteen_letters", "é" * 200).group

    assert len(group) == 16 + 15 + 1 + 65
    assert BaseChannelLayer().require_valid_group_name(group)


@given(first=st.tuples(st.sampled_from(PREFIXES), kinds, ids), second=st.tuples(st.sampled_from(PREFIXES), kinds, ids))
@example(first=("user:", "user", "1"), second=("", "user", "user:1"))
@example(first=("", "user", "42"), second=("", "user", "42\n"))
@example(first=("", "upload", "7f3c"), second=("", "upload", "7F3C"))
@example(first=("", "upload", "é"), second=("", "upload", "e\u0301"))
def test_no_two_topics_share_a_group_or_a_channel_of_one_site(first, second):
    """Two topics of one site differ in group and channel; two sites' groups differ by their PREFIX."""
    names = []
    for prefix, kind, id_ in (first, second):
        with with_prefix(prefix):
            topic = Topic(kind, id_)
            names.append((topic.group, topic.channel))
    same_site = first[0] == second[0]

    assert (names[0][0] == names[1][0]) is (first == second)
    if same_site:
        assert (names[0][1] == names[1][1]) is (first == second)


@given(kind=kinds, id_=ids)
def test_the_hash_of_another_topic_is_no_plain_id(kind, id_):
    """Nobody can name an id so that its group is the hashed group of another topic."""
    group = Topic(kind, id_).group
    told = group.removeprefix(f"{kind}.")

    assert told == id_ or Topic(kind, told).group != group


@given(kind=kinds, id_=ids)
@example(kind="upload", id_="a:b: c")
def test_the_text_of_a_topic_reads_back(kind, id_):
    """parse reads what str wrote, whatever is in the id."""
    topic = Topic(kind, id_)

    assert Topic.parse(str(topic)) == topic
    assert hash(Topic.parse(str(topic))) == hash(topic)


@given(kind=kinds, id_=ids, prefix=st.sampled_from(PREFIXES))
@example(kind="upload", id_=":", prefix="")
@example(kind="upload", id_="Füße und Hände 🙂", prefix="shop:")
@example(kind="upload", id_="x" * 200, prefix="")
def test_the_channel_of_a_topic_reads_back(kind, id_, prefix):
    """from_channel reads the Redis channel of any topic, in bytes."""
    with with_prefix(prefix):
        topic = Topic(kind, id_)

        assert Topic.from_channel(topic.channel.encode()) == topic


def test_channels_that_are_no_topic_are_refused():
    """from_channel raises TopicError, and nothing else, for the name of a channel that is not a topic's."""
    channels = [b"", b"upload", b"upload:", b":7f3c", b"Upload:7f3c", b"nope:1"]
    channels += [b"upload:\xff", b"upload:" + b"x" * 201, b"upload:\xed\xa0\x80"]

    assert taken(Topic.from_channel, channels) == []


@given(channel=st.binary(max_size=250))
def test_no_channel_name_raises_anything_but_topic_error(channel):
    """from_channel takes any bytes that Redis may report."""
    try:
        topic = Topic.from_channel(channel)
    except TopicError:
        return
    assert topic.channel.encode() == channel


def test_the_channel_of_another_site_is_refused():
    """from_channel refuses names without our PREFIX."""
    with with_prefix("shop:"):
        assert taken(Topic.from_channel, [b"upload:1", b"other:upload:1", b"shop", b"shop-upload:1"]) == []


def test_wrong_ids_are_refused():
    """An id is 1 to 200 characters that UTF-8 can hold, given as str, int or UUID."""
    ids = ["", "x" * 201, "\ud800", "a\udfffb", None, True, 1.5, b"42", ["a"], 10**5000]

    assert taken(lambda id_: Topic("upload", id_), ids) == []


@pytest.mark.parametrize("length", [1, 200])
def test_the_length_of_an_id_counts_characters_not_bytes(length):
    """An id of 200 emoji is valid."""
    assert Topic("upload", "🙂" * length).id == "🙂" * length


def test_unknown_kinds_are_refused():
    """Only the kinds of the settings exist."""
    kinds = ["nope", "", "User", "user\n", "user ", "notifications", 1, None, ["upload"]]

    assert taken(lambda kind: Topic(kind, "1"), kinds) == []


def test_text_that_is_no_topic_is_refused():
    """parse raises TopicError for anything but kind:id."""
    assert taken(Topic.parse, ["", "upload", "upload:", ":1", "nope:1"]) == []


@cases(
    ("id_", "written"),
    [
        (42, "42"),
        (-1, "-1"),
        (UUID("7F3C0000-0000-4000-8000-000000000001"), "7f3c0000-0000-4000-8000-000000000001"),
        ("42", "42"),
        (" 42 ", " 42 "),
    ],
)
def test_ids_may_be_integers_and_uuids(id_, written):
    """An id that is an int or a UUID is written as Python writes it; text stays as it is."""
    assert Topic("upload", id_) == Topic("upload", written)


def test_topics_cannot_be_changed():
    """A topic is a value: nobody can make a valid one invalid."""
    with pytest.raises(AttributeError):
        Topic("upload", "1").id = ""


def test_clean_id_gives_an_id_its_one_spelling():
    """CLEAN_ID applies to what is constructed, parsed and read from a channel alike."""
    with with_clean_id(str.lower):
        topic = Topic("order", "ABC")

        assert topic.id == "abc"
        assert Topic.parse("order:ABC") == topic
        assert Topic.from_channel(b"order:ABC") == topic
        assert topic.channel == "order:abc"


def test_clean_id_gets_text_whatever_was_given():
    """CLEAN_ID is called with the id as text, also for a UUID or an int."""
    seen = []
    with with_clean_id(lambda id_: seen.append(id_) or id_):
        Topic("order", 42)
        Topic("order", UUID(int=1))

    assert seen == ["42", "00000000-0000-0000-0000-000000000001"]


class ArraysNumber:
    """As the integers of numpy and pandas, which are none of Python's."""

    def __int__(self):
        return 42


Integral.register(ArraysNumber)


def test_a_number_of_an_array_is_an_id():
    """A program that reads ids from a table need not convert them."""
    assert Topic("order", ArraysNumber()) == Topic("order", 42)
    assert Topic.for_user(ArraysNumber()) == Topic.for_user(42)


def test_clean_id_applies_to_its_kind_only():
    """The ids of other kinds stay as they are."""
    with with_clean_id(str.lower):
        assert Topic("user", "ABC").id == "ABC"


@cases("error", [ValueError, RuntimeError, KeyError, SystemExit, CancelledError, GeneratorExit])
def test_an_id_that_clean_id_refuses_is_refused(error):
    """Whatever CLEAN_ID raises, the id is refused with a TopicError that does not quote it."""

    def refuse(id_):
        raise error("secret detail")

    with with_clean_id(refuse), pytest.raises(TopicError, match=error.__name__) as caught:
        Topic("order", "the-id")

    assert "secret" not in str(caught.value)
    assert "the-id" not in str(caught.value)


@cases("cleaned", ["", "x" * 201, "\ud800", None, 42, b"42"])
def test_what_clean_id_makes_must_be_an_id(cleaned):
    """A CLEAN_ID that forgets to return, or returns anything but a valid text, refuses the id."""
    with with_clean_id(lambda _: cleaned), pytest.raises(TopicError):
        Topic("order", "1")


def test_for_user_takes_an_instance_a_lazy_one_or_a_key():
    """for_user names the same topic by a User, by request.user and by the primary key."""
    user = User(pk=42)
    lazy = SimpleLazyObject(lambda: user)

    assert {Topic.for_user(each) for each in (user, lazy, 42, "42")} == {Topic("user", "42")}


def test_for_user_takes_any_sort_of_primary_key():
    """A user model may have a UUID, or text with spaces, as its key."""
    key = UUID(int=7)

    assert Topic.for_user(SimpleNamespace(pk=key)) == Topic("user", str(key)) == Topic.for_user(key)
    assert Topic.for_user(SimpleNamespace(pk="a b")) == Topic("user", "a b")


def test_for_user_takes_a_composite_key():
    """A key of several fields names one topic, given as a User or as the tuple that it is."""
    key = ("acme", 42)

    assert Topic.for_user(SimpleNamespace(pk=key)) == Topic.for_user(key) == Topic("user", "('acme', 42)")
    assert Topic.for_user(("acme, 4", 2)) != Topic.for_user(("acme", 42))


@cases("user", [AnonymousUser(), SimpleLazyObject(AnonymousUser), User(), SimpleNamespace(pk=("acme", None)), None, ""])
def test_for_user_refuses_a_user_without_a_key(user):
    """An anonymous or unsaved user, or nobody at all, has no topic."""
    with pytest.raises(TopicError):
        Topic.for_user(user)


@pytest.mark.parametrize("prefix", ["", "shop:"])
def test_patterns_match_the_channels_of_every_kind(prefix):
    """The listener's patterns are <PREFIX><kind>:* for each kind, and nothing else."""
    with with_prefix(prefix):
        assert patterns() == [f"{prefix}{kind}:*" for kind in [*KINDS, "fifteen_letters"]]


@pytest.mark.parametrize("prefix", ["", "shop:"])
def test_our_own_names_are_no_topics(prefix):
    """This app's keys and channels begin with <PREFIX>notifications: and no topic has such a channel."""
    with with_prefix(prefix):
        name = internal_name("stamped")

        assert name == f"{prefix}notifications:stamped"
        with pytest.raises(TopicError):
            Topic.from_channel(name.encode())
