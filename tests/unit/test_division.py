"""Which listener is to lead which shard."""

from hypothesis import given
from hypothesis import strategies as st

from notifications.bridge.division import plan

LISTENERS = st.sets(st.text("abcdef", min_size=1, max_size=3), min_size=1, max_size=6)
SHARDS = st.sampled_from([1, 2, 4, 8, 16, 64])


@st.composite
def held(draw):
    """Return what each listener leads, and how many shards there are; some may be free."""
    shards, listeners = draw(SHARDS), sorted(draw(LISTENERS))
    owners = draw(st.lists(st.sampled_from([None, *listeners]), min_size=shards, max_size=shards))
    return {each: [shard for shard in range(shards) if owners[shard] == each] for each in listeners}, shards


@given(held())
def test_a_plan_is_fair_and_moves_no_more_than_it_must(given_):
    """Every shard is somebody's; the sizes differ by one at most; only what exceeds a share is moved."""
    mine, shards = given_
    found = plan(mine, shards)

    assert sorted(found) == list(range(shards))
    sizes = sorted(list(found.values()).count(listener) for listener in mine)
    assert sizes[-1] - sizes[0] <= 1

    moved = sum(found[shard] != listener for listener, its in mine.items() for shard in its)
    shares = sorted(sizes, reverse=True)
    numbers = sorted((len(its) for its in mine.values()), reverse=True)
    assert moved == sum(max(0, number - share) for number, share in zip(numbers, shares, strict=True))


@given(held())
def test_a_plan_that_was_followed_stays(given_):
    """Nothing moves to and fro."""
    mine, shards = given_
    found = plan(mine, shards)
    followed = {listener: [shard for shard, whose in found.items() if whose == listener] for listener in mine}

    assert plan(followed, shards) == found


@given(held(), st.integers(0, 10**6))
def test_all_listeners_have_the_same_plan(given_, number):
    """Whatever the order in which they read each other's reports."""
    mine, shards = given_
    turned = list(mine.items())
    number %= len(turned)

    assert plan(dict(turned[number:] + turned[:number]), shards) == plan(mine, shards)


def test_who_comes_gets_a_share_and_who_goes_leaves_it():
    """The others keep what they have."""
    assert plan({"a": [0, 1, 2, 3], "b": []}, 4) == {0: "a", 1: "a", 2: "b", 3: "b"}
    assert plan({"a": [0, 1], "b": [2, 3], "c": []}, 4) == {0: "a", 1: "a", 2: "b", 3: "c"}
    assert plan({"b": [2, 3]}, 4) == {0: "b", 1: "b", 2: "b", 3: "b"}
    assert plan({}, 4) == {}


def test_two_that_seem_to_lead_the_same_shard_are_no_trouble():
    """One of the reports is a moment old."""
    assert plan({"a": [0, 1], "b": [1]}, 2) == {0: "a", 1: "b"}
